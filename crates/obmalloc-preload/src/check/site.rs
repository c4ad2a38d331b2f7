//! Finds the function and the module of an address, from the dynamic linker or from the module's own symbol table; and finds the caller of
//! an allocator, past other allocators in between.

use crate::python::{self, symbol};
use obmalloc::Allocator;
use std::ffi::{CStr, OsStr, c_int, c_void};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A place in the code.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Site {
    /// The function, as its source names it. `None` if the module names none.
    pub function: Option<String>,
    /// The path of the executable or library. `None` for code that was made at run time.
    pub module: Option<PathBuf>,
    /// Bytes from the module's beginning; without a module, the address itself.
    pub offset: usize,
}

/// Names of the functions that call the domains' allocators. They are on the stack between a hook and the caller only in builds that do not
/// turn their last call into a jump.
const API: [&str; 12] = [
    "PyMem_RawMalloc",
    "PyMem_RawCalloc",
    "PyMem_RawRealloc",
    "PyMem_RawFree",
    "PyMem_Malloc",
    "PyMem_Calloc",
    "PyMem_Realloc",
    "PyMem_Free",
    "PyObject_Malloc",
    "PyObject_Calloc",
    "PyObject_Realloc",
    "PyObject_Free",
];

/// CPython functions that free blocks which CPython took from plain `malloc` while plain `malloc` stood in raw's place. Example: 3.8 allocates
/// the main interpreter's `id_mutex` in this way in a forked child (`_PyRuntimeState_ReInitThreads`).
const MADE_PAST_THE_HOOKS: [&str; 1] = ["PyInterpreterState_Delete"];

/// Where the extension modules of the standard library are.
const LIBRARY: &[u8] = b"/lib-dynload/";

/// How the names of C++'s functions begin that pass a block to `free`: `operator delete`, for one object and for arrays.
const DELETE: [&[u8]; 2] = [b"_ZdlPv", b"_ZdaPv"];

impl Site {
    /// The site of a call, from the address that it returns to.
    pub fn of(return_address: usize) -> Self {
        // If a call is the last instruction of a function, its return address is behind the function.
        let address = return_address.wrapping_sub(1);
        let Some(info) = dl_info(address) else { return Self { function: None, module: None, offset: return_address } };
        let base = info.dli_fbase as usize;
        let module = if base == python::executable_base() as usize {
            // The linker knows the executable by the name that the user typed.
            std::fs::read_link("/proc/self/exe").ok()
        } else {
            None
        };
        let module = module.unwrap_or_else(|| Path::new(OsStr::from_bytes(text(info.dli_fname))).to_owned());
        let function = if info.dli_sname.is_null() {
            std::fs::read(&module).ok().and_then(|file| elf_function(&file, base, address))
        } else {
            Some(String::from_utf8_lossy(text(info.dli_sname)).into_owned())
        };
        let function = function.map(|name| demangled(&name));
        Self { function, module: Some(module), offset: return_address - base }
    }

    /// As [`Site::of`], from the lower half of a return address. `None` if that is not enough, or if the call is in one of an allocator's own
    /// functions and so tells nothing. `tables` are the domains' present allocators.
    pub fn of_low(low: u32, tables: &[Allocator]) -> Option<Self> {
        let address = whole(low)?;
        let tells = !is_api(address) && !tables.iter().any(|table| is_of(table, address));
        tells.then(|| Self::of(address))
    }
}

/// A function's name as its source has it, in Rust or C++; C's names stay as they are.
fn demangled(symbol: &str) -> String {
    if let Ok(rust) = rustc_demangle::try_demangle(symbol) {
        // Without the hash at its end.
        return format!("{rust:#}");
    }
    let cpp = symbol.starts_with("_Z").then(|| cpp_demangle::Symbol::new(symbol).ok()?.demangle().ok()).flatten();
    cpp.unwrap_or_else(|| symbol.to_owned())
}

/// Whether a call with this return address is in one of CPython's own allocator functions.
fn is_api(return_address: usize) -> bool {
    is_in(&API, return_address)
}

/// Whether a call of raw's `free` with this return address may free a block that no hook has seen.
pub fn frees_past_the_hooks(return_address: usize) -> bool {
    is_in(&MADE_PAST_THE_HOOKS, return_address)
}

