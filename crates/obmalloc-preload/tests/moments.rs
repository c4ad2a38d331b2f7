//! What the recorder writes of moments, in real interpreters: the time, the process, and how much memory was resident.
#![cfg(target_os = "linux")]

mod common;

use common::{Run, fixed, pythons};
use obmalloc_trace::clock::Clock;
use obmalloc_trace::format::{Domain, Event, Note, Reader};
use std::path::Path;

/// The events of a trace, each with the clock as it stood.
fn timed(path: &Path) -> Vec<(Clock, Event)> {
    let mut reader = Reader::new(std::fs::read(path).expect("a trace")).expect("a trace");
    let mut found = Vec::new();
    while let Some(event) = reader.next() {
        found.push((*reader.clock(), event.expect("undamaged")));
    }
    found
}

fn of(run: &Run) -> Vec<(Clock, Event)> {
    timed(&run.directory.join("trace"))
}

fn marks(run: &Run) -> Vec<String> {
    let name = |(_, event)| if let Event::Note(Note::Mark(name)) = event { Some(name) } else { None };
    of(run).into_iter().filter_map(name).collect()
}

/// Where the first mem or obj request for `size` bytes stands.
fn place_of(events: &[(Clock, Event)], size: u64) -> usize {
    let is = |event: &Event| match event {
        Event::Malloc { domain, size: asked, .. } => *domain != Domain::Raw && *asked == size,
        Event::Calloc { domain, count, size: asked, .. } => *domain != Domain::Raw && count * asked == size,
        _ => false,
    };
    events.iter().position(|(_, event)| is(event)).unwrap_or_else(|| panic!("no request for {size} bytes"))
}

fn note_at(events: &[(Clock, Event)], note: &Note) -> Option<usize> {
    events.iter().position(|(_, event)| matches!(event, Event::Note(found) if found == note))
}

#[test]
fn marks_have_the_names_that_the_program_gave() {
    let script = "\
import sys
seen = []
sys.audit('obmalloc.mark', 'first')
sys.addaudithook(lambda event, args: seen.append(args) if event == 'obmalloc.mark' else None)
sys.audit('obmalloc.mark', 'größer 🐍')
sys.audit('obmalloc.mark')
sys.audit('obmalloc.mark', 7)
sys.audit('obmalloc.mark', 'x' * 1000)
sys.audit('obmalloc.marks', 'another')
sys.audit('another', 'obmalloc.mark')
try: sys.audit()
except TypeError: pass
try: sys.audit(1)
except TypeError: pass
assert [args[0] if args else None for args in seen] == ['größer 🐍', None, 7, 'x' * 1000]
sys.audit('obmalloc.mark', 'last')
";
    for python in pythons() {
        let run = Run::of(python, script, &[]).succeeded();
        let expected = ["first", "größer 🐍", "", "", &"x".repeat(200), "last"];
        assert_eq!(marks(&run), expected, "3.{}", python.minor);
        assert!(run.trace().ends_orderly());
    }
}

#[test]
fn signal_makes_a_mark_where_the_program_has_no_handler() {
    let script = "\
import os, signal, sys, time
assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL
os.kill(os.getpid(), signal.SIGUSR2)
begin = time.monotonic()
while time.monotonic() - begin < 0.01: pass
got = []
signal.signal(signal.SIGUSR2, lambda *_: got.append(1))
os.kill(os.getpid(), signal.SIGUSR2)
while not got: pass
";
    for python in pythons() {
        let run = Run::of(python, script, &[]).succeeded();
        assert_eq!(marks(&run), ["SIGUSR2"], "3.{}", python.minor);
    }
}

#[test]
fn signals_that_come_at_any_moment_do_no_harm() {
    let script = "\
import os, signal, threading, time
def send():
    for _ in range(50):
        os.kill(os.getpid(), signal.SIGUSR2)
        time.sleep(0.0003)
thread = threading.Thread(target=send)
thread.start()
while thread.is_alive():
    [bytes(n) for n in range(1000)]
";
    for python in pythons() {
        let run = Run::of(python, script, &[("OBMALLOC_STACKS", "64"), ("OBMALLOC_EVERY", "1")]).succeeded();
        let marks = marks(&run);
        assert!(marks.len() > 5 && marks.len() <= 50, "3.{}: {}", python.minor, marks.len());
        assert!(run.trace().ends_orderly());
    }
}

#[test]
fn finalization_begins_when_the_program_and_what_it_left_for_the_end_are_done() {
    let script = "\
import atexit
class Late:
    def __del__(self): bytes(70002)
late = Late()
atexit.register(lambda: bytes(70001))
";
    for python in pythons() {
        let run = Run::of(python, script, &[]).succeeded();
        let events = of(&run);
        let note = note_at(&events, &Note::Finalization).expect("an orderly end");
        assert!(place_of(&events, 70001 + 33) < note && note < place_of(&events, 70002 + 33), "3.{}", python.minor);
        let stats = events.iter().position(|(_, event)| matches!(event, Event::Note(Note::Stats(_)))).expect("statistics");
        assert!(note < stats && stats - note < 400, "3.{}: {note} {stats}", python.minor);
        let run = Run::of(python, "import os; os._exit(0)", &[]).succeeded();
        assert_eq!(note_at(&of(&run), &Note::Finalization), None, "3.{}", python.minor);
    }
}

