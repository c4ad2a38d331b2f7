//! Records CPython's own statistics when the program ends, and whether the hooks are still in place by then.
//!
//! While CPython runs, the hooks check now and then ([`checkpoint`]) whether it is initialised. Once it is, a pending call registers a
//! function with `atexit`, in the main thread. The function registered first runs last, so it sees the memory as the program left it, and
//! writes CPython's statistics: a replay is compared with them.

use crate::python::{METH_NOARGS, Object, Objects, Owned, PyMethodDef, SetOnce, api, symbol};
use crate::text::Texts;
use crate::{hooks, inside, interpreters, marks, python, sink, trim, types};
use obmalloc::{Allocator, Domain};
use std::ffi::{CStr, c_int, c_void};
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, AsRawFd, FromRawFd};
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};

const OBJ: c_int = Domain::Obj as c_int;

/// Whether the pending call must still be asked for.
static WAITING: AtomicBool = AtomicBool::new(true);
/// Domains that were reported as lost: bit 0 raw, bit 1 mem, bit 2 obj.
static LOST: AtomicU8 = AtomicU8::new(0);

/// Whether an interpreter has ended, and its statistics have been recorded.
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

/// The pending call. CPython runs it in the main thread, with the GIL, between two bytecodes.
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

/// The objects that the `atexit` function needs, looked up beforehand so that it asks for as little memory as possible.
struct AtExit {
    python: Objects,
    texts: Texts,
    get_allocated_blocks: Object,
    debug_malloc_stats: Object,
    none: Object,
}

static AT_EXIT: SetOnce<AtExit> = SetOnce::new();

/// Registers [`at_exit`] with `atexit`. Returns `false` if this must be tried again at another moment. If CPython cannot do it at all, there
/// will be no statistics, and a Python error may be set.
///
/// # Safety
/// The GIL is held.
unsafe fn register(python: &Objects) -> bool {
    static DEFINITION: PyMethodDef =
        PyMethodDef { name: c"obmalloc_snapshot".as_ptr(), method: at_exit, flags: METH_NOARGS, doc: null() };

    // SAFETY: the caller's promise.
    if unsafe { look_for_lost_hooks(python) } & (1 << OBJ) != 0 {
        return true;
    }
    // SAFETY: the caller's promise.
    if !unsafe { marks::watch(python, true) } {
        sink::say("marks are not seen: sys.audit of this CPython is not what it is elsewhere");
    }
    let (Some(none), Some(texts)) = (symbol(c"_Py_NoneStruct"), Texts::find(python)) else { return true };
    // SAFETY: the caller's promise.
    let get = |name: &CStr| unsafe { (python.sys_get)(name.as_ptr()) };
    let (get_allocated_blocks, debug_malloc_stats) = (get(c"getallocatedblocks"), get(c"_debugmallocstats"));
    if get_allocated_blocks.is_null() || debug_malloc_stats.is_null() {
        return true;
    }
    // SAFETY: the caller's promise. `sys` has kept both so far; our references are never given back. Only the function that is registered
    // below reads what is set.
    unsafe {
        (python.inc_ref)(get_allocated_blocks);
        (python.inc_ref)(debug_malloc_stats);
        AT_EXIT.set(AtExit { python: *python, texts, get_allocated_blocks, debug_malloc_stats, none });
        python.call_at_exit(&DEFINITION)
    }
}

/// The function that `atexit` calls.
unsafe extern "C" fn at_exit(_: *mut c_void, _: *mut c_void) -> Object {
    // SAFETY: only `register` makes this function known, after it has set what is needed.
    let known = unsafe { AT_EXIT.get() };
    // A program can find this function and call it before `atexit` does.
    if !is_taken() {
        // SAFETY: a caller of a Python function holds the GIL, and is not in the allocator.
        sink::finalization(|| unsafe { types::look_anyway(&known.texts) });
        // SAFETY: as above.
        unsafe { known.python.undisturbed(|| known.note_memory()) };
        TAKEN.store(true, Ordering::Relaxed);
    }
    // SAFETY: as above.
    unsafe { (known.python.inc_ref)(known.none) };
    known.none
}

