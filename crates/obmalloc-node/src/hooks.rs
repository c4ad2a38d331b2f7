//! What JavaScript does for types and the collector: the engine's [`Hooks`], as calls of functions that the face keeps on the handle.
//!
//! The face finds the script's own function, catches what it throws, and tells of it. What gets past the face all the same (there was no
//! stack left to call it) waits in the handle's `escaped`, and is told as soon as there is room for that. A thread that is being
//! terminated runs no JavaScript any more: then hooks do nothing, and a traversal fails.

use std::cell::{Cell, OnceCell};
use std::ffi::CStr;
use std::num::NonZeroU64;
use std::panic::resume_unwind;
use std::ptr::NonNull;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use obmalloc::{Failed, Fault, Hooks, Info, ObjectError, ObjectHeap, Phase, TypeId};

use crate::failure::{Failure, code};
use crate::heap::{Core, State};
use crate::js::{Env, Outcome, UNDEFINED, Value};
use crate::places::Places;
use crate::shell::reached;

/// How long a call goes on before it looks again whether its thread is being ended. A look costs a microsecond.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Bytes that are copied between two looks.
const PIECE: usize = 1 << 20;

/// Callbacks that may run inside one another.
const NESTED_MAX: u32 = 50;

type Visit<'call> = dyn FnMut(usize) -> Result<(), Fault> + 'call;

/// A heap's callbacks.
#[derive(Default)]
pub(crate) struct Scripts {
    /// How many are running, each inside the one before.
    running: Cell<u32>,
    /// Whether the outermost call from JavaScript holds a value for the handle, which keeps it.
    keeps_handle: Cell<bool>,
    /// What a reference is given to, while a `traverse` is running.
    visit: Cell<Option<NonNull<Visit<'static>>>>,
    /// Whether there is something in the handle's `escaped`.
    escaped: Cell<bool>,
    /// Places in the handle's `weakrefCallbacks`.
    weakrefs: Places,
    /// When it was last seen that JavaScript may run.
    looked: Cell<Option<Instant>>,
}

impl Scripts {
    pub fn are_running(&self) -> bool {
        self.running.get() != 0
    }

    /// A call from JavaScript begins that may call back.
    pub fn enter(&self) {
        if !self.are_running() {
            self.keeps_handle.set(false);
        }
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
        self.scripts.enter();
        if self.scripts.running.get() >= NESTED_MAX {
            let message = format!("expected at most {NESTED_MAX} callbacks inside one another");
            return Err(Failure::new(code::REENTRANT, message));
        }
        self.heap()
    }

