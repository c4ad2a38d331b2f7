//! Running hooks, and keeping the objects that the heap needs meanwhile.

use core::cell::Cell;

use super::{ObjectHeap, header};
use crate::domain::Fault;

/// An object to which the heap itself has a reference while hooks run. Hooks cannot give that reference back.
pub(super) struct Held {
    object: usize,
    /// Whether the object is a weak reference, and those linked behind it are held too.
    and_next: bool,
    before: *const Held,
}

/// Ends the hold when it is dropped, also when a hook unwinds.
struct LetGo<'heap>(&'heap Cell<*const Held>, *const Held);

impl Drop for LetGo<'_> {
    fn drop(&mut self) {
        self.0.set(self.1);
    }
}

/// Closes a heap for good when it is dropped: a hook has unwound.
struct Closes<'heap>(&'heap ObjectHeap);

impl Drop for Closes<'_> {
    fn drop(&mut self) {
        self.0.heap.checked().inner().close();
    }
}

/// How many steps a call of a hook counts for.
const HOOK_STEPS: usize = 1 << 6;

impl ObjectHeap {
    /// Runs a hook.
    pub(crate) fn in_hook<T>(&self, hook: impl FnOnce() -> T) -> T {
        self.count_steps(HOOK_STEPS);
        self.depth.set(self.depth.get() + 1);
        let closes = Closes(self);
        let result = self.heap.calling_back(hook);
        core::mem::forget(closes);
        self.depth.set(self.depth.get() - 1);
        result
    }

    /// Runs something that may call hooks, and keeps an object meanwhile. The caller has a reference to the object.
    pub(crate) fn holding<T>(&self, object: usize, run: impl FnOnce() -> T) -> T {
        self.hold(Held { object, and_next: false, before: self.held.get() }, run)
    }

    /// Runs something that may call hooks, and keeps a weak reference and those behind it meanwhile. The caller has a reference to each.
    pub(crate) fn holding_weakrefs<T>(&self, first: usize, run: impl FnOnce() -> T) -> T {
        self.hold(Held { object: first, and_next: true, before: self.held.get() }, run)
    }

    #[inline]
    fn hold<T>(&self, held: Held, run: impl FnOnce() -> T) -> T {
        let _until_then = LetGo(&self.held, held.before);
        self.held.set(&raw const held);
        run()
    }

    /// Whether the last reference to an object is the heap's own.
    #[inline(always)]
    pub(crate) fn is_held(&self, object: usize) -> bool {
        !self.held.get().is_null() && self.find_held(object)
    }

    #[cold]
    #[inline(never)]
    fn find_held(&self, object: usize) -> bool {
        // SAFETY: the caller gives an object. Weak references that are held as a chain have no referent any more.
        let may_follow = unsafe { header::kind(object).is_weakref() && header::wr_object(object) == 0 };
        let mut next = self.held.get();
        // SAFETY: each lives in a call of `hold` that has not returned, and so do the weak references that it leads to.
        while let Some(held) = unsafe { next.as_ref() } {
            let mut other = held.object;
            while other != 0 {
                if other == object {
                    return true;
                }
                // SAFETY: as above.
                other = if held.and_next && may_follow { unsafe { header::wr_next(other) } } else { 0 };
            }
            next = held.before;
        }
        self.is_to_be_called(object)
    }

    /// The fault, if guard bytes of a destroyed object were damaged.
    #[cold]
    #[inline(never)]
    pub(super) fn result_for_hooks(&self) -> Result<(), Fault> {
        self.heap.checked().take_fault_of_hooks().map_or(Ok(()), Err)
    }
}
