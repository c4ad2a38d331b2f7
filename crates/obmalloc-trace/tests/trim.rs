//! Trims in recordings: the replay forgets what the recorded process forgot.

use std::cell::RefCell;
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Mutex;

use obmalloc::profile::{self, Profile};
use obmalloc::{Allocator, ArenaAllocator, Heap};
use obmalloc_trace::format::{BlockWriter, Domain, Reader, file_head};
use obmalloc_trace::replay::{Replay, Report};

/// A process that is recorded: a heap of the engine's, whose calls are written down as the recorder does.
struct Recorded {
    heap: Heap,
    tape: Box<Tape>,
}

struct Tape {
    block: RefCell<BlockWriter<'static>>,
    blocks: RefCell<Vec<u8>>,
    raw: Allocator,
    arena: ArenaAllocator,
}

impl Tape {
    fn write(&self, write: impl FnOnce(&mut BlockWriter<'static>)) {
        let mut block = self.block.borrow_mut();
        if !block.has_room(1024) {
            self.blocks.borrow_mut().extend_from_slice(block.finish());
        }
        write(&mut block);
    }
}

unsafe fn tape<'a>(ctx: *mut c_void) -> &'a Tape {
    // SAFETY: `ctx` is the tape that the functions were put in with.
    unsafe { &*ctx.cast::<Tape>() }
}

unsafe extern "C-unwind" fn raw_calloc(ctx: *mut c_void, count: usize, size: usize) -> *mut c_void {
    // SAFETY: as above.
    let tape = unsafe { tape(ctx) };
    // SAFETY: the heap's own allocator.
    let block = unsafe { (tape.raw.calloc)(tape.raw.ctx, count, size) };
    tape.write(|to| to.calloc(Domain::Raw, true, count as u64, size as u64, block as u64));
    block
}

unsafe extern "C-unwind" fn raw_malloc(ctx: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: as above.
    let tape = unsafe { tape(ctx) };
    // SAFETY: as above.
    let block = unsafe { (tape.raw.malloc)(tape.raw.ctx, size) };
    tape.write(|to| to.malloc(Domain::Raw, true, size as u64, block as u64));
    block
}

unsafe extern "C-unwind" fn raw_realloc(ctx: *mut c_void, address: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: as above.
    let tape = unsafe { tape(ctx) };
    // SAFETY: as above.
    let block = unsafe { (tape.raw.realloc)(tape.raw.ctx, address, size) };
    tape.write(|to| to.realloc(Domain::Raw, true, address as u64, size as u64, block as u64));
    block
}

unsafe extern "C-unwind" fn raw_free(ctx: *mut c_void, address: *mut c_void) {
    // SAFETY: as above.
    let tape = unsafe { tape(ctx) };
    tape.write(|to| to.free(Domain::Raw, true, address as u64));
    // SAFETY: as above.
    unsafe { (tape.raw.free)(tape.raw.ctx, address) };
}

unsafe extern "C-unwind" fn arena_alloc(ctx: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: as above.
    let tape = unsafe { tape(ctx) };
    // SAFETY: as above.
    let arena = unsafe { (tape.arena.alloc)(tape.arena.ctx, size) };
    tape.write(|to| to.arena_alloc(true, size as u64, arena as u64));
    arena
}

unsafe extern "C-unwind" fn arena_free(ctx: *mut c_void, address: *mut c_void, size: usize) {
    // SAFETY: as above.
    let tape = unsafe { tape(ctx) };
    tape.write(|to| to.arena_free(true, size as u64, address as u64));
    // SAFETY: as above.
    unsafe { (tape.arena.free)(tape.arena.ctx, address, size) };
}

impl Recorded {
    fn new(profile: &Profile) -> Self {
        // A writer needs memory that lives for ever. A static keeps its address, so that LeakSanitizer reports no leak.
        static KEPT: Mutex<Vec<usize>> = Mutex::new(Vec::new());
        let heap = Heap::new(profile).expect("a heap");
        let memory: &'static mut [u8] = Box::leak(vec![0; 1 << 16].into_boxed_slice());
        KEPT.lock().expect("no panic").push(memory.as_ptr().expose_provenance());
        let tape = Box::new(Tape {
            block: RefCell::new(BlockWriter::new(memory)),
            blocks: RefCell::default(),
            raw: heap.allocator(Domain::Raw),
            arena: heap.arena_allocator(),
        });
        let ctx = (&raw const *tape).cast_mut().cast();
        // SAFETY: the functions pass on to the heap's own, and the tape outlives the heap.
        unsafe {
            let raw = Allocator { ctx, malloc: raw_malloc, calloc: raw_calloc, realloc: raw_realloc, free: raw_free };
            heap.set_allocator(Domain::Raw, raw);
            heap.set_arena_allocator(ArenaAllocator { ctx, alloc: arena_alloc, free: arena_free });
        }
        Self { heap, tape }
    }

