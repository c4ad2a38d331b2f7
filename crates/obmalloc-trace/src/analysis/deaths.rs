//! The ages at death of blocks that were live when the arenas were full and have been freed since.

#![forbid(unsafe_code)]

use rustc_hash::{FxHashMap, FxHashSet};

use super::ledger::{Block, Kind};
use crate::moments::Outline;
use crate::replay::HeldArena;

/// Events of one entry of the clock's table, as a power of two: the clock is looked at about as often.
const BITS: u32 = 10;

/// The steps in which ages are counted: these, times powers of ten, from a millisecond on.
const STEPS: [f64; 10] = [1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0];

/// When events were, each with the largest error. Empty if no time is known.
#[derive(Clone, Debug, Default)]
pub struct Times {
    /// For each stretch of events, the seconds that had certainly passed before its first event, and before its last.
    stretches: Vec<(f64, f64)>,
}

impl Times {
    /// The times of a recording.
    pub fn of(outline: &Outline) -> Self {
        let Some(end) = outline.duration() else { return Self::default() };
        let begin = |stretch: u64| outline.seconds(stretch << BITS).unwrap_or(0.0);
        let after = |stretch: u64| outline.next_seconds((stretch + 1) << BITS).unwrap_or(end);
        Self { stretches: (0..=outline.events >> BITS).map(|stretch| (begin(stretch), after(stretch))).collect() }
    }

    /// Most seconds that can have passed from one event to another.
    fn between(&self, born: u64, died: u64) -> Option<f64> {
        let at = |event: u64| self.stretches.get((event >> BITS) as usize);
        Some(at(died)?.1 - at(born)?.0)
    }
}

/// Almost all of some deaths, and the longest age among them.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Within {
    /// Most seconds from birth to death.
    pub seconds: f64,
    /// How many blocks died within that time.
    pub blocks: u64,
    /// How many died in all.
    pub all: u64,
}

/// Counts the deaths of blocks that lay in arenas at a moment.
#[derive(Debug)]
pub struct Deaths {
    /// The event of the moment.
    moment: u64,
    /// The arenas' addresses, in order, and their size; and which of them the last block lay in.
    bases: Vec<u64>,
    arena_size: u64,
    last: usize,
    times: Times,
    /// How many have died, by arena, size class and step.
    counts: FxHashMap<(u32, u8, u8), u64>,
}

impl Deaths {
    /// Counts from event `moment` on; `held` are the arenas there.
    pub fn new(moment: u64, held: &[HeldArena], arena_size: u64, times: Times) -> Self {
        let mut bases: Vec<u64> = held.iter().map(|arena| arena.address).collect();
        bases.sort_unstable();
        Self { moment, bases, arena_size, last: 0, times, counts: FxHashMap::default() }
    }

    /// Looks at a block that dies.
    pub fn see(&mut self, block: &Block, died: u64) {
        let Kind::Pool(class) = block.kind else { return };
        if block.born > self.moment {
            return;
        }
        let (Some(arena), Some(age)) = (self.arena_of(block.address), self.times.between(block.born, died)) else { return };
        *self.counts.entry((arena, class, step_of(age))).or_default() += 1;
    }

    fn arena_of(&mut self, address: u64) -> Option<u32> {
        let holds = |base: u64| address.wrapping_sub(base) < self.arena_size;
        if !self.bases.get(self.last).is_some_and(|&base| holds(base)) {
            self.last = self.bases.partition_point(|&base| base <= address).checked_sub(1)?;
        }
        holds(self.bases[self.last]).then_some(self.last as u32)
    }

    /// The deaths of blocks in the arenas at `addresses`, of `classes` if any are given: how many, the seconds within which at least 99 of 100
    /// died, and how many died within these.
    pub fn within(&self, addresses: &FxHashSet<u64>, classes: Option<&FxHashSet<u8>>) -> Option<Within> {
        let mut steps = [0; 256];
        for (&(arena, class, step), &count) in &self.counts {
            if addresses.contains(&self.bases[arena as usize]) && classes.is_none_or(|classes| classes.contains(&class)) {
                steps[usize::from(step)] += count;
            }
        }
        let all: u64 = steps.iter().sum();
        let mut sum = 0;
        for (step, count) in steps.into_iter().enumerate() {
            sum += count;
            if sum > 0 && sum * 100 >= all * 99 {
                return Some(Within { seconds: bound(step), blocks: sum, all });
            }
        }
        None
    }
}

/// Most seconds of a step.
fn bound(step: usize) -> f64 {
    STEPS[step % 10] * 10f64.powi((step / 10) as i32) / 1000.0
}

/// The first step that has room for an age.
fn step_of(seconds: f64) -> u8 {
    let decade = (seconds * 1000.0).max(1.0).log10().floor().min(20.0) as usize;
    (decade * 10..).find(|&step| bound(step) >= seconds || step == 250).unwrap_or(0) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deaths_are_counted_by_arena_and_class_of_what_was_live_at_the_moment() {
        // A stretch of 1,024 events takes a tenth of a second.
        let stretches = (0..100).map(|stretch| (f64::from(stretch) / 10.0, f64::from(stretch + 1) / 10.0)).collect();
        let held = [0x50_0000, 0x10_0000].map(|address| HeldArena {
            address,
            pools: 64,
            free_pools: 0,
            uncarved_pools: 0,
            trimmed_pools: 0,
        });
        let mut deaths = Deaths::new(5_000, &held, 1 << 20, Times { stretches });
        let block = |born, address, kind| Block { born, address, asked: 32, node: 0, kind };
        for number in 0..1000 {
            deaths.see(&block(100, 0x10_0040, Kind::Pool(1)), 10_000 + number % 2);
        }
        deaths.see(&block(100, 0x5f_ffe0, Kind::Pool(3)), 90_000);
        // Made later, in no arena, at C's malloc.
        deaths.see(&block(5_001, 0x10_0040, Kind::Pool(1)), 6_000);
        deaths.see(&block(100, 0x60_0000, Kind::Pool(1)), 6_000);
        deaths.see(&block(100, 0x10_0040, Kind::Raw), 6_000);
        let of = |arenas: &[u64], classes: &[u8]| {
            let within = deaths.within(&arenas.iter().copied().collect(), Some(&classes.iter().copied().collect()));
            within.map(|within| (within.seconds, within.blocks, within.all))
        };
        assert_eq!(of(&[0x10_0000], &[1, 3]), Some((1.0, 1000, 1000)));
        assert_eq!(of(&[0x10_0000, 0x50_0000], &[1, 3]), Some((1.0, 1000, 1001)), "99 of 100 are enough");
        assert_eq!(of(&[0x50_0000], &[1, 3]), Some((10.0, 1, 1)));
        assert_eq!((of(&[0x50_0000], &[1]), of(&[], &[1, 3])), (None, None));
        assert_eq!(deaths.within(&[0x50_0000].into_iter().collect(), None).map(|within| within.all), Some(1));
    }

    #[test]
    fn age_is_in_the_first_step_that_has_room_for_it() {
        for (seconds, most) in [(0.0, 0.001), (0.001, 0.001), (0.0011, 0.0012), (0.95, 1.0), (1.0, 1.0), (1.01, 1.2), (7.5, 8.0)]
        {
            assert!((bound(step_of(seconds).into()) - most).abs() < 1e-12, "{seconds}: {}", bound(step_of(seconds).into()));
        }
        assert!(bound(step_of(1e9).into()) >= 1e9);
        for step in 1..90 {
            assert!(bound(step) > bound(step - 1), "{step}");
        }
    }
}
