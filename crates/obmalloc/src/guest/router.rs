//! An allocator in a domain that finds the guest for each call: the one that is in, or the one that gave the block.

use core::ffi::c_void;
use core::ptr;

use super::{Answer, Guest, GuestFault, GuestFaultKind, Guests, Kind, Moving, OwnError, SpanId, Verb};
use crate::allocator::Allocator;
use crate::domain::Domain;
use crate::pymalloc::Location;

/// A guest, or the router in front of one of the heap's own allocators, as the allocator of a domain. It does not move while the heap lives.
pub(super) struct Layer {
    pub guests: *const Guests,
    pub domain: Domain,
    pub target: Target,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Target {
    /// A guest, by number. It is asked about every block, also those that it did not give.
    Guest(u32),
    /// One of the heap's own allocators, by number. It is asked about its own blocks; a guest's blocks go to that guest.
    Router(u32),
}

impl Layer {
    pub fn as_allocator(this: *const Self) -> Allocator {
        let ctx = this.cast_mut().cast();
        Allocator { ctx, malloc: layer_malloc, calloc: layer_calloc, realloc: layer_realloc, free: layer_free }
    }

    fn guests(&self) -> &Guests {
        // SAFETY: the guests own their layers, and outlive all calls of them.
        unsafe { &*self.guests }
    }

    /// Asks the target for a block.
    fn request(&self, verb: Verb, size: usize, own: impl FnOnce(Allocator) -> *mut c_void, ask: Ask<'_>) -> *mut c_void {
        let guests = self.guests();
        match self.target {
            Target::Router(number) => guests.own_allocator(number).map_or(ptr::null_mut(), own),
            Target::Guest(number) => {
                let way = Way { domain: self.domain, guest: number, before: guests.heap().allocator(self.domain) };
                let asked = guests.ask_guest(number, verb, ask);
                guests.end(asked.and_then(|answer| guests.claim(way, verb, answer, size, None)))
            }
        }
    }

    /// The guest that is to free or resize a block, and the block's piece if a guest gave it. `None` if one of the heap's own allocators is to
    /// do so.
    fn giver(&self, address: usize) -> Option<(u32, Option<SpanId>)> {
        let piece = self.guests().piece_at(self.domain, address);
        match self.target {
            Target::Guest(number) => Some((number, piece.map(|(piece, _)| piece))),
            Target::Router(_) => piece.map(|(piece, number)| (number, Some(piece))),
        }
    }

