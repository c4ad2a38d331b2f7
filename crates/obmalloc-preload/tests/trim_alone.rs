//! The trimmer when no program asks it to trim: in programs that sleep, work, fork, end, and have threads and interpreters. Some tests trim
//! all the time, and fill the pages of empty pools instead of giving them back. So a program that reads such a page before it writes to it fails.
#![cfg(target_os = "linux")]

mod common;

use common::trim::{RESIDENT, Trimmed, can_be_trimmed};
use common::{Python, pythons, recorder};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const TUPLES: &str = "kept = [(n, n + 1) for n in range(1_000_000)][::1000]\n";

/// Trims are made all the time, and memory that must not be read is filled.
const FORCED: &str = "force=1ms,poison";

fn able() -> impl Iterator<Item = &'static Python> {
    pythons().iter().filter(|python| can_be_trimmed(python))
}

#[test]
fn program_that_sleeps_or_works_is_trimmed_by_itself() {
    let waits = [
        ("sleeps", "time.sleep(0.02)"),
        ("works", "sum(range(1000))"),
        (
            "waits for threads that work",
            "threads = [threading.Thread(target=work) for _ in range(2)]; [t.start() for t in threads]; [t.join() for t in threads]",
        ),
    ];
    for python in able() {
        for (name, wait) in waits {
            let script = format!(
                "{RESIDENT}
import threading, time
def work():
    for _ in range(50): sum(range(1000))
{TUPLES}
before, begin = resident(), time.monotonic()
while resident() > 90 << 20 and time.monotonic() - begin < 20:
    {wait}
print(resident() >> 20)
"
            );
            let run = Trimmed::of(python, &script, "every=100ms").succeeded();
            let left: u64 = run.stdout().trim().parse().expect("a number");
            assert!(left <= 90, "3.{}, {name}: {left} MB", python.minor);
            assert!(run.end().number("trims") > 0);
        }
    }
}

#[test]
fn only_where_it_asks_is_a_program_trimmed_that_wants_it_so_or_holds_little() {
    let script = format!("import time\n{TUPLES}time.sleep(0.4)\nimport os; print(len(os.listdir('/proc/self/task')))");
    for python in able() {
        for options in ["asked,every=20ms", "every=20ms,above=500MB"] {
            let run = Trimmed::of(python, &script, options).succeeded();
            assert_eq!((run.end().number("trims"), &*run.stdout()), (0, "1\n"), "3.{}: {options}", python.minor);
        }
    }
}

#[test]
fn forks_are_what_they_would_be_and_children_are_trimmed_too() {
    let script = format!(
        "{TUPLES}
import os, time
for n in range(40):
    pid = os.fork()
    if pid == 0:
        if n == 7:
            more = [(n, n + 1) for n in range(300_000)][::1000]
            time.sleep(0.2)
        os._exit(7)
    assert os.waitpid(pid, 0)[1] == 7 << 8
    time.sleep(n % 4 / 1000)
begin = time.monotonic()
while len(os.listdir('/proc/self/task')) < 2: assert time.monotonic() - begin < 10
"
    );
    for python in able() {
        let run = Trimmed::of(python, &script, FORCED).succeeded();
        let ends: Vec<_> = run.reports().into_iter().filter(|report| report.is_end()).collect();
        assert_eq!(ends.len(), 41, "3.{}", python.minor);
        let trimmed = |number: usize| ends[number].number("slices") > 0;
        assert!(trimmed(7) && trimmed(40), "3.{}", python.minor);
    }
}

#[test]
fn thread_is_gone_while_a_process_forks() {
    let script = format!(
        "{TUPLES}
import os, subprocess, sys, time, warnings
# 3.12 and later warn of threads in a process that forks.
warnings.simplefilter('error')
def wait():
    begin = time.monotonic()
    while len(os.listdir('/proc/self/task')) < 2: assert time.monotonic() - begin < 10
# Nothing is left to be given back then, so no slice is made while it forks.
sys.audit('obmalloc.trim')
for n in range(20):
    wait()
    pid = os.fork()
    if pid == 0: os._exit(7)
    assert os.waitpid(pid, 0)[1] == 7 << 8
wait()
subprocess.run(['true'], check=True, preexec_fn=lambda: None)
wait()
subprocess.run(['true'], check=True)
"
    );
    for python in able() {
        let run = Trimmed::of(python, &script, "every=100ms").succeeded();
        assert_eq!(run.stderr(), "", "3.{}", python.minor);
    }
}

