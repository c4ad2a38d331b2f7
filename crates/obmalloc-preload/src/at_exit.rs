//! Registers a function with `atexit`, and has the rules for calling CPython from a pending call.

use crate::python::{Objects, Owned, PyMethodDef};
use std::ffi::CStr;
use std::ptr::null_mut;

impl Objects {
    /// Registers a function with `atexit`. The function registered first is called last. Returns `false` if this must be tried again at another
    /// moment. If CPython cannot do it at all, the function will not be called, and a Python error may be set.
    ///
    /// # Safety
    /// The GIL is held.
    pub unsafe fn call_at_exit(&self, definition: &'static PyMethodDef) -> bool {
        // SAFETY: the caller's promise.
        let Some(register) = (unsafe { self.atexit_register() }) else { return false };
        // SAFETY: the caller's promise; the definition stays, and the function returns a new reference.
        let function = unsafe { self.owned((self.new_function)(definition, null_mut(), null_mut())) };
        // SAFETY: the caller's promise.
        if let Some(arguments) = function.and_then(|function| unsafe { self.tuple_of(function) }) {
            // SAFETY: the caller's promise; the function returns a new reference, which is given back.
            drop(unsafe { self.owned((self.call)(register.object(), arguments.object())) });
        }
        true
    }

    /// A tuple of one item. `None` if there is no memory.
    ///
    /// # Safety
    /// The GIL is held until the result is dropped.
    unsafe fn tuple_of(&self, item: Owned<'_>) -> Option<Owned<'_>> {
        // SAFETY: the caller's promise; the function returns a new reference.
        let tuple = unsafe { self.owned((self.new_tuple)(1)) }?;
        // SAFETY: the tuple is new, and takes the reference over.
        unsafe { (self.set_item)(tuple.object(), 0, item.into_object()) };
        Some(tuple)
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

    /// `atexit.register`. `None` if it cannot be had at this moment.
    ///
    /// # Safety
    /// The GIL is held until the result is dropped.
    unsafe fn atexit_register(&self) -> Option<Owned<'_>> {
        // SAFETY: the caller's promise.
        let module = match unsafe { self.module(c"atexit") } {
            Some(module) => module,
            // SAFETY: the caller's promise.
            None if unsafe { self.is_importing() } => return None,
            // SAFETY: the caller's promise; the function returns a new reference.
            None => unsafe { self.owned((self.import)(c"atexit".as_ptr(), null_mut(), null_mut(), null_mut(), 0)) }?,
        };
        // SAFETY: the caller's promise; the module stays, because we have a reference to it.
        unsafe { self.attribute(module.object(), c"register") }
    }

    /// What `sys.modules` has under this name. We get a reference of our own: the program's code may run while the object is used, and may take
    /// it out of `sys.modules`.
    ///
    /// # Safety
    /// The GIL is held until the result is dropped.
    unsafe fn module(&self, name: &CStr) -> Option<Owned<'_>> {
        // SAFETY: the caller's promise; the dict keeps the object until other code runs.
        unsafe {
            let module = (self.dict_get)((self.modules)(), name.as_ptr());
            (self.inc_ref)(module);
            self.owned(module)
        }
    }

    /// Whether this thread is in the middle of importlib's own code. A thread must not enter some of it twice (its module locks: 3.11 dies of a
    /// KeyError).
    ///
    /// # Safety
    /// The GIL is held.
    unsafe fn is_importing(&self) -> bool {
        // SAFETY: the caller's promise.
        let frame = unsafe { (self.frame)() };
        if frame.is_null() {
            return false;
        }
        // SAFETY: the caller's promise; the frame stays, because it runs.
        let code = unsafe { self.attribute(frame, c"f_code") };
        // SAFETY: the caller's promise.
        let file = code.and_then(|code| unsafe { self.attribute(code.object(), c"co_filename") });
        file.is_none_or(|file| {
            // SAFETY: the caller's promise; the text stays as long as `file`.
            unsafe {
                let text = (self.text_of)(file.object());
                !text.is_null() && CStr::from_ptr(text).to_bytes().starts_with(b"<frozen importlib")
            }
        })
    }
}
