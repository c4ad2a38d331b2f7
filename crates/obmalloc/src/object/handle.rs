//! The handle of an object, and through it what lies at and before the object's address: `PyObject`, `PyVarObject`, `PyGC_Head`, the fields.
//!
//! A handle borrows a [`Quiet`]. Every function that may destroy an object takes the `Quiet` as `&mut`. So the compiler refuses code that uses a
//! handle after its object may have gone, and the methods of handles are safe. Handles come from the [table](super::table), which knows all
//! objects; where a caller knows that there is one, from [`Object::known`].
//!
//! Invariants of an object's memory, which no code outside this crate can write to:
//! 1. `ob_type` points to a type of the heap, which lives as long as the heap.
//! 2. The object is as large as its type says for its `ob_size`, with the type's bytes before it.
//! 3. A field or item that is a reference holds NULL or an address that was an object's when it was put there.
//! 4. The list of weak references of an object, and the links of a weak reference, hold 0 or the address of a weak reference.
//! 5. A weak reference holds 0 or the address of an object whose list it is in, or of one that is being destroyed.

use core::cell::Cell;
use core::marker::PhantomData;
use core::ops::Deref;
use core::{ptr, slice};

use super::ObjectHeap;
use super::types::{ItemKind, Run, Type};

/// While it is borrowed, no object is made or destroyed, and no hook runs but [`traverse`](super::Hooks::traverse), which can only look.
///
/// Each public function of a heap that reads objects makes one, and passes it on. A function that may make or destroy objects, or run hooks,
/// takes it as `&mut`. [`ObjectHeap::in_hook`] lends it for the length of a hook, so that the functions that the hook calls can make their own.
/// Debug builds check that no second `Quiet` exists. Several may exist while the heap only accepts calls that change nothing.
pub(crate) struct Quiet<'heap> {
    /// The heap's flag "a `Quiet` exists", and its earlier value, which `drop` puts back.
    #[cfg(debug_assertions)]
    taken: (&'heap Cell<bool>, bool),
    heap: PhantomData<&'heap ObjectHeap>,
}

#[cfg(debug_assertions)]
impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        let (taken, before) = self.taken;
        taken.set(before);
    }
}

impl ObjectHeap {
    /// For a public function.
    #[inline(always)]
    pub(crate) fn quiet(&self) -> Quiet<'_> {
        Quiet {
            #[cfg(debug_assertions)]
            taken: {
                let before = self.taken.replace(true);
                let only_looks = self.mode().get() != crate::heap::Mode::Open;
                assert!(!before || only_looks, "a function of the heap passes on the one that there is");
                (&self.taken, before)
            },
            heap: PhantomData,
        }
    }

    /// The type of an object, which lives as long as the heap.
    #[inline(always)]
    pub(crate) fn kind_of(&self, object: Object<'_>) -> &Type {
        // SAFETY: invariant 1.
        unsafe { &*ptr::from_ref(object.kind()) }
    }
}

impl Quiet<'_> {
    /// Runs something during which functions may be called from outside.
    #[inline(always)]
    pub(super) fn lend<T>(&mut self, run: impl FnOnce() -> T) -> T {
        #[cfg(debug_assertions)]
        self.taken.0.set(false);
        let result = run();
        #[cfg(debug_assertions)]
        self.taken.0.set(true);
        result
    }
}

/// A 64-bit word of the modelled CPython. Where our words have 32 bits, an address or a count lies in its lower half.
#[repr(C, align(8))]
pub(crate) struct Slot(Cell<usize>);

const _: () = assert!(size_of::<Slot>() == 8 && cfg!(target_endian = "little"));

impl Deref for Slot {
    type Target = Cell<usize>;

    #[inline(always)]
    fn deref(&self) -> &Cell<usize> {
        &self.0
    }
}

/// An object, also one that is being destroyed.
#[derive(Clone, Copy)]
pub(crate) struct Object<'quiet> {
    address: usize,
    quiet: PhantomData<&'quiet Quiet<'quiet>>,
}

