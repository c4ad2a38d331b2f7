//! The CPython around as a [`World`].
//!
//! Only the program may show in the collector's lists, counts and statistics. So all objects of the interpreter are untracked while programs
//! run; they are kept alive, and tracked again afterwards.
//!
//! The interpreter allocates objects for its own calls, such as argument tuples. These are untracked, taken off the count of allocations, and
//! kept until the program has ended: otherwise they would lie in a free list, where a full collection would count them.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_int};
use std::ptr;

use obmalloc_proof::{KINDS, Program, SCRIPTS, Session, World};

use super::ffi::{self, MethodDef, Pointer};
use super::state::{Quiet, State};
use super::text::Stderr;
use super::types::{self, Instance};

/// Python's `gc` module.
struct Module {
    collect: Pointer,
    enable: Pointer,
    disable: Pointer,
    is_enabled: Pointer,
    freeze: Pointer,
    unfreeze: Pointer,
    get_freeze_count: Pointer,
    get_count: Pointer,
    get_stats: Pointer,
    get_objects: Pointer,
    get_referrers: Pointer,
    get_referents: Pointer,
    get_threshold: Pointer,
    set_threshold: Pointer,
    set_debug: Pointer,
    garbage: Pointer,
    callbacks: Pointer,
}

/// What a program runs in.
pub struct Python {
    gc: Module,
    state: State,
    types: Vec<Pointer>,
    /// The callables that weak references call, one for each script.
    weakref_callbacks: Vec<Pointer>,
    /// The callable in `gc.callbacks`.
    gc_callback: Pointer,
    /// 0, 1, 2, 3: arguments made once.
    numbers: Vec<Pointer>,
    /// What the interpreter allocated for its own calls.
    attic: RefCell<Vec<Pointer>>,
    /// Set from the start of `PyObject_ClearWeakRefs` to its first callback.
    clearing: Cell<Option<Quiet>>,
    /// The interpreter's own objects, in a list that keeps them alive.
    untracked: Pointer,
    was_enabled: bool,
    thresholds: [i32; 3],
    stderr: Stderr,
    /// The count of immortal objects, where the release has them.
    immortal: Option<u32>,
}

const STEP: &str = "a step of the driver";

