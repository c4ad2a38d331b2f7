//! Calls of C's allocator by every library: notes its blocks, so that C's blocks are told from those of the domains.
//!
//! The calls come through another library, which is preloaded beside this one (`obmalloc-libc`). Without it, this file does nothing. Calls
//! that a domain makes of C are part of the domain's call.
//!
//! The checker does not see all of C's blocks: some were allocated before it came, or by a library that finds C's functions in another way
//! (`RTLD_DEEPBIND`, a handle of its own). So an unknown address that is given to C's `free` is no fault.

#[path = "../../../obmalloc-libc/src/functions.rs"]
mod functions;

use super::blocks::Owner;
use super::hooks::BLOCKS;
use super::site::Site;
use super::wrong::{fault_for_c, wrong_free, wrong_realloc};
use crate::header::text_of;
use crate::inside;
use crate::python::{SetOnce, c_allocator, symbol};
use functions::{Functions, Memory, Watch};
use std::ffi::c_int;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};

static NEXT: SetOnce<&Functions> = SetOnce::new();
static WATCHED: AtomicBool = AtomicBool::new(false);

/// C's own functions, which do the work.
#[inline(always)]
pub fn next() -> &'static Functions {
    // SAFETY: the functions here are called, and blocks are C's, only once `watch` has set it.
    unsafe { NEXT.get() }
}

/// Begins to watch C's calls, if they can be seen.
pub fn watch() {
    let Some(watch) = symbol(c"obmalloc_libc_watch") else { return };
    // SAFETY: the library has a function of this type under this name. The functions given do what C's do.
    let next = unsafe { std::mem::transmute::<Memory, Watch>(watch)(&OURS) };
    if let Some(next) = next {
        // SAFETY: the process is being loaded: its one thread asks for no memory between these two.
        unsafe { NEXT.set(next) };
        WATCHED.store(true, Ordering::Relaxed);
    }
}

/// Whether C's calls come here.
pub fn is_watched() -> bool {
    WATCHED.load(Ordering::Relaxed)
}

/// The library or executable that calls of `malloc` and `free` go to.
pub fn module() -> String {
    let site = c_allocator().map(|function| Site::of(function as usize + 1));
    site.and_then(|site| site.module).map_or_else(String::new, text_of)
}

static OURS: Functions =
    Functions { malloc, calloc, realloc, reallocarray, free, memalign, valloc, pvalloc, aligned_alloc, posix_memalign };

/// Notes a block that C allocated, unless a domain asked for it.
#[inline(always)]
fn given(address: Memory, size: usize, caller: usize) -> Memory {
    if !address.is_null() && !inside::is_inside() {
        BLOCKS.put(address as usize, Owner::C, size, caller);
    }
    address
}

unsafe extern "C" fn malloc(size: usize, caller: usize) -> Memory {
    // SAFETY: passes the caller's call on.
    given(unsafe { (next().malloc)(size, caller) }, size, caller)
}

unsafe extern "C" fn calloc(count: usize, size: usize, caller: usize) -> Memory {
    // SAFETY: as in `malloc`. It returns NULL if the product is too large.
    given(unsafe { (next().calloc)(count, size, caller) }, count.wrapping_mul(size), caller)
}

unsafe extern "C" fn memalign(alignment: usize, size: usize, caller: usize) -> Memory {
    // SAFETY: as in `malloc`.
    given(unsafe { (next().memalign)(alignment, size, caller) }, size, caller)
}

unsafe extern "C" fn valloc(size: usize, caller: usize) -> Memory {
    // SAFETY: as in `malloc`.
    given(unsafe { (next().valloc)(size, caller) }, size, caller)
}

unsafe extern "C" fn pvalloc(size: usize, caller: usize) -> Memory {
    // SAFETY: as in `malloc`.
    given(unsafe { (next().pvalloc)(size, caller) }, size, caller)
}

unsafe extern "C" fn aligned_alloc(alignment: usize, size: usize, caller: usize) -> Memory {
    // SAFETY: as in `malloc`.
    given(unsafe { (next().aligned_alloc)(alignment, size, caller) }, size, caller)
}

unsafe extern "C" fn posix_memalign(into: *mut Memory, alignment: usize, size: usize, caller: usize) -> c_int {
    // SAFETY: as in `malloc`; a call that succeeds has filled `into`.
    unsafe {
        let error = (next().posix_memalign)(into, alignment, size, caller);
        if error == 0 {
            given(*into, size, caller);
        }
        error
    }
}

unsafe extern "C" fn reallocarray(address: Memory, count: usize, size: usize, caller: usize) -> Memory {
    match count.checked_mul(size) {
        // SAFETY: as in `malloc`.
        Some(size) => unsafe { realloc(address, size, caller) },
        None => {
            // SAFETY: this thread's own.
            unsafe { *libc::__errno_location() = libc::ENOMEM };
            null_mut()
        }
    }
}

unsafe extern "C" fn realloc(address: Memory, size: usize, caller: usize) -> Memory {
    if address.is_null() || inside::is_inside() {
        // SAFETY: as in `malloc`.
        return given(unsafe { (next().realloc)(address, size, caller) }, size, caller);
    }
    let before = BLOCKS.at(address as usize);
    let taken = BLOCKS.free(address as usize, Owner::C, caller);
    if !taken && let Some(fault) = fault_for_c(address as usize, caller) {
        if size == 0 {
            // As C does.
            // SAFETY: the caller's call, which was found to be wrong.
            unsafe { wrong_free(Owner::C, address, caller, &fault) };
            return null_mut();
        }
        // SAFETY: as above.
        return unsafe { wrong_realloc(Owner::C, address, size, caller, &fault) };
    }
    // SAFETY: as in `malloc`.
    let result = unsafe { (next().realloc)(address, size, caller) };
    if !result.is_null() {
        BLOCKS.put(result as usize, Owner::C, size, caller);
    } else if size != 0
        && taken
        && let Some(block) = before
    {
        BLOCKS.revive(address as usize, block.site);
    }
    result
}

unsafe extern "C" fn free(address: Memory, caller: usize) {
    if !address.is_null()
        && !inside::is_inside()
        && !BLOCKS.free(address as usize, Owner::C, caller)
        && let Some(fault) = fault_for_c(address as usize, caller)
    {
        // SAFETY: the caller's call, which was found to be wrong.
        return unsafe { wrong_free(Owner::C, address, caller, &fault) };
    }
    // SAFETY: as in `malloc`.
    unsafe { (next().free)(address, caller) };
}
