//! A guest around the allocator that was in: it counts, logs, limits and fails: `cargo run --example wrap_allocator`.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::error::Error;
use std::rc::Rc;

use obmalloc::{
    AllocatorId, Answer, Domain, Guest, GuestFaultKind, GuestHeap, HeapOptions, OwnAllocators, OwnError, Threw, profile,
};

const LIMIT: usize = 5000;
/// The numbers that failures of this guest have.
const OUT_OF_ORDER: Threw = Threw(1);
const BELOW: Threw = Threw(2);

struct Wrapper {
    /// The allocator that was in.
    below: AllocatorId,
    live: RefCell<HashMap<usize, usize>>,
    held: Cell<usize>,
    failing: Cell<bool>,
}

impl Wrapper {
    /// What was asked for, unless that would be too much.
    fn keep(&self, size: usize, request: impl FnOnce() -> Result<Option<usize>, OwnError>) -> Answer {
        if self.failing.get() {
            return Err(OUT_OF_ORDER);
        }
        let is_too_much = self.held.get().saturating_add(size) > LIMIT;
        let block = if is_too_much { None } else { request().map_err(|_| BELOW)? };
        eprintln!("{size} bytes: {}", if block.is_some() { "given" } else { "refused" });
        if let Some(block) = block {
            self.live.borrow_mut().insert(block, size);
            self.held.set(self.held.get() + size);
        }
        Ok(block)
    }

    fn drop_block(&self, block: usize) -> usize {
        let size = self.live.borrow_mut().remove(&block).unwrap_or(0);
        self.held.set(self.held.get() - size);
        size
    }
}

impl Guest for Wrapper {
    fn malloc(&self, own: &OwnAllocators<'_>, size: usize) -> Answer {
        self.keep(size, || own.malloc(self.below, size))
    }

    fn calloc(&self, own: &OwnAllocators<'_>, count: usize, size: usize) -> Answer {
        self.keep(count.saturating_mul(size), || own.calloc(self.below, count, size))
    }

    fn realloc(&self, own: &OwnAllocators<'_>, address: Option<usize>, size: usize) -> Answer {
        let Some(old) = address else { return self.malloc(own, size) };
        let was = self.drop_block(old);
        let moved = self.keep(size, || own.realloc(self.below, address, size));
        if !matches!(moved, Ok(Some(_))) {
            // The old block is as it was.
            self.live.borrow_mut().insert(old, was);
            self.held.set(self.held.get() + was);
        }
        moved
    }

    fn free(&self, own: &OwnAllocators<'_>, address: Option<usize>) -> Result<(), Threw> {
        if let Some(address) = address {
            self.drop_block(address);
        }
        own.free(self.below, address).map_err(|_| BELOW)
    }
}

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let heap = GuestHeap::new(HeapOptions::new(&profile::V3_14))?;
    let below = heap.allocator(Domain::Obj)?;
    let live = RefCell::default();
    let wrapper = Rc::new(Wrapper { below, live, held: Cell::new(0), failing: Cell::new(false) });
    let guest = heap.add_guest(wrapper.clone())?;
    heap.set_allocator(Domain::Obj, guest).expect("memory");

    let small = heap.malloc(Domain::Obj, 100).ok_or("no memory")?.addr().get();
    let large = heap.malloc(Domain::Obj, 4500).ok_or("no memory")?.addr().get();
    // 5600 bytes would be too much.
    assert_eq!(heap.malloc(Domain::Obj, 1000), None);
    assert_eq!(heap.take_guest_fault(), None, "no memory is an answer");
    wrapper.failing.set(true);
    assert_eq!(heap.malloc(Domain::Obj, 1), None);
    let fault = heap.take_guest_fault().ok_or("no fault")?;
    assert_eq!(fault.kind, GuestFaultKind::Threw(OUT_OF_ORDER.0));
    wrapper.failing.set(false);
    heap.free(Domain::Obj, large)?;
    assert_eq!((wrapper.live.borrow().len(), wrapper.held.get()), (1, 100));

    heap.set_allocator(Domain::Obj, below).expect("memory");
    // The block has come from the allocator below all the time.
    heap.free(Domain::Obj, small)?;
    heap.verify()?;
    println!("{fault}");
    Ok(())
}
