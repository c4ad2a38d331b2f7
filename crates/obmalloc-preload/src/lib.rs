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
//! | `hooks` | the wrapped allocators: what runs on every call |
//! | `inside` | whether this thread is inside a mem or obj call |
//! | `sink` | the one block being written, its lock, and the trace file |
//! | `header` | the trace's header: who is recorded |
//! | `python` | CPython's C interface, looked up by name |
//! | `snapshot` | CPython's own statistics at the end, and whether the hooks are still in place |
//! | `process` | fork, exec and `_exit` |
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
mod header;
mod hooks;
mod inside;
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

/// Sets up the recorder if a trace is wanted and this process is a CPython.
extern "C" fn constructor() {
    let Some(path) = std::env::var_os("OBMALLOC_TRACE").filter(|path| !path.is_empty()) else { return };
    let Some(api) = python::Api::find() else { return };
    // A child may run in another directory, and so may this process by the time that it forks.
    let Ok(path) = std::path::absolute(PathBuf::from(path)) else { return };
    let first = claim(&path);
    let header = Header::of_this_process(&api);
    if !header.supported() {
        say(&format!("this is CPython {}: 3.8 is the oldest that can be recorded, nothing is recorded", header.python));
        return;
    }
    let free_threaded = header.free_threaded;
    if !sink::set_up(path, first, header) {
        return;
    }
    if free_threaded {
        say("this CPython is a free-threaded build: it has no pymalloc, nothing is recorded");
        sink::write_header_only();
        return;
    }
    python::set(api);
    process::watch_forks();
    arena_offset::set_up();
    hooks::install();
}

/// Whether this process is the first of its family to record, and so writes to the path itself. Tells its children.
fn claim(path: &std::path::Path) -> bool {
    const CLAIMED: &std::ffi::CStr = c"OBMALLOC_TRACE_PID";
    let first = std::env::var_os("OBMALLOC_TRACE_PID").is_none();
    let (Ok(path), Ok(pid)) = (CString::new(path.as_os_str().as_bytes()), CString::new(std::process::id().to_string())) else {
        return first;
    };
    // SAFETY: the strings are NUL-terminated and copied, and a process that is being loaded has one thread only.
    unsafe {
        libc::setenv(c"OBMALLOC_TRACE".as_ptr(), path.as_ptr(), 1);
        if first {
            libc::setenv(CLAIMED.as_ptr(), pid.as_ptr(), 1);
        }
    }
    first
}
