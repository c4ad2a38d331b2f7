//! Counts what has been given back, how long that took, and how much was taken again; writes the lines and the report.

use super::arenas;
use crate::{clock, file};
use std::ffi::{CStr, CString, c_int};
use std::fmt::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

/// Declares counters, with their names in reports.
macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident $key:literal,)*) => {
        /// Counters of one process.
        pub struct Counts { $($(#[$doc])* pub $name: Counter,)* }

        impl Counts {
            const fn new() -> Self {
                Self { $($name: Counter(AtomicU64::new(0)),)* }
            }

            fn reset(&self) {
                $(self.$name.0.store(0, Ordering::Relaxed);)*
            }

            fn write_json(&self, line: &mut Line) -> fmt::Result {
                $(write!(line, concat!(",\"", $key, "\":{}"), self.$name.get())?;)*
                Ok(())
            }
        }
    };
}

/// A number that only grows.
pub struct Counter(AtomicU64);

impl Counter {
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub fn raise_to(&self, value: u64) {
        self.0.fetch_max(value, Ordering::Relaxed);
    }
}

counters! {
    /// Trims. A trim has one or more slices.
    trims "trims",
    slices "slices",
    /// Pools that were given back, and bytes of theirs that were resident.
    pools "pools",
    bytes "poolBytes",
    /// Bytes by which `malloc_trim` made the process smaller.
    malloc_bytes "mallocBytes",
    /// Pools that were given back and then used again, and the bytes that may have come back with them.
    returned "returnedPools",
    returned_bytes "returnedBytes",
    /// Microseconds with the GIL: in all, and in the longest slice.
    micros "micros",
    longest "longestMicros",
    /// Microseconds in `malloc_trim`, without the GIL.
    malloc_micros "mallocMicros",
    /// Bytes that the system refused to take back, such as locked pages.
    refused "refusedBytes",
}

pub static COUNTS: Counts = Counts::new();

/// When this program began in this process, microseconds of the system's clock: a process can go on as another program.
static BEGAN: AtomicU64 = AtomicU64::new(0);

/// Sets all counters to 0, for another program or process.
pub fn begin_anew() {
    COUNTS.reset();
    BEGAN.store(clock::now(), Ordering::Relaxed);
}

/// A line of text that takes no memory: a process can end from anywhere.
pub struct Line {
    bytes: [u8; 768],
    length: usize,
}

impl Line {
    fn new() -> Self {
        Self { bytes: [0; 768], length: 0 }
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.bytes.get_mut(self.length..self.length + text.len()).ok_or(fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.length += text.len();
        Ok(())
    }
}

/// Bytes as people read them.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenths = |unit: u64| (self.0 * 10 + unit / 2) / unit;
        match self.0 {
            0..=1023 => write!(out, "{} B", self.0),
            1024..=1_048_575 => write!(out, "{} KiB", self.0 >> 10),
            _ => write!(out, "{}.{} MiB", tenths(1 << 20) / 10, tenths(1 << 20) % 10),
        }
    }
}

/// Milliseconds, of microseconds.
struct Millis(u64);

impl fmt::Display for Millis {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{} ms", self.0 / 1000, self.0 / 100 % 10)
    }
}

/// The variable with the path of the report: a line of JSON after each trim, and one at the end.
pub const REPORT: &str = "OBMALLOC_TRIM_REPORT";

static PATH: OnceLock<CString> = OnceLock::new();
/// A descriptor of the stderr that the process began with; -1 if no lines are wanted there.
static STDERR: AtomicI32 = AtomicI32::new(-1);

/// Remembers the report's path, and stderr if lines are wanted there: the program may replace its stderr.
pub fn set_up(report: Option<&Path>, log: bool) {
    begin_anew();
    if let Some(Ok(path)) = report.map(|path| CString::new(path.as_os_str().as_bytes())) {
        let _ = PATH.set(path);
    }
    if log {
        // SAFETY: takes no memory.
        STDERR.store(unsafe { libc::fcntl(2, libc::F_DUPFD_CLOEXEC, 400) }, Ordering::Relaxed);
    }
}

/// Writes a line to stderr, if lines are wanted.
pub fn say(arguments: fmt::Arguments<'_>) {
    let descriptor = STDERR.load(Ordering::Relaxed);
    let mut line = Line::new();
    if descriptor >= 0 && writeln!(line, "obmalloc trim [{}]: {arguments}", std::process::id()).is_ok() {
        write_to(descriptor, line.as_bytes());
    }
}

fn write_to(descriptor: c_int, bytes: &[u8]) {
    // In one write, so that no other process's line gets in between. SAFETY: the pointer and the length are those of a live slice.
    unsafe { libc::write(descriptor, bytes.as_ptr().cast(), bytes.len()) };
}

/// What one trim gave back.
pub struct Given {
    pub pools: u64,
    pub bytes: u64,
    pub malloc_bytes: u64,
    pub micros: u64,
}

