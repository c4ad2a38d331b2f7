//! A heap that is being taken down.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::any::Any;
use core::ptr::NonNull;

use super::{GuestFault, GuestHeap};
use crate::heap::Pieces;
use crate::pymalloc::ArenaInfo;

/// A heap whose memory is going back to the system: nothing can be done with it but go on. What is left when it is dropped goes then, in one
/// go, and no guest is told.
pub struct TakeDown {
    heap: GuestHeap,
    pieces: Pieces,
    /// What has parts of the heap's memory that are among the pieces.
    _kept: Option<Box<dyn Any>>,
    /// Arenas that the guest is to be told of; `None` before they are known.
    arenas: Option<Vec<ArenaInfo>>,
}

/// A value, and the part of its memory that has been in use: address and bytes.
type Kept = (Box<dyn Any>, (NonNull<u8>, usize));

impl TakeDown {
    /// Takes a heap down, and what else has memory that is given back in pieces.
    pub(crate) fn new(heap: GuestHeap, kept: Option<Kept>) -> Self {
        let mut pieces = heap.heap.pieces();
        let kept = kept.map(|(kept, (address, size))| {
            pieces.add_table(address, size);
            kept
        });
        Self { heap, pieces, _kept: kept, arenas: None }
    }

    /// Tells the arena guest, if there is one, of its arenas, and gives memory back, until all is gone or `is_over`, which is asked every few
    /// milliseconds, says to stop: whether all is gone. It may be called again.
    pub fn go_on(&mut self, mut is_over: impl FnMut() -> bool) -> bool {
        if let Some(guests) = self.heap.guests.get().filter(|guests| guests.has_arena_guest()) {
            guests.leaving.set(true);
            let arenas = self.arenas.get_or_insert_with(|| {
                let mut arenas = self.heap.heap.arenas();
                arenas.reverse();
                arenas
            });
            while let Some(arena) = arenas.pop() {
                guests.tell_of_arena(arena.address, arena.size);
                if is_over() {
                    return false;
                }
            }
            guests.leave_arenas();
            self.heap.heap.inner().forget_arenas();
        }
        // SAFETY: nothing can reach a block of the heap any more, and it is only dropped afterwards.
        unsafe { self.pieces.go_on(self.heap.heap.inner(), is_over) }
    }

    /// What the arena guest failed with first when it was told of its arenas; given once.
    pub fn take_guest_fault(&mut self) -> Option<GuestFault> {
        self.heap.take_guest_fault()
    }
}

impl Drop for TakeDown {
    fn drop(&mut self) {
        if let (Some(guests), Some(left)) = (self.heap.guests.get(), self.arenas.take()) {
            guests.leave_arenas();
            for arena in left {
                guests.tell_of_arena(arena.address, arena.size);
            }
            self.heap.heap.inner().forget_arenas();
        }
        // SAFETY: as above.
        unsafe { self.pieces.go_on(self.heap.heap.inner(), || false) };
    }
}
