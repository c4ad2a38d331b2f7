//! Room `benchmark/loops`: the loops that are timed, and what runs them in turn on two sides in one process, through the same kind of
//! function pointer. Leans on `obmalloc` and `obmalloc-trace`. The driver has a CPython on the other side, `benchmark/allocators` other
//! allocators.

mod memory;

use std::ffi::c_void;
use std::fs::File;
use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use obmalloc::profile::Profile;
use obmalloc::{Allocator, Domain, Heap};
use obmalloc_trace::format::Reader;
use obmalloc_trace::program::{self, Collector, Op};
use obmalloc_trace::replay::{Replay, Report};

pub use memory::peak;

/// What a program allocates with: two of the three domains.
#[derive(Clone, Copy, Debug)]
pub struct Side {
    /// The mem domain's allocator.
    pub mem: Allocator,
    /// The obj domain's allocator.
    pub obj: Allocator,
}

impl Side {
    /// A heap's allocators, which are good for as long as the heap lives.
    pub fn of(heap: &Heap) -> Self {
        Self { mem: heap.allocator(Domain::Mem), obj: heap.allocator(Domain::Obj) }
    }
}

/// A recorded trace as a program that any side can run.
#[derive(Debug)]
pub struct Program {
    ops: Vec<Op>,
    slots: usize,
}

impl Program {
    /// Reads a trace of a CPython of `profile`'s release.
    ///
    /// # Errors
    /// In words, when it cannot be read, or a replay on a heap of that release comes out otherwise than recorded.
    pub fn load(path: &Path, profile: &'static Profile) -> Result<Self, String> {
        let file = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let reader = Reader::of(file, 0).map_err(|error| error.to_string())?;
        let watchers = (Report::default(), Collector::default());
        let mut replay = Replay::new(vec![reader], profile, watchers).map_err(|error| error.to_string())?;
        replay.run().map_err(|error| error.to_string())?;
        let (report, collector) = replay.into_watcher();
        if let Some(mismatch) = &report.mismatch {
            return Err(mismatch.to_string());
        }
        let (ops, slots) = collector.program();
        Ok(Self { ops, slots })
    }

    /// Makes the calls once; gives the time they took and their number.
    pub fn run(&self, side: &Side) -> (Duration, usize) {
        let mut blocks = program::slots(self.slots);
        // SAFETY: both allocators are real ones.
        (unsafe { program::run(&self.ops, &mut blocks, &side.mem, &side.obj) }, self.ops.len())
    }
}

/// Runs a loop on one side; gives the time it took and the number of calls.
type Body = Box<dyn Fn(&Side) -> (Duration, usize)>;

/// Something that a side can be timed at: gives the time, and the number of calls made in it.
pub struct Loop {
    name: String,
    body: Body,
}

impl Loop {
    fn new(name: impl Into<String>, body: impl Fn(&Side) -> (Duration, usize) + 'static) -> Self {
        Self { name: name.into(), body: Box::new(body) }
    }

    /// What the loop does.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The loops that need no trace.
    pub fn all() -> Vec<Self> {
        vec![
            Self::new("hot pair", |side| hot_pair(&side.obj)),
            Self::new("10000 mixed, in order", |side| mixed(&side.obj, Order::Forward)),
            Self::new("10000 mixed, reverse", |side| mixed(&side.obj, Order::Reverse)),
            Self::new("10000 mixed, random", |side| mixed(&side.obj, Order::Random)),
            Self::new("100000 live, random lifetimes", |side| lifetimes(&side.obj)),
        ]
    }

    /// The calls of a trace, named after its file.
    ///
    /// # Errors
    /// As for [`Program::load`].
    pub fn of_trace(path: &Path, profile: &'static Profile) -> Result<Self, String> {
        let program = Program::load(path, profile)?;
        let name = path.file_name().map_or("trace".into(), |name| name.to_string_lossy().into_owned());
        Ok(Self::new(name, move |side| program.run(side)))
    }

    /// Runs the loop `rounds` times on each side in turn, after a round that warms up. Blocks stay live around it, as many on either side.
    pub fn side_by_side(&self, rounds: usize, there: &Side, here: &Side) -> Row {
        let nanoseconds = |side: &Side| {
            let background = Background::new(&side.obj);
            let (time, calls) = (self.body)(side);
            drop(background);
            time.as_nanos() as f64 / calls as f64
        };
        let (mut there_times, mut here_times, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..=rounds {
            // The two sides take turns in going first.
            let (theirs, ours) = if round % 2 == 0 {
                let theirs = nanoseconds(there);
                (theirs, nanoseconds(here))
            } else {
                let ours = nanoseconds(here);
                (nanoseconds(there), ours)
            };
            if round > 0 {
                there_times.push(theirs);
                here_times.push(ours);
                ratios.push(ours / theirs);
            }
        }
        Row { there: median(there_times), here: median(here_times), ratio: median(ratios) }
    }
}

/// One loop, timed on both sides.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Nanoseconds a call on the other side, median.
    pub there: f64,
    /// Nanoseconds a call here, median.
    pub here: f64,
    /// Median of here / there, round by round.
    pub ratio: f64,
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Blocks that are live around a loop, as a program's other objects would be: 20 000 of all sizes, between as many that were freed. A
/// CPython has such blocks of its own; a fresh heap has none, and would spend the loop taking its first pool and giving it back.
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

/// One block of 64 bytes, taken and given back.
fn hot_pair(obj: &Allocator) -> (Duration, usize) {
    const PAIRS: usize = 1_000_000;
    let start = Instant::now();
    for _ in 0..PAIRS {
        // SAFETY: freed once, at once.
        unsafe {
            let block = (obj.malloc)(obj.ctx, 64);
            (obj.free)(obj.ctx, black_box(block));
        }
    }
    (start.elapsed(), 2 * PAIRS)
}

/// In which order blocks are given back, compared with that in which they were taken.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_loop_gives_back_what_it_takes() {
        let [there, here] = [0, 1].map(|_| Heap::new(&obmalloc::profile::V3_14).expect("a heap"));
        for timed in Loop::all() {
            let row = timed.side_by_side(1, &Side::of(&there), &Side::of(&here));
            assert!(row.there > 0.0 && row.here > 0.0 && row.ratio > 0.0, "{}: {row:?}", timed.name());
            for heap in [&there, &here] {
                assert_eq!(heap.allocated_blocks(), 0, "after {}", timed.name());
            }
        }
    }
}
