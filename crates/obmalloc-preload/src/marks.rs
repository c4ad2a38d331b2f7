//! Messages from the program through `sys.audit`: marks (`"obmalloc.mark"` and a name), and that it wants a trim now (`"obmalloc.trim"`).
//! SIGUSR2 makes a mark, too.
//!
//! With an audit hook, CPython would make a tuple for every audited event, which would change the recording. So the entry of `sys.audit` in
//! its function table is replaced here.

use crate::python::{METH_FASTCALL, Object, Objects, PyMethodDef, SetOnce, symbol};
use crate::text::{Text, Texts, type_of};
use crate::{sink, trim, types};
use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::ptr::{null_mut, read};
use std::sync::atomic::{AtomicBool, Ordering};

/// The event that a program audits to make a mark.
const MARK: &str = "obmalloc.mark";
const TRIM: &str = "obmalloc.trim";
/// Offset of the definition in a built-in function object.
const DEFINITION: usize = 16;

/// `_PyCFunctionFast`, in which a thread may be ended: see `trim::now`.
type Audit = unsafe extern "C-unwind" fn(Object, *const Object, isize) -> Object;

struct Known {
    audit: Audit,
    texts: Texts,
}

static KNOWN: SetOnce<Known> = SetOnce::new();
static IS_SET: AtomicBool = AtomicBool::new(false);

/// From here on sees the program's calls of `sys.audit`; `records` says whether marks are written. Returns `false` if the calls cannot be
/// seen. Called once.
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
    // SAFETY: as of `watch`.
    let function = unsafe { (python.sys_get)(c"audit".as_ptr()) };
    // SAFETY: an object, which `sys` keeps.
    if function.is_null() || unsafe { type_of(function) } != function_type {
        return None;
    }
    // SAFETY: a built-in function has its definition there.
    let definition = unsafe { read(function.byte_add(DEFINITION).cast::<*mut PyMethodDef>()) };
    // SAFETY: a built-in function's definition lives as long as the function.
    let method = unsafe { definition.as_ref() }.filter(|definition| definition.flags == METH_FASTCALL)?.method;
    // SAFETY: METH_FASTCALL says that the function has this type; both are pointers.
    let audit = unsafe { std::mem::transmute::<unsafe extern "C" fn(Object, Object) -> Object, Audit>(method) };
    // SAFETY: only our function reads it, and is not in place yet.
    unsafe { KNOWN.set(Known { audit, texts }) };
    // SAFETY: the definition is there, as above.
    let place = unsafe { &raw mut (*definition).method };
    write_word(place.addr(), audited as Audit as usize)?;
    IS_SET.store(true, Ordering::Relaxed);
    Some(())
}

/// Writes a word to memory that may not be writable.
fn write_word(address: usize, word: usize) -> Option<()> {
    let size = size_of::<usize>();
    let here = libc::iovec { iov_base: (&raw const word).cast_mut().cast(), iov_len: size };
    let there = libc::iovec { iov_base: address as *mut _, iov_len: size };
    // SAFETY: the system checks whether it can be written.
    let written = unsafe { libc::process_vm_writev(libc::getpid(), &here, 1, &there, 1, 0) };
    (written == size as isize).then_some(())
}

/// The function in `sys.audit`'s place.
unsafe extern "C-unwind" fn audited(module: Object, arguments: *const Object, count: isize) -> Object {
    // SAFETY: `KNOWN` is set before this function is put in place; the GIL is held, and there are `count` arguments.
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

/// Makes SIGUSR2 make a mark, if the program has no handler for it. CPython has read the signal handlers by now, and does not see this one.
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
