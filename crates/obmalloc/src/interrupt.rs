//! Interrupting long work: it is done in pieces, and between two of them it asks whether to stop.

use core::cell::Cell;
use core::ffi::c_void;
use core::ptr;

/// Whether to ask more often: under Miri a step takes microseconds, and a fuzzer's programs are short.
const SMALL: bool = cfg!(any(fuzzing, miri));
/// Steps after which a long loop asks. A step takes some nanoseconds, or about a hundred if it waits for memory.
pub(crate) const STRIDE: usize = if SMALL { 1 << 4 } else { 1 << 14 };
/// Bytes that are filled between two questions. That takes some milliseconds at worst, if the system must find the memory first.
const PIECE: usize = if SMALL { 1 << 7 } else { 1 << 20 };

/// Why something was not done, or not done to the end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Undone {
    /// It was interrupted. It may be tried again.
    GivenUp,
    /// There is no memory for it.
    NoMemory,
}

/// Asks the embedder whether to abandon the current operation.
#[derive(Clone, Copy)]
pub(crate) struct Interrupt {
    ctx: *const c_void,
    ask: unsafe fn(*const c_void) -> bool,
}

impl Interrupt {
    /// Never abandons an operation.
    pub const NEVER: Self = Self { ctx: ptr::null(), ask: |_| false };
    /// # Safety
    /// `ask` may be called with `ctx` as long as this is in use.
    pub const unsafe fn new(ctx: *const c_void, ask: unsafe fn(*const c_void) -> bool) -> Self {
        Self { ctx, ask }
    }

    /// Whether to stop now.
    pub fn is_now(&self) -> bool {
        // SAFETY: the promise made to `new`.
        unsafe { (self.ask)(self.ctx) }
    }

    /// A counter for work in steps.
    pub const fn patience(self) -> Patience {
        Patience { interrupt: self, steps: Cell::new(0), is_endless: Cell::new(false) }
    }

    /// Fills `size` bytes; false if it was interrupted.
    ///
    /// # Safety
    /// The bytes may be written to, also after the embedder was asked.
    pub unsafe fn fill(self, at: *mut u8, byte: u8, size: usize) -> bool {
        // SAFETY: the caller's promise.
        self.in_pieces(size, |done, piece| unsafe { at.add(done).write_bytes(byte, piece) })
    }

    /// Copies `size` bytes; false if it was interrupted.
    ///
    /// # Safety
    /// The bytes may be read and written to, also after the embedder was asked, and do not overlap.
    pub unsafe fn copy(self, from: *const u8, to: *mut u8, size: usize) -> bool {
        // SAFETY: the caller's promise.
        self.in_pieces(size, |done, piece| unsafe { to.add(done).copy_from_nonoverlapping(from.add(done), piece) })
    }

    fn in_pieces(self, size: usize, mut each: impl FnMut(usize, usize)) -> bool {
        let mut done = 0;
        loop {
            let piece = (size - done).min(PIECE);
            each(done, piece);
            done += piece;
            if done == size {
                return true;
            }
            if self.is_now() {
                return false;
            }
        }
    }
}

/// Counts steps of work, and now and then asks the embedder whether to stop.
pub(crate) struct Patience {
    interrupt: Interrupt,
    /// Steps since the embedder was last asked.
    steps: Cell<usize>,
    /// While this is set, the embedder is not asked.
    pub is_endless: Cell<bool>,
}

impl Patience {
    /// Counts `steps` towards the next question.
    #[inline(always)]
    pub fn count(&self, steps: usize) {
        self.steps.set(self.steps.get() + steps);
    }

    /// Counts `steps`. Returns whether to stop.
    #[inline(always)]
    pub fn is_over_after(&self, steps: usize) -> bool {
        self.count(steps);
        self.steps.get() >= STRIDE && self.is_over()
    }

    #[cold]
    fn is_over(&self) -> bool {
        let over = !self.is_endless.get() && self.interrupt.is_now();
        // After an interrupt, the loops that called the interrupted loop must also ask soon.
        self.steps.set(if over { STRIDE } else { 0 });
        over
    }
}
