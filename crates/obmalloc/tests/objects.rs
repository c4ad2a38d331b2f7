//! Objects, types and the collector, from outside.

use std::cell::RefCell;
use std::num::NonZeroU64;
use std::rc::Rc;

use obmalloc::profile::{self, Profile};
use obmalloc::{
    Domain, FaultKind, Field, FieldKind, HeapOptions, HookSet, Hooks, Info, ItemKind, ObjectError, ObjectHeap, Phase, TypeId,
    TypeSpec, Value,
};

/// Writes down what happens, in order; objects are named by a number of their own.
#[derive(Clone, Default)]
struct Log(Rc<RefCell<Vec<String>>>);

impl Log {
    fn add(&self, line: String) {
        self.0.borrow_mut().push(line);
    }

    fn take(&self) -> Vec<String> {
        self.0.take()
    }
}

fn number(heap: &ObjectHeap, object: usize) -> String {
    match heap.get(object, Field::Name("number")) {
        Ok(Value::Number(number)) => number.to_string(),
        other => format!("{other:?}"),
    }
}

impl Hooks for Log {
    fn finalize(&self, heap: &ObjectHeap, _: TypeId, object: usize) {
        self.add(format!("finalize {}", number(heap, object)));
        if number(heap, object).starts_with('9') {
            heap.incref(object).unwrap();
        }
    }
    fn del(&self, heap: &ObjectHeap, _: TypeId, object: usize) {
        self.add(format!("del {}", number(heap, object)));
    }
    fn dealloc(&self, heap: &ObjectHeap, _: TypeId, object: usize) {
        self.add(format!("dealloc {}", number(heap, object)));
    }
    fn weakref_callback(&self, heap: &ObjectHeap, callback: u64, reference: usize) {
        self.add(format!("callback {callback} {:?}", heap.deref_weakref(reference)));
    }
    fn gc_callback(&self, _: &ObjectHeap, phase: Phase, info: &Info) {
        if phase == Phase::Stop && info.collected + info.uncollectable != 0 {
            self.add(format!("stop {} {} {}", info.generation, info.collected, info.uncollectable));
        }
    }
    fn write(&self, text: &str) {
        self.add(text.trim_end().to_owned());
    }
}

struct Scene {
    heap: ObjectHeap,
    log: Log,
    node: TypeId,
}

/// A heap with a type of two references and a number.
fn scene_with(profile: &Profile, change: impl FnOnce(&mut TypeSpec)) -> Scene {
    let log = Log::default();
    let heap = ObjectHeap::new(HeapOptions::new(profile), Box::new(log.clone())).unwrap();
    let fields = vec![
        ("left".to_owned(), FieldKind::Object),
        ("right".to_owned(), FieldKind::Object),
        ("number".to_owned(), FieldKind::U32),
    ];
    let mut spec = TypeSpec { name: "tree.TreeNode".into(), fields, gc: true, ..TypeSpec::default() };
    spec.hooks.dealloc = true;
    change(&mut spec);
    let node = heap.define_type(spec).unwrap();
    Scene { heap, log, node }
}

fn scene(profile: &Profile) -> Scene {
    scene_with(profile, |_| {})
}

impl Scene {
    fn node(&self, number: u32) -> usize {
        let object = self.heap.alloc(self.node, 0).unwrap();
        self.heap.set(object, Field::Name("number"), Value::Number(number.into())).unwrap();
        object
    }

    fn link(&self, from: usize, field: &str, to: usize) {
        self.heap.set(from, Field::Name(field), Value::Object(to)).unwrap();
    }

    /// A ring of objects that nothing else refers to.
    fn ring(&self, numbers: std::ops::Range<u32>) -> Vec<usize> {
        let objects: Vec<_> = numbers.map(|number| self.node(number)).collect();
        for (index, &object) in objects.iter().enumerate() {
            self.link(object, "left", objects[(index + 1) % objects.len()]);
        }
        for &object in &objects {
            self.heap.decref(object).unwrap();
        }
        objects
    }
}

fn kind(result: Result<impl std::fmt::Debug, ObjectError>) -> FaultKind {
    match result {
        Err(ObjectError::Fault(fault)) => fault.kind,
        other => panic!("expected a fault, got {other:?}"),
    }
}

#[test]
fn last_reference_destroys_an_object_and_what_it_alone_refers_to() {
    let s = scene(&profile::V3_13);
    let (a, b, c) = (s.node(1), s.node(2), s.node(3));
    s.link(a, "left", b);
    s.link(a, "right", c);
    s.link(b, "left", c);
    for object in [b, c] {
        s.heap.decref(object).unwrap();
    }
    assert_eq!(s.heap.refcount(c), Ok(2));
    s.heap.decref(a).unwrap();
    assert_eq!(s.log.take(), ["dealloc 1", "dealloc 2", "dealloc 3"]);
    assert_eq!(s.heap.allocated_blocks(), 0);
    s.heap.verify().unwrap();
}

