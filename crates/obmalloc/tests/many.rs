//! Many heaps at once. Each costs as much memory as the first ones. This test has a process of its own, whose resident memory is measured.

#![cfg(target_os = "linux")]

use obmalloc::{CheckedHeap, Domain, HeapOptions, profile};

/// Bytes of this process's own memory that are resident.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let kib = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    kib.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

/// A heap of the newest release with one block.
fn used() -> CheckedHeap {
    let heap = CheckedHeap::new(HeapOptions::new(&profile::V3_14)).unwrap();
    heap.malloc(Domain::Obj, 100).unwrap();
    heap
}

#[test]
#[cfg_attr(miri, ignore = "the system's memory is measured")]
fn a_thousand_heaps_cost_no_more_each_than_a_hundred() {
    let mut heaps = Vec::with_capacity(2000);
    let mut open = |count: usize| {
        let before = resident();
        heaps.extend((0..count).map(|_| used()));
        // Once a large block has been freed, the C library does not ask the system for each of that size any more.
        drop(used());
        (resident() - before) / count
    };
    let (first, later) = (open(100), open(1000));
    assert!(later <= first + first / 4, "{first} bytes each became {later}");
}
