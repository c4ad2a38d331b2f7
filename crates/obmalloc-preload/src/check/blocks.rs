//! The table of live blocks by address: each block's owner, its size, and the call that asked for it. It has a word for every address at
//! which a block can begin.
//!
//! It is a radix tree of three levels, like pymalloc's own arena map: 2 × 32 768 roots, 8 192 mebibytes under each, 65 536 words for a
//! mebibyte. Levels are made when they are needed, and are never freed. There are no locks: only the thread that owns a block uses its word.
//!
//! Most blocks begin at multiples of 16, which have one half of the roots. The other half is for the odd multiples of 8: some allocators
//! other than CPython's give those out for the smallest requests.
//!
//! The word, from the lowest bit:
//! | bits | |
//! |---|---|
//! | 32 | the lower half of the return address of the call that allocated the block, or that freed it |
//! | 3 | the owner plus one; 0 when no block begins here |
//! | 1 | whether the block has been freed |
//! | 28 | the size in bytes; all ones if it does not fit: then the size is in the next word, which no other block can use |

use obmalloc::Domain;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};

/// An allocator: the owner of its blocks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Owner {
    Raw = Domain::Raw as u8,
    Mem = Domain::Mem as u8,
    Obj = Domain::Obj as u8,
    /// C's `malloc` and its like, when other code than the domains calls it.
    C,
}

impl Owner {
    /// All of them, by number.
    pub const ALL: [Self; 4] = [Self::Raw, Self::Mem, Self::Obj, Self::C];

    /// The domain; `None` for C.
    pub fn domain(self) -> Option<Domain> {
        Domain::ALL.get(self as usize).copied()
    }

    /// The name in reports.
    pub fn name(self) -> &'static str {
        self.domain().map_or("c", Domain::name)
    }
}

const OWNER_SHIFT: u32 = 32;
const OWNER_MASK: u64 = 7 << OWNER_SHIFT;
const FREED: u64 = 1 << 35;
const SIZE_SHIFT: u32 = 36;
/// Stands for a size that is in the next word.
const ELSEWHERE: usize = (1 << (64 - SIZE_SHIFT)) - 1;

/// Distance of two words, in bytes.
const GRANULE: usize = 16;
/// Distance of two addresses at which blocks can begin, in bytes.
const STEP: usize = 8;
/// Bytes that a leaf describes.
const LEAF_SPAN: usize = 1 << 20;
const WORDS: usize = LEAF_SPAN / GRANULE;
const MIDDLE_BITS: u32 = 13;
const ROOT_BITS: u32 = 15;
/// On today's 64-bit systems, addresses are below this unless the program asks for higher ones.
const ADDRESS_LIMIT: usize = 1 << (20 + MIDDLE_BITS + ROOT_BITS);
/// How many bytes below an address [`Blocks::around`] looks for the block around it.
const REACH: usize = 1 << 30;

type Leaf = [AtomicU64; WORDS];
type Middle = [AtomicPtr<Leaf>; 1 << MIDDLE_BITS];

/// A block, live or freed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Block {
    pub owner: Owner,
    /// The requested bytes.
    pub size: usize,
    /// The lower half of the return address of the call that allocated the block, or that freed it, if it is freed.
    pub site: u32,
    pub freed: bool,
}

/// The table.
pub struct Blocks {
    roots: [AtomicPtr<Middle>; 2 << ROOT_BITS],
    /// Whether there was no memory for a level, so that live blocks are missing in the table.
    incomplete: AtomicBool,
}

const fn tag(owner: Owner) -> u64 {
    (owner as u64 + 1) << OWNER_SHIFT
}

const fn low(address: usize) -> u64 {
    address as u64 & 0xffff_ffff
}

/// The level that `slot` holds; null when it has not been made.
fn existing<T>(slot: &AtomicPtr<T>) -> *mut T {
    // Acquire: the level's zeros are visible before the level is.
    slot.load(Ordering::Acquire)
}

impl Blocks {
    /// A table without blocks.
    pub const fn new() -> Self {
        Self { roots: [const { AtomicPtr::new(null_mut()) }; 2 << ROOT_BITS], incomplete: AtomicBool::new(false) }
    }