impl Given {
    /// The counters at a moment. The difference of two is what happened in between.
    pub fn so_far() -> Self {
        Self {
            pools: COUNTS.pools.get(),
            bytes: COUNTS.bytes.get(),
            malloc_bytes: COUNTS.malloc_bytes.get(),
            micros: COUNTS.micros.get() + COUNTS.malloc_micros.get(),
        }
    }

    pub fn since(before: &Self) -> Self {
        let now = Self::so_far();
        Self {
            pools: now.pools - before.pools,
            bytes: now.bytes - before.bytes,
            malloc_bytes: now.malloc_bytes - before.malloc_bytes,
            micros: now.micros - before.micros,
        }
    }
}

/// Writes the line about a trim.
pub fn say_trim(given: &Given) {
    let held = arenas::held() as u64;
    let Given { pools, bytes, malloc_bytes, micros } = *given;
    let (bytes, malloc_bytes, held, micros) = (Size(bytes), Size(malloc_bytes), Size(held), Millis(micros));
    say(format_args!("{bytes} of {pools} empty pools and {malloc_bytes} of malloc's given back in {micros}; arenas hold {held}"));
    report(false, None);
}

/// Writes the line about all trims, and why there could be none.
pub fn say_end(off: Option<&str>) {
    if let Some(reason) = off {
        say(format_args!("nothing was given back: {reason}"));
    } else {
        let (bytes, malloc_bytes) = (Size(COUNTS.bytes.get()), Size(COUNTS.malloc_bytes.get()));
        let (trims, slices) = (COUNTS.trims.get(), COUNTS.slices.get());
        let (micros, longest) = (Millis(COUNTS.micros.get()), Millis(COUNTS.longest.get()));
        let (malloc_micros, returned) = (Millis(COUNTS.malloc_micros.get()), Size(COUNTS.returned_bytes.get()));
        say(format_args!(
            "in all {bytes} of empty pools and {malloc_bytes} of malloc's given back in {trims} trims; {micros} with the GIL in \
             {slices} slices, the longest {longest}, and {malloc_micros} in malloc_trim; up to {returned} came back"
        ));
    }
    report(true, off);
}

/// Writes a line of JSON into the report, if there is one.
pub fn report(is_end: bool, off: Option<&str>) {
    let Some(path) = PATH.get() else { return };
    let mut line = Line::new();
    if write_report(&mut line, is_end, off).is_ok() {
        append(path, line.as_bytes());
    }
}

fn write_report(line: &mut Line, is_end: bool, off: Option<&str>) -> fmt::Result {
    let (pid, began) = (std::process::id(), BEGAN.load(Ordering::Relaxed));
    write!(line, "{{\"pid\":{pid},\"began\":{began},\"end\":{is_end},\"held\":{}", arenas::held())?;
    COUNTS.write_json(line)?;
    line.write_str(",\"off\":")?;
    match off {
        None => line.write_str("null")?,
        Some(reason) => {
            line.write_char('"')?;
            // As much of the text as fits, without characters that need an escape.
            for char in reason.chars().take(200) {
                line.write_char(if char.is_control() || char == '"' || char == '\\' { '?' } else { char })?;
            }
            line.write_char('"')?;
        }
    }
    line.write_str("}\n")
}

fn append(path: &CStr, bytes: &[u8]) {
    let Ok(descriptor) = file::open(path, libc::O_WRONLY | libc::O_APPEND | libc::O_CREAT) else { return };
    write_to(descriptor, bytes);
    // SAFETY: opened above.
    unsafe { libc::close(descriptor) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_short() {
        let texts = [0, 1023, 1024, 1_048_575, 1 << 20, (19 << 20) + (1 << 19), 2 << 30].map(|size| Size(size).to_string());
        assert_eq!(texts, ["0 B", "1023 B", "1 KiB", "1023 KiB", "1.0 MiB", "19.5 MiB", "2048.0 MiB"]);
        assert_eq!([0, 99, 1950, 123_456].map(|micros| Millis(micros).to_string()), ["0.0 ms", "0.0 ms", "1.9 ms", "123.4 ms"]);
    }

    #[test]
    fn longest_report_fits() {
        let most = Counts::new();
        let mut line = Line::new();
        let reason = "\"\n".repeat(200);
        most.micros.add(u64::MAX);
        write!(line, "{{\"pid\":{},\"end\":false,\"held\":{}", u32::MAX, u64::MAX).expect("room");
        most.write_json(&mut line).expect("room");
        // Every counter can be as long as that one.
        let counters = line.length + 10 * 20;
        let mut line = Line::new();
        write_report(&mut line, true, Some(&reason)).expect("room");
        assert!(counters + 220 < line.bytes.len(), "{counters}");
        assert!(line.as_bytes().ends_with(b"????\"}\n"), "{}", String::from_utf8_lossy(line.as_bytes()));
    }
}
