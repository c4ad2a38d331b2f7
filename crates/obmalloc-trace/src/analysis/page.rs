//! `obmalloc.report/1`: the page's data. A list that is cut says how long it was.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use serde::Serialize;

use super::census::Census;
use super::columns::Column;
use super::film::Film;
use super::ledger::{Kind, Ledger};
use super::shares::Shares;
use super::sites::{Frame, Sites};
use super::tree::{Tree, Values};
use super::why::Why;
use crate::moments::Outline;
use crate::stacks::Stacks;
use crate::what_if::{TrialsError, Tried};

/// Most blocks of the map.
const MOST_BLOCKS: usize = 1_000_000;
/// No site, or a site that the page's data does not list.
const NO_SITE: u16 = u16::MAX;
/// A pool that holds no block; a place that alignment takes.
const FREE: u8 = 255;
const ALIGNMENT: u8 = 254;

/// The whole page. The code that makes the page adds sources, the rows of trials, and the diff.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Page {
    schema: &'static str,
    #[serde(flatten)]
    still: Still,
    timeline: Timeline,
    arena_events: ArenaEvents,
    play: Play,
    slots: u32,
    sources: BTreeMap<String, String>,
    /// The results of the settings that were tried, or why none could be tried.
    tried: Option<Tried>,
    tried_error: Option<String>,
    what_if: [(); 0],
    diff: Option<()>,
}

/// What of it is of the moment.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Still {
    why: Why,
    summary: Vec<String>,
    frames: Vec<Frame>,
    stacks: StackColumns,
    map: Map,
    classes: Vec<Class>,
    ages: Ages,
    sure: Sure,
}

#[derive(Debug, Serialize)]
struct Timeline {
    shown: u64,
    of: u64,
    seconds: Column,
    event: Column,
    held: Column,
    live: Column,
    raw: Column,
    large: Column,
    resident: Column,
}

#[derive(Debug, Serialize)]
struct ArenaEvents {
    shown: u64,
    of: u64,
    event: Column,
    seconds: Column,
    address: Column,
    taken: Column,
}

#[derive(Debug, Serialize)]
struct StackColumns {
    shown: usize,
    of: usize,
    parent: Column,
    frame: Column,
    held: Column,
    live: Column,
    peak: Column,
    allocated: Column,
    temporary: Column,
    blocks: Column,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Map {
    pool_size: usize,
    pools_per_arena: usize,
    arenas: Column,
    class: Column,
    fill: Column,
    site: Column,
    born: Column,
    blocks: Blocks,
}

#[derive(Debug, Serialize)]
struct Blocks {
    shown: usize,
    of: u64,
    pool: Column,
    index: Column,
    site: Column,
    born: Column,
}

#[derive(Debug, Serialize)]
struct Play {
    shown: usize,
    of: usize,
    seconds: Column,
    event: Column,
    arenas: Column,
    fill: Column,
}

#[derive(Debug, Serialize)]
struct Class {
    size: usize,
    pools: u64,
    blocks: u64,
    live: u64,
    free: u64,
}

/// Blocks in pools by age, in seconds: from an edge up to the next. One stretch where time is not known.
#[derive(Debug, Serialize)]
struct Ages {
    edges: Vec<f64>,
    blocks: Vec<u64>,
    bytes: Vec<u64>,
}

/// How sure the figures are.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "named as in the page's data")]
pub struct Sure {
    pub addresses: u64,
    pub matched: u64,
    pub not_recorded: Vec<String>,
    pub python: String,
    pub release: String,
    pub command: Vec<String>,
    pub stacks: usize,
    pub version: String,
}

/// What the page is made of.
pub struct Parts<'a> {
    pub outline: &'a Outline,
    pub ledger: &'a Ledger,
    pub census: &'a Census,
    pub peak: Option<&'a Census>,
    pub shares: &'a Shares,
    pub tree: &'a Stacks,
}

