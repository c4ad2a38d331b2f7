//! The driver: loaded into a real CPython, it calls that CPython's `PyMem_*` and `PyObject_*` natively and times this engine beside
//! them in the same process. Leans on `obmalloc` and `benchmark/loops`.
//!
//! One build serves 3.9 and later, which import it; 3.8 cannot, but can reach [`obmalloc_python_call`] with `dlopen`. Both take the
//! name of a function and its arguments as a JSON array, and give its result as JSON:
//!
//! | function | arguments | result |
//! |---|---|---|
//! | `random` | seed, count | the number of calls made on the mem and obj domains |
//! | `bench` | release, rounds, traces, whether to run the loops too | loop → \[nanoseconds a call in CPython, here, median ratio\] |
//! | `stats` | - | the text of `sys._debugmallocstats()` |
//! | `gc_bench` | release, objects, rounds | shape of the objects → \[nanoseconds an object in CPython, here, median ratio\] |
//! | `gc` | version, first seed, count | programs for the collector run on both sides: how many, how many events, and the divergence if any |
//! | `gc_log` | seed | the program of the seed and its log |
//! | `gc_golden` | version, plan | what this CPython answers to the programs of the plan |
//! | `nomemory` | release, first seed, count | \[requests under `_testcapi.set_nomemory` on both sides, failures\]; null without `_testcapi` |
//! | `peak` | release, trace, whether to run it here | \[bytes by which peak resident memory rose, most arena bytes that a heap here holds\] |

mod cpython;
mod gc;
mod gc_loops;
mod loops;
mod nomemory;
mod random;
mod stats;

use std::ffi::{CStr, c_char};
use std::panic::catch_unwind;
use std::path::PathBuf;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use serde_json::{Map, Value, json};

fn dispatch(function: &str, arguments: &str) -> Result<Value, String> {
    let wrong = |error: serde_json::Error| format!("{function}: {error}");
    match function {
        "random" => {
            let (seed, count) = serde_json::from_str(arguments).map_err(wrong)?;
            Ok(json!(random::run(seed, count)))
        }
        "bench" => {
            let (release, rounds, traces, with_loops): (String, usize, Vec<PathBuf>, bool) =
                serde_json::from_str(arguments).map_err(wrong)?;
            let rows = loops::run(&release, rounds, &traces, with_loops)?;
            Ok(Value::Object(
                rows.into_iter().map(|(name, row)| (name, json!([row.there, row.here, row.ratio]))).collect::<Map<_, _>>(),
            ))
        }
        "stats" => Ok(json!(stats::debug_malloc_stats()?)),
        "gc_bench" => {
            let (release, count, rounds): (String, usize, usize) = serde_json::from_str(arguments).map_err(wrong)?;
            let rows = gc_loops::run(&release, count, rounds)?;
            Ok(Value::Object(rows.into_iter().map(|(name, row)| (name, json!(row))).collect::<Map<_, _>>()))
        }
        "nomemory" => {
            let (release, seed, count): (String, u64, u64) = serde_json::from_str(arguments).map_err(wrong)?;
            let profile = obmalloc::profile::Profile::named(&release).ok_or_else(|| format!("unknown release {release:?}"))?;
            Ok(json!(nomemory::run(profile, seed, count)?))
        }
        "peak" => {
            let (release, trace, here): (String, PathBuf, bool) = serde_json::from_str(arguments).map_err(wrong)?;
            Ok(json!(loops::peak(&release, &trace, here)?))
        }
        "gc" => {
            let (version, seed, count): (String, u64, u64) = serde_json::from_str(arguments).map_err(wrong)?;
            gc::compare(&version, seed, count)
        }
        "gc_log" => {
            let (seed,) = serde_json::from_str(arguments).map_err(wrong)?;
            Ok(gc::log(seed))
        }
        "gc_golden" => {
            let (version, plan): (String, _) = serde_json::from_str(arguments).map_err(wrong)?;
            serde_json::to_value(gc::golden(&version, &plan)).map_err(|error| error.to_string())
        }
        _ => Err(format!(
            "unknown function {function:?}: expected random, bench, stats, gc_bench, nomemory, peak, gc, gc_log or gc_golden"
        )),
    }
}

/// Calls a function of the driver. Raises `ValueError` when its arguments are wrong.
#[pyfunction]
fn call(function: &str, arguments: &str) -> PyResult<String> {
    dispatch(function, arguments).map(|value| value.to_string()).map_err(PyValueError::new_err)
}

/// Calls a function of the driver, from C. Writes its result, or `{"error": …}`, as NUL-terminated JSON to the `size` bytes at `out`. Returns the
/// length of the whole text; if that is `size` or more, the text did not fit.
///
/// # Safety
/// `function` and `arguments` are NUL-terminated UTF-8, `out` is writable, and the GIL is held.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn obmalloc_python_call(
    function: *const c_char,
    arguments: *const c_char,
    out: *mut c_char,
    size: usize,
) -> u64 {
    // SAFETY: the caller's promise.
    let (function, arguments) = unsafe { (CStr::from_ptr(function), CStr::from_ptr(arguments)) };
    let result = catch_unwind(|| dispatch(&function.to_string_lossy(), &arguments.to_string_lossy()));
    let value = match result {
        Ok(Ok(value)) => value,
        Ok(Err(error)) => json!({ "error": error }),
        Err(_) => json!({ "error": "the driver panicked" }),
    };
    let text = value.to_string();
    if size > 0 {
        let fits = text.len().min(size - 1);
        // SAFETY: `out` has `size` bytes.
        unsafe {
            out.copy_from_nonoverlapping(text.as_ptr().cast(), fits);
            *out.add(fits) = 0;
        }
    }
    text.len() as u64
}

/// Drives the allocators of the CPython that imports it.
#[pymodule]
fn obmalloc_python(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(call, module)?)
}
