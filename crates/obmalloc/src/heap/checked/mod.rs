//! A heap that looks every address up before it uses it.

mod hooked;
mod inner;
mod leaving;
mod look;
mod take_down;
mod verify;
mod waiting;

use core::ptr::{self, NonNull};

use alloc::alloc::{Layout, alloc, dealloc};

pub(crate) use inner::{Checked, Mode};
pub(crate) use take_down::Pieces;

use super::{HeapError, HeapOptions, geometry};
use crate::allocator::{Allocator, ArenaAllocator};
use crate::domain::{Domain, Domains, Fault, Purpose};
use crate::interrupt::Interrupt;
use crate::pymalloc::Trimmed;

/// A request for a block.
#[derive(Clone, Copy)]
enum Request {
    Malloc(usize),
    Calloc(usize, usize),
    /// Without a block.
    Realloc(usize),
}

impl Request {
    /// Bytes of the block; `usize::MAX` if the product does not fit.
    fn size(self) -> usize {
        match self {
            Self::Malloc(size) | Self::Realloc(size) => size,
            Self::Calloc(count, size) => count.saturating_mul(size),
        }
    }

    fn make(self, heap: &Checked, domain: Domain) -> Block {
        match self {
            Self::Malloc(size) => heap.malloc(domain, size),
            Self::Calloc(count, size) => heap.calloc(domain, count, size),
            // SAFETY: no block.
            Self::Realloc(size) => unsafe { heap.realloc(domain, None, size) },
        }
    }
}

/// What a request gives.
type Block = Option<NonNull<u8>>;

/// A heap with a ledger of its live blocks: every misused address gives a [`Fault`], before anything is read or changed.
///
/// Unlike a [`Heap`](crate::Heap), it gives back everything when it is dropped, raw blocks included.
///
/// Only the heap decides what is a block. Its allocators are chosen when it is made:
///
/// ```compile_fail,E0599
/// # let heap = obmalloc::CheckedHeap::new(obmalloc::HeapOptions::new(&obmalloc::profile::V3_13)).unwrap();
/// heap.use_allocator(obmalloc::AllocatorName::Malloc);
/// ```
/// ```compile_fail,E0599
/// # let heap = obmalloc::CheckedHeap::new(obmalloc::HeapOptions::new(&obmalloc::profile::V3_13)).unwrap();
/// heap.size_given(0x1000);
/// ```
/// ```compile_fail,E0599
/// # let heap = obmalloc::CheckedHeap::new(obmalloc::HeapOptions::new(&obmalloc::profile::V3_13)).unwrap();
/// heap.find_blocks_outside();
/// ```
pub struct CheckedHeap {
    /// Owned. It does not move, because allocators point to it.
    inner: NonNull<Checked>,
}

// SAFETY: a heap owns everything that it points to, and the C library's malloc does not care who calls.
unsafe impl Send for CheckedHeap {}

impl CheckedHeap {
    /// An empty heap.
    ///
    /// # Errors
    /// When a size is out of its range, or there is no memory for the heap's tables.
    pub fn new(options: HeapOptions) -> Result<Self, HeapError> {
        let geometry = geometry(&options)?;
        let layout = Layout::new::<Checked>();
        // SAFETY: the layout is not empty.
        let place = NonNull::new(unsafe { alloc(layout) }).ok_or(HeapError::NoMemory)?.cast::<Checked>();
        // SAFETY: the parts are written there below, and stay there until the heap is dropped; the geometry was checked above.
        let Some(parts) = (unsafe { Checked::new(place.as_ptr(), &options, geometry) }) else {
            // SAFETY: allocated just now, with this layout.
            unsafe { dealloc(place.as_ptr().cast(), layout) };
            return Err(HeapError::NoMemory);
        };
        // SAFETY: fresh memory of the right layout.
        unsafe { place.write(parts) };
        let heap = Self { inner: place };
        heap.inner().note_allocators();
        if options.allocator.has_debug_hooks() {
            heap.setup_debug_hooks()?;
        }
        Ok(heap)
    }

    /// What the heap is made of.
    #[inline(always)]
    pub(crate) fn inner(&self) -> &Checked {
        // SAFETY: made by `new`, and there as long as the heap; whatever changes in it is in a cell.
        unsafe { self.inner.as_ref() }
    }

    /// A second handle to a heap.
    ///
    /// # Safety
    /// `inner` belongs to a heap that outlives the handle, and the handle is not dropped.
    pub(crate) unsafe fn from_inner(inner: NonNull<Checked>) -> Self {
        Self { inner }
    }

    /// The parts of the heap, for allocators that point to them while the heap lives.
    pub(crate) fn as_ptr(&self) -> NonNull<Checked> {
        self.inner
    }