/// Whether CPython's own code both allocated and frees a block. `low` is the lower half of the return address of the allocating call; `caller` is
/// the return address of the freeing call. For short moments CPython puts plain `malloc` in raw's place. A thread of another interpreter, or
/// without the GIL, that calls raw at such a moment gets C's block, or gives one of raw's to C.
pub fn are_cpythons(low: u32, caller: usize) -> bool {
    let python = python::object_base(python::api().raw_free as *const c_void);
    // Where CPython is in the executable, an embedding program's own code may be there too.
    let is_certain = python != python::executable_base() || has_interpreters();
    let is_own = |address: usize| {
        let Some(info) = dl_info(address.wrapping_sub(1)) else { return false };
        info.dli_fbase == python || text(info.dli_fname).windows(LIBRARY.len()).any(|part| part == LIBRARY)
    };
    is_certain && is_own(caller) && whole(low).is_some_and(is_own)
}

/// Whether there are other interpreters than the main one.
fn has_interpreters() -> bool {
    let answer = |name| {
        // SAFETY: the functions of these names have this type. They read a pointer.
        symbol(name).map(|function| unsafe { std::mem::transmute::<*mut c_void, extern "C" fn() -> *mut c_void>(function)() })
    };
    // A new interpreter is put before the others.
    answer(c"PyInterpreterState_Head") != answer(c"PyInterpreterState_Main")
}

/// Whether a call with this return address is in one of these exported functions.
fn is_in(functions: &[&str], return_address: usize) -> bool {
    dl_info(return_address.wrapping_sub(1))
        .is_some_and(|info| functions.iter().any(|name| name.as_bytes() == text(info.dli_sname)))
}

fn text<'a>(text: *const std::ffi::c_char) -> &'a [u8] {
    // SAFETY: names that the dynamic linker gives are NUL-terminated, and stay for as long as the module.
    if text.is_null() { &[] } else { unsafe { CStr::from_ptr(text) }.to_bytes() }
}

fn dl_info(address: usize) -> Option<libc::Dl_info> {
    let mut info = MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: dladdr takes any address, and fills the structure when it finds something.
    unsafe { (libc::dladdr(address as *const c_void, info.as_mut_ptr()) != 0).then(|| info.assume_init()) }
}

/// The return address of the call of the allocator, given the one that the hook has. They differ if something is in between, such as a
/// wrapper around the hook (tracemalloc is one). `table` is the domain's present allocator.
pub fn caller(return_address: usize, table: &Allocator, is_ours: bool) -> usize {
    if is_ours && !is_api(return_address) {
        return return_address;
    }
    let (frames, count) = frames();
    let frames = frames[..count].iter().skip_while(|&&frame| frame != return_address);
    let mut outside = frames.clone().copied();
    if !is_ours {
        // The wrapper may have further functions on the stack; the outermost is one of the table's.
        let found = outside.any(|frame| is_of(table, frame));
        if !found {
            // The wrapper is compiled in pieces, and nothing tells which function a piece belongs to: then its whole module counts.
            let module = python::object_base(table.malloc as *const c_void);
            outside = frames.copied();
            let first = outside.find(|&frame| python::object_base(frame as *const c_void) != module);
            return first.unwrap_or(return_address);
        }
    }
    outside.find(|&frame| !is_api(frame)).unwrap_or(return_address)
}

/// Bytes from a type's beginning to its `tp_dealloc`.
const TP_DEALLOC: usize = 48;

/// The field of a heap type that CPython frees by a call with this return address. The code that filled the field used the wrong domain for
/// this release. A type's own deallocator frees only `tp_doc` directly: as obj before 3.13, as mem from then on.
pub fn field_freed_at(return_address: usize) -> Option<&'static str> {
    let type_type = symbol(c"PyType_Type")?;
    // SAFETY: a type; in every CPython it has its deallocator there, which does not change.
    let type_dealloc = unsafe { *type_type.byte_add(TP_DEALLOC).cast::<usize>() };
    (function_start(return_address) == type_dealloc).then_some("tp_doc")
}

/// As [`caller`], for a call of C's allocator.
pub fn caller_of_c(return_address: usize) -> usize {
    let is_delete = |address: usize| {
        dl_info(address.wrapping_sub(1)).is_some_and(|info| DELETE.iter().any(|begin| text(info.dli_sname).starts_with(begin)))
    };
    if !is_delete(return_address) {
        return return_address;
    }
    let (frames, count) = frames();
    let mut outside = frames[..count].iter().copied().skip_while(|&frame| frame != return_address);
    outside.find(|&frame| !is_delete(frame)).unwrap_or(return_address)
}

