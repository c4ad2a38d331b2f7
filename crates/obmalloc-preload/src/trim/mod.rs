//! The trimmer: while a program runs, gives back to the system the memory that CPython holds and does not use: the pages of pymalloc's empty
//! pools, in arenas that are held because another pool has a block, and the free memory of C's `malloc`.
//!
//! ```sh
//! OBMALLOC_TRIM=every=30s,above=16M,log LD_PRELOAD=libobmalloc_preload.so python3 program.py
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | `options` | the words of `OBMALLOC_TRIM` |
//! | `arenas` | the table of arenas: their owners, and what is known of their pools |
//! | `pools` | a pool's header: its layout, what it says, whether this CPython keeps to it |
//! | `give_back` | makes a slice of a trim: forgets empty pools and gives their pages back; `malloc_trim` |
//! | `look` | how much could be given back, seen without the GIL |
//! | `when` | when a trim is due |
//! | `watcher` | the thread that looks, and has the main thread or itself make a slice |
//! | `gil` | releases the GIL for a moment, or takes it in a thread that Python did not make |
//! | `hooks` | the hooks on arenas if nothing is recorded, and the beginning |
//! | `counts` | what has been given back so far; the lines and the report |
//!
//! # What happens to an empty pool
//! CPython looks only at the header of a pool without blocks. If the header has the wanted size class, CPython goes on with the pool's old
//! free list, which runs through the blocks; otherwise it carves the pool anew. So the trimmer sets the class in the header to CPython's own
//! value for none (`DUMMY_SIZE_IDX`). Then the pages behind the header's can go: nothing reads them before it writes them. A program could
//! notice only that the pool is carved anew: blocks may get other addresses inside it.
//!
//! # Where the GIL comes from
//! A slice runs with the GIL. No test checks that: it follows from how a slice is started. (1) A pending call of the main thread (`watcher`).
//! (2) The watcher's own thread, which takes the GIL by `PyGILState_Ensure` while the program sleeps (`gil`). (3) The program's own
//! `sys.audit("obmalloc.trim")` (`marks`). `malloc_trim` runs without the GIL.
//!
//! # What is not trimmed
//! - CPython before 3.10, where a pool is one page; systems with pages larger than 4 KiB; a process without pymalloc (`PYTHONMALLOC`, a
//!   free-threaded build) or with debug hooks; a process in which a few blocks do not change their pool's header as expected.
//! - Interpreters with allocators of their own, unless they ask for it.
//! - After the interpreter has been finalized nothing more is given back, also when it is initialised again.

mod arenas;
mod counts;
mod gil;
mod give_back;
mod hooks;
mod look;
mod options;
mod pools;
mod watcher;
mod when;

use crate::python::{METH_NOARGS, Object, Objects, PyMethodDef, SetOnce, culprit, symbol};
use crate::{environment, interpreters, marks};
pub use counts::REPORT;
use counts::{COUNTS, Given, say_trim};
use gil::Gil;
use give_back::{PAGE_SIZE, Which, slice};
use options::Options;
use std::ffi::c_void;
use std::ptr::null;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::time::Duration;

/// The variable with the options. Nothing is trimmed unless it is set.
pub const VARIABLE: &str = "OBMALLOC_TRIM";

/// After this time a slice ends, because other threads wait for the GIL. The pools under way come to some 0.1 ms more, so that a slice takes
/// less than 2 ms of processor time.
const SLICE: Duration = Duration::from_micros(1600);

static OPTIONS: OnceLock<Options> = OnceLock::new();
static GIL: SetOnce<Gil> = SetOnce::new();

/// The state: [`OFF`], [`WAITING`] for CPython to be initialised, [`ON`], or [`OVER`].
static MODE: AtomicU8 = AtomicU8::new(OFF);
const OFF: u8 = 0;
const WAITING: u8 = 1;
const ON: u8 = 2;
const OVER: u8 = 3;

/// Why nothing can be given back.
static REASON: OnceLock<String> = OnceLock::new();
/// The process that is trimmed, 0 when none is. A child made by `vfork` has the parent's memory and another id.
static TRIMMED: AtomicU32 = AtomicU32::new(0);
/// Whether the last line has been written.
static ENDED: AtomicBool = AtomicBool::new(false);

