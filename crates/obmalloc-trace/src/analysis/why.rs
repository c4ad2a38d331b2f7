//! `obmalloc.why/1`: the answer as data. `schema/why-1.json` describes it.

#![forbid(unsafe_code)]

use serde::{Serialize, Serializer};

use super::census::Census;
use super::rules::Finding;
use super::shares::{Share, Shares};
use super::sites::{Frame, Sites};
use super::types::{self, TypeCount, Typed};
use crate::moments::{Mark, Outline, Sample};

/// Most sites that pin an arena that are told of it.
const SHARERS: usize = 16;
/// Most points of the greedy curve.
const POINTS: usize = 1_000;

/// The answer. Sizes in bytes, moments as event numbers and seconds, `site` an index, stacks innermost frame first.
#[derive(Debug, Serialize)]
#[allow(missing_docs, reason = "the fields of the data")]
pub struct Why {
    pub schema: &'static str,
    pub trace: Trace,
    pub verified: Verified,
    pub at: At,
    pub totals: Totals,
    pub pinned: Pinned,
    pub sites: Vec<Site>,
    pub arenas: Vec<Arena>,
    /// How many sites and arenas there are, if the answer does not list all.
    pub bounded: Bounded,
    pub greedy: Vec<(u64, u64)>,
    pub findings: Vec<Finding>,
}

#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs, reason = "the fields of the data")]
pub struct Trace {
    pub path: String,
    pub python: String,
    pub release: String,
    pub events: u64,
    pub seconds: Option<f64>,
    /// Whether it goes to the end of the process, and the recorder missed nothing.
    pub complete: bool,
    pub marks: Vec<Mark>,
}

/// Addresses that were compared on the way to the moment, and those of them that are equal.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[allow(missing_docs, reason = "the fields of the data")]
pub struct Verified {
    pub addresses: u64,
    pub matched: u64,
}

#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs, reason = "the fields of the data")]
pub struct At {
    pub event: u64,
    pub seconds: Option<f64>,
    pub moment: String,
}

/// held = live + freeInPools + freePools + rounding.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields of the data; `Census` defines them")]
pub struct Totals {
    pub arenas: u64,
    pub held: u64,
    pub needed: u64,
    pub live: u64,
    pub blocks: u64,
    pub free_in_pools: u64,
    pub free_pools: u64,
    pub rounding: u64,
    pub raw: u64,
    pub large: u64,
    pub trimmable: u64,
    /// What was resident at the last sample before the moment.
    pub resident: Option<u64>,
    /// The anonymous resident memory at that sample that was neither in arenas nor in recorded blocks of C's `malloc`: memory from other
    /// allocators than Python's, free memory of C's heap, and the process's own stacks and tables. Pools that were never in use are not resident,
    /// and do not count as explained. 0 if more is explained than is resident.
    pub unexplained: Option<u64>,
    /// The free memory of C's `malloc` at that sample, resident or not. `None` if the C library does not tell.
    pub heap_free: Option<u64>,
}

/// pinned = held − needed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Pinned {
    /// Arenas that would not be needed.
    pub arenas: u64,
    /// held − needed.
    pub bytes: u64,
    /// For a number of arenas, those with fewest blocks first, how many blocks they have.
    pub blocks: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields of the data; `Share` defines them")]
pub struct Site {
    pub stack: Vec<Frame>,
    pub blocks: u64,
    pub live: u64,
    pub held: u64,
    pub arenas_touched: u32,
    pub arenas_pinned_alone: u32,
    pub born_first: Option<u64>,
    pub born_last: Option<u64>,
    pub raw: u64,
    pub large: u64,
    /// Absent where the recorder did not look.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub types: Option<Vec<TypeCount>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields of the data")]
pub struct Arena {
    #[serde(serialize_with = "hexadecimal")]
    pub address: u64,
    /// Pools that hold blocks.
    pub pools: u32,
    pub free_pools: u32,
    pub blocks: u64,
    pub live: u64,
    /// The event at which it was taken.
    pub born: u64,
    pub pinned_by: Vec<PinnedBy>,
}

#[derive(Clone, Copy, Debug, Serialize)]
#[allow(missing_docs, reason = "the fields of the data")]
pub struct PinnedBy {
    pub site: u32,
    pub blocks: u32,
}

/// How much of a list is shown.
#[derive(Clone, Copy, Debug, Serialize)]
#[allow(missing_docs, reason = "shown, and of how many")]
pub struct Bounded {
    pub sites: (usize, usize),
    pub arenas: (usize, usize),
}

fn hexadecimal<S: Serializer>(address: &u64, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&format!("{address:#x}"))
}

