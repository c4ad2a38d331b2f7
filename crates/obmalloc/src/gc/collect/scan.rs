//! The two loops in which a collection spends its time. They handle runs of objects of one type whose references lie side by side. At any
//! other object a loop stops, and the phase that called it handles that object.

use alloc::vec::Vec;

use crate::object::table::{LEAST_REFS, LIVE, MANY_REFS, MOST_REFS, NO_REFS, Places, UNREACHABLE};
use crate::object::{Type, header};
use crate::os;

/// How many objects ahead the loops prefetch.
const AHEAD: usize = 16;

/// Prefetches the object [`AHEAD`] places behind the one with this index.
///
/// # Safety
/// `index` is less than the number of objects.
#[inline(always)]
pub(super) unsafe fn prefetch(objects: &[usize], index: usize) {
    // SAFETY: the caller's promise.
    let ahead = unsafe { *objects.get_unchecked((index + AHEAD).min(objects.len() - 1)) };
    os::prefetch(core::ptr::without_provenance(ahead));
}

/// `subtract_refs` and `update_refs`, from the object with this index on. Returns the index of the first object that it does not handle.
///
/// # Safety
/// The objects are tracked, or 0; those of `kind` have no references but those of its first run, and nothing changes meanwhile. `slowly`
/// takes one off the count of an object that its byte does not hold.
pub(super) unsafe fn subtract_refs<const SHIFT: u32>(
    places: Places<SHIFT>,
    objects: &[usize],
    mut index: usize,
    kind: &Type,
    slowly: unsafe fn(Places<SHIFT>, usize),
) -> usize {
    // SAFETY: the caller's promise, and so the invariants of headers: by 1 an object has a type to compare, by 2 and 3 it has all slots of
    // the type's first run, which hold 0 or what was an object; each byte that `places` finds is in the table.
    unsafe {
        while index < objects.len() {
            let object = *objects.get_unchecked(index);
            if object == 0 {
                index += 1;
                continue;
            }
            prefetch(objects, index);
            if !header::is_of(object, kind) {
                break;
            }
            let refcnt = header::refcnt(object);
            let Some(at) = places.near(object) else { break };
            let state = *at;
            if refcnt > usize::from(MOST_REFS) || state == MANY_REFS {
                break;
            }
            *at = state + refcnt as u8;
            index += 1;
            let mut slot = header::first_slot(kind, object);
            let end = slot.add(kind.refs.count as usize);
            while slot != end {
                let reference = (*slot).0;
                slot = slot.add(1);
                match places.near(reference) {
                    Some(at) if *at > LEAST_REFS && *at < MANY_REFS => *at -= 1,
                    Some(at) if *at == LEAST_REFS || *at == MANY_REFS => slowly(places, reference),
                    Some(_) => {}
                    None if reference == 0 => {}
                    None => slowly(places, reference),
                }
            }
        }
    }
    index
}

/// `move_unreachable`, from the object with this index on. Returns the index of the first object that it does not handle.
///
/// # Safety
/// As for [`subtract_refs`]; references have been counted. Both vectors have room for all objects. `slowly` says whether an object must be
/// moved back if its byte does not tell.
pub(super) unsafe fn move_unreachable<const SHIFT: u32>(
    places: Places<SHIFT>,
    objects: &mut [usize],
    mut index: usize,
    kind: &Type,
    unreachable: &mut Vec<usize>,
    moved_back: &mut Vec<usize>,
    slowly: unsafe fn(Places<SHIFT>, usize) -> bool,
) -> usize {
    let (mut found, found_at) = (unreachable.len(), unreachable.as_mut_ptr());
    // SAFETY: the caller's promise, and so the invariants of headers: by 1 an object has a type to compare, by 2 and 3 it has all slots of
    // the type's first run, which hold 0 or what was an object; each byte that `places` finds is in the table.
    unsafe {
        while index < objects.len() {
            let object = *objects.get_unchecked(index);
            if object == 0 {
                index += 1;
                continue;
            }
            prefetch(objects, index);
            if !header::is_of(object, kind) {
                break;
            }
            let Some(at) = places.near(object) else { break };
            let state = *at;
            if state == NO_REFS {
                *at = UNREACHABLE;
                debug_assert!(found < unreachable.capacity(), "there is room for all");
                *found_at.add(found) = object;
                found += 1;
                *objects.get_unchecked_mut(index) = 0;
                index += 1;
                continue;
            }
            if state == MANY_REFS {
                break;
            }
            *at = LIVE;
            index += 1;
            let mut slot = header::first_slot(kind, object);
            let end = slot.add(kind.refs.count as usize);
            while slot != end {
                let reference = (*slot).0;
                slot = slot.add(1);
                let moved = match places.near(reference) {
                    // Most are known to be reached, or are not in this collection.
                    Some(at) if *at > NO_REFS && *at != MANY_REFS => false,
                    Some(at) if *at == NO_REFS => {
                        *at = NO_REFS + 1;
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
        unreachable.set_len(found);
    }
    index
}
