//! What a real CPython answered, kept, so that this engine can be judged without one. Leans on `judge`, `here` and `sizes`.

use std::collections::BTreeMap;

use obmalloc::profile::Profile;
use serde::{Deserialize, Serialize};

use crate::generate::generate;
use crate::here::Here;
use crate::judge::{Side, Totals, digest};
use crate::sizes::{Size, requested_here};

/// The answers of one CPython.
#[derive(Serialize, Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Golden {
    /// E.g. `3.13.0`.
    pub version: String,
    /// `gc.get_threshold()` at the start.
    pub thresholds: [i32; 3],
    /// Bytes that `PyType_GenericAlloc` requests, and how many of them lie before the object.
    pub sizes: BTreeMap<String, Size>,
    /// The first digest is about the programs of the seeds from here on.
    pub first_seed: u64,
    /// Programs that a digest is about.
    pub programs: u64,
    /// Digests of the logs of so many programs each.
    pub digests: Vec<String>,
    /// Whole logs, by seed.
    pub logs: BTreeMap<u64, Vec<String>>,
}

impl Golden {
    /// Runs programs in a CPython.
    pub fn record(version: &str, thresholds: [i32; 3], sizes: BTreeMap<String, Size>, plan: &Plan, side: Side<'_>) -> Self {
        let &Plan { first_seed, programs, digests, ref logs } = plan;
        let digests = (0..digests).map(|group| text(digest(first_seed + group * programs, programs, side).0)).collect();
        let logs = logs.iter().map(|&seed| (seed, side(&generate(seed)).lines().map(str::to_owned).collect())).collect();
        Self { version: version.to_owned(), thresholds, sizes, first_seed, programs, digests, logs }
    }

    /// Runs the same programs here.
    ///
    /// # Errors
    /// What is different.
    pub fn check(&self) -> Result<Totals, String> {
        let profile = Profile::of_version(&self.version).ok_or_else(|| format!("no release for {}", self.version))?;
        let mut here = Here::new(profile);
        if here.thresholds() != self.thresholds {
            return Err(format!("thresholds: {:?} there, {:?} here", self.thresholds, here.thresholds()));
        }
        let sizes = requested_here(profile);
        if sizes != self.sizes {
            return Err(format!("requested sizes: {:?} there, {sizes:?} here", self.sizes));
        }
        for (seed, there) in &self.logs {
            let here = here.run(&generate(*seed));
            let differing = there.iter().map(String::as_str).zip(here.lines()).position(|(there, here)| there != here);
            if differing.is_some() || there.len() != here.lines().count() {
                let line = differing.unwrap_or(there.len().min(here.lines().count()));
                let (there, here) = (there.get(line), here.lines().nth(line));
                return Err(format!("seed {seed}, line {}: {there:?} there, {here:?} here", line + 1));
            }
        }
        let mut totals = Totals::default();
        for (group, there) in self.digests.iter().enumerate() {
            let first = self.first_seed + group as u64 * self.programs;
            let (here, events) = digest(first, self.programs, &mut |program| here.run(program));
            if text(here) != *there {
                return Err(format!("one of the {} programs from seed {first} on has another log here", self.programs));
            }
            totals.programs += self.programs;
            totals.events += events;
        }
        Ok(totals)
    }
}

/// Which programs are recorded.
#[derive(Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    first_seed: u64,
    programs: u64,
    digests: u64,
    logs: Vec<u64>,
}

fn text(digest: u64) -> String {
    format!("{digest:016x}")
}
