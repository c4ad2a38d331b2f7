//! The two loops in which a collection spends its time. They handle runs of objects of one type whose references lie side by side. At any
//! other object a loop stops, and the phase that called it handles that object.

use alloc::vec::Vec;

use crate::object::Type;
use crate::object::handle::GcObject;
use crate::object::table::{LEAST_REFS, LIVE, MANY_REFS, MOST_REFS, NO_REFS, Places, UNREACHABLE};
use crate::os;

/// How many objects ahead the loops prefetch.
const AHEAD: usize = 16;

/// Prefetches the object [`AHEAD`] places behind the one with this index.
#[inline(always)]
pub(super) fn prefetch(objects: &[usize], index: usize) {
    if let Some(&ahead) = objects.get(index + AHEAD) {
        os::prefetch(core::ptr::without_provenance(ahead));
    }
}

/// `subtract_refs` and `update_refs`, from the object with this index on. Returns the index of the first object that it does not handle.
/// `slowly` takes one off the count of an object that its byte does not hold.
///
/// # Safety
/// The objects are tracked, or 0.
pub(super) unsafe fn subtract_refs<const SHIFT: u32>(
    places: Places<'_, SHIFT>,
    objects: &[usize],
    mut index: usize,
    kind: &Type,
    slowly: fn(Places<'_, SHIFT>, usize),
) -> usize {
    while let Some(&address) = objects.get(index) {
        if address == 0 {
            index += 1;
            continue;
        }
        prefetch(objects, index);
        // SAFETY: the caller's promise.
        let object = unsafe { GcObject::known(address, places.quiet) };
        if !object.is_of(kind) {
            break;
        }
        let refcnt = object.refcnt();
        let Some(at) = places.near_object(object) else { break };
        let state = at.get();
        if refcnt > usize::from(MOST_REFS) || state == MANY_REFS {
            break;
        }
        at.set(state + refcnt as u8);
        index += 1;
        // SAFETY: the type is the object's.
        for slot in unsafe { object.run(kind.refs) } {
            let reference = slot.get();
            match places.near(reference) {
                Some(at) => match at.reducible() {
                    Some(at) => at.set(at.get() - 1),
                    None if at.get() == LEAST_REFS || at.get() == MANY_REFS => slowly(places, reference),
                    None => {}
                },
                None if reference == 0 => {}
                None => slowly(places, reference),
            }
        }
    }
    index
}

/// `move_unreachable`, from the object with this index on. Returns the index of the first object that it does not handle. References have
/// been counted. `slowly` says whether an object must be moved back if its byte does not tell.
///
/// # Safety
/// The objects are tracked, or 0. `unreachable` has room for all of them.
pub(super) unsafe fn move_unreachable<const SHIFT: u32>(
    places: Places<'_, SHIFT>,
    objects: &mut [usize],
    mut index: usize,
    kind: &Type,
    unreachable: &mut Vec<usize>,
    moved_back: &mut Vec<usize>,
    slowly: fn(Places<'_, SHIFT>, usize) -> bool,
) -> usize {
    let (mut found, found_at) = (unreachable.len(), unreachable.as_mut_ptr());
    while let Some(&address) = objects.get(index) {
        if address == 0 {
            index += 1;
            continue;
        }
        prefetch(objects, index);
        // SAFETY: the caller's promise.
        let object = unsafe { GcObject::known(address, places.quiet) };
        if !object.is_of(kind) {
            break;
        }
        let Some(at) = places.near_object(object) else { break };
        let state = at.get();
        if state == NO_REFS {
            at.set(UNREACHABLE);
            debug_assert!(found < unreachable.capacity(), "there is room for all");
            // SAFETY: the caller's promise: there is room.
            unsafe { *found_at.add(found) = address };
            found += 1;
            objects[index] = 0;
            index += 1;
            continue;
        }
        if state == MANY_REFS {
            break;
        }
        at.set(LIVE);
        index += 1;
        // SAFETY: the type is the object's.
        for slot in unsafe { object.run(kind.refs) } {
            let reference = slot.get();
            let moved = match places.near(reference) {
                // Most are known to be reached, or are not in this collection.
                Some(at) if at.get() > NO_REFS && at.get() != MANY_REFS => false,
                Some(at) if at.get() == NO_REFS => {
                    at.undecided().inspect(|at| at.set(NO_REFS + 1));
                    false
                }
                None if reference == 0 => false,
                _ => slowly(places, reference),
            };
            if moved {
                moved_back.push(reference);
            }
        }
    }
    // SAFETY: so many have been written.
    unsafe { unreachable.set_len(found) };
    index
}
