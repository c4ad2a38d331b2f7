//! What lies at and before an object's address: `PyObject`, `PyVarObject`, `PyGC_Head`, and the fields.
//!
//! Every function is unsafe: it takes the address of an object that was entered into the table, is not buried, and whose memory
//! [`ObjectHeap::create`](super::ObjectHeap) has initialised. Invariants of such memory, which no code outside this crate can write to:
//! 1. `ob_type` points to a type of the heap, which lives as long as the heap.
//! 2. The object is as large as its type says for its `ob_size`, with the type's bytes before it.
//! 3. A field or item that is a reference holds NULL or an address that was an object's when it was put there.

use core::ptr;

use super::types::{ItemKind, Run, Type};

/// `_PyGC_PREV_MASK_FINALIZED`, in the second of the collector's words.
const PREV_FINALIZED: usize = 1;
/// Below the count of references in the second of the collector's words (`_PyGC_PREV_SHIFT`).
const PREV_SHIFT: u32 = 2;

/// A 64-bit word of the modelled CPython. Where our words have 32 bits, an address or a count lies in its lower half.
#[repr(C, align(8))]
pub(crate) struct Slot(pub usize);

const _: () = assert!(size_of::<Slot>() == 8 && cfg!(target_endian = "little"));

#[inline(always)]
fn slot(object: usize, offset: isize) -> *mut Slot {
    ptr::with_exposed_provenance_mut(object.wrapping_add_signed(offset))
}

/// The contents of a slot.
#[inline(always)]
fn word(object: usize, offset: isize) -> *mut usize {
    slot(object, offset).cast()
}

