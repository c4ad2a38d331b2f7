//! The debug hooks (`PyMem_SetupDebugHooks`): allocators that wrap whatever is in, put guard bytes around every block, and look at them when
//! the block is freed or resized.
//!
//! A block of `n` bytes lies behind a header in one of `n + 24`: `n` as eight bytes, the most significant one first; the API id; seven
//! guard bytes; the data; eight guard bytes. Sizes and states of blocks are known from a table beside them too, so that whatever became of
//! a header, nothing outside the block is read or written.
//!
//! Where CPython aborts, the hook only keeps the [`Fault`] for the caller; the block stays as it is.

use alloc::vec::Vec;
use core::ffi::c_void;
use core::ptr;

use super::report::{Function, Problem, Report, read_size};
use super::{Domain, Domains, Fault, FaultKind, pass_on};
use crate::address_hash::{AddressMap, AddressSet};
use crate::allocator::{Allocator, PY_SSIZE_T_MAX};
use crate::interrupt::Interrupt;
use crate::pinned::Pinned;
use crate::profile::DebugText;
use crate::pymalloc::{AnyPools, Dead, Pymalloc};
use crate::try_box;

/// Bytes of a size, and of a row of guard bytes with what stands in front of it.
pub(super) const SST: usize = 8;
/// Bytes before the data.
pub(super) const HEAD: usize = 2 * SST;
/// Bytes around the data (`PYMEM_DEBUG_EXTRA_BYTES`).
const EXTRA: usize = HEAD + SST;
/// What fresh memory is filled with (`PYMEM_CLEANBYTE`).
const CLEAN: u8 = 0xcd;
/// What freed memory is filled with (`PYMEM_DEADBYTE`).
const DEAD: u8 = 0xdd;
/// What stands around the data (`PYMEM_FORBIDDENBYTE`).
pub(super) const FORBIDDEN: u8 = 0xfd;
/// Bytes at each end of a block's data that a realloc puts aside and fills (`ERASED_SIZE`).
const ERASED: usize = 64;

/// A free block is not handed out, because something is wrong with it: there is a fault, or no memory to remember one.
pub(super) struct Refused;

/// A block that a hook has given.
#[derive(Clone, Copy)]
struct Block {
    size: usize,
    hook: *const Api,
    domain: Domain,
    state: State,
}

/// What has become of a block.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    /// Nothing is known against it.
    Sound,
    /// It has been said that its guard bytes are damaged.
    Told,
    /// The same, and the call that was to free it did not give it back.
    Refused,
    /// It was freed and filled, and is in quarantine.
    Buried,
    /// The same, and it has been said that something wrote to it since.
    Dug,
}

/// A hook in one domain (`debug_alloc_api_t`).
struct Api {
    domain: Domain,
    inner: Allocator,
    /// Whether the inner allocator is pymalloc, and knows what the hook has filled.
    watched: bool,
    domains: *mut Domains,
}

/// What the hooks of one heap know.
pub(crate) struct DebugHooks {
    text: DebugText,
    /// They stay where they are, because allocators point to them, which may have been taken out.
    apis: Vec<Pinned<Api>>,
    /// By the address of their data.
    blocks: AddressMap<Block>,
    /// Room in `blocks` that is kept for blocks that are being moved.
    moving: usize,
    /// Blocks of pymalloc that are never handed out again, because they were written to after they had been freed.
    parked: AddressSet,
    /// The domain that pymalloc is being asked through.
    asking: Domain,
    fault: Option<Fault>,
}

const fn api_id(domain: Domain) -> u8 {
    match domain {
        Domain::Raw => b'r',
        Domain::Mem => b'm',
        Domain::Obj => b'o',
    }
}

/// A hook as an allocator.
fn allocator(hook: *const Api) -> Allocator {
    Allocator {
        ctx: hook.cast_mut().cast(),
        malloc: debug_malloc,
        calloc: debug_calloc,
        realloc: debug_realloc,
        free: debug_free,
    }
}

