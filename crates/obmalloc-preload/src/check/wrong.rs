//! Decides what is wrong with a call, and what the call does then.

use super::blocks::{Block, Owner};
use super::findings::{self, Call, Fault};
use super::hooks::{BLOCKS, is_ours, original, within};
use super::{malloc, site};
use crate::lock::Errno;
use crate::python;
use obmalloc::Domain;
use std::ffi::{c_int, c_void};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Requests above this get C's memory from every allocator (`SMALL_REQUEST_THRESHOLD`).
const MOST_OF_PYMALLOC: usize = 512;

/// What is wrong with giving `address` to a domain that has no such block. `None` if that is unknown, because there was no memory to note
/// all blocks.
#[cold]
pub fn fault_of(address: usize) -> Option<Fault> {
    match BLOCKS.at(address) {
        Some(block) if !block.freed => Some(Fault::WrongDomain(block)),
        before => match (BLOCKS.around(address), before) {
            (Some((_, block)), _) => Some(Fault::Interior(block)),
            (None, Some(block)) => Some(Fault::FreedBefore(block)),
            (None, None) => BLOCKS.is_complete().then_some(Fault::Foreign),
        },
    }
}

/// What is wrong with giving `address` to C, when the checker has not seen C allocate it. `None` if C may have allocated it unseen.
#[cold]
pub fn fault_for_c(address: usize, caller: usize) -> Option<Fault> {
    let fault = fault_of(address)?;
    let is_fault = match &fault {
        Fault::WrongDomain(block) | Fault::Interior(block) if block.owner == Owner::C => false,
        Fault::WrongDomain(block) if block.owner == Owner::Raw => !is_default_raw() && !site::are_cpythons(block.site, caller),
        Fault::WrongDomain(_) | Fault::Interior(_) => true,
        // Memory of a live arena cannot be C's.
        Fault::FreedBefore(block) => {
            matches!(block.owner, Owner::Mem | Owner::Obj) && (1..=MOST_OF_PYMALLOC).contains(&block.size)
        }
        Fault::Foreign => false,
    };
    is_fault.then_some(fault)
}

/// Whether plain `malloc` and `free` are in raw's place, so that a call of C's functions may be one of raw's: those end in jumps, and leave
/// no trace on the stack.
fn is_default_raw() -> bool {
    python::is_same(&python::api().allocator(Owner::Raw as c_int), original(Domain::Raw))
}

/// Whether CPython itself gives raw a block that it got while plain `malloc` was in raw's place.
fn is_cpythons(fault: &Fault, caller: usize) -> bool {
    matches!(fault, Fault::WrongDomain(block) if block.owner == Owner::C && site::are_cpythons(block.site, caller))
}

/// # Safety
/// The caller may call `used`, and may free `address` if it is a block of another owner.
#[cold]
#[inline(never)]
pub unsafe fn wrong_free(used: Owner, address: *mut c_void, caller: usize, fault: &Fault) {
    let errno = Errno::save();
    let site = called_from(used, caller);
    let is_made_past_the_hooks = match fault {
        Fault::FreedBefore(_) | Fault::Foreign => true,
        Fault::WrongDomain(block) => block.owner == Owner::C,
        Fault::Interior(_) => false,
    };
    if used == Owner::Raw && is_made_past_the_hooks && (site::frees_past_the_hooks(site) || is_cpythons(fault, caller)) {
        // SAFETY: the caller's promise; CPython got the block from this allocator, unwrapped.
        unsafe { release(used, address, caller) };
    } else {
        findings::note(fault, Call::Free, used, site);
        if let Fault::WrongDomain(block) = fault {
            // SAFETY: the caller's promise; a live block.
            unsafe { give_back(used, address, block, caller) };
        }
    }
    errno.restore();
}

/// # Safety
/// As of [`wrong_free`].
#[cold]
#[inline(never)]
pub unsafe fn wrong_realloc(used: Owner, address: *mut c_void, size: usize, caller: usize, fault: &Fault) -> *mut c_void {
    if used == Owner::Raw && is_cpythons(fault, caller) {
        let inner = original(Domain::Raw);
        // SAFETY: the caller's promise; CPython got the block from this allocator, unwrapped.
        let result = within(|| unsafe { (inner.realloc)(inner.ctx, address, size) });
        if !result.is_null() {
            BLOCKS.put(result as usize, used, size, caller);
        }
        return result;
    }
    let errno = Errno::save();
    findings::note(fault, Call::Realloc, used, called_from(used, caller));
    // SAFETY: the caller's promise.
    let result = unsafe { allocate(used, size, caller) };
    if !result.is_null() {
        BLOCKS.put(result as usize, used, size, caller);
        if let Fault::WrongDomain(block) = fault {
            // SAFETY: two blocks of at least this many bytes each; then the caller's promise.
            unsafe {
                result.cast::<u8>().copy_from_nonoverlapping(address.cast(), size.min(block.size));
                give_back(used, address, block, caller);
            }
        } else {
            // SAFETY: a new block of this size with unspecified contents.
            copy_what_is_readable(address as u64, unsafe { std::slice::from_raw_parts_mut(result.cast(), size) });
        }
    }
    errno.restore();
    result
}

/// Gives a block back to its owner. If the owner needs the GIL but the program's call does not guarantee it, the block is not freed.
///
/// # Safety
/// A live block that the caller may free.
unsafe fn give_back(used: Owner, address: *mut c_void, block: &Block, caller: usize) {
    BLOCKS.free(address as usize, block.owner, caller);
    let wants_gil = |owner: Owner| matches!(owner, Owner::Mem | Owner::Obj);
    if wants_gil(used) || !wants_gil(block.owner) || site::has_gil() {
        // SAFETY: the block's owner, called with the GIL if it needs that.
        unsafe { release(block.owner, address, caller) };
    }
}

/// # Safety
/// The caller may call `owner`.
unsafe fn allocate(owner: Owner, size: usize, caller: usize) -> *mut c_void {
    // SAFETY: the caller's promise.
    unsafe {
        match owner.domain() {
            Some(domain) => within(|| (original(domain).malloc)(original(domain).ctx, size)),
            None => (malloc::next().malloc)(size, caller),
        }
    }
}

/// # Safety
/// The caller may call `owner`, and the block is its.
unsafe fn release(owner: Owner, address: *mut c_void, caller: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        match owner.domain() {
            Some(domain) => within(|| (original(domain).free)(original(domain).ctx, address)),
            None => (malloc::next().free)(address, caller),
        }
    }
}

/// Fills `into` with the bytes at `address`, as many as can be read.
fn copy_what_is_readable(address: u64, into: &mut [u8]) {
    let Ok(memory) = File::open("/proc/self/mem") else { return };
    let mut done = 0;
    while let Ok(count @ 1..) = memory.read_at(&mut into[done..], address + done as u64) {
        done += count;
    }
}

/// The site of a call of `used` with return address `caller`. The domain's present allocator may be a wrapper that calls the hook.
fn called_from(used: Owner, caller: usize) -> usize {
    match used.domain() {
        Some(domain) => {
            let table = python::api().allocator(domain as c_int);
            site::caller(caller, &table, is_ours(&table))
        }
        None => site::caller_of_c(caller),
    }
}
