//! Edge cases: sizes at their limits, which blocks a realloc moves, failures that change nothing, and the calls that pymalloc itself makes, in
//! CPython's order.

use std::cell::RefCell;
use std::ffi::c_void;
use std::ptr::{self, NonNull};
use std::rc::Rc;

use obmalloc::profile::{self, Geometry, Profile};
use obmalloc::{Allocator, ArenaAllocator, Domain, Heap, HeapError, HeapOptions, PY_SSIZE_T_MAX};

fn heap() -> Heap {
    Heap::new(&profile::V3_14).expect("a heap")
}

fn address(block: Option<NonNull<u8>>) -> usize {
    block.expect("memory").as_ptr() as usize
}

#[test]
fn zero_bytes_give_a_block_of_their_own() {
    let heap = heap();
    for domain in Domain::ALL {
        let blocks = [heap.malloc(domain, 0), heap.malloc(domain, 0), heap.calloc(domain, 0, 9), heap.calloc(domain, 9, 0)];
        let mut addresses = blocks.map(address);
        addresses.sort_unstable();
        assert!(addresses.windows(2).all(|pair| pair[0] != pair[1]));
        // SAFETY: four live blocks of this domain.
        blocks.into_iter().for_each(|block| unsafe { heap.free(domain, block) });
    }
    // Zero is not small: it went to raw, and no arena was needed.
    assert_eq!(heap.arenas().len(), 0);
}

#[test]
fn sizes_above_the_limit_are_refused_without_asking_anybody() {
    thread_local! { static ASKED: RefCell<u32> = const { RefCell::new(0) }; }
    unsafe extern "C-unwind" fn malloc(_: *mut c_void, _: usize) -> *mut c_void {
        ASKED.with_borrow_mut(|asked| *asked += 1);
        ptr::null_mut()
    }
    unsafe extern "C-unwind" fn calloc(ctx: *mut c_void, _: usize, size: usize) -> *mut c_void {
        // SAFETY: as harmless as `malloc` itself.
        unsafe { malloc(ctx, size) }
    }
    unsafe extern "C-unwind" fn realloc(ctx: *mut c_void, _: *mut c_void, size: usize) -> *mut c_void {
        // SAFETY: as harmless as `malloc` itself.
        unsafe { malloc(ctx, size) }
    }
    unsafe extern "C-unwind" fn free(_: *mut c_void, _: *mut c_void) {}
    let heap = heap();
    let block = heap.malloc(Domain::Raw, 10);
    let before = heap.allocator(Domain::Raw);
    // SAFETY: an allocator that gives nothing; blocks of the one before are freed after it is back.
    unsafe { heap.set_allocator(Domain::Raw, Allocator { ctx: ptr::null_mut(), malloc, calloc, realloc, free }) };
    for domain in Domain::ALL {
        for size in [PY_SSIZE_T_MAX + 1, usize::MAX] {
            assert_eq!(heap.malloc(domain, size), None);
            assert_eq!(heap.calloc(domain, 1, size), None);
            assert_eq!(heap.calloc(domain, size, 1), None);
            // SAFETY: refused before the block is looked at.
            assert_eq!(unsafe { heap.realloc(domain, block, size) }, None);
        }
        for (count, size) in [(1 << 33, 1 << 33), (usize::MAX, usize::MAX), (PY_SSIZE_T_MAX / 2 + 1, 2)] {
            assert_eq!(heap.calloc(domain, count, size), None, "{count} * {size}");
        }
    }
    assert_eq!(ASKED.take(), 0);
    for domain in Domain::ALL {
        assert_eq!(heap.malloc(domain, PY_SSIZE_T_MAX), None);
        assert_eq!(heap.calloc(domain, PY_SSIZE_T_MAX / 2, 2), None);
    }
    assert_eq!(ASKED.take(), 6, "at the limit, the guests that there are are asked");
    // SAFETY: the allocator that was there before, and a block of it.
    unsafe {
        heap.set_allocator(Domain::Raw, before);
        heap.free(Domain::Raw, block);
    }
}

