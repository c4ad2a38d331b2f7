//! What `benchmark/instructions.mjs` counts the instructions of: `instructions CASE COUNT` does something with so many blocks or objects, and
//! exits without taking the heap down.

use std::hint::black_box;
use std::process::exit;

use obmalloc::profile::V3_14;
use obmalloc::{Domain, Field, FieldKind, Heap, HeapOptions, NoHooks, ObjectHeap, TypeSpec, Value};

/// Bytes of every block.
const SIZE: usize = 64;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let count = arguments.get(1).and_then(|count| count.parse().ok()).expect("a case and a count");
    match arguments[0].as_str() {
        "alloc" => blocks(count, false),
        "alloc, free" => blocks(count, true),
        "pairs" => pairs(count),
        "run obj: alloc" => run(Domain::Obj, count, false),
        "run obj: alloc, free" => run(Domain::Obj, count, true),
        "run raw: alloc" => run(Domain::Raw, count, false),
        "run raw: alloc, free" => run(Domain::Raw, count, true),
        "live" => objects(count, true, false),
        "live, collect" => objects(count, true, true),
        "garbage" => objects(count, false, false),
        "garbage, collect" => objects(count, false, true),
        other => panic!("there is no case {other:?}"),
    }
}

/// `Heap`, which trusts its caller.
fn blocks(count: usize, free: bool) -> ! {
    let heap = Heap::new(&V3_14).expect("a heap");
    let mut blocks = vec![None; count];
    for block in &mut blocks {
        *block = heap.malloc(Domain::Obj, black_box(SIZE));
    }
    if free {
        for &block in &blocks {
            // SAFETY: each is freed once.
            unsafe { heap.free(Domain::Obj, block) };
        }
    }
    exit(0)
}

/// One block at a time, while another one keeps the pool.
fn pairs(count: usize) -> ! {
    let heap = Heap::new(&V3_14).expect("a heap");
    black_box(heap.malloc(Domain::Obj, SIZE));
    for _ in 0..count {
        let block = heap.malloc(Domain::Obj, black_box(SIZE));
        // SAFETY: freed once.
        unsafe { heap.free(Domain::Obj, black_box(block)) };
    }
    exit(0)
}

/// A heap that looks every address up first.
fn heap() -> ObjectHeap {
    ObjectHeap::new(HeapOptions::new(&V3_14), Box::new(NoHooks)).expect("a heap")
}

/// What an operation of the TypeScript `run` does in the engine.
fn run(domain: Domain, count: usize, free: bool) -> ! {
    let heap = heap();
    let mut slots = vec![0; count];
    for slot in &mut slots {
        *slot = heap.blocks().malloc(domain, black_box(SIZE)).map_or(0, |block| block.addr().get());
    }
    if free {
        for &slot in &slots {
            heap.blocks().free(domain, slot).expect("a block");
        }
    }
    exit(0)
}

/// Objects in pairs that refer to each other, and are held from outside too, or not.
fn objects(count: usize, held: bool, collect: bool) -> ! {
    let heap = heap();
    heap.disable_gc();
    let fields = vec![("other".into(), FieldKind::Object)];
    let node = TypeSpec { name: "node".into(), fields, gc: true, ..TypeSpec::default() };
    let node = heap.define_type(node).expect("a type");
    for _ in 0..count / 2 {
        let [one, other] = [0, 1].map(|_| heap.alloc(node, 0).expect("an object"));
        for (object, value) in [(one, other), (other, one)] {
            heap.set(object, Field::Member(0), Value::Object(value)).expect("a field");
        }
        if !held {
            heap.decref(one).expect("an object");
            heap.decref(other).expect("an object");
        }
    }
    if collect {
        assert_eq!(heap.collect(2), Ok(if held { 0 } else { count }));
    }
    exit(0)
}
