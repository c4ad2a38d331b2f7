//! CPython's memory interface. It is outside the limited API, so it is declared by hand.

use std::ffi::c_void;
use std::mem::MaybeUninit;

use obmalloc::{Allocator, Domain};

unsafe extern "C" {
    pub fn PyMem_Malloc(size: usize) -> *mut c_void;
    pub fn PyMem_Calloc(count: usize, size: usize) -> *mut c_void;
    pub fn PyMem_Realloc(address: *mut c_void, size: usize) -> *mut c_void;
    pub fn PyMem_Free(address: *mut c_void);
    pub fn PyObject_Malloc(size: usize) -> *mut c_void;
    pub fn PyObject_Calloc(count: usize, size: usize) -> *mut c_void;
    pub fn PyObject_Realloc(address: *mut c_void, size: usize) -> *mut c_void;
    pub fn PyObject_Free(address: *mut c_void);
    pub fn PyMem_SetAllocator(domain: i32, allocator: *mut Allocator);
    fn PyMem_GetAllocator(domain: i32, allocator: *mut Allocator);
}

/// The allocator that is in place in this CPython.
pub fn allocator(domain: Domain) -> Allocator {
    let mut allocator = MaybeUninit::uninit();
    // SAFETY: CPython fills in the struct, which has the layout of its own.
    unsafe {
        PyMem_GetAllocator(domain as i32, allocator.as_mut_ptr());
        allocator.assume_init()
    }
}

// pyo3 needs one function that 3.8 lacks, and never calls it there. As a weak symbol it may be missing when 3.8 loads the library. This
// works in release builds, where link-time optimisation makes one object of everything.
std::arch::global_asm!(".weak PyCMethod_New");
