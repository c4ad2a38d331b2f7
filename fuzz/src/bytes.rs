//! Decisions, read from the input one byte after another.

use std::cell::Cell;

pub struct Bytes {
    data: Vec<u8>,
    at: Cell<usize>,
}

impl Bytes {
    pub fn new(data: &[u8]) -> Self {
        Self { data: data.to_vec(), at: Cell::new(0) }
    }

    /// The next byte; nothing at the end.
    pub fn next(&self) -> Option<u8> {
        let byte = self.data.get(self.at.get()).copied();
        self.at.set(self.at.get() + 1);
        byte
    }

    /// The next byte, 0 at the end.
    pub fn byte(&self) -> usize {
        self.next().unwrap_or(0).into()
    }

    pub fn below(&self, limit: usize) -> usize {
        if limit == 0 { 0 } else { self.byte() % limit }
    }

    pub fn flag(&self) -> bool {
        self.byte() & 1 != 0
    }

    /// Sizes of every kind: most of them small, some on the edges, a few that cannot be had.
    pub fn size(&self) -> usize {
        match self.byte() {
            small @ 0..=150 => small * 4,
            edge @ 151..=199 => 496 + edge - 151,
            medium @ 200..=239 => 600 + (medium - 200) * 97,
            large @ 240..=249 => 4080 + (large - 240) * 7000,
            250 => isize::MAX as usize,
            251 => isize::MAX as usize + 1,
            252 => usize::MAX,
            253 => usize::MAX - 31,
            254 => 1 << 40,
            _ => 300_000,
        }
    }
}
