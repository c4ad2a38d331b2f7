//! The functions of the face that the binding calls. The face gives them once, and no property is read for one ever again. The binding does not
//! keep them, because they keep the JavaScript context that they are of: each heap does, with what it keeps in JavaScript.
//!
//! An execution that is being terminated (the time of a script is over, a worker is ended) runs no more JavaScript. Node-API tells of that once,
//! and from Node.js 22 on V8 has forgotten it by then. So the binding remembers it until it returns to JavaScript, calls nothing until then, and
//! has V8 terminate the execution once more.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::{Rc, Weak};

use napi_sys as sys;

use crate::failure::{Failure, code};
use crate::js::{Env, Outcome, UNDEFINED, Value};
use crate::shell::reached;

/// A function of the face, in the order in which it gives them. All but the first three are given what the face keeps of the heap first.
#[derive(Clone, Copy)]
pub(crate) enum Called {
    MakeError,
    MakeBytes,
    /// Does nothing: that it can be called says that the execution is not being terminated.
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

/// One copy of the binding in one thread's JavaScript.
pub(crate) struct Realm {
    this: Weak<Self>,
    /// Whether the execution is being terminated.
    ended: Cell<bool>,
    face: RefCell<Option<Rc<Face>>>,
}

pub(crate) struct Face {
    realm: Rc<Realm>,
    functions: [sys::napi_ref; COUNT],
}

impl Realm {
    /// Makes a realm that lives as long as its environment.
    pub fn new(env: Env) -> Result<Rc<Self>, Failure> {
        let realm = Rc::new_cyclic(|this| Self { this: this.clone(), ended: Cell::new(false), face: RefCell::default() });
        let data = Rc::into_raw(Rc::clone(&realm)).cast_mut().cast();
        let kept = env.set_instance_data(data, Some(finalize));
        if kept.is_err() {
            // SAFETY: made just above, and nobody took it.
            drop(unsafe { Rc::from_raw(data.cast_const().cast::<Self>()) });
        }
        kept.map(|()| realm)
    }

    #[inline(always)]
    pub fn is_ended(&self) -> bool {
        self.ended.get()
    }

    /// The face that heaps made from now on have.
    pub fn face(&self) -> Option<Rc<Face>> {
        self.face.borrow().clone()
    }

    /// Returns to JavaScript an execution that is being terminated.
    #[cold]
    pub fn terminate(&self, env: Env) {
        self.ended.set(false);
        if !env.terminate() {
            env.throw_plainly(c"ERR_INTERNAL", c"JavaScript cannot run");
        }
    }

    pub fn throw(&self, env: Env, failure: Failure) {
        let face = self.face();
        failure.throw(env, |arguments| match face {
            Some(face) => face.call(env, Called::MakeError, arguments),
            None => Err(None),
        });
    }
}

unsafe extern "C" fn finalize(_: sys::napi_env, data: *mut c_void, _: *mut c_void) {
    // SAFETY: called by Node.js once, with what `new` gave it.
    let realm = unsafe { Rc::from_raw(data.cast_const().cast::<Realm>()) };
    // Should that break an invariant, there is nobody left to tell.
    let _ = catch_unwind(AssertUnwindSafe(move || {
        reached("face::finalize");
        // The face has the realm.
        realm.face.take();
    }));
}

impl Face {
    pub fn realm(&self) -> &Realm {
        &self.realm
    }

    /// Calls a function of the face's. On an exception, gives that, and nothing when the execution is being terminated: then nothing is
    /// called either.
    pub fn call(&self, env: Env, function: Called, arguments: &[Value]) -> Result<Value, Option<Value>> {
        if self.realm.ended.get() {
            return Err(None);
        }
        let function = env.referent(self.functions[function as usize]).ok_or(None)?;
        let answer = env.call(function, arguments);
        match answer {
            Err(None) => {
                self.realm.ended.set(true);
                Err(None)
            }
            // V8 says null for a termination; a function in which a script threw null throws what is kept of the heap instead.
            Err(Some(thrown)) if arguments.first().is_some_and(|&kept| env.are_same(thrown, kept)) => Err(env.null().ok()),
            answer => answer,
        }
    }
}

/// Takes the functions of the face.
pub(crate) fn serve(realm: &Realm, env: Env, functions: [Value; COUNT]) -> Outcome {
    let mut references = [std::ptr::null_mut(); COUNT];
    for (reference, function) in references.iter_mut().zip(functions) {
        *reference = env.reference(function)?;
    }
    let realm = realm.this.upgrade().ok_or_else(|| Failure::new(code::INTERNAL, "a binding without its environment"))?;
    let face = Rc::new(Face { realm: Rc::clone(&realm), functions: references });
    realm.face.replace(Some(face));
    Ok(UNDEFINED)
}
