//! Checks whether frames are laid out as expected. It reads a stack by system calls, so that a wrong layout does no harm.

#![forbid(unsafe_code)]

use super::layout::{Frames, Layout};
use super::walk::LEVELS;
use crate::peek::{int, peek, word};
use crate::python::symbol;

/// The addresses of the types of the objects in a stack.
#[derive(Clone, Copy)]
pub struct Types {
    code: usize,
    text: usize,
    bytes: usize,
}

impl Types {
    /// `None` if this CPython does not export them.
    pub fn find() -> Option<Self> {
        let of = |name| symbol(name).map(|at| at as usize);
        Some(Self { code: of(c"PyCode_Type")?, text: of(c"PyUnicode_Type")?, bytes: of(c"PyBytes_Type")? })
    }
}

impl Layout {
    /// Checks the stack of the thread with this state. Returns the number of its Python frames; `None` if the stack does not look right.
    pub fn looks_right(&self, thread: usize, types: &Types) -> Option<usize> {
        let mut frame = word(thread + self.thread_frame)?;
        if let Some(current) = self.current_frame
            && frame != 0
        {
            frame = word(frame + current)?;
        }
        let (mut pythons, mut levels) = (0, 0);
        while frame != 0 && levels < LEVELS {
            // Before 3.11 every frame is Python's. 4 is the last owner that there is.
            let owner = if self.frames == Frames::Objects { 0 } else { peek::<1>(frame + self.owner)?[0] };
            if owner < 3 {
                self.frame_looks_right(frame, types)?;
                pythons += 1;
            } else if owner > 4 {
                return None;
            }
            frame = word(frame + self.previous)?;
            levels += 1;
        }
        Some(pythons)
    }

    fn frame_looks_right(&self, frame: usize, types: &Types) -> Option<()> {
        let is = |holds: bool| holds.then_some(());
        let type_of = |object: usize| word(object.checked_add(8)?);
        let code = word(frame + self.code)? & !7;
        is(type_of(code)? == types.code)?;
        is(type_of(word(code + self.file)?)? == types.text)?;
        is(type_of(word(code + self.function)?)? == types.text)?;
        let table = word(code + self.table)?;
        is(type_of(table)? == types.bytes && word(table + 16)? < 1 << 30)?;
        is(int(code + self.first_line)? >= 0)?;
        if self.frames == Frames::Objects {
            return is((-1..1 << 24).contains(&int(frame + self.instruction)?));
        }
        // The object's size is its number of instructions.
        let (count, first) = (word(code + 16)?, int(code + self.first_traceable)?);
        is(count < 1 << 28 && usize::try_from(first).is_ok_and(|first| first <= count))?;
        let before = word(frame + self.instruction)?.wrapping_add(2).wrapping_sub(code + self.instructions);
        is(before <= 2 * count && before.is_multiple_of(2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPES: Types = Types { code: 1, text: 2, bytes: 3 };
    /// Where, in a piece of memory, the parts of a stack of one frame are.
    const THREAD: usize = 0;
    const LINK: usize = 512;
    const FRAME: usize = 1024;
    const CODE: usize = 1536;
    const TEXT: usize = 2048;
    const TABLE: usize = 2560;
    const ZEROS: usize = 3072;

    /// A thread's state and one frame, as a layout has them, with `spoil` having the last word.
    fn planted(layout: &Layout, spoil: impl FnOnce(&mut dyn FnMut(usize, &[u8]), usize)) -> Option<usize> {
        let mut memory = vec![0u8; 4096];
        let skip = memory.as_ptr().align_offset(16);
        let base = memory.as_ptr() as usize + skip;
        let mut put = |at: usize, bytes: &[u8]| memory[skip + at..][..bytes.len()].copy_from_slice(bytes);
        let parts = [
            (THREAD + layout.thread_frame, base + if layout.current_frame.is_some() { LINK } else { FRAME }),
            (LINK + layout.current_frame.unwrap_or(0), base + FRAME),
            (FRAME + layout.code, base + CODE),
            (FRAME + layout.instruction, if layout.frames == Frames::Objects { 0 } else { base + CODE + layout.instructions }),
            (CODE + 8, TYPES.code),
            (CODE + 16, 10),
            (CODE + layout.file, base + TEXT),
            (CODE + layout.function, base + TEXT),
            (CODE + layout.table, base + TABLE),
            (TEXT + 8, TYPES.text),
            (TABLE + 8, TYPES.bytes),
        ];
        parts.iter().for_each(|(at, word)| put(*at, &word.to_ne_bytes()));
        spoil(&mut put, base);
        layout.looks_right(base + THREAD, &TYPES)
    }

    #[test]
    fn only_a_stack_that_is_as_it_should_be_looks_right() {
        for release in ["3.8.18", "3.9.18", "3.10.13", "3.11.7", "3.12.1"] {
            let layout = Layout::of(release).expect("it has a row");
            let is_of_objects = layout.frames == Frames::Objects;
            assert_eq!(planted(&layout, |_, _| ()), Some(1), "{release}");
            assert_eq!(planted(&layout, |put, _| put(THREAD + layout.thread_frame, &[0; 8])), Some(0), "{release}: no frame");
            // Each is an address at which nothing is, and then one of zeros.
            let pointers = [
                THREAD + layout.thread_frame,
                FRAME + layout.code,
                FRAME + layout.previous,
                CODE + layout.file,
                CODE + layout.function,
                CODE + layout.table,
                CODE + 8,
                TEXT + 8,
                TABLE + 8,
            ];
            for at in pointers {
                assert_eq!(planted(&layout, |put, _| put(at, &8usize.to_ne_bytes())), None, "{release}: {at}");
            }
            // The pointers that lead to the frame are not changed here: with zeros in them there would be no frame to check.
            for at in &pointers[1..] {
                let found = planted(&layout, |put, base| put(*at, &(base + ZEROS).to_ne_bytes()));
                assert_eq!(found, None, "{release}: {at}");
            }
            let ints = [(CODE + layout.first_line, -1), (TABLE + 20, 1)];
            let more: &[(usize, i32)] = if is_of_objects {
                &[(FRAME + layout.instruction, -2), (FRAME + layout.instruction, 1 << 24)]
            } else {
                &[(CODE + layout.first_traceable, -1), (CODE + layout.first_traceable, 11)]
            };
            for (at, int) in ints.iter().chain(more) {
                assert_eq!(planted(&layout, |put, _| put(*at, &int.to_ne_bytes())), None, "{release}: {at} {int}");
            }
            // Before the instructions, between two, and after them.
            for beyond in if is_of_objects { &[][..] } else { &[-4isize, 1, 20] } {
                let at = |base: usize| (base + CODE + layout.instructions).wrapping_add_signed(*beyond);
                let found = planted(&layout, |put, base| put(FRAME + layout.instruction, &at(base).to_ne_bytes()));
                assert_eq!(found, None, "{release}: {beyond}");
            }
            if !is_of_objects {
                assert_eq!(planted(&layout, |put, _| put(FRAME + layout.owner, &[5])), None, "{release}: an owner");
                assert_eq!(planted(&layout, |put, _| put(FRAME + layout.owner, &[3])), Some(0), "{release}: C's");
            }
        }
    }
}
