//! Python's stacks in a trace: texts, code objects, and a tree whose every node is a frame and leads to its caller.
//!
//! | record | upper bits of the tag | fields |
//! |---|---|---|
//! | here | 0 | the stack of the next requests, as a zigzag difference from the one before; each block of the trace starts from 0 |
//! | node | 1 | how far before it its parent is, code object, instruction |
//! | text | 2 | length, UTF-8 |
//! | code object | 3 | file and function (texts), first line, format of the line table (one byte), length, line table |
//! | more | 4 | length, what follows in the line table of the last code object |
//!
//! Nodes, code objects and texts are numbered in the order of the trace, texts and code objects from 0, nodes from 1: node 0 is no Python frame.
//! A forked process's trace goes on with the numbers of its parent's. The format of the line table decides the unit of an instruction's index. 0
//! stands for a frame that has not run an instruction yet.
//!
//! A stack may be longer than was asked for. Frames deeper than the header's `stacks` are not right, because the recorder does not look that
//! far. So a reader stops there.

#![forbid(unsafe_code)]

use crate::format::Cursor;

pub(crate) const HERE: u8 = 0 << 4;
pub(crate) const NODE: u8 = 1 << 4;
pub(crate) const TEXT: u8 = 2 << 4;
pub(crate) const CODE: u8 = 3 << 4;
pub(crate) const MORE: u8 = 4 << 4;

/// The format of a code object's line table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Lines {
    /// `co_lnotab` of 3.8 and 3.9: pairs of bytes, how many bytes of code further and how many lines. Instructions are counted in bytes.
    Lnotab = 0,
    /// `co_linetable` of 3.10: the same for ranges; some have no line. Instructions are counted in units of two bytes, as later.
    Ranges = 1,
    /// `co_linetable` of 3.11 and later, with columns.
    Locations = 2,
}

/// One frame of a stack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame<'a> {
    /// The code object's file.
    pub file: &'a str,
    /// The line, 0 for an instruction that has none.
    pub line: u32,
    /// The function's qualified name; its name before 3.11.
    pub function: &'a str,
}

/// Bytes of what is kept that a trace may ask for: those of the 32 million nodes that the recorder makes at most, and a third as much for the rest.
const MOST_KEPT: usize = 1 << 30;

/// The longest name of a file or a function, bytes. The recorder's fit into a block.
const LONGEST_TEXT: usize = 1 << 16;

/// What has been read of stacks so far.
#[derive(Clone, Debug, Default)]
pub struct Stacks {
    /// Whether what is numbered is only counted, and the lists stay empty.
    is_counted: bool,
    counts: Counts,
    /// Bytes of the lists below, about.
    kept: usize,
    texts: Vec<String>,
    codes: Vec<Code>,
    nodes: Vec<Node>,
}

/// How many there are of each.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    texts: u64,
    codes: u64,
    nodes: u64,
}

#[derive(Clone, Debug)]
struct Code {
    file: usize,
    function: usize,
    first_line: u32,
    lines: Lines,
    table: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    parent: u64,
    code: usize,
    at: u64,
}

impl Stacks {
    /// A value that only numbers nodes, code objects and texts, and keeps none.
    pub(crate) fn counted() -> Self {
        Self { is_counted: true, ..Self::default() }
    }

    /// Makes sure that `bytes` more may be kept; `None` if the trace asks for too many.
    fn keep(&mut self, bytes: usize) -> Option<()> {
        if !self.is_counted {
            self.kept += bytes;
        }
        (!self.is_full()).then_some(())
    }

    /// Whether the trace has asked for more than is kept.
    pub(crate) fn is_full(&self) -> bool {
        self.kept > MOST_KEPT
    }

