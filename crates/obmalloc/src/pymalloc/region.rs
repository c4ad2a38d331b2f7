//! The address space that a heap's own arenas come from: one reservation, with the pool headers in a table beside it.
//!
//! CPython's headers lie 16 KiB apart and so compete for the same few cache lines; side by side they do not. And with one reservation, one
//! comparison tells whether an address is ours. If the address space is limited and nothing can be reserved, arenas are mapped one by one,
//! as CPython does, and found through the arena map.

use core::ffi::c_void;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use alloc::vec::Vec;

use super::pool::PoolHeader;
use crate::allocator::ArenaAllocator;
use crate::os::{self, ADDRESS_SPACE, APART_REGION_SIZE, REGION_PART, REGION_SIZE};

/// Bytes that all regions have now.
static RESERVED: AtomicUsize = AtomicUsize::new(0);

/// Bytes of arenas that were given back and are kept for the next arenas. An arena that is taken and given back again and again would otherwise
/// cost a page fault for every page, every time.
const RETAINED: usize = 4 << 20;

/// Owner of the reservation.
pub(crate) struct Region {
    /// First byte; 0 without a reservation.
    pub base: usize,
    /// Bytes; 0 without a reservation.
    pub len: usize,
    /// The table of pool headers, beginning with that of the pool at `base`.
    pub headers: *mut PoolHeader,
    /// Bytes from one slot to the next. A slot is the place of one arena.
    pub stride: usize,
    /// The arena in each slot, for every slot that was ever used.
    pub arena_of_slot: Vec<u32>,
    /// Slots without an arena; the last is used next. The last `retained` of them still have their memory.
    free_slots: Vec<u32>,
    retained: usize,
    arena_size: usize,
    mapping: (Option<NonNull<u8>>, usize),
    table: (Option<NonNull<u8>>, usize),
}

impl Region {
    /// Reserves address space for arenas of `arena_size` bytes, `slack` bytes apart (so that arenas can be placed off their natural boundary),
    /// with pools of `pool_size` bytes. Without address space the region is empty and hands out single mappings.
    pub fn new(arena_size: usize, pool_size: usize, slack: usize) -> Self {
        let mut region = Self {
            base: 0,
            len: 0,
            headers: ptr::null_mut(),
            stride: arena_size + slack,
            arena_of_slot: Vec::new(),
            free_slots: Vec::new(),
            retained: 0,
            arena_size,
            mapping: (None, 0),
            table: (None, 0),
        };
        let most = if slack == 0 { REGION_SIZE } else { APART_REGION_SIZE };
        let left = ADDRESS_SPACE.saturating_sub(RESERVED.load(Relaxed));
        let len = (left / REGION_PART).min(most).next_multiple_of(arena_size);
        if len == 0 {
            return region;
        }
        // The region must begin at a multiple of the largest arena size. So it maps one arena more than it uses.
        let mapping_size = len + arena_size;
        let table_size = len / pool_size * size_of::<PoolHeader>();
        let Some(mapping) = os::reserve(mapping_size) else { return region };
        let Some(table) = os::map(table_size) else {
            // SAFETY: mapped just above, and unused.
            unsafe { os::unmap(mapping, mapping_size) };
            return region;
        };
        region.mapping = (Some(mapping), mapping_size);
        region.table = (Some(table), table_size);
        region.headers = table.as_ptr().cast();
        region.base = mapping.as_ptr().expose_provenance().next_multiple_of(arena_size);
        region.len = len;
        RESERVED.fetch_add(len, Relaxed);
        region
    }

    /// Number of slots.
    fn slots(&self) -> usize {
        self.len / self.stride
    }

    /// The slot that `address` lies in, if it is in the region.
    #[inline]
    pub fn slot_of(&self, address: usize) -> Option<usize> {
        let offset = address.wrapping_sub(self.base);
        (offset < self.len).then(|| offset / self.stride)
    }

    fn slot_address(&self, slot: usize) -> NonNull<u8> {
        let mapping = self.mapping.0.expect("a region with slots has a mapping");
        let offset = self.base - mapping.as_ptr().addr() + slot * self.stride;
        // SAFETY: slots lie within the mapping.
        unsafe { mapping.add(offset) }
    }

