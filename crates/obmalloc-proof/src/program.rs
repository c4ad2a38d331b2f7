//! What a program is made of: kinds of objects, places that hold references, operations. Leans on nothing.

#![forbid(unsafe_code)]

use std::fmt;

/// A type of objects, the same on every side.
#[derive(Debug)]
pub struct Kind {
    /// `tp_name`.
    pub name: &'static str,
    /// Number of object fields.
    pub fields: usize,
    /// Whether there is a variable part, of objects.
    pub items: bool,
    /// `Py_TPFLAGS_HAVE_GC`.
    pub gc: bool,
    /// Whether weak references to it can be made.
    pub weakrefs: bool,
    /// `tp_traverse`.
    pub traverse: Slot,
    /// `tp_clear`.
    pub clear: Slot,
    /// Whether it has a `tp_finalize`, which logs and runs a script.
    pub finalize: bool,
    /// Whether it has a `tp_del`, which logs and runs a script.
    pub del: bool,
    /// Whether its death is logged.
    pub dealloc: bool,
}

/// How `tp_traverse` and `tp_clear` are made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Slot {
    /// As the side makes them for itself: every field, then every item. Not logged.
    Native,
    /// By the program: every field, then every item. A clear is logged.
    All,
    /// By the program, and only the first field. A clear is logged.
    First,
    /// By the program, and nothing at all. A clear is logged.
    Nothing,
}

const PLAIN: Kind = Kind {
    name: "plain",
    fields: 2,
    items: false,
    gc: true,
    weakrefs: false,
    traverse: Slot::Native,
    clear: Slot::Native,
    finalize: false,
    del: false,
    dealloc: true,
};

/// Every kind that a program can allocate.
pub const KINDS: [Kind; 16] = [
    PLAIN,
    Kind { name: "logging", fields: 3, traverse: Slot::All, clear: Slot::All, ..PLAIN },
    Kind { name: "silent", fields: 2, dealloc: false, ..PLAIN },
    Kind { name: "sequence", fields: 1, items: true, clear: Slot::All, ..PLAIN },
    Kind { name: "weak", fields: 2, weakrefs: true, clear: Slot::All, ..PLAIN },
    Kind { name: "final", fields: 2, finalize: true, clear: Slot::All, ..PLAIN },
    Kind { name: "final.weak", fields: 3, finalize: true, weakrefs: true, ..PLAIN },
    Kind { name: "final.sequence", fields: 0, items: true, finalize: true, weakrefs: true, clear: Slot::All, ..PLAIN },
    Kind { name: "del", fields: 2, del: true, clear: Slot::All, ..PLAIN },
    Kind { name: "del.final.weak", fields: 2, del: true, finalize: true, weakrefs: true, ..PLAIN },
    Kind { name: "leaf", fields: 0, gc: false, weakrefs: true, ..PLAIN },
    Kind { name: "box", fields: 1, gc: false, weakrefs: true, finalize: true, ..PLAIN },
    Kind { name: "shy", fields: 2, traverse: Slot::First, clear: Slot::First, ..PLAIN },
    Kind { name: "stubborn", fields: 2, weakrefs: true, clear: Slot::Nothing, ..PLAIN },
    Kind { name: "half", fields: 2, finalize: true, clear: Slot::First, ..PLAIN },
    Kind { name: "blind", fields: 1, weakrefs: true, traverse: Slot::Nothing, clear: Slot::All, ..PLAIN },
];

/// Number of roots: references that the program itself holds.
pub const ROOTS: usize = 40;
/// Number of places for weak references.
pub const WEAK: usize = 6;
/// Number of scripts, which finalizers and callbacks run.
pub const SCRIPTS: usize = 8;

/// Where an object is found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// A root.
    Root(u8),
    /// A field or item of what a root holds.
    Of(u8, u8),
    /// The object whose finalizer runs.
    Me,
    /// A field or item of it.
    OfMe(u8),
}

