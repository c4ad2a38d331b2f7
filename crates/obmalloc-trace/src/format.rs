//! The trace format: what the recorder writes and everything else reads.
//!
//! ```text
//! file    = magic "obmtrace" | u32 version | u32 header length | header (UTF-8 JSON) | block*
//! block   = u32 stored length | u32 payload length | u32 event count | u64 checksum of lengths, count and stored | stored
//! stored  = payload, or where it is shorter than that: payload, compressed by zstd
//! payload = event*
//! event   = tag byte | fields
//! ```
//!
//! Fixed integers are little-endian, the others are LEB128 varints. A block can be read without the ones before it
//! (deltas start anew), so a trace that was cut off is readable up to its last whole block. Blocks of version 2 and before have no payload
//! length and are never compressed; their checksums are of the payload alone.
//!
//! The tag's low two bits are the verb (malloc, calloc, realloc, free), the next two the domain (raw, mem, obj); with
//! both domain bits set the "verb" says arena taken, arena released, or note. The flags above them are in [`tag`].
//!
//! | event | fields |
//! |---|---|
//! | malloc | size, address |
//! | calloc | count, size, address |
//! | realloc | old address, size, new address |
//! | free | address |
//! | arena taken, arena released | size, address |
//! | note | kind byte, then as [`Note`] says |
//!
//! Between the events stand records of Python's stacks, with all four of those bits set: [`crate::stacks`] describes them. They are not
//! counted as events: a trace with stacks has the events, and their numbers, of one without.
//!
//! The header names the process and its CPython. `run` is what all traces of one recording have in common, `id` is this trace's own,
//! `parent` names the trace that this one continues after a fork: its `path`, its `id`, and how many `bytes` of it come before. `failed`
//! says why the recorder had to stop; until then it is `null`, with blanks behind it, so that it can be set where no file can grow.
//!
//! The notes of kinds 2, 3, 5 and 6 stand in blocks of their own, so that they are found without reading any other block's payload. A
//! block of one event is never compressed.
//!
//! An address is the zigzag difference from the address before it in the same block, shifted right by 4 (CPython's
//! addresses are multiples of 16) unless [`tag::UNALIGNED`] is set; NULL is a flag and has no bytes.
//!
//! Order: a call is written after the calls that it makes itself, so the arenas and raw blocks that a request needed come
//! before it. A raw call that a mem or obj call made carries [`tag::NESTED`]. A raw free that is not nested is written before
//! it is done, because another thread may be given the same address before this one gets to write.

use crate::stacks;

mod block;
mod pack;
mod reader;

use block::BlockHead;
pub use block::{BLOCK_HEADER, MAGIC, MAX_PAYLOAD, VERSION, file_head};
pub use obmalloc::Domain;
pub use pack::Packer;
pub use reader::{FormatError, Reader};

/// Most bytes that one event other than a text note takes, with the stack that it was made under.
pub const MAX_EVENT: usize = 48;

/// Bits of the tag byte above verb and domain.
pub mod tag {
    /// Made from inside a mem or obj call: a raw call, or an arena that pymalloc takes or gives back. Others at the arena allocator are the
    /// interpreter's data stack, or a whole subinterpreter's arenas.
    pub const NESTED: u8 = 1 << 4;
    /// The call's result, or the address freed, is NULL.
    pub const NULL: u8 = 1 << 5;
    /// The addresses of this event are no multiples of 16 and stand unshifted.
    pub const UNALIGNED: u8 = 1 << 6;
    /// A realloc of NULL.
    pub const FROM_NULL: u8 = 1 << 7;
}

/// One thing that happened. Addresses are as the recorded process had them, 0 for NULL.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the fields are the arguments and result of the call they are named after")]
pub enum Event {
    Malloc { domain: Domain, nested: bool, size: u64, result: u64 },
    Calloc { domain: Domain, nested: bool, count: u64, size: u64, result: u64 },
    Realloc { domain: Domain, nested: bool, address: u64, size: u64, result: u64 },
    Free { domain: Domain, nested: bool, address: u64 },
    ArenaAlloc { nested: bool, size: u64, result: u64 },
    ArenaFree { nested: bool, size: u64, address: u64 },
    Note(Note),
}

