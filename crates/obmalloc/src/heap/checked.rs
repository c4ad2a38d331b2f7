//! A heap that looks every address up before it uses it.

use core::cell::{Cell, UnsafeCell};
use core::ffi::c_void;
use core::ptr::{self, NonNull};

use alloc::vec::Vec;

use super::outside::Outside;
use super::quarantine::{Quarantine, Waiting};
use super::{Heap, HeapError, HeapOptions};
use crate::allocator::{Allocator, AllocatorName, ArenaAllocator, PY_SSIZE_T_MAX};
use crate::domain::{DebugHooks, Domain, Domains, Fault, FaultKind, Function, Ledger, Purpose, Trust, write_after_free};
use crate::interrupt::{Interrupt, STRIDE, Undone};
use crate::os::{self, block_bytes};
use crate::pinned::Pinned;
use crate::profile::Geometry;
use crate::pymalloc::{ArenaInfo, Corruption, Location, Pymalloc, Stats};

/// A [`Heap`] with a ledger of its live blocks: every misused address gives a [`Fault`], before anything is read or changed.
///
/// Unlike a [`Heap`], it gives back everything when it is dropped, raw blocks included.
pub struct CheckedHeap {
    // Field order is drop order: the heap's arenas go back through the account.
    heap: Heap,
    ledger: UnsafeCell<Ledger>,
    quarantine: UnsafeCell<Quarantine>,
    account: Pinned<Account>,
    /// Whether debug hooks have been set up.
    hooked: Cell<bool>,
    /// The allocators that the domains begin with.
    own: Cell<[Allocator; 3]>,
    /// The domains with an allocator that may give something else than whole blocks of their own.
    replaced: Cell<[bool; 3]>,
    /// Whether there ever were any.
    was_replaced: Cell<bool>,
    /// Whether all domains have the heap's own allocators, perhaps with hooks around them.
    is_all_own: Cell<bool>,
    late_fault: Cell<Option<Fault>>,
    /// The blocks outside all arenas, when it is taken down.
    outside: Outside,
}

/// What the heap holds, and may hold; its allocators are the lowest ones of a checked heap.
struct Account {
    held: usize,
    limit: usize,
    refusing: Cell<bool>,
    raw: Allocator,
    arena: ArenaAllocator,
    /// As the heap's.
    interrupt: Interrupt,
    /// Large blocks of the C library whose freeing was given up, until the next one is freed; each has the address of the next.
    late: *mut c_void,
}

/// Bytes from which on a block is given back to the system in pieces. The C library has a mapping for each of those (no
/// `M_MMAP_THRESHOLD` is above it), which it gives back in one, and that takes a second for ten gigabytes.
const LARGE: usize = 32 << 20;
/// Bytes that every system's pages are a part of.
const PAGE_MAX: usize = 1 << 16;

impl CheckedHeap {
    /// An empty heap.
    ///
    /// # Errors
    /// When a size is out of its range, or there is no memory for the heap's tables.
    pub fn new(options: HeapOptions) -> Result<Self, HeapError> {
        let heap = Heap::trusting(options, Trust::None)?;
        let mut ledger = Ledger::new(heap.pymalloc()).ok_or(HeapError::NoMemory)?;
        let limit = options.memory_limit.unwrap_or(usize::MAX);
        let (raw, arena) = (heap.allocator(Domain::Raw), heap.arena_allocator());
        let refusing = Cell::new(false);
        let (interrupt, late) = (Interrupt::NEVER, ptr::null_mut());
        let account = Pinned::new(Account { held: 0, limit, refusing, raw, arena, interrupt, late });
        let ctx = account.as_ptr().cast::<c_void>();
        // SAFETY: the account lives as long as the heap, and its functions pass on to the ones that were in.
        unsafe {
            heap.set_allocator(
                Domain::Raw,
                Allocator { ctx, malloc: account_malloc, calloc: account_calloc, realloc: account_realloc, free: account_free },
            );
            heap.set_arena_allocator(ArenaAllocator { ctx, alloc: account_arena_alloc, free: account_arena_free });
        }
        let own = Cell::new(Domain::ALL.map(|domain| heap.allocator(domain)));
        let quarantine = Quarantine::new(options.quarantine);
        ledger.take_long_way(quarantine.is_kept());
        Ok(Self {
            heap,
            ledger: UnsafeCell::new(ledger),
            quarantine: UnsafeCell::new(quarantine),
            account,
            hooked: Cell::new(false),
            own,
            replaced: Cell::new([false; 3]),
            was_replaced: Cell::new(false),
            is_all_own: Cell::new(true),
            late_fault: Cell::new(None),
            outside: Outside::default(),
        })
    }

    /// The ledger, for the length of one step that calls no allocator.
    #[inline(always)]
    #[allow(clippy::mut_from_ref, reason = "the heap is used by one thread, and no two of these live at once")]
    fn ledger(&self) -> &mut Ledger {
        // SAFETY: `CheckedHeap` is not `Sync`; each caller lets go before it calls an allocator or takes the ledger again.
        unsafe { &mut *self.ledger.get() }
    }

    /// The blocks that wait, for the length of one step that calls no allocator.
    #[allow(clippy::mut_from_ref, reason = "as for the ledger")]
    fn quarantine(&self) -> &mut Quarantine {
        // SAFETY: as for the ledger.
        unsafe { &mut *self.quarantine.get() }
    }

    /// The release.
    pub fn profile(&self) -> &crate::profile::Profile {
        self.heap.profile()
    }

    /// The sizes in force.
    pub fn geometry(&self) -> Geometry {
        self.heap.geometry()
    }

    /// As [`Heap::malloc`].
    #[inline]
    pub fn malloc(&self, domain: Domain, size: usize) -> Option<NonNull<u8>> {
        match self.heap.malloc(domain, size) {
            Some(block) => self.enter(domain, block, size),
            None => self.ask_again(domain, size, || self.heap.malloc(domain, size)),
        }
    }

