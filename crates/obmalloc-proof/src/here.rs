//! This engine as a [`World`]. Leans on `session`.

#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::fmt::Debug;
use std::num::NonZeroU64;
use std::rc::Rc;

use obmalloc::profile::{Algorithm, Profile};
use obmalloc::{
    AllocatorName, Field, FieldKind, HeapOptions, HookSet, Hooks, Info, ItemKind, ObjectError, ObjectHeap, Phase, TypeId,
    TypeSpec, Value, Visit,
};

use crate::program::{KINDS, Program, SCRIPTS, Slot};
use crate::session::{Session, World};

/// Programs that run on one heap before it is replaced. The incremental collector's two old spaces change places with each full
/// collection, so it needs a new heap each time.
const HEAP_PROGRAMS: u32 = 1000;

/// Heaps with every kind, which run one program after the other.
pub struct Here {
    profile: Profile,
    allocator: AllocatorName,
    programs: u32,
    heap: ObjectHeap,
    types: Types,
    session: Current,
}

type Types = Rc<RefCell<Vec<TypeId>>>;
type Current = Rc<RefCell<Option<Rc<Session>>>>;

/// The engine's hooks, which call the session.
struct Calls {
    types: Types,
    session: Current,
}

impl Here {
    /// A heap of the release.
    ///
    /// # Panics
    /// If there is no memory for it.
    pub fn new(profile: &Profile) -> Self {
        Self::with(profile, AllocatorName::Default)
    }

    /// A heap of the release with other allocators than its own.
    ///
    /// # Panics
    /// If there is no memory for it.
    pub fn with(profile: &Profile, allocator: AllocatorName) -> Self {
        let (types, session) = (Types::default(), Current::default());
        let calls = Calls { types: types.clone(), session: session.clone() };
        let heap = done(ObjectHeap::new(HeapOptions { allocator, ..HeapOptions::new(profile) }, Box::new(calls)));
        for kind in &KINDS {
            let spec = TypeSpec {
                name: format!("proof.{}", kind.name),
                fields: (0..kind.fields).map(|number| (format!("field{number}"), FieldKind::Object)).collect(),
                items: kind.items.then_some(ItemKind::Object),
                gc: kind.gc,
                weakrefs: kind.weakrefs,
                hooks: HookSet {
                    traverse: kind.gc && kind.traverse != Slot::Native,
                    clear: kind.gc && kind.clear != Slot::Native,
                    finalize: kind.finalize,
                    del: kind.del,
                    dealloc: kind.dealloc,
                },
                ..TypeSpec::default()
            };
            types.borrow_mut().push(done(heap.define_type(spec)));
        }
        Self { profile: *profile, allocator, programs: 0, heap, types, session }
    }

    /// The thresholds that the collector has at present.
    pub fn thresholds(&self) -> [i32; 3] {
        self.heap.threshold()
    }

    /// Runs a program on a collector in its initial state. Returns the log, after a check that the heap's structures hold.
    ///
    /// # Panics
    /// If anything that a program does is an error here.
    pub fn run(&mut self, program: &Program) -> String {
        self.programs += 1;
        if self.programs > if self.profile.algorithm() == Algorithm::Incremental { 1 } else { HEAP_PROGRAMS } {
            *self = Self { programs: 1, ..Self::with(&self.profile, self.allocator) };
        }
        let heap = &self.heap;
        heap.disable_gc();
        heap.set_debug(0);
        heap.set_threshold(700, Some(10), Some(10));
        done(heap.collect(2));
        let session = Rc::new(Session::new(program));
        *self.session.borrow_mut() = Some(session.clone());
        session.run(&Side { heap, types: &self.types });
        *self.session.borrow_mut() = None;
        done(heap.verify());
        done(heap.verify_guards());
        Rc::into_inner(session).expect("no hook is under way").into_log()
    }
}

fn done<T, E: Debug>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|error| panic!("nothing that a program does is an error: {error:?}"))
}

impl Calls {
    fn call(&self, heap: &ObjectHeap, call: impl FnOnce(&Session, &dyn World)) {
        let session = self.session.borrow().clone();
        // Before a program begins there is no log: a collection then is not the program's.
        if let Some(session) = session {
            call(&session, &Side { heap, types: &self.types });
        }
    }
}

impl Hooks for Calls {
    fn traverse(&self, heap: &ObjectHeap, _: TypeId, object: usize, visit: &mut Visit<'_>) -> Result<(), obmalloc::Failed> {
        let mut result = Ok(());
        self.call(heap, |session, world| {
            for slot in 0..session.visited(object) {
                let held = world.get(object, slot);
                if held != 0 && result.is_ok() {
                    result = visit(held).map_err(|_| obmalloc::Failed);
                }
            }
        });
        result
    }

    fn clear(&self, heap: &ObjectHeap, _: TypeId, object: usize) {
        self.call(heap, |session, world| session.clear(world, object));
    }

    fn finalize(&self, heap: &ObjectHeap, _: TypeId, object: usize) {
        self.call(heap, |session, world| session.finalize(world, object));
    }

