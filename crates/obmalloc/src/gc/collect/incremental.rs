//! The incremental collector of 3.14.0 to 3.14.4.
//!
//! Old objects are in two spaces: one has been visited, the other is pending. An increment takes the young objects, and as many pending ones
//! as there is work to do, each with all that it reaches. The survivors join the visited space. When no object is pending, the two spaces
//! change places. CPython first marks what the interpreter's roots and stacks reach; a heap has neither, so marking finds nothing here.

#![forbid(unsafe_code)]

use super::Found;
use crate::gc::list::ListId;
use crate::object::handle::{Object, Quiet};
use crate::object::{ObjectError, ObjectHeap};

/// An increment looks, besides the new objects, at one in this many objects of the heap, times the second threshold (`SCAN_RATE_DIVISOR`).
const SCAN_RATE_DIVISOR: isize = 10;

/// How far the incremental collector has come.
#[derive(Default)]
pub(crate) struct Progress {
    /// Tracked objects, frozen ones included.
    pub heap_size: isize,
    work_to_do: isize,
    /// Which of the two spaces is the visited one.
    visited_space: usize,
    /// Whether marking is done, so that increments are collected (`GC_PHASE_COLLECT`).
    marked: bool,
}

impl Progress {
    const SPACES: [ListId; 2] = [ListId::Middle, ListId::Old];

    /// The space of objects that have been visited (`old[visited_space]`).
    pub fn visited(&self) -> ListId {
        Self::SPACES[self.visited_space]
    }

    /// The space of objects that have not been visited yet.
    pub fn pending(&self) -> ListId {
        Self::SPACES[self.visited_space ^ 1]
    }

    /// Counts in the order of `gc.get_count()`: the young objects, the visited space, the pending space.
    pub fn ordered(&self, count: [i32; 3]) -> [i32; 3] {
        [count[0], count[1 + self.visited_space], count[1 + (self.visited_space ^ 1)]]
    }
}

impl ObjectHeap {
    /// The three kinds of collection: of young objects, of an increment, of everything.
    pub(super) fn collect_incrementally(&self, generation: usize, quiet: &mut Quiet<'_>) -> Result<Found, ObjectError> {
        self.reserve_for_collection()?;
        match generation {
            0 => self.collect_young(quiet),
            1 => self.collect_increment(quiet),
            _ => self.collect_full(quiet),
        }
    }

    /// `gc_collect_region`
    fn collect_region(&self, from: ListId, to: ListId, quiet: &mut Quiet<'_>) -> Result<Found, ObjectError> {
        let deduced = self.deduce_unreachable(from, quiet);
        if from != to {
            self.state().gc.merge(from, to);
        }
        deduced?;
        self.collect_unreachable(to, quiet)
    }

    /// Collects a region whose survivors join the visited space at the very end: until then hooks do not find them there.
    fn collect_region_apart(&self, from: ListId, quiet: &mut Quiet<'_>) -> Result<Found, ObjectError> {
        let result = self.collect_region(from, ListId::Survivors, quiet);
        let gc = &mut self.state().gc;
        gc.merge(ListId::Survivors, gc.incremental.visited());
        result
    }

    /// `gc_collect_young`
    fn collect_young(&self, quiet: &mut Quiet<'_>) -> Result<Found, ObjectError> {
        let found = self.collect_region_apart(ListId::Young, quiet)?;
        let gc = &mut self.state().gc;
        gc.count[0] = 0;
        gc.count_up(1 + gc.incremental.visited_space);
        Ok(found)
    }

    /// `assess_work_to_do`
    fn assess_work_to_do(&self) -> isize {
        let gc = &mut self.state().gc;
        let scale_factor = gc.threshold[1].max(2) as isize;
        let new_objects = core::mem::take(&mut gc.count[0]) as isize;
        let heap_fraction = gc.incremental.heap_size / SCAN_RATE_DIVISOR / scale_factor;
        new_objects + heap_fraction.min(new_objects * 2)
    }

