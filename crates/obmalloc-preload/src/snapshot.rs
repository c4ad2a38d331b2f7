//! What CPython itself says about its memory when the program is over, and whether the hooks are still in place by then.
//!
//! While CPython runs, the hooks look now and then ([`checkpoint`]) whether it is initialised. Once it is, a pending call has the
//! main thread register a function with `atexit`. What is registered first runs last, so that function sees the memory as the
//! program left it, and writes it down: a reader can hold its replay against that.

use crate::python::{METH_NOARGS, Object, Objects, PyMethodDef, SetOnce, api, symbol};
use crate::text::Texts;
use crate::{hooks, inside, interpreters, marks, python, sink, trim, types};
use obmalloc::{Allocator, Domain};
use std::ffi::{c_int, c_void};
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};

const OBJ: c_int = Domain::Obj as c_int;

/// Whether the pending call is still to be asked for.
static WAITING: AtomicBool = AtomicBool::new(true);
/// Domains that were reported as lost: bit 0 raw, bit 1 mem, bit 2 obj.
static LOST: AtomicU8 = AtomicU8::new(0);

/// Whether an interpreter has come to its end, and its statistics have been asked for.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// See [`TAKEN`].
pub fn is_taken() -> bool {
    TAKEN.load(Ordering::Relaxed)
}

/// Asks for the pending call when CPython is ready for it. Called with the GIL held and nothing locked.
#[inline]
pub fn checkpoint() {
    if WAITING.load(Ordering::Relaxed) {
        ask_for_pending_call();
    }
}

#[cold]
fn ask_for_pending_call() {
    // SAFETY: may be called at any time.
    if unsafe { (api().is_initialized)() } == 0 || !WAITING.swap(false, Ordering::Relaxed) {
        return;
    }
    // SAFETY: may be called from any thread; it takes no lock that is held while memory is asked for.
    if unsafe { (api().add_pending_call)(pending_call, null_mut()) } != 0 {
        WAITING.store(true, Ordering::Relaxed);
    }
}

/// Runs in the main thread, with the GIL, between two bytecodes.
unsafe extern "C" fn pending_call(_: *mut c_void) -> c_int {
    let mut done = true;
    if let Some(python) = Objects::find() {
        // SAFETY: the GIL is held.
        unsafe {
            python.undisturbed(|| {
                done = register(&python);
                if done {
                    trim::begin(&python);
                }
            });
        }
    }
    if done {
        sink::end_checkpoints();
    } else {
        WAITING.store(true, Ordering::Relaxed);
    }
    0
}

/// What the `atexit` function needs, found beforehand so that it has to ask for as little memory as possible.
struct AtExit {
    python: Objects,
    texts: Texts,
    get_allocated_blocks: Object,
    debug_malloc_stats: Object,
    none: Object,
}

static AT_EXIT: SetOnce<AtExit> = SetOnce::new();

/// Has `atexit` call [`at_exit`]. Says `false` when that has to be tried again at another moment. If CPython cannot do it at all,
/// there will be no statistics; an error may be set then.
///
/// # Safety
/// The GIL is held.
unsafe fn register(python: &Objects) -> bool {
    static DEFINITION: PyMethodDef =
        PyMethodDef { name: c"obmalloc_snapshot".as_ptr(), method: at_exit, flags: METH_NOARGS, doc: null() };

    // SAFETY: the GIL is held. References: those kept in AT_EXIT are never given back, `set_item` steals the function.
    unsafe {
        if look_for_lost_hooks(python) & (1 << OBJ) != 0 {
            return true;
        }
        if !marks::watch(python, true) {
            sink::say("marks are not seen: sys.audit of this CPython is not what it is elsewhere");
        }
        let (Some(none), Some(texts)) = (symbol(c"_Py_NoneStruct"), Texts::find(python)) else { return true };
        let get_allocated_blocks = (python.sys_get)(c"getallocatedblocks".as_ptr());
        let debug_malloc_stats = (python.sys_get)(c"_debugmallocstats".as_ptr());
        if get_allocated_blocks.is_null() || debug_malloc_stats.is_null() {
            return true;
        }
        (python.inc_ref)(get_allocated_blocks);
        (python.inc_ref)(debug_malloc_stats);
        AT_EXIT.set(AtExit { python: *python, texts, get_allocated_blocks, debug_malloc_stats, none });
        python.call_at_exit(&DEFINITION)
    }
}

/// What `atexit` calls.
unsafe extern "C" fn at_exit(_: *mut c_void, _: *mut c_void) -> Object {
    // SAFETY: only `register` makes this function known, after it has set what is needed; `atexit` holds the GIL.
    unsafe {
        let known = AT_EXIT.get();
        sink::finalization(|| types::look_anyway(&known.texts));
        known.python.undisturbed(|| {
            if look_for_lost_hooks(&known.python) & (1 << OBJ) == 0 {
                known.note_allocated_blocks();
                known.note_statistics();
            }
        });
        TAKEN.store(true, Ordering::Relaxed);
        (known.python.inc_ref)(known.none);
        known.none
    }
}

