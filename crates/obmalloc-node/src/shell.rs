//! The shell around each native function: it fetches the arguments, catches panics and throws failures.

use std::any::type_name;
use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::thread;

use napi_sys as sys;

use crate::engine::under_way;
use crate::face::Realm;
use crate::failure::{Failure, code};
use crate::js::{Env, Outcome, UNDEFINED, Value};
use crate::probe::{declared, know, reached};

/// A thing that a realm chooses, and that methods are called with: a heap.
pub(crate) trait Chosen {
    /// Whether a call that went well may have left a fault.
    fn needs_attention(&self) -> bool;
    /// The fault that was found during a call that could not return it.
    fn take_fault(&self) -> Option<Failure>;
    /// Reports a failure that no call can throw.
    fn tell(&self, failure: Failure);
    /// Called when a call has panicked. Returns the failure of every later call.
    fn broke(&self) -> Failure;
}

/// A function of the chosen thing.
pub(crate) trait Method<const N: usize, C>: Fn(&C, Env, [Value; N]) -> Outcome + Copy {}
impl<const N: usize, C, F: Fn(&C, Env, [Value; N]) -> Outcome + Copy> Method<N, C> for F {}

/// A function of the module.
pub(crate) trait Export<const N: usize>: Fn(&Realm, Env, [Value; N]) -> Outcome + Copy {}
impl<const N: usize, F: Fn(&Realm, Env, [Value; N]) -> Outcome + Copy> Export<N> for F {}

/// A value of the type of a function item, which has no bytes.
#[inline(always)]
fn item<F: Copy>() -> F {
    const { assert!(size_of::<F>() == 0, "a function item, not a closure with state or a function pointer") };
    // SAFETY: the type has no bytes, and a value of it was given when the function was made.
    unsafe { ptr::NonNull::<F>::dangling().as_ptr().read() }
}

/// The arguments, and the realm of the function. Missing arguments become undefined, further ones are left out.
///
/// # Safety
/// Called from a callback with its own environment and info, of a function that has a realm.
#[inline(always)]
unsafe fn arguments<'a, const N: usize>(env: sys::napi_env, info: sys::napi_callback_info) -> ([Value; N], Env, &'a Realm) {
    // Not initialised: some processors expect a load to give what was last stored there by name, and the call stores something else.
    let (mut values, mut data, mut count) = (MaybeUninit::<[Value; N]>::uninit(), MaybeUninit::uninit(), N);
    // SAFETY: the caller's promise; the call cannot fail, and sets all `N` values and the data, which is the realm.
    unsafe {
        sys::napi_get_cb_info(env, info, &mut count, values.as_mut_ptr().cast(), ptr::null_mut(), data.as_mut_ptr());
        (values.assume_init(), Env::new(env), &*data.assume_init().cast_const().cast::<Realm>())
    }
}

unsafe extern "C" fn method_shell<const N: usize, C: Chosen, F: Method<N, C>>(
    env: sys::napi_env,
    info: sys::napi_callback_info,
) -> Value {
    under_way::begin();
    // SAFETY: Node.js calls this for a function that `method` made.
    let (values, env, realm) = unsafe { arguments::<N>(env, info) };
    let Some(core) = realm.chosen() else {
        env.throw_plainly(c"ERR_INTERNAL", c"expected a heap that has been chosen");
        under_way::end();
        return UNDEFINED;
    };
    // SAFETY: all chosen things are of one type. This one has not been dropped, because its handle, the last argument, keeps it during the
    // call.
    let core = unsafe { core.cast::<C>().as_ref() };
    let done = catch_unwind(AssertUnwindSafe(|| {
        reached(type_name::<F>());
        item::<F>()(core, env, values)
    }));
    let done = match done {
        Ok(Ok(value)) if realm.is_ended() || core.needs_attention() => Ok(Ok(value)),
        Ok(Ok(value)) => {
            under_way::end();
            return value;
        }
        Ok(Err(failure)) => Ok(Err(failure)),
        Err(panic) => Err(panic),
    };
    let value = end(core, env, realm, done);
    under_way::end();
    value
}

/// Ends a method's call that failed, or after which there may be a fault.
#[cold]
fn end(core: &impl Chosen, env: Env, realm: &Realm, done: thread::Result<Outcome>) -> Value {
    match done {
        Ok(Ok(value)) if !realm.is_ended() => match core.take_fault() {
            None => value,
            found => throw(env, realm, found),
        },
        done => throw(env, realm, why(core, done)),
    }
}

/// The failure that a method's call throws, if there is one.
#[cold]
fn why(core: &impl Chosen, done: thread::Result<Outcome>) -> Option<Failure> {
    match done {
        Ok(Ok(_)) => None,
        Ok(Err(failure)) => {
            if let Some(found) = core.take_fault() {
                core.tell(found);
            }
            Some(failure)
        }
        Err(_) => Some(core.broke()),
    }
}

/// Throws. If the execution is being terminated, that goes on instead.
#[cold]
fn throw(env: Env, realm: &Realm, failure: Option<Failure>) -> Value {
    if let (Some(failure), false) = (failure, realm.is_ended()) {
        realm.throw(env, failure);
    }
    if realm.is_ended() {
        realm.terminate(env);
    }
    UNDEFINED
}

unsafe extern "C" fn export_shell<const N: usize, F: Export<N>>(env: sys::napi_env, info: sys::napi_callback_info) -> Value {
    under_way::begin();
    // SAFETY: Node.js calls this for a function that `export` made.
    let (values, env, realm) = unsafe { arguments::<N>(env, info) };
    let done = catch_unwind(AssertUnwindSafe(|| {
        reached(type_name::<F>());
        item::<F>()(realm, env, values)
    }));
    let value = match done {
        Ok(Ok(value)) if !realm.is_ended() => value,
        done => throw(env, realm, done.unwrap_or_else(|_| Err(internal())).err()),
    };
    under_way::end();
    value
}

/// The failure for a broken invariant.
#[cold]
pub(crate) fn internal() -> Failure {
    Failure::new(code::INTERNAL, "a broken invariant of obmalloc itself; the heap cannot be used any more")
}

/// Adds functions of one realm to one object.
#[derive(Clone, Copy)]
pub(crate) struct Table<'a> {
    pub env: Env,
    pub realm: &'a Realm,
    pub object: Value,
}

impl Table<'_> {
    fn add(self, name: &CStr, callback: sys::napi_callback) -> Result<(), Failure> {
        let data = ptr::from_ref(self.realm).cast_mut().cast();
        self.env.define(self.object, name, self.env.function(name, callback, data)?)
    }
}

/// Adds a function of the module.
pub(crate) fn export<const N: usize, F: Export<N>>(to: Table<'_>, name: &CStr, _: F) -> Result<(), Failure> {
    know(type_name::<F>());
    to.add(name, Some(export_shell::<N, F>))
}

/// Adds a method of the chosen heap, which is a line of a table in `calls`. After the arguments the face passes the heap's handle, which nothing
/// reads. A test compares the types with those in `src/native.ts`.
pub(crate) fn method<const N: usize, C: Chosen, F: Method<N, C>>(
    to: Table<'_>,
    name: &CStr,
    arguments: [&'static str; N],
    result: &'static str,
    _: F,
) -> Result<(), Failure> {
    know(type_name::<F>());
    declared(name, &arguments, result);
    to.add(name, Some(method_shell::<N, C, F>))
}
