//! Programs on which this engine once differed from CPython. Each was shrunk from a random one. Leans on `program`.

#![forbid(unsafe_code)]

use crate::program::{KINDS, Op, Place, Program, SCRIPTS};

fn new(root: u8, kind: &str, nitems: u8, script: u8) -> Op {
    let kind = KINDS.iter().position(|known| known.name == kind).expect("there is such a kind") as u8;
    Op::New { root, kind, nitems, tracked: true, script }
}

/// An object that is not tracked, whose finalizer runs no script.
fn new_untracked(root: u8, kind: &str) -> Op {
    match new(root, kind, 0, QUIET) {
        Op::New { root, kind, nitems, script, .. } => Op::New { root, kind, nitems, script, tracked: false },
        op => op,
    }
}

/// A script that none of these programs has.
const QUIET: u8 = 6;
const ROOT: Place = Place::Root(0);

fn program(scripts: &[(usize, &[Op])], ops: &[Op]) -> Program {
    let mut program = Program { callbacks: None, ops: ops.to_vec(), scripts: vec![Vec::new(); SCRIPTS] };
    for (number, script) in scripts {
        program.scripts[*number] = script.to_vec();
    }
    program
}

/// All of them, each with the behaviour that it is about.
pub fn found() -> Vec<(&'static str, Program)> {
    let with_callbacks = |script, program| Program { callbacks: Some(script), ..program };
    let immortals = {
        let mut ops: Vec<_> = (0..40).map(|root| new(root, "plain", 0, QUIET)).collect();
        ops.extend((12..40).map(|root| Op::Immortal(Place::Root(root))));
        // A low second threshold makes increments large.
        ops.extend([Op::Collect(2), Op::Objects(3), Op::Thresholds(200, 1, 1)]);
        for root in 12..16 {
            ops.extend([new(root, "plain", 0, QUIET), Op::Collect(1), Op::Objects(3)]);
        }
        ops
    };
    let reached_immortal = {
        let mut ops: Vec<_> = (0..28).map(|root| new(root, "plain", 0, QUIET)).collect();
        // 0 refers to 7, and that to 3.
        ops.extend([Op::Link(ROOT, 0, Place::Root(7)), Op::Link(Place::Root(7), 0, Place::Root(3)), Op::Collect(2)]);
        // A low second threshold makes increments large.
        ops.extend([Op::Immortal(Place::Root(7)), Op::Thresholds(200, 1, 1)]);
        for root in 28..40 {
            ops.extend([new(root, "plain", 0, QUIET), Op::Collect(1), Op::Objects(3)]);
        }
        ops
    };
    let held_by_callback: [(usize, &[Op]); 1] = [(0, &[Op::DropWeak(0), Op::DropWeak(1), Op::Objects(3), Op::Count])];
    vec![
        (
            "an object that is no container is finalized at every end",
            program(
                &[(0, &[Op::Store(0, Place::Me)])],
                &[new(1, "box", 0, 0), Op::Drop(1), Op::Drop(0), Op::Drop(0), Op::Drop(0)],
            ),
        ),
        (
            "a weak reference that a legacy finalizer makes is cleared without its callback",
            program(
                &[(1, &[Op::Weak(0, Place::Me, Some(QUIET))])],
                &[new(0, "del.final.weak", 0, 0), Op::Drop(0), Op::Deref(1, 0)],
            ),
        ),
        ("an increment without work is no collection", program(&[], &[Op::Collect(1), Op::Stats])),
        (
            "a dying object that is tracked again may be one too many",
            with_callbacks(
                QUIET,
                program(
                    &[],
                    &[
                        Op::Thresholds(4, 1, 3),
                        Op::Enable,
                        new(0, "final", 0, QUIET),
                        new_untracked(3, "final.weak"),
                        new(1, "final", 0, QUIET),
                        new(2, "final", 0, QUIET),
                        new(3, "weak", 0, QUIET),
                    ],
                ),
            ),
        ),
        (
            "an object is tracked while it is found out that it is finalized",
            program(
                &[(7, &[Op::Untrack(Place::Me), Op::Store(2, Place::Me)])],
                &[
                    Op::Thresholds(1, 3, 1),
                    Op::Enable,
                    new(0, "final", 0, 7),
                    new(0, "final", 0, QUIET),
                    new(2, "final", 0, QUIET),
                    Op::Stats,
                ],
            ),
        ),
        (
            "survivors of an increment are in no generation until it is over",
            program(
                &[(5, &[Op::Weak(5, Place::Me, Some(1)), Op::Link(Place::Me, 0, Place::Me)]), (0, &[Op::Freeze, Op::Objects(3)])],
                &[new(0, "final.sequence", 1, 5), Op::Weak(3, ROOT, Some(0)), Op::Drop(0), Op::Collect(0), Op::Objects(3)],
            ),
        ),
        (
            "the only weak reference, while its callback runs",
            program(&held_by_callback, &[new(0, "weak", 0, QUIET), Op::Weak(0, ROOT, Some(0)), Op::Drop(0), Op::Count]),
        ),
        (
            "several weak references, while their callbacks run",
            program(
                &held_by_callback,
                &[new(0, "weak", 0, QUIET), Op::Weak(0, ROOT, Some(0)), Op::Weak(1, ROOT, Some(0)), Op::Drop(0), Op::Count],
            ),
        ),
        (
            "a collection that a new weak reference starts sees the referent as it is",
            with_callbacks(
                7,
                program(
                    &[(7, &[Op::Look(ROOT)])],
                    &[
                        Op::Thresholds(1, 3, 3),
                        new(0, "weak", 0, QUIET),
                        new(1, "weak", 0, QUIET),
                        Op::Enable,
                        Op::Weak(5, ROOT, Some(QUIET)),
                    ],
                ),
            ),
        ),
        (
            "debug text comes when the release writes it, with its names",
            with_callbacks(
                QUIET,
                program(
                    &[],
                    &[
                        Op::Debug(7),
                        new(0, "weak", 0, QUIET),
                        Op::Weak(0, ROOT, Some(QUIET)),
                        Op::LinkWeak(ROOT, 0, 0),
                        Op::Link(ROOT, 1, ROOT),
                        Op::DropWeak(0),
                        Op::Drop(0),
                        Op::Collect(2),
                    ],
                ),
            ),
        ),
        (
            "a collection is scheduled, and then collections are disabled",
            program(
                &[(0, &[new(1, "plain", 0, QUIET), new(2, "plain", 0, QUIET), new(3, "plain", 0, QUIET), Op::Disable])],
                &[Op::Thresholds(1, 1, 1), Op::Enable, new(0, "final", 0, 0), Op::Drop(0), Op::Stats],
            ),
        ),
        (
            "a collection in a finalizer lets go of weak references after their callbacks",
            program(
                &[(0, &[Op::Weak(0, Place::Me, Some(QUIET))]), (2, &[Op::Collect(1), new(3, "final.sequence", 3, 0)])],
                &[
                    new(1, "final.weak", 0, 2),
                    Op::Link(Place::Root(1), 0, Place::Root(1)),
                    Op::Weak(0, Place::Root(1), Some(2)),
                    new(9, "final.sequence", 0, 2),
                    new(3, "final", 0, 2),
                    new(1, "final.weak", 0, QUIET),
                    new(9, "final", 0, 2),
                ],
            ),
        ),
        (
            "debug flags count when the text is written",
            with_callbacks(0, program(&[(0, &[Op::Debug(1)])], &[Op::Collect(0), Op::Debug(0), Op::Collect(1)])),
        ),
        ("an increment does not reach through an immortal object", program(&[], &reached_immortal)),
        ("immortal objects leave the heap that increments are sized by", program(&[], &immortals)),
    ]
}
