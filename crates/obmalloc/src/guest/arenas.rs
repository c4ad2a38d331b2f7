//! Arenas that a guest gives, and the heap's own arena allocator as a guest calls it. The rules are those of blocks.

use alloc::rc::Rc;
use core::cell::RefCell;
use core::ffi::c_void;
use core::ptr;

use super::{ArenaGuest, GuestFault, GuestFaultKind, Guests, Kind, OwnAllocators, OwnError, Verb};
use crate::allocator::ArenaAllocator;
use crate::domain::{Domain, Fault, FaultKind};
use crate::heap::Checked;

/// An arena's address is a multiple of this many bytes, so that its blocks can be aligned.
const ARENA_ALIGNMENT: usize = 16;

/// Where arenas come from and go to.
#[derive(Clone)]
enum Source {
    /// The heap's own arena allocator. Arenas from a guest stay the guest's; the guest is not told when the heap gives them up.
    Own,
    Guest(Rc<dyn ArenaGuest>),
    /// Nowhere: the heap is being taken down.
    NoHeap,
}

pub(super) struct Arenas {
    own: ArenaAllocator,
    source: RefCell<Source>,
}

impl Arenas {
    pub fn new(heap: &Checked) -> Self {
        Self { own: heap.pymalloc().arena_allocator(), source: RefCell::new(Source::Own) }
    }
}

impl Guests {
    pub(super) fn set_arena_guest(&self, guest: Option<Rc<dyn ArenaGuest>>) {
        // A guest that is being asked right now may still give an arena.
        let is_own =
            guest.is_none() && self.nested.get() == 0 && !self.spans.borrow().iter().any(|(_, span)| span.kind == Kind::Arena);
        self.arenas.source.replace(guest.map_or(Source::Own, Source::Guest));
        let ctx = ptr::from_ref(self).cast_mut().cast();
        let allocator =
            if is_own { self.arenas.own } else { ArenaAllocator { ctx, alloc: guest_arena_alloc, free: guest_arena_free } };
        // SAFETY: both take back whatever arenas the heap holds, whatever a guest does; the guests are there as long as the heap.
        unsafe { self.heap().set_arena_allocator(allocator, !is_own) };
    }

    /// An arena from a guest: its address, or `None` when it has none.
    fn ask_for_arena(&self, guest: &dyn ArenaGuest, size: usize) -> Result<Option<usize>, GuestFault> {
        let Some(address) = self.ask(Verb::ArenaAlloc, |own| guest.alloc(own, size))? else { return Ok(None) };
        let refuse = |kind| GuestFault { verb: Verb::ArenaAlloc, kind, answer: Some(address), address: None };
        if address == 0 || !address.is_multiple_of(ARENA_ALIGNMENT) {
            return Err(refuse(GuestFaultKind::Unaligned));
        }
        let mut spans = self.spans.borrow_mut();
        if !spans.reserve(1) {
            return Err(refuse(GuestFaultKind::NoMemory));
        }
        self.find_room(&spans, address, size).map_err(refuse)?;
        spans.insert(address, size, Kind::Arena);
        Ok(Some(address))
    }

    /// Gives an arena that the heap no longer needs to the arena guest, or to the heap's own arena allocator.
    fn take_arena_back(&self, address: usize, size: usize) -> Result<(), GuestFault> {
        let source = self.arenas.source.borrow().clone();
        let is_guests = {
            let mut spans = self.spans.borrow_mut();
            let arena = spans.at(address).filter(|&id| spans.get(id).kind == Kind::Arena);
            // An arena in which scripts still have blocks stays on record until the heap goes.
            if let Some(arena) = arena.filter(|&arena| spans.is_empty(arena)) {
                spans.remove(arena);
            }
            arena.is_some()
        };
        match source {
            Source::Guest(guest) => {
                if !is_guests && !self.grant_arena(address, size) {
                    self.give_own_arena(address, size);
                    return Ok(());
                }
                self.ask(Verb::ArenaFree, |own| guest.free(own, address, size))
            }
            Source::Own | Source::NoHeap => {
                if !is_guests {
                    self.give_own_arena(address, size);
                }
                Ok(())
            }
        }
    }

    /// Makes a grant of an arena that the heap's own allocator gave, so that the guest may give it back there. False when there is no memory.
    fn grant_arena(&self, address: usize, size: usize) -> bool {
        let mut spans = self.spans.borrow_mut();
        spans.reserve(1) && {
            spans.insert(address, size, Kind::ArenaGrant);
            true
        }
    }

