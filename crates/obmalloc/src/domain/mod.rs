//! Room `domain`: raw, mem and obj, each with an allocator that can be taken out and replaced. Leans on `pymalloc`.
//!
//! A call goes through the domain's present allocator. pymalloc's functions serve small requests and pass the rest on to the raw domain's
//! present allocator, so that an allocator that wraps raw sees those requests too.

mod debug;
mod fault;
mod ledger;
mod nomemory;
mod raw;
mod report;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ffi::c_void;
use core::ptr;

pub(crate) use debug::{DebugHooks, write_after_free};
pub use fault::{Fault, FaultKind};
pub(crate) use ledger::{Ledger, Purpose, WholeOutsideRegion};
pub(crate) use report::Function;
pub use report::Report;

use crate::allocator::{Allocator, PY_SSIZE_T_MAX};
use crate::interrupt::Interrupt;
use crate::pinned::Pinned;
use crate::profile::{Geometry, Profile};
use crate::pymalloc::{AnyPools, CheckedPools, Freed, LargePools, Pools, Pymalloc, Shape, SmallPools, WatchedPools};
use debug::Refused;
use nomemory::NoMemory;

/// `PyMemAllocatorDomain`
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
#[doc(alias = "PyMemAllocatorDomain")]
pub enum Domain {
    /// `PYMEM_DOMAIN_RAW`: the C library's malloc.
    #[doc(alias = "PYMEM_DOMAIN_RAW")]
    Raw = 0,
    /// `PYMEM_DOMAIN_MEM`: buffers, from pymalloc where they are small.
    #[doc(alias = "PYMEM_DOMAIN_MEM")]
    Mem = 1,
    /// `PYMEM_DOMAIN_OBJ`: objects, from pymalloc where they are small.
    #[doc(alias = "PYMEM_DOMAIN_OBJ")]
    Obj = 2,
}

impl Domain {
    /// The three, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Raw, Self::Mem, Self::Obj];

    /// `"raw"`, `"mem"` or `"obj"`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Mem => "mem",
            Self::Obj => "obj",
        }
    }
}

impl core::fmt::Display for Domain {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}

/// How far pymalloc trusts the contents of blocks and free memory, to which native code with an address can write.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trust {
    /// As CPython: the links of free blocks lead to free blocks.
    InLinks,
    /// Nothing.
    None,
}

/// The three domains over one pymalloc. It does not move in memory: its own allocators point to it.
#[repr(C)]
pub(crate) struct Domains {
    pub pymalloc: Pymalloc,
    pub allocators: [Allocator; 3],
    /// Set once the debug hooks have been set up.
    pub debug: Option<Box<DebugHooks>>,
    /// The wrappers that make requests fail; the last ones are in while `is_short`.
    nomemory: Vec<Pinned<NoMemory>>,
    is_short: bool,
    /// Whether a call was left in the middle: no address is known to be a block any more.
    pub is_closed: bool,
    /// The allocator that mem and obj begin with. Kept, because a generic function may have several addresses.
    own: Allocator,
    /// The debug hooks ask this, while they fill large blocks, whether to stop.
    pub interrupt: Interrupt,
    /// The release.
    pub profile: Profile,
}

impl Domains {
    /// A fresh set of domains, for `place`; `None` when there is no memory.
    ///
    /// # Safety
    /// The result is written to `place` before it is used, and stays there. The geometry has been checked.
    pub unsafe fn new(place: *mut Self, profile: &Profile, geometry: Geometry, slack: usize, trust: Trust) -> Option<Self> {
        // SAFETY: the caller's promise; the place is only an address so far.
        let raw = unsafe { &raw const (*place).allocators }.cast::<Allocator>();
        // SAFETY: the caller's promise; the raw allocator is there once the result is.
        let pymalloc = unsafe { Pymalloc::new(geometry, profile, slack, raw, raw::ALLOCATOR) }?;
        let own = Self::pymalloc_allocator(place, &geometry, trust);
        Some(Self {
            pymalloc,
            allocators: [raw::ALLOCATOR, own, own],
            debug: None,
            nomemory: Vec::new(),
            is_short: false,
            is_closed: false,
            own,
            interrupt: Interrupt::NEVER,
            profile: *profile,
        })
    }

    /// `PYOBJ_ALLOC`: pymalloc, which passes requests that are not small on to raw.
    fn pymalloc_allocator(this: *mut Self, geometry: &Geometry, trust: Trust) -> Allocator {
        match (Pools::of(geometry), trust) {
            (Pools::Small, Trust::InLinks) => functions::<SmallPools>(this),
            (Pools::Large, Trust::InLinks) => functions::<LargePools>(this),
            (Pools::Small, Trust::None) => functions::<CheckedPools<SmallPools>>(this),
            (Pools::Large, Trust::None) => functions::<CheckedPools<LargePools>>(this),
            (Pools::Other, _) => functions::<AnyPools>(this),
        }
    }

