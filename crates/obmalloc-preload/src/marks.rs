//! What the program says by `sys.audit`: the marks of moments (`"obmalloc.mark"` and a name), and that it wants to be trimmed now
//! (`"obmalloc.trim"`). A mark is made by SIGUSR2, too.
//!
//! An audit hook would have CPython make a tuple for every event that is audited, and so change what is recorded. `sys.audit` itself is a
//! function of C's in a table in memory, and its place in that table is taken here.

use crate::python::{METH_FASTCALL, Object, Objects, PyMethodDef, SetOnce, symbol};
use crate::text::{Text, Texts, type_of};
use crate::{sink, trim, types};
use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::ptr::{null_mut, read};
use std::sync::atomic::{AtomicBool, Ordering};

/// What `sys.audit` is given first.
const MARK: &str = "obmalloc.mark";
const TRIM: &str = "obmalloc.trim";
/// Where a function of C's has its definition.
const DEFINITION: usize = 16;

/// `_PyCFunctionFast`, in which a thread may be ended: see `trim::now`.
type Audit = unsafe extern "C-unwind" fn(Object, *const Object, isize) -> Object;

struct Known {
    audit: Audit,
    texts: Texts,
}

static KNOWN: SetOnce<Known> = SetOnce::new();
static IS_SET: AtomicBool = AtomicBool::new(false);

/// Sees what the program says from here on; `records` when marks are written down. Says `false` when the calls of `sys.audit` cannot be
/// seen. Once is enough.
///
/// # Safety
/// The GIL is held.
pub unsafe fn watch(python: &Objects, records: bool) -> bool {
    if records {
        catch_signal();
    }
    if IS_SET.load(Ordering::Relaxed) {
        return true;
    }
    // SAFETY: the GIL is held. The function lives as long as the interpreter: `sys` is never taken away while code runs.
    unsafe { take_place(python) }.is_some()
}

/// # Safety
/// As of [`watch`].
unsafe fn take_place(python: &Objects) -> Option<()> {
    let (function_type, texts) = (symbol(c"PyCFunction_Type")?, Texts::find(python)?);
    // SAFETY: as of `watch`; what the addresses hold is looked at before it is used as what it should be.
    unsafe {
        let function = (python.sys_get)(c"audit".as_ptr());
        if function.is_null() || type_of(function) != function_type {
            return None;
        }
        let definition = read(function.byte_add(DEFINITION).cast::<*mut PyMethodDef>());
        if definition.is_null() || (*definition).flags != METH_FASTCALL {
            return None;
        }
        // SAFETY: what METH_FASTCALL says; the sizes are those of pointers.
        let audit = std::mem::transmute::<unsafe extern "C" fn(Object, Object) -> Object, Audit>((*definition).method);
        // Set before anybody can come to our function, which reads it.
        KNOWN.set(Known { audit, texts });
        let ours = audited as Audit as usize;
        write_word((&raw mut (*definition).method).addr(), ours)?;
    }
    IS_SET.store(true, Ordering::Relaxed);
    Some(())
}

/// Writes a word to memory that may not be there to be written to.
fn write_word(address: usize, word: usize) -> Option<()> {
    let size = size_of::<usize>();
    let here = libc::iovec { iov_base: (&raw const word).cast_mut().cast(), iov_len: size };
    let there = libc::iovec { iov_base: address as *mut _, iov_len: size };
    // SAFETY: the system looks whether it can be written.
    let written = unsafe { libc::process_vm_writev(libc::getpid(), &here, 1, &there, 1, 0) };
    (written == size as isize).then_some(())
}

/// What stands in `sys.audit`'s place.
unsafe extern "C-unwind" fn audited(module: Object, arguments: *const Object, count: isize) -> Object {
    // SAFETY: this function is put in place after that is set; the GIL is held, and the arguments are as many as is said.
    unsafe {
        let known = KNOWN.get();
        let event = if count >= 1 { known.texts.of(*arguments) } else { None };
        let is = |what| event.as_ref().is_some_and(|event| event.is(what));
        if is(MARK) && sink::is_recorded() {
            let name = if count >= 2 { known.texts.of(*arguments.add(1)) } else { None };
            sink::mark(name.as_ref().map_or("", Text::as_str), || types::look(&known.texts));
        } else if is(TRIM) {
            trim::now();
        }
        (known.audit)(module, arguments, count)
    }
}

/// Has SIGUSR2 make a mark where the program has no handler for it. CPython has looked at signals by now: it sees nothing of it.
fn catch_signal() {
    extern "C" fn handle(_: c_int) {
        sink::mark_by_signal();
    }
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: fills the structure, which may be all zeros; the handler is one that may run anywhere.
    unsafe {
        if libc::sigaction(libc::SIGUSR2, null_mut(), action.as_mut_ptr()) != 0 {
            return;
        }
        let mut action = action.assume_init();
        if action.sa_sigaction != libc::SIG_DFL {
            return;
        }
        action.sa_sigaction = handle as extern "C" fn(c_int) as usize;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(libc::SIGUSR2, &action, null_mut());
    }
}
