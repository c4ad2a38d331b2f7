//! The replay: makes a recorded process's calls again on a heap of the same release. Watchers are told the outcome of each.
//!
//! Arenas are placed as far off a pool boundary as they were in the recorded process, so that every block in them must get the same place.
//! Addresses are translated to the recorded process's before they are compared.

mod below;
mod compare;
mod follow;
mod live;
mod look;

use std::collections::VecDeque;
use std::fmt;
use std::ptr::NonNull;

use obmalloc::profile::{Geometry, Profile};
use obmalloc::{ArenaMapCounts, Heap, HeapError, HeapOptions, Stats};

use crate::format::{Domain, Event, FormatError, Note, Reader};
use crate::stacks::Stacks;
use crate::watch::{Answer, Fate, Place, PlaceInArena, Seen, Watcher, request};
use below::Hooks;
pub use compare::{Mismatch, Report};
use live::Live;
pub use look::HeldArena;

/// Why a trace cannot be replayed.
#[derive(Debug)]
pub enum ReplayError {
    /// The trace cannot be read.
    Format(FormatError),
    /// No heap can be made.
    Heap(HeapError),
    /// The heap got no region, which a replay needs to translate addresses.
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

/// A replay under way, with a watcher looking on.
pub struct Replay<W = Report> {
    segments: VecDeque<Reader<'static>>,
    /// The last of them, once it has been read.
    last: Option<Reader<'static>>,
    /// Bytes of all segments.
    bytes: u64,
    course: Course<W>,
    stop_at: u64,
}

/// How far a replay has come, and on what.
struct Course<W> {
    ground: Ground,
    watcher: W,
    operation: u64,
    /// Whether a watcher has ended it.
    is_over: bool,
    /// Whether calls are no longer made.
    is_following: bool,
    /// The interpreter of the next calls; 0 is the main one.
    interpreter: u64,
}

/// What a trace is replayed on.
pub(crate) struct Ground {
    // Field order is drop order: the heap gives its arenas back through the hooks.
    heap: Heap,
    hooks: Box<Hooks>,
    live: Live,
    /// The outcome of the last event.
    pub(crate) answer: Answer,
    /// For the last trim: the first pool that could not be trimmed here, because it holds blocks or was never in use.
    pub(crate) untrimmed: Option<u64>,
}

impl<W: Watcher> Replay<W> {
    /// Prepares the replay of `segments`, one after the other (a forked process's trace follows its parent's up to the fork), on a heap of
    /// `profile`, with a `watcher`. Stacks are only numbered: their frames are not kept.
    ///
    /// # Errors
    /// When no heap can be made.
    pub fn new(segments: Vec<Reader<'static>>, profile: &Profile, watcher: W) -> Result<Self, ReplayError> {
        Self::with_stacks(segments.into_iter().map(Reader::without_stacks).collect(), profile, watcher)
    }

    /// As [`new`](Self::new), but [`stacks`](Self::stacks) keeps the frames.
    ///
    /// # Errors
    /// When no heap can be made.
    pub fn with_stacks(segments: Vec<Reader<'static>>, profile: &Profile, watcher: W) -> Result<Self, ReplayError> {
        Self::on(segments, profile, profile.geometry(), watcher)
    }

    /// As [`with_stacks`](Self::with_stacks), on a heap of other sizes than the release's.
    ///
    /// # Errors
    /// When no heap of these sizes can be made.
    pub fn on(segments: Vec<Reader<'static>>, profile: &Profile, geometry: Geometry, watcher: W) -> Result<Self, ReplayError> {
        let course = Course {
            ground: Ground::new(profile, geometry)?,
            watcher,
            operation: 0,
            is_over: false,
            is_following: false,
            interpreter: 0,
        };
        let bytes = segments.iter().map(|reader| reader.progress().1).sum();
        Ok(Self { segments: segments.into(), last: None, bytes, course, stop_at: u64::MAX })
    }

    /// Ends the replay before event number `operation`.
    pub fn stop_at(&mut self, operation: u64) {
        self.stop_at = operation;
    }

    /// The watcher.
    pub fn watcher(&self) -> &W {
        &self.course.watcher
    }

    /// The watcher, and the end of the replay.
    pub fn into_watcher(self) -> W {
        self.course.watcher
    }

