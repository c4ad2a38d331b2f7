//! A heap that looks every address up before it uses it.

use core::cell::{Cell, UnsafeCell};
use core::ffi::c_void;
use core::ptr::{self, NonNull};

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::{Heap, HeapError, HeapOptions};
use crate::allocator::{Allocator, ArenaAllocator};
use crate::domain::{Domain, Fault, Ledger, Purpose};
use crate::profile::Geometry;
use crate::pymalloc::{ArenaInfo, Corruption, Location, Stats};

/// A [`Heap`] with a ledger of its live blocks: every misused address gives a [`Fault`], before anything is read or changed.
///
/// Unlike a [`Heap`], it gives back everything when it is dropped, raw blocks included.
pub struct CheckedHeap {
    // Field order is drop order: the heap's arenas go back through the account.
    heap: Heap,
    ledger: UnsafeCell<Ledger>,
    account: Box<Account>,
}

/// What the heap holds, and may hold; its allocators are the lowest ones of a checked heap.
struct Account {
    held: usize,
    limit: usize,
    refusing: Cell<bool>,
    raw: Allocator,
    arena: ArenaAllocator,
}

impl CheckedHeap {
    /// An empty heap.
    ///
    /// # Errors
    /// When a size is out of its range, or there is no memory for the heap's tables.
    pub fn new(options: HeapOptions) -> Result<Self, HeapError> {
        let heap = Heap::with_options(options)?;
        let ledger = Ledger::new(heap.pymalloc()).ok_or(HeapError::NoMemory)?;
        let limit = options.memory_limit.unwrap_or(usize::MAX);
        let (raw, arena) = (heap.allocator(Domain::Raw), heap.arena_allocator());
        let mut account = Box::new(Account { held: 0, limit, refusing: Cell::new(false), raw, arena });
        let ctx = ptr::from_mut::<Account>(&mut account).cast::<c_void>();
        // SAFETY: the account lives as long as the heap, and its functions pass on to the ones that were in.
        unsafe {
            heap.set_allocator(
                Domain::Raw,
                Allocator { ctx, malloc: account_malloc, calloc: account_calloc, realloc: account_realloc, free: account_free },
            );
            heap.set_arena_allocator(ArenaAllocator { ctx, alloc: account_arena_alloc, free: account_arena_free });
        }
        Ok(Self { heap, ledger: UnsafeCell::new(ledger), account })
    }

    /// The ledger, for the length of one step that calls no allocator.
    #[inline(always)]
    #[allow(clippy::mut_from_ref, reason = "the heap is used by one thread, and no two of these live at once")]
    fn ledger(&self) -> &mut Ledger {
        // SAFETY: `CheckedHeap` is not `Sync`; each caller lets go before it calls an allocator or takes the ledger again.
        unsafe { &mut *self.ledger.get() }
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
        let block = self.heap.malloc(domain, size)?;
        self.enter(domain, block, size)
    }

    /// As [`Heap::calloc`].
    #[inline]
    pub fn calloc(&self, domain: Domain, count: usize, size: usize) -> Option<NonNull<u8>> {
        let block = self.heap.calloc(domain, count, size)?;
        // The product fits, or there would be no block.
        self.enter(domain, block, count.wrapping_mul(size))
    }

    #[inline]
    fn enter(&self, domain: Domain, block: NonNull<u8>, size: usize) -> Option<NonNull<u8>> {
        if self.ledger().insert(block.as_ptr() as usize, size, domain) {
            return Some(block);
        }
        // SAFETY: the block was given just now and nobody else knows it.
        unsafe { self.heap.free(domain, Some(block)) };
        None
    }

    /// As [`Heap::realloc`]; a block is given as its address.
    ///
    /// # Errors
    /// When `address` is no live block of this heap and domain.
    #[inline]
    pub fn realloc(&self, domain: Domain, address: Option<usize>, size: usize) -> Result<Option<NonNull<u8>>, Fault> {
        let Some(address) = address else { return Ok(self.malloc(domain, size)) };
        self.check(domain, address, Purpose::Use)?;
        // Room first: once the block has moved, there is no way back.
        if !self.ledger().reserve() {
            return Ok(None);
        }
        let old = NonNull::new(ptr::with_exposed_provenance_mut(address));
        // SAFETY: checked just above to be a live block of this domain.
        let Some(block) = (unsafe { self.heap.realloc(domain, old, size) }) else { return Ok(None) };
        let ledger = self.ledger();
        ledger.remove(address);
        let entered = ledger.insert(block.as_ptr().expose_provenance(), size, domain);
        debug_assert!(entered, "room for the entry was made before");
        Ok(Some(block))
    }

    /// As [`Heap::free`]; a block is given as its address.
    ///
    /// # Errors
    /// When `address` is no live block of this heap and domain. Nothing has been changed then.
    #[inline]
    pub fn free(&self, domain: Domain, address: usize) -> Result<(), Fault> {
        if !self.ledger().strike_out(domain, address) {
            self.check(domain, address, Purpose::Free)?;
            self.ledger().remove(address);
        }
        // SAFETY: seen just above to have been a live block of this domain.
        unsafe { self.heap.free(domain, NonNull::new(ptr::with_exposed_provenance_mut(address))) };
        Ok(())
    }

