//! The watcher: a thread of our own that looks at the pools now and then, and starts a trim when one is due.
//!
//! It looks without the GIL. A pending call in Python's main thread makes a slice of a trim. If the main thread does not run it, because it
//! sleeps in the system, the watcher makes the slice itself, with the GIL. The thread exists only while enough memory is held.
//!
//! - **Finalization.** A thread that wants the GIL then is ended, or hangs. So [`end`], which `atexit` calls, ends the watcher first, and no
//!   watcher begins after that. A program can clear the list of `atexit`, so the watcher also checks that the interpreter is still there.
//! - **Fork.** The child does not have the thread; and CPython 3.12 and later warn of threads in a process that forks. So the watcher is ended
//!   before a fork, and begins again in both processes, in a pending call or with the next arena. A watcher that wants the GIL at that moment,
//!   for a slice, cannot be waited for: then CPython may warn. If another thread than the main one forks, the child has no watcher.
//! - **Signals** are blocked in the watcher: handlers run in the program's own threads.

use super::arenas;
use super::counts::{COUNTS, Given, say_trim};
use super::gil::Gil;
use super::give_back::{Which, malloc_trim, slice};
use super::look::{FreeOfC, idle_bytes, processor_micros};
use super::options::Options;
use super::when::{Look, Pace};
use super::{SLICE, is_on, options};
use crate::interpreters;
use crate::lock::Errno;
use crate::python;
use std::cell::UnsafeCell;
use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// How long the watcher waits for the main thread to run a pending call before it takes the GIL itself.
const PATIENCE: Duration = Duration::from_millis(20);
/// How long the program runs between two slices.
const PAUSE: Duration = Duration::from_millis(5);
/// Bytes of the thread's stack.
const STACK_SIZE: usize = 256 << 10;

/// The thread's state: [`ABSENT`], [`PRESENT`], or [`ENDED`] and still to be joined.
static THREAD: AtomicU32 = AtomicU32::new(ABSENT);
const ABSENT: u32 = 0;
const BEGINNING: u32 = 1;
const PRESENT: u32 = 2;
const ENDED: u32 = 3;

/// Not 0 when the thread must end. It sleeps on this word.
static STOP: AtomicU32 = AtomicU32::new(0);
/// Not 0 while the thread has the GIL, waits for it, or is in `malloc_trim`: a thread with the GIL cannot wait for it then.
static BUSY: AtomicU32 = AtomicU32::new(0);

/// Not 0 in a child (and its children) that a thread other than the main one forked. There the process ends when the forking thread's function
/// returns, if no other thread is left. A thread of ours would keep the process alive, so none is started.
static LAST_THREAD_ENDS: AtomicU32 = AtomicU32::new(0);
/// Whether the thread that is forking is its process's main thread.
static MAIN_FORKS: AtomicU32 = AtomicU32::new(0);

struct Handle(UnsafeCell<MaybeUninit<libc::pthread_t>>);
// SAFETY: only the thread that takes THREAD from ABSENT to BEGINNING writes it, and only the one that takes it from ENDED to ABSENT reads it.
unsafe impl Sync for Handle {}
static HANDLE: Handle = Handle(UnsafeCell::new(MaybeUninit::uninit()));

/// Begins the thread if enough memory is held and there is no thread yet. Called with the GIL, also in the middle of a call of the allocator.
pub fn begin_if_needed() {
    let options = options();
    let enough = arenas::held() >= options.above || options.force.is_some();
    if enough && is_on() && !options.only_asked && THREAD.load(SeqCst) != PRESENT && LAST_THREAD_ENDS.load(SeqCst) == 0 {
        let errno = Errno::save();
        begin();
        errno.restore();
    }
}

#[cold]
fn begin() {
    join();
    if THREAD.compare_exchange(ABSENT, BEGINNING, SeqCst, SeqCst).is_err() {
        return;
    }
    STOP.store(0, SeqCst);
    if without_signals(create) {
        // The thread may have ended by now.
        let _ = THREAD.compare_exchange(BEGINNING, PRESENT, SeqCst, SeqCst);
    } else {
        THREAD.store(ABSENT, SeqCst);
    }
}

