//! Running a program over a [`World`], and its log. Leans on `program`.

#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use crate::program::{KINDS, Kind, Op, Place, Program, ROOTS, SCRIPTS, Slot, WEAK};

/// An implementation of objects and their collector. Objects are addresses; 0 is null. What an address belongs to is alive.
///
/// Its types call the session back: [`Session::finalize`] and the others.
pub trait World {
    /// `PyType_GenericAlloc`.
    fn alloc(&self, kind: usize, nitems: usize) -> usize;
    /// `PyObject_GC_New` and the like: fields null, not tracked.
    fn new_object(&self, kind: usize, nitems: usize) -> usize;
    /// `Py_INCREF`.
    fn incref(&self, object: usize);
    /// `Py_DECREF`.
    fn decref(&self, object: usize);
    /// `Py_REFCNT`.
    fn refcount(&self, object: usize) -> usize;
    /// What a field or item holds, borrowed. Items come after the fields.
    fn get(&self, object: usize, slot: usize) -> usize;
    /// Sets a field or item: takes a new reference to `value`, then drops the old one.
    fn set(&self, object: usize, slot: usize, value: usize);
    /// `PyObject_GC_Track`.
    fn track(&self, object: usize);
    /// `PyObject_GC_UnTrack`.
    fn untrack(&self, object: usize);
    /// `PyObject_GC_IsTracked`.
    fn is_tracked(&self, object: usize) -> bool;
    /// `PyObject_GC_IsFinalized`.
    fn is_finalized(&self, object: usize) -> bool;
    /// `PyWeakref_NewRef`, with a callback that calls [`Session::weakref_callback`] with this number.
    fn new_weakref(&self, object: usize, callback: Option<u8>) -> usize;
    /// The referent, borrowed, or null.
    fn deref(&self, reference: usize) -> usize;
    /// `gc.collect(generation)`.
    fn collect(&self, generation: usize) -> usize;
    /// `gc.get_count()`.
    fn count(&self) -> [i32; 3];
    /// `gc.get_stats()`: collections, collected, uncollectable of each generation.
    fn stats(&self) -> [[usize; 3]; 3];
    /// `gc.get_objects(generation)`, borrowed.
    fn objects(&self, generation: Option<usize>) -> Vec<usize>;
    /// `gc.get_referrers(object)`, borrowed.
    fn referrers(&self, object: usize) -> Vec<usize>;
    /// `gc.get_referents(object)`, borrowed.
    fn referents(&self, object: usize) -> Vec<usize>;
    /// `gc.freeze()`.
    fn freeze(&self);
    /// `gc.unfreeze()`.
    fn unfreeze(&self);
    /// `gc.get_freeze_count()`.
    fn freeze_count(&self) -> usize;
    /// `gc.enable()`.
    fn enable(&self);
    /// `gc.disable()`.
    fn disable(&self);
    /// `gc.set_threshold(…)`.
    fn set_threshold(&self, thresholds: [i32; 3]);
    /// `gc.set_debug(flags)`.
    fn set_debug(&self, flags: u32);
    /// Empties `gc.garbage`: its entries with the references that it had to them.
    fn take_garbage(&self) -> Vec<usize>;
    /// Makes an object immortal; false where there are no such objects.
    fn set_immortal(&self, object: usize) -> bool;
    /// From 3.12: runs the automatic collection that an allocation scheduled.
    fn run_scheduled(&self);
}

/// Most steps that scripts take in one program, so that finalizers that allocate objects with finalizers come to an end.
const FUEL: u32 = 250;
/// Most weak references with callbacks to one object. With more, the tuple that CPython makes of them when the object dies is too long for a
/// free list.
const CALLBACKS: u8 = 9;
/// Deepest nesting of scripts.
const DEPTH: u32 = 6;

#[derive(Clone, Copy)]
enum Label {
    Object(u32),
    Weakref(u32),
}

struct Object {
    address: usize,
    kind: usize,
    nitems: usize,
    script: u8,
    alive: bool,
    immortal: bool,
    /// Weak references with callbacks that were made to it.
    callbacks: u8,
}

struct State {
    program: Rc<Program>,
    roots: [usize; ROOTS],
    weak: [usize; WEAK],
    objects: Vec<Object>,
    weakrefs: u32,
    labels: HashMap<usize, Label>,
    stats: [[usize; 3]; 3],
    fuel: u32,
    log: String,
}