impl Domains {
    /// Whether an allocator is a debug hook.
    pub fn is_hook(allocator: &Allocator) -> bool {
        ptr::fn_addr_eq(allocator.malloc, debug_malloc as unsafe extern "C-unwind" fn(*mut c_void, usize) -> *mut c_void)
    }

    /// `PyMem_SetupDebugHooks`: puts hooks around the allocators that are in, except around hooks. False when there is no memory for them.
    ///
    /// # Safety
    /// `this` is initialised, and no call of it is on its way.
    pub unsafe fn setup_debug_hooks(this: *mut Self, text: DebugText) -> bool {
        // SAFETY: the caller's promise.
        let domains = unsafe { &mut *this };
        if domains.debug.is_none() {
            domains.debug = try_box(DebugHooks {
                text,
                apis: Vec::new(),
                blocks: AddressMap::default(),
                moving: 0,
                parked: AddressSet::default(),
                asking: Domain::Obj,
                fault: None,
            });
        }
        if domains.debug.is_none() || !domains.pymalloc.watch() {
            return false;
        }
        // SAFETY: the caller's promise; no reference to a field is held any more.
        Domain::ALL.into_iter().all(|domain| unsafe { Self::wrap_in_hook(this, domain) })
    }

    /// Puts a hook around a domain's allocator, except around a hook; false when there is no memory for it.
    ///
    /// # Safety
    /// As for [`setup_debug_hooks`](Self::setup_debug_hooks), which has made what hooks know.
    unsafe fn wrap_in_hook(this: *mut Self, domain: Domain) -> bool {
        // SAFETY: the caller's promise.
        let (own, present) = unsafe { ((*this).own, (*this).allocators[domain as usize]) };
        if Self::is_hook(&present) {
            return true;
        }
        let watched = present == own;
        let inner = if watched { Self::watched_allocator(this) } else { present };
        let Some(api) = Pinned::try_new(Api { domain, inner, watched, domains: this }) else { return false };
        // SAFETY: the caller's promise.
        let domains = unsafe { &mut *this };
        let Some(hooks) = &mut domains.debug else { return false };
        if hooks.apis.try_reserve(1).is_err() {
            return false;
        }
        domains.allocators[domain as usize] = allocator(api.as_ptr());
        hooks.apis.push(api);
        true
    }
}

impl DebugHooks {
    /// Whether an allocator is a hook, and what is below it and other hooks is `own`.
    pub fn is_around(&self, allocator: &Allocator, own: &Allocator) -> bool {
        let mut allocator = *allocator;
        while let Some(api) = self.apis.iter().find(|api| ptr::eq(api.as_ptr(), allocator.ctx.cast())) {
            if api.watched {
                return true;
            }
            allocator = Domains::unwrapped(api.inner);
        }
        allocator == *own
    }

    /// The fault that a hook met since this was asked last.
    pub fn take_fault(&mut self) -> Option<Fault> {
        self.fault.take()
    }

    /// Whether there is such a fault.
    pub fn has_fault(&self) -> bool {
        self.fault.is_some()
    }

    /// A fault waits: the first one does, for what comes after it may be its consequence.
    pub fn keep_fault(&mut self, fault: Fault) {
        self.fault.get_or_insert(fault);
    }

    /// Bytes of data at an address, if the hook of a domain gave it. Where a guest has a block of a hook's, another block may begin there.
    pub fn size_of(&self, domain: Domain, address: usize) -> Option<usize> {
        self.blocks.get(&address).filter(|block| block.domain == domain).map(|block| block.size)
    }

    /// Whether a block of pymalloc is in use only because it is not to be used again.
    pub fn withholds(&self, begin: usize) -> bool {
        self.parked.contains(&begin) || self.blocks.get(&(begin + HEAD)).is_some_and(|block| block.state == State::Refused)
    }

    /// How many blocks of pymalloc are [withheld](Self::withholds) from everybody.
    pub fn parked(&self) -> usize {
        self.parked.len()
    }

    fn reserve(&mut self) -> bool {
        self.blocks.try_reserve(1 + self.moving).is_ok()
    }