    /// The statistics of the heap as it is now, with the arena map that the recorded process had.
    pub fn stats(&self) -> Stats {
        self.course.ground.stats()
    }

    /// Bytes of all segments that have been read, and bytes in all.
    pub fn progress(&self) -> (u64, u64) {
        let left: u64 = self.segments.iter().map(Reader::left).sum();
        (self.bytes.saturating_sub(left), self.bytes)
    }

    /// Replays at most `count` events; false when there is nothing left to replay.
    ///
    /// # Errors
    /// When the trace cannot be read any further.
    pub fn step(&mut self, count: usize) -> Result<bool, ReplayError> {
        let course = &mut self.course;
        let end = self.stop_at.min(course.operation.saturating_add(count as u64));
        while let Some(reader) = self.segments.front_mut() {
            while course.operation < end && !course.is_over {
                let Some(event) = reader.next() else { break };
                course.replay(event?, reader.stack(), reader.stacks());
            }
            if course.is_over {
                return Ok(false);
            }
            if course.operation == self.stop_at {
                course.watcher.stops();
                course.is_over = true;
                return Ok(false);
            }
            if course.operation == end {
                return Ok(true);
            }
            course.watcher.trace_ends(reader.truncated());
            course.interpreter = 0;
            match (self.segments.pop_front(), self.segments.front_mut()) {
                (Some(done), Some(next)) => next.continue_from(done),
                (done, _) => self.last = done,
            }
        }
        Ok(false)
    }

    /// Replays everything. Returns the watcher, to be asked what it has seen.
    ///
    /// # Errors
    /// When the trace cannot be read any further.
    pub fn run(&mut self) -> Result<&W, ReplayError> {
        while self.step(1 << 20)? {}
        Ok(&self.course.watcher)
    }
}

impl<W: Watcher> Course<W> {
    #[inline]
    fn replay(&mut self, event: Event, stack: u64, stacks: &Stacks) {
        if let Event::Note(Note::Interpreter(id)) = event {
            self.interpreter = id;
        }
        let fate = if self.interpreter != 0 && event.is_pymallocs() {
            self.ground.leave_out(&event)
        } else if self.is_following {
            self.ground.follow(&event)
        } else {
            self.ground.replay(&event)
        };
        let (operation, interpreter) = (self.operation, self.interpreter);
        let stack = if event.is_request() { stack } else { 0 };
        let seen = Seen { event: &event, operation, stack, interpreter, stacks, fate, ground: &self.ground };
        self.is_over |= self.watcher.see(&seen).is_break();
        self.operation += 1;
        match fate {
            Fate::Below if !self.is_following => self.ground.hooks.expected.push_back(event),
            Fate::Made if self.ground.differs_below() && event.is_pymallocs() => self.ground.forget_below(),
            _ => {}
        }
    }
}

impl Ground {
    fn new(profile: &Profile, geometry: Geometry) -> Result<Self, ReplayError> {
        // The arena map goes by addresses, so it is kept here, with the recorded ones.
        let without_map = profile.without_arena_map();
        let options = HeapOptions { geometry: Some(geometry), arena_slack: geometry.pool_size, ..HeapOptions::new(&without_map) };
        let heap = Heap::with_options(options).map_err(ReplayError::Heap)?;
        if heap.region().1 == 0 {
            return Err(ReplayError::AddressSpace);
        }
        let hooks = Hooks::install(&heap, geometry, ArenaMapCounts::new(profile));
        Ok(Self { heap, hooks, live: Live::default(), answer: Answer::default(), untrimmed: None })
    }

    #[inline]
    fn replay(&mut self, event: &Event) -> Fate {
        match *event {
            Event::Note(Note::Trim(ref pools)) => self.trim(pools),
            Event::Note(_) => Fate::Noted,
            Event::ArenaAlloc { nested: false, .. } | Event::ArenaFree { nested: false, .. } => Fate::Beside,
            Event::ArenaAlloc { .. }
            | Event::ArenaFree { .. }
            | Event::Malloc { nested: true, .. }
            | Event::Calloc { nested: true, .. }
            | Event::Realloc { nested: true, .. }
            | Event::Free { nested: true, .. } => Fate::Below,
            Event::Malloc { domain, size, result, .. } | Event::Realloc { domain, address: 0, size, result, .. } => {
                self.malloc(domain, result, |heap| heap.malloc(domain, size as usize))
            }
            Event::Calloc { domain, count, size, result, .. } => {
                self.malloc(domain, result, |heap| heap.calloc(domain, count as usize, size as usize))
            }
            Event::Realloc { domain, address, size, result, .. } => self.realloc(domain, address, size, result),
            Event::Free { domain, address, .. } => self.free(domain, address),
        }
    }

