//! The trimmer in real interpreters: what it gives back, that nothing else changes, and where it does nothing.
#![cfg(target_os = "linux")]

mod common;

use common::trim::{RESIDENT, Trimmed, can_be_trimmed};
use common::{Run, pythons};
use obmalloc_trace::format::{Event, Note};
use std::collections::BTreeSet;

/// A million tuples; every 1000th stays.
const TUPLES: &str = "kept = [(n, n + 1) for n in range(1_000_000)][::1000]\n";

#[test]
fn pages_of_empty_pools_are_given_back_when_the_program_asks() {
    let script = format!(
        "{RESIDENT}{TUPLES}
import sys
before = resident()
sys.audit('obmalloc.trim')
print(before - resident())
assert kept == [(n, n + 1) for n in range(0, 1_000_000, 1000)]
"
    );
    for python in pythons() {
        let run = Trimmed::of(python, &script, "asked").succeeded();
        let given: i64 = run.stdout().trim().parse().expect("a number");
        let end = run.end();
        if can_be_trimmed(python) {
            assert!((60 << 20..90 << 20).contains(&given), "3.{}: {given}", python.minor);
            let said = end.number("poolBytes") + end.number("mallocBytes");
            assert!(said.abs_diff(given as u64) < 2 << 20, "3.{}: {said} of {given}", python.minor);
            assert_eq!((end.number("trims"), end.off()), (1, None));
            assert!(end.number("slices") > 1, "3.{}", python.minor);
        } else {
            assert!(given.abs() < 1 << 20, "3.{}: {given}", python.minor);
            assert!(end.off().is_some_and(|reason| reason.contains("expected 3.10 to 3.15")), "3.{}", python.minor);
        }
    }
}

#[test]
fn results_and_statistics_are_what_they_would_be() {
    let script = format!(
        "{TUPLES}
import json, sys
def look():
    print('look', sys.getallocatedblocks(), sep='\\n', file=sys.stderr)
    sys._debugmallocstats()
def pair(event):
    look(), sys.audit(event), look()
for _ in range(20): pair('obmalloc.trip')
for _ in range(3):
    pair('obmalloc.' + sys.argv[1])
    made = [(n, str(n)) for n in range(100_000)]
    made = json.loads(json.dumps(made))[::100]
    print(hash(str(made)))
"
    );
    for python in pythons().iter().filter(|python| can_be_trimmed(python)) {
        let with =
            |event: &str| Trimmed::with(python, &["-S", "-c", &script, event], "asked", &[("PYTHONHASHSEED", "0")]).succeeded();
        let (trimmed, not) = (with("trim"), with("trip"));
        assert_eq!((trimmed.end().number("trims"), not.end().number("trims")), (3, 0));
        assert_eq!(trimmed.stdout(), not.stdout());
        // The first 40 looks are left out: meanwhile CPython makes what it makes only once. Of each pair, the first look is from before the trim
        // and the second from after it.
        let text = trimmed.stderr();
        let looks: Vec<&str> = text.split("look\n").skip(41).collect();
        assert_eq!(looks.len(), 6);
        for pair in looks.chunks(2) {
            let first = pair[0].lines().zip(pair[1].lines()).find(|(one, other)| one != other);
            assert_eq!((first, pair[0].len()), (None, pair[1].len()), "3.{}", python.minor);
            assert!(pair[0].lines().count() > 60, "3.{}", python.minor);
        }
    }
}

#[test]
fn memory_of_pools_that_were_given_back_is_used_again() {
    let script = format!(
        "{TUPLES}
import json, sys
text = json.dumps([{{'a': n, 'b': str(n), 'c': [n, n / 3]}} for n in range(3000)])
for _ in range(20):
    sys.audit('obmalloc.trim')
    made = json.loads(text)
    assert made[2999] == {{'a': 2999, 'b': '2999', 'c': [2999, 2999 / 3]}}
    del made[::2]
    other = [bytes(n % 512) for n in range(30_000)]
    assert not any(any(block) for block in other)
    del other, made
"
    );
    for python in pythons().iter().filter(|python| can_be_trimmed(python)) {
        let end = Trimmed::of(python, &script, "asked").succeeded().end();
        let (pools, returned) = (end.number("pools"), end.number("returnedPools"));
        assert!(returned > 500 && pools > returned, "3.{}: {returned} of {pools}", python.minor);
    }
}

