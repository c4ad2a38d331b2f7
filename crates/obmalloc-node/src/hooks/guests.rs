//! Scripts' allocators as guests of a heap: each request becomes a call of a function of the face. The core judges the answers (`obmalloc`'s
//! room `guest`).

use std::panic::resume_unwind;
use std::rc::{Rc, Weak};

use napi_sys as sys;
use obmalloc::{Answer, ArenaGuest, Guest, OwnAllocators, Threw, Verb};

use crate::args;
use crate::core::guests::{result_name, verb_name};
use crate::core::{Core, State};
use crate::face::Called;
use crate::failure::{Failure, code};
use crate::js::{Outcome, Value};
use crate::probe::reached;

/// A script's allocator, by its number.
pub(crate) struct Script {
    pub core: Weak<Core>,
    pub number: u32,
}

/// A script's arena allocator.
pub(crate) struct ScriptArenas {
    pub core: Weak<Core>,
}

impl Core {
    /// Calls a function of the face for a guest, in a state in which its heap cannot be used. Returns its answer, or why it failed.
    fn ask_guest<const N: usize>(
        &self,
        own: &OwnAllocators<'_>,
        (verb, state): (Verb, State),
        function: Called,
        arguments: [Outcome; N],
    ) -> Result<Value, Failure> {
        let env = self.env();
        let kept = self.kept.object().ok_or_else(|| Failure::new(code::INTERNAL, "a heap without its handle"))?;
        // SAFETY: only the lifetime changes. It is taken out below, before the guest has answered.
        let own = unsafe { std::mem::transmute::<OwnAllocators<'_>, OwnAllocators<'static>>(*own) };
        let before = self.guests.own.replace(Some(own));
        let answer = env.in_scope(|| {
            let mut values = [kept; 5];
            for (value, made) in values[1..].iter_mut().zip(arguments) {
                *value = made.map_err(|_| None)?;
            }
            self.while_asking(state, || self.realm.call(env, function, &values[..=N]))
        });
        self.guests.own.set(before);
        if self.is_broken() {
            // A call inside the callback broke an invariant, or found one broken, so the calls around it cannot go on.
            resume_unwind(Box::new("broken"));
        }
        answer.map_err(|cause| Failure::new(code::CALLBACK_THREW, format!("the {} threw", verb_name(verb))).caused_by(cause))
    }

    /// An address, or `None` for null, as the core checks it.
    fn answered(&self, verb: Verb, answer: Result<Value, Failure>) -> Answer {
        let checked = answer.and_then(|answer| {
            if self.env().type_of(answer) == sys::ValueType::napi_null {
                return Ok(None);
            }
            let refuse = |_| Failure::argument(code::CALLBACK_RESULT, result_name(verb), "an address or null", answer);
            args::address(self.env(), answer).map(Some).map_err(refuse)
        });
        checked.map_err(|failure| self.keep_failure(failure))
    }

    /// Ends a `free`, which must not return a promise.
    fn freed(&self, verb: Verb, answer: Result<Value, Failure>) -> Result<(), Threw> {
        let done =
            answer.and_then(|answer| if self.env().is_true(answer) { Err(Failure::awaited(verb_name(verb))) } else { Ok(()) });
        done.map_err(|failure| self.keep_failure(failure))
    }
}

impl Script {
    /// Calls the script. A size that a number cannot hold becomes the largest one that it can.
    fn ask(
        &self,
        core: &Core,
        own: &OwnAllocators<'_>,
        verb: Verb,
        first: Option<usize>,
        second: usize,
    ) -> Result<Value, Failure> {
        let env = core.env();
        let number = |number: usize| env.integer(number.min(args::MAX_SAFE_INTEGER as usize));
        let first = first.map_or_else(|| env.null(), number);
        let arguments = [env.integer(self.number as usize), env.integer(verb as usize), first, number(second)];
        core.ask_guest(own, (verb, State::Asking), Called::Allocate, arguments)
    }

    fn core(&self) -> Result<Rc<Core>, Threw> {
        self.core.upgrade().ok_or(Threw(0))
    }

    fn request(&self, own: &OwnAllocators<'_>, verb: Verb, first: Option<usize>, second: usize) -> Answer {
        let core = self.core()?;
        core.answered(verb, self.ask(&core, own, verb, first, second))
    }
}

impl Guest for Script {
    fn malloc(&self, own: &OwnAllocators<'_>, size: usize) -> Answer {
        reached("guests::malloc");
        self.request(own, Verb::Malloc, Some(size), 0)
    }

    fn calloc(&self, own: &OwnAllocators<'_>, count: usize, size: usize) -> Answer {
        reached("guests::calloc");
        self.request(own, Verb::Calloc, Some(count), size)
    }

    fn realloc(&self, own: &OwnAllocators<'_>, address: Option<usize>, size: usize) -> Answer {
        reached("guests::realloc");
        self.request(own, Verb::Realloc, address, size)
    }

    fn free(&self, own: &OwnAllocators<'_>, address: Option<usize>) -> Result<(), Threw> {
        reached("guests::free");
        let core = self.core()?;
        core.freed(Verb::Free, self.ask(&core, own, Verb::Free, address, 0))
    }
}

impl ArenaGuest for ScriptArenas {
    fn alloc(&self, own: &OwnAllocators<'_>, size: usize) -> Answer {
        reached("guests::arena_alloc");
        let core = self.core.upgrade().ok_or(Threw(0))?;
        let arguments = [core.env().integer(size)];
        core.answered(Verb::ArenaAlloc, core.ask_guest(own, (Verb::ArenaAlloc, State::Busy), Called::ArenaAlloc, arguments))
    }

    fn free(&self, own: &OwnAllocators<'_>, address: usize, size: usize) -> Result<(), Threw> {
        reached("guests::arena_free");
        let core = self.core.upgrade().ok_or(Threw(0))?;
        let arguments = [core.env().integer(address), core.env().integer(size)];
        core.freed(Verb::ArenaFree, core.ask_guest(own, (Verb::ArenaFree, State::Busy), Called::ArenaFree, arguments))
    }
}
