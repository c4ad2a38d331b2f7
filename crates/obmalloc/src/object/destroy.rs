//! Destroying an object (`tp_dealloc`, as `subtype_dealloc` does it), and dropping its references.
//!
//! CPython destroys what an object refers to inside the destruction of the object, by recursion. Here the order is the same, but objects
//! whose destruction waits for that of others are in a list, so that a chain may have any length.

use core::cell::Cell;
use core::ptr;

use super::dying::Dying;
use super::handle::{Object, Quiet};
use super::table::ObjectByte;
use super::{ObjectHeap, Type};
use crate::interrupt::STRIDE;
use crate::profile::Counted;

/// Returned in place of an object: the search has found none so far and is not finished.
const NONE_YET: usize = 0;

impl ObjectHeap {
    /// `Py_DECREF`, if there is an object whose destruction has not begun. Returns whether the reference was the last one; a finalizer may have
    /// resurrected the object since.
    #[inline]
    pub(crate) fn decref_object(&self, object: usize, quiet: &mut Quiet<'_>) -> bool {
        let Some(at) = self.table().byte(object, quiet).alive() else { return false };
        let at = at.as_ptr();
        // SAFETY: looked up.
        unsafe { self.decref_at(object, at, quiet) }
    }

    /// As [`decref_object`](Self::decref_object), for a caller whose reference has kept the object.
    ///
    /// # Safety
    /// There is an object whose destruction has not begun.
    #[inline]
    pub(crate) unsafe fn decref_kept(&self, object: usize, quiet: &mut Quiet<'_>) -> bool {
        // SAFETY: the caller's promise.
        unsafe {
            let at = self.table().byte_of(Object::known(object, quiet), quiet).as_ptr();
            self.decref_at(object, at, quiet)
        }
    }

    /// # Safety
    /// As for [`decref_kept`](Self::decref_kept); `at` is the object's byte of the table.
    #[inline(always)]
    unsafe fn decref_at(&self, object: usize, at: *const Cell<u8>, quiet: &mut Quiet<'_>) -> bool {
        // SAFETY: the caller's promise.
        let last = self.drop_reference(unsafe { Object::known(object, quiet) }, quiet);
        if last {
            // SAFETY: as above; nothing has changed since.
            unsafe { self.destroy(object, at, quiet) };
        }
        last
    }

    /// Drops a reference that was in a field; 0 is NULL. The object is looked up, because it may have been freed since the reference was put
    /// there, against the rules (`gc_del`).
    #[inline(always)]
    pub(crate) fn xdecref(&self, reference: usize, quiet: &mut Quiet<'_>) {
        if reference != 0 {
            self.decref_object(reference, quiet);
        }
    }

    /// Counts one reference less. Returns whether it was the last one.
    #[inline]
    fn drop_reference(&self, object: Object<'_>, quiet: &Quiet<'_>) -> bool {
        let count = object.refcnt();
        if self.is_immortal(count) {
            return false;
        }
        debug_assert!(count > 0, "an object without references has been destroyed");
        if count == 1 && self.is_held(object, quiet) {
            return false;
        }
        object.set_refcnt(count - 1);
        count == 1
    }

    /// Destroys an object that has no references left, and every object whose last reference goes with it, depth first. `at` is the object's
    /// byte of the table, or null if its destruction has begun already.
    ///
    /// Never inlined: most dropped references are not the last one, and then its registers are not needed.
    ///
    /// # Safety
    /// There is an object at `object`, and the byte is its own, or null.
    #[inline(never)]
    unsafe fn destroy(&self, object: usize, at: *const Cell<u8>, quiet: &mut Quiet<'_>) {
        if !at.is_null() {
            // SAFETY: the caller's promise.
            let (at, found) = unsafe { (ObjectByte::at(at, quiet), Object::known(object, quiet)) };
            let kind = self.kind_of(found);
            if !self.begin_end(found, at) && !self.run_end(kind, object, quiet) {
                return;
            }
        }
        let base = self.state().dying.len();
        // SAFETY: its destruction has begun.
        let mut current = unsafe { Dying::new(object) };
        loop {
            let kind = self.kind_of(current.object(quiet));
            if let Some(reference) = self.drop_references(kind, &mut current, quiet) {
                if reference != NONE_YET {
                    // SAFETY: its destruction has just begun.
                    let first = unsafe { Dying::new(reference) };
                    current = self.postpone(current, first, quiet);
                }
                if self.is_interrupted_after(1) {
                    return self.put_off(base, current, quiet);
                }
                continue;
            }
            self.finish(kind, current, quiet);
            let dying = &mut self.state().dying;
            let waiting = if dying.len() > base { dying.pop() } else { self.state().trash.pop(quiet) };
            match waiting {
                Some(waiting) => current = waiting,
                None => break,
            }
            if self.is_interrupted_after(1) {
                return self.put_off(base, current, quiet);
            }
        }
    }

