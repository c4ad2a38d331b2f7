//! Arenas: taking them, giving them back, and the order in which they are used up.

use core::ptr;

use super::arena_map::MissingNode;
use super::pool::{self, NO_CLASS, PoolHeader};
use super::{EmptyArena, Pymalloc};
use crate::allocator::Allocator;
use crate::profile::Geometry;

/// An index that stands for no arena.
pub(super) const NO_ARENA: u32 = u32::MAX;
/// `INITIAL_ARENA_OBJECTS`
const INITIAL_ARENA_OBJECTS: usize = 16;
/// Bytes of a `struct arena_object` in CPython, which is what the raw domain is asked for.
const ARENA_OBJECT_SIZE: usize = 48;

/// One arena, or an unused entry for one (`struct arena_object`).
#[derive(Clone, Copy)]
pub(super) struct ArenaObject {
    /// First byte; 0 if the entry is unused.
    pub address: usize,
    /// The next pool to carve.
    pub pool_address: usize,
    /// Pools available: never carved, or empty.
    pub nfreepools: u32,
    /// Pools in all.
    pub ntotalpools: u32,
    /// Empty pools, singly linked.
    pub freepools: *mut PoolHeader,
    /// Next usable arena, or next unused object.
    pub nextarena: u32,
    /// Previous usable arena.
    pub prevarena: u32,
    /// Empty pools that have a free list.
    pub kept: u32,
    /// Whether the heap's own arena allocator gave it.
    pub is_own: bool,
    /// Numbers the arenas in the order in which they were taken.
    pub serial: u64,
}

impl ArenaObject {
    /// Address of the first whole pool.
    pub fn first_pool(&self, geometry: &Geometry) -> usize {
        self.address.next_multiple_of(geometry.pool_size)
    }

    /// Bytes behind the pools that have been carved.
    pub fn uncarved(&self, geometry: &Geometry) -> usize {
        self.first_pool(geometry) + self.ntotalpools as usize * geometry.pool_size - self.pool_address
    }

    /// Pools that were never in use.
    pub fn uncarved_pools(&self, geometry: &Geometry) -> usize {
        self.uncarved(geometry) / geometry.pool_size
    }
}

/// An arena that is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ArenaInfo {
    /// First byte.
    pub address: usize,
    /// Bytes.
    pub size: usize,
    /// Pools that hold no block.
    pub free_pools: usize,
    /// The free pools that were never in use.
    pub uncarved_pools: usize,
    /// The free pools whose free lists a trim has forgotten.
    pub trimmed_pools: usize,
    /// Pools in all: one less than would fit when the arena's base is not a multiple of the pool size.
    pub total_pools: usize,
}

impl Pymalloc {
    /// The arenas now held, in the order in which they were taken, through `visit`.
    pub fn arenas(&self) -> alloc::vec::Vec<ArenaInfo> {
        let mut held: alloc::vec::Vec<_> = self.arenas.iter().filter(|arena| arena.address != 0).collect();
        held.sort_unstable_by_key(|arena| arena.serial);
        held.into_iter()
            .map(|arena| ArenaInfo {
                address: arena.address,
                size: self.geometry.arena_size,
                free_pools: arena.nfreepools as usize,
                uncarved_pools: arena.uncarved_pools(&self.geometry),
                trimmed_pools: arena.nfreepools as usize - arena.uncarved_pools(&self.geometry) - arena.kept as usize,
                total_pools: arena.ntotalpools as usize,
            })
            .collect()
    }

    /// The second half of `allocate_from_new_pool`: takes a pool from the first of `usable_arenas`, or from a new arena. Returns its header
    /// and its first byte.
    ///
    /// # Safety
    /// As for [`alloc_from_used_pool`](Self::alloc_from_used_pool).
    pub(super) unsafe fn take_pool(this: *mut Self) -> Option<(*mut PoolHeader, *mut u8)> {
        // SAFETY: the caller's promise.
        if unsafe { (*this).usable_arenas == NO_ARENA && !Self::new_arena(this) } {
            return None;
        }
        // SAFETY: the caller's promise; the allocators, which may come back in, have run.
        let state = unsafe { &mut *this };
        let index = state.usable_arenas;
        let arena = &mut state.arenas[index as usize];
        // This arena is about to have one free pool less. It is the first usable arena, so it is the last one with its number of free
        // pools only if it is the only one.
        let nfreepools = arena.nfreepools as usize;
        if state.nfp2lasta[nfreepools] == index {
            state.nfp2lasta[nfreepools] = NO_ARENA;
        }
        if nfreepools > 1 {
            state.nfp2lasta[nfreepools - 1] = index;
        }
        arena.nfreepools -= 1;
        let pool = arena.freepools;
        let found = if pool.is_null() {
            let address = arena.pool_address;
            arena.pool_address += state.geometry.pool_size;
            state.uncarved -= state.geometry.pool_size;
            let pool = state.header_at(address);
            // SAFETY: invariant 2: the header's memory is there for every pool of an arena that is held.
            unsafe { pool.write(PoolHeader { szidx: NO_CLASS, ..PoolHeader::sentinel(ptr::null_mut()) }) };
            (pool, ptr::with_exposed_provenance_mut(address))
        } else {
            // SAFETY: invariant 2; an arena's free pools have been carved.
            let (next, szidx) = unsafe { ((*pool).nextpool, (*pool).szidx) };
            arena.freepools = next;
            state.trims.take(arena, szidx);
            let address = state.address_of(pool);
            (pool, ptr::with_exposed_provenance_mut(address))
        };
        let arena = state.arenas[index as usize];
        if arena.nfreepools == 0 {
            // Full: no longer usable.
            state.usable_arenas = arena.nextarena;
            if arena.nextarena != NO_ARENA {
                state.arenas[arena.nextarena as usize].prevarena = NO_ARENA;
            }
        }
        Some(found)
    }