impl Python {
    /// Untracks everything that the interpreter holds. The GIL is held until the result is dropped.
    pub fn new() -> Self {
        let get = |object: Pointer, name: &CStr| {
            // SAFETY: the GIL is held.
            ffi::checked(unsafe { ffi::PyObject_GetAttrString(object, name.as_ptr()) }, STEP)
        };
        // SAFETY: the GIL is held.
        let module = ffi::checked(unsafe { ffi::PyImport_ImportModule(c"gc".as_ptr()) }, STEP);
        let gc = Module {
            collect: get(module, c"collect"),
            enable: get(module, c"enable"),
            disable: get(module, c"disable"),
            is_enabled: get(module, c"isenabled"),
            freeze: get(module, c"freeze"),
            unfreeze: get(module, c"unfreeze"),
            get_freeze_count: get(module, c"get_freeze_count"),
            get_count: get(module, c"get_count"),
            get_stats: get(module, c"get_stats"),
            get_objects: get(module, c"get_objects"),
            get_referrers: get(module, c"get_referrers"),
            get_referents: get(module, c"get_referents"),
            get_threshold: get(module, c"get_threshold"),
            set_threshold: get(module, c"set_threshold"),
            set_debug: get(module, c"set_debug"),
            garbage: get(module, c"garbage"),
            callbacks: get(module, c"callbacks"),
        };
        // SAFETY: as above.
        let numbers: Vec<_> = (0..4).map(|number| unsafe { ffi::PyLong_FromLong(number) }).collect();
        let was_enabled = number(invoke(gc.is_enabled)) != 0;
        invoke(gc.disable);
        let defaults = invoke(gc.get_threshold);
        // SAFETY: `get_threshold` gives a tuple of three.
        let thresholds = [0, 1, 2].map(|index| unsafe { ffi::PyLong_AsSsize_t(ffi::PyTuple_GetItem(defaults, index)) } as i32);
        let state = State::locate(|values| {
            let values = values.map(|value| {
                // SAFETY: the GIL is held.
                unsafe { ffi::PyLong_FromLong(value.into()) }
            });
            let null = ptr::null_mut::<std::ffi::c_void>();
            // SAFETY: as above; null ends the arguments.
            ffi::checked(
                unsafe { ffi::PyObject_CallFunctionObjArgs(gc.set_threshold, values[0], values[1], values[2], null) },
                STEP,
            );
        });
        let made = KINDS.iter().map(types::make).collect();
        // SAFETY: as above; the definitions are static.
        let weakref_callbacks = (0..SCRIPTS)
            .map(|script| unsafe { callable(&raw mut WEAKREF_CALLBACK, ffi::PyLong_FromLong(script as i64)) })
            .collect();
        // SAFETY: as above.
        let gc_callback = unsafe { callable(&raw mut GC_CALLBACK, ptr::null_mut()) };
        let stderr = Stderr::replace();
        // 3.12 and 3.13 keep immortal objects in the permanent generation.
        invoke(gc.collect);
        invoke(gc.unfreeze);
        let untracked = invoke(gc.get_objects);
        // SAFETY: the list lives as long as the result.
        unsafe {
            ffi::PyObject_GC_UnTrack(untracked);
            ffi::PyObject_GC_UnTrack(defaults);
            for index in 0..ffi::PyList_Size(untracked) {
                ffi::PyObject_GC_UnTrack(ffi::PyList_GetItem(untracked, index));
            }
        }
        let attic = RefCell::new(vec![defaults]);
        let mut this = Self {
            gc,
            state,
            types: made,
            weakref_callbacks,
            gc_callback,
            numbers,
            attic,
            clearing: Cell::new(None),
            untracked,
            was_enabled,
            thresholds,
            stderr,
            immortal: immortal_count(),
        };
        this.check_state();
        this
    }

    /// Checks that the counts that `locate` found are the collector's. Finds out whether an allocation or `PyObject_GC_Track` counts.
    fn check_state(&mut self) {
        let before = self.state.count();
        let counts = invoke(self.gc.get_count);
        // SAFETY: a tuple of three numbers, and an object of a type that has the collector's words.
        unsafe {
            assert_eq!(ffi::PyLong_AsSsize_t(ffi::PyTuple_GetItem(counts, 0)), before as isize, "get_count");
            self.keep(counts);
            let before = self.state.count();
            let object = ffi::_PyObject_GC_New(self.types[0]);
            self.state.counts_tracked = self.state.count() == before;
            ffi::PyObject_GC_Del(object);
            ffi::Py_DecRef(self.types[0]);
        }
        let before = self.state.count();
        self.count();
        self.objects(None);
        self.stats();
        assert_eq!(self.state.count(), before, "the driver's own calls are counted");
        if self.state.counts_tracked {
            self.state.check_incremental(self.gc.garbage, self.gc.callbacks);
        }
    }

    /// The release's own thresholds.
    pub fn default_thresholds(&self) -> [i32; 3] {
        self.thresholds
    }

    /// Runs a program on a collector in its initial state. Returns the log.
    pub fn run(&self, program: &Program) -> String {
        self.begin();
        if program.callbacks.is_some() {
            // SAFETY: `gc.callbacks` is a list.
            unsafe { ffi::PyList_Append(self.gc.callbacks, self.gc_callback) };
        }
        let session = Session::new(program);
        types::with_session(self, &session, || session.run(self));
        empty(self.gc.callbacks);
        session.into_log()
    }

    /// Empties free lists, counts and lists.
    fn begin(&self) {
        self.disable();
        self.set_debug(0);
        self.set_threshold([700, 10, 10]);
        self.release_attic();
        self.collect(2);
        while !self.state.begin() {
            self.collect(2);
        }
        assert_eq!(self.objects(None), [0usize; 0], "the collector's lists hold what is not the program's");
    }

    fn release_attic(&self) {
        for object in self.attic.take() {
            // SAFETY: the attic owns a reference.
            unsafe { ffi::Py_DecRef(object) };
        }
    }

