//! The end of unreachable objects (`delete_garbage`): their `tp_clear`, and `gc.garbage` in its place.

use super::scan;
use crate::gc::DEBUG_SAVEALL;
use crate::gc::list::ListId;
use crate::object::table::UNREACHABLE;
use crate::object::{ObjectError, ObjectHeap, Type, header};

impl ObjectHeap {
    /// Breaks the cycles: calls `tp_clear` of the unreachable objects, one after the other, which destroys most of them. What lives on
    /// joins the old objects, for it may die later.
    ///
    /// # Errors
    /// When hooks see it, and it is interrupted between two objects: the others are still in the set.
    pub(super) fn delete_garbage(&self, garbage: &[usize], old: ListId) -> Result<(), ObjectError> {
        if self.state().types.iter().any(|kind| kind.has_end && !kind.is_weakref() || kind.hooks.clear) {
            return self.clear_each::<true>(garbage, old).map(drop);
        }
        if self.to_the_end(|| self.clear_each::<false>(garbage, old))? {
            self.each_unreachable(garbage, |object| self.rejoin(object, old));
        }
        Ok(())
    }

    /// Calls `tp_clear` of unreachable objects; whether any has lived on. Most of those die soon, so where no hook can see it they are not
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
                // SAFETY: the reference that it was given keeps it.
                let clear = || unsafe { self.tp_clear(header::kind(object), object) };
                if WATCHED {
                    self.holding(object, clear);
                } else {
                    clear();
                }
                // SAFETY: that reference is given back.
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
    /// `object` is one of the type, and has a reference that keeps it.
    #[inline(always)]
    unsafe fn tp_clear(&self, kind: &Type, object: usize) {
        if kind.hooks.clear {
            self.in_hook(|| self.hooks.clear(self, kind.id(), object));
        } else if kind.is_weakref() {
            self.clear_weakref(object);
        } else {
            // What it leaves when it is interrupted, which only hooks let happen, is the next collection's.
            // SAFETY: the caller's promise.
            let _ = unsafe { self.clear_references(kind, object) };
        }
    }

    /// Appends an object to `gc.garbage`, which takes a reference; without memory for it, it is left out.
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