    /// Takes an arena and makes it the only usable one (`new_arena`); false when none can be had.
    ///
    /// # Safety
    /// As for [`alloc_from_used_pool`](Self::alloc_from_used_pool); no arena is usable.
    #[cold]
    unsafe fn new_arena(this: *mut Self) -> bool {
        // SAFETY: the caller's promise; fields are read and written one by one, because the allocators called here may come back in.
        unsafe {
            if (*this).taking_arena {
                return false;
            }
            (*this).taking_arena = true;
            let taken = Self::request_arena(this);
            (*this).taking_arena = false;
            let Some((index, address)) = taken else { return false };
            (*this).add_arena(index, address);
            true
        }
    }

    /// Asks for all that a new arena needs: an arena object, the arena itself, the nodes of the map.
    ///
    /// # Safety
    /// As for [`new_arena`](Self::new_arena).
    unsafe fn request_arena(this: *mut Self) -> Option<(u32, usize)> {
        // SAFETY: as in `new_arena`.
        unsafe {
            if (*this).unused_arena_objects == NO_ARENA && !Self::grow_arena_table(this) {
                return None;
            }
            // The allocators called below may give an arena back, which makes another object unused.
            let index = (*this).take_arena_object();
            let base = Self::request_arena_for(this, index);
            if base.is_none() {
                (*this).leave_arena_object(index);
            }
            Some((index, base?))
        }
    }

    /// Takes the first of the unused arena objects, which there is.
    fn take_arena_object(&mut self) -> u32 {
        let index = self.unused_arena_objects;
        self.unused_arena_objects = self.arenas[index as usize].nextarena;
        index
    }

    /// Makes an arena object the first of the unused ones.
    fn leave_arena_object(&mut self, index: u32) {
        self.arenas[index as usize].nextarena = self.unused_arena_objects;
        self.unused_arena_objects = index;
    }

    /// Doubles the number of arena objects; false when there is no memory for them.
    ///
    /// # Safety
    /// As for [`new_arena`](Self::new_arena).
    unsafe fn grow_arena_table(this: *mut Self) -> bool {
        // SAFETY: as in `new_arena`.
        let (raw, table, arenas) = unsafe { (*(*this).raw, (*this).arena_table, &(*this).arenas) };
        let wanted = if arenas.is_empty() { INITIAL_ARENA_OBJECTS } else { arenas.len() * 2 };
        // CPython's array lives in the raw domain, where a guest could write to it. Ours does not, but the raw domain gets the same
        // requests.
        // SAFETY: the raw domain gave the table, if there is one.
        let table = unsafe { (raw.realloc)(raw.ctx, table, wanted * ARENA_OBJECT_SIZE) };
        if table.is_null() {
            return false;
        }
        // SAFETY: as in `new_arena`; the raw allocator has run.
        let state = unsafe { &mut *this };
        state.arena_table = table;
        state.add_arena_objects(wanted)
    }

    /// Gets the arena for an arena object, and enters it into the map.
    ///
    /// # Safety
    /// As for [`new_arena`](Self::new_arena); `index` is that of an arena object in no list.
    unsafe fn request_arena_for(this: *mut Self, index: u32) -> Option<usize> {
        // SAFETY: as in `new_arena`.
        let (geometry, arena_allocator) = unsafe { ((*this).geometry, (*this).arena_allocator) };
        // SAFETY: an arena allocator takes the heap's arena size.
        let arena = unsafe { (arena_allocator.alloc)(arena_allocator.ctx, geometry.arena_size) };
        if arena.is_null() {
            return None;
        }
        // The list of usable arenas does not work with arenas of a single pool.
        let base = arena.expose_provenance();
        let pools = geometry.pools_per_arena() - usize::from(!base.is_multiple_of(geometry.pool_size));
        // SAFETY: as in `new_arena`.
        if pools < 2 || !unsafe { Self::mark_used(this, base, index) } {
            // SAFETY: the arena goes back to the allocator that gave it just now.
            unsafe { (arena_allocator.free)(arena_allocator.ctx, arena, geometry.arena_size) };
            return None;
        }
        Some(base)
    }

