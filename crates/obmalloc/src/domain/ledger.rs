//! The ledger: which addresses are live blocks, and in which domain. It lies beside the blocks, so that no misuse can reach it.
//!
//! Blocks in the heap's region have two bits per unit of alignment in a table that runs parallel to it. All other blocks (the C
//! library's, and those in arenas of a caller's arena allocator) are in a hash table with their size. A second hash table has the sizes of
//! *parts*: blocks from an allocator that was put in, which may be smaller than the pymalloc block that they lie in.

use core::mem;
use core::ptr::NonNull;

use alloc::collections::VecDeque;

use super::{Domain, Fault, FaultKind};
use crate::address_hash::AddressMap;
use crate::os;
use crate::pymalloc::{Location, Pymalloc};

/// How many freed blocks outside the region are remembered, so that a double free is not taken for a foreign address.
const FREED_REMEMBERED: usize = 1 << 16;

/// What a caller wants to do with an address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Free,
    Use,
}

/// The state of an address. For addresses in the region it is two bits of the table; for others it is in the entry of the hash table.
const NEVER: u8 = 0;
const FREED: u8 = 1;
const MEM: u8 = 2;
const OBJ: u8 = 3;

/// A block outside the region. It has two fields, so that it is passed in registers. With three, the compiler would store them one by one and
/// load them together, and the processor would wait for that.
#[derive(Clone, Copy)]
struct Entry {
    size: usize,
    presence: Presence,
}

/// The state of a block outside the region.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Presence {
    /// A block of that domain.
    Live(Domain),
    /// Freed but still in quarantine, or being resized; its entry must not be evicted.
    LaidUp,
    /// Freed; its entry may be evicted.
    Freed,
}

impl Entry {
    fn is_live(&self) -> bool {
        matches!(self.presence, Presence::Live(_))
    }

    /// The domain, if the block is live.
    fn domain(&self) -> Option<Domain> {
        if let Presence::Live(domain) = self.presence { Some(domain) } else { None }
    }

    /// Whether the heap still holds the block's memory.
    fn is_held(&self) -> bool {
        self.presence != Presence::Freed
    }
}

pub(crate) struct Ledger {
    base: usize,
    len: usize,
    /// `len`; 0 if every block must be looked up in `parts` too (the long way).
    quick_len: usize,
    alignment_mask: usize,
    alignment_shift: u32,
    /// Dangling where `len` is 0.
    bits: NonNull<u8>,
    bits_size: usize,
    /// The blocks outside the region.
    outside_region: AddressMap<Entry>,
    /// Sizes of the live blocks that came from another allocator than the heap's own.
    parts: AddressMap<usize>,
    /// Whether blocks take the long way whatever `parts` says.
    long: bool,
    freed: VecDeque<usize>,
    /// Whether every address is to be refused.
    is_closed: bool,
}

impl Ledger {
    /// The ledger of an unused pymalloc; `None` when there is no address space for it.
    pub fn new(pymalloc: &Pymalloc) -> Option<Self> {
        let (base, len) = pymalloc.region();
        let alignment = pymalloc.geometry().alignment;
        let bits_size = len / alignment / 4;
        let bits = if bits_size == 0 { NonNull::dangling() } else { os::map(bits_size)? };
        let mut freed = VecDeque::new();
        freed.try_reserve_exact(16).ok()?;
        Some(Self {
            base,
            len,
            quick_len: len,
            alignment_mask: alignment - 1,
            alignment_shift: alignment.trailing_zeros(),
            bits,
            bits_size,
            outside_region: AddressMap::default(),
            parts: AddressMap::default(),
            long: false,
            freed,
            is_closed: false,
        })
    }

    /// The byte and the shift in it of an address in the region that is aligned as blocks are.
    #[inline(always)]
    fn place(&self, address: usize) -> Option<(*mut u8, u32)> {
        self.place_within(self.len, address)
    }

