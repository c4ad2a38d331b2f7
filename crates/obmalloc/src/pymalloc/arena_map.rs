//! The arena map: finds the arena at an address (`arena_map_root`).
//!
//! CPython 3.10 and later find an address's arena through a radix tree of three levels. Here arenas in the heap's own region are found by
//! arithmetic, and a hash table finds the arenas that a caller's arena allocator gave. The tree's nodes are still requested from the raw
//! domain, and counted, as CPython does, because a program can see both.

#![forbid(unsafe_code)]

use alloc::vec::Vec;
use core::ffi::c_void;

use crate::address_hash::{AddressMap, KeySet};
use crate::profile::{Geometry, Profile, RangeCheck};

/// The levels of the tree.
#[derive(Clone, Copy)]
struct Levels {
    mid_shift: u32,
    top_shift: u32,
    top_mask: u64,
    mid_mask: u64,
    interior_length: usize,
    bot_length: usize,
}

/// A node that the tree does not have yet.
pub(crate) struct MissingNode {
    /// Bytes that CPython asks the raw domain for.
    pub size: usize,
    key: NodeKey,
}

enum NodeKey {
    Mid(u64),
    Bot(u64),
}

/// The arenas in one aligned, arena-sized range of addresses (`arena_coverage_t`).
#[derive(Clone, Copy, Default)]
struct Coverage {
    /// The arena that begins in the range: offset of its beginning, and its index.
    hi: Option<(usize, u32)>,
    /// The arena that ends in the range: offset of its end, and its index.
    lo: Option<(usize, u32)>,
}

#[derive(Default)]
pub(crate) struct ArenaMap {
    arena_bits: u32,
    levels: Option<Levels>,
    mid: KeySet,
    bot: KeySet,
    coverage: AddressMap<Coverage>,
    /// The blocks of the raw domain that were requested for the nodes.
    nodes: Vec<*mut c_void>,
}

/// How many nodes there are, and their sizes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ArenaMapStats {
    /// `arena_map_mid_count`
    pub mid_count: usize,
    /// `arena_map_bot_count`
    pub bot_count: usize,
    /// Bytes of the root.
    pub root_bytes: usize,
    /// Bytes of one middle node.
    pub mid_bytes: usize,
    /// Bytes of one bottom node.
    pub bot_bytes: usize,
}

impl ArenaMapStats {
    /// Bytes of the root, of all middle nodes and of all bottom nodes.
    pub fn lost(&self) -> [usize; 3] {
        [self.root_bytes, self.mid_bytes * self.mid_count, self.bot_bytes * self.bot_count]
    }
}

impl ArenaMap {
    pub fn new(range_check: RangeCheck, geometry: &Geometry) -> Self {
        let arena_bits = geometry.arena_size.trailing_zeros();
        let levels = match range_check {
            RangeCheck::ArenaIndex => None,
            RangeCheck::RadixTree { address_bits, top_masked_by_bottom } => {
                let interior_bits = (address_bits - arena_bits).div_ceil(3);
                let bot_bits = address_bits - arena_bits - 2 * interior_bits;
                let mask = |bits: u32| (1u64 << bits) - 1;
                Some(Levels {
                    mid_shift: arena_bits + bot_bits,
                    top_shift: arena_bits + bot_bits + interior_bits,
                    top_mask: mask(if top_masked_by_bottom { bot_bits } else { interior_bits }),
                    mid_mask: mask(interior_bits),
                    interior_length: 1 << interior_bits,
                    bot_length: 1 << bot_bits,
                })
            }
        };
        Self {
            arena_bits,
            levels,
            mid: KeySet::default(),
            bot: KeySet::default(),
            coverage: AddressMap::default(),
            nodes: Vec::new(),
        }
    }

    /// The next node that CPython would make to mark an arena at `base`; `None` if it has all nodes.
    pub fn missing_node(&self, base: u64) -> Option<MissingNode> {
        let levels = self.levels?;
        let ideal = base & ((1 << self.arena_bits) - 1) == 0;
        let ends = [Some(base), (!ideal).then(|| base.wrapping_add(1 << self.arena_bits))];
        for address in ends.into_iter().flatten() {
            let mid = (address >> levels.top_shift) & levels.top_mask;
            if !self.mid.contains(&mid) {
                return Some(MissingNode { size: levels.interior_length * size_of::<u64>(), key: NodeKey::Mid(mid) });
            }
            let bot = (mid << 32) | ((address >> levels.mid_shift) & levels.mid_mask);
            if !self.bot.contains(&bot) {
                return Some(MissingNode { size: levels.bot_length * size_of::<u64>(), key: NodeKey::Bot(bot) });
            }
        }
        None
    }

    /// Adds a node, for which the raw domain gave `memory`; false when there is no room to remember it.
    pub fn add_node(&mut self, node: &MissingNode, memory: *mut c_void) -> bool {
        if self.nodes.try_reserve(1).is_err() {
            return false;
        }
        let (set, key) = match node.key {
            NodeKey::Mid(key) => (&mut self.mid, key),
            NodeKey::Bot(key) => (&mut self.bot, key),
        };
        if set.try_reserve(1).is_err() {
            return false;
        }
        set.insert(key);
        self.nodes.push(memory);
        true
    }