/// An object of a GC type.
#[derive(Clone, Copy)]
pub(crate) struct GcObject<'quiet>(Object<'quiet>);

/// A weak reference.
#[derive(Clone, Copy)]
pub(crate) struct WeakRef<'quiet>(GcObject<'quiet>);

/// The list of weak references to an object.
#[derive(Clone, Copy)]
pub(crate) struct WeakList<'quiet>(&'quiet Slot);

impl<'quiet> Deref for GcObject<'quiet> {
    type Target = Object<'quiet>;

    #[inline(always)]
    fn deref(&self) -> &Object<'quiet> {
        &self.0
    }
}

impl<'quiet> Deref for WeakRef<'quiet> {
    type Target = GcObject<'quiet>;

    #[inline(always)]
    fn deref(&self) -> &GcObject<'quiet> {
        &self.0
    }
}

/// Words that every handle of its kind has, each at its offset from the object.
macro_rules! words {
    ($($(#[$doc:meta])* $vis:vis $get:ident $set:ident = $offset:expr)+) => {$(
        $(#[$doc])*
        #[inline(always)]
        $vis fn $get(self) -> usize {
            // SAFETY: an object of this kind has such a word (invariant 2).
            unsafe { self.slot($offset).get() }
        }
        /// Sets it.
        #[inline(always)]
        $vis fn $set(self, value: usize) {
            // SAFETY: as above.
            unsafe { self.slot($offset).set(value) };
        }
    )+};
}

impl<'quiet> Object<'quiet> {
    words! {
        /// `ob_refcnt`
        pub refcnt set_refcnt = 0
    }

    /// The object at an address, for a caller that knows that there is one.
    ///
    /// # Safety
    /// There is an object of the `Quiet`'s heap: its memory is as the invariants say, and has not been given back.
    #[inline(always)]
    pub unsafe fn known(address: usize, _: &'quiet Quiet<'_>) -> Self {
        // SAFETY: the caller's promise; the `Quiet` is borrowed for `'quiet`.
        unsafe { Self::unbound(address) }
    }

    /// As [`known`](Self::known), where there is no `Quiet` to borrow.
    ///
    /// # Safety
    /// As there, and the object is not destroyed during `'quiet`.
    #[inline(always)]
    pub unsafe fn unbound(address: usize) -> Self {
        Self { address, quiet: PhantomData }
    }

    /// Makes an object with one reference and `nitems` items: writes its header (`PyObject_InitVar`), and clears the collector's words. The
    /// contents of fields and items are the caller's to set.
    ///
    /// # Safety
    /// There is room for an object of the type and the type's bytes before it, and no other object.
    #[inline(always)]
    pub unsafe fn make(address: usize, kind: &Type, nitems: usize, quiet: &'quiet Quiet<'_>) -> Self {
        // SAFETY: the caller's promise. The memory may not be initialised, so nothing is read before it is written, not even by a cell.
        unsafe {
            write(address, 0, 1);
            set_kind(address, kind);
            if kind.items.is_some() {
                write(address, 16, nitems);
            }
            if kind.gc {
                write(address, -16, 0);
                write(address, -8, 0);
            }
            Self::known(address, quiet)
        }
    }

    /// Sets every reference in a field of a new object to NULL, and empties its list of weak references.
    pub fn clear_fields(self) {
        let kind = self.kind();
        // SAFETY: invariant 2: the runs and the list lie within the object. They may not be initialised.
        unsafe {
            let clear = |run: Run| slot_at(self.address, run.offset as isize).write_bytes(0, run.count as usize);
            clear(kind.refs);
            kind.more_refs().iter().for_each(|&run| clear(run));
            if let Some(offset) = kind.weaklist {
                write(self.address, offset, 0);
            }
        }
    }

    #[inline(always)]
    pub fn address(self) -> usize {
        self.address
    }

    /// The slot at an offset.
    ///
    /// # Safety
    /// It lies within the object or the bytes before it.
    #[inline(always)]
    unsafe fn slot(self, offset: isize) -> &'quiet Slot {
        // SAFETY: the caller's promise; the object keeps its memory for `'quiet`.
        unsafe { &*slot_at(self.address, offset) }
    }

    /// Slots that lie side by side.
    ///
    /// # Safety
    /// They lie within the object.
    #[inline(always)]
    unsafe fn slots(self, offset: usize, count: usize) -> &'quiet [Slot] {
        // SAFETY: as for `slot`.
        unsafe { slice::from_raw_parts(ptr::with_exposed_provenance(self.address + offset), count) }
    }

    /// `ob_type`
    #[inline(always)]
    pub fn kind(self) -> &'quiet Type {
        // SAFETY: invariants 2 and 1.
        unsafe { &*ptr::with_exposed_provenance::<Type>(self.slot(8).get()) }
    }

    /// Whether it is of a type.
    #[inline(always)]
    pub fn is_of(self, kind: &Type) -> bool {
        ptr::eq(self.kind(), kind)
    }

    /// It as an object with the collector's words, if its type is a GC type.
    #[inline(always)]
    pub fn gc(self) -> Option<GcObject<'quiet>> {
        self.kind().gc.then_some(GcObject(self))
    }

    /// It as a weak reference, if it is one.
    #[inline(always)]
    pub fn weakref(self) -> Option<WeakRef<'quiet>> {
        self.kind().is_weakref().then_some(WeakRef(GcObject(self)))
    }

    /// The list of weak references to it, if its type has one.
    #[inline(always)]
    pub fn weaklist(self) -> Option<WeakList<'quiet>> {
        // SAFETY: invariant 2; the offset is the type's.
        self.kind().weaklist.map(|offset| WeakList(unsafe { self.slot(offset) }))
    }

    /// How many items it has (`ob_size`).
    #[inline(always)]
    pub fn nitems(self) -> usize {
        // SAFETY: invariant 2: an object with items has an `ob_size`.
        if self.kind().items.is_some() { unsafe { self.slot(16).get() } } else { 0 }
    }

    /// Sets `ob_size`, of an object whose type has items.
    ///
    /// # Safety
    /// The object is as large as its type says for so many items, and those that are references hold NULL or an object.
    pub unsafe fn set_nitems(self, nitems: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.slot(16).set(nitems) };
    }

    /// A run of its references.
    ///
    /// # Safety
    /// It is a run of the object's type.
    #[inline(always)]
    pub unsafe fn run(self, run: Run) -> &'quiet [Slot] {
        // SAFETY: invariant 2.
        unsafe { self.slots(run.offset as usize, run.count as usize) }
    }

    /// The first run of its references.
    #[inline(always)]
    pub fn first_run(self) -> &'quiet [Slot] {
        // SAFETY: its type's.
        unsafe { self.run(self.kind().refs) }
    }

    /// Calls `visit` with every reference that is not NULL: fields in order, then items.
    #[inline(always)]
    pub fn each_reference(self, mut visit: impl FnMut(usize)) {
        let mut visit =
            |slots: &[Slot]| slots.iter().map(|slot| slot.get()).filter(|&reference| reference != 0).for_each(&mut visit);
        visit(self.first_run());
        if !self.kind().simple {
            self.each_further_run(&mut visit);
        }
    }

    /// The part of [`each_reference`](Self::each_reference) after the first run.
    #[inline(never)]
    fn each_further_run(self, visit: &mut impl FnMut(&[Slot])) {
        let kind = self.kind();
        for &run in kind.more_refs() {
            // SAFETY: a run of its type.
            visit(unsafe { self.run(run) });
        }
        if kind.items == Some(ItemKind::Object) {
            // SAFETY: invariant 2.
            visit(unsafe { self.slots(kind.items_offset, self.nitems()) });
        }
    }

    /// The slot of the reference with this index, counting fields and then items; `None` if the object has fewer.
    #[inline]
    pub fn reference_at(self, index: usize) -> Option<&'quiet Slot> {
        let kind = self.kind();
        let first = kind.refs.count as usize;
        if index < first {
            return self.first_run().get(index);
        }
        let mut index = index - first;
        for &run in kind.more_refs() {
            // SAFETY: a run of its type.
            if let Some(slot) = unsafe { self.run(run) }.get(index) {
                return Some(slot);
            }
            index -= run.count as usize;
        }
        if kind.items != Some(ItemKind::Object) {
            return None;
        }
        // SAFETY: invariant 2.
        unsafe { self.slots(kind.items_offset, self.nitems()) }.get(index)
    }
}