impl Parts<'_> {
    /// A birth, as the page's colours have it.
    fn born(&self, event: u64) -> u8 {
        (u128::from(event) * 255 / u128::from(self.outline.events.max(1))) as u8
    }

    fn classes(&self) -> Vec<Class> {
        let geometry = self.census.geometry;
        let class = |(class, of): (usize, &super::ClassCensus)| {
            let size = geometry.block_size(class);
            Class { size, pools: of.pools, blocks: of.blocks, live: of.blocks * size as u64, free: of.free_blocks * size as u64 }
        };
        self.census.classes.iter().enumerate().map(class).collect()
    }

    fn ages(&self) -> Ages {
        let now = self.outline.seconds(self.census.event);
        let age = |born| now.map_or(0.0, |now| now - self.outline.seconds(born).unwrap_or(0.0));
        let oldest = now.unwrap_or(0.0).max(0.001);
        let mut edges = vec![0.0, 0.001];
        while edges[edges.len() - 1] < oldest {
            edges.push(edges[edges.len() - 1] * 10.0_f64.sqrt());
        }
        let mut ages = Ages { blocks: vec![0; edges.len() - 1], bytes: vec![0; edges.len() - 1], edges };
        for (_, block) in self.ledger.blocks() {
            if let Kind::Pool(class) = block.kind {
                let age = age(block.born);
                let bin = ages.edges.partition_point(|&edge| edge <= age).saturating_sub(1).min(ages.blocks.len() - 1);
                ages.blocks[bin] += 1;
                ages.bytes[bin] += self.ledger.class_size(class);
            }
        }
        ages
    }

    fn map(&self, sites: &mut Sites, arenas: usize, told: usize) -> Map {
        let geometry = self.census.geometry;
        let per_arena = geometry.pools_per_arena();
        let pools = arenas * per_arena;
        let (mut class, mut fill) = (vec![FREE; pools], vec![0; pools]);
        for (pool, counted) in self.census.pools[..pools].iter().enumerate() {
            if let Some(counted) = counted {
                class[pool] = counted.class;
                let of = geometry.blocks_per_pool(counted.class.into());
                fill[pool] = (usize::from(counted.blocks) * 255 / of).max(1) as u8;
            }
        }
        for (arena, counted) in self.census.arenas[..arenas].iter().enumerate() {
            let there = (counted.pools + counted.free_pools) as usize;
            class[arena * per_arena + there..(arena + 1) * per_arena].fill(ALIGNMENT);
        }
        let mut blocks = self.blocks(sites, pools, told);
        blocks.sort_unstable();
        let (mut site, mut born) = (vec![NO_SITE; pools], vec![0; pools]);
        for blocks in blocks.chunk_by(|a, b| a.0 == b.0) {
            let pool = blocks[0].0 as usize;
            born[pool] = blocks.iter().map(|block| block.3).max().unwrap_or(0);
            let mut counts: BTreeMap<u16, u32> = BTreeMap::new();
            blocks.iter().for_each(|block| *counts.entry(block.2).or_default() += 1);
            site[pool] = counts.into_iter().max_by_key(|&(_, count)| count).map_or(NO_SITE, |(site, _)| site);
        }
        let of = self.census.live().blocks;
        blocks.truncate(MOST_BLOCKS);
        Map {
            pool_size: geometry.pool_size,
            pools_per_arena: per_arena,
            arenas: Column::wide(self.census.arenas[..arenas].iter().map(|arena| arena.address)),
            class: Column::U8(class),
            fill: Column::U8(fill),
            site: Column::U16(site),
            born: Column::U8(born),
            blocks: Blocks {
                shown: blocks.len(),
                of,
                pool: Column::U32(blocks.iter().map(|block| block.0).collect()),
                index: Column::U16(blocks.iter().map(|block| block.1).collect()),
                site: Column::U16(blocks.iter().map(|block| block.2).collect()),
                born: Column::U8(blocks.iter().map(|block| block.3).collect()),
            },
        }
    }

    /// The live blocks of the first pools: pool, index in it, site, birth.
    fn blocks(&self, sites: &mut Sites, pools: usize, told: usize) -> Vec<(u32, u16, u16, u8)> {
        let geometry = self.census.geometry;
        let mut blocks = Vec::new();
        let mut last = 0;
        for (_, block) in self.ledger.blocks() {
            let Kind::Pool(class) = block.kind else { continue };
            let Some((arena, pool)) = self.census.place(block.address, last) else { continue };
            last = arena;
            if pool >= pools {
                continue;
            }
            let in_pool = (block.address % geometry.pool_size as u64).saturating_sub(obmalloc::profile::POOL_OVERHEAD as u64);
            let index = in_pool / self.ledger.class_size(class);
            let site = self.shares.index.get(&sites.site(self.tree, block.node)).copied().filter(|&site| (site as usize) < told);
            blocks.push((pool as u32, index as u16, site.map_or(NO_SITE, |site| site as u16), self.born(block.born)));
        }
        blocks
    }

    /// What each stack has, as a tree.
    fn stacks(&self, sites: &mut Sites) -> (Vec<Frame>, StackColumns) {
        let at_peak = self.peak.map(|peak| Shares::of(peak, sites, self.tree));
        let at_peak = at_peak.as_ref().unwrap_or(self.shares);
        for node in (0..).zip(&self.census.flows).filter(|(_, flow)| flow.made_blocks > 0).map(|(node, _)| node) {
            sites.site(self.tree, node);
        }
        let mut values = vec![Values::default(); sites.len()];
        for (node, flow) in (0..).zip(&self.census.flows).filter(|(_, flow)| flow.made_blocks > 0) {
            let value = &mut values[sites.site(self.tree, node) as usize];
            value.allocated += flow.made;
            value.temporary += flow.temporary;
        }
        for share in &self.shares.sites {
            let value = &mut values[share.site as usize];
            (value.held, value.live, value.blocks) = (share.held, share.live.bytes, share.live.blocks);
        }
        for share in &at_peak.sites {
            values[share.site as usize].peak = share.held;
        }
        let tree = Tree::of(sites, &values);
        let column = |of: fn(&Values) -> u64| Column::wide(tree.nodes.iter().map(|node| of(&node.own)));
        let columns = StackColumns {
            shown: tree.nodes.len(),
            of: tree.of,
            parent: Column::U32(tree.nodes.iter().map(|node| node.parent).collect()),
            frame: Column::U32(tree.nodes.iter().map(|node| node.frame).collect()),
            held: column(|own| own.held),
            live: column(|own| own.live),
            peak: column(|own| own.peak),
            allocated: column(|own| own.allocated),
            temporary: column(|own| own.temporary),
            blocks: column(|own| own.blocks),
        };
        (tree.frames, columns)
    }
}

