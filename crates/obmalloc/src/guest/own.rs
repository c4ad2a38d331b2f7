//! The heap's own allocators as a guest calls them. What they give is a grant.

use core::ffi::c_void;
use core::fmt;
use core::mem::ManuallyDrop;
use core::ptr;

use super::{AllocatorId, GuestFault, Guests, Kind};
use crate::allocator::{Allocator, PY_SSIZE_T_MAX};
use crate::domain::{Domain, Fault, FaultKind, Function, Purpose};
use crate::heap::CheckedHeap;

/// Why a call of one of the heap's own allocators failed. It has changed nothing, but for [`Guest`](Self::Guest).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OwnError {
    /// It is none of this heap's own allocators.
    Unknown,
    /// The address is no grant of this allocator, or the grant's guard bytes are damaged.
    Fault(Fault),
    /// A block or an arena lies in the grant at this address.
    Occupied(usize),
    /// The address is a block of this domain, and another allocator is in the domain, or a guest is being asked.
    BlockOf(Domain, usize),
    /// A guest that the allocator called failed. If the fault has an `address`, the memory is there now.
    Guest(GuestFault),
}

impl fmt::Display for OwnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("expected one of this heap's own allocators"),
            Self::Fault(fault) => fault.fmt(f),
            Self::Occupied(address) => write!(f, "expected memory that no block or arena lies in, but one lies at {address:#x}"),
            Self::BlockOf(domain, address) => {
                write!(f, "expected memory that this allocator gave directly, but {address:#x} is a block of the {domain} domain")
            }
            Self::Guest(fault) => fault.fmt(f),
        }
    }
}

impl core::error::Error for OwnError {}

/// The heap's own allocators, to be called directly, also by a guest while it is asked.
#[derive(Clone, Copy)]
pub struct OwnAllocators<'heap> {
    guests: &'heap Guests,
    keeper: Option<&'heap dyn Keeper>,
}

/// The owner of blocks that no other code may give back: a heap's objects.
pub(crate) trait Keeper {
    /// Refuses the address of such a block.
    fn refuse(&self, domain: Domain, address: usize) -> Result<(), Fault>;
}

/// What one of the heap's own allocators has at an address.
enum Held {
    /// A grant in which nothing lies, or only the block that is being resized.
    Grant(super::SpanId),
    /// A block of a domain that the allocator is in. The domain must free it.
    Block(Domain),
}

impl<'heap> OwnAllocators<'heap> {
    pub(super) fn new(guests: &'heap Guests, keeper: Option<&'heap dyn Keeper>) -> Self {
        Self { guests, keeper }
    }

