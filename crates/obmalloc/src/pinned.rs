//! A value that does not move, because allocators point to it.

use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

use alloc::boxed::Box;

use crate::try_box;

/// Owns a value that does not move, so that allocators can keep a pointer to it. A `Box` would not do: moving a `Box` claims unique access
/// to its value.
pub(crate) struct Pinned<T>(NonNull<T>);

impl<T> Pinned<T> {
    pub fn new(value: T) -> Self {
        Self(NonNull::from(Box::leak(Box::new(value))))
    }

    /// Pins a value; `None` when there is no memory for it.
    pub fn try_new(value: T) -> Option<Self> {
        try_box(value).map(|value| Self(NonNull::from(Box::leak(value))))
    }

    /// A pointer to the value, to be used while there is no reference to it.
    pub fn as_ptr(&self) -> *mut T {
        self.0.as_ptr()
    }
}

impl<T> Deref for Pinned<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the value lives as long as its owner; nothing writes through a pointer while references are held.
        unsafe { self.0.as_ref() }
    }
}

impl<T> DerefMut for Pinned<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and nothing reads through a pointer either.
        unsafe { self.0.as_mut() }
    }
}

impl<T> Drop for Pinned<T> {
    fn drop(&mut self) {
        // SAFETY: made from a box, and given back once.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}
