//! What if: a recording's calls of mem and obj, made on heaps of other sizes and other rules.
//!
//! The recording is replayed once, which verifies it and gives the calls as they were ([`Calls`]: a word each, with slots in place of
//! addresses). A [`Trial`] makes them on a heap of its own, a slice at a time. Only where blocks lie is asked for, so no block is written to
//! but by the allocator itself.
//!
//! What is small goes by the trial's threshold; what is not comes from the C library, and counts nowhere here.

mod calls;
mod trial;

pub use calls::{Calls, CallsCollector, MAGIC};
pub use trial::{Configuration, Row, Trial};
