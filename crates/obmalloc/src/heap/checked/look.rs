//! Calls that look at a checked heap and change nothing: sizes, owners, arenas, pools, statistics.

use alloc::vec::Vec;

use super::CheckedHeap;
use crate::domain::{Domain, Fault, FaultKind, Purpose};
use crate::profile::{Geometry, Profile};
use crate::pymalloc::{ArenaInfo, Corruption, Location, PoolInfo, Stats};

impl CheckedHeap {
    /// The release.
    pub fn profile(&self) -> &Profile {
        // SAFETY: initialised, and never changed.
        unsafe { &(*self.inner().domains()).profile }
    }

    /// The sizes in force.
    pub fn geometry(&self) -> Geometry {
        *self.inner().pymalloc().geometry()
    }

    /// Bytes that may be used at `address`: the block size; for a raw block, and for one with guard bytes, the size that was requested.
    ///
    /// # Errors
    /// When `address` is no live block of this heap and domain.
    pub fn usable_size(&self, domain: Domain, address: usize) -> Result<usize, Fault> {
        let inner = self.inner();
        inner.check(domain, address, Purpose::Use)?;
        // Parts first: a part may begin where a hook gave the memory that it lies in.
        let known = inner.ledger().size_of_part(address).or_else(|| inner.hooks()?.size_of(domain, address));
        if let Some(size) = known {
            return Ok(size);
        }
        match inner.pymalloc().locate(address) {
            Location::Block { size, .. } => Ok(size),
            // A live block that lies in no pool has an entry, unless something wrote to a link of that pool.
            _ => inner.ledger().size_outside_region(address).ok_or(Fault::new(FaultKind::HeapCorrupted, address, domain)),
        }
    }

    /// Whether `address` is one of this heap's live blocks, or lies inside one.
    pub fn owns(&self, address: usize) -> bool {
        self.inner().ledger().owns(self.inner().pymalloc(), address)
    }

    delegate! { |heap| heap.inner().pymalloc();
        /// As [`Heap::region`](crate::Heap::region).
        pub fn region(&self) -> (usize, usize);
        /// As [`Heap::arenas`](crate::Heap::arenas).
        pub fn arenas(&self) -> Vec<ArenaInfo>;
        /// As [`Heap::arena_base`](crate::Heap::arena_base).
        pub fn arena_base(&self, address: usize) -> Option<usize>;
        /// As [`Heap::pool`](crate::Heap::pool).
        pub fn pool(&self, address: usize) -> Option<PoolInfo>;
        /// As [`Heap::used_blocks`](crate::Heap::used_blocks).
        pub fn used_blocks(&self, address: usize, used: &mut [bool]) -> Result<usize, Corruption>;
        /// As [`Heap::stats`](crate::Heap::stats).
        pub fn stats(&self) -> Stats;
    }

    /// Bytes held in arenas and raw blocks.
    #[inline]
    pub fn held(&self) -> usize {
        self.inner().account.held()
    }

    /// Whether a panic of a hook or a guest has closed the heap for good.
    pub fn is_closed(&self) -> bool {
        self.inner().is_closed()
    }

    /// As [`Heap::allocated_blocks`](crate::Heap::allocated_blocks).
    pub fn allocated_blocks(&self) -> usize {
        let inner = self.inner();
        let kept = inner.hooks().map_or(0, |hooks| hooks.parked()) + inner.quarantine().counted();
        inner.pymalloc().allocated_blocks().saturating_sub(kept)
    }
}
