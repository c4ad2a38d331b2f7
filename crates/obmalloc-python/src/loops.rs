//! The loops of the benchmark, run in turn on the CPython around and on a heap of its release, in one process, through the same kind of
//! function pointer.

use std::ffi::c_void;
use std::path::Path;
use std::time::{Duration, Instant};

use obmalloc::profile::Profile;
use obmalloc::{Allocator, Domain, Heap};
use obmalloc_trace::format::Reader;
use obmalloc_trace::program::{self, Op};
use obmalloc_trace::replay::Replay;

use crate::cpython;

/// One loop, timed on both sides.
pub struct Row {
    /// What the loop does.
    pub name: String,
    /// Nanoseconds a call in CPython, median.
    pub cpython: f64,
    /// Nanoseconds a call here, median.
    pub here: f64,
    /// Median of here / CPython, round by round.
    pub ratio: f64,
}

/// A loop that a pair of allocators (mem, obj) can be timed on: its time, and the calls made in it.
type Loop<'a> = Box<dyn Fn(&Allocator, &Allocator) -> (Duration, usize) + 'a>;

/// Runs the loops (if `loops`) and the traces `programs`.
pub fn run(release: &str, rounds: usize, programs: &[impl AsRef<Path>], loops: bool) -> Result<Vec<Row>, String> {
    let profile = Profile::named(release).ok_or_else(|| format!("unknown release {release:?}"))?;
    let mut all: Vec<(String, Loop<'_>)> = Vec::new();
    if loops {
        all.push(("hot pair".into(), Box::new(|_, obj| hot_pair(obj))));
        for (name, order) in [
            ("10000 mixed, in order", Order::Forward),
            ("10000 mixed, reverse", Order::Reverse),
            ("10000 mixed, random", Order::Random),
        ] {
            all.push((name.into(), Box::new(move |_, obj| mixed(obj, order))));
        }
        all.push(("100000 live, random lifetimes".into(), Box::new(|_, obj| lifetimes(obj))));
    }
    for path in programs {
        let (ops, slots) = load(path.as_ref(), profile)?;
        let name = path.as_ref().file_name().map_or("trace".into(), |name| name.to_string_lossy().into_owned());
        // SAFETY: both allocators are real ones.
        all.push((name, Box::new(move |mem, obj| (unsafe { program::run(&ops, slots, mem, obj) }, ops.len()))));
    }
    let cpython = [cpython::allocator(Domain::Mem), cpython::allocator(Domain::Obj)];
    all.into_iter().map(|(name, body)| side_by_side(name, rounds, profile, &cpython, &body)).collect()
}

fn side_by_side(
    name: String,
    rounds: usize,
    profile: &'static Profile,
    cpython: &[Allocator; 2],
    body: &Loop<'_>,
) -> Result<Row, String> {
    let heap = Heap::new(profile).map_err(|error| error.to_string())?;
    let here = [heap.allocator(Domain::Mem), heap.allocator(Domain::Obj)];
    let nanoseconds = |[mem, obj]: &[Allocator; 2]| {
        let background = Background::new(obj);
        let (time, calls) = body(mem, obj);
        drop(background);
        time.as_nanos() as f64 / calls as f64
    };
    let (mut there_times, mut here_times, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds + 1 {
        // Who goes first alternates; the first round warms up.
        let (there, ours) = if round % 2 == 0 {
            let there = nanoseconds(cpython);
            (there, nanoseconds(&here))
        } else {
            let ours = nanoseconds(&here);
            (nanoseconds(cpython), ours)
        };
        if round > 0 {
            there_times.push(there);
            here_times.push(ours);
            ratios.push(ours / there);
        }
    }
    Ok(Row { name, cpython: median(there_times), here: median(here_times), ratio: median(ratios) })
}

/// Blocks that are live around a loop, as a program's other objects would be: 20 000 of all sizes, between as many that were freed. The
/// CPython around has such blocks of its own; a fresh heap has none, and would spend the loop taking its first pool and giving it back.
struct Background<'a> {
    allocator: &'a Allocator,
    blocks: Vec<*mut c_void>,
}

impl<'a> Background<'a> {
    fn new(allocator: &'a Allocator) -> Self {
        let mut random = Random(3);
        // SAFETY: every block is freed once, half of them here.
        unsafe {
            let all: Vec<_> = (0..40_000).map(|_| (allocator.malloc)(allocator.ctx, 1 + random.below(512))).collect();
            let (blocks, freed): (Vec<_>, Vec<_>) = all.into_iter().partition(|_| random.below(2) == 0);
            freed.into_iter().for_each(|block| (allocator.free)(allocator.ctx, block));
            Self { allocator, blocks }
        }
    }
}

impl Drop for Background<'_> {
    fn drop(&mut self) {
        for &block in &self.blocks {
            // SAFETY: allocated by `new`, and not freed there.
            unsafe { (self.allocator.free)(self.allocator.ctx, block) };
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A trace as a program.
fn load(path: &Path, profile: &'static Profile) -> Result<(Vec<Op>, usize), String> {
    let bytes = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let reader = Reader::new(bytes).map_err(|error| error.to_string())?;
    let mut replay = Replay::new(vec![reader], profile).map_err(|error| error.to_string())?;
    replay.collect_program();
    let report = replay.run().map_err(|error| error.to_string())?;
    if let Some(mismatch) = &report.mismatch {
        return Err(mismatch.to_string());
    }
    replay.take_program().ok_or_else(|| "no program was collected".into())
}

/// One block of 64 bytes, taken and given back.
fn hot_pair(obj: &Allocator) -> (Duration, usize) {
    const PAIRS: usize = 1_000_000;
    let start = Instant::now();
    for _ in 0..PAIRS {
        // SAFETY: freed once, at once.
        unsafe {
            let block = (obj.malloc)(obj.ctx, 64);
            (obj.free)(obj.ctx, std::hint::black_box(block));
        }
    }
    (start.elapsed(), 2 * PAIRS)
}

#[derive(Clone, Copy)]
enum Order {
    Forward,
    Reverse,
    Random,
}

/// xorshift64*
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 20) as usize % limit
    }
}

