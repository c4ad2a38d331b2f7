//! Taking blocks back (`pymalloc_free`).

use core::ptr;

use super::pool::{self, PoolHeader};
use super::{AnyPools, Pymalloc, Shape};

/// What became of a block that was to be freed.
pub(crate) enum Freed {
    /// The block is free.
    Here,
    /// The block is free, and its pool has no block in use any more.
    LastOfPool,
    /// Nothing yet: the block lies outside the region.
    OutsideRegion,
    /// Nothing: the block is not pymalloc's.
    NotOurs,
}

impl Pymalloc {
    /// Takes a block back (`pymalloc_free`). After [`Freed::LastOfPool`] the caller must call
    /// [`insert_to_freepool`](Self::insert_to_freepool), after [`Freed::OutsideRegion`] [`free_outside_region`](Self::free_outside_region).
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
    pub unsafe fn free_outside_region(this: *mut Self, address: *mut u8) -> Freed {
        // SAFETY: the caller's promise.
        unsafe {
            let pool = Self::pool_of::<AnyPools>(this, address);
            if pool.is_null() { Freed::NotOurs } else { Self::free_in_pool(this, pool, address) }
        }
    }

    /// Returns a pointer that is valid for the whole block. The caller's pointer may cover only a part, as that of a `Box` does. The new pointer
    /// comes from an exposed address, because Rust forbids other access to a `Box` argument until the function returns, and the block is freed
    /// earlier.
    #[inline(always)]
    pub fn whole_block(address: *mut u8) -> *mut u8 {
        ptr::with_exposed_provenance_mut(address.expose_provenance())
    }

    /// # Safety
    /// The block lies in the pool, is live, and is not used any more.
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
            // The pool was full, so it was in no list.
            // SAFETY: invariant 1; the pool is in no list (invariant 3 of pools).
            unsafe { pool::link_front(pool, (*this).usedpools.add(usize::from((*pool).szidx))) };
            return Freed::Here;
        }
        // SAFETY: invariant 2.
        if unsafe { (*pool).count } == 0 { Freed::LastOfPool } else { Freed::Here }
    }
}
