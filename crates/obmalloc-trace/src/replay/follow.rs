//! Follows a recording without making its calls: the set of live blocks changes as recorded, and the heap stays as it is. So a replay can go on
//! after calls that were not recorded have been tried on its heap.

use std::ptr::NonNull;

use super::{Ground, Replay};
use crate::format::{Domain, Event};
use crate::watch::{Fate, Watcher};

impl<W: Watcher> Replay<W> {
    /// Goes on after the event at which the watcher has ended the replay, without making calls: watchers get the results of the recorded process.
    pub fn follow(&mut self) {
        self.course.ground.hooks.expected.clear();
        self.course.is_following = true;
        self.course.is_over = false;
    }
}

impl Ground {
    /// The outcome of an event in the recorded process.
    #[cold]
    #[inline(never)]
    pub(super) fn follow(&mut self, event: &Event) -> Fate {
        let fate = self.follow_event(event);
        // The arena that a call gives back stands before the call, and the block that it frees lies in there.
        if fate != Fate::Below && event.is_pymallocs() {
            while let Some(Event::ArenaFree { address, .. }) = self.hooks.expected.pop_front() {
                if let Some(place) = self.hooks.arenas.place_of(address) {
                    self.hooks.arenas.remove(place);
                }
            }
        }
        fate
    }

    fn follow_event(&mut self, event: &Event) -> Fate {
        match *event {
            Event::Note(_) => Fate::Noted,
            Event::ArenaAlloc { nested: false, .. } | Event::ArenaFree { nested: false, .. } => Fate::Beside,
            Event::ArenaAlloc { result, .. } => {
                if result != 0 {
                    self.hooks.follow_arena(result);
                }
                Fate::Below
            }
            Event::ArenaFree { .. } => {
                self.hooks.expected.push_back(event.clone());
                Fate::Below
            }
            Event::Malloc { nested: true, .. }
            | Event::Calloc { nested: true, .. }
            | Event::Realloc { nested: true, .. }
            | Event::Free { nested: true, .. } => Fate::Below,
            Event::Malloc { result: 0, .. } | Event::Calloc { result: 0, .. } | Event::Realloc { result: 0, .. } => Fate::Skipped,
            Event::Malloc { result, .. } | Event::Calloc { result, .. } | Event::Realloc { address: 0, result, .. } => {
                let slot = self.live.slot_for(self.hooks.nowhere());
                self.follow_block(slot, result)
            }
            Event::Realloc { address, result, .. } => match self.leave(address) {
                Some(slot) => self.follow_block(slot, result),
                None => Fate::Stranger,
            },
            Event::Free { address: 0, .. } => Fate::Skipped,
            Event::Free { address, .. } => match self.leave(address) {
                Some(slot) => {
                    self.live.give_back(slot);
                    self.answered(Some(slot), 0, false, false)
                }
                None => Fate::Stranger,
            },
        }
    }

    /// Takes the block at a recorded address out of the live ones. Its block here is forgotten.
    fn leave(&mut self, address: u64) -> Option<u32> {
        let (slot, block) = self.live.take(&mut self.hooks.arenas, address)?;
        if !self.hooks.is_inside(block) {
            // SAFETY: it was live, and lies in no arena.
            unsafe { self.heap.free(Domain::Raw, Some(block)) };
        }
        self.live.moved(slot, self.hooks.nowhere());
        Some(slot)
    }

    fn follow_block(&mut self, slot: u32, result: u64) -> Fate {
        let place = self.hooks.arenas.find(result);
        self.live.enter(&mut self.hooks.arenas, result, slot, place);
        self.answered(Some(slot), result, place.is_some(), place.is_some())
    }
}

impl super::Hooks {
    /// Stands for the address of a block that was not made here. It lies inside the arenas, so that nothing is freed for it.
    fn nowhere(&self) -> NonNull<u8> {
        let first = std::ptr::with_exposed_provenance_mut(self.base);
        NonNull::new(first).unwrap_or(NonNull::dangling())
    }

    fn follow_arena(&mut self, recorded: u64) {
        let place = self.arenas.free_place();
        self.arenas.insert(place, recorded, self.taken, 0);
        self.taken += 1;
    }
}
