//! Replay: a recorded process's calls, made again on a heap of the same release, with every answer compared.
//!
//! Arenas are placed as far off a pool boundary as they were in the recorded process, so that everything inside them must come out
//! the same; addresses are compared as the recorded process would have seen them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::c_void;
use std::fmt;
use std::ptr::{self, NonNull};

use obmalloc::profile::{Geometry, Profile};
use obmalloc::{Allocator, ArenaAllocator, ArenaMapCounts, Heap, HeapError, HeapOptions, Stats};
use rustc_hash::FxHashMap;
use serde::{Serialize, Serializer};

use crate::format::{Domain, Event, FormatError, Note, Reader};
use crate::program::{Op, Verb};

/// Where an address lies, in the recorded process's terms.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Place {
    /// The address, 0 for NULL.
    pub address: u64,
    /// Number of the arena in the order in which arenas were taken, from 0, and where in it.
    pub arena: Option<PlaceInArena>,
}

/// Where in an arena an address lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlaceInArena {
    /// Number of the arena, from 0, in the order in which arenas were taken.
    pub arena: usize,
    /// Number of the pool, from 0.
    pub pool: usize,
    /// Number of the block, from 0, if blocks there are as large as the request asks.
    pub block: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.address, self.arena) {
            (0, _) => f.write_str("NULL"),
            (address, None) => write!(f, "{address:#x} (no arena)"),
            (address, Some(place)) => {
                write!(f, "{address:#x} (arena {}, pool {}, block {})", place.arena, place.pool, place.block)
            }
        }
    }
}

/// The first call that came out otherwise than in the recorded process.
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

/// What a replay has found so far.
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
    /// Requests at the arena allocator that are not pymalloc's: the interpreter's data stack.
    pub other_arena_requests: u64,
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
    /// What the recorder had to say.
    pub remarks: Vec<String>,
    /// Whether the file ended inside a block.
    pub truncated: bool,
    /// The first difference, if there is one. Nothing is replayed after it.
    #[serde(serialize_with = "with_text")]
    pub mismatch: Option<Mismatch>,
}

impl Report {
    /// Whether everything that was compared is equal, and something was; or there was nothing to compare. Programs that only say their
    /// version have no call that pymalloc serves.
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

/// Why a trace cannot be replayed.
#[derive(Debug)]
pub enum ReplayError {
    /// The trace cannot be read.
    Format(FormatError),
    /// No heap can be made.
    Heap(HeapError),
    /// The heap got no address space of its own, which a replay needs to tell where it is.
    AddressSpace,
}

impl fmt::Display for ReplayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Format(error) => error.fmt(f),
            Self::Heap(error) => error.fmt(f),
            Self::AddressSpace => f.write_str("no address space for the replay's arenas (is there a limit on virtual memory?)"),
        }
    }
}

impl std::error::Error for ReplayError {}

impl From<FormatError> for ReplayError {
    fn from(error: FormatError) -> Self {
        Self::Format(error)
    }
}

/// A replay under way.
pub struct Replay {
    // Field order is drop order: the heap gives its arenas back through the hooks.
    heap: Heap,
    hooks: Box<Hooks>,
    segments: VecDeque<Reader<'static>>,
    /// Recorded address of every live block → slot, and what it is here.
    live: FxHashMap<u64, Block>,
    free_slots: Vec<u32>,
    slots: u32,
    report: Report,
    program: Option<Vec<Op>>,
    stop_at: u64,
    /// Whose calls those that come next are; 0 is the main interpreter.
    interpreter: u64,
    other_interpreters: BTreeSet<u64>,
}

#[derive(Clone, Copy)]
struct Block {
    slot: u32,
    raw: bool,
    address: NonNull<u8>,
}

/// What stands below the heap: the arenas and raw blocks that it asks for are compared with those that were recorded.
struct Hooks {
    geometry: Geometry,
    base: usize,
    stride: usize,
    arena: ArenaAllocator,
    raw: Allocator,
    /// A mem or obj call is being replayed.
    inside: bool,
    /// Arena events and nested raw calls that precede the call being replayed.
    expected: VecDeque<Event>,
    difference: Option<String>,
    /// By place in the region: recorded base, number.
    places: Vec<(u64, usize)>,
    /// Recorded base → number, of the arenas now held.
    held: BTreeMap<u64, usize>,
    taken: u64,
    released: u64,
    highwater: u64,
    map: ArenaMapCounts,
}

