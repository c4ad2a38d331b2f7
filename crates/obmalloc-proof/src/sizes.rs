//! What `PyType_GenericAlloc` requests for an object: of classes in Python, and of types here that are laid out in the same way.

#![forbid(unsafe_code)]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

use obmalloc::profile::{self, Profile};
use obmalloc::{
    AllocatorId, Answer, Domain, FieldKind, Guest, HeapOptions, ItemKind, NoHooks, ObjectHeap, OwnAllocators, OwnError, Threw,
    TypeSpec,
};

/// Bytes requested for an object, and how many of them lie before it.
pub type Size = [usize; 2];

/// A class, and how many items its object is given (`nitems`).
pub struct Class {
    /// What it is called in results.
    pub name: &'static str,
    /// The statement in Python that makes it; it is called `C`.
    pub python: &'static str,
    /// `nitems` of `PyType_GenericAlloc` in CPython.
    pub nitems: usize,
}

/// The classes. The first object of each is looked at.
pub const CLASSES: [Class; 11] = [
    Class { name: "plain class", python: "class C: pass", nitems: 0 },
    Class { name: "one slot", python: "class C: __slots__ = ('x',)", nitems: 0 },
    Class { name: "weakref slot", python: "class C: __slots__ = ('__weakref__',)", nitems: 0 },
    Class { name: "empty slots", python: "class C: __slots__ = ()", nitems: 0 },
    Class { name: "tuple subclass, 3 items", python: "class C(tuple): pass", nitems: 3 },
    Class { name: "tuple subclass, empty slots, 3 items", python: "class C(tuple): __slots__ = ()", nitems: 3 },
    Class { name: "list subclass", python: "class C(list): pass", nitems: 0 },
    Class { name: "dict subclass", python: "class C(dict): pass", nitems: 0 },
    Class { name: "bytes subclass, 5 bytes", python: "class C(bytes): pass", nitems: 5 },
    Class { name: "int subclass, 2 digits", python: "class C(int): pass", nitems: 2 },
    Class { name: "Exception subclass", python: "class C(Exception): pass", nitems: 0 },
];

/// Whether a release is `first` or a later one.
fn is_since(profile: &Profile, first: &str) -> bool {
    let place = |release: &str| profile::ALL.iter().position(|profile| profile.release() == release);
    place(profile.release()) >= place(first)
}

/// A type here that is laid out as `class` is, and its `nitems`. It has a field for each member of the built-in base's C struct.
fn twin(class: &Class, profile: &Profile) -> (TypeSpec, usize) {
    let fields = |objects: usize, words: usize| {
        let kinds = std::iter::repeat_n(FieldKind::Object, objects).chain(std::iter::repeat_n(FieldKind::I64, words));
        kinds.enumerate().map(|(number, kind)| (format!("field{number}"), kind)).collect::<Vec<_>>()
    };
    let bare = TypeSpec { gc: true, ..TypeSpec::default() };
    let full = TypeSpec { managed_dict: true, weakrefs: true, ..bare.clone() };
    // From 3.14 a tuple keeps its hash.
    let hash = usize::from(is_since(profile, "3.14.0"));
    let sequence = TypeSpec { items: Some(ItemKind::Object), fields: fields(0, hash), ..bare.clone() };
    let bytes = TypeSpec { items: Some(ItemKind::Byte), managed_dict: true, ..bare.clone() };
    match class.name {
        "plain class" => (full, 0),
        "one slot" => (TypeSpec { fields: fields(1, 0), ..bare }, 0),
        "weakref slot" => (TypeSpec { weakrefs: true, ..bare }, 0),
        "empty slots" => (bare, 0),
        "tuple subclass, 3 items" => (TypeSpec { managed_dict: true, ..sequence }, 3),
        "tuple subclass, empty slots, 3 items" => (sequence, 3),
        // ob_size, ob_item, allocated.
        "list subclass" => (TypeSpec { fields: fields(0, 3), ..full }, 0),
        // ma_used, the version or what took its place, ma_keys, ma_values.
        "dict subclass" => (TypeSpec { fields: fields(0, 4), ..full }, 0),
        // The hash; and the byte at the end, which CPython counts as part of the head.
        "bytes subclass, 5 bytes" => (TypeSpec { fields: fields(0, 1), ..bytes }, 5 + 1),
        // Digits have 4 bytes, and CPython requests one more than there are.
        "int subclass, 2 digits" => (bytes, (2 + 1) * 4 - 1),
        // Its own dict, args, notes from 3.11 on, traceback, context, cause; and whether the context is suppressed.
        "Exception subclass" => {
            let mut fields = fields(5 + usize::from(is_since(profile, "3.11")), 0);
            fields.push(("suppress_context".into(), FieldKind::U8));
            (TypeSpec { fields, weakrefs: true, ..bare }, 0)
        }
        name => unreachable!("{name} has no twin"),
    }
}

/// Remembers the last request.
struct Requests {
    below: AllocatorId,
    /// Where the block is, and what was requested.
    last: Cell<(usize, usize)>,
}

impl Requests {
    fn note(&self, size: usize, block: Result<Option<usize>, OwnError>) -> Answer {
        let block = block.map_err(|_| Threw(0))?;
        self.last.set((block.unwrap_or(0), size));
        Ok(block)
    }
}

impl Guest for Requests {
    fn malloc(&self, own: &OwnAllocators<'_>, size: usize) -> Answer {
        self.note(size, own.malloc(self.below, size))
    }
    fn calloc(&self, own: &OwnAllocators<'_>, count: usize, size: usize) -> Answer {
        self.note(count * size, own.calloc(self.below, count, size))
    }
    fn realloc(&self, own: &OwnAllocators<'_>, address: Option<usize>, size: usize) -> Answer {
        self.note(size, own.realloc(self.below, address, size))
    }
    fn free(&self, own: &OwnAllocators<'_>, address: Option<usize>) -> Result<(), Threw> {
        own.free(self.below, address).map_err(|_| Threw(0))
    }
}

/// What this engine requests, by the class's name.
///
/// # Panics
/// If there is no memory.
pub fn requested_here(profile: &Profile) -> BTreeMap<String, Size> {
    let of = |class: &Class| {
        let heap = ObjectHeap::new(HeapOptions::new(profile), Box::new(NoHooks)).expect("memory for a heap");
        let requests = Rc::new(Requests { below: heap.allocator(Domain::Obj).expect("memory"), last: Cell::default() });
        let guest = heap.add_guest(requests.clone()).expect("memory for a guest");
        heap.set_allocator(Domain::Obj, guest).expect("memory for a guest");
        let (spec, nitems) = twin(class, profile);
        let kind = heap.define_type(spec).expect("a type");
        let object = heap.alloc(kind, nitems).expect("memory for an object");
        let (address, size) = requests.last.get();
        (class.name.to_owned(), [size, object - address])
    };
    CLASSES.iter().map(of).collect()
}
