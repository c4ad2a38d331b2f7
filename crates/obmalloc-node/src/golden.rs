//! For the command line: judges this engine's collector by the answers that a real CPython left.

use obmalloc_proof::Golden;
use serde_json::json;

use crate::failure::{Failure, code};
use crate::js::{Env, Outcome, Value};
use crate::shell::export;

pub(crate) fn exports(env: Env, exports: Value) {
    // As for the module's other functions: what cannot be exported is missing, and the face says so.
    let _ = export(env, exports, c"checkGolden", check);
}

/// `(makeError, golden)`: takes the answers as JSON, runs the same programs, and gives how many there were, how many events, and what was
/// different, if anything.
fn check(env: Env, [_, golden]: [Value; 2]) -> Outcome {
    let text = env.text(golden).unwrap_or_default();
    let golden: Golden =
        serde_json::from_str(&text).map_err(|error| Failure::new(code::INVALID_ARG_TYPE, format!("golden answers: {error}")))?;
    let found = match golden.check() {
        Ok(totals) => json!({ "programs": totals.programs, "events": totals.events, "divergence": null }),
        Err(different) => json!({ "programs": 0, "events": 0, "divergence": different }),
    };
    env.string(&found.to_string())
}
