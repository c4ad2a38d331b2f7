//! The whole recording over time, in bounded detail: bytes held and live, arenas taken and given back, and how full they are.

#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use obmalloc::profile::Geometry;
use rustc_hash::FxHashMap;

use super::ledger::{Kind, Ledger};
use crate::format::Event;
use crate::watch::{Fate, Seen};

/// The recording is cut into this many stretches; at most three rows of each are kept.
const STRETCHES: u64 = 1_300;
/// Most events of arenas.
const MOST_EVENTS: usize = 20_000;
/// Frames of the play.
const FRAMES: u64 = 120;

/// Bytes at an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "named as in the page's data")]
pub struct Row {
    pub event: u64,
    pub held: u64,
    pub live: u64,
    pub raw: u64,
    pub large: u64,
}

/// An arena that was taken or given back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "named as in the page's data")]
pub struct ArenaEvent {
    pub event: u64,
    pub address: u64,
    pub taken: bool,
}

/// How full the arenas are at an event.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// The event.
    pub event: u64,
    /// How many arenas are held.
    pub arenas: u32,
    /// How full each slot is: 0 where there is no arena.
    pub fill: Vec<u8>,
}

/// Looks at every event, and at the books after it.
#[derive(Debug)]
pub struct Film {
    arena_size: u64,
    /// Events of the whole recording.
    events: u64,
    /// Arenas that are held, by address, and their slots.
    slots: FxHashMap<u64, u32>,
    free_slots: BinaryHeap<Reverse<u32>>,
    /// Most slots that were in use.
    pub most_slots: u32,
    pub rows: Vec<Row>,
    /// How many there were before they were thinned.
    pub all_rows: u64,
    /// Of the present stretch: its first row, and those with the fewest and the most bytes held.
    stretch: Option<[Row; 3]>,
    pub arena_events: Vec<ArenaEvent>,
    pub all_arena_events: u64,
    /// One in this many arena events is kept.
    stride: u64,
    pub frames: Vec<Frame>,
    /// The next event at which a stretch or a frame begins.
    next: u64,
}

impl Film {
    /// A film of a recording of `events` events.
    pub fn new(geometry: Geometry, events: u64) -> Self {
        Self {
            arena_size: geometry.arena_size as u64,
            events,
            slots: FxHashMap::default(),
            free_slots: BinaryHeap::new(),
            most_slots: 0,
            rows: Vec::new(),
            all_rows: 0,
            stretch: None,
            arena_events: Vec::new(),
            all_arena_events: 0,
            stride: 1,
            frames: Vec::new(),
            next: 0,
        }
    }

    /// The event at which part `number` of `parts` begins.
    fn begin(&self, number: u64, parts: u64) -> u64 {
        (u128::from(self.events) * u128::from(number)).div_ceil(u128::from(parts)) as u64
    }

    fn stretch_of(&self, event: u64) -> u64 {
        (u128::from(event) * u128::from(STRETCHES) / u128::from(self.events.max(1))) as u64
    }

    fn row(&mut self, event: u64, ledger: &Ledger) {
        let Ledger { live, raw, large, .. } = *ledger;
        let held = self.slots.len() as u64 * self.arena_size;
        let row = Row { event, held, live: live.bytes, raw: raw.bytes, large: large.bytes };
        self.all_rows += 1;
        match self.stretch {
            Some([first, least, most]) if self.stretch_of(first.event) == self.stretch_of(event) => {
                let least = if row.held < least.held { row } else { least };
                let most = if row.held > most.held { row } else { most };
                self.stretch = Some([first, least, most]);
            }
            _ => {
                self.keep_stretch();
                self.stretch = Some([row; 3]);
            }
        }
    }

    /// Keeps the rows of the present stretch.
    fn keep_stretch(&mut self) {
        if let Some(mut rows) = self.stretch.take() {
            rows.sort_unstable_by_key(|row| row.event);
            self.rows.extend(rows);
            self.rows.dedup();
        }
    }

    /// Ends the film, because the recording is over.
    pub fn end(&mut self) {
        self.keep_stretch();
    }

    fn arena(&mut self, seen: &Seen<'_>, ledger: &Ledger) {
        let (address, taken) = match *seen.event {
            Event::ArenaAlloc { result, .. } if result != 0 => (result, true),
            Event::ArenaFree { address, .. } => (address, false),
            _ => return,
        };
        if taken {
            let slot = self.free_slots.pop().map_or(self.most_slots, |Reverse(slot)| slot);
            self.most_slots = self.most_slots.max(slot + 1);
            self.slots.insert(address, slot);
        } else if let Some(slot) = self.slots.remove(&address) {
            self.free_slots.push(Reverse(slot));
        }
        if self.all_arena_events.is_multiple_of(self.stride) {
            if self.arena_events.len() == MOST_EVENTS {
                let mut index = 0;
                self.arena_events.retain(|_| {
                    index += 1;
                    index % 2 == 1
                });
                self.stride *= 2;
            }
            if self.all_arena_events.is_multiple_of(self.stride) {
                self.arena_events.push(ArenaEvent { event: seen.operation, address, taken });
            }
        }
        self.all_arena_events += 1;
        self.row(seen.operation, ledger);
    }

    #[cold]
    fn stop(&mut self, event: u64, ledger: &Ledger) {
        self.row(event, ledger);
        if event >= self.begin(self.frames.len() as u64, FRAMES) && (self.frames.len() as u64) < FRAMES {
            let frame = self.frame(event, ledger);
            self.frames.push(frame);
        }
        let frame = self.frames.len() as u64;
        let next_frame = if frame < FRAMES { self.begin(frame, FRAMES) } else { u64::MAX };
        self.next = self.begin(self.stretch_of(event) + 1, STRETCHES).min(next_frame).max(event + 1);
    }

    fn frame(&self, event: u64, ledger: &Ledger) -> Frame {
        let mut bases: Vec<(u64, u32)> = self.slots.iter().map(|(&address, &slot)| (address, slot)).collect();
        bases.sort_unstable();
        let mut live = vec![0u64; bases.len()];
        let mut last = 0;
        for (_, block) in ledger.blocks() {
            let Kind::Pool(class) = block.kind else { continue };
            let is_in =
                |index: usize| bases.get(index).is_some_and(|&(base, _)| block.address.wrapping_sub(base) < self.arena_size);
            if !is_in(last) {
                last = bases.partition_point(|&(base, _)| base <= block.address).saturating_sub(1);
            }
            if is_in(last) {
                live[last] += ledger.class_size(class);
            }
        }
        let mut fill = vec![0; self.most_slots as usize];
        for (&(_, slot), live) in bases.iter().zip(live) {
            fill[slot as usize] = (live * 255 / self.arena_size).max(1) as u8;
        }
        Frame { event, arenas: bases.len() as u32, fill }
    }

    /// Looks at an event; `ledger` has seen it.
    #[inline]
    pub fn see(&mut self, seen: &Seen<'_>, ledger: &Ledger) {
        if seen.fate == Fate::Below {
            self.arena(seen, ledger);
        } else if seen.operation >= self.next {
            self.stop(seen.operation, ledger);
        }
    }
}
