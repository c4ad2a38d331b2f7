//! A heap as the global allocator of a whole test program, used from several threads.

use std::collections::HashMap;

use obmalloc::{GlobalHeap, profile};

#[global_allocator]
static ALLOCATOR: GlobalHeap = GlobalHeap::new(&profile::V3_14);

#[test]
fn threads_share_it() {
    let threads: Vec<_> = (0..8u64)
        .map(|seed| {
            std::thread::spawn(move || {
                let mut map = HashMap::new();
                for number in 0..if cfg!(miri) { 50 } else { 20_000u64 } {
                    let text = format!("{seed}-{number}");
                    map.insert(text.clone(), text.repeat((number % 40) as usize));
                    if number % 3 == 0 {
                        map.remove(&format!("{seed}-{}", number / 2));
                    }
                }
                map
            })
        })
        .collect();
    for (seed, thread) in threads.into_iter().enumerate() {
        let map = thread.join().expect("no panic");
        assert!(map.iter().all(|(key, value)| key.starts_with(&seed.to_string()) && value.len() % key.len() == 0));
    }
}

#[test]
fn alignments_are_kept() {
    use std::alloc::{Layout, alloc, dealloc, realloc};
    for align in (0..=13).map(|power| 1usize << power) {
        for size in [1, 8, 100, 512, 513, 5000, 100_000] {
            let layout = Layout::from_size_align(size, align).expect("a layout");
            // SAFETY: the layout is not empty; the block is used within it and freed with it.
            unsafe {
                let block = alloc(layout);
                assert!(!block.is_null() && block.addr().is_multiple_of(align));
                block.write_bytes(3, size);
                let grown = realloc(block, layout, size * 2);
                assert!(grown.addr().is_multiple_of(align) && *grown.add(size - 1) == 3);
                dealloc(grown, Layout::from_size_align(size * 2, align).expect("a layout"));
            }
        }
    }
}
