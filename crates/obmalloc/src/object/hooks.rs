//! Running hooks, and keeping the objects that the heap needs meanwhile.

use core::cell::Cell;
use core::iter::successors;

use super::handle::{Object, Quiet, WeakRef};
use super::{Hooks, ObjectHeap};
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
    /// Runs a hook, which may use the heap.
    pub(crate) fn in_hook<T>(&self, quiet: &mut Quiet<'_>, hook: impl FnOnce(&dyn Hooks) -> T) -> T {
        quiet.lend(|| self.run_hook(hook))
    }

    /// Runs a `traverse` hook. The caller has seen to it that such a hook can only look.
    pub(super) fn run_hook<T>(&self, hook: impl FnOnce(&dyn Hooks) -> T) -> T {
        self.count_steps(HOOK_STEPS);
        self.depth.set(self.depth.get() + 1);
        let closes = Closes(self);
        let result = self.heap.calling_back(|| hook(&*self.hooks));
        core::mem::forget(closes);
        self.depth.set(self.depth.get() - 1);
        result
    }

    /// Runs something that may call hooks, and keeps an object meanwhile. The caller has a reference to the object.
    pub(crate) fn holding<T>(&self, object: usize, run: impl FnOnce() -> T) -> T {
        self.hold(Held { object, and_next: false, before: self.held.get() }, run)
    }

    /// Runs something that may call hooks, and keeps a weak reference and those behind it meanwhile. The caller has a reference to each.
    ///
    /// # Safety
    /// There is a weak reference at `first`.
    pub(crate) unsafe fn holding_weakrefs<T>(&self, first: usize, run: impl FnOnce() -> T) -> T {
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
    pub(crate) fn is_held(&self, object: Object<'_>, quiet: &Quiet<'_>) -> bool {
        !self.held.get().is_null() && self.find_held(object, quiet)
    }

    #[cold]
    #[inline(never)]
    fn find_held(&self, object: Object<'_>, quiet: &Quiet<'_>) -> bool {
        // Weak references that are held as a chain have no referent any more.
        let may_follow = object.weakref().is_some_and(|reference| reference.referent().is_none());
        let mut next = self.held.get();
        // SAFETY: each lives in a call of `hold` that has not returned, and so do the weak references that it leads to.
        while let Some(held) = unsafe { next.as_ref() } {
            // SAFETY: as above.
            let chain = || successors(Some(unsafe { WeakRef::known(held.object, quiet) }), |reference| reference.next());
            let is_in_chain = || chain().any(|reference| reference.address() == object.address());
            if held.object == object.address() || held.and_next && may_follow && is_in_chain() {
                return true;
            }
            next = held.before;
        }
        self.is_to_be_called(object, quiet)
    }

    /// The fault, if guard bytes of a destroyed object were damaged.
    #[cold]
    #[inline(never)]
    pub(super) fn result_for_hooks(&self) -> Result<(), Fault> {
        self.heap.checked().take_fault_of_hooks().map_or(Ok(()), Err)
    }
}
