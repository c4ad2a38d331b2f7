//! Compares the census with the engine's own statistics, at many moments of real recordings.

use std::ops::ControlFlow;

use obmalloc::Stats;
use obmalloc::profile::{self, Profile};
use obmalloc_trace::analysis::{Analysis, Census};
use obmalloc_trace::format::{Event, Note, Reader};
use obmalloc_trace::moments::Outline;
use obmalloc_trace::replay::{Replay, Report};
use obmalloc_trace::watch::{Fate, Seen, Watcher};

const RELEASES: [(&str, &Profile); 6] = [
    ("3.8", &profile::V3_8),
    ("3.9", &profile::V3_9),
    ("3.10", &profile::V3_10),
    ("3.11", &profile::V3_11),
    ("3.12", &profile::V3_12),
    ("3.13", &profile::V3_13),
];

fn golden(release: &str) -> Reader<'static> {
    let path = format!("{}/../../__test__/golden/{release}.trace", env!("CARGO_MANIFEST_DIR"));
    Reader::of(std::fs::File::open(path).expect("a golden trace"), 0).expect("a trace")
}

/// Keeps the engine's statistics at each moment, and the last ones that were recorded. If the event of a moment is inside a call, they are taken
/// after the next event that is not.
struct Engine {
    moments: Vec<u64>,
    stats: Vec<Stats>,
    recorded: Option<(u64, String)>,
}

impl Watcher for Engine {
    fn see(&mut self, seen: &Seen<'_>) -> ControlFlow<()> {
        if let Event::Note(Note::Stats(text)) = seen.event {
            self.recorded = Some((seen.operation, text.clone()));
        }
        while seen.fate != Fate::Below && self.moments.get(self.stats.len()).is_some_and(|&moment| moment <= seen.operation) {
            self.stats.push(seen.stats());
        }
        ControlFlow::Continue(())
    }
}

/// The bytes of a line of `sys._debugmallocstats()`.
fn bytes_of(stats: &str, line: &str) -> u64 {
    let found = stats.lines().find(|found| found.contains(line)).unwrap_or_else(|| panic!("no {line:?} in {stats}"));
    found.rsplit('=').next().expect("a number").trim().replace(',', "").parse().expect("a number")
}

fn assert_equal(census: &Census, stats: &Stats, what: &str) {
    assert_eq!(census.arenas.len(), stats.arenas, "{what}");
    for (class, (counted, engine)) in census.classes.iter().zip(&stats.classes).enumerate() {
        let (pools, blocks, free) = (counted.pools as usize, counted.blocks as usize, counted.free_blocks as usize);
        assert_eq!((pools, blocks, free), (engine.pools, engine.blocks_in_use, engine.avail_blocks), "{what}, class {class}");
    }
    assert_eq!(census.free_pools(), (stats.unused_pools * stats.geometry.pool_size) as u64, "{what}");
    assert_recorded(census, &stats.to_string(), what);
}

fn assert_recorded(census: &Census, stats: &str, what: &str) {
    assert_eq!(census.live().bytes, bytes_of(stats, "# bytes in allocated blocks"), "{what}");
    assert_eq!(census.free_in_pools(), bytes_of(stats, "# bytes in available blocks"), "{what}");
    assert_eq!(census.free_pools(), bytes_of(stats, "unused pools *"), "{what}");
    let rounding = ["# bytes lost to pool headers", "# bytes lost to quantization", "# bytes lost to arena alignment"];
    assert_eq!(census.rounding(), rounding.iter().map(|line| bytes_of(stats, line)).sum::<u64>(), "{what}");
    assert_eq!(census.held(), bytes_of(stats, "bytes/arena"), "{what}");
    let parts = census.live().bytes + census.free_in_pools() + census.free_pools() + census.rounding();
    assert_eq!(parts, census.held(), "{what}: the parts are the whole");
    assert!(census.needed() <= census.held(), "{what}");
    assert!(census.trimmable() <= census.free_pools(), "{what}");
}

#[test]
fn census_is_the_engines_and_the_recorded_processs_own_at_every_moment() {
    for (release, profile) in RELEASES {
        let events = Outline::read(vec![golden(release)]).expect("undamaged").events;
        // Every event of the beginning, where the first arenas are taken. After that a prime number of events apart, so that moments fall into
        // all kinds of events.
        let moments: Vec<u64> = (0..events.min(300)).chain((0..events).step_by(1009)).chain([events - 1]).collect();
        let analysis = Analysis::new(profile.geometry(), moments.clone(), None, &[], false);
        let mut sorted = moments;
        sorted.sort_unstable();
        sorted.dedup();
        let engine = Engine { moments: sorted.clone(), stats: Vec::new(), recorded: None };
        let mut replay = Replay::new(vec![golden(release)], profile, (Report::default(), (analysis, engine))).expect("a heap");
        replay.run().expect("undamaged");
        let (report, (analysis, engine)) = replay.into_watcher();
        assert!(report.is_exact(), "{release}");
        assert!(engine.stats.len() > 300 && analysis.censuses().len() == engine.stats.len(), "{release}");
        for (at, (census, stats)) in sorted.iter().zip(analysis.censuses().iter().zip(&engine.stats)) {
            assert_equal(census, stats, &format!("{release} at event {at}"));
        }
        let (at, text) = engine.recorded.expect("recorded statistics");
        let analysis = Analysis::new(profile.geometry(), vec![at], None, &[], true);
        let mut replay = Replay::new(vec![golden(release)], profile, analysis).expect("a heap");
        replay.run().expect("undamaged");
        assert_recorded(&replay.into_watcher().censuses()[0], &text, &format!("{release}, as recorded"));
    }
}

#[test]
fn blocks_made_anew_take_no_more_arenas_than_packing_and_what_is_held_besides() {
    // Without blocks to make anew, nothing changes.
    let mut replay = Replay::new(vec![golden("3.13")], &profile::V3_13, Report::default()).expect("a heap");
    replay.stop_at(100_000);
    replay.run().expect("undamaged");
    let held = replay.arenas().len();
    assert!(held > 0);
    assert_eq!(replay.make_anew(&[]), Some(held));
    assert!(!replay.step(1).expect("undamaged"), "the replay is over with that");
}