    /// Notes a block that was allocated; `site` is the return address of the call that asked for it.
    #[inline(always)]
    pub fn put(&self, address: usize, owner: Owner, size: usize, site: usize) {
        let Some(word) = self.word(address).or_else(|| self.make_word(address)) else { return };
        let short = if size < ELSEWHERE { size } else { self.put_size(address, size) };
        word.store(low(site) | tag(owner) | (short as u64) << SIZE_SHIFT, Ordering::Relaxed);
    }

    /// Marks the block at `address` as freed by `site`. Returns `false`, with nothing done, unless it is live and of this owner.
    #[inline(always)]
    pub fn free(&self, address: usize, owner: Owner, site: usize) -> bool {
        let Some(word) = self.word(address) else { return false };
        let before = word.load(Ordering::Relaxed);
        if before & (FREED | OWNER_MASK) != tag(owner) {
            return false;
        }
        // No exchange: if two threads free one block at the same moment, one of them may be missed, but nothing else goes wrong.
        word.store(before & !low(usize::MAX) | low(site) | FREED, Ordering::Relaxed);
        true
    }

    /// Marks the block, allocated by `site`, as live again, because the realloc that took it has failed.
    pub fn revive(&self, address: usize, site: u32) {
        if let Some(word) = self.word(address) {
            word.store(word.load(Ordering::Relaxed) & !(low(usize::MAX) | FREED) | u64::from(site), Ordering::Relaxed);
        }
    }

    /// The block that begins at `address`; a freed block if it was the last one there.
    pub fn at(&self, address: usize) -> Option<Block> {
        let word = self.word(address)?.load(Ordering::Relaxed);
        let number = (word & OWNER_MASK) >> OWNER_SHIFT;
        let owner = *Owner::ALL.get((number as usize).checked_sub(1)?)?;
        let size = match (word >> SIZE_SHIFT) as usize {
            ELSEWHERE => self.size_after(address),
            size => size,
        };
        Some(Block { owner, size, site: word as u32, freed: word & FREED != 0 })
    }

    /// The live block that `address` lies in, and where it begins. It is not found if it begins more than a gibibyte before.
    pub fn around(&self, address: usize) -> Option<(usize, Block)> {
        let lowest = address.saturating_sub(REACH);
        let mut start = address & !(STEP - 1);
        while start > lowest && start < ADDRESS_LIMIT {
            if self.leaf(start).is_none() && self.leaf(start ^ STEP).is_none() {
                start = (start & !(LEAF_SPAN - 1)).saturating_sub(STEP);
                continue;
            }
            if let Some(block) = self.at(start).filter(|block| !block.freed) {
                // Blocks do not overlap: only the first one below can reach up to the address.
                return (address - start < block.size.max(1)).then_some((start, block));
            }
            start -= STEP;
        }
        None
    }

    /// Whether the table has every block that was noted: it always had memory.
    pub fn is_complete(&self) -> bool {
        !self.incomplete.load(Ordering::Relaxed)
    }

    fn root(&self, address: usize) -> Option<&AtomicPtr<Middle>> {
        // Blocks begin only at multiples of 8.
        if address >= ADDRESS_LIMIT || !address.is_multiple_of(STEP) {
            return None;
        }
        self.roots.get(((address & STEP) / STEP) << ROOT_BITS | address >> (20 + MIDDLE_BITS))
    }

    #[inline(always)]
    fn leaf(&self, address: usize) -> Option<&Leaf> {
        // SAFETY: levels are made whole, zeroed, and never go.
        let middle = unsafe { existing(self.root(address)?).as_ref() }?;
        // SAFETY: as above.
        unsafe { existing(&middle[address / LEAF_SPAN % middle.len()]).as_ref() }
    }

    #[inline(always)]
    fn word(&self, address: usize) -> Option<&AtomicU64> {
        Some(&self.leaf(address)?[address / GRANULE % WORDS])
    }

    #[cold]
    fn make_word(&self, address: usize) -> Option<&AtomicU64> {
        let made = self.root(address).and_then(|root| {
            let middle = made(root)?;
            made(&middle[address / LEAF_SPAN % middle.len()])?;
            self.word(address)
        });
        if made.is_none() {
            self.incomplete.store(true, Ordering::Relaxed);
        }
        made
    }

    /// Keeps a size that does not fit in the next word. That word has no owner, so that no block begins there.
    #[cold]
    fn put_size(&self, address: usize, size: usize) -> usize {
        let next = address + GRANULE;
        if let Some(word) = self.word(next).or_else(|| self.make_word(next)) {
            word.store(low(size) | (size as u64 >> 32) << SIZE_SHIFT, Ordering::Relaxed);
        }
        ELSEWHERE
    }

