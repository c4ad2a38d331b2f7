//! Looks at pools and blocks one by one, and compares them with what the heap counts.

#[allow(dead_code, reason = "nothing is shrunk here")]
mod common;

use std::collections::BTreeSet;

use common::{Random, seed};
use obmalloc::profile::{ALL, Geometry};
use obmalloc::{Domain, HeapOptions, NoHooks, ObjectHeap, TypeSpec};

fn heap(options: HeapOptions) -> ObjectHeap {
    ObjectHeap::new(options, Box::new(NoHooks)).expect("a heap")
}

/// Whether each block of a pool is in use.
fn used_blocks(heap: &ObjectHeap, pool: usize) -> Vec<bool> {
    let mut used = vec![false; heap.used_blocks(pool, &mut []).expect("a sound free list")];
    heap.used_blocks(pool, &mut used).expect("a sound free list");
    used
}

/// All blocks in use, found pool by pool; on the way compares what is found with what the heap counts.
fn look(heap: &ObjectHeap) -> BTreeSet<usize> {
    let (geometry, stats) = (heap.geometry(), heap.stats());
    let (mut found, mut pools) = (BTreeSet::new(), vec![0; geometry.size_classes()]);
    for arena in heap.arenas() {
        let mut empty = 0;
        let first = arena.address.next_multiple_of(geometry.pool_size);
        for address in (first..).step_by(geometry.pool_size).take(arena.total_pools) {
            let pool = heap.pool(address + 5).expect("a pool");
            assert_eq!((pool.address, pool.arena), (address, arena.address));
            assert_eq!(heap.arena_base(address + 5), Some(arena.address));
            empty += usize::from(pool.used == 0);
            let used = used_blocks(heap, address);
            assert_eq!(used.iter().filter(|used| **used).count(), pool.used);
            assert_eq!(used.len(), pool.used + pool.free);
            let Some(class) = pool.size_class else { continue };
            assert_eq!(used.len(), geometry.blocks_per_pool(class));
            pools[class] += usize::from(pool.used != 0);
            let places = (address + 48..).step_by(geometry.block_size(class));
            found.extend(places.zip(used).filter_map(|(block, used)| used.then_some(block)));
        }
        assert_eq!(empty, arena.free_pools);
        let behind = heap.pool(arena.address + arena.size);
        assert!(behind.is_none_or(|pool| pool.arena != arena.address), "behind the arena");
    }
    assert_eq!(pools, stats.classes.iter().map(|class| class.pools).collect::<Vec<_>>());
    found
}

/// The live blocks of a domain that windows show, as the face of the binding reads them.
fn shown(heap: &ObjectHeap, domain: Domain) -> BTreeSet<usize> {
    let geometry = heap.geometry();
    let bits = if domain == Domain::Mem { 2 } else { 3 };
    let mut found = BTreeSet::new();
    for place in 0.. {
        let base = heap.region().0 + place * geometry.arena_size;
        let Some(window) = heap.window(place) else {
            if base > heap.arenas().iter().map(|arena| arena.address).max().unwrap_or(0) {
                return found;
            }
            continue;
        };
        assert_eq!((window.memory.addr().get(), window.memory.len()), (base, geometry.arena_size));
        // SAFETY: nothing is called meanwhile.
        let (live, headers) = unsafe { (window.live.as_ref(), window.headers.as_ref()) };
        for unit in (0..geometry.arena_size / geometry.alignment).filter(|unit| live[unit / 4] >> (unit % 4 * 2) & 3 == bits) {
            let (block, pool) = (base + unit * geometry.alignment, unit * geometry.alignment / geometry.pool_size);
            let class = usize::from(u16::from_ne_bytes([headers[pool * 32 + 30], headers[pool * 32 + 31]]));
            assert_eq!(heap.blocks().usable_size(domain, block), Ok(geometry.block_size(class)));
            found.insert(block);
        }
    }
    unreachable!()
}

#[test]
fn pools_and_windows_show_the_blocks_that_are_live() {
    let small = Geometry { arena_size: 64 << 10, pool_size: 4 << 10, alignment: 8, small_request_threshold: 512 };
    for (number, profile) in ALL.into_iter().enumerate() {
        for geometry in [None, Some(small)] {
            let heap = heap(HeapOptions { geometry, ..HeapOptions::new(profile) });
            let mut random = Random::new(seed() + number as u64);
            let mut live: [BTreeSet<usize>; 2] = Default::default();
            for step in 0..if cfg!(miri) { 200 } else { 6000 } {
                let (domain, index) = if random.below(2) == 0 { (Domain::Mem, 0) } else { (Domain::Obj, 1) };
                // The second half frees more than it asks for, so that pools and arenas become empty.
                if random.below(8) < if step < 3000 { 5 } else { 2 } {
                    live[index].insert(heap.blocks().malloc(domain, 1 + random.below(512)).expect("a block").addr().get());
                } else if let Some(&block) = live[index].iter().nth(random.below(live[index].len().max(1))) {
                    live[index].remove(&block);
                    heap.blocks().free(domain, block).expect("a live block");
                }
                if step % 1000 == 999 {
                    assert_eq!(look(&heap), live.iter().flatten().copied().collect());
                    assert_eq!([shown(&heap, Domain::Mem), shown(&heap, Domain::Obj)], live);
                    heap.trim();
                }
            }
        }
    }
}

#[test]
fn a_free_list_that_leads_elsewhere_or_round_in_a_circle_is_an_error() {
    for round in [false, true] {
        let heap = heap(HeapOptions::new(ALL[0]));
        let blocks = [0; 4].map(|_| heap.blocks().malloc(Domain::Obj, 64).expect("a block"));
        // One stays, and with it the arena.
        for block in &blocks[..3] {
            heap.blocks().free(Domain::Obj, block.addr().get()).expect("a live block");
        }
        let link = if round { blocks[2].as_ptr() } else { blocks[2].as_ptr().wrapping_add(8) };
        // SAFETY: it plays a native peer that writes to a free block, which the heap looks at before it follows it.
        unsafe { blocks[2].cast::<*mut u8>().write(link) };
        heap.used_blocks(link.addr(), &mut [true; 100]).expect_err("a broken list");
    }
}

#[test]
fn a_window_shows_objects_from_the_first_type_on() {
    let heap = heap(HeapOptions::new(ALL[0]));
    heap.blocks().malloc(Domain::Obj, 16).expect("a block");
    assert_eq!((heap.has_types(), heap.window(0).map(|window| window.objects.len())), (false, Some(0)));
    let kind = heap.define_type(TypeSpec { gc: true, ..TypeSpec::default() }).expect("a type");
    let object = heap.alloc(kind, 0).expect("an object");
    let window = heap.window(0).expect("a window");
    // SAFETY: nothing is called meanwhile.
    let states = unsafe { window.objects.as_ref() };
    let unit = (object - window.memory.addr().get()) / heap.geometry().alignment;
    assert_eq!((heap.has_types(), states.iter().position(|&state| state > 1)), (true, Some(unit)));
    // The object lies 16 bytes behind the beginning of its block.
    assert!(heap.blocks().usable_size(Domain::Obj, object - 16).is_err());
}

#[test]
fn hooks_and_a_quarantine_make_a_heap_less_than_plain() {
    let is_plain = ObjectHeap::is_plain;
    let options = HeapOptions::new(ALL[0]);
    assert!(is_plain(&heap(options)));
    assert!(!is_plain(&heap(HeapOptions { quarantine: 1000, ..options })));
    let hooked = heap(options);
    hooked.setup_debug_hooks().expect("hooks");
    assert!(!is_plain(&hooked));
}
