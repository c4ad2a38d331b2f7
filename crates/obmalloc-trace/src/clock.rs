//! The time of a trace's events, their threads, and how much memory the process had.
//!
//! | record | upper bits of the tag | fields |
//! |---|---|---|
//! | time | 5 | microseconds since the trace of the first process began |
//! | memory | 6 | resident anonymous memory, resident memory of files, C's heap, the free part of C's heap; all in KiB |
//! | thread | 7 | the system's number of the thread that makes the events that follow; a block begins with none |
//!
//! These records stand between the events, as those of stacks do, and are not counted as events, so they change no event's number. There is
//! a time at least every few thousand events, and before every arena that is taken or given back.

#![forbid(unsafe_code)]

use serde::Serialize;

use crate::format::Cursor;

pub(crate) const TIME: u8 = 5 << 4;
pub(crate) const MEMORY: u8 = 6 << 4;
pub(crate) const THREAD: u8 = 7 << 4;

/// How much memory a process had, as far as the system and its C library tell. Bytes, to the next KiB below.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    /// Resident and backed by no file: heaps, arenas, stacks.
    pub anonymous: u64,
    /// Resident, of files and shared memory.
    pub file: u64,
    /// Bytes that C's `malloc` has from the system; 0 if it does not tell.
    pub heap: u64,
    /// The part of `heap` that is in no block.
    pub heap_free: u64,
}

impl Memory {
    /// All that is resident.
    pub fn resident(&self) -> u64 {
        self.anonymous.saturating_add(self.file)
    }
}

/// What has been read of time, memory and threads so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Clock {
    /// Microseconds since the trace of the first process began, as last told. Traces before format 4 do not tell: 0.
    pub micros: u64,
    /// The last sample of memory.
    pub memory: Option<Memory>,
    /// How many samples there were.
    pub samples: u64,
    /// The thread that makes the events that follow; 0 where that is not known.
    pub thread: u64,
}

/// Reads one record. `None` when it does not decode.
pub(crate) fn read(from: &mut Cursor<'_>, clock: &mut Clock) -> Option<()> {
    match from.byte()? & 0xf0 {
        TIME => clock.micros = from.varint()?,
        THREAD => clock.thread = from.varint()?,
        MEMORY => {
            let mut kib = || from.varint().map(|kib| kib.saturating_mul(1024));
            clock.memory = Some(Memory { anonymous: kib()?, file: kib()?, heap: kib()?, heap_free: kib()? });
            clock.samples += 1;
        }
        _ => return None,
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{BlockWriter, Domain, FormatError, Reader, file_head};

    #[test]
    fn time_memory_and_thread_come_back_and_are_no_events() {
        let memory = Memory { anonymous: 5 << 20, file: 3 << 20, heap: 1 << 40, heap_free: 1024 };
        let mut bytes = [0; 4096];
        let mut block = BlockWriter::new(&mut bytes);
        block.malloc(Domain::Obj, false, 64, 0x1000);
        block.time(7);
        block.thread(4711);
        block.malloc(Domain::Obj, false, 64, 0x2000);
        let first = block.finish().to_vec();
        block.time(1 << 40);
        block.memory(&memory);
        block.malloc(Domain::Obj, false, 64, 0x3000);
        let trace = [&file_head("{}"), &first, block.finish()].concat();
        let mut reader = Reader::new(&trace).expect("a trace");
        let mut clocks = Vec::new();
        while let Some(event) = reader.next() {
            event.expect("undamaged");
            clocks.push(*reader.clock());
        }
        let clock = Clock::default();
        assert_eq!(
            clocks,
            [
                clock,
                Clock { micros: 7, thread: 4711, ..clock },
                Clock { micros: 1 << 40, memory: Some(memory), samples: 1, thread: 0 }
            ]
        );
    }

    #[test]
    fn traces_of_format_3_have_no_such_records() {
        let mut bytes = [0; 4096];
        let mut block = BlockWriter::new(&mut bytes);
        block.time(7);
        block.malloc(Domain::Obj, false, 64, 0x1000);
        let mut trace = [&file_head("{}")[..], block.finish()].concat();
        trace[8] = 3;
        assert_eq!(Reader::new(&trace).expect("a trace").next(), Some(Err(FormatError::Event(18, 0))));
    }
}
