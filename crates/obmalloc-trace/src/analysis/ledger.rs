//! The books: the live block in each slot of the replay, and what each stack has asked for. Their size depends on how many blocks are live
//! and how many stacks there are.

#![forbid(unsafe_code)]

use obmalloc::profile::Geometry;
use rustc_hash::FxHashMap;

use super::deaths::Deaths;
use crate::format::{Domain, Event};
use crate::watch::{Fate, Seen};

/// A block that is freed within this many events after it was made was temporary.
const TEMPORARY: u64 = 10_000;

/// Where a block lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The slot has no block.
    Gone,
    /// The raw domain's, which C's `malloc` serves.
    Raw,
    /// At C's `malloc`, to which mem or obj passed the request on: above 512 bytes.
    Large,
    /// In a pool of this size class.
    Pool(u8),
}

/// A live block.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    /// The event that made it; for a block that a realloc moved, the realloc.
    pub born: u64,
    /// Its address in the recorded process, if it lies in a pool.
    pub address: u64,
    /// Bytes that were asked for.
    pub asked: u64,
    /// The stack that asked for it.
    pub node: u32,
    /// Where it lies.
    pub kind: Kind,
}

const GONE: Block = Block { born: 0, address: 0, asked: 0, node: 0, kind: Kind::Gone };

/// What a stack has asked for so far, bytes as they were asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs, reason = "blocks and bytes that were made, those of them that are gone, and those that were temporary")]
pub struct Flow {
    pub made_blocks: u64,
    pub gone_blocks: u64,
    pub made: u64,
    pub gone: u64,
    pub temporary: u64,
}

impl Flow {
    /// Bytes that are live.
    pub fn live(&self) -> u64 {
        self.made - self.gone
    }
}

/// Blocks, and bytes of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs, reason = "blocks, and bytes of them")]
pub struct Sum {
    pub blocks: u64,
    pub bytes: u64,
}

impl Sum {
    /// Counts one block more.
    pub fn put(&mut self, bytes: u64) {
        self.blocks += 1;
        self.bytes += bytes;
    }

    fn take(&mut self, bytes: u64) {
        self.blocks -= 1;
        self.bytes -= bytes;
    }
}

/// From so many bytes at C's `malloc` on it is noted what was there.
const WORTH_A_NOTE: u64 = 4 << 20;

/// What was at C's `malloc` when it had at least four fifths of the most that it ever had.
#[derive(Clone, Debug, Default)]
pub struct Full {
    /// When that was.
    pub event: u64,
    /// By stack.
    pub nodes: FxHashMap<u32, Sum>,
    /// Bytes in all.
    bytes: u64,
}

/// The books.
#[derive(Debug, Default)]
pub struct Ledger {
    /// By slot.
    blocks: Vec<Block>,
    /// By stack.
    flows: Vec<Flow>,
    /// By size class; then the raw domain's, then those above 512 bytes.
    kinds: Vec<Flow>,
    /// Most bytes that were at C's `malloc`.
    pub most_outside: u64,
    /// What was there when there was most, or nearly so.
    pub full: Full,
    /// In pools, at their size classes' sizes.
    pub live: Sum,
    /// The raw domain's, as asked for.
    pub raw: Sum,
    /// Above 512 bytes, as asked for.
    pub large: Sum,
    /// Counts what dies from a moment on.
    pub deaths: Option<Box<Deaths>>,
    /// Bytes between the sizes of two classes.
    alignment: u64,
}

impl Ledger {
    /// Empty ones, for a release's sizes.
    pub fn new(geometry: Geometry) -> Self {
        let kinds = vec![Flow::default(); geometry.size_classes() + 2];
        Self { alignment: geometry.alignment as u64, kinds, ..Self::default() }
    }

    /// The live blocks, with their slots.
    pub fn blocks(&self) -> impl Iterator<Item = (u32, &Block)> {
        (0..).zip(&self.blocks).filter(|(_, block)| block.kind != Kind::Gone)
    }

    /// What the stacks have asked for so far, by their numbers.
    pub fn flows(&self) -> &[Flow] {
        &self.flows
    }

    /// As [`flows`](Self::flows), by size class; then the raw domain's, then those above 512 bytes.
    pub fn kinds(&self) -> &[Flow] {
        &self.kinds
    }

