//! A guest that keeps the rules.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use obmalloc::{AllocatorId, Answer, Domain, Guest, ObjectHeap, OwnAllocators, Threw};

/// Counts the calls, and passes them on with a header before each block.
pub struct Wrapper {
    below: AllocatorId,
    header: usize,
    pub calls: Cell<usize>,
    /// The blocks that it has given.
    pub given: RefCell<Vec<usize>>,
}

impl Wrapper {
    /// Wraps what is in a domain.
    pub fn put_in(heap: &ObjectHeap, domain: Domain, header: usize) -> Rc<Self> {
        let below = heap.allocator(domain).expect("memory");
        let wrapper = Rc::new(Self { below, header, calls: Cell::new(0), given: RefCell::default() });
        let guest = heap.add_guest(wrapper.clone()).expect("memory");
        heap.set_allocator(domain, guest).expect("memory");
        wrapper
    }

    fn count(&self) {
        self.calls.set(self.calls.get() + 1);
    }

    /// Behind a header, a block of no bytes takes one.
    fn size(&self, size: usize) -> usize {
        if self.header == 0 { size } else { self.header + size.max(1) }
    }

    fn give(&self, memory: Option<usize>) -> Answer {
        let block = memory.map(|memory| memory + self.header);
        self.given.borrow_mut().extend(block);
        Ok(block)
    }
}

impl Guest for Wrapper {
    fn malloc(&self, own: &OwnAllocators<'_>, size: usize) -> Answer {
        self.count();
        self.give(own.malloc(self.below, self.size(size)).map_err(|_| Threw(1))?)
    }
    fn calloc(&self, own: &OwnAllocators<'_>, count: usize, size: usize) -> Answer {
        self.count();
        self.give(own.calloc(self.below, 1, self.size(count * size)).map_err(|_| Threw(2))?)
    }
    fn realloc(&self, own: &OwnAllocators<'_>, address: Option<usize>, size: usize) -> Answer {
        self.count();
        let memory = address.map(|address| address - self.header);
        self.give(own.realloc(self.below, memory, self.size(size)).map_err(|_| Threw(3))?)
    }
    fn free(&self, own: &OwnAllocators<'_>, address: Option<usize>) -> Result<(), Threw> {
        self.count();
        own.free(self.below, address.map(|address| address - self.header)).map_err(|_| Threw(4))
    }
}
