//! Random programs of objects against a model that knows nothing of lists and bytes: which object refers to which, and what is held from outside.

mod common;

use std::collections::BTreeMap;

use common::{Random, seed, shrink};
use obmalloc::profile::{self, Geometry, Profile};
use obmalloc::{Field, FieldKind, HeapOptions, ItemKind, NoHooks, ObjectHeap, TypeId, TypeSpec, Value};

/// Four pools an arena: arenas come and go all the time.
const TINY: Geometry = Geometry { arena_size: 64 << 10, pool_size: 16 << 10, alignment: 16, small_request_threshold: 512 };
/// Small pools and 8-byte alignment.
const NARROW: Geometry = Geometry { arena_size: 64 << 10, pool_size: 4 << 10, alignment: 8, small_request_threshold: 256 };

const SLOTS: usize = 24;

#[derive(Clone, Copy, Debug)]
enum Op {
    /// A new object of a type, with so many items, in place of what the slot holds.
    Alloc {
        slot: usize,
        kind: usize,
        nitems: usize,
    },
    /// The slot lets go of its object.
    Drop {
        slot: usize,
    },
    /// A reference of one slot's object becomes another slot's object, or NULL.
    Link {
        from: usize,
        place: usize,
        to: Option<usize>,
    },
    /// Many references to one object.
    Share {
        slot: usize,
        times: usize,
    },
    Track {
        slot: usize,
    },
    Untrack {
        slot: usize,
    },
    Weakref {
        slot: usize,
    },
    Collect {
        generation: usize,
    },
    Freeze,
    Unfreeze,
}

fn program(seed: u64, count: usize) -> Vec<Op> {
    let mut random = Random::new(seed);
    (0..count)
        .map(|_| {
            let slot = random.below(SLOTS);
            match random.below(40) {
                0..=8 => Op::Alloc { slot, kind: random.below(4), nitems: [0, 1, 5, 90][random.below(4)] },
                9..=14 => Op::Drop { slot },
                15..=29 => {
                    let to = (random.below(5) != 0).then(|| random.below(SLOTS));
                    Op::Link { from: slot, place: random.below(7), to }
                }
                30 => Op::Share { slot, times: [3, 90, 130, 300][random.below(4)] },
                31 => Op::Track { slot },
                32 => Op::Untrack { slot },
                33..=34 => Op::Weakref { slot },
                35..=37 => Op::Collect { generation: random.below(3) },
                38 => Op::Freeze,
                _ => Op::Unfreeze,
            }
        })
        .collect()
}

/// An object of the model.
#[derive(Default)]
struct Modelled {
    references: Vec<Option<usize>>,
    /// References from outside.
    held: usize,
    gc: bool,
    tracked: bool,
}

/// What there must be, by address.
#[derive(Default)]
struct Model(BTreeMap<usize, Modelled>);

impl Model {
    fn refcount(&self, object: usize) -> usize {
        let inside = self.0.values().flat_map(|other| &other.references).filter(|&&reference| reference == Some(object)).count();
        inside + self.0[&object].held
    }

    /// Removes the objects that nothing refers to, and those that nothing refers to after that.
    fn remove_unreferenced(&mut self) {
        while let Some(&dead) = self.0.keys().find(|&&object| self.refcount(object) == 0) {
            self.0.remove(&dead);
        }
    }

    /// Removes the objects that are reached neither from those held from outside nor from untracked ones.
    fn collect(&mut self) {
        let is_root = |object: &Modelled| object.held != 0 || !object.tracked;
        let mut reached: Vec<usize> = self.0.iter().filter(|(_, object)| is_root(object)).map(|(&address, _)| address).collect();
        let mut next = 0;
        while let Some(&object) = reached.get(next) {
            next += 1;
            for &reference in self.0[&object].references.iter().flatten() {
                if !reached.contains(&reference) {
                    reached.push(reference);
                }
            }
        }
        self.0.retain(|address, _| reached.contains(address));
    }
}

