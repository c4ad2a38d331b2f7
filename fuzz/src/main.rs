//! What libFuzzer calls: each input is one program (see [`program`]), for the release that its first byte names (see [`release`]).
//!
//! `fuzz/run` builds and runs it, under AddressSanitizer.

// libFuzzer has a `main` of its own, and so has the test harness.
#![cfg_attr(not(test), no_main)]

mod bytes;
mod guests;
mod hooks;
mod model;
mod program;
mod release;

use libfuzzer_sys::{Corpus, fuzz_target};
use obmalloc::profile::ALL;

fuzz_target!(|data: &[u8]| -> Corpus {
    let Some((&first, rest)) = data.split_first() else { return Corpus::Reject };
    let Some(profile) = release::named(first, &ALL) else { return Corpus::Reject };
    program::run(profile, rest);
    Corpus::Keep
});
