//! The lives of arenas: when each was taken, and how many were given back soon.

use rustc_hash::FxHashMap;

use crate::format::Event;
use crate::watch::Seen;

/// An arena that is given back within this many events was taken for nothing.
const SHORT: u64 = 20_000;

/// Counts of the arenas so far.
#[derive(Debug, Default)]
pub struct Lives {
    /// For each arena held, by its address, the event at which it was taken.
    pub taken: FxHashMap<u64, u64>,
    /// For each arena held, the stack for which it was taken.
    nodes: FxHashMap<u64, u32>,
    /// Taken so far, and given back within a short time.
    pub takes: u64,
    #[allow(missing_docs, reason = "said above")]
    pub short: u64,
    /// By stack: how many arenas were taken for it and given back within a short time.
    pub short_of: FxHashMap<u32, u64>,
    /// The most arenas held at one time.
    pub most: u64,
}

impl Lives {
    /// Notes a request to the arena allocator.
    #[inline]
    pub fn see(&mut self, seen: &Seen<'_>) {
        match *seen.event {
            Event::ArenaAlloc { result, .. } if result != 0 => self.take(result, seen),
            Event::ArenaFree { address, .. } => self.give_back(address, seen.operation),
            _ => {}
        }
    }

    fn take(&mut self, address: u64, seen: &Seen<'_>) {
        self.taken.insert(address, seen.operation);
        self.nodes.insert(address, u32::try_from(seen.stack).unwrap_or(0));
        self.takes += 1;
        self.most = self.most.max(self.taken.len() as u64);
    }

    fn give_back(&mut self, address: u64, now: u64) {
        let (Some(taken), Some(node)) = (self.taken.remove(&address), self.nodes.remove(&address)) else { return };
        if now - taken < SHORT {
            self.short += 1;
            *self.short_of.entry(node).or_default() += 1;
        }
    }
}