    /// The frames of a stack, innermost first; none for 0, and none if they are not kept.
    pub fn frames(&self, node: u64) -> impl Iterator<Item = Frame<'_>> {
        self.nodes_of(node).map(|node| self.frame(node))
    }

    /// The nodes of a stack, innermost first: itself, its parent and so on.
    pub fn nodes_of(&self, node: u64) -> impl Iterator<Item = u64> + use<'_> {
        std::iter::successors(self.parent(node).map(|_| node), |&node| self.parent(node).filter(|&parent| parent != 0))
    }

    /// The stack that a frame was called from, 0 when it is the outermost one. `None` for no node, or one that is not kept.
    pub fn parent(&self, node: u64) -> Option<u64> {
        self.nodes.get(usize::try_from(node.checked_sub(1)?).ok()?).map(|node| node.parent)
    }

    /// The innermost frame of the stack `node`.
    ///
    /// # Panics
    /// When there is no such node, or it is not kept.
    pub fn frame(&self, node: u64) -> Frame<'_> {
        let Node { code, at, .. } = self.nodes[node as usize - 1];
        let code = &self.codes[code];
        Frame { file: &self.texts[code.file], line: code.line(at), function: &self.texts[code.function] }
    }

    /// Whether one of the innermost `most` frames of a stack is at this line of this file, which is its path or the end of it.
    pub fn passes(&self, node: u64, most: usize, file: &str, line: u32) -> bool {
        let is_file = |path: &str| path.strip_suffix(file).is_some_and(|before| before.is_empty() || before.ends_with('/'));
        self.frames(node).take(most).any(|frame| frame.line == line && is_file(frame.file))
    }

    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.counts.nodes as usize
    }

    /// Whether there is no node.
    pub fn is_empty(&self) -> bool {
        self.counts.nodes == 0
    }
}

/// Reads one record. `None` when it does not decode.
pub(crate) fn read(from: &mut Cursor<'_>, stacks: &mut Stacks, here: &mut u64) -> Option<()> {
    let (start, kind) = (from.at, from.byte()? & 0xf0);
    read_fields(kind, from, stacks, here)?;
    match kind {
        HERE => Some(()),
        NODE => stacks.keep(size_of::<Node>()),
        _ => stacks.keep(from.at - start + size_of::<Code>()),
    }
}

fn read_fields(kind: u8, from: &mut Cursor<'_>, stacks: &mut Stacks, here: &mut u64) -> Option<()> {
    let (keeps, counts) = (!stacks.is_counted, &mut stacks.counts);
    match kind {
        HERE => {
            *here = here.wrapping_add(from.difference()? as u64);
            (*here <= counts.nodes).then_some(())?;
        }
        NODE => {
            let number = counts.nodes + 1;
            let parent = number.checked_sub(from.varint()?).filter(|&parent| parent != number)?;
            let code = index(from.varint()?, counts.codes)?;
            let at = from.varint()?;
            counts.nodes = number;
            if keeps {
                stacks.nodes.push(Node { parent, code, at });
            }
        }
        TEXT => {
            let text = from.long().filter(|text| text.len() <= LONGEST_TEXT)?;
            counts.texts += 1;
            if keeps {
                stacks.texts.push(String::from_utf8_lossy(text).into_owned());
            }
        }
        CODE => {
            let file = index(from.varint()?, counts.texts)?;
            let function = index(from.varint()?, counts.texts)?;
            let first_line = from.varint()?.try_into().ok()?;
            let lines = match from.byte()? {
                0 => Lines::Lnotab,
                1 => Lines::Ranges,
                2 => Lines::Locations,
                _ => return None,
            };
            let table = from.long()?;
            counts.codes += 1;
            if keeps {
                stacks.codes.push(Code { file, function, first_line, lines, table: table.to_vec() });
            }
        }
        MORE => {
            let table = from.long()?;
            (counts.codes > 0).then_some(())?;
            if let Some(code) = stacks.codes.last_mut() {
                code.table.extend_from_slice(table);
            }
        }
        _ => return None,
    }
    Some(())
}

fn index(number: u64, count: u64) -> Option<usize> {
    usize::try_from(number).ok().filter(|_| number < count)
}