    /// As [`free`](Self::free), for whoever knows the block.
    ///
    /// # Safety
    /// `address` is a live block of this heap and domain, and is not used any more.
    #[inline]
    pub(crate) unsafe fn free_unchecked(&self, domain: Domain, address: usize) {
        debug_assert_eq!(self.check(domain, address, Purpose::Free), Ok(()), "the caller knows the block");
        self.ledger().remove(address);
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

    /// Bytes that may be used at `address`: the block's size class, or for a raw block what was requested.
    ///
    /// # Errors
    /// When `address` is no live block of this heap and domain.
    pub fn usable_size(&self, domain: Domain, address: usize) -> Result<usize, Fault> {
        self.check(domain, address, Purpose::Use)?;
        match self.heap.pymalloc().locate(address) {
            Location::Block { size, .. } => Ok(size),
            _ => Ok(self.ledger().size_elsewhere(address).expect("a live block that lies in no pool has an entry")),
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

    /// From now on mem and obj ask the raw domain's allocator for every block (`PYTHONMALLOC=malloc`).
    ///
    /// Blocks that pymalloc has given must not go back to another allocator, so this is for a heap without any.
    pub fn use_malloc(&self) {
        debug_assert!(self.heap.arenas().is_empty(), "no block has been given yet");
        let raw = self.heap.allocator(Domain::Raw);
        for domain in [Domain::Mem, Domain::Obj] {
            // SAFETY: the raw domain's own allocator, and there are no blocks to take back.
            unsafe { self.heap.set_allocator(domain, raw) };
        }
    }

    /// While set, the heap gets no more memory, from the arena allocator or the C library, as if the system had none.
    pub fn set_refusing(&self, refusing: bool) {
        self.account.refusing.set(refusing);
    }

    /// Gives back every block that lies outside the arenas. The heap is only fit to be dropped then.
    pub fn free_blocks_outside(&mut self) {
        let pymalloc = self.heap.pymalloc();
        let raw = self.account.raw;
        for (address, _, _) in self.ledger().elsewhere() {
            if pymalloc.locate(address) == Location::Outside {
                // SAFETY: a live block outside all arenas came from the raw allocator, and nobody can use it any more.
                unsafe { (raw.free)(raw.ctx, ptr::with_exposed_provenance_mut(address)) };
            }
        }
        self.ledger().forget_elsewhere();
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
        self.heap.allocated_blocks()
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
        self.heap.verify()?;
        let pymalloc = self.heap.pymalloc();
        let ledger = self.ledger();
        let mut found = Ok(());
        pymalloc.each_live_pool(|first, end, size, count| {
            let live = ledger.live_between(first, end, size);
            if live != count && found.is_ok() {
                found = Err((first, count, live));
            }
        });
        found.map_err(|(address, count, live)| {
            let what = alloc::format!("a pool counts {count} blocks in use, but the ledger has {live}");
            Corruption { what, address }
        })
    }
}

impl Drop for CheckedHeap {
    fn drop(&mut self) {
        self.free_blocks_outside();
    }
}

impl Account {
    /// Runs `request` if `more` bytes may still be held.
    unsafe fn within_limit(this: *mut Self, more: usize, request: impl FnOnce() -> *mut c_void) -> *mut c_void {
        // SAFETY: the account outlives its allocators, and no reference to it is held across calls.
        let (held, limit, refusing) = unsafe { ((*this).held, (*this).limit, (*this).refusing.get()) };
        let refused = refusing || held.checked_add(more).is_none_or(|sum| sum > limit);
        if refused { ptr::null_mut() } else { request() }
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

/// Bytes that the C library really set aside for a block.
unsafe fn block_bytes(block: *mut c_void) -> usize {
    // SAFETY: NULL or a live block of the C library's malloc.
    unsafe { libc::malloc_usable_size(block) }
}

unsafe extern "C" fn account_malloc(ctx: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: `ctx` is the account that these functions were made for.
    unsafe {
        let (account, raw) = (ctx.cast::<Account>(), (*ctx.cast::<Account>()).raw);
        let block = Account::within_limit(account, size, || (raw.malloc)(raw.ctx, size));
        Account::add(account, block_bytes(block));
        block
    }
}

unsafe extern "C" fn account_calloc(ctx: *mut c_void, count: usize, size: usize) -> *mut c_void {
    // SAFETY: as above.
    unsafe {
        let (account, raw) = (ctx.cast::<Account>(), (*ctx.cast::<Account>()).raw);
        let block = Account::within_limit(account, count.saturating_mul(size), || (raw.calloc)(raw.ctx, count, size));
        Account::add(account, block_bytes(block));
        block
    }
}

unsafe extern "C" fn account_realloc(ctx: *mut c_void, address: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: as above.
    unsafe {
        let (account, raw) = (ctx.cast::<Account>(), (*ctx.cast::<Account>()).raw);
        let old = block_bytes(address);
        let block = Account::within_limit(account, size.saturating_sub(old), || (raw.realloc)(raw.ctx, address, size));
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
        Account::subtract(account, block_bytes(address));
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
