//! Scripts as guests of a heap: what its allocators are asked, as calls of functions of the face, and the heap's own allocators as a script
//! calls them. The rules are the core's (`obmalloc`'s room `guest`).

use std::cell::{Cell, RefCell};
use std::panic::resume_unwind;
use std::rc::{Rc, Weak};

use napi_sys as sys;
use obmalloc::{
    AllocatorId, Answer, ArenaGuest, Domain, Guest, GuestFault, GuestFaultKind, HeapError, ObjectHeap, OwnAllocators, OwnError,
    SetError, Threw, Undone, Verb,
};

use crate::args;
use crate::face::Called;
use crate::failure::{Failure, code};
use crate::heap::{Core, State, domain_named};
use crate::js::{Env, Outcome, UNDEFINED, Value};
use crate::shell::{Table, method, reached};

/// What a heap keeps for its guests.
#[derive(Default)]
pub(crate) struct Guests {
    /// The heap's own allocators, as the guest has them that is being asked.
    own: Cell<Option<OwnAllocators<'static>>>,
    /// Why guests failed, each at the number that the core knows, until the call from JavaScript ends.
    failures: RefCell<Vec<Option<Failure>>>,
    /// Scripts' allocators that the core knows.
    known: Cell<u32>,
}

impl Guests {
    /// Keeps why a guest failed.
    fn keep(&self, failure: Failure) -> Threw {
        let mut failures = self.failures.borrow_mut();
        if failures.try_reserve(1).is_ok() {
            failures.push(Some(failure));
        }
        Threw(failures.len() as u64)
    }

    fn take(&self, number: u64) -> Option<Failure> {
        let index = usize::try_from(number).ok()?.checked_sub(1)?;
        self.failures.borrow_mut().get_mut(index)?.take()
    }

    /// What scripts threw is of no interest any more.
    pub fn forget_failures(&self) {
        self.failures.borrow_mut().clear();
    }
}

/// A script's allocator, by its number.
struct Script {
    core: Weak<Core>,
    number: u32,
}

/// A script's arena allocator.
struct ScriptArenas {
    core: Weak<Core>,
}

const fn verb_name(verb: Verb) -> &'static str {
    match verb {
        Verb::Malloc => "allocator's malloc",
        Verb::Calloc => "allocator's calloc",
        Verb::Realloc => "allocator's realloc",
        Verb::Free => "allocator's free",
        Verb::ArenaAlloc => "arena allocator's alloc",
        Verb::ArenaFree => "arena allocator's free",
    }
}

impl Core {
    /// Calls a function of the face's for a guest, in a state in which its heap cannot be used: what it gives, or why it failed.
    fn ask_guest<const N: usize>(
        &self,
        own: &OwnAllocators<'_>,
        (verb, state): (Verb, State),
        function: Called,
        arguments: [Outcome; N],
    ) -> Result<Value, Failure> {
        let env = self.env();
        let kept = self.kept.object().ok_or_else(|| Failure::new(code::INTERNAL, "a heap without its handle"))?;
        // SAFETY: only the lifetime changes; it is taken out below, before the guest has answered.
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
            // A call from inside the callback broke an invariant, or found one broken: the calls around it cannot go on.
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
        checked.map_err(|failure| self.guests.keep(failure))
    }

    /// The end of a `free`, which must not give something to wait for.
    fn freed(&self, verb: Verb, answer: Result<Value, Failure>) -> Result<(), Threw> {
        let done =
            answer.and_then(|answer| if self.env().is_true(answer) { Err(Failure::awaited(verb_name(verb))) } else { Ok(()) });
        done.map_err(|failure| self.guests.keep(failure))
    }