    /// After such a call: what it has made due, and what an arena allocator did wrong meanwhile; an object is in the error then.
    pub fn settle_objects(&self, env: Env, heap: &ObjectHeap, object: Option<usize>) -> Result<(), Failure> {
        self.note_scheduled(heap);
        self.report(env, heap);
        if self.scripts.escaped.get() {
            self.tell_escaped();
        }
        if !self.needs_attention() {
            return Ok(());
        }
        let Some(failure) = self.arenas.take_failure(heap) else { return Ok(()) };
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

    /// Why a `traverse` failed that the present call from JavaScript called: the error is in the handle's `failures`, at the number of
    /// callbacks around the call, because callbacks may fail in ways of their own before the call ends.
    fn aborted(&self) -> Failure {
        let env = self.env();
        let error = self.handle().ok_or(()).and_then(|handle| {
            let failures = env.get(handle, c"failures").map_err(drop)?;
            let error = env.element(failures, self.scripts.running.get()).map_err(drop)?;
            env.delete_element(failures, self.scripts.running.get()).map_err(drop)?;
            Ok(error)
        });
        error.map_or_else(|()| Failure::of_status(napi_sys::Status::napi_cannot_run_js), Failure::made)
    }

    /// Calls a function of the handle's, with JavaScript's values living no longer than the call. Nothing comes back when it threw or
    /// could not be called.
    fn call_face<const N: usize>(
        &self,
        name: &CStr,
        arguments: impl FnOnce(Env) -> Result<[Value; N], Failure>,
        escaped: impl FnOnce(Value, Value),
    ) -> Option<bool> {
        let env = self.env();
        if !self.scripts.keeps_handle.replace(true) {
            self.handle();
        }
        let scope = env.open_scope();
        self.disturbances.set(self.disturbances.get() + 1);
        self.scripts.running.set(self.scripts.running.get() + 1);
        let ready = self.handle().and_then(|handle| {
            let function = env.get(handle, name).ok()?;
            Some((handle, function, arguments(env).ok()?))
        });
        let answer = ready.and_then(|(handle, function, values)| match env.call(function, &values) {
            Ok(value) => Some(env.is_true(value)),
            Err(exception) => {
                if let Some(exception) = exception {
                    escaped(handle, exception);
                }
                None
            }
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
    fn notify<const N: usize>(&self, name: &CStr, arguments: impl FnOnce(Env) -> Result<[Value; N], Failure>) {
        let env = self.env();
        self.call_face(name, arguments, |handle, exception| {
            if self.append(env, handle, c"escaped", exception).is_ok() {
                self.scripts.escaped.set(true);
            }
        });
    }

    /// Tells of exceptions that could not be caught, once no callback is running.
    #[cold]
    fn tell_escaped(&self) {
        if !self.scripts.are_running() && self.call_face(c"onEscaped", |_| Ok([]), |_, _| {}).is_some() {
            self.scripts.escaped.set(false);
        }
    }

    /// Appends to an array of the handle's. Scripts may have made that impossible; then it is not done.
    fn append(&self, env: Env, handle: Value, name: &CStr, value: Value) -> Result<(), Failure> {
        let array = env.get(handle, name)?;
        let length = env.length(array).unwrap_or(0);
        let appended = env.set_element(array, length, value);
        if appended.is_err() {
            env.clear_exception();
        } else if env.length(array) == Some(length) {
            // Frozen: that is not told.
            return Err(Failure::new(code::CALLBACK_RESULT, "expected an array that can grow"));
        }
        appended
    }

    /// Tells of what no call can throw.
    #[cold]
    pub fn tell(&self, failure: Failure) {
        self.notify(c"onFailure", |env| {
            let error = failure.error(env, self.error_maker(env));
            error
                .or_else(|exception| exception.ok_or_else(|| Failure::of_status(napi_sys::Status::napi_cannot_run_js)))
                .map(|error| [error])
        });
    }

    /// Keeps a callback for a weak reference: its number.
    pub fn keep_callback(&self, env: Env, callback: Value) -> Result<u32, Failure> {
        let handle = self.handle().ok_or_else(|| Failure::new(code::INTERNAL, "a heap without its handle"))?;
        let callbacks = env.get(handle, c"weakrefCallbacks")?;
        let place = self.scripts.weakrefs.take();
        match env.set_element(callbacks, place, callback) {
            Ok(()) => Ok(place),
            Err(failure) => {
                self.scripts.weakrefs.give(place);
                Err(failure)
            }
        }
    }

    pub fn drop_callback(&self, place: u32) {
        let env = self.env();
        let scope = env.open_scope();
        // Where JavaScript cannot run any more, the callback goes with the handle.
        let _ =
            self.handle().map(|handle| env.get(handle, c"weakrefCallbacks").and_then(|array| env.delete_element(array, place)));
        env.close_scope(scope);
        self.scripts.weakrefs.give(place);
    }

    fn run_hook(&self, hook: Hook, kind: TypeId, object: usize) {
        self.notify(c"onHook", |env| Ok([env.integer(hook as usize)?, env.integer(kind.index())?, env.integer(object)?]));
    }

    /// Moves what a collection could not collect to the end of the handle's `garbage`.
    fn give_garbage(&self, objects: &[usize]) {
        let env = self.env();
        for (index, &object) in objects.iter().enumerate() {
            if index % 64 == 63 && self.is_interrupted() {
                return;
            }
            let scope = env.open_scope();
            let appended = self.handle().map(|handle| self.append(env, handle, c"garbage", env.integer(object)?));
            if let Some(Err(_)) = appended {
                // Where JavaScript cannot run any more, nobody can ask for it, nor is told.
                let message =
                    "expected gc.garbage to be an array that can grow; the object and its reference are in nobody's hands";
                self.tell(Failure::new(code::CALLBACK_RESULT, message).at(object));
            }
            env.close_scope(scope);
        }
    }

    /// Whether the thread's JavaScript is being ended (a worker is terminated, a script's time is over), for calls that take long. Node-API
    /// has no way to ask, so a function that does nothing is called: one that cannot run is ended with nothing thrown.
    pub fn is_interrupted(&self) -> bool {
        let now = Instant::now();
        if self.scripts.looked.get().is_some_and(|looked| now.duration_since(looked) < LOOK_EVERY) {
            return false;
        }
        let env = self.env();
        let scope = env.open_scope();
        let look = self.handle().map(|handle| env.get(handle, c"onLook"));
        let ended = self.while_busy(|| match look {
            // Without a handle nobody calls.
            None => false,
            Some(Err(_)) => true,
            Some(Ok(function)) => match env.call(function, &[]) {
                Ok(_) => false,
                Err(exception) => exception.is_none_or(|thrown| env.type_of(thrown) == napi_sys::ValueType::napi_null),
            },
        });
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
        let callbacks = self.handle().and_then(|handle| env.get(handle, c"callbacks").ok());
        let length = callbacks.and_then(|callbacks| env.length(callbacks));
        env.close_scope(scope);
        length.is_some_and(|length| length != 0)
    }
}

/// A callback's number for the engine, from its place.
pub(crate) fn number_of(place: u32) -> NonZeroU64 {
    NonZeroU64::MIN.saturating_add(place.into())
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
            let arguments = |env: Env| Ok([env.integer(kind.index())?, env.integer(object)?, env.integer(around as usize)?]);
            core.call_face(c"onTraverse", arguments, |handle, exception| {
                let env = core.env();
                let _ = env.get(handle, c"failures").and_then(|failures| env.set_element(failures, around, exception));
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
            core.notify(c"onWeakref", |env| Ok([env.integer(callback as usize - 1)?, env.integer(reference)?]));
        }
    }

    fn weakref_dropped(&self, callback: u64) {
        reached("hooks::weakref_dropped");
        if let Some(core) = self.core() {
            core.drop_callback((callback - 1) as u32);
        }
    }

    fn gc_callback(&self, heap: &ObjectHeap, phase: Phase, info: &Info) {
        reached("hooks::gc_callback");
        let Some(core) = self.core() else { return };
        if phase == Phase::Stop {
            core.give_garbage(&heap.take_garbage());
        }
        if core.has_callbacks() {
            core.notify(c"onCollection", |env| {
                let [stopped, generation] =
                    [usize::from(phase == Phase::Stop), info.generation].map(|number| env.integer(number));
                Ok([stopped?, generation?, env.integer(info.collected)?, env.integer(info.uncollectable)?])
            });
        }
    }

    fn interrupted(&self) -> bool {
        reached("hooks::interrupted");
        // What is given back after closing may be so while JavaScript's own collector runs.
        self.core().is_some_and(|core| core.state() != State::Closed && core.is_interrupted())
    }

    fn write(&self, text: &str) {
        reached("hooks::write");
        if let Some(core) = self.core() {
            core.notify(c"onText", |env| Ok([env.string(text)?]));
        }
    }

    fn collection_failed(&self, _: &ObjectHeap, error: ObjectError) {
        reached("hooks::collection_failed");
        if let Some(core) = self.core() {
            core.tell(core.object_failure(error, "object", UNDEFINED));
        }
    }
}