    /// `PyObject_ClearWeakRefs`, which keeps weak references and callbacks in a tuple of its own while it calls them.
    ///
    /// That tuple must not count, must not start a collection, and must not be in the collector's lists when callbacks look at them. Before
    /// 3.12, a collection here would take weak references off the list that is being walked, which crashes the interpreter.
    pub fn clear_weakrefs(&self, object: Pointer) {
        // SAFETY: an instance that is being destroyed.
        unsafe {
            let callbacks = Instance::of(object).callbacks();
            let outer = self.clearing.replace(Some(self.state.quiet()));
            assert!(outer.is_none(), "callbacks end it before anything else is destroyed");
            ffi::PyObject_ClearWeakRefs(object);
            self.clearing.take();
            if callbacks > 0 {
                let quiet = self.state.quiet();
                // CPython's tuple is in the free list now, and is what this call gets.
                self.keep(ffi::PyTuple_New(2 * callbacks as isize));
                drop(quiet);
            }
        }
    }

    /// Called at the beginning of a callback. By then CPython has made the tuple of [`clear_weakrefs`](Self::clear_weakrefs).
    fn begin_callback(&self) {
        if let Some(quiet) = self.clearing.take() {
            let newest = self.state.newest();
            // SAFETY: what is tracked is an object.
            if !newest.is_null() && unsafe { *newest.cast::<Pointer>().add(1) == (&raw mut ffi::PyTuple_Type).cast() } {
                // SAFETY: as above.
                unsafe { ffi::PyObject_GC_UnTrack(newest) };
            }
            drop(quiet);
        }
    }

    /// Keeps what the interpreter allocated away from the collector.
    fn keep(&self, object: Pointer) -> Pointer {
        // SAFETY: a live object, most of them containers: what is no container is never tracked and never allocated as one.
        unsafe { ffi::PyObject_GC_UnTrack(object) };
        self.attic.borrow_mut().push(object);
        object
    }

    /// Calls a function. Its arguments and result are containers, but the collector's lists and counts show nothing of the call.
    fn quietly(&self, function: Pointer, arguments: &[Pointer]) -> Pointer {
        let quiet = self.state.quiet();
        let new_tuple = || {
            // SAFETY: the GIL is held.
            ffi::checked(unsafe { ffi::PyTuple_New(arguments.len() as isize) }, STEP)
        };
        let tuple = new_tuple();
        for (index, argument) in arguments.iter().enumerate() {
            set_item(tuple, index, *argument);
        }
        if !arguments.is_empty() {
            self.keep(tuple);
        }
        // SAFETY: the GIL is held, and the tuple stays.
        let result = ffi::checked(unsafe { ffi::PyObject_Call(function, tuple, ptr::null_mut()) }, STEP);
        for index in 0..arguments.len() {
            // A count of the program's objects must not show this call.
            set_item(tuple, index, ffi::none());
        }
        if !arguments.is_empty() {
            // Some releases make a tuple of their own of the arguments; it is in the free list now.
            self.keep(new_tuple());
        }
        drop(quiet);
        result
    }

    /// As [`Self::quietly`], for a function that returns a list. Returns the objects in it, borrowed.
    fn list(&self, function: Pointer, arguments: &[Pointer]) -> Vec<usize> {
        let list = self.quietly(function, arguments);
        let quiet = self.state.quiet();
        self.keep(list);
        // SAFETY: a list; what it holds is held elsewhere too.
        let items = unsafe { (0..ffi::PyList_Size(list)).map(|index| ffi::PyList_GetItem(list, index) as usize).collect() };
        empty(list);
        drop(quiet);
        items
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        self.begin();
        self.set_threshold(self.thresholds);
        self.release_attic();
        // SAFETY: the list holds objects that were tracked.
        unsafe {
            for index in 0..ffi::PyList_Size(self.untracked) {
                let object = ffi::PyList_GetItem(self.untracked, index);
                if !is_tracked(object) {
                    ffi::PyObject_GC_Track(object);
                }
            }
        }
        self.stderr.restore();
        self.state.end();
        if self.was_enabled {
            self.enable();
        }
    }
}

