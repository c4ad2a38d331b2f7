//! For the tests: a panic can be made to happen the next time that an entry point is reached, the C library can be made to have no memory for
//! the binding, and the names of the properties that the binding touches are on record. Only there with the feature `panics`, which no package
//! is built with.

use std::collections::BTreeSet;

use crate::face::Realm;
use crate::failure::Failure;
use crate::js::{Env, Outcome, UNDEFINED, Value};
use crate::probe::{ARMED, DECLARED, KNOWN, REFUSED, TOUCHED};
use crate::shell::{Table, export};

pub(crate) fn exports(to: Table<'_>) -> Result<(), Failure> {
    export(to, c"entryPoints", entry_points)?;
    export(to, c"declarations", declarations)?;
    export(to, c"panicIn", panic_in)?;
    export(to, c"touchedNames", touched_names)?;
    export(to, c"refuseAfter", refuse_after)?;
    export(to, c"reserved", reserved)
}

/// `(met, refused)`: after `met` more requests of this thread the C library has no memory for the binding, for `refused` requests. Gives how
/// many are left of those that were to be refused.
fn refuse_after(_: &Realm, env: Env, [met, refused]: [Value; 2]) -> Outcome {
    let [met, refused] = [met, refused].map(|count| env.double(count).unwrap_or(0.0) as u32);
    env.number(REFUSED.replace((met, refused)).1.into())
}

/// How many blocks of the reserve are in use.
fn reserved(_: &Realm, env: Env, []: [Value; 0]) -> Outcome {
    env.integer(crate::RESERVING.used())
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
