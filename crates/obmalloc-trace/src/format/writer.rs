//! Writes events into a block of memory. The usual calls go through [`usual`](super::usual), every other event through this file.

#![forbid(unsafe_code)]

use obmalloc::Domain;

use super::block::{BLOCK_HEADER, BlockHead};
use super::{ARENA_ALLOC, ARENA_FREE, MAX_EVENT, NOTE, STACK, TRIM, tag};
use crate::clock::{self, Memory};
use crate::{stacks, types};

/// Writes events into a block of memory that its owner provides; allocates nothing, and can be used inside an allocator.
///
/// The block header is left to [`BlockWriter::finish`], so the filled bytes can be written to a file as they are.
pub struct BlockWriter<'a> {
    pub(super) bytes: &'a mut [u8],
    pub(super) at: usize,
    /// Up to where usual events can be written: at most where [`MAX_EVENT`] bytes are left.
    pub(super) open: usize,
    pub(super) last: u64,
    /// The stack of the requests that come next.
    pub(super) node: u64,
    /// The last block whose type was told.
    object: u64,
    pub(super) count: u32,
}

impl<'a> BlockWriter<'a> {
    /// Starts a block in `bytes`.
    ///
    /// # Panics
    ///
    /// If `bytes` cannot hold the header and one event.
    pub fn new(bytes: &'a mut [u8]) -> Self {
        assert!(bytes.len() >= BLOCK_HEADER + MAX_EVENT, "a block of {} bytes holds no event", bytes.len());
        Self { bytes, at: BLOCK_HEADER, open: 0, last: 0, node: 0, object: 0, count: 0 }
    }

    /// Whether the block has room for `extra` more bytes than any one event takes.
    #[inline]
    pub fn has_room(&self, extra: usize) -> bool {
        self.bytes.len() - self.at >= MAX_EVENT + extra
    }

    /// Bytes that are left of the block.
    pub fn left(&self) -> usize {
        self.bytes.len() - self.at
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

    /// Completes the block and returns its bytes; none for an empty block. The writer then begins the next block in the same memory.
    pub fn finish(&mut self) -> &[u8] {
        let end = self.at;
        if self.is_empty() {
            return &[];
        }
        let head = BlockHead::new(end - BLOCK_HEADER, self.count, &self.bytes[BLOCK_HEADER..end]);
        self.bytes[..BLOCK_HEADER].copy_from_slice(&head.bytes());
        (self.at, self.count, self.last, self.node, self.object) = (BLOCK_HEADER, 0, 0, 0, 0);
        &self.bytes[..end]
    }

    #[inline]
    fn byte(&mut self, byte: u8) {
        self.bytes[self.at] = byte;
        self.at += 1;
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.byte(value as u8 | 0x80);
            value >>= 7;
        }
        self.byte(value as u8);
    }

    #[inline]
    fn delta(&mut self, address: u64, shift: u32) -> u64 {
        let delta = (address.wrapping_sub(self.last) as i64) >> shift;
        self.last = address;
        zigzag(delta)
    }

    #[inline]
    fn address(&mut self, address: u64, shift: u32) {
        let delta = self.delta(address, shift);
        self.varint(delta);
    }

    /// Tag bits and shift for an event whose non-NULL addresses are ORed together in `bits`. The address before it may have been odd, so the
    /// difference decides.
    #[inline]
    fn alignment(&self, bits: u64) -> (u8, u32) {
        if (bits | self.last) & 15 == 0 { (0, 4) } else { (tag::UNALIGNED, 0) }
    }