    fn add_arena_objects(&mut self, wanted: usize) -> bool {
        let count = self.arenas.len();
        if self.arenas.try_reserve_exact(wanted - count).is_err() {
            return false;
        }
        let unused = |index: usize| ArenaObject {
            address: 0,
            pool_address: 0,
            nfreepools: 0,
            ntotalpools: 0,
            freepools: ptr::null_mut(),
            nextarena: if index + 1 < wanted { index as u32 + 1 } else { NO_ARENA },
            prevarena: NO_ARENA,
            kept: 0,
            is_own: false,
            serial: 0,
        };
        self.arenas.extend((count..wanted).map(unused));
        self.unused_arena_objects = count as u32;
        true
    }

    /// Enters an arena into the map (`arena_map_mark_used`); false when there is no memory for it.
    ///
    /// # Safety
    /// As for [`new_arena`](Self::new_arena); the arena allocator gave `base` just now.
    unsafe fn mark_used(this: *mut Self, base: usize, index: u32) -> bool {
        // SAFETY: as in `new_arena`.
        let raw = unsafe { *(*this).raw };
        // SAFETY: as in `new_arena`.
        while let Some(node) = unsafe { (*this).arena_map.missing_node(base as u64) } {
            // SAFETY: as in `new_arena`.
            if !unsafe { Self::add_node(this, raw, &node) } {
                return false;
            }
        }
        // SAFETY: as in `new_arena`; the raw allocator has run.
        let state = unsafe { &mut *this };
        match state.region.slot_of(base) {
            Some(slot) => state.region.arena_of_slot[slot] = index,
            None => {
                if !state.arena_map.insert(base, index) {
                    return false;
                }
                state.arenas_outside += 1;
            }
        }
        true
    }

    /// Enters a node into the map, with memory from the raw domain's allocator; false when there is no memory.
    ///
    /// # Safety
    /// As for [`new_arena`](Self::new_arena).
    unsafe fn add_node(this: *mut Self, raw: Allocator, node: &MissingNode) -> bool {
        // CPython asks for zeroes. Nothing here reads a node, so the heap's own allocator need not write them: in a C library whose largest
        // mappings have been given back, that makes every page of the node resident.
        // SAFETY: as in `new_arena`.
        let memory = unsafe {
            if raw == (*this).own_raw { (raw.malloc)(raw.ctx, node.size) } else { (raw.calloc)(raw.ctx, 1, node.size) }
        };
        if memory.is_null() {
            return false;
        }
        // SAFETY: as in `new_arena`; the raw allocator has run.
        let is_added = unsafe { (*this).arena_map.add_node(node, memory) };
        if !is_added {
            // SAFETY: the memory goes back to the allocator that gave it just now.
            unsafe { (raw.free)(raw.ctx, memory) };
        }
        is_added
    }

    fn add_arena(&mut self, index: u32, address: usize) {
        let geometry = self.geometry;
        let excess = address & (geometry.pool_size - 1);
        let pools = geometry.pools_per_arena() - usize::from(excess != 0);
        self.arena_serial += 1;
        // No arena was usable before. While the allocators ran, they may have made some usable. Such an arena can have more free pools than the
        // new one, because an arena that does not begin at a pool boundary has one pool less.
        let (mut before, mut after) = (NO_ARENA, self.usable_arenas);
        while after != NO_ARENA && self.arenas[after as usize].nfreepools as usize <= pools {
            (before, after) = (after, self.arenas[after as usize].nextarena);
        }
        self.arenas[index as usize] = ArenaObject {
            address,
            pool_address: address.next_multiple_of(geometry.pool_size),
            nfreepools: pools as u32,
            ntotalpools: pools as u32,
            freepools: ptr::null_mut(),
            nextarena: after,
            prevarena: before,
            kept: 0,
            is_own: self.arena_allocator == self.own_arena_allocator,
            serial: self.arena_serial,
        };
        match self.arenas.get_mut(before as usize) {
            Some(before) => before.nextarena = index,
            None => self.usable_arenas = index,
        }
        if let Some(after) = self.arenas.get_mut(after as usize) {
            after.prevarena = index;
        }
        self.forget_dead(address.next_multiple_of(geometry.pool_size), pools * geometry.pool_size);
        self.nfp2lasta[pools] = index;
        self.uncarved += pools * geometry.pool_size;
        self.narenas_currently_allocated += 1;
        self.ntimes_arena_allocated += 1;
        self.narenas_highwater = self.narenas_highwater.max(self.narenas_currently_allocated);
    }

