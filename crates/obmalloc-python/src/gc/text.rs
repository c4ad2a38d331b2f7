//! What the collector writes to standard error (`gc.set_debug`).
//!
//! Without `sys.stderr` CPython writes straight to the file, where no call of Python's gets in the way; meanwhile the file is one in
//! memory.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

use super::ffi::{self, Pointer};

const STDERR: i32 = 2;

/// Standard error, caught until this is dropped.
pub struct Text {
    caught: File,
    read: u64,
    before: File,
    python: Pointer,
}

impl Text {
    /// Begins to catch.
    pub fn catch() -> Self {
        // SAFETY: file descriptors that are made here, and an object of the interpreter's.
        unsafe {
            let caught = File::from_raw_fd(libc::memfd_create(c"stderr".as_ptr(), 0));
            let before = File::from_raw_fd(libc::dup(STDERR));
            assert!(caught.as_raw_fd() >= 0 && before.as_raw_fd() >= 0, "file descriptors can be had");
            libc::dup2(caught.as_raw_fd(), STDERR);
            let python = ffi::PySys_GetObject(c"stderr".as_ptr());
            ffi::Py_IncRef(python);
            ffi::PySys_SetObject(c"stderr".as_ptr(), std::ptr::null_mut());
            Self { caught, read: 0, before, python }
        }
    }

    /// What has come since this was last called.
    pub fn take(&mut self) -> String {
        let length = self.caught.metadata().expect("a file in memory").len() - self.read;
        let mut bytes = vec![0; length as usize];
        self.caught.read_exact_at(&mut bytes, self.read).expect("a file in memory");
        self.read += length;
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Text {
    fn drop(&mut self) {
        // SAFETY: as in `catch`.
        unsafe {
            libc::dup2(self.before.as_raw_fd(), STDERR);
            ffi::PySys_SetObject(c"stderr".as_ptr(), self.python);
            ffi::Py_DecRef(self.python);
        }
    }
}
