//! The container: the bytes that open a trace, and what stands before each block's payload.

#![forbid(unsafe_code)]

/// First bytes of every trace.
pub const MAGIC: [u8; 8] = *b"obmtrace";
/// The version of the format, raised whenever an older reader would misread. Version 1 has no identities in its headers and no notes after kind
/// 4; version 2 has no stacks and no compressed blocks; version 3 has no time and no notes after kind 6; version 4 has no types. They are read,
/// too.
pub const VERSION: u32 = 5;
/// The oldest version that is read.
pub(super) const OLDEST_VERSION: u32 = 1;
/// Bytes before the header's text.
pub(super) const FILE_HEAD: usize = 16;
/// Longest header that a reader accepts, bytes.
pub(super) const MAX_HEADER: usize = 1 << 24;
/// Bytes before a block's payload.
pub const BLOCK_HEADER: usize = 20;
/// Longest payload of a block that a reader accepts, bytes.
pub const MAX_PAYLOAD: usize = 1 << 24;

/// The bytes that open a trace whose header is `json`.
pub fn file_head(json: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(FILE_HEAD + json.len());
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&(json.len() as u32).to_le_bytes());
    out.extend_from_slice(json.as_bytes());
    out
}

/// The sum of a header's text up to there, and of the version before it. It is a 32-bit FNV-1a: changing any one byte changes the sum.
pub fn header_sum(text: &str) -> u32 {
    let step = |sum: u32, byte: &u8| (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    VERSION.to_le_bytes().iter().chain(text.as_bytes()).fold(0x811c_9dc5, step)
}

/// What stands before a block's payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct BlockHead {
    /// Bytes in the file after this head. Fewer than the payload's where that is compressed.
    pub stored: u32,
    /// Bytes of the payload.
    pub payload: u32,
    /// Events in it. None where it only describes stacks.
    pub events: u32,
    sum: u64,
}

impl BlockHead {
    /// The head of a block whose payload of `payload` bytes stands in the file as `stored`.
    pub fn new(payload: usize, events: u32, stored: &[u8]) -> Self {
        let head = Self { stored: stored.len() as u32, payload: payload as u32, events, sum: 0 };
        Self { sum: checksum(head.seed(), stored), ..head }
    }

    pub fn bytes(&self) -> [u8; BLOCK_HEADER] {
        let mut out = [0; BLOCK_HEADER];
        out[..4].copy_from_slice(&self.stored.to_le_bytes());
        out[4..8].copy_from_slice(&self.payload.to_le_bytes());
        out[8..12].copy_from_slice(&self.events.to_le_bytes());
        out[12..].copy_from_slice(&self.sum.to_le_bytes());
        out
    }

    /// How long a head is in a trace of this version.
    pub fn length(version: u32) -> usize {
        if version < 3 { 16 } else { BLOCK_HEADER }
    }

    /// Reads a head of as many bytes as [`length`](Self::length) says.
    pub fn read(version: u32, bytes: &[u8]) -> Self {
        let number = |at| le32(bytes, at);
        let sum = u64::from_le_bytes(bytes[bytes.len() - 8..].try_into().expect("eight bytes"));
        if version < 3 {
            return Self { stored: number(0), payload: number(0), events: number(4), sum };
        }
        Self { stored: number(0), payload: number(4), events: number(8), sum }
    }

    /// Whether a writer can have written it.
    pub fn is_sound(&self) -> bool {
        (1..=MAX_PAYLOAD as u32).contains(&self.payload)
            && (1..=self.payload).contains(&self.stored)
            && self.events <= self.payload
    }

    /// Whether the sum is that of what stands in the file.
    pub fn fits(&self, version: u32, stored: &[u8]) -> bool {
        self.sum == checksum(if version < 3 { 0 } else { self.seed() }, stored)
    }

    /// What the sum guards besides the stored bytes.
    fn seed(&self) -> u64 {
        u64::from(self.payload) << 32 | u64::from(self.events)
    }
}

/// Sum that guards a block. Four sums side by side, eight bytes at a time, so that it costs the recorder next to nothing: one sum
/// alone would wait for its own multiplications.
fn checksum(seed: u64, stored: &[u8]) -> u64 {
    let step = |sum: u64, word: u64| (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
    let mut sums = [stored.len() as u64, 1, 2, 3];
    let mut stripes = stored.chunks_exact(32);
    for stripe in &mut stripes {
        for (lane, sum) in sums.iter_mut().enumerate() {
            *sum = step(*sum, word(&stripe[8 * lane..8 * lane + 8]));
        }
    }
    let mut last = [0u8; 32];
    last[..stripes.remainder().len()].copy_from_slice(stripes.remainder());
    last.chunks_exact(8).map(word).chain(sums).fold(seed, step)
}

pub(super) fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}
