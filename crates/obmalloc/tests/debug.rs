//! The debug hooks leave the same bytes in memory and write the same text as CPython's. They also find damage that CPython's do not notice.

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

/// What real CPythons did: how each release's text ends, and then for each case the memory, which was the same for all, and each release's text.
const GOLDEN: &str = include_str!("debug/golden.txt");
/// From this text on the releases differ.
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
    // SAFETY: the tests read memory of blocks, and of freed blocks in the heap's region.
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

/// Plays a case here, and returns what the oracle would write.
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
        // What CPython's hooks do not notice has no report.
        Err(Fault { report: None, .. }) => "ended",
        Err(Fault { report: Some(report), .. }) => {
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

/// Release → case → the oracle's output.
type Outputs = BTreeMap<String, BTreeMap<String, String>>;

fn parse_oracle(text: &str) -> BTreeMap<String, String> {
    text.split("== ")
        .skip(1)
        .filter_map(|part| part.split_once('\n'))
        .map(|(name, output)| (name.into(), output.into()))
        .collect()
}

/// The text after the line that says what is wrong. A release writes the same one for every fault.
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

/// Adds the output of each release. Releases with the same output share one entry.
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
#[cfg_attr(miri, ignore = "reading the golden copies alone takes minutes")]
fn every_release_leaves_and_says_what_cpython_does() {
    let golden = golden();
    let mut compared = 0;
    for profile in profile::ALL {
        let expected = &golden[profile.release()];
        let heap = heap(profile);
        // This block keeps the arena.
        heap.malloc(Domain::Obj, 1).expect("memory");
        for Case { name, ops } in cases::cases() {
            assert_eq!(play(&heap, &ops), expected[&name], "{}: {name}", profile.release());
            heap.verify().expect("holds");
            compared += 1;
        }
    }
    assert_eq!(compared, 9 * cases::cases().len());
}

/// A CPython of this machine.
struct Python {
    version: String,
    profile: &'static Profile,
    prefix: String,
    executable: String,
}

impl Python {
    /// The CPython that `path` starts, if it is one of a release here.
    fn at(path: &Path) -> Option<Self> {
        // The file may be a script that starts a python.
        let tell = "import sys, os; print('%d.%d.%d' % sys.version_info[:3], sys.base_prefix, os.path.realpath(sys.executable), sep=':')";
        let told = Command::new(path).args(["-c", tell]).output().ok().filter(|told| told.status.success())?;
        let told = String::from_utf8(told.stdout).ok()?;
        let [version, prefix, executable] = told.trim().split(':').collect::<Vec<_>>()[..] else { return None };
        let profile = Profile::of_version(version)?;
        Some(Self { version: version.into(), profile, prefix: prefix.into(), executable: executable.into() })
    }

    /// The oracle's output for the first `count` cases, with this `PYTHONMALLOC`. An error has what CPython printed instead.
    fn play(&self, allocator: &str, count: usize) -> Result<BTreeMap<String, String>, String> {
        // If a sanitizer instruments this test, the oracle must be one without it, because CPythons have none.
        let oracle = std::env::var_os("OBMALLOC_DEBUG_ORACLE").map_or_else(
            || {
                let target = std::env::current_exe().expect("a test").parent().and_then(Path::parent).expect("target").to_owned();
                target.join("examples/libdebug_oracle.so")
            },
            PathBuf::from,
        );
        assert!(oracle.is_file(), "{} is missing: cargo test -p obmalloc builds it, and rebuilds it", oracle.display());
        let played = Command::new(&self.executable)
            .env("LD_PRELOAD", &oracle)
            .env("OBMALLOC_DEBUG_CASES", count.to_string())
            .env("PYTHONMALLOC", allocator)
            .env("PYTHONHOME", &self.prefix)
            .output()
            .expect("a python");
        let outputs = parse_oracle(&String::from_utf8(played.stdout).expect("text"));
        if outputs.len() == count { Ok(outputs) } else { Err(String::from_utf8_lossy(&played.stderr).into_owned()) }
    }
}

/// The CPythons of this machine.
fn pythons() -> Vec<Python> {
    let mut found: Vec<PathBuf> = std::env::var_os("OBMALLOC_PYTHON").iter().flat_map(std::env::split_paths).collect();
    if let Some(home) = std::env::var_os("HOME") {
        let versions = std::fs::read_dir(Path::new(&home).join(".pyenv/versions")).into_iter().flatten().flatten();
        found.extend(versions.map(|version| version.path().join("bin/python3")));
    }
    found.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths).map(|folder| folder.join("python3")));
    let mut seen = BTreeSet::new();
    let pythons: Vec<_> =
        found.iter().filter_map(|path| Python::at(path)).filter(|python| seen.insert(python.executable.clone())).collect();
    if pythons.is_empty() {
        println!("no CPython found: nothing was compared with one");
    }
    pythons
}

