//! Finds the size classes whose pools are half empty, and the sites of the blocks that keep those pools.

#![forbid(unsafe_code)]

use rustc_hash::{FxHashMap, FxHashSet};

use super::census::Census;
use super::ledger::{Kind, Ledger};
use super::pinning;
use super::rules::{NAMED, WORTH};
use super::sites::Sites;
use crate::stacks::Stacks;

/// Size classes whose pools are half empty.
#[derive(Clone, Debug)]
pub struct HalfEmpty {
    /// Those with nine of ten of the free bytes, the smallest first.
    pub classes: Vec<u8>,
    /// The bytes that are free in their used pools.
    pub free: u64,
    /// The numbers of the sites with most of their blocks, most blocks first.
    pub sites: Vec<u32>,
}

impl HalfEmpty {
    /// `None` below a fifth of held, and below [`WORTH`].
    pub fn of(census: &Census, sites: &mut Sites, tree: &Stacks) -> Option<Self> {
        let free_of = |class: u8| {
            let class = usize::from(class);
            census.classes[class].free_blocks * census.geometry.block_size(class) as u64
        };
        let is_half_empty = |&class: &u8| {
            let of = census.classes[usize::from(class)];
            of.free_blocks > 0 && of.free_blocks * 5 >= (of.blocks + of.free_blocks) * 2
        };
        // Classes with little are not named.
        let free: FxHashMap<u32, u64> =
            (0..census.classes.len() as u8).filter(is_half_empty).map(|class| (class.into(), free_of(class))).collect();
        let mut classes: Vec<u8> = pinning::most(free).into_iter().map(|class| class as u8).collect();
        classes.sort_unstable();
        let free: u64 = classes.iter().map(|&class| free_of(class)).sum();
        if free < WORTH || free * 5 < census.held() {
            return None;
        }
        let mut makers: FxHashMap<u32, u64> = FxHashMap::default();
        for (&(_, node, class), &blocks) in &census.shares {
            if classes.contains(&class) {
                *makers.entry(sites.site(tree, node)).or_default() += u64::from(blocks);
            }
        }
        let sites = pinning::most(makers).into_iter().take(NAMED).collect();
        Some(Self { classes, free, sites })
    }

    /// The blocks to make anew, by slot and size, the oldest first: those of these classes and sites.
    pub fn blocks(&self, ledger: &Ledger, sites: &mut Sites, tree: &Stacks) -> Vec<(u32, usize)> {
        let is_named: FxHashSet<u32> = self.sites.iter().copied().collect();
        let mut found = Vec::new();
        for (slot, block) in ledger.blocks() {
            let Kind::Pool(class) = block.kind else { continue };
            if self.classes.contains(&class) && is_named.contains(&sites.site(tree, block.node)) {
                found.push((block.born, slot, ledger.class_size(class) as usize));
            }
        }
        found.sort_unstable();
        found.into_iter().map(|(_, slot, size)| (slot, size)).collect()
    }
}
