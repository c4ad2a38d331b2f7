//! Comparing two sides, and shrinking a program on which they differ. Leans on `program`, `generate` and `found`.

#![forbid(unsafe_code)]

use std::fmt;

use crate::found::found;
use crate::generate::generate;
use crate::program::{Op, Program};

/// Runs a program on one side, and returns its log.
pub type Side<'a> = &'a mut dyn FnMut(&Program) -> String;

/// How much was compared and found equal.
#[derive(Clone, Copy, Default, Debug)]
pub struct Totals {
    /// Programs run.
    pub programs: u64,
    /// Lines that were equal.
    pub events: u64,
}

/// The shortest program found on which the two sides differ.
#[derive(Debug)]
pub struct Divergence {
    /// The name of the program that it was shrunk from: its seed, or what it once found.
    pub from: String,
    /// The program.
    pub program: Program,
    /// Its log on the first side.
    pub there: String,
    /// Its log on the second side.
    pub here: String,
}

/// Runs programs on both sides: those that once found a difference, and those of `count` seeds. `afresh` runs a program on this side in a new
/// heap, and is used to shrink a program.
///
/// # Errors
/// The first divergence. It is shrunk if it also shows in a new heap, without the programs before it.
pub fn compare(
    first_seed: u64,
    count: u64,
    there: Side<'_>,
    here: Side<'_>,
    afresh: Side<'_>,
) -> Result<Totals, Box<Divergence>> {
    let mut totals = Totals::default();
    let found = found().into_iter().map(|(name, program)| (name.to_owned(), program));
    let random = (first_seed..first_seed + count).map(|seed| (format!("seed {seed}"), generate(seed)));
    for (name, program) in found.chain(random) {
        let (log, answer) = (there(&program), here(&program));
        if log != answer {
            return Err(Box::new(if afresh(&program) == log {
                Divergence { from: format!("{name}, after the programs before it"), program, there: log, here: answer }
            } else {
                shrink(name, program, there, afresh)
            }));
        }
        totals.programs += 1;
        totals.events += log.lines().count() as u64;
    }
    Ok(totals)
}

fn shrink(from: String, mut program: Program, there: Side<'_>, here: Side<'_>) -> Divergence {
    let differs = |program: &Program, there: Side<'_>, here: Side<'_>| there(program) != here(program);
    loop {
        let before = program.size();
        if program.callbacks.is_some() {
            let without = Program { callbacks: None, ..program.clone() };
            if differs(&without, there, here) {
                program = without;
            }
        }
        for list in 0..=program.scripts.len() {
            let mut length = list_of(&mut program, list).len();
            while length > 0 {
                let mut start = 0;
                while start < list_of(&mut program, list).len() {
                    let mut without = program.clone();
                    let ops = list_of(&mut without, list);
                    ops.drain(start..(start + length).min(ops.len()));
                    if differs(&without, there, here) {
                        program = without;
                    } else {
                        start += length;
                    }
                }
                length /= 2;
            }
        }
        if program.size() == before {
            let (there, here) = (there(&program), here(&program));
            return Divergence { from, program, there, here };
        }
    }
}

fn list_of(program: &mut Program, list: usize) -> &mut Vec<Op> {
    match list {
        0 => &mut program.ops,
        _ => &mut program.scripts[list - 1],
    }
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, shrunk to {} steps:\n{}", self.from, self.program.size(), self.program)?;
        writeln!(f, "the logs (< there only, > here only):")?;
        let (there, here): (Vec<_>, Vec<_>) = (self.there.lines().collect(), self.here.lines().collect());
        // Longest common subsequences of what is left of both.
        let mut common = vec![vec![0u32; here.len() + 1]; there.len() + 1];
        for (i, line) in there.iter().enumerate().rev() {
            for (j, other) in here.iter().enumerate().rev() {
                common[i][j] = if line == other { common[i + 1][j + 1] + 1 } else { common[i + 1][j].max(common[i][j + 1]) };
            }
        }
        let (mut i, mut j) = (0, 0);
        while i < there.len() || j < here.len() {
            if i < there.len() && j < here.len() && there[i] == here[j] {
                writeln!(f, "  {}", there[i])?;
                (i, j) = (i + 1, j + 1);
            } else if j == here.len() || i < there.len() && common[i + 1][j] >= common[i][j + 1] {
                writeln!(f, "< {}", there[i])?;
                i += 1;
            } else {
                writeln!(f, "> {}", here[j])?;
                j += 1;
            }
        }
        Ok(())
    }
}

/// FNV-1a of 64 bits over the logs of the programs of `count` seeds, and how many lines these have.
pub fn digest(first_seed: u64, count: u64, side: Side<'_>) -> (u64, u64) {
    let (mut hash, mut events) = (0xcbf2_9ce4_8422_2325_u64, 0);
    for seed in first_seed..first_seed + count {
        for byte in side(&generate(seed)).bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
            events += u64::from(byte == b'\n');
        }
    }
    (hash, events)
}