    /// A pool has become empty: it joins its arena's free pools, and the arena moves to where its number of free pools puts it
    /// (`insert_to_freepool`).
    ///
    /// # Safety
    /// As for [`alloc_from_used_pool`](Self::alloc_from_used_pool); `block` lies in a pool that has just lost its last block in use.
    pub unsafe fn insert_to_freepool(this: *mut Self, block: *mut u8) {
        // SAFETY: the caller's promise; the reference to the state ends before the arena allocator runs.
        unsafe {
            let pool = Self::pool_of::<super::AnyPools>(this, block);
            pool::unlink(pool);
            let Some(address) = (*this).add_free_pool(pool, block.addr()) else {
                if (*this).trims.are_due() {
                    (*this).trim_by_itself();
                }
                return;
            };
            let (size, allocator) = ((*this).geometry.arena_size, (*this).arena_allocator);
            (allocator.free)(allocator.ctx, ptr::with_exposed_provenance_mut(address), size);
        }
    }

    /// Does the bookkeeping of [`insert_to_freepool`](Self::insert_to_freepool). Returns the arena's address if it must be given back.
    fn add_free_pool(&mut self, pool: *mut PoolHeader, block: usize) -> Option<usize> {
        let index = match self.region.slot_of(block) {
            Some(slot) => self.region.arena_of_slot[slot],
            None => self.arena_map.find(block).expect("a block that is freed lies in an arena"),
        };
        let arena = &mut self.arenas[index as usize];
        // SAFETY: the pool is live and in no list.
        unsafe { (*pool).nextpool = arena.freepools };
        arena.freepools = pool;
        self.trims.add(arena);
        let old = arena.nfreepools as usize;
        let new = old + 1;
        arena.nfreepools = new as u32;
        let ArenaObject { nextarena, prevarena, ntotalpools, .. } = *arena;

        // If this arena was the last one with `old` free pools, the arena before it is now, if it has as many.
        let lastnf = self.nfp2lasta[old];
        if lastnf == index {
            let before = prevarena;
            let still = before != NO_ARENA && self.arenas[before as usize].nfreepools as usize == old;
            self.nfp2lasta[old] = if still { before } else { NO_ARENA };
        }

        if new == ntotalpools as usize && (self.empty_arena == EmptyArena::Release || nextarena != NO_ARENA) {
            return Some(self.remove_arena(index));
        }
        if new == 1 {
            // The arena was full, so it was in no list. It now has the fewest free pools of all.
            let first = self.usable_arenas;
            self.arenas[index as usize].nextarena = first;
            self.arenas[index as usize].prevarena = NO_ARENA;
            if first != NO_ARENA {
                self.arenas[first as usize].prevarena = index;
            }
            self.usable_arenas = index;
            if self.nfp2lasta[1] == NO_ARENA {
                self.nfp2lasta[1] = index;
            }
            return None;
        }
        if self.nfp2lasta[new] == NO_ARENA {
            self.nfp2lasta[new] = index;
        }
        if lastnf == index {
            // It was the last one with `old` free pools, so every later arena has at least as many as this one has now.
            return None;
        }
        // It goes right behind the last arena with `old` free pools.
        self.unlink_usable(index);
        let after = self.arenas[lastnf as usize].nextarena;
        self.arenas[index as usize].prevarena = lastnf;
        self.arenas[index as usize].nextarena = after;
        if after != NO_ARENA {
            self.arenas[after as usize].prevarena = index;
        }
        self.arenas[lastnf as usize].nextarena = index;
        None
    }

    fn unlink_usable(&mut self, index: u32) {
        let ArenaObject { nextarena, prevarena, .. } = self.arenas[index as usize];
        if prevarena == NO_ARENA {
            self.usable_arenas = nextarena;
        } else {
            self.arenas[prevarena as usize].nextarena = nextarena;
        }
        if nextarena != NO_ARENA {
            self.arenas[nextarena as usize].prevarena = prevarena;
        }
    }

    fn remove_arena(&mut self, index: u32) -> usize {
        self.unlink_usable(index);
        let arena = &mut self.arenas[index as usize];
        self.uncarved -= arena.uncarved(&self.geometry);
        let carved = arena.nfreepools as usize - arena.uncarved_pools(&self.geometry);
        self.trims.remove(arena, carved);
        let address = core::mem::take(&mut arena.address);
        self.leave_arena_object(index);
        match self.region.slot_of(address) {
            Some(slot) => self.region.arena_of_slot[slot] = NO_ARENA,
            None => {
                self.arena_map.remove(address);
                self.arenas_outside -= 1;
            }
        }
        self.narenas_currently_allocated -= 1;
        address
    }
}
