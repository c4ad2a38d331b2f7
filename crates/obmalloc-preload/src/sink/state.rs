//! The sink's state under its lock: the block that is being written, and the work on it that is needed only now and then.
//!
//! Invariants:
//! 1. While the file is not open, or checkpoints remain, `reserve` is larger than any block. Then one comparison sends every event to
//!    [`State::make_room`]. While there are checkpoints, every event is one, so that their places do not depend on how many bytes events take.
//! 2. The block is open for [`write_usually`](super::write_usually) only if that comparison would let the event pass, and while there is one
//!    interpreter.
//! 3. `written` is the end of a block in the file, whatever happens to the file afterwards.

use super::{SIGNALLED, SIGNALLED_NAME, SIGNALLED_ROOM, process_id};
use crate::clock::{Clock, thread_number};
use crate::file::OutFile;
use crate::header::{Header, Identity, Parent, failure_text};
use crate::lock::Errno;
use crate::stacks::{Lost, Out, Stacks};
use crate::types::Found;
use crate::{inside, interpreters, unsaid};
use obmalloc_trace::format::{BlockWriter, MAX_EVENT, Packer, file_head};
use std::io::Error;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

/// Bytes of the block: small enough to leave the cache to the program and to lose little, large enough to be written rarely.
pub const BLOCK_SIZE: usize = 64 << 10;
/// Words of memory for compressing a block.
pub const PACKING_SIZE: usize = 64 << 10;
/// A `reserve` larger than any block. It is half of the largest number, so that adding to it cannot overflow.
const OUT_OF_REACH: usize = usize::MAX / 2;
/// The most bytes that a text note takes beside its text.
pub const TEXT_HEAD: usize = 16;
/// Bytes of the block between two looks at the clock: a thousand events or so.
const TICK: usize = 4 << 10;
/// The most bytes that a look at the clock writes.
pub const TICK_ROOM: usize = 64;

pub struct State {
    pub reserve: usize,
    pub block: BlockWriter<'static>,
    /// Compresses blocks. It takes no memory, because it may run inside the program's allocator.
    pub packer: Option<Packer<'static>>,
    pub checkpoints: bool,
    /// Whether the trace says which interpreter each call belongs to, because there are several allocators.
    pub apart: bool,
    /// The interpreter whose calls are being written; 0 is the main one.
    pub interpreter: u64,
    pub file: File,
    /// Length of the file, bytes.
    pub written: u64,
    /// Blocks and events in the file.
    pub blocks: u64,
    pub events: u64,
    /// The path from `OBMALLOC_TRACE`, and whether this process may write to that path itself.
    pub base: PathBuf,
    pub first: bool,
    pub header: Header,
    /// This trace's identity, and where in the file the header says why recording had to stop.
    pub identity: Identity,
    pub failure: u64,
    pub stacks: Option<Stacks>,
    pub clock: Clock,
    /// The clock is read when no more than this many bytes of the block are left.
    pub tick_at: usize,
    /// The thread that wrote the last event of this block, as [`inside::thread`] has it; 0 when there is none.
    pub thread: usize,
    /// A message to be written as soon as there is a file.
    pub unsaid: Option<&'static str>,
}

/// Why the clock is read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Some events have passed.
    Passing,
    /// The exact time is wanted.
    Asked,
    /// A sample of memory is wanted, too.
    Sample,
    /// In a signal handler: this thread may be anywhere, also in C's `malloc`, which is therefore not asked. The block has room.
    Anywhere,
}

pub enum File {
    /// Made at the first event.
    Unopened {
        parent: Option<Parent>,
    },
    Open(OutFile),
    /// Nothing more is recorded.
    Stopped,
}

impl State {
    /// The state before the first event.
    pub fn new(bytes: &'static mut [u8], packing: &'static mut [u64], base: PathBuf, first: bool, mut header: Header) -> Self {
        let clock = Clock::new(header.every);
        let stacks = match header.stacks {
            0 => Ok(None),
            limit => Stacks::set_up(limit, &header.python).map(Some),
        };
        header.stacks = stacks.as_ref().ok().and_then(Option::as_ref).map_or(0, Stacks::limit);
        let unsaid = stacks.as_ref().err().copied();
        Self {
            reserve: OUT_OF_REACH,
            block: BlockWriter::new(bytes),
            packer: Packer::new(packing),
            checkpoints: true,
            apart: false,
            interpreter: 0,
            file: File::Unopened { parent: None },
            written: 0,
            blocks: 0,
            events: 0,
            base,
            first,
            header,
            identity: Identity::default(),
            failure: 0,
            stacks: stacks.unwrap_or_default(),
            clock,
            tick_at: OUT_OF_REACH,
            thread: 0,
            unsaid,
        }
    }

