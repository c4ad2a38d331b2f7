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
mod own;
mod router;
mod spans;
mod take_down;

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, OnceCell, RefCell};
use core::fmt;
use core::ptr::{self, NonNull};

pub(crate) use own::Keeper;
pub use own::{OwnAllocators, OwnError};
use router::{Layer, Target};
use spans::{SpanId, Spans};
pub use take_down::TakeDown;

use crate::allocator::Allocator;
use crate::domain::{Domain, Fault, FaultKind};
use crate::heap::{Checked, CheckedHeap, HeapError, HeapOptions, Mode};
use crate::interrupt::Undone;
use crate::pinned::Pinned;
use crate::pymalloc::{Corruption, Trimmed};

/// Calls of guests inside one another.
const NESTED_MAX: u32 = 50;

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

/// Which function of a guest it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verb {
    /// [`Guest::malloc`]
    Malloc,
    /// [`Guest::calloc`]
    Calloc,
    /// [`Guest::realloc`]
    Realloc,
    /// [`Guest::free`]
    Free,
    /// [`ArenaGuest::alloc`]
    ArenaAlloc,
    /// [`ArenaGuest::free`]
    ArenaFree,
}

/// What was wrong with a guest's answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GuestFaultKind {
    /// It failed, with a number of its own.
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
    /// Too many guests are being asked inside one another.
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
    /// What it answered.
    pub answer: Option<usize>,
    /// Where the block is now, when it has been resized or freed all the same.
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

/// Why an allocator was not put in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetError {
    /// It is none of this heap's, or was never in that domain.
    Unknown,
    /// It was given up, or there is no memory for it.
    Undone(Undone),
}

/// What a span is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// What one of the heap's own allocators, by number, gave to a guest.
    Grant(u32),
    /// What the heap's own arena allocator gave to a guest.
    ArenaGrant,
    /// A block of a domain that a guest, by number, gave.
    Piece(Domain, u32),
    /// An arena that a guest gave.
    Arena,
}

/// One of the heap's own allocators.
struct Own {
    allocator: Allocator,
    /// The domains that it has been in.
    domains: [bool; 3],
}

/// A block that a guest is resizing.
#[derive(Clone, Copy)]
struct Moving {
    piece: SpanId,
    grant: SpanId,
    /// Bytes that it is to have.
    wanted: usize,
    /// Whether one of the heap's own allocators has resized it.
    done: bool,
    /// Whether the guest has given the grant back.
    given_back: bool,
}

/// What a heap knows of its guests. It stays where it is, because allocators point to it.
pub(crate) struct Guests {
    heap: NonNull<Checked>,
    own: RefCell<Vec<Own>>,
    guests: RefCell<Vec<Rc<dyn Guest>>>,
    layers: RefCell<Vec<Pinned<Layer>>>,
    spans: RefCell<Spans<Kind>>,
    /// Pieces of each domain.
    pieces: [Cell<usize>; 3],
    /// The blocks that guests are resizing, each inside the one before.
    moving: RefCell<Vec<Moving>>,
    /// Guests that are being asked.
    nested: Cell<u32>,
    /// Why the present call is to fail.
    failure: Cell<Option<GuestFault>>,
    /// Why the last call failed.
    told: Cell<Option<GuestFault>>,
    arenas: arenas::Arenas,
    /// Whether the heap is being taken down.
    leaving: Cell<bool>,
}

impl Guests {
    #[inline]
    fn heap(&self) -> &Checked {
        // SAFETY: the heap owns this, and is there as long.
        unsafe { self.heap.as_ref() }
    }

    /// Notes why the present call is to fail, and lets it have no memory from elsewhere.
    fn fail(&self, fault: GuestFault) {
        self.heap().account().set_failing(true);
        self.failure.set(self.failure.take().or(Some(fault)));
    }

    fn take_failure(&self) -> Option<GuestFault> {
        let failure = self.failure.take()?;
        self.heap().account().set_failing(false);
        Some(failure)
    }

