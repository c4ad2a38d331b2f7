//! A hash table that grows bit by bit.

use core::fmt;
use core::hash::BuildHasher;

use hashbrown::HashTable;
use rustc_hash::FxBuildHasher;

/// Entries up to which a table may as well grow at once.
const FEW: usize = if cfg!(any(miri, fuzzing)) { 8 } else { 1 << 12 };
/// Buckets of the old table that are emptied for each entry that comes into the new one.
const STEP: usize = 16;

/// A hash table whose keys are addresses. When it is full, a larger one is made, and with each entry that comes a few of the old ones move over,
/// so that no call takes long, however many there are: a hash table of ten million entries that moves them all at once takes half a second.
pub struct GradualMap<V> {
    table: HashTable<(usize, V)>,
    /// What has yet to move into `table`, which has room for it.
    old: HashTable<(usize, V)>,
    /// Buckets of `old` that are empty.
    emptied: usize,
}

/// There is no memory for a larger table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoRoom;

impl<V> Default for GradualMap<V> {
    fn default() -> Self {
        Self { table: HashTable::new(), old: HashTable::new(), emptied: 0 }
    }
}

impl<V> fmt::Debug for GradualMap<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GradualMap").field("len", &self.len()).finish_non_exhaustive()
    }
}

fn hash(address: usize) -> u64 {
    FxBuildHasher.hash_one(address)
}

impl<V> GradualMap<V> {
    /// Entries in it.
    pub fn len(&self) -> usize {
        self.table.len() + self.old.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes sure that so many more entries have room.
    ///
    /// # Errors
    /// When there is no memory for that.
    #[inline]
    pub fn try_reserve(&mut self, more: usize) -> Result<(), NoRoom> {
        let spare = self.table.capacity() - self.table.len();
        if spare >= self.old.len() + more { Ok(()) } else { self.grow(more) }
    }

    #[cold]
    fn grow(&mut self, more: usize) -> Result<(), NoRoom> {
        // Nothing is left there, unless very many are to have room.
        self.empty(usize::MAX);
        let buckets = self.table.num_buckets();
        if buckets <= FEW {
            return self.table.try_reserve(more, |entry| hash(entry.0)).map_err(|_| NoRoom);
        }
        // An eighth of the buckets at least, so that all have been emptied before the next time.
        let wanted = (2 * self.len()).max(buckets / 8) + more;
        let mut table = HashTable::new();
        table.try_reserve(wanted, |_: &(usize, V)| 0).map_err(|_| NoRoom)?;
        self.old = core::mem::replace(&mut self.table, table);
        self.emptied = 0;
        Ok(())
    }

    /// Moves what is in the next buckets of the old table.
    fn empty(&mut self, buckets: usize) {
        let end = self.emptied.saturating_add(buckets).min(self.old.num_buckets());
        while self.emptied < end && !self.old.is_empty() {
            if let Ok(entry) = self.old.get_bucket_entry(self.emptied) {
                let (entry, _) = entry.remove();
                self.table.insert_unique(hash(entry.0), entry, |entry| hash(entry.0));
            }
            self.emptied += 1;
        }
        if self.old.is_empty() {
            self.old = HashTable::new();
            self.emptied = 0;
        }
    }

    /// Whether an entry has yet to move.
    #[inline]
    fn is_old(&self, address: usize) -> bool {
        !self.old.is_empty() && self.old.find(hash(address), |entry| entry.0 == address).is_some()
    }

    /// The entry of an address.
    #[inline]
    pub fn get(&self, address: &usize) -> Option<&V> {
        let table = if self.is_old(*address) { &self.old } else { &self.table };
        table.find(hash(*address), |entry| entry.0 == *address).map(|entry| &entry.1)
    }

    /// The entry of an address.
    #[inline]
    pub fn get_mut(&mut self, address: &usize) -> Option<&mut V> {
        let table = if self.is_old(*address) { &mut self.old } else { &mut self.table };
        table.find_mut(hash(*address), |entry| entry.0 == *address).map(|entry| &mut entry.1)
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
        if let Some(present) = self.get_mut(&address) {
            return Some(core::mem::replace(present, value));
        }
        self.try_reserve(1).expect("room for an entry");
        self.table.insert_unique(hash(address), (address, value), |entry| hash(entry.0));
        if !self.old.is_empty() {
            self.empty(STEP);
        }
        None
    }

    /// Takes the entry of an address out.
    pub fn remove(&mut self, address: &usize) -> Option<V> {
        let table = if self.is_old(*address) { &mut self.old } else { &mut self.table };
        let entry = table.find_entry(hash(*address), |entry| entry.0 == *address).ok()?;
        Some(entry.remove().0.1)
    }

    /// All entries, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&usize, &V)> + Clone {
        self.table.iter().chain(self.old.iter()).map(|(address, value)| (address, value))
    }

    /// All addresses, in no order.
    pub fn keys(&self) -> impl Iterator<Item = &usize> {
        self.iter().map(|(address, _)| address)
    }

    /// All that was entered, in no order.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// All that was entered, in no order.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.table.iter_mut().chain(self.old.iter_mut()).map(|(_, value)| value)
    }

    /// Takes all entries out for which `keeps` says no.
    pub fn retain(&mut self, mut keeps: impl FnMut(&usize, &mut V) -> bool) {
        self.table.retain(|(address, value)| keeps(address, value));
        self.old.retain(|(address, value)| keeps(address, value));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::vec::Vec;

    use super::*;

    #[test]
    fn it_is_a_map_while_it_grows_and_shrinks() {
        let most = if cfg!(miri) { 300 } else { 60_000 };
        let mut state = 1_u64;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        let (mut map, mut model) = (GradualMap::default(), HashMap::new());
        let mut seen_moving = 0;
        for round in 0..6 {
            for step in 0..most {
                // It grows, stays, and shrinks.
                let (address, waiting) = (random(most) * 16, map.old.len());
                if random(6) >= round {
                    assert_eq!(map.insert(address, step), model.insert(address, step));
                } else {
                    assert_eq!(map.remove(&address), model.remove(&address));
                }
                assert!(map.old.len() + STEP >= waiting, "{} of {waiting} have moved at once", waiting - map.old.len());
                let other = random(most) * 16;
                assert_eq!(map.get(&other), model.get(&other));
                assert_eq!(map.get_mut(&other).is_some(), model.contains_key(&other));
                assert_eq!(map.len(), model.len());
                seen_moving += usize::from(!map.old.is_empty());
            }
            let mut all: Vec<_> = map.iter().map(|(&address, &value)| (address, value)).collect();
            let mut expected: Vec<_> = model.iter().map(|(&address, &value)| (address, value)).collect();
            all.sort_unstable();
            expected.sort_unstable();
            assert_eq!(all, expected);
            map.retain(|address, _| address % 48 != 0);
            model.retain(|address, _| address % 48 != 0);
        }
        assert!(seen_moving > 20, "seen in {seen_moving} states of two tables");
    }

    #[test]
    fn whatever_was_reserved_has_room() {
        let mut map = GradualMap::default();
        for round in 0..200 {
            let more = 1 + round * 7 % 60;
            map.try_reserve(more).expect("memory");
            let buckets = (map.table.num_buckets(), map.old.num_buckets());
            for index in 0..more {
                map.insert((round * 100 + index) * 16, ());
                assert_eq!(map.table.num_buckets(), buckets.0, "it has grown");
            }
            assert!(map.old.num_buckets() == buckets.1 || map.old.num_buckets() <= 1);
        }
    }
}
