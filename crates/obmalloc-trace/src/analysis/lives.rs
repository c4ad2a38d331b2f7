//! The lives of arenas: when each was taken, and how many were given back for nothing.

#![forbid(unsafe_code)]

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use crate::format::Event;
use crate::watch::Seen;

/// An arena that is given back within this many events was taken for nothing. If an arena is taken within `SHORT` events after another was given
/// back, the giving back was useless. One taken arena counts against one such arena at most.
const SHORT: u64 = 20_000;

/// Counts of the arenas so far.
#[derive(Debug, Default)]
pub struct Lives {
    /// For each arena held, by its address, the event at which it was taken.
    pub taken: FxHashMap<u64, u64>,
    /// For each arena held, the stack for which it was taken, and whether it is one of `wasted`.
    nodes: FxHashMap<u64, (u32, bool)>,
    /// The events at which arenas were given back: the last [`SHORT`] events, without those that a later arena has shown to be for nothing.
    given_back: VecDeque<u64>,
    /// Arenas taken so far.
    pub takes: u64,
    /// Arenas that were given back a short time after they were taken, or were taken a short time after another was given back.
    pub wasted: u64,
    /// By stack: how many of `wasted` were taken for it.
    pub wasted_of: FxHashMap<u32, u64>,
    /// The most arenas held at one time.
    pub most: u64,
}

impl Lives {
    /// Notes a request to the arena allocator.
    #[inline]
    pub fn see(&mut self, seen: &Seen<'_>) {
        match *seen.event {
            Event::ArenaAlloc { result, .. } if result != 0 => {
                self.take(result, u32::try_from(seen.stack).unwrap_or(0), seen.operation);
            }
            Event::ArenaFree { address, .. } => self.give_back(address, seen.operation),
            _ => {}
        }
    }

    fn take(&mut self, address: u64, node: u32, now: u64) {
        self.forget(now);
        let again = self.given_back.pop_back().is_some();
        self.taken.insert(address, now);
        self.nodes.insert(address, (node, again));
        self.takes += 1;
        self.most = self.most.max(self.taken.len() as u64);
        if again {
            self.waste(node);
        }
    }

    fn give_back(&mut self, address: u64, now: u64) {
        let (Some(taken), Some((node, again))) = (self.taken.remove(&address), self.nodes.remove(&address)) else { return };
        self.forget(now);
        self.given_back.push_back(now);
        if !again && now - taken < SHORT {
            self.waste(node);
        }
    }

    /// Forgets what was given back too long ago.
    fn forget(&mut self, now: u64) {
        while self.given_back.front().is_some_and(|given_back| now - given_back >= SHORT) {
            self.given_back.pop_front();
        }
    }

    fn waste(&mut self, node: u32) {
        self.wasted += 1;
        *self.wasted_of.entry(node).or_default() += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arenas_given_back_account_for_as_many_that_are_taken() {
        let mut growing = Lives::default();
        // One in ten is given back and taken again; the program needs all of them.
        for arena in 0..100 {
            growing.take(arena, 0, arena * 8_000);
            if arena % 10 == 0 {
                growing.give_back(arena, arena * 8_000 + 2);
                growing.take(arena, 0, arena * 8_000 + 5);
            }
        }
        assert_eq!((growing.takes, growing.wasted), (110, 20));

        let mut burst = Lives::default();
        for round in 0..10 {
            (0..3).for_each(|arena| burst.take(arena, 0, round * 30_000));
            (0..3).for_each(|arena| burst.give_back(arena, round * 30_000 + 25_000));
        }
        assert_eq!((burst.takes, burst.wasted), (30, 27), "all but the first three are taken again");
    }
}