fn options() -> &'static Options {
    OPTIONS.get().unwrap_or(&Options::DEFAULT)
}

fn is_on() -> bool {
    MODE.load(Ordering::SeqCst) == ON
}

/// Whether the trimmer must be told of arenas.
fn is_wanted() -> bool {
    MODE.load(Ordering::Relaxed) != OFF
}

/// Reads the options and checks whether this CPython, of release `python`, can be trimmed. The constructor calls it once, if the variable is
/// set. Returns `false` if there is nothing to do.
pub fn set_up(text: &str, python: &str, free_threaded: bool) -> bool {
    let parsed = Options::parse(text);
    let options = parsed.unwrap_or(Options::DEFAULT);
    let report = std::env::var_os(REPORT).filter(|path| !path.is_empty());
    counts::set_up(report.as_deref().map(std::path::Path::new), options.log || parsed.is_err());
    let _ = OPTIONS.set(options);
    TRIMMED.store(std::process::id(), Ordering::Relaxed);
    if let Some(reason) = impossible(parsed.err(), python, free_threaded) {
        let _ = REASON.set(reason);
        return false;
    }
    if options.poison {
        give_back::poison();
    }
    MODE.store(WAITING, Ordering::Relaxed);
    true
}

/// Why this process cannot be trimmed, as far as is known now.
fn impossible(word: Option<&str>, python: &str, free_threaded: bool) -> Option<String> {
    // SAFETY: takes no memory.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let minor = python.strip_prefix("3.").and_then(|rest| rest.split(|char: char| !char.is_ascii_digit()).next()?.parse().ok());
    if let Some(word) = word {
        let expected = "every=, above=, idle, asked or log with commas between";
        Some(format!("{VARIABLE}: expected {expected}, but got {word}"))
    } else if free_threaded {
        Some(format!("a free-threaded CPython {python} has no pymalloc"))
    } else if minor.is_none_or(|minor: u32| !(10..=15).contains(&minor)) {
        Some(format!("it is CPython {python}: expected 3.10 to 3.15"))
    } else if page != PAGE_SIZE as libc::c_long {
        Some(format!("pages of {page} bytes are too large: a pool of CPython's would need to have several"))
    } else {
        None
    }
}

/// Watches forks, and arenas too, unless the recorder, which `records` says is on, does that.
pub fn install(records: bool) {
    extern "C" fn before() {
        watcher::before_fork();
        arenas::lock();
    }
    extern "C" fn in_parent() {
        arenas::unlock();
    }
    extern "C" fn in_child() {
        arenas::unlock();
        watcher::fork_in_child();
        counts::begin_anew();
        TRIMMED.store(std::process::id(), Ordering::Relaxed);
        ENDED.store(false, Ordering::Relaxed);
    }
    // SAFETY: the handlers are there for as long as the process; this library is never unloaded.
    unsafe { libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child)) };
    if !records {
        interpreters::set_up();
        hooks::install();
        environment::put_back_with(hooks::put_back);
    }
}

/// Notes an arena that the interpreter whose GIL is held has taken, in the middle of a call of the allocator.
pub fn arena_taken(address: usize, size: usize) {
    if is_wanted() {
        arenas::put(address, size, interpreters::present());
        watcher::begin_if_needed();
    }
}

/// Notes that an arena is about to be given back.
pub fn arena_given(address: usize, size: usize) {
    if is_wanted() {
        arenas::remove(address, size);
    }
}

/// Begins, in a pending call. Returns `false` if this must be tried again at another moment.
///
/// # Safety
/// The GIL is held, and the allocator is in no call.
unsafe fn begin_at_once() -> bool {
    let Some(python) = Objects::find() else { return true };
    let mut done = true;
    // SAFETY: the caller's promise.
    unsafe { python.undisturbed(|| done = begin(&python)) };
    done
}

