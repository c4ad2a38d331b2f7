//! The stacks that requests are made under, in real interpreters.
#![cfg(target_os = "linux")]

mod common;

use common::{Python, Run, fixed_with, pythons, recorder};
use obmalloc_trace::format::{Domain, Event, Note, Reader};
use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

const FRAMES: usize = 64;

fn workload(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../workload").join(name).canonicalize().expect("it is bundled")
}

/// Two of the workloads, or with `OBMALLOC_STACKS_ALL` all, which takes minutes.
fn workloads() -> Vec<PathBuf> {
    if std::env::var_os("OBMALLOC_STACKS_ALL").is_none() {
        return ["recursion.py", "small.py"].map(workload).into();
    }
    let folder = std::fs::read_dir(workload("")).expect("a folder");
    let mut paths: Vec<PathBuf> = folder.map(|file| file.expect("readable").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "py"));
    paths.sort();
    paths
}

/// A live block: its size, and the stack of the request for it.
#[derive(Clone, Copy)]
struct Block {
    size: u64,
    stack: u64,
}

/// What is alive after some of a trace, by address.
#[derive(Default)]
struct Alive {
    blocks: HashMap<u64, Block>,
    events: u64,
    /// Addresses that were allocated or freed since this set was last emptied.
    touched: HashSet<u64>,
}

impl Alive {
    /// Reads on, up to event `until`.
    fn read(&mut self, reader: &mut Reader<'_>, until: u64) {
        while self.events < until
            && let Some(event) = reader.next()
        {
            self.events += 1;
            let (gone, come, size) = match event.expect("an undamaged trace") {
                Event::Malloc { size, result, .. } => (0, result, size),
                Event::Calloc { count, size, result, .. } => (0, result, count * size),
                Event::Realloc { result: 0, .. } => continue,
                Event::Realloc { address, size, result, .. } => (address, result, size),
                Event::Free { address, .. } => (address, 0, 0),
                _ => continue,
            };
            for address in [gone, come] {
                self.blocks.remove(&address);
                self.touched.insert(address);
            }
            if come != 0 {
                self.blocks.insert(come, Block { size, stack: reader.stack() });
            }
        }
    }
}

/// A block for which tracemalloc has another stack than the recorder.
struct Difference {
    kind: String,
    size: u64,
    recorded: Vec<String>,
    expected: Vec<String>,
}

impl Difference {
    /// Whether CPython may have used the memory of a dead object for a new one of the same type. It requests no memory then, but tracemalloc
    /// notes the new object's stack.
    fn is_of_reuse(&self, minor: u32) -> bool {
        match self.kind.as_str() {
            // Tuples of up to twenty items. From 3.14 on a tuple keeps its hash.
            "tuple" => self.size <= 16 + if minor >= 14 { 32 } else { 24 } + 20 * 8,
            "list" | "dict" | "float" => true,
            // Up to 3.13 one dead slice is kept.
            "slice" => true,
            // A dead float in the free list has a link where its type was.
            "-" => self.size == 24,
            "frame" => minor <= 10,
            "method" | "builtin_function_or_method" => minor == 8 || minor >= 14,
            "builtin_method" => minor >= 15,
            // Ints of one digit: `_PyLong_FromMedium` asks for a whole `PyLongObject`, `long_alloc` for as much as they need.
            "int" => minor >= 14 && [28, 32].contains(&self.size),
            "range" | "range_iterator" | "list_iterator" | "tuple_iterator" => minor >= 14,
            _ => false,
        }
    }
}

