//! A heap's calls of the face: to report exceptions that no call can throw, to pass garbage on, and to ask whether the execution is being
//! terminated.
//!
//! The face finds the script's function, and catches and reports what it throws. If there is no stack left to call the face, the exception is
//! kept, and reported as soon as there is stack for that. An execution that is being terminated runs no more JavaScript.

use std::cell::{Cell, RefCell};
use std::panic::resume_unwind;
use std::ptr::NonNull;
use std::time::Duration;

use obmalloc::{ObjectError, ObjectHeap, Visit};

use super::Core;
use super::kept::{self, NESTED_MAX};
use crate::bytes::Bytes;
use crate::engine::Instant;
use crate::face::Called;
use crate::failure::{Failure, code};
use crate::js::{Env, Value};

/// Time between two looks whether the thread is being ended. A look costs a microsecond.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Bytes that are copied between two looks.
const PIECE: usize = 1 << 20;

/// A heap's callbacks.
#[derive(Default)]
pub(crate) struct Scripts {
    /// How many are running, each inside another.
    pub running: Cell<u32>,
    /// The engine's visitor, while a `traverse` is running.
    pub visit: Cell<Option<NonNull<Visit<'static>>>>,
    /// The places of exceptions that could not be caught.
    escaped: RefCell<Vec<u32>>,
    /// The time of the last look at which JavaScript could run.
    looked: Cell<Option<Instant>>,
}

impl Scripts {
    pub fn are_running(&self) -> bool {
        self.running.get() != 0
    }
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

    /// Ends such a call: notes a collection that it made due, and returns the failure of a script's allocator meanwhile, which names the object.
    pub fn end_object_call(&self, env: Env, heap: &ObjectHeap, object: Option<usize>) -> Result<(), Failure> {
        self.note_scheduled(heap);
        self.report(env, heap);
        if !self.scripts.escaped.borrow().is_empty() {
            self.tell_escaped();
        }
        if !self.needs_attention() {
            return Ok(());
        }
        let failure = self.take_guest_failure(heap);
        if !self.scripts.are_running() {
            self.update_attention();
        }
        let Some(failure) = failure else { return Ok(()) };
        Err(match object {
            Some(object) => failure.at(object),
            None => failure,
        })
    }

    /// Whether the end of such a call has nothing to do but to report the heap's size.
    #[cfg(target_family = "wasm")]
    pub fn has_nothing_to_end(&self, heap: &ObjectHeap) -> bool {
        !heap.is_scheduled() && self.scripts.escaped.borrow().is_empty()
    }

    /// The failure for an error of the engine about the argument `name`.
    #[cold]
    pub fn object_failure(&self, error: ObjectError, name: &'static str, received: Value) -> Failure {
        match error {
            ObjectError::Fault(fault) => self.fault(fault),
            ObjectError::NoMemory => Failure::no_memory("no memory for an object"),
            ObjectError::Argument(expected) => Failure::argument(code::OUT_OF_RANGE, name, expected, received),
            ObjectError::Aborted => self.aborted(),
        }
    }

    /// The failure of a `traverse` that the present call from JavaScript ran. The exception is kept at the number of callbacks around the call,
    /// because other callbacks may fail before the call ends.
    fn aborted(&self) -> Failure {
        let place = kept::FAILURES + self.scripts.running.get();
        let error = self.kept.get(place);
        self.kept.clear(place);
        match error {
            Ok(error) if self.env().type_of(error) == napi_sys::ValueType::napi_object => Failure::made(error),
            _ => Failure::of_status(napi_sys::Status::napi_cannot_run_js),
        }
    }

