//! Weak references (`Objects/weakrefobject.c`), and what a collection does with them.
//!
//! A weak reference is a GC object with a word for its referent, and two words that link it to the other weak references to that referent.
//! The referent has a word for the first of them. That may be the *basic* one, which has no callback and is shared.
//!
//! Callbacks are called in three places: `clear_lone` and `clear_several` when the referent is destroyed, `call_weakref_callbacks` during a
//! collection.

use core::num::NonZeroU64;

use super::list::ListId;
use crate::domain::{Fault, FaultKind};
use crate::object::{ObjectError, ObjectHeap, Type, TypeId, header, object_fault, table};
use crate::profile::WeakrefsCleared;

impl ObjectHeap {
    /// `PyWeakref_NewRef`: a new reference to a weak reference to `object`. Without a callback it may be one that exists already.
    ///
    /// # Errors
    /// When `object` is no object, no weak references to its type can be made, or there is no memory.
    #[doc(alias = "PyWeakref_NewRef")]
    pub fn new_weakref(&self, object: usize, callback: Option<NonZeroU64>) -> Result<usize, ObjectError> {
        let kind = self.change(object)?;
        let Some(offset) = kind.weaklist else { return Err(object_fault(FaultKind::WrongType, object).into()) };
        // SAFETY: an object of the type, looked up just above.
        let list = unsafe { header::weaklist(object, offset) };
        // SAFETY: a list of an object leads to weak references.
        let basic = || unsafe { Some(*list).filter(|&first| first != 0 && header::wr_callback(first) == 0) };
        if callback.is_none()
            && let Some(basic) = basic()
        {
            // SAFETY: a weak reference.
            unsafe { self.incref_object(basic) };
            return Ok(basic);
        }
        self.begin()?;
        let reference = self.new_of(self.type_info(TypeId(0)))?;
        // SAFETY: made just above; it has no referent.
        unsafe { self.blank(reference) };
        // Up to 3.11 that may have run a collection, which may have destroyed the referent: the caller's reference may be borrowed.
        let same = self.is_alive(object) && self.look(object)?.weaklist == Some(offset);
        if !same {
            // SAFETY: the only reference to it.
            unsafe { self.decref_object(reference) };
            return Err(object_fault(FaultKind::UseAfterFree, object).into());
        }
        let basic = basic();
        if callback.is_none()
            && let Some(basic) = basic
        {
            // A hook has made a basic one meanwhile.
            // SAFETY: the only reference to the new one; a weak reference.
            unsafe { (self.decref_object(reference), self.incref_object(basic)) };
            return Ok(basic);
        }
        // SAFETY: a new weak reference, known only here, and the list of a live object.
        unsafe {
            header::set_wr_object(reference, object);
            header::set_wr_callback(reference, callback.map_or(0, NonZeroU64::get));
            insert(list, basic, reference);
        }
        if let Err(error) = self.track_object(reference) {
            // SAFETY: the only reference to it.
            unsafe { self.decref_object(reference) };
            return Err(error);
        }
        Ok(reference)
    }

