//! What JavaScript does for types and the collector: the engine's [`Hooks`], as calls of functions of the face.
//!
//! The face finds the script's own function, catches what it throws, and tells of it. What gets past the face all the same (there was no
//! stack left to call it) is kept, and is told as soon as there is room for that. An execution that is being terminated runs no
//! JavaScript any more: then hooks do nothing, and a traversal fails.

use std::cell::{Cell, OnceCell, RefCell};
use std::num::NonZeroU64;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::NonNull;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use obmalloc::{Failed, Fault, Hooks, Info, ObjectError, ObjectHeap, Phase, TypeId};

use crate::face::Called;
use crate::failure::{Failure, code};
use crate::heap::{Core, State};
use crate::js::{Env, Outcome, UNDEFINED, Value};
use crate::kept;
use crate::shell::reached;

/// How long a call goes on before it looks again whether its thread is being ended. A look costs a microsecond.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Bytes that are copied between two looks.
const PIECE: usize = 1 << 20;

/// Callbacks that may run inside one another.
pub(crate) const NESTED_MAX: u32 = 50;

type Visit<'call> = dyn FnMut(usize) -> Result<(), Fault> + 'call;

/// A heap's callbacks.
#[derive(Default)]
pub(crate) struct Scripts {
    /// How many are running, each inside the one before.
    running: Cell<u32>,
    /// What a reference is given to, while a `traverse` is running.
    visit: Cell<Option<NonNull<Visit<'static>>>>,
    /// Where exceptions are kept that could not be caught.
    escaped: RefCell<Vec<u32>>,
    /// When it was last seen that JavaScript may run.
    looked: Cell<Option<Instant>>,
}

impl Scripts {
    pub fn are_running(&self) -> bool {
        self.running.get() != 0
    }
}

/// What the face's `hook` is to do.
#[derive(Clone, Copy)]
enum Hook {
    Clear,
    Finalize,
    Del,
    Dealloc,
}

impl Core {
    /// The heap, for a call that may call back.
    pub fn objects(&self) -> Result<&ObjectHeap, Failure> {
        if self.scripts.running.get() >= NESTED_MAX {
            let message = format!("expected at most {NESTED_MAX} callbacks inside one another");
            return Err(Failure::new(code::REENTRANT, message));
        }
        self.heap()
    }

    /// After such a call: what it has made due, and what a script's allocator did wrong meanwhile; an object is in the error then.
    pub fn settle_objects(&self, env: Env, heap: &ObjectHeap, object: Option<usize>) -> Result<(), Failure> {
        self.note_scheduled(heap);
        self.report(env, heap);
        if !self.scripts.escaped.borrow().is_empty() {
            self.tell_escaped();
        }
        if !self.needs_attention() {
            return Ok(());
        }
        let Some(failure) = self.take_guest_failure(heap) else { return Ok(()) };
        Err(match object {
            Some(object) => failure.at(object),
            None => failure,
        })
    }

    /// An error of the engine's about the argument `name`.
    #[cold]
    pub fn object_failure(&self, error: ObjectError, name: &'static str, received: Value) -> Failure {
        match error {
            ObjectError::Fault(fault) => self.fault(fault),
            ObjectError::NoMemory => Failure::no_memory("no memory for an object"),
            ObjectError::Argument(expected) => Failure::argument(code::OUT_OF_RANGE, name, expected, received),
            ObjectError::Aborted => self.aborted(),
        }
    }

    /// Why a `traverse` failed that the present call from JavaScript called: what was thrown is kept at the number of callbacks around the
    /// call, because callbacks may fail in ways of their own before the call ends.
    fn aborted(&self) -> Failure {
        let place = kept::FAILURES + self.scripts.running.get();
        let error = self.kept.get(place);
        self.kept.clear(place);
        match error {
            Ok(error) if self.env().type_of(error) == napi_sys::ValueType::napi_object => Failure::made(error),
            _ => Failure::of_status(napi_sys::Status::napi_cannot_run_js),
        }
    }

