//! The rules of `guest/`, one small program each: to which guest, grant or block memory belongs, whatever a guest answers and does.

#[path = "common/guests.rs"]
mod guests;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::{self, NonNull};
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use guests::Wrapper;
use obmalloc::profile::{self, Geometry};
use obmalloc::{
    AllocatorId, Answer, ArenaGuest, Domain, Fault, FaultKind, Field, FieldKind, Guest, GuestFault, GuestFaultKind, HeapOptions,
    HookSet, Hooks, NoHooks, ObjectError, ObjectHeap, OwnAllocators, OwnError, SetError, Threw, TypeId, TypeSpec, Value, Verb,
    Visit,
};

/// Four pools an arena.
const TINY: Geometry = Geometry { arena_size: 64 << 10, pool_size: 16 << 10, alignment: 16, small_request_threshold: 512 };

fn heap() -> Rc<ObjectHeap> {
    heap_with(HeapOptions::new(&profile::V3_13))
}

fn heap_with(options: HeapOptions) -> Rc<ObjectHeap> {
    Rc::new(ObjectHeap::new(options, Box::new(NoHooks)).expect("a heap"))
}

fn at(block: Option<NonNull<u8>>) -> usize {
    block.expect("memory").as_ptr().expose_provenance()
}

fn malloc(heap: &ObjectHeap, domain: Domain, size: usize) -> usize {
    at(heap.blocks().malloc(domain, size))
}

fn free(heap: &ObjectHeap, domain: Domain, block: usize) {
    heap.blocks().free(domain, block).expect("live");
}

fn write(address: usize, bytes: &[u8]) {
    // SAFETY: the tests write to blocks and grants only, some of them to guard bytes.
    unsafe { ptr::with_exposed_provenance_mut::<u8>(address).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
}

fn read(address: usize, size: usize) -> Vec<u8> {
    // SAFETY: as above.
    unsafe { std::slice::from_raw_parts(ptr::with_exposed_provenance(address), size) }.to_vec()
}

/// Where a guest is called: its heap, the heap's own allocators, and the one that was in before.
struct Of<'a> {
    heap: &'a ObjectHeap,
    own: OwnAllocators<'a>,
    below: AllocatorId,
}

impl Of<'_> {
    fn malloc(&self, size: usize) -> Answer {
        self.own.malloc(self.below, size).map_err(|_| Threw(1))
    }
    fn realloc(&self, address: usize, size: usize) -> Answer {
        self.own.realloc(self.below, Some(address), size).map_err(|_| Threw(2))
    }
    fn free(&self, address: usize) -> Result<(), Threw> {
        self.own.free(self.below, Some(address)).map_err(|_| Threw(3))
    }
}