#[test]
fn child_of_another_thread_ends_with_that_thread() {
    let script = format!(
        "{TUPLES}
import os, threading, time
ended = []
def work():
    pid = os.fork()
    if pid == 0:
        kept = [(n, n + 1) for n in range(200_000)][::1000]
        time.sleep(0.05)
        return
    begin = time.monotonic()
    while (found := os.waitpid(pid, os.WNOHANG)) == (0, 0) and time.monotonic() - begin < 10: time.sleep(0.01)
    ended.append(found[1] if found[0] else os.kill(pid, 9) or 'goes on')
for _ in range(3):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
print(ended)
"
    );
    for python in able() {
        let run = Trimmed::of(python, &script, FORCED).succeeded();
        assert_eq!(run.stdout(), "[0, 0, 0]\n", "3.{}: {}", python.minor, run.stderr());
        assert!(!run.stderr().contains("Fatal"), "3.{}: {}", python.minor, run.stderr());
    }
}

#[test]
fn every_way_to_end_is_reported() {
    let script = |end: &str| format!("{TUPLES}import os, signal, sys\nsys.audit('obmalloc.trim')\n{end}");
    for python in able() {
        for (end, is_end) in [
            ("os._exit(0)", true),
            ("sys.exit()", true),
            ("os.execv('/bin/true', ['true'])", false),
            ("os.kill(os.getpid(), signal.SIGKILL)", false),
        ] {
            let run = Trimmed::of(python, &script(end), "every=100ms");
            let last = run.reports().pop().expect("a report");
            assert_eq!(last.is_end(), is_end, "3.{}: {end}", python.minor);
            assert!(last.number("poolBytes") > 60 << 20 && last.number("trims") >= 1);
            assert_eq!(run.0.output.status.signal(), end.contains("KILL").then_some(9));
        }
        // A program that the process executes begins its own counts.
        let again = "os.execv(sys.executable, [sys.executable, '-c', 'pass'])";
        let run = Trimmed::of(python, &script(again), "every=100ms").succeeded();
        assert_eq!(run.end().number("trims"), 0);
    }
}

#[test]
fn programs_end_well_while_they_are_trimmed() {
    let scripts = [
        "",
        "import atexit, time\natexit.register(time.sleep, 0.01)\natexit.register(lambda: [(n,) for n in range(100_000)])",
        "import threading, time\ndef work():\n    while True: [(n,) for n in range(1000)]\nfor _ in range(3): threading.Thread(target=work, daemon=True).start()\ntime.sleep(0.02)",
        "import threading, sys, time\ndef work():\n    while True: sys.audit('obmalloc.trim')\nfor _ in range(3): threading.Thread(target=work, daemon=True).start()\ntime.sleep(0.02)",
        // CPython does not tell the trimmer of the end then.
        "import atexit, time\ntime.sleep(0.005)\natexit._clear()",
        "class Late:\n    def __del__(self): [(n,) for n in range(100_000)]\nlate = Late()",
    ];
    for python in able() {
        // Daemon threads sometimes crash CPython 3.10 at the end, also without the trimmer (in `take_gil`).
        for script in scripts.into_iter().filter(|script| python.minor > 10 || !script.contains("daemon")) {
            for wait in 0..6 {
                let script =
                    format!("kept = [(n, n) for n in range(30_000)][::100]\n{script}\nimport time\ntime.sleep({wait} / 1000)");
                let run = Trimmed::of(python, &script, FORCED);
                let ended = (run.0.output.status.into_raw(), &*run.stderr());
                assert_eq!(ended, (0, ""), "3.{}: {script}", python.minor);
            }
        }
    }
}

