//! A trace's moments for the command line: a reading that finds them is a number here.

use obmalloc_trace::moments::{Moment, Outlining};

use super::numbered::Numbered;
use super::replay::{Segment, UNREADABLE_TRACE, read};
use crate::calls::json;
use crate::face::Realm;
use crate::failure::{Failure, code};
use crate::js::{Env, Outcome, Value};
use crate::shell::{Table, export};

thread_local! {
    static OUTLININGS: Numbered<Outlining<'static>> = Numbered::new("an open outline");
}

pub(crate) fn exports(to: Table<'_>) -> Result<(), Failure> {
    export(to, c"openOutline", open)?;
    export(to, c"stepOutline", step)?;
    export(to, c"progressOutline", progress)?;
    export(to, c"findMoment", find)?;
    export(to, c"closeOutline", close)
}

/// `(segments)`: opens the traces and gives the number of a reading that finds moments.
fn open(_: &Realm, env: Env, [segments]: [Value; 1]) -> Outcome {
    let segments: Vec<Segment> = json::parse(env, segments, "segments")?;
    let readers = segments.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    Numbered::open(&OUTLININGS, env, Outlining::new(readers))
}

/// `(number, count)`: reads at most `count` events; 0 when there is nothing left.
fn step(_: &Realm, env: Env, [number, count]: [Value; 2]) -> Outcome {
    let count = env.double(count).unwrap_or(0.0) as usize;
    let more = Numbered::with(&OUTLININGS, env, number, |outlining| {
        outlining.step(count).map_err(|error| Failure::new(UNREADABLE_TRACE, error.to_string()))
    })?;
    env.integer(usize::from(more))
}

/// `(number)`: bytes of all traces that have been read, and bytes in all.
fn progress(_: &Realm, env: Env, [number]: [Value; 1]) -> Outcome {
    env.pair(Numbered::with(&OUTLININGS, env, number, |outlining| Ok(outlining.progress()))?)
}

/// `(number, moment)`: the moment as JSON, or null when the trace has no such moment.
fn find(_: &Realm, env: Env, [number, moment]: [Value; 2]) -> Outcome {
    let text = env.text(moment).unwrap_or_default();
    let moment: Moment = text.parse().map_err(|error| Failure::new(code::OUT_OF_RANGE, format!("{error}")))?;
    match Numbered::with(&OUTLININGS, env, number, |outlining| Ok(outlining.outline().find(&moment)))? {
        Some(found) => json::give(env, &found),
        None => env.null(),
    }
}

/// `(number)`: gives the reading's memory back.
fn close(_: &Realm, env: Env, [number]: [Value; 1]) -> Outcome {
    Numbered::close(&OUTLININGS, env, number)
}