/// Runs a program under tracemalloc and the recorder. Returns how many blocks both know, and the blocks whose stacks differ.
fn judged(python: &Python, program: &Path) -> (usize, Vec<Difference>) {
    // Several interpreters may be of one release.
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    let run = RUNS.fetch_add(1, Ordering::Relaxed);
    let directory = std::env::temp_dir().join(format!("obmalloc-stacks-{}-{run}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a temporary directory");
    let (trace, wanted) = (directory.join("trace"), directory.join("wanted"));
    let judge = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/judge.py");
    let mut command = Command::new(&python.executable);
    command.arg(judge).arg(FRAMES.to_string()).arg(program).env("LD_PRELOAD", recorder()).env("OBMALLOC_TRACE", &trace);
    command.env("OBMALLOC_STACKS", FRAMES.to_string()).env_remove("OBMALLOC_TRACE_PID").env_remove("OBMALLOC_TRACE_RUN");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the interpreter starts");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines().map(|line| line.expect("text"));
    assert!(lines.any(|line| line == "ready"), "{} {}", python.executable.display(), program.display());
    let reader = || Reader::new(std::fs::read(&trace).expect("a trace")).expect("a trace");
    let mut alive = Alive::default();
    alive.read(&mut reader(), u64::MAX);
    let list: Vec<String> = alive.blocks.iter().map(|(address, block)| format!("{address:x} {:x}\n", block.size)).collect();
    std::fs::write(&wanted, list.concat()).expect("room");
    writeln!(child.stdin.take().expect("a pipe"), "{}", wanted.display()).expect("it listens");
    let answers: Vec<String> = lines.collect();
    assert!(child.wait().expect("a child").success());
    // Blocks that were allocated or freed after the list was made are not compared.
    let (until, mut alive, mut reader) = (alive.events, Alive::default(), reader());
    alive.read(&mut reader, until);
    let listed = alive.blocks.clone();
    alive.touched.clear();
    alive.read(&mut reader, u64::MAX);
    let _ = std::fs::remove_dir_all(&directory);
    let (mut compared, mut differences) = (0, Vec::new());
    for answer in &answers {
        let mut fields = answer.split('\t').map(str::to_owned);
        let address = u64::from_str_radix(&fields.next().expect("an address"), 16).expect("a number");
        let (kind, expected): (String, Vec<String>) = (fields.next().expect("a type"), fields.collect());
        if alive.touched.contains(&address) {
            continue;
        }
        compared += 1;
        let Block { size, stack } = listed[&address];
        let frames = reader.stacks().frames(stack).take(FRAMES);
        let recorded: Vec<String> = frames.map(|frame| format!("{}:{}", frame.file, frame.line)).collect();
        if recorded != expected {
            differences.push(Difference { kind, size, recorded, expected });
        }
    }
    (compared, differences)
}

#[test]
fn stacks_are_those_that_tracemalloc_knows() {
    // Under tracemalloc subinterpreters hang or abort in the releases at hand, also without the recorder.
    let programs: Vec<PathBuf> = workloads().into_iter().filter(|path| !path.ends_with("interpreters.py")).collect();
    let jobs: Vec<(&Python, &PathBuf)> =
        pythons().iter().flat_map(|python| programs.iter().map(move |program| (python, program))).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some((python, program)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let (compared, mut differences) = judged(python, program);
            let of = format!("3.{} {}", python.minor, program.display());
            assert!(compared > 800, "{of}: {compared} blocks are known");
            // From 3.14 on many more types keep the memory of their objects (`pycore_freelist_state.h`), ints among them.
            let part = if python.minor >= 14 { 5 } else { 8 };
            assert!(differences.len() * part < compared, "{of}: {} of {compared} differ", differences.len());
            println!("{of}: {} of {compared} blocks are objects in the memory of others", differences.len());
            differences.retain(|difference| !difference.is_of_reuse(python.minor));
            if let Some(Difference { kind, size, recorded, expected }) = differences.first() {
                panic!("{of}: {} differ, as {kind} of {size}: expected {expected:#?}, got {recorded:#?}", differences.len());
            }
        }
    };
    std::thread::scope(|scope| [0, 1].map(|_| scope.spawn(work)).map(|thread| thread.join().expect("no difference")));
}

/// A run at fixed addresses.
fn fixed(python: &Python, program: &Path, environment: &[(&str, &str)]) -> Run {
    fixed_with(python, &[program.to_str().expect("text")], environment)
}

