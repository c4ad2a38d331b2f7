//! Moments of a trace: reading them from a text, and finding them in one reading of the trace.

#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;

use rustc_hash::FxHashMap;
use serde::Serialize;

use crate::clock::{Clock, Memory};
use crate::format::{Event, FormatError, Note, Reader};

/// A moment, as it is asked for.
#[derive(Clone, PartialEq, Debug, Default)]
pub enum Moment {
    /// The last event before finalization began; where it did not begin, the last one.
    #[default]
    End,
    /// The first at which most bytes of arenas were held.
    Peak,
    /// The mark of this name, the first of them being number 1. Without a number the last one.
    Mark(String, Option<usize>),
    /// The event of this number.
    Event(u64),
    /// The last event up to this many seconds.
    Time(f64),
}

/// A text that is no moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NoMoment(String);

impl fmt::Display for NoMoment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected end, peak, mark:NAME, mark:NAME#2, event:N or time:SECONDS, but got {:?}", self.0)
    }
}

impl std::error::Error for NoMoment {}

/// Why a trace does not have a moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NotThere {
    /// It has no event, so it has no moment at all.
    NoEvent,
    /// It has others: which moment is missing, and what there is, in words.
    NoSuch(String),
}

impl fmt::Display for NotThere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoEvent => f.write_str("the trace holds no event: there is nothing to look at"),
            Self::NoSuch(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for NotThere {}

impl FromStr for Moment {
    type Err = NoMoment;

    fn from_str(text: &str) -> Result<Self, NoMoment> {
        let moment = match text.split_once(':') {
            None if text == "end" => Some(Self::End),
            None if text == "peak" => Some(Self::Peak),
            Some(("mark", name)) => {
                let numbered =
                    name.rsplit_once('#').and_then(|(name, number)| Some((name, number.parse().ok().filter(|&n| n > 0)?)));
                Some(
                    numbered
                        .map_or_else(|| Self::Mark(name.into(), None), |(name, number)| Self::Mark(name.into(), Some(number))),
                )
            }
            Some(("event", number)) => number.parse().ok().map(Self::Event),
            Some(("time", seconds)) => seconds.parse().ok().filter(|&seconds: &f64| seconds >= 0.0).map(Self::Time),
            _ => None,
        };
        moment.ok_or_else(|| NoMoment(text.into()))
    }
}

/// A mark.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[allow(missing_docs, reason = "a mark's name, and when it was made")]
pub struct Mark {
    pub name: String,
    pub event: u64,
    pub seconds: Option<f64>,
}

/// A sample of memory, and the event before which it was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "as in `Clock`")]
pub struct Sample {
    pub event: u64,
    pub micros: u64,
    pub memory: Memory,
}

/// The outline of a trace, which needs no replay.
#[derive(Clone, Debug, Default)]
pub struct Outline {
    /// Number of events.
    pub events: u64,
    /// Where the clock was looked at: the event that came next, and the time in microseconds.
    pub ticks: Vec<(u64, u64)>,
    /// The samples of memory: of those between two events, the last one.
    pub samples: Vec<Sample>,
    /// How many there were in all.
    sampled: u64,
    /// The marks.
    pub marks: Vec<Mark>,
    /// The note that finalization begins, if it does; the last one where interpreters were made and ended one after the other.
    pub finalization: Option<u64>,
    /// The notes that the process is about to fork.
    pub forks: Vec<u64>,
    /// Most bytes of arenas that were held, and the call with which they were for the first time.
    pub peak: (u64, u64),
    /// The arenas: the call that each was taken for, and the event that gave it back, if one did.
    pub arenas: Vec<(u64, Option<u64>)>,
    /// Whether the file ended inside a block.
    pub truncated: bool,
    /// Whether the process ended in an orderly way, or went on as another program, and nothing came after that.
    pub ended: bool,
    /// Domains whose calls the recorder lost sight of: bit 0 raw, bit 1 mem, bit 2 obj.
    pub hooks_lost: u8,
}

/// A moment that was found.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Found {
    /// The last event that has happened by then.
    pub event: u64,
    /// When that was, where it is known.
    pub seconds: Option<f64>,
}

/// A reading that finds what happened when, a slice at a time.
pub struct Outlining<'a> {
    segments: VecDeque<Reader<'a>>,
    /// Bytes of all segments.
    bytes: u64,
    outline: Outline,
    /// The interpreter of the next calls, and bytes of arenas that are held.
    interpreter: u64,
    held: u64,
    /// By address: which of the outline's arenas is there.
    arenas: FxHashMap<u64, usize>,
    /// Whether the call that the last arena was taken for is still to come: it stands behind what it asks for.
    is_in_call: bool,
}

