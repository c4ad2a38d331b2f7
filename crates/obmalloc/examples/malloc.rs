//! A heap that trusts its caller, as C does: `cargo run --example malloc`.

use std::error::Error;

use obmalloc::{Domain, Heap, profile};

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let heap = Heap::new(&profile::V3_13)?;
    let blocks: Vec<_> = (0..3).map(|_| heap.malloc(Domain::Obj, 100).ok_or("no memory")).collect::<Result<_, _>>()?;
    // Blocks of one size class lie side by side: 100 bytes get 112.
    let addresses: Vec<_> = blocks.iter().map(|block| block.addr().get()).collect();
    assert_eq!((addresses[1] - addresses[0], addresses[2] - addresses[1]), (112, 112));
    assert_eq!((heap.allocated_blocks(), heap.arenas().len()), (3, 1));

    // SAFETY: each block comes from this heap's obj domain, and is freed once.
    unsafe { heap.free(Domain::Obj, Some(blocks[1])) };
    // What was freed last is given first.
    let again = heap.malloc(Domain::Obj, 97).ok_or("no memory")?;
    assert_eq!(again, blocks[1]);
    print!("{}", heap.stats());

    for block in [blocks[0], again, blocks[2]] {
        // SAFETY: as above.
        unsafe { heap.free(Domain::Obj, Some(block)) };
    }
    assert_eq!(heap.allocated_blocks(), 0);
    Ok(())
}
