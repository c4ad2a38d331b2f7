//! Room `core`: a heap as the binding has it, its state, and the values that it keeps. Leans on the ground, and on nothing that calls it.

pub(crate) mod guests;
pub(crate) mod kept;
pub(crate) mod telling;
pub(crate) mod views;

use std::cell::{Cell, RefCell, UnsafeCell};
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ptr::NonNull;
use std::rc::{Rc, Weak};
use std::sync::{Mutex, MutexGuard, PoisonError};

use napi_sys as sys;
use obmalloc::{Domain, Fault, FaultKind, ObjectHeap, TakeDown, TypeId};
use rustc_hash::FxHashMap;

use crate::face::Realm;
use crate::failure::{Failure, code};
use crate::js::{Env, Outcome, Value};
use crate::probe::reached;
use crate::shell::{Chosen, internal};
use guests::Guests;
use kept::Kept;
use telling::Scripts;
use views::Views;

/// The largest error, in bytes, of a heap's size as V8 knows it.
const REPORT_STEP: i64 = 1 << 20;

/// Which calls a heap takes now.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum State {
    /// All calls. The face tests for this 0.
    Open = 0,
    /// All calls, but the collection that an allocation scheduled runs first.
    Due,
    /// Calls that only look, because a type's `traverse` is running.
    Traversing,
    /// None, because a callback of its arena allocator is running.
    Busy,
    /// Only calls of its own allocators that a script took out, because a callback of a domain's allocator is running.
    Asking,
    /// None any more.
    Closed,
    /// Only `close`, because a free block's link is broken.
    Corrupted,
    /// Only `close`, because a call panicked.
    Poisoned,
}

/// What the face looks at before it uses a block's memory without a call: a 32-bit number. The face goes on only if its first two bytes are 0.
#[repr(C, align(4))]
struct Gate {
    state: Cell<State>,
    /// Whether the heap's tables do not say enough about its blocks. That is so with debug hooks, guests or a quarantine, and while a buffer keeps
    /// the memory of a freed block, which is live for the tables.
    careful: Cell<bool>,
    /// Whether there may be objects.
    typed: Cell<bool>,
    zero: u8,
}

const _: () = assert!(size_of::<Gate>() == size_of::<u32>());

/// A heap. It lives as long as the handle in JavaScript, and any view of its blocks.
///
/// Invariants:
/// 1. `heap` holds a heap until the state is closed, and beyond that while a buffer over its memory is reachable; it is taken out only by
///    [`close`], [`Core::release_if_closed`] and by dropping, when no call is running. `down` has what is left of it then.
/// 2. JavaScript runs only from [`guests`](crate::hooks::guests), with the state at busy or asking, and from [`Scripts`](crate::hooks), which count
///    it: in both cases closing is refused, so that a call that has a reference to the heap at that time keeps it.
/// 3. Whether the heap is plain changes only in calls that update the attention before they end; where JavaScript runs meanwhile, the state is
///    busy or asking.
/// 4. `marks` holds the live blocks about which more is known than the ledger knows; `attention` is set while it is not empty, blocks or arenas come
///    from a script, or there are debug hooks; and until the end of a call whose callback took that away.
pub(crate) struct Core {
    gate: Gate,
    attention: Cell<bool>,
    heap: UnsafeCell<Option<ObjectHeap>>,
    down: Cell<Option<TakeDown>>,
    /// Valid while there is a handle.
    env: Env,
    pub realm: Rc<Realm>,
    /// Its number in the realm, while there is a handle.
    number: Cell<u32>,
    pub kept: Kept,
    reported: Cell<i64>,
    /// Bytes that a typed array can have (`buffer.constants.MAX_LENGTH`). V8 ends the process when it is to make a longer one.
    pub longest_array: usize,
    /// First byte and bytes of the heap's region, while the heap has it.
    region: Cell<(usize, usize)>,
    pub this: Weak<Core>,
    /// Counts how often JavaScript ran or a buffer was detached. After that, code that uses an array's bytes must look them up again.
    pub disturbances: Cell<u64>,
    pub marks: RefCell<FxHashMap<usize, Mark>>,
    pub views: Views,
    pub guests: Guests,
    pub slots: RefCell<Vec<usize>>,
    pub scripts: Scripts,
    /// The types that JavaScript has defined, in order.
    pub types: RefCell<Vec<TypeId>>,
}

