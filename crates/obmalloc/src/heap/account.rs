//! The account of a checked heap: which memory it got from the system. Its functions are the lowest allocators of such a heap.

use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::ptr::{self, NonNull};

use crate::address_hash::AddressSet;
use crate::allocator::{Allocator, ArenaAllocator};
use crate::interrupt::Interrupt;
use crate::os::{self, block_bytes};

/// Blocks of at least this many bytes are given back to the system in pieces. The C library maps each block of this size separately, because
/// `M_MMAP_THRESHOLD` cannot be set higher. Its `free` unmaps the block in one step, which takes a second for ten gigabytes.
const LARGE: usize = 32 << 20;
/// A multiple of every system's page size.
const PAGE_MAX: usize = 1 << 16;

/// Invariants:
/// 1. `held` is the bytes of the C library's blocks and of the arenas that these functions gave and have not got back.
/// 2. `roots`, once it is set, holds the address of each of those blocks and no other. Until then, every such block is in the ledger at its
///    own address, or is one of pymalloc's tables.
/// 3. `late` leads through blocks of the C library that were freed, and are in no other record.
pub(crate) struct Account(UnsafeCell<Held>);

struct Held {
    held: usize,
    limit: usize,
    /// While set, there is no more memory, as if the system had none.
    refusing: bool,
    /// While set, there is no more memory, because the present call is to fail.
    failing: bool,
    raw: Allocator,
    arena: ArenaAllocator,
    /// The heap's.
    interrupt: Interrupt,
    /// Blocks of the C library. Needed once the addresses in the ledger are not those of the C library's blocks any more.
    roots: Option<AddressSet>,
    /// Large blocks of the C library whose freeing was interrupted. The next free of a large block frees them. Each holds the address of the
    /// next.
    late: *mut c_void,
}

impl Account {
    /// An account over the C library's allocator and an arena allocator.
    pub fn new(limit: usize, raw: Allocator, arena: ArenaAllocator) -> Self {
        let (interrupt, late) = (Interrupt::NEVER, ptr::null_mut());
        Self(UnsafeCell::new(Held { held: 0, limit, refusing: false, failing: false, raw, arena, interrupt, roots: None, late }))
    }

    /// The raw allocator of a heap with this account. It is valid while the account does not move.
    ///
    /// # Safety
    /// `this` points to an account by the time the allocator is used.
    pub unsafe fn as_allocator(this: *const Self) -> Allocator {
        let ctx = this.cast_mut().cast();
        Allocator { ctx, malloc: account_malloc, calloc: account_calloc, realloc: account_realloc, free: account_free }
    }

    /// The arena allocator of a heap with this account. It is valid while the account does not move.
    ///
    /// # Safety
    /// `this` points to an account by the time the allocator is used.
    pub unsafe fn as_arena_allocator(this: *const Self) -> ArenaAllocator {
        ArenaAllocator { ctx: this.cast_mut().cast(), alloc: account_arena_alloc, free: account_arena_free }
    }

    /// The fields, for one step that calls no allocator and no hook.
    #[allow(clippy::mut_from_ref, reason = "a heap is used by one thread, and no two of these live at once")]
    fn fields(&self) -> &mut Held {
        // SAFETY: an account is not `Sync`; each caller lets go before it calls or asks anything.
        unsafe { &mut *self.0.get() }
    }

    /// Bytes held in arenas and raw blocks.
    #[inline]
    pub fn held(&self) -> usize {
        // SAFETY: as in `fields`.
        unsafe { (*self.0.get()).held }
    }

    /// Bytes that may be held.
    pub fn limit(&self) -> usize {
        self.fields().limit
    }

    /// Whether the heap gets no more memory.
    pub fn is_refusing(&self) -> bool {
        self.fields().refusing || self.fields().failing
    }

    /// While set, there is no more memory.
    pub fn set_refusing(&self, refusing: bool) {
        self.fields().refusing = refusing;
    }

    /// While set, the present call is to fail, and gets no more memory.
    pub fn set_failing(&self, failing: bool) {
        self.fields().failing = failing;
    }

    /// Sets what is asked, while large blocks are given back, whether to stop.
    pub fn set_interrupt(&self, interrupt: Interrupt) {
        self.fields().interrupt = interrupt;
    }

    /// From now on the account keeps a list of its blocks. It begins with `blocks`, at most `count` of them. False when there is no memory for
    /// that.
    pub fn know_roots(&self, count: usize, blocks: impl Iterator<Item = usize>) -> bool {
        let held = self.fields();
        if held.roots.is_some() {
            return true;
        }
        let mut roots = AddressSet::default();
        if roots.try_reserve(count).is_err() {
            return false;
        }
        roots.extend(blocks);
        held.roots = Some(roots);
        true
    }