/// Whether a call with this return address is in one of the allocator's functions.
fn is_of(table: &Allocator, return_address: usize) -> bool {
    let functions = [table.malloc as usize, table.calloc as usize, table.realloc as usize, table.free as usize];
    functions.contains(&function_start(return_address))
}

/// More frames than there are between a hook and its caller, including ours.
const FRAMES: usize = 32;

/// The return addresses on this thread's stack, innermost first, as far as they can be found.
fn frames() -> ([usize; FRAMES], usize) {
    unsafe extern "C" fn note(context: *mut c_void, into: *mut c_void) -> c_int {
        // SAFETY: `frames` passes this, and does not use it meanwhile.
        let (frames, count) = unsafe { &mut *into.cast::<([usize; FRAMES], usize)>() };
        if *count == FRAMES {
            return STOP;
        }
        // SAFETY: the context is the unwinder's own.
        frames[*count] = unsafe { _Unwind_GetIP(context) };
        *count += 1;
        CONTINUE
    }
    let mut into = ([0; FRAMES], 0);
    // SAFETY: the callback gets the pair and keeps nothing.
    unsafe { _Unwind_Backtrace(note, (&raw mut into).cast()) };
    into
}

/// Where the function with a return address begins; 0 if that is not known.
fn function_start(return_address: usize) -> usize {
    // SAFETY: takes any address.
    unsafe { _Unwind_FindEnclosingFunction((return_address - 1) as *mut c_void) as usize }
}

/// `_URC_NO_REASON` and `_URC_END_OF_STACK`
const CONTINUE: c_int = 0;
const STOP: c_int = 5;

// The unwinder that Rust's panics use too, so it is always there.
unsafe extern "C" {
    fn _Unwind_Backtrace(callback: unsafe extern "C" fn(*mut c_void, *mut c_void) -> c_int, argument: *mut c_void) -> c_int;
    fn _Unwind_GetIP(context: *mut c_void) -> usize;
    fn _Unwind_FindEnclosingFunction(address: *mut c_void) -> *mut c_void;
}

/// The address in code whose lower half is `low`; `None` if there are several.
fn whole(low: u32) -> Option<usize> {
    struct Search {
        low: usize,
        found: Option<usize>,
        count: usize,
    }
    unsafe extern "C" fn look(info: *mut libc::dl_phdr_info, _: usize, search: *mut c_void) -> c_int {
        // SAFETY: the linker's description of a module, and the search that `whole` passes.
        let (info, search) = unsafe { (&*info, &mut *search.cast::<Search>()) };
        for number in 0..usize::from(info.dlpi_phnum) {
            // SAFETY: the module has this many segments.
            let segment = unsafe { &*info.dlpi_phdr.add(number) };
            if segment.p_type != libc::PT_LOAD || segment.p_flags & libc::PF_X == 0 {
                continue;
            }
            let start = info.dlpi_addr as usize + segment.p_vaddr as usize;
            let mut address = start & !0xffff_ffff | search.low;
            if address < start {
                address += 1 << 32;
            }
            if address < start + segment.p_memsz as usize {
                search.found = Some(address);
                search.count += 1;
            }
        }
        0
    }
    let mut search = Search { low: low as usize, found: None, count: 0 };
    // SAFETY: the callback gets the search and keeps nothing.
    unsafe { libc::dl_iterate_phdr(Some(look), (&raw mut search).cast()) };
    search.found.filter(|_| search.count == 1)
}

/// Asks `PyGILState_Check` whether this thread may call the mem and obj domains. `false` when CPython is not initialised.
pub fn has_gil() -> bool {
    let Some(check) = symbol(c"PyGILState_Check") else { return false };
    // SAFETY: the function of that name has this signature; both may be called from any thread at any time.
    unsafe {
        (python::api().is_initialized)() != 0 && std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> c_int>(check)() != 0
    }
}

