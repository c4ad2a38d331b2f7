//! The hooks: wrapped allocators that run on every call. Each calls the allocator that was there before, and writes one event (`sink.rs`).
//!
//! Order: a mem or obj call is written after it is done, so that the raw blocks and arenas that it needed come before it. A raw free is
//! written before it is done: another thread, which needs no GIL, could be given the address before this one writes. A raw realloc must be
//! written after it is done, so there the order can be wrong: with two threads without the GIL, one of them moving a block.

use crate::arena_offset;
use crate::inside;
use crate::python::{self, MEM, OBJ, RAW, SetOnce};
use crate::{interpreters, sink, snapshot, stacks, trim};
use obmalloc::{Allocator, ArenaAllocator, Domain};
use std::ffi::{c_int, c_void};
use std::ptr::null_mut;

static ORIGINAL: SetOnce<[Allocator; 3]> = SetOnce::new();
static ORIGINAL_ARENA: SetOnce<ArenaAllocator> = SetOnce::new();

/// The allocator that `D` had before the recorder came.
#[inline(always)]
fn inner<const D: u8>() -> &'static Allocator {
    // SAFETY: hooks run only once `install` has set the originals.
    unsafe { &ORIGINAL.get()[D as usize] }
}

/// Runs `call` as a call of domain `D` that was given `address`. Returns its result, and whether the call was nested.
#[inline(always)]
fn within<const D: u8, T>(address: *mut c_void, call: impl FnOnce() -> T) -> (T, bool) {
    if D == RAW {
        let nested = inside::is_inside();
        (call(), nested)
    } else {
        let before = inside::enter(address as usize);
        let result = call();
        inside::leave(before);
        (result, false)
    }
}

/// Does the work that needs the GIL and must not hold a lock. During a mem or obj call the thread has the GIL and holds no lock.
#[inline(always)]
fn after<const D: u8>(checkpoint: bool) {
    if D != RAW && checkpoint {
        snapshot::checkpoint();
    }
}

unsafe extern "C-unwind" fn malloc<const D: u8, const STACKS: bool>(_: *mut c_void, size: usize) -> *mut c_void {
    let inner = inner::<D>();
    // SAFETY: passes the caller's request on to the allocator that the caller would have had.
    let (result, nested) = within::<D, _>(null_mut(), || unsafe { (inner.malloc)(inner.ctx, size) });
    let (domain, has_gil) = (Domain::ALL[D as usize], D != RAW || nested);
    if sink::write_usually::<STACKS>(has_gil, |place, stack| place.malloc(stack, domain, nested, size as u64, result as u64)) {
        return result;
    }
    malloc_otherwise::<D>(nested, size, result)
}

/// Writes a malloc that could not be [written usually](sink::write_usually). Returns its result.
#[cold]
#[inline(never)]
fn malloc_otherwise<const D: u8>(nested: bool, size: usize, result: *mut c_void) -> *mut c_void {
    after::<D>(sink::request(D != RAW || nested, |block| {
        block.malloc(Domain::ALL[D as usize], nested, size as u64, result as u64);
    }));
    result
}

unsafe extern "C-unwind" fn calloc<const D: u8>(_: *mut c_void, count: usize, size: usize) -> *mut c_void {
    let inner = inner::<D>();
    // SAFETY: as in `malloc`.
    let (result, nested) = within::<D, _>(null_mut(), || unsafe { (inner.calloc)(inner.ctx, count, size) });
    after::<D>(sink::request(D != RAW || nested, |block| {
        block.calloc(Domain::ALL[D as usize], nested, count as u64, size as u64, result as u64);
    }));
    result
}

unsafe extern "C-unwind" fn realloc<const D: u8, const STACKS: bool>(
    _: *mut c_void,
    address: *mut c_void,
    size: usize,
) -> *mut c_void {
    let inner = inner::<D>();
    // SAFETY: as in `malloc`.
    let (result, nested) = within::<D, _>(address, || unsafe { (inner.realloc)(inner.ctx, address, size) });
    // An interpreter's own allocator first asks for its table of arenas.
    if D == RAW && nested && address.is_null() && interpreters::present() != 0 {
        sink::tell_apart();
    }
    let (domain, has_gil) = (Domain::ALL[D as usize], D != RAW || nested);
    let (from, bytes, to) = (address as u64, size as u64, result as u64);
    if sink::write_usually::<STACKS>(has_gil, |place, stack| place.realloc(stack, domain, nested, from, bytes, to)) {
        return result;
    }
    realloc_otherwise::<D>(nested, address, size, result)
}

/// As [`malloc_otherwise`].
#[cold]
#[inline(never)]
fn realloc_otherwise<const D: u8>(nested: bool, address: *mut c_void, size: usize, result: *mut c_void) -> *mut c_void {
    after::<D>(sink::request(D != RAW || nested, |block| {
        block.realloc(Domain::ALL[D as usize], nested, address as u64, size as u64, result as u64);
    }));
    result
}

