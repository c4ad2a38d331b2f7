//! Hash tables from three numbers to one: the tree of stacks by parent, code object and instruction; code objects by address; descriptions in
//! the trace by hash; types by address.

use crate::pages::{Pages, Plain};

pub type Key = [u32; 3];

/// Marks an empty entry; no table has it as a value.
const EMPTY: u32 = 0;

#[derive(Clone, Copy)]
struct Entry {
    key: Key,
    /// One more than the value.
    value: u32,
}

// SAFETY: numbers.
unsafe impl Plain for Entry {}

/// An open-addressed table that doubles when it is half full.
pub struct Table {
    entries: Pages<Entry>,
    used: usize,
}

/// The key of an address or of a hash.
#[inline(always)]
pub fn key(word: u64) -> Key {
    [word as u32, (word >> 32) as u32, 0]
}

impl Table {
    /// An empty one. `None` when there is no memory.
    pub fn new() -> Option<Self> {
        Some(Self { entries: Pages::new(4096)?, used: 0 })
    }

    #[inline(always)]
    fn place(&self, [a, b, c]: Key) -> usize {
        let word = (u64::from(a) | u64::from(b) << 32).wrapping_mul(0xc4ce_b9fe_1a85_ec53)
            ^ u64::from(c).wrapping_mul(0xff51_afd7_ed55_8ccd);
        (word.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize & (self.entries.len() - 1)
    }

    /// The value under `key`.
    #[inline(always)]
    pub fn get(&self, key: Key) -> Option<u32> {
        let mut at = self.place(key);
        loop {
            let entry = &self.entries[at];
            if entry.value == EMPTY {
                return None;
            }
            if entry.key == key {
                return Some(entry.value - 1);
            }
            at = (at + 1) & (self.entries.len() - 1);
        }
    }

    /// Puts a value under a key that has none. `None` when there is no memory for it.
    pub fn insert(&mut self, key: Key, value: u32) -> Option<()> {
        if (self.used + 1) * 2 > self.entries.len() {
            let larger = Pages::new(self.entries.len() * 2)?;
            let before = std::mem::replace(&mut self.entries, larger);
            for &entry in before.iter().filter(|entry| entry.value != EMPTY) {
                self.put(entry);
            }
        }
        self.used += 1;
        self.put(Entry { key, value: value.checked_add(1)? });
        Some(())
    }

    fn put(&mut self, entry: Entry) {
        let mut at = self.place(entry.key);
        while self.entries[at].value != EMPTY {
            at = (at + 1) & (self.entries.len() - 1);
        }
        self.entries[at] = entry;
    }

    /// Takes a key out. Returns whether it was there.
    pub fn remove(&mut self, key: Key) -> bool {
        let last = self.entries.len() - 1;
        let mut hole = self.place(key);
        while self.entries[hole].key != key || self.entries[hole].value == EMPTY {
            if self.entries[hole].value == EMPTY {
                return false;
            }
            hole = (hole + 1) & last;
        }
        // Move later entries, up to the next empty one, into the hole if their keys allow it.
        let mut at = hole;
        loop {
            at = (at + 1) & last;
            let entry = self.entries[at];
            if entry.value == EMPTY {
                break;
            }
            let distance = |from: usize| at.wrapping_sub(from) & last;
            if distance(self.place(entry.key)) >= distance(hole) {
                self.entries[hole] = entry;
                hole = at;
            }
        }
        self.entries[hole].value = EMPTY;
        self.used -= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn table_is_a_map() {
        let (mut table, mut model) = (Table::new().expect("memory"), HashMap::new());
        let mut random = 1u64;
        for step in 0..60_000u32 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let key = key(random >> 33 & 0x1fff);
            if random >> 60 < 6 {
                assert_eq!(table.remove(key), model.remove(&key).is_some());
            } else if let Some(value) = model.get(&key) {
                assert_eq!(table.get(key), Some(*value));
            } else {
                assert_eq!(table.get(key), None);
                table.insert(key, step).expect("memory");
                model.insert(key, step);
            }
        }
        assert!(model.len() > 2048 && model.iter().all(|(&key, &value)| table.get(key) == Some(value)));
    }
}
