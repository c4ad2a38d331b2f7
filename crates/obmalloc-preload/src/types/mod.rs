//! The types of live objects, written at each mark of the program and when finalization begins.
//!
//! | module | what it holds |
//! |---|---|
//! | `lists` | finds the lists in which CPython's collector keeps objects |
//! | `found` | the objects that were found, by address, and how more are found from them |
//! | `names` | the name of a type |
//!
//! # What is certain
//! A block gets a type only if CPython itself takes it for an object: it is in one of the collector's lists, or an object that was found so
//! refers to it. References are those that `tp_traverse` shows to the collector; the keys of a dict, which it leaves out if all are texts
//! (`PyDict_Next`); and the members of a code object, which the collector does not know.
//!
//! The bytes of a block prove nothing: they may be left over from a dead object, or look like an object on purpose. A reference count does
//! not help. A tuple that `_PyTuple_Resize` moves leaves its count, 1, and its type in its old block; the allocator overwrites only the first
//! word, and the next owner of the block need not write to all of it. So no block is judged by its own bytes.
//!
//! An object gets no type if no found object refers to it: for example, if only C code, a running frame, or the kept memory of a dead object
//! holds it. Parts of objects, such as the items of a list or the table of a dict, get no type either.
//!
//! # What it does to the program
//! The same as a collection that finds nothing: it calls `tp_traverse` of every object, with the GIL and outside of the allocator, where the
//! program could call `gc.collect()`. It calls nothing that asks for memory. Only the reference counts of types' names change, and change
//! back.
//!
//! An interpreter with its own allocator gets no types. Neither does a mark by a signal, because its thread may be anywhere.

mod found;
mod lists;
mod names;

use crate::clock::time_of;
use crate::python::{Object, SetOnce, symbol};
use crate::text::Texts;
use crate::{interpreters, peek};
pub use found::Found;
use lists::Root;
use names::Names;
use std::ffi::{CStr, c_int};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Returns whether types are wanted: 1.
pub const VARIABLE: &str = "OBMALLOC_TYPES";

/// Offsets in a type object: the same in every release from 3.8 on.
const NAME: usize = 24;
const FLAGS: usize = 168;
const TRAVERSE: usize = 184;
const MEMBERS: usize = 240;
const DICT: usize = 264;
const IS_GC: usize = 328;

/// `Py_TPFLAGS_HEAPTYPE`, `Py_TPFLAGS_HAVE_GC`, `Py_TPFLAGS_TUPLE_SUBCLASS`, `Py_TPFLAGS_DICT_SUBCLASS`
const HEAP_TYPE: usize = 1 << 9;
const HAVE_GC: usize = 1 << 14;
const IS_TUPLE: usize = 1 << 26;
const IS_DICT: usize = 1 << 29;
/// `Py_TPFLAGS_PREHEADER` of 3.11 and later.
const PRE_HEADER: usize = 1 << 3 | 1 << 4;

/// Bytes before an object: the collector's links, and from 3.11 on two more words before them.
const GC_HEAD: usize = 16;
const WORDS_BEFORE: usize = 16;

/// `PyDict_Next`
type Next = unsafe extern "C" fn(Object, *mut isize, *mut Object, *mut Object) -> c_int;

/// Reads dicts.
#[derive(Clone, Copy)]
struct Dicts(Next);

impl Dicts {
    /// `None` if this CPython does not export what is needed.
    fn find() -> Option<Self> {
        // SAFETY: the function of that name has this type.
        symbol(c"PyDict_Next").map(|next| Self(unsafe { std::mem::transmute::<Object, Next>(next) }))
    }

    /// The keys and values of a dict.
    ///
    /// # Safety
    /// `dict` is a dict. The GIL is held, and nothing changes the dict while the result is used.
    unsafe fn pairs(self, dict: Object) -> impl Iterator<Item = (Object, Object)> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let (mut key, mut value) = (null_mut(), null_mut());
            // SAFETY: the caller's promise.
            let is_there = unsafe { (self.0)(dict, &raw mut at, &raw mut key, &raw mut value) } != 0;
            is_there.then_some((key, value))
        })
    }
}

/// What CPython must export.
struct Known {
    root: Root,
    names: Names,
    dicts: Dicts,
    /// Addresses of types.
    dict: usize,
    frozenset: usize,
    code: usize,
    kind: usize,
    /// The flags of a type whose objects have two more words before them.
    pre_header: usize,
}