impl Code {
    /// The line of the instruction that `at` stands for: `PyCode_Addr2Line`.
    fn line(&self, at: u64) -> u32 {
        let Some(instruction) = at.checked_sub(1) else { return self.first_line };
        match self.lines {
            Lines::Lnotab => self.lnotab_line(instruction),
            Lines::Ranges => self.range_line(instruction.saturating_mul(2)),
            Lines::Locations => self.location_line(instruction),
        }
    }

    fn lnotab_line(&self, instruction: u64) -> u32 {
        let (mut line, mut end) = (self.first_line, 0);
        for pair in self.table.chunks_exact(2) {
            end += u64::from(pair[0]);
            if end > instruction {
                break;
            }
            line = line.wrapping_add_signed((pair[1] as i8).into());
        }
        line
    }

    fn range_line(&self, instruction: u64) -> u32 {
        /// Stands for no line.
        const NONE: i8 = -128;
        let (mut line, mut end) = (self.first_line, 0);
        for pair in self.table.chunks_exact(2) {
            let delta = pair[1] as i8;
            end += u64::from(pair[0]);
            if delta != NONE {
                line = line.wrapping_add_signed(delta.into());
            }
            if end > instruction {
                return if delta == NONE { 0 } else { line };
            }
        }
        0
    }

    fn location_line(&self, instruction: u64) -> u32 {
        let (mut line, mut end) = (self.first_line, 0);
        let mut rest = &self.table[..];
        while let Some((&head, fields)) = rest.split_first() {
            let kind = head >> 3 & 15;
            let delta = match kind {
                10..=12 => i32::from(kind) - 10,
                13 | 14 => signed(fields),
                _ => 0,
            };
            line = line.wrapping_add_signed(delta);
            end += u64::from(head & 7) + 1;
            if end > instruction {
                return if kind == 15 { 0 } else { line };
            }
            // The next entry is the next byte that has its highest bit set.
            let length = fields.iter().position(|&byte| byte >= 0x80).unwrap_or(fields.len());
            rest = &fields[length..];
        }
        0
    }
}