/// What the binding knows of a live block beyond the ledger.
pub(crate) enum Mark {
    /// It has a view.
    Viewed(Rc<views::View>),
    /// It was freed, but a script may still have a buffer over it, so its memory is not used again yet.
    Retired(Domain, Rc<views::View>),
}

thread_local! {
    /// The heaps of this thread's JavaScript, by their addresses.
    static HEAPS: RefCell<BTreeMap<*const Core, Weak<Core>>> = const { RefCell::new(BTreeMap::new()) };
}

/// The regions of all heaps of all threads that have one: bytes, by the first.
static REGIONS: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());

impl Core {
    /// The heap, if it may be used now. If a collection is due, it runs first, and may run JavaScript.
    #[inline(always)]
    pub fn heap(&self) -> Result<&ObjectHeap, Failure> {
        if self.gate.state.get() == State::Open
            && let Some(heap) = self.heap_in_use()
        {
            return Ok(heap);
        }
        self.heap_when_due()
    }

    #[cold]
    #[inline(never)]
    fn heap_when_due(&self) -> Result<&ObjectHeap, Failure> {
        let Some(heap) = self.heap_in_use().filter(|_| self.gate.state.get() == State::Due) else { return Err(self.unusable()) };
        if !self.scripts.are_running() {
            self.gate.state.set(State::Open);
            heap.run_scheduled();
            if let Some(failure) = self.take_guest_failure(heap) {
                self.tell(failure);
            }
            self.update_attention();
        }
        Ok(heap)
    }

    /// The heap, if it may be looked at now, which a `traverse` may do too.
    pub fn heap_to_look(&self) -> Result<&ObjectHeap, Failure> {
        match self.heap_in_use() {
            Some(heap) if self.gate.state.get() == State::Traversing => Ok(heap),
            _ => self.heap(),
        }
    }

    /// The heap, if it takes all calls, and no short one for a block calls JavaScript or leaves a failure to look for.
    #[cfg(target_family = "wasm")]
    pub fn plain_heap(&self) -> Option<&ObjectHeap> {
        let is_plain = self.gate.state.get() == State::Open && !self.needs_attention();
        self.heap_in_use().filter(|heap| is_plain && !heap.is_quarantining())
    }

    /// The heap, for other heaps, if no call of a domain is running.
    pub fn heap_between_calls(&self) -> Option<&ObjectHeap> {
        self.heap_in_use().filter(|_| matches!(self.gate.state.get(), State::Open | State::Due))
    }

    /// Called after a call that made objects, which may have made a collection due.
    pub fn note_scheduled(&self, heap: &ObjectHeap) {
        if self.gate.state.get() == State::Open && heap.is_scheduled() {
            self.gate.state.set(State::Due);
        }
    }

    #[cold]
    pub fn unusable(&self) -> Failure {
        match self.gate.state.get() {
            State::Traversing => {
                Failure::new(code::GC_IN_PROGRESS, "expected a heap that may be changed, but a type's traverse is running")
            }
            State::Busy | State::Asking => {
                Failure::new(code::REENTRANT, "expected a heap that is not in use, but one of its callbacks is running")
            }
            State::Corrupted => Failure::new(
                code::HEAP_CORRUPTED,
                "a free block of this heap was written to, as was found earlier; the heap can only be closed",
            ),
            State::Poisoned => {
                Failure::new(code::INTERNAL, "the heap broke an invariant of its own earlier; it can only be closed")
            }
            State::Open | State::Due | State::Closed => {
                Failure::new(code::HEAP_CLOSED, "expected an open heap, but this one has been closed")
            }
        }
    }

