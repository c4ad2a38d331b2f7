//! Panics for the tests: one can be made to happen the next time that an entry point is reached. Only there with the feature `panics`,
//! which no package is built with.

use std::cell::{Cell, RefCell};

use crate::js::{Env, Outcome, UNDEFINED, Value};
use crate::shell::export;

thread_local! {
    /// Every entry point that this thread has reached or made a function of.
    static KNOWN: RefCell<Vec<&'static str>> = const { RefCell::new(Vec::new()) };
    static ARMED: Cell<Option<&'static str>> = const { Cell::new(None) };
}

pub(crate) fn know(name: &'static str) {
    KNOWN.with_borrow_mut(|known| {
        if !known.contains(&name) {
            known.push(name);
        }
    });
}

pub(crate) fn reached(name: &'static str) {
    know(name);
    if ARMED.get() == Some(name) {
        ARMED.set(None);
        panic!("injected into {name}");
    }
}

pub(crate) fn exports(env: Env, exports: Value) {
    let _ = export(env, exports, c"entryPoints", entry_points);
    let _ = export(env, exports, c"panicIn", panic_in);
}

/// The names, each on a line.
fn entry_points(env: Env, []: [Value; 0]) -> Outcome {
    env.string(&KNOWN.with_borrow(|known| known.join("\n")))
}

/// `(name)`: the next time that this entry point is reached, it panics; without a name, none does.
fn panic_in(env: Env, [name]: [Value; 1]) -> Outcome {
    let name = env.text(name);
    ARMED.set(KNOWN.with_borrow(|known| known.iter().copied().find(|&known| Some(known) == name.as_deref())));
    Ok(UNDEFINED)
}
