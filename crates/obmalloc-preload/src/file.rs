//! The file that a process writes. It is kept open, opened again if the program has closed its descriptor, and written so that a limit on
//! file sizes does not harm the program.

use std::ffi::{CStr, CString, c_int};
use std::io::Error;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The descriptor is moved to at least this number, because programs expect to get low ones.
const LOWEST_DESCRIPTOR: libc::rlim_t = 500;
/// How many descriptors more a process may have for a moment, if the program has used its own up.
const MORE_DESCRIPTORS: libc::rlim_t = 1000;

type Identity = (libc::dev_t, libc::ino_t);

/// An open file. Programs close descriptors that are not theirs, so the descriptor is checked before each use.
pub struct OutFile {
    kept: Kept,
    path: PathBuf,
    /// The path as a C string, for code that may take no memory.
    c_path: CString,
}

/// A descriptor, and the identity of its file when it was opened.
pub struct Kept {
    descriptor: c_int,
    identity: Identity,
}

impl Kept {
    pub fn of(descriptor: c_int) -> Result<Self, Error> {
        let descriptor = out_of_the_way(descriptor);
        let identity = identity_of(descriptor).ok_or_else(Error::last_os_error)?;
        Ok(Self { descriptor, identity })
    }

    /// The descriptor, if it still stands for that file.
    pub fn descriptor(&self) -> Option<c_int> {
        (identity_of(self.descriptor) == Some(self.identity)).then_some(self.descriptor)
    }

    /// Replaces the descriptor. The old number is not closed: by now it belongs to the program, or to the new descriptor.
    pub fn replace(&mut self, again: Self) {
        std::mem::forget(std::mem::replace(self, again));
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(descriptor) = self.descriptor() {
            close(descriptor);
        }
    }
}

impl OutFile {
    /// Opens `path`, emptied, for this process alone. `EWOULDBLOCK` when another process writes it.
    pub fn claim(path: &Path) -> Result<Self, Error> {
        let c_path = c_path(path)?;
        let descriptor = open(&c_path, libc::O_WRONLY | libc::O_CREAT)?;
        // SAFETY: takes no memory.
        if unsafe { libc::flock(descriptor, libc::LOCK_EX | libc::LOCK_NB) } != 0 {
            let error = Error::last_os_error();
            // On a file system without locks, the file is written without one.
            if error.raw_os_error() == Some(libc::EWOULDBLOCK) {
                close(descriptor);
                return Err(error);
            }
        }
        // A file that cannot be emptied (a device) need not be. SAFETY: takes no memory.
        unsafe { libc::ftruncate(descriptor, 0) };
        Self::of(descriptor, path.to_owned(), c_path)
    }

    /// Makes `path`. `EEXIST` when it is there.
    pub fn make(path: PathBuf) -> Result<Self, Error> {
        let c_path = c_path(&path)?;
        let descriptor = open(&c_path, libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL)?;
        Self::of(descriptor, path, c_path)
    }

    /// Makes `<base>.<pid>`, or `<base>.<pid>.2` and so on if that exists: a process of the same id that executed this one has made it.
    pub fn make_beside(base: &Path, pid: i32) -> Result<Self, Error> {
        let mut attempt = 1;
        loop {
            let mut path = base.as_os_str().to_owned();
            path.push(if attempt == 1 { format!(".{pid}") } else { format!(".{pid}.{attempt}") });
            match Self::make(path.into()) {
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) && attempt < 10_000 => attempt += 1,
                made => return made,
            }
        }
    }

    fn of(descriptor: c_int, path: PathBuf, c_path: CString) -> Result<Self, Error> {
        Ok(Self { kept: Kept::of(descriptor)?, path, c_path })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes all of `bytes` at `offset`, or says why not.
    pub fn write_at(&mut self, mut bytes: &[u8], mut offset: u64) -> Result<(), Error> {
        let descriptor = self.descriptor()?;
        allow(offset + bytes.len() as u64)?;
        while !bytes.is_empty() {
            // SAFETY: the pointer and the length are those of a live slice.
            let written = unsafe { libc::pwrite(descriptor, bytes.as_ptr().cast(), bytes.len(), offset as libc::off_t) };
            if written > 0 {
                bytes = &bytes[written as usize..];
                offset += written as u64;
            } else if written == 0 {
                return Err(Error::from_raw_os_error(libc::ENOSPC));
            } else if Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
                return Err(Error::last_os_error());
            }
        }
        Ok(())
    }

    /// Cuts the file to `length` bytes.
    pub fn cut(&self, length: u64) {
        // SAFETY: takes no memory.
        unsafe { libc::ftruncate(self.kept.descriptor, length as libc::off_t) };
    }

    /// The file's descriptor. Opens the file again if the program has closed it.
    fn descriptor(&mut self) -> Result<c_int, Error> {
        if let Some(descriptor) = self.kept.descriptor() {
            return Ok(descriptor);
        }
        let again = Kept::of(open(&self.c_path, libc::O_WRONLY)?)?;
        if again.identity != self.kept.identity {
            return Err(Error::from_raw_os_error(libc::ESTALE));
        }
        self.kept.replace(again);
        Ok(self.kept.descriptor)
    }
}

