//! A thread of our own that looks now and then, and has a trim made when one is due.
//!
//! It looks without the GIL. A slice of a trim is made by a pending call in Python's main thread; or by this thread itself, with the GIL,
//! where the main thread does not come to it, because it sleeps in the system. The thread is there only while enough is held to look at.
//!
//! - **Finalization.** A thread that wants the GIL then is ended, or hangs. So [`end`], which `atexit` calls, lets it finish first, and
//!   nothing begins after that. A program can clear what `atexit` is to call: so it also looks whether the interpreter is still there.
//! - **Fork.** The child does not have the thread; and CPython 3.12 and later warn of threads in a process that forks. So it is ended before a
//!   fork, and begins anew, in both processes, in a pending call or with the next arena. Only one that wants the GIL at that moment, for a slice,
//!   cannot be waited for: then CPython may warn. A child that another thread than the main one forked goes without.
//! - **Signals** are blocked in it: handlers run in the program's own threads.

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

/// How long the main thread has for coming to a pending call before this thread takes the GIL itself.
const PATIENCE: Duration = Duration::from_millis(20);
/// How long the program goes on between two slices.
const PAUSE: Duration = Duration::from_millis(5);
/// Bytes of the thread's stack.
const STACK_SIZE: usize = 256 << 10;

/// Whether the thread is there: [`ABSENT`], [`PRESENT`], or [`ENDED`] and still to be joined.
static THREAD: AtomicU32 = AtomicU32::new(ABSENT);
const ABSENT: u32 = 0;
const BEGINNING: u32 = 1;
const PRESENT: u32 = 2;
const ENDED: u32 = 3;

/// Not 0 when the thread is to end. It sleeps on this word.
static STOP: AtomicU32 = AtomicU32::new(0);
/// Not 0 while the thread has the GIL, waits for it, or is in `malloc_trim`: it cannot be waited for then by who has the GIL.
static BUSY: AtomicU32 = AtomicU32::new(0);

/// Not 0 in a child that another thread than the main one forked, and in its children: when that thread's function returns, the thread ends, and
/// with it the process if it was the last one. So there must be none of ours.
static LAST_THREAD_ENDS: AtomicU32 = AtomicU32::new(0);
/// Whether the thread that is forking is its process's main thread.
static MAIN_FORKS: AtomicU32 = AtomicU32::new(0);

struct Handle(UnsafeCell<MaybeUninit<libc::pthread_t>>);
// SAFETY: written by who takes THREAD from ABSENT to BEGINNING, read by who takes it from ENDED to ABSENT.
unsafe impl Sync for Handle {}
static HANDLE: Handle = Handle(UnsafeCell::new(MaybeUninit::uninit()));

/// Begins the thread if there is enough to look at, and it is not there. Called with the GIL, also in the middle of a call of the allocator.
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
    let mut attributes = MaybeUninit::<libc::pthread_attr_t>::uninit();
    let (mut all, mut before) = (MaybeUninit::<libc::sigset_t>::uninit(), MaybeUninit::<libc::sigset_t>::uninit());
    // The thread has the mask of who begins it. A function that may be unwound is as good here: only `pthread_exit` does that.
    // SAFETY: what is filled is used after that; the mask is put back.
    let begun = unsafe {
        libc::pthread_attr_init(attributes.as_mut_ptr());
        libc::pthread_attr_setstacksize(attributes.as_mut_ptr(), STACK_SIZE);
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
        let run = std::mem::transmute::<
            unsafe extern "C-unwind" fn(*mut c_void) -> *mut c_void,
            extern "C" fn(*mut c_void) -> *mut c_void,
        >(run);
        let begun = libc::pthread_create((*HANDLE.0.get()).as_mut_ptr(), attributes.as_ptr(), run, null_mut());
        libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), null_mut());
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
        begun == 0
    };
    if begun {
        // It may have ended by now.
        let _ = THREAD.compare_exchange(BEGINNING, PRESENT, SeqCst, SeqCst);
    } else {
        THREAD.store(ABSENT, SeqCst);
    }
}

