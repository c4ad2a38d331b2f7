//! The collector's functions: `PyObject_GC_*` and Python's module `gc`.

use super::table::methods;
use crate::core::{Core, State};
use crate::failure::Failure;
use crate::js::{Env, Outcome, UNDEFINED, Value};
use crate::shell::Table;
use napi_sys as sys;

/// Addresses between two looks whether the thread is being ended.
const STRIDE: usize = 1 << 16;

/// Adds the collector's functions to the handle.
pub(crate) fn methods(to: Table<'_>) -> Result<(), Failure> {
    methods! { to,
        c"track"(object: given_address) -> "void" = track;
        c"untrack"(object: address) -> "void" = untrack;
        c"isTracked"(object: address) -> "boolean" = is_tracked;
        c"isFinalized"(object: address) -> "boolean" = is_finalized;
        c"gcDel"(object: given_address) -> "boolean" = gc_del;
        c"gcResize"(object: address, nitems: given_size) -> "Address" = gc_resize;
        c"collect"(generation: optional_generation) -> "number" = collect;
        c"enable"() -> "void" = enable;
        c"disable"() -> "void" = disable;
        c"isEnabled"() -> "boolean" = is_enabled;
        c"getThreshold"() -> "[number, number, number]" = get_threshold;
        c"setThreshold"(threshold0: int, threshold1: optional_int, threshold2: optional_int) -> "void" = set_threshold;
        c"getCount"() -> "[number, number, number]" = get_count;
        c"getStats"() -> "number[]" = get_stats;
        c"getObjects"(generation: optional_generation) -> "Uint8Array<ArrayBuffer>" = get_objects;
        c"getReferrers"(objects: addresses) -> "Uint8Array<ArrayBuffer>" = get_referrers;
        c"getReferents"(objects: addresses) -> "Uint8Array<ArrayBuffer>" = get_referents;
        c"freeze"() -> "void" = freeze;
        c"unfreeze"() -> "void" = unfreeze;
        c"getFreezeCount"() -> "number" = get_freeze_count;
        c"setDebug"(flags: int) -> "void" = set_debug;
        c"getDebug"() -> "number" = get_debug;
        c"newWeakref"(object: given_address, callback: value) -> "Address" = new_weakref;
        c"deref"(reference: address) -> "Address | null" = deref;
    }
}

fn track(core: &Core, env: Env, (address, object): (usize, Value)) -> Outcome {
    let heap = core.objects()?;
    let tracked = heap.track(address);
    core.end_object_call(env, heap, None)?;
    tracked.map_err(|error| core.object_failure(error, "object", object))?;
    Ok(UNDEFINED)
}

fn untrack(core: &Core, _: Env, address: usize) -> Outcome {
    core.objects()?.untrack(address).map_err(|fault| core.fault(fault))?;
    Ok(UNDEFINED)
}

fn is_tracked(core: &Core, env: Env, address: usize) -> Outcome {
    env.boolean(core.heap_to_look()?.is_tracked(address).map_err(|fault| core.fault(fault))?)
}

fn is_finalized(core: &Core, env: Env, address: usize) -> Outcome {
    env.boolean(core.heap_to_look()?.is_finalized(address).map_err(|fault| core.fault(fault))?)
}

/// Returns whether it was still tracked.
fn gc_del(core: &Core, env: Env, (address, object): (usize, Value)) -> Outcome {
    let heap = core.objects()?;
    let tracked = heap.is_tracked(address);
    let deleted = heap.gc_del(address);
    core.end_object_call(env, heap, None)?;
    deleted.map_err(|error| core.object_failure(error, "object", object))?;
    env.boolean(tracked == Ok(true))
}

fn gc_resize(core: &Core, env: Env, address: usize, (nitems, count): (usize, Value)) -> Outcome {
    let heap = core.objects()?;
    let resized = heap.gc_resize(address, nitems);
    core.end_object_call(env, heap, resized.ok())?;
    env.integer(resized.map_err(|error| core.object_failure(error, "nitems", count))?)
}

fn collect(core: &Core, env: Env, which: Option<usize>) -> Outcome {
    let which = which.unwrap_or(2);
    // As from inside any other part of a collection.
    if core.state() == State::Traversing {
        return env.integer(0);
    }
    let heap = core.objects()?;
    let collected = heap.collect(which);
    core.end_object_call(env, heap, None)?;
    env.integer(collected.map_err(|error| core.object_failure(error, "generation", UNDEFINED))?)
}

fn enable(core: &Core, _: Env) -> Outcome {
    core.objects()?.enable_gc();
    Ok(UNDEFINED)
}