/// One run of a program.
pub struct Session {
    state: RefCell<State>,
    /// How many hooks are running, one inside the other.
    depth: Cell<u32>,
    /// Whether everything is being torn down: scripts do nothing then.
    closing: Cell<bool>,
}

macro_rules! log {
    ($session:expr, $($format:tt)*) => {{
        // The arguments may read the state.
        let line = format!($($format)*);
        $session.write(&line);
    }};
}

impl Session {
    /// A run that has not begun.
    pub fn new(program: &Program) -> Self {
        let state = State {
            program: Rc::new(program.clone()),
            roots: [0; ROOTS],
            weak: [0; WEAK],
            objects: Vec::new(),
            weakrefs: 0,
            labels: HashMap::new(),
            stats: [[0; 3]; 3],
            fuel: FUEL,
            log: String::new(),
        };
        Self { state: RefCell::new(state), depth: Cell::new(0), closing: Cell::new(false) }
    }

    /// Runs the program on a world without objects, with automatic collection off and all counts 0, and destroys what it leaves behind.
    ///
    /// # Panics
    /// If objects are left that nothing can destroy.
    pub fn run(&self, world: &dyn World) {
        let program = self.state.borrow().program.clone();
        let stats = world.stats();
        self.state.borrow_mut().stats = stats;
        for &op in &program.ops {
            self.step(world, op, 0);
        }
        self.close(world);
    }

    /// Returns the log, a line for each event.
    pub fn into_log(self) -> String {
        self.state.into_inner().log
    }

    fn close(&self, world: &dyn World) {
        log!(self, "close");
        self.closing.set(true);
        world.disable();
        world.set_debug(0);
        for root in 0..ROOTS {
            self.store(world, root, 0);
        }
        for weak in 0..WEAK {
            self.store_weak(world, weak, 0);
        }
        self.step(world, Op::Garbage, 0);
        world.unfreeze();
        self.step(world, Op::Collect(2), 0);
        self.step(world, Op::Garbage, 0);
        // No collector can collect legacy finalizers in cycles, objects that refuse to be cleared, and references that are not visited. They are
        // cleared one by one.
        let mut id = 0;
        loop {
            let found = self.state.borrow().objects.get(id).map(|object| (object.alive && object.loggable(), object.address));
            let Some((alive, address)) = found else { break };
            if alive {
                world.incref(address);
                for slot in 0..self.slots(address) {
                    world.set(address, slot, 0);
                }
                if self.object(address, |object| object.immortal && KINDS[object.kind].gc) {
                    world.untrack(address);
                }
                self.release(world, address);
            }
            id += 1;
        }
        self.step(world, Op::Collect(2), 0);
        self.step(world, Op::Garbage, 0);
        self.step(world, Op::Stats, 0);
        self.step(world, Op::Count, 0);
        // All lists are empty now. The log has the number of frozen objects, and then the objects themselves.
        world.freeze();
        self.step(world, Op::Objects(3), 0);
        world.unfreeze();
        self.step(world, Op::Objects(3), 0);
        let left: Vec<_> = {
            let state = self.state.borrow();
            let alive = |(id, object): (usize, &Object)| (object.alive && object.loggable() && !object.immortal).then_some(id);
            state.objects.iter().enumerate().filter_map(alive).collect()
        };
        log!(self, "left {left:?}");
    }

    // The functions that types call back.

    /// `tp_finalize`.
    pub fn finalize(&self, world: &dyn World, object: usize) {
        let script = self.hook("finalize", object);
        self.run_script(world, script, object);
    }

    /// `tp_del`.
    pub fn del(&self, world: &dyn World, object: usize) {
        let script = self.hook("del", object);
        self.run_script(world, script.wrapping_add(1), object);
    }

    /// `tp_dealloc`, after finalizers and weak references and before references are dropped.
    pub fn dealloc(&self, object: usize) {
        self.hook("dealloc", object);
        let state = &mut *self.state.borrow_mut();
        if let Some(Label::Object(id)) = state.labels.remove(&object) {
            state.objects[id as usize].alive = false;
        }
    }

    /// `tp_clear` of kinds whose clear the program makes.
    pub fn clear(&self, world: &dyn World, object: usize) {
        self.hook("clear", object);
        let slots = self.slots(object);
        let cleared = match self.kind(object).clear {
            Slot::Native | Slot::All => slots,
            Slot::First => slots.min(1),
            Slot::Nothing => 0,
        };
        self.inside(|| (0..cleared).for_each(|slot| world.set(object, slot, 0)));
    }

