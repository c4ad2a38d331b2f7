//! Makes the calls on all configurations, one after the other.

#![forbid(unsafe_code)]

use std::{fmt, io};

use obmalloc::HeapError;
use obmalloc::profile::Profile;
use serde::Serialize;

use super::calls::{Call, Calls};
use super::trial::{Configuration, Row, Trial};
use crate::replay::Replay;
use crate::watch::Watcher;

/// How many calls are read at once.
const AT_ONCE: usize = 1 << 16;

/// Why there are no trials, or no more.
#[derive(Debug)]
pub enum TrialsError {
    /// No heap of such sizes can be made, or it had no memory for a block.
    Heap(HeapError),
    /// More blocks are live than a call can tell apart.
    Full,
    /// The file of calls cannot be written or read.
    File(io::Error),
}

impl fmt::Display for TrialsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Heap(error) => error.fmt(f),
            Self::Full => write!(f, "more blocks are live than trials can tell apart: {}", Call::SLOTS),
            Self::File(error) => write!(f, "the calls cannot be written to a file and read from there: {error}"),
        }
    }
}

impl std::error::Error for TrialsError {}

impl From<HeapError> for TrialsError {
    fn from(error: HeapError) -> Self {
        Self::Heap(error)
    }
}

impl From<io::Error> for TrialsError {
    fn from(error: io::Error) -> Self {
        Self::File(error)
    }
}

/// What the recorded process had at the moment.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Recorded {
    /// Most bytes of arenas that were held up to the moment.
    pub peak_held: u64,
    /// Bytes of arenas that were held at the moment.
    pub held: u64,
    /// How often an arena was taken.
    pub maps: u64,
    /// How often an arena was given back.
    pub unmaps: u64,
    /// Bytes that a trim would give back.
    pub trimmable: u64,
}

impl Recorded {
    /// The facts of a replay's heap as it is now.
    pub fn of<W: Watcher>(replay: &Replay<W>) -> Self {
        let stats = replay.stats();
        let bytes = |arenas: usize| arenas as u64 * stats.geometry.arena_size as u64;
        Self {
            peak_held: bytes(stats.arenas_highwater),
            held: bytes(stats.arenas),
            maps: stats.arenas_allocated_total as u64,
            unmaps: (stats.arenas_allocated_total - stats.arenas) as u64,
            trimmable: replay.arenas().iter().map(|arena| arena.trimmable(stats.geometry.pool_size)).sum(),
        }
    }
}

/// The results of the trials.
#[derive(Clone, Debug, Serialize)]
pub struct Tried {
    /// What the recorded process had.
    pub recorded: Recorded,
    /// How many calls there were.
    pub calls: u64,
    /// How many of them were of blocks that are set apart.
    pub apart: u64,
    /// By configuration.
    pub rows: Vec<Row>,
}

/// Configurations that run one after the other, so that only one needs memory at a time.
pub struct Trials {
    profile: &'static Profile,
    wishes: Vec<Configuration>,
    calls: Calls,
    recorded: Recorded,
    trial: Option<Trial>,
    /// How many calls the trial under way has made.
    at: u64,
    rows: Vec<Row>,
    buffer: (Vec<u8>, Vec<Call>),
}

impl Trials {
    /// Prepares configurations for a recording of `profile`.
    pub fn new(wishes: Vec<Configuration>, profile: &'static Profile, calls: Calls, recorded: Recorded) -> Self {
        Self { profile, wishes, calls, recorded, trial: None, at: 0, rows: Vec::new(), buffer: Default::default() }
    }

    /// Makes at most `count` calls; false when all configurations have made theirs.
    ///
    /// # Errors
    /// When no such heap can be made, it has no memory for a block, or the calls cannot be read.
    pub fn step(&mut self, count: usize) -> Result<bool, TrialsError> {
        let Some(wish) = self.wishes.get(self.rows.len()) else { return Ok(false) };
        let trial = match &mut self.trial {
            Some(trial) => trial,
            none => none.insert(Trial::new(wish, self.profile, &self.calls)?),
        };
        let end = self.calls.count.min(self.at + count as u64);
        let (bytes, calls) = &mut self.buffer;
        while self.at < end {
            self.calls.read(self.at, AT_ONCE.min((end - self.at) as usize), bytes, calls)?;
            trial.make(calls)?;
            self.at += calls.len() as u64;
        }
        if self.at == self.calls.count {
            self.rows.push(trial.row(&self.calls));
            self.trial = None;
            self.at = 0;
        }
        Ok(self.rows.len() < self.wishes.len())
    }

    /// How many calls have been made, and how many are to be made in all.
    pub fn progress(&self) -> (u64, u64) {
        let all = self.wishes.len() as u64 * self.calls.count;
        (self.rows.len() as u64 * self.calls.count + self.at, all)
    }

    /// The results so far.
    pub fn tried(self) -> Tried {
        Tried { recorded: self.recorded, calls: self.calls.count, apart: self.calls.apart, rows: self.rows }
    }
}
