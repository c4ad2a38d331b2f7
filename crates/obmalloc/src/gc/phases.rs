//! The phases of a collection, under CPython's names, and the generational collector.
//!
//! `gc_refs` are in the [table of objects](crate::object::table), a byte each: `update_refs` and `subtract_refs` are one pass over the
//! objects, which adds each object's references to its own count and takes one off the counts of those that it refers to, in whatever
//! order they come. An object that a byte cannot count for is counted where CPython counts, in the word before it.

use alloc::format;
use alloc::vec::Vec;

use super::list::{self, ListId};
use super::scan;
use super::{DEBUG_COLLECTABLE, DEBUG_SAVEALL, DEBUG_STATS, DEBUG_UNCOLLECTABLE, GENERATIONS, Info, Phase};
use crate::address_hash::AddressMap;
use crate::interrupt::STRIDE;
use crate::object::table::{self, LIVE, MANY_REFS, MOST_REFS, NO_REFS, Places, UNREACHABLE, is_undecided};
use crate::object::{ObjectError, ObjectHeap, Type, header};
use crate::os;
use crate::profile::{Algorithm, ImmortalMet, Resurrection, WeakrefsCleared};

/// What a collection works with, kept for the next one.
#[derive(Default)]
pub(crate) struct Scratch {
    /// The unreachable objects, in CPython's order. What has died, or is not unreachable after all, is still here, but its byte in the
    /// table is not [`UNREACHABLE`].
    unreachable: Vec<usize>,
    /// Objects that looked unreachable when it was their turn, and are not.
    moved_back: Vec<usize>,
    /// How many immortal objects have been taken out of the list.
    set_aside: usize,
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
                // `%.4f`. Code that writes any float is a part in thirty of the module in WebAssembly, and nothing else here writes one.
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

