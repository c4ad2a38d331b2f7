//! A look at all pools without the GIL: how many bytes are in pools that are empty, and were at the look before.

use super::arenas::{self, Arena};
use super::give_back::{BYTES, note_returned};
use super::pools::{Header, State};
use crate::clock;
use std::sync::atomic::Ordering;

/// Bytes of the main interpreter's pools that are empty now and were at the last look, with the same header: those will probably stay empty.
pub fn idle_bytes() -> usize {
    let mut idle = 0;
    arenas::each_of(0, |arena| idle += look_at(arena) * BYTES);
    idle
}

/// Looks at an arena. Returns how many idle pools it has.
fn look_at(arena: &Arena) -> usize {
    let mut idle = 0;
    for number in 0..arena.pools {
        let pool = arena.pool(number);
        // SAFETY: the table is locked, so the arena exists.
        let header = unsafe { Header::read(pool) };
        let state = header.state(pool);
        let print = match state {
            State::Virgin => break,
            State::Empty => header.print(),
            _ => 0,
        };
        if matches!(state, State::Empty | State::Used) {
            note_returned(arena, number);
        }
        if print != 0 && arena.seen[number].swap(print, Ordering::Relaxed) == print {
            arena.idle.add(number);
            idle += 1;
        } else {
            arena.seen[number].store(print, Ordering::Relaxed);
            arena.idle.remove(number);
        }
    }
    idle
}

/// Finds how much of C's free memory has become free since it was last given back.
pub struct FreeOfC {
    mallinfo: Option<unsafe extern "C" fn() -> clock::MallInfo>,
    /// The least that was free since then: that much has been given back already.
    least: usize,
}

impl FreeOfC {
    pub fn new() -> Self {
        Self { mallinfo: clock::mallinfo(), least: 0 }
    }

    fn free(&self) -> usize {
        // SAFETY: the C library's function; this thread is not inside `malloc`.
        self.mallinfo.map_or(0, |mallinfo| unsafe { mallinfo() }.fordblks)
    }

    /// Bytes that are free and have not been given back.
    pub fn fresh(&mut self) -> usize {
        let free = self.free();
        self.least = self.least.min(free);
        free - self.least
    }

    /// Notes that all free memory has been given back.
    pub fn given_back(&mut self) {
        self.least = self.free();
    }
}

/// Microseconds of processor time that this process has used, without this thread's.
pub fn processor_micros() -> u64 {
    clock::time_of(libc::CLOCK_PROCESS_CPUTIME_ID).saturating_sub(clock::time_of(libc::CLOCK_THREAD_CPUTIME_ID))
}
