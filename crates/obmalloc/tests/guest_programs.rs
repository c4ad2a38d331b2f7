//! Random programs with guests that do anything: they throw, refuse, lie, call the heap, swap allocators, free a block that is being resized,
//! and panic. Objects' hooks call the heap and panic, too. A model holds the bytes of every live block.
//!
//! `OBMALLOC_PROGRAMS` says how many programs there are, `OBMALLOC_SEED` the first of them.

mod common;

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr;
use std::rc::{Rc, Weak};

use common::{Random, seed, shrink};
use obmalloc::profile::{self, Geometry};
use obmalloc::{
    AllocatorId, AllocatorName, Answer, ArenaGuest, Domain, Failed, Field, FieldKind, Guest, HeapOptions, HookSet, Hooks,
    ItemKind, ObjectHeap, OwnAllocators, OwnError, Threw, TypeId, TypeSpec, Value, Visit,
};

/// Four pools an arena: arenas come and go all the time.
const TINY: Geometry = Geometry { arena_size: 64 << 10, pool_size: 16 << 10, alignment: 16, small_request_threshold: 4096 };
const OPS: usize = if cfg!(miri) { 12 } else { 50 };
const BLOCKS_MAX: usize = 40;
const DEPTH_MAX: u32 = 3;

/// One step. All further choices in it come from its seed.
#[derive(Clone, Copy, Debug)]
struct Op {
    verb: u8,
    seed: u64,
}

/// What a guest or a hook panics with.
struct Planned;

struct Block {
    domain: Domain,
    address: usize,
    size: usize,
    fill: u8,
}

impl Block {
    fn bytes(&self) -> &[u8] {
        // SAFETY: a live block of so many bytes.
        unsafe { std::slice::from_raw_parts(ptr::with_exposed_provenance(self.address), self.size) }
    }

    fn fill(&self) {
        fill(self.address, self.size, self.fill);
    }

    fn check(&self, size: usize) {
        let sound = self.bytes()[..size].iter().all(|&byte| byte == self.fill);
        assert!(sound, "a block of {} bytes of {} at {:#x} was written to", self.size, self.domain, self.address);
    }
}

fn fill(address: usize, size: usize, byte: u8) {
    // SAFETY: a live block of so many bytes, or a grant in which nothing lies.
    unsafe { ptr::with_exposed_provenance_mut::<u8>(address).write_bytes(byte, size) };
}

/// What the program and its guests share.
struct World {
    heap: OnceCell<Weak<ObjectHeap>>,
    random: RefCell<Random>,
    /// The verbs of this program.
    verbs: Vec<u8>,
    /// Guests do something odd in one of this many calls, and never if it is 0.
    honesty: Cell<usize>,
    panics: bool,
    depth: Cell<u32>,
    /// Whether a guest is being asked.
    asked: Cell<bool>,
    /// Nested steps that are left in this one.
    budget: Cell<u32>,
    live: RefCell<Vec<Block>>,
    objects: RefCell<Vec<(usize, i64)>>,
    types: Cell<Option<[TypeId; 2]>>,
    fills: Cell<u8>,
    own: RefCell<Vec<AllocatorId>>,
    guests: RefCell<Vec<AllocatorId>>,
    /// Where a grant may be.
    grants: RefCell<BTreeSet<usize>>,
    arena_grants: RefCell<BTreeSet<(usize, usize)>>,
    /// Grants that bump allocators give parts of: these stay.
    chunks: RefCell<BTreeSet<usize>>,
    /// Grants of this step, which may be on their way to become blocks.
    fresh: RefCell<BTreeSet<usize>>,
    /// Blocks that are being resized: address and bytes.
    resizing: RefCell<Vec<(usize, usize)>>,
    /// The size that a guest was asked for, by the address that it answered.
    given: RefCell<BTreeMap<usize, usize>>,
    /// A grant was moved or given back in this step, and a block that is being resized may have been in it.
    stale: Cell<bool>,
    /// A guest has not kept the contents of a block that it resized.
    forgets: Cell<bool>,
}

impl World {
    fn heap(&self) -> Option<Rc<ObjectHeap>> {
        self.heap.get()?.upgrade()
    }

    fn below(&self, limit: usize) -> usize {
        self.random.borrow_mut().below(limit)
    }

    fn pick<T: Copy>(&self, list: &RefCell<Vec<T>>) -> Option<T> {
        let list = list.borrow();
        if list.is_empty() { None } else { Some(list[self.below(list.len())]) }
    }