    /// `gc_collect_increment`
    fn collect_increment(&self, quiet: &mut Quiet<'_>) -> Result<Found, ObjectError> {
        let work = self.assess_work_to_do();
        let gc = &mut self.state().gc;
        gc.incremental.work_to_do += work;
        if gc.incremental.work_to_do < 0 {
            return Ok(Found { idle: true, ..Found::default() });
        }
        if !gc.incremental.marked {
            gc.incremental.marked = true;
            return Ok(Found { idle: true, ..Found::default() });
        }
        let pending = gc.incremental.pending();
        if !gc.try_merge(ListId::Young, ListId::Increment, self.interrupt()) {
            // The other objects are still young.
            gc.merge(ListId::Increment, pending);
            return Err(ObjectError::Aborted);
        }
        let mut size = gc.list(ListId::Increment).len() as isize;
        while size < self.state().gc.incremental.work_to_do {
            let gc = &mut self.state().gc;
            let Some(object) = gc.list(pending).first(quiet) else { break };
            let place = gc.list(ListId::Increment).entries().len();
            gc.move_to(object, ListId::Increment);
            size += 1 + self.expand_region_transitively_reachable(place, pending, quiet).inspect_err(|_| {
                // The increment's objects are pending again, as if it had not begun.
                self.state().gc.merge(ListId::Increment, pending);
            })?;
        }
        let found = self.collect_region_apart(ListId::Increment, quiet)?;
        let gc = &mut self.state().gc;
        gc.incremental.work_to_do -= size;
        if gc.list(pending).len() == 0 {
            self.completed_scavenge();
        }
        Ok(found)
    }

    /// Moves the pending objects that the increment's objects from `place` on reach into the increment. Returns how many objects it moved.
    fn expand_region_transitively_reachable(
        &self,
        mut place: usize,
        pending: ListId,
        quiet: &Quiet<'_>,
    ) -> Result<isize, ObjectError> {
        let mut size = 0;
        // The objects from `place` on stay in this list meanwhile.
        while let Some(object) = self.state().gc.list(ListId::Increment).at(place, quiet) {
            place += 1;
            if self.is_immortal(object.refcnt()) {
                self.state().gc.move_to(object, ListId::Permanent);
                continue;
            }
            let references = self.references(*object, quiet)?;
            self.go_on_after(1 + references.len())?;
            for reference in references {
                let Some(reference) = self.table().alive(reference, quiet).and_then(Object::gc) else { continue };
                // An immortal object waits for its own turn.
                if !self.is_immortal(reference.refcnt()) && self.state().gc.list(pending).has(reference) {
                    self.state().gc.move_to(reference, ListId::Increment);
                    size += 1;
                }
            }
        }
        Ok(size)
    }

    /// `gc_collect_full`
    fn collect_full(&self, quiet: &mut Quiet<'_>) -> Result<Found, ObjectError> {
        let gc = &mut self.state().gc;
        let (visited, pending) = (gc.incremental.visited(), gc.incremental.pending());
        if !gc.try_merge(ListId::Young, pending, self.interrupt()) {
            return Err(ObjectError::Aborted);
        }
        gc.count[0] = 0;
        if !gc.try_merge(pending, visited, self.interrupt()) {
            return Err(ObjectError::Aborted);
        }
        let found = self.collect_region(visited, visited, quiet)?;
        self.state().gc.count = [0; 3];
        self.completed_scavenge();
        self.clear_free_lists(quiet);
        Ok(found)
    }

    /// `completed_scavenge`: begins a new round, because every object has been visited.
    fn completed_scavenge(&self) {
        let gc = &mut self.state().gc;
        if gc.list(ListId::Permanent).len() == 0 {
            gc.incremental.visited_space ^= 1;
        } else {
            // Frozen objects count as visited and must not be touched, so the spaces cannot change places.
            let (visited, pending) = (gc.incremental.visited(), gc.incremental.pending());
            gc.merge(visited, pending);
        }
        gc.incremental.work_to_do = 0;
        gc.incremental.marked = false;
    }
}
