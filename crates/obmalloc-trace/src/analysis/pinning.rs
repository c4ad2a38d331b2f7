//! Finds the sites that pin arenas, and the blocks among which theirs were made.

#![forbid(unsafe_code)]

use std::cmp::Reverse;

use rustc_hash::{FxHashMap, FxHashSet};

use super::census::Census;
use super::deaths::{Deaths, Within};
use super::ledger::{Kind, Ledger, Sum};
use super::rules::WORTH;
use super::shares::Shares;
use super::sites::Sites;
use super::why::Pinned;
use crate::stacks::Stacks;

/// The most dead objects of a kind that CPython keeps: its bound for tuples of one length.
const MOST_DEAD: usize = 2_000;
/// A site in at least this many arenas may count as widespread.
const FEWEST: usize = 3;

/// Few blocks that keep arenas that would not be needed.
#[derive(Clone, Debug)]
pub struct Pinning {
    /// The numbers of the sites with nine of ten of the blocks in those arenas, most blocks first; then any other site with a block in a tenth of
    /// the arenas, because it would keep those. Sites in one arena or two are left out if the others are in nine of ten of the arenas.
    pub sites: Vec<u32>,
    /// The live blocks of these sites there.
    pub live: Sum,
    /// The arenas that have blocks of these sites and are not needed: indices of the census.
    pub arenas: FxHashSet<u32>,
    /// The other blocks that lay there when the arenas were full, if most of them have died.
    pub burst: Option<Burst>,
}

/// Blocks in the same arenas: only those of the same size classes, if most of the dead blocks were of these.
#[derive(Clone, Debug)]
pub struct Burst {
    /// The numbers of the sites with nine of ten of the dead blocks, most blocks first.
    pub sites: Vec<u32>,
    /// How many blocks there were.
    pub blocks: u64,
    /// How many of them have died.
    pub died: u64,
    /// Whether only blocks of the same size classes count.
    pub is_of_same_classes: bool,
    /// The time within which almost all of the dead blocks died, if time is known.
    pub within: Option<Within>,
}

impl Pinning {
    /// `None` below a quarter of held, below [`WORTH`], and where more than a quarter of the arenas that are not needed is live.
    pub fn of(
        census: &Census,
        full: Option<&Census>,
        deaths: Option<&Deaths>,
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
        let (mut blocks, mut touched) = (FxHashMap::default(), FxHashMap::default());
        for &(site, its) in arenas.iter().flat_map(|&arena| &shares.of_arena[arena as usize]) {
            *blocks.entry(site).or_default() += u64::from(its);
            *touched.entry(site).or_default() += 1;
        }
        let mut chosen = most(blocks);
        chosen.extend(widespread(&touched, arenas.len(), &chosen));
        // What lies in an arena or two is not what keeps the others, such as what an import made in the middle of a burst.
        let spread: Vec<u32> = chosen.iter().copied().filter(|site| touched[site] >= FEWEST).collect();
        let is_kept = |&&arena: &&u32| shares.of_arena[arena as usize].iter().any(|(site, _)| spread.contains(site));
        if arenas.iter().filter(is_kept).count() * 10 >= arenas.len() * 9 {
            chosen = spread;
        }
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
        let burst = full.and_then(|full| burst(census, full, deaths, &arenas, &classes, sites, tree));
        let chosen = chosen.into_iter().map(|site| shares.sites[site as usize].site).collect();
        Some(Self { sites: chosen, live, arenas, burst })
    }

    /// The blocks to make anew: those of these sites in pools that were made since the first of these arenas was taken. Older blocks are not of the
    /// burst; Python's start makes some.
    pub fn survivors(&self, census: &Census, ledger: &Ledger, sites: &mut Sites, tree: &Stacks) -> Survivors {
        let is_chosen: FxHashSet<u32> = self.sites.iter().copied().collect();
        let first = self.arenas.iter().map(|&arena| census.arenas[arena as usize].taken).min().unwrap_or(0);
        let (mut found, mut others, mut last) = (Vec::new(), FxHashSet::default(), 0);
        let mut classes: FxHashMap<u8, usize> = FxHashMap::default();
        for (slot, block) in ledger.blocks() {
            let Kind::Pool(class) = block.kind else { continue };
            let Some((arena, _)) = census.place(block.address, last) else { continue };
            last = arena;
            if block.born >= first && is_chosen.contains(&sites.site(tree, block.node)) {
                found.push((block.born, slot, ledger.class_size(class) as usize));
                *classes.entry(class).or_default() += 1;
            } else {
                others.insert(arena);
            }
        }
        found.sort_unstable();
        let may_be_dead = classes.values().map(|&blocks| blocks.min(MOST_DEAD)).sum();
        let blocks = found.into_iter().map(|(_, slot, size)| (slot, size)).collect();
        Survivors { blocks, others: others.len() as u64, may_be_dead }
    }
}

