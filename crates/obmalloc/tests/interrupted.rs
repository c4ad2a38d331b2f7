//! Long calls ask the embedder whether to go on. Here each is interrupted at every such question.

use std::cell::{Cell, RefCell};
use std::num::NonZeroU64;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

#[path = "common/guests.rs"]
mod guests;

use guests::Wrapper;
use obmalloc::profile::{self, Profile};
use obmalloc::{
    AllocatorName, Domain, Field, FieldKind, HeapOptions, HookSet, Hooks, ItemKind, ObjectError, ObjectHeap, TypeId, TypeSpec,
    Value, Visit,
};

/// Enough to be asked several times in each phase.
const COUNT: usize = if cfg!(miri) { 40 } else { 40_000 };

/// Asks a call to stop from the `until`-th question on, as a thread that is being ended does.
#[derive(Clone, Default)]
struct Asked {
    until: Rc<Cell<Option<usize>>>,
    times: Rc<Cell<usize>>,
}

impl Asked {
    fn interrupt_at(&self, until: Option<usize>) {
        self.until.set(until);
        self.times.set(0);
    }
}

impl Asked {
    /// A heap that asks it, and has its hooks.
    fn heap(&self, options: HeapOptions) -> ObjectHeap {
        let mut heap = ObjectHeap::new(options, Box::new(self.clone())).expect("memory");
        let asked = self.clone();
        let ask = move || {
            let times = asked.times.get();
            asked.times.set(times + 1);
            asked.until.get().is_some_and(|until| times >= until)
        };
        // SAFETY: it counts, and uses no heap.
        unsafe { heap.set_interrupt(Box::new(ask)) }.expect("memory");
        heap
    }
}

impl Hooks for Asked {
    fn traverse(&self, heap: &ObjectHeap, _: TypeId, object: usize, visit: &mut Visit<'_>) -> Result<(), obmalloc::Failed> {
        match heap.get(object, Field::Member(0)) {
            Ok(Value::Object(next)) => visit(next).map_err(|_| obmalloc::Failed),
            Ok(_) => Ok(()),
            Err(_) => (0..heap.nitems(object).unwrap()).try_for_each(|index| match heap.get(object, Field::Item(index)) {
                Ok(Value::Object(item)) => visit(item).map_err(|_| obmalloc::Failed),
                item => panic!("{item:?}"),
            }),
        }
    }
}

/// What there is in the heap: all of it is garbage, or all of it lives.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Shape {
    /// Objects that live, each referring to the one before, so that the last is reached first.
    Alive,
    /// A ring, which a single object holds together.
    Ring,
    /// Pairs that refer to each other.
    Pairs,
    /// Objects that refer to themselves, with finalizers and weak references that have callbacks.
    Watched,
    /// One object with many items.
    Wide,
}

const SHAPES: &[Shape] = if cfg!(miri) {
    &[Shape::Ring, Shape::Watched, Shape::Wide]
} else {
    &[Shape::Alive, Shape::Ring, Shape::Pairs, Shape::Watched, Shape::Wide]
};

struct Scene {
    heap: ObjectHeap,
    asked: Asked,
    /// What is held from outside.
    held: RefCell<Vec<usize>>,
    /// Blocks before there were objects.
    blocks: usize,
}

