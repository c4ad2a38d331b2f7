//! The file of a trace, whatever the program does to its descriptors and limits.
#![cfg(target_os = "linux")]

mod common;

use common::{Run, Trace, pythons};

#[test]
fn trace_goes_on_when_the_program_closes_descriptors_that_are_not_its_own() {
    // Every mark takes a sample, so the test does not depend on the machine's speed. One mark comes before the descriptors are closed, two after.
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
