//! The checker: checks, while a real program runs, that every block goes back to the domain that allocated it, or to C's `free` if it is C's.
//!
//! ```sh
//! OBMALLOC_CHECK=report LD_PRELOAD='libobmalloc_preload.so libobmalloc_libc.so' python3 program.py
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | `blocks` | every live block by address |
//! | `hooks` | the domains' wrapped allocators |
//! | `malloc` | C's allocator |
//! | `wrong` | decides what is wrong with a call, and what the call does then |
//! | `findings` | the findings, and the report |
//! | `counters` | how often each finding occurred, in a file that a killed process leaves |
//! | `site` | the function and module of an address |
//!
//! # What a wrong call does
//! The program goes on, so that all its faults can be found:
//! - A block of another domain, or of C, is freed by its own allocator. A realloc moves it to the domain that was called.
//! - Any other address is not freed: one inside a block, one that was freed before, one that was never allocated. It may be `malloc`'s, which
//!   CPython would have freed; then that memory stays allocated. A realloc gives a new block with the bytes that can be read there.
//!
//! # What is not reported For short moments CPython puts plain `malloc` in raw's place. Usually it frees those blocks in such a moment as well.
//! If it frees them later (see `site::MADE_PAST_THE_HOOKS`), or calls plain `free` in such a moment, the checker reports nothing: the program did
//! nothing wrong. A block of C's that is given to C's `free` is left to C, also when it is freed twice. So is an address whose allocation was not
//! seen (see `malloc`).
//!
//! # What can be missing
//! - Calls of C's functions by a library that finds them past the linker's order (`RTLD_DEEPBIND`).
//! - All calls of C's functions in a program with a `malloc` of its own, which is reported.
//! - Calls of a program that replaces the allocators, which is reported; but if the process is killed, only what was known when CPython had
//!   been initialised.
//! - Programs that are started where `LD_PRELOAD` means nothing (by a set-user-ID program), or is missing from the environment: with C's
//!   `system`, `popen` or `execl`, or with more than some two thousand variables.
//!
//! The report of a forked or executed process is `<path>.<pid>`, as with traces.

mod blocks;
mod counters;
mod findings;
mod hooks;
mod malloc;
mod site;
mod wrong;

use crate::environment;
use crate::header::Header;
use crate::lock::Errno;
use crate::python::{self, Objects};
use blocks::Owner;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// The variable with the report's path.
pub const VARIABLE: &str = "OBMALLOC_CHECK";

/// The process that is checked, 0 when none is. A child made by `vfork` has the parent's memory and another id.
static CHECKED: AtomicU32 = AtomicU32::new(0);

/// Makes the report: at `path` if this process is the `first` of its family. Returns `false` if that cannot be done.
pub fn set_up(path: PathBuf, first: bool, header: Header) -> bool {
    findings::set_up(path, first, header)
}

/// Begins to check.
pub fn install() {
    extern "C" fn in_child() {
        CHECKED.store(std::process::id(), Ordering::Relaxed);
        findings::fork_in_child();
    }
    extern "C" fn before() {
        findings::before_fork();
    }
    extern "C" fn in_parent() {
        findings::fork_in_parent();
    }
    CHECKED.store(std::process::id(), Ordering::Relaxed);
    // SAFETY: the handlers are there for as long as the process; this library is never unloaded.
    unsafe { libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child)) };
    hooks::install();
    environment::put_back_with(hooks::put_back);
    malloc::watch();
}

/// Completes the report, at the end of the process or of this program in it.
pub fn leave() {
    if CHECKED.load(Ordering::Relaxed) == std::process::id() {
        findings::end(&lost());
    }
}

/// Whether the checker checks this process.
#[cfg(not(test))]
pub fn is_checked() -> bool {
    CHECKED.load(Ordering::Relaxed) == std::process::id()
}

/// Whether the domains whose calls do not come here have been reported.
static LOOKED: AtomicBool = AtomicBool::new(false);

/// Reports them as soon as CPython is initialised: an option has replaced the allocators by then, or none will. Called by mem's realloc,
/// which every growing list calls, and little else.
#[inline(always)]
fn look_once() {
    if !LOOKED.load(Ordering::Relaxed) {
        look();
    }
}

#[cold]
fn look() {
    // SAFETY: may be called at any time.
    if unsafe { (python::api().is_initialized)() } != 0 && !LOOKED.swap(true, Ordering::Relaxed) {
        let errno = Errno::save();
        findings::note_lost(&lost());
        errno.restore();
    }
}

/// The domains whose calls do not come here now, and C if its calls do not. Where a call can be made to find out, it is made.
fn lost() -> Vec<&'static str> {
    let api = python::api();
    let mut lost = Vec::new();
    let objects = Objects::find().filter(|_| site::has_gil());
    let tries = [
        ("raw", Some((api.raw_malloc, api.raw_free))),
        ("mem", objects.map(|of| (of.mem_malloc, of.mem_free))),
        ("obj", objects.map(|of| (of.obj_malloc, of.obj_free))),
    ];
    for (number, (name, functions)) in (0..).zip(tries) {
        // SAFETY: both are of that domain; raw's may be called at any time, and the others' are only there if the GIL is held.
        let is_reached = || functions.is_some_and(|(malloc, free)| unsafe { hooks::reached_by(number, malloc, free) });
        if !hooks::is_in_place(number) && !is_reached() {
            lost.push(name);
        }
    }
    if !malloc::is_watched() {
        lost.push(Owner::C.name());
    }
    lost
}
