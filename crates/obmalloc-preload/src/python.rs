//! CPython's C interface, looked up by name: the recorder is linked to no libpython and works with the one that it finds.

use obmalloc::{Allocator, ArenaAllocator, Domain};
use std::cell::UnsafeCell;
use std::ffi::{CStr, c_char, c_int, c_long, c_void};
use std::mem::{ManuallyDrop, MaybeUninit};

/// The domains' numbers, for functions that exist once a domain.
pub const RAW: u8 = Domain::Raw as u8;
pub const MEM: u8 = Domain::Mem as u8;
pub const OBJ: u8 = Domain::Obj as u8;

/// `PyMethodDef`
#[repr(C)]
pub struct PyMethodDef {
    pub name: *const c_char,
    pub method: unsafe extern "C" fn(*mut c_void, *mut c_void) -> Object,
    pub flags: c_int,
    pub doc: *const c_char,
}

// SAFETY: names and documentation are string literals, and nothing writes to a method definition.
unsafe impl Sync for PyMethodDef {}

/// `METH_FASTCALL`
pub const METH_FASTCALL: c_int = 0x0080;

/// `METH_NOARGS`
pub const METH_NOARGS: c_int = 0x0004;

/// `PyObject *`
pub type Object = *mut c_void;

/// Declares a struct of function pointers with CPython's names, and how to look all of them up.
macro_rules! interface {
    ($(#[$doc:meta])* $name:ident { $($field:ident = $symbol:literal: fn($($argument:ty),*) $(-> $result:ty)?;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub struct $name { $(pub $field: unsafe extern "C" fn($($argument),*) $(-> $result)?,)* }

        impl $name {
            /// Looks every function up. `None` when one is not there.
            pub fn find() -> Option<Self> {
                Some(Self { $($field: {
                    let address = $crate::python::symbol($symbol)?;
                    // SAFETY: the function of that name has this signature in every CPython from 3.8 on that has it.
                    unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($argument),*) $(-> $result)?>(address) }
                },)* })
            }
        }
    };
}

pub(crate) use interface;

interface! {
    /// The functions that recording needs.
    Api {
        set_allocator = c"PyMem_SetAllocator": fn(c_int, *const Allocator);
        get_allocator = c"PyMem_GetAllocator": fn(c_int, *mut Allocator);
        set_arena_allocator = c"PyObject_SetArenaAllocator": fn(*const ArenaAllocator);
        get_arena_allocator = c"PyObject_GetArenaAllocator": fn(*mut ArenaAllocator);
        get_version = c"Py_GetVersion": fn() -> *const c_char;
        is_initialized = c"Py_IsInitialized": fn() -> c_int;
        add_pending_call = c"Py_AddPendingCall": fn(unsafe extern "C" fn(*mut c_void) -> c_int, *mut c_void) -> c_int;
        raw_malloc = c"PyMem_RawMalloc": fn(usize) -> *mut c_void;
        raw_free = c"PyMem_RawFree": fn(*mut c_void);
    }
}

interface! {
    /// The functions for asking CPython for its statistics. All need the GIL.
    Objects {
        mem_malloc = c"PyMem_Malloc": fn(usize) -> *mut c_void;
        mem_free = c"PyMem_Free": fn(*mut c_void);
        obj_malloc = c"PyObject_Malloc": fn(usize) -> *mut c_void;
        obj_free = c"PyObject_Free": fn(*mut c_void);
        import = c"PyImport_ImportModuleLevel": fn(*const c_char, Object, Object, Object, c_int) -> Object;
        modules = c"PyImport_GetModuleDict": fn() -> Object;
        dict_get = c"PyDict_GetItemString": fn(Object, *const c_char) -> Object;
        sys_get = c"PySys_GetObject": fn(*const c_char) -> Object;
        frame = c"PyEval_GetFrame": fn() -> Object;
        text_of = c"PyUnicode_AsUTF8": fn(Object) -> *const c_char;
        get_attribute = c"PyObject_GetAttrString": fn(Object, *const c_char) -> Object;
        call = c"PyObject_CallObject": fn(Object, Object) -> Object;
        new_function = c"PyCFunction_NewEx": fn(*const PyMethodDef, Object, Object) -> Object;
        new_tuple = c"PyTuple_New": fn(isize) -> Object;
        set_item = c"PyTuple_SetItem": fn(Object, isize, Object) -> c_int;
        is_subtype = c"PyType_IsSubtype": fn(Object, Object) -> c_int;
        text_length = c"PyUnicode_GetLength": fn(Object) -> isize;
        char_at = c"PyUnicode_ReadChar": fn(Object, isize) -> u32;
        int_from = c"PyLong_FromSsize_t": fn(isize) -> Object;
        int_as = c"PyLong_AsLong": fn(Object) -> c_long;
        inc_ref = c"Py_IncRef": fn(Object);
        dec_ref = c"Py_DecRef": fn(Object);
        fetch_error = c"PyErr_Fetch": fn(*mut Object, *mut Object, *mut Object);
        restore_error = c"PyErr_Restore": fn(Object, Object, Object);
        clear_error = c"PyErr_Clear": fn();
    }
}

