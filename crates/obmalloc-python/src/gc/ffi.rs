//! What of CPython's interface the collector's driver needs. Much of it is outside the limited API, and all of it is the same from 3.8 on.

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulong, c_void};

pub type Pointer = *mut c_void;
pub type Visit = unsafe extern "C" fn(Pointer, Pointer) -> c_int;

#[repr(C)]
pub struct TypeSlot {
    pub slot: c_int,
    pub function: *const c_void,
}

#[repr(C)]
pub struct TypeSpec {
    pub name: *const c_char,
    pub basicsize: c_int,
    pub itemsize: c_int,
    pub flags: c_uint,
    pub slots: *const TypeSlot,
}

#[repr(C)]
pub struct MethodDef {
    pub name: *const c_char,
    pub function: *const c_void,
    pub flags: c_int,
    pub doc: *const c_char,
}

/// `PyWeakReference`
#[repr(C)]
pub struct Weakref {
    head: [usize; 2],
    object: Pointer,
    pub callback: Pointer,
    hash: isize,
    previous: *mut Weakref,
    pub next: *mut Weakref,
}

pub const METH_O: c_int = 8;
pub const METH_FASTCALL: c_int = 0x80;
pub const TPFLAGS_HAVE_FINALIZE: c_uint = 1;
pub const TPFLAGS_HAVE_GC: c_uint = 1 << 14;
pub const TPFLAGS_HAVE_VERSION_TAG: c_uint = 1 << 18;
pub const TP_CLEAR: c_int = 51;
pub const TP_DEALLOC: c_int = 52;
pub const TP_GETATTRO: c_int = 58;
pub const TP_TRAVERSE: c_int = 71;
pub const TP_FINALIZE: c_int = 80;

unsafe extern "C" {
    pub static mut _Py_NoneStruct: c_char;
    pub static mut PyTuple_Type: c_char;
    pub fn Py_IncRef(object: Pointer);
    pub fn Py_DecRef(object: Pointer);
    pub fn PyErr_CheckSignals() -> c_int;
    pub fn PyErr_Print();
    pub fn PyRun_SimpleStringFlags(code: *const c_char, flags: Pointer) -> c_int;
    pub fn PyImport_ImportModule(name: *const c_char) -> Pointer;
    pub fn PyObject_GetAttrString(object: Pointer, name: *const c_char) -> Pointer;
    pub fn PyObject_Call(function: Pointer, arguments: Pointer, named: Pointer) -> Pointer;
    pub fn PyObject_CallFunctionObjArgs(function: Pointer, ...) -> Pointer;
    pub fn PySys_GetObject(name: *const c_char) -> Pointer;
    pub fn PySys_SetObject(name: *const c_char, value: Pointer) -> c_int;
    pub fn PyTuple_New(size: isize) -> Pointer;
    pub fn PyTuple_SetItem(tuple: Pointer, index: isize, item: Pointer) -> c_int;
    pub fn PyTuple_GetItem(tuple: Pointer, index: isize) -> Pointer;
    pub fn PyList_Size(list: Pointer) -> isize;
    pub fn PyList_GetItem(list: Pointer, index: isize) -> Pointer;
    pub fn PyList_SetSlice(list: Pointer, low: isize, high: isize, items: Pointer) -> c_int;
    pub fn PyList_Append(list: Pointer, item: Pointer) -> c_int;
    pub fn PyDict_GetItemString(dict: Pointer, key: *const c_char) -> Pointer;
    pub fn PyLong_FromLong(value: i64) -> Pointer;
    pub fn PyLong_AsSsize_t(object: Pointer) -> isize;
    pub fn PyUnicode_AsUTF8AndSize(text: Pointer, size: *mut isize) -> *const c_char;
    pub fn PyUnicode_CompareWithASCIIString(text: Pointer, ascii: *const c_char) -> c_int;
    pub fn PyCFunction_NewEx(method: *mut MethodDef, this: Pointer, module: Pointer) -> Pointer;
    pub fn PyType_FromSpec(spec: *mut TypeSpec) -> Pointer;
    pub fn PyType_GetFlags(kind: Pointer) -> c_ulong;
    pub fn PyType_GenericAlloc(kind: Pointer, nitems: isize) -> Pointer;
    pub fn PyObject_Init(memory: Pointer, kind: Pointer) -> Pointer;
    pub fn PyObject_Malloc(size: usize) -> Pointer;
    pub fn PyObject_Free(object: Pointer);
    pub fn _PyObject_GC_New(kind: Pointer) -> Pointer;
    pub fn _PyObject_GC_NewVar(kind: Pointer, nitems: isize) -> Pointer;
    pub fn PyObject_GC_Del(object: Pointer);
    pub fn PyObject_GC_Track(object: Pointer);
    pub fn PyObject_GC_UnTrack(object: Pointer);
    pub fn PyObject_CallFinalizerFromDealloc(object: Pointer) -> c_int;
    pub fn PyObject_ClearWeakRefs(object: Pointer);
    pub fn PyWeakref_NewRef(object: Pointer, callback: Pointer) -> Pointer;
    pub fn _PyWeakref_ClearRef(reference: Pointer);
    pub fn PyWeakref_GetObject(reference: Pointer) -> Pointer;
    fn dlsym(handle: Pointer, name: *const c_char) -> Pointer;
}

pub fn none() -> Pointer {
    (&raw mut _Py_NoneStruct).cast()
}

/// A new reference to None.
pub fn returned_none() -> Pointer {
    // SAFETY: None is always there.
    unsafe { Py_IncRef(none()) };
    none()
}

/// A function or variable that not every release has.
pub fn symbol(name: &CStr) -> Option<Pointer> {
    const RTLD_DEFAULT: Pointer = std::ptr::null_mut();
    // SAFETY: a look-up by name.
    let found = unsafe { dlsym(RTLD_DEFAULT, name.as_ptr()) };
    (!found.is_null()).then_some(found)
}

/// Stops if an exception was raised: nothing that the driver calls should.
pub fn checked(result: Pointer, what: &str) -> Pointer {
    if result.is_null() {
        // SAFETY: the GIL is held.
        unsafe { PyErr_Print() };
        panic!("{what} raised an exception");
    }
    result
}