    fn kind_of(&self, kind: Kind) -> usize {
        match kind {
            Kind::Pool(class) => usize::from(class),
            Kind::Raw => self.kinds.len() - 2,
            _ => self.kinds.len() - 1,
        }
    }

    /// Size of the blocks of a class.
    pub fn class_size(&self, class: u8) -> u64 {
        (u64::from(class) + 1) * self.alignment
    }

    #[inline]
    pub fn see(&mut self, seen: &Seen<'_>) {
        let (Fate::Made | Fate::LeftOut, Some(slot)) = (seen.fate, seen.answer().slot) else { return };
        let now = seen.operation;
        let (domain, asked) = match *seen.event {
            Event::Malloc { domain, size, .. } => (domain, size),
            Event::Calloc { domain, count, size, .. } => (domain, size.saturating_mul(count)),
            Event::Realloc { domain, address, size, .. } if seen.fate == Fate::Made => {
                if address != 0 {
                    let answer = seen.answer();
                    if answer.inside && self.blocks[slot as usize].address == answer.got {
                        return;
                    }
                    self.gone(slot, now);
                }
                (domain, size)
            }
            Event::Realloc { .. } | Event::Free { .. } => return self.gone(slot, now),
            _ => return,
        };
        self.made(slot, domain, asked, seen);
    }

    #[inline]
    fn made(&mut self, slot: u32, domain: Domain, asked: u64, seen: &Seen<'_>) {
        let answer = seen.answer();
        let class = (asked.max(1) - 1) / self.alignment;
        let kind = match domain {
            // A trace can claim that an arena has a block that is too large for it.
            _ if answer.inside && class + 2 < self.kinds.len() as u64 => {
                self.live.put((class + 1) * self.alignment);
                Kind::Pool(class as u8)
            }
            Domain::Raw => {
                self.raw.put(asked);
                Kind::Raw
            }
            _ => {
                self.large.put(asked);
                Kind::Large
            }
        };
        let outside = self.raw.bytes + self.large.bytes;
        self.most_outside = self.most_outside.max(outside);
        let node = u32::try_from(seen.stack).unwrap_or(0);
        let block = Block { born: seen.operation, address: answer.got, asked, node, kind };
        match self.blocks.get_mut(slot as usize) {
            Some(place) => *place = block,
            None => {
                self.blocks.resize(slot as usize, GONE);
                self.blocks.push(block);
            }
        }
        if self.flows.len() <= node as usize {
            self.flows.resize(node as usize + 1, Flow::default());
        }
        let kind = self.kind_of(kind);
        for flow in [&mut self.flows[node as usize], &mut self.kinds[kind]] {
            flow.made_blocks += 1;
            flow.made += asked;
        }
        // Seldom: it is more by a fourth each time.
        if outside >= WORTH_A_NOTE && outside / 5 * 4 > self.full.bytes {
            self.note_full(seen.operation, outside);
        }
    }

    #[cold]
    fn note_full(&mut self, event: u64, bytes: u64) {
        let mut nodes: FxHashMap<u32, Sum> = FxHashMap::default();
        for block in self.blocks.iter().filter(|block| matches!(block.kind, Kind::Raw | Kind::Large)) {
            nodes.entry(block.node).or_default().put(block.asked);
        }
        self.full = Full { event, nodes, bytes };
    }

    #[inline]
    fn gone(&mut self, slot: u32, now: u64) {
        let Some(place) = self.blocks.get_mut(slot as usize) else { return };
        let block = std::mem::replace(place, GONE);
        match block.kind {
            Kind::Gone => return,
            Kind::Raw => self.raw.take(block.asked),
            Kind::Large => self.large.take(block.asked),
            Kind::Pool(class) => self.live.take((u64::from(class) + 1) * self.alignment),
        }
        if let Some(deaths) = &mut self.deaths {
            deaths.see(&block, now);
        }
        let temporary = if now - block.born <= TEMPORARY { block.asked } else { 0 };
        let kind = self.kind_of(block.kind);
        for flow in [&mut self.flows[block.node as usize], &mut self.kinds[kind]] {
            flow.gone_blocks += 1;
            flow.gone += block.asked;
            flow.temporary += temporary;
        }
    }
}