impl Event {
    /// Whether it is a matter of one interpreter's pymalloc: a call of mem or obj, or what such a call makes itself.
    pub fn is_pymallocs(&self) -> bool {
        match *self {
            Self::Malloc { domain, nested, .. }
            | Self::Calloc { domain, nested, .. }
            | Self::Realloc { domain, nested, .. }
            | Self::Free { domain, nested, .. } => nested || domain != Domain::Raw,
            Self::ArenaAlloc { nested, .. } | Self::ArenaFree { nested, .. } => nested,
            Self::Note(_) => false,
        }
    }

    /// Whether it asks for memory.
    #[inline]
    pub fn is_request(&self) -> bool {
        matches!(self, Self::Malloc { .. } | Self::Calloc { .. } | Self::Realloc { .. } | Self::ArenaAlloc { .. })
    }
}

/// What the recorder has to say besides calls.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Note {
    /// Kind 0: the text of `sys._debugmallocstats()` at this point (length, bytes).
    Stats(String),
    /// Kind 1: `sys.getallocatedblocks()` at this point (u64).
    AllocatedBlocks(u64),
    /// Kind 2: from here on these domains' calls are no longer seen, because something replaced the recorder's allocators
    /// (one byte, bit 0 raw, bit 1 mem, bit 2 obj).
    HooksLost(u8),
    /// Kind 3: the process ended in an orderly way and nothing is missing from the trace.
    End,
    /// Kind 4: from here to the next such note, the calls of mem and obj, and what is nested in them, are of the interpreter with this
    /// id (varint), which has an allocator of its own; 0 is the main one, with which every trace begins. Raw calls that are not nested
    /// are the whole process's.
    Interpreter(u64),
    /// Kind 5: what the recorder has to say, for people (length, bytes).
    Text(String),
    /// Kind 6: the process goes on as another program. Nothing comes after it, unless that fails.
    Exec,
}

const ARENA_ALLOC: u8 = 0b1100;
const ARENA_FREE: u8 = 0b1101;
const NOTE: u8 = 0b1110;
const STACK: u8 = 0b1111;

/// Writes events into a block of memory that its owner provides; allocates nothing, and can be used inside an allocator.
///
/// The block header is left to [`BlockWriter::finish`], so the filled bytes can be written to a file as they are.
pub struct BlockWriter<'a> {
    bytes: &'a mut [u8],
    at: usize,
    count: u32,
    last: u64,
    /// The stack of the requests that come next.
    node: u64,
}

impl<'a> BlockWriter<'a> {
    /// Starts a block in `bytes`, which must hold the header and at least one event.
    pub fn new(bytes: &'a mut [u8]) -> Self {
        assert!(bytes.len() >= BLOCK_HEADER + MAX_EVENT, "a block of {} bytes holds no event", bytes.len());
        Self { bytes, at: BLOCK_HEADER, count: 0, last: 0, node: 0 }
    }

    /// Whether the block has room for `extra` more bytes than any one event takes.
    #[inline]
    pub fn has_room(&self, extra: usize) -> bool {
        self.bytes.len() - self.at >= MAX_EVENT + extra
    }

