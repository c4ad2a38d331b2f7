//! Weak references (`Objects/weakrefobject.c`), and what a collection does with them.
//!
//! A weak reference is a GC object with a word for its referent, and two words that link it to the other weak references to that referent.
//! The referent has a word for the first of them. That may be the *basic* one, which has no callback and is shared.
//!
//! Callbacks are called in three functions: `clear_lone` and `clear_several` when the referent is destroyed, `call_weakref_callbacks` during
//! a collection.

use core::iter::successors;
use core::num::NonZeroU64;

use super::list::ListId;
use crate::domain::{Fault, FaultKind};
use crate::object::handle::{GcObject, Object, Quiet, WeakList, WeakRef};
use crate::object::{ObjectError, ObjectHeap, TypeId, object_fault};
use crate::profile::WeakrefsCleared;

impl ObjectHeap {
    /// `PyWeakref_NewRef`: a new reference to a weak reference to `object`. Without a callback it may be one that exists already.
    ///
    /// # Errors
    /// When `object` is no object, no weak references to its type can be made, or there is no memory.
    #[doc(alias = "PyWeakref_NewRef")]
    pub fn new_weakref(&self, object: usize, callback: Option<NonZeroU64>) -> Result<usize, ObjectError> {
        let quiet = &mut self.change(object)?;
        let found = self.look_alive(object, quiet)?;
        let offset = found.kind().weaklist;
        let list = found.weaklist().ok_or(object_fault(FaultKind::WrongType, object))?;
        if let (None, Some(basic)) = (callback, list.basic()) {
            self.incref_object(**basic);
            return Ok(basic.address());
        }
        self.run_scheduled_in(quiet);
        let reference = self.new_of(self.type_info(TypeId(0)), quiet)?.address();
        // SAFETY: made just above.
        unsafe { WeakRef::blank(reference, quiet) };
        // Up to 3.11 that may have run a collection, which may have destroyed the referent: the caller's reference may be borrowed.
        let same = self.look_alive(object, quiet).ok().filter(|found| found.kind().weaklist == offset);
        let Some(list) = same.and_then(Object::weaklist) else {
            self.decref_object(reference, quiet);
            return Err(object_fault(FaultKind::UseAfterFree, object).into());
        };
        let basic = list.basic();
        if let (None, Some(basic)) = (callback, basic) {
            // A hook has made a basic one meanwhile.
            self.incref_object(**basic);
            let basic = basic.address();
            self.decref_object(reference, quiet);
            return Ok(basic);
        }
        // SAFETY: made above, and known only here.
        let new = unsafe { WeakRef::known(reference, quiet) };
        new.set_referent(self.table().object(object, quiet));
        new.set_callback(callback.map_or(0, NonZeroU64::get));
        insert(list, basic, new);
        if let Err(error) = self.track_object(*new) {
            self.decref_object(reference, quiet);
            return Err(error);
        }
        Ok(reference)
    }

    /// `PyWeakref_GetObject`: the referent, without a new reference to it; `None` once it is gone.
    ///
    /// # Errors
    /// When `reference` is no weak reference.
    #[doc(alias = "PyWeakref_GetObject")]
    pub fn deref_weakref(&self, reference: usize) -> Result<Option<usize>, Fault> {
        let quiet = self.quiet();
        let found = self.look_open(reference, &quiet)?.weakref().ok_or(object_fault(FaultKind::WrongType, reference))?;
        Ok(found.referent().map(Object::address).filter(|&object| self.is_alive(object)))
    }

    /// Takes a weak reference out of its referent's list, and forgets the referent (`_PyWeakref_ClearRef`). The callback stays.
    pub(crate) fn clear_ref(&self, reference: WeakRef<'_>) {
        let Some(object) = reference.referent() else { return };
        let (previous, next) = (reference.previous(), reference.next());
        if let Some(previous) = previous {
            previous.set_next(next);
        } else if let Some(list) = object.weaklist() {
            list.set_first(next);
        }
        if let Some(next) = next {
            next.set_previous(previous);
        }
        reference.set_referent(None);
        reference.set_previous(None);
        reference.set_next(None);
    }