#[inline(always)]
fn slot_at(address: usize, offset: isize) -> *mut Slot {
    ptr::with_exposed_provenance_mut(address.wrapping_add_signed(offset))
}

/// Writes a word of memory that may not be initialised.
///
/// # Safety
/// There is room for it.
#[inline(always)]
unsafe fn write(address: usize, offset: isize, value: usize) {
    // SAFETY: the caller's promise.
    unsafe { slot_at(address, offset).cast::<usize>().write(value) };
}

/// Sets `ob_type`.
///
/// # Safety
/// There is room for it.
#[inline(always)]
pub(super) unsafe fn set_kind(address: usize, kind: &Type) {
    // SAFETY: the caller's promise.
    unsafe { write(address, 8, ptr::from_ref(kind).expose_provenance()) };
}

/// `_PyGC_PREV_MASK_FINALIZED`, in the second of the collector's words.
const PREV_FINALIZED: usize = 1;
/// Below the count of references in the second of the collector's words (`_PyGC_PREV_SHIFT`).
const PREV_SHIFT: u32 = 2;

impl<'quiet> GcObject<'quiet> {
    words! {
        /// `_gc_next`: 0 when it is not tracked, otherwise one more than its index in its list.
        pub gc_next set_gc_next = -16
        /// `_gc_prev`
        gc_prev set_gc_prev = -8
    }

