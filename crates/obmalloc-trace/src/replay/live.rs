//! The live arenas and blocks of a replay, by the recorded process's addresses.
//!
//! Most calls are for blocks in arenas. So each arena has a table with an entry for each address at which a block can begin, and finding a
//! block is finding its arena. Only the other blocks are in a hash table by address.

#![forbid(unsafe_code)]

use std::ptr::NonNull;

use rustc_hash::FxHashMap;

/// Bytes between two places where a block of an arena can begin.
const STEP: u64 = 16;
/// No arena.
const NONE: u32 = u32::MAX;
/// How many arenas are remembered.
const RECENT: usize = 64;

/// An arena of the recorded process.
pub(super) struct Arena {
    pub recorded: u64,
    /// Number of the arena, from 0, in the order in which arenas were taken.
    pub number: usize,
    /// Where it is in the heap of the replay.
    pub here: usize,
    /// For each place of a block: one more than its slot, or 0. Empty where there was no memory for it.
    slots: Vec<u32>,
}

/// The arenas that the recorded process holds.
pub(super) struct Arenas {
    size: u64,
    /// Binary logarithm of the size.
    bits: u32,
    /// By place in the heap's region.
    held: Vec<Option<Arena>>,
    /// By recorded address divided by the arenas' size: those that reach in there, with their places. There cannot be more.
    near: FxHashMap<u64, [(u64, u32); 2]>,
    /// Some of those that were found, with their places: by the last bits of what `near` goes by.
    recent: [(u64, u32); RECENT],
}

impl Arenas {
    pub fn new(arena_size: usize) -> Self {
        Self {
            size: arena_size as u64,
            bits: arena_size.ilog2(),
            held: Vec::new(),
            near: FxHashMap::default(),
            recent: [(0, NONE); RECENT],
        }
    }

    /// Place of the arena that a recorded address lies in.
    pub fn place_of(&self, address: u64) -> Option<u32> {
        self.near(address).map(|(_, place)| place)
    }

    /// As [`place_of`](Self::place_of), which it remembers.
    #[inline]
    pub fn find(&mut self, address: u64) -> Option<u32> {
        let slot = (address >> self.bits) as usize % RECENT;
        let (base, place) = self.recent[slot];
        if address.wrapping_sub(base) < self.size && place != NONE {
            return Some(place);
        }
        let found = self.near(address)?;
        self.recent[slot] = found;
        Some(found.1)
    }

    fn near(&self, address: u64) -> Option<(u64, u32)> {
        let near = self.near.get(&(address >> self.bits))?;
        near.iter().copied().find(|&(base, place)| address.wrapping_sub(base) < self.size && place != NONE)
    }

    /// The arena at a place.
    #[inline]
    pub fn at(&self, place: u32) -> Option<&Arena> {
        self.held.get(place as usize)?.as_ref()
    }

    /// A place where no arena is.
    pub fn free_place(&self) -> u32 {
        self.held.iter().position(Option::is_none).unwrap_or(self.held.len()) as u32
    }

    /// Enters an arena that was taken.
    pub fn insert(&mut self, place: u32, recorded: u64, number: usize, here: usize) {
        if self.held.len() <= place as usize {
            self.held.resize_with(place as usize + 1, || None);
        }
        let entries = (self.size / STEP) as usize;
        let mut slots = Vec::new();
        if slots.try_reserve_exact(entries).is_ok() {
            slots.resize(entries, 0);
        }
        self.remove(place);
        self.held[place as usize] = Some(Arena { recorded, number, here, slots });
        for chunk in self.chunks(recorded) {
            let near = self.near.entry(chunk).or_insert([(0, NONE); 2]);
            // A trace can claim that arenas overlap. Of those only two are found.
            if let Some(free) = near.iter_mut().find(|(_, place)| *place == NONE) {
                *free = (recorded, place);
            }
        }
    }

    /// Takes out the arena at a place, if there is one.
    pub fn remove(&mut self, place: u32) {
        let Some(arena) = self.held.get_mut(place as usize).and_then(Option::take) else { return };
        self.recent.iter_mut().filter(|(_, other)| *other == place).for_each(|gone| *gone = (0, NONE));
        for chunk in self.chunks(arena.recorded) {
            if let Some(near) = self.near.get_mut(&chunk) {
                near.iter_mut().filter(|(_, other)| *other == place).for_each(|gone| *gone = (0, NONE));
                if *near == [(0, NONE); 2] {
                    self.near.remove(&chunk);
                }
            }
        }
    }

    fn chunks(&self, recorded: u64) -> impl Iterator<Item = u64> + use<> {
        let (first, last) = (recorded >> self.bits, recorded.saturating_add(self.size - 1) >> self.bits);
        first..=last
    }

    /// The entry for a recorded address in the arena at a place, if a block can begin there.
    #[inline]
    fn entry(&mut self, place: u32, address: u64) -> Option<&mut u32> {
        let arena = self.held[place as usize].as_mut()?;
        if !address.is_multiple_of(STEP) {
            return None;
        }
        arena.slots.get_mut(((address - arena.recorded) / STEP) as usize)
    }
}

/// The blocks that are live, by their recorded addresses. Each has a slot: a small number that is its own as long as it lives.
#[derive(Default)]
pub(super) struct Live {
    /// Those that lie in no arena, here or there: recorded address → slot.
    others: FxHashMap<u64, u32>,
    /// By slot: where the block is here.
    blocks: Vec<NonNull<u8>>,
    free_slots: Vec<u32>,
    /// Slots of blocks at whose recorded addresses there are others now.
    lost: Vec<u32>,
}