impl<'a> Outlining<'a> {
    /// Reads `segments`, one after the other, as [`Replay`](crate::replay::Replay) takes them.
    pub fn new(segments: Vec<Reader<'a>>) -> Self {
        let segments: VecDeque<_> = segments.into_iter().map(Reader::without_stacks).collect();
        let (bytes, arenas) = (segments.iter().map(|reader| reader.progress().1).sum(), FxHashMap::default());
        Self { segments, bytes, outline: Outline::default(), interpreter: 0, held: 0, arenas, is_in_call: false }
    }

    /// Reads at most `count` events; false when there is nothing left to read.
    ///
    /// # Errors
    /// When the trace cannot be read any further.
    pub fn step(&mut self, count: usize) -> Result<bool, FormatError> {
        for _ in 0..count {
            let Some(reader) = self.segments.front_mut() else { return Ok(false) };
            if let Some(event) = reader.next() {
                let event = event?;
                self.outline.see(&event, reader.clock());
                self.see_arenas(&event);
                continue;
            }
            self.outline.truncated = reader.truncated();
            self.interpreter = 0;
            if let (Some(done), Some(next)) = (self.segments.pop_front(), self.segments.front_mut()) {
                next.continue_from(done);
            }
        }
        Ok(!self.segments.is_empty())
    }

    #[inline]
    fn see_arenas(&mut self, event: &Event) {
        let (outline, is_main) = (&mut self.outline, self.interpreter == 0);
        match event {
            Event::ArenaAlloc { nested: true, size, result } if *result != 0 && is_main => {
                let now = outline.events - 1;
                self.arenas.insert(*result, outline.arenas.len());
                outline.arenas.push((now, None));
                self.is_in_call = true;
                self.held += size;
                if self.held > outline.peak.0 {
                    outline.peak = (self.held, now);
                }
            }
            Event::ArenaFree { nested: true, size, address } if is_main => {
                self.held = self.held.saturating_sub(*size);
                if let Some(arena) = self.arenas.remove(address) {
                    outline.arenas[arena].1 = Some(outline.events - 1);
                }
            }
            Event::Note(Note::Interpreter(id)) => self.interpreter = *id,
            _ if self.is_in_call && event.is_pymallocs() && !event.is_nested() => {
                let now = outline.events - 1;
                if let Some((taken, _)) = outline.arenas.last_mut() {
                    if outline.peak.1 == *taken {
                        outline.peak.1 = now;
                    }
                    *taken = now;
                }
                self.is_in_call = false;
            }
            _ => {}
        }
    }

    /// Bytes of all segments that have been read, and bytes in all.
    pub fn progress(&self) -> (u64, u64) {
        let left: u64 = self.segments.iter().map(Reader::left).sum();
        (self.bytes.saturating_sub(left), self.bytes)
    }

    /// What was found so far.
    pub fn outline(&self) -> &Outline {
        &self.outline
    }
}

impl Outline {
    /// Reads all of `segments`: see [`Outlining`].
    ///
    /// # Errors
    /// When the trace cannot be read.
    pub fn read(segments: Vec<Reader<'_>>) -> Result<Self, FormatError> {
        let mut outlining = Outlining::new(segments);
        while outlining.step(1 << 20)? {}
        Ok(outlining.outline)
    }

    #[inline]
    fn see(&mut self, event: &Event, clock: &Clock) {
        let number = self.events;
        self.events += 1;
        if clock.micros != self.ticks.last().map_or(0, |tick| tick.1) {
            self.ticks.push((number, clock.micros));
        }
        if let Some(memory) = clock.memory
            && clock.samples != self.sampled
        {
            self.sampled = clock.samples;
            self.samples.push(Sample { event: number, micros: clock.micros, memory });
        }
        self.ended = false;
        match event {
            Event::Note(Note::End | Note::Exec) => self.ended = true,
            Event::Note(Note::HooksLost(domains)) => self.hooks_lost |= domains,
            Event::Note(Note::Finalization) => self.finalization = Some(number),
            Event::Note(Note::Fork) => self.forks.push(number),
            Event::Note(Note::Mark(name)) => {
                self.marks.push(Mark { name: name.clone(), event: number, seconds: seconds(clock.micros) });
            }
            _ => {}
        }
    }

    /// When event `number` was made, as the clock was last looked at before it.
    pub fn seconds(&self, number: u64) -> Option<f64> {
        let after = self.ticks.partition_point(|tick| tick.0 <= number);
        after.checked_sub(1).and_then(|at| seconds(self.ticks[at].1))
    }

    /// When the clock was first looked at from event `number` on.
    pub fn next_seconds(&self, number: u64) -> Option<f64> {
        let before = self.ticks.partition_point(|tick| tick.0 < number);
        self.ticks.get(before).and_then(|tick| seconds(tick.1))
    }

