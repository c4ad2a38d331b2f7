//! Random programs for the cyclic collector: allocate, link, drop, collect, freeze, weak references, finalizers that resurrect. A program
//! runs over any [`World`], here or inside a real CPython, and leaves a log: a line for every event, with numbers for objects. Leans on
//! `obmalloc`.

mod generate;
mod here;
mod judge;
mod program;
mod random;
mod session;

pub use generate::generate;
pub use here::Here;
pub use judge::{Divergence, Side, Totals, compare, digest};
pub use program::{KINDS, Kind, Op, Place, Program, ROOTS, SCRIPTS, Slot, WEAK};
pub use random::Random;
pub use session::{Session, World};