#[test]
fn cycles_are_collected() {
    for profile in profile::ALL {
        let s = scene(profile);
        let live = s.ring(10..13);
        s.heap.incref(live[1]).unwrap();
        s.ring(1..4);
        assert_eq!(s.heap.collect(2), Ok(3), "{}", profile.release());
        // Clearing 1 destroys 2, and with it 3.
        assert_eq!(s.log.take(), ["dealloc 2", "dealloc 3", "dealloc 1", "stop 2 3 0"], "{}", profile.release());
        assert_eq!(s.heap.objects(None).unwrap(), [live[1], live[2], live[0]], "{}", profile.release());
        s.heap.verify().unwrap();
        assert_eq!(s.heap.collect(2), Ok(0));
        assert_eq!(s.heap.objects(None).unwrap(), [live[1], live[2], live[0]]);
        assert_eq!(s.heap.gc_stats()[2].collected, 3);
        s.heap.decref(live[1]).unwrap();
        assert_eq!(s.heap.collect(2), Ok(3));
        assert_eq!(s.heap.allocated_blocks(), 0);
    }
}

#[test]
fn finalizers_run_once_and_may_resurrect() {
    for (profile, left) in [(&profile::V3_8, 4), (&profile::V3_9, 2), (&profile::V3_13, 2), (&profile::V3_14_0, 2)] {
        let s = scene_with(profile, |spec| spec.hooks.finalize = true);
        s.ring(1..3);
        let kept = s.ring(90..92);
        // 90 and 91 make themselves reachable again.
        assert_eq!(s.heap.collect(2), Ok(4 - left), "{}", profile.release());
        let log = s.log.take();
        assert_eq!(log[..4], ["finalize 1", "finalize 2", "finalize 90", "finalize 91"]);
        assert_eq!(s.heap.objects(None).unwrap().len(), left);
        for object in kept {
            assert_eq!(s.heap.is_finalized(object), Ok(true));
            s.heap.decref(object).unwrap();
        }
        assert_eq!(s.heap.collect(2), Ok(left));
        assert!(s.log.take().iter().all(|line| !line.starts_with("finalize")));
        assert_eq!(s.heap.allocated_blocks(), 0);
    }
}

#[test]
fn weak_references_are_cleared_and_call_back() {
    for profile in profile::ALL {
        let s = scene_with(profile, |spec| spec.weakrefs = true);
        let ring = s.ring(1..3);
        let basic = s.heap.new_weakref(ring[0], None).unwrap();
        assert_eq!(s.heap.new_weakref(ring[0], None), Ok(basic));
        let called = s.heap.new_weakref(ring[0], NonZeroU64::new(7)).unwrap();
        assert_eq!(s.heap.deref_weakref(basic), Ok(Some(ring[0])));
        assert_eq!(s.heap.collect(2), Ok(2));
        assert_eq!(s.log.take(), ["callback 7 Ok(None)", "dealloc 2", "dealloc 1", "stop 2 2 0"], "{}", profile.release());
        assert_eq!(s.heap.deref_weakref(basic), Ok(None));
        for reference in [basic, basic, called] {
            s.heap.decref(reference).unwrap();
        }
        let object = s.node(3);
        let references: Vec<_> = (1..4).map(|id| s.heap.new_weakref(object, NonZeroU64::new(id)).unwrap()).collect();
        s.heap.decref(object).unwrap();
        assert_eq!(
            s.log.take(),
            ["callback 3 Ok(None)", "callback 2 Ok(None)", "callback 1 Ok(None)", "dealloc 3"],
            "{}",
            profile.release()
        );
        references.into_iter().for_each(|reference| s.heap.decref(reference).unwrap());
        assert_eq!(s.heap.allocated_blocks(), 0);
        s.heap.verify().unwrap();
    }
}

#[test]
fn legacy_finalizers_end_up_in_garbage() {
    let s = scene_with(&profile::V3_12, |spec| spec.hooks.del = true);
    let ring = s.ring(1..3);
    assert_eq!(s.heap.collect(2), Ok(2));
    assert_eq!(s.log.take(), ["stop 2 0 2"]);
    assert_eq!(s.heap.take_garbage(), ring);
    assert_eq!(s.heap.refcount(ring[0]), Ok(2));
    s.heap.set(ring[0], Field::Name("left"), Value::Null).unwrap();
    for object in ring {
        s.heap.decref(object).unwrap();
    }
    // The ring is 1 → 2 → 1, and 1 has let go of 2.
    assert_eq!(s.log.take(), ["del 2", "dealloc 2", "del 1", "dealloc 1"]);
}