    pub fn is_open(&self) -> bool {
        matches!(self.file, File::Open(_))
    }

    /// Makes room for an event, as [`make_room`](Self::make_room) does.
    #[inline(always)]
    pub fn room(&mut self) -> Option<bool> {
        if self.block.has_room(self.reserve) { Some(false) } else { self.make_room() }
    }

    /// Makes room for an event. Returns whether a checkpoint was passed; `None` when recording has stopped.
    #[cold]
    #[inline(never)]
    pub fn make_room(&mut self) -> Option<bool> {
        let errno = Errno::save();
        let open = match self.file {
            File::Open(_) => true,
            File::Unopened { .. } => self.open(),
            File::Stopped => false,
        };
        let mut room = open && (self.block.has_room(0) || self.flush());
        if room && self.block.left() <= self.tick_at {
            self.tick(Look::Passing);
            room = self.is_open() && (self.block.has_room(0) || self.flush());
        }
        errno.restore();
        room.then_some(self.checkpoints)
    }

    /// Reads the clock: writes the time, a sample of memory if one is due, and a mark if signals asked for one.
    #[cold]
    pub fn tick(&mut self, look: Look) {
        let is_anywhere = look == Look::Anywhere;
        if !is_anywhere && !self.block.has_room(TICK_ROOM) && !self.flush() {
            return;
        }
        let micros = self.clock.micros();
        self.block.time(micros);
        let signalled = SIGNALLED.swap(0, Ordering::Relaxed);
        let wants_sample = look == Look::Sample || signalled != 0;
        if ((wants_sample && self.clock.takes_samples()) || self.clock.is_due(micros))
            && let Some(memory) = self.clock.sample(!is_anywhere)
        {
            self.block.memory(&memory);
        }
        // Several signals make one mark: there is no event between them.
        if signalled != 0 {
            if is_anywhere {
                self.block.mark(SIGNALLED_NAME);
            } else {
                self.note(SIGNALLED_ROOM, |block| block.mark(SIGNALLED_NAME));
            }
        }
        self.pace();
    }

    /// Sets when the clock is read next.
    pub fn pace(&mut self) {
        self.tick_at = self.block.left().saturating_sub(TICK);
        if self.is_open() && !self.checkpoints {
            self.reserve = self.tick_at.saturating_sub(MAX_EVENT);
        }
        if self.apart {
            self.block.close();
        } else {
            self.block.open(self.reserve);
        }
    }

    /// Writes which thread makes the next event, if it is another than before.
    #[inline(always)]
    pub fn tell_thread(&mut self) {
        let thread = inside::thread();
        if thread != self.thread {
            self.change_thread(thread);
        }
    }

    #[cold]
    pub fn change_thread(&mut self, thread: usize) {
        self.thread = thread;
        self.block.thread(thread_number());
    }

    /// Writes the types of live objects, if they were found. This thread has had the GIL since.
    pub fn types(&mut self, found: Option<&Found<'_>>) {
        if let Some(found) = found {
            // SAFETY: this function's own condition. If the trace ends meanwhile, the rest is left out.
            let _ = unsafe { found.write(self) };
        }
    }