    /// Whether an address is a block of the C library that this account has; only where it [knows its roots](Self::know_roots).
    fn is_root(&self, address: usize) -> bool {
        self.fields().roots.as_ref().is_some_and(|roots| roots.contains(&address))
    }

    /// Bytes of such a block.
    pub fn size_of_root(&self, address: usize) -> Option<usize> {
        // SAFETY: invariant 2: a block of the C library's.
        self.is_root(address).then(|| unsafe { block_bytes(ptr::with_exposed_provenance_mut(address)) })
    }

    /// Takes the list of blocks out of the account; `None` if it keeps none.
    pub fn take_roots(&self) -> Option<AddressSet> {
        self.fields().roots.as_mut().map(core::mem::take)
    }

    /// Gives back a block of the account that is in no record any more. A large one goes in pieces, and `is_over` is asked between them. False
    /// if that stopped it: the block then goes with the account.
    ///
    /// # Safety
    /// A block that [`as_allocator`](Self::as_allocator) gave, and that nothing uses any more.
    pub unsafe fn release(&self, block: usize, is_over: &mut dyn FnMut() -> bool) -> bool {
        let block = ptr::with_exposed_provenance_mut::<c_void>(block);
        // SAFETY: the caller's promise. A large block has room for an address.
        unsafe {
            let (held, bytes) = (self.fields(), block_bytes(block));
            held.subtract(bytes);
            if is_large(bytes) {
                block.cast::<*mut c_void>().write(held.late);
                held.late = block;
                return self.catch_up(is_over);
            }
            (held.raw.free)(held.raw.ctx, block);
        }
        true
    }

    /// Gives back the large blocks in `late`. False if it was interrupted; the rest, also after a panic, is left for the next time.
    #[cold]
    pub fn catch_up(&self, is_over: &mut dyn FnMut() -> bool) -> bool {
        loop {
            let held = self.fields();
            let (block, raw) = (held.late, held.raw);
            if block.is_null() {
                return true;
            }
            // SAFETY: invariant 3. Of the block, only the address at its beginning is still needed.
            unsafe {
                if !decommit(block, size_of::<usize>(), block_bytes(block), is_over) {
                    return false;
                }
                self.fields().late = block.cast::<*mut c_void>().read();
                (raw.free)(raw.ctx, block);
            }
        }
    }

    /// Counts a block that the C library has just given, or gives it back if it exceeds the limit. Its real size counts, not the size asked for:
    /// otherwise a block that was freed might leave no room for another of its size.
    ///
    /// # Safety
    /// NULL, or the C library's block, which no other code knows.
    #[inline]
    unsafe fn enter(&self, block: *mut c_void) -> *mut c_void {
        if block.is_null() {
            return block;
        }
        // SAFETY: the caller's promise.
        let bytes = unsafe { block_bytes(block) };
        let held = self.fields();
        if !held.has_room(bytes) || !held.note_root(block) {
            let (free, ctx) = (held.raw.free, held.raw.ctx);
            // SAFETY: as above.
            unsafe { free(ctx, block) };
            return ptr::null_mut();
        }
        held.held += bytes;
        block
    }
}

impl Held {
    /// Whether `more` bytes may still be held.
    fn has_room(&self, more: usize) -> bool {
        !self.refusing && !self.failing && self.held.checked_add(more).is_some_and(|sum| sum <= self.limit)
    }

    /// Notes a block, if the account keeps a list of its blocks. False when there is no memory for that.
    #[inline]
    fn note_root(&mut self, block: *mut c_void) -> bool {
        self.roots.as_mut().is_none_or(|roots| {
            let has_room = roots.try_reserve(1).is_ok();
            if has_room {
                roots.insert(block.expose_provenance());
            }
            has_room
        })
    }

    fn subtract(&mut self, bytes: usize) {
        // Arenas from a caller's own allocator were not added, but may be given back here.
        self.held = self.held.saturating_sub(bytes);
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.catch_up(&mut || false);
    }
}

/// Whether a block of this size goes back in pieces.
fn is_large(bytes: usize) -> bool {
    os::BLOCKS_IN_PIECES && bytes >= LARGE
}

