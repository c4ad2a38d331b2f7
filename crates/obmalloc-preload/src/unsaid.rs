//! Messages of processes that cannot make their file. They go, a line each, into one file for the whole run that exists already.

use crate::file;
use std::fs::File;
use std::io::{Error, Write};
use std::os::fd::FromRawFd;
use std::path::PathBuf;
use std::sync::OnceLock;

/// The variable with that file's path.
pub const VARIABLE: &str = "OBMALLOC_UNSAID";

static PATH: OnceLock<PathBuf> = OnceLock::new();

/// Remembers that file's path, because the program may change its environment.
pub fn set_up() {
    if let Some(path) = std::env::var_os(VARIABLE) {
        let _ = PATH.set(path.into());
    }
}

/// Writes why this process could not make its file: its id, a blank, and the system's words.
#[cold]
pub fn say(error: &Error) {
    let Some(path) = PATH.get() else { return };
    let opened = file::c_path(path).and_then(|path| file::open(&path, libc::O_WRONLY | libc::O_APPEND));
    let Ok(descriptor) = opened else { return };
    // SAFETY: an open descriptor that only this function has.
    let mut file = unsafe { File::from_raw_fd(descriptor) };
    let line = format!("{} {error}\n", std::process::id());
    let length = file.metadata().map_or(0, |metadata| metadata.len());
    if file::allow(length + line.len() as u64).is_ok() {
        // In one write, so that no other process's line gets in between. If this fails too, the message is lost.
        let _ = file.write_all(line.as_bytes());
    }
}