    /// `clear_weakref`: as [`clear_ref`](Self::clear_ref), and gives the callback back. Does nothing where no weak reference is.
    pub(crate) fn clear_weakref(&self, reference: usize, quiet: &mut Quiet<'_>) {
        let Some(found) = self.table().weakref(reference, quiet) else { return };
        self.clear_ref(found);
        let callback = take_callback(found);
        self.drop_callback(callback, quiet);
    }

    fn drop_callback(&self, callback: u64, quiet: &mut Quiet<'_>) {
        if callback != 0 {
            self.in_hook(quiet, |hooks| hooks.weakref_dropped(callback));
        }
    }

    /// `PyObject_ClearWeakRefs` (not gc.c's `clear_weakrefs`): clears the weak references to an object that is being destroyed, then calls their
    /// callbacks.
    pub(crate) fn clear_weakrefs(&self, object: usize, quiet: &mut Quiet<'_>) {
        let Some(list) = self.table().object(object, quiet).and_then(Object::weaklist) else { return };
        if let Some(basic) = list.basic() {
            self.clear_ref(basic);
        }
        let Some(first) = list.first() else { return };
        if first.next().is_none() && !self.rules.lone_weakref_kept {
            return self.clear_lone(first.address(), quiet);
        }
        list.set_first(None);
        self.clear_several(first.address(), quiet);
    }

    /// Clears the only weak reference to an object that is being destroyed, and calls its callback.
    fn clear_lone(&self, reference: usize, quiet: &mut Quiet<'_>) {
        let Some(found) = self.table().weakref(reference, quiet) else { return };
        let callback = take_callback(found);
        self.clear_ref(found);
        // The weak reference may be in the middle of its own destruction.
        if found.refcnt() > 0 {
            self.in_hook(quiet, |hooks| hooks.weakref_callback(self, callback, reference));
        }
        self.drop_callback(callback, quiet);
    }

    /// Clears the weak references to an object that is being destroyed, from the one at the head on, and then calls their callbacks. Keeps
    /// all of them until the last callback has returned. Until then they stay linked to each other, outside any list. Then it unlinks them,
    /// the last one first.
    fn clear_several(&self, head: usize, quiet: &mut Quiet<'_>) {
        let table = self.table();
        let mut last = 0;
        for reference in successors(table.weakref(head, quiet), |reference| reference.next()) {
            last = reference.address();
            reference.set_referent(None);
            self.incref_object(**reference);
        }
        let call = || {
            let mut next = head;
            while let Some(reference) = table.weakref(next, quiet) {
                let callback = reference.callback();
                let address = reference.address();
                self.in_hook(quiet, |hooks| hooks.weakref_callback(self, callback, address));
                // The reference added above keeps it.
                next = table.weakref(address, quiet).and_then(WeakRef::next).map_or(0, |next| next.address());
            }
            // A weak reference is held until it leaves the chain, and the first one to the end.
            while let Some(callback) = table.weakref(last, quiet).map(take_callback) {
                self.drop_callback(callback, quiet);
                let Some(reference) = table.weakref(last, quiet).filter(|_| last != head) else { break };
                let (address, previous) = (last, reference.previous());
                last = previous.map_or(0, |previous| previous.address());
                if let Some(previous) = previous {
                    previous.set_next(None);
                }
                reference.set_previous(None);
                reference.set_next(None);
                // Gives the reference added above back.
                self.decref_object(address, quiet);
            }
        };
        // SAFETY: a weak reference, to which a reference was added above.
        unsafe { self.holding_weakrefs(head, call) };
        self.decref_object(head, quiet);
    }

    /// Clears the weak references to an object without calling anything.
    pub(crate) fn clear_weakrefs_silently(&self, object: Object<'_>) {
        while let Some(reference) = object.weaklist().and_then(WeakList::first) {
            self.clear_ref(reference);
        }
    }