static KNOWN: SetOnce<Option<Known>> = SetOnce::new();
static IS_WANTED: AtomicBool = AtomicBool::new(false);

/// When the process began, and how long looks and writing their results have taken since: microseconds.
static BEGIN: AtomicU64 = AtomicU64::new(0);
static SPENT: AtomicU64 = AtomicU64::new(0);
/// The time that looks may always take in all.
const FREE: u64 = 1_000_000;

/// Whether looks that took `spent` of `elapsed` microseconds allow another one at a mark: less than a second, or less than a tenth.
fn is_affordable(spent: u64, elapsed: u64) -> bool {
    spent < FREE || spent < elapsed / 10
}

fn micros() -> u64 {
    time_of(libc::CLOCK_MONOTONIC)
}

/// A word of memory at any address.
///
/// # Safety
/// The word can be read.
#[inline(always)]
unsafe fn word(address: usize) -> usize {
    // SAFETY: the caller's promise.
    unsafe { std::ptr::read_unaligned(address as *const usize) }
}

/// Looks up what this needs of a CPython of this version. The constructor calls it once, if types are wanted.
pub fn set_up(version: &str) {
    let minor = version.strip_prefix("3.").and_then(|rest| rest.split(|char: char| !char.is_ascii_digit()).next()?.parse().ok());
    let known = minor.and_then(Known::find);
    BEGIN.store(micros(), Ordering::Relaxed);
    IS_WANTED.store(known.is_some() && peek::is_possible(), Ordering::Relaxed);
    // SAFETY: one thread, and the program has made no mark yet.
    unsafe { KNOWN.set(known) };
}

impl Known {
    fn find(minor: u32) -> Option<Self> {
        let address = |name: &CStr| symbol(name).map(|at| at as usize);
        Some(Self {
            root: Root::find(minor)?,
            names: Names::find(minor)?,
            dicts: Dicts::find()?,
            dict: address(c"PyDict_Type")?,
            frozenset: address(c"PyFrozenSet_Type")?,
            code: address(c"PyCode_Type")?,
            kind: address(c"PyType_Type")?,
            pre_header: if minor >= 11 { PRE_HEADER } else { 0 },
        })
    }

    /// Bytes before an object of a type with these flags.
    fn before(&self, flags: usize) -> usize {
        let is = |flag| flags & flag != 0;
        (if is(HAVE_GC) { GC_HEAD } else { 0 }) + (if is(self.pre_header) { WORDS_BEFORE } else { 0 })
    }
}

/// As [`look_anyway`], at a mark. Also `None` if looks would take [too much](is_affordable) of the program's time.
///
/// # Safety
/// As of [`look_anyway`].
pub unsafe fn look(texts: &Texts) -> Option<Found<'_>> {
    let elapsed = micros().saturating_sub(BEGIN.load(Ordering::Relaxed));
    // SAFETY: the caller's promise.
    if is_affordable(SPENT.load(Ordering::Relaxed), elapsed) { unsafe { look_anyway(texts) } } else { None }
}

/// Finds the live objects. `None` if types are not wanted, or cannot be found.
///
/// # Safety
/// This thread has the GIL, the allocator is in no call, and the program could call `gc.collect()` here.
pub unsafe fn look_anyway(texts: &Texts) -> Option<Found<'_>> {
    if !IS_WANTED.load(Ordering::Relaxed) || interpreters::present() != 0 {
        return None;
    }
    // SAFETY: set before types are wanted; the rest is the caller's promise.
    unsafe {
        let known = KNOWN.get().as_ref()?;
        let heads = known.root.heads(known.kind)?;
        let mut found = Found::new(known, texts)?;
        for head in heads.into_iter().filter(|head| *head != 0) {
            lists::each(head, |object| found.follow(object));
        }
        found.is_whole().then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_take_a_second_and_no_more_than_a_tenth_of_the_time() {
        assert!(is_affordable(0, 0) && is_affordable(FREE - 1, FREE));
        assert!(!is_affordable(FREE, 10 * FREE) && is_affordable(FREE, 10 * FREE + 10));
        assert!(!is_affordable(60 * FREE, 600 * FREE) && is_affordable(60 * FREE, 601 * FREE));
    }
}
