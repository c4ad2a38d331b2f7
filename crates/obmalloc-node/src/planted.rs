//! Planted mistakes for the tests: a sanitizer that works must find them. Only with the feature `planted`, which no package is built with.

use obmalloc::{Domain, Heap, profile};

use crate::face::Realm;
use crate::failure::Failure;
use crate::js::{Env, Outcome, Value};
use crate::shell::{Table, export};

/// Adds `planted(mistake)` to the exports: 0 reads a block after it has been freed, 1 forgets one.
pub(crate) fn exports(to: Table<'_>) -> Result<(), Failure> {
    export(to, c"planted", planted)
}

fn planted(_: &Realm, env: Env, [mistake]: [Value; 1]) -> Outcome {
    let heap = Heap::new(&profile::V3_13).expect("a heap");
    let block = heap.malloc(Domain::Raw, 100);
    let mut read = 0;
    if env.double(mistake) == Some(0.0) {
        // SAFETY: this is the mistake.
        unsafe {
            heap.free(Domain::Raw, block);
            read = block.expect("memory").as_ptr().read_volatile();
        }
    }
    env.number(f64::from(read))
}