    /// Seconds from the first event to the last.
    pub fn duration(&self) -> Option<f64> {
        self.ticks.last().and_then(|tick| seconds(tick.1))
    }

    /// The last sample of memory up to event `number`.
    pub fn sample(&self, number: u64) -> Option<&Sample> {
        let after = self.samples.partition_point(|sample| sample.event <= number);
        after.checked_sub(1).map(|at| &self.samples[at])
    }

    /// The event, not after `until`, at which the most arenas were held. Only the time after nine tenths of the arenas held at `until` had been
    /// taken counts. Of several such events, the first. A program may have given back what it held at an earlier peak, and taken arenas anew.
    pub fn burst(&self, until: u64) -> Option<u64> {
        let arenas = || self.arenas.iter().filter(|(taken, _)| *taken <= until);
        let is_held = |given: &Option<u64>| given.is_none_or(|given| given > until);
        // They were taken in order.
        let held: Vec<u64> = arenas().filter(|(_, given)| is_held(given)).map(|(taken, _)| *taken).collect();
        let from = *held.get((held.len() * 9).div_ceil(10).checked_sub(1)?)?;
        let mut given: Vec<u64> = arenas().filter_map(|(_, given)| *given).filter(|&given| given <= until).collect();
        given.sort_unstable();
        let count_at = |(index, taken): (usize, u64)| (index + 1 - given.partition_point(|&given| given <= taken), taken);
        let counts = arenas().map(|(taken, _)| *taken).enumerate().map(count_at).filter(|&(_, taken)| taken >= from);
        counts.max_by_key(|&(count, taken)| (count, Reverse(taken))).map(|(_, taken)| taken)
    }

    /// The moment that is asked for. `None` when the trace has no such moment, as for a mark that was not made.
    pub fn find(&self, moment: &Moment) -> Option<Found> {
        let last = self.events.checked_sub(1)?;
        let event = match moment {
            Moment::End => self.finalization.map_or(Some(last), |note| note.checked_sub(1))?,
            Moment::Peak => (self.peak.0 > 0).then_some(self.peak.1)?,
            Moment::Mark(name, number) => {
                let mut named = self.marks.iter().filter(|mark| mark.name == *name);
                let mark = match number {
                    Some(number) => named.nth(number - 1),
                    None => named.next_back(),
                };
                // A mark's name may end like a number.
                let whole = || number.and_then(|number| self.marks.iter().rfind(|mark| mark.name == format!("{name}#{number}")));
                mark.or_else(whole)?.event
            }
            Moment::Event(number) => Some(*number).filter(|&number| number <= last)?,
            Moment::Time(seconds) => {
                let micros = (seconds * 1e6) as u64;
                let after = self.ticks.partition_point(|tick| tick.1 <= micros);
                // Where the clock was next looked at, it was later.
                let first_later = self.ticks.get(after).map_or(self.events, |tick| tick.0);
                (!self.ticks.is_empty()).then(|| first_later.saturating_sub(1))?
            }
        };
        Some(Found { event, seconds: self.seconds(event) })
    }

    /// As [`find`](Self::find), of a moment that was asked for as `text`.
    ///
    /// # Errors
    /// When the trace has no such moment.
    pub fn require(&self, moment: &Moment, text: &str) -> Result<Found, NotThere> {
        if self.events == 0 {
            return Err(NotThere::NoEvent);
        }
        self.find(moment).ok_or_else(|| {
            let mut names: Vec<&str> = self.marks.iter().map(|mark| mark.name.as_str()).collect();
            names.dedup();
            names.truncate(10);
            let marks =
                if names.is_empty() { "no marks".into() } else { format!("the marks {}", names.join(", ").escape_debug()) };
            let events = self.events;
            NotThere::NoSuch(format!("expected a moment of the trace, but it has no {text}: it has {events} events and {marks}"))
        })
    }
}

