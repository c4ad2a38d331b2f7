//! The collector's functions: `PyObject_GC_*` and Python's module `gc`.

use crate::args;
use crate::core::{Core, State};
use crate::failure::{Failure, code};
use crate::js::{Env, Outcome, UNDEFINED, Value};
use crate::shell::{Table, method};
use napi_sys as sys;

/// Addresses after which to look whether the thread is being ended.
const STRIDE: usize = 1 << 16;

/// Adds the collector's functions to the handle.
pub(crate) fn methods(to: Table<'_>) -> Result<(), Failure> {
    method(to, c"track", ["object"], "void", track)?;
    method(to, c"untrack", ["object"], "void", untrack)?;
    method(to, c"isTracked", ["object"], "boolean", is_tracked)?;
    method(to, c"isFinalized", ["object"], "boolean", is_finalized)?;
    method(to, c"gcDel", ["object"], "boolean", gc_del)?;
    method(to, c"gcResize", ["object", "nitems"], "Address", gc_resize)?;
    method(to, c"collect", ["generation"], "number", collect)?;
    method(to, c"enable", [], "void", enable)?;
    method(to, c"disable", [], "void", disable)?;
    method(to, c"isEnabled", [], "boolean", is_enabled)?;
    method(to, c"getThreshold", [], "[number, number, number]", get_threshold)?;
    method(to, c"setThreshold", ["threshold0", "threshold1", "threshold2"], "void", set_threshold)?;
    method(to, c"getCount", [], "[number, number, number]", get_count)?;
    method(to, c"getStats", [], "number[]", get_stats)?;
    method(to, c"getObjects", ["generation"], "Uint8Array<ArrayBuffer>", get_objects)?;
    method(to, c"getReferrers", ["objects"], "Uint8Array<ArrayBuffer>", get_referrers)?;
    method(to, c"getReferents", ["objects"], "Uint8Array<ArrayBuffer>", get_referents)?;
    method(to, c"freeze", [], "void", freeze)?;
    method(to, c"unfreeze", [], "void", unfreeze)?;
    method(to, c"getFreezeCount", [], "number", get_freeze_count)?;
    method(to, c"setDebug", ["flags"], "void", set_debug)?;
    method(to, c"getDebug", [], "number", get_debug)?;
    method(to, c"newWeakref", ["object", "callback"], "Address", new_weakref)?;
    method(to, c"deref", ["reference"], "Address | null", deref)
}

fn track(core: &Core, env: Env, [object]: [Value; 1]) -> Outcome {
    let address = args::address(env, object)?;
    let heap = core.objects()?;
    let tracked = heap.track(address);
    core.settle_objects(env, heap, None)?;
    tracked.map_err(|error| core.object_failure(error, "object", object))?;
    Ok(UNDEFINED)
}

fn untrack(core: &Core, env: Env, [object]: [Value; 1]) -> Outcome {
    let address = args::address(env, object)?;
    core.objects()?.untrack(address).map_err(|fault| core.fault(fault))?;
    Ok(UNDEFINED)
}

fn is_tracked(core: &Core, env: Env, [object]: [Value; 1]) -> Outcome {
    let address = args::address(env, object)?;
    env.boolean(core.heap_to_look()?.is_tracked(address).map_err(|fault| core.fault(fault))?)
}

fn is_finalized(core: &Core, env: Env, [object]: [Value; 1]) -> Outcome {
    let address = args::address(env, object)?;
    env.boolean(core.heap_to_look()?.is_finalized(address).map_err(|fault| core.fault(fault))?)
}

/// `(object)`: whether it was still tracked.
fn gc_del(core: &Core, env: Env, [object]: [Value; 1]) -> Outcome {
    let address = args::address(env, object)?;
    let heap = core.objects()?;
    let tracked = heap.is_tracked(address);
    let deleted = heap.gc_del(address);
    core.settle_objects(env, heap, None)?;
    deleted.map_err(|error| core.object_failure(error, "object", object))?;
    env.boolean(tracked == Ok(true))
}

