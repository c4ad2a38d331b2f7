//! Looking an object up: whether an address is an object, and whether it can be used now.

use super::{ObjectHeap, Type, TypeId, header, object_fault, table};
use crate::domain::{Domain, Fault, FaultKind};
use crate::heap::Mode;

impl ObjectHeap {
    /// `Py_TYPE`
    ///
    /// # Errors
    /// When `object` is no object.
    #[doc(alias = "Py_TYPE")]
    pub fn type_of(&self, object: usize) -> Result<TypeId, Fault> {
        Ok(self.look_open(object)?.id())
    }

    /// `Py_SIZE`: how many items an object has, 0 where its type has none.
    ///
    /// # Errors
    /// When `object` is no object.
    #[doc(alias = "Py_SIZE")]
    pub fn nitems(&self, object: usize) -> Result<usize, Fault> {
        let kind = self.look_open(object)?;
        // SAFETY: looked up just above.
        Ok(unsafe { header::nitems(kind, object) })
    }

    /// Begins an operation that changes objects, and first runs a scheduled collection. Fails inside a `traverse`.
    #[inline]
    pub(crate) fn begin(&self) -> Result<(), Fault> {
        if self.mode().get() != Mode::Open {
            return Err(self.unusable(0));
        }
        self.run_scheduled();
        Ok(())
    }

    /// Begins an operation that changes this object.
    #[inline]
    pub(crate) fn change(&self, object: usize) -> Result<&Type, Fault> {
        if self.mode().get() != Mode::Open {
            return Err(self.unusable(object));
        }
        self.run_scheduled();
        self.look_alive(object)
    }

    /// As [`look`](Self::look), for an object whose destruction has not begun.
    #[inline]
    pub(crate) fn look_alive(&self, object: usize) -> Result<&Type, Fault> {
        let kind = self.look(object)?;
        if self.table().state(object) == table::DYING {
            return Err(object_fault(FaultKind::UseAfterFree, object));
        }
        Ok(kind)
    }

    /// The type of the object at any address `object`. The object may be in the middle of its destruction.
    #[inline]
    pub(crate) fn look(&self, object: usize) -> Result<&Type, Fault> {
        match self.table().state(object) {
            table::NOTHING | table::DEAD | table::KEPT => Err(self.no_object(object)),
            // SAFETY: it is an object.
            _ => Ok(unsafe { header::kind(object) }),
        }
    }

    /// As [`look`](Self::look), for calls from outside: the heap may have been closed.
    #[inline]
    pub(crate) fn look_open(&self, object: usize) -> Result<&Type, Fault> {
        if self.mode().get() == Mode::Closed { Err(self.unusable(object)) } else { self.look(object) }
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
        [0, 16, 32].into_iter().map(|presize| block.wrapping_add(presize)).find(|&object| {
            // SAFETY: the type is read only after the table has said that there is an object.
            !matches!(self.table().state(object), table::NOTHING | table::DEAD)
                && unsafe { header::kind(object) }.presize == object.wrapping_sub(block)
        })
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
