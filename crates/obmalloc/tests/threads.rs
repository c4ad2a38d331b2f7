//! Heaps in eight threads at once, and heaps that move between threads. Under ThreadSanitizer (`scripts/tsan.sh`), what is shared shows.

use std::cell::RefCell;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use obmalloc::{Domain, Field, FieldKind, Heap, HeapOptions, NoHooks, ObjectHeap, TypeSpec, Value, profile};

const THREADS: usize = 8;

#[test]
fn raw_domain_serves_eight_threads_which_free_each_others_blocks() {
    // The raw domain is the C library's, through any heap: a block may be freed by any thread.
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..THREADS).map(|_| channel::<usize>()).unzip();
    let threads: Vec<_> = receivers
        .into_iter()
        .enumerate()
        .map(|(number, receiver)| {
            let next = senders[(number + 1) % THREADS].clone();
            thread::spawn(move || {
                let heap = Heap::new(profile::ALL[number % profile::ALL.len()]).expect("a heap");
                for round in 1..if cfg!(miri) { 20 } else { 2000usize } {
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
            // Small blocks lie in the heap's arenas, and go with the heap.
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

/// Blocks of every domain and size, and rings of objects, come and go.
fn exercise(heap: &ObjectHeap) {
    let before = heap.allocated_blocks();
    let fields = vec![("next".into(), FieldKind::Object)];
    let kind = heap.define_type(TypeSpec { name: "node".into(), fields, gc: true, ..TypeSpec::default() }).expect("a type");
    let mut blocks = Vec::new();
    for size in (1..2000).step_by(37) {
        for domain in Domain::ALL {
            blocks.push((domain, heap.blocks().malloc(domain, size).expect("memory").as_ptr().expose_provenance()));
        }
        let object = heap.alloc(kind, 0).expect("an object");
        heap.set(object, Field::Member(0), Value::Object(object)).expect("a reference to itself");
        heap.decref(object).expect("it has a reference");
    }
    for (domain, block) in blocks {
        heap.blocks().free(domain, block).expect("a live block");
    }
    heap.collect(2).expect("nothing to fail");
    heap.verify().expect("holds");
    assert_eq!(heap.allocated_blocks(), before);
}

fn new_heap(number: usize) -> ObjectHeap {
    ObjectHeap::new(HeapOptions::new(profile::ALL[number % profile::ALL.len()]), Box::new(NoHooks)).expect("a heap")
}

#[test]
#[cfg_attr(miri, ignore = "it forks")]
fn child_of_a_fork_goes_on_with_its_heaps_while_others_allocate() {
    // The layout of glibc's tst-malloc-fork-deadlock: some fork, more allocate.
    const FORKING: usize = 4;
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for number in 0..THREADS {
            let over = &over;
            scope.spawn(move || {
                let heap = new_heap(number);
                while !over.load(Ordering::Relaxed) {
                    exercise(&heap);
                }
            });
        }
        let forking: Vec<_> = (0..FORKING)
            .map(|number| {
                scope.spawn(move || {
                    let heap = new_heap(number);
                    (0..20).map(|_| fork_and_exercise(&heap)).collect::<Vec<_>>()
                })
            })
            .collect();
        let ended: Vec<_> = forking.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect();
        over.store(true, Ordering::Relaxed);
        assert_eq!(ended, vec![Some(0); FORKING * 20]);
    });
}

/// Forks a child that uses the heap and one of its own. Returns how the child ended, or `None` if it hung.
///
/// A heap takes no lock, so a child can only wait for a lock of the allocator below it. The C library prepares its locks for a fork. Under
/// ThreadSanitizer that allocator is the sanitizer's.
fn fork_and_exercise(heap: &ObjectHeap) -> Option<i32> {
    exercise(heap);
    // SAFETY: the child uses memory only, which the C library has made ready for it, and ends without running what others left behind.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "cannot fork");
    if child == 0 {
        let used = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            exercise(heap);
            exercise(&new_heap(1));
        }));
        // SAFETY: ends the process.
        unsafe { libc::_exit(used.is_err().into()) };
    }
    exercise(heap);
    let (begin, mut status) = (Instant::now(), 0);
    // SAFETY: a child of this process, and a place for what is said of it.
    while unsafe { libc::waitpid(child, &mut status, libc::WNOHANG) } == 0 {
        if begin.elapsed() > Duration::from_secs(60) {
            for file in ["stat", "syscall", "wchan", "stack"] {
                eprintln!("a child hangs, {file}: {:?}", std::fs::read_to_string(format!("/proc/{child}/{file}")));
            }
            // SAFETY: as above.
            unsafe { (libc::kill(child, libc::SIGKILL), libc::waitpid(child, &mut status, 0)) };
            return None;
        }
        thread::sleep(Duration::from_millis(1));
    }
    Some(status)
}

#[test]
fn heap_in_thread_local_storage_goes_with_its_thread() {
    /// Uses the heap when its thread ends, which may be before or after the heap has gone, and says whether it could.
    struct Last(usize, Sender<bool>);
    impl Drop for Last {
        fn drop(&mut self) {
            let block = NonNull::new(std::ptr::with_exposed_provenance_mut(self.0));
            // SAFETY: a block of this heap's, where there still is a heap.
            let used = HEAP.try_with(|heap| unsafe { heap.free(Domain::Mem, block) });
            self.1.send(used.is_ok()).expect("the test listens");
        }
    }
    thread_local! {
        static HEAP: Heap = Heap::new(&profile::V3_13).expect("a heap");
        static LAST: RefCell<Option<Last>> = const { RefCell::new(None) };
    }
    // What is used first goes first, or last: that is the C library's affair, and different for the two.
    let said = [false, true].map(|heap_first| {
        let (sender, receiver) = channel();
        let thread = thread::spawn(move || {
            if !heap_first {
                LAST.with_borrow(|_| ());
            }
            let block = HEAP.with(|heap| heap.malloc(Domain::Mem, 100)).expect("memory");
            LAST.set(Some(Last(block.as_ptr().expose_provenance(), sender)));
        });
        thread.join().expect("no panic");
        receiver.iter().collect::<Vec<_>>()
    });
    assert_eq!(said.iter().flatten().count(), 2, "{said:?}");
    assert_ne!(said[0], said[1]);
}

#[test]
#[ignore = "a data race, which ThreadSanitizer must find"]
fn planted_race() {
    struct Smuggled(Heap);
    // SAFETY: none; this is the mistake. But the threads take turns, so the heap stays whole.
    unsafe impl Sync for Smuggled {}

    let (shared, turn) = (Smuggled(Heap::new(&profile::V3_13).expect("a heap")), AtomicUsize::new(0));
    // Says when, but orders nothing.
    let wait_for = |number| {
        while turn.load(Ordering::Relaxed) != number {
            thread::yield_now();
        }
    };
    thread::scope(|scope| {
        let (shared, turn) = (&shared, &turn);
        for number in 0..2 {
            scope.spawn(move || {
                wait_for(number);
                shared.0.malloc(Domain::Mem, 100).expect("memory");
                turn.store(number + 1, Ordering::Relaxed);
                // A thread that has ended would not be told from one that begins later.
                wait_for(2);
            });
        }
    });
}
