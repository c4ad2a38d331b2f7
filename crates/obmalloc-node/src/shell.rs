//! What lies between JavaScript and a function of ours: fetches the arguments, catches panics, throws failures.

use std::any::type_name;
use std::ffi::{CStr, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use napi_sys as sys;

use crate::failure::{Failure, code};
use crate::heap::{Core, State};
use crate::js::{Env, Outcome, Value};

/// A function that knows its heap.
pub(crate) trait Method<const N: usize>: Fn(&Core, Env, [Value; N]) -> Outcome + Copy {}
impl<const N: usize, F: Fn(&Core, Env, [Value; N]) -> Outcome + Copy> Method<N> for F {}

/// A function of the module.
pub(crate) trait Export<const N: usize>: Fn(Env, [Value; N]) -> Outcome + Copy {}
impl<const N: usize, F: Fn(Env, [Value; N]) -> Outcome + Copy> Export<N> for F {}

/// A value of a type that is a function item, and so has no bytes.
#[inline(always)]
fn item<F: Copy>() -> F {
    const { assert!(size_of::<F>() == 0, "a function item, not a closure with state or a function pointer") };
    // SAFETY: the type has no bytes, and a value of it was given when the function was made.
    unsafe { ptr::NonNull::<F>::dangling().as_ptr().read() }
}

#[inline(always)]
fn arguments<const N: usize>(env: sys::napi_env, info: sys::napi_callback_info) -> ([Value; N], *mut c_void) {
    let (mut values, mut count, mut data) = ([ptr::null_mut(); N], N, ptr::null_mut());
    // SAFETY: called from a callback with its own environment and info; missing arguments become undefined, further ones are left out.
    unsafe { sys::napi_get_cb_info(env, info, &mut count, values.as_mut_ptr(), ptr::null_mut(), &mut data) };
    (values, data)
}

unsafe extern "C" fn method_shell<const N: usize, F: Method<N>>(env: sys::napi_env, info: sys::napi_callback_info) -> Value {
    let (values, data) = arguments::<N>(env, info);
    // SAFETY: this is the environment's thread; the data is the heap, kept by the handle that every function of it refers to.
    let (env, core) = unsafe { (Env::new(env), &*data.cast::<Core>()) };
    match catch_unwind(AssertUnwindSafe(|| {
        reached(type_name::<F>());
        item::<F>()(core, env, values)
    })) {
        Ok(result) => match (result, core.take_fault()) {
            (Ok(value), None) => value,
            (Ok(_), Some(failure)) | (Err(failure), None) => failure.throw(env, core.error_maker(env)),
            (Err(failure), Some(found)) => {
                core.tell(found);
                failure.throw(env, core.error_maker(env))
            }
        },
        Err(_) => {
            // Out of a callback that found a broken link, the heap comes whole otherwise, and can give its memory back.
            let failure = if core.state() == State::Corrupted {
                core.unusable()
            } else {
                core.poison();
                internal()
            };
            failure.throw(env, core.error_maker(env))
        }
    }
}

unsafe extern "C" fn export_shell<const N: usize, F: Export<N>>(env: sys::napi_env, info: sys::napi_callback_info) -> Value {
    let (values, _) = arguments::<N>(env, info);
    // SAFETY: this is the environment's thread.
    let env = unsafe { Env::new(env) };
    // The first argument of such a function may be the one that makes errors.
    let error_maker = values.first().copied();
    match catch_unwind(AssertUnwindSafe(|| {
        reached(type_name::<F>());
        item::<F>()(env, values)
    })) {
        Ok(Ok(value)) => value,
        Ok(Err(failure)) => failure.throw(env, error_maker),
        Err(_) => internal().throw(env, error_maker),
    }
}

/// Where Node.js or the engine has come into our code; for the tests, which make each of these places panic.
#[inline(always)]
pub(crate) fn reached(_name: &'static str) {
    #[cfg(feature = "panics")]
    crate::injected::reached(_name);
}

/// As [`reached`], for what will be.
fn known(_name: &'static str) {
    #[cfg(feature = "panics")]
    crate::injected::know(_name);
}

#[cold]
fn internal() -> Failure {
    Failure::new(code::INTERNAL, "a broken invariant of obmalloc itself; the heap cannot be used any more")
}

/// Adds a function of the module to `exports`.
pub(crate) fn export<const N: usize, F: Export<N>>(env: Env, exports: Value, name: &CStr, _: F) -> Result<(), Failure> {
    known(type_name::<F>());
    let function = env.function(name, Some(export_shell::<N, F>), ptr::null_mut())?;
    env.set(exports, name, function)
}

/// Adds a function of the heap `core` to `target`. The function refers to `handle`, and with it keeps the heap.
pub(crate) fn method<const N: usize, F: Method<N>>(
    env: Env,
    (handle, core): (Value, *const Core),
    target: Value,
    name: &CStr,
    _: F,
) -> Result<(), Failure> {
    known(type_name::<F>());
    let function = env.function(name, Some(method_shell::<N, F>), core.cast_mut().cast())?;
    env.set(function, c"heap", handle)?;
    env.set(target, name, function)
}
