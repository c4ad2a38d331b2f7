//! Room `pymalloc`: arenas, pools, blocks (`Objects/obmalloc.c`). Leans on `profile`.
//!
//! The same requests, given arenas at the same bases, get the same addresses as in CPython of the profile's release. A request
//! goes: size class → first used pool of the class → head of that pool's free list. What is rare is in the cold functions: carving
//! the next block, taking a pool, taking an arena, giving them back.

mod arena;
mod arena_map;
mod dead;
mod look;
mod pool;
mod region;
mod stats;
mod trim;
mod verify;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ffi::c_void;
use core::marker::PhantomData;
use core::ptr::{self, NonNull};

use crate::allocator::{Allocator, ArenaAllocator};
use crate::interrupt::Interrupt;
use crate::pinned::Pinned;
use crate::profile::{EmptyArena, Geometry, POOL_OVERHEAD, Profile};

pub use arena::ArenaInfo;
use arena::{ArenaObject, NO_ARENA};
use arena_map::ArenaMap;
pub use arena_map::{ArenaMapCounts, ArenaMapStats};
use dead::DeadWords;
pub use look::{PoolInfo, Window};
use pool::{NO_CLASS, PoolHeader};
use region::Region;
pub use stats::{ClassStats, Stats, StatsBytes};
pub use trim::Trimmed;
use trim::Trims;
pub use verify::Corruption;

/// The state of one pymalloc (`struct _obmalloc_state`).
///
/// Invariants:
/// 1. `usedpools` points to one sentinel per size class; each heads the circular list of that class's used pools.
/// 2. A pool's header is at `headers[(address - base) / pool size]` for addresses in the region, and at the pool's own first byte
///    elsewhere. Blocks begin [`POOL_OVERHEAD`] bytes into the pool in both.
/// 3. `usable_arenas` heads the list of arenas with free pools, ascending in their number; `nfp2lasta[n]` is the last of those
///    with `n` free pools.
/// 4. Every pointer handed out and not freed lies in a carved pool of an arena that is held.
#[repr(C)]
pub(crate) struct Pymalloc {
    usedpools: *mut PoolHeader,
    base: usize,
    len: usize,
    headers: *mut PoolHeader,
    /// Where the table of headers would begin if the region began at address 0.
    headers_of_zero: *mut PoolHeader,
    threshold: usize,
    alignment_shift: u32,
    pool_shift: u32,
    /// Bits in which a free block and the next one of its pool do not differ.
    link_mask: usize,
    /// A free block whose link leads to where no block of its pool is, found before it was followed.
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
    foreign_arenas: usize,
    /// Bytes of the arenas that no pool has been carved from.
    uncarved: usize,
    narenas_currently_allocated: usize,
    ntimes_arena_allocated: usize,
    narenas_highwater: usize,
    /// Arenas in the order in which they were taken, for listing.
    arena_serial: u64,
    /// An arena is being taken: a request for another from inside the arena or raw allocator gets none.
    taking_arena: bool,
    /// What stands in the raw domain for the array of arena objects.
    arena_table: *mut c_void,
    arena_allocator: ArenaAllocator,
    /// The heap's own one, whatever is in now.
    own_arena_allocator: ArenaAllocator,
    /// Empty pools with and without free lists.
    trims: Trims,
    /// What the debug hooks know of free blocks.
    dead: Option<DeadWords>,
    /// The raw domain's present allocator.
    raw: *const Allocator,
    region: Pinned<Region>,
}

/// Which pools a geometry makes. The size of its arenas does not matter: nothing that a [`Shape`] is for looks at that.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Pools {
    /// Those of [`Geometry::SMALL`].
    Small,
    /// Those of [`Geometry::LARGE`].
    Large,
    /// Others.
    Other,
}

impl Pools {
    pub fn of(geometry: &Geometry) -> Self {
        let has_pools_of = |release: Geometry| *geometry == Geometry { arena_size: geometry.arena_size, ..release };
        if has_pools_of(Geometry::SMALL) {
            Self::Small
        } else if has_pools_of(Geometry::LARGE) {
            Self::Large
        } else {
            Self::Other
        }
    }
}

/// How the sizes of pools and blocks are known: at compile time for those of the releases, so that shifts are constants, at run time otherwise.
pub(crate) trait Shape {
    const FIXED: Option<Geometry>;
    /// Whether links of free blocks are looked at before they are followed.
    const CHECKED: bool = false;
    /// Whether free blocks are looked at before they are handed out.
    const WATCHED: bool = false;
}