    /// As [`Heap::calloc`].
    #[inline]
    pub fn calloc(&self, domain: Domain, count: usize, size: usize) -> Option<NonNull<u8>> {
        // Where it does not fit, there is no block.
        let whole = count.saturating_mul(size);
        match self.heap.calloc(domain, count, size) {
            Some(block) => self.enter(domain, block, whole),
            None => self.ask_again(domain, whole, || self.heap.calloc(domain, count, size)),
        }
    }

    #[inline]
    fn enter(&self, domain: Domain, block: NonNull<u8>, size: usize) -> Option<NonNull<u8>> {
        if self.ledger().insert_quickly(block.as_ptr().expose_provenance(), domain) {
            Some(block)
        } else {
            self.enter_slowly(domain, block, size)
        }
    }

    #[inline(never)]
    fn enter_slowly(&self, domain: Domain, block: NonNull<u8>, size: usize) -> Option<NonNull<u8>> {
        let address = block.as_ptr().expose_provenance();
        if self.hooked.get() {
            self.forget_dead(address);
        }
        let ledger = self.ledger();
        if self.replaced.get()[domain as usize] {
            if ledger.reserve_part() {
                ledger.insert_part(address, size, domain);
                return Some(block);
            }
        } else if ledger.insert(address, size, domain) {
            return Some(block);
        }
        // SAFETY: the block was given just now and nobody else knows it.
        unsafe { self.heap.free(domain, Some(block)) };
        None
    }

    /// Whom work that takes long asks.
    pub(crate) fn interrupt(&self) -> Interrupt {
        // SAFETY: the domains are initialised.
        unsafe { (*self.heap.domains()).interrupt }
    }

    /// From now on work that takes long asks whether to give it up: filling and clearing large blocks, and walks over all of them.
    pub(crate) fn set_interrupt(&self, interrupt: Interrupt) {
        // SAFETY: as above; nobody holds a reference to the fields.
        unsafe {
            (*self.heap.domains()).interrupt = interrupt;
            (*self.account.as_ptr()).interrupt = interrupt;
        }
    }

    /// Sets `size` bytes to zero; false when that was given up before the end.
    ///
    /// # Safety
    /// They may be written to.
    pub(crate) unsafe fn clear(&self, at: usize, size: usize) -> bool {
        // SAFETY: the caller's promise.
        unsafe { self.interrupt().fill(ptr::with_exposed_provenance_mut(at), 0, size) }
    }

    /// The debug hooks, for one step that calls no allocator.
    #[allow(clippy::mut_from_ref, reason = "as for the ledger")]
    fn hooks(&self) -> Option<&mut DebugHooks> {
        // SAFETY: the heap is used by one thread; each caller lets go before it calls an allocator or takes them again.
        unsafe { (*self.heap.domains()).debug.as_deref_mut() }
    }

    /// A block is handed out, perhaps past the hooks: what they know of the memory holds no longer.
    #[cold]
    fn forget_dead(&self, address: usize) {
        if let Location::Block { begin, size } = self.heap.pymalloc().locate(address) {
            // SAFETY: nothing else uses pymalloc now.
            unsafe { (*self.heap.domains()).pymalloc.forget_dead(begin, size) };
        }
    }

    /// `PyMem_SetupDebugHooks`: puts debug hooks around the allocators that are in; a domain that has one already keeps it.
    ///
    /// From then on blocks have guard bytes, fresh memory is filled with `CD` and freed memory with `DD`, and what CPython would abort for
    /// is a fault of [`free`](Self::free) and [`realloc`](Self::realloc) with CPython's [report](Fault::report). Blocks that are older are
    /// freed and resized without being looked at.
    ///
    /// Besides, a write to a small block after it was freed is found when the block is to be used again: that request fails, gives
    /// [`WriteAfterFree`](crate::FaultKind::WriteAfterFree) to [`take_fault`](Self::take_fault), and the block is not used any more. It is
    /// found for pymalloc's own blocks, as long as nothing but the hooks is around pymalloc.
    ///
    /// # Errors
    /// When there is no memory for them; those that are in then stay.
    pub fn setup_debug_hooks(&self) -> Result<(), HeapError> {
        let text = self.profile().debug_text;
        // SAFETY: the domains are initialised, and no call of theirs is on its way.
        let done = unsafe { Domains::setup_debug_hooks(self.heap.domains(), text) };
        self.hooked.set(self.hooks().is_some());
        self.note_allocators();
        if done { Ok(()) } else { Err(HeapError::NoMemory) }
    }

    /// Whether debug hooks have been set up.
    #[inline]
    pub fn has_debug_hooks(&self) -> bool {
        self.hooked.get()
    }

    /// What was found during a call that could not say so: by the debug hooks why a request failed, or which guard bytes of an object were
    /// damaged when it was destroyed, each fault once, and of several the first; and from when a block's broken link has made a request
    /// fail, always that ([`HeapCorrupted`](crate::FaultKind::HeapCorrupted)).
    pub fn take_fault(&self) -> Option<Fault> {
        self.take_fault_of_hooks().or_else(|| self.corruption())
    }

    pub(crate) fn take_fault_of_hooks(&self) -> Option<Fault> {
        self.hooks()?.take_fault()
    }

    /// Whether a request has failed because a free block's link leads to where no block of its pool is: somebody wrote to the block. The
    /// heap is good for nothing but being dropped then.
    pub fn is_corrupted(&self) -> bool {
        self.heap.pymalloc().broken_link.is_some()
    }

    #[cold]
    fn corruption(&self) -> Option<Fault> {
        let block = self.heap.pymalloc().broken_link?;
        Some(Fault::new(FaultKind::HeapCorrupted, block, Domain::Obj))
    }