    /// Number of events written since the block began.
    #[inline]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Whether nothing has been written since the block began.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.at == BLOCK_HEADER
    }

    /// Completes the block and gives its bytes; an empty block gives none. The writer then starts the next block in the same memory.
    pub fn finish(&mut self) -> &[u8] {
        let end = self.at;
        if self.is_empty() {
            return &[];
        }
        let head = BlockHead::new(end - BLOCK_HEADER, self.count, &self.bytes[BLOCK_HEADER..end]);
        self.bytes[..BLOCK_HEADER].copy_from_slice(&head.bytes());
        (self.at, self.count, self.last, self.node) = (BLOCK_HEADER, 0, 0, 0);
        &self.bytes[..end]
    }

    #[inline]
    fn byte(&mut self, byte: u8) {
        self.bytes[self.at] = byte;
        self.at += 1;
    }

    #[inline]
    fn varint(&mut self, value: u64) {
        self.fields(|out, at| put_varint(out, at, value));
    }

    /// Writes fields of at most [`MAX_FIELDS`] bytes through a window of that size, so that they need no check each.
    #[inline]
    fn fields(&mut self, write: impl FnOnce(&mut [u8; MAX_FIELDS], usize) -> usize) {
        let out = self.bytes[self.at..].first_chunk_mut().expect("the owner looks for room first");
        self.at += write(out, 0);
    }

    #[inline]
    fn delta(&mut self, address: u64, shift: u32) -> u64 {
        let delta = (address.wrapping_sub(self.last) as i64) >> shift;
        self.last = address;
        ((delta << 1) ^ (delta >> 63)) as u64
    }

    #[inline]
    fn address(&mut self, address: u64, shift: u32) {
        let delta = self.delta(address, shift);
        self.varint(delta);
    }

    /// Tag bits and shift for an event whose non-NULL addresses are ORed together in `bits`. The address before it may have
    /// been odd, so the difference is what decides.
    #[inline]
    fn alignment(&self, bits: u64) -> (u8, u32) {
        if (bits | self.last) & 15 == 0 { (0, 4) } else { (tag::UNALIGNED, 0) }
    }

    /// A malloc that gave `result` (0 for NULL).
    #[inline]
    pub fn malloc(&mut self, domain: Domain, nested: bool, size: u64, result: u64) {
        let (flag, shift) = self.alignment(result);
        let tag = ((domain as u8) << 2) | nested_bit(nested) | null_bit(result) | flag;
        self.count += 1;
        let delta = if result == 0 { None } else { Some(self.delta(result, shift)) };
        self.fields(|out, at| {
            let at = put_byte(out, at, tag);
            let at = put_varint(out, at, size);
            delta.map_or(at, |delta| put_varint(out, at, delta))
        });
    }

    /// A calloc that gave `result` (0 for NULL).
    #[inline]
    pub fn calloc(&mut self, domain: Domain, nested: bool, count: u64, size: u64, result: u64) {
        let (flag, shift) = self.alignment(result);
        self.byte(1 | ((domain as u8) << 2) | nested_bit(nested) | null_bit(result) | flag);
        self.varint(count);
        self.varint(size);
        self.result(result, shift);
    }

    /// A realloc of `address` (0 for NULL) that gave `result` (0 for NULL).
    #[inline]
    pub fn realloc(&mut self, domain: Domain, nested: bool, address: u64, size: u64, result: u64) {
        let (flag, shift) = self.alignment(address | result);
        let from = if address == 0 { tag::FROM_NULL } else { 0 };
        self.byte(2 | ((domain as u8) << 2) | nested_bit(nested) | null_bit(result) | flag | from);
        if address != 0 {
            self.address(address, shift);
        }
        self.varint(size);
        self.result(result, shift);
    }

    /// A free of `address` (0 for NULL).
    #[inline]
    pub fn free(&mut self, domain: Domain, nested: bool, address: u64) {
        let (flag, shift) = self.alignment(address);
        let tag = 3 | ((domain as u8) << 2) | nested_bit(nested) | null_bit(address) | flag;
        self.count += 1;
        let delta = if address == 0 { None } else { Some(self.delta(address, shift)) };
        self.fields(|out, at| {
            let at = put_byte(out, at, tag);
            delta.map_or(at, |delta| put_varint(out, at, delta))
        });
    }

    /// The arena allocator was asked for `size` bytes and gave `result` (0 for NULL).
    pub fn arena_alloc(&mut self, nested: bool, size: u64, result: u64) {
        self.arena(ARENA_ALLOC | nested_bit(nested), size, result);
    }

    /// The arena allocator was given `size` bytes at `address` (0 for NULL) back.
    pub fn arena_free(&mut self, nested: bool, size: u64, address: u64) {
        self.arena(ARENA_FREE | nested_bit(nested), size, address);
    }

    fn arena(&mut self, verb: u8, size: u64, address: u64) {
        let (flag, shift) = self.alignment(address);
        self.byte(verb | null_bit(address) | flag);
        self.varint(size);
        self.result(address, shift);
    }

    #[inline]
    fn result(&mut self, address: u64, shift: u32) {
        if address != 0 {
            self.address(address, shift);
        }
        self.count += 1;
    }

    /// The statistics text; the block must have [room](Self::has_room) for its length.
    pub fn stats(&mut self, text: &[u8]) {
        self.long_note(0, text);
    }

    /// What the recorder has to say; the block must have [room](Self::has_room) for its length.
    pub fn text(&mut self, text: &str) {
        self.long_note(5, text.as_bytes());
    }

    fn long_note(&mut self, kind: u8, text: &[u8]) {
        self.note(kind);
        self.long(text);
    }

    fn long(&mut self, bytes: &[u8]) {
        self.varint(bytes.len() as u64);
        self.bytes[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }

    /// The requests that follow in this block are made under the stack `node`.
    #[inline]
    pub fn stack(&mut self, node: u64) {
        if node != self.node {
            let delta = node.wrapping_sub(self.node) as i64;
            self.node = node;
            self.fields(|out, at| {
                let at = put_byte(out, at, STACK | stacks::HERE);
                put_varint(out, at, ((delta << 1) ^ (delta >> 63)) as u64)
            });
        }
    }

    /// Describes the next node of the tree of stacks: its parent is so many nodes `before` it.
    pub fn node(&mut self, before: u64, code: u64, at: u64) {
        self.byte(STACK | stacks::NODE);
        self.varint(before);
        self.varint(code);
        self.varint(at);
    }

    /// Describes the next text; the block must have [room](Self::has_room) for its length.
    pub fn stack_text(&mut self, text: &[u8]) {
        self.byte(STACK | stacks::TEXT);
        self.long(text);
    }

    /// Describes the next code object, with the beginning of its line table; the block must have [room](Self::has_room) for that.
    pub fn code(&mut self, file: u64, function: u64, first_line: u64, lines: u8, table: &[u8]) {
        self.byte(STACK | stacks::CODE);
        self.varint(file);
        self.varint(function);
        self.varint(first_line);
        self.byte(lines);
        self.long(table);
    }

    /// Goes on with the line table of the last code object; the block must have [room](Self::has_room) for the bytes.
    pub fn more_lines(&mut self, table: &[u8]) {
        self.byte(STACK | stacks::MORE);
        self.long(table);
    }

    /// The count of allocated blocks at this point. The count may be known only after further events: the token lets
    /// [`patch`](Self::patch) set it, as long as the block has not been finished.
    pub fn allocated_blocks(&mut self, count: u64) -> PatchToken {
        self.note(1);
        let token = PatchToken(self.at);
        self.bytes[self.at..self.at + 8].copy_from_slice(&count.to_le_bytes());
        self.at += 8;
        token
    }

    /// Sets the count of an [`allocated_blocks`](Self::allocated_blocks) note in the block being written.
    pub fn patch(&mut self, token: PatchToken, count: u64) {
        self.bytes[token.0..token.0 + 8].copy_from_slice(&count.to_le_bytes());
    }

    /// The calls of these domains can no longer be seen.
    pub fn hooks_lost(&mut self, domains: u8) {
        self.note(2);
        self.byte(domains);
    }

    /// The recorded process ended in an orderly way.
    pub fn end(&mut self) {
        self.note(3);
    }

    /// The process goes on as another program.
    pub fn exec(&mut self) {
        self.note(6);
    }

    /// The calls that follow are of the interpreter with this id.
    pub fn interpreter(&mut self, id: u64) {
        self.note(4);
        self.varint(id);
    }

    fn note(&mut self, kind: u8) {
        self.byte(NOTE);
        self.byte(kind);
        self.count += 1;
    }
}