    fn is_odd(&self) -> bool {
        self.honesty.get() != 0 && self.below(self.honesty.get()) == 0
    }

    fn size(&self) -> usize {
        match self.below(20) {
            0..=13 => self.below(600),
            14..=17 => self.below(5000),
            18 => 0,
            _ => self.below(70_000),
        }
    }

    fn domain(&self) -> Domain {
        Domain::ALL[self.below(3)]
    }

    fn verb(&self) -> u8 {
        self.verbs[self.below(self.verbs.len())]
    }

    fn note_own(&self, heap: &ObjectHeap) {
        for domain in Domain::ALL {
            if let Ok(id @ AllocatorId::Own(_)) = heap.allocator(domain)
                && !self.own.borrow().contains(&id)
            {
                self.own.borrow_mut().push(id);
            }
        }
    }

    /// An address of any kind.
    fn any_address(&self) -> usize {
        let of_set = |set: &BTreeSet<usize>| set.iter().nth(self.below(set.len().max(1))).copied();
        let base = match self.below(6) {
            0 => {
                let live = self.live.borrow();
                if live.is_empty() { None } else { Some(live[self.below(live.len())].address) }
            }
            1 | 2 => of_set(&self.grants.borrow()),
            3 => {
                let given = self.given.borrow();
                given.keys().nth(self.below(given.len().max(1))).copied()
            }
            4 => self.pick(&self.objects).map(|(object, _)| object),
            _ => Some([0, 16, 1 << 40, usize::MAX - 15, &raw const *self as usize][self.below(5)]),
        };
        let address = base.unwrap_or(32).wrapping_add([0, 0, 0, 16, 64, 8, 1, usize::MAX - 15][self.below(8)]);
        if self.chunks.borrow().contains(&address) { address.wrapping_add(16) } else { address }
    }

    fn enter(&self, domain: Domain, address: usize, size: usize) {
        let fill = self.fills.get();
        self.fills.set(fill.wrapping_add(1));
        let block = Block { domain, address, size, fill };
        for other in self.live.borrow().iter() {
            let apart = address + size <= other.address || other.address + other.size <= address;
            assert!(apart && address != other.address, "{address:#x} overlaps {:#x}", other.address);
        }
        block.fill();
        self.live.borrow_mut().push(block);
    }

    /// Does something while a guest is being asked.
    fn disturb(&self) {
        let outer = self.asked.replace(true);
        self.disturb_with(self.verb());
        self.asked.set(outer);
    }

    /// Does something in the middle of a call.
    fn disturb_with(&self, verb: u8) {
        if self.honesty.get() == 0 || self.depth.get() >= DEPTH_MAX || self.budget.get() == 0 || self.below(3) != 0 {
            return;
        }
        let Some(heap) = self.heap() else { return };
        self.depth.set(self.depth.get() + 1);
        self.budget.set(self.budget.get() - 1);
        let catches = self.below(2) == 0;
        let done = catch_unwind(AssertUnwindSafe(|| self.step(&heap, verb)));
        self.depth.set(self.depth.get() - 1);
        if let Err(panic) = done
            && !(catches && panic.is::<Planned>())
        {
            resume_unwind(panic);
        }
    }

    /// Of so many times once, in a program with panics.
    fn may_panic(&self, times: usize) {
        if self.panics && self.honesty.get() != 0 && self.below(times) == 0 {
            resume_unwind(Box::new(Planned));
        }
    }

    fn step(&self, heap: &ObjectHeap, verb: u8) {
        let is_nested = self.depth.get() != 0;
        match verb {
            0..=9 => self.allocate(heap),
            10..=13 => self.free(heap),
            15..=20 => self.realloc(heap),
            21 => self.misuse(heap),
            22..=23 => self.own_calls(heap),
            14 | 24..=25 => self.objects(heap, is_nested),
            26..=30 => self.set_allocator(heap),
            31 => {
                if let Ok(own) = heap.own_allocators() {
                    self.scribble(&own);
                }
            }
            32 => {
                heap.setup_debug_hooks().expect("memory");
                self.note_own(heap);
            }
            33 => {
                if self.below(3) != 0 {
                    heap.set_nomemory(self.below(6), Some(self.below(9))).expect("memory");
                    self.note_own(heap);
                } else {
                    _ = heap.remove_nomemory();
                }
            }
            34 => _ = heap.remove_nomemory(),
            35..=36 => {
                let guest: Option<Rc<dyn ArenaGuest>> = match (self.below(3), self.heap.get()) {
                    (0, _) | (_, None) => None,
                    _ => Some(Rc::new(Arenas { world: self.this(), way: self.below(3) })),
                };
                heap.set_arena_guest(guest).expect("memory");
            }
            37 => heap.set_refusing(self.below(4) == 0),
            38 => {
                heap.empty_quarantine();
            }
            _ => {
                // In the middle of a call it may find anything.
                let found = (heap.verify(), heap.verify_guards());
                assert!(is_nested || heap.is_closed() || found.0.is_ok() && found.1.is_ok(), "{found:?}");
                heap.stats();
            }
        }
    }

