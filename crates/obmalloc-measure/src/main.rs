//! Makes a recording's calls with this process's `malloc`, writes to the blocks as a program would, and prints how much memory that takes:
//! `LD_PRELOAD=libjemalloc.so.2 obmalloc-measure calls`.
//!
//! `obmalloc_trace::what_if::CallsWriter` writes the file of calls. The file and the table of blocks are mapped, so that only the calls take
//! memory from `malloc`. With `pymalloc RELEASE` behind the file, small requests go to a heap of that release instead.
//!
//! It prints JSON: `peak` and `held` are resident bytes above those before the first call. `nanoseconds` is the time of a call, or null; to
//! measure it, this program is run again with `time` behind all other arguments, and then touches no block.
#![cfg(target_os = "linux")]

use obmalloc::profile::Profile;
use obmalloc::{Domain, Heap};
use std::ffi::{c_int, c_void};
use std::fs::{File, read_to_string, write};
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::ptr::{self, NonNull};
use std::time::Instant;

/// The first bytes of a file of calls.
const MAGIC: &[u8; 8] = b"obmcalls";
/// Bytes before the first call.
const HEAD: usize = 24;

fn main() -> ExitCode {
    // A signal may end the parent process. Then this process ends too, because nothing reads its result.
    // SAFETY: a call of the system that takes numbers.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match measure(&arguments) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(text) => {
            eprintln!("obmalloc-measure: {text}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &[String]) -> Result<String, String> {
    let (path, rest) = arguments.split_first().ok_or("expected a file of calls")?;
    let (touches, rest) = match rest.split_last() {
        Some((last, rest)) if last == "time" => (false, rest),
        _ => (true, rest),
    };
    let program = Program::open(path)?;
    let mut blocks = Blocks::new(program.slots)?;
    let heap = match rest {
        [] => None,
        [name, release] if name == "pymalloc" => {
            let profile = Profile::named(release).ok_or_else(|| format!("expected a release, but got {release:?}"))?;
            Some(Heap::new(profile).map_err(|error| error.to_string())?)
        }
        _ => return Err(format!("expected pymalloc and a release, but got {rest:?}")),
    };
    let allocators: &dyn Allocators = match &heap {
        Some(heap) => heap,
        None => &C,
    };
    let before = resident()?;
    // Resets the peak.
    let forgets = write("/proc/self/clear_refs", "5").is_ok();
    let start = Instant::now();
    program.run(&mut blocks, allocators, touches)?;
    let nanoseconds = start.elapsed().as_nanos() as f64 / program.calls.len().max(1) as f64;
    let (held, peak) = (resident()?, if forgets { highest()? } else { 0 });
    let peak = peak.max(held).saturating_sub(before);
    // The end of the process frees the blocks that are left.
    std::mem::forget(heap);
    let nanoseconds = if touches { "null".to_owned() } else { nanoseconds.to_string() };
    Ok(format!("{{\"peak\":{peak},\"held\":{},\"nanoseconds\":{nanoseconds}}}", held.saturating_sub(before)))
}

/// The allocator that answers the calls.
trait Allocators {
    /// # Safety
    /// `block` is what C's `realloc` takes; `verb` is 0 for malloc, 1 for calloc, 2 for realloc, 3 for free.
    unsafe fn call(&self, verb: u64, block: *mut u8, size: usize) -> *mut u8;
}

/// The process's own `malloc`.
struct C;

impl Allocators for C {
    unsafe fn call(&self, verb: u64, block: *mut u8, size: usize) -> *mut u8 {
        // For a request of 0 bytes, CPython asks C for one.
        let size = size.max(1);
        // SAFETY: the caller's promise.
        unsafe {
            match verb {
                0 => libc::malloc(size).cast(),
                1 => libc::calloc(1, size).cast(),
                2 => libc::realloc(block.cast(), size).cast(),
                _ => {
                    libc::free(block.cast());
                    ptr::null_mut()
                }
            }
        }
    }
}

impl Allocators for Heap {
    unsafe fn call(&self, verb: u64, block: *mut u8, size: usize) -> *mut u8 {
        let block = NonNull::new(block);
        // SAFETY: the caller's promise.
        let given = unsafe {
            match verb {
                0 => self.malloc(Domain::Obj, size),
                1 => self.calloc(Domain::Obj, 1, size),
                2 => self.realloc(Domain::Obj, block, size),
                _ => {
                    self.free(Domain::Obj, block);
                    None
                }
            }
        };
        given.map_or(ptr::null_mut(), NonNull::as_ptr)
    }
}

/// The calls, in a file that is mapped.
struct Program {
    slots: usize,
    calls: &'static [u64],
}

impl Program {
    fn open(path: &str) -> Result<Self, String> {
        let wrong = || format!("{path}: expected a file of calls");
        let file = File::open(path).map_err(|error| format!("{path}: {error}"))?;
        let length = file.metadata().map_err(|error| format!("{path}: {error}"))?.len() as usize;
        if length < HEAD || !length.is_multiple_of(8) {
            return Err(wrong());
        }
        let address = map(length, libc::MAP_PRIVATE | libc::MAP_POPULATE, file.as_raw_fd(), libc::PROT_READ)?;
        // SAFETY: mapped for good, as many bytes as the file has, at the beginning of a page.
        let words = unsafe { std::slice::from_raw_parts(address.cast::<u64>(), length / 8) };
        let (slots, count) = (words[1] as usize, words[2] as usize);
        let calls = &words[3..];
        let fits = words[0].to_le_bytes() == *MAGIC && calls.len() == count;
        if fits && calls.iter().all(|&call| slot(call) < slots) { Ok(Self { slots, calls }) } else { Err(wrong()) }
    }

    fn run(&self, blocks: &mut Blocks, allocators: &dyn Allocators, touches: bool) -> Result<(), String> {
        for &call in self.calls {
            let (size, verb) = ((call >> 32) as usize, call >> 1 & 3);
            let block = &mut blocks.0[slot(call)];
            // SAFETY: a slot holds nothing or the block that the last call for it gave.
            let given = unsafe { allocators.call(verb, *block, size) };
            if given.is_null() && verb != 3 {
                return Err(format!("no memory for {size} bytes"));
            }
            if touches && verb != 3 {
                // SAFETY: the block has as many bytes.
                unsafe { given.write_bytes(0x5a, size) };
            }
            *block = given;
        }
        Ok(())
    }
}

fn slot(call: u64) -> usize {
    (call as u32 >> 3) as usize
}

/// A table of blocks, all of it resident before the first call.
struct Blocks(&'static mut [*mut u8]);

impl Blocks {
    fn new(count: usize) -> Result<Self, String> {
        if count == 0 {
            return Ok(Self(&mut []));
        }
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
        let address = map(count * size_of::<*mut u8>(), flags, -1, libc::PROT_READ | libc::PROT_WRITE)?;
        // SAFETY: mapped for good, zeroed, and used here alone.
        Ok(Self(unsafe { std::slice::from_raw_parts_mut(address.cast(), count) }))
    }
}

fn map(length: usize, flags: c_int, file: c_int, protection: c_int) -> Result<*mut c_void, String> {
    // SAFETY: asks for fresh memory, where the system likes.
    let address = unsafe { libc::mmap(ptr::null_mut(), length, protection, flags, file, 0) };
    if address == libc::MAP_FAILED { Err(std::io::Error::last_os_error().to_string()) } else { Ok(address) }
}

/// Resident bytes, of anonymous memory alone.
fn resident() -> Result<u64, String> {
    status("RssAnon:")
}

/// The most anonymous memory that was resident since the peak was reset, in bytes. The system counts the pages of files too. They are the same
/// now as at the peak, so they are subtracted.
fn highest() -> Result<u64, String> {
    Ok(status("VmHWM:")?.saturating_sub(status("RssFile:")?))
}

fn status(name: &str) -> Result<u64, String> {
    let text = read_to_string("/proc/self/status").map_err(|error| error.to_string())?;
    let line =
        text.lines().find_map(|line| line.strip_prefix(name)).ok_or_else(|| format!("expected {name} in /proc/self/status"))?;
    let kib: u64 =
        line.trim().trim_end_matches(" kB").parse().map_err(|_| format!("expected kibibytes behind {name}, but got {line:?}"))?;
    Ok(kib * 1024)
}
