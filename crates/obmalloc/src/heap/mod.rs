//! Room `heap`: what a program holds in its hand. Leans on every other room.

mod checked;
mod outside;
mod quarantine;

use core::fmt;
use core::marker::PhantomData;
use core::ptr::NonNull;

use alloc::alloc::{Layout, alloc, dealloc};
use alloc::vec::Vec;

pub use checked::CheckedHeap;

use crate::allocator::{Allocator, ArenaAllocator};
use crate::domain::{Domain, Domains, Trust};
use crate::profile::{Geometry, GeometryError, Profile};
use crate::pymalloc::{ArenaInfo, Corruption, Pymalloc, Stats, non_null};

/// What a heap is to be like, where it departs from its release.
#[derive(Clone, Copy, Debug)]
pub struct HeapOptions {
    /// The release.
    pub profile: Profile,
    /// Sizes other than the release's own, for asking "what if".
    pub geometry: Option<Geometry>,
    /// Bytes left between arenas, for an arena allocator that wraps the heap's own and places arenas off their natural boundary:
    /// a multiple of the pool size, at most an arena, 0 for none.
    pub arena_slack: usize,
    /// Bytes that a [`CheckedHeap`] may hold in arenas and raw blocks; requests past it fail as if the system had no more.
    pub memory_limit: Option<usize>,
    /// Bytes of freed blocks that wait in a [`CheckedHeap`] before their memory is used again, the longest waiting first. As long as a block
    /// waits, another free or use of it is found, also where its memory would have been handed out again by then. Addresses are not
    /// CPython's with it, a realloc moves where it can, and blocks that wait take memory, until a request would fail for it. None wait
    /// while a domain has another allocator than the heap's own. 0 for none.
    pub quarantine: usize,
}

impl HeapOptions {
    /// A heap of `profile` as the release has it.
    pub const fn new(profile: &Profile) -> Self {
        Self { profile: *profile, geometry: None, arena_slack: 0, memory_limit: None, quarantine: 0 }
    }
}

/// Why a heap cannot be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeapError {
    /// A size is out of its range.
    Geometry(GeometryError),
    /// The slack between arenas is no multiple of the pool size, or larger than an arena.
    ArenaSlack,
    /// No memory for the heap's tables.
    NoMemory,
}

impl fmt::Display for HeapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Geometry(error) => error.fmt(f),
            Self::ArenaSlack => f.write_str("arena slack: expected a multiple of the pool size, at most the arena size"),
            Self::NoMemory => f.write_str("no memory for the tables of a heap"),
        }
    }
}

impl core::error::Error for HeapError {}

impl From<GeometryError> for HeapError {
    fn from(error: GeometryError) -> Self {
        Self::Geometry(error)
    }
}

/// The three domains of one release over one pymalloc, trusting the caller as C does.
///
/// A heap is for one thread at a time, as CPython's is for whoever holds the GIL. Dropping it gives its arenas back, and with them
/// every small block; blocks that the raw domain gave are the C library's and stay until they are freed.
pub struct Heap {
    domains: NonNull<Domains>,
    profile: Profile,
    /// Interior mutability through the pointer: not to be shared between threads.
    not_sync: PhantomData<core::cell::Cell<()>>,
}

