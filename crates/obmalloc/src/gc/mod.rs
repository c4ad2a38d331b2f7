//! Room `gc`: tracking, and the cyclic collector (`Python/gc.c`, before 3.13 `Modules/gcmodule.c`). Leans on `object`.
//!
//! [`collect`] has the phases of a collection under CPython's names, and the collectors that are made of them. [`weakref`] has weak
//! references and calls their callbacks. [`module`] is Python's `gc` module.

mod collect;
pub(crate) mod list;
mod module;
mod verify;
mod weakref;

use alloc::vec::Vec;
use list::{GcList, LISTS, ListId};

use crate::domain::{Fault, FaultKind};
use crate::heap::Mode;
use crate::interrupt::Interrupt;
use crate::object::handle::{GcObject, Quiet};
use crate::object::table::{self, ObjectByte};
use crate::object::{ObjectError, ObjectHeap, object_fault};
use crate::profile::{Algorithm, Automatic, Counted, ObjectRules};

/// Number of generations (`NUM_GENERATIONS`).
const GENERATIONS: usize = 3;

/// `gc.DEBUG_STATS`
pub const DEBUG_STATS: u32 = 1;
/// `gc.DEBUG_COLLECTABLE`
pub const DEBUG_COLLECTABLE: u32 = 2;
/// `gc.DEBUG_UNCOLLECTABLE`
pub const DEBUG_UNCOLLECTABLE: u32 = 4;
/// `gc.DEBUG_SAVEALL`
pub const DEBUG_SAVEALL: u32 = 32;

/// Whether a collection starts or has stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// The collection starts.
    Start,
    /// The collection has stopped.
    Stop,
}

/// What `gc.callbacks` learn about a collection.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Info {
    /// The oldest generation that is collected.
    pub generation: usize,
    /// Unreachable objects found; 0 at the start.
    pub collected: usize,
    /// Unreachable objects that could not be destroyed; 0 at the start.
    pub uncollectable: usize,
}

/// The statistics of the collections of a generation (`gc.get_stats()`).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct GenerationStats {
    /// How many there were.
    pub collections: usize,
    /// Unreachable objects found.
    pub collected: usize,
    /// Unreachable objects that could not be destroyed.
    pub uncollectable: usize,
}

/// The collector's state (`struct _gc_runtime_state`).
pub(crate) struct Gc {
    pub lists: [GcList; LISTS],
    /// For each generation, what has been counted since it was last collected: objects, or collections of the next younger one.
    pub count: [i32; GENERATIONS],
    pub threshold: [i32; GENERATIONS],
    pub enabled: bool,
    pub collecting: bool,
    /// Whether the next operation on objects must run a collection first.
    pub scheduled: bool,
    pub debug: u32,
    /// Objects that survived a full collection.
    pub long_lived_total: usize,
    /// Objects that survived a collection of the middle generation, but have not been in a full one.
    pub long_lived_pending: usize,
    pub stats: [GenerationStats; GENERATIONS],
    /// The objects that collections have put into `gc.garbage`, until the caller takes them.
    pub garbage: Vec<usize>,
    pub incremental: collect::Progress,
    pub scratch: collect::Scratch,
}

impl Gc {
    pub fn new(rules: &ObjectRules) -> Self {
        Self {
            lists: Default::default(),
            count: [0; GENERATIONS],
            threshold: rules.thresholds,
            enabled: true,
            collecting: false,
            scheduled: false,
            debug: 0,
            long_lived_total: 0,
            long_lived_pending: 0,
            stats: Default::default(),
            garbage: Vec::new(),
            incremental: collect::Progress::default(),
            scratch: collect::Scratch::default(),
        }
    }

    /// Counts one more towards a generation's next collection. The count wraps like the `int` in CPython.
    #[inline]
    pub fn count_up(&mut self, generation: usize) {
        self.count[generation] = self.count[generation].wrapping_add(1);
    }

    pub fn list(&mut self, id: ListId) -> &mut GcList {
        &mut self.lists[id as usize]
    }

    /// Appends a list to another, for which there is room.
    pub fn merge(&mut self, from: ListId, to: ListId) {
        self.try_merge(from, to, Interrupt::NEVER);
    }

    /// As [`merge`](Self::merge); false if it was interrupted, so that some objects are still in the first list.
    pub fn try_merge(&mut self, from: ListId, to: ListId, interrupt: Interrupt) -> bool {
        let lists = self.lists.get_disjoint_mut([from as usize, to as usize]);
        lists.is_err() || lists.is_ok_and(|[from, to]| to.merge(from, interrupt))
    }

    /// Moves an object to the end of a list (`gc_list_move`), which has room for it.
    pub fn move_to(&mut self, object: GcObject<'_>, to: ListId) {
        self.remove(object);
        self.list(to).append(object);
    }

