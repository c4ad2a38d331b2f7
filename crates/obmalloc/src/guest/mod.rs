//! Room `guest`: allocators that are not trusted, and which of them owns a block. Leans on `heap`.
//!
//! A *guest* is an allocator that is not trusted: a script's, a fuzzer's, a Rust program's. It is asked as CPython asks a `PyMemAllocatorEx`,
//! and gives addresses. The rules:
//!
//! 1. A *grant* is memory that one of the heap's own allocators gave directly to a guest. It is on record exactly once, from that call
//!    until it is given back, is adopted as a block of its allocator's domain, or the heap goes.
//! 2. A guest may answer a request with nothing, or with a *piece*: bytes that lie in one grant of the same heap, aligned, and clear of
//!    every other live piece. Any other answer fails the call and changes nothing. The same rules hold for arenas.
//! 3. A grant with a piece in it is neither given back nor moved. One exception, inside a guest's `realloc`, if no other piece lies in the
//!    grant of the block that is being resized:
//!    - The guest may call the heap's own `realloc` on that grant. The resized grant is then the block, and the heap ignores the answer.
//!    - The guest may give that grant back. It then goes back once the block has left it.
//!
//!    A debug hook around a guest moves no grant with a raw block in it: the guest could move it into an arena, where no raw block may lie.
//! 4. Where a block lies tells which guest or allocator gave it. Which allocator is in the domain now does not matter.
//! 5. These rules also hold when a guest throws.
//!
//! Grants, pieces and arenas are [spans](spans) of one record; rules 1 to 4 are questions to it. The memory itself is the account's
//! (`heap`), which gives it back when the heap goes. So memory that a guest keeps is not leaked, and is given back once.

mod arenas;
mod fault;
mod guests;
mod own;
mod router;
mod spans;
mod take_down;

use alloc::rc::Rc;
use core::cell::{Cell, OnceCell, RefCell};
use core::ptr::NonNull;

pub use fault::{GuestFault, GuestFaultKind, Verb};
pub(crate) use guests::Guests;
use guests::{Kind, Moving, NESTED_MAX};
pub(crate) use own::Keeper;
pub use own::{OwnAllocators, OwnError};
use router::Target;
use spans::{SpanId, Spans};
pub use take_down::TakeDown;

use crate::domain::{Domain, Fault};
use crate::heap::{CheckedHeap, HeapError, HeapOptions};
use crate::interrupt::Undone;
use crate::pinned::Pinned;
use crate::pymalloc::{Corruption, Trimmed};

/// A guest could not answer; the number is its own, and comes back in [`GuestFaultKind::Threw`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Threw(pub u64);

/// What a guest answers a request with: the address of a block, or `None` when it has none.
pub type Answer = Result<Option<usize>, Threw>;

