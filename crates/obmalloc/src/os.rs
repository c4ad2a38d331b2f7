//! What the engine asks of the operating system: address space and pages.
//!
//! Miri knows neither address space that costs nothing nor pages that are given back: there, mappings are zeroed blocks of Rust's
//! allocator, so Miri also tells which of them are never unmapped.

#[cfg(miri)]
use core::alloc::Layout;
use core::ffi::c_void;
#[cfg(not(miri))]
use core::ptr;
use core::ptr::NonNull;

/// Takes `size` bytes of zeroed, page-aligned memory, or none. No memory is used before it is touched.
#[cfg(not(miri))]
pub(crate) fn map(size: usize) -> Option<NonNull<u8>> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: an anonymous mapping at an address of the system's choice touches nothing that exists.
    let address = unsafe { libc::mmap(ptr::null_mut(), size, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if address == libc::MAP_FAILED { None } else { NonNull::new(address.cast()) }
}

/// Gives a whole mapping back.
///
/// # Safety
/// `address` and `size` are those of one [`map`], and nothing points into it any more.
#[cfg(not(miri))]
pub(crate) unsafe fn unmap(address: NonNull<u8>, size: usize) {
    // SAFETY: the caller's promise.
    let result = unsafe { libc::munmap(address.as_ptr().cast(), size) };
    debug_assert_eq!(result, 0, "munmap of a whole mapping does not fail");
}

/// Gives the pages of a part of a mapping back; the next touch finds zeroes.
///
/// # Safety
/// The part lies within one [`map`], and nothing in it is needed any more.
#[cfg(not(miri))]
pub(crate) unsafe fn decommit(address: NonNull<u8>, size: usize) {
    // SAFETY: the caller's promise. Where the advice is refused the pages stay, which costs memory but breaks nothing.
    unsafe { libc::madvise(address.as_ptr().cast(), size, libc::MADV_DONTNEED) };
}

/// Gives the whole pages of a range back; the next touch finds zeroes. Gives how many bytes of them were resident, which costs a look
/// at each: where none is, nothing is given back unless `is_forced`, as is right where pages may be swapped out.
///
/// # Safety
/// The range lies within one [`map`], and nothing in it is needed any more.
#[cfg(not(miri))]
pub(crate) unsafe fn give_back(begin: usize, end: usize, is_forced: bool) -> usize {
    // SAFETY: a number of the system's.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(1 << 16);
    let (begin, end) = (begin.next_multiple_of(page), end & !(page - 1));
    if begin >= end {
        return 0;
    }
    let mut looked = [0u8; 256];
    let mut resident = 0;
    for at in (begin..end).step_by(looked.len() * page) {
        let size = (end - at).min(looked.len() * page);
        // SAFETY: whole pages of a mapping, and a byte for each.
        if unsafe { libc::mincore(ptr::with_exposed_provenance_mut(at), size, looked.as_mut_ptr()) } == 0 {
            resident += page * looked[..size / page].iter().filter(|&byte| byte & 1 != 0).count();
        }
    }
    if resident == 0 && !is_forced {
        return 0;
    }
    // SAFETY: the caller's promise. Where the advice is refused the pages stay.
    let result = unsafe { libc::madvise(ptr::with_exposed_provenance_mut(begin), end - begin, libc::MADV_DONTNEED) };
    if result == 0 { resident } else { 0 }
}

/// As [`decommit`], in pieces; false when `is_over`, which is asked between them, made it give up.
///
/// # Safety
/// As for `decommit`, also while `is_over` runs.
pub(crate) unsafe fn decommit_in_pieces(address: NonNull<u8>, size: usize, mut is_over: impl FnMut() -> bool) -> bool {
    const PIECE: usize = 1 << 20;
    (0..size).step_by(PIECE).all(|done| {
        // SAFETY: the caller's promise.
        unsafe { decommit(address.add(done), PIECE.min(size - done)) };
        !is_over()
    })
}

#[cfg(miri)]
fn layout(size: usize) -> Option<Layout> {
    Layout::from_size_align(size, 4096).ok().filter(|_| size != 0)
}

#[cfg(miri)]
pub(crate) fn map(size: usize) -> Option<NonNull<u8>> {
    // SAFETY: the layout is not empty.
    layout(size).and_then(|layout| NonNull::new(unsafe { alloc::alloc::alloc_zeroed(layout) }))
}

#[cfg(miri)]
pub(crate) unsafe fn unmap(address: NonNull<u8>, size: usize) {
    // SAFETY: the caller's promise: `map` gave this, with this layout.
    unsafe { alloc::alloc::dealloc(address.as_ptr(), layout(size).expect("was mapped")) };
}

#[cfg(miri)]
pub(crate) unsafe fn decommit(address: NonNull<u8>, size: usize) {
    // SAFETY: the caller's promise.
    unsafe { address.write_bytes(0, size) };
}

#[cfg(miri)]
pub(crate) unsafe fn give_back(begin: usize, end: usize, is_forced: bool) -> usize {
    let (begin, end) = (begin.next_multiple_of(4096), end & !4095);
    // There is no telling what is resident.
    if begin >= end || !is_forced {
        return 0;
    }
    // SAFETY: the caller's promise.
    unsafe { core::ptr::with_exposed_provenance_mut::<u8>(begin).write_bytes(0, end - begin) };
    end - begin
}

/// Bytes that the C library really set aside for a block.
///
/// # Safety
/// NULL or a live block of the C library's malloc.
pub(crate) unsafe fn block_bytes(block: *mut c_void) -> usize {
    // SAFETY: the caller's promise. Miri's C library does not say, so there no raw block counts.
    if cfg!(miri) { 0 } else { unsafe { libc::malloc_usable_size(block) } }
}

/// Asks the processor to fetch what lies at an address, which may be anything.
#[inline(always)]
pub(crate) fn prefetch(address: *const u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a hint, which touches nothing.
    unsafe {
        core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(any(not(target_arch = "x86_64"), miri))]
    let _ = address;
}

/// Seconds that have gone by since some moment.
pub(crate) fn seconds() -> f64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists, and the struct is ours.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}