impl Scene {
    fn new(profile: &'static Profile, shape: Shape) -> Self {
        let asked = Asked::default();
        let heap = asked.heap(HeapOptions::new(profile));
        heap.disable_gc();
        let watched = shape == Shape::Watched;
        let hooks = HookSet { finalize: watched, traverse: watched, ..HookSet::default() };
        let node = TypeSpec {
            name: "node".into(),
            fields: vec![("next".into(), FieldKind::Object)],
            gc: true,
            weakrefs: watched,
            hooks,
            ..TypeSpec::default()
        };
        let node = heap.define_type(node).unwrap();
        let wide = TypeSpec { name: "wide".into(), items: Some(ItemKind::Object), gc: true, ..TypeSpec::default() };
        let wide = heap.define_type(wide).unwrap();
        let blocks = heap.allocated_blocks();
        let mut held = Vec::new();
        let set = |object, field, value| heap.set(object, field, Value::Object(value)).unwrap();
        if shape == Shape::Wide {
            let all = heap.alloc(wide, COUNT).unwrap();
            for index in 0..COUNT {
                let object = heap.alloc(node, 0).unwrap();
                set(all, Field::Item(index), object);
                set(object, Field::Member(0), all);
                heap.decref(object).unwrap();
            }
            heap.decref(all).unwrap();
        } else {
            let objects: Vec<usize> = (0..COUNT).map(|_| heap.alloc(node, 0).unwrap()).collect();
            for (index, &object) in objects.iter().enumerate() {
                let next = match shape {
                    Shape::Alive if index == 0 => continue,
                    Shape::Alive => objects[index - 1],
                    Shape::Ring => objects[(index + 1) % COUNT],
                    Shape::Pairs => objects[index ^ 1],
                    Shape::Watched | Shape::Wide => object,
                };
                set(object, Field::Member(0), next);
                if watched {
                    held.push(heap.new_weakref(object, NonZeroU64::new(1)).unwrap());
                }
            }
            for &object in &objects {
                if shape == Shape::Alive && object == objects[COUNT - 1] {
                    held.push(object);
                } else {
                    heap.decref(object).unwrap();
                }
            }
        }
        Self { heap, asked, held: held.into(), blocks }
    }

    /// The heap goes on, and everything can still be destroyed.
    fn finish(self) {
        self.asked.interrupt_at(None);
        self.heap.verify().unwrap();
        let block = self.heap.blocks().malloc(Domain::Obj, 40).unwrap();
        self.heap.blocks().free(Domain::Obj, block.as_ptr() as usize).unwrap();
        let _ = self.heap.unfreeze();
        self.heap.collect(2).unwrap();
        for object in self.held.take() {
            self.heap.decref(object).unwrap();
        }
        self.heap.collect(2).unwrap();
        self.heap.verify().unwrap();
        assert_eq!(self.heap.allocated_blocks(), self.blocks);
        assert_eq!(self.heap.objects(None), Ok(Vec::new()));
    }
}

/// How many questions lie between this interruption and the next one that is tried.
fn further(place: usize) -> usize {
    if cfg!(miri) { 2 + 3 * place } else { 1 + place / 4 }
}

/// Does `deed` with a new scene again and again, interrupted at the first question, at the second, and so on, in growing steps. Ends when it is
/// no longer interrupted, and returns how many questions there were.
fn each_place(profile: &'static Profile, shape: Shape, deed: impl Fn(&Scene) -> Result<(), ObjectError>) -> usize {
    let mut place = 0;
    loop {
        let scene = Scene::new(profile, shape);
        scene.asked.interrupt_at(Some(place));
        let done = deed(&scene);
        let times = scene.asked.times.get();
        let interrupted = times > place;
        assert!(done == Ok(()) || interrupted && done == Err(ObjectError::Aborted), "{} {shape:?}: {done:?}", profile.release());
        scene.finish();
        if !interrupted {
            return times;
        }
        place += further(place);
    }
}

const RELEASES: &[&Profile] =
    if cfg!(miri) { &[&profile::V3_14_0] } else { &[&profile::V3_8, &profile::V3_13, &profile::V3_14_0, &profile::V3_15] };

#[test]
fn interrupted_collection_loses_nothing() {
    for &profile in RELEASES {
        for &shape in SHAPES {
            let places = each_place(profile, shape, |scene| {
                let collected = scene.heap.collect(2);
                if scene.asked.times.get() == 1 && collected.is_err() {
                    // Nothing has been destroyed this early.
                    scene.asked.until.set(None);
                    assert!(scene.heap.objects(None).unwrap().len() >= COUNT);
                    scene.asked.times.set(1);
                }
                collected.map(drop)
            });
            // Counting, moving and destroying ask, each of them.
            assert!(places >= 5, "{} {shape:?}: asked {places} times", profile.release());
        }
    }
}