    /// Looks at the guard bytes of every block and at all free memory that the debug hooks have filled. What it finds is found once: the
    /// block is not used again as long as it is damaged.
    ///
    /// # Errors
    /// The first block that somebody wrote to where it had no business.
    pub fn verify_guards(&self) -> Result<(), Fault> {
        let Some(hooks) = self.hooks() else { return Ok(()) };
        if let Some(fault) = hooks.find_damaged(self.interrupt()) {
            return Err(fault);
        }
        if let Some((begin, size, byte)) = self.heap.pymalloc().damaged_block(self.interrupt()) {
            // Without memory to remember it, it is found again.
            // SAFETY: nothing else uses pymalloc now.
            unsafe { (*self.heap.domains()).pymalloc.tell_dead(begin, size) };
            return Err(write_after_free(begin, byte, Domain::Obj));
        }
        Ok(())
    }

    /// A fault with what CPython prints for it, where `function` of its hooks finds it.
    #[cold]
    fn with_report(&self, fault: Fault, function: Function) -> Fault {
        let verifies = Domains::is_hook(&self.heap.allocator(fault.used));
        match self.hooks() {
            Some(hooks) if fault.kind == FaultKind::WrongDomain && verifies => {
                Fault { report: hooks.wrong_domain(function, fault.used, fault.address), ..fault }
            }
            _ => fault,
        }
    }

    /// What [`free`](Self::free) would find, without freeing anything.
    ///
    /// # Errors
    /// As for `free`.
    pub fn check_free(&self, domain: Domain, address: usize) -> Result<(), Fault> {
        self.check_guards(domain, address, Purpose::Free, Function::Free)
    }

    /// What [`realloc`](Self::realloc) would find, without resizing anything.
    ///
    /// # Errors
    /// As for `realloc`.
    pub fn check_realloc(&self, domain: Domain, address: usize) -> Result<(), Fault> {
        self.check_guards(domain, address, Purpose::Use, Function::Realloc)
    }

    fn check_guards(&self, domain: Domain, address: usize, purpose: Purpose, function: Function) -> Result<(), Fault> {
        self.check(domain, address, purpose).map_err(|fault| self.with_report(fault, function))?;
        let damaged = self.hooks().and_then(|hooks| hooks.examine(function, domain, address));
        damaged.map_or(Ok(()), Err)
    }

    /// Keeps a fault for [`take_fault`](Self::take_fault), for whoever cannot give it to the caller. Without debug hooks it is lost.
    pub fn keep_fault(&self, fault: Fault) {
        if let Some(hooks) = self.hooks() {
            hooks.keep_fault(fault);
        }
    }

    /// Runs a call and gives what the hooks found during it.
    fn watching<T>(&self, call: impl FnOnce() -> T) -> (T, Option<Fault>) {
        let before = self.take_fault_of_hooks();
        let result = call();
        let found = self.take_fault_of_hooks();
        if let Some(before) = before {
            self.keep_fault(before);
        }
        (result, found)
    }

    /// Whether all domains have the heap's own allocators, perhaps with hooks around them.
    pub(crate) fn has_own_allocators(&self) -> bool {
        self.is_all_own.get()
    }

    /// Whether freed blocks wait now.
    fn is_quarantining(&self) -> bool {
        self.quarantine().is_kept() && self.has_own_allocators()
    }

    /// Has a live block wait that is freed; false when it is to be freed now.
    #[cold]
    fn detain(&self, domain: Domain, address: usize) -> Result<bool, Fault> {
        self.check_free(domain, address)?;
        let size = self.usable_size(domain, address)?;
        let own = self.own.get();
        let is_counted = own[domain as usize] != own[Domain::Raw as usize];
        if !self.quarantine().enter(address, Waiting { domain, size, is_counted }) {
            return Ok(false);
        }
        self.ledger().lay_up(address);
        // Should that be interrupted, more wait for a while.
        self.release_while(Quarantine::leave_if_over);
        Ok(true)
    }

    /// Frees a block that has waited.
    fn release(&self, address: usize, block: Waiting) {
        self.ledger().remember(address);
        let pointer = NonNull::new(ptr::with_exposed_provenance_mut(address));
        // SAFETY: a block of this domain that nobody has.
        let ((), found) = self.watching(|| unsafe { self.heap.free(block.domain, pointer) });
        if let Some(fault) = found {
            // Somebody wrote to its guard bytes while it waited; the hooks keep it from being used again.
            let first = self.late_fault.take().unwrap_or(Fault { address, used: block.domain, ..fault });
            self.late_fault.set(Some(first));
        }
    }

    /// What was found of a block that had been freed long before: it is no fault of the call in which that was. Given once; of several, the
    /// first.
    pub fn take_late_fault(&self) -> Option<Fault> {
        self.late_fault.take()
    }

    /// Frees all blocks that wait; false when that was interrupted, and some still do.
    pub fn empty_quarantine(&self) -> bool {
        self.release_while(Quarantine::leave)
    }

    /// Frees blocks for as long as `next` says one; false when that was interrupted.
    fn release_while(&self, next: impl Fn(&mut Quarantine) -> Option<(usize, Waiting)>) -> bool {
        let patience = self.interrupt().patience();
        while let Some((address, block)) = next(self.quarantine()) {
            self.release(address, block);
            // What was written to costs time by the page.
            if patience.is_over_after(1 + block.size / 256) {
                return false;
            }
        }
        true
    }

    /// Repeats a request that has failed when blocks waited that may have been in its way.
    #[cold]
    #[inline(never)]
    fn ask_again(&self, domain: Domain, size: usize, request: impl FnOnce() -> Option<NonNull<u8>>) -> Option<NonNull<u8>> {
        if size > PY_SSIZE_T_MAX || size > self.account.limit {
            // There is no room for it however many blocks go.
            return None;
        }
        // SAFETY: the domains are initialised.
        let is_on_purpose = unsafe { (*self.heap.domains()).has_refused() };
        let has_reason = is_on_purpose || self.account.refusing.get() || self.is_corrupted();
        if has_reason || !self.is_quarantining() || self.hooks().is_some_and(|hooks| hooks.has_fault()) {
            return None;
        }
        if !self.empty_quarantine() {
            return None;
        }
        self.enter_slowly(domain, request()?, size)
    }

