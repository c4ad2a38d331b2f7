//! The phases of a collection, under CPython's names, and the generational collector.
//!
//! `gc_refs` are in the [table of objects](crate::object::table), a byte each: `update_refs` and `subtract_refs` are one pass over the
//! objects, which adds each object's references to its own count and takes one off the counts of those that it refers to, in whatever
//! order they come. An object that a byte cannot count for is counted where CPython counts, in the word before it.

use alloc::format;
use alloc::vec::Vec;

use super::list::ListId;
use super::{DEBUG_COLLECTABLE, DEBUG_SAVEALL, DEBUG_STATS, DEBUG_UNCOLLECTABLE, GENERATIONS, Info, Phase};
use crate::address_hash::AddressMap;
use crate::object::table::{self, LIVE, MANY_REFS, MOST_REFS, NO_REFS, ObjectTable, UNREACHABLE, is_undecided};
use crate::object::{ObjectError, ObjectHeap, Type, header};
use crate::os;
use crate::profile::{Algorithm, ImmortalMet, Resurrection, WeakrefsCleared};

/// Objects by which the processor is asked ahead.
const AHEAD: usize = 16;

/// What a collection works with, kept for the next one.
#[derive(Default)]
pub(crate) struct Scratch {
    /// Objects that looked unreachable when it was their turn.
    maybe_unreachable: Vec<usize>,
    /// What hooks have visited, of each object whose type has one: where in `visits` it begins and ends. One answer serves the whole
    /// collection, so that a hook that answers differently the next time does no harm.
    visited: AddressMap<(usize, usize)>,
    visits: Vec<usize>,
}

/// What came of a collection.
#[derive(Clone, Copy, Default)]
pub(super) struct Found {
    pub collected: usize,
    pub uncollectable: usize,
}

impl ObjectHeap {
    /// `gc_collect_with_callback`, `_PyGC_Collect`
    pub(super) fn collect_with_callbacks(&self, generation: usize) -> Result<usize, ObjectError> {
        self.state().gc.collecting = true;
        let mut info = Info { generation, ..Info::default() };
        self.in_hook(|| self.hooks.gc_callback(self, Phase::Start, &info));
        let result = self.collect_main(generation);
        let found = result.unwrap_or_default();
        (info.collected, info.uncollectable) = (found.collected, found.uncollectable);
        let stats = &mut self.state().gc.stats[generation];
        stats.collections += 1;
        stats.collected += found.collected;
        stats.uncollectable += found.uncollectable;
        self.in_hook(|| self.hooks.gc_callback(self, Phase::Stop, &info));
        self.state().gc.collecting = false;
        result.map(|found| found.collected + found.uncollectable)
    }

    /// `gc_collect_main`
    fn collect_main(&self, generation: usize) -> Result<Found, ObjectError> {
        let began = os::seconds();
        let stats = self.state().gc.debug & DEBUG_STATS != 0;
        if stats {
            self.show_stats_each_generations(generation);
        }
        let result = match self.rules.algorithm {
            Algorithm::Generational => self.collect_generation(generation),
            Algorithm::Incremental => self.collect_incrementally(generation),
        };
        if stats && let Ok(found) = &result {
            let (all, elapsed) = (found.collected + found.uncollectable, os::seconds() - began);
            self.hooks
                .write(&format!("gc: done, {all} unreachable, {} uncollectable, {elapsed:.4}s elapsed\n", found.uncollectable));
        }
        result
    }

    fn show_stats_each_generations(&self, generation: usize) {
        let gc = &self.state().gc;
        let order = match self.rules.algorithm {
            Algorithm::Generational => [ListId::Young, ListId::Middle, ListId::Old],
            Algorithm::Incremental => [ListId::Young, gc.incremental.visited(), gc.incremental.pending()],
        };
        let [a, b, c] = order.map(|id| gc.lists[id as usize].len());
        let frozen = gc.lists[ListId::Permanent as usize].len();
        self.hooks.write(&format!("gc: collecting generation {generation}...\n"));
        self.hooks
            .write(&format!("gc: objects in each generation: {a} {b} {c}\ngc: objects in permanent generation: {frozen}\n"));
    }