    /// Forgets the free lists of empty pools.
    #[cold]
    fn trim(&mut self, pools: &[u64]) -> Fate {
        self.untrimmed = pools.iter().copied().find(|&pool| {
            let place = self.hooks.arenas.find(pool);
            let arena = place.and_then(|place| self.hooks.arenas.at(place));
            let here = arena.map(|arena| arena.here + (pool - arena.recorded) as usize);
            !here.is_some_and(|here| self.heap.forget_pool(here))
        });
        Fate::Noted
    }

    /// A call of an interpreter whose arenas and pools are not the main one's. Any interpreter can free a C library's block: then returns the
    /// block's slot.
    fn leave_out(&mut self, event: &Event) -> Fate {
        self.answer = Answer { slot: self.free_outside(event), ..Answer::default() };
        Fate::LeftOut
    }

    fn free_outside(&mut self, event: &Event) -> Option<u32> {
        let gone = match *event {
            Event::Realloc { nested: false, result: 0, .. } => return None,
            Event::Realloc { nested: false, address, .. } | Event::Free { nested: false, address, .. } => address,
            _ => return None,
        };
        let (slot, block) = self.live.take(&mut self.hooks.arenas, gone)?;
        if self.hooks.is_inside(block) {
            self.put_back(gone, slot);
            return None;
        }
        // SAFETY: it was live, and lies in no arena.
        unsafe { self.heap.free(Domain::Raw, Some(block)) };
        self.live.give_back(slot);
        Some(slot)
    }

    /// Whether a request that gave `result` was refused, by the allocator or by the system. Whether the same request succeeds here means
    /// nothing.
    #[inline]
    fn was_refused(&self, result: u64) -> bool {
        result == 0 && self.hooks.expected.is_empty()
    }

    /// A malloc or calloc.
    #[inline]
    fn malloc(&mut self, domain: Domain, result: u64, call: impl FnOnce(&Heap) -> Option<NonNull<u8>>) -> Fate {
        if self.was_refused(result) {
            return Fate::Skipped;
        }
        self.hooks.inside = domain != Domain::Raw;
        let block = call(&self.heap);
        let slot = block.map(|block| self.live.slot_for(block));
        self.made(result, slot, block)
    }

    fn realloc(&mut self, domain: Domain, address: u64, size: u64, result: u64) -> Fate {
        let (slot, old) = match self.take(domain, address) {
            Ok(found) => found,
            Err(fate) => return fate,
        };
        if self.was_refused(result) {
            self.put_back(address, slot);
            return Fate::Skipped;
        }
        self.hooks.inside = domain != Domain::Raw;
        // SAFETY: `old` is live here, and of this domain as far as the engine is concerned (`take`).
        let block = unsafe { self.heap.realloc(domain, Some(old), size as usize) };
        match block {
            Some(block) => self.live.moved(slot, block),
            None => self.put_back(address, slot),
        }
        self.made(result, block.map(|_| slot), block)
    }

    #[inline]
    fn free(&mut self, domain: Domain, address: u64) -> Fate {
        if address == 0 {
            return Fate::Skipped;
        }
        let (slot, block) = match self.take(domain, address) {
            Ok(found) => found,
            Err(fate) => return fate,
        };
        self.hooks.inside = domain != Domain::Raw;
        // SAFETY: as in `realloc`.
        unsafe { self.heap.free(domain, Some(block)) };
        self.hooks.inside = false;
        self.live.give_back(slot);
        self.answered(Some(slot), 0, false, false)
    }