unsafe extern "C-unwind" fn free<const D: u8, const STACKS: bool>(_: *mut c_void, address: *mut c_void) {
    let (inner, domain) = (inner::<D>(), Domain::ALL[D as usize]);
    if D == RAW {
        let nested = inside::is_inside_of(address as usize);
        if !sink::write_usually::<false>(false, |place, _| place.free(domain, nested, address as u64)) {
            free_otherwise::<D>(nested, address);
        }
        // SAFETY: as in `malloc`.
        unsafe { (inner.free)(inner.ctx, address) };
        return;
    }
    if D == OBJ && STACKS && stacks::may_be_known(address as usize) {
        sink::forget_code(address as usize);
    }
    // SAFETY: as in `malloc`.
    within::<D, _>(address, || unsafe { (inner.free)(inner.ctx, address) });
    if !sink::write_usually::<false>(false, |place, _| place.free(domain, false, address as u64)) {
        free_otherwise::<D>(false, address);
    }
}

/// As [`malloc_otherwise`].
#[cold]
#[inline(never)]
fn free_otherwise<const D: u8>(nested: bool, address: *mut c_void) {
    after::<D>(sink::record(|block| block.free(Domain::ALL[D as usize], nested, address as u64)));
}

unsafe extern "C-unwind" fn arena_alloc(_: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: hooks run only once `install` has set the originals.
    let inner = unsafe { ORIGINAL_ARENA.get() };
    // SAFETY: as in `malloc`.
    let result = unsafe { arena_offset::alloc(inner, size) };
    sink::tell_time();
    let nested = inside::is_inside();
    sink::request(nested, |block| block.arena_alloc(nested, size as u64, result as u64));
    trim::arena_taken(result as usize, size);
    // If the other hooks have been replaced, only this one can notice.
    snapshot::checkpoint();
    result
}

unsafe extern "C-unwind" fn arena_free(_: *mut c_void, address: *mut c_void, size: usize) {
    // SAFETY: hooks run only once `install` has set the originals.
    let inner = unsafe { ORIGINAL_ARENA.get() };
    let nested = inside::is_inside();
    sink::tell_time();
    sink::record(|block| block.arena_free(nested, size as u64, address as u64));
    trim::arena_given(address as usize, size);
    // SAFETY: as in `malloc`.
    unsafe { arena_offset::free(inner, address, size) };
}

const fn tables<const STACKS: bool>() -> [Allocator; 3] {
    [table::<RAW, STACKS>(), table::<MEM, STACKS>(), table::<OBJ, STACKS>()]
}

const fn table<const D: u8, const STACKS: bool>() -> Allocator {
    Allocator {
        ctx: std::ptr::null_mut(),
        malloc: malloc::<D, STACKS>,
        calloc: calloc::<D>,
        realloc: realloc::<D, STACKS>,
        free: free::<D, STACKS>,
    }
}

/// The recorder's allocators, without stacks and with them. Defined once, because they are compared, and a function may have several
/// addresses.
static OURS: [[Allocator; 3]; 2] = [tables::<false>(), tables::<true>()];

/// Whether `allocator` is one of the recorder's.
pub fn is_ours(allocator: &Allocator) -> bool {
    OURS.iter().flatten().any(|ours| std::ptr::fn_addr_eq(ours.malloc, allocator.malloc))
}

/// The allocator that the obj domain had before the recorder came.
pub fn original_obj() -> &'static Allocator {
    inner::<OBJ>()
}

/// Wraps the three domains and the arena allocator. From here on every call is written.
pub fn install() {
    let api = python::api();
    // SAFETY: the process is being loaded: it has one thread, and no call has reached a hook yet.
    unsafe {
        ORIGINAL.set(Domain::ALL.map(|domain| api.allocator(domain as c_int)));
        ORIGINAL_ARENA.set(api.arena_allocator());
    }
    // SAFETY: allocators may be replaced before CPython is initialised.
    unsafe { put_in_place() };
}

/// # Safety
/// No other thread uses the domains.
unsafe fn put_in_place() {
    let api = python::api();
    let arena = ArenaAllocator { ctx: std::ptr::null_mut(), alloc: arena_alloc, free: arena_free };
    // SAFETY: the caller's promise; CPython copies the tables.
    unsafe {
        for (number, ours) in OURS[usize::from(sink::takes_stacks())].iter().enumerate() {
            (api.set_allocator)(number as c_int, ours);
        }
        (api.set_arena_allocator)(&arena);
    }
}

/// Puts the hooks back if CPython has put the earlier allocators in their place in all three domains. CPython does so if it was asked for
/// them by name, or is initialised again. Only before it is initialised: later, calls would have been missed. Not in 3.12: there pymalloc
/// begins anew, and a trace has no event for that.
pub fn put_back() {
    let api = python::api();
    if snapshot::is_taken() && api.version().starts_with("3.12.") {
        return;
    }
    // SAFETY: hooks have been installed. CPython is not initialised, so there is one thread that uses the domains.
    unsafe {
        if (api.is_initialized)() == 0
            && (0..).zip(ORIGINAL.get()).all(|(number, original)| python::is_same(&api.allocator(number), original))
        {
            put_in_place();
        }
    }
}
