//! C's allocator as a table. This file is the checker's too, which is another library.

use std::ffi::{c_int, c_void};

/// What a pointer to C's memory is.
pub type Memory = *mut c_void;

/// C's functions, each with one argument more: the return address of who called. C's own functions do not look at it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Functions {
    /// `malloc(size)`
    pub malloc: unsafe extern "C" fn(usize, usize) -> Memory,
    /// `calloc(count, size)`
    pub calloc: unsafe extern "C" fn(usize, usize, usize) -> Memory,
    /// `realloc(address, size)`
    pub realloc: unsafe extern "C" fn(Memory, usize, usize) -> Memory,
    /// `reallocarray(address, count, size)`
    pub reallocarray: unsafe extern "C" fn(Memory, usize, usize, usize) -> Memory,
    /// `free(address)`
    pub free: unsafe extern "C" fn(Memory, usize),
    /// `memalign(alignment, size)`
    pub memalign: unsafe extern "C" fn(usize, usize, usize) -> Memory,
    /// `aligned_alloc(alignment, size)`
    pub aligned_alloc: unsafe extern "C" fn(usize, usize, usize) -> Memory,
    /// `posix_memalign(into, alignment, size)`
    pub posix_memalign: unsafe extern "C" fn(*mut Memory, usize, usize, usize) -> c_int,
}

/// `obmalloc_libc_watch`: has every call of C's allocator in this process come to `ours` from now on; gives the functions that did the work until then. `None`,
/// with nothing done, when calls do not come to this library, as in a program that has a `malloc` of its own.
pub type Watch = unsafe extern "C" fn(ours: &'static Functions) -> Option<&'static Functions>;