impl Replay {
    /// Prepares the replay of `segments`, one after the other (a forked process's trace follows its parent's up to the fork), on a
    /// heap of `profile`.
    ///
    /// # Errors
    /// When no heap can be made.
    pub fn new(segments: Vec<Reader<'static>>, profile: &Profile) -> Result<Self, ReplayError> {
        let geometry = profile.geometry();
        // The arena map goes by addresses, so it is kept here, with the recorded ones.
        let without_map = profile.without_arena_map();
        let options = HeapOptions { arena_slack: geometry.pool_size, ..HeapOptions::new(&without_map) };
        let heap = Heap::with_options(options).map_err(ReplayError::Heap)?;
        let (base, len) = heap.region();
        if len == 0 {
            return Err(ReplayError::AddressSpace);
        }
        let mut hooks = Box::new(Hooks {
            geometry,
            base,
            stride: geometry.arena_size + geometry.pool_size,
            arena: heap.arena_allocator(),
            raw: heap.allocator(Domain::Raw),
            inside: false,
            expected: VecDeque::new(),
            difference: None,
            places: Vec::new(),
            held: BTreeMap::new(),
            taken: 0,
            released: 0,
            highwater: 0,
            map: ArenaMapCounts::new(profile),
        });
        let ctx = ptr::from_mut::<Hooks>(&mut hooks).cast::<c_void>();
        // SAFETY: the hooks live as long as the heap and pass on to the functions that were in; they do not unwind.
        unsafe {
            heap.set_allocator(
                Domain::Raw,
                Allocator { ctx, malloc: hook_malloc, calloc: hook_calloc, realloc: hook_realloc, free: hook_free },
            );
            heap.set_arena_allocator(ArenaAllocator { ctx, alloc: hook_arena_alloc, free: hook_arena_free });
        }
        Ok(Self {
            heap,
            hooks,
            segments: segments.into(),
            live: FxHashMap::default(),
            free_slots: Vec::new(),
            slots: 0,
            report: Report::default(),
            program: None,
            stop_at: u64::MAX,
            interpreter: 0,
            other_interpreters: BTreeSet::new(),
        })
    }

    /// Also collects the mem and obj calls as a [program](crate::program) that can be run against any allocator.
    pub fn collect_program(&mut self) {
        self.program = Some(Vec::new());
    }

    /// Ends the replay before event number `operation`.
    pub fn stop_at(&mut self, operation: u64) {
        self.stop_at = operation;
    }

    /// The program collected, and how many slots it uses.
    pub fn take_program(&mut self) -> Option<(Vec<Op>, usize)> {
        self.program.take().map(|ops| (ops, self.slots as usize))
    }

    /// What has been found so far.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// The statistics of the heap as it is now, with the arena map that the recorded process had.
    pub fn stats(&self) -> Stats {
        Stats { arena_map: self.hooks.map.stats(), ..self.heap.stats() }
    }

    /// Bytes of the present segment that have been read, and bytes in all of those left.
    pub fn progress(&self) -> (u64, u64) {
        let done = self.segments.front().map_or(0, |reader| reader.progress().0);
        (done, self.segments.iter().map(|reader| reader.progress().1).sum())
    }

    /// Replays at most `count` events; false when there is nothing left to replay.
    ///
    /// # Errors
    /// When the trace cannot be read any further.
    pub fn step(&mut self, count: usize) -> Result<bool, ReplayError> {
        let more = self.advance(count);
        (self.report.arenas_taken, self.report.arenas_released) = (self.hooks.taken, self.hooks.released);
        self.report.arenas_highwater = self.hooks.highwater;
        more
    }

    fn advance(&mut self, count: usize) -> Result<bool, ReplayError> {
        for _ in 0..count {
            if self.report.mismatch.is_some() {
                return Ok(false);
            }
            if self.report.events >= self.stop_at {
                self.report.stopped = !self.report.ended;
                return Ok(false);
            }
            let Some(reader) = self.segments.front_mut() else { return Ok(false) };
            match reader.next() {
                Some(event) => {
                    self.replay(event?);
                    self.report.events += 1;
                }
                None => {
                    self.report.truncated = reader.truncated();
                    self.segments.pop_front();
                    self.interpreter = 0;
                }
            }
        }
        Ok(true)
    }

    /// Replays everything.
    ///
    /// # Errors
    /// When the trace cannot be read any further.
    pub fn run(&mut self) -> Result<&Report, ReplayError> {
        while self.step(1 << 20)? {}
        Ok(&self.report)
    }

