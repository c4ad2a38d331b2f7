//! Converts arguments. All of them are converted before a heap is touched, and no conversion calls JavaScript.

use napi_sys as sys;

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
    // The bits of positive numbers are in the order of the numbers; those of negative ones, and of NaNs, are larger.
    if number.to_bits() > MAX_SAFE_INTEGER.to_bits() {
        return negative_zero(number);
    }
    // SAFETY: in range. This is one instruction; `as` would check the range again.
    let integer: i64 = unsafe { number.to_int_unchecked() };
    (integer as f64 == number).then_some(saturated(integer as u64))
}

/// -0 is 0. Not inlined, so that the path of other numbers is straight.
#[cold]
#[inline(never)]
fn negative_zero(number: f64) -> Option<usize> {
    (number == 0.0).then_some(0)
}

/// The integer as a `usize`. Where that has 32 bits, larger integers become the largest one: no block has such a size or address.
#[inline(always)]
fn saturated(integer: u64) -> usize {
    usize::try_from(integer).unwrap_or(usize::MAX)
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
            Some(size) if i64::try_from(size).is_ok() => return Ok(saturated(size)),
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

/// The thing whose name is in `value`.
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

/// The kinds of arguments, by the names that the tables of methods use. Each function converts one value.
pub(crate) mod kinds {
    use obmalloc::{AllocatorId, Domain, FieldKind};

    use super::{Env, Failure, Value, code, one_of, sys};
    pub(crate) use super::{optional_size, size};

    /// Any value, which the method looks at itself.
    #[inline(always)]
    pub(crate) fn value(_: Env, _: &'static str, value: Value) -> Result<Value, Failure> {
        Ok(value)
    }

    /// A size, and the value that was given for it.
    pub(crate) fn given_size(env: Env, name: &'static str, value: Value) -> Result<(usize, Value), Failure> {
        size(env, name, value).map(|size| (size, value))
    }

    /// A size that may be left out, and the value that was given for it.
    pub(crate) fn optional_given_size(env: Env, name: &'static str, value: Value) -> Result<(Option<usize>, Value), Failure> {
        optional_size(env, name, value).map(|size| (size, value))
    }

    #[inline(always)]
    pub(crate) fn address(env: Env, _: &'static str, value: Value) -> Result<usize, Failure> {
        super::address(env, value)
    }

    /// An address, and the value that was given for it.
    pub(crate) fn given_address(env: Env, _: &'static str, value: Value) -> Result<(usize, Value), Failure> {
        super::address(env, value).map(|address| (address, value))
    }

    #[inline(always)]
    pub(crate) fn address_or_null(env: Env, _: &'static str, value: Value) -> Result<Option<usize>, Failure> {
        super::address_or_null(env, value)
    }

    /// The addresses in an array that the face made.
    pub(crate) fn addresses(env: Env, _: &'static str, array: Value) -> Result<Vec<usize>, Failure> {
        let length = env.length(array).unwrap_or(0);
        let mut addresses = Vec::new();
        addresses.try_reserve_exact(length as usize).map_err(|_| Failure::no_memory("no memory for the arguments"))?;
        for index in 0..length {
            addresses.push(super::address(env, env.element(array, index)?)?);
        }
        Ok(addresses)
    }

    /// The domain of that name.
    pub(crate) fn domain(env: Env, name: &'static str, value: Value) -> Result<Domain, Failure> {
        let named = |name: &str| Domain::ALL.into_iter().find(|domain| domain.name() == name);
        one_of(env, name, value, Domain::ALL.map(Domain::name), named)
    }

    /// The kind of a number in memory.
    pub(crate) fn scalar(env: Env, name: &'static str, value: Value) -> Result<FieldKind, Failure> {
        let kinds = [
            ("u8", FieldKind::U8),
            ("i32", FieldKind::I32),
            ("u32", FieldKind::U32),
            ("i64", FieldKind::I64),
            ("f64", FieldKind::F64),
        ];
        let named = |name: &str| kinds.into_iter().find_map(|(known, kind)| (known == name).then_some(kind));
        one_of(env, name, value, kinds.map(|(name, _)| name), named)
    }

    /// One of the heap's own allocators, by the number that a script has for it.
    pub(crate) fn own_allocator(env: Env, name: &'static str, value: Value) -> Result<AllocatorId, Failure> {
        size(env, name, value).map(|number| AllocatorId::Own(u32::try_from(number).unwrap_or(u32::MAX)))
    }

    /// The number of a generation, which may be left out.
    pub(crate) fn optional_generation(env: Env, name: &'static str, value: Value) -> Result<Option<usize>, Failure> {
        let code = match env.double(value) {
            _ if env.type_of(value) == sys::ValueType::napi_undefined => return Ok(None),
            Some(number) if [0.0, 1.0, 2.0].contains(&number) => return Ok(Some(number as usize)),
            Some(_) => code::OUT_OF_RANGE,
            None => code::INVALID_ARG_TYPE,
        };
        Err(Failure::argument(code, name, "0, 1 or 2", value))
    }

    /// A C int.
    pub(crate) fn int(env: Env, name: &'static str, value: Value) -> Result<i32, Failure> {
        let code = match env.double(value) {
            Some(number) if f64::from(number as i32) == number => return Ok(number as i32),
            Some(_) => code::OUT_OF_RANGE,
            None => code::INVALID_ARG_TYPE,
        };
        Err(Failure::argument(code, name, "an integer from -2**31 to 2**31 - 1", value))
    }

    /// A C int that may be left out.
    pub(crate) fn optional_int(env: Env, name: &'static str, value: Value) -> Result<Option<i32>, Failure> {
        if env.type_of(value) == sys::ValueType::napi_undefined { Ok(None) } else { int(env, name, value).map(Some) }
    }
}
