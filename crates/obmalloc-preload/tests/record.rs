//! What the recorder writes of a program's calls, in real interpreters.
#![cfg(target_os = "linux")]

mod common;

use common::live::Live;
use common::{Run, Trace, pythons};
use obmalloc_trace::format::{Domain, Event, Note};
use std::collections::{HashMap, HashSet};

/// The number at the end of the first line of the statistics that contains `label`.
fn statistic(text: &str, label: &str) -> u64 {
    let line = text.lines().find(|line| line.contains(label)).unwrap_or_else(|| panic!("no {label} in {text}"));
    line.rsplit('=').next().expect("a line has an end").trim().replace(',', "").parse().expect("a number")
}

#[test]
fn whole_run_is_recorded_from_the_first_arena_to_the_end() {
    for python in pythons() {
        let run = Run::of(python, "import json; json.dumps(list(range(5000)))", &[]).succeeded();
        assert_eq!(run.stderr(), "");
        let trace = run.trace();
        assert!(trace.says(&format!("\"python\": \"3.{}.", python.minor)), "{}", trace.header);
        assert!(trace.says("\"freeThreaded\": false") && trace.says("\"parent\": null"), "{}", trace.header);
        let first = trace.events.iter().position(|event| matches!(event, Event::ArenaAlloc { .. })).expect("an arena");
        let arena_size = if python.minor < 10 { 256 << 10 } else { 1 << 20 };
        assert!(
            matches!(trace.events[first], Event::ArenaAlloc { nested: true, size, result } if size == arena_size && result != 0)
        );
        assert!(
            matches!(trace.events[first - 1], Event::Realloc { domain: Domain::Raw, nested: true, address: 0, size: 768, .. }),
            "{:?}",
            trace.events[first - 1]
        );
        let nodes: &[u64] = match python.minor {
            8 | 9 => &[],
            10 => &[8192, 2048],
            _ => &[262_144, 131_072],
        };
        for (index, &node) in nodes.iter().enumerate() {
            let event = &trace.events[first + 1 + index];
            assert!(
                matches!(event, Event::Calloc { domain: Domain::Raw, nested: true, count: 1, size, .. } if *size == node),
                "{event:?}"
            );
        }
        let next = &trace.events[first + 1 + nodes.len()];
        assert!(
            matches!(
                next,
                Event::Malloc { domain: Domain::Mem | Domain::Obj, nested: false, .. } | Event::Calloc { nested: false, .. }
            ),
            "{next:?}"
        );
        assert!(trace.ends_orderly());
    }
}

#[test]
fn statistics_at_the_end_are_those_of_the_events_before_them() {
    // Ints are made and dropped so that 3.14 and later have some to reuse.
    let script = "import threading, json\nx = [json.loads('[1, 2.5, {\"a\": [3]}]') for _ in range(3000)]\ndel x[::2]\n\
                  y = [10**6 + i for i in range(500)]\ndel y\n";
    for python in pythons() {
        let run = Run::of(python, script, &[]).succeeded();
        let trace = run.trace();
        let (mut live, mut arenas, mut seen) = (Live::default(), 0u64, (0, 0));
        for event in &trace.events {
            live.apply(event);
            match event {
                Event::ArenaAlloc { size, .. } if *size >= 256 << 10 => arenas += 1,
                Event::ArenaFree { size, address, .. } if *size >= 256 << 10 && *address != 0 => arenas -= 1,
                Event::Note(Note::AllocatedBlocks(count)) => {
                    assert_eq!(*count, live.0.len() as u64, "{}", python.executable.display());
                    seen.0 += 1;
                }
                Event::Note(Note::Stats(text)) => {
                    assert!(text.starts_with("Small block threshold = 512"), "{text}");
                    assert!(text.lines().last().is_some_and(|line| line.starts_with("Total ")), "{text}");
                    assert_eq!(statistic(text, "# bytes in allocated blocks"), live.0.values().sum::<u64>());
                    assert_eq!(statistic(text, "# arenas allocated current"), arenas);
                    seen.1 += 1;
                }
                _ => {}
            }
        }
        assert_eq!(seen, (1, 1), "{}", python.executable.display());
    }
}

