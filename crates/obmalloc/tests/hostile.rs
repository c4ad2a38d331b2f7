//! Hooks that drop references which they do not own, and destroy objects that are in use. Each test is a small program that the fuzzer found.

use std::cell::{Cell, RefCell};
use std::num::NonZeroU64;
use std::rc::{Rc, Weak};

#[path = "common/guests.rs"]
mod guests;

use guests::Wrapper;
use obmalloc::profile::{self, Profile};
use obmalloc::{
    AllocatorName, Domain, Failed, FaultKind, Field, FieldKind, HeapOptions, HookSet, Hooks, ItemKind, NoHooks, ObjectError,
    ObjectHeap, Phase, TypeId, TypeSpec, Value, Visit,
};

type Deed = Box<dyn Fn(&ObjectHeap, usize)>;

/// What each hook does, with the object that it is called for.
#[derive(Default)]
struct Deeds {
    finalize: RefCell<Option<Deed>>,
    clear: RefCell<Option<Deed>>,
    dealloc: RefCell<Option<Deed>>,
    callback: RefCell<Option<Deed>>,
    start: RefCell<Option<Deed>>,
    failed: RefCell<Option<Deed>>,
    traversal_fails: Cell<bool>,
    dropped: Cell<usize>,
}

#[derive(Clone, Default)]
struct Hostile(Rc<Deeds>);

fn run(deed: &RefCell<Option<Deed>>, heap: &ObjectHeap, object: usize) {
    // Once: what it does may call it again.
    if let Some(deed) = deed.take() {
        deed(heap, object);
    }
}

impl Hooks for Hostile {
    fn traverse(&self, heap: &ObjectHeap, _: TypeId, object: usize, visit: &mut Visit<'_>) -> Result<(), Failed> {
        if self.0.traversal_fails.get() {
            return Err(Failed);
        }
        for field in [0, 1] {
            if let Ok(Value::Object(reference)) = heap.get(object, Field::Member(field)) {
                visit(reference).map_err(|_| Failed)?;
            }
        }
        Ok(())
    }
    fn clear(&self, heap: &ObjectHeap, _: TypeId, object: usize) {
        run(&self.0.clear, heap, object);
    }
    fn finalize(&self, heap: &ObjectHeap, _: TypeId, object: usize) {
        run(&self.0.finalize, heap, object);
    }
    fn dealloc(&self, heap: &ObjectHeap, _: TypeId, object: usize) {
        run(&self.0.dealloc, heap, object);
    }
    fn weakref_callback(&self, heap: &ObjectHeap, _: u64, reference: usize) {
        run(&self.0.callback, heap, reference);
    }
    fn weakref_dropped(&self, _: u64) {
        self.0.dropped.set(self.0.dropped.get() + 1);
    }
    fn collection_failed(&self, heap: &ObjectHeap, _: ObjectError) {
        run(&self.0.failed, heap, 0);
    }
    fn gc_callback(&self, heap: &ObjectHeap, phase: Phase, _: &obmalloc::Info) {
        if phase == Phase::Start {
            run(&self.0.start, heap, 0);
        }
    }
}

struct Scene {
    hooks: Hostile,
    heap: ObjectHeap,
    kind: TypeId,
}

fn scene(profile: &Profile, hooks: HookSet) -> Scene {
    let deeds = Hostile::default();
    // Every block comes from the C library then, where AddressSanitizer sees it.
    let options = HeapOptions { allocator: AllocatorName::Malloc, ..HeapOptions::new(profile) };
    let heap = ObjectHeap::new(options, Box::new(deeds.clone())).expect("a heap");
    heap.disable_gc();
    let fields = vec![("a".to_owned(), FieldKind::Object), ("b".to_owned(), FieldKind::Object)];
    let kind = heap.define_type(TypeSpec { fields, gc: true, weakrefs: true, hooks, ..TypeSpec::default() }).expect("a type");
    Scene { hooks: deeds, heap, kind }
}

impl Scene {
    fn alloc(&self) -> usize {
        self.heap.alloc(self.kind, 0).expect("memory")
    }

    fn link(&self, from: usize, to: usize) {
        self.heap.set(from, Field::Member(0), Value::Object(to)).expect("objects");
    }

