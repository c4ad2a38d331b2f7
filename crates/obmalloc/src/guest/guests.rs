//! What a heap knows of its guests: who they are, which blocks and arenas they gave, and what they are doing.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::ptr::NonNull;

use super::router::{Layer, Target};
use super::spans::{SpanId, Spans};
use super::{AllocatorId, Guest, GuestFault, GuestFaultKind, OwnAllocators, Threw, Verb, arenas};
use crate::allocator::Allocator;
use crate::domain::{Domain, Fault, FaultKind};
use crate::heap::{Checked, Mode};
use crate::pinned::Pinned;

/// How many calls of guests may run inside one another.
pub(super) const NESTED_MAX: u32 = 50;

/// What a span is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
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
pub(super) struct Own {
    pub(super) allocator: Allocator,
    /// The domains that it has been in.
    pub(super) domains: [bool; 3],
}

/// A block that a guest is resizing.
#[derive(Clone, Copy)]
pub(super) struct Moving {
    pub(super) piece: SpanId,
    pub(super) grant: SpanId,
    /// Bytes that the block is to have.
    pub(super) wanted: usize,
    /// Whether one of the heap's own allocators has resized the grant around it.
    pub(super) done: bool,
    /// Whether the guest has given the grant back.
    pub(super) given_back: bool,
}

/// What a heap knows of its guests. It stays where it is, because allocators point to it.
pub(crate) struct Guests {
    pub(super) heap: NonNull<Checked>,
    pub(super) own: RefCell<Vec<Own>>,
    pub(super) guests: RefCell<Vec<Rc<dyn Guest>>>,
    /// Ordered by address.
    pub(super) layers: RefCell<Vec<Pinned<Layer>>>,
    pub(super) spans: RefCell<Spans<Kind>>,
    /// Pieces of each domain.
    pub(super) pieces: [Cell<usize>; 3],
    /// The blocks that guests are resizing; each call runs inside the one before.
    pub(super) moving: RefCell<Vec<Moving>>,
    /// How many guests are being asked.
    pub(super) nested: Cell<u32>,
    /// Why the present call is to fail.
    pub(super) failure: Cell<Option<GuestFault>>,
    /// Why the last call failed.
    pub(super) told: Cell<Option<GuestFault>>,
    pub(super) arenas: arenas::Arenas,
    /// Whether the heap is being taken down.
    pub(super) leaving: Cell<bool>,
}

impl Guests {
    #[inline]
    pub(super) fn heap(&self) -> &Checked {
        // SAFETY: the heap owns this, and is there as long.
        unsafe { self.heap.as_ref() }
    }

    /// Notes why the present call is to fail. Until it ends, the account gives it no more memory.
    pub(super) fn fail(&self, fault: GuestFault) {
        self.heap().account().set_failing(true);
        self.failure.set(self.failure.take().or(Some(fault)));
    }

    pub(super) fn take_failure(&self) -> Option<GuestFault> {
        let failure = self.failure.take()?;
        self.heap().account().set_failing(false);
        Some(failure)
    }

