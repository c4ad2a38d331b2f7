//! Recorded answers of real CPythons, so that this engine can be judged without one. Leans on `judge`, `here` and `sizes`.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use obmalloc::profile::Profile;
use serde::{Deserialize, Serialize};

use crate::found::found;
use crate::generate::generate;
use crate::here::Here;
use crate::judge::{Side, Totals, digest};
use crate::program::Program;
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
    /// Digests of logs, each of `programs` programs.
    pub digests: Vec<String>,
    /// Whole logs: of the programs of some seeds, and of those that once found a difference.
    pub logs: BTreeMap<String, Vec<String>>,
}

impl Golden {
    /// Runs programs in a CPython.
    pub fn record(version: &str, thresholds: [i32; 3], sizes: BTreeMap<String, Size>, plan: &Plan, side: Side<'_>) -> Self {
        let &Plan { first_seed, programs, digests, ref logs } = plan;
        let digests = (0..digests).map(|group| text(digest(first_seed + group * programs, programs, side).0)).collect();
        let logs = named(logs.iter().copied()).into_iter().map(|(name, program)| (name, lines(&side(&program)))).collect();
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
        let programs = named(self.logs.keys().filter_map(|name| name.strip_prefix(SEED)?.parse().ok()));
        if !programs.keys().eq(self.logs.keys()) {
            return Err("there are logs of other programs than there are here: record them anew".to_owned());
        }
        for (name, program) in programs {
            let (there, here) = (&self.logs[&name], lines(&here.run(&program)));
            if *there != here {
                let equal = there.iter().zip(&here).take_while(|(there, here)| there == here).count();
                return Err(format!("{name}: line {}: {:?} there, {:?} here", equal + 1, there.get(equal), here.get(equal)));
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

/// The name of a seed's program begins with this.
const SEED: &str = "seed ";

/// The programs of some seeds and those that once found a difference, by name.
fn named(seeds: impl Iterator<Item = u64>) -> BTreeMap<String, Program> {
    let found = found().into_iter().map(|(name, program)| (name.to_owned(), program));
    seeds.map(|seed| (format!("{SEED}{seed}"), generate(seed))).chain(found).collect()
}

fn lines(log: &str) -> Vec<String> {
    log.lines().map(str::to_owned).collect()
}

fn text(digest: u64) -> String {
    format!("{digest:016x}")
}