    /// As [`realloc`](Self::realloc), for when the old block is to wait.
    #[cold]
    fn realloc_to_another(&self, domain: Domain, address: usize, size: usize) -> Result<Option<NonNull<u8>>, Fault> {
        self.check_realloc(domain, address)?;
        let kept = self.usable_size(domain, address)?.min(size);
        let Some(block) = self.malloc(domain, size) else {
            // The old block may do, or can be resized where it is.
            return self.take_fault().map_or_else(|| self.realloc_at_once(domain, address, size), Err);
        };
        // SAFETY: two live blocks that are large enough.
        let is_copied = unsafe { self.interrupt().copy(ptr::with_exposed_provenance(address), block.as_ptr(), kept) };
        self.free(domain, if is_copied { address } else { block.as_ptr().addr() })?;
        Ok(is_copied.then_some(block))
    }

    #[inline(never)]
    fn free_slowly(&self, domain: Domain, address: usize) -> Result<(), Fault> {
        if self.is_quarantining() && self.detain(domain, address)? {
            return Ok(());
        }
        if self.hooked.get() {
            return self.free_hooked(domain, address);
        }
        self.check(domain, address, Purpose::Free)?;
        self.ledger().remove(address);
        // SAFETY: checked just above to be a live block of this domain.
        unsafe { self.heap.free(domain, NonNull::new(ptr::with_exposed_provenance_mut(address))) };
        Ok(())
    }

    #[cold]
    fn free_hooked(&self, domain: Domain, address: usize) -> Result<(), Fault> {
        self.check(domain, address, Purpose::Free).map_err(|fault| self.with_report(fault, Function::Free))?;
        self.ledger().remove(address);
        let block = NonNull::new(ptr::with_exposed_provenance_mut(address));
        // SAFETY: a live block of this domain.
        let ((), found) = self.watching(|| unsafe { self.heap.free(domain, block) });
        let Some(fault) = found else { return Ok(()) };
        if let Some(size) = self.hooks().and_then(|hooks| hooks.size_of(address)) {
            self.ledger().revive(address, size, domain);
        }
        Err(Fault { address, used: domain, ..fault })
    }

    #[cold]
    fn realloc_hooked(&self, domain: Domain, address: usize, size: usize) -> Result<Option<NonNull<u8>>, Fault> {
        self.check(domain, address, Purpose::Use).map_err(|fault| self.with_report(fault, Function::Realloc))?;
        let (moved, found) = self.watching(|| self.realloc_checked(domain, address, size));
        match found.or_else(|| self.corruption()) {
            // Of the block that there was no other for, or of the one that it was to be.
            Some(fault) if matches!(fault.kind, FaultKind::WriteAfterFree | FaultKind::HeapCorrupted) => {
                Err(Fault { used: domain, ..fault })
            }
            Some(fault) => Err(Fault { address, used: domain, ..fault }),
            None => Ok(moved),
        }
    }

    /// As [`Heap::realloc`]; a block is given as its address.
    ///
    /// # Errors
    /// When `address` is no live block of this heap and domain.
    #[inline]
    pub fn realloc(&self, domain: Domain, address: Option<usize>, size: usize) -> Result<Option<NonNull<u8>>, Fault> {
        let Some(address) = address else {
            // SAFETY: no block.
            let request = || unsafe { self.heap.realloc(domain, None, size) };
            let block = match request() {
                Some(block) => self.enter(domain, block, size),
                None => self.ask_again(domain, size, request),
            };
            // A request that the hooks have refused has a reason.
            return if block.is_none() { self.take_fault().map_or(Ok(None), Err) } else { Ok(block) };
        };
        if self.is_quarantining() {
            return self.realloc_to_another(domain, address, size);
        }
        self.realloc_at_once(domain, address, size)
    }

    #[inline(always)]
    fn realloc_at_once(&self, domain: Domain, address: usize, size: usize) -> Result<Option<NonNull<u8>>, Fault> {
        if self.hooked.get() {
            return self.realloc_hooked(domain, address, size);
        }
        self.check(domain, address, Purpose::Use)?;
        let moved = self.realloc_checked(domain, address, size);
        if moved.is_none() { self.corruption().map_or(Ok(None), Err) } else { Ok(moved) }
    }

    #[inline(always)]
    fn realloc_checked(&self, domain: Domain, address: usize, size: usize) -> Option<NonNull<u8>> {
        let replaced = self.replaced.get()[domain as usize];
        // Room first: once the block has moved, there is no way back.
        if !(if replaced { self.ledger().reserve_part() } else { self.ledger().reserve() }) {
            return None;
        }
        let old = NonNull::new(ptr::with_exposed_provenance_mut(address));
        // SAFETY: the caller has checked that it is a live block of this domain.
        let block = unsafe { self.heap.realloc(domain, old, size) }?;
        if self.hooked.get() {
            self.forget_dead(block.as_ptr().expose_provenance());
        }
        let ledger = self.ledger();
        ledger.remove(address);
        if replaced {
            ledger.insert_part(block.as_ptr().expose_provenance(), size, domain);
        } else {
            let entered = ledger.insert(block.as_ptr().expose_provenance(), size, domain);
            debug_assert!(entered, "room for the entry was made before");
        }
        Some(block)
    }

    /// As [`Heap::free`]; a block is given as its address.
    ///
    /// # Errors
    /// When `address` is no live block of this heap and domain. Nothing has been changed then.
    #[inline]
    pub fn free(&self, domain: Domain, address: usize) -> Result<(), Fault> {
        if !self.ledger().strike_out(domain, address) {
            return self.free_slowly(domain, address);
        }
        // SAFETY: seen just above to have been a live block of this domain.
        unsafe { self.heap.free(domain, NonNull::new(ptr::with_exposed_provenance_mut(address))) };
        Ok(())
    }

    /// `PyMem_Free(NULL)`: nothing is freed, but the allocator that is in is called all the same.
    pub fn free_null(&self, domain: Domain) {
        // SAFETY: no block.
        unsafe { self.heap.free(domain, None) };
    }

