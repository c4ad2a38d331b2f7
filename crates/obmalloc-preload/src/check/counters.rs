//! Counters in a mapped file, so that a process that is killed leaves them as they were.

use crate::file;
use std::fs::File;
use std::io::Error;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that the file grows by: a multiple of every size of page.
const CHUNK_SIZE: usize = 64 << 10;

/// How many counters a chunk has.
const CHUNK_COUNTERS: usize = CHUNK_SIZE / size_of::<AtomicU64>();

type Chunk = [AtomicU64; CHUNK_COUNTERS];

/// The counters of one file, which is made for the first one: 64 bits each, in the machine's order of bytes.
pub struct Counters {
    chunks: Vec<NonNull<Chunk>>,
    used: usize,
}

impl Counters {
    /// No counters, and no file.
    pub const fn new() -> Self {
        Self { chunks: Vec::new(), used: 0 }
    }

    /// The number of a counter that stands at 0, in the file at `path`.
    pub fn make(&mut self, path: &Path) -> Result<usize, Error> {
        if self.used == self.chunks.len() * CHUNK_COUNTERS {
            self.chunks.push(map(path, self.chunks.len() * CHUNK_SIZE)?);
        }
        self.used += 1;
        Ok(self.used - 1)
    }

    /// Counts one more.
    pub fn count(&self, number: usize) {
        // SAFETY: mapped as long as `self` lives; the file keeps its size.
        let chunk = unsafe { self.chunks[number / CHUNK_COUNTERS].as_ref() };
        chunk[number % CHUNK_COUNTERS].fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Counters {
    fn drop(&mut self) {
        for chunk in &self.chunks {
            // SAFETY: mapped by `map`, and not used after this.
            unsafe { libc::munmap(chunk.as_ptr().cast(), CHUNK_SIZE) };
        }
    }
}

/// Makes the file longer, from `offset` on, and maps what is new.
fn map(path: &Path, offset: usize) -> Result<NonNull<Chunk>, Error> {
    // SAFETY: an open descriptor that only this function has.
    let file = unsafe { File::from_raw_fd(file::open(&file::c_path(path)?, libc::O_RDWR | libc::O_CREAT)?) };
    file::allow(offset as u64 + CHUNK_SIZE as u64)?;
    // Written, and not left to the first count: a page for which the disk has no room ends the process.
    file.write_all_at(&[0; CHUNK_SIZE], offset as u64)?;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: asks for fresh memory. It stays when the file is closed.
    let memory =
        unsafe { libc::mmap(null_mut(), CHUNK_SIZE, protection, libc::MAP_SHARED, file.as_raw_fd(), offset as libc::off_t) };
    if memory == libc::MAP_FAILED {
        return Err(Error::last_os_error());
    }
    NonNull::new(memory.cast()).ok_or_else(|| Error::other("no address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_in_the_file_at_once_and_stay_when_the_counters_go() {
        let path = std::env::temp_dir().join(format!("obmalloc-counters-{}", std::process::id()));
        let mut counters = Counters::new();
        assert!(!path.exists());
        let many = 2 * CHUNK_COUNTERS + 5;
        for number in 0..many {
            assert_eq!(counters.make(&path).expect("there is room"), number);
            for _ in 0..number % 3 {
                counters.count(number);
            }
        }
        let read = || std::fs::read(&path).expect("it is there");
        let at_once = read();
        let expected = (0..many).map(|number| number as u64 % 3);
        assert!(at_once.chunks_exact(8).map(|bytes| u64::from_ne_bytes(bytes.try_into().expect("8"))).take(many).eq(expected));
        drop(counters);
        assert_eq!(read(), at_once);
        std::fs::remove_file(path).expect("it is there");
    }

    #[test]
    fn a_file_that_cannot_be_made_is_an_error() {
        assert!(Counters::new().make(Path::new("/nowhere/counters")).is_err());
        assert!(Counters::new().make(Path::new("/dev/full")).is_err());
    }
}
