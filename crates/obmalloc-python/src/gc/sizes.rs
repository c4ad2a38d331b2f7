//! What `PyType_GenericAlloc` of this CPython requests, seen through an allocator that is put around its own.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{CString, c_void};
use std::ptr;

use obmalloc::{Allocator, Domain};
use obmalloc_proof::{CLASSES, Class, Size};

use super::ffi;
use crate::cpython;

/// An allocator, and the blocks that it gave.
struct Watched {
    inner: Allocator,
    blocks: RefCell<Vec<(usize, usize)>>,
}

unsafe fn watched<'a>(ctx: *mut c_void) -> &'a Watched {
    // SAFETY: the context of the allocator below, which is in place no longer than that lives.
    unsafe { &*ctx.cast() }
}

impl Watched {
    fn note(&self, block: *mut c_void, size: usize) -> *mut c_void {
        self.blocks.borrow_mut().push((block as usize, size));
        block
    }
}

unsafe extern "C-unwind" fn malloc(ctx: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: CPython calls the allocator with its context.
    let this = unsafe { watched(ctx) };
    // SAFETY: as CPython would.
    this.note(unsafe { (this.inner.malloc)(this.inner.ctx, size) }, size)
}

unsafe extern "C-unwind" fn calloc(ctx: *mut c_void, count: usize, size: usize) -> *mut c_void {
    // SAFETY: as above.
    let this = unsafe { watched(ctx) };
    // SAFETY: as above.
    this.note(unsafe { (this.inner.calloc)(this.inner.ctx, count, size) }, count * size)
}

unsafe extern "C-unwind" fn realloc(ctx: *mut c_void, address: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: as above.
    unsafe { (watched(ctx).inner.realloc)(watched(ctx).inner.ctx, address, size) }
}

unsafe extern "C-unwind" fn free(ctx: *mut c_void, address: *mut c_void) {
    // SAFETY: as above.
    unsafe { (watched(ctx).inner.free)(watched(ctx).inner.ctx, address) }
}

fn size_of_first(class: &Class) -> Size {
    let python = CString::new(class.python).expect("no NUL in a statement");
    // SAFETY: the GIL is held.
    let kind = unsafe {
        assert_eq!(ffi::PyRun_SimpleStringFlags(python.as_ptr(), ptr::null_mut()), 0, "{}", class.python);
        let main = ffi::checked(ffi::PyImport_ImportModule(c"__main__".as_ptr()), "import __main__");
        ffi::checked(ffi::PyObject_GetAttrString(main, c"C".as_ptr()), "the class")
    };
    let inner = cpython::allocator(Domain::Obj);
    let watched = Watched { inner, blocks: RefCell::default() };
    let mut outer = Allocator { ctx: (&raw const watched).cast_mut().cast(), malloc, calloc, realloc, free };
    // SAFETY: blocks are the inner allocator's all the time, and nothing else runs meanwhile. What is made is not given back: it is not
    // whole, as its class would have it.
    let object = unsafe {
        cpython::PyMem_SetAllocator(Domain::Obj as i32, &mut outer);
        let object = ffi::PyType_GenericAlloc(kind, class.nitems as isize);
        cpython::PyMem_SetAllocator(Domain::Obj as i32, &mut watched.inner.clone());
        ffi::checked(object, "PyType_GenericAlloc")
    } as usize;
    // SAFETY: as every object of a class it is tracked, and must not be looked at.
    unsafe { ffi::PyObject_GC_UnTrack(object as *mut c_void) };
    let blocks = watched.blocks.borrow();
    let (block, size) =
        blocks.iter().find(|(block, size)| (*block..*block + *size).contains(&object)).expect("the object's block");
    [*size, object - *block]
}

/// What is requested for the first object of each class.
pub fn requested() -> BTreeMap<String, Size> {
    CLASSES.iter().map(|class| (class.name.to_owned(), size_of_first(class))).collect()
}
