//! The recorder's own memory for stacks and types. It lies far from where the system puts a program's memory, so that a program gets the same
//! addresses with stacks and types and without.

use std::ffi::c_void;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The address that the next pages are asked for.
static NEXT: AtomicUsize = AtomicUsize::new(0x2000_0000_0000);

/// Types for which all zeros is a value, and that need no dropping.
///
/// # Safety
/// The type is such a type.
pub unsafe trait Plain: Copy {}

// SAFETY: numbers.
unsafe impl Plain for u16 {}
// SAFETY: numbers.
unsafe impl Plain for u8 {}
// SAFETY: numbers.
unsafe impl Plain for u64 {}

/// A slice in pages of its own, zeroed to begin with.
pub struct Pages<T: Plain> {
    at: NonNull<T>,
    count: usize,
}

// SAFETY: as a boxed slice of numbers.
unsafe impl<T: Plain> Send for Pages<T> {}

impl<T: Plain> Pages<T> {
    /// `None` when the system has no memory.
    pub fn new(count: usize) -> Option<Self> {
        let bytes = count.checked_mul(size_of::<T>())?.checked_next_multiple_of(1 << 16)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let map = |place: usize, flags| {
            // SAFETY: fresh memory; with `MAP_FIXED_NOREPLACE` only where nothing is.
            unsafe { libc::mmap(place as *mut c_void, bytes, protection, flags, -1, 0) }
        };
        let mut at = map(NEXT.fetch_add(bytes, Ordering::Relaxed), flags | libc::MAP_FIXED_NOREPLACE);
        if at == libc::MAP_FAILED {
            at = map(0, flags);
        }
        if at == libc::MAP_FAILED {
            return None;
        }
        Some(Self { at: NonNull::new(at.cast())?, count })
    }
}

impl<T: Plain> Deref for Pages<T> {
    type Target = [T];
    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: `new` mapped room for this many `Plain` values, and the mapping lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.count) }
    }
}

impl<T: Plain> DerefMut for Pages<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.count) }
    }
}

impl<T: Plain> Drop for Pages<T> {
    fn drop(&mut self) {
        let bytes = (self.count * size_of::<T>()).next_multiple_of(1 << 16);
        // SAFETY: mapped by `new`, and not used after this.
        unsafe { libc::munmap(self.at.as_ptr().cast(), bytes) };
    }
}