/// Begins, if this process is to be trimmed. Returns `false` if this must be tried again at another moment; a Python error may be set.
///
/// # Safety
/// As of [`begin_at_once`].
pub unsafe fn begin(python: &Objects) -> bool {
    static AT_EXIT: PyMethodDef =
        PyMethodDef { name: c"obmalloc_trim_ends".as_ptr(), method: at_exit, flags: METH_NOARGS, doc: null() };

    if MODE.load(Ordering::SeqCst) != WAITING {
        return true;
    }
    let (Some(gil), Some(none)) = (Gil::find(), symbol(c"_Py_NoneStruct")) else { return true };
    // SAFETY: only the function that is registered below reads them, and what is done once this is on.
    unsafe {
        NONE.set((*python, none));
        GIL.set(gil);
    }
    // SAFETY: the caller's promise.
    if !unsafe { python.call_at_exit(&AT_EXIT) } {
        return false;
    }
    // SAFETY: the caller's promise.
    if let Err(reason) = unsafe { pools::check(python) } {
        let _ = REASON.set(reason.to_owned());
        MODE.store(OFF, Ordering::SeqCst);
        return true;
    }
    // The program may have replaced `atexit.register` with a function that calls ours at once: then it is over.
    if MODE.compare_exchange(WAITING, ON, Ordering::SeqCst, Ordering::SeqCst).is_err() {
        return true;
    }
    // SAFETY: the caller's promise.
    if !unsafe { marks::watch(python, false) } {
        counts::say(format_args!(
            "sys.audit(\"obmalloc.trim\") is not seen: sys.audit of this CPython is not what it is elsewhere"
        ));
    }
    watcher::begin_if_needed();
    true
}

static NONE: SetOnce<(Objects, Object)> = SetOnce::new();

/// The function that `atexit` calls, after all of the program's own. From here on nothing is given back.
unsafe extern "C-unwind" fn at_exit_unwinding() {
    MODE.store(OVER, Ordering::SeqCst);
    // SAFETY: `atexit` holds the GIL; the interface was set before this function was registered.
    unsafe { watcher::end(GIL.get()) };
}

unsafe extern "C" fn at_exit(_: *mut c_void, _: *mut c_void) -> Object {
    // SAFETY: only `begin` registers this function, and sets what it needs. CPython does not end the main thread.
    unsafe {
        at_exit_unwinding();
        let (python, none) = NONE.get();
        (python.inc_ref)(*none);
        *none
    }
}

/// Trims the interpreter that asks for it: all its empty pools, now.
///
/// # Safety
/// This thread has that interpreter's GIL, and the allocator is in no call. The thread may be ended in here, so its callers have nothing
/// to drop.
pub unsafe fn now() {
    if !is_on() {
        return;
    }
    let before = Given::so_far();
    // SAFETY: the caller's promise; the interface is set before the mode is.
    unsafe {
        let (owner, gil) = (interpreters::present(), GIL.get());
        let mut at = Some(0);
        while let Some(after) = at {
            at = slice(owner, Which::All, after, SLICE);
            if at.is_some() {
                gil.without(|| {});
            }
        }
        gil.without(give_back::malloc_trim);
    }
    COUNTS.trims.add(1);
    say_trim(&Given::since(&before));
}

/// Writes the last line, at the end of the process or of this program in it.
pub fn leave() {
    if TRIMMED.load(Ordering::Relaxed) == std::process::id() && !ENDED.swap(true, Ordering::Relaxed) {
        let reason = REASON.get().map(String::as_str);
        // CPython was never initialised, or its allocators were replaced.
        let reason = reason.or_else(|| (MODE.load(Ordering::SeqCst) == WAITING).then(not_begun));
        counts::say_end(reason);
    }
}

/// Before the process goes on as another program, which may fail.
#[cfg(not(test))]
pub fn before_exec() {
    if TRIMMED.load(Ordering::Relaxed) == std::process::id() {
        counts::report(false, None);
    }
}

/// Whether the trimmer trims this process, and CPython has been found in it.
#[cfg(not(test))]
pub fn is_trimmed() -> bool {
    is_wanted() && TRIMMED.load(Ordering::Relaxed) == std::process::id()
}

/// Why trimming has not begun.
fn not_begun() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| format!("{} replaced CPython's allocators, or it was not initialised", culprit()))
}
