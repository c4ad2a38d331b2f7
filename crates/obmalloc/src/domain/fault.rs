//! Faults: what is wrong with an address, as a code and in words.

#![forbid(unsafe_code)]

use core::fmt;

use super::{Domain, Report};

/// How an address was misused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultKind {
    /// The block belongs to another domain.
    WrongDomain,
    /// The block has been freed already.
    DoubleFree,
    /// The block has been freed and is not to be used.
    UseAfterFree,
    /// The address lies inside a live block.
    InteriorPointer,
    /// No block of this heap was ever at this address.
    ForeignPointer,
    /// The block belongs to another heap.
    WrongHeap,
    /// A write behind the block's end: its guard bytes are damaged.
    BufferOverflow,
    /// A write before the block's begin: its guard bytes are damaged.
    BufferUnderflow,
    /// A write to a block that had been freed.
    WriteAfterFree,
    /// A structure of the heap does not hold.
    HeapCorrupted,
    /// The object has the wrong type, or a block was given in place of an object, or an object in place of a block.
    WrongType,
    /// The object is tracked by the collector.
    GcAlreadyTracked,
    /// A `tp_traverse` visits an object more often than it is referred to.
    GcOverVisit,
    /// A `tp_traverse` tries to change something.
    GcInProgress,
    /// The object has no reference left to give back.
    RefcountUnderflow,
    /// A hook or a guest unwound out of a call of the heap, which is closed for good.
    HeapClosed,
    /// A guest that is being asked tries to change an object.
    Reentrant,
    /// The memory is a grant: only the allocator that gave it takes it back.
    Granted,
}

impl FaultKind {
    /// The stable code of the error that a JavaScript caller sees.
    pub const fn code(self) -> &'static str {
        match self {
            Self::WrongDomain => "ERR_WRONG_DOMAIN",
            Self::DoubleFree => "ERR_DOUBLE_FREE",
            Self::UseAfterFree => "ERR_USE_AFTER_FREE",
            Self::InteriorPointer => "ERR_INTERIOR_POINTER",
            Self::ForeignPointer => "ERR_FOREIGN_POINTER",
            Self::WrongHeap => "ERR_WRONG_HEAP",
            Self::BufferOverflow => "ERR_BUFFER_OVERFLOW",
            Self::BufferUnderflow => "ERR_BUFFER_UNDERFLOW",
            Self::WriteAfterFree => "ERR_WRITE_AFTER_FREE",
            Self::HeapCorrupted => "ERR_HEAP_CORRUPTED",
            Self::WrongType => "ERR_WRONG_TYPE",
            Self::GcAlreadyTracked => "ERR_GC_ALREADY_TRACKED",
            Self::GcOverVisit => "ERR_GC_OVER_VISIT",
            Self::GcInProgress => "ERR_GC_IN_PROGRESS",
            Self::RefcountUnderflow => "ERR_REFCOUNT_UNDERFLOW",
            Self::HeapClosed => "ERR_HEAP_CLOSED",
            Self::Reentrant | Self::Granted => "ERR_REENTRANT",
        }
    }
}

/// A misuse, found before it did any harm.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// What is wrong.
    pub kind: FaultKind,
    /// The address that was given.
    pub address: usize,
    /// The domain through which it was given.
    pub used: Domain,
    /// The domain of the block at the address, or around it, if there is one.
    pub allocated: Option<Domain>,
    /// For [`FaultKind::InteriorPointer`], the block that the address lies in; for [`FaultKind::GcOverVisit`], the object that visited it.
    pub base: Option<usize>,
    /// Offset from `address` of the first byte that was overwritten, for damaged blocks.
    pub offset: Option<isize>,
    /// What CPython prints, for what its debug hooks find.
    pub report: Option<Report>,
}

impl Fault {
    /// A fault about which nothing else is known.
    pub const fn new(kind: FaultKind, address: usize, used: Domain) -> Self {
        Self { kind, address, used, allocated: None, base: None, offset: None, report: None }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, address, used, .. } = *self;
        match kind {
            FaultKind::WrongDomain => {
                let allocated = self.allocated.map_or("another", Domain::name);
                write!(f, "expected a block of the {used} domain, but {address:#x} was allocated in the {allocated} domain")
            }
            FaultKind::DoubleFree => write!(f, "expected a live block to free, but {address:#x} has been freed already"),
            FaultKind::UseAfterFree => write!(f, "expected a live block, but {address:#x} has been freed"),
            FaultKind::InteriorPointer => {
                let base = self.base.unwrap_or_default();
                write!(
                    f,
                    "expected the address of a block, but {address:#x} lies {} bytes inside the one at {base:#x}",
                    address - base
                )
            }
            FaultKind::ForeignPointer => write!(f, "expected a block of this heap, but {address:#x} is none and never was"),
            FaultKind::WrongHeap => write!(f, "expected a block of this heap, but {address:#x} belongs to another heap"),
            FaultKind::BufferOverflow | FaultKind::BufferUnderflow => {
                let offset = self.offset.unwrap_or_default();
                write!(f, "expected sound guard bytes, but the byte at {offset} of the block at {address:#x} was written to")
            }
            FaultKind::WriteAfterFree => {
                let offset = self.offset.unwrap_or_default();
                write!(f, "the byte at {offset} of the block at {address:#x} was written to after the block had been freed")
            }
            FaultKind::HeapCorrupted => write!(f, "a structure of the heap does not hold at {address:#x}"),
            FaultKind::WrongType => write!(f, "expected something of another type than what is at {address:#x}"),
            FaultKind::GcAlreadyTracked => write!(f, "expected an object that is not tracked, but {address:#x} is"),
            FaultKind::GcOverVisit => {
                let object = self.base.unwrap_or_default();
                write!(
                    f,
                    "expected a visit for each reference, but {object:#x} visited {address:#x} more often than it refers to it"
                )
            }
            FaultKind::GcInProgress => write!(f, "expected a traverse that only looks, but it tried to change something"),
            FaultKind::RefcountUnderflow => {
                write!(f, "expected an object with a reference to give back, but {address:#x} has none left")
            }
            FaultKind::Granted => write!(
                f,
                "expected a block, but {address:#x} is memory that one of the heap's own allocators gave directly; only that one takes it back"
            ),
            FaultKind::Reentrant => f.write_str("expected a heap whose objects are not in use, but a guest is being asked"),
            FaultKind::HeapClosed => f.write_str("expected an open heap, but a panic left a call of this one, and it is closed"),
        }
    }
}

impl core::error::Error for Fault {}