/// The blocks that the trial makes anew.
#[derive(Clone, Debug)]
pub struct Survivors {
    /// Slots and sizes, the oldest first.
    pub blocks: Vec<(u32, usize)>,
    /// How many arenas also hold other blocks, and so stay.
    pub others: u64,
    /// How many of them may be dead objects that CPython keeps for new ones. A recording cannot tell.
    pub may_be_dead: usize,
}

/// The sites with nine of ten of all blocks, or of whatever is counted, those with most first.
pub fn most(blocks: FxHashMap<u32, u64>) -> Vec<u32> {
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

/// The sites in at least a tenth of the arenas, and in at least [`FEWEST`], those in most arenas first; without the `known` ones.
fn widespread(touched: &FxHashMap<u32, usize>, arenas: usize, known: &[u32]) -> Vec<u32> {
    let is_one = |&(site, its): &(u32, usize)| its >= FEWEST && its * 10 >= arenas && !known.contains(&site);
    let mut found: Vec<(u32, usize)> = touched.iter().map(|(&site, &its)| (site, its)).filter(is_one).collect();
    found.sort_unstable_by_key(|&(site, its)| (Reverse(its), site));
    found.into_iter().map(|(site, _)| site).collect()
}

/// The burst that lay in `arenas` when they were `full`. `None` if these arenas were not held then, or no block has died.
pub fn burst(
    now: &Census,
    full: &Census,
    deaths: Option<&Deaths>,
    arenas: &FxHashSet<u32>,
    classes: &FxHashSet<u8>,
    sites: &mut Sites,
    tree: &Stacks,
) -> Option<Burst> {
    // An arena that was given back can be taken again at its address.
    let then: FxHashSet<(u64, u64)> = full.arenas.iter().map(|arena| (arena.address, arena.taken)).collect();
    let same: FxHashSet<(u64, u64)> = arenas
        .iter()
        .map(|&arena| &now.arenas[arena as usize])
        .map(|arena| (arena.address, arena.taken))
        .filter(|arena| then.contains(arena))
        .collect();
    let mut of = |census: &Census, is_of_same_classes: bool| {
        let mut blocks: FxHashMap<u32, u64> = FxHashMap::default();
        for (&(arena, node, class), &its) in &census.shares {
            let arena = &census.arenas[arena as usize];
            if same.contains(&(arena.address, arena.taken)) && (!is_of_same_classes || classes.contains(&class)) {
                *blocks.entry(sites.site(tree, node)).or_default() += u64::from(its);
            }
        }
        blocks
    };
    let mut died = |is_of_same_classes| {
        let (then, left) = (of(full, is_of_same_classes), of(now, is_of_same_classes));
        let all: u64 = then.values().sum();
        let gone = |(site, its): (u32, u64)| (site, its.saturating_sub(left.get(&site).copied().unwrap_or(0)));
        let died: FxHashMap<u32, u64> = then.into_iter().map(gone).filter(|&(_, its)| its > 0).collect();
        Burst { blocks: all, died: died.values().sum(), sites: most(died), is_of_same_classes, within: None }
    };
    let (of_classes, of_all) = (died(true), died(false));
    let mut burst = if of_classes.died * 2 >= of_all.died { of_classes } else { of_all };
    let addresses = same.iter().map(|arena| arena.0).collect();
    burst.within = deaths.and_then(|deaths| deaths.within(&addresses, burst.is_of_same_classes.then_some(classes)));
    // Comparing two moments is inexact, because a site may have made blocks in between. Counted deaths are exact.
    burst.died = burst.within.map_or(burst.died, |within| within.all);
    (burst.died > 0 && !burst.sites.is_empty()).then_some(burst)
}