/// `(object, nitems)`
fn gc_resize(core: &Core, env: Env, [object, count]: [Value; 2]) -> Outcome {
    let (address, nitems) = (args::address(env, object)?, args::size(env, "nitems", count)?);
    let heap = core.objects()?;
    let resized = heap.gc_resize(address, nitems);
    core.settle_objects(env, heap, resized.ok())?;
    env.integer(resized.map_err(|error| core.object_failure(error, "nitems", count))?)
}

/// The number of a generation, where one is given.
fn generation(env: Env, value: Value) -> Result<Option<usize>, Failure> {
    let code = match env.double(value) {
        _ if env.type_of(value) == sys::ValueType::napi_undefined => return Ok(None),
        Some(number) if [0.0, 1.0, 2.0].contains(&number) => return Ok(Some(number as usize)),
        Some(_) => code::OUT_OF_RANGE,
        None => code::INVALID_ARG_TYPE,
    };
    Err(Failure::argument(code, "generation", "0, 1 or 2", value))
}

/// `(generation = 2)`
fn collect(core: &Core, env: Env, [which]: [Value; 1]) -> Outcome {
    let which = generation(env, which)?.unwrap_or(2);
    // As from inside any other part of a collection.
    if core.state() == State::Traversing {
        return env.integer(0);
    }
    let heap = core.objects()?;
    let collected = heap.collect(which);
    core.settle_objects(env, heap, None)?;
    env.integer(collected.map_err(|error| core.object_failure(error, "generation", UNDEFINED))?)
}

fn enable(core: &Core, _: Env, []: [Value; 0]) -> Outcome {
    core.objects()?.enable_gc();
    Ok(UNDEFINED)
}

fn disable(core: &Core, _: Env, []: [Value; 0]) -> Outcome {
    core.objects()?.disable_gc();
    Ok(UNDEFINED)
}

fn is_enabled(core: &Core, env: Env, []: [Value; 0]) -> Outcome {
    env.boolean(core.heap_to_look()?.gc_is_enabled())
}

fn numbers<const N: usize>(env: Env, numbers: [f64; N]) -> Outcome {
    let array = env.array()?;
    for (index, number) in numbers.into_iter().enumerate() {
        env.define_element(array, index as u32, env.number(number)?)?;
    }
    Ok(array)
}

fn get_threshold(core: &Core, env: Env, []: [Value; 0]) -> Outcome {
    numbers(env, core.heap_to_look()?.threshold().map(f64::from))
}

/// A C int.
fn int(env: Env, name: &'static str, value: Value) -> Result<i32, Failure> {
    let code = match env.double(value) {
        Some(number) if f64::from(number as i32) == number => return Ok(number as i32),
        Some(_) => code::OUT_OF_RANGE,
        None => code::INVALID_ARG_TYPE,
    };
    Err(Failure::argument(code, name, "an integer from -2**31 to 2**31 - 1", value))
}

fn optional_int(env: Env, name: &'static str, value: Value) -> Result<Option<i32>, Failure> {
    if env.type_of(value) == sys::ValueType::napi_undefined { Ok(None) } else { int(env, name, value).map(Some) }
}

/// `(threshold0, threshold1?, threshold2?)`
fn set_threshold(core: &Core, env: Env, [t0, t1, t2]: [Value; 3]) -> Outcome {
    let t0 = int(env, "threshold0", t0)?;
    let (t1, t2) = (optional_int(env, "threshold1", t1)?, optional_int(env, "threshold2", t2)?);
    core.objects()?.set_threshold(t0, t1, t2);
    Ok(UNDEFINED)
}

fn get_count(core: &Core, env: Env, []: [Value; 0]) -> Outcome {
    numbers(env, core.heap_to_look()?.count().map(f64::from))
}

/// Collections, collected and uncollectable of each generation, in a row.
fn get_stats(core: &Core, env: Env, []: [Value; 0]) -> Outcome {
    let [a, b, c] = core.heap_to_look()?.gc_stats();
    let row = [a, b, c].map(|stats| [stats.collections as f64, stats.collected as f64, stats.uncollectable as f64]);
    numbers::<9>(env, std::array::from_fn(|index| row[index / 3][index % 3]))
}

