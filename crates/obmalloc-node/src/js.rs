//! The part of Node-API that the binding uses.

use std::ffi::{CStr, c_void};
use std::mem::MaybeUninit;
use std::ptr;

use napi_sys as sys;

use crate::engine::under_way;
use crate::failure::Failure;
pub(crate) use crate::failure::{Outcome, UNDEFINED, Value};
use crate::probe::touched;

/// The attributes of a property as an assignment makes it.
fn property(value: Value) -> sys::napi_property_descriptor {
    sys::napi_property_descriptor {
        utf8name: ptr::null(),
        name: ptr::null_mut(),
        method: None,
        getter: None,
        setter: None,
        value,
        attributes: sys::PropertyAttributes::writable
            | sys::PropertyAttributes::enumerable
            | sys::PropertyAttributes::configurable,
        data: ptr::null_mut(),
    }
}

/// One thread's JavaScript.
#[derive(Clone, Copy)]
pub(crate) struct Env(sys::napi_env);

/// Calls one function of Node-API.
macro_rules! napi {
    ($env:expr, $name:ident $(, $argument:expr)*) => {
        // SAFETY: the `Env` is used on the thread that made it, values come from the present call, and pointers are to live places.
        unsafe { sys::$name($env.0 $(, $argument)*) }
    };
}

impl Env {
    /// # Safety
    /// Used on the thread of `env` only, while it calls us.
    pub unsafe fn new(env: sys::napi_env) -> Self {
        Self(env)
    }

    #[inline(always)]
    fn done<T>(status: sys::napi_status, value: T) -> Result<T, Failure> {
        if status == sys::Status::napi_ok { Ok(value) } else { Err(Failure::of_status(status)) }
    }

    #[inline(always)]
    pub fn double(self, value: Value) -> Option<f64> {
        // Not initialised, for the reason that `arguments` in `shell` has.
        let mut number = MaybeUninit::uninit();
        let is_number = napi!(self, napi_get_value_double, value, number.as_mut_ptr()) == sys::Status::napi_ok;
        // SAFETY: set by the call, which has succeeded.
        is_number.then(|| unsafe { number.assume_init() })
    }

    /// A BigInt that fits 64 bits without a sign.
    pub fn bigint(self, value: Value) -> Option<u64> {
        let (mut negative, mut words, mut count) = (0, [0u64; 2], 2);
        let status = napi!(self, napi_get_value_bigint_words, value, &mut negative, &mut count, words.as_mut_ptr());
        (status == sys::Status::napi_ok && (negative == 0 || words[0] == 0) && count <= 1).then_some(if count == 0 {
            0
        } else {
            words[0]
        })
    }

    pub fn type_of(self, value: Value) -> sys::napi_valuetype {
        let mut kind = sys::ValueType::napi_undefined;
        napi!(self, napi_typeof, value, &mut kind);
        kind
    }

    /// A number for an address or a count: they all fit 63 bits.
    #[inline(always)]
    pub fn integer(self, integer: usize) -> Outcome {
        self.number(integer as i64 as f64)
    }

    #[inline(always)]
    pub fn number(self, number: f64) -> Outcome {
        let mut value = MaybeUninit::uninit();
        match napi!(self, napi_create_double, number, value.as_mut_ptr()) {
            // SAFETY: set by the call, which has succeeded.
            sys::Status::napi_ok => Ok(unsafe { value.assume_init() }),
            status => Err(Failure::of_status(status)),
        }
    }

    pub fn undefined(self) -> Outcome {
        let mut value = ptr::null_mut();
        Self::done(napi!(self, napi_get_undefined, &mut value), value)
    }

    pub fn null(self) -> Outcome {
        let mut value = ptr::null_mut();
        Self::done(napi!(self, napi_get_null, &mut value), value)
    }

    pub fn string(self, text: &str) -> Outcome {
        let mut value = ptr::null_mut();
        Self::done(napi!(self, napi_create_string_utf8, text.as_ptr().cast(), text.len() as isize, &mut value), value)
    }

    /// The text of a string of at most 15 bytes; of a longer one the beginning.
    pub fn short_text(self, value: Value) -> Option<String> {
        let (mut bytes, mut length) = ([0u8; 16], 0);
        let status = napi!(self, napi_get_value_string_utf8, value, bytes.as_mut_ptr().cast(), bytes.len(), &mut length);
        (status == sys::Status::napi_ok).then(|| String::from_utf8_lossy(&bytes[..length]).into_owned())
    }

