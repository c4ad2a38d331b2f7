//! Tells which interpreter a call belongs to. From 3.12 on, an interpreter that does not share the main one's allocator has its own arenas,
//! pools and lock, so that calls of mem and obj come from several threads at once.

use crate::python::{SetOnce, symbol};
use std::ffi::{CStr, c_int, c_ulong, c_void};

/// `PyInterpreterState *`
type Interpreter = *mut c_void;

/// `Py_RTFLAGS_USE_MAIN_OBMALLOC`
const USE_MAIN_OBMALLOC: c_ulong = 1 << 5;

/// The beginning of `PyInterpreterConfig`, and more room than any release needs for the rest.
#[repr(C)]
struct Config {
    use_main_obmalloc: c_int,
    others: [c_int; 31],
}

/// How a release tells whether an interpreter uses the main one's allocator.
#[derive(Clone, Copy)]
enum Asking {
    /// `_PyInterpreterState_HasFeature`: 3.12.
    Feature(unsafe extern "C" fn(Interpreter, c_ulong) -> c_int),
    /// `_PyInterpreterConfig_InitFromState`: 3.13 and later.
    Config(unsafe extern "C" fn(*mut Config, Interpreter) -> c_int),
}

struct Interface {
    thread: unsafe extern "C" fn() -> *mut c_void,
    of_thread: unsafe extern "C" fn(*mut c_void) -> Interpreter,
    main: unsafe extern "C" fn() -> Interpreter,
    id: unsafe extern "C" fn(Interpreter) -> i64,
    asking: Asking,
}

static INTERFACE: SetOnce<Option<Interface>> = SetOnce::new();

/// Looks up the functions that [`present`] needs. Releases before 3.12 have none of them, and one allocator for all interpreters.
pub fn set_up() {
    /// # Safety
    /// `F` is the type of a function of that name.
    unsafe fn function<F: Copy>(names: &[&CStr]) -> Option<F> {
        const { assert!(size_of::<F>() == size_of::<*mut c_void>(), "a function pointer") };
        let address = names.iter().find_map(|name| symbol(name))?;
        // SAFETY: the caller's promise.
        Some(unsafe { std::mem::transmute_copy(&address) })
    }
    // SAFETY: these functions have these types in every CPython that has them. Called once, before the hooks are installed.
    unsafe {
        let asking = function(&[c"_PyInterpreterState_HasFeature"])
            .map(Asking::Feature)
            .or_else(|| function(&[c"_PyInterpreterConfig_InitFromState"]).map(Asking::Config));
        let found = || {
            Some(Interface {
                thread: function(&[c"PyThreadState_GetUnchecked", c"_PyThreadState_UncheckedGet"])?,
                of_thread: function(&[c"PyThreadState_GetInterpreter"])?,
                main: function(&[c"PyInterpreterState_Main"])?,
                id: function(&[c"PyInterpreterState_GetID"])?,
                asking: asking?,
            })
        };
        INTERFACE.set(found());
    }
}

/// The id of the interpreter whose allocator a call of mem or obj in this thread goes to; 0 for the main one.
pub fn present() -> u64 {
    // SAFETY: hooks run only once `set_up` has been called.
    let Some(interface) = (unsafe { INTERFACE.get() }) else { return 0 };
    // SAFETY: these functions only read, the thread's own state and the interpreter's that runs in it.
    unsafe {
        let thread = (interface.thread)();
        if thread.is_null() {
            return 0;
        }
        let interpreter = (interface.of_thread)(thread);
        if interpreter == (interface.main)() || interface.asking.shares(interpreter) {
            return 0;
        }
        (interface.id)(interpreter).try_into().unwrap_or(0)
    }
}

impl Asking {
    /// # Safety
    /// The interpreter runs in this thread.
    unsafe fn shares(self, interpreter: Interpreter) -> bool {
        // SAFETY: the caller's promise; the configuration has room for what is written.
        unsafe {
            match self {
                Self::Feature(has) => has(interpreter, USE_MAIN_OBMALLOC) != 0,
                Self::Config(read) => {
                    let mut config = Config { use_main_obmalloc: 1, others: [0; 31] };
                    read(&raw mut config, interpreter) != 0 || config.use_main_obmalloc != 0
                }
            }
        }
    }
}
