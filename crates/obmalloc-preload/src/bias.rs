//! A lock that is nearly free for a thread that takes it again and again: the *favourite*. It takes the lock by setting
//! one word of its own. Another thread that wants the lock must first end this privilege, which costs a system call (`membarrier`). From then
//! on all threads take a [`SpinLock`], until one has taken it so often in a row that it becomes the favourite.
//!
//! Invariants:
//! 1. Only the favourite goes in by its own word of `inside`. A thread with the spin lock goes in once no other thread is the favourite and the
//!    last favourite's word is false. Between the two checks it calls `membarrier` for all threads. After that, one of two things holds: the
//!    favourite has seen that it is no longer the favourite, or the other thread sees the favourite's word. So the favourite itself needs no
//!    barrier.
//! 2. Every favourite has a word of its own, because a thread may notice late that its favour has ended, and then clears its word.

use crate::inside;
use crate::lock::SpinLock;
use std::ffi::{c_int, c_uint};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering, compiler_fence};
use std::time::Duration;

/// How many favourites there can be, one after the other. A thread's number is a multiple of this.
const FAVOURITES: usize = 8;
/// `MEMBARRIER_CMD_PRIVATE_EXPEDITED`, and the one that has to be called before.
const BARRIER: c_int = 1 << 3;
const PREPARE: c_int = 1 << 4;

pub struct BiasedLock {
    /// The favourite thread and, in the lowest bits, the index of its word; 0 when there is none.
    favourite: AtomicUsize,
    inside: [AtomicBool; FAVOURITES],
    shared: SpinLock,
    /// Guarded by `shared`: the thread that took `shared` last, how often in a row, and how many favourites there have been.
    last: AtomicUsize,
    row: AtomicU32,
    count: AtomicUsize,
}

/// How the lock is held: the word that is true for as long as it is.
#[derive(Clone, Copy)]
pub struct Held<'a>(&'a AtomicBool);

impl Held<'_> {
    /// Gives the lock back. Only for the thread that has it, and once.
    #[inline(always)]
    pub fn release(self) {
        self.0.store(false, Ordering::Release);
    }
}

impl BiasedLock {
    pub const fn new() -> Self {
        Self {
            favourite: AtomicUsize::new(0),
            inside: [const { AtomicBool::new(false) }; FAVOURITES],
            shared: SpinLock::new(),
            last: AtomicUsize::new(0),
            row: AtomicU32::new(0),
            // No thread becomes the favourite before `prepare`.
            count: AtomicUsize::new(FAVOURITES),
        }
    }

    /// Lets threads become favourites, if the system has `membarrier`. Called once.
    pub fn prepare(&self) {
        if membarrier(PREPARE) {
            self.count.store(0, Ordering::Relaxed);
        }
    }

    /// This process is a fork of the one that the lock was made in.
    pub fn forked(&self) {
        membarrier(PREPARE);
    }

