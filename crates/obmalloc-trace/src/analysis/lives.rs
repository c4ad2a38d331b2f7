//! The lives of arenas: when each was taken, and how many were given back for nothing.

use rustc_hash::FxHashMap;

use crate::format::Event;
use crate::watch::Seen;

/// An arena that is given back within this many events was taken for nothing. One that is taken within as many after another was given back
/// shows that the other was given back for nothing.
const SHORT: u64 = 20_000;

/// Counts of the arenas so far.
#[derive(Debug, Default)]
pub struct Lives {
    /// For each arena held, by its address, the event at which it was taken.
    pub taken: FxHashMap<u64, u64>,
    /// For each arena held, the stack for which it was taken, and whether it is one of `wasted`.
    nodes: FxHashMap<u64, (u32, bool)>,
    /// The event at which the last arena was given back.
    given_back: Option<u64>,
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
            Event::ArenaAlloc { result, .. } if result != 0 => self.take(result, seen),
            Event::ArenaFree { address, .. } => self.give_back(address, seen.operation),
            _ => {}
        }
    }

    fn take(&mut self, address: u64, seen: &Seen<'_>) {
        let node = u32::try_from(seen.stack).unwrap_or(0);
        let again = self.given_back.is_some_and(|given_back| seen.operation - given_back < SHORT);
        self.taken.insert(address, seen.operation);
        self.nodes.insert(address, (node, again));
        self.takes += 1;
        self.most = self.most.max(self.taken.len() as u64);
        if again {
            self.waste(node);
        }
    }

    fn give_back(&mut self, address: u64, now: u64) {
        let (Some(taken), Some((node, again))) = (self.taken.remove(&address), self.nodes.remove(&address)) else { return };
        self.given_back = Some(now);
        if !again && now - taken < SHORT {
            self.waste(node);
        }
    }

    fn waste(&mut self, node: u32) {
        self.wasted += 1;
        *self.wasted_of.entry(node).or_default() += 1;
    }
}