impl Live {
    /// Gives a block that is `here` a slot.
    #[inline]
    pub fn slot_for(&mut self, here: NonNull<u8>) -> u32 {
        match self.free_slots.pop() {
            Some(slot) => {
                self.blocks[slot as usize] = here;
                slot
            }
            None => {
                self.blocks.push(here);
                self.blocks.len() as u32 - 1
            }
        }
    }

    /// Where the block in `slot` is here.
    pub fn block(&self, slot: u32) -> NonNull<u8> {
        self.blocks[slot as usize]
    }

    /// The block in `slot` is `here` now.
    #[inline]
    pub fn moved(&mut self, slot: u32, here: NonNull<u8>) {
        self.blocks[slot as usize] = here;
    }

    /// Enters a slot's block at its recorded address; with the place of the arena that it lies in, here and there.
    #[inline]
    pub fn enter(&mut self, arenas: &mut Arenas, recorded: u64, slot: u32, place: Option<u32>) {
        let entry = place.and_then(|place| arenas.entry(place, recorded));
        // Raw calls of threads can be written in another order than they happened: the earlier block has been freed by now, even if the trace has
        // its `free` later. The replay's copy of it stays allocated until the end.
        let before = match entry {
            Some(entry) => std::mem::replace(entry, slot + 1).checked_sub(1),
            None => self.others.insert(recorded, slot),
        };
        self.lost.extend(before);
    }

    /// Takes the block at a recorded address out: its slot, and where it is here.
    #[inline]
    pub fn take(&mut self, arenas: &mut Arenas, recorded: u64) -> Option<(u32, NonNull<u8>)> {
        let place = arenas.find(recorded);
        let slot = match place.and_then(|place| arenas.entry(place, recorded)) {
            Some(entry) if *entry != 0 => std::mem::take(entry) - 1,
            _ => self.others.remove(&recorded)?,
        };
        Some((slot, self.blocks[slot as usize]))
    }

    /// A slot has no block any more.
    #[inline]
    pub fn give_back(&mut self, slot: u32) {
        self.free_slots.push(slot);
    }

    /// The blocks that lie in no arena here or there, and those that were lost.
    pub fn others(&self) -> impl Iterator<Item = NonNull<u8>> {
        self.others.values().chain(&self.lost).map(|&slot| self.blocks[slot as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 1 << 18;

    #[test]
    fn address_is_found_in_the_arena_that_it_lies_in_and_in_no_other() {
        let mut arenas = Arenas::new(SIZE);
        // One after the other at no multiple of the size, one that begins at a multiple, one at the end of the address space.
        let bases = [0x7f00_0001_2000, 0x7f00_0001_2000 + SIZE as u64, 0x7f00_0100_0000, u64::MAX - SIZE as u64 + 1];
        for (place, base) in bases.into_iter().enumerate() {
            arenas.insert(place as u32, base, place, 0);
        }
        let expect = |address: u64| bases.iter().position(|base| address.wrapping_sub(*base) < SIZE as u64).map(|at| at as u32);
        for base in bases {
            for offset in [0, 1, 15, 16, SIZE as u64 / 2, SIZE as u64 - 1, SIZE as u64, u64::MAX, 1 << 40] {
                let address = base.wrapping_add(offset);
                assert_eq!(arenas.place_of(address), expect(address), "{address:#x}");
                assert_eq!(arenas.find(address), expect(address), "{address:#x}");
                assert_eq!(arenas.find(address), expect(address), "{address:#x}, remembered");
            }
        }
        arenas.remove(1);
        assert_eq!(arenas.find(bases[1]), None, "it was given back");
        assert_eq!(arenas.find(bases[0]), Some(0));
        assert_eq!(arenas.find(bases[1] - 1), Some(0));
    }

    #[test]
    fn every_block_is_taken_out_once_wherever_it_lies() {
        let (mut arenas, mut live) = (Arenas::new(SIZE), Live::default());
        let base = 0x7f00_0001_2000;
        arenas.insert(0, base, 0, 0);
        let here = NonNull::<u8>::dangling();
        let entered: Vec<(u64, u32)> =
            [base, base + 16, base + SIZE as u64 - 16, base + 17, base - 16, base + SIZE as u64, 0x5000]
                .into_iter()
                .map(|address| {
                    let slot = live.slot_for(here);
                    let place = arenas.find(address);
                    live.enter(&mut arenas, address, slot, place);
                    (address, slot)
                })
                .collect();
        for (address, slot) in entered {
            assert_eq!(live.take(&mut arenas, address), Some((slot, here)), "{address:#x}");
            assert_eq!(live.take(&mut arenas, address), None, "{address:#x}");
            live.give_back(slot);
        }
        assert_eq!(live.slot_for(here), 6, "a slot is used again");
    }

    #[test]
    fn block_that_another_takes_the_place_of_is_kept_for_the_end() {
        let (mut arenas, mut live) = (Arenas::new(SIZE), Live::default());
        let [first, second] = [live.slot_for(NonNull::dangling()), live.slot_for(NonNull::dangling())];
        live.enter(&mut arenas, 0x5000, first, None);
        live.enter(&mut arenas, 0x5000, second, None);
        assert_eq!(live.others().count(), 2);
        assert_eq!(live.take(&mut arenas, 0x5000).map(|(slot, _)| slot), Some(second));
        assert_eq!(live.others().count(), 1);
    }
}