/// A program that, before CPython runs any code, puts another `atexit` in the place of Python's: one with a `register` that calls its argument
/// at once; or, given an argument, one that leaves `sys.modules` when it is asked for an attribute.
const OTHER_ATEXIT: &str = r#"
#include <Python.h>
static PyObject *call(PyObject *self, PyObject *function) { return PyObject_CallNoArgs(function); }
static PyMethodDef definition = {"register", call, METH_O};
static PyObject *leave(PyObject *self, PyObject *name) {
    if (Py_REFCNT(self) == 1) abort(); /* It would be gone while it is asked. */
    PyDict_DelItemString(PyImport_GetModuleDict(), "atexit");
    PyErr_SetObject(PyExc_AttributeError, name);
    return NULL;
}
static PyType_Slot slots[] = {{Py_tp_getattro, leave}, {0}};
static PyType_Spec spec = {"leaving", sizeof(PyObject), 0, Py_TPFLAGS_DEFAULT, slots};
int main(int count, char **arguments) {
    Py_NoSiteFlag = 1;
    Py_Initialize();
    PyObject *other = count == 1 ? PyModule_New("atexit") : PyObject_CallNoArgs(PyType_FromSpec(&spec));
    if (count == 1) PyObject_SetAttrString(other, "register", PyCFunction_New(&definition, NULL));
    PyDict_SetItemString(PyImport_GetModuleDict(), "atexit", other);
    Py_DECREF(other);
    int status = PyRun_SimpleString("kept = [(n, n + 1) for n in range(100_000)][::1000]");
    return status != 0 || Py_FinalizeEx() != 0;
}
"#;

/// Builds a C program with a CPython in it. `None` where that cannot be done.
fn embedding(python: &Python, source: &str, directory: &Path) -> Option<(PathBuf, String)> {
    const ASK: &str = "import sys, sysconfig as s; print(s.get_config_var('LIBDIR'), s.get_config_var('LDVERSION'), \
                       s.get_path('include'), sys.base_prefix, sep='\\n')";
    let output = Command::new(&python.executable).args(["-c", ASK]).output().expect("the interpreter starts");
    let text = String::from_utf8(output.stdout).expect("text");
    let [libraries, name, headers, home] = text.lines().collect::<Vec<_>>()[..] else { return None };
    let (file, program) = (directory.join("program.c"), directory.join(format!("program-{}", python.minor)));
    std::fs::write(&file, source).expect("writable");
    let mut compiler = Command::new("cc");
    compiler.args(["-w", "-rdynamic", "-I", headers, "-o"]).args([&program, &file]);
    compiler.args([&format!("-L{libraries}"), &format!("-Wl,-rpath,{libraries}"), &format!("-lpython{name}")]);
    compiler.output().is_ok_and(|output| output.status.success()).then(|| (program, home.to_owned()))
}

#[test]
fn program_with_another_atexit_is_trimmed_or_not_and_ends_well() {
    let directory = std::env::temp_dir().join(format!("obmalloc-trim-atexit-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a temporary directory");
    for python in able() {
        let Some((program, home)) = embedding(python, OTHER_ATEXIT, &directory) else {
            eprintln!("skipped: no C compiler, or no library of 3.{}", python.minor);
            continue;
        };
        for arguments in [&[][..], &["leaves"]] {
            let mut command = Command::new(&program);
            command.args(arguments).env("LD_PRELOAD", recorder()).env("PYTHONHOME", &home).env("OBMALLOC_TRIM", "every=20ms");
            let output = command.output().expect("the program starts");
            assert!(output.status.success(), "3.{}, {arguments:?}: {output:?}", python.minor);
        }
    }
    let _ = std::fs::remove_dir_all(&directory);
}

#[test]
fn signals_are_the_programs() {
    let script = "
import os, signal, time
time.sleep(0.05)
assert len(os.listdir('/proc/self/task')) == 2
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGINT])
os.kill(os.getpid(), signal.SIGUSR1)
time.sleep(0.01)
assert signal.sigwait([signal.SIGUSR1]) == signal.SIGUSR1
got = []
signal.signal(signal.SIGALRM, lambda *_: got.append([(n,) for n in range(1000)]))
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
begin = time.monotonic()
while len(got) < 100: assert time.monotonic() - begin < 20
signal.setitimer(signal.ITIMER_REAL, 0)
";
    for python in able() {
        let run = Trimmed::of(python, script, FORCED).succeeded();
        assert!(run.end().number("slices") > 20, "3.{}", python.minor);
    }
}

