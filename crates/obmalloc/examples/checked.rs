//! A heap that looks every address up, and says what is wrong with it: `cargo run --example checked`.

use std::error::Error;

use obmalloc::{CheckedHeap, Domain, Fault, FaultKind, HeapOptions, profile};

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let heap = CheckedHeap::new(HeapOptions::new(&profile::V3_13))?;
    let block = heap.malloc(Domain::Obj, 64).ok_or("no memory")?.addr().get();

    let wrong = |outcome: Result<(), Fault>| match outcome {
        Ok(()) => None,
        Err(fault) => {
            println!("{}: {fault}", fault.kind.code());
            Some(fault.kind)
        }
    };
    assert_eq!(wrong(heap.free(Domain::Mem, block)), Some(FaultKind::WrongDomain));
    assert_eq!(wrong(heap.free(Domain::Obj, block + 16)), Some(FaultKind::InteriorPointer));
    assert_eq!(wrong(heap.free(Domain::Obj, 0x1234_5670)), Some(FaultKind::ForeignPointer));
    // Nothing of this has changed anything.
    assert_eq!(wrong(heap.free(Domain::Obj, block)), None);
    assert_eq!(wrong(heap.free(Domain::Obj, block)), Some(FaultKind::DoubleFree));
    heap.verify()?;
    assert_eq!(heap.allocated_blocks(), 0);
    Ok(())
}