    /// Gives a new weak reference no referent.
    ///
    /// # Safety
    /// `reference` is a weak reference that was made just now.
    unsafe fn blank(&self, reference: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            header::set_wr_object(reference, 0);
            header::set_wr_callback(reference, 0);
            header::set_wr_prev(reference, 0);
            header::set_wr_next(reference, 0);
        }
    }

    /// `PyWeakref_GetObject`: the referent, without a new reference to it; `None` once it is gone.
    ///
    /// # Errors
    /// When `reference` is no weak reference.
    #[doc(alias = "PyWeakref_GetObject")]
    pub fn deref_weakref(&self, reference: usize) -> Result<Option<usize>, Fault> {
        if !self.look_open(reference)?.is_weakref() {
            return Err(object_fault(FaultKind::WrongType, reference));
        }
        // SAFETY: looked up just above.
        let object = unsafe { header::wr_object(reference) };
        Ok((object != 0 && self.is_alive(object)).then_some(object))
    }

    /// Takes a weak reference out of its referent's list, and forgets the referent (`_PyWeakref_ClearRef`). The callback stays.
    pub(crate) fn clear_ref(&self, reference: usize) {
        // SAFETY: the caller gives a weak reference.
        let (object, previous, next) =
            unsafe { (header::wr_object(reference), header::wr_prev(reference), header::wr_next(reference)) };
        if object == 0 {
            return;
        }
        // SAFETY: a referent lives as long as a weak reference has its address; the neighbours are weak references to the same referent.
        unsafe {
            if previous != 0 {
                header::set_wr_next(previous, next);
            } else if let Some(offset) = header::kind(object).weaklist {
                *header::weaklist(object, offset) = next;
            }
            if next != 0 {
                header::set_wr_prev(next, previous);
            }
        }
        // SAFETY: the caller gives a weak reference.
        unsafe {
            header::set_wr_object(reference, 0);
            header::set_wr_prev(reference, 0);
            header::set_wr_next(reference, 0);
        }
    }

    /// `clear_weakref`: as [`clear_ref`](Self::clear_ref), and gives the callback back.
    pub(crate) fn clear_weakref(&self, reference: usize) {
        self.clear_ref(reference);
        self.drop_callback(self.take_callback(reference));
    }

    fn take_callback(&self, reference: usize) -> u64 {
        // SAFETY: the caller gives a weak reference.
        unsafe {
            let callback = header::wr_callback(reference);
            header::set_wr_callback(reference, 0);
            callback
        }
    }

    fn drop_callback(&self, callback: u64) {
        if callback != 0 {
            self.in_hook(|| self.hooks.weakref_dropped(callback));
        }
    }

    /// `PyObject_ClearWeakRefs` (not gc.c's `clear_weakrefs`): clears the weak references to an object that is being destroyed, then calls their
    /// callbacks.
    pub(crate) fn clear_weakrefs(&self, kind: &Type, object: usize) {
        let Some(offset) = kind.weaklist else { return };
        // SAFETY: the caller gives an object of the type, which keeps its memory.
        let list = unsafe { header::weaklist(object, offset) };
        // SAFETY: as above; a list leads to weak references.
        let basic = unsafe { Some(*list).filter(|&first| first != 0 && header::wr_callback(first) == 0) };
        if let Some(basic) = basic {
            self.clear_ref(basic);
        }
        // SAFETY: as above.
        let first = unsafe { *list };
        if first == 0 {
            return;
        }
        // SAFETY: a weak reference.
        if unsafe { header::wr_next(first) } == 0 && !self.rules.lone_weakref_kept {
            // SAFETY: as above.
            return unsafe { self.clear_lone(first) };
        }
        // SAFETY: the list of an object, whose weak references are taken out of it.
        unsafe { *list = 0 };
        // SAFETY: as above; its weak references are in no other list.
        unsafe { self.clear_several(first) };
    }

    /// Clears the only weak reference to an object that is being destroyed, and calls its callback.
    ///
    /// # Safety
    /// It is a weak reference.
    unsafe fn clear_lone(&self, reference: usize) {
        let callback = self.take_callback(reference);
        self.clear_ref(reference);
        // SAFETY: the caller gives a weak reference. It may be in the middle of its own destruction.
        if unsafe { header::refcnt(reference) } > 0 {
            self.in_hook(|| self.hooks.weakref_callback(self, callback, reference));
        }
        self.drop_callback(callback);
    }

    /// Clears the weak references to an object that is being destroyed, from the one at the head on, and calls their callbacks. All are
    /// cleared before the first callback runs, and kept until the last one has. They stay linked to each other, outside any list; the last
    /// one goes first.
    ///
    /// # Safety
    /// It is a weak reference, or 0, and so are those that follow it.
    unsafe fn clear_several(&self, head: usize) {
        let (mut reference, mut last) = (head, 0);
        while reference != 0 {
            last = reference;
            // SAFETY: the caller gives weak references.
            unsafe {
                header::set_wr_object(reference, 0);
                self.incref_object(reference);
                reference = header::wr_next(reference);
            }
        }
        self.holding_weakrefs(head, || {
            let mut reference = head;
            while reference != 0 {
                // SAFETY: the reference added above keeps it.
                let callback = unsafe { header::wr_callback(reference) };
                self.in_hook(|| self.hooks.weakref_callback(self, callback, reference));
                // SAFETY: as above.
                reference = unsafe { header::wr_next(reference) };
            }
        });
        while last != 0 {
            let (reference, callback) = (last, self.take_callback(last));
            // SAFETY: as above.
            unsafe {
                last = header::wr_prev(reference);
                header::set_wr_prev(reference, 0);
                header::set_wr_next(reference, 0);
            }
            self.drop_callback(callback);
            // SAFETY: gives the reference added above back.
            unsafe { self.decref_object(reference) };
        }
    }

    /// Clears the weak references to an object without calling anything.
    pub(crate) fn clear_weakrefs_silently(&self, object: usize, offset: isize) {
        // SAFETY: the caller gives an object whose type has such a list.
        while let reference @ 1.. = unsafe { *header::weaklist(object, offset) } {
            self.clear_ref(reference);
        }
    }

    /// Clears weak references to unreachable objects, and calls the callbacks of those that are reachable themselves (`handle_weakrefs`,
    /// from 3.15 `handle_weakref_callbacks`). Returns how many of these weak references died, and whether any callback was called.
    ///
    /// # Errors
    /// When it is interrupted between two callbacks.
    pub(super) fn handle_weakrefs(&self, unreachable: &[usize], old: ListId) -> Result<(usize, bool), ObjectError> {
        if !self.state().types.iter().any(|kind| kind.weaklist.is_some()) {
            return Ok((0, false));
        }
        let only_callbacks = self.rules.weakrefs_cleared == WeakrefsCleared::CallbacksBeforeOthersAfter;
        self.each_unreachable(unreachable, |object| {
            // SAFETY: a tracked object.
            let kind = unsafe { header::kind(object) };
            if kind.is_weakref() && !only_callbacks {
                self.clear_ref(object);
            }
            let Some(offset) = kind.weaklist else { return };
            // SAFETY: an object of the type.
            let mut reference = unsafe { *header::weaklist(object, offset) };
            while reference != 0 {
                // SAFETY: the list of an object leads to weak references.
                let (next, callback) = unsafe { (header::wr_next(reference), header::wr_callback(reference)) };
                if callback != 0 || !only_callbacks {
                    self.clear_ref(reference);
                }
                let reachable = self.table().state(reference) != table::UNREACHABLE;
                // SAFETY: as above; a weak reference is a GC object.
                if callback != 0 && reachable && unsafe { header::gc_next(reference) } != 0 {
                    // SAFETY: as above.
                    unsafe { self.incref_object(reference) };
                    self.state().gc.move_to(reference, ListId::WrcbToCall);
                }
                reference = next;
            }
        });
        self.call_weakref_callbacks(old)
    }

    /// Whether an object is a weak reference whose callback a collection is going to call. The collection holds a reference to it until then.
    pub(crate) fn is_to_be_called(&self, object: usize) -> bool {
        // SAFETY: the caller gives an object; weak references have the collector's words.
        let next = unsafe { if header::kind(object).is_weakref() { header::gc_next(object) } else { 0 } };
        // The first one's callback is running: `holding` keeps it, and afterwards its reference is given back.
        let list = self.state().gc.list(ListId::WrcbToCall);
        next != 0 && list.has(object, super::list::place(next)) && list.first() != Some(object)
    }

    /// Calls the callbacks, and gives back the references to their weak references. After an interrupt it calls no further callback.
    fn call_weakref_callbacks(&self, old: ListId) -> Result<(usize, bool), ObjectError> {
        let (mut freed, mut called, mut going_on) = (0, false, Ok(()));
        while let Some(reference) = self.state().gc.list(ListId::WrcbToCall).first() {
            called = true;
            // SAFETY: a weak reference; the reference that `handle_weakrefs` added keeps it.
            unsafe {
                if going_on.is_ok() {
                    let callback = header::wr_callback(reference);
                    self.holding(reference, || {
                        self.in_hook(|| self.hooks.weakref_callback(self, callback, reference));
                    });
                }
                self.decref_object(reference);
            }
            let gc = &mut self.state().gc;
            if gc.list(ListId::WrcbToCall).first() == Some(reference) {
                // The weak reference lives on.
                gc.move_to(reference, old);
            } else {
                freed += 1;
            }
            going_on = going_on.and_then(|()| self.go_on_after(1));
        }
        going_on.map(|()| (freed, called))
    }

    /// Clears all weak references to unreachable objects, and all unreachable weak references (`clear_weakrefs`).
    pub(super) fn clear_weakrefs_of(&self, unreachable: &[usize]) {
        if !self.state().types.iter().any(|kind| kind.weaklist.is_some()) {
            return;
        }
        self.each_unreachable(unreachable, |object| {
            // SAFETY: a tracked object.
            let kind = unsafe { header::kind(object) };
            if kind.is_weakref() {
                self.clear_ref(object);
            }
            if let Some(offset) = kind.weaklist {
                self.clear_weakrefs_silently(object, offset);
            }
        });
    }
}

/// Inserts a weak reference into its referent's list: behind the basic one, if there is one, otherwise in front.
///
/// # Safety
/// `list` is that of an object, `basic` is in it, and `reference` is a weak reference that is in no list.
unsafe fn insert(list: *mut usize, basic: Option<usize>, reference: usize) {
    // SAFETY: the caller's promise; a list leads to weak references.
    unsafe {
        let next = basic.map_or(*list, |basic| header::wr_next(basic));
        header::set_wr_prev(reference, basic.unwrap_or(0));
        header::set_wr_next(reference, next);
        match basic {
            Some(basic) => header::set_wr_next(basic, reference),
            None => *list = reference,
        }
        if next != 0 {
            header::set_wr_prev(next, reference);
        }
    }
}