#[test]
fn collection_without_hooks_destroys_all_or_nothing() {
    for &profile in RELEASES {
        for &shape in SHAPES.iter().filter(|shape| !matches!(shape, Shape::Alive | Shape::Watched)) {
            each_place(profile, shape, |scene| {
                let collected = scene.heap.collect(2);
                let times = scene.asked.times.get();
                scene.asked.until.set(None);
                let left = scene.heap.objects(None).unwrap().len();
                scene.asked.times.set(times);
                let all = if shape == Shape::Wide { COUNT + 1 } else { COUNT };
                assert_eq!(left, if collected.is_ok() { 0 } else { all }, "{} {shape:?}, asked {times} times", profile.release());
                collected.map(drop)
            });
        }
    }
}

#[test]
fn interrupted_increment_loses_nothing() {
    for &shape in SHAPES {
        let places = each_place(&profile::V3_14_0, shape, |scene| {
            for _ in 0..4 {
                scene.heap.collect(1)?;
            }
            Ok(())
        });
        assert!(places >= 3, "{shape:?}: asked {places} times");
    }
}

#[test]
fn interrupted_destruction_is_taken_up() {
    for &profile in RELEASES {
        let places = each_place(profile, Shape::Alive, |scene| {
            let last = scene.held.take().remove(0);
            Ok(scene.heap.decref(last)?)
        });
        assert!(places >= 4, "{}: asked {places} times", profile.release());
    }
}

#[test]
fn interrupted_joining_loses_nothing() {
    for &profile in RELEASES {
        let places = each_place(profile, Shape::Alive, |scene| {
            let kind = scene.heap.type_of(scene.held.borrow()[0])?;
            let more = || -> Result<(), ObjectError> {
                for _ in 0..COUNT {
                    scene.held.borrow_mut().push(scene.heap.alloc(kind, 0)?);
                }
                Ok(())
            };
            scene.heap.collect(0)?;
            more()?;
            scene.heap.collect(1)?;
            more()?;
            scene.heap.freeze()?;
            more()?;
            scene.heap.freeze()?;
            more()?;
            scene.heap.collect(0)?;
            scene.heap.unfreeze()
        });
        assert!(places >= 12, "{}: asked {places} times", profile.release());
    }
}

/// Three pieces of what is filled or cleared at once.
const LARGE: usize = if cfg!(miri) { 3 << 7 } else { 3 << 20 };

/// Does `deed` in a heap without objects, interrupted at each question. It is done, or it is given up and leaves nothing behind. Returns how many
/// questions there were.
fn each_place_in_blocks(debug: bool, deed: impl Fn(&ObjectHeap, TypeId, TypeId) -> Result<(), ObjectError>) -> usize {
    let mut place = 0;
    loop {
        let asked = Asked::default();
        let heap = asked.heap(HeapOptions::new(&profile::V3_13));
        if debug {
            heap.setup_debug_hooks().unwrap();
        }
        let bytes = TypeSpec { name: "bytes".into(), items: Some(ItemKind::Byte), ..TypeSpec::default() };
        let wide = TypeSpec { name: "wide".into(), items: Some(ItemKind::Object), gc: true, ..TypeSpec::default() };
        let (bytes, wide) = (heap.define_type(bytes).unwrap(), heap.define_type(wide).unwrap());
        let blocks = heap.allocated_blocks();
        asked.interrupt_at(Some(place));
        let done = deed(&heap, bytes, wide);
        let times = asked.times.get();
        assert!(done == Ok(()) || times > place && done == Err(ObjectError::Aborted), "{done:?}");
        asked.interrupt_at(None);
        heap.verify().unwrap();
        heap.verify_guards().unwrap();
        heap.collect(2).unwrap();
        for object in heap.objects(None).unwrap() {
            heap.decref(object).unwrap();
        }
        assert_eq!(heap.allocated_blocks(), blocks);
        if times <= place {
            return times;
        }
        place += further(place);
    }
}