    /// As [`free`](Self::free), for whoever knows the block.
    ///
    /// # Safety
    /// `address` is a live block of this heap and domain, and is not used any more.
    #[inline]
    pub(crate) unsafe fn free_unchecked(&self, domain: Domain, address: usize) {
        debug_assert_eq!(self.check(domain, address, Purpose::Free), Ok(()), "the caller knows the block");
        if !self.ledger().remove_quickly(address) {
            // What is damaged is found once more when it is freed.
            if self.is_quarantining() && self.detain(domain, address) == Ok(true) {
                return;
            }
            self.ledger().remove(address);
        }
        // SAFETY: the caller's promise.
        unsafe { self.heap.free(domain, NonNull::new(ptr::with_exposed_provenance_mut(address))) };
    }

    #[inline]
    fn check(&self, domain: Domain, address: usize, purpose: Purpose) -> Result<(), Fault> {
        self.ledger().check(self.heap.pymalloc(), domain, address, purpose)
    }

    /// Whether `address` may be used as a block of `domain`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn check_use(&self, domain: Domain, address: usize) -> Result<(), Fault> {
        self.check(domain, address, Purpose::Use)
    }

    /// Bytes that may be used at `address`: the block's size class, or for a raw block, and between guard bytes, what was requested.
    ///
    /// # Errors
    /// When `address` is no live block of this heap and domain.
    pub fn usable_size(&self, domain: Domain, address: usize) -> Result<usize, Fault> {
        self.check(domain, address, Purpose::Use)?;
        let known = self.hooks().and_then(|hooks| hooks.size_of(address)).or_else(|| self.ledger().size_of_part(address));
        if let Some(size) = known {
            return Ok(size);
        }
        match self.heap.pymalloc().locate(address) {
            Location::Block { size, .. } => Ok(size),
            // A live block that lies in no pool has an entry, unless somebody wrote to a link of that pool.
            _ => self.ledger().size_elsewhere(address).ok_or(Fault::new(FaultKind::HeapCorrupted, address, domain)),
        }
    }

    /// Whether `address` is one of this heap's live blocks, or lies inside one.
    pub fn owns(&self, address: usize) -> bool {
        self.ledger().owns(self.heap.pymalloc(), address)
    }

    /// First byte and bytes of the address space that the heap's own arenas lie in; two zeroes where none could be reserved.
    pub fn region(&self) -> (usize, usize) {
        self.heap.region()
    }

    /// The live blocks that are not in the region: address, bytes, domain.
    pub fn blocks_elsewhere(&self) -> Vec<(usize, usize, Domain)> {
        self.ledger().elsewhere().collect()
    }

    /// Bytes held in arenas and raw blocks.
    #[inline]
    pub fn held(&self) -> usize {
        self.account.held
    }

    /// Puts the allocators in that a value of `PYTHONMALLOC` names (`_PyMem_SetupAllocators`).
    ///
    /// Blocks that pymalloc has given must not go back to another allocator, so this is for a heap without any.
    ///
    /// # Errors
    /// When there is no memory for debug hooks.
    pub fn use_allocator(&self, name: AllocatorName) -> Result<(), HeapError> {
        debug_assert!(self.heap.arenas().is_empty(), "no block has been given yet");
        if !name.has_pymalloc() {
            let raw = self.heap.allocator(Domain::Raw);
            for domain in [Domain::Mem, Domain::Obj] {
                // SAFETY: the raw domain's own allocator, and there are no blocks to take back.
                unsafe { self.heap.set_allocator(domain, raw) };
            }
            self.own.set([raw; 3]);
        }
        if name.has_debug_hooks() { self.setup_debug_hooks() } else { Ok(()) }
    }

    /// `PyMem_GetAllocator`: what is in. It can be called, wrapped and put back; what it gives directly is no block of this heap, and is not
    /// counted by [`verify`](Self::verify), but by [`verify_with`](Self::verify_with).
    pub fn allocator(&self, domain: Domain) -> Allocator {
        self.heap.allocator(domain)
    }

    /// `PyMem_SetAllocator`: from now on the domain's requests go to `allocator`. Putting back the one that a domain began with restores the
    /// fast path, as soon as no block is left that is not wholly one of its own.
    ///
    /// # Safety
    /// As for [`Heap::set_allocator`]. What an allocator of the raw domain gives lies in none of the heap's arenas. When the heap is dropped,
    /// the allocators that are in then take back the blocks that are left outside its arenas.
    pub unsafe fn set_allocator(&self, domain: Domain, allocator: Allocator) {
        // They are the present one's.
        while !self.empty_quarantine() {}
        // SAFETY: the caller's promise.
        unsafe { self.heap.set_allocator(domain, allocator) };
        self.note_allocators();
    }

    /// Finds out which allocators may give something else than whole blocks.
    fn note_allocators(&self) {
        let own = self.own.get();
        let is_own = |domain: Domain| {
            let allocator = Domains::unwrapped(self.heap.allocator(domain));
            allocator == own[domain as usize] || Domains::is_hook(&allocator)
        };
        let replaced = Domain::ALL.map(|domain| !is_own(domain));
        let any = replaced != [false; 3];
        self.replaced.set(replaced);
        self.is_all_own.set(Domain::ALL.into_iter().all(|domain| {
            let allocator = Domains::unwrapped(self.heap.allocator(domain));
            allocator == own[domain as usize]
                || self.hooks().is_some_and(|hooks| hooks.is_around(&allocator, &own[domain as usize]))
        }));
        self.was_replaced.set(self.was_replaced.get() || any);
        let (ledger, pymalloc) = (self.ledger(), self.heap.pymalloc());
        if !any && !self.hooked.get() {
            let whole = |address| !matches!(pymalloc.locate(address), Location::Block { begin, .. } if begin != address);
            ledger.settle_parts(whole);
        }
        ledger.take_long_way(any || self.hooked.get() || self.quarantine().is_kept());
    }

    /// The debug hook of a domain that gave a block, if one did. What pymalloc passes on to the raw domain is at the same address a block of
    /// that domain's hook too.
    pub fn hook_of(&self, domain: Domain, address: usize) -> Option<Allocator> {
        self.hooks()?.giver(domain, address)
    }

    /// Whether an allocator of a domain takes back every block that the heap's own allocators gave in it.
    pub fn takes_back(&self, domain: Domain, allocator: &Allocator) -> bool {
        self.hooks().is_none_or(|hooks| hooks.is_only_hook(domain, &Domains::unwrapped(*allocator)))
    }

    /// Bytes that may be used of a block that the heap's own allocators gave, and that lies where they put it: in an arena, or in a block of
    /// the C library's that begins there.
    pub fn size_given(&self, address: usize) -> usize {
        if let Some(size) = self.hooks().and_then(|hooks| hooks.size_of(address)) {
            return size;
        }
        match self.heap.pymalloc().locate(address) {
            Location::Block { size, .. } => size,
            // SAFETY: the caller's block, which lies in no arena, and so comes from the C library.
            _ => unsafe { block_bytes(ptr::with_exposed_provenance_mut(address)) },
        }
    }

    /// A block of `size` bytes that was taken directly from the allocator that is in becomes one of the domain's. False when there is no
    /// memory to remember it.
    pub fn adopt(&self, domain: Domain, address: usize, size: usize) -> bool {
        self.ledger().insert(address, size, domain)
    }

    /// A block that was taken from an allocator directly has been given back to it.
    pub fn note_freed(&self, address: usize) {
        self.ledger().note_freed(address);
    }

    /// Whether an address lies in an arena.
    pub fn is_in_arena(&self, address: usize) -> bool {
        self.heap.pymalloc().locate(address) != Location::Outside
    }

    /// The addresses at which the heap's own allocators know a block: each debug hook, and what is below them.
    pub fn layers(&self, address: usize) -> impl Iterator<Item = usize> {
        let hooks = self.hooks();
        core::iter::successors(Some(address), move |address| hooks.as_ref().and_then(|hooks| hooks.layers(*address).nth(1)))
    }

    /// `_testcapi.set_nomemory`: of the requests to the domains' allocators from now on, counted from 0, those from number `start` on fail, up
    /// to and excluding number `stop`, or for ever. What pymalloc passes on to raw counts twice.
    ///
    /// # Errors
    /// When there is no memory for that.
    pub fn set_nomemory(&self, start: usize, stop: Option<usize>) -> Result<(), HeapError> {
        if stop == Some(0) {
            // In CPython that is for ever too.
            return self.set_nomemory(start, None);
        }
        // SAFETY: the domains are initialised, and no call of theirs is on its way.
        let done = unsafe { Domains::set_nomemory(self.heap.domains(), start, stop.unwrap_or(0)) };
        self.note_allocators();
        if done { Ok(()) } else { Err(HeapError::NoMemory) }
    }

    /// `_testcapi.remove_mem_hooks`: requests succeed again. Puts back the allocators that were in when [`set_nomemory`](Self::set_nomemory)
    /// was called first; in a domain where something else has been put in since, which may have given blocks, that stays, and what
    /// CPython puts back comes back.
    pub fn remove_nomemory(&self) -> [Option<Allocator>; 3] {
        while !self.empty_quarantine() {}
        // SAFETY: as above.
        let left = unsafe { Domains::remove_nomemory(self.heap.domains()) };
        self.note_allocators();
        left
    }

    /// While set, the heap gets no more memory, from the arena allocator or the C library, as if the system had none.
    pub fn set_refusing(&self, refusing: bool) {
        self.account.refusing.set(refusing);
    }

    /// Finds every block that lies outside the arenas, but for those at addresses that are lent: somebody else's. `is_over` is asked now and
    /// then whether to give up. The heap is only fit to be taken down then; [`free_blocks_outside`](Self::free_blocks_outside) does not need
    /// the arenas any more.
    ///
    /// # Errors
    /// When it was given up, or there is no memory for it. It may be called again.
    pub fn find_blocks_outside(
        &mut self,
        is_lent: impl Fn(usize) -> bool,
        mut is_over: impl FnMut() -> bool,
    ) -> Result<(), Undone> {
        if self.outside.is_known() {
            return Ok(());
        }
        for (index, (address, block)) in self.quarantine().blocks().enumerate() {
            // Those in arenas go with these.
            if self.heap.pymalloc().locate(address) == Location::Outside {
                self.ledger().revive(address, block.size, block.domain);
            }
            if (index + 1).is_multiple_of(STRIDE) && is_over() {
                return Err(Undone::GivenUp);
            }
        }
        let most = self.ledger().count_elsewhere() + self.hooks().map_or(0, |hooks| hooks.count());
        self.outside = Outside::new(most, self.blocks_outside(&is_lent), &mut is_over)?;
        Ok(())
    }

    /// As [`find_blocks_outside`](Self::find_blocks_outside), for when there is no memory for that: gives all of them back at once.
    pub fn free_blocks_unsorted(&mut self, is_lent: impl Fn(usize) -> bool) {
        let raw = self.account.raw;
        for address in self.blocks_outside(&is_lent).flatten() {
            // SAFETY: as in `free_blocks_outside`.
            unsafe { (raw.free)(raw.ctx, ptr::with_exposed_provenance_mut(address)) };
        }
        self.outside.set_gone();
    }

    /// What the raw allocator below everything gave, by the addresses that it knows, and nothing in place of other blocks.
    fn blocks_outside<'a>(&'a self, is_lent: &'a impl Fn(usize) -> bool) -> impl Iterator<Item = Option<usize>> + 'a {
        let (pymalloc, ledger, hooks) = (self.heap.pymalloc(), &*self.ledger(), self.hooks().map(|hooks| &*hooks));
        let lent = move |address| hooks.map_or_else(|| is_lent(address), |hooks| hooks.layers(address).any(is_lent));
        let below = move |address| hooks.and_then(|hooks| hooks.layers(address).last()).unwrap_or(address);
        let lost = hooks.into_iter().flat_map(|hooks| hooks.lost(|address| ledger.domain_of(address).is_some()));
        let is_outside = |&address: &usize| pymalloc.locate(address) == Location::Outside;
        let known = ledger.elsewhere().map(|(address, _, _)| Some(address)).chain(lost);
        known.map(move |address| address.filter(|&address| !lent(address)).map(below).filter(is_outside))
    }

    /// Gives back what [`find_blocks_outside`](Self::find_blocks_outside) has found; false when `is_over`, which is asked now and then, made it
    /// give up, or the hooks did in the middle of a large block. The rest goes when it is called again, or with the heap.
    pub fn free_blocks_outside(&mut self, is_over: impl FnMut() -> bool) -> bool {
        let account = self.account.as_ptr();
        let done = self.outside.drain(is_over, |address| {
            let block = ptr::with_exposed_provenance_mut::<c_void>(address);
            // SAFETY: a block outside all arenas that somebody had came from the raw allocator, and nobody can use it any more.
            unsafe {
                let bytes = block_bytes(block);
                account_free(account.cast(), block);
                // What was written to costs time by the page.
                1 + bytes / 256
            }
        });
        // SAFETY: the account is there as long as the heap.
        unsafe {
            if done {
                Account::catch_up(account);
            }
            done && (*account).late.is_null()
        }
    }

    /// Bytes of the region in which arenas have been, from its first byte on.
    pub(crate) fn used(&self) -> usize {
        self.heap.pymalloc().used()
    }

    /// Gives the memory of the heap's own arenas and tables back, in pieces; false when `is_over`, which is asked between them, made it give up.
    /// All blocks have been given back, and the heap is only fit to be dropped.
    pub fn give_back(&mut self, mut is_over: impl FnMut() -> bool) -> bool {
        // SAFETY: nothing else uses pymalloc now, and nobody uses a block any more.
        let done = unsafe { Pymalloc::decommit_arenas(&raw mut (*self.heap.domains()).pymalloc, &mut is_over) };
        let used = self.used();
        done && self.ledger().clear(used, is_over)
    }

    /// Calls `give` with the address of what the raw domain gave for each of pymalloc's tables, which otherwise go back to its allocator when
    /// the heap is dropped. The heap is only fit for that then.
    pub fn take_tables(&mut self, mut give: impl FnMut(&Self, usize)) {
        let domains = self.heap.domains();
        // SAFETY: nothing else uses pymalloc now.
        unsafe { Pymalloc::take_tables(&raw mut (*domains).pymalloc, |table| give(self, table.expose_provenance())) };
    }

    /// As [`Heap::arena_allocator`].
    pub fn arena_allocator(&self) -> ArenaAllocator {
        self.heap.arena_allocator()
    }

    /// As [`Heap::set_arena_allocator`].
    ///
    /// # Safety
    /// As for [`Heap::set_arena_allocator`].
    pub unsafe fn set_arena_allocator(&self, allocator: ArenaAllocator) {
        // SAFETY: the caller's promise.
        unsafe { self.heap.set_arena_allocator(allocator) };
    }

    /// As [`Heap::allocated_blocks`].
    pub fn allocated_blocks(&self) -> usize {
        self.heap.allocated_blocks() - self.hooks().map_or(0, |hooks| hooks.parked()) - self.quarantine().counted()
    }

    /// As [`Heap::arenas`].
    pub fn arenas(&self) -> Vec<ArenaInfo> {
        self.heap.arenas()
    }

    /// As [`Heap::stats`].
    pub fn stats(&self) -> Stats {
        self.heap.stats()
    }

    /// As [`Heap::verify`], and compares the ledger with the pools.
    ///
    /// # Errors
    /// The first structure that does not hold.
    pub fn verify(&self) -> Result<(), Corruption> {
        self.verify_with(|_, _| false)
    }

    /// As [`verify`](Self::verify), when blocks have been taken from an allocator directly: `is_taken` says whether that is so of any of
    /// `size` bytes at an address.
    ///
    /// # Errors
    /// As for `verify`.
    pub fn verify_with(&self, is_taken: impl Fn(usize, usize) -> bool) -> Result<(), Corruption> {
        self.heap.verify()?;
        let pymalloc = self.heap.pymalloc();
        let (ledger, hooks, waiting) = (self.ledger(), self.hooks(), self.quarantine());
        let alignment = self.geometry().alignment;
        let (mut found, patience) = (Ok(()), self.interrupt().patience());
        pymalloc.each_live_pool(|first, end, size, count| {
            if found.is_err() || patience.is_over_after((end - first) / alignment) {
                return;
            }
            let in_use = |&begin: &usize| {
                ledger.is_live(begin, size)
                    || waiting.has_within(begin, size, alignment)
                    || hooks.as_ref().is_some_and(|hooks| hooks.withholds(begin))
                    || is_taken(begin, size)
            };
            let live = (first..end).step_by(size).filter(in_use).count();
            if live != count {
                found = Err((first, count, live));
            }
        });
        found.map_err(|(address, count, live)| {
            let what = alloc::format!("a pool counts {count} blocks in use, but {live} are known");
            Corruption { what, address }
        })
    }
}

