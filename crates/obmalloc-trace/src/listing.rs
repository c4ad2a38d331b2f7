//! Lists the events of a trace for people and other programs, each with its stack.

#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};

use rustc_hash::FxHashMap;
use serde::Serialize;

use crate::clock::{Clock, Memory};
use crate::format::{Event, FormatError, Note, Reader};

/// Bytes of names in stacks, and of texts, after which a step ends: with stacks of a thousand frames, some thousand events have more than a text
/// of JavaScript.
const ENOUGH: usize = 1 << 24;

/// Which events are wanted.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The first event, and the last one.
    pub from: u64,
    /// `None` for all up to the end.
    pub to: Option<u64>,
    /// Requests for this many bytes.
    pub size: Option<u64>,
    /// Calls that were given this address, or gave it.
    pub address: Option<u64>,
    /// Requests with a frame in this file (its path, or the end of it) and line.
    pub site: Option<(String, u32)>,
}

impl Wanted {
    /// Whether only calls are wanted, and so no notes.
    fn is_narrowed(&self) -> bool {
        self.size.is_some() || self.address.is_some() || self.site.is_some()
    }
}

/// A frame.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[allow(missing_docs, reason = "as in `stacks::Frame`")]
pub struct Frame {
    pub file: String,
    pub line: u32,
    pub function: String,
}

/// One event.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(untagged)]
pub enum Listed {
    /// A call.
    Call(Call),
    /// A note.
    Note {
        /// Its number; of a sample of memory, which is no event, that of the event that comes next.
        event: u64,
        /// When it was made, where that is known.
        seconds: Option<f64>,
        /// What it is.
        note: &'static str,
        /// The text or number that belongs to it.
        #[serde(skip_serializing_if = "Option::is_none")]
        value: Option<String>,
        /// Of a sample of memory.
        #[serde(flatten)]
        memory: Option<Memory>,
    },
}

/// One call.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct Call {
    /// Its number.
    pub event: u64,
    /// When it was made, if that is known: the last time that was read before it.
    pub seconds: Option<f64>,
    /// The system's number of the thread that made it, where that is known.
    pub thread: Option<u64>,
    /// C's name of the function.
    pub call: &'static str,
    /// The domain; `arena` for what the arena allocator is asked.
    pub domain: &'static str,
    /// Of a calloc.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// Bytes requested, of the arena given back, or that the freed block was requested with. `None` for a free of NULL or of a block that no
    /// recorded call gave.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// The block that a realloc was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The address that was given or freed; `0x0` for NULL.
    pub address: String,
    /// The interpreter that it belongs to; 0 is the main one.
    pub interpreter: u64,
    /// Where it was made, innermost frame first.
    pub stack: Vec<Frame>,
}

/// A trace that is being listed.
pub struct Listing {
    segments: VecDeque<Reader<'static>>,
    wanted: Wanted,
    /// Most frames of a stack.
    frames: usize,
    event: u64,
    interpreter: u64,
    /// Samples of memory that have been listed.
    samples: u64,
    /// By node: whether it has the wanted site in it.
    sites: HashMap<u64, bool>,
    sizes: Sizes,
    /// Bytes of names and texts that a step has found so far.
    named: usize,
}

/// Bytes that live blocks were asked for with, by address.
#[derive(Default)]
struct Sizes(FxHashMap<u64, u64>);

impl Sizes {
    /// Looks at an event. Returns the size of the block that it frees.
    #[inline]
    fn see(&mut self, event: &Event) -> Option<u64> {
        match *event {
            Event::Malloc { nested: false, size, result, .. } => self.made(result, size),
            Event::Calloc { nested: false, count, size, result, .. } => self.made(result, size.saturating_mul(count)),
            // A refused one leaves the block as it is.
            Event::Realloc { nested: false, address, size, result, .. } if result != 0 => {
                self.0.remove(&address);
                self.made(result, size);
            }
            Event::Free { nested: false, address, .. } => return self.0.remove(&address),
            // The call that frees it comes next.
            Event::Free { nested: true, address, .. } => return self.0.get(&address).copied(),
            _ => {}
        }
        None
    }

    fn made(&mut self, address: u64, size: u64) {
        if address != 0 {
            self.0.insert(address, size);
        }
    }
}

impl Listing {
    /// Lists `segments`, one after the other, as [`Replay`](crate::replay::Replay) takes them. `frames` is what the header says of stacks.
    pub fn new(segments: Vec<Reader<'static>>, wanted: Wanted, frames: usize) -> Self {
        Self {
            segments: segments.into(),
            wanted,
            frames,
            event: 0,
            interpreter: 0,
            samples: 0,
            sites: HashMap::new(),
            sizes: Sizes::default(),
            named: 0,
        }
    }

