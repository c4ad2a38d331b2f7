//! Windows. Committed memory counts against the system's memory before it is touched; so would the table of a region's pool headers. So a
//! heap has a region only if it needs one. Otherwise arenas are taken one by one, as CPython takes them there.

use core::ffi::c_void;
use core::ptr::{self, NonNull};

pub(crate) use libc::{calloc, free, malloc, realloc};
use windows_sys::Win32::System::Memory::{MEM_COMMIT, MEM_RELEASE, MEM_RESERVE, PAGE_READWRITE, VirtualAlloc, VirtualFree};
use windows_sys::Win32::System::Performance::{QueryPerformanceCounter, QueryPerformanceFrequency};
use windows_sys::Win32::System::Threading::GetCurrentThreadId;

use super::Thread;

pub(crate) const REGION_SIZE: usize = 0;
/// Headers of pools of 16 KiB take 12 MiB.
pub(crate) const APART_REGION_SIZE: usize = 4 << 30;
pub(crate) const ADDRESS_SPACE: usize = 64 << 40;
pub(crate) const REGION_PART: usize = 2048;
pub(crate) const BLOCKS_IN_PIECES: bool = false;

/// Maps `size` bytes of zeroed memory at a multiple of 64 KiB; `None` when the system has no more.
pub(crate) fn map(size: usize) -> Option<NonNull<u8>> {
    // SAFETY: new memory at an address of the system's choice touches nothing that exists.
    NonNull::new(unsafe { VirtualAlloc(ptr::null(), size, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE) }.cast())
}

/// Reserves `size` bytes of address space. A part must be [committed](commit) before it is touched.
pub(crate) fn reserve(size: usize) -> Option<NonNull<u8>> {
    // SAFETY: as for `map`.
    NonNull::new(unsafe { VirtualAlloc(ptr::null(), size, MEM_RESERVE, PAGE_READWRITE) }.cast())
}

/// Makes a part of what was [reserved](reserve) memory; false when the system has no more.
///
/// # Safety
/// The part lies within one [`reserve`].
pub(crate) unsafe fn commit(address: NonNull<u8>, size: usize) -> bool {
    // SAFETY: the caller's promise; memory that is committed already stays as it is.
    !unsafe { VirtualAlloc(address.as_ptr().cast(), size, MEM_COMMIT, PAGE_READWRITE) }.is_null()
}

/// Gives a whole mapping back.
///
/// # Safety
/// `address` is that of one [`map`] or [`reserve`], and nothing points into it any more.
pub(crate) unsafe fn unmap(address: NonNull<u8>, _: usize) {
    // SAFETY: the caller's promise; 0 stands for the whole mapping.
    let done = unsafe { VirtualFree(address.as_ptr().cast(), 0, MEM_RELEASE) };
    debug_assert_ne!(done, 0, "VirtualFree of a whole mapping does not fail");
}

/// Does nothing: no caller here relies on zeroes. Callers soon unmap the whole mapping, or use the memory again.
pub(crate) unsafe fn decommit(_: NonNull<u8>, _: usize) {}

/// Gives nothing back: pages that lose their memory could not be touched again.
pub(crate) unsafe fn give_back(_: usize, _: usize, _: bool) -> usize {
    0
}

unsafe extern "C" {
    fn _msize(block: *mut c_void) -> usize;
}

/// Bytes that a block really has, which may be more than were requested.
///
/// # Safety
/// NULL or a live block of [`malloc`].
pub(crate) unsafe fn block_bytes(block: *mut c_void) -> usize {
    // SAFETY: the caller's promise; the function takes no NULL.
    if block.is_null() { 0 } else { unsafe { _msize(block) } }
}

/// The calling thread, without its name.
pub(crate) fn thread() -> Thread {
    // SAFETY: takes nothing.
    (unsafe { GetCurrentThreadId() } as usize, [0; 16])
}

/// Seconds since some fixed moment.
pub(crate) fn seconds() -> f64 {
    let (mut count, mut frequency) = (0, 0);
    // SAFETY: both numbers are ours; neither call fails on a Windows that Rust knows.
    unsafe {
        QueryPerformanceCounter(&mut count);
        QueryPerformanceFrequency(&mut frequency);
    }
    count as f64 / frequency as f64
}
