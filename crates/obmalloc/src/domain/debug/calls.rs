//! The functions of a debug hook (`_PyMem_DebugMalloc` and its kin), and the bytes that they write around and into a block.

use core::ffi::c_void;
use core::ptr;

use super::{Api, Block, CLEAN, DEAD, DebugHooks, EXTRA, FORBIDDEN, HEAD, SST, State, api_id};
use crate::allocator::{Allocator, PY_SSIZE_T_MAX};
use crate::domain::report::Function;
use crate::domain::{Domain, Fault, FaultKind};

/// Bytes at each end of a block's data that a realloc saves and overwrites (`ERASED_SIZE`).
const ERASED: usize = 64;

/// A hook as an allocator.
pub(super) fn allocator(hook: *const Api) -> Allocator {
    Allocator {
        ctx: hook.cast_mut().cast(),
        malloc: debug_malloc,
        calloc: debug_calloc,
        realloc: debug_realloc,
        free: debug_free,
    }
}

/// The hooks, for one step that calls no allocator.
///
/// # Safety
/// `ctx` is the API of a hook, and the reference is gone when an allocator is called.
unsafe fn hooks<'a>(ctx: *mut c_void) -> (&'a Api, &'a mut DebugHooks) {
    // SAFETY: the caller's promise; hooks stay as long as the domains.
    unsafe {
        let api = &*ctx.cast::<Api>();
        let hooks = (*api.domains).debug.as_mut().expect("a hook belongs to hooks that have been set up");
        hooks.asking = api.domain;
        (api, hooks)
    }
}

/// Writes header and trailer of a block whose data begins at `data`.
///
/// # Safety
/// The block is there.
unsafe fn write_guards(data: *mut u8, size: usize, domain: Domain) {
    // SAFETY: the caller's promise.
    unsafe {
        data.sub(HEAD).cast::<[u8; SST]>().write((size as u64).to_be_bytes());
        data.sub(SST).write(api_id(domain));
        data.sub(SST - 1).write_bytes(FORBIDDEN, SST - 1);
        data.add(size).write_bytes(FORBIDDEN, SST);
    }
}

/// `_PyMem_DebugRawAlloc`
///
/// # Safety
/// `ctx` is the API of a hook that is set up, and no reference to what hooks know is held.
unsafe fn debug_alloc(ctx: *mut c_void, zeroed: bool, size: usize) -> *mut c_void {
    if size > PY_SSIZE_T_MAX - EXTRA {
        return ptr::null_mut();
    }
    // SAFETY: `ctx` is the API of the hook; no reference to the hooks is held while the inner allocator runs.
    let (api, known) = unsafe { hooks(ctx) };
    if !known.reserve() {
        return ptr::null_mut();
    }
    let inner = api.inner;
    // SAFETY: an allocator takes any size.
    let block =
        unsafe { if zeroed { (inner.calloc)(inner.ctx, 1, size + EXTRA) } else { (inner.malloc)(inner.ctx, size + EXTRA) } };
    if block.is_null() {
        return block;
    }
    let data = block.cast::<u8>().wrapping_add(HEAD);
    // SAFETY: as above; the inner allocator has run.
    let (api, known) = unsafe { hooks(ctx) };
    let address = data.expose_provenance();
    if known.blocks.contains_key(&address) {
        // The inner allocator gave a block that is live already: the block has two owners now.
        known.keep_fault(Fault::new(FaultKind::HeapCorrupted, address, api.domain));
        return ptr::null_mut();
    }
    if !known.reserve() {
        // SAFETY: the block goes back to the allocator that has just given it.
        unsafe { (inner.free)(inner.ctx, block) };
        return ptr::null_mut();
    }
    known.blocks.insert(address, Block { size, hook: api, domain: api.domain, state: State::Sound });
    // SAFETY: a block of `size + EXTRA` bytes that nothing else knows yet.
    unsafe {
        write_guards(data, size, api.domain);
        if !zeroed {
            let interrupt = (*api.domains).interrupt;
            interrupt.fill(data, CLEAN, size);
        }
    }
    data.cast()
}

/// `_PyMem_DebugRawMalloc`, `_PyMem_DebugMalloc`
#[inline(never)] // Allocators are compared by their functions' addresses, so there must be one of each.
pub(super) unsafe extern "C-unwind" fn debug_malloc(ctx: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: as there.
    unsafe { debug_alloc(ctx, false, size) }
}

/// `_PyMem_DebugRawCalloc`, `_PyMem_DebugCalloc`
#[inline(never)]
unsafe extern "C-unwind" fn debug_calloc(ctx: *mut c_void, count: usize, size: usize) -> *mut c_void {
    // SAFETY: as there.
    count.checked_mul(size).map_or(ptr::null_mut(), |size| unsafe { debug_alloc(ctx, true, size) })
}

