//! Room `object`: types, object headers, type allocators, reference counts (`Objects/object.c`, `Objects/typeobject.c`). Leans on `heap`.
//!
//! Objects lie in blocks of the obj domain, laid out as the release lays them out. A [table](table) beside them knows which addresses are
//! objects, so every address is looked up before anything is read through it. The collector's own part of an [`ObjectHeap`] is in the room
//! `gc`; the only call from here to there is the allocation that starts a collection.

mod allocate;
mod blocks;
mod counts;
mod destroy;
mod dying;
mod fields;
pub(crate) mod handle;
mod hooks;
mod look;
pub(crate) mod table;
mod types;

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::{Cell, UnsafeCell};
use core::ffi::c_void;
use core::fmt;

pub use blocks::Blocks;
use dying::{Dying, Trash};
pub use fields::{Field, Value};
use hooks::Held;
use table::ObjectTable;
pub use types::{FieldInfo, FieldKind, HookSet, ItemKind, Type, TypeId, TypeSpec};

use crate::domain::{Domain, Fault, FaultKind};
use crate::gc::{Gc, Info, Phase};
use crate::guest::{GuestHeap, TakeDown};
use crate::heap::{HeapError, HeapOptions, Mode};
use crate::interrupt::{Interrupt, Patience, Undone};
use crate::pinned::Pinned;
use crate::profile::{Immortality, ObjectRules};
use crate::try_box;

/// Why an operation on objects was not done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ObjectError {
    /// An address was misused.
    Fault(Fault),
    /// There is no memory for it (`PyErr_NoMemory`).
    #[doc(alias = "PyErr_NoMemory")]
    NoMemory,
    /// An argument is wrong; the text says what was expected.
    Argument(&'static str),
    /// A hook failed, or the operation was [interrupted](ObjectHeap::set_interrupt).
    Aborted,
}

impl From<Fault> for ObjectError {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<Undone> for ObjectError {
    fn from(undone: Undone) -> Self {
        match undone {
            Undone::GivenUp => Self::Aborted,
            Undone::NoMemory => Self::NoMemory,
        }
    }
}

impl fmt::Display for ObjectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fault(fault) => fault.fmt(f),
            Self::NoMemory => f.write_str("no memory"),
            Self::Argument(expected) => write!(f, "expected {expected}"),
            Self::Aborted => f.write_str("a hook failed or interrupted it, and it was given up"),
        }
    }
}

impl core::error::Error for ObjectError {}

/// A hook failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Failed;

/// The function that a [`traverse`](Hooks::traverse) calls with each reference. The hook must return its error.
pub type Visit<'visit> = dyn FnMut(usize) -> Result<(), Fault> + 'visit;

