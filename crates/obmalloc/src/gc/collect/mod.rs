//! A collection from its beginning to its end, and the generational collector. The files beside this one have the phases, under CPython's
//! names.

mod clear;
mod finalize;
mod incremental;
mod reach;
mod refs;
mod scan;

use alloc::format;
use alloc::vec::Vec;

pub(super) use incremental::Progress;

use super::list::ListId;
use super::{DEBUG_COLLECTABLE, DEBUG_STATS, DEBUG_UNCOLLECTABLE, GENERATIONS, Info, Phase};
use crate::address_hash::AddressMap;
use crate::object::table::{LIVE, UNREACHABLE};
use crate::object::{ObjectError, ObjectHeap, header};
use crate::os;
use crate::profile::{Algorithm, WeakrefsCleared};

/// A collection's working memory, kept for the next one.
#[derive(Default)]
pub(crate) struct Scratch {
    /// The unreachable objects, in CPython's order. An object that has died, or has turned out to be reachable, is still here, but its byte in
    /// the table is not [`UNREACHABLE`].
    unreachable: Vec<usize>,
    /// Objects that looked unreachable at their turn, and were reached later.
    moved_back: Vec<usize>,
    /// How many immortal objects have been taken out of the list.
    set_aside: usize,
    /// For each object whose type has a `traverse` hook, the range of `visits` with the objects that the hook visited. The hook is asked once a
    /// collection, so that one that answers differently the next time does no harm.
    visited: AddressMap<(usize, usize)>,
    visits: Vec<usize>,
}

/// The result of a collection.
#[derive(Clone, Copy, Default)]
pub(super) struct Found {
    pub collected: usize,
    pub uncollectable: usize,
    /// It was an increment without work, which statistics do not count.
    pub idle: bool,
}

impl ObjectHeap {
    /// `gc_collect_with_callback`, `_PyGC_Collect`
    pub(super) fn collect_with_callbacks(&self, generation: usize) -> Result<usize, ObjectError> {
        if self.state().trash != 0 {
            self.take_up_trash();
        }
        self.state().gc.collecting = true;
        let mut info = Info { generation, ..Info::default() };
        self.in_hook(|| self.hooks.gc_callback(self, Phase::Start, &info));
        let began = os::seconds();
        let result = self.collect_main(generation);
        let found = result.unwrap_or_default();
        let done = || {
            if result.is_ok() && self.state().gc.debug & DEBUG_STATS != 0 {
                let (all, uncollectable) = (found.collected + found.uncollectable, found.uncollectable);
                // `%.4f`, done by hand: formatting of floats would be a thirtieth of the WebAssembly module, and nothing else needs it.
                let ten_thousandths = ((os::seconds() - began) * 1e4 + 0.5) as u64;
                let (seconds, digits) = (ten_thousandths / 10_000, ten_thousandths % 10_000);
                self.say(&format!(
                    "gc: done, {all} unreachable, {uncollectable} uncollectable, {seconds}.{digits:04}s elapsed\n"
                ));
            }
        };
        if self.rules.algorithm == Algorithm::Generational {
            done();
        }
        (info.collected, info.uncollectable) = (found.collected, found.uncollectable);
        let stats = &mut self.state().gc.stats[generation];
        stats.collections += usize::from(!found.idle);
        stats.collected += found.collected;
        stats.uncollectable += found.uncollectable;
        self.in_hook(|| self.hooks.gc_callback(self, Phase::Stop, &info));
        self.state().gc.collecting = false;
        if self.rules.algorithm == Algorithm::Incremental {
            done();
        }
        result.map(|found| found.collected + found.uncollectable)
    }

    /// `gc_collect_main`
    fn collect_main(&self, generation: usize) -> Result<Found, ObjectError> {
        if self.state().gc.debug & DEBUG_STATS != 0 {
            self.show_stats_each_generations(generation);
        }
        match self.rules.algorithm {
            Algorithm::Generational => self.collect_generation(generation),
            Algorithm::Incremental => self.collect_incrementally(generation),
        }
    }

    /// Writes a text that CPython writes to its standard error.
    fn say(&self, text: &str) {
        self.in_hook(|| self.hooks.write(text));
    }

    fn show_stats_each_generations(&self, generation: usize) {
        let gc = &self.state().gc;
        let order = match self.rules.algorithm {
            Algorithm::Generational => [ListId::Young, ListId::Middle, ListId::Old],
            Algorithm::Incremental => [ListId::Young, gc.incremental.visited(), gc.incremental.pending()],
        };
        let [a, b, c] = order.map(|id| gc.lists[id as usize].len());
        let frozen = gc.lists[ListId::Permanent as usize].len();
        self.say(&format!("gc: collecting generation {generation}...\n"));
        self.say(&format!("gc: objects in each generation: {a} {b} {c}\ngc: objects in permanent generation: {frozen}\n"));
    }

    /// Collects a generation and all that are younger.
    fn collect_generation(&self, generation: usize) -> Result<Found, ObjectError> {
        self.reserve_for_collection()?;
        let ids = [ListId::Young, ListId::Middle, ListId::Old];
        let (young, old) = (ids[generation], ids[(generation + 1).min(GENERATIONS - 1)]);
        let gc = &mut self.state().gc;
        if generation + 1 < GENERATIONS {
            gc.count_up(generation + 1);
        }
        gc.count[..=generation].fill(0);
        for &id in &ids[..generation] {
            if !gc.try_merge(id, young, self.interrupt()) {
                return Err(ObjectError::Aborted);
            }
        }
        self.deduce_unreachable(young)?;
        let gc = &mut self.state().gc;
        if young == old {
            gc.long_lived_pending = 0;
            gc.long_lived_total = gc.list(young).len();
        } else {
            if generation == GENERATIONS - 2 {
                gc.long_lived_pending += gc.list(young).len();
            }
            gc.merge(young, old);
        }
        let found = self.collect_unreachable(old)?;
        if generation == GENERATIONS - 1 {
            self.clear_free_lists();
        }
        Ok(found)
    }