    /// Why a call failed because of a guest.
    #[cold]
    pub fn guest_failure(&self, fault: GuestFault) -> Failure {
        let failure = match fault.kind {
            GuestFaultKind::Threw(number) => {
                self.guests.take(number).unwrap_or_else(|| Failure::no_memory("no memory to remember an exception"))
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

    /// What went wrong in a guest during the call that is at its end.
    #[cold]
    pub fn take_guest_failure(&self, heap: &ObjectHeap) -> Option<Failure> {
        let failure = heap.take_guest_fault().map(|fault| self.guest_failure(fault));
        if self.state() != State::Asking && self.state() != State::Busy {
            self.guests.forget_failures();
        }
        failure
    }

    /// The heap's own allocators, as a script may call them now: also from inside a callback of another allocator. Inside one of an arena
    /// allocator, only those for raw memory.
    fn own_allocators(&self, id: AllocatorId) -> Result<OwnAllocators<'_>, Failure> {
        if let Some(own) = self.guests.own.get() {
            return if self.state() == State::Asking || own.is_raw(id) { Ok(own) } else { Err(self.unusable()) };
        }
        self.heap_between_calls().ok_or_else(|| self.unusable())?.own_allocators().map_err(no_room)
    }

    fn own_failure(&self, error: OwnError) -> Failure {
        match error {
            OwnError::Unknown => Failure::new(code::INTERNAL, "expected one of the heap's own allocators"),
            OwnError::Fault(fault) => self.fault(fault),
            OwnError::Occupied(address) => {
                Failure::new(code::REENTRANT, "expected memory that no block or arena lies in").at(address)
            }
            OwnError::BlockOf(domain, address) => {
                let message = "expected memory that this allocator gave directly, but it is a block of the domain's";
                Failure::new(code::REENTRANT, message).at(address).in_domain(domain)
            }
            OwnError::Guest(fault) => self.guest_failure(fault),
        }
    }

    fn report_held(&self, env: Env) {
        if let Some(heap) = self.heap_in_use() {
            self.report(env, heap);
        }
    }
}

const fn result_name(verb: Verb) -> &'static str {
    match verb {
        Verb::Malloc => "result of the allocator's malloc",
        Verb::Calloc => "result of the allocator's calloc",
        Verb::Realloc | Verb::Free => "result of the allocator's realloc",
        Verb::ArenaAlloc | Verb::ArenaFree => "result of the arena allocator's alloc",
    }
}

fn no_room(_: HeapError) -> Failure {
    Failure::no_memory("no memory to remember an allocator")
}

impl Script {
    /// Calls the script. More bytes than a number can say, which there are not, are said to be as many as it can.
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

/// Adds what a script needs of a heap's allocators.
pub(crate) fn methods(to: Table<'_>) -> Result<(), Failure> {
    method(to, c"presentAllocator", ["domain"], "number", present)?;
    method(to, c"setNative", ["domain", "number"], "boolean", set_own)?;
    method(to, c"setScript", ["domain", "script"], "void", set_script)?;
    method(to, c"nativeMalloc", ["number", "size"], "Address | null", malloc)?;
    method(to, c"nativeCalloc", ["number", "count", "size"], "Address | null", calloc)?;
    method(to, c"nativeRealloc", ["number", "address", "size"], "Address | null", realloc)?;
    method(to, c"nativeFree", ["number", "address"], "void", free)?;
    method(to, c"takeArena", ["size"], "Address | null", take_arena)?;
    method(to, c"giveArena", ["address", "size"], "void", give_arena)?;
    method(to, c"askScript", [], "void", ask_script)?;
    method(to, c"askOwn", [], "void", ask_own)
}

/// `(domain)`: the number of the allocator that is in. One of the heap's own has a number from 0 on, a script's one from -1 down.
fn present(core: &Core, env: Env, [domain]: [Value; 1]) -> Outcome {
    let domain = domain_named(env, domain)?;
    match core.heap()?.allocator(domain).map_err(no_room)? {
        AllocatorId::Own(number) => env.integer(number as usize),
        AllocatorId::Guest(number) => env.number(-1.0 - f64::from(number)),
    }
}

/// One of the heap's own allocators, by the number that a script has for it.
fn own_id(env: Env, number: Value) -> Result<AllocatorId, Failure> {
    args::size(env, "number", number).map(|number| AllocatorId::Own(u32::try_from(number).unwrap_or(u32::MAX)))
}

/// Puts an allocator in; false when it is not for that domain.
fn set(core: &Core, heap: &ObjectHeap, domain: Domain, allocator: AllocatorId) -> Result<bool, Failure> {
    let done = heap.set_allocator(domain, allocator);
    if let Some(failure) = core.take_guest_failure(heap) {
        // Of blocks that left the quarantine: whoever freed them was told long ago that it was done.
        core.tell(failure);
    }
    core.update_attention();
    match done {
        Ok(()) => Ok(true),
        Err(SetError::Unknown) => Ok(false),
        Err(SetError::Undone(Undone::GivenUp)) => core.go_on().map(|()| false),
        Err(SetError::Undone(Undone::NoMemory)) => Err(Failure::no_memory("no memory to remember an allocator")),
    }
}

/// `(domain, number)`: puts one of the heap's own allocators back; false when it is not for that domain.
fn set_own(core: &Core, env: Env, [domain, number]: [Value; 2]) -> Outcome {
    let (domain, id) = (domain_named(env, domain)?, own_id(env, number)?);
    let done = set(core, core.heap()?, domain, id)?;
    env.boolean(done)
}

/// `(domain, number)`: puts a script's allocator in, to be called by its number: the next one, or one that it had before.
fn set_script(core: &Core, env: Env, [domain, number]: [Value; 2]) -> Outcome {
    let (domain, number) = (domain_named(env, domain)?, args::size(env, "number", number)?);
    let heap = core.heap()?;
    let number = u32::try_from(number).unwrap_or(u32::MAX);
    let mut id = AllocatorId::Guest(number);
    if number >= core.guests.known.get() {
        id = heap.add_guest(Rc::new(Script { core: core.this.clone(), number })).map_err(no_room)?;
        core.guests.known.set(number + 1);
    }
    if set(core, heap, domain, id)? { Ok(UNDEFINED) } else { Err(core.unusable()) }
}

/// `(number, size)`
fn malloc(core: &Core, env: Env, [number, size]: [Value; 2]) -> Outcome {
    let (id, size) = (own_id(env, number)?, args::size(env, "size", size)?);
    let block = core.own_allocators(id)?.malloc(id, size);
    given(core, env, block)
}

/// `(number, count, size)`
fn calloc(core: &Core, env: Env, [number, count, size]: [Value; 3]) -> Outcome {
    let id = own_id(env, number)?;
    let (count, size) = (args::size(env, "count", count)?, args::size(env, "size", size)?);
    let block = core.own_allocators(id)?.calloc(id, count, size);
    given(core, env, block)
}

/// `(number, address, size)`
fn realloc(core: &Core, env: Env, [number, address, size]: [Value; 3]) -> Outcome {
    let id = own_id(env, number)?;
    let (address, size) = (args::address_or_null(env, address)?, args::size(env, "size", size)?);
    let own = core.own_allocators(id)?;
    if let (Some(address), Some(domain)) = (address, address.and_then(|address| own.domain_block(id, address))) {
        let heap = core.heap()?;
        let block = core.realloc(env, heap, domain, Some(address), size)?;
        core.settle_realloc(heap, domain, block)?;
        return block.map_or_else(|| env.null(), |block| env.integer(block.addr().get()));
    }
    let block = own.realloc(id, address, size);
    given(core, env, block)
}

fn given(core: &Core, env: Env, block: Result<Option<usize>, OwnError>) -> Outcome {
    let block = block.map_err(|error| core.own_failure(error));
    core.report_held(env);
    block?.map_or_else(|| env.null(), |address| env.integer(address))
}

/// `(number, address)`
fn free(core: &Core, env: Env, [number, address]: [Value; 2]) -> Outcome {
    let (id, address) = (own_id(env, number)?, args::address_or_null(env, address)?);
    let own = core.own_allocators(id)?;
    if let (Some(address), Some(domain)) = (address, address.and_then(|address| own.domain_block(id, address))) {
        core.free(env, core.heap()?, domain, address)?;
    } else {
        own.free(id, address).map_err(|error| core.own_failure(error))?;
    }
    core.report_held(env);
    Ok(UNDEFINED)
}

/// The heap's own arena allocator, as a script may call it: also from inside a callback of an arena allocator of the same heap.
fn own_arenas(core: &Core) -> Result<OwnAllocators<'_>, Failure> {
    match core.guests.own.get() {
        Some(own) if core.state() == State::Busy => Ok(own),
        _ => core.heap()?.own_allocators().map_err(no_room),
    }
}

/// `(size)`
fn take_arena(core: &Core, env: Env, [size]: [Value; 1]) -> Outcome {
    let size = args::size(env, "size", size)?;
    let arena = own_arenas(core)?.arena_alloc(size);
    arena.map_or_else(|| env.null(), |arena| env.integer(arena))
}

/// Gives back what [`take_arena`] gave, or an arena of the heap's own that it has given to the script's `free`: `(address, size)`.
fn give_arena(core: &Core, env: Env, [address, size]: [Value; 2]) -> Outcome {
    let (address, size) = (args::address(env, address)?, args::size(env, "size", size)?);
    own_arenas(core)?.arena_free(address, size).map_err(|error| core.own_failure(error))?;
    Ok(UNDEFINED)
}

/// From now on arenas come from a script, and go to it.
fn ask_script(core: &Core, _: Env, []: [Value; 0]) -> Outcome {
    set_arenas(core, Some(Rc::new(ScriptArenas { core: core.this.clone() })))
}

/// From now on arenas come from the heap's own arena allocator.
fn ask_own(core: &Core, _: Env, []: [Value; 0]) -> Outcome {
    set_arenas(core, None)
}

fn set_arenas(core: &Core, guest: Option<Rc<dyn ArenaGuest>>) -> Outcome {
    core.heap()?.set_arena_guest(guest).map_err(no_room)?;
    core.update_attention();
    Ok(UNDEFINED)
}
