//! The end of unreachable objects (`delete_garbage`): their `tp_clear`, or under `DEBUG_SAVEALL` a place in `gc.garbage`.

use super::scan;
use crate::gc::DEBUG_SAVEALL;
use crate::gc::list::ListId;
use crate::object::table::UNREACHABLE;
use crate::object::{ObjectError, ObjectHeap, Type, header};

impl ObjectHeap {
    /// Breaks the cycles: calls `tp_clear` of the unreachable objects, one after the other, which destroys most of them. Objects that live on
    /// join the old ones, because they may die later.
    ///
    /// # Errors
    /// When it is interrupted between two objects, which only happens if hooks see it: the remaining objects are still in the set.
    pub(super) fn delete_garbage(&self, garbage: &[usize], old: ListId) -> Result<(), ObjectError> {
        if self.state().types.iter().any(|kind| kind.has_end && !kind.is_weakref() || kind.hooks.clear) {
            return self.clear_each::<true>(garbage, old).map(drop);
        }
        if self.to_the_end(|| self.clear_each::<false>(garbage, old))? {
            self.each_unreachable(garbage, |object| self.rejoin(object, old));
        }
        Ok(())
    }

    /// Calls `tp_clear` of unreachable objects. Returns whether any has lived on. Most of those die soon, so if no hook can see it they are not
    /// moved to `old` yet.
    #[inline(never)]
    fn clear_each<const WATCHED: bool>(&self, garbage: &[usize], old: ListId) -> Result<bool, ObjectError> {
        let table = self.table();
        let mut survived = false;
        for (index, &object) in garbage.iter().enumerate() {
            if table.state(object) != UNREACHABLE {
                continue;
            }
            if WATCHED {
                self.go_on_after(1)?;
            }
            // SAFETY: the index is that of one of them.
            unsafe { scan::prefetch(garbage, index) };
            if self.state().gc.debug & DEBUG_SAVEALL != 0 {
                self.append_to_garbage(object);
            } else {
                // SAFETY: an object of the set is tracked.
                unsafe { self.incref_object(object) };
                // SAFETY: the reference just added keeps it.
                let clear = || unsafe { self.tp_clear(header::kind(object), object) };
                if WATCHED {
                    self.holding(object, clear);
                } else {
                    clear();
                }
                // SAFETY: gives that reference back.
                if unsafe { self.decref_object(object) } {
                    continue;
                }
            }
            survived = true;
            if WATCHED && table.state(object) == UNREACHABLE {
                self.rejoin(object, old);
            }
        }
        Ok(survived)
    }

    /// # Safety
    /// `object` has the type `kind`, and a reference that keeps it.
    #[inline(always)]
    unsafe fn tp_clear(&self, kind: &Type, object: usize) {
        if kind.hooks.clear {
            self.in_hook(|| self.hooks.clear(self, kind.id(), object));
        } else if kind.is_weakref() {
            self.clear_weakref(object);
        } else {
            // If it is interrupted, which can only happen with hooks, the next collection does the rest.
            // SAFETY: the caller's promise.
            let _ = unsafe { self.clear_references(kind, object) };
        }
    }

    /// Appends an object to `gc.garbage`, with a new reference. Without memory, the object is left out.
    #[cold]
    pub(super) fn append_to_garbage(&self, object: usize) {
        let garbage = &mut self.state().gc.garbage;
        if garbage.try_reserve(1).is_ok() {
            garbage.push(object);
            // SAFETY: the caller gives a tracked object.
            unsafe { self.incref_object(object) };
        }
    }
}
