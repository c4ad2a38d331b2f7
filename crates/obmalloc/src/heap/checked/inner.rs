//! The parts of a checked heap, each lent for one step at a time, and calls of its domains that do not look addresses up.

use core::cell::{Cell, UnsafeCell};
use core::ptr::{self, NonNull};

use crate::allocator::{Allocator, ArenaAllocator};
use crate::domain::{DebugHooks, Domain, Domains, Fault, Ledger, Purpose, Trust};
use crate::heap::HeapOptions;
use crate::heap::account::Account;
use crate::heap::quarantine::Quarantine;
use crate::interrupt::Interrupt;
use crate::profile::Geometry;
use crate::pymalloc::{Location, Pymalloc, non_null};

/// What a checked heap is made of.
///
/// Invariants:
/// 1. A block is live in the ledger from the end of the call that gave it to the beginning of the call that frees it. It is not live during
///    a resize that may run a guest.
/// 2. A call reads the fields before and after it asks an allocator, and holds no reference meanwhile: a guest may call the heap.
#[repr(C)]
pub(crate) struct Checked {
    pub(super) domains: UnsafeCell<Domains>,
    pub(super) ledger: UnsafeCell<Ledger>,
    pub(super) account: Account,
    pub(super) quarantine: UnsafeCell<Quarantine>,
    /// Whether debug hooks have been set up.
    pub(super) hooked: Cell<bool>,
    /// The allocators that the domains begin with.
    pub(super) own: [Allocator; 3],
    /// The domains whose allocator may give something else than whole blocks: a guest, or a debug hook around one.
    pub(super) replaced: Cell<[bool; 3]>,
    /// Whether every domain has one of the heap's own allocators, perhaps with hooks around it.
    pub(super) is_all_own: Cell<bool>,
    /// Whether arenas may lie outside the region.
    pub(super) has_arena_guest: Cell<bool>,
    pub(super) late_fault: Cell<Option<Fault>>,
    pub(super) mode: Cell<Mode>,
}

/// Which calls a heap takes now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    /// Anything.
    Open,
    /// Calls that only look at objects: a type's `traverse` is running.
    Traversing,
    /// Calls for blocks, and calls that only look at objects: a guest is being asked.
    Asking,
    /// Nothing: a hook or a guest unwound.
    Closed,
}

impl Checked {
    /// The parts of an empty heap, for `place`; `None` when there is no memory.
    ///
    /// # Safety
    /// The result is written to `place` before it is used, and stays there. The geometry has been checked.
    pub unsafe fn new(place: *mut Self, options: &HeapOptions, geometry: Geometry) -> Option<Self> {
        // SAFETY: the caller's promise; the place is only an address so far.
        let (domains, account) = unsafe { (UnsafeCell::raw_get(&raw const (*place).domains), &raw const (*place).account) };
        // SAFETY: the caller's promise.
        let mut domains = unsafe { Domains::new(domains, &options.profile, geometry, options.arena_slack, Trust::None) }?;
        let ledger = Ledger::new(&domains.pymalloc)?;
        let (system, system_arena) = (domains.allocators[Domain::Raw as usize], domains.pymalloc.arena_allocator());
        // SAFETY: the account is there once the result is.
        let (raw, arena) = unsafe { (Account::as_allocator(account), Account::as_arena_allocator(account)) };
        domains.allocators[Domain::Raw as usize] = raw;
        if !options.allocator.has_pymalloc() {
            domains.allocators = [raw; 3];
        }
        domains.pymalloc.set_own_allocators(raw, arena);
        if let Some(bytes) = options.trim_above {
            domains.pymalloc.trim_above(bytes);
        }
        Some(Self {
            own: domains.allocators,
            domains: UnsafeCell::new(domains),
            ledger: UnsafeCell::new(ledger),
            account: Account::new(options.memory_limit.unwrap_or(usize::MAX), system, system_arena),
            quarantine: UnsafeCell::new(Quarantine::new(options.quarantine)),
            hooked: Cell::new(false),
            replaced: Cell::new([false; 3]),
            is_all_own: Cell::new(true),
            has_arena_guest: Cell::new(false),
            late_fault: Cell::new(None),
            mode: Cell::new(Mode::Open),
        })
    }

    /// Which calls the heap takes now.
    #[inline(always)]
    pub fn mode(&self) -> &Cell<Mode> {
        &self.mode
    }