#[test]
fn realloc_stays_within_three_quarters_and_moves_otherwise() {
    let heap = heap();
    let (step, stride) = if cfg!(miri) { (73, 37) } else { (1, 1) };
    for size in (1..=512usize).step_by(step) {
        let class = size.next_multiple_of(16);
        for wanted in (0..=600usize).step_by(stride) {
            let block = heap.malloc(Domain::Obj, size);
            let before = address(block);
            // SAFETY: live blocks of this domain, each freed once.
            unsafe {
                block.expect("memory").write_bytes(7, size);
                let moved = heap.realloc(Domain::Obj, block, wanted);
                let stays = wanted <= class && 4 * wanted > 3 * class;
                assert_eq!(address(moved) == before, stays, "from {size} to {wanted}");
                let bytes = std::slice::from_raw_parts(moved.expect("memory").as_ptr(), wanted.min(size));
                assert!(bytes.iter().all(|&byte| byte == 7));
                heap.free(Domain::Obj, moved);
            }
        }
    }
    assert_eq!(heap.allocated_blocks(), 0);
}

#[test]
fn a_block_of_raw_never_comes_back_into_pymalloc() {
    let heap = heap();
    let block = heap.malloc(Domain::Obj, 513);
    // SAFETY: live blocks of this domain, freed once.
    unsafe {
        let block = heap.realloc(Domain::Obj, block, 16);
        assert_eq!((heap.arenas().len(), heap.allocated_blocks()), (0, 1));
        heap.free(Domain::Obj, block);
        let block = heap.malloc(Domain::Obj, 16);
        let block = heap.realloc(Domain::Obj, block, 0);
        assert_eq!(heap.stats().classes[0].blocks_in_use, 0, "zero bytes move a block out of pymalloc");
        heap.free(Domain::Obj, block);
    }
    assert_eq!(heap.allocated_blocks(), 0);
}

#[test]
fn a_block_is_whole_again_whatever_pointer_it_was_freed_with() {
    // Only Miri sees a difference. Elsewhere a pointer is an address.
    let part = |block: NonNull<u8>| {
        // SAFETY: a live block; the reference is to its first byte alone.
        let first = unsafe { &mut *block.as_ptr() };
        Some(NonNull::from(first))
    };
    let heap = heap();
    for size in [16, 512] {
        // SAFETY: live blocks of these sizes, freed once.
        unsafe {
            let block = heap.malloc(Domain::Mem, size).expect("memory");
            heap.free(Domain::Mem, part(block));
            let again = heap.malloc(Domain::Mem, size).expect("memory");
            assert_eq!(again, block);
            again.write_bytes(1, size);
            let moved = heap.realloc(Domain::Mem, part(again), size / 2).expect("memory");
            moved.write_bytes(1, size / 2);
            heap.free(Domain::Mem, part(moved));
        }
    }
    heap.verify().expect("holds");
}

/// What an allocator below the heap does, and which calls it got.
#[derive(Default)]
struct Below {
    calls: Vec<String>,
    /// The call that fails, counted from 0; all calls after it succeed.
    fail_at: Option<usize>,
    inner: Option<(Allocator, ArenaAllocator)>,
}

/// A heap and the allocators below it. The heap is dropped first.
struct Rig {
    heap: Heap,
    below: Rc<RefCell<Below>>,
}

impl Below {
    /// Puts itself below `heap`.
    fn under(heap: Heap) -> Rig {
        let inner = Some((heap.allocator(Domain::Raw), heap.arena_allocator()));
        let below = Rc::new(RefCell::new(Self { inner, ..Self::default() }));
        let ctx = Rc::as_ptr(&below).cast_mut().cast();
        // SAFETY: passes on to what was there, outlives the heap in the rig, and does not unwind.
        unsafe {
            heap.set_allocator(Domain::Raw, Allocator { ctx, malloc, calloc, realloc, free });
            heap.set_arena_allocator(ArenaAllocator { ctx, alloc: arena_alloc, free: arena_free });
        }
        Rig { heap, below }
    }

