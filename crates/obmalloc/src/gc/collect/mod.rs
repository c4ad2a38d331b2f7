//! A collection from its beginning to its end, and the generational collector. The files beside this one have the phases, under CPython's
//! names.

mod clear;
mod finalize;
mod incremental;
mod reach;
mod refs;
mod scan;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

pub(super) use incremental::Progress;

use super::list::{Entry, ListId};
use super::{DEBUG_COLLECTABLE, DEBUG_STATS, DEBUG_UNCOLLECTABLE, GENERATIONS, Info, Phase};
use crate::address_hash::AddressMap;
use crate::object::handle::{GcObject, Quiet};
use crate::object::table::UNREACHABLE;
use crate::object::{ObjectError, ObjectHeap};
use crate::os;
use crate::profile::{Algorithm, WeakrefsCleared};

/// A collection's working memory, kept for the next one.
#[derive(Default)]
pub(crate) struct Scratch {
    /// The unreachable objects, in CPython's order. An object that has died, or has turned out to be reachable, is still here, but its byte in
    /// the table is not [`UNREACHABLE`].
    unreachable: Vec<usize>,
    /// Objects that looked unreachable at their turn, and were reached later.
    moved_back: Vec<Entry>,
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
    pub(super) fn collect_with_callbacks(&self, generation: usize, quiet: &mut Quiet<'_>) -> Result<usize, ObjectError> {
        if !self.state().trash.is_empty() {
            self.take_up_trash(quiet);
        }
        self.state().gc.collecting = true;
        let mut info = Info { generation, ..Info::default() };
        self.in_hook(quiet, |hooks| hooks.gc_callback(self, Phase::Start, &info));
        let began = os::seconds();
        let result = self.collect_main(generation, quiet);
        let found = result.unwrap_or_default();
        let done = |quiet: &mut Quiet<'_>| {
            if result.is_ok() && self.state().gc.debug & DEBUG_STATS != 0 {
                let (all, uncollectable) = (found.collected + found.uncollectable, found.uncollectable);
                // `%.4f`, done by hand: formatting of floats would be a thirtieth of the WebAssembly module, and nothing else needs it.
                let ten_thousandths = ((os::seconds() - began) * 1e4 + 0.5) as u64;
                let (seconds, digits) = (ten_thousandths / 10_000, ten_thousandths % 10_000);
                let text =
                    format!("gc: done, {all} unreachable, {uncollectable} uncollectable, {seconds}.{digits:04}s elapsed\n");
                self.say(&text, quiet);
            }
        };
        if self.rules.algorithm == Algorithm::Generational {
            done(quiet);
        }
        (info.collected, info.uncollectable) = (found.collected, found.uncollectable);
        let stats = &mut self.state().gc.stats[generation];
        stats.collections += usize::from(!found.idle);
        stats.collected += found.collected;
        stats.uncollectable += found.uncollectable;
        self.in_hook(quiet, |hooks| hooks.gc_callback(self, Phase::Stop, &info));
        self.state().gc.collecting = false;
        if self.rules.algorithm == Algorithm::Incremental {
            done(quiet);
        }
        result.map(|found| found.collected + found.uncollectable)
    }

    /// `gc_collect_main`
    fn collect_main(&self, generation: usize, quiet: &mut Quiet<'_>) -> Result<Found, ObjectError> {
        if self.state().gc.debug & DEBUG_STATS != 0 {
            self.show_stats_each_generations(generation, quiet);
        }
        match self.rules.algorithm {
            Algorithm::Generational => self.collect_generation(generation, quiet),
            Algorithm::Incremental => self.collect_incrementally(generation, quiet),
        }
    }

    /// Writes a text that CPython writes to its standard error.
    fn say(&self, text: &str, quiet: &mut Quiet<'_>) {
        self.in_hook(quiet, |hooks| hooks.write(text));
    }

    fn show_stats_each_generations(&self, generation: usize, quiet: &mut Quiet<'_>) {
        let gc = &self.state().gc;
        let order = match self.rules.algorithm {
            Algorithm::Generational => [ListId::Young, ListId::Middle, ListId::Old],
            Algorithm::Incremental => [ListId::Young, gc.incremental.visited(), gc.incremental.pending()],
        };
        let [a, b, c] = order.map(|id| gc.lists[id as usize].len());
        let frozen = gc.lists[ListId::Permanent as usize].len();
        self.say(&format!("gc: collecting generation {generation}...\n"), quiet);
        let text = format!("gc: objects in each generation: {a} {b} {c}\ngc: objects in permanent generation: {frozen}\n");
        self.say(&text, quiet);
    }

    /// Collects a generation and all that are younger.
    fn collect_generation(&self, generation: usize, quiet: &mut Quiet<'_>) -> Result<Found, ObjectError> {
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
        self.deduce_unreachable(young, quiet)?;
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
        let found = self.collect_unreachable(old, quiet)?;
        if generation == GENERATIONS - 1 {
            self.clear_free_lists(quiet);
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
    pub(super) fn collect_unreachable(&self, old: ListId, quiet: &mut Quiet<'_>) -> Result<Found, ObjectError> {
        let mut unreachable = core::mem::take(&mut self.state().gc.scratch.unreachable);
        let result = self.end_unreachable(&mut unreachable, old, quiet);
        if result.is_err() {
            // The collection was interrupted: the objects that are left live on.
            self.each_unreachable(&unreachable, quiet, |object| self.rejoin(object, old, quiet));
            self.state().gc.merge(ListId::Finalizers, old);
        }
        unreachable.clear();
        self.state().gc.scratch.unreachable = unreachable;
        result
    }

    /// The phases that follow once the unreachable objects are known, as `gc_collect_main` has them after `deduce_unreachable`.
    fn end_unreachable(&self, unreachable: &mut Vec<usize>, old: ListId, quiet: &mut Quiet<'_>) -> Result<Found, ObjectError> {
        let mut found = Found::default();
        if unreachable.is_empty() {
            return Ok(found);
        }
        self.move_legacy_finalizers(unreachable, quiet);
        self.move_legacy_finalizer_reachable(quiet)?;
        if self.state().gc.debug & DEBUG_COLLECTABLE != 0 {
            for &object in &*unreachable {
                self.debug_cycle("collectable", self.table().unreachable(object, quiet).map(described), quiet);
            }
        }
        let (freed, called_back) = self.handle_weakrefs(unreachable, old, quiet)?;
        found.collected += freed;
        let finalized = self.finalize_garbage(unreachable, quiet)?;
        // If no hook ran, no object can have become reachable.
        if (called_back || finalized) && !self.handle_resurrected_objects(unreachable, old, quiet)? {
            unreachable.clear();
        }
        if self.rules.weakrefs_cleared != WeakrefsCleared::BeforeFinalizers {
            self.clear_weakrefs_of(unreachable, quiet);
        }
        found.collected += unreachable.iter().filter(|&&object| self.table().state(object) == UNREACHABLE).count();
        self.delete_garbage(unreachable, old, quiet)?;
        found.uncollectable = self.state().gc.list(ListId::Finalizers).len();
        if self.state().gc.debug & DEBUG_UNCOLLECTABLE != 0 {
            for place in 0..self.state().gc.list(ListId::Finalizers).entries().len() {
                let object = self.state().gc.list(ListId::Finalizers).at(place, quiet);
                self.debug_cycle("uncollectable", object.map(described), quiet);
            }
        }
        self.handle_legacy_finalizers(old, quiet);
        Ok(found)
    }

    /// Calls `visit` with each of the objects that is still in the set of unreachable ones.
    pub(super) fn each_unreachable<'quiet>(
        &self,
        unreachable: &[usize],
        quiet: &'quiet Quiet<'_>,
        visit: impl FnMut(GcObject<'quiet>),
    ) {
        unreachable.iter().filter_map(|&object| self.table().unreachable(object, quiet)).for_each(visit);
    }

    /// Moves an object from the set of unreachable ones to a list, which has room.
    fn rejoin(&self, object: GcObject<'_>, list: ListId, quiet: &Quiet<'_>) {
        self.table().byte_of(*object, quiet).set_live();
        self.state().gc.list(list).append(object);
    }

    /// Finds the objects of `base` that nothing outside `base` reaches, and moves them to the set of unreachable ones.
    ///
    /// # Errors
    /// When a hook fails or does not tell the truth, or it is interrupted: all objects are in `base` again, perhaps in another order.
    pub(super) fn deduce_unreachable(&self, base: ListId, quiet: &Quiet<'_>) -> Result<(), ObjectError> {
        let gc = &mut self.state().gc;
        let all = gc.list(base).len();
        let scratch = &mut gc.scratch;
        let room = scratch.unreachable.try_reserve(all).is_ok() && scratch.moved_back.try_reserve(all).is_ok();
        if !room {
            return Err(ObjectError::NoMemory);
        }
        gc.list(base).reserve(all, self.interrupt())?;
        // The list is empty meanwhile, so that no other code can reach the entries.
        let mut entries = gc.list(base).take_entries();
        let count = entries.len();
        let counted = self.count_refs(&mut entries, quiet);
        let mut left = core::mem::take(&mut self.state().gc.scratch.set_aside);
        let deduced = counted.and_then(|()| {
            let mut unreachable = core::mem::take(&mut self.state().gc.scratch.unreachable);
            let (more, moved) = self.move_unreachable(&mut entries, &mut unreachable, quiet);
            left += more;
            self.state().gc.scratch.unreachable = unreachable;
            moved
        });
        self.state().gc.list(base).put_back(entries, left, count);
        deduced
    }

    /// Writes what was found, if anything was.
    fn debug_cycle(&self, what: &str, described: Option<String>, quiet: &mut Quiet<'_>) {
        if let Some(object) = described {
            self.say(&format!("gc: {what} {object}\n"), quiet);
        }
    }
}

/// The name of an object's type, and its address.
fn described(object: GcObject<'_>) -> String {
    format!("<{} {:#x}>", object.kind().name(), object.address())
}