    /// The ledger, for the length of one step that calls no allocator.
    #[inline(always)]
    #[allow(clippy::mut_from_ref, reason = "the heap is used by one thread, and no two of these live at once")]
    pub fn ledger(&self) -> &mut Ledger {
        // SAFETY: a checked heap is not `Sync`; each caller lets go before it calls an allocator or takes the ledger again.
        unsafe { &mut *self.ledger.get() }
    }

    /// The blocks in quarantine, for the length of one step that calls no allocator.
    #[allow(clippy::mut_from_ref, reason = "as for the ledger")]
    pub(super) fn quarantine(&self) -> &mut Quarantine {
        // SAFETY: as for the ledger.
        unsafe { &mut *self.quarantine.get() }
    }

    /// The debug hooks, for one step that calls no allocator.
    #[allow(clippy::mut_from_ref, reason = "as for the ledger")]
    pub fn hooks(&self) -> Option<&mut DebugHooks> {
        // SAFETY: as for the ledger.
        unsafe { (*self.domains.get()).debug.as_deref_mut() }
    }

    #[inline(always)]
    pub fn pymalloc(&self) -> &Pymalloc {
        // SAFETY: as for the ledger: no caller holds it while an allocator runs.
        unsafe { &(*self.domains.get()).pymalloc }
    }

    /// The domains, for their own functions.
    #[inline(always)]
    pub fn domains(&self) -> *mut Domains {
        self.domains.get()
    }

    /// The account of memory from the system.
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// The allocator that a domain begins with.
    pub fn own(&self, domain: Domain) -> Allocator {
        self.own[domain as usize]
    }

    /// Whether an allocator is the one that the heap began with in a domain, perhaps with debug hooks around it.
    pub fn is_own(&self, allocator: Allocator, domain: Domain) -> bool {
        let (allocator, own) = (Domains::unwrapped(allocator), self.own(domain));
        allocator == own || self.hooks().is_some_and(|hooks| hooks.is_around(&allocator, &own))
    }

    /// The allocator that is in a domain.
    pub fn allocator(&self, domain: Domain) -> Allocator {
        // SAFETY: initialised; the field does not change now.
        unsafe { (*self.domains.get()).allocators[domain as usize] }
    }

    /// Puts an allocator in.
    ///
    /// # Safety
    /// The functions do what [`Allocator`] says for as long as the heap lives, and take back the domain's live blocks. What an allocator of
    /// the raw domain gives lies in none of the heap's arenas.
    pub unsafe fn set_allocator(&self, domain: Domain, allocator: Allocator) {
        // SAFETY: initialised; there is no reference to the field.
        unsafe { (*self.domains.get()).allocators[domain as usize] = allocator };
        self.note_allocators();
    }

    /// Finds out which allocators may give something else than whole blocks.
    pub fn note_allocators(&self) {
        let replaced = Domain::ALL.map(|domain| !self.is_own(self.allocator(domain), domain));
        self.replaced.set(replaced);
        let any = replaced != [false; 3];
        self.is_all_own.set(!any);
        let (ledger, pymalloc) = (self.ledger(), self.pymalloc());
        if !any && !self.hooked.get() {
            let whole = |address| !matches!(pymalloc.locate(address), Location::Block { begin, .. } if begin != address);
            ledger.forget_whole_parts(whole);
        }
        ledger.take_long_way(any || self.hooked.get() || self.has_arena_guest.get() || self.quarantine().is_kept());
    }

    /// Puts an arena allocator in, and says whether it is a guest's.
    ///
    /// # Safety
    /// The functions do what [`ArenaAllocator`] says for as long as the heap lives, and take back the arenas that are held.
    pub unsafe fn set_arena_allocator(&self, allocator: ArenaAllocator, is_guest: bool) {
        self.has_arena_guest.set(is_guest);
        // SAFETY: initialised; there is no reference to the field; the caller's promise.
        unsafe { (*self.domains.get()).pymalloc.set_arena_allocator(allocator) };
        self.note_allocators();
    }

    /// Whether an allocator of a domain takes back every block that the heap's own allocators gave in it.
    pub fn takes_back(&self, domain: Domain, allocator: &Allocator) -> bool {
        self.hooks().is_none_or(|hooks| hooks.is_only_hook(domain, &Domains::unwrapped(*allocator)))
    }

    /// The heap's own allocator that gave a block of a domain, if no guest did: the debug hook, or `expected`. A block that pymalloc got from
    /// the raw domain is at the same address a block of that domain's hook too.
    pub fn giver(&self, domain: Domain, address: usize, expected: Allocator) -> Allocator {
        self.hooks().and_then(|hooks| hooks.giver(domain, address)).unwrap_or(expected)
    }

