//! Programs: a trace's mem and obj calls with slots in place of addresses, so that they can be run against any allocator and timed.

use std::ffi::c_void;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use obmalloc::{Allocator, Domain};

use crate::format::Event;
use crate::watch::{Fate, Seen, Watcher};

/// What a call does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the names of C's functions")]
#[repr(u8)]
pub enum Verb {
    Malloc = 0,
    Calloc = 1,
    Realloc = 2,
    Free = 3,
}

/// One call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Op {
    /// Verb, and bit 2 for obj rather than mem.
    tag: u32,
    /// Where the block's address is kept.
    slot: u32,
    /// Bytes.
    size: u64,
}

impl Op {
    /// A call on the obj domain (or the mem domain) for the block in `slot`.
    pub const fn new(verb: Verb, obj: bool, slot: u32, size: usize) -> Self {
        Self { tag: verb as u32 | (obj as u32) << 2, slot, size: size as u64 }
    }
}

impl Verb {
    /// The call of the main interpreter's heap in an event: the domain, the call and its size in bytes. `None` for an event that is no call. A block
    /// that another interpreter resizes leaves the main one's heap, if it was there.
    pub(crate) fn of(seen: &Seen<'_>) -> Option<(Domain, Self, u64)> {
        Some(match *seen.event {
            Event::Malloc { domain, size, .. } | Event::Realloc { domain, address: 0, size, .. } => (domain, Self::Malloc, size),
            Event::Calloc { domain, count, size, .. } => (domain, Self::Calloc, size.saturating_mul(count)),
            Event::Realloc { domain, size, .. } if seen.interpreter == 0 => (domain, Self::Realloc, size),
            Event::Realloc { domain, .. } | Event::Free { domain, .. } => (domain, Self::Free, 0),
            _ => return None,
        })
    }
}

/// A watcher that collects the mem and obj calls of a replay as a program.
#[derive(Debug, Default)]
pub struct Collector {
    ops: Vec<Op>,
    slots: usize,
}

impl Collector {
    /// The program, and how many slots it uses.
    pub fn program(self) -> (Vec<Op>, usize) {
        (self.ops, self.slots)
    }
}

impl Watcher for Collector {
    fn see(&mut self, seen: &Seen<'_>) -> ControlFlow<()> {
        let (Fate::Made | Fate::LeftOut, Some(slot)) = (seen.fate, seen.answer().slot) else { return ControlFlow::Continue(()) };
        self.slots = self.slots.max(slot as usize + 1);
        let Some((domain, verb, size)) = Verb::of(seen) else { return ControlFlow::Continue(()) };
        if domain != Domain::Raw {
            self.ops.push(Op::new(verb, domain == Domain::Obj, slot, size as usize));
        }
        ControlFlow::Continue(())
    }
}

/// Where a program keeps the address of a live block, and which domain it is of.
#[derive(Debug)]
pub struct Slot {
    address: *mut c_void,
    is_obj: bool,
}

/// The empty slots that a program runs with, already resident in memory.
pub fn slots(count: usize) -> Vec<Slot> {
    (0..count).map(|_| Slot { address: std::ptr::null_mut(), is_obj: false }).collect()
}

/// Runs a program through a mem and an obj allocator, both called by function pointer as CPython calls them, and gives the time that
/// the calls took. What is still live at the end is freed outside that time.
///
/// # Safety
/// The allocators do what [`Allocator`] says, and `blocks` are the program's own empty slots.
pub unsafe fn run(ops: &[Op], blocks: &mut [Slot], mem: &Allocator, obj: &Allocator) -> Duration {
    // SAFETY: the caller's promise.
    unsafe { run_with(ops, blocks, mem, obj, |_, _| {}) }
}

/// As [`run`], writing to every byte of every block, as a program would: for measuring memory, not time.
///
/// # Safety
/// As for [`run`].
pub unsafe fn run_touching(ops: &[Op], blocks: &mut [Slot], mem: &Allocator, obj: &Allocator) {
    // SAFETY: the caller's promise; a block holds the bytes that were asked for.
    unsafe { run_with(ops, blocks, mem, obj, |address, size| address.cast::<u8>().write_bytes(0x5a, size)) };
}

#[inline(always)]
unsafe fn run_with(
    ops: &[Op],
    blocks: &mut [Slot],
    mem: &Allocator,
    obj: &Allocator,
    touch: impl Fn(*mut c_void, usize),
) -> Duration {
    let start = Instant::now();
    for op in ops {
        let is_obj = op.tag & 4 != 0;
        let allocator = if is_obj { obj } else { mem };
        let block = &mut blocks[op.slot as usize];
        // SAFETY: a slot holds NULL or a live block: the program was made from calls that were right.
        let address = unsafe {
            match op.tag & 3 {
                0 => (allocator.malloc)(allocator.ctx, op.size as usize),
                1 => (allocator.calloc)(allocator.ctx, 1, op.size as usize),
                2 => (allocator.realloc)(allocator.ctx, block.address, op.size as usize),
                _ => {
                    (allocator.free)(allocator.ctx, block.address);
                    std::ptr::null_mut()
                }
            }
        };
        if !address.is_null() {
            touch(address, op.size as usize);
        }
        *block = Slot { address, is_obj };
    }
    let time = start.elapsed();
    for block in blocks {
        let allocator = if block.is_obj { obj } else { mem };
        let address = std::mem::replace(&mut block.address, std::ptr::null_mut());
        // SAFETY: as above.
        unsafe { (allocator.free)(allocator.ctx, address) };
    }
    time
}
