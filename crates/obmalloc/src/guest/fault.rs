//! What was wrong with a guest's answer, and how that is said.

#![forbid(unsafe_code)]

use core::fmt;

/// Which function of a guest it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verb {
    /// [`Guest::malloc`](super::Guest::malloc)
    Malloc,
    /// [`Guest::calloc`](super::Guest::calloc)
    Calloc,
    /// [`Guest::realloc`](super::Guest::realloc)
    Realloc,
    /// [`Guest::free`](super::Guest::free)
    Free,
    /// [`ArenaGuest::alloc`](super::ArenaGuest::alloc)
    ArenaAlloc,
    /// [`ArenaGuest::free`](super::ArenaGuest::free)
    ArenaFree,
}

/// What was wrong with a guest's answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GuestFaultKind {
    /// The guest failed, with a number of its own.
    Threw(u64),
    /// The address is not aligned as it has to be, or is 0.
    Unaligned,
    /// The bytes do not lie in one grant of this heap.
    NotGranted,
    /// Another block or arena lies there.
    Occupied,
    /// A block of the raw domain would lie in an arena, where pymalloc would take it for its own.
    InArena,
    /// The bytes of a `calloc` are not zero.
    NotZeroed,
    /// The heap's own allocator has resized the block, but the guest gave another answer.
    Resized,
    /// Too many calls of guests run inside one another.
    TooDeep,
    /// There is no memory to remember the block.
    NoMemory,
}

/// A call failed because of a guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestFault {
    /// Which function it was.
    pub verb: Verb,
    /// What was wrong.
    pub kind: GuestFaultKind,
    /// What the guest answered.
    pub answer: Option<usize>,
    /// Where the block is, if it was resized or freed although the call failed.
    pub address: Option<usize>,
}

impl fmt::Display for GuestFaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Threw(_) => "an answer, but the guest failed",
            Self::Unaligned => "an address that is aligned as blocks are",
            Self::NotGranted => "memory that an allocator of this heap gave to the guest",
            Self::Occupied => "memory in which no other block or arena lies",
            Self::InArena => "memory outside the heap's arenas, which pymalloc would take for its own",
            Self::NotZeroed => "zeroed memory",
            Self::Resized => "the block that the heap's own allocator has resized",
            Self::TooDeep => "fewer calls of guests inside one another",
            Self::NoMemory => "memory to remember the block",
        })
    }
}

impl fmt::Display for GuestFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of a guest: expected {}", self.verb, self.kind)?;
        self.answer.map_or(Ok(()), |answer| write!(f, ", got {answer:#x}"))
    }
}

impl core::error::Error for GuestFault {}
