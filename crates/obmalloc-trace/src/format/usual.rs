//! Writes the usual events, which are those of most calls, in the fewest instructions. The bytes are the same as the writer's other functions
//! write; those are called for all other events.
//!
//! A usual event has addresses that are multiples of 16, not NULL and not far from the one before, and a size of at most two bytes. It is put
//! together in a register and written whole, together with zeros behind it.

use obmalloc::Domain;

use super::writer::{BlockWriter, nested_bit, zigzag};
use super::{MAX_EVENT, STACK, tag};
use crate::stacks;

/// Bits of a size that is usual, and of an address's difference.
const SIZE_BITS: u32 = 14;
const DELTA_BITS: u32 = 28;

/// An event's room is enough for the most that the functions here write: a stack, a realloc, and the rest of the last word.
const _: () = assert!(5 + 11 + 8 <= MAX_EVENT);

/// A varint of at most four bytes, and its length. Without a branch for each of its lengths, which no processor could foresee.
#[inline(always)]
fn spread(value: u64) -> (u64, u32) {
    let value = value as u32;
    let (further, length) = LENGTHS[(value | 1).leading_zeros() as usize % LENGTHS.len()];
    // Groups of 14 and 7 bits move to the beginning of 16 and 8.
    let groups = value & 0x3fff | (value & 0x0fff_c000) << 2;
    let groups = groups & 0x007f_007f | (groups & 0x3f80_3f80) << 1;
    (u64::from(groups | further), length)
}

/// By how many leading zeros a number of 28 bits has: the bits that say that a byte is not the last one, and how many bytes there are.
const LENGTHS: [(u32, u32); 32] = {
    let mut lengths = [(0x0080_8080, 4); 32];
    let mut zeros = 4;
    while zeros < 32 {
        let length = (38 - zeros) / 7;
        lengths[zeros] = (0x0080_8080 & ((1u64 << (8 * (length - 1))) - 1) as u32, length as u32);
        zeros += 1;
    }
    lengths
};

/// A size's varint, of at most two bytes, and its length.
#[inline(always)]
fn spread_size(size: u64) -> (u64, u32) {
    let is_longer = size >= 0x80;
    ((size + (size & 0x3f80)) | u64::from(is_longer) << 7, 1 + u32::from(is_longer))
}

/// What the trace has for an address after another one.
#[inline(always)]
fn difference(from: u64, to: u64) -> u64 {
    zigzag((to.wrapping_sub(from) as i64) >> 4)
}

impl<'a> BlockWriter<'a> {
    /// Opens the block for usual events, as long as `left` bytes and the room for one more event remain in it.
    pub fn open(&mut self, left: usize) {
        self.open = self.bytes.len().saturating_sub(MAX_EVENT.saturating_add(left));
    }

    /// Lets no usual event be written until the block is [open](Self::open).
    pub fn close(&mut self) {
        self.open = 0;
    }

    /// The room for the next event, if the block is open. One comparison is enough: in a closed block `open` is 0, which is before the first
    /// event.
    #[inline(always)]
    pub fn opened(&mut self) -> Option<Opened<'_, 'a>> {
        (self.at <= self.open).then_some(Opened(self))
    }
}

/// A place where at least [`MAX_EVENT`] bytes are left, for one event.
pub struct Opened<'w, 'a>(&'w mut BlockWriter<'a>);

impl Opened<'_, '_> {
    /// Writes the first `length` bytes of `word`.
    #[inline(always)]
    fn put(&mut self, word: u64, length: u32) {
        debug_assert!(length <= 8 && self.0.at + 8 <= self.0.bytes.len());
        // SAFETY: the place is for one event with its stack, and the block had `MAX_EVENT` bytes left where it was opened. The functions here
        // write no more than that (see above).
        unsafe { self.0.bytes.as_mut_ptr().add(self.0.at).cast::<[u8; 8]>().write_unaligned(word.to_le_bytes()) };
        self.0.at += length as usize;
    }

    #[inline(always)]
    fn difference(&self, to: u64) -> u64 {
        difference(self.0.last, to)
    }

    /// Whether an address is usual, and whether every number ORed into `numbers` fits [`DELTA_BITS`].
    #[inline(always)]
    fn is_usual(&self, address: u64, numbers: u64) -> bool {
        (address | self.0.last) & 15 | numbers >> DELTA_BITS == 0 && address != 0
    }

    #[inline(always)]
    fn end(self, last: u64) {
        self.0.last = last;
        self.0.count += 1;
    }

    /// As [`BlockWriter::stack`], if there is one to be told. Once for a place.
    #[inline(always)]
    fn stack(&mut self, node: Option<u64>) {
        let Some(node) = node.filter(|node| *node != self.0.node) else { return };
        let delta = zigzag(node.wrapping_sub(self.0.node) as i64);
        if delta >> DELTA_BITS != 0 {
            return self.0.stack(node);
        }
        let (word, length) = spread(delta);
        self.put(u64::from(STACK | stacks::HERE) | word << 8, 1 + length);
        self.0.node = node;
    }

