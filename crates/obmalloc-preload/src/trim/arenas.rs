//! The table of arenas: which interpreter owns each, and what is known of its pools.
//!
//! Invariants:
//! 1. The table is touched only under the lock, which the hooks take when an arena comes or goes.
//! 2. An arena and its entry stay while the lock is held, or the GIL of the interpreter that owns the arena: only a thread with that GIL can
//!    give the arena back.

use super::pools::POOL_SIZE;
use crate::lock::SpinLock;
use std::cell::UnsafeCell;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// The smallest arena. The arena allocator is also asked for Python's frames: those requests are smaller, or have no pool headers.
const SMALLEST_ARENA: usize = 1 << 20;
/// Pools of the largest arena (2 MiB, where CPython was built for huge pages).
const MOST_POOLS: usize = 128;

/// One bit a pool.
#[derive(Default)]
pub struct Pools([AtomicU64; MOST_POOLS / 64]);

impl Pools {
    pub fn has(&self, number: usize) -> bool {
        self.0[number / 64].load(Ordering::Relaxed) >> (number % 64) & 1 != 0
    }

    /// Adds the pool. Returns whether it was not there.
    pub fn add(&self, number: usize) -> bool {
        let bit = 1 << (number % 64);
        self.0[number / 64].fetch_or(bit, Ordering::Relaxed) & bit == 0
    }

    /// Takes the pool away. Returns whether it was there.
    pub fn remove(&self, number: usize) -> bool {
        let bit = 1 << (number % 64);
        self.0[number / 64].fetch_and(!bit, Ordering::Relaxed) & bit != 0
    }

    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| word.load(Ordering::Relaxed) == 0)
    }
}

/// What is known of an arena. Looks are taken without the GIL, so all that changes is atomic.
pub struct Arena {
    pub base: usize,
    /// Where the first pool begins, and how many pools fit.
    pub first: usize,
    pub pools: usize,
    /// The id of the interpreter that owns it, as [`crate::interpreters::present`] returns it.
    owner: u64,
    /// Pools whose pages were given back, and that have not been used since.
    pub given: Pools,
    /// Pools that were empty at the last look, and with the same header at the one before.
    pub idle: Pools,
    /// Short forms of the headers of pools that were empty at the last look; 0 for other pools.
    pub seen: [AtomicU32; MOST_POOLS],
}

impl Arena {
    pub fn new(base: usize, size: usize, owner: u64) -> Self {
        let first = base.next_multiple_of(POOL_SIZE);
        Self {
            base,
            first,
            pools: ((base + size).saturating_sub(first) / POOL_SIZE).min(MOST_POOLS),
            owner,
            given: Pools::default(),
            idle: Pools::default(),
            seen: [const { AtomicU32::new(0) }; MOST_POOLS],
        }
    }

    /// The address of a pool.
    pub fn pool(&self, number: usize) -> usize {
        self.first + number * POOL_SIZE
    }
}

struct Table {
    lock: SpinLock,
    arenas: UnsafeCell<BTreeMap<usize, Box<Arena>>>,
}

// SAFETY: (1).
unsafe impl Sync for Table {}

static TABLE: Table = Table { lock: SpinLock::new(), arenas: UnsafeCell::new(BTreeMap::new()) };
/// Bytes of all arenas.
static HELD: AtomicUsize = AtomicUsize::new(0);
/// Arenas that were taken so far.
static TAKEN: AtomicUsize = AtomicUsize::new(0);

/// Calls `call` with the table, locked. It must not come here again.
fn locked<T>(call: impl FnOnce(&mut BTreeMap<usize, Box<Arena>>) -> T) -> T {
    TABLE.lock.take();
    // SAFETY: (1) the lock is held.
    let result = call(unsafe { &mut *TABLE.arenas.get() });
    TABLE.lock.release();
    result
}

/// Adds an arena that was taken.
pub fn put(base: usize, size: usize, owner: u64) {
    if base == 0 || size < SMALLEST_ARENA {
        return;
    }
    let arena = Box::new(Arena::new(base, size, owner));
    if locked(|arenas| arenas.insert(base, arena)).is_none() {
        HELD.fetch_add(size, Ordering::Relaxed);
    }
    TAKEN.fetch_add(1, Ordering::Relaxed);
}

