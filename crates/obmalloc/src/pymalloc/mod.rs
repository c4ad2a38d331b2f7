//! Room `pymalloc`: arenas, pools, blocks (`Objects/obmalloc.c`). Leans on `profile`.
//!
//! With arenas at the same bases, the same requests get the same addresses as in CPython of the profile's release. A request goes: size
//! class → first used pool of the class → head of that pool's free list (`alloc.rs`). Rare work is in functions of its own: carving the next
//! block, taking a pool (`take_pool` in `arena.rs`), taking an arena, giving them back.

mod alloc;
mod arena;
mod arena_map;
mod dead;
mod free;
mod locate;
mod look;
mod pool;
mod region;
mod shape;
mod stats;
mod trim;
mod verify;

use ::alloc::boxed::Box;
use ::alloc::vec::Vec;
use core::ffi::c_void;
use core::ptr::{self, NonNull};

use crate::allocator::{Allocator, ArenaAllocator};
use crate::pinned::Pinned;
use crate::profile::{EmptyArena, Geometry, Profile};

pub use arena::ArenaInfo;
use arena::{ArenaObject, NO_ARENA};
use arena_map::ArenaMap;
pub use arena_map::{ArenaMapCounts, ArenaMapStats};
pub(crate) use dead::Dead;
use dead::DeadWords;
pub(crate) use free::Freed;
pub(crate) use locate::Location;
pub use look::{PoolInfo, Window};
use pool::PoolHeader;
use region::Region;
use shape::link_mask;
pub(crate) use shape::{AnyPools, CheckedPools, LargePools, Pools, Shape, SmallPools, WatchedPools};
pub use stats::{ClassStats, Stats, StatsBytes};
pub use trim::Trimmed;
use trim::Trims;
pub use verify::Corruption;

/// The state of one pymalloc (`struct _obmalloc_state`).
///
/// Invariants:
/// 1. `usedpools` points to one sentinel per size class; each heads the circular list of that class's used pools.
/// 2. A pool's header is at `headers[(address - base) / pool size]` for addresses in the region, and at the pool's own first byte
///    outside it. In both cases blocks begin [`POOL_OVERHEAD`] bytes into the pool.
/// 3. `usable_arenas` heads the list of arenas with free pools, ascending in their number; `nfp2lasta[n]` is the last of those
///    with `n` free pools.
/// 4. Every pointer handed out and not freed lies in a carved pool of an arena that is held.
#[repr(C)]
pub(crate) struct Pymalloc {
    usedpools: *mut PoolHeader,
    base: usize,
    len: usize,
    headers: *mut PoolHeader,
    /// Where the table of headers would begin if the region began at address 0: the header of an address is then one shift away.
    headers_of_zero: *mut PoolHeader,
    threshold: usize,
    alignment_shift: u32,
    pool_shift: u32,
    /// The address bits that all blocks of a pool have in common.
    link_mask: usize,
    /// A free block whose link leads to no block of its pool. The link was not followed.
    pub broken_link: Option<usize>,
    /// Blocks that the raw domain gave for mem and obj requests (`raw_allocated_blocks`).
    pub raw_allocated_blocks: isize,

    geometry: Geometry,
    empty_arena: EmptyArena,
    arenas: Vec<ArenaObject>,
    unused_arena_objects: u32,
    usable_arenas: u32,
    nfp2lasta: Vec<u32>,
    arena_map: ArenaMap,
    /// Arenas outside the region: only then is an address outside the region looked up.
    arenas_outside: usize,
    /// Bytes of the arenas that no pool has been carved from.
    uncarved: usize,
    narenas_currently_allocated: usize,
    ntimes_arena_allocated: usize,
    narenas_highwater: usize,
    /// Arenas in the order in which they were taken, for listing.
    arena_serial: u64,
    /// Whether an arena is being taken. The arena and raw allocators, which run meanwhile, get no second one.
    taking_arena: bool,
    /// The raw domain's block that was requested for the array of arena objects.
    arena_table: *mut c_void,
    arena_allocator: ArenaAllocator,
    /// The heap's own arena allocator, also while another one is in.
    own_arena_allocator: ArenaAllocator,
    /// The heap's own raw allocator, also while another one is in.
    own_raw: Allocator,
    /// Empty pools with and without free lists.
    trims: Trims,
    /// What the debug hooks know of free blocks.
    dead: Option<DeadWords>,
    /// The raw domain's present allocator.
    raw: *const Allocator,
    region: Pinned<Region>,
}