    /// At the end of a call of a domain: whether a guest failed on the way. Inside a guest, the call outside fails too.
    fn has_failed(&self) -> bool {
        if self.nested.get() != 0 {
            let failure = self.failure.take();
            self.failure.set(failure);
            return failure.is_some();
        }
        let failure = self.take_failure();
        self.told.set(self.told.take().or(failure));
        failure.is_some()
    }

    /// Asks a guest. Should it unwind, the heap is closed for good.
    fn ask<T>(&self, verb: Verb, call: impl FnOnce(&OwnAllocators<'_>) -> Result<T, Threw>) -> Result<T, GuestFault> {
        let fault = |kind| GuestFault { verb, kind, answer: None, address: None };
        let nested = self.nested.get();
        if nested >= NESTED_MAX {
            return Err(fault(GuestFaultKind::TooDeep));
        }
        if self.heap().is_closed() && !self.leaving.get() {
            // A call that was on its way; there is no memory for it any more.
            return Err(fault(GuestFaultKind::NoMemory));
        }
        self.nested.set(nested + 1);
        let before = self.heap().mode().replace(Mode::Asking);
        let closes = Closes(self, nested);
        // While a guest is asked, blocks of domains are out of its reach.
        let result = call(&OwnAllocators::new(self, None));
        core::mem::forget(closes);
        self.nested.set(nested);
        if self.heap().mode().get() == Mode::Asking {
            self.heap().mode().set(before);
        }
        result.map_err(|Threw(number)| fault(GuestFaultKind::Threw(number)))
    }

    fn guest(&self, number: u32) -> Option<Rc<dyn Guest>> {
        self.guests.borrow().get(number as usize).cloned()
    }

    /// The number of one of the heap's own allocators, which is known from now on; `None` when there is no memory for that.
    fn number_of(&self, allocator: Allocator, domain: Domain) -> Option<u32> {
        let mut own = self.own.borrow_mut();
        let number = match own.iter().position(|own| own.allocator == allocator) {
            Some(number) => number,
            None => {
                own.try_reserve(1).ok()?;
                own.push(Own { allocator, domains: [false; 3] });
                own.len() - 1
            }
        };
        own[number].domains[domain as usize] = true;
        Some(number as u32)
    }

    fn own_allocator(&self, number: u32) -> Option<Allocator> {
        self.own.borrow().get(number as usize).map(|own| own.allocator)
    }

    /// The allocator that is in, whichever way its blocks go back to those that gave them.
    fn present(&self, domain: Domain) -> Option<AllocatorId> {
        let allocator = self.heap().allocator(domain);
        Some(match self.target(&allocator) {
            Some(Target::Guest(number)) => AllocatorId::Guest(number),
            Some(Target::Router(number)) => AllocatorId::Own(number),
            None => AllocatorId::Own(self.number_of(allocator, domain)?),
        })
    }

    /// What an allocator that is in calls, if it is one of the layers.
    fn target(&self, allocator: &Allocator) -> Option<Target> {
        let layers = self.layers.borrow();
        layers.iter().find(|layer| ptr::eq(layer.as_ptr(), allocator.ctx.cast())).map(|layer| layer.target)
    }

    /// The layer of a domain for a target, made when it is first needed.
    fn layer(&self, domain: Domain, target: Target) -> Option<Allocator> {
        let mut layers = self.layers.borrow_mut();
        let known = layers.iter().position(|layer| layer.domain == domain && layer.target == target);
        let number = match known {
            Some(number) => number,
            None => {
                layers.try_reserve(1).ok()?;
                layers.push(Pinned::try_new(Layer { guests: self, domain, target })?);
                layers.len() - 1
            }
        };
        Some(Layer::as_allocator(layers[number].as_ptr()))
    }

    /// Puts one of the heap's own allocators back. False when there is no memory for what that takes.
    fn put_back(&self, domain: Domain, number: u32) -> bool {
        let Some(allocator) = self.own_allocator(number) else { return false };
        self.take_back_whole_blocks(domain, number);
        // What a guest is being asked for may become a piece.
        let is_free_of_pieces = self.nested.get() == 0 && self.pieces[domain as usize].get() == 0;
        let takes_all = is_free_of_pieces && self.heap().takes_back(domain, &allocator);
        let allocator = if takes_all { Some(allocator) } else { self.layer(domain, Target::Router(number)) };
        let Some(allocator) = allocator else { return false };
        // SAFETY: an allocator of the heap's own that takes back all of the domain's blocks, or a router, which finds out which one does.
        unsafe { self.heap().set_allocator(domain, allocator) };
        true
    }

    /// Blocks that one of the heap's own allocators gave to a guest, which gave them to the domain as they were, are that allocator's again.
    fn take_back_whole_blocks(&self, domain: Domain, number: u32) {
        let mut spans = self.spans.borrow_mut();
        let mut whole = Vec::new();
        for (id, piece) in spans.iter() {
            let is_whole = |&grant: &SpanId| {
                let grant = spans.get(grant);
                grant.kind == Kind::Grant(number) && (grant.address, grant.size) == (piece.address, piece.size)
            };
            let is_moving = || self.moving.borrow().iter().any(|moving| moving.piece == id);
            if let (Kind::Piece(of, _), Some(grant)) = (piece.kind, spans.around(id).filter(is_whole))
                && of == domain
                && spans.is_empty(id)
                && !is_moving()
            {
                if whole.try_reserve(1).is_err() {
                    return;
                }
                whole.push((id, grant));
            }
        }
        for (piece, grant) in whole {
            spans.remove(piece);
            spans.remove(grant);
            self.count_piece(domain, -1);
        }
    }

    fn count_piece(&self, domain: Domain, change: isize) {
        let count = &self.pieces[domain as usize];
        count.set(count.get().wrapping_add_signed(change));
    }

    /// Where the last piece of a domain has gone to which one of the heap's own allocators was put back, that comes in directly.
    fn restore_speed(&self) {
        for domain in Domain::ALL {
            if let Some(Target::Router(number)) = self.target(&self.heap().allocator(domain))
                && self.pieces[domain as usize].get() == 0
                && let Some(own) = self.own_allocator(number)
                && self.heap().takes_back(domain, &own)
            {
                // SAFETY: as in `put_back`.
                unsafe { self.heap().set_allocator(domain, own) };
            }
        }
    }

    /// The piece of a domain that begins at an address, and the guest that gave it.
    fn piece_at(&self, domain: Domain, address: usize) -> Option<(SpanId, u32)> {
        let spans = self.spans.borrow();
        let id = spans.at(address)?;
        match spans.get(id).kind {
            Kind::Piece(of, guest) if of == domain => Some((id, guest)),
            _ => None,
        }
    }

    /// The grant of an allocator's that begins at an address, whatever lies in it.
    fn grant_at(&self, number: u32, address: usize) -> Option<SpanId> {
        let spans = self.spans.borrow();
        let mut id = spans.at(address)?;
        while spans.get(id).address == address {
            if spans.get(id).kind == Kind::Grant(number) {
                return Some(id);
            }
            id = spans.around(id)?;
        }
        None
    }

    /// What is wrong with an address that the ledger knows nothing of: it may be a grant.
    fn explain(&self, fault: Fault) -> Fault {
        let spans = self.spans.borrow();
        let is_grant = |id| matches!(spans.get(id).kind, Kind::Grant(_) | Kind::ArenaGrant);
        match fault.kind {
            FaultKind::ForeignPointer if spans.outermost_at(fault.address).is_some_and(is_grant) => {
                Fault { kind: FaultKind::Granted, ..fault }
            }
            _ => fault,
        }
    }

    /// The block that is being resized, by its place in `moving`, if nothing else lies in a grant.
    fn moving_in(&self, grant: SpanId) -> Option<usize> {
        let index = self.moving.borrow().iter().rposition(|moving| moving.grant == grant)?;
        let piece = self.moving.borrow()[index].piece;
        let spans = self.spans.borrow();
        spans.is_only_one_in(piece, grant).then_some(index)
    }
}

/// Closes a heap for good when it is dropped: a guest has unwound.
struct Closes<'guests>(&'guests Guests, u32);

impl Drop for Closes<'_> {
    fn drop(&mut self) {
        self.0.nested.set(self.1);
        self.0.heap().close();
    }
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
    /// When the allocator is none of this heap's or was never in this domain, or that was given up, or there is no memory for it.
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
