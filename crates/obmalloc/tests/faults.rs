//! A checked heap: every misuse of an address is a fault of its kind, and changes nothing.

use obmalloc::profile::{self, Geometry};
use obmalloc::{CheckedHeap, Domain, FaultKind, HeapOptions};

fn heap() -> CheckedHeap {
    CheckedHeap::new(HeapOptions::new(&profile::V3_13)).expect("a heap")
}

#[test]
fn each_misuse_has_its_kind() {
    let heap = heap();
    let at = |block: Option<std::ptr::NonNull<u8>>| block.expect("memory").as_ptr() as usize;
    let (mem, obj) = (at(heap.malloc(Domain::Mem, 64)), at(heap.malloc(Domain::Obj, 64)));
    let (raw, large) = (at(heap.malloc(Domain::Raw, 64)), at(heap.malloc(Domain::Obj, 5000)));
    let freed = at(heap.malloc(Domain::Obj, 64));
    heap.free(Domain::Obj, freed).expect("live");
    let freed_large = at(heap.malloc(Domain::Mem, 300_000));
    heap.free(Domain::Mem, freed_large).expect("live");
    let untouched = at(heap.malloc(Domain::Obj, 64)) + 10 * 64;
    let before = (heap.allocated_blocks(), heap.stats());
    let local = 0u8;
    for (domain, address, on_free, on_use) in [
        (Domain::Obj, mem, FaultKind::WrongDomain, FaultKind::WrongDomain),
        (Domain::Mem, obj, FaultKind::WrongDomain, FaultKind::WrongDomain),
        (Domain::Raw, obj, FaultKind::WrongDomain, FaultKind::WrongDomain),
        (Domain::Obj, raw, FaultKind::WrongDomain, FaultKind::WrongDomain),
        (Domain::Raw, large, FaultKind::WrongDomain, FaultKind::WrongDomain),
        (Domain::Mem, large, FaultKind::WrongDomain, FaultKind::WrongDomain),
        (Domain::Mem, freed_large, FaultKind::DoubleFree, FaultKind::UseAfterFree),
        (Domain::Obj, obj + 16, FaultKind::InteriorPointer, FaultKind::InteriorPointer),
        (Domain::Obj, obj + 1, FaultKind::InteriorPointer, FaultKind::InteriorPointer),
        (Domain::Obj, large + 4999, FaultKind::InteriorPointer, FaultKind::InteriorPointer),
        (Domain::Obj, untouched, FaultKind::ForeignPointer, FaultKind::ForeignPointer),
        (Domain::Obj, obj & !0x3fff, FaultKind::ForeignPointer, FaultKind::ForeignPointer),
        (Domain::Obj, (obj & !0x3fff) + 8, FaultKind::ForeignPointer, FaultKind::ForeignPointer),
        (Domain::Obj, &raw const local as usize, FaultKind::ForeignPointer, FaultKind::ForeignPointer),
        (Domain::Obj, 1, FaultKind::ForeignPointer, FaultKind::ForeignPointer),
        (Domain::Raw, 0x000d_eadb_eef0, FaultKind::ForeignPointer, FaultKind::ForeignPointer),
        (Domain::Mem, usize::MAX, FaultKind::ForeignPointer, FaultKind::ForeignPointer),
    ] {
        assert_eq!(heap.free(domain, address).expect_err("a fault").kind, on_free, "free {address:#x} in {domain}");
        assert_eq!(heap.realloc(domain, Some(address), 9).expect_err("a fault").kind, on_use, "realloc {address:#x} in {domain}");
        assert_eq!(heap.usable_size(domain, address).expect_err("a fault").kind, on_use, "size of {address:#x} in {domain}");
        heap.verify().expect("holds");
    }
    assert_eq!((heap.allocated_blocks(), heap.stats()), before);
    for (domain, address) in [(Domain::Mem, mem), (Domain::Obj, obj), (Domain::Raw, raw), (Domain::Obj, large)] {
        heap.free(domain, address).expect("still live");
    }
}

