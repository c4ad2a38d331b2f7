//! A hash table that grows in parts.

use core::fmt;
use core::hash::BuildHasher;

use alloc::vec::Vec;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use rustc_hash::FxBuildHasher;

/// Entries from which on there are parts; as many may move at once.
const MANY: usize = if cfg!(any(miri, fuzzing)) { 1 << 5 } else { 1 << 15 };
/// Tables then: a power of two.
const PARTS: usize = if cfg!(any(miri, fuzzing)) { 4 } else { 256 };
/// Entries that a part is to have room for when it is looked at, so that all of them are not looked at for each entry.
const SPARE: usize = 64;

/// A hash table whose keys are addresses, in parts once it is large: each grows for itself, so that no call takes long, however many entries
/// there are. A hash table that moves ten million entries at once takes half a second.
pub struct GradualMap<V> {
    /// All entries, as long as there are few.
    few: HashTable<(usize, V)>,
    /// None, or so many that each has its share of the hashes.
    parts: Vec<HashTable<(usize, V)>>,
    len: usize,
    /// So many more entries have room, wherever they go.
    spare: usize,
}

/// There is no memory for a larger table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoRoom;

impl<V> Default for GradualMap<V> {
    fn default() -> Self {
        Self { few: HashTable::new(), parts: Vec::new(), len: 0, spare: 0 }
    }
}

impl<V> fmt::Debug for GradualMap<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GradualMap").field("len", &self.len()).finish_non_exhaustive()
    }
}

#[inline]
fn hash(address: usize) -> u64 {
    FxBuildHasher.hash_one(address)
}

/// The part of a hash. A table looks at the bits below and above.
#[inline]
fn part(hash: u64) -> usize {
    (hash >> 48) as usize % PARTS
}

fn room<V>(table: &HashTable<(usize, V)>) -> usize {
    table.capacity() - table.len()
}

fn reserve<V>(table: &mut HashTable<(usize, V)>, more: usize) -> Result<(), NoRoom> {
    table.try_reserve(more, |entry| hash(entry.0)).map_err(|_| NoRoom)
}

impl<V> GradualMap<V> {
    /// Entries in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[inline]
    fn table(&self, hash: u64) -> &HashTable<(usize, V)> {
        if self.parts.is_empty() { &self.few } else { &self.parts[part(hash)] }
    }

    #[inline]
    fn table_mut(&mut self, hash: u64) -> &mut HashTable<(usize, V)> {
        if self.parts.is_empty() { &mut self.few } else { &mut self.parts[part(hash)] }
    }

    /// Makes sure that so many more entries have room.
    ///
    /// # Errors
    /// When there is no memory for that.
    #[inline]
    pub fn try_reserve(&mut self, more: usize) -> Result<(), NoRoom> {
        if self.spare >= more { Ok(()) } else { self.grow(more) }
    }

    #[cold]
    fn grow(&mut self, more: usize) -> Result<(), NoRoom> {
        if self.parts.is_empty() && room(&self.few) < more {
            if self.few.len() < MANY {
                reserve(&mut self.few, more)?;
            } else {
                self.part(more)?;
            }
        }
        for table in &mut self.parts {
            // Those that are nearly full might be just as well.
            if room(table) < more + SPARE && reserve(table, more + SPARE).is_err() && room(table) < more {
                return Err(NoRoom);
            }
        }
        let few = self.parts.is_empty().then(|| room(&self.few));
        self.spare = few.into_iter().chain(self.parts.iter().map(room)).min().unwrap_or(0);
        Ok(())
    }

    /// Distributes all entries among parts.
    fn part(&mut self, more: usize) -> Result<(), NoRoom> {
        let mut parts = Vec::new();
        parts.try_reserve_exact(PARTS).map_err(|_| NoRoom)?;
        parts.extend((0..PARTS).map(|_| HashTable::new()));
        let mut counts = [0; PARTS];
        self.few.iter().for_each(|entry| counts[part(hash(entry.0))] += 1);
        for (table, count) in parts.iter_mut().zip(counts) {
            reserve(table, count + more + SPARE)?;
        }
        for entry in core::mem::replace(&mut self.few, HashTable::new()) {
            let at = hash(entry.0);
            parts[part(at)].insert_unique(at, entry, |entry| hash(entry.0));
        }
        self.parts = parts;
        Ok(())
    }

    /// The entry of an address.
    #[inline]
    pub fn get(&self, address: &usize) -> Option<&V> {
        let hash = hash(*address);
        self.table(hash).find(hash, |entry| entry.0 == *address).map(|entry| &entry.1)
    }

    /// The entry of an address.
    #[inline]
    pub fn get_mut(&mut self, address: &usize) -> Option<&mut V> {
        let hash = hash(*address);
        self.table_mut(hash).find_mut(hash, |entry| entry.0 == *address).map(|entry| &mut entry.1)
    }

    /// Whether an address has an entry.
    #[inline]
    pub fn contains_key(&self, address: &usize) -> bool {
        self.get(address).is_some()
    }