    /// Whether a guest failed during a call of a domain, asked at the call's end. A call that a guest makes leaves the failure to the call
    /// outside, which fails too.
    pub(super) fn has_failed(&self) -> bool {
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
    pub(super) fn ask<T>(&self, verb: Verb, call: impl FnOnce(&OwnAllocators<'_>) -> Result<T, Threw>) -> Result<T, GuestFault> {
        let fault = |kind| GuestFault { verb, kind, answer: None, address: None };
        let nested = self.nested.get();
        if nested >= NESTED_MAX {
            return Err(fault(GuestFaultKind::TooDeep));
        }
        if self.heap().is_closed() && !self.leaving.get() {
            // A guest or a hook unwound inside this call. It gets no more memory.
            return Err(fault(GuestFaultKind::NoMemory));
        }
        self.nested.set(nested + 1);
        let before = self.heap().mode().replace(Mode::Asking);
        let closes = Closes(self, nested);
        // A guest may not free or resize blocks of domains through these allocators.
        let result = call(&OwnAllocators::new(self, None));
        core::mem::forget(closes);
        self.nested.set(nested);
        if self.heap().mode().get() == Mode::Asking {
            self.heap().mode().set(before);
        }
        result.map_err(|Threw(number)| fault(GuestFaultKind::Threw(number)))
    }

    pub(super) fn guest(&self, number: u32) -> Option<Rc<dyn Guest>> {
        self.guests.borrow().get(number as usize).cloned()
    }

    /// The number of one of the heap's own allocators, given to it on first use; `None` when there is no memory to remember it.
    pub(super) fn number_of(&self, allocator: Allocator, domain: Domain) -> Option<u32> {
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

    pub(super) fn own_allocator(&self, number: u32) -> Option<Allocator> {
        self.own.borrow().get(number as usize).map(|own| own.allocator)
    }

    /// The allocator that is in, also where a router stands in front of it.
    pub(super) fn present(&self, domain: Domain) -> Option<AllocatorId> {
        let allocator = self.heap().allocator(domain);
        Some(match self.target(&allocator) {
            Some(Target::Guest(number)) => AllocatorId::Guest(number),
            Some(Target::Router(number)) => AllocatorId::Own(number),
            None => AllocatorId::Own(self.number_of(allocator, domain)?),
        })
    }

    /// The guest or allocator behind a layer; `None` if the allocator is no layer.
    pub(super) fn target(&self, allocator: &Allocator) -> Option<Target> {
        let layers = self.layers.borrow();
        let place = layers.binary_search_by_key(&allocator.ctx.addr(), |layer| layer.as_ptr().addr()).ok()?;
        Some(layers[place].target)
    }

    /// The layer of a domain for a target, made when it is first needed.
    pub(super) fn layer(&self, domain: Domain, target: Target) -> Option<Allocator> {
        let mut layers = self.layers.borrow_mut();
        if let Some(known) = layers.iter().find(|layer| layer.domain == domain && layer.target == target) {
            return Some(Layer::as_allocator(known.as_ptr()));
        }
        layers.try_reserve(1).ok()?;
        let made = Pinned::try_new(Layer { guests: self, domain, target })?;
        let allocator = Layer::as_allocator(made.as_ptr());
        let place = layers.partition_point(|layer| layer.as_ptr() < made.as_ptr());
        layers.insert(place, made);
        Some(allocator)
    }

    /// Puts one of the heap's own allocators back, behind a router if blocks of guests still live. False when there is no memory for that.
    pub(super) fn put_back(&self, domain: Domain, number: u32) -> bool {
        let Some(allocator) = self.own_allocator(number) else { return false };
        self.take_back_whole_blocks(domain, number);
        // A guest that is being asked right now may still give a piece.
        let is_free_of_pieces = self.nested.get() == 0 && self.pieces[domain as usize].get() == 0;
        let takes_all = is_free_of_pieces && self.heap().takes_back(domain, &allocator);
        let allocator = if takes_all { Some(allocator) } else { self.layer(domain, Target::Router(number)) };
        let Some(allocator) = allocator else { return false };
        // SAFETY: an allocator of the heap's own that takes back all of the domain's blocks, or a router, which finds out which one does.
        unsafe { self.heap().set_allocator(domain, allocator) };
        true
    }

    /// Hands blocks back to one of the heap's own allocators: those that it gave to a guest, and that the guest gave to the domain unchanged.
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

    pub(super) fn count_piece(&self, domain: Domain, change: isize) {
        let count = &self.pieces[domain as usize];
        count.set(count.get().wrapping_add_signed(change));
    }

    /// Takes the router out of each domain whose last piece has gone, so that calls reach the heap's own allocator directly.
    pub(super) fn restore_speed(&self) {
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
    pub(super) fn piece_at(&self, domain: Domain, address: usize) -> Option<(SpanId, u32)> {
        let spans = self.spans.borrow();
        let id = spans.at(address)?;
        match spans.get(id).kind {
            Kind::Piece(of, guest) if of == domain => Some((id, guest)),
            _ => None,
        }
    }

    /// The grant by an allocator that begins at an address, whatever lies in it.
    pub(super) fn grant_at(&self, number: u32, address: usize) -> Option<SpanId> {
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

    /// Makes a fault more exact: an address that the ledger does not know may be a grant.
    pub(super) fn explain(&self, fault: Fault) -> Fault {
        let spans = self.spans.borrow();
        let is_grant = |id| matches!(spans.get(id).kind, Kind::Grant(_) | Kind::ArenaGrant);
        match fault.kind {
            FaultKind::ForeignPointer if spans.outermost_at(fault.address).is_some_and(is_grant) => {
                Fault { kind: FaultKind::Granted, ..fault }
            }
            _ => fault,
        }
    }

    /// The index in `moving` of the block being resized in a grant, if nothing else lies in that grant.
    pub(super) fn moving_in(&self, grant: SpanId) -> Option<usize> {
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