#[test]
fn interrupted_clearing_leaves_no_object() {
    for &debug in if cfg!(miri) { &[true][..] } else { &[false, true] } {
        let least = if debug { 4 } else { 2 };
        let places =
            each_place_in_blocks(debug, |heap, bytes, _| heap.alloc(bytes, LARGE).and_then(|object| Ok(heap.decref(object)?)));
        assert!(places >= least, "asked {places} times");
        let places = each_place_in_blocks(debug, |heap, _, wide| {
            let object = heap.new_var(wide, LARGE / 8)?;
            assert_eq!(heap.get(object, Field::Item(LARGE / 8 - 1)), Ok(Value::Null));
            Ok(heap.decref(object)?)
        });
        assert!(places >= least, "asked {places} times");
        let places = each_place_in_blocks(debug, |heap, _, wide| {
            let object = heap.new_var(wide, 1)?;
            let object = heap.gc_resize(object, LARGE / 8)?;
            // It has one item, or all.
            let nitems = heap.nitems(object)?;
            assert!(nitems == 1 || nitems == LARGE / 8, "{nitems}");
            assert_eq!(heap.get(object, Field::Item(nitems - 1)), Ok(Value::Null));
            let object = heap.gc_resize(object, 1).or_else(|error| {
                heap.decref(object)?;
                Err(error)
            })?;
            Ok(heap.decref(object)?)
        });
        assert!(places >= least, "asked {places} times");
    }
}

#[test]
fn interrupted_deletion_leaves_the_object_with_what_it_still_refers_to() {
    let places = each_place_in_blocks(false, |heap, _, wide| {
        let (other, object) = (heap.alloc(wide, 0)?, heap.alloc(wide, COUNT)?);
        for index in 0..COUNT {
            heap.set(object, Field::Item(index), Value::Object(other))?;
        }
        let deleted = heap.gc_del(object);
        if deleted.is_err() {
            let left = (0..COUNT).filter(|&index| heap.get(object, Field::Item(index)) != Ok(Value::Null)).count();
            assert_eq!(heap.refcount(other), Ok(1 + left));
            heap.decref(object)?;
        }
        heap.decref(other)?;
        deleted
    });
    assert!(places >= 2, "asked {places} times");
}

#[test]
fn interrupted_resizing_keeps_count_of_references() {
    let places = each_place_in_blocks(false, |heap, _, wide| {
        let count = LARGE / 8;
        let (other, object) = (heap.alloc(wide, 0)?, heap.new_var(wide, count)?);
        for index in 0..count {
            heap.set(object, Field::Item(index), Value::Object(other))?;
        }
        let own = heap.allocator(Domain::Obj).expect("memory");
        Wrapper::put_in(heap, Domain::Obj, 0);
        let resized = heap.gc_resize(object, count + 1);
        heap.set_allocator(Domain::Obj, own).expect("it has been in");
        let object = *resized.as_ref().unwrap_or(&object);
        let left = (0..heap.nitems(object)?).filter(|&index| heap.get(object, Field::Item(index)) != Ok(Value::Null)).count();
        assert_eq!(heap.refcount(other), Ok(1 + left));
        heap.decref(object)?;
        heap.decref(other)?;
        resized.map(drop)
    });
    assert!(places >= 3, "asked {places} times");
}

#[test]
fn interrupted_search_says_so() {
    for shape in [Shape::Alive, Shape::Watched] {
        let places = each_place(&profile::V3_13, shape, |scene| {
            let all = scene.heap.objects(None)?;
            assert_ne!(scene.heap.referrers(&all[..1])?, []);
            assert_ne!(scene.heap.referents(&all)?, []);
            scene.heap.verify().map_err(|_| ObjectError::NoMemory)
        });
        assert!(places >= 6, "{shape:?}: asked {places} times");
    }
}

#[test]
fn what_a_hook_visits_is_compared_in_pieces() {
    let places = each_place_in_blocks(false, |heap, bytes, _| {
        let hooks = HookSet { traverse: true, ..HookSet::default() };
        let told = TypeSpec { name: "told".into(), items: Some(ItemKind::Object), gc: true, hooks, ..TypeSpec::default() };
        let (object, item) = (heap.alloc(heap.define_type(told)?, COUNT)?, heap.alloc(bytes, 0)?);
        for index in 0..COUNT {
            heap.set(object, Field::Item(index), Value::Object(item))?;
        }
        heap.decref(item)?;
        heap.referents(&[object]).map(|found| assert_eq!(found, vec![item; COUNT]))
    });
    // Twice what is visited, once what is held, and the answer.
    assert!(places >= 7, "asked {places} times");
}

