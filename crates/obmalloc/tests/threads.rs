//! Heaps in eight threads at once, and heaps that move between threads. Under ThreadSanitizer, what is shared shows.

use std::sync::mpsc::channel;
use std::thread;

use obmalloc::{Domain, Heap, profile};

const THREADS: usize = 8;

#[test]
fn raw_domain_serves_eight_threads_which_free_each_others_blocks() {
    // The raw domain is the C library's, whoever's heap it is asked through: a block may be freed by any thread.
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..THREADS).map(|_| channel::<usize>()).unzip();
    let threads: Vec<_> = receivers
        .into_iter()
        .enumerate()
        .map(|(number, receiver)| {
            let next = senders[(number + 1) % THREADS].clone();
            thread::spawn(move || {
                let heap = Heap::new(profile::ALL[number % profile::ALL.len()]).expect("a heap");
                for round in 1..2000usize {
                    let block = heap.malloc(Domain::Raw, round % 700 + 1).expect("memory");
                    // SAFETY: a block of at least one byte.
                    unsafe { block.write(number as u8) };
                    next.send(block.as_ptr().expose_provenance()).expect("the other thread lives as long");
                    let other = std::ptr::NonNull::new(std::ptr::with_exposed_provenance_mut(receiver.recv().expect("as many")));
                    // SAFETY: a block of the other thread's, which has let go of it.
                    unsafe {
                        assert_eq!(usize::from(other.expect("a block").read()), (number + THREADS - 1) % THREADS);
                        heap.free(Domain::Raw, other);
                    }
                    let small = heap.malloc(Domain::Obj, round % 512);
                    // SAFETY: a block of this heap's.
                    unsafe { heap.free(Domain::Obj, small) };
                }
                heap.verify().expect("holds");
            })
        })
        .collect();
    drop(senders);
    threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
}

#[test]
fn heap_goes_from_thread_to_thread() {
    let mut heap = Heap::new(&profile::V3_13).expect("a heap");
    for round in 0..THREADS {
        heap = thread::spawn(move || {
            // Small ones: those are the heap's, and go with it.
            for size in 1..=500 {
                heap.malloc(Domain::Mem, size + round).expect("memory");
            }
            heap.verify().expect("holds");
            heap
        })
        .join()
        .expect("no panic");
    }
    assert_eq!(heap.allocated_blocks(), 500 * THREADS);
}
