//! A spin lock that can be held across a fork; and keeping the caller's `errno`.

use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, Ordering};

/// A lock without a guard: a thread that forks while it has the lock gives it back twice, once in each process.
pub struct SpinLock(AtomicBool);

impl SpinLock {
    pub const fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// Takes the lock, and waits as long as necessary.
    #[inline(always)]
    pub fn take(&self) {
        if self.0.swap(true, Ordering::Acquire) {
            self.wait(u32::MAX);
        }
    }

    /// Takes the lock, but gives up after `turns` looks and returns `false`.
    pub fn take_within(&self, turns: u32) -> bool {
        !self.0.swap(true, Ordering::Acquire) || self.wait(turns)
    }

    /// Gives the lock back. Only for the thread that has it.
    #[inline(always)]
    pub fn release(&self) {
        self.0.store(false, Ordering::Release);
    }

    /// The word that is true while a thread has the lock: the thread gives the lock back by making it false.
    pub fn word(&self) -> &AtomicBool {
        &self.0
    }

    /// Waits until `word` is false, but gives up after `turns` looks and returns `false`.
    pub fn wait_for(word: &AtomicBool, turns: u32) -> bool {
        !word.load(Ordering::Acquire) || Self::turn(turns, || !word.load(Ordering::Acquire))
    }

    #[cold]
    fn wait(&self, turns: u32) -> bool {
        Self::turn(turns, || !self.0.load(Ordering::Relaxed) && !self.0.swap(true, Ordering::Acquire))
    }

    fn turn(turns: u32, is_done: impl Fn() -> bool) -> bool {
        let mut turn = 0;
        while turn < turns || turns == u32::MAX {
            if is_done() {
                return true;
            }
            if turn < 100 {
                std::hint::spin_loop();
            } else {
                // SAFETY: takes nothing and always succeeds.
                unsafe { libc::sched_yield() };
            }
            turn = turn.saturating_add(1);
        }
        false
    }
}

/// The caller's `errno`, saved and put back: programs expect it to survive a `free`.
pub struct Errno(c_int);

impl Errno {
    pub fn save() -> Self {
        // SAFETY: the location is this thread's own.
        Self(unsafe { *libc::__errno_location() })
    }

    pub fn restore(self) {
        // SAFETY: as in `save`.
        unsafe { *libc::__errno_location() = self.0 };
    }
}