impl Drop for CheckedHeap {
    fn drop(&mut self) {
        // Nobody looks at what is given back, so it need not be filled.
        self.set_interrupt(Interrupt::NOW);
        // SAFETY: the account is there until all fields have been dropped.
        unsafe { (*self.account.as_ptr()).interrupt = Interrupt::NEVER };
        if self.was_replaced.get() && !self.outside.is_known() {
            for (address, _, domain) in self.blocks_elsewhere() {
                let block = NonNull::new(ptr::with_exposed_provenance_mut(address));
                // SAFETY: a live block; whoever put the allocator in has promised that it takes it back.
                unsafe { self.heap.free(domain, block) };
            }
            self.ledger().forget_elsewhere();
        }
        if self.find_blocks_outside(|_| false, || false).is_err() {
            self.free_blocks_unsorted(|_| false);
        }
        self.free_blocks_outside(|| false);
    }
}

impl Account {
    /// Gives the pages of a block of so many bytes back, but for its first ones, if they are many. False when that was given up.
    unsafe fn decommit(this: *mut Self, block: *mut c_void, from: usize, bytes: usize) -> bool {
        // SAFETY: the account outlives its allocators, no reference to it is held while somebody is asked, and nobody needs what is in
        // the block behind `from`, which is many pages.
        unsafe {
            let interrupt = (*this).interrupt;
            if bytes - from < LARGE {
                return true;
            }
            // Whole pages, of whatever size the system's are.
            let begin = block.cast::<u8>().add(from);
            let skipped = begin.align_offset(PAGE_MAX);
            let whole = (bytes - from - skipped) & !(PAGE_MAX - 1);
            os::decommit_in_pieces(NonNull::new_unchecked(begin.add(skipped)), whole, || interrupt.is_now())
        }
    }

