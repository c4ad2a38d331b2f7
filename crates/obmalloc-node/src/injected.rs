//! For the tests: a panic can be made to happen the next time that an entry point is reached, the C library can be made to have no memory for
//! the binding, and the names of the properties that the binding touches are on record. Only there with the feature `panics`, which no package
//! is built with.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ffi::CStr;

use crate::face::Realm;
use crate::failure::Failure;
use crate::js::{Env, Outcome, UNDEFINED, Value};
use crate::shell::{Table, export};

thread_local! {
    /// Every entry point that this thread has reached or made a function of.
    static KNOWN: RefCell<Vec<&'static str>> = const { RefCell::new(Vec::new()) };
    static ARMED: Cell<Option<&'static str>> = const { Cell::new(None) };
    /// Every name of a property that the binding has made, read, changed or deleted since the names were first asked for.
    static TOUCHED: RefCell<Option<BTreeSet<String>>> = const { RefCell::new(None) };
    /// The functions of heaps, as TypeScript sees them, each on a line.
    static DECLARED: RefCell<String> = const { RefCell::new(String::new()) };
    /// How many requests for memory are met, and how many are refused then.
    static REFUSED: Cell<(u32, u32)> = const { Cell::new((0, 0)) };
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

pub(crate) fn touched(name: impl ToString) {
    TOUCHED.with_borrow_mut(|touched| touched.as_mut().map(|touched| touched.insert(name.to_string())));
}

pub(crate) fn declared(name: &CStr, arguments: &[&'static str], result: &'static str) {
    let arguments: String = arguments.iter().map(|argument| format!("{argument}: unknown, ")).collect();
    let line = format!("readonly {}: ({arguments}heap: Handle) => {result}\n", name.to_string_lossy());
    DECLARED.with_borrow_mut(|declared| {
        if !declared.lines().any(|known| known == line.trim_end()) {
            declared.push_str(&line);
        }
    });
}

pub(crate) fn exports(to: Table<'_>) -> Result<(), Failure> {
    export(to, c"entryPoints", entry_points)?;
    export(to, c"declarations", declarations)?;
    export(to, c"panicIn", panic_in)?;
    export(to, c"touchedNames", touched_names)?;
    export(to, c"refuseAfter", refuse_after)?;
    export(to, c"reserved", reserved)
}

/// Whether this request for memory is refused.
pub(crate) fn is_refused() -> bool {
    let (met, refused) = REFUSED.get();
    REFUSED.set(if met == 0 { (0, refused.saturating_sub(1)) } else { (met - 1, refused) });
    met == 0 && refused != 0
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
