//! A census: everything that is live at one moment, by arena, by pool and by stack.

#![forbid(unsafe_code)]

use obmalloc::profile::{Geometry, POOL_OVERHEAD};
use rustc_hash::FxHashMap;

use super::ledger::{Flow, Kind, Ledger, Sum};
use crate::replay::HeldArena;

/// An arena at the moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ArenaCensus {
    /// First byte.
    pub address: u64,
    /// The event at which it was taken.
    pub taken: u64,
    /// Pools that hold blocks.
    pub pools: u32,
    /// Pools that hold none.
    pub free_pools: u32,
    /// Bytes that a trim would give back.
    pub trimmable: u64,
    /// Live blocks, at their classes' sizes.
    pub live: Sum,
}

/// A pool that holds blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "its size class, and how many blocks it holds")]
pub struct PoolCensus {
    pub class: u8,
    pub blocks: u16,
}

/// The pools of one size class that hold blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs, reason = "blocks that are live, and those that the pools could still give")]
pub struct ClassCensus {
    pub pools: u64,
    pub blocks: u64,
    pub free_blocks: u64,
}

/// A stack's live blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodeCensus {
    /// In pools, at their classes' sizes.
    pub live: Sum,
    /// Blocks of the raw domain, at the requested sizes.
    pub raw: Sum,
    /// Blocks of mem and obj above 512 bytes, at the requested sizes. They lie at C's `malloc`, too.
    pub large: Sum,
    /// The events that made the first and the last of the blocks in pools.
    pub born: (u64, u64),
}

/// The whole census.
#[derive(Clone, Debug)]
pub struct Census {
    /// The release's sizes.
    pub geometry: Geometry,
    /// The last event that has happened.
    pub event: u64,
    /// By address.
    pub arenas: Vec<ArenaCensus>,
    /// By arena, `pools_per_arena` each; `None` for a pool that holds no block.
    pub pools: Vec<Option<PoolCensus>>,
    /// By size class.
    pub classes: Vec<ClassCensus>,
    /// By stack: 0 is no Python frame.
    pub nodes: FxHashMap<u32, NodeCensus>,
    /// How many blocks of an arena (its index) and size class a stack made.
    pub shares: FxHashMap<(u32, u32, u8), u32>,
    /// What each stack has asked for up to now.
    pub flows: Vec<Flow>,
    /// By size class; then the raw domain, then what is above 512 bytes.
    pub class_flows: Vec<Flow>,
    /// Blocks of the raw domain.
    pub raw: Sum,
    /// Blocks of mem and obj above 512 bytes.
    pub large: Sum,
}

impl Census {
    /// Counts what is live. `taken` tells the event at which an arena was taken, by its address.
    pub(crate) fn take(event: u64, geometry: Geometry, ledger: &Ledger, held: &[HeldArena], taken: &FxHashMap<u64, u64>) -> Self {
        let mut arenas: Vec<ArenaCensus> = held
            .iter()
            .map(|arena| ArenaCensus {
                address: arena.address,
                taken: taken.get(&arena.address).copied().unwrap_or(0),
                pools: arena.pools - arena.free_pools,
                free_pools: arena.free_pools,
                trimmable: arena.trimmable(geometry.pool_size),
                live: Sum::default(),
            })
            .collect();
        arenas.sort_unstable_by_key(|arena| arena.address);
        let mut census = Self {
            geometry,
            event,
            pools: vec![None; arenas.len() * geometry.pools_per_arena()],
            arenas,
            classes: vec![ClassCensus::default(); geometry.size_classes()],
            nodes: FxHashMap::default(),
            shares: FxHashMap::default(),
            flows: ledger.flows().to_vec(),
            class_flows: ledger.kinds().to_vec(),
            raw: ledger.raw,
            large: ledger.large,
        };
        census.count(ledger);
        census
    }

    fn count(&mut self, ledger: &Ledger) {
        let mut last = 0;
        for (_, block) in ledger.blocks() {
            let place = self.place(block.address, last);
            let none = NodeCensus { live: Sum::default(), raw: Sum::default(), large: Sum::default(), born: (u64::MAX, 0) };
            let node = self.nodes.entry(block.node).or_insert(none);
            let class = match block.kind {
                Kind::Pool(class) => class,
                Kind::Large => {
                    node.large.put(block.asked);
                    continue;
                }
                _ => {
                    node.raw.put(block.asked);
                    continue;
                }
            };
            let Some((arena, pool)) = place else { continue };
            last = arena;
            let size = ledger.class_size(class);
            node.live.put(size);
            node.born = (node.born.0.min(block.born), node.born.1.max(block.born));
            self.arenas[arena].live.put(size);
            self.pools[pool].get_or_insert(PoolCensus { class, blocks: 0 }).blocks += 1;
            *self.shares.entry((arena as u32, block.node, class)).or_default() += 1;
        }
        for pool in self.pools.iter().flatten() {
            let class = &mut self.classes[usize::from(pool.class)];
            class.pools += 1;
            class.blocks += u64::from(pool.blocks);
            class.free_blocks += self.geometry.blocks_per_pool(pool.class.into()) as u64 - u64::from(pool.blocks);
        }
    }