/// The functions that a heap calls: those of types that have their own ([`HookSet`]), callbacks of weak references, and Python's
/// `gc.callbacks`.
///
/// Hooks may use the heap, except that [`traverse`](Self::traverse) must only look. A hook that unwinds closes its heap for good: every later
/// call fails ([`HeapClosed`](crate::FaultKind::HeapClosed)), and the memory goes back when the heap is dropped.
#[expect(unused_variables, reason = "the defaults do nothing")]
pub trait Hooks {
    /// `tp_traverse`: calls `visit` with the references that the object holds, each at most as often as its fields and items hold it.
    ///
    /// # Errors
    /// When the hook cannot do it: the collection stops.
    #[doc(alias("tp_traverse", "visitproc", "traverseproc", "Py_VISIT"))]
    fn traverse(&self, heap: &ObjectHeap, kind: TypeId, object: usize, visit: &mut Visit<'_>) -> Result<(), Failed> {
        Ok(())
    }
    /// `tp_clear`: drops references that may be part of a cycle.
    #[doc(alias("tp_clear", "inquiry"))]
    fn clear(&self, heap: &ObjectHeap, kind: TypeId, object: usize) {}
    /// `tp_finalize`: called at most once for an object, which it may make reachable again.
    #[doc(alias = "tp_finalize")]
    fn finalize(&self, heap: &ObjectHeap, kind: TypeId, object: usize) {}
    /// `tp_del`: called when the last reference is gone; it may make the object reachable again.
    #[doc(alias = "tp_del")]
    fn del(&self, heap: &ObjectHeap, kind: TypeId, object: usize) {}
    /// The object is being destroyed, and still has its references.
    #[doc(alias("tp_dealloc", "destructor"))]
    fn dealloc(&self, heap: &ObjectHeap, kind: TypeId, object: usize) {}
    /// The referent of a weak reference with this callback is gone.
    fn weakref_callback(&self, heap: &ObjectHeap, callback: u64, reference: usize) {}
    /// The callback will not be called any more.
    fn weakref_dropped(&self, callback: u64) {}
    /// A collection starts or has stopped (`gc.callbacks`).
    #[doc(alias = "gc.callbacks")]
    fn gc_callback(&self, heap: &ObjectHeap, phase: Phase, info: &Info) {}
    /// An automatic collection could not be done.
    #[doc(alias = "sys.unraisablehook")]
    fn collection_failed(&self, heap: &ObjectHeap, error: ObjectError) {}
    /// Text that CPython writes to its standard error (`gc.set_debug`).
    fn write(&self, text: &str) {}
}

/// No hooks at all.
pub struct NoHooks;

impl Hooks for NoHooks {}

/// A heap with types, objects and the cyclic collector. It is for one thread at a time, and may be called from its own hooks.
/// Blocks are used through [`blocks`](Self::blocks), which refuses those of objects:
///
/// ```compile_fail,E0599
/// # let options = obmalloc::HeapOptions::new(&obmalloc::profile::V3_13);
/// # let heap = obmalloc::ObjectHeap::new(options, Box::new(obmalloc::NoHooks)).unwrap();
/// # let object = 0x1000;
/// heap.free(obmalloc::Domain::Obj, object);
/// ```
pub struct ObjectHeap {
    // Field order is drop order: the heap's memory goes before `asked`, which it may call.
    pub(crate) state: UnsafeCell<State>,
    /// Outside the state, because it is read while the state is changed.
    table: UnsafeCell<ObjectTable>,
    pub(crate) rules: ObjectRules,
    /// The reference count at which counting up stops.
    refcount_limit: usize,
    /// The bit of a reference count that marks an immortal object.
    immortal_bit: usize,
    /// How many hooks are running.
    pub(crate) depth: Cell<u32>,
    /// Asks, now and then, whether to stop.
    patience: Patience,
    /// Whether there is a [`Quiet`](handle::Quiet) that is not lent to a hook.
    #[cfg(debug_assertions)]
    taken: Cell<bool>,
    /// The objects that the heap itself keeps, the latest first; null for none.
    held: Cell<*const Held>,
    pub(crate) heap: GuestHeap,
    hooks: Box<dyn Hooks>,
    /// The function that says whether to stop.
    asked: Option<Pinned<Box<dyn Fn() -> bool>>>,
}

/// The types and objects of an [`ObjectHeap`], and its collector.
pub(crate) struct State {
    #[allow(clippy::vec_box, reason = "objects point to their types, which must stay where they are")]
    pub types: Vec<Box<Type>>,
    /// Objects whose destruction waits until the one behind them is destroyed (`destroy.rs`).
    pub dying: Vec<Dying>,
    pub trash: Trash,
    pub gc: Gc,
}

