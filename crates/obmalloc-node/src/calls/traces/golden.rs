//! For the command line: judges this engine's collector by the answers that a real CPython left.

use obmalloc_proof::Golden;

use crate::calls::json;
use crate::face::Realm;
use crate::failure::Failure;
use crate::js::{Env, Outcome, Value};
use crate::shell::{Table, export};

pub(crate) fn exports(to: Table<'_>) -> Result<(), Failure> {
    export(to, c"checkGolden", check)
}

/// `(golden)`: takes the answers as JSON, runs the same programs, and gives how many there were, how many events, and what was
/// different, if anything.
fn check(_: &Realm, env: Env, [golden]: [Value; 1]) -> Outcome {
    let golden: Golden = json::parse(env, golden, "golden answers")?;
    let found = match golden.check() {
        Ok(totals) => serde_json::json!({ "programs": totals.programs, "events": totals.events, "divergence": null }),
        Err(different) => serde_json::json!({ "programs": 0, "events": 0, "divergence": different }),
    };
    env.string(&found.to_string())
}