impl AtExit {
    /// Writes `sys.getallocatedblocks()`.
    ///
    /// CPython answers 0 when the obj domain's malloc is not its own, so the recorder's has to go for the time of the call. The one
    /// request of that time, for the int that is the answer, is written by hand: the ints that CPython keeps for reuse are used
    /// up before, so that it is known that there is one, and its size.
    ///
    /// # Safety
    /// The GIL is held.
    unsafe fn note_allocated_blocks(&self) {
        let python = &self.python;
        // SAFETY: the GIL is held.
        unsafe {
            let (kept, int_size) = python.use_up_free_ints();
            if let Some(reservation) = sink::reserve_allocated_blocks() {
                let answer = with_original_obj(|| (python.call)(self.get_allocated_blocks, null_mut()));
                if !answer.is_null() {
                    let count = (python.int_as)(answer);
                    if count > LARGEST_SMALL_INT {
                        sink::request(true, |block| block.malloc(Domain::Obj, false, int_size as u64, answer as u64));
                    }
                    sink::fill_in(reservation, count.max(0) as u64);
                    (python.dec_ref)(answer);
                }
            }
            for &int in &kept {
                (python.dec_ref)(int);
            }
        }
    }

    /// Writes the pymalloc part of what `sys._debugmallocstats()` prints. It asks for no memory before it has printed, and what other
    /// threads do meanwhile are raw calls, about which it says nothing; so the note may as well come after the call.
    ///
    /// # Safety
    /// The GIL is held.
    unsafe fn note_statistics(&self) {
        let python = &self.python;
        // SAFETY: the GIL is held.
        let text = capture_stderr(|| unsafe {
            let result = with_original_obj(|| (python.call)(self.debug_malloc_stats, null_mut()));
            if !result.is_null() {
                (python.dec_ref)(result);
            }
        });
        let pymalloc = pymalloc_part(&text);
        if !pymalloc.is_empty() {
            sink::note(pymalloc.len() + 16, |block| block.stats(pymalloc));
        }
    }
}

/// Ints up to this one exist from the start (256 before 3.15); a process with so few blocks does not use pymalloc.
const LARGEST_SMALL_INT: std::ffi::c_long = 1024;
/// More ints than any CPython keeps for reuse (3.14 keeps 100).
const FREE_INTS: usize = 128;

/// Calls `call` with CPython's own obj allocator in place.
///
/// # Safety
/// The GIL is held, and `call` frees no object.
unsafe fn with_original_obj<T>(call: impl FnOnce() -> T) -> T {
    let current = api().allocator(OBJ);
    let before = inside::enter(0);
    // SAFETY: CPython copies the tables; with the GIL held no other thread uses the domain.
    unsafe { (api().set_allocator)(OBJ, hooks::original_obj()) };
    let result = call();
    // SAFETY: as above.
    unsafe { (api().set_allocator)(OBJ, &current) };
    inside::leave(before);
    result
}

impl Objects {
    /// Makes ints until CPython has to ask for memory for one. Gives them, and the size that was asked for.
    ///
    /// # Safety
    /// The GIL is held.
    unsafe fn use_up_free_ints(&self) -> (Vec<Object>, usize) {
        static BELOW: SetOnce<Allocator> = SetOnce::new();
        static SIZE: AtomicUsize = AtomicUsize::new(0);
        unsafe extern "C-unwind" fn watched_malloc(ctx: *mut c_void, size: usize) -> *mut c_void {
            // Interpreters with allocators of their own go on meanwhile.
            if interpreters::present() == 0 {
                SIZE.store(size, Ordering::Relaxed);
            }
            // SAFETY: set before this function is installed.
            unsafe { (BELOW.get().malloc)(ctx, size) }
        }
        let mut ints = Vec::with_capacity(FREE_INTS);
        let current = api().allocator(OBJ);
        // SAFETY: the GIL is held, so no other thread uses the domain or comes here; CPython copies the tables.
        unsafe {
            BELOW.set(current);
            SIZE.store(0, Ordering::Relaxed);
            (api().set_allocator)(OBJ, &Allocator { malloc: watched_malloc, ..current });
            while ints.len() < FREE_INTS && SIZE.load(Ordering::Relaxed) == 0 {
                let int = (self.int_from)(1_000_000);
                if int.is_null() {
                    break;
                }
                ints.push(int);
            }
            (api().set_allocator)(OBJ, &current);
        }
        (ints, SIZE.load(Ordering::Relaxed))
    }
}

