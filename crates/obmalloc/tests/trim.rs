//! Trimming: which memory is given back, that nothing else changes, and which addresses requests get afterwards.

#![cfg_attr(miri, allow(dead_code, unused_imports, reason = "some tests are left out there"))]

#[path = "common/calls.rs"]
mod calls;
mod common;

use std::alloc::{Layout, alloc, dealloc};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr::NonNull;

use calls::{Op, program, run};
use common::{Random, seed, shrink};
use obmalloc::profile::{self, Geometry, POOL_OVERHEAD};
use obmalloc::{AllocatorName, ArenaAllocator, CheckedHeap, Domain, FaultKind, Heap, HeapOptions, Trimmed};

/// Four pools an arena: arenas come and go all the time.
const TINY: Geometry = Geometry { arena_size: 64 << 10, pool_size: 16 << 10, alignment: 16, small_request_threshold: 4096 };
/// One arena is enough for whole programs, which are short under Miri.
const ONE_ARENA: Geometry = Geometry { arena_size: if cfg!(miri) { 1 << 20 } else { 64 << 20 }, ..Geometry::LARGE };
const POOL: usize = Geometry::LARGE.pool_size;

const fn in_time(count: usize) -> usize {
    if cfg!(miri) { count / 40 } else { count }
}

fn heap() -> CheckedHeap {
    CheckedHeap::new(HeapOptions::new(&profile::V3_13)).expect("a heap")
}

/// So many blocks of 512 bytes, and their addresses.
fn fill(heap: &CheckedHeap, count: usize) -> Vec<usize> {
    let blocks = (0..count).map(|_| heap.malloc(Domain::Obj, 512).expect("memory").as_ptr());
    blocks
        .map(|block| {
            // SAFETY: a block of 512 bytes.
            unsafe { block.write_bytes(1, 512) };
            block as usize
        })
        .collect()
}

fn free(heap: &CheckedHeap, blocks: &[usize]) {
    blocks.iter().for_each(|&block| heap.free(Domain::Obj, block).expect("live"));
}

/// Bytes of a range that are resident.
#[cfg(not(miri))]
fn resident(begin: usize, size: usize) -> usize {
    let mut pages = vec![0u8; size / 4096];
    // SAFETY: a range of whole pages that is mapped, and a byte for each.
    assert_eq!(unsafe { libc::mincore(begin as *mut _, size, pages.as_mut_ptr()) }, 0);
    pages.iter().filter(|&&page| page & 1 != 0).count() * 4096
}

/// A model of pymalloc with one arena, as simple as can be and not fast.
#[derive(Default)]
struct Model {
    pools: Vec<ModelPool>,
    /// The used pools of each size class. The last pool is used next, and so it is with the empty pools.
    used: HashMap<usize, Vec<usize>>,
    empty: Vec<usize>,
}

#[derive(Default)]
struct ModelPool {
    class: Option<usize>,
    count: usize,
    /// Offsets of freed blocks, the next one last; and the offset from which on there are untouched ones.
    freed: Vec<usize>,
    next: usize,
}

impl ModelPool {
    fn has_room(&self, size: usize) -> bool {
        !self.freed.is_empty() || self.next + size <= POOL
    }
}

impl Model {
    /// Offset of a block from the arena's first byte.
    fn malloc(&mut self, size: usize) -> usize {
        let size = size.next_multiple_of(16);
        let used = self.used.entry(size).or_default();
        if used.is_empty() {
            let number = self.empty.pop().unwrap_or_else(|| {
                self.pools.push(ModelPool::default());
                self.pools.len() - 1
            });
            let pool = &mut self.pools[number];
            if pool.class != Some(size) {
                *pool = ModelPool { class: Some(size), next: POOL_OVERHEAD, ..ModelPool::default() };
            }
            used.push(number);
        }
        let number = used[used.len() - 1];
        let pool = &mut self.pools[number];
        let offset = pool.freed.pop().unwrap_or_else(|| {
            pool.next += size;
            pool.next - size
        });
        pool.count += 1;
        if !pool.has_room(size) {
            used.pop();
        }
        number * POOL + offset
    }

