//! The calls of a heap itself.

#![forbid(unsafe_code)]

use obmalloc::{Domain, HeapError, ObjectHeap, Undone};

use super::table::methods;
use crate::core::{Core, Mark};
use crate::failure::{Failure, code};
use crate::js::{Env, Outcome, UNDEFINED};
use crate::shell::Table;

/// Adds the functions of a heap itself.
pub(crate) fn methods(to: Table<'_>) -> Result<(), Failure> {
    methods! { to,
        c"geometry"() -> "Geometry" = geometry;
        c"allocatedBlocks"() -> "number" = allocated_blocks;
        c"arenas"() -> "ArenaInfo[]" = arenas;
        c"trim"() -> "Trimmed" = trim;
        c"verify"() -> "void" = verify;
        c"setupDebugHooks"() -> "void" = setup_debug_hooks;
        c"setNomemory"(start: size, stop: optional_size) -> "void" = set_nomemory;
        c"removeNomemory"() -> "void" = remove_nomemory;
        c"close"() -> "void" = close;
    }
}

pub(crate) fn no_heap(error: HeapError) -> Failure {
    Failure::new(code::NO_MEMORY, error.to_string())
}

fn geometry(core: &Core, env: Env) -> Outcome {
    let (geometry, object) = (core.heap_to_look()?.geometry(), env.object()?);
    env.define(object, c"arenaSize", env.integer(geometry.arena_size)?)?;
    env.define(object, c"poolSize", env.integer(geometry.pool_size)?)?;
    env.define(object, c"alignment", env.integer(geometry.alignment)?)?;
    env.define(object, c"smallRequestThreshold", env.integer(geometry.small_request_threshold)?)?;
    Ok(object)
}

fn allocated_blocks(core: &Core, env: Env) -> Outcome {
    env.integer(count_blocks(core, core.heap_to_look()?))
}

/// Blocks in use, from the caller's point of view.
pub(super) fn count_blocks(core: &Core, heap: &ObjectHeap) -> usize {
    // Retired blocks are free for the caller. If a script gave one, the script still has the memory.
    let is_retired = |(&address, mark): (&usize, &Mark)| match *mark {
        Mark::Retired(domain @ (Domain::Mem | Domain::Obj), _) => !heap.blocks().is_guests(domain, address),
        _ => false,
    };
    let retired = core.marks.borrow().iter().filter(|&mark| is_retired(mark)).count();
    // Blocks of the C library's allocator are not counted, even if they are retired.
    heap.allocated_blocks().saturating_sub(retired)
}

fn arenas(core: &Core, env: Env) -> Outcome {
    let (held, array) = (core.heap_to_look()?.arenas(), env.array()?);
    for (index, arena) in held.iter().enumerate() {
        let scope = env.open_scope();
        let object = env.object()?;
        env.define(object, c"address", env.integer(arena.address)?)?;
        env.define(object, c"size", env.integer(arena.size)?)?;
        env.define(object, c"freePools", env.integer(arena.free_pools)?)?;
        env.define(object, c"trimmedPools", env.integer(arena.trimmed_pools)?)?;
        env.define(object, c"totalPools", env.integer(arena.total_pools)?)?;
        env.define_element(array, index as u32, object)?;
        env.close_scope(scope);
    }
    Ok(array)
}

fn trim(core: &Core, env: Env) -> Outcome {
    let heap = core.heap()?;
    let trimmed = heap.trim();
    core.report(env, heap);
    let object = env.object()?;
    env.define(object, c"pools", env.integer(trimmed.pools)?)?;
    env.define(object, c"bytes", env.integer(trimmed.bytes)?)?;
    Ok(object)
}

fn verify(core: &Core, _: Env) -> Outcome {
    let heap = core.heap()?;
    heap.verify().map_err(|corruption| Failure::corrupted(&corruption))?;
    heap.verify_guards().map_err(|fault| core.fault(fault))?;
    Ok(UNDEFINED)
}

fn setup_debug_hooks(core: &Core, _: Env) -> Outcome {
    let done = core.heap()?.setup_debug_hooks();
    core.update_attention();
    done.map_err(no_heap)?;
    Ok(UNDEFINED)
}

/// `(start, stop = never)`
fn set_nomemory(core: &Core, _: Env, start: usize, stop: Option<usize>) -> Outcome {
    let done = core.heap()?.set_nomemory(start, stop);
    core.update_attention();
    done.map_err(no_heap)?;
    Ok(UNDEFINED)
}

fn remove_nomemory(core: &Core, _: Env) -> Outcome {
    let heap = core.heap()?;
    let done = heap.remove_nomemory();
    // First, because JavaScript may run here.
    core.update_attention();
    if let Some(failure) = core.take_guest_failure(heap) {
        // These concern blocks that left the quarantine. The calls that freed them returned long ago.
        core.tell(failure);
    }
    match done {
        Ok(()) => Ok(UNDEFINED),
        Err(Undone::GivenUp) => core.go_on().map(|()| UNDEFINED),
        Err(Undone::NoMemory) => Err(Failure::no_memory("no memory to remember an allocator")),
    }
}

fn close(core: &Core, env: Env) -> Outcome {
    core.close(env)?;
    Ok(UNDEFINED)
}
