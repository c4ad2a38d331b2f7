//! An inquiry: outline, replay, answer, in slices.

use std::fmt;

use obmalloc::profile::Profile;
use serde::{Deserialize, Serialize};

use super::pinning::Pinning;
use super::rules::{self, Facts};
use super::shares::Shares;
use super::sites::Sites;
use super::why::{self, At, Bounded, Pinned, Totals, Verified, Why};
use super::{Analysis, Census, words};
use crate::format::{FormatError, Reader};
use crate::moments::{Found, Moment, NoMoment, Outline, Outlining};
use crate::replay::{Replay, ReplayError, Report};

/// Most sites and arenas that are told.
const MOST_SITES: usize = 10_000;
const MOST_ARENAS: usize = 20_000;

/// What is asked, and what the header says.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Asked {
    /// The trace's path, and the CPython that was recorded.
    pub path: String,
    #[allow(missing_docs, reason = "said above")]
    pub python: String,
    /// The moment: see [`Moment`].
    pub at: String,
    /// Most frames of a stack; 0 where there are none.
    pub frames: usize,
    /// Why the recorder had to stop, if it had to.
    pub failed: Option<String>,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum InquiryError {
    /// The trace cannot be read or replayed.
    Replay(ReplayError),
    /// No moment was asked for.
    NoMoment(NoMoment),
    /// The trace has no such moment.
    NotThere(String),
}

impl fmt::Display for InquiryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replay(error) => error.fmt(f),
            Self::NoMoment(error) => error.fmt(f),
            Self::NotThere(text) => f.write_str(text),
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
}

struct Course {
    outline: Outline,
    replay: Replay<(Report, Analysis)>,
    is_over: bool,
}

/// The answer, and how it is said.
#[derive(Debug, Serialize)]
pub struct Answered {
    /// The data.
    pub why: Why,
    /// The words, a line each.
    pub summary: Vec<String>,
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
        match &mut self.state {
            State::Outlining(outlining) => {
                if !outlining.step(count)? {
                    let outline = outlining.outline().clone();
                    self.state = State::Replaying(Box::new(self.course(outline)?));
                }
                Ok(true)
            }
            State::Replaying(course) => {
                course.is_over = course.is_over || !course.replay.step(count)?;
                Ok(!course.is_over)
            }
        }
    }

    fn course(&self, outline: Outline) -> Result<Course, InquiryError> {
        let found = find(&outline, &self.asked)?;
        let mut moments = vec![found.event];
        moments.extend(outline.find(&Moment::Peak).map(|peak| peak.event).filter(|&event| event < found.event));
        let analysis = Analysis::new(self.profile.geometry(), moments, &outline.marks, true);
        let replay = Replay::with_stacks((self.open)()?, self.profile, (Report::default(), analysis))?;
        Ok(Course { outline, replay, is_over: false })
    }

    /// How much has been read of how much, in bytes.
    pub fn progress(&self) -> (u64, u64) {
        match &self.state {
            State::Outlining(outlining) => outlining.progress(),
            State::Replaying(course) => course.replay.progress(),
        }
    }

    /// The answer, when there is nothing left to look at.
    ///
    /// # Errors
    /// When something is.
    pub fn answer(self) -> Result<Answered, InquiryError> {
        match self.state {
            State::Replaying(course) if course.is_over => Ok(course.answer(self.asked, self.profile)),
            _ => Err(InquiryError::NotThere("expected an inquiry that has come to its end".into())),
        }
    }
}

/// The moment that is asked for.
fn moment(asked: &Asked) -> Result<Moment, InquiryError> {
    if asked.at.is_empty() { Ok(Moment::End) } else { asked.at.parse().map_err(InquiryError::NoMoment) }
}

fn find(outline: &Outline, asked: &Asked) -> Result<Found, InquiryError> {
    let moment = moment(asked)?;
    outline.find(&moment).ok_or_else(|| {
        let mut names: Vec<&str> = outline.marks.iter().map(|mark| mark.name.as_str()).collect();
        names.dedup();
        names.truncate(10);
        let marks = if names.is_empty() { "no marks".into() } else { format!("the marks {}", names.join(", ")) };
        InquiryError::NotThere(format!(
            "expected a moment of the trace, but it has no {}: it has {} events and {marks}",
            asked.at, outline.events
        ))
    })
}

impl Course {
    fn answer(mut self, asked: Asked, profile: &'static Profile) -> Answered {
        let held = self.replay.arenas();
        let last = self.replay.watcher().0.events.saturating_sub(1);
        self.replay.watcher_mut().1.end(last, &held);
        let analysis = &self.replay.watcher().1;
        let (census, peak) = censuses(analysis);
        let mut sites = Sites::new(asked.frames);
        let none = crate::stacks::Stacks::default();
        let tree = self.replay.stacks().unwrap_or(&none);
        let shares = Shares::of(census, &mut sites, tree);
        let pinned = Pinned::of(census);
        let pinning = Pinning::of(census, peak, &shares, pinned, &mut sites, tree);
        let survivors = pinning.as_ref().map(|pinning| pinning.survivors(&analysis.ledger, &shares, &mut sites, tree));
        let anew = survivors.and_then(|blocks| self.replay.make_anew(&blocks));

        let (report, analysis) = self.replay.watcher();
        let tree = self.replay.stacks().unwrap_or(&none);
        let (census, peak) = censuses(analysis);
        let sample = self.outline.sample(census.event);
        let totals = Totals::of(census, sample);
        let facts = Facts {
            asked: &asked,
            outline: &self.outline,
            analysis,
            report,
            census,
            peak,
            shares: &shares,
            tree,
            totals,
            sample,
            pinning: pinning.as_ref(),
            anew: anew.map(|arenas| arenas as u64),
        };
        let findings = rules::find(&facts, &mut sites);
        let why = Why {
            schema: "obmalloc.why/1",
            trace: why::trace(
                asked.path.clone(),
                asked.python.clone(),
                profile.release().into(),
                is_complete(&asked, report, &self.outline),
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
            sites: why::sites(&shares, &sites, MOST_SITES),
            arenas: why::arenas(census, &shares, MOST_ARENAS, MOST_SITES),
            bounded: Bounded {
                sites: (shares.sites.len().min(MOST_SITES), shares.sites.len()),
                arenas: (census.arenas.len().min(MOST_ARENAS), census.arenas.len()),
            },
            greedy: why::greedy(census),
            findings,
        };
        Answered { summary: words::summary(&why), why }
    }
}

/// The census of the moment, and that of the peak if it was before.
fn censuses(analysis: &Analysis) -> (&Census, Option<&Census>) {
    match &analysis.censuses[..] {
        [peak, census, ..] => (census, Some(peak)),
        [census] => (census, None),
        [] => unreachable!("a moment was asked for"),
    }
}

/// Whether the whole process was recorded.
fn is_complete(asked: &Asked, report: &Report, outline: &Outline) -> bool {
    asked.failed.is_none() && report.hooks_lost == 0 && outline.ended && !outline.truncated
}
