//! The checker: looks whether every block comes back to the domain that gave it out, or to C's `free` if that is where it is from, while
//! a real program runs.
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
//! | `wrong` | what is wrong with a call, and what becomes of it |
//! | `findings` | what was found, and the report |
//! | `counters` | how often it was found, where a process that is killed leaves it |
//! | `site` | the function and module of an address |
//!
//! # What becomes of a wrong call
//! The program lives on, so that all that is wrong with it can be seen:
//! - A block of another domain, or of C, is given back to its own. A realloc moves it to where it was asked for.
//! - Nothing else is given back: an address inside a block, one that was freed before, one that was never given out. It may be of
//!   `malloc`, which CPython would have let pass; then that memory stays taken. A realloc gives a new block with what can be read there.
//!
//! # What is not said
//! CPython sometimes puts plain `malloc` in raw's place for a moment, and mostly frees in such a moment too what it got there. Where it
//! does not (see `site::MADE_PAST_THE_HOOKS`), that is no fault of the program's; nor is what it frees then with plain `free`. What C
//! is given of its own is left to C, also twice. So is what was not seen given out (see `malloc`).
//!
//! # What can be missing
//! Calls of C's functions by a library that finds them past the linker's order (`RTLD_DEEPBIND`), and all of them in a program with a
//! `malloc` of its own, which is reported. Calls of a program that replaces the allocators, which is reported; a
//! process that is killed says only what is known of it when CPython has been initialised. Programs that are started where
//! `LD_PRELOAD` means nothing (by a set-user-ID program) or is missing from the environment of C's `system`, `popen` or `execl`, or
//! among some two thousand variables.
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

/// Names the file that the report goes to.
pub const VARIABLE: &str = "OBMALLOC_CHECK";

/// The process that is checked, 0 when none is. A child made by `vfork` has the parent's memory and another id.
static CHECKED: AtomicU32 = AtomicU32::new(0);

/// Makes the report: at `path` if this process is the `first` of its family. Says `false` when that cannot be done.
pub fn set_up(path: PathBuf, first: bool, header: Header) -> bool {
    findings::set_up(path, first, header)
}

/// Begins to look.
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

/// The end of the process, or of this program in it: the report says all that was found.
pub fn leave() {
    if CHECKED.load(Ordering::Relaxed) == std::process::id() {
        findings::end(&lost());
    }
}

/// Whether the running process is the one that is checked.
#[cfg(not(test))]
pub fn is_checked() -> bool {
    CHECKED.load(Ordering::Relaxed) == std::process::id()
}

/// Whether the domains whose calls do not come here have been noted.
static LOOKED: AtomicBool = AtomicBool::new(false);

/// Notes it as soon as CPython is initialised: by then an option has replaced the allocators, or none will. Called by
/// mem's realloc, which every growing list calls, and others seldom.
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

/// Domains whose calls do not come here, at least now, and C if its do not. Calls that can be tried are.
fn lost() -> Vec<&'static str> {
    let api = python::api();
    let mut lost = Vec::new();
    // SAFETY: raw may be called at any time; the others with the GIL. What is asked for is given back.
    unsafe {
        if !hooks::is_in_place(0) && !hooks::reached_by(0, api.raw_malloc, api.raw_free) {
            lost.push("raw");
        }
        let objects = Objects::find().filter(|_| site::has_gil());
        let tries =
            [("mem", objects.map(|of| (of.mem_malloc, of.mem_free))), ("obj", objects.map(|of| (of.obj_malloc, of.obj_free)))];
        for (number, (name, functions)) in (1..).zip(tries) {
            if !hooks::is_in_place(number) && !functions.is_some_and(|(malloc, free)| hooks::reached_by(number, malloc, free)) {
                lost.push(name);
            }
        }
    }
    if !malloc::is_watched() {
        lost.push(Owner::C.name());
    }
    lost
}
