//! Times collections of the same million objects, in turn in the CPython around and in a heap here.

use std::ffi::{c_int, c_void};
use std::ptr;
use std::time::Instant;

use obmalloc::profile::Profile;
use obmalloc::{Field, FieldKind, HeapOptions, NoHooks, ObjectHeap, TypeId, TypeSpec, Value};
use obmalloc_proof::Random;
use pyo3::ffi::{self, PyObject};

use crate::gc::ffi::_PyObject_GC_New;

/// How objects refer to each other: two references each, by number.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// To the next two; all are held from outside.
    InOrder,
    /// To two at random, each one as often as in a permutation; all are held from outside.
    Shuffled,
    /// To two at random; a thousand are held from outside, and what they do not reach is left out.
    RandomGraph,
    /// To the next; the first is held from outside.
    Chain,
    /// As a chain, but the next is anywhere.
    ShuffledChain,
    /// To each other, in pairs that nothing holds.
    GarbagePairs,
    /// To the one before and the one behind, in one ring that nothing holds.
    GarbageGroup,
}

const SHAPES: [(&str, Shape); 7] = [
    ("live, in allocation order", Shape::InOrder),
    ("live, shuffled references", Shape::Shuffled),
    ("live, random graph", Shape::RandomGraph),
    ("one long chain, in order", Shape::Chain),
    ("one long chain, shuffled", Shape::ShuffledChain),
    ("all garbage, in pairs", Shape::GarbagePairs),
    ("all garbage, in one group", Shape::GarbageGroup),
];

/// Stands for no object.
const NONE: usize = usize::MAX;

/// The graph of a shape: what each object refers to, and which are held from outside.
struct Graph {
    references: Vec<[usize; 2]>,
    held: Vec<usize>,
    /// The objects that are reached from those.
    reached: Vec<usize>,
    garbage: bool,
}

impl Graph {
    fn new(shape: Shape, count: usize) -> Self {
        let mut random = Random::new(17);
        let permutation = |random: &mut Random| {
            let mut order: Vec<usize> = (0..count).collect();
            for index in (1..count).rev() {
                order.swap(index, random.below(index + 1));
            }
            order
        };
        let next = |index: usize, by: usize| (index + by) % count;
        let all: Vec<usize> = (0..count).collect();
        let (references, held): (Vec<[usize; 2]>, Vec<usize>) = match shape {
            Shape::InOrder => (all.iter().map(|&i| [next(i, 1), next(i, 2)]).collect(), all),
            Shape::Shuffled => {
                let (a, b) = (permutation(&mut random), permutation(&mut random));
                (a.into_iter().zip(b).map(|(a, b)| [a, b]).collect(), all)
            }
            Shape::RandomGraph => (
                all.iter().map(|_| [random.below(count), random.below(count)]).collect(),
                (0..1000).map(|i| i * (count / 1000)).collect(),
            ),
            Shape::Chain => (all.iter().map(|&i| [if i + 1 < count { i + 1 } else { NONE }, NONE]).collect(), vec![0]),
            Shape::ShuffledChain => {
                let order = permutation(&mut random);
                let mut references = vec![[NONE, NONE]; count];
                order.windows(2).for_each(|pair| references[pair[0]][0] = pair[1]);
                (references, vec![order[0]])
            }
            Shape::GarbagePairs => (all.iter().map(|&i| [i ^ 1, NONE]).collect(), Vec::new()),
            Shape::GarbageGroup => (all.iter().map(|&i| [next(i, 1), next(i, count - 1)]).collect(), Vec::new()),
        };
        let mut seen = vec![false; count];
        let mut reached = held.clone();
        held.iter().for_each(|&index| seen[index] = true);
        let mut next = 0;
        while let Some(&index) = reached.get(next) {
            next += 1;
            for reference in references[index] {
                if reference != NONE && !std::mem::replace(&mut seen[reference], true) {
                    reached.push(reference);
                }
            }
        }
        Self { references, held, reached, garbage: matches!(shape, Shape::GarbagePairs | Shape::GarbageGroup) }
    }
}

/// One side: makes the objects of a graph, collects, and gives them back.
trait World {
    fn build(&mut self, graph: &Graph);
    fn collect(&mut self) -> usize;
    /// Takes the objects apart one by one, since destroying one inside the destruction of another has its limits in CPython.
    fn drop_reached(&mut self);
}

#[repr(C)]
struct Node {
    head: [usize; 2],
    references: [*mut PyObject; 2],
}

