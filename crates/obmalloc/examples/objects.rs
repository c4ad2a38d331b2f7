//! Types, objects in a cycle, and the collector that finds them: `cargo run --example objects`.

use std::cell::Cell;
use std::error::Error;
use std::rc::Rc;

use obmalloc::{Field, FieldKind, HeapOptions, HookSet, Hooks, ObjectHeap, TypeId, TypeSpec, Value, profile};

/// What the heap calls: here, only when an object is destroyed.
struct Counting(Rc<Cell<usize>>);

impl Hooks for Counting {
    fn dealloc(&self, heap: &ObjectHeap, kind: TypeId, _: usize) {
        println!("a {} is destroyed", heap.type_info(kind).name());
        self.0.set(self.0.get() + 1);
    }
}

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let destroyed = Rc::new(Cell::new(0));
    let heap = ObjectHeap::new(HeapOptions::new(&profile::V3_13), Box::new(Counting(destroyed.clone())))?;
    let node = heap.define_type(TypeSpec {
        name: "node".into(),
        fields: vec![("next".into(), FieldKind::Object)],
        gc: true,
        hooks: HookSet { dealloc: true, ..HookSet::default() },
        ..TypeSpec::default()
    })?;

    // Two objects that refer to each other.
    let (first, second) = (heap.alloc(node, 0)?, heap.alloc(node, 0)?);
    heap.set(first, Field::Name("next"), Value::Object(second))?;
    heap.set(second, Field::Name("next"), Value::Object(first))?;
    heap.decref(first)?;
    heap.decref(second)?;
    assert_eq!((heap.refcount(first)?, destroyed.get()), (1, 0), "the cycle keeps both");

    assert_eq!((heap.collect(2)?, destroyed.get()), (2, 2));
    assert_eq!(heap.allocated_blocks(), 0);
    Ok(())
}
