//! Which requests fail under `_testcapi.set_nomemory`, in the CPython around and here.

use std::ffi::c_void;
use std::ptr;

use obmalloc::profile::Profile;
use obmalloc::{Allocator, CheckedHeap, Domain, Fault, HeapOptions};
use obmalloc_proof::Random;
use pyo3::ffi;

use crate::cpython;

/// A request: whether it resizes, how many things, and bytes of each.
struct Request {
    domain: Domain,
    verb: usize,
    count: usize,
    size: usize,
}

impl Request {
    fn new(random: &mut Random) -> Self {
        let size = if random.below(3) == 0 { 513 + random.below(5000) } else { random.below(512) };
        Self { domain: Domain::ALL[random.below(3)], verb: random.below(3), count: random.below(3), size }
    }

    /// Makes the request in the CPython around. `block` is a small block of the domain, before and afterwards.
    ///
    /// # Safety
    /// `allocator` is the domain's, and `block` came from it.
    unsafe fn succeeds_there(&self, allocator: Allocator, block: &mut *mut c_void) -> bool {
        // SAFETY: the caller's promise.
        let given = unsafe {
            match self.verb {
                0 => (allocator.malloc)(allocator.ctx, self.size),
                1 => (allocator.calloc)(allocator.ctx, self.count, self.size),
                _ => (allocator.realloc)(allocator.ctx, *block, self.size),
            }
        };
        if given.is_null() {
            return false;
        }
        if self.verb < 2 {
            // SAFETY: allocated just now.
            unsafe { (allocator.free)(allocator.ctx, given) };
        } else {
            *block = given;
        }
        true
    }

    /// As [`succeeds_there`](Self::succeeds_there), in a heap here.
    fn succeeds_here(&self, heap: &CheckedHeap, block: &mut usize) -> Result<bool, Fault> {
        let given = match self.verb {
            0 => heap.malloc(self.domain, self.size),
            1 => heap.calloc(self.domain, self.count, self.size),
            _ => {
                let moved = heap.realloc(self.domain, Some(*block), self.size)?;
                *block = moved.map_or(*block, |moved| moved.as_ptr().expose_provenance());
                return Ok(moved.is_some());
            }
        };
        if let Some(given) = given {
            heap.free(self.domain, given.as_ptr().expose_provenance())?;
        }
        Ok(given.is_some())
    }
}

/// `_testcapi.set_nomemory` and `remove_mem_hooks`. Debian's CPythons come without them.
struct TestCapi {
    set_nomemory: *mut ffi::PyObject,
    remove: *mut ffi::PyObject,
}

impl TestCapi {
    fn find() -> Option<Self> {
        // SAFETY: plain calls to CPython under the GIL. The objects stay as long as the process.
        unsafe {
            let module = ffi::PyImport_ImportModule(c"_testcapi".as_ptr());
            if module.is_null() {
                ffi::PyErr_Clear();
                return None;
            }
            let function = |name: &std::ffi::CStr| ffi::PyObject_GetAttrString(module, name.as_ptr());
            Some(Self { set_nomemory: function(c"set_nomemory"), remove: function(c"remove_mem_hooks") })
        }
    }

    fn set(&self, start: usize, stop: usize) -> Result<(), String> {
        // SAFETY: as above. Nothing is allocated between the end of the function and the next request.
        unsafe {
            let arguments = ffi::Py_BuildValue(c"(nn)".as_ptr(), start as isize, stop as isize);
            let result = ffi::PyObject_CallObject(self.set_nomemory, arguments);
            let done = if result.is_null() { Err("set_nomemory failed".to_owned()) } else { Ok(()) };
            ffi::Py_XDECREF(arguments);
            done
        }
    }

    fn remove(&self) {
        // SAFETY: as above; the function takes no arguments and allocates nothing.
        unsafe { ffi::PyObject_CallObject(self.remove, ptr::null_mut()) };
    }
}

/// Runs `count` short programs of requests from `seed` on. Returns how many requests were made and how many of them failed, or `None` if this
/// CPython has no `_testcapi`. The error names the first request that the two sides answer differently.
pub fn run(profile: &'static Profile, seed: u64, count: u64) -> Result<Option<(u64, u64)>, String> {
    let Some(capi) = TestCapi::find() else { return Ok(None) };
    let heap = CheckedHeap::new(HeapOptions::new(profile)).map_err(|error| error.to_string())?;
    let (mut requests, mut failures) = (0, 0);
    // SAFETY: a malloc of any size.
    let small_there = |allocator: Allocator| unsafe { (allocator.malloc)(allocator.ctx, 40) };
    let small_here = |domain| heap.malloc(domain, 40).map_or(0, |block| block.as_ptr().expose_provenance());
    let mut there = Domain::ALL.map(|domain| small_there(cpython::allocator(domain)));
    let mut here = Domain::ALL.map(small_here);
    for seed in seed..seed + count {
        let mut random = Random::new(seed);
        let (start, length) = (random.below(12), random.below(8));
        let stop = if length == 0 { 0 } else { start + length - 1 };
        let program: Vec<Request> = (0..20).map(|_| Request::new(&mut random)).collect();
        let mut answers = [[false; 20]; 2];
        capi.set(start, stop)?;
        let allocators = Domain::ALL.map(cpython::allocator);
        for (answer, request) in answers[0].iter_mut().zip(&program) {
            let domain = request.domain as usize;
            // SAFETY: the allocators that are in, and blocks that they know.
            *answer = unsafe { request.succeeds_there(allocators[domain], &mut there[domain]) };
        }
        capi.remove();
        heap.set_nomemory(start, Some(stop)).map_err(|error| error.to_string())?;
        for (answer, request) in answers[1].iter_mut().zip(&program) {
            let done = request.succeeds_here(&heap, &mut here[request.domain as usize]);
            *answer = done.map_err(|fault| fault.to_string())?;
        }
        heap.remove_nomemory();
        if answers[0] != answers[1] {
            return Err(format!("seed {seed}, set_nomemory({start}, {stop}): {:?} there, {:?} here", answers[0], answers[1]));
        }
        requests += 20;
        failures += answers[0].iter().filter(|&&answer| !answer).count() as u64;
        for domain in Domain::ALL {
            let index = domain as usize;
            let allocator = cpython::allocator(domain);
            // SAFETY: as above.
            unsafe { (allocator.free)(allocator.ctx, there[index]) };
            there[index] = small_there(allocator);
            heap.free(domain, here[index]).map_err(|fault| fault.to_string())?;
            here[index] = small_here(domain);
        }
    }
    Ok(Some((requests, failures)))
}
