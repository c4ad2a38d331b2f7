//! A recording as calls: what is decoded once, and then made as often as there are configurations.

use std::io::{self, Write};
use std::ops::ControlFlow;

use obmalloc::Domain;
use rustc_hash::FxHashMap;

use crate::format::Event;
use crate::program::Verb;
use crate::watch::{Fate, Seen, Watcher};

/// First bytes of a file of calls, which the measuring program reads.
pub const MAGIC: [u8; 8] = *b"obmcalls";

/// A call in one word: 32 bits of size (what is larger counts as 4 GiB), 29 of slot, 2 of verb, and whether the block is set apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub(super) struct Call(u64);

impl Call {
    const SLOTS: u32 = 29;

    fn new(verb: Verb, slot: u32, size: u64) -> Self {
        Self(size.min(u32::MAX.into()) << 32 | u64::from(slot) << 3 | (verb as u64) << 1)
    }

    #[inline]
    pub fn size(self) -> usize {
        (self.0 >> 32) as usize
    }

    #[inline]
    pub fn slot(self) -> usize {
        (self.0 as u32 >> 3) as usize
    }

    /// The number of a [`Verb`].
    #[inline]
    pub fn verb(self) -> u64 {
        self.0 >> 1 & 3
    }

    #[inline]
    pub fn is_apart(self) -> bool {
        self.0 & 1 != 0
    }
}

/// The calls of mem and obj of a recording, up to a moment.
#[derive(Debug, Default)]
pub struct Calls {
    pub(super) calls: Vec<Call>,
    pub(super) slots: usize,
    /// Where arenas lay, in the order in which they were taken: the lower half of each address.
    pub(super) arenas: Vec<u32>,
}

impl Calls {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// How many of them are of blocks that are set apart.
    pub fn apart(&self) -> u64 {
        self.calls.iter().filter(|call| call.is_apart()).count() as u64
    }

    /// Writes them for the measuring program: [`MAGIC`], how many slots and calls there are (u64 each), and the calls.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        to.write_all(&MAGIC)?;
        to.write_all(&(self.slots as u64).to_le_bytes())?;
        to.write_all(&(self.calls.len() as u64).to_le_bytes())?;
        for call in &self.calls {
            to.write_all(&call.0.to_le_bytes())?;
        }
        Ok(())
    }
}

/// A watcher that collects a replay's calls of mem and obj.
#[derive(Default)]
pub struct CallsCollector {
    calls: Calls,
    /// The stack of each call, where somebody will ask for some to be set apart.
    stacks: Option<Vec<u32>>,
    is_full: bool,
}

impl CallsCollector {
    /// Collects. With `keeps_stacks`, blocks can be set apart afterwards.
    pub fn new(keeps_stacks: bool) -> Self {
        Self { stacks: keeps_stacks.then(Vec::new), ..Self::default() }
    }

    /// The calls. The blocks of stacks of which `is_apart` says so are set apart, all their lives.
    pub fn calls(self, mut is_apart: impl FnMut(u64) -> bool) -> Calls {
        let Self { mut calls, stacks, .. } = self;
        let Some(stacks) = stacks else { return calls };
        let mut answers = FxHashMap::default();
        let mut slots = vec![false; calls.slots];
        for (call, stack) in calls.calls.iter_mut().zip(stacks) {
            let slot = &mut slots[call.slot()];
            if call.verb() <= Verb::Calloc as u64 {
                *slot = *answers.entry(stack).or_insert_with(|| is_apart(stack.into()));
            }
            call.0 |= u64::from(*slot);
        }
        calls
    }

    /// Whether there were more live blocks than a call can tell apart: then the calls are of no use.
    pub fn is_full(&self) -> bool {
        self.is_full
    }
}

impl Watcher for CallsCollector {
    fn see(&mut self, seen: &Seen<'_>) -> ControlFlow<()> {
        if let Event::ArenaAlloc { nested: true, result, .. } = *seen.event
            && result != 0
        {
            self.calls.arenas.push(result as u32);
        }
        let (Fate::Made | Fate::LeftOut, Some(slot)) = (seen.fate, seen.answer().slot) else { return ControlFlow::Continue(()) };
        let (domain, verb, size) = match *seen.event {
            Event::Malloc { domain, size, .. } | Event::Realloc { domain, address: 0, size, .. } => (domain, Verb::Malloc, size),
            Event::Calloc { domain, count, size, .. } => (domain, Verb::Calloc, size.saturating_mul(count)),
            Event::Realloc { domain, size, .. } if seen.interpreter == 0 => (domain, Verb::Realloc, size),
            Event::Realloc { domain, .. } | Event::Free { domain, .. } => (domain, Verb::Free, 0),
            _ => return ControlFlow::Continue(()),
        };
        if domain == Domain::Raw {
            return ControlFlow::Continue(());
        }
        if slot >= 1 << Call::SLOTS {
            self.is_full = true;
            return ControlFlow::Break(());
        }
        self.calls.slots = self.calls.slots.max(slot as usize + 1);
        self.calls.calls.push(Call::new(verb, slot, size));
        if let Some(stacks) = &mut self.stacks {
            stacks.push(seen.stack as u32);
        }
        ControlFlow::Continue(())
    }
}
