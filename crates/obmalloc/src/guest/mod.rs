//! Room `guest`: whose memory is it. Leans on `heap`.
//!
//! A *guest* is an allocator that is not trusted: a script's, a fuzzer's, a Rust program's. It is asked as CPython asks a `PyMemAllocatorEx`,
//! and gives addresses. The rules:
//!
//! 1. A *grant* is memory that one of the heap's own allocators gave directly to a guest. It is on record exactly once, from that call
//!    until it is given back or the heap goes.
//! 2. A guest may answer a request with nothing, or with a *piece*: bytes that lie in one grant of the same heap, aligned, and clear of
//!    every other live piece. Anything else fails the call, and nothing has changed. The same rules serve arenas.
//! 3. While a piece lies in a grant, the grant is neither given back nor moved, with one exception: inside a guest's `realloc`, the heap's
//!    own `realloc` of the grant in which nothing lies but the block that is being resized. Its result is then the block, whatever else the
//!    guest says. A guest that gives that grant back inside its `realloc` is believed when the block has left it.
//! 4. The guest or allocator that gave a block is known by where the block lies, not by what is in the domain now.
//! 5. What a guest throws changes none of this.
//!
//! Grants, pieces and arenas are [spans](spans) of one record; rules 1 to 4 are questions to it. The memory itself is the account's
//! (`heap`), which gives it back when the heap goes, so what a guest keeps is never lost and never given back twice.

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
/// It gets its memory from `own`, the heap's own allocators, and may use the heap it serves, also the block-giving calls of it; only a block
/// that is being resized is out of its reach. A guest that unwinds closes its heap for good: every later call fails, and the memory goes
/// back when the heap is dropped.
pub trait Guest {
    /// A block of at least `size` bytes. Zero bytes give a block too, which takes one byte of its grant.
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
    /// It was given up, or there is no memory for it.
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
/// An address becomes a block only if the heap knows it for a grant:
///
/// ```compile_fail,E0624
/// # let heap = obmalloc::GuestHeap::new(obmalloc::HeapOptions::new(&obmalloc::profile::V3_13)).unwrap();
/// heap.adopt(obmalloc::Domain::Raw, 0x1000);
/// ```
pub struct GuestHeap {
    // Before the guests: the heap's own functions may point to them until it is gone.
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

    /// The heap, for what has nothing to do with guests.
    #[inline(always)]
    pub(crate) fn checked(&self) -> &CheckedHeap {
        &self.heap
    }

    /// What is known of guests, from now on.
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

    /// `PyMem_SetAllocator`: from now on the domain's requests go to an allocator. Blocks that are there stay: it is asked to free and resize
    /// them too, and where it is one of the heap's own and did not give a block, the one that did is asked.
    ///
    /// # Errors
    /// When the allocator is not one of this heap's, or was never in this domain; when there is no memory for it, or it was interrupted.
    pub fn set_allocator(&self, domain: Domain, allocator: AllocatorId) -> Result<(), SetError> {
        let no_memory = SetError::Undone(Undone::NoMemory);
        let guests = self.guests().map_err(|_| no_memory)?;
        if self.heap.is_closed() {
            return Err(SetError::Unknown);
        }
        // Quarantined blocks are the present one's.
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

    /// The heap's own allocators, to be called directly. What they give is a grant: no block of a domain, but the caller's until it is given
    /// back.
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

    /// Why the last call failed, if that was because of a guest; given once. Of several, the first. What was freed is freed all the same, and
    /// what was resized is where `address` says.
    pub fn take_guest_fault(&self) -> Option<GuestFault> {
        self.guests.get()?.told.take()
    }

    /// Runs a callback. Its calls are not told of a failure that came before it: that belongs to the call around the callback.
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

    /// Puts the earlier failure back, also where the callback left one of its own.
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

    /// At the end of a call that may have run a guest: whether one failed.
    #[cold]
    #[inline(never)]
    fn settle(&self) -> bool {
        let Some(guests) = self.guests.get() else { return false };
        if guests.nested.get() == 0 {
            guests.restore_speed();
        }
        guests.has_failed()
    }

    /// A request that did not go the quick way is done; where a guest failed, the block goes back.
    #[cold]
    #[inline(never)]
    fn settle_request(&self, domain: Domain, block: Option<NonNull<u8>>) -> Option<NonNull<u8>> {
        if !self.settle() {
            return block;
        }
        if let Some(block) = block {
            // What is wrong with it is of no interest.
            let _ = self.heap.free(domain, block.as_ptr().expose_provenance());
            self.settle();
        }
        None
    }

    /// As [`CheckedHeap::malloc`]; also `None` when a guest [failed](Self::take_guest_fault).
    #[inline]
    pub fn malloc(&self, domain: Domain, size: usize) -> Option<NonNull<u8>> {
        self.heap.malloc_or(domain, size, |block| if self.has_guests() { self.settle_request(domain, block) } else { block })
    }

    /// As [`CheckedHeap::calloc`]; also `None` when a guest [failed](Self::take_guest_fault).
    #[inline]
    pub fn calloc(&self, domain: Domain, count: usize, size: usize) -> Option<NonNull<u8>> {
        self.heap.calloc_or(
            domain,
            count,
            size,
            |block| if self.has_guests() { self.settle_request(domain, block) } else { block },
        )
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
        self.settle_realloc(domain, address, size, result)
    }

    #[cold]
    fn settle_realloc(
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
            return result.map(|block| if self.has_guests() { self.settle_request(domain, block) } else { block });
        }
        self.settle();
        result
    }

