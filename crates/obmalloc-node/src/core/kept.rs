//! The JavaScript values that a heap keeps, each at a number. They are in an object without a prototype, which only the face and the binding
//! have. It lives as long as the heap's handle, so the values may refer to the heap.

#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};

use napi_sys as sys;

use crate::failure::{Failure, code};
use crate::js::{Env, Outcome, Value};

/// How deep callbacks may be nested.
pub(crate) const NESTED_MAX: u32 = 50;

/// `gc.garbage` and `gc.callbacks`, which the face puts there.
pub(crate) const GARBAGE: u32 = 0;
pub(crate) const CALLBACKS: u32 = 1;
/// From here on: the exception of a `traverse`, at the number of callbacks around it.
pub(crate) const FAILURES: u32 = 2;
/// From here on: all other values.
const REST: u32 = FAILURES + NESTED_MAX + 1;

pub(crate) struct Kept {
    env: Env,
    /// A weak reference.
    object: Cell<sys::napi_ref>,
    used: Cell<u32>,
    free: RefCell<Vec<u32>>,
}

impl Kept {
    pub fn new(env: Env, object: Value) -> Result<Self, Failure> {
        let object = Cell::new(env.reference(object)?);
        Ok(Self { env, object, used: Cell::new(REST), free: RefCell::default() })
    }

    /// The object; `None` once nothing in JavaScript can use the heap.
    pub fn object(&self) -> Option<Value> {
        let object = self.object.get();
        if object.is_null() { None } else { self.env.referent(object) }
    }

    /// Called when the handle is gone.
    pub fn release(&self) {
        self.env.delete_reference(self.object.replace(std::ptr::null_mut()));
    }

    fn there(&self) -> Result<Value, Failure> {
        self.object().ok_or_else(|| Failure::new(code::INTERNAL, "a heap without its handle"))
    }

    pub fn get(&self, place: u32) -> Outcome {
        self.env.element(self.there()?, place)
    }

    pub fn set(&self, place: u32, value: Value) -> Result<(), Failure> {
        self.env.set_kept(self.there()?, place, value)
    }

    /// Deletes a value. If JavaScript cannot run any more, the value goes with the object.
    pub fn clear(&self, place: u32) {
        let scope = self.env.open_scope();
        let _ = self.there().and_then(|object| self.env.delete_kept(object, place));
        self.env.close_scope(scope);
    }

    /// Takes a free place for a value.
    pub fn take_place(&self) -> u32 {
        self.free.borrow_mut().pop().unwrap_or_else(|| self.used.replace(self.used.get() + 1))
    }

    /// Frees a place.
    pub fn give_place(&self, place: u32) {
        self.free.borrow_mut().push(place);
    }

    /// Stores a value. Returns its place.
    pub fn keep(&self, value: Value) -> Result<u32, Failure> {
        let place = self.take_place();
        self.set(place, value).inspect_err(|_| self.give_place(place)).map(|()| place)
    }

    /// As [`clear`](Self::clear), and gives the place back.
    pub fn drop(&self, place: u32) {
        self.clear(place);
        self.give_place(place);
    }
}
