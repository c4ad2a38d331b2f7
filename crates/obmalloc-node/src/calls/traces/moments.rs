//! A trace's moments for the command line: a reading that finds them is a number here.

#![forbid(unsafe_code)]

use obmalloc_trace::moments::{Moment, NotThere, Outlining};

use super::numbered::Numbered;
use super::replay::{Segment, UNREADABLE_TRACE, read};
use crate::calls::json;
use crate::face::Realm;
use crate::failure::{Failure, code};
use crate::js::{Env, Outcome, Value};
use crate::shell::{Table, export};

/// A reading, and the moment that is looked for, also as the text that asks for it.
struct Search {
    outlining: Outlining<'static>,
    moment: Moment,
    text: String,
}

thread_local! {
    static SEARCHES: Numbered<Search> = Numbered::new("an open outline");
}

pub(crate) fn exports(to: Table<'_>) -> Result<(), Failure> {
    export(to, c"openOutline", open)?;
    export(to, c"stepOutline", step)?;
    export(to, c"progressOutline", progress)?;
    export(to, c"findMoment", find)?;
    export(to, c"closeOutline", close)
}

/// `(segments, moment)`: opens the traces and gives the number of a reading that finds the moment. A text that is no moment is refused.
fn open(_: &Realm, env: Env, [segments, moment]: [Value; 2]) -> Outcome {
    let segments: Vec<Segment> = json::parse(env, segments, "segments")?;
    let text = env.text(moment).unwrap_or_default();
    let moment = text.parse().map_err(|error| Failure::new(code::OUT_OF_RANGE, format!("{error}")))?;
    let readers = segments.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    Numbered::open(&SEARCHES, env, Search { outlining: Outlining::new(readers), moment, text })
}

/// `(number, count)`: reads at most `count` events; 0 when there is nothing left.
fn step(_: &Realm, env: Env, [number, count]: [Value; 2]) -> Outcome {
    let count = env.double(count).unwrap_or(0.0) as usize;
    let more = Numbered::with(&SEARCHES, env, number, |search| {
        search.outlining.step(count).map_err(|error| Failure::new(UNREADABLE_TRACE, error.to_string()))
    })?;
    env.integer(usize::from(more))
}

/// `(number)`: bytes of all traces that have been read, and bytes in all.
fn progress(_: &Realm, env: Env, [number]: [Value; 1]) -> Outcome {
    env.pair(Numbered::with(&SEARCHES, env, number, |search| Ok(search.outlining.progress()))?)
}

/// `(number)`: the moment as JSON.
fn find(_: &Realm, env: Env, [number]: [Value; 1]) -> Outcome {
    let found = Numbered::with(&SEARCHES, env, number, |Search { outlining, moment, text }| {
        outlining.outline().require(moment, text).map_err(|error| not_there(&error))
    })?;
    json::give(env, &found)
}

/// The error that the command line tells from others by its code.
pub(super) fn not_there(error: &NotThere) -> Failure {
    let code = match error {
        NotThere::NoEvent => "ERR_NO_EVENT",
        NotThere::NoSuch(_) => "ERR_NO_SUCH_MOMENT",
    };
    Failure::new(code, error.to_string())
}

/// `(number)`: gives the reading's memory back.
fn close(_: &Realm, env: Env, [number]: [Value; 1]) -> Outcome {
    Numbered::close(&SEARCHES, env, number)
}
