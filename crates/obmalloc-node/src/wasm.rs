//! The functions that the loader of the WebAssembly module (`src/wasm.ts`) calls.

use std::cell::Cell;
use std::ffi::c_void;
use std::ptr::{self, NonNull};

use napi_sys as sys;
use obmalloc::Domain;

use crate::core::Core;
use crate::engine::under_way;
use crate::face::Realm;

/// Called by the loader, once per instance.
///
/// # Safety
/// Called by the loader only.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn napi_register_wasm_v1(env: sys::napi_env, exports: sys::napi_value) -> sys::napi_value {
    std::panic::set_hook(Box::new(|panic| under_way::refuse(&panic.to_string())));
    // SAFETY: the caller's promise.
    unsafe { crate::napi_register_module_v1(env, exports) }
}

/// How many calls of JavaScript are under way. The loader compares this with its own count.
#[unsafe(no_mangle)]
pub extern "C" fn callbacks_under_way() -> u32 {
    under_way::callbacks()
}

/// Emnapi would ask for memory to copy an array. It gets none, because [`bytes`](crate::bytes) copies.
#[unsafe(no_mangle)]
pub extern "C" fn malloc(_: usize) -> *mut c_void {
    ptr::null_mut()
}

/// Does nothing, because `malloc` gives nothing.
#[unsafe(no_mangle)]
pub extern "C" fn free(_: *mut c_void) {}

thread_local! {
    static NEWEST: Cell<*const Realm> = const { Cell::new(ptr::null()) };
}

/// Notes a realm that was made for a copy of the face.
pub(crate) fn made(realm: &Realm) {
    NEWEST.set(realm);
}

/// The realm of the newest copy of the face, for [`plainly`].
#[unsafe(no_mangle)]
pub extern "C" fn newest_realm() -> *const Realm {
    NEWEST.get()
}

/// As the function `choose` of the binding.
///
/// # Safety
/// Called by the loader only, with a realm that [`newest_realm`] gave it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn choose_plainly(realm: *const Realm, number: u32) {
    // SAFETY: the caller's promise; a realm lives as long as the environment.
    unsafe { &*realm }.choose(number);
}

/// The answer for a call that must go through Node-API. No block has this address.
const ORDINARY: usize = usize::MAX;
/// Bytes up to which a call copies and fills without asking whether to go on, and so without JavaScript.
const MOST: usize = 1 << 16;

/// Makes a call of the chosen heap without Node-API: 0 to 3 are `malloc`, `calloc`, `realloc` and `free`, 4 to 6 `incref`, `decref` and
/// `refcount`. It makes those that need whole numbers only, and during which no JavaScript can run. Returns an address or a count, and 0 for NULL
/// or for nothing. [`ORDINARY`] means that nothing was done: the ordinary call does it, or finds out what is wrong. `callbacks` is the loader's
/// count of [`callbacks_under_way`].
///
/// # Safety
/// Called by the loader only, with a realm that [`newest_realm`] gave it, and while the face keeps the handle of the chosen heap.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn plainly(
    realm: *const Realm,
    callbacks: u32,
    call: u32,
    domain: usize,
    first: usize,
    second: usize,
) -> usize {
    // SAFETY: the caller's promise; a realm lives as long as the environment.
    let realm = unsafe { &*realm };
    if realm.is_ended() || !under_way::may_begin(callbacks) {
        return ORDINARY;
    }
    let Some(core) = realm.chosen() else { return ORDINARY };
    // SAFETY: only heaps are chosen. This one has not been dropped, because the face keeps its handle.
    let core = unsafe { core.cast::<Core>().as_ref() };
    let (Some(heap), Some(&domain)) = (core.plain_heap(), Domain::ALL.get(domain)) else { return ORDINARY };
    let (blocks, env) = (heap.blocks(), core.env());
    let given = |block: Option<NonNull<u8>>| {
        core.report(env, heap);
        // The ordinary call finds out why a request failed.
        block.map_or((!heap.is_corrupted()).then_some(0), |block| Some(block.addr().get()))
    };
    under_way::begin();
    let done = match call {
        0 if first <= MOST => given(blocks.malloc(domain, first)),
        1 if first.saturating_mul(second) <= MOST => given(blocks.calloc(domain, first, second)),
        2 if second <= MOST => blocks.realloc(domain, Some(first), second).ok().and_then(given),
        3 => blocks.free(domain, first).ok().map(|()| {
            core.report_free(env, heap);
            0
        }),
        4 => core.objects().ok().and_then(|heap| heap.incref(first).ok()).map(|()| 0),
        // An object that goes may call JavaScript.
        5 if core.has_nothing_to_end(heap) && heap.refcount(first).is_ok_and(|count| count > 1) => {
            core.objects().ok().and_then(|heap| heap.decref(first).ok()).map(|()| {
                core.report(env, heap);
                0
            })
        }
        6 => heap.refcount(first).ok(),
        _ => None,
    };
    under_way::end();
    done.unwrap_or(ORDINARY)
}
