//! A walk over every object and every list of the collector, for `verify()` and for property tests.

#![forbid(unsafe_code)]

use alloc::format;

use super::list::{self, ListId};
use crate::domain::Domain;
use crate::heap::Mode;
use crate::object::handle::Quiet;
use crate::object::{ObjectHeap, State, table};
use crate::pymalloc::Corruption;

macro_rules! ensure {
    ($holds:expr, $address:expr, $($what:tt)+) => {
        if !$holds {
            return Err(Corruption { what: format!($($what)+), address: $address });
        }
    };
}

impl ObjectHeap {
    /// As [`CheckedHeap::verify`](crate::CheckedHeap::verify), and walks the collector's lists and the objects in them: their headers, and
    /// what they refer to. The walk ends early if it is [interrupted](crate::ObjectHeap::set_interrupt).
    ///
    /// # Errors
    /// The first structure that does not hold.
    pub fn verify(&self) -> Result<(), Corruption> {
        self.heap.verify()?;
        if self.mode().get() == Mode::Traversing {
            // A collection is changing the lists.
            return Ok(());
        }
        let (state, quiet) = (&*self.state(), &self.quiet());
        let gc = &state.gc;
        for id in ListId::ALL {
            let list = &gc.lists[id as usize];
            let mut live = 0;
            for (place, entry) in list.entries().iter().enumerate() {
                if entry.is_empty() {
                    continue;
                }
                live += 1;
                self.verify_tracked(state, entry.address(), id, place, quiet)?;
                if self.is_interrupted_after(1) {
                    return Ok(());
                }
            }
            ensure!(live == list.len(), 0, "the list {id:?} counts {} objects, but has {live}", list.len());
            let between = matches!(id, ListId::Young | ListId::Middle | ListId::Old | ListId::Permanent);
            ensure!(between || gc.collecting || live == 0, 0, "the list {id:?} has {live} objects outside a collection");
        }
        Ok(())
    }

    fn verify_tracked(&self, kept: &State, object: usize, id: ListId, place: usize, quiet: &Quiet<'_>) -> Result<(), Corruption> {
        let state = self.table().state(object);
        let Some(found) = self.table().object(object, quiet) else {
            return Err(Corruption { what: format!("the list {id:?} has something that is no object"), address: object });
        };
        ensure!(state == table::LIVE || kept.gc.collecting, object, "an object is in state {state} outside a collection");
        let known = kept.types.iter().any(|other| found.is_of(other));
        ensure!(known, object, "an object's type is none of this heap");
        let (kind, refcnt) = (found.kind(), found.refcnt());
        let Some(found) = found.gc() else {
            return Err(Corruption {
                what: format!("an object of {} is tracked, which is no GC type", kind.name()),
                address: object,
            });
        };
        let next = found.gc_next();
        ensure!(next != 0 && list::place(next) == place, object, "an object does not know its place in the list {id:?}");
        ensure!(refcnt != 0, object, "an object is tracked that has no references");
        ensure!(
            self.heap.checked().check_use(Domain::Obj, object - kind.presize).is_ok(),
            object,
            "an object lies in no live block"
        );
        Ok(())
    }
}
