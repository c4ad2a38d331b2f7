//! The debug hooks: what they leave in memory and what they say is what CPython's leave and say; and what CPython's do not notice.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr::NonNull;

use obmalloc::profile::{self, Profile};
use obmalloc::{AllocatorName, CheckedHeap, Domain, Fault, FaultKind, HeapOptions, NoHooks, ObjectHeap, TypeSpec};

#[path = "debug/cases.rs"]
mod cases;

use cases::{Case, Op};

/// What real CPythons gave: how each release's text ends, and then, case by case, what all of them did, and what each said then.
const GOLDEN: &str = include_str!("debug/golden.txt");
/// Where the releases begin to differ.
const PARTING: &str = "Fatal Python error";

fn heap(profile: &Profile) -> CheckedHeap {
    let heap = CheckedHeap::new(HeapOptions::new(profile)).expect("a heap");
    heap.setup_debug_hooks().expect("memory");
    heap
}

fn at(block: Option<NonNull<u8>>) -> usize {
    block.expect("memory").as_ptr().expose_provenance()
}

fn bytes(address: usize, length: usize) -> Vec<u8> {
    // SAFETY: the tests ask for memory of blocks, and of what was one in the heap's region.
    unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance(address), length).to_vec() }
}

fn write(address: usize, values: &[u8]) {
    // SAFETY: the tests write to memory of the heap's region, or within the guard bytes of a block.
    unsafe { std::ptr::with_exposed_provenance_mut::<u8>(address).copy_from(values.as_ptr(), values.len()) };
}

fn domain(api: char) -> Domain {
    match api {
        'r' => Domain::Raw,
        'm' => Domain::Mem,
        _ => Domain::Obj,
    }
}

/// What a case gives here, as the oracle words it.
fn play(heap: &CheckedHeap, ops: &[Op]) -> String {
    let mut output = String::new();
    let (mut block, mut size) = (0, 0);
    let mut step = |op: Op, output: &mut String| -> Result<(), Fault> {
        match op {
            Op::Malloc(api, n) => (block, size) = (at(heap.malloc(domain(api), n)), n),
            Op::Calloc(api, n) => (block, size) = (at(heap.calloc(domain(api), 1, n)), n),
            Op::Realloc(api, n) => {
                if let Some(moved) = heap.realloc(domain(api), Some(block), n)? {
                    (block, size) = (moved.as_ptr().expose_provenance(), n);
                }
            }
            Op::Free(api) => heap.free(domain(api), block)?,
            Op::Fill => write(block, &(0..size).map(cases::pattern).collect::<Vec<_>>()),
            Op::Write(offset, length, byte) => write(block.wrapping_add_signed(offset), &vec![byte; length]),
            Op::Show => writeln!(output, "bytes{}", cases::hex(&bytes(block - 16, size + 24))).expect("a string"),
            Op::ShowFreed => writeln!(output, "bytes{}", cases::hex(&bytes(block - 8, size + 16))).expect("a string"),
        }
        Ok(())
    };
    let result = ops.iter().try_for_each(|&op| step(op, &mut output));
    let end = match result {
        Err(fault) => {
            let report = fault.report.unwrap_or_else(|| panic!("{fault} has no report"));
            write!(output, "{report}").expect("a string");
            "signal 6"
        }
        Ok(()) => "ended",
    };
    shown(&output, end)
}

fn shown(output: &str, end: &str) -> String {
    let text = cases::normalised(output).escape_debug().to_string().replace("\\n", "\n");
    format!("{text}\n{end}\n")
}

/// Release → case → what it gave.
type Outputs = BTreeMap<String, BTreeMap<String, String>>;

fn parse_oracle(text: &str) -> BTreeMap<String, String> {
    text.split("== ").skip(1).filter_map(|part| part.split_once('\n')).map(|(name, output)| (name.into(), output.into())).collect()
}

/// What comes after the line in which a release says what is wrong: the same for every fault.
fn ending(output: &str) -> Option<&str> {
    let message = output.find(PARTING)?;
    output[message..].split_once('\n').map(|(_, ending)| ending)
}

fn golden() -> Outputs {
    let (endings, cases) = GOLDEN.split_at(GOLDEN.find("== ").unwrap_or(0));
    let mut outputs = Outputs::new();
    for part in endings.split("-- ").skip(1) {
        let (releases, ending) = part.split_once('\n').expect("releases");
        for release in releases.split(' ') {
            let output = outputs.entry(release.to_owned()).or_default();
            for part in cases.split("== ").skip(1) {
                let (name, text) = part.split_once('\n').expect("a name");
                let mut messages = text.split("-- ");
                let mut text = messages.next().expect("what all of them did").to_owned();
                for message in messages {
                    let (releases, message) = message.split_once('\n').expect("releases");
                    if releases.split(' ').any(|other| other == release) {
                        text = text + message + ending;
                    }
                }
                output.insert(name.into(), text);
            }
        }
    }
    outputs
}

