//! The counts of a collection: for each object, the references that do not come from the other objects of the set (`update_refs`,
//! `subtract_refs`).
//!
//! `gc_refs` are in the [table of objects](crate::object::table), a byte each. `update_refs` and `subtract_refs` are one pass over the
//! objects, in any order: it adds each object's reference count to its byte, and takes one off the bytes of those that it refers to. If a
//! byte is too small, the object is counted in the word before it, as in CPython.

use super::scan;
use crate::gc::list::ListId;
use crate::interrupt::STRIDE;
use crate::object::table::{self, LIVE, MANY_REFS, MOST_REFS, NO_REFS, Places, is_undecided};
use crate::object::{ObjectError, ObjectHeap, Type, header};
use crate::profile::ImmortalMet;

impl ObjectHeap {
    /// Counts for every object the references that do not come from the other objects.
    ///
    /// # Errors
    /// When a hook fails or does not tell the truth, or it is interrupted: then every object is [`LIVE`].
    pub(super) fn count_refs(&self, objects: &mut [usize]) -> Result<(), ObjectError> {
        let scratch = &mut self.state().gc.scratch;
        scratch.visited.clear();
        scratch.visits.clear();
        scratch.set_aside = 0;
        let counted = match self.table().alignment_shift() {
            3 => self.update_and_subtract_refs::<3>(objects),
            _ => self.update_and_subtract_refs::<4>(objects),
        };
        if counted.is_err() {
            self.clear_collecting(objects);
        }
        counted
    }

    fn update_and_subtract_refs<const SHIFT: u32>(&self, objects: &mut [usize]) -> Result<(), ObjectError> {
        let places = self.table().places::<SHIFT>();
        for part in objects.chunks(STRIDE) {
            self.update_refs(places, part);
            self.go_on_after(part.len())?;
        }
        let mut index = 0;
        while index < objects.len() {
            let (begin, end) = (index, objects.len().min(index + STRIDE));
            index = self.subtract_refs(places, &mut objects[..end], begin)?;
            self.go_on_after(index - begin)?;
        }
        Ok(())
    }

    /// Marks all objects as outside any collection (`gc_list_clear_collecting`).
    pub(super) fn clear_collecting(&self, objects: &[usize]) {
        for &object in objects {
            if object != 0 {
                // SAFETY: a tracked object; the word is in use when the byte says so.
                unsafe {
                    if self.table().state(object) == MANY_REFS {
                        header::set_gc_refs(object, 0);
                    }
                }
                self.table().set(object, LIVE);
            }
        }
    }

    /// Marks every object as undecided. CPython's function copies the reference count here; ours is added in
    /// `subtract_refs`.
    fn update_refs<const SHIFT: u32>(&self, places: Places<SHIFT>, objects: &[usize]) {
        for &object in objects {
            if object != 0 {
                // SAFETY: a tracked object has a byte in the table.
                unsafe { *places.of(object) = NO_REFS };
            }
        }
    }

    /// From the object with this index on: adds each object's reference count to its `gc_refs`, and takes one off the `gc_refs` of those that
    /// it refers to. Returns how many objects there are.
    fn subtract_refs<const SHIFT: u32>(
        &self,
        places: Places<SHIFT>,
        objects: &mut [usize],
        mut index: usize,
    ) -> Result<usize, ObjectError> {
        while let Some(&object) = objects.get(index) {
            if object == 0 {
                index += 1;
                continue;
            }
            // SAFETY: a tracked object (invariant 1 of headers).
            let kind = unsafe { header::kind(object) };
            if kind.simple {
                // SAFETY: tracked objects; nothing changes while references are counted.
                let stopped = unsafe { scan::subtract_refs(places, objects, index, kind, visit_decref) };
                if stopped != index {
                    index = stopped;
                    continue;
                }
            }
            // SAFETY: a tracked object has a byte in the table.
            let (refcnt, at) = unsafe { (header::refcnt(object), places.of(object)) };
            // SAFETY: as above.
            let state = unsafe { *at };
            if refcnt <= usize::from(MOST_REFS) && state != MANY_REFS {
                // SAFETY: as above.
                unsafe { *at = state + refcnt as u8 };
            } else if self.is_immortal(refcnt) {
                self.set_aside(object);
                objects[index] = 0;
                continue;
            } else {
                // SAFETY: the byte is the object's.
                unsafe { count_in_head(at, object, refcnt as isize) };
            }
            if kind.hooks.traverse {
                self.subtract_visited(places, kind, object)?;
            } else {
                // SAFETY: an object of the type; what it refers to were objects (invariant 3 of headers).
                unsafe { self.try_each_reference(kind, object, |reference| visit_decref(places, reference))? };
            }
            index += 1;
        }
        Ok(index)
    }