    /// Writes a note of at most `room` bytes more than an event takes. One that is longer than a block is left out.
    pub fn note(&mut self, room: usize, write: impl FnOnce(&mut BlockWriter<'static>)) {
        if self.block.has_room(room) || (self.flush() && self.block.has_room(room)) {
            write(&mut self.block);
        }
    }

    /// Writes the stack of the next event, if it is another than before. Returns `false` if it cannot be written.
    #[inline(always)]
    pub fn place(&mut self, has_gil: bool) -> bool {
        let Some(node) = self.stacks.as_mut().and_then(|stacks| stacks.node(has_gil)) else { return self.place_anew() };
        self.block.stack(node.into());
        true
    }

    /// As [`place`](Self::place), if the stack has parts that the trace does not describe yet.
    #[cold]
    pub fn place_anew(&mut self) -> bool {
        let errno = Errno::save();
        let mut stacks = self.stacks.take();
        let node = stacks.as_mut().map_or(Ok(0), |stacks| stacks.describe(self));
        match node {
            Ok(_) => self.stacks = stacks,
            // The message is written once; from then on there are no stacks.
            Err(lost) if lost != Lost::Trace => self.say_alone(lost.text()),
            Err(_) => {}
        }
        let room = self.is_open() && (self.block.has_room(0) || self.flush());
        if room {
            self.block.stack(node.unwrap_or(0).into());
        }
        errno.restore();
        room
    }

    /// Writes a message from the recorder into a block of its own.
    pub fn say_alone(&mut self, text: &str) {
        self.alone(text.len() + TEXT_HEAD, |block| block.text(text));
    }

    /// Writes which interpreter the next event belongs to, if it is another than before. Returns `false` if it cannot be written.
    #[cold]
    pub fn attribute(&mut self) -> bool {
        let interpreter = interpreters::present();
        if interpreter == self.interpreter {
            return true;
        }
        let errno = Errno::save();
        let room = self.block.has_room(MAX_EVENT) || self.flush();
        errno.restore();
        if room {
            self.block.interpreter(interpreter);
            self.interpreter = interpreter;
        }
        room
    }

    /// Writes a note into a block of its own.
    pub fn alone(&mut self, room: usize, write: impl FnOnce(&mut BlockWriter<'static>)) {
        if self.flush() && self.block.has_room(room) {
            write(&mut self.block);
            self.flush();
        }
    }

    /// Stops recording.
    pub fn stop(&mut self) {
        self.file = File::Stopped;
        self.close();
    }

    /// Sends every event to [`make_room`](Self::make_room).
    pub fn close(&mut self) {
        self.reserve = OUT_OF_REACH;
        self.block.close();
    }

    /// Stops recording, and writes the reason into the trace's header, if there is one.
    #[cold]
    pub fn fail(&mut self, error: &Error) -> bool {
        if let File::Open(file) = &mut self.file
            && self.written != 0
        {
            // Cut off the part of a block that was written, so that the trace ends with a whole block.
            file.cut(self.written);
            let _ = file.write_at(failure_text(error).as_bytes(), self.failure);
        } else {
            unsaid::say(error);
        }
        self.stop();
        false
    }

    /// Makes the trace file if there is none yet. Returns `false` if nothing can be recorded.
    pub fn make_file(&mut self) -> bool {
        let errno = Errno::save();
        let is_made = self.is_open() || self.open();
        errno.restore();
        is_made
    }

    /// Makes the trace file and writes its head. Returns `false` if that cannot be done.
    pub fn open(&mut self) -> bool {
        let File::Unopened { parent } = &mut self.file else { return false };
        let parent = parent.take();
        let pid = process_id();
        let claimed = if self.first { OutFile::claim(&self.base) } else { Err(Error::from_raw_os_error(libc::EEXIST)) };
        let found = claimed.or_else(|error| {
            // The file is another process's: EEXIST above, or EWOULDBLOCK while that process records into it.
            if [libc::EEXIST, libc::EWOULDBLOCK].contains(&error.raw_os_error().unwrap_or(0)) {
                OutFile::make_beside(&self.base, pid)
            } else {
                Err(error)
            }
        });
        match found {
            Ok(file) => self.file = File::Open(file),
            Err(error) => return self.fail(&error),
        }
        self.identity = Identity::new();
        let (json, failure) = self.header.json(pid, self.identity, parent.as_ref());
        let head = file_head(&json);
        if let File::Open(file) = &mut self.file
            && let Err(error) = file.write_at(&head, 0)
        {
            return self.fail(&error);
        }
        self.failure = (head.len() - json.len() + failure) as u64;
        self.written = head.len() as u64;
        self.pace();
        if let Some(text) = self.unsaid.take() {
            self.say_alone(text);
        }
        true
    }

    /// Writes the block to the file. Returns `false` if nothing can be recorded.
    pub fn flush(&mut self) -> bool {
        let File::Open(file) = &mut self.file else { return false };
        let count = self.block.count();
        if self.block.is_empty() {
            return true;
        }
        let block = self.block.finish();
        let block = self.packer.as_mut().map_or(block, |packer| packer.pack(block));
        let length = block.len() as u64;
        if let Err(error) = file.write_at(block, self.written) {
            return self.fail(&error);
        }
        self.written += length;
        self.blocks += 1;
        self.events += u64::from(count);
        self.thread = 0;
        self.pace();
        true
    }
}

impl Out for State {
    fn room(&mut self, bytes: usize) -> Option<&mut BlockWriter<'static>> {
        (self.block.has_room(bytes) || (self.flush() && self.block.has_room(bytes))).then_some(&mut self.block)
    }
}
