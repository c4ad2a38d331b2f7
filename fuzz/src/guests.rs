//! Allocators that are not trusted: most of what they are asked they pass on, and now and then they do something else.

use std::rc::Rc;

use obmalloc::{AllocatorId, Answer, ArenaGuest, Guest, OwnAllocators, OwnError, Threw};

use crate::model::World;

pub struct Giver {
    pub world: Rc<World>,
    pub below: AllocatorId,
    /// Bytes before each block.
    pub header: usize,
}

/// What a guest does instead of passing a request on, or besides.
enum Mood {
    Honest,
    Throws,
    Refuses,
    Lies,
    /// Passes it on, and fails then.
    Late,
}

impl World {
    fn mood(&self) -> Mood {
        if self.quiet.get() {
            return Mood::Honest;
        }
        match self.bytes.byte() {
            200..=209 => Mood::Throws,
            210..=219 => Mood::Refuses,
            220..=235 => Mood::Lies,
            236..=245 => Mood::Late,
            _ => Mood::Honest,
        }
    }

    /// Remembers where a grant may be.
    pub fn note_grant(&self, grant: &Result<Option<usize>, OwnError>) {
        let there = match grant {
            Ok(address) => *address,
            Err(OwnError::Guest(fault)) => fault.address,
            Err(_) => None,
        };
        self.grants.borrow_mut().extend(there);
    }
}

impl Giver {
    fn size(&self, size: usize) -> usize {
        if self.header == 0 { size } else { size.max(1).saturating_add(self.header) }
    }

    fn answer(&self, grant: impl FnOnce() -> Result<Option<usize>, OwnError>) -> Answer {
        let mood = self.world.mood();
        match mood {
            Mood::Throws => return Err(Threw(1)),
            Mood::Refuses => return Ok(None),
            Mood::Lies => return Ok(Some(self.world.any_address())),
            Mood::Honest | Mood::Late => {}
        }
        let grant = grant();
        self.world.note_grant(&grant);
        let block = grant.map_err(|_| Threw(2))?.map(|grant| grant + self.header);
        if matches!(mood, Mood::Late) { Err(Threw(3)) } else { Ok(block) }
    }
}

impl Guest for Giver {
    fn malloc(&self, own: &OwnAllocators<'_>, size: usize) -> Answer {
        self.answer(|| own.malloc(self.below, self.size(size)))
    }
    fn calloc(&self, own: &OwnAllocators<'_>, count: usize, size: usize) -> Answer {
        self.answer(|| own.calloc(self.below, 1, self.size(count * size)))
    }
    fn realloc(&self, own: &OwnAllocators<'_>, address: Option<usize>, size: usize) -> Answer {
        let Some(address) = address else { return self.malloc(own, size) };
        // What it leaves is a grant, if the block leaves it.
        self.world.grants.borrow_mut().insert(address);
        let answer = self.answer(|| own.realloc(self.below, Some(address - self.header), self.size(size)));
        if answer != Ok(Some(address)) {
            self.world.forgets.set(true);
        }
        answer
    }
    fn free(&self, own: &OwnAllocators<'_>, address: Option<usize>) -> Result<(), Threw> {
        let Some(address) = address else { return Ok(()) };
        self.world.grants.borrow_mut().insert(address);
        match self.world.mood() {
            Mood::Throws => Err(Threw(4)),
            Mood::Refuses => Ok(()),
            Mood::Lies => own.free(self.below, Some(self.world.any_address())).map_err(|_| Threw(5)),
            Mood::Honest | Mood::Late => own.free(self.below, Some(address - self.header)).map_err(|_| Threw(6)),
        }
    }
}

/// Gives arenas from raw memory or from where they came before.
pub struct ArenaGiver {
    pub world: Rc<World>,
    pub raw: Option<AllocatorId>,
}

impl ArenaGuest for ArenaGiver {
    fn alloc(&self, own: &OwnAllocators<'_>, size: usize) -> Answer {
        match (self.world.mood(), self.raw) {
            (Mood::Throws | Mood::Late, _) => Err(Threw(7)),
            (Mood::Refuses, _) => Ok(None),
            (Mood::Lies, _) => Ok(Some(self.world.any_address())),
            (Mood::Honest, None) => Ok(own.arena_alloc(size)),
            (Mood::Honest, Some(raw)) => {
                let grant = own.malloc(raw, size);
                self.world.note_grant(&grant);
                grant.map_err(|_| Threw(8))
            }
        }
    }
    fn free(&self, own: &OwnAllocators<'_>, address: usize, size: usize) -> Result<(), Threw> {
        match self.world.mood() {
            Mood::Honest => own.arena_free(address, size).map_err(|_| Threw(9)),
            _ => Err(Threw(10)),
        }
    }
}