fn seconds(micros: u64) -> Option<f64> {
    (micros != 0).then_some(micros as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{BlockWriter, Domain, file_head};

    fn outline(write: impl FnOnce(&mut BlockWriter<'_>)) -> Outline {
        let mut bytes = [0; 4096];
        let mut block = BlockWriter::new(&mut bytes);
        write(&mut block);
        let trace = [&file_head("{}")[..], block.finish()].concat();
        Outline::read(vec![Reader::new(&trace).expect("a trace")]).expect("undamaged")
    }

    /// 0 and 1 arenas, 2 the call that asked for the last, 3 mark a, 4 arena gone, 5 mark a, 6 mark b#2, 7 to 9 finalization.
    fn sample() -> Outline {
        outline(|block| {
            block.time(1_000_000);
            block.arena_alloc(true, 1 << 20, 0x10_0000);
            block.arena_alloc(true, 1 << 20, 0x20_0000);
            block.malloc(Domain::Obj, false, 64, 0x20_0030);
            block.time(2_000_000);
            block.memory(&Memory { anonymous: 4096, ..Memory::default() });
            block.mark("a");
            block.arena_free(true, 1 << 20, 0x10_0000);
            block.time(3_000_000);
            block.mark("a");
            block.mark("b#2");
            block.finalization();
            block.free(Domain::Obj, false, 0);
            block.end();
        })
    }

    fn event(outline: &Outline, text: &str) -> Option<u64> {
        outline.find(&text.parse().expect("a moment")).map(|found| found.event)
    }

    #[test]
    fn moments_are_found() {
        let outline = sample();
        let of = |text| event(&outline, text);
        assert_eq!(of("end"), Some(6), "the last event before finalization");
        assert_eq!((of("peak"), outline.peak.0), (Some(2), 2 << 20), "the call that asked for the last arena");
        assert_eq!((of("mark:a"), of("mark:a#1"), of("mark:a#2"), of("mark:a#3")), (Some(5), Some(3), Some(5), None));
        assert_eq!((of("mark:b#2"), of("mark:c")), (Some(6), None));
        assert_eq!((of("event:3"), of("event:9"), of("event:10")), (Some(3), Some(9), None));
        assert_eq!((of("time:0.5"), of("time:1"), of("time:2.5"), of("time:99")), (Some(0), Some(2), Some(4), Some(9)));
        assert_eq!((outline.seconds(0), outline.seconds(4), outline.duration()), (Some(1.0), Some(2.0), Some(3.0)));
        assert_eq!(outline.sample(2), None);
        assert_eq!(outline.sample(6).map(|sample| (sample.event, sample.memory.anonymous)), Some((3, 4096)));
    }

    #[test]
    fn trace_without_time_or_finalization_has_an_end_all_the_same() {
        let outline = outline(|block| block.free(Domain::Obj, false, 0));
        assert_eq!(outline.find(&Moment::End), Some(Found { event: 0, seconds: None }));
        assert_eq!((event(&outline, "peak"), event(&outline, "time:1")), (None, None));
        assert_eq!(outline_of_nothing().find(&Moment::End), None);
    }

    #[test]
    fn burst_is_when_most_arenas_were_held_of_the_time_when_nine_of_ten_of_those_left_had_been_taken() {
        let of = |arenas: &[(u64, u64)], until| {
            let arenas = arenas.iter().map(|&(taken, given)| (taken, Some(given).filter(|&given| given > 0))).collect();
            Outline { arenas, ..Outline::default() }.burst(until)
        };
        assert_eq!(of(&[(1, 0), (2, 0), (3, 9), (4, 9)], 10), Some(4), "two have gone");
        assert_eq!(of(&[(1, 0), (2, 9), (3, 9), (4, 9), (12, 0), (13, 19)], 20), Some(13), "given back and taken anew");
        assert_eq!((of(&[(1, 0), (2, 9), (12, 0)], 5), of(&[(3, 0)], 2), of(&[], 2)), (Some(2), None, None));
        let mut many: Vec<(u64, u64)> = (1..=20).map(|taken| (taken, if taken % 5 == 0 { 30 } else { 0 })).collect();
        many.push((40, 0));
        assert_eq!(of(&many, 50), Some(20), "what is taken after the burst is not of it");
    }

    #[test]
    fn arenas_are_of_the_calls_that_they_are_taken_for() {
        assert_eq!(sample().arenas.len(), 2);
        assert_eq!(sample().arenas.last(), Some(&(2, None)));
    }

    #[test]
    fn of_samples_between_two_events_the_last_one_is_kept() {
        let outline = outline(|block| {
            for anonymous in 1..=100 {
                block.memory(&Memory { anonymous: anonymous * 1024, ..Memory::default() });
            }
            block.free(Domain::Obj, false, 0);
            block.free(Domain::Obj, false, 0);
        });
        assert_eq!(
            outline.samples.iter().map(|sample| (sample.event, sample.memory.anonymous)).collect::<Vec<_>>(),
            [(0, 102_400)]
        );
    }

    fn outline_of_nothing() -> Outline {
        outline(|_| {})
    }

    #[test]
    fn what_is_no_moment_is_refused_in_words() {
        for text in ["", "ende", "event:", "event:-1", "event:x", "time:x", "time:-1", "time:nan", "mark", "peak:1"] {
            let error = text.parse::<Moment>().expect_err(text).to_string();
            assert_eq!(error, format!("expected end, peak, mark:NAME, mark:NAME#2, event:N or time:SECONDS, but got {text:?}"));
        }
        assert_eq!("mark:a#0".parse(), Ok(Moment::Mark("a#0".into(), None)));
        assert_eq!("mark:".parse(), Ok(Moment::Mark(String::new(), None)));
    }
}