    /// Marks the arena at `base` as number `index`, so that [`find`](Self::find) finds it; false when there is no memory for that.
    pub fn insert(&mut self, base: usize, index: u32) -> bool {
        if self.coverage.try_reserve(2).is_err() {
            return false;
        }
        let (leaf, tail) = self.leaf_of(base);
        self.coverage.entry(leaf).or_default().hi = Some((tail, index));
        if tail != 0 {
            self.coverage.entry(leaf + 1).or_default().lo = Some((tail, index));
        }
        true
    }

    /// Undoes [`insert`](Self::insert).
    pub fn remove(&mut self, base: usize) {
        let (leaf, tail) = self.leaf_of(base);
        if let Some(coverage) = self.coverage.get_mut(&leaf) {
            coverage.hi = None;
        }
        if tail != 0
            && let Some(coverage) = self.coverage.get_mut(&(leaf + 1))
        {
            coverage.lo = None;
        }
    }

    /// The arena outside the region that `address` lies in. (All of `address_in_range` is `Pymalloc::pool_of`.)
    pub fn find(&self, address: usize) -> Option<u32> {
        let (leaf, tail) = self.leaf_of(address);
        let coverage = self.coverage.get(&leaf)?;
        match (coverage.lo, coverage.hi) {
            (Some((end, index)), _) if tail < end => Some(index),
            (_, Some((begin, index))) if tail >= begin => Some(index),
            _ => None,
        }
    }

    fn leaf_of(&self, address: usize) -> (usize, usize) {
        (address >> self.arena_bits, address & ((1 << self.arena_bits) - 1))
    }

    /// The map's statistics; `None` if the release has no map.
    pub fn stats(&self) -> Option<ArenaMapStats> {
        let levels = self.levels?;
        let interior_bytes = levels.interior_length * size_of::<u64>();
        Some(ArenaMapStats {
            mid_count: self.mid.len(),
            bot_count: self.bot.len(),
            root_bytes: interior_bytes,
            mid_bytes: interior_bytes,
            bot_bytes: levels.bot_length * size_of::<u64>(),
        })
    }

    /// The blocks of the raw domain that were requested for the nodes.
    pub fn nodes(&self) -> &[*mut c_void] {
        &self.nodes
    }

    /// Forgets those blocks: they have been given back.
    pub fn forget_nodes(&mut self) {
        self.nodes = Vec::new();
    }
}

/// Counts the nodes of a release's tree for arenas at given addresses, which need not exist here: a replay compares them with those of the
/// recorded process. The default is for a release without a tree.
#[derive(Default)]
pub struct ArenaMapCounts(ArenaMap);

impl ArenaMapCounts {
    /// The tree of a release, still empty.
    pub fn new(profile: &Profile) -> Self {
        Self(ArenaMap::new(profile.range_check, &profile.geometry))
    }

    /// Marks an arena at `base`. Calls `request` with the size of each new node, in order. If `request` returns false, neither this node nor a
    /// later one is made, and the arena is not marked.
    pub fn mark_used(&mut self, base: u64, mut request: impl FnMut(usize) -> bool) -> bool {
        while let Some(node) = self.0.missing_node(base) {
            if !request(node.size) || !self.0.add_node(&node, core::ptr::null_mut()) {
                return false;
            }
        }
        true
    }

    /// The counts; `None` if the release has no tree.
    pub fn stats(&self) -> Option<ArenaMapStats> {
        self.0.stats()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile;

    #[test]
    fn nodes_have_the_sizes_of_each_release() {
        let sizes = |profile: &profile::Profile| {
            let stats = ArenaMap::new(profile.range_check, &profile.geometry).stats();
            stats.map(|stats| (stats.root_bytes, stats.mid_bytes, stats.bot_bytes))
        };
        assert_eq!(sizes(&profile::V3_9), None);
        assert_eq!(sizes(&profile::V3_10), Some((8192, 8192, 2048)));
        assert_eq!(sizes(&profile::V3_11), Some((262_144, 262_144, 131_072)));
    }

    #[test]
    fn misaligned_arenas_are_found_up_to_their_last_byte() {
        let mut map = ArenaMap::new(profile::V3_13.range_check, &profile::V3_13.geometry);
        let (size, base) = (1 << 20, 0x7f00_0000_3000);
        assert!(map.insert(base, 4) && map.insert(base + size, 5));
        assert_eq!(map.find(base - 1), None);
        assert_eq!(map.find(base), Some(4));
        assert_eq!(map.find(base + size - 1), Some(4));
        assert_eq!(map.find(base + size), Some(5));
        assert_eq!(map.find(base + 2 * size), None);
        map.remove(base);
        assert_eq!(map.find(base), None);
        assert_eq!(map.find(base + size), Some(5));
    }
}