    fn replay(&mut self, event: Event) {
        self.report.ended = matches!(event, Event::Note(Note::End | Note::Exec));
        if self.interpreter != 0 && event.is_pymallocs() {
            return self.leave_out(&event);
        }
        match event {
            Event::Note(note) => self.note(note),
            Event::ArenaAlloc { nested: false, .. } | Event::ArenaFree { nested: false, .. } => {
                self.report.other_arena_requests += 1;
            }
            Event::ArenaAlloc { .. } | Event::ArenaFree { .. } => self.hooks.expected.push_back(event),
            Event::Malloc { nested: true, .. }
            | Event::Calloc { nested: true, .. }
            | Event::Realloc { nested: true, .. }
            | Event::Free { nested: true, .. } => {
                self.report.nested_raw_calls += 1;
                self.hooks.expected.push_back(event);
            }
            Event::Malloc { domain, size, result, .. } => self.malloc(&event, domain, None, size, result),
            Event::Calloc { domain, count, size, result, .. } => self.malloc(&event, domain, Some(count), size, result),
            Event::Realloc { domain, address, size, result, .. } => self.realloc(&event, domain, address, size, result),
            Event::Free { domain, address, .. } => self.free(&event, domain, address),
        }
    }

    fn note(&mut self, note: Note) {
        match note {
            Note::Stats(expected) => self.report.stats = Some((expected, self.stats().to_string())),
            // CPython counts all interpreters together.
            Note::AllocatedBlocks(_) if !self.other_interpreters.is_empty() => {}
            Note::AllocatedBlocks(expected) => self.report.blocks = Some((expected, self.heap.allocated_blocks() as u64)),
            Note::HooksLost(domains) => self.report.hooks_lost |= domains,
            Note::Text(text) => self.report.remarks.push(text),
            Note::End | Note::Exec => {}
            Note::Interpreter(id) => {
                self.interpreter = id;
                if id != 0 {
                    self.other_interpreters.insert(id);
                    self.report.other_interpreters = self.other_interpreters.len() as u64;
                }
            }
        }
    }

    /// A call of an interpreter whose arenas and pools are not the main one's. What the C library gave can be freed by any of them.
    fn leave_out(&mut self, event: &Event) {
        let (domain, gone) = match *event {
            Event::Malloc { domain, nested: false, .. } | Event::Calloc { domain, nested: false, .. } => (domain, 0),
            Event::Realloc { domain, nested: false, result: 0, .. } => (domain, 0),
            Event::Realloc { domain, nested: false, address, .. } | Event::Free { domain, nested: false, address } => {
                (domain, address)
            }
            _ => return,
        };
        self.report.other_calls += 1;
        if let Some(&block) = self.live.get(&gone).filter(|block| block.raw) {
            self.live.remove(&gone);
            // SAFETY: it was live, and lies in no arena.
            unsafe { self.heap.free(Domain::Raw, Some(block.address)) };
            self.free_slots.push(block.slot);
            self.push(domain, Verb::Free, block.slot, 0);
        }
    }

    /// Counts a call, and says whether it is one whose result is compared.
    fn begin(&mut self, domain: Domain) -> bool {
        let compared = domain != Domain::Raw;
        if compared {
            self.report.calls += 1;
        } else {
            self.report.raw_calls += 1;
        }
        self.hooks.inside = compared;
        compared
    }

    /// A malloc, or with `count` a calloc.
    fn malloc(&mut self, event: &Event, domain: Domain, count: Option<u64>, size: u64, result: u64) {
        let compared = self.begin(domain);
        if result == 0 && self.hooks.expected.is_empty() {
            // Refused without asking anybody, or by the system itself: whether it would refuse here says nothing.
            return;
        }
        let (here, size) = (domain, size as usize);
        let (block, verb, size) = match count {
            None => (self.heap.malloc(here, size), Verb::Malloc, size),
            Some(count) => (self.heap.calloc(here, count as usize, size), Verb::Calloc, size.saturating_mul(count as usize)),
        };
        if compared {
            self.compare(event, size, result, block);
        }
        if let Some(block) = block {
            let slot = self.enter(domain, result, block);
            self.push(domain, verb, slot, size);
        }
    }

