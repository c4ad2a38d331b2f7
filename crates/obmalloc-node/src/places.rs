//! Places in an array of the handle's: each is taken, and given back for the next.

use std::cell::{Cell, RefCell};

#[derive(Default)]
pub(crate) struct Places {
    used: Cell<u32>,
    free: RefCell<Vec<u32>>,
}

impl Places {
    pub fn take(&self) -> u32 {
        self.free.borrow_mut().pop().unwrap_or_else(|| self.used.replace(self.used.get() + 1))
    }

    pub fn give(&self, place: u32) {
        self.free.borrow_mut().push(place);
    }
}
