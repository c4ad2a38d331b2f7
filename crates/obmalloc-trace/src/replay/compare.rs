//! A watcher that compares every answer of the heap with the recorded one, and counts.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fmt;
use std::ops::ControlFlow;

use serde::{Serialize, Serializer};

use crate::format::{Domain, Event, Note};
use crate::watch::{Answer, Fate, Place, Seen, Watcher, request};

/// The first call with another result than in the recorded process.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Mismatch {
    /// Number of the event in the trace, from 0.
    pub operation: u64,
    /// The call as C would write it.
    pub request: String,
    /// What differs.
    pub what: String,
    /// What the recorded process got.
    pub expected: Place,
    /// What the heap gave.
    pub got: Place,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "operation {}: {}", self.operation, self.request)?;
        writeln!(f, "  {}", self.what)?;
        writeln!(f, "  expected {}", self.expected)?;
        write!(f, "  got      {}", self.got)
    }
}

/// Writes a mismatch with its text beside its parts.
fn with_text<S: Serializer>(mismatch: &Option<Mismatch>, to: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Told<'a> {
        #[serde(flatten)]
        mismatch: &'a Mismatch,
        text: String,
    }
    mismatch.as_ref().map(|mismatch| Told { mismatch, text: mismatch.to_string() }).serialize(to)
}

/// The counts and differences so far.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Events of the trace that were replayed.
    pub events: u64,
    /// Calls on the mem and obj domains among them.
    pub calls: u64,
    /// Calls on the raw domain among them, not counting those that mem and obj calls made.
    pub raw_calls: u64,
    /// Raw calls that mem and obj calls made, each compared with what the heap asked of raw.
    pub nested_raw_calls: u64,
    /// Results that lie in an arena, here or in the recorded process.
    pub addresses: u64,
    /// Those of them that are equal.
    pub matched: u64,
    /// Arenas taken.
    pub arenas_taken: u64,
    /// Arenas given back.
    pub arenas_released: u64,
    /// Most arenas held at one time.
    pub arenas_highwater: u64,
    /// Requests to the arena allocator that are not pymalloc's: for the interpreter's data stack.
    pub other_arena_requests: u64,
    /// Pools whose free lists trims forgot.
    pub trimmed_pools: u64,
    /// Frees and reallocs of addresses that no recorded call gave out.
    pub strangers: u64,
    /// The count of allocated blocks: as recorded, and here. None also where there are other interpreters, whose blocks CPython counts too.
    pub blocks: Option<(u64, u64)>,
    /// The statistics: as recorded, and here.
    pub stats: Option<(String, String)>,
    /// Calls on the mem and obj domains that were left out, because they are of interpreters that have allocators of their own.
    pub other_calls: u64,
    /// How many such interpreters there are.
    pub other_interpreters: u64,
    /// Domains whose calls the recorder lost sight of: bit 0 raw, bit 1 mem, bit 2 obj.
    pub hooks_lost: u8,
    /// Whether the recorded process ended in an orderly way, or went on as another program, so that nothing is missing.
    pub ended: bool,
    /// Whether the replay ended before the trace did, because it was told to.
    pub stopped: bool,
    /// The recorder's messages.
    pub remarks: Vec<String>,
    /// Whether the file ended inside a block.
    pub truncated: bool,
    /// The first difference, if there is one. Nothing is replayed after it.
    #[serde(serialize_with = "with_text")]
    pub mismatch: Option<Mismatch>,
    #[serde(skip)]
    interpreters: BTreeSet<u64>,
}

impl Report {
    /// Whether at least one answer was compared, and all were equal; or there was nothing to compare, as in a program that only prints its
    /// version and makes no call that pymalloc serves.
    pub fn is_exact(&self) -> bool {
        let equal = |pair: &Option<(String, String)>| pair.as_ref().is_none_or(|(expected, got)| expected == got);
        self.mismatch.is_none()
            && (self.addresses > 0 || self.ended || self.stopped)
            && self.matched == self.addresses
            && self.hooks_lost & 6 == 0
            && equal(&self.stats)
            && self.blocks.is_none_or(|(expected, got)| expected == got)
    }
}

