//! One input as a program: what heap it is for, and what is done with that. Hooks run steps of the same program.

use std::alloc::{Layout, alloc, dealloc};
use std::cell::Cell;
use std::ffi::c_void;
use std::num::NonZeroU64;
use std::ptr;
use std::rc::Rc;

use obmalloc::profile::{Geometry, Profile};
use obmalloc::{
    AllocatorId, AllocatorName, ArenaAllocator, ArenaGuest, Domain, Fault, FaultKind, Field, FieldKind, HeapOptions, HookSet,
    ItemKind, ObjectError, ObjectHeap, OwnError, TypeId, TypeSpec, Value,
};

use crate::bytes::Bytes;
use crate::guests::{ArenaGiver, Giver};
use crate::hooks::{Script, is_to_give_up};
use crate::model::{Block, Held, World, places};

const BLOCKS_MAX: usize = 48;
const HELD_MAX: usize = 48;
const TYPES_MAX: usize = 12;
const GUESTS_MAX: usize = 6;
/// Numbers that the heap's own allocators have at most, with hooks and what lets requests fail.
const OWN_MAX: u32 = 16;

/// Steps from one look at everything to the next: looking after each of them takes seven eighths of the time. To find the step
/// that did it, set this to 1.
const CHECK_EVERY: usize = 8;

/// Arenas from the C library's malloc, so that AddressSanitizer knows of them; every so many are refused.
struct Arenas {
    align: usize,
    refuse_every: usize,
    asked: Cell<usize>,
}

unsafe extern "C-unwind" fn arena_alloc(ctx: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: `ctx` is the `Arenas` that outlives the heap; the layout is not empty.
    unsafe {
        let arenas = &*ctx.cast::<Arenas>();
        arenas.asked.set(arenas.asked.get() + 1);
        if arenas.refuse_every != 0 && arenas.asked.get().is_multiple_of(arenas.refuse_every) {
            return ptr::null_mut();
        }
        alloc(Layout::from_size_align_unchecked(size, arenas.align)).cast()
    }
}

unsafe extern "C-unwind" fn arena_free(ctx: *mut c_void, address: *mut c_void, size: usize) {
    // SAFETY: as above; what `arena_alloc` gave.
    unsafe {
        let arenas = &*ctx.cast::<Arenas>();
        dealloc(address.cast(), Layout::from_size_align_unchecked(size, arenas.align));
    }
}

pub fn run(profile: &Profile, data: &[u8]) {
    let bytes = Bytes::new(data);
    let tiny = Geometry { arena_size: 64 << 10, pool_size: 16 << 10, alignment: 16, small_request_threshold: 512 };
    let narrow = Geometry { arena_size: 64 << 10, pool_size: 4 << 10, alignment: 8, small_request_threshold: 256 };
    // Almost everything comes from the C library then, where AddressSanitizer sees each block.
    let large_only = Geometry { small_request_threshold: 16, ..tiny };
    let geometry = [None, Some(tiny), Some(narrow), Some(large_only)][bytes.below(4)];
    let options = bytes.byte();
    let (steals, malloc, limited, own_arenas) = (options & 1 != 0, options & 2 != 0, options & 4 != 0, options & 0x18);
    let memory_limit = limited.then_some(200_000);
    let world = Rc::new(World::new(bytes, steals));
    let arenas = Arenas {
        align: if own_arenas == 8 { 16 } else { geometry.map_or(1 << 20, |geometry| geometry.arena_size) },
        refuse_every: if options & 32 != 0 { 3 } else { 0 },
        asked: Cell::new(0),
    };
    let quarantine = if options & 64 != 0 { 4000 } else { 0 };
    let trims = options & 128 != 0;
    let trim_above = trims.then_some(16 << 10);
    let allocator = if malloc { AllocatorName::Malloc } else { AllocatorName::Default };
    let options = HeapOptions { geometry, memory_limit, quarantine, trim_above, allocator, ..HeapOptions::new(profile) };
    let hooks = Box::new(Script { world: Rc::clone(&world), never_refuses: !limited && arenas.refuse_every == 0 });
    let mut heap = ObjectHeap::new(options, hooks).expect("a heap");
    let asked = Rc::clone(&world);
    // SAFETY: it looks at the program's own state, and uses no heap.
    unsafe { heap.set_interrupt(Box::new(move || is_to_give_up(&asked))) }.expect("memory");
    if own_arenas != 0 {
        let ctx = (&raw const arenas).cast_mut().cast();
        // SAFETY: the functions give and take memory and do not unwind; `arenas` is dropped after the heap.
        unsafe { heap.set_arena_allocator(ArenaAllocator { ctx, alloc: arena_alloc, free: arena_free }) }.expect("memory");
    }
    world.own.set(Some(Domain::ALL.map(|domain| heap.allocator(domain).expect("memory"))));
    let mut program = Program { heap: &heap, world: &world, may_refuse: limited || arenas.refuse_every != 0 };
    let mut steps = 0;
    while let Some(op) = world.bytes.next() {
        if op == 255 {
            // The heap goes as it is.
            return;
        }
        program.step(op);
        steps += 1;
        if steps % CHECK_EVERY == 0 {
            if trims {
                heap.trim();
            }
            world.check(&heap);
        }
    }
    world.check(&heap);
    program.end();
}