/// Refuses a write that ends beyond the limit on file sizes: the system would also send a signal that ends the program.
pub fn allow(end: u64) -> Result<(), Error> {
    match limit(libc::RLIMIT_FSIZE) {
        Some(limit) if end > limit.rlim_cur => Err(Error::from_raw_os_error(libc::EFBIG)),
        _ => Ok(()),
    }
}

/// A path as C has it.
pub fn c_path(path: &Path) -> Result<CString, Error> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// `open`, without taking memory. If the program has no descriptor left, the limit is raised during the call.
pub fn open(path: &CStr, flags: c_int) -> Result<c_int, Error> {
    // SAFETY: the path is NUL-terminated.
    let open = || unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC, 0o666) };
    let descriptor = open();
    if descriptor >= 0 {
        return Ok(descriptor);
    }
    let error = Error::last_os_error();
    let (libc::EMFILE, Some(before)) = (error.raw_os_error().unwrap_or(0), limit(libc::RLIMIT_NOFILE)) else {
        return Err(error);
    };
    let most = before.rlim_cur.saturating_add(MORE_DESCRIPTORS);
    let more = libc::rlimit { rlim_cur: most, rlim_max: before.rlim_max.max(most) };
    let within = libc::rlimit { rlim_cur: before.rlim_max, ..before };
    // SAFETY: both read the limits that they are given. Going beyond what the system allows fails and changes nothing.
    let descriptor = unsafe {
        if libc::setrlimit(libc::RLIMIT_NOFILE, &more) != 0 {
            libc::setrlimit(libc::RLIMIT_NOFILE, &within);
        }
        let descriptor = open();
        libc::setrlimit(libc::RLIMIT_NOFILE, &before);
        descriptor
    };
    if descriptor < 0 { Err(error) } else { Ok(descriptor) }
}

fn limit(resource: libc::__rlimit_resource_t) -> Option<libc::rlimit> {
    let mut limit = MaybeUninit::uninit();
    // SAFETY: getrlimit fills the structure when it succeeds.
    unsafe { (libc::getrlimit(resource, limit.as_mut_ptr()) == 0).then(|| limit.assume_init()) }
}

/// Moves a descriptor to a high number, if one is free.
fn out_of_the_way(descriptor: c_int) -> c_int {
    let most = limit(libc::RLIMIT_NOFILE).map_or(LOWEST_DESCRIPTOR, |limit| limit.rlim_cur);
    let lowest = LOWEST_DESCRIPTOR.min(most.saturating_sub(1)) as c_int;
    if descriptor >= lowest {
        return descriptor;
    }
    // SAFETY: takes no memory.
    let moved = unsafe { libc::fcntl(descriptor, libc::F_DUPFD_CLOEXEC, lowest) };
    if moved < 0 {
        return descriptor;
    }
    close(descriptor);
    moved
}

fn close(descriptor: c_int) {
    // SAFETY: takes no memory; callers close only their own descriptors.
    unsafe { libc::close(descriptor) };
}

fn identity_of(descriptor: c_int) -> Option<Identity> {
    let mut status = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: fstat fills the structure when it succeeds.
    unsafe {
        if libc::fstat(descriptor, status.as_mut_ptr()) != 0 {
            return None;
        }
        let status = status.assume_init();
        Some((status.st_dev, status.st_ino))
    }
}