    /// Collects a generation and all that are younger.
    fn collect_generation(&self, generation: usize) -> Result<Found, ObjectError> {
        self.reserve_for_collection()?;
        let ids = [ListId::Young, ListId::Middle, ListId::Old];
        let (young, old) = (ids[generation], ids[(generation + 1).min(GENERATIONS - 1)]);
        let gc = &mut self.state().gc;
        if let Some(older) = gc.count.get_mut(generation + 1) {
            *older += 1;
        }
        gc.count[..=generation].fill(0);
        for &id in &ids[..generation] {
            gc.merge(id, young);
        }
        self.deduce_unreachable(young, ListId::Unreachable)?;
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
        use ListId::{FinalUnreachable, Finalizers, Increment, Middle, Old, Permanent, Seen, Unreachable, WrcbToCall, Young};
        let gc = &mut self.state().gc;
        let all = gc.tracked();
        // An object may join a generation twice: with the survivors, and after its weak reference's callback.
        let generations = [Young, Middle, Old].into_iter().all(|id| gc.list(id).reserve(2 * all));
        let others = [Permanent, Unreachable, Finalizers, Seen, FinalUnreachable, WrcbToCall, Increment];
        if generations && others.into_iter().all(|id| gc.list(id).reserve(all)) { Ok(()) } else { Err(ObjectError::NoMemory) }
    }

    /// What a collection does with the unreachable objects once it knows them: `old` is where those that stay go.
    pub(super) fn collect_unreachable(&self, old: ListId) -> Result<Found, ObjectError> {
        if self.state().gc.list(ListId::Unreachable).len() == 0 {
            return Ok(Found::default());
        }
        self.move_legacy_finalizers();
        self.move_legacy_finalizer_reachable()?;
        if self.state().gc.debug & DEBUG_COLLECTABLE != 0 {
            self.debug_cycles("collectable", ListId::Unreachable);
        }
        let mut found = Found::default();
        let (freed, called) = self.handle_weakrefs(old);
        found.collected += freed;
        let called = called | self.finalize_garbage();
        // What nothing has touched is as unreachable as it was.
        let last = if called { self.handle_resurrected_objects(old) } else { Ok(Some(ListId::Unreachable)) };
        let last = match last {
            Ok(last) => last,
            Err(error) => {
                // Nothing has been destroyed, and nothing is going to be.
                self.clear_collecting(ListId::Unreachable);
                let gc = &mut self.state().gc;
                gc.merge(ListId::Unreachable, old);
                gc.merge(ListId::Finalizers, old);
                return Err(error);
            }
        };
        if let Some(last) = last {
            if self.rules.weakrefs_cleared != WeakrefsCleared::BeforeFinalizers {
                self.clear_weakrefs_of(last);
            }
            found.collected += self.state().gc.list(last).len();
            self.delete_garbage(last, old);
        }
        found.uncollectable = self.state().gc.list(ListId::Finalizers).len();
        if self.state().gc.debug & DEBUG_UNCOLLECTABLE != 0 {
            self.debug_cycles("uncollectable", ListId::Finalizers);
        }
        self.handle_legacy_finalizers(old);
        Ok(found)
    }

    /// Finds out which objects of `base` nothing outside it reaches, and moves them to `unreachable`, which is empty.
    ///
    /// # Errors
    /// When a hook fails or does not tell the truth: the objects are where they were.
    pub(super) fn deduce_unreachable(&self, base: ListId, unreachable: ListId) -> Result<(), ObjectError> {
        let gc = &mut self.state().gc;
        let all = gc.list(base).len();
        if gc.scratch.maybe_unreachable.try_reserve(all).is_err() || !gc.list(base).reserve(all) {
            return Err(ObjectError::NoMemory);
        }
        self.count_refs(base)?;
        self.move_unreachable(base, unreachable);
        Ok(())
    }

    /// Counts, of every object of a list, the references that do not come from the others.
    fn count_refs(&self, base: ListId) -> Result<(), ObjectError> {
        let scratch = &mut self.state().gc.scratch;
        scratch.visited.clear();
        scratch.visits.clear();
        self.update_refs(base);
        let counted = self.subtract_refs(base);
        self.state().gc.list(base).settle();
        if counted.is_err() {
            self.clear_collecting(base);
        }
        counted
    }

    /// Says of every object that this collection has yet to decide about it.
    fn update_refs(&self, base: ListId) {
        let table = self.table();
        let entries = self.state().gc.lists[base as usize].entries();
        for (place, &object) in entries.iter().enumerate() {
            if let Some(&ahead) = entries.get(place + AHEAD) {
                table.prefetch(ahead);
            }
            if object != 0 {
                // SAFETY: a tracked object has a byte in the table.
                unsafe { *table.place(object) = NO_REFS };
            }
        }
    }

