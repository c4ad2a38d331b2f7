//! Random programs on geometries so small that every edge is met, with the whole heap walked after each operation.

#[path = "common/calls.rs"]
mod calls;
mod common;

use calls::{Op, program, run};
use common::{Random, seed, shrink};
use obmalloc::profile::{self, Geometry, Profile};
use obmalloc::{AllocatorName, ArenaAllocator, CheckedHeap, Heap, HeapOptions};

/// Four pools an arena: arenas come and go all the time.
const TINY: Geometry = Geometry { arena_size: 64 << 10, pool_size: 16 << 10, alignment: 16, small_request_threshold: 4096 };
/// Small pools and 8-byte alignment.
const NARROW: Geometry = Geometry { arena_size: 64 << 10, pool_size: 4 << 10, alignment: 8, small_request_threshold: 512 };

/// How many of so many operations there is time for.
const fn in_time(count: usize) -> usize {
    if cfg!(miri) { count / 40 } else { count }
}

fn heap(profile: &'static Profile, geometry: Option<Geometry>) -> CheckedHeap {
    CheckedHeap::new(HeapOptions { geometry, ..HeapOptions::new(profile) }).expect("a heap")
}

fn hold(make: impl Fn() -> CheckedHeap, ops: Vec<Op>, seed: u64) {
    let holds = |heap: &CheckedHeap| {
        heap.verify().map_err(|corruption| corruption.to_string())?;
        heap.verify_guards().map_err(|fault| fault.to_string())
    };
    let attempt = |ops: &[Op]| run(&make(), ops, holds);
    if let Err(error) = attempt(&ops) {
        let shortest = shrink(ops, |ops| attempt(ops).is_err());
        panic!("seed {seed}: {error}\nshortest: {shortest:#?}\n{:?}", attempt(&shortest));
    }
}

#[test]
fn every_structure_holds_after_each_operation_on_tiny_geometries() {
    let seed = seed();
    for (index, profile) in [&profile::V3_8, &profile::V3_9, &profile::V3_14].into_iter().enumerate() {
        for (geometry, largest) in [(TINY, 4200), (NARROW, 600)] {
            let ops = program(seed + index as u64, in_time(3000), largest);
            hold(|| heap(profile, Some(geometry)), ops, seed + index as u64);
        }
    }
}

#[test]
fn every_structure_holds_in_arenas_of_a_foreign_allocator() {
    let seed = seed();
    for misalignment in [0, 16, 0x1000, 0x2010, 0x3ff0] {
        let make = || {
            let heap = heap(&profile::V3_14, Some(TINY));
            // SAFETY: the functions give and take blocks of the C library, and do not unwind.
            unsafe { heap.set_arena_allocator(misaligned(misalignment)) }.expect("memory");
            heap
        };
        hold(make, program(seed, in_time(2000), 4200), seed);
    }
}

#[test]
#[cfg_attr(miri, ignore = "regions are memory there")]
fn every_structure_holds_where_only_some_arenas_fit_into_the_region() {
    let seed = seed();
    // A new heap reserves less address space the more heaps are open.
    let options = HeapOptions { geometry: Some(TINY), ..HeapOptions::new(&profile::V3_14) };
    let open_one = || Heap::with_options(options).expect("a heap");
    let mut open: Vec<Heap> = (0..25_000).map(|_| open_one()).collect();
    for profile in [&profile::V3_8, &profile::V3_9, &profile::V3_14] {
        let region = || heap(profile, Some(TINY)).region().1;
        // The tests beside this one give address space back: it is taken here.
        while region() >= 10 * TINY.arena_size {
            assert!(open.len() < 100_000, "{} bytes", region());
            open.push(open_one());
        }
        assert!(region() >= TINY.arena_size, "{} bytes", region());
        hold(|| heap(profile, Some(TINY)), program(seed, 2000, 4200), seed);
    }
}

#[test]
fn every_structure_and_all_guard_bytes_hold_under_debug_hooks() {
    let seed = seed();
    let profiles = if cfg!(miri) { &[&profile::V3_9][..] } else { &[&profile::V3_8, &profile::V3_9, &profile::V3_14] };
    for (index, &profile) in profiles.iter().enumerate() {
        for (geometry, largest) in [(Some(TINY), 4200), (Some(NARROW), 600), (None, 600)] {
            for allocator in [AllocatorName::Debug, AllocatorName::MallocDebug] {
                let make = || CheckedHeap::new(HeapOptions { geometry, allocator, ..HeapOptions::new(profile) }).expect("a heap");
                hold(make, program(seed + index as u64, in_time(700), largest), seed + index as u64);
            }
        }
    }
    let make = || {
        let heap = heap(&profile::V3_14, Some(TINY));
        // SAFETY: as above.
        unsafe { heap.set_arena_allocator(misaligned(0x2010)) }.expect("memory");
        heap.setup_debug_hooks().expect("memory");
        heap
    };
    hold(make, program(seed, in_time(1000), 4200), seed);
}