impl AtExit {
    /// Writes CPython's own numbers, unless the obj domain's calls are not recorded.
    ///
    /// # Safety
    /// The GIL is held.
    unsafe fn note_memory(&self) {
        // SAFETY: the caller's promise.
        unsafe {
            if look_for_lost_hooks(&self.python) & (1 << OBJ) == 0 {
                self.note_allocated_blocks();
                self.note_statistics();
            }
        }
    }

    /// Writes `sys.getallocatedblocks()`.
    ///
    /// CPython answers 0 if the obj domain's malloc is not its own, so the recorder's hook is taken out during the call. The call asks for memory
    /// once, for the int that it returns; this function writes that event itself. First it takes all the ints that CPython keeps for reuse, so
    /// that CPython must ask for memory and the size is known.
    ///
    /// # Safety
    /// The GIL is held.
    unsafe fn note_allocated_blocks(&self) {
        let python = &self.python;
        // SAFETY: the caller's promise.
        let (kept, int_size) = unsafe { python.use_up_free_ints() };
        if let Some(reservation) = sink::reserve_allocated_blocks() {
            // SAFETY: the caller's promise; the call frees no object, and returns a new reference.
            let answer = unsafe { python.owned(with_original_obj(|| (python.call)(self.get_allocated_blocks, null_mut()))) };
            if let Some(answer) = answer {
                // SAFETY: the caller's promise.
                let count = unsafe { (python.int_as)(answer.object()) };
                if count > LARGEST_SMALL_INT {
                    sink::request(true, |block| block.malloc(Domain::Obj, false, int_size as u64, answer.object() as u64));
                }
                sink::fill_in(reservation, count.max(0) as u64);
            }
        }
        drop(kept);
    }

    /// Writes the pymalloc part of what `sys._debugmallocstats()` prints. The call asks for no memory before it has printed, and other threads
    /// can only make raw calls meanwhile, which the statistics do not count. So the note may come after the call.
    ///
    /// # Safety
    /// The GIL is held.
    unsafe fn note_statistics(&self) {
        let python = &self.python;
        let text = capture_stderr(|| {
            // SAFETY: the caller's promise; the call frees no object, and returns a new reference, which is given back.
            drop(unsafe { python.owned(with_original_obj(|| (python.call)(self.debug_malloc_stats, null_mut()))) });
        });
        let pymalloc = pymalloc_part(&text);
        if !pymalloc.is_empty() {
            sink::note(pymalloc.len() + 16, |block| block.stats(pymalloc));
        }
    }
}

/// Ints up to this one exist from the start (256 before 3.15). A process with no more blocks than that does not use pymalloc.
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
    /// Makes ints until CPython must ask for memory for one. Returns the ints, and the size that CPython asked for.
    ///
    /// # Safety
    /// The GIL is held until the ints are dropped. This is called once.
    unsafe fn use_up_free_ints(&self) -> (Vec<Owned<'_>>, usize) {
        static BELOW: SetOnce<Allocator> = SetOnce::new();
        static SIZE: AtomicUsize = AtomicUsize::new(0);
        unsafe extern "C-unwind" fn watched_malloc(ctx: *mut c_void, size: usize) -> *mut c_void {
            // Interpreters with allocators of their own go on running.
            if interpreters::present() == 0 {
                SIZE.store(size, Ordering::Relaxed);
            }
            // SAFETY: set before this function is installed.
            unsafe { (BELOW.get().malloc)(ctx, size) }
        }
        let mut ints = Vec::with_capacity(FREE_INTS);
        let current = api().allocator(OBJ);
        SIZE.store(0, Ordering::Relaxed);
        // SAFETY: only `watched_malloc` reads what is set, and it is not in place yet. CPython copies the tables. Threads of other interpreters,
        // which may be in the domain, find the same `ctx` in both.
        unsafe {
            BELOW.set(current);
            (api().set_allocator)(OBJ, &Allocator { malloc: watched_malloc, ..current });
        }
        while ints.len() < FREE_INTS && SIZE.load(Ordering::Relaxed) == 0 {
            // SAFETY: the caller's promise; the function returns a new reference.
            let Some(int) = (unsafe { self.owned((self.int_from)(1_000_000)) }) else { break };
            ints.push(int);
        }
        // SAFETY: as above.
        unsafe { (api().set_allocator)(OBJ, &current) };
        (ints, SIZE.load(Ordering::Relaxed))
    }
}

