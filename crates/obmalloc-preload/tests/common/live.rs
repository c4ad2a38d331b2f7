//! The blocks that are live after some events.

use obmalloc_trace::format::{Domain, Event};
use std::collections::HashMap;

/// What is allocated in the mem and obj domains: by address, the bytes that pymalloc gave, or 0 for blocks that it passed on.
#[derive(Default)]
pub struct Live(pub HashMap<u64, u64>);

fn class_bytes(size: u64) -> u64 {
    if size == 0 || size > 512 { 0 } else { size.next_multiple_of(16) }
}

impl Live {
    fn allocate(&mut self, address: u64, bytes: u64) {
        if address != 0 {
            assert_eq!(self.0.insert(address, bytes), None, "{address:#x} was given twice");
        }
    }

    fn release(&mut self, address: u64) -> u64 {
        self.0.remove(&address).unwrap_or_else(|| panic!("{address:#x} was freed and is not allocated"))
    }

    /// Applies an event. Panics if it gives out a live block, or frees a block that is not live.
    pub fn apply(&mut self, event: &Event) {
        match *event {
            Event::Malloc { domain: Domain::Mem | Domain::Obj, size, result, .. } => self.allocate(result, class_bytes(size)),
            Event::Calloc { domain: Domain::Mem | Domain::Obj, count, size, result, .. } => {
                self.allocate(result, class_bytes(count * size));
            }
            Event::Realloc { domain: Domain::Mem | Domain::Obj, address: 0, size, result, .. } => {
                self.allocate(result, class_bytes(size));
            }
            Event::Realloc { domain: Domain::Mem | Domain::Obj, address, size, result, .. } if result != 0 => {
                let before = self.release(address);
                // A block that did not move keeps its class, one that pymalloc had passed on stays out of it.
                let bytes = if result == address || before == 0 { before } else { class_bytes(size) };
                self.allocate(result, bytes);
            }
            Event::Free { domain: Domain::Mem | Domain::Obj, address, .. } if address != 0 => {
                self.release(address);
            }
            _ => {}
        }
    }
}
