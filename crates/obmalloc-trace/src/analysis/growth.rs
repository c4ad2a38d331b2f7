//! Finds the stacks whose live bytes only grow from mark to mark.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use serde::Serialize;

use super::ledger::Flow;
use super::sites::{Frame, Sites};
use crate::moments::Mark;
use crate::stacks::Stacks;

/// Most marks that are looked at.
const MOST: usize = 100;
/// The same where marks are asked for.
const MOST_WANTED: usize = 10_000;
/// Fewest marks that say something.
pub const FEWEST: usize = 5;

/// Notes the stacks' live bytes at some marks of one name, one after the other.
#[derive(Debug, Default)]
pub struct Growth {
    /// The marks' name.
    pub name: String,
    /// Their events, in order, and how many of them have been seen.
    events: Vec<u64>,
    /// How many marks of the name there are.
    all: usize,
    seen: usize,
    nodes: Vec<Grower>,
    /// The live bytes of all stacks together at each mark, at the requested sizes.
    live: Vec<u64>,
}

/// The live bytes at some marks of one name.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Growing {
    mark: String,
    /// How many marks there are up to the moment. Of very many, only some are used, among them the first and the last.
    marks: usize,
    /// The marks' events, and the bytes that were live then, as they were asked for.
    live: Vec<(u64, u64)>,
    /// The sites that never shrank, those that gained most first, at most a hundred.
    growers: Vec<Gained>,
}

/// A site, and the bytes that it gained from the first mark to the last.
#[derive(Debug, Serialize)]
struct Gained {
    stack: Vec<Frame>,
    gained: u64,
}

/// A stack's live bytes, at the requested sizes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Grower {
    /// At the first mark.
    pub first: u64,
    /// At the last mark.
    pub last: u64,
    /// How often it was more than at the mark before.
    pub grew: u32,
    /// Whether it was ever less.
    pub shrank: bool,
}

impl Growth {
    /// Uses the marks up to event `until` with the name `wanted`, or else those with the most frequent name.
    pub fn new(marks: &[Mark], until: u64, wanted: Option<&str>) -> Self {
        let is_wanted = |name: &str| wanted.is_none_or(|wanted| wanted == name);
        let marks = || marks.iter().filter(|mark| mark.event <= until && is_wanted(&mark.name));
        let count = |name: &str| marks().filter(|mark| mark.name == name).count();
        let mut names: Vec<&str> = marks().map(|mark| mark.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        let Some(name) = names.into_iter().max_by_key(|name| count(name)) else { return Self::default() };
        let all: Vec<u64> = marks().filter(|mark| mark.name == name).map(|mark| mark.event).collect();
        let most = if wanted.is_some() { MOST_WANTED } else { MOST };
        let spread = |index: usize| all[index * (all.len() - 1) / (most - 1)];
        let events = if all.len() <= most { all.clone() } else { (0..most).map(spread).collect() };
        Self { name: name.into(), events, all: all.len(), ..Self::default() }
    }

    /// The event of the next mark to look at.
    pub fn next(&self) -> u64 {
        self.events.get(self.seen).copied().unwrap_or(u64::MAX)
    }

    /// Looks at a mark.
    pub fn mark(&mut self, flows: &[Flow]) {
        self.live.push(flows.iter().map(Flow::live).sum());
        self.nodes.resize(flows.len().max(self.nodes.len()), Grower::default());
        for (node, flow) in self.nodes.iter_mut().zip(flows) {
            let live = flow.live();
            if self.seen == 0 {
                node.first = live;
            } else {
                node.grew += u32::from(live > node.last);
                node.shrank |= live < node.last;
            }
            node.last = live;
        }
        self.seen += 1;
    }

    /// How many marks have been looked at.
    pub fn marks(&self) -> usize {
        self.seen
    }

    /// All of it, by site.
    pub fn by_site(&self, sites: &mut Sites, tree: &Stacks) -> Growing {
        let mut gains = BTreeMap::<u32, u64>::new();
        for (node, gain) in self.growers() {
            *gains.entry(sites.site(tree, node)).or_default() += gain;
        }
        let mut gains: Vec<(u32, u64)> = gains.into_iter().collect();
        gains.sort_by_key(|&(_, gain)| std::cmp::Reverse(gain));
        let gained = |&(site, gained): &(u32, u64)| Gained { stack: sites.frames_of(site).cloned().collect(), gained };
        let growers = gains.iter().take(MOST).map(gained).collect();
        Growing {
            mark: self.name.clone(),
            marks: self.all,
            live: self.events.iter().copied().zip(self.live.iter().copied()).collect(),
            growers,
        }
    }

    /// Stacks that never shrank, and grew at three marks of four, with what they have gained, most first.
    pub fn growers(&self) -> Vec<(u32, u64)> {
        let steps = self.seen.saturating_sub(1) as u32;
        let is_one = |node: &Grower| !node.shrank && node.grew * 4 >= steps * 3;
        let mut found: Vec<(u32, u64)> = (0..)
            .zip(&self.nodes)
            .filter(|(_, node)| is_one(node) && node.last > node.first)
            .map(|(number, node)| (number, node.last - node.first))
            .collect();
        found.sort_unstable_by_key(|&(number, gain)| (std::cmp::Reverse(gain), number));
        found
    }
}
