//! What libFuzzer calls: each input is one program (see [`program`]).
//!
//! `fuzz/run` builds and runs it, under AddressSanitizer.

#![no_main]

mod bytes;
mod guests;
mod hooks;
mod model;
mod program;

libfuzzer_sys::fuzz_target!(|data: &[u8]| program::run(data));
