//! Random numbers from a seed, and the shortest program that still fails.

/// xorshift64*: small, seeded, the same everywhere.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 11) as usize % limit
    }
}

/// The seed of this run: from `OBMALLOC_SEED`, or a new one; always printed.
pub fn seed() -> u64 {
    let seed = std::env::var("OBMALLOC_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_nanos() as u64);
    println!("OBMALLOC_SEED={seed}");
    seed
}

/// Takes operations out of a failing program as long as it still fails, and gives what is left.
pub fn shrink<Op: Copy>(mut ops: Vec<Op>, fails: impl Fn(&[Op]) -> bool) -> Vec<Op> {
    let mut chunk = ops.len() / 2;
    while chunk > 0 {
        let mut at = 0;
        while at < ops.len() {
            let shorter: Vec<Op> = ops.iter().take(at).chain(ops.iter().skip(at + chunk)).copied().collect();
            if fails(&shorter) { ops = shorter } else { at += chunk }
        }
        chunk /= 2;
    }
    ops
}
