//! For the tests: the entry points at which Node.js and the engine call the binding, and the properties that it touches. The tests make each entry
//! point panic. All of this does nothing without the feature `panics`, which no package is built with.

#![forbid(unsafe_code)]

#[cfg(feature = "panics")]
pub(crate) use on::*;

/// Notes that an entry point was reached.
#[cfg(not(feature = "panics"))]
#[inline(always)]
pub(crate) fn reached(_name: &'static str) {}

/// Notes that there is such an entry point.
#[cfg(not(feature = "panics"))]
#[inline(always)]
pub(crate) fn know(_name: &'static str) {}

/// Notes that a property of this name is made, read, changed or deleted.
#[cfg(not(feature = "panics"))]
#[inline(always)]
pub(crate) fn touched(_name: impl ToString) {}

/// Notes a function of heaps, with its TypeScript types.
#[cfg(not(feature = "panics"))]
#[inline(always)]
pub(crate) fn declared(_name: &std::ffi::CStr, _arguments: &[&'static str], _result: &'static str) {}

#[cfg(feature = "panics")]
mod on {
    use std::cell::{Cell, RefCell};
    use std::collections::BTreeSet;
    use std::ffi::CStr;

    thread_local! {
        /// Every entry point that this thread has reached or made a function of.
        pub(crate) static KNOWN: RefCell<Vec<&'static str>> = const { RefCell::new(Vec::new()) };
        pub(crate) static ARMED: Cell<Option<&'static str>> = const { Cell::new(None) };
        /// Every name of a property that the binding has made, read, changed or deleted since the names were first asked for.
        pub(crate) static TOUCHED: RefCell<Option<BTreeSet<String>>> = const { RefCell::new(None) };
        /// The functions of heaps, as TypeScript sees them, each on a line.
        pub(crate) static DECLARED: RefCell<String> = const { RefCell::new(String::new()) };
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
        let arguments: String = arguments.iter().flat_map(|argument| [argument, ": unknown, "]).collect();
        let line = format!("readonly {}: ({arguments}heap: Handle) => {result}\n", name.to_string_lossy());
        DECLARED.with_borrow_mut(|declared| {
            if !declared.lines().any(|known| known == line.trim_end()) {
                declared.push_str(&line);
            }
        });
    }
}
