//! Finds the views whose memory another thread may use when a worker ends.
//!
//! A script can take the buffer out of a view (`ArrayBuffer.prototype.transfer`) and post it to another thread. When a worker ends, Node.js
//! calls the finalizers of all buffers over outside memory, even if another thread has that memory. It calls them for the newest buffer first,
//! detaches each buffer before its finalizer, and does all this before any cleanup hook. So in a worker the watch makes a buffer of its own
//! after each view, which no script sees. At the end of the worker its finalizer is the first one. It looks for the buffers that are detached
//! or gone by then: a script may have moved those.

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
    /// The number of the newest view's buffer.
    last: Cell<usize>,
    /// A strong reference to the watch's own buffer, and the number of the view's buffer before it.
    newest: Cell<Option<(sys::napi_ref, usize)>>,
    /// Weak references to the views' buffers that have not been finalized, by their numbers.
    buffers: RefCell<FxHashMap<usize, sys::napi_ref>>,
    /// Once the worker ends: the buffers that another thread may have.
    moved: RefCell<FxHashSet<usize>>,
}

/// The data of the watch's own buffer.
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
        // The watch keeps its newest buffer, so only the end of the worker finalizes that one.
        let is_newest = |watch: &Rc<Watch>| watch.newest.get().is_some_and(|(_, number)| number == newest.number);
        if let Some(watch) = newest.watch.upgrade().filter(is_newest) {
            watch.look(env);
        }
    }));
}

/// Whether this is the first thread of the process, and so no worker's. The system is asked, because a script can change what JavaScript says.
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
    /// A watch; `None` in the main thread, because the process ends with it.
    pub fn needed() -> Option<Rc<Self>> {
        (!is_main_thread()).then(Rc::default)
    }

    /// A number for a new buffer.
    pub fn number(&self) -> usize {
        self.last.set(self.last.get() + 1);
        self.last.get()
    }

    /// Watches a new buffer. If this fails, no script may get the buffer.
    pub fn enter(self: &Rc<Self>, env: Env, number: usize, buffer: Value) -> Result<(), Failure> {
        let watched = env.reference(buffer)?;
        self.follow(env, number).inspect_err(|_| env.delete_reference(watched))?;
        self.buffers.borrow_mut().insert(number, watched);
        Ok(())
    }

    /// Makes a new buffer of the watch's own, after the view's buffer with this number.
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

    /// Called when a buffer is finalized. Returns whether another thread may have its memory.
    pub fn forget(&self, env: Env, number: usize) -> bool {
        if let Some(reference) = self.buffers.borrow_mut().remove(&number) {
            env.delete_reference(reference);
        }
        self.moved.borrow_mut().remove(&number)
    }

    /// Called when the worker ends: finds the buffers that scripts may have moved.
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