    /// Calls a function of the face's with what is kept of the heap, and other arguments; JavaScript's values live no longer than that. Gives
    /// what becomes of the answer, or of what was thrown, and nothing when there was no call.
    fn call_face<const N: usize, T>(
        &self,
        function: Called,
        arguments: impl FnOnce(Env, Value) -> Result<[Value; N], Failure>,
        then: impl FnOnce(Result<Value, Value>) -> T,
    ) -> Option<T> {
        let env = self.env();
        if self.realm.is_ended() {
            return None;
        }
        let scope = env.open_scope();
        self.disturbances.set(self.disturbances.get() + 1);
        self.scripts.running.set(self.scripts.running.get() + 1);
        let ready = self.kept.object().and_then(|kept| arguments(env, kept).ok());
        let answer = ready.and_then(|values| match self.realm.call(env, function, &values) {
            Ok(value) => Some(then(Ok(value))),
            Err(exception) => exception.map(|exception| then(Err(exception))),
        });
        self.scripts.running.set(self.scripts.running.get() - 1);
        env.close_scope(scope);
        if self.is_broken() {
            // A call from inside the callback broke an invariant, or found one broken: the calls around it cannot go on.
            resume_unwind(Box::new("broken"));
        }
        answer
    }

    /// Calls a function of the face's that has no answer.
    fn notify<const N: usize>(&self, function: Called, arguments: impl FnOnce(Env, Value) -> Result<[Value; N], Failure>) {
        self.call_face(function, arguments, |answer| {
            let mut escaped = self.scripts.escaped.borrow_mut();
            if let Err(exception) = answer
                && escaped.try_reserve(1).is_ok()
                && let Ok(place) = self.kept.keep(exception)
            {
                escaped.push(place);
            }
        });
    }

    /// Tells of exceptions that could not be caught, once no callback is running.
    #[cold]
    fn tell_escaped(&self) {
        if self.scripts.are_running() {
            return;
        }
        loop {
            let Some(place) = self.scripts.escaped.borrow().first().copied() else { return };
            let told = self.call_face(Called::Escaped, |_, kept| Ok([kept, self.kept.get(place)?]), |answer| answer.is_ok());
            if told != Some(true) {
                return;
            }
            self.scripts.escaped.borrow_mut().remove(0);
            self.kept.drop(place);
        }
    }

    /// Tells of what no call can throw.
    #[cold]
    pub fn tell(&self, failure: Failure) {
        self.notify(Called::Failure, |env, kept| {
            let error = failure.error(env, |arguments| self.realm.call(env, Called::MakeError, arguments));
            error
                .or_else(|exception| exception.ok_or_else(|| Failure::of_status(napi_sys::Status::napi_cannot_run_js)))
                .map(|error| [kept, error])
        });
    }

    fn run_hook(&self, hook: Hook, kind: TypeId, object: usize) {
        self.notify(Called::Hook, |env, kept| {
            Ok([kept, env.integer(hook as usize)?, env.integer(kind.index())?, env.integer(object)?])
        });
    }

    /// Moves what a collection could not collect to the end of `gc.garbage`. That is a script's to change; elements are defined, so that no
    /// script runs here, and an array that cannot have them gets none.
    fn give_garbage(&self, objects: &[usize]) {
        let env = self.env();
        for (index, &object) in objects.iter().enumerate() {
            if index % 64 == 63 && self.is_interrupted() {
                return;
            }
            let scope = env.open_scope();
            let given = self
                .kept
                .get(kept::GARBAGE)
                .and_then(|garbage| env.define_element(garbage, env.length(garbage).unwrap_or(0), env.integer(object)?));
            if given.is_err() {
                env.clear_exception();
                // Where JavaScript cannot run any more, nobody can ask for it, nor is told.
                let message =
                    "expected gc.garbage to be an array that can grow; the object and its reference are in nobody's hands";
                self.tell(Failure::new(code::CALLBACK_RESULT, message).at(object));
            }
            env.close_scope(scope);
        }
    }

    /// Whether the execution is being terminated, for calls that take long. Node-API has no way to ask, so a function that does nothing is
    /// called.
    pub fn is_interrupted(&self) -> bool {
        if self.realm.is_ended() {
            return true;
        }
        let now = Instant::now();
        if self.scripts.looked.get().is_some_and(|looked| now.duration_since(looked) < LOOK_EVERY) {
            return false;
        }
        let env = self.env();
        let scope = env.open_scope();
        // Without a handle nobody calls.
        let looks = self.kept.object().is_some();
        let ended = looks && self.while_busy(|| matches!(self.realm.call(env, Called::Look, &[]), Err(None)));
        env.close_scope(scope);
        self.scripts.looked.set((!ended).then_some(now));
        ended
    }

    /// As [`is_interrupted`](Self::is_interrupted), as the error that ends a call.
    pub fn go_on(&self) -> Result<(), Failure> {
        if self.is_interrupted() { Err(Failure::of_status(napi_sys::Status::napi_cannot_run_js)) } else { Ok(()) }
    }

