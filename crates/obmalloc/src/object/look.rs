//! Looking an object up: whether an address is an object, and whether it can be used now.

#![forbid(unsafe_code)]

use super::handle::{Object, Quiet};
use super::{ObjectHeap, TypeId, object_fault, table};
use crate::domain::{Domain, Fault, FaultKind};
use crate::heap::Mode;

impl ObjectHeap {
    /// `Py_TYPE`
    ///
    /// # Errors
    /// When `object` is no object.
    #[doc(alias = "Py_TYPE")]
    pub fn type_of(&self, object: usize) -> Result<TypeId, Fault> {
        Ok(self.look_open(object, &self.quiet())?.kind().id())
    }

    /// `Py_SIZE`: how many items an object has, 0 where its type has none.
    ///
    /// # Errors
    /// When `object` is no object.
    #[doc(alias = "Py_SIZE")]
    pub fn nitems(&self, object: usize) -> Result<usize, Fault> {
        Ok(self.look_open(object, &self.quiet())?.nitems())
    }

    /// Begins an operation that changes objects, and first runs a scheduled collection. Fails inside a `traverse`.
    #[inline]
    pub(crate) fn begin(&self) -> Result<Quiet<'_>, Fault> {
        self.change(0)
    }

    /// As [`begin`](Self::begin), where the operation changes the object at this address; only a fault names it.
    #[inline]
    pub(crate) fn change(&self, object: usize) -> Result<Quiet<'_>, Fault> {
        if self.mode().get() != Mode::Open {
            return Err(self.unusable(object));
        }
        let mut quiet = self.quiet();
        self.run_scheduled_in(&mut quiet);
        Ok(quiet)
    }

    /// As [`look`](Self::look), for an object whose destruction has not begun.
    #[inline]
    pub(crate) fn look_alive<'quiet>(&self, object: usize, quiet: &'quiet Quiet<'_>) -> Result<Object<'quiet>, Fault> {
        let found = self.look(object, quiet)?;
        if self.table().state(object) == table::DYING {
            return Err(object_fault(FaultKind::UseAfterFree, object));
        }
        Ok(found)
    }

    /// The object at any address. It may be in the middle of its destruction.
    #[inline]
    pub(crate) fn look<'quiet>(&self, object: usize, quiet: &'quiet Quiet<'_>) -> Result<Object<'quiet>, Fault> {
        self.table().object(object, quiet).ok_or_else(|| self.no_object(object))
    }

    /// As [`look`](Self::look), for calls from outside: the heap may have been closed.
    #[inline]
    pub(crate) fn look_open<'quiet>(&self, object: usize, quiet: &'quiet Quiet<'_>) -> Result<Object<'quiet>, Fault> {
        if self.mode().get() == Mode::Closed { Err(self.unusable(object)) } else { self.look(object, quiet) }
    }

    /// Why something is not the address of an object.
    #[cold]
    fn no_object(&self, address: usize) -> Fault {
        if self.table().state(address) == table::KEPT {
            return object_fault(FaultKind::UseAfterFree, address);
        }
        match self.heap.checked().check_use(Domain::Obj, address) {
            // A block that is no object.
            Ok(()) => object_fault(FaultKind::WrongType, address),
            Err(fault) if fault.kind == FaultKind::WrongDomain => Fault { kind: FaultKind::WrongType, ..fault },
            Err(fault) if fault.kind == FaultKind::InteriorPointer => fault,
            Err(fault) => {
                let was_block = |presize: usize| {
                    address.checked_sub(presize).is_some_and(|block| {
                        self.heap
                            .checked()
                            .check_use(Domain::Obj, block)
                            .is_err_and(|fault| fault.kind == FaultKind::UseAfterFree)
                    })
                };
                let was_object = self.table().state(address) == table::DEAD || was_block(16) || was_block(32);
                if was_object { object_fault(FaultKind::UseAfterFree, address) } else { fault }
            }
        }
    }

    /// The object whose block begins at `block`, if there is one.
    pub(crate) fn object_of_block(&self, block: usize) -> Option<usize> {
        if self.state().types.is_empty() {
            return None;
        }
        let candidates = [0, 16, 32].map(|presize| (presize, block.wrapping_add(presize)));
        candidates
            .into_iter()
            .find(|&(presize, address)| self.table().presize_at(address) == Some(presize))
            .map(|(_, object)| object)
    }

    /// The error when an object cannot be used now.
    #[cold]
    fn unusable(&self, object: usize) -> Fault {
        let kind = match self.mode().get() {
            Mode::Open | Mode::Traversing => FaultKind::GcInProgress,
            Mode::Asking => FaultKind::Reentrant,
            Mode::Closed => FaultKind::HeapClosed,
        };
        object_fault(kind, object)
    }
}
