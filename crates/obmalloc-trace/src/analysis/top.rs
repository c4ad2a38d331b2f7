//! Tables: what each site, function, file or size class has asked for, and has.

#![forbid(unsafe_code)]

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

use super::Flow;
use super::census::Census;
use super::ledger::Sum;
use super::shares::Shares;
use super::sites::{Frame, Sites};
use crate::stacks::Stacks;

/// What the rows of a table are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// Whole stacks.
    Site,
    /// The innermost frame's function.
    Function,
    /// The innermost frame's file.
    File,
    /// Size classes, and what C's `malloc` has.
    Class,
}

/// A row. Allocated, freed and temporary are bytes as they were asked for, up to the moment.
#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs, reason = "named as the table's columns")]
pub struct Row {
    pub name: String,
    /// Of a site.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stack: Option<Vec<Frame>>,
    pub allocated: u64,
    pub freed: u64,
    /// In pools, at their classes' sizes.
    pub live: u64,
    pub blocks: u64,
    /// The share of held.
    pub held: u64,
    /// At C's `malloc`.
    pub outside: u64,
    /// Bytes of blocks that were freed within 10,000 events.
    pub temporary: u64,
}

impl Row {
    fn flow(&mut self, flow: &Flow) {
        self.allocated += flow.made;
        self.freed += flow.gone;
        self.temporary += flow.temporary;
    }
}

/// The table at a census, the rows that hold most first.
pub fn table(by: By, census: &Census, shares: &Shares, sites: &mut Sites, tree: &Stacks) -> Vec<Row> {
    let mut rows = if by == By::Class { classes(census) } else { stacks(by, census, shares, sites, tree) };
    rows.sort_by_key(|row| std::cmp::Reverse((row.held, row.live + row.outside, row.allocated)));
    rows
}

fn stacks(by: By, census: &Census, shares: &Shares, sites: &mut Sites, tree: &Stacks) -> Vec<Row> {
    let mut rows: FxHashMap<String, Row> = FxHashMap::default();
    for (node, flow) in (0..).zip(&census.flows) {
        if *flow != Flow::default() {
            let site = sites.site(tree, node);
            row(&mut rows, by, sites, site).flow(flow);
        }
    }
    for share in &shares.sites {
        let row = row(&mut rows, by, sites, share.site);
        row.live += share.live.bytes;
        row.blocks += share.live.blocks;
        row.held += share.held;
        row.outside += share.raw.bytes + share.large.bytes;
    }
    rows.into_values().collect()
}

fn row<'a>(rows: &'a mut FxHashMap<String, Row>, by: By, sites: &Sites, site: u32) -> &'a mut Row {
    let first = sites.frames_of(site).next();
    let name = match (by, first) {
        (_, None) => "(no Python frame)".into(),
        (By::Function, Some(frame)) => format!("{} ({})", frame.function, frame.file),
        (By::File, Some(frame)) => frame.file.clone(),
        (_, Some(frame)) => format!("{} ({}:{})", frame.function, frame.file, frame.line),
    };
    let key = if by == By::Site { site.to_string() } else { name.clone() };
    rows.entry(key).or_insert_with(|| {
        let stack = (by == By::Site).then(|| sites.frames_of(site).cloned().collect());
        Row { name, stack, ..Row::default() }
    })
}

fn classes(census: &Census) -> Vec<Row> {
    let kinds = census.class_flows.iter().enumerate();
    let rows = kinds.map(|(kind, flow)| {
        let mut row = Row::default();
        row.flow(flow);
        let outside = |row: &mut Row, name: &str, sum: Sum| {
            row.name = name.into();
            (row.outside, row.blocks) = (sum.bytes, sum.blocks);
        };
        match census.classes.get(kind) {
            Some(class) => {
                let size = census.geometry.block_size(kind) as u64;
                row.name = format!("{size} bytes");
                (row.live, row.blocks) = (class.blocks * size, class.blocks);
                row.held = class.pools * census.geometry.pool_size as u64;
            }
            None if kind == census.classes.len() => outside(&mut row, "raw domain", census.raw),
            None => outside(&mut row, "above 512 bytes", census.large),
        }
        row
    });
    rows.filter(|row| row.allocated > 0 || row.blocks > 0).collect()
}
