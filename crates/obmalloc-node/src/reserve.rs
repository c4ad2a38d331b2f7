//! The binding's own memory, which is the C library's. Where that has none left, what is small comes from a reserve, so that the error that
//! says so can be made: Rust ends the process where a message or a box of a fixed size cannot be had.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::probe::is_refused;

/// Bytes of a block of the reserve: more than anything of a fixed size, and any message, takes.
const BLOCK: usize = 4 << 10;
/// A bit of a word for each.
const BLOCKS: usize = 64;
/// What every block is aligned to.
const ALIGN: usize = 16;

pub(crate) struct Reserving {
    /// A bit is set while its block is in use.
    used: AtomicU64,
    memory: Memory,
}

#[repr(C, align(16))]
struct Memory(UnsafeCell<[u8; BLOCK * BLOCKS]>);

// SAFETY: a block of the memory is its user's alone, which `used` sees to.
unsafe impl Sync for Memory {}

impl Reserving {
    pub const fn new() -> Self {
        Self { used: AtomicU64::new(0), memory: Memory(UnsafeCell::new([0; BLOCK * BLOCKS])) }
    }

    /// How many blocks are in use.
    #[cfg(feature = "panics")]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed).count_ones() as usize
    }

    fn base(&self) -> *mut u8 {
        self.memory.0.get().cast()
    }

    /// The block of the reserve that an address is, if it is one.
    #[inline(always)]
    fn index(&self, address: *mut u8) -> Option<usize> {
        let offset = address.addr().wrapping_sub(self.base().addr());
        (offset < BLOCK * BLOCKS).then_some(offset / BLOCK)
    }

    #[cold]
    fn take(&self, layout: Layout) -> *mut u8 {
        if layout.size() > BLOCK || layout.align() > ALIGN {
            return ptr::null_mut();
        }
        let mut used = self.used.load(Ordering::Relaxed);
        while used != u64::MAX {
            let index = used.trailing_ones();
            match self.used.compare_exchange_weak(used, used | 1 << index, Ordering::Acquire, Ordering::Relaxed) {
                // SAFETY: one of the blocks.
                Ok(_) => return unsafe { self.base().add(index as usize * BLOCK) },
                Err(now) => used = now,
            }
        }
        ptr::null_mut()
    }
}

// SAFETY: the C library's blocks, or else blocks of the reserve, each for one at a time, which are known by their addresses.
unsafe impl GlobalAlloc for Reserving {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        let block = if is_refused() { ptr::null_mut() } else { unsafe { System.alloc(layout) } };
        if block.is_null() { self.take(layout) } else { block }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        let block = if is_refused() { ptr::null_mut() } else { unsafe { System.alloc_zeroed(layout) } };
        if !block.is_null() {
            return block;
        }
        let block = self.take(layout);
        if !block.is_null() {
            // SAFETY: a block of so many bytes, just taken, which somebody may have had before.
            unsafe { block.write_bytes(0, layout.size()) };
        }
        block
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match self.index(block) {
            Some(index) => _ = self.used.fetch_and(!(1 << index), Ordering::Release),
            // SAFETY: the caller's promise; it is the C library's.
            None => unsafe { System.dealloc(block, layout) },
        }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise; what is the reserve's has room for `BLOCK` bytes, and is not the C library's.
        unsafe {
            let reserved = self.index(block).is_some();
            if !reserved && !is_refused() {
                let moved = System.realloc(block, layout, size);
                if !moved.is_null() {
                    return moved;
                }
            }
            if reserved && size <= BLOCK {
                return block;
            }
            let moved = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !moved.is_null() {
                moved.copy_from_nonoverlapping(block, layout.size().min(size));
                self.dealloc(block, layout);
            }
            moved
        }
    }
}
