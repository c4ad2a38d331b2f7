//! Processes under the recorder: how they begin, fork, execute other programs and end, and which ones it leaves alone.
#![cfg(target_os = "linux")]

mod common;

use common::live::Live;
use common::{Run, Trace, pythons, recorder};
use obmalloc_trace::format::{Event, Note, Reader};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

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
        // Read the parent's trace up to the fork, and then the child's: each freed block was allocated before.
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
fn interrupted_program_ends_in_an_orderly_way() {
    for python in pythons() {
        let run = Run::of(python, "raise KeyboardInterrupt", &[]);
        assert_eq!(run.output.status.signal(), Some(2));
        assert!(run.trace().ends_orderly(), "{}", python.executable.display());
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
