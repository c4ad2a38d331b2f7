//! How the memory of a checked heap goes back to the system: at once when the heap is dropped, or in pieces before.
//!
//! The account knows which blocks are the C library's, or the ledger does, so nothing is looked for, and each goes back once. All else lies
//! in those blocks, in arenas, or in tables.

use alloc::alloc::{Layout, dealloc};
use alloc::vec::Vec;
use core::ffi::c_void;
use core::ptr::{self, NonNull};

use super::{Checked, CheckedHeap, Mode};
use crate::allocator::Allocator;
use crate::interrupt::{Interrupt, STRIDE};
use crate::os;
use crate::pymalloc::{Location, Pymalloc};

/// What is left to give back of a heap that nothing uses any more but for being dropped.
#[derive(Default)]
pub(crate) struct Pieces {
    /// The C library's blocks that are left, in order; none before they are known.
    blocks: Option<Vec<usize>>,
    /// Parts of mappings whose pages have been in use, and go with the heap itself: address and bytes.
    tables: Vec<(NonNull<u8>, usize)>,
}

impl Pieces {
    /// Notes a part of a mapping that the heap has; where there is no memory for that, it goes with the mapping.
    pub fn add_table(&mut self, address: NonNull<u8>, size: usize) {
        if size != 0 && self.tables.try_reserve(1).is_ok() {
            self.tables.push((address, size));
        }
    }

    /// Gives back what is left, until it is all gone or `is_over`, which is asked every few milliseconds, says to stop: whether it is gone.
    ///
    /// # Safety
    /// Nobody uses a block, an arena or a table of the heap any more, and the heap is only fit to be dropped afterwards.
    pub unsafe fn go_on(&mut self, heap: &Checked, mut is_over: impl FnMut() -> bool) -> bool {
        if self.blocks.is_none() {
            self.blocks = heap.take_blocks();
        }
        // The C library joins neighbours, and gives what is free at the end of its memory back to the system. The highest address first takes
        // half the time of any other order, and no single block takes long.
        let mut steps = 0;
        while let Some(block) = self.blocks.as_mut().and_then(Vec::pop) {
            // SAFETY: the account's block, of which this was the only record left; the caller's promise.
            if !unsafe { heap.account.release(block, &mut is_over) } {
                return false;
            }
            steps += 1;
            if steps == STRIDE / 16 {
                steps = 0;
                if is_over() {
                    return false;
                }
            }
        }
        if !heap.account.catch_up(&mut is_over) {
            return false;
        }
        while let Some(&(address, size)) = self.tables.last() {
            // SAFETY: the caller's promise.
            if !unsafe { os::decommit_in_pieces(address, size, &mut is_over) } {
                return false;
            }
            self.tables.pop();
        }
        // SAFETY: the caller's promise.
        unsafe { Pymalloc::decommit_arenas(&raw mut (*heap.domains()).pymalloc, is_over) }
    }
}

impl Checked {
    /// Takes every block of the C library's out of its record, in order; `None` where there is no memory for a list of them.
    fn take_blocks(&self) -> Option<Vec<usize>> {
        let mut blocks = Vec::new();
        if let Some(roots) = self.account.take_roots() {
            if blocks.try_reserve_exact(roots.len()).is_err() {
                self.account.give_roots(roots);
                return None;
            }
            blocks.extend(roots);
        } else {
            blocks.try_reserve_exact(self.ledger().count_elsewhere() + self.pymalloc().count_tables()).ok()?;
            blocks.extend(self.plain_blocks());
            self.ledger().forget_elsewhere();
            // SAFETY: nothing else uses pymalloc now.
            unsafe { (*self.domains()).pymalloc.forget_tables() };
        }
        blocks.sort_unstable();
        Some(blocks)
    }

