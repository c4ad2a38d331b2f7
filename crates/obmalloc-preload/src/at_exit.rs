//! Registers a function with `atexit`, and has the rules for calling CPython from a pending call.

use crate::python::{Object, Objects, PyMethodDef};
use std::ffi::CStr;
use std::ptr::null_mut;

impl Objects {
    /// Registers a function with `atexit`. The function registered first is called last. Returns `false` if this must be tried again at another
    /// moment. If CPython cannot do it at all, the function will not be called, and a Python error may be set.
    ///
    /// # Safety
    /// The GIL is held.
    pub unsafe fn call_at_exit(&self, definition: &'static PyMethodDef) -> bool {
        // SAFETY: the GIL is held; `set_item` steals the function.
        unsafe {
            let Some(register) = self.atexit_register() else { return false };
            let function = (self.new_function)(definition, null_mut(), null_mut());
            let arguments = if function.is_null() { null_mut() } else { (self.new_tuple)(1) };
            if !arguments.is_null() {
                (self.set_item)(arguments, 0, function);
                let result = (self.call)(register, arguments);
                if !result.is_null() {
                    (self.dec_ref)(result);
                }
                (self.dec_ref)(arguments);
            }
            (self.dec_ref)(register);
            true
        }
    }

    /// Calls `call` and puts the error indicator back as it was.
    ///
    /// # Safety
    /// The GIL is held.
    pub unsafe fn undisturbed(&self, call: impl FnOnce()) {
        let (mut kind, mut value, mut traceback) = (null_mut(), null_mut(), null_mut());
        // SAFETY: the GIL is held; what is fetched is restored.
        unsafe {
            (self.fetch_error)(&mut kind, &mut value, &mut traceback);
            call();
            (self.clear_error)();
            (self.restore_error)(kind, value, traceback);
        }
    }

    /// `atexit.register`, a new reference. `None` if it cannot be had at this moment.
    ///
    /// # Safety
    /// The GIL is held.
    unsafe fn atexit_register(&self) -> Option<Object> {
        // SAFETY: the GIL is held; what the dictionary gives is kept by it until the attribute is found.
        unsafe {
            let mut module = (self.dict_get)((self.modules)(), c"atexit".as_ptr());
            if module.is_null() {
                if self.is_importing() {
                    return None;
                }
                module = (self.import)(c"atexit".as_ptr(), null_mut(), null_mut(), null_mut(), 0);
                if module.is_null() {
                    return None;
                }
                // `sys.modules` keeps the module.
                (self.dec_ref)(module);
            }
            let register = (self.get_attribute)(module, c"register".as_ptr());
            (!register.is_null()).then_some(register)
        }
    }

    /// Whether this thread is in the middle of importlib's own code. A thread must not enter some of it twice (its module locks: 3.11 dies of a
    /// KeyError).
    ///
    /// # Safety
    /// The GIL is held.
    unsafe fn is_importing(&self) -> bool {
        // SAFETY: the GIL is held; the frame is kept by who runs it, the others are given back.
        unsafe {
            let frame = (self.frame)();
            if frame.is_null() {
                return false;
            }
            let code = (self.get_attribute)(frame, c"f_code".as_ptr());
            if code.is_null() {
                return true;
            }
            let file = (self.get_attribute)(code, c"co_filename".as_ptr());
            (self.dec_ref)(code);
            if file.is_null() {
                return true;
            }
            let text = (self.text_of)(file);
            let importing = !text.is_null() && CStr::from_ptr(text).to_bytes().starts_with(b"<frozen importlib");
            (self.dec_ref)(file);
            importing
        }
    }
}
