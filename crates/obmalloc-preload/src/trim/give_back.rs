//! A slice of a trim ([`slice`]): gives back the pages of empty pools, an arena at a time. Also gives back the free memory of C's `malloc`.

use super::arenas::{self, Arena};
use super::counts::COUNTS;
use super::pools::{self, Header, POOL_SIZE, State};
use crate::python::symbol;
use crate::{clock, sink};
use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Bytes of a page. On systems with larger pages nothing can be given back: a pool is one page or less.
pub const PAGE_SIZE: usize = 4096;
/// Pages of a pool that hold no header.
const PAGES: usize = POOL_SIZE / PAGE_SIZE - 1;
/// Bytes of a pool that can be given back.
pub const BYTES: usize = PAGES * PAGE_SIZE;
/// What pages are filled with in tests.
const POISON: u64 = 0x00dd_5afe_f00d_a5a5;

/// Which empty pools are given back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Which {
    All,
    /// Pools that were empty at two looks in a row.
    Idle,
}

/// Whether pages are filled and checked later, and not given back.
static POISONS: AtomicBool = AtomicBool::new(false);

pub fn poison() {
    POISONS.store(true, Ordering::Relaxed);
}

/// Makes a slice: gives back the empty pools of `owner` in the arenas behind `at`, for at most `most` or to the end. Returns where to go on;
/// `None` at the end.
///
/// # Safety
/// This thread has the GIL of the interpreter `owner`, and is in no call of the allocator.
pub unsafe fn slice(owner: u64, which: Which, mut at: usize, most: Duration) -> Option<usize> {
    let begin = Instant::now();
    let mut batch = Batch::new();
    let mut next = None;
    let is_over = || begin.elapsed() >= most;
    // SAFETY: the caller's promise; no arena is used after this function.
    while let Some(arena) = unsafe { arenas::next_of(owner, at) } {
        let wanted = which == Which::All || !arena.idle.is_empty();
        // SAFETY: the caller's promise.
        if wanted && !unsafe { of_arena(arena, which, &mut batch, is_over) } {
            // The next slice goes on in this arena.
            next = Some(at);
            break;
        }
        at = arena.base;
        if is_over() {
            next = Some(at);
            break;
        }
    }
    batch.give();
    let micros = begin.elapsed().as_micros() as u64;
    COUNTS.slices.add(1);
    COUNTS.micros.add(micros);
    COUNTS.longest.raise_to(micros);
    next
}

/// Returns `false` if the time is over before all of the arena's pools are done; at least one batch is given before.
///
/// # Safety
/// As of [`slice`]; the arena is that interpreter's.
unsafe fn of_arena(arena: &Arena, which: Which, batch: &mut Batch, is_over: impl Fn() -> bool) -> bool {
    let mut found = [0usize; 128];
    let mut count = 0;
    for number in 0..arena.pools {
        let pool = arena.pool(number);
        // SAFETY: the arena exists.
        let header = unsafe { Header::read(pool) };
        match header.state(pool) {
            State::Virgin => break,
            State::Forgotten if arena.given.has(number) => check_poison(pool),
            State::Empty => {
                note_returned(arena, number);
                let is_idle = || arena.idle.has(number) && arena.seen[number].load(Ordering::Relaxed) == header.print();
                if which == Which::All || is_idle() {
                    found[count] = number;
                    count += 1;
                }
            }
            State::Used => note_returned(arena, number),
            State::Forgotten | State::Strange => {}
        }
    }
    if count == 0 {
        return true;
    }
    let resident = Resident::of(arena);
    for &number in &found[..count] {
        let pool = arena.pool(number);
        // SAFETY: an empty pool of this interpreter.
        unsafe { pools::forget(pool) };
        arena.given.add(number);
        arena.idle.remove(number);
        if batch.add(pool, resident.pages(pool)) && is_over() {
            return false;
        }
    }
    true
}