    fn refuses(&mut self, call: String) -> bool {
        self.calls.push(call);
        self.fail_at == Some(self.calls.len() - 1)
    }
}

macro_rules! below {
    ($ctx:ident, $($call:tt)+) => {{
        // SAFETY: the context that `under` installed.
        let mut below = unsafe { &*$ctx.cast::<RefCell<Below>>() }.borrow_mut();
        if below.refuses(format!($($call)+)) {
            return ptr::null_mut();
        }
        below.inner.expect("installed")
    }};
}

unsafe extern "C-unwind" fn malloc(ctx: *mut c_void, size: usize) -> *mut c_void {
    let (raw, _) = below!(ctx, "malloc {size}");
    // SAFETY: passed on.
    unsafe { (raw.malloc)(raw.ctx, size) }
}

unsafe extern "C-unwind" fn calloc(ctx: *mut c_void, count: usize, size: usize) -> *mut c_void {
    let (raw, _) = below!(ctx, "calloc {count} {size}");
    // SAFETY: passed on.
    unsafe { (raw.calloc)(raw.ctx, count, size) }
}

unsafe extern "C-unwind" fn realloc(ctx: *mut c_void, address: *mut c_void, size: usize) -> *mut c_void {
    let (raw, _) = below!(ctx, "realloc {} {size}", if address.is_null() { "NULL" } else { "block" });
    // SAFETY: passed on.
    unsafe { (raw.realloc)(raw.ctx, address, size) }
}

unsafe extern "C-unwind" fn free(ctx: *mut c_void, address: *mut c_void) {
    // SAFETY: as in `below!`; passed on.
    unsafe {
        let mut below = (*ctx.cast::<RefCell<Below>>()).borrow_mut();
        below.calls.push("free".into());
        let (raw, _) = below.inner.expect("installed");
        (raw.free)(raw.ctx, address);
    }
}

unsafe extern "C-unwind" fn arena_alloc(ctx: *mut c_void, size: usize) -> *mut c_void {
    let (_, arena) = below!(ctx, "arena {size}");
    // SAFETY: passed on.
    unsafe { (arena.alloc)(arena.ctx, size) }
}

unsafe extern "C-unwind" fn arena_free(ctx: *mut c_void, address: *mut c_void, size: usize) {
    // SAFETY: as in `below!`; passed on.
    unsafe {
        let mut below = (*ctx.cast::<RefCell<Below>>()).borrow_mut();
        below.calls.push(format!("release {size}"));
        let (_, arena) = below.inner.expect("installed");
        (arena.free)(arena.ctx, address, size);
    }
}

#[test]
fn the_first_small_block_asks_below_in_the_order_of_cpython() {
    let asked = |profile: &Profile| {
        let Rig { heap, below } = Below::under(Heap::new(profile).expect("a heap"));
        let block = heap.malloc(Domain::Obj, 1);
        // SAFETY: a live block.
        unsafe { heap.free(Domain::Obj, block) };
        let calls = std::mem::take(&mut below.borrow_mut().calls);
        drop(heap);
        calls
    };
    assert_eq!(asked(&profile::V3_8), ["realloc NULL 768", "arena 262144", "release 262144"]);
    assert_eq!(asked(&profile::V3_9), ["realloc NULL 768", "arena 262144"]);
    // The arenas of a heap of ours begin at multiples of their size, so one node of each level is enough.
    assert_eq!(asked(&profile::V3_10), ["realloc NULL 768", "arena 1048576", "calloc 1 8192", "calloc 1 2048"]);
    assert_eq!(asked(&profile::V3_11), ["realloc NULL 768", "arena 1048576", "calloc 1 262144", "calloc 1 131072"]);
}

