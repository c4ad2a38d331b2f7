//! A list of tracked objects.
//!
//! CPython's are linked through the objects, so walking one waits for each object before it knows the next. These are arrays: the
//! processor can be asked for objects long before their turn. An object knows its place (`_gc_next`), which is emptied when the object leaves;
//! the order of the others stays. Which list it is a place in shows when one looks there, so that a list can become another one whole.

use alloc::vec::Vec;

use crate::interrupt::{Interrupt, STRIDE, Undone};
use crate::object::header;

/// Which list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum ListId {
    /// The youngest generation.
    Young,
    /// The middle generation; of the incremental collector, old objects of space 0.
    Middle,
    /// The oldest generation; of the incremental collector, old objects of space 1.
    Old,
    /// Frozen objects.
    Permanent,
    /// Unreachable objects with legacy finalizers, and what they reach.
    Finalizers,
    /// Weak references whose callbacks are to be called.
    WrcbToCall,
    /// What an increment collects.
    Increment,
    /// What has survived a collection of young objects or of an increment, until that is over.
    Survivors,
}

/// Number of lists.
pub(crate) const LISTS: usize = 8;

impl ListId {
    pub const ALL: [Self; LISTS] = [
        Self::Young,
        Self::Middle,
        Self::Old,
        Self::Permanent,
        Self::Finalizers,
        Self::WrcbToCall,
        Self::Increment,
        Self::Survivors,
    ];
}

/// The place that a tracked object's `_gc_next` says.
#[inline]
pub(crate) fn place(gc_next: usize) -> usize {
    gc_next - 1
}

/// Invariants:
/// 1. An entry is 0 or a tracked object whose `_gc_next` says this place; an object is an entry of one list.
/// 2. `live` entries are not 0; there are none before `first`.
/// 3. There is capacity for `promised` entries: what was reserved, not what there happens to be.
#[derive(Default)]
pub(crate) struct GcList {
    entries: Vec<usize>,
    first: usize,
    live: usize,
    promised: usize,
}

impl GcList {
    /// Number of objects.
    pub fn len(&self) -> usize {
        self.live
    }

    /// The entries, 0 where an object has left.
    pub fn entries(&self) -> &[usize] {
        &self.entries
    }

    /// The objects, in order.
    pub fn iter(&self) -> impl Iterator<Item = usize> {
        self.entries.iter().copied().filter(|&object| object != 0)
    }

    /// The first object.
    pub fn first(&mut self) -> Option<usize> {
        if self.live == 0 {
            return None;
        }
        while self.entries[self.first] == 0 {
            self.first += 1;
        }
        Some(self.entries[self.first])
    }

    /// Whether so many objects can be appended, which is remembered then.
    #[inline]
    pub fn promise(&mut self, more: usize) -> bool {
        let has_room = self.entries.capacity() - self.entries.len() >= more;
        if has_room {
            self.promised = self.promised.max(self.entries.len() + more);
        }
        has_room
    }

    /// Makes sure that so many objects can be appended, unless there is no memory or that is interrupted.
    pub fn reserve(&mut self, more: usize, interrupt: Interrupt) -> Result<(), Undone> {
        if !self.promise(more) {
            self.make_room(more, interrupt)?;
            self.promise(more);
        }
        Ok(())
    }

    /// As [`reserve`](Self::reserve), when what was reserved before is not needed any more.
    pub fn reserve_anew(&mut self, more: usize, interrupt: Interrupt) -> Result<(), Undone> {
        self.promised = 0;
        self.reserve(more, interrupt)
    }