    /// The allocator of the heap's own that gave a block.
    fn own(&self, address: usize) -> Allocator {
        let heap = self.guests().heap();
        let expected = match self.target {
            Target::Router(number) => self.guests().own_allocator(number),
            Target::Guest(_) => None,
        };
        let expected = expected.unwrap_or(heap.own(self.domain));
        // A block that pymalloc got from a guest of the raw domain is no hook's block, though a hook may have given that guest the memory.
        if self.guests().passed_on(address).is_some() { expected } else { heap.giver(self.domain, address, expected) }
    }
}

/// The domain and the guest that a request came to.
#[derive(Clone, Copy)]
struct Way {
    domain: Domain,
    guest: u32,
    /// The allocator that was in the domain when the request came.
    before: Allocator,
}

/// How a guest is asked.
type Ask<'a> = &'a dyn Fn(&dyn Guest, &super::OwnAllocators<'_>) -> Answer;

impl Guests {
    fn ask_guest(&self, number: u32, verb: Verb, ask: Ask<'_>) -> Result<Option<usize>, GuestFault> {
        let guest = self.guest(number).ok_or(GuestFault { verb, kind: GuestFaultKind::NoMemory, answer: None, address: None })?;
        self.ask(verb, |own| ask(&*guest, own))
    }

    /// The answer for the engine. A failure gives NULL, and is reported when the domain's call ends.
    fn end(&self, done: Result<Option<usize>, GuestFault>) -> *mut c_void {
        match done {
            Ok(address) => ptr::with_exposed_provenance_mut(address.unwrap_or(0)),
            Err(fault) => {
                self.fail(fault);
                ptr::null_mut()
            }
        }
    }

    /// Judges a guest's answer by rule 2 and enters it as a piece of the domain, in place of `instead` if the guest resized that.
    fn claim(
        &self,
        Way { domain, guest, before }: Way,
        verb: Verb,
        answer: Option<usize>,
        size: usize,
        instead: Option<SpanId>,
    ) -> Result<Option<usize>, GuestFault> {
        let Some(address) = answer else { return Ok(None) };
        let refuse = |kind| Err(GuestFault { verb, kind, answer, address: None });
        let heap = self.heap();
        if address == 0 || !address.is_multiple_of(heap.pymalloc().geometry().alignment) {
            return refuse(GuestFaultKind::Unaligned);
        }
        // pymalloc's `free` takes every address in the region for its own, also where there is no arena yet.
        let (region, len) = heap.pymalloc().region();
        let is_pymallocs = address.wrapping_sub(region) < len || heap.pymalloc().locate(address) != Location::Outside;
        if domain == Domain::Raw && is_pymallocs {
            return refuse(GuestFaultKind::InArena);
        }
        let mut spans = self.spans.borrow_mut();
        let old = instead.map(|old| (old, *spans.get(old)));
        if heap.confuses_hook(domain, address, before, old.map(|(_, was)| was.address)) {
            return refuse(GuestFaultKind::Occupied);
        }
        if !spans.reserve(1) {
            return refuse(GuestFaultKind::NoMemory);
        }
        if let Some((old, _)) = old {
            spans.detach(old);
        }
        let found = self.find_room(&spans, address, size).and_then(|grant| {
            // SAFETY: these bytes lie in a grant, and nothing else lies in them.
            let is_zero = || unsafe { all_zero(address, size) };
            if verb == Verb::Calloc && !is_zero() { Err(GuestFaultKind::NotZeroed) } else { Ok(grant) }
        });
        if let Err(kind) = found {
            if let Some((old, was)) = old {
                spans.attach(old, was.address, was.size);
            }
            return refuse(kind);
        }
        match old {
            Some((old, _)) => spans.forget(old),
            None => self.count_piece(domain, 1),
        }
        spans.insert(address, size, Kind::Piece(domain, guest));
        Ok(answer)
    }

    /// The grant that `size` bytes at an address lie in, clear of every other piece and arena.
    pub(super) fn find_room(&self, spans: &super::Spans<Kind>, address: usize, size: usize) -> Result<SpanId, GuestFaultKind> {
        let grant = spans.clear_around(address, size).map_err(|taken| match taken {
            super::spans::Taken::Nothing => GuestFaultKind::NotGranted,
            super::spans::Taken::Occupied => GuestFaultKind::Occupied,
        })?;
        match spans.get(grant).kind {
            Kind::Piece(..) | Kind::Arena => Err(GuestFaultKind::Occupied),
            Kind::Grant(_) | Kind::ArenaGrant => {
                let given_back = self.moving.borrow().iter().any(|moving| moving.grant == grant && moving.given_back);
                if given_back { Err(GuestFaultKind::NotGranted) } else { Ok(grant) }
            }
        }
    }

    /// The size that pymalloc asked a guest of the raw domain for, if it got this block from one.
    fn passed_on(&self, address: usize) -> Option<usize> {
        let spans = self.spans.borrow();
        let span = spans.get(spans.at(address)?);
        matches!(span.kind, Kind::Piece(..)).then_some(span.size)
    }

    /// Makes a grant of a block that one of the heap's own allocators gave to a domain; `None` when there is no memory for it.
    fn grant_block(&self, layer: &Layer, address: usize) -> Option<SpanId> {
        let number = self.number_of(layer.own(address), layer.domain)?;
        let size = self.passed_on(address).or_else(|| self.heap().size_given(layer.domain, address))?;
        let mut spans = self.spans.borrow_mut();
        spans.reserve(2).then(|| spans.insert(address, size, Kind::Grant(number)))
    }

    /// A guest's `free`.
    fn release(&self, layer: &Layer, (guest, piece): (u32, Option<SpanId>), address: usize) -> Result<(), GuestFault> {
        match piece {
            Some(piece) => {
                self.spans.borrow_mut().remove(piece);
                self.count_piece(layer.domain, -1);
            }
            None if address != 0 && self.grant_block(layer, address).is_none() => {
                // There is no memory to record a grant, so the block goes to the allocator that gave it.
                let own = layer.own(address);
                // SAFETY: a block that this gave.
                unsafe { (own.free)(own.ctx, ptr::with_exposed_provenance_mut(address)) };
                return Ok(());
            }
            None => {}
        }
        let fault = GuestFault { verb: Verb::Free, kind: GuestFaultKind::NoMemory, answer: None, address: None };
        let guest = self.guest(guest).ok_or(fault)?;
        self.ask(Verb::Free, |own| guest.free(own, Some(address).filter(|&address| address != 0)))
    }

    /// A guest's `realloc` (rule 3). When it fails, the block is still there.
    fn resize(
        &self,
        layer: &Layer,
        (number, piece): (u32, Option<SpanId>),
        address: usize,
        size: usize,
    ) -> Result<Option<usize>, GuestFault> {
        let fault = |kind| GuestFault { verb: Verb::Realloc, kind, answer: None, address: None };
        let (piece, grant, is_own) = match piece {
            Some(piece) => {
                let grant = self.spans.borrow().around(piece).ok_or(fault(GuestFaultKind::NotGranted))?;
                (piece, grant, false)
            }
            None => {
                let grant = self.grant_block(layer, address).ok_or(fault(GuestFaultKind::NoMemory))?;
                let mut spans = self.spans.borrow_mut();
                let was = spans.get(grant).size;
                self.count_piece(layer.domain, 1);
                (spans.insert(address, was, Kind::Piece(layer.domain, number)), grant, true)
            }
        };
        let index = self.moving.borrow().len();
        self.moving.borrow_mut().push(Moving { piece, grant, wanted: size, done: false, given_back: false });
        let way = Way { domain: layer.domain, guest: number, before: self.heap().allocator(layer.domain) };
        let asked = self.ask_guest(number, Verb::Realloc, &|guest, own| guest.realloc(own, Some(address), size));
        let moved = self.moving.borrow()[index];
        // Entries behind this one are left over from guests that unwound.
        self.moving.borrow_mut().truncate(index);
        if moved.done {
            // The block is where the heap's own allocator has put it.
            let at = self.spans.borrow().get(piece).address;
            match asked {
                Ok(Some(answer)) if answer == at => {}
                Ok(answer) => self.fail(GuestFault { answer, address: Some(at), ..fault(GuestFaultKind::Resized) }),
                Err(failed) => self.fail(GuestFault { address: Some(at), ..failed }),
            }
            return Ok(Some(at));
        }
        // `claim` must know whether the guest has given this grant back.
        self.moving.borrow_mut().push(moved);
        let claimed = asked.and_then(|answer| self.claim(way, Verb::Realloc, answer, size, Some(piece)));
        self.moving.borrow_mut().pop();
        if let Ok(Some(at)) = claimed {
            if moved.given_back && self.spans.borrow().is_empty(grant) {
                self.give_back_late(grant, at);
            }
            return claimed;
        }
        if is_own {
            let mut spans = self.spans.borrow_mut();
            spans.remove(piece);
            spans.remove(grant);
            self.count_piece(layer.domain, -1);
        }
        claimed
    }

    /// Gives back a grant that a guest gave back inside its `realloc`, now that the block has left it.
    fn give_back_late(&self, grant: SpanId, at: usize) {
        let Kind::Grant(number) = self.spans.borrow().get(grant).kind else { return };
        let Some(own) = self.own_allocator(number) else { return };
        match self.give_back(grant, own) {
            // The block has moved even if this fails.
            Some(OwnError::Guest(fault)) => self.fail(GuestFault { address: Some(at), ..fault }),
            Some(OwnError::Fault(fault)) => self.as_heap(|heap| heap.keep_fault(fault)),
            _ => {}
        }
    }
}

/// # Safety
/// `size` bytes at `address` may be read.
unsafe fn all_zero(address: usize, size: usize) -> bool {
    const ZEROS: [u8; 4096] = [0; 4096];
    // SAFETY: the caller's promise.
    let bytes = unsafe { core::slice::from_raw_parts(ptr::with_exposed_provenance::<u8>(address), size) };
    // By `memcmp`: the compiler does not vectorise a loop that ends at the first byte that is not zero.
    bytes.chunks(ZEROS.len()).all(|chunk| *chunk == ZEROS[..chunk.len()])
}

/// # Safety
/// `ctx` is a layer.
unsafe fn layer<'a>(ctx: *mut c_void) -> &'a Layer {
    // SAFETY: the caller's promise; a layer stays as long as its heap.
    unsafe { &*ctx.cast_const().cast::<Layer>() }
}

unsafe extern "C-unwind" fn layer_malloc(ctx: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: `ctx` is the layer that has this function; the heap's own allocators take any size.
    let (layer, own) = unsafe { (layer(ctx), |own: Allocator| (own.malloc)(own.ctx, size)) };
    layer.request(Verb::Malloc, size, own, &|guest, own| guest.malloc(own, size))
}

unsafe extern "C-unwind" fn layer_calloc(ctx: *mut c_void, count: usize, size: usize) -> *mut c_void {
    let Some(total) = count.checked_mul(size) else { return ptr::null_mut() };
    // SAFETY: as above.
    let (layer, own) = unsafe { (layer(ctx), |own: Allocator| (own.calloc)(own.ctx, count, size)) };
    layer.request(Verb::Calloc, total, own, &|guest, own| guest.calloc(own, count, size))
}

unsafe extern "C-unwind" fn layer_realloc(ctx: *mut c_void, address: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: `ctx` is the layer that has this function.
    let layer = unsafe { layer(ctx) };
    let at = address.expose_provenance();
    if at == 0 {
        // SAFETY: as above.
        let own = |own: Allocator| unsafe { (own.realloc)(own.ctx, address, size) };
        return layer.request(Verb::Realloc, size, own, &|guest, own| guest.realloc(own, None, size));
    }
    match layer.giver(at) {
        Some(giver) => layer.guests().end(layer.guests().resize(layer, giver, at, size)),
        None => {
            let own = layer.own(at);
            // SAFETY: a block that this gave.
            unsafe { (own.realloc)(own.ctx, address, size) }
        }
    }
}

unsafe extern "C-unwind" fn layer_free(ctx: *mut c_void, address: *mut c_void) {
    // SAFETY: `ctx` is the layer that has this function.
    let layer = unsafe { layer(ctx) };
    let at = address.expose_provenance();
    match layer.giver(at) {
        Some(giver) => {
            if let Err(fault) = layer.guests().release(layer, giver, at) {
                layer.guests().fail(fault);
            }
        }
        None => {
            let own = layer.own(at);
            // SAFETY: NULL, or a block that this gave.
            unsafe { (own.free)(own.ctx, address) };
        }
    }
}
