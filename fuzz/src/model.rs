//! What the program holds, and what therefore must be there.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use obmalloc::{AllocatorId, Domain, Field, FieldKind, ItemKind, ObjectHeap, TypeId, Value};

use crate::bytes::Bytes;

/// A block of a domain's.
#[derive(Clone, Copy)]
pub struct Block {
    pub domain: Domain,
    pub address: usize,
    pub size: usize,
    pub fill: u8,
}

impl Block {
    pub fn fill(&self) {
        // SAFETY: a live block of so many bytes.
        unsafe { std::ptr::with_exposed_provenance_mut::<u8>(self.address).write_bytes(self.fill, self.size) };
    }

    /// The first `size` bytes are as they were written.
    pub fn check(&self, address: usize, size: usize) {
        // SAFETY: a live block of at least so many bytes, all of them written.
        let bytes = unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance::<u8>(address), size) };
        // Each byte is as the one before it: one comparison of memory, where a loop would be most of what the fuzzer does.
        let [first, rest @ ..] = bytes else { return };
        assert!(*first == self.fill && rest == &bytes[..rest.len()], "the block {address:#x} was written to by others");
    }
}

/// An object to which the program has references.
#[derive(Clone)]
pub struct Held {
    pub count: usize,
    pub kind: TypeId,
    pub references: Vec<Option<usize>>,
    /// It came out of a collection or a destruction that may not be through with it.
    pub snatched: bool,
}

/// What the program and its hooks share.
pub struct World {
    pub bytes: Bytes,
    /// Programs of this kind also drop references that are not theirs, after which nothing but the heap's own structures must hold.
    pub steals: bool,
    /// Hooks do what they are for and no more.
    pub quiet: Cell<bool>,
    /// Some hook did not tell the truth, or failed, in the present operation.
    pub lied: Cell<bool>,
    /// How many questions whether to give up are still answered with no; none is answered with yes while this is nothing.
    pub patience: Cell<Option<usize>>,
    pub immortals: Cell<bool>,
    pub depth: Cell<u32>,
    pub traversing: Cell<bool>,
    pub blocks: RefCell<Vec<Block>>,
    pub freed: RefCell<Vec<(Domain, usize)>>,
    pub held: RefCell<BTreeMap<usize, Held>>,
    /// Where there has ever been an object.
    pub made: RefCell<BTreeSet<usize>>,
    pub types: RefCell<Vec<TypeId>>,
    /// What the domains began with.
    pub own: Cell<Option<[AllocatorId; 3]>>,
    /// The guests.
    pub guests: RefCell<Vec<AllocatorId>>,
    /// Where a guest may have a grant.
    pub grants: RefCell<BTreeSet<usize>>,
    /// A guest has not kept the contents of a block that it resized.
    pub forgets: Cell<bool>,
    pub callbacks: Cell<u64>,
    /// Callbacks that were given to weak references and have not come back.
    pub callbacks_out: RefCell<BTreeSet<u64>>,
}

impl World {
    pub fn new(bytes: Bytes, steals: bool) -> Self {
        Self {
            bytes,
            steals,
            quiet: Cell::new(false),
            lied: Cell::new(false),
            patience: Cell::new(None),
            immortals: Cell::new(false),
            depth: Cell::new(0),
            traversing: Cell::new(false),
            blocks: RefCell::default(),
            freed: RefCell::default(),
            held: RefCell::default(),
            made: RefCell::default(),
            types: RefCell::default(),
            own: Cell::new(None),
            guests: RefCell::default(),
            grants: RefCell::default(),
            forgets: Cell::new(false),
            callbacks: Cell::new(0),
            callbacks_out: RefCell::default(),
        }
    }

    /// One of the objects that the program holds.
    pub fn held(&self) -> Option<usize> {
        let held = self.held.borrow();
        held.keys().nth(self.bytes.below(held.len())).copied()
    }

    /// Something where there has been an object, which may still be there.
    pub fn once_made(&self) -> Option<usize> {
        let made = self.made.borrow();
        made.iter().nth(self.bytes.below(made.len())).copied()
    }

    pub fn block(&self) -> Option<(usize, Block)> {
        let blocks = self.blocks.borrow();
        let index = self.bytes.below(blocks.len());
        blocks.get(index).map(|&block| (index, block))
    }