/// An allocator that is not trusted (`PyMemAllocatorEx`).
///
/// It gets its memory from `own`, the heap's own allocators. It may call the heap that it serves, for new blocks too; only a block that is
/// being resized is out of its reach. A guest that unwinds closes its heap for good: every later call fails, and the memory goes back when
/// the heap is dropped.
pub trait Guest {
    /// A block of at least `size` bytes. Zero bytes give a block too; it takes one byte of its grant.
    ///
    /// # Errors
    /// When the guest cannot answer: the call fails.
    fn malloc(&self, own: &OwnAllocators<'_>, size: usize) -> Answer;
    /// `count * size` zeroed bytes.
    ///
    /// # Errors
    /// As for `malloc`.
    fn calloc(&self, own: &OwnAllocators<'_>, count: usize, size: usize) -> Answer;
    /// The block, perhaps moved, with its contents up to the smaller size; on `None` the block is as it was. Without a block this is
    /// `malloc`.
    ///
    /// # Errors
    /// As for `malloc`.
    fn realloc(&self, own: &OwnAllocators<'_>, address: Option<usize>, size: usize) -> Answer;
    /// Takes a block back, whichever allocator gave it; from now on its memory is the guest's.
    ///
    /// # Errors
    /// When the guest fails. The block is freed all the same.
    fn free(&self, own: &OwnAllocators<'_>, address: Option<usize>) -> Result<(), Threw>;
}

/// An arena allocator that is not trusted (`PyObjectArenaAllocator`).
pub trait ArenaGuest {
    /// `size` bytes at a multiple of 16.
    ///
    /// # Errors
    /// When the guest cannot answer: the call fails.
    fn alloc(&self, own: &OwnAllocators<'_>, size: usize) -> Answer;
    /// Takes an arena back.
    ///
    /// # Errors
    /// When the guest fails. The arena is given back all the same.
    fn free(&self, own: &OwnAllocators<'_>, address: usize, size: usize) -> Result<(), Threw>;
}

/// An allocator of a heap (`PyMem_GetAllocator`). Equal ones are the same allocator.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum AllocatorId {
    /// One of the heap's own: what a domain began with, a debug hook, or what fails on purpose.
    Own(u32),
    /// A guest.
    Guest(u32),
}

/// Why an allocator was not put in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetError {
    /// It is none of this heap's, or was never in that domain.
    Unknown,
    /// The call was interrupted, or there is no memory for it.
    Undone(Undone),
}

/// A [`CheckedHeap`] with guests.
///
/// ```
/// use obmalloc::{AllocatorId, Answer, Domain, Guest, GuestHeap, HeapOptions, OwnAllocators, Threw, profile};
///
/// /// Counts the blocks that pass through it.
/// struct Counting(AllocatorId, std::cell::Cell<usize>);
///
/// impl Guest for Counting {
///     fn malloc(&self, own: &OwnAllocators<'_>, size: usize) -> Answer {
///         self.1.set(self.1.get() + 1);
///         own.malloc(self.0, size).map_err(|_| Threw(1))
///     }
///     fn calloc(&self, own: &OwnAllocators<'_>, count: usize, size: usize) -> Answer {
///         self.1.set(self.1.get() + 1);
///         own.calloc(self.0, count, size).map_err(|_| Threw(1))
///     }
///     fn realloc(&self, own: &OwnAllocators<'_>, address: Option<usize>, size: usize) -> Answer {
///         own.realloc(self.0, address, size).map_err(|_| Threw(1))
///     }
///     fn free(&self, own: &OwnAllocators<'_>, address: Option<usize>) -> Result<(), Threw> {
///         own.free(self.0, address).map_err(|_| Threw(1))
///     }
/// }
///
/// let heap = GuestHeap::new(HeapOptions::new(&profile::V3_13))?;
/// let pymalloc = heap.allocator(Domain::Obj)?;
/// let counting = std::rc::Rc::new(Counting(pymalloc, Default::default()));
/// let guest = heap.add_guest(counting.clone())?;
/// heap.set_allocator(Domain::Obj, guest).expect("memory");
/// let block = heap.malloc(Domain::Obj, 64).expect("64 bytes").as_ptr().expose_provenance();
/// heap.free(Domain::Obj, block)?;
/// assert_eq!(counting.1.get(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// An address becomes a block only if the heap knows that it is a grant:
///
/// ```compile_fail,E0624
/// # let heap = obmalloc::GuestHeap::new(obmalloc::HeapOptions::new(&obmalloc::profile::V3_13)).unwrap();
/// heap.adopt(obmalloc::Domain::Raw, 0x1000);
/// ```
pub struct GuestHeap {
    // Dropped before the guests: the heap's functions may point to them.
    heap: CheckedHeap,
    /// Made when they are first needed.
    guests: OnceCell<Pinned<Guests>>,
}

impl GuestHeap {
    /// An empty heap.
    ///
    /// # Errors
    /// When a size is out of its range, or there is no memory for the heap's tables.
    pub fn new(options: HeapOptions) -> Result<Self, HeapError> {
        Ok(Self { heap: CheckedHeap::new(options)?, guests: OnceCell::new() })
    }

    /// The checked heap, for calls that do not concern guests.
    #[inline(always)]
    pub(crate) fn checked(&self) -> &CheckedHeap {
        &self.heap
    }

    /// The record of guests, made on the first call.
    fn guests(&self) -> Result<&Guests, HeapError> {
        if self.guests.get().is_none() {
            if !self.heap.inner().know_roots() {
                return Err(HeapError::NoMemory);
            }
            let guests = Guests {
                heap: self.heap.as_ptr(),
                own: RefCell::default(),
                guests: RefCell::default(),
                layers: RefCell::default(),
                spans: RefCell::new(Spans::new()),
                pieces: Default::default(),
                moving: RefCell::default(),
                nested: Cell::new(0),
                failure: Cell::new(None),
                told: Cell::new(None),
                arenas: arenas::Arenas::new(self.heap.inner()),
                leaving: Cell::new(false),
            };
            let guests = Pinned::try_new(guests).ok_or(HeapError::NoMemory)?;
            guests.moving.borrow_mut().try_reserve(NESTED_MAX as usize + 2).map_err(|_| HeapError::NoMemory)?;
            let _ = self.guests.set(guests);
        }
        self.guests.get().map(|guests| &**guests).ok_or(HeapError::NoMemory)
    }

    /// `PyMem_GetAllocator`: what is in.
    ///
    /// # Errors
    /// When there is no memory to remember it.
    pub fn allocator(&self, domain: Domain) -> Result<AllocatorId, HeapError> {
        self.guests()?.present(domain).ok_or(HeapError::NoMemory)
    }

    /// Makes a guest known, to be [put in](Self::set_allocator).
    ///
    /// # Errors
    /// When there is no memory to remember it.
    pub fn add_guest(&self, guest: Rc<dyn Guest>) -> Result<AllocatorId, HeapError> {
        let mut guests = self.guests()?.guests.borrow_mut();
        guests.try_reserve(1).map_err(|_| HeapError::NoMemory)?;
        guests.push(guest);
        Ok(AllocatorId::Guest(guests.len() as u32 - 1))
    }

    /// `PyMem_SetAllocator`: from now on the domain's requests go to an allocator. A guest must then also free and resize the blocks that are
    /// already live in the domain. One of the heap's own allocators gets only its own blocks; any other block goes to the allocator that gave it.
    ///
    /// # Errors
    /// When the allocator is not one of this heap's, or was never in this domain; when there is no memory for it, or it was interrupted.
    pub fn set_allocator(&self, domain: Domain, allocator: AllocatorId) -> Result<(), SetError> {
        let no_memory = SetError::Undone(Undone::NoMemory);
        let guests = self.guests().map_err(|_| no_memory)?;
        if self.heap.is_closed() {
            return Err(SetError::Unknown);
        }
        // The present allocator must free the blocks in quarantine.
        if !self.empty_quarantine() {
            return Err(SetError::Undone(Undone::GivenUp));
        }
        match allocator {
            AllocatorId::Own(number) => {
                if !guests.own.borrow().get(number as usize).is_some_and(|own| own.domains[domain as usize]) {
                    return Err(SetError::Unknown);
                }
                if !guests.put_back(domain, number) {
                    return Err(no_memory);
                }
            }
            AllocatorId::Guest(number) => {
                guests.guest(number).ok_or(SetError::Unknown)?;
                let layer = guests.layer(domain, Target::Guest(number)).ok_or(no_memory)?;
                // SAFETY: a layer does what an allocator does, whatever its guest does, and takes back all blocks; the heap has it.
                unsafe { guests.heap().set_allocator(domain, layer) };
            }
        }
        Ok(())
    }

    /// The heap's own allocators, to be called directly. They give grants: memory that is the caller's until it is given back, and no block of a
    /// domain.
    ///
    /// # Errors
    /// When there is no memory for what that takes.
    pub fn own_allocators(&self) -> Result<OwnAllocators<'_>, HeapError> {
        Ok(OwnAllocators::new(self.guests()?, None))
    }

    /// The same, for a heap that keeps some blocks for itself.
    pub(crate) fn own_allocators_beside<'heap>(
        &'heap self,
        keeper: &'heap dyn Keeper,
    ) -> Result<OwnAllocators<'heap>, HeapError> {
        Ok(OwnAllocators::new(self.guests()?, Some(keeper)))
    }

    /// `PyObject_SetArenaAllocator`: from now on arenas come from a guest, or from the heap's own arena allocator again.
    ///
    /// # Errors
    /// When there is no memory for what that takes.
    pub fn set_arena_guest(&self, guest: Option<Rc<dyn ArenaGuest>>) -> Result<(), HeapError> {
        if self.heap.is_closed() {
            return Ok(());
        }
        self.guests()?.set_arena_guest(guest);
        Ok(())
    }

    /// Whether there may be grants: an allocator has been taken out, or a guest put in.
    #[inline(always)]
    pub(crate) fn has_guests(&self) -> bool {
        self.guests.get().is_some()
    }

    /// Whether a call of the domains may run a guest.
    pub(crate) fn calls_guests(&self) -> bool {
        self.guests.get().is_some() && self.heap.inner().calls_out()
    }

    /// The guest's failure that made the last call fail. Returned once; of several, the first. A block that was to be freed is freed all the
    /// same, and a block that was resized lies where `address` says.
    pub fn take_guest_fault(&self) -> Option<GuestFault> {
        self.guests.get()?.told.take()
    }

    /// Runs a callback. An earlier failure is hidden from the callback's calls, because it belongs to the call around the callback.
    #[inline]
    pub(crate) fn calling_back<T>(&self, run: impl FnOnce() -> T) -> T {
        let told = self.guests.get().and_then(|guests| guests.told.take());
        let fault = self.heap.take_fault_of_hooks();
        let result = run();
        if told.is_some() || fault.is_some() {
            self.restore_faults(told, fault);
        }
        result
    }

    /// Puts the earlier failure back, in place of one that the callback left.
    #[cold]
    fn restore_faults(&self, told: Option<GuestFault>, fault: Option<Fault>) {
        if let (Some(guests), Some(_)) = (self.guests.get(), told) {
            guests.told.set(told);
        }
        if let Some(fault) = fault {
            self.heap.take_fault_of_hooks();
            self.heap.keep_fault(fault);
        }
    }

    /// Whether a guest failed, asked at the end of a call that may have run one.
    #[cold]
    #[inline(never)]
    fn end_call(&self) -> bool {
        let Some(guests) = self.guests.get() else { return false };
        if guests.nested.get() == 0 {
            guests.restore_speed();
        }
        guests.has_failed()
    }

    /// Ends a request that did not go the quick way. If a guest failed, the block goes back.
    #[cold]
    #[inline(never)]
    fn end_request(&self, domain: Domain, block: Option<NonNull<u8>>) -> Option<NonNull<u8>> {
        if !self.end_call() {
            return block;
        }
        if let Some(block) = block {
            // A fault of this free does not matter: the request fails anyway.
            let _ = self.heap.free(domain, block.as_ptr().expose_provenance());
            self.end_call();
        }
        None
    }

    /// As [`CheckedHeap::malloc`]; also `None` when a guest [failed](Self::take_guest_fault).
    #[inline]
    pub fn malloc(&self, domain: Domain, size: usize) -> Option<NonNull<u8>> {
        self.heap.malloc_or(domain, size, |block| if self.has_guests() { self.end_request(domain, block) } else { block })
    }

    /// As [`CheckedHeap::calloc`]; also `None` when a guest [failed](Self::take_guest_fault).
    #[inline]
    pub fn calloc(&self, domain: Domain, count: usize, size: usize) -> Option<NonNull<u8>> {
        self.heap.calloc_or(domain, count, size, |block| if self.has_guests() { self.end_request(domain, block) } else { block })
    }

    /// As [`CheckedHeap::realloc`]; also `None` when a guest [failed](Self::take_guest_fault), unless the block has been resized all the same.
    ///
    /// # Errors
    /// When `address` is no live block of this heap and domain.
    #[inline]
    pub fn realloc(&self, domain: Domain, address: Option<usize>, size: usize) -> Result<Option<NonNull<u8>>, Fault> {
        let result = self.heap.realloc(domain, address, size);
        if self.guests.get().is_none() {
            return result;
        }
        self.end_realloc(domain, address, size, result)
    }

    #[cold]
    fn end_realloc(
        &self,
        domain: Domain,
        address: Option<usize>,
        size: usize,
        result: Result<Option<NonNull<u8>>, Fault>,
    ) -> Result<Option<NonNull<u8>>, Fault> {
        let result = match (result, address) {
            (Err(_), Some(address)) if self.adopt(domain, address) => self.heap.realloc(domain, Some(address), size),
            (result, _) => result.map_err(|fault| self.explain(fault)),
        };
        if address.is_none() {
            return result.map(|block| if self.has_guests() { self.end_request(domain, block) } else { block });
        }
        self.end_call();
        result
    }

    /// As [`CheckedHeap::free`]. Where a guest [failed](Self::take_guest_fault), the block is freed all the same.
    ///
    /// # Errors
    /// When `address` is no live block of this heap and domain. Nothing has been changed then.
    #[inline]
    pub fn free(&self, domain: Domain, address: usize) -> Result<(), Fault> {
        if self.heap.free_quickly(domain, address) { Ok(()) } else { self.free_slowly(domain, address) }
    }

    #[cold]
    #[inline(never)]
    fn free_slowly(&self, domain: Domain, address: usize) -> Result<(), Fault> {
        if !self.has_guests() {
            // Passed on where it is: to copy so large a result takes longer than to look the block up.
            return self.heap.free_slowly(domain, address);
        }
        let mut result = self.heap.free_slowly(domain, address);
        if result.is_err() && self.adopt(domain, address) {
            result = self.heap.free(domain, address);
        }
        self.end_call();
        result.map_err(|fault| self.explain(fault))
    }

    /// Whether a guest gave the block of a domain at an address.
    pub(crate) fn is_guests(&self, domain: Domain, address: usize) -> bool {
        self.guests.get().is_some_and(|guests| guests.piece_at(domain, address).is_some())
    }

    /// Makes a fault more exact: an address that is no block may be a grant.
    pub(crate) fn explain(&self, fault: Fault) -> Fault {
        self.guests.get().map_or(fault, |guests| guests.explain(fault))
    }

    /// As [`CheckedHeap::free_null`].
    pub fn free_null(&self, domain: Domain) {
        self.heap.free_null(domain);
        self.end_call();
    }

    /// As [`CheckedHeap::free_unchecked_or`].
    ///
    /// # Safety
    /// As there.
    #[inline]
    pub(crate) unsafe fn free_unchecked(&self, domain: Domain, address: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.heap.free_unchecked_or(domain, address, || self.has_guests() && self.end_call()) };
    }

