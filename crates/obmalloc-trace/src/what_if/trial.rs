//! One configuration: its heap, or two heaps if a site is set apart, and the result of making the calls on it.

use std::cell::Cell;
use std::ffi::c_void;
use std::io;
use std::ptr::{self, NonNull};
use std::rc::Rc;
use std::time::{Duration, Instant};

use obmalloc::profile::{Geometry, Profile};
use obmalloc::{ArenaAllocator, Domain, Heap, HeapError, HeapOptions};
use serde::{Deserialize, Serialize};

use super::calls::{Call, Calls};
use super::trials::TrialsError;

/// Another heap than the recorded process had.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Configuration {
    /// The release whose rules are followed; the recorded one unless given.
    pub release: Option<String>,
    /// Bytes in an arena; the release's unless given.
    pub arena: Option<usize>,
    /// Bytes in a pool; the release's unless given.
    pub pool: Option<usize>,
    /// Bytes of the largest request that is small; the release's unless given.
    pub threshold: Option<usize>,
    /// Whether the blocks that are set apart have a heap of their own.
    #[serde(default)]
    pub apart: bool,
}

/// The result of a configuration. Bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// Most bytes of arenas that were held.
    pub peak_held: u64,
    /// Bytes of arenas that are held at the moment.
    pub held: u64,
    /// The part of `held` that is in no live block, counted at the requested sizes.
    pub lost: u64,
    /// How often an arena was taken.
    pub maps: u64,
    /// How often an arena was given back.
    pub unmaps: u64,
    /// Nanoseconds that a call took on the mean.
    pub nanoseconds: f64,
}

/// Arenas of a trial, all heaps together.
#[derive(Default)]
struct Counts {
    held: Cell<u64>,
    peak: Cell<u64>,
    maps: Cell<u64>,
    unmaps: Cell<u64>,
}

/// An arena allocator around the heap's own: it counts, and places each arena as far off a pool boundary as the recorded one.
struct Arenas {
    inner: ArenaAllocator,
    /// By number of the arena.
    offsets: Rc<[usize]>,
    /// Where the heap's arenas are: the first byte, and from one to the next.
    base: usize,
    stride: usize,
    counts: Rc<Counts>,
}

impl Arenas {
    /// Counts an arena that was taken. Returns how far off its place it lies.
    fn count_taken(&self, size: usize) -> usize {
        let counts = &self.counts;
        let number = (counts.maps.get() as usize).min(self.offsets.len().saturating_sub(1));
        counts.maps.set(counts.maps.get() + 1);
        counts.held.set(counts.held.get() + size as u64);
        counts.peak.set(counts.peak.get().max(counts.held.get()));
        self.offsets.get(number).copied().unwrap_or(0)
    }
}

/// A heap and the address space of its arenas.
struct Side {
    // Field order is drop order: the heap gives its arenas back through the hooks.
    heap: Heap,
    _arenas: Box<Arenas>,
    region: (usize, usize),
}

/// The calls, being made under a configuration.
pub(super) struct Trial {
    sides: Vec<Side>,
    slots: Vec<*mut u8>,
    /// By slot, up to the calls that were checked last: whether its block is set apart, if it has one.
    owners: Vec<Option<bool>>,
    counts: Rc<Counts>,
    time: Duration,
}

impl Trial {
    /// Prepares a configuration for a recording of `profile`. Each arena lies as far off a pool's boundary as the one that was recorded
    /// in its turn, those that come after these as the last one: the system places them side by side.
    ///
    /// # Errors
    /// When no such heap can be made.
    pub fn new(wish: &Configuration, profile: &Profile, calls: &Calls) -> Result<Self, HeapError> {
        let named = wish.release.as_deref().and_then(Profile::named);
        // Only the arenas are looked at, and the nodes of their map are none.
        let profile = named.unwrap_or(profile).without_arena_map();
        let release = profile.geometry();
        let geometry = Geometry {
            arena_size: wish.arena.unwrap_or(release.arena_size),
            pool_size: wish.pool.unwrap_or(release.pool_size),
            small_request_threshold: wish.threshold.unwrap_or(release.small_request_threshold),
            ..release
        };
        geometry.check()?;
        let counts = Rc::<Counts>::default();
        let within_pool = |arena: &u32| *arena as usize & (geometry.pool_size - 1);
        let offsets: Rc<[usize]> = calls.arenas.iter().map(within_pool).collect();
        let sides = (0..if wish.apart { 2 } else { 1 })
            .map(|_| Side::new(&profile, geometry, &offsets, &counts))
            .collect::<Result<_, _>>()?;
        let (slots, owners) = (vec![ptr::null_mut(); calls.sizes.len()], vec![None; calls.sizes.len()]);
        Ok(Self { sides, slots, owners, counts, time: Duration::ZERO })
    }

    /// Whether the calls that come next are as they were written: no slot gets a second block, and each block is resized and freed by the heap that
    /// gave it. Others can write to their file.
    fn are_sound(&mut self, calls: &[Call]) -> bool {
        calls.iter().all(|call| {
            let Some(owner) = self.owners.get_mut(call.slot()) else { return false };
            let before = owner.replace(call.is_apart());
            match call.verb() {
                0 | 1 => return before.is_none(),
                2 => {}
                _ => *owner = None,
            }
            before.is_none_or(|is_apart| is_apart == call.is_apart())
        })
    }