/// Most bytes that an event's tag and three varints take, and one more, which makes it a power of two.
const MAX_FIELDS: usize = 32;

/// Puts one byte at `at`; gives what comes after it.
#[inline]
fn put_byte(out: &mut [u8; MAX_FIELDS], at: usize, byte: u8) -> usize {
    out[at % MAX_FIELDS] = byte;
    at + 1
}

/// Puts a varint at `at`; gives what comes after it.
#[inline]
fn put_varint(out: &mut [u8; MAX_FIELDS], mut at: usize, mut value: u64) -> usize {
    while value >= 0x80 {
        at = put_byte(out, at, value as u8 | 0x80);
        value >>= 7;
    }
    put_byte(out, at, value as u8)
}

/// Where in the present block a count can still be set.
pub struct PatchToken(usize);

#[inline]
fn nested_bit(nested: bool) -> u8 {
    if nested { tag::NESTED } else { 0 }
}

#[inline]
fn null_bit(address: u64) -> u8 {
    if address == 0 { tag::NULL } else { 0 }
}

/// A position inside a payload.
pub(crate) struct Cursor<'a> {
    payload: &'a [u8],
    pub(crate) at: usize,
    last: u64,
}

impl Cursor<'_> {
    pub(crate) fn byte(&mut self) -> Option<u8> {
        let byte = *self.payload.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    pub(crate) fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn address(&mut self, tag: u8) -> Option<u64> {
        let zigzag = self.varint()?;
        let delta = (zigzag >> 1) as i64 ^ -((zigzag & 1) as i64);
        let shift = if tag & tag::UNALIGNED == 0 { 4 } else { 0 };
        self.last = self.last.wrapping_add((delta << shift) as u64);
        Some(self.last)
    }

    fn result(&mut self, tag: u8) -> Option<u64> {
        if tag & tag::NULL == 0 { self.address(tag) } else { Some(0) }
    }

    // Else it becomes a call, which costs a replay a fifth of its time.
    #[inline(always)]
    fn event(&mut self) -> Option<Event> {
        let tag = self.byte()?;
        let nested = tag & tag::NESTED != 0;
        let domain = match (tag >> 2) & 3 {
            0 => Domain::Raw,
            1 => Domain::Mem,
            2 => Domain::Obj,
            _ => {
                return match tag & 15 {
                    ARENA_ALLOC => Some(Event::ArenaAlloc { nested, size: self.varint()?, result: self.result(tag)? }),
                    ARENA_FREE => Some(Event::ArenaFree { nested, size: self.varint()?, address: self.result(tag)? }),
                    NOTE => self.note().map(Event::Note),
                    _ => None,
                };
            }
        };
        Some(match tag & 3 {
            0 => Event::Malloc { domain, nested, size: self.varint()?, result: self.result(tag)? },
            1 => Event::Calloc { domain, nested, count: self.varint()?, size: self.varint()?, result: self.result(tag)? },
            2 => {
                let address = if tag & tag::FROM_NULL == 0 { self.address(tag)? } else { 0 };
                Event::Realloc { domain, nested, address, size: self.varint()?, result: self.result(tag)? }
            }
            _ => Event::Free { domain, nested, address: self.result(tag)? },
        })
    }

    fn note(&mut self) -> Option<Note> {
        Some(match self.byte()? {
            0 => Note::Stats(self.text()?),
            1 => {
                let count = self.payload.get(self.at..self.at + 8)?;
                self.at += 8;
                Note::AllocatedBlocks(u64::from_le_bytes(count.try_into().ok()?))
            }
            2 => Note::HooksLost(self.byte()?),
            3 => Note::End,
            4 => Note::Interpreter(self.varint()?),
            5 => Note::Text(self.text()?),
            6 => Note::Exec,
            _ => return None,
        })
    }

    pub(crate) fn text(&mut self) -> Option<String> {
        self.long().map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }

    /// A length, and as many bytes.
    pub(crate) fn long(&mut self) -> Option<&[u8]> {
        let length = usize::try_from(self.varint()?).ok()?;
        let end = self.at.checked_add(length)?;
        let bytes = self.payload.get(self.at..end)?;
        self.at = end;
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes before the first block of a trace whose header is `{}`.
    const HEAD: usize = 18;

    fn sample() -> Vec<u8> {
        let mut memory = vec![0; 4096];
        let mut block = BlockWriter::new(&mut memory);
        block.malloc(Domain::Obj, false, 64, 0x7f00_0000_1030);
        block.calloc(Domain::Raw, true, 1, 262_144, 0x5555_0000_0010);
        block.realloc(Domain::Mem, false, 0, 513, 0x5555_0000_0013);
        block.realloc(Domain::Mem, false, 0x5555_0000_0013, u64::MAX, 0);
        block.free(Domain::Obj, false, 0);
        block.free(Domain::Obj, false, 0x7f00_0000_1030);
        block.arena_alloc(true, 1 << 20, 0x7f00_0000_0000);
        block.arena_free(false, 16384, 0);
        let token = block.allocated_blocks(0);
        block.stats(b"text");
        block.patch(token, 77);
        block.hooks_lost(5);
        block.interpreter(3);
        block.text("said");
        block.exec();
        block.end();
        let mut trace = file_head("{}");
        trace.extend_from_slice(block.finish());
        trace
    }

    #[test]
    fn events_come_back_as_written() {
        let trace = sample();
        let events: Vec<Event> = Reader::new(&trace).unwrap().map(Result::unwrap).collect();
        use Domain::*;
        assert_eq!(
            events,
            [
                Event::Malloc { domain: Obj, nested: false, size: 64, result: 0x7f00_0000_1030 },
                Event::Calloc { domain: Raw, nested: true, count: 1, size: 262_144, result: 0x5555_0000_0010 },
                Event::Realloc { domain: Mem, nested: false, address: 0, size: 513, result: 0x5555_0000_0013 },
                Event::Realloc { domain: Mem, nested: false, address: 0x5555_0000_0013, size: u64::MAX, result: 0 },
                Event::Free { domain: Obj, nested: false, address: 0 },
                Event::Free { domain: Obj, nested: false, address: 0x7f00_0000_1030 },
                Event::ArenaAlloc { nested: true, size: 1 << 20, result: 0x7f00_0000_0000 },
                Event::ArenaFree { nested: false, size: 16384, address: 0 },
                Event::Note(Note::AllocatedBlocks(77)),
                Event::Note(Note::Stats("text".into())),
                Event::Note(Note::HooksLost(5)),
                Event::Note(Note::Interpreter(3)),
                Event::Note(Note::Text("said".into())),
                Event::Note(Note::Exec),
                Event::Note(Note::End),
            ]
        );
    }

    #[test]
    fn cut_trace_is_read_up_to_its_last_whole_block() {
        let first = sample();
        let mut trace = first.clone();
        trace.extend_from_slice(&first[HEAD..]);
        trace.pop();
        let mut reader = Reader::new(&trace).unwrap();
        assert_eq!(reader.by_ref().map(Result::unwrap).count(), 15);
        assert!(reader.truncated());
    }

    #[test]
    fn every_damaged_byte_of_a_block_is_noticed() {
        let good = sample();
        for at in HEAD + 4..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            let last = Reader::new(&bad).unwrap().last().unwrap();
            assert_eq!(last, Err(FormatError::Checksum(HEAD as u64)), "byte {at}");
        }
    }

    #[test]
    fn varints_of_every_length_come_back() {
        for bits in 0..64 {
            for size in [1u64 << bits, (1u64 << bits) - 1, u64::MAX >> bits, 0x5a5a_5a5a_5a5a_5a5a >> bits] {
                let mut memory = [0; 256];
                let mut block = BlockWriter::new(&mut memory);
                block.malloc(Domain::Raw, false, size, size);
                let trace = [&file_head("")[..], block.finish()].concat();
                let event = Event::Malloc { domain: Domain::Raw, nested: false, size, result: size };
                assert_eq!(Reader::new(&trace).unwrap().map(Result::unwrap).collect::<Vec<_>>(), [event], "{size:#x}");
            }
        }
    }

    #[test]
    fn what_is_no_trace_is_refused() {
        assert_eq!(Reader::new(b"").err(), Some(FormatError::NotATrace));
        assert_eq!(Reader::new([0; 64]).err(), Some(FormatError::NotATrace));
        let mut other = file_head("{}");
        other[8] = 9;
        assert_eq!(Reader::new(&other).err(), Some(FormatError::Version(9)));
        other[8] = 0;
        assert_eq!(Reader::new(&other).err(), Some(FormatError::Version(0)));
        other[8] = 1;
        assert!(Reader::new(&other).is_ok(), "older traces stay readable");
        assert_eq!(Reader::new(&file_head("{}")[..17]).err(), Some(FormatError::Header));
    }
}