    #[inline(always)]
    fn place_within(&self, len: usize, address: usize) -> Option<(*mut u8, u32)> {
        let offset = address.wrapping_sub(self.base);
        if offset >= len || offset & self.alignment_mask != 0 {
            return None;
        }
        let index = offset >> self.alignment_shift;
        // SAFETY: the table has two bits for every unit of the region.
        Some((unsafe { self.bits.as_ptr().add(index >> 2) }, (index as u32 & 3) * 2))
    }

    /// Whether every live block in the region begins where pymalloc's block begins and is as large.
    pub fn is_plain(&self) -> bool {
        self.quick_len != 0
    }

    /// The part of the table for `size` bytes of the region from `offset` on; `None` without a region.
    pub fn part_of_table(&self, offset: usize, size: usize) -> Option<NonNull<[u8]>> {
        if offset + size > self.len {
            return None;
        }
        let (begin, bytes) = (offset >> self.alignment_shift >> 2, size >> self.alignment_shift >> 2);
        // SAFETY: the table has two bits for every unit of the region.
        Some(NonNull::slice_from_raw_parts(unsafe { self.bits.add(begin) }, bytes))
    }

    /// Makes sure that [`insert`](Self::insert) has room for a block outside the region.
    #[inline]
    pub fn reserve(&mut self) -> bool {
        self.outside_region.try_reserve(1).is_ok()
    }

    /// Sets whether [`insert_quickly`](Self::insert_quickly) and [`strike_out`](Self::strike_out) leave every block to the long way. While there
    /// are parts, they always do.
    pub fn take_long_way(&mut self, long: bool) {
        self.long = long;
        self.quick_len = if long || !self.parts.is_empty() { 0 } else { self.len };
    }

    /// Makes sure that [`insert_part`](Self::insert_part) has room.
    pub fn reserve_part(&mut self) -> bool {
        self.parts.try_reserve(1).is_ok() && self.reserve()
    }

    /// Enters a part. [`reserve_part`](Self::reserve_part) has made room.
    pub fn insert_part(&mut self, address: usize, size: usize, domain: Domain) {
        let entered = self.insert(address, size, domain);
        debug_assert!(entered, "room has been made");
        self.parts.insert(address, size);
        self.quick_len = 0;
    }

    /// As [`insert`](Self::insert), for a block from one of the heap's own allocators, where a part may be in quarantine.
    #[inline]
    pub fn insert_whole(&mut self, address: usize, size: usize, domain: Domain) -> bool {
        let is_entered = self.insert(address, size, domain);
        if is_entered && !self.parts.is_empty() {
            self.forget_part(address);
        }
        is_entered
    }

    /// Forgets the sizes of parts that turn out to be whole blocks.
    pub fn forget_whole_parts(&mut self, is_block: impl Fn(usize) -> bool) {
        self.parts.retain(|&address, _| !is_block(address));
        self.take_long_way(self.long);
    }

    /// Enters a block in the region. If the block must take the long way, changes nothing and returns false.
    #[inline(always)]
    pub fn insert_quickly(&mut self, address: usize, domain: Domain) -> bool {
        let Some((byte, shift)) = self.place_within(self.quick_len, address) else { return false };
        let state = if domain == Domain::Mem { MEM } else { OBJ };
        // SAFETY: `place_within` gives a byte of the table.
        unsafe { *byte = *byte & !(3 << shift) | state << shift };
        true
    }

    /// Enters a block; false when there is no room for one outside the region (see [`reserve`](Self::reserve)).
    #[inline]
    pub fn insert(&mut self, address: usize, size: usize, domain: Domain) -> bool {
        if let Some((byte, shift)) = self.place(address) {
            let state = if domain == Domain::Mem { MEM } else { OBJ };
            // SAFETY: `place` gives a byte of the table.
            unsafe { *byte = *byte & !(3 << shift) | state << shift };
            return true;
        }
        self.insert_outside_region(address, size, domain)
    }

