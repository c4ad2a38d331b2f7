//! Decides when a trim is due. If the program soon takes back what a trim has given, the trim costs more than it brings, so the wait grows.

#![forbid(unsafe_code)]

use super::options::Options;
use std::time::Duration;

/// The largest factor by which the wait grows.
const LONGEST: u32 = 32;
/// The shortest time between two trims of an idle program.
const IDLE_EVERY: Duration = Duration::from_secs(1);

/// The result of a look.
#[derive(Clone, Copy, Default)]
pub struct Look {
    /// Time since the watcher began.
    pub now: Duration,
    /// Bytes that a trim would give back: of idle pools, and of C's `malloc`.
    pub idle: usize,
    /// Whether arenas were taken since the last look.
    pub grew: bool,
    /// Whether the program has slept since the look before.
    pub slept: bool,
    /// Bytes of pools that have been given back and used again, so far.
    pub returned: u64,
}

/// When the last trim was, and how much of what it gave has been taken again.
pub struct Pace {
    options: Options,
    factor: u32,
    last: Duration,
    given: u64,
    returned: u64,
}

impl Pace {
    pub fn new(options: Options) -> Self {
        Self { options, factor: 1, last: Duration::ZERO, given: 0, returned: 0 }
    }

    /// How long to wait before the next look, which also sees whether the program sleeps.
    pub fn between_looks(&self) -> Duration {
        let most = if self.options.idle { Duration::from_millis(250) } else { Duration::from_secs(5) };
        self.between_busy_looks().min(most)
    }

    /// How long to wait between two looks at the pools of a program that runs.
    pub fn between_busy_looks(&self) -> Duration {
        (self.options.every / 4).clamp(Duration::from_millis(20), Duration::from_secs(5))
    }

    /// Whether the program has taken more than half of what the last trim gave.
    fn came_back(&self, look: &Look) -> bool {
        self.given > 0 && look.returned.saturating_sub(self.returned) * 2 > self.given
    }

    /// The factor of the wait, from how much was taken again.
    fn factor(&self, look: &Look) -> u32 {
        if self.came_back(look) { (self.factor * 2).min(LONGEST) } else { self.factor }
    }

    /// Whether a trim is due.
    pub fn is_due(&self, look: &Look) -> bool {
        if look.idle < self.options.above.max(1) || look.grew {
            return false;
        }
        let every = if self.options.idle && look.slept { self.options.every.min(IDLE_EVERY) } else { self.options.every };
        look.now.saturating_sub(self.last) >= every * self.factor(look)
    }

    /// Notes a trim that was made after this look and gave this many bytes of pools.
    pub fn trimmed(&mut self, look: &Look, now: Duration, given: u64) {
        self.factor = if self.came_back(look) { self.factor(look) } else { (self.factor / 2).max(1) };
        (self.last, self.given, self.returned) = (now, given, look.returned);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn options() -> Options {
        Options { every: 10 * SECOND, above: 1000, ..Options::DEFAULT }
    }

    fn look(seconds: u32, idle: usize) -> Look {
        Look { now: seconds * SECOND, idle, ..Look::default() }
    }

    #[test]
    fn trim_is_due_when_there_is_enough_and_time_has_passed_and_nothing_grows() {
        let mut pace = Pace::new(options());
        assert!(!pace.is_due(&look(9, 5000)) && !pace.is_due(&look(10, 999)) && pace.is_due(&look(10, 1000)));
        assert!(!pace.is_due(&Look { grew: true, ..look(10, 5000) }));
        pace.trimmed(&look(10, 1000), 11 * SECOND, 1000);
        assert!(!pace.is_due(&look(20, 5000)) && pace.is_due(&look(21, 5000)));
        assert!(!Pace::new(Options { above: 0, ..options() }).is_due(&look(99, 0)), "nothing to give");
    }

    #[test]
    fn wait_doubles_while_what_was_given_comes_back_and_shrinks_again() {
        let mut pace = Pace::new(options());
        let (mut now, mut returned) = (10, 0);
        let mut waits = Vec::new();
        for comes_back in [true, true, true, true, true, true, true, false, false, false, false, false, false] {
            pace.trimmed(&Look { returned, ..look(now, 1000) }, now * SECOND, 1000);
            returned += if comes_back { 600 } else { 400 };
            let begin = now;
            while !pace.is_due(&Look { returned, ..look(now, 1000) }) {
                now += 1;
            }
            waits.push(now - begin);
        }
        assert_eq!(waits, [20, 40, 80, 160, 320, 320, 320, 320, 160, 80, 40, 20, 10]);
    }

    #[test]
    fn program_that_sleeps_is_not_waited_for_where_that_is_asked_for() {
        let slept = |seconds| Look { slept: true, ..look(seconds, 1000) };
        let mut pace = Pace::new(Options { idle: true, ..options() });
        assert!(
            pace.is_due(&slept(1)) && !pace.is_due(&slept(0)) && !pace.is_due(&look(9, 1000)) && pace.is_due(&look(10, 1000))
        );
        // What comes back makes this wait longer, too.
        pace.trimmed(&slept(1), SECOND, 1000);
        let back = |seconds| Look { returned: 900, ..slept(seconds) };
        assert!(!pace.is_due(&back(2)) && pace.is_due(&back(3)));
        assert!(!Pace::new(options()).is_due(&slept(9)), "only where it is asked for");
    }

    #[test]
    fn looks_are_taken_several_times_a_wait() {
        let between = |every, idle| Pace::new(Options { every, idle, ..options() }).between_looks();
        assert_eq!(between(30 * SECOND, false), 5 * SECOND);
        assert_eq!(between(30 * SECOND, true), SECOND / 4);
        assert_eq!(between(SECOND, false), SECOND / 4);
        assert_eq!(between(Duration::ZERO, false), Duration::from_millis(20));
    }
}