    /// The world that guests have.
    fn this(&self) -> Rc<World> {
        THIS.with_borrow(|this| this.upgrade().expect("there as long as its program"))
    }

    fn allocate(&self, heap: &ObjectHeap) {
        let (domain, size) = (self.domain(), self.size());
        if self.live.borrow().len() >= BLOCKS_MAX {
            return self.free(heap);
        }
        let block = match self.below(4) {
            0 => heap.blocks().calloc(domain, 1, size),
            1 => heap.blocks().realloc(domain, None, size).unwrap_or_else(|fault| {
                assert!(heap.is_closed(), "{fault}");
                None
            }),
            _ => heap.blocks().malloc(domain, size),
        };
        if let Some(block) = block {
            self.enter(domain, block.as_ptr().expose_provenance(), size);
        }
    }

    fn take_block(&self) -> Option<Block> {
        let mut live = self.live.borrow_mut();
        let count = live.len();
        (count != 0).then(|| live.swap_remove(self.below(count)))
    }

    fn free(&self, heap: &ObjectHeap) {
        let Some(block) = self.take_block() else { return };
        block.check(block.size);
        let done = heap.blocks().free(block.domain, block.address);
        assert!(done.is_ok() || heap.is_closed(), "{done:?}");
    }

    fn realloc(&self, heap: &ObjectHeap) {
        let (Some(block), size) = (self.take_block(), self.size()) else { return };
        block.check(block.size);
        let outer = self.forgets.replace(false);
        self.resizing.borrow_mut().push((block.address, block.size));
        let done = heap.blocks().realloc(block.domain, Some(block.address), size);
        self.resizing.borrow_mut().pop();
        match done {
            Ok(Some(moved)) => {
                let moved = Block { address: moved.as_ptr().expose_provenance(), size, ..block };
                if !self.forgets.get() {
                    moved.check(size.min(block.size));
                }
                self.enter(moved.domain, moved.address, size);
            }
            Ok(None) => {
                if !heap.is_closed() {
                    block.check(block.size);
                    self.live.borrow_mut().push(block);
                }
            }
            Err(fault) => assert!(heap.is_closed(), "{fault}"),
        }
        self.forgets.set(outer);
    }

    /// Frees or resizes an address of any kind through a domain.
    fn misuse(&self, heap: &ObjectHeap) {
        let (domain, address) = (self.domain(), self.any_address());
        let is_live = self.live.borrow().iter().any(|block| block.address == address);
        if address == 0 || is_live {
            return heap.blocks().free_null(domain);
        }
        match self.below(3) {
            0 => {
                let done = heap.blocks().free(domain, address);
                // A grant of the allocator that is in is its block.
                assert!(done.is_err() || self.grants.borrow().contains(&address) && !self.asked.get(), "{address:#x}");
            }
            1 => {
                let done = heap.blocks().realloc(domain, Some(address), 40);
                assert!(done.is_err() || self.grants.borrow().contains(&address) && !self.asked.get(), "{address:#x}");
                if let Ok(moved) = done {
                    // It is a block now.
                    let address = moved.map_or(address, |moved| moved.as_ptr().expose_provenance());
                    let done = heap.blocks().free(domain, address);
                    assert!(done.is_ok() || heap.is_closed(), "{done:?}");
                }
            }
            _ => _ = heap.blocks().usable_size(domain, address),
        }
    }

    /// The heap's own allocators, called directly.
    fn own_calls(&self, heap: &ObjectHeap) {
        let (Ok(own), Some(id)) = (heap.own_allocators(), self.pick(&self.own)) else { return };
        let address = (self.below(2) == 0).then(|| self.any_address());
        let is_live = self.live.borrow().iter().any(|block| Some(block.address) == address);
        self.stale.set(true);
        match self.below(5) {
            0 | 1 => _ = self.keep(own.malloc(id, self.size())),
            2 => _ = self.keep(own.calloc(id, 3, self.size())),
            3 if !is_live => _ = self.keep(own.realloc(id, address, self.size())),
            _ if !is_live => _ = own.free(id, address),
            _ => {}
        }
        self.scribble(&own);
    }

