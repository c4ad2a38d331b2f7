//! Random programs on the collector of the CPython around, and their logs. Leans on `obmalloc-proof`.

pub(crate) mod ffi;
mod python;
mod sizes;
mod state;
mod text;
mod types;

use std::panic::{AssertUnwindSafe, catch_unwind};

use obmalloc::profile::Profile;
use obmalloc_proof::{Golden, Here, Plan};
pub use python::Python;
use serde_json::{Value, json};

/// The program of a seed, and its log.
pub fn log(seed: u64) -> Value {
    let program = obmalloc_proof::generate(seed);
    json!({ "program": program.to_string(), "log": Python::new().run(&program) })
}

/// What this CPython answers.
pub fn golden(version: &str, plan: &Plan) -> Golden {
    let sizes = sizes::requested();
    let python = Python::new();
    Golden::record(version, python.default_thresholds(), sizes, plan, &mut |program| python.run(program))
}

/// Runs the programs of `count` seeds here and on a heap of the release, and compares; so too the sizes that are requested for objects,
/// and the thresholds.
pub fn compare(version: &str, first_seed: u64, count: u64) -> Result<Value, String> {
    let profile = Profile::of_version(version).ok_or_else(|| format!("no release for {version}"))?;
    let (there, here) = (sizes::requested(), obmalloc_proof::requested_here(profile));
    if there != here {
        return Err(format!("requested sizes: {there:?} there, {here:?} here"));
    }
    let python = Python::new();
    let defaults = Here::new(profile).thresholds();
    if python.default_thresholds() != defaults {
        return Err(format!("thresholds: {:?} there, {defaults:?} here", python.default_thresholds()));
    }
    let mut here = Here::new(profile);
    let mut run_here = |program: &_| {
        caught(|| here.run(program)).unwrap_or_else(|said| {
            here = Here::new(profile);
            said
        })
    };
    let mut afresh = |program: &_| caught(|| Here::new(profile).run(program)).unwrap_or_else(|said| said);
    let compared = obmalloc_proof::compare(first_seed, count, &mut |program| python.run(program), &mut run_here, &mut afresh);
    Ok(match compared {
        Ok(totals) => json!({ "programs": totals.programs, "events": totals.events, "divergence": null }),
        Err(divergence) => json!({ "programs": 0, "events": 0, "divergence": divergence.to_string() }),
    })
}

/// The message of a panic. It stands in for the log, and no log equals it.
fn caught(run: impl FnOnce() -> String) -> Result<String, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let said = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|said| (*said).into()));
        format!("panic: {}", said.unwrap_or_default())
    })
}
