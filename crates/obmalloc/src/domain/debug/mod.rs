//! The debug hooks (`PyMem_SetupDebugHooks`): allocators that wrap whatever is in, put guard bytes around every block, and look at them when
//! the block is freed or resized.
//!
//! A block of `n` bytes lies in one of `n + 24` bytes: `n` as eight bytes, the most significant one first; the API id; seven guard bytes;
//! the data; eight guard bytes. A table beside the blocks knows their sizes and states too, so that with a damaged header nothing outside
//! the block is read or written.
//!
//! Where CPython aborts, the hook only keeps the [`Fault`] for the caller; the block stays as it is.

mod calls;
mod watched;

use alloc::vec::Vec;
use core::ffi::c_void;
use core::ptr;

use calls::{allocator, debug_malloc};
pub(crate) use watched::write_after_free;
pub(super) use watched::{Refused, watched_block, watched_malloc};

use super::report::{Function, Problem, Report, read_size};
use super::{Domain, Domains, Fault, FaultKind};
use crate::address_hash::{AddressMap, AddressSet};
use crate::allocator::Allocator;
use crate::interrupt::Interrupt;
use crate::pinned::Pinned;
use crate::profile::DebugText;
use crate::try_box;

/// Width of the stored size, and of the id byte plus seven guard bytes (`SST`).
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
    /// Live, and not known to be damaged.
    Sound,
    /// Live; its guard bytes are damaged, and that has been reported.
    DamageReported,
    /// As `DamageReported`. A call tried to free the block, and the hook refused: the block is still allocated.
    Refused,
    /// Freed, filled, and in quarantine.
    InQuarantine,
    /// As `InQuarantine`; something has written to the block since, and that has been reported.
    DamagedInQuarantine,
}

/// A hook in one domain (`debug_alloc_api_t`).
struct Api {
    domain: Domain,
    inner: Allocator,
    /// Whether the inner allocator is pymalloc, which notes the free memory that the hook has filled.
    watched: bool,
    domains: *mut Domains,
}

/// What the hooks of one heap know.
pub(crate) struct DebugHooks {
    text: DebugText,
    /// They do not move: allocators point to them, also allocators that have been taken out.
    apis: Vec<Pinned<Api>>,
    /// By the address of their data.
    blocks: AddressMap<Block>,
    /// Room in `blocks` that is kept for blocks that are being moved.
    moving: usize,
    /// Blocks of pymalloc that are never handed out again, because they were written to after they had been freed.
    parked: AddressSet,
    /// The domain whose request pymalloc is serving.
    asking: Domain,
    /// The older block that a hook is letting its inner allocator resize, and the hook.
    passing: Option<(*const Api, usize)>,
    fault: Option<Fault>,
}