#[test]
fn double_frees_are_told_apart_until_the_address_is_handed_out_again() {
    let heap = heap();
    let first = heap.malloc(Domain::Obj, 48).expect("memory").as_ptr() as usize;
    let second = heap.malloc(Domain::Obj, 48).expect("memory").as_ptr() as usize;
    heap.free(Domain::Obj, first).expect("live");
    heap.free(Domain::Obj, second).expect("live");
    assert_eq!(heap.free(Domain::Obj, first).expect_err("a fault").kind, FaultKind::DoubleFree);
    // The arena has been kept or given back by now; either way the address is known to have been freed.
    let again = heap.malloc(Domain::Obj, 48).expect("memory").as_ptr() as usize;
    assert_eq!(again, second);
    heap.free(Domain::Obj, again).expect("live again");
}

#[test]
#[cfg_attr(miri, ignore = "Miri's C library does not say how large blocks are")]
fn a_limit_is_kept_and_memory_can_be_had_again_below_it() {
    let options = HeapOptions { memory_limit: Some(3 << 20), ..HeapOptions::new(&profile::V3_13) };
    let heap = CheckedHeap::new(options).expect("a heap");
    let mut blocks = Vec::new();
    while let Some(block) = heap.malloc(Domain::Obj, 500) {
        blocks.push(block.as_ptr() as usize);
        assert!(heap.held() <= 3 << 20);
    }
    assert!(blocks.len() > 3000, "{} blocks fit into 3 MiB", blocks.len());
    assert_eq!(heap.malloc(Domain::Raw, 1 << 20), None);
    heap.verify().expect("holds");
    for block in blocks.drain(..) {
        heap.free(Domain::Obj, block).expect("live");
    }
    assert!(heap.malloc(Domain::Raw, 1 << 20).is_some());
}

#[test]
#[cfg_attr(miri, ignore = "Miri's C library does not say how large blocks are")]
fn there_is_room_for_another_block_of_the_size_of_one_that_was_freed() {
    // The C library gives more than what was asked for, so the last block must not take the heap past its limit.
    for limit in (20_000..20_400).step_by(8) {
        let options = HeapOptions { memory_limit: Some(limit), ..HeapOptions::new(&profile::V3_13) };
        let heap = CheckedHeap::new(options).expect("a heap");
        let mut blocks = Vec::new();
        while let Some(block) = heap.malloc(Domain::Raw, 16) {
            blocks.push(block.as_ptr() as usize);
        }
        assert!(heap.held() <= limit, "{} bytes are held, of {limit}", heap.held());
        heap.free(Domain::Raw, blocks.swap_remove(blocks.len() / 2)).expect("live");
        assert!(heap.malloc(Domain::Raw, 16).is_some(), "limit {limit}");
    }
}

/// Writes to a free block, as native code with an old address does.
fn write_link(block: usize, link: usize) {
    // SAFETY: a block of an arena that is held; a heap that does not trust its links must stand what is written to free ones.
    unsafe { std::ptr::with_exposed_provenance_mut::<usize>(block).write(link) };
}

#[test]
fn a_link_that_leads_out_of_its_pool_is_not_followed() {
    let any = Geometry { pool_size: 8192, ..profile::V3_13.geometry() };
    for (profile, geometry) in [(&profile::V3_8, None), (&profile::V3_13, None), (&profile::V3_13, Some(any))] {
        let heap = || CheckedHeap::new(HeapOptions { geometry, ..HeapOptions::new(profile) }).expect("a heap");
        let pool_size = heap().geometry().pool_size;
        for lead in [|_, _| 0x10, |_, _| usize::MAX, |block, _| block + 8, |block, pool_size| block + pool_size] {
            // The block's pool is in use, or has been empty.
            for keeps_another in [true, false] {
                let heap = heap();
                let at = |size| heap.malloc(Domain::Obj, size).expect("memory").as_ptr() as usize;
                let (first, second, other) = (at(48), at(48), at(100));
                heap.free(Domain::Obj, first).expect("live");
                if !keeps_another {
                    heap.free(Domain::Obj, second).expect("live");
                }
                let next = if keeps_another { first } else { second };
                write_link(next, lead(next, pool_size));
                assert!(!heap.is_corrupted());
                for _ in 0..2 {
                    assert_eq!(heap.malloc(Domain::Mem, 48), None);
                    assert_eq!(heap.calloc(Domain::Obj, 3, 16), None);
                    let fault = heap.realloc(Domain::Obj, Some(other), 48).expect_err("a fault");
                    assert_eq!((fault.kind, fault.address), (FaultKind::HeapCorrupted, next));
                    assert_eq!(heap.realloc(Domain::Mem, None, 40).expect_err("a fault").kind, FaultKind::HeapCorrupted);
                    assert_eq!(heap.take_fault().map(|fault| fault.kind), Some(FaultKind::HeapCorrupted));
                }
                assert!(heap.is_corrupted());
                heap.verify().expect_err("corrupted");
            }
        }
    }
}

