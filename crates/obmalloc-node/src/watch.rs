//! Buffers over outside memory that another thread has when their worker ends.
//!
//! A script can take a buffer out of a view (`ArrayBuffer.prototype.transfer`) and post it to another thread. When a worker ends, Node.js calls
//! the finalizers of all buffers over outside memory, wherever that memory is used by then. It begins with the newest, detaches each before it
//! calls its finalizer, and does all this before it calls any hook. So in a worker the newest buffer is always the watch's, which no script
//! sees: its finalizer comes first, and looks which of the others are no longer where they were made.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::{Rc, Weak};

use napi_sys as sys;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::failure::Failure;
use crate::js::{Env, Value};
use crate::probe::reached;

/// Watches the buffers of one worker.
#[derive(Default)]
pub(crate) struct Watch {
    /// The last number that was given.
    last: Cell<usize>,
    /// The watch's own buffer, which this keeps, and the number of the buffer that it was made after.
    newest: Cell<Option<(sys::napi_ref, usize)>>,
    /// Those that have not been finalized, by their numbers. This does not keep them.
    buffers: RefCell<FxHashMap<usize, sys::napi_ref>>,
    /// Those that another thread may have, once the worker is ending.
    moved: RefCell<FxHashSet<usize>>,
}

/// What the watch's own buffer refers to.
struct Newest {
    watch: Weak<Watch>,
    number: usize,
}

unsafe extern "C" fn finalize(env: sys::napi_env, _: *mut c_void, newest: *mut c_void) {
    // SAFETY: called by Node.js on its own thread, once, with what `follow` gave it.
    let (env, newest) = unsafe { (Env::new(env), Box::from_raw(newest.cast::<Newest>())) };
    // If this fails, no caller is left to tell.
    let _ = catch_unwind(AssertUnwindSafe(|| {
        reached("watch::finalize");
        // One that is older has been let go of. The newest is kept, so only the end of its worker finalizes it.
        let is_newest = |watch: &Rc<Watch>| watch.newest.get().is_some_and(|(_, number)| number == newest.number);
        if let Some(watch) = newest.watch.upgrade().filter(is_newest) {
            watch.look(env);
        }
    }));
}

/// Whether this is the thread that the process began with, which is no worker's. JavaScript cannot be asked: a script may say anything.
fn is_main_thread() -> bool {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        // SAFETY: takes nothing, and always gives the thread's number.
        let thread = unsafe { libc::syscall(libc::SYS_gettid) };
        thread == libc::c_long::from(std::process::id())
    }
    #[cfg(target_os = "macos")]
    {
        // SAFETY: may be called by any thread.
        unsafe { libc::pthread_main_np() != 0 }
    }
    #[cfg(not(any(target_os = "linux", target_os = "android", target_os = "macos")))]
    false
}

impl Watch {
    /// A watch, unless this is the main thread: the process ends with that.
    pub fn needed() -> Option<Rc<Self>> {
        (!is_main_thread()).then(Rc::default)
    }

    /// A number for another buffer.
    pub fn number(&self) -> usize {
        self.last.set(self.last.get() + 1);
        self.last.get()
    }

    /// Watches a buffer that has just been made. It is not to be given to a script where this fails.
    pub fn enter(self: &Rc<Self>, env: Env, number: usize, buffer: Value) -> Result<(), Failure> {
        let watched = env.reference(buffer)?;
        self.follow(env, number).inspect_err(|_| env.delete_reference(watched))?;
        self.buffers.borrow_mut().insert(number, watched);
        Ok(())
    }

    /// Makes the watch's own buffer anew, after the one with this number.
    fn follow(self: &Rc<Self>, env: Env, number: usize) -> Result<(), Failure> {
        let newest = Box::into_raw(Box::new(Newest { watch: Rc::downgrade(self), number }));
        // SAFETY: no script sees the buffer, and nothing reads or writes it; its memory goes with the finalizer.
        let made = unsafe { env.outside_buffer(newest.cast(), size_of::<Newest>(), Some(finalize), newest.cast()) };
        let buffer = made.map_err(|status| {
            // SAFETY: made above, and refused.
            drop(unsafe { Box::from_raw(newest) });
            Failure::of_status(status)
        })?;
        if let Some((before, _)) = self.newest.replace(Some((env.keep(buffer)?, number))) {
            env.delete_reference(before);
        }
        Ok(())
    }

    /// A buffer is being finalized. Whether another thread may have its memory.
    pub fn forget(&self, env: Env, number: usize) -> bool {
        if let Some(reference) = self.buffers.borrow_mut().remove(&number) {
            env.delete_reference(reference);
        }
        self.moved.borrow_mut().remove(&number)
    }

    /// The worker is ending: looks where the buffers are.
    fn look(&self, env: Env) {
        for (&number, &reference) in &*self.buffers.borrow() {
            let scope = env.open_scope();
            if env.referent(reference).is_none_or(|buffer| env.is_detached(buffer)) {
                self.moved.borrow_mut().insert(number);
            }
            env.close_scope(scope);
        }
    }
}
