//! The watchers of an inquiry's replay: all of them up to the moment; after it only the film, which covers the whole recording.

#![forbid(unsafe_code)]

use std::ops::ControlFlow;

use super::Analysis;
use super::film::Film;
use crate::replay::Report;
use crate::watch::{Fate, Seen, Watcher};
use crate::what_if::CallsWriter;

/// The watcher.
pub struct Onlookers {
    pub report: Report,
    pub analysis: Analysis,
    /// For a page.
    pub film: Option<Film>,
    /// For other settings that are to be tried.
    pub calls: Option<CallsWriter>,
    /// Whether the moment has been looked at.
    pub is_past: bool,
}

impl Watcher for Onlookers {
    #[inline]
    fn see(&mut self, seen: &Seen<'_>) -> ControlFlow<()> {
        let go_on = if self.is_past {
            if seen.fate != Fate::Below {
                self.analysis.ledger.see(seen);
            }
            ControlFlow::Continue(())
        } else {
            // What has failed there is said when the calls are asked for.
            let _ = self.calls.as_mut().map(|calls| calls.see(seen));
            let report = self.report.see(seen);
            let analysis = self.analysis.see(seen);
            if report.is_break() { report } else { analysis }
        };
        if let Some(film) = &mut self.film {
            film.see(seen, &self.analysis.ledger);
        }
        go_on
    }

    fn trace_ends(&mut self, truncated: bool) {
        if !self.is_past {
            self.report.trace_ends(truncated);
        }
    }

    fn stops(&mut self) {
        self.report.stops();
    }
}
