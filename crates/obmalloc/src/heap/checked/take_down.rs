//! How the memory of a checked heap goes back to the system: at once when the heap is dropped, or in pieces before.
//!
//! The account or the ledger lists the C library's blocks, so each goes back once, and no search is needed. Everything else lies in those
//! blocks, in arenas, or in tables.

use alloc::alloc::{Layout, dealloc};
use alloc::vec::Vec;
use core::ffi::c_void;
use core::ptr::{self, NonNull};

use super::leaving::LeavingBlocks;
use super::{Checked, CheckedHeap, Mode};
use crate::address_hash::AddressSet;
use crate::allocator::Allocator;
use crate::domain::WholeOutsideRegion;
use crate::interrupt::{Interrupt, STRIDE};
use crate::os;
use crate::pymalloc::{Location, Pymalloc};

/// The memory that is still to be given back of a heap that is only to be dropped.
#[derive(Default)]
pub(crate) struct Pieces {
    /// The C library's blocks that are left; `None` before they are listed.
    blocks: Option<LeavingBlocks<Record>>,
    /// Parts of mappings whose pages have been in use: address and bytes. Dropping the heap unmaps what is left of them.
    tables: Vec<(NonNull<u8>, usize)>,
}

/// Which record lists the C library's blocks.
enum Record {
    /// The account's, which lists nothing else.
    Account(<AddressSet as IntoIterator>::IntoIter),
    /// The ledger. It also lists blocks in arenas outside the region, and does not list pymalloc's tables.
    Ledger(WholeOutsideRegion),
}

impl Iterator for Record {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        match self {
            Self::Account(roots) => roots.next(),
            Self::Ledger(blocks) => blocks.next(),
        }
    }
}

impl Pieces {
    /// Adds a part of one of the heap's mappings. Without memory to note it, the part goes with the mapping.
    pub fn add_table(&mut self, address: NonNull<u8>, size: usize) {
        if size != 0 && self.tables.try_reserve(1).is_ok() {
            self.tables.push((address, size));
        }
    }

    /// Gives back what is left. Asks `is_over` every few milliseconds whether to stop. Returns whether all is gone.
    ///
    /// # Safety
    /// No block, arena or table of the heap is used any more, and the heap is only fit to be dropped afterwards.
    pub unsafe fn go_on(&mut self, heap: &Checked, mut is_over: impl FnMut() -> bool) -> bool {
        // SAFETY: the caller's promise.
        if !unsafe { self.free_blocks(heap, &mut is_over) } || !heap.account.catch_up(&mut is_over) {
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

    /// Gives the C library's blocks back, as [`go_on`](Self::go_on) does.
    ///
    /// # Safety
    /// As there.
    unsafe fn free_blocks(&mut self, heap: &Checked, is_over: &mut dyn FnMut() -> bool) -> bool {
        let blocks = self.blocks.get_or_insert_with(|| heap.take_blocks());
        if !blocks.read(&mut *is_over) {
            return false;
        }
        let is_mixed = matches!(blocks.record(), Record::Ledger(_));
        let mut steps = 0;
        for block in blocks {
            if is_mixed && heap.pymalloc().locate(block) != Location::Outside {
                continue;
            }
            // SAFETY: a block of the account's; this was its only record; the caller's promise.
            if !unsafe { heap.account.release(block, is_over) } {
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
        if is_mixed {
            for table in heap.pymalloc().tables() {
                // SAFETY: as above: the account's, and its record is struck out below.
                unsafe { heap.account.release(table, &mut || false) };
            }
            // SAFETY: nothing else uses pymalloc now.
            unsafe { (*heap.domains()).pymalloc.forget_tables() };
        }
        true
    }
}

impl Checked {
    /// Lists the C library's blocks, without pymalloc's tables if the record is the ledger.
    fn take_blocks(&self) -> LeavingBlocks<Record> {
        if let Some(roots) = self.account.take_roots() {
            // SAFETY: nothing else uses pymalloc now. Its tables are among the roots.
            unsafe { (*self.domains()).pymalloc.forget_tables() };
            let count = roots.len();
            return LeavingBlocks::new(Record::Account(roots.into_iter()), count);
        }
        let count = self.ledger().count_outside_region();
        LeavingBlocks::new(Record::Ledger(self.ledger().take_outside_region()), count)
    }

    /// The C library's blocks while the account does not list them: the ledger's outside all arenas, and pymalloc's tables.
    fn plain_blocks(&self) -> impl Iterator<Item = usize> {
        let (ledger, pymalloc) = (&*self.ledger(), self.pymalloc());
        let is_outside = |address: &usize| pymalloc.locate(*address) == Location::Outside;
        ledger.whole_outside_region().filter(is_outside).chain(pymalloc.tables())
    }

    /// From now on the account lists its blocks, because the ledger will not. Call it while every address in the ledger is still a whole block of
    /// one of the heap's own allocators. False when there is no memory for that.
    pub fn know_roots(&self) -> bool {
        let count = self.ledger().count_outside_region() + self.pymalloc().count_tables();
        self.account.know_roots(count, self.plain_blocks())
    }

    /// Forgets the arenas: they have gone back to the allocators that gave them, or go with the region.
    pub fn forget_arenas(&self) {
        // SAFETY: nothing else uses pymalloc now, and no block of it is used any more.
        unsafe { (*self.domains()).pymalloc.forget_arenas() };
    }

    /// Closes the heap for good, because one of its calls was left in the middle. From now on every request fails and no address is a block.
    pub fn close(&self) {
        let refusing = Allocator {
            ctx: ptr::null_mut(),
            malloc: refuse_malloc,
            calloc: refuse_calloc,
            realloc: refuse_realloc,
            free: refuse_free,
        };
        // SAFETY: initialised; there is no reference to the field.
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
    /// Begins to take the heap down. Lists the parts of its mappings that have been in use.
    pub(crate) fn pieces(&self) -> Pieces {
        let mut pieces = Pieces::default();
        let (table, size) = self.inner().ledger().used_table(self.used());
        pieces.add_table(table, size);
        pieces
    }

    /// Bytes at the beginning of the region in which arenas have been.
    pub(crate) fn used(&self) -> usize {
        self.inner().pymalloc().used()
    }
}

impl Drop for CheckedHeap {
    fn drop(&mut self) {
        // No caller waits, and what is given back need not be filled.
        self.set_interrupt(Interrupt::NEVER);
        let this = self.inner.as_ptr();
        // SAFETY: the heap is not used any more.
        unsafe {
            Pieces::default().free_blocks(&*this, &mut || false);
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
