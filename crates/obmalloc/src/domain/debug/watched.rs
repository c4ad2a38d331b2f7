//! Blocks of pymalloc under the hooks: a free block that something wrote to is not handed out.

use core::ffi::c_void;
use core::ptr;

use super::HEAD;
use crate::domain::{Domain, Domains, Fault, FaultKind, object_free, pass_on};
use crate::pymalloc::{AnyPools, Dead, Pymalloc};

/// A free block was not handed out because it is damaged. There is a fault, or there was no memory to remember one.
pub(in crate::domain) struct Refused;

/// A small block of pymalloc that nothing has written to since it was freed. NULL if the request is not small or there is no arena.
///
/// # Safety
/// As for [`Pymalloc::alloc_from_used_pool`], of the domains' pymalloc; hooks have been set up.
pub(in crate::domain) unsafe fn watched_block(this: *mut Domains, size: usize) -> Result<*mut u8, Refused> {
    loop {
        // SAFETY: the caller's promise; the reference is gone when pymalloc takes a pool.
        let domains = unsafe { &mut *this };
        let Some(known) = domains.debug.as_ref() else { return Err(Refused) };
        let is_live = |address: usize| known.blocks.contains_key(&(address + HEAD));
        if let Some(block) = domains.pymalloc.damaged_link(size, is_live) {
            domains.pymalloc.broken_link = Some(block);
            return Err(Refused);
        }
        // SAFETY: the caller's promise.
        let (block, whole) = unsafe {
            let pymalloc = &raw mut (*this).pymalloc;
            let block = match Pymalloc::alloc_from_used_pool::<AnyPools>(pymalloc, size) {
                Some(block) => block.as_ptr(),
                None => Pymalloc::alloc_from_new_pool::<AnyPools>(pymalloc, size),
            };
            (block, Pymalloc::block_size::<AnyPools>(pymalloc, block))
        };
        let Some(whole) = whole.filter(|_| !block.is_null()) else { return Ok(ptr::null_mut()) };
        let begin = block.expose_provenance();
        // SAFETY: as above; pymalloc has the pool.
        let domains = unsafe { &mut *this };
        let state = domains.pymalloc.state_of_dead(begin, whole);
        if state == Dead::Sound {
            domains.pymalloc.forget_dead(begin, whole);
            return Ok(block);
        }
        let Some(known) = domains.debug.as_mut() else { return Err(Refused) };
        if known.parked.try_reserve(1).is_err() {
            // There is no memory to remember the damage: the block stays free.
            // SAFETY: pymalloc gave it just now.
            unsafe { object_free::<AnyPools>(this.cast(), block.cast()) };
            return Err(Refused);
        }
        known.parked.insert(begin);
        domains.pymalloc.forget_dead(begin, whole);
        if let Dead::Damaged(byte) = state {
            known.keep_fault(write_after_free(begin, byte, known.asking));
            return Err(Refused);
        }
    }
}

/// The fault for a free pymalloc block that has an overwritten byte.
pub(crate) fn write_after_free(begin: usize, byte: usize, used: Domain) -> Fault {
    let data = begin + HEAD;
    Fault { offset: Some(byte as isize - data as isize), ..Fault::new(FaultKind::WriteAfterFree, data, used) }
}

/// As `object_malloc`, from a [`watched_block`].
///
/// # Safety
/// As for `watched_block`.
pub(in crate::domain) unsafe fn watched_malloc(this: *mut Domains, size: usize) -> *mut c_void {
    // SAFETY: the caller's promise.
    unsafe {
        match watched_block(this, size) {
            Ok(block) if block.is_null() => pass_on(this, || Domains::malloc(this, Domain::Raw, size)),
            Ok(block) => block.cast(),
            Err(Refused) => ptr::null_mut(),
        }
    }
}
