//! C's allocator as a table of functions. The checker, which is another library, includes this file too.

use std::ffi::{c_int, c_void};

/// What a pointer to C's memory is.
pub type Memory = *mut c_void;

/// C's functions, each with one argument more: the return address of the call. C's own functions ignore it.
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
    /// `valloc(size)`
    pub valloc: unsafe extern "C" fn(usize, usize) -> Memory,
    /// `pvalloc(size)`
    pub pvalloc: unsafe extern "C" fn(usize, usize) -> Memory,
    /// `aligned_alloc(alignment, size)`
    pub aligned_alloc: unsafe extern "C" fn(usize, usize, usize) -> Memory,
    /// `posix_memalign(into, alignment, size)`
    pub posix_memalign: unsafe extern "C" fn(*mut Memory, usize, usize, usize) -> c_int,
}

/// `obmalloc_libc_watch`: from now on, every call of C's allocator in this process goes to `ours`. Returns the functions that did the work until
/// then. `None`, with nothing changed, if calls do not come to this library, as in a program with a `malloc` of its own.
pub type Watch = unsafe extern "C" fn(ours: &'static Functions) -> Option<&'static Functions>;
