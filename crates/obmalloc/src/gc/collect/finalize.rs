//! Finalizers of unreachable objects, also legacy ones, and the objects that they resurrect.

use alloc::vec::Vec;

use super::reach::has_no_refs;
use crate::gc::DEBUG_SAVEALL;
use crate::gc::list::ListId;
use crate::object::table::UNREACHABLE;
use crate::object::{ObjectError, ObjectHeap, header};
use crate::profile::Resurrection;

impl ObjectHeap {
    /// Moves objects with a `tp_del` from the unreachable objects to the list of finalizers.
    pub(super) fn move_legacy_finalizers(&self, unreachable: &[usize]) {
        if !self.state().types.iter().any(|kind| kind.hooks.del) {
            return;
        }
        self.each_unreachable(unreachable, |object| {
            // SAFETY: a tracked object.
            if unsafe { header::kind(object) }.hooks.del {
                self.rejoin(object, ListId::Finalizers);
            }
        });
    }

    /// Moves the unreachable objects that the finalizers reach to the list of finalizers.
    pub(super) fn move_legacy_finalizer_reachable(&self) -> Result<(), ObjectError> {
        let mut place = 0;
        while let Some(&object) = self.state().gc.list(ListId::Finalizers).entries().get(place) {
            // SAFETY: nothing has left the list, and all in it are tracked objects.
            unsafe {
                let kind = header::kind(object);
                self.traverse(kind, object, |reference| {
                    if self.table().state(reference) == UNREACHABLE {
                        self.rejoin(reference, ListId::Finalizers);
                    }
                })?;
            }
            place += 1;
        }
        Ok(())
    }

    /// Runs the finalizers of unreachable objects that have not been finalized. Returns whether there were any.
    ///
    /// # Errors
    /// When it is interrupted between two of them.
    pub(super) fn finalize_garbage(&self, unreachable: &[usize]) -> Result<bool, ObjectError> {
        let mut any = false;
        if !self.state().types.iter().any(|kind| kind.hooks.finalize) {
            return Ok(any);
        }
        for &object in unreachable {
            if self.table().state(object) != UNREACHABLE {
                continue;
            }
            // SAFETY: a tracked object, kept by the reference added here.
            unsafe {
                if header::kind(object).hooks.finalize && !header::is_finalized(object) {
                    any = true;
                    header::set_finalized(object);
                    self.incref_object(object);
                    let id = header::kind(object).id();
                    self.holding(object, || self.in_hook(|| self.hooks.finalize(self, id, object)));
                    self.decref_object(object);
                    self.go_on_after(1)?;
                }
            }
        }
        Ok(any)
    }

    /// Finds the unreachable objects that are still unreachable; the others join `old`. False if none is left to destroy.
    pub(super) fn handle_resurrected_objects(&self, unreachable: &mut Vec<usize>, old: ListId) -> Result<bool, ObjectError> {
        unreachable.retain(|&object| self.table().state(object) == UNREACHABLE);
        if self.rules.resurrection == Resurrection::KeepsAll {
            return self.check_garbage(unreachable, old);
        }
        let mut still = Vec::new();
        let room = still.try_reserve_exact(unreachable.len()).is_ok() && unreachable.try_reserve(unreachable.len()).is_ok();
        let counted = if room { self.count_refs(unreachable) } else { Err(ObjectError::NoMemory) };
        if counted.is_err() {
            unreachable.iter().filter(|&&object| object != 0).for_each(|&object| self.table().set(object, UNREACHABLE));
            return counted.map(|()| true);
        }
        if let (_, Err(error)) = self.move_unreachable(unreachable, &mut still) {
            unreachable.iter().filter(|&&object| object != 0).for_each(|&object| self.table().set(object, UNREACHABLE));
            return Err(error);
        }
        unreachable.iter().filter(|&&object| object != 0).for_each(|&object| self.state().gc.list(old).append(object));
        *unreachable = still;
        Ok(true)
    }

    /// Whether all unreachable objects are still unreachable (`check_garbage`). If not, all of them join `old`, in their order.
    fn check_garbage(&self, unreachable: &mut [usize], old: ListId) -> Result<bool, ObjectError> {
        let counted = self.count_refs(unreachable);
        let mut all = true;
        for &object in unreachable.iter().filter(|&&object| object != 0) {
            // SAFETY: a tracked object.
            all &= unsafe { has_no_refs(self.table().state(object), object) };
            // SAFETY: as above.
            unsafe { header::set_gc_refs(object, 0) };
            self.table().set(object, UNREACHABLE);
        }
        counted?;
        if !all {
            self.each_unreachable(unreachable, |object| self.rejoin(object, old));
        }
        Ok(all)
    }

    /// Puts objects with legacy finalizers into `gc.garbage`. They and all that they reach join the old objects.
    pub(super) fn handle_legacy_finalizers(&self, old: ListId) {
        let all = self.state().gc.debug & DEBUG_SAVEALL != 0;
        for place in 0..self.state().gc.list(ListId::Finalizers).entries().len() {
            let object = self.state().gc.list(ListId::Finalizers).entries()[place];
            // SAFETY: a tracked object.
            if object != 0 && (all || unsafe { header::kind(object) }.hooks.del) {
                self.append_to_garbage(object);
            }
        }
        self.state().gc.merge(ListId::Finalizers, old);
    }
}
