//! Notes which words of free blocks hold the debug hooks' fill, so that a later write to one is found.

use core::ptr::{self, NonNull};

use super::{Location, Pymalloc};
use crate::address_hash::AddressSet;
use crate::interrupt::Interrupt;
use crate::os;

/// The fill of memory that has been freed (`PYMEM_DEADBYTE`), as a word.
const DEAD_WORD: u64 = 0xdddd_dddd_dddd_dddd;
const WORD: usize = 8;
/// Bytes of memory that one byte of the table covers.
const BYTE_COVERS: usize = WORD * 8;

/// A bit for every word of the region, set where a free block holds [`DEAD_WORD`]. The first word of a free block, its link, never has its
/// bit set.
pub(crate) struct DeadWords {
    base: usize,
    len: usize,
    bits: NonNull<u8>,
    /// Damaged free blocks that have already been reported.
    told: AddressSet,
}

impl DeadWords {
    /// The table for a region that is not empty; `None` when there is no address space for it.
    pub fn new(base: usize, len: usize) -> Option<Self> {
        Some(Self { base, len, bits: os::map(len / WORD / 8)?, told: AddressSet::default() })
    }

    /// Calls `visit` with every word of a range in the region and the byte and the mask of its bit.
    fn each(&self, begin: usize, end: usize, mut visit: impl FnMut(*mut u64, &mut u8, u8) -> bool) {
        debug_assert!(begin >= self.base && end <= self.base + self.len, "the range lies in the region");
        let mut address = begin.next_multiple_of(WORD);
        while address + WORD <= end {
            let index = (address - self.base) / WORD;
            // SAFETY: the table has a bit for every word of the region.
            let byte = unsafe { &mut *self.bits.as_ptr().add(index / 8) };
            if !visit(ptr::with_exposed_provenance_mut(address), byte, 1 << (index % 8)) {
                return;
            }
            address += WORD;
        }
    }

    /// Notes the words of a freed block that hold the fill now.
    pub fn note(&mut self, begin: usize, end: usize) {
        self.each(begin, end, |word, byte, bit| {
            // SAFETY: the region is mapped, whichever heap has it.
            if unsafe { word.read() } == DEAD_WORD {
                *byte |= bit;
            }
            true
        });
    }

    /// Forgets all notes of a range.
    pub fn forget(&mut self, begin: usize, end: usize) {
        if (begin | end) & (BYTE_COVERS - 1) == 0 {
            let first = (begin - self.base) / BYTE_COVERS;
            // SAFETY: the table has a bit for every word of the region.
            unsafe { self.bits.as_ptr().add(first).write_bytes(0, (end - begin) / BYTE_COVERS) };
        } else {
            self.each(begin, end, |_, byte, bit| {
                *byte &= !bit;
                true
            });
        }
        if !self.told.is_empty() {
            self.told.retain(|&block| block < begin || block >= end);
        }
    }

    /// Address of the first byte in a range that held the fill and was overwritten.
    pub fn damaged(&self, begin: usize, end: usize) -> Option<usize> {
        let mut found = None;
        self.each(begin, end, |word, byte, bit| {
            // SAFETY: as in `note`.
            if *byte & bit != 0 && unsafe { word.read() } != DEAD_WORD {
                found = Some(word.expose_provenance());
            }
            found.is_none()
        });
        // SAFETY: as above.
        found.map(|word| (word..).find(|&at| unsafe { *ptr::with_exposed_provenance::<u8>(at) } != 0xdd).unwrap_or(word))
    }

    /// Notes that a damaged free block has been reported; false when there is no memory to remember that.
    pub fn tell(&mut self, block: usize, end: usize) -> bool {
        if self.told.try_reserve(1).is_err() {
            return false;
        }
        self.forget(block, end);
        self.told.insert(block)
    }

    /// Whether [`tell`](Self::tell) has noted a block.
    pub fn was_told(&self, block: usize) -> bool {
        self.told.contains(&block)
    }
}

impl Drop for DeadWords {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this size; the table is gone.
        unsafe { os::unmap(self.bits, self.len / WORD / 8) };
    }
}

