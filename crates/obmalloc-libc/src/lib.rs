//! Makes the calls of C's allocator visible to the checker. This library is preloaded, gets the calls of `malloc`, `free` and their like from
//! every other library, and passes them on to C's own functions.
//!
//! It is a separate library, because the recorder must not intercept these calls: `record` does not load it. The checker is in the recorder's
//! library, and puts its own functions in here (`functions::Watch`). Until then, and in a process that is not checked, a call costs a jump.
#![cfg(target_os = "linux")]

mod functions;

use functions::{Functions, Memory, Watch};
use std::arch::naked_asm;
use std::ffi::{CStr, c_int, c_void};
use std::ptr::null_mut;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

/// The table that calls go to; null before the first call.
static PRESENT: AtomicPtr<Functions> = AtomicPtr::new(null_mut());

/// The functions that come after this library's in the linker's order.
static NEXT: OnceLock<Functions> = OnceLock::new();

/// The table that a call goes to. `None` for a call that the linker makes while it looks the functions up.
#[inline(always)]
fn present() -> Option<&'static Functions> {
    // SAFETY: null, or a table that does not change and is never freed.
    unsafe { PRESENT.load(Ordering::Acquire).as_ref() }.or_else(first)
}

/// Looks the functions up. The first call comes from the linker itself, when there is one thread.
#[cold]
fn first() -> Option<&'static Functions> {
    static LOOKING: AtomicBool = AtomicBool::new(false);
    if LOOKING.swap(true, Ordering::Relaxed) {
        return None;
    }
    let next = NEXT.get_or_init(Functions::next);
    PRESENT.store((&raw const *next).cast_mut(), Ordering::Release);
    Some(next)
}

/// Sends calls to `ours`: see `functions::Watch`.
///
/// # Safety
/// The functions do what C's do.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn obmalloc_libc_watch(ours: &'static Functions) -> Option<&'static Functions> {
    // The checker calls it by this type.
    let _: Watch = obmalloc_libc_watch;
    let next = present()?;
    if !comes_here(next) {
        return None;
    }
    PRESENT.store((&raw const *ours).cast_mut(), Ordering::Release);
    Some(next)
}

/// Whether calls of `free` come here. Only a call can tell: the linker may name a stub in the executable that leads here.
fn comes_here(next: &'static Functions) -> bool {
    static CAME: AtomicBool = AtomicBool::new(false);
    static TRIED: OnceLock<Functions> = OnceLock::new();
    unsafe extern "C" fn free(_: Memory, _: usize) {
        CAME.store(true, Ordering::Relaxed);
    }
    let tried = TRIED.get_or_init(|| Functions { free, ..*next });
    PRESENT.store((&raw const *tried).cast_mut(), Ordering::Release);
    // SAFETY: the function of that name has this type, and takes null.
    unsafe {
        let free = libc::dlsym(libc::RTLD_DEFAULT, c"free".as_ptr());
        std::mem::transmute::<*mut c_void, unsafe extern "C" fn(Memory)>(free)(null_mut());
    }
    PRESENT.store((&raw const *next).cast_mut(), Ordering::Release);
    CAME.load(Ordering::Relaxed)
}

/// Declares C's functions, with their results when there is no memory. Each passes its arguments on, and behind them its return address.
macro_rules! answered {
    ($($name:ident($($argument:ident: $type:ty),*) -> $result:ty, $from:ident, $refused:expr, $x86_64:literal, $aarch64:literal;)*) => {
        $(
            /// The C library's function of this name.
            ///
            /// # Safety
            /// As the C library's function.
            #[unsafe(naked)]
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name($(_: $type),*) -> $result {
                #[cfg(target_arch = "x86_64")]
                naked_asm!(concat!("mov ", $x86_64, ", qword ptr [rsp]"), "jmp {}", sym $from);
                #[cfg(target_arch = "aarch64")]
                naked_asm!(concat!("mov ", $aarch64, ", x30"), "b {}", sym $from);
            }

            unsafe extern "C" fn $from($($argument: $type,)* caller: usize) -> $result {
                // SAFETY: passes the caller's call on.
                present().map_or($refused, |functions| unsafe { (functions.$name)($($argument,)* caller) })
            }
        )*

        impl Functions {
            fn next() -> Self {
                // SAFETY: looks names up; functions of these types leave an argument behind their own alone.
                unsafe {
                    $(
                        let name = CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()).expect("one zero");
                        let $name = libc::dlsym(libc::RTLD_NEXT, name.as_ptr());
                        assert!(!$name.is_null(), "every C library that this is built for has it");
                    )*
                    Self { $($name: std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($type,)* usize) -> $result>($name)),* }
                }
            }
        }
    };
}

answered! {
    malloc(size: usize) -> Memory, malloc_from, null_mut(), "rsi", "x1";
    calloc(count: usize, size: usize) -> Memory, calloc_from, null_mut(), "rdx", "x2";
    realloc(address: Memory, size: usize) -> Memory, realloc_from, null_mut(), "rdx", "x2";
    reallocarray(address: Memory, count: usize, size: usize) -> Memory, reallocarray_from, null_mut(), "rcx", "x3";
    free(address: Memory) -> (), free_from, (), "rsi", "x1";
    memalign(alignment: usize, size: usize) -> Memory, memalign_from, null_mut(), "rdx", "x2";
    valloc(size: usize) -> Memory, valloc_from, null_mut(), "rsi", "x1";
    pvalloc(size: usize) -> Memory, pvalloc_from, null_mut(), "rsi", "x1";
    aligned_alloc(alignment: usize, size: usize) -> Memory, aligned_alloc_from, null_mut(), "rdx", "x2";
    posix_memalign(into: *mut Memory, alignment: usize, size: usize) -> c_int, posix_memalign_from, libc::ENOMEM, "rcx", "x3";
}