    #[cold]
    fn make_room(&mut self, more: usize, interrupt: Interrupt) -> Result<(), Undone> {
        if self.live < self.entries.len() / 2 && !self.close_gaps(interrupt) {
            return Err(Undone::GivenUp);
        }
        if self.promise(more) {
            return Ok(());
        }
        if self.entries.len() < STRIDE {
            return self.entries.try_reserve(more).map_err(|_| Undone::NoMemory);
        }
        // By hand, because a vector might move millions of them at once.
        let mut larger = Vec::new();
        let room = self.entries.len() + more.max(self.entries.len());
        larger.try_reserve_exact(room).map_err(|_| Undone::NoMemory)?;
        // What is only copied takes a tenth of what is looked at.
        for piece in self.entries.chunks(8 * STRIDE) {
            larger.extend_from_slice(piece);
            if interrupt.is_now() {
                return Err(Undone::GivenUp);
            }
        }
        self.entries = larger;
        Ok(())
    }

    /// Moves the objects together, in order; false when that was interrupted, and the rest are where they were.
    fn close_gaps(&mut self, interrupt: Interrupt) -> bool {
        let mut place = 0;
        self.first = 0;
        for from in 0..self.entries.len() {
            let object = core::mem::take(&mut self.entries[from]);
            if object != 0 {
                self.entries[place] = object;
                set_place(object, place);
                place += 1;
            }
            if (from + 1).is_multiple_of(STRIDE) && interrupt.is_now() {
                return false;
            }
        }
        self.entries.truncate(place);
        true
    }

    /// Appends an object that is in no list (`gc_list_append`); there is room for it.
    #[inline]
    pub fn append(&mut self, object: usize) {
        debug_assert!(self.entries.len() < self.entries.capacity(), "room has been made");
        set_place(object, self.entries.len());
        self.entries.push(object);
        self.live += 1;
    }

    /// Whether an object whose place is this one is in this list.
    #[inline]
    pub fn has(&self, object: usize, place: usize) -> bool {
        self.entries.get(place) == Some(&object)
    }

    /// Takes the object at a place out (`gc_list_remove`).
    #[inline]
    pub fn remove(&mut self, place: usize) {
        let object = core::mem::take(&mut self.entries[place]);
        // SAFETY: invariant 1.
        unsafe { header::set_gc_next(object, 0) };
        self.live -= 1;
        if self.live == 0 {
            self.entries.clear();
            self.first = 0;
        }
    }

    /// Appends all objects of another list, which is empty then (`gc_list_merge`); there is room for them. False when that was interrupted:
    /// the others are still in that list.
    pub fn merge(&mut self, from: &mut Self, interrupt: Interrupt) -> bool {
        let room = self.promised.saturating_sub(from.live);
        if self.live == 0 && from.entries.capacity() - from.entries.len() >= room {
            // All keep their places, and there is as much room for others as there would be.
            self.clear();
            core::mem::swap(self, from);
            self.promised = self.promised.max(self.entries.len() + room);
            return true;
        }
        if self.live == 0 {
            self.clear();
        }
        loop {
            let end = from.entries.len().min(from.first + STRIDE);
            let before = self.live;
            for entry in &mut from.entries[from.first..end] {
                let object = core::mem::take(entry);
                if object != 0 {
                    self.append(object);
                }
            }
            from.first = end;
            from.live -= self.live - before;
            if from.live == 0 {
                from.clear();
                return true;
            }
            if interrupt.is_now() {
                return false;
            }
        }
    }

    /// Forgets the objects, which are in other lists.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.first = 0;
        self.live = 0;
    }

    /// The entries, for a caller that vacates places and appends objects, and calls [`settle`](Self::settle) then.
    pub fn entries_mut(&mut self) -> &mut Vec<usize> {
        &mut self.entries
    }

    /// Takes stock, after `left` objects have left their places, and objects, which know theirs, have been appended from place `appended` on.
    pub fn settle(&mut self, left: usize, appended: usize) {
        self.live = self.live + self.entries.len() - appended - left;
        if self.live == 0 {
            self.clear();
        }
    }
}

/// Tells a tracked object its place in the list that it is in, or is going to be in.
pub(super) fn set_place(object: usize, place: usize) {
    // SAFETY: what is appended is an object.
    unsafe { header::set_gc_next(object, place + 1) };
}
