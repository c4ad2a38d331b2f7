//! Reference counts, and objects that have none because they are immortal.

use super::{ObjectHeap, header, object_fault};
use crate::domain::{Fault, FaultKind};

impl ObjectHeap {
    /// `Py_REFCNT`
    ///
    /// # Errors
    /// When `object` is no object.
    #[doc(alias = "Py_REFCNT")]
    pub fn refcount(&self, object: usize) -> Result<usize, Fault> {
        self.look_open(object)?;
        // SAFETY: looked up just above.
        Ok(unsafe { header::refcnt(object) })
    }

    /// `Py_INCREF`
    ///
    /// # Errors
    /// When `object` is no object, or is being destroyed.
    #[doc(alias = "Py_INCREF")]
    pub fn incref(&self, object: usize) -> Result<(), Fault> {
        self.change(object)?;
        // SAFETY: looked up just above.
        unsafe { self.incref_object(object) };
        Ok(())
    }

    /// `Py_DECREF`: the last reference destroys the object.
    ///
    /// # Errors
    /// When `object` is no object, or has no reference left to give back. With debug hooks also when guard bytes of a destroyed object were
    /// damaged: then everything else has been done.
    #[doc(alias("tp_free", "Py_DECREF", "PyObject_Del"))]
    pub fn decref(&self, object: usize) -> Result<(), Fault> {
        self.change(object).map_err(|fault| match fault.kind {
            FaultKind::UseAfterFree => Fault { kind: FaultKind::RefcountUnderflow, ..fault },
            _ => fault,
        })?;
        // SAFETY: looked up just above.
        unsafe {
            if header::refcnt(object) == 1 && self.is_held(object) {
                return Err(object_fault(FaultKind::RefcountUnderflow, object));
            }
            if self.decref_object(object) {
                return self.result_for_hooks();
            }
        }
        Ok(())
    }

    /// Makes an object immortal (`PyUnstable_SetImmortal`): it is never destroyed, also when its references are given back. False if the release
    /// has no immortal objects.
    ///
    /// # Errors
    /// When `object` is no object, or is being destroyed.
    #[doc(alias = "PyUnstable_SetImmortal")]
    pub fn set_immortal(&self, object: usize) -> Result<bool, Fault> {
        self.change(object)?;
        if self.immortal_bit == 0 {
            return Ok(false);
        }
        // SAFETY: looked up just above.
        unsafe { header::set_refcnt(object, self.refcount_limit) };
        Ok(true)
    }

    /// Whether a reference count says that the object is immortal.
    #[inline]
    pub(crate) fn is_immortal(&self, refcount: usize) -> bool {
        refcount & self.immortal_bit != 0
    }

    /// # Safety
    /// `object` is one.
    #[inline]
    pub(crate) unsafe fn incref_object(&self, object: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            let count = header::refcnt(object);
            if count < self.refcount_limit {
                header::set_refcnt(object, count + 1);
            }
        }
    }
}