unsafe extern "C" fn traverse(object: *mut PyObject, visit: ffi::visitproc, arg: *mut c_void) -> c_int {
    // SAFETY: called by the collector with an object of the type below.
    unsafe {
        for reference in (*object.cast::<Node>()).references {
            if !reference.is_null() {
                let result = visit(reference, arg);
                if result != 0 {
                    return result;
                }
            }
        }
    }
    0
}

unsafe extern "C" fn clear(object: *mut PyObject) -> c_int {
    // SAFETY: as above; each is cleared as `Py_CLEAR` does it.
    unsafe {
        for index in 0..2 {
            let slot = &raw mut (*object.cast::<Node>()).references[index];
            let old = slot.replace(ptr::null_mut());
            ffi::Py_XDECREF(old);
        }
    }
    0
}

unsafe extern "C" fn dealloc(object: *mut PyObject) {
    // SAFETY: called with the last reference gone.
    unsafe {
        ffi::PyObject_GC_UnTrack(object.cast());
        clear(object);
        ffi::PyObject_GC_Del(object.cast());
    }
}

struct CPython {
    kind: *mut ffi::PyTypeObject,
    reached: Vec<*mut PyObject>,
    held: Vec<*mut PyObject>,
}

impl CPython {
    fn new() -> Result<Self, String> {
        let mut slots = [
            ffi::PyType_Slot { slot: ffi::Py_tp_traverse, pfunc: traverse as *mut c_void },
            ffi::PyType_Slot { slot: ffi::Py_tp_clear, pfunc: clear as *mut c_void },
            ffi::PyType_Slot { slot: ffi::Py_tp_dealloc, pfunc: dealloc as *mut c_void },
            ffi::PyType_Slot { slot: 0, pfunc: ptr::null_mut() },
        ];
        let mut spec = ffi::PyType_Spec {
            name: c"obmalloc.Node".as_ptr(),
            basicsize: size_of::<Node>() as c_int,
            itemsize: 0,
            flags: (ffi::Py_TPFLAGS_DEFAULT | ffi::Py_TPFLAGS_HAVE_GC) as _,
            slots: slots.as_mut_ptr(),
        };
        // SAFETY: the spec is whole, and CPython copies what it needs. The type is never given back.
        let kind = unsafe { ffi::PyType_FromSpec(&mut spec) };
        if kind.is_null() {
            Err("the type was not made".into())
        } else {
            Ok(Self { kind: kind.cast(), reached: Vec::new(), held: Vec::new() })
        }
    }
}

impl CPython {
    /// A new object without references.
    fn node(&self) -> *mut PyObject {
        // SAFETY: the GIL is held; the object is whole once it is tracked.
        unsafe {
            let object = _PyObject_GC_New(self.kind.cast()).cast::<PyObject>();
            assert!(!object.is_null(), "no memory for an object");
            (*object.cast::<Node>()).references = [ptr::null_mut(); 2];
            ffi::PyObject_GC_Track(object.cast());
            object
        }
    }
}

impl World for CPython {
    fn build(&mut self, graph: &Graph) {
        let objects: Vec<_> = graph.references.iter().map(|_| self.node()).collect();
        for (&object, references) in objects.iter().zip(&graph.references) {
            for (index, &reference) in references.iter().enumerate().filter(|(_, reference)| **reference != NONE) {
                // SAFETY: objects of our type, which `objects` keeps, under the GIL.
                unsafe {
                    ffi::Py_INCREF(objects[reference]);
                    (*object.cast::<Node>()).references[index] = objects[reference];
                }
            }
        }
        self.held = graph.held.iter().map(|&index| objects[index]).collect();
        self.reached = graph.reached.iter().map(|&index| objects[index]).collect();
        // SAFETY: as above.
        self.held.iter().for_each(|&object| unsafe { ffi::Py_INCREF(object) });
        // SAFETY: `objects` owns a reference to each.
        objects.into_iter().for_each(|object| unsafe { ffi::Py_DECREF(object) });
    }

    fn collect(&mut self) -> usize {
        // SAFETY: the GIL is held.
        unsafe { ffi::PyGC_Collect() as usize }
    }

    fn drop_reached(&mut self) {
        // SAFETY: the references from outside keep the objects alive until each has a reference of its own.
        unsafe {
            self.reached.iter().for_each(|&object| ffi::Py_INCREF(object));
            self.held.drain(..).for_each(|object| ffi::Py_DECREF(object));
            for &object in &self.reached {
                clear(object);
            }
            self.reached.drain(..).for_each(|object| ffi::Py_DECREF(object));
        }
    }
}