    /// The heap, from inside one of its calls; `None` once it has been taken out.
    pub fn heap_in_use(&self) -> Option<&ObjectHeap> {
        // SAFETY: invariants 1 and 2.
        unsafe { (*self.heap.get()).as_ref() }
    }

    pub fn env(&self) -> Env {
        self.env
    }

    /// Sets the state during a callback. The earlier state comes back, unless the heap broke meanwhile.
    pub fn in_state<T>(&self, state: State, run: impl FnOnce() -> T) -> T {
        let before = self.gate.state.replace(state);
        let result = run();
        if !self.is_broken() {
            self.gate.state.set(before);
        }
        result
    }

    pub fn state(&self) -> State {
        self.gate.state.get()
    }

    /// Runs something that may call JavaScript.
    pub fn while_busy<T>(&self, run: impl FnOnce() -> T) -> T {
        self.disturbances.set(self.disturbances.get() + 1);
        self.in_state(State::Busy, run)
    }

    /// As [`while_busy`](Self::while_busy), for a callback of a guest, in the state that it runs in.
    pub fn while_asking<T>(&self, state: State, run: impl FnOnce() -> T) -> T {
        self.disturbances.set(self.disturbances.get() + 1);
        self.in_state(state, run)
    }

    /// Whether it takes no call but `close`.
    pub fn is_broken(&self) -> bool {
        matches!(self.gate.state.get(), State::Corrupted | State::Poisoned)
    }

    pub fn poison(&self) {
        self.gate.state.set(State::Poisoned);
    }

    /// Whether calls must take the slow way.
    #[inline(always)]
    pub fn needs_attention(&self) -> bool {
        self.attention.get()
    }

    pub fn update_attention(&self) {
        let changed = self.heap_in_use().is_some_and(|heap| heap.has_debug_hooks() || heap.calls_guests());
        // In a callback, the call around it may still have a failure of a guest that is not in any more.
        let waits = self.attention.get() && self.scripts.are_running();
        self.attention.set(changed || waits || !self.marks.borrow().is_empty());
        let plain = self.heap_in_use().is_some_and(ObjectHeap::is_plain);
        self.gate.careful.set(!plain || self.views.are_retired());
    }

    /// A type may have been defined.
    pub fn note_types(&self, heap: &ObjectHeap) {
        self.gate.typed.set(heap.has_types());
    }

    /// The address of the number that the face looks at before it uses memory without a call. It is valid while there is a handle.
    pub fn gate(&self) -> NonNull<u32> {
        NonNull::from(&self.gate).cast()
    }

    /// Now and then tells V8 how much of the heap's memory has been in use. If V8 knew of whole arenas, it would collect garbage after every few
    /// dozen small heaps.
    #[inline(always)]
    pub fn report(&self, env: Env, heap: &ObjectHeap) {
        let change = heap.touched() as i64 - self.reported.get();
        if !(-REPORT_STEP..=REPORT_STEP).contains(&change) {
            self.report_change(env, change);
        }
    }

    /// As [`report`](Self::report), after a free. Does nothing if the heap still holds as much as V8 knows of.
    #[inline(always)]
    pub fn report_free(&self, env: Env, heap: &ObjectHeap) {
        if (heap.held() as i64) < self.reported.get() {
            self.report(env, heap);
        }
    }

    #[cold]
    fn report_change(&self, env: Env, change: i64) {
        self.reported.set(self.reported.get() + change);
        env.adjust_external_memory(change);
    }

    /// The failure for a fault. A block that is not of this heap may belong to another heap; the failure says so.
    #[cold]
    pub fn fault(&self, mut fault: Fault) -> Failure {
        if fault.kind == FaultKind::ForeignPointer && self.is_another_heaps(fault.address) {
            fault.kind = FaultKind::WrongHeap;
        }
        if fault.kind == FaultKind::HeapCorrupted && self.heap_in_use().is_some_and(|heap| heap.is_corrupted()) {
            self.gate.state.set(State::Corrupted);
        }
        fault.into()
    }