    fn keep(&self, grant: Result<Option<usize>, OwnError>) -> Result<Option<usize>, OwnError> {
        let there = match grant {
            Ok(address) => address,
            Err(OwnError::Guest(fault)) => fault.address,
            Err(_) => None,
        };
        self.grants.borrow_mut().extend(there);
        self.fresh.borrow_mut().extend(there);
        grant
    }

    /// Writes to what belongs to guests.
    fn scribble(&self, own: &OwnAllocators<'_>) {
        let grants: Vec<usize> = self.grants.borrow().iter().copied().collect();
        for grant in grants {
            if self.below(4) == 0
                && !self.fresh.borrow().contains(&grant)
                && let Some(size) = own.grant_size(grant)
            {
                fill(grant, size, 0x5a);
            }
        }
    }

    fn objects(&self, heap: &ObjectHeap, is_nested: bool) {
        let Some([node, wide]) = self.types.get() else { return };
        let usable = |failed: bool| assert!(!is_nested || failed, "objects are not to be used while a guest is asked");
        let object = self.pick(&self.objects);
        match (self.below(6), object) {
            (0..=1, _) | (_, None) => {
                let (kind, nitems) = if self.below(2) == 0 { (node, 0) } else { (wide, self.below(200)) };
                let made = heap.alloc(kind, nitems);
                usable(made.is_err());
                let Ok(object) = made else { return };
                let value = i64::from(self.fills.get()) << 32;
                heap.set(object, Field::Member(1), Value::Integer(value)).expect("an object");
                if self.below(3) == 0 {
                    heap.set(object, Field::Member(0), Value::Object(object)).expect("an object");
                }
                self.objects.borrow_mut().push((object, value));
            }
            (2, Some((object, _))) => {
                let done = heap.decref(object);
                usable(done.is_err());
                if done.is_ok() {
                    self.objects.borrow_mut().retain(|&(other, _)| other != object);
                } else {
                    assert!(is_nested || heap.is_closed(), "{done:?}");
                }
            }
            (3, Some((object, value))) => {
                let done = heap.gc_resize(object, self.below(300));
                usable(done.is_err());
                if let Ok(resized) = done {
                    let mut objects = self.objects.borrow_mut();
                    objects.retain(|&(other, _)| other != object);
                    objects.push((resized, value));
                }
            }
            (4, _) => usable(heap.collect(2).is_err() || is_nested),
            (_, Some((object, _))) => {
                if let Ok(own) = heap.own_allocators() {
                    let kind = heap.type_of(object).map(|kind| heap.type_info(kind).presize());
                    let block = object - kind.unwrap_or(0);
                    let ids = self.own.borrow().clone();
                    for id in ids {
                        assert!(own.free(id, Some(block)).is_err() && own.realloc(id, Some(block), 8).is_err());
                    }
                }
            }
        }
    }

    fn set_allocator(&self, heap: &ObjectHeap) {
        let domain = self.domain();
        let allocator = match self.below(5) {
            0 | 1 => self.pick(&self.own),
            2 if !self.guests.borrow().is_empty() => self.pick(&self.guests),
            _ => {
                let below = match self.below(3) {
                    0 => self.pick(&self.own),
                    _ => heap.allocator(domain).ok().filter(|id| matches!(id, AllocatorId::Own(_))),
                };
                let Some(below) = below.or(self.pick(&self.own)) else { return };
                let header = [0, 0, 16, 32, 64][self.below(5)];
                let script = Script { world: self.this(), below, header, is_bump: self.below(4) == 0, chunk: Cell::default() };
                let guest = heap.add_guest(Rc::new(script)).expect("memory");
                self.guests.borrow_mut().push(guest);
                Some(guest)
            }
        };
        if let Some(allocator) = allocator {
            _ = heap.set_allocator(domain, allocator);
        }
        self.note_own(heap);
    }