    pub(super) fn guests(&self) -> &'heap Guests {
        self.guests
    }

    /// One of the heap's own allocators. While the heap is taken down, only those for raw memory can be called: they need no arena.
    fn allocator(&self, id: AllocatorId) -> Result<(u32, Allocator), OwnError> {
        let AllocatorId::Own(number) = id else { return Err(OwnError::Unknown) };
        let allocator = self.guests.own_allocator(number).ok_or(OwnError::Unknown)?;
        if self.guests.heap().is_closed() || (self.guests.leaving.get() && !self.is_raw(id)) {
            return Err(OwnError::Fault(Fault::new(FaultKind::HeapClosed, 0, Domain::Raw)));
        }
        Ok((number, allocator))
    }

    /// Whether an allocator is the heap's own for raw memory, perhaps with debug hooks around it, which needs no arena.
    pub fn is_raw(&self, id: AllocatorId) -> bool {
        let AllocatorId::Own(number) = id else { return false };
        self.guests.own_allocator(number).is_some_and(|allocator| self.guests.heap().is_own(allocator, Domain::Raw))
    }

    /// The domain whose live block the address is, if the allocator is in that domain. Such a block may be freed and resized through either.
    pub fn domain_block(&self, id: AllocatorId, address: usize) -> Option<Domain> {
        let (number, own) = self.allocator(id).ok()?;
        match self.held(number, own, address) {
            Ok(Held::Block(domain)) => Some(domain),
            _ => None,
        }
    }

    /// A grant of at least `size` bytes; `None` when there is no memory.
    ///
    /// # Errors
    /// When `id` is no allocator of this heap's own, or a guest or a debug hook below it failed.
    pub fn malloc(&self, id: AllocatorId, size: usize) -> Result<Option<usize>, OwnError> {
        let (number, own) = self.allocator(id)?;
        // SAFETY: an allocator of the heap's own takes any size.
        self.give(number, own, size, || unsafe { (own.malloc)(own.ctx, size) })
    }

    /// A grant of `count * size` zeroed bytes; `None` when there is no memory.
    ///
    /// # Errors
    /// As for [`malloc`](Self::malloc).
    pub fn calloc(&self, id: AllocatorId, count: usize, size: usize) -> Result<Option<usize>, OwnError> {
        let (number, own) = self.allocator(id)?;
        let Some(total) = count.checked_mul(size) else { return Ok(None) };
        // SAFETY: as above.
        self.give(number, own, total, || unsafe { (own.calloc)(own.ctx, count, size) })
    }

    /// Makes a request and records its block as a grant.
    fn give(
        &self,
        number: u32,
        own: Allocator,
        size: usize,
        request: impl FnOnce() -> *mut c_void,
    ) -> Result<Option<usize>, OwnError> {
        let guests = self.guests;
        if size > PY_SSIZE_T_MAX || !guests.spans.borrow_mut().reserve(1) {
            return Ok(None);
        }
        let (block, error) = guests.calling_own(request);
        // A guest that the allocator called may have used the room up.
        let room = guests.spans.borrow_mut().reserve(1);
        if !block.is_null() && (error.is_some() || !room) {
            guests.calling_own(|| {
                // SAFETY: it gave this block just now, and no other code knows it.
                unsafe { (own.free)(own.ctx, block) };
                ptr::null_mut()
            });
        }
        if let Some(error) = error {
            return Err(error);
        }
        if block.is_null() || !room {
            return Ok(None);
        }
        let address = block.expose_provenance();
        guests.heap().forget_dead(address);
        guests.heap().ledger().forget_freed(address);
        guests.spans.borrow_mut().insert(address, size, Kind::Grant(number));
        Ok(Some(address))
    }

    /// Resizes a grant, perhaps moves it, and keeps its contents up to the smaller size. On `None` the grant is as it was. Without an address
    /// this is [`malloc`](Self::malloc). While a guest's `realloc` runs, this may also resize the grant of that block, if no other piece lies in
    /// it; the grant then gets at least as many bytes as the block is to have.
    ///
    /// # Errors
    /// As for [`free`](Self::free). Where a guest below failed late, the error says where the grant is. A grant with a block of the raw domain
    /// in it is not moved by a debug hook around a guest, because the guest could move it into an arena: `Occupied`.
    pub fn realloc(&self, id: AllocatorId, address: Option<usize>, size: usize) -> Result<Option<usize>, OwnError> {
        let (number, own) = self.allocator(id)?;
        let guests = self.guests;
        let Some(address) = address else {
            // SAFETY: as for `malloc`.
            return self.give(number, own, size, || unsafe { (own.realloc)(own.ctx, ptr::null_mut(), size) });
        };
        let grant = match self.held(number, own, address)? {
            Held::Grant(grant) => grant,
            Held::Block(domain) => {
                self.refuse_kept(domain, address)?;
                return self.realloc_block(domain, address, size);
            }
        };
        if size > PY_SSIZE_T_MAX {
            return Ok(None);
        }
        let moving = guests.moving_in(grant);
        let (mut size, mut offset) = (size, 0);
        if let Some(index) = moving {
            let moving = guests.moving.borrow()[index];
            let piece = *guests.spans.borrow().get(moving.piece);
            // A block of raw must not get into an arena. Only a guest below a hook may move the grant into one.
            let calls_guest = || !Domain::ALL.into_iter().any(|domain| guests.heap().is_own(own, domain));
            if matches!(piece.kind, Kind::Piece(Domain::Raw, _)) && calls_guest() {
                return Err(OwnError::Occupied(piece.address));
            }
            offset = piece.address - address;
            // A block of 0 bytes takes one byte, behind what the guest keeps in front of it.
            size = size.max(offset.saturating_add(if offset == 0 { moving.wanted } else { moving.wanted.max(1) }));
        }
        // While the allocator resizes it, the memory is in no record.
        let piece = moving.map(|index| guests.moving.borrow()[index].piece);
        let (was, piece_was) = {
            let mut spans = guests.spans.borrow_mut();
            let sizes = (spans.get(grant).size, piece.map_or(0, |piece| spans.get(piece).size));
            piece.into_iter().for_each(|piece| spans.detach(piece));
            spans.detach(grant);
            sizes
        };
        let place = ptr::with_exposed_provenance_mut::<c_void>(address);
        // SAFETY: a block that this allocator gave; nothing lies in it but the piece that moves with it.
        let (moved, error) = guests.calling_own(|| unsafe { (own.realloc)(own.ctx, place, size) });
        let (at, now) = if moved.is_null() { (address, was) } else { (moved.expose_provenance(), size) };
        if !moved.is_null() {
            guests.heap().forget_dead(at);
        }
        if at != address {
            guests.heap().ledger().forget_freed(at);
        }
        let mut spans = guests.spans.borrow_mut();
        spans.attach(grant, at, now);
        if let (Some(index), Some(piece)) = (moving, piece) {
            let moving = &mut guests.moving.borrow_mut()[index];
            spans.attach(piece, at + offset, if moved.is_null() { piece_was } else { moving.wanted });
            moving.done |= !moved.is_null();
        }
        match error {
            Some(OwnError::Guest(fault)) => Err(OwnError::Guest(GuestFault { address: Some(at), ..fault })),
            Some(error) => Err(error),
            None => Ok((!moved.is_null()).then_some(at)),
        }
    }

    /// Gives a grant back; does nothing for `None`. A block of a domain that the allocator is in is freed through the domain. Inside a guest's
    /// `realloc`, the grant around the block being resized goes back once the block has left it.
    ///
    /// # Errors
    /// When `id` is none of this heap's own allocators, the address is no grant of it, or something lies in the grant. When a guest that the
    /// allocator called failed: the grant has been given back all the same.
    pub fn free(&self, id: AllocatorId, address: Option<usize>) -> Result<(), OwnError> {
        let (number, own) = self.allocator(id)?;
        let guests = self.guests;
        let Some(address) = address else { return Ok(()) };
        let grant = match self.held(number, own, address)? {
            Held::Grant(grant) => grant,
            Held::Block(domain) => {
                self.refuse_kept(domain, address)?;
                return self.free_block(domain, address);
            }
        };
        if let Some(index) = guests.moving_in(grant) {
            guests.moving.borrow_mut()[index].given_back = true;
            return Ok(());
        }
        guests.give_back(grant, own).map_or(Ok(()), Err)
    }

    /// Bytes of the grant at an address, whichever allocator gave it; `None` if something lies in it.
    pub fn grant_size(&self, address: usize) -> Option<usize> {
        let spans = self.guests.spans.borrow();
        let id = spans.at(address)?;
        matches!(spans.get(id).kind, Kind::Grant(_)).then(|| spans.get(id).size).filter(|_| spans.is_empty(id))
    }

    fn held(&self, number: u32, own: Allocator, address: usize) -> Result<Held, OwnError> {
        let guests = self.guests;
        if let Some(grant) = guests.grant_at(number, address) {
            if let Some(index) = guests.moving_in(grant) {
                if guests.moving.borrow()[index].given_back {
                    return Err(OwnError::Fault(Fault::new(FaultKind::DoubleFree, address, guests.domain_of(number))));
                }
            } else if !guests.spans.borrow().is_empty(grant) {
                return Err(OwnError::Occupied(address));
            }
            // A damaged grant stays on record.
            let domain = guests.domain_of(number);
            let hooks = guests.heap().hooks().filter(|hooks| hooks.giver(domain, address) == Some(own));
            let damage = hooks.and_then(|hooks| hooks.examine(Function::Free, domain, address));
            return damage.map_or(Ok(Held::Grant(grant)), |fault| Err(OwnError::Fault(fault)));
        }
        let domains = guests.own.borrow().get(number as usize).map_or([false; 3], |own| own.domains);
        let mut fault = Fault::new(FaultKind::ForeignPointer, address, guests.domain_of(number));
        for domain in Domain::ALL.into_iter().filter(|&domain| domains[domain as usize]) {
            match guests.heap().check(domain, address, Purpose::Free) {
                Ok(()) if guests.nested.get() == 0 && guests.present(domain) == Some(AllocatorId::Own(number)) => {
                    return Ok(Held::Block(domain));
                }
                Ok(()) => return Err(OwnError::BlockOf(domain, address)),
                Err(found) => fault = found,
            }
        }
        Err(OwnError::Fault(guests.explain(fault)))
    }

    fn refuse_kept(&self, domain: Domain, address: usize) -> Result<(), OwnError> {
        self.keeper.map_or(Ok(()), |keeper| keeper.refuse(domain, address).map_err(OwnError::Fault))
    }

    fn free_block(&self, domain: Domain, address: usize) -> Result<(), OwnError> {
        self.guests.as_heap(|heap| heap.free(domain, address)).map_err(OwnError::Fault)?;
        self.guests.take_failure().map_or(Ok(()), |fault| Err(OwnError::Guest(fault)))
    }

    fn realloc_block(&self, domain: Domain, address: usize, size: usize) -> Result<Option<usize>, OwnError> {
        let block = self.guests.as_heap(|heap| heap.realloc(domain, Some(address), size)).map_err(OwnError::Fault)?;
        let block = block.map(|block| block.as_ptr().expose_provenance());
        match self.guests.take_failure() {
            Some(fault) => Err(OwnError::Guest(GuestFault { address: block.or(fault.address), ..fault })),
            None => Ok(block),
        }
    }
}