#[test]
fn every_structure_holds_while_freed_blocks_wait() {
    let seed = seed();
    for (quarantine, allocator) in [(1, AllocatorName::Default), (50_000, AllocatorName::Debug), (50_000, AllocatorName::Malloc)]
    {
        let make = || {
            let options = HeapOptions { geometry: Some(TINY), quarantine, allocator, ..HeapOptions::new(&profile::V3_14) };
            CheckedHeap::new(options).expect("a heap")
        };
        hold(make, program(seed, in_time(2000), 4200), seed);
    }
}

#[test]
fn hooks_that_come_in_the_middle_leave_older_blocks_whole() {
    let seed = seed();
    let make = || heap(&profile::V3_13, Some(TINY));
    let attempt = |ops: &[Op]| {
        let mut left = if cfg!(miri) { 2 } else { 500 };
        run(&make(), ops, |heap| {
            left -= 1;
            if left == 0 {
                heap.setup_debug_hooks().map_err(|error| error.to_string())?;
            }
            heap.verify().map_err(|corruption| corruption.to_string())?;
            heap.verify_guards().map_err(|fault| fault.to_string())
        })
    };
    let ops = program(seed, in_time(1500), 4200);
    if let Err(error) = attempt(&ops) {
        panic!("seed {seed}: {error}\nshortest: {:#?}", shrink(ops, |ops| attempt(ops).is_err()));
    }
}

/// Arenas from the C library, `misalignment` bytes off a boundary of 64 KiB.
fn misaligned(misalignment: usize) -> ArenaAllocator {
    use std::alloc::{Layout, alloc, dealloc};
    use std::ffi::c_void;
    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size + (64 << 10), 64 << 10).expect("a layout")
    }
    unsafe extern "C-unwind" fn give(ctx: *mut c_void, size: usize) -> *mut c_void {
        // SAFETY: the layout is not empty, and has room for the misalignment.
        unsafe { alloc(layout(size)).add(ctx as usize).cast() }
    }
    unsafe extern "C-unwind" fn take(ctx: *mut c_void, address: *mut c_void, size: usize) {
        // SAFETY: what `give` gave.
        unsafe { dealloc(address.cast::<u8>().sub(ctx as usize), layout(size)) }
    }
    ArenaAllocator { ctx: misalignment as *mut c_void, alloc: give, free: take }
}

#[test]
fn releases_with_the_same_rules_give_the_same_addresses() {
    let seed = seed();
    let ops = program(seed, in_time(20_000), 600);
    let trace = |profile: &'static Profile| {
        let heap = heap(profile, None);
        let base = heap.region().0;
        let mut seen = Vec::new();
        run(&heap, &ops, |heap| {
            seen.push((heap.arenas().len(), heap.allocated_blocks()));
            Ok(())
        })
        .expect("runs");
        let arenas: Vec<usize> = heap.arenas().iter().map(|arena| arena.address - base).collect();
        (seen, arenas, heap.stats().classes)
    };
    assert_eq!(trace(&profile::V3_10), trace(&profile::V3_15));
}

#[test]
fn all_sizes_from_0_to_600_give_what_was_asked() {
    let look = |heap: &CheckedHeap| {
        if !cfg!(miri) {
            heap.verify().expect("holds");
        }
    };
    for profile in profile::ALL {
        let heap = heap(profile, None);
        for domain in obmalloc::Domain::ALL {
            let mut blocks = Vec::new();
            for size in (0..=600usize).step_by(if cfg!(miri) { 100 } else { 1 }) {
                let block = heap.malloc(domain, size).expect("memory").as_ptr() as usize;
                let usable = heap.usable_size(domain, block).expect("live");
                let small = domain != obmalloc::Domain::Raw && (1..=512).contains(&size);
                assert_eq!(usable, if small { size.next_multiple_of(16) } else { size }, "{size} bytes in {domain}");
                // Miri's malloc aligns to what the size needs.
                assert!(block.is_multiple_of(16) || cfg!(miri) && !small);
                blocks.push(block);
                look(&heap);
            }
            let mut random = Random::new(blocks.len() as u64);
            while !blocks.is_empty() {
                let block = blocks.swap_remove(random.below(blocks.len()));
                heap.free(domain, block).expect("live");
                look(&heap);
            }
            assert_eq!(heap.allocated_blocks(), 0);
        }
    }
}