    fn free(&mut self, block: usize) {
        let pool = &mut self.pools[block / POOL];
        let size = pool.class.expect("was in use");
        let was_full = !pool.has_room(size);
        pool.freed.push(block % POOL);
        pool.count -= 1;
        let used = self.used.entry(size).or_default();
        if was_full {
            used.push(block / POOL);
        } else if pool.count == 0 {
            used.retain(|&number| number != block / POOL);
            self.empty.push(block / POOL);
        }
    }

    fn trim(&mut self) {
        self.empty.iter().for_each(|&number| self.pools[number].class = None);
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Malloc(usize),
    Free(usize),
    Trim,
}

/// Grows and shrinks by whole pools, and trims at random.
fn steps(seed: u64, count: usize) -> Vec<Step> {
    let mut random = Random::new(seed);
    let (mut growing, mut sizes) = (true, [16, 512, 512]);
    (0..count)
        .map(|index| {
            if index % 200 == 0 {
                growing = !growing;
                sizes = [1 + random.below(512), 200 + random.below(312), 512];
            }
            match random.below(100) {
                0 => Step::Trim,
                1..=70 if growing => Step::Malloc(sizes[random.below(3)]),
                1..=20 => Step::Malloc(sizes[random.below(3)]),
                _ => Step::Free(random.below(1 << 20)),
            }
        })
        .collect()
}

fn follows_model(steps: &[Step], is_checked: bool) -> Result<(), String> {
    let options = HeapOptions { geometry: Some(ONE_ARENA), ..HeapOptions::new(&profile::V3_13) };
    let checked = CheckedHeap::new(options).expect("a heap");
    let plain = Heap::with_options(options).expect("a heap");
    let (mut model, mut live, mut trims) = (Model::default(), Vec::new(), 0);
    // The first request takes the arena, which stays because this block does.
    let base = plain.malloc(Domain::Obj, 512).expect("memory").as_ptr() as usize - POOL_OVERHEAD;
    let first = checked.malloc(Domain::Obj, 512).expect("memory").as_ptr() as usize - POOL_OVERHEAD;
    model.malloc(512);
    for (index, &step) in steps.iter().enumerate() {
        match step {
            Step::Malloc(size) => {
                let expected = model.malloc(size);
                let block = plain.malloc(Domain::Obj, size).expect("memory");
                let also = checked.malloc(Domain::Obj, size).expect("memory").as_ptr() as usize - first;
                let got = block.as_ptr() as usize - base;
                if (got, also) != (expected, expected) {
                    return Err(format!("step {index} {step:?}: {got:#x} and {also:#x}, expected {expected:#x}"));
                }
                live.push(block);
            }
            Step::Free(number) if !live.is_empty() => {
                let block = live.swap_remove(number % live.len());
                let offset = block.as_ptr() as usize - base;
                model.free(offset);
                // SAFETY: a live block of this heap.
                unsafe { plain.free(Domain::Obj, Some(block)) };
                checked.free(Domain::Obj, first + offset).expect("live");
            }
            Step::Free(_) => {}
            Step::Trim => {
                trims += 1;
                let expected = model.empty.iter().filter(|&&number| model.pools[number].class.is_some()).count();
                model.trim();
                let pools = (plain.trim().pools, checked.trim().pools);
                if pools != (expected, expected) {
                    return Err(format!("step {index}: {pools:?} pools were trimmed, expected {expected}"));
                }
            }
        }
        if is_checked || index % 512 == 0 {
            plain.verify().map_err(|corruption| format!("step {index} {step:?}: {corruption}"))?;
        }
    }
    assert!(trims > 0 || steps.len() < 500);
    Ok(())
}

#[test]
fn addresses_after_trims_are_those_of_a_simple_model() {
    let seed = seed();
    for (count, is_checked) in [(in_time(4000), true), (if cfg!(miri) { 400 } else { 200_000 }, false)] {
        let steps = steps(seed, count);
        if let Err(error) = follows_model(&steps, is_checked) {
            let shortest = shrink(steps, |steps| follows_model(steps, true).is_err());
            panic!("seed {seed}: {error}\nshortest: {shortest:?}\n{:?}", follows_model(&shortest, true));
        }
    }
}

/// Runs a program with a trim now and then, and looks at everything after each operation.
fn holds(options: HeapOptions, ops: &[Op], seed: u64) -> Result<(), String> {
    let mut random = Random::new(seed);
    let heap = CheckedHeap::new(options).expect("a heap");
    run(&heap, ops, |heap| {
        if random.below(8) == 0 {
            let (before, blocks) = (heap.stats(), heap.allocated_blocks());
            let trimmed = heap.trim();
            if heap.stats() != before || heap.allocated_blocks() != blocks {
                return Err("a trim changed the statistics".into());
            }
            let again = heap.trim();
            if again.pools != 0 {
                return Err(format!("after {trimmed:?} there was {again:?} left"));
            }
        }
        heap.verify().map_err(|corruption| corruption.to_string())?;
        heap.verify_guards().map_err(|fault| fault.to_string())
    })
}

#[test]
fn every_structure_holds_whenever_a_trim_comes() {
    let seed = seed();
    let plain = HeapOptions { geometry: Some(TINY), ..HeapOptions::new(&profile::V3_14) };
    let hooked = HeapOptions { allocator: AllocatorName::Debug, ..plain };
    let small =
        HeapOptions { geometry: Some(Geometry { arena_size: 64 << 10, ..Geometry::SMALL }), ..HeapOptions::new(&profile::V3_8) };
    let all = [
        plain,
        hooked,
        small,
        HeapOptions { quarantine: 50_000, ..plain },
        HeapOptions { quarantine: 50_000, ..hooked },
        HeapOptions { trim_above: Some(0), ..plain },
        HeapOptions { trim_above: Some(0), ..hooked },
        HeapOptions { trim_above: Some(40_000), ..small },
        HeapOptions { arena_slack: 16 << 10, trim_above: Some(0), ..plain },
    ];
    for options in all {
        let ops = program(seed, in_time(1200), if options.geometry == Some(TINY) { 4200 } else { 600 });
        if let Err(error) = holds(options, &ops, seed) {
            let shortest = shrink(ops, |ops| holds(options, ops, seed).is_err());
            panic!("seed {seed}, {options:?}: {error}\nshortest: {shortest:#?}\n{:?}", holds(options, &shortest, seed));
        }
    }
}

#[test]
fn requests_are_served_from_the_pools_that_they_would_be_served_from_without_trims() {
    let seed = seed();
    let options = HeapOptions { geometry: Some(TINY), ..HeapOptions::new(&profile::V3_14) };
    let pools = |trims: bool| {
        let heap = CheckedHeap::new(options).expect("a heap");
        let (mut random, mut live, mut seen) = (Random::new(seed), Vec::new(), Vec::new());
        for index in 0..in_time(60_000) {
            let grows = index / 700 % 2 == 0;
            if live.is_empty() || random.below(10) < if grows { 7 } else { 3 } {
                let block = heap.malloc(Domain::Mem, 1 + random.below(4096)).expect("memory").as_ptr() as usize;
                seen.push((block - heap.region().0) / POOL);
                live.push(block);
            } else {
                heap.free(Domain::Mem, live.swap_remove(random.below(live.len()))).expect("live");
            }
            if trims && index % 50 == 0 {
                heap.trim();
            }
        }
        seen
    };
    assert!(pools(false) == pools(true), "seed {seed}");
}

#[test]
fn empty_pools_hand_their_blocks_out_from_the_first_one_on_again() {
    let heap = heap();
    let blocks = fill(&heap, 62);
    free(&heap, &blocks[..31]);
    let order = |heap: &CheckedHeap| fill(heap, 31);
    let kept = order(&heap);
    assert_eq!(kept, blocks[..31].iter().rev().copied().collect::<Vec<_>>(), "freed last, given first");
    free(&heap, &kept);
    assert_eq!(heap.trim().pools, 1);
    assert_eq!(heap.trim(), Trimmed::default(), "nothing is left");
    assert_eq!(order(&heap), blocks[..31], "as in a pool that was never used");
    heap.verify().expect("holds");
}

#[test]
fn double_free_is_found_after_a_trim() {
    let heap = heap();
    let blocks = fill(&heap, 64);
    free(&heap, &blocks[..31]);
    assert_eq!(heap.trim().pools, 1);
    for &block in &blocks[..31] {
        assert_eq!(heap.free(Domain::Obj, block).expect_err("freed").kind, FaultKind::DoubleFree);
        assert_eq!(heap.usable_size(Domain::Obj, block).expect_err("freed").kind, FaultKind::UseAfterFree);
        assert!(!heap.owns(block));
    }
}

#[test]
fn pool_with_a_block_that_was_written_to_after_it_was_freed_stays() {
    let options = HeapOptions { allocator: AllocatorName::Debug, ..HeapOptions::new(&profile::V3_13) };
    let heap = CheckedHeap::new(options).expect("a heap");
    let blocks: Vec<usize> = (0..200).map(|_| heap.malloc(Domain::Obj, 488).expect("memory").as_ptr() as usize).collect();
    free(&heap, &blocks);
    let empty = heap.arenas()[0].free_pools - heap.arenas()[0].uncarved_pools;
    assert!(empty > 4);
    // SAFETY: no block any more, but memory of the heap's.
    unsafe { (blocks[40] as *mut u8).add(100).write(7) };
    assert_eq!(heap.trim().pools, empty - 1);
    assert_eq!(heap.arenas()[0].trimmed_pools, empty - 1);
    let fault = heap.verify_guards().expect_err("written to");
    assert_eq!((fault.kind, fault.address), (FaultKind::WriteAfterFree, blocks[40]));
    assert_eq!(heap.trim().pools, 1, "it has been found");
    heap.verify_guards().expect("nothing is left to be found");
    heap.verify().expect("holds");
    let again: Vec<usize> = (0..200).map(|_| heap.malloc(Domain::Obj, 488).expect("memory").as_ptr() as usize).collect();
    free(&heap, &again);
    heap.verify_guards().expect("sound");
}

#[test]
fn blocks_in_quarantine_keep_their_pools() {
    let heap = CheckedHeap::new(HeapOptions { quarantine: 1 << 20, ..HeapOptions::new(&profile::V3_13) }).expect("a heap");
    let blocks = fill(&heap, 200);
    free(&heap, &blocks);
    assert_eq!(heap.trim().pools, 0);
    assert_eq!(heap.free(Domain::Obj, blocks[0]).expect_err("freed").kind, FaultKind::DoubleFree);
    assert!(heap.empty_quarantine());
    assert!(heap.trim().pools >= 6);
}

#[cfg(not(miri))]
#[test]
fn memory_that_goes_back_is_all_of_the_empty_pools() {
    let heap = heap();
    // 20 arenas; every thousandth block stays.
    let blocks = fill(&heap, 20 * 64 * 31);
    let (keep, go): (Vec<_>, Vec<_>) = blocks.iter().enumerate().partition(|(index, _)| index % 1000 == 0);
    let of = |list: Vec<(usize, &usize)>| list.into_iter().map(|(_, &block)| block).collect::<Vec<_>>();
    let (keep, go) = (of(keep), of(go));
    free(&heap, &go);
    let arenas = heap.arenas();
    let in_arenas = || arenas.iter().map(|arena| resident(arena.address, arena.size)).sum::<usize>();
    let empty: usize = arenas.iter().map(|arena| arena.free_pools - arena.uncarved_pools).sum();
    let before = in_arenas();
    let trimmed = heap.trim();
    let after = in_arenas();
    assert_eq!(trimmed.pools, empty);
    assert_eq!(before - after, empty * POOL, "pages of {empty} pools");
    let in_use = arenas.len() * 64 - arenas.iter().map(|arena| arena.free_pools).sum::<usize>();
    assert_eq!(after, in_use * POOL);
    assert_eq!(trimmed.bytes, before - after, "no arena was released");
    // SAFETY: live blocks of 512 bytes.
    let holds_ones = |&block: &usize| unsafe { std::slice::from_raw_parts(block as *const u8, 512) } == [1; 512];
    assert!(keep.iter().all(holds_ones));
}

#[cfg(not(miri))]
#[test]
fn memory_of_released_arenas_goes_back_too() {
    let heap = heap();
    let blocks = fill(&heap, 10 * 64 * 31);
    let region = heap.region().0;
    free(&heap, &blocks);
    let kept = resident(region, 10 << 20);
    assert!(kept >= 4 << 20, "{kept} bytes are kept for the next arenas");
    let trimmed = heap.trim();
    assert_eq!(resident(region, 10 << 20), 0);
    assert_eq!(trimmed.bytes, kept);
    assert_eq!(heap.trim(), Trimmed::default());
    fill(&heap, 10 * 64 * 31);
    heap.verify().expect("holds");
}

/// An arena allocator of the C library's memory, that passes on what it did not give.
struct Other {
    own: ArenaAllocator,
    given: RefCell<Vec<*mut c_void>>,
}

const ARENA: Layout = match Layout::from_size_align(1 << 20, 1 << 20) {
    Ok(layout) => layout,
    Err(_) => panic!("a layout"),
};

unsafe extern "C-unwind" fn give(ctx: *mut c_void, _: usize) -> *mut c_void {
    // SAFETY: `ctx` is the test's, and the layout is not empty.
    unsafe {
        let arena = alloc(ARENA).cast();
        (*ctx.cast::<Other>()).given.borrow_mut().push(arena);
        arena
    }
}

unsafe extern "C-unwind" fn take(ctx: *mut c_void, address: *mut c_void, size: usize) {
    // SAFETY: `ctx` is the test's; either `give` gave this or the heap's own allocator did.
    unsafe {
        let other = &*ctx.cast::<Other>();
        if other.given.borrow().contains(&address) {
            dealloc(address.cast(), ARENA);
        } else {
            (other.own.free)(other.own.ctx, address, size);
        }
    }
}

#[cfg(not(miri))]
#[test]
fn arenas_of_another_allocator_are_left_alone() {
    let heap = Heap::new(&profile::V3_13).expect("a heap");
    let other = Box::new(Other { own: heap.arena_allocator(), given: RefCell::default() });
    let ctx = (&raw const *other).cast_mut().cast();
    let fill = || (0..64 * 31).map(|_| heap.malloc(Domain::Obj, 512).expect("memory")).collect::<Vec<_>>();
    // SAFETY: live blocks of this heap.
    let free = |blocks: &[NonNull<u8>]| blocks.iter().for_each(|&block| unsafe { heap.free(Domain::Obj, Some(block)) });
    let own = fill();
    // SAFETY: the functions take back what they gave and what the heap's own gave, and do not unwind.
    unsafe { heap.set_arena_allocator(ArenaAllocator { ctx, alloc: give, free: take }) };
    let foreign = fill();
    free(&foreign[40..]);
    assert_eq!(heap.trim().pools, 0);
    free(&own[40..]);
    assert_eq!(heap.trim().pools, 62, "all of the heap's own arena but two");
    assert_eq!(heap.arenas().iter().map(|arena| arena.trimmed_pools).collect::<Vec<_>>(), [62, 0]);
    // SAFETY: as above.
    unsafe { heap.set_arena_allocator(other.own) };
    let _ = (fill(), fill());
    let later = fill();
    free(&later[40..]);
    assert!(heap.trim().pools > 50, "the heap's own arenas are trimmed again");
    heap.verify().expect("holds");
    // SAFETY: as above; the heap is dropped with it.
    unsafe { heap.set_arena_allocator(ArenaAllocator { ctx, alloc: give, free: take }) };
    drop(heap);
}

/// Without a reservation, arenas are mappings of their own and pools have their headers in them. Address space is limited for a whole process.
#[cfg(not(miri))]
#[test]
fn pools_with_headers_in_them_keep_their_first_page() {
    const NAME: &str = "pools_with_headers_in_them_keep_their_first_page";
    // A sanitizer needs more address space than there is to be.
    if std::env::var_os("ASAN_OPTIONS").is_some() {
        return;
    }
    if std::env::var_os("OBMALLOC_LIMITED").is_none() {
        let child = std::process::Command::new("sh")
            .args([
                "-c",
                "ulimit -v 2000000 && exec \"$0\" --exact \"$1\"",
                &std::env::current_exe().expect("a program").to_string_lossy(),
                NAME,
            ])
            .env("OBMALLOC_LIMITED", "1")
            .output()
            .expect("runs");
        let said = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let heap = heap();
    assert_eq!(heap.region(), (0, 0), "no address space");
    let blocks = fill(&heap, 20 * 64 * 31);
    let (keep, go): (Vec<_>, Vec<_>) = blocks.iter().enumerate().partition(|(index, _)| index.is_multiple_of(1000));
    go.iter().for_each(|&(_, &block)| heap.free(Domain::Obj, block).expect("live"));
    let arenas = heap.arenas();
    let in_arenas = || arenas.iter().map(|arena| resident(arena.address, arena.size)).sum::<usize>();
    let empty: usize = arenas.iter().map(|arena| arena.free_pools - arena.uncarved_pools).sum();
    let before = in_arenas();
    let trimmed = heap.trim();
    assert!(empty > 500, "{empty} empty pools");
    assert_eq!(trimmed, Trimmed { pools: empty, bytes: empty * (POOL - 4096) });
    assert_eq!(before - in_arenas(), trimmed.bytes);
    heap.verify().expect("holds");
    fill(&heap, 20 * 64 * 31);
    heap.verify().expect("holds");
    keep.iter().for_each(|&(_, &block)| heap.free(Domain::Obj, block).expect("live"));
}

#[cfg(not(miri))]
#[test]
fn heap_trims_by_itself_above_its_bound_and_not_when_the_same_pools_come_and_go() {
    const BOUND: usize = 1 << 20;
    let heap = CheckedHeap::new(HeapOptions { trim_above: Some(BOUND), ..HeapOptions::new(&profile::V3_13) }).expect("a heap");
    let trimmed = |heap: &CheckedHeap| heap.arenas().iter().map(|arena| arena.trimmed_pools).sum::<usize>();
    let kept = |heap: &CheckedHeap| {
        heap.arenas().iter().map(|arena| arena.free_pools - arena.uncarved_pools - arena.trimmed_pools).sum::<usize>()
    };
    // A block an arena stays, so that no arena is released.
    let mut blocks = fill(&heap, 16 * 64 * 31);
    let pinned = |index: usize| index.is_multiple_of(64 * 31);
    let mut cycles_with_trims = 0;
    for cycle in 0..12 {
        let (mut most, before) = (0, trimmed(&heap));
        for (index, &block) in blocks.iter().enumerate() {
            if !pinned(index) {
                heap.free(Domain::Obj, block).expect("live");
                most = most.max(kept(&heap));
            }
        }
        if cycle == 0 {
            assert!(most <= BOUND / POOL + 1, "{most} pools were kept in the first cycle");
        }
        cycles_with_trims += usize::from(trimmed(&heap) > before);
        let again: Vec<usize> = fill(&heap, 16 * 64 * 31 - 16);
        let pins = blocks.iter().enumerate().filter(|&(index, _)| pinned(index)).map(|(_, &block)| block);
        let pins: Vec<usize> = pins.collect();
        let mut others = again.into_iter();
        blocks = (0..16 * 64 * 31)
            .map(|index| if pinned(index) { pins[index / (64 * 31)] } else { others.next().expect("one") })
            .collect();
        heap.verify().expect("holds");
    }
    assert!((1..=5).contains(&cycles_with_trims), "trims in {cycles_with_trims} of 12 cycles");
    let all = blocks.iter().enumerate().filter(|&(index, _)| !pinned(index));
    all.for_each(|(_, &block)| heap.free(Domain::Obj, block).expect("live"));
    assert_eq!(trimmed(&heap), 0, "the bound is above what comes and goes");
    assert!(heap.trim().pools > 900, "what is asked for is done");
}

#[test]
fn pool_is_forgotten_only_where_an_empty_one_begins() {
    let heap = Heap::new(&profile::V3_13).expect("a heap");
    let blocks: Vec<_> = (0..64).map(|_| heap.malloc(Domain::Obj, 512).expect("memory")).collect();
    let first = blocks[0].as_ptr() as usize - POOL_OVERHEAD;
    for &block in &blocks[..31] {
        // SAFETY: live.
        unsafe { heap.free(Domain::Obj, Some(block)) };
    }
    for (pool, expected) in [
        (first, true),
        (first, true),
        (first + 16, false),
        (first + POOL, false),
        (first + 3 * POOL, false),
        (first + (2 << 20), false),
        (0, false),
        (usize::MAX, false),
        (usize::MAX & !(POOL - 1), false),
    ] {
        assert_eq!(heap.forget_pool(pool), expected, "{pool:#x}");
    }
    assert_eq!(heap.arenas()[0].trimmed_pools, 1);
    heap.verify().expect("holds");
}