    /// The object of a GC type at an address, for a caller that knows that there is one.
    ///
    /// # Safety
    /// As for [`Object::known`]; its type is a GC type, as that of every tracked object is.
    #[inline(always)]
    pub unsafe fn known(address: usize, quiet: &'quiet Quiet<'_>) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { Object::known(address, quiet) })
    }

    /// As [`Object::unbound`], of a GC type.
    ///
    /// # Safety
    /// As there and for [`known`](Self::known).
    #[inline(always)]
    pub unsafe fn unbound(address: usize) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { Object::unbound(address) })
    }

    /// `_PyGC_FINALIZED`
    pub fn is_finalized(self) -> bool {
        self.gc_prev() & PREV_FINALIZED != 0
    }

    /// `_PyGC_SET_FINALIZED`
    pub fn set_finalized(self) {
        self.set_gc_prev(self.gc_prev() | PREV_FINALIZED);
    }

    /// `gc_get_refs`: the count in the second of the collector's words during a collection.
    pub fn gc_refs(self) -> isize {
        self.gc_prev() as isize >> PREV_SHIFT
    }

    /// `gc_set_refs`
    pub fn set_gc_refs(self, refs: isize) {
        self.set_gc_prev(self.gc_prev() & PREV_FINALIZED | (refs << PREV_SHIFT) as usize);
    }
}

// Offsets of a weak reference's words.
const WR_OBJECT: isize = 16;
const WR_CALLBACK: isize = 24;
const WR_PREV: isize = 40;
const WR_NEXT: isize = 48;

impl<'quiet> WeakRef<'quiet> {
    words! {
        /// `wr_object`: the referent, 0 when there is none any more.
        wr_object set_wr_object = WR_OBJECT
        /// `wr_prev`
        wr_prev set_wr_prev = WR_PREV
        /// `wr_next`
        wr_next set_wr_next = WR_NEXT
    }

    /// The weak reference at an address, for a caller that knows that there is one.
    ///
    /// # Safety
    /// As for [`Object::known`].
    #[inline]
    pub unsafe fn known(address: usize, quiet: &'quiet Quiet<'_>) -> Self {
        // SAFETY: the caller's promise; the type of weak references is a GC type.
        Self(unsafe { GcObject::known(address, quiet) })
    }

