//! Destroying an object (`tp_dealloc`, as `subtype_dealloc` does it), and dropping its references.
//!
//! CPython destroys what an object refers to inside the destruction of the object, by recursion. Here the order is the same, but objects
//! whose destruction waits for that of others are in a list, so that a chain may have any length.

use super::{ObjectHeap, Type, header, table};
use crate::interrupt::STRIDE;
use crate::profile::Counted;

/// In place of an object: none found yet, and there are more references to look at.
const NONE_YET: usize = 0;

/// An object whose references are being dropped, and which of them is next.
pub(crate) struct Dying {
    object: usize,
    next: usize,
}

impl ObjectHeap {
    /// `Py_DECREF`. Returns whether the reference was the last one; a finalizer may have resurrected the object since.
    ///
    /// # Safety
    /// `object` is an object whose destruction has not begun, and it has a reference to give back.
    #[inline]
    pub(crate) unsafe fn decref_object(&self, object: usize) -> bool {
        // SAFETY: the caller's promise.
        let last = unsafe { self.drop_reference(object) };
        if last {
            self.destroy(object, self.table().place(object));
        }
        last
    }

    /// Drops a reference that was in a field; 0 is NULL.
    ///
    /// # Safety
    /// The reference was in a field.
    #[inline(always)]
    pub(crate) unsafe fn xdecref(&self, reference: usize) {
        if reference == 0 {
            return;
        }
        let at = self.table().place(reference);
        // SAFETY: looked up, because the object may have been freed since it was put there, against the rules (`gc_del`).
        unsafe {
            if table::is_alive(*at) && self.drop_reference(reference) {
                self.destroy(reference, at);
            }
        }
    }

    /// Counts one reference less. Returns whether it was the last one.
    ///
    /// # Safety
    /// As for [`decref_object`](Self::decref_object).
    #[inline]
    unsafe fn drop_reference(&self, object: usize) -> bool {
        // SAFETY: the caller's promise.
        unsafe {
            let count = header::refcnt(object);
            if self.is_immortal(count) {
                return false;
            }
            debug_assert!(count > 0, "an object without references has been destroyed");
            if count == 1 && self.is_held(object) {
                return false;
            }
            header::set_refcnt(object, count - 1);
            count == 1
        }
    }

    /// Destroys an object that has no references left, and every object whose last reference goes with it, depth first. `at` is the object's
    /// byte of the table, or null if its destruction has begun already.
    ///
    /// Never inlined: most dropped references are not the last one, and then its registers are not needed.
    #[inline(never)]
    fn destroy(&self, object: usize, at: *mut u8) {
        // SAFETY: the byte is the object's.
        if !at.is_null() && !unsafe { self.begin_end(object, at) } {
            return;
        }
        let base = self.state().dying.len();
        let mut current = Dying { object, next: 0 };
        loop {
            // SAFETY: an object whose destruction has begun keeps its memory until `finish`.
            let kind = unsafe { header::kind(current.object) };
            // SAFETY: as above.
            if let Some(reference) = unsafe { self.drop_references(kind, &mut current) } {
                if reference != NONE_YET {
                    current = self.postpone(current, Dying { object: reference, next: 0 });
                }
                if self.is_interrupted_after(1) {
                    return self.put_off(base, current);
                }
                continue;
            }
            self.finish(kind, current.object);
            let dying = &mut self.state().dying;
            let waiting = if dying.len() > base { dying.pop() } else { self.take_from_trash() };
            match waiting {
                Some(waiting) => current = waiting,
                None => break,
            }
            if self.is_interrupted_after(1) {
                return self.put_off(base, current);
            }
        }
    }

    /// Puts the objects of an interrupted destruction into the trash. The next destruction or collection goes on with them.
    #[cold]
    fn put_off(&self, base: usize, current: Dying) {
        for place in base..self.state().dying.len() {
            self.throw_away(self.state().dying[place].object);
        }
        self.state().dying.truncate(base);
        self.throw_away(current.object);
    }

    /// Goes on with the destruction of the objects in the trash.
    #[cold]
    pub(crate) fn take_up_trash(&self) {
        if let Some(waiting) = self.take_from_trash() {
            self.destroy(waiting.object, core::ptr::null_mut());
        }
    }

