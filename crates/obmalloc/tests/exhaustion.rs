//! Every operation on objects, with the k-th request for memory refused, for every k until it succeeds: once, and from then on.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ffi::c_void;
use std::num::NonZeroU64;
use std::ptr;

use obmalloc::profile::{self, Profile};
use obmalloc::{
    ArenaAllocator, Field, FieldKind, HeapOptions, HookSet, Hooks, ItemKind, ObjectError, ObjectHeap, TypeId, TypeSpec, Value,
    Visit,
};

thread_local! {
    /// How many requests are still granted, and how many are refused after them. `None` refuses nothing.
    static GRANTED: Cell<Option<(usize, usize)>> = const { Cell::new(None) };
}

/// Counts a request, and says whether it is refused.
fn refused() -> bool {
    GRANTED.with(|granted| match granted.get() {
        None | Some((0, 0)) => false,
        Some((0, refused)) => {
            granted.set(Some((0, refused - 1)));
            true
        }
        Some((left, refused)) => {
            granted.set(Some((left - 1, refused)));
            false
        }
    })
}

/// The allocator of the engine's own tables.
struct Failing;

// SAFETY: the system's allocator, or NULL.
unsafe impl GlobalAlloc for Failing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        if refused() { ptr::null_mut() } else { unsafe { System.alloc(layout) } }
    }
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(block, layout) }
    }
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        if refused() { ptr::null_mut() } else { unsafe { System.realloc(block, layout, size) } }
    }
}

#[global_allocator]
static GLOBAL: Failing = Failing;

/// Arenas of the C library's, which can be refused too.
fn arenas() -> ArenaAllocator {
    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, 1 << 16).expect("a layout")
    }
    unsafe extern "C-unwind" fn give(_: *mut c_void, size: usize) -> *mut c_void {
        // SAFETY: the layout is not empty.
        if refused() { ptr::null_mut() } else { unsafe { System.alloc(layout(size)).cast() } }
    }
    unsafe extern "C-unwind" fn take(_: *mut c_void, address: *mut c_void, size: usize) {
        // SAFETY: what `give` gave.
        unsafe { System.dealloc(address.cast(), layout(size)) }
    }
    ArenaAllocator { ctx: ptr::null_mut(), alloc: give, free: take }
}

/// Finalizers and callbacks that allocate, as far as there is memory.
struct Busy(Cell<Option<TypeId>>);

impl Hooks for Busy {
    fn finalize(&self, heap: &ObjectHeap, _: TypeId, object: usize) {
        let Some(kind) = self.0.get() else { return };
        if let Ok(other) = heap.alloc(kind, 0) {
            heap.set(other, Field::Member(0), Value::Object(object)).expect("an object");
            heap.decref(other).expect("an object");
        }
    }
    fn weakref_callback(&self, heap: &ObjectHeap, _: u64, _: usize) {
        if let Some(kind) = self.0.get()
            && let Ok(object) = heap.alloc(kind, 0)
        {
            heap.decref(object).expect("an object");
        }
    }
    fn traverse(&self, heap: &ObjectHeap, _: TypeId, object: usize, visit: &mut Visit<'_>) -> Result<(), obmalloc::Failed> {
        if let Ok(Value::Object(reference)) = heap.get(object, Field::Member(0)) {
            visit(reference).map_err(|_| obmalloc::Failed)?;
        }
        Ok(())
    }
}

struct Scene {
    heap: ObjectHeap,
    plain: TypeId,
    tuple: TypeId,
    live: usize,
    /// Of a type that is yet to be defined.
    fields: RefCell<Vec<(String, FieldKind)>>,
}