    /// The fault that debug hooks found during a call that could not return it. Inside a callback it waits for the end of the call around it.
    #[cold]
    #[inline(never)]
    fn take_fault_slowly(&self) -> Option<Failure> {
        if self.scripts.are_running()
            || self.is_broken()
            || matches!(self.gate.state.get(), State::Busy | State::Asking | State::Closed)
        {
            return None;
        }
        let heap = self.heap_in_use()?;
        if let Some(fault) = heap.take_late_fault() {
            self.tell(self.fault(fault));
        }
        heap.take_fault().map(|fault| self.fault(fault))
    }

    /// Whether an address belongs to another heap of this thread, or lies in the region of any heap.
    pub fn is_another_heaps(&self, address: usize) -> bool {
        let inside = |(&base, &len): (&usize, &usize)| base != self.region.get().0 && address - base < len;
        let owns = |other: Rc<Self>| {
            !std::ptr::eq(&raw const *other, self)
                // A closed heap may have given back the arenas that this would read.
                && !matches!(other.state(), State::Closed | State::Poisoned)
                && other.heap_in_use().is_some_and(|heap| heap.blocks().owns(address))
        };
        // Nothing runs JavaScript here, so no heap is dropped while the table is borrowed.
        regions().range(..=address).next_back().is_some_and(inside)
            || HEAPS.try_with(|heaps| heaps.borrow().values().filter_map(Weak::upgrade).any(owns)) == Ok(true)
    }

    /// Gives back all memory that can go now.
    pub fn close(&self, env: Env) -> Result<(), Failure> {
        if self.scripts.are_running() || matches!(self.gate.state.get(), State::Busy | State::Asking) {
            return Err(Failure::new(code::REENTRANT, "expected a heap that is not in use, but one of its callbacks is running"));
        }
        let poisoned = self.gate.state.get() == State::Poisoned;
        if !views::detach_all(self, env) {
            return Err(Failure::of_status(sys::Status::napi_cannot_run_js));
        }
        self.forget_region();
        self.slots.replace(Vec::new());
        let mut down = self.down.take();
        if !self.views.are_reachable() {
            // SAFETY: invariant 1; no call is running.
            match unsafe { (*self.heap.get()).take() } {
                // Broken code is not run again.
                Some(heap) if poisoned && !heap.is_closed() => std::mem::forget(heap),
                Some(heap) => down = Some(heap.take_down()),
                None => {}
            }
        }
        self.report_change(env, -self.reported.get());
        // If a buffer still lies in its memory, the heap goes with that buffer.
        let Some(mut down) = down else {
            self.gate.state.set(State::Closed);
            return Ok(());
        };
        self.gate.state.set(State::Busy);
        let done = down.go_on(|| self.is_interrupted());
        self.gate.state.set(State::Closed);
        if !done {
            // Another `close` goes on; without one the rest goes with the core. What a script threw does not outlive this call.
            let _ = down.take_guest_fault();
            self.forget_failures();
            self.down.set(Some(down));
            return Err(Failure::of_status(sys::Status::napi_cannot_run_js));
        }
        down.take_guest_fault().map_or(Ok(()), |fault| Err(self.guest_failure(fault)))
    }

    /// Called when a buffer over its memory is gone. If the heap was closed and this was the last such buffer, the heap goes.
    pub fn release_if_closed(&self) {
        if self.gate.state.get() == State::Closed && !self.views.are_reachable() {
            // SAFETY: invariant 1; after closing there are no calls.
            drop(unsafe { (*self.heap.get()).take() });
        }
    }

    /// Forgets the region, once: later another heap may have a region there.
    fn forget_region(&self) {
        let (base, len) = self.region.take();
        if len != 0 {
            regions().remove(&base);
        }
    }
}

