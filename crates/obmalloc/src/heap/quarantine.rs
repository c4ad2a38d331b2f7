//! The quarantine: freed blocks whose memory is not used again yet. Meanwhile a second free of such a block is found, because no new block
//! can lie at its address. CPython has nothing like it.

#![forbid(unsafe_code)]

use alloc::collections::VecDeque;

use crate::address_hash::AddressMap;
use crate::domain::Domain;

/// Bytes that each block counts beyond its size, which bounds the number of empty blocks too.
const OVERHEAD: usize = 32;

/// Invariant: `order` has the addresses of `blocks`, the oldest first.
pub(crate) struct Quarantine {
    limit: usize,
    bytes: usize,
    order: VecDeque<usize>,
    blocks: AddressMap<Waiting>,
    /// How many blocks are counted.
    counted: usize,
}

/// A block in quarantine.
#[derive(Clone, Copy)]
pub(crate) struct Waiting {
    pub domain: Domain,
    pub size: usize,
    /// Whether [`counted`](Quarantine::counted) includes it: a heap counts it among its allocated blocks.
    pub is_counted: bool,
}

impl Quarantine {
    /// An empty quarantine that holds at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { limit, bytes: 0, order: VecDeque::new(), blocks: AddressMap::default(), counted: 0 }
    }

    /// Whether there is a quarantine at all.
    pub fn is_kept(&self) -> bool {
        self.limit != 0
    }

    /// How many of the quarantined blocks are counted.
    pub fn counted(&self) -> usize {
        self.counted
    }

    /// Whether a block in quarantine begins at a multiple of `alignment` within `size` bytes from `begin`.
    pub fn has_within(&self, begin: usize, size: usize, alignment: usize) -> bool {
        !self.blocks.is_empty() && (begin..begin + size).step_by(alignment).any(|address| self.blocks.contains_key(&address))
    }

    /// Puts a block into quarantine; false when there is no memory to remember it.
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

    /// Takes the oldest block out, if the quarantine is above its limit.
    pub fn leave_if_over(&mut self) -> Option<(usize, Waiting)> {
        if self.bytes > self.limit { self.leave() } else { None }
    }

    /// Takes the oldest block out.
    pub fn leave(&mut self) -> Option<(usize, Waiting)> {
        let address = self.order.pop_front()?;
        let block = self.blocks.remove(&address)?;
        self.bytes -= block.size + OVERHEAD;
        self.counted -= usize::from(block.is_counted);
        Some((address, block))
    }
}
