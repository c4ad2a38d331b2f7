//! Room `benchmark/allocators`: the loops of `benchmark/loops` with the C library's malloc, mimalloc, jemalloc and snmalloc on the other
//! side.
//!
//! ```text
//! obmalloc-allocators ROUNDS RELEASE [RELEASE=TRACE]…
//! ```
//! prints loop → allocator → \[nanoseconds a call there, here, median ratio\] as JSON: the loops on a heap of `RELEASE`, and every
//! trace on one of the release given with it. What is under way is said on stderr.

use std::path::Path;
use std::process::ExitCode;

use obmalloc::profile::Profile;
use obmalloc::{Allocator, Heap};
use obmalloc_loops::{Loop, Side};
use serde_json::{Map, Value, json};

/// An allocator's C functions behind a table like CPython's: each leaves out the context and jumps on.
macro_rules! allocator {
    ($($path:ident)::+, $malloc:ident, $calloc:ident, $realloc:ident, $free:ident) => {{
        use std::ffi::c_void;
        unsafe extern "C" fn malloc(_: *mut c_void, size: usize) -> *mut c_void {
            // SAFETY: as the caller of this promises.
            unsafe { $($path)::+::$malloc(size).cast() }
        }
        unsafe extern "C" fn calloc(_: *mut c_void, count: usize, size: usize) -> *mut c_void {
            // SAFETY: as the caller of this promises.
            unsafe { $($path)::+::$calloc(count, size).cast() }
        }
        unsafe extern "C" fn realloc(_: *mut c_void, address: *mut c_void, size: usize) -> *mut c_void {
            // SAFETY: as the caller of this promises.
            unsafe { $($path)::+::$realloc(address.cast(), size).cast() }
        }
        unsafe extern "C" fn free(_: *mut c_void, address: *mut c_void) {
            // SAFETY: as the caller of this promises.
            unsafe { $($path)::+::$free(address.cast()) }
        }
        Allocator { ctx: std::ptr::null_mut(), malloc, calloc, realloc, free }
    }};
}

fn others() -> [(&'static str, Allocator); 4] {
    [
        ("glibc", allocator!(libc, malloc, calloc, realloc, free)),
        ("mimalloc", allocator!(libmimalloc_sys, mi_malloc, mi_calloc, mi_realloc, mi_free)),
        ("jemalloc", allocator!(tikv_jemalloc_sys, malloc, calloc, realloc, free)),
        ("snmalloc", allocator!(snmalloc_sys, sn_malloc, sn_calloc, sn_realloc, sn_free)),
    ]
}

fn named(release: &str) -> Result<&'static Profile, String> {
    Profile::named(release).ok_or_else(|| format!("unknown release {release:?}"))
}

fn run(args: &[String]) -> Result<Value, String> {
    let [rounds, release, traces @ ..] = args else {
        return Err("expected: obmalloc-allocators ROUNDS RELEASE [RELEASE=TRACE]…".into());
    };
    let rounds = rounds.parse().map_err(|_| format!("expected a number of rounds, but got {rounds:?}"))?;
    let profile = named(release)?;
    let mut loops: Vec<_> = Loop::all().into_iter().map(|body| (body, profile)).collect();
    for trace in traces {
        let (release, path) = trace.split_once('=').ok_or_else(|| format!("expected RELEASE=TRACE, but got {trace:?}"))?;
        let profile = named(release)?;
        loops.push((Loop::of_trace(Path::new(path), profile)?, profile));
    }
    let mut rows = Map::new();
    for (body, profile) in loops {
        let mut row = Map::new();
        for (name, allocator) in others() {
            eprintln!("{}, {name}", body.name());
            let heap = Heap::new(profile).map_err(|error| error.to_string())?;
            let timed = body.side_by_side(rounds, &Side { mem: allocator, obj: allocator }, &Side::of(&heap));
            row.insert(name.into(), json!([timed.there, timed.here, timed.ratio]));
        }
        rows.insert(body.name().into(), Value::Object(row));
    }
    Ok(Value::Object(rows))
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(rows) => {
            println!("{rows}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}
