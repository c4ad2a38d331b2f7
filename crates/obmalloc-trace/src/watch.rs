//! Watchers: a replay tells them of every event. One compares answers, another collects a program.

#![forbid(unsafe_code)]

use std::fmt;
use std::ops::ControlFlow;

use obmalloc::Stats;
use serde::Serialize;

use crate::format::{Domain, Event, Note};
use crate::replay::Ground;
use crate::stacks::Stacks;

/// A watcher is told of every event of a trace, once it has been replayed.
pub trait Watcher {
    /// Looks at one event. `Break` ends the replay.
    fn see(&mut self, seen: &Seen<'_>) -> ControlFlow<()>;

    /// One of the traces that are replayed is over; `truncated` when it ended inside a block.
    fn trace_ends(&mut self, truncated: bool) {
        let _ = truncated;
    }

    /// The replay ends before the trace does, because it was told to.
    fn stops(&mut self) {}
}

/// Two watchers that are told the same. Either can end the replay.
impl<A: Watcher, B: Watcher> Watcher for (A, B) {
    #[inline]
    fn see(&mut self, seen: &Seen<'_>) -> ControlFlow<()> {
        let first = self.0.see(seen);
        self.1.see(seen)?;
        first
    }

    fn trace_ends(&mut self, truncated: bool) {
        self.0.trace_ends(truncated);
        self.1.trace_ends(truncated);
    }

    fn stops(&mut self) {
        self.0.stops();
        self.1.stops();
    }
}

/// An event and its outcome.
pub struct Seen<'a> {
    /// As it was recorded.
    pub event: &'a Event,
    /// The moment: number of the event in the traces, from 0.
    pub operation: u64,
    /// The Python stack that a request was made under, 0 for none.
    pub stack: u64,
    /// The interpreter that it belongs to; 0 is the main one.
    pub interpreter: u64,
    /// What has been read of stacks so far; empty if they are not kept.
    pub stacks: &'a Stacks,
    /// The outcome here.
    pub fate: Fate,
    pub(crate) ground: &'a Ground,
}

/// The outcome of an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// A call that was made.
    Made,
    /// A call that need not be made: a free of NULL, or a request that was refused by the system.
    Skipped,
    /// A free or realloc of an address that no recorded call gave out. It was not made.
    Stranger,
    /// A free or realloc of a block of pymalloc through the raw domain. It was not made.
    Misplaced,
    /// A request that the next mem or obj call makes of raw or the arena allocator.
    Below,
    /// A request to the arena allocator that is not pymalloc's: for the interpreter's data stack.
    Beside,
    /// Of an interpreter that has an allocator of its own: left out, but for a block of the C library's that it frees.
    LeftOut,
    /// A note.
    Noted,
}

/// The result of a call that was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Answer {
    /// The number of the block that was given, resized or freed: no other block has it as long as that one lives. None where there was none.
    pub slot: Option<u32>,
    /// The address, as the recorded process would have seen it; 0 for NULL.
    pub got: u64,
    /// Whether the address lies in an arena.
    pub inside: bool,
    /// Whether the recorded address lies in an arena.
    pub was_inside: bool,
}

impl Seen<'_> {
    /// The result of the call.
    #[inline]
    pub fn answer(&self) -> &Answer {
        &self.ground.answer
    }

    /// Whether the call made other requests of raw and the arena allocator than the recorded one.
    #[inline]
    pub fn differs_below(&self) -> bool {
        self.ground.differs_below()
    }

    /// The difference in those requests, in words.
    pub fn difference_below(&self) -> Option<String> {
        self.ground.difference_below()
    }

    /// Of a trim, the first pool that holds blocks here or was never in use, so that there was nothing to trim.
    pub fn untrimmed(&self) -> Option<u64> {
        self.ground.untrimmed
    }

    /// Where a recorded address lies, for a request of `size` bytes.
    pub fn place(&self, address: u64, size: usize) -> Place {
        self.ground.place(address, size)
    }

    /// The statistics of the heap at this moment, with the arena map that the recorded process had.
    pub fn stats(&self) -> Stats {
        self.ground.stats()
    }

    /// How many blocks are allocated in the heap at this moment.
    pub fn allocated_blocks(&self) -> u64 {
        self.ground.allocated_blocks()
    }
}

/// Where an address lies, in the recorded process's terms.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Place {
    /// The address, 0 for NULL.
    pub address: u64,
    /// Number of the arena in the order in which arenas were taken, from 0, and where in it.
    pub arena: Option<PlaceInArena>,
}

/// Where in an arena an address lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlaceInArena {
    /// Number of the arena, from 0, in the order in which arenas were taken.
    pub arena: usize,
    /// Number of the pool, from 0.
    pub pool: usize,
    /// Number of the block, from 0, if blocks there are as large as the request asks.
    pub block: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.address, self.arena) {
            (0, _) => f.write_str("NULL"),
            (address, None) => write!(f, "{address:#x} (no arena)"),
            (address, Some(place)) => {
                write!(f, "{address:#x} (arena {}, pool {}, block {})", place.arena, place.pool, place.block)
            }
        }
    }
}

/// A recorded call as C would write it.
pub fn request(event: &Event) -> String {
    let prefix = |domain: &Domain| match domain {
        Domain::Raw => "PyMem_Raw",
        Domain::Mem => "PyMem_",
        Domain::Obj => "PyObject_",
    };
    match event {
        Event::Malloc { domain, size, .. } => format!("{}Malloc({size})", prefix(domain)),
        Event::Calloc { domain, count, size, .. } => format!("{}Calloc({count}, {size})", prefix(domain)),
        Event::Realloc { domain, address, size, .. } => format!("{}Realloc({address:#x}, {size})", prefix(domain)),
        Event::Free { domain, address, .. } => format!("{}Free({address:#x})", prefix(domain)),
        Event::ArenaAlloc { size, .. } => format!("arena alloc({size})"),
        Event::ArenaFree { size, address, .. } => format!("arena free({address:#x}, {size})"),
        Event::Note(Note::Trim(pools)) => format!("trim of {} pools", pools.len()),
        Event::Note(note) => format!("{note:?}"),
    }
}
