//! The table of objects that were found, and how more objects are found from them.
//!
//! Invariants:
//! 1. An entry that is not [`NONE`] stands for an object, which lives as long as this thread keeps the GIL.
//! 2. The list of objects to be followed has such objects, each once.
//! 3. Slab `n` has [`CHUNK`] entries for each of `1 << n` chunks, and `bases` has the address of each chunk.

use super::names::MOST_NAME;
use super::{FLAGS, GC_HEAD, HAVE_GC, IS_DICT, IS_GC, IS_TUPLE, Known, MEMBERS, SPENT, TRAVERSE, micros, word};
use crate::pages::Pages;
use crate::python::Object;
use crate::stacks::Out;
use crate::table::{Table, key};
use crate::text::Texts;
use std::ffi::{c_int, c_void};
use std::sync::atomic::Ordering;

/// Binary logarithms of the distance of two addresses at which objects can be, and of the bytes of a chunk, a part of the address space.
const UNIT_BITS: usize = 4;
const CHUNK_BITS: usize = 20;
/// Entries of a chunk.
const CHUNK: usize = 1 << (CHUNK_BITS - UNIT_BITS);
/// The most chunks: a terabyte of address space.
const MOST_CHUNKS: usize = 1 << 20;
const SLABS: usize = MOST_CHUNKS.ilog2() as usize;

/// The value of an entry: no known object, or the number of its type plus one, or an object that gets no name.
const NONE: u16 = 0;
const NAMELESS: u16 = u16::MAX;

/// `PyMemberDef`: its fields that are read, its size, and the kinds of members that are objects (`T_OBJECT`, `T_OBJECT_EX`).
const MEMBER_KIND: usize = 8;
const MEMBER_OFFSET: usize = 16;
const MEMBER_SIZE: usize = 40;
const OBJECT_MEMBERS: [i32; 2] = [6, 16];

/// `visitproc`, `traverseproc`, `tp_is_gc`
type Visit = unsafe extern "C" fn(Object, *mut c_void) -> c_int;
type Traverse = unsafe extern "C" fn(Object, Visit, *mut c_void) -> c_int;
type IsGc = unsafe extern "C" fn(Object) -> c_int;

/// A stack of numbers. It doubles its memory when that is full.
struct Waiting {
    words: Pages<u64>,
    count: usize,
}

impl Waiting {
    fn new() -> Option<Self> {
        Some(Self { words: Pages::new(1 << 13)?, count: 0 })
    }

    /// `None` when there is no memory.
    fn push(&mut self, word: u64) -> Option<()> {
        if self.count == self.words.len() {
            let mut larger = Pages::new(2 * self.count)?;
            larger[..self.count].copy_from_slice(&self.words);
            self.words = larger;
        }
        self.words[self.count] = word;
        self.count += 1;
        Some(())
    }

    fn pop(&mut self) -> Option<u64> {
        self.count = self.count.checked_sub(1)?;
        Some(self.words[self.count])
    }
}

/// What is known of a type.
#[derive(Clone, Copy)]
struct Kind {
    address: usize,
    flags: usize,
    number: u16,
}

pub struct Found<'a> {
    known: &'a Known,
    texts: &'a Texts,
    /// The number of a chunk, by the upper bits of its address.
    chunks: Table,
    bases: Pages<u64>,
    chunk_count: usize,
    slabs: [Option<Pages<u16>>; SLABS],
    /// The chunk that was used last: the upper bits of its address, and its number.
    last: (usize, usize),
    /// The number of a type, by its address.
    kinds: Table,
    kind_addresses: Pages<u64>,
    kind_count: usize,
    last_kind: Kind,
    waiting: Waiting,
    /// Whether there was memory for all of it.
    is_whole: bool,
    /// When the look began.
    begin: u64,
}

impl Drop for Found<'_> {
    fn drop(&mut self) {
        SPENT.fetch_add(micros().saturating_sub(self.begin), Ordering::Relaxed);
    }
}

/// The slab of a chunk, and the chunk's index in it.
fn place_of(chunk: usize) -> (usize, usize) {
    let slab = (chunk + 1).ilog2() as usize;
    (slab, (chunk + 1 - (1 << slab)) * CHUNK)
}

