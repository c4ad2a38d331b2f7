//! Random programs. Leans on `program` and `random`.

#![forbid(unsafe_code)]

use crate::program::{KINDS, Op, Place, Program, SCRIPTS, WEAK};
use crate::random::Random;

/// Flags of `gc.set_debug`: nothing, `DEBUG_SAVEALL`, text of several kinds, `DEBUG_LEAK`.
const DEBUG: [u8; 7] = [0, 0, 32, 32, 1, 6, 38];

/// What a program is mostly about.
struct Mood {
    /// Roots in play.
    roots: usize,
    /// Kinds in play.
    kinds: Vec<u8>,
    /// Of 100 steps, how many are rare ones: freezing, tracking, looking, thresholds.
    rare: usize,
}

impl Mood {
    fn new(random: &mut Random) -> Self {
        let roots = random.of(&[3, 6, 10, 16, 40]);
        let all = KINDS.len() as u8;
        let kinds = match random.below(4) {
            0 => (0..all).collect(),
            1 => (0..2 + random.below(3)).map(|_| random.below(KINDS.len()) as u8).collect(),
            // Those with finalizers and weak references.
            2 => (4..8).collect(),
            _ => (0..6 + random.below(10) as u8).collect(),
        };
        Self { roots, kinds, rare: random.of(&[0, 5, 20]) }
    }

    fn root(&self, random: &mut Random) -> u8 {
        random.below(self.roots) as u8
    }

    fn new_object(&self, random: &mut Random, root: u8) -> Op {
        Op::New {
            root,
            kind: random.of(&self.kinds),
            nitems: random.below(4) as u8,
            tracked: !random.once_in(16),
            script: random.below(SCRIPTS) as u8,
        }
    }

    fn place(&self, random: &mut Random, in_script: bool) -> Place {
        let slot = random.below(4) as u8;
        match random.below(8) {
            0..3 if in_script => Place::Me,
            3 if in_script => Place::OfMe(slot),
            4 | 5 => Place::Of(self.root(random), slot),
            _ => Place::Root(self.root(random)),
        }
    }

    fn weak(&self, random: &mut Random) -> u8 {
        random.below(WEAK) as u8
    }

    fn op(&self, random: &mut Random, in_script: bool) -> Op {
        let slot = random.below(4) as u8;
        if random.below(100) < self.rare {
            return self.rare_op(random, in_script);
        }
        match random.below(if in_script { 20 } else { 26 }) {
            0..3 => Op::Store(self.root(random), self.place(random, in_script)),
            3..9 => Op::Link(self.place(random, in_script), slot, self.place(random, in_script)),
            9..11 => Op::Unlink(self.place(random, in_script), slot),
            11..14 => Op::Drop(self.root(random)),
            14 => {
                let callback = (!random.once_in(3)).then(|| random.below(SCRIPTS) as u8);
                Op::Weak(self.weak(random), self.place(random, in_script), callback)
            }
            15 => Op::Deref(self.root(random), self.weak(random)),
            16 if in_script => Op::Deref(self.root(random), self.weak(random)),
            16 => Op::DropWeak(self.weak(random)),
            17 => Op::LinkWeak(self.place(random, in_script), slot, self.weak(random)),
            18 if random.once_in(3) => Op::Collect(random.below(3) as u8),
            _ => {
                let root = self.root(random);
                self.new_object(random, root)
            }
        }
    }

    fn rare_op(&self, random: &mut Random, in_script: bool) -> Op {
        match random.below(16) {
            0 => Op::Freeze,
            1 => Op::Unfreeze,
            2 | 3 => Op::Untrack(self.place(random, in_script)),
            4 | 5 => Op::Track(self.place(random, in_script)),
            6 if random.once_in(8) => Op::Immortal(self.place(random, in_script)),
            6 => Op::Debug(random.of(&DEBUG)),
            7 => Op::Garbage,
            8 => Op::Count,
            9 => Op::Stats,
            10 => Op::Objects(random.below(4) as u8),
            11 => Op::Look(self.place(random, in_script)),
            12 => Op::Referrers(self.place(random, in_script)),
            13 => Op::Referents(self.place(random, in_script)),
            14 => Op::Collect(random.below(3) as u8),
            _ if random.once_in(3) => Op::Thresholds(random.below(6) as u8, random.below(4) as u8, random.below(4) as u8),
            _ => random.of(&[Op::Enable, Op::Disable]),
        }
    }

    /// Objects in every root, linked at random, many of them dropped.
    fn graph(&self, random: &mut Random, ops: &mut Vec<Op>) {
        let count = 1 + random.below(self.roots);
        ops.extend((0..count).map(|root| self.new_object(random, root as u8)));
        let (any, slot) =
            (|random: &mut Random| Place::Root(random.below(count) as u8), |random: &mut Random| random.below(4) as u8);
        if !random.once_in(3) {
            // One ring, or several side by side.
            let length = 1 + random.below(count);
            ops.extend((0..count).map(|root| {
                let next = if root % length == length - 1 || root == count - 1 { root - root % length } else { root + 1 };
                Op::Link(Place::Root(root as u8), slot(random), Place::Root(next as u8))
            }));
        }
        for _ in 0..random.below(count * 3 + 1) {
            ops.push(Op::Link(any(random), slot(random), any(random)));
        }
        for _ in 0..random.below(WEAK) {
            let callback = (!random.once_in(3)).then(|| random.below(SCRIPTS) as u8);
            ops.push(Op::Weak(self.weak(random), any(random), callback));
            if random.once_in(3) {
                ops.push(Op::LinkWeak(any(random), slot(random), self.weak(random)));
            }
            if random.once_in(4) {
                ops.push(Op::DropWeak(self.weak(random)));
            }
        }
        let kept = random.of(&[1, 3, 6, 100, 100]);
        ops.extend((0..count).filter(|_| !random.once_in(kept)).map(|root| Op::Drop(root as u8)));
    }
}

/// The program of a seed.
pub fn generate(seed: u64) -> Program {
    let mut random = Random::new(seed);
    let random = &mut random;
    let mood = Mood::new(random);
    let scripts = (0..SCRIPTS)
        .map(|_| {
            let length = random.of(&[0, 0, 1, 1, 2, 3, 5]);
            (0..length).map(|_| mood.op(random, true)).collect()
        })
        .collect();
    let callbacks = random.once_in(4).then(|| random.below(SCRIPTS) as u8);
    let mut ops = Vec::new();
    let automatic = random.once_in(3);
    if automatic {
        let thresholds = (1 + random.below(12) as u8, random.below(4) as u8, random.below(4) as u8);
        ops.push(Op::Thresholds(thresholds.0, thresholds.1, thresholds.2));
        ops.push(Op::Enable);
    }
    for _ in 0..=random.below(4) {
        if !random.once_in(3) {
            mood.graph(random, &mut ops);
        }
        let length = random.of(&[0, 0, 5, 20, 60]);
        ops.extend((0..length).map(|_| mood.op(random, false)));
        ops.push(Op::Objects(3));
        for _ in 0..=random.below(2) {
            ops.push(Op::Collect(random.of(&[0, 1, 2])));
            ops.push(Op::Count);
            if random.once_in(2) {
                ops.push(Op::Objects(random.below(4) as u8));
            }
        }
        ops.push(Op::Stats);
    }
    Program { callbacks, ops, scripts }
}