    /// Calls a function of the face with the object of kept values and other arguments. JavaScript values live only during the call. Returns
    /// what the closure makes of the answer or the exception; `None` if there was no call.
    pub fn call_face<const N: usize, T>(
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
            // A call inside the callback broke an invariant, or found one broken, so the calls around it cannot go on.
            resume_unwind(Box::new("broken"));
        }
        answer
    }

    /// Calls a function of the face that returns nothing.
    pub fn notify<const N: usize>(&self, function: Called, arguments: impl FnOnce(Env, Value) -> Result<[Value; N], Failure>) {
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

    /// Reports exceptions that could not be caught, once no callback is running.
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

    /// Reports a failure that no call can throw.
    #[cold]
    pub fn tell(&self, failure: Failure) {
        self.notify(Called::Failure, |env, kept| {
            let error = failure.error(env, |arguments| self.realm.call(env, Called::MakeError, arguments));
            error
                .or_else(|exception| exception.ok_or_else(|| Failure::of_status(napi_sys::Status::napi_cannot_run_js)))
                .map(|error| [kept, error])
        });
    }

    /// Moves uncollectable objects to the end of `gc.garbage`. A script can change that array. Its elements are defined and not set, so no
    /// script runs here; an array that refuses them gets none.
    pub fn give_garbage(&self, objects: &[usize]) {
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
                // If JavaScript cannot run any more, no script can look at it.
                let message = "expected gc.garbage to be an array that can grow; no script has the object and its reference now";
                self.tell(Failure::new(code::CALLBACK_RESULT, message).at(object));
            }
            env.close_scope(scope);
        }
    }

    /// Whether the execution is being terminated, for calls that take long. Node-API cannot say, so this calls a function that does nothing.
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
        // Without a handle there is no call.
        let looks = self.kept.object().is_some();
        let ended = looks && self.while_busy(|| matches!(self.realm.call(env, Called::Look, &[]), Err(None)));
        env.close_scope(scope);
        self.scripts.looked.set((!ended).then_some(now));
        ended
    }

    /// As [`is_interrupted`](Self::is_interrupted), but returns the failure that ends a call.
    pub fn go_on(&self) -> Result<(), Failure> {
        if self.is_interrupted() { Err(Failure::of_status(napi_sys::Status::napi_cannot_run_js)) } else { Ok(()) }
    }

    /// Copies bytes, perhaps within one block, in pieces. Between them it looks whether the thread is being ended.
    ///
    /// # Errors
    /// When the thread is being ended; some of the bytes have been copied then.
    ///
    /// # Safety
    /// The bytes can be read and written, also after a call of JavaScript that does nothing.
    pub unsafe fn copy(&self, to: *mut u8, from: *const u8, count: usize) -> Result<(), Failure> {
        let pieces = count.div_ceil(PIECE);
        // As memmove: bytes that are read last must not be overwritten first.
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

    /// As [`copy`](Self::copy), from native memory to a typed array.
    ///
    /// # Errors
    /// As for `copy`.
    ///
    /// # Safety
    /// As for `copy`.
    pub unsafe fn copy_out(&self, to: Bytes, from: *const u8, count: usize) -> Result<(), Failure> {
        // SAFETY: the caller's promise.
        unsafe {
            match to.memory() {
                Some(memory) => self.copy(memory, from, count)?,
                None => to.fill(0, from, count),
            }
        }
        Ok(())
    }

    /// As [`copy`](Self::copy), from a typed array to native memory.
    ///
    /// # Errors
    /// As for `copy`.
    ///
    /// # Safety
    /// As for `copy`.
    pub unsafe fn copy_in(&self, to: *mut u8, from: Bytes, count: usize) -> Result<(), Failure> {
        // SAFETY: the caller's promise.
        unsafe {
            match from.memory() {
                Some(memory) => self.copy(to, memory, count)?,
                None => from.copy_to(to, count),
            }
        }
        Ok(())
    }

    pub fn has_callbacks(&self) -> bool {
        let env = self.env();
        let scope = env.open_scope();
        let length = self.kept.get(kept::CALLBACKS).ok().and_then(|callbacks| env.length(callbacks));
        env.close_scope(scope);
        length.is_some_and(|length| length != 0)
    }
}
