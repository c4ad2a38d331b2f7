//! Trimming: the memory of empty pools goes back to the system while the arena stays.
//!
//! Until pymalloc takes an empty pool, it looks only at the pool's header. So a trim forgets the pool's free list, and the next request that
//! takes the pool carves it anew, like a pool that was never used. Requests take the same pools as without the trim, but may get other
//! blocks of them.

use super::arena::NO_ARENA;
use super::pool::NO_CLASS;
use super::{ArenaObject, Pymalloc};
use crate::interrupt::{Interrupt, STRIDE};
use crate::os;
use crate::profile::POOL_OVERHEAD;

/// What a trim gave back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Trimmed {
    /// Empty pools whose free lists were forgotten.
    pub pools: usize,
    /// Bytes that were resident and went back to the system: of these pools, of arenas that were given back, and of the uncarved ends of arenas.
    pub bytes: usize,
}

/// How many empty pools there are of each kind, and when the heap trims by itself.
pub(super) struct Trims {
    /// Empty pools that have a free list.
    pub kept: usize,
    /// Empty pools whose free list was forgotten.
    pub forgotten: usize,
    /// The heap trims when it has more empty pools with a free list; `usize::MAX` for never.
    bound: usize,
    /// The value that `bound` begins with.
    floor: usize,
    /// How many pools' free lists the last trim forgot.
    given: usize,
    /// How many such pools pymalloc has taken since.
    retaken: usize,
}

impl Trims {
    pub const NONE: Self = Self { kept: 0, forgotten: 0, bound: usize::MAX, floor: usize::MAX, given: 0, retaken: 0 };

    /// Counts an empty pool of this size class that is taken.
    pub fn take(&mut self, arena: &mut ArenaObject, szidx: u16) {
        if szidx == NO_CLASS {
            self.forgotten -= 1;
            self.retaken += 1;
        } else {
            arena.kept -= 1;
            self.kept -= 1;
        }
    }

    /// Counts a pool that has become empty.
    pub fn add(&mut self, arena: &mut ArenaObject) {
        arena.kept += 1;
        self.kept += 1;
    }

    /// Uncounts the pools of an arena that is given back; it has `free` carved pools, all empty.
    pub fn remove(&mut self, arena: &mut ArenaObject, free: usize) {
        self.forgotten -= free - arena.kept as usize;
        self.kept -= core::mem::take(&mut arena.kept) as usize;
    }

    /// Whether the heap is to trim by itself now.
    #[inline]
    pub fn are_due(&self) -> bool {
        self.kept > self.bound
    }
}

impl Pymalloc {
    /// From now on the heap trims by itself, when a pool becomes empty and the empty pools with a free list come to more than `bytes`. If the
    /// program takes more than half as many forgotten pools as the last trim forgot, the bound doubles: a program that fills and empties the
    /// same pools soon keeps them.
    pub fn trim_above(&mut self, bytes: usize) {
        let pools = bytes >> self.pool_shift;
        (self.trims.floor, self.trims.bound) = (pools, pools);
    }

    /// Gives the memory of empty pools back to the system, and that of arenas that were given back and of the uncarved ends of arenas. Arenas
    /// from another arena allocator than the heap's own are left alone. Under debug hooks, an empty pool in which something wrote to a block
    /// stays. The trim ends early if it is interrupted.
    pub fn trim(&mut self, interrupt: Interrupt) -> Trimmed {
        self.trims.bound = self.trims.floor;
        let trimmed = self.trim_arenas(interrupt);
        (self.trims.given, self.trims.retaken) = (trimmed.pools, 0);
        Trimmed { bytes: trimmed.bytes + self.region.give_retained_back(), ..trimmed }
    }

    /// Makes a trim that is [due](Trims::are_due).
    #[cold]
    pub(super) fn trim_by_itself(&mut self) {
        if 2 * self.trims.retaken > self.trims.given {
            self.trims.bound = self.trims.bound.max(1).saturating_mul(2);
            (self.trims.given, self.trims.retaken) = (0, 0);
        }
        if self.trims.are_due() {
            let trimmed = self.trim_arenas(Interrupt::NEVER);
            (self.trims.given, self.trims.retaken) = (trimmed.pools, 0);
        }
    }