    /// Keeps a block that was freed for when there is more time.
    unsafe fn put_off(this: *mut Self, block: *mut c_void) {
        // SAFETY: as above; the block is nobody's any more, and has room for an address.
        unsafe {
            block.cast::<*mut c_void>().write((*this).late);
            (*this).late = block;
        }
    }

    /// Gives back what was put off.
    #[cold]
    unsafe fn catch_up(this: *mut Self) {
        // SAFETY: as above.
        unsafe {
            while !(*this).late.is_null() {
                let block = (*this).late;
                (*this).late = block.cast::<*mut c_void>().read();
                if !Self::decommit(this, block, 0, block_bytes(block)) {
                    return Self::put_off(this, block);
                }
                ((*this).raw.free)((*this).raw.ctx, block);
            }
        }
    }

    /// Whether `more` bytes may still be held.
    unsafe fn has_room(this: *mut Self, more: usize) -> bool {
        // SAFETY: the account outlives its allocators, and no reference to it is held across calls.
        unsafe { (*this).held.checked_add(more).is_some_and(|sum| sum <= (*this).limit) }
    }

    /// Runs `request` if `more` bytes may still be held.
    unsafe fn within_limit(this: *mut Self, more: usize, request: impl FnOnce() -> *mut c_void) -> *mut c_void {
        // SAFETY: as above.
        let refused = unsafe { (*this).refusing.get() || !Self::has_room(this, more) };
        if refused { ptr::null_mut() } else { request() }
    }

