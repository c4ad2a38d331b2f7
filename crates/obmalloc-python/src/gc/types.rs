//! The program's kinds as heap types of CPython, written as one would in C. Instances visit and drop what they hold in the order of their
//! slots. Their types are no part of the graph: they are kept alive and untracked, and instances do not visit them.

use std::cell::Cell;
use std::ffi::{CString, c_int, c_uint, c_void};
use std::ptr;

use obmalloc_proof::{KINDS, Kind, Session, Slot};

use super::ffi::{self, Pointer, TypeSlot, TypeSpec, Visit};
use super::python::Python;

/// An instance. The variable part follows the fields.
#[repr(C)]
pub struct Instance {
    /// `ob_refcnt`; its upper half holds flags in some releases, and is not ours.
    refcount: u32,
    _flags: u32,
    kind_object: Pointer,
    /// `ob_size`, and 0 where there is no variable part.
    nitems: isize,
    /// Index in [`KINDS`].
    kind: usize,
    weakrefs: Pointer,
    slots: [Pointer; 0],
}

/// Where the members of `PyTypeObject` lie that `PyType_FromSpec` cannot set in every release. The same from 3.8 to 3.15.
mod offset {
    pub const FLAGS: usize = 168;
    pub const TRAVERSE: usize = 184;
    pub const WEAKLISTOFFSET: usize = 208;
    pub const DEL: usize = 376;
    pub const FINALIZE: usize = 392;
}

thread_local! {
    /// The session that runs at present, which types call back.
    static CURRENT: Cell<Option<(*const Python, *const Session)>> = const { Cell::new(None) };
}

/// Runs `body` with hooks that reach `session`.
pub fn with_session(python: &Python, session: &Session, body: impl FnOnce()) {
    CURRENT.set(Some((python, session)));
    body();
    CURRENT.set(None);
}

/// Calls `body` with the session that runs at present.
pub fn current<R>(body: impl FnOnce(&Python, &Session) -> R) -> R {
    let (python, session) = CURRENT.get().expect("hooks run only while a program does");
    // SAFETY: `with_session` holds both while they are set.
    body(unsafe { &*python }, unsafe { &*session })
}

impl Instance {
    /// # Safety
    /// `object` is an instance of one of the types here.
    pub unsafe fn of<'a>(object: Pointer) -> &'a mut Self {
        // SAFETY: the caller's promise; hooks hold no reference across a call.
        unsafe { &mut *object.cast() }
    }

    /// Number of fields and items.
    pub fn len(&self) -> usize {
        KINDS[self.kind].fields + self.nitems as usize
    }

    /// Sets the count, which makes it immortal if it is large enough for that.
    pub fn set_refcount(&mut self, count: u32) {
        self.refcount = count;
    }

    /// Number of weak references with callbacks to it.
    pub fn callbacks(&self) -> usize {
        let (mut count, mut weakref) = (0, self.weakrefs.cast::<ffi::Weakref>());
        // SAFETY: the list leads from one weak reference to the next, and null ends it.
        while let Some(this) = unsafe { weakref.as_ref() } {
            count += usize::from(!this.callback.is_null());
            weakref = this.next;
        }
        count
    }

    pub fn slot(&mut self, index: usize) -> *mut Pointer {
        assert!(index < self.len(), "slot {index} of {}", self.len());
        // SAFETY: the instance has that many slots.
        unsafe { self.slots.as_mut_ptr().add(index) }
    }

    /// Turns the memory that an allocation gave into an instance without references.
    ///
    /// # Safety
    /// `object` comes from an allocation of the type for `kind` with `nitems` items.
    pub unsafe fn begin(object: Pointer, kind: usize, nitems: usize) {
        // SAFETY: the caller's promise.
        let this = unsafe { Self::of(object) };
        if !KINDS[kind].items {
            this.nitems = 0;
        }
        debug_assert_eq!(this.nitems as usize, nitems, "the size of the variable part");
        this.kind = kind;
        this.weakrefs = ptr::null_mut();
        for index in 0..this.len() {
            // SAFETY: the instance has that many slots.
            unsafe { *this.slot(index) = ptr::null_mut() };
        }
    }
}

fn kind_of(object: Pointer) -> &'static Kind {
    // SAFETY: only called with instances.
    &KINDS[unsafe { Instance::of(object) }.kind]
}

unsafe extern "C" fn traverse(object: Pointer, visit: Visit, argument: Pointer) -> c_int {
    let kind = kind_of(object);
    let visited = match kind.traverse {
        // SAFETY: CPython traverses instances; those that it tracks are complete.
        Slot::Native | Slot::All => unsafe { Instance::of(object) }.len(),
        Slot::First | Slot::Nothing => current(|_, session| session.visited(object as usize)),
    };
    for index in 0..visited {
        // SAFETY: as above.
        let held = unsafe { *Instance::of(object).slot(index) };
        if !held.is_null() {
            // SAFETY: the visitor and its argument are CPython's. It may look at this instance, which no reference is held to.
            let result = unsafe { visit(held, argument) };
            if result != 0 {
                return result;
            }
        }
    }
    0
}

/// `Py_CLEAR` of every slot.
unsafe fn clear_slots(object: Pointer) {
    // SAFETY: as in `traverse`; the caller keeps the object alive.
    unsafe {
        for index in 0..Instance::of(object).len() {
            let slot = Instance::of(object).slot(index);
            let held = slot.replace(ptr::null_mut());
            if !held.is_null() {
                ffi::Py_DecRef(held);
            }
        }
    }
}