    /// Two objects that only refer to each other.
    fn cycle(&self) -> [usize; 2] {
        let [a, b] = [self.alloc(), self.alloc()];
        self.link(a, b);
        self.link(b, a);
        for object in [a, b] {
            self.heap.decref(object).expect("held");
        }
        [a, b]
    }

    /// Nothing is left, and nothing is broken.
    fn finish(self) {
        self.heap.collect(2).expect("a collection");
        self.heap.collect(2).expect("a collection");
        self.heap.verify().expect("holds");
        assert_eq!(self.heap.allocated_blocks(), 0, "{}", self.heap.profile().release());
    }
}

fn steal(heap: &ObjectHeap, object: usize) {
    assert_eq!(heap.decref(object).expect_err("not its own").kind, FaultKind::RefcountUnderflow);
    assert!(matches!(heap.gc_del(object), Err(ObjectError::Argument(_))));
    heap.verify().expect("holds");
}

#[test]
fn finalizer_cannot_give_back_the_reference_that_keeps_its_object() {
    for profile in profile::ALL {
        let s = scene(profile, HookSet { finalize: true, ..HookSet::default() });
        *s.hooks.0.finalize.borrow_mut() = Some(Box::new(steal));
        s.heap.decref(s.alloc()).expect("held");
        s.finish();
    }
}

#[test]
fn finalizer_in_a_collection_may_give_back_what_others_have_but_not_the_last_reference() {
    for profile in profile::ALL {
        let s = scene(profile, HookSet { finalize: true, ..HookSet::default() });
        s.cycle();
        *s.hooks.0.finalize.borrow_mut() = Some(Box::new(|heap, object| {
            // This is the other object's reference, which the finalizer does not own.
            heap.decref(object).expect("there is one more");
            steal(heap, object);
        }));
        s.heap.collect(2).expect("a collection");
        s.finish();
    }
}

#[test]
fn clear_cannot_give_back_the_reference_that_keeps_its_object() {
    for profile in profile::ALL {
        let s = scene(profile, HookSet { clear: true, ..HookSet::default() });
        let [a, _] = s.cycle();
        *s.hooks.0.clear.borrow_mut() = Some(Box::new(move |heap, object| {
            assert_eq!(object, a);
            heap.set(object, Field::Member(0), Value::Null).expect("an object");
            steal(heap, object);
        }));
        s.heap.collect(2).expect("a collection");
        s.finish();
    }
}

#[test]
fn callback_cannot_give_back_the_references_that_keep_weak_references() {
    for profile in profile::ALL {
        let s = scene(profile, HookSet::default());
        let object = s.alloc();
        let references: Vec<usize> = (1..4).map(|id| s.heap.new_weakref(object, NonZeroU64::new(id)).expect("memory")).collect();
        let all = references.clone();
        *s.hooks.0.callback.borrow_mut() = Some(Box::new(move |heap, _| {
            for &reference in &all {
                heap.decref(reference).expect("the program's own");
                steal(heap, reference);
            }
        }));
        s.heap.decref(object).expect("held");
        assert_eq!(s.hooks.0.dropped.get(), 3);
        s.finish();
    }
}

#[test]
fn callback_in_a_collection_cannot_give_back_the_reference_that_keeps_its_weak_reference() {
    for profile in profile::ALL {
        let s = scene(profile, HookSet::default());
        let [a, _] = s.cycle();
        s.heap.new_weakref(a, NonZeroU64::new(1)).expect("memory");
        *s.hooks.0.callback.borrow_mut() = Some(Box::new(|heap, reference| {
            heap.decref(reference).expect("the program's own");
            steal(heap, reference);
        }));
        s.heap.collect(2).expect("a collection");
        s.finish();
    }
}

#[test]
fn nothing_can_be_done_with_an_object_whose_memory_is_being_given_back() {
    for profile in profile::ALL {
        let s = scene(profile, HookSet { dealloc: true, ..HookSet::default() });
        let (object, other) = (s.alloc(), s.alloc());
        s.link(object, other);
        s.heap.decref(other).expect("held");
        *s.hooks.0.dealloc.borrow_mut() = Some(Box::new(move |heap, _| {
            assert!(heap.gc_del(object).is_err() && heap.incref(object).is_err());
            assert!(heap.track(object).is_err() && heap.new_weakref(object, None).is_err());
        }));
        s.heap.gc_del(object).expect("nothing else refers to it");
        s.finish();
    }
}

