//! Finds the pool of an address (`address_in_range`, here `pool_of`), and the block around it (`locate`).

use core::ptr;

use super::arena::NO_ARENA;
use super::pool::{NO_CLASS, PoolHeader};
use super::{Pymalloc, Shape};
use crate::profile::POOL_OVERHEAD;

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

impl Pymalloc {
    /// Header of the pool that `address` lies in, if that pool is ours (`address_in_range`).
    ///
    /// # Safety
    /// `this` is initialised, and nothing else uses it meanwhile. The address may be any.
    #[inline(always)]
    pub(super) unsafe fn pool_of<S: Shape>(this: *mut Self, address: *mut u8) -> *mut PoolHeader {
        // SAFETY: the caller's promise; an offset below `len` has a header.
        unsafe {
            let (_, _, pool_shift) = (*this).shape::<S>();
            if address.addr().wrapping_sub((*this).base) < (*this).len {
                (*this).header_in_region(address.addr(), pool_shift)
            } else if (*this).arenas_outside == 0 {
                ptr::null_mut()
            } else {
                Self::pool_of_outside(this, address)
            }
        }
    }

    /// Header of the pool that an address in the region lies in. Every free waits for this, so one shift and one mask do the work of a division
    /// by the pool size and a multiplication by the header's size.
    #[inline(always)]
    pub(super) fn header_in_region(&self, address: usize, pool_shift: u32) -> *mut PoolHeader {
        const SIZE: usize = size_of::<PoolHeader>();
        self.headers_of_zero.wrapping_byte_add((address >> (pool_shift - SIZE.trailing_zeros())) & !(SIZE - 1))
    }

    #[cold]
    #[inline(never)]
    unsafe extern "C-unwind" fn pool_of_outside(this: *mut Self, address: *mut u8) -> *mut PoolHeader {
        // SAFETY: the caller's promise. An address inside an arena outside the region has its pool's first byte in that arena too, unless it lies
        // before the first whole pool, where no block is.
        unsafe {
            match (*this).arena_map.find(address.addr()) {
                Some(_) => ptr::with_exposed_provenance_mut(address.addr() & !((*this).geometry.pool_size - 1)),
                None => ptr::null_mut(),
            }
        }
    }

    /// Bytes in the block at `address`; `None` if it is not one of ours.
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

    /// Whether an address lies in memory of the heap's own arenas, not in a caller's.
    pub fn is_in_own_arena(&self, address: usize) -> bool {
        if self.len != 0 {
            return address.wrapping_sub(self.base) < self.len;
        }
        self.arena_map.find(address).is_some_and(|index| self.arenas[index as usize].is_own)
    }

    /// Where any address lies. Reads nothing through the address.
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
        } else if self.arenas_outside != 0 {
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

    /// Calls `visit` with the address and header of every carved pool, arena by arena.
    pub(super) fn each_pool(&self, mut visit: impl FnMut(usize, &PoolHeader)) {
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
    pub(super) fn header_at(&self, pool: usize) -> *mut PoolHeader {
        let offset = pool.wrapping_sub(self.base);
        if offset < self.len {
            // SAFETY: an offset below `len` has a header.
            unsafe { self.headers.add(offset >> self.pool_shift) }
        } else {
            ptr::with_exposed_provenance_mut(pool)
        }
    }

    /// Address of the pool whose header is `header`.
    pub(super) fn address_of(&self, header: *mut PoolHeader) -> usize {
        let offset = header.addr().wrapping_sub(self.headers.addr());
        if self.len != 0 && offset < (self.len >> self.pool_shift) * size_of::<PoolHeader>() {
            self.base + ((offset / size_of::<PoolHeader>()) << self.pool_shift)
        } else {
            header.addr()
        }
    }
}
