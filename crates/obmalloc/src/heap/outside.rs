//! The blocks outside all arenas, when a heap is taken down.
//!
//! The C library joins neighbours, and gives what is free at the end of its memory back to the system. Blocks that go in order, the highest
//! address first, take half the time of any other order, and no single one of them takes long. To sort millions of addresses takes long too,
//! so that is done in runs, between which whoever waits for it can be asked.

use alloc::collections::BinaryHeap;
use alloc::collections::binary_heap::PeekMut;
use alloc::vec::Vec;

use crate::interrupt::{STRIDE, Undone};

#[derive(Default)]
pub(crate) struct Outside {
    is_known: bool,
    addresses: Vec<usize>,
    /// What is left of each run of addresses in order, which is not empty: its last address, its place, and its end.
    runs: BinaryHeap<(usize, usize, usize)>,
}

impl Outside {
    /// Whether all are known, or have gone already.
    pub fn is_known(&self) -> bool {
        self.is_known
    }

    /// All have gone.
    pub fn set_gone(&mut self) {
        self.is_known = true;
    }

    /// Addresses, of which there are at most `count`, among nothings.
    pub fn new(
        count: usize,
        addresses: impl Iterator<Item = Option<usize>>,
        is_over: &mut impl FnMut() -> bool,
    ) -> Result<Self, Undone> {
        let (mut all, mut runs) = (Vec::new(), Vec::new());
        if all.try_reserve_exact(count).is_err() || runs.try_reserve_exact(count / STRIDE + 1).is_err() {
            return Err(Undone::NoMemory);
        }
        for (index, address) in addresses.enumerate() {
            if all.len() < count {
                all.extend(address);
            }
            if (index + 1).is_multiple_of(STRIDE) && is_over() {
                return Err(Undone::GivenUp);
            }
        }
        let mut begin = 0;
        for run in all.chunks_mut(STRIDE) {
            run.sort_unstable();
            let end = begin + run.len();
            runs.extend(run.last().map(|&last| (last, begin, end)));
            begin = end;
            if is_over() {
                return Err(Undone::GivenUp);
            }
        }
        Ok(Self { is_known: true, addresses: all, runs: runs.into() })
    }

    /// Calls `free`, which says how many steps that took, with all addresses, the highest first; false when `is_over` made it give up.
    pub fn drain(&mut self, mut is_over: impl FnMut() -> bool, mut free: impl FnMut(usize) -> usize) -> bool {
        let mut steps = 0;
        while let Some(mut run) = self.runs.peek_mut() {
            let (address, begin, end) = *run;
            if end - 1 > begin {
                *run = (self.addresses[end - 2], begin, end - 1);
            } else {
                PeekMut::pop(run);
            }
            steps += free(address);
            if steps >= STRIDE {
                steps = 0;
                if is_over() {
                    return false;
                }
            }
        }
        self.addresses = Vec::new();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_go_once_and_in_order_however_often_it_is_given_up() {
        let all: Vec<usize> = (0..5 * STRIDE + 3).map(|index| index.wrapping_mul(0x9e37_79b9) % (1 << 40)).collect();
        let found = (0..).find_map(|patience| {
            let mut asked = 0;
            let mut is_over = || {
                asked += 1;
                asked > patience
            };
            let found = Outside::new(2 * all.len(), all.iter().flat_map(|&address| [Some(address), None]), &mut is_over);
            found.inspect_err(|&undone| assert_eq!(undone, Undone::GivenUp)).ok()
        });
        let mut outside = found.expect("patience enough");
        assert!(outside.is_known());
        let mut gone = Vec::new();
        let mut free = |address| {
            gone.push(address);
            1
        };
        while !outside.drain(|| true, &mut free) {}
        let mut expected = all;
        expected.sort_unstable_by(|one, other| other.cmp(one));
        assert_eq!(gone, expected);
    }
}
