//! The C library's blocks of a heap that is being taken down, in the order in which they go back.

#![forbid(unsafe_code)]

use alloc::collections::BinaryHeap;
use alloc::collections::binary_heap::PeekMut;
use alloc::vec::Vec;

use crate::interrupt::STRIDE;

/// Blocks that are sorted at a time: some milliseconds of work.
const RUN: usize = STRIDE * 4;

/// Blocks that are to go back, the highest address first. In this order the C library, which joins free neighbours and returns the free end
/// of its memory to the system, takes half the time. The blocks are sorted in runs that are merged: to sort millions at once takes too long
/// for a caller that wants to stop.
pub(super) struct LeavingBlocks<R> {
    /// The blocks that have not been read yet.
    record: R,
    /// The blocks that have been read, in runs of [`RUN`], the lowest address first. The part behind the last whole run is not sorted. The list
    /// has room for all blocks, or for none.
    list: Vec<usize>,
    /// How many of the list are in runs.
    sorted: usize,
    /// What is left of each run: its highest address, and where that is in the list.
    runs: BinaryHeap<(usize, usize)>,
}

impl<R: Iterator<Item = usize>> LeavingBlocks<R> {
    /// The blocks of a record, at most `count`. Without memory for a list, they go in the record's order.
    pub fn new(record: R, count: usize) -> Self {
        let (mut list, mut runs) = (Vec::new(), Vec::new());
        if runs.try_reserve_exact(count.div_ceil(RUN)).is_ok() {
            // Where this fails the list has no room, so nothing is read into it.
            let _ = list.try_reserve_exact(count);
        }
        Self { record, list, sorted: 0, runs: runs.into() }
    }

    /// The part of the record that has not been read.
    pub fn record(&self) -> &R {
        &self.record
    }

    /// Reads the record, until its end or until `is_over` says to stop. Returns whether it is read to the end. Call it before any block is
    /// [taken](Self::next).
    pub fn read(&mut self, mut is_over: impl FnMut() -> bool) -> bool {
        while self.list.len() < self.list.capacity() {
            let Some(block) = self.record.next() else { break };
            self.list.push(block);
            if self.list.len() - self.sorted == RUN {
                self.end_run();
                if is_over() {
                    return false;
                }
            }
        }
        if self.list.len() > self.sorted {
            self.end_run();
        }
        true
    }

    /// Makes a run of the blocks read since the last run.
    fn end_run(&mut self) {
        let run = &mut self.list[self.sorted..];
        run.sort_unstable();
        self.runs.extend(run.last().map(|&highest| (highest, self.sorted + run.len() - 1)));
        self.sorted = self.list.len();
    }
}

impl<R: Iterator<Item = usize>> Iterator for LeavingBlocks<R> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let Some(mut run) = self.runs.peek_mut() else { return self.record.next() };
        let (block, index) = *run;
        if index % RUN == 0 {
            PeekMut::pop(run);
        } else {
            *run = (self.list[index - 1], index - 1);
        }
        Some(block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Addresses that are all different, in no order.
    fn scattered(count: usize) -> impl Iterator<Item = usize> {
        (0..count).map(|index| index.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    #[test]
    fn the_highest_goes_first_however_often_reading_is_given_up() {
        for count in [0, 1, RUN - 1, RUN, RUN + 1, 3 * RUN + 7] {
            let mut expected: Vec<usize> = scattered(count).collect();
            expected.sort_unstable_by(|a, b| b.cmp(a));
            let mut blocks = LeavingBlocks::new(scattered(count), count);
            let (mut asked, mut given_up) = (0, 0);
            while !blocks.read(|| {
                asked += 1;
                asked % 2 == 1
            }) {
                given_up += 1;
            }
            assert_eq!((asked, given_up), (count / RUN, (count / RUN).div_ceil(2)), "{count} blocks");
            let first = blocks.by_ref().take(count / 2).collect::<Vec<_>>();
            assert!(blocks.read(|| true), "all has been read");
            assert_eq!(first.into_iter().chain(blocks).collect::<Vec<_>>(), expected, "{count} blocks");
        }
    }

    #[test]
    fn without_a_list_they_go_as_they_are_on_record() {
        let mut blocks = LeavingBlocks::new(scattered(10), 0);
        assert!(blocks.read(|| true));
        assert_eq!(blocks.collect::<Vec<_>>(), scattered(10).collect::<Vec<_>>());
    }
}