    /// Takes the block at a recorded address out of the live ones, unless there is none or it may not go through this domain.
    #[inline]
    fn take(&mut self, domain: Domain, address: u64) -> Result<(u32, NonNull<u8>), Fate> {
        let Some((slot, block)) = self.live.take(&mut self.hooks.arenas, address) else {
            self.hooks.expected.clear();
            return Err(Fate::Stranger);
        };
        if domain == Domain::Raw && self.hooks.is_inside(block) {
            self.put_back(address, slot);
            return Err(Fate::Misplaced);
        }
        Ok((slot, block))
    }

    /// Enters a block again that was taken out and is still where it was.
    #[cold]
    fn put_back(&mut self, address: u64, slot: u32) {
        let place = self.hooks.arenas.place_of(address).filter(|_| self.hooks.is_inside(self.live.block(slot)));
        self.live.enter(&mut self.hooks.arenas, address, slot, place);
    }

    /// Enters the block of a request that gave `block` here and `result` in the recorded process. Returns the outcome.
    #[inline]
    fn made(&mut self, result: u64, slot: Option<u32>, block: Option<NonNull<u8>>) -> Fate {
        self.hooks.inside = false;
        let place = if result == 0 { None } else { self.hooks.arenas.find(result) };
        let home = place.and_then(|place| self.hooks.arenas.at(place));
        let was_inside = home.is_some();
        // Arenas are as far off a pool boundary here as they were there, so places in them translate by adding.
        let expected = home.map(|arena| arena.here + (result - arena.recorded) as usize);
        let Some((block, number)) = block.zip(slot) else {
            return self.answered(None, 0, false, was_inside);
        };
        let inside = self.hooks.is_inside(block);
        let here = block.addr().get();
        let got = match expected {
            Some(expected) if expected == here => result,
            _ if inside => {
                self.hooks.arena_here(block).map_or(0, |arena| arena.recorded.wrapping_add(here.wrapping_sub(arena.here) as u64))
            }
            _ => here as u64,
        };
        self.live.enter(&mut self.hooks.arenas, result, number, place.filter(|_| inside));
        self.answered(slot, got, inside, was_inside)
    }

    /// Field by field: a reader that loads more at once than was stored waits.
    #[inline]
    fn answered(&mut self, slot: Option<u32>, got: u64, inside: bool, was_inside: bool) -> Fate {
        self.answer.slot = slot;
        self.answer.got = got;
        self.answer.inside = inside;
        self.answer.was_inside = was_inside;
        Fate::Made
    }

    /// Forgets the expected requests below the heap that were not made, and the difference there.
    #[cold]
    fn forget_below(&mut self) {
        self.hooks.expected.clear();
        self.hooks.difference = None;
    }

    #[inline]
    pub fn differs_below(&self) -> bool {
        self.hooks.difference.is_some() || !self.hooks.expected.is_empty()
    }

    pub fn difference_below(&self) -> Option<String> {
        self.hooks.difference.clone().or_else(|| {
            let missing = request(self.hooks.expected.front()?);
            Some(format!("the recorded process also made this call, which is not made here: {missing}"))
        })
    }

    pub fn stats(&self) -> Stats {
        Stats { arena_map: self.hooks.map.stats(), ..self.heap.stats() }
    }

    pub fn allocated_blocks(&self) -> u64 {
        self.heap.allocated_blocks() as u64
    }

    /// Where a recorded address lies, for a request of `size` bytes.
    pub fn place(&self, address: u64, size: usize) -> Place {
        let geometry = self.heap.geometry();
        let arenas = &self.hooks.arenas;
        let arena = arenas.place_of(address).and_then(|place| arenas.at(place)).map(|arena| {
            let pool_size = geometry.pool_size as u64;
            let offset = address.saturating_sub(arena.recorded.checked_next_multiple_of(pool_size).unwrap_or(arena.recorded));
            let block_size = size.clamp(1, geometry.small_request_threshold).next_multiple_of(geometry.alignment) as u64;
            let block = (offset % pool_size).saturating_sub(obmalloc::profile::POOL_OVERHEAD as u64) / block_size;
            PlaceInArena { arena: arena.number, pool: (offset / pool_size) as usize, block: block as usize }
        });
        Place { address, arena }
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        self.hooks.inside = false;
        for block in self.live.others().filter(|&block| !self.hooks.is_inside(block)) {
            // SAFETY: a raw block of the C library that is not used any more.
            unsafe { self.hooks.free_raw(block) };
        }
    }
}
