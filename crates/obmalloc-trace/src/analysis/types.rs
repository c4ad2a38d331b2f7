//! The types of the live blocks of a moment, by site, if the recorder looked.

#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::collections::BTreeMap;

use rustc_hash::FxHashMap;
use serde::Serialize;

use super::census::Census;
use super::ledger::{Kind, Ledger, Sum};
use super::pinning::Pinning;
use super::sites::Sites;
use crate::stacks::Stacks;
use crate::types::Types;

/// Most types that are told of a site or a finding. The others are counted as one.
pub const MOST: usize = 100;
/// And on a page.
pub const MOST_OF_PAGE: usize = 20;
/// The name of the entry for all others.
const OTHERS: &str = "(other types)";

/// The blocks of one type.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[allow(missing_docs, reason = "the type's name, and blocks and their bytes at their classes' sizes")]
pub struct TypeCount {
    pub name: String,
    pub blocks: u64,
    pub bytes: u64,
}

/// Blocks in pools, by site and type, without blocks whose type is not known.
#[derive(Debug)]
pub struct Typed {
    types: Types,
    of_site: BTreeMap<(u32, u32), Sum>,
    /// The types of the blocks that pin arenas.
    survivors: BTreeMap<u32, Sum>,
}

impl Typed {
    /// Counts the live blocks. The ledger's are those of the census.
    pub fn of(
        types: Types,
        census: &Census,
        pinning: Option<&Pinning>,
        ledger: &Ledger,
        sites: &mut Sites,
        tree: &Stacks,
    ) -> Self {
        let mut typed = Self { types, of_site: BTreeMap::new(), survivors: BTreeMap::new() };
        let mut last = 0;
        for (_, block) in ledger.blocks() {
            let Kind::Pool(class) = block.kind else { continue };
            let Some(number) = typed.types.of(block.address) else { continue };
            let (site, size) = (sites.site(tree, block.node), ledger.class_size(class));
            typed.of_site.entry((site, number)).or_default().put(size);
            if let Some(pinning) = pinning.filter(|pinning| pinning.sites.contains(&site))
                && let Some((arena, _)) = census.place(block.address, last)
            {
                last = arena;
                if pinning.arenas.contains(&(arena as u32)) {
                    typed.survivors.entry(number).or_default().put(size);
                }
            }
        }
        typed
    }

    /// The types of some sites' live blocks, those with most blocks first.
    pub fn of_sites(&self, sites: &[u32]) -> Vec<TypeCount> {
        let of = |&site: &u32| self.of_site.range((site, 0)..=(site, u32::MAX)).map(|(&(_, number), &sum)| (number, sum));
        self.counts(sites.iter().flat_map(of))
    }

    /// The types of the blocks that pin arenas.
    pub fn of_survivors(&self) -> Vec<TypeCount> {
        self.counts(self.survivors.iter().map(|(&number, &sum)| (number, sum)))
    }

    /// One entry a name: a program can make many types of one name.
    fn counts(&self, sums: impl Iterator<Item = (u32, Sum)>) -> Vec<TypeCount> {
        let mut counts: FxHashMap<&str, Sum> = FxHashMap::default();
        for (number, sum) in sums {
            let count = counts.entry(self.types.name(number)).or_default();
            count.blocks += sum.blocks;
            count.bytes += sum.bytes;
        }
        let mut counts: Vec<TypeCount> =
            counts.into_iter().map(|(name, sum)| TypeCount { name: name.into(), blocks: sum.blocks, bytes: sum.bytes }).collect();
        counts.sort_unstable_by(|a, b| (Reverse(a.blocks), &a.name).cmp(&(Reverse(b.blocks), &b.name)));
        counts
    }
}

/// The first types, and one entry for all others if there are more than `most`.
pub fn bounded(mut counts: Vec<TypeCount>, most: usize) -> Vec<TypeCount> {
    if counts.len() > most {
        let mut others = TypeCount { name: OTHERS.into(), blocks: 0, bytes: 0 };
        for of in counts.drain(most - 1..) {
            others.blocks += of.blocks;
            others.bytes += of.bytes;
        }
        counts.push(others);
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_beyond_a_bound_are_one_entry() {
        let of = |name: &str, blocks| TypeCount { name: name.into(), blocks, bytes: 16 * blocks };
        let all = vec![of("a", 5), of("b", 4), of("c", 3)];
        assert_eq!(bounded(all.clone(), 3), all);
        assert_eq!(bounded(all, 2), [of("a", 5), of(OTHERS, 7)]);
    }
}