    /// An address of any kind.
    pub fn any_address(&self) -> usize {
        let offset = [0, 0, 0, 1, 8, 16, 32, 48, usize::MAX, usize::MAX - 15, usize::MAX - 31][self.bytes.below(11)];
        let base = match self.bytes.below(7) {
            6 => {
                let grants = self.grants.borrow();
                grants.iter().nth(self.bytes.below(grants.len())).copied()
            }
            0 => self.held(),
            1 => self.once_made(),
            2 => self.block().map(|(_, block)| block.address),
            3 => {
                let freed = self.freed.borrow();
                freed.get(self.bytes.below(freed.len())).map(|&(_, address)| address)
            }
            4 => self.once_made().map(|address| address & !0x3fff),
            _ => Some([1, 8, usize::MAX, 1 << 47, 0xdead_beef0, &raw const *self as usize][self.bytes.below(6)]),
        };
        base.unwrap_or(16).wrapping_add(offset)
    }

    pub fn holds(&self, object: usize) -> bool {
        self.held.borrow().contains_key(&object)
    }

    /// The program has one more reference to an object.
    pub fn hold(&self, heap: &ObjectHeap, object: usize) {
        let held = self.held.borrow().contains_key(&object);
        if held {
            self.held.borrow_mut().get_mut(&object).expect("looked up just above").count += 1;
            return;
        }
        let kind = heap.type_of(object).expect("an object that a reference was given to");
        let references = references(heap, kind, object);
        self.held.borrow_mut().insert(object, Held { count: 1, kind, references, snatched: self.depth.get() != 0 });
        self.made.borrow_mut().insert(object);
    }

    /// The program is about to give a reference back.
    pub fn let_go(&self, object: usize) {
        let mut held = self.held.borrow_mut();
        if let Some(entry) = held.get_mut(&object) {
            entry.count -= 1;
            if entry.count == 0 {
                held.remove(&object);
            }
        }
    }

    /// Everything that is held is there, as the model has it.
    pub fn check(&self, heap: &ObjectHeap) {
        let patience = self.patience.take();
        heap.verify().unwrap_or_else(|corruption| panic!("{corruption}"));
        self.patience.set(patience);
        for block in self.blocks.borrow().iter() {
            block.check(block.address, block.size);
        }
        if self.steals {
            return;
        }
        let mut inside: BTreeMap<usize, usize> = BTreeMap::new();
        let mut held = self.held.borrow_mut();
        for (&object, entry) in held.iter_mut() {
            assert_eq!(heap.type_of(object), Ok(entry.kind), "the type of {object:#x}, which is held");
            let now = references(heap, entry.kind, object);
            if entry.snatched {
                (entry.references, entry.snatched) = (now, false);
            } else {
                assert_eq!(now, entry.references, "the references of {object:#x}");
            }
            for &reference in entry.references.iter().flatten() {
                assert!(heap.type_of(reference).is_ok(), "{object:#x} refers to {reference:#x}, which is gone");
                *inside.entry(reference).or_default() += 1;
            }
        }
        for (&object, entry) in held.iter() {
            let least = entry.count + inside.get(&object).copied().unwrap_or(0);
            let refcount = heap.refcount(object).expect("looked up above");
            assert!(refcount >= least, "{object:#x} has {refcount} references, but {least} are known");
        }
    }
}

/// How many of an object's fields are references; the items come after them.
pub fn reference_fields(heap: &ObjectHeap, kind: TypeId) -> Vec<usize> {
    let fields = heap.type_info(kind).fields().iter().enumerate();
    fields.filter(|(_, field)| field.kind == FieldKind::Object).map(|(index, _)| index).collect()
}

/// Where an object's references are.
pub fn places(heap: &ObjectHeap, kind: TypeId, object: usize) -> Vec<Field<'static>> {
    let mut places: Vec<Field> = reference_fields(heap, kind).into_iter().map(Field::Member).collect();
    if heap.type_info(kind).items() == Some(ItemKind::Object) {
        places.extend((0..heap.nitems(object).expect("an object")).map(Field::Item));
    }
    places
}

pub fn references(heap: &ObjectHeap, kind: TypeId, object: usize) -> Vec<Option<usize>> {
    places(heap, kind, object)
        .into_iter()
        .map(|place| match heap.get(object, place) {
            Ok(Value::Object(reference)) => Some(reference),
            Ok(Value::Null) => None,
            other => panic!("a reference of {object:#x} is {other:?}"),
        })
        .collect()
}
