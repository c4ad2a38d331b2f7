//! A guest with a pool of blocks of one size; what does not fit there goes to the allocator that was in: `cargo run --example
//! pool_allocator`.

use std::cell::RefCell;
use std::error::Error;
use std::rc::Rc;

use obmalloc::{AllocatorId, Answer, Domain, Guest, GuestHeap, HeapOptions, OwnAllocators, Threw, profile};

const SIZE: usize = 64;
const COUNT: usize = 128;

struct Pool {
    /// The allocator that was in.
    below: AllocatorId,
    /// The memory of the pool: a grant, which is the guest's until it is given back.
    base: usize,
    free: RefCell<Vec<usize>>,
}

impl Pool {
    fn is_ours(&self, address: usize) -> bool {
        (self.base..self.base + SIZE * COUNT).contains(&address)
    }
}

impl Guest for Pool {
    fn malloc(&self, own: &OwnAllocators<'_>, size: usize) -> Answer {
        let pooled = if size <= SIZE { self.free.borrow_mut().pop() } else { None };
        match pooled {
            Some(block) => Ok(Some(block)),
            None => own.malloc(self.below, size).map_err(|_| Threw(0)),
        }
    }

    /// The allocator below zeroes the bytes.
    fn calloc(&self, own: &OwnAllocators<'_>, count: usize, size: usize) -> Answer {
        own.calloc(self.below, count, size).map_err(|_| Threw(0))
    }

    fn realloc(&self, own: &OwnAllocators<'_>, address: Option<usize>, size: usize) -> Answer {
        match address {
            None => self.malloc(own, size),
            // A block of the pool cannot grow.
            Some(address) if self.is_ours(address) => Ok((size <= SIZE).then_some(address)),
            Some(_) => own.realloc(self.below, address, size).map_err(|_| Threw(0)),
        }
    }

    fn free(&self, own: &OwnAllocators<'_>, address: Option<usize>) -> Result<(), Threw> {
        match address {
            Some(address) if self.is_ours(address) => {
                self.free.borrow_mut().push(address);
                Ok(())
            }
            _ => own.free(self.below, address).map_err(|_| Threw(0)),
        }
    }
}

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let heap = GuestHeap::new(HeapOptions::new(&profile::V3_14))?;
    let (raw, below) = (heap.allocator(Domain::Raw)?, heap.allocator(Domain::Obj)?);
    let base = heap.own_allocators()?.malloc(raw, SIZE * COUNT)?.ok_or("no memory")?;
    let free = (0..COUNT).rev().map(|index| base + SIZE * index).collect();
    let pool = Rc::new(Pool { below, base, free: RefCell::new(free) });
    let guest = heap.add_guest(pool.clone())?;
    heap.set_allocator(Domain::Obj, guest).expect("memory");

    let small = heap.malloc(Domain::Obj, 40).ok_or("no memory")?.addr().get();
    let large = heap.malloc(Domain::Obj, 4000).ok_or("no memory")?.addr().get();
    assert_eq!((small, pool.free.borrow().len()), (base, COUNT - 1));
    assert!(!pool.is_ours(large));
    let kept = heap.realloc(Domain::Obj, Some(small), 60)?;
    assert_eq!(kept.map(|block| block.addr().get()), Some(small));
    assert_eq!(heap.realloc(Domain::Obj, Some(small), 65)?, None);
    heap.free(Domain::Obj, small)?;
    assert!(heap.free(Domain::Obj, small).is_err(), "freed once");
    heap.free(Domain::Obj, large)?;
    let again = heap.malloc(Domain::Obj, 64).ok_or("no memory")?.addr().get();
    assert_eq!(again, small);
    heap.free(Domain::Obj, again)?;

    heap.set_allocator(Domain::Obj, below).expect("memory");
    heap.own_allocators()?.free(raw, Some(base))?;
    heap.verify()?;
    println!("{} blocks in the pool", pool.free.borrow().len());
    Ok(())
}