/// [`Pools::Small`]
pub(crate) struct SmallPools;
/// [`Pools::Large`]
pub(crate) struct LargePools;
/// Any pools.
pub(crate) struct AnyPools;

impl Shape for SmallPools {
    const FIXED: Option<Geometry> = Some(Geometry::SMALL);
}
impl Shape for LargePools {
    const FIXED: Option<Geometry> = Some(Geometry::LARGE);
}
impl Shape for AnyPools {
    const FIXED: Option<Geometry> = None;
    const CHECKED: bool = true;
}

/// Of a heap that does not trust its caller.
pub(crate) struct CheckedPools<S>(PhantomData<S>);
/// Any pools, with debug hooks around them.
pub(crate) struct WatchedPools;

impl<S: Shape> Shape for CheckedPools<S> {
    const FIXED: Option<Geometry> = S::FIXED;
    const CHECKED: bool = true;
}
impl Shape for WatchedPools {
    const FIXED: Option<Geometry> = None;
    const CHECKED: bool = true;
    const WATCHED: bool = true;
}

impl Pymalloc {
    /// An empty pymalloc whose arenas come from a region of its own, or nothing when there is no memory for its tables.
    ///
    /// `slack` bytes are left between arenas, for an arena allocator that places them off their natural boundary.
    ///
    /// # Safety
    /// `raw` is valid as long as the pymalloc is used. The geometry has been checked.
    pub unsafe fn new(geometry: Geometry, profile: &Profile, slack: usize, raw: *const Allocator) -> Option<Self> {
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
            foreign_arenas: 0,
            uncarved: 0,
            narenas_currently_allocated: 0,
            ntimes_arena_allocated: 0,
            narenas_highwater: 0,
            arena_serial: 0,
            taking_arena: false,
            arena_table: ptr::null_mut(),
            arena_allocator,
            own_arena_allocator: arena_allocator,
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

    /// As [`set_arena_allocator`](Self::set_arena_allocator), for one that passes on to the region: its arenas are the heap's own.
    pub fn set_own_arena_allocator(&mut self, allocator: ArenaAllocator) {
        self.arena_allocator = allocator;
        self.own_arena_allocator = allocator;
    }

    /// First byte and bytes of the reservation in which own arenas lie; two zeroes where none could be had.
    pub fn region(&self) -> (usize, usize) {
        (self.base, self.len)
    }

    #[inline(always)]
    fn shape<S: Shape>(&self) -> (usize, u32, u32) {
        match S::FIXED {
            Some(geometry) => {
                (geometry.small_request_threshold, geometry.alignment.trailing_zeros(), geometry.pool_size.trailing_zeros())
            }
            None => (self.threshold, self.alignment_shift, self.pool_shift),
        }
    }

    /// Whether a free block may link to another one: both lie in one pool, aligned.
    #[inline(always)]
    fn is_link<S: Shape>(&self, from: *mut u8, to: *mut u8) -> bool {
        let mask = match &S::FIXED {
            Some(geometry) => link_mask(geometry),
            None => self.link_mask,
        };
        (from.addr() ^ to.addr()) & mask == 0
    }

    /// A block for a small request from a pool in use (`pymalloc_alloc`); nothing when the request is not small, its class has no such
    /// pool, or the pool's free list has a broken link.
    ///
    /// # Safety
    /// `this` is valid, and nothing else refers to its fields during the call, except from inside the arena and raw allocators.
    #[inline(always)]
    pub unsafe fn alloc_from_used_pool<S: Shape>(this: *mut Self, size: usize) -> Option<NonNull<u8>> {
        // SAFETY: the caller's promise.
        let (threshold, alignment_shift, _) = unsafe { (*this).shape::<S>() };
        let class = size.wrapping_sub(1);
        if class >= threshold {
            return None;
        }
        let class = class >> alignment_shift;
        // SAFETY: the caller's promise. Invariant 1: the class has a sentinel, which leads to a header. Invariants 1 and 2 of pools: a free
        // block holds a link.
        unsafe {
            let pool = (*(*this).usedpools.add(class)).nextpool;
            // In an empty list what was found is its own head, which has no free block.
            let block = NonNull::new((*pool).freeblock)?;
            let next = block.cast::<*mut u8>().read();
            (*pool).freeblock = next;
            (*pool).count += 1;
            // NULL leads out of the pool too, so that looking at the link costs no second branch.
            let leads_on = if S::CHECKED { (*this).is_link::<S>(block.as_ptr(), next) } else { !next.is_null() };
            if leads_on {
                prefetch(next);
            } else if !S::CHECKED || next.is_null() {
                Self::pymalloc_pool_extend::<S>(this, pool, block.as_ptr(), class);
            } else {
                // `alloc_from_new_pool` does the rest, so that this needs no register more.
                (*pool).freeblock = block.as_ptr();
                return None;
            }
            Some(block)
        }
    }

    /// Carves the pool's next untouched block into its free list, or, when there is none, takes the full pool out of its list.
    #[inline]
    unsafe fn pymalloc_pool_extend<S: Shape>(this: *mut Self, pool: *mut PoolHeader, block: *mut u8, class: usize) {
        // SAFETY: called by `alloc_from_used_pool` with the pool that it took `block` from.
        let ((_, alignment_shift, pool_shift), nextoffset) = unsafe { ((*this).shape::<S>(), (*pool).nextoffset) };
        let size = (class + 1) << alignment_shift;
        let offset = usize::from(nextoffset) << alignment_shift;
        let in_pool = block.addr() & ((1 << pool_shift) - 1);
        // SAFETY: as above; the block carved lies in the same pool, behind those that were carved before (invariant 1 of pools).
        unsafe {
            if offset + size <= 1 << pool_shift {
                let carved = block.sub(in_pool).add(offset);
                carved.cast::<*mut u8>().write(ptr::null_mut());
                (*pool).freeblock = carved;
                (*pool).nextoffset += (class + 1) as u16;
            } else {
                pool::unlink(pool);
            }
        }
    }

    /// The first block of a pool that becomes its class's only used one (`allocate_from_new_pool`); NULL when the request is not small,
    /// no arena can be had, or a link is broken.
    ///
    /// # Safety
    /// As for [`alloc_from_used_pool`](Self::alloc_from_used_pool), which has found nothing.
    #[inline]
    pub unsafe fn alloc_from_new_pool<S: Shape>(this: *mut Self, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        let (threshold, alignment_shift, _) = unsafe { (*this).shape::<S>() };
        let class = size.wrapping_sub(1);
        if class >= threshold {
            return ptr::null_mut();
        }
        let class = class >> alignment_shift;
        // SAFETY: invariant 1.
        if S::CHECKED && unsafe { Self::has_broken_link(this, class) } {
            return ptr::null_mut();
        }
        // SAFETY: the caller's promise.
        let Some((pool, address)) = (unsafe { Self::take_pool(this) }) else { return ptr::null_mut() };
        // SAFETY: invariants 1 and 2; what `take_pool` gives is the header of a pool that is in no list.
        unsafe {
            pool::link_front(pool, (*this).usedpools.add(class));
            (*pool).count = 1;
            if usize::from((*pool).szidx) == class {
                Self::reuse_pool::<S>(this, pool)
            } else {
                Self::init_pool::<S>(this, pool, address, class)
            }
        }
    }

    /// Whether [`alloc_from_used_pool`](Self::alloc_from_used_pool) has found a link in the first pool of a class that it did not follow.
    /// Takes back that it counted a block.
    #[inline(always)]
    unsafe fn has_broken_link(this: *mut Self, class: usize) -> bool {
        // SAFETY: called with a class that there is; invariant 1.
        unsafe {
            let used = (*(*this).usedpools.add(class)).nextpool;
            if (*used).freeblock.is_null() {
                return false;
            }
            (*used).count -= 1;
            (*this).broken_link = Some((*used).freeblock.addr());
            true
        }
    }

    /// The first block of a pool that held blocks of the same class before: its free list is still good.
    #[inline(always)]
    unsafe fn reuse_pool<S: Shape>(this: *mut Self, pool: *mut PoolHeader) -> *mut u8 {
        // SAFETY: called with an empty pool, whose free list leads through its blocks (invariant 1 of pools).
        unsafe {
            let block = (*pool).freeblock;
            let next = block.cast::<*mut u8>().read();
            if S::CHECKED && !next.is_null() && !(*this).is_link::<S>(block, next) {
                (*this).broken_link = Some(block.addr());
                return ptr::null_mut();
            }
            (*pool).freeblock = next;
            block
        }
    }

    /// The first block of a pool that gets a free list for blocks of a class (`init_pool` is a label in CPython).
    #[inline(always)]
    unsafe fn init_pool<S: Shape>(this: *mut Self, pool: *mut PoolHeader, address: *mut u8, class: usize) -> *mut u8 {
        // SAFETY: called with the header and the first byte of a pool, which has room for two blocks of each class.
        unsafe {
            let (_, alignment_shift, _) = (*this).shape::<S>();
            let size = (class + 1) << alignment_shift;
            let first = address.add(POOL_OVERHEAD);
            let second = first.add(size);
            second.cast::<*mut u8>().write(ptr::null_mut());
            if (*this).dead.is_some() {
                (*this).forget_dead(address.addr(), (*this).geometry.pool_size);
            }
            (*pool).szidx = class as u16;
            (*pool).freeblock = second;
            (*pool).nextoffset = ((POOL_OVERHEAD + 2 * size) >> alignment_shift) as u16;
            first
        }
    }

    /// Header of the pool that `address` lies in, if that pool is ours (`address_in_range`).
    #[inline(always)]
    unsafe fn pool_of<S: Shape>(this: *mut Self, address: *mut u8) -> *mut PoolHeader {
        // SAFETY: the caller's promise; an offset below `len` has a header.
        unsafe {
            let (_, _, pool_shift) = (*this).shape::<S>();
            if address.addr().wrapping_sub((*this).base) < (*this).len {
                (*this).header_in_region(address.addr(), pool_shift)
            } else if (*this).foreign_arenas == 0 {
                ptr::null_mut()
            } else {
                Self::foreign_pool_of(this, address)
            }
        }
    }

    /// Header of the pool that an address in the region lies in. A division by the pool size and a multiplication by the header's size,
    /// as one shift and one mask: every free waits for this.
    #[inline(always)]
    fn header_in_region(&self, address: usize, pool_shift: u32) -> *mut PoolHeader {
        const SIZE: usize = size_of::<PoolHeader>();
        self.headers_of_zero.wrapping_byte_add((address >> (pool_shift - SIZE.trailing_zeros())) & !(SIZE - 1))
    }

    #[cold]
    #[inline(never)]
    unsafe extern "C-unwind" fn foreign_pool_of(this: *mut Self, address: *mut u8) -> *mut PoolHeader {
        // SAFETY: the caller's promise. An address inside a foreign arena has its pool's first byte in that arena too, unless it lies
        // before the first whole pool, where no block is.
        unsafe {
            match (*this).arena_map.find(address.addr()) {
                Some(_) => ptr::with_exposed_provenance_mut(address.addr() & !((*this).geometry.pool_size - 1)),
                None => ptr::null_mut(),
            }
        }
    }

    /// Takes a block back (`pymalloc_free`). After [`Freed::LastOfPool`] the caller has to call
    /// [`insert_to_freepool`](Self::insert_to_freepool), after [`Freed::OutsideRegion`] to look [elsewhere](Self::free_elsewhere).
    ///
    /// # Safety
    /// As for [`alloc_from_used_pool`](Self::alloc_from_used_pool); `address` is a block of this pymalloc that is handed out, or lies
    /// outside all its arenas.
    #[inline(always)]
    pub unsafe fn free<S: Shape>(this: *mut Self, address: *mut u8) -> Freed {
        // SAFETY: the caller's promise; invariant 2.
        unsafe {
            if address.addr().wrapping_sub((*this).base) >= (*this).len {
                return Freed::OutsideRegion;
            }
            let (_, _, pool_shift) = (*this).shape::<S>();
            let pool = (*this).header_in_region(address.addr(), pool_shift);
            Self::free_in_pool(this, pool, address)
        }
    }

    /// As [`free`](Self::free), for an address outside the region.
    ///
    /// # Safety
    /// As for `free`.
    pub unsafe fn free_elsewhere(this: *mut Self, address: *mut u8) -> Freed {
        // SAFETY: the caller's promise.
        unsafe {
            let pool = Self::pool_of::<AnyPools>(this, address);
            if pool.is_null() { Freed::NotOurs } else { Self::free_in_pool(this, pool, address) }
        }
    }

    /// A pointer that is good for the whole block. The caller's may be good for a part of it, as a `Box`'s is, and the block is going to
    /// have another owner. It is exposed as well, because a `Box` that is a function's argument is to be written through alone until
    /// that function returns, and is freed before.
    #[inline(always)]
    pub fn whole_block(address: *mut u8) -> *mut u8 {
        ptr::with_exposed_provenance_mut(address.expose_provenance())
    }

    #[inline(always)]
    unsafe fn free_in_pool(this: *mut Self, pool: *mut PoolHeader, address: *mut u8) -> Freed {
        let address = Self::whole_block(address);
        // SAFETY: the caller's promise; invariants 2 and 4: the block lies in the pool, and is as large as a pointer.
        let lastfree = unsafe {
            let lastfree = (*pool).freeblock;
            address.cast::<*mut u8>().write(lastfree);
            (*pool).freeblock = address;
            (*pool).count -= 1;
            lastfree
        };
        if lastfree.is_null() {
            // It was full, so it was in no list.
            // SAFETY: invariant 1; the pool is in no list (invariant 3 of pools).
            unsafe { pool::link_front(pool, (*this).usedpools.add(usize::from((*pool).szidx))) };
            return Freed::Here;
        }
        // SAFETY: invariant 2.
        if unsafe { (*pool).count } == 0 { Freed::LastOfPool } else { Freed::Here }
    }

    /// Bytes in the block at `address`, or nothing when it is not one of ours.
    ///
    /// # Safety
    /// As for [`free`](Self::free).
    #[inline(always)]
    pub unsafe fn block_size<S: Shape>(this: *mut Self, address: *mut u8) -> Option<usize> {
        // SAFETY: the caller's promise.
        unsafe {
            let pool = Self::pool_of::<S>(this, address);
            if pool.is_null() {
                return None;
            }
            let (_, alignment_shift, _) = (*this).shape::<S>();
            Some((usize::from((*pool).szidx) + 1) << alignment_shift)
        }
    }

    /// From now on free blocks can be [noted](Self::note_dead), those of arenas of a caller's arena allocator excepted. False when there is
    /// no address space for what is noted.
    pub fn watch(&mut self) -> bool {
        if self.dead.is_none() && self.len != 0 {
            self.dead = DeadWords::new(self.base, self.len);
        }
        self.dead.is_some() || self.len == 0
    }

    /// The debug hooks have filled the `size` bytes of a block and freed it.
    pub fn note_dead(&mut self, block: usize, size: usize) {
        if block.wrapping_sub(self.base) < self.len
            && let Some(dead) = &mut self.dead
        {
            dead.note(block, block + size);
        }
    }

    /// Memory is used for something else.
    #[cold]
    pub fn forget_dead(&mut self, address: usize, size: usize) {
        if address.wrapping_sub(self.base) < self.len
            && let Some(dead) = &mut self.dead
        {
            dead.forget(address, address + size);
        }
    }

    /// A block that is not handed out to anybody but those who ask next.
    pub fn state_of_dead(&mut self, block: usize, size: usize) -> Dead {
        if block.wrapping_sub(self.base) >= self.len {
            return Dead::Sound;
        }
        let Some(dead) = &mut self.dead else { return Dead::Sound };
        if dead.was_told(block) {
            return Dead::Told;
        }
        dead.damaged(block, block + size).map_or(Dead::Sound, Dead::Damaged)
    }

    /// Whether something wrote to free memory in a range that the debug hooks have filled, and that has not been said.
    fn is_watched_and_damaged(&self, begin: usize, end: usize) -> bool {
        let dead = self.dead.as_ref().filter(|_| begin.wrapping_sub(self.base) < self.len);
        dead.is_some_and(|dead| dead.damaged(begin, end).is_some())
    }

    /// Of a free block it is being said that it is damaged; false when there is no memory to remember that.
    pub fn tell_dead(&mut self, block: usize, size: usize) -> bool {
        self.dead.as_mut().is_some_and(|dead| dead.tell(block, block + size))
    }

    /// The first damaged free block that has not been reported: its address and size, and the address of the byte.
    /// Not looked for to the end when that is interrupted.
    pub fn damaged_block(&self, interrupt: Interrupt) -> Option<(usize, usize, usize)> {
        let dead = self.dead.as_ref()?;
        let patience = interrupt.patience();
        let mut found = None;
        self.each_live_pool(|first, end, size, _| {
            if found.is_none() && !patience.is_over_after((end - first) / 8) && first.wrapping_sub(self.base) < self.len {
                found = dead.damaged(first, end).map(|byte| (first + (byte - first) / size * size, size, byte));
            }
        });
        found
    }

    /// The block that is handed out next for a request, if it or the one that it leads to is none.
    pub fn damaged_link(&self, size: usize, is_live: impl Fn(usize) -> bool) -> Option<usize> {
        let class = size.wrapping_sub(1);
        if class >= self.threshold {
            return None;
        }
        // SAFETY: invariant 1.
        let block = unsafe { (*(*self.usedpools.add(class >> self.alignment_shift)).nextpool).freeblock };
        let pool_mask = !(self.geometry.pool_size - 1);
        let is_free = |address: usize| {
            matches!(self.locate(address), Location::Block { begin, .. } if begin == address) && !is_live(address)
        };
        if block.is_null() {
            return None;
        }
        if !is_free(block.addr()) {
            return Some(block.addr());
        }
        // SAFETY: a block of a pool.
        let next = unsafe { block.cast::<usize>().read() };
        let sound = next == 0 || (next & pool_mask == block.addr() & pool_mask && is_free(next));
        (!sound).then_some(block.addr())
    }

    /// Whether an address lies in memory of the heap's own arenas, not in a caller's.
    pub fn is_in_own_arena(&self, address: usize) -> bool {
        if self.len != 0 {
            return address.wrapping_sub(self.base) < self.len;
        }
        self.arena_map.find(address).is_some_and(|index| self.arenas[index as usize].is_own)
    }

    /// What is known of an address that may be anything; reads nothing through it.
    pub fn locate(&self, address: usize) -> Location {
        let mask = self.geometry.pool_size - 1;
        let offset = address.wrapping_sub(self.base);
        let (index, pool) = if offset < self.len {
            let slot = offset / self.region.stride;
            let Some(&index) = self.region.arena_of_slot.get(slot) else { return Location::Outside };
            if index == NO_ARENA {
                return Location::Outside;
            }
            // SAFETY: an offset below `len` has a header.
            (index, unsafe { self.headers.add(offset >> self.pool_shift) })
        } else if self.foreign_arenas != 0 {
            match self.arena_map.find(address) {
                Some(index) => (index, ptr::with_exposed_provenance_mut::<PoolHeader>(address & !mask)),
                None => return Location::Outside,
            }
        } else {
            return Location::Outside;
        };
        let arena = &self.arenas[index as usize];
        if (address & !mask) < arena.first_pool(&self.geometry) || address >= arena.pool_address {
            return Location::NoBlock;
        }
        // SAFETY: the pool has been carved, so its header is initialised and readable.
        let header = unsafe { &*pool };
        let offset = address & mask;
        if header.szidx == NO_CLASS || offset < POOL_OVERHEAD {
            return Location::NoBlock;
        }
        let size = self.geometry.block_size(usize::from(header.szidx));
        let in_block = (offset - POOL_OVERHEAD) % size;
        let begin = offset - in_block;
        if begin + size > self.geometry.pool_size || begin >= usize::from(header.nextoffset) << self.alignment_shift {
            return Location::NoBlock;
        }
        Location::Block { begin: (address & !mask) + begin, size }
    }

    /// Number of blocks handed out, raw ones for mem and obj included (`_Py_GetAllocatedBlocks`).
    pub fn allocated_blocks(&self) -> usize {
        let mut count = 0;
        self.each_pool(|_, header| count += header.count as isize);
        (count + self.raw_allocated_blocks).max(0) as usize
    }

    /// Calls `visit` with the address and header of every carved pool, arena by arena.
    fn each_pool(&self, mut visit: impl FnMut(usize, &PoolHeader)) {
        for arena in self.arenas.iter().filter(|arena| arena.address != 0) {
            for pool in (arena.first_pool(&self.geometry)..arena.pool_address).step_by(self.geometry.pool_size) {
                // SAFETY: pools below `pool_address` have been carved, so their headers are initialised.
                visit(pool, unsafe { &*self.header_at(pool) });
            }
        }
    }

    /// Calls `visit` for every pool that has ever held blocks: its first block, the end of its blocks, their size, and how many are
    /// in use.
    pub fn each_live_pool(&self, mut visit: impl FnMut(usize, usize, usize, usize)) {
        self.each_pool(|pool, header| {
            if header.szidx != NO_CLASS {
                let (first, class) = (pool + POOL_OVERHEAD, usize::from(header.szidx));
                let size = self.geometry.block_size(class);
                visit(first, first + self.geometry.blocks_per_pool(class) * size, size, header.count as usize);
            }
        });
    }

    /// Header of the pool that begins at `pool`.
    fn header_at(&self, pool: usize) -> *mut PoolHeader {
        let offset = pool.wrapping_sub(self.base);
        if offset < self.len {
            // SAFETY: an offset below `len` has a header.
            unsafe { self.headers.add(offset >> self.pool_shift) }
        } else {
            ptr::with_exposed_provenance_mut(pool)
        }
    }

    /// Address of the pool whose header is `header`.
    fn address_of(&self, header: *mut PoolHeader) -> usize {
        let offset = header.addr().wrapping_sub(self.headers.addr());
        if self.len != 0 && offset < (self.len >> self.pool_shift) * size_of::<PoolHeader>() {
            self.base + ((offset / size_of::<PoolHeader>()) << self.pool_shift)
        } else {
            header.addr()
        }
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

    /// Gives every arena back to the arena allocator, and what stands for the tables to the raw domain.
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

    /// The arenas have been given back, and no block of them is used any more.
    pub fn forget_arenas(&mut self) {
        (self.arenas, self.uncarved) = (Vec::new(), 0);
        (self.trims.kept, self.trims.forgotten) = (0, 0);
    }

    /// What the raw domain gave for tables, which is only there to be seen.
    pub fn tables(&self) -> impl Iterator<Item = usize> {
        let table = Some(self.arena_table.expose_provenance()).filter(|&table| table != 0);
        self.arena_map.nodes().iter().map(|node| node.expose_provenance()).chain(table)
    }

    /// How many of these there are at most.
    pub fn count_tables(&self) -> usize {
        self.arena_map.nodes().len() + 1
    }

    /// They have been given back. No arena is taken or given back any more.
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

/// The bits that the addresses of all blocks of a pool have in common.
const fn link_mask(geometry: &Geometry) -> usize {
    !(geometry.pool_size - 1) | (geometry.alignment - 1)
}

/// What became of a block that was to be freed.
pub(crate) enum Freed {
    /// It is free.
    Here,
    /// It is free, and its pool holds no other block in use.
    LastOfPool,
    /// It is not: it lies outside the region.
    OutsideRegion,
    /// It is not: it is none of pymalloc's.
    NotOurs,
}

/// What the debug hooks know of a free block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Dead {
    /// Nothing against it.
    Sound,
    /// It is damaged; the first overwritten byte is at this address.
    Damaged(usize),
    /// It is damaged, and that has been reported.
    Told,
}

/// Where an address lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Location {
    /// In no arena.
    Outside,
    /// In an arena, but where no block has ever been.
    NoBlock,
    /// In a block (handed out or not) of `size` bytes that begins at `begin`.
    Block {
        /// The block's address.
        begin: usize,
        /// The block's size in bytes.
        size: usize,
    },
}

/// Begins to fetch the cache line at `address`, where there is an instruction for it: the next request of a class reads its block.
#[inline(always)]
fn prefetch(address: *mut u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which reads nothing that could be seen.
    unsafe {
        core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Turns a C result into an option.
pub(crate) fn non_null(address: *mut u8) -> Option<NonNull<u8>> {
    NonNull::new(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::ALL;

    #[test]
    fn every_release_has_pools_of_a_known_shape_whatever_its_arenas() {
        for profile in ALL {
            let own = Pools::of(&profile.geometry);
            assert_ne!(own, Pools::Other, "{}", profile.release);
            for arena_size in (16..=26).map(|shift| 1 << shift) {
                let geometry = Geometry { arena_size, ..profile.geometry };
                assert_eq!(Pools::of(&geometry), own, "{} with arenas of {arena_size}", profile.release);
            }
        }
    }

    #[test]
    fn pools_of_other_sizes_have_no_known_shape() {
        for release in [Geometry::SMALL, Geometry::LARGE] {
            for other in [
                Geometry { pool_size: 8 << 10, ..release },
                Geometry { alignment: 8, ..release },
                Geometry { small_request_threshold: 256, ..release },
            ] {
                assert_eq!(Pools::of(&other), Pools::Other, "{other:?}");
            }
        }
    }
}