#[test]
fn time_goes_on_and_memory_is_sampled() {
    let script = "\
import sys, time
kept = bytearray(64 << 20)
for n in range(40):
    [object() for _ in range(4000)]
    time.sleep(0.005)
sys.audit('obmalloc.mark', 'held')
del kept
sys.audit('obmalloc.mark', 'gone')
";
    for python in pythons() {
        let run = Run::of(python, script, &[("OBMALLOC_EVERY", "20")]).succeeded();
        assert!(run.trace().says("\"every\":      20"));
        let events = of(&run);
        let times: Vec<u64> = events.iter().map(|(clock, _)| clock.micros).collect();
        assert!(times.is_sorted() && *times.last().expect("events") > 200_000, "3.{}", python.minor);
        // The clock moves at least every few thousand events.
        let longest = times.chunk_by(|a, b| a == b).map(<[u64]>::len).max().expect("events");
        assert!(longest < 5000, "3.{}: {longest}", python.minor);
        // There is a sample at each of the two marks and at the beginning of finalization. Other samples are at least 20 ms apart.
        let Clock { samples, micros, .. } = events.last().expect("events").0;
        let most = 3 + micros / 20_000 + 1;
        assert!((6..=most).contains(&samples), "3.{}: {samples} in {micros} µs", python.minor);
        let memory = |name: &str| {
            let at = note_at(&events, &Note::Mark(name.into())).expect("a mark");
            events[at].0.memory.expect("a sample at every mark")
        };
        let (held, gone) = (memory("held"), memory("gone"));
        let freed = held.anonymous - gone.anonymous;
        assert!((60 << 20..68 << 20).contains(&freed), "3.{}: {freed}", python.minor);
        assert!(held.heap >= gone.heap + (64 << 20), "{}: C's heap", python.executable.display());
        assert!(held.file > 1 << 20);
        let run = Run::of(python, "import time; time.sleep(0.05)", &[]).succeeded();
        assert_eq!(of(&run).last().expect("events").0.samples, 0, "none unless wanted");
    }
}

#[test]
fn events_are_told_by_the_thread_that_made_them() {
    let script = "\
import threading
print(threading.get_native_id())
bytes(70001)
def work():
    print(threading.get_native_id())
    bytes(70002)
thread = threading.Thread(target=work)
thread.start()
thread.join()
bytes(70003)
";
    for python in pythons() {
        let run = Run::of(python, script, &[]).succeeded();
        let numbers: Vec<u64> = run.stdout().lines().map(|line| line.parse().expect("a number")).collect();
        let events = of(&run);
        let thread = |size: u64| events[place_of(&events, size + 33)].0.thread;
        assert_eq!([70001, 70002, 70003].map(thread), [numbers[0], numbers[1], numbers[0]], "3.{}", python.minor);
    }
}

#[test]
fn fork_is_told_and_time_goes_on_in_the_child() {
    let script = "\
import os, time
time.sleep(0.05)
pid = os.fork()
if pid == 0:
    bytes(70001)
    os._exit(0)
os.waitpid(pid, 0)
bytes(70002)
";
    for python in pythons() {
        let run = Run::of(python, script, &[("OBMALLOC_EVERY", "10")]).succeeded();
        let events = of(&run);
        let fork = note_at(&events, &Note::Fork).expect("a fork");
        assert!(fork < place_of(&events, 70002 + 33), "3.{}", python.minor);
        let children = run.children();
        let child = timed(&children[0]);
        let last = child.last().expect("events").0;
        assert!(last.micros > events[fork].0.micros && last.micros < 60_000_000, "3.{}", python.minor);
        let memory = last.memory.expect("a sample of the child's own");
        assert!(memory.anonymous > 1 << 20, "3.{}", python.minor);
    }
}

#[test]
fn sampling_changes_no_event() {
    let script = "\
import sys, time
rows = [str(n) * 30 for n in range(50000)]
kept = rows[::100]
del rows
sys.audit('obmalloc.mark', 'here')
time.sleep(0.01)
[bytes(n) for n in range(3000)]
";
    for python in pythons() {
        let [without, with] = ["00", "01"].map(|every| fixed(python, script, &[("OBMALLOC_EVERY", every)]).trace());
        let first = without.events.iter().zip(&with.events).position(|(without, with)| without != with);
        assert_eq!(first, None, "3.{}: the first event that differs", python.minor);
        assert_eq!(with.events.len(), without.events.len(), "3.{}", python.minor);
    }
}
