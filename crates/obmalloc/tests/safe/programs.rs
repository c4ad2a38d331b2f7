//! Programs in safe Rust that once crashed a heap, one test each. The random test found some of them.

use std::cell::{Cell, RefCell};
use std::num::NonZeroU64;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use obmalloc::{
    AllocatorId, Answer, Domain, Failed, Fault, FaultKind, Field, FieldKind, Guest, GuestFaultKind, GuestHeap, HeapOptions,
    HookSet, Hooks, Info, ObjectError, ObjectHeap, OwnAllocators, OwnError, Phase, Threw, TypeId, TypeSpec, Value, Visit,
    profile,
};

/// Hooks that all do the same: a function that is told which hook it is, and for which object.
struct Doing<F>(F);

impl<F: Fn(&'static str, Option<&ObjectHeap>, usize)> Hooks for Doing<F> {
    fn traverse(&self, heap: &ObjectHeap, _: TypeId, object: usize, visit: &mut Visit<'_>) -> Result<(), Failed> {
        (self.0)("traverse", Some(heap), object);
        match heap.get(object, Field::Member(0)) {
            Ok(Value::Object(reference)) => visit(reference).map_err(|_| Failed),
            _ => Ok(()),
        }
    }
    fn clear(&self, heap: &ObjectHeap, _: TypeId, object: usize) {
        (self.0)("clear", Some(heap), object);
    }
    fn finalize(&self, heap: &ObjectHeap, _: TypeId, object: usize) {
        (self.0)("finalize", Some(heap), object);
    }
    fn del(&self, heap: &ObjectHeap, _: TypeId, object: usize) {
        (self.0)("del", Some(heap), object);
    }
    fn dealloc(&self, heap: &ObjectHeap, _: TypeId, object: usize) {
        (self.0)("dealloc", Some(heap), object);
    }
    fn weakref_callback(&self, heap: &ObjectHeap, _: u64, reference: usize) {
        (self.0)("weakref_callback", Some(heap), reference);
    }
    fn weakref_dropped(&self, _: u64) {
        (self.0)("weakref_dropped", None, 0);
    }
    fn gc_callback(&self, heap: &ObjectHeap, _: Phase, _: &Info) {
        (self.0)("gc_callback", Some(heap), 0);
    }
    fn collection_failed(&self, heap: &ObjectHeap, _: ObjectError) {
        (self.0)("collection_failed", Some(heap), 0);
    }
    fn write(&self, _: &str) {
        (self.0)("write", None, 0);
    }
}

