//! What lies between JavaScript and a function of ours: fetches the arguments, catches panics, throws failures.

use std::any::type_name;
use std::ffi::CStr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::thread;

use napi_sys as sys;

use crate::engine::under_way;
use crate::face::Realm;
use crate::failure::{Failure, code};
use crate::js::{Env, Outcome, UNDEFINED, Value};
use crate::probe::{declared, know, reached};

/// What a realm chooses, and functions are called with.
pub(crate) trait Chosen {
    /// Whether there may be something to find after a call that went well.
    fn needs_attention(&self) -> bool;
    /// What was found during a call that could not say so.
    fn take_fault(&self) -> Option<Failure>;
    /// Tells of what no call can throw.
    fn tell(&self, failure: Failure);
    /// A call has panicked: why every later one fails.
    fn broke(&self) -> Failure;
}

/// A function that knows what has been chosen.
pub(crate) trait Method<const N: usize, C>: Fn(&C, Env, [Value; N]) -> Outcome + Copy {}
impl<const N: usize, C, F: Fn(&C, Env, [Value; N]) -> Outcome + Copy> Method<N, C> for F {}

/// A function of the module.
pub(crate) trait Export<const N: usize>: Fn(&Realm, Env, [Value; N]) -> Outcome + Copy {}
impl<const N: usize, F: Fn(&Realm, Env, [Value; N]) -> Outcome + Copy> Export<N> for F {}

/// A value of a type that is a function item, and so has no bytes.
#[inline(always)]
fn item<F: Copy>() -> F {
    const { assert!(size_of::<F>() == 0, "a function item, not a closure with state or a function pointer") };
    // SAFETY: the type has no bytes, and a value of it was given when the function was made.
    unsafe { ptr::NonNull::<F>::dangling().as_ptr().read() }
}

/// The arguments, and the realm of the function: missing arguments become undefined, further ones are left out.
///
/// # Safety
/// Called from a callback with its own environment and info, of a function that has a realm.
#[inline(always)]
unsafe fn arguments<'a, const N: usize>(env: sys::napi_env, info: sys::napi_callback_info) -> ([Value; N], Env, &'a Realm) {
    let (mut values, mut count, mut data) = ([ptr::null_mut(); N], N, ptr::null_mut());
    // SAFETY: the caller's promise; the environment has the realm.
    unsafe {
        sys::napi_get_cb_info(env, info, &mut count, values.as_mut_ptr(), ptr::null_mut(), &mut data);
        (values, Env::new(env), &*data.cast_const().cast::<Realm>())
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
    // SAFETY: all that is ever chosen is of one type, and this has not been dropped: its handle, which is the last argument, keeps it during
    // the call.
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

/// The end of a call of a heap's that did not go well, or where more is to be looked at.
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

/// Why a call of a heap's is to throw, if it is.
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

/// Throws, unless the execution is being terminated: then that goes on.
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

/// An invariant does not hold.
#[cold]
pub(crate) fn internal() -> Failure {
    Failure::new(code::INTERNAL, "a broken invariant of obmalloc itself; the heap cannot be used any more")
}

/// Where functions are made: what each is given, and the object that it is added to.
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

/// Adds a function of the heap that has been chosen, a line of a table in `calls`. After the arguments comes what keeps the heap, at which nothing
/// looks. The types in `src/native.ts` are these, which a test holds them to.
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