/// Notes that a pool that was given back has been used since.
pub fn note_returned(arena: &Arena, number: usize) {
    if arena.given.remove(number) {
        COUNTS.returned.add(1);
        COUNTS.returned_bytes.add(BYTES as u64);
    }
}

/// Which pages of an arena are resident.
struct Resident {
    base: usize,
    /// A page each; the largest arena has 512.
    pages: [u8; 512],
}

impl Resident {
    fn of(arena: &Arena) -> Self {
        let mut resident = Self { base: arena.first, pages: [1; 512] };
        let length = arena.pools * POOL_SIZE;
        // SAFETY: writes a byte for each page. If the system does not tell, all pages count as resident.
        unsafe { libc::mincore(arena.first as *mut _, length, resident.pages.as_mut_ptr()) };
        resident
    }

    /// How many pages of a pool are resident, without its first.
    fn pages(&self, pool: usize) -> usize {
        let first = (pool - self.base) / PAGE_SIZE + 1;
        self.pages[first..first + PAGES].iter().filter(|&&page| page & 1 != 0).count()
    }
}

/// The most ranges of one call: few, so that a slice ends in time.
const MOST_RANGES: usize = 16;

/// Pools whose pages are given back with one call of the system.
struct Batch {
    ranges: [libc::iovec; MOST_RANGES],
    count: usize,
    pages: usize,
    /// Every pool whose free list was forgotten, also one with no resident page: a recording needs them all.
    forgotten: [u64; MOST_RANGES],
    forgotten_count: usize,
}

impl Batch {
    fn new() -> Self {
        Self {
            ranges: [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; MOST_RANGES],
            count: 0,
            pages: 0,
            forgotten: [0; MOST_RANGES],
            forgotten_count: 0,
        }
    }

    /// Adds a pool with `pages` resident pages. Returns whether that filled the batch; a full batch has then been given back.
    fn add(&mut self, pool: usize, pages: usize) -> bool {
        self.forgotten[self.forgotten_count] = pool as u64;
        self.forgotten_count += 1;
        // Filled pages are resident from then on.
        let pages = if POISONS.load(Ordering::Relaxed) { PAGES } else { pages };
        if pages > 0 {
            self.ranges[self.count] = libc::iovec { iov_base: (pool + PAGE_SIZE) as *mut _, iov_len: BYTES };
            self.count += 1;
            self.pages += pages;
        }
        let is_full = self.forgotten_count == MOST_RANGES;
        if is_full {
            self.give();
        }
        is_full
    }

    /// Gives the collected ranges back.
    fn give(&mut self) {
        if self.forgotten_count == 0 {
            return;
        }
        sink::trim(POOL_SIZE, &self.forgotten[..self.forgotten_count]);
        let ranges = &self.ranges[..self.count];
        let refused = if POISONS.load(Ordering::Relaxed) {
            ranges.iter().for_each(|range| fill(range.iov_base.addr()));
            0
        } else {
            give(ranges)
        };
        // The share of resident pages in refused ranges is taken to be that of all ranges.
        let pages = self.pages * (self.count - refused) / self.count.max(1);
        COUNTS.pools.add(self.forgotten_count as u64);
        COUNTS.bytes.add((pages * PAGE_SIZE) as u64);
        COUNTS.refused.add((refused * BYTES) as u64);
        (self.count, self.pages, self.forgotten_count) = (0, 0, 0);
    }
}

/// Stands for the process itself, in place of a descriptor (Linux 6.15). An opened descriptor would be the parent's after a fork.
const PIDFD_SELF: c_int = -10001;
/// Whether the system takes many ranges in one call, for the process itself.
static TAKES_MANY: AtomicBool = AtomicBool::new(true);

