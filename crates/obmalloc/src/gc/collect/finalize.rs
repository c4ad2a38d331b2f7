//! Finalizers of unreachable objects, also legacy ones, and the objects that they resurrect.

#![forbid(unsafe_code)]

use alloc::vec::Vec;

use super::reach::has_no_refs;
use crate::gc::DEBUG_SAVEALL;
use crate::gc::list::{Entry, ListId};
use crate::object::handle::Quiet;
use crate::object::table::UNREACHABLE;
use crate::object::{ObjectError, ObjectHeap};
use crate::profile::Resurrection;

impl ObjectHeap {
    /// Moves objects with a `tp_del` from the unreachable objects to the list of finalizers.
    pub(super) fn move_legacy_finalizers(&self, unreachable: &[usize], quiet: &Quiet<'_>) {
        if !self.state().types.iter().any(|kind| kind.hooks.del) {
            return;
        }
        self.each_unreachable(unreachable, quiet, |object| {
            if object.kind().hooks.del {
                self.rejoin(object, ListId::Finalizers, quiet);
            }
        });
    }

    /// Moves the unreachable objects that the finalizers reach to the list of finalizers.
    pub(super) fn move_legacy_finalizer_reachable(&self, quiet: &Quiet<'_>) -> Result<(), ObjectError> {
        let mut place = 0;
        // No object has left the list.
        while let Some(object) = self.state().gc.list(ListId::Finalizers).at(place, quiet) {
            self.traverse(*object, |reference| {
                if let Some(found) = self.table().unreachable(reference, quiet) {
                    self.rejoin(found, ListId::Finalizers, quiet);
                }
            })?;
            place += 1;
        }
        Ok(())
    }

    /// Runs the finalizers of unreachable objects that have not been finalized. Returns whether there were any.
    ///
    /// # Errors
    /// When it is interrupted between two of them.
    pub(super) fn finalize_garbage(&self, unreachable: &[usize], quiet: &mut Quiet<'_>) -> Result<bool, ObjectError> {
        let mut any = false;
        if !self.state().types.iter().any(|kind| kind.hooks.finalize) {
            return Ok(any);
        }
        for &object in unreachable {
            let Some(found) = self.table().unreachable(object, quiet) else { continue };
            if found.kind().hooks.finalize && !found.is_finalized() {
                any = true;
                found.set_finalized();
                self.incref_object(*found);
                let id = found.kind().id();
                self.holding(object, || self.in_hook(quiet, |hooks| hooks.finalize(self, id, object)));
                self.decref_object(object, quiet);
                self.go_on_after(1)?;
            }
        }
        Ok(any)
    }

    /// Finds the unreachable objects that are still unreachable; the others join `old`. False if none is left to destroy.
    pub(super) fn handle_resurrected_objects(
        &self,
        unreachable: &mut Vec<usize>,
        old: ListId,
        quiet: &Quiet<'_>,
    ) -> Result<bool, ObjectError> {
        unreachable.retain(|&object| self.table().state(object) == UNREACHABLE);
        let (mut objects, mut still) = (Vec::new(), Vec::new());
        if objects.try_reserve_exact(2 * unreachable.len()).is_err() || still.try_reserve_exact(unreachable.len()).is_err() {
            return Err(ObjectError::NoMemory);
        }
        self.each_unreachable(unreachable, quiet, |object| objects.push(Entry::of(object)));
        if self.rules.resurrection == Resurrection::KeepsAll {
            return self.check_garbage(&mut objects, old, quiet);
        }
        let counted = self.count_refs(&mut objects, quiet);
        let moved = counted.and_then(|()| self.move_unreachable(&mut objects, &mut still, quiet).1);
        let objects = objects.iter().filter_map(|entry| entry.object(quiet));
        if moved.is_err() {
            objects.for_each(|object| self.table().gc_byte_of(object, quiet).set(UNREACHABLE));
            return moved.map(|()| true);
        }
        objects.for_each(|object| self.state().gc.list(old).append(object));
        *unreachable = still;
        Ok(true)
    }

    /// Whether all unreachable objects are still unreachable (`check_garbage`). If not, all of them join `old`, in their order.
    fn check_garbage(&self, objects: &mut [Entry], old: ListId, quiet: &Quiet<'_>) -> Result<bool, ObjectError> {
        let counted = self.count_refs(objects, quiet);
        let objects = || objects.iter().filter_map(|entry| entry.object(quiet));
        let mut all = true;
        for object in objects() {
            let at = self.table().gc_byte_of(object, quiet);
            all &= has_no_refs(at.get(), || Some(object));
            object.set_gc_refs(0);
            at.set(UNREACHABLE);
        }
        counted?;
        if !all {
            objects().for_each(|object| self.rejoin(object, old, quiet));
        }
        Ok(all)
    }

    /// Puts objects with legacy finalizers into `gc.garbage`. They and all that they reach join the old objects.
    pub(super) fn handle_legacy_finalizers(&self, old: ListId, quiet: &Quiet<'_>) {
        let all = self.state().gc.debug & DEBUG_SAVEALL != 0;
        for place in 0..self.state().gc.list(ListId::Finalizers).entries().len() {
            let object = self.state().gc.list(ListId::Finalizers).at(place, quiet);
            if let Some(object) = object.filter(|object| all || object.kind().hooks.del) {
                self.append_to_garbage(object);
            }
        }
        self.state().gc.merge(ListId::Finalizers, old);
    }
}
