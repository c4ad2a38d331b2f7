//! The engine's [`Hooks`] for types and the collector, as calls of functions of the face.
//!
//! In an execution that is being terminated hooks do nothing, and a traversal fails.

pub(crate) mod guests;

use std::cell::OnceCell;
use std::num::NonZeroU64;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::rc::{Rc, Weak};

use obmalloc::{Failed, Hooks, Info, ObjectError, ObjectHeap, Phase, TypeId, Visit};

use crate::core::kept;
use crate::core::{Core, State};
use crate::face::Called;
use crate::failure::{Failure, code};
use crate::js::{Env, Outcome, UNDEFINED};
use crate::probe::reached;

/// What the function `hook` of the face does.
#[derive(Clone, Copy)]
enum Hook {
    Clear,
    Finalize,
    Del,
    Dealloc,
}

/// The engine's number of a callback, made from its place.
pub(crate) fn number_of(place: u32) -> NonZeroU64 {
    NonZeroU64::MIN.saturating_add(place.into())
}

fn place_of(callback: u64) -> u32 {
    (callback - 1) as u32
}

/// Visits an object that a script's `traverse` names.
pub(crate) fn visit(core: &Core, _: Env, referent: Option<usize>) -> Outcome {
    let referent = referent.unwrap_or(0);
    let outside = || Failure::new(code::REENTRANT, "expected a visit from inside traverse").at(referent);
    if core.state() != State::Traversing {
        return Err(outside());
    }
    // Taken out during the visit, so that there is no second visit inside it.
    let mut visit = core.scripts.visit.take().ok_or_else(outside)?;
    // SAFETY: `traverse` below puts it in while it runs, which the state shows, and it was taken out just above.
    let visited = unsafe { visit.as_mut()(referent) };
    core.scripts.visit.set(Some(visit));
    visited.map_err(|fault| core.fault(fault))?;
    Ok(UNDEFINED)
}

/// The hooks of one heap's engine. They get their heap once it exists.
#[derive(Clone, Default)]
pub(crate) struct Host(Rc<OnceCell<Weak<Core>>>);

impl Host {
    pub fn serve(&self, core: &Rc<Core>) {
        let served = self.0.set(Rc::downgrade(core));
        debug_assert!(served.is_ok(), "a host serves one heap");
    }

    /// The heap, kept until the callback has returned; `None` once it is being dropped.
    fn core(&self) -> Option<Rc<Core>> {
        self.0.get().and_then(Weak::upgrade)
    }

    /// Whether the engine must stop its current work. The engine may be in the middle of anything, so no panic leaves this function.
    pub fn is_interrupted(&self) -> bool {
        let asked = catch_unwind(AssertUnwindSafe(|| {
            reached("hooks::interrupted");
            // After closing, memory may be given back while V8's collector runs.
            self.core().is_some_and(|core| core.state() != State::Closed && core.is_interrupted())
        }));
        asked.unwrap_or_else(|_| {
            if let Some(core) = self.core() {
                core.poison();
            }
            true
        })
    }

    fn run(&self, hook: Hook, kind: TypeId, object: usize) {
        reached("hooks::run");
        if let Some(core) = self.core() {
            core.notify(Called::Hook, |env, kept| {
                Ok([kept, env.integer(hook as usize)?, env.integer(kind.index())?, env.integer(object)?])
            });
        }
    }
}

impl Hooks for Host {
    fn traverse(&self, _: &ObjectHeap, kind: TypeId, object: usize, visit: &mut Visit<'_>) -> Result<(), Failed> {
        reached("hooks::traverse");
        let core = self.core().ok_or(Failed)?;
        let visit = NonNull::from(visit);
        // SAFETY: only the lifetime changes. It is taken out again below, before its referent goes.
        let visit: NonNull<Visit<'static>> = unsafe { std::mem::transmute::<NonNull<Visit<'_>>, _>(visit) };
        let before = core.scripts.visit.replace(Some(visit));
        let around = core.scripts.running.get();
        let answer = core.in_state(State::Traversing, || {
            let arguments = |env: Env, kept| Ok([kept, env.integer(kind.index())?, env.integer(object)?]);
            core.call_face(Called::Traverse, arguments, |answer| match answer {
                // Undefined, or what went wrong.
                Ok(answer) if core.env().type_of(answer) == napi_sys::ValueType::napi_undefined => true,
                Ok(error) | Err(error) => {
                    let _ = core.kept.set(kept::FAILURES + around, error);
                    false
                }
            })
        });
        core.scripts.visit.set(before);
        if answer == Some(true) { Ok(()) } else { Err(Failed) }
    }

    fn clear(&self, _: &ObjectHeap, kind: TypeId, object: usize) {
        self.run(Hook::Clear, kind, object);
    }

    fn finalize(&self, _: &ObjectHeap, kind: TypeId, object: usize) {
        self.run(Hook::Finalize, kind, object);
    }

    fn del(&self, _: &ObjectHeap, kind: TypeId, object: usize) {
        self.run(Hook::Del, kind, object);
    }

    fn dealloc(&self, _: &ObjectHeap, kind: TypeId, object: usize) {
        self.run(Hook::Dealloc, kind, object);
    }

    fn weakref_callback(&self, _: &ObjectHeap, callback: u64, reference: usize) {
        reached("hooks::weakref_callback");
        if let Some(core) = self.core() {
            core.notify(Called::Weakref, |env, kept| Ok([kept, core.kept.get(place_of(callback))?, env.integer(reference)?]));
        }
    }

    fn weakref_dropped(&self, callback: u64) {
        reached("hooks::weakref_dropped");
        if let Some(core) = self.core() {
            core.kept.drop(place_of(callback));
        }
    }

    fn gc_callback(&self, heap: &ObjectHeap, phase: Phase, info: &Info) {
        reached("hooks::gc_callback");
        let Some(core) = self.core() else { return };
        if phase == Phase::Stop {
            core.give_garbage(&heap.take_garbage());
        }
        if core.has_callbacks() {
            core.notify(Called::Collection, |env, kept| {
                let [stopped, generation] =
                    [usize::from(phase == Phase::Stop), info.generation].map(|number| env.integer(number));
                Ok([kept, stopped?, generation?, env.integer(info.collected)?, env.integer(info.uncollectable)?])
            });
        }
    }

    fn write(&self, text: &str) {
        reached("hooks::write");
        if let Some(core) = self.core() {
            core.notify(Called::Text, |env, kept| Ok([kept, env.string(text)?]));
        }
    }

    fn collection_failed(&self, _: &ObjectHeap, error: ObjectError) {
        reached("hooks::collection_failed");
        if let Some(core) = self.core() {
            core.tell(core.object_failure(error, "object", UNDEFINED));
        }
    }
}
