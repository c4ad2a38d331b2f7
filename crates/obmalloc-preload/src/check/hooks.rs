//! The checker's hooks: wrapped allocators that run on every call.
//!
//! A block is marked as freed before it is freed: another thread, which needs no GIL for raw, could be given the address before this one writes.
//! mem and obj pass requests above 512 bytes to raw. So the checker notes such an address twice. The second note, by the domain that the program
//! called, is the one that stays. Blocks of raw calls inside another call are noted, because some of them (the arena map's) are freed outside;
//! but such a call itself is never reported.

use super::blocks::{Blocks, Owner};
use super::wrong::{fault_of, wrong_free, wrong_realloc};
use crate::inside;
use crate::python::{self, MEM, OBJ, RAW, SetOnce};
use obmalloc::{Allocator, Domain};
use std::arch::naked_asm;
use std::ffi::{c_int, c_void};
use std::ptr::null_mut;

/// Every block that a domain, or C's allocator, has allocated.
pub static BLOCKS: Blocks = Blocks::new();
static ORIGINAL: SetOnce<[Allocator; 3]> = SetOnce::new();

/// The allocator that a domain had before the checker came.
#[inline(always)]
pub fn original(domain: Domain) -> &'static Allocator {
    // SAFETY: hooks run only once `install` has set the originals.
    unsafe { &ORIGINAL.get()[domain as usize] }
}

/// Runs `call` as a call of a domain: the calls of raw and of C that it makes are part of it.
#[inline(always)]
pub fn within<T>(call: impl FnOnce() -> T) -> T {
    let before = inside::enter(0);
    let result = call();
    inside::leave(before);
    result
}

/// Whether a raw call is part of a mem or obj call.
#[inline(always)]
fn is_nested<const D: u8>() -> bool {
    D == RAW && inside::is_inside()
}

