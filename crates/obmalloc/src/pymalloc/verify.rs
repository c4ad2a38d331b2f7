//! A walk over every structure of a pymalloc, for `verify()` and for property tests.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use super::arena::NO_ARENA;
use super::pool::{NO_CLASS, PoolHeader};
use super::{Location, Pymalloc};
use crate::interrupt::Interrupt;
use crate::profile::POOL_OVERHEAD;

/// A broken structure: the first that a walk over a heap found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Corruption {
    /// What is wrong.
    pub what: String,
    /// The address of the pool, arena or block concerned.
    pub address: usize,
}

impl fmt::Display for Corruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (at {:#x})", self.what, self.address)
    }
}

impl core::error::Error for Corruption {}

macro_rules! ensure {
    ($holds:expr, $address:expr, $($what:tt)+) => {
        if !$holds {
            return Err(Corruption { what: alloc::format!($($what)+), address: $address });
        }
    };
}

impl Pymalloc {
    /// Walks arenas, pools and free lists. The walk ends early if it is interrupted.
    ///
    /// # Errors
    /// The first broken structure.
    pub fn verify(&self, interrupt: Interrupt) -> Result<(), Corruption> {
        self.verify_arenas()?;
        let used = self.verify_used_lists()?;
        let (mut used_seen, patience) = (0, interrupt.patience());
        let (mut all_kept, mut all_forgotten) = (0, 0);
        for arena in self.arenas.iter().filter(|arena| arena.address != 0) {
            let mut free = Vec::new();
            let mut pool = arena.freepools;
            while !pool.is_null() {
                let address = self.address_of(pool);
                let carved = (arena.first_pool(&self.geometry)..arena.pool_address).contains(&address);
                ensure!(carved && self.header_at(address) == pool, address, "a free pool lies outside its arena's carved pools");
                ensure!(!free.contains(&address), address, "a pool stands twice in its arena's free pools");
                free.push(address);
                // SAFETY: checked just above to be a carved pool's header.
                pool = unsafe { (*pool).nextpool };
            }
            let uncarved = arena.uncarved(&self.geometry) / self.geometry.pool_size;
            let expected = free.len() + uncarved;
            ensure!(
                arena.nfreepools as usize == expected,
                arena.address,
                "an arena counts {} free pools, but has {expected}",
                arena.nfreepools
            );
            // SAFETY: checked above to be headers of carved pools.
            let kept = free.iter().filter(|&&pool| unsafe { (*self.header_at(pool)).szidx } != NO_CLASS).count();
            ensure!(
                arena.kept as usize == kept,
                arena.address,
                "an arena counts {} empty pools with a free list, but has {kept}",
                arena.kept
            );
            all_kept += kept;
            all_forgotten += free.len() - kept;
            for address in (arena.first_pool(&self.geometry)..arena.pool_address).step_by(self.geometry.pool_size) {
                let header = self.header_at(address);
                // SAFETY: carved pools have initialised headers.
                let header = unsafe { &*header };
                ensure!(
                    (header.count == 0) == free.contains(&address),
                    address,
                    "a pool with {} blocks is in the wrong list",
                    header.count
                );
                ensure!(header.count == 0 || header.szidx != NO_CLASS, address, "a pool with blocks has no size class");
                self.verify_pool(address, header)?;
                if patience.is_over_after(self.geometry.pool_size / self.geometry.alignment) {
                    return Ok(());
                }
                used_seen += usize::from(header.count != 0 && !header.freeblock.is_null());
            }
        }
        let counted = (self.trims.kept, self.trims.forgotten);
        ensure!(
            counted == (all_kept, all_forgotten),
            0,
            "empty pools with and without a free list: {counted:?} are counted, but {:?} are there",
            (all_kept, all_forgotten)
        );
        ensure!(used == used_seen, 0, "{used} pools are in the lists of used pools, but {used_seen} pools are used");
        Ok(())
    }

    /// Checks that each class's list holds pools of that class with free blocks and blocks in use. Returns the number of pools in all lists.
    fn verify_used_lists(&self) -> Result<usize, Corruption> {
        let most = self.narenas_currently_allocated * self.geometry.pools_per_arena();
        let mut seen = 0;
        for class in 0..self.geometry.size_classes() {
            // SAFETY: invariant 1: one sentinel per class.
            let head = unsafe { self.usedpools.add(class) };
            // SAFETY: as above.
            let mut pool = unsafe { (*head).nextpool };
            while pool != head {
                let address = self.address_of(pool);
                let carved = matches!(self.locate(address + POOL_OVERHEAD), Location::Block { .. });
                ensure!(carved, address, "the list of size class {class} leads out of the pools");
                // SAFETY: a carved pool's header.
                let (header, next) = unsafe { (&*pool, (*pool).nextpool) };
                ensure!(
                    usize::from(header.szidx) == class,
                    address,
                    "a pool of class {} is in the list of class {class}",
                    header.szidx
                );
                ensure!(
                    header.count != 0 && !header.freeblock.is_null(),
                    address,
                    "a pool that is full or empty is in a list of used pools"
                );
                // SAFETY: `next` is the sentinel or, as the next turn checks, a header; its back link is only compared.
                let back = if next == head || self.is_header(next) { unsafe { (*next).prevpool } } else { core::ptr::null_mut() };
                ensure!(back == pool, address, "the links of a list of used pools do not agree");
                seen += 1;
                ensure!(seen <= most, address, "a list of used pools runs in a circle");
                pool = next;
            }
        }
        Ok(seen)
    }

