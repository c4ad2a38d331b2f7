//! Tells which interpreter a call belongs to. From 3.12 on, an interpreter that does not share the main one's allocator has its own arenas,
//! pools and lock, so that calls of mem and obj come from several threads at once.

use crate::python::{SetOnce, interface, symbol};
use std::ffi::{c_int, c_ulong, c_void};
use std::mem::transmute;

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

type HasFeature = unsafe extern "C" fn(Interpreter, c_ulong) -> c_int;
type ReadConfig = unsafe extern "C" fn(*mut Config, Interpreter) -> c_int;

/// How a release tells whether an interpreter uses the main one's allocator.
#[derive(Clone, Copy)]
enum Asking {
    /// `_PyInterpreterState_HasFeature`: 3.12.
    Feature(HasFeature),
    /// `_PyInterpreterConfig_InitFromState`: 3.13 and later.
    Config(ReadConfig),
}

interface! {
    /// What tells an interpreter.
    Functions {
        of_thread = c"PyThreadState_GetInterpreter": fn(*mut c_void) -> Interpreter;
        main = c"PyInterpreterState_Main": fn() -> Interpreter;
        id = c"PyInterpreterState_GetID": fn(Interpreter) -> i64;
    }
}

struct Interface {
    thread: unsafe extern "C" fn() -> *mut c_void,
    functions: Functions,
    asking: Asking,
}

static INTERFACE: SetOnce<Option<Interface>> = SetOnce::new();

/// Looks up the functions that [`present`] needs. Releases before 3.12 have none of them, and one allocator for all interpreters.
pub fn set_up() {
    // SAFETY: called once, before the hooks are installed.
    unsafe { INTERFACE.set(Interface::find()) };
}

impl Interface {
    fn find() -> Option<Self> {
        let names = [c"PyThreadState_GetUnchecked", c"_PyThreadState_UncheckedGet"];
        let thread = names.into_iter().find_map(symbol)?;
        // SAFETY: a function of either name has this type.
        let thread = unsafe { transmute::<*mut c_void, unsafe extern "C" fn() -> *mut c_void>(thread) };
        Some(Self { thread, functions: Functions::find()?, asking: Asking::find()? })
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
        let interpreter = (interface.functions.of_thread)(thread);
        if interpreter == (interface.functions.main)() || interface.asking.shares(interpreter) {
            return 0;
        }
        (interface.functions.id)(interpreter).try_into().unwrap_or(0)
    }
}

impl Asking {
    fn find() -> Option<Self> {
        // SAFETY: the function of that name has this type.
        let feature = |found| Self::Feature(unsafe { transmute::<*mut c_void, HasFeature>(found) });
        // SAFETY: as above.
        let config = |found| Self::Config(unsafe { transmute::<*mut c_void, ReadConfig>(found) });
        let has_feature = symbol(c"_PyInterpreterState_HasFeature").map(feature);
        has_feature.or_else(|| symbol(c"_PyInterpreterConfig_InitFromState").map(config))
    }

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
