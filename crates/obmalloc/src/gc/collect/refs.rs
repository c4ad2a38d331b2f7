//! The counts of a collection: for each object, the references that do not come from the other objects of the set (`update_refs`,
//! `subtract_refs`).
//!
//! `gc_refs` are in the [table of objects](crate::object::table), a byte each. `update_refs` and `subtract_refs` are one pass over the
//! objects, in any order: it adds each object's reference count to its byte, and takes one off the bytes of those that it refers to. If a
//! byte is too small, the object is counted in the word before it, as in CPython.

#![forbid(unsafe_code)]

use super::scan;
use crate::gc::list::{Entry, ListId};
use crate::interrupt::STRIDE;
use crate::object::handle::{GcObject, Object, Quiet};
use crate::object::table::{GcByte, LIVE, MANY_REFS, MOST_REFS, NO_REFS, Places};
use crate::object::{ObjectError, ObjectHeap};
use crate::profile::ImmortalMet;

impl ObjectHeap {
    /// Counts for every object the references that do not come from the other objects.
    ///
    /// # Errors
    /// When a hook fails or does not tell the truth, or it is interrupted: then every object is [`LIVE`].
    pub(super) fn count_refs(&self, objects: &mut [Entry], quiet: &Quiet<'_>) -> Result<(), ObjectError> {
        let scratch = &mut self.state().gc.scratch;
        scratch.visited.clear();
        scratch.visits.clear();
        scratch.set_aside = 0;
        let counted = match self.table().alignment_shift() {
            3 => self.update_and_subtract_refs(self.table().places::<3>(quiet), objects),
            _ => self.update_and_subtract_refs(self.table().places::<4>(quiet), objects),
        };
        if counted.is_err() {
            self.clear_collecting(objects, quiet);
        }
        counted
    }

    fn update_and_subtract_refs<const SHIFT: u32>(
        &self,
        places: Places<'_, SHIFT>,
        objects: &mut [Entry],
    ) -> Result<(), ObjectError> {
        for part in objects.chunks(STRIDE) {
            update_refs(places, part);
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
    pub(super) fn clear_collecting(&self, objects: &[Entry], quiet: &Quiet<'_>) {
        for object in objects.iter().filter_map(|entry| entry.object(quiet)) {
            // The word is in use when the byte says so.
            let at = self.table().gc_byte_of(object, quiet);
            if at.get() == MANY_REFS {
                object.set_gc_refs(0);
            }
            at.set(LIVE);
        }
    }

    /// From the object with this index on: adds each object's reference count to its `gc_refs`, and takes one off the `gc_refs` of those that
    /// it refers to. Returns how many objects there are.
    fn subtract_refs<const SHIFT: u32>(
        &self,
        places: Places<'_, SHIFT>,
        objects: &mut [Entry],
        mut index: usize,
    ) -> Result<usize, ObjectError> {
        while let Some(entry) = objects.get(index) {
            let Some(object) = entry.object(places.quiet) else {
                index += 1;
                continue;
            };
            let kind = object.kind();
            if kind.simple {
                let stopped = scan::subtract_refs_of_run(places, objects, index, kind, visit_decref);
                if stopped != index {
                    index = stopped;
                    continue;
                }
            }
            let (refcnt, at) = (object.refcnt(), places.of_object(object));
            let state = at.get();
            if refcnt <= usize::from(MOST_REFS) && state != MANY_REFS {
                at.set(state + refcnt as u8);
            } else if self.is_immortal(refcnt) {
                self.set_aside(object, at);
                objects[index].clear();
                continue;
            } else {
                count_in_head(at, object, refcnt as isize);
            }
            if kind.hooks.traverse {
                self.subtract_visited(places, *object)?;
            } else {
                self.try_each_reference(*object, |reference| visit_decref(places, reference))?;
            }
            index += 1;
        }
        Ok(index)
    }

    /// Takes an immortal object out of the collection.
    #[cold]
    fn set_aside(&self, object: GcObject<'_>, at: GcByte<'_>) {
        let state = self.state();
        state.gc.scratch.set_aside += 1;
        at.set(LIVE);
        object.set_gc_refs(0);
        match self.rules.immortal_met {
            ImmortalMet::Frozen => state.gc.list(ListId::Permanent).append(object),
            ImmortalMet::Untracked => {
                object.set_gc_next(0);
                self.count_untracked();
            }
        }
    }

    /// Asks a `traverse` hook what an object refers to, and keeps the answer.
    #[cold]
    fn subtract_visited<const SHIFT: u32>(&self, places: Places<'_, SHIFT>, object: Object<'_>) -> Result<(), ObjectError> {
        let visited = self.visited(object, places.quiet)?;
        let scratch = &mut self.state().gc.scratch;
        if scratch.visited.try_reserve(1).is_err() || scratch.visits.try_reserve(visited.len()).is_err() {
            return Err(ObjectError::NoMemory);
        }
        let begin = scratch.visits.len();
        scratch.visits.extend_from_slice(&visited);
        scratch.visited.insert(object.address(), (begin, scratch.visits.len()));
        for reference in visited {
            visit_decref(places, reference);
        }
        Ok(())
    }

    /// Calls `visit` with each object that an object in this collection refers to.
    #[inline(always)]
    pub(super) fn traverse(&self, object: Object<'_>, mut visit: impl FnMut(usize)) -> Result<(), ObjectError> {
        if object.kind().hooks.traverse {
            return self.traverse_visited(object.address(), &mut visit);
        }
        self.try_each_reference(object, visit)
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

/// Marks every object as undecided. CPython's `update_refs` also copies the reference count; here `subtract_refs` adds it.
fn update_refs<const SHIFT: u32>(places: Places<'_, SHIFT>, objects: &[Entry]) {
    for object in objects.iter().filter_map(|entry| entry.object(places.quiet)) {
        places.of_object(object).set(NO_REFS);
    }
}

/// Takes one off an object's `gc_refs`, if it is undecided. References are being counted.
fn visit_decref<const SHIFT: u32>(places: Places<'_, SHIFT>, reference: usize) {
    if let Some(at) = places.of(reference).reducible() {
        at.set(at.get() - 1);
    } else if let Some(object) = places.undecided(reference) {
        count_in_head(places.of_object(object), object, -1);
    }
}

/// Changes the `gc_refs` of an object that a byte cannot count for. `at` is the object's byte of the table.
#[cold]
#[inline(never)]
fn count_in_head(at: GcByte<'_>, object: GcObject<'_>, change: isize) {
    let refs = if at.get() == MANY_REFS { object.gc_refs() } else { isize::from(at.get()) - isize::from(NO_REFS) };
    at.set(MANY_REFS);
    object.set_gc_refs(refs + change);
}
