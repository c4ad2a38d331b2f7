//! The end of unreachable objects (`delete_garbage`): their `tp_clear`, or under `DEBUG_SAVEALL` a place in `gc.garbage`.

use super::scan;
use crate::gc::DEBUG_SAVEALL;
use crate::gc::list::ListId;
use crate::object::handle::{GcObject, Object, Quiet};
use crate::object::{ObjectError, ObjectHeap};

impl ObjectHeap {
    /// Breaks the cycles: calls `tp_clear` of the unreachable objects, one after the other, which destroys most of them. Objects that live on
    /// join the old ones, because they may die later.
    ///
    /// # Errors
    /// When it is interrupted between two objects, which only happens if hooks see it: the remaining objects are still in the set.
    pub(super) fn delete_garbage(&self, garbage: &[usize], old: ListId, quiet: &mut Quiet<'_>) -> Result<(), ObjectError> {
        if self.state().types.iter().any(|kind| kind.has_end && !kind.is_weakref() || kind.hooks.clear) {
            return self.clear_each::<true>(garbage, old, quiet).map(drop);
        }
        if self.to_the_end(|| self.clear_each::<false>(garbage, old, quiet))? {
            self.each_unreachable(garbage, quiet, |object| self.rejoin(object, old));
        }
        Ok(())
    }

    /// Calls `tp_clear` of unreachable objects. Returns whether any has lived on. Most of those die soon, so if no hook can see it they are not
    /// moved to `old` yet.
    #[inline(never)]
    fn clear_each<const WATCHED: bool>(
        &self,
        garbage: &[usize],
        old: ListId,
        quiet: &mut Quiet<'_>,
    ) -> Result<bool, ObjectError> {
        let table = self.table();
        let mut survived = false;
        for (index, &object) in garbage.iter().enumerate() {
            let Some(found) = table.unreachable(object, quiet) else { continue };
            if WATCHED {
                self.go_on_after(1)?;
            }
            scan::prefetch(garbage, index);
            if self.state().gc.debug & DEBUG_SAVEALL != 0 {
                self.append_to_garbage(found);
            } else {
                self.incref_object(*found);
                // SAFETY: the reference just added keeps it.
                let mut clear = || unsafe { self.tp_clear(object, quiet) };
                if WATCHED {
                    self.holding(object, clear);
                } else {
                    clear();
                }
                // SAFETY: gives that reference back.
                if unsafe { self.decref_kept(object, quiet) } {
                    continue;
                }
            }
            survived = true;
            if WATCHED && let Some(found) = table.unreachable(object, quiet) {
                self.rejoin(found, old);
            }
        }
        Ok(survived)
    }

    /// # Safety
    /// `object` is one, and has a reference that keeps it.
    #[inline(always)]
    unsafe fn tp_clear(&self, object: usize, quiet: &mut Quiet<'_>) {
        // SAFETY: the caller's promise.
        let kind = self.kind_of(unsafe { Object::known(object, quiet) });
        if kind.hooks.clear {
            self.in_hook(quiet, |hooks| hooks.clear(self, kind.id(), object));
        } else if kind.is_weakref() {
            self.clear_weakref(object, quiet);
        } else {
            // If it is interrupted, which can only happen with hooks, the next collection does the rest.
            // SAFETY: the caller's promise.
            let _ = unsafe { self.clear_references(kind, object, quiet) };
        }
    }

    /// Appends an object to `gc.garbage`, with a new reference. Without memory, the object is left out.
    #[cold]
    pub(super) fn append_to_garbage(&self, object: GcObject<'_>) {
        let garbage = &mut self.state().gc.garbage;
        if garbage.try_reserve(1).is_ok() {
            garbage.push(object.address());
            self.incref_object(*object);
        }
    }
}
