//! Reading traces: one block at a time, so that memory does not grow with the file.

#![forbid(unsafe_code)]

use std::io::{self, Read};

use super::block::{BLOCK_HEADER, BlockHead, FILE_HEAD, MAGIC, MAX_HEADER, OLDEST_VERSION, VERSION, le32};
use super::pack::Unpacker;
use super::{Cursor, Event, STACK};
use crate::clock::{self, Clock};
use crate::stacks::{self, Stacks};
use crate::types::{self, Tables, Types};

/// Why a trace cannot be read (any further).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FormatError {
    /// The file does not begin as a trace does.
    NotATrace,
    /// The trace is of a version that this reader does not know.
    Version(u32),
    /// The header is cut off or no UTF-8.
    Header,
    /// A block's checksum does not fit its payload (offset of the block in the file).
    Checksum(u64),
    /// A block does not decompress (its offset in the file).
    Packed(u64),
    /// An event, or a record before it, does not decode (offset of its block in the file, number of the event in the block).
    Event(u64, u32),
    /// The system cannot read the file, in its words.
    Unreadable(String),
    /// There are more stacks than a recorder writes (offset of the block in the file).
    Stacks(u64),
    /// There is no memory for a block.
    NoMemory,
    /// One of the above, in the trace of this name.
    In(Box<str>, Box<FormatError>),
}

impl std::fmt::Display for FormatError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotATrace => write!(f, "not a trace: expected a file that begins with \"obmtrace\""),
            Self::Version(found) => write!(f, "trace format {found}: expected {OLDEST_VERSION} to {VERSION}"),
            Self::Header => write!(f, "the trace's header is cut off or damaged"),
            Self::Checksum(at) => write!(f, "the block at byte {at} is damaged: its checksum does not match"),
            Self::Packed(at) => write!(f, "the block at byte {at} is damaged: it does not decompress"),
            Self::Event(at, number) => write!(f, "the block at byte {at} is damaged: its event {number} does not decode"),
            Self::Stacks(at) => write!(f, "expected as many stacks as a recorder tells of, but the block at byte {at} has more"),
            Self::Unreadable(why) => f.write_str(why),
            Self::NoMemory => f.write_str("no memory for a block of the trace"),
            Self::In(name, error) => write!(f, "{name}: {error}"),
        }
    }
}

impl std::error::Error for FormatError {}

/// Bytes that all requests of a trace can have been given: so many that no process lives to get them, and no sum of sizes overflows.
const MOST_GIVEN: u64 = 1 << 62;

/// Reads a trace, block by block.
pub struct Reader<'a> {
    input: Input<'a>,
    /// What errors call the trace, if they name it.
    name: Option<Box<str>>,
    version: u32,
    header: String,
    /// The stored bytes of the block being read, if it is compressed.
    stored: Vec<u8>,
    payload: Vec<u8>,
    unpacker: Option<Unpacker>,
    block: Block,
    /// The address before.
    last: u64,
    /// The stack of the requests that come next.
    node: u64,
    stacks: Stacks,
    clock: Clock,
    tables: Tables,
    /// Bytes that all requests so far were given.
    given: u64,
    truncated: bool,
}

/// The block being read: where in the file it begins, which part of the payload is left, and how many of its events are.
#[derive(Default)]
struct Block {
    at: u64,
    next: usize,
    events: u32,
    left: u32,
}

struct Input<'a> {
    bytes: Box<dyn Read + 'a>,
    /// Where the next byte is, and the length of all.
    at: u64,
    length: u64,
}

impl Input<'_> {
    /// Puts the next `length` bytes in `into`, in place of what is there. Fewer where the trace ends.
    fn read(&mut self, length: usize, into: &mut Vec<u8>) -> Result<(), FormatError> {
        into.clear();
        // The vector grows as the bytes come, so a length that was made up costs nothing.
        let result = (&mut self.bytes).take(length as u64).read_to_end(into);
        self.at += into.len() as u64;
        match result {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::OutOfMemory => Err(FormatError::NoMemory),
            Err(error) => Err(FormatError::Unreadable(error.to_string())),
        }
    }
}

impl<'a> Reader<'a> {
    /// Opens the trace in `bytes`.
    ///
    /// # Errors
    /// When it is no trace, or one of another version, or its header is damaged.
    pub fn new(bytes: impl AsRef<[u8]> + 'a) -> Result<Self, FormatError> {
        let length = bytes.as_ref().len() as u64;
        Self::of(io::Cursor::new(bytes), length)
    }