    #[inline]
    fn insert_outside_region(&mut self, address: usize, size: usize, domain: Domain) -> bool {
        self.reserve() && {
            self.outside_region.insert(address, Entry { size, presence: Presence::Live(domain) });
            true
        }
    }

    /// Removes a live block of `domain` in the region. If there is none at `address`, or it must take the long way, changes nothing and returns
    /// false.
    #[inline(always)]
    pub fn strike_out(&mut self, domain: Domain, address: usize) -> bool {
        let state = match domain {
            Domain::Raw => return false,
            Domain::Mem => MEM,
            Domain::Obj => OBJ,
        };
        let Some((byte, shift)) = self.place_within(self.quick_len, address) else { return false };
        // SAFETY: as in `insert`.
        unsafe {
            let found = *byte >> shift & 3 == state;
            if found {
                *byte ^= (state ^ FREED) << shift;
            }
            found
        }
    }

    /// As [`strike_out`](Self::strike_out), outside the region.
    pub fn strike_out_outside_region(&mut self, domain: Domain, address: usize) -> bool {
        if self.is_closed || self.long || !self.parts.is_empty() {
            return false;
        }
        let Some(entry) = self.outside_region.get_mut(&address).filter(|entry| entry.presence == Presence::Live(domain)) else {
            return false;
        };
        entry.presence = Presence::Freed;
        self.remember_freed(address);
        true
    }

    /// Removes a live block.
    #[inline]
    pub fn remove(&mut self, address: usize) {
        if !self.remove_quickly(address) {
            self.remove_slowly(address);
        }
    }

    /// Removes a live block in the region. If the block must take the long way, changes nothing and returns false.
    #[inline(always)]
    pub fn remove_quickly(&mut self, address: usize) -> bool {
        let Some((byte, shift)) = self.place_within(self.quick_len, address) else { return false };
        // SAFETY: as in `insert`.
        unsafe { *byte = *byte & !(3 << shift) | FREED << shift };
        true
    }

    #[cold]
    #[inline(never)]
    fn remove_slowly(&mut self, address: usize) {
        self.forget_part(address);
        if let Some((byte, shift)) = self.place(address) {
            // SAFETY: as in `insert`.
            unsafe { *byte = *byte & !(3 << shift) | FREED << shift };
        } else if let Some(entry) = self.outside_region.get_mut(&address) {
            entry.presence = Presence::Freed;
            self.remember_freed(address);
        }
    }

    fn forget_part(&mut self, address: usize) {
        if !self.parts.is_empty() && self.parts.remove(&address).is_some() {
            self.take_long_way(self.long);
        }
    }

    /// Removes a live block that goes into quarantine or is being resized. Its entry is not evicted until [`remember`](Self::remember).
    pub fn lay_up(&mut self, address: usize) {
        if let Some((byte, shift)) = self.place(address) {
            // SAFETY: as in `insert`.
            unsafe { *byte = *byte & !(3 << shift) | FREED << shift };
        } else if let Some(entry) = self.outside_region.get_mut(&address) {
            entry.presence = Presence::LaidUp;
        }
    }

    /// Marks a block that was [laid up](Self::lay_up) as freed: its entry may be evicted from now on. Does nothing if a new live block is there.
    pub fn remember(&mut self, address: usize) {
        if self.domain_of(address).is_some() {
            return;
        }
        self.forget_part(address);
        if self.place(address).is_some() {
            return;
        }
        let Some(entry) = self.outside_region.get_mut(&address).filter(|entry| entry.presence == Presence::LaidUp) else {
            return;
        };
        entry.presence = Presence::Freed;
        self.remember_freed(address);
    }