    /// A malloc that gave `result` (0 for NULL).
    #[inline(never)]
    pub fn malloc(&mut self, domain: Domain, nested: bool, size: u64, result: u64) {
        let (flag, shift) = self.alignment(result);
        self.byte((domain as u8) << 2 | nested_bit(nested) | null_bit(result) | flag);
        self.varint(size);
        self.result(result, shift);
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
    #[inline(never)]
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
    #[inline(never)]
    pub fn free(&mut self, domain: Domain, nested: bool, address: u64) {
        let (flag, shift) = self.alignment(address);
        self.byte(3 | (domain as u8) << 2 | nested_bit(nested) | null_bit(address) | flag);
        self.result(address, shift);
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

    /// CPython's statistics text; the block must have [room](Self::has_room) for its length.
    pub fn stats(&mut self, text: &[u8]) {
        self.long_note(0, text);
    }

    /// A message from the recorder; the block must have [room](Self::has_room) for its length.
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

    /// The requests that follow in this block have the stack `node`.
    pub fn stack(&mut self, node: u64) {
        if node != self.node {
            let delta = node.wrapping_sub(self.node) as i64;
            self.node = node;
            self.byte(STACK | stacks::HERE);
            self.varint(zigzag(delta));
        }
    }

    /// Describes the next node of the tree of stacks: its parent is `before` nodes before it.
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

    /// The interpreter is about to finalize.
    pub fn finalization(&mut self) {
        self.note(7);
    }

    /// The program marks this moment; the block must have [room](Self::has_room) for the name.
    pub fn mark(&mut self, name: &str) {
        self.long_note(8, name.as_bytes());
    }

    /// The process is about to fork.
    pub fn fork(&mut self) {
        self.note(9);
    }

    /// A trim forgot the free lists of these pools, each of `1 << shift` bytes and at a multiple of that. The note has the first pools, as many as
    /// the block has room for. Returns how many; the rest belongs in a note of the next block. If that is 0, there is no note.
    pub fn trim(&mut self, shift: u8, pools: &[u64]) -> usize {
        let room = self.left().saturating_sub(MAX_EVENT) / MAX_VARINT;
        let pools = &pools[..pools.len().min(room)];
        if pools.is_empty() {
            return 0;
        }
        self.note(TRIM);
        self.byte(shift);
        self.varint(pools.len() as u64);
        let mut last = 0;
        for pool in pools {
            let number = pool >> shift;
            self.varint(zigzag(number.wrapping_sub(last) as i64));
            last = number;
        }
        pools.len()
    }

    /// The time: `micros` microseconds since the trace of the first process began.
    pub fn time(&mut self, micros: u64) {
        self.byte(STACK | clock::TIME);
        self.varint(micros);
    }

    /// The events that follow in this block are made by this thread.
    pub fn thread(&mut self, number: u64) {
        self.byte(STACK | clock::THREAD);
        self.varint(number);
    }

    /// A sample of the process's memory.
    pub fn memory(&mut self, memory: &Memory) {
        self.byte(STACK | clock::MEMORY);
        for bytes in [memory.anonymous, memory.file, memory.heap, memory.heap_free] {
            self.varint(bytes / 1024);
        }
    }

    /// A table of types begins.
    pub fn types(&mut self) {
        self.byte(STACK | types::TYPES);
    }

    /// Names the next type of the table; the block must have [room](Self::has_room) for the name.
    pub fn type_name(&mut self, name: &[u8]) {
        self.byte(STACK | types::TYPE);
        self.long(name);
    }

    /// `count` blocks hold objects of the type `number`: the one at `first`, and others `apart` bytes from one to the next. Addresses and
    /// distances are multiples of 16.
    pub fn objects(&mut self, first: u64, number: u64, count: u64, apart: u64) {
        self.byte(STACK | types::OBJECTS);
        self.varint(zigzag((first.wrapping_sub(self.object) as i64) >> types::UNIT));
        self.object = first;
        if count == 1 {
            return self.varint(number << 1);
        }
        self.varint(number << 1 | 1);
        self.varint(count);
        self.varint(apart >> types::UNIT);
        self.object = first.wrapping_add(apart.wrapping_mul(count - 1));
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

/// Most bytes that a varint takes.
const MAX_VARINT: usize = 10;

/// The place of a count in the present block that can still be set.
pub struct PatchToken(usize);

#[inline]
pub(super) fn nested_bit(nested: bool) -> u8 {
    if nested { tag::NESTED } else { 0 }
}

#[inline]
fn null_bit(address: u64) -> u8 {
    if address == 0 { tag::NULL } else { 0 }
}

/// A small number of either sign as a small one without.
#[inline]
pub(super) fn zigzag(delta: i64) -> u64 {
    ((delta << 1) ^ (delta >> 63)) as u64
}