    /// Puts the objects of an interrupted destruction into the trash. The next destruction or collection goes on with them.
    #[cold]
    fn put_off(&self, base: usize, current: Dying, quiet: &Quiet<'_>) {
        let state = self.state();
        for dying in state.dying.drain(base..) {
            state.trash.push(dying, quiet);
        }
        state.trash.push(current, quiet);
    }

    /// Goes on with the destruction of the objects in the trash (`_PyTrash_thread_destroy_chain`).
    #[cold]
    pub(crate) fn take_up_trash(&self, quiet: &mut Quiet<'_>) {
        if let Some(waiting) = self.state().trash.pop(quiet) {
            // SAFETY: its destruction has begun.
            unsafe { self.destroy(waiting.address(), ptr::null(), quiet) };
        }
    }

    /// Drops an object's references, up to the first that was the last one of another object. Returns that object, whose destruction has begun;
    /// or [`NONE_YET`] after many references; or `None` when all are dropped.
    #[inline]
    fn drop_references(&self, kind: &Type, current: &mut Dying, quiet: &mut Quiet<'_>) -> Option<usize> {
        let slots = current.object(quiet).first_run();
        let (first, count) = (slots.as_ptr(), slots.len());
        while current.next < count {
            // SAFETY: one of the slots; the object keeps its memory. The reference is taken out before anything else can happen.
            let reference = unsafe { (*first.add(current.next)).take() };
            current.next += 1;
            if reference != 0 && self.drop_last(reference, quiet) {
                return Some(reference);
            }
        }
        if kind.simple {
            return None;
        }
        let begin = current.next;
        while let Some(slot) = current.object(quiet).reference_at(current.next) {
            let reference = slot.take();
            current.next += 1;
            if reference != 0 && self.drop_last(reference, quiet) {
                return Some(reference);
            }
            if current.next - begin == STRIDE {
                self.count_steps(STRIDE);
                return Some(NONE_YET);
            }
        }
        self.count_steps(current.next - begin);
        None
    }

    /// Drops a reference that was in a field. Returns whether it was the last one and the object's destruction has begun.
    #[inline]
    fn drop_last(&self, reference: usize, quiet: &mut Quiet<'_>) -> bool {
        let Some(at) = self.table().byte(reference, quiet).alive() else { return false };
        // SAFETY: the table has just said so.
        let object = unsafe { Object::known(reference, quiet) };
        if !self.drop_reference(object, quiet) {
            return false;
        }
        let kind = self.kind_of(object);
        self.begin_end(object, at) || self.run_end(kind, reference, quiet)
    }

    /// Puts `waiting` aside until `first` has been destroyed, and returns `first`, which is destroyed next. Without memory for that, puts `first`
    /// into the trash and returns `waiting`. CPython does the same when calls are nested too deep.
    #[inline]
    fn postpone(&self, waiting: Dying, first: Dying, quiet: &Quiet<'_>) -> Dying {
        let state = self.state();
        if state.dying.try_reserve(1).is_ok() {
            state.dying.push(waiting);
            return first;
        }
        state.trash.push(first, quiet);
        waiting
    }

    /// Does what comes before an object's references are dropped. False if [`run_end`](Self::run_end) has to do the rest. `at` is the object's
    /// byte of the table.
    #[inline]
    fn begin_end(&self, object: Object<'_>, at: ObjectByte<'_>) -> bool {
        let kind = object.kind();
        if let Some(object) = object.gc() {
            self.untrack_at(object, at);
        }
        let is_simple = !kind.has_end;
        if is_simple {
            at.set_dying();
        }
        is_simple
    }

    /// As [`begin_end`](Self::begin_end), of an object whose end does more. False if it was resurrected.
    #[cold]
    fn run_end(&self, kind: &Type, object: usize, quiet: &mut Quiet<'_>) -> bool {
        let (id, table) = (kind.id(), self.table());
        if kind.is_weakref() {
            // First, because a hook runs when the callback is dropped.
            table.mark_dying(object, quiet);
            self.clear_weakref(object, quiet);
            return true;
        }
        if kind.hooks.finalize && !self.call_finalizer_from_dealloc(kind, object, quiet) {
            return false;
        }
        table.mark_dying(object, quiet);
        if kind.weaklist.is_some() {
            self.clear_weakrefs(object, quiet);
        }
        if kind.hooks.del {
            table.mark_live(object, quiet);
            if !self.resurrected_for(object, quiet, |quiet| self.in_hook(quiet, |hooks| hooks.del(self, id, object))) {
                return false;
            }
            table.mark_dying(object, quiet);
            // `tp_del` may have made weak references.
            if let Some(found) = table.object(object, quiet) {
                self.clear_weakrefs_silently(found);
            }
        }
        if kind.hooks.dealloc {
            self.in_hook(quiet, |hooks| hooks.dealloc(self, id, object));
        }
        true
    }

