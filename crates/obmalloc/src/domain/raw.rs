//! The raw domain's own allocator: the C library's malloc (`_PyMem_RawMalloc`). Needs no lock and no heap.

use core::ffi::c_void;
use core::ptr;

use crate::allocator::Allocator;
use crate::os;

/// `PYRAW_ALLOC`
pub(crate) const ALLOCATOR: Allocator =
    Allocator { ctx: ptr::null_mut(), malloc: raw_malloc, calloc: raw_calloc, realloc: raw_realloc, free: raw_free };

unsafe extern "C-unwind" fn raw_malloc(_: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: malloc takes any size. For 0 bytes it may return NULL, which callers would take for a failure.
    unsafe { os::malloc(size.max(1)) }
}

unsafe extern "C-unwind" fn raw_calloc(_: *mut c_void, count: usize, size: usize) -> *mut c_void {
    let (count, size) = if count == 0 || size == 0 { (1, 1) } else { (count, size) };
    // SAFETY: calloc takes any sizes, and checks their product.
    unsafe { os::calloc(count, size) }
}

unsafe extern "C-unwind" fn raw_realloc(_: *mut c_void, address: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: the caller gives NULL or a block of this allocator.
    unsafe { os::realloc(address, size.max(1)) }
}

unsafe extern "C-unwind" fn raw_free(_: *mut c_void, address: *mut c_void) {
    // SAFETY: the caller gives NULL or a block of this allocator.
    unsafe { os::free(address) }
}