impl Watcher for Report {
    #[inline]
    fn see(&mut self, seen: &Seen<'_>) -> ControlFlow<()> {
        self.events = seen.operation + 1;
        self.ended = false;
        let (domain, address, result, size) = match *seen.event {
            Event::Malloc { domain, size, result, .. } => (domain, 0, result, size),
            Event::Calloc { domain, count, size, result, .. } => (domain, 0, result, size.saturating_mul(count)),
            Event::Realloc { domain, address, size, result, .. } => (domain, address, result, size),
            Event::Free { domain, address, .. } => (domain, address, 0, 0),
            Event::Note(Note::Trim(ref pools)) if seen.fate == Fate::Noted => return self.trim(pools, seen),
            _ => {
                self.see_rest(seen);
                return ControlFlow::Continue(());
            }
        };
        match seen.fate {
            Fate::Below => {
                self.nested_raw_calls += 1;
                return ControlFlow::Continue(());
            }
            Fate::LeftOut => {
                self.other_calls += u64::from(!seen.event.is_nested());
                return ControlFlow::Continue(());
            }
            Fate::Stranger => self.strangers += 1,
            _ => {}
        }
        if domain == Domain::Raw {
            self.raw_calls += 1;
        } else {
            self.calls += 1;
        }
        match seen.fate {
            Fate::Misplaced => {
                let what = "the recorded process gave a block of pymalloc to the raw domain".to_string();
                self.mismatch(seen, what, Place::default(), seen.place(address, 1))
            }
            Fate::Made if domain != Domain::Raw => {
                let &Answer { got, inside, was_inside, .. } = seen.answer();
                let equal = if inside {
                    self.addresses += 1;
                    self.matched += u64::from(got == result);
                    got == result
                } else {
                    self.addresses += u64::from(was_inside);
                    !was_inside && (got == 0) == (result == 0)
                };
                if equal && !seen.differs_below() {
                    return ControlFlow::Continue(());
                }
                let what = seen.difference_below().unwrap_or_else(|| "the addresses differ".to_string());
                let size = usize::try_from(size).unwrap_or(usize::MAX);
                self.mismatch(seen, what, seen.place(result, size), seen.place(got, size))
            }
            _ => ControlFlow::Continue(()),
        }
    }

    fn trace_ends(&mut self, truncated: bool) {
        self.truncated = truncated;
    }

    fn stops(&mut self) {
        self.stopped = !self.ended;
    }
}

impl Report {
    /// Arenas and notes.
    #[cold]
    fn see_rest(&mut self, seen: &Seen<'_>) {
        match (seen.event, seen.fate) {
            (_, Fate::LeftOut) => {}
            (Event::Note(note), _) => self.note(note, seen),
            (Event::ArenaAlloc { nested: true, result, .. }, _) if *result != 0 => {
                self.arenas_taken += 1;
                self.arenas_highwater = self.arenas_highwater.max(self.arenas_taken.saturating_sub(self.arenas_released));
            }
            (Event::ArenaFree { nested: true, .. }, _) => self.arenas_released += 1,
            (_, Fate::Beside) => self.other_arena_requests += 1,
            _ => {}
        }
    }

    #[cold]
    fn trim(&mut self, pools: &[u64], seen: &Seen<'_>) -> ControlFlow<()> {
        self.trimmed_pools += pools.len() as u64;
        let Some(pool) = seen.untrimmed() else { return ControlFlow::Continue(()) };
        let what = format!("the recorded process trimmed the pool at {pool:#x}, which is not an empty one here");
        self.mismatch(seen, what, seen.place(pool, 1), Place::default())
    }

    fn note(&mut self, note: &Note, seen: &Seen<'_>) {
        match note {
            Note::Stats(expected) => self.stats = Some((expected.clone(), seen.stats().to_string())),
            // CPython counts all interpreters together.
            Note::AllocatedBlocks(_) if !self.interpreters.is_empty() => {}
            Note::AllocatedBlocks(expected) => self.blocks = Some((*expected, seen.allocated_blocks())),
            Note::HooksLost(domains) => self.hooks_lost |= domains,
            Note::Text(text) => self.remarks.push(text.clone()),
            Note::End | Note::Exec => self.ended = true,
            Note::Interpreter(0) | Note::Finalization | Note::Mark(_) | Note::Fork | Note::Trim(_) => {}
            Note::Interpreter(id) => {
                self.interpreters.insert(*id);
                self.other_interpreters = self.interpreters.len() as u64;
            }
        }
    }

    #[cold]
    fn mismatch(&mut self, seen: &Seen<'_>, what: String, expected: Place, got: Place) -> ControlFlow<()> {
        self.mismatch = Some(Mismatch { operation: seen.operation, request: request(seen.event), what, expected, got });
        ControlFlow::Break(())
    }
}
