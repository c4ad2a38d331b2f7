//! The recorder in real interpreters.
#![cfg(target_os = "linux")]

mod common;

use common::{Run, Trace, pythons, recorder};
use obmalloc_trace::format::{Domain, Event, Note, Reader};
use std::collections::{HashMap, HashSet};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

/// What is allocated in the mem and obj domains: by address, the bytes that pymalloc gave, or 0 for blocks that it passed on.
#[derive(Default)]
struct Live(HashMap<u64, u64>);

fn class_bytes(size: u64) -> u64 {
    if size == 0 || size > 512 { 0 } else { size.next_multiple_of(16) }
}

impl Live {
    fn allocate(&mut self, address: u64, bytes: u64) {
        if address != 0 {
            assert_eq!(self.0.insert(address, bytes), None, "{address:#x} was given twice");
        }
    }

    fn release(&mut self, address: u64) -> u64 {
        self.0.remove(&address).unwrap_or_else(|| panic!("{address:#x} was freed and is not allocated"))
    }

    fn apply(&mut self, event: &Event) {
        match *event {
            Event::Malloc { domain: Domain::Mem | Domain::Obj, size, result, .. } => self.allocate(result, class_bytes(size)),
            Event::Calloc { domain: Domain::Mem | Domain::Obj, count, size, result, .. } => {
                self.allocate(result, class_bytes(count * size));
            }
            Event::Realloc { domain: Domain::Mem | Domain::Obj, address: 0, size, result, .. } => {
                self.allocate(result, class_bytes(size))
            }
            Event::Realloc { domain: Domain::Mem | Domain::Obj, address, size, result, .. } if result != 0 => {
                let before = self.release(address);
                // A block that did not move keeps its class, one that pymalloc had passed on stays out of it.
                let bytes = if result == address || before == 0 { before } else { class_bytes(size) };
                self.allocate(result, bytes);
            }
            Event::Free { domain: Domain::Mem | Domain::Obj, address, .. } if address != 0 => {
                self.release(address);
            }
            _ => {}
        }
    }
}

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
fn forked_child_continues_the_parents_trace_in_its_own() {
    let script = "import os\nx = [object() for _ in range(50000)]\npid = os.fork()\nif pid == 0:\n    y = [bytes(337) for _ in range(100)]\n\
                  \x20   os._exit(0)\nos.waitpid(pid, 0)\nprint(pid)\n";
    for python in pythons() {
        let run = Run::of(python, script, &[]).succeeded();
        let parent = run.trace();
        let path = run.directory.join(format!("trace.{}", run.stdout().trim()));
        let child = Trace::read(&path);
        assert!(
            child.says(&format!("\"parent\": {{\"path\": \"{}\"", run.directory.join("trace").display())),
            "{}",
            child.header
        );
        assert_eq!(child.field("run"), parent.field("run"));
        assert_ne!(child.field("id"), parent.field("id"));
        assert!(child.says(&format!("\"id\": \"{}\", \"bytes\"", parent.field("id"))), "{}", child.header);
        assert!(parent.edges.contains(&child.parent_bytes()), "{} in {:?}", child.parent_bytes(), parent.edges);
        assert!(parent.ends_orderly() && child.ends_orderly());
        let bytes_object = 337 + 33;
        assert!(child.requests(bytes_object) >= 100);
        assert!(parent.requests(bytes_object) < 100);
        // The parent up to the fork and then the child: everything that is freed has been allocated.
        let bytes = std::fs::read(run.directory.join("trace")).expect("readable");
        let before =
            Reader::new(&bytes[..child.parent_bytes() as usize]).expect("a trace").map(|event| event.expect("undamaged"));
        let mut live = Live::default();
        before.for_each(|event| live.apply(&event));
        child.events.iter().for_each(|event| live.apply(event));
    }
}