    /// Checks that everything is as the model has it.
    fn check(&self, heap: &ObjectHeap) {
        let live = self.live.borrow();
        let usable = |block: &Block| heap.blocks().usable_size(block.domain, block.address).expect("live");
        let mut extents: Vec<_> = live.iter().map(|block| (block.address, usable(block))).collect();
        extents.sort_unstable();
        for pair in extents.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{} bytes at {:#x} overlap {:#x}", pair[0].1, pair[0].0, pair[1].0);
        }
        for block in live.iter() {
            block.check(block.size);
            assert!(heap.blocks().owns(block.address), "{:#x} is live", block.address);
            // The rest of the block is the block's alone: the walks below find a write to free memory.
            fill(block.address + block.size, usable(block).checked_sub(block.size).expect("as asked for"), block.fill);
        }
        for &(object, value) in self.objects.borrow().iter() {
            assert_eq!(heap.get(object, Field::Member(1)), Ok(Value::Integer(value)), "an object was written to");
        }
        heap.verify().unwrap_or_else(|corruption| panic!("{corruption}"));
        heap.verify_guards().unwrap_or_else(|fault| panic!("{fault}"));
        assert_eq!((heap.take_fault(), heap.take_late_fault()), (None, None));
    }

    /// Frees everything.
    fn end(&self, heap: &ObjectHeap) {
        self.honesty.set(0);
        heap.set_refusing(false);
        heap.remove_nomemory().expect("memory");
        while !self.live.borrow().is_empty() {
            self.free(heap);
        }
        for (object, _) in self.objects.take() {
            heap.decref(object).expect("an object");
        }
        heap.collect(2).expect("a collection");
        heap.empty_quarantine();
        let own = heap.own_allocators().expect("memory");
        let (mut occupied, ids) = (true, self.own.borrow().clone());
        for _ in 0..100 {
            occupied = false;
            let grants = self.grants.borrow().clone();
            for &grant in &grants {
                for &id in &ids {
                    occupied |= matches!(own.free(id, Some(grant)), Err(OwnError::Occupied(_)));
                }
            }
        }
        let arenas = self.arena_grants.borrow().clone();
        for &(address, size) in &arenas {
            _ = own.arena_free(address, size);
        }
        heap.verify().unwrap_or_else(|corruption| panic!("at the end: {corruption}"));
        assert!(occupied || heap.allocated_blocks() == 0, "{} blocks are left", heap.allocated_blocks());
    }
}

thread_local! {
    static THIS: RefCell<Weak<World>> = const { RefCell::new(Weak::new()) };
}

/// Hooks that use blocks and panic.
struct Moody;

impl Moody {
    fn mood(&self) {
        let Some(world) = THIS.with_borrow(Weak::upgrade) else { return };
        // The object may be the model's, in the middle of a step of its own.
        let verb = match world.verb() {
            14 | 24..=25 => 0,
            verb => verb,
        };
        world.disturb_with(verb);
        world.may_panic(8);
    }
}

impl Hooks for Moody {
    fn traverse(&self, heap: &ObjectHeap, _: TypeId, object: usize, visit: &mut Visit<'_>) -> Result<(), Failed> {
        THIS.with_borrow(Weak::upgrade).iter().for_each(|world| world.may_panic(8));
        match heap.get(object, Field::Member(0)) {
            Ok(Value::Object(next)) => visit(next).map_err(|_| Failed),
            _ => Ok(()),
        }
    }
    fn clear(&self, heap: &ObjectHeap, _: TypeId, object: usize) {
        self.mood();
        _ = heap.set(object, Field::Member(0), Value::Null);
    }
    fn finalize(&self, _: &ObjectHeap, _: TypeId, _: usize) {
        self.mood();
    }
    fn dealloc(&self, _: &ObjectHeap, _: TypeId, _: usize) {
        self.mood();
    }
}

/// A guest for blocks.
struct Script {
    world: Rc<World>,
    below: AllocatorId,
    header: usize,
    /// Gives parts of larger grants.
    is_bump: bool,
    /// The present grant: the address of its next part, and its end.
    chunk: Cell<(usize, usize)>,
}

impl Script {
    /// What the guest does before it answers. Returns an odd answer, or `None` if the guest is to answer as it should.
    fn mood(&self, own: &OwnAllocators<'_>) -> Option<Answer> {
        let world = &self.world;
        world.disturb();
        world.may_panic(60);
        if !world.is_odd() {
            return None;
        }
        Some(match world.below(6) {
            0 | 1 => Err(Threw(7)),
            2 => Ok(None),
            3 => {
                _ = world.keep(own.malloc(self.below, 100));
                Err(Threw(8))
            }
            _ => Ok(Some(world.any_address())),
        })
    }

