//! Arguments: all of them are converted before a heap is touched, and none by calling back into JavaScript.

use napi_sys as sys;
use obmalloc::Domain;

use crate::failure::{Failure, code};
use crate::js::{Env, Value};

/// Largest integer that a JavaScript number holds exactly.
pub(crate) const MAX_SAFE_INTEGER: f64 = 9_007_199_254_740_991.0;

const SIZE: &str = "an integer from 0 to 2**53 - 1, or a BigInt from 0n to 2n**63n - 1n";
const ADDRESS: &str = "the address of a block, a safe integer";
const ADDRESS_OR_NULL: &str = "the address of a block, a safe integer, or null";

/// A number as an integer from 0 to 2**53 - 1.
#[inline(always)]
fn integer(number: f64) -> Option<usize> {
    if !(0.0..=MAX_SAFE_INTEGER).contains(&number) {
        return None;
    }
    // SAFETY: in range, so one instruction does it; `as` would look again.
    let integer: i64 = unsafe { number.to_int_unchecked() };
    (integer as f64 == number).then_some(integer as usize)
}

/// A number of bytes, or of things.
#[inline(always)]
pub(crate) fn size(env: Env, name: &'static str, value: Value) -> Result<usize, Failure> {
    match env.double(value).and_then(integer) {
        Some(size) => Ok(size),
        None => size_slowly(env, name, value),
    }
}

#[cold]
fn size_slowly(env: Env, name: &'static str, value: Value) -> Result<usize, Failure> {
    let code = match env.type_of(value) {
        sys::ValueType::napi_bigint => match env.bigint(value) {
            Some(size) if size <= isize::MAX as u64 => return Ok(size as usize),
            _ => code::OUT_OF_RANGE,
        },
        sys::ValueType::napi_number => code::OUT_OF_RANGE,
        _ => code::INVALID_ARG_TYPE,
    };
    Err(Failure::argument(code, name, SIZE, value))
}

/// A size that may be left out.
pub(crate) fn optional_size(env: Env, name: &'static str, value: Value) -> Result<Option<usize>, Failure> {
    if env.type_of(value) == sys::ValueType::napi_undefined { Ok(None) } else { size(env, name, value).map(Some) }
}

/// An address.
#[inline(always)]
pub(crate) fn address(env: Env, value: Value) -> Result<usize, Failure> {
    env.double(value).and_then(integer).ok_or_else(|| bad_address(env, value, ADDRESS))
}

/// An address or NULL, which is `null`; `0n` is one way to write it too.
#[inline(always)]
pub(crate) fn address_or_null(env: Env, value: Value) -> Result<Option<usize>, Failure> {
    match env.double(value).and_then(integer) {
        Some(address) => Ok(Some(address)),
        None => null(env, value),
    }
}

#[cold]
fn null(env: Env, value: Value) -> Result<Option<usize>, Failure> {
    match env.type_of(value) {
        sys::ValueType::napi_null => Ok(None),
        sys::ValueType::napi_bigint if env.bigint(value) == Some(0) => Ok(None),
        _ => Err(bad_address(env, value, ADDRESS_OR_NULL)),
    }
}

#[cold]
fn bad_address(env: Env, value: Value, expected: &'static str) -> Failure {
    let is_number = env.type_of(value) == sys::ValueType::napi_number;
    Failure::argument(if is_number { code::OUT_OF_RANGE } else { code::INVALID_ARG_TYPE }, "address", expected, value)
}

/// What is called by the name in `value`, of the things with these names.
pub(crate) fn one_of<T, const N: usize>(
    env: Env,
    argument: &'static str,
    value: Value,
    names: [&str; N],
    named: impl Fn(&str) -> Option<T>,
) -> Result<T, Failure> {
    let expected = || format!("one of {}", names.map(|name| format!("'{name}'")).join(", "));
    let Some(name) = env.short_text(value) else {
        return Err(Failure::argument(code::INVALID_ARG_TYPE, argument, expected(), value));
    };
    named(&name).ok_or_else(|| Failure::argument(code::OUT_OF_RANGE, argument, expected(), value))
}

/// The domain that is called `value`.
pub(crate) fn domain_named(env: Env, value: Value) -> Result<Domain, Failure> {
    let named = |name: &str| Domain::ALL.into_iter().find(|domain| domain.name() == name);
    one_of(env, "domain", value, Domain::ALL.map(Domain::name), named)
}
