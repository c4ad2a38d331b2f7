//! Allocators as values: the two C structs through which CPython's allocators are taken out, wrapped and put in.

use core::ffi::c_void;

/// Largest request in bytes that any allocator is asked for (`PY_SSIZE_T_MAX`).
pub const PY_SSIZE_T_MAX: usize = isize::MAX as usize;

/// The values of `PYTHONMALLOC` (`PyMemAllocatorName`), without mimalloc, which no heap here has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AllocatorName {
    /// pymalloc for mem and obj, as in a release build.
    Default,
    /// As `Default`, with debug hooks.
    Debug,
    /// The C library's malloc for all domains.
    Malloc,
    /// As `Malloc`, with debug hooks.
    MallocDebug,
    /// pymalloc for mem and obj.
    Pymalloc,
    /// As `Pymalloc`, with debug hooks.
    PymallocDebug,
}

impl AllocatorName {
    /// All of them, in CPython's order.
    pub const ALL: [Self; 6] = [Self::Default, Self::Debug, Self::Malloc, Self::MallocDebug, Self::Pymalloc, Self::PymallocDebug];

    /// The value of `PYTHONMALLOC`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Debug => "debug",
            Self::Malloc => "malloc",
            Self::MallocDebug => "malloc_debug",
            Self::Pymalloc => "pymalloc",
            Self::PymallocDebug => "pymalloc_debug",
        }
    }

    /// The allocators with this value of `PYTHONMALLOC`; `None` for any other text.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|allocator| allocator.name() == name)
    }

    /// Whether mem and obj have pymalloc.
    pub const fn has_pymalloc(self) -> bool {
        !matches!(self, Self::Malloc | Self::MallocDebug)
    }

    /// Whether debug hooks are around the allocators.
    pub const fn has_debug_hooks(self) -> bool {
        matches!(self, Self::Debug | Self::MallocDebug | Self::PymallocDebug)
    }
}

/// Four functions and the context they are called with (`PyMemAllocatorEx`).
///
/// The layout and calling convention are C's, so that one can be put into a real CPython and compared side by side.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[doc(alias = "PyMemAllocatorEx")]
pub struct Allocator {
    /// Passed to each function as its first argument.
    pub ctx: *mut c_void,
    /// Gives a block of `size` bytes, or NULL; zero bytes give a block too.
    pub malloc: unsafe extern "C-unwind" fn(ctx: *mut c_void, size: usize) -> *mut c_void,
    /// Gives a zeroed block of `count * size` bytes, or NULL.
    pub calloc: unsafe extern "C-unwind" fn(ctx: *mut c_void, count: usize, size: usize) -> *mut c_void,
    /// Resizes a block, which may move; on NULL the old block is untouched. A NULL block is a malloc.
    pub realloc: unsafe extern "C-unwind" fn(ctx: *mut c_void, address: *mut c_void, size: usize) -> *mut c_void,
    /// Gives a block back; NULL is ignored.
    pub free: unsafe extern "C-unwind" fn(ctx: *mut c_void, address: *mut c_void),
}

// SAFETY: it is plain data. Calling its functions is unsafe: the caller knows from which threads they may be called.
unsafe impl Sync for Allocator {}

impl PartialEq for Allocator {
    fn eq(&self, other: &Self) -> bool {
        self.ctx == other.ctx
            && core::ptr::fn_addr_eq(self.malloc, other.malloc)
            && core::ptr::fn_addr_eq(self.calloc, other.calloc)
            && core::ptr::fn_addr_eq(self.realloc, other.realloc)
            && core::ptr::fn_addr_eq(self.free, other.free)
    }
}

/// Where arenas come from (`PyObjectArenaAllocator`).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[doc(alias = "PyObjectArenaAllocator")]
pub struct ArenaAllocator {
    /// Passed to each function as its first argument.
    pub ctx: *mut c_void,
    /// Gives `size` bytes of readable and writable memory, or NULL.
    pub alloc: unsafe extern "C-unwind" fn(ctx: *mut c_void, size: usize) -> *mut c_void,
    /// Takes back the `size` bytes at `address`.
    pub free: unsafe extern "C-unwind" fn(ctx: *mut c_void, address: *mut c_void, size: usize),
}

impl PartialEq for ArenaAllocator {
    fn eq(&self, other: &Self) -> bool {
        self.ctx == other.ctx && core::ptr::fn_addr_eq(self.alloc, other.alloc) && core::ptr::fn_addr_eq(self.free, other.free)
    }
}
