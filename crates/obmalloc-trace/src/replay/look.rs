//! Looks at the heap of a replay by the recorded process's addresses, and tries calls on it that were not recorded.

use obmalloc::Domain;

use super::{Ground, Replay};
use crate::stacks::Stacks;
use crate::types::Types;
use crate::watch::{Seen, Watcher};

/// An arena that is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeldArena {
    /// Its first byte in the recorded process.
    pub address: u64,
    /// Its pools.
    pub pools: u32,
    /// The pools that hold no block.
    pub free_pools: u32,
    /// The pools without blocks that were never in use.
    pub uncarved_pools: u32,
    /// The pools without blocks whose memory a trim has given back.
    pub trimmed_pools: u32,
}

/// A page of the system. The first page of an empty pool holds its header, and cannot be given back.
const PAGE: u64 = 4096;

impl HeldArena {
    /// Bytes that a trim would give back: whole pages of empty pools that were in use since the last one, but for each pool's first page. 0
    /// where a pool is no larger than a page, as before 3.10.
    pub fn trimmable(&self, pool_size: usize) -> u64 {
        let pages = (pool_size as u64).saturating_sub(PAGE);
        u64::from(self.free_pools - self.uncarved_pools - self.trimmed_pools) * pages
    }

    /// Bytes that can be resident: all but pools that were never in use, and trimmed ones.
    pub fn can_be_resident(&self, arena_size: usize, pool_size: usize) -> u64 {
        let trimmed = u64::from(self.trimmed_pools) * (pool_size as u64).saturating_sub(PAGE);
        arena_size as u64 - u64::from(self.uncarved_pools) * pool_size as u64 - trimmed
    }
}

impl Ground {
    /// The arenas that are held, in the order in which they were taken.
    fn arenas(&self) -> Vec<HeldArena> {
        let recorded = |address: usize| {
            let place = self.hooks.place(address);
            self.hooks.arenas.at(place).map_or(0, |arena| arena.recorded)
        };
        self.heap
            .arenas()
            .iter()
            .map(|arena| HeldArena {
                address: recorded(arena.address),
                pools: arena.total_pools as u32,
                free_pools: arena.free_pools as u32,
                uncarved_pools: arena.uncarved_pools as u32,
                trimmed_pools: arena.trimmed_pools as u32,
            })
            .collect()
    }
}

impl Seen<'_> {
    /// The arenas that are held at this moment, in the order in which they were taken.
    pub fn arenas(&self) -> Vec<HeldArena> {
        self.ground.arenas()
    }
}

impl<W: Watcher> Replay<W> {
    /// What has been read of Python's stacks so far; empty if they are not kept.
    pub fn stacks(&self) -> Option<&Stacks> {
        self.segments.front().or(self.last.as_ref()).map(|reader| reader.stacks())
    }

    /// The types of the objects that are live now. `None` where the recorder did not look, or where the trace cannot be read any further.
    pub fn types_here(&mut self) -> Option<Types> {
        self.segments.front_mut().and_then(|reader| reader.types_here().ok()?)
    }

    /// The arenas that are held, in the order in which they were taken.
    pub fn arenas(&self) -> Vec<HeldArena> {
        self.course.ground.arenas()
    }

    /// The watcher, to change its settings.
    pub fn watcher_mut(&mut self) -> &mut W {
        &mut self.course.watcher
    }

    /// Makes blocks in arenas anew, in this order, and then frees the old ones, as a program does that copies what it keeps. Each is given by its
    /// slot and its size. Returns how many arenas are held then; `None` when there is no memory for it. After that the replay can only
    /// [`follow`](Self::follow) the recording.
    pub fn make_anew(&mut self, blocks: &[(u32, usize)]) -> Option<usize> {
        self.course.is_over = true;
        self.course.is_following = true;
        let ground = &mut self.course.ground;
        ground.hooks.inside = false;
        ground.hooks.is_beyond = true;
        for &(_, size) in blocks {
            ground.heap.malloc(Domain::Obj, size)?;
        }
        for &(slot, _) in blocks {
            let old = ground.live.block(slot);
            if ground.hooks.is_inside(old) {
                // SAFETY: the slot's block is live, and nothing asks for it again: no call is made from here on.
                unsafe { ground.heap.free(Domain::Obj, Some(old)) };
            }
        }
        Some(ground.heap.arenas().len())
    }
}
