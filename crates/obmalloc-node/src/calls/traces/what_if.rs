//! What-if for the command line: a recording's calls are a number here, and what comes of a configuration is JSON.

use std::fs::File;
use std::io::{BufWriter, Write};

use obmalloc::profile::Profile;
use obmalloc_trace::replay::{Replay, Report};
use obmalloc_trace::what_if::{Calls, CallsCollector, Configuration, Row, Trial};
use serde::{Deserialize, Serialize};

use super::numbered::Numbered;
use super::replay::{Segment, UNREADABLE_TRACE, read};
use crate::calls::json;
use crate::face::Realm;
use crate::failure::{Failure, code};
use crate::js::{Env, Outcome, UNDEFINED, Value};
use crate::shell::{Table, export};

/// The recording is read first, then the configurations take their turns.
struct Trials {
    profile: &'static Profile,
    state: State,
    /// What sets blocks apart: a file, a line, and how many frames of a stack to look at.
    site: Option<(String, u32, usize)>,
    trial: Option<Trial>,
}

enum State {
    Reading(Box<Replay<(Report, CallsCollector)>>),
    Read { calls: Calls, recorded: Recorded },
    Over,
}

/// What the recorded process had at the moment.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
struct Recorded {
    peak_held: u64,
    held: u64,
    maps: u64,
    unmaps: u64,
    calls: u64,
    /// Bytes that a trim would give back at the moment.
    trimmable: u64,
    /// How many of the calls are of blocks that are set apart.
    apart: u64,
    /// Whether the replay came to the moment, and went as recorded.
    verified: bool,
}

thread_local! {
    static TRIALS: Numbered<Trials> = Numbered::new("open trials");
}

#[derive(Deserialize)]
struct Options {
    release: String,
    segments: Vec<Segment>,
    stop_at: u64,
    /// Most frames of a stack.
    frames: usize,
    apart: Option<(String, u32)>,
}

pub(crate) fn exports(to: Table<'_>) -> Result<(), Failure> {
    export(to, c"openTrials", open)?;
    export(to, c"stepTrials", step)?;
    export(to, c"progressTrials", progress)?;
    export(to, c"recordedByTrials", recorded)?;
    export(to, c"tryTrials", try_one)?;
    export(to, c"rowOfTrials", row)?;
    export(to, c"writeTrials", write)?;
    export(to, c"closeTrials", close)
}

/// `(options)`: opens the traces and gives the trials' number.
fn open(_: &Realm, env: Env, [options]: [Value; 1]) -> Outcome {
    let options: Options = json::parse(env, options, "options")?;
    let profile = json::profile(&options.release)?;
    let readers = options.segments.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let collector = (Report::default(), CallsCollector::new(options.apart.is_some()));
    let replay = match options.apart {
        Some(_) => Replay::with_stacks(readers, profile, collector),
        None => Replay::new(readers, profile, collector),
    };
    let mut replay = replay.map_err(|error| Failure::new(code::NO_MEMORY, error.to_string()))?;
    replay.stop_at(options.stop_at);
    let site = options.apart.map(|(file, line)| (file, line, options.frames));
    Numbered::open(&TRIALS, env, Trials { profile, state: State::Reading(Box::new(replay)), site, trial: None })
}

/// `(number, count)`: reads at most `count` events, or makes at most `count` calls; 0 when what is under way is done.
fn step(_: &Realm, env: Env, [number, count]: [Value; 2]) -> Outcome {
    let count = env.double(count).unwrap_or(0.0) as usize;
    let more = Numbered::with(&TRIALS, env, number, |trials| trials.step(count))?;
    env.integer(usize::from(more))
}

impl Trials {
    fn step(&mut self, count: usize) -> Result<bool, Failure> {
        match &mut self.state {
            State::Reading(replay) => {
                if replay.step(count).map_err(|error| Failure::new(UNREADABLE_TRACE, error.to_string()))? {
                    return Ok(true);
                }
                self.read();
                Ok(false)
            }
            State::Read { calls, .. } => match &mut self.trial {
                Some(trial) => trial.step(calls, count).map_err(|error| Failure::new(code::NO_MEMORY, error.to_string())),
                None => Ok(false),
            },
            State::Over => Ok(false),
        }
    }