#[test]
fn whichever_call_below_fails_the_heap_holds_and_goes_on() {
    // The fifth call is the raw block that takes the place of a small one.
    for fail_at in 0..4 {
        let Rig { heap, below } = Below::under(heap());
        below.borrow_mut().fail_at = Some(fail_at);
        let block = heap.malloc(Domain::Obj, 100);
        assert!(block.is_some(), "where there is no arena, raw gives the block");
        assert_eq!(heap.arenas().len(), 0);
        heap.verify().expect("holds");
        let small = heap.malloc(Domain::Obj, 100);
        assert_eq!(heap.arenas().len(), 1, "the next request finds an arena");
        heap.verify().expect("holds");
        // SAFETY: two live blocks.
        unsafe {
            heap.free(Domain::Obj, block);
            heap.free(Domain::Obj, small);
        }
        assert_eq!(heap.allocated_blocks(), 0);
        drop(heap);
    }
}

#[test]
fn a_realloc_that_fails_leaves_the_old_block() {
    let Rig { heap, below } = Below::under(heap());
    let small = heap.malloc(Domain::Mem, 40).expect("memory");
    let large = heap.malloc(Domain::Mem, 4000).expect("memory");
    // SAFETY: live blocks of these sizes.
    unsafe {
        small.write_bytes(1, 40);
        large.write_bytes(2, 4000);
        for (block, old, byte) in [(small, 40, 1), (large, 4000, 2)] {
            let asked = below.borrow().calls.len();
            below.borrow_mut().fail_at = Some(asked);
            assert_eq!(heap.realloc(Domain::Mem, Some(block), 100_000), None);
            assert!(std::slice::from_raw_parts(block.as_ptr(), old).iter().all(|&found| found == byte));
        }
        assert_eq!(heap.allocated_blocks(), 2);
        heap.verify().expect("holds");
        heap.free(Domain::Mem, Some(small));
        heap.free(Domain::Mem, Some(large));
    }
    assert_eq!(heap.allocated_blocks(), 0);
    drop(heap);
}

#[test]
fn an_allocator_taken_out_can_be_called_and_put_back() {
    let heap = heap();
    let obj = heap.allocator(Domain::Obj);
    // SAFETY: an allocator of this heap, called as it is meant to be.
    unsafe {
        let block = (obj.malloc)(obj.ctx, 32);
        assert_eq!(heap.allocated_blocks(), 1);
        (obj.free)(obj.ctx, block);
        heap.set_allocator(Domain::Obj, obj);
    }
    assert_eq!(heap.allocator(Domain::Obj), obj);
    assert_eq!(heap.allocated_blocks(), 0);
}

#[test]
fn two_pools_make_an_arena_and_one_does_not() {
    let geometry = Geometry { arena_size: 64 << 10, pool_size: 32 << 10, alignment: 16, small_request_threshold: 4096 };
    for profile in [&profile::V3_8, &profile::V3_14] {
        let heap = Heap::with_options(HeapOptions { geometry: Some(geometry), ..HeapOptions::new(profile) }).expect("a heap");
        let blocks: Vec<_> = (0..100).map(|_| heap.malloc(Domain::Obj, 4096).expect("memory")).collect();
        assert_eq!(heap.arenas().len(), 100_usize.div_ceil(2 * 7));
        for block in blocks {
            // SAFETY: each is freed once.
            unsafe { heap.free(Domain::Obj, Some(block)) };
            heap.verify().expect("holds");
        }
        assert!(heap.arenas().len() <= 1);
    }
}

#[test]
fn arenas_are_at_most_an_arena_apart() {
    let with = |arena_slack| Heap::with_options(HeapOptions { arena_slack, ..HeapOptions::new(&profile::V3_14) }).map(drop);
    let (pool, arena) = (16 << 10, 1 << 20);
    assert_eq!(with(arena), Ok(()));
    // Of the last one, bytes of an arena and of the slack add up to less than an arena.
    for arena_slack in [pool - 1, arena + pool, usize::MAX, usize::MAX - pool + 1] {
        assert_eq!(with(arena_slack), Err(HeapError::ArenaSlack), "{arena_slack}");
    }
}