    /// Counts, of every object, the references that do not come from the others.
    fn subtract_refs(&self, base: ListId) -> Result<(), ObjectError> {
        let table = self.table();
        let count = self.state().gc.lists[base as usize].entries().len();
        for place in 0..count {
            // Hooks only look; the entries are fetched anew for those that list them.
            let entries = self.state().gc.lists[base as usize].entries();
            if let Some(&ahead) = entries.get(place + AHEAD) {
                os::prefetch(core::ptr::without_provenance(ahead));
            }
            let object = entries[place];
            if object == 0 {
                continue;
            }
            // SAFETY: a tracked object; nothing changes while references are counted.
            unsafe {
                let (refcnt, at) = (header::refcnt(object), table.place(object));
                let kind = header::kind(object);
                if refcnt > usize::from(MOST_REFS) || *at == MANY_REFS {
                    if !self.add_many(table, object, refcnt) {
                        self.set_aside(base, object);
                        continue;
                    }
                } else {
                    *at += refcnt as u8;
                }
                if kind.hooks.traverse {
                    self.subtract_visited(table, kind, object)?;
                } else {
                    header::each_reference(kind, object, |reference| visit_decref(table, reference));
                }
            }
        }
        Ok(())
    }

    /// Adds more references than a byte can count to an object's `gc_refs`; false when it is immortal.
    #[cold]
    unsafe fn add_many(&self, table: &ObjectTable, object: usize, refcnt: usize) -> bool {
        if self.is_immortal(refcnt) {
            return false;
        }
        // SAFETY: called by `subtract_refs`.
        unsafe { count_in_head(table.place(object), object, refcnt as isize) };
        true
    }

    /// An immortal object takes no part in collections.
    #[cold]
    fn set_aside(&self, base: ListId, object: usize) {
        let state = self.state();
        state.table.set(object, LIVE);
        // SAFETY: a tracked object.
        unsafe { header::set_gc_refs(object, 0) };
        // The list's other entries stay where they are, for `subtract_refs` goes on with them.
        // SAFETY: as above.
        let (_, place) = super::position(unsafe { header::gc_next(object) });
        state.gc.list(base).vacate(place);
        match self.rules.immortal_met {
            ImmortalMet::Frozen => state.gc.list(ListId::Permanent).append(object),
            // SAFETY: as above.
            ImmortalMet::Untracked => unsafe { header::set_gc_next(object, 0) },
        }
    }

    /// Asks a hook what an object refers to, and remembers the answer.
    #[cold]
    fn subtract_visited(&self, table: &ObjectTable, kind: &Type, object: usize) -> Result<(), ObjectError> {
        let visited = self.visited(kind, object)?;
        let scratch = &mut self.state().gc.scratch;
        if scratch.visited.try_reserve(1).is_err() || scratch.visits.try_reserve(visited.len()).is_err() {
            return Err(ObjectError::NoMemory);
        }
        let begin = scratch.visits.len();
        scratch.visits.extend_from_slice(&visited);
        scratch.visited.insert(object, (begin, scratch.visits.len()));
        for reference in visited {
            // SAFETY: an object, as `visited` has found.
            unsafe { visit_decref(table, reference) };
        }
        Ok(())
    }

    /// Calls `visit` with what an object in this collection refers to.
    #[inline(always)]
    unsafe fn traverse(&self, kind: &Type, object: usize, mut visit: impl FnMut(usize)) {
        if kind.hooks.traverse {
            let scratch = &self.state().gc.scratch;
            let (begin, end) = scratch.visited.get(&object).copied().unwrap_or_default();
            scratch.visits[begin..end].iter().for_each(|&reference| visit(reference));
        } else {
            // SAFETY: the caller gives an object of the type.
            unsafe { header::each_reference(kind, object, visit) };
        }
    }

    /// Moves what is not reached from outside to `unreachable`. What looks unreachable when it is its turn, and turns out to be reached
    /// from an object behind it, goes to the end of `base`.
    fn move_unreachable(&self, base: ListId, unreachable: ListId) {
        let table = self.table();
        let mut maybe_unreachable = core::mem::take(&mut self.state().gc.scratch.maybe_unreachable);
        let mut place = 0;
        loop {
            let entries = self.state().gc.lists[base as usize].entries();
            let Some(&object) = entries.get(place) else { break };
            if let Some(&ahead) = entries.get(place + AHEAD) {
                os::prefetch(core::ptr::without_provenance(ahead));
            }
            if object != 0 {
                // SAFETY: a tracked object.
                unsafe {
                    let at = table.place(object);
                    if *at == NO_REFS || (*at == MANY_REFS && header::gc_refs(object) == 0) {
                        *at = UNREACHABLE;
                        maybe_unreachable.push(object);
                        self.state().gc.list(base).vacate(place);
                    } else {
                        if *at == MANY_REFS {
                            header::set_gc_refs(object, 0);
                        }
                        *at = LIVE;
                        let kind = header::kind(object);
                        self.traverse(kind, object, |reference| {
                            if visit_reachable(table, reference) {
                                self.state().gc.list(base).append(reference);
                            }
                        });
                    }
                }
            }
            place += 1;
        }
        let gc = &mut self.state().gc;
        gc.list(base).settle();
        for &object in &maybe_unreachable {
            if table.state(object) == UNREACHABLE {
                gc.list(unreachable).append(object);
            }
        }
        maybe_unreachable.clear();
        gc.scratch.maybe_unreachable = maybe_unreachable;
    }