/// Removes an arena that is about to be given back.
pub fn remove(base: usize, size: usize) {
    if size >= SMALLEST_ARENA && locked(|arenas| arenas.remove(&base)).is_some() {
        HELD.fetch_sub(size, Ordering::Relaxed);
    }
}

/// See [`HELD`].
pub fn held() -> usize {
    HELD.load(Ordering::Relaxed)
}

/// See [`TAKEN`].
pub fn taken() -> usize {
    TAKEN.load(Ordering::Relaxed)
}

/// The next arena of `owner` whose base is higher than `after`.
///
/// # Safety
/// This thread has the GIL of that interpreter, and keeps it for as long as it uses the arena (2).
pub unsafe fn next_of(owner: u64, after: usize) -> Option<&'static Arena> {
    locked(|arenas| {
        let mut higher = arenas.range((Bound::Excluded(after), Bound::Unbounded));
        let (_, arena) = higher.find(|(_, arena)| arena.owner == owner)?;
        // SAFETY: the box does not move until the arena goes, which the caller's GIL prevents (2).
        Some(unsafe { &*std::ptr::from_ref::<Arena>(arena) })
    })
}

/// Whether there is an arena with a pool at this address.
pub fn has_pool(pool: usize) -> bool {
    locked(|arenas| {
        let arena = arenas.range(..=pool).next_back();
        arena.is_some_and(|(_, arena)| arena.first <= pool && pool < arena.pool(arena.pools))
    })
}

/// Calls `call` with each arena of `owner`, under the lock, which is given back in between.
pub fn each_of(owner: u64, mut call: impl FnMut(&Arena)) {
    let mut after = 0;
    loop {
        let found = locked(|arenas| {
            let mut higher = arenas.range((Bound::Excluded(after), Bound::Unbounded));
            let (&base, arena) = higher.find(|(_, arena)| arena.owner == owner)?;
            call(arena);
            Some(base)
        });
        match found {
            Some(base) => after = base,
            None => return,
        }
    }
}

/// Keeps the table as it is until [`unlock`], in both processes of a fork.
pub fn lock() {
    TABLE.lock.take();
}

pub fn unlock() {
    TABLE.lock.release();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arena_off_its_boundary_has_a_pool_less() {
        let whole = Arena::new(1 << 30, 1 << 20, 0);
        assert_eq!((whole.first, whole.pools), (1 << 30, 64));
        let off = Arena::new((1 << 30) + 4096, 1 << 20, 0);
        assert_eq!((off.first, off.pools), ((1 << 30) + POOL_SIZE, 63));
        assert_eq!(Arena::new(1 << 30, 2 << 20, 0).pools, MOST_POOLS);
    }

    #[test]
    fn pools_are_added_once_and_removed_once() {
        let pools = Pools::default();
        assert!(pools.is_empty());
        for number in [0, 63, 64, 127] {
            assert!(pools.add(number) && !pools.add(number) && pools.has(number), "{number}");
            assert!(pools.remove(number) && !pools.remove(number) && !pools.has(number), "{number}");
        }
        assert!(pools.is_empty());
    }

    #[test]
    fn arenas_are_found_by_owner_and_by_pool_and_gone_when_they_are_given_back() {
        let base = |number: usize| (1 << 40) + (number << 20);
        let before = held();
        for number in 0..4 {
            put(base(number), 1 << 20, 7_000 + number as u64 % 2);
        }
        // A chunk of frames, and a request that was refused.
        put(base(9), 16 << 10, 7_000);
        put(0, 1 << 20, 7_000);
        assert_eq!(held() - before, 4 << 20);
        let mut found = Vec::new();
        each_of(7_001, |arena| found.push(arena.base));
        assert_eq!(found, [base(1), base(3)]);
        // SAFETY: these arenas are this test's.
        assert_eq!(unsafe { next_of(7_000, base(0)) }.map(|arena| arena.base), Some(base(2)));
        assert!(has_pool(base(2) + 5 * POOL_SIZE) && !has_pool(base(4)) && !has_pool(base(0) - POOL_SIZE));
        for number in 0..4 {
            remove(base(number), 1 << 20);
            remove(base(number), 1 << 20);
        }
        assert!(!has_pool(base(2)));
        assert_eq!(held(), before);
    }
}