fn quarantining(quarantine: usize) -> CheckedHeap {
    CheckedHeap::new(HeapOptions { quarantine, ..HeapOptions::new(&profile::V3_13) }).expect("a heap")
}

#[test]
fn a_second_free_is_found_while_the_block_waits() {
    for hooks in [false, true] {
        for domain in Domain::ALL {
            // Miri would take minutes to look at the guard bytes of the longest block.
            for size in [0, 48, 512, 5000, if cfg!(miri) { 9000 } else { 300_000 }] {
                let heap = quarantining(1 << 20);
                if hooks {
                    heap.setup_debug_hooks().expect("memory");
                }
                let at = |block: Option<std::ptr::NonNull<u8>>| block.expect("memory").as_ptr() as usize;
                let before = heap.allocated_blocks();
                let first = at(heap.malloc(domain, size));
                heap.free(domain, first).expect("live");
                assert_eq!(heap.allocated_blocks(), before);
                // Without a quarantine, the next block of this size would have the freed block's address.
                let others: Vec<_> = (0..3).map(|_| at(heap.malloc(domain, size))).collect();
                assert!(!others.contains(&first));
                assert_eq!(heap.free(domain, first).expect_err("a fault").kind, FaultKind::DoubleFree);
                assert_eq!(heap.usable_size(domain, first).expect_err("a fault").kind, FaultKind::UseAfterFree);
                // The block that a realloc leaves is in quarantine too.
                let moved = at(heap.realloc(domain, Some(others[0]), size + 1).expect("live"));
                assert_eq!(heap.realloc(domain, Some(others[0]), 9).expect_err("a fault").kind, FaultKind::UseAfterFree);
                heap.verify().expect("holds");
                for block in [moved, others[1], others[2]] {
                    heap.free(domain, block).expect("live");
                }
                assert_eq!(heap.allocated_blocks(), before);
                let held = heap.held();
                assert!(heap.empty_quarantine());
                // Miri does not know how large a block of C's malloc is.
                assert!(heap.held() < held || size <= 512 || cfg!(miri));
                heap.verify().expect("holds");
            }
        }
    }
}

#[test]
fn no_more_waits_than_is_said_and_nothing_that_is_needed() {
    let heap = quarantining(10_000);
    let mut seen = std::collections::HashSet::new();
    let all_new = (0..1000).all(|_| {
        let block = heap.malloc(Domain::Obj, 64).expect("memory").as_ptr() as usize;
        heap.free(Domain::Obj, block).expect("live");
        seen.insert(block)
    });
    assert!(!all_new, "an address is handed out again");
    assert!(seen.len() >= 10_000 / (64 + 32), "{} addresses", seen.len());
    // Without a quarantine, a heap does not remember so many freed blocks.
    let heap = quarantining(1 << 30);
    let blocks: Vec<_> = (0..if cfg!(miri) { 70 } else { 70_000 })
        .map(|_| heap.malloc(Domain::Raw, 16).expect("memory").as_ptr() as usize)
        .collect();
    blocks.iter().for_each(|&block| heap.free(Domain::Raw, block).expect("live"));
    for &block in &blocks {
        assert_eq!(heap.free(Domain::Raw, block).expect_err("a fault").kind, FaultKind::DoubleFree);
    }
    let options = HeapOptions { memory_limit: Some(3 << 20), quarantine: 1 << 30, ..HeapOptions::new(&profile::V3_13) };
    let heap = CheckedHeap::new(options).expect("a heap");
    for _ in 0..100 {
        for domain in Domain::ALL {
            let block = heap.malloc(domain, 500_000).expect("what waits makes room").as_ptr() as usize;
            heap.free(domain, block).expect("live");
        }
    }
    // A request that is to fail on purpose does fail, and empties no quarantine.
    let waiting = heap.malloc(Domain::Obj, 64).expect("memory").as_ptr() as usize;
    heap.free(Domain::Obj, waiting).expect("live");
    heap.set_nomemory(0, Some(1)).expect("memory");
    assert_eq!(heap.malloc(Domain::Obj, 64), None);
    assert_eq!(heap.free(Domain::Obj, waiting).expect_err("a fault").kind, FaultKind::DoubleFree);
    heap.verify().expect("holds");
}