    fn give(&self, own: &OwnAllocators<'_>, size: usize, zeroed: bool) -> Answer {
        let world = &self.world;
        let Some(whole) = size.max(1).checked_next_multiple_of(16).filter(|&whole| whole < 1 << 40) else { return Ok(None) };
        if self.is_bump && whole < 4000 {
            let (mut next, mut end) = self.chunk.get();
            if next + whole > end {
                let chunk = world.keep(own.calloc(self.below, 1, 8192)).map_err(|_| Threw(1))?;
                let Some(chunk) = chunk else { return Ok(None) };
                world.chunks.borrow_mut().insert(chunk);
                (next, end) = (chunk.next_multiple_of(16), chunk + 8192);
            }
            self.chunk.set((next + whole, end));
            return Ok(Some(next));
        }
        let whole = if self.header == 0 { size } else { self.header + size.max(1) };
        let grant = if zeroed { own.calloc(self.below, 1, whole) } else { own.malloc(self.below, whole) };
        let grant = world.keep(grant).map_err(|_| Threw(2))?;
        Ok(grant.map(|grant| grant + self.header))
    }

    fn answer(&self, size: usize, answer: Answer) -> Answer {
        if let Ok(Some(address)) = answer {
            self.world.given.borrow_mut().insert(address, size);
        }
        answer
    }

    fn resize(&self, own: &OwnAllocators<'_>, address: usize, size: usize) -> Answer {
        let world = &self.world;
        // An outer guest is resizing a block too, and no longer knows where it is.
        world.stale.set(world.stale.get() || world.resizing.borrow().len() > 1);
        // If the block does not stay where it is, its old memory is a grant from now on.
        world.grants.borrow_mut().insert(address);
        // Hooks may have put guard bytes around it.
        let known = world.resizing.borrow().iter().rev().find_map(|&(block, size)| {
            let before = block.checked_sub(address).filter(|&before| before <= 32)?;
            Some(before + size)
        });
        let ids = world.own.borrow().clone();
        if let Some(known) = known
            && (self.is_bump || world.honesty.get() != 0 && world.below(3) == 0)
        {
            let Some(moved) = self.give(own, size, false)? else { return Ok(None) };
            // A guest that lies may have answered with memory that is not its own, which must not be written to.
            let fits = if self.is_bump { world.honesty.get() == 0 } else { own.grant_size(moved - self.header).is_some() };
            if world.forgets.get() || world.stale.get() || !fits || world.is_odd() {
                world.forgets.set(true);
            } else {
                // SAFETY: two blocks of at least so many bytes, and each is this guest's alone.
                unsafe {
                    let from = ptr::with_exposed_provenance::<u8>(address);
                    from.copy_to(ptr::with_exposed_provenance_mut(moved), known.min(size));
                }
            }
            for header in [0, self.header] {
                if !world.chunks.borrow().contains(&(address - header)) {
                    ids.iter().for_each(|&id| _ = own.free(id, Some(address - header)));
                }
            }
            return Ok(Some(moved));
        }
        for header in [self.header, 0] {
            let whole = if header == 0 { size } else { header + size.max(1) };
            // This grant holds no block, so it is not the block's grant.
            if world.chunks.borrow().contains(&(address - header)) || own.grant_size(address - header).is_some() {
                continue;
            }
            for &id in [self.below].iter().chain(&ids) {
                match world.keep(own.realloc(id, Some(address - header), whole)) {
                    Ok(moved) => return Ok(moved.map(|moved| moved + header)),
                    Err(OwnError::Guest(_)) => return Err(Threw(3)),
                    Err(_) => {}
                }
            }
        }
        // The block lies in a larger grant, or in another guest's.
        world.forgets.set(true);
        self.give(own, size, false)
    }
}

impl Guest for Script {
    fn malloc(&self, own: &OwnAllocators<'_>, size: usize) -> Answer {
        let answer = self.mood(own).unwrap_or_else(|| self.give(own, size, false));
        self.answer(size, answer)
    }

    fn calloc(&self, own: &OwnAllocators<'_>, count: usize, size: usize) -> Answer {
        let answer = self.mood(own).unwrap_or_else(|| self.give(own, count * size, true));
        self.answer(count * size, answer)
    }

