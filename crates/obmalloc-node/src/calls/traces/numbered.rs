//! Numbers for things that the command line has open: replays, listings and the like.

#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::thread::LocalKey;

use crate::failure::{Failure, code};
use crate::js::{Env, Outcome, UNDEFINED, Value};

/// Things of one kind that this thread has open.
pub(super) struct Numbered<T: 'static> {
    /// The name of the things, as in "expected the number of an open replay".
    what: &'static str,
    last: Cell<u32>,
    open: RefCell<HashMap<u32, T>>,
}

impl<T> Numbered<T> {
    pub fn new(what: &'static str) -> Self {
        Self { what, last: Cell::new(0), open: RefCell::default() }
    }

    /// Opens a thing. Returns its number.
    pub fn open(all: &'static LocalKey<Self>, env: Env, thing: T) -> Outcome {
        let number = all.with(|all| {
            let number = all.last.get() + 1;
            all.last.set(number);
            all.open.borrow_mut().insert(number, thing);
            number
        });
        env.integer(number as usize)
    }

    /// Calls a closure with an open thing.
    pub fn with<R>(
        all: &'static LocalKey<Self>,
        env: Env,
        number: Value,
        then: impl FnOnce(&mut T) -> Result<R, Failure>,
    ) -> Result<R, Failure> {
        all.with(|all| match all.open.borrow_mut().get_mut(&number_of(env, number)) {
            Some(thing) => then(thing),
            None => Err(all.refusal()),
        })
    }

    /// Closes a thing and returns it.
    pub fn take(all: &'static LocalKey<Self>, env: Env, number: Value) -> Result<T, Failure> {
        all.with(|all| all.open.borrow_mut().remove(&number_of(env, number)).ok_or_else(|| all.refusal()))
    }

    /// Closes a thing, if it is open, and frees its memory.
    pub fn close(all: &'static LocalKey<Self>, env: Env, number: Value) -> Outcome {
        drop(Self::take(all, env, number));
        Ok(UNDEFINED)
    }

    fn refusal(&self) -> Failure {
        Failure::new(code::OUT_OF_RANGE, format!("expected the number of {}", self.what))
    }
}

fn number_of(env: Env, number: Value) -> u32 {
    env.double(number).unwrap_or(0.0) as u32
}