/// Adds what comes from each release, once for all releases from which the same comes.
fn write_parted<'a>(text: &mut String, parts: impl Iterator<Item = (&'a String, &'a str)>) {
    let mut releases = BTreeMap::<&str, Vec<&str>>::new();
    for (release, part) in parts {
        releases.entry(part).or_default().push(release);
    }
    for (part, releases) in releases {
        *text += &format!("-- {}\n{part}", releases.join(" "));
    }
}

fn write_golden(outputs: &Outputs) -> String {
    let mut text = String::new();
    let endings: BTreeMap<_, _> = outputs
        .iter()
        .map(|(release, output)| {
            let endings: BTreeSet<_> = output.values().filter_map(|output| ending(output)).collect();
            assert_eq!(endings.len(), 1, "{release} ends in different ways: {endings:?}");
            (release, *endings.first().expect("an ending"))
        })
        .collect();
    write_parted(&mut text, endings.into_iter());
    for Case { name, .. } in cases::cases() {
        let split = |output: &'_ String| output.find(PARTING).unwrap_or(output.len());
        let common: BTreeSet<_> = outputs.values().map(|output| &output[&name][..split(&output[&name])]).collect();
        assert_eq!(common.len(), 1, "{name}: releases differ before {PARTING:?}: {common:?}");
        text += &format!("== {name}\n{}", common.first().expect("a release"));
        let messages = outputs.iter().filter_map(|(release, output)| {
            let output = &output[&name];
            let message = output[split(output)..].split_inclusive('\n').next()?;
            Some((release, message))
        });
        write_parted(&mut text, messages);
    }
    text
}

#[test]
fn every_release_leaves_and_says_what_cpython_does() {
    let golden = golden();
    let mut compared = 0;
    for profile in profile::ALL {
        let expected = &golden[profile.release];
        let heap = heap(profile);
        // Keeps the arena.
        heap.malloc(Domain::Obj, 1).expect("memory");
        for Case { name, ops } in cases::cases() {
            assert_eq!(play(&heap, &ops), expected[&name], "{}: {name}", profile.release);
            heap.verify().expect("holds");
            compared += 1;
        }
    }
    assert_eq!(compared, 9 * cases::cases().len());
}

/// The CPythons of this machine.
fn pythons() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::env::var_os("OBMALLOC_PYTHON").iter().flat_map(std::env::split_paths).collect();
    if let Some(home) = std::env::var_os("HOME") {
        let versions = std::fs::read_dir(Path::new(&home).join(".pyenv/versions")).into_iter().flatten().flatten();
        found.extend(versions.map(|version| version.path().join("bin/python3")));
    }
    found.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths).map(|folder| folder.join("python3")));
    found.retain(|path| path.is_file());
    found.sort();
    found.dedup();
    found
}

#[test]
fn the_golden_copies_are_what_real_cpythons_give() {
    let oracle = std::env::current_exe().expect("a test").parent().and_then(Path::parent).expect("target").join("examples");
    let oracle = oracle.join("libdebug_oracle.so");
    assert!(oracle.is_file(), "{} is missing: cargo test -p obmalloc builds it", oracle.display());
    let (mut all, mut seen) = (Outputs::new(), BTreeSet::new());
    for python in pythons() {
        // What was found may be a script that starts a python.
        let tell = "import sys, os; print('%d.%d.%d' % sys.version_info[:3], sys.base_prefix, os.path.realpath(sys.executable), sep=':')";
        let told = Command::new(&python).args(["-c", tell]).output();
        let Some(told) = told.ok().filter(|told| told.status.success()).and_then(|told| String::from_utf8(told.stdout).ok()) else {
            continue;
        };
        let [version, prefix, executable] = told.trim().split(':').collect::<Vec<_>>()[..] else { continue };
        let Some(profile) = Profile::of_version(version).filter(|_| seen.insert(executable.to_owned())) else { continue };
        let played = Command::new(executable)
            .env("LD_PRELOAD", &oracle)
            .env("PYTHONMALLOC", "debug")
            .env("PYTHONHOME", prefix)
            .output()
            .expect("a python");
        let outputs = parse_oracle(&String::from_utf8(played.stdout).expect("text"));
        assert_eq!(outputs.len(), cases::cases().len(), "{executable}: {}", String::from_utf8_lossy(&played.stderr));
        println!("{version}: {} cases, {executable}", outputs.len());
        let known = all.entry(profile.release.into()).or_insert_with(|| outputs.clone());
        assert!(*known == outputs, "{version} differs from another of release {}", profile.release);
    }
    if std::env::var_os("OBMALLOC_GOLDEN").is_some() {
        assert_eq!(all.len(), profile::ALL.len(), "a CPython of every release is needed for new golden copies");
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/debug/golden.txt");
        std::fs::write(path, write_golden(&all)).expect("written");
        return;
    }
    let golden = golden();
    for (release, outputs) in &all {
        for (name, output) in outputs {
            assert_eq!(output, &golden[release][name], "{release}: {name}");
        }
    }
    if all.is_empty() {
        println!("no CPython found: the golden copies were not compared with one");
    }
}