    fn give_own_arena(&self, address: usize, size: usize) {
        let own = self.arenas.own;
        // SAFETY: the heap's own arena; pymalloc does not use it any more.
        unsafe { (own.free)(own.ctx, ptr::with_exposed_provenance_mut(address), size) };
    }

    /// Tells the guest that an arena is free, because the heap is being taken down.
    pub(super) fn tell_of_arena(&self, address: usize, size: usize) {
        if let Err(fault) = self.take_arena_back(address, size) {
            self.told.set(self.told.take().or(Some(fault)));
        }
    }

    /// Whether a guest is to be told of arenas.
    pub(super) fn has_arena_guest(&self) -> bool {
        matches!(*self.arenas.source.borrow(), Source::Guest(_))
    }

    /// From now on no guest is told of arenas: the heap is being taken down.
    pub(super) fn leave_arenas(&self) {
        self.arenas.source.replace(Source::NoHeap);
    }

    /// Gives back the arena grants that guests still have. The heap is being dropped: no guest is asked any more.
    pub(super) fn leave(&self) {
        self.leave_arenas();
        let own = self.arenas.own;
        for (_, span) in self.spans.borrow().iter() {
            if span.kind == Kind::ArenaGrant {
                // SAFETY: it gave this with this size; nothing uses what lies in it any more.
                unsafe { (own.free)(own.ctx, ptr::with_exposed_provenance_mut(span.address), span.size) };
            }
        }
    }
}

impl OwnAllocators<'_> {
    /// A grant of `size` bytes from the heap's own arena allocator; `None` when there is no memory.
    pub fn arena_alloc(&self, size: usize) -> Option<usize> {
        let guests = self.guests();
        if guests.heap().is_closed() || size == 0 || !guests.spans.borrow_mut().reserve(1) {
            return None;
        }
        let own = guests.arenas.own;
        // SAFETY: the heap's own arena allocator takes any size, and calls no guest.
        let arena = unsafe { (own.alloc)(own.ctx, size) };
        let address = Some(arena.expose_provenance()).filter(|&address| address != 0)?;
        guests.heap().ledger().forget_freed(address);
        guests.spans.borrow_mut().insert(address, size, Kind::ArenaGrant);
        Some(address)
    }

    /// Gives back `size` bytes that the heap's own arena allocator gave to a guest.
    ///
    /// # Errors
    /// When the address is no arena grant of this size, or an arena or a block lies in the grant.
    pub fn arena_free(&self, address: usize, size: usize) -> Result<(), OwnError> {
        let guests = self.guests();
        let mut spans = guests.spans.borrow_mut();
        let foreign = OwnError::Fault(Fault::new(FaultKind::ForeignPointer, address, Domain::Raw));
        let grant = spans.outermost_at(address).ok_or(foreign)?;
        if spans.get(grant).kind != Kind::ArenaGrant || spans.get(grant).size != size {
            return Err(foreign);
        }
        if !spans.is_empty(grant) {
            return Err(OwnError::Occupied(address));
        }
        spans.remove(grant);
        drop(spans);
        guests.give_own_arena(address, size);
        Ok(())
    }
}

/// # Safety
/// `ctx` is the guests that put these functions in.
unsafe fn guests<'a>(ctx: *mut c_void) -> &'a Guests {
    // SAFETY: the caller's promise; they are there as long as the heap.
    unsafe { &*ctx.cast_const().cast::<Guests>() }
}

unsafe extern "C-unwind" fn guest_arena_alloc(ctx: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: `ctx` is what these functions were put in with.
    let guests = unsafe { guests(ctx) };
    let source = guests.arenas.source.borrow().clone();
    let own = guests.arenas.own;
    match source {
        Source::NoHeap => ptr::null_mut(),
        // SAFETY: the heap's own arena allocator, which takes any size.
        Source::Own => unsafe { (own.alloc)(own.ctx, size) },
        Source::Guest(guest) => match guests.ask_for_arena(&*guest, size) {
            Ok(address) => ptr::with_exposed_provenance_mut(address.unwrap_or(0)),
            Err(fault) => {
                guests.fail(fault);
                ptr::null_mut()
            }
        },
    }
}

unsafe extern "C-unwind" fn guest_arena_free(ctx: *mut c_void, address: *mut c_void, size: usize) {
    // SAFETY: as above.
    let guests = unsafe { guests(ctx) };
    if let Err(fault) = guests.take_arena_back(address.expose_provenance(), size) {
        guests.fail(fault);
    }
}