type Give = Box<dyn Fn(&Of<'_>, usize) -> Answer>;
type Resize = Box<dyn Fn(&Of<'_>, usize, usize) -> Answer>;
type Release = Box<dyn Fn(&Of<'_>, usize) -> Result<(), Threw>>;

/// A guest made of functions. One that is not given passes the call on.
struct Deeds {
    malloc: Give,
    calloc: Give,
    realloc: Resize,
    free: Release,
}

impl Default for Deeds {
    fn default() -> Self {
        Self {
            malloc: Box::new(|of, size| of.malloc(size)),
            calloc: Box::new(|of, size| of.own.calloc(of.below, 1, size).map_err(|_| Threw(4))),
            realloc: Box::new(|of, address, size| of.realloc(address, size)),
            free: Box::new(|of, address| of.free(address)),
        }
    }
}

struct Script {
    heap: Weak<ObjectHeap>,
    below: AllocatorId,
    deeds: Deeds,
}

impl Script {
    fn with<T>(&self, own: &OwnAllocators<'_>, call: impl FnOnce(&Of<'_>) -> Result<T, Threw>) -> Result<T, Threw> {
        let heap = self.heap.upgrade().ok_or(Threw(99))?;
        call(&Of { heap: &heap, own: *own, below: self.below })
    }
}

impl Guest for Script {
    fn malloc(&self, own: &OwnAllocators<'_>, size: usize) -> Answer {
        self.with(own, |of| (self.deeds.malloc)(of, size))
    }
    fn calloc(&self, own: &OwnAllocators<'_>, count: usize, size: usize) -> Answer {
        self.with(own, |of| (self.deeds.calloc)(of, count * size))
    }
    fn realloc(&self, own: &OwnAllocators<'_>, address: Option<usize>, size: usize) -> Answer {
        self.with(own, |of| address.map_or_else(|| of.malloc(size), |address| (self.deeds.realloc)(of, address, size)))
    }
    fn free(&self, own: &OwnAllocators<'_>, address: Option<usize>) -> Result<(), Threw> {
        self.with(own, |of| address.map_or(Ok(()), |address| (self.deeds.free)(of, address)))
    }
}

impl Deeds {
    fn malloc(self, malloc: impl Fn(&Of<'_>, usize) -> Answer + 'static) -> Self {
        Self { malloc: Box::new(malloc), ..self }
    }
    fn calloc(self, calloc: impl Fn(&Of<'_>, usize) -> Answer + 'static) -> Self {
        Self { calloc: Box::new(calloc), ..self }
    }
    fn realloc(self, realloc: impl Fn(&Of<'_>, usize, usize) -> Answer + 'static) -> Self {
        Self { realloc: Box::new(realloc), ..self }
    }
    fn free(self, free: impl Fn(&Of<'_>, usize) -> Result<(), Threw> + 'static) -> Self {
        Self { free: Box::new(free), ..self }
    }

    /// Puts the guest into a domain, in front of the present allocator. Returns that one.
    fn put_in(self, heap: &Rc<ObjectHeap>, domain: Domain) -> AllocatorId {
        let below = heap.allocator(domain).expect("memory");
        let guest = heap.add_guest(Rc::new(Script { heap: Rc::downgrade(heap), below, deeds: self })).expect("memory");
        heap.set_allocator(domain, guest).expect("memory");
        below
    }
}

/// Walks the heap, which takes Miri as long as a thousand calls.
fn look(heap: &ObjectHeap) {
    if !cfg!(miri) {
        heap.verify().expect("holds");
    }
}

fn told(heap: &ObjectHeap) -> GuestFault {
    heap.take_guest_fault().expect("a guest failed")
}

fn kind(heap: &ObjectHeap) -> GuestFaultKind {
    told(heap).kind
}

/// One big grant: pieces of it are given one behind the other, and their sizes are kept beside it.
fn bump(chunk: &Rc<Cell<usize>>, next: Rc<Cell<usize>>) -> Deeds {
    let (sizes, chunk) = (Rc::new(RefCell::new(BTreeMap::new())), chunk.clone());
    let of_sizes = sizes.clone();
    let give = Rc::new(move |of: &Of<'_>, size: usize| -> Answer {
        if chunk.get() == 0 {
            chunk.set(of.own.calloc(of.below, 1, 100_000).map_err(|_| Threw(1))?.ok_or(Threw(2))?);
            next.set(chunk.get());
        }
        let block = next.get();
        next.set(block + size.max(1).next_multiple_of(16));
        sizes.borrow_mut().insert(block, size);
        Ok(Some(block))
    });
    let [malloc, calloc, moves] = [give.clone(), give.clone(), give];
    Deeds {
        malloc: Box::new(move |of, size| malloc(of, size)),
        calloc: Box::new(move |of, size| calloc(of, size)),
        realloc: Box::new(move |of, address, size| {
            let was = of_sizes.borrow().get(&address).copied().ok_or(Threw(5))?;
            let moved = moves(of, size)?;
            write(moved.unwrap_or(0), &read(address, was.min(size)));
            Ok(moved)
        }),
        free: Box::new(|_, _| Ok(())),
    }
}

#[test]
#[cfg_attr(miri, ignore = "it takes Miri minutes")]
fn a_bump_allocator_gives_pieces_of_one_raw_block() {
    for hooked in [false, true] {
        for domain in Domain::ALL {
            let heap = heap();
            if hooked {
                heap.setup_debug_hooks().expect("memory");
            }
            let (raw, chunk) = (heap.allocator(Domain::Raw).expect("memory"), Rc::new(Cell::new(0)));
            let guest = Script { heap: Rc::downgrade(&heap), below: raw, deeds: bump(&chunk, Rc::default()) };
            let before = heap.allocator(domain).expect("memory");
            let guest = heap.add_guest(Rc::new(guest)).expect("memory");
            heap.set_allocator(domain, guest).expect("memory");
            let blocks: Vec<usize> = (0..50).map(|size| malloc(&heap, domain, size)).collect();
            for (size, &block) in blocks.iter().enumerate() {
                write(block, &vec![size as u8; size]);
                assert_eq!(heap.blocks().usable_size(domain, block), Ok(size));
            }
            let own = heap.own_allocators().expect("memory");
            assert!(matches!(own.free(raw, Some(chunk.get())), Err(OwnError::Occupied(_))));
            assert!(matches!(own.realloc(raw, Some(chunk.get()), 8), Err(OwnError::Occupied(_))));
            for (size, &block) in blocks.iter().enumerate() {
                let moved = at(heap.blocks().realloc(domain, Some(block), 2 * size).expect("live"));
                assert_eq!(read(moved, size), vec![size as u8; size]);
                free(&heap, domain, moved);
            }
            heap.verify().expect("holds");
            heap.verify_guards().expect("holds");
            own.free(raw, Some(chunk.get())).expect("nothing lies in it");
            heap.set_allocator(domain, before).expect("it has been in");
            assert!(!heap.calls_guests());
            assert_eq!(heap.allocated_blocks(), 0);
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "Miri's malloc aligns small blocks to less than 16 bytes")]
fn wrappers_in_all_domains_are_around_each_other_and_come_out_in_any_order() {
    for header in [0, 16, 48] {
        for hooks in 0..3 {
            let heap = heap();
            let own = Domain::ALL.map(|domain| heap.allocator(domain).expect("memory"));
            if hooks == 1 {
                heap.setup_debug_hooks().expect("memory");
            }
            let wrappers = Domain::ALL.map(|domain| Wrapper::put_in(&heap, domain, header));
            if hooks == 2 {
                heap.setup_debug_hooks().expect("memory");
            }
            let mut blocks = Vec::new();
            for size in [0, 1, 40, 512, 513, 5000, 70_000] {
                for domain in Domain::ALL {
                    let block = malloc(&heap, domain, size);
                    write(block, &vec![size as u8; size]);
                    blocks.push((domain, block, size));
                }
            }
            assert!(wrappers[0].calls.get() >= 7 + 2 * 3, "raw is asked for what is large");
            for (index, domain) in Domain::ALL.into_iter().enumerate() {
                if hooks == 0 {
                    heap.set_allocator(domain, own[index]).expect("it has been in");
                }
            }
            for (domain, block, size) in blocks {
                let moved = at(heap.blocks().realloc(domain, Some(block), size + 100).expect("live"));
                assert_eq!(read(moved, size), vec![size as u8; size]);
                heap.verify().expect("holds");
                free(&heap, domain, moved);
            }
            assert_eq!((heap.allocated_blocks(), heap.take_guest_fault(), heap.take_fault()), (0, None, None));
            heap.verify_guards().expect("holds");
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "it compares times")]
fn a_call_takes_no_longer_after_many_guests_than_after_one() {
    let heaps = [1, 8000].map(|guests| {
        let heap = heap();
        let own = heap.allocator(Domain::Obj).expect("memory");
        for _ in 0..guests {
            heap.set_allocator(Domain::Obj, own).expect("it has been in");
            Wrapper::put_in(&heap, Domain::Obj, 16);
        }
        heap
    });
    let mut least = [Duration::MAX; 2];
    for _ in 0..20 {
        for (heap, least) in heaps.iter().zip(&mut least) {
            let begin = Instant::now();
            (0..200).for_each(|_| free(heap, Domain::Obj, malloc(heap, Domain::Obj, 64)));
            *least = begin.elapsed().min(*least);
        }
    }
    assert!(least[1] < 5 * least[0], "{least:?}");
}

#[test]
fn an_answer_that_is_no_piece_fails_the_call_and_changes_nothing() {
    for domain in Domain::ALL {
        let heap = heap();
        let live = malloc(&heap, domain, 100);
        write(live, &[7; 100]);
        let answer = Rc::new(Cell::new(0));
        let (given, for_calloc) = (answer.clone(), answer.clone());
        Deeds::default()
            .malloc(move |_, _| Ok(Some(given.get())))
            .calloc(move |_, _| Ok(Some(for_calloc.get())))
            .put_in(&heap, domain);
        let (own, raw) = (heap.own_allocators().expect("memory"), heap.allocator(Domain::Raw));
        let raw = raw.ok().filter(|id| matches!(id, AllocatorId::Own(_))).unwrap_or(AllocatorId::Own(0));
        let grant = own.malloc(raw, 200).expect("its own").expect("memory");
        write(grant, &[1; 200]);
        let before = heap.allocated_blocks();
        for (address, expected) in [
            (0, GuestFaultKind::Unaligned),
            (grant + 8, GuestFaultKind::Unaligned),
            (grant + 160, GuestFaultKind::NotGranted),
            (grant - 16, GuestFaultKind::NotGranted),
            (live, GuestFaultKind::NotGranted),
            (1 << 46, GuestFaultKind::NotGranted),
            (usize::MAX - 15, GuestFaultKind::NotGranted),
        ] {
            answer.set(address);
            assert_eq!(heap.blocks().malloc(domain, 64), None, "{address:#x}");
            let fault = told(&heap);
            assert_eq!((fault.verb, fault.kind, fault.answer), (Verb::Malloc, expected, Some(address)));
        }
        answer.set(grant);
        assert_eq!(heap.blocks().calloc(domain, 8, 8), None);
        assert_eq!(kind(&heap), GuestFaultKind::NotZeroed);
        let piece = malloc(&heap, domain, 64);
        assert_eq!(piece, grant);
        for (address, size) in [(grant, 8), (grant + 48, 32), (grant + 16, 0)] {
            answer.set(address);
            assert_eq!(heap.blocks().malloc(domain, size), None);
            assert_eq!(kind(&heap), GuestFaultKind::Occupied);
        }
        answer.set(grant + 64);
        assert_eq!(malloc(&heap, domain, 136), grant + 64, "up to the last byte");
        assert_eq!(read(live, 100), [7; 100]);
        assert_eq!(heap.allocated_blocks(), before);
        heap.verify().expect("holds");
        heap.set_refusing(true);
        answer.set(0);
        assert_eq!(heap.blocks().malloc(domain, 64), None);
        assert_eq!(kind(&heap), GuestFaultKind::Unaligned);
        assert_eq!(own.malloc(raw, 5000), Ok(None), "a guest's failure does not end what was said to the heap");
    }
}

#[test]
fn a_grant_is_no_block_of_a_domain_also_where_a_block_was_before() {
    for hooked in [false, true] {
        for domain in Domain::ALL {
            for size in [40, 5000] {
                let heap = heap();
                if hooked {
                    heap.setup_debug_hooks().expect("memory");
                }
                // Free a block first. If possible, the grant gets its memory.
                let block = malloc(&heap, domain, size);
                free(&heap, domain, block);
                let given = Rc::new(Cell::new(0));
                let piece = given.clone();
                let below = Deeds::default().malloc(move |_, _| Ok(Some(piece.get()))).free(|_, _| Ok(())).put_in(&heap, domain);
                let own = heap.own_allocators().expect("memory");
                let grant = own.malloc(below, size).expect("its own").expect("memory");
                // A domain whose allocator gave the grant may free it, if no block lies in it. The others refuse.
                let others = Domain::ALL.into_iter().filter(|&used| heap.allocator(used) != Ok(below)).collect::<Vec<_>>();
                let refuses = |domains: &[Domain], address| {
                    for &used in domains {
                        for fault in [
                            heap.blocks().free(used, address).expect_err("no block"),
                            heap.blocks().check_free(used, address).expect_err("no block"),
                            heap.blocks().realloc(used, Some(address), 8).expect_err("no block"),
                            heap.blocks().usable_size(used, address).expect_err("no block"),
                        ] {
                            assert_eq!((fault.kind, fault.address, fault.used), (FaultKind::Granted, address, used));
                        }
                    }
                };
                refuses(&others, grant);
                // Now a block lies in the grant, behind 16 bytes that the guest keeps.
                given.set(grant + 16);
                let piece = malloc(&heap, domain, 16);
                refuses(&Domain::ALL, grant);
                let arena = own.arena_alloc(heap.geometry().arena_size).expect("memory");
                refuses(&Domain::ALL, arena);
                // After its free the block is the guest's memory, and a second free is a double free.
                free(&heap, domain, piece);
                assert_eq!(heap.blocks().free(domain, piece).expect_err("freed").kind, FaultKind::DoubleFree);
                own.free(below, Some(grant)).expect("a grant");
                heap.verify().expect("holds");
            }
        }
    }
}

#[test]
fn a_raw_block_lies_in_no_arena() {
    let heap = heap();
    let pymalloc = heap.allocator(Domain::Obj).expect("memory");
    Deeds::default().malloc(move |of, size| of.own.malloc(pymalloc, size).map_err(|_| Threw(1))).put_in(&heap, Domain::Raw);
    assert_eq!(heap.blocks().malloc(Domain::Raw, 40), None);
    assert_eq!(kind(&heap), GuestFaultKind::InArena);
    heap.verify().expect("holds");
}

#[test]
fn a_raw_block_gets_into_no_arena_with_its_grant() {
    let heap = heap();
    let [raw, pymalloc] = [Domain::Raw, Domain::Obj].map(|domain| heap.allocator(domain).expect("memory"));
    // Hooks in mem, around a guest that gives memory of the C library and moves it into an arena.
    Deeds::default()
        .malloc(move |of, size| of.own.malloc(raw, size).map_err(|_| Threw(1)))
        .realloc(move |of, address, size| {
            let moved = of.own.malloc(pymalloc, size).map_err(|_| Threw(2))?.ok_or(Threw(3))?;
            write(moved, &read(address, 56));
            of.own.free(raw, Some(address)).map_err(|_| Threw(4))?;
            Ok(Some(moved))
        })
        .free(move |of, address| {
            let freed = [raw, pymalloc].map(|id| of.own.free(id, Some(address)).is_ok());
            if freed == [false; 2] { Err(Threw(5)) } else { Ok(()) }
        })
        .put_in(&heap, Domain::Mem);
    heap.setup_debug_hooks().expect("memory");
    let hook = heap.allocator(Domain::Mem).expect("memory");
    // It keeps a header in front of its blocks.
    Deeds::default()
        .malloc(move |of, size| Ok(of.own.malloc(hook, size + 16).map_err(|_| Threw(6))?.map(|grant| grant + 16)))
        .realloc(move |of, address, size| match of.own.realloc(hook, Some(address - 16), size + 16) {
            Err(OwnError::Occupied(block)) if block == address => Ok(None),
            other => Ok(other.map_err(|_| Threw(7))?.map(|grant| grant + 16)),
        })
        .free(move |of, address| of.own.free(hook, Some(address - 16)).map_err(|_| Threw(8)))
        .put_in(&heap, Domain::Raw);
    let block = malloc(&heap, Domain::Raw, 40);
    write(block, &[5; 40]);
    assert_eq!(heap.blocks().realloc(Domain::Raw, Some(block), 60), Ok(None));
    assert_eq!((heap.take_guest_fault(), read(block, 40)), (None, vec![5; 40]));
    assert_eq!(heap.blocks().usable_size(Domain::Raw, block), Ok(40));
    heap.verify_guards().expect("holds");
    free(&heap, Domain::Raw, block);
    heap.verify().expect("holds");
    // A grant without a block moves wherever that guest likes.
    let own = heap.own_allocators().expect("memory");
    let grant = own.malloc(hook, 40).expect("its own").expect("memory");
    let moved = own.realloc(hook, Some(grant), 60).expect("its own").expect("memory");
    own.free(hook, Some(moved)).expect("its own");
}

#[test]
fn a_grant_that_is_freed_inside_a_realloc_goes_when_the_block_has_left_it() {
    for domain in Domain::ALL {
        for leaves in [true, false] {
            let heap = heap();
            Deeds::default()
                .realloc(move |of, address, size| {
                    let moved = of.malloc(size)?;
                    of.free(address)?;
                    assert_eq!(of.free(address), Err(Threw(3)), "a second time");
                    if leaves { Ok(moved) } else { Ok(None) }
                })
                .put_in(&heap, domain);
            let block = malloc(&heap, domain, 40);
            write(block, &[5; 40]);
            let moved = heap.blocks().realloc(domain, Some(block), 80).expect("live");
            assert_eq!(moved.is_some(), leaves);
            let other = if leaves { at(moved) } else { block };
            if !leaves {
                assert_eq!(read(block, 40), [5; 40]);
            }
            heap.verify().expect("holds");
            free(&heap, domain, other);
            heap.verify().expect("holds");
            assert_eq!(heap.take_guest_fault(), None);
        }
    }
}

#[test]
fn what_the_heap_has_resized_is_the_block_whatever_else_the_guest_says() {
    for domain in Domain::ALL {
        for (answer, expected) in [
            (Ok(None), GuestFaultKind::Resized),
            (Ok(Some(16)), GuestFaultKind::Resized),
            (Err(Threw(6)), GuestFaultKind::Threw(6)),
        ] {
            let heap = heap();
            Deeds::default()
                .realloc(move |of, address, size| {
                    // No request is given less than it asked for.
                    of.realloc(address, size / 2)?.ok_or(Threw(7))?;
                    answer
                })
                .put_in(&heap, domain);
            let block = malloc(&heap, domain, 40);
            write(block, &[5; 40]);
            let moved = at(heap.blocks().realloc(domain, Some(block), 700).expect("live"));
            let fault = told(&heap);
            assert_eq!((fault.kind, fault.address), (expected, Some(moved)));
            assert_eq!((read(moved, 40), heap.blocks().usable_size(domain, moved)), (vec![5; 40], Ok(700)));
            heap.verify().expect("holds");
            free(&heap, domain, moved);
        }
    }
}

#[test]
fn what_a_guest_throws_changes_nothing_and_a_free_is_done() {
    for domain in Domain::ALL {
        let heap = heap();
        let own = Deeds::default()
            .malloc(|of, size| if size == 13 { Err(Threw(1)) } else { of.malloc(size) })
            .calloc(|_, _| Err(Threw(2)))
            .realloc(|_, _, _| Err(Threw(3)))
            .free(|_, _| Err(Threw(4)))
            .put_in(&heap, domain);
        let block = malloc(&heap, domain, 40);
        write(block, &[5; 40]);
        let before = heap.allocated_blocks();
        assert_eq!((heap.blocks().malloc(domain, 13), kind(&heap)), (None, GuestFaultKind::Threw(1)));
        assert_eq!((heap.blocks().calloc(domain, 1, 13), kind(&heap)), (None, GuestFaultKind::Threw(2)));
        assert_eq!((heap.blocks().realloc(domain, Some(block), 400), kind(&heap)), (Ok(None), GuestFaultKind::Threw(3)));
        assert_eq!((read(block, 40), heap.allocated_blocks(), heap.take_guest_fault()), (vec![5; 40], before, None));
        free(&heap, domain, block);
        assert_eq!(kind(&heap), GuestFaultKind::Threw(4));
        assert_eq!(heap.blocks().free(domain, block).expect_err("freed").kind, FaultKind::DoubleFree);
        heap.verify().expect("holds");
        // It is still a grant, and can be given back.
        heap.own_allocators().expect("memory").free(own, Some(block)).expect("a grant");
        heap.verify().expect("holds");
        assert_eq!(heap.allocated_blocks(), 0);
    }
}

#[test]
fn guests_inside_one_another_end_at_fifty() {
    let heap = heap();
    let deepest = Rc::new(Cell::new(0));
    let calls = deepest.clone();
    Deeds::default()
        .malloc(move |of, size| {
            calls.set(calls.get() + 1);
            assert_eq!(of.heap.blocks().malloc(Domain::Mem, size), None, "the innermost one fails, and so do all");
            of.malloc(size)
        })
        .put_in(&heap, Domain::Mem);
    assert_eq!(heap.blocks().malloc(Domain::Mem, 40), None);
    assert_eq!((kind(&heap), deepest.get()), (GuestFaultKind::TooDeep, 50));
    heap.verify().expect("holds");
}

#[test]
fn a_guest_may_use_the_heap_but_not_the_block_that_is_resized() {
    for domain in Domain::ALL {
        let heap = heap();
        let other = malloc(&heap, domain, 60);
        let kept = Rc::new(Cell::new(other));
        let others = kept.clone();
        Deeds::default()
            .realloc(move |of, address, size| {
                for domain in Domain::ALL {
                    of.heap.blocks().free(domain, address).expect_err("out of reach");
                    of.heap.blocks().realloc(domain, Some(address), 8).expect_err("out of reach");
                    of.heap.blocks().usable_size(domain, address).expect_err("out of reach");
                }
                free(of.heap, domain, others.get());
                let moved = of.realloc(address, size)?;
                others.set(malloc(of.heap, domain, 60));
                Ok(moved)
            })
            .put_in(&heap, domain);
        let block = malloc(&heap, domain, 40);
        write(block, &[5; 40]);
        let moved = at(heap.blocks().realloc(domain, Some(block), 400).expect("live"));
        assert_eq!((read(moved, 40), heap.take_guest_fault()), (vec![5; 40], None));
        free(&heap, domain, moved);
        free(&heap, domain, kept.get());
        assert_eq!(heap.allocated_blocks(), 0);
        heap.verify().expect("holds");
    }
}

#[test]
fn objects_are_not_to_be_changed_while_a_guest_is_asked() {
    let heap = heap();
    let fields = vec![("next".to_owned(), FieldKind::Object)];
    let node = heap.define_type(TypeSpec { fields, gc: true, ..TypeSpec::default() }).expect("a type");
    let object = heap.alloc(node, 0).expect("memory");
    Deeds::default()
        .malloc(move |of, size| {
            let reentrant = |fault: Fault| assert_eq!(fault.kind, FaultKind::Reentrant);
            reentrant(of.heap.decref(object).expect_err("in a guest"));
            let set = of.heap.set(object, Field::Member(0), Value::Null).expect_err("in a guest");
            assert!(matches!(set, ObjectError::Fault(fault) if fault.kind == FaultKind::Reentrant));
            assert_eq!(of.heap.get(object, Field::Member(0)), Ok(Value::Null));
            of.malloc(size)
        })
        .put_in(&heap, Domain::Obj);
    let second = heap.alloc(node, 0).expect("memory");
    heap.decref(second).expect("an object");
    heap.decref(object).expect("an object");
    assert_eq!(heap.allocated_blocks(), 0);
}

#[test]
fn an_allocator_that_is_called_directly_gives_no_object_back() {
    let heap = heap();
    let node = heap.define_type(TypeSpec::default()).expect("a type");
    let object = heap.alloc(node, 0).expect("memory");
    let (obj, own) = (heap.allocator(Domain::Obj).expect("memory"), heap.own_allocators().expect("memory"));
    let refused = |error: OwnError| assert!(matches!(error, OwnError::Fault(fault) if fault.kind == FaultKind::WrongType));
    refused(own.free(obj, Some(object)).expect_err("an object"));
    refused(own.realloc(obj, Some(object), 8).expect_err("an object"));
    assert_eq!(heap.refcount(object), Ok(1));
    let block = malloc(&heap, Domain::Obj, 40);
    own.free(obj, Some(block)).expect("a block like that of any allocator");
    heap.decref(object).expect("an object");
    assert_eq!(heap.allocated_blocks(), 0);
}

#[test]
fn allocators_that_change_inside_a_call_do_not_change_who_gave_its_block() {
    for domain in Domain::ALL {
        for change in 0..4 {
            let heap = heap();
            let below = heap.allocator(domain).expect("memory");
            Deeds::default()
                .malloc(move |of, size| {
                    match change {
                        0 => of.heap.set_allocator(domain, below).expect("it has been in"),
                        1 => of.heap.setup_debug_hooks().expect("memory"),
                        2 => of.heap.set_nomemory(100, None).expect("memory"),
                        _ => of.heap.remove_nomemory().expect("memory"),
                    }
                    // With bytes of its own before and behind the block.
                    Ok(of.malloc(size + 64)?.map(|block| block + 32))
                })
                .free(|of, address| of.free(address - 32))
                .realloc(|of, address, size| Ok(of.realloc(address - 32, size + 64)?.map(|block| block + 32)))
                .put_in(&heap, domain);
            let block = malloc(&heap, domain, 40);
            write(block, &[5; 40]);
            heap.verify().expect("holds");
            heap.remove_nomemory().expect("memory");
            let moved = at(heap.blocks().realloc(domain, Some(block), 400).expect("live"));
            assert_eq!(read(moved, 40), [5; 40]);
            free(&heap, domain, moved);
            heap.verify().expect("holds");
            heap.verify_guards().expect("holds");
            assert_eq!((heap.allocated_blocks(), heap.take_guest_fault(), heap.take_fault()), (0, None, None));
            assert_eq!(heap.calls_guests(), change != 0, "what is put back comes in directly when nothing is left");
        }
    }
}

#[test]
fn what_a_hook_has_given_to_a_guest_is_no_answer_to_a_request_past_that_hook() {
    let heap = heap();
    let raw = heap.allocator(Domain::Raw).expect("memory");
    let depth = Cell::new(0);
    Deeds::default()
        .malloc(move |of, size| {
            depth.set(depth.get() + 1);
            if depth.get() > 1 {
                return of.own.malloc(raw, size).map_err(|_| Threw(1));
            }
            // The request came before there was a hook around the guest.
            of.heap.setup_debug_hooks().expect("memory");
            let hook = of.heap.allocator(Domain::Raw).expect("memory");
            of.own.malloc(hook, size).map_err(|_| Threw(2))
        })
        .put_in(&heap, Domain::Raw);
    assert_eq!(heap.blocks().malloc(Domain::Raw, 40), None);
    assert_eq!(kind(&heap), GuestFaultKind::Occupied);
    let block = malloc(&heap, Domain::Raw, 40);
    free(&heap, Domain::Raw, block);
    heap.verify_guards().expect("holds");
}

#[test]
fn what_a_hook_has_given_to_a_guest_is_no_answer_for_an_older_block_that_the_hook_passes_on() {
    for domain in Domain::ALL {
        let heap = heap();
        let below = heap.allocator(domain).expect("memory");
        let give = move |of: &Of<'_>, size| of.own.malloc(below, size).map_err(|_| Threw(1));
        let release = move |of: &Of<'_>, address| of.own.free(below, Some(address)).map_err(|_| Threw(2));
        Deeds::default().malloc(give).free(release).put_in(&heap, domain);
        let older = malloc(&heap, domain, 40);
        write(older, &[5; 40]);
        let answer = Rc::new(Cell::new(0));
        let says = answer.clone();
        Deeds::default().malloc(give).free(release).realloc(move |_, _, _| Ok(Some(says.get()))).put_in(&heap, domain);
        heap.setup_debug_hooks().expect("memory");
        let (own, hook) = (heap.own_allocators().expect("memory"), heap.allocator(domain).expect("memory"));
        let grant = own.malloc(hook, 100).expect("its own").expect("memory");
        answer.set(grant);
        for size in [0, 40, 60] {
            assert_eq!(heap.blocks().realloc(domain, Some(older), size), Ok(None));
            assert_eq!(kind(&heap), GuestFaultKind::Occupied);
            assert_eq!(read(older, 40), [5; 40]);
        }
        // A block that the hook has given has its guard bytes within the grant.
        let newer = malloc(&heap, domain, 40);
        let moved = at(heap.blocks().realloc(domain, Some(newer), 60).expect("live"));
        assert!(grant < moved && moved < grant + 100, "{domain}");
        heap.verify_guards().expect("holds");
        free(&heap, domain, older);
        heap.verify().expect("holds");
    }
}

#[test]
fn memory_of_0_bytes_has_no_byte_for_a_block() {
    for (domain, hooked) in Domain::ALL.into_iter().flat_map(|domain| [(domain, false), (domain, true)]) {
        let heap = heap();
        if hooked {
            heap.setup_debug_hooks().expect("memory");
        }
        let older = malloc(&heap, domain, 0);
        let below = heap.allocator(domain).expect("memory");
        let answer = Rc::new(Cell::new(0));
        let (given, resized) = (answer.clone(), answer.clone());
        Deeds::default()
            .malloc(move |_, _| Ok(Some(given.get())))
            .realloc(move |_, _, _| Ok(Some(resized.get())))
            .free(move |of, address| of.own.free(below, Some(address)).map_err(|_| Threw(2)))
            .put_in(&heap, domain);
        // An older block becomes a grant while it is resized: of all its bytes, which are none under hooks.
        if hooked {
            answer.set(older);
            assert_eq!(heap.blocks().realloc(domain, Some(older), 1), Ok(None), "{domain}");
            assert_eq!(kind(&heap), GuestFaultKind::NotGranted);
        }
        // A grant of its own.
        let grant = heap.own_allocators().expect("memory").malloc(below, 0).expect("its own").expect("memory");
        answer.set(grant);
        assert_eq!(heap.blocks().malloc(domain, 1), None, "{domain}, {hooked}");
        assert_eq!(kind(&heap), GuestFaultKind::NotGranted);
        let block = malloc(&heap, domain, 0);
        assert_eq!(block, grant);
        assert_eq!(heap.blocks().realloc(domain, Some(block), 1), Ok(None), "{domain}, {hooked}");
        assert_eq!(kind(&heap), GuestFaultKind::NotGranted);
        assert_eq!(heap.blocks().realloc(domain, Some(block), 0), Ok(NonNull::new(ptr::with_exposed_provenance_mut(block))));
        free(&heap, domain, block);
        free(&heap, domain, older);
        heap.verify_guards().expect("holds");
        assert_eq!((heap.allocated_blocks(), heap.take_guest_fault()), (0, None));
    }
}

#[test]
fn where_a_block_was_that_moves_another_one_is_whole() {
    let heap = heap();
    let obj = Deeds::default()
        .realloc(|of, address, size| {
            let moved = of.realloc(address, size)?;
            // It is given where the block was.
            assert_eq!(malloc(of.heap, Domain::Mem, 300), address);
            Ok(moved)
        })
        .put_in(&heap, Domain::Obj);
    let block = malloc(&heap, Domain::Obj, 290);
    let moved = at(heap.blocks().realloc(Domain::Obj, Some(block), 400).expect("live"));
    assert_eq!(heap.blocks().usable_size(Domain::Mem, block), Ok(304));
    free(&heap, Domain::Mem, block);
    free(&heap, Domain::Obj, moved);
    heap.set_allocator(Domain::Obj, obj).expect("it has been in");
    assert_eq!(heap.allocated_blocks(), 0);
}

/// An arena guest of functions.
struct ArenaDeeds {
    heap: Weak<ObjectHeap>,
    alloc: Give,
    free: Release,
}

impl ArenaDeeds {
    fn put_in(heap: &Rc<ObjectHeap>, alloc: Give, free: Release) {
        let guest = Self { heap: Rc::downgrade(heap), alloc, free };
        heap.set_arena_guest(Some(Rc::new(guest))).expect("memory");
    }

    fn of<T>(&self, own: &OwnAllocators<'_>, call: impl FnOnce(&Of<'_>) -> Result<T, Threw>) -> Result<T, Threw> {
        let heap = self.heap.upgrade().ok_or(Threw(98))?;
        let below = heap.allocator(Domain::Raw).map_err(|_| Threw(97))?;
        call(&Of { heap: &heap, own: *own, below })
    }
}

impl ArenaGuest for ArenaDeeds {
    fn alloc(&self, own: &OwnAllocators<'_>, size: usize) -> Answer {
        self.of(own, |of| (self.alloc)(of, size))
    }
    fn free(&self, own: &OwnAllocators<'_>, address: usize, _: usize) -> Result<(), Threw> {
        self.of(own, |of| (self.free)(of, address))
    }
}

fn tiny() -> Rc<ObjectHeap> {
    heap_with(HeapOptions { geometry: Some(TINY), ..HeapOptions::new(&profile::V3_8) })
}

/// Blocks of four arenas and a half.
fn many(heap: &ObjectHeap) -> Vec<usize> {
    (0..18 * 31).map(|_| malloc(heap, Domain::Mem, 512)).collect()
}

#[test]
#[cfg_attr(miri, ignore = "Miri does not know how large a block of C's malloc is")]
fn an_arena_with_fewer_pools_comes_before_one_that_became_empty_meanwhile() {
    let heap = heap_with(HeapOptions { geometry: Some(TINY), ..HeapOptions::new(&profile::V3_14) });
    let [raw, pymalloc] = [Domain::Raw, Domain::Mem].map(|domain| heap.allocator(domain).expect("memory"));
    let own = heap.own_allocators().expect("memory");
    let blocks = (0..4 * 31).map(|_| own.malloc(pymalloc, 512).expect("its own").expect("memory"));
    let blocks: RefCell<Vec<usize>> = RefCell::new(blocks.collect());
    // Asked for a node of the arena map, once there is an arena that does not begin at a pool's boundary.
    Deeds::default()
        .calloc(move |of, size| {
            for block in blocks.take() {
                of.own.free(pymalloc, Some(block)).expect("live");
            }
            of.own.calloc(of.below, 1, size).map_err(|_| Threw(4))
        })
        .put_in(&heap, Domain::Raw);
    let alloc = move |of: &Of<'_>, size| of.own.malloc(raw, size + 16).map(|base| Some(base? + 16)).map_err(|_| Threw(1));
    let give_back = move |of: &Of<'_>, address| of.own.free(raw, Some(address - 16)).map_err(|_| Threw(3));
    ArenaDeeds::put_in(&heap, Box::new(alloc), Box::new(give_back));
    let block = malloc(&heap, Domain::Mem, 512);
    let pools: Vec<_> = heap.arenas().iter().map(|arena| (arena.free_pools, arena.total_pools)).collect();
    assert_eq!(pools, [(4, 4), (2, 3)]);
    heap.verify().expect("holds");
    free(&heap, Domain::Mem, block);
    heap.verify().expect("holds");
}

#[test]
#[cfg_attr(miri, ignore = "Miri does not know how large a block of C's malloc is")]
fn of_an_arena_in_a_grant_only_what_has_been_in_use_is_touched() {
    let heap = heap();
    ArenaDeeds::put_in(&heap, Box::new(|of, size| of.malloc(size)), Box::new(|of, address| of.free(address)));
    let (pool_size, arena_size) = (heap.geometry().pool_size, heap.geometry().arena_size);
    malloc(&heap, Domain::Obj, 64);
    let untouched = heap.held() - heap.touched();
    assert!((arena_size - 2 * pool_size..arena_size).contains(&untouched), "{untouched} bytes of {arena_size}");
    heap.verify().expect("holds");
}

#[test]
fn arenas_lie_in_grants_by_the_same_rules() {
    for way in 0..3 {
        let heap = tiny();
        // An arena of the heap's own, before.
        let first = malloc(&heap, Domain::Mem, 8);
        let freed = Rc::new(Cell::new(0));
        let told_of = freed.clone();
        ArenaDeeds::put_in(
            &heap,
            Box::new(move |of, size| match way {
                0 => Ok(of.own.arena_alloc(size)),
                1 => of.malloc(size + 16),
                _ => Ok(of.malloc(size + 16 * 1024)?.map(|memory| memory.next_multiple_of(16 << 10))),
            }),
            Box::new(move |of, address| {
                told_of.set(told_of.get() + 1);
                _ = of.own.arena_free(address, 64 << 10);
                _ = of.free(address);
                Ok(())
            }),
        );
        let blocks = many(&heap);
        assert!(heap.arenas().len() >= 5 && heap.calls_guests());
        heap.verify().expect("holds");
        blocks.into_iter().for_each(|block| free(&heap, Domain::Mem, block));
        free(&heap, Domain::Mem, first);
        assert_eq!((heap.arenas().len(), heap.take_guest_fault()), (0, None));
        assert!(freed.get() >= 5, "also of the heap's own one");
        heap.set_arena_guest(None).expect("memory");
        assert!(!heap.calls_guests());
        heap.verify().expect("holds");
    }
}

#[test]
fn an_arena_that_is_no_piece_is_not_taken() {
    for (answer, expected) in [
        (Ok(None), None),
        (Ok(Some(8)), Some(GuestFaultKind::Unaligned)),
        (Ok(Some(1 << 46)), Some(GuestFaultKind::NotGranted)),
        (Err(Threw(5)), Some(GuestFaultKind::Threw(5))),
    ] {
        let heap = tiny();
        ArenaDeeds::put_in(&heap, Box::new(move |_, _| answer), Box::new(|_, _| Ok(())));
        let block = heap.blocks().malloc(Domain::Mem, 40);
        assert_eq!(heap.take_guest_fault().map(|fault| fault.kind), expected);
        // Without an arena the block is raw's; where a guest failed there is none.
        assert_eq!((block.is_some(), heap.arenas().len()), (expected.is_none(), 0));
        heap.verify().expect("holds");
    }
    let heap = tiny();
    let first = Rc::new(Cell::new(0));
    let once = first.clone();
    ArenaDeeds::put_in(
        &heap,
        Box::new(move |of, size| {
            if once.get() == 0 {
                once.set(of.malloc(2 * size)?.ok_or(Threw(1))?);
            }
            Ok(Some(once.get()))
        }),
        Box::new(|_, _| Err(Threw(9))),
    );
    let mut blocks = vec![malloc(&heap, Domain::Mem, 512)];
    while let Some(block) = heap.blocks().malloc(Domain::Mem, 512) {
        blocks.push(block.as_ptr().expose_provenance());
    }
    assert_eq!(kind(&heap), GuestFaultKind::Occupied);
    let (own, raw) = (heap.own_allocators().expect("memory"), heap.allocator(Domain::Raw).expect("memory"));
    assert_eq!(own.free(raw, Some(first.get())), Err(OwnError::Occupied(first.get())));
    blocks.into_iter().for_each(|block| free(&heap, Domain::Mem, block));
    assert_eq!(kind(&heap), GuestFaultKind::Threw(9));
    assert_eq!(heap.arenas().len(), 0);
    own.free(raw, Some(first.get())).expect("nothing lies in it");
}

#[test]
fn arenas_come_and_go_while_an_arena_is_asked_for() {
    let heap = tiny();
    let blocks = Rc::new(RefCell::new(Vec::new()));
    let held = blocks.clone();
    ArenaDeeds::put_in(
        &heap,
        Box::new(move |of, size| {
            // All pools of the first arena are full, and one of them is not any more; others go altogether.
            for block in held.take() {
                free(of.heap, Domain::Mem, block);
            }
            Ok(of.own.arena_alloc(size))
        }),
        Box::new(|of, address| of.own.arena_free(address, 64 << 10).map_err(|_| Threw(1))),
    );
    for kept in [1, 40] {
        let mut all: Vec<usize> = Vec::new();
        let count = heap.arenas().len() + 3;
        while heap.arenas().len() < count {
            all.push(malloc(&heap, Domain::Mem, 512));
        }
        while !(all.len() - 1).is_multiple_of(4 * 31) {
            all.push(malloc(&heap, Domain::Mem, 512));
        }
        let last: Vec<usize> = all.split_off(kept);
        *blocks.borrow_mut() = last;
        while !blocks.borrow().is_empty() {
            all.push(malloc(&heap, Domain::Obj, 400));
        }
        heap.verify().expect("holds");
        for block in all {
            let domain = if heap.blocks().usable_size(Domain::Mem, block).is_ok() { Domain::Mem } else { Domain::Obj };
            free(&heap, domain, block);
            look(&heap);
        }
        assert_eq!((heap.allocated_blocks(), heap.take_guest_fault()), (0, None));
    }
}

#[test]
fn an_arena_guest_that_is_taken_out_while_it_is_asked_keeps_its_arena() {
    let heap = tiny();
    ArenaDeeds::put_in(
        &heap,
        Box::new(|of, size| {
            of.heap.set_arena_guest(None).expect("memory");
            of.malloc(size)
        }),
        Box::new(|_, _| Ok(())),
    );
    let block = malloc(&heap, Domain::Mem, 40);
    heap.verify().expect("holds");
    free(&heap, Domain::Mem, block);
    assert_eq!(heap.arenas().len(), 0);
    let block = malloc(&heap, Domain::Mem, 40);
    assert_eq!(heap.arenas()[0].address, heap.region().0, "of the heap's own");
    free(&heap, Domain::Mem, block);
}

#[test]
fn a_failure_on_the_way_out_of_quarantine_is_no_other_calls() {
    let heap = heap_with(HeapOptions { geometry: Some(TINY), quarantine: 1 << 20, ..HeapOptions::new(&profile::V3_8) });
    ArenaDeeds::put_in(&heap, Box::new(|of, size| Ok(of.own.arena_alloc(size))), Box::new(|_, _| Err(Threw(3))));
    many(&heap).into_iter().for_each(|block| free(&heap, Domain::Mem, block));
    assert_eq!(heap.take_guest_fault(), None);
    assert!(heap.empty_quarantine());
    assert_eq!(kind(&heap), GuestFaultKind::Threw(3));
    let block = malloc(&heap, Domain::Raw, 40);
    free(&heap, Domain::Raw, block);
}

#[test]
fn a_grant_with_damaged_guard_bytes_stays_on_record() {
    let heap = heap();
    heap.setup_debug_hooks().expect("memory");
    let own = heap.own_allocators().expect("memory");
    for domain in Domain::ALL {
        let hook = heap.allocator(domain).expect("memory");
        let grant = own.malloc(hook, 40).expect("its own").expect("memory");
        write(grant + 40, &[0]);
        for _ in 0..2 {
            let damaged = |error| matches!(error, OwnError::Fault(fault) if fault.kind == FaultKind::BufferOverflow);
            assert!(own.free(hook, Some(grant)).is_err_and(damaged));
            assert!(own.realloc(hook, Some(grant), 80).is_err_and(damaged));
        }
        heap.verify().expect("holds");
        write(grant + 40, &[0xfd]);
        own.free(hook, Some(grant)).expect("sound");
    }
    assert_eq!((heap.allocated_blocks(), heap.take_fault()), (0, None));
}

#[test]
fn what_an_allocator_below_the_hooks_gives_is_not_taken_for_a_write_after_free() {
    for profile in profile::ALL {
        let heap = heap_with(HeapOptions::new(profile));
        let pymalloc = heap.allocator(Domain::Mem).expect("memory");
        heap.setup_debug_hooks().expect("memory");
        let freed = [16, 40].map(|size| malloc(&heap, Domain::Mem, size));
        freed.into_iter().for_each(|block| free(&heap, Domain::Mem, block));
        let own = heap.own_allocators().expect("memory");
        let grant = own.calloc(pymalloc, 1, 40).expect("its own").expect("memory");
        let small = own.malloc(pymalloc, 8).expect("its own").expect("memory");
        let moved = own.realloc(pymalloc, Some(small), 64).expect("a grant").expect("memory");
        write(moved, &[9; 64]);
        heap.verify_guards().expect("no write after a free");
        heap.verify().expect("holds");
        own.free(pymalloc, Some(grant)).expect("a grant");
        own.free(pymalloc, Some(moved)).expect("a grant");
        heap.verify_guards().expect("no write after a free");
    }
}

#[test]
fn a_block_that_hooks_pass_on_to_a_guest_has_the_bytes_that_it_was_resized_to() {
    for profile in profile::ALL {
        // The guest's block at the begin of a larger grant, and behind a header.
        for header in [0, 16] {
            let heap = heap_with(HeapOptions::new(profile));
            Deeds::default()
                .malloc(move |of, size| Ok(of.malloc(header + size)?.map(|grant| grant + header)))
                .realloc(move |of, _, size| Ok(of.malloc(header + size + 100)?.map(|grant| grant + header)))
                .put_in(&heap, Domain::Obj);
            let block = malloc(&heap, Domain::Obj, 300);
            heap.setup_debug_hooks().expect("memory");
            let moved = at(heap.blocks().realloc(Domain::Obj, Some(block), 165).expect("live"));
            assert_eq!(heap.blocks().usable_size(Domain::Obj, moved), Ok(165), "header {header}");
            heap.verify().expect("holds");
        }
    }
}

#[test]
fn a_block_that_begins_where_a_hook_gave_a_guest_more_has_the_bytes_that_were_asked_for() {
    for profile in profile::ALL {
        let heap = heap_with(HeapOptions::new(profile));
        let block = malloc(&heap, Domain::Mem, 67);
        heap.setup_debug_hooks().expect("memory");
        Deeds::default().malloc(|of, _| of.malloc(8192)).put_in(&heap, Domain::Raw);
        let moved = at(heap.blocks().realloc(Domain::Mem, Some(block), 5000).expect("live"));
        assert_eq!(heap.blocks().usable_size(Domain::Mem, moved), Ok(5000));
        heap.verify().expect("holds");
        free(&heap, Domain::Mem, moved);
    }
}

#[test]
fn a_raw_guest_whose_free_throws_does_not_make_two_records_of_one_block() {
    for profile in profile::ALL {
        for ending in 0..2 {
            let heap = heap_with(HeapOptions::new(profile));
            let pymalloc = heap.allocator(Domain::Mem).expect("memory");
            heap.setup_debug_hooks().expect("memory");
            let own = heap.own_allocators().expect("memory");
            let block = own.malloc(pymalloc, 600).expect("its own").expect("memory");
            Deeds::default()
                .malloc(|_, _| Ok(None))
                .calloc(|_, _| Ok(None))
                .realloc(|_, _, _| Ok(None))
                .free(|_, _| Err(Threw(1)))
                .put_in(&heap, Domain::Raw);
            assert!(
                matches!(own.free(pymalloc, Some(block)), Err(OwnError::Guest(fault)) if fault.kind == GuestFaultKind::Threw(1))
            );
            assert!(matches!(own.free(pymalloc, Some(block)), Err(OwnError::Fault(_))));
            heap.verify().expect("holds");
            finish(heap, ending);
        }
    }
}

#[test]
fn an_allocator_comes_into_no_domain_that_it_was_never_in() {
    let heap = heap();
    let (pymalloc, raw) = (heap.allocator(Domain::Mem).expect("memory"), heap.allocator(Domain::Raw).expect("memory"));
    assert_eq!(heap.set_allocator(Domain::Raw, pymalloc), Err(SetError::Unknown));
    assert_eq!(heap.set_allocator(Domain::Obj, raw), Err(SetError::Unknown));
    assert_eq!(heap.set_allocator(Domain::Obj, AllocatorId::Own(7)), Err(SetError::Unknown));
    assert_eq!(heap.set_allocator(Domain::Obj, AllocatorId::Guest(0)), Err(SetError::Unknown));
    // It may serve through a guest, for what is not small; what the hook gives is on record once.
    Deeds::default()
        .malloc(move |of, size| {
            let one = if size < 5100 { pymalloc } else { raw };
            of.own.malloc(one, size + 100).map_err(|_| Threw(1))
        })
        .put_in(&heap, Domain::Raw);
    heap.setup_debug_hooks().expect("memory");
    let (own, hook) = (heap.own_allocators().expect("memory"), heap.allocator(Domain::Raw).expect("memory"));
    let grant = own.malloc(hook, 5000).expect("its own").expect("memory");
    assert!(matches!(own.free(hook, Some(grant)), Err(OwnError::Guest(_))), "it is pymalloc's, and the guest asks raw");
    assert!(matches!(own.free(hook, Some(grant)), Err(OwnError::Fault(_))));
    heap.verify().expect("holds");
    heap.verify_guards().expect("holds");
}

/// Takes a heap down as it is: at once, in pieces, or one piece and then the rest.
fn finish(heap: Rc<ObjectHeap>, ending: usize) {
    let Ok(heap) = Rc::try_unwrap(heap) else { panic!("guests do not keep their heap") };
    if ending != 0 {
        let mut leaving = heap.take_down();
        for patience in 0..if ending == 1 { usize::MAX } else { 1 } {
            let mut asked = 0;
            let is_over = || {
                asked += 1;
                asked > patience
            };
            if leaving.go_on(is_over) {
                break;
            }
        }
    }
}

#[test]
fn what_guests_keep_goes_with_the_heap() {
    // What is left over, or given back twice, shows under the sanitizers.
    for hooked in [false, true] {
        for ending in 0..3 {
            let heap = heap_with(HeapOptions { geometry: Some(TINY), ..HeapOptions::new(&profile::V3_13) });
            if hooked {
                heap.setup_debug_hooks().expect("memory");
            }
            for domain in Domain::ALL {
                Deeds::default()
                    .malloc(|of, size| {
                        // The guest loses one grant, and answers with another one, behind a header.
                        of.malloc(size)?;
                        Ok(of.malloc(size + 48)?.map(|block| block + 48))
                    })
                    .realloc(|of, _, size| {
                        of.malloc(size)?;
                        Err(Threw(1))
                    })
                    .free(|_, _| Err(Threw(2)))
                    .put_in(&heap, domain);
            }
            for size in [8, 300, 600, 5000] {
                for domain in Domain::ALL {
                    let blocks = [0; 3].map(|_| malloc(&heap, domain, size));
                    assert_eq!(heap.blocks().realloc(domain, Some(blocks[0]), 2 * size), Ok(None));
                    free(&heap, domain, blocks[1]);
                    heap.take_guest_fault();
                    look(&heap);
                }
            }
            ArenaDeeds::put_in(
                &heap,
                Box::new(|of, size| if of.heap.arenas().len() % 2 == 0 { Ok(of.own.arena_alloc(size)) } else { Err(Threw(3)) }),
                Box::new(|_, _| Err(Threw(4))),
            );
            for _ in 0..400 {
                heap.blocks().malloc(Domain::Obj, 480);
            }
            let own = heap.own_allocators().expect("memory");
            own.arena_alloc(100_000).expect("memory");
            finish(heap, ending);
        }
    }
}

#[test]
fn a_guest_that_panics_closes_its_heap_for_good() {
    for domain in Domain::ALL {
        for verb in 0..4 {
            for ending in 0..3 {
                let heap = heap();
                let own = Deeds::default()
                    .malloc(move |of, size| if size == 77 && verb == 0 { resume_unwind(Box::new(())) } else { of.malloc(size) })
                    .calloc(|_, _| resume_unwind(Box::new(())))
                    .realloc(|_, _, _| resume_unwind(Box::new(())))
                    .free(|_, _| resume_unwind(Box::new(())))
                    .put_in(&heap, domain);
                let (block, other) = (malloc(&heap, domain, 40), malloc(&heap, Domain::Raw, 3000));
                let panicked = catch_unwind(AssertUnwindSafe(|| match verb {
                    0 => _ = heap.blocks().malloc(domain, 77),
                    1 => _ = heap.blocks().calloc(domain, 1, 77),
                    2 => _ = heap.blocks().realloc(domain, Some(block), 400),
                    _ => _ = heap.blocks().free(domain, block),
                }));
                assert!(panicked.is_err() && heap.is_closed());
                let closed = |fault: Fault| assert_eq!(fault.kind, FaultKind::HeapClosed);
                for domain in Domain::ALL {
                    assert_eq!((heap.blocks().malloc(domain, 8), heap.blocks().calloc(domain, 8, 8)), (None, None));
                    for address in [block, other, 16] {
                        closed(heap.blocks().free(domain, address).expect_err("closed"));
                        closed(heap.blocks().realloc(domain, Some(address), 8).expect_err("closed"));
                    }
                    assert_eq!(heap.set_allocator(domain, own), Err(SetError::Unknown));
                }
                let direct = heap.own_allocators().expect("memory").malloc(own, 8);
                assert!(matches!(direct, Err(OwnError::Fault(fault)) if fault.kind == FaultKind::HeapClosed));
                heap.setup_debug_hooks().expect("memory");
                assert_eq!(heap.blocks().malloc(domain, 8), None);
                heap.set_nomemory(100, None).expect("memory");
                heap.remove_nomemory().expect("memory");
                assert_eq!(heap.blocks().malloc(domain, 8), None);
                heap.define_type(TypeSpec::default()).and_then(|kind| heap.alloc(kind, 0)).expect_err("closed");
                finish(heap, ending);
            }
        }
    }
}

#[test]
fn a_guest_that_catches_the_panic_of_another_is_inside_a_closed_heap() {
    let heap = heap();
    Deeds::default().malloc(|_, _| resume_unwind(Box::new(()))).put_in(&heap, Domain::Mem);
    Deeds::default()
        .malloc(|of, size| {
            let panicked = catch_unwind(AssertUnwindSafe(|| of.heap.blocks().malloc(Domain::Mem, 8)));
            assert!(panicked.is_err() && of.heap.is_closed());
            of.malloc(size)
        })
        .realloc(|of, address, size| {
            _ = catch_unwind(AssertUnwindSafe(|| of.heap.blocks().malloc(Domain::Mem, 8)));
            of.realloc(address, size)
        })
        .put_in(&heap, Domain::Obj);
    assert_eq!(heap.blocks().malloc(Domain::Obj, 8), None);
    assert!(heap.is_closed());
    assert_eq!(heap.blocks().malloc(Domain::Obj, 8), None);
}

#[test]
fn a_block_that_was_on_its_way_when_the_heap_was_closed_is_not_given() {
    let heap = tiny();
    Deeds::default().malloc(|_, _| resume_unwind(Box::new(()))).put_in(&heap, Domain::Raw);
    ArenaDeeds::put_in(
        &heap,
        Box::new(|of, size| {
            let arena = of.own.arena_alloc(size);
            _ = catch_unwind(AssertUnwindSafe(|| of.heap.blocks().malloc(Domain::Raw, 8)));
            Ok(arena)
        }),
        Box::new(|_, _| Ok(())),
    );
    assert_eq!(heap.blocks().malloc(Domain::Mem, 8), None);
    assert!(heap.is_closed());
}

#[test]
fn what_pymalloc_has_from_a_guest_is_as_long_as_was_asked_though_a_hook_gave_its_memory() {
    // Without an arena map, whose nodes are larger than the chunk.
    let heap = heap_with(HeapOptions::new(&profile::V3_8));
    let pymalloc = heap.allocator(Domain::Obj).expect("memory");
    heap.setup_debug_hooks().expect("memory");
    heap.set_allocator(Domain::Obj, pymalloc).expect("it has been in");
    bump(&Rc::default(), Rc::default()).put_in(&heap, Domain::Raw);
    // Where the chunk begins.
    let (first, second) = (malloc(&heap, Domain::Obj, 0), malloc(&heap, Domain::Raw, 40));
    assert_eq!(second - first, 16);
    write(second, &[3; 40]);
    Deeds::default()
        .realloc(|of, address, size| {
            let moved = of.malloc(size)?;
            of.free(address)?;
            Ok(moved)
        })
        .put_in(&heap, Domain::Obj);
    let moved = at(heap.blocks().realloc(Domain::Obj, Some(first), 30).expect("live"));
    assert_eq!((read(second, 40), heap.take_guest_fault()), (vec![3; 40], None));
    free(&heap, Domain::Obj, moved);
    free(&heap, Domain::Raw, second);
    heap.verify_guards().expect("holds");
}

#[test]
fn no_guest_is_asked_in_a_closed_heap() {
    let heap = heap();
    let pymalloc = heap.allocator(Domain::Mem).expect("memory");
    let asked = Rc::new(Cell::new(0));
    let count = asked.clone();
    Deeds::default().malloc(|_, _| resume_unwind(Box::new(()))).put_in(&heap, Domain::Mem);
    ArenaDeeds::put_in(
        &heap,
        Box::new(|of, size| {
            _ = catch_unwind(AssertUnwindSafe(|| of.heap.blocks().malloc(Domain::Mem, 8)));
            assert!(of.heap.is_closed());
            Ok(of.own.arena_alloc(size))
        }),
        Box::new(|_, _| Ok(())),
    );
    Deeds::default()
        .calloc(move |of, size| {
            count.set(count.get() + 1);
            of.own.calloc(of.below, 1, size).map_err(|_| Threw(1))
        })
        .put_in(&heap, Domain::Raw);
    // The nodes of the arena map are asked for after the arena.
    let own = heap.own_allocators().expect("memory");
    assert!(matches!(own.malloc(pymalloc, 8), Ok(None) | Err(_)));
    assert_eq!((asked.get(), heap.is_closed()), (0, true));
}

/// Gives the heap's own arenas, and counts those that are out.
struct Counting(Rc<Cell<usize>>);

impl ArenaGuest for Counting {
    fn alloc(&self, own: &OwnAllocators<'_>, size: usize) -> Answer {
        self.0.set(self.0.get() + 1);
        Ok(own.arena_alloc(size))
    }
    fn free(&self, _: &OwnAllocators<'_>, _: usize, _: usize) -> Result<(), Threw> {
        self.0.set(self.0.get() - 1);
        Ok(())
    }
}

#[test]
fn an_arena_guest_is_told_of_the_arenas_of_a_heap_that_was_closed_in_a_call() {
    let (heap, out) = (tiny(), Rc::new(Cell::new(0)));
    heap.set_arena_guest(Some(Rc::new(Counting(out.clone())))).expect("memory");
    many(&heap);
    Deeds::default().malloc(|_, _| resume_unwind(Box::new(()))).put_in(&heap, Domain::Raw);
    catch_unwind(AssertUnwindSafe(|| heap.blocks().malloc(Domain::Raw, 8))).expect_err("it unwinds");
    assert!(heap.is_closed() && out.get() >= 5);
    let Ok(heap) = Rc::try_unwrap(heap) else { panic!("guests do not keep their heap") };
    let mut leaving = heap.take_down();
    assert!(leaving.go_on(|| false));
    assert_eq!((leaving.take_guest_fault(), out.get()), (None, 0));
}

#[test]
fn a_block_that_was_moving_when_the_heap_was_closed_is_not_touched() {
    // What is written to where it was shows under the sanitizers.
    for domain in Domain::ALL {
        for order in 0..2 {
            let heap = heap();
            Deeds::default()
                .malloc(|of, size| if size == 77 + 24 { resume_unwind(Box::new(())) } else { of.malloc(size) })
                .realloc(move |of, address, size| {
                    let moved = if order == 0 { of.realloc(address, size)? } else { None };
                    _ = catch_unwind(AssertUnwindSafe(|| of.heap.blocks().malloc(domain, 77)));
                    assert!(of.heap.is_closed());
                    Ok(moved)
                })
                .put_in(&heap, domain);
            heap.setup_debug_hooks().expect("memory");
            let block = malloc(&heap, domain, 5000);
            assert_eq!(heap.blocks().realloc(domain, Some(block), 300_000), Ok(None));
            assert!(heap.is_closed());
        }
    }
}

/// A hook that panics.
struct Panics(Cell<bool>);

impl Hooks for Panics {
    fn finalize(&self, _: &ObjectHeap, _: TypeId, _: usize) {
        self.panic();
    }
    fn clear(&self, _: &ObjectHeap, _: TypeId, _: usize) {
        self.panic();
    }
    fn dealloc(&self, _: &ObjectHeap, _: TypeId, _: usize) {
        self.panic();
    }
    fn traverse(&self, _: &ObjectHeap, _: TypeId, _: usize, _: &mut Visit<'_>) -> Result<(), obmalloc::Failed> {
        self.panic();
        Ok(())
    }
}

impl Panics {
    fn panic(&self) {
        if self.0.get() {
            resume_unwind(Box::new(()));
        }
    }
}

#[test]
fn a_hook_that_panics_closes_its_heap_for_good() {
    for profile in [&profile::V3_8, &profile::V3_13, &profile::V3_14_0] {
        for hook in 0..4 {
            for ending in 0..3 {
                let heap =
                    Rc::new(ObjectHeap::new(HeapOptions::new(profile), Box::new(Panics(Cell::new(true)))).expect("a heap"));
                let hooks = HookSet {
                    finalize: hook == 0,
                    clear: hook == 1,
                    dealloc: hook == 2,
                    traverse: hook == 3,
                    ..HookSet::default()
                };
                let fields = vec![("next".to_owned(), FieldKind::Object)];
                let node = heap.define_type(TypeSpec { fields, gc: true, hooks, ..TypeSpec::default() }).expect("a type");
                let held = heap.alloc(node, 0).expect("memory");
                for _ in 0..3 {
                    let object = heap.alloc(node, 0).expect("memory");
                    heap.set(object, Field::Member(0), Value::Object(object)).expect("an object");
                    heap.decref(object).expect("an object");
                }
                let panicked = catch_unwind(AssertUnwindSafe(|| heap.collect(2)));
                assert!(panicked.is_err() && heap.is_closed(), "{} {hook}", profile.release());
                let closed = |fault: Fault| assert_eq!(fault.kind, FaultKind::HeapClosed);
                closed(heap.decref(held).expect_err("closed"));
                closed(heap.incref(held).expect_err("closed"));
                assert!(heap.get(held, Field::Member(0)).is_err() && heap.alloc(node, 0).is_err());
                assert_eq!(heap.blocks().malloc(Domain::Obj, 8), None);
                finish(heap, ending);
            }
        }
    }
}
