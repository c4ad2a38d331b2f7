//! The Node.js binding: numbers in, numbers out, errors to JavaScript. Leans on `obmalloc` and Node-API; the face over it is `src/`.
//!
//! It uses Node-API directly (napi-rs' `napi-sys`). All heaps share the functions, and the face says before each call which heap it is about, so a
//! call unwraps and allocates nothing. Every function that JavaScript can call is made by `shell`, which catches panics.

mod args;
mod bytes;
mod calls;
mod core;
mod engine;
mod face;
mod failure;
mod hooks;
#[cfg(feature = "panics")]
mod injected;
mod js;
mod lifetime;
#[cfg(feature = "planted")]
mod planted;
mod probe;
mod shell;
#[cfg(target_family = "wasm")]
mod wasm;
mod watch;

use napi_sys as sys;

use face::Realm;
use failure::Failure;
use js::Env;
use shell::{Table, export};

/// Called by Node.js when the addon is loaded, once per thread of JavaScript.
///
/// # Safety
/// Called by Node.js only.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn napi_register_module_v1(env: sys::napi_env, exports: sys::napi_value) -> sys::napi_value {
    #[cfg(windows)]
    {
        // Windows cannot link functions of an unknown executable, so they are looked up in the running one, before the first is called.
        static NODE_API: std::sync::Once = std::sync::Once::new();
        // SAFETY: one thread writes the functions' addresses, and others wait for it. The executable stays.
        NODE_API.call_once(|| std::mem::forget(unsafe { sys::setup() }));
    }
    // SAFETY: Node.js calls this on the environment's own thread.
    let env = unsafe { Env::new(env) };
    // If a function could not be added, the face reports that the binding is not whole.
    let _ = std::panic::catch_unwind(|| add_all(env, exports));
    exports
}

fn add_all(env: Env, exports: js::Value) -> Result<(), Failure> {
    let realm = Realm::of_environment(env)?;
    let to = Table { env, realm: &realm, object: exports };
    #[cfg(feature = "panics")]
    injected::exports(to)?;
    #[cfg(feature = "planted")]
    planted::exports(to)?;
    export(to, c"bind", bind)
}

/// Makes the functions of the binding for one copy of the face.
fn bind(realm: &Realm, env: Env, []: [js::Value; 0]) -> js::Outcome {
    let to = Table { env, realm: &realm.another(), object: env.object()? };
    #[cfg(target_family = "wasm")]
    wasm::made(to.realm);
    export(to, c"serve", face::serve)?;
    export(to, c"open", lifetime::open)?;
    export(to, c"choose", face::choose)?;
    export(to, c"releaseOf", lifetime::release_of)?;
    export(to, c"identity", identity)?;
    export(to, c"externalMemory", external_memory)?;
    export(to, c"trimMemory", trim_memory)?;
    #[cfg(feature = "traces")]
    calls::traces::exports(to)?;
    calls::methods(to)?;
    env.define(to.object, c"chosen", to.realm.chooser(env)?)?;
    // An object that refers to this cannot be posted to another thread.
    env.define(to.object, c"external", env.external(std::ptr::null_mut(), None)?)?;
    env.freeze(to.object)?;
    Ok(to.object)
}

/// For the tests: the bytes that V8 knows of in this thread, from all code.
fn external_memory(_: &Realm, env: Env, []: [js::Value; 0]) -> js::Outcome {
    env.number(env.adjust_external_memory(0) as f64)
}

/// For the tests: makes the C library give unused memory back to the system (`malloc_trim`).
fn trim_memory(_: &Realm, _: Env, []: [js::Value; 0]) -> js::Outcome {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> std::ffi::c_int;
        }
        // SAFETY: glibc's function, which may be called at any time.
        unsafe { malloc_trim(0) };
    }
    Ok(js::UNDEFINED)
}

/// For the benchmark: the cheapest possible call that takes a number and returns one.
fn identity(_: &Realm, env: Env, [value]: [js::Value; 1]) -> js::Outcome {
    let number = env.double(value).unwrap_or(f64::NAN);
    env.number(number)
}
