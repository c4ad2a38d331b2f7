//! A heap that is being taken down.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::any::Any;
use core::ptr::NonNull;

use super::{GuestFault, GuestHeap};
use crate::heap::Pieces;
use crate::pymalloc::ArenaInfo;

/// A heap whose memory is going back to the system, piece by piece. Dropping it gives the rest back at once and tells no guest.
pub struct TakeDown {
    heap: GuestHeap,
    pieces: Pieces,
    /// The owner of memory that is among the pieces.
    _kept: Option<Box<dyn Any>>,
    /// Arenas that the guest is still to be told of; `None` before they are listed.
    arenas: Option<Vec<ArenaInfo>>,
}

/// A value, and the part of its memory that has been in use: address and bytes.
type Kept = (Box<dyn Any>, (NonNull<u8>, usize));

impl TakeDown {
    /// Takes a heap down, together with another value whose memory is given back in pieces.
    pub(crate) fn new(heap: GuestHeap, kept: Option<Kept>) -> Self {
        let mut pieces = heap.heap.pieces();
        let kept = kept.map(|(kept, (address, size))| {
            pieces.add_table(address, size);
            kept
        });
        Self { heap, pieces, _kept: kept, arenas: None }
    }

    /// Tells the arena guest, if there is one, that its arenas are free, and gives memory back. Asks `is_over` every few milliseconds whether to
    /// stop. Returns whether all memory is gone; if not, call it again.
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

    /// The first failure of the arena guest while it was told of its arenas. Returned once.
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
