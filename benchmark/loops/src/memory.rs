//! Memory of a process on Linux, as the system counts it.

use std::ffi::c_void;

use obmalloc::Allocator;
use obmalloc_trace::program;

use crate::{Program, Side};

/// Runs a program once, touching every byte, and gives by how many bytes the process's peak resident memory rose.
///
/// A CPython holds memory that is free and resident before the program begins, a fresh heap none. So that neither has an advantage,
/// what is free is filled first, on either side in the same way.
///
/// # Errors
/// In words, where the system does not say how much memory the process has.
pub fn peak(program: &Program, side: &Side) -> Result<u64, String> {
    // What the measurement itself needs is resident before it begins, and what was freed before is given back to the system.
    let mut blocks = program::slots(program.slots);
    let filling = Filling::new(&side.obj);
    #[cfg(target_env = "gnu")]
    // SAFETY: always allowed.
    unsafe {
        libc::malloc_trim(0);
    }
    reset_peak();
    let before = status("VmRSS:")?;
    // SAFETY: real allocators.
    unsafe { program::run_touching(&program.ops, &mut blocks, &side.mem, &side.obj) };
    let peak = status("VmHWM:")?;
    drop(filling);
    Ok(peak.saturating_sub(before))
}

/// Live blocks in what was free: of every small size so many that the last ones lie in fresh pools.
struct Filling<'a> {
    allocator: &'a Allocator,
    blocks: Vec<*mut c_void>,
}

impl<'a> Filling<'a> {
    fn new(allocator: &'a Allocator) -> Self {
        const BYTES: usize = 1 << 20;
        let sizes = (16..=512).step_by(16).flat_map(|size| std::iter::repeat_n(size, BYTES / size));
        // SAFETY: a real allocator.
        let blocks = sizes.map(|size| unsafe { (allocator.malloc)(allocator.ctx, size) }).collect();
        Self { allocator, blocks }
    }
}

impl Drop for Filling<'_> {
    fn drop(&mut self) {
        for &block in &self.blocks {
            // SAFETY: allocated by `new`, and freed nowhere else.
            unsafe { (self.allocator.free)(self.allocator.ctx, block) };
        }
    }
}

/// A line of `/proc/self/status`, in bytes.
fn status(name: &str) -> Result<u64, String> {
    let text = std::fs::read_to_string("/proc/self/status").map_err(|error| error.to_string())?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)).ok_or_else(|| format!("no {name} in /proc/self/status"))?;
    line.trim().trim_end_matches(" kB").parse::<u64>().map(|kib| kib * 1024).map_err(|error| error.to_string())
}

/// Sets the process's peak resident memory back to what it holds now.
fn reset_peak() {
    // Where the system does not allow it the peak is that of the process so far, for both sides alike.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}