fn disable(core: &Core, _: Env) -> Outcome {
    core.objects()?.disable_gc();
    Ok(UNDEFINED)
}

fn is_enabled(core: &Core, env: Env) -> Outcome {
    env.boolean(core.heap_to_look()?.gc_is_enabled())
}

fn numbers<const N: usize>(env: Env, numbers: [f64; N]) -> Outcome {
    let array = env.array()?;
    for (index, number) in numbers.into_iter().enumerate() {
        env.define_element(array, index as u32, env.number(number)?)?;
    }
    Ok(array)
}

fn get_threshold(core: &Core, env: Env) -> Outcome {
    numbers(env, core.heap_to_look()?.threshold().map(f64::from))
}

fn set_threshold(core: &Core, _: Env, t0: i32, t1: Option<i32>, t2: Option<i32>) -> Outcome {
    core.objects()?.set_threshold(t0, t1, t2);
    Ok(UNDEFINED)
}

fn get_count(core: &Core, env: Env) -> Outcome {
    numbers(env, core.heap_to_look()?.count().map(f64::from))
}

/// Collections, collected and uncollectable of each generation, in a row.
fn get_stats(core: &Core, env: Env) -> Outcome {
    let [a, b, c] = core.heap_to_look()?.gc_stats();
    let row = [a, b, c].map(|stats| [stats.collections as f64, stats.collected as f64, stats.uncollectable as f64]);
    numbers::<9>(env, std::array::from_fn(|index| row[index / 3][index % 3]))
}

/// Addresses as the bytes of doubles. The face makes an array of them.
fn addresses(core: &Core, env: Env, addresses: &[usize]) -> Outcome {
    let (bytes, memory) = core.own_bytes(env, addresses.len() * size_of::<f64>())?;
    for (index, &address) in addresses.iter().enumerate() {
        if index % STRIDE == STRIDE - 1 {
            core.go_on()?;
        }
        let number = address as i64 as f64;
        // SAFETY: within the bytes that were made just above, which nothing else uses yet.
        unsafe { memory.fill(index * size_of::<f64>(), (&raw const number).cast(), size_of::<f64>()) };
    }
    Ok(bytes)
}

fn get_objects(core: &Core, env: Env, which: Option<usize>) -> Outcome {
    let objects = core.objects()?.objects(which).map_err(|error| core.object_failure(error, "generation", UNDEFINED))?;
    addresses(core, env, &objects)
}

fn get_referrers(core: &Core, env: Env, given: Vec<usize>) -> Outcome {
    let found = core.objects()?.referrers(&given).map_err(|error| core.object_failure(error, "objects", UNDEFINED))?;
    addresses(core, env, &found)
}

fn get_referents(core: &Core, env: Env, given: Vec<usize>) -> Outcome {
    let found = core.objects()?.referents(&given).map_err(|error| core.object_failure(error, "objects", UNDEFINED))?;
    addresses(core, env, &found)
}

fn freeze(core: &Core, _: Env) -> Outcome {
    core.objects()?.freeze().map_err(|error| core.object_failure(error, "freeze", UNDEFINED))?;
    Ok(UNDEFINED)
}

fn unfreeze(core: &Core, _: Env) -> Outcome {
    core.objects()?.unfreeze().map_err(|error| core.object_failure(error, "unfreeze", UNDEFINED))?;
    Ok(UNDEFINED)
}

fn get_freeze_count(core: &Core, env: Env) -> Outcome {
    env.integer(core.heap_to_look()?.freeze_count())
}

fn set_debug(core: &Core, _: Env, flags: i32) -> Outcome {
    core.objects()?.set_debug(flags as u32);
    Ok(UNDEFINED)
}

fn get_debug(core: &Core, env: Env) -> Outcome {
    env.number(f64::from(core.heap_to_look()?.debug() as i32))
}

/// `callback` may be undefined.
fn new_weakref(core: &Core, env: Env, (address, object): (usize, Value), callback: Value) -> Outcome {
    let heap = core.objects()?;
    let place = match env.type_of(callback) {
        sys::ValueType::napi_undefined => None,
        _ => Some(core.kept.keep(callback)?),
    };
    let made = heap.new_weakref(address, place.map(crate::hooks::number_of));
    if let (Err(_), Some(place)) = (&made, place) {
        core.kept.drop(place);
    }
    core.end_object_call(env, heap, made.ok())?;
    env.integer(made.map_err(|error| core.object_failure(error, "object", object))?)
}

fn deref(core: &Core, env: Env, address: usize) -> Outcome {
    let referent = core.heap_to_look()?.deref_weakref(address).map_err(|fault| core.fault(fault))?;
    referent.map_or_else(|| env.null(), |referent| env.integer(referent))
}