/// When events were, as a column.
fn seconds(outline: &Outline, events: impl Iterator<Item = u64>) -> Column {
    Column::F64(events.map(|event| outline.seconds(event).unwrap_or(f64::NAN)).collect())
}

impl Timeline {
    fn of(film: &Film, outline: &Outline) -> Self {
        let rows = &film.rows;
        let mut resident = vec![f64::NAN; rows.len()];
        for sample in &outline.samples {
            let row = rows.partition_point(|row| row.event < sample.event).min(rows.len().saturating_sub(1));
            if let Some(resident) = resident.get_mut(row) {
                *resident = sample.memory.resident() as f64;
            }
        }
        Self {
            shown: rows.len() as u64,
            of: film.all_rows,
            seconds: seconds(outline, rows.iter().map(|row| row.event)),
            event: Column::wide(rows.iter().map(|row| row.event)),
            held: Column::wide(rows.iter().map(|row| row.held)),
            live: Column::wide(rows.iter().map(|row| row.live)),
            raw: Column::wide(rows.iter().map(|row| row.raw)),
            large: Column::wide(rows.iter().map(|row| row.large)),
            resident: Column::F64(resident),
        }
    }
}

impl ArenaEvents {
    fn of(film: &Film, outline: &Outline) -> Self {
        let events = &film.arena_events;
        Self {
            shown: events.len() as u64,
            of: film.all_arena_events,
            event: Column::wide(events.iter().map(|event| event.event)),
            seconds: seconds(outline, events.iter().map(|event| event.event)),
            address: Column::wide(events.iter().map(|event| event.address)),
            taken: Column::U8(events.iter().map(|event| event.taken.into()).collect()),
        }
    }
}

impl Play {
    fn of(film: &Film, outline: &Outline) -> Self {
        let (frames, slots) = (&film.frames, film.most_slots);
        let mut fill = Vec::new();
        for frame in frames {
            fill.extend_from_slice(&frame.fill);
            fill.resize(fill.len() + slots as usize - frame.fill.len(), 0);
        }
        Self {
            shown: frames.len(),
            of: frames.len(),
            seconds: seconds(outline, frames.iter().map(|frame| frame.event)),
            event: Column::wide(frames.iter().map(|frame| frame.event)),
            arenas: Column::U32(frames.iter().map(|frame| frame.arenas).collect()),
            fill: Column::U8(fill),
        }
    }
}

impl Still {
    /// Builds it. `why` is the answer, cut to what a page bears: its first `most_sites` sites are in the order of the shares.
    pub fn of(parts: &Parts<'_>, sites: &mut Sites, why: Why, summary: Vec<String>, sure: Sure, most_sites: usize) -> Self {
        let (frames, stacks) = parts.stacks(sites);
        let map = parts.map(sites, why.arenas.len(), most_sites.min(parts.shares.sites.len()));
        Self { why, summary, frames, stacks, map, classes: parts.classes(), ages: parts.ages(), sure }
    }
}

impl Page {
    /// Adds what happened when, and what was tried.
    pub fn of(still: Still, film: &Film, outline: &Outline, tried: Option<Result<Tried, TrialsError>>) -> Self {
        let (tried, error) = match tried.transpose() {
            Ok(tried) => (tried, None),
            Err(error) => (None, Some(error.to_string())),
        };
        Self {
            schema: "obmalloc.report/1",
            still,
            timeline: Timeline::of(film, outline),
            arena_events: ArenaEvents::of(film, outline),
            play: Play::of(film, outline),
            slots: film.most_slots,
            sources: BTreeMap::new(),
            tried,
            tried_error: error,
            what_if: [],
            diff: None,
        }
    }
}