/// A number in groups of six bits, whose lowest bit is the sign.
fn signed(bytes: &[u8]) -> i32 {
    let mut value = 0u32;
    for (group, &byte) in bytes.iter().enumerate().take(6) {
        value |= u32::from(byte & 63).wrapping_shl(6 * group as u32);
        if byte & 64 == 0 {
            break;
        }
    }
    let size = (value >> 1) as i32;
    if value & 1 == 0 { size } else { size.wrapping_neg() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{BlockWriter, Domain, Event, FormatError, Reader, file_head};

    fn code(lines: Lines, table: &[u8]) -> Code {
        Code { file: 0, function: 0, first_line: 10, lines, table: table.to_vec() }
    }

    fn lines_of(code: &Code, instructions: u64) -> Vec<u32> {
        (0..=instructions).map(|at| code.line(at)).collect()
    }

    #[test]
    fn lnotab_goes_forward_and_back() {
        let code = code(Lines::Lnotab, &[0, 1, 2, 3, 4, 0xfe, 0, 0x7f]);
        assert_eq!(lines_of(&code, 8), [10, 11, 11, 14, 14, 14, 14, 139, 139]);
    }

    #[test]
    fn ranges_may_have_no_line() {
        let code = code(Lines::Ranges, &[2, 1, 4, 0x80, 2, 0xff]);
        assert_eq!(lines_of(&code, 5), [10, 11, 0, 0, 10, 0]);
    }

    #[test]
    fn locations_of_every_kind_are_read() {
        // Short form, one line, no columns (-2), long form (+100), none.
        let table = [0x80 | 1, 0x11, 0x80 | 11 << 3, 1, 2, 0x80 | 13 << 3, 0x05, 0x80 | 14 << 3 | 1, 0x48, 0x03, 0, 1, 1, 0xf8];
        assert_eq!(lines_of(&code(Lines::Locations, &table), 8), [10, 10, 10, 11, 9, 109, 109, 0, 0]);
    }

    /// A trace of two blocks: a stack of two frames, and what comes after it in another block.
    fn sample() -> Vec<u8> {
        let mut memory = [0; 4096];
        let mut block = BlockWriter::new(&mut memory);
        block.stack_text(b"a.py");
        block.stack_text(b"f");
        block.code(0, 1, 10, Lines::Lnotab as u8, &[0, 1]);
        block.more_lines(&[2, 3]);
        block.node(1, 0, 0);
        block.node(1, 0, 3);
        block.stack(2);
        block.malloc(Domain::Obj, false, 64, 0x1000);
        block.stack(2);
        block.free(Domain::Obj, false, 0x1000);
        let first = block.finish().to_vec();
        block.malloc(Domain::Obj, false, 64, 0x1000);
        block.stack(1);
        block.malloc(Domain::Obj, false, 64, 0x2000);
        block.node(3, 0, 1);
        [&file_head("{}"), &first, block.finish()].concat()
    }

    #[test]
    fn stacks_come_back_as_written_and_are_no_events() {
        let trace = sample();
        let mut reader = Reader::new(&trace).unwrap();
        let mut seen = Vec::new();
        while let Some(event) = reader.next() {
            let lines: Vec<u32> = reader.stacks().frames(reader.stack()).map(|frame| frame.line).collect();
            seen.push((matches!(event.unwrap(), Event::Free { .. }), lines));
        }
        assert_eq!(seen, [(false, vec![14, 10]), (true, vec![14, 10]), (false, vec![]), (false, vec![10])]);
        assert_eq!(reader.stacks().len(), 3, "what comes after a block's last event is read too");
        assert_eq!(reader.stacks().frame(3), Frame { file: "a.py", line: 11, function: "f" });
    }

    #[test]
    fn stacks_that_are_not_kept_have_the_same_numbers() {
        let trace = sample();
        let mut kept = Reader::new(&trace).unwrap();
        let mut counted = Reader::new(&trace).unwrap().without_stacks();
        while let Some(event) = kept.next() {
            assert_eq!(counted.next(), Some(event));
            assert_eq!(counted.stack(), kept.stack());
            assert_eq!(counted.stacks().frames(counted.stack()).count(), 0);
        }
        assert_eq!((counted.next(), counted.stacks().len()), (None, 3));
    }

    #[test]
    fn more_than_a_recorder_tells_is_refused_and_only_where_it_is_kept() {
        let trace = sample();
        let mut reader = Reader::new(&trace).unwrap();
        assert!(reader.by_ref().all(|event| event.is_ok()));
        let kept = reader.stacks().kept;
        assert!(kept >= 3 * size_of::<Node>() + 4 * size_of::<Code>());
        let mut stacks = Stacks { kept: MOST_KEPT - kept, ..Stacks::default() };
        assert_eq!((stacks.keep(kept), stacks.is_full()), (Some(()), false));
        assert_eq!((stacks.keep(1), stacks.is_full()), (None, true));
        let mut counted = Reader::new(&trace).unwrap().without_stacks();
        assert!(counted.by_ref().all(|event| event.is_ok()));
        assert_eq!(counted.stacks().kept, 0);
    }

    #[test]
    fn records_that_refer_to_nothing_are_refused() {
        let wrong: [fn(&mut BlockWriter<'_>); 5] = [
            |block| block.stack(1),
            |block| block.node(0, 0, 0),
            |block| block.node(1, 0, 0),
            |block| block.code(0, 0, 1, 0, b""),
            |block| block.more_lines(b""),
        ];
        for (number, write) in wrong.into_iter().enumerate() {
            let mut memory = [0; 256];
            let mut block = BlockWriter::new(&mut memory);
            write(&mut block);
            let trace = [&file_head("{}")[..], block.finish()].concat();
            let reader = || Reader::new(&trace).unwrap();
            for mut reader in [reader(), reader().without_stacks()] {
                assert_eq!(reader.next(), Some(Err(FormatError::Event(18, 0))), "{number}");
            }
        }
    }
}
