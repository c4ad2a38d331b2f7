//! Looks at one pool and its blocks, and finds the memory of an arena and of its pool headers.

use core::ptr::NonNull;

use super::arena::{ArenaObject, NO_ARENA};
use super::pool::{NO_CLASS, PoolHeader};
use super::{Corruption, Pymalloc};

/// A pool of an arena that is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PoolInfo {
    /// First byte.
    pub address: usize,
    /// The arena that it is of.
    pub arena: usize,
    /// Index of its size class; `None` if it has never held a block, or a trim has emptied it since.
    pub size_class: Option<usize>,
    /// Blocks handed out.
    pub used: usize,
    /// Blocks that it could still hand out without becoming another class's.
    pub free: usize,
}

/// Bytes somewhere.
type Bytes = NonNull<[u8]>;

/// The memory of a slot for an arena, and the heap's tables of the blocks in it. Every call of the heap may change their contents.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Window {
    /// The slot.
    pub memory: NonNull<[u8]>,
    /// Two bits for every multiple of the alignment, the lowest first: 2 for a live block of mem that begins there, 3 for one of obj.
    pub live: NonNull<[u8]>,
    /// A byte for every multiple of the alignment: above 1 where an object begins, or the memory of one is kept. Empty while the heap has no types.
    pub objects: NonNull<[u8]>,
    /// 32 bytes for each pool; the last two are the index of its size class.
    pub headers: NonNull<[u8]>,
}

impl Pymalloc {
    /// The arena that an address lies in.
    fn arena_around(&self, address: usize) -> Option<&ArenaObject> {
        let index = match self.region.slot_of(address) {
            Some(slot) => self.region.arena_of_slot.get(slot).copied().filter(|&index| index != NO_ARENA)?,
            None if self.arenas_outside != 0 => self.arena_map.find(address)?,
            None => return None,
        };
        let arena = self.arenas.get(index as usize)?;
        (address.wrapping_sub(arena.address) < self.geometry.arena_size).then_some(arena)
    }

    /// The address of the arena that an address lies in.
    pub fn arena_base(&self, address: usize) -> Option<usize> {
        self.arena_around(address).map(|arena| arena.address)
    }

    /// The pool that an address lies in.
    pub fn pool(&self, address: usize) -> Option<PoolInfo> {
        let arena = self.arena_around(address)?;
        let (first, pool_size) = (arena.first_pool(&self.geometry), self.geometry.pool_size);
        let address = address & !(pool_size - 1);
        if address < first || address >= first + arena.ntotalpools as usize * pool_size {
            return None;
        }
        let empty = PoolInfo { address, arena: arena.address, size_class: None, used: 0, free: 0 };
        if address >= arena.pool_address {
            return Some(empty);
        }
        // SAFETY: a carved pool has an initialised header.
        let header = unsafe { &*self.header_at(address) };
        if header.szidx == NO_CLASS {
            return Some(empty);
        }
        let (class, used) = (usize::from(header.szidx), header.count as usize);
        Some(PoolInfo { size_class: Some(class), used, free: self.geometry.blocks_per_pool(class) - used, ..empty })
    }

    /// As [`Heap::used_blocks`](crate::Heap::used_blocks).
    pub fn used_blocks(&self, address: usize, used: &mut [bool]) -> Result<usize, Corruption> {
        let Some(PoolInfo { address, size_class: Some(class), .. }) = self.pool(address) else { return Ok(0) };
        // SAFETY: it has a size class, so it has been carved.
        let header = unsafe { &*self.header_at(address) };
        let touched = self.touched_blocks(header);
        for (index, used) in used.iter_mut().enumerate() {
            *used = index < touched;
        }
        for (steps, index) in self.free_list(address, header).enumerate() {
            let index = index?;
            if steps == touched {
                return Err(Corruption { what: "a free list runs in a circle".into(), address });
            }
            if let Some(used) = used.get_mut(index) {
                *used = false;
            }
        }
        Ok(self.geometry.blocks_per_pool(class))
    }

    /// The memory and the pool headers of a slot of the region, if it has an arena; `None` if slots are not aligned to pools.
    pub fn window(&self, place: usize) -> Option<(Bytes, Bytes)> {
        let has_arena = self.region.arena_of_slot.get(place).is_some_and(|&index| index != NO_ARENA);
        if !has_arena || !self.region.stride.is_multiple_of(self.geometry.pool_size) {
            return None;
        }
        let offset = place * self.region.stride;
        let memory = NonNull::new(core::ptr::with_exposed_provenance_mut::<u8>(self.base + offset))?;
        // SAFETY: an offset below `len` has a header.
        let headers = NonNull::new(unsafe { self.headers.add(offset >> self.pool_shift) })?;
        let pools = self.region.stride >> self.pool_shift;
        Some((
            NonNull::slice_from_raw_parts(memory, self.region.stride),
            NonNull::slice_from_raw_parts(headers.cast(), pools * size_of::<PoolHeader>()),
        ))
    }
}

// `Window::headers` promises this. There are windows only on 64 bits.
#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<PoolHeader>() == 32 && core::mem::offset_of!(PoolHeader, szidx) == 30);
