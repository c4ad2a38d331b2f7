//! A trace's events for the command line: a listing is a number here, and events are lines of JSON.

#![forbid(unsafe_code)]

use obmalloc_trace::listing::{Listing, Wanted};
use serde::Deserialize;

use super::numbered::Numbered;
use super::replay::{Segment, UNREADABLE_TRACE, read};
use crate::calls::json;
use crate::face::Realm;
use crate::failure::{Failure, code};
use crate::js::{Env, Outcome, Value};
use crate::shell::{Table, export};

thread_local! {
    static LISTINGS: Numbered<Listing> = Numbered::new("an open listing");
}

#[derive(Deserialize)]
struct Options {
    segments: Vec<Segment>,
    /// Most frames of a stack.
    frames: usize,
    from: Option<u64>,
    to: Option<u64>,
    size: Option<u64>,
    /// In hexadecimal, because a number of JavaScript cannot hold every address.
    address: Option<String>,
    site: Option<(String, u32)>,
}

pub(crate) fn exports(to: Table<'_>) -> Result<(), Failure> {
    export(to, c"openEvents", open)?;
    export(to, c"readEvents", next)?;
    export(to, c"closeEvents", close)
}

/// `(options)`: opens the traces and gives the listing's number.
fn open(_: &Realm, env: Env, [options]: [Value; 1]) -> Outcome {
    let options: Options = json::parse(env, options, "options")?;
    let wrong = |error| Failure::new(code::INVALID_ARG_TYPE, format!("options: {error}"));
    let address = options.address.map(|digits| u64::from_str_radix(&digits, 16).map_err(wrong)).transpose()?;
    let (from, to, size, site) = (options.from.unwrap_or(0), options.to, options.size, options.site);
    let readers = options.segments.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let listing = Listing::new(readers, Wanted { from, to, size, address, site }, options.frames);
    Numbered::open(&LISTINGS, env, listing)
}

/// `(number, count)`: looks at no more than `count` events. Returns the wanted ones, a line each; null if there are no more.
fn next(_: &Realm, env: Env, [number, count]: [Value; 2]) -> Outcome {
    let count = env.double(count).unwrap_or(0.0) as usize;
    let (found, more) = Numbered::with(&LISTINGS, env, number, |listing| {
        listing.step(count).map_err(|error| Failure::new(UNREADABLE_TRACE, error.to_string()))
    })?;
    if found.is_empty() && !more {
        return env.null();
    }
    let mut lines = String::new();
    for listed in &found {
        lines += &json::text(listed)?;
        lines.push('\n');
    }
    env.string(&lines)
}

/// `(number)`: gives the listing's memory back.
fn close(_: &Realm, env: Env, [number]: [Value; 1]) -> Outcome {
    Numbered::close(&LISTINGS, env, number)
}