/// `_Py_IMMORTAL_REFCNT`, or what an object gets that becomes immortal.
fn immortal_count() -> Option<u32> {
    // SAFETY: `Py_Version` is a number, and there since 3.11.
    let version = ffi::symbol(c"Py_Version").map_or(0, |version| unsafe { *version.cast::<std::ffi::c_ulong>() });
    match version >> 16 {
        0..0x30c => None,
        0x30c..0x30e => Some(u32::MAX),
        _ => Some(3 << 30),
    }
}

fn is_tracked(object: Pointer) -> bool {
    // SAFETY: a container has the collector's two words before it.
    unsafe { *object.cast::<usize>().sub(2) != 0 }
}

/// Calls a function without arguments. The function allocates no container, or it does not matter if the collector's counts show one.
fn invoke(function: Pointer) -> Pointer {
    // SAFETY: the GIL is held; null ends the arguments.
    ffi::checked(unsafe { ffi::PyObject_CallFunctionObjArgs(function, ptr::null_mut::<std::ffi::c_void>()) }, STEP)
}

/// The number that a call returned.
fn number(object: Pointer) -> usize {
    // SAFETY: an owned reference to a number.
    unsafe {
        let value = ffi::PyLong_AsSsize_t(object);
        ffi::Py_DecRef(object);
        usize::try_from(value).expect("a number that is not negative")
    }
}

/// Puts an item into a tuple that nothing else uses.
fn set_item(tuple: Pointer, index: usize, item: Pointer) {
    // SAFETY: the GIL is held; `PyTuple_SetItem` takes over the reference made here.
    unsafe {
        ffi::Py_IncRef(item);
        ffi::PyTuple_SetItem(tuple, index as isize, item);
    }
}

fn empty(list: Pointer) {
    // SAFETY: a list.
    unsafe { ffi::PyList_SetSlice(list, 0, ffi::PyList_Size(list), ptr::null_mut()) };
}

unsafe fn callable(method: *mut MethodDef, this: Pointer) -> Pointer {
    // SAFETY: the caller gives a definition that stays.
    unsafe {
        let made = ffi::checked(ffi::PyCFunction_NewEx(method, this, ptr::null_mut()), STEP);
        ffi::PyObject_GC_UnTrack(made);
        made
    }
}

static mut WEAKREF_CALLBACK: MethodDef = MethodDef {
    name: c"weakref_callback".as_ptr(),
    function: weakref_callback as *const std::ffi::c_void,
    flags: ffi::METH_O,
    doc: ptr::null(),
};

static mut GC_CALLBACK: MethodDef = MethodDef {
    name: c"gc_callback".as_ptr(),
    function: gc_callback as *const std::ffi::c_void,
    flags: ffi::METH_FASTCALL,
    doc: ptr::null(),
};

unsafe extern "C" fn weakref_callback(script: Pointer, reference: Pointer) -> Pointer {
    // SAFETY: `callable` was given a number.
    let script = unsafe { ffi::PyLong_AsSsize_t(script) } as u8;
    types::current(|python, session| {
        python.begin_callback();
        session.weakref_callback(python, script, reference as usize);
    });
    ffi::returned_none()
}

unsafe extern "C" fn gc_callback(_: Pointer, arguments: *const Pointer, _: isize) -> Pointer {
    // SAFETY: CPython gives the phase and a dict.
    let (phase, info) = unsafe { (*arguments, *arguments.add(1)) };
    let of = |name: &CStr| {
        // SAFETY: the dict has numbers under these names, and keeps them.
        let count = unsafe { ffi::PyLong_AsSsize_t(ffi::PyDict_GetItemString(info, name.as_ptr())) };
        usize::try_from(count).expect("a count")
    };
    // SAFETY: the phase is a text.
    let start = unsafe { ffi::PyUnicode_CompareWithASCIIString(phase, c"start".as_ptr()) } == 0;
    let counts = [of(c"generation"), of(c"collected"), of(c"uncollectable")];
    types::current(|python, session| {
        // The dict was allocated for this call.
        python.state.uncount();
        // SAFETY: the attic gives this reference back.
        unsafe { ffi::Py_IncRef(info) };
        python.keep(info);
        session.gc_callback(python, if start { "start" } else { "stop" }, counts[0], counts[1], counts[2]);
    });
    ffi::returned_none()
}

