//! The benchmark's loops, with the CPython around on the other side.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use obmalloc::profile::Profile;
use obmalloc::{Domain, Heap};
use obmalloc_loops::{Loop, Program, Row, Side};

use crate::cpython;

fn profile(release: &str) -> Result<&'static Profile, String> {
    Profile::named(release).ok_or_else(|| format!("unknown release {release:?}"))
}

fn cpython() -> Side {
    Side { mem: cpython::allocator(Domain::Mem), obj: cpython::allocator(Domain::Obj) }
}

/// Runs the loops (if `loops`) and the traces, each on this CPython and on a fresh heap of its release in turn.
pub fn run(release: &str, rounds: usize, traces: &[PathBuf], loops: bool) -> Result<Vec<(String, Row)>, String> {
    let profile = profile(release)?;
    let mut all = if loops { Loop::all() } else { Vec::new() };
    for trace in traces {
        all.push(Loop::of_trace(trace, profile)?);
    }
    let timed = |body: Loop| {
        let heap = Heap::new(profile).map_err(|error| error.to_string())?;
        Ok((body.name().to_owned(), body.side_by_side(rounds, &cpython(), &Side::of(&heap))))
    };
    all.into_iter().map(timed).collect()
}

/// Runs a trace in CPython or here, and touches every byte. Returns by how many bytes the process's peak of resident memory rose, and how many
/// bytes of arenas a fresh heap here holds at most.
pub fn peak(release: &str, trace: &Path, here: bool) -> Result<(u64, u64), String> {
    let profile = profile(release)?;
    let program = Program::load(trace, profile)?;
    let fresh = || Heap::new(profile).map_err(|error| error.to_string());
    let arenas = {
        let heap = fresh()?;
        program.run(&Side::of(&heap));
        heap.stats().arenas_highwater * profile.geometry().arena_size
    };
    let heap = fresh()?;
    let rise = obmalloc_loops::peak(&program, &if here { Side::of(&heap) } else { cpython() })?;
    Ok((rise, arenas as u64))
}