    fn del(&self, heap: &ObjectHeap, _: TypeId, object: usize) {
        self.call(heap, |session, world| session.del(world, object));
    }

    fn dealloc(&self, heap: &ObjectHeap, _: TypeId, object: usize) {
        self.call(heap, |session, _| session.dealloc(object));
    }

    fn weakref_callback(&self, heap: &ObjectHeap, callback: u64, reference: usize) {
        self.call(heap, |session, world| session.weakref_callback(world, (callback - 1) as u8, reference));
    }

    fn gc_callback(&self, heap: &ObjectHeap, phase: Phase, info: &Info) {
        let phase = match phase {
            Phase::Start => "start",
            Phase::Stop => "stop",
        };
        self.call(heap, |session, world| {
            session.gc_callback(world, phase, info.generation, info.collected, info.uncollectable);
        });
    }

    fn write(&self, text: &str) {
        if let Some(session) = &*self.session.borrow() {
            session.text(text);
        }
    }

    fn collection_failed(&self, _: &ObjectHeap, error: ObjectError) {
        panic!("a collection failed: {error:?}");
    }
}

struct Side<'a> {
    heap: &'a ObjectHeap,
    types: &'a RefCell<Vec<TypeId>>,
}

impl Side<'_> {
    fn kind(&self, kind: usize) -> TypeId {
        self.types.borrow()[kind]
    }

    /// The field or item that a slot is. Fields come first.
    fn field(&self, object: usize, slot: usize) -> Field<'static> {
        let fields = self.heap.type_info(done(self.heap.type_of(object))).fields().len();
        if slot < fields { Field::Member(slot) } else { Field::Item(slot - fields) }
    }
}

impl World for Side<'_> {
    fn alloc(&self, kind: usize, nitems: usize) -> usize {
        done(self.heap.alloc(self.kind(kind), nitems))
    }

    fn new_object(&self, kind: usize, nitems: usize) -> usize {
        let id = self.kind(kind);
        done(if KINDS[kind].items { self.heap.new_var(id, nitems) } else { self.heap.new_object(id) })
    }

    fn incref(&self, object: usize) {
        done(self.heap.incref(object));
    }

    fn decref(&self, object: usize) {
        done(self.heap.decref(object));
    }

    fn refcount(&self, object: usize) -> usize {
        done(self.heap.refcount(object))
    }

    fn get(&self, object: usize, slot: usize) -> usize {
        match done(self.heap.get(object, self.field(object, slot))) {
            Value::Object(held) => held,
            _ => 0,
        }
    }

    fn set(&self, object: usize, slot: usize, value: usize) {
        let value = if value == 0 { Value::Null } else { Value::Object(value) };
        done(self.heap.set(object, self.field(object, slot), value));
    }

    fn track(&self, object: usize) {
        done(self.heap.track(object));
    }

    fn untrack(&self, object: usize) {
        done(self.heap.untrack(object));
    }

    fn is_tracked(&self, object: usize) -> bool {
        done(self.heap.is_tracked(object))
    }

    fn is_finalized(&self, object: usize) -> bool {
        done(self.heap.is_finalized(object))
    }

    fn new_weakref(&self, object: usize, callback: Option<u8>) -> usize {
        let callback = callback.and_then(|script| NonZeroU64::new(u64::from(script) % SCRIPTS as u64 + 1));
        done(self.heap.new_weakref(object, callback))
    }

    fn deref(&self, reference: usize) -> usize {
        done(self.heap.deref_weakref(reference)).unwrap_or(0)
    }

    fn collect(&self, generation: usize) -> usize {
        done(self.heap.collect(generation))
    }

    fn count(&self) -> [i32; 3] {
        self.heap.count()
    }

    fn stats(&self) -> [[usize; 3]; 3] {
        self.heap.gc_stats().map(|stats| [stats.collections, stats.collected, stats.uncollectable])
    }

    fn objects(&self, generation: Option<usize>) -> Vec<usize> {
        done(self.heap.objects(generation))
    }

    fn referrers(&self, object: usize) -> Vec<usize> {
        done(self.heap.referrers(&[object]))
    }

    fn referents(&self, object: usize) -> Vec<usize> {
        done(self.heap.referents(&[object]))
    }

    fn freeze(&self) {
        done(self.heap.freeze());
    }

    fn unfreeze(&self) {
        done(self.heap.unfreeze());
    }

    fn freeze_count(&self) -> usize {
        self.heap.freeze_count()
    }

    fn enable(&self) {
        self.heap.enable_gc();
    }

    fn disable(&self) {
        self.heap.disable_gc();
    }

    fn set_threshold(&self, thresholds: [i32; 3]) {
        self.heap.set_threshold(thresholds[0], Some(thresholds[1]), Some(thresholds[2]));
    }

    fn set_debug(&self, flags: u32) {
        self.heap.set_debug(flags);
    }

    fn take_garbage(&self) -> Vec<usize> {
        self.heap.take_garbage()
    }

    fn set_immortal(&self, object: usize) -> bool {
        done(self.heap.set_immortal(object))
    }

    fn run_scheduled(&self) {
        self.heap.run_scheduled();
    }
}
