//! What-if for the command line. Trials are a number, and their results are JSON.

#![forbid(unsafe_code)]

use std::path::PathBuf;

use obmalloc::HeapError;
use obmalloc::profile::Profile;
use obmalloc_trace::replay::{Replay, Report};
use obmalloc_trace::what_if::{Apart, CallsWriter, Configuration, Recorded, Trials, TrialsError, Tried};
use serde::{Deserialize, Serialize};

use super::numbered::Numbered;
use super::replay::{Segment, UNREADABLE_TRACE, read};
use crate::calls::json;
use crate::face::Realm;
use crate::failure::{Failure, code};
use crate::js::{Env, Outcome, Value};
use crate::shell::{Table, export};

/// The code for a file of calls that cannot be written or read.
const CALLS_FILE: &str = "ERR_CALLS_FILE";

/// The recording is read first, then the configurations take their turns.
enum State {
    Reading(Box<Replay<(Report, CallsWriter)>>),
    Trying(Box<Trials>),
    Over,
}

struct Open {
    profile: &'static Profile,
    configurations: Vec<Configuration>,
    state: State,
    /// Whether the replay came to the moment, and went as recorded.
    verified: bool,
}

thread_local! {
    static TRIALS: Numbered<Open> = Numbered::new("open trials");
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Options {
    release: String,
    segments: Vec<Segment>,
    stop_at: u64,
    /// Most frames of a stack.
    frames: usize,
    /// The file and line whose blocks are set apart.
    apart: Option<(String, u32)>,
    configurations: Vec<Configuration>,
    /// Where the calls are written.
    calls: PathBuf,
}

#[derive(Serialize)]
struct Answer {
    verified: bool,
    #[serde(flatten)]
    tried: Tried,
}

pub(crate) fn exports(to: Table<'_>) -> Result<(), Failure> {
    export(to, c"openTrials", open)?;
    export(to, c"stepTrials", step)?;
    export(to, c"progressTrials", progress)?;
    export(to, c"answerTrials", answer)?;
    export(to, c"closeTrials", close)
}

fn failure(error: &TrialsError) -> Failure {
    let code = match error {
        TrialsError::Full | TrialsError::Heap(HeapError::NoMemory) => code::NO_MEMORY,
        TrialsError::File(_) => CALLS_FILE,
        TrialsError::Heap(_) => code::OUT_OF_RANGE,
    };
    Failure::new(code, error.to_string())
}

/// `(options)`: opens the traces and gives the trials' number.
fn open(_: &Realm, env: Env, [options]: [Value; 1]) -> Outcome {
    let Options { release, segments, stop_at, frames, apart, configurations, calls } = json::parse(env, options, "options")?;
    let profile = json::profile(&release)?;
    for configuration in &configurations {
        configuration.release.as_deref().map(json::profile).transpose()?;
    }
    let readers = segments.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let keeps_stacks = apart.is_some();
    let apart = apart.map(|(file, line)| Apart { file, line, frames });
    let writer = CallsWriter::create(&calls, apart).map_err(|error| failure(&error.into()))?;
    let watcher = (Report::default(), writer);
    let replay =
        if keeps_stacks { Replay::with_stacks(readers, profile, watcher) } else { Replay::new(readers, profile, watcher) };
    let mut replay = replay.map_err(|error| Failure::new(code::NO_MEMORY, error.to_string()))?;
    replay.stop_at(stop_at);
    let state = State::Reading(Box::new(replay));
    Numbered::open(&TRIALS, env, Open { profile, configurations, state, verified: false })
}

impl Open {
    fn step(&mut self, count: usize) -> Result<bool, Failure> {
        match &mut self.state {
            State::Reading(replay) => {
                if !replay.step(count).map_err(|error| Failure::new(UNREADABLE_TRACE, error.to_string()))? {
                    self.read()?;
                }
                Ok(true)
            }
            State::Trying(trials) => trials.step(count).map_err(|error| failure(&error)),
            State::Over => Ok(false),
        }
    }

    /// The recording has been read.
    fn read(&mut self) -> Result<(), Failure> {
        let State::Reading(replay) = std::mem::replace(&mut self.state, State::Over) else { return Ok(()) };
        let recorded = Recorded::of(&replay);
        let (report, writer) = replay.into_watcher();
        self.verified = report.mismatch.is_none();
        let calls = writer.calls().map_err(|error| failure(&error))?;
        let configurations = std::mem::take(&mut self.configurations);
        self.state = State::Trying(Box::new(Trials::new(configurations, self.profile, calls, recorded)));
        Ok(())
    }
}

/// `(number, count)`: reads at most `count` events, or makes at most `count` calls; 0 when there is nothing left.
fn step(_: &Realm, env: Env, [number, count]: [Value; 2]) -> Outcome {
    let count = env.double(count).unwrap_or(0.0) as usize;
    let more = Numbered::with(&TRIALS, env, number, |open| open.step(count))?;
    env.integer(usize::from(more))
}

/// `(number)`: how much has been read or made, and how much there is in all.
fn progress(_: &Realm, env: Env, [number]: [Value; 1]) -> Outcome {
    let progress = Numbered::with(&TRIALS, env, number, |open| {
        Ok(match &open.state {
            State::Reading(replay) => replay.progress(),
            State::Trying(trials) => trials.progress(),
            State::Over => (1, 1),
        })
    })?;
    env.pair(progress)
}

/// `(number)`: the results as JSON. This closes the trials.
fn answer(_: &Realm, env: Env, [number]: [Value; 1]) -> Outcome {
    let Open { state, verified, .. } = Numbered::take(&TRIALS, env, number)?;
    let State::Trying(trials) = state else {
        return Err(Failure::new(code::OUT_OF_RANGE, "expected trials that have come to their end"));
    };
    json::give(env, &Answer { verified, tried: trials.tried() })
}

/// `(number)`: gives the memory back.
fn close(_: &Realm, env: Env, [number]: [Value; 1]) -> Outcome {
    Numbered::close(&TRIALS, env, number)
}