    /// As [`Heap::malloc`](crate::Heap::malloc).
    #[inline]
    pub fn malloc(&self, domain: Domain, size: usize) -> Option<NonNull<u8>> {
        self.malloc_or(domain, size, |block| block)
    }

    /// As [`malloc`](Self::malloc). If the fast path cannot serve the request, calls `then` with the block and returns its result.
    #[inline(always)]
    pub(crate) fn malloc_or(&self, domain: Domain, size: usize, then: impl FnOnce(Block) -> Block) -> Block {
        self.enter(domain, self.inner().malloc(domain, size), Request::Malloc(size), then)
    }

    /// As [`Heap::calloc`](crate::Heap::calloc).
    #[inline]
    pub fn calloc(&self, domain: Domain, count: usize, size: usize) -> Option<NonNull<u8>> {
        self.calloc_or(domain, count, size, |block| block)
    }

    /// As [`malloc_or`](Self::malloc_or), for [`calloc`](Self::calloc).
    #[inline(always)]
    pub(crate) fn calloc_or(&self, domain: Domain, count: usize, size: usize, then: impl FnOnce(Block) -> Block) -> Block {
        self.enter(domain, self.inner().calloc(domain, count, size), Request::Calloc(count, size), then)
    }

    /// Enters the block that a request gave. `then` is called if the block's address is not all that the ledger needs, or if there is none.
    #[inline(always)]
    fn enter(&self, domain: Domain, block: Block, request: Request, then: impl FnOnce(Block) -> Block) -> Block {
        let Some(block) = block else { return then(self.ask_again(domain, request)) };
        if self.inner().ledger().insert_quickly(block.as_ptr().expose_provenance(), domain) {
            Some(block)
        } else {
            then(self.enter_slowly(domain, block, request.size()))
        }
    }

    /// Repeats a request that has failed, if quarantined blocks may have been in its way.
    #[cold]
    fn ask_again(&self, domain: Domain, request: Request) -> Block {
        let size = request.size();
        let block = if self.may_ask_again(size) { request.make(self.inner(), domain) } else { None };
        self.enter_slowly(domain, block?, size)
    }

    /// Enters a block whose address may not be all that the ledger needs.
    #[inline(never)]
    fn enter_slowly(&self, domain: Domain, block: NonNull<u8>, size: usize) -> Block {
        let (inner, address) = (self.inner(), block.as_ptr().expose_provenance());
        let is_entered = if inner.ledger().is_plain() {
            // No hooks, no guests, no parts, and open: there is nothing else to ask.
            inner.ledger().insert(address, size, domain)
        } else if inner.is_closed() {
            return None;
        } else {
            self.enter_carefully(domain, address, size)
        };
        if !is_entered {
            // SAFETY: the block was given just now and no other code knows it.
            unsafe { inner.free(domain, address) };
            return None;
        }
        Some(block)
    }

    /// Enters a block of an open heap that may have hooks, guests or parts. False when there is no memory for that.
    #[cold]
    fn enter_carefully(&self, domain: Domain, address: usize, size: usize) -> bool {
        let inner = self.inner();
        if inner.hooked.get() {
            inner.forget_dead(address);
        }
        let ledger = inner.ledger();
        if !inner.replaced.get()[domain as usize] {
            return ledger.insert_whole(address, size, domain);
        }
        let has_room = ledger.reserve_part();
        if has_room {
            ledger.insert_part(address, size, domain);
        }
        has_room
    }

    /// As [`Heap::realloc`](crate::Heap::realloc); a block is given as its address.
    ///
    /// # Errors
    /// When `address` is no live block of this heap and domain.
    #[inline]
    pub fn realloc(&self, domain: Domain, address: Option<usize>, size: usize) -> Result<Option<NonNull<u8>>, Fault> {
        let Some(address) = address else {
            let request = Request::Realloc(size);
            let block = self.enter(domain, request.make(self.inner(), domain), request, |block| block);
            // If the hooks refused the request, they have a fault that says why.
            return if block.is_none() { self.take_fault().map_or(Ok(None), Err) } else { Ok(block) };
        };
        if self.is_quarantining() {
            return self.realloc_to_another(domain, address, size);
        }
        self.realloc_at_once(domain, address, size)
    }

    #[inline(always)]
    fn realloc_at_once(&self, domain: Domain, address: usize, size: usize) -> Result<Option<NonNull<u8>>, Fault> {
        if self.has_debug_hooks() {
            return self.realloc_hooked(domain, address, size);
        }
        self.inner().check(domain, address, Purpose::Use)?;
        let moved = self.realloc_checked(domain, address, size);
        if moved.is_none() { self.corruption().map_or(Ok(None), Err) } else { Ok(moved) }
    }