/// Joins the thread if it has ended.
fn join() {
    if THREAD.compare_exchange(ENDED, BEGINNING, SeqCst, SeqCst).is_ok() {
        // SAFETY: it was begun, and this is the one join. It is past its last statement.
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

/// Ends the thread before the interpreter is taken down.
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

/// Before a fork: has the thread end, unless it is where it cannot be waited for; and begin again when the main thread comes to it, in both
/// processes: the child has what is queued, too.
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
    // One that is still there asks itself, when it ends.
    if !is_there() {
        AGAIN.store(0, SeqCst);
        join();
        if is_on() {
            ask_to_begin_again();
        }
    }
}

/// Not 0 when the thread is to be begun again as soon as it has ended.
static AGAIN: AtomicU32 = AtomicU32::new(0);

/// Has the main thread begin the thread.
fn ask_to_begin_again() {
    unsafe extern "C" fn again(_: *mut c_void) -> c_int {
        begin_if_needed();
        0
    }
    // SAFETY: may be called from any thread. Where there is no room for it the next arena does it.
    unsafe { (python::api().add_pending_call)(again, null_mut()) };
}

/// After a fork, in the child: the thread is not there.
pub fn fork_in_child() {
    THREAD.store(ABSENT, SeqCst);
    if MAIN_FORKS.load(SeqCst) == 0 {
        LAST_THREAD_ENDS.store(1, SeqCst);
    }
    for word in [&STOP, &BUSY, &AGAIN, &REQUEST, &QUEUED] {
        word.store(0, SeqCst);
    }
}

/// What the thread does. Nothing in it has anything to drop while it wants the GIL: see [`Gil`].
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
    // Looks since the program has last run.
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
        // Where the program sleeps and has been looked at twice, nothing is new; where it runs, a look now and then will do.
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

/// What is known of the program at a moment without looking at its pools.
#[derive(Clone, Copy)]
struct Glance {
    /// Since the watcher began.
    time: Duration,
    /// Arenas that were taken so far.
    taken: usize,
    /// Microseconds of the processor that it has had.
    processor: u64,
}

impl Glance {
    fn new(time: Duration) -> Self {
        Self { time, taken: arenas::taken(), processor: processor_micros() }
    }

    /// Whether it has had less than a twentieth of one processor since.
    fn has_slept_since(&self, last: &Self) -> bool {
        u128::from(self.processor.saturating_sub(last.processor)) * 20 < (self.time - last.time).as_micros()
    }
}

/// Waits. Says whether the thread is to end.
fn is_stopped_within(time: Duration) -> bool {
    wait_while(&STOP, 0, time);
    STOP.load(SeqCst) != 0
}

/// A slice that the main thread is asked for: [`NONE`], [`ASKED`], [`RUNNING`] or [`DONE`].
static REQUEST: AtomicU32 = AtomicU32::new(NONE);
const NONE: u32 = 0;
const ASKED: u32 = 1;
const RUNNING: u32 = 2;
const DONE: u32 = 3;
/// Not 0 while a pending call waits to be called.
static QUEUED: AtomicU32 = AtomicU32::new(0);
/// Behind which arena to go on, and whether that is the end; which pools are wanted.
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

/// The slice itself.
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

/// Has the main thread make a slice between two instructions. Says `false` when it does not come to it.
fn in_main_thread() -> bool {
    unsafe extern "C" fn pending_call(_: *mut c_void) -> c_int {
        QUEUED.store(0, SeqCst);
        if REQUEST.compare_exchange(ASKED, RUNNING, SeqCst, SeqCst).is_ok() {
            let before = AT.load(SeqCst);
            let errno = Errno::save();
            // SAFETY: pending calls have the GIL, between two instructions.
            unsafe { make_slice() };
            errno.restore();
            // Another interpreter's code: this thread has to wait for the GIL itself.
            REQUEST.store(if AT.load(SeqCst) == before { NONE } else { DONE }, SeqCst);
            wake(&REQUEST);
        }
        0
    }
    // One that is queued from an earlier time shows that the main thread does not come to it.
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

/// Makes a slice in this thread. Says `false` when it may not.
fn here(gil: &Gil) -> bool {
    BUSY.store(1, SeqCst);
    let before = AT.load(SeqCst);
    // `end` and `before_fork` have asked before they look at BUSY.
    if STOP.load(SeqCst) == 0 && is_on() && gil.is_there() {
        // SAFETY: this thread has no GIL, and a thread that takes the interpreter down waits for this one first.
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

/// Waits while the word has this value, for some time at most.
fn wait_while(word: &AtomicU32, value: u32, most: Duration) {
    let begin = Instant::now();
    while word.load(SeqCst) == value {
        let Some(left) = most.checked_sub(begin.elapsed()) else { return };
        let time = libc::timespec { tv_sec: left.as_secs() as libc::time_t, tv_nsec: left.subsec_nanos().into() };
        // SAFETY: a word that is there for good.
        unsafe {
            libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG, value, &raw const time)
        };
    }
}

fn wake(word: &AtomicU32) {
    // SAFETY: as above.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, c_int::MAX) };
}
