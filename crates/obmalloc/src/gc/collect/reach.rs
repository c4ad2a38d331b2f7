//! Separates the objects that are reached from outside from those that are not (`move_unreachable`).

use alloc::vec::Vec;

use super::scan;
use crate::gc::list::{self, Entry};
use crate::interrupt::STRIDE;
use crate::object::handle::{GcObject, Quiet};
use crate::object::table::{LIVE, MANY_REFS, NO_REFS, Places, UNREACHABLE};
use crate::object::{ObjectError, ObjectHeap};

impl ObjectHeap {
    /// Moves the objects that are not reached from outside to `unreachable`. If an object looks unreachable when the loop comes to it, and a
    /// later object reaches it, the loop moves it to the end of `objects` and stores its new index in it. Returns how many objects have left
    /// their entries. All lists have room.
    ///
    /// # Errors
    /// When it is interrupted: all objects are in `objects` again, and [`LIVE`].
    pub(super) fn move_unreachable(
        &self,
        objects: &mut Vec<Entry>,
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
            objects.extend(unreachable.drain(..).filter_map(|object| self.table().gc(object, quiet)).map(Entry::of));
            for (place, entry) in objects.iter().enumerate().skip(appended) {
                entry.object(quiet).inspect(|&object| list::set_place(object, place));
            }
            self.clear_collecting(objects, quiet);
        } else if !moved_back.is_empty() {
            if moved_back.len() == unreachable.len() {
                unreachable.clear();
            } else {
                unreachable.retain(|&object| self.table().state(object) == UNREACHABLE);
            }
            objects.append(&mut moved_back);
        }
        moved_back.clear();
        self.state().gc.scratch.moved_back = moved_back;
        (left, moved)
    }

    fn move_unreachable_in<const SHIFT: u32>(
        &self,
        places: Places<'_, SHIFT>,
        objects: &mut [Entry],
        unreachable: &mut Vec<usize>,
        moved_back: &mut Vec<Entry>,
    ) -> Result<(), ObjectError> {
        let mut index = 0;
        while index < objects.len() {
            let (begin, end) = (index, objects.len().min(index + STRIDE));
            index = self.move_unreachable_from(places, &mut objects[..end], begin, unreachable, moved_back)?;
            self.go_on_after(index - begin)?;
        }
        index = 0;
        while let Some(object) = moved_back.get(index).and_then(|entry| entry.object(places.quiet)) {
            // The object is in the cache now. Storing all indices at the end would take long, and could not be interrupted.
            list::set_place(object, objects.len() + index);
            scan::prefetch(moved_back, index, Entry::address);
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
        objects: &mut [Entry],
        mut index: usize,
        unreachable: &mut Vec<usize>,
        moved_back: &mut Vec<Entry>,
    ) -> Result<usize, ObjectError> {
        while let Some(entry) = objects.get(index) {
            let Some(object) = entry.object(places.quiet) else {
                index += 1;
                continue;
            };
            let (kind, at) = (object.kind(), places.of_object(object));
            if kind.simple {
                let to = (&mut *unreachable, &mut *moved_back);
                // SAFETY: there is room for all objects.
                let stopped = unsafe { scan::move_unreachable_in_run(places, objects, index, kind, to.0, to.1, visit_reachable) };
                if stopped != index {
                    index = stopped;
                    continue;
                }
            }
            if has_no_refs(at.get(), || Some(object)) {
                at.set(UNREACHABLE);
                unreachable.push(object.address());
                objects[index].clear();
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
        moved_back: &mut Vec<Entry>,
    ) -> Result<(), ObjectError> {
        let at = places.of_object(object);
        if at.get() == MANY_REFS {
            object.set_gc_refs(0);
        }
        at.set(LIVE);
        self.traverse(*object, |reference| {
            moved_back.extend(visit_reachable(places, reference).map(Entry::of));
        })
    }
}

/// Marks the object that a reachable object refers to. Returns it, if it must be moved back to the reachable objects.
fn visit_reachable<const SHIFT: u32>(places: Places<'_, SHIFT>, reference: usize) -> Option<GcObject<'_>> {
    let moved = places.unreachable(reference);
    if let Some(object) = moved.or_else(|| places.undecided(reference)) {
        let at = places.of_object(object);
        if moved.is_some() || has_no_refs(at.get(), || Some(object)) {
            at.set(NO_REFS + 1);
        }
    }
    moved
}

/// Whether an object in this collection, with this state, has not been reached yet: `gc_refs` is 0.
#[inline(always)]
pub(super) fn has_no_refs<'quiet>(state: u8, object: impl FnOnce() -> Option<GcObject<'quiet>>) -> bool {
    state == NO_REFS || state == MANY_REFS && object().is_some_and(|object| object.gc_refs() == 0)
}
