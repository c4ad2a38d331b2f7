//! Requests that fail on purpose (`_testcapi.set_nomemory`): allocators that wrap the present ones and count requests.

use core::cell::Cell;
use core::ffi::c_void;
use core::ptr;

use super::{Domain, Domains};
use crate::allocator::Allocator;
use crate::pinned::Pinned;

/// Which requests fail, and how many have been counted (`FmData`).
#[derive(Default)]
struct Counts {
    start: Cell<usize>,
    /// 0 for never.
    stop: Cell<usize>,
    count: Cell<usize>,
    /// Whether requests are counted at all.
    active: Cell<bool>,
}

impl Counts {
    /// Counts a request, and returns whether it is to fail (`fm_nomemory`).
    fn fails(&self) -> bool {
        if !self.active.get() {
            return false;
        }
        self.count.set(self.count.get().saturating_add(1));
        self.has_refused()
    }

    /// Whether the last counted request was to fail.
    fn has_refused(&self) -> bool {
        let (count, stop) = (self.count.get(), self.stop.get());
        count > self.start.get() && (stop == 0 || count <= stop)
    }
}

/// The wrapper of one domain.
struct Wrapper {
    inner: Allocator,
    counts: *const Counts,
}

/// Wrappers around the allocators of all domains (`FmHook`). They do not move: allocators that have been taken out may still point to them.
pub(crate) struct NoMemory {
    counts: Counts,
    wrappers: [Wrapper; 3],
}

impl Domains {
    /// `_testcapi.set_nomemory`: numbers the requests from now on, from 0. Requests `start` to `stop - 1` fail; if `stop` is 0, all from `start`
    /// on. False when there is no memory for the wrappers.
    ///
    /// # Safety
    /// `this` is initialised, and no call of it is running.
    pub unsafe fn set_nomemory(this: *mut Self, start: usize, stop: usize) -> bool {
        // SAFETY: the caller's promise.
        unsafe {
            if !(*this).is_short && !Self::wrap(this) {
                return false;
            }
            let Some(last) = (*this).nomemory.last() else { return false };
            let counts = &last.counts;
            counts.start.set(start);
            counts.stop.set(stop);
            counts.count.set(0);
            counts.active.set(true);
            true
        }
    }

    /// Whether the last request failed on purpose.
    pub fn has_refused(&self) -> bool {
        self.is_short && self.nomemory.last().is_some_and(|last| last.counts.has_refused())
    }

    /// Puts wrappers around the allocators that are in. Wrappers that were around the same allocators before are used again.
    ///
    /// # Safety
    /// As for [`set_nomemory`](Self::set_nomemory).
    unsafe fn wrap(this: *mut Self) -> bool {
        // SAFETY: the caller's promise.
        let domains = unsafe { &mut *this };
        let present = domains.allocators;
        let known = &mut domains.nomemory;
        if known.last().is_none_or(|last| {
            Domain::ALL.into_iter().any(|domain| last.wrappers[domain as usize].inner != present[domain as usize])
        }) {
            let wrappers = present.map(|inner| Wrapper { inner, counts: ptr::null() });
            let Some(wrapped) = Pinned::try_new(NoMemory { counts: Counts::default(), wrappers }) else { return false };
            if known.try_reserve(1).is_err() {
                return false;
            }
            known.push(wrapped);
        }
        let Some(last) = known.last().map(Pinned::as_ptr) else { return false };
        for domain in Domain::ALL {
            // SAFETY: the wrappers stay where they are as long as the domains, and nothing refers to them during the call.
            let wrapper = unsafe {
                let wrapper = &raw mut (*last).wrappers[domain as usize];
                (*wrapper).counts = &raw const (*last).counts;
                wrapper
            };
            domains.allocators[domain as usize] = Allocator {
                ctx: wrapper.cast(),
                malloc: failing_malloc,
                calloc: failing_calloc,
                realloc: failing_realloc,
                free: failing_free,
            };
        }
        domains.is_short = true;
        true
    }

    /// `_testcapi.remove_mem_hooks`: puts back the allocators that the wrappers replaced. If the caller has set another allocator since, that one
    /// stays, because it may have live blocks. For those domains, returns the allocator that CPython would put back.
    ///
    /// # Safety
    /// As for [`set_nomemory`](Self::set_nomemory).
    pub unsafe fn remove_nomemory(this: *mut Self) -> [Option<Allocator>; 3] {
        // SAFETY: the caller's promise.
        let domains = unsafe { &mut *this };
        let was_short = core::mem::take(&mut domains.is_short);
        let Some(last) = domains.nomemory.last().filter(|_| was_short) else { return [None; 3] };
        last.counts.active.set(false);
        Domain::ALL.map(|domain| {
            let wrapper = &last.wrappers[domain as usize];
            let present = &mut domains.allocators[domain as usize];
            if ptr::eq(present.ctx.cast_const().cast(), wrapper) {
                *present = wrapper.inner;
                return None;
            }
            Some(wrapper.inner)
        })
    }

    /// The allocator that a wrapper is around; any other allocator as it is.
    pub fn unwrapped(allocator: Allocator) -> Allocator {
        let mut allocator = allocator;
        while ptr::fn_addr_eq(allocator.malloc, failing_malloc as unsafe extern "C-unwind" fn(*mut c_void, usize) -> *mut c_void)
        {
            // SAFETY: such an allocator was made above, and its wrapper stays as long as the domains.
            allocator = unsafe { (*allocator.ctx.cast::<Wrapper>()).inner };
        }
        allocator
    }
}

/// The wrapped allocator, unless the request is to fail.
///
/// # Safety
/// `ctx` is a wrapper.
unsafe fn inner(ctx: *mut c_void) -> Option<Allocator> {
    // SAFETY: the caller's promise; the wrappers stay as long as the domains.
    unsafe {
        let wrapper = ctx.cast::<Wrapper>();
        if (*(*wrapper).counts).fails() { None } else { Some((*wrapper).inner) }
    }
}

/// `hook_fmalloc`
#[inline(never)] // A wrapper is recognised by this function's address, so there must be only one.
unsafe extern "C-unwind" fn failing_malloc(ctx: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: called as the wrapped allocator is.
    unsafe { inner(ctx).map_or(ptr::null_mut(), |inner| (inner.malloc)(inner.ctx, size)) }
}

/// `hook_fcalloc`
unsafe extern "C-unwind" fn failing_calloc(ctx: *mut c_void, count: usize, size: usize) -> *mut c_void {
    // SAFETY: as above.
    unsafe { inner(ctx).map_or(ptr::null_mut(), |inner| (inner.calloc)(inner.ctx, count, size)) }
}

/// `hook_frealloc`
unsafe extern "C-unwind" fn failing_realloc(ctx: *mut c_void, address: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: as above.
    unsafe { inner(ctx).map_or(ptr::null_mut(), |inner| (inner.realloc)(inner.ctx, address, size)) }
}

/// `hook_ffree`
unsafe extern "C-unwind" fn failing_free(ctx: *mut c_void, address: *mut c_void) {
    // SAFETY: as above.
    unsafe {
        let inner = (*ctx.cast::<Wrapper>()).inner;
        (inner.free)(inner.ctx, address);
    }
}
