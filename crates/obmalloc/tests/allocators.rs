//! Allocators of a checked heap: called, wrapped, put back; and requests that fail on purpose.

use std::collections::HashSet;
use std::ptr::{self, NonNull};

#[path = "common/guests.rs"]
mod guests;

use guests::Wrapper;
use obmalloc::{Domain, FaultKind, HeapOptions, NoHooks, ObjectHeap, profile};

/// Bytes that a wrapper puts before a block where it puts any.
const HEADER: usize = 32;

fn heap() -> ObjectHeap {
    ObjectHeap::new(HeapOptions::new(&profile::V3_14), Box::new(NoHooks)).expect("a heap")
}

fn address(block: Option<NonNull<u8>>) -> usize {
    block.expect("memory").as_ptr().expose_provenance()
}

/// Walks the heap, which takes Miri as long as a thousand calls.
fn look(heap: &ObjectHeap) {
    if !cfg!(miri) {
        heap.verify().expect("holds");
    }
}

/// Allocates, writes, resizes, looks and frees, in sizes on both sides of the threshold. `freed` has the heap's freed blocks.
fn work(heap: &ObjectHeap, domain: Domain, freed: &mut HashSet<usize>) {
    for size in [0, 1, 40, 500, 600, 5000] {
        let block = address(heap.blocks().malloc(domain, size));
        // SAFETY: a live block of that size.
        unsafe { ptr::with_exposed_provenance_mut::<u8>(block).write_bytes(7, size) };
        assert!(heap.blocks().usable_size(domain, block).expect("live") >= size);
        if size > 17 {
            // A block may have been freed there, because C's malloc gives memory again in other sizes.
            let kind = if freed.contains(&(block + 16)) { FaultKind::DoubleFree } else { FaultKind::InteriorPointer };
            assert_eq!(heap.blocks().free(domain, block + 16).expect_err("inside").kind, kind);
        }
        let moved = address(heap.blocks().realloc(domain, Some(block), 2 * size + 100).expect("live"));
        // SAFETY: as above.
        let bytes = unsafe { std::slice::from_raw_parts(ptr::with_exposed_provenance::<u8>(moved), size) };
        assert!(bytes.iter().all(|&byte| byte == 7));
        look(heap);
        heap.blocks().free(domain, moved).expect("live");
        assert_eq!(heap.blocks().free(domain, moved).expect_err("freed").kind, FaultKind::DoubleFree);
        let zeroed = address(heap.blocks().calloc(domain, 2, size));
        heap.blocks().free(domain, zeroed).expect("live");
        freed.extend([block, moved, zeroed]);
        look(heap);
    }
}

#[test]
fn wrappers_nest_and_go() {
    for header in [0, HEADER] {
        for hooked in [false, true] {
            for domain in Domain::ALL {
                let heap = heap();
                if hooked {
                    heap.setup_debug_hooks().expect("memory");
                }
                let own = heap.allocator(domain).expect("memory");
                let wrapper = Wrapper::put_in(&heap, domain, header);
                let freed = &mut HashSet::new();
                work(&heap, domain, freed);
                let calls = wrapper.calls.get();
                assert!(calls >= 24 && heap.calls_guests());
                heap.set_allocator(domain, own).expect("it has been in");
                assert!(!heap.calls_guests());
                work(&heap, domain, freed);
                assert_eq!((wrapper.calls.get(), heap.allocator(domain)), (calls, Ok(own)));
                assert_eq!(heap.allocated_blocks(), 0);
            }
        }
    }
}

#[test]
fn what_is_around_raw_sees_what_pymalloc_passes_on() {
    let heap = heap();
    let small = address(heap.blocks().malloc(Domain::Obj, 8));
    // This wrapper puts no header before blocks, because it also gets back pymalloc's tables, which raw gave before it was put in.
    let wrapper = Wrapper::put_in(&heap, Domain::Raw, 0);
    let large = address(heap.blocks().malloc(Domain::Mem, 1000));
    heap.blocks().free(Domain::Obj, small).expect("live");
    assert_eq!(wrapper.calls.get(), 1);
    let large = address(heap.blocks().realloc(Domain::Mem, Some(large), 3000).expect("live"));
    heap.verify().expect("holds");
    heap.blocks().free(Domain::Mem, large).expect("live");
    assert_eq!(wrapper.calls.get(), 3);
    // At its end the heap gives back what is left, and asks no wrapper.
    heap.blocks().malloc(Domain::Obj, 2000).expect("memory");
    heap.blocks().malloc(Domain::Raw, 20).expect("memory");
    let calls = wrapper.calls.get();
    assert!(calls >= 5);
    drop(heap);
    assert_eq!(wrapper.calls.get(), calls);
}

