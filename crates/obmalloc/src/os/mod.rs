//! The system: address space, pages, the C library's malloc, threads and a clock. Leans on nothing. There is one file for each system, all
//! with the same functions.
//!
//! `REGION_SIZE` is the address space, in bytes, that a heap reserves for its arenas while few heaps are open. It is 0 on systems where
//! address space is not free: there arenas are taken one by one. `APART_REGION_SIZE` is the same for a heap with slack between its arenas,
//! which needs a region to find them. `ADDRESS_SPACE` is the most that all regions of the process may have together. A
//! region gets at most one in `REGION_PART` of what is left of it, so with many heaps regions shrink.

use core::ptr::NonNull;

#[cfg(miri)]
#[path = "miri.rs"]
mod system;
#[cfg(all(unix, not(miri)))]
#[path = "unix.rs"]
mod system;
#[cfg(all(target_family = "wasm", not(miri)))]
#[path = "wasm.rs"]
mod system;
#[cfg(all(windows, not(miri)))]
#[path = "windows.rs"]
mod system;

pub(crate) use system::*;

/// A thread's number in the system, and its name, filled up with zero bytes; empty if it has none.
pub(crate) type Thread = (usize, [u8; 16]);

/// As [`decommit`], in pieces. False if `is_over`, which is asked between them, stopped it.
///
/// # Safety
/// As for `decommit`, also while `is_over` runs.
pub(crate) unsafe fn decommit_in_pieces(address: NonNull<u8>, size: usize, mut is_over: impl FnMut() -> bool) -> bool {
    const PIECE: usize = 1 << 20;
    (0..size).step_by(PIECE).all(|done| {
        // SAFETY: the caller's promise.
        unsafe { decommit(address.add(done), PIECE.min(size - done)) };
        !is_over()
    })
}

/// Asks the processor to prefetch the cache line at any address.
#[inline(always)]
pub(crate) fn prefetch(address: *const u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a hint, which touches nothing.
    unsafe {
        core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(any(not(target_arch = "x86_64"), miri))]
    let _ = address;
}
