//! What if: makes a recording's calls of mem and obj on heaps with other sizes and other rules.
//!
//! The recording is replayed once, which verifies it; a [`CallsWriter`] looks on and writes each call to a file as a word, with a slot in place of an
//! address. [`Trials`] make them on a heap for each configuration, one after the other, a slice at a time. So this takes memory only for the
//! blocks that are live. Only addresses matter, so no block is written to except by the allocator itself.
//!
//! The trial's threshold decides which requests are small. Larger blocks come from the C library, and are not counted.

mod calls;
mod trial;
mod trials;
mod writer;

pub use calls::{Calls, MAGIC};
pub use trial::{Configuration, Row};
pub use trials::{Recorded, Trials, TrialsError, Tried};
pub use writer::{Apart, CallsWriter};