/// Lets the system take the pages of these ranges. Returns how many it refused.
fn give(ranges: &[libc::iovec]) -> usize {
    let mut done = 0;
    if TAKES_MANY.load(Ordering::Relaxed) && ranges.len() > 1 {
        // SAFETY: nothing reads these pages before it writes them: their pools have been forgotten.
        let given = unsafe {
            libc::syscall(libc::SYS_process_madvise, PIDFD_SELF, ranges.as_ptr(), ranges.len(), libc::MADV_DONTNEED, 0)
        };
        match usize::try_from(given) {
            Ok(bytes) => done = bytes / BYTES,
            // The system may have refused the first range, or the whole call: the calls below tell.
            Err(_) => TAKES_MANY.store(false, Ordering::Relaxed),
        }
    }
    let rest = &ranges[done..];
    // SAFETY: as above.
    let refused = rest.iter().filter(|range| unsafe { libc::madvise(range.iov_base, range.iov_len, libc::MADV_DONTNEED) } != 0);
    refused.count()
}

/// Fills pages that would be given back.
fn fill(begin: usize) {
    for at in (begin..begin + BYTES).step_by(size_of::<u64>()) {
        // SAFETY: pages of an empty pool, which nothing reads.
        unsafe { (at as *mut u64).write(POISON ^ at as u64) };
    }
}

/// Ends the process if a pool that was filled, and is still empty, has been written to.
fn check_poison(pool: usize) {
    if !POISONS.load(Ordering::Relaxed) {
        return;
    }
    let begin = pool + PAGE_SIZE;
    let is_filled = |at: usize| {
        // SAFETY: pages of an empty pool.
        unsafe { (at as *const u64).read() == POISON ^ at as u64 }
    };
    if !(begin..begin + BYTES).step_by(size_of::<u64>()).all(is_filled) {
        super::counts::say(format_args!("an empty pool was written to: {pool:#x}"));
        std::process::abort();
    }
}

/// Lets C's `malloc` give back its free memory, if it is glibc's.
pub fn malloc_trim() {
    type Trim = unsafe extern "C" fn(usize) -> c_int;
    let Some(trim) = symbol(c"malloc_trim") else { return };
    if POISONS.load(Ordering::Relaxed) {
        return;
    }
    let begin = Instant::now();
    let before = clock::resident_pages();
    // SAFETY: the C library's function of that name has this type.
    unsafe { std::mem::transmute::<*mut std::ffi::c_void, Trim>(trim)(0) };
    let pages = before.zip(clock::resident_pages()).map_or(0, |(before, after)| before.saturating_sub(after));
    COUNTS.malloc_bytes.add(pages * PAGE_SIZE as u64);
    COUNTS.malloc_micros.add(begin.elapsed().as_micros() as u64);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::alloc::{Layout, alloc_zeroed, dealloc};

    #[test]
    fn slice_without_time_gives_a_few_pools_and_the_next_one_goes_on() {
        let layout = Layout::from_size_align(64 * POOL_SIZE, POOL_SIZE).expect("a layout");
        // SAFETY: the layout is not empty.
        let memory = unsafe { alloc_zeroed(layout) };
        let arena = Arena::new(memory.expose_provenance(), 64 * POOL_SIZE, 0);
        let empty = |number: usize| {
            // SAFETY: the pool lies in this test's memory.
            unsafe { (arena.pool(number) as *mut Header).write(Header::of_empty(arena.pool(number))) };
        };
        let is_forgotten = |&number: &usize| {
            // SAFETY: as above.
            let header = unsafe { Header::read(arena.pool(number)) };
            header.state(arena.pool(number)) == State::Forgotten && arena.given.has(number)
        };
        let forgotten = || (0..64).filter(is_forgotten).count();
        let mut batch = Batch::new();
        // SAFETY: nothing but this test uses the pools.
        let mut slice = |is_over: bool| unsafe { of_arena(&arena, Which::All, &mut batch, || is_over) };
        (0..64).for_each(empty);
        for number in 1..=4 {
            assert!(!slice(true));
            assert_eq!(forgotten(), MOST_RANGES * number);
        }
        assert!(slice(true));
        // With time, in one slice.
        (0..64).for_each(empty);
        assert!(slice(false));
        assert_eq!(forgotten(), 64);
        // SAFETY: allocated above with this layout.
        unsafe { dealloc(memory, layout) };
    }
}
