//! Room `calls`: the functions that JavaScript can call, a file for each noun. Leans on `core` and `hooks`.

pub(crate) mod allocators;
mod batch;
mod collector;
mod domain;
pub(crate) mod heap;
mod json;
mod look;
mod objects;
mod table;
#[cfg(feature = "traces")]
pub(crate) mod traces;

use batch::run;
use obmalloc::Domain;

use crate::failure::Failure;
use crate::shell::Table;
use table::methods;

/// Adds all functions of heaps.
pub(crate) fn methods(to: Table<'_>) -> Result<(), Failure> {
    domain::methods::<{ Domain::Raw as u8 }>(to, c"raw")?;
    domain::methods::<{ Domain::Mem as u8 }>(to, c"mem")?;
    domain::methods::<{ Domain::Obj as u8 }>(to, c"obj")?;
    allocators::methods(to)?;
    objects::methods(to)?;
    collector::methods(to)?;
    heap::methods(to)?;
    look::methods(to)?;
    methods! { to, c"run"(ops: value, addresses: value) -> "void" = run; }
}
