//! Code objects: each is described in the trace once, with its contents and not its address.

use super::layout::Layout;
use super::walk::word;
use super::{Lost, Out};
use crate::pages::Pages;
use crate::table::{Table, key};
use std::sync::atomic::{AtomicU64, Ordering};

/// The most characters of a file's or a function's name.
const TEXT_LENGTH: usize = 4096;
/// The most bytes of a line table in one record.
const PIECE: usize = 16 << 10;
/// The most bytes that a record takes beside its text or table.
const RECORD_HEAD: usize = 48;

/// A filter of the addresses of known code objects: one bit for a group of addresses.
struct Filter<const WORDS: usize>([AtomicU64; WORDS]);

impl<const WORDS: usize> Filter<WORDS> {
    const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; WORDS])
    }

    #[inline(always)]
    fn place(number: usize) -> (usize, u64) {
        let bit = (number ^ number >> 17) % (WORDS * 64);
        (bit / 64, 1 << (bit % 64))
    }

    #[inline(always)]
    fn may_have(&self, number: usize) -> bool {
        let (place, bit) = Self::place(number);
        self.0[place].load(Ordering::Relaxed) & bit != 0
    }

    fn put(&self, number: usize) {
        let (place, bit) = Self::place(number);
        self.0[place].fetch_or(bit, Ordering::Relaxed);
    }
}

/// The first filter, by page. It is small, so that the cache is left to the program, and selects well: a page of a pool has blocks of one
/// size, and code objects are not of the usual sizes.
static PAGES: Filter<256> = Filter::new();
/// The second filter, by address.
static ADDRESSES: Filter<2048> = Filter::new();

/// Whether `address` may be a known code object's.
#[inline(always)]
pub fn may_be_known(address: usize) -> bool {
    PAGES.may_have(address >> 12) && ADDRESSES.may_have(address >> 4)
}

/// The code objects that the trace knows.
pub struct Codes {
    /// The numbers of the live ones, by address.
    pub alive: Table,
    /// The numbers of described texts and code objects, by hash.
    described: Table,
    texts: Table,
    code_count: u32,
    text_count: u32,
    scratch: Pages<u8>,
}

impl Codes {
    /// `None` when there is no memory.
    pub fn new() -> Option<Self> {
        Some(Self {
            alive: Table::new()?,
            described: Table::new()?,
            texts: Table::new()?,
            code_count: 0,
            text_count: 0,
            scratch: Pages::new(4 * TEXT_LENGTH)?,
        })
    }

    /// Forgets the code object at `address`, which is being freed. Returns whether it was known.
    pub fn forget(&mut self, address: usize) -> bool {
        self.alive.remove(key(address as u64))
    }

    /// The number of a code object that is not known yet.
    ///
    /// # Safety
    /// There is a code object of this layout at `code`.
    pub unsafe fn describe(&mut self, code: usize, layout: &Layout, out: &mut impl Out) -> Result<u32, Lost> {
        // SAFETY: the caller's promise.
        let (file, function, first_line, table) = unsafe {
            let table = word(code + layout.table);
            let table = std::slice::from_raw_parts((table + 32) as *const u8, word(table + 16));
            let first_line = *((code + layout.first_line) as *const u32);
            let file = self.text(word(code + layout.file), layout, out)?;
            (file, self.text(word(code + layout.function), layout, out)?, first_line, table)
        };
        let seed = mixed(u64::from(file) << 32 | u64::from(function), first_line.into());
        let hash = key(hash(seed, table));
        let number = match self.described.get(hash) {
            Some(number) => number,
            None => {
                let (piece, mut rest) = table.split_at(table.len().min(PIECE));
                let block = out.room(piece.len() + RECORD_HEAD).ok_or(Lost::Trace)?;
                block.code(file.into(), function.into(), first_line.into(), layout.lines as u8, piece);
                while !rest.is_empty() {
                    let (piece, further) = rest.split_at(rest.len().min(PIECE));
                    out.room(piece.len() + RECORD_HEAD).ok_or(Lost::Trace)?.more_lines(piece);
                    rest = further;
                }
                let number = self.code_count;
                self.described.insert(hash, number).ok_or(Lost::Memory)?;
                self.code_count += 1;
                number
            }
        };
        self.alive.insert(key(code as u64), number).ok_or(Lost::Memory)?;
        PAGES.put(code >> 12);
        ADDRESSES.put(code >> 4);
        Ok(number)
    }

    /// The trace's number for the text of a str.
    ///
    /// # Safety
    /// There is a str at `text`.
    unsafe fn text(&mut self, text: usize, layout: &Layout, out: &mut impl Out) -> Result<u32, Lost> {
        // SAFETY: the caller's promise.
        let length = unsafe { self.encode(text, layout) };
        let bytes = &self.scratch[..length];
        let hash = key(hash(0, bytes));
        if let Some(number) = self.texts.get(hash) {
            return Ok(number);
        }
        out.room(length + RECORD_HEAD).ok_or(Lost::Trace)?.stack_text(bytes);
        let number = self.text_count;
        self.texts.insert(hash, number).ok_or(Lost::Memory)?;
        self.text_count += 1;
        Ok(number)
    }

    /// Writes a str's text into the scratch memory, as UTF-8. Returns how many bytes it has.
    ///
    /// # Safety
    /// There is a str at `text`.
    unsafe fn encode(&mut self, text: usize, layout: &Layout) -> usize {
        // SAFETY: `PyASCIIObject`: length, hash, state.
        let (length, state) = unsafe { (word(text + 16), *((text + 32) as *const u32)) };
        let (width, is_compact, is_ascii) = ((state >> 2 & 7) as usize, state & 1 << 5 != 0, state & 1 << 6 != 0);
        let characters = match (is_compact, is_ascii) {
            (true, true) => text + layout.ascii,
            (true, false) => text + layout.characters,
            // SAFETY: `PyUnicodeObject`: the address of the characters.
            (false, _) => unsafe { word(text + layout.characters) },
        };
        if ![1, 2, 4].contains(&width) || characters == 0 {
            self.scratch[0] = b'?';
            return 1;
        }
        let mut at = 0;
        for number in 0..length.min(TEXT_LENGTH) {
            let address = characters + number * width;
            // SAFETY: the str has this many characters of this width.
            let value = unsafe {
                match width {
                    1 => u32::from(*(address as *const u8)),
                    2 => u32::from(*(address as *const u16)),
                    _ => *(address as *const u32),
                }
            };
            at += char::from_u32(value).unwrap_or('\u{fffd}').encode_utf8(&mut self.scratch[at..]).len();
        }
        at
    }
}

fn mixed(a: u64, b: u64) -> u64 {
    let word =
        (a ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xff51_afd7_ed55_8ccd) ^ b.rotate_left(32).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    let word = (word ^ word >> 32).wrapping_mul(0x9fb2_1c65_1e98_df25);
    word ^ word >> 29
}

fn hash(seed: u64, bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(mixed(seed, bytes.len() as u64), |sum, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        mixed(sum, u64::from_ne_bytes(word))
    })
}