unsafe extern "C" fn clear(object: Pointer) -> c_int {
    if kind_of(object).clear == Slot::Native {
        // SAFETY: the collector holds a reference.
        unsafe { clear_slots(object) };
    } else {
        current(|python, session| session.clear(python, object as usize));
    }
    0
}

unsafe extern "C" fn finalize(object: Pointer) {
    current(|python, session| session.finalize(python, object as usize));
}

/// `tp_del` as `slot_tp_del` was: the object lives again while it runs.
unsafe extern "C" fn del(object: Pointer) {
    // SAFETY: `dealloc` calls it with an instance whose count is 0.
    unsafe {
        Instance::of(object).refcount = 1;
        current(|python, session| session.del(python, object as usize));
        let count = &mut Instance::of(object).refcount;
        if (*count as i32) > 0 {
            *count -= 1;
        }
    }
}

fn track(object: Pointer, kind: &Kind) {
    if kind.gc {
        // SAFETY: only called with instances that are being destroyed and are not tracked.
        unsafe { ffi::PyObject_GC_Track(object) };
    }
}

fn untrack(object: Pointer, kind: &Kind) {
    if kind.gc {
        // SAFETY: only called with instances.
        unsafe { ffi::PyObject_GC_UnTrack(object) };
    }
}

/// The steps of `subtype_dealloc`.
unsafe extern "C" fn dealloc(object: Pointer) {
    let kind = kind_of(object);
    // SAFETY: CPython destroys instances, once.
    let kind_object = unsafe { Instance::of(object) }.kind_object;
    untrack(object, kind);
    if kind.finalize {
        track(object, kind);
        // SAFETY: as above.
        if unsafe { ffi::PyObject_CallFinalizerFromDealloc(object) } < 0 {
            return;
        }
        untrack(object, kind);
    }
    if kind.weakrefs {
        current(|python, _| python.clear_weakrefs(object));
    }
    if kind.del {
        track(object, kind);
        // SAFETY: as above.
        unsafe { del(object) };
        // SAFETY: as above; an instance that lives again is still there.
        if unsafe { Instance::of(object) }.refcount > 0 {
            return;
        }
        untrack(object, kind);
        // The finalizer may have made weak references.
        // SAFETY: as above; each call takes the first weak reference off the list.
        unsafe {
            while !Instance::of(object).weakrefs.is_null() {
                ffi::_PyWeakref_ClearRef(Instance::of(object).weakrefs);
            }
        }
    }
    if kind.dealloc {
        current(|_, session| session.dealloc(object as usize));
    }
    // SAFETY: as above; this was the last use of the instance, which had a reference to its type.
    unsafe {
        clear_slots(object);
        if kind.gc {
            ffi::PyObject_GC_Del(object);
        } else {
            ffi::PyObject_Free(object);
        }
        ffi::Py_DecRef(kind_object);
    }
}

/// Makes the type of a kind.
pub fn make(kind: &Kind) -> Pointer {
    let name = CString::new(format!("proof.{}", kind.name)).expect("no NUL in a name");
    let slot = |slot, function: *const c_void| TypeSlot { slot, function };
    let mut slots = vec![slot(ffi::TP_DEALLOC, dealloc as *const c_void)];
    if kind.gc {
        slots.push(slot(ffi::TP_TRAVERSE, traverse as *const c_void));
        slots.push(slot(ffi::TP_CLEAR, clear as *const c_void));
    }
    if kind.finalize {
        slots.push(slot(ffi::TP_FINALIZE, finalize as *const c_void));
    }
    slots.push(slot(0, ptr::null()));
    let gc = if kind.gc { ffi::TPFLAGS_HAVE_GC } else { 0 };
    let mut spec = TypeSpec {
        // Some releases keep the pointer.
        name: name.into_raw(),
        basicsize: (size_of::<Instance>() + kind.fields * size_of::<Pointer>()) as c_int,
        itemsize: if kind.items { size_of::<Pointer>() as c_int } else { 0 },
        flags: ffi::TPFLAGS_HAVE_VERSION_TAG | ffi::TPFLAGS_HAVE_FINALIZE | gc,
        slots: slots.as_ptr(),
    };
    // SAFETY: the spec lives through the call.
    let made = ffi::checked(unsafe { ffi::PyType_FromSpec(&mut spec) }, "PyType_FromSpec");
    // SAFETY: the members are where every release has them, which the assertions look at.
    let get = |offset: usize| unsafe { *made.byte_add(offset).cast::<usize>() };
    // SAFETY: as above.
    let set = |offset: usize, value: usize| unsafe { *made.byte_add(offset).cast::<usize>() = value };
    // SAFETY: a type.
    assert_eq!(get(offset::FLAGS), unsafe { ffi::PyType_GetFlags(made) } as usize, "tp_flags");
    if kind.gc {
        assert_eq!(get(offset::TRAVERSE), traverse as *const c_void as usize, "tp_traverse");
    }
    assert_eq!(get(offset::FINALIZE), if kind.finalize { finalize as *const c_void as usize } else { 0 }, "tp_finalize");
    if kind.weakrefs {
        set(offset::WEAKLISTOFFSET, std::mem::offset_of!(Instance, weakrefs));
    }
    if kind.del {
        set(offset::DEL, del as *const c_void as usize);
    }
    // SAFETY: types are containers.
    unsafe { ffi::PyObject_GC_UnTrack(made) };
    made
}

const _: () = assert!(size_of::<c_uint>() == 4 && size_of::<Instance>() == 40);