    fn realloc(&mut self, event: &Event, domain: Domain, address: u64, size: u64, result: u64) {
        if address == 0 {
            // The same as a malloc, in CPython too.
            return self.malloc(event, domain, None, size, result);
        }
        let compared = self.begin(domain);
        let Some(old) = self.take(event, domain, address) else { return };
        if result == 0 && self.hooks.expected.is_empty() {
            self.live.insert(address, old);
            return;
        }
        // SAFETY: `old` is live here, and of this domain as far as the engine is concerned (`take`).
        let block = unsafe { self.heap.realloc(domain, Some(old.address), size as usize) };
        if compared {
            self.compare(event, size as usize, result, block);
        }
        match block {
            Some(block) => {
                self.live.insert(result, Block { slot: old.slot, raw: self.is_outside(block), address: block });
                self.push(domain, Verb::Realloc, old.slot, size as usize);
            }
            None => {
                self.live.insert(address, old);
            }
        }
    }

    fn free(&mut self, event: &Event, domain: Domain, address: u64) {
        let compared = self.begin(domain);
        if address == 0 {
            return;
        }
        let Some(old) = self.take(event, domain, address) else { return };
        // SAFETY: as in `realloc`.
        unsafe { self.heap.free(domain, Some(old.address)) };
        self.free_slots.push(old.slot);
        self.push(domain, Verb::Free, old.slot, 0);
        if compared {
            self.compare(event, 0, 0, None);
        }
    }

    fn push(&mut self, domain: Domain, verb: Verb, slot: u32, size: usize) {
        if domain != Domain::Raw
            && let Some(program) = &mut self.program
        {
            program.push(Op::new(verb, domain == Domain::Obj, slot, size));
        }
    }

    fn is_outside(&self, block: NonNull<u8>) -> bool {
        block.addr().get().wrapping_sub(self.hooks.base) >= self.heap.region().1
    }

    fn enter(&mut self, domain: Domain, recorded: u64, block: NonNull<u8>) -> u32 {
        let slot = self.free_slots.pop().unwrap_or_else(|| {
            self.slots += 1;
            self.slots - 1
        });
        let raw = domain == Domain::Raw || self.is_outside(block);
        // Raw calls of threads can be written in another order than they happened: the block that was there is gone by now, even if
        // that is written later. What it is here stays allocated until the end of the replay.
        self.live.insert(recorded, Block { slot, raw, address: block });
        slot
    }

    /// Takes the block at a recorded address out of the live ones. Nothing, when there is none or it may not go through this domain.
    fn take(&mut self, event: &Event, domain: Domain, address: u64) -> Option<Block> {
        let Some(block) = self.live.remove(&address) else {
            self.report.strangers += 1;
            self.hooks.expected.clear();
            return None;
        };
        if domain == Domain::Raw && !block.raw {
            let what = "the recorded process gave a block of pymalloc to the raw domain".to_string();
            self.mismatch(event, what, Place::default(), self.place(address, 1));
            return None;
        }
        Some(block)
    }

    /// Compares the result of a mem or obj call, and what it asked of others, with the record.
    fn compare(&mut self, event: &Event, size: usize, expected: u64, got: Option<NonNull<u8>>) {
        self.hooks.inside = false;
        let (base, stride) = (self.hooks.base, self.hooks.stride);
        let inside = got.filter(|&block| !self.is_outside(block)).map(|block| {
            let slot = (block.addr().get() - base) / stride;
            // Arenas are as far off a pool boundary here as they were there, so places in them translate by adding.
            let (recorded, _) = self.hooks.places[slot];
            let misalignment = recorded as usize & (self.hooks.geometry.pool_size - 1);
            recorded + (block.addr().get() - base - slot * stride - misalignment) as u64
        });
        let equal = match inside {
            Some(address) => {
                self.report.addresses += 1;
                self.report.matched += u64::from(address == expected);
                address == expected
            }
            None => {
                let recorded_inside = expected != 0 && self.hooks.arena_of(expected).is_some();
                self.report.addresses += u64::from(recorded_inside);
                !recorded_inside && got.is_none() == (expected == 0)
            }
        };
        if equal && self.hooks.difference.is_none() && self.hooks.expected.is_empty() {
            return;
        }
        let what = match (self.hooks.difference.take(), self.hooks.expected.front()) {
            (Some(what), _) => what,
            (None, Some(event)) => {
                format!("the recorded process also made this call, which is not made here: {}", request(event))
            }
            (None, None) => "the addresses differ".to_string(),
        };
        let got = inside.unwrap_or_else(|| got.map_or(0, |block| block.addr().get() as u64));
        self.mismatch(event, what, self.place(expected, size), self.place(got, size));
    }