    fn trim_arenas(&mut self, interrupt: Interrupt) -> Trimmed {
        let (mut all, patience) = (Trimmed::default(), interrupt.patience());
        for index in 0..self.arenas.len() {
            let arena = &self.arenas[index];
            if arena.address == 0 || arena.nfreepools == 0 || !arena.is_own {
                continue;
            }
            let trimmed = self.trim_arena(index);
            all = Trimmed { pools: all.pools + trimmed.pools, bytes: all.bytes + trimmed.bytes };
            // Giving pages back takes milliseconds an arena.
            if patience.is_over_after(if trimmed.bytes == 0 { self.geometry.pools_per_arena() } else { STRIDE }) {
                break;
            }
        }
        all
    }

    /// Forgets the free lists of an arena's empty pools, and gives back the memory of each run of free pools.
    fn trim_arena(&mut self, index: usize) -> Trimmed {
        let (arena, pool_size) = (self.arenas[index], self.geometry.pool_size);
        let first = arena.first_pool(&self.geometry);
        let end = arena.pool_address + arena.uncarved(&self.geometry);
        // A pool outside the region holds its own header.
        let is_in_region = first.wrapping_sub(self.base) < self.len;
        let mut trimmed = Trimmed::default();
        let (mut run, mut is_new) = (first, false);
        for pool in (first..end).step_by(pool_size) {
            let is_uncarved = pool >= arena.pool_address;
            let (is_free, forgets) = if is_uncarved { (true, false) } else { self.look_at_pool(pool) };
            if forgets {
                self.forget(index, pool);
                trimmed.pools += 1;
                is_new = true;
            }
            if is_free && is_in_region {
                continue;
            }
            if is_free {
                run = pool + POOL_OVERHEAD;
            }
            // SAFETY: the pools from `run` to here are free: no block of theirs is handed out, and their free lists are forgotten.
            trimmed.bytes += unsafe { os::give_back(run, if is_free { pool + pool_size } else { pool }, is_new) };
            (run, is_new) = (pool + pool_size, false);
        }
        // SAFETY: as above.
        trimmed.bytes += unsafe { os::give_back(run, end, is_new) };
        trimmed
    }

    /// Two answers: whether a carved pool's memory can go back, and whether the trim must forget its free list first.
    fn look_at_pool(&self, pool: usize) -> (bool, bool) {
        // SAFETY: the pool has been carved, so its header is initialised.
        let (count, szidx) = unsafe { ((*self.header_at(pool)).count, (*self.header_at(pool)).szidx) };
        let is_damaged = || self.is_watched_and_damaged(pool + POOL_OVERHEAD, pool + self.geometry.pool_size);
        let is_free = count == 0 && (szidx == NO_CLASS || !is_damaged());
        (is_free, is_free && szidx != NO_CLASS)
    }

    /// Forgets the free list of an empty pool that has one.
    fn forget(&mut self, index: usize, pool: usize) {
        self.arenas[index].kept -= 1;
        self.trims.kept -= 1;
        self.trims.forgotten += 1;
        self.forget_dead(pool, self.geometry.pool_size);
        // SAFETY: the pool has been carved, so its header is initialised, and nothing refers to it.
        unsafe { (*self.header_at(pool)).szidx = NO_CLASS };
    }

    /// As [`Heap::forget_pool`](crate::Heap::forget_pool).
    pub fn forget_pool(&mut self, pool: usize) -> bool {
        let index = match self.region.slot_of(pool) {
            Some(slot) => self.region.arena_of_slot.get(slot).copied().filter(|&index| index != NO_ARENA),
            None => self.arena_map.find(pool),
        };
        let Some(index) = index.map(|index| index as usize) else { return false };
        let arena = &self.arenas[index];
        let is_carved = (arena.first_pool(&self.geometry)..arena.pool_address).contains(&pool);
        if !is_carved || !pool.is_multiple_of(self.geometry.pool_size) {
            return false;
        }
        // SAFETY: the pool has been carved, so its header is initialised.
        let (count, szidx) = unsafe { ((*self.header_at(pool)).count, (*self.header_at(pool)).szidx) };
        if count == 0 && szidx != NO_CLASS {
            self.forget(index, pool);
        }
        count == 0
    }

    /// Bytes of the empty pools whose free lists were forgotten.
    pub fn forgotten(&self) -> usize {
        self.trims.forgotten << self.pool_shift
    }
}