    /// A weak reference's callback.
    pub fn weakref_callback(&self, world: &dyn World, script: u8, reference: usize) {
        let name = self.name(reference);
        log!(self, "callback of {name}");
        self.run_script(world, script, 0);
    }

    /// An entry of `gc.callbacks`.
    pub fn gc_callback(&self, world: &dyn World, phase: &str, generation: usize, collected: usize, uncollectable: usize) {
        let Some(script) = self.state.borrow().program.callbacks.filter(|_| !self.closing.get()) else { return };
        log!(self, "{phase} generation {generation}, collected {collected}, uncollectable {uncollectable}");
        self.run_script(world, script, 0);
    }

    /// How many slots `tp_traverse` of an object visits, for kinds whose traverse the program makes.
    pub fn visited(&self, object: usize) -> usize {
        let slots = self.slots(object);
        match self.kind(object).traverse {
            Slot::Native | Slot::All => slots,
            Slot::First => slots.min(1),
            Slot::Nothing => 0,
        }
    }

    fn hook(&self, event: &str, object: usize) -> u8 {
        let name = self.name(object);
        log!(self, "{event} {name}");
        self.object(object, |object| object.script)
    }

    /// What the collector writes to standard error (`gc.set_debug`): its lines, with names for addresses and without times.
    pub fn text(&self, text: &str) {
        for line in text.lines() {
            let line = line.rsplit_once(", ").filter(|(_, time)| time.ends_with("elapsed")).map_or(line, |(line, _)| line);
            let named = line.rsplit_once(" 0x").and_then(|(line, rest)| {
                let address = usize::from_str_radix(rest.strip_suffix('>')?, 16).ok()?;
                Some(format!("{line} {}>", self.name(address)))
            });
            self.write(named.as_deref().unwrap_or(line));
        }
    }

    fn write(&self, line: &str) {
        let state = &mut *self.state.borrow_mut();
        state.log.push_str(line);
        state.log.push('\n');
    }

    fn inside(&self, body: impl FnOnce()) {
        self.depth.set(self.depth.get() + 1);
        body();
        self.depth.set(self.depth.get() - 1);
    }

    fn run_script(&self, world: &dyn World, script: u8, me: usize) {
        if self.closing.get() || self.depth.get() >= DEPTH {
            return;
        }
        let program = self.state.borrow().program.clone();
        let Some(script) = program.scripts.get(usize::from(script) % SCRIPTS) else { return };
        self.inside(|| {
            for &op in script {
                if self.state.borrow().fuel == 0 {
                    return;
                }
                self.state.borrow_mut().fuel -= 1;
                self.step(world, op, me);
            }
        });
    }

    // The names and slots of objects.

    fn label(&self, address: usize) -> Option<Label> {
        self.state.borrow().labels.get(&address).copied()
    }

    fn name(&self, address: usize) -> String {
        match self.label(address) {
            Some(Label::Object(id)) => id.to_string(),
            Some(Label::Weakref(number)) => format!("w{number}"),
            None => "?".to_owned(),
        }
    }

    /// The names of the program's own objects, in the order given.
    fn names(&self, addresses: &[usize]) -> String {
        let known = addresses.iter().filter(|address| self.label(**address).is_some());
        known.map(|address| self.name(*address)).collect::<Vec<_>>().join(" ")
    }

    /// Calls `body` with what is known of an object.
    fn object<R>(&self, address: usize, body: impl FnOnce(&mut Object) -> R) -> R {
        let Some(Label::Object(id)) = self.label(address) else { panic!("{address:#x} is no object of the program") };
        body(&mut self.state.borrow_mut().objects[id as usize])
    }

