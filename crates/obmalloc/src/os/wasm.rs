//! WebAssembly has one memory of at most 4 GiB, and cannot give any of it back. Regions are small. Mappings and the blocks of `malloc` come from
//! Rust's allocator. Memory that this allocator gives out for the first time costs the embedder nothing until the program touches it.

use alloc::alloc::{Layout, alloc, alloc_zeroed, dealloc};
use core::ffi::c_void;
use core::ptr::{self, NonNull};

use super::Thread;

pub(crate) const REGION_SIZE: usize = 16 << 20;
pub(crate) const APART_REGION_SIZE: usize = 0;
pub(crate) const ADDRESS_SPACE: usize = 1 << 30;
pub(crate) const REGION_PART: usize = 64;
pub(crate) const BLOCKS_IN_PIECES: bool = false;

/// The largest alignment of a mapping, in bytes. Arenas of up to this size are aligned to their size, so that all their pools can be used.
const ALIGNMENT: usize = 1 << 20;

/// The layout of a mapping: aligned to its size, rounded up to a power of two.
fn mapping(size: usize) -> Option<Layout> {
    Layout::from_size_align(size, size.checked_next_power_of_two()?.clamp(16, ALIGNMENT)).ok().filter(|_| size != 0)
}

/// Maps `size` bytes of zeroed memory; `None` when there is no more.
pub(crate) fn map(size: usize) -> Option<NonNull<u8>> {
    // SAFETY: the layout is not empty.
    mapping(size).and_then(|layout| NonNull::new(unsafe { alloc_zeroed(layout) }))
}

/// Memory for a region. It is not zeroed, as that would touch it.
pub(crate) fn reserve(size: usize) -> Option<NonNull<u8>> {
    // SAFETY: the layout is not empty.
    mapping(size).and_then(|layout| NonNull::new(unsafe { alloc(layout) }))
}

pub(crate) unsafe fn commit(_: NonNull<u8>, _: usize) -> bool {
    true
}

/// Gives a whole mapping back.
///
/// # Safety
/// `address` and `size` are those of one [`map`], and nothing points into it any more.
pub(crate) unsafe fn unmap(address: NonNull<u8>, size: usize) {
    if let Some(layout) = mapping(size) {
        // SAFETY: the caller's promise: `map` gave this, with this layout.
        unsafe { dealloc(address.as_ptr(), layout) };
    }
}

/// Does nothing: no pages can be given back, and no caller relies on zeroes outside a region.
pub(crate) unsafe fn decommit(_: NonNull<u8>, _: usize) {}

/// Gives nothing back.
pub(crate) unsafe fn give_back(_: usize, _: usize, _: bool) -> usize {
    0
}

/// Bytes before a block of [`malloc`] that hold its size. A block is aligned to this many bytes.
const HEAD: usize = 16;

/// A block of `size` bytes and its head.
fn block(size: usize) -> Option<Layout> {
    Layout::from_size_align(size.checked_add(HEAD)?, HEAD).ok()
}

/// Writes the head, and returns the block behind it; NULL for NULL.
///
/// # Safety
/// NULL, or memory that was given for `block(size)`.
unsafe fn finish(memory: *mut u8, size: usize) -> *mut c_void {
    if memory.is_null() {
        return ptr::null_mut();
    }
    // SAFETY: the caller's promise: the head fits.
    unsafe {
        memory.cast::<usize>().write(size);
        memory.add(HEAD).cast()
    }
}

pub(crate) unsafe fn malloc(size: usize) -> *mut c_void {
    // SAFETY: the layout is not empty, and is that of a block.
    block(size).map_or(ptr::null_mut(), |layout| unsafe { finish(alloc(layout), size) })
}

pub(crate) unsafe fn calloc(count: usize, size: usize) -> *mut c_void {
    let Some(size) = count.checked_mul(size) else { return ptr::null_mut() };
    // SAFETY: as in `malloc`.
    block(size).map_or(ptr::null_mut(), |layout| unsafe { finish(alloc_zeroed(layout), size) })
}

/// # Safety
/// NULL or a live block of this allocator.
pub(crate) unsafe fn realloc(address: *mut c_void, size: usize) -> *mut c_void {
    if address.is_null() {
        // SAFETY: none is needed.
        return unsafe { malloc(size) };
    }
    // SAFETY: the caller's promise: the block has a head, and its layout.
    unsafe {
        let (Some(old), Some(new)) = (block(block_bytes(address)), block(size)) else { return ptr::null_mut() };
        finish(alloc::alloc::realloc(address.cast::<u8>().sub(HEAD), old, new.size()), size)
    }
}

/// # Safety
/// NULL or a live block of this allocator, which nothing uses any more.
pub(crate) unsafe fn free(address: *mut c_void) {
    // SAFETY: the caller's promise: the block has a head.
    if let Some(layout) = block(unsafe { block_bytes(address) }).filter(|_| !address.is_null()) {
        // SAFETY: as above, and its layout.
        unsafe { dealloc(address.cast::<u8>().sub(HEAD), layout) };
    }
}

/// Bytes of a block.
///
/// # Safety
/// NULL or a live block of [`malloc`].
pub(crate) unsafe fn block_bytes(block: *mut c_void) -> usize {
    // SAFETY: the caller's promise: the block has a head.
    if block.is_null() { 0 } else { unsafe { block.cast::<u8>().sub(HEAD).cast::<usize>().read() } }
}

/// There is one thread, without a name.
pub(crate) fn thread() -> Thread {
    (1, [0; 16])
}

#[cfg(target_os = "unknown")]
#[link(wasm_import_module = "obmalloc")]
unsafe extern "C" {
    #[link_name = "seconds"]
    fn imported_seconds() -> f64;
}

/// Seconds since some fixed moment, from the embedder (the import `seconds` of the module `obmalloc`).
#[cfg(target_os = "unknown")]
pub(crate) fn seconds() -> f64 {
    // SAFETY: takes nothing, gives a number.
    unsafe { imported_seconds() }
}

/// Seconds since some fixed moment.
#[cfg(not(target_os = "unknown"))]
pub(crate) fn seconds() -> f64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists, and the struct is ours.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}