    /// Enters something at an address, where something else may be: that comes back.
    ///
    /// # Panics
    /// When there is no memory for it; see [`try_reserve`](Self::try_reserve).
    pub fn insert(&mut self, address: usize, value: V) -> Option<V> {
        self.try_reserve(1).expect("room for an entry");
        let at = hash(address);
        match self.table_mut(at).entry(at, |entry| entry.0 == address, |entry| hash(entry.0)) {
            Entry::Occupied(mut present) => return Some(core::mem::replace(&mut present.get_mut().1, value)),
            Entry::Vacant(vacant) => drop(vacant.insert((address, value))),
        }
        self.len += 1;
        self.spare -= 1;
        None
    }

    /// Takes the entry of an address out.
    pub fn remove(&mut self, address: &usize) -> Option<V> {
        let hash = hash(*address);
        let entry = self.table_mut(hash).find_entry(hash, |entry| entry.0 == *address).ok()?;
        let ((_, value), _) = entry.remove();
        self.len -= 1;
        Some(value)
    }

    fn tables(&self) -> impl Iterator<Item = &HashTable<(usize, V)>> {
        core::iter::once(&self.few).chain(&self.parts)
    }

    fn tables_mut(&mut self) -> impl Iterator<Item = &mut HashTable<(usize, V)>> {
        core::iter::once(&mut self.few).chain(&mut self.parts)
    }

    /// All entries, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&usize, &V)> {
        self.tables().flatten().map(|(address, value)| (address, value))
    }

    /// All addresses, in no order.
    pub fn keys(&self) -> impl Iterator<Item = &usize> {
        self.iter().map(|(address, _)| address)
    }

    /// All that was entered, in no order.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// Takes all entries out for which `keeps` says no.
    pub fn retain(&mut self, mut keeps: impl FnMut(&usize, &mut V) -> bool) {
        self.tables_mut().for_each(|table| table.retain(|(address, value)| keeps(address, value)));
        self.len = self.tables().map(HashTable::len).sum();
    }

    /// Gives its memory back in pieces; false when `is_over`, which is asked between them, made it give up.
    pub fn clear(&mut self, mut is_over: impl FnMut() -> bool) -> bool {
        self.spare = 0;
        for part in self.parts.iter_mut().filter(|part| part.capacity() != 0) {
            self.len -= part.len();
            *part = HashTable::new();
            if is_over() {
                return false;
            }
        }
        *self = Self::default();
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn it_is_a_map_while_it_grows_and_shrinks() {
        let most = if cfg!(miri) { 300 } else { 200_000 };
        let mut state = 1_u64;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        let (mut map, mut model) = (GradualMap::default(), HashMap::new());
        for round in 0..6 {
            for step in 0..most {
                // It grows, stays, and shrinks.
                let address = random(most) * 16;
                if random(6) >= round {
                    assert_eq!(map.insert(address, step), model.insert(address, step));
                } else {
                    assert_eq!(map.remove(&address), model.remove(&address));
                }
                let other = random(most) * 16;
                assert_eq!(map.get(&other), model.get(&other));
                assert_eq!(map.get_mut(&other).is_some(), model.contains_key(&other));
                assert_eq!((map.len(), map.is_empty()), (model.len(), model.is_empty()));
            }
            let mut all: Vec<_> = map.iter().map(|(&address, &value)| (address, value)).collect();
            let mut expected: Vec<_> = model.iter().map(|(&address, &value)| (address, value)).collect();
            all.sort_unstable();
            expected.sort_unstable();
            assert_eq!(all, expected);
            map.retain(|address, _| address % 48 != 0);
            model.retain(|address, _| address % 48 != 0);
        }
        // No part has so much more than its share that it would take long to grow.
        let longest = map.parts.iter().map(HashTable::num_buckets).max();
        assert!(longest.is_some_and(|longest| longest <= 16 * most / PARTS), "{longest:?} buckets");
        let (mut times, len) = (0, map.len());
        while !map.clear(|| true) {
            times += 1;
        }
        assert!(len > 0 && map.is_empty() && times == PARTS, "given up {times} times");
        assert_eq!(map.insert(16, 1), None);
    }

    #[test]
    fn whatever_was_reserved_has_room() {
        let mut map = GradualMap::default();
        let mut address = 0;
        for round in 0..if cfg!(miri) { 60 } else { 3000 } {
            let more = 1 + round * 7 % 60;
            map.try_reserve(more).expect("memory");
            let capacity = |map: &GradualMap<()>| map.tables().map(HashTable::num_buckets).sum::<usize>();
            let before = capacity(&map);
            for _ in 0..more {
                // Wherever they go: all to the same part.
                address += 16;
                while !map.parts.is_empty() && part(hash(address)) != round % PARTS {
                    address += 16;
                }
                map.insert(address, ());
            }
            assert_eq!(capacity(&map), before, "it has grown");
        }
    }
}
