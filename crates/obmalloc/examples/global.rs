//! A heap as Rust's global allocator, of this whole program: `cargo run --example global`.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::UnsafeCell;
use std::hint;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

use obmalloc::profile::{self, Profile};
use obmalloc::{Domain, Heap};

#[global_allocator]
static ALLOCATOR: GlobalHeap = GlobalHeap::new(&profile::V3_14);

fn main() {
    let words: Vec<String> = "a global allocator".split(' ').map(String::from).collect();
    let blocks = ALLOCATOR.lock(Heap::allocated_blocks);
    println!("{} words, {} blocks", words.len(), blocks.unwrap_or(0));
}

/// A heap for `#[global_allocator]`: small requests go to pymalloc under a lock, the others to the C library.
///
/// The lock is lost in a fork: where another thread had it, the child waits for ever. A program with threads forks only to
/// execute another one.
struct GlobalHeap {
    profile: &'static Profile,
    /// 0, or the thread that is inside.
    owner: AtomicUsize,
    heap: UnsafeCell<Option<Heap>>,
}

// SAFETY: the heap is used only by the thread whose number is in `owner`.
unsafe impl Sync for GlobalHeap {}

impl GlobalHeap {
    /// A heap of `profile`, made at the first request.
    const fn new(profile: &'static Profile) -> Self {
        Self { profile, owner: AtomicUsize::new(0), heap: UnsafeCell::new(None) }
    }

    /// Runs `with` on the heap; nothing when the thread is inside already, because the heap's own tables grow, or no heap can be made.
    fn lock<T>(&self, with: impl FnOnce(&Heap) -> T) -> Option<T> {
        // SAFETY: always allowed. POSIX lets an id be 0, as Miri's first is; glibc's are addresses.
        let me = unsafe { libc::pthread_self() as usize }.wrapping_add(1);
        if self.owner.load(Ordering::Relaxed) == me {
            return None;
        }
        while self.owner.compare_exchange_weak(0, me, Ordering::Acquire, Ordering::Relaxed).is_err() {
            hint::spin_loop();
        }
        // SAFETY: this thread owns the heap until `owner` is cleared, and cannot come here again before.
        let heap = unsafe { &mut *self.heap.get() };
        if heap.is_none() {
            *heap = Heap::new(self.profile).ok();
        }
        let result = heap.as_ref().map(with);
        self.owner.store(0, Ordering::Release);
        result
    }

    fn is_small(&self, layout: &Layout) -> bool {
        let geometry = self.profile.geometry();
        layout.align() <= geometry.alignment && layout.size() <= geometry.small_request_threshold
    }
}

// SAFETY: blocks come from a heap or the C library, aligned as asked. Which of the two a small block came from is decided by its
// address, a large one's by its layout; none unwinds.
unsafe impl GlobalAlloc for GlobalHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if self.is_small(&layout)
            && let Some(block) = self.lock(|heap| heap.malloc(Domain::Mem, layout.size()))
        {
            return block.map_or(ptr::null_mut(), |block| block.as_ptr());
        }
        // SAFETY: plain calls to the C library; an alignment is a power of two.
        unsafe {
            if layout.align() <= 16 {
                return libc::malloc(layout.size().max(1)).cast();
            }
            let mut block = ptr::null_mut();
            match libc::posix_memalign(&mut block, layout.align(), layout.size().max(1)) {
                0 => block.cast(),
                _ => ptr::null_mut(),
            }
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller gives back what `alloc` gave, with the same layout; pymalloc passes on what is not its own.
        unsafe {
            if self.is_small(&layout) && self.lock(|heap| heap.free(Domain::Mem, ptr::NonNull::new(block))).is_some() {
                return;
            }
            libc::free(block.cast());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    #[test]
    fn threads_share_it() {
        let threads: Vec<_> = (0..8u64)
            .map(|seed| {
                std::thread::spawn(move || {
                    let mut map = HashMap::new();
                    for number in 0..if cfg!(miri) { 50 } else { 20_000u64 } {
                        let text = format!("{seed}-{number}");
                        map.insert(text.clone(), text.repeat((number % 40) as usize));
                        if number % 3 == 0 {
                            map.remove(&format!("{seed}-{}", number / 2));
                        }
                    }
                    map
                })
            })
            .collect();
        for (seed, thread) in threads.into_iter().enumerate() {
            let map = thread.join().expect("no panic");
            assert!(map.iter().all(|(key, value)| key.starts_with(&seed.to_string()) && value.len() % key.len() == 0));
        }
    }

    #[test]
    fn alignments_are_kept() {
        use std::alloc::{Layout, alloc, dealloc, realloc};
        for align in (0..=13).map(|power| 1usize << power) {
            for size in [1, 8, 100, 512, 513, 5000, 100_000] {
                let layout = Layout::from_size_align(size, align).expect("a layout");
                // SAFETY: the layout is not empty; the block is used within it and freed with it.
                unsafe {
                    let block = alloc(layout);
                    assert!(!block.is_null() && block.addr().is_multiple_of(align));
                    block.write_bytes(3, size);
                    let grown = realloc(block, layout, size * 2);
                    assert!(grown.addr().is_multiple_of(align) && *grown.add(size - 1) == 3);
                    dealloc(grown, Layout::from_size_align(size * 2, align).expect("a layout"));
                }
            }
        }
    }
}
