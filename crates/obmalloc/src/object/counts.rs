//! Reference counts, and objects that have none because they are immortal.

#![forbid(unsafe_code)]

use super::handle::Object;
use super::{ObjectHeap, object_fault};
use crate::domain::{Fault, FaultKind};

impl ObjectHeap {
    /// `Py_REFCNT`
    ///
    /// # Errors
    /// When `object` is no object.
    #[doc(alias = "Py_REFCNT")]
    pub fn refcount(&self, object: usize) -> Result<usize, Fault> {
        Ok(self.look_open(object, &self.quiet())?.refcnt())
    }

    /// `Py_INCREF`
    ///
    /// # Errors
    /// When `object` is no object, or is being destroyed.
    #[doc(alias = "Py_INCREF")]
    pub fn incref(&self, object: usize) -> Result<(), Fault> {
        let quiet = self.change(object)?;
        self.incref_object(self.look_alive(object, &quiet)?);
        Ok(())
    }

    /// `Py_DECREF`: the last reference destroys the object.
    ///
    /// # Errors
    /// When `object` is no object, or has no reference left to give back. With debug hooks also when guard bytes of a destroyed object were
    /// damaged: then everything else has been done.
    #[doc(alias("tp_free", "Py_DECREF", "PyObject_Del"))]
    pub fn decref(&self, object: usize) -> Result<(), Fault> {
        let mut quiet = self.change(object)?;
        let found = self.look_alive(object, &quiet).map_err(|fault| match fault.kind {
            FaultKind::UseAfterFree => Fault { kind: FaultKind::RefcountUnderflow, ..fault },
            _ => fault,
        })?;
        if found.refcnt() == 1 && self.is_held(found, &quiet) {
            return Err(object_fault(FaultKind::RefcountUnderflow, object));
        }
        if self.decref_object(object, &mut quiet) { self.result_for_hooks() } else { Ok(()) }
    }

    /// Makes an object immortal (`PyUnstable_SetImmortal`): it is never destroyed, also when its references are given back. False if the release
    /// has no immortal objects.
    ///
    /// # Errors
    /// When `object` is no object, or is being destroyed.
    #[doc(alias = "PyUnstable_SetImmortal")]
    pub fn set_immortal(&self, object: usize) -> Result<bool, Fault> {
        let quiet = self.change(object)?;
        let object = self.look_alive(object, &quiet)?;
        if self.immortal_bit == 0 {
            return Ok(false);
        }
        object.set_refcnt(self.refcount_limit);
        Ok(true)
    }

    /// Whether a reference count says that the object is immortal.
    #[inline]
    pub(crate) fn is_immortal(&self, refcount: usize) -> bool {
        refcount & self.immortal_bit != 0
    }

    /// Counts one reference more.
    #[inline]
    pub(crate) fn incref_object(&self, object: Object<'_>) {
        let count = object.refcnt();
        if count < self.refcount_limit {
            object.set_refcnt(count + 1);
        }
    }
}
