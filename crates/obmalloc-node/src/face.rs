//! The functions of the face that the binding calls. The face passes them once, and the binding never reads a property to find one. The binding
//! does not hold them, because that would keep their JavaScript context alive: each heap holds them, among the values that it keeps in JavaScript.
//!
//! An execution that is being terminated (a script's time is over, a worker is ended) runs no more JavaScript. Node-API says so once, and from
//! Node.js 22 on V8 forgets it then. So the binding remembers it until it returns to JavaScript. Until then it calls nothing, and at the end it
//! makes V8 terminate the execution again.

use std::cell::{Cell, OnceCell, RefCell};
use std::ffi::{CString, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{self, NonNull};
use std::rc::{Rc, Weak};

use napi_sys as sys;
use obmalloc::Domain;

use crate::engine;
use crate::failure::{Details, Failure, code};
use crate::js::{Env, Outcome, UNDEFINED, Value};
use crate::probe::reached;
use crate::watch::Watch;

/// A function of the face, in the order in which the face passes them. The first argument of all but the first three is the object of values
/// that the heap keeps.
#[derive(Clone, Copy)]
pub(crate) enum Called {
    MakeError,
    MakeBytes,
    /// Does nothing. If it can be called, the execution is not being terminated.
    Look,
    Traverse,
    Hook,
    Weakref,
    Collection,
    Text,
    Failure,
    Escaped,
    Allocate,
    ArenaAlloc,
    ArenaFree,
}

const COUNT: usize = Called::ArenaFree as usize + 1;

/// The binding's state for one copy of the face in one thread's JavaScript.
pub(crate) struct Realm {
    this: Weak<Self>,
    /// The number of the heap that the next call is about, so that a call need not find it among its arguments. The face writes it before each
    /// call, through an array over this memory.
    chosen: Cell<u32>,
    /// The heap that was found last, and its number.
    found: Cell<(u32, Option<NonNull<c_void>>)>,
    heaps: RefCell<Heaps>,
    /// Whether the execution is being terminated.
    ended: Cell<bool>,
    functions: OnceCell<[sys::napi_ref; COUNT]>,
    /// In a worker: watches the buffers over its heaps' memory.
    watch: Option<Rc<Watch>>,
    /// The other realms of the environment.
    others: RefCell<Vec<Rc<Self>>>,
}

/// Heaps by their numbers, from 1 up.
#[derive(Default)]
struct Heaps {
    places: Vec<Option<NonNull<c_void>>>,
    free: Vec<u32>,
}

impl Heaps {
    fn enter(&mut self, heap: NonNull<c_void>) -> u32 {
        if self.places.is_empty() {
            self.places.push(None);
        }
        let number = self.free.pop().unwrap_or(self.places.len() as u32);
        match self.places.get_mut(number as usize) {
            Some(place) => *place = Some(heap),
            None => self.places.push(Some(heap)),
        }
        number
    }

    fn forget(&mut self, number: u32) {
        if self.places.get_mut(number as usize).and_then(Option::take).is_some() {
            self.free.push(number);
        }
    }
}

impl Realm {
    fn new() -> Rc<Self> {
        Rc::new_cyclic(|this| Self {
            this: this.clone(),
            chosen: Cell::default(),
            found: Cell::default(),
            heaps: RefCell::default(),
            ended: Cell::default(),
            functions: OnceCell::default(),
            watch: Watch::needed(),
            others: RefCell::default(),
        })
    }

    /// Makes the realm of the addon's exports, which has no face. It lives as long as its environment.
    pub fn of_environment(env: Env) -> Result<Rc<Self>, Failure> {
        let realm = Self::new();
        let data = Rc::into_raw(Rc::clone(&realm)).cast_mut().cast();
        let kept = env.set_instance_data(data, Some(finalize));
        if kept.is_err() {
            // SAFETY: made just above, and not taken since.
            drop(unsafe { Rc::from_raw(data.cast_const().cast::<Self>()) });
        }
        kept.map(|()| realm)
    }

    /// Makes another realm, which lives as long as this one.
    pub fn another(&self) -> Rc<Self> {
        let realm = Self::new();
        self.others.borrow_mut().push(Rc::clone(&realm));
        realm
    }

    pub fn share(&self) -> Result<Rc<Self>, Failure> {
        self.this.upgrade().ok_or_else(|| Failure::new(code::INTERNAL, "a binding without its environment"))
    }

    /// The heap that the next call is about.
    #[inline(always)]
    pub fn chosen(&self) -> Option<NonNull<c_void>> {
        let ((number, heap), chosen) = (self.found.get(), self.chosen.get());
        if chosen == number { heap } else { self.find(chosen) }
    }

    /// Sets which heap that is.
    pub fn choose(&self, number: u32) {
        self.chosen.set(number);
    }

    #[inline(never)]
    fn find(&self, number: u32) -> Option<NonNull<c_void>> {
        let heap = self.heaps.borrow().places.get(number as usize).copied().flatten();
        self.found.set((number, heap));
        heap
    }

    /// The array through which the face chooses: a `Uint32Array` with the number of a heap. Undefined if the engine has no outside buffers.
    pub fn chooser(&self, env: Env) -> Outcome {
        // SAFETY: the cell stays where it is and lives as long as the environment, and so longer than any JavaScript.
        unsafe { env.outside_number(self.chosen.as_ptr()) }.or_else(|_| env.undefined())
    }

    /// Gives a heap its number, and chooses it.
    pub fn enter(&self, heap: NonNull<c_void>) -> u32 {
        let number = self.heaps.borrow_mut().enter(heap);
        self.chosen.set(number);
        self.found.set((number, Some(heap)));
        number
    }

    /// Called when a heap goes. Another heap may get its number.
    pub fn forget(&self, number: u32) {
        self.heaps.borrow_mut().forget(number);
        self.found.set((0, None));
    }

    /// In a worker: watches the buffers over its heaps' memory.
    pub fn watch(&self) -> Option<&Rc<Watch>> {
        self.watch.as_ref()
    }

    #[inline(always)]
    pub fn is_ended(&self) -> bool {
        self.ended.get()
    }

    /// Returns to JavaScript in an execution that is being terminated.
    #[cold]
    pub fn terminate(&self, env: Env) {
        self.ended.set(false);
        if !engine::terminate() {
            env.throw_plainly(c"ERR_INTERNAL", c"JavaScript cannot run");
        }
    }

    /// Calls a function of the face.
    ///
    /// # Errors
    /// The exception; `None` if the execution is being terminated or the face is gone.
    pub fn call(&self, env: Env, function: Called, arguments: &[Value]) -> Result<Value, Option<Value>> {
        if self.ended.get() {
            return Err(None);
        }
        let reference = self.functions.get().ok_or(None)?[function as usize];
        let answer = env.call(env.referent(reference).ok_or(None)?, arguments);
        match answer {
            Err(None) => {
                self.ended.set(true);
                Err(None)
            }
            // V8 gives null for a termination. If a script throws null, the face throws the object of kept values instead.
            Err(Some(thrown)) if arguments.first().is_some_and(|&kept| env.are_same(thrown, kept)) => Err(env.null().ok()),
            answer => answer,
        }
    }

    pub fn throw(&self, env: Env, failure: Failure) {
        failure.throw(env, |arguments| self.call(env, Called::MakeError, arguments));
    }
}

unsafe extern "C" fn finalize(_: sys::napi_env, data: *mut c_void, _: *mut c_void) {
    // SAFETY: called by Node.js once, with what `of_environment` gave it.
    let realm = unsafe { Rc::from_raw(data.cast_const().cast::<Realm>()) };
    // If this panics, there is no caller that could be told.
    let _ = catch_unwind(AssertUnwindSafe(move || {
        reached("face::finalize");
        drop(realm);
    }));
}

/// `(number)`: chooses a heap, if a number is given. Returns the number of the chosen one.
pub(crate) fn choose(realm: &Realm, env: Env, [number]: [Value; 1]) -> Outcome {
    if let Some(number) = env.double(number) {
        realm.choose(number as u32);
    }
    env.number(realm.chosen.get().into())
}

/// Takes the functions of the face.
pub(crate) fn serve(realm: &Realm, env: Env, functions: [Value; COUNT]) -> Outcome {
    let mut references = [ptr::null_mut(); COUNT];
    for (reference, function) in references.iter_mut().zip(functions) {
        *reference = env.reference(function)?;
    }
    let served = realm.functions.set(references);
    served.map_err(|_| Failure::new(code::INTERNAL, "expected one face, but there is one already"))?;
    Ok(UNDEFINED)
}

/// Errors that the face makes.
impl Failure {
    /// The error that `make`, a function of the face, makes of it.
    ///
    /// # Errors
    /// The exception of `make`, if there is one.
    #[cold]
    pub fn error(self, env: Env, make: impl FnOnce(&[Value]) -> Result<Value, Option<Value>>) -> Result<Value, Option<Value>> {
        self.0.ok_or(None)?.error(env, make)
    }

    /// Throws the error that `make`, a function of the face, makes of it.
    #[cold]
    pub fn throw(self, env: Env, make: impl FnOnce(&[Value]) -> Result<Value, Option<Value>>) {
        let Some(details) = self.0 else {
            env.throw_plainly(c"ERR_INTERNAL", c"JavaScript cannot run");
            return;
        };
        match details.error(env, make) {
            Ok(error) | Err(Some(error)) => env.throw(error),
            // A plain error needs no help from the face.
            Err(None) => {
                let code = CString::new(details.code).unwrap_or_default();
                let message = CString::new(details.message.as_ref()).unwrap_or_default();
                env.throw_plainly(&code, &message);
            }
        }
    }
}

impl Details {
    fn error(&self, env: Env, make: impl FnOnce(&[Value]) -> Result<Value, Option<Value>>) -> Result<Value, Option<Value>> {
        if let Some(error) = self.made {
            return Ok(error);
        }
        let undefined = || env.undefined();
        let value = |value: Option<Value>| value.filter(|&value| value != UNDEFINED).map_or_else(undefined, Ok);
        let number = |value: Option<usize>| value.map_or_else(undefined, |value| env.integer(value));
        let text = |value: Option<&str>| value.map_or_else(undefined, |value| env.string(value));
        let domain = |value: Option<Domain>| text(value.map(Domain::name));
        let arguments = || {
            Ok([
                env.string(self.code)?,
                env.string(&self.message)?,
                text(self.name)?,
                value(self.received)?,
                value(self.cause)?,
                number(self.address)?,
                domain(self.domain)?,
                domain(self.allocated.and(self.domain))?,
                domain(self.allocated)?,
                number(self.base)?,
                number(self.object)?,
                number(self.referent)?,
                self.offset.map_or_else(undefined, |offset| env.number(offset as f64))?,
                text(self.report.as_deref())?,
                number(self.index)?,
            ])
        };
        make(&arguments().map_err(|_: Failure| None)?)
    }
}