impl ObjectHeap {
    /// An empty heap.
    ///
    /// # Errors
    /// When a size is out of its range, or there is no memory for the heap's tables.
    pub fn new(options: HeapOptions, hooks: Box<dyn Hooks>) -> Result<Self, HeapError> {
        let heap = GuestHeap::new(options)?;
        let rules = options.profile.objects;
        // Before the first type there are no objects, so the table is empty.
        let table = ObjectTable::new((0, 0), heap.checked().geometry().alignment).ok_or(HeapError::NoMemory)?;
        let (refcount_limit, immortal_bit) = match rules.immortality {
            Immortality::None => (usize::MAX, 0),
            Immortality::AllOnes => (u32::MAX as usize, IMMORTAL_BIT),
            Immortality::ThreeQuarters => (THREE_QUARTERS, IMMORTAL_BIT),
        };
        let state = State { types: Vec::new(), dying: Vec::new(), trash: Trash::default(), gc: Gc::new(&rules) };
        Ok(Self {
            state: UnsafeCell::new(state),
            table: UnsafeCell::new(table),
            rules,
            refcount_limit,
            immortal_bit,
            depth: Cell::new(0),
            patience: Interrupt::NEVER.patience(),
            #[cfg(debug_assertions)]
            taken: Cell::new(false),
            held: Cell::new(core::ptr::null()),
            heap,
            hooks,
            asked: None,
        })
    }

    /// From now on an operation that goes over many objects or blocks, or fills or frees a large block, asks every few milliseconds whether to
    /// stop.
    ///
    /// A search that stops fails ([`ObjectError::Aborted`]). A collection that has not found its garbage yet does nothing. Objects whose
    /// destruction has begun wait for the next destruction or collection; memory still to be given back waits for the next free. The heap stays
    /// valid.
    ///
    /// # Errors
    /// When there is no memory to remember it.
    ///
    /// # Safety
    /// `ask` does not use the heap, and does not unwind.
    pub unsafe fn set_interrupt(&mut self, ask: Box<dyn Fn() -> bool>) -> Result<(), HeapError> {
        let asked = Pinned::try_new(ask).ok_or(HeapError::NoMemory)?;
        // SAFETY: the function lives as long as the heap.
        let interrupt = unsafe { Interrupt::new(asked.as_ptr().cast(), is_to_give_up) };
        self.heap.checked().set_interrupt(interrupt);
        self.patience = interrupt.patience();
        self.asked = Some(asked);
        Ok(())
    }

    /// The state, for the length of one step that calls no hook and no function that takes the state.
    #[inline(always)]
    #[allow(clippy::mut_from_ref, reason = "the heap is used by one thread, and no two of these live at once")]
    pub(crate) fn state(&self) -> &mut State {
        // SAFETY: `ObjectHeap` is not `Sync`; each caller lets go before it calls anything that takes the state.
        unsafe { &mut *self.state.get() }
    }

    /// The table of objects. It is only replaced before there are objects.
    #[inline(always)]
    pub(crate) fn table(&self) -> &ObjectTable {
        // SAFETY: only `define_type` makes a unique reference to it, before there are objects.
        unsafe { &*self.table.get() }
    }

    /// Counts `steps` towards the next question whether to stop.
    #[inline(always)]
    pub(crate) fn count_steps(&self, steps: usize) {
        self.patience.count(steps);
    }

    /// Counts `steps`, and now and then asks whether to stop.
    #[inline(always)]
    pub(crate) fn is_interrupted_after(&self, steps: usize) -> bool {
        self.patience.is_over_after(steps)
    }

    /// As [`is_interrupted_after`](Self::is_interrupted_after), as an error.
    #[inline(always)]
    pub(crate) fn go_on_after(&self, steps: usize) -> Result<(), ObjectError> {
        if self.is_interrupted_after(steps) { Err(ObjectError::Aborted) } else { Ok(()) }
    }

    /// Runs something that calls no hook of a type, and is not interrupted.
    pub(crate) fn to_the_end<T>(&self, work: impl FnOnce() -> T) -> T {
        self.patience.is_endless.set(true);
        let result = work();
        self.patience.is_endless.set(false);
        result
    }

    /// Which calls the heap takes now.
    #[inline(always)]
    pub(crate) fn mode(&self) -> &Cell<Mode> {
        self.heap.checked().inner().mode()
    }

