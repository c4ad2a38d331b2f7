//! The analysis: a watcher of the replay that keeps books of what is live, and takes a census at the moments asked for.
//!
//! | file | what it holds |
//! |---|---|
//! | `ledger` | the books: blocks by slot, what each stack has asked for |
//! | `census` | all that is live at one moment, by arena, pool and stack; the definitions of held, live, needed and the rest |
//! | `growth`, `lives`, `deaths` | what happens between moments: stacks that only grow, arenas that come and go, the ages of freed blocks |
//! | `sites`, `shares`, `types` | stacks as people see them, what each holds, and the types of its objects |
//! | `rules` | decides what `why` says: each rule looks at the facts and makes a finding, or none |
//! | `why`, `words` | the answer as data (`obmalloc.why/1`), and in words |
//! | `pinning` | the sites that pin arenas |
//! | `top` | tables of sites, functions, files and classes |
//! | `film`, `tree`, `page`, `columns` | what happened when, stacks as a tree, the page's data: `obmalloc.report/1` |
//! | `onlookers` | the watchers of the one replay |
//! | `inquiry` | all of it in slices, so that progress can be shown |

mod census;
mod columns;
mod deaths;
mod film;
mod growth;
mod half_empty;
mod inquiry;
mod ledger;
mod lives;
mod onlookers;
mod page;
mod pinning;
mod rules;
mod shares;
mod sites;
mod top;
mod tree;
mod types;
mod why;
mod words;

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use obmalloc::profile::Geometry;

use crate::moments::Mark;
use crate::replay::HeldArena;
use crate::watch::{Fate, Seen, Watcher};
pub use census::{ArenaCensus, Census, ClassCensus, NodeCensus, PoolCensus};
use deaths::{Deaths, Times};
use growth::Growth;
pub use inquiry::{Answered, Asked, Inquiry, InquiryError};
use ledger::Ledger;
pub use ledger::{Flow, Sum};
use lives::Lives;
pub use page::Page;
pub use rules::Finding;
pub use top::By;
pub use types::TypeCount;
pub use why::{Site, Why};

/// The watcher.
pub struct Analysis {
    geometry: Geometry,
    /// The books of blocks, of arenas, and of stacks that grow.
    pub(crate) ledger: Ledger,
    pub(crate) lives: Lives,
    pub(crate) growth: Growth,
    /// Moments, in order, at which a census is taken, and those at which it has been.
    moments: Vec<u64>,
    pub(crate) censuses: Vec<Census>,
    /// The replay is over once the last census is taken.
    ends: bool,
    /// The next event at which there is something to do.
    next: u64,
    /// The event at which memory was sampled, and how many bytes of arenas and of C's blocks could be resident then.
    sampled: u64,
    pub(crate) explained: Option<u64>,
    /// The moment from which on it is counted how old blocks become, and when events were.
    burst: Option<u64>,
    times: Times,
    /// Interpreters with allocators of their own, whose calls are left out.
    pub(crate) others: BTreeSet<u64>,
}

impl Analysis {
    /// The censuses that were taken.
    pub fn censuses(&self) -> &[Census] {
        &self.censuses
    }

    /// Takes a census after each of the events `moments`, and notes what can be resident after the event `sampled`. Ends the replay after the
    /// last of them if it `ends`.
    pub fn new(geometry: Geometry, mut moments: Vec<u64>, sampled: Option<u64>, marks: &[Mark], ends: bool) -> Self {
        moments.sort_unstable();
        moments.dedup();
        let until = moments.last().copied().unwrap_or(0);
        let mut analysis = Self {
            geometry,
            ledger: Ledger::new(geometry),
            lives: Lives::default(),
            growth: Growth::new(marks, until, None),
            moments,
            censuses: Vec::new(),
            ends,
            next: 0,
            sampled: sampled.unwrap_or(u64::MAX),
            explained: None,
            burst: None,
            times: Times::default(),
            others: BTreeSet::new(),
        };
        analysis.plan();
        analysis
    }

    /// Looks at the marks of this name, not at those of the most frequent one.
    pub(crate) fn watch_mark(&mut self, marks: &[Mark], name: &str) {
        let until = self.moments.last().copied().unwrap_or(0);
        self.growth = Growth::new(marks, until, Some(name));
        self.plan();
    }

    /// From this moment on, one of those of a census, it is counted how old blocks become. `times` tell when events were.
    pub(crate) fn count_deaths(&mut self, from: u64, times: Times) {
        (self.burst, self.times) = (Some(from), times);
    }

    /// The census of a moment that was asked for.
    pub(crate) fn census_of(&self, moment: u64) -> Option<&Census> {
        self.censuses.get(self.moments.binary_search(&moment).ok()?)
    }

    fn plan(&mut self) {
        let moment = self.moments.get(self.censuses.len()).copied().unwrap_or(u64::MAX);
        let sampled = if self.explained.is_none() { self.sampled } else { u64::MAX };
        self.next = moment.min(self.growth.next()).min(sampled);
    }

    /// Does what is due at this event. If the moment is inside a call that has asked for an arena, the census is taken after the call.
    #[cold]
    fn stop(&mut self, seen: &Seen<'_>) -> ControlFlow<()> {
        let now = seen.operation;
        if now >= self.sampled && self.explained.is_none() {
            self.explained = Some(self.can_be_resident(&seen.arenas()));
        }
        while self.growth.next() <= now {
            self.growth.mark(self.ledger.flows());
        }
        while self.moments.get(self.censuses.len()).is_some_and(|&moment| moment <= now) {
            self.take(now, &seen.arenas());
        }
        self.plan();
        let is_over = self.ends && self.censuses.len() == self.moments.len();
        if is_over { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn take(&mut self, now: u64, held: &[HeldArena]) {
        let census = Census::take(now, self.geometry, &self.ledger, held, &self.lives.taken);
        let moment = self.moments[self.censuses.len()];
        self.censuses.push(census);
        if self.burst == Some(moment) {
            let deaths = Deaths::new(now, held, self.geometry.arena_size as u64, std::mem::take(&mut self.times));
            self.ledger.deaths = Some(Box::new(deaths));
        }
    }

    /// Bytes of blocks of C's `malloc`, and of arenas but for pools that were never in use, or were trimmed.
    fn can_be_resident(&self, held: &[HeldArena]) -> u64 {
        let Geometry { arena_size, pool_size, .. } = self.geometry;
        held.iter().map(|arena| arena.can_be_resident(arena_size, pool_size)).sum::<u64>()
            + self.ledger.raw.bytes
            + self.ledger.large.bytes
    }

    /// The replay has ended after event `last`: the censuses that are missing are taken of what is there.
    pub fn end(&mut self, last: u64, held: &[HeldArena]) {
        while self.censuses.len() < self.moments.len() {
            self.take(last, held);
        }
    }
}

impl Watcher for Analysis {
    #[inline]
    fn see(&mut self, seen: &Seen<'_>) -> ControlFlow<()> {
        match seen.fate {
            Fate::Below => {
                self.lives.see(seen);
                return ControlFlow::Continue(());
            }
            Fate::LeftOut => {
                self.others.insert(seen.interpreter);
            }
            _ => {}
        }
        self.ledger.see(seen);
        if seen.operation >= self.next { self.stop(seen) } else { ControlFlow::Continue(()) }
    }
}