impl Pymalloc {
    /// An empty pymalloc whose arenas come from a region of its own; `None` when there is no memory for its tables.
    ///
    /// `slack` bytes are left between arenas, for an arena allocator that places them off their natural boundary. `raw` is where the raw
    /// domain's present allocator stands, `own_raw` the heap's own.
    ///
    /// # Safety
    /// `raw` is valid as long as the pymalloc is used. The geometry has been checked.
    pub unsafe fn new(
        geometry: Geometry,
        profile: &Profile,
        slack: usize,
        raw: *const Allocator,
        own_raw: Allocator,
    ) -> Option<Self> {
        let mut nfp2lasta = Vec::new();
        nfp2lasta.try_reserve_exact(geometry.pools_per_arena() + 1).ok()?;
        let mut sentinels = Vec::new();
        sentinels.try_reserve_exact(geometry.size_classes()).ok()?;
        sentinels.resize(geometry.size_classes(), PoolHeader::sentinel(ptr::null_mut()));
        let usedpools = Box::into_raw(sentinels.into_boxed_slice()).cast::<PoolHeader>();
        for class in 0..geometry.size_classes() {
            // SAFETY: there is one sentinel per class.
            unsafe {
                let at = usedpools.add(class);
                at.write(PoolHeader::sentinel(at));
            }
        }
        nfp2lasta.resize(geometry.pools_per_arena() + 1, NO_ARENA);
        let region = Pinned::new(Region::new(geometry.arena_size, geometry.pool_size, slack));
        let arena_allocator = Region::as_allocator(region.as_ptr());
        Some(Self {
            usedpools,
            base: region.base,
            len: region.len,
            headers: region.headers,
            headers_of_zero: region.headers.wrapping_sub(region.base / geometry.pool_size),
            threshold: geometry.small_request_threshold,
            alignment_shift: geometry.alignment.trailing_zeros(),
            pool_shift: geometry.pool_size.trailing_zeros(),
            link_mask: link_mask(&geometry),
            broken_link: None,
            raw_allocated_blocks: 0,
            geometry,
            empty_arena: profile.empty_arena,
            arenas: Vec::new(),
            unused_arena_objects: NO_ARENA,
            usable_arenas: NO_ARENA,
            nfp2lasta,
            arena_map: ArenaMap::new(profile.range_check, &geometry),
            arenas_outside: 0,
            uncarved: 0,
            narenas_currently_allocated: 0,
            ntimes_arena_allocated: 0,
            narenas_highwater: 0,
            arena_serial: 0,
            taking_arena: false,
            arena_table: ptr::null_mut(),
            arena_allocator,
            own_arena_allocator: arena_allocator,
            own_raw,
            trims: Trims::NONE,
            dead: None,
            raw,
            region,
        })
    }

    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    pub fn arena_allocator(&self) -> ArenaAllocator {
        self.arena_allocator
    }

    pub fn set_arena_allocator(&mut self, allocator: ArenaAllocator) {
        self.arena_allocator = allocator;
    }

    /// Sets the heap's own allocators, for ones that pass requests on to the C library and to the region.
    pub fn set_own_allocators(&mut self, raw: Allocator, arena: ArenaAllocator) {
        self.own_raw = raw;
        self.arena_allocator = arena;
        self.own_arena_allocator = arena;
    }