/// A reference of our own to an object. It is given back when this is dropped, with the GIL.
pub struct Owned<'a> {
    object: Object,
    python: &'a Objects,
}

impl Owned<'_> {
    /// The object, which stays as long as this.
    pub fn object(&self) -> Object {
        self.object
    }

    /// The object, for a caller that passes the reference on.
    pub fn into_object(self) -> Object {
        ManuallyDrop::new(self).object
    }
}

impl Drop for Owned<'_> {
    fn drop(&mut self) {
        // SAFETY: `owned` got the reference and the promise that the GIL is held.
        unsafe { (self.python.dec_ref)(self.object) };
    }
}

impl Objects {
    /// Takes over what a function of CPython's returned; `None` if that is NULL.
    ///
    /// # Safety
    /// `object` is a new reference or NULL. The GIL is held until the result is dropped.
    pub unsafe fn owned(&self, object: Object) -> Option<Owned<'_>> {
        (!object.is_null()).then(|| Owned { object, python: self })
    }

    /// The attribute of an object; `None` if it has none, and then a Python error is set.
    ///
    /// # Safety
    /// The GIL is held until the result is dropped, and the object stays while it is asked.
    pub unsafe fn attribute(&self, object: Object, name: &CStr) -> Option<Owned<'_>> {
        // SAFETY: the caller's promise; the function returns a new reference.
        unsafe { self.owned((self.get_attribute)(object, name.as_ptr())) }
    }
}

/// The address of the process's symbol `name`, if there is one.
pub fn symbol(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: the name is NUL-terminated.
    let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    (!address.is_null()).then_some(address)
}

/// An address in the library or executable whose `malloc` the process calls, if it can be found. An executable that is not
/// position-independent and takes `malloc`'s address, such as Debian's CPythons, has a stub of that name, which does not tell where it leads.
/// But every library that replaces `malloc` has its own `malloc_usable_size`.
pub fn c_allocator() -> Option<*mut c_void> {
    [c"malloc", c"malloc_usable_size"].into_iter().find_map(|name| symbol(name).filter(|&found| !is_stub(found)))
}

/// Whether a function found by name is an executable's stub for a function in another library.
fn is_stub(function: *const c_void) -> bool {
    /// `RTLD_DL_SYMENT`
    const SYMBOL: c_int = 1;
    let mut info = MaybeUninit::<libc::Dl_info>::zeroed();
    let mut symbol: *const libc::Elf64_Sym = std::ptr::null();
    // SAFETY: dladdr1 takes any address, and fills both where it finds something: a symbol is null, or stays as long as its library.
    unsafe {
        let found = libc::dladdr1(function, info.as_mut_ptr(), (&raw mut symbol).cast(), SYMBOL) != 0;
        found && symbol.as_ref().is_some_and(|symbol| symbol.st_shndx == 0)
    }
}

/// The C library's own function of that name.
///
/// # Safety
/// It is a function of type `F`.
#[cfg(not(test))]
pub unsafe fn next<F: Copy>(name: &CStr) -> F {
    const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
    // SAFETY: takes any name.
    let address = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    assert!(!address.is_null(), "every C library that this is built for has it");
    // SAFETY: the caller's promise.
    unsafe { std::mem::transmute_copy(&address) }
}

impl Api {
    /// The text of `Py_GetVersion()`.
    pub fn version(&self) -> String {
        // SAFETY: may be called before initialisation; the text lives as long as the process.
        unsafe { CStr::from_ptr((self.get_version)()) }.to_string_lossy().into_owned()
    }

    /// Whether this is a debug build (`Py_DEBUG`): only those count references.
    pub fn is_debug_build(&self) -> bool {
        symbol(c"_Py_NegativeRefcount").is_some()
    }