    /// Looks at no more than `count` events, and at fewer if their stacks are long. Returns the wanted ones, and whether there are more.
    ///
    /// # Errors
    /// When the trace cannot be read any further.
    pub fn step(&mut self, count: usize) -> Result<(Vec<Listed>, bool), FormatError> {
        let mut found = Vec::new();
        self.named = 0;
        for _ in 0..count {
            if self.named > ENOUGH {
                break;
            }
            let Some(reader) = self.segments.front_mut() else { return Ok((found, false)) };
            let Some(event) = reader.next().transpose()? else {
                let done = self.segments.pop_front();
                if let (Some(done), Some(next)) = (done, self.segments.front_mut()) {
                    next.continue_from(done);
                }
                self.interpreter = 0;
                continue;
            };
            let clock = *reader.clock();
            let number = self.event;
            self.event += 1;
            // A free has no requested size and no site.
            let has_frees = self.wanted.size.is_none() && self.wanted.site.is_none();
            let freed = if has_frees { self.sizes.see(&event) } else { None };
            if let Event::Note(Note::Interpreter(id)) = event {
                self.interpreter = id;
            }
            if self.wanted.to.is_some_and(|to| number > to) {
                self.segments.clear();
                return Ok((found, false));
            }
            if number >= self.wanted.from {
                found.extend(self.sampled(number, &clock));
                found.extend(self.listed(number, event, freed, &clock));
            }
            self.samples = clock.samples;
        }
        Ok((found, !self.segments.is_empty()))
    }

    /// The sample of memory that stands before an event, if there is one and it is wanted.
    fn sampled(&self, number: u64, clock: &Clock) -> Option<Listed> {
        let memory = clock.memory.filter(|_| clock.samples != self.samples && !self.wanted.is_narrowed());
        memory.map(|memory| Listed::Note {
            event: number,
            seconds: seconds(clock),
            note: "memory",
            value: None,
            memory: Some(memory),
        })
    }

    /// The event as it is shown, if it is wanted. `freed` is the size of the block that it frees.
    fn listed(&mut self, number: u64, event: Event, freed: Option<u64>, clock: &Clock) -> Option<Listed> {
        let (seconds, thread) = (seconds(clock), Some(clock.thread).filter(|&thread| thread != 0));
        let call = |call, domain| Call { event: number, seconds, thread, call, domain, ..Call::default() };
        let is_request = event.is_request();
        let interpreter = if event.is_pymallocs() { self.interpreter } else { 0 };
        let (call, given, result) = match event {
            Event::Note(note) => {
                let (note, value) = said(note);
                self.named += value.as_ref().map_or(0, String::len);
                return (!self.wanted.is_narrowed()).then_some(Listed::Note {
                    event: number,
                    seconds,
                    note,
                    value,
                    memory: None,
                });
            }
            Event::Malloc { domain, size, result, .. } => (Call { size: Some(size), ..call("malloc", domain.name()) }, 0, result),
            Event::Calloc { domain, count, size, result, .. } => {
                (Call { count: Some(count), size: Some(size), ..call("calloc", domain.name()) }, 0, result)
            }
            Event::Realloc { domain, address, size, result, .. } => {
                let from = Some(format!("{address:#x}"));
                (Call { size: Some(size), from, ..call("realloc", domain.name()) }, address, result)
            }
            Event::Free { domain, address, .. } => (Call { size: freed, ..call("free", domain.name()) }, address, address),
            Event::ArenaAlloc { size, result, .. } => (Call { size: Some(size), ..call("alloc", "arena") }, 0, result),
            Event::ArenaFree { size, address, .. } => (Call { size: Some(size), ..call("free", "arena") }, address, address),
        };
        let Wanted { size, address, .. } = self.wanted;
        let bytes = call.size.map(|size| size.saturating_mul(call.count.unwrap_or(1)));
        if size.is_some_and(|size| !is_request || bytes != Some(size)) || address.is_some_and(|a| a != given && a != result) {
            return None;
        }
        let node = if is_request { self.segments.front()?.stack() } else { 0 };
        if self.wanted.site.is_some() && !self.is_at_site(node) {
            return None;
        }
        Some(Listed::Call(Call { address: format!("{result:#x}"), interpreter, stack: self.stack(node), ..call }))
    }

    fn stack(&mut self, node: u64) -> Vec<Frame> {
        let Some(reader) = self.segments.front() else { return Vec::new() };
        let frames = reader.stacks().frames(node).take(self.frames);
        let stack: Vec<Frame> =
            frames.map(|frame| Frame { file: frame.file.into(), line: frame.line, function: frame.function.into() }).collect();
        self.named += stack.iter().map(|frame| size_of::<Frame>() + frame.file.len() + frame.function.len()).sum::<usize>();
        stack
    }

