//! Freed blocks whose memory is not used again yet, so that for a while another free of one can be told from a free of the next block
//! there. CPython has nothing like it.

use alloc::collections::VecDeque;

use crate::address_hash::AddressMap;
use crate::domain::Domain;

/// What each waiting block counts beyond its size, so that empty ones do not wait in any number.
const OVERHEAD: usize = 32;

/// Invariant: `order` has the addresses of `blocks`, the one that has waited longest first.
pub(crate) struct Quarantine {
    limit: usize,
    bytes: usize,
    order: VecDeque<usize>,
    blocks: AddressMap<Waiting>,
    /// Those that are counted.
    counted: usize,
}

/// A block that waits.
#[derive(Clone, Copy)]
pub(crate) struct Waiting {
    pub domain: Domain,
    pub size: usize,
    /// Whether it counts among a heap's allocated blocks as long as it waits.
    pub is_counted: bool,
}

impl Quarantine {
    /// An empty quarantine that holds at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { limit, bytes: 0, order: VecDeque::new(), blocks: AddressMap::default(), counted: 0 }
    }

    /// Whether any block ever waits.
    pub fn is_kept(&self) -> bool {
        self.limit != 0
    }

    /// How many of the quarantined blocks are counted.
    pub fn counted(&self) -> usize {
        self.counted
    }

    /// Whether a block at any multiple of `alignment` in `size` bytes from `begin` on waits.
    pub fn has_within(&self, begin: usize, size: usize, alignment: usize) -> bool {
        !self.blocks.is_empty() && (begin..begin + size).step_by(alignment).any(|address| self.blocks.contains_key(&address))
    }

    /// Has a block wait; false when there is no memory to remember it.
    pub fn enter(&mut self, address: usize, block: Waiting) -> bool {
        if self.blocks.try_reserve(1).is_err() || self.order.try_reserve(1).is_err() {
            return false;
        }
        self.blocks.insert(address, block);
        self.order.push_back(address);
        self.bytes += block.size + OVERHEAD;
        self.counted += usize::from(block.is_counted);
        true
    }

    /// The block that has waited longest, if more wait than should.
    pub fn leave_if_over(&mut self) -> Option<(usize, Waiting)> {
        if self.bytes > self.limit { self.leave() } else { None }
    }

    /// The block that has waited longest.
    pub fn leave(&mut self) -> Option<(usize, Waiting)> {
        let address = self.order.pop_front()?;
        let block = self.blocks.remove(&address)?;
        self.bytes -= block.size + OVERHEAD;
        self.counted -= usize::from(block.is_counted);
        Some((address, block))
    }
}