    /// Enters a block that the C library has just given. It may have more bytes than were asked for, and goes back when these are too many:
    /// otherwise, once a block has been freed, there might still be no room for another of its size.
    unsafe fn enter(this: *mut Self, block: *mut c_void) -> *mut c_void {
        // SAFETY: as above; nobody else knows the block.
        unsafe {
            let bytes = block_bytes(block);
            if !Self::has_room(this, bytes) {
                ((*this).raw.free)((*this).raw.ctx, block);
                return ptr::null_mut();
            }
            Self::add(this, bytes);
        }
        block
    }

    unsafe fn add(this: *mut Self, bytes: usize) {
        // SAFETY: as above.
        unsafe { (*this).held += bytes };
    }

    unsafe fn subtract(this: *mut Self, bytes: usize) {
        // SAFETY: as above. Arenas of a caller's own allocator that is taken out again were never added.
        unsafe { (*this).held = (*this).held.saturating_sub(bytes) };
    }
}

unsafe extern "C" fn account_malloc(ctx: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: `ctx` is the account that these functions were made for.
    unsafe {
        let (account, raw) = (ctx.cast::<Account>(), (*ctx.cast::<Account>()).raw);
        let block = Account::within_limit(account, size, || (raw.malloc)(raw.ctx, size));
        Account::enter(account, block)
    }
}

unsafe extern "C" fn account_calloc(ctx: *mut c_void, count: usize, size: usize) -> *mut c_void {
    // SAFETY: as above.
    unsafe {
        let (account, raw) = (ctx.cast::<Account>(), (*ctx.cast::<Account>()).raw);
        let block = Account::within_limit(account, count.saturating_mul(size), || (raw.calloc)(raw.ctx, count, size));
        Account::enter(account, block)
    }
}

unsafe extern "C" fn account_realloc(ctx: *mut c_void, address: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: as above.
    unsafe {
        let (account, raw) = (ctx.cast::<Account>(), (*ctx.cast::<Account>()).raw);
        if address.is_null() {
            return account_malloc(ctx, size);
        }
        let old = block_bytes(address);
        let block = Account::within_limit(account, size.saturating_sub(old), || {
            // The C library does not refuse to make a block smaller.
            if !Account::decommit(account, address, size.min(old), old) {
                return address;
            }
            (raw.realloc)(raw.ctx, address, size)
        });
        if !block.is_null() {
            Account::subtract(account, old);
            Account::add(account, block_bytes(block));
        }
        block
    }
}

unsafe extern "C" fn account_free(ctx: *mut c_void, address: *mut c_void) {
    // SAFETY: as above.
    unsafe {
        let (account, raw) = (ctx.cast::<Account>(), (*ctx.cast::<Account>()).raw);
        let bytes = block_bytes(address);
        Account::subtract(account, bytes);
        if !(*account).late.is_null() {
            Account::catch_up(account);
        }
        if !Account::decommit(account, address, 0, bytes) {
            return Account::put_off(account, address);
        }
        (raw.free)(raw.ctx, address);
    }
}

unsafe extern "C" fn account_arena_alloc(ctx: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: as above.
    unsafe {
        let (account, arena) = (ctx.cast::<Account>(), (*ctx.cast::<Account>()).arena);
        let address = Account::within_limit(account, size, || (arena.alloc)(arena.ctx, size));
        if !address.is_null() {
            Account::add(account, size);
        }
        address
    }
}

unsafe extern "C" fn account_arena_free(ctx: *mut c_void, address: *mut c_void, size: usize) {
    // SAFETY: as above.
    unsafe {
        let (account, arena) = (ctx.cast::<Account>(), (*ctx.cast::<Account>()).arena);
        (arena.free)(arena.ctx, address, size);
        Account::subtract(account, size);
    }
}
