//! For the command line: compares this engine's collector with the recorded answers of a real CPython.

#![forbid(unsafe_code)]

use obmalloc_proof::Golden;

use crate::calls::json;
use crate::face::Realm;
use crate::failure::Failure;
use crate::js::{Env, Outcome, Value};
use crate::shell::{Table, export};

pub(crate) fn exports(to: Table<'_>) -> Result<(), Failure> {
    export(to, c"checkGolden", check)
}

/// `(golden)`: takes the answers as JSON and runs the same programs. Returns the numbers of programs and events, and the first difference, if there
/// is one.
fn check(_: &Realm, env: Env, [golden]: [Value; 1]) -> Outcome {
    let golden: Golden = json::parse(env, golden, "golden answers")?;
    let found = match golden.check() {
        Ok(totals) => serde_json::json!({ "programs": totals.programs, "events": totals.events, "divergence": null }),
        Err(different) => serde_json::json!({ "programs": 0, "events": 0, "divergence": different }),
    };
    env.string(&found.to_string())
}
