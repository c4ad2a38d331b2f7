//! The GIL: releasing it for a moment, and taking it in a thread that Python did not make.
//!
//! Before 3.14, CPython ends a thread that wants the GIL while the interpreter is being finalized (`pthread_exit`), which unwinds the
//! thread. So these functions may unwind, and their callers must have nothing to drop.

use crate::python::{self, symbol};
use std::ffi::{CStr, c_int, c_void};

#[derive(Clone, Copy)]
pub struct Gil {
    ensure: unsafe extern "C-unwind" fn() -> c_int,
    release: unsafe extern "C-unwind" fn(c_int),
    save: unsafe extern "C-unwind" fn() -> *mut c_void,
    restore: unsafe extern "C-unwind" fn(*mut c_void),
    is_finalizing: Option<unsafe extern "C" fn() -> c_int>,
}

impl Gil {
    pub fn find() -> Option<Self> {
        /// # Safety
        /// `F` is the type of a function of that name.
        unsafe fn function<F: Copy>(name: &CStr) -> Option<F> {
            const { assert!(size_of::<F>() == size_of::<*mut c_void>(), "a function pointer") };
            let address = symbol(name)?;
            // SAFETY: the caller's promise.
            Some(unsafe { std::mem::transmute_copy(&address) })
        }
        // SAFETY: these functions have these types in every CPython with a GIL.
        unsafe {
            Some(Self {
                ensure: function(c"PyGILState_Ensure")?,
                release: function(c"PyGILState_Release")?,
                save: function(c"PyEval_SaveThread")?,
                restore: function(c"PyEval_RestoreThread")?,
                is_finalizing: function(c"Py_IsFinalizing").or_else(|| function(c"_Py_IsFinalizing")),
            })
        }
    }

    /// Whether the interpreter is initialised and, as far as can be told, not being finalized.
    pub fn is_there(&self) -> bool {
        // SAFETY: these only read, and may be called at any time.
        unsafe { (python::api().is_initialized)() != 0 && self.is_finalizing.is_some_and(|is_finalizing| is_finalizing() == 0) }
    }

    /// Calls `call` without the GIL.
    ///
    /// # Safety
    /// This thread has the GIL. It may be ended in here, so its callers have nothing to drop.
    pub unsafe fn without(&self, call: impl FnOnce()) {
        // SAFETY: the caller's promise.
        unsafe {
            let state = (self.save)();
            call();
            (self.restore)(state);
        }
    }

    /// Calls `call` with the main interpreter's GIL, and waits for the GIL as long as necessary.
    ///
    /// # Safety
    /// This thread has no GIL, and the interpreter is initialised. It may be ended in here, so its callers have nothing to drop.
    pub unsafe fn with(&self, call: impl FnOnce()) {
        // SAFETY: the caller's promise.
        unsafe {
            let state = (self.ensure)();
            call();
            (self.release)(state);
        }
    }
}
