//! The recorder: loaded into a running CPython with `LD_PRELOAD`, it writes every allocator call into a trace.
//!
//! ```sh
//! OBMALLOC_TRACE=run.obmtrace LD_PRELOAD=libobmalloc_preload.so python3 program.py
//! ```
//!
//! It leans on `obmalloc-trace`'s format and on libc, and links neither libpython nor Node: it looks CPython's functions up when it is loaded.
//! A process that is no CPython is left alone.
//!
//! | module | what it holds |
//! |---|---|
//! | `at_exit` | registers a function with `atexit` |
//! | `arena_offset` | arenas off their natural boundary, for tests |
//! | `bias` | a lock that is cheap for a thread that takes it again and again |
//! | `check` | the library's second task: check that blocks go back to the allocator that gave them |
//! | `trim` | its third task: give back the memory that CPython holds and does not use |
//! | `clock` | the time, and how much memory the process has |
//! | `hooks` | the wrapped allocators, which run on every call and have each event written |
//! | `interpreters` | which interpreter a call belongs to |
//! | `inside` | whether this thread is inside a mem or obj call |
//! | `lock` | a spin lock that can be held across a fork |
//! | `marks` | moments that the program names |
//! | `sink` | writes events: the one block being written, its lock, and the file |
//! | `stacks` | reads the stack of a request |
//! | `types` | what types objects have at a mark and at the end |
//! | `text` | CPython's texts |
//! | `table`, `pages`, `peek` | tables, and the memory that they are in; memory that may not be there |
//! | `file` | the file that a process writes, whatever the program does to its descriptors and limits |
//! | `unsaid` | messages of a process that cannot write its file |
//! | `header` | the trace's header: which interpreter and which process |
//! | `python` | CPython's C interface, looked up by name |
//! | `snapshot` | CPython's own statistics at the end, and whether the hooks are still in place |
//! | `process` | fork, exec, `_exit` and the other ways to end |
//! | `environment` | the environment of programs that this process starts |
//!
//! # What goes where
//! The first process claims the path in `OBMALLOC_TRACE` and leaves its id in `OBMALLOC_TRACE_PID`; every other one (forked or
//! executed) writes to `<path>.<pid>`, or `<path>.<pid>.2` and so on if that exists. A file is made at the process's first event.
//! `OBMALLOC_TRACE_RUN` is the same for all of them. Nothing is written to stderr, which programs read of each other: messages go into the
//! trace.
//!
//! # What can be missing
//! A process that is killed, or ends by `abort` or a system call of its own, loses the block that was being written and has no `End` note.
//! Its trace can be read up to there.
#![cfg(target_os = "linux")]

mod arena_offset;
mod at_exit;
mod bias;
mod check;
mod clock;
mod environment;
mod file;
mod header;
mod hooks;
mod inside;
mod interpreters;
mod lock;
mod marks;
mod pages;
mod peek;
mod process;
mod python;
mod sink;
mod snapshot;
mod stacks;
mod table;
mod text;
mod trim;
mod types;
mod unsaid;

use header::{Header, Identity};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = constructor;

#[used]
#[unsafe(link_section = ".fini_array")]
static DESTRUCTOR: extern "C" fn() = process::leave;

