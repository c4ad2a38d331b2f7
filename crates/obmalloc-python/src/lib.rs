//! The driver: loaded into a real CPython, it calls that CPython's `PyMem_*` and `PyObject_*` natively and times this engine beside
//! them in the same process. Leans on `obmalloc` and `obmalloc-trace`.
//!
//! One build serves 3.9 and later. 3.8 cannot import it, but can call [`obmalloc_python_random`] through `ctypes`.

mod cpython;
mod loops;
mod random;

use std::path::PathBuf;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// Makes `count` random calls on the mem and obj domains, from `seed`. Gives the number of calls made.
#[unsafe(no_mangle)]
pub extern "C" fn obmalloc_python_random(seed: u64, count: u64) -> u64 {
    random::run(seed, count)
}

/// Makes `count` random calls on CPython's mem and obj domains, the same ones for the same `seed`. Gives the number of calls made.
#[pyfunction]
#[pyo3(name = "random")]
fn random_calls(seed: u64, count: u64) -> u64 {
    random::run(seed, count)
}

/// Times every loop in this CPython and in a heap of `release`, in turn, `rounds` times each. Gives a dict: loop → (nanoseconds a call in
/// CPython, here, median of the rounds' ratios here / CPython). `programs` are traces, each replayed as a loop of its own.
#[pyfunction]
#[pyo3(name = "bench")]
fn time_loops<'py>(
    py: Python<'py>,
    release: &str,
    rounds: usize,
    programs: Vec<PathBuf>,
    loops: bool,
) -> PyResult<Bound<'py, PyDict>> {
    let rows = loops::run(release, rounds, &programs, loops).map_err(PyValueError::new_err)?;
    let table = PyDict::new(py);
    for row in rows {
        table.set_item(row.name, (row.cpython, row.here, row.ratio))?;
    }
    Ok(table)
}

/// Replays a trace once, in CPython (`here` false) or in a heap of `release`, touching every byte, and gives how much the process's peak
/// resident memory rose by it, in bytes, and for a heap the most arena bytes held.
#[pyfunction]
fn peak(release: &str, program: PathBuf, here: bool) -> PyResult<(u64, u64)> {
    loops::peak(release, &program, here).map_err(PyValueError::new_err)
}

/// Drives the allocators of the CPython that imports it.
#[pymodule]
fn obmalloc_python(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(random_calls, module)?)?;
    module.add_function(wrap_pyfunction!(time_loops, module)?)?;
    module.add_function(wrap_pyfunction!(peak, module)?)
}
