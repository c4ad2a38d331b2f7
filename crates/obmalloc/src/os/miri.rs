//! Miri. It has no reserved address space, and no pages that can be given back. Mappings are zeroed blocks of Rust's allocator, so Miri also
//! reports those that are never unmapped.

use core::alloc::Layout;
use core::ffi::c_void;
use core::ptr::{self, NonNull};

pub(crate) use libc::free;

use super::Thread;

pub(crate) const REGION_SIZE: usize = 16 << 20;
pub(crate) const APART_REGION_SIZE: usize = REGION_SIZE;
pub(crate) const ADDRESS_SPACE: usize = 64 << 40;
pub(crate) const REGION_PART: usize = 2048;
pub(crate) const BLOCKS_IN_PIECES: bool = true;

/// The smallest block. Miri aligns smaller blocks to less than 16; glibc aligns every block to 16, and a guest's answer must be so aligned.
const LEAST: usize = 16;

pub(crate) unsafe fn malloc(size: usize) -> *mut c_void {
    // SAFETY: takes any size.
    unsafe { libc::malloc(size.max(LEAST)) }
}

pub(crate) unsafe fn calloc(count: usize, size: usize) -> *mut c_void {
    let (count, size) = if count.saturating_mul(size) < LEAST { (1, LEAST) } else { (count, size) };
    // SAFETY: takes any sizes.
    unsafe { libc::calloc(count, size) }
}

/// # Safety
/// `block` is null, or what one of these gave.
pub(crate) unsafe fn realloc(block: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: the caller's promise.
    unsafe { libc::realloc(block, size.max(LEAST)) }
}

fn layout(size: usize) -> Option<Layout> {
    Layout::from_size_align(size, 4096).ok().filter(|_| size != 0)
}

pub(crate) fn map(size: usize) -> Option<NonNull<u8>> {
    // SAFETY: the layout is not empty.
    layout(size).and_then(|layout| NonNull::new(unsafe { alloc::alloc::alloc_zeroed(layout) }))
}

pub(crate) fn reserve(size: usize) -> Option<NonNull<u8>> {
    map(size)
}

pub(crate) unsafe fn commit(_: NonNull<u8>, _: usize) -> bool {
    true
}

/// # Safety
/// `address` and `size` are those of one [`map`], and nothing points into it any more.
pub(crate) unsafe fn unmap(address: NonNull<u8>, size: usize) {
    // SAFETY: the caller's promise: `map` gave this, with this layout.
    unsafe { alloc::alloc::dealloc(address.as_ptr(), layout(size).expect("was mapped")) };
}

/// # Safety
/// The part lies within one [`map`], and nothing in it is needed any more.
pub(crate) unsafe fn decommit(address: NonNull<u8>, size: usize) {
    // SAFETY: the caller's promise.
    unsafe { address.write_bytes(0, size) };
}

/// Gives a range back. Miri does not tell how much of it was resident.
///
/// # Safety
/// The range lies within one [`map`], and nothing in it is needed any more.
pub(crate) unsafe fn give_back(begin: usize, end: usize, is_forced: bool) -> usize {
    let (begin, end) = (begin.next_multiple_of(4096), end & !4095);
    if begin >= end || !is_forced {
        return 0;
    }
    // SAFETY: the caller's promise.
    unsafe { ptr::with_exposed_provenance_mut::<u8>(begin).write_bytes(0, end - begin) };
    end - begin
}

/// 0: Miri's C library does not know the size, so raw blocks do not count as held.
pub(crate) unsafe fn block_bytes(_: *mut c_void) -> usize {
    0
}

pub(crate) fn thread() -> Thread {
    (1, [0; 16])
}

pub(crate) fn seconds() -> f64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists, and the struct is ours.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}