/// Creates the thread. Only for the thread that has taken [`THREAD`] from [`ABSENT`] to [`BEGINNING`].
fn create() -> bool {
    let mut attributes = MaybeUninit::<libc::pthread_attr_t>::uninit();
    // SAFETY: the attributes are filled before they are used, and only this thread writes the handle. `run` may unwind, but only through
    // `pthread_exit`.
    unsafe {
        libc::pthread_attr_init(attributes.as_mut_ptr());
        libc::pthread_attr_setstacksize(attributes.as_mut_ptr(), STACK_SIZE);
        let run = std::mem::transmute::<Unwinding, extern "C" fn(*mut c_void) -> *mut c_void>(run);
        let begun = libc::pthread_create((*HANDLE.0.get()).as_mut_ptr(), attributes.as_ptr(), run, null_mut());
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
        begun == 0
    }
}

/// A thread's function that may unwind.
type Unwinding = unsafe extern "C-unwind" fn(*mut c_void) -> *mut c_void;

/// Calls `call` with all signals blocked in this thread. A thread that it creates inherits that.
fn without_signals<T>(call: impl FnOnce() -> T) -> T {
    let (mut all, mut before) = (MaybeUninit::<libc::sigset_t>::uninit(), MaybeUninit::<libc::sigset_t>::uninit());
    // SAFETY: fills the first set, and then the second.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
    }
    let result = call();
    // SAFETY: filled above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), null_mut()) };
    result
}

/// Joins the thread if it has ended.
fn join() {
    if THREAD.compare_exchange(ENDED, BEGINNING, SeqCst, SeqCst).is_ok() {
        // SAFETY: the thread was begun, and this is its only join. It is past its last statement.
        unsafe { libc::pthread_join((*HANDLE.0.get()).assume_init(), null_mut()) };
        THREAD.store(ABSENT, SeqCst);
    }
}

fn is_there() -> bool {
    [BEGINNING, PRESENT].contains(&THREAD.load(SeqCst))
}

fn ask_to_end() {
    STOP.store(1, SeqCst);
    wake(&STOP);
}

/// Ends the thread before the interpreter is finalized.
///
/// # Safety
/// This thread has the GIL. It may be ended in here, so its callers have nothing to drop.
pub unsafe fn end(gil: &Gil) {
    if is_there() {
        ask_to_end();
        let begin = Instant::now();
        // SAFETY: the caller's promise.
        unsafe {
            gil.without(|| {
                while is_there() && begin.elapsed() < Duration::from_secs(10) {
                    libc::usleep(50);
                }
            });
        }
    }
    join();
}

/// Before a fork: ends the thread, unless it cannot be waited for, and queues the pending call that begins it again. The child has that call
/// in its queue, too.
pub fn before_fork() {
    // SAFETY: take nothing and always succeed.
    MAIN_FORKS.store(u32::from(unsafe { libc::gettid() == libc::getpid() }), SeqCst);
    if !is_there() {
        return;
    }
    AGAIN.store(1, SeqCst);
    ask_to_end();
    let begin = Instant::now();
    while is_there() && begin.elapsed() < Duration::from_millis(if BUSY.load(SeqCst) != 0 { 1 } else { 200 }) {
        // SAFETY: takes no memory.
        unsafe { libc::usleep(20) };
    }
    // A thread that is still there queues the call itself when it ends.
    if !is_there() {
        AGAIN.store(0, SeqCst);
        join();
        if is_on() {
            ask_to_begin_again();
        }
    }
}

/// Not 0 when the thread must be begun again as soon as it has ended.
static AGAIN: AtomicU32 = AtomicU32::new(0);

/// Queues a pending call in which the main thread begins the watcher.
fn ask_to_begin_again() {
    unsafe extern "C" fn again(_: *mut c_void) -> c_int {
        begin_if_needed();
        0
    }
    // SAFETY: may be called from any thread. If the queue is full, the next arena begins the thread.
    unsafe { (python::api().add_pending_call)(again, null_mut()) };
}

