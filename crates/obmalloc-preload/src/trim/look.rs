//! A look at all pools without the GIL: how much is empty, and was at the look before.

use super::arenas::{self, Arena};
use super::give_back::{BYTES, note_returned};
use super::pools::{Header, State};
use std::ffi::c_int;
use std::sync::atomic::Ordering;

/// Bytes of the main interpreter's pools that are empty now and were at the last look, with the same header: those are most likely to stay so.
pub fn idle_bytes() -> usize {
    let mut idle = 0;
    arenas::each_of(0, |arena| idle += look_at(arena) * BYTES);
    idle
}

/// Looks at an arena: gives the number of its idle pools.
fn look_at(arena: &Arena) -> usize {
    let mut idle = 0;
    for number in 0..arena.pools {
        let pool = arena.pool(number);
        // SAFETY: the table is locked, so the arena is there.
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

/// The beginning of `struct mallinfo2`.
#[repr(C)]
struct MallInfo {
    others: [usize; 8],
    /// Bytes that are free in C's heap.
    free: usize,
    last: usize,
}

/// How much of C's free memory has become free since it was last given back.
pub struct FreeOfC {
    mallinfo: Option<unsafe extern "C" fn() -> MallInfo>,
    /// The least that was free since then: as much has been given back.
    least: usize,
}

impl FreeOfC {
    pub fn new() -> Self {
        // SAFETY: the function of that name has this signature.
        let mallinfo = crate::python::symbol(c"mallinfo2")
            .map(|found| unsafe { std::mem::transmute::<*mut std::ffi::c_void, unsafe extern "C" fn() -> MallInfo>(found) });
        Self { mallinfo, least: 0 }
    }

    fn free(&self) -> usize {
        // SAFETY: the C library's function; this thread is not inside `malloc`.
        self.mallinfo.map_or(0, |mallinfo| unsafe { mallinfo() }.free)
    }

    /// Bytes that are free and were not given back.
    pub fn fresh(&mut self) -> usize {
        let free = self.free();
        self.least = self.least.min(free);
        free - self.least
    }

    /// All that is free has been given back.
    pub fn given_back(&mut self) {
        self.least = self.free();
    }
}

/// Microseconds of processor time that this process has had, without this thread's.
pub fn processor_micros() -> u64 {
    let micros = |clock: c_int| {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: fills the structure.
        unsafe { libc::clock_gettime(clock, &mut time) };
        time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1000
    };
    micros(libc::CLOCK_PROCESS_CPUTIME_ID).saturating_sub(micros(libc::CLOCK_THREAD_CPUTIME_ID))
}
