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
//! both domain bits set the "verb" means arena taken, arena given back, or note. The flags above them are in [`tag`].
//!
//! | event | fields |
//! |---|---|
//! | malloc | size, address |
//! | calloc | count, size, address |
//! | realloc | old address, size, new address |
//! | free | address |
//! | arena taken, arena given back | size, address |
//! | note | kind byte, then as [`Note`] says |
//!
//! Between the events stand records with all four of those bits set: of Python's stacks ([`crate::stacks`]), of time, threads and memory
//! ([`crate::clock`]), of objects' types ([`crate::types`]). They are not counted as events: a trace has the same events, with the same
//! numbers, with them and without.
//!
//! The header names the process and its CPython. `sum` is a checksum of the version and of the text before `, "sum"`; older recorders wrote
//! none. `run` is the same for all traces of one recording, `id` is this trace's own. `parent` names the trace that this one continues after
//! a fork: its `path`, its `id`, and how many `bytes` of it come before. `failed` says why the recorder had to stop; until then it is `null`,
//! with blanks behind it, so that it can be set when the file cannot grow.
//!
//! The notes of kinds 2, 3, 5 and 6 stand in blocks of their own, so that they are found without reading any other block's payload. A
//! block of one event is never compressed.
//!
//! A note of kind 10 is in a trace only if the process trimmed its pools. A reader that does not know it stops there.
//!
//! An address is the zigzag difference from the address before it in the same block, shifted right by 4 (CPython's
//! addresses are multiples of 16) unless [`tag::UNALIGNED`] is set; NULL is a flag and has no bytes.
//!
//! Order: a call is written after the calls that it makes itself, so the arenas and raw blocks that a request needed come
//! before it. A raw call that a mem or obj call made carries [`tag::NESTED`]. A raw free that is not nested is written before
//! it is done, because another thread may be given the same address before this one gets to write.

mod block;
mod cursor;
mod pack;
mod reader;
mod usual;
mod writer;

pub use block::{BLOCK_HEADER, MAGIC, MAX_PAYLOAD, VERSION, file_head, header_sum};
pub use obmalloc::Domain;
pub use pack::Packer;
pub use reader::{FormatError, Reader};
pub use usual::Opened;
pub use writer::{BlockWriter, PatchToken};

pub(crate) use cursor::Cursor;

/// The most bytes that one event takes, with its stack and its thread; text notes may take more.
pub const MAX_EVENT: usize = 80;

/// Bits of the tag byte above verb and domain.
pub mod tag {
    /// Set for a raw call, or a request to the arena allocator, that a mem or obj call makes. Requests without this flag are for the
    /// interpreter's data stack, or come when a subinterpreter gives back all its arenas.
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
    /// Whether it was made from inside a call of mem or obj.
    pub fn is_nested(&self) -> bool {
        match *self {
            Self::Malloc { nested, .. }
            | Self::Calloc { nested, .. }
            | Self::Realloc { nested, .. }
            | Self::Free { nested, .. }
            | Self::ArenaAlloc { nested, .. }
            | Self::ArenaFree { nested, .. } => nested,
            Self::Note(_) => false,
        }
    }

    /// Whether it concerns one interpreter's pymalloc: a call of mem or obj, an event inside such a call, or a trim.
    pub fn is_pymallocs(&self) -> bool {
        let domain = match *self {
            Self::Malloc { domain, .. }
            | Self::Calloc { domain, .. }
            | Self::Realloc { domain, .. }
            | Self::Free { domain, .. } => domain,
            Self::Note(Note::Trim(_)) => return true,
            _ => Domain::Raw,
        };
        domain != Domain::Raw || self.is_nested()
    }

    /// Bytes that it asked for and was given.
    #[inline]
    pub(crate) fn given(&self) -> u64 {
        match *self {
            Self::Malloc { size, result, .. } | Self::Realloc { size, result, .. } | Self::ArenaAlloc { size, result, .. }
                if result != 0 =>
            {
                size
            }
            Self::Calloc { count, size, result, .. } if result != 0 => size.saturating_mul(count),
            _ => 0,
        }
    }

    /// Whether it asks for memory.
    #[inline]
    pub fn is_request(&self) -> bool {
        matches!(self, Self::Malloc { .. } | Self::Calloc { .. } | Self::Realloc { .. } | Self::ArenaAlloc { .. })
    }
}

/// What the recorder writes besides calls.
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
    /// Kind 5: a message from the recorder, for people (length, bytes).
    Text(String),
    /// Kind 6: the process goes on as another program. No event follows, unless that fails.
    Exec,
    /// Kind 7: `Py_FinalizeEx` has called the program's `atexit` functions, and is about to finalize the interpreter.
    Finalization,
    /// Kind 8: the program marks this moment, with this name (length, bytes).
    Mark(String),
    /// Kind 9: the process is about to fork.
    Fork,
    /// Kind 10: a trim forgot the free lists of these pools, which held no block: pymalloc carves each anew when it takes it the next time. They are
    /// the present interpreter's (kind 4). A trim of many pools takes several notes. (Binary logarithm of the pool size as one byte, number of pools,
    /// and for each the zigzag difference of its number from the one before; a pool's number is its address in pool sizes.)
    Trim(Vec<u64>),
}

