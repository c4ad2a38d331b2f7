//! Where the collector of this CPython keeps its counts: read to tell `gc.get_count()` without allocating a tuple, written to take the
//! interpreter's own allocations off.

use super::ffi::{self, Pointer};

/// `struct gc_generation`. In 3.13.18 the state lies at a multiple of 4.
#[derive(Clone, Copy)]
#[repr(C)]
struct Generation {
    head: [u32; 4],
    threshold: i32,
    count: i32,
}

/// What follows the generations in the incremental collector of 3.14.0 to 3.14.4: young, two old ones and the permanent one.
#[repr(C)]
struct Incremental {
    generations: [Generation; 4],
    stats: [[usize; 3]; 3],
    collecting: i32,
    garbage: Pointer,
    callbacks: Pointer,
    heap_size: isize,
    work_to_do: isize,
    visited_space: i32,
}

/// The collector's state.
pub struct State {
    generations: *mut Generation,
    /// Whether objects are counted when they are tracked, not when they are allocated. The incremental collector does so, and it also keeps the
    /// number of all objects.
    pub counts_tracked: bool,
    /// The number of all objects before any program ran.
    heap_size: isize,
}

/// Bytes from the start of the interpreter's state in which the collector's is looked for.
const SEARCHED: usize = 64 << 10;

impl State {
    /// Finds the state: `set_threshold` puts thresholds there that are looked for.
    pub fn locate(set_threshold: impl Fn([i32; 3])) -> Self {
        const MARKS: [i32; 3] = [0x1234_5671, 0x2345_6782, 0x3456_7893];
        set_threshold(MARKS);
        let interpreter = match ffi::symbol(c"PyInterpreterState_Get") {
            // SAFETY: it has this type in 3.9 and later; the GIL is held.
            Some(get) => unsafe { std::mem::transmute::<Pointer, extern "C" fn() -> Pointer>(get)() },
            // In 3.8 the state is the runtime's.
            None => ffi::symbol(c"_PyRuntime").expect("CPython has _PyRuntime"),
        };
        let mut places = (0..SEARCHED).step_by(4).map(|offset| interpreter.wrapping_byte_add(offset).cast::<Generation>());
        let found = places.find(|generations| {
            // The incremental collector ignores the third threshold.
            // SAFETY: what is looked for lies in the state, and the search ends there.
            unsafe { (**generations).threshold == MARKS[0] && (*generations.add(1)).threshold == MARKS[1] }
        });
        Self { generations: found.expect("the collector's state"), counts_tracked: false, heap_size: 0 }
    }

    /// `generations[0].count`, or `young.count`.
    pub fn count(&self) -> i32 {
        // SAFETY: `locate` found it, and it stays there.
        unsafe { (*self.generations).count }
    }

    /// The object that was tracked last, if it is in the youngest generation; null if that is empty.
    pub fn newest(&self) -> Pointer {
        // SAFETY: a list's head leads to the last in it, which is in front of an object, or to the head itself.
        unsafe {
            let last = self.generations.cast::<Pointer>().add(1).read_unaligned();
            if last == self.generations.cast() { std::ptr::null_mut() } else { last.byte_add(16) }
        }
    }

    fn set_count(&self, count: i32) {
        // SAFETY: as above.
        unsafe { (*self.generations).count = count };
    }

    /// Until the result is dropped, allocations neither count nor start a collection.
    pub fn quiet(&self) -> Quiet {
        let quiet = Quiet { generations: self.generations, count: self.count() };
        self.set_count(i32::MIN / 2);
        quiet
    }

    /// Takes one allocation off the count.
    pub fn uncount(&self) {
        if !self.counts_tracked {
            self.set_count(self.count() - 1);
        }
    }

    /// Checks that the incremental collector's state has the layout that is declared here.
    pub fn check_incremental(&mut self, garbage: Pointer, callbacks: Pointer) {
        let state = self.incremental();
        assert_eq!((state.garbage, state.callbacks), (garbage, callbacks), "the incremental collector's state");
        self.heap_size = state.heap_size;
    }

    #[allow(clippy::mut_from_ref, reason = "the state is CPython's, and no two of these live at once")]
    fn incremental(&self) -> &mut Incremental {
        // SAFETY: `locate` found it; nothing else refers to it while this is used.
        unsafe { &mut *self.generations.cast() }
    }

    /// Called after a full collection. From now on only the program's objects count. Returns false if one more full collection is needed: the
    /// incremental collector's two old spaces change places with each.
    pub fn begin(&self) -> bool {
        if !self.counts_tracked {
            return true;
        }
        self.incremental().heap_size = 0;
        self.incremental().visited_space == 1
    }

    /// The interpreter's objects count again.
    pub fn end(&self) {
        if self.counts_tracked {
            self.incremental().heap_size += self.heap_size;
        }
    }
}

/// See [`State::quiet`].
pub struct Quiet {
    generations: *mut Generation,
    count: i32,
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // SAFETY: as in `State`.
        unsafe { (*self.generations).count = self.count };
    }
}