fn at(address: usize) -> Pointer {
    ptr::with_exposed_provenance_mut(address)
}

impl World for Python {
    fn alloc(&self, kind: usize, nitems: usize) -> usize {
        // SAFETY: the session gives kinds that there are.
        unsafe {
            let object = ffi::checked(ffi::PyType_GenericAlloc(self.types[kind], nitems as isize), STEP);
            Instance::begin(object, kind, nitems);
            object as usize
        }
    }

    fn new_object(&self, kind: usize, nitems: usize) -> usize {
        let (spec, made) = (&KINDS[kind], self.types[kind]);
        // SAFETY: as above.
        unsafe {
            let object = match (spec.gc, spec.items) {
                (true, true) => ffi::_PyObject_GC_NewVar(made, nitems as isize),
                (true, false) => ffi::_PyObject_GC_New(made),
                (false, _) => {
                    let size = size_of::<Instance>() + spec.fields * size_of::<Pointer>();
                    ffi::PyObject_Init(ffi::PyObject_Malloc(size), made)
                }
            };
            Instance::begin(ffi::checked(object, STEP), kind, nitems);
            object as usize
        }
    }

    fn incref(&self, object: usize) {
        // SAFETY: the session gives live objects.
        unsafe { ffi::Py_IncRef(at(object)) };
    }

    fn decref(&self, object: usize) {
        // SAFETY: the session owns the reference.
        unsafe { ffi::Py_DecRef(at(object)) };
    }

    fn refcount(&self, object: usize) -> usize {
        // SAFETY: the session gives live objects; their counts fit the lower half.
        unsafe { *at(object).cast::<u32>() as usize }
    }

    fn get(&self, object: usize, slot: usize) -> usize {
        // SAFETY: the session gives live instances.
        unsafe { *Instance::of(at(object)).slot(slot) as usize }
    }

    fn set(&self, object: usize, slot: usize, value: usize) {
        // SAFETY: as above.
        unsafe {
            if value != 0 {
                ffi::Py_IncRef(at(value));
            }
            let old = Instance::of(at(object)).slot(slot).replace(at(value));
            if !old.is_null() {
                ffi::Py_DecRef(old);
            }
        }
    }

    fn track(&self, object: usize) {
        // SAFETY: the session gives containers that are not tracked.
        unsafe { ffi::PyObject_GC_Track(at(object)) };
    }

    fn untrack(&self, object: usize) {
        // SAFETY: the session gives containers.
        unsafe { ffi::PyObject_GC_UnTrack(at(object)) };
    }

    fn is_tracked(&self, object: usize) -> bool {
        is_tracked(at(object))
    }

    fn is_finalized(&self, object: usize) -> bool {
        // SAFETY: the session gives containers, which have the collector's two words before them.
        unsafe { *at(object).cast::<usize>().sub(1) & 1 != 0 }
    }

    fn new_weakref(&self, object: usize, callback: Option<u8>) -> usize {
        let callback = callback.map_or(ptr::null_mut(), |script| self.weakref_callbacks[usize::from(script) % SCRIPTS]);
        // SAFETY: the session gives instances that can be referenced weakly.
        ffi::checked(unsafe { ffi::PyWeakref_NewRef(at(object), callback) }, STEP) as usize
    }

    fn deref(&self, reference: usize) -> usize {
        // SAFETY: the session gives weak references.
        let referent = unsafe { ffi::PyWeakref_GetObject(at(reference)) };
        if referent == ffi::none() { 0 } else { referent as usize }
    }

    fn collect(&self, generation: usize) -> usize {
        let null = ptr::null_mut::<std::ffi::c_void>();
        // SAFETY: the GIL is held; null ends the arguments.
        number(ffi::checked(unsafe { ffi::PyObject_CallFunctionObjArgs(self.gc.collect, self.numbers[generation], null) }, STEP))
    }