fn types(heap: &ObjectHeap) -> Vec<TypeId> {
    let object = |name: &str| (name.to_owned(), FieldKind::Object);
    let number = |name: &str| (name.to_owned(), FieldKind::U8);
    [
        TypeSpec { fields: vec![object("a"), object("b")], gc: true, ..TypeSpec::default() },
        TypeSpec {
            fields: vec![object("a"), number("n"), object("b"), object("c")],
            gc: true,
            weakrefs: true,
            managed_dict: true,
            ..TypeSpec::default()
        },
        TypeSpec { fields: vec![number("n")], items: Some(ItemKind::Object), gc: true, weakrefs: true, ..TypeSpec::default() },
        TypeSpec { fields: vec![object("a")], ..TypeSpec::default() },
    ]
    .into_iter()
    .map(|spec| heap.define_type(spec).expect("a type"))
    .collect()
}

fn run(profile: &'static Profile, geometry: Geometry, ops: &[Op]) -> Result<(), String> {
    let heap = ObjectHeap::new(HeapOptions { geometry: Some(geometry), ..HeapOptions::new(profile) }, Box::new(NoHooks))
        .expect("a heap");
    heap.disable_gc();
    let kinds = types(&heap);
    let fields: Vec<Vec<String>> = kinds
        .iter()
        .map(|&kind| {
            let fields = heap.type_info(kind).fields().iter();
            fields.filter(|field| field.kind == FieldKind::Object).map(|field| field.name.clone()).collect()
        })
        .collect();
    let mut slots: [Option<(usize, usize)>; SLOTS] = [None; SLOTS];
    let mut shared: Vec<usize> = Vec::new();
    let mut weakrefs: Vec<(usize, usize)> = Vec::new();
    let mut model = Model::default();
    let mut frozen = false;
    for (index, &op) in ops.iter().enumerate() {
        let fail = |what: String| format!("operation {index} {op:?}: {what}");
        match op {
            Op::Alloc { slot, kind, nitems } => {
                if let Some((_, object)) = slots[slot].take() {
                    model.0.get_mut(&object).expect("held").held -= 1;
                    heap.decref(object).map_err(|fault| fail(fault.to_string()))?;
                    model.remove_unreferenced();
                }
                let object = heap.alloc(kinds[kind], nitems).map_err(|error| fail(error.to_string()))?;
                let gc = heap.type_info(kinds[kind]).is_gc();
                let count = fields[kind].len() + if kind == 2 { nitems } else { 0 };
                model.0.insert(object, Modelled { references: vec![None; count], held: 1, gc, tracked: gc });
                slots[slot] = Some((kind, object));
            }
            Op::Drop { slot } => {
                if let Some((_, object)) = slots[slot].take() {
                    model.0.get_mut(&object).expect("held").held -= 1;
                    heap.decref(object).map_err(|fault| fail(fault.to_string()))?;
                }
            }
            Op::Link { from, place, to } => {
                let Some((kind, object)) = slots[from] else { continue };
                let to = to.and_then(|slot| slots[slot]).map(|(_, object)| object);
                let references = &mut model.0.get_mut(&object).expect("held").references;
                if place >= references.len() {
                    continue;
                }
                references[place] = to;
                let field = match fields[kind].get(place) {
                    Some(name) => Field::Name(name),
                    None => Field::Item(place - fields[kind].len()),
                };
                heap.set(object, field, to.map_or(Value::Null, Value::Object)).map_err(|error| fail(error.to_string()))?;
            }
            Op::Share { slot, times } => {
                let Some((_, object)) = slots[slot] else { continue };
                for _ in 0..times {
                    heap.incref(object).map_err(|fault| fail(fault.to_string()))?;
                    shared.push(object);
                }
                model.0.get_mut(&object).expect("held").held += times;
                if shared.len() > 600 {
                    for object in shared.drain(..) {
                        model.0.get_mut(&object).expect("held").held -= 1;
                        heap.decref(object).map_err(|fault| fail(fault.to_string()))?;
                    }
                }
            }
            Op::Track { slot } | Op::Untrack { slot } => {
                let Some((_, object)) = slots[slot] else { continue };
                let modelled = model.0.get_mut(&object).expect("held");
                let track = matches!(op, Op::Track { .. });
                if modelled.gc && modelled.tracked != track {
                    let done = if track { heap.track(object) } else { heap.untrack(object).map_err(Into::into) };
                    done.map_err(|error| fail(error.to_string()))?;
                    modelled.tracked = track;
                }
            }
            Op::Weakref { slot } => {
                let Some((1 | 2, object)) = slots[slot] else { continue };
                let reference = heap.new_weakref(object, None).map_err(|error| fail(error.to_string()))?;
                weakrefs.push((reference, object));
            }
            Op::Collect { generation } => {
                let before = model.0.len();
                let found = heap.collect(generation).map_err(|error| fail(error.to_string()))?;
                if generation == 2 && !frozen {
                    model.collect();
                    if before - model.0.len() < found {
                        return Err(fail(format!("found {found} objects, of {} that are unreachable", before - model.0.len())));
                    }
                } else {
                    // Which part of the garbage it finds, the model learns from the heap.
                    let gone: Vec<usize> = model.0.keys().copied().filter(|&object| heap.type_of(object).is_err()).collect();
                    for object in gone {
                        let modelled = model.0.remove(&object).expect("listed just above");
                        if modelled.held != 0 || !modelled.tracked {
                            return Err(fail(format!("{object:#x} is gone, but is held")));
                        }
                    }
                    let references = model.0.values().flat_map(|object| object.references.iter().flatten());
                    if let Some(missed) = references.into_iter().find(|reference| !model.0.contains_key(reference)) {
                        return Err(fail(format!("{missed:#x} is gone, but another object refers to it")));
                    }
                }
            }
            Op::Freeze => {
                heap.freeze().map_err(|error| fail(error.to_string()))?;
                frozen = true;
            }
            Op::Unfreeze => {
                heap.unfreeze().map_err(|error| fail(error.to_string()))?;
                frozen = false;
            }
        }
        model.remove_unreferenced();
        // Miri looks at a heap as long as it runs a thousand operations.
        if cfg!(miri) && index % 8 != 7 {
            continue;
        }
        heap.verify().map_err(|corruption| fail(corruption.to_string()))?;
        for (&object, modelled) in &model.0 {
            let refcount = heap.refcount(object).map_err(|fault| fail(fault.to_string()))?;
            if refcount != model.refcount(object) {
                return Err(fail(format!("{object:#x} has {refcount} references, expected {}", model.refcount(object))));
            }
            if heap.is_tracked(object) != Ok(modelled.tracked) {
                return Err(fail(format!("{object:#x}: tracked is not {}", modelled.tracked)));
            }
        }
        let tracked = heap.objects(None).map_err(|error| fail(error.to_string()))?;
        let weak = |object: &usize| weakrefs.iter().any(|(reference, _)| reference == object);
        if !frozen && tracked.iter().filter(|object| !weak(object)).any(|object| !model.0.contains_key(object)) {
            return Err(fail("something is tracked that is not there".into()));
        }
        for &(reference, object) in &weakrefs {
            let there = heap.deref_weakref(reference).map_err(|fault| fail(fault.to_string()))?;
            // The address may be another object's by now, which this one never refers to.
            if there.is_some() && (there != Some(object) || !model.0.contains_key(&object)) {
                return Err(fail(format!("a weak reference leads to {there:?}, which is gone")));
            }
        }
    }
    let fail = |error: String| format!("at the end: {error}");
    for (reference, _) in weakrefs {
        heap.decref(reference).map_err(|fault| fail(fault.to_string()))?;
    }
    for object in shared.into_iter().chain(slots.into_iter().flatten().map(|(_, object)| object)) {
        heap.decref(object).map_err(|fault| fail(fault.to_string()))?;
    }
    // An untracked object may be part of a cycle, which no collection can see. So only the tracked objects must be gone.
    heap.unfreeze().map_err(|error| fail(error.to_string()))?;
    heap.collect(2).map_err(|error| fail(error.to_string()))?;
    heap.collect(2).map_err(|error| fail(error.to_string()))?;
    heap.verify().map_err(|corruption| fail(corruption.to_string()))
}

#[test]
fn what_is_reached_stays_and_what_is_not_goes() {
    let seed = seed();
    let (step, rounds) = if cfg!(miri) { (4, 2) } else { (1, 36) };
    for (round, profile) in profile::ALL.into_iter().cycle().step_by(step).take(rounds).enumerate() {
        for geometry in [TINY, NARROW] {
            let seed = seed + round as u64;
            let ops = program(seed, if cfg!(miri) { 40 } else { 400 });
            if let Err(error) = run(profile, geometry, &ops) {
                let shortest = shrink(ops, |ops| run(profile, geometry, ops).is_err());
                let error = run(profile, geometry, &shortest).err().unwrap_or(error);
                panic!("seed {seed}, {}: {error}\nshortest: {shortest:#?}", profile.release());
            }
        }
    }
}