    /// As [`pymalloc_allocator`](Self::pymalloc_allocator), but it checks free blocks before it hands them out.
    pub fn watched_allocator(this: *mut Self) -> Allocator {
        functions::<WatchedPools>(this)
    }

    /// `PyMem_RawMalloc`, `PyMem_Malloc`, `PyObject_Malloc`: NULL for sizes above [`PY_SSIZE_T_MAX`].
    ///
    /// # Safety
    /// `this` is initialised, and nothing else uses it at the same time, except its own allocators from inside the call.
    #[inline(always)]
    pub unsafe fn malloc(this: *mut Self, domain: Domain, size: usize) -> *mut u8 {
        if size > PY_SSIZE_T_MAX {
            return ptr::null_mut();
        }
        // SAFETY: the caller's promise; the allocator is copied out because the call may replace it.
        unsafe {
            let allocator = (*this).allocators[domain as usize];
            (allocator.malloc)(allocator.ctx, size).cast()
        }
    }

    /// `PyMem_RawCalloc`, `PyMem_Calloc`, `PyObject_Calloc`: NULL for products above [`PY_SSIZE_T_MAX`].
    ///
    /// # Safety
    /// As for [`malloc`](Self::malloc).
    pub unsafe fn calloc(this: *mut Self, domain: Domain, count: usize, size: usize) -> *mut u8 {
        // The product of two small ones fits.
        let may_be_too_large = (count | size) >> (usize::BITS / 2 - 1) != 0;
        if may_be_too_large && count.checked_mul(size).is_none_or(|total| total > PY_SSIZE_T_MAX) {
            return ptr::null_mut();
        }
        // SAFETY: as in `malloc`.
        unsafe {
            let allocator = (*this).allocators[domain as usize];
            (allocator.calloc)(allocator.ctx, count, size).cast()
        }
    }

    /// `PyMem_RawRealloc`, `PyMem_Realloc`, `PyObject_Realloc`: on NULL the old block is untouched.
    ///
    /// # Safety
    /// As for [`malloc`](Self::malloc); `address` is NULL or a block of this domain.
    pub unsafe fn realloc(this: *mut Self, domain: Domain, address: *mut u8, size: usize) -> *mut u8 {
        if size > PY_SSIZE_T_MAX {
            return ptr::null_mut();
        }
        // SAFETY: as in `malloc`.
        unsafe {
            let allocator = (*this).allocators[domain as usize];
            (allocator.realloc)(allocator.ctx, address.cast(), size).cast()
        }
    }

    /// `PyMem_RawFree`, `PyMem_Free`, `PyObject_Free`.
    ///
    /// # Safety
    /// As for [`realloc`](Self::realloc).
    #[inline(always)]
    pub unsafe fn free(this: *mut Self, domain: Domain, address: *mut u8) {
        // SAFETY: as in `malloc`.
        unsafe {
            let allocator = (*this).allocators[domain as usize];
            (allocator.free)(allocator.ctx, address.cast());
        }
    }
}

fn functions<S: Shape>(this: *mut Domains) -> Allocator {
    Allocator {
        ctx: this.cast(),
        malloc: object_malloc::<S>,
        calloc: object_calloc::<S>,
        realloc: object_realloc::<S>,
        free: object_free::<S>,
    }
}

/// `_PyObject_Malloc`. All its calls are in tail position, so that the hot path needs no stack.
unsafe extern "C-unwind" fn object_malloc<S: Shape>(ctx: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: `ctx` is the domains that made this allocator.
    unsafe {
        let this = ctx.cast::<Domains>();
        if S::WATCHED {
            return debug::watched_malloc(this, size);
        }
        match Pymalloc::alloc_from_used_pool::<S>(&raw mut (*this).pymalloc, size) {
            Some(block) => block.as_ptr().cast(),
            None => object_malloc_slow::<S>(ctx, size),
        }
    }
}

/// A block from a newly taken pool; from raw if the request is not small or there is no arena.
#[cold]
#[inline(never)]
unsafe extern "C-unwind" fn object_malloc_slow<S: Shape>(ctx: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: called by `object_malloc`.
    unsafe {
        let this = ctx.cast::<Domains>();
        let block = Pymalloc::alloc_from_new_pool::<S>(&raw mut (*this).pymalloc, size);
        if !block.is_null() {
            return block.cast();
        }
        pass_on(this, || Domains::malloc(this, Domain::Raw, size))
    }
}

/// A block from raw, for a request that pymalloc could not serve; NULL if a broken link was the reason.
///
/// # Safety
/// `this` is initialised.
#[inline(always)]
unsafe fn pass_on(this: *mut Domains, request: impl FnOnce() -> *mut u8) -> *mut c_void {
    // SAFETY: the caller's promise; no reference to a field is held while raw is asked.
    unsafe {
        if (*this).pymalloc.broken_link.is_some() {
            return ptr::null_mut();
        }
        let block = request();
        if !block.is_null() {
            (*this).pymalloc.raw_allocated_blocks += 1;
        }
        block.cast()
    }
}