    /// Takes a tracked object out of its list.
    fn remove(&mut self, object: GcObject<'_>) {
        let old = self.list(ListId::Old);
        if old.has(object) {
            // Most objects are old.
            old.remove(object);
        } else if let Some(list) = self.lists.iter_mut().find(|list| list.has(object)) {
            list.remove(object);
        }
    }

    /// All objects that are tracked and not frozen, outside collections.
    fn tracked(&self) -> usize {
        self.lists.iter().map(GcList::len).sum()
    }
}

impl ObjectHeap {
    /// Counts the allocation of a GC object (`_PyObject_GC_Link`). Returns whether a collection must run at once.
    #[inline]
    pub(crate) fn gc_link(&self) -> bool {
        if self.rules.counted != Counted::Allocations {
            return false;
        }
        self.state().gc.count_up(0);
        self.is_triggered()
    }

    /// Counts the end of a GC object (`PyObject_GC_Del`).
    #[inline]
    pub(crate) fn gc_unlink(&self) {
        let gc = &mut self.state().gc;
        if self.rules.counted == Counted::Allocations && gc.count[0] > 0 {
            gc.count[0] -= 1;
        }
    }

    /// If the count of the youngest generation asks for a collection, schedules it, or returns true if the release runs it at once.
    #[inline]
    fn is_triggered(&self) -> bool {
        let gc = &mut self.state().gc;
        if gc.count[0] <= gc.threshold[0] || !gc.enabled || gc.threshold[0] == 0 || gc.collecting {
            return false;
        }
        match self.rules.automatic {
            Automatic::InsideAllocation => true,
            Automatic::Scheduled { .. } => {
                gc.scheduled = true;
                false
            }
        }
    }

    /// Runs the collection that an allocation has scheduled. Does nothing if none is scheduled, a hook is running, or a guest is being asked.
    /// Every operation on objects begins with this; the interpreter does it between two instructions (`_Py_RunGC`).
    #[inline]
    pub fn run_scheduled(&self) {
        if self.mode().get() == Mode::Open {
            self.run_scheduled_in(&mut self.quiet());
        }
    }

    #[inline]
    pub(crate) fn run_scheduled_in(&self, quiet: &mut Quiet<'_>) {
        if self.state().gc.scheduled && self.depth.get() == 0 {
            self.run_scheduled_now(quiet);
        }
    }

    /// Whether [`run_scheduled`](Self::run_scheduled) has something to do.
    #[inline]
    pub fn is_scheduled(&self) -> bool {
        self.state().gc.scheduled
    }

    #[cold]
    fn run_scheduled_now(&self, quiet: &mut Quiet<'_>) {
        let gc = &mut self.state().gc;
        gc.scheduled = false;
        let called_off = !gc.enabled && self.rules.automatic == (Automatic::Scheduled { disable_calls_off: true });
        if !called_off && !gc.collecting {
            self.collect_automatically(quiet);
        }
    }

    /// `gc_collect_generations`; of the incremental collector, an increment.
    pub(crate) fn collect_automatically(&self, quiet: &mut Quiet<'_>) {
        let generation = match self.rules.algorithm {
            Algorithm::Generational => self.select_generation(),
            Algorithm::Incremental => Some(1),
        };
        if let Some(generation) = generation
            && let Err(error) = self.collect_with_callbacks(generation, quiet)
        {
            self.in_hook(quiet, |hooks| hooks.collection_failed(self, error));
        }
    }

    /// The oldest generation whose count is above its threshold (`gc_select_generation`). Generation 2 only if at least a quarter as many
    /// objects as survived its last collection have joined it since: otherwise a growing program would spend more and more time on it.
    fn select_generation(&self) -> Option<usize> {
        let gc = &self.state().gc;
        (0..GENERATIONS).rev().find(|&generation| {
            gc.count[generation] > gc.threshold[generation]
                && !(generation == GENERATIONS - 1 && gc.long_lived_pending < gc.long_lived_total / 4)
        })
    }

    /// Makes room for an object that is to be tracked.
    #[inline]
    pub(crate) fn reserve_track(&self) -> Result<(), ObjectError> {
        let young = self.state().gc.list(ListId::Young);
        if young.promise(1) { Ok(()) } else { Ok(young.reserve(1, self.interrupt())?) }
    }

    /// `_PyObject_GC_TRACK`, where there is memory for it.
    pub(crate) fn track_object(&self, object: GcObject<'_>) -> Result<(), ObjectError> {
        self.reserve_track()?;
        let gc = &mut self.state().gc;
        gc.list(ListId::Young).append(object);
        if self.rules.counted == Counted::Tracking {
            gc.count_up(0);
            gc.incremental.heap_size += 1;
            let now = self.is_triggered();
            debug_assert!(!now, "where tracking is what counts, collections are scheduled");
        }
        Ok(())
    }

    /// `_PyObject_GC_UNTRACK`, if the object is tracked. A collection that has found it unreachable leaves it alone from now on.
    pub(crate) fn untrack_object(&self, object: GcObject<'_>, quiet: &Quiet<'_>) {
        self.untrack_at(object, self.table().byte_of(*object, quiet));
    }

