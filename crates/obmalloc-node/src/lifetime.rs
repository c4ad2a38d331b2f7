//! The roof: opens heaps.

use obmalloc::profile::{ALL, GeometryError, Profile};
use obmalloc::{AllocatorName, HeapOptions, ObjectHeap};

use crate::args::{self, one_of};
use crate::calls::heap::no_heap;
use crate::core::Core;
use crate::face::Realm;
use crate::failure::{Failure, code};
use crate::hooks::Host;
use crate::js::{Env, Outcome, Value};

const ARENA_SIZE: &str = "geometry.arenaSize";
const POOL_SIZE: &str = "geometry.poolSize";
const ALIGNMENT: &str = "geometry.alignment";
const SMALL_REQUEST_THRESHOLD: &str = "geometry.smallRequestThreshold";

fn profile(env: Env, value: Value) -> Result<&'static Profile, Failure> {
    one_of(env, "release", value, ALL.map(Profile::release), Profile::named)
}

/// `(kept, longestArray, release, arenaSize, poolSize, alignment, smallRequestThreshold, memoryLimit, quarantine, trimAbove, allocator)`: makes a
/// heap, and chooses it. A size that is undefined is the release's.
pub(crate) fn open(
    realm: &Realm,
    env: Env,
    [kept, longest_array, release, arena, pool, alignment, threshold, limit, quarantine, trim_above, allocator]: [Value; 11],
) -> Outcome {
    let longest_array = args::size(env, "longestArray", longest_array)?;
    let profile = profile(env, release)?;
    let allocator = one_of(env, "allocator", allocator, AllocatorName::ALL.map(AllocatorName::name), AllocatorName::named)?;
    let mut geometry = profile.geometry();
    for (name, value, size) in [
        (ARENA_SIZE, arena, &mut geometry.arena_size),
        (POOL_SIZE, pool, &mut geometry.pool_size),
        (ALIGNMENT, alignment, &mut geometry.alignment),
        (SMALL_REQUEST_THRESHOLD, threshold, &mut geometry.small_request_threshold),
    ] {
        *size = args::optional_size(env, name, value)?.unwrap_or(*size);
    }
    if let Err(error) = geometry.check() {
        let (name, size) = match error {
            GeometryError::ArenaSize => (ARENA_SIZE, geometry.arena_size),
            GeometryError::PoolSize | GeometryError::PoolsPerArena => (POOL_SIZE, geometry.pool_size),
            GeometryError::Alignment => (ALIGNMENT, geometry.alignment),
            GeometryError::SmallRequestThreshold => (SMALL_REQUEST_THRESHOLD, geometry.small_request_threshold),
        };
        let text = error.to_string();
        let expected = text.split_once("expected ").map_or(text.as_str(), |(_, expected)| expected).to_owned();
        return Err(Failure::argument(code::OUT_OF_RANGE, name, expected, env.integer(size)?));
    }
    let memory_limit = args::optional_size(env, "memoryLimit", limit)?;
    let quarantine = args::optional_size(env, "quarantine", quarantine)?.unwrap_or(0);
    let trim_above = args::optional_size(env, "trimAbove", trim_above)?;
    let geometry = Some(geometry);
    let options = HeapOptions { geometry, allocator, memory_limit, quarantine, trim_above, ..HeapOptions::new(profile) };
    let host = Host::default();
    let mut heap = ObjectHeap::new(options, Box::new(host.clone())).map_err(no_heap)?;
    let asked = host.clone();
    // SAFETY: it calls a function of the face that does nothing, in a state in which the heap takes no call, and does not unwind.
    unsafe { heap.set_interrupt(Box::new(move || asked.is_interrupted())) }.map_err(no_heap)?;
    let core = Core::new(env, realm, (heap, longest_array), kept)?;
    host.serve(&core);
    core.handle()
}

/// `(version)`: the name of the release that a CPython's version belongs to, or null.
pub(crate) fn release_of(_: &Realm, env: Env, [version]: [Value; 1]) -> Outcome {
    match env.text(version).as_deref().and_then(Profile::of_version) {
        Some(profile) => env.string(profile.release()),
        None => env.null(),
    }
}