    /// The recording has been read.
    fn read(&mut self) {
        let State::Reading(replay) = std::mem::replace(&mut self.state, State::Over) else { return };
        if replay.watcher().1.is_full() {
            return;
        }
        let stats = replay.stats();
        let trimmable = replay.arenas().iter().map(|arena| arena.trimmable(stats.geometry.pool_size)).sum();
        let arenas = |count: usize| count as u64 * stats.geometry.arena_size as u64;
        let is_apart = self.site.as_ref().and_then(|(file, line, frames)| {
            let stacks = replay.stacks()?.clone();
            Some(move |node| stacks.passes(node, *frames, file, *line))
        });
        let (report, calls) = replay.into_watcher();
        let calls = match is_apart {
            Some(is_apart) => calls.calls(is_apart),
            None => calls.calls(|_| false),
        };
        let recorded = Recorded {
            peak_held: arenas(stats.arenas_highwater),
            held: arenas(stats.arenas),
            maps: stats.arenas_allocated_total as u64,
            unmaps: (stats.arenas_allocated_total - stats.arenas) as u64,
            calls: calls.len() as u64,
            trimmable,
            apart: calls.apart(),
            verified: report.mismatch.is_none(),
        };
        self.state = State::Read { calls, recorded };
    }

    fn calls(&self) -> Result<(&Calls, &Recorded), Failure> {
        match &self.state {
            State::Read { calls, recorded } => Ok((calls, recorded)),
            State::Reading(_) => Err(Failure::new(code::OUT_OF_RANGE, "expected trials whose recording has been read")),
            State::Over => Err(Failure::new(code::NO_MEMORY, "more blocks are live than trials can tell apart: 536870912")),
        }
    }
}

/// `(number)`: what has been read or made, and all there is of it.
fn progress(_: &Realm, env: Env, [number]: [Value; 1]) -> Outcome {
    let progress = Numbered::with(&TRIALS, env, number, |trials| {
        Ok(match (&trials.state, &trials.trial) {
            (State::Reading(replay), _) => replay.progress(),
            (State::Read { calls, .. }, Some(trial)) => (trial.done() as u64, calls.len() as u64),
            _ => (1, 1),
        })
    })?;
    env.pair(progress)
}

/// `(number)`: what the recorded process had, as JSON.
fn recorded(_: &Realm, env: Env, [number]: [Value; 1]) -> Outcome {
    let recorded = Numbered::with(&TRIALS, env, number, |trials| trials.calls().map(|(_, recorded)| *recorded))?;
    json::give(env, &recorded)
}

/// `(number, configuration)`: begins a trial.
fn try_one(_: &Realm, env: Env, [number, configuration]: [Value; 2]) -> Outcome {
    let wish: Configuration = json::parse(env, configuration, "configuration")?;
    wish.release.as_deref().map(json::profile).transpose()?;
    Numbered::with(&TRIALS, env, number, |trials| {
        // One heap's memory at a time.
        trials.trial = None;
        let (calls, _) = trials.calls()?;
        let trial = Trial::new(&wish, trials.profile, calls);
        trials.trial = Some(trial.map_err(|error| Failure::new(code::OUT_OF_RANGE, error.to_string()))?);
        Ok(())
    })?;
    Ok(UNDEFINED)
}

/// `(number)`: what came of the last trial, as JSON.
fn row(_: &Realm, env: Env, [number]: [Value; 1]) -> Outcome {
    let row: Row = Numbered::with(&TRIALS, env, number, |trials| {
        let trial = trials.trial.take();
        let (calls, _) = trials.calls()?;
        trial.map(|trial| trial.row(calls)).ok_or_else(|| Failure::new(code::OUT_OF_RANGE, "expected a trial that was begun"))
    })?;
    json::give(env, &row)
}

/// `(number, path)`: writes the calls for the measuring program.
fn write(_: &Realm, env: Env, [number, path]: [Value; 2]) -> Outcome {
    let path = env.text(path).unwrap_or_default();
    Numbered::with(&TRIALS, env, number, |trials| {
        let (calls, _) = trials.calls()?;
        let written = File::create_new(&path).and_then(|file| {
            let mut file = BufWriter::new(file);
            calls.write(&mut file)?;
            file.flush()
        });
        written.map_err(|error| Failure::new(code::INTERNAL, format!("cannot write {path}: {error}")))
    })?;
    Ok(UNDEFINED)
}

/// `(number)`: gives the memory back.
fn close(_: &Realm, env: Env, [number]: [Value; 1]) -> Outcome {
    Numbered::close(&TRIALS, env, number)
}
