//! Whether frames are laid out as they should be: a stack is read with care, so that nothing happens where they are not.

use super::layout::{Frames, Layout};
use super::walk::LEVELS;
use crate::python::symbol;
use std::ffi::c_void;

/// The addresses of the types of what a stack is made of.
#[derive(Clone, Copy)]
pub struct Types {
    code: usize,
    text: usize,
    bytes: usize,
}

impl Types {
    /// `None` when this CPython does not show them.
    pub fn find() -> Option<Self> {
        let of = |name| symbol(name).map(|at| at as usize);
        Some(Self { code: of(c"PyCode_Type")?, text: of(c"PyUnicode_Type")?, bytes: of(c"PyBytes_Type")? })
    }
}

/// Reads memory that may not be there.
fn peek<const N: usize>(address: usize) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let here = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: N };
    let there = libc::iovec { iov_base: address as *mut c_void, iov_len: N };
    // SAFETY: writes to the array; the system looks whether there is anything to read.
    let count = unsafe { libc::process_vm_readv(libc::getpid(), &here, 1, &there, 1, 0) };
    (count == N as isize).then_some(bytes)
}

fn word(address: usize) -> Option<usize> {
    peek(address).map(usize::from_ne_bytes)
}

fn int(address: usize) -> Option<i32> {
    peek(address).map(i32::from_ne_bytes)
}

/// Whether memory can be read with care at all.
pub fn is_possible() -> bool {
    let value = 0x6f62_6d61_6c6c_6f63usize;
    word(&raw const value as usize) == Some(value)
}

impl Layout {
    /// Whether the stack of the thread whose state this is reads as a stack should. Gives the number of its frames that are Python's.
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
        // The number of instructions is the object's size.
        let (count, first) = (word(code + 16)?, int(code + self.first_traceable)?);
        is(count < 1 << 28 && usize::try_from(first).is_ok_and(|first| first <= count))?;
        let before = word(frame + self.instruction)?.wrapping_add(2).wrapping_sub(code + self.instructions);
        is(before <= 2 * count && before.is_multiple_of(2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_not_read() {
        assert!(is_possible());
        assert_eq!(word(0), None);
        assert_eq!(word(usize::MAX - 100), None);
    }
}
