//! Random programs of allocator calls.

use obmalloc::{CheckedHeap, Domain};

use crate::common::Random;

#[derive(Clone, Copy, Debug)]
pub enum Op {
    Malloc { domain: Domain, slot: usize, size: usize },
    Calloc { domain: Domain, slot: usize, size: usize },
    Realloc { slot: usize, size: usize },
    Free { slot: usize },
}

pub const SLOTS: usize = 600;

/// `count` operations: sizes up to `largest`, phases that grow and phases that shrink the heap.
pub fn program(seed: u64, count: usize, largest: usize) -> Vec<Op> {
    let mut random = Random::new(seed);
    let mut growing = true;
    (0..count)
        .map(|index| {
            if index % 97 == 0 {
                growing = random.below(2) == 0;
            }
            let (slot, size) = (random.below(SLOTS), random.below(largest + 1));
            let domain = Domain::ALL[random.below(3)];
            match (random.below(10), growing) {
                (0..=1, _) => Op::Realloc { slot, size },
                (2, _) => Op::Calloc { domain, slot, size },
                (3..=7, true) | (3..=4, false) => Op::Malloc { domain, slot, size },
                _ => Op::Free { slot },
            }
        })
        .collect()
}

/// Runs a program, filling every block with its slot's number and checking that number before the block goes; `each` looks at the heap
/// after every operation, or now and then.
pub fn run(heap: &CheckedHeap, ops: &[Op], mut each: impl FnMut(&CheckedHeap) -> Result<(), String>) -> Result<(), String> {
    let mut slots: Vec<Option<(Domain, usize, usize)>> = vec![None; SLOTS];
    for (index, &op) in ops.iter().enumerate() {
        let fail = |what: String| format!("operation {index} {op:?}: {what}");
        match op {
            Op::Malloc { domain, slot, size } | Op::Calloc { domain, slot, size } => {
                if let Some((domain, address, size)) = slots[slot].take() {
                    check(address, size, slot).map_err(fail)?;
                    heap.free(domain, address).map_err(|fault| fail(fault.to_string()))?;
                }
                let zeroed = matches!(op, Op::Calloc { .. });
                let block = if zeroed { heap.calloc(domain, 1, size) } else { heap.malloc(domain, size) };
                let address = block.ok_or_else(|| fail("no memory".into()))?.as_ptr();
                if zeroed {
                    // SAFETY: a block of `size` bytes.
                    let bytes = unsafe { std::slice::from_raw_parts(address, size) };
                    if bytes.iter().any(|&byte| byte != 0) {
                        return Err(fail("calloc left bytes".into()));
                    }
                }
                // SAFETY: as above.
                unsafe { address.write_bytes(slot as u8, size) };
                slots[slot] = Some((domain, address as usize, size));
            }
            Op::Realloc { slot, size } => {
                let Some((domain, address, old)) = slots[slot] else { continue };
                check(address, old, slot).map_err(fail)?;
                let block = heap.realloc(domain, Some(address), size).map_err(|fault| fail(fault.to_string()))?;
                let moved = block.ok_or_else(|| fail("no memory".into()))?.as_ptr();
                check(moved as usize, old.min(size), slot).map_err(fail)?;
                // SAFETY: a block of `size` bytes.
                unsafe { moved.write_bytes(slot as u8, size) };
                slots[slot] = Some((domain, moved as usize, size));
            }
            Op::Free { slot } => {
                let Some((domain, address, size)) = slots[slot].take() else { continue };
                check(address, size, slot).map_err(fail)?;
                heap.free(domain, address).map_err(|fault| fail(fault.to_string()))?;
            }
        }
        // Miri looks at a heap as long as it runs a thousand operations.
        if !cfg!(miri) || index % 16 == 15 {
            each(heap).map_err(fail)?;
        }
    }
    Ok(())
}

fn check(address: usize, size: usize, slot: usize) -> Result<(), String> {
    // SAFETY: a live block of at least `size` bytes that this program filled.
    let bytes = unsafe { std::slice::from_raw_parts(address as *const u8, size) };
    match bytes.iter().position(|&byte| byte != slot as u8) {
        Some(at) => Err(format!("byte {at} of slot {slot} at {address:#x} was overwritten")),
        None => Ok(()),
    }
}