    /// As [`CheckedHeap::free`]. Where a guest [failed](Self::take_guest_fault), the block is freed all the same.
    ///
    /// # Errors
    /// When `address` is no live block of this heap and domain. Nothing has been changed then.
    #[inline]
    pub fn free(&self, domain: Domain, address: usize) -> Result<(), Fault> {
        self.heap.free_or(
            domain,
            address,
            |result| if self.has_guests() { self.settle_free(domain, address, result) } else { result },
        )
    }

    #[cold]
    #[inline(never)]
    fn settle_free(&self, domain: Domain, address: usize, result: Result<(), Fault>) -> Result<(), Fault> {
        let result = if result.is_err() && self.adopt(domain, address) { self.heap.free(domain, address) } else { result };
        self.settle();
        result.map_err(|fault| self.explain(fault))
    }

    /// Whether a guest gave the block of a domain at an address.
    pub(crate) fn is_guests(&self, domain: Domain, address: usize) -> bool {
        self.guests.get().is_some_and(|guests| guests.piece_at(domain, address).is_some())
    }

    /// What is wrong with an address that is no block, perhaps because it is a grant.
    pub(crate) fn explain(&self, fault: Fault) -> Fault {
        self.guests.get().map_or(fault, |guests| guests.explain(fault))
    }

    /// As [`CheckedHeap::free_null`].
    pub fn free_null(&self, domain: Domain) {
        self.heap.free_null(domain);
        self.settle();
    }

    /// As [`CheckedHeap::free_unchecked_or`].
    ///
    /// # Safety
    /// As there.
    #[inline]
    pub(crate) unsafe fn free_unchecked(&self, domain: Domain, address: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.heap.free_unchecked_or(domain, address, || self.has_guests() && self.settle()) };
    }

    /// As [`CheckedHeap::empty_quarantine`].
    pub(crate) fn empty_quarantine(&self) -> bool {
        let is_empty = self.heap.empty_quarantine();
        self.settle();
        is_empty
    }

    /// In C a block is the allocator's, whether that was called directly or through the domain: a grant of the allocator that is in becomes a
    /// block of the domain.
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

    /// As [`CheckedHeap::remove_nomemory`]. In a domain where something else has been put in since, what CPython puts back comes back, as with
    /// [`set_allocator`](Self::set_allocator).
    ///
    /// # Errors
    /// When that was given up, or there is no memory for it: some domains still have what they had.
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
                    // SAFETY: a layer, which has been in this domain.
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

    /// Takes the heap down: all that can be done with it is to go on, until its memory has gone back.
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