    /// `PyObject_CallFinalizerFromDealloc`; false if the object was resurrected.
    fn call_finalizer_from_dealloc(&self, kind: &Type, object: usize, quiet: &mut Quiet<'_>) -> bool {
        // An object without the collector's words has no bit for the mark: its finalizer is called whenever it loses its last reference.
        let Some(found) = self.table().object(object, quiet) else { return true };
        if let Some(found) = found.gc().filter(|found| found.is_finalized()) {
            if self.rules.counted == Counted::Tracking {
                // CPython tracks the object during this check. That counts, and may trigger a collection.
                let _ = self.track_object(found);
                self.untrack_object(found, quiet);
            }
            return true;
        }
        self.resurrected_for(object, quiet, |quiet| {
            self.in_hook(quiet, |hooks| hooks.finalize(self, kind.id(), object));
            // The reference that `resurrected_for` added keeps the object.
            if let Some(found) = self.table().object(object, quiet).and_then(Object::gc) {
                found.set_finalized();
            }
        })
    }

    /// Runs `call` while the object has one reference and is tracked. False if the object has other references afterwards.
    fn resurrected_for(&self, object: usize, quiet: &mut Quiet<'_>, call: impl FnOnce(&mut Quiet<'_>)) -> bool {
        let Some(found) = self.table().object(object, quiet) else { return true };
        found.set_refcnt(1);
        if let Some(found) = found.gc() {
            // Without memory, the object is not tracked meanwhile.
            let _ = self.track_object(found);
        }
        self.holding(object, || call(quiet));
        let Some(found) = self.table().object(object, quiet) else { return false };
        let count = found.refcnt();
        if self.is_immortal(count) {
            return false;
        }
        found.set_refcnt(count - 1);
        if count > 1 {
            return false;
        }
        if let Some(found) = found.gc() {
            self.untrack_object(found, quiet);
        }
        true
    }

    /// Frees an object whose references have been dropped (`tp_free`).
    #[inline]
    fn finish(&self, kind: &Type, mut dying: Dying, quiet: &mut Quiet<'_>) {
        if kind.free_list != 0 {
            match self.keep(kind, dying, quiet) {
                None => return,
                Some(refused) => dying = refused,
            }
        }
        if kind.gc {
            if kind.has_end
                && let Some(object) = dying.object(quiet).gc()
            {
                // A hook may have tracked the object again.
                self.untrack_object(object, quiet);
            }
            self.gc_unlink();
        }
        let object = dying.address();
        self.table().bury(object, quiet);
        // SAFETY: buried just above.
        unsafe { self.free_block(object - kind.presize, quiet) };
    }

    /// Keeps an object's memory for the type's next object. Gives the object back if the type's free list has no room.
    #[cold]
    fn keep(&self, kind: &Type, dying: Dying, quiet: &Quiet<'_>) -> Option<Dying> {
        let mut free = kind.free.borrow_mut();
        if free.len() >= kind.free_list || free.try_reserve(1).is_err() || !self.heap.checked().is_in_own_arena(dying.address()) {
            return Some(dying);
        }
        let object = dying.object(quiet);
        if let Some(object) = object.gc() {
            self.untrack_object(object, quiet);
        }
        self.table().byte_of(object, quiet).set_kept();
        free.push(dying.keep());
        None
    }

    /// `tp_clear` of types without a hook for it: sets every reference to NULL, in order. False if it was interrupted.
    ///
    /// # Safety
    /// There is an object of the type `kind` at `object`, and it keeps its memory meanwhile.
    #[inline(always)]
    pub(crate) unsafe fn clear_references(&self, kind: &Type, object: usize, quiet: &mut Quiet<'_>) -> bool {
        // SAFETY: the caller's promise, also between the references.
        unsafe {
            let first = Object::known(object, quiet).first_run().as_ptr();
            for index in 0..kind.refs.count as usize {
                self.xdecref((*first.add(index)).take(), quiet);
            }
            kind.simple || self.clear_from(object, kind.refs.count as usize, quiet)
        }
    }

    /// Sets the references from index `index` on to NULL; false if it was interrupted.
    ///
    /// # Safety
    /// As for [`clear_references`](Self::clear_references).
    #[inline(never)]
    unsafe fn clear_from(&self, object: usize, mut index: usize, quiet: &mut Quiet<'_>) -> bool {
        // SAFETY: the caller's promise, also between the references.
        while let Some(slot) = unsafe { Object::known(object, quiet) }.reference_at(index) {
            self.xdecref(slot.take(), quiet);
            index += 1;
            if self.is_interrupted_after(1) {
                return false;
            }
        }
        true
    }

    /// Drops the references of the items from index `nitems` on; false if it was interrupted.
    ///
    /// # Safety
    /// As for [`clear_references`](Self::clear_references).
    pub(super) unsafe fn drop_items(&self, kind: &Type, object: usize, nitems: usize, quiet: &mut Quiet<'_>) -> bool {
        if kind.items != Some(super::ItemKind::Object) {
            return true;
        }
        let fields = kind.fields().iter().filter(|field| field.kind == super::FieldKind::Object).count();
        // SAFETY: the caller's promise.
        unsafe { self.clear_from(object, fields + nitems, quiet) }
    }
}
