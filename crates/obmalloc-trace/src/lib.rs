//! Traces of real CPython runs: the format, the replay through a heap of the same release, and the analysis.

pub mod analysis;
pub mod clock;
pub mod format;
pub mod listing;
pub mod moments;
pub mod program;
pub mod replay;
pub mod stacks;
pub mod types;
pub mod watch;
pub mod what_if;