    /// Gives every block of the C library's back, in order where there is memory for a list.
    ///
    /// # Safety
    /// Nobody uses them any more, and the heap is being dropped.
    unsafe fn free_blocks(&self) {
        // SAFETY: the caller's promise; each is the account's, and has come out of its record.
        let release = |block: usize| unsafe { self.account.release(block, &mut || false) };
        if let Some(blocks) = self.take_blocks() {
            for block in blocks.into_iter().rev() {
                release(block);
            }
        } else if let Some(roots) = self.account.take_roots() {
            for block in roots {
                release(block);
            }
        } else {
            for block in self.plain_blocks() {
                release(block);
            }
        }
    }

    /// The C library's blocks, where the account does not know them: those of the ledger outside all arenas, and pymalloc's tables.
    fn plain_blocks(&self) -> impl Iterator<Item = usize> {
        let (ledger, pymalloc) = (&*self.ledger(), self.pymalloc());
        let is_outside = |address: &usize| pymalloc.locate(*address) == Location::Outside;
        ledger.whole_elsewhere().filter(is_outside).chain(pymalloc.tables())
    }

    /// From now on the account knows its blocks, because the ledger does not any more. To be called while every address in the ledger is
    /// still where an allocator of the heap's own put the block. False when there is no memory for that.
    pub fn know_roots(&self) -> bool {
        let count = self.ledger().count_elsewhere() + self.pymalloc().count_tables();
        self.account.know_roots(count, self.plain_blocks())
    }

    /// The arenas have gone back to those that gave them, or go with the region.
    pub fn forget_arenas(&self) {
        // SAFETY: nothing else uses pymalloc now, and no block of it is used any more.
        unsafe { (*self.domains()).pymalloc.forget_arenas() };
    }

    /// Closes the heap for good: a call of it was left in the middle. Every request fails and no address is a block, until it is dropped.
    pub fn close(&self) {
        let refusing = Allocator {
            ctx: ptr::null_mut(),
            malloc: refuse_malloc,
            calloc: refuse_calloc,
            realloc: refuse_realloc,
            free: refuse_free,
        };
        // SAFETY: initialised; nobody holds a reference to the field.
        unsafe {
            (*self.domains()).allocators = [refusing; 3];
            (*self.domains()).is_closed = true;
        }
        self.is_all_own.set(false);
        self.mode.set(Mode::Closed);
        self.account.set_refusing(true);
        self.ledger().close();
    }

    /// Whether it was closed.
    pub fn is_closed(&self) -> bool {
        self.mode.get() == Mode::Closed
    }
}

impl CheckedHeap {
    /// Begins to take the heap down: notes which of its mappings have been in use.
    pub(crate) fn pieces(&self) -> Pieces {
        let mut pieces = Pieces::default();
        let (table, size) = self.inner().ledger().used_table(self.used());
        pieces.add_table(table, size);
        pieces
    }

    /// Bytes of the region in which arenas have been, from its first byte on.
    pub(crate) fn used(&self) -> usize {
        self.inner().pymalloc().used()
    }
}

impl Drop for CheckedHeap {
    fn drop(&mut self) {
        // Nobody waits, and what is given back need not be filled.
        self.set_interrupt(Interrupt::NEVER);
        let this = self.inner.as_ptr();
        // SAFETY: nobody uses the heap any more.
        unsafe {
            (*this).free_blocks();
            Pymalloc::release_arenas(&raw mut (*(*this).domains()).pymalloc);
            this.drop_in_place();
            dealloc(this.cast(), Layout::new::<Checked>());
        }
    }
}

unsafe extern "C-unwind" fn refuse_malloc(_: *mut c_void, _: usize) -> *mut c_void {
    ptr::null_mut()
}

unsafe extern "C-unwind" fn refuse_calloc(_: *mut c_void, _: usize, _: usize) -> *mut c_void {
    ptr::null_mut()
}

unsafe extern "C-unwind" fn refuse_realloc(_: *mut c_void, _: *mut c_void, _: usize) -> *mut c_void {
    ptr::null_mut()
}

unsafe extern "C-unwind" fn refuse_free(_: *mut c_void, _: *mut c_void) {}