#[test]
fn blocks_that_passed_through_a_wrapper_are_plain_blocks_when_it_is_gone() {
    let heap = heap();
    let own = heap.allocator(Domain::Obj).expect("memory");
    Wrapper::put_in(&heap, Domain::Obj, 0);
    let blocks: Vec<usize> = (0..300).map(|size| address(heap.blocks().malloc(Domain::Obj, size * 3))).collect();
    assert_eq!(heap.blocks().usable_size(Domain::Obj, blocks[1]), Ok(3));
    heap.set_allocator(Domain::Obj, own).expect("it has been in");
    assert!(!heap.calls_guests());
    assert_eq!(heap.blocks().usable_size(Domain::Obj, blocks[1]), Ok(16));
    for &block in &blocks {
        heap.blocks().free(Domain::Obj, block).expect("live");
    }
    heap.verify().expect("holds");
    assert_eq!(heap.allocated_blocks(), 0);
}

#[test]
fn what_is_taken_directly_is_no_block_of_the_domain_but_known() {
    let heap = heap();
    let (obj, own) = (heap.allocator(Domain::Obj).expect("memory"), heap.own_allocators().expect("memory"));
    let grant = own.malloc(obj, 32).expect("its own").expect("memory");
    heap.verify().expect("holds");
    assert!(!heap.blocks().owns(grant));
    own.free(obj, Some(grant)).expect("a grant");
    heap.verify().expect("holds");
    assert_eq!(heap.allocated_blocks(), 0);
}

#[test]
fn requests_fail_from_one_number_to_another() {
    let heap = heap();
    let block = address(heap.blocks().malloc(Domain::Obj, 8));
    let asked = |size: usize| -> String {
        let mut answer = |_| match heap.blocks().malloc(Domain::Obj, size) {
            Some(block) => {
                heap.blocks().free(Domain::Obj, block.as_ptr().expose_provenance()).expect("live");
                '+'
            }
            None => '-',
        };
        (0..6).map(&mut answer).collect()
    };
    for (start, stop, small, large) in [
        (0, None, "------", "------"),
        (2, None, "++----", "+-----"),
        (2, Some(4), "++--++", "+--+++"),
        (1, Some(0), "+-----", "------"),
    ] {
        for (size, expected) in [(8, small), (5000, large)] {
            heap.set_nomemory(start, stop).expect("memory");
            assert_eq!(asked(size), expected, "set_nomemory({start}, {stop:?}), {size} bytes");
        }
    }
    assert_eq!(heap.blocks().realloc(Domain::Obj, Some(block), 300), Ok(None));
    heap.blocks().free(Domain::Obj, block).expect("live");
    heap.remove_nomemory().expect("memory");
    assert_eq!(asked(8), "++++++");
    heap.set_nomemory(0, None).expect("memory");
    let short = heap.allocator(Domain::Obj).expect("memory");
    heap.remove_nomemory().expect("memory");
    assert_ne!(heap.allocator(Domain::Obj), Ok(short));
    // An allocator that was taken out still works, and no longer fails on purpose.
    let own = heap.own_allocators().expect("memory");
    let grant = own.malloc(short, 8).expect("its own").expect("memory");
    own.free(short, Some(grant)).expect("a grant");
    heap.verify().expect("holds");
    assert_eq!(heap.allocated_blocks(), 0);
}

#[test]
fn what_came_in_between_stays_when_requests_fail_no_more() {
    let heap = heap();
    let own = Domain::ALL.map(|domain| heap.allocator(domain));
    heap.set_nomemory(1000, None).expect("memory");
    heap.setup_debug_hooks().expect("memory");
    let blocks = Domain::ALL.map(|domain| (domain, address(heap.blocks().malloc(domain, 40))));
    heap.remove_nomemory().expect("memory");
    assert_eq!(Domain::ALL.map(|domain| heap.allocator(domain)), own);
    for (domain, block) in blocks {
        heap.blocks().free(domain, block).expect("live");
    }
    heap.verify().expect("holds");
    assert_eq!(heap.allocated_blocks(), 0);
}
