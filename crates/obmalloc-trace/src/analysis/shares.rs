//! What each site holds at a moment.

#![forbid(unsafe_code)]

use rustc_hash::FxHashMap;

use super::census::Census;
use super::ledger::Sum;
use super::rules::Finding;
use super::sites::Sites;
use crate::stacks::Stacks;

/// A site's figures.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Share {
    /// The site's number among [`Sites`].
    pub site: u32,
    /// In pools, at their classes' sizes.
    pub live: Sum,
    /// Its share of held: each arena's bytes, divided among the sites of its live blocks by their number. An arena without live blocks is added to
    /// the site without frames, so that all shares add up to `held`.
    pub held: u64,
    /// Arenas in which it has a live block.
    pub touched: u32,
    /// Those of them in which no other site has one.
    pub alone: u32,
    /// The events that made its first block in a pool, and its last.
    pub born: (u64, u64),
    /// Blocks of the raw domain.
    pub raw: Sum,
    /// Blocks of mem and obj above 512 bytes.
    pub large: Sum,
}

impl Share {
    fn empty(site: u32) -> Self {
        let none = Sum::default();
        Self { site, live: none, held: 0, touched: 0, alone: 0, born: (u64::MAX, 0), raw: none, large: none }
    }
}

/// The figures of all sites.
#[derive(Clone, Debug, Default)]
pub struct Shares {
    /// Those with the largest share of held first.
    pub sites: Vec<Share>,
    /// By a site's number: its index above.
    pub index: FxHashMap<u32, u32>,
    /// By arena, as in the census: the sites of its blocks (indices above), with how many blocks each has, most first.
    pub of_arena: Vec<Vec<(u32, u32)>>,
}

impl Shares {
    /// Divides the bytes of a census among the sites.
    pub fn of(census: &Census, sites: &mut Sites, tree: &Stacks) -> Self {
        let mut shares: FxHashMap<u32, Share> = FxHashMap::default();
        let mut nodes: Vec<_> = census.nodes.iter().collect();
        nodes.sort_unstable_by_key(|&(node, _)| node);
        for (&node, counted) in nodes {
            let share = entry(&mut shares, sites.site(tree, node));
            add(&mut share.live, counted.live);
            add(&mut share.raw, counted.raw);
            add(&mut share.large, counted.large);
            share.born = (share.born.0.min(counted.born.0), share.born.1.max(counted.born.1));
        }
        let mut of_arena: Vec<Vec<(u32, u32)>> = vec![Vec::new(); census.arenas.len()];
        for (&(arena, node, _), &blocks) in &census.shares {
            of_arena[arena as usize].push((sites.site(tree, node), blocks));
        }
        let unknown = sites.site(tree, 0);
        for (sharers, arena) in of_arena.iter_mut().zip(&census.arenas) {
            *sharers = merged(std::mem::take(sharers));
            divide(census.geometry.arena_size as u64, arena.live.blocks, sharers, |site, held| {
                entry(&mut shares, site.unwrap_or(unknown)).held += held;
            });
            for &(site, _) in &*sharers {
                let share = entry(&mut shares, site);
                share.touched += 1;
                share.alone += u32::from(sharers.len() == 1);
            }
        }
        Self::sorted(shares, of_arena)
    }

    /// The first `most` sites, and then others that findings name, which may have nothing live. The findings' sites become indices of these.
    pub fn told(&self, most: usize, findings: &mut [Finding]) -> Vec<Share> {
        let mut told: Vec<Share> = self.sites.iter().take(most).copied().collect();
        let mut index: FxHashMap<u32, u32> = (0..).zip(&told).map(|(index, share)| (share.site, index)).collect();
        for &site in findings.iter().flat_map(|finding| finding.sites.iter().chain(&finding.burst)) {
            index.entry(site).or_insert_with(|| {
                let share = self.index.get(&site).map_or_else(|| Share::empty(site), |&index| self.sites[index as usize]);
                told.push(share);
                told.len() as u32 - 1
            });
        }
        findings.iter_mut().for_each(|finding| finding.resolve(|site| index[&site]));
        told
    }

    fn sorted(shares: FxHashMap<u32, Share>, mut of_arena: Vec<Vec<(u32, u32)>>) -> Self {
        let mut sites: Vec<Share> = shares.into_values().collect();
        let outside = |share: &Share| share.raw.bytes + share.large.bytes;
        sites.sort_unstable_by_key(|share| std::cmp::Reverse((share.held, share.live.bytes, outside(share), share.site)));
        let index: FxHashMap<u32, u32> = (0..).zip(&sites).map(|(index, share)| (share.site, index)).collect();
        for sharer in of_arena.iter_mut().flatten() {
            sharer.0 = index[&sharer.0];
        }
        Self { sites, index, of_arena }
    }
}

fn entry(shares: &mut FxHashMap<u32, Share>, site: u32) -> &mut Share {
    shares.entry(site).or_insert(Share::empty(site))
}

fn add(to: &mut Sum, more: Sum) {
    to.blocks += more.blocks;
    to.bytes += more.bytes;
}

/// One entry a site, most blocks first.
fn merged(mut sharers: Vec<(u32, u32)>) -> Vec<(u32, u32)> {
    sharers.sort_unstable();
    sharers.dedup_by(|next, kept| {
        let same = next.0 == kept.0;
        if same {
            kept.1 += next.1;
        }
        same
    });
    sharers.sort_unstable_by_key(|&(site, blocks)| (std::cmp::Reverse(blocks), site));
    sharers
}

/// Divides an arena's `bytes` by blocks. What does not divide goes to the first site, so that the sum is exact.
fn divide(bytes: u64, blocks: u64, sharers: &[(u32, u32)], mut give: impl FnMut(Option<u32>, u64)) {
    let mut left = bytes;
    for &(site, its) in sharers {
        let share = (u128::from(bytes) * u128::from(its) / u128::from(blocks.max(1))) as u64;
        give(Some(site), share);
        left -= share;
    }
    give(sharers.first().map(|&(site, _)| site), left);
}
