//! A list of tracked objects.
//!
//! CPython links a list through its objects, so a walk waits for each object before it knows the next. Here a list is an array, so that
//! objects can be prefetched long before their turn. An object stores its index (`_gc_next`), not its list. To find the list, look at that
//! index in each list. So whole lists can be swapped. When an object leaves, its entry becomes empty, and the order of the others stays.

use alloc::vec::Vec;

use crate::interrupt::{Interrupt, STRIDE, Undone};
use crate::object::handle::{GcObject, Quiet};

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
    /// Weak references whose callbacks are still to be called.
    WrcbToCall,
    /// The objects that an increment collects.
    Increment,
    /// The survivors of a collection of young objects or of an increment, until it ends.
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

/// The index that a tracked object's `_gc_next` stands for.
#[inline]
pub(crate) fn place(gc_next: usize) -> usize {
    gc_next - 1
}

/// A tracked object, or nothing where one has left.
#[repr(transparent)]
pub(crate) struct Entry(usize);

impl Entry {
    #[inline(always)]
    pub fn of(object: GcObject<'_>) -> Self {
        Self(object.address())
    }

    /// Whether there is no object, or none any more.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.0 == 0
    }

    /// Removes the object.
    #[inline(always)]
    pub fn clear(&mut self) {
        self.0 = 0;
    }

    /// The object's address; 0 if there is none.
    #[inline(always)]
    pub fn address(&self) -> usize {
        self.0
    }

    /// The object.
    #[inline(always)]
    pub fn object<'quiet>(&self, _: &'quiet Quiet<'_>) -> Option<GcObject<'quiet>> {
        // SAFETY: an entry is made of an object of a GC type. It is cleared when the object is untracked, which is before its memory is given
        // back (invariant 1 of lists).
        (!self.is_empty()).then(|| unsafe { GcObject::unbound(self.0) })
    }

    /// As [`object`](Self::object), while nothing but lists changes.
    #[inline(always)]
    fn moving(&self) -> Option<GcObject<'_>> {
        // SAFETY: as there.
        (!self.is_empty()).then(|| unsafe { GcObject::unbound(self.0) })
    }
}

/// Invariants:
/// 1. An entry is empty or a tracked object whose `_gc_next` stands for the entry's index; an object is an entry of one list, and leaves it
///    before its memory is given back.
/// 2. `live` entries are not empty; all entries before `first` are empty.
/// 3. There is capacity for `promised` entries, which is what callers have reserved.
#[derive(Default)]
pub(crate) struct GcList {
    entries: Vec<Entry>,
    first: usize,
    live: usize,
    promised: usize,
}

impl GcList {
    /// Number of objects.
    pub fn len(&self) -> usize {
        self.live
    }

    /// The entries.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The objects, in order.
    pub fn iter(&self) -> impl Iterator<Item = usize> {
        self.entries.iter().map(Entry::address).filter(|&object| object != 0)
    }

    /// The first object.
    pub fn first<'quiet>(&mut self, quiet: &'quiet Quiet<'_>) -> Option<GcObject<'quiet>> {
        if self.live == 0 {
            return None;
        }
        while self.entries[self.first].is_empty() {
            self.first += 1;
        }
        self.at(self.first, quiet)
    }

    /// The object with this index, if it has not left; `None` behind the last one, too.
    pub fn at<'quiet>(&self, place: usize, quiet: &'quiet Quiet<'_>) -> Option<GcObject<'quiet>> {
        self.entries.get(place)?.object(quiet)
    }

    /// Whether there is capacity for `more` objects; if so, promises it.
    #[inline]
    pub fn promise(&mut self, more: usize) -> bool {
        let has_room = self.entries.capacity() - self.entries.len() >= more;
        if has_room {
            self.promised = self.promised.max(self.entries.len() + more);
        }
        has_room
    }

    /// Makes sure that `more` objects can be appended.
    ///
    /// # Errors
    /// When there is no memory, or it is interrupted.
    pub fn reserve(&mut self, more: usize, interrupt: Interrupt) -> Result<(), Undone> {
        if !self.promise(more) {
            self.make_room(more, interrupt)?;
            self.promise(more);
        }
        Ok(())
    }

    /// As [`reserve`](Self::reserve), when earlier promises are not needed any more.
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
        // By hand, because a vector would move all entries in one go, which cannot be interrupted.
        let mut larger = Vec::new();
        let room = self.entries.len() + more.max(self.entries.len());
        larger.try_reserve_exact(room).map_err(|_| Undone::NoMemory)?;
        // Copying takes a tenth of the time that a step usually takes, hence the larger pieces.
        for piece in self.entries.chunks(8 * STRIDE) {
            larger.extend(piece.iter().map(|&Entry(object)| Entry(object)));
            if interrupt.is_now() {
                return Err(Undone::GivenUp);
            }
        }
        self.entries = larger;
        Ok(())
    }

    /// Moves the objects together, in order. False if it was interrupted: the rest stay where they were.
    fn close_gaps(&mut self, interrupt: Interrupt) -> bool {
        let mut place = 0;
        self.first = 0;
        for from in 0..self.entries.len() {
            if let Some(object) = self.entries[from].moving() {
                set_place(object, place);
                self.entries.swap(place, from);
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
    pub fn append(&mut self, object: GcObject<'_>) {
        debug_assert!(self.entries.len() < self.entries.capacity(), "room has been made");
        set_place(object, self.entries.len());
        self.entries.push(Entry::of(object));
        self.live += 1;
    }

    /// Whether an object is in this list.
    #[inline]
    pub fn has(&self, object: GcObject<'_>) -> bool {
        // An object that is not tracked gives a number that is far too large.
        self.entries.get(object.gc_next().wrapping_sub(1)).is_some_and(|entry| entry.address() == object.address())
    }

    /// Takes an object out that is in this list (`gc_list_remove`).
    #[inline]
    pub fn remove(&mut self, object: GcObject<'_>) {
        self.entries[place(object.gc_next())].clear();
        object.set_gc_next(0);
        self.live -= 1;
        if self.live == 0 {
            self.entries.clear();
            self.first = 0;
        }
    }

    /// Moves all objects of another list to the end of this one, which has room for them (`gc_list_merge`). False if it was interrupted: the
    /// rest is still in the other list.
    pub fn merge(&mut self, from: &mut Self, interrupt: Interrupt) -> bool {
        let room = self.promised.saturating_sub(from.live);
        if self.live == 0 && from.entries.capacity() - from.entries.len() >= room {
            // Swap the lists: all objects keep their indices, and the other list has enough capacity too.
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
                if let Some(object) = entry.moving() {
                    self.append(object);
                    entry.clear();
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

    /// Takes the entries out, for a caller that clears some or appends others, and then [puts them back](Self::put_back).
    pub fn take_entries(&mut self) -> Vec<Entry> {
        core::mem::take(&mut self.entries)
    }

    /// Puts the entries back, after `left` objects have left and objects have been appended from index `appended` on. Those know their indices.
    pub fn put_back(&mut self, entries: Vec<Entry>, left: usize, appended: usize) {
        self.entries = entries;
        self.live = self.live + self.entries.len() - appended - left;
        if self.live == 0 {
            self.clear();
        }
    }
}

/// Tells a tracked object its index in the list that it is in or will be in.
pub(super) fn set_place(object: GcObject<'_>, place: usize) {
    object.set_gc_next(place + 1);
}