/// One step of a program. If an object that it names does not exist, the step does nothing, on every side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// Allocates; the root's old reference is dropped. Untracked ones come from `PyObject_GC_New`, the others from `PyType_GenericAlloc`.
    New {
        /// Which root.
        root: u8,
        /// Index in [`KINDS`].
        kind: u8,
        /// Number of items, for kinds that have any.
        nitems: u8,
        /// Whether it is tracked at once.
        tracked: bool,
        /// The script of `tp_finalize`; that of `tp_del` is the next one.
        script: u8,
    },
    /// Makes a root hold an object.
    Store(u8, Place),
    /// Drops a root's reference.
    Drop(u8),
    /// Sets a field or item of the first to the second.
    Link(Place, u8, Place),
    /// Sets a field or item to null.
    Unlink(Place, u8),
    /// Sets a field or item to a weak reference, the object itself.
    LinkWeak(Place, u8, u8),
    /// Makes a weak reference, with a callback that runs a script or with none.
    Weak(u8, Place, Option<u8>),
    /// Makes a root hold the referent, if it is alive.
    Deref(u8, u8),
    /// Drops a weak reference.
    DropWeak(u8),
    /// `PyObject_GC_Track`, unless it is tracked.
    Track(Place),
    /// `PyObject_GC_UnTrack`.
    Untrack(Place),
    /// `gc.collect(generation)`.
    Collect(u8),
    /// `gc.freeze()`.
    Freeze,
    /// `gc.unfreeze()`.
    Unfreeze,
    /// `gc.set_threshold(…)`.
    Thresholds(u8, u8, u8),
    /// `gc.enable()`.
    Enable,
    /// `gc.disable()`.
    Disable,
    /// `gc.set_debug(flags)`
    Debug(u8),
    /// Makes an object immortal, where the release has such objects.
    Immortal(Place),
    /// Empties `gc.garbage`.
    Garbage,
    /// `gc.get_count()`.
    Count,
    /// `gc.get_stats()`.
    Stats,
    /// `gc.get_objects(generation)`, and for 3 `gc.get_objects()`.
    Objects(u8),
    /// Reference count, whether tracked, whether finalized.
    Look(Place),
    /// `gc.get_referrers(object)`.
    Referrers(Place),
    /// `gc.get_referents(object)`.
    Referents(Place),
}

/// A program: the same on every side.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Program {
    /// Whether there is an entry in `gc.callbacks`; it runs this script.
    pub callbacks: Option<u8>,
    /// What is done, in order.
    pub ops: Vec<Op>,
    /// What finalizers and callbacks do.
    pub scripts: Vec<Vec<Op>>,
}

impl Program {
    /// Number of steps, those of scripts included.
    pub fn size(&self) -> usize {
        self.ops.len() + self.scripts.iter().map(Vec::len).sum::<usize>()
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root(root) => write!(f, "r{root}"),
            Self::Of(root, slot) => write!(f, "r{root}[{slot}]"),
            Self::Me => f.write_str("me"),
            Self::OfMe(slot) => write!(f, "me[{slot}]"),
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::New { root, kind, nitems, tracked, script } => {
                let kind = KINDS[usize::from(kind) % KINDS.len()].name;
                let how = if tracked { "new" } else { "new untracked" };
                write!(f, "r{root} = {how} {kind}({nitems}), script {script}")
            }
            Self::Store(root, place) => write!(f, "r{root} = {place}"),
            Self::Drop(root) => write!(f, "r{root} = null"),
            Self::Link(holder, slot, value) => write!(f, "{holder}[{slot}] = {value}"),
            Self::Unlink(holder, slot) => write!(f, "{holder}[{slot}] = null"),
            Self::LinkWeak(holder, slot, weak) => write!(f, "{holder}[{slot}] = w{weak}"),
            Self::Weak(weak, place, None) => write!(f, "w{weak} = weakref({place})"),
            Self::Weak(weak, place, Some(script)) => write!(f, "w{weak} = weakref({place}, script {script})"),
            Self::Deref(root, weak) => write!(f, "r{root} = w{weak}()"),
            Self::DropWeak(weak) => write!(f, "w{weak} = null"),
            Self::Track(place) => write!(f, "track {place}"),
            Self::Untrack(place) => write!(f, "untrack {place}"),
            Self::Collect(generation) => write!(f, "collect({generation})"),
            Self::Freeze => f.write_str("freeze"),
            Self::Unfreeze => f.write_str("unfreeze"),
            Self::Thresholds(t0, t1, t2) => write!(f, "set_threshold({t0}, {t1}, {t2})"),
            Self::Enable => f.write_str("enable"),
            Self::Disable => f.write_str("disable"),
            Self::Debug(flags) => write!(f, "set_debug({flags})"),
            Self::Immortal(place) => write!(f, "make {place} immortal"),
            Self::Garbage => f.write_str("empty garbage"),
            Self::Count => f.write_str("get_count"),
            Self::Stats => f.write_str("get_stats"),
            Self::Objects(generation) => write!(f, "get_objects({generation})"),
            Self::Look(place) => write!(f, "look at {place}"),
            Self::Referrers(place) => write!(f, "get_referrers({place})"),
            Self::Referents(place) => write!(f, "get_referents({place})"),
        }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, script) in self.scripts.iter().enumerate().filter(|(_, script)| !script.is_empty()) {
            let steps: Vec<_> = script.iter().map(Op::to_string).collect();
            writeln!(f, "script {number}: {}", steps.join("; "))?;
        }
        if let Some(script) = self.callbacks {
            writeln!(f, "gc.callbacks: script {script}")?;
        }
        self.ops.iter().try_for_each(|op| writeln!(f, "{op}"))
    }
}
