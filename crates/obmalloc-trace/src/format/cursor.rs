//! Reading events, one field after the other.

#![forbid(unsafe_code)]

use obmalloc::Domain;

use super::{ARENA_ALLOC, ARENA_FREE, Event, NOTE, Note, TRIM, tag};

/// A position inside a payload.
pub(crate) struct Cursor<'a> {
    pub(super) payload: &'a [u8],
    pub(crate) at: usize,
    /// The address before.
    pub(super) last: u64,
}

impl Cursor<'_> {
    pub(crate) fn byte(&mut self) -> Option<u8> {
        let byte = *self.payload.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    #[inline(always)]
    pub(crate) fn varint(&mut self) -> Option<u64> {
        // Eight bytes at once, without a branch for each length, which no processor could foresee.
        if let Some(bytes) = self.payload.get(self.at..).and_then(<[u8]>::first_chunk) {
            let word = u64::from_le_bytes(*bytes);
            let ends = !word & 0x8080_8080_8080_8080;
            if ends != 0 {
                // Up to the first byte that has no mark, which is the last one of the number.
                let word = word & (ends ^ (ends - 1));
                self.at += (ends.trailing_zeros() / 8 + 1) as usize;
                let pairs = word & 0x007f_007f_007f_007f | (word & 0x7f00_7f00_7f00_7f00) >> 1;
                let fours = pairs & 0x0000_3fff_0000_3fff | (pairs & 0x3fff_0000_3fff_0000) >> 2;
                return Some(fours & 0x0fff_ffff | fours >> 32 << 28);
            }
        }
        self.long_varint()
    }

    /// A varint that is longer, or stands where the payload ends.
    #[cold]
    fn long_varint(&mut self) -> Option<u64> {
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

    /// A varint that has a sign.
    #[inline(always)]
    pub(crate) fn difference(&mut self) -> Option<i64> {
        let zigzag = self.varint()?;
        Some((zigzag >> 1) as i64 ^ -((zigzag & 1) as i64))
    }

    #[inline(always)]
    fn address(&mut self, tag: u8) -> Option<u64> {
        let delta = self.difference()?;
        let shift = if tag & tag::UNALIGNED == 0 { 4 } else { 0 };
        self.last = self.last.wrapping_add((delta << shift) as u64);
        Some(self.last)
    }

    #[inline(always)]
    fn result(&mut self, tag: u8) -> Option<u64> {
        if tag & tag::NULL == 0 { self.address(tag) } else { Some(0) }
    }

    // Otherwise it becomes a call, which costs a replay a fifth of its time.
    #[inline(always)]
    pub(super) fn event(&mut self) -> Option<Event> {
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
            7 => Note::Finalization,
            8 => Note::Mark(self.text()?),
            9 => Note::Fork,
            TRIM => Note::Trim(self.pools()?),
            _ => return None,
        })
    }

    /// The addresses of the pools that a trim forgot.
    fn pools(&mut self) -> Option<Vec<u64>> {
        let shift = self.byte()?;
        let count = self.varint()?;
        // As large as pools can be (`Geometry`).
        if !(12..=18).contains(&shift) {
            return None;
        }
        // Each takes a byte or more, so a count that was made up takes no memory.
        if count > (self.payload.len() - self.at) as u64 {
            return None;
        }
        let mut number = 0u64;
        let pools = (0..count).map(|_| {
            number = number.wrapping_add(self.difference()? as u64);
            Some(number << shift)
        });
        pools.collect()
    }

    fn text(&mut self) -> Option<String> {
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

    #[test]
    fn varint_is_read_alike_wherever_the_payload_ends() {
        // Ten bytes hold 70 bits: the last six are dropped. An eleventh byte is no number's.
        let mut payload = Vec::new();
        for (length, more) in (1..=11).flat_map(|length| [0x80u8, 0xaa, 0xff].map(|more| (length, more))) {
            for last in [0, 1, 0x2a, 0x7f] {
                payload.clear();
                payload.resize(length - 1, more);
                payload.push(last);
                let read = |payload: &[u8]| {
                    let mut cursor = Cursor { payload, at: 0, last: 0 };
                    (cursor.varint(), cursor.at)
                };
                let expected = (0..length).fold(0, |sum, at| {
                    let bits = u128::from(payload[at] & 0x7f) << (7 * at);
                    sum | bits as u64
                });
                let expected = (length < 11).then_some(expected);
                let short = read(&payload);
                assert_eq!(short.0, expected, "{payload:x?}");
                for beyond in [0, 0x7f, 0xff] {
                    let longer = [&payload[..], &[beyond; 12]].concat();
                    assert_eq!(read(&longer), short, "{longer:x?}");
                }
                assert_eq!(read(&payload[..length - 1]).0, None, "{payload:x?} is cut off");
            }
        }
    }
}
