//! The state that a heap keeps for scripts' allocators (its guests), and the reason why one of them made a call fail.

#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};

use obmalloc::{GuestFault, GuestFaultKind, ObjectHeap, OwnAllocators, Threw, Verb};

use super::{Core, State};
use crate::failure::{Failure, code};
use crate::js::UNDEFINED;

/// The state that a heap keeps for its guests.
#[derive(Default)]
pub(crate) struct Guests {
    /// The heap's own allocators, while a guest is being asked: that guest may call them.
    pub own: Cell<Option<OwnAllocators<'static>>>,
    /// Why guests failed, until the call from JavaScript ends. The core knows each reason by its number.
    failures: RefCell<Vec<Option<KeptFailure>>>,
    /// The scripts' allocators that the core knows.
    pub known: Cell<u32>,
}

/// A failure whose values are kept: it may outlive the handle scope that they were made in.
struct KeptFailure {
    failure: Failure,
    places: [Option<u32>; Failure::VALUES],
}

impl Core {
    /// Stores the reason why a guest failed. Returns its number.
    #[cold]
    pub fn keep_failure(&self, mut failure: Failure) -> Threw {
        let mut failures = self.guests.failures.borrow_mut();
        if failures.try_reserve(1).is_ok() {
            let places = failure.take_values().map(|value| self.kept.keep(value?).ok());
            failures.push(Some(KeptFailure { failure, places }));
        }
        Threw(failures.len() as u64)
    }

    fn take_failure(&self, number: u64) -> Option<Failure> {
        let index = usize::try_from(number).ok()?.checked_sub(1)?;
        let KeptFailure { mut failure, places } = self.guests.failures.borrow_mut().get_mut(index)?.take()?;
        failure.set_values(places.map(|place| self.kept.get(place?).ok()));
        places.into_iter().flatten().for_each(|place| self.kept.drop(place));
        Some(failure)
    }

    /// Forgets what scripts threw.
    pub fn forget_failures(&self) {
        let failures = self.guests.failures.take();
        let places = failures.iter().flatten().flat_map(|kept| kept.places);
        places.flatten().for_each(|place| self.kept.drop(place));
    }

    /// The failure of a call that a guest made fail.
    #[cold]
    pub fn guest_failure(&self, fault: GuestFault) -> Failure {
        let failure = match fault.kind {
            GuestFaultKind::Threw(number) => {
                self.take_failure(number).unwrap_or_else(|| Failure::no_memory("no memory to remember an exception"))
            }
            GuestFaultKind::TooDeep => {
                Failure::new(code::REENTRANT, "expected at most 50 calls of allocators inside one another")
            }
            GuestFaultKind::NoMemory => Failure::no_memory("no memory to remember a block"),
            GuestFaultKind::Resized => {
                let what = "expected the block that has been resized, but the allocator's realloc gave something else";
                Failure::new(code::CALLBACK_RESULT, what)
            }
            GuestFaultKind::Unaligned if fault.verb == Verb::ArenaAlloc => {
                self.refused(fault, "an address that is a multiple of 16")
            }
            kind => self.refused(fault, kind.to_string()),
        };
        match fault.address {
            Some(address) => failure.at(address),
            None => failure,
        }
    }

    fn refused(&self, fault: GuestFault, expected: impl Into<std::borrow::Cow<'static, str>>) -> Failure {
        let received = fault.answer.and_then(|answer| self.env().integer(answer).ok()).unwrap_or(UNDEFINED);
        Failure::argument(code::CALLBACK_RESULT, result_name(fault.verb), expected, received)
    }

    /// The failure of a guest during the call that ends now, if there was one.
    #[cold]
    pub fn take_guest_failure(&self, heap: &ObjectHeap) -> Option<Failure> {
        let failure = heap.take_guest_fault().map(|fault| self.guest_failure(fault));
        // Inside a callback, the call around it may have reasons of its own.
        if self.state() != State::Asking && self.state() != State::Busy && !self.scripts.are_running() {
            self.forget_failures();
        }
        failure
    }
}

pub(crate) const fn verb_name(verb: Verb) -> &'static str {
    match verb {
        Verb::Malloc => "allocator's malloc",
        Verb::Calloc => "allocator's calloc",
        Verb::Realloc => "allocator's realloc",
        Verb::Free => "allocator's free",
        Verb::ArenaAlloc => "arena allocator's alloc",
        Verb::ArenaFree => "arena allocator's free",
    }
}

pub(crate) const fn result_name(verb: Verb) -> &'static str {
    match verb {
        Verb::Malloc => "result of the allocator's malloc",
        Verb::Calloc => "result of the allocator's calloc",
        Verb::Realloc | Verb::Free => "result of the allocator's realloc",
        Verb::ArenaAlloc | Verb::ArenaFree => "result of the arena allocator's alloc",
    }
}
