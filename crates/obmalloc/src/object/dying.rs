//! Objects whose destruction has begun, until their memory is given back.

use super::handle::{Object, Quiet};

/// An object whose references are being dropped, and which of them is next.
///
/// There is one of these for each such object, or its place in the [trash](Trash). So [`finish`](super::ObjectHeap::finish), which takes it,
/// gives the memory back once.
pub(crate) struct Dying {
    object: usize,
    pub next: usize,
}

impl Dying {
    /// # Safety
    /// There is an object, whose destruction has just begun.
    #[inline(always)]
    pub unsafe fn new(object: usize) -> Self {
        Self { object, next: 0 }
    }

    #[inline(always)]
    pub fn object<'quiet>(&self, quiet: &'quiet Quiet<'_>) -> Object<'quiet> {
        // SAFETY: `new` was promised an object, and it keeps its memory as long as there is a `Dying` of it.
        unsafe { Object::known(self.object, quiet) }
    }

    #[inline(always)]
    pub fn address(&self) -> usize {
        self.object
    }

    /// Keeps the memory. The object's references have been dropped.
    pub fn keep(self) -> Kept {
        Kept(self.object)
    }
}

/// The memory of a destroyed object, which its type keeps for the next one. It has an object's size, and no other owner.
#[derive(Debug)]
pub(crate) struct Kept(usize);

impl Kept {
    #[inline(always)]
    pub fn address(&self) -> usize {
        self.0
    }
}

/// The objects whose destruction was interrupted, or waits because there was no memory for a list of them. They are linked through their
/// reference counts.
#[derive(Default)]
pub(crate) struct Trash {
    /// 0 for none.
    first: usize,
}

impl Trash {
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.first == 0
    }

    /// Puts an object in front.
    #[inline(always)]
    pub fn push(&mut self, dying: Dying, quiet: &Quiet<'_>) {
        dying.object(quiet).set_refcnt(self.first);
        self.first = dying.object;
    }

    /// Takes the first object out.
    #[inline(always)]
    pub fn pop(&mut self, quiet: &Quiet<'_>) -> Option<Dying> {
        if self.first == 0 {
            return None;
        }
        let dying = Dying { object: self.first, next: 0 };
        let object = dying.object(quiet);
        self.first = object.refcnt();
        object.set_refcnt(0);
        Some(dying)
    }
}