#[test]
fn forked_grandchild_names_the_child_as_its_parent() {
    let script = "import os, sys\nfor _ in range(2):\n    pid = os.fork()\n    if pid:\n        os.waitpid(pid, 0)\n        break\n\
                  \x20   x = [object() for _ in range(1000)]\n";
    for python in pythons() {
        let run = Run::of(python, script, &[]).succeeded();
        let children: Vec<Trace> = run.children().iter().map(|path| Trace::read(path)).collect();
        assert_eq!(children.len(), 2);
        let of_the_first = format!("\"path\": \"{}\"", run.directory.join("trace").display());
        assert_eq!(children.iter().filter(|child| child.says(&of_the_first)).count(), 1);
        assert!(children.iter().all(Trace::ends_orderly));
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
            // The program's own words are on its stderr, and nothing of ours.
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
fn interrupted_program_ends_in_an_orderly_way() {
    for python in pythons() {
        let run = Run::of(python, "raise KeyboardInterrupt", &[]);
        assert_eq!(run.output.status.signal(), Some(2));
        assert!(run.trace().ends_orderly(), "{}", python.executable.display());
    }
}

#[test]
fn what_tracemalloc_frees_is_not_taken_for_pymallocs() {
    let script = "import tracemalloc\ntracemalloc.start(8)\nx = [bytes(n) for n in range(3000)]\nx = x[::2]\ntracemalloc.take_snapshot()\n\
                  tracemalloc.stop()\ny = [bytes(n) for n in range(3000)]\n";
    for python in pythons() {
        let run = Run::with(python, &["-X", "tracemalloc", "-c", script], &[]).succeeded();
        // pymalloc gives nothing to raw's `free` but the large block that it is asked to free or to move.
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
fn killed_process_leaves_a_readable_prefix() {
    let script = "import os\nx = [object() for _ in range(200000)]\nos.kill(os.getpid(), 9)\n";
    for python in pythons() {
        let run = Run::of(python, script, &[]);
        assert_eq!(run.output.status.signal(), Some(9));
        let trace = run.trace();
        assert!(!trace.ends_orderly());
        assert!(trace.events.len() > 150_000, "{}", trace.events.len());
    }
}

#[test]
fn events_before_os_exit_are_kept() {
    for python in pythons() {
        let run = Run::of(python, "import os\nx = [bytes(337) for _ in range(10)]\nos._exit(3)\n", &[]);
        assert_eq!(run.output.status.code(), Some(3));
        let trace = run.trace();
        assert!(trace.ends_orderly());
        assert!(trace.requests(337 + 33) >= 10);
    }
}

#[test]
fn events_before_exec_are_kept_and_the_next_program_has_its_own_trace() {
    let script =
        "import os, sys\nx = [bytes(337) for _ in range(10)]\nos.execv(sys.executable, [sys.executable, '-c', 'print(1)'])\n";
    for python in pythons() {
        let run = Run::of(python, script, &[]).succeeded();
        let trace = run.trace();
        assert!(trace.requests(337 + 33) >= 10);
        assert_eq!(trace.events.last(), Some(&Event::Note(Note::Exec)));
        let next = run.children();
        assert_eq!(next.len(), 1);
        assert!(Trace::read(&next[0]).ends_orderly());
    }
}

#[test]
fn executed_python_has_its_own_trace_and_other_programs_have_none() {
    let script = "import subprocess, sys\nfor preexec in (None, lambda: None):\n\
                  \x20   subprocess.run([sys.executable, '-c', 'pass'], check=True, preexec_fn=preexec)\n\
                  subprocess.run(['sh', '-c', 'true; true'], check=True, cwd='/')\n";
    for python in pythons() {
        let run = Run::of(python, script, &[]).succeeded();
        assert!(run.trace().ends_orderly());
        let children: Vec<Trace> = run.children().iter().map(|path| Trace::read(path)).collect();
        // The two interpreters, and what the second one's process did in Python before it was executed.
        assert_eq!(children.iter().filter(|child| child.says("\"parent\": null") && child.ends_orderly()).count(), 2);
        assert_eq!(children.iter().filter(|child| child.says("\"parent\": {")).count(), 1);
        assert_eq!(children.len(), 3);
    }
}

#[test]
fn program_that_is_started_with_an_environment_of_its_own_is_recorded() {
    let script = "import os, subprocess, sys\nsubprocess.run([sys.executable, '-c', 'pass'], env={}, check=True)\n\
                  os.environ.clear()\nsubprocess.run([sys.executable, '-c', 'pass'], check=True)\n";
    for python in pythons() {
        let run = Run::of(python, script, &[]).succeeded();
        let children: Vec<Trace> = run.children().iter().map(|path| Trace::read(path)).collect();
        assert_eq!(children.len(), 2, "{}", python.executable.display());
        assert!(children.iter().all(|child| child.ends_orderly() && child.field("run") == run.trace().field("run")));
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
fn trace_goes_on_when_the_program_closes_descriptors_that_are_not_its_own() {
    // A mark takes a sample, however fast the machine is: one before the descriptors are closed, and two after.
    let script = "import os, sys\nsys.audit('obmalloc.mark')\n\
                  os.closerange(3, 1024)\nfiles = [os.open('/dev/null', os.O_WRONLY) for _ in range(600)]\n\
                  x = [object() for _ in range(200000)]\n\
                  sys.audit('obmalloc.mark')\nsys.audit('obmalloc.mark')\n\
                  names = [os.path.basename(os.path.realpath('/proc/self/fd/' + f)) for f in os.listdir('/proc/self/fd')]\n\
                  print(sorted(name for name in names if name in ('statm', 'trace')))\n";
    for python in pythons() {
        let run = Run::of(python, script, &[("OBMALLOC_EVERY", "1")]).succeeded();
        assert_eq!(run.stderr(), "");
        assert_eq!(run.stdout(), "['statm', 'trace']\n", "opened again once, and kept");
        let trace = run.trace();
        assert!(trace.ends_orderly() && trace.events.len() > 200_000);
    }
}

#[test]
fn full_disk_ends_the_recording_and_not_the_program() {
    let script = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (60000, 60000))\nx = [object() for _ in range(300000)]\nprint('done')\n";
    for python in pythons() {
        let run = Run::of(python, script, &[]).succeeded();
        assert_eq!((run.stdout(), run.stderr()), ("done\n".into(), String::new()));
        let trace = run.trace();
        assert!(!trace.ends_orderly() && trace.events.len() > 1000);
        assert!(trace.says("\"failed\": \"File too large"), "{}", trace.header);
    }
}

#[test]
fn file_limit_ends_no_program_that_would_die_of_it() {
    // The signal has its default action, as in a program that embeds CPython.
    let script = "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n\
                  resource.setrlimit(resource.RLIMIT_FSIZE, (60000, 60000))\nx = [object() for _ in range(300000)]\n";
    for python in pythons() {
        assert!(Run::of(python, script, &[]).succeeded().trace().says("\"failed\": \"File too large"));
    }
}

#[test]
fn path_that_cannot_be_made_harms_no_program() {
    for python in pythons() {
        let run = Run::of(python, "print('done')", &[("OBMALLOC_TRACE", "/nonexistent/trace")]).succeeded();
        assert_eq!((run.stdout(), run.stderr()), ("done\n".into(), String::new()));
    }
}

#[test]
fn trace_goes_on_when_the_program_has_no_descriptor_left() {
    let script = "import os, resource\nhard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n\
                  resource.setrlimit(resource.RLIMIT_NOFILE, (12, hard))\nos.closerange(3, 1024)\nfiles = []\n\
                  try:\n    while True: files.append(os.open('/dev/null', os.O_WRONLY))\nexcept OSError: pass\n\
                  if os.fork() == 0:\n    x = [object() for _ in range(20000)]\n    os._exit(0)\n\
                  os.wait()\nx = [object() for _ in range(200000)]\nassert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 12\n";
    for python in pythons() {
        let run = Run::of(python, script, &[]).succeeded();
        assert_eq!(run.stderr(), "");
        assert!(run.trace().ends_orderly() && run.trace().events.len() > 200_000);
        let children = run.children();
        assert_eq!(children.len(), 1, "{}", python.executable.display());
        assert!(Trace::read(&children[0]).ends_orderly());
    }
}

#[test]
fn variables_of_the_recorder_are_as_long_in_every_process() {
    let script = "import os\nprint(len(os.environ['OBMALLOC_TRACE_PID']), int(os.environ['OBMALLOC_TRACE_PID']) == os.getpid(), \
                  len(os.environ['OBMALLOC_TRACE_RUN']))\n";
    for python in pythons() {
        let run = Run::of(python, script, &[]).succeeded();
        assert_eq!(run.stdout(), "10 True 32\n", "{}", python.executable.display());
    }
}

#[test]
fn process_that_is_no_cpython_is_left_alone() {
    let directory = std::env::temp_dir().join(format!("obmalloc-record-sh-{}", std::process::id()));
    let trace = directory.join("trace");
    let mut command = Command::new("sh");
    command.args(["-c", "echo $OBMALLOC_TRACE_PID; exec env true"]).env("LD_PRELOAD", recorder());
    let output = command.env("OBMALLOC_TRACE", &trace).env_remove("OBMALLOC_TRACE_PID").output().expect("sh starts");
    assert!(output.status.success());
    assert_eq!((&output.stdout[..], &output.stderr[..]), (&b"\n"[..], &b""[..]));
    assert!(!trace.exists());
}

/// A program that has CPython's names and says that it is the release in `STAND_IN_VERSION`.
const STAND_IN: &str = r#"
#include <stdlib.h>
const char *Py_GetVersion(void) { return getenv("STAND_IN_VERSION"); }
void PyMem_SetAllocator(int domain, void *table) { abort(); }
void PyMem_GetAllocator(int domain, void *table) { abort(); }
void PyObject_SetArenaAllocator(void *table) { abort(); }
void PyObject_GetArenaAllocator(void *table) { abort(); }
int Py_IsInitialized(void) { return 0; }
int Py_AddPendingCall(void *function, void *argument) { return -1; }
void *PyMem_RawMalloc(size_t size) { return malloc(size); }
void PyMem_RawFree(void *address) { free(address); }
int main(void) { return 0; }
"#;

#[test]
fn what_cannot_be_recorded_or_checked_is_said_and_left_alone() {
    let directory = std::env::temp_dir().join(format!("obmalloc-record-stand-in-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a temporary directory");
    let (source, program, trace) = (directory.join("stand_in.c"), directory.join("stand_in"), directory.join("trace"));
    std::fs::write(&source, STAND_IN).expect("writable");
    match Command::new("cc").args(["-w", "-rdynamic", "-o"]).args([&program, &source]).status() {
        Ok(status) if status.success() => {
            let run = |variable: &str, version: &str| {
                let mut command = Command::new(&program);
                command.env("LD_PRELOAD", recorder()).env(variable, &trace).env_remove(format!("{variable}_PID"));
                let output = command.env("STAND_IN_VERSION", version).output().expect("the program starts");
                assert!(output.status.success());
                String::from_utf8(output.stderr).expect("text")
            };
            for variable in ["OBMALLOC_CHECK", "OBMALLOC_TRACE"] {
                let _ = std::fs::remove_file(&trace);
                for (version, reason) in [
                    ("3.7.16 (default)", "\"python\": \"3.7.16\""),
                    ("3.14.0 free-threading build (main)", "\"freeThreaded\": true"),
                ] {
                    assert_eq!(run(variable, version), "");
                    let text = String::from_utf8_lossy(&std::fs::read(&trace).expect("it is made")).into_owned();
                    assert!(text.contains(reason) && text.lines().count() == 1, "{text}");
                    let _ = std::fs::remove_file(&trace);
                }
            }
            run("OBMALLOC_TRACE", "3.14.0 free-threading build (main)");
            let written = Trace::read(&trace);
            assert!(written.says("\"freeThreaded\": true") && written.events.is_empty(), "{}", written.header);
        }
        _ => eprintln!("skipped: no C compiler"),
    }
    let _ = std::fs::remove_dir_all(&directory);
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
    // What `_xxsubinterpreters` of earlier releases does has one lock and one pymalloc, and its own faults.
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