/// If this process is a CPython: sets up the recorder, the checker or the trimmer, as the environment says. The trimmer may run beside the
/// recorder.
extern "C" fn constructor() {
    let wanted = |variable| std::env::var_os(variable).filter(|value| !value.is_empty());
    let checking = wanted(check::VARIABLE).map(|path| (check::VARIABLE, path));
    let Some((variable, path)) = checking.or_else(|| wanted(VARIABLE).map(|path| (VARIABLE, path))) else {
        if wanted(trim::VARIABLE).is_some() {
            set_up_trimmer();
        }
        return;
    };
    let recording = variable == VARIABLE;
    let own = [variable, &format!("{variable}_PID"), unsaid::VARIABLE];
    let more = [RUN_VARIABLE, stacks::VARIABLE, clock::VARIABLE, types::VARIABLE, trim::VARIABLE, trim::REPORT];
    // The checker does not use the run's identity, stacks or samples.
    let kept = if recording { [&own[..], &more].concat() } else { own.to_vec() };
    unsaid::set_up();
    let Some(api) = python::Api::find() else { return environment::keep(&kept) };
    // A child may run in another directory, and so may this process by the time that it forks.
    let Ok(path) = std::path::absolute(PathBuf::from(path)) else { return };
    let (first, run) = claim(variable, &path);
    environment::keep(&kept);
    let number =
        |variable| std::env::var(variable).ok().filter(|_| recording).and_then(|number| number.parse().ok()).unwrap_or(0);
    let header = Header::of_this_process(&api, run, number(stacks::VARIABLE) as usize, number(clock::VARIABLE));
    let can_be_seen = header.supported() && !header.free_threaded;
    if number(types::VARIABLE) != 0 {
        types::set_up(&header.python);
    }
    let trims = recording && wants_trims(&header.python, header.free_threaded);
    if recording {
        sink::set_up(path, first, header);
    } else if !check::set_up(path, first, header) {
        return;
    }
    if !can_be_seen {
        // The header says why no events follow.
        if recording {
            sink::write_header_only();
        }
        return;
    }
    python::set(api);
    process::watch_quick_exit();
    environment::hide_default_allocator();
    if recording {
        process::watch_forks();
        arena_offset::set_up();
        interpreters::set_up();
        if trims {
            trim::install(true);
        }
        hooks::install();
        environment::put_back_with(hooks::put_back);
    } else {
        check::install();
    }
}

/// Sets up the trimmer alone.
fn set_up_trimmer() {
    environment::keep(&[trim::VARIABLE, trim::REPORT]);
    let Some(api) = python::Api::find() else { return };
    let version = api.version();
    let release = version.split_whitespace().next().unwrap_or_default();
    let can_be_trimmed = wants_trims(release, version.contains("free-threading"));
    process::watch_quick_exit();
    if can_be_trimmed {
        python::set(api);
        environment::hide_default_allocator();
        trim::install(false);
    }
}

/// Sets up the trimmer, if it is wanted. Returns whether this process can be trimmed.
fn wants_trims(release: &str, free_threaded: bool) -> bool {
    let options = std::env::var(trim::VARIABLE).ok().filter(|text| !text.is_empty());
    options.is_some_and(|options| trim::set_up(&options, release, free_threaded))
}

/// Names the file that the trace goes to.
const VARIABLE: &str = "OBMALLOC_TRACE";

/// Names the identity that all traces of one recording have in common.
const RUN_VARIABLE: &str = "OBMALLOC_TRACE_RUN";

/// Whether this process is the first of its family, and so writes to the path itself; and the identity of the run. Tells both to its children.
fn claim(variable: &str, path: &std::path::Path) -> (bool, String) {
    let claimed = format!("{variable}_PID");
    let first = std::env::var_os(&claimed).is_none();
    let run = std::env::var(RUN_VARIABLE).unwrap_or_else(|_| Identity::new().to_string());
    set(variable, path.as_os_str().as_bytes());
    if first {
        // With leading zeros: the program reads its environment, and so asks for the same memory whatever the number.
        set(&claimed, format!("{:010}", std::process::id()).as_bytes());
        if variable == VARIABLE {
            set(RUN_VARIABLE, run.as_bytes());
        }
    }
    (first, run)
}

/// Sets a variable of this process's environment. Only for the constructor: a process that is being loaded has one thread.
fn set(variable: &str, value: &[u8]) {
    if let (Ok(variable), Ok(value)) = (CString::new(variable), CString::new(value)) {
        // SAFETY: the strings are NUL-terminated and copied; one thread, as the caller promises.
        unsafe { libc::setenv(variable.as_ptr(), value.as_ptr(), 1) };
    }
}