struct Here {
    heap: ObjectHeap,
    kind: TypeId,
    reached: Vec<usize>,
    held: Vec<usize>,
}

impl Here {
    fn new(profile: &'static Profile) -> Result<Self, String> {
        let heap = ObjectHeap::new(HeapOptions::new(profile), Box::new(NoHooks)).map_err(|error| error.to_string())?;
        heap.disable_gc();
        let fields = ["left", "right"].map(|name| (name.to_owned(), FieldKind::Object)).to_vec();
        let spec = TypeSpec { name: "obmalloc.Node".into(), fields, gc: true, ..TypeSpec::default() };
        let kind = heap.define_type(spec).map_err(|error| error.to_string())?;
        Ok(Self { heap, kind, reached: Vec::new(), held: Vec::new() })
    }
}

impl World for Here {
    fn build(&mut self, graph: &Graph) {
        let heap = &self.heap;
        let objects: Vec<usize> = graph
            .references
            .iter()
            .map(|_| {
                let object = heap.new_object(self.kind).expect("memory");
                heap.track(object).expect("memory");
                object
            })
            .collect();
        for (&object, references) in objects.iter().zip(&graph.references) {
            for (index, &reference) in references.iter().enumerate().filter(|(_, reference)| **reference != NONE) {
                heap.set(object, Field::Member(index), Value::Object(objects[reference])).expect("an object");
            }
        }
        self.held = graph.held.iter().map(|&index| objects[index]).collect();
        self.reached = graph.reached.iter().map(|&index| objects[index]).collect();
        self.held.iter().for_each(|&object| heap.incref(object).expect("an object"));
        objects.iter().for_each(|&object| heap.decref(object).expect("an object"));
    }

    fn collect(&mut self) -> usize {
        self.heap.collect(2).expect("a collection")
    }

    fn drop_reached(&mut self) {
        let heap = &self.heap;
        self.reached.iter().for_each(|&object| heap.incref(object).expect("an object"));
        self.held.drain(..).for_each(|object| heap.decref(object).expect("an object"));
        for &object in &self.reached {
            for index in 0..2 {
                heap.set(object, Field::Member(index), Value::Null).expect("an object");
            }
        }
        self.reached.drain(..).for_each(|object| heap.decref(object).expect("an object"));
    }
}

/// Nanoseconds per object, for each of `rounds` collections.
fn time(world: &mut dyn World, graph: &Graph, found: &mut usize) -> f64 {
    if graph.garbage {
        world.build(graph);
    }
    let began = Instant::now();
    *found = world.collect();
    began.elapsed().as_nanos() as f64 / graph.references.len() as f64
}

/// Runs every shape on both sides in turn: two rounds to warm up, and then `rounds`. Returns for each shape its name and three medians:
/// nanoseconds per object in CPython, nanoseconds per object here, and the ratio.
pub fn run(release: &str, count: usize, rounds: usize) -> Result<Vec<(String, [f64; 3])>, String> {
    let profile = Profile::named(release).ok_or_else(|| format!("unknown release {release:?}"))?;
    let mut there = CPython::new()?;
    let mut here = Here::new(profile)?;
    let mut rows = Vec::new();
    for (name, shape) in SHAPES {
        let graph = Graph::new(shape, count);
        let worlds: [&mut dyn World; 2] = [&mut there, &mut here];
        if !graph.garbage {
            for world in worlds {
                // This collection destroys the objects that are not reached, and moves the others to the list in which they stay.
                world.build(&graph);
                world.collect();
            }
        }
        let mut times = Vec::new();
        for round in 0..rounds + 2 {
            let (mut found_there, mut found_here) = (0, 0);
            let (a, b) = if round % 2 == 0 {
                let a = time(&mut there, &graph, &mut found_there);
                (a, time(&mut here, &graph, &mut found_here))
            } else {
                let b = time(&mut here, &graph, &mut found_here);
                (time(&mut there, &graph, &mut found_there), b)
            };
            let expected = if graph.garbage { count } else { 0 };
            if found_here != expected || found_there < expected {
                return Err(format!("{name}: expected {expected} objects, found {found_there} there and {found_here} here"));
            }
            if round >= 2 {
                times.push([a, b, b / a]);
            }
        }
        there.drop_reached();
        here.drop_reached();
        there.collect();
        here.collect();
        let median = |which: usize| {
            let mut values: Vec<f64> = times.iter().map(|row| row[which]).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        rows.push((name.to_owned(), [median(0), median(1), median(2)]));
    }
    Ok(rows)
}
