//! Arguments from the face, and results to it, as JSON.

#![forbid(unsafe_code)]

use serde::Serialize;

use crate::failure::{Failure, code};
use crate::js::{Env, Outcome};
#[cfg(feature = "traces")]
pub(super) use arguments::{parse, profile};

pub(super) fn text(value: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(|error| Failure::new(code::INTERNAL, error.to_string()))
}

/// Returns a result.
pub(super) fn give(env: Env, value: &impl Serialize) -> Outcome {
    env.string(&text(value)?)
}

#[cfg(feature = "traces")]
mod arguments {
    use obmalloc::profile::Profile;
    use serde::de::DeserializeOwned;

    use super::{Env, Failure, code};
    use crate::js::Value;

    /// Parses an argument. Errors name it.
    pub fn parse<T: DeserializeOwned>(env: Env, value: Value, name: &str) -> Result<T, Failure> {
        let text = env.text(value).unwrap_or_default();
        serde_json::from_str(&text).map_err(|error| Failure::new(code::INVALID_ARG_TYPE, format!("{name}: {error}")))
    }

    /// The profile of a release's name.
    pub fn profile(release: &str) -> Result<&'static Profile, Failure> {
        let unknown = || Failure::new(code::OUT_OF_RANGE, format!("expected a release, but got {release:?}"));
        Profile::named(release).ok_or_else(unknown)
    }
}