    /// Makes room in every list that a collection moves objects to, so that it cannot fail half-way.
    pub(super) fn reserve_for_collection(&self) -> Result<(), ObjectError> {
        use ListId::{Finalizers, Increment, Middle, Old, Permanent, Survivors, WrcbToCall, Young};
        let gc = &mut self.state().gc;
        let (all, interrupt) = (gc.tracked(), self.interrupt());
        // A weak reference may join a generation twice: with the survivors, and after its callback.
        [Young, Middle, Old, Increment, Survivors].into_iter().try_for_each(|id| gc.list(id).reserve_anew(2 * all, interrupt))?;
        [Permanent, Finalizers, WrcbToCall].into_iter().try_for_each(|id| gc.list(id).reserve_anew(all, interrupt))?;
        gc.scratch.unreachable.try_reserve(all).map_err(|_| ObjectError::NoMemory)
    }

    /// Handles the unreachable objects once they are known; those that live on join `old`. From the callbacks of weak references on, it can be
    /// interrupted only between two calls of hooks.
    pub(super) fn collect_unreachable(&self, old: ListId) -> Result<Found, ObjectError> {
        let mut unreachable = core::mem::take(&mut self.state().gc.scratch.unreachable);
        let result = self.end_unreachable(&mut unreachable, old);
        if result.is_err() {
            // The collection was interrupted: the objects that are left live on.
            self.each_unreachable(&unreachable, |object| self.rejoin(object, old));
            self.state().gc.merge(ListId::Finalizers, old);
        }
        unreachable.clear();
        self.state().gc.scratch.unreachable = unreachable;
        result
    }

    fn end_unreachable(&self, unreachable: &mut Vec<usize>, old: ListId) -> Result<Found, ObjectError> {
        let mut found = Found::default();
        if unreachable.is_empty() {
            return Ok(found);
        }
        self.move_legacy_finalizers(unreachable);
        self.move_legacy_finalizer_reachable()?;
        if self.state().gc.debug & DEBUG_COLLECTABLE != 0 {
            self.each_unreachable(unreachable, |object| self.debug_cycle("collectable", object));
        }
        let (freed, called_back) = self.handle_weakrefs(unreachable, old)?;
        found.collected += freed;
        let finalized = self.finalize_garbage(unreachable)?;
        // If no hook ran, no object can have become reachable.
        if (called_back || finalized) && !self.handle_resurrected_objects(unreachable, old)? {
            unreachable.clear();
        }
        if self.rules.weakrefs_cleared != WeakrefsCleared::BeforeFinalizers {
            self.clear_weakrefs_of(unreachable);
        }
        self.each_unreachable(unreachable, |_| found.collected += 1);
        self.delete_garbage(unreachable, old)?;
        found.uncollectable = self.state().gc.list(ListId::Finalizers).len();
        if self.state().gc.debug & DEBUG_UNCOLLECTABLE != 0 {
            let finalizers = &self.state().gc.lists[ListId::Finalizers as usize];
            finalizers.iter().for_each(|object| self.debug_cycle("uncollectable", object));
        }
        self.handle_legacy_finalizers(old);
        Ok(found)
    }

    /// Calls `visit` with each of the objects that is still in the set of unreachable ones.
    pub(super) fn each_unreachable(&self, unreachable: &[usize], mut visit: impl FnMut(usize)) {
        for &object in unreachable {
            if self.table().state(object) == UNREACHABLE {
                visit(object);
            }
        }
    }

    /// Moves an object from the set of unreachable ones to a list, which has room.
    fn rejoin(&self, object: usize, list: ListId) {
        let state = self.state();
        self.table().set(object, LIVE);
        state.gc.list(list).append(object);
    }

    /// Finds the objects of `base` that nothing outside `base` reaches, and moves them to the set of unreachable ones.
    ///
    /// # Errors
    /// When a hook fails or does not tell the truth, or it is interrupted: all objects are in `base` again, perhaps in another order.
    pub(super) fn deduce_unreachable(&self, base: ListId) -> Result<(), ObjectError> {
        let gc = &mut self.state().gc;
        let all = gc.list(base).len();
        let scratch = &mut gc.scratch;
        let room = scratch.unreachable.try_reserve(all).is_ok() && scratch.moved_back.try_reserve(all).is_ok();
        if !room {
            return Err(ObjectError::NoMemory);
        }
        gc.list(base).reserve(all, self.interrupt())?;
        // The list is empty meanwhile, so that no other code can reach the entries.
        let mut entries = core::mem::take(gc.list(base).entries_mut());
        let count = entries.len();
        let counted = self.count_refs(&mut entries);
        let mut left = core::mem::take(&mut self.state().gc.scratch.set_aside);
        let deduced = counted.and_then(|()| {
            let mut unreachable = core::mem::take(&mut self.state().gc.scratch.unreachable);
            let (more, moved) = self.move_unreachable(&mut entries, &mut unreachable);
            left += more;
            self.state().gc.scratch.unreachable = unreachable;
            moved
        });
        let list = self.state().gc.list(base);
        *list.entries_mut() = entries;
        list.update_counts(left, count);
        deduced
    }

    fn debug_cycle(&self, what: &str, object: usize) {
        // SAFETY: a tracked object.
        let name = unsafe { header::kind(object) }.name();
        self.say(&format!("gc: {what} <{name} {object:#x}>\n"));
    }
}