/// A heap that is asked, and what asks.
fn asked_heap(allocator: AllocatorName) -> (ObjectHeap, Asked) {
    let asked = Asked::default();
    let options = HeapOptions { allocator, ..HeapOptions::new(&profile::V3_13) };
    (asked.heap(options), asked)
}

#[test]
// Miri's C library does not say how large a block is.
#[cfg_attr(miri, ignore)]
fn freeing_a_large_block_can_be_given_up() {
    const SIZE: usize = 100 << 20;
    let (heap, asked) = asked_heap(AllocatorName::Default);
    for place in [0, 1, 50, 200] {
        let blocks = Domain::ALL.map(|domain| heap.blocks().malloc(domain, SIZE).expect("memory").as_ptr().expose_provenance());
        for (block, domain) in blocks.into_iter().zip(Domain::ALL) {
            asked.interrupt_at(Some(place));
            let smaller =
                heap.blocks().realloc(domain, Some(block), 100).expect("a block").expect("smaller").as_ptr().expose_provenance();
            assert_eq!(heap.blocks().usable_size(domain, smaller), Ok(100));
            let block = heap
                .blocks()
                .realloc(domain, Some(smaller), SIZE)
                .expect("a block")
                .expect("memory")
                .as_ptr()
                .expose_provenance();
            asked.interrupt_at(Some(place));
            heap.blocks().free(domain, block).expect("a block");
            assert!(heap.blocks().usable_size(domain, block).is_err());
            // The first answers were to go on.
            assert!(asked.times.get() > place.min(50), "asked {} times", asked.times.get());
        }
        asked.interrupt_at(None);
        assert_eq!(heap.held(), 0);
        heap.verify().expect("holds");
    }
}

#[test]
fn taking_down_can_be_given_up() {
    let count = if cfg!(miri) { 40 } else { 40_000 };
    for shape in [0, 1, 2] {
        let mut next = 0;
        loop {
            let patience = next;
            next += further(patience);
            let (heap, _) = asked_heap(if shape == 1 { AllocatorName::Debug } else { AllocatorName::Default });
            for index in 0..count {
                let domain = Domain::ALL[index % 3];
                heap.blocks().malloc(domain, if shape == 2 { 100 } else { 513 + index % 100 }).expect("memory");
            }
            let left = Cell::new(patience as isize);
            let is_over = || {
                left.set(left.get() - 1);
                left.get() < 0
            };
            let mut leaving = heap.take_down();
            let gone = leaving.go_on(is_over);
            assert_eq!(gone, left.get() >= 0);
            if gone {
                assert!(patience > if cfg!(miri) { 1 } else { 3 }, "asked {patience} times");
                break;
            }
            // Going on gives back the rest of the heap, and so does dropping it.
            assert!(patience % 2 == 0 || leaving.go_on(|| false));
        }
    }
}

#[test]
fn taking_down_that_ends_in_a_panic_leaves_nothing() {
    let size = if cfg!(miri) { 5000 } else { 100 << 20 };
    for patience in [0, 1, 2, 50] {
        let (heap, _) = asked_heap(AllocatorName::Default);
        for _ in 0..2 {
            heap.blocks().malloc(Domain::Raw, size).expect("memory");
        }
        let (mut leaving, mut asked) = (heap.take_down(), 0);
        let is_over = || {
            asked += 1;
            assert!(asked <= patience, "as the test wants");
            false
        };
        let gone = catch_unwind(AssertUnwindSafe(|| leaving.go_on(is_over)));
        // Miri is asked about fewer bytes.
        assert!(gone.is_err() || cfg!(miri));
        // Dropping it gives back the rest, as LeakSanitizer checks.
        drop(leaving);
    }
}