    /// The text of a string; `None` also if there is no memory for it.
    pub fn text(self, value: Value) -> Option<String> {
        let mut length = 0;
        let status = napi!(self, napi_get_value_string_utf8, value, ptr::null_mut(), 0, &mut length);
        if status != sys::Status::napi_ok {
            return None;
        }
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(length + 1).ok()?;
        bytes.resize(length + 1, 0u8);
        let status = napi!(self, napi_get_value_string_utf8, value, bytes.as_mut_ptr().cast(), bytes.len(), &mut length);
        bytes.truncate(length);
        // What Node.js gives is UTF-8: lone surrogates have been replaced.
        if status == sys::Status::napi_ok { String::from_utf8(bytes).ok() } else { None }
    }

    /// A BigInt that fits 64 bits with a sign.
    pub fn signed_bigint(self, value: Value) -> Option<i64> {
        let (mut number, mut lossless) = (0, false);
        let status = napi!(self, napi_get_value_bigint_int64, value, &mut number, &mut lossless);
        (status == sys::Status::napi_ok && lossless).then_some(number)
    }

    pub fn new_bigint(self, number: i64) -> Outcome {
        let mut value = ptr::null_mut();
        Self::done(napi!(self, napi_create_bigint_int64, number, &mut value), value)
    }

    pub fn boolean(self, is: bool) -> Outcome {
        let mut value = ptr::null_mut();
        Self::done(napi!(self, napi_get_boolean, is, &mut value), value)
    }

    pub fn are_same(self, one: Value, other: Value) -> bool {
        let mut are = false;
        napi!(self, napi_strict_equals, one, other, &mut are) == sys::Status::napi_ok && are
    }

    pub fn is_true(self, value: Value) -> bool {
        let mut is = false;
        napi!(self, napi_get_value_bool, value, &mut is) == sys::Status::napi_ok && is
    }

    pub fn object(self) -> Outcome {
        let mut value = ptr::null_mut();
        Self::done(napi!(self, napi_create_object, &mut value), value)
    }

    pub fn array(self) -> Outcome {
        let mut value = ptr::null_mut();
        Self::done(napi!(self, napi_create_array, &mut value), value)
    }

    /// A value for `native` that JavaScript can only hold and pass on. `finalize` is called once nothing holds it.
    pub fn external(self, native: *mut c_void, finalize: sys::napi_finalize) -> Outcome {
        let mut value = ptr::null_mut();
        Self::done(napi!(self, napi_create_external, native, finalize, ptr::null_mut(), &mut value), value)
    }

    pub fn function(self, name: &CStr, callback: sys::napi_callback, data: *mut c_void) -> Outcome {
        let mut value = ptr::null_mut();
        let length = name.count_bytes() as isize;
        Self::done(napi!(self, napi_create_function, name.as_ptr(), length, callback, data, &mut value), value)
    }

    /// Defines a property of an object. Unlike setting one, this does not look at the object's prototypes, so no script runs.
    ///
    /// # Errors
    /// When a script has frozen the object.
    pub fn define(self, object: Value, name: &CStr, value: Value) -> Result<(), Failure> {
        touched(name.to_string_lossy());
        self.define_one(object, sys::napi_property_descriptor { utf8name: name.as_ptr(), ..property(value) })
    }

    /// As [`define`](Self::define), of an element of an array.
    pub fn define_element(self, array: Value, index: u32, value: Value) -> Result<(), Failure> {
        touched(index);
        let name = self.string(&index.to_string())?;
        self.define_one(array, sys::napi_property_descriptor { name, ..property(value) })
    }

    /// An array of two counts.
    pub fn pair(self, (first, second): (u64, u64)) -> Outcome {
        let pair = self.array()?;
        self.define_element(pair, 0, self.number(first as f64)?)?;
        self.define_element(pair, 1, self.number(second as f64)?)?;
        Ok(pair)
    }

    fn define_one(self, object: Value, descriptor: sys::napi_property_descriptor) -> Result<(), Failure> {
        Self::done(napi!(self, napi_define_properties, object, 1, &descriptor), ())
    }

    /// Keeps a script from changing an object's properties.
    pub fn freeze(self, object: Value) -> Result<(), Failure> {
        Self::done(napi!(self, napi_object_freeze, object), ())
    }

    /// Sets an element of an object that has no prototype and that no script has, so no script runs.
    pub fn set_kept(self, kept: Value, place: u32, value: Value) -> Result<(), Failure> {
        touched(place);
        Self::done(napi!(self, napi_set_element, kept, place, value), ())
    }

    pub fn delete_kept(self, kept: Value, place: u32) -> Result<(), Failure> {
        touched(place);
        Self::done(napi!(self, napi_delete_element, kept, place, ptr::null_mut()), ())
    }