#[test]
fn small_program_without_site_has_statistics_too() {
    for python in pythons() {
        let run = Run::with(python, &["-I", "-S", "-c", "pass"], &[]).succeeded();
        let trace = run.trace();
        assert!(trace.events.iter().any(|event| matches!(event, Event::Note(Note::Stats(_)))), "{}", python.executable.display());
        assert!(trace.ends_orderly());
    }
}

#[test]
fn statistics_are_written_once_though_the_program_calls_for_them_too() {
    let script = "
import gc
ours = [found for found in gc.get_objects() if getattr(found, '__name__', '') == 'obmalloc_snapshot']
assert len(ours) == 1 and ours[0]() is ours[0]() is None
";
    for python in pythons() {
        let trace = Run::of(python, script, &[]).succeeded().trace();
        let notes = trace.events.iter().filter(|event| matches!(event, Event::Note(Note::Stats(_) | Note::Finalization))).count();
        assert_eq!(notes, 2, "{}", python.executable.display());
    }
}

#[test]
fn replaced_allocators_are_reported() {
    let debug = ("PYTHONMALLOC", "debug");
    let malloc = ("PYTHONMALLOC", "malloc");
    let none = ("PYTHONMALLOC", "");
    let ways = [
        (["-X", "utf8", "-c", "pass"], debug, "PYTHONMALLOC=debug (or -X dev)"),
        (["-X", "dev", "-c", "pass"], none, "-X dev"),
        (["-X", "utf8", "-c", "import os; os._exit(0)"], malloc, "PYTHONMALLOC=malloc (or -X dev)"),
    ];
    for python in pythons() {
        for (arguments, variable, culprit) in ways {
            let run = Run::with(python, &arguments, &[variable]).succeeded();
            let trace = run.trace();
            let lost = trace.events.iter().filter(|event| **event == Event::Note(Note::HooksLost(7))).count();
            assert_eq!(lost, 1, "{}: {:?}", python.executable.display(), &trace.events);
            assert!(trace.ends_orderly());
            // The recorder writes nothing to the program's stderr.
            assert_eq!(run.stderr(), "");
            let said = format!("{culprit} replaced the recorder's allocators: raw, mem and obj calls are not recorded");
            assert!(trace.tells(&said), "{:?}", trace.events);
        }
    }
}

#[test]
fn pymalloc_that_is_asked_for_by_name_is_recorded() {
    let script = "import os; x = [object() for _ in range(20000)]; print(os.environ['PYTHONMALLOC'])";
    for python in pythons() {
        let modes = [["-X", "utf8"], ["-X", "dev"]];
        for (name, mode) in ["pymalloc", "default"].into_iter().flat_map(|name| modes.map(|mode| (name, mode))) {
            let arguments = [mode[0], mode[1], "-c", script];
            let run = Run::with(python, &arguments, &[("PYTHONMALLOC", name)]).succeeded();
            assert_eq!((run.stdout(), run.stderr()), (format!("{name}\n"), String::new()));
            let trace = run.trace();
            assert!(!trace.events.iter().any(|event| matches!(event, Event::Note(Note::HooksLost(_)))));
            assert!(trace.requests(16) > 10_000 && trace.ends_orderly(), "{}", python.executable.display());
        }
    }
}

#[test]
fn requests_that_are_refused_on_purpose_are_no_lost_calls() {
    let script = "import _testcapi, os\nif os.fork() == 0:\n    _testcapi.set_nomemory(0)\n    os._exit(0)\nos.wait()";
    for python in pythons() {
        let run = Run::of(python, script, &[]);
        if run.stderr().contains("No module named") {
            eprintln!("skipped: {} has no _testcapi", python.executable.display());
            continue;
        }
        let child = Trace::read(&run.children()[0]);
        assert!(!child.events.iter().any(|event| matches!(event, Event::Note(Note::HooksLost(_)))), "{:?}", child.events);
        assert!(child.ends_orderly());
    }
}

#[test]
fn what_tracemalloc_frees_is_not_taken_for_pymallocs() {
    let script = "import tracemalloc\ntracemalloc.start(8)\nx = [bytes(n) for n in range(3000)]\nx = x[::2]\ntracemalloc.take_snapshot()\n\
                  tracemalloc.stop()\ny = [bytes(n) for n in range(3000)]\n";
    for python in pythons() {
        let run = Run::with(python, &["-X", "tracemalloc", "-c", script], &[]).succeeded();
        // The only blocks that pymalloc passes to raw's `free` are the large ones that it is asked to free or to move.
        let mut nested = Vec::new();
        for event in run.trace().events {
            match event {
                Event::Free { domain: Domain::Raw, nested: true, address } => nested.push(address),
                Event::Free { domain: Domain::Mem | Domain::Obj, address, .. } => {
                    assert!(nested.iter().all(|&freed| freed == address), "{nested:x?}, {address:x}");
                    nested.clear();
                }
                _ => {}
            }
        }
    }
}