    /// What CPython prints when `function` of the hook of `verifying` meets an address that a hook of another domain gave.
    pub fn wrong_domain(&self, function: Function, verifying: Domain, address: usize) -> Option<Report> {
        let block = self.blocks.get(&address).filter(|block| block.domain != verifying)?;
        // SAFETY: a block of ours.
        unsafe {
            // If the program wrote the other domain's id there, CPython looks at the guard bytes, and may notice nothing.
            let (problem, _) = Self::find_problem(verifying, address, *block)?;
            self.report(function, problem, address, *block)
        }
    }

    /// The block at an address, if this hook gave it. One that is older may be another hook's, which is asked in its turn: once a block of
    /// pymalloc's has grown, it is the raw domain's.
    fn block(&self, hook: &Api, address: usize) -> Option<Block> {
        self.blocks.get(&address).filter(|block| ptr::eq(block.hook, hook)).copied()
    }

    /// Whether an allocator is a hook, and there is no other in its domain.
    pub fn is_only_hook(&self, domain: Domain, allocator: &Allocator) -> bool {
        Domains::is_hook(allocator) && self.apis.iter().filter(|api| api.domain == domain).count() == 1
    }

    /// The hook of a domain that gave a block, as an allocator.
    pub fn giver(&self, domain: Domain, address: usize) -> Option<Allocator> {
        self.blocks.get(&address).filter(|block| block.domain == domain).map(|block| allocator(block.hook))
    }

    /// The text; nothing where a damaged size leads CPython out of the block, to where it may crash, or to bytes that satisfy it.
    ///
    /// # Safety
    /// The block is at `address`.
    unsafe fn report(&self, function: Function, problem: Problem, address: usize, block: Block) -> Option<Report> {
        // SAFETY: the caller's promise.
        unsafe {
            let at = ptr::with_exposed_provenance::<u8>(address);
            let tail = (address as u64).wrapping_add(read_size(at.sub(HEAD)));
            if tail < (address - HEAD) as u64 || tail > (address + block.size) as u64 {
                return None;
            }
            let report = Report::read(self.text, function, problem, at);
            Some(report).filter(Report::says_something)
        }
    }

    /// What `_PyMem_DebugCheckAddress` finds wrong with a block, if anything, and at which offset from its data.
    ///
    /// # Safety
    /// The block is at `address`.
    unsafe fn find_problem(verifying: Domain, address: usize, block: Block) -> Option<(Problem, isize)> {
        let at = ptr::with_exposed_provenance::<u8>(address);
        let damaged = |from: isize, to: isize, sound: &dyn Fn(isize) -> u8| {
            // SAFETY: the caller's promise: header, data and guard bytes are where they were put.
            (from..to).find(|&offset| unsafe { *at.offset(offset) } != sound(offset))
        };
        let size = block.size as isize;
        let written = |offset: isize| (block.size as u64).to_be_bytes()[(offset + HEAD as isize) as usize];
        let (head, id) = (-(HEAD as isize), -(SST as isize));
        if damaged(id, id + 1, &|_| api_id(verifying)).is_some() {
            Some((Problem::Id(api_id(verifying)), id))
        } else if let Some(offset) = damaged(id + 1, 0, &|_| FORBIDDEN) {
            Some((Problem::Leading, offset))
        } else {
            // With a damaged size, what CPython takes for guard bytes lies somewhere else.
            let trailing = damaged(head, id, &written).or_else(|| damaged(size, size + SST as isize, &|_| FORBIDDEN));
            trailing.map(|offset| (Problem::Trailing, offset))
        }
    }