    /// Clears weak references to unreachable objects, and calls the callbacks of those that are reachable themselves (`handle_weakrefs`,
    /// from 3.15 `handle_weakref_callbacks`). Returns how many of these weak references died, and whether any callback was called.
    ///
    /// # Errors
    /// When it is interrupted between two callbacks.
    pub(super) fn handle_weakrefs(
        &self,
        unreachable: &[usize],
        old: ListId,
        quiet: &mut Quiet<'_>,
    ) -> Result<(usize, bool), ObjectError> {
        if !self.state().types.iter().any(|kind| kind.weaklist.is_some()) {
            return Ok((0, false));
        }
        let only_callbacks = self.rules.weakrefs_cleared == WeakrefsCleared::CallbacksBeforeOthersAfter;
        self.each_unreachable(unreachable, quiet, |object| {
            if let Some(reference) = object.weakref().filter(|_| !only_callbacks) {
                self.clear_ref(reference);
            }
            let mut next = object.weaklist().and_then(WeakList::first);
            while let Some(reference) = next {
                next = reference.next();
                let has_callback = reference.callback() != 0;
                if has_callback || !only_callbacks {
                    self.clear_ref(reference);
                }
                let is_reachable = self.table().unreachable(reference.address(), quiet).is_none();
                if has_callback && is_reachable && reference.gc_next() != 0 {
                    self.incref_object(**reference);
                    self.state().gc.move_to(*reference, ListId::WrcbToCall);
                }
            }
        });
        self.call_weakref_callbacks(old, quiet)
    }

    /// Whether an object is a weak reference whose callback a collection is going to call. The collection holds a reference to it until then.
    pub(crate) fn is_to_be_called(&self, object: Object<'_>, quiet: &Quiet<'_>) -> bool {
        let Some(reference) = object.weakref() else { return false };
        let list = self.state().gc.list(ListId::WrcbToCall);
        // The first one's callback is running: `holding` keeps it, and afterwards its reference is given back.
        let is_first = |first: GcObject<'_>| first.address() == object.address();
        list.has(*reference) && !list.first(quiet).is_some_and(is_first)
    }

    /// Calls the callbacks, and gives back the references to their weak references. After an interrupt it calls no further callback.
    fn call_weakref_callbacks(&self, old: ListId, quiet: &mut Quiet<'_>) -> Result<(usize, bool), ObjectError> {
        let (mut freed, mut called, mut going_on) = (0, false, Ok(()));
        while let Some(first) = self.state().gc.list(ListId::WrcbToCall).first(quiet) {
            called = true;
            let (reference, callback) = (first.address(), first.weakref().map_or(0, WeakRef::callback));
            if going_on.is_ok() {
                // The reference that `handle_weakrefs` added keeps it.
                self.holding(reference, || {
                    self.in_hook(quiet, |hooks| hooks.weakref_callback(self, callback, reference));
                });
            }
            self.decref_object(reference, quiet);
            let gc = &mut self.state().gc;
            match gc.list(ListId::WrcbToCall).first(quiet) {
                // The weak reference lives on.
                Some(first) if first.address() == reference => gc.move_to(first, old),
                _ => freed += 1,
            }
            going_on = going_on.and_then(|()| self.go_on_after(1));
        }
        going_on.map(|()| (freed, called))
    }

    /// Clears all weak references to unreachable objects, and all unreachable weak references (`clear_weakrefs`).
    pub(super) fn clear_weakrefs_of(&self, unreachable: &[usize], quiet: &Quiet<'_>) {
        if !self.state().types.iter().any(|kind| kind.weaklist.is_some()) {
            return;
        }
        self.each_unreachable(unreachable, quiet, |object| {
            if let Some(reference) = object.weakref() {
                self.clear_ref(reference);
            }
            self.clear_weakrefs_silently(*object);
        });
    }
}

/// Takes the callback of a weak reference; 0 when there is none.
fn take_callback(reference: WeakRef<'_>) -> u64 {
    let callback = reference.callback();
    reference.set_callback(0);
    callback
}

/// Inserts a weak reference into its referent's list: behind the basic one, if there is one, otherwise in front.
fn insert(list: WeakList<'_>, basic: Option<WeakRef<'_>>, reference: WeakRef<'_>) {
    let next = basic.map_or(list.first(), WeakRef::next);
    reference.set_previous(basic);
    reference.set_next(next);
    match basic {
        Some(basic) => basic.set_next(Some(reference)),
        None => list.set_first(Some(reference)),
    }
    if let Some(next) = next {
        next.set_previous(Some(reference));
    }
}
