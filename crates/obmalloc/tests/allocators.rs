//! Allocators of a checked heap: called, wrapped, put back; and requests that fail on purpose.

use std::ffi::c_void;
use std::ptr::{self, NonNull};

use obmalloc::{Allocator, CheckedHeap, Domain, FaultKind, HeapOptions, profile};

/// Bytes that [`Wrapper`] puts before a block where it puts any.
const HEADER: usize = 32;

/// Counts the calls, and passes them on with a header before each block.
struct Wrapper {
    inner: Allocator,
    calls: usize,
    header: usize,
}

impl Wrapper {
    fn around(inner: Allocator, header: usize) -> Box<Self> {
        Box::new(Self { inner, calls: 0, header })
    }

    fn allocator(&mut self) -> Allocator {
        Allocator { ctx: ptr::from_mut(self).cast(), malloc, calloc, realloc, free }
    }

    fn given(&self, block: *mut c_void) -> *mut c_void {
        if block.is_null() { block } else { block.wrapping_byte_add(self.header) }
    }
}

unsafe fn wrapper<'a>(ctx: *mut c_void) -> &'a mut Wrapper {
    // SAFETY: the wrapper whose functions these are, which no call holds on to.
    let wrapper = unsafe { &mut *ctx.cast::<Wrapper>() };
    wrapper.calls += 1;
    wrapper
}

unsafe extern "C" fn malloc(ctx: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: called as the inner allocator may be.
    unsafe {
        let wrapper = wrapper(ctx);
        wrapper.given((wrapper.inner.malloc)(wrapper.inner.ctx, size + wrapper.header))
    }
}

unsafe extern "C" fn calloc(ctx: *mut c_void, count: usize, size: usize) -> *mut c_void {
    // SAFETY: as above.
    unsafe {
        let wrapper = wrapper(ctx);
        wrapper.given((wrapper.inner.calloc)(wrapper.inner.ctx, 1, count * size + wrapper.header))
    }
}

unsafe extern "C" fn realloc(ctx: *mut c_void, address: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: as above.
    unsafe {
        let wrapper = wrapper(ctx);
        let block = if address.is_null() { address } else { address.wrapping_byte_sub(wrapper.header) };
        wrapper.given((wrapper.inner.realloc)(wrapper.inner.ctx, block, size + wrapper.header))
    }
}

unsafe extern "C" fn free(ctx: *mut c_void, address: *mut c_void) {
    // SAFETY: as above.
    unsafe {
        let wrapper = wrapper(ctx);
        let block = if address.is_null() { address } else { address.wrapping_byte_sub(wrapper.header) };
        (wrapper.inner.free)(wrapper.inner.ctx, block);
    }
}

fn heap() -> CheckedHeap {
    CheckedHeap::new(HeapOptions::new(&profile::V3_14)).expect("a heap")
}

fn address(block: Option<NonNull<u8>>) -> usize {
    block.expect("memory").as_ptr().expose_provenance()
}

/// Walks the heap, which takes Miri as long as a thousand calls.
fn look(heap: &CheckedHeap) {
    if !cfg!(miri) {
        heap.verify().expect("holds");
    }
}

/// Allocates, writes, resizes, looks and frees, in sizes on both sides of the threshold.
fn work(heap: &CheckedHeap, domain: Domain) {
    for size in [0, 1, 40, 500, 600, 5000] {
        let block = address(heap.malloc(domain, size));
        // SAFETY: a live block of that size.
        unsafe { ptr::with_exposed_provenance_mut::<u8>(block).write_bytes(7, size) };
        assert!(heap.usable_size(domain, block).expect("live") >= size);
        if size > 17 {
            assert_eq!(heap.free(domain, block + 16).expect_err("inside").kind, FaultKind::InteriorPointer);
        }
        let moved = address(heap.realloc(domain, Some(block), 2 * size + 100).expect("live"));
        // SAFETY: as above.
        let bytes = unsafe { std::slice::from_raw_parts(ptr::with_exposed_provenance::<u8>(moved), size) };
        assert!(bytes.iter().all(|&byte| byte == 7));
        look(heap);
        heap.free(domain, moved).expect("live");
        assert_eq!(heap.free(domain, moved).expect_err("freed").kind, FaultKind::DoubleFree);
        let zeroed = address(heap.calloc(domain, 2, size));
        heap.free(domain, zeroed).expect("live");
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
                let own = heap.allocator(domain);
                let mut inner = Wrapper::around(own, header);
                let mut outer = Wrapper::around(inner.allocator(), header);
                // SAFETY: they pass everything on to the allocator that was in, and live until it is back.
                unsafe { heap.set_allocator(domain, outer.allocator()) };
                work(&heap, domain);
                assert_eq!(inner.calls, outer.calls);
                assert!(inner.calls >= 24);
                // SAFETY: none of its blocks is left.
                unsafe { heap.set_allocator(domain, own) };
                let calls = inner.calls;
                work(&heap, domain);
                assert_eq!((inner.calls, heap.allocator(domain)), (calls, own));
                assert_eq!(heap.allocated_blocks(), 0);
            }
        }
    }
}

