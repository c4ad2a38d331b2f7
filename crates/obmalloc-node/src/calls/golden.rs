//! For the command line: judges this engine's collector by the answers that a real CPython left.

use obmalloc_proof::Golden;
use serde_json::json;

use crate::face::Realm;
use crate::failure::{Failure, code};
use crate::js::{Env, Outcome, Value};
use crate::shell::{Table, export};

pub(crate) fn exports(to: Table<'_>) -> Result<(), Failure> {
    export(to, c"checkGolden", check)
}

/// `(golden)`: takes the answers as JSON, runs the same programs, and gives how many there were, how many events, and what was
/// different, if anything.
fn check(_: &Realm, env: Env, [golden]: [Value; 1]) -> Outcome {
    let text = env.text(golden).unwrap_or_default();
    let golden: Golden =
        serde_json::from_str(&text).map_err(|error| Failure::new(code::INVALID_ARG_TYPE, format!("golden answers: {error}")))?;
    let found = match golden.check() {
        Ok(totals) => json!({ "programs": totals.programs, "events": totals.events, "divergence": null }),
        Err(different) => json!({ "programs": 0, "events": 0, "divergence": different }),
    };
    env.string(&found.to_string())
}