#[test]
fn trace_with_stacks_is_that_without_them_event_for_event() {
    for python in pythons() {
        // Threads take turns as they like; interpreters are in threads from 3.12 on.
        let has_threads = |path: &Path| path.ends_with("threads.py") || (path.ends_with("interpreters.py") && python.minor >= 12);
        for program in workloads().iter().filter(|path| !has_threads(path)) {
            let of = |frames: &str| fixed(python, program, &[("OBMALLOC_STACKS", frames)]).trace();
            let without = of("00");
            assert!(without.says("\"stacks\":    0"), "{}", without.header);
            for frames in ["01", "64"] {
                let with = of(frames);
                assert!(with.says(&format!("\"stacks\": {:4}", frames.parse::<u32>().expect("a number"))), "{}", with.header);
                let first = without.events.iter().zip(&with.events).position(|(without, with)| without != with);
                assert_eq!(first, None, "3.{} {}: the first event that differs", python.minor, program.display());
                assert_eq!(with.events.len(), without.events.len());
            }
        }
    }
}

/// The stacks of a trace in order, each with the number of successive events that have it.
fn stacks_in_turn(run: &Run) -> Vec<(u64, usize)> {
    let mut reader = Reader::new(std::fs::read(run.directory.join("trace")).expect("a trace")).expect("a trace");
    let mut found: Vec<(u64, usize)> = Vec::new();
    while let Some(event) = reader.next() {
        event.expect("undamaged");
        match found.last_mut() {
            Some((stack, count)) if *stack == reader.stack() => *count += 1,
            _ => found.push((reader.stack(), 1)),
        }
    }
    found
}

/// Runs a program twice: with the right layout of frames, and with an environment variable that makes the layout wrong.
fn spoilt(python: &Python, variable: &str, holds: &str, fails: &str) {
    const SAID: &str = "no stacks: this CPython's frames are not laid out as those of its release are";
    let of = |value| fixed(python, &workload("small.py"), &[("OBMALLOC_STACKS", "64"), (variable, value)]);
    let (holds, fails) = (of(holds), of(fails));
    assert!(stacks_in_turn(&holds).len() > 1000, "3.{}", python.minor);
    assert!(stacks_in_turn(&fails).iter().all(|&(stack, _)| stack == 0), "3.{}", python.minor);
    assert_eq!((holds.stdout(), holds.stderr()), (fails.stdout(), fails.stderr()));
    let (with, mut without) = (holds.trace(), fails.trace());
    assert!(!with.tells(SAID) && without.ends_orderly());
    let count = without.events.len();
    without.events.retain(|event| *event != Event::Note(Note::Text(SAID.into())));
    assert_eq!(count - without.events.len(), 1, "3.{}: said once", python.minor);
    let first = without.events.iter().zip(&with.events).position(|(without, with)| without != with);
    assert_eq!(first, None, "3.{}: the first event that differs", python.minor);
    assert_eq!(with.events.len(), without.events.len(), "3.{}", python.minor);
}

#[test]
fn layout_that_does_not_hold_gives_no_frame_anywhere_and_is_said_once() {
    for python in pythons() {
        // The texts have two digits. CPython keeps the texts of one digit, so only the first line that needs one would allocate it.
        spoilt(python, "OBMALLOC_STACKS_CODE_OFFSET", "00", "08");
    }
}

#[test]
fn layout_in_which_no_thread_has_a_frame_is_said_once() {
    for python in pythons() {
        // This offset is that of the first field of a thread's state. It leads to the next thread, and here there is none.
        spoilt(python, "OBMALLOC_STACKS_THREAD_FRAME", "no", "00");
    }
}