    /// An own element of an object or array that the face made.
    pub fn element(self, array: Value, index: u32) -> Outcome {
        touched(index);
        let mut value = ptr::null_mut();
        Self::done(napi!(self, napi_get_element, array, index, &mut value), value)
    }

    /// How many elements an array has.
    pub fn length(self, array: Value) -> Option<u32> {
        let mut length = 0;
        (napi!(self, napi_get_array_length, array, &mut length) == sys::Status::napi_ok).then_some(length)
    }

    /// Calls a function of JavaScript.
    ///
    /// # Errors
    /// The exception; `None` if the execution is being terminated.
    pub fn call(self, function: Value, arguments: &[Value]) -> Result<Value, Option<Value>> {
        let (mut this, mut result) = (ptr::null_mut(), ptr::null_mut());
        napi!(self, napi_get_undefined, &mut this);
        let status = under_way::outside(|| {
            napi!(self, napi_call_function, this, function, arguments.len(), arguments.as_ptr(), &mut result)
        });
        if status == sys::Status::napi_ok {
            return Ok(result);
        }
        let mut pending = false;
        napi!(self, napi_is_exception_pending, &mut pending);
        if !pending {
            return Err(None);
        }
        let mut exception = ptr::null_mut();
        let status = napi!(self, napi_get_and_clear_last_exception, &mut exception);
        let thrown = status == sys::Status::napi_ok && !exception.is_null();
        // V8 gives null for a termination. Functions of the face never throw null.
        Err((thrown && self.type_of(exception) != sys::ValueType::napi_null).then_some(exception))
    }

    /// Clears the pending exception.
    pub fn clear_exception(self) {
        let mut exception = ptr::null_mut();
        napi!(self, napi_get_and_clear_last_exception, &mut exception);
    }

    /// Throws, unless an exception is pending.
    pub fn throw(self, error: Value) {
        napi!(self, napi_throw, error);
    }

    /// Throws a plain error, which only needs memory.
    pub fn throw_plainly(self, code: &CStr, message: &CStr) {
        let mut pending = false;
        napi!(self, napi_is_exception_pending, &mut pending);
        if !pending {
            napi!(self, napi_throw_error, code.as_ptr(), message.as_ptr());
        }
    }

    /// A weak reference to an object.
    pub fn reference(self, object: Value) -> Result<sys::napi_ref, Failure> {
        self.counted_reference(object, 0)
    }

    /// A strong reference to an object.
    pub fn keep(self, object: Value) -> Result<sys::napi_ref, Failure> {
        self.counted_reference(object, 1)
    }

    fn counted_reference(self, object: Value, count: u32) -> Result<sys::napi_ref, Failure> {
        let mut reference = ptr::null_mut();
        Self::done(napi!(self, napi_create_reference, object, count, &mut reference), reference)
    }

    /// Calls `finalize` with `data` when the environment goes.
    pub fn set_instance_data(self, data: *mut c_void, finalize: sys::napi_finalize) -> Result<(), Failure> {
        Self::done(napi!(self, napi_set_instance_data, data, finalize, ptr::null_mut()), ())
    }

    /// The object that a reference refers to, if it still exists.
    pub fn referent(self, reference: sys::napi_ref) -> Option<Value> {
        let mut value = ptr::null_mut();
        let status = napi!(self, napi_get_reference_value, reference, &mut value);
        (status == sys::Status::napi_ok && !value.is_null()).then_some(value)
    }

    pub fn delete_reference(self, reference: sys::napi_ref) {
        napi!(self, napi_delete_reference, reference);
    }

    /// Tells V8 of `change` more (or fewer) bytes that it does not see. Returns how many bytes V8 knows of in all.
    pub fn adjust_external_memory(self, change: i64) -> i64 {
        let mut now = 0;
        napi!(self, napi_adjust_external_memory, change, &mut now);
        now
    }

    pub fn open_scope(self) -> sys::napi_handle_scope {
        let mut scope = ptr::null_mut();
        napi!(self, napi_open_handle_scope, &mut scope);
        scope
    }

    pub fn close_scope(self, scope: sys::napi_handle_scope) {
        napi!(self, napi_close_handle_scope, scope);
    }

    /// Runs a closure in a handle scope. Only the value that it returns outlives the scope.
    pub fn in_scope(self, run: impl FnOnce() -> Result<Value, Option<Value>>) -> Result<Value, Option<Value>> {
        let mut scope = ptr::null_mut();
        napi!(self, napi_open_escapable_handle_scope, &mut scope);
        let escape = |value: Value| {
            let mut escaped = ptr::null_mut();
            let status = napi!(self, napi_escape_handle, scope, value, &mut escaped);
            // Emnapi's handles of `true`, `null` and the like belong to no scope; for them it returns nothing.
            let escaped = if escaped.is_null() { value } else { escaped };
            (status == sys::Status::napi_ok).then_some(escaped)
        };
        let result = match run() {
            Ok(value) => escape(value).ok_or(None),
            Err(exception) => Err(exception.and_then(escape)),
        };
        napi!(self, napi_close_escapable_handle_scope, scope);
        result
    }

