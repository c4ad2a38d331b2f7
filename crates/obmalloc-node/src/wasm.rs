//! The functions that the loader of the WebAssembly module (`src/wasm.ts`) calls.

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
    // SAFETY: the caller's promise.
    unsafe { crate::napi_register_module_v1(env, exports) }
}

/// How many calls of JavaScript are under way. The loader compares this with its own count.
#[unsafe(no_mangle)]
pub extern "C" fn callbacks_under_way() -> u32 {
    callbacks()
}

/// Emnapi would ask for memory to copy an array. It gets none, because [`bytes`](crate::bytes) copies.
#[unsafe(no_mangle)]
pub extern "C" fn malloc(_: usize) -> *mut c_void {
    ptr::null_mut()
}

/// Does nothing, because `malloc` gives nothing.
#[unsafe(no_mangle)]
pub extern "C" fn free(_: *mut c_void) {}