    /// Drops an object's references, up to the first that was the last one of another object. Returns that object, whose destruction has begun;
    /// or [`NONE_YET`] after many references; or `None` when all are dropped.
    ///
    /// # Safety
    /// The object has the type `kind`, and its destruction has begun.
    #[inline]
    unsafe fn drop_references(&self, kind: &Type, current: &mut Dying) -> Option<usize> {
        let count = kind.refs.count as usize;
        // SAFETY: the caller's promise; invariants 2 and 3 of headers. Each reference is taken out before anything else can happen.
        unsafe {
            let first = header::first_slot(kind, current.object).cast_mut();
            while current.next < count {
                let reference = core::mem::take(&mut (*first.add(current.next)).0);
                current.next += 1;
                if reference != 0 && self.drop_last(reference) {
                    return Some(reference);
                }
            }
        }
        if kind.simple {
            return None;
        }
        let begin = current.next;
        // SAFETY: as above.
        while let Some(slot) = unsafe { header::reference_at(kind, current.object, current.next) } {
            // SAFETY: as above.
            let reference = core::mem::take(unsafe { &mut *slot });
            current.next += 1;
            // SAFETY: it was in the field.
            if reference != 0 && unsafe { self.drop_last(reference) } {
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
    ///
    /// # Safety
    /// The reference was in a field.
    #[inline]
    unsafe fn drop_last(&self, reference: usize) -> bool {
        let at = self.table().place(reference);
        // SAFETY: looked up; the byte is the object's.
        unsafe { table::is_alive(*at) && self.drop_reference(reference) && self.begin_end(reference, at) }
    }

    /// Lets an object wait until another one, `first`, has been destroyed, and returns the one to go on with: `first`. Without memory, `first`
    /// goes into the trash and `waiting` is returned; CPython does so when calls are nested too deep.
    #[inline]
    fn postpone(&self, waiting: Dying, first: Dying) -> Dying {
        let state = self.state();
        if state.dying.try_reserve(1).is_ok() {
            state.dying.push(waiting);
            return first;
        }
        self.throw_away(first.object);
        waiting
    }

    /// Puts an object whose destruction has begun into the trash.
    fn throw_away(&self, object: usize) {
        let state = self.state();
        // SAFETY: an object without references; its count now has the address of the next object in the trash.
        unsafe { header::set_refcnt(object, state.trash) };
        state.trash = object;
    }

    /// Takes an object out of the trash (`_PyTrash_thread_destroy_chain`).
    #[inline]
    fn take_from_trash(&self) -> Option<Dying> {
        let state = self.state();
        let object = state.trash;
        if object == 0 {
            return None;
        }
        // SAFETY: `throw_away` put it there.
        unsafe {
            state.trash = header::refcnt(object);
            header::set_refcnt(object, 0);
        }
        Some(Dying { object, next: 0 })
    }

    /// Does what comes before an object's references are dropped. False if the object was resurrected.
    ///
    /// # Safety
    /// `at` is the byte of the object, which has no references left.
    #[inline]
    unsafe fn begin_end(&self, object: usize, at: *mut u8) -> bool {
        // SAFETY: the caller's promise.
        unsafe {
            let kind = header::kind(object);
            if kind.gc {
                self.untrack_at(object, at);
            }
            if kind.has_end {
                return self.run_end(kind, object);
            }
            *at = table::DYING;
        }
        true
    }

    #[cold]
    fn run_end(&self, kind: &Type, object: usize) -> bool {
        let id = kind.id();
        if kind.is_weakref() {
            // First, because a hook runs when the callback is dropped.
            self.table().set(object, table::DYING);
            self.clear_weakref(object);
            return true;
        }
        if kind.hooks.finalize && !self.call_finalizer_from_dealloc(kind, object) {
            return false;
        }
        let state = self.table().state(object);
        self.table().set(object, table::DYING);
        if kind.weaklist.is_some() {
            self.clear_weakrefs(kind, object);
        }
        if kind.hooks.del {
            self.table().set(object, state);
            if !self.resurrected_for(kind, object, || self.hooks.del(self, id, object)) {
                return false;
            }
            self.table().set(object, table::DYING);
            if let Some(offset) = kind.weaklist {
                // `tp_del` may have made weak references.
                self.clear_weakrefs_silently(object, offset);
            }
        }
        if kind.hooks.dealloc {
            self.in_hook(|| self.hooks.dealloc(self, id, object));
        }
        true
    }

    /// `PyObject_CallFinalizerFromDealloc`; false if the object was resurrected.
    fn call_finalizer_from_dealloc(&self, kind: &Type, object: usize) -> bool {
        // An object without the collector's words has no bit for the mark: its finalizer is called whenever it loses its last reference.
        // SAFETY: the caller gives an object of the type.
        if kind.gc && unsafe { header::is_finalized(object) } {
            if self.rules.counted == Counted::Tracking {
                // CPython tracks the object during this check. That counts, and may trigger a collection.
                let _ = self.track_object(object);
                self.untrack_object(object);
            }
            return true;
        }
        self.resurrected_for(kind, object, || {
            self.hooks.finalize(self, kind.id(), object);
            if kind.gc {
                // SAFETY: the reference that `resurrected_for` added keeps the object.
                unsafe { header::set_finalized(object) };
            }
        })
    }

    /// Runs `call` while the object has one reference and is tracked. False if the object has other references afterwards.
    fn resurrected_for(&self, kind: &Type, object: usize, call: impl FnOnce()) -> bool {
        // SAFETY: the caller gives an object whose references are gone.
        unsafe { header::set_refcnt(object, 1) };
        if kind.gc {
            // Without memory, the object is not tracked meanwhile.
            let _ = self.track_object(object);
        }
        self.holding(object, || self.in_hook(call));
        // SAFETY: the reference added above keeps it.
        let count = unsafe { header::refcnt(object) };
        if self.is_immortal(count) {
            return false;
        }
        // SAFETY: as above.
        unsafe { header::set_refcnt(object, count - 1) };
        if count > 1 {
            return false;
        }
        if kind.gc {
            self.untrack_object(object);
        }
        true
    }

    /// Frees an object whose references have been dropped (`tp_free`).
    #[inline]
    fn finish(&self, kind: &Type, object: usize) {
        if kind.free_list != 0 && self.keep(kind, object) {
            return;
        }
        if kind.gc {
            if kind.has_end {
                // A hook may have tracked the object again.
                self.untrack_object(object);
            }
            self.gc_unlink();
        }
        self.table().bury(object);
        self.free_block(object - kind.presize);
    }

    /// Keeps an object's memory for the type's next object, if the type's free list has room.
    #[cold]
    fn keep(&self, kind: &Type, object: usize) -> bool {
        let mut free = kind.free.borrow_mut();
        if free.len() >= kind.free_list || free.try_reserve(1).is_err() || !self.heap.checked().is_in_own_arena(object) {
            return false;
        }
        if kind.gc {
            self.untrack_object(object);
        }
        self.table().set(object, table::KEPT);
        free.push(object);
        true
    }

    /// `tp_clear` of types without a hook for it: sets every reference to NULL, in order. False if it was interrupted.
    ///
    /// # Safety
    /// `object` has the type `kind`, and a reference that keeps it.
    #[inline(always)]
    pub(crate) unsafe fn clear_references(&self, kind: &Type, object: usize) -> bool {
        // SAFETY: the caller's promise, also between the references.
        unsafe {
            let first = header::first_slot(kind, object).cast_mut();
            for index in 0..kind.refs.count as usize {
                self.xdecref(core::mem::take(&mut (*first.add(index)).0));
            }
            kind.simple || self.clear_from(kind, object, kind.refs.count as usize)
        }
    }

    /// Sets the references from index `index` on to NULL; false if it was interrupted.
    ///
    /// # Safety
    /// As for [`clear_references`](Self::clear_references).
    #[inline(never)]
    unsafe fn clear_from(&self, kind: &Type, object: usize, mut index: usize) -> bool {
        // SAFETY: the caller's promise, also between the references.
        unsafe {
            while let Some(slot) = header::reference_at(kind, object, index) {
                self.xdecref(core::mem::take(&mut *slot));
                index += 1;
                if self.is_interrupted_after(1) {
                    return false;
                }
            }
        }
        true
    }

    /// Drops the references of the items from index `nitems` on; false if it was interrupted.
    pub(super) fn drop_items(&self, kind: &Type, object: usize, nitems: usize) -> bool {
        if kind.items != Some(super::ItemKind::Object) {
            return true;
        }
        let fields = kind.fields().iter().filter(|field| field.kind == super::FieldKind::Object).count();
        // SAFETY: the caller has looked the object up, and the reference that it was given keeps it.
        unsafe { self.clear_from(kind, object, fields + nitems) }
    }
}