impl Totals {
    /// The sums of a census. `sample` is the last one before it, and `explained` what can be resident then.
    pub fn of(census: &Census, sample: Option<&Sample>, explained: Option<u64>) -> Self {
        let (live, held) = (census.live(), census.held());
        Self {
            arenas: census.arenas.len() as u64,
            held,
            needed: census.needed(),
            live: live.bytes,
            blocks: live.blocks,
            free_in_pools: census.free_in_pools(),
            free_pools: census.free_pools(),
            rounding: census.rounding(),
            raw: census.raw.bytes,
            large: census.large.bytes,
            trimmable: census.trimmable(),
            resident: sample.map(|sample| sample.memory.resident()),
            unexplained: sample.zip(explained).map(|(sample, explained)| sample.memory.anonymous.saturating_sub(explained)),
            // The heap's size is 0 if the C library does not tell it.
            heap_free: sample.filter(|sample| sample.memory.heap > 0).map(|sample| sample.memory.heap_free),
        }
    }
}

impl Pinned {
    /// The pinned memory of a census.
    pub fn of(census: &Census) -> Self {
        let bytes = census.held() - census.needed();
        let arenas = bytes / census.geometry.arena_size as u64;
        let (curve, _) = census.greedy();
        let blocks = (arenas as usize).checked_sub(1).map_or(0, |last| curve[last].0);
        Self { arenas, bytes, blocks }
    }
}

/// The first sites, at most `most`, with the types of their blocks.
pub fn sites(told: &[Share], sites: &Sites, typed: Option<&Typed>, most_types: usize) -> Vec<Site> {
    let site = |share: &Share| {
        let born = (share.live.blocks > 0).then_some(share.born);
        Site {
            stack: sites.frames_of(share.site).cloned().collect(),
            blocks: share.live.blocks,
            live: share.live.bytes,
            held: share.held,
            arenas_touched: share.touched,
            arenas_pinned_alone: share.alone,
            born_first: born.map(|born| born.0),
            born_last: born.map(|born| born.1),
            raw: share.raw.bytes,
            large: share.large.bytes,
            types: typed.map(|typed| types::bounded(typed.of_sites(&[share.site]), most_types)),
        }
    };
    told.iter().map(site).collect()
}

/// At most `most` arenas, by address. Sites that are not among the first `sites` are left out of those that pin.
pub fn arenas(census: &Census, shares: &Shares, most: usize, sites: usize) -> Vec<Arena> {
    let arena = |(arena, sharers): (&super::ArenaCensus, &Vec<(u32, u32)>)| Arena {
        address: arena.address,
        pools: arena.pools,
        free_pools: arena.free_pools,
        blocks: arena.live.blocks,
        live: arena.live.bytes,
        born: arena.taken,
        pinned_by: sharers
            .iter()
            .filter(|&&(site, _)| (site as usize) < sites)
            .take(SHARERS)
            .map(|&(site, blocks)| PinnedBy { site, blocks })
            .collect(),
    };
    census.arenas.iter().zip(&shares.of_arena).take(most).map(arena).collect()
}

/// The greedy curve, in at most [`POINTS`] points and its last one.
pub fn greedy(census: &Census) -> Vec<(u64, u64)> {
    let (curve, _) = census.greedy();
    let step = curve.len().div_ceil(POINTS).max(1);
    let last = curve.len().saturating_sub(1);
    curve.into_iter().enumerate().filter(|&(index, _)| index % step == 0 || index == last).map(|(_, point)| point).collect()
}

/// What is known of the trace itself.
pub fn trace(path: String, python: String, release: String, complete: bool, outline: &Outline) -> Trace {
    let marks = outline.marks.clone();
    Trace { path, python, release, events: outline.events, seconds: outline.duration(), complete, marks }
}
