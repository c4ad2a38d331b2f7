//! This engine answers what real CPythons answered. A judge that is given a wrong answer finds it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use obmalloc::AllocatorName;
use obmalloc::profile::{self, Profile};
use obmalloc_proof::{Golden, Here, compare, found};

fn answers() -> Vec<Golden> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../__test__/golden/gc");
    let files = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    files.map(|path| serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()).collect()
}

#[test]
fn golden_answers_are_given_here_too() {
    let mut releases = BTreeSet::new();
    for mut golden in answers() {
        releases.insert(Profile::of_version(&golden.version).unwrap().release());
        // A test in TypeScript checks all of them, with an engine that is built for speed.
        golden.digests.truncate(20);
        let totals = golden.check().unwrap_or_else(|different| panic!("CPython {}: {different}", golden.version));
        assert_eq!(totals.programs, 20 * golden.programs);
        assert!(totals.events > 100_000);
    }
    assert_eq!(releases, profile::ALL.iter().map(|profile| profile.release()).collect(), "there are answers of every release");
}

#[test]
fn another_answer_is_found() {
    let spoiled = |spoil: fn(&mut Golden)| {
        let mut golden = answers().into_iter().find(|golden| golden.version.starts_with("3.13")).unwrap();
        golden.digests.truncate(2);
        spoil(&mut golden);
        golden.check().unwrap_err()
    };
    assert!(spoiled(|golden| golden.thresholds[1] += 1).contains("thresholds"));
    assert!(spoiled(|golden| golden.sizes.values_mut().next().unwrap()[0] += 8).contains("requested sizes"));
    assert!(spoiled(|golden| golden.digests[1] = golden.digests[0].clone()).contains("seed 64 on"));
    assert!(spoiled(|golden| golden.logs.get_mut("seed 192").unwrap()[3].push('!')).contains("seed 192: line 4:"));
    assert!(spoiled(|golden| drop(golden.logs.get_mut("seed 192").unwrap().pop())).contains("None there"));
    assert!(spoiled(|golden| drop(golden.logs.pop_last())).contains("record them anew"));
    assert!(spoiled(|golden| golden.version = "3.8.0".into()).contains("thresholds"));
}

#[test]
fn collectors_do_the_same_between_guard_bytes() {
    for profile in profile::ALL {
        for allocator in [AllocatorName::Debug, AllocatorName::MallocDebug] {
            let (mut plain, mut guarded) = (Here::new(profile), Here::with(profile, allocator));
            let mut afresh = |program: &_| Here::with(profile, allocator).run(program);
            let equal = compare(11, 150, &mut |program| plain.run(program), &mut |program| guarded.run(program), &mut afresh);
            equal.unwrap_or_else(|different| panic!("{}, {}: {different}", profile.release(), allocator.name()));
        }
    }
}

#[test]
fn a_divergence_is_shrunk_to_what_it_takes() {
    let (mut right, mut wrong) = (Here::new(&profile::V3_13), Here::new(&profile::V3_13));
    let mut afresh = |program: &_| Here::new(&profile::V3_13).run(program).replace("callback of", "call of");
    let equal = compare(7, 50, &mut |program| right.run(program), &mut |program| wrong.run(program), &mut afresh);
    assert_eq!(equal.unwrap().programs, 50 + found().len() as u64);
    let mut forgetful = |program: &_| wrong.run(program).replace("callback of", "call of");
    let found = compare(0, 0, &mut |program| right.run(program), &mut forgetful, &mut afresh).unwrap_err();
    // A program needs an object, a weak reference with a callback, and the object's death. Little else may be left.
    assert!(found.program.size() <= 6, "{found}");
    assert_ne!(found.there, found.here);
    let shown = found.to_string();
    assert!(shown.contains(&found.from) && shown.contains("< callback of w") && shown.contains("> call of w"));
}

#[test]
fn a_divergence_that_takes_the_programs_before_is_shown_as_it_is() {
    let (mut right, mut runs) = (Here::new(&profile::V3_13), 0);
    let mut late = |program: &_| {
        runs += 1;
        if runs > 5 { "another log".to_owned() } else { Here::new(&profile::V3_13).run(program) }
    };
    let mut afresh = |program: &_| Here::new(&profile::V3_13).run(program);
    let found = compare(0, 0, &mut |program| right.run(program), &mut late, &mut afresh).unwrap_err();
    assert!(found.from.ends_with("after the programs before it"));
    assert_eq!(found.here, "another log");
}
