//! What the engine asks of the system: address space, pages, the C library's malloc, threads and a clock. Leans on nothing. There is one file for
//! each system; all have the same functions.
//!
//! `REGION_SIZE` is the address space that a heap reserves for its arenas, bytes, while few heaps are open; 0 where address space is not free,
//! so arenas are taken one by one. `APART_REGION_SIZE` is the same of a heap with slack between its arenas: they can be told from other
//! memory only if they lie in a region. `ADDRESS_SPACE` is what all regions of the process may have together.

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

/// The thread that asks, as the system numbers it, and its name, which is empty where it has none; zero bytes follow the name.
pub(crate) type Thread = (usize, [u8; 16]);

/// As [`decommit`], in pieces; false when `is_over`, which is asked between them, made it give up.
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

/// Asks the processor to fetch what lies at an address, which may be anything.
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
