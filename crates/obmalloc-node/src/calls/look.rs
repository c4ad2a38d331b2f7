//! Calls that look inside a heap: its statistics, pools and blocks, its summary, and the windows over its memory.

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::rc::Rc;

use napi_sys as sys;
use obmalloc::{FaultKind, PoolInfo, Stats};
use serde::Serialize;

use super::json::give;
use super::table::methods;
use crate::core::{Core, State};
use crate::failure::{Failure, code};
use crate::js::{Env, Outcome, UNDEFINED};
use crate::probe::reached;
use crate::shell::Table;

/// Adds these functions.
pub(crate) fn methods(to: Table<'_>) -> Result<(), Failure> {
    methods! { to,
        c"debugMallocStats"() -> "string" = debug_malloc_stats;
        c"stats"() -> "string" = stats;
        c"summary"() -> "string" = summary;
        c"checkArena"(arena: address) -> "void" = check_arena;
        c"pool"(address: address) -> "number[] | null" = pool;
        c"checkPool"(pool: address) -> "void" = check_pool;
        c"poolBlocks"(pool: address) -> "Uint8Array" = pool_blocks;
        c"gate"() -> "Uint8Array" = gate;
        c"region"() -> "number[]" = region;
        c"window"(place: size) -> "Uint8Array[] | null" = window;
    }
}

fn debug_malloc_stats(core: &Core, env: Env) -> Outcome {
    env.string(&core.heap_to_look()?.stats().to_string())
}