/// Addresses as the bytes of doubles, which the face makes an array of.
fn addresses(core: &Core, env: Env, addresses: &[usize]) -> Outcome {
    let (bytes, data) = core.own_bytes(env, size_of_val(addresses))?;
    for (index, &address) in addresses.iter().enumerate() {
        if index % STRIDE == STRIDE - 1 {
            core.go_on()?;
        }
        // SAFETY: within the bytes that were made just above, which need not be aligned.
        unsafe { data.cast::<f64>().add(index).write_unaligned(address as i64 as f64) };
    }
    Ok(bytes)
}

/// `(generation?)`
fn get_objects(core: &Core, env: Env, [which]: [Value; 1]) -> Outcome {
    let which = generation(env, which)?;
    let objects = core.objects()?.objects(which).map_err(|error| core.object_failure(error, "generation", UNDEFINED))?;
    addresses(core, env, &objects)
}

/// The addresses in an array of the face's.
fn given(env: Env, objects: Value) -> Result<Vec<usize>, Failure> {
    let length = env.length(objects).unwrap_or(0);
    let mut given = Vec::new();
    given.try_reserve_exact(length as usize).map_err(|_| Failure::no_memory("no memory for the arguments"))?;
    for index in 0..length {
        given.push(args::address(env, env.element(objects, index)?)?);
    }
    Ok(given)
}

fn get_referrers(core: &Core, env: Env, [objects]: [Value; 1]) -> Outcome {
    let given = given(env, objects)?;
    let found = core.objects()?.referrers(&given).map_err(|error| core.object_failure(error, "objects", UNDEFINED))?;
    addresses(core, env, &found)
}

fn get_referents(core: &Core, env: Env, [objects]: [Value; 1]) -> Outcome {
    let given = given(env, objects)?;
    let found = core.objects()?.referents(&given).map_err(|error| core.object_failure(error, "objects", UNDEFINED))?;
    addresses(core, env, &found)
}

fn freeze(core: &Core, _: Env, []: [Value; 0]) -> Outcome {
    core.objects()?.freeze().map_err(|error| core.object_failure(error, "freeze", UNDEFINED))?;
    Ok(UNDEFINED)
}

fn unfreeze(core: &Core, _: Env, []: [Value; 0]) -> Outcome {
    core.objects()?.unfreeze().map_err(|error| core.object_failure(error, "unfreeze", UNDEFINED))?;
    Ok(UNDEFINED)
}

fn get_freeze_count(core: &Core, env: Env, []: [Value; 0]) -> Outcome {
    env.integer(core.heap_to_look()?.freeze_count())
}

fn set_debug(core: &Core, env: Env, [flags]: [Value; 1]) -> Outcome {
    let flags = int(env, "flags", flags)?;
    core.objects()?.set_debug(flags as u32);
    Ok(UNDEFINED)
}

fn get_debug(core: &Core, env: Env, []: [Value; 0]) -> Outcome {
    env.number(f64::from(core.heap_to_look()?.debug() as i32))
}

/// `(object, callback or undefined)`
fn new_weakref(core: &Core, env: Env, [object, callback]: [Value; 2]) -> Outcome {
    let address = args::address(env, object)?;
    let heap = core.objects()?;
    let place = match env.type_of(callback) {
        sys::ValueType::napi_undefined => None,
        _ => Some(core.kept.keep(callback)?),
    };
    let made = heap.new_weakref(address, place.map(crate::hooks::number_of));
    if let (Err(_), Some(place)) = (&made, place) {
        core.kept.drop(place);
    }
    core.settle_objects(env, heap, made.ok())?;
    env.integer(made.map_err(|error| core.object_failure(error, "object", object))?)
}

fn deref(core: &Core, env: Env, [reference]: [Value; 1]) -> Outcome {
    let address = args::address(env, reference)?;
    let referent = core.heap_to_look()?.deref_weakref(address).map_err(|fault| core.fault(fault))?;
    referent.map_or_else(|| env.null(), |referent| env.integer(referent))
}