impl Drop for Core {
    /// The handle is gone, so nothing can call this heap. This calls neither JavaScript nor Node-API, because the environment may be gone
    /// too.
    fn drop(&mut self) {
        self.forget_region();
        let heap = self.heap.get_mut().take();
        if self.gate.state.get() == State::Poisoned && heap.as_ref().is_some_and(|heap| !heap.is_closed()) {
            // As in `close`.
            std::mem::forget(heap);
        }
        // At the end of a thread the table may be gone already.
        let _ = HEAPS.try_with(|heaps| heaps.borrow_mut().remove(&(&raw const *self)));
    }
}

fn regions() -> MutexGuard<'static, BTreeMap<usize, usize>> {
    REGIONS.lock().unwrap_or_else(PoisonError::into_inner)
}

unsafe extern "C" fn finalize_handle(env: sys::napi_env, core: *mut c_void, _: *mut c_void) {
    // SAFETY: called by Node.js on its own thread, with what `open` gave it, once.
    let (env, core) = unsafe { (Env::new(env), Rc::from_raw(core.cast_const().cast::<Core>())) };
    core.realm.forget(core.number.get());
    core.kept.release();
    // Now, because the heap may outlive its environment: there is one for each time that a thread loads the addon.
    core.report_change(env, -core.reported.get());
    // If this panics, there is no caller that could be told.
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        reached("heap::finalize_handle");
        drop(core);
    }));
}

impl Core {
    /// Makes the core of a heap. `kept` is the object with the JavaScript values that the heap keeps.
    pub fn new(env: Env, realm: &Realm, (heap, longest_array): (ObjectHeap, usize), kept: Value) -> Result<Rc<Self>, Failure> {
        let kept = Kept::new(env, kept)?;
        let region = heap.region();
        let realm = realm.share()?;
        let core = Rc::new_cyclic(|this| Core {
            this: this.clone(),
            gate: Gate { state: Cell::new(State::Open), careful: Cell::default(), typed: Cell::default(), zero: 0 },
            attention: Cell::new(false),
            env,
            realm,
            number: Cell::new(0),
            kept,
            reported: Cell::new(0),
            longest_array,
            region: Cell::new(region),
            disturbances: Cell::new(0),
            marks: RefCell::default(),
            views: Views::default(),
            guests: Guests::default(),
            down: Cell::new(None),
            slots: RefCell::default(),
            scripts: Scripts::default(),
            types: RefCell::default(),
            heap: UnsafeCell::new(Some(heap)),
        });
        core.update_attention();
        if region.1 != 0 {
            regions().insert(region.0, region.1);
        }
        // At the end of a thread the table may be gone already. Then other heaps do not find this one.
        let _ = HEAPS.try_with(|heaps| heaps.borrow_mut().insert(Rc::as_ptr(&core), Rc::downgrade(&core)));
        Ok(core)
    }

    /// Makes the JavaScript value that keeps the heap.
    pub fn handle(self: &Rc<Self>) -> Outcome {
        let owned = Rc::into_raw(Rc::clone(self)).cast_mut();
        let handle = self.env.external(owned.cast(), Some(finalize_handle));
        match NonNull::new(owned) {
            Some(core) if handle.is_ok() => self.number.set(self.realm.enter(core.cast())),
            // SAFETY: made just above, and not taken since.
            _ => drop(unsafe { Rc::from_raw(owned) }),
        }
        handle
    }
}

impl Chosen for Core {
    #[inline(always)]
    fn needs_attention(&self) -> bool {
        self.attention.get()
    }

    fn take_fault(&self) -> Option<Failure> {
        if self.attention.get() { self.take_fault_slowly() } else { None }
    }

    fn tell(&self, failure: Failure) {
        Self::tell(self, failure);
    }

    fn broke(&self) -> Failure {
        // A callback that found a broken link leaves the rest of the heap whole, so its memory can go back.
        if self.gate.state.get() == State::Corrupted {
            return self.unusable();
        }
        self.poison();
        internal()
    }
}