    /// Moves objects with a `tp_del` from the unreachable ones to the finalizers.
    fn move_legacy_finalizers(&self) {
        let state = self.state();
        if !state.types.iter().any(|kind| kind.hooks.del) {
            return;
        }
        for place in 0..state.gc.list(ListId::Unreachable).entries().len() {
            // The list loses its entries when its last object leaves.
            let Some(&object) = state.gc.list(ListId::Unreachable).entries().get(place) else { break };
            // SAFETY: a tracked object.
            if object != 0 && unsafe { header::kind(object) }.hooks.del {
                state.table.set(object, LIVE);
                state.gc.move_to(object, ListId::Finalizers);
            }
        }
    }

    /// Moves what is reached from the finalizers to them, from the unreachable objects.
    fn move_legacy_finalizer_reachable(&self) -> Result<(), ObjectError> {
        let mut place = 0;
        while let Some(&object) = self.state().gc.list(ListId::Finalizers).entries().get(place) {
            // SAFETY: nothing has left the list, and all in it are tracked objects.
            unsafe {
                let kind = header::kind(object);
                self.traverse(kind, object, |reference| {
                    let state = self.state();
                    if state.table.state(reference) == UNREACHABLE {
                        state.table.set(reference, LIVE);
                        state.gc.move_to(reference, ListId::Finalizers);
                    }
                });
            }
            place += 1;
        }
        Ok(())
    }

    fn debug_cycles(&self, what: &str, list: ListId) {
        for object in self.state().gc.lists[list as usize].iter() {
            // SAFETY: a tracked object.
            let name = unsafe { header::kind(object) }.name();
            self.hooks.write(&format!("gc: {what} <{name} {object:#x}>\n"));
        }
    }

    /// Runs the finalizers of unreachable objects that have not been finalized; whether there were any.
    fn finalize_garbage(&self) -> bool {
        let gc = &mut self.state().gc;
        // SAFETY: tracked objects.
        let due = |object| unsafe { header::kind(object).hooks.finalize && !header::is_finalized(object) };
        if !gc.list(ListId::Unreachable).iter().any(due) {
            return false;
        }
        while let Some(object) = self.state().gc.list(ListId::Unreachable).first() {
            self.state().gc.move_to(object, ListId::Seen);
            if due(object) {
                // SAFETY: a tracked object, kept by the reference that it is given.
                unsafe {
                    header::set_finalized(object);
                    self.incref_object(object);
                    let id = header::kind(object).id();
                    self.in_hook(|| self.hooks.finalize(self, id, object));
                    self.decref_object(object);
                }
            }
        }
        self.state().gc.merge(ListId::Seen, ListId::Unreachable);
        true
    }

    /// Finds out which of the unreachable objects are so still, and gives the list that they are in. The others join `old`.
    fn handle_resurrected_objects(&self, old: ListId) -> Result<Option<ListId>, ObjectError> {
        if self.rules.resurrection == Resurrection::KeepsAll {
            return Ok(if self.check_garbage()? {
                Some(ListId::Unreachable)
            } else {
                self.state().gc.merge(ListId::Unreachable, old);
                None
            });
        }
        self.clear_collecting(ListId::Unreachable);
        self.deduce_unreachable(ListId::Unreachable, ListId::FinalUnreachable)?;
        self.state().gc.merge(ListId::Unreachable, old);
        Ok(Some(ListId::FinalUnreachable))
    }