/// After a fork, in the child: notes that the thread does not exist there.
pub fn fork_in_child() {
    THREAD.store(ABSENT, SeqCst);
    if MAIN_FORKS.load(SeqCst) == 0 {
        LAST_THREAD_ENDS.store(1, SeqCst);
    }
    for word in [&STOP, &BUSY, &AGAIN, &REQUEST, &QUEUED] {
        word.store(0, SeqCst);
    }
}

/// The thread's function. It has nothing to drop while it wants the GIL: see [`Gil`].
unsafe extern "C-unwind" fn run(_: *mut c_void) -> *mut c_void {
    let options = options();
    let gil = Gil::find();
    if let Some(gil) = &gil {
        watch(options, gil);
    }
    THREAD.store(ENDED, SeqCst);
    if AGAIN.swap(0, SeqCst) != 0 && is_on() && gil.is_some_and(|gil| gil.is_there()) {
        ask_to_begin_again();
    }
    null_mut()
}

fn watch(options: &Options, gil: &Gil) {
    let begin = Instant::now();
    let mut pace = Pace::new(*options);
    let mut free_of_c = FreeOfC::new();
    let mut last = Glance::new(Duration::ZERO);
    let (mut looked, mut idle) = (last, 0);
    // How many looks there were since the program last ran.
    let mut looks = 0;
    loop {
        if is_stopped_within(options.force.unwrap_or_else(|| pace.between_looks())) {
            return;
        }
        if options.force.is_some() {
            trim(Which::All, gil);
            continue;
        }
        let now = Glance::new(begin.elapsed());
        let slept = now.has_slept_since(&last);
        last = now;
        looks = if slept { looks + 1 } else { 0 };
        // If the program has slept since two looks, nothing is new. If it runs, a look now and then is enough.
        if looks <= 2 && (slept || now.time - looked.time >= pace.between_busy_looks()) {
            idle = idle_bytes() + free_of_c.fresh();
        } else if !slept {
            continue;
        }
        let look = Look { now: now.time, idle, grew: now.taken != looked.taken, slept, returned: COUNTS.returned_bytes.get() };
        looked = now;
        if pace.is_due(&look) {
            let before = Given::so_far();
            trim(Which::Idle, gil);
            BUSY.store(1, SeqCst);
            malloc_trim();
            BUSY.store(0, SeqCst);
            free_of_c.given_back();
            idle = 0;
            COUNTS.trims.add(1);
            let given = Given::since(&before);
            pace.trimmed(&look, begin.elapsed(), given.bytes);
            say_trim(&given);
        }
    }
}

/// What can be known of the program without a look at its pools.
#[derive(Clone, Copy)]
struct Glance {
    /// Time since the watcher began.
    time: Duration,
    /// Arenas that were taken so far.
    taken: usize,
    /// Microseconds of processor time that the program has used.
    processor: u64,
}

impl Glance {
    fn new(time: Duration) -> Self {
        Self { time, taken: arenas::taken(), processor: processor_micros() }
    }

    /// Whether the program has used less than a twentieth of one processor since.
    fn has_slept_since(&self, last: &Self) -> bool {
        u128::from(self.processor.saturating_sub(last.processor)) * 20 < (self.time - last.time).as_micros()
    }
}

/// Waits. Returns whether the thread must end.
fn is_stopped_within(time: Duration) -> bool {
    wait_while(&STOP, 0, time);
    STOP.load(SeqCst) != 0
}

/// The state of a slice that the main thread is asked for: [`NONE`], [`ASKED`], [`RUNNING`] or [`DONE`].
static REQUEST: AtomicU32 = AtomicU32::new(NONE);
const NONE: u32 = 0;
const ASKED: u32 = 1;
const RUNNING: u32 = 2;
const DONE: u32 = 3;
/// Not 0 while a pending call waits to be called.
static QUEUED: AtomicU32 = AtomicU32::new(0);
/// The arena behind which the next slice goes on, and whether the end was reached; which pools are wanted.
static AT: AtomicUsize = AtomicUsize::new(0);
const END: usize = usize::MAX;
static WANTS_ALL: AtomicU32 = AtomicU32::new(0);

