//! Compares how much a trim would give back, as a recording says, with how much trims of the same program do give back.
#![cfg(target_os = "linux")]

mod common;

use std::fs::File;
use std::path::Path;

use common::trim::{RESIDENT, Trimmed, can_be_trimmed};
use common::{Python, Run, pythons};
use obmalloc::profile::Profile;
use obmalloc_trace::analysis::{Answered, Asked, Inquiry, Why};
use obmalloc_trace::format::Reader;

/// Bytes of a pool that a trim can give back. It may differ by a page.
const GIVEN: u64 = 12 << 10;
const PAGE: u64 = 4096;
/// With a fixed seed, sets and dicts are the same in each run.
const SEED: (&str, &str) = ("PYTHONHASHSEED", "0");

/// Programs that leave empty pools: of one size; of many sizes, dicts and text; of pools that were carved for several sizes one after the other.
const PROGRAMS: [&str; 3] = [
    "kept = [(n, n + 1) for n in range(150_000)][::1000]",
    "
import json
text = json.dumps([{'a': n, 'b': str(n), 'c': [n, n / 3]} for n in range(100)])
kept = [json.loads(text) for n in range(3000)][::300]",
    "
kept = []
for size in range(1, 480, 40):
    kept += [bytes(size) for n in range(20_000)][::1000]",
];

/// Runs the program with a trim between two marks, and prints by how many bytes resident memory fell.
fn script(program: &str) -> String {
    format!(
        "{RESIDENT}{program}
import sys
before = resident()
sys.audit('obmalloc.mark', 'before')
sys.audit('obmalloc.trim')
sys.audit('obmalloc.mark', 'after')
print(before - resident())
"
    )
}

fn why(run: &Run, python: &Python, at: &str) -> Why {
    let path = run.directory.join("trace");
    let open = move || Ok(vec![Reader::of(File::open(&path).expect("a trace"), 0)?]);
    let asked = Asked { path: "a.trace".into(), at: at.into(), frames: 64, ..Asked::default() };
    let version = run.trace().field("python").to_owned();
    let profile = Profile::of_version(&version).unwrap_or_else(|| panic!("3.{}: no release {version}", python.minor));
    let mut inquiry = Inquiry::new(asked, profile, Box::new(open)).expect("a moment");
    while inquiry.step(1 << 20).expect("readable") {}
    match inquiry.answer() {
        Some(Answered::Why { why, .. }) => *why,
        _ => panic!("expected an answer"),
    }
}

fn assert_near(foretold: u64, given: u64, what: &str) {
    let pools = foretold.div_ceil(GIVEN);
    assert!(
        foretold.abs_diff(given) <= pools * PAGE,
        "{what}: {foretold} bytes of {pools} pools were foretold, {given} were given"
    );
}

#[test]
fn trim_gives_what_a_recording_foretells() {
    for python in pythons() {
        for (number, program) in PROGRAMS.into_iter().enumerate() {
            let (script, what) = (script(program), format!("3.{}, program {number}", python.minor));
            let recorded = Run::of(python, &script, &[SEED]).succeeded();
            let before = why(&recorded, python, "mark:before");
            let foretold = before.totals.trimmable;
            assert_eq!(before.verified.addresses, before.verified.matched, "{what}");
            let finding = before.findings.iter().find(|finding| finding.rule == "trim");
            assert_eq!(finding.map_or(0, |finding| finding.saves), if can_be_trimmed(python) { foretold } else { 0 }, "{what}");
            if !can_be_trimmed(python) {
                assert_eq!(foretold, 0, "{what}");
                continue;
            }
            assert!(foretold > 4 << 20, "{what}: {foretold}");
            // The same program, not recorded.
            let trimmed = Trimmed::with(python, &["-c", &script], "asked", &[SEED]).succeeded();
            let end = trimmed.end();
            println!(
                "{what}: foretold {foretold}, given {} of {} pools, of C's malloc {}, {} less resident",
                end.number("poolBytes"),
                end.number("pools"),
                end.number("mallocBytes"),
                trimmed.stdout().trim()
            );
            assert_near(foretold, end.number("poolBytes"), &what);
            let resident: u64 = trimmed.stdout().trim().parse().expect("less is resident");
            assert_near(foretold + end.number("mallocBytes"), resident, &what);
        }
    }
}

/// Records and trims in one process. The two figures are nearer there, because the system puts arenas elsewhere in each run.
#[test]
fn trim_gives_what_its_own_recording_foretells_and_leaves_nothing() {
    for python in pythons().iter().filter(|python| can_be_trimmed(python)) {
        let what = format!("3.{}", python.minor);
        let run = Run::prepared(python, &["-c", &script(PROGRAMS[1])], |command| {
            let trace = command.get_envs().find_map(|(name, value)| (name == "OBMALLOC_TRACE").then_some(value).flatten());
            let report = Path::new(trace.expect("a trace is wanted")).with_file_name("report");
            command.env("OBMALLOC_TRIM", "asked").env("OBMALLOC_TRIM_REPORT", report);
        });
        let run = Trimmed(run.succeeded());
        let (before, after) = (why(&run.0, python, "mark:before"), why(&run.0, python, "mark:after"));
        assert_eq!(after.verified.addresses, after.verified.matched, "{what}");
        let (foretold, given) = (before.totals.trimmable, run.end().number("poolBytes"));
        println!("{what}: {foretold} foretold, {given} given, {} left", after.totals.trimmable);
        assert!(foretold > 4 << 20, "{what}: {foretold}");
        // A few blocks come and go between the mark and the trim, and between the trim and the other mark.
        assert!(foretold.abs_diff(given) <= 16 * GIVEN, "{what}: {foretold} were foretold, {given} were given");
        assert!(after.totals.trimmable <= 16 * GIVEN, "{what}: {} are left", after.totals.trimmable);
        assert_eq!(before.totals.held, after.totals.held, "{what}: arenas stay");
        assert!(!after.findings.iter().any(|finding| finding.rule == "trim"), "{what}");
    }
}