    /// Takes the lock, and waits as long as necessary.
    #[inline(always)]
    pub fn take(&self) -> Held<'_> {
        let thread = inside::thread();
        match self.take_as_favourite(thread) {
            Some(held) => held,
            None => self.take_shared(thread),
        }
    }

    /// Takes the lock, but gives up after `turns` looks, or at once if this thread has it already (a signal handler may find that). Keeps every
    /// other thread out of both ways in, so that a forked child finds the lock held by its only thread.
    pub fn take_within(&self, turns: u32) -> Option<Held<'_>> {
        let thread = inside::thread();
        let own = self.inside.get(self.favourite.load(Ordering::Relaxed) ^ thread);
        if own.is_some_and(|inside| inside.load(Ordering::Relaxed)) || !self.shared.take_within(turns) {
            return None;
        }
        if own.is_none() && !self.end_favour(turns) {
            self.shared.release();
            return None;
        }
        Some(self.as_taken_within())
    }

    /// The lock as [`take_within`](Self::take_within) leaves it, for a thread that holds it.
    pub fn as_taken_within(&self) -> Held<'_> {
        Held(self.shared.word())
    }

    /// Takes the lock for `thread`, which is this one, if it is the favourite.
    #[inline(always)]
    pub fn take_as_favourite(&self, thread: usize) -> Option<Held<'_>> {
        let favourite = self.favourite.load(Ordering::Relaxed);
        let inside = self.inside.get(favourite ^ thread)?;
        inside.store(true, Ordering::Relaxed);
        // Invariant 1: the other thread has the barrier.
        compiler_fence(Ordering::SeqCst);
        if self.favourite.load(Ordering::Relaxed) == favourite {
            return Some(Held(inside));
        }
        inside.store(false, Ordering::Release);
        None
    }

    #[cold]
    #[inline(never)]
    fn take_shared(&self, thread: usize) -> Held<'_> {
        self.shared.take();
        self.end_favour(u32::MAX);
        let row = if self.last.swap(thread, Ordering::Relaxed) == thread { self.row.load(Ordering::Relaxed) + 1 } else { 0 };
        self.row.store(row, Ordering::Relaxed);
        let count = self.count.load(Ordering::Relaxed);
        // Each new favourite needs a longer run of takings than the last one. Otherwise two threads that take turns would become the favourite
        // again and again.
        if count < FAVOURITES && (count == 0 || row >= 1 << (10 + 2 * count)) {
            self.count.store(count + 1, Ordering::Relaxed);
            self.row.store(0, Ordering::Relaxed);
            // Set its own word before it gives the spin lock back.
            self.inside[count].store(true, Ordering::Relaxed);
            self.favourite.store(thread | count, Ordering::Relaxed);
            self.shared.release();
            return Held(&self.inside[count]);
        }
        self.as_taken_within()
    }

    /// Ends the favour, and waits up to `turns` looks for the favourite to be outside. Returns `false` if it is still inside. Only for the thread
    /// that has the spin lock.
    fn end_favour(&self, turns: u32) -> bool {
        let favourite = self.favourite.swap(0, Ordering::Relaxed);
        if favourite != 0 && !membarrier(BARRIER) {
            // The program has forbidden itself unknown system calls. The word is visible long before this time has passed.
            std::thread::sleep(Duration::from_millis(1));
        }
        // A favourite that an earlier call did not wait for may still be inside, too.
        let latest = self.count.load(Ordering::Relaxed).wrapping_sub(1);
        self.inside.get(latest).is_none_or(|inside| SpinLock::wait_for(inside, turns))
    }
}

/// Calls `membarrier`. Returns whether it succeeded.
fn membarrier(command: c_int) -> bool {
    // SAFETY: takes no memory.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0 as c_uint, 0) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::UnsafeCell;
    use std::sync::Arc;

    /// A number that is added to without an atomic instruction, under the lock.
    struct Guarded(BiasedLock, UnsafeCell<u64>);

    // SAFETY: the number is touched under the lock only.
    unsafe impl Sync for Guarded {}

    impl Guarded {
        fn new() -> Arc<Self> {
            let guarded = Arc::new(Self(BiasedLock::new(), UnsafeCell::new(0)));
            guarded.0.prepare();
            guarded
        }

        fn add(&self, times: u64) {
            for _ in 0..times {
                let held = self.0.take();
                // SAFETY: the lock is held.
                unsafe { *self.1.get() += 1 };
                held.release();
            }
        }
    }

    #[test]
    fn threads_that_take_it_in_turn_keep_each_other_out() {
        // Long rows and short ones: favourites come and go.
        for length in [1, 100, 3000, 20_000] {
            let guarded = Guarded::new();
            let times = 400_000 / length;
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| {
                        for _ in 0..times {
                            guarded.add(length);
                            std::thread::yield_now();
                        }
                    });
                }
            });
            let held = guarded.0.take();
            // SAFETY: the lock is held.
            assert_eq!(unsafe { *guarded.1.get() }, 3 * times * length);
            held.release();
        }
    }

    #[test]
    fn thread_that_is_alone_becomes_the_favourite_and_loses_that() {
        let guarded = Guarded::new();
        let is_favourite = || guarded.0.favourite.load(Ordering::Relaxed) ^ inside::thread() < FAVOURITES;
        guarded.add(1);
        assert!(is_favourite() == membarrier(PREPARE));
        std::thread::scope(|scope| scope.spawn(|| guarded.add(1)).join().expect("no panic"));
        assert!(!is_favourite());
        guarded.add(4096);
        assert!(!is_favourite(), "the row begins with the second");
        guarded.add(1);
        assert!(is_favourite() == membarrier(PREPARE));
    }

    #[test]
    fn thread_that_has_it_does_not_get_it_again() {
        let guarded = Guarded::new();
        for _ in 0..2 {
            let held = guarded.0.take();
            assert!(guarded.0.take_within(0).is_none() && guarded.0.take_within(100).is_none());
            std::thread::scope(|scope| {
                scope.spawn(|| assert!(guarded.0.take_within(100).is_none())).join().expect("no panic");
            });
            held.release();
            guarded.0.take_within(0).expect("it is free").release();
        }
    }
}