    fn count(&self) -> [i32; 3] {
        let youngest = self.state.count();
        let counts = self.quietly(self.gc.get_count, &[]);
        let quiet = self.state.quiet();
        self.keep(counts);
        drop(quiet);
        // SAFETY: a tuple of three numbers.
        let of = |index| unsafe { ffi::PyLong_AsSsize_t(ffi::PyTuple_GetItem(counts, index)) } as i32;
        [youngest, of(1), of(2)]
    }

    fn stats(&self) -> [[usize; 3]; 3] {
        let list = self.quietly(self.gc.get_stats, &[]);
        let quiet = self.state.quiet();
        self.keep(list);
        let of = |generation: isize| {
            // SAFETY: a list of three dicts, which the attic keeps alive beyond the list.
            unsafe {
                let dict = ffi::PyList_GetItem(list, generation);
                ffi::Py_IncRef(dict);
                self.keep(dict);
                [c"collections", c"collected", c"uncollectable"].map(|name| {
                    usize::try_from(ffi::PyLong_AsSsize_t(ffi::PyDict_GetItemString(dict, name.as_ptr()))).expect("a count")
                })
            }
        };
        let stats = [of(0), of(1), of(2)];
        drop(quiet);
        stats
    }

    fn objects(&self, generation: Option<usize>) -> Vec<usize> {
        match generation {
            Some(generation) => self.list(self.gc.get_objects, &[self.numbers[generation]]),
            None => self.list(self.gc.get_objects, &[]),
        }
    }

    fn referrers(&self, object: usize) -> Vec<usize> {
        self.list(self.gc.get_referrers, &[at(object)])
    }

    fn referents(&self, object: usize) -> Vec<usize> {
        self.list(self.gc.get_referents, &[at(object)])
    }

    fn freeze(&self) {
        invoke(self.gc.freeze);
    }

    fn unfreeze(&self) {
        invoke(self.gc.unfreeze);
    }

    fn freeze_count(&self) -> usize {
        number(invoke(self.gc.get_freeze_count))
    }

    fn enable(&self) {
        invoke(self.gc.enable);
    }

    fn disable(&self) {
        invoke(self.gc.disable);
    }

    fn set_threshold(&self, thresholds: [i32; 3]) {
        // SAFETY: the GIL is held.
        let values = thresholds.map(|value| unsafe { ffi::PyLong_FromLong(value.into()) });
        self.quietly(self.gc.set_threshold, &values);
        for value in values {
            // SAFETY: the numbers are owned.
            unsafe { ffi::Py_DecRef(value) };
        }
    }

    fn set_debug(&self, flags: u32) {
        // SAFETY: the GIL is held.
        let flags = unsafe { ffi::PyLong_FromLong(flags.into()) };
        self.quietly(self.gc.set_debug, &[flags]);
        // SAFETY: the number is owned.
        unsafe { ffi::Py_DecRef(flags) };
    }

    fn take_garbage(&self) -> Vec<usize> {
        let garbage = self.gc.garbage;
        // SAFETY: a list; the references to what it holds are taken over.
        let items: Vec<_> = unsafe { (0..ffi::PyList_Size(garbage)).map(|index| ffi::PyList_GetItem(garbage, index)).collect() };
        for item in &items {
            // SAFETY: the list holds it.
            unsafe { ffi::Py_IncRef(*item) };
        }
        empty(garbage);
        items.into_iter().map(|item| item as usize).collect()
    }

    fn set_immortal(&self, object: usize) -> bool {
        let Some(count) = self.immortal else { return false };
        // SAFETY: the session gives live instances.
        unsafe { Instance::of(at(object)) }.set_refcount(count);
        true
    }

    fn run_scheduled(&self) {
        // From 3.12 it runs a collection that was scheduled, as the interpreter's loop does.
        // SAFETY: the GIL is held.
        let result = unsafe { ffi::PyErr_CheckSignals() as c_int };
        assert_eq!(result, 0, "a signal raised an exception");
    }
}