    fn is_at_site(&mut self, node: u64) -> bool {
        if let Some(&is) = self.sites.get(&node) {
            return is;
        }
        let (Some((file, line)), Some(reader)) = (&self.wanted.site, self.segments.front()) else { return true };
        let is = reader.stacks().passes(node, self.frames, file, *line);
        self.sites.insert(node, is);
        is
    }
}

/// When the clock was last looked at; traces before format 4 have none.
fn seconds(clock: &Clock) -> Option<f64> {
    (clock.micros != 0).then(|| clock.micros as f64 / 1e6)
}

/// A note's name, and what belongs to it.
fn said(note: Note) -> (&'static str, Option<String>) {
    match note {
        Note::Stats(text) => ("stats", Some(text)),
        Note::AllocatedBlocks(count) => ("allocatedBlocks", Some(count.to_string())),
        Note::HooksLost(domains) => ("hooksLost", Some(domains.to_string())),
        Note::End => ("end", None),
        Note::Interpreter(id) => ("interpreter", Some(id.to_string())),
        Note::Text(text) => ("text", Some(text)),
        Note::Exec => ("exec", None),
        Note::Finalization => ("finalization", None),
        Note::Mark(name) => ("mark", Some(name)),
        Note::Fork => ("fork", None),
        Note::Trim(pools) => ("trim", Some(pools.iter().map(|pool| format!("{pool:#x}")).collect::<Vec<_>>().join(" "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{BlockWriter, Domain, file_head};
    use crate::stacks::Lines;

    fn numbers(wanted: Wanted) -> Vec<u64> {
        let mut memory = [0; 4096];
        let mut block = BlockWriter::new(&mut memory);
        block.stack_text(b"/app/a.py");
        block.stack_text(b"f");
        block.code(0, 1, 7, Lines::Locations as u8, &[]);
        block.node(1, 0, 0);
        block.stack(1);
        block.malloc(Domain::Obj, false, 64, 0x1000);
        block.stack(0);
        block.calloc(Domain::Mem, false, 4, 16, 0x2000);
        block.realloc(Domain::Mem, false, 0x2000, 128, 0x3000);
        block.free(Domain::Obj, false, 0x1000);
        block.end();
        let reader = Reader::new([&file_head("{}")[..], block.finish()].concat()).expect("a trace");
        let mut listing = Listing::new(vec![reader], wanted, 64);
        let mut found = Vec::new();
        loop {
            let (some, more) = listing.step(2).expect("undamaged");
            found.extend(some);
            if !more {
                break;
            }
        }
        let number = |listed: &Listed| match listed {
            Listed::Call(call) => call.event,
            Listed::Note { event, .. } => *event,
        };
        found.iter().map(number).collect()
    }

    #[test]
    fn time_thread_and_memory_are_listed() {
        let mut bytes = [0; 4096];
        let mut block = BlockWriter::new(&mut bytes);
        block.malloc(Domain::Obj, false, 64, 0x1000);
        block.time(1_500_000);
        block.thread(7);
        block.memory(&Memory { anonymous: 2048, file: 1024, heap: 0, heap_free: 0 });
        block.mark("here");
        block.trim(14, &[0x8000, 0x4000]);
        block.free(Domain::Obj, false, 0x1000);
        let reader = Reader::new([&file_head("{}")[..], block.finish()].concat()).expect("a trace");
        let (found, _) = Listing::new(vec![reader], Wanted::default(), 64).step(100).expect("undamaged");
        let lines: Vec<String> = found.iter().map(|listed| serde_json::to_string(listed).expect("JSON")).collect();
        assert!(lines[0].contains(r#""seconds":null,"thread":null"#), "{}", lines[0]);
        assert_eq!(lines[1], r#"{"event":1,"seconds":1.5,"note":"memory","anonymous":2048,"file":1024,"heap":0,"heapFree":0}"#);
        assert_eq!(lines[2], r#"{"event":1,"seconds":1.5,"note":"mark","value":"here"}"#);
        assert_eq!(lines[3], r#"{"event":2,"seconds":1.5,"note":"trim","value":"0x8000 0x4000"}"#);
        assert!(lines[4].contains(r#""seconds":1.5,"thread":7"#), "{}", lines[4]);
        assert_eq!(lines.len(), 5);
    }

    #[test]
    fn free_has_the_size_of_the_block_that_it_frees() {
        let mut bytes = [0; 4096];
        let mut block = BlockWriter::new(&mut bytes);
        block.malloc(Domain::Obj, false, 64, 0x1000);
        block.calloc(Domain::Mem, false, 4, 16, 0x2000);
        block.realloc(Domain::Mem, false, 0x2000, 128, 0x3000);
        block.realloc(Domain::Mem, false, 0x3000, 1 << 40, 0);
        // Above 512 bytes: C's malloc has it.
        block.malloc(Domain::Raw, true, 640, 0x4000);
        block.malloc(Domain::Obj, false, 640, 0x4000);
        for (domain, nested, address) in [
            (Domain::Obj, false, 0x1000),
            (Domain::Mem, false, 0x3000),
            (Domain::Raw, true, 0x4000),
            (Domain::Obj, false, 0x4000),
            (Domain::Obj, false, 0x1000),
            (Domain::Mem, false, 0x2000),
            (Domain::Obj, false, 0),
        ] {
            block.free(domain, nested, address);
        }
        let trace = [&file_head("{}")[..], block.finish()].concat();
        let of = |wanted| {
            let reader = Reader::new(trace.clone()).expect("a trace");
            let (found, _) = Listing::new(vec![reader], wanted, 64).step(100).expect("undamaged");
            let size = |listed| if let Listed::Call(Call { call: "free", size, .. }) = listed { Some(size) } else { None };
            found.into_iter().filter_map(size).collect::<Vec<_>>()
        };
        assert_eq!(of(Wanted::default()), [Some(64), Some(128), Some(640), Some(640), None, None, None]);
        // The block was made before the first event that is wanted.
        assert_eq!(of(Wanted { from: 7, to: Some(7), ..Wanted::default() }), [Some(128)]);
        assert_eq!(of(Wanted { address: Some(0x4000), ..Wanted::default() }), [Some(640), Some(640)]);
    }

    #[test]
    fn raw_calls_are_an_interpreters_only_from_inside_its_others() {
        let mut memory = [0; 4096];
        let mut block = BlockWriter::new(&mut memory);
        block.interpreter(3);
        block.malloc(Domain::Raw, false, 64, 0x1000);
        block.malloc(Domain::Raw, true, 640, 0x2000);
        block.arena_alloc(true, 1 << 20, 0x10_0000);
        block.arena_alloc(false, 1 << 14, 0x30_0000);
        block.malloc(Domain::Obj, false, 640, 0x2000);
        let reader = Reader::new([&file_head("{}")[..], block.finish()].concat()).expect("a trace");
        let mut listing = Listing::new(vec![reader], Wanted { from: 1, ..Wanted::default() }, 64);
        let (found, _) = listing.step(100).expect("undamaged");
        let whose: Vec<u64> = found
            .iter()
            .filter_map(|listed| match listed {
                Listed::Call(call) => Some(call.interpreter),
                Listed::Note { .. } => None,
            })
            .collect();
        assert_eq!(whose, [0, 3, 3, 0, 3]);
    }

    #[test]
    fn events_are_chosen_by_number_size_address_and_site() {
        assert_eq!(numbers(Wanted::default()), [0, 1, 2, 3, 4]);
        assert_eq!(numbers(Wanted { from: 1, to: Some(2), ..Wanted::default() }), [1, 2]);
        assert_eq!(numbers(Wanted { size: Some(64), ..Wanted::default() }), [0, 1]);
        assert_eq!(numbers(Wanted { address: Some(0x1000), ..Wanted::default() }), [0, 3]);
        assert_eq!(numbers(Wanted { address: Some(0x2000), ..Wanted::default() }), [1, 2]);
        let site = |file: &str, line| numbers(Wanted { site: Some((file.into(), line)), ..Wanted::default() });
        assert_eq!(site("a.py", 7), [0]);
        assert_eq!(site("/app/a.py", 7), [0]);
        assert!(site("a.py", 8).is_empty() && site("pp/a.py", 7).is_empty());
    }

    #[test]
    fn step_ends_early_where_stacks_are_long() {
        let mut memory = vec![0; 1 << 17];
        let mut block = BlockWriter::new(&mut memory);
        block.stack_text(&[b'a'; 1 << 15]);
        block.code(0, 0, 7, Lines::Locations as u8, &[]);
        for _ in 0..100 {
            block.node(1, 0, 0);
        }
        block.stack(100);
        for number in 0..50 {
            block.malloc(Domain::Obj, false, 64, 0x1000 * number);
        }
        let trace = [&file_head("{}")[..], block.finish()].concat();
        let mut listing = Listing::new(vec![Reader::new(trace).expect("a trace")], Wanted::default(), 64);
        let mut steps = Vec::new();
        loop {
            let (found, more) = listing.step(1000).expect("undamaged");
            steps.push(found.len());
            if !more {
                break;
            }
        }
        // 64 frames of two names have four million bytes, a quarter of a step's.
        assert!(steps.iter().all(|&found| found <= 5) && steps.iter().sum::<usize>() == 50, "{steps:?}");
    }
}