    /// Whether CPython lives in a shared library rather than in the executable.
    pub fn is_shared(&self) -> bool {
        object_base(self.set_allocator as *const c_void) != executable_base()
    }

    /// `PyMem_GetAllocator`
    pub fn allocator(&self, domain: c_int) -> Allocator {
        let mut table = MaybeUninit::uninit();
        // SAFETY: CPython fills the whole table for each of its three domains.
        unsafe {
            (self.get_allocator)(domain, table.as_mut_ptr());
            table.assume_init()
        }
    }

    /// `PyObject_GetArenaAllocator`
    pub fn arena_allocator(&self) -> ArenaAllocator {
        let mut table = MaybeUninit::uninit();
        // SAFETY: CPython fills the whole table.
        unsafe {
            (self.get_arena_allocator)(table.as_mut_ptr());
            table.assume_init()
        }
    }
}

/// Where the executable begins.
pub fn executable_base() -> *mut c_void {
    // SAFETY: reads the process's own auxiliary vector.
    object_base(unsafe { libc::getauxval(libc::AT_PHDR) } as *const c_void)
}

/// Where the executable or library that holds `address` begins; null when nothing does.
pub fn object_base(address: *const c_void) -> *mut c_void {
    let mut info = MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: dladdr takes any address and fills the structure, which may be all zeros otherwise.
    unsafe {
        libc::dladdr(address, info.as_mut_ptr());
        info.assume_init().dli_fbase
    }
}

/// Whether this process was told to run in development mode, in which CPython puts debug hooks around its allocators.
pub fn is_in_development_mode() -> bool {
    std::env::var_os("PYTHONDEVMODE").is_some_and(|value| !value.is_empty()) || has_dev_option()
}

fn has_dev_option() -> bool {
    let arguments: Vec<_> = std::env::args_os().collect();
    arguments.iter().any(|argument| argument == "-Xdev") || arguments.windows(2).any(|pair| pair[0] == "-X" && pair[1] == "dev")
}

/// The likely reason why the allocators were replaced, as far as the environment tells.
pub fn culprit() -> String {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    if let Some(value) = set("PYTHONMALLOC") {
        format!("PYTHONMALLOC={value} (or -X dev)")
    } else if set("PYTHONDEVMODE").is_some() {
        "PYTHONDEVMODE".to_owned()
    } else if has_dev_option() {
        "-X dev".to_owned()
    } else {
        "the program (PyMem_SetAllocator or PyPreConfig.allocator)".to_owned()
    }
}

/// Whether two allocators have the same functions.
pub fn is_same(one: &Allocator, other: &Allocator) -> bool {
    std::ptr::fn_addr_eq(one.malloc, other.malloc) && std::ptr::fn_addr_eq(one.free, other.free)
}

/// A value that the constructor sets once, before any code reads it, so that reading needs no check.
pub struct SetOnce<T>(UnsafeCell<MaybeUninit<T>>);

// SAFETY: see `set`: written before there is a second thread, only read afterwards.
unsafe impl<T> Sync for SetOnce<T> {}

impl<T> SetOnce<T> {
    /// A value that is not set yet.
    pub const fn new() -> Self {
        Self(UnsafeCell::new(MaybeUninit::uninit()))
    }

    /// Sets the value.
    ///
    /// # Safety
    /// Nothing reads or sets it at the same time or has read it before.
    pub unsafe fn set(&self, value: T) {
        // SAFETY: the caller promises that no other thread looks.
        unsafe { (*self.0.get()).write(value) };
    }

    /// The value.
    ///
    /// # Safety
    /// It has been set.
    #[inline(always)]
    pub unsafe fn get(&self) -> &T {
        // SAFETY: set, as the caller promises, and never written again.
        unsafe { (*self.0.get()).assume_init_ref() }
    }
}

static API: SetOnce<Api> = SetOnce::new();

/// Keeps the interface for [`api`].
pub fn set(api: Api) {
    // SAFETY: called by the constructor, before the hooks and fork handlers that read it are installed.
    unsafe { API.set(api) };
}

/// The interface that the constructor found.
///
/// Only hooks, fork handlers and the functions that they call may ask: they run only once it is set.
pub fn api() -> &'static Api {
    // SAFETY: the constructor sets it before it installs anything that comes here.
    unsafe { API.get() }
}
