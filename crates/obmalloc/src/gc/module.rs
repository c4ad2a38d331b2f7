//! Python's `gc` module.

#![forbid(unsafe_code)]

use alloc::vec::Vec;

use super::list::ListId;
use super::{GENERATIONS, GenerationStats};
use crate::address_hash::AddressSet;
use crate::domain::Fault;
use crate::heap::Mode;
use crate::object::handle::GcObject;
use crate::object::{ObjectError, ObjectHeap};
use crate::profile::Algorithm;

impl ObjectHeap {
    /// `PyObject_GC_IsTracked`; false for an object that is no GC object.
    ///
    /// # Errors
    /// When `object` is no object.
    #[doc(alias = "PyObject_GC_IsTracked")]
    pub fn is_tracked(&self, object: usize) -> Result<bool, Fault> {
        Ok(self.look_open(object, &self.quiet())?.gc().is_some_and(|object| object.gc_next() != 0))
    }

    /// `PyObject_GC_IsFinalized`; false for an object that is no GC object.
    ///
    /// # Errors
    /// When `object` is no object.
    #[doc(alias = "PyObject_GC_IsFinalized")]
    pub fn is_finalized(&self, object: usize) -> Result<bool, Fault> {
        Ok(self.look_open(object, &self.quiet())?.gc().is_some_and(GcObject::is_finalized))
    }

    /// `gc.collect(generation)`: runs a collection, also while the collector is disabled, and returns the number of unreachable objects found.
    /// While a collection is running, does nothing and returns 0.
    ///
    /// # Errors
    /// When the generation is none of 0, 1 and 2, a `traverse` failed or did not tell the truth, or there is no memory: then nothing has been
    /// destroyed. When it is [interrupted](crate::ObjectHeap::set_interrupt): objects that have not been destroyed stay.
    #[doc(alias = "PyGC_Collect")]
    pub fn collect(&self, generation: usize) -> Result<usize, ObjectError> {
        if generation >= GENERATIONS {
            return Err(ObjectError::Argument("a generation: 0, 1 or 2"));
        }
        if self.mode().get() == Mode::Traversing {
            return Ok(0);
        }
        let quiet = &mut self.begin()?;
        if self.state().gc.collecting {
            return Ok(0);
        }
        self.collect_with_callbacks(generation, quiet)
    }

    /// `gc.enable()`
    #[doc(alias = "PyGC_Enable")]
    pub fn enable_gc(&self) {
        self.state().gc.enabled = true;
    }

    /// `gc.disable()`: only calls of `collect` run a collection.
    #[doc(alias = "PyGC_Disable")]
    pub fn disable_gc(&self) {
        self.state().gc.enabled = false;
    }

    /// `gc.isenabled()`
    #[doc(alias = "PyGC_IsEnabled")]
    pub fn gc_is_enabled(&self) -> bool {
        self.state().gc.enabled
    }

    /// `gc.get_threshold()`
    #[doc(alias = "gc.get_threshold")]
    pub fn threshold(&self) -> [i32; 3] {
        let threshold = self.state().gc.threshold;
        match self.rules.algorithm {
            Algorithm::Generational => threshold,
            // The third threshold has no meaning there.
            Algorithm::Incremental => [threshold[0], threshold[1], 0],
        }
    }

    /// `gc.set_threshold()`: thresholds that are left out stay. A first threshold of 0 means no automatic collections.
    #[doc(alias = "gc.set_threshold")]
    pub fn set_threshold(&self, threshold0: i32, threshold1: Option<i32>, threshold2: Option<i32>) {
        let threshold = &mut self.state().gc.threshold;
        threshold[0] = threshold0;
        threshold[1] = threshold1.unwrap_or(threshold[1]);
        threshold[2] = threshold2.unwrap_or(threshold[2]);
    }

    /// `gc.get_count()`
    #[doc(alias = "gc.get_count")]
    pub fn count(&self) -> [i32; 3] {
        let gc = &self.state().gc;
        match self.rules.algorithm {
            Algorithm::Generational => gc.count,
            Algorithm::Incremental => gc.incremental.ordered(gc.count),
        }
    }

    /// `gc.get_stats()`, for each generation.
    #[doc(alias = "gc.get_stats")]
    pub fn gc_stats(&self) -> [GenerationStats; 3] {
        self.state().gc.stats
    }