#[test]
fn tracemalloc_is_no_replacement() {
    for python in pythons() {
        let run = Run::with(python, &["-X", "tracemalloc", "-c", "x = [object() for _ in range(20000)]"], &[]).succeeded();
        assert_eq!(run.stderr(), "");
        let trace = run.trace();
        assert!(!trace.events.iter().any(|event| matches!(event, Event::Note(Note::HooksLost(_)))));
        assert!(trace.events.iter().any(|event| matches!(event, Event::Note(Note::AllocatedBlocks(count)) if *count > 20_000)));
    }
}

#[test]
fn raw_calls_without_the_gil_and_those_of_threads_are_recorded_in_order() {
    let script = "import threading, hashlib, zlib\ndef work():\n    for i in range(300):\n        zlib.compress(bytes(20000)); hashlib.sha256(bytes(5000)).digest()\n\
                  \x20       x = [object() for _ in range(200)]\nthreads = [threading.Thread(target=work) for _ in range(4)]\n\
                  [t.start() for t in threads]; [t.join() for t in threads]\n";
    for python in pythons() {
        let run = Run::of(python, script, &[]).succeeded();
        let trace = run.trace();
        assert!(trace.ends_orderly());
        let mut raw = HashSet::new();
        let mut live = Live::default();
        for event in &trace.events {
            live.apply(event);
            match *event {
                Event::Malloc { domain: Domain::Raw, result, .. } | Event::Calloc { domain: Domain::Raw, result, .. } => {
                    assert!(raw.insert(result), "{event:?}");
                }
                Event::Realloc { domain: Domain::Raw, address, result, .. } => {
                    raw.remove(&address);
                    assert!(raw.insert(result), "{event:?}");
                }
                Event::Free { domain: Domain::Raw, address, .. } => assert!(address == 0 || raw.remove(&address), "{event:?}"),
                _ => {}
            }
        }
    }
}

#[test]
fn interpreters_with_allocators_of_their_own_go_on_under_the_recorder() {
    // From 3.12 on each has a lock and a pymalloc of its own, so calls of mem and obj come from several threads at once.
    let script = "\
import threading
try:
    import _interpreters as interpreters
    create = lambda: interpreters.create('isolated')
    run = getattr(interpreters, 'run_string', None) or interpreters.exec
except ImportError:
    import _xxsubinterpreters as interpreters
    create, run = interpreters.create, interpreters.run_string
ended = []
def work():
    one = create()
    run(one, 'x = [[n, str(n), bytes(n % 700)] for n in range(5000)]\\nx = [a[::-1] for a in x[::2]]\\nimport gc; gc.collect()')
    interpreters.destroy(one)
    ended.append(one)
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
x = [[n, str(n), bytes(n % 700)] for n in range(5000)]
for thread in threads: thread.join()
print(len(ended))";
    // In earlier releases the interpreters of `_xxsubinterpreters` share one lock and one pymalloc, and that module has faults of its own.
    for python in pythons().iter().filter(|python| python.minor >= 12) {
        let run = Run::of(python, script, &[]).succeeded();
        assert_eq!(run.stdout().trim(), "4", "{}: {}", python.executable.display(), run.stderr());
        assert_eq!(run.stderr(), "");
        let trace = run.trace();
        assert!(trace.tells("interpreters with allocators of their own were recorded, too: a replay leaves their calls out"));
        let (mut present, mut calls) = (0, HashMap::new());
        for event in trace.events {
            match event {
                Event::Note(Note::Interpreter(id)) => present = id,
                event if event.is_pymallocs() => *calls.entry(present).or_insert(0) += 1,
                _ => {}
            }
        }
        assert_eq!(calls.len(), 5, "{}: the main interpreter and four others", python.executable.display());
        assert!(calls.values().all(|&calls| calls > 5000), "{calls:?}");
    }
}
