//! Handing blocks out (`pymalloc_alloc`): the next free block of a pool in use, or, when there is none, the first one of another pool.

use core::ptr::{self, NonNull};

use super::pool::{self, PoolHeader};
use super::{Pymalloc, Shape};
use crate::profile::POOL_OVERHEAD;

impl Pymalloc {
    /// A block for a small request from a pool in use (`pymalloc_alloc`). `None` if the request is not small, its class has no such pool, or
    /// the pool's free list has a broken link.
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
            // In an empty list the sentinel is found, which has no free block.
            let block = NonNull::new((*pool).freeblock)?;
            let next = block.cast::<*mut u8>().read();
            (*pool).freeblock = next;
            (*pool).count += 1;
            // `is_link` refuses NULL too, so that checking the link costs no second branch.
            let leads_on = if S::CHECKED { (*this).is_link::<S>(block.as_ptr(), next) } else { !next.is_null() };
            if leads_on {
                prefetch(next);
            } else if !S::CHECKED || next.is_null() {
                Self::pymalloc_pool_extend::<S>(this, pool, block.as_ptr(), class);
            } else {
                // `alloc_from_new_pool` does the rest, so that this path needs no further register.
                (*pool).freeblock = block.as_ptr();
                return None;
            }
            Some(block)
        }
    }

    /// Puts the pool's next untouched block into its free list (`pymalloc_pool_extend`). If there is none, the pool is full and leaves its list.
    ///
    /// # Safety
    /// As for [`alloc_from_used_pool`](Self::alloc_from_used_pool), which took `block`, of this class, from the pool.
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

    /// Takes a pool, which becomes the only used pool of its class, and returns its first block (`allocate_from_new_pool`). NULL if the request
    /// is not small, there is no arena, or a link is broken.
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

    /// Whether [`alloc_from_used_pool`](Self::alloc_from_used_pool) has found a broken link in the first pool of a class. If so, uncounts the
    /// block that it had counted.
    ///
    /// # Safety
    /// As for [`alloc_from_used_pool`](Self::alloc_from_used_pool); there is such a class.
    #[inline(always)]
    unsafe fn has_broken_link(this: *mut Self, class: usize) -> bool {
        // SAFETY: the caller gives a class that exists; invariant 1.
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

    /// The first block of an empty pool that last held blocks of the same class: its free list is still valid.
    ///
    /// # Safety
    /// As for [`alloc_from_used_pool`](Self::alloc_from_used_pool); the pool is empty, and of its class still.
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

    /// Makes a free list in a pool for blocks of a class, and returns the first block (`init_pool`, a label in CPython).
    ///
    /// # Safety
    /// As for [`alloc_from_used_pool`](Self::alloc_from_used_pool); `address` is the first byte of the pool, which holds no block.
    #[inline(always)]
    unsafe fn init_pool<S: Shape>(this: *mut Self, pool: *mut PoolHeader, address: *mut u8, class: usize) -> *mut u8 {
        // SAFETY: the caller's promise. By invariant 2 blocks begin `POOL_OVERHEAD` bytes into the pool, which has room for two of each
        // class. Afterwards invariant 1 of pools holds: the second block is the free list, and those behind it are untouched.
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