#[test]
fn nothing_is_done_where_pymalloc_is_not_what_serves() {
    let script = "import sys; sys.audit('obmalloc.trim'); print(sys.getallocatedblocks() >= 0)";
    for python in pythons().iter().filter(|python| can_be_trimmed(python)) {
        for (variable, value) in [("PYTHONMALLOC", "malloc"), ("PYTHONMALLOC", "debug"), ("PYTHONDEVMODE", "1")] {
            let run = Trimmed::with(python, &["-c", script], "log,every=20ms,above=0", &[(variable, value)]).succeeded();
            assert_eq!(run.end().number("trims"), 0);
            let reason = run.end().off().expect("a reason");
            assert!(reason.contains(variable), "3.{}: {reason}", python.minor);
            assert_eq!(run.stderr().matches("nothing was given back").count(), 1, "{}", run.stderr());
        }
        // These choose the allocators that a release build has anyway.
        for value in ["pymalloc", "default", ""] {
            let run = Trimmed::with(python, &["-c", script], "asked", &[("PYTHONMALLOC", value)]).succeeded();
            assert_eq!((run.end().number("trims"), run.end().off()), (1, None), "3.{}: {value}", python.minor);
        }
        let run = Trimmed::with(python, &["-X", "tracemalloc", "-c", script], "asked", &[]).succeeded();
        assert_eq!((run.end().number("trims"), run.end().off()), (1, None), "3.{}: tracemalloc", python.minor);
    }
}

#[test]
fn word_that_is_no_option_is_said_and_nothing_is_done() {
    for python in pythons() {
        let run = Trimmed::of(python, "import sys; sys.audit('obmalloc.trim'); print(7)", "every=1h,idle").succeeded();
        assert_eq!(run.stdout(), "7\n");
        let reason = run.end().off().expect("a reason");
        assert!(reason.contains("expected every=") && reason.ends_with("but got every=1h"), "{reason}");
        assert!(run.stderr().contains(&reason), "{}", run.stderr());
    }
}

#[test]
fn nothing_is_said_unless_a_log_is_wanted() {
    for python in pythons() {
        let script = format!("{TUPLES}import sys; sys.audit('obmalloc.trim')");
        assert_eq!(Trimmed::of(python, &script, "asked").succeeded().stderr(), "");
        let log = Trimmed::of(python, &script, "asked,log").succeeded().stderr();
        let lines = if can_be_trimmed(python) { 2 } else { 1 };
        assert_eq!(log.lines().filter(|line| line.starts_with("obmalloc trim [")).count(), lines, "{log}");
    }
}

#[test]
fn pools_that_a_trim_emptied_are_notes_of_a_recording() {
    let script = format!(
        "{TUPLES}
import sys
sys.audit('obmalloc.mark', 'before')
sys.audit('obmalloc.trim')
sys.audit('obmalloc.mark', 'after')
kept = [(n, n + 1) for n in range(100_000)]
"
    );
    for python in pythons() {
        let run = Run::of(python, &script, &[("OBMALLOC_TRIM", "asked")]).succeeded();
        let events = run.trace().events;
        let place = |name: &str| {
            events.iter().position(|event| matches!(event, Event::Note(Note::Mark(mark)) if mark == name)).expect("a mark")
        };
        let pools_of = |events: &[Event]| -> Vec<u64> {
            let notes = events
                .iter()
                .filter_map(|event| if let Event::Note(Note::Trim(pools)) = event { Some(pools.clone()) } else { None });
            notes.flatten().collect()
        };
        let pools = pools_of(&events[place("before")..place("after")]);
        assert_eq!(pools.len(), pools_of(&events).len());
        if !can_be_trimmed(python) {
            assert!(pools.is_empty());
            continue;
        }
        assert!(pools.len() > 4000, "3.{}: {}", python.minor, pools.len());
        assert_eq!(pools.iter().collect::<BTreeSet<_>>().len(), pools.len(), "each once");
        let arenas: Vec<u64> = events
            .iter()
            .filter_map(|event| if let Event::ArenaAlloc { size: 0x10_0000, result, .. } = event { Some(*result) } else { None })
            .collect();
        let in_arena = |pool: u64| arenas.iter().any(|&arena| arena <= pool && pool + 0x4000 <= arena + 0x10_0000);
        assert!(pools.iter().all(|&pool| pool % 0x4000 == 0 && in_arena(pool)));
        // These pools are empty: no live block lies in one.
        let mut live = BTreeSet::new();
        for event in &events[..place("before")] {
            match *event {
                Event::Malloc { result, .. } | Event::Calloc { result, .. } => drop(live.insert(result)),
                Event::Realloc { address, result, .. } if result != 0 => {
                    live.remove(&address);
                    live.insert(result);
                }
                Event::Free { address, .. } => drop(live.remove(&address)),
                _ => {}
            }
        }
        for pool in pools {
            assert_eq!(live.range(pool..pool + 0x4000).next(), None, "3.{}: {pool:#x}", python.minor);
        }
        // Without a trim no pool is recorded.
        let run = Run::of(python, &script, &[]).succeeded();
        assert!(pools_of(&run.trace().events).is_empty());
    }
}