#[test]
fn what_is_found_of_a_block_that_waited_is_no_fault_of_another_call() {
    let heap = quarantining(200);
    heap.setup_debug_hooks().expect("memory");
    let at = |size| heap.malloc(Domain::Obj, size).expect("memory").as_ptr() as usize;
    let (damaged, other) = (at(48), at(400));
    heap.free(Domain::Obj, damaged).expect("live");
    write_link(damaged + 48, 7);
    // The realloc puts the old block into quarantine, and so the damaged one leaves it.
    let moved = heap.realloc(Domain::Obj, Some(other), 401).expect("no fault of this call").expect("memory").as_ptr() as usize;
    assert_eq!(heap.take_fault(), None);
    let fault = heap.take_late_fault().expect("a fault");
    assert_eq!((fault.kind, fault.address), (FaultKind::WriteAfterFree, damaged));
    assert_eq!(heap.take_late_fault(), None);
    assert_eq!(heap.free(Domain::Obj, damaged).expect_err("a fault").kind, FaultKind::DoubleFree);
    heap.free(Domain::Obj, moved).expect("live");
    heap.verify().expect("holds");
}

#[test]
fn a_block_that_waits_is_known_however_many_were_freed_before() {
    const MANY: usize = 66_000;
    let heap = quarantining((MANY + 10) * 48);
    let at = || heap.malloc(Domain::Raw, 16).expect("memory").as_ptr() as usize;
    let first = at();
    heap.free(Domain::Raw, first).expect("live");
    assert!(heap.empty_quarantine());
    if at() != first {
        // glibc gives out the freed block again. Other C libraries may not, and sanitizers keep freed memory.
        return;
    }
    let others: Vec<_> = (0..MANY).map(|_| at()).collect();
    others.into_iter().for_each(|block| heap.free(Domain::Raw, block).expect("live"));
    heap.free(Domain::Raw, first).expect("live");
    for _ in 0..MANY - 100 {
        heap.free(Domain::Raw, at()).expect("live");
    }
    assert_eq!(heap.free(Domain::Raw, first).expect_err("a fault").kind, FaultKind::DoubleFree);
}

#[test]
#[cfg_attr(miri, ignore = "Miri's C library does not say how large blocks are")]
fn waiting_makes_no_request_fail_and_ends_for_none_that_must_fail() {
    let options = HeapOptions { memory_limit: Some(3 << 20), quarantine: 1 << 30, ..HeapOptions::new(&profile::V3_13) };
    let heap = CheckedHeap::new(options).expect("a heap");
    let at = |block: Option<std::ptr::NonNull<u8>>| block.expect("memory").as_ptr() as usize;
    // The limit leaves no room for the old block and the new one.
    let block = at(heap.malloc(Domain::Raw, 2 << 20));
    let block = at(heap.realloc(Domain::Raw, Some(block), 1_900_000).expect("live"));
    let waiting = at(heap.malloc(Domain::Obj, 64));
    heap.free(Domain::Obj, waiting).expect("live");
    assert_eq!(heap.malloc(Domain::Raw, isize::MAX as usize), None);
    assert_eq!(heap.calloc(Domain::Raw, 1 << 40, 1 << 40), None);
    assert_eq!(heap.malloc(Domain::Raw, 4 << 20), None);
    assert_eq!(heap.free(Domain::Obj, waiting).expect_err("a fault").kind, FaultKind::DoubleFree);
    // Requests that failed on purpose are over.
    heap.set_nomemory(0, Some(1)).expect("memory");
    assert_eq!(heap.malloc(Domain::Raw, 10), None);
    heap.free(Domain::Raw, block).expect("live");
    at(heap.malloc(Domain::Raw, 2_900_000));
}

#[test]
fn a_thousand_heaps_come_and_go() {
    let count = if cfg!(miri) { 20 } else { 1000 };
    let heaps: Vec<CheckedHeap> = (0..count).map(|_| heap()).collect();
    for heap in &heaps {
        heap.malloc(Domain::Obj, 100).expect("memory");
        heap.malloc(Domain::Raw, 100_000).expect("memory");
    }
}