    fn is_header(&self, pool: *mut PoolHeader) -> bool {
        matches!(self.locate(self.address_of(pool) + POOL_OVERHEAD), Location::Block { .. })
    }

    /// Checks that a pool's free list stays inside the pool, visits no block twice, and has as many blocks as are not in use.
    fn verify_pool(&self, address: usize, header: &PoolHeader) -> Result<(), Corruption> {
        if header.szidx == NO_CLASS {
            return Ok(());
        }
        let class = usize::from(header.szidx);
        ensure!(
            class < self.geometry.size_classes(),
            address,
            "a pool has size class {class}, of {}",
            self.geometry.size_classes()
        );
        let touched = self.touched_blocks(header);
        ensure!(touched <= self.geometry.blocks_per_pool(class), address, "a pool has carved more blocks than it holds");
        let mut free = alloc::vec![false; touched];
        let mut count = 0;
        for index in self.free_list(address, header) {
            let index = index?;
            ensure!(!free[index], address, "a free list visits block {index} twice");
            free[index] = true;
            count += 1;
        }
        let in_use = touched - count;
        ensure!(
            header.count as usize == in_use,
            address,
            "a pool counts {} blocks in use, but {in_use} are not free",
            header.count
        );
        ensure!(
            count != 0 || touched == self.geometry.blocks_per_pool(class),
            address,
            "a pool has no free block, but room for more"
        );
        Ok(())
    }

    /// How many blocks of a pool with a size class have been part of its free list.
    pub(super) fn touched_blocks(&self, header: &PoolHeader) -> usize {
        let size = self.geometry.block_size(usize::from(header.szidx));
        ((usize::from(header.nextoffset) << self.alignment_shift) - POOL_OVERHEAD) / size
    }

    /// The indices of the blocks in the free list of a pool with a size class. A link that leads out of the pool gives an error and ends the
    /// iterator. If the list runs in a circle, the iterator does not end.
    pub(super) fn free_list(&self, address: usize, header: &PoolHeader) -> impl Iterator<Item = Result<usize, Corruption>> {
        let (size, touched) = (self.geometry.block_size(usize::from(header.szidx)), self.touched_blocks(header));
        let mut block = header.freeblock;
        core::iter::from_fn(move || {
            if block.is_null() {
                return None;
            }
            let offset = block.addr().wrapping_sub(address).wrapping_sub(POOL_OVERHEAD);
            let index = offset / size;
            if !offset.is_multiple_of(size) || index >= touched {
                let what = alloc::format!("a free list leads to {block:p}, which is no block of its pool");
                block = core::ptr::null_mut();
                return Some(Err(Corruption { what, address }));
            }
            // SAFETY: checked just above to be a block of this pool, in its free list: its first word is the link, whatever that is.
            block = unsafe { block.cast::<*mut u8>().read() };
            Some(Ok(index))
        })
    }

    /// Checks that the usable arenas ascend in their number of free pools, and that `nfp2lasta` points to the last of each number.
    fn verify_arenas(&self) -> Result<(), Corruption> {
        let arenas = || self.arenas.iter().filter(|arena| arena.address != 0);
        let held = arenas().count();
        ensure!(
            held == self.narenas_currently_allocated,
            0,
            "{} arenas are counted, but {held} are held",
            self.narenas_currently_allocated
        );
        let uncarved: usize = arenas().map(|arena| arena.uncarved(&self.geometry)).sum();
        ensure!(uncarved == self.uncarved, 0, "{} bytes are counted that were never carved, but {uncarved} are", self.uncarved);
        let mut last = alloc::vec![NO_ARENA; self.nfp2lasta.len()];
        let (mut usable, mut before, mut fewest) = (0, NO_ARENA, 1);
        let mut index = self.usable_arenas;
        while index != NO_ARENA {
            ensure!((index as usize) < self.arenas.len(), 0, "the usable arenas lead to arena {index}, of {}", self.arenas.len());
            let arena = &self.arenas[index as usize];
            let free = arena.nfreepools as usize;
            ensure!(arena.address != 0, 0, "arena {index} is usable but not held");
            ensure!(arena.prevarena == before, arena.address, "the links of the usable arenas do not agree");
            ensure!(
                free >= fewest && free < last.len(),
                arena.address,
                "an arena with {free} free pools follows one with {fewest}"
            );
            usable += 1;
            ensure!(usable <= held, arena.address, "the usable arenas run in a circle");
            last[free] = index;
            (before, fewest, index) = (index, free, arena.nextarena);
        }
        ensure!(last == self.nfp2lasta, 0, "the fingers into the usable arenas are wrong");
        let with_free_pools = self.arenas.iter().filter(|arena| arena.address != 0 && arena.nfreepools != 0).count();
        ensure!(usable == with_free_pools, 0, "{usable} arenas are usable, but {with_free_pools} have free pools");
        Ok(())
    }
}