    /// Kind, number of elements, first byte and buffer of a typed array.
    pub fn typed_array(self, value: Value) -> Option<TypedArray> {
        let mut is = false;
        napi!(self, napi_is_typedarray, value, &mut is);
        if !is {
            return None;
        }
        let (mut kind, mut length, mut data, mut buffer) = (0, 0, ptr::null_mut(), ptr::null_mut());
        let status =
            napi!(self, napi_get_typedarray_info, value, &mut kind, &mut length, seen(&mut data), &mut buffer, ptr::null_mut());
        (status == sys::Status::napi_ok).then_some(TypedArray { kind, length, data, buffer })
    }

    pub fn is_detached(self, buffer: Value) -> bool {
        let mut is = false;
        napi!(self, napi_is_detached_arraybuffer, buffer, &mut is);
        is
    }

    pub fn detach(self, buffer: Value) -> bool {
        napi!(self, napi_detach_arraybuffer, buffer) == sys::Status::napi_ok
    }

    /// An `ArrayBuffer` over native memory. `finalize` is called once nothing in JavaScript can reach the memory, or when the thread of JavaScript
    /// ends.
    ///
    /// # Errors
    /// The status; `finalize` is not called then.
    ///
    /// # Safety
    /// The memory is readable and writable until then, or until the buffer is detached.
    pub unsafe fn outside_buffer(
        self,
        data: *mut u8,
        length: usize,
        finalize: sys::napi_finalize,
        hint: *mut c_void,
    ) -> Result<Value, sys::napi_status> {
        if cfg!(target_family = "wasm") {
            return Err(sys::Status::napi_no_external_buffers_allowed);
        }
        let mut buffer = ptr::null_mut();
        let status = napi!(self, napi_create_external_arraybuffer, data.cast(), length, finalize, hint, &mut buffer);
        if status == sys::Status::napi_ok { Ok(buffer) } else { Err(status) }
    }

    /// A `Uint8Array` of all bytes of a buffer.
    pub fn bytes_of(self, buffer: Value, length: usize) -> Outcome {
        let mut array = ptr::null_mut();
        Self::done(napi!(self, napi_create_typedarray, sys::TypedarrayType::uint8_array, length, buffer, 0, &mut array), array)
    }

    /// A `Uint32Array` over one native number.
    ///
    /// # Safety
    /// The number can be read and written as long as JavaScript runs.
    pub unsafe fn outside_number(self, number: *mut u32) -> Outcome {
        if cfg!(target_family = "wasm") {
            return Err(Failure::of_status(sys::Status::napi_no_external_buffers_allowed));
        }
        let (mut buffer, mut array) = (ptr::null_mut(), ptr::null_mut());
        let length = size_of::<u32>();
        Self::done(napi!(self, napi_create_external_arraybuffer, number.cast(), length, None, ptr::null_mut(), &mut buffer), ())?;
        let kind = sys::TypedarrayType::uint32_array;
        Self::done(napi!(self, napi_create_typedarray, kind, 1, buffer, 0, &mut array), array)
    }

    /// A `Uint8Array` with memory of its own, and what is known of it.
    pub fn own_bytes(self, length: usize) -> Result<(Value, TypedArray), Failure> {
        let (mut buffer, mut data, mut array) = (ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
        Self::done(napi!(self, napi_create_arraybuffer, length, seen(&mut data), &mut buffer), ())?;
        let kind = sys::TypedarrayType::uint8_array;
        Self::done(napi!(self, napi_create_typedarray, kind, length, buffer, 0, &mut array), ())?;
        Ok((array, TypedArray { kind, length, data, buffer }))
    }
}

/// The out-parameter for the address of an array's memory; NULL in WebAssembly, where emnapi would make a copy.
fn seen(data: &mut *mut c_void) -> *mut *mut c_void {
    if cfg!(target_family = "wasm") { ptr::null_mut() } else { data }
}

/// Kind, length, memory and buffer of a typed array; valid until JavaScript runs or a buffer is detached.
#[derive(Clone, Copy)]
pub(crate) struct TypedArray {
    pub kind: sys::napi_typedarray_type,
    /// Elements.
    pub length: usize,
    pub data: *mut c_void,
    pub buffer: Value,
}