    fn kind(&self, object: usize) -> &'static Kind {
        self.object(object, |object| &KINDS[object.kind])
    }

    /// Number of fields and items; a weak reference has none.
    fn slots(&self, address: usize) -> usize {
        match self.label(address) {
            Some(Label::Object(_)) => self.object(address, |object| KINDS[object.kind].fields + object.nitems),
            _ => 0,
        }
    }

    fn find(&self, world: &dyn World, place: Place, me: usize) -> Option<usize> {
        let root = |root: u8| self.state.borrow().roots[usize::from(root) % ROOTS];
        let of = |holder: usize, slot: u8| match self.slots(holder) {
            0 => 0,
            slots => world.get(holder, usize::from(slot) % slots),
        };
        let found = match place {
            Place::Root(number) => root(number),
            Place::Of(number, slot) => of(root(number), slot),
            Place::Me => me,
            Place::OfMe(slot) => of(me, slot),
        };
        (found != 0).then_some(found)
    }

    /// As [`Self::find`], for objects of the program only. Adds a reference, because the next step may drop all others.
    fn hold(&self, world: &dyn World, place: Place, me: usize) -> Option<usize> {
        let found = self.find(world, place, me)?;
        matches!(self.label(found), Some(Label::Object(_))).then(|| world.incref(found))?;
        Some(found)
    }

    // Steps.

    /// From 3.12 an automatic collection runs between two steps, and never in a hook.
    fn run_scheduled(&self, world: &dyn World) {
        if self.depth.get() == 0 {
            world.run_scheduled();
        }
    }

    fn release(&self, world: &dyn World, object: usize) {
        world.decref(object);
        self.run_scheduled(world);
    }

    /// Puts an owned reference in a root.
    fn store(&self, world: &dyn World, root: usize, owned: usize) {
        let old = std::mem::replace(&mut self.state.borrow_mut().roots[root], owned);
        if old != 0 {
            self.release(world, old);
        }
    }

    fn store_weak(&self, world: &dyn World, weak: usize, owned: usize) {
        let old = std::mem::replace(&mut self.state.borrow_mut().weak[weak], owned);
        if old != 0 {
            self.release(world, old);
        }
    }

    fn set(&self, world: &dyn World, holder: usize, slot: u8, value: usize) {
        let slots = self.slots(holder);
        if slots > 0 {
            world.set(holder, usize::from(slot) % slots, value);
            self.run_scheduled(world);
        }
    }

    fn new_object(&self, world: &dyn World, kind: u8, nitems: u8, tracked: bool, script: u8) -> usize {
        let index = usize::from(kind) % KINDS.len();
        let kind = &KINDS[index];
        let nitems = if kind.items { usize::from(nitems) } else { 0 };
        let tracked = tracked || !kind.dealloc;
        let address = if tracked { world.alloc(index, nitems) } else { world.new_object(index, nitems) };
        let id = {
            let state = &mut *self.state.borrow_mut();
            let id = state.objects.len();
            state.objects.push(Object { address, kind: index, nitems, script, alive: true, immortal: false, callbacks: 0 });
            state.labels.insert(address, Label::Object(id as u32));
            id
        };
        log!(self, "new {id} {}", kind.name);
        address
    }

    fn new_weakref(&self, world: &dyn World, weak: usize, object: usize, callback: Option<u8>) {
        if !self.kind(object).weakrefs || callback.is_some() && !self.count_callback(object) {
            return;
        }
        let reference = world.new_weakref(object, callback);
        // Without a callback the object's first weak reference serves all.
        if world.refcount(reference) == 1 {
            let state = &mut *self.state.borrow_mut();
            state.labels.insert(reference, Label::Weakref(state.weakrefs));
            state.weakrefs += 1;
        }
        let (name, referent) = (self.name(reference), self.name(object));
        log!(self, "{name} to {referent}");
        self.run_scheduled(world);
        self.store_weak(world, weak, reference);
    }

    fn count_callback(&self, object: usize) -> bool {
        self.object(object, |object| {
            object.callbacks += 1;
            object.callbacks <= CALLBACKS
        })
    }

    fn step(&self, world: &dyn World, op: Op, me: usize) {
        let root = |root: u8| usize::from(root) % ROOTS;
        let weak_index = |weak: u8| usize::from(weak) % WEAK;
        let weak_at = |weak: u8| self.state.borrow().weak[weak_index(weak)];
        match op {
            Op::New { root: at, kind, nitems, tracked, script } => {
                let object = self.new_object(world, kind, nitems, tracked, script);
                self.run_scheduled(world);
                self.store(world, root(at), object);
            }
            Op::Store(at, place) => {
                if let Some(value) = self.find(world, place, me) {
                    world.incref(value);
                    self.store(world, root(at), value);
                }
            }
            Op::Drop(at) => self.store(world, root(at), 0),
            Op::Link(holder, slot, value) => self.with(world, holder, me, |holder| {
                if let Some(value) = self.find(world, value, me) {
                    self.set(world, holder, slot, value);
                }
            }),
            Op::Unlink(holder, slot) => self.with(world, holder, me, |holder| self.set(world, holder, slot, 0)),
            Op::LinkWeak(holder, slot, weak) => self.with(world, holder, me, |holder| {
                let reference = weak_at(weak);
                if reference != 0 {
                    self.set(world, holder, slot, reference);
                }
            }),
            Op::Weak(weak, place, callback) => {
                self.with(world, place, me, |object| self.new_weakref(world, weak_index(weak), object, callback));
            }
            Op::Deref(at, weak) => {
                let reference = weak_at(weak);
                if reference != 0 {
                    let referent = world.deref(reference);
                    let (name, found) = (self.name(reference), self.name(referent));
                    if referent == 0 {
                        log!(self, "{name} is dead");
                    } else {
                        log!(self, "{name} is {found}");
                        world.incref(referent);
                        self.store(world, root(at), referent);
                    }
                }
            }
            Op::DropWeak(weak) => self.store_weak(world, weak_index(weak), 0),
            Op::Track(place) => self.with(world, place, me, |object| {
                if self.kind(object).gc && !world.is_tracked(object) {
                    world.track(object);
                    self.run_scheduled(world);
                }
            }),
            Op::Untrack(place) => self.with(world, place, me, |object| {
                let kind = self.kind(object);
                if kind.gc && kind.dealloc {
                    world.untrack(object);
                    self.run_scheduled(world);
                }
            }),
            Op::Collect(generation) => {
                let generation = usize::from(generation) % 3;
                let found = world.collect(generation);
                log!(self, "collect({generation}) = {found}");
                self.run_scheduled(world);
            }
            Op::Freeze => world.freeze(),
            Op::Unfreeze => world.unfreeze(),
            Op::Thresholds(t0, t1, t2) => world.set_threshold([t0, t1, t2].map(i32::from)),
            Op::Enable => world.enable(),
            Op::Disable => world.disable(),
            Op::Debug(flags) => world.set_debug(flags.into()),
            Op::Immortal(place) => self.with(world, place, me, |object| {
                if self.kind(object).dealloc && world.set_immortal(object) {
                    let name = self.name(object);
                    log!(self, "immortal {name}");
                    self.object(object, |object| object.immortal = true);
                }
            }),
            Op::Garbage => {
                let garbage = world.take_garbage();
                log!(self, "garbage {}", self.names(&garbage));
                for object in garbage {
                    self.release(world, object);
                }
            }
            Op::Count => log!(self, "count {:?}", world.count()),
            Op::Stats => {
                let (now, before) = (world.stats(), self.state.borrow().stats);
                let since = |generation: usize| [0, 1, 2].map(|number| now[generation][number] - before[generation][number]);
                log!(self, "stats {:?}", [since(0), since(1), since(2)]);
            }
            Op::Objects(generation) => {
                let objects = world.objects(Some(usize::from(generation)).filter(|generation| *generation < 3));
                let frozen = world.freeze_count();
                let names = self.names(&objects);
                log!(self, "objects({generation}) {names}, frozen {frozen}");
            }
            Op::Look(place) => self.with(world, place, me, |object| {
                let (name, count, gc) = (self.name(object), world.refcount(object), self.kind(object).gc);
                let (tracked, finalized) = (gc && world.is_tracked(object), gc && world.is_finalized(object));
                log!(self, "look {name}, refcount {count}, tracked {tracked}, finalized {finalized}");
            }),
            Op::Referrers(place) => self.with(world, place, me, |object| {
                let (name, names) = (self.name(object), self.names(&world.referrers(object)));
                log!(self, "referrers of {name}: {names}");
            }),
            Op::Referents(place) => self.with(world, place, me, |object| {
                let (name, names) = (self.name(object), self.names(&world.referents(object)));
                log!(self, "referents of {name}: {names}");
            }),
        }
    }

    /// Calls `body` with an object of the program, if there is one, and keeps it alive meanwhile.
    fn with(&self, world: &dyn World, place: Place, me: usize, body: impl FnOnce(usize)) {
        if let Some(object) = self.hold(world, place, me) {
            body(object);
            self.release(world, object);
        }
    }
}

impl Object {
    /// Whether its death is logged.
    fn loggable(&self) -> bool {
        KINDS[self.kind].dealloc
    }
}