#[test]
fn interpreters_with_allocators_of_their_own_go_on_meanwhile() {
    let script = "
import threading, sys
try:
    import _interpreters as interpreters
    create, run = lambda: interpreters.create('isolated'), interpreters.exec
except ImportError:
    import _xxsubinterpreters as interpreters
    create, run = lambda: interpreters.create(isolated=True), interpreters.run_string
code = '''
import sys
for turn in range(60):
    kept = [(n, n + 1) for n in range(20_000)][::500]
    if turn % 10 == 0: sys.audit('obmalloc.trim')
    assert kept == [(n, n + 1) for n in range(0, 20_000, 500)]
'''
def work():
    for _ in range(2):
        interpreter = create()
        assert run(interpreter, code) is None
        interpreters.destroy(interpreter)
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads: thread.start()
while any(thread.is_alive() for thread in threads):
    kept = [(n, n + 1) for n in range(20_000)][::500]
for thread in threads: thread.join()
";
    for python in able().filter(|python| python.minor >= 12) {
        let run = Trimmed::of(python, script, FORCED).succeeded();
        assert_eq!(run.stderr(), "", "3.{}", python.minor);
        let end = run.end();
        assert!(end.number("trims") >= 36 && end.number("returnedPools") > 0, "3.{}", python.minor);
    }
}

#[test]
fn threads_that_have_no_gil_go_on_meanwhile() {
    let script = "
import ctypes, threading, zlib
c = ctypes.CDLL(None)
c.PyMem_RawMalloc.restype, c.PyMem_RawMalloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
c.PyMem_RawFree.restype, c.PyMem_RawFree.argtypes = None, [ctypes.c_void_p]
def work():
    for _ in range(300):
        blocks = [c.PyMem_RawMalloc(n) for n in range(1, 600, 30)]
        zlib.decompress(zlib.compress(bytes(20_000)))
        for block in blocks: c.PyMem_RawFree(block)
        kept = [(n, n + 1) for n in range(500)]
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
";
    for python in able() {
        let run = Trimmed::of(python, script, FORCED).succeeded();
        assert!(run.end().number("slices") > 10, "3.{}", python.minor);
    }
}

#[test]
fn frames_as_large_as_an_arena_are_none() {
    let script = "
import sys
sys.setrecursionlimit(10_000)
names = {'x': 'value', 'go': lambda depth: deep(depth - 1) if depth else [(n,) for n in range(50_000)][::100]}
deep = eval('lambda depth: [go(depth), ' + 'x, ' * 150_000 + ']', names)
names['deep'] = deep
for _ in range(5):
    found = deep(3)
    for _ in range(3): found = found[0]
    assert found[-1] == 'value' and len(found) == 150_001, len(found)
";
    for python in able() {
        let run = Trimmed::of(python, script, FORCED).succeeded();
        assert!(run.end().number("slices") > 0, "3.{}", python.minor);
    }
}

#[test]
fn memory_that_the_system_does_not_take_back_stays() {
    let script = format!(
        "{RESIDENT}{TUPLES}
import ctypes, sys
assert ctypes.CDLL(None).mlockall(1) == 0
before = resident()
sys.audit('obmalloc.trim')
assert before - resident() < 4 << 20, before - resident()
assert kept == [(n, n + 1) for n in range(0, 1_000_000, 1000)]
"
    );
    // SAFETY: takes no memory.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("skipped: only root may lock so much memory");
        return;
    }
    for python in able() {
        let end = Trimmed::of(python, &script, "asked").succeeded().end();
        assert!(end.number("refusedBytes") > 60 << 20 && end.number("poolBytes") < 1 << 20, "3.{}", python.minor);
    }
}