#[test]
fn nothing_can_be_done_with_an_object_whose_items_go_while_it_shrinks() {
    for profile in profile::ALL {
        let s = scene(profile, HookSet { dealloc: true, ..HookSet::default() });
        let tuple = TypeSpec { items: Some(ItemKind::Object), gc: true, weakrefs: true, ..TypeSpec::default() };
        let tuple = s.heap.define_type(tuple).expect("a type");
        let object = s.heap.new_var(tuple, 40).expect("memory");
        let item = s.alloc();
        s.heap.set(object, Field::Item(30), Value::Object(item)).expect("objects");
        s.heap.decref(item).expect("held");
        *s.hooks.0.dealloc.borrow_mut() = Some(Box::new(move |heap, _| {
            assert!(heap.track(object).is_err() && heap.new_weakref(object, None).is_err());
            assert!(heap.incref(object).is_err() && heap.gc_resize(object, 1).is_err());
        }));
        let object = s.heap.gc_resize(object, 3).expect("memory");
        s.heap.track(object).expect("not tracked");
        s.heap.decref(object).expect("held");
        s.finish();
    }
}

#[test]
fn block_that_is_to_become_an_object_cannot_be_freed_until_then() {
    for profile in profile::ALL {
        let s = scene(profile, HookSet::default());
        let wrapper = Wrapper::put_in(&s.heap, Domain::Obj, 0);
        *s.hooks.0.start.borrow_mut() = Some(Box::new(move |heap, _| {
            assert!(!wrapper.given.borrow().is_empty());
            for &address in wrapper.given.borrow().iter() {
                assert_eq!(heap.blocks().free(Domain::Obj, address).expect_err("not to be freed").kind, FaultKind::WrongType);
            }
        }));
        s.heap.enable_gc();
        s.heap.set_threshold(1, None, None);
        let objects: Vec<usize> = (0..4).map(|_| s.alloc()).collect();
        assert!(s.hooks.0.start.borrow().is_none(), "there was a collection");
        objects.into_iter().for_each(|object| s.heap.decref(object).expect("held"));
        s.finish();
    }
}

#[test]
fn collection_that_a_failed_one_has_made_due_waits_for_the_next_operation() {
    let s = scene(&profile::V3_13, HookSet { traverse: true, ..HookSet::default() });
    let (object, value) = (s.alloc(), s.alloc());
    let (hooks, kind) = (s.hooks.clone(), s.kind);
    *s.hooks.0.failed.borrow_mut() = Some(Box::new(move |heap, _| {
        // The next one destroys what the operation is about.
        hooks.0.traversal_fails.set(false);
        *hooks.0.start.borrow_mut() = Some(Box::new(move |heap, _| heap.decref(object).expect("held")));
        for _ in 0..3 {
            heap.alloc(kind, 0).expect("memory");
        }
        assert!(heap.is_scheduled());
    }));
    s.heap.enable_gc();
    s.heap.set_threshold(1, None, None);
    s.hooks.0.traversal_fails.set(true);
    while !s.heap.is_scheduled() {
        s.alloc();
    }
    s.heap.set(object, Field::Member(0), Value::Object(value)).expect("an object that is held");
    assert!(s.heap.is_scheduled() && s.heap.get(object, Field::Member(0)) == Ok(Value::Object(value)));
    s.heap.decref(value).expect("held");
    assert_eq!(s.heap.refcount(object).expect_err("destroyed by the collection").kind, FaultKind::UseAfterFree);
    s.heap.verify().expect("holds");
}

#[test]
fn increment_that_could_not_be_traversed_is_looked_at_another_time() {
    let s = scene(&profile::V3_14_0, HookSet { traverse: true, ..HookSet::default() });
    // So many old objects that an increment is more than what is young.
    let old: Vec<usize> = (0..if cfg!(miri) { 200 } else { 1000 }).map(|_| s.alloc()).collect();
    s.heap.collect(2).expect("a collection");
    s.cycle();
    // Marking.
    s.heap.collect(1).expect("a collection");
    for _ in 0..20 {
        s.cycle();
    }
    s.hooks.0.traversal_fails.set(true);
    assert_eq!(s.heap.collect(1), Err(ObjectError::Aborted));
    s.heap.verify().expect("holds");
    s.hooks.0.traversal_fails.set(false);
    old.into_iter().for_each(|object| s.heap.decref(object).expect("held"));
    s.finish();
}