unsafe extern "C" fn visit(object: Object, found: *mut c_void) -> c_int {
    // SAFETY: only `tp_traverse` gets this function, with a `Found` that nothing else uses meanwhile. It calls it with objects.
    unsafe { (*found.cast::<Found<'_>>()).note(object as usize) };
    0
}

impl<'a> Found<'a> {
    /// An empty table. `None` when there is no memory.
    pub(super) fn new(known: &'a Known, texts: &'a Texts) -> Option<Self> {
        let begin = micros();
        Some(Self {
            known,
            texts,
            chunks: Table::new()?,
            bases: Pages::new(MOST_CHUNKS)?,
            chunk_count: 0,
            slabs: [const { None }; SLABS],
            last: (usize::MAX, 0),
            kinds: Table::new()?,
            kind_addresses: Pages::new(usize::from(NAMELESS))?,
            kind_count: 0,
            last_kind: Kind { address: 0, flags: 0, number: NAMELESS },
            waiting: Waiting::new()?,
            is_whole: true,
            begin,
        })
    }

    /// Whether there was memory for all of it.
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// Notes an object that the collector tracks, and all objects that it leads to.
    ///
    /// # Safety
    /// `object` is such an object, and as of [`look`](super::look).
    pub unsafe fn follow(&mut self, object: usize) {
        // SAFETY: the caller's promise, and (2).
        unsafe {
            self.note(object);
            self.expand(object);
            while let Some(object) = self.waiting.pop() {
                self.expand(object as usize);
            }
        }
    }

    /// Notes an object. If it may lead to others, it waits to be followed, unless it is in the collector's lists anyway. The collector takes
    /// tuples, dicts and, from 3.15 on, frozensets out of its lists.
    ///
    /// # Safety
    /// As of [`follow`](Self::follow), for any object.
    unsafe fn note(&mut self, object: usize) {
        if !self.is_whole {
            return;
        }
        let Some((slab, at)) = self.place(object) else { return };
        if self.slabs[slab].as_ref().is_none_or(|places| places[at] != NONE) {
            return;
        }
        // SAFETY: the caller's promise.
        unsafe {
            let Some(kind) = self.kind(word(object + 8)) else { return self.is_whole = false };
            let is_container = kind.flags & (IS_TUPLE | IS_DICT) != 0 || kind.address == self.known.frozenset;
            let is_tracked = is_container && word(object - GC_HEAD) != 0;
            if let Some(places) = &mut self.slabs[slab] {
                places[at] = if has_its_types_head(object, kind) { kind.number } else { NAMELESS };
            }
            if (is_container && !is_tracked || kind.address == self.known.code) && self.waiting.push(object as u64).is_none() {
                self.is_whole = false;
            }
        }
    }

    /// Notes what an object refers to.
    ///
    /// # Safety
    /// As of [`follow`](Self::follow).
    unsafe fn expand(&mut self, object: usize) {
        // SAFETY: the caller's promise: an object has a type.
        let kind = unsafe { word(object + 8) };
        if kind == self.known.code {
            // SAFETY: the caller's promise.
            return unsafe { self.note_members(object, word(kind + MEMBERS)) };
        }
        // SAFETY: as above.
        if unsafe { word(kind + FLAGS) } & IS_DICT != 0 {
            // SAFETY: an object of a type with this flag is a dict, and nothing changes it meanwhile.
            for (key, value) in unsafe { self.known.dicts.pairs(object as Object) } {
                for object in [key, value] {
                    // SAFETY: a dict's keys and values are objects.
                    unsafe { self.note(object as usize) };
                }
            }
            if kind == self.known.dict {
                return;
            }
        }
        // SAFETY: as above. A type's `tp_traverse` calls its visitor with objects and with the argument for it.
        unsafe {
            if let Some(traverse) = std::mem::transmute::<usize, Option<Traverse>>(word(kind + TRAVERSE)) {
                traverse(object as Object, visit, std::ptr::from_mut(self).cast());
            }
        }
    }

    /// Notes the members of an object that are objects, as its type's `tp_members` lists them.
    ///
    /// # Safety
    /// As of [`follow`](Self::follow).
    unsafe fn note_members(&mut self, object: usize, mut member: usize) {
        // SAFETY: the caller's promise. The list ends with a member without a name, and those of these kinds are objects or NULL.
        unsafe {
            while member != 0 && word(member) != 0 {
                let kind = std::ptr::read((member + MEMBER_KIND) as *const i32);
                if OBJECT_MEMBERS.contains(&kind) {
                    let value = word(object + word(member + MEMBER_OFFSET));
                    if value != 0 {
                        self.note(value);
                    }
                }
                member += MEMBER_SIZE;
            }
        }
    }

    /// The slab and index of an object's entry. `None` if no object can have this address, or there is no memory.
    fn place(&mut self, object: usize) -> Option<(usize, usize)> {
        if !object.is_multiple_of(1 << UNIT_BITS) {
            return None;
        }
        let upper = object >> CHUNK_BITS;
        if self.last.0 != upper {
            let number = match self.chunks.get(key(upper as u64)) {
                Some(number) => number as usize,
                None => {
                    let number = self.add_chunk(upper);
                    self.is_whole &= number.is_some();
                    number?
                }
            };
            self.last = (upper, number);
        }
        let (slab, first) = place_of(self.last.1);
        Some((slab, first + (object >> UNIT_BITS) % CHUNK))
    }

    #[cold]
    fn add_chunk(&mut self, upper: usize) -> Option<usize> {
        let number = self.chunk_count;
        let (slab, at) = place_of(number);
        let place = self.slabs.get_mut(slab)?;
        if at == 0 {
            *place = Some(Pages::new(CHUNK << slab)?);
        }
        self.chunks.insert(key(upper as u64), number as u32)?;
        self.bases[number] = (upper << CHUNK_BITS) as u64;
        self.chunk_count += 1;
        Some(number)
    }

    /// The entry of the type at this address. `None` when there is no memory.
    ///
    /// # Safety
    /// `address` is that of a type object.
    #[inline]
    unsafe fn kind(&mut self, address: usize) -> Option<Kind> {
        if self.last_kind.address != address {
            let number = match self.kinds.get(key(address as u64)) {
                Some(number) => number as u16,
                None => self.add_kind(address)?,
            };
            // SAFETY: the caller's promise.
            self.last_kind = Kind { address, flags: unsafe { word(address + FLAGS) }, number };
        }
        Some(self.last_kind)
    }

    #[cold]
    fn add_kind(&mut self, address: usize) -> Option<u16> {
        let number = if self.kind_count + 1 < usize::from(NAMELESS) {
            self.kind_addresses[self.kind_count] = address as u64;
            self.kind_count += 1;
            self.kind_count as u16
        } else {
            NAMELESS
        };
        self.kinds.insert(key(address as u64), number.into())?;
        Some(number)
    }

    /// Writes the objects that were found.
    ///
    /// # Safety
    /// This thread has had the GIL since [`look`](super::look).
    pub unsafe fn write(&self, out: &mut impl Out) -> Option<()> {
        out.room(0)?.types();
        for &kind in &self.kind_addresses[..self.kind_count] {
            // SAFETY: (1) its type lives, too.
            let name = unsafe { self.known.names.of(kind as usize, self.texts, self.known.dicts) };
            out.room(MOST_NAME)?.type_name(name.bytes());
        }
        for chunk in 0..self.chunk_count {
            let (slab, first) = place_of(chunk);
            let places = self.slabs[slab].as_ref().map_or(&[][..], |places| &places[first..first + CHUNK]);
            // SAFETY: as above.
            unsafe { self.write_chunk(self.bases[chunk], places, out)? };
        }
        Some(())
    }

    /// # Safety
    /// As of [`write`](Self::write).
    unsafe fn write_chunk(&self, base: u64, places: &[u16], out: &mut impl Out) -> Option<()> {
        let mut run = Run::default();
        for (index, four) in (0..).step_by(4).zip(places.as_chunks::<4>().0) {
            if *four == [NONE; 4] {
                continue;
            }
            for (index, &number) in (index..).zip(four).filter(|&(_, &number)| number != NONE && number != NAMELESS) {
                let kind = self.kind_addresses[usize::from(number) - 1] as usize;
                // SAFETY: (1) its type lives, too.
                let before = self.known.before(unsafe { word(kind + FLAGS) }) as u64;
                let block = base + (index << UNIT_BITS) - before;
                if !run.take(block, number) {
                    run.write(out)?;
                    run = Run { first: block, last: block, number, count: 1, apart: 0 };
                }
            }
        }
        run.write(out)
    }
}

/// Whether an object of this type has the collector's links before it. Objects of some types have none if their memory was not allocated.
///
/// # Safety
/// `object` is an object of that type.
unsafe fn has_its_types_head(object: usize, kind: Kind) -> bool {
    if kind.flags & HAVE_GC == 0 {
        return true;
    }
    // SAFETY: the caller's promise; the function only reads.
    unsafe {
        let is_gc = std::mem::transmute::<usize, Option<IsGc>>(word(kind.address + IS_GC));
        is_gc.is_none_or(|is_gc| is_gc(object as Object) != 0)
    }
}

/// Blocks of one type at equal distances.
#[derive(Default)]
struct Run {
    first: u64,
    last: u64,
    number: u16,
    count: u64,
    apart: u64,
}

impl Run {
    /// Adds a block behind the others. Returns `false` if it does not fit the row.
    fn take(&mut self, block: u64, number: u16) -> bool {
        let apart = block.wrapping_sub(self.last);
        if self.count == 0 || number != self.number || self.count > 1 && apart != self.apart {
            return false;
        }
        (self.last, self.apart) = (block, apart);
        self.count += 1;
        true
    }

    fn write(&self, out: &mut impl Out) -> Option<()> {
        if self.count > 0 {
            out.room(0)?.objects(self.first, u64::from(self.number) - 1, self.count, self.apart);
        }
        Some(())
    }
}