    /// Copies bytes, perhaps within one block, in pieces between which it looks whether the thread is being ended.
    ///
    /// # Errors
    /// When it is; some of the bytes have been copied then.
    ///
    /// # Safety
    /// The bytes are there, before and after JavaScript that does nothing.
    pub unsafe fn copy(&self, to: *mut u8, from: *const u8, count: usize) -> Result<(), Failure> {
        let pieces = count.div_ceil(PIECE);
        // As memmove does it: what is read last must not be written over first.
        let backwards = to.addr() > from.addr();
        for index in 0..pieces {
            let begin = PIECE * if backwards { pieces - 1 - index } else { index };
            // SAFETY: the caller's promise.
            unsafe { to.add(begin).copy_from(from.add(begin), PIECE.min(count - begin)) };
            if index + 1 < pieces {
                self.go_on()?;
            }
        }
        Ok(())
    }

    fn has_callbacks(&self) -> bool {
        let env = self.env();
        let scope = env.open_scope();
        let length = self.kept.get(kept::CALLBACKS).ok().and_then(|callbacks| env.length(callbacks));
        env.close_scope(scope);
        length.is_some_and(|length| length != 0)
    }
}

/// A callback's number for the engine, from its place.
pub(crate) fn number_of(place: u32) -> NonZeroU64 {
    NonZeroU64::MIN.saturating_add(place.into())
}

fn place_of(callback: u64) -> u32 {
    (callback - 1) as u32
}

/// `(referent)`: what a script's `traverse` says that the object refers to.
pub(crate) fn visit(core: &Core, env: Env, [referent]: [Value; 1]) -> Outcome {
    let referent = crate::args::address_or_null(env, referent)?.unwrap_or(0);
    let outside = || Failure::new(code::REENTRANT, "expected a visit from inside traverse").at(referent);
    if core.state() != State::Traversing {
        return Err(outside());
    }
    // Taken out for the time of the visit, so that there is no second one inside it.
    let mut visit = core.scripts.visit.take().ok_or_else(outside)?;
    // SAFETY: put in by `traverse` below for as long as it runs, during which the state is this, and taken out just above.
    let visited = unsafe { visit.as_mut()(referent) };
    core.scripts.visit.set(Some(visit));
    visited.map_err(|fault| core.fault(fault))?;
    Ok(UNDEFINED)
}

/// The hooks of one heap's engine; the heap that they serve comes once there is one.
#[derive(Clone, Default)]
pub(crate) struct Host(Rc<OnceCell<Weak<Core>>>);

impl Host {
    pub fn serve(&self, core: &Rc<Core>) {
        let served = self.0.set(Rc::downgrade(core));
        debug_assert!(served.is_ok(), "a host serves one heap");
    }

    /// The heap, held so that it cannot go before the callback has returned; none once it is being dropped.
    fn core(&self) -> Option<Rc<Core>> {
        self.0.get().and_then(Weak::upgrade)
    }

    /// Whether the engine is to give up what it is at. It may be in the middle of anything, so a panic does not get out of here.
    pub fn is_interrupted(&self) -> bool {
        let asked = catch_unwind(AssertUnwindSafe(|| {
            reached("hooks::interrupted");
            // What is given back after closing may be so while JavaScript's own collector runs.
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
            core.run_hook(hook, kind, object);
        }
    }
}

impl Hooks for Host {
    fn traverse(
        &self,
        _: &ObjectHeap,
        kind: TypeId,
        object: usize,
        visit: &mut dyn FnMut(usize) -> Result<(), Fault>,
    ) -> Result<(), Failed> {
        reached("hooks::traverse");
        let core = self.core().ok_or(Failed)?;
        let visit = NonNull::from(visit);
        // SAFETY: only the lifetime changes; it is taken out again below, before what it points to goes.
        let visit: NonNull<Visit<'static>> = unsafe { std::mem::transmute::<NonNull<Visit<'_>>, _>(visit) };
        let before = core.scripts.visit.replace(Some(visit));
        let around = core.scripts.running.get();
        let answer = core.in_state(State::Traversing, || {
            let arguments = |env: Env, kept| Ok([kept, env.integer(kind.index())?, env.integer(object)?]);
            core.call_face(Called::Traverse, arguments, |answer| match answer {
                // Nothing, or what went wrong.
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