#[test]
fn requested_sizes_are_those_of_the_release() {
    // What `PyType_GenericAlloc` asks for: a plain class, `__slots__ = ('x',)`, `('__weakref__',)`, `()`, a tuple subclass of three.
    let plain = TypeSpec { gc: true, weakrefs: true, managed_dict: true, ..TypeSpec::default() };
    let slot = TypeSpec { gc: true, fields: vec![("x".into(), FieldKind::Object)], ..TypeSpec::default() };
    let weak = TypeSpec { gc: true, weakrefs: true, ..TypeSpec::default() };
    let empty = TypeSpec { gc: true, ..TypeSpec::default() };
    let tuple = TypeSpec { gc: true, managed_dict: true, items: Some(ItemKind::Object), ..TypeSpec::default() };
    for (profile, sizes) in [
        (&profile::V3_8, [48, 40, 40, 32, 80]),
        (&profile::V3_10, [48, 40, 40, 32, 80]),
        (&profile::V3_11, [56, 40, 40, 32, 80]),
        (&profile::V3_12, [48, 40, 48, 32, 88]),
        (&profile::V3_13, [328, 40, 48, 32, 88]),
        (&profile::V3_14, [328, 40, 48, 32, 88]),
    ] {
        let heap = ObjectHeap::new(HeapOptions::new(profile), Box::new(obmalloc::NoHooks)).unwrap();
        for (index, (spec, size)) in [&plain, &slot, &weak, &empty, &tuple].into_iter().zip(sizes).enumerate() {
            let kind = heap.define_type(spec.clone()).unwrap();
            let in_use = || heap.stats().classes.into_iter().map(|class| class.blocks_in_use);
            let before: Vec<usize> = in_use().collect();
            heap.alloc(kind, 3).unwrap();
            let class = in_use().zip(before).position(|(now, before)| now > before).unwrap();
            assert_eq!((class + 1) * 16, usize::next_multiple_of(size, 16), "{} {index}", profile.release());
        }
    }
}

#[test]
fn a_chain_of_a_million_objects_ends_on_a_small_stack() {
    let run = || {
        let s = scene_with(&profile::V3_13, |spec| spec.hooks = HookSet::default());
        s.heap.disable_gc();
        let mut head = s.node(0);
        for number in 1..if cfg!(miri) { 500 } else { 1_000_000 } {
            let next = s.node(number);
            s.link(next, "left", head);
            s.heap.decref(head).unwrap();
            head = next;
        }
        assert_eq!(s.heap.collect(2), Ok(0));
        s.heap.decref(head).unwrap();
        assert_eq!(s.heap.allocated_blocks(), 0);
    };
    std::thread::Builder::new().stack_size(64 << 10).spawn(run).unwrap().join().unwrap();
}

#[test]
fn more_objects_than_24_bits_count_are_collected_and_so_is_what_all_refer_to() {
    const COUNT: usize = if cfg!(miri) { 500 } else { (1 << 24) + 1000 };
    let s = scene_with(&profile::V3_13, |spec| spec.hooks = HookSet::default());
    s.heap.disable_gc();
    let pair = s.heap.define_type(TypeSpec {
        name: "pair".into(),
        fields: vec![("next".to_owned(), FieldKind::Object), ("hub".to_owned(), FieldKind::Object)],
        gc: true,
        ..TypeSpec::default()
    });
    let pair = pair.unwrap();
    let set = |object, index, to| s.heap.set(object, Field::Member(index), Value::Object(to)).unwrap();
    let hub = s.node(0);
    let first = s.heap.alloc(pair, 0).unwrap();
    let mut last = first;
    for number in 0..COUNT {
        set(last, 1, hub);
        if number < COUNT - 1 {
            let next = s.heap.alloc(pair, 0).unwrap();
            set(last, 0, next);
            s.heap.decref(next).unwrap();
            last = next;
        }
    }
    set(last, 0, first);
    assert_eq!(s.heap.refcount(hub), Ok(COUNT + 1));
    assert_eq!(s.heap.collect(2), Ok(0), "the first one is held");
    s.heap.decref(hub).unwrap();
    s.heap.decref(first).unwrap();
    assert_eq!(s.heap.collect(2), Ok(COUNT + 1));
    assert_eq!(s.heap.allocated_blocks(), 0);
    s.heap.verify().unwrap();
}