    /// Makes the calls that come next.
    ///
    /// # Errors
    /// When there is no memory for a block, or the calls are not as they were written.
    pub fn make(&mut self, calls: &[Call]) -> Result<(), TrialsError> {
        if !self.are_sound(calls) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it was written to meanwhile").into());
        }
        let start = Instant::now();
        let made = match &self.sides[..] {
            [only] => make(calls, &mut self.slots, |_| &only.heap),
            sides => make(calls, &mut self.slots, |call| &sides[usize::from(call.is_apart())].heap),
        };
        self.time += start.elapsed();
        if made { Ok(()) } else { Err(HeapError::NoMemory.into()) }
    }

    /// The result of all calls.
    pub fn row(&self, calls: &Calls) -> Row {
        let held = self.counts.held.get();
        Row {
            peak_held: self.counts.peak.get(),
            held,
            lost: held.saturating_sub(self.live(calls)),
            maps: self.counts.maps.get(),
            unmaps: self.counts.unmaps.get(),
            nanoseconds: self.time.as_nanos() as f64 / calls.count.max(1) as f64,
        }
    }

    /// Bytes that were asked for in blocks that lie in arenas now.
    fn live(&self, calls: &Calls) -> u64 {
        let inside = |block: &*mut u8| self.sides.iter().any(|side| block.addr().wrapping_sub(side.region.0) < side.region.1);
        let live = self.slots.iter().zip(&calls.sizes).filter(|(block, _)| !block.is_null() && inside(block));
        live.map(|(_, &size)| u64::from(size)).sum()
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        // What lies in arenas goes with them; the rest is the C library's.
        for &block in &self.slots {
            let inside = self.sides.iter().any(|side| block.addr().wrapping_sub(side.region.0) < side.region.1);
            if !inside && let Some(side) = self.sides.first() {
                // SAFETY: a live block of the raw domain, which all heaps share: the C library's.
                unsafe { side.heap.free(Domain::Raw, NonNull::new(block)) };
            }
        }
    }
}

/// Makes the calls, each on the heap that `side` gives for it. False when there is no memory for a block.
#[inline]
fn make<'a>(calls: &[Call], slots: &mut [*mut u8], side: impl Fn(Call) -> &'a Heap) -> bool {
    for &call in calls {
        let (heap, slot, size) = (side(call), &mut slots[call.slot()], call.size());
        let block = NonNull::new(*slot);
        // SAFETY: a slot holds nothing or a live block of its heap (`are_sound`).
        let given = unsafe {
            match call.verb() {
                0 => heap.malloc(Domain::Obj, size),
                1 => heap.calloc(Domain::Obj, 1, size),
                2 => heap.realloc(Domain::Obj, block, size),
                _ => {
                    heap.free(Domain::Obj, block);
                    *slot = ptr::null_mut();
                    continue;
                }
            }
        };
        let Some(given) = given else { return false };
        *slot = given.as_ptr();
    }
    true
}

impl Side {
    fn new(profile: &Profile, geometry: Geometry, offsets: &Rc<[usize]>, counts: &Rc<Counts>) -> Result<Self, HeapError> {
        let slack = if offsets.iter().all(|&offset| offset == 0) { 0 } else { geometry.pool_size };
        let options = HeapOptions { geometry: Some(geometry), arena_slack: slack, ..HeapOptions::new(profile) };
        let heap = Heap::with_options(options)?;
        let region = heap.region();
        let mut arenas = Box::new(Arenas {
            inner: heap.arena_allocator(),
            offsets: offsets.clone(),
            base: region.0,
            stride: geometry.arena_size + slack,
            counts: counts.clone(),
        });
        let ctx = ptr::from_mut::<Arenas>(&mut arenas).cast::<c_void>();
        // SAFETY: they live as long as the heap (field order) and pass on to the functions that were in.
        unsafe { heap.set_arena_allocator(ArenaAllocator { ctx, alloc: arena_alloc, free: arena_free }) };
        Ok(Self { heap, _arenas: arenas, region })
    }
}

unsafe extern "C-unwind" fn arena_alloc(ctx: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: `ctx` is what the functions were installed with; the heap leaves room for the offset behind each arena.
    unsafe {
        let arenas = &*ctx.cast::<Arenas>();
        let address = (arenas.inner.alloc)(arenas.inner.ctx, size);
        if address.is_null() { address } else { address.byte_add(arenas.count_taken(size)) }
    }
}

unsafe extern "C-unwind" fn arena_free(ctx: *mut c_void, address: *mut c_void, size: usize) {
    // SAFETY: as in `arena_alloc`.
    unsafe {
        let arenas = &*ctx.cast::<Arenas>();
        let counts = &arenas.counts;
        counts.unmaps.set(counts.unmaps.get() + 1);
        counts.held.set(counts.held.get() - size as u64);
        let offset = (address.addr() - arenas.base) % arenas.stride;
        (arenas.inner.free)(arenas.inner.ctx, address.byte_sub(offset), size);
    }
}