    fn mismatch(&mut self, event: &Event, what: String, expected: Place, got: Place) {
        self.report.mismatch = Some(Mismatch { operation: self.report.events, request: request(event), what, expected, got });
    }

    /// Where a recorded address lies, for a request of `size` bytes.
    fn place(&self, address: u64, size: usize) -> Place {
        let geometry = &self.hooks.geometry;
        let arena = self.hooks.arena_of(address).map(|(base, arena)| {
            let pool_size = geometry.pool_size as u64;
            let offset = address.saturating_sub(base.next_multiple_of(pool_size));
            let block_size = size.clamp(1, geometry.small_request_threshold).next_multiple_of(geometry.alignment) as u64;
            let block = (offset % pool_size).saturating_sub(obmalloc::profile::POOL_OVERHEAD as u64) / block_size;
            PlaceInArena { arena, pool: (offset / pool_size) as usize, block: block as usize }
        });
        Place { address, arena }
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        self.hooks.inside = false;
        for block in self.live.values().filter(|block| block.raw) {
            // SAFETY: a raw block of the C library that nobody uses any more.
            unsafe { (self.hooks.raw.free)(self.hooks.raw.ctx, block.address.as_ptr().cast()) };
        }
    }
}

/// A recorded call as C would write it.
pub fn request(event: &Event) -> String {
    let prefix = |domain: &Domain| match domain {
        Domain::Raw => "PyMem_Raw",
        Domain::Mem => "PyMem_",
        Domain::Obj => "PyObject_",
    };
    match event {
        Event::Malloc { domain, size, .. } => format!("{}Malloc({size})", prefix(domain)),
        Event::Calloc { domain, count, size, .. } => format!("{}Calloc({count}, {size})", prefix(domain)),
        Event::Realloc { domain, address, size, .. } => format!("{}Realloc({address:#x}, {size})", prefix(domain)),
        Event::Free { domain, address, .. } => format!("{}Free({address:#x})", prefix(domain)),
        Event::ArenaAlloc { size, .. } => format!("arena alloc({size})"),
        Event::ArenaFree { size, address, .. } => format!("arena free({address:#x}, {size})"),
        Event::Note(note) => format!("{note:?}"),
    }
}

impl Hooks {
    /// Recorded base and number of the arena that a recorded address lies in.
    fn arena_of(&self, address: u64) -> Option<(u64, usize)> {
        let (&base, &number) = self.held.range(..=address).next_back()?;
        (address - base < self.geometry.arena_size as u64).then_some((base, number))
    }

    /// Compares what the heap asks for with what was recorded next; gives the recorded result. Addresses are not compared: raw ones
    /// differ, and arenas' are looked at where they are used.
    fn expect(&mut self, asked: Event) -> u64 {
        let recorded = self.expected.pop_front();
        let (same, result) = match (&recorded, &asked) {
            (Some(Event::Malloc { size, result, .. }), Event::Malloc { size: asked, .. }) => (size == asked, *result),
            (Some(Event::Calloc { count, size, result, .. }), Event::Calloc { count: asked_count, size: asked, .. }) => {
                (count == asked_count && size == asked, *result)
            }
            (Some(Event::Realloc { size, result, .. }), Event::Realloc { size: asked, .. }) => (size == asked, *result),
            (Some(Event::Free { .. }), Event::Free { .. }) => (true, 0),
            (Some(Event::ArenaAlloc { size, result, .. }), Event::ArenaAlloc { size: asked, .. }) => (size == asked, *result),
            (Some(Event::ArenaFree { address, .. }), Event::ArenaFree { address: asked, .. }) => (address == asked, 0),
            _ => (false, 1),
        };
        if !same && self.difference.is_none() {
            let recorded = recorded.as_ref().map_or("nothing".to_string(), request);
            self.difference =
                Some(format!("the heap asks for {}, where the recorded process asked for {recorded}", request(&asked)));
        }
        result
    }

