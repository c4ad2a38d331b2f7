//! The end of unreachable objects (`delete_garbage`): their `tp_clear`, or under `DEBUG_SAVEALL` a place in `gc.garbage`.

use super::scan;
use crate::gc::DEBUG_SAVEALL;
use crate::gc::list::ListId;
use crate::object::handle::{GcObject, Object, Quiet};
use crate::object::{ObjectError, ObjectHeap};

/// Added to an object's reference count to keep the object. No program can give back so many references: memory has no room for them.
const KEEPS: usize = 1 << 29;

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
            self.each_unreachable(garbage, quiet, |object| self.rejoin(object, old, quiet));
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
        let holds = WATCHED || self.heap.calls_guests();
        let mut survived = false;
        for (index, &object) in garbage.iter().enumerate() {
            let Some(found) = table.unreachable(object, quiet) else { continue };
            if WATCHED {
                self.go_on_after(1)?;
            }
            scan::prefetch(garbage, index, |&object| object);
            if self.state().gc.debug & DEBUG_SAVEALL != 0 {
                self.append_to_garbage(found);
            } else {
                // The program may have given back more references than it had. So one more reference would not surely keep the object.
                let count = found.refcnt();
                if holds || count >= KEEPS {
                    self.incref_object(*found);
                    // SAFETY: the hold keeps it.
                    self.holding(object, || unsafe { self.tp_clear(object, quiet) });
                } else {
                    found.set_refcnt(count + KEEPS + 1);
                    // SAFETY: the references just added keep it.
                    let kept = unsafe {
                        self.tp_clear(object, quiet);
                        Object::known(object, quiet)
                    };
                    kept.set_refcnt(kept.refcnt().saturating_sub(KEEPS).max(1));
                }
                // SAFETY: it has been kept. Gives one reference back.
                if unsafe { self.decref_kept(object, quiet) } {
                    continue;
                }
            }
            survived = true;
            if WATCHED && let Some(found) = table.unreachable(object, quiet) {
                self.rejoin(found, old, quiet);
            }
        }
        Ok(survived)
    }

    /// # Safety
    /// There is an object at `object`, and something keeps it meanwhile.
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
