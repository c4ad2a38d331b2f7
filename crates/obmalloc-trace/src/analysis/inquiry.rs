//! An inquiry: finds the answer of `why` in slices. It reads the recording twice: once for its outline, without a heap, which tells when the
//! moment is; and once for the replay and everything else.

#![forbid(unsafe_code)]

use std::fmt;
use std::path::PathBuf;

use obmalloc::profile::Profile;
use serde::{Deserialize, Serialize};

use super::deaths::Times;
use super::film::Film;
use super::growth::Growing;
use super::half_empty::HalfEmpty;
use super::onlookers::Onlookers;
use super::page::{Page, Parts, Still, Sure};
use super::pinning::{Pinning, Survivors};
use super::rules::{self, Anew, Facts};
use super::shares::Shares;
use super::sites::Sites;
use super::top::{self, By, Row};
use super::types::{self, Typed};
use super::why::{self, At, Bounded, Pinned, Totals, Verified, Why};
use super::{Analysis, Census, words};
use crate::format::{FormatError, Reader};
use crate::moments::{Found, Moment, NoMoment, NotThere, Outline, Outlining, Sample};
use crate::replay::{Replay, ReplayError, Report};
use crate::stacks::Stacks;
use crate::what_if::{CallsWriter, Configuration, Recorded, Trials, TrialsError, Tried};

/// The most sites in an answer, in all and on a page, and the most arenas.
const MOST_SITES: usize = 10_000;
const MOST_SITES_OF_PAGE: usize = 2_000;
const MOST_ARENAS: usize = 20_000;

/// The question, and what the header says.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Asked {
    /// The trace's path.
    pub path: String,
    /// The CPython that was recorded.
    pub python: String,
    /// The moment: see [`Moment`].
    pub at: String,
    /// Most frames of a stack; 0 where there are none.
    pub frames: usize,
    /// Why the recorder had to stop, if it had to.
    pub failed: Option<String>,
    /// The program's arguments.
    pub command: Vec<String>,
    /// The version of this package: for the page.
    pub version: String,
    /// Wants a table too, of sites, functions, files or size classes.
    pub by: Option<By>,
    /// Wants what was live at the marks of this name.
    pub mark: Option<String>,
    /// Wants the page's data.
    pub report: bool,
    /// Wants other settings tried, for the page.
    pub tries: Option<Tries>,
}

/// Other settings.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tries {
    #[allow(missing_docs, reason = "they say it themselves")]
    pub configurations: Vec<Configuration>,
    /// Where the calls are written, to a file that is not there yet: eight bytes an event.
    pub calls: PathBuf,
    /// Nothing is tried at a moment that is later than this event.
    pub most_events: u64,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum InquiryError {
    /// The trace cannot be read or replayed.
    Replay(ReplayError),
    /// No moment was asked for.
    NoMoment(NoMoment),
    /// The trace has no such moment.
    NotThere(NotThere),
}

