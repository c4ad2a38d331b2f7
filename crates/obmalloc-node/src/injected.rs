//! For the tests: makes an entry point panic the next time that it is reached, and records the names of the properties that the binding touches.
//! Only with the feature `panics`, which no package is built with.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use crate::face::Realm;
use crate::failure::Failure;
use crate::js::{Env, Outcome, UNDEFINED, Value};
use crate::probe::{ARMED, DECLARED, KNOWN, TOUCHED};
use crate::shell::{Table, export};

pub(crate) fn exports(to: Table<'_>) -> Result<(), Failure> {
    export(to, c"entryPoints", entry_points)?;
    export(to, c"declarations", declarations)?;
    export(to, c"panicIn", panic_in)?;
    export(to, c"touchedNames", touched_names)
}

/// The names, each on a line.
fn entry_points(_: &Realm, env: Env, []: [Value; 0]) -> Outcome {
    env.string(&KNOWN.with_borrow(|known| known.join("\n")))
}

/// The functions of heaps, as TypeScript sees them, each on a line.
fn declarations(_: &Realm, env: Env, []: [Value; 0]) -> Outcome {
    DECLARED.with_borrow(|declared| env.string(declared))
}

/// The names of properties that the binding has touched since the last call, each on a line.
fn touched_names(_: &Realm, env: Env, []: [Value; 0]) -> Outcome {
    let names = TOUCHED.replace(Some(BTreeSet::new())).unwrap_or_default().into_iter().collect::<Vec<_>>();
    env.string(&names.join("\n"))
}

/// `(name)`: the next time that this entry point is reached, it panics; without a name, none does.
fn panic_in(_: &Realm, env: Env, [name]: [Value; 1]) -> Outcome {
    let name = env.text(name);
    ARMED.set(KNOWN.with_borrow(|known| known.iter().copied().find(|&known| Some(known) == name.as_deref())));
    Ok(UNDEFINED)
}
