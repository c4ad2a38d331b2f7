//! The calls of allocators: which is in, putting one in, and the heap's own as a script calls them.

use std::rc::Rc;

use obmalloc::{AllocatorId, ArenaGuest, Domain, HeapError, ObjectHeap, OwnAllocators, OwnError, SetError, Undone};

use crate::args::{self, domain_named};
use crate::core::{Core, State};
use crate::failure::{Failure, code};
use crate::hooks::guests::{Script, ScriptArenas};
use crate::js::{Env, Outcome, UNDEFINED, Value};
use crate::shell::{Table, method};

impl Core {
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

fn no_room(_: HeapError) -> Failure {
    Failure::no_memory("no memory to remember an allocator")
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
