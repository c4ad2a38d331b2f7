//! Debug hooks with a quarantine find everything that they find without one, and also writes to blocks in quarantine.

use std::ptr;

use obmalloc::{AllocatorName, CheckedHeap, Domain, FaultKind, HeapOptions, profile};

/// Bytes of freed blocks that are kept.
const QUARANTINE: usize = 1 << 16;

fn heap(quarantine: usize) -> CheckedHeap {
    let allocator = AllocatorName::Debug;
    CheckedHeap::new(HeapOptions { allocator, quarantine, ..HeapOptions::new(&profile::V3_13) }).expect("memory")
}

fn block(heap: &CheckedHeap, domain: Domain, size: usize) -> usize {
    heap.malloc(domain, size).expect("memory").as_ptr().expose_provenance()
}

/// Writes a byte that differs from the old one, and from those that the hooks write.
fn write(address: usize) {
    // SAFETY: the caller gives a byte of a block with its guard bytes, which the heap still has.
    unsafe { *ptr::with_exposed_provenance_mut::<u8>(address) ^= 0x55 };
}

/// What a program does wrong with a block of so many bytes.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Wrong {
    WritesBehind,
    WritesFarBehind,
    WritesBefore,
    WritesAfterFree,
    WritesLastByteAfterFree,
    WritesBehindAfterFree,
    FreesTwice,
    FreesTwiceLater,
    ResizesAfterFree,
    FreesInWrongDomain,
    FreesInside,
}

use Wrong::*;

const ALL: [Wrong; 11] = [
    WritesBehind,
    WritesFarBehind,
    WritesBefore,
    WritesAfterFree,
    WritesLastByteAfterFree,
    WritesBehindAfterFree,
    FreesTwice,
    FreesTwiceLater,
    ResizesAfterFree,
    FreesInWrongDomain,
    FreesInside,
];

/// Runs a bad program: what was found, if anything.
fn run(heap: &CheckedHeap, domain: Domain, size: usize, wrong: Wrong) -> Option<FaultKind> {
    let other = Domain::ALL[(domain as usize + 1) % 3];
    let bad = block(heap, domain, size);
    let kind = |found: Result<(), obmalloc::Fault>| found.err().map(|fault| fault.kind);
    let freed = || heap.free(domain, bad).expect("a sound block");
    let found = match wrong {
        WritesBehind => {
            write(bad + size);
            kind(heap.free(domain, bad))
        }
        WritesFarBehind => {
            write(bad + size + 7);
            kind(heap.free(domain, bad))
        }
        WritesBefore => {
            write(bad - 1);
            kind(heap.realloc(domain, Some(bad), 2 * size).map(drop))
        }
        WritesAfterFree | WritesLastByteAfterFree | WritesBehindAfterFree => {
            freed();
            write(match wrong {
                WritesAfterFree => bad,
                WritesLastByteAfterFree => bad + size - 1,
                _ => bad + size,
            });
            kind(heap.verify_guards())
        }
        FreesTwice => {
            freed();
            kind(heap.free(domain, bad))
        }
        FreesTwiceLater => {
            freed();
            let next = block(heap, domain, size);
            let found = kind(heap.free(domain, bad));
            if next != bad {
                heap.free(domain, next).expect("a sound block");
            }
            found
        }
        ResizesAfterFree => {
            freed();
            kind(heap.realloc(domain, Some(bad), 2 * size).map(drop))
        }
        FreesInWrongDomain => kind(heap.free(other, bad)),
        FreesInside => kind(heap.free(domain, bad + 16)),
    };
    // A block is looked at again when it leaves the quarantine.
    heap.empty_quarantine();
    found.or_else(|| heap.take_late_fault().or_else(|| heap.take_fault()).map(|fault| fault.kind))
}

/// Whether the memory would be the C library's again without a quarantine. The test must not write to it then.
fn is_the_librarys(domain: Domain, size: usize, wrong: Wrong) -> bool {
    let writes = matches!(wrong, WritesAfterFree | WritesLastByteAfterFree | WritesBehindAfterFree);
    writes && (domain == Domain::Raw || size > 400)
}

#[test]
fn quarantine_hides_nothing_and_watches_large_blocks_too() {
    let mut counts = [0, 0];
    for domain in Domain::ALL {
        for size in [20, 300, 5000] {
            for wrong in ALL {
                let kept = run(&heap(QUARANTINE), domain, size, wrong);
                counts[1] += usize::from(kept.is_some());
                assert!(kept.is_some(), "{wrong:?} of {size} bytes of {domain} is not found");
                if !is_the_librarys(domain, size, wrong) {
                    let found = run(&heap(0), domain, size, wrong);
                    counts[0] += usize::from(found.is_some());
                    // Without a quarantine a second free cannot be found once the address has been handed out again.
                    assert!(found.is_none() || found == kept, "{wrong:?} of {size} bytes of {domain}: {found:?}, then {kept:?}");
                }
            }
        }
    }
    assert_eq!(counts[1], 99);
    assert!(counts[0] < counts[1], "{counts:?}");
}

#[test]
fn damage_in_quarantine_is_told_once_and_the_block_is_not_used_again() {
    for domain in Domain::ALL {
        for size in [20, 5000] {
            let heap = heap(QUARANTINE);
            let bad = block(&heap, domain, size);
            heap.free(domain, bad).expect("a sound block");
            write(bad + 3);
            let fault = heap.verify_guards().expect_err("damaged");
            assert_eq!((fault.kind, fault.address, fault.offset), (FaultKind::WriteAfterFree, bad, Some(3)));
            heap.verify_guards().expect("told once");
            heap.verify().expect("holds");
            assert!(heap.empty_quarantine());
            assert_eq!(heap.take_late_fault(), None, "told already");
            let blocks: Vec<usize> = (0..100).map(|_| block(&heap, domain, size)).collect();
            assert!(!blocks.contains(&bad));
            heap.verify().expect("holds");
        }
    }
}