    #[inline(always)]
    fn realloc_checked(&self, domain: Domain, address: usize, size: usize) -> Option<NonNull<u8>> {
        let inner = self.inner();
        if inner.calls_out() {
            return self.realloc_calling_out(domain, address, size);
        }
        // Room in the ledger first: once the block has moved, the call cannot fail.
        if !inner.ledger().reserve() {
            return None;
        }
        // SAFETY: the caller has checked that it is a live block of this domain.
        let block = unsafe { inner.realloc(domain, Some(address), size) }?;
        let moved = block.as_ptr().expose_provenance();
        if inner.hooked.get() {
            inner.forget_dead(moved);
        }
        inner.ledger().remove(address);
        let entered = inner.ledger().insert(moved, size, domain);
        debug_assert!(entered, "room for the entry was made before");
        Some(block)
    }

    /// As [`realloc_checked`](Self::realloc_checked), when a guest may run meanwhile. The block is not live until the call ends, so that the
    /// guest cannot use it.
    #[cold]
    fn realloc_calling_out(&self, domain: Domain, address: usize, size: usize) -> Option<NonNull<u8>> {
        let inner = self.inner();
        let replaced = inner.replaced.get()[domain as usize];
        if !inner.ledger().reserve_part() {
            return None;
        }
        inner.ledger().lay_up(address);
        // SAFETY: the caller has checked that it was a live block of this domain.
        let block = unsafe { inner.realloc(domain, Some(address), size) };
        let Some(block) = block.filter(|_| !inner.is_closed()) else {
            inner.ledger().revive(address, domain);
            return None;
        };
        let moved = block.as_ptr().expose_provenance();
        if inner.hooked.get() {
            inner.forget_dead(moved);
        }
        let ledger = inner.ledger();
        ledger.remember(address);
        // Blocks that the guest made may have used the room up. The block then exists without an owner.
        if !ledger.reserve_part() {
            return None;
        }
        if replaced {
            ledger.insert_part(moved, size, domain);
        } else {
            ledger.insert_whole(moved, size, domain);
        }
        Some(block)
    }

    /// As [`Heap::free`](crate::Heap::free); a block is given as its address.
    ///
    /// # Errors
    /// When `address` is no live block of this heap and domain. Nothing has been changed then.
    #[inline]
    pub fn free(&self, domain: Domain, address: usize) -> Result<(), Fault> {
        if self.free_quickly(domain, address) { Ok(()) } else { self.free_slowly(domain, address) }
    }

    /// Frees a block, if its address is all that the ledger needs. Otherwise [`free_slowly`](Self::free_slowly) has to.
    #[inline(always)]
    pub(crate) fn free_quickly(&self, domain: Domain, address: usize) -> bool {
        let is_struck = self.inner().ledger().strike_out(domain, address);
        if is_struck {
            // SAFETY: seen just above to have been a live block of this domain.
            unsafe { self.inner().free(domain, address) };
        }
        is_struck
    }

    /// Frees a block that [`free_quickly`](Self::free_quickly) has left, or finds what is wrong.
    #[inline(never)]
    pub(crate) fn free_slowly(&self, domain: Domain, address: usize) -> Result<(), Fault> {
        if self.is_quarantining() && self.detain(domain, address)? {
            return Ok(());
        }
        if self.has_debug_hooks() {
            return self.free_hooked(domain, address);
        }
        let inner = self.inner();
        if !inner.ledger().strike_out_outside_region(domain, address) {
            inner.check(domain, address, Purpose::Free)?;
            inner.ledger().remove(address);
        }
        // SAFETY: seen just above to have been a live block of this domain.
        unsafe { inner.free(domain, address) };
        Ok(())
    }

    /// `PyMem_Free(NULL)`: calls the allocator that is in, which frees nothing.
    pub fn free_null(&self, domain: Domain) {
        // SAFETY: no block.
        unsafe { self.inner().free(domain, 0) };
    }

    /// As [`free`](Self::free), for a caller that knows the block. If the fast path cannot free it, calls `then`.
    ///
    /// # Safety
    /// `address` is a live block of this heap and domain, or was one when the heap was closed, and is not used any more.
    #[inline]
    pub(crate) unsafe fn free_unchecked_or<T>(&self, domain: Domain, address: usize, then: impl FnOnce() -> T) {
        let inner = self.inner();
        debug_assert!(self.is_closed() || inner.check(domain, address, Purpose::Free).is_ok(), "the caller knows the block");
        let is_quick = inner.ledger().remove_quickly(address);
        if !is_quick {
            if self.is_closed() {
                // A panic closed the heap, and a hook caught it. The block goes with the heap.
                return;
            }
            // `inner.free` finds a damaged block again.
            if self.is_quarantining() && self.detain(domain, address) == Ok(true) {
                return;
            }
            inner.ledger().remove(address);
        }
        // SAFETY: the caller's promise.
        unsafe { inner.free(domain, address) };
        if !is_quick {
            then();
        }
    }

