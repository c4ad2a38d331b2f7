//! Separates the objects that are reached from outside from those that are not (`move_unreachable`).

use alloc::vec::Vec;

use super::scan;
use crate::gc::list;
use crate::interrupt::STRIDE;
use crate::object::handle::{GcObject, Quiet};
use crate::object::table::{LIVE, MANY_REFS, NO_REFS, Places, UNREACHABLE};
use crate::object::{ObjectError, ObjectHeap};

impl ObjectHeap {
    /// Moves the objects that are not reached from outside to `unreachable`. An object that looks unreachable at its turn, but is reached from
    /// a later object, goes to the end of `objects` and is told its place there. Returns how many objects have left their places. All lists
    /// have room.
    ///
    /// # Errors
    /// When it is interrupted: all objects are in `objects` again, and [`LIVE`].
    pub(super) fn move_unreachable(
        &self,
        objects: &mut Vec<usize>,
        unreachable: &mut Vec<usize>,
        quiet: &Quiet<'_>,
    ) -> (usize, Result<(), ObjectError>) {
        // Objects that are moved back come last, after all others have been looked at.
        let mut moved_back = core::mem::take(&mut self.state().gc.scratch.moved_back);
        let moved = match self.table().alignment_shift() {
            3 => self.move_unreachable_in(self.table().places::<3>(quiet), objects, unreachable, &mut moved_back),
            _ => self.move_unreachable_in(self.table().places::<4>(quiet), objects, unreachable, &mut moved_back),
        };
        let left = unreachable.len();
        if moved.is_err() {
            let appended = objects.len();
            objects.append(unreachable);
            for (place, &object) in objects.iter().enumerate().skip(appended) {
                if let Some(object) = self.table().gc(object, quiet) {
                    list::set_place(object, place);
                }
            }
            self.clear_collecting(objects, quiet);
        } else if !moved_back.is_empty() {
            objects.extend_from_slice(&moved_back);
            if moved_back.len() == unreachable.len() {
                unreachable.clear();
            } else {
                unreachable.retain(|&object| self.table().state(object) == UNREACHABLE);
            }
        }
        moved_back.clear();
        self.state().gc.scratch.moved_back = moved_back;
        (left, moved)
    }

    fn move_unreachable_in<const SHIFT: u32>(
        &self,
        places: Places<'_, SHIFT>,
        objects: &mut [usize],
        unreachable: &mut Vec<usize>,
        moved_back: &mut Vec<usize>,
    ) -> Result<(), ObjectError> {
        let mut index = 0;
        while index < objects.len() {
            let (begin, end) = (index, objects.len().min(index + STRIDE));
            index = self.move_unreachable_from(places, &mut objects[..end], begin, unreachable, moved_back)?;
            self.go_on_after(index - begin)?;
        }
        index = 0;
        while let Some(&address) = moved_back.get(index) {
            // SAFETY: an object was unreachable, so it is tracked.
            let object = unsafe { GcObject::known(address, places.quiet) };
            // The object is in the cache now. Telling it its place at the end would take long, and could not be interrupted.
            list::set_place(object, objects.len() + index);
            scan::prefetch(moved_back, index);
            self.move_reachable(places, object, moved_back)?;
            self.go_on_after(1)?;
            index += 1;
        }
        Ok(())
    }

    /// As [`move_unreachable`](Self::move_unreachable), for the objects from this index on. Objects to be moved back go to `moved_back`. Returns
    /// how many objects there are.
    fn move_unreachable_from<const SHIFT: u32>(
        &self,
        places: Places<'_, SHIFT>,
        objects: &mut [usize],
        mut index: usize,
        unreachable: &mut Vec<usize>,
        moved_back: &mut Vec<usize>,
    ) -> Result<usize, ObjectError> {
        while let Some(&address) = objects.get(index) {
            if address == 0 {
                index += 1;
                continue;
            }
            // SAFETY: a tracked object.
            let object = unsafe { GcObject::known(address, places.quiet) };
            let (kind, at) = (object.kind(), places.of_object(object));
            if kind.simple {
                let to = (&mut *unreachable, &mut *moved_back);
                // SAFETY: tracked objects; nothing changes meanwhile.
                let stopped = unsafe { scan::move_unreachable(places, objects, index, kind, to.0, to.1, visit_reachable) };
                if stopped != index {
                    index = stopped;
                    continue;
                }
            }
            if has_no_refs(at.get(), || Some(object)) {
                at.set(UNREACHABLE);
                unreachable.push(address);
                objects[index] = 0;
            } else {
                self.move_reachable(places, object, moved_back)?;
            }
            index += 1;
        }
        Ok(index)
    }

    /// Marks an object as reachable, and the objects that it refers to. References have been counted.
    #[inline]
    fn move_reachable<const SHIFT: u32>(
        &self,
        places: Places<'_, SHIFT>,
        object: GcObject<'_>,
        moved_back: &mut Vec<usize>,
    ) -> Result<(), ObjectError> {
        let at = places.of_object(object);
        if at.get() == MANY_REFS {
            object.set_gc_refs(0);
        }
        at.set(LIVE);
        self.traverse(*object, |reference| {
            if visit_reachable(places, reference) {
                moved_back.push(reference);
            }
        })
    }
}

/// Marks `reference`, to which a reachable object refers. Returns whether it must be moved back to the reachable objects.
fn visit_reachable<const SHIFT: u32>(places: Places<'_, SHIFT>, reference: usize) -> bool {
    let at = places.of(reference);
    if let Some(at) = at.unreachable() {
        at.set(NO_REFS + 1);
        return true;
    }
    if let Some(at) = at.undecided()
        && has_no_refs(at.get(), || places.undecided(reference))
    {
        at.set(NO_REFS + 1);
    }
    false
}

/// Whether an object in this collection, with this state, has not been reached yet: `gc_refs` is 0.
#[inline(always)]
pub(super) fn has_no_refs<'quiet>(state: u8, object: impl FnOnce() -> Option<GcObject<'quiet>>) -> bool {
    state == NO_REFS || state == MANY_REFS && object().is_some_and(|object| object.gc_refs() == 0)
}
