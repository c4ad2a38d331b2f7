//! The two loops in which a collection spends its time. They handle runs of objects of one type whose references lie side by side. At any
//! other object a loop stops, and the phase that called it handles that object.

use alloc::vec::Vec;

use crate::gc::list::Entry;
use crate::object::Type;
use crate::object::handle::GcObject;
use crate::object::table::{LEAST_REFS, LIVE, MANY_REFS, MOST_REFS, NO_REFS, Places, UNREACHABLE};
use crate::os;

/// How many objects ahead the loops prefetch.
const AHEAD: usize = 16;

/// Prefetches the object [`AHEAD`] places behind the one with this index.
#[inline(always)]
pub(super) fn prefetch<T>(objects: &[T], index: usize, address: impl Fn(&T) -> usize) {
    if let Some(ahead) = objects.get(index + AHEAD) {
        os::prefetch(core::ptr::without_provenance(address(ahead)));
    }
}

/// `subtract_refs` and `update_refs`, from the object with this index on. Returns the index of the first object that it does not handle.
/// `slowly` takes one off the count of an object that its byte does not hold.
pub(super) fn subtract_refs_of_run<const SHIFT: u32>(
    places: Places<'_, SHIFT>,
    objects: &[Entry],
    mut index: usize,
    kind: &Type,
    slowly: fn(Places<'_, SHIFT>, usize),
) -> usize {
    while let Some(entry) = objects.get(index) {
        let Some(object) = entry.object(places.quiet) else {
            index += 1;
            continue;
        };
        prefetch(objects, index, Entry::address);
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
/// been counted. `slowly` gives the object if it must be moved back, where its byte does not tell.
///
/// # Safety
/// `unreachable` has room for all objects.
pub(super) unsafe fn move_unreachable_in_run<const SHIFT: u32>(
    places: Places<'_, SHIFT>,
    objects: &mut [Entry],
    mut index: usize,
    kind: &Type,
    unreachable: &mut Vec<usize>,
    moved_back: &mut Vec<Entry>,
    slowly: for<'quiet> fn(Places<'quiet, SHIFT>, usize) -> Option<GcObject<'quiet>>,
) -> usize {
    let (mut found, found_at) = (unreachable.len(), unreachable.as_mut_ptr());
    while let Some(entry) = objects.get(index) {
        let Some(object) = entry.object(places.quiet) else {
            index += 1;
            continue;
        };
        prefetch(objects, index, Entry::address);
        if !object.is_of(kind) {
            break;
        }
        let Some(at) = places.near_object(object) else { break };
        let state = at.get();
        if state == NO_REFS {
            at.set(UNREACHABLE);
            debug_assert!(found < unreachable.capacity(), "there is room for all");
            // SAFETY: the caller's promise: there is room.
            unsafe { *found_at.add(found) = object.address() };
            found += 1;
            objects[index].clear();
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
                Some(at) if at.get() > NO_REFS && at.get() != MANY_REFS => None,
                Some(at) if at.get() == NO_REFS => {
                    at.undecided().inspect(|at| at.set(NO_REFS + 1));
                    None
                }
                None if reference == 0 => None,
                _ => slowly(places, reference),
            };
            if let Some(object) = moved {
                moved_back.push(Entry::of(object));
            }
        }
    }
    // SAFETY: so many have been written.
    unsafe { unreachable.set_len(found) };
    index
}