    /// Takes an immortal object out of the collection.
    #[cold]
    fn set_aside(&self, object: usize) {
        let state = self.state();
        state.gc.scratch.set_aside += 1;
        self.table().set(object, LIVE);
        // SAFETY: a tracked object.
        unsafe { header::set_gc_refs(object, 0) };
        match self.rules.immortal_met {
            ImmortalMet::Frozen => state.gc.list(ListId::Permanent).append(object),
            ImmortalMet::Untracked => {
                // SAFETY: as above.
                unsafe { header::set_gc_next(object, 0) };
                self.count_untracked();
            }
        }
    }

    /// Asks a `traverse` hook what an object refers to, and keeps the answer.
    #[cold]
    fn subtract_visited<const SHIFT: u32>(&self, places: Places<SHIFT>, kind: &Type, object: usize) -> Result<(), ObjectError> {
        let visited = self.visited(kind, object)?;
        let scratch = &mut self.state().gc.scratch;
        if scratch.visited.try_reserve(1).is_err() || scratch.visits.try_reserve(visited.len()).is_err() {
            return Err(ObjectError::NoMemory);
        }
        let begin = scratch.visits.len();
        scratch.visits.extend_from_slice(&visited);
        scratch.visited.insert(object, (begin, scratch.visits.len()));
        for reference in visited {
            // SAFETY: `visited` has checked that it is an object.
            unsafe { visit_decref(places, reference) };
        }
        Ok(())
    }

    /// Calls `visit` with each object that an object in this collection refers to.
    ///
    /// # Safety
    /// The object is in this collection, and has the type `kind`.
    #[inline(always)]
    pub(super) unsafe fn traverse(&self, kind: &Type, object: usize, mut visit: impl FnMut(usize)) -> Result<(), ObjectError> {
        if kind.hooks.traverse {
            return self.traverse_visited(object, &mut visit);
        }
        // SAFETY: the caller gives an object of the type.
        unsafe { self.try_each_reference(kind, object, visit) }
    }

    #[cold]
    fn traverse_visited(&self, object: usize, visit: &mut dyn FnMut(usize)) -> Result<(), ObjectError> {
        let scratch = &self.state().gc.scratch;
        let (begin, end) = scratch.visited.get(&object).copied().unwrap_or_default();
        for &reference in &scratch.visits[begin..end] {
            visit(reference);
            self.go_on_after(1)?;
        }
        Ok(())
    }
}

/// Takes one off an object's `gc_refs`, if it is undecided.
///
/// # Safety
/// References are being counted.
unsafe fn visit_decref<const SHIFT: u32>(places: Places<SHIFT>, reference: usize) {
    // SAFETY: a byte of the table.
    unsafe {
        let at = places.of(reference);
        let state = *at;
        if state > table::LEAST_REFS && state < MANY_REFS {
            *at = state - 1;
        } else if is_undecided(state) {
            count_in_head(at, reference, -1);
        }
    }
}

/// Changes the `gc_refs` of an object that a byte cannot count for.
///
/// # Safety
/// The collection has not decided about the object yet, and `at` is its byte of the table.
#[cold]
#[inline(never)]
unsafe fn count_in_head(at: *mut u8, object: usize, change: isize) {
    // SAFETY: every object of a collection has the collector's words.
    unsafe {
        let refs = if *at == MANY_REFS { header::gc_refs(object) } else { isize::from(*at) - isize::from(NO_REFS) };
        *at = MANY_REFS;
        header::set_gc_refs(object, refs + change);
    }
}