    /// Whether all of the unreachable objects are so still (`check_garbage`). Their order stays.
    fn check_garbage(&self) -> Result<bool, ObjectError> {
        self.count_refs(ListId::Unreachable)?;
        let table = self.table();
        let unreachable = &self.state().gc.lists[ListId::Unreachable as usize];
        let is_garbage = |object| match table.state(object) {
            NO_REFS => true,
            // SAFETY: a tracked object.
            MANY_REFS => unsafe { header::gc_refs(object) == 0 },
            _ => false,
        };
        let all = unreachable.iter().all(is_garbage);
        self.clear_collecting(ListId::Unreachable);
        Ok(all)
    }

    /// Says of all objects in a list that no collection is about them (`gc_list_clear_collecting`).
    fn clear_collecting(&self, list: ListId) {
        let state = self.state();
        for object in state.gc.lists[list as usize].iter() {
            state.table.set(object, LIVE);
            // SAFETY: a tracked object.
            unsafe { header::set_gc_refs(object, 0) };
        }
    }

    /// Breaks the cycles: calls `tp_clear` of the unreachable objects, one after the other, which destroys most of them.
    fn delete_garbage(&self, garbage: ListId, old: ListId) {
        while let Some(object) = self.state().gc.list(garbage).first() {
            // SAFETY: a tracked object, kept by the reference that it is given.
            unsafe {
                let gc = &mut self.state().gc;
                if gc.debug & DEBUG_SAVEALL != 0 {
                    self.append_to_garbage(object);
                } else {
                    let kind = header::kind(object);
                    self.incref_object(object);
                    if kind.hooks.clear {
                        self.in_hook(|| self.hooks.clear(self, kind.id(), object));
                    } else if kind.is_weakref() {
                        self.clear_weakref(object);
                    } else {
                        self.clear_references(kind, object);
                    }
                    self.decref_object(object);
                }
            }
            let state = self.state();
            if state.gc.list(garbage).first() == Some(object) {
                // It lives on; it may die later.
                state.table.set(object, LIVE);
                state.gc.move_to(object, old);
            }
        }
    }

    /// Appends an object to `gc.garbage`, which takes a reference; without memory for it, it is left out.
    fn append_to_garbage(&self, object: usize) {
        let garbage = &mut self.state().gc.garbage;
        if garbage.try_reserve(1).is_ok() {
            garbage.push(object);
            // SAFETY: the caller gives a tracked object.
            unsafe { self.incref_object(object) };
        }
    }

    /// Puts objects with legacy finalizers into `gc.garbage`, and all that they reach to the old ones.
    fn handle_legacy_finalizers(&self, old: ListId) {
        let all = self.state().gc.debug & DEBUG_SAVEALL != 0;
        for place in 0..self.state().gc.list(ListId::Finalizers).entries().len() {
            let object = self.state().gc.list(ListId::Finalizers).entries()[place];
            // SAFETY: a tracked object.
            if object != 0 && (all || unsafe { header::kind(object) }.hooks.del) {
                self.append_to_garbage(object);
            }
        }
        self.state().gc.merge(ListId::Finalizers, old);
    }
}

/// Takes one off an object's `gc_refs`, if a collection has yet to decide about it.
///
/// # Safety
/// References are being counted.
#[inline(always)]
unsafe fn visit_decref(table: &ObjectTable, reference: usize) {
    let at = table.place(reference);
    // SAFETY: `place` gives a byte of the table.
    unsafe {
        let state = *at;
        if state > table::LEAST_REFS && state < MANY_REFS {
            *at = state - 1;
        } else if is_undecided(state) {
            count_in_head(at, reference, -1);
        }
    }
}

/// Changes the `gc_refs` of an object that a byte cannot count for.
#[cold]
#[inline(never)]
unsafe fn count_in_head(at: *mut u8, object: usize, change: isize) {
    // SAFETY: an object that a collection has yet to decide about has the collector's words.
    unsafe {
        let refs = if *at == MANY_REFS { header::gc_refs(object) } else { isize::from(*at) - isize::from(NO_REFS) };
        *at = MANY_REFS;
        header::set_gc_refs(object, refs + change);
    }
}

/// Something that is reached refers to `reference`; whether that has to be moved back to the reachable objects.
///
/// # Safety
/// References have been counted.
#[inline(always)]
unsafe fn visit_reachable(table: &ObjectTable, reference: usize) -> bool {
    let at = table.place(reference);
    // SAFETY: `place` gives a byte of the table; an object counted for elsewhere has the collector's words.
    unsafe {
        match *at {
            NO_REFS => *at = NO_REFS + 1,
            MANY_REFS if header::gc_refs(reference) == 0 => *at = NO_REFS + 1,
            UNREACHABLE => {
                *at = NO_REFS + 1;
                return true;
            }
            _ => {}
        }
    }
    false
}