/// The function at `address`, from the symbol table of a 64-bit ELF file that was loaded at `base`. Only this table has functions that are
/// not exported; a stripped file has no such table.
fn elf_function(file: &[u8], base: usize, address: usize) -> Option<String> {
    const SYMBOL_TABLE: u64 = 2;
    const FUNCTION: u64 = 2;
    const LOAD: u64 = 1;
    // Little-endian: all machines that this library is built for are.
    let number = |at: usize, size: usize| -> Option<u64> {
        let bytes = file.get(at..at.checked_add(size)?)?;
        Some(bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    };
    let place = |at: usize| number(at, 8).map(|place| place as usize);
    if file.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (segments, segment_size, segment_count) = (place(32)?, number(54, 2)? as usize, number(56, 2)? as usize);
    let first = (0..segment_count).map(|index| segments + index * segment_size).find(|&at| number(at, 4) == Some(LOAD))?;
    // The linker knows the address of the first page; the file knows the address that this page was meant to have.
    let wanted = (address - base) as u64 + (number(first + 16, 8)? & !0xfff);

    let (sections, section_size, section_count) = (place(40)?, number(58, 2)? as usize, number(60, 2)? as usize);
    let section = |index: usize| sections.checked_add(index.checked_mul(section_size)?);
    let table = (0..section_count).filter_map(section).find(|&at| number(at + 4, 4) == Some(SYMBOL_TABLE))?;
    let (symbols, size, names) = (place(table + 24)?, place(table + 32)?, number(table + 40, 4)? as usize);
    let (names, names_size) = (place(section(names)? + 24)?, place(section(names)? + 32)?);
    let names = file.get(names..names.checked_add(names_size)?)?;
    let found = (symbols..symbols.checked_add(size)?).step_by(24).find(|&at| {
        let (kind, start, size) = (number(at + 4, 1), number(at + 8, 8), number(at + 16, 8));
        let (Some(kind), Some(start), Some(size)) = (kind, start, size) else { return false };
        kind & 15 == FUNCTION && start <= wanted && wanted - start < size
    })?;
    let name = CStr::from_bytes_until_nul(names.get(number(found, 4)? as usize..)?).ok()?;
    Some(name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_source() {
        for (symbol, name) in [
            ("_ZN4core3fmt9Formatter3pad17h0123456789abcdefE", "core::fmt::Formatter::pad"),
            ("_RNvC3foo3bar", "foo::bar"),
            ("_ZN5numpy4free5blockEPvm", "numpy::free::block(void*, unsigned long)"),
            ("PyMem_Free", "PyMem_Free"),
            ("_Zbroken", "_Zbroken"),
            ("_Z", "_Z"),
        ] {
            assert_eq!(demangled(symbol), name);
        }
    }

    #[inline(never)]
    fn not_exported() -> usize {
        std::hint::black_box(1)
    }

    #[test]
    fn function_that_is_not_exported_is_found_in_the_symbol_table() {
        let site = Site::of(not_exported as fn() -> usize as usize + 1);
        assert!(site.function.as_ref().is_some_and(|function| function.contains("not_exported")), "{site:?}");
        assert_eq!(site.module, std::env::current_exe().ok());
    }

    #[test]
    fn exported_function_and_its_library_are_named_by_the_linker() {
        let address = symbol(c"getenv").expect("the C library has it") as usize;
        let site = Site::of(address + 1);
        assert!(site.function.is_some_and(|function| function.contains("getenv")));
        assert!(site.module.is_some_and(|module| module.to_string_lossy().contains("libc")));
    }

    #[test]
    fn address_in_no_module_is_left_as_it_is() {
        assert_eq!(Site::of(4096), Site { function: None, module: None, offset: 4096 });
    }

    #[test]
    fn lower_half_of_an_address_in_code_is_enough_and_of_another_is_not() {
        let address = not_exported as fn() -> usize as usize;
        assert_eq!(whole(address as u32), Some(address));
        assert_eq!(whole(8), None);
    }

    #[test]
    fn damaged_files_name_nothing_and_break_nothing() {
        let file = std::fs::read(std::env::current_exe().expect("a test has a path")).expect("readable");
        let base = dl_info(not_exported as fn() -> usize as usize).expect("in the executable").dli_fbase as usize;
        let address = not_exported as fn() -> usize as usize;
        assert!(elf_function(&file, base, address).is_some_and(|function| function.contains("not_exported")));
        assert_eq!(elf_function(b"", base, address), None);
        assert_eq!(elf_function(&file[..file.len() / 2], base, address), None, "the tables are at the end");
        for at in 0..64 {
            let mut damaged = file[..1 << 16].to_vec();
            damaged[at] ^= 0xff;
            assert_eq!(elf_function(&damaged, base, address), None);
        }
    }
}
