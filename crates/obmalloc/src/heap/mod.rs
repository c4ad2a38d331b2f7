//! Room `heap`: the types that a program holds. Leans on `domain`, `pymalloc` and `profile`.
//!
//! A [`Heap`] trusts its caller. A [`CheckedHeap`] has a *ledger* of live blocks beside it and looks every address up first. Its *account*
//! knows which memory it got from the system.

/// Defines methods that forward to the method of the same name of another value.
macro_rules! delegate {
    (|$heap:ident| $to:expr; $($(#[$doc:meta])* pub fn $name:ident(&self $(, $argument:ident: $type:ty)*) $(-> $result:ty)?;)*) => { $(
        $(#[$doc])*
        #[allow(clippy::missing_errors_doc, reason = "the other method documents them")]
        pub fn $name(&self $(, $argument: $type)*) $(-> $result)? {
            let $heap = self;
            $to.$name($($argument),*)
        }
    )* };
}

mod account;
mod checked;
mod options;
mod quarantine;

use core::marker::PhantomData;
use core::ptr::NonNull;

use alloc::alloc::{Layout, alloc, dealloc};
use alloc::vec::Vec;

pub use checked::CheckedHeap;
pub(crate) use checked::{Checked, Mode, Pieces};
pub(crate) use delegate;
pub use options::{HeapError, HeapOptions};

use crate::allocator::{Allocator, ArenaAllocator};
use crate::domain::{Domain, Domains, Trust};
use crate::profile::{Geometry, Profile};
use crate::pymalloc::{ArenaInfo, Corruption, PoolInfo, Pymalloc, Stats, Trimmed, non_null};

/// The three domains of one release over one pymalloc, trusting the caller as C does.
///
/// A heap is for one thread at a time, as CPython's is for the thread that holds the GIL. Dropping it gives its arenas back, and with them
/// every small block; blocks that the raw domain gave are the C library's and stay until they are freed.
pub struct Heap {
    domains: NonNull<Domains>,
    /// Interior mutability through the pointer: not to be shared between threads.
    not_sync: PhantomData<core::cell::Cell<()>>,
}

// SAFETY: a heap owns everything that it points to, and the C library's malloc does not care who calls.
unsafe impl Send for Heap {}

/// The sizes that options ask for.
///
/// # Errors
/// When one is out of its range.
fn geometry(options: &HeapOptions) -> Result<Geometry, HeapError> {
    let geometry = options.geometry.unwrap_or(options.profile.geometry);
    geometry.check()?;
    let fits = options.arena_slack.is_multiple_of(geometry.pool_size) && options.arena_slack <= geometry.arena_size;
    if fits { Ok(geometry) } else { Err(HeapError::ArenaSlack) }
}

impl Heap {
    /// An empty heap of `profile`.
    ///
    /// # Errors
    /// When there is no memory for its tables.
    pub fn new(profile: &Profile) -> Result<Self, HeapError> {
        Self::with_options(HeapOptions::new(profile))
    }

    /// An empty heap.
    ///
    /// # Errors
    /// When a size is out of its range, the allocator is one with debug hooks, or there is no memory for the heap's tables.
    pub fn with_options(options: HeapOptions) -> Result<Self, HeapError> {
        let geometry = geometry(&options)?;
        if options.allocator.has_debug_hooks() {
            return Err(HeapError::DebugHooks);
        }
        let layout = Layout::new::<Domains>();
        // SAFETY: the layout is not empty.
        let place = NonNull::new(unsafe { alloc(layout) }).ok_or(HeapError::NoMemory)?.cast::<Domains>();
        // SAFETY: the domains are written there below, and stay there until the heap is dropped; the geometry was checked above.
        let made = unsafe { Domains::new(place.as_ptr(), &options.profile, geometry, options.arena_slack, Trust::InLinks) };
        let Some(mut domains) = made else {
            // SAFETY: allocated just now, with this layout.
            unsafe { dealloc(place.as_ptr().cast(), layout) };
            return Err(HeapError::NoMemory);
        };
        if !options.allocator.has_pymalloc() {
            domains.allocators = [domains.allocators[0]; 3];
        }
        if let Some(bytes) = options.trim_above {
            domains.pymalloc.trim_above(bytes);
        }
        // SAFETY: fresh memory of the right layout.
        unsafe { place.write(domains) };
        Ok(Self { domains: place, not_sync: PhantomData })
    }

    #[inline(always)]
    fn pymalloc(&self) -> &Pymalloc {
        // SAFETY: initialised, and the reference does not live past a call that could change the state: no method that returns it or
        // holds it while allocators run exists.
        unsafe { &(*self.domains.as_ptr()).pymalloc }
    }

    /// The release.
    pub fn profile(&self) -> &Profile {
        // SAFETY: initialised, and never changed.
        unsafe { &(*self.domains.as_ptr()).profile }
    }

    /// The sizes in force.
    pub fn geometry(&self) -> Geometry {
        *self.pymalloc().geometry()
    }

    /// `PyMem_RawMalloc`, `PyMem_Malloc`, `PyObject_Malloc`: a block of at least `size` bytes, aligned as the geometry says, with
    /// unspecified contents. Zero bytes give a block of their own. `None` when there is no memory or `size` is above
    /// [`PY_SSIZE_T_MAX`](crate::PY_SSIZE_T_MAX).
    #[inline]
    #[doc(alias("PyMem_RawMalloc", "PyMem_Malloc", "PyObject_Malloc"))]
    pub fn malloc(&self, domain: Domain, size: usize) -> Option<NonNull<u8>> {
        // SAFETY: the domains are initialised and used by one thread.
        non_null(unsafe { Domains::malloc(self.domains.as_ptr(), domain, size) })
    }

    /// `PyMem_RawCalloc`, `PyMem_Calloc`, `PyObject_Calloc`: `count * size` zeroed bytes. `None` when there is no memory or the
    /// product is above [`PY_SSIZE_T_MAX`](crate::PY_SSIZE_T_MAX).
    #[inline]
    #[doc(alias("PyMem_RawCalloc", "PyMem_Calloc", "PyObject_Calloc"))]
    pub fn calloc(&self, domain: Domain, count: usize, size: usize) -> Option<NonNull<u8>> {
        // SAFETY: as in `malloc`.
        non_null(unsafe { Domains::calloc(self.domains.as_ptr(), domain, count, size) })
    }

    /// `PyMem_RawRealloc`, `PyMem_Realloc`, `PyObject_Realloc`: the block, perhaps moved, with its contents up to the smaller size.
    /// Without a block this is `malloc`. On `None` the old block is untouched.
    ///
    /// # Safety
    /// `block` is a live block of this heap and domain; once another address comes back it is not used any more.
    #[inline]
    #[doc(alias("PyMem_RawRealloc", "PyMem_Realloc", "PyObject_Realloc"))]
    pub unsafe fn realloc(&self, domain: Domain, block: Option<NonNull<u8>>, size: usize) -> Option<NonNull<u8>> {
        let address = block.map_or(core::ptr::null_mut(), NonNull::as_ptr);
        // SAFETY: the caller's promise.
        non_null(unsafe { Domains::realloc(self.domains.as_ptr(), domain, address, size) })
    }

    /// `PyMem_RawFree`, `PyMem_Free`, `PyObject_Free`: gives a block back; `None` is fine.
    ///
    /// # Safety
    /// `block` is a live block of this heap and domain, and is not used any more.
    #[inline]
    #[doc(alias("PyMem_RawFree", "PyMem_Free", "PyObject_Free"))]
    pub unsafe fn free(&self, domain: Domain, block: Option<NonNull<u8>>) {
        let address = block.map_or(core::ptr::null_mut(), NonNull::as_ptr);
        // SAFETY: the caller's promise.
        unsafe { Domains::free(self.domains.as_ptr(), domain, address) };
    }

    /// `PyMem_GetAllocator`
    #[doc(alias = "PyMem_GetAllocator")]
    pub fn allocator(&self, domain: Domain) -> Allocator {
        // SAFETY: initialised.
        unsafe { (*self.domains.as_ptr()).allocators[domain as usize] }
    }

    /// `PyMem_SetAllocator`: from now on the domain's requests go to `allocator`.
    ///
    /// # Safety
    /// The functions do what [`Allocator`] says for as long as they are in, and take back the domain's live blocks.
    #[doc(alias = "PyMem_SetAllocator")]
    pub unsafe fn set_allocator(&self, domain: Domain, allocator: Allocator) {
        // SAFETY: initialised; there is no reference to the field.
        unsafe { (*self.domains.as_ptr()).allocators[domain as usize] = allocator };
    }

    /// `PyObject_GetArenaAllocator`
    #[doc(alias = "PyObject_GetArenaAllocator")]
    pub fn arena_allocator(&self) -> ArenaAllocator {
        self.pymalloc().arena_allocator()
    }

    /// `PyObject_SetArenaAllocator`: from now on arenas come from `allocator`.
    ///
    /// # Safety
    /// The functions do what [`ArenaAllocator`] says for as long as the heap lives, and take back the arenas that are held.
    #[doc(alias = "PyObject_SetArenaAllocator")]
    pub unsafe fn set_arena_allocator(&self, allocator: ArenaAllocator) {
        // SAFETY: initialised; there is no reference to the field.
        unsafe { (*self.domains.as_ptr()).pymalloc.set_arena_allocator(allocator) };
    }

    delegate! { |heap| heap.pymalloc();
        /// The address space that the heap's own arenas lie in: its first address, and its size in bytes. Both are 0 if none could be
        /// reserved.
        pub fn region(&self) -> (usize, usize);
        /// `sys.getallocatedblocks()`: blocks handed out by mem and obj, including those that came from raw.
        #[doc(alias = "sys.getallocatedblocks")]
        pub fn allocated_blocks(&self) -> usize;
        /// The arenas now held, in the order in which they were taken.
        pub fn arenas(&self) -> Vec<ArenaInfo>;
        /// The address of the arena that an address lies in; `None` outside the arenas that are held.
        pub fn arena_base(&self, address: usize) -> Option<usize>;
        /// The pool that an address lies in; `None` outside the whole pools of the arenas that are held.
        pub fn pool(&self, address: usize) -> Option<PoolInfo>;
        /// Writes into `used`, for each block of the pool that an address lies in, whether it is handed out. If `used` is too short, the
        /// last blocks are left out. Returns how many blocks the pool has: 0 if it has no size class, or there is no pool.
        ///
        /// # Errors
        /// When the pool's free list does not hold.
        pub fn used_blocks(&self, address: usize, used: &mut [bool]) -> Result<usize, Corruption>;
        /// The numbers behind `sys._debugmallocstats()`; their text is CPython's.
        #[doc(alias = "sys._debugmallocstats")]
        pub fn stats(&self) -> Stats;
    }

    /// Gives the memory of empty pools back to the system while their arenas stay. Returns how much that was. CPython has nothing like it.
    ///
    /// Statistics stay as they are, and each request is served from the pool that it would be served from without a trim. But an emptied
    /// pool forgets in which order its blocks were freed: it hands them out from the first one on, like a pool that was never used, so
    /// addresses in it can differ from CPython's. Arenas from another arena allocator than the heap's own are left alone, and so is the C
    /// library's free memory.
    pub fn trim(&self) -> Trimmed {
        // SAFETY: initialised; there is no reference to the field, and nothing is called that could come back in.
        unsafe { (*self.domains.as_ptr()).pymalloc.trim((*self.domains.as_ptr()).interrupt) }
    }

    /// Forgets the free list of the empty pool that begins at `pool`, as a [trim](Self::trim) does, but gives no memory back. `false` if no pool
    /// begins there that has been in use and is empty now.
    pub fn forget_pool(&self, pool: usize) -> bool {
        // SAFETY: as above.
        unsafe { (*self.domains.as_ptr()).pymalloc.forget_pool(pool) }
    }

    /// Walks every structure of the heap.
    ///
    /// # Errors
    /// The first that does not hold.
    pub fn verify(&self) -> Result<(), Corruption> {
        // SAFETY: initialised.
        self.pymalloc().verify(unsafe { (*self.domains.as_ptr()).interrupt })
    }
}

impl Drop for Heap {
    fn drop(&mut self) {
        let domains = self.domains.as_ptr();
        // SAFETY: allocated and initialised in `with_options`; nothing uses the blocks any more.
        unsafe {
            Pymalloc::release(&raw mut (*domains).pymalloc);
            domains.drop_in_place();
            dealloc(domains.cast(), Layout::new::<Domains>());
        }
    }
}