/// Makes a trim, in slices.
fn trim(which: Which, gil: &Gil) {
    AT.store(0, SeqCst);
    WANTS_ALL.store(u32::from(which == Which::All), SeqCst);
    while AT.load(SeqCst) != END {
        if STOP.load(SeqCst) != 0 || !is_on() || !gil.is_there() || !(in_main_thread() || here(gil)) {
            return;
        }
        if AT.load(SeqCst) != END && is_stopped_within(PAUSE) {
            return;
        }
    }
}

/// Makes the slice itself.
///
/// # Safety
/// This thread has a GIL, and is in no call of the allocator.
unsafe fn make_slice() {
    // The thread with the GIL may run another interpreter's code.
    if is_on() && interpreters::present() == 0 {
        let which = if WANTS_ALL.load(SeqCst) != 0 { Which::All } else { Which::Idle };
        // SAFETY: the caller's promise, and the main interpreter's GIL.
        let next = unsafe { slice(0, which, AT.load(SeqCst), SLICE) };
        AT.store(next.unwrap_or(END), SeqCst);
    }
}

/// Asks the main thread to make a slice between two instructions. Returns `false` if it does not do so in time.
fn in_main_thread() -> bool {
    unsafe extern "C" fn pending_call(_: *mut c_void) -> c_int {
        QUEUED.store(0, SeqCst);
        if REQUEST.compare_exchange(ASKED, RUNNING, SeqCst, SeqCst).is_ok() {
            let before = AT.load(SeqCst);
            let errno = Errno::save();
            // SAFETY: pending calls have the GIL, between two instructions.
            unsafe { make_slice() };
            errno.restore();
            // The main thread runs another interpreter's code: the watcher must wait for the GIL itself.
            REQUEST.store(if AT.load(SeqCst) == before { NONE } else { DONE }, SeqCst);
            wake(&REQUEST);
        }
        0
    }
    // A call that is still queued from an earlier time shows that the main thread does not run them.
    if QUEUED.swap(1, SeqCst) != 0 {
        return false;
    }
    REQUEST.store(ASKED, SeqCst);
    // SAFETY: may be called from any thread.
    if unsafe { (python::api().add_pending_call)(pending_call, null_mut()) } != 0 {
        QUEUED.store(0, SeqCst);
        return false;
    }
    wait_while(&REQUEST, ASKED, PATIENCE);
    if REQUEST.compare_exchange(ASKED, NONE, SeqCst, SeqCst).is_ok() {
        return false;
    }
    while REQUEST.load(SeqCst) == RUNNING {
        wait_while(&REQUEST, RUNNING, PATIENCE);
    }
    REQUEST.swap(NONE, SeqCst) == DONE
}

/// Makes a slice in this thread. Returns `false` if it may not.
fn here(gil: &Gil) -> bool {
    BUSY.store(1, SeqCst);
    let before = AT.load(SeqCst);
    // `end` and `before_fork` ask the thread to end before they look at BUSY.
    if STOP.load(SeqCst) == 0 && is_on() && gil.is_there() {
        // SAFETY: this thread has no GIL, and a thread that finalizes the interpreter first waits for this one.
        unsafe {
            gil.with(|| {
                if STOP.load(SeqCst) == 0 {
                    make_slice();
                }
            });
        }
    }
    BUSY.store(0, SeqCst);
    AT.load(SeqCst) != before
}

/// Waits while the word has this value, at most for the given time.
fn wait_while(word: &AtomicU32, value: u32, most: Duration) {
    let begin = Instant::now();
    while word.load(SeqCst) == value {
        let Some(left) = most.checked_sub(begin.elapsed()) else { return };
        let time = libc::timespec { tv_sec: left.as_secs() as libc::time_t, tv_nsec: left.subsec_nanos().into() };
        // SAFETY: a static word.
        unsafe {
            libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG, value, &raw const time)
        };
    }
}

fn wake(word: &AtomicU32) {
    // SAFETY: as above.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, c_int::MAX) };
}