/// What runs steps: the program itself, or a hook in the middle of another step.
pub struct Program<'a> {
    pub heap: &'a ObjectHeap,
    pub world: &'a Rc<World>,
    pub may_refuse: bool,
}

impl Program<'_> {
    pub fn step(&mut self, op: u8) {
        let (heap, world) = (self.heap, self.world);
        // What is scheduled runs first of all: the model is changed between that and the operation.
        for _ in 0..8 {
            heap.run_scheduled();
        }
        if world.depth.get() == 0 {
            if heap.is_scheduled() {
                return;
            }
            world.lied.set(false);
            if world.patience.get() == Some(0) {
                world.patience.set(None);
            }
        }
        if op >= 240 {
            // Something is given up soon.
            return world.patience.set(Some(world.bytes.below(8)));
        }
        match op % 48 {
            0..=3 => self.malloc(),
            4..=5 => self.realloc(),
            6..=8 => {
                let Some((index, block)) = world.block() else { return };
                block.check(block.address, block.size);
                world.blocks.borrow_mut().swap_remove(index);
                assert_eq!(heap.blocks().free(block.domain, block.address), Ok(()), "a live block");
                // At once, so that nothing else can have been given the address.
                match heap.blocks().free(block.domain, block.address) {
                    Ok(()) => assert!(world.grants.borrow_mut().remove(&block.address), "freed twice"),
                    Err(again) => assert_eq!(again.kind, FaultKind::DoubleFree, "freed twice"),
                }
                world.freed.borrow_mut().push((block.domain, block.address));
            }
            9..=10 => self.misuse_block(),
            11..=16 => self.alloc(),
            17 => self.init(),
            18..=19 => self.incref(),
            20..=23 => self.decref(),
            24..=28 => self.link(),
            29 => self.set_number(),
            30..=31 => self.track(),
            32..=33 => self.weakref(),
            34..=36 => self.collect(),
            37 => self.automatic(),
            38 => {
                let done = if world.bytes.flag() { heap.freeze() } else { heap.unfreeze() };
                self.expect(done.map_err(Some));
            }
            39 => self.gc_del(),
            40 => self.gc_resize(),
            41 => self.define_type(),
            42 => self.ask(),
            43 => self.change_allocators(),
            44 => {
                let Some(object) = world.held() else { return };
                if world.bytes.below(4) == 0 && heap.set_immortal(object) == Ok(true) {
                    world.immortals.set(true);
                }
            }
            45 => self.take_garbage(),
            46 => heap.set_debug(world.bytes.byte() as u32),
            _ => self.misuse_object(),
        }
    }

    /// Lets memory be refused, wraps an allocator, or puts back what was there first.
    fn change_allocators(&self) {
        let (heap, world) = (self.heap, self.world);
        let domain = Domain::ALL[world.bytes.below(3)];
        match world.bytes.below(8) {
            choice @ 0..=1 => heap.set_refusing(choice == 1),
            2 => heap.set_nomemory(world.bytes.below(16), Some(world.bytes.below(32))).expect("memory"),
            3 => _ = heap.remove_nomemory(),
            4 => {
                let count = world.guests.borrow().len();
                let guest = if count < GUESTS_MAX {
                    let below = heap.allocator(domain).ok().filter(|id| matches!(id, AllocatorId::Own(_)));
                    let below = below.unwrap_or(world.own.get().expect("kept at first")[domain as usize]);
                    let giver = Giver { world: Rc::clone(world), below, header: [0, 0, 16, 48][world.bytes.below(4)] };
                    let guest = heap.add_guest(Rc::new(giver)).expect("memory");
                    world.guests.borrow_mut().push(guest);
                    guest
                } else {
                    world.guests.borrow()[world.bytes.below(count)]
                };
                _ = heap.set_allocator(domain, guest);
            }
            5 => {
                let raw = world.own.get().expect("kept at first")[Domain::Raw as usize];
                let raw = world.bytes.flag().then_some(raw);
                let guest = || -> Rc<dyn ArenaGuest> { Rc::new(ArenaGiver { world: Rc::clone(world), raw }) };
                heap.set_arena_guest(world.bytes.flag().then(guest)).expect("memory");
            }
            6 => heap.setup_debug_hooks().expect("memory"),
            _ => _ = heap.set_allocator(domain, world.own.get().expect("kept at first")[domain as usize]),
        }
    }

    /// The result of what is allowed: only refused memory, a lie of a hook, or a `traverse` around it can make it fail.
    fn expect<T>(&self, result: Result<T, Option<ObjectError>>) -> Option<T> {
        match result {
            Ok(value) => {
                // Nothing changes during a traversal.
                Some(value)
            }
            Err(error) => {
                let explained = match error {
                    _ if self.world.steals => true,
                    Some(ObjectError::NoMemory) => true,
                    Some(ObjectError::Fault(Fault { kind: FaultKind::GcInProgress, .. })) => self.world.traversing.get(),
                    _ => self.world.lied.get(),
                };
                assert!(explained, "{error:?} is not explained by what the program does");
                None
            }
        }
    }

    fn malloc(&mut self) {
        let (heap, world) = (self.heap, self.world);
        let domain = Domain::ALL[world.bytes.below(3)];
        let size = world.bytes.size();
        let zeroed = world.bytes.flag();
        if world.blocks.borrow().len() >= BLOCKS_MAX {
            return;
        }
        let block = if zeroed { heap.blocks().calloc(domain, 1, size) } else { heap.blocks().malloc(domain, size) };
        let Some(block) = block else { return };
        assert!(size <= 1 << 30, "{size} bytes cannot be had");
        let block = Block { domain, address: block.as_ptr().expose_provenance(), size, fill: world.bytes.byte() as u8 };
        if zeroed {
            Block { fill: 0, ..block }.check(block.address, size);
        }
        self.enter(block);
    }

    fn enter(&self, block: Block) {
        let alignment = self.heap.geometry().alignment.min(if block.size == 0 { 1 } else { 16 });
        assert!(block.address.is_multiple_of(alignment), "{:#x} is not aligned", block.address);
        for other in self.world.blocks.borrow().iter() {
            let apart = block.address + block.size <= other.address || other.address + other.size <= block.address;
            assert!(apart && block.address != other.address, "{:#x} overlaps {:#x}", block.address, other.address);
        }
        assert!(self.heap.blocks().usable_size(block.domain, block.address).expect("a block") >= block.size);
        assert!(self.heap.blocks().owns(block.address));
        block.fill();
        self.world.blocks.borrow_mut().push(block);
    }

    fn realloc(&mut self) {
        let (heap, world) = (self.heap, self.world);
        let size = world.bytes.size();
        let Some((index, block)) = world.block() else { return };
        block.check(block.address, block.size);
        world.forgets.set(false);
        let Some(moved) = heap.blocks().realloc(block.domain, Some(block.address), size).expect("a live block") else { return };
        world.blocks.borrow_mut().swap_remove(index);
        let moved = Block { address: moved.as_ptr().expose_provenance(), size, ..block };
        if !world.forgets.get() {
            block.check(moved.address, block.size.min(size));
        }
        if moved.address != block.address {
            world.freed.borrow_mut().push((block.domain, block.address));
        }
        self.enter(moved);
    }

    /// A domain is given an address of any kind.
    fn misuse_block(&mut self) {
        let (heap, world) = (self.heap, self.world);
        let (domain, address, how) = (Domain::ALL[world.bytes.below(3)], world.any_address(), world.bytes.below(3));
        if address == 0 {
            return;
        }
        let blocks = world.blocks.borrow();
        let live = blocks.iter().position(|block| block.address == address);
        let expected = live.map(|index| blocks[index].domain);
        let inside = blocks.iter().any(|block| address > block.address && address < block.address + block.size);
        drop(blocks);
        let result = match how {
            0 => heap.blocks().usable_size(domain, address).map(drop),
            // A block that is as large as it was stays where it was; one that cannot be had leaves everything as it was.
            1 => heap.blocks().realloc(domain, Some(address), isize::MAX as usize).map(|block| assert!(block.is_none())),
            _ => heap.blocks().free(domain, address),
        };
        match (expected, result) {
            (Some(allocated), Ok(())) => {
                assert_eq!(allocated, domain, "a block of another domain was taken");
                if how == 2 {
                    world.blocks.borrow_mut().swap_remove(live.expect("found above"));
                    world.freed.borrow_mut().push((domain, address));
                }
            }
            (Some(allocated), Err(fault)) => {
                assert_ne!(allocated, domain, "{fault}, but the block is live");
                assert_eq!((fault.kind, fault.allocated), (FaultKind::WrongDomain, Some(allocated)), "{fault}");
            }
            // A grant of the allocator that is in is its block.
            (None, Ok(())) if world.grants.borrow().contains(&address) => {
                if how == 1 {
                    assert_eq!(heap.blocks().free(domain, address), Ok(()));
                }
            }
            (None, Ok(())) => panic!("{address:#x} was taken for a block of {domain}"),
            (None, Err(fault)) => {
                // Both are true of a block that has been freed, and whose memory is another block's by now. The engine frees some itself.
                let freed = matches!(fault.kind, FaultKind::DoubleFree | FaultKind::UseAfterFree) && address.is_multiple_of(8);
                assert!(!inside || freed || fault.kind == FaultKind::InteriorPointer, "{fault}, but it lies inside a block");
                assert_ne!(fault.kind, FaultKind::HeapCorrupted);
            }
        }
    }

    fn kind(&self) -> Option<TypeId> {
        let types = self.world.types.borrow();
        types.get(self.world.bytes.below(types.len())).copied()
    }

    fn define_type(&mut self) {
        let world = self.world;
        if world.types.borrow().len() >= TYPES_MAX {
            return;
        }
        let (shape, flags, hooks) = (world.bytes.byte(), world.bytes.byte(), world.bytes.byte());
        let kinds = [FieldKind::Object, FieldKind::U8, FieldKind::Object, FieldKind::I64, FieldKind::Object, FieldKind::F64];
        let fields = (0..shape % 6).map(|index| (format!("f{index}"), kinds[(shape / 6 + index) % 6])).collect();
        let items = [None, None, Some(ItemKind::Object), Some(ItemKind::Byte)][flags >> 1 & 3];
        let spec = TypeSpec {
            name: "t".into(),
            fields,
            items,
            gc: flags & 1 == 0,
            weakrefs: flags & 8 != 0,
            managed_dict: flags & 16 != 0,
            free_list: if items.is_some() { 0 } else { [0, 0, 2, 1000][flags >> 5 & 3] },
            hooks: HookSet {
                traverse: hooks & 1 != 0,
                clear: hooks & 2 != 0,
                finalize: hooks & 4 != 0,
                del: hooks & 8 != 0,
                dealloc: hooks & 16 != 0,
            },
        };
        if let Some(kind) = self.expect(self.heap.define_type(spec).map_err(Some)) {
            world.types.borrow_mut().push(kind);
        }
    }

    fn alloc(&mut self) {
        let (heap, world) = (self.heap, self.world);
        if world.types.borrow().is_empty() {
            self.define_type();
        }
        let Some(kind) = self.kind() else { return };
        let (how, nitems) = (world.bytes.below(4), [0, 1, 3, 40, 200, 1000, usize::MAX / 8][world.bytes.below(7)]);
        if world.held.borrow().len() >= HELD_MAX {
            return;
        }
        let nitems = if heap.type_info(kind).items().is_some() { nitems } else { 0 };
        let made = match how {
            0 if heap.type_info(kind).items().is_none() => heap.new_object(kind),
            0 | 1 => heap.new_var(kind, nitems),
            _ => heap.alloc(kind, nitems),
        };
        let Some(object) = self.expect(made.map_err(Some)) else { return };
        assert!(nitems <= 1000, "so many items cannot be had");
        if !world.steals {
            assert!(!world.holds(object), "{object:#x} is handed out twice");
            assert_eq!(heap.refcount(object), Ok(1));
        }
        world.held.borrow_mut().remove(&object);
        world.hold(heap, object);
    }

    fn init(&mut self) {
        let (heap, world) = (self.heap, self.world);
        let (Some(kind), Some((index, block))) = (self.kind(), world.block()) else { return };
        let nitems = world.bytes.below(4);
        let made = if heap.type_info(kind).items().is_some() {
            heap.init_var(kind, block.address, nitems)
        } else {
            heap.init(kind, block.address)
        };
        if made == Err(ObjectError::Aborted) {
            block.fill();
        }
        if let Ok(object) = made {
            assert_eq!((object, block.domain), (block.address, Domain::Obj));
            world.blocks.borrow_mut().swap_remove(index);
            world.hold(heap, object);
        }
    }

    fn incref(&mut self) {
        let (heap, world) = (self.heap, self.world);
        let times = [1, 1, 1, 2, 90, 130, 260][world.bytes.below(7)];
        let (object, held) = if world.bytes.flag() { (world.held(), true) } else { (world.once_made(), false) };
        let Some(object) = object else { return };
        if !held && world.held.borrow().len() >= HELD_MAX {
            return;
        }
        for _ in 0..times {
            let done = heap.incref(object);
            if held {
                self.expect(done.map_err(|fault| Some(fault.into())));
            }
            if done.is_ok() {
                world.hold(heap, object);
            }
        }
    }

    fn decref(&mut self) {
        let (heap, world) = (self.heap, self.world);
        if world.steals && world.bytes.below(3) == 0 {
            if let Some(object) = world.once_made() {
                let _ = heap.decref(object);
            }
            return;
        }
        let Some(object) = world.held() else { return };
        self.give_back(object);
    }

    /// Gives a reference of the program's back.
    fn give_back(&mut self, object: usize) {
        let (heap, world) = (self.heap, self.world);
        if world.traversing.get() {
            assert!(world.steals || heap.decref(object).is_err(), "a reference was dropped in a traversal");
            return;
        }
        world.let_go(object);
        self.expect(heap.decref(object).map_err(|fault| Some(fault.into())));
    }

    fn link(&mut self) {
        let (heap, world) = (self.heap, self.world);
        let from = if world.bytes.below(8) == 0 { world.once_made() } else { world.held() };
        let (Some(from), place, to) = (from, world.bytes.byte(), world.bytes.byte()) else { return };
        let to = match to % 8 {
            0 | 1 => None,
            2 => world.once_made(),
            _ => world.held(),
        };
        let Ok(kind) = heap.type_of(from) else {
            assert!(world.steals || !world.holds(from), "{from:#x} is gone");
            return;
        };
        let places = places(heap, kind, from);
        if places.is_empty() {
            return;
        }
        self.set_reference(from, place % places.len(), places[place % places.len()], to);
    }

    /// Sets the reference number `index`, which is at `place`.
    pub fn set_reference(&self, from: usize, index: usize, place: Field, to: Option<usize>) {
        let (heap, world) = (self.heap, self.world);
        let gives = to.is_none_or(|to| world.holds(to)) && world.holds(from);
        let alive = to.is_none_or(|to| heap.type_of(to).is_ok());
        // The old reference goes with hooks and all, which must see what the field is by then.
        let before = match world.held.borrow_mut().get_mut(&from) {
            Some(entry) if !world.traversing.get() && index < entry.references.len() => {
                Some(std::mem::replace(&mut entry.references[index], to))
            }
            _ => None,
        };
        let done = heap.set(from, place, to.map_or(Value::Null, Value::Object));
        if done.is_err()
            && let Some(before) = before
            && let Some(entry) = world.held.borrow_mut().get_mut(&from)
        {
            entry.references[index] = before;
        }
        if gives {
            self.expect(done.map_err(Some));
        } else {
            assert!(world.steals || done.is_err() || alive, "{from:#x} refers to what is gone");
        }
    }

    fn set_number(&mut self) {
        let (heap, world) = (self.heap, self.world);
        let (Some(object), index) = (world.held(), world.bytes.byte()) else { return };
        let value = match world.bytes.below(3) {
            0 => Value::Number(f64::from(world.bytes.byte() as u32)),
            1 => Value::Integer(world.bytes.byte() as i64 - 100),
            _ => Value::Number(f64::NAN),
        };
        let _ = heap.set(object, Field::Member(index % 8), value);
        let _ = heap.set(object, Field::Item(index), value);
        let _ =
            (heap.get(object, Field::Name("f1")), heap.get(object, Field::Member(index)), heap.get(object, Field::Item(index)));
    }

    fn track(&mut self) {
        let (heap, world) = (self.heap, self.world);
        let object = if world.bytes.below(4) == 0 { world.once_made() } else { world.held() };
        let Some(object) = object else { return };
        let before = heap.is_tracked(object);
        let expected = world.bytes.flag();
        let done = if expected { heap.track(object) } else { heap.untrack(object).map_err(ObjectError::from) };
        if done.is_ok() && world.depth.get() == 0 && !world.steals {
            assert_eq!(heap.is_tracked(object), Ok(expected), "it was {before:?}");
        }
    }

    fn weakref(&mut self) {
        let (heap, world) = (self.heap, self.world);
        let (how, object) = (world.bytes.below(4), if world.bytes.flag() { world.held() } else { world.once_made() });
        let Some(object) = object else { return };
        if how == 3 {
            if let Ok(Some(referent)) = heap.deref_weakref(object) {
                assert!(world.steals || heap.type_of(referent).is_ok(), "a weak reference leads to what is gone");
                let held = heap.incref(referent);
                if held.is_ok() {
                    world.hold(heap, referent);
                }
            }
            return;
        }
        if world.held.borrow().len() >= HELD_MAX {
            return;
        }
        let callback = (how == 1).then(|| {
            world.callbacks.set(world.callbacks.get() + 1);
            NonZeroU64::new(world.callbacks.get()).expect("counted from 1")
        });
        let made = heap.new_weakref(object, callback);
        if let Ok(reference) = made {
            if let Some(callback) = callback {
                world.callbacks_out.borrow_mut().insert(callback.get());
            }
            world.hold(heap, reference);
        }
    }

    fn collect(&mut self) {
        let (heap, world) = (self.heap, self.world);
        let generation = world.bytes.below(4);
        let nested = world.depth.get() != 0;
        match heap.collect(generation) {
            Ok(found) => {
                assert!(generation < 3, "there is no such generation");
                assert!(!world.traversing.get() || found == 0, "a collection inside a traversal");
            }
            Err(ObjectError::Argument(_)) if generation == 3 => {}
            // It is called inside one that is not known to have failed yet.
            Err(_) if nested => {}
            Err(error) => drop(self.expect::<()>(Err(Some(error)))),
        }
    }

    fn automatic(&mut self) {
        let (heap, world) = (self.heap, self.world);
        match world.bytes.below(4) {
            0 => heap.disable_gc(),
            1 => heap.enable_gc(),
            _ => {
                let threshold = |byte: usize| [0, 1, 2, 5, 20, 700, -1, i32::MAX][byte % 8];
                let [first, second, third] = [world.bytes.byte(), world.bytes.byte(), world.bytes.byte()].map(threshold);
                heap.set_threshold(first, Some(second), Some(third));
            }
        }
    }

    fn gc_del(&mut self) {
        let (heap, world) = (self.heap, self.world);
        let object = if world.bytes.below(3) == 0 { world.once_made() } else { world.held() };
        let Some(object) = object else { return };
        // What is not the program's own to delete is a reference stolen.
        if !world.steals && !world.holds(object) {
            return;
        }
        if world.traversing.get() {
            assert!(heap.gc_del(object).is_err());
            return;
        }
        let refcount = heap.refcount(object);
        let count = world.held.borrow().get(&object).map(|entry| entry.count);
        if !world.steals && (refcount != Ok(1) || count != Some(1)) {
            assert!(heap.gc_del(object).is_err(), "others refer to it");
            return;
        }
        let entry = world.held.borrow_mut().remove(&object);
        if heap.gc_del(object).is_err()
            && let Some(entry) = entry
        {
            self.keep(object, entry);
        }
    }

    /// The program has the references still that it had to an object, if that is there. What was in it may be gone, and others may have
    /// references to it by now.
    fn keep(&self, object: usize, entry: Held) {
        if self.heap.type_of(object).is_ok() {
            let mut held = self.world.held.borrow_mut();
            let now = held.entry(object).or_insert(Held { count: 0, ..entry });
            now.count += entry.count;
            now.snatched = true;
            self.world.made.borrow_mut().insert(object);
        }
    }

    fn gc_resize(&mut self) {
        let (heap, world) = (self.heap, self.world);
        let nitems = [0, 1, 3, 40, 200, 2000, usize::MAX / 4][world.bytes.below(7)];
        let Some(object) = world.held() else { return };
        if world.traversing.get() {
            assert!(world.steals || heap.gc_resize(object, nitems).is_err());
            return;
        }
        // While its items go, hooks cannot do anything with it.
        let Some(entry) = world.held.borrow_mut().remove(&object) else { return };
        let count = entry.count;
        let done = heap.gc_resize(object, nitems);
        self.keep(done.unwrap_or(object), entry);
        let Ok(resized) = done else { return };
        assert!(nitems <= 2000, "so many items cannot be had");
        assert!(world.steals || count == 1, "others refer to it");
        // Unless the clearing of new ones was interrupted.
        assert!(heap.nitems(resized) == Ok(nitems) || world.lied.get());
    }

    fn take_garbage(&mut self) {
        let (heap, world) = (self.heap, self.world);
        for object in heap.take_garbage() {
            assert!(world.steals || heap.type_of(object).is_ok(), "gc.garbage has what is gone");
            if heap.type_of(object).is_ok() {
                world.hold(heap, object);
                if world.traversing.get() {
                    // It cannot be given back now, but later.
                    continue;
                }
                if world.held.borrow().len() > HELD_MAX {
                    self.give_back(object);
                }
            }
        }
    }

    /// Everything that only looks.
    fn ask(&mut self) {
        let (heap, world) = (self.heap, self.world);
        match world.bytes.below(4) {
            0 => {
                let generation = [None, Some(0), Some(1), Some(2)][world.bytes.below(4)];
                for object in self.expect(heap.objects(generation).map_err(Some)).unwrap_or_default() {
                    assert!(heap.type_of(object).is_ok(), "{object:#x} is tracked, but gone");
                }
            }
            1 | 2 => {
                let Some(object) = world.held() else { return };
                let _ = if world.bytes.flag() { heap.referrers(&[object]) } else { heap.referents(&[object]) };
            }
            _ => {
                let _ =
                    (heap.count(), heap.threshold(), heap.gc_stats(), heap.freeze_count(), heap.debug(), heap.gc_is_enabled());
                let _ = (heap.stats().to_string(), heap.arenas(), heap.region(), heap.held());
            }
        }
    }

    /// Every operation on objects, with an address of any kind where there is none.
    fn misuse_object(&mut self) {
        let (heap, world) = (self.heap, self.world);
        let address = world.any_address();
        if heap.type_of(address).is_ok() {
            return;
        }
        let kind = self.kind();
        let fault = |error: ObjectError| matches!(error, ObjectError::Fault(fault) if fault.kind != FaultKind::HeapCorrupted);
        assert!(heap.refcount(address).is_err() && heap.incref(address).is_err() && heap.decref(address).is_err());
        assert!(heap.nitems(address).is_err() && heap.is_tracked(address).is_err() && heap.is_finalized(address).is_err());
        assert!(heap.get(address, Field::Member(0)).is_err_and(fault) && heap.untrack(address).is_err());
        assert!(heap.set(address, Field::Member(0), Value::Null).is_err_and(fault) && heap.track(address).is_err_and(fault));
        assert!(heap.new_weakref(address, None).is_err_and(fault) && heap.deref_weakref(address).is_err());
        assert!(heap.gc_del(address).is_err_and(fault) && heap.gc_resize(address, 3).is_err_and(fault));
        assert!(
            heap.referrers(&[address]).is_err() && heap.referents(&[address]).is_err() && heap.set_immortal(address).is_err()
        );
        let block = world.blocks.borrow().iter().any(|block| block.address == address);
        if let Some(kind) = kind
            && !block
        {
            assert!(heap.init(kind, address).is_err() && heap.init_var(kind, address, 2).is_err());
        }
    }

    /// Gives back what guests have kept: whether anything lies in some of it still.
    fn give_grants_back(&self) -> bool {
        let own = self.heap.own_allocators().expect("memory");
        let grants = self.world.grants.take();
        let mut occupied = false;
        // What lies in another grant goes before it.
        for _ in 0..grants.len() {
            let is_occupied = |&&grant: &&usize| {
                let give = |id| own.free(AllocatorId::Own(id), Some(grant));
                (0..OWN_MAX).filter(|&id| matches!(give(id), Err(OwnError::Occupied(_)))).count() != 0
            };
            occupied = grants.iter().filter(is_occupied).count() != 0;
            if !occupied {
                break;
            }
        }
        occupied
    }

    /// Everything is given back; then there must be nothing left.
    fn end(&mut self) {
        let (heap, world) = (self.heap, self.world);
        world.quiet.set(true);
        heap.set_refusing(false);
        heap.remove_nomemory().expect("memory");
        heap.disable_gc();
        heap.set_debug(0);
        for block in std::mem::take(&mut *world.blocks.borrow_mut()) {
            block.check(block.address, block.size);
            heap.blocks().free(block.domain, block.address).expect("a live block");
        }
        let _ = heap.unfreeze();
        self.take_garbage();
        // Whatever is there loses its references to others, and then what the program holds of it.
        let there: Vec<usize> = world.made.borrow().iter().copied().filter(|&object| heap.incref(object).is_ok()).collect();
        for &object in &there {
            let Ok(kind) = heap.type_of(object) else { continue };
            for place in places(heap, kind, object) {
                let _ = heap.set(object, place, Value::Null);
            }
        }
        for object in there {
            let done = heap.decref(object);
            assert!(world.steals || done.is_ok(), "{object:#x} is gone, but was held");
        }
        let held = std::mem::take(&mut *world.held.borrow_mut());
        for (object, entry) in held {
            for _ in 0..entry.count {
                let done = heap.decref(object);
                assert!(world.steals || done.is_ok(), "{object:#x} is gone, but was held");
            }
        }
        let collected = heap.collect(2);
        assert!(collected.is_ok() || self.may_refuse || world.steals, "{collected:?}");
        let occupied = self.give_grants_back();
        heap.verify().unwrap_or_else(|corruption| panic!("at the end: {corruption}"));
        if collected.is_ok() && !world.steals && !world.immortals.get() {
            assert!(occupied || heap.allocated_blocks() == 0, "blocks are left over at the end");
            assert!(world.callbacks_out.borrow().is_empty(), "callbacks have not come back");
            assert!(heap.objects(None).is_ok_and(|objects| objects.is_empty()));
        }
    }
}