macro_rules! words {
    ($($(#[$doc:meta])* $get:ident $set:ident: $type:ty = $offset:literal)+) => {$(
        $(#[$doc])*
        #[inline(always)]
        pub(crate) unsafe fn $get(object: usize) -> $type {
            // SAFETY: the caller's promise: an object has such a word.
            unsafe { *word(object, $offset).cast() }
        }
        /// Sets it.
        #[inline(always)]
        pub(crate) unsafe fn $set(object: usize, value: $type) {
            // SAFETY: the caller's promise: an object has such a word.
            unsafe { *word(object, $offset).cast() = value };
        }
    )+};
}

words! {
    /// `ob_refcnt`
    refcnt set_refcnt: usize = 0
    /// `ob_size`, of an object whose type has items.
    size set_size: usize = 16
    /// `_gc_next`, of a GC object: 0 when it is not tracked, otherwise one more than its index in its list.
    gc_next set_gc_next: usize = -16
    /// `wr_object`, of a weak reference: the referent, 0 when there is none any more.
    wr_object set_wr_object: usize = 16
    /// `wr_prev`, of a weak reference.
    wr_prev set_wr_prev: usize = 40
    /// `wr_next`, of a weak reference.
    wr_next set_wr_next: usize = 48
    /// `wr_callback`, of a weak reference: its number, 0 when there is none.
    wr_callback set_wr_callback: u64 = 24
}

/// `ob_type`
#[inline(always)]
pub(crate) unsafe fn kind<'heap>(object: usize) -> &'heap Type {
    // SAFETY: invariant 1.
    unsafe { &*ptr::with_exposed_provenance::<Type>(*word(object, 8)) }
}

/// Whether an object is of a type.
#[inline(always)]
pub(crate) unsafe fn is_of(object: usize, kind: &Type) -> bool {
    // SAFETY: the caller's promise.
    unsafe { *word(object, 8) == ptr::from_ref(kind).addr() }
}

/// The first slot of the first run of an object's references.
///
/// # Safety
/// As this module requires; the type is the object's.
#[inline(always)]
pub(crate) unsafe fn first_slot(kind: &Type, object: usize) -> *const Slot {
    slot(object, kind.refs.offset as isize)
}

/// Sets `ob_type`.
#[inline(always)]
pub(crate) unsafe fn set_kind(object: usize, kind: &Type) {
    // SAFETY: the caller's promise.
    unsafe { *word(object, 8) = ptr::from_ref(kind).expose_provenance() };
}

/// `_PyGC_FINALIZED`, of a GC object.
pub(crate) unsafe fn is_finalized(object: usize) -> bool {
    // SAFETY: the caller's promise.
    unsafe { *word(object, -8) & PREV_FINALIZED != 0 }
}

/// `_PyGC_SET_FINALIZED`, of a GC object.
pub(crate) unsafe fn set_finalized(object: usize) {
    // SAFETY: the caller's promise.
    unsafe { *word(object, -8) |= PREV_FINALIZED };
}

/// `gc_get_refs`: the count in the second of the collector's words during a collection.
pub(crate) unsafe fn gc_refs(object: usize) -> isize {
    // SAFETY: the caller's promise.
    unsafe { *word(object, -8) as isize >> PREV_SHIFT }
}

/// `gc_set_refs`
pub(crate) unsafe fn set_gc_refs(object: usize, refs: isize) {
    // SAFETY: the caller's promise.
    unsafe {
        let prev = word(object, -8);
        *prev = *prev & PREV_FINALIZED | (refs << PREV_SHIFT) as usize;
    }
}

/// Clears the collector's words of a GC object.
pub(crate) unsafe fn clear_gc_head(object: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        *word(object, -16) = 0;
        *word(object, -8) = 0;
    }
}

/// The head of the list of weak references to an object of a type that has one.
///
/// # Safety
/// As this module requires; the offset is the type's.
pub(crate) unsafe fn weaklist(object: usize, offset: isize) -> *mut usize {
    word(object, offset)
}

/// How many items an object has.
///
/// # Safety
/// As this module requires; the type is the object's.
#[inline(always)]
pub(crate) unsafe fn nitems(kind: &Type, object: usize) -> usize {
    // SAFETY: the caller's promise: an object with items has an `ob_size`.
    if kind.items.is_some() { unsafe { size(object) } } else { 0 }
}

/// Sets every reference in a field to NULL.
///
/// # Safety
/// As this module requires, of the memory of an object of the type.
pub(crate) unsafe fn clear_fields(kind: &Type, object: usize) {
    let clear = |run: Run| {
        let first = slot(object, run.offset as isize);
        // SAFETY: the caller's promise.
        unsafe { first.write_bytes(0, run.count as usize) };
    };
    clear(kind.refs);
    kind.more_refs().iter().for_each(|&run| clear(run));
}

/// Calls `visit` with every reference of an object that is not NULL: fields in order, then items.
///
/// # Safety
/// As this module requires; the type is the object's. `visit` does not change the object.
#[inline(always)]
pub(crate) unsafe fn each_reference(kind: &Type, object: usize, mut visit: impl FnMut(usize)) {
    // SAFETY: the caller's promise.
    unsafe {
        each_slot(kind, object, |reference| {
            if reference != 0 {
                visit(reference);
            }
        });
    }
}

/// As [`each_reference`], but visits every slot, also those with NULL.
///
/// # Safety
/// As for `each_reference`.
#[inline(always)]
pub(crate) unsafe fn each_slot(kind: &Type, object: usize, mut visit: impl FnMut(usize)) {
    // SAFETY: the caller's promise; invariant 2.
    unsafe {
        each_in_run(object, kind.refs, &mut visit);
        if !kind.simple {
            each_further_slot(kind, object, &mut visit);
        }
    }
}

/// The part of [`each_slot`] after the first run.
///
/// # Safety
/// As this module requires; the type is the object's.
#[inline(never)]
unsafe fn each_further_slot(kind: &Type, object: usize, visit: &mut impl FnMut(usize)) {
    // SAFETY: the caller's promise; by invariant 2 the runs and all items lie within the object.
    unsafe {
        for &run in kind.more_refs() {
            each_in_run(object, run, visit);
        }
        if kind.items == Some(ItemKind::Object) {
            let first = slot(object, kind.items_offset as isize).cast_const();
            let end = first.add(size(object));
            let mut slot = first;
            while slot != end {
                visit((*slot).0);
                slot = slot.add(1);
            }
        }
    }
}

/// # Safety
/// As this module requires; the run is one of the object's type.
#[inline(always)]
unsafe fn each_in_run(object: usize, run: Run, visit: &mut impl FnMut(usize)) {
    let mut slot = slot(object, run.offset as isize).cast_const();
    // SAFETY: called with a run of the object's type.
    unsafe {
        let end = slot.add(run.count as usize);
        while slot != end {
            visit((*slot).0);
            slot = slot.add(1);
        }
    }
}

/// The slot of the reference with this index, counting fields and then items; `None` if the object has fewer. The slot may hold NULL.
///
/// # Safety
/// As this module requires; the type is the object's.
#[inline]
pub(crate) unsafe fn reference_at(kind: &Type, object: usize, index: usize) -> Option<*mut usize> {
    let first = kind.refs.count as usize;
    if index < first {
        return Some(word(object, (kind.refs.offset as usize + index * 8) as isize));
    }
    let mut index = index - first;
    for run in kind.more_refs() {
        let count = run.count as usize;
        if index < count {
            return Some(word(object, (run.offset as usize + index * 8) as isize));
        }
        index -= count;
    }
    // SAFETY: the caller's promise.
    let in_items = kind.items == Some(ItemKind::Object) && index < unsafe { size(object) };
    in_items.then(|| word(object, (kind.items_offset + index * 8) as isize))
}