    /// Memory for an arena, or a mapping of `size` bytes if that is no arena's size; `None` when the system has no more.
    pub fn alloc(&mut self, size: usize) -> Option<NonNull<u8>> {
        if size != self.arena_size {
            return os::map(size);
        }
        if let Some(slot) = self.free_slots.pop() {
            self.retained = self.retained.saturating_sub(1);
            return Some(self.slot_address(slot as usize));
        }
        let slot = self.arena_of_slot.len();
        if slot == self.slots() {
            return os::map(size);
        }
        // Make room in both tables now, so that giving the arena back cannot fail.
        self.arena_of_slot.try_reserve(1).ok()?;
        self.free_slots.try_reserve(slot + 1).ok()?;
        // SAFETY: slots lie within the reservation.
        if !unsafe { os::commit(self.slot_address(slot), self.stride) } {
            return None;
        }
        self.arena_of_slot.push(u32::MAX);
        Some(self.slot_address(slot))
    }

    /// Takes back what [`alloc`](Self::alloc) gave.
    ///
    /// # Safety
    /// `address` and `size` are those of one `alloc` (an arena's address may be anywhere in its first pool), and nothing points into
    /// it any more.
    pub unsafe fn free(&mut self, address: NonNull<u8>, size: usize) {
        match self.slot_of(address.as_ptr().addr()) {
            Some(slot) => {
                self.free_slots.push(slot as u32);
                self.retained += 1;
                if self.retained * self.arena_size > RETAINED {
                    let oldest = self.free_slots[self.free_slots.len() - self.retained];
                    self.retained -= 1;
                    // SAFETY: nothing uses a slot without an arena.
                    unsafe { os::decommit(self.slot_address(oldest as usize), self.stride) };
                }
            }
            // SAFETY: outside the region it was a mapping of its own.
            None => unsafe { os::unmap(address, size) },
        }
    }

    /// Gives back the memory that is kept for the next arenas. Returns how many bytes that was.
    pub fn give_retained_back(&mut self) -> usize {
        let retained = &self.free_slots[self.free_slots.len() - core::mem::take(&mut self.retained)..];
        let places = retained.iter().map(|&slot| self.base + slot as usize * self.stride);
        // SAFETY: nothing uses a slot without an arena.
        places.map(|place| unsafe { os::give_back(place, place + self.stride, false) }).sum()
    }

    /// Bytes of the slots that have ever been used. They are the first ones.
    pub fn used(&self) -> usize {
        self.arena_of_slot.len() * self.stride
    }

    /// Gives the memory of all slots back to the system, in pieces. False if `is_over`, which is asked between them, stopped it.
    ///
    /// # Safety
    /// Nothing in any arena is needed any more.
    pub unsafe fn decommit(&mut self, is_over: impl FnMut() -> bool) -> bool {
        let used = self.used();
        // SAFETY: within the mapping, and the caller's promise.
        used == 0 || unsafe { os::decommit_in_pieces(self.slot_address(0), used, is_over) }
    }

    /// This region as an arena allocator. It is valid while the region does not move.
    pub fn as_allocator(this: *mut Self) -> ArenaAllocator {
        ArenaAllocator { ctx: this.cast(), alloc: region_alloc, free: region_free }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        RESERVED.fetch_sub(self.len, Relaxed);
        for (address, size) in [self.mapping, self.table] {
            if let Some(address) = address {
                // SAFETY: nothing uses an arena of a dropped region.
                unsafe { os::unmap(address, size) };
            }
        }
    }
}

/// `_PyObject_ArenaMmap`
unsafe extern "C-unwind" fn region_alloc(ctx: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: `ctx` is the region that made this allocator, and no other reference to it is held across arena calls.
    let region = unsafe { &mut *ctx.cast::<Region>() };
    region.alloc(size).map_or(ptr::null_mut(), |address| address.as_ptr().cast())
}

/// `_PyObject_ArenaMunmap`
unsafe extern "C-unwind" fn region_free(ctx: *mut c_void, address: *mut c_void, size: usize) {
    // SAFETY: as above; the caller gives back an arena that it was given.
    unsafe {
        if let Some(address) = NonNull::new(address.cast()) {
            (*ctx.cast::<Region>()).free(address, size);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "regions are memory there")]
    fn many_regions_leave_half_of_the_address_space() {
        const ARENA: usize = 1 << 20;
        let regions: Vec<Region> = (0..20_000).map(|_| Region::new(ARENA, 16 << 10, 0)).collect();
        assert!(regions.iter().take(1000).all(|region| region.len == REGION_SIZE), "the first ones are whole");
        assert!(regions.iter().all(|region| region.len >= ARENA), "each has room for an arena");
        let together: usize = regions.iter().map(|region| region.len).sum();
        assert!(together <= ADDRESS_SPACE + regions.len() * ARENA, "{together} bytes");
        drop(regions);
        assert_eq!(Region::new(ARENA, 16 << 10, 0).len, REGION_SIZE, "what is dropped is given back");
    }
}