    fn realloc(&self, own: &OwnAllocators<'_>, address: Option<usize>, size: usize) -> Answer {
        let Some(address) = address else { return self.malloc(own, size) };
        let world = &self.world;
        if let Some(mood) = self.mood(own) {
            world.grants.borrow_mut().insert(address);
            // An odd answer that is free memory of the guest's becomes the block.
            world.forgets.set(true);
            return self.answer(size, mood);
        }
        let odd = world.is_odd();
        if odd && world.below(3) == 0 {
            // While the block is being resized, no domain frees it.
            if let Some(heap) = world.heap()
                && !world.live.borrow().iter().any(|block| block.address == address)
            {
                let done = Domain::ALL.map(|domain| heap.blocks().free(domain, address).is_err());
                assert_eq!(done, [true; 3], "{address:#x} was freed while it was resized");
            }
        }
        let answer = self.resize(own, address, size);
        if odd {
            match world.below(4) {
                0 => return Err(Threw(4)),
                1 => {
                    world.stale.set(true);
                    _ = self.resize(own, address, size + 16);
                }
                2 => {
                    world.forgets.set(true);
                    return self.answer(size, Ok(Some(world.any_address())));
                }
                _ => {
                    world.forgets.set(true);
                    return Ok(None);
                }
            }
        }
        world.disturb();
        self.answer(size, answer)
    }

    fn free(&self, own: &OwnAllocators<'_>, address: Option<usize>) -> Result<(), Threw> {
        let world = &self.world;
        let Some(address) = address else { return Ok(()) };
        world.stale.set(true);
        world.grants.borrow_mut().insert(address);
        world.disturb();
        world.may_panic(60);
        if world.is_odd() {
            match world.below(4) {
                0 => return Err(Threw(5)),
                1 => return Ok(()),
                2 => _ = own.free(self.below, Some(world.any_address())).is_ok(),
                _ => self.world.scribble(own),
            }
        }
        let ids = world.own.borrow().clone();
        for header in [self.header, 0] {
            if world.chunks.borrow().contains(&(address - header)) {
                continue;
            }
            for &id in [self.below].iter().chain(&ids) {
                match own.free(id, Some(address - header)) {
                    Ok(()) => return Ok(()),
                    Err(OwnError::Guest(_)) => return Err(Threw(6)),
                    Err(_) => {}
                }
            }
        }
        Ok(())
    }
}

/// A guest for arenas.
struct Arenas {
    world: Rc<World>,
    way: usize,
}

impl ArenaGuest for Arenas {
    fn alloc(&self, own: &OwnAllocators<'_>, size: usize) -> Answer {
        let world = &self.world;
        world.disturb();
        world.may_panic(60);
        if world.is_odd() {
            return match world.below(3) {
                0 => Err(Threw(10)),
                1 => Ok(None),
                _ => Ok(Some(world.any_address())),
            };
        }
        if self.way == 0 {
            let arena = own.arena_alloc(size);
            world.arena_grants.borrow_mut().extend(arena.map(|arena| (arena, size)));
            return Ok(arena);
        }
        let Some(&raw) = world.own.borrow().first() else { return Ok(None) };
        let memory = world.keep(own.malloc(raw, size + (32 << 10))).map_err(|_| Threw(11))?;
        let aligned = |memory: usize| memory.next_multiple_of(16 << 10) + if self.way == 1 { 0 } else { 0x1010 };
        Ok(memory.map(aligned))
    }

    fn free(&self, own: &OwnAllocators<'_>, address: usize, size: usize) -> Result<(), Threw> {
        let world = &self.world;
        world.arena_grants.borrow_mut().insert((address, size));
        world.disturb();
        world.may_panic(60);
        if world.is_odd() {
            return if world.below(2) == 0 { Err(Threw(12)) } else { Ok(()) };
        }
        _ = own.arena_free(address, size);
        Ok(())
    }
}

/// The verbs of a program: all of them, or about half. Without some verbs the others come more often, and a fault that they hide can show.
fn verbs(seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed ^ 0x7e4b);
    let is_whole = random.below(2) == 0;
    (0..40).filter(|&verb| verb == 0 || is_whole || random.below(2) == 0).collect()
}

fn program(seed: u64) -> Vec<Op> {
    let (mut random, verbs) = (Random::new(seed), verbs(seed));
    (0..OPS).map(|_| Op { verb: verbs[random.below(verbs.len())], seed: random.next() }).collect()
}

