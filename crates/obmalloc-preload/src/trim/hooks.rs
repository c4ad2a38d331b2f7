//! The trimmer's hooks if nothing is recorded: on the arena allocator; and, until CPython is initialised, on the obj domain's `malloc`, which
//! asks for the pending call that begins. That hook is then taken out, and no call of the domain comes here any more.

use super::{arena_taken, arenas, begin_at_once};
use crate::python::{self, OBJ, SetOnce};
use crate::snapshot;
use obmalloc::{Allocator, ArenaAllocator};
use std::ffi::{c_int, c_void};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};

static ORIGINAL: SetOnce<Allocator> = SetOnce::new();
static ORIGINAL_ARENA: SetOnce<ArenaAllocator> = SetOnce::new();
/// Whether `malloc` must still ask for the pending call.
static WAITING: AtomicBool = AtomicBool::new(true);

unsafe extern "C-unwind" fn malloc(ctx: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: the hook runs only once the original is set; the caller's request.
    let result = unsafe { (ORIGINAL.get().malloc)(ctx, size) };
    if WAITING.load(Ordering::Relaxed) {
        ask();
    }
    result
}

#[cold]
fn ask() {
    let api = python::api();
    // SAFETY: may be called at any time.
    if unsafe { (api.is_initialized)() } == 0 || !WAITING.swap(false, Ordering::Relaxed) {
        return;
    }
    // SAFETY: may be called from any thread; it takes no lock that is held while memory is asked for.
    if unsafe { (api.add_pending_call)(pending_call, null_mut()) } != 0 {
        WAITING.store(true, Ordering::Relaxed);
    }
}

/// Runs in the main thread, with the GIL, between two instructions.
unsafe extern "C" fn pending_call(_: *mut c_void) -> c_int {
    // SAFETY: the GIL is held.
    if unsafe { begin_at_once() } {
        // SAFETY: as above; CPython copies the table.
        unsafe {
            let api = python::api();
            if is_ours(&api.allocator(c_int::from(OBJ))) {
                (api.set_allocator)(c_int::from(OBJ), ORIGINAL.get());
            }
        }
    } else {
        WAITING.store(true, Ordering::Relaxed);
    }
    0
}

fn is_ours(allocator: &Allocator) -> bool {
    std::ptr::fn_addr_eq(allocator.malloc, malloc as unsafe extern "C-unwind" fn(*mut c_void, usize) -> *mut c_void)
}

unsafe extern "C-unwind" fn arena_alloc(ctx: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: the hook runs only once the original is set; the caller's request.
    let result = unsafe { (ORIGINAL_ARENA.get().alloc)(ctx, size) };
    arena_taken(result.addr(), size);
    result
}

unsafe extern "C-unwind" fn arena_free(ctx: *mut c_void, address: *mut c_void, size: usize) {
    arenas::remove(address.addr(), size);
    // SAFETY: as above.
    unsafe { (ORIGINAL_ARENA.get().free)(ctx, address, size) };
}

/// Puts the hooks in. The process is being loaded.
pub fn install() {
    let api = python::api();
    // SAFETY: there is one thread, and no call has reached a hook yet. CPython copies the tables; allocators may be replaced before it is
    // initialised.
    unsafe {
        let (original, arena) = (api.allocator(c_int::from(OBJ)), api.arena_allocator());
        (api.set_allocator)(c_int::from(OBJ), &Allocator { malloc, ..original });
        (api.set_arena_allocator)(&ArenaAllocator { alloc: arena_alloc, free: arena_free, ..arena });
        ORIGINAL.set(original);
        ORIGINAL_ARENA.set(arena);
    }
}

/// Puts the obj domain's hook back, if CPython, before it is initialised, has replaced it with the earlier allocator.
pub fn put_back() {
    let api = python::api();
    // SAFETY: hooks have been installed. CPython is not initialised, so there is one thread that uses the domains.
    unsafe {
        if (api.is_initialized)() == 0
            && !snapshot::is_taken()
            && WAITING.load(Ordering::Relaxed)
            && python::is_same(&api.allocator(c_int::from(OBJ)), ORIGINAL.get())
        {
            (api.set_allocator)(c_int::from(OBJ), &Allocator { malloc, ..*ORIGINAL.get() });
        }
    }
}