#[test]
fn calls_without_a_frame_have_none_before_the_program_begins_and_after_it() {
    // The parser allocates the constant. By then the frames of the interpreter's start are gone.
    let script = format!(
        "b'{}'\n\
         import atexit\n\
         bytes(70001)\n\
         atexit.register(lambda: bytes(70001))\n",
        "x".repeat(70002)
    );
    for python in pythons() {
        let run = Run::of(python, &script, &[("OBMALLOC_STACKS", "64")]).succeeded();
        let turns = stacks_in_turn(&run);
        let parsed = stacks_of(&run, 70002 + 33);
        assert!(!parsed.is_empty() && parsed.iter().all(Vec::is_empty), "3.{}: {parsed:?}", python.minor);
        assert_eq!(stacks_of(&run, 70001 + 33), [["<string>:3"], ["<string>:4"]], "3.{}", python.minor);
        // C code makes the built-in types and modules first, without a Python frame.
        assert!(turns[0].0 == 0 && turns[0].1 > 1000, "3.{}: {:?}", python.minor, turns[0]);
        assert_eq!(turns.last().expect("events").0, 0, "3.{}", python.minor);
    }
}

/// The stacks of the mem and obj requests for `size` bytes, as `file:line` from the innermost frame on.
fn stacks_of(run: &Run, size: u64) -> Vec<Vec<String>> {
    let mut reader = Reader::new(std::fs::read(run.directory.join("trace")).expect("a trace")).expect("a trace");
    let mut found = Vec::new();
    while let Some(event) = reader.next() {
        let (domain, asked) = match event.expect("undamaged") {
            Event::Malloc { domain, size, .. } => (domain, size),
            Event::Calloc { domain, count, size, .. } => (domain, count * size),
            _ => continue,
        };
        if domain != Domain::Raw && asked == size {
            let frames = reader.stacks().frames(reader.stack());
            found.push(frames.map(|frame| format!("{}:{}", frame.file, frame.line)).collect());
        }
    }
    found
}

#[test]
fn code_object_in_the_memory_of_another_is_another() {
    let script = "for n in range(400):\n    code = compile('\\n' * n + 'bytes(70001)', 'made%d' % n, 'exec')\n    exec(code)\n    del code\n";
    for python in pythons() {
        let run = Run::of(python, script, &[("OBMALLOC_STACKS", "64")]).succeeded();
        let expected: Vec<Vec<String>> = (0..400).map(|n| vec![format!("made{n}:{}", n + 1), "<string>:3".into()]).collect();
        assert_eq!(stacks_of(&run, 70001 + 33), expected, "3.{}", python.minor);
    }
}

#[test]
fn frames_of_generators_and_coroutines_and_calls_from_c_are_seen() {
    let script = "\
def inner():
    while True:
        yield bytes(70001)
def outer():
    yield from inner()
made = outer()
def one(): next(made)
def other(): next(made)
async def wait(): return bytes(70001)
async def ask(): return await wait()
for call in (one, other, one): call()
try: ask().send(None)
except StopIteration: pass
sorted([1, 2], key=lambda x: bytes(70001))
";
    let generator = |line: &'static str, call: &'static str| vec!["<string>:3", "<string>:5", line, call];
    let awaited = vec!["<string>:9", "<string>:10", "<string>:12"];
    let sorted = vec!["<string>:14", "<string>:14"];
    let expected = [
        generator("<string>:7", "<string>:11"),
        generator("<string>:8", "<string>:11"),
        generator("<string>:7", "<string>:11"),
        awaited,
        sorted.clone(),
        sorted,
    ];
    for python in pythons() {
        let run = Run::of(python, script, &[("OBMALLOC_STACKS", "64")]).succeeded();
        assert_eq!(stacks_of(&run, 70001 + 33), expected, "3.{}", python.minor);
        let run = Run::of(python, script, &[("OBMALLOC_STACKS", "2")]).succeeded();
        let two: Vec<Vec<String>> =
            stacks_of(&run, 70001 + 33).into_iter().map(|stack| stack.into_iter().take(2).collect()).collect();
        assert_eq!(two, expected.each_ref().map(|stack| stack[..2].to_vec()), "3.{}", python.minor);
    }
}

#[test]
fn interpreters_and_threads_go_on_with_stacks() {
    for python in pythons() {
        for program in ["threads.py", "interpreters.py", "fork.py"] {
            let run = Run::with(python, &[workload(program).to_str().expect("text")], &[("OBMALLOC_STACKS", "64")]).succeeded();
            assert!(run.trace().ends_orderly(), "3.{} {program}", python.minor);
        }
    }
}