    /// As [`untrack_object`](Self::untrack_object); `at` is the object's byte of the table.
    #[inline]
    pub(crate) fn untrack_at(&self, object: GcObject<'_>, at: ObjectByte<'_>) {
        if object.gc_next() == 0 {
            return;
        }
        if at.get() == table::UNREACHABLE {
            at.set_live();
            object.set_gc_next(0);
        } else {
            self.state().gc.remove(object);
        }
        self.count_untracked();
    }

    /// Uncounts a tracked object, if the release counts tracked objects.
    #[inline]
    pub(super) fn count_untracked(&self) {
        let gc = &mut self.state().gc;
        if self.rules.counted == Counted::Tracking {
            gc.count[0] -= i32::from(gc.count[0] > 0);
            gc.incremental.heap_size -= 1;
        }
    }

    /// An object that can be changed, of a GC type.
    fn look_gc<'quiet>(&self, object: usize, quiet: &'quiet Quiet<'_>) -> Result<GcObject<'quiet>, Fault> {
        self.look_alive(object, quiet)?.gc().ok_or(object_fault(FaultKind::WrongType, object))
    }

    /// `PyObject_GC_Track`
    ///
    /// # Errors
    /// When `object` is no GC object, is tracked already, or there is no memory.
    #[doc(alias = "PyObject_GC_Track")]
    pub fn track(&self, object: usize) -> Result<(), ObjectError> {
        let quiet = self.change(object)?;
        let found = self.look_gc(object, &quiet)?;
        if found.gc_next() != 0 {
            return Err(object_fault(FaultKind::GcAlreadyTracked, object).into());
        }
        self.track_object(found)
    }

    /// `PyObject_GC_UnTrack`; an object that is not tracked is left as it is.
    ///
    /// # Errors
    /// When `object` is no GC object.
    #[doc(alias = "PyObject_GC_UnTrack")]
    pub fn untrack(&self, object: usize) -> Result<(), Fault> {
        // An object may be untracked in its `tp_dealloc`, where it is untracked already.
        if self.look_open(object, &self.quiet())?.kind().gc && self.table().state(object) == table::DYING {
            return Ok(());
        }
        let quiet = self.change(object)?;
        self.untrack_object(self.look_gc(object, &quiet)?, &quiet);
        Ok(())
    }

    /// `PyObject_GC_Del`: frees the memory of an object, without its finalizers, for a caller that has made an object and cannot finish it. Its
    /// references are given back too.
    ///
    /// # Errors
    /// When `object` is no GC object, or other objects refer to it. When it is interrupted: the object is still there, but untracked, and some
    /// of its references are gone.
    #[doc(alias = "PyObject_GC_Del")]
    pub fn gc_del(&self, object: usize) -> Result<(), ObjectError> {
        let quiet = &mut self.change(object)?;
        let found = self.look_gc(object, quiet)?;
        let kind = self.kind_of(*found);
        if found.refcnt() != 1 || self.is_held(*found, quiet) {
            return Err(ObjectError::Argument("an object that nothing else refers to"));
        }
        self.untrack_object(found, quiet);
        self.clear_weakrefs_silently(*found);
        // From here on hooks cannot use the object.
        self.table().byte_of(*found, quiet).set_dying();
        // SAFETY: as above; only this call gives its memory back.
        if !unsafe { self.clear_references(kind, object, quiet) } {
            self.table().mark_live(object, quiet);
            return Err(ObjectError::Aborted);
        }
        if kind.is_weakref() {
            self.clear_weakref(object, quiet);
        }
        self.gc_unlink();
        self.table().bury(object, quiet);
        // SAFETY: buried just above.
        unsafe { self.free_block(object - kind.presize, quiet) };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::{NoHooks, TypeSpec};
    use crate::{HeapOptions, profile};
    use alloc::boxed::Box;

    #[test]
    fn counts_wrap_where_an_int_ends() {
        for profile in profile::ALL {
            let heap = ObjectHeap::new(HeapOptions::new(profile), Box::new(NoHooks)).unwrap();
            let kind = heap.define_type(TypeSpec { name: "node".into(), gc: true, ..TypeSpec::default() }).unwrap();
            heap.collect(2).unwrap();
            for generation in 0..GENERATIONS - 1 {
                heap.state().gc.count = [i32::MAX; GENERATIONS];
                heap.collect(generation).unwrap();
            }
            heap.state().gc.count = [i32::MAX; GENERATIONS];
            heap.disable_gc();
            heap.decref(heap.alloc(kind, 0).unwrap()).unwrap();
            heap.decref(heap.alloc(kind, 0).unwrap()).unwrap();
            assert!(heap.count()[0] < 0, "{}", profile.release);
            heap.verify().unwrap();
        }
    }
}
