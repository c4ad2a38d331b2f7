//! The Node.js binding: numbers in, numbers out, errors to JavaScript. Leans on `obmalloc` and Node-API; the face over it is `src/`.
//!
//! It is written on Node-API itself (napi-rs' `napi-sys`): a call gets its heap from the function's own data pointer, so nothing is
//! unwrapped or allocated on the way. Every function that JavaScript can call is made by [`shell`], which catches panics.

mod allocators;
mod arena;
mod args;
mod batch;
mod collector;
mod domain;
mod failure;
mod golden;
mod heap;
mod hooks;
#[cfg(feature = "panics")]
mod injected;
mod js;
mod layers;
mod objects;
mod places;
#[cfg(feature = "planted")]
mod planted;
mod replay;
mod reserve;
mod shell;
mod view;

use napi_sys as sys;

use js::Env;

#[global_allocator]
static RESERVING: reserve::Reserving = reserve::Reserving::new();

/// Called by Node.js when the addon is loaded, once per thread of JavaScript.
///
/// # Safety
/// Called by Node.js only.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn napi_register_module_v1(env: sys::napi_env, exports: sys::napi_value) -> sys::napi_value {
    // SAFETY: Node.js calls this on the environment's own thread.
    let env = unsafe { Env::new(env) };
    // What could not be added is not there, and the face says that the binding is not whole.
    let _ = std::panic::catch_unwind(|| {
        let _ = shell::export(env, exports, c"open", heap::open);
        let _ = shell::export(env, exports, c"identity", identity);
        replay::exports(env, exports);
        golden::exports(env, exports);
        #[cfg(feature = "panics")]
        injected::exports(env, exports);
        #[cfg(feature = "planted")]
        planted::exports(env, exports);
        let _ = shell::export(env, exports, c"externalMemory", external_memory);
        let _ = shell::export(env, exports, c"trimMemory", trim_memory);
    });
    exports
}

/// Bytes that V8 was told of in this thread, by whomever: for the tests.
fn external_memory(env: Env, []: [js::Value; 0]) -> js::Outcome {
    env.number(env.adjust_external_memory(0) as f64)
}

/// Has the C library give the system back what nobody uses: for the tests, which look at what is left.
fn trim_memory(_: Env, []: [js::Value; 0]) -> js::Outcome {
    unsafe extern "C" {
        fn malloc_trim(pad: usize) -> std::ffi::c_int;
    }
    // SAFETY: glibc's function, which may be called at any time.
    unsafe { malloc_trim(0) };
    Ok(js::UNDEFINED)
}

/// The cheapest call there is that takes a number and gives one: what the benchmark compares with.
fn identity(env: Env, [value]: [js::Value; 1]) -> js::Outcome {
    let number = env.double(value).unwrap_or(f64::NAN);
    env.number(number)
}
