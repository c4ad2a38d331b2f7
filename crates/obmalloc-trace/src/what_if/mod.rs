//! What if: a recording's calls of mem and obj, made on heaps of other sizes and other rules.
//!
//! The recording is replayed once, which verifies it; a [`CallsWriter`] looks on and writes each call to a file as a word, with a slot in place of an
//! address. [`Trials`] make them on a heap for each configuration, one after the other, a slice at a time. So the memory that this takes goes by what is
//! live. Only where blocks lie is asked for, so no block is written to but by the allocator itself.
//!
//! What is small goes by the trial's threshold; what is not comes from the C library, and counts nowhere here.

mod calls;
mod trial;
mod trials;
mod writer;

pub use calls::{Calls, MAGIC};
pub use trial::{Configuration, Row};
pub use trials::{Recorded, Trials, TrialsError, Tried};
pub use writer::{Apart, CallsWriter};