/// 10 000 blocks of 1 to 512 bytes, given back in some order.
fn mixed(obj: &Allocator, order: Order) -> (Duration, usize) {
    const BLOCKS: usize = 10_000;
    const REPEATS: usize = 20;
    let mut random = Random(42);
    let sizes: Vec<usize> = (0..BLOCKS).map(|_| 1 + random.below(512)).collect();
    let mut to_free: Vec<usize> = (0..BLOCKS).collect();
    match order {
        Order::Forward => {}
        Order::Reverse => to_free.reverse(),
        Order::Random => (1..BLOCKS).rev().for_each(|index| to_free.swap(index, random.below(index + 1))),
    }
    let mut blocks: Vec<*mut c_void> = vec![std::ptr::null_mut(); BLOCKS];
    let start = Instant::now();
    for _ in 0..REPEATS {
        // SAFETY: every block is freed once.
        unsafe {
            for (block, &size) in blocks.iter_mut().zip(&sizes) {
                *block = (obj.malloc)(obj.ctx, size);
            }
            for &index in &to_free {
                (obj.free)(obj.ctx, blocks[index]);
            }
        }
    }
    (start.elapsed(), 2 * BLOCKS * REPEATS)
}

/// 100 000 live blocks of 1 to 512 bytes, a random one replaced at a time.
fn lifetimes(obj: &Allocator) -> (Duration, usize) {
    const BLOCKS: usize = 100_000;
    const STEPS: usize = 500_000;
    let mut random = Random(7);
    // SAFETY: every block is freed once.
    unsafe {
        let mut blocks: Vec<*mut c_void> = (0..BLOCKS).map(|_| (obj.malloc)(obj.ctx, 1 + random.below(512))).collect();
        let steps: Vec<(u32, u32)> = (0..STEPS).map(|_| (random.below(BLOCKS) as u32, 1 + random.below(512) as u32)).collect();
        let start = Instant::now();
        for &(index, size) in &steps {
            let block = &mut blocks[index as usize];
            (obj.free)(obj.ctx, *block);
            *block = (obj.malloc)(obj.ctx, size as usize);
        }
        let time = start.elapsed();
        for block in blocks {
            (obj.free)(obj.ctx, block);
        }
        (time, 2 * STEPS)
    }
}

/// Runs a trace once, in CPython or here, touching every byte. Gives by how many bytes the process's peak resident memory rose, and how
/// many bytes of arenas the heap here held at most.
pub fn peak(release: &str, path: &Path, here: bool) -> Result<(u64, u64), String> {
    let profile = Profile::named(release).ok_or_else(|| format!("unknown release {release:?}"))?;
    let (ops, slots) = load(path, profile)?;
    let heap = Heap::new(profile).map_err(|error| error.to_string())?;
    let [mem, obj] = if here {
        [heap.allocator(Domain::Mem), heap.allocator(Domain::Obj)]
    } else {
        [cpython::allocator(Domain::Mem), cpython::allocator(Domain::Obj)]
    };
    let before = status("VmRSS:")?;
    reset_peak();
    // SAFETY: real allocators.
    unsafe { program::run_touching(&ops, slots, &mem, &obj) };
    let rise = status("VmHWM:")?.saturating_sub(before);
    Ok((rise, (heap.stats().arenas_highwater * profile.geometry.arena_size) as u64))
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