/// Declares the functions that CPython calls. Each passes its arguments on, and behind them the call's return address. That is in the caller
/// of `PyMem_Malloc` and its like, because those functions end in a jump.
macro_rules! entry {
    ($(#[$doc:meta])* $name:ident => $target:ident($($argument:ty),*) -> $result:ty, $x86_64:literal, $aarch64:literal) => {
        $(#[$doc])*
        #[unsafe(naked)]
        unsafe extern "C-unwind" fn $name<const D: u8>($(_: $argument),*) -> $result {
            #[cfg(target_arch = "x86_64")]
            naked_asm!(concat!("mov ", $x86_64, ", qword ptr [rsp]"), "jmp {}", sym $target::<D>);
            #[cfg(target_arch = "aarch64")]
            naked_asm!(concat!("mov ", $aarch64, ", x30"), "b {}", sym $target::<D>);
        }
    };
}

entry!(malloc => malloc_from(*mut c_void, usize) -> *mut c_void, "rdx", "x2");
entry!(calloc => calloc_from(*mut c_void, usize, usize) -> *mut c_void, "rcx", "x3");
entry!(realloc => realloc_from(*mut c_void, *mut c_void, usize) -> *mut c_void, "rcx", "x3");
entry!(free => free_from(*mut c_void, *mut c_void) -> (), "rdx", "x2");

unsafe extern "C-unwind" fn malloc_from<const D: u8>(_: *mut c_void, size: usize, caller: usize) -> *mut c_void {
    let inner = original(Domain::ALL[D as usize]);
    // SAFETY: passes the caller's request on to the allocator that the caller would have had.
    let result = within(|| unsafe { (inner.malloc)(inner.ctx, size) });
    if !result.is_null() {
        BLOCKS.put(result as usize, Owner::ALL[D as usize], size, caller);
    }
    result
}

unsafe extern "C-unwind" fn calloc_from<const D: u8>(_: *mut c_void, count: usize, size: usize, caller: usize) -> *mut c_void {
    let inner = original(Domain::ALL[D as usize]);
    // SAFETY: as in `malloc_from`.
    let result = within(|| unsafe { (inner.calloc)(inner.ctx, count, size) });
    if !result.is_null() {
        BLOCKS.put(result as usize, Owner::ALL[D as usize], count * size, caller);
    }
    result
}

unsafe extern "C-unwind" fn realloc_from<const D: u8>(
    _: *mut c_void,
    address: *mut c_void,
    size: usize,
    caller: usize,
) -> *mut c_void {
    let before = BLOCKS.at(address as usize);
    let taken = BLOCKS.free(address as usize, Owner::ALL[D as usize], caller);
    if !taken
        && !address.is_null()
        && !is_nested::<D>()
        && let Some(fault) = fault_of(address as usize)
    {
        // SAFETY: the caller's call, which was found to be wrong.
        return unsafe { wrong_realloc(Owner::ALL[D as usize], address, size, caller, &fault) };
    }
    let inner = original(Domain::ALL[D as usize]);
    // SAFETY: as in `malloc_from`.
    let result = within(|| unsafe { (inner.realloc)(inner.ctx, address, size) });
    if !result.is_null() {
        BLOCKS.put(result as usize, Owner::ALL[D as usize], size, caller);
    } else if taken && let Some(block) = before {
        BLOCKS.revive(address as usize, block.site);
    }
    if D == MEM {
        super::look_once();
    }
    result
}

unsafe extern "C-unwind" fn free_from<const D: u8>(_: *mut c_void, address: *mut c_void, caller: usize) {
    let taken = BLOCKS.free(address as usize, Owner::ALL[D as usize], caller);
    if !taken
        && !address.is_null()
        && !is_nested::<D>()
        && let Some(fault) = fault_of(address as usize)
    {
        // SAFETY: the caller's call, which was found to be wrong.
        return unsafe { wrong_free(Owner::ALL[D as usize], address, caller, &fault) };
    }
    let inner = original(Domain::ALL[D as usize]);
    // SAFETY: as in `malloc_from`.
    within(|| unsafe { (inner.free)(inner.ctx, address) });
}

const fn table<const D: u8>() -> Allocator {
    Allocator { ctx: null_mut(), malloc: malloc::<D>, calloc: calloc::<D>, realloc: realloc::<D>, free: free::<D> }
}

/// The checker's allocators. Defined once, because they are compared, and a function may have several addresses.
static OURS: [Allocator; 3] = [table::<RAW>(), table::<MEM>(), table::<OBJ>()];

/// Whether `allocator` is one of the checker's.
pub fn is_ours(allocator: &Allocator) -> bool {
    OURS.iter().any(|ours| std::ptr::fn_addr_eq(ours.malloc, allocator.malloc))
}

/// Whether the domain's allocator is the checker's.
pub fn is_in_place(number: c_int) -> bool {
    is_ours(&python::api().allocator(number))
}

/// Whether calls of these functions reach the checker's hooks, perhaps through other allocators.
///
/// # Safety
/// The functions may be called, and are of the domain with this number.
pub unsafe fn reached_by(
    number: c_int,
    malloc: unsafe extern "C" fn(usize) -> *mut c_void,
    free: unsafe extern "C" fn(*mut c_void),
) -> bool {
    /// A size that an earlier block at the same address is unlikely to have had.
    const SIZE: usize = 31;
    // SAFETY: as the caller promises.
    unsafe {
        let address = malloc(SIZE);
        let block = BLOCKS.at(address as usize);
        free(address);
        // An allocator in between may refuse the request: then no call is missed.
        address.is_null() || block.is_some_and(|block| block.owner as c_int == number && block.size == SIZE && !block.freed)
    }
}

/// Wraps the three domains.
pub fn install() {
    let api = python::api();
    // SAFETY: the process is being loaded: it has one thread, and no call has reached a hook yet. CPython copies the tables; allocators
    // may be replaced before it is initialised.
    unsafe {
        ORIGINAL.set(Domain::ALL.map(|domain| api.allocator(domain as c_int)));
        for (number, ours) in OURS.iter().enumerate() {
            (api.set_allocator)(number as c_int, ours);
        }
    }
}

/// Puts the hooks back if CPython has put the earlier allocators in their place in all three domains. CPython does so if it was asked for
/// them by name, or is initialised again. Only before it is initialised: later, calls would have been missed.
pub fn put_back() {
    let api = python::api();
    // SAFETY: hooks have been installed. CPython copies the tables.
    unsafe {
        if (api.is_initialized)() == 0
            && (0..).zip(ORIGINAL.get()).all(|(number, original)| python::is_same(&api.allocator(number), original))
        {
            (0..).zip(&OURS).for_each(|(number, ours)| (api.set_allocator)(number, ours));
        }
    }
}