/// Gives back the pages of a large block behind its first `from` bytes. False if it was interrupted.
///
/// # Safety
/// The C library's block, and nothing needs what is in it behind `from`.
unsafe fn decommit(block: *mut c_void, from: usize, bytes: usize, is_over: &mut dyn FnMut() -> bool) -> bool {
    if !is_large(bytes - from) {
        return true;
    }
    // SAFETY: the caller's promise. Whole pages, of whatever size the system's are.
    unsafe {
        let begin = block.cast::<u8>().add(from);
        let skipped = begin.align_offset(PAGE_MAX);
        let whole = (bytes - from - skipped) & !(PAGE_MAX - 1);
        os::decommit_in_pieces(NonNull::new_unchecked(begin.add(skipped)), whole, is_over)
    }
}

/// # Safety
/// `ctx` is what [`Account::as_allocator`] was made from.
unsafe fn account<'a>(ctx: *mut c_void) -> &'a Account {
    // SAFETY: the caller's promise; the account outlives its allocators.
    unsafe { &*ctx.cast_const().cast::<Account>() }
}

unsafe extern "C-unwind" fn account_malloc(ctx: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: these functions have an account as their context.
    unsafe {
        let account = account(ctx);
        let held = account.fields();
        if !held.has_room(size) {
            return ptr::null_mut();
        }
        let (malloc, ctx) = (held.raw.malloc, held.raw.ctx);
        account.enter(malloc(ctx, size))
    }
}

unsafe extern "C-unwind" fn account_calloc(ctx: *mut c_void, count: usize, size: usize) -> *mut c_void {
    // SAFETY: as above.
    unsafe {
        let account = account(ctx);
        let held = account.fields();
        if !held.has_room(count.saturating_mul(size)) {
            return ptr::null_mut();
        }
        let (calloc, ctx) = (held.raw.calloc, held.raw.ctx);
        account.enter(calloc(ctx, count, size))
    }
}

unsafe extern "C-unwind" fn account_realloc(ctx: *mut c_void, address: *mut c_void, size: usize) -> *mut c_void {
    if address.is_null() {
        // SAFETY: as above.
        return unsafe { account_malloc(ctx, size) };
    }
    // SAFETY: as above; the caller gives a block of this account.
    let (account, old) = unsafe { (account(ctx), block_bytes(address)) };
    let held = account.fields();
    let (raw, interrupt) = (held.raw, held.interrupt);
    if !held.has_room(size.saturating_sub(old)) || held.roots.as_mut().is_some_and(|roots| roots.try_reserve(1).is_err()) {
        return ptr::null_mut();
    }
    // SAFETY: the caller gives a block of `old` bytes.
    let goes_on = unsafe { decommit(address, size.min(old), old, &mut || interrupt.is_now()) };
    // The C library does not refuse to make a block smaller.
    // SAFETY: the raw allocator gave it.
    let block = if goes_on { unsafe { (raw.realloc)(raw.ctx, address, size) } } else { address };
    if !block.is_null() {
        // SAFETY: as above; the raw allocator has run, and gave this block.
        let (held, now) = unsafe { (account.fields(), block_bytes(block)) };
        held.subtract(old);
        held.held += now;
        if let Some(roots) = &mut held.roots {
            roots.remove(&address.addr());
            roots.insert(block.expose_provenance());
        }
    }
    block
}

unsafe extern "C-unwind" fn account_free(ctx: *mut c_void, address: *mut c_void) {
    if address.is_null() {
        return;
    }
    // SAFETY: as above; the caller gives a block of this account.
    unsafe {
        let account = account(ctx);
        let interrupt = account.fields().interrupt;
        let is_over = &mut || interrupt.is_now();
        if !account.fields().late.is_null() {
            account.catch_up(is_over);
        }
        if let Some(roots) = &mut account.fields().roots {
            roots.remove(&address.addr());
        }
        account.release(address.expose_provenance(), is_over);
    }
}

unsafe extern "C-unwind" fn account_arena_alloc(ctx: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: as above.
    unsafe {
        let account = account(ctx);
        if !account.fields().has_room(size) {
            return ptr::null_mut();
        }
        let arena = account.fields().arena;
        let address = (arena.alloc)(arena.ctx, size);
        if !address.is_null() {
            account.fields().held += size;
        }
        address
    }
}

unsafe extern "C-unwind" fn account_arena_free(ctx: *mut c_void, address: *mut c_void, size: usize) {
    // SAFETY: as above.
    unsafe {
        let account = account(ctx);
        let arena = account.fields().arena;
        (arena.free)(arena.ctx, address, size);
        account.fields().subtract(size);
    }
}