/// An object `x` that has one reference less than the two objects that refer to it: they die in its own `tp_clear`, and would take it along.
fn clears_an_object_with_too_low_a_count(fields: usize, first: usize) {
    for profile in profile::ALL {
        let heap = ObjectHeap::new(HeapOptions::new(profile), Box::new(NoHooks)).unwrap();
        let of = |fields: usize| TypeSpec {
            name: "node".into(),
            gc: true,
            fields: (0..fields).map(|n| (format!("f{n}"), FieldKind::Object)).collect(),
            ..TypeSpec::default()
        };
        let (large, small) = (heap.define_type(of(fields)).unwrap(), heap.define_type(of(1)).unwrap());
        heap.disable_gc();
        let (x, y) = (heap.alloc(large, 0).unwrap(), heap.alloc(small, 0).unwrap());
        let untracked = heap.new_object(small).unwrap();
        for (from, field, to) in [(x, first, untracked), (x, first + 1, y), (y, 0, x), (untracked, 0, x)] {
            heap.set(from, Field::Member(field), Value::Object(to)).unwrap();
        }
        for object in [x, x, y, untracked] {
            heap.decref(object).unwrap();
        }
        heap.collect(2).unwrap();
        heap.verify().unwrap();
        assert_eq!(heap.type_of(x).unwrap_err().kind, FaultKind::UseAfterFree, "{}", profile.release());
        assert_eq!(heap.allocated_blocks(), 0, "{}", profile.release());
    }
}

#[test]
fn object_is_kept_during_its_own_clear_whatever_its_count_says() {
    clears_an_object_with_too_low_a_count(2, 0);
    // Blocks of C's malloc: a use after the free is seen by Miri and AddressSanitizer.
    clears_an_object_with_too_low_a_count(100, 0);
    clears_an_object_with_too_low_a_count(100, 98);
}

/// Its `weakref_dropped` gives back a reference more than there is to the next weak reference of a chain.
#[derive(Default)]
struct TooMany {
    heap: RefCell<Weak<ObjectHeap>>,
    next: Cell<usize>,
    said: RefCell<Vec<Result<(), FaultKind>>>,
}

struct GivesBackTooMany(Rc<TooMany>);

impl Hooks for GivesBackTooMany {
    fn weakref_dropped(&self, callback: u64) {
        if callback == 1 {
            let heap = self.0.heap.borrow().upgrade().unwrap();
            for _ in 0..2 {
                self.0.said.borrow_mut().push(heap.decref(self.0.next.get()).map_err(|fault| fault.kind));
            }
        }
    }
}

#[test]
fn weak_references_of_a_chain_are_kept_until_they_leave_it() {
    for profile in profile::ALL {
        let hooks = Rc::new(TooMany::default());
        let heap = Rc::new(ObjectHeap::new(HeapOptions::new(profile), Box::new(GivesBackTooMany(Rc::clone(&hooks)))).unwrap());
        *hooks.heap.borrow_mut() = Rc::downgrade(&heap);
        let spec = TypeSpec { name: "node".into(), gc: true, weakrefs: true, ..TypeSpec::default() };
        let kind = heap.define_type(spec).unwrap();
        heap.disable_gc();
        let referent = heap.alloc(kind, 0).unwrap();
        // The last one of the list goes first.
        let last = heap.new_weakref(referent, NonZeroU64::new(1)).unwrap();
        heap.incref(last).unwrap();
        hooks.next.set(heap.new_weakref(referent, NonZeroU64::new(2)).unwrap());
        heap.decref(referent).unwrap();
        assert_eq!(*hooks.said.borrow(), [Ok(()), Err(FaultKind::RefcountUnderflow)], "{}", profile.release());
        heap.verify().unwrap();
        heap.decref(last).unwrap();
        heap.decref(last).unwrap();
        assert_eq!(heap.allocated_blocks(), 0, "{}", profile.release());
    }
}
