//! Long random sequences of calls on the mem and obj domains of the CPython around.

use std::ffi::c_void;
use std::ptr;

use obmalloc_proof::Random;

use crate::cpython;

/// Most blocks live at one time: some fifty to two hundred arenas.
const SLOTS: usize = 200_000;
/// Calls after which the sequence changes its mood.
const MOOD: u64 = 50_000;

/// How many blocks the sequence wants at present, and how large ones.
struct Mood {
    /// Slots in play.
    slots: usize,
    /// Of 16 calls that do not reallocate, how many allocate.
    allocating: usize,
    /// Only sizes of this class, if any.
    class: Option<usize>,
}

impl Mood {
    fn new(random: &mut Random) -> Self {
        let slots = [100, 5_000, 50_000, SLOTS][random.below(4)];
        let class = (random.below(4) == 0).then(|| random.below(32));
        Self { slots, allocating: [4, 8, 14][random.below(3)], class }
    }

    fn size(&self, random: &mut Random) -> usize {
        match (self.class, random.below(64)) {
            (_, 0) => 0,
            (_, 1) => 513 + random.below(3000),
            (Some(class), _) => class * 16 + 1 + random.below(16),
            (None, 2..=30) => 1 + random.below(128),
            (None, _) => 1 + random.below(512),
        }
    }
}

/// Makes `count` calls from `seed`, then frees what is left.
pub fn run(seed: u64, count: u64) -> u64 {
    let mut random = Random::new(seed);
    let mut blocks: Vec<(*mut c_void, bool)> = vec![(ptr::null_mut(), false); SLOTS];
    let mut mood = Mood::new(&mut random);
    let mut calls = 0;
    let mut changed = 0;
    while calls < count {
        if calls == changed {
            mood = Mood::new(&mut random);
            changed += MOOD;
        }
        let (address, obj) = &mut blocks[random.below(mood.slots)];
        let choice = random.below(20);
        if choice >= 16 && !address.is_null() {
            let size = mood.size(&mut random);
            // SAFETY: a slot holds NULL or a live block, and the domain that it came from.
            let moved =
                unsafe { if *obj { cpython::PyObject_Realloc(*address, size) } else { cpython::PyMem_Realloc(*address, size) } };
            assert!(!moved.is_null(), "no memory for {size} bytes");
            *address = moved;
        } else if choice < mood.allocating && address.is_null() {
            *obj = random.below(2) == 0;
            let size = mood.size(&mut random);
            *address = allocate(*obj, random.below(8) == 0, size);
            assert!(!address.is_null(), "no memory for {size} bytes");
        } else if address.is_null() && choice != 15 {
            continue;
        } else {
            // SAFETY: as above.
            unsafe { free(*address, *obj) };
            *address = ptr::null_mut();
        }
        calls += 1;
    }
    for (address, obj) in blocks {
        // SAFETY: as above.
        unsafe { free(address, obj) };
    }
    calls
}

fn allocate(obj: bool, zeroed: bool, size: usize) -> *mut c_void {
    // SAFETY: the GIL is held.
    unsafe {
        match (obj, zeroed) {
            (true, true) => cpython::PyObject_Calloc(1, size),
            (false, true) => cpython::PyMem_Calloc(size, 1),
            (true, false) => cpython::PyObject_Malloc(size),
            (false, false) => cpython::PyMem_Malloc(size),
        }
    }
}

unsafe fn free(address: *mut c_void, obj: bool) {
    // SAFETY: the caller gives NULL or a live block and its domain.
    unsafe { if obj { cpython::PyObject_Free(address) } else { cpython::PyMem_Free(address) } }
}
