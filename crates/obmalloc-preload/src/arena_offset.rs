//! Arenas off their natural boundary, for tests. An arena's address decides how many pools it has and which nodes the arena map needs, but
//! the system only gives whole pages.
//!
//! With `OBMALLOC_TRACE_ARENA_OFFSET` set, arenas begin that many bytes after a multiple of 64 KiB.

use crate::python::SetOnce;
use obmalloc::ArenaAllocator;
use std::ffi::c_void;

/// Smaller requests to the arena allocator are not for arenas.
const SMALLEST_ARENA: usize = 64 << 10;
/// The offset counts from a multiple of this; it is a multiple of every pool size.
const BOUNDARY: usize = 64 << 10;
/// Room before the arena for the address that the system gave.
const WORD: usize = size_of::<usize>();

static OFFSET: SetOnce<usize> = SetOnce::new();

/// Reads the offset from the environment: a number of bytes below 64 KiB, a multiple of 16.
pub fn set_up() {
    let text = std::env::var("OBMALLOC_TRACE_ARENA_OFFSET").unwrap_or_default();
    let offset = text.parse().ok().filter(|offset| *offset < BOUNDARY && offset % 16 == 0).unwrap_or(0);
    // SAFETY: called once, before the hooks are installed.
    unsafe { OFFSET.set(offset) };
}

fn offset_for(size: usize) -> Option<usize> {
    // SAFETY: set before the hooks were installed.
    let offset = *unsafe { OFFSET.get() };
    (offset != 0 && size >= SMALLEST_ARENA).then_some(offset)
}

/// # Safety
/// As for the allocator's own `alloc`.
pub unsafe fn alloc(inner: &ArenaAllocator, size: usize) -> *mut c_void {
    let Some(offset) = offset_for(size) else {
        // SAFETY: the caller's promise.
        return unsafe { (inner.alloc)(inner.ctx, size) };
    };
    // SAFETY: the caller's promise; the arena and the word before it lie in what was given, which is larger by all that can be skipped.
    unsafe {
        let given = (inner.alloc)(inner.ctx, size + 2 * BOUNDARY).cast::<u8>();
        if given.is_null() {
            return given.cast();
        }
        let skip = (given as usize + WORD).next_multiple_of(BOUNDARY) - given as usize + offset;
        let arena = given.add(skip);
        arena.sub(WORD).cast::<*mut u8>().write_unaligned(given);
        arena.cast()
    }
}

/// # Safety
/// As for the allocator's own `free`; `address` is what [`alloc`] gave.
pub unsafe fn free(inner: &ArenaAllocator, address: *mut c_void, size: usize) {
    // SAFETY: the caller's promise; the word before an arena holds what the system gave.
    unsafe {
        if address.is_null() || offset_for(size).is_none() {
            return (inner.free)(inner.ctx, address, size);
        }
        let given = address.cast::<u8>().sub(WORD).cast::<*mut u8>().read_unaligned();
        (inner.free)(inner.ctx, given.cast(), size + 2 * BOUNDARY);
    }
}