    /// Whether a debug hook gave the memory at `address` and would later take the new block there for its own. Two cases: (1) the domain's own
    /// hook, if the request did not pass through it (the allocator `before` was in) or if it resizes the block at `resized` without guard bytes;
    /// (2) for raw, a hook of mem or obj whose request pymalloc passed on to raw.
    pub fn confuses_hook(&self, domain: Domain, address: usize, before: Allocator, resized: Option<usize>) -> bool {
        let Some(hooks) = self.hooks() else { return false };
        let adds_no_guards = |hook: Allocator| {
            let passing = resized.is_some_and(|resized| hooks.is_passing(&hook, resized));
            hook == Domains::unwrapped(self.allocator(domain)) && (passing || hook != Domains::unwrapped(before))
        };
        let passed_on = || [Domain::Mem, Domain::Obj].into_iter().any(|domain| hooks.giver(domain, address).is_some());
        hooks.giver(domain, address).is_some_and(adds_no_guards) || domain == Domain::Raw && passed_on()
    }

    /// Bytes of a block of a domain that a hook gave: the domain's, or raw's for what pymalloc has passed on.
    pub(super) fn size_hooked(&self, domain: Domain, address: usize) -> Option<usize> {
        self.hooks().and_then(|hooks| hooks.size_of(domain, address).or_else(|| hooks.size_of(Domain::Raw, address)))
    }

    /// Bytes of a block of a domain that the heap's own allocators gave, as far as pymalloc, the hooks and the account know.
    pub fn size_given(&self, domain: Domain, address: usize) -> Option<usize> {
        if let Some(size) = self.size_hooked(domain, address) {
            return Some(size);
        }
        match self.pymalloc().locate(address) {
            Location::Block { begin, size } if begin == address => Some(size),
            Location::Block { .. } | Location::NoBlock => None,
            Location::Outside => self.account.size_of_root(address),
        }
    }

    /// Forgets what the hooks know of a block's memory, because the block is handed out, perhaps past them.
    #[cold]
    pub fn forget_dead(&self, address: usize) {
        if let Location::Block { begin, size } = self.pymalloc().locate(address) {
            // SAFETY: nothing else uses pymalloc now.
            unsafe { (*self.domains.get()).pymalloc.forget_dead(begin, size) };
        }
    }

    /// What long work asks whether to stop.
    pub fn interrupt(&self) -> Interrupt {
        // SAFETY: the domains are initialised.
        unsafe { (*self.domains.get()).interrupt }
    }

    /// Whether a request or a free may run code that is not the heap's own.
    #[inline]
    pub fn calls_out(&self) -> bool {
        !self.is_all_own.get() || self.has_arena_guest.get()
    }

    /// Whether an address is a live block of a domain.
    ///
    /// # Errors
    /// What is wrong with it.
    #[inline]
    pub fn check(&self, domain: Domain, address: usize, purpose: Purpose) -> Result<(), Fault> {
        self.ledger().check(self.pymalloc(), domain, address, purpose)
    }
}

/// The functions of the domains, for a heap that has looked the addresses up.
impl Checked {
    #[inline(always)]
    pub(super) fn malloc(&self, domain: Domain, size: usize) -> Option<NonNull<u8>> {
        // SAFETY: the domains are initialised and used by one thread.
        non_null(unsafe { Domains::malloc(self.domains.get(), domain, size) })
    }

    pub(super) fn calloc(&self, domain: Domain, count: usize, size: usize) -> Option<NonNull<u8>> {
        // SAFETY: as above.
        non_null(unsafe { Domains::calloc(self.domains.get(), domain, count, size) })
    }

    /// # Safety
    /// `address` is a block of this domain that its allocator gave, or NULL.
    pub(super) unsafe fn realloc(&self, domain: Domain, address: Option<usize>, size: usize) -> Option<NonNull<u8>> {
        let block = address.map_or(ptr::null_mut(), ptr::with_exposed_provenance_mut);
        // SAFETY: as above, and the caller's promise.
        non_null(unsafe { Domains::realloc(self.domains.get(), domain, block, size) })
    }

    /// # Safety
    /// As for `realloc`; the block is not used any more.
    #[inline(always)]
    pub(super) unsafe fn free(&self, domain: Domain, address: usize) {
        // SAFETY: the caller's promise.
        unsafe { Domains::free(self.domains.get(), domain, ptr::with_exposed_provenance_mut(address)) };
    }
}
