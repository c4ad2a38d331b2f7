//! What real CPythons do with blocks under debug hooks: loaded with `LD_PRELOAD` into a python with `PYTHONMALLOC=debug`, it takes the place
//! of `main`, starts the interpreter, and plays every case in a child process, where no Python function is running. What came of each goes
//! to the standard output, after a line with the case's name. `OBMALLOC_DEBUG_CASES` says how many cases, if not all.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::transmute_copy;
use std::ptr;

#[path = "../tests/debug/cases.rs"]
mod cases;

use cases::{Api, Op};

type Main = unsafe extern "C" fn(c_int, *mut *mut c_char, *mut *mut c_char) -> c_int;
type Hook = unsafe extern "C" fn();
type Start = unsafe extern "C" fn(Main, c_int, *mut *mut c_char, Option<Hook>, Option<Hook>, Option<Hook>, *mut c_void) -> c_int;

/// A function by its name.
///
/// # Safety
/// It has the type `F`, a function pointer's.
unsafe fn function<F>(from: *mut c_void, name: &CStr) -> F {
    // SAFETY: looking a symbol up has no conditions; the rest is the caller's promise.
    unsafe {
        let address = libc::dlsym(from, name.as_ptr());
        assert!(!address.is_null(), "{name:?} is in no library");
        transmute_copy(&address)
    }
}

struct Python {
    malloc: [unsafe extern "C" fn(usize) -> *mut u8; 3],
    calloc: [unsafe extern "C" fn(usize, usize) -> *mut u8; 3],
    realloc: [unsafe extern "C" fn(*mut u8, usize) -> *mut u8; 3],
    free: [unsafe extern "C" fn(*mut u8); 3],
}

impl Python {
    /// # Safety
    /// The process is a python.
    unsafe fn new() -> Self {
        // SAFETY: the types are those of CPython's headers.
        unsafe {
            let of = libc::RTLD_DEFAULT;
            Self {
                malloc: [function(of, c"PyMem_RawMalloc"), function(of, c"PyMem_Malloc"), function(of, c"PyObject_Malloc")],
                calloc: [function(of, c"PyMem_RawCalloc"), function(of, c"PyMem_Calloc"), function(of, c"PyObject_Calloc")],
                realloc: [function(of, c"PyMem_RawRealloc"), function(of, c"PyMem_Realloc"), function(of, c"PyObject_Realloc")],
                free: [function(of, c"PyMem_RawFree"), function(of, c"PyMem_Free"), function(of, c"PyObject_Free")],
            }
        }
    }

    /// # Safety
    /// What the case does to memory may end this process.
    unsafe fn play(&self, ops: &[Op]) {
        let number = |api: Api| "rmo".find(api).expect("a domain");
        let (mut block, mut size) = (ptr::null_mut::<u8>(), 0);
        for &op in ops {
            // SAFETY: the caller's promise.
            unsafe {
                match op {
                    Op::Malloc(api, n) => (block, size) = (self.malloc[number(api)](n), n),
                    Op::Calloc(api, n) => (block, size) = (self.calloc[number(api)](1, n), n),
                    Op::Realloc(api, n) => {
                        let moved = self.realloc[number(api)](block, n);
                        if !moved.is_null() {
                            (block, size) = (moved, n);
                        }
                    }
                    Op::Free(api) => self.free[number(api)](block),
                    Op::Fill => (0..size).for_each(|index| block.add(index).write(cases::pattern(index))),
                    Op::Write(offset, length, byte) => block.offset(offset).write_bytes(byte, length),
                    Op::Show => eprintln!("bytes{}", cases::hex(std::slice::from_raw_parts(block.sub(16), size + 24))),
                    Op::ShowFreed => eprintln!("bytes{}", cases::hex(std::slice::from_raw_parts(block.sub(8), size + 16))),
                }
            }
        }
    }
}

unsafe extern "C" fn main(_: c_int, _: *mut *mut c_char, _: *mut *mut c_char) -> c_int {
    // SAFETY: an interpreter that has not been started yet; each child is a copy of this process with one thread.
    unsafe {
        function::<unsafe extern "C" fn(c_int)>(libc::RTLD_DEFAULT, c"Py_InitializeEx")(0);
        let python = Python::new();
        let count = std::env::var("OBMALLOC_DEBUG_CASES").map_or(usize::MAX, |count| count.parse().expect("a number of cases"));
        for case in cases::cases().into_iter().take(count) {
            let mut pipe = [0; 2];
            assert_eq!(libc::pipe(pipe.as_mut_ptr()), 0, "no pipe");
            let child = libc::fork();
            if child == 0 {
                libc::dup2(pipe[1], 2);
                python.play(&case.ops);
                libc::_exit(0);
            }
            libc::close(pipe[1]);
            let mut output = Vec::new();
            let mut buffer = [0u8; 4096];
            while let length @ 1.. = libc::read(pipe[0], buffer.as_mut_ptr().cast(), buffer.len()) {
                output.extend_from_slice(&buffer[..length as usize]);
            }
            libc::close(pipe[0]);
            let mut status = 0;
            libc::waitpid(child, &mut status, 0);
            let text: String = output.into_iter().map(char::from).collect();
            let end = if libc::WIFSIGNALED(status) { format!("signal {}", libc::WTERMSIG(status)) } else { "ended".into() };
            println!("== {}\n{}\n{end}", case.name, cases::normalised(&text).escape_debug().to_string().replace("\\n", "\n"));
        }
        0
    }
}

/// # Safety
/// Called by the program's first instructions, as the C library's own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __libc_start_main(
    _: Main,
    argc: c_int,
    argv: *mut *mut c_char,
    init: Option<Hook>,
    fini: Option<Hook>,
    rtld_fini: Option<Hook>,
    stack_end: *mut c_void,
) -> c_int {
    // SAFETY: what is passed on is what came, but for `main`.
    unsafe { function::<Start>(libc::RTLD_NEXT, c"__libc_start_main")(main, argc, argv, init, fini, rtld_fini, stack_end) }
}