impl fmt::Display for InquiryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replay(error) => error.fmt(f),
            Self::NoMoment(error) => error.fmt(f),
            Self::NotThere(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for InquiryError {}

impl From<ReplayError> for InquiryError {
    fn from(error: ReplayError) -> Self {
        Self::Replay(error)
    }
}

impl From<FormatError> for InquiryError {
    fn from(error: FormatError) -> Self {
        Self::Replay(error.into())
    }
}

/// Opens the traces: they are read twice.
pub type Open = Box<dyn Fn() -> Result<Vec<Reader<'static>>, FormatError>>;

/// An inquiry under way.
pub struct Inquiry {
    asked: Asked,
    profile: &'static Profile,
    open: Open,
    state: State,
}

enum State {
    Outlining(Outlining<'static>),
    Replaying(Box<Course>),
    /// The replay has come to the moment; other settings are tried.
    Trying(Box<Filming>, Trials),
    /// The rest of the recording is still to be filmed.
    Filming(Box<Filming>),
    Over(Box<Answered>),
}

/// The facts at the moment, and the rest of the recording.
struct Filming {
    course: Course,
    still: Still,
    tried: Option<Result<Tried, TrialsError>>,
}

struct Course {
    outline: Outline,
    moments: Moments,
    replay: Replay<Onlookers>,
    /// Why the calls cannot be written that were to be.
    unwritten: Option<TrialsError>,
}

/// The events after which a census is taken.
#[derive(Clone, Copy)]
struct Moments {
    asked: u64,
    /// When most was held, if that was before.
    peak: Option<u64>,
    /// When the arenas that are held at the moment were full, if that was before.
    burst: Option<u64>,
}

/// The result of a course.
struct Solved {
    why: Why,
    summary: Vec<String>,
    sites: Sites,
    shares: Shares,
    table: Option<Vec<Row>>,
    growth: Option<Growing>,
}

/// The answer.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Answered {
    /// What `why` says.
    Why {
        /// The answer as data.
        why: Box<Why>,
        /// The answer in words, a line each.
        summary: Vec<String>,
        /// The sites, if a table was wanted.
        #[serde(skip_serializing_if = "Option::is_none")]
        table: Option<Vec<Row>>,
        /// How live memory grows from mark to mark, if that was wanted.
        #[serde(skip_serializing_if = "Option::is_none")]
        growth: Option<Growing>,
    },
    /// The page's data, with the answer in it.
    Page(Box<Page>),
}

impl Inquiry {
    /// Prepares an inquiry into a trace of a release.
    ///
    /// # Errors
    /// When the trace cannot be read, or what is asked for is no moment.
    pub fn new(asked: Asked, profile: &'static Profile, open: Open) -> Result<Self, InquiryError> {
        moment(&asked)?;
        let state = State::Outlining(Outlining::new(open()?));
        Ok(Self { asked, profile, open, state })
    }

    /// Looks at no more than `count` events; false when there is nothing left to look at.
    ///
    /// # Errors
    /// When the trace cannot be read any further, or has no such moment.
    pub fn step(&mut self, count: usize) -> Result<bool, InquiryError> {
        let more = match &mut self.state {
            State::Outlining(outlining) => outlining.step(count)?,
            State::Replaying(course) => course.replay.step(count)?,
            State::Trying(filming, trials) => trials.step(count).unwrap_or_else(|error| {
                filming.tried = Some(Err(error));
                false
            }),
            State::Filming(filming) => filming.course.replay.step(count)?,
            State::Over(_) => return Ok(false),
        };
        if !more {
            self.go_on()?;
        }
        Ok(!matches!(self.state, State::Over(_)))
    }

    /// Goes on to the next step: the replay, the film if it is wanted, the answer.
    fn go_on(&mut self) -> Result<(), InquiryError> {
        let state = std::mem::replace(&mut self.state, State::Outlining(Outlining::new(Vec::new())));
        self.state = match state {
            State::Outlining(outlining) => State::Replaying(Box::new(self.course(outlining.outline().clone())?)),
            State::Replaying(mut course) => {
                let trials = course.trials(&self.asked, self.profile);
                let solved = course.solve(&self.asked, self.profile);
                if self.asked.report {
                    let still = course.still(solved, &self.asked);
                    course.replay.watcher_mut().is_past = true;
                    course.replay.follow();
                    let filming = |tried| Box::new(Filming { course: *course, still, tried });
                    match trials {
                        Some(Ok(trials)) => State::Trying(filming(None), trials),
                        Some(Err(error)) => State::Filming(filming(Some(Err(error)))),
                        None => State::Filming(filming(None)),
                    }
                } else {
                    let Solved { why, summary, table, growth, .. } = solved;
                    State::Over(Box::new(Answered::Why { why: Box::new(why), summary, table, growth }))
                }
            }
            State::Trying(mut filming, trials) => {
                // A page without trials says why.
                filming.tried.get_or_insert_with(|| Ok(trials.tried()));
                State::Filming(filming)
            }
            State::Filming(filming) => {
                let Filming { course: Course { outline, replay, .. }, still, tried } = *filming;
                let mut film = replay.into_watcher().film.unwrap_or_else(|| Film::new(self.profile.geometry(), 0));
                film.end();
                State::Over(Box::new(Answered::Page(Box::new(Page::of(still, &film, &outline, tried)))))
            }
            over @ State::Over(_) => over,
        };
        Ok(())
    }

    fn course(&self, outline: Outline) -> Result<Course, InquiryError> {
        let found = find(&outline, &self.asked)?;
        let before = |event: &u64| *event < found.event;
        let moments = Moments {
            asked: found.event,
            peak: outline.find(&Moment::Peak).map(|peak| peak.event).filter(before),
            burst: outline.burst(found.event).filter(before),
        };
        let sampled = sample(&outline, found.event).and_then(|sample| sample.event.checked_sub(1));
        let all = [Some(found.event), moments.peak, moments.burst].into_iter().flatten().collect();
        let mut analysis = Analysis::new(self.profile.geometry(), all, sampled, &outline.marks, true);
        if let Some(burst) = moments.burst {
            analysis.count_deaths(burst, Times::of(&outline));
        }
        if let Some(name) = &self.asked.mark {
            analysis.watch_mark(&outline.marks, name);
        }
        let onlookers = Onlookers {
            report: Report::default(),
            analysis,
            film: self.asked.report.then(|| Film::new(self.profile.geometry(), outline.events)),
            calls: None,
            is_past: false,
        };
        let mut course =
            Course { outline, moments, replay: Replay::with_stacks((self.open)()?, self.profile, onlookers)?, unwritten: None };
        if let Some(tries) = self.asked.tries.as_ref().filter(|tries| found.event <= tries.most_events) {
            match CallsWriter::create(&tries.calls, None) {
                Ok(calls) => course.replay.watcher_mut().calls = Some(calls),
                Err(error) => course.unwritten = Some(error.into()),
            }
        }
        Ok(course)
    }

    /// How much has been read of how much, in bytes.
    pub fn progress(&self) -> (u64, u64) {
        match &self.state {
            State::Outlining(outlining) => outlining.progress(),
            State::Replaying(course) => course.replay.progress(),
            State::Trying(_, trials) => trials.progress(),
            State::Filming(filming) => filming.course.replay.progress(),
            State::Over(_) => (1, 1),
        }
    }

    /// The answer; `None` while there is something left to look at.
    pub fn answer(self) -> Option<Answered> {
        match self.state {
            State::Over(answered) => Some(*answered),
            _ => None,
        }
    }
}

/// The last sample of memory up to the end of an event: it may have been taken just before the next one.
fn sample(outline: &Outline, event: u64) -> Option<&Sample> {
    outline.sample(event.saturating_add(1))
}

/// The moment that is asked for.
fn moment(asked: &Asked) -> Result<Moment, InquiryError> {
    if asked.at.is_empty() { Ok(Moment::End) } else { asked.at.parse().map_err(InquiryError::NoMoment) }
}

fn find(outline: &Outline, asked: &Asked) -> Result<Found, InquiryError> {
    let text = if asked.at.is_empty() { "end" } else { &asked.at };
    outline.require(&moment(asked)?, text).map_err(InquiryError::NotThere)
}

impl Course {
    /// The trials that are wanted, of the heap as it was recorded.
    fn trials(&mut self, asked: &Asked, profile: &'static Profile) -> Option<Result<Trials, TrialsError>> {
        if let Some(error) = self.unwritten.take() {
            return Some(Err(error));
        }
        let (writer, tries) = (self.replay.watcher_mut().calls.take()?, asked.tries.as_ref()?);
        let recorded = Recorded::of(&self.replay);
        Some(writer.calls().map(|calls| Trials::new(tries.configurations.clone(), profile, calls, recorded)))
    }

    /// The result of a replay that has come to the moment.
    fn solve(&mut self, asked: &Asked, profile: &'static Profile) -> Solved {
        let held = self.replay.arenas();
        let last = self.replay.watcher().report.events.saturating_sub(1);
        self.replay.watcher_mut().analysis.end(last, &held);
        let analysis = &self.replay.watcher().analysis;
        let moments = self.moments;
        let (census, _) = moments.censuses(analysis);
        let burst = moments.burst.and_then(|burst| analysis.census_of(burst));
        let mut sites = Sites::new(asked.frames);
        let none = Stacks::default();
        let tree = self.replay.stacks().unwrap_or(&none);
        let shares = Shares::of(census, &mut sites, tree);
        let pinned = Pinned::of(census);
        let pinning = Pinning::of(census, burst, analysis.ledger.deaths.as_deref(), &shares, pinned, &mut sites, tree);
        let half_empty = if pinning.is_some() { None } else { HalfEmpty::of(census, &mut sites, tree) };
        let survivors = match (&pinning, &half_empty) {
            (Some(pinning), _) => Some(pinning.survivors(census, &analysis.ledger, &mut sites, tree)),
            (None, Some(half_empty)) => {
                let blocks = half_empty.blocks(&analysis.ledger, &mut sites, tree);
                Some(Survivors { blocks, others: 0, may_be_dead: 0 })
            }
            (None, None) => None,
        };
        let anew = survivors.and_then(|survivors| {
            let arenas = self.replay.make_anew(&survivors.blocks)? as u64;
            let may_be = |hundredths| survivors.may_be_dead * 100 >= survivors.blocks.len() * hundredths;
            let others = survivors.others.min(arenas);
            Some(Anew { arenas, at_least: if may_be(50) { others } else { arenas }, may_all_be_dead: may_be(99) })
        });
        let types = self.replay.types_here();

        let Onlookers { report, analysis, .. } = self.replay.watcher();
        let tree = self.replay.stacks().unwrap_or(&none);
        let (census, peak) = moments.censuses(analysis);
        let sample = sample(&self.outline, census.event);
        let totals = Totals::of(census, sample, analysis.explained);
        let typed = types.map(|types| Typed::of(types, census, pinning.as_ref(), &analysis.ledger, &mut sites, tree));
        let facts = Facts {
            asked,
            outline: &self.outline,
            analysis,
            report,
            census,
            peak,
            full: moments.burst.and_then(|burst| analysis.census_of(burst)),
            shares: &shares,
            tree,
            totals,
            pinning: pinning.as_ref(),
            half_empty: half_empty.as_ref(),
            anew,
            typed: typed.as_ref(),
        };
        let mut findings = rules::find(&facts, &mut sites);
        let (most_sites, most_types) =
            if asked.report { (MOST_SITES_OF_PAGE, types::MOST_OF_PAGE) } else { (MOST_SITES, types::MOST) };
        let told = shares.told(most_sites, &mut findings);
        let why = Why {
            schema: "obmalloc.why/1",
            trace: why::trace(
                asked.path.clone(),
                asked.python.clone(),
                profile.release().into(),
                is_complete(asked, &self.outline),
                &self.outline,
            ),
            verified: Verified { addresses: report.addresses, matched: report.matched },
            at: At {
                event: census.event,
                seconds: self.outline.seconds(census.event),
                moment: if asked.at.is_empty() { "end".into() } else { asked.at.clone() },
            },
            totals,
            pinned,
            sites: why::sites(&told, &sites, typed.as_ref(), most_types),
            arenas: why::arenas(census, &shares, MOST_ARENAS, most_sites),
            bounded: Bounded {
                sites: (told.len(), shares.sites.len().max(told.len())),
                arenas: (census.arenas.len().min(MOST_ARENAS), census.arenas.len()),
            },
            greedy: why::greedy(census),
            findings,
        };
        let table = asked.by.map(|by| top::table(by, census, &shares, &mut sites, tree));
        let growth = asked.mark.is_some().then(|| analysis.growth.by_site(&mut sites, tree));
        let mut summary = words::summary(&why);
        summary.extend(cut_off(asked, &self.outline, why.at.event));
        Solved { why, summary, sites, shares, table, growth }
    }

    /// What a page tells of the moment.
    fn still(&self, solved: Solved, asked: &Asked) -> Still {
        let Solved { why, summary, mut sites, shares, .. } = solved;
        let Onlookers { report, analysis, .. } = self.replay.watcher();
        let (census, peak) = self.moments.censuses(analysis);
        let none = Stacks::default();
        let tree = self.replay.stacks().unwrap_or(&none);
        let sure = Sure {
            addresses: why.verified.addresses,
            matched: why.verified.matched,
            not_recorded: not_recorded(asked, report, analysis, &self.outline),
            python: why.trace.python.clone(),
            release: why.trace.release.clone(),
            command: asked.command.clone(),
            stacks: asked.frames,
            version: asked.version.clone(),
        };
        let parts = Parts { outline: &self.outline, ledger: &analysis.ledger, census, peak, shares: &shares, tree };
        Still::of(&parts, &mut sites, why, summary, sure, MOST_SITES_OF_PAGE)
    }
}

/// What is missing from a page, in words.
fn not_recorded(asked: &Asked, report: &Report, analysis: &Analysis, outline: &Outline) -> Vec<String> {
    let mut found = report.remarks.clone();
    found.extend(asked.failed.iter().map(|why| format!("the recorder could not write more: {why}")));
    let notes = [
        (outline.hooks_lost != 0, "calls of domains whose allocators were replaced in the program"),
        (!outline.ended, "the end of the process: it did not end in an orderly way, or is still running"),
        (asked.frames == 0, "stacks: which lines made what cannot be told"),
        (outline.samples.is_empty(), "how much memory was resident"),
        (!analysis.others.is_empty(), "what interpreters with allocators of their own hold"),
        (true, "memory that was asked for from neither Python's allocators nor its arenas, such as a C library's own buffers"),
    ];
    found.extend(notes.into_iter().filter(|(is_so, _)| *is_so).map(|(_, text)| text.to_string()));
    found
}

/// In words, that the recording has no end, if the moment is its last event.
fn cut_off(asked: &Asked, outline: &Outline, event: u64) -> Option<String> {
    let is_last = event + 1 >= outline.events && !outline.ended;
    let why = asked.failed.as_ref().map(|why| format!("the recorder could not write more ({why})"));
    let why = why.unwrap_or_else(|| "the process was killed, or left in a way that cannot be seen, or still runs".into());
    is_last.then(|| format!("The recording has no end: {why}. The last calls may be missing."))
}

impl Moments {
    /// The census of the moment, and that of the peak if it was before.
    fn censuses(self, analysis: &Analysis) -> (&Census, Option<&Census>) {
        let Some(census) = analysis.census_of(self.asked) else { unreachable!("a moment was asked for") };
        (census, self.peak.and_then(|peak| analysis.census_of(peak)))
    }
}

/// Whether the whole process was recorded.
fn is_complete(asked: &Asked, outline: &Outline) -> bool {
    asked.failed.is_none() && outline.hooks_lost == 0 && outline.ended && !outline.truncated
}