/// A heap with garbage of every kind, and a little that is live.
fn scene(profile: &Profile) -> Scene {
    let heap = ObjectHeap::new(HeapOptions::new(profile), Box::new(Busy(Cell::new(None)))).expect("a heap");
    // SAFETY: the functions give and take memory, and do not unwind.
    unsafe { heap.set_arena_allocator(arenas()) }.expect("memory");
    heap.disable_gc();
    let fields = || vec![("a".to_owned(), FieldKind::Object), ("b".to_owned(), FieldKind::Object)];
    let define =
        |spec: TypeSpec| heap.define_type(TypeSpec { fields: fields(), gc: true, weakrefs: true, ..spec }).expect("a type");
    let plain = define(TypeSpec::default());
    let finalized = define(TypeSpec { hooks: HookSet { finalize: true, ..HookSet::default() }, ..TypeSpec::default() });
    let traversed = define(TypeSpec { hooks: HookSet { traverse: true, ..HookSet::default() }, ..TypeSpec::default() });
    let legacy = define(TypeSpec { hooks: HookSet { del: true, ..HookSet::default() }, ..TypeSpec::default() });
    let tuple = heap
        .define_type(TypeSpec { items: Some(ItemKind::Object), gc: true, free_list: 0, ..TypeSpec::default() })
        .expect("a type");
    for kind in [plain, finalized, traversed, legacy, plain] {
        let objects: Vec<usize> = (0..5).map(|_| heap.alloc(kind, 0).expect("memory")).collect();
        for (index, &object) in objects.iter().enumerate() {
            heap.set(object, Field::Member(0), Value::Object(objects[(index + 1) % 5])).expect("an object");
            let reference = heap.new_weakref(object, NonZeroU64::new(7)).expect("memory");
            if index % 2 == 0 {
                heap.set(object, Field::Member(1), Value::Object(reference)).expect("an object");
                heap.decref(reference).expect("an object");
            }
        }
        objects.iter().for_each(|&object| heap.decref(object).expect("an object"));
    }
    let live = heap.alloc(plain, 0).expect("memory");
    let three = [("a", FieldKind::Object), ("b", FieldKind::U8), ("c", FieldKind::Object)];
    let fields = RefCell::new(three.map(|(name, kind)| (name.to_owned(), kind)).to_vec());
    Scene { heap, plain, tuple, live, fields }
}

type Operation = (&'static str, fn(&Scene) -> Result<(), ObjectError>);

const OPERATIONS: [Operation; 13] = [
    ("alloc", |s| s.heap.alloc(s.plain, 0).map(drop)),
    ("alloc, large", |s| s.heap.alloc(s.tuple, 1000).map(drop)),
    ("new", |s| s.heap.new_object(s.plain).map(drop)),
    ("new_var", |s| s.heap.new_var(s.tuple, 300).map(drop)),
    ("define_type", |s| {
        s.heap.define_type(TypeSpec { fields: s.fields.take(), gc: true, free_list: 30, ..TypeSpec::default() }).map(drop)
    }),
    ("new_weakref", |s| s.heap.new_weakref(s.live, NonZeroU64::new(3)).map(drop)),
    ("collect(0)", |s| s.heap.collect(0).map(drop)),
    ("collect(1)", |s| s.heap.collect(1).map(drop)),
    ("collect(2)", |s| s.heap.collect(2).map(drop)),
    ("freeze", |s| s.heap.freeze()),
    ("objects", |s| s.heap.objects(None).map(drop)),
    ("referrers", |s| s.heap.referrers(&[s.live]).map(drop)),
    ("track", |s| {
        s.heap.untrack(s.live)?;
        s.heap.track(s.live)
    }),
];

#[test]
fn whatever_request_is_refused_nothing_breaks() {
    let mut failed = BTreeSet::new();
    let profiles: &[&Profile] =
        if cfg!(miri) { &[&profile::V3_13] } else { &[&profile::V3_8, &profile::V3_13, &profile::V3_14_0, &profile::V3_15] };
    for &profile in profiles {
        for (name, operation) in OPERATIONS {
            for &refused in if cfg!(miri) { &[1][..] } else { &[1, usize::MAX] } {
                for granted in 0..if cfg!(miri) { 1 } else { usize::MAX } {
                    assert!(granted < 2000, "{name} in {}: it never succeeds", profile.release());
                    let s = scene(profile);
                    GRANTED.with(|requests| requests.set(Some((granted, refused))));
                    let result = operation(&s);
                    let all_granted = GRANTED.with(|requests| requests.replace(None)).is_some_and(|(_, left)| left == refused);
                    let context = || format!("{name} in {}, request {granted} refused", profile.release());
                    match result {
                        Ok(()) => {}
                        Err(ObjectError::NoMemory) => drop(failed.insert(name)),
                        Err(other) => panic!("{}: {other:?}", context()),
                    }
                    s.heap.verify().unwrap_or_else(|corruption| panic!("{}: {corruption}", context()));
                    operation(&s).unwrap_or_else(|error| panic!("{}: afterwards {error:?}", context()));
                    s.heap.collect(2).unwrap_or_else(|error| panic!("{}: afterwards {error:?}", context()));
                    s.heap.verify().unwrap_or_else(|corruption| panic!("{}: {corruption}", context()));
                    if all_granted {
                        break;
                    }
                }
            }
        }
    }
    // The other operations needed no new memory.
    let expected = ["collect(0)", "collect(1)", "collect(2)", "define_type", "freeze", "objects", "referrers"];
    assert!(expected.iter().all(|name| failed.contains(name)), "only {failed:?} failed");
}