    /// Opens the trace that `input` gives, which is read as it is needed. `length` is what [`progress`](Self::progress) calls all, bytes.
    ///
    /// # Errors
    /// As [`new`](Self::new), and when it cannot be read.
    pub fn of(input: impl Read + 'a, length: u64) -> Result<Self, FormatError> {
        let mut input = Input { bytes: Box::new(input), at: 0, length };
        let mut head = Vec::new();
        input.read(FILE_HEAD, &mut head)?;
        if head.len() < FILE_HEAD || head[..8] != MAGIC {
            return Err(FormatError::NotATrace);
        }
        let version = le32(&head, 8);
        if !(OLDEST_VERSION..=VERSION).contains(&version) {
            return Err(FormatError::Version(version));
        }
        let length = le32(&head, 12) as usize;
        input.read(length.min(MAX_HEADER), &mut head)?;
        let header = String::from_utf8(head).ok().filter(|header| header.len() == length).ok_or(FormatError::Header)?;
        let (stored, payload) = (Vec::new(), Vec::new());
        Ok(Self {
            input,
            name: None,
            version,
            header,
            stored,
            payload,
            unpacker: None,
            block: Block::default(),
            last: 0,
            node: 0,
            stacks: Stacks::default(),
            clock: Clock::default(),
            tables: Tables::default(),
            given: 0,
            truncated: false,
        })
    }

    /// From now on errors name the trace: where several are read, the reader of a message must know which one it is about.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        self.name = Some(name.into());
        self
    }

    /// The header: a JSON object.
    pub fn header(&self) -> &str {
        &self.header
    }

    /// After the last event: whether the file ended inside a block, as it does when the recorded process was killed.
    pub fn truncated(&self) -> bool {
        self.truncated
    }

    /// From now on stacks are only numbered: [`stacks`](Self::stacks) does not keep their frames, and takes no memory for them.
    #[must_use]
    pub fn without_stacks(mut self) -> Self {
        self.stacks = Stacks::counted();
        self
    }

    /// What has been read of Python's stacks so far.
    pub fn stacks(&self) -> &Stacks {
        &self.stacks
    }

    /// What has been read of time, threads and memory so far.
    #[inline]
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Goes on from the trace that this one continues, which has been read: a forked process's stacks are numbered from there, and its
    /// time is the same.
    pub fn continue_from(&mut self, before: Reader<'_>) {
        self.stacks = before.stacks;
        self.clock = before.clock;
        self.given = before.given;
    }

    /// The stack of the last event, if it is a request: a node of [`stacks`](Self::stacks). 0 is none.
    #[inline]
    pub fn stack(&self) -> u64 {
        self.node
    }

    /// The types of the objects that are live at this moment, between the last event and the next. `None` where the recorder did not look.
    ///
    /// # Errors
    /// When the trace cannot be read up to the next event.
    pub fn types_here(&mut self) -> Result<Option<Types>, FormatError> {
        self.tables.want();
        while !self.is_at_event() && self.between().map_err(|error| self.told(error))? {}
        Ok(self.tables.take())
    }

    /// Bytes of the file that have been read, and bytes in all.
    pub fn progress(&self) -> (u64, u64) {
        (self.input.at, self.input.length.max(self.input.at))
    }

    /// Bytes of the file that have not been read yet.
    pub fn left(&self) -> u64 {
        let (done, all) = self.progress();
        all - done
    }

    /// Reads the next block. Returns `false` if there is none, or only the beginning of one.
    fn next_block(&mut self) -> Result<bool, FormatError> {
        self.block = Block::default();
        let at = self.input.at;
        let whole = self.read_block(at)?;
        if !whole {
            self.truncated |= self.input.at != at;
            self.payload.clear();
        }
        Ok(whole)
    }

    fn read_block(&mut self, at: u64) -> Result<bool, FormatError> {
        self.input.read(BlockHead::length(self.version), &mut self.payload)?;
        if self.payload.len() < BlockHead::length(self.version) {
            return Ok(false);
        }
        let head = BlockHead::read(self.version, &self.payload);
        if !head.is_sound() {
            return Err(FormatError::Checksum(at));
        }
        let (stored, payload) = (head.stored as usize, head.payload as usize);
        let is_packed = stored < payload;
        let bytes = if is_packed { &mut self.stored } else { &mut self.payload };
        self.input.read(stored, bytes)?;
        if bytes.len() < stored {
            return Ok(false);
        }
        if !head.fits(self.version, bytes) {
            return Err(FormatError::Checksum(at));
        }
        if is_packed {
            self.unpack(at, payload)?;
        }
        self.block = Block { at, next: 0, events: head.events, left: head.events };
        (self.last, self.node, self.clock.thread) = (0, 0, 0);
        self.tables.begin_block();
        Ok(true)
    }

    fn unpack(&mut self, at: u64, length: usize) -> Result<(), FormatError> {
        let more = length.saturating_sub(self.payload.len());
        self.payload.try_reserve(more).map_err(|_| FormatError::NoMemory)?;
        self.payload.resize(length, 0);
        if self.unpacker.is_none() {
            self.unpacker = Some(Unpacker::new().ok_or(FormatError::NoMemory)?);
        }
        let fits = self.unpacker.as_mut().is_some_and(|unpacker| unpacker.unpack(&self.stored, &mut self.payload));
        if fits { Ok(()) } else { Err(FormatError::Packed(at)) }
    }

    /// Whether the next event comes next: there is one left in the block, and no record before it.
    #[inline]
    fn is_at_event(&self) -> bool {
        self.block.left > 0 && self.payload.get(self.block.next).is_none_or(|tag| tag & 15 != STACK)
    }

    /// Reads what stands between two events: a record, or the head of the next block. Returns `false` if there is none.
    fn between(&mut self) -> Result<bool, FormatError> {
        let Some(&tag) = self.payload.get(self.block.next) else { return self.next_block() };
        let mut cursor = Cursor { payload: &self.payload, at: self.block.next, last: self.last };
        let read = match tag & 15 {
            // Older versions have no such records.
            STACK if tag >= types::TYPES && self.version >= 5 => types::read(&mut cursor, &mut self.tables),
            STACK if tag >= clock::TIME && self.version >= 4 => clock::read(&mut cursor, &mut self.clock),
            STACK if tag < clock::TIME && self.version >= 3 => stacks::read(&mut cursor, &mut self.stacks, &mut self.node),
            _ => None,
        };
        if read.is_none() {
            return Err(if self.stacks.is_full() { FormatError::Stacks(self.block.at) } else { self.undecodable() });
        }
        self.block.next = cursor.at;
        Ok(true)
    }

    fn undecodable(&self) -> FormatError {
        FormatError::Event(self.block.at, self.block.events - self.block.left)
    }

    /// The error, with the trace's name where it has one.
    #[cold]
    fn told(&self, error: FormatError) -> FormatError {
        match &self.name {
            Some(name) => FormatError::In(name.clone(), Box::new(error)),
            None => error,
        }
    }

    /// Ends the reading: no further event comes.
    fn stop(&mut self) {
        self.block = Block::default();
        self.payload = Vec::new();
        self.input.bytes = Box::new(io::empty());
    }
}

