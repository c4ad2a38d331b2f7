//! What the loader of the WebAssembly module calls (`src/wasm.ts`).

use std::ffi::c_void;
use std::ptr;

use napi_sys as sys;

use crate::engine::under_way::{callbacks, refuse};

/// Called by the loader, once per instance.
///
/// # Safety
/// Called by the loader only.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn napi_register_wasm_v1(env: sys::napi_env, exports: sys::napi_value) -> sys::napi_value {
    std::panic::set_hook(Box::new(|panic| refuse(&panic.to_string())));
    // SAFETY: the caller's promise; it catches panics, which cannot be here.
    unsafe { crate::napi_register_module_v1(env, exports) }
}

/// JavaScript's calls that are under way, for the loader, which knows how many there are.
#[unsafe(no_mangle)]
pub extern "C" fn callbacks_under_way() -> u32 {
    callbacks()
}

/// Emnapi asks for memory where it would copy an array; none is given, because copying is done by [`bytes`](crate::bytes).
#[unsafe(no_mangle)]
pub extern "C" fn malloc(_: usize) -> *mut c_void {
    ptr::null_mut()
}

/// Nothing has been given.
#[unsafe(no_mangle)]
pub extern "C" fn free(_: *mut c_void) {}