/// Runs a program for a heap that `seed` chooses.
fn run(seed: u64, ops: &[Op]) {
    let mut random = Random::new(seed ^ 0x5eed);
    let profile = profile::ALL[random.below(profile::ALL.len())];
    let geometry = if random.below(4) == 0 && !cfg!(miri) { None } else { Some(TINY) };
    let allocator = AllocatorName::ALL[random.below(AllocatorName::ALL.len())];
    let quarantine = [0, 0, 3000][random.below(3)];
    let memory_limit = [None, None, Some(2 << 20)][random.below(3)];
    let honesty = [0, 4, 8, 20][random.below(4)];
    let panics = random.below(4) == 0;
    let ending = random.below(5);
    let hooked = random.below(2);
    let options = HeapOptions { geometry, allocator, quarantine, memory_limit, ..HeapOptions::new(profile) };
    let heap = Rc::new(ObjectHeap::new(options, Box::new(Moody)).expect("a heap"));
    let world = Rc::new(World {
        heap: OnceCell::from(Rc::downgrade(&heap)),
        random: RefCell::new(random),
        verbs: verbs(seed),
        honesty: Cell::new(honesty),
        panics,
        depth: Cell::new(0),
        asked: Cell::new(false),
        budget: Cell::new(0),
        live: RefCell::default(),
        objects: RefCell::default(),
        types: Cell::new(None),
        fills: Cell::new(1),
        own: RefCell::default(),
        guests: RefCell::default(),
        grants: RefCell::default(),
        arena_grants: RefCell::default(),
        chunks: RefCell::default(),
        fresh: RefCell::default(),
        resizing: RefCell::default(),
        given: RefCell::default(),
        stale: Cell::new(false),
        forgets: Cell::new(false),
    });
    THIS.set(Rc::downgrade(&world));
    let fields = || vec![("next".to_owned(), FieldKind::Object), ("number".to_owned(), FieldKind::I64)];
    let hooks = [HookSet::default(), HookSet { traverse: true, clear: true, finalize: true, dealloc: true, del: false }][hooked];
    let define =
        |items| heap.define_type(TypeSpec { fields: fields(), gc: true, items, hooks, ..TypeSpec::default() }).expect("memory");
    world.types.set(Some([define(None), define(Some(ItemKind::Object))]));
    world.note_own(&heap);
    for op in ops {
        *world.random.borrow_mut() = Random::new(op.seed);
        world.budget.set(8);
        world.fresh.borrow_mut().clear();
        world.stale.set(false);
        world.asked.set(false);
        let done = catch_unwind(AssertUnwindSafe(|| world.step(&heap, op.verb)));
        if let Err(panic) = done {
            if !panic.is::<Planned>() {
                resume_unwind(panic);
            }
            assert!(heap.is_closed(), "a guest has panicked");
        }
        world.depth.set(0);
        if heap.is_closed() {
            for domain in Domain::ALL {
                assert!(heap.blocks().malloc(domain, 8).is_none() && heap.blocks().calloc(domain, 8, 1).is_none());
                if let Some(block) = world.live.borrow().first() {
                    assert!(heap.blocks().free(domain, block.address).is_err());
                    assert!(heap.blocks().realloc(domain, Some(block.address), 8).is_err());
                }
            }
            break;
        }
        heap.take_guest_fault();
        // To walk the heap takes Miri longer than all else.
        if !cfg!(miri) {
            world.check(&heap);
        }
    }
    *world.random.borrow_mut() = Random::new(seed);
    if ending == 0 && !heap.is_closed() {
        world.end(&heap);
    }
    world.depth.set(DEPTH_MAX);
    let Ok(heap) = Rc::try_unwrap(heap) else { panic!("guests let go of the heap") };
    if ending < 3 {
        let mut leaving = heap.take_down();
        let done = catch_unwind(AssertUnwindSafe(|| {
            for patience in 0..if ending == 2 { 3 } else { usize::MAX } {
                let mut asked = 0;
                let is_over = || {
                    asked += 1;
                    asked > 100 * patience
                };
                if leaving.go_on(is_over) {
                    break;
                }
            }
        }));
        assert!(done.is_ok() || done.is_err_and(|panic| panic.is::<Planned>()));
    }
}

#[test]
fn whatever_guests_do_every_block_keeps_its_bytes() {
    let first = seed();
    let default = if cfg!(miri) { 4 } else { 2000 };
    let count = std::env::var("OBMALLOC_PROGRAMS").ok().and_then(|count| count.parse().ok()).unwrap_or(default);
    for seed in (0..count).map(|number| first.wrapping_add(number)) {
        let ops = program(seed);
        let Err(_) = catch_unwind(|| run(seed, &ops)) else { continue };
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let shortest = shrink(ops, |ops| catch_unwind(|| run(seed, ops)).is_err());
        std::panic::set_hook(hook);
        println!("OBMALLOC_SEED={seed} OBMALLOC_PROGRAMS=1, shortest: {shortest:?}");
        run(seed, &shortest);
    }
}