    /// A new weak reference, without a referent, a callback and links.
    ///
    /// # Safety
    /// As for [`Object::known`]; it was made just now.
    pub unsafe fn blank(address: usize, quiet: &'quiet Quiet<'_>) -> Self {
        // SAFETY: the caller's promise. The words are written before one is read.
        unsafe {
            for offset in [WR_OBJECT, WR_CALLBACK, WR_PREV, WR_NEXT] {
                slot_at(address, offset).write_bytes(0, 1);
            }
            Self::known(address, quiet)
        }
    }

    /// What a link or the head of a list leads to.
    ///
    /// # Safety
    /// It is 0 or the address of a weak reference.
    #[inline]
    unsafe fn linked(link: usize) -> Option<Self> {
        // SAFETY: the caller's promise; the weak reference that links to it borrows the `Quiet`.
        (link != 0).then(|| Self(unsafe { GcObject::unbound(link) }))
    }

    /// The referent, `None` when there is none any more.
    pub fn referent(self) -> Option<Object<'quiet>> {
        let address = self.wr_object();
        // SAFETY: invariant 5; the weak reference borrows the `Quiet`.
        (address != 0).then(|| unsafe { Object::unbound(address) })
    }

    /// Sets the referent.
    pub fn set_referent(self, referent: Option<Object<'_>>) {
        self.set_wr_object(referent.map_or(0, Object::address));
    }

    /// The one before it in its list.
    pub fn previous(self) -> Option<Self> {
        // SAFETY: invariant 4.
        unsafe { Self::linked(self.wr_prev()) }
    }

    /// The one behind it in its list.
    pub fn next(self) -> Option<Self> {
        // SAFETY: invariant 4.
        unsafe { Self::linked(self.wr_next()) }
    }

    /// Sets the one before it.
    pub fn set_previous(self, previous: Option<WeakRef<'_>>) {
        self.set_wr_prev(link_to(previous));
    }

    /// Sets the one behind it.
    pub fn set_next(self, next: Option<WeakRef<'_>>) {
        self.set_wr_next(link_to(next));
    }

    /// `wr_callback`: the callback's number, 0 when there is none.
    pub fn callback(self) -> u64 {
        self.callback_word().get()
    }

    /// Sets the callback.
    pub fn set_callback(self, callback: u64) {
        self.callback_word().set(callback);
    }

    fn callback_word(self) -> &'quiet Cell<u64> {
        // SAFETY: a weak reference has such a word, and keeps its memory for `'quiet`.
        unsafe { &*slot_at(self.address(), WR_CALLBACK).cast() }
    }
}

fn link_to(reference: Option<WeakRef<'_>>) -> usize {
    reference.map_or(0, |reference| reference.address())
}

impl<'quiet> WeakList<'quiet> {
    /// The first one.
    pub fn first(self) -> Option<WeakRef<'quiet>> {
        // SAFETY: invariant 4.
        unsafe { WeakRef::linked(self.0.get()) }
    }

    /// The *basic* one, which has no callback and is shared: always the first.
    pub fn basic(self) -> Option<WeakRef<'quiet>> {
        self.first().filter(|first| first.callback() == 0)
    }

    /// Sets the first one.
    pub fn set_first(self, first: Option<WeakRef<'_>>) {
        self.0.set(link_to(first));
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use alloc::boxed::Box;

    use crate::object::{NoHooks, ObjectHeap, TypeSpec};
    use crate::{HeapOptions, profile};

    #[test]
    #[should_panic(expected = "passes on the one that there is")]
    fn no_second_quiet_is_made_beside_the_first() {
        let heap = ObjectHeap::new(HeapOptions::new(&profile::V3_13), Box::new(NoHooks)).unwrap();
        let _quiet = heap.quiet();
        let _ = heap.define_type(TypeSpec::default());
    }
}