    /// `_PyMem_DebugCheckAddress`: what is wrong with a block, if anything.
    ///
    /// # Safety
    /// The block is at `address`.
    unsafe fn check(&self, function: Function, verifying: Domain, address: usize, block: Block) -> Option<Fault> {
        if block.state >= State::Buried {
            let at = ptr::with_exposed_provenance::<u8>(address);
            let (from, to) = (-(HEAD as isize), (block.size + SST) as isize);
            // SAFETY: the caller's promise: so many bytes lie before and behind the address.
            let offset = Some((from..to).find(|&offset| unsafe { *at.offset(offset) } != DEAD)?);
            return Some(Fault { offset, ..Fault::new(FaultKind::WriteAfterFree, address, block.domain) });
        }
        // SAFETY: the caller's promise.
        let (problem, offset) = unsafe { Self::find_problem(verifying, address, block)? };
        let kind = match problem {
            Problem::Id(_) if block.domain != verifying => FaultKind::WrongDomain,
            _ if offset < 0 => FaultKind::BufferUnderflow,
            _ => FaultKind::BufferOverflow,
        };
        // SAFETY: the caller's promise.
        let report = unsafe { self.report(function, problem, address, block) };
        let offset = (kind != FaultKind::WrongDomain).then_some(offset);
        Some(Fault { allocated: Some(block.domain), offset, report, ..Fault::new(kind, address, verifying) })
    }

    /// The first block with damaged guard bytes that have not been reported yet; the search stops early when it is interrupted.
    pub fn find_damaged(&mut self, interrupt: Interrupt) -> Option<Fault> {
        let patience = interrupt.patience();
        let mut found = None;
        for (&address, &block) in &self.blocks {
            if matches!(block.state, State::Sound | State::Buried) {
                // SAFETY: the table has the blocks that are there.
                found = unsafe { self.check(Function::Free, block.domain, address, block) };
            }
            let steps = if block.state == State::Buried { 1 + block.size / 8 } else { 1 };
            if found.is_some() || patience.is_over_after(steps) {
                break;
            }
        }
        self.tell(found)
    }

    fn tell(&mut self, found: Option<Fault>) -> Option<Fault> {
        let fault = found?;
        if fault.kind != FaultKind::WrongDomain
            && let Some(block) = self.blocks.get_mut(&fault.address)
        {
            block.state = if block.state >= State::Buried { State::Dug } else { block.state.max(State::Told) };
        }
        Some(fault)
    }

    /// A block goes into quarantine: from now on it is watched as free memory is. One that is older than the hooks, or whose filling is
    /// interrupted, is not.
    pub fn bury(&mut self, address: usize, interrupt: Interrupt) {
        let Some(block) = self.blocks.get_mut(&address).filter(|block| block.state == State::Sound) else { return };
        let data = ptr::with_exposed_provenance_mut::<u8>(address);
        // SAFETY: the table has the blocks that are there, and this one is not used any more. As long as not all data is filled, the guard
        // bytes stay as they are.
        unsafe {
            if interrupt.fill(data, DEAD, block.size) {
                data.sub(HEAD).write_bytes(DEAD, HEAD);
                data.add(block.size).write_bytes(DEAD, SST);
                block.state = State::Buried;
            }
        }
    }

    /// What the hook of a domain finds wrong with an address, if it is a block of a hook.
    pub fn examine(&mut self, function: Function, verifying: Domain, address: usize) -> Option<Fault> {
        let block = *self.blocks.get(&address)?;
        let verifying = if block.domain == Domain::Raw { Domain::Raw } else { verifying };
        // SAFETY: the table has the blocks that are there.
        let found = unsafe { self.check(function, verifying, address, block) };
        self.tell(found)
    }

