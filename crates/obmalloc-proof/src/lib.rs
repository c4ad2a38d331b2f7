//! Random programs for the cyclic collector: allocate, link, drop, collect, freeze, weak references, finalizers that resurrect. A program
//! runs over any [`World`], here or inside a real CPython, and leaves a log: a line for every event, with numbers for objects. Leans on
//! `obmalloc`.

mod found;
mod generate;
mod golden;
mod here;
mod judge;
mod program;
mod random;
mod session;
mod sizes;

pub use found::found;
pub use generate::generate;
pub use golden::{Golden, Plan};
pub use here::Here;
pub use judge::{Divergence, Side, Totals, compare};
pub use program::{KINDS, Kind, Op, Place, Program, ROOTS, SCRIPTS, Slot, WEAK};
pub use random::Random;
pub use session::{Session, World};
pub use sizes::{CLASSES, Class, Size, requested_here};