/// `HeapStats` of index.d.ts.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct HeapStats {
    small_block_threshold: usize,
    size_classes: usize,
    classes: Vec<Class>,
    arenas: Arenas,
    bytes: Bytes,
    arena_map: Option<Map>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Class {
    class: usize,
    size: usize,
    pools: usize,
    blocks_in_use: usize,
    avail_blocks: usize,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Arenas {
    allocated_total: usize,
    reclaimed: usize,
    highwater_mark: usize,
    allocated_current: usize,
    bytes: usize,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Bytes {
    allocated_blocks: usize,
    available_blocks: usize,
    unused_pools: usize,
    pool_headers: usize,
    quantization: usize,
    arena_alignment: usize,
    total: usize,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Map {
    mid_nodes: usize,
    bot_nodes: usize,
    root_bytes: usize,
    mid_bytes: usize,
    bot_bytes: usize,
    total: usize,
}

impl From<Stats> for HeapStats {
    fn from(stats: Stats) -> Self {
        let (geometry, bytes) = (stats.geometry, stats.bytes());
        let used = stats.classes.iter().enumerate().filter(|(_, entry)| entry.pools != 0);
        let classes = used.map(|(class, entry)| Class {
            class,
            size: geometry.block_size(class),
            pools: entry.pools,
            blocks_in_use: entry.blocks_in_use,
            avail_blocks: entry.avail_blocks,
        });
        Self {
            small_block_threshold: geometry.small_request_threshold,
            size_classes: geometry.size_classes(),
            classes: classes.collect(),
            arenas: Arenas {
                allocated_total: stats.arenas_allocated_total,
                reclaimed: stats.arenas_reclaimed(),
                highwater_mark: stats.arenas_highwater,
                allocated_current: stats.arenas,
                bytes: stats.arenas * geometry.arena_size,
            },
            bytes: Bytes {
                allocated_blocks: bytes.allocated_blocks,
                available_blocks: bytes.available_blocks,
                unused_pools: bytes.unused_pools,
                pool_headers: bytes.pool_headers,
                quantization: bytes.quantization,
                arena_alignment: bytes.arena_alignment,
                total: bytes.total(),
            },
            arena_map: stats.arena_map.map(|map| {
                let [root_bytes, mid_bytes, bot_bytes] = map.lost();
                let total = root_bytes + mid_bytes + bot_bytes;
                Map { mid_nodes: map.mid_count, bot_nodes: map.bot_count, root_bytes, mid_bytes, bot_bytes, total }
            }),
        }
    }
}

fn stats(core: &Core, env: Env) -> Outcome {
    give(env, &HeapStats::from(core.heap_to_look()?.stats()))
}

/// The summary of a heap. The counts are left out while the heap cannot be looked at.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary {
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    allocated_blocks: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    arenas: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<usize>,
}

/// Never fails, runs no collection that is due, and changes nothing.
fn summary(core: &Core, env: Env) -> Outcome {
    let state = match core.state() {
        State::Open | State::Due | State::Traversing => "open",
        State::Busy | State::Asking => "busy",
        State::Closed => "closed",
        State::Corrupted | State::Poisoned => "broken",
    };
    let heap = core.heap_in_use().filter(|_| state == "open");
    give(
        env,
        &Summary {
            state,
            allocated_blocks: heap.map(|heap| super::heap::count_blocks(core, heap)),
            arenas: heap.map(|heap| heap.arenas().len()),
            bytes: heap.map(|heap| heap.held()),
        },
    )
}

/// The failure for an address at which no arena, or no pool, of this heap begins. `base` is the beginning of the one that it lies in.
fn stranger(core: &Core, what: &str, address: usize, base: Option<usize>) -> Failure {
    let (kind, where_it_is) = match base {
        Some(base) => (FaultKind::InteriorPointer, format!("lies {} bytes inside the one at {base:#x}", address - base)),
        None if core.is_another_heaps(address) => (FaultKind::WrongHeap, "belongs to another heap".to_owned()),
        None => (FaultKind::ForeignPointer, "is not one".to_owned()),
    };
    let message = format!("expected the address of {what} of this heap, but {address:#x} {where_it_is}");
    let mut failure = Failure::new(kind.code(), message).at(address);
    if let Some(details) = &mut failure.0 {
        details.base = base;
    }
    failure
}

/// Whether an arena of the heap begins there.
fn check_arena(core: &Core, _: Env, address: usize) -> Outcome {
    match core.heap_to_look()?.arena_base(address) {
        Some(base) if base == address => Ok(UNDEFINED),
        base => Err(stranger(core, "an arena", address, base)),
    }
}

/// Of the pool that an address lies in: the number of its size class, -1 for none, and its used and free blocks. Null where there is none.
fn pool(core: &Core, env: Env, address: usize) -> Outcome {
    let Some(PoolInfo { size_class, used, free, .. }) = core.heap_to_look()?.pool(address) else { return env.null() };
    let array = env.array()?;
    let class = size_class.map_or(-1.0, |class| class as f64);
    for (index, number) in [class, used as f64, free as f64].into_iter().enumerate() {
        env.define_element(array, index as u32, env.number(number)?)?;
    }
    Ok(array)
}

/// Whether a pool of the heap begins there.
fn check_pool(core: &Core, _: Env, address: usize) -> Outcome {
    match core.heap_to_look()?.pool(address) {
        Some(pool) if pool.address == address => Ok(UNDEFINED),
        pool => Err(stranger(core, "a pool", address, pool.map(|pool| pool.address))),
    }
}

/// A byte for each block of a pool: 1 where it is in use.
fn pool_blocks(core: &Core, env: Env, address: usize) -> Outcome {
    let heap = core.heap_to_look()?;
    let count = heap.pool(address).map_or(0, |pool| pool.used + pool.free);
    let mut used = Vec::new();
    used.try_reserve_exact(count).map_err(|_| Failure::no_memory("no memory for a list of blocks"))?;
    used.resize(count, false);
    heap.used_blocks(address, &mut used).map_err(|corruption| Failure::corrupted(&corruption))?;
    let (array, data) = core.own_bytes(env, count)?;
    // Making the array may have run JavaScript, but that cannot change the list.
    for (index, &used) in used.iter().enumerate() {
        // SAFETY: fresh bytes, as many.
        unsafe { data.set(index, u8::from(used)) };
    }
    Ok(array)
}

unsafe extern "C" fn finalize(_: sys::napi_env, _: *mut c_void, hold: *mut c_void) {
    // SAFETY: called by Node.js once, with what `outside` gave it.
    let core = unsafe { Box::from_raw(hold.cast::<Rc<Core>>()) };
    // If this panics, there is no caller that could be told.
    let _ = catch_unwind(AssertUnwindSafe(move || {
        reached("window::finalize");
        drop(core);
    }));
}

/// Arrays over memory of the heap, for the face alone. Each keeps the core.
fn outside(core: &Core, env: Env, parts: &[NonNull<[u8]>]) -> Outcome {
    let array = env.array()?;
    for (index, part) in parts.iter().enumerate() {
        let made = if part.is_empty() { env.own_bytes(0)?.0 } else { outside_bytes(core, env, *part)? };
        env.define_element(array, index as u32, made)?;
    }
    Ok(array)
}

fn outside_bytes(core: &Core, env: Env, part: NonNull<[u8]>) -> Outcome {
    let owner = core.this.upgrade().ok_or_else(|| Failure::new(code::INTERNAL, "a heap that is being dropped"))?;
    let hold = Box::into_raw(Box::new(owner));
    // SAFETY: the tables and the region are there until the heap is closed or the core is gone. The face uses them only while the gate says that
    // the heap is open, and the hold keeps the core.
    let made = unsafe { env.outside_buffer(part.cast().as_ptr(), part.len(), Some(finalize), hold.cast()) };
    let buffer = made.map_err(|status| {
        // SAFETY: made above, and refused.
        drop(unsafe { Box::from_raw(hold) });
        Failure::of_status(status)
    })?;
    env.bytes_of(buffer, part.len())
}

/// The number that the face looks at before it uses memory without a call.
fn gate(core: &Core, env: Env) -> Outcome {
    core.heap_to_look()?;
    outside_bytes(core, env, NonNull::slice_from_raw_parts(core.gate().cast(), size_of::<u32>()))
}

/// First byte and bytes of the places for arenas that have windows; zeros if the heap has none. In WebAssembly nothing has a window, because
/// memory that grows takes all arrays over it away.
fn region(core: &Core, env: Env) -> Outcome {
    let (base, len) = if cfg!(target_family = "wasm") { (0, 0) } else { core.heap_to_look()?.region() };
    env.pair((base as u64, len as u64))
}

/// Of the arena at a place: its memory, and the tables of live blocks, objects and pool headers. Null if no arena is there.
fn window(core: &Core, env: Env, place: usize) -> Outcome {
    match core.heap_to_look()?.window(place) {
        Some(window) => outside(core, env, &[window.memory, window.live, window.objects, window.headers]),
        None => env.null(),
    }
}
