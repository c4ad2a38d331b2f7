//! Looking at the heap of a replay in the recorded process's terms, and trying on it what was not recorded.

use obmalloc::Domain;

use super::{Ground, Replay};
use crate::stacks::Stacks;
use crate::watch::{Seen, Watcher};

/// An arena that is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeldArena {
    /// Its first byte in the recorded process.
    pub address: u64,
    /// Pools in all, those of them that hold no block, and those of these that were never in use.
    pub pools: u32,
    #[allow(missing_docs, reason = "said above")]
    pub free_pools: u32,
    #[allow(missing_docs, reason = "said above")]
    pub uncarved_pools: u32,
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
    /// What has been read of Python's stacks so far; nothing where they are not kept.
    pub fn stacks(&self) -> Option<&Stacks> {
        self.segments.front().or(self.last.as_ref()).map(|reader| reader.stacks())
    }

    /// The arenas that are held, in the order in which they were taken.
    pub fn arenas(&self) -> Vec<HeldArena> {
        self.course.ground.arenas()
    }

    /// The watcher, to be told something.
    pub fn watcher_mut(&mut self) -> &mut W {
        &mut self.course.watcher
    }

    /// Makes blocks of arenas anew, in this order, as a program does that copies what it keeps, and then frees the old ones. Each is
    /// given by its slot and its size. Gives how many arenas are held then; `None` when there is no memory for it. Ends the replay.
    pub fn make_anew(&mut self, blocks: &[(u32, usize)]) -> Option<usize> {
        self.course.is_over = true;
        let ground = &mut self.course.ground;
        ground.hooks.inside = false;
        ground.hooks.is_beyond = true;
        for &(_, size) in blocks {
            ground.heap.malloc(Domain::Obj, size)?;
        }
        for &(slot, _) in blocks {
            let old = ground.live.block(slot);
            if ground.hooks.is_inside(old) {
                // SAFETY: the slot's block is live, and nothing asks for it again: the replay ends here.
                unsafe { ground.heap.free(Domain::Obj, Some(old)) };
            }
        }
        Some(ground.heap.arenas().len())
    }
}
