//! What types live objects have, told where the program makes a mark and where finalization begins.
//!
//! | module | what it holds |
//! |---|---|
//! | `lists` | the lists in which CPython's collector keeps objects: where they begin |
//! | `found` | the objects that were found, by address, and how one leads to others |
//! | `names` | what a type is called |
//!
//! # What is certain
//! A block is named only if CPython itself takes it for an object: its collector has it in a list, or an object that does has a reference to
//! it. References are those that `tp_traverse` shows to the collector; the keys of a dict, which it leaves out where they are all texts
//! (`PyDict_Next`); and the members of a code object, which the collector does not know.
//!
//! Bytes of a block say nothing: what looks like an object may be left over from one that died, or be written there on purpose. A reference
//! count is no help. A tuple that `_PyTuple_Resize` moves leaves its count, 1, and its type in the block that it leaves; the allocator
//! writes over the first word only, and the next owner of the block need not write to all of it. So no block is looked at by itself.
//!
//! Objects that nothing leads to have no name: those that only C code, a frame that runs, or a dead object's kept memory holds. Nor have the
//! parts of objects that are no objects: the items of a list, the table of a dict.
//!
//! # What it does to the program
//! The same as a collection that finds nothing: `tp_traverse` is called for every object, with the GIL and outside of the allocator, where
//! the program could call `gc.collect()`. Nothing is called that asks for memory, and no count changes but those of texts that types have for
//! names, and back again.
//!
//! An interpreter with an allocator of its own has no types, nor has a mark that a signal makes: that thread may be anywhere.

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
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Says whether types are wanted: 1.
pub const VARIABLE: &str = "OBMALLOC_TYPES";

/// Where a type object has what is read of it: the same in every release from 3.8 on.
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

/// Bytes before an object: the collector's links, and from 3.11 on two words before these.
const GC_HEAD: usize = 16;
const WORDS_BEFORE: usize = 16;

/// `PyDict_Next`
type DictNext = unsafe extern "C" fn(Object, *mut isize, *mut Object, *mut Object) -> c_int;

/// What CPython has to show.
struct Known {
    root: Root,
    names: Names,
    dict_next: DictNext,
    /// Addresses of types.
    dict: usize,
    frozenset: usize,
    code: usize,
    kind: usize,
    /// The flags of a type whose objects have two words more before them.
    pre_header: usize,
}

static KNOWN: SetOnce<Option<Known>> = SetOnce::new();
static IS_WANTED: AtomicBool = AtomicBool::new(false);

/// When it began, and how long looks have taken since, with what was written of them: microseconds.
static BEGIN: AtomicU64 = AtomicU64::new(0);
static SPENT: AtomicU64 = AtomicU64::new(0);
/// What looks may take in all, whatever part of the time that is.
const FREE: u64 = 1_000_000;

/// Whether looks that took `spent` of `elapsed` microseconds leave time for another one at a mark: a second, or less than a tenth.
fn is_affordable(spent: u64, elapsed: u64) -> bool {
    spent < FREE || spent < elapsed / 10
}

fn micros() -> u64 {
    time_of(libc::CLOCK_MONOTONIC)
}

/// A word of memory that is there, at any address.
///
/// # Safety
/// It is.
#[inline(always)]
unsafe fn word(address: usize) -> usize {
    // SAFETY: the caller's promise.
    unsafe { std::ptr::read_unaligned(address as *const usize) }
}

/// Looks up what is needed in a CPython of this version. Called once, by the constructor, if types are wanted.
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
            // SAFETY: the function of that name.
            dict_next: unsafe { std::mem::transmute::<Object, DictNext>(symbol(c"PyDict_Next")?) },
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

/// As [`look_anyway`], at a mark. `None`, too, where looks would take [too much](is_affordable) of the program's time.
///
/// # Safety
/// As of [`look_anyway`].
pub unsafe fn look(texts: &Texts) -> Option<Found<'_>> {
    let elapsed = micros().saturating_sub(BEGIN.load(Ordering::Relaxed));
    // SAFETY: the caller's promise.
    if is_affordable(SPENT.load(Ordering::Relaxed), elapsed) { unsafe { look_anyway(texts) } } else { None }
}

/// Looks at the objects that live now. `None` when types are not wanted, or cannot be told.
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
