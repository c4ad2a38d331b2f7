//! Linux and macOS.

use core::ffi::{c_int, c_void};
use core::ptr::{self, NonNull};

pub(crate) use libc::{calloc, free, malloc, realloc};

use super::Thread;

pub(crate) const REGION_SIZE: usize = 16 << 30;
pub(crate) const APART_REGION_SIZE: usize = REGION_SIZE;
/// Half of a process's address space, so that some is left for everything else, however many heaps are open.
pub(crate) const ADDRESS_SPACE: usize = 64 << 40;

pub(crate) const REGION_PART: usize = 2048;

/// Whether the pages of a C library block may be given back before the block is freed. macOS's library does not promise that they may.
pub(crate) const BLOCKS_IN_PIECES: bool = cfg!(target_os = "linux");

const READ_WRITE: c_int = libc::PROT_READ | libc::PROT_WRITE;
const FLAGS: c_int = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// Maps `size` bytes of zeroed, page-aligned memory; `None` when the system has no more. No memory is used before it is touched.
pub(crate) fn map(size: usize) -> Option<NonNull<u8>> {
    // SAFETY: an anonymous mapping at an address of the system's choice touches nothing that exists.
    let address = unsafe { libc::mmap(ptr::null_mut(), size, READ_WRITE, FLAGS, -1, 0) };
    if address == libc::MAP_FAILED { None } else { NonNull::new(address.cast()) }
}

/// Reserves `size` bytes: as [`map`], but a part must be [committed](commit) before it is touched.
pub(crate) fn reserve(size: usize) -> Option<NonNull<u8>> {
    map(size)
}

/// Makes a part of what was [reserved](reserve) memory; false when the system has no more.
pub(crate) unsafe fn commit(_: NonNull<u8>, _: usize) -> bool {
    true
}

/// Gives a whole mapping back.
///
/// # Safety
/// `address` and `size` are those of one [`map`], and nothing points into it any more.
pub(crate) unsafe fn unmap(address: NonNull<u8>, size: usize) {
    // SAFETY: the caller's promise.
    let result = unsafe { libc::munmap(address.as_ptr().cast(), size) };
    debug_assert_eq!(result, 0, "munmap of a whole mapping does not fail");
}

/// Gives back the whole pages in a part of a mapping; the next touch finds zeroes.
///
/// # Safety
/// The part lies within one [`map`], and nothing in it is needed any more.
pub(crate) unsafe fn decommit(address: NonNull<u8>, size: usize) {
    let (begin, end) = whole_pages(address.as_ptr().addr(), address.as_ptr().addr() + size);
    if begin < end {
        // SAFETY: the caller's promise. If the system refuses, the pages stay, which costs memory but breaks nothing.
        unsafe { discard(ptr::with_exposed_provenance_mut(begin), end - begin) };
    }
}

/// Bytes of a page. On some processors the system chooses the size.
#[inline]
fn page_size() -> usize {
    if cfg!(target_arch = "x86_64") {
        return 4096;
    }
    // SAFETY: asks for a number.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(1 << 16)
}

/// The part of a range that is whole pages. If there are none, it begins behind its end.
#[inline]
fn whole_pages(begin: usize, end: usize) -> (usize, usize) {
    let page = page_size();
    (begin.next_multiple_of(page), end & !(page - 1))
}

/// Gives back the whole pages of a range; the next touch finds zeroes. Returns how many of their bytes were resident, which costs a look at
/// each page. If none was, gives nothing back unless `is_forced`: callers force it if the pages may be swapped out.
///
/// # Safety
/// The range lies within one [`map`], and nothing in it is needed any more.
pub(crate) unsafe fn give_back(begin: usize, end: usize, is_forced: bool) -> usize {
    let page = page_size();
    let (begin, end) = whole_pages(begin, end);
    if begin >= end {
        return 0;
    }
    let mut looked = [0u8; 256];
    let mut resident = 0;
    for at in (begin..end).step_by(looked.len() * page) {
        let size = (end - at).min(looked.len() * page);
        // SAFETY: whole pages of a mapping, and a byte for each.
        if unsafe { libc::mincore(ptr::with_exposed_provenance_mut(at), size, looked.as_mut_ptr().cast()) } == 0 {
            resident += page * looked[..size / page].iter().filter(|&byte| byte & 1 != 0).count();
        }
    }
    if resident == 0 && !is_forced {
        return 0;
    }
    // SAFETY: the caller's promise. If the system refuses, the pages stay.
    let done = unsafe { discard(ptr::with_exposed_provenance_mut(begin), end - begin) };
    if done { resident } else { 0 }
}

/// Makes the next touch of some pages find zeroes; false if the system refuses.
///
/// # Safety
/// As for [`decommit`], and the part is made of whole pages.
#[cfg(target_os = "linux")]
unsafe fn discard(address: *mut c_void, size: usize) -> bool {
    // SAFETY: the caller's promise.
    unsafe { libc::madvise(address, size, libc::MADV_DONTNEED) == 0 }
}

/// Does what the Linux version does. On other systems `MADV_DONTNEED` is only advice and may keep the contents, so this maps new pages over the
/// old ones.
///
/// # Safety
/// As for [`decommit`], and the part is made of whole pages.
#[cfg(not(target_os = "linux"))]
unsafe fn discard(address: *mut c_void, size: usize) -> bool {
    // SAFETY: the caller's promise: within a mapping of ours, which has these very attributes.
    unsafe { libc::mmap(address, size, READ_WRITE, FLAGS | libc::MAP_FIXED, -1, 0) == address }
}

/// Bytes that a block really has, which may be more than were requested.
///
/// # Safety
/// NULL or a live block of [`malloc`].
pub(crate) unsafe fn block_bytes(block: *mut c_void) -> usize {
    #[cfg(target_vendor = "apple")]
    use libc::malloc_size as usable_size;
    #[cfg(not(target_vendor = "apple"))]
    use libc::malloc_usable_size as usable_size;
    // SAFETY: the caller's promise.
    unsafe { usable_size(block) }
}

/// The calling thread.
pub(crate) fn thread() -> Thread {
    let mut name = [0u8; 16];
    // SAFETY: the thread is this one, and the name is written as far as there is room.
    unsafe {
        let thread = libc::pthread_self();
        libc::pthread_getname_np(thread, name.as_mut_ptr().cast(), name.len());
        // A number, or with some C libraries a pointer.
        (thread as usize, name)
    }
}

/// Seconds since some fixed moment.
pub(crate) fn seconds() -> f64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists, and the struct is ours.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}