impl Guests {
    /// The heap without its guests.
    pub(super) fn as_heap<T>(&self, call: impl FnOnce(&CheckedHeap) -> T) -> T {
        // SAFETY: the heap is there as long as its guests, and is not dropped here.
        call(&ManuallyDrop::new(unsafe { CheckedHeap::from_inner(self.heap) }))
    }

    /// A domain that one of the heap's own allocators has been in.
    fn domain_of(&self, number: u32) -> Domain {
        let own = self.own.borrow();
        let domains = own.get(number as usize).map_or([false; 3], |own| own.domains);
        Domain::ALL.into_iter().find(|&domain| domains[domain as usize]).unwrap_or(Domain::Raw)
    }

    /// Calls one of the heap's own allocators. Returns its block and what went wrong; there may be both.
    fn calling_own(&self, call: impl FnOnce() -> *mut c_void) -> (*mut c_void, Option<OwnError>) {
        let before = self.take_failure();
        let block = call();
        let failed = self.take_failure().map(OwnError::Guest);
        let error = failed.or_else(|| self.as_heap(|heap| heap.take_fault()).map(OwnError::Fault));
        if let Some(before) = before {
            self.fail(before);
        }
        (block, error)
    }

    /// Gives a grant back to the allocator that gave it. Returns what went wrong.
    pub(super) fn give_back(&self, grant: super::SpanId, own: Allocator) -> Option<OwnError> {
        let address = self.spans.borrow().get(grant).address;
        self.spans.borrow_mut().remove(grant);
        let (_, error) = self.calling_own(|| {
            // SAFETY: a block that this allocator gave, with nothing in it; this was its only record.
            unsafe { (own.free)(own.ctx, ptr::with_exposed_provenance_mut(address)) };
            ptr::null_mut()
        });
        self.heap().ledger().note_freed(address);
        error
    }
}