const ARENA_ALLOC: u8 = 0b1100;
const ARENA_FREE: u8 = 0b1101;
const NOTE: u8 = 0b1110;
const STACK: u8 = 0b1111;

/// The kind of [`Note::Trim`].
const TRIM: u8 = 10;

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
        block.finalization();
        block.mark("here");
        block.fork();
        assert_eq!(block.trim(14, &[0x7f00_0000_4000, 0x7f00_0000_8000, 0x7eff_0000_0000]), 3);
        block.end();
        let mut trace = file_head("{}");
        trace.extend_from_slice(block.finish());
        trace
    }

    #[test]
    fn events_come_back_as_written() {
        use Domain::*;
        let trace = sample();
        let events: Vec<Event> = Reader::new(&trace).unwrap().map(Result::unwrap).collect();
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
                Event::Note(Note::Finalization),
                Event::Note(Note::Mark("here".into())),
                Event::Note(Note::Fork),
                Event::Note(Note::Trim(vec![0x7f00_0000_4000, 0x7f00_0000_8000, 0x7eff_0000_0000])),
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
        assert_eq!(reader.by_ref().map(Result::unwrap).count(), 19);
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
                block.malloc(Domain::Raw, false, size, 0);
                block.free(Domain::Raw, false, size);
                let trace = [&file_head("")[..], block.finish()].concat();
                let (domain, nested) = (Domain::Raw, false);
                let events = [Event::Malloc { domain, nested, size, result: 0 }, Event::Free { domain, nested, address: size }];
                assert_eq!(Reader::new(&trace).unwrap().map(Result::unwrap).collect::<Vec<_>>(), events, "{size:#x}");
            }
        }
    }

    /// The trims that stand in the blocks, one vector a note.
    fn trims(blocks: &[u8]) -> Vec<Vec<u64>> {
        let trace = [&file_head("{}")[..], blocks].concat();
        let notes = Reader::new(&trace).unwrap().map(|event| match event.unwrap() {
            Event::Note(Note::Trim(pools)) => pools,
            other => panic!("expected a trim, but got {other:?}"),
        });
        notes.collect()
    }

    #[test]
    fn trim_of_many_pools_takes_a_note_a_block() {
        let pools: Vec<u64> = (0..1000u64).map(|number| (0x7_f000 + number * number % 4096) << 14).collect();
        let mut memory = [0; 1024];
        let mut block = BlockWriter::new(&mut memory);
        let mut blocks = Vec::new();
        let mut left = &pools[..];
        while !left.is_empty() {
            let written = block.trim(14, left);
            left = &left[written..];
            blocks.extend_from_slice(block.finish());
        }
        let notes = trims(&blocks);
        assert!(notes.len() > 1, "one note of {} pools in a block of 1024 bytes", pools.len());
        assert_eq!(notes.concat(), pools);
    }

    #[test]
    fn trim_without_pools_or_room_writes_nothing() {
        let mut memory = [0; BLOCK_HEADER + MAX_EVENT + 10];
        let mut block = BlockWriter::new(&mut memory);
        assert_eq!(block.trim(14, &[]), 0);
        assert!(block.is_empty());
        assert_eq!(block.trim(12, &[u64::MAX << 12, 0]), 1, "room for one");
        assert_eq!(block.trim(12, &[1 << 12]), 0, "a block that is full");
        assert_eq!(trims(block.finish()), [[u64::MAX << 12]]);
    }

    #[test]
    fn next_to_each_other_pools_take_a_byte_each() {
        let pools: Vec<u64> = (0..1000).map(|number| 0x7f00_0000_0000 + (number << 14)).collect();
        let mut memory = [0; 16 << 10];
        let mut block = BlockWriter::new(&mut memory);
        assert_eq!(block.trim(14, &pools), 1000);
        let length = block.finish().len() - BLOCK_HEADER;
        assert!(length <= 1010, "{length} bytes for 1000 pools");
    }

    #[test]
    fn trim_of_pools_of_no_possible_size_does_not_decode() {
        let mut memory = [0; 256];
        for (shift, sound) in [(0, false), (11, false), (12, true), (18, true), (19, false), (64, false), (255, false)] {
            let mut block = BlockWriter::new(&mut memory);
            assert_eq!(block.trim(12, &[0x4000]), 1);
            let payload = [NOTE, 10, shift, 1, 8];
            assert!(block.finish().ends_with(&[NOTE, 10, 12, 1, 8]));
            let head = block::BlockHead::new(payload.len(), 1, &payload).bytes();
            let trace = [&file_head("{}")[..], &head, &payload].concat();
            assert_eq!(Reader::new(&trace).unwrap().next().unwrap().is_ok(), sound, "pools of 1 << {shift} bytes");
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