/// The state of a free block under debug hooks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Dead {
    /// Not known to be damaged.
    Sound,
    /// It is damaged; the first overwritten byte is at this address.
    Damaged(usize),
    /// It is damaged, and that has been reported.
    Told,
}

impl Pymalloc {
    /// From now on free blocks can be [noted](Self::note_dead), except in arenas of a caller's arena allocator. False when there is no address
    /// space for the table.
    pub fn watch(&mut self) -> bool {
        if self.dead.is_none() && self.len != 0 {
            self.dead = DeadWords::new(self.base, self.len);
        }
        self.dead.is_some() || self.len == 0
    }

    /// Notes a freed block of `size` bytes that the debug hooks have filled.
    pub fn note_dead(&mut self, block: usize, size: usize) {
        if block.wrapping_sub(self.base) < self.len
            && let Some(dead) = &mut self.dead
        {
            dead.note(block, block + size);
        }
    }

    /// Forgets the notes of memory that is handed out again.
    #[cold]
    pub fn forget_dead(&mut self, address: usize, size: usize) {
        if address.wrapping_sub(self.base) < self.len
            && let Some(dead) = &mut self.dead
        {
            dead.forget(address, address + size);
        }
    }

    /// The state of a free block that is about to be handed out.
    pub fn state_of_dead(&mut self, block: usize, size: usize) -> Dead {
        if block.wrapping_sub(self.base) >= self.len {
            return Dead::Sound;
        }
        let Some(dead) = &mut self.dead else { return Dead::Sound };
        if dead.was_told(block) {
            return Dead::Told;
        }
        dead.damaged(block, block + size).map_or(Dead::Sound, Dead::Damaged)
    }

    /// Whether something wrote to filled free memory in a range, and that has not been reported yet.
    pub(super) fn is_watched_and_damaged(&self, begin: usize, end: usize) -> bool {
        let dead = self.dead.as_ref().filter(|_| begin.wrapping_sub(self.base) < self.len);
        dead.is_some_and(|dead| dead.damaged(begin, end).is_some())
    }

    /// Notes that a damaged free block is being reported; false when there is no memory to remember that.
    pub fn tell_dead(&mut self, block: usize, size: usize) -> bool {
        self.dead.as_mut().is_some_and(|dead| dead.tell(block, block + size))
    }

    /// The first damaged free block that has not been reported: its address, its size, and the address of the overwritten byte. The search
    /// stops early if it is interrupted.
    pub fn damaged_block(&self, interrupt: Interrupt) -> Option<(usize, usize, usize)> {
        let dead = self.dead.as_ref()?;
        let patience = interrupt.patience();
        let mut found = None;
        self.each_live_pool(|first, end, size, _| {
            if found.is_none() && !patience.is_over_after((end - first) / 8) && first.wrapping_sub(self.base) < self.len {
                found = dead.damaged(first, end).map(|byte| (first + (byte - first) / size * size, size, byte));
            }
        });
        found
    }

    /// The block that the next request of this size would get, if that block is not a free block, or its link does not lead to one.
    pub fn damaged_link(&self, size: usize, is_live: impl Fn(usize) -> bool) -> Option<usize> {
        let class = size.wrapping_sub(1);
        if class >= self.threshold {
            return None;
        }
        // SAFETY: invariant 1.
        let block = unsafe { (*(*self.usedpools.add(class >> self.alignment_shift)).nextpool).freeblock };
        let pool_mask = !(self.geometry.pool_size - 1);
        let is_free = |address: usize| {
            matches!(self.locate(address), Location::Block { begin, .. } if begin == address) && !is_live(address)
        };
        if block.is_null() {
            return None;
        }
        if !is_free(block.addr()) {
            return Some(block.addr());
        }
        // SAFETY: a block of a pool.
        let next = unsafe { block.cast::<usize>().read() };
        let sound = next == 0 || (next & pool_mask == block.addr() & pool_mask && is_free(next));
        (!sound).then_some(block.addr())
    }
}
