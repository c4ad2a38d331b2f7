//! Requests that Node-API does not have: terminating an execution, by V8's own functions if they are found, and in WebAssembly the time.

#[cfg(not(target_family = "wasm"))]
pub(crate) use std::time::Instant;

/// A moment, as the loader tells it.
#[cfg(target_family = "wasm")]
#[derive(Clone, Copy)]
pub(crate) struct Instant(f64);

#[cfg(target_family = "wasm")]
impl Instant {
    pub fn now() -> Self {
        #[link(wasm_import_module = "obmalloc")]
        unsafe extern "C" {
            fn seconds() -> f64;
        }
        // SAFETY: takes nothing, gives a number.
        Self(unsafe { seconds() })
    }

    pub fn duration_since(self, earlier: Self) -> std::time::Duration {
        std::time::Duration::try_from_secs_f64(self.0 - earlier.0).unwrap_or_default()
    }
}

/// Makes V8 terminate the execution of this thread as soon as it is back in JavaScript. False if the engine cannot do that. Call it only in a
/// call from JavaScript.
#[cfg(unix)]
pub(crate) fn terminate() -> bool {
    use std::ffi::{c_char, c_void};
    use std::ptr;
    use std::sync::OnceLock;

    /// `v8::Isolate::GetCurrent` and `v8::Isolate::TerminateExecution`
    type CurrentIsolate = unsafe extern "C" fn() -> *mut c_void;
    type TerminateExecution = unsafe extern "C" fn(*mut c_void);

    unsafe extern "C" {
        fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    }
    /// `RTLD_DEFAULT`: any loaded library.
    const ANY: *mut c_void = ptr::without_provenance_mut(if cfg!(target_vendor = "apple") { -2isize as usize } else { 0 });

    static FUNCTIONS: OnceLock<Option<(CurrentIsolate, TerminateExecution)>> = OnceLock::new();
    let functions = FUNCTIONS.get_or_init(|| {
        // SAFETY: either V8's public functions of these names, or nothing. Their types have not changed since there are addons.
        unsafe {
            let current = dlsym(ANY, c"_ZN2v87Isolate10GetCurrentEv".as_ptr());
            let terminate = dlsym(ANY, c"_ZN2v87Isolate18TerminateExecutionEv".as_ptr());
            if current.is_null() || terminate.is_null() {
                return None;
            }
            let current = std::mem::transmute::<*mut c_void, CurrentIsolate>(current);
            Some((current, std::mem::transmute::<*mut c_void, TerminateExecution>(terminate)))
        }
    });
    let Some((current, terminate)) = functions else { return false };
    // SAFETY: this is called from JavaScript, so this thread has an isolate, which may be terminated at any time.
    unsafe { terminate(current()) };
    true
}

/// The names of these functions on Windows have not been tried, and WebAssembly has none.
#[cfg(not(unix))]
pub(crate) fn terminate() -> bool {
    false
}

/// Counts the module's calls that are under way, and the callbacks inside them.
///
/// Nothing unwinds in WebAssembly. If a call ends in its middle (the stack is full, a script's time is over, an invariant is broken), all stays
/// as it was at that moment, and the module cannot be used any more. The count shows it, because the call stays counted.
#[cfg(target_family = "wasm")]
pub(crate) mod under_way {
    use std::cell::Cell;

    thread_local! {
        static CALLS: Cell<u32> = const { Cell::new(0) };
        static CALLBACKS: Cell<u32> = const { Cell::new(0) };
    }

    #[link(wasm_import_module = "obmalloc")]
    unsafe extern "C" {
        /// Throws.
        fn broken(message: *const u8, length: usize) -> !;
    }

    /// Throws an error that says why the module has to be loaded anew.
    pub fn refuse(message: &str) -> ! {
        // SAFETY: the text is there until the loader throws.
        unsafe { broken(message.as_ptr(), message.len()) }
    }

    /// Notes that a call begins.
    pub fn begin() {
        check();
        CALLS.set(CALLS.get() + 1);
    }

    pub fn end() {
        CALLS.set(CALLS.get() - 1);
    }

    /// Runs a closure that calls JavaScript.
    pub fn outside<T>(run: impl FnOnce() -> T) -> T {
        CALLBACKS.set(CALLBACKS.get() + 1);
        let result = run();
        check();
        CALLBACKS.set(CALLBACKS.get() - 1);
        result
    }

    /// Callbacks under way.
    pub fn callbacks() -> u32 {
        CALLBACKS.get()
    }

    /// Whether a call can begin, while the loader counts so many callbacks under way.
    pub fn may_begin(callbacks: u32) -> bool {
        CALLS.get() == callbacks && CALLBACKS.get() == callbacks
    }

    fn check() {
        if CALLS.get() != CALLBACKS.get() {
            refuse("an earlier call was ended in its middle");
        }
    }
}

/// Natively each call ends.
#[cfg(not(target_family = "wasm"))]
pub(crate) mod under_way {
    #[inline(always)]
    pub fn begin() {}

    #[inline(always)]
    pub fn end() {}

    #[inline(always)]
    pub fn outside<T>(run: impl FnOnce() -> T) -> T {
        run()
    }
}