    /// As [`CheckedHeap::empty_quarantine`].
    pub(crate) fn empty_quarantine(&self) -> bool {
        let is_empty = self.heap.empty_quarantine();
        self.end_call();
        is_empty
    }

    /// Turns a grant into a block of the domain, if the domain's present allocator gave the grant. C makes no such difference: it may free
    /// through the domain what it got from the allocator directly.
    fn adopt(&self, domain: Domain, address: usize) -> bool {
        let Some(guests) = self.guests.get() else { return false };
        if guests.heap().ledger().domain_of(address).is_some() || guests.nested.get() != 0 {
            return false;
        }
        let Some(AllocatorId::Own(number)) = guests.present(domain) else { return false };
        let Some(grant) = guests.grant_at(number, address) else { return false };
        let mut spans = guests.spans.borrow_mut();
        let size = spans.get(grant).size;
        if !spans.is_empty(grant) || !guests.heap().ledger().insert_whole(address, size, domain) {
            return false;
        }
        spans.remove(grant);
        true
    }

    /// As [`CheckedHeap::remove_nomemory`], but also in domains where another allocator has been put in since: as CPython does, it puts the
    /// earlier one back there, as [`set_allocator`](Self::set_allocator) would.
    ///
    /// # Errors
    /// When it was interrupted, or there is no memory: some domains keep the allocator that they had.
    pub fn remove_nomemory(&self) -> Result<(), Undone> {
        if self.guests.get().is_none() {
            self.heap.remove_nomemory();
            return Ok(());
        }
        let guests = self.guests().map_err(|_| Undone::NoMemory)?;
        if !self.empty_quarantine() {
            return Err(Undone::GivenUp);
        }
        for (domain, left) in Domain::ALL.into_iter().zip(self.heap.take_nomemory()) {
            let Some(allocator) = left else { continue };
            let done = match guests.target(&allocator) {
                Some(_) => {
                    // SAFETY: a layer that has been in this domain.
                    unsafe { guests.heap().set_allocator(domain, allocator) };
                    true
                }
                None => guests.number_of(allocator, domain).is_some_and(|number| guests.put_back(domain, number)),
            };
            if !done {
                return Err(Undone::NoMemory);
            }
        }
        Ok(())
    }

    /// As [`CheckedHeap::trim`]. Arenas that were taken while a guest's arena allocator was in, or a guest's arena held, are left alone.
    pub fn trim(&self) -> Trimmed {
        self.heap.trim()
    }

    /// As [`CheckedHeap::verify`].
    ///
    /// # Errors
    /// The first structure that does not hold.
    pub fn verify(&self) -> Result<(), Corruption> {
        let Some(guests) = self.guests.get() else { return self.heap.verify() };
        let spans = guests.spans.borrow();
        self.heap.verify_with(|begin, size| spans.begins_within(begin, size))
    }

    /// Takes the heap down. Its memory goes back through [`TakeDown::go_on`].
    pub fn take_down(self) -> TakeDown {
        TakeDown::new(self, None)
    }
}

impl Drop for GuestHeap {
    fn drop(&mut self) {
        if let Some(guests) = self.guests.get() {
            guests.leave();
        }
    }
}