#[test]
fn what_is_around_raw_sees_what_pymalloc_passes_on() {
    let heap = heap();
    let small = address(heap.malloc(Domain::Obj, 8));
    let raw = heap.allocator(Domain::Raw);
    // Without a header, because it is to take back what pymalloc's tables have of raw, which is older.
    let mut wrapper = Wrapper::around(raw, 0);
    // SAFETY: it passes everything on as it is.
    unsafe { heap.set_allocator(Domain::Raw, wrapper.allocator()) };
    let large = address(heap.malloc(Domain::Mem, 1000));
    heap.free(Domain::Obj, small).expect("live");
    assert_eq!(wrapper.calls, 1);
    let large = address(heap.realloc(Domain::Mem, Some(large), 3000).expect("live"));
    heap.verify().expect("holds");
    heap.free(Domain::Mem, large).expect("live");
    assert_eq!(wrapper.calls, 3);
    // What is left when the heap goes, goes back through what is in then.
    heap.malloc(Domain::Obj, 2000).expect("memory");
    heap.malloc(Domain::Raw, 20).expect("memory");
    drop(heap);
    assert!(wrapper.calls >= 7);
}

#[test]
fn blocks_that_passed_through_a_wrapper_are_plain_blocks_when_it_is_gone() {
    let heap = heap();
    let own = heap.allocator(Domain::Obj);
    let mut wrapper = Wrapper::around(own, 0);
    // SAFETY: it passes everything on as it is.
    unsafe { heap.set_allocator(Domain::Obj, wrapper.allocator()) };
    let blocks: Vec<usize> = (0..300).map(|size| address(heap.malloc(Domain::Obj, size * 3))).collect();
    assert_eq!(heap.usable_size(Domain::Obj, blocks[1]), Ok(3));
    // SAFETY: the blocks are its own.
    unsafe { heap.set_allocator(Domain::Obj, own) };
    assert_eq!(heap.usable_size(Domain::Obj, blocks[1]), Ok(16));
    for &block in &blocks {
        heap.free(Domain::Obj, block).expect("live");
    }
    heap.verify().expect("holds");
    assert_eq!(heap.allocated_blocks(), 0);
}

#[test]
fn what_is_taken_directly_is_counted_when_it_is_told_of() {
    let heap = heap();
    let obj = heap.allocator(Domain::Obj);
    // SAFETY: an allocator of this heap, called as it is meant to be.
    unsafe {
        let block = (obj.malloc)(obj.ctx, 32);
        let begin = block.expose_provenance();
        heap.verify_with(|at, size| (at..at + size).contains(&begin)).expect("holds");
        assert!(heap.verify().is_err(), "a block that nobody knows");
        (obj.free)(obj.ctx, block);
    }
    heap.verify().expect("holds");
}

#[test]
fn requests_fail_from_one_number_to_another() {
    let heap = heap();
    let block = address(heap.malloc(Domain::Obj, 8));
    let asked = |size: usize| -> String {
        let mut answer = |_| match heap.malloc(Domain::Obj, size) {
            Some(block) => {
                heap.free(Domain::Obj, block.as_ptr().expose_provenance()).expect("live");
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
    assert_eq!(heap.realloc(Domain::Obj, Some(block), 300), Ok(None));
    heap.free(Domain::Obj, block).expect("live");
    heap.remove_nomemory();
    assert_eq!(asked(8), "++++++");
    heap.set_nomemory(0, None).expect("memory");
    let short = heap.allocator(Domain::Obj);
    heap.remove_nomemory();
    assert_ne!(heap.allocator(Domain::Obj), short);
    // One that was taken out goes on working, and fails no more.
    // SAFETY: an allocator of this heap, called as it is meant to be.
    unsafe { (short.free)(short.ctx, (short.malloc)(short.ctx, 8)) };
    heap.verify().expect("holds");
    assert_eq!(heap.allocated_blocks(), 0);
}

#[test]
fn what_came_in_between_stays_when_requests_fail_no_more() {
    let heap = heap();
    let own = Domain::ALL.map(|domain| heap.allocator(domain));
    heap.set_nomemory(1000, None).expect("memory");
    heap.setup_debug_hooks().expect("memory");
    let blocks = Domain::ALL.map(|domain| (domain, address(heap.malloc(domain, 40))));
    assert_eq!(heap.remove_nomemory(), own.map(Some));
    for (domain, block) in blocks {
        heap.free(domain, block).expect("live");
    }
    heap.verify().expect("holds");
    assert_eq!(heap.allocated_blocks(), 0);
}