    /// As [`BlockWriter::stack`], if there is a `node`, and [`BlockWriter::malloc`].
    #[inline(always)]
    pub fn malloc(mut self, node: Option<u64>, domain: Domain, nested: bool, size: u64, result: u64) {
        self.stack(node);
        let delta = self.difference(result);
        if !self.is_usual(result, delta | size >> SIZE_BITS << DELTA_BITS) {
            return self.0.malloc(domain, nested, size, result);
        }
        let tag = (domain as u8) << 2 | nested_bit(nested);
        let ((size, size_length), (delta, length)) = (spread_size(size), spread(delta));
        self.put(u64::from(tag) | (size | delta << (8 * size_length)) << 8, 1 + size_length + length);
        self.end(result);
    }

    /// As [`BlockWriter::stack`], if there is a `node`, and [`BlockWriter::realloc`].
    #[inline(always)]
    pub fn realloc(mut self, node: Option<u64>, domain: Domain, nested: bool, address: u64, size: u64, result: u64) {
        self.stack(node);
        // A realloc of NULL has no address.
        let (from, base) = if address == 0 { (0, self.0.last) } else { (self.difference(address), address) };
        let to = difference(base, result);
        if address & 15 != 0 || !self.is_usual(result, from | to | size >> SIZE_BITS << DELTA_BITS) {
            return self.0.realloc(domain, nested, address, size, result);
        }
        let tag = 2 | (domain as u8) << 2 | nested_bit(nested);
        let ((from, from_length), (size, size_length), (to, length)) = (spread(from), spread_size(size), spread(to));
        if address == 0 {
            self.put(u64::from(tag | tag::FROM_NULL), 1);
        } else {
            self.put(u64::from(tag) | from << 8, 1 + from_length);
        }
        self.put(size | to << (8 * size_length), size_length + length);
        self.end(result);
    }

    /// As [`BlockWriter::free`].
    #[inline(always)]
    pub fn free(mut self, domain: Domain, nested: bool, address: u64) {
        let delta = self.difference(address);
        if !self.is_usual(address, delta) {
            return self.0.free(domain, nested, address);
        }
        let tag = 3 | (domain as u8) << 2 | nested_bit(nested);
        let (delta, length) = spread(delta);
        self.put(u64::from(tag) | delta << 8, 1 + length);
        self.end(address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 0x7f00_0000_0000;

    /// Writes the same events both ways.
    fn write_both_ways(events: u64, event: impl Fn(u64) -> (u64, u64, u64, u64)) {
        let (mut one, mut other) = (vec![0; 1 << 18], vec![0; 1 << 18]);
        let (mut one, mut other) = (BlockWriter::new(&mut one), BlockWriter::new(&mut other));
        one.open(0);
        for number in 0..events {
            let (node, address, size, result) = event(number);
            let (domain, nested) = (Domain::ALL[(number % 3) as usize], number % 2 == 0);
            let place = one.opened().expect("open");
            if number % 4 < 2 {
                other.stack(node);
            }
            match number % 4 {
                0 => {
                    place.malloc(Some(node), domain, nested, size, result);
                    other.malloc(domain, nested, size, result);
                }
                1 => {
                    place.realloc(Some(node), domain, nested, address, size, result);
                    other.realloc(domain, nested, address, size, result);
                }
                _ => {
                    place.free(domain, nested, address);
                    other.free(domain, nested, address);
                }
            }
            assert_eq!(one.left(), other.left(), "event {number}");
        }
        assert_eq!(one.finish(), other.finish());
    }

    fn random(seed: u64) -> u64 {
        let word = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let word = (word ^ word >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
        word ^ word >> 29
    }

    #[test]
    fn usual_events_are_the_same_bytes() {
        write_both_ways(4000, |number| {
            let at = |seed| BASE + 16 * (random(seed) % (1 << (random(seed + 1) % 24)));
            (random(number) % 300, at(5 * number + 1), random(number + 7) % 8000, at(5 * number + 2))
        });
    }

    #[test]
    fn unusual_events_are_the_same_bytes() {
        // NULL, odd addresses, far ones, long sizes, stacks far away.
        let addresses = [0, BASE + 1, BASE + 8, 16, u64::MAX, u64::MAX - 15, BASE + (1 << 32), BASE];
        let sizes = [0, 127, 128, (1 << 14) - 1, 1 << 14, u64::MAX];
        let nodes = [0, 1, (1 << 27) - 1, 1 << 27, u64::from(u32::MAX)];
        let pick = |of: &[u64], number: u64| of[(random(number) % of.len() as u64) as usize];
        write_both_ways(4000, |number| {
            let [node, address, size, result] = [0, 1, 2, 3].map(|part| 4 * number + part);
            (pick(&nodes, node), pick(&addresses, address), pick(&sizes, size), pick(&addresses, result))
        });
    }

    #[test]
    fn there_is_no_place_where_the_block_is_closed_or_full() {
        let mut memory = vec![0; 256];
        let mut block = BlockWriter::new(&mut memory);
        assert!(block.opened().is_none(), "it was never opened");
        block.open(40);
        while let Some(place) = block.opened() {
            // As long as an event gets.
            place.realloc(Some(1 << 40), Domain::Obj, false, u64::MAX - 15, u64::MAX, BASE);
            block.stack(0);
        }
        assert!((MAX_EVENT..MAX_EVENT + 40).contains(&block.left()), "{} bytes are left", block.left());
        assert!(block.has_room(0));
        block.close();
        block.finish();
        assert!(block.opened().is_none());
    }
}
