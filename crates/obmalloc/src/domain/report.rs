//! What CPython prints about a block whose guard bytes are damaged, before it aborts (`_PyObject_DebugDumpAddress`, `Py_FatalError`).

use core::fmt::{self, Write as _};

use super::debug::{FORBIDDEN, SST};
use crate::os;
use crate::profile::{DebugText, NoFrame};

/// The hook that found the damage, as the text names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Function {
    Free,
    Realloc,
}

/// The damage that the hook found, as the text says it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Problem {
    /// The API id is another than this one.
    Id(u8),
    /// Bytes before the data.
    Leading,
    /// Bytes behind the data.
    Trailing,
}

/// The text that CPython prints for a fault that its debug hooks find, with the addresses that it has here.
///
/// [`Display`](fmt::Display) writes it, as for the calling thread with no Python function running. CPython writes bytes; here each is the
/// character with its number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Report {
    text: DebugText,
    function: Function,
    problem: Problem,
    address: usize,
    id: u8,
    requested: u64,
    leading: [u8; SST - 1],
    trailing: [u8; SST],
    /// The first 16 bytes of the data, and the last 8, as far as there are any.
    first: [u8; 16],
    last: [u8; 8],
}

impl Report {
    /// Reads what the text needs.
    ///
    /// # Safety
    /// The bytes from 16 before `address` to 8 behind the data, as long as the header says, can be read.
    pub(crate) unsafe fn read(text: DebugText, function: Function, problem: Problem, address: *const u8) -> Self {
        // SAFETY: the caller's promise.
        let requested = unsafe { read_size(address.wrapping_sub(2 * SST)) };
        let tail = address.wrapping_add(requested as usize);
        let (mut first, mut last) = ([0; 16], [0; 8]);
        if tail >= address {
            let end = requested.min(8) as usize;
            // SAFETY: the caller's promise: `requested` bytes lie between `address` and `tail`, and no more are read.
            unsafe {
                address.copy_to_nonoverlapping(first.as_mut_ptr(), requested.min(16) as usize);
                tail.wrapping_sub(end).copy_to_nonoverlapping(last.as_mut_ptr(), end);
            }
        }
        // SAFETY: the caller's promise: the guard bytes before the data, and those behind it.
        let (id, leading, trailing) = unsafe {
            (
                *address.wrapping_sub(SST),
                address.wrapping_sub(SST - 1).cast::<[u8; SST - 1]>().read(),
                tail.cast::<[u8; SST]>().read(),
            )
        };
        Self { text, function, problem, address: address.addr(), id, requested, leading, trailing, first, last }
    }

    /// Whether CPython would find the block damaged, and print this.
    pub(crate) fn says_something(&self) -> bool {
        self.problem != Problem::Trailing || self.trailing != [FORBIDDEN; SST]
    }

    fn pads(f: &mut fmt::Formatter<'_>, bytes: &[u8], name: impl Fn(usize) -> (&'static str, usize)) -> fmt::Result {
        if bytes.iter().all(|&byte| byte == FORBIDDEN) {
            return f.write_str("FORBIDDENBYTE, as expected.\n");
        }
        writeln!(f, "not all FORBIDDENBYTE (0x{FORBIDDEN:02x}):")?;
        for (index, &byte) in bytes.iter().enumerate() {
            let (from, distance) = name(index);
            let ouch = if byte == FORBIDDEN { "" } else { " *** OUCH" };
            writeln!(f, "        at {from}{distance}: 0x{byte:02x}{ouch}")?;
        }
        Ok(())
    }

    fn data(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.requested == 0 {
            return Ok(());
        }
        f.write_str("    Data at p:")?;
        // With a size that wraps around the end of memory, CPython finds no bytes between begin and end.
        let wraps = (self.address as u64).checked_add(self.requested).is_none();
        if !wraps {
            let shown = self.requested.min(16) as usize;
            let (begin, dots) = if self.requested > 16 { (8, true) } else { (shown, false) };
            for byte in &self.first[..begin] {
                write!(f, " {byte:02x}")?;
            }
            if dots {
                f.write_str(" ...")?;
                for byte in self.last {
                    write!(f, " {byte:02x}")?;
                }
            }
        }
        f.write_char('\n')
    }

    fn message(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problem {
            Problem::Id(verified) => {
                f.write_str("bad ID: Allocated using API '")?;
                if self.id == 0 && self.text.message_ends_at_nul {
                    return Ok(());
                }
                write!(f, "{}', verified using API '{}'", char::from(self.id), char::from(verified))
            }
            Problem::Leading => f.write_str("bad leading pad byte"),
            Problem::Trailing => f.write_str("bad trailing pad byte"),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Debug memory block at address p={:#x}: API '{}'", self.address, char::from(self.id))?;
        writeln!(f, "    {} bytes originally requested", self.requested)?;
        f.write_str("    The 7 pad bytes at p-7 are ")?;
        Self::pads(f, &self.leading, |index| ("p-", SST - 1 - index))?;
        if self.leading != [FORBIDDEN; SST - 1] {
            f.write_str(
                "    Because memory is corrupted at the start, the count of bytes requested\n       \
                 may be bogus, and checking the trailing pad bytes may segfault.\n",
            )?;
        }
        write!(f, "    The 8 pad bytes at tail={:#x} are ", (self.address as u64).wrapping_add(self.requested))?;
        Self::pads(f, &self.trailing, |index| ("tail+", index))?;
        self.data(f)?;
        f.write_str("\nEnable tracemalloc to get the memory block allocation traceback\n\nFatal Python error: ")?;
        if self.text.names_function {
            f.write_str(match self.function {
                Function::Free => "_PyMem_DebugRawFree: ",
                Function::Realloc => "_PyMem_DebugRawRealloc: ",
            })?;
        }
        self.message(f)?;
        let (thread, name) = os::thread();
        write!(f, "\nPython runtime state: initialized\n\nCurrent thread 0x{thread:016x}")?;
        if self.text.names_thread {
            let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
            if !name.is_empty() {
                f.write_str(" [")?;
                name.iter().try_for_each(|&byte| f.write_char(char::from(byte)))?;
                f.write_char(']')?;
            }
        }
        f.write_str(" (most recent call first):\n")?;
        f.write_str(match self.text.no_frame {
            NoFrame::Unindented => "<no Python frame>\n",
            NoFrame::Indented => "  <no Python frame>\n",
            NoFrame::Nothing => "",
        })
    }
}

/// `read_size_t`: eight bytes, the most significant one first.
///
/// # Safety
/// Eight bytes at `at` can be read.
pub(super) unsafe fn read_size(at: *const u8) -> u64 {
    // SAFETY: the caller's promise.
    u64::from_be_bytes(unsafe { at.cast::<[u8; SST]>().read() })
}
