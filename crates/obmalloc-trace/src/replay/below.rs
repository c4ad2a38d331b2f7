//! The allocators below the heap of a replay. They compare the sizes of the arenas and raw blocks that the heap asks for with the recorded
//! sizes; addresses are not compared here.

use std::collections::VecDeque;
use std::ffi::c_void;
use std::ptr::{self, NonNull};

use obmalloc::profile::Geometry;
use obmalloc::{Allocator, ArenaAllocator, ArenaMapCounts, Heap};

use super::live::{Arena, Arenas};
use crate::format::{Domain, Event};
use crate::watch::request;

/// The allocators that the heap asks.
pub(super) struct Hooks {
    geometry: Geometry,
    pub base: usize,
    size: usize,
    stride: usize,
    arena: ArenaAllocator,
    raw: Allocator,
    /// A mem or obj call is being replayed.
    pub inside: bool,
    /// Arena events and nested raw calls that precede the call being replayed.
    pub expected: VecDeque<Event>,
    /// Whether nothing is expected any more, because the calls made now were not recorded.
    pub is_beyond: bool,
    /// How the heap's requests differ from the expected ones.
    pub difference: Option<String>,
    /// Arenas that are held, at their recorded addresses; by place in the region.
    pub arenas: Arenas,
    /// How many were taken.
    pub taken: usize,
    /// How far off a pool boundary the last of them was.
    last_offset: usize,
    /// The arena map of the recorded process, because the map depends on addresses.
    pub map: ArenaMapCounts,
}

impl Hooks {
    /// Puts these allocators below `heap`, whose region is not empty.
    pub fn install(heap: &Heap, geometry: Geometry, map: ArenaMapCounts) -> Box<Self> {
        let (base, size) = heap.region();
        let mut hooks = Box::new(Self {
            geometry,
            base,
            size,
            stride: geometry.arena_size + geometry.pool_size,
            arena: heap.arena_allocator(),
            raw: heap.allocator(Domain::Raw),
            inside: false,
            expected: VecDeque::new(),
            is_beyond: false,
            difference: None,
            arenas: Arenas::new(geometry.arena_size),
            taken: 0,
            last_offset: 0,
            map,
        });
        let ctx = ptr::from_mut::<Self>(&mut hooks).cast::<c_void>();
        // SAFETY: the hooks live as long as the heap (field order of `Ground`) and pass on to the functions that were in; they do not unwind.
        unsafe {
            heap.set_allocator(
                Domain::Raw,
                Allocator { ctx, malloc: hook_malloc, calloc: hook_calloc, realloc: hook_realloc, free: hook_free },
            );
            heap.set_arena_allocator(ArenaAllocator { ctx, alloc: hook_arena_alloc, free: hook_arena_free });
        }
        hooks
    }

    /// Whether a block of the heap lies in an arena.
    #[inline]
    pub fn is_inside(&self, block: NonNull<u8>) -> bool {
        block.addr().get().wrapping_sub(self.base) < self.size
    }

    /// The arena that a block of the heap lies in.
    #[cold]
    pub fn arena_here(&self, block: NonNull<u8>) -> Option<&Arena> {
        self.arenas.at(self.place(block.addr().get()))
    }

    /// Frees a raw block.
    ///
    /// # Safety
    /// It is a live one of the C library's.
    pub unsafe fn free_raw(&self, block: NonNull<u8>) {
        // SAFETY: the caller's promise.
        unsafe { (self.raw.free)(self.raw.ctx, block.as_ptr().cast()) };
    }

    /// Place in the region of the arena that an address lies in.
    pub fn place(&self, address: usize) -> u32 {
        u32::try_from(address.wrapping_sub(self.base) / self.stride).unwrap_or(u32::MAX)
    }

    /// Compares a request of the heap with the next recorded one. Returns the recorded result. Addresses are not compared: those of raw blocks
    /// differ, and those of arenas are compared where they are used.
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
        if self.is_beyond {
            return self.place_arena(size, self.last_offset).map(|(_, here)| here);
        }
        let recorded = self.expect(Event::ArenaAlloc { nested: true, size: size as u64, result: 0 });
        if recorded == 0 || self.difference.is_some() {
            return None;
        }
        let marked = {
            let mut map = std::mem::take(&mut self.map);
            let node = |size| Event::Calloc { domain: Domain::Raw, nested: true, count: 1, size: size as u64, result: 0 };
            let marked = map.mark_used(recorded, |size| self.expect(node(size)) != 0);
            self.map = map;
            marked
        };
        if !marked {
            // The recorded process had no memory for the map, and gave the arena back.
            self.expect(Event::ArenaFree { nested: true, size: size as u64, address: recorded });
            return None;
        }
        self.last_offset = recorded as usize & (self.geometry.pool_size - 1);
        let (place, here) = self.place_arena(size, self.last_offset)?;
        self.arenas.insert(place, recorded, self.taken, here.addr().get());
        self.taken += 1;
        Some(here)
    }

    /// Compares the end of the arena at `address` with the recorded one. Returns where the arena's place begins.
    fn arena_free(&mut self, address: usize, size: usize) -> usize {
        let place = self.place(address);
        let recorded = self.arenas.at(place).map_or(0, |arena| arena.recorded);
        if self.inside {
            self.expect(Event::ArenaFree { nested: true, size: size as u64, address: recorded });
        }
        // What is tried on the heap does not end an arena of the recorded process.
        if !self.is_beyond {
            self.arenas.remove(place);
        }
        self.base + place as usize * self.stride
    }

    /// Takes an arena that begins `offset` bytes behind a pool boundary: its place, and where it begins.
    fn place_arena(&self, size: usize, offset: usize) -> Option<(u32, NonNull<u8>)> {
        // SAFETY: the heap's own arena allocator, asked for an arena.
        let place = NonNull::new(unsafe { (self.arena.alloc)(self.arena.ctx, size) }.cast::<u8>())?;
        // SAFETY: the heap leaves a pool's size of slack between arenas.
        Some((self.place(place.addr().get()), unsafe { place.add(offset) }))
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
        let start = hooks.arena_free(address.expose_provenance(), size);
        (hooks.arena.free)(hooks.arena.ctx, ptr::with_exposed_provenance_mut(start), size);
    }
}
