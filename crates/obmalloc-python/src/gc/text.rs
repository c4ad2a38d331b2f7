//! What the collector writes to standard error (`gc.set_debug`).

use std::ffi::CStr;
use std::ptr;

use super::ffi::{self, MethodDef, Pointer, TypeSlot, TypeSpec};
use super::types;

/// Takes the place of `sys.stderr`, and hands the text on. Writing to it allocates nothing.
pub struct Stderr {
    before: Pointer,
}

static mut WRITE: MethodDef =
    MethodDef { name: c"write".as_ptr(), function: write as *const std::ffi::c_void, flags: ffi::METH_O, doc: ptr::null() };

/// The bound method that every look-up gives.
static mut WRITE_METHOD: Pointer = ptr::null_mut();

unsafe extern "C" fn write(_: Pointer, text: Pointer) -> Pointer {
    let mut size = 0;
    // SAFETY: CPython gives a str.
    let text = unsafe {
        let bytes = ffi::checked(ffi::PyUnicode_AsUTF8AndSize(text, &mut size).cast_mut().cast(), "a text");
        std::slice::from_raw_parts(bytes.cast::<u8>(), size as usize)
    };
    types::current(|_, session| session.text(&String::from_utf8_lossy(text)));
    ffi::returned_none()
}

unsafe extern "C" fn get_attribute(_: Pointer, _: Pointer) -> Pointer {
    // SAFETY: set before the object was made.
    unsafe {
        ffi::Py_IncRef(WRITE_METHOD);
        WRITE_METHOD
    }
}

const NAME: &CStr = c"stderr";

impl Stderr {
    /// Replaces `sys.stderr`.
    pub fn replace() -> Self {
        let slots = [
            TypeSlot { slot: ffi::TP_GETATTRO, function: get_attribute as *const std::ffi::c_void },
            TypeSlot { slot: 0, function: ptr::null() },
        ];
        let mut spec = TypeSpec {
            name: c"proof.stderr".as_ptr(),
            basicsize: 16,
            itemsize: 0,
            flags: ffi::TPFLAGS_HAVE_VERSION_TAG,
            slots: slots.as_ptr(),
        };
        // SAFETY: the GIL is held, and the definitions stay.
        unsafe {
            WRITE_METHOD = ffi::checked(ffi::PyCFunction_NewEx(&raw mut WRITE, ptr::null_mut(), ptr::null_mut()), "write");
            let kind = ffi::checked(ffi::PyType_FromSpec(&mut spec), "PyType_FromSpec");
            let before = ffi::PySys_GetObject(NAME.as_ptr());
            ffi::Py_IncRef(before);
            ffi::PySys_SetObject(NAME.as_ptr(), ffi::checked(ffi::PyType_GenericAlloc(kind, 0), "an object"));
            Self { before }
        }
    }

    /// Puts the old one back.
    pub fn restore(&self) {
        // SAFETY: the GIL is held.
        unsafe { ffi::PySys_SetObject(NAME.as_ptr(), self.before) };
    }
}
