//! Replays for the command line. A replay is a number, and its findings are JSON.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Read;
use std::time::{Duration, Instant};

use obmalloc::profile::Geometry;
use obmalloc_trace::format::Reader;
use obmalloc_trace::replay::{Replay, Report};
use serde::{Deserialize, Serialize};

use super::numbered::Numbered;
use crate::calls::json;
use crate::face::Realm;
use crate::failure::{Failure, code};
use crate::js::{Env, Outcome, Value};
use crate::shell::{Table, export};

/// The code for a trace that cannot be read.
pub(super) const UNREADABLE_TRACE: &str = "ERR_UNREADABLE_TRACE";

struct Running {
    replay: Replay,
    time: Duration,
}

thread_local! {
    static RUNNING: Numbered<Running> = Numbered::new("an open replay");
}

#[derive(Deserialize)]
struct Options {
    release: String,
    segments: Vec<Segment>,
    stop_at: Option<u64>,
    geometry: Option<Sizes>,
}

/// Sizes other than the release's.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sizes {
    arena_size: usize,
    pool_size: usize,
    alignment: usize,
    small_request_threshold: usize,
}

impl From<Sizes> for Geometry {
    fn from(sizes: Sizes) -> Self {
        let Sizes { arena_size, pool_size, alignment, small_request_threshold } = sizes;
        Self { arena_size, pool_size, alignment, small_request_threshold }
    }
}

/// A trace file, or its first `bytes`.
#[derive(Deserialize)]
pub(super) struct Segment {
    path: String,
    bytes: Option<u64>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Found<'a> {
    #[serde(flatten)]
    report: &'a Report,
    exact: bool,
    seconds: f64,
    /// The present statistics.
    stats_now: String,
}

pub(crate) fn exports(to: Table<'_>) -> Result<(), Failure> {
    export(to, c"openReplay", open)?;
    export(to, c"stepReplay", step)?;
    export(to, c"progressReplay", progress)?;
    export(to, c"reportReplay", report)?;
    export(to, c"closeReplay", close)
}

/// `(options)`: opens the traces and gives the replay's number.
fn open(_: &Realm, env: Env, [options]: [Value; 1]) -> Outcome {
    let options: Options = json::parse(env, options, "options")?;
    let profile = json::profile(&options.release)?;
    let geometry = options.geometry.map_or(profile.geometry(), Geometry::from);
    geometry.check().map_err(|error| Failure::new(code::OUT_OF_RANGE, error.to_string()))?;
    let readers = options.segments.iter().map(|segment| read(segment).map(Reader::without_stacks)).collect::<Result<_, _>>()?;
    let mut replay = Replay::on(readers, profile, geometry, Report::default())
        .map_err(|error| Failure::new(code::NO_MEMORY, error.to_string()))?;
    if let Some(operation) = options.stop_at {
        replay.stop_at(operation);
    }
    Numbered::open(&RUNNING, env, Running { replay, time: Duration::ZERO })
}

pub(super) fn read(segment: &Segment) -> Result<Reader<'static>, Failure> {
    reader(segment).map_err(|why| Failure::new(UNREADABLE_TRACE, why))
}

/// The reader of a segment, or why there is none.
pub(super) fn reader(segment: &Segment) -> Result<Reader<'static>, String> {
    let unreadable = |error: &dyn std::fmt::Display| format!("{}: {error}", segment.path);
    let file = File::open(&segment.path).map_err(|error| unreadable(&error))?;
    let length = file.metadata().map_err(|error| unreadable(&error))?.len().min(segment.bytes.unwrap_or(u64::MAX));
    let reader = Reader::of(file.take(segment.bytes.unwrap_or(u64::MAX)), length).map_err(|error| unreadable(&error))?;
    Ok(reader.named(&segment.path))
}

/// `(number, count)`: replays at most `count` events; 0 when there is nothing left.
fn step(_: &Realm, env: Env, [number, count]: [Value; 2]) -> Outcome {
    let count = env.double(count).unwrap_or(0.0) as usize;
    let more = Numbered::with(&RUNNING, env, number, |running| {
        let start = Instant::now();
        let more = running.replay.step(count).map_err(|error| Failure::new(UNREADABLE_TRACE, error.to_string()))?;
        running.time += start.elapsed();
        Ok(more)
    })?;
    env.integer(usize::from(more))
}

/// `(number)`: bytes of all traces that have been read, and bytes in all.
fn progress(_: &Realm, env: Env, [number]: [Value; 1]) -> Outcome {
    env.pair(Numbered::with(&RUNNING, env, number, |running| Ok(running.replay.progress()))?)
}

/// `(number)`: what has been found so far, as JSON.
fn report(_: &Realm, env: Env, [number]: [Value; 1]) -> Outcome {
    let text = Numbered::with(&RUNNING, env, number, |running| {
        let report = running.replay.watcher();
        let found = Found {
            report,
            exact: report.is_exact(),
            seconds: running.time.as_secs_f64(),
            stats_now: running.replay.stats().to_string(),
        };
        json::text(&found)
    })?;
    env.string(&text)
}

/// `(number)`: gives the replay's memory back.
fn close(_: &Realm, env: Env, [number]: [Value; 1]) -> Outcome {
    Numbered::close(&RUNNING, env, number)
}
