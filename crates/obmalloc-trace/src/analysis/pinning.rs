//! Who pins arenas, and among what.

use std::cmp::Reverse;

use rustc_hash::{FxHashMap, FxHashSet};

use super::census::Census;
use super::ledger::{Kind, Ledger, Sum};
use super::rules::WORTH;
use super::shares::Shares;
use super::sites::Sites;
use super::why::Pinned;
use crate::stacks::Stacks;

/// Few blocks that keep arenas which would not be needed.
#[derive(Clone, Debug)]
pub struct Pinning {
    /// The sites with nine of ten of the blocks in those arenas: indices, most blocks first.
    pub sites: Vec<u32>,
    /// What these sites have live there.
    pub live: Sum,
    /// Arenas that have blocks of these sites, and are not needed.
    pub arenas: u64,
    /// What lay there too when most was held.
    pub burst: Option<Burst>,
}

/// Blocks of the same size classes in the same arenas.
#[derive(Clone, Debug)]
pub struct Burst {
    /// The sites with nine of ten of them, by their numbers, most blocks first.
    pub sites: Vec<u32>,
    /// How many there were, and how many are left.
    pub blocks: u64,
    #[allow(missing_docs, reason = "said above")]
    pub left: u64,
}

impl Pinning {
    /// `None` below a quarter of held, below [`WORTH`], and where more than a quarter of the arenas that are not needed is live.
    pub fn of(
        census: &Census,
        peak: Option<&Census>,
        shares: &Shares,
        pinned: Pinned,
        sites: &mut Sites,
        tree: &Stacks,
    ) -> Option<Self> {
        let (_, order) = census.greedy();
        let arenas = &order[..pinned.arenas as usize];
        let live: u64 = arenas.iter().map(|&arena| census.arenas[arena as usize].live.bytes).sum();
        if pinned.bytes <= WORTH || pinned.bytes * 4 < census.held() || live * 4 > pinned.bytes {
            return None;
        }
        let mut blocks: FxHashMap<u32, u64> = FxHashMap::default();
        for &(site, its) in arenas.iter().flat_map(|&arena| &shares.of_arena[arena as usize]) {
            *blocks.entry(site).or_default() += u64::from(its);
        }
        let chosen = most(blocks);
        let is_chosen: FxHashSet<u32> = chosen.iter().copied().collect();
        let arenas: FxHashSet<u32> = arenas
            .iter()
            .copied()
            .filter(|&arena| shares.of_arena[arena as usize].iter().any(|(site, _)| is_chosen.contains(site)))
            .collect();
        let (mut live, mut classes) = (Sum::default(), FxHashSet::default());
        for (&(arena, node, class), &its) in &census.shares {
            let site = shares.index[&sites.site(tree, node)];
            if arenas.contains(&arena) && is_chosen.contains(&site) {
                live.blocks += u64::from(its);
                live.bytes += u64::from(its) * census.geometry.block_size(class.into()) as u64;
                classes.insert(class);
            }
        }
        if chosen.is_empty() {
            return None;
        }
        let burst = peak.and_then(|peak| burst(census, peak, &arenas, &classes, sites, tree));
        Some(Self { sites: chosen, live, arenas: arenas.len() as u64, burst })
    }

    /// The slots and sizes of all blocks of these sites that lie in pools, the oldest first.
    pub fn survivors(&self, ledger: &Ledger, shares: &Shares, sites: &mut Sites, tree: &Stacks) -> Vec<(u32, usize)> {
        let is_chosen: FxHashSet<u32> = self.sites.iter().copied().collect();
        let mut found = Vec::new();
        for (slot, block) in ledger.blocks() {
            if let Kind::Pool(class) = block.kind
                && shares.index.get(&sites.site(tree, block.node)).is_some_and(|site| is_chosen.contains(site))
            {
                found.push((block.born, slot, ledger.class_size(class) as usize));
            }
        }
        found.sort_unstable();
        found.into_iter().map(|(_, slot, size)| (slot, size)).collect()
    }
}

/// Those with nine of ten of all blocks, most blocks first.
fn most(blocks: FxHashMap<u32, u64>) -> Vec<u32> {
    let mut blocks: Vec<(u32, u64)> = blocks.into_iter().collect();
    blocks.sort_unstable_by_key(|&(site, its)| (Reverse(its), site));
    let all: u64 = blocks.iter().map(|&(_, its)| its).sum();
    let mut sum = 0;
    let is_enough = |&(_, its): &(u32, u64)| {
        let goes_on = sum * 10 < all * 9;
        sum += its;
        goes_on
    };
    blocks.into_iter().take_while(is_enough).map(|(site, _)| site).collect()
}

/// What lay in `arenas` when most was held, of these size classes. `None` where the arenas were others then.
fn burst(
    now: &Census,
    peak: &Census,
    arenas: &FxHashSet<u32>,
    classes: &FxHashSet<u8>,
    sites: &mut Sites,
    tree: &Stacks,
) -> Option<Burst> {
    let same: FxHashSet<(u64, u64)> =
        arenas.iter().map(|&arena| &now.arenas[arena as usize]).map(|arena| (arena.address, arena.taken)).collect();
    let is_there = |census: &Census, arena: u32| {
        let arena = &census.arenas[arena as usize];
        same.contains(&(arena.address, arena.taken))
    };
    let mut blocks: FxHashMap<u32, u64> = FxHashMap::default();
    for (&(arena, node, class), &its) in &peak.shares {
        if classes.contains(&class) && is_there(peak, arena) {
            *blocks.entry(sites.site(tree, node)).or_default() += u64::from(its);
        }
    }
    let of_class = |(&(arena, _, class), &its): (&(u32, u32, u8), &u32)| {
        (classes.contains(&class) && is_there(now, arena)).then_some(u64::from(its))
    };
    let left = now.shares.iter().filter_map(of_class).sum();
    let all = blocks.values().sum();
    (all > left).then(|| Burst { sites: most(blocks), blocks: all, left })
}
