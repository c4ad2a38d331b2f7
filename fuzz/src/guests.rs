//! Allocators that are not trusted.

use obmalloc::{AllocatorId, Answer, Guest, OwnAllocators, Threw};

/// Passes everything on.
pub struct Passing(pub AllocatorId);

impl Guest for Passing {
    fn malloc(&self, own: &OwnAllocators<'_>, size: usize) -> Answer {
        own.malloc(self.0, size).map_err(|_| Threw(0))
    }
    fn calloc(&self, own: &OwnAllocators<'_>, count: usize, size: usize) -> Answer {
        own.calloc(self.0, count, size).map_err(|_| Threw(0))
    }
    fn realloc(&self, own: &OwnAllocators<'_>, address: Option<usize>, size: usize) -> Answer {
        own.realloc(self.0, address, size).map_err(|_| Threw(0))
    }
    fn free(&self, own: &OwnAllocators<'_>, address: Option<usize>) -> Result<(), Threw> {
        own.free(self.0, address).map_err(|_| Threw(0))
    }
}