fn heap_with(release: &profile::Profile, hooks: impl Fn(&'static str, Option<&ObjectHeap>, usize) + 'static) -> ObjectHeap {
    let heap = ObjectHeap::new(HeapOptions::new(release), Box::new(Doing(hooks))).expect("a heap");
    heap.disable_gc();
    heap
}

fn heap() -> ObjectHeap {
    heap_with(&profile::V3_13, |_, _, _| {})
}

fn define(heap: &ObjectHeap, hooks: HookSet) -> TypeId {
    let fields = vec![("a".to_owned(), FieldKind::Object)];
    heap.define_type(TypeSpec { fields, gc: true, weakrefs: true, hooks, ..TypeSpec::default() }).expect("a type")
}

const ALL_HOOKS: HookSet = HookSet { traverse: true, clear: true, finalize: true, del: true, dealloc: true };

/// A guest that answers requests for blocks with what a function says.
struct Giving<F>(F);

impl<F: Fn(&OwnAllocators<'_>, usize) -> Answer> Guest for Giving<F> {
    fn malloc(&self, own: &OwnAllocators<'_>, size: usize) -> Answer {
        (self.0)(own, size)
    }
    fn calloc(&self, own: &OwnAllocators<'_>, count: usize, size: usize) -> Answer {
        (self.0)(own, count * size)
    }
    fn realloc(&self, own: &OwnAllocators<'_>, _: Option<usize>, size: usize) -> Answer {
        (self.0)(own, size)
    }
    fn free(&self, _: &OwnAllocators<'_>, _: Option<usize>) -> Result<(), Threw> {
        Ok(())
    }
}

fn put_in(heap: &GuestHeap, domain: Domain, answer: impl Fn(&OwnAllocators<'_>, usize) -> Answer + 'static) -> AllocatorId {
    let before = heap.allocator(domain).expect("memory");
    let guest = heap.add_guest(Rc::new(Giving(answer))).expect("memory");
    heap.set_allocator(domain, guest).expect("a guest of this heap");
    before
}

fn caught<T>(call: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(call)).ok()
}

#[test]
fn object_is_not_freed_as_a_block_through_any_door() {
    for release in profile::ALL {
        let heap = heap_with(release, |_, _, _| {});
        let kind = define(&heap, HookSet::default());
        let object = heap.alloc(kind, 0).expect("memory");
        let block = object - heap.type_info(kind).presize();
        let (own, id) = (heap.own_allocators().expect("memory"), heap.allocator(Domain::Obj).expect("memory"));
        for address in [object, block] {
            assert!(heap.blocks().free(Domain::Obj, address).is_err());
            assert!(heap.blocks().realloc(Domain::Obj, Some(address), 9).is_err());
            assert!(own.free(id, Some(address)).is_err());
            assert!(own.realloc(id, Some(address), 999).is_err());
        }
        let is_wrong_type = |error| matches!(error, Err(OwnError::Fault(Fault { kind: FaultKind::WrongType, .. })));
        assert!(is_wrong_type(own.free(id, Some(block))));
        assert_eq!(heap.refcount(object), Ok(1));
        heap.decref(object).expect("held");
        heap.verify().expect("holds");
    }
}

#[test]
fn type_of_another_heap_or_of_weak_references_makes_no_object() {
    let (heap, other) = (heap(), heap());
    let kind = define(&heap, HookSet::default());
    let unknown = (0..3).map(|_| define(&other, HookSet::default())).last().expect("a type");
    let object = heap.alloc(kind, 0).expect("memory");
    let weakref = heap.new_weakref(object, None).expect("memory");
    let weakref = heap.type_of(weakref).expect("an object");
    let block = heap.blocks().malloc(Domain::Obj, 200).expect("memory").as_ptr().expose_provenance();
    for kind in [unknown, weakref] {
        let refused = Some(ObjectError::Argument("a type that this heap has defined"));
        assert_eq!(heap.alloc(kind, 0).err(), refused);
        assert_eq!(heap.new_object(kind).err(), refused);
        assert_eq!(heap.new_var(kind, 1).err(), refused);
        assert_eq!(heap.init(kind, block).err(), refused);
        assert_eq!(heap.init_var(kind, block, 1).err(), refused);
        assert_eq!(heap.check_init(kind, block, 1).err(), refused);
    }
}

#[test]
fn weak_reference_that_is_going_cannot_be_used_when_its_callback_is_dropped() {
    thread_local! {
        static HEAP: RefCell<Option<(Rc<ObjectHeap>, usize)>> = const { RefCell::new(None) };
        static TOLD: Cell<u32> = const { Cell::new(0) };
    }
    for release in profile::ALL {
        TOLD.set(0);
        let heap = Rc::new(heap_with(release, |name, _, _| {
            // This hook is given no heap, so it brings its own.
            if let (true, Some((heap, reference))) = (name == "weakref_dropped", HEAP.take()) {
                assert_eq!(heap.decref(reference).map_err(|fault| fault.kind), Err(FaultKind::RefcountUnderflow));
                assert_eq!(heap.incref(reference).map_err(|fault| fault.kind), Err(FaultKind::UseAfterFree));
                TOLD.set(TOLD.get() + 1);
            }
        }));
        let object = heap.alloc(define(&heap, HookSet::default()), 0).expect("memory");
        let reference = heap.new_weakref(object, NonZeroU64::new(1)).expect("memory");
        HEAP.set(Some((heap.clone(), reference)));
        heap.decref(reference).expect("held");
        assert_eq!(TOLD.get(), 1);
        heap.verify().expect("holds");
    }
}

#[test]
fn hook_that_unwinds_closes_its_heap_and_its_memory_goes_back() {
    for release in profile::ALL {
        for hook in
            ["traverse", "clear", "finalize", "del", "dealloc", "weakref_callback", "weakref_dropped", "gc_callback", "write"]
        {
            let is_armed = Rc::new(Cell::new(false));
            let armed = is_armed.clone();
            let heap = heap_with(release, move |name, _, _| {
                if armed.get() && name == hook {
                    resume_unwind(Box::new(hook));
                }
            });
            let kind = define(&heap, HookSet { del: hook == "del", ..ALL_HOOKS });
            heap.set_debug(obmalloc::DEBUG_STATS);
            let [a, b, c] = [(); 3].map(|()| heap.alloc(kind, 0).expect("memory"));
            for (from, to) in [(a, b), (b, a)] {
                heap.set(from, Field::Member(0), Value::Object(to)).expect("objects");
                heap.decref(to).expect("held");
            }
            heap.new_weakref(c, NonZeroU64::new(1)).expect("memory");
            let raw = heap.blocks().malloc(Domain::Raw, 5000).expect("memory").as_ptr().expose_provenance();
            is_armed.set(true);
            let result = caught(|| heap.collect(2).map(|_| ())).and_then(|_| caught(|| heap.decref(c)));
            assert!(result.is_none(), "{hook} has unwound");
            assert!(heap.is_closed());
            let closed = |result: Result<(), Fault>| result.is_err_and(|fault| fault.kind == FaultKind::HeapClosed);
            for object in [a, b, c] {
                assert!(closed(heap.incref(object)) && closed(heap.decref(object)) && closed(heap.untrack(object)));
                assert!(closed(heap.type_of(object).map(|_| ())) && closed(heap.is_tracked(object).map(|_| ())));
            }
            assert!(closed(heap.blocks().free(Domain::Raw, raw)) && heap.blocks().malloc(Domain::Obj, 8).is_none());
        }
    }
}

#[test]
fn hook_that_catches_what_another_unwinds_with_goes_on_in_a_closed_heap() {
    for release in profile::ALL {
        let inner = Rc::new(Cell::new(0));
        let object = inner.clone();
        let heap = heap_with(release, move |name, heap, what| {
            let Some(heap) = heap.filter(|_| name == "dealloc") else { return };
            if what == object.get() {
                resume_unwind(Box::new("inner"));
            }
            assert!(caught(|| heap.decref(object.get())).is_none() && heap.is_closed());
        });
        let kind = define(&heap, HookSet { dealloc: true, ..HookSet::default() });
        inner.set(heap.alloc(kind, 0).expect("memory"));
        let outer = heap.alloc(kind, 0).expect("memory");
        assert!(caught(|| heap.decref(outer)).is_some(), "what was caught stays so");
        assert!(heap.is_closed());
    }
}

#[test]
fn guest_that_catches_what_another_unwinds_with_goes_on_in_a_closed_heap() {
    let heap = GuestHeap::new(HeapOptions::new(&profile::V3_13)).expect("a heap");
    let obj = heap.allocator(Domain::Obj).expect("memory");
    put_in(&heap, Domain::Raw, |_, _| resume_unwind(Box::new("raw")));
    put_in(&heap, Domain::Obj, move |own, _| {
        assert!(caught(|| own.malloc(obj, 5000)).is_none());
        Ok(None)
    });
    assert_eq!(heap.malloc(Domain::Obj, 8), None);
    assert_eq!(heap.malloc(Domain::Mem, 8), None);
    assert!(heap.own_allocators().expect("there").free(obj, None).is_err());
}

#[test]
fn raw_block_in_memory_that_is_to_be_an_arena_is_refused() {
    let heap = GuestHeap::new(HeapOptions::new(&profile::V3_13)).expect("a heap");
    put_in(&heap, Domain::Raw, |own, _| Ok(own.arena_alloc(1 << 20)));
    // pymalloc would take what it passes on for a block of its own.
    assert_eq!(heap.malloc(Domain::Obj, 5000), None);
    assert_eq!(heap.take_guest_fault().map(|fault| fault.kind), Some(GuestFaultKind::InArena));
    assert_eq!(heap.malloc(Domain::Raw, 8), None);
    heap.verify().expect("holds");
}
