//! A replay's memory grows with what is live, not with the trace.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use obmalloc::profile;
use obmalloc_trace::format::{BlockWriter, Domain, Packer, Reader, file_head};
use obmalloc_trace::replay::{Replay, Report};

/// Counts the bytes that the test's thread has taken and not given back, and the most that they have been.
struct Counting;

thread_local! {
    /// Not in the threads of the test harness.
    static COUNTS: Cell<bool> = const { Cell::new(false) };
}

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: passes every request on.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if COUNTS.get() {
            PEAK.fetch_max(LIVE.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        }
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, address: *mut u8, layout: Layout) {
        if COUNTS.get() {
            LIVE.fetch_sub(layout.size(), Relaxed);
        }
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(address, layout) };
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A head, and then the same block again and again.
struct Endless {
    head: Vec<u8>,
    block: Vec<u8>,
    at: usize,
    end: usize,
}

impl Read for Endless {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let rest = match self.at.checked_sub(self.head.len()) {
            None => &self.head[self.at..],
            Some(at) => &self.block[at % self.block.len()..],
        };
        let length = rest.len().min(into.len()).min(self.end - self.at);
        into[..length].copy_from_slice(&rest[..length]);
        self.at += length;
        Ok(length)
    }
}

/// Replays `blocks` blocks of 10,000 events, in which stacks are described and each block of memory is freed; gives the most memory that was taken at a time.
fn peak_of(blocks: usize) -> usize {
    const EVENTS: u64 = 10_000;
    let mut memory = vec![0; 1 << 17];
    let mut block = BlockWriter::new(&mut memory);
    for number in 0..100 {
        block.stack_text(&[b'a'; 100]);
        block.code(0, 0, 1, 2, &[0; 100]);
        block.node(1, 0, number);
    }
    block.stack(1);
    for number in 0..EVENTS / 2 {
        block.malloc(Domain::Raw, false, 40, 0x5000_0000 + 16 * number);
    }
    for number in 0..EVENTS / 2 {
        block.free(Domain::Raw, false, 0x5000_0000 + 16 * number);
    }
    let mut packing = vec![0u64; Packer::memory_for(1 << 17).div_ceil(8)];
    let mut packer = Packer::new(&mut packing).expect("enough memory");
    let block = packer.pack(block.finish()).to_vec();
    let head = file_head("{}");
    let end = head.len() + blocks * block.len();
    let reader = Reader::of(Endless { head, block, at: 0, end }, end as u64).expect("a trace");
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    let mut replay = Replay::new(vec![reader], &profile::V3_13, Report::default()).expect("a heap");
    let report = replay.run().expect("undamaged");
    assert_eq!((report.events, report.strangers, report.truncated), (EVENTS * blocks as u64, 0, false));
    PEAK.load(Relaxed) - before
}

#[test]
fn replays_memory_does_not_grow_with_the_trace() {
    COUNTS.set(true);
    let [few, many] = [2, 200].map(peak_of);
    COUNTS.set(false);
    assert!(few > 100_000, "{few}: nothing was counted");
    assert_eq!(many, few);
}