impl Iterator for Reader<'_> {
    type Item = Result<Event, FormatError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        while !self.is_at_event() {
            match self.between() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => {
                    self.stop();
                    return Some(Err(self.told(error)));
                }
            }
        }
        let mut cursor = Cursor { payload: &self.payload, at: self.block.next, last: self.last };
        match cursor.event() {
            Some(event) if event.given() <= MOST_GIVEN - self.given => {
                (self.block.next, self.last) = (cursor.at, cursor.last);
                self.block.left -= 1;
                self.given += event.given();
                Some(Ok(event))
            }
            _ => {
                let error = self.undecodable();
                self.stop();
                Some(Err(self.told(error)))
            }
        }
    }
}

const _: () = assert!(BLOCK_HEADER >= 16, "the heads of older versions are no longer than that");

#[cfg(test)]
mod tests {
    use super::super::{BlockWriter, Domain, Packer, file_head};
    use super::*;

    /// A packed block with its true payload's length.
    fn packed() -> (Vec<u8>, usize, u32) {
        let mut packing = vec![0u64; Packer::memory_for(1 << 16).div_ceil(8)];
        let mut packer = Packer::new(&mut packing).expect("enough memory");
        let mut memory = vec![0; 1 << 16];
        let mut block = BlockWriter::new(&mut memory);
        for number in 0..1000u64 {
            block.malloc(Domain::Obj, false, number % 7, 0x7f00_0000_0000 + 16 * (number * number % 100));
        }
        let finished = block.finish();
        let length = finished.len() - BLOCK_HEADER;
        let block = packer.pack(finished);
        assert!(block.len() < length);
        (block[BLOCK_HEADER..].to_vec(), length, 1000)
    }

