//! A pool: blocks of one size class, and the header that knows which of them are free.

use core::ptr;

/// The header of a pool (`pool_header`). CPython keeps it at the head of the pool. Here it lies beside the pools if the arena is in the
/// heap's own region.
///
/// Invariants, of a pool that has been carved from its arena:
/// 1. `freeblock` heads a NULL-terminated list through the first words of the free blocks. Blocks from `nextoffset` on have never been
///    touched, and are not in the list.
/// 2. `count` is the number of blocks handed out and not freed.
/// 3. The pool is *used* (`freeblock` not NULL, `count` not 0; in the circular list of its class), *full* (`freeblock` NULL; in
///    no list) or *empty* (`count` 0; in its arena's singly linked `freepools`).
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub(crate) struct PoolHeader {
    /// First free block, or NULL.
    pub freeblock: *mut u8,
    /// Next pool of the class, or of the arena's free pools.
    pub nextpool: *mut PoolHeader,
    /// Previous pool of the class.
    pub prevpool: *mut PoolHeader,
    /// Blocks handed out (`ref.count`). 32 bits, because the compiler loads that many, and the load would wait for a narrower store.
    pub count: u32,
    /// Offset of the first untouched block, in units of the alignment.
    pub nextoffset: u16,
    /// Size class, [`NO_CLASS`] before the pool is first used.
    pub szidx: u16,
}

/// `DUMMY_SIZE_IDX`
pub(crate) const NO_CLASS: u16 = u16::MAX;

// Two headers share a cache line, one fits the space that CPython's takes, and a shift and a mask find one in a table.
const _: () = assert!(size_of::<PoolHeader>() == 32);
const _: () = assert!(size_of::<PoolHeader>() <= crate::profile::POOL_OVERHEAD);
// `nextoffset` can count the largest pool: 256 KiB in units of 8 bytes.
const _: () = assert!((256 << 10) / 8 <= u16::MAX as usize);

impl PoolHeader {
    /// The head of an empty class: links to itself, and looks like a pool without free blocks.
    pub fn sentinel(at: *mut PoolHeader) -> Self {
        Self { freeblock: ptr::null_mut(), nextpool: at, prevpool: at, count: 0, nextoffset: 0, szidx: NO_CLASS }
    }
}

/// Takes a pool out of its class's list.
///
/// # Safety
/// The pool is in a list of live headers.
#[inline]
pub(crate) unsafe fn unlink(pool: *mut PoolHeader) {
    // SAFETY: the caller's promise; both neighbours are live.
    unsafe {
        let (next, prev) = ((*pool).nextpool, (*pool).prevpool);
        (*next).prevpool = prev;
        (*prev).nextpool = next;
    }
}

/// Puts a pool at the front of the list that `head` heads (`insert_to_usedpool`).
///
/// # Safety
/// The pool is in no list, and `head` heads a list of live headers.
#[inline]
pub(crate) unsafe fn link_front(pool: *mut PoolHeader, head: *mut PoolHeader) {
    // SAFETY: the caller's promise.
    unsafe {
        let next = (*head).nextpool;
        (*pool).nextpool = next;
        (*pool).prevpool = head;
        (*next).prevpool = pool;
        (*head).nextpool = pool;
    }
}