/// Returns what `call` writes to stderr from C.
fn capture_stderr(call: impl FnOnce()) -> Vec<u8> {
    let mut text = Vec::new();
    // SAFETY: makes a file without a path.
    let file = unsafe { libc::memfd_create(c"obmalloc-statistics".as_ptr(), libc::MFD_CLOEXEC) };
    if file >= 0 {
        // SAFETY: the descriptor was made just now.
        let mut file = unsafe { File::from_raw_fd(file) };
        if with_stderr_to(&file, call) && file.rewind().is_ok() {
            let _ = file.read_to_end(&mut text);
        }
    }
    text
}

/// Calls `call` while C's stderr goes to `file`. Returns `false`, without a call, if that cannot be done.
fn with_stderr_to(file: &File, call: impl FnOnce()) -> bool {
    unsafe extern "C" {
        static stderr: *mut libc::FILE;
    }
    // SAFETY: the C library's own stream.
    let flush = || unsafe { libc::fflush(stderr) };
    flush();
    let saved = std::io::stderr().as_fd().try_clone_to_owned();
    // SAFETY: both are descriptors; what 2 was is put back below.
    if unsafe { libc::dup2(file.as_raw_fd(), 2) } != 2 {
        return false;
    }
    call();
    flush();
    // SAFETY: as above; if there was no descriptor 2, there is none again.
    unsafe { saved.map_or_else(|_| libc::close(2), |saved| libc::dup2(saved.as_raw_fd(), 2)) };
    true
}

/// The text up to and including its last "Total" line: the rest is about the types' free lists. Empty if there is no such line, as when
/// pymalloc is not used.
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

/// Finds the recorder's allocators that are no longer called, and writes that into the trace once. Returns the bits of their domains.
///
/// An allocator that was replaced may still be called by its replacement, as tracemalloc does. So each is tried with a call.
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

/// As [`look_for_lost_hooks`], when there may be no interpreter any more: then only the raw domain can be tried. If its hook is lost, the other
/// replaced hooks count as lost too: only `PYTHONMALLOC` and similar settings replace raw.
pub fn look_for_lost_hooks_at_the_end() {
    let replaced = (0..3).filter(|&number| !hooks::is_ours(&api().allocator(number))).fold(0, |bits, number| bits | 1 << number);
    // SAFETY: the raw domain wants neither GIL nor interpreter.
    if replaced & 1 != 0 && !unsafe { reaches_hooks(api().raw_malloc, api().raw_free) } {
        report_lost_hooks(replaced);
    }
}

/// Whether calls of these functions still reach the recorder. The calls are recorded like others.
///
/// # Safety
/// The functions may be called, and are of one domain.
unsafe fn reaches_hooks(malloc: unsafe extern "C" fn(usize) -> *mut c_void, free: unsafe extern "C" fn(*mut c_void)) -> bool {
    /// Other threads' raw calls count too, but hardly this many in so short a time.
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
        // An allocator in between may refuse the request, as `_testcapi.set_nomemory` does: then no call is missed.
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

/// Joins names for a sentence: "raw, mem and obj".
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