#[test]
fn huge_pages_are_given_back_in_part() {
    let script = format!(
        "{RESIDENT}
import ctypes, re, sys
def huge():
    with open('/proc/self/smaps_rollup') as file: return int(re.search(r'AnonHugePages: *(\\d+)', file.read())[1]) << 10
{TUPLES}
MADV_COLLAPSE, SIZE = 25, 2 << 20
madvise = ctypes.CDLL(None).madvise
madvise.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
with open('/proc/self/maps') as file: maps = file.read()
for begin, end in re.findall(r'^([0-9a-f]+)-([0-9a-f]+) rw-p 0+ 00:00 0 *$', maps, re.M):
    begin, end = -(-int(begin, 16) // SIZE) * SIZE, int(end, 16) // SIZE * SIZE
    if begin < end: madvise(begin, end - begin, MADV_COLLAPSE)
before, collapsed = resident(), huge()
sys.audit('obmalloc.trim')
print(collapsed >> 20, before - resident() >> 20)
assert kept == [(n, n + 1) for n in range(0, 1_000_000, 1000)]
"
    );
    for python in able() {
        let run = Trimmed::of(python, &script, "asked").succeeded();
        let (collapsed, given): (u64, u64) = {
            let stdout = run.stdout();
            let mut numbers = stdout.split_whitespace().map(|number| number.parse().expect("a number"));
            (numbers.next().expect("two"), numbers.next().expect("two"))
        };
        if collapsed == 0 {
            eprintln!("skipped: this system makes no huge pages of memory that is there (Linux 6.1)");
            return;
        }
        assert!(collapsed > 40, "3.{}: {collapsed} MB in huge pages", python.minor);
        assert!(given > 55 && run.end().number("poolBytes") > 60 << 20, "3.{}: {given} MB given back", python.minor);
    }
}

/// A control group for memory, without swap. It goes with this.
struct Group(std::path::PathBuf);

impl Group {
    /// One with so many bytes. `None` where this process may not make one.
    fn of(bytes: u64) -> Option<Self> {
        let name = format!("obmalloc-test-{}", std::process::id());
        let (root, limit, swap) = [
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.swappiness"),
            ("/sys/fs/cgroup", "memory.max", "memory.swap.max"),
        ]
        .into_iter()
        .find(|(root, ..)| std::path::Path::new(root).join("cgroup.procs").exists())?;
        let directory = std::path::Path::new(root).join(name);
        std::fs::create_dir(&directory).ok()?;
        let group = Self(directory);
        std::fs::write(group.0.join(swap), "0").ok()?;
        std::fs::write(group.0.join(limit), bytes.to_string()).ok()?;
        Some(group)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn program_stays_below_the_limit_of_its_container_without_swap() {
    let Some(group) = Group::of(190 << 20) else {
        eprintln!("skipped: no control group for memory can be made here");
        return;
    };
    let script = |trim: &str| {
        format!(
            "
import os, sys
with open('{}/cgroup.procs', 'w') as file: file.write(str(os.getpid()))
{TUPLES}{trim}
more = b'x' * (100 << 20)
assert kept == [(n, n + 1) for n in range(0, 1_000_000, 1000)]
",
            group.0.display()
        )
    };
    for python in able() {
        Trimmed::of(python, &script("sys.audit('obmalloc.trim')"), "asked").succeeded();
        let killed = Trimmed::of(python, &script(""), "asked");
        assert_eq!(killed.0.output.status.signal(), Some(libc::SIGKILL), "3.{}: {}", python.minor, killed.stderr());
    }
}

#[test]
fn thousands_of_trims_change_no_result() {
    let script = "
import json, sys
data = [{'a': n, 'b': str(n), 'c': [n, n / 3, None]} for n in range(200)]
kept, text = [], json.dumps(data)
for turn in range(2000):
    made = json.loads(text)
    if turn % 100 == 0: kept.append(made[turn % 200])
    sys.audit('obmalloc.trim')
    assert made == data
assert kept == [data[turn % 200] for turn in range(0, 2000, 100)]
";
    for python in able() {
        let end = Trimmed::of(python, script, "asked,poison").succeeded().end();
        assert_eq!(end.number("trims"), 2000, "3.{}", python.minor);
    }
}
