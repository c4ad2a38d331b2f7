//! A recording as calls, a word each, in a file: what trials make, and what the measuring program reads.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use crate::program::Verb;

/// First bytes of a file of calls. After them come the numbers of slots and of calls (u64 each), and the calls.
pub const MAGIC: [u8; 8] = *b"obmcalls";

/// Bytes before the first call, and of each.
pub(super) const HEAD: usize = 24;
const WORD: usize = 8;

/// A call in one word: 32 bits of size (sizes of 4 GiB or more are stored as 4 GiB), 29 of slot, 2 of verb, and whether the block is set apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub(super) struct Call(u64);

impl Call {
    /// How many slots there can be.
    pub const SLOTS: u32 = 1 << 29;

    pub fn new(verb: Verb, slot: u32, size: u64, is_apart: bool) -> Self {
        Self(size.min(u32::MAX.into()) << 32 | u64::from(slot) << 3 | (verb as u64) << 1 | u64::from(is_apart))
    }

    pub fn to_bytes(self) -> [u8; WORD] {
        self.0.to_le_bytes()
    }

    #[inline]
    pub fn size(self) -> usize {
        (self.0 >> 32) as usize
    }

    #[inline]
    pub fn slot(self) -> usize {
        (self.0 as u32 >> 3) as usize
    }

    /// The number of a [`Verb`].
    #[inline]
    pub fn verb(self) -> u64 {
        self.0 >> 1 & 3
    }

    #[inline]
    pub fn is_apart(self) -> bool {
        self.0 & 1 != 0
    }
}

/// The calls of mem and obj of a recording, up to a moment.
#[derive(Debug)]
pub struct Calls {
    pub(super) file: File,
    pub(super) count: u64,
    /// How many of them are of blocks that are set apart.
    pub(super) apart: u64,
    /// By slot: bytes that were asked for last, or 0 after a free.
    pub(super) sizes: Vec<u32>,
    /// Where arenas lay, in the order in which they were taken: the lower half of each address.
    pub(super) arenas: Vec<u32>,
}

impl Calls {
    /// Reads those from number `from` on, at most `most`, in place of what is in `into`.
    pub(super) fn read(&self, from: u64, most: usize, bytes: &mut Vec<u8>, into: &mut Vec<Call>) -> io::Result<()> {
        let count = (self.count - from).min(most as u64) as usize;
        bytes.resize(count * WORD, 0);
        let mut file = &self.file;
        file.seek(SeekFrom::Start(HEAD as u64 + from * WORD as u64))?;
        file.read_exact(bytes)?;
        into.clear();
        into.extend(bytes.as_chunks::<WORD>().0.iter().map(|&word| Call(u64::from_le_bytes(word))));
        Ok(())
    }
}
