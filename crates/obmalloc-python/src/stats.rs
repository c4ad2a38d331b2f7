//! The statistics of the CPython around.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::ptr;

use pyo3::ffi;

/// The text of `sys._debugmallocstats()`, which CPython writes to the C library's standard error.
pub fn debug_malloc_stats() -> Result<String, String> {
    let failed = |error: std::io::Error| error.to_string();
    let path = std::env::temp_dir().join(format!("obmalloc-stats-{}", std::process::id()));
    let mut file = File::options().read(true).write(true).create_new(true).open(&path).map_err(failed)?;
    std::fs::remove_file(&path).map_err(failed)?;
    // SAFETY: flushes every stream.
    let flush = || unsafe { libc::fflush(ptr::null_mut()) };
    // SAFETY: both are descriptors.
    let set_stderr = |to: RawFd| unsafe { libc::dup2(to, libc::STDERR_FILENO) };
    let kept = std::io::stderr().as_fd().try_clone_to_owned().map_err(failed)?;
    flush();
    set_stderr(file.as_raw_fd());
    let called = call();
    flush();
    set_stderr(kept.as_raw_fd());
    called?;
    let mut text = String::new();
    file.rewind().and_then(|()| file.read_to_string(&mut text)).map_err(failed)?;
    Ok(text)
}

/// Calls `sys._debugmallocstats()`.
fn call() -> Result<(), String> {
    // SAFETY: the GIL is held; `sys` keeps the function, which runs no code that could change that.
    let result = unsafe {
        let function = ffi::PySys_GetObject(c"_debugmallocstats".as_ptr());
        if function.is_null() { ptr::null_mut() } else { ffi::PyObject_CallObject(function, ptr::null_mut()) }
    };
    if result.is_null() {
        // SAFETY: as above.
        unsafe { ffi::PyErr_Clear() };
        return Err("sys._debugmallocstats() failed".into());
    }
    // SAFETY: the call returned a reference of our own.
    unsafe { ffi::Py_DECREF(result) };
    Ok(())
}
