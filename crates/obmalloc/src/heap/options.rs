//! The options of a heap, and why a heap cannot be made.

#![forbid(unsafe_code)]

use core::fmt;

use crate::allocator::AllocatorName;
use crate::profile::{Geometry, GeometryError, Profile};

/// The options of a heap.
#[derive(Clone, Copy, Debug)]
pub struct HeapOptions {
    /// The release.
    pub profile: Profile,
    /// Sizes other than the release's own, for asking "what if".
    pub geometry: Option<Geometry>,
    /// Bytes left between arenas, for an arena allocator that wraps the heap's own and places arenas off their natural boundary:
    /// a multiple of the pool size, at most an arena, 0 for none.
    pub arena_slack: usize,
    /// The allocators that the domains begin with (`PYTHONMALLOC`). A [`Heap`](crate::Heap), which trusts its caller, has no debug hooks.
    pub allocator: AllocatorName,
    /// Bytes that a [`CheckedHeap`](crate::CheckedHeap) may hold in arenas and raw blocks; requests past it fail as if the system had no
    /// more.
    pub memory_limit: Option<usize>,
    /// Bytes of freed blocks that a [`CheckedHeap`](crate::CheckedHeap) keeps in quarantine before their memory is used again; 0 for none. The
    /// oldest leaves first. While a block is in quarantine, a second free and any use of it are found. With a quarantine, addresses are not
    /// CPython's, and a realloc moves the block if it can. Quarantined blocks are given back when a request would otherwise fail. There are none
    /// while a guest's allocator is in a domain.
    pub quarantine: usize,
    /// Bytes of empty pools above which the heap [trims](crate::Heap::trim) by itself, when one more becomes empty; `None` for never. If the
    /// program takes back more than half of what the last trim gave back, the bound doubles: a program that fills and empties the same pools
    /// soon keeps them. A call of `trim` resets the bound.
    pub trim_above: Option<usize>,
}

impl HeapOptions {
    /// A heap of `profile` as the release has it.
    pub const fn new(profile: &Profile) -> Self {
        let allocator = AllocatorName::Default;
        Self { profile: *profile, geometry: None, arena_slack: 0, allocator, memory_limit: None, quarantine: 0, trim_above: None }
    }
}

/// Why a heap cannot be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeapError {
    /// A size is out of its range.
    Geometry(GeometryError),
    /// The slack between arenas is no multiple of the pool size, or larger than an arena.
    ArenaSlack,
    /// Debug hooks were asked for where there are none.
    DebugHooks,
    /// No memory for the heap's tables.
    NoMemory,
}

impl fmt::Display for HeapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Geometry(error) => error.fmt(f),
            Self::ArenaSlack => f.write_str("arena slack: expected a multiple of the pool size, at most the arena size"),
            Self::DebugHooks => f.write_str("allocator: expected one without debug hooks, which only a checked heap has"),
            Self::NoMemory => f.write_str("no memory for the tables of a heap"),
        }
    }
}

impl core::error::Error for HeapError {}

impl From<GeometryError> for HeapError {
    fn from(error: GeometryError) -> Self {
        Self::Geometry(error)
    }
}