    /// Indices of the arena and pool that an address lies in. The arena at `guess` is tried first.
    pub fn place(&self, address: u64, guess: usize) -> Option<(usize, usize)> {
        let Geometry { arena_size, pool_size, .. } = self.geometry;
        let is_in = |arena: &ArenaCensus| address.wrapping_sub(arena.address) < arena_size as u64;
        let index = match self.arenas.get(guess) {
            Some(arena) if is_in(arena) => guess,
            _ => self.arenas.partition_point(|arena| arena.address <= address).checked_sub(1)?,
        };
        let arena = self.arenas.get(index).filter(|arena| is_in(arena))?;
        let first_pool = arena.address.next_multiple_of(pool_size as u64);
        let pool = address.checked_sub(first_pool)? as usize / pool_size;
        Some((index, index * self.geometry.pools_per_arena() + pool))
    }

    /// held: arenas × arena size.
    pub fn held(&self) -> u64 {
        (self.arenas.len() * self.geometry.arena_size) as u64
    }

    /// live: blocks in pools, at their size classes' sizes.
    pub fn live(&self) -> Sum {
        let sum = |of: fn(&Sum) -> u64| self.arenas.iter().map(|arena| of(&arena.live)).sum();
        Sum { blocks: sum(|live| live.blocks), bytes: sum(|live| live.bytes) }
    }

    /// needed: arenas × arena size if the same blocks lay packed, pool by pool, class by class, in the arenas with most pools.
    pub fn needed(&self) -> u64 {
        let pools = |(class, census): (usize, &ClassCensus)| census.blocks.div_ceil(self.geometry.blocks_per_pool(class) as u64);
        let mut left: u64 = self.classes.iter().enumerate().map(pools).sum();
        let mut totals: Vec<u64> = self.arenas.iter().map(|arena| u64::from(arena.pools + arena.free_pools)).collect();
        totals.sort_unstable_by(|a, b| b.cmp(a));
        let mut arenas = 0;
        for total in totals {
            if left == 0 {
                break;
            }
            left = left.saturating_sub(total);
            arenas += 1;
        }
        arenas * self.geometry.arena_size as u64
    }

    /// Bytes of blocks that pools with live blocks could still give.
    pub fn free_in_pools(&self) -> u64 {
        let bytes = |(class, census): (usize, &ClassCensus)| census.free_blocks * self.geometry.block_size(class) as u64;
        self.classes.iter().enumerate().map(bytes).sum()
    }

    /// Bytes of pools that hold no block.
    pub fn free_pools(&self) -> u64 {
        self.arenas.iter().map(|arena| u64::from(arena.free_pools)).sum::<u64>() * self.geometry.pool_size as u64
    }

    /// Pool headers, what is left of a pool behind its last block, and what an arena loses because it begins at no pool's boundary.
    pub fn rounding(&self) -> u64 {
        let Geometry { pool_size, arena_size, .. } = self.geometry;
        let rest = |class| {
            let block = self.geometry.block_size(class);
            POOL_OVERHEAD + (pool_size - POOL_OVERHEAD) % block
        };
        let pools: u64 = self.classes.iter().enumerate().map(|(class, census)| census.pools * rest(class) as u64).sum();
        let lost = |arena: &ArenaCensus| arena_size as u64 - u64::from(arena.pools + arena.free_pools) * pool_size as u64;
        pools + self.arenas.iter().map(lost).sum::<u64>()
    }

    /// Bytes that a trim would give back: see [`HeldArena::trimmable`].
    pub fn trimmable(&self) -> u64 {
        self.arenas.iter().map(|arena| arena.trimmable).sum()
    }

    /// For each number of arenas, how many blocks must be freed to empty that many arenas, the emptiest first. Also returns that order, as
    /// indices of arenas.
    pub fn greedy(&self) -> (Vec<(u64, u64)>, Vec<u32>) {
        let mut order: Vec<u32> = (0..self.arenas.len() as u32).collect();
        order.sort_by_key(|&arena| self.arenas[arena as usize].live.blocks);
        let mut blocks = 0;
        let curve = (1..).zip(&order).map(|(arenas, &arena)| {
            blocks += self.arenas[arena as usize].live.blocks;
            (blocks, arenas)
        });
        (curve.collect(), order)
    }
}
