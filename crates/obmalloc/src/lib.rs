//! CPython's memory system as a library: the raw, mem and obj domains and pymalloc, as each CPython release does it.
//!
//! For the same requests and the same arena bases a [`Heap`] gives the addresses that CPython of its release would give, takes and
//! gives arenas back at the same moments and reports the same statistics.
//!
//! ```
//! use obmalloc::{Domain, Heap, profile};
//!
//! let heap = Heap::new(&profile::V3_13)?;
//! let block = heap.malloc(Domain::Obj, 64).expect("64 bytes");
//! assert_eq!(heap.allocated_blocks(), 1);
//! // SAFETY: `block` comes from this heap's obj domain and is freed once.
//! unsafe { heap.free(Domain::Obj, Some(block)) };
//! print!("{}", heap.stats());
//! # Ok::<(), obmalloc::HeapError>(())
//! ```
//!
//! A [`Heap`] trusts its caller as C does. A [`CheckedHeap`] keeps a ledger of live blocks beside it and answers every misused
//! address with a [`Fault`]. An [`ObjectHeap`] adds types, objects and the cyclic collector to that; it is what the JavaScript face
//! stands on.
//!
//! A heap may go to another thread, but is used by one at a time: its mem and obj domains have no lock, as CPython's have none but the
//! GIL. The compiler refuses a program that shares one. Blocks of the raw domain are the C library's and may be freed by any thread,
//! through a heap of its own.
//!
//! ```compile_fail,E0277
//! let heap = obmalloc::Heap::new(&obmalloc::profile::V3_13).unwrap();
//! std::thread::scope(|scope| scope.spawn(|| heap.malloc(obmalloc::Domain::Mem, 8)).join());
//! ```
//! ```compile_fail,E0277
//! let heap = obmalloc::CheckedHeap::new(obmalloc::HeapOptions::new(&obmalloc::profile::V3_13)).unwrap();
//! std::thread::scope(|scope| scope.spawn(|| heap.malloc(obmalloc::Domain::Obj, 8)).join());
//! ```
//! ```compile_fail,E0277
//! let options = obmalloc::HeapOptions::new(&obmalloc::profile::V3_13);
//! let heap = obmalloc::ObjectHeap::new(options, Box::new(obmalloc::NoHooks)).unwrap();
//! std::thread::scope(|scope| scope.spawn(|| heap.collect(2)).join());
//! ```
//!
//! Nothing here may be called from a signal handler. After a fork the child has the heaps of the thread that forked; a heap that
//! another thread was using at that moment is to be left alone.

#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod address_hash;
mod allocator;
mod domain;
mod gc;
mod guest;
mod heap;
mod interrupt;
mod object;
mod os;
mod pinned;
pub mod profile;
mod pymalloc;

pub use allocator::{Allocator, AllocatorName, ArenaAllocator, PY_SSIZE_T_MAX};
pub use domain::{Domain, Fault, FaultKind, Report};
pub use gc::{DEBUG_COLLECTABLE, DEBUG_SAVEALL, DEBUG_STATS, DEBUG_UNCOLLECTABLE, GenerationStats, Info, Phase};
pub use guest::{
    AllocatorId, Answer, ArenaGuest, Guest, GuestFault, GuestFaultKind, GuestHeap, OwnAllocators, OwnError, SetError, TakeDown,
    Threw, Verb,
};
pub use heap::{CheckedHeap, Heap, HeapError, HeapOptions};
pub use interrupt::Undone;
pub use object::{
    Blocks, Failed, Field, FieldInfo, FieldKind, HookSet, Hooks, ItemKind, NoHooks, ObjectError, ObjectHeap, Type, TypeId,
    TypeSpec, Value, Visit,
};
pub use pymalloc::{
    ArenaInfo, ArenaMapCounts, ArenaMapStats, ClassStats, Corruption, PoolInfo, Stats, StatsBytes, Trimmed, Window,
};

/// A boxed value; `None` when there is no memory.
fn try_box<T>(value: T) -> Option<alloc::boxed::Box<T>> {
    const { assert!(size_of::<T>() != 0, "something to keep") };
    let layout = core::alloc::Layout::new::<T>();
    // SAFETY: the layout is not empty and is the box's, which takes over the memory with the value in it.
    unsafe {
        let place = alloc::alloc::alloc(layout).cast::<T>();
        if place.is_null() {
            return None;
        }
        place.write(value);
        Some(alloc::boxed::Box::from_raw(place))
    }
}