    /// A trace of one block whose sum is right, whatever is in it.
    fn trace(stored: &[u8], payload: usize, events: u32) -> Vec<u8> {
        [&file_head("{}")[..], &BlockHead::new(payload, events, stored).bytes(), stored].concat()
    }

    #[test]
    fn block_that_decompresses_to_another_length_is_refused() {
        let (stored, length, events) = packed();
        let read = |length| Reader::new(trace(&stored, length, events)).expect("a trace").last().expect("an answer");
        assert!(read(length).is_ok());
        for other in [length - 1, length + 1, super::super::MAX_PAYLOAD] {
            assert_eq!(read(other), Err(FormatError::Packed(18)), "{other}");
        }
        // Longer than a payload may be, no longer than what is stored, too short for so many events.
        for other in [super::super::MAX_PAYLOAD + 1, stored.len() - 1, events as usize - 1] {
            assert_eq!(read(other), Err(FormatError::Checksum(18)), "{other}");
        }
    }

    #[test]
    fn damage_under_a_right_checksum_does_no_harm() {
        let (good, length, events) = packed();
        let mut refused = 0;
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut stored = good.clone();
                stored[at] ^= 1 << bit;
                match Reader::new(trace(&stored, length, events)).expect("a trace").last().expect("an answer") {
                    Ok(_) => {}
                    Err(FormatError::Packed(18) | FormatError::Event(18, _)) => refused += 1,
                    Err(error) => panic!("bit {bit} of byte {at}: {error}"),
                }
            }
        }
        assert!(refused > 0);
    }

    #[test]
    fn tables_of_types_that_are_made_up_do_no_harm() {
        let mut state = 1u64;
        let mut random = move |end: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % end
        };
        let (mut kept, mut refused) = (0, 0);
        for _ in 0..20_000 {
            let mut payload = Vec::new();
            for _ in 0..=random(8) {
                payload.push((types::TYPES + (random(3) << 4) as u8) | STACK);
                // Mostly small numbers, which mean something.
                payload.extend((0..random(5)).map(|_| if random(4) == 0 { random(256) as u8 } else { random(4) as u8 }));
            }
            payload.push(3 | 1 << 5);
            let mut reader = Reader::new(trace(&payload, payload.len(), 1)).expect("a trace");
            match reader.types_here() {
                Ok(Some(types)) => {
                    kept += 1;
                    let number = types.of(random(1 << 10));
                    assert!(number.is_none_or(|number| types.name(number).len() < 300));
                }
                Ok(None) => {}
                Err(FormatError::Event(18, 0)) => refused += 1,
                Err(error) => panic!("{error}"),
            }
            assert!(reader.count() <= 10);
        }
        assert!(kept > 100 && refused > 100, "{kept} {refused}");
    }

    #[test]
    fn event_that_does_not_decode_is_named() {
        let read = Reader::new(trace(&[3 | 1 << 5, 3 | 1 << 5, 0xff], 3, 3)).expect("a trace");
        let answers: Vec<_> = read.collect();
        assert_eq!(answers.len(), 3);
        assert_eq!(answers[2], Err(FormatError::Event(18, 2)));
        assert_eq!(answers[2].as_ref().unwrap_err().to_string(), "the block at byte 18 is damaged: its event 2 does not decode");
        let mut named = Reader::new(trace(&[0xff], 1, 1)).expect("a trace").named("child.trace");
        let error = named.next().expect("an answer").unwrap_err();
        assert_eq!(error.to_string(), "child.trace: the block at byte 18 is damaged: its event 0 does not decode");
    }

    #[test]
    fn older_traces_have_no_stacks() {
        // A name, and the freeing of NULL.
        let payload = [stacks::TEXT | STACK, 1, b'a', 3 | 1 << 5];
        assert_eq!(Reader::new(trace(&payload, payload.len(), 1)).expect("a trace").flatten().count(), 1);
        for version in [1u32, 2] {
            let mut trace = file_head("{}");
            trace[8..12].copy_from_slice(&version.to_le_bytes());
            let head = BlockHead::new(0, 0, &payload).bytes();
            trace.extend([&head[..4], &1u32.to_le_bytes(), &head[12..], &payload].concat());
            assert_eq!(Reader::new(trace).expect("a trace").next(), Some(Err(FormatError::Event(18, 0))), "version {version}");
        }
    }
}