    /// Text for CPython's standard error.
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
        // An object may join a generation twice: with the survivors, and after its weak reference's callback.
        [Young, Middle, Old, Increment, Survivors].into_iter().try_for_each(|id| gc.list(id).reserve_anew(2 * all, interrupt))?;
        [Permanent, Finalizers, WrcbToCall].into_iter().try_for_each(|id| gc.list(id).reserve_anew(all, interrupt))?;
        gc.scratch.unreachable.try_reserve(all).map_err(|_| ObjectError::NoMemory)
    }

    /// What a collection does with the unreachable objects once it knows them: `old` is where those that stay go. From the weak references
    /// on it is given up only between two calls of hooks.
    pub(super) fn collect_unreachable(&self, old: ListId) -> Result<Found, ObjectError> {
        let mut unreachable = core::mem::take(&mut self.state().gc.scratch.unreachable);
        let result = self.end_unreachable(&mut unreachable, old);
        if result.is_err() {
            // What has not been destroyed is not going to be.
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
        // What no hook has touched is as unreachable as it was.
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

    /// Calls `visit` with those of the objects that are still in the set of unreachable ones.
    pub(super) fn each_unreachable(&self, unreachable: &[usize], mut visit: impl FnMut(usize)) {
        for &object in unreachable {
            if self.table().state(object) == UNREACHABLE {
                visit(object);
            }
        }
    }

    /// Takes an object out of the set of unreachable ones, and puts it into a list, which has room.
    fn rejoin(&self, object: usize, list: ListId) {
        let state = self.state();
        self.table().set(object, LIVE);
        state.gc.list(list).append(object);
    }

    /// Finds out which objects of `base` nothing outside it reaches, and moves them to the set of unreachable ones.
    ///
    /// # Errors
    /// When a hook fails or does not tell the truth, or it is interrupted: the objects are in `base` as they were, but perhaps in another
    /// order.
    pub(super) fn deduce_unreachable(&self, base: ListId) -> Result<(), ObjectError> {
        let gc = &mut self.state().gc;
        let all = gc.list(base).len();
        let scratch = &mut gc.scratch;
        let room = scratch.unreachable.try_reserve(all).is_ok() && scratch.moved_back.try_reserve(all).is_ok();
        if !room {
            return Err(ObjectError::NoMemory);
        }
        gc.list(base).reserve(all, self.interrupt())?;
        // No other code has the entries while we look at them.
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
        list.settle(left, count);
        deduced
    }

    /// Counts, of every object, the references that do not come from the others.
    ///
    /// # Errors
    /// When a hook fails or does not tell the truth, or it is interrupted: nothing is said of any object then.
    fn count_refs(&self, objects: &mut [usize]) -> Result<(), ObjectError> {
        let scratch = &mut self.state().gc.scratch;
        scratch.visited.clear();
        scratch.visits.clear();
        scratch.set_aside = 0;
        let counted = match self.table().alignment_shift() {
            3 => self.update_and_subtract_refs::<3>(objects),
            _ => self.update_and_subtract_refs::<4>(objects),
        };
        if counted.is_err() {
            self.clear_collecting(objects);
        }
        counted
    }

    fn update_and_subtract_refs<const SHIFT: u32>(&self, objects: &mut [usize]) -> Result<(), ObjectError> {
        let places = self.table().places::<SHIFT>();
        for part in objects.chunks(STRIDE) {
            self.update_refs(places, part);
            self.go_on_after(part.len())?;
        }
        let mut index = 0;
        while index < objects.len() {
            let (begin, end) = (index, objects.len().min(index + STRIDE));
            index = self.subtract_refs(places, &mut objects[..end], begin)?;
            self.go_on_after(index - begin)?;
        }
        Ok(())
    }

    /// Moves what is not reached from outside to `unreachable`. What looks unreachable when it is its turn, and turns out to be reached
    /// from an object behind it, goes to the end of `objects`, and knows its place there. Gives how many objects have left their places.
    /// There is room in all of them.
    ///
    /// The error is that it was interrupted: all of the objects are in `objects` then, and nothing is said of any.
    fn move_unreachable(&self, objects: &mut Vec<usize>, unreachable: &mut Vec<usize>) -> (usize, Result<(), ObjectError>) {
        // What is moved back comes after all others, which are therefore looked at first.
        let mut moved_back = core::mem::take(&mut self.state().gc.scratch.moved_back);
        let moved = match self.table().alignment_shift() {
            3 => self.move_unreachable_in(self.table().places::<3>(), objects, unreachable, &mut moved_back),
            _ => self.move_unreachable_in(self.table().places::<4>(), objects, unreachable, &mut moved_back),
        };
        let left = unreachable.len();
        if moved.is_err() {
            let appended = objects.len();
            objects.append(unreachable);
            for (place, &object) in objects.iter().enumerate().skip(appended) {
                list::set_place(object, place);
            }
            self.clear_collecting(objects);
        } else if !moved_back.is_empty() {
            objects.extend_from_slice(&moved_back);
            if moved_back.len() == unreachable.len() {
                unreachable.clear();
            } else {
                unreachable.retain(|&object| self.table().state(object) == UNREACHABLE);
            }
        }
        moved_back.clear();
        self.state().gc.scratch.moved_back = moved_back;
        (left, moved)
    }

    /// Says of all objects that no collection is about them (`gc_list_clear_collecting`).
    fn clear_collecting(&self, objects: &[usize]) {
        for &object in objects {
            if object != 0 {
                // SAFETY: a tracked object; the word is in use when the byte says so.
                unsafe {
                    if self.table().state(object) == MANY_REFS {
                        header::set_gc_refs(object, 0);
                    }
                }
                self.table().set(object, LIVE);
            }
        }
    }

    /// Says of every object that this collection has yet to decide about it. CPython's copies the reference count here; ours is added in
    /// `subtract_refs`.
    fn update_refs<const SHIFT: u32>(&self, places: Places<SHIFT>, objects: &[usize]) {
        for &object in objects {
            if object != 0 {
                // SAFETY: a tracked object has a byte in the table.
                unsafe { *places.of(object) = NO_REFS };
            }
        }
    }

    /// Adds every object's references to its count, and takes one off the counts of those that it refers to, from the object with this
    /// index on. Gives how many objects there are.
    fn subtract_refs<const SHIFT: u32>(
        &self,
        places: Places<SHIFT>,
        objects: &mut [usize],
        mut index: usize,
    ) -> Result<usize, ObjectError> {
        while let Some(&object) = objects.get(index) {
            if object == 0 {
                index += 1;
                continue;
            }
            // SAFETY: a tracked object; nothing changes while references are counted.
            unsafe {
                let kind = header::kind(object);
                if kind.simple {
                    let stopped = scan::subtract_refs(places, objects, index, kind, visit_decref);
                    if stopped != index {
                        index = stopped;
                        continue;
                    }
                }
                let (refcnt, at) = (header::refcnt(object), places.of(object));
                let state = *at;
                if refcnt <= usize::from(MOST_REFS) && state != MANY_REFS {
                    *at = state + refcnt as u8;
                } else if self.is_immortal(refcnt) {
                    self.set_aside(object);
                    objects[index] = 0;
                    continue;
                } else {
                    count_in_head(at, object, refcnt as isize);
                }
                if kind.hooks.traverse {
                    self.subtract_visited(places, kind, object)?;
                } else {
                    self.try_each_reference(kind, object, |reference| visit_decref(places, reference))?;
                }
            }
            index += 1;
        }
        Ok(index)
    }

    /// An immortal object takes no part in collections.
    #[cold]
    fn set_aside(&self, object: usize) {
        let state = self.state();
        state.gc.scratch.set_aside += 1;
        self.table().set(object, LIVE);
        // SAFETY: a tracked object.
        unsafe { header::set_gc_refs(object, 0) };
        match self.rules.immortal_met {
            ImmortalMet::Frozen => state.gc.list(ListId::Permanent).append(object),
            ImmortalMet::Untracked => {
                // SAFETY: as above.
                unsafe { header::set_gc_next(object, 0) };
                self.count_untracked();
            }
        }
    }

    /// Asks a hook what an object refers to, and remembers the answer.
    #[cold]
    fn subtract_visited<const SHIFT: u32>(&self, places: Places<SHIFT>, kind: &Type, object: usize) -> Result<(), ObjectError> {
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
            unsafe { visit_decref(places, reference) };
        }
        Ok(())
    }

    /// Calls `visit` with what an object in this collection refers to.
    #[inline(always)]
    unsafe fn traverse(&self, kind: &Type, object: usize, mut visit: impl FnMut(usize)) -> Result<(), ObjectError> {
        if kind.hooks.traverse {
            return self.traverse_visited(object, &mut visit);
        }
        // SAFETY: the caller gives an object of the type.
        unsafe { self.try_each_reference(kind, object, visit) }
    }

    #[cold]
    fn traverse_visited(&self, object: usize, visit: &mut dyn FnMut(usize)) -> Result<(), ObjectError> {
        let scratch = &self.state().gc.scratch;
        let (begin, end) = scratch.visited.get(&object).copied().unwrap_or_default();
        for &reference in &scratch.visits[begin..end] {
            visit(reference);
            self.go_on_after(1)?;
        }
        Ok(())
    }

    fn move_unreachable_in<const SHIFT: u32>(
        &self,
        places: Places<SHIFT>,
        objects: &mut [usize],
        unreachable: &mut Vec<usize>,
        moved_back: &mut Vec<usize>,
    ) -> Result<(), ObjectError> {
        let mut index = 0;
        while index < objects.len() {
            let (begin, end) = (index, objects.len().min(index + STRIDE));
            index = self.move_unreachable_from(places, &mut objects[..end], begin, unreachable, moved_back)?;
            self.go_on_after(index - begin)?;
        }
        index = 0;
        while let Some(&object) = moved_back.get(index) {
            // It is at hand now; to come back for its place when all is over takes long, and cannot be given up.
            list::set_place(object, objects.len() + index);
            // SAFETY: a tracked object; nothing changes meanwhile.
            unsafe {
                scan::prefetch(moved_back, index);
                self.move_reachable(places, object, moved_back)?;
                self.go_on_after(1)?;
            }
            index += 1;
        }
        Ok(())
    }

    /// As [`move_unreachable`](Self::move_unreachable), of the objects from this index on; what is to be moved back goes to `moved_back`.
    /// Gives how many objects there are.
    fn move_unreachable_from<const SHIFT: u32>(
        &self,
        places: Places<SHIFT>,
        objects: &mut [usize],
        mut index: usize,
        unreachable: &mut Vec<usize>,
        moved_back: &mut Vec<usize>,
    ) -> Result<usize, ObjectError> {
        while let Some(&object) = objects.get(index) {
            if object == 0 {
                index += 1;
                continue;
            }
            // SAFETY: a tracked object; nothing changes meanwhile.
            unsafe {
                let (kind, at) = (header::kind(object), places.of(object));
                if kind.simple {
                    let to = (&mut *unreachable, &mut *moved_back);
                    let stopped = scan::move_unreachable(places, objects, index, kind, to.0, to.1, visit_reachable);
                    if stopped != index {
                        index = stopped;
                        continue;
                    }
                }
                if has_no_refs(*at, object) {
                    *at = UNREACHABLE;
                    unreachable.push(object);
                    objects[index] = 0;
                } else {
                    self.move_reachable(places, object, moved_back)?;
                }
            }
            index += 1;
        }
        Ok(index)
    }

    /// An object is reachable, and so is what it refers to.
    ///
    /// # Safety
    /// `object` is tracked; references have been counted.
    #[inline]
    unsafe fn move_reachable<const SHIFT: u32>(
        &self,
        places: Places<SHIFT>,
        object: usize,
        moved_back: &mut Vec<usize>,
    ) -> Result<(), ObjectError> {
        // SAFETY: the caller's promise.
        unsafe {
            let at = places.of(object);
            if *at == MANY_REFS {
                header::set_gc_refs(object, 0);
            }
            *at = LIVE;
            self.traverse(header::kind(object), object, |reference| {
                if visit_reachable(places, reference) {
                    moved_back.push(reference);
                }
            })
        }
    }

    /// Moves objects with a `tp_del` from the unreachable ones to the finalizers.
    fn move_legacy_finalizers(&self, unreachable: &[usize]) {
        if !self.state().types.iter().any(|kind| kind.hooks.del) {
            return;
        }
        self.each_unreachable(unreachable, |object| {
            // SAFETY: a tracked object.
            if unsafe { header::kind(object) }.hooks.del {
                self.rejoin(object, ListId::Finalizers);
            }
        });
    }

    /// Moves what is reached from the finalizers to them, from the unreachable objects.
    fn move_legacy_finalizer_reachable(&self) -> Result<(), ObjectError> {
        let mut place = 0;
        while let Some(&object) = self.state().gc.list(ListId::Finalizers).entries().get(place) {
            // SAFETY: nothing has left the list, and all in it are tracked objects.
            unsafe {
                let kind = header::kind(object);
                self.traverse(kind, object, |reference| {
                    if self.table().state(reference) == UNREACHABLE {
                        self.rejoin(reference, ListId::Finalizers);
                    }
                })?;
            }
            place += 1;
        }
        Ok(())
    }

    fn debug_cycle(&self, what: &str, object: usize) {
        // SAFETY: a tracked object.
        let name = unsafe { header::kind(object) }.name();
        self.say(&format!("gc: {what} <{name} {object:#x}>\n"));
    }

    /// Runs the finalizers of unreachable objects that have not been finalized; whether there were any.
    ///
    /// # Errors
    /// When it is interrupted between two of them.
    fn finalize_garbage(&self, unreachable: &[usize]) -> Result<bool, ObjectError> {
        let mut any = false;
        if !self.state().types.iter().any(|kind| kind.hooks.finalize) {
            return Ok(any);
        }
        for &object in unreachable {
            if self.table().state(object) != UNREACHABLE {
                continue;
            }
            // SAFETY: a tracked object, kept by the reference that it is given.
            unsafe {
                if header::kind(object).hooks.finalize && !header::is_finalized(object) {
                    any = true;
                    header::set_finalized(object);
                    self.incref_object(object);
                    let id = header::kind(object).id();
                    self.holding(object, || self.in_hook(|| self.hooks.finalize(self, id, object)));
                    self.decref_object(object);
                    self.go_on_after(1)?;
                }
            }
        }
        Ok(any)
    }

    /// Finds out which of the unreachable objects are so still; the others join `old`. False when none is to be destroyed.
    fn handle_resurrected_objects(&self, unreachable: &mut Vec<usize>, old: ListId) -> Result<bool, ObjectError> {
        unreachable.retain(|&object| self.table().state(object) == UNREACHABLE);
        if self.rules.resurrection == Resurrection::KeepsAll {
            return self.check_garbage(unreachable, old);
        }
        let mut still = Vec::new();
        let room = still.try_reserve_exact(unreachable.len()).is_ok() && unreachable.try_reserve(unreachable.len()).is_ok();
        let counted = if room { self.count_refs(unreachable) } else { Err(ObjectError::NoMemory) };
        if counted.is_err() {
            unreachable.iter().filter(|&&object| object != 0).for_each(|&object| self.table().set(object, UNREACHABLE));
            return counted.map(|()| true);
        }
        if let (_, Err(error)) = self.move_unreachable(unreachable, &mut still) {
            unreachable.iter().filter(|&&object| object != 0).for_each(|&object| self.table().set(object, UNREACHABLE));
            return Err(error);
        }
        unreachable.iter().filter(|&&object| object != 0).for_each(|&object| self.state().gc.list(old).append(object));
        *unreachable = still;
        Ok(true)
    }

    /// Whether all of the unreachable objects are so still (`check_garbage`); if not, all of them join `old`, in their order.
    fn check_garbage(&self, unreachable: &mut [usize], old: ListId) -> Result<bool, ObjectError> {
        let counted = self.count_refs(unreachable);
        let mut all = true;
        for &object in unreachable.iter().filter(|&&object| object != 0) {
            // SAFETY: a tracked object.
            all &= unsafe { has_no_refs(self.table().state(object), object) };
            // SAFETY: as above.
            unsafe { header::set_gc_refs(object, 0) };
            self.table().set(object, UNREACHABLE);
        }
        counted?;
        if !all {
            self.each_unreachable(unreachable, |object| self.rejoin(object, old));
        }
        Ok(all)
    }

    /// Breaks the cycles: calls `tp_clear` of the unreachable objects, one after the other, which destroys most of them. What lives on
    /// joins the old objects, for it may die later.
    ///
    /// # Errors
    /// When hooks see it, and it is interrupted between two objects: the others are still in the set.
    fn delete_garbage(&self, garbage: &[usize], old: ListId) -> Result<(), ObjectError> {
        if self.state().types.iter().any(|kind| kind.has_end && !kind.is_weakref() || kind.hooks.clear) {
            return self.clear_each::<true>(garbage, old).map(drop);
        }
        if self.to_the_end(|| self.clear_each::<false>(garbage, old))? {
            self.each_unreachable(garbage, |object| self.rejoin(object, old));
        }
        Ok(())
    }

    /// Calls `tp_clear` of unreachable objects; whether any has lived on. Most of those die soon, so where no hook can see it they are not
    /// moved to `old` yet.
    #[inline(never)]
    fn clear_each<const WATCHED: bool>(&self, garbage: &[usize], old: ListId) -> Result<bool, ObjectError> {
        let table = self.table();
        let mut survived = false;
        for (index, &object) in garbage.iter().enumerate() {
            if table.state(object) != UNREACHABLE {
                continue;
            }
            if WATCHED {
                self.go_on_after(1)?;
            }
            // SAFETY: an object of the set is tracked, and kept by the reference that it is given.
            unsafe {
                scan::prefetch(garbage, index);
                if self.state().gc.debug & DEBUG_SAVEALL != 0 {
                    self.append_to_garbage(object);
                } else {
                    self.incref_object(object);
                    let clear = || self.tp_clear(header::kind(object), object);
                    if WATCHED {
                        self.holding(object, clear)
                    } else {
                        clear()
                    }
                    if self.decref_object(object) {
                        continue;
                    }
                }
            }
            survived = true;
            if WATCHED && table.state(object) == UNREACHABLE {
                self.rejoin(object, old);
            }
        }
        Ok(survived)
    }

    /// # Safety
    /// `object` is one of the type, and has a reference that keeps it.
    #[inline(always)]
    unsafe fn tp_clear(&self, kind: &Type, object: usize) {
        if kind.hooks.clear {
            self.in_hook(|| self.hooks.clear(self, kind.id(), object));
        } else if kind.is_weakref() {
            self.clear_weakref(object);
        } else {
            // What it leaves when it is interrupted, which only hooks let happen, is the next collection's.
            // SAFETY: the caller's promise.
            let _ = unsafe { self.clear_references(kind, object) };
        }
    }

    /// Appends an object to `gc.garbage`, which takes a reference; without memory for it, it is left out.
    #[cold]
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
unsafe fn visit_decref<const SHIFT: u32>(places: Places<SHIFT>, reference: usize) {
    // SAFETY: a byte of the table.
    unsafe {
        let at = places.of(reference);
        let state = *at;
        if state > table::LEAST_REFS && state < MANY_REFS {
            *at = state - 1;
        } else if is_undecided(state) {
            count_in_head(at, reference, -1);
        }
    }
}

/// Something that is reached refers to `reference`: whether that has to be moved back to the reachable objects.
///
/// # Safety
/// References have been counted.
unsafe fn visit_reachable<const SHIFT: u32>(places: Places<SHIFT>, reference: usize) -> bool {
    // SAFETY: a byte of the table.
    unsafe {
        let at = places.of(reference);
        let state = *at;
        if state == UNREACHABLE || has_no_refs(state, reference) {
            *at = NO_REFS + 1;
        }
        state == UNREACHABLE
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

/// Whether an object in this collection has not been reached yet: `gc_refs` is 0.
///
/// # Safety
/// `state` is that of the object; references have been counted.
#[inline(always)]
unsafe fn has_no_refs(state: u8, object: usize) -> bool {
    // SAFETY: an object that is counted for in its head has one.
    state == NO_REFS || (state == MANY_REFS && unsafe { header::gc_refs(object) } == 0)
}
