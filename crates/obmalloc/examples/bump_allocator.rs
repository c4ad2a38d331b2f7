//! A guest that hands out one big block, piece after piece, and gives all of it back at once: `cargo run --example bump_allocator`.

use std::cell::Cell;
use std::error::Error;
use std::rc::Rc;

use obmalloc::{Answer, Domain, Guest, GuestHeap, HeapOptions, OwnAllocators, Threw, profile};

const BYTES: usize = 1 << 16;

struct Bump {
    /// The big block: a grant, which is the guest's until it is given back.
    base: usize,
    used: Cell<usize>,
    last: Cell<Option<usize>>,
}

impl Bump {
    /// Moves the end of the last piece, or begins a new one. A piece is never handed out again, so it holds zeros. A block of no bytes takes
    /// one.
    fn extend(&self, from: usize, size: usize) -> Answer {
        let end = size.max(1).checked_next_multiple_of(16).and_then(|bytes| from.checked_add(bytes)).filter(|&end| end <= BYTES);
        Ok(end.map(|end| {
            self.used.set(end);
            self.last.set(Some(self.base + from));
            self.base + from
        }))
    }
}

impl Guest for Bump {
    fn malloc(&self, _: &OwnAllocators<'_>, size: usize) -> Answer {
        self.extend(self.used.get(), size)
    }

    fn calloc(&self, own: &OwnAllocators<'_>, count: usize, size: usize) -> Answer {
        count.checked_mul(size).map_or(Ok(None), |size| self.malloc(own, size))
    }

    /// Only the last piece can grow: another one is as it was.
    fn realloc(&self, own: &OwnAllocators<'_>, address: Option<usize>, size: usize) -> Answer {
        match address {
            None => self.malloc(own, size),
            Some(address) if self.last.get() == Some(address) => self.extend(address - self.base, size),
            Some(_) => Ok(None),
        }
    }

    fn free(&self, _: &OwnAllocators<'_>, _: Option<usize>) -> Result<(), Threw> {
        Ok(())
    }
}

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let heap = GuestHeap::new(HeapOptions::new(&profile::V3_14))?;
    let (raw, pymalloc) = (heap.allocator(Domain::Raw)?, heap.allocator(Domain::Obj)?);
    let base = heap.own_allocators()?.calloc(raw, 1, BYTES)?.ok_or("no memory")?;
    let bump = Rc::new(Bump { base, used: Cell::new(0), last: Cell::new(None) });
    let guest = heap.add_guest(bump.clone())?;
    heap.set_allocator(Domain::Obj, guest).expect("memory");

    let first = heap.malloc(Domain::Obj, 100).ok_or("no memory")?.addr().get();
    let second = heap.calloc(Domain::Obj, 10, 10).ok_or("no memory")?.addr().get();
    assert_eq!((first, second), (base, base + 112));
    let grown = heap.realloc(Domain::Obj, Some(second), 1000)?;
    assert_eq!(grown.map(|block| block.addr().get()), Some(second));
    assert_eq!(heap.realloc(Domain::Obj, Some(first), 1000)?, None);
    assert_eq!(heap.malloc(Domain::Obj, BYTES), None);
    assert!(heap.own_allocators()?.free(raw, Some(base)).is_err(), "blocks lie in it");

    heap.free(Domain::Obj, first)?;
    heap.free(Domain::Obj, second)?;
    heap.set_allocator(Domain::Obj, pymalloc).expect("memory");
    heap.own_allocators()?.free(raw, Some(base))?;
    heap.verify()?;
    println!("{} bytes handed out", bump.used.get());
    Ok(())
}