#[test]
#[cfg_attr(miri, ignore = "it starts processes")]
fn real_cpythons_choose_the_same_allocators_by_name() {
    // Of every domain one.
    let count = 6;
    for python in pythons() {
        for name in AllocatorName::ALL {
            let outputs = python.play(name.name(), count).expect("a known name");
            let aborted = outputs.values().filter(|output| output.ends_with("signal 6\n")).count();
            assert_eq!(aborted, if name.has_debug_hooks() { count } else { 0 }, "{}: {}", python.version, name.name());
            let stats = Command::new(&python.executable)
                .args(["-c", "import sys; sys._debugmallocstats()"])
                .env("PYTHONMALLOC", name.name())
                .output();
            let stats = String::from_utf8(stats.expect("a python").stderr).expect("text");
            assert_eq!(stats.contains("size classes"), name.has_pymalloc(), "{}: {}", python.version, name.name());
        }
        let refused = python.play("malloc_", count).expect_err("an unknown name");
        assert!(refused.contains("unknown allocator"), "{}: {refused}", python.version);
    }
}

#[test]
#[cfg_attr(miri, ignore = "it starts processes")]
fn the_golden_copies_are_what_real_cpythons_give() {
    let mut all = Outputs::new();
    for python in pythons() {
        let outputs = python.play("debug", cases::cases().len()).unwrap_or_else(|said| panic!("{}: {said}", python.executable));
        println!("{}: {} cases, {}", python.version, outputs.len(), python.executable);
        let release = python.profile.release();
        let known = all.entry(release.into()).or_insert_with(|| outputs.clone());
        assert!(*known == outputs, "{} differs from another of release {release}", python.version);
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
}

fn live(heap: &CheckedHeap, domain: Domain, size: usize) -> usize {
    at(heap.malloc(domain, size))
}

#[test]
fn what_moves_past_the_hooks_into_freed_memory_may_be_written_to() {
    let heap = ObjectHeap::new(HeapOptions::new(&profile::V3_13), Box::new(NoHooks)).expect("a heap");
    let own = heap.allocator(Domain::Obj).expect("memory");
    heap.setup_debug_hooks().expect("memory");
    let obj = |size| at(heap.blocks().malloc(Domain::Obj, size));
    // The first block keeps the pool of the second one.
    let [_, freed] = [0; 2].map(|_| obj(64 - 24));
    heap.blocks().free(Domain::Obj, freed).expect("live");
    heap.set_allocator(Domain::Obj, own).expect("it has been in");
    let small = obj(16);
    let moved = at(heap.blocks().realloc(Domain::Obj, Some(small), 64).expect("live"));
    assert_eq!(moved, freed - 16, "the block that was freed last");
    write(moved, &[1; 64]);
    heap.verify_guards().expect("nothing was written to after it had been freed");
}

/// Requests blocks until every block that is free now has been given, and frees them again. Checks that none of them is `withheld`.
fn is_never_given(heap: &CheckedHeap, domain: Domain, size: usize, withheld: usize) {
    let blocks: Vec<_> = (0..if cfg!(miri) { 20 } else { 2000 }).map(|_| live(heap, domain, size)).collect();
    assert!(!blocks.contains(&withheld), "{withheld:#x} was given again");
    blocks.into_iter().for_each(|block| heap.free(domain, block).expect("live"));
}

#[test]
fn each_damage_has_its_kind_and_the_block_stays_what_it_was() {
    let heap = heap(&profile::V3_13);
    for domain in Domain::ALL {
        for &size in if cfg!(miri) { &[17usize][..] } else { &[0, 1, 8, 17, 100, 300, 488, 489, 600, 5000] } {
            for (offset, kind) in [
                (size as isize, FaultKind::BufferOverflow),
                (size as isize + 7, FaultKind::BufferOverflow),
                (-1, FaultKind::BufferUnderflow),
                (-7, FaultKind::BufferUnderflow),
                (-8, FaultKind::BufferUnderflow),
                (-9, FaultKind::BufferUnderflow),
                (-16, FaultKind::BufferUnderflow),
            ]
            .into_iter()
            .step_by(if cfg!(miri) { 3 } else { 1 })
            {
                let block = live(&heap, domain, size);
                write(block, &vec![1; size]);
                let damaged = block.wrapping_add_signed(offset);
                let before = bytes(damaged, 1);
                let blocks = heap.allocated_blocks();
                write(damaged, &[!before[0]]);
                let found = heap.verify_guards().expect_err("damaged");
                assert_eq!((found.kind, found.address, found.offset), (kind, block, Some(offset)), "{domain} {size}");
                for _ in 0..2 {
                    let on_free = heap.free(domain, block).expect_err("damaged");
                    let on_realloc = heap.realloc(domain, Some(block), size + 30).expect_err("damaged");
                    for fault in [on_free, on_realloc] {
                        assert_eq!((fault.kind, fault.address, fault.offset), (kind, block, Some(offset)));
                        assert_eq!((fault.used, fault.allocated), (domain, Some(domain)));
                    }
                }
                // A walk does not report the same damage again, and the block is unchanged.
                assert_eq!(heap.verify_guards(), Ok(()));
                assert_eq!(heap.usable_size(domain, block), Ok(size));
                assert_eq!(bytes(block, size), vec![1; size]);
                assert_eq!(heap.allocated_blocks(), blocks);
                heap.verify().expect("holds");
                // With the byte put back the block is sound again.
                write(damaged, &before);
                heap.free(domain, block).expect("sound");
            }
        }
    }
    assert_eq!(heap.allocated_blocks(), 0);
}

#[test]
fn a_damaged_block_is_not_given_again() {
    let heap = heap(&profile::V3_13);
    let block = live(&heap, Domain::Obj, 40);
    write(block + 40, b"x");
    heap.free(Domain::Obj, block).expect_err("damaged");
    is_never_given(&heap, Domain::Obj, 40, block);
    heap.verify().expect("holds");
}

#[test]
fn a_bogus_size_is_not_followed_out_of_the_block() {
    let heap = heap(&profile::V3_13);
    for domain in Domain::ALL {
        for size in [u64::MAX / 2, 1 << 40, 101, 100 + 8] {
            let block = live(&heap, domain, 100);
            write(block - 16, &size.to_be_bytes());
            let fault = heap.free(domain, block).expect_err("damaged");
            assert_eq!(fault.kind, FaultKind::BufferUnderflow);
            assert_eq!(fault.report, None, "what CPython reads there is not known");
            assert_eq!(heap.usable_size(domain, block), Ok(100));
        }
    }
}

#[test]
fn a_wrong_domain_is_told_as_cpython_tells_it_and_changes_nothing() {
    let heap = heap(&profile::V3_12);
    let block = live(&heap, Domain::Mem, 16);
    let fault = heap.free(Domain::Obj, block).expect_err("mem");
    assert_eq!((fault.kind, fault.allocated, fault.used), (FaultKind::WrongDomain, Some(Domain::Mem), Domain::Obj));
    let report = fault.report.expect("a report").to_string();
    assert!(report.contains("bad ID: Allocated using API 'm', verified using API 'o'"), "{report}");
    assert!(report.starts_with(&format!("Debug memory block at address p={block:#x}: API 'm'\n")), "{report}");
    // Where CPython has no hook, there is no text of CPython's.
    assert_eq!(heap.usable_size(Domain::Obj, block).expect_err("mem").report, None);
    heap.verify_guards().expect("nothing is damaged");
    heap.free(Domain::Mem, block).expect("live");
}

#[test]
fn what_crashes_cpythons_hooks_is_a_fault() {
    let heap = heap(&profile::V3_14);
    let mut freed = BTreeSet::new();
    for domain in Domain::ALL {
        for size in [0, 40, 600, if cfg!(miri) { 3000 } else { 300_000 }] {
            let block = live(&heap, domain, size);
            for (address, kind) in [
                (block + 1, if size > 1 { FaultKind::InteriorPointer } else { FaultKind::ForeignPointer }),
                (block - 16, FaultKind::ForeignPointer),
                (block - 1, FaultKind::ForeignPointer),
            ] {
                let fault = heap.free(domain, address).expect_err("no block");
                // The address may be that of a block which was freed before this one was made.
                let before = fault.kind == FaultKind::DoubleFree && freed.contains(&address);
                assert!(
                    fault.kind == kind || before || (size == 0 && fault.kind == FaultKind::InteriorPointer),
                    "{domain} {size} {address:#x} in {block:#x}: {fault}"
                );
            }
            heap.free(domain, block).expect("live");
            assert_eq!(heap.free(domain, block).expect_err("freed").kind, FaultKind::DoubleFree);
            assert_eq!(heap.realloc(domain, Some(block), 9).expect_err("freed").kind, FaultKind::UseAfterFree);
            freed.insert(block);
            heap.verify().expect("holds");
            heap.verify_guards().expect("holds");
        }
    }
}

#[test]
fn a_write_after_free_is_found_when_the_block_is_to_be_used_again() {
    for (profile, domain) in [(&profile::V3_8, Domain::Obj), (&profile::V3_13, Domain::Mem)] {
        for offset in [-8, -1, 0, 13, 14, 39, 40, 47].into_iter().step_by(if cfg!(miri) { 3 } else { 1 }) {
            let heap = heap(profile);
            let anchor = live(&heap, domain, 40);
            let block = live(&heap, domain, 40);
            let blocks = heap.allocated_blocks();
            heap.free(domain, block).expect("live");
            write(block.wrapping_add_signed(offset), b"!");
            assert_eq!(heap.malloc(domain, 33), None);
            let fault = heap.take_fault().expect("a fault");
            assert_eq!((fault.kind, fault.address, fault.used), (FaultKind::WriteAfterFree, block, domain));
            assert_eq!(fault.offset, Some(offset));
            assert_eq!(heap.take_fault(), None);
            heap.verify().expect("holds");
            heap.verify_guards().expect("said already");
            is_never_given(&heap, domain, 40, block);
            assert_eq!(heap.allocated_blocks(), blocks - 1);
            heap.free(domain, anchor).expect("live");
        }
    }
}

#[test]
fn a_write_after_free_is_found_by_a_walk_and_the_block_is_left_out_then() {
    let heap = heap(&profile::V3_13);
    let blocks: Vec<_> = (0..8).map(|_| live(&heap, Domain::Obj, 100)).collect();
    heap.free(Domain::Obj, blocks[3]).expect("live");
    heap.free(Domain::Obj, blocks[5]).expect("live");
    write(blocks[3] + 99, b"!");
    let fault = heap.verify_guards().expect_err("damaged");
    assert_eq!((fault.kind, fault.address, fault.offset), (FaultKind::WriteAfterFree, blocks[3], Some(99)));
    heap.verify_guards().expect("said already");
    is_never_given(&heap, Domain::Obj, 100, blocks[3]);
    assert_eq!(heap.take_fault(), None);
    heap.verify().expect("holds");
    assert_eq!(heap.allocated_blocks(), 6);
}

#[test]
fn memory_that_is_given_for_something_else_was_not_written_to_after_free() {
    let heap = heap(&profile::V3_9);
    for sizes in [[40, 200], [200, 40], [8, 480]] {
        // Whole pools change their size class, and arenas come and go.
        for size in sizes {
            let blocks: Vec<_> = (0..if cfg!(miri) { 100 } else { 9000 }).map(|_| live(&heap, Domain::Obj, size)).collect();
            for &block in &blocks {
                write(block, &vec![0x77; size]);
            }
            let (kept, freed): (Vec<_>, Vec<_>) = blocks.into_iter().enumerate().partition(|(index, _)| index % 3 == 0);
            freed.into_iter().for_each(|(_, block)| heap.free(Domain::Obj, block).expect("live"));
            heap.verify_guards().expect("nothing was written");
            for (_, block) in kept {
                let moved = at(heap.realloc(Domain::Obj, Some(block), size / 2).expect("live"));
                heap.free(Domain::Obj, moved).expect("live");
            }
            heap.verify_guards().expect("nothing was written");
        }
    }
    assert_eq!(heap.take_fault(), None);
    heap.verify().expect("holds");
}

#[test]
fn a_link_that_was_written_over_is_not_followed() {
    for link in [0x10usize, usize::MAX, 1 << 46, 0xdddd_dddd_dddd_dddd] {
        let heap = heap(&profile::V3_13);
        let blocks: Vec<_> = (0..4).map(|_| live(&heap, Domain::Obj, 40)).collect();
        heap.free(Domain::Obj, blocks[1]).expect("live");
        heap.free(Domain::Obj, blocks[2]).expect("live");
        write(blocks[2] - 16, &link.to_ne_bytes());
        for _ in 0..2 {
            assert_eq!(heap.malloc(Domain::Obj, 40), None);
            let fault = heap.take_fault().expect("a fault");
            assert_eq!((fault.kind, fault.address), (FaultKind::HeapCorrupted, blocks[2] - 16));
        }
        heap.verify().expect_err("corrupted");
        // Other classes go on.
        live(&heap, Domain::Obj, 100);
    }
    // A link to a live block would give that block to a second owner.
    let heap = heap(&profile::V3_13);
    let blocks: Vec<_> = (0..4).map(|_| live(&heap, Domain::Obj, 40)).collect();
    heap.free(Domain::Obj, blocks[2]).expect("live");
    write(blocks[2] - 16, &(blocks[1] - 16).to_ne_bytes());
    assert_eq!(heap.malloc(Domain::Obj, 40), None);
    assert_eq!(heap.take_fault().expect("a fault").kind, FaultKind::HeapCorrupted);
}

#[test]
fn blocks_older_than_the_hooks_are_freed_without_a_look() {
    let heap = CheckedHeap::new(HeapOptions::new(&profile::V3_11)).expect("a heap");
    let sizes: &[usize] = if cfg!(miri) { &[16, 600] } else { &[1, 16, 500, 600, 70_000] };
    let each = Domain::ALL.into_iter().flat_map(|domain| sizes.iter().map(move |&size| (domain, size)));
    let old: Vec<_> = each.map(|(domain, size)| (domain, live(&heap, domain, size))).collect();
    heap.setup_debug_hooks().expect("memory");
    heap.setup_debug_hooks().expect("nothing to do");
    for (index, &(domain, block)) in old.iter().enumerate() {
        if index % 2 == 0 {
            heap.free(domain, block).expect("live");
            assert_eq!(heap.free(domain, block).expect_err("freed").kind, FaultKind::DoubleFree);
        } else {
            // A block of pymalloc that grows comes from the raw domain then, which has a hook.
            let mut moved = block;
            for size in [333, 5000, 9000, 20] {
                moved = at(heap.realloc(domain, Some(moved), size).expect("live"));
                assert!(heap.usable_size(domain, moved).expect("live") >= size);
                heap.verify_guards().expect("holds");
            }
            heap.free(domain, moved).expect("live");
        }
        heap.verify().expect("holds");
    }
    assert_eq!(heap.allocated_blocks(), 0);
    for domain in [Domain::Mem, Domain::Obj] {
        let heap = CheckedHeap::new(HeapOptions::new(&profile::V3_11)).expect("a heap");
        let small = live(&heap, domain, 16);
        heap.setup_debug_hooks().expect("memory");
        let large = at(heap.realloc(domain, Some(small), 5000).expect("live"));
        write(large + 5000, &[0]);
        for _ in 0..2 {
            let fault = heap.free(domain, large).expect_err("damaged");
            assert_eq!((fault.kind, fault.address, fault.offset), (FaultKind::BufferOverflow, large, Some(5000)));
            assert_eq!(heap.realloc(domain, Some(large), 9).expect_err("damaged").kind, FaultKind::BufferOverflow);
            assert_eq!(heap.check_free(domain, large).expect_err("damaged").kind, FaultKind::BufferOverflow);
        }
        // It is of that domain all the same.
        assert_eq!(heap.free(Domain::Raw, large).expect_err("not raw").kind, FaultKind::WrongDomain);
        write(large + 5000, &[0xfd]);
        heap.free(domain, large).expect("sound");
        assert_eq!(heap.allocated_blocks(), 0);
    }
    // After the second set-up there is still one hook around the allocator.
    let block = live(&heap, Domain::Obj, 5);
    assert_eq!(bytes(block - 16, 8), 5u64.to_be_bytes());
    assert_eq!(bytes(block + 5, 8), [0xfd; 8]);
    assert_eq!(heap.usable_size(Domain::Obj, block), Ok(5));
}

#[test]
fn names_of_pythonmalloc_choose_the_allocators() {
    for name in AllocatorName::ALL {
        assert_eq!(AllocatorName::named(name.name()), Some(name));
        let heap = CheckedHeap::new(HeapOptions { allocator: name, ..HeapOptions::new(&profile::V3_13) }).expect("a heap");
        let allocators = Domain::ALL.map(|domain| live(&heap, domain, 40));
        let (pymalloc, debug) = match name.name() {
            "default" | "pymalloc" => (true, false),
            "debug" | "pymalloc_debug" => (true, true),
            "malloc" => (false, false),
            "malloc_debug" => (false, true),
            other => panic!("{other}"),
        };
        assert_eq!(heap.arenas().len(), usize::from(pymalloc), "{}", name.name());
        for (domain, block) in Domain::ALL.into_iter().zip(allocators) {
            let guarded = bytes(block + 40, if debug { 8 } else { 0 }).iter().all(|&byte| byte == 0xfd);
            assert!(guarded, "{}: {domain}", name.name());
            if debug {
                assert_eq!(bytes(block - 8, 1)[0], [b'r', b'm', b'o'][domain as usize]);
                write(block + 40, &[0]);
                assert_eq!(heap.free(domain, block).expect_err("damaged").kind, FaultKind::BufferOverflow);
                write(block + 40, &[0xfd]);
            }
            heap.free(domain, block).expect("live");
        }
        heap.verify().expect("holds");
    }
    for unknown in ["", "Default", "mimalloc", "debug ", "malloc_"] {
        assert_eq!(AllocatorName::named(unknown), None);
    }
}

fn debug_objects(profile: &Profile) -> ObjectHeap {
    let options = HeapOptions { allocator: AllocatorName::Debug, ..HeapOptions::new(profile) };
    ObjectHeap::new(options, Box::new(NoHooks)).expect("a heap")
}

#[test]
fn objects_lie_between_guard_bytes() {
    let count = if cfg!(miri) { 5 } else { 300 };
    for profile in profile::ALL {
        let heap = debug_objects(profile);
        let fields = vec![("next".to_owned(), obmalloc::FieldKind::Object), ("n".to_owned(), obmalloc::FieldKind::I64)];
        let spec = TypeSpec { name: "node".into(), fields, gc: true, weakrefs: true, managed_dict: true, ..TypeSpec::default() };
        let node = heap.define_type(spec).expect("a type");
        let objects: Vec<_> = (0..count).map(|_| heap.alloc(node, 0).expect("memory")).collect();
        for (index, &object) in objects.iter().enumerate() {
            let next = objects[(index + 1) % objects.len()];
            heap.set(object, obmalloc::Field::Name("next"), obmalloc::Value::Object(next)).expect("an object");
        }
        heap.verify().expect("holds");
        heap.verify_guards().expect("holds");
        for &object in &objects {
            assert_eq!(heap.blocks().free(Domain::Obj, object).expect_err("an object").kind, FaultKind::WrongType);
            heap.decref(object).expect("an object");
        }
        assert_eq!(heap.collect(2), Ok(count));
        assert_eq!(heap.take_fault(), None);
        assert_eq!(heap.allocated_blocks(), 0);
        assert_eq!(heap.decref(objects[0]).expect_err("gone").kind, FaultKind::RefcountUnderflow);
        heap.verify().expect("holds");
        heap.verify_guards().expect("holds");
    }
}

#[test]
fn an_object_with_damaged_guard_bytes_is_told_of_when_it_is_destroyed() {
    let heap = debug_objects(&profile::V3_13);
    let plain = heap.define_type(TypeSpec { name: "plain".into(), ..TypeSpec::default() }).expect("a type");
    let [other, object, third] = [0; 3].map(|_| heap.alloc(plain, 0).expect("memory"));
    assert_eq!(bytes(object - 16, 8), 16u64.to_be_bytes());
    write(object + 16, &[0]);
    let fault = heap.decref(object).expect_err("damaged");
    assert_eq!((fault.kind, fault.address, fault.offset), (FaultKind::BufferOverflow, object, Some(16)));
    assert!(fault.report.expect("a report").to_string().contains("bad trailing pad byte"));
    assert_eq!(heap.refcount(object).expect_err("gone").kind, FaultKind::UseAfterFree);
    heap.verify().expect("holds");
    heap.verify_guards().expect("said already");
    let others: Vec<_> = (0..if cfg!(miri) { 20 } else { 2000 }).map(|_| heap.alloc(plain, 0).expect("memory")).collect();
    assert!(!others.contains(&object), "{object:#x} was given again");
    others.into_iter().for_each(|other| heap.decref(other).expect("an object"));
    // A request for an object fails with the fault, and the next one does not.
    heap.decref(other).expect("an object");
    write(other + 3, b"late");
    let refused = heap.alloc(plain, 0).expect_err("written to");
    assert!(matches!(refused, obmalloc::ObjectError::Fault(fault) if fault.kind == FaultKind::WriteAfterFree), "{refused}");
    let next = heap.alloc(plain, 0).expect("memory");
    assert_ne!(next, other);
    heap.decref(next).expect("an object");
    heap.decref(third).expect("an object");
}

#[test]
fn a_heap_gives_back_what_it_withheld() {
    // The sanitizers report what is leaked or freed twice.
    let heap = heap(&profile::V3_13);
    for domain in Domain::ALL {
        for size in [20, 700] {
            let kept = live(&heap, domain, size);
            let damaged = live(&heap, domain, size);
            write(damaged + size, &[0]);
            heap.free(domain, damaged).expect_err("damaged");
            if domain != Domain::Raw && size == 700 {
                // A large block of mem or obj lies in a raw block, which has guard bytes of its own.
                let inner = live(&heap, domain, size + 1);
                write(inner + size + 1 + 8, &[0]);
                assert_eq!(heap.free(domain, inner).expect_err("damaged").kind, FaultKind::BufferOverflow);
                assert_eq!(heap.free(domain, inner).expect_err("gone").kind, FaultKind::DoubleFree);
            }
            assert_eq!(heap.usable_size(domain, kept), Ok(size));
        }
    }
    heap.verify().expect("holds");
}