const fn api_id(domain: Domain) -> u8 {
    match domain {
        Domain::Raw => b'r',
        Domain::Mem => b'm',
        Domain::Obj => b'o',
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
    /// `this` is initialised, and no call of it is running.
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
                passing: None,
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
    /// Whether `allocator` is a hook, and the allocator below it, and below any further hooks, is `own`.
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

    /// The fault that a hook has found. Returned once.
    pub fn take_fault(&mut self) -> Option<Fault> {
        self.fault.take()
    }

    /// Whether there is such a fault.
    pub fn has_fault(&self) -> bool {
        self.fault.is_some()
    }

    /// Keeps a fault, unless there is one already: a later fault may be a consequence of the first.
    pub fn keep_fault(&mut self, fault: Fault) {
        self.fault.get_or_insert(fault);
    }

    /// Bytes of data at an address, if the hook of this domain gave them. A guest may have got a block from a hook and placed its own block
    /// there, so the domain matters.
    pub fn size_of(&self, domain: Domain, address: usize) -> Option<usize> {
        self.blocks.get(&address).filter(|block| block.domain == domain).map(|block| block.size)
    }

    /// Whether a block of pymalloc is never handed out again.
    pub fn withholds(&self, begin: usize) -> bool {
        self.parked.contains(&begin) || self.blocks.get(&(begin + HEAD)).is_some_and(|block| block.state == State::Refused)
    }

    /// How many blocks of pymalloc are never handed out again.
    pub fn parked(&self) -> usize {
        self.parked.len()
    }

    fn reserve(&mut self) -> bool {
        self.blocks.try_reserve(1 + self.moving).is_ok()
    }

    /// The text that CPython prints when `function` of `verifying`'s hook is called with a block that another domain's hook gave.
    pub fn wrong_domain(&self, function: Function, verifying: Domain, address: usize) -> Option<Report> {
        let block = self.blocks.get(&address).filter(|block| block.domain != verifying)?;
        // SAFETY: a block of ours.
        unsafe {
            // If the program wrote the other domain's id there, CPython looks at the guard bytes, and may notice nothing.
            let (problem, _) = Self::find_problem(verifying, address, *block)?;
            self.report(function, problem, address, *block)
        }
    }

    /// The block at `address`, if this hook gave it. If not, the call goes to the inner allocator, and the block may belong to a hook there: when
    /// a pymalloc block grows beyond 512 bytes it becomes a block of the raw domain.
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

    /// Whether a hook is letting its inner allocator resize the block at an address, which is older: the hook then adds no guard bytes.
    pub fn is_passing(&self, hook: &Allocator, address: usize) -> bool {
        self.passing.is_some_and(|(api, block)| ptr::eq(api, hook.ctx.cast()) && block == address)
    }

    /// The text that CPython prints. `None` if a damaged size leads CPython out of the block, where it may crash, or find nothing wrong.
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
        if block.state >= State::InQuarantine {
            let at = ptr::with_exposed_provenance::<u8>(address);
            let (from, to) = (-(HEAD as isize), (block.size + SST) as isize);
            // SAFETY: the caller's promise: `from` to `to` lie within the block, its header and its trailer.
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
            if matches!(block.state, State::Sound | State::InQuarantine) {
                // SAFETY: the table has the blocks that are there.
                found = unsafe { self.check(Function::Free, block.domain, address, block) };
            }
            let steps = if block.state == State::InQuarantine { 1 + block.size / 8 } else { 1 };
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
            block.state = if block.state >= State::InQuarantine {
                State::DamagedInQuarantine
            } else {
                block.state.max(State::DamageReported)
            };
        }
        Some(fault)
    }

    /// Fills a block that goes into quarantine, and watches it from now on like free memory. A block older than the hooks, or one whose filling
    /// is interrupted, is not watched.
    pub fn bury(&mut self, address: usize, interrupt: Interrupt) {
        let Some(block) = self.blocks.get_mut(&address).filter(|block| block.state == State::Sound) else { return };
        let data = ptr::with_exposed_provenance_mut::<u8>(address);
        // SAFETY: every block of the table exists, and this one is not used any more. The guard bytes stay as they are until all data is
        // filled.
        unsafe {
            if interrupt.fill(data, DEAD, block.size) {
                data.sub(HEAD).write_bytes(DEAD, HEAD);
                data.add(block.size).write_bytes(DEAD, SST);
                block.state = State::InQuarantine;
            }
        }
    }

    /// The fault that the hook of a domain finds at an address, if the address is a block of a hook.
    pub fn examine(&mut self, function: Function, verifying: Domain, address: usize) -> Option<Fault> {
        let block = *self.blocks.get(&address)?;
        let verifying = if block.domain == Domain::Raw { Domain::Raw } else { verifying };
        // SAFETY: the table has the blocks that are there.
        let found = unsafe { self.check(function, verifying, address, block) };
        self.tell(found)
    }

    /// Checks the block that a hook is called with; false if the call must do nothing.
    fn is_sound(&mut self, function: Function, verifying: Domain, address: usize) -> bool {
        let was_told = self.blocks.get(&address).is_some_and(|block| block.state == State::DamagedInQuarantine);
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