    /// Looks at the block that a hook is called with; false when the call is to do nothing.
    fn is_sound(&mut self, function: Function, verifying: Domain, address: usize) -> bool {
        let was_told = self.blocks.get(&address).is_some_and(|block| block.state == State::Dug);
        match self.examine(function, verifying, address) {
            Some(_) if was_told => false,
            Some(fault) => {
                self.keep_fault(fault);
                false
            }
            None => true,
        }
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
    // SAFETY: an allocator is asked as it wants to be.
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
        // Given twice: there is no telling any more which of the two owners has it.
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
unsafe extern "C-unwind" fn debug_malloc(ctx: *mut c_void, size: usize) -> *mut c_void {
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
        let filled = block.state == State::Buried || interrupt.fill(begin, DEAD, block.size + EXTRA);
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
        // SAFETY: the caller gives a block of this domain.
        return unsafe { (inner.realloc)(inner.ctx, address, size) };
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

/// What a realloc has put aside of a block while the inner allocator moves it: all of it, or both ends.
struct Erased {
    begin: [u8; ERASED],
    end: [u8; ERASED],
    size: usize,
}

impl Erased {
    /// Puts the bytes aside and fills them, and with them header and trailer.
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

    /// Bytes at the begin and at the end.
    fn lengths(&self) -> (usize, usize) {
        let begin = self.size.min(ERASED);
        (begin, (self.size - begin).min(ERASED))
    }

    /// Puts them back, as far as they fit into `now` bytes.
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

/// A small block of pymalloc that was not written to since it was freed; NULL when the request is not small or no arena can be had.
///
/// # Safety
/// As for [`Pymalloc::alloc_from_used_pool`], of the domains' pymalloc; hooks have been set up.
pub(super) unsafe fn watched_block(this: *mut Domains, size: usize) -> Result<*mut u8, Refused> {
    loop {
        // SAFETY: the caller's promise; the reference is gone when pymalloc takes a pool.
        let domains = unsafe { &mut *this };
        let Some(known) = domains.debug.as_ref() else { return Err(Refused) };
        let is_live = |address: usize| known.blocks.contains_key(&(address + HEAD));
        if let Some(block) = domains.pymalloc.damaged_link(size, is_live) {
            domains.pymalloc.broken_link = Some(block);
            return Err(Refused);
        }
        // SAFETY: the caller's promise.
        let (block, whole) = unsafe {
            let pymalloc = &raw mut (*this).pymalloc;
            let block = match Pymalloc::alloc_from_used_pool::<AnyPools>(pymalloc, size) {
                Some(block) => block.as_ptr(),
                None => Pymalloc::alloc_from_new_pool::<AnyPools>(pymalloc, size),
            };
            (block, Pymalloc::block_size::<AnyPools>(pymalloc, block))
        };
        let Some(whole) = whole.filter(|_| !block.is_null()) else { return Ok(ptr::null_mut()) };
        let begin = block.expose_provenance();
        // SAFETY: as above; pymalloc has the pool.
        let domains = unsafe { &mut *this };
        let state = domains.pymalloc.state_of_dead(begin, whole);
        if state == Dead::Sound {
            domains.pymalloc.forget_dead(begin, whole);
            return Ok(block);
        }
        let Some(known) = domains.debug.as_mut() else { return Err(Refused) };
        if known.parked.try_reserve(1).is_err() {
            // Nothing can be remembered about it: it stays free.
            // SAFETY: pymalloc gave it just now.
            unsafe { super::object_free::<AnyPools>(this.cast(), block.cast()) };
            return Err(Refused);
        }
        known.parked.insert(begin);
        domains.pymalloc.forget_dead(begin, whole);
        if let Dead::Damaged(byte) = state {
            known.keep_fault(write_after_free(begin, byte, known.asking));
            return Err(Refused);
        }
    }
}

/// A byte of a free block of pymalloc was overwritten.
pub(crate) fn write_after_free(begin: usize, byte: usize, used: Domain) -> Fault {
    let data = begin + HEAD;
    Fault { offset: Some(byte as isize - data as isize), ..Fault::new(FaultKind::WriteAfterFree, data, used) }
}

/// As `object_malloc`, from a [`watched_block`].
///
/// # Safety
/// As for `watched_block`.
pub(super) unsafe fn watched_malloc(this: *mut Domains, size: usize) -> *mut c_void {
    // SAFETY: the caller's promise.
    unsafe {
        match watched_block(this, size) {
            Ok(block) if block.is_null() => pass_on(this, || Domains::malloc(this, Domain::Raw, size)),
            Ok(block) => block.cast(),
            Err(Refused) => ptr::null_mut(),
        }
    }
}