    /// Defines a type.
    ///
    /// # Errors
    /// When the spec contradicts itself, or there is no memory.
    pub fn define_type(&self, spec: TypeSpec) -> Result<TypeId, ObjectError> {
        let _quiet = self.begin()?;
        if self.state().types.is_empty() {
            let checked = self.heap.checked();
            let table = ObjectTable::new(checked.region(), checked.geometry().alignment).ok_or(ObjectError::NoMemory)?;
            // SAFETY: there are no types, so there is no object, and no reader of the table.
            unsafe { *self.table.get() = table };
            let mut name = String::new();
            name.try_reserve(self.rules.weakref_name.len()).map_err(|_| ObjectError::NoMemory)?;
            name.push_str(self.rules.weakref_name);
            let weakref = TypeSpec { name, gc: true, ..TypeSpec::default() };
            self.add_type(Type::weakref(Type::new(TypeId(0), weakref, &self.rules)?, &self.rules))?;
        }
        if spec.free_list != 0 && spec.items.is_some() {
            return Err(ObjectError::Argument("no free list for a type whose objects differ in size"));
        }
        let number = u32::try_from(self.state().types.len()).map_err(|_| ObjectError::NoMemory)?;
        let kind = Type::new(TypeId(number), spec, &self.rules)?;
        self.add_type(kind)
    }

    fn add_type(&self, kind: Type) -> Result<TypeId, ObjectError> {
        let id = kind.id();
        kind.reserve_free_list()?;
        let types = &mut self.state().types;
        types.try_reserve(1).map_err(|_| ObjectError::NoMemory)?;
        types.push(try_box(kind).ok_or(ObjectError::NoMemory)?);
        Ok(id)
    }

    /// A type of this heap.
    ///
    /// # Panics
    /// When `id` is another heap's, and this heap has no type with that number.
    pub fn type_info(&self, id: TypeId) -> &Type {
        // SAFETY: types are only ever added, and each stays where it is in memory.
        unsafe { &(&(*self.state.get()).types)[id.index()] }
    }

    /// A type that a program may make objects of. Fails for an unknown number, and for the weak reference: only
    /// [`new_weakref`](Self::new_weakref) makes those.
    fn kind(&self, id: TypeId) -> Result<&Type, ObjectError> {
        // SAFETY: as in `type_info`.
        let types = unsafe { &(*self.state.get()).types };
        types
            .get(id.index())
            .map(|kind| &**kind)
            .filter(|kind| !kind.is_weakref())
            .ok_or(ObjectError::Argument("a type that this heap has defined"))
    }

    /// Takes the heap down. Its memory goes back through [`TakeDown::go_on`]. No hook is called any more.
    pub fn take_down(self) -> TakeDown {
        let Self { heap, table, state, .. } = self;
        // The hooks are dropped at the end of this function.
        heap.checked().set_interrupt(Interrupt::NEVER);
        drop(state);
        let table = table.into_inner();
        let used = table.used_table(heap.checked().used());
        match try_box(table) {
            Some(table) => TakeDown::new(heap, Some((table, used))),
            None => TakeDown::new(heap, None),
        }
    }
}

/// `_Py_IMMORTAL_INITIAL_REFCNT` from 3.14 on.
const THREE_QUARTERS: usize = 3 << 30;
/// The sign of the lower 32 bits.
const IMMORTAL_BIT: usize = 1 << 31;

/// Calls the function that [`ObjectHeap::set_interrupt`] was given.
///
/// # Safety
/// `asked` is the address of that function, which is still there.
unsafe fn is_to_give_up(asked: *const c_void) -> bool {
    // SAFETY: the caller's promise.
    unsafe { (*asked.cast::<Box<dyn Fn() -> bool>>())() }
}

/// A fault about an object.
pub(crate) fn object_fault(kind: FaultKind, address: usize) -> Fault {
    Fault::new(kind, address, Domain::Obj)
}
