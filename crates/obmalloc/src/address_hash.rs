//! Hash tables whose keys are addresses.

#![forbid(unsafe_code)]

use core::hash::{BuildHasherDefault, Hasher};

type Build = BuildHasherDefault<AddressHasher>;

pub(crate) type AddressMap<V> = hashbrown::HashMap<usize, V, Build>;
pub(crate) type AddressSet = hashbrown::HashSet<usize, Build>;
/// A set of keys that are made of 64-bit addresses, such as those of the arena map's nodes.
pub(crate) type KeySet = hashbrown::HashSet<u64, Build>;

/// Aligned addresses have the same lowest bits, and often equal distances. One 64-bit multiplication spreads them over the product's upper half.
/// Then each half gets the exclusive or of both. (`FxHasher` multiplies with as many bits as a `usize` has; with
/// 32, as in WebAssembly, it puts most such addresses into a few places of a table.) The factor was found by trying: with most others the test
/// below fails at some distance.
#[derive(Default)]
pub(crate) struct AddressHasher(u64);

impl Hasher for AddressHasher {
    #[inline]
    fn write_u64(&mut self, key: u64) {
        const FACTOR: u64 = 0x3bf4_44a5_acb5_69cf;
        let product = (self.0 ^ key).wrapping_mul(FACTOR);
        self.0 = product ^ product.rotate_left(32);
    }

    #[inline]
    fn write_usize(&mut self, key: usize) {
        self.write_u64(key as u64);
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(byte.into()));
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use core::hash::Hasher;

    use super::AddressHasher;

    #[test]
    #[cfg_attr(miri, ignore = "it takes an hour there, and has no pointers")]
    fn addresses_equally_far_apart_spread_over_what_tables_take_of_a_hash() {
        for apart in (1..64).map(|n| 16 * n).chain([8, 4096, 1 << 18, 1 << 20]) {
            for bits in [6, 10, 14] {
                let different = |of: fn(u64) -> u64| {
                    let hash = |index: usize| {
                        let mut hasher = AddressHasher::default();
                        hasher.write_usize(0x2000_0000 + index * apart);
                        of(hasher.finish()) % (2 << bits)
                    };
                    (0..1 << bits).map(hash).collect::<std::collections::HashSet<_>>().len()
                };
                // n random hashes would fill about 0.79 n of 2 n places. A hash table uses the lowest bits of a hash, and its seven highest.
                assert!(different(|hash| hash) as f64 > 0.6 * f64::from(1 << bits), "{apart} bytes apart, 2^{bits} of them");
                assert!(different(|hash| hash >> 25 & 127) >= 32 && different(|hash| hash >> 57) >= 32);
            }
        }
    }
}