    /// As [`Heap::region`](crate::Heap::region).
    pub fn region(&self) -> (usize, usize) {
        (self.base, self.len)
    }

    /// Number of blocks handed out, including those that came from raw for mem and obj (`_Py_GetAllocatedBlocks`).
    pub fn allocated_blocks(&self) -> usize {
        let mut count = 0;
        self.each_pool(|_, header| count += header.count as isize);
        (count + self.raw_allocated_blocks).max(0) as usize
    }

    /// Gives every arena back to the arena allocator.
    ///
    /// # Safety
    /// As for [`alloc_from_used_pool`](Self::alloc_from_used_pool); no block is used any more.
    pub unsafe fn release_arenas(this: *mut Self) {
        // SAFETY: the caller's promise; no reference to a field is held while the allocator runs.
        unsafe {
            let (geometry, allocator) = ((*this).geometry, (*this).arena_allocator);
            let arenas = core::mem::take(&mut (*this).arenas);
            (*this).uncarved = 0;
            ((*this).trims.kept, (*this).trims.forgotten) = (0, 0);
            for base in arenas.iter().map(|arena| arena.address) {
                if base != 0 {
                    (allocator.free)(allocator.ctx, ptr::with_exposed_provenance_mut(base), geometry.arena_size);
                }
            }
        }
    }

    /// Gives every arena back to the arena allocator, and the blocks requested for tables to the raw domain.
    ///
    /// # Safety
    /// As for [`release_arenas`](Self::release_arenas).
    pub unsafe fn release(this: *mut Self) {
        // SAFETY: the caller's promise; as above.
        unsafe {
            Self::release_arenas(this);
            let raw = *(*this).raw;
            for table in (*this).tables().collect::<Vec<_>>() {
                (raw.free)(raw.ctx, ptr::with_exposed_provenance_mut(table));
            }
            (*this).forget_tables();
        }
    }

    /// Forgets the arenas: they have been given back, and no block of them is used any more.
    pub fn forget_arenas(&mut self) {
        (self.arenas, self.uncarved) = (Vec::new(), 0);
        (self.trims.kept, self.trims.forgotten) = (0, 0);
    }

    /// The raw domain's blocks that were requested for tables. They hold nothing.
    pub fn tables(&self) -> impl Iterator<Item = usize> {
        let table = Some(self.arena_table.expose_provenance()).filter(|&table| table != 0);
        self.arena_map.nodes().iter().map(|node| node.expose_provenance()).chain(table)
    }

    /// The most blocks that `tables` can give.
    pub fn count_tables(&self) -> usize {
        self.arena_map.nodes().len() + 1
    }

    /// Forgets these blocks: they have been given back. No arena may be taken or given back after this.
    pub fn forget_tables(&mut self) {
        self.arena_map.forget_nodes();
        self.arena_table = ptr::null_mut();
    }

    /// Bytes of the arenas that no pool has been carved from.
    pub fn uncarved(&self) -> usize {
        self.uncarved
    }

    /// As [`Region::used`].
    pub fn used(&self) -> usize {
        self.region.used()
    }

    /// As [`Region::decommit`].
    ///
    /// # Safety
    /// As for [`alloc_from_used_pool`](Self::alloc_from_used_pool); no block is used any more.
    pub unsafe fn decommit_arenas(this: *mut Self, is_over: impl FnMut() -> bool) -> bool {
        // SAFETY: the caller's promise.
        unsafe { (*this).region.decommit(is_over) }
    }
}

impl Drop for Pymalloc {
    fn drop(&mut self) {
        let sentinels = ptr::slice_from_raw_parts_mut(self.usedpools, self.geometry.size_classes());
        // SAFETY: `new` took them out of a box of this length.
        drop(unsafe { Box::from_raw(sentinels) });
    }
}

/// Turns a C result into an option.
pub(crate) fn non_null(address: *mut u8) -> Option<NonNull<u8>> {
    NonNull::new(address)
}