    /// Remembers the address of a freed block, and forgets the oldest one if there are too many.
    fn remember_freed(&mut self, address: usize) {
        if self.freed.len() == FREED_REMEMBERED || self.freed.try_reserve(1).is_err() {
            // Without room for more, the oldest is forgotten.
            let oldest = self.freed.pop_front().unwrap_or(address);
            if self.outside_region.get(&oldest).is_some_and(|entry| entry.presence == Presence::Freed) {
                self.outside_region.remove(&oldest);
            }
        }
        if self.freed.len() < self.freed.capacity() {
            self.freed.push_back(address);
        }
    }

    /// Makes a block live again that was [laid up](Self::lay_up).
    pub fn revive(&mut self, address: usize, domain: Domain) {
        if self.place(address).is_some() {
            self.insert(address, 0, domain);
        } else if let Some(entry) = self.outside_region.get_mut(&address) {
            entry.presence = Presence::Live(domain);
        }
    }

    /// Enters a block again that [`remove`](Self::remove) has removed. Without memory for that, the block is lost.
    pub fn reenter(&mut self, address: usize, size: usize, domain: Domain, is_part: bool) {
        if is_part && self.reserve_part() {
            self.insert_part(address, size, domain);
        } else if !is_part {
            self.insert(address, size, domain);
        }
    }

    /// Remembers an address, at which no block was entered, as that of a freed block. Does nothing without memory for that.
    pub fn note_freed(&mut self, address: usize) {
        if self.domain_of(address).is_some() {
            return;
        }
        if self.place(address).is_none() {
            if !self.reserve() {
                return;
            }
            self.outside_region.insert(address, Entry { size: 0, presence: Presence::Live(Domain::Raw) });
        }
        self.remove(address);
    }

    /// Forgets that a block was freed at an address, because its memory is a grant from now on.
    #[cold]
    pub fn forget_freed(&mut self, address: usize) {
        if self.state(address) == FREED
            && let Some((byte, shift)) = self.place(address)
        {
            // SAFETY: as in `insert`.
            unsafe { *byte &= !(3 << shift) };
        } else if self.outside_region.get(&address).is_some_and(|entry| entry.presence == Presence::Freed) {
            self.outside_region.remove(&address);
        }
    }

    /// The domain of the live block at `address`, if there is one.
    #[inline]
    pub fn domain_of(&self, address: usize) -> Option<Domain> {
        match self.state(address) {
            MEM => Some(Domain::Mem),
            OBJ => Some(Domain::Obj),
            NEVER if self.is_closed => None,
            NEVER => self.outside_region.get(&address).and_then(Entry::domain),
            _ => None,
        }
    }

    #[inline]
    fn state(&self, address: usize) -> u8 {
        match self.place(address) {
            // SAFETY: as in `insert`.
            Some((byte, shift)) => unsafe { *byte >> shift & 3 },
            None => NEVER,
        }
    }

    /// Bytes of the live block at `address`, when it lies outside the region.
    pub fn size_outside_region(&self, address: usize) -> Option<usize> {
        self.outside_region.get(&address).filter(|entry| entry.is_live()).map(|entry| entry.size)
    }

    /// Bytes of the live block at `address`, if another allocator than the heap's own gave it.
    pub fn size_of_part(&self, address: usize) -> Option<usize> {
        if self.parts.is_empty() { None } else { self.parts.get(&address).copied() }
    }

    /// Whether `address` is a live block of `domain`.
    ///
    /// # Errors
    /// What is wrong with it.
    #[inline]
    pub fn check(&self, pymalloc: &Pymalloc, domain: Domain, address: usize, purpose: Purpose) -> Result<(), Fault> {
        let state = self.state(address);
        if (state == OBJ && domain == Domain::Obj) || (state == MEM && domain == Domain::Mem) {
            return Ok(());
        }
        self.check_slowly(pymalloc, domain, address, purpose)
    }