    fn malloc(&self, size: usize) -> NonNull<u8> {
        let block = self.heap.malloc(Domain::Obj, size).expect("memory");
        self.tape.write(|to| to.malloc(Domain::Obj, false, size as u64, block.as_ptr() as u64));
        block
    }

    fn free(&self, block: NonNull<u8>) {
        // SAFETY: a live block.
        unsafe { self.heap.free(Domain::Obj, Some(block)) };
        self.tape.write(|to| to.free(Domain::Obj, false, block.as_ptr() as u64));
    }

    /// Forgets every `every`th pool, if it is empty. Returns how many it forgot.
    fn trim(&self, every: usize, is_noted: bool) -> usize {
        let pool_size = self.heap.geometry().pool_size;
        let arenas = self.heap.arenas();
        let pools = arenas.iter().flat_map(|arena| (arena.address..arena.address + arena.size).step_by(pool_size));
        let forgotten: Vec<u64> =
            pools.step_by(every).filter(|&pool| self.heap.forget_pool(pool)).map(|pool| pool as u64).collect();
        if is_noted {
            self.tape.write(|to| {
                to.trim(pool_size.trailing_zeros() as u8, &forgotten);
            });
        }
        forgotten.len()
    }

    fn replay(self, profile: &Profile) -> Report {
        let Self { heap, tape } = self;
        let last = tape.block.borrow_mut().finish().to_vec();
        let trace = [&file_head("{}")[..], &tape.blocks.borrow()[..], &last].concat();
        drop(heap);
        let mut replay = Replay::new(vec![Reader::new(trace).expect("a trace")], profile, Report::default()).expect("a heap");
        replay.run().expect("undamaged");
        replay.into_watcher()
    }
}

/// A program that grows and shrinks by whole pools.
fn program(process: &Recorded, is_noted: bool) -> usize {
    let (mut live, mut seed, mut trimmed) = (Vec::new(), 7u64, 0);
    let mut random = |limit: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % limit
    };
    for index in 0..60_000usize {
        let grows = (index / 5000).is_multiple_of(2);
        if live.is_empty() || random(10) < if grows { 7 } else { 2 } {
            live.push(process.malloc(if index % 10_000 < 6000 { 512 } else { 1 + random(512) }));
        } else {
            process.free(live.swap_remove(random(live.len())));
        }
        if index % 1000 == 999 {
            trimmed += process.trim(1 + random(3), is_noted);
        }
    }
    trimmed
}

#[test]
fn every_address_after_a_trim_is_the_recorded_one() {
    for profile in [&profile::V3_8, &profile::V3_10, &profile::V3_13, &profile::V3_15] {
        let process = Recorded::new(profile);
        let trimmed = program(&process, true);
        let report = process.replay(profile);
        assert!(trimmed > 100, "{trimmed} pools");
        assert!(report.is_exact(), "{:?}", report.mismatch);
        assert_eq!(report.trimmed_pools, trimmed as u64);
        assert!(report.addresses > 20_000);
    }
}

#[test]
fn without_its_note_a_trim_changes_addresses() {
    let process = Recorded::new(&profile::V3_13);
    program(&process, false);
    let report = process.replay(&profile::V3_13);
    assert_eq!(report.mismatch.expect("a difference").what, "the addresses differ");
}

#[test]
fn trim_of_a_pool_that_is_not_empty_is_a_difference() {
    let process = Recorded::new(&profile::V3_13);
    let block = process.malloc(100);
    let pool = block.as_ptr() as u64 & !0x3fff;
    for (pool, is_known) in [(pool, true), (pool + 0x4000, true), (0x4000, false)] {
        let process = Recorded::new(&profile::V3_13);
        let base = process.malloc(100).as_ptr() as u64 & !0x3fff;
        let pool = if is_known { pool - (block.as_ptr() as u64 & !0x3fff) + base } else { pool };
        process.tape.write(|to| assert_eq!(to.trim(14, &[pool]), 1));
        let mismatch = process.replay(&profile::V3_13).mismatch.expect("a difference");
        assert_eq!(mismatch.what, format!("the recorded process trimmed the pool at {pool:#x}, which is not an empty one here"));
        assert_eq!(mismatch.request, "trim of 1 pools");
        assert_eq!(mismatch.expected.arena.is_some(), is_known);
    }
}

#[test]
fn trims_of_other_interpreters_are_left_out() {
    let process = Recorded::new(&profile::V3_13);
    process.malloc(100);
    process.tape.write(|to| {
        to.interpreter(1);
        to.trim(14, &[0x4000]);
        to.interpreter(0);
    });
    let report = process.replay(&profile::V3_13);
    assert!(report.is_exact() && report.trimmed_pools == 0, "{report:?}");
}
