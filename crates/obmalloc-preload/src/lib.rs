//! The recorder: loaded into a running CPython with `LD_PRELOAD`, it writes every allocator call into a trace.
//!
//! ```sh
//! OBMALLOC_TRACE=run.obmtrace LD_PRELOAD=libobmalloc_preload.so python3 program.py
//! ```
//!
//! It leans on `obmalloc-trace`'s format and on libc, and links neither libpython nor Node: what it needs of CPython it looks up
//! when it is loaded. A process that is no CPython is left alone.
//!
//! | module | what it holds |
//! |---|---|
//! | `arena_offset` | arenas off their natural boundary, for tests |
//! | `check` | the other thing that the library can do: look whether blocks come back to the domain that gave them out |
//! | `hooks` | the wrapped allocators: what runs on every call |
//! | `interpreters` | whose a call is, where interpreters have allocators of their own |
//! | `inside` | whether this thread is inside a mem or obj call |
//! | `lock` | a spin lock that can be held across a fork |
//! | `sink` | the one block being written, its lock, and the trace file |
//! | `header` | the trace's header: who is recorded |
//! | `python` | CPython's C interface, looked up by name |
//! | `snapshot` | CPython's own statistics at the end, and whether the hooks are still in place |
//! | `process` | fork, exec and `_exit` |
//! | `environment` | what programs need that are started with an environment of their own |
//! | `say` | messages on stderr |
//!
//! # What goes where
//! The first process claims the path in `OBMALLOC_TRACE` and leaves its id in `OBMALLOC_TRACE_PID`; every other one (forked or
//! executed) writes to `<path>.<pid>`, or `<path>.<pid>.2` and so on if that exists. A file is made at the process's first event.
//!
//! # What can be missing
//! A process that is killed, or leaves by `abort` or `quick_exit`, loses the block that was being written and has no `End` note.
//! The trace stays readable up to there.
#![cfg(target_os = "linux")]

mod arena_offset;
mod check;
mod environment;
mod header;
mod hooks;
mod inside;
mod interpreters;
mod lock;
mod process;
mod python;
mod say;
mod sink;
mod snapshot;

use header::Header;
use say::say;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = constructor;

#[used]
#[unsafe(link_section = ".fini_array")]
static DESTRUCTOR: extern "C" fn() = process::leave;

/// Sets up the recorder if a trace is wanted, or the checker if a report is, and this process is a CPython.
extern "C" fn constructor() {
    let wanted = |variable| std::env::var_os(variable).filter(|path| !path.is_empty()).map(|path| (variable, path));
    let Some((variable, path)) = wanted(check::VARIABLE).or_else(|| wanted(VARIABLE)) else { return };
    let Some(api) = python::Api::find() else {
        keep_for_children(variable);
        return;
    };
    // A child may run in another directory, and so may this process by the time that it forks.
    let Ok(path) = std::path::absolute(PathBuf::from(path)) else { return };
    let first = claim(variable, &path);
    keep_for_children(variable);
    let header = Header::of_this_process(&api);
    let doing = if variable == VARIABLE { "recorded" } else { "checked" };
    if !header.supported() {
        say(&format!("this is CPython {}: 3.8 is the oldest that can be {doing}, nothing is {doing}", header.python));
        return;
    }
    let free_threaded = header.free_threaded;
    let set_up = if variable == VARIABLE { sink::set_up(path, first, header) } else { check::set_up(path, first, header) };
    if !set_up {
        return;
    }
    if free_threaded {
        say(&format!("this CPython is a free-threaded build: it has no pymalloc, nothing is {doing}"));
        if variable == VARIABLE {
            sink::write_header_only();
        }
        return;
    }
    python::set(api);
    if variable == VARIABLE {
        process::watch_forks();
        arena_offset::set_up();
        interpreters::set_up();
        hooks::install();
    } else {
        check::install();
    }
}

/// Has programs that are started with an environment of their own be checked nevertheless.
fn keep_for_children(variable: &str) {
    if variable == check::VARIABLE {
        environment::keep(&[variable, &format!("{variable}_PID")]);
    }
}

/// Names the file that the trace goes to.
const VARIABLE: &str = "OBMALLOC_TRACE";

/// Whether this process is the first of its family, and so writes to the path itself. Tells its children.
fn claim(variable: &str, path: &std::path::Path) -> bool {
    let claimed = format!("{variable}_PID");
    let first = std::env::var_os(&claimed).is_none();
    let pid = std::process::id().to_string();
    let text = |bytes: &[u8]| CString::new(bytes);
    let (Ok(variable), Ok(claimed), Ok(path), Ok(pid)) =
        (text(variable.as_bytes()), text(claimed.as_bytes()), text(path.as_os_str().as_bytes()), text(pid.as_bytes()))
    else {
        return first;
    };
    // SAFETY: the strings are NUL-terminated and copied, and a process that is being loaded has one thread only.
    unsafe {
        libc::setenv(variable.as_ptr(), path.as_ptr(), 1);
        if first {
            libc::setenv(claimed.as_ptr(), pid.as_ptr(), 1);
        }
    }
    first
}