/// `_PyObject_Calloc`. As in [`object_malloc`], the hot path needs no stack: `memset` returns the block.
unsafe extern "C-unwind" fn object_calloc<S: Shape>(ctx: *mut c_void, count: usize, size: usize) -> *mut c_void {
    // The domain has checked that the product fits; a direct caller of an allocator may not have.
    let Some(total) = count.checked_mul(size) else { return ptr::null_mut() };
    // SAFETY: as in `object_malloc`; a block has at least as many bytes as were requested.
    unsafe {
        if !S::WATCHED
            && let Some(block) = Pymalloc::alloc_from_used_pool::<S>(&raw mut (*ctx.cast::<Domains>()).pymalloc, total)
        {
            block.write_bytes(0, total);
            return block.as_ptr().cast();
        }
        object_calloc_slow::<S>(ctx, count, size)
    }
}

/// A zeroed block from a newly taken pool, or from raw, as in [`object_malloc_slow`]; from any pool where blocks are watched.
#[cold]
#[inline(never)]
unsafe extern "C-unwind" fn object_calloc_slow<S: Shape>(ctx: *mut c_void, count: usize, size: usize) -> *mut c_void {
    let (this, total) = (ctx.cast::<Domains>(), count * size);
    // SAFETY: as in `object_malloc_slow`: called by `object_calloc`, which has checked that the product fits, with its `ctx`; where blocks are
    // watched, hooks have been set up. The block has at least `total` bytes.
    unsafe {
        let block = if S::WATCHED {
            match debug::watched_block(this, total) {
                Ok(block) => block,
                Err(Refused) => return ptr::null_mut(),
            }
        } else {
            Pymalloc::alloc_from_new_pool::<S>(&raw mut (*this).pymalloc, total)
        };
        if !block.is_null() {
            block.write_bytes(0, total);
            return block.cast();
        }
        pass_on(this, || Domains::calloc(this, Domain::Raw, count, size))
    }
}

/// `_PyObject_Free`
unsafe extern "C-unwind" fn object_free<S: Shape>(ctx: *mut c_void, address: *mut c_void) {
    // SAFETY: as in `object_malloc`; the caller gives NULL or a block of this allocator.
    unsafe {
        let this = ctx.cast::<Domains>();
        match Pymalloc::free::<S>(&raw mut (*this).pymalloc, address.cast()) {
            Freed::Here => {}
            Freed::LastOfPool => object_free_last(ctx, address),
            Freed::OutsideRegion | Freed::NotOurs => object_free_outside_region(ctx, address),
        }
    }
}

/// Frees a block of an arena outside the region or of raw, or NULL.
#[cold]
#[inline(never)]
unsafe extern "C-unwind" fn object_free_outside_region(ctx: *mut c_void, address: *mut c_void) {
    if address.is_null() {
        return;
    }
    let this = ctx.cast::<Domains>();
    // SAFETY: called by `object_free`.
    unsafe {
        match Pymalloc::free_outside_region(&raw mut (*this).pymalloc, address.cast()) {
            Freed::Here => {}
            Freed::LastOfPool => object_free_last(ctx, address),
            Freed::OutsideRegion | Freed::NotOurs => {
                Domains::free(this, Domain::Raw, address.cast());
                (*this).pymalloc.raw_allocated_blocks -= 1;
            }
        }
    }
}

/// Ends the free of a pool's last block in use.
#[cold]
#[inline(never)]
unsafe extern "C-unwind" fn object_free_last(ctx: *mut c_void, address: *mut c_void) {
    // SAFETY: called by `object_free`.
    unsafe { Pymalloc::insert_to_freepool(&raw mut (*ctx.cast::<Domains>()).pymalloc, address.cast()) };
}

/// `_PyObject_Realloc`
unsafe extern "C-unwind" fn object_realloc<S: Shape>(ctx: *mut c_void, address: *mut c_void, size: usize) -> *mut c_void {
    if address.is_null() {
        // SAFETY: as in `object_malloc`.
        return unsafe { object_malloc::<S>(ctx, size) };
    }
    let this = ctx.cast::<Domains>();
    // SAFETY: as in `object_free`.
    let Some(old) = (unsafe { Pymalloc::block_size::<S>(&raw mut (*this).pymalloc, address.cast()) }) else {
        // A block that pymalloc does not manage stays with raw, however small it becomes.
        // SAFETY: as in `object_free`.
        return unsafe { Domains::realloc(this, Domain::Raw, address.cast(), size).cast() };
    };
    let address = Pymalloc::whole_block(address.cast()).cast::<c_void>();
    // A block stays where it is if it shrinks by at most a quarter. A block that outgrows its size class moves.
    if size <= old && 4 * size > 3 * old {
        return address;
    }
    // SAFETY: as in `object_free`; both blocks have as many bytes as are copied.
    unsafe {
        let block = object_malloc::<S>(ctx, size);
        if !block.is_null() {
            block.cast::<u8>().copy_from_nonoverlapping(address.cast(), size.min(old));
            object_free::<S>(ctx, address);
        }
        block
    }
}
