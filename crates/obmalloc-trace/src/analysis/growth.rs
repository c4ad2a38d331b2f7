//! Which stacks only grow from mark to mark.

use super::ledger::Flow;
use crate::moments::Mark;

/// Most marks that are looked at.
const MOST: usize = 100;
/// Fewest marks that say something.
pub const FEWEST: usize = 5;

/// Looks at what the stacks have live at some marks of one name, one after the other.
#[derive(Debug, Default)]
pub struct Growth {
    /// The marks' name.
    pub name: String,
    /// Their events, in order, and how many of them have been seen.
    events: Vec<u64>,
    seen: usize,
    nodes: Vec<Grower>,
}

/// What a stack had live, bytes as asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Grower {
    /// At the first mark, and at the last one.
    pub first: u64,
    #[allow(missing_docs, reason = "said above")]
    pub last: u64,
    /// How often it was more than at the mark before.
    pub grew: u32,
    /// Whether it was ever less.
    pub shrank: bool,
}

impl Growth {
    /// Looks at the marks up to event `until` whose name is the most frequent one.
    pub fn new(marks: &[Mark], until: u64) -> Self {
        let marks = || marks.iter().filter(|mark| mark.event <= until);
        let count = |name: &str| marks().filter(|mark| mark.name == name).count();
        let mut names: Vec<&str> = marks().map(|mark| mark.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        let Some(name) = names.into_iter().max_by_key(|name| count(name)) else { return Self::default() };
        let all: Vec<u64> = marks().filter(|mark| mark.name == name).map(|mark| mark.event).collect();
        let events =
            if all.len() <= MOST { all } else { (0..MOST).map(|index| all[index * (all.len() - 1) / (MOST - 1)]).collect() };
        Self { name: name.into(), events, ..Self::default() }
    }

    /// The event of the next mark to look at.
    pub fn next(&self) -> u64 {
        self.events.get(self.seen).copied().unwrap_or(u64::MAX)
    }

    /// Looks at a mark.
    pub fn mark(&mut self, flows: &[Flow]) {
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