#[test]
fn misuse_is_a_fault() {
    let s = scene(&profile::V3_13);
    let object = s.node(1);
    assert_eq!(kind(s.heap.track(object)), FaultKind::GcAlreadyTracked);
    s.heap.untrack(object).unwrap();
    s.heap.untrack(object).unwrap();
    assert_eq!(kind(s.heap.new_weakref(object, None)), FaultKind::WrongType);
    assert_eq!(s.heap.blocks().free(Domain::Obj, object - 16).unwrap_err().kind, FaultKind::WrongType);
    assert_eq!(s.heap.blocks().free(Domain::Obj, object).unwrap_err().kind, FaultKind::WrongType);
    assert_eq!(s.heap.blocks().realloc(Domain::Obj, Some(object - 16), 8).unwrap_err().kind, FaultKind::WrongType);
    assert_eq!(s.heap.incref(object + 8).unwrap_err().kind, FaultKind::InteriorPointer);
    assert_eq!(s.heap.incref(0xdead_beef0).unwrap_err().kind, FaultKind::ForeignPointer);
    let block = s.heap.blocks().malloc(Domain::Mem, 40).unwrap().as_ptr() as usize;
    assert_eq!(s.heap.incref(block).unwrap_err().kind, FaultKind::WrongType);
    s.heap.decref(object).unwrap();
    assert_eq!(s.heap.decref(object).unwrap_err().kind, FaultKind::RefcountUnderflow);
    assert_eq!(s.heap.incref(object).unwrap_err().kind, FaultKind::UseAfterFree);
    assert_eq!(s.heap.collect(3), Err(ObjectError::Argument("a generation: 0, 1 or 2")));
}

#[test]
fn what_a_type_keeps_for_its_next_object_cannot_be_used() {
    for gc in [false, true] {
        let s = scene_with(&profile::V3_13, |spec| (spec.free_list, spec.gc) = (1, gc));
        let object = s.node(1);
        s.heap.decref(object).unwrap();
        let presize = s.heap.type_info(s.node).presize();
        for domain in Domain::ALL {
            for address in [object, object - presize] {
                assert_eq!(s.heap.blocks().free(domain, address).unwrap_err().kind, FaultKind::WrongType);
                assert_eq!(s.heap.blocks().realloc(domain, Some(address), 8).unwrap_err().kind, FaultKind::WrongType);
                assert_eq!(s.heap.blocks().usable_size(domain, address).unwrap_err().kind, FaultKind::WrongType);
            }
        }
        assert_eq!(s.heap.incref(object).unwrap_err().kind, FaultKind::UseAfterFree);
        assert_eq!(s.heap.decref(object).unwrap_err().kind, FaultKind::RefcountUnderflow);
        assert_eq!(s.node(2), object);
        s.heap.decref(object).unwrap();
        s.heap.collect(2).unwrap();
        assert_eq!(s.heap.incref(object).unwrap_err().kind, FaultKind::UseAfterFree);
        assert_eq!(s.heap.allocated_blocks(), 0);
        s.heap.verify().unwrap();
    }
}

/// Does in its `dealloc` what C does: gives the references back.
#[derive(Clone, Default)]
struct Clearing(Rc<RefCell<Vec<Result<(), ObjectError>>>>);

impl Hooks for Clearing {
    fn dealloc(&self, heap: &ObjectHeap, _: TypeId, object: usize) {
        for value in [Value::Null, Value::Object(object)] {
            let done = heap.set(object, Field::Member(0), value);
            self.0.borrow_mut().push(done);
        }
    }
}

#[test]
fn a_dealloc_may_give_the_references_back_itself_but_take_none() {
    let hooks = Clearing::default();
    let heap = ObjectHeap::new(HeapOptions::new(&profile::V3_13), Box::new(hooks.clone())).unwrap();
    let mut spec = TypeSpec { name: "node".into(), gc: true, ..TypeSpec::default() };
    spec.fields.push(("next".to_owned(), FieldKind::Object));
    spec.hooks.dealloc = true;
    let node = heap.define_type(spec).unwrap();
    let (first, second) = (heap.alloc(node, 0).unwrap(), heap.alloc(node, 0).unwrap());
    heap.set(first, Field::Member(0), Value::Object(second)).unwrap();
    heap.decref(second).unwrap();
    heap.decref(first).unwrap();
    let results = hooks.0.take();
    assert_eq!(results.len(), 4);
    let refused = |result: &Result<(), ObjectError>| matches!(result, Err(ObjectError::Fault(fault)) if fault.kind == FaultKind::UseAfterFree);
    assert!(results.iter().all(|result| result.is_ok() || refused(result)));
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 2);
    assert_eq!(heap.allocated_blocks(), 0);
    heap.verify().unwrap();
}
