//! Messages on stderr. Every one starts with `obmalloc: `.

/// Writes one line to stderr, with one system call so that lines of several processes do not mix. Failure is nobody's concern.
#[cold]
pub fn say(message: &str) {
    let line = format!("obmalloc: {message}\n");
    // SAFETY: the pointer and the length are those of a live string.
    unsafe { libc::write(2, line.as_ptr().cast(), line.len()) };
}