    /// Whether `address` may be used as a block of `domain`.
    ///
    /// # Errors
    /// What is wrong with it.
    #[inline]
    pub(crate) fn check_use(&self, domain: Domain, address: usize) -> Result<(), Fault> {
        self.inner().check(domain, address, Purpose::Use)
    }

    /// Whether an address lies in one of the heap's own arenas, not in an arena of a caller's allocator.
    pub(crate) fn is_in_own_arena(&self, address: usize) -> bool {
        self.inner().pymalloc().is_in_own_arena(address)
    }

    /// The part of the bytes [held](Self::held) that has been in use: all but trimmed pools, and the ends of arenas from which no pool has been
    /// carved.
    #[inline]
    pub(crate) fn touched(&self) -> usize {
        let pymalloc = self.inner().pymalloc();
        self.held().saturating_sub(pymalloc.uncarved() + pymalloc.forgotten())
    }

    /// What work that takes long asks.
    pub(crate) fn interrupt(&self) -> Interrupt {
        self.inner().interrupt()
    }

    /// Sets what long work asks whether to stop: filling and clearing large blocks, and walks over all blocks.
    pub(crate) fn set_interrupt(&self, interrupt: Interrupt) {
        // SAFETY: the domains are initialised; there is no reference to the field.
        unsafe { (*self.inner().domains.get()).interrupt = interrupt };
        self.inner().account.set_interrupt(interrupt);
    }

    /// Sets `size` bytes to zero; false if it was interrupted.
    ///
    /// # Safety
    /// They may be written to.
    pub(crate) unsafe fn clear(&self, at: usize, size: usize) -> bool {
        // SAFETY: the caller's promise.
        unsafe { self.interrupt().fill(ptr::with_exposed_provenance_mut(at), 0, size) }
    }

    /// `_testcapi.set_nomemory`: counts the requests to the domains' allocators from now on, beginning with 0. Those from number `start` on fail,
    /// up to but not including number `stop`; without `stop`, all later ones. A request that pymalloc passes on to raw counts twice.
    ///
    /// # Errors
    /// When there is no memory for that.
    pub fn set_nomemory(&self, start: usize, stop: Option<usize>) -> Result<(), HeapError> {
        if stop == Some(0) {
            // In CPython, too, all later requests fail then.
            return self.set_nomemory(start, None);
        }
        // SAFETY: the domains are initialised; a call that is running has read its allocator already.
        let done = unsafe { Domains::set_nomemory(self.inner().domains(), start, stop.unwrap_or(0)) };
        self.inner().note_allocators();
        if done { Ok(()) } else { Err(HeapError::NoMemory) }
    }

    /// `_testcapi.remove_mem_hooks`: requests succeed again. Puts back the allocators that were in when [`set_nomemory`](Self::set_nomemory)
    /// was first called. An allocator that has been put in since stays.
    #[doc(alias = "remove_mem_hooks")]
    pub fn remove_nomemory(&self) {
        self.take_nomemory();
    }

    /// As [`remove_nomemory`](Self::remove_nomemory). For each domain where a later allocator stays, returns the one that CPython would put back.
    pub(crate) fn take_nomemory(&self) -> [Option<Allocator>; 3] {
        while !self.empty_quarantine() {}
        // SAFETY: as above.
        let left = unsafe { Domains::remove_nomemory(self.inner().domains()) };
        self.inner().note_allocators();
        left
    }

    /// While set, the heap gets no more memory, from the arena allocator or the C library, as if the system had none.
    pub fn set_refusing(&self, refusing: bool) {
        self.inner().account.set_refusing(refusing);
    }

    /// `PyObject_SetArenaAllocator`: from now on arenas come from `allocator`. They do not count in [`held`](Self::held).
    ///
    /// # Errors
    /// When there is no memory for what that takes.
    ///
    /// # Safety
    /// As for [`Heap::set_arena_allocator`](crate::Heap::set_arena_allocator). The allocator gives no block of this heap as an arena.
    pub unsafe fn set_arena_allocator(&self, allocator: ArenaAllocator) -> Result<(), HeapError> {
        if !self.inner().know_roots() {
            return Err(HeapError::NoMemory);
        }
        // SAFETY: the caller's promise.
        unsafe { self.inner().set_arena_allocator(allocator, true) };
        Ok(())
    }

    /// As [`Heap::trim`](crate::Heap::trim). Blocks in quarantine stay. Under debug hooks, a pool in which something wrote to a freed block also
    /// stays, until that fault has been found. If the trim is interrupted, returns what was given back by then. Does nothing in a closed heap.
    pub fn trim(&self) -> Trimmed {
        if self.is_closed() {
            return Trimmed::default();
        }
        // SAFETY: the domains are initialised; nothing else uses pymalloc now. Of outside code only the question whether to stop is called.
        unsafe { (*self.inner().domains()).pymalloc.trim(self.interrupt()) }
    }
}