/// `_PyMem_DebugRawFree`, `_PyMem_DebugFree`
#[inline(never)]
unsafe extern "C-unwind" fn debug_free(ctx: *mut c_void, address: *mut c_void) {
    if address.is_null() {
        return;
    }
    // SAFETY: as in `debug_alloc`.
    let (api, known) = unsafe { hooks(ctx) };
    let (inner, watched, domains) = (api.inner, api.watched, api.domains);
    let Some(block) = known.block(api, address.expose_provenance()) else {
        // Older than the hooks.
        // SAFETY: the caller gives a block of this domain.
        return unsafe { (inner.free)(inner.ctx, address) };
    };
    if !known.is_sound(Function::Free, api.domain, address.addr()) {
        if let Some(block) = known.blocks.get_mut(&address.addr()) {
            block.state = State::Refused;
        }
        return;
    }
    known.blocks.remove(&address.addr());
    let begin = address.cast::<u8>().wrapping_sub(HEAD);
    // SAFETY: a block that the hook gave lies behind a header; nothing refers to the hooks any more.
    unsafe {
        let interrupt = (*domains).interrupt;
        let filled = block.state == State::InQuarantine || interrupt.fill(begin, DEAD, block.size + EXTRA);
        (inner.free)(inner.ctx, begin.cast());
        if watched && filled {
            (*domains).pymalloc.note_dead(begin.addr(), block.size + EXTRA);
        }
    }
}

/// `_PyMem_DebugRawRealloc`, `_PyMem_DebugRealloc`
#[inline(never)]
unsafe extern "C-unwind" fn debug_realloc(ctx: *mut c_void, address: *mut c_void, size: usize) -> *mut c_void {
    if address.is_null() {
        // SAFETY: as there.
        return unsafe { debug_alloc(ctx, false, size) };
    }
    // SAFETY: as in `debug_alloc`.
    let (api, known) = unsafe { hooks(ctx) };
    let (inner, domain, domains) = (api.inner, api.domain, api.domains);
    let Some(block) = known.block(api, address.expose_provenance()) else {
        // Older than the hooks.
        let outer = known.passing.replace((api, address.addr()));
        // SAFETY: the caller gives a block of this domain; as in `debug_alloc`.
        return unsafe {
            let moved = (inner.realloc)(inner.ctx, address, size);
            hooks(ctx).1.passing = outer;
            moved
        };
    };
    if !known.is_sound(Function::Realloc, domain, address.addr()) || size > PY_SSIZE_T_MAX - EXTRA {
        return ptr::null_mut();
    }
    // The block has no owner while it moves; the table keeps room for it.
    known.blocks.remove(&address.addr());
    known.moving += 1;
    if !known.reserve() {
        known.moving -= 1;
        known.blocks.insert(address.addr(), block);
        return ptr::null_mut();
    }

    // SAFETY: a block that the hook gave lies behind a header; nothing refers to the hooks any more.
    let (erased, moved, is_closed) = unsafe {
        let erased = Erased::new(address.cast(), block.size);
        let moved = (inner.realloc)(inner.ctx, address.cast::<u8>().sub(HEAD).cast(), size + EXTRA);
        (erased, moved, (*domains).is_closed)
    };
    if is_closed {
        return ptr::null_mut();
    }
    let (data, now) = if moved.is_null() { (address.cast(), block.size) } else { (moved.cast::<u8>().wrapping_add(HEAD), size) };
    // SAFETY: where the block is now, it has `now` bytes between its header and its trailer.
    unsafe {
        write_guards(data, now, domain);
        erased.restore(data, now);
        if now > block.size {
            let interrupt = (*domains).interrupt;
            interrupt.fill(data.add(block.size), CLEAN, now - block.size);
        }
    }

    // SAFETY: as in `debug_alloc`; the inner allocator has run.
    let (api, known) = unsafe { hooks(ctx) };
    known.moving -= 1;
    known.blocks.insert(data.expose_provenance(), Block { size: now, hook: api, domain, state: State::Sound });
    if moved.is_null() { moved } else { data.cast() }
}

/// The bytes that a realloc saves while the inner allocator moves a block: all of them, or both ends.
struct Erased {
    begin: [u8; ERASED],
    end: [u8; ERASED],
    size: usize,
}

impl Erased {
    /// Saves the bytes and overwrites them, and with them header and trailer.
    ///
    /// # Safety
    /// A block with `size` bytes of data begins its data at `data`.
    unsafe fn new(data: *mut u8, size: usize) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let mut erased = Self { begin: [0; ERASED], end: [0; ERASED], size };
            let (begin, end) = erased.lengths();
            data.copy_to_nonoverlapping(erased.begin.as_mut_ptr(), begin);
            data.add(size - end).copy_to_nonoverlapping(erased.end.as_mut_ptr(), end);
            data.sub(HEAD).write_bytes(DEAD, HEAD + begin);
            data.add(size - end).write_bytes(DEAD, end + SST);
            erased
        }
    }

    /// How many bytes are saved at the beginning and at the end.
    fn lengths(&self) -> (usize, usize) {
        let begin = self.size.min(ERASED);
        (begin, (self.size - begin).min(ERASED))
    }

    /// Puts the saved bytes back, as far as they fit into `now` bytes.
    ///
    /// # Safety
    /// There are `now` bytes at `data`.
    unsafe fn restore(&self, data: *mut u8, now: usize) {
        let (begin, end) = self.lengths();
        // SAFETY: the caller's promise.
        unsafe {
            data.copy_from_nonoverlapping(self.begin.as_ptr(), begin.min(now));
            let from = self.size - end;
            if now > from {
                data.add(from).copy_from_nonoverlapping(self.end.as_ptr(), end.min(now - from));
            }
        }
    }
}