    #[cold]
    fn check_slowly(&self, pymalloc: &Pymalloc, used: Domain, address: usize, purpose: Purpose) -> Result<(), Fault> {
        let fault = |kind, allocated, base| Err(Fault { allocated, base, ..Fault::new(kind, address, used) });
        if self.is_closed {
            return fault(FaultKind::HeapClosed, None, None);
        }
        if let Some(domain) = self.domain_of(address) {
            return if domain == used { Ok(()) } else { fault(FaultKind::WrongDomain, Some(domain), None) };
        }
        if self.state(address) == FREED || self.outside_region.get(&address).is_some_and(|entry| !entry.is_live()) {
            let kind = if purpose == Purpose::Free { FaultKind::DoubleFree } else { FaultKind::UseAfterFree };
            return fault(kind, None, None);
        }
        match self.block_around(pymalloc, address) {
            Some((base, domain)) => fault(FaultKind::InteriorPointer, Some(domain), Some(base)),
            None => fault(FaultKind::ForeignPointer, None, None),
        }
    }

    /// The live block that `address` lies inside of.
    fn block_around(&self, pymalloc: &Pymalloc, address: usize) -> Option<(usize, Domain)> {
        match pymalloc.locate(address) {
            Location::Block { begin, .. } => {
                // The live block may begin behind a debug hook's header, or where another allocator has put it.
                let mut bases = (begin..=address).rev().filter(|base| base & self.alignment_mask == 0);
                let found = bases.find_map(|base| self.domain_of(base).map(|domain| (base, domain)));
                found.filter(|&(base, _)| self.size_of_part(base).is_none_or(|size| address - base < size))
            }
            Location::NoBlock => None,
            Location::Outside => self
                .outside_region
                .iter()
                .filter(|&(&base, entry)| base < address && address - base < entry.size)
                .find_map(|(&base, entry)| entry.domain().map(|domain| (base, domain))),
        }
    }

    /// Whether `address` is a live block, or lies in one.
    pub fn owns(&self, pymalloc: &Pymalloc, address: usize) -> bool {
        self.domain_of(address).is_some() || self.block_around(pymalloc, address).is_some()
    }

    /// Addresses of the blocks outside the region whose memory the heap still holds.
    pub fn whole_outside_region(&self) -> impl Iterator<Item = usize> {
        self.outside_region.iter().filter(|(_, entry)| entry.is_held()).map(|(&address, _)| address)
    }

    /// The address and size of the part of the table that covers the first `used` bytes of the region.
    pub fn used_table(&self, used: usize) -> (NonNull<u8>, usize) {
        (self.bits, (used >> self.alignment_shift).div_ceil(4).min(self.bits_size))
    }

    /// How many blocks outside the region have an entry, live or not.
    pub fn count_outside_region(&self) -> usize {
        self.outside_region.len()
    }

    /// Removes every block outside the region and returns those of [`whole_outside_region`](Self::whole_outside_region).
    pub fn take_outside_region(&mut self) -> WholeOutsideRegion {
        self.freed = VecDeque::new();
        WholeOutsideRegion(mem::take(&mut self.outside_region).into_iter())
    }

    /// From now on no address is a block: the heap was closed. Entries of blocks outside the region stay, so that these can be given back.
    pub fn close(&mut self) {
        self.is_closed = true;
        (self.len, self.quick_len) = (0, 0);
    }

    /// Whether a pymalloc block of `size` bytes is a live block or holds one.
    pub fn is_live(&self, begin: usize, size: usize) -> bool {
        let holds = || (begin..begin + size).step_by(self.alignment_mask + 1).any(|base| self.domain_of(base).is_some());
        self.domain_of(begin).is_some() || ((self.long || !self.parts.is_empty()) && holds())
    }
}

/// The blocks outside the region whose memory the heap held.
pub(crate) struct WholeOutsideRegion(<AddressMap<Entry> as IntoIterator>::IntoIter);

impl Iterator for WholeOutsideRegion {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        self.0.find(|(_, entry)| entry.is_held()).map(|(address, _)| address)
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        if self.bits_size != 0 {
            // SAFETY: mapped by `new` with this size; the ledger is gone.
            unsafe { os::unmap(self.bits, self.bits_size) };
        }
    }
}