    fn size_after(&self, address: usize) -> usize {
        let word = self.word(address + GRANULE).map_or(0, |word| word.load(Ordering::Relaxed));
        low(word as usize) as usize | (word >> SIZE_SHIFT << 32) as usize
    }
}

/// The level that `slot` holds, made if necessary. `None` when there is no memory for it.
fn made<T>(slot: &AtomicPtr<T>) -> Option<&T> {
    let mut level = existing(slot);
    if level.is_null() {
        // SAFETY: asks for fresh memory.
        let memory = unsafe {
            libc::mmap(
                null_mut(),
                size_of::<T>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return None;
        }
        let fresh = memory.cast::<T>();
        level = match slot.compare_exchange(null_mut(), fresh, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => fresh,
            Err(other) => {
                // SAFETY: no other code knows this memory.
                unsafe { libc::munmap(memory, size_of::<T>()) };
                other
            }
        };
    }
    // SAFETY: a level is an array of atomics, for which zeros are values; it is never freed.
    unsafe { level.as_ref() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::ops::Bound::{Excluded, Included};

    fn table() -> Box<Blocks> {
        // Made in place, because it is larger than a test's stack likes.
        let layout = std::alloc::Layout::new::<Blocks>();
        // SAFETY: a table without blocks is all zeros; the layout is that of the box, which takes the memory over.
        unsafe {
            let place = std::alloc::alloc_zeroed(layout).cast::<Blocks>();
            assert!(!place.is_null(), "memory for a table");
            Box::from_raw(place)
        }
    }

    fn block(owner: Owner, size: usize, site: u32, freed: bool) -> Option<Block> {
        Some(Block { owner, size, site, freed })
    }

    #[test]
    fn block_is_kept_with_owner_size_and_site_until_it_is_freed() {
        let blocks = table();
        for (number, owner) in Owner::ALL.into_iter().enumerate() {
            for (step, size) in
                [0, 1, 512, 1 << 20, ELSEWHERE - 1, ELSEWHERE, 1 << 31, (1 << 46) + 12_345].into_iter().enumerate()
            {
                let address = 0x7f12_3400_0000 + (number << 32) + (step << 24);
                assert_eq!(blocks.at(address), None);
                blocks.put(address, owner, size, 0x5555_1234_5678);
                assert_eq!(blocks.at(address), block(owner, size, 0x1234_5678, false));
                for other in Owner::ALL.into_iter().filter(|&other| other != owner) {
                    assert!(!blocks.free(address, other, 1));
                }
                assert!(blocks.free(address, owner, 0x5555_0000_0077));
                assert_eq!(blocks.at(address), block(owner, size, 0x77, true));
                assert!(!blocks.free(address, owner, 1), "twice");
                blocks.revive(address, 9);
                assert_eq!(blocks.at(address), block(owner, size, 9, false));
            }
        }
        assert!(blocks.is_complete());
    }

    #[test]
    fn neighbours_8_bytes_apart_are_two_blocks() {
        let blocks = table();
        blocks.put(0x1000, Owner::Raw, 8, 1);
        blocks.put(0x1008, Owner::Mem, 8, 2);
        assert_eq!(blocks.at(0x1000), block(Owner::Raw, 8, 1, false));
        assert_eq!(blocks.at(0x1008), block(Owner::Mem, 8, 2, false));
        assert_eq!(blocks.around(0x100f).map(|found| found.0), Some(0x1008));
        assert_eq!(blocks.around(0x1007).map(|found| found.0), Some(0x1000));
    }

    #[test]
    fn addresses_at_the_edges_of_levels_are_told_apart() {
        let blocks = table();
        let edges = [LEAF_SPAN, LEAF_SPAN << MIDDLE_BITS, ADDRESS_LIMIT - LEAF_SPAN];
        let places: Vec<usize> = edges.iter().flat_map(|edge| [edge - 16, edge - 8, *edge, edge + 8]).collect();
        for (number, &place) in places.iter().enumerate() {
            blocks.put(place, Owner::Obj, 8, number);
        }
        for (number, &place) in places.iter().enumerate() {
            assert_eq!(blocks.at(place), block(Owner::Obj, 8, number as u32, false));
        }
    }

    #[test]
    fn what_cannot_be_kept_makes_the_table_incomplete_and_nothing_else() {
        let blocks = table();
        blocks.put(ADDRESS_LIMIT, Owner::Raw, 8, 1);
        assert_eq!(blocks.at(ADDRESS_LIMIT), None);
        assert!(!blocks.free(ADDRESS_LIMIT, Owner::Raw, 1));
        assert_eq!(blocks.around(ADDRESS_LIMIT + 4), None);
        assert!(!blocks.is_complete());
    }

    #[test]
    fn address_inside_a_huge_block_is_found_across_leaves_that_were_never_made() {
        let blocks = table();
        let start = 0x7f00_0000_0010;
        blocks.put(start, Owner::Mem, 900 << 20, 1);
        for inside in [1, 8, 16, 17, LEAF_SPAN, 600 << 20, (900 << 20) - 1] {
            assert_eq!(blocks.around(start + inside).map(|found| found.0), Some(start), "{inside}");
        }
        assert_eq!(blocks.around(start + (900 << 20)), None);
        assert!(blocks.free(start, Owner::Mem, 1));
        assert_eq!(blocks.around(start + 8), None);
    }

    /// A step of a random program. All steps use a few kibibytes across the edge of two leaves, so that they meet.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Put { slot: usize, size: usize, owner: usize },
        Free { slot: usize, owner: usize },
        Look { slot: usize, by: usize },
    }

    const BASE: usize = (5 << 30) - 2048;

    /// Runs the steps on the table and on a model that is plainly right. Returns the first step after which they differ.
    fn differs(steps: &[Step]) -> Option<usize> {
        let blocks = table();
        let mut model = BTreeMap::<usize, Block>::new();
        for (number, &step) in steps.iter().enumerate() {
            let site = number as u32;
            let equal = match step {
                Step::Put { slot, size, owner } => {
                    let start = BASE + slot * 8;
                    // As an allocator: never over a live block.
                    let before = model.range(..start).rev().find(|(_, block)| !block.freed);
                    let taken = before.is_some_and(|(&at, block)| at + block.size.max(1) > start)
                        || model.range(start..start + size.max(1)).any(|(_, block)| !block.freed);
                    if !taken {
                        blocks.put(start, Owner::ALL[owner], size, number);
                        model.insert(start, Block { owner: Owner::ALL[owner], size, site, freed: false });
                    }
                    blocks.at(start) == model.get(&start).copied()
                }
                Step::Free { slot, owner } => {
                    let start = BASE + slot * 8;
                    let wanted = model.get_mut(&start).filter(|block| !block.freed && block.owner == Owner::ALL[owner]);
                    let freed = wanted.is_some();
                    if let Some(block) = wanted {
                        (block.freed, block.site) = (true, site);
                    }
                    blocks.free(start, Owner::ALL[owner], number) == freed && blocks.at(start) == model.get(&start).copied()
                }
                Step::Look { slot, by } => {
                    let address = BASE + slot * 8 + by;
                    let around = model
                        .range((Excluded(address - REACH), Included(address)))
                        .rev()
                        .find(|(_, block)| !block.freed)
                        .filter(|(at, block)| address - **at < block.size.max(1))
                        .map(|(&at, &block)| (at, block));
                    blocks.around(address) == around
                }
            };
            if !equal {
                return Some(number);
            }
        }
        None
    }

    #[test]
    fn random_programs_leave_what_a_plain_map_leaves() {
        let seed = std::env::var("OBMALLOC_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(20_261_124_u64);
        let mut state = seed;
        let mut random = |limit: usize| {
            // xorshift64*
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit
        };
        for _ in 0..60 {
            let mut steps: Vec<Step> = (0..600)
                .map(|_| match random(3) {
                    0 => Step::Put { slot: random(512), size: random(100), owner: random(4) },
                    1 => Step::Free { slot: random(512), owner: random(4) },
                    _ => Step::Look { slot: random(512), by: random(8) },
                })
                .collect();
            if let Some(number) = differs(&steps) {
                steps.truncate(number + 1);
                let mut at = 0;
                while at < steps.len() {
                    let mut shorter = steps.clone();
                    shorter.remove(at);
                    if differs(&shorter).is_some() {
                        steps = shorter;
                    } else {
                        at += 1;
                    }
                }
                panic!("OBMALLOC_SEED={seed}: {steps:?}");
            }
        }
    }
}