/// Gives what `call` writes to stderr from C.
fn capture_stderr(call: impl FnOnce()) -> Vec<u8> {
    unsafe extern "C" {
        static stderr: *mut libc::FILE;
    }
    let mut text = Vec::new();
    // SAFETY: descriptor 2 is put back as it was; the buffer is as long as it is said to be.
    unsafe {
        let file = libc::memfd_create(c"obmalloc-statistics".as_ptr(), libc::MFD_CLOEXEC);
        if file < 0 {
            return text;
        }
        libc::fflush(stderr);
        let saved = libc::fcntl(2, libc::F_DUPFD_CLOEXEC, 3);
        if libc::dup2(file, 2) == 2 {
            call();
            libc::fflush(stderr);
            if saved >= 0 {
                libc::dup2(saved, 2);
            } else {
                libc::close(2);
            }
            text.resize(libc::lseek(file, 0, libc::SEEK_END).max(0) as usize, 0);
            let length = libc::pread(file, text.as_mut_ptr().cast(), text.len(), 0);
            text.truncate(length.max(0) as usize);
        }
        if saved >= 0 {
            libc::close(saved);
        }
        libc::close(file);
    }
    text
}

/// The text up to and with its last "Total" line: what follows is about the types' free lists. Empty when there is no such line, as
/// when pymalloc is not used.
fn pymalloc_part(text: &[u8]) -> &[u8] {
    let mut end = 0;
    let mut at = 0;
    for line in text.split_inclusive(|&byte| byte == b'\n') {
        at += line.len();
        if line.starts_with(b"Total ") {
            end = at;
        }
    }
    &text[..end]
}

/// Looks which of the recorder's allocators are no longer called, and has the trace say so once. Gives the bits of those domains.
///
/// One that was replaced may still be called, by the one that took its place (tracemalloc does that), so it is tried.
///
/// # Safety
/// The GIL is held.
unsafe fn look_for_lost_hooks(python: &Objects) -> u8 {
    let tries = [(api().raw_malloc, api().raw_free), (python.mem_malloc, python.mem_free), (python.obj_malloc, python.obj_free)];
    let mut lost = 0;
    for (number, (malloc, free)) in tries.into_iter().enumerate() {
        // SAFETY: the GIL is held; each pair is of one domain.
        if !hooks::is_ours(&api().allocator(number as c_int)) && !unsafe { reaches_hooks(malloc, free) } {
            lost |= 1 << number;
        }
    }
    report_lost_hooks(lost);
    lost
}

/// As [`look_for_lost_hooks`] when there may be no interpreter any more: then only the raw domain can be tried. If that one is lost,
/// so are the others that were replaced: it takes `PYTHONMALLOC` and its like to get there.
pub fn look_for_lost_hooks_at_the_end() {
    let replaced = (0..3).filter(|&number| !hooks::is_ours(&api().allocator(number))).fold(0, |bits, number| bits | 1 << number);
    // SAFETY: the raw domain wants neither GIL nor interpreter.
    if replaced & 1 != 0 && !unsafe { reaches_hooks(api().raw_malloc, api().raw_free) } {
        report_lost_hooks(replaced);
    }
}

/// Whether these functions still come to the recorder. The calls are recorded like others.
///
/// # Safety
/// They may be called, and are of one domain.
unsafe fn reaches_hooks(malloc: unsafe extern "C" fn(usize) -> *mut c_void, free: unsafe extern "C" fn(*mut c_void)) -> bool {
    /// Other threads' raw calls count too, but hardly this many at this moment.
    const TRIES: u64 = 8;
    let before = sink::events();
    let mut calls = 0;
    for _ in 0..TRIES {
        // SAFETY: as the caller promises; NULL may be freed.
        let given = unsafe {
            let address = malloc(1);
            free(address);
            !address.is_null()
        };
        // What stands in between may refuse a request, as `_testcapi.set_nomemory` does: then nothing is missed.
        calls += 1 + u64::from(given);
    }
    sink::events() - before >= calls
}

#[cold]
fn report_lost_hooks(lost: u8) {
    let news = lost & !LOST.fetch_or(lost, Ordering::Relaxed);
    if news == 0 {
        return;
    }
    let names: Vec<&str> = Domain::ALL.into_iter().filter(|&domain| news >> domain as u8 & 1 != 0).map(Domain::name).collect();
    let culprit = if is_taken() { "CPython, initialised again,".to_owned() } else { python::culprit() };
    let text = format!("{culprit} replaced the recorder's allocators: {} calls are not recorded", listed(&names));
    sink::hooks_lost(news, &text);
}

/// Names as a sentence has them: "raw, mem and obj".
fn listed(names: &[&str]) -> String {
    match names.split_last() {
        Some((last, others)) if !others.is_empty() => format!("{} and {last}", others.join(", ")),
        _ => names.concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::{listed, pymalloc_part};

    #[test]
    fn names_are_listed_with_commas_and_one_and() {
        let names = ["raw", "mem", "obj"];
        assert_eq!([0, 1, 2, 3].map(|count| listed(&names[..count])), ["", "raw", "raw and mem", "raw, mem and obj"]);
    }

    #[test]
    fn statistics_end_with_the_last_total() {
        assert_eq!(pymalloc_part(b"a\nTotal  = 1\n\nb\nTotal  = 2\n\n 5 free PyDicts\n"), b"a\nTotal  = 1\n\nb\nTotal  = 2\n");
        assert_eq!(pymalloc_part(b" 5 free PyDicts\n"), b"");
    }
}