// SAFETY: a heap owns everything that it points to, and the C library's malloc does not care who calls.
unsafe impl Send for Heap {}

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
    /// When a size is out of its range, or there is no memory for the heap's tables.
    pub fn with_options(options: HeapOptions) -> Result<Self, HeapError> {
        Self::trusting(options, Trust::InLinks)
    }

    fn trusting(options: HeapOptions, trust: Trust) -> Result<Self, HeapError> {
        let geometry = options.geometry.unwrap_or(options.profile.geometry);
        geometry.check()?;
        if !options.arena_slack.is_multiple_of(geometry.pool_size) || options.arena_slack > geometry.arena_size {
            return Err(HeapError::ArenaSlack);
        }
        let layout = Layout::new::<Domains>();
        // SAFETY: the layout is not empty.
        let place = NonNull::new(unsafe { alloc(layout) }).ok_or(HeapError::NoMemory)?.cast::<Domains>();
        // SAFETY: fresh memory of the right layout that stays in place until the heap is dropped; the geometry was checked above.
        if !unsafe { Domains::init(place.as_ptr(), &options.profile, geometry, options.arena_slack, trust) } {
            // SAFETY: allocated above with this layout.
            unsafe { dealloc(place.as_ptr().cast(), layout) };
            return Err(HeapError::NoMemory);
        }
        Ok(Self { domains: place, profile: options.profile, not_sync: PhantomData })
    }

    fn domains(&self) -> *mut Domains {
        self.domains.as_ptr()
    }

    #[inline(always)]
    fn pymalloc(&self) -> &Pymalloc {
        // SAFETY: initialised, and the reference does not live past a call that could change the state: no method that returns it or
        // holds it while allocators run exists.
        unsafe { &(*self.domains.as_ptr()).pymalloc }
    }

    /// The release.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// The sizes in force.
    pub fn geometry(&self) -> Geometry {
        *self.pymalloc().geometry()
    }

    /// `PyMem_RawMalloc`, `PyMem_Malloc`, `PyObject_Malloc`: a block of at least `size` bytes, aligned as the geometry says, with
    /// unspecified contents. Zero bytes give a block of their own. Nothing when there is no memory or `size` is above
    /// [`PY_SSIZE_T_MAX`](crate::PY_SSIZE_T_MAX).
    #[inline]
    pub fn malloc(&self, domain: Domain, size: usize) -> Option<NonNull<u8>> {
        // SAFETY: the domains are initialised and used by one thread.
        non_null(unsafe { Domains::malloc(self.domains.as_ptr(), domain, size) })
    }

    /// `PyMem_RawCalloc`, `PyMem_Calloc`, `PyObject_Calloc`: `count * size` zeroed bytes. Nothing when there is no memory or the
    /// product is above [`PY_SSIZE_T_MAX`](crate::PY_SSIZE_T_MAX).
    #[inline]
    pub fn calloc(&self, domain: Domain, count: usize, size: usize) -> Option<NonNull<u8>> {
        // SAFETY: as in `malloc`.
        non_null(unsafe { Domains::calloc(self.domains.as_ptr(), domain, count, size) })
    }

    /// `PyMem_RawRealloc`, `PyMem_Realloc`, `PyObject_Realloc`: the block, perhaps moved, with its contents up to the smaller size.
    /// Without a block this is `malloc`. On nothing the old block is untouched.
    ///
    /// # Safety
    /// `block` is a live block of this heap and domain; once another address comes back it is not used any more.
    #[inline]
    pub unsafe fn realloc(&self, domain: Domain, block: Option<NonNull<u8>>, size: usize) -> Option<NonNull<u8>> {
        let address = block.map_or(core::ptr::null_mut(), NonNull::as_ptr);
        // SAFETY: the caller's promise.
        non_null(unsafe { Domains::realloc(self.domains.as_ptr(), domain, address, size) })
    }

    /// `PyMem_RawFree`, `PyMem_Free`, `PyObject_Free`: gives a block back; none is fine.
    ///
    /// # Safety
    /// `block` is a live block of this heap and domain, and is not used any more.
    #[inline]
    pub unsafe fn free(&self, domain: Domain, block: Option<NonNull<u8>>) {
        let address = block.map_or(core::ptr::null_mut(), NonNull::as_ptr);
        // SAFETY: the caller's promise.
        unsafe { Domains::free(self.domains.as_ptr(), domain, address) };
    }

    /// `PyMem_GetAllocator`
    pub fn allocator(&self, domain: Domain) -> Allocator {
        // SAFETY: initialised.
        unsafe { (*self.domains.as_ptr()).allocators[domain as usize] }
    }

    /// `PyMem_SetAllocator`: from now on the domain's requests go to `allocator`.
    ///
    /// # Safety
    /// The functions do what [`Allocator`] says for as long as they are in, take back the domain's live blocks, and do not unwind.
    pub unsafe fn set_allocator(&self, domain: Domain, allocator: Allocator) {
        // SAFETY: initialised; nobody holds a reference to the field.
        unsafe { (*self.domains.as_ptr()).allocators[domain as usize] = allocator };
    }

    /// `PyObject_GetArenaAllocator`
    pub fn arena_allocator(&self) -> ArenaAllocator {
        self.pymalloc().arena_allocator()
    }

    /// `PyObject_SetArenaAllocator`: from now on arenas come from `allocator`.
    ///
    /// # Safety
    /// The functions do what [`ArenaAllocator`] says for as long as the heap lives, take back the arenas that are held, and do not
    /// unwind.
    pub unsafe fn set_arena_allocator(&self, allocator: ArenaAllocator) {
        // SAFETY: initialised; nobody holds a reference to the field.
        unsafe { (*self.domains.as_ptr()).pymalloc.set_arena_allocator(allocator) };
    }

    /// First byte and bytes of the address space that the heap's own arenas lie in; two zeroes where none could be reserved.
    pub fn region(&self) -> (usize, usize) {
        self.pymalloc().region()
    }

    /// `sys.getallocatedblocks()`: blocks handed out by mem and obj, those that came from raw included.
    pub fn allocated_blocks(&self) -> usize {
        self.pymalloc().allocated_blocks()
    }

    /// The arenas now held, in the order in which they were taken.
    pub fn arenas(&self) -> Vec<ArenaInfo> {
        self.pymalloc().arenas()
    }

    /// The numbers behind `sys._debugmallocstats()`; their text is CPython's.
    pub fn stats(&self) -> Stats {
        self.pymalloc().stats()
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