    /// The lists with the objects of a generation, or of all.
    fn generations(&self, generation: Option<usize>) -> &'static [ListId] {
        use ListId::{Middle, Old, Young};
        match (self.rules.algorithm, generation) {
            (_, None) => &[Young, Middle, Old],
            (_, Some(0)) => &[Young],
            (Algorithm::Generational, Some(1)) => &[Middle],
            (Algorithm::Generational, _) => &[Old],
            // `gc.get_objects(1)` is always empty.
            (Algorithm::Incremental, Some(1)) => &[],
            (Algorithm::Incremental, _) => &[Middle, Old],
        }
    }

    /// `gc.get_objects(generation)`: the tracked objects that are not frozen, in the collector's order.
    ///
    /// # Errors
    /// When the generation is none of 0, 1 and 2, there is no memory, or it is interrupted.
    #[doc(alias = "gc.get_objects")]
    pub fn objects(&self, generation: Option<usize>) -> Result<Vec<usize>, ObjectError> {
        if generation.is_some_and(|generation| generation >= GENERATIONS) {
            return Err(ObjectError::Argument("a generation: 0, 1 or 2"));
        }
        self.all_of(self.generations(generation))
    }

    /// All objects in these lists.
    fn all_of(&self, lists: &[ListId]) -> Result<Vec<usize>, ObjectError> {
        if self.mode().get() == Mode::Closed {
            let _quiet = self.begin()?;
        }
        let gc = &self.state().gc;
        let mut objects = Vec::new();
        for &id in lists {
            let list = &gc.lists[id as usize];
            objects.try_reserve(list.len()).map_err(|_| ObjectError::NoMemory)?;
            for object in list.iter() {
                objects.push(object);
                self.go_on_after(1)?;
            }
        }
        Ok(objects)
    }

    /// `gc.get_referrers()`: the tracked objects that refer directly to any of `objects`, in the collector's order.
    ///
    /// # Errors
    /// When one of `objects` is no object, a `traverse` fails, there is no memory, or it is interrupted.
    #[doc(alias = "gc.get_referrers")]
    pub fn referrers(&self, objects: &[usize]) -> Result<Vec<usize>, ObjectError> {
        let quiet = &self.quiet();
        let mut wanted = AddressSet::default();
        wanted.try_reserve(objects.len()).map_err(|_| ObjectError::NoMemory)?;
        for &object in objects {
            self.look_open(object, quiet)?;
            wanted.insert(object);
            self.go_on_after(1)?;
        }
        let all = self.all_by_generation()?;
        let mut referrers = Vec::new();
        for object in all {
            let references = self.references(self.look(object, quiet)?, quiet)?;
            self.go_on_after(1 + references.len())?;
            if references.iter().any(|reference| wanted.contains(reference)) {
                referrers.try_reserve(1).map_err(|_| ObjectError::NoMemory)?;
                referrers.push(object);
            }
        }
        Ok(referrers)
    }

    /// The tracked objects, generation 0 first. The incremental collector's generations 1 and 2 are its visited and its pending space.
    fn all_by_generation(&self) -> Result<Vec<usize>, ObjectError> {
        let gc = &self.state().gc;
        let order = match self.rules.algorithm {
            Algorithm::Generational => [ListId::Young, ListId::Middle, ListId::Old],
            Algorithm::Incremental => [ListId::Young, gc.incremental.visited(), gc.incremental.pending()],
        };
        self.all_of(&order)
    }

    /// `gc.get_referents()`: the objects that `objects` refer to directly, in the order of traversal. Of `objects`, those that are no GC objects
    /// are skipped.
    ///
    /// # Errors
    /// When one of `objects` is no object, a `traverse` fails, there is no memory, or it is interrupted.
    #[doc(alias = "gc.get_referents")]
    pub fn referents(&self, objects: &[usize]) -> Result<Vec<usize>, ObjectError> {
        let quiet = &self.quiet();
        let mut referents = Vec::new();
        for &object in objects {
            let found = self.look_open(object, quiet)?;
            if !found.kind().gc {
                continue;
            }
            let references = self.references(found, quiet)?;
            self.go_on_after(1 + references.len())?;
            referents.try_reserve(references.len()).map_err(|_| ObjectError::NoMemory)?;
            referents.extend(references);
        }
        Ok(referents)
    }

    /// `gc.freeze()`: from now on collections ignore all objects that are tracked now.
    ///
    /// # Errors
    /// When there is no memory, or it is interrupted: then some objects are frozen.
    #[doc(alias = "gc.freeze")]
    pub fn freeze(&self) -> Result<(), ObjectError> {
        let _quiet = self.begin()?;
        let gc = &mut self.state().gc;
        let more = [ListId::Young, ListId::Middle, ListId::Old].map(|id| gc.lists[id as usize].len()).iter().sum();
        gc.list(ListId::Permanent).reserve(more, self.interrupt())?;
        for (generation, id) in [ListId::Young, ListId::Middle, ListId::Old].into_iter().enumerate() {
            if !gc.try_merge(id, ListId::Permanent, self.interrupt()) {
                return Err(ObjectError::Aborted);
            }
            gc.count[generation] = 0;
        }
        Ok(())
    }

    /// `gc.unfreeze()`: frozen objects join the oldest generation.
    ///
    /// # Errors
    /// When there is no memory, or it is interrupted: then some objects are still frozen.
    #[doc(alias = "gc.unfreeze")]
    pub fn unfreeze(&self) -> Result<(), ObjectError> {
        let _quiet = self.begin()?;
        let gc = &mut self.state().gc;
        let to = match self.rules.algorithm {
            Algorithm::Generational => ListId::Old,
            Algorithm::Incremental => gc.incremental.visited(),
        };
        let more = gc.list(ListId::Permanent).len();
        gc.list(to).reserve(more, self.interrupt())?;
        if gc.try_merge(ListId::Permanent, to, self.interrupt()) { Ok(()) } else { Err(ObjectError::Aborted) }
    }

    /// `gc.get_freeze_count()`
    #[doc(alias = "gc.get_freeze_count")]
    pub fn freeze_count(&self) -> usize {
        self.state().gc.list(ListId::Permanent).len()
    }

    /// `gc.set_debug()`: which messages collections write ([`Hooks::write`](crate::Hooks::write)), and whether they keep the garbage that they
    /// find.
    #[doc(alias = "gc.set_debug")]
    pub fn set_debug(&self, flags: u32) {
        self.state().gc.debug = flags;
    }

    /// `gc.get_debug()`
    #[doc(alias = "gc.get_debug")]
    pub fn debug(&self) -> u32 {
        self.state().gc.debug
    }

    /// The objects that collections have appended to `gc.garbage` since the last call. Each comes with a reference, which is now the caller's.
    #[doc(alias = "gc.garbage")]
    pub fn take_garbage(&self) -> Vec<usize> {
        core::mem::take(&mut self.state().gc.garbage)
    }
}
