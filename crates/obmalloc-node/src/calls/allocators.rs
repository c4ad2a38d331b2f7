//! Calls about allocators: which one is in, putting one in, and calling the heap's own directly.

#![forbid(unsafe_code)]

use std::rc::Rc;

use obmalloc::{AllocatorId, ArenaGuest, Domain, HeapError, ObjectHeap, OwnAllocators, OwnError, SetError, Undone};

use super::table::methods;
use crate::core::{Core, State};
use crate::failure::{Failure, code};
use crate::hooks::guests::{Script, ScriptArenas};
use crate::js::{Env, Outcome, UNDEFINED};
use crate::shell::Table;

impl Core {
    /// The heap's own allocators that a script may call now, also inside a callback of another allocator. Inside a callback of an arena allocator
    /// it may call only those for raw memory.
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

/// Adds the functions of allocators.
pub(crate) fn methods(to: Table<'_>) -> Result<(), Failure> {
    methods! { to,
        c"presentAllocator"(domain: domain) -> "number" = present;
        c"setNative"(domain: domain, number: own_allocator) -> "boolean" = set_own;
        c"addScript"() -> "number" = add_script;
        c"setScript"(domain: domain, script: size) -> "void" = set_script;
        c"nativeMalloc"(number: own_allocator, size: size) -> "Address | null" = malloc;
        c"nativeCalloc"(number: own_allocator, count: size, size: size) -> "Address | null" = calloc;
        c"nativeRealloc"(number: own_allocator, address: address_or_null, size: size) -> "Address | null" = realloc;
        c"nativeFree"(number: own_allocator, address: address_or_null) -> "void" = free;
        c"takeArena"(size: size) -> "Address | null" = take_arena;
        c"giveArena"(address: address, size: size) -> "void" = give_arena;
        c"askScript"() -> "void" = ask_script;
        c"askOwn"() -> "void" = ask_own;
    }
}

/// The number of the allocator that is in. The heap's own allocators have numbers from 0 up, scripts' allocators from -1 down.
fn present(core: &Core, env: Env, domain: Domain) -> Outcome {
    match core.heap()?.allocator(domain).map_err(no_room)? {
        AllocatorId::Own(number) => env.integer(number as usize),
        AllocatorId::Guest(number) => env.number(-1.0 - f64::from(number)),
    }
}

/// Puts an allocator in; false if it is not for that domain.
fn set(core: &Core, heap: &ObjectHeap, domain: Domain, allocator: AllocatorId) -> Result<bool, Failure> {
    let done = heap.set_allocator(domain, allocator);
    // First, because JavaScript may run here.
    core.update_attention();
    if let Some(failure) = core.take_guest_failure(heap) {
        // These concern blocks that left the quarantine. The calls that freed them returned long ago.
        core.tell(failure);
    }
    match done {
        Ok(()) => Ok(true),
        Err(SetError::Unknown) => Ok(false),
        Err(SetError::Undone(Undone::GivenUp)) => core.go_on().map(|()| false),
        Err(SetError::Undone(Undone::NoMemory)) => Err(Failure::no_memory("no memory to remember an allocator")),
    }
}

/// Puts one of the heap's own allocators back; false if it is not for that domain.
fn set_own(core: &Core, env: Env, domain: Domain, id: AllocatorId) -> Outcome {
    let done = set(core, core.heap()?, domain, id)?;
    env.boolean(done)
}

/// Adds a script's allocator. Returns its number.
fn add_script(core: &Core, env: Env) -> Outcome {
    // First, because JavaScript may run here, and add others.
    let heap = core.heap()?;
    let number = core.guests.known.get();
    heap.add_guest(Rc::new(Script { core: core.this.clone(), number })).map_err(no_room)?;
    core.guests.known.set(number + 1);
    env.integer(number as usize)
}

/// Puts a script's allocator in, by its number.
fn set_script(core: &Core, _: Env, domain: Domain, number: usize) -> Outcome {
    let heap = core.heap()?;
    let id = AllocatorId::Guest(u32::try_from(number).unwrap_or(u32::MAX));
    if set(core, heap, domain, id)? { Ok(UNDEFINED) } else { Err(core.unusable()) }
}

fn malloc(core: &Core, env: Env, id: AllocatorId, size: usize) -> Outcome {
    let block = core.own_allocators(id)?.malloc(id, size);
    given(core, env, block)
}

fn calloc(core: &Core, env: Env, id: AllocatorId, count: usize, size: usize) -> Outcome {
    let block = core.own_allocators(id)?.calloc(id, count, size);
    given(core, env, block)
}

fn realloc(core: &Core, env: Env, id: AllocatorId, address: Option<usize>, size: usize) -> Outcome {
    let own = core.own_allocators(id)?;
    if let (Some(address), Some(domain)) = (address, address.and_then(|address| own.domain_block(id, address))) {
        let heap = core.heap()?;
        let block = core.realloc(env, heap, domain, Some(address), size)?;
        core.end_realloc(heap, domain, block)?;
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

fn free(core: &Core, env: Env, id: AllocatorId, address: Option<usize>) -> Outcome {
    let own = core.own_allocators(id)?;
    if let (Some(address), Some(domain)) = (address, address.and_then(|address| own.domain_block(id, address))) {
        core.free(env, core.heap()?, domain, address)?;
    } else {
        own.free(id, address).map_err(|error| core.own_failure(error))?;
    }
    core.report_held(env);
    Ok(UNDEFINED)
}

/// The heap's own arena allocator, which a script may call also inside a callback of an arena allocator of the same heap.
fn own_arenas(core: &Core) -> Result<OwnAllocators<'_>, Failure> {
    match core.guests.own.get() {
        Some(own) if core.state() == State::Busy => Ok(own),
        _ => core.heap()?.own_allocators().map_err(no_room),
    }
}

fn take_arena(core: &Core, env: Env, size: usize) -> Outcome {
    let arena = own_arenas(core)?.arena_alloc(size);
    arena.map_or_else(|| env.null(), |arena| env.integer(arena))
}

/// Gives back an arena of [`take_arena`], or an arena of the heap's own that it passed to the script's `free`.
fn give_arena(core: &Core, _: Env, address: usize, size: usize) -> Outcome {
    own_arenas(core)?.arena_free(address, size).map_err(|error| core.own_failure(error))?;
    Ok(UNDEFINED)
}

/// Puts a script's arena allocator in.
fn ask_script(core: &Core, _: Env) -> Outcome {
    set_arenas(core, Some(Rc::new(ScriptArenas { core: core.this.clone() })))
}

/// Puts the heap's own arena allocator back.
fn ask_own(core: &Core, _: Env) -> Outcome {
    set_arenas(core, None)
}

fn set_arenas(core: &Core, guest: Option<Rc<dyn ArenaGuest>>) -> Outcome {
    let done = core.heap()?.set_arena_guest(guest);
    core.update_attention();
    done.map_err(no_room)?;
    Ok(UNDEFINED)
}