    fn arena_alloc(&mut self, size: usize) -> Option<NonNull<u8>> {
        let recorded = self.expect(Event::ArenaAlloc { nested: true, size: size as u64, result: 0 });
        if recorded == 0 || self.difference.is_some() {
            return None;
        }
        let marked = {
            let mut map = std::mem::take(&mut self.map);
            let node = |size| Event::Calloc { domain: Domain::Raw, nested: true, count: 1, size: size as u64, result: 0 };
            let marked = map.mark_used(recorded as usize, |size| self.expect(node(size)) != 0);
            self.map = map;
            marked
        };
        if !marked {
            // The recorded process had no memory for the map, and gave the arena back.
            self.expect(Event::ArenaFree { nested: true, size: size as u64, address: recorded });
            return None;
        }
        // SAFETY: the heap's own arena allocator, asked for an arena.
        let place = NonNull::new(unsafe { (self.arena.alloc)(self.arena.ctx, size) }.cast::<u8>())?;
        let slot = place.addr().get().wrapping_sub(self.base) / self.stride;
        if slot >= self.places.len() {
            self.places.resize(slot + 1, (0, 0));
        }
        self.places[slot] = (recorded, self.taken as usize);
        self.held.insert(recorded, self.taken as usize);
        self.taken += 1;
        self.highwater = self.highwater.max(self.held.len() as u64);
        // SAFETY: the heap leaves a pool's size of slack between arenas.
        Some(unsafe { place.add(recorded as usize & (self.geometry.pool_size - 1)) })
    }
}

/// The hooks that a call came through.
unsafe fn hooks<'a>(ctx: *mut c_void) -> &'a mut Hooks {
    // SAFETY: `ctx` is the hooks that the functions were installed with; a replay runs on one thread and holds no reference to them
    // while the heap runs.
    unsafe { &mut *ctx.cast::<Hooks>() }
}

unsafe extern "C-unwind" fn hook_malloc(ctx: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: as said at `hooks`; the inner functions take what they are given here.
    unsafe {
        let hooks = hooks(ctx);
        let event = Event::Malloc { domain: Domain::Raw, nested: true, size: size as u64, result: 0 };
        if hooks.inside && hooks.expect(event) == 0 {
            return ptr::null_mut();
        }
        (hooks.raw.malloc)(hooks.raw.ctx, size)
    }
}

unsafe extern "C-unwind" fn hook_calloc(ctx: *mut c_void, count: usize, size: usize) -> *mut c_void {
    // SAFETY: as in `hook_malloc`.
    unsafe {
        let hooks = hooks(ctx);
        let event = Event::Calloc { domain: Domain::Raw, nested: true, count: count as u64, size: size as u64, result: 0 };
        if hooks.inside && hooks.expect(event) == 0 {
            return ptr::null_mut();
        }
        (hooks.raw.calloc)(hooks.raw.ctx, count, size)
    }
}

unsafe extern "C-unwind" fn hook_realloc(ctx: *mut c_void, address: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: as in `hook_malloc`.
    unsafe {
        let hooks = hooks(ctx);
        let event =
            Event::Realloc { domain: Domain::Raw, nested: true, address: address.addr() as u64, size: size as u64, result: 0 };
        if hooks.inside && hooks.expect(event) == 0 {
            return ptr::null_mut();
        }
        (hooks.raw.realloc)(hooks.raw.ctx, address, size)
    }
}

unsafe extern "C-unwind" fn hook_free(ctx: *mut c_void, address: *mut c_void) {
    // SAFETY: as in `hook_malloc`.
    unsafe {
        let hooks = hooks(ctx);
        if hooks.inside {
            hooks.expect(Event::Free { domain: Domain::Raw, nested: true, address: address.addr() as u64 });
        }
        (hooks.raw.free)(hooks.raw.ctx, address);
    }
}

unsafe extern "C-unwind" fn hook_arena_alloc(ctx: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: as in `hook_malloc`.
    unsafe { hooks(ctx).arena_alloc(size).map_or(ptr::null_mut(), |address| address.as_ptr().cast()) }
}

unsafe extern "C-unwind" fn hook_arena_free(ctx: *mut c_void, address: *mut c_void, size: usize) {
    // SAFETY: as in `hook_malloc`. The place is given back, not the address that is off it.
    unsafe {
        let hooks = hooks(ctx);
        let slot = address.expose_provenance().wrapping_sub(hooks.base) / hooks.stride;
        let (recorded, _) = hooks.places[slot];
        if hooks.inside {
            hooks.expect(Event::ArenaFree { nested: true, size: size as u64, address: recorded });
        }
        hooks.held.remove(&recorded);
        hooks.released += 1;
        (hooks.arena.free)(hooks.arena.ctx, ptr::with_exposed_provenance_mut(hooks.base + slot * hooks.stride), size);
    }
}
