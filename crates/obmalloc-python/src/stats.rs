//! The statistics of the CPython around.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::AsRawFd;
use std::ptr;

use pyo3::ffi;

/// The text of `sys._debugmallocstats()`, which CPython writes to the C library's standard error.
pub fn debug_malloc_stats() -> Result<String, String> {
    let failed = |error: std::io::Error| error.to_string();
    let path = std::env::temp_dir().join(format!("obmalloc-stats-{}", std::process::id()));
    let mut file = File::options().read(true).write(true).create_new(true).open(&path).map_err(failed)?;
    std::fs::remove_file(&path).map_err(failed)?;
    // SAFETY: plain calls to the C library and to CPython, under the GIL; standard error is put back.
    unsafe {
        let kept = libc::dup(libc::STDERR_FILENO);
        libc::fflush(ptr::null_mut());
        libc::dup2(file.as_raw_fd(), libc::STDERR_FILENO);
        let function = ffi::PySys_GetObject(c"_debugmallocstats".as_ptr());
        let result = if function.is_null() { ptr::null_mut() } else { ffi::PyObject_CallObject(function, ptr::null_mut()) };
        libc::fflush(ptr::null_mut());
        libc::dup2(kept, libc::STDERR_FILENO);
        libc::close(kept);
        if result.is_null() {
            ffi::PyErr_Clear();
            return Err("sys._debugmallocstats() failed".into());
        }
        ffi::Py_DECREF(result);
    }
    let mut text = String::new();
    file.rewind().and_then(|()| file.read_to_string(&mut text)).map_err(failed)?;
    Ok(text)
}
