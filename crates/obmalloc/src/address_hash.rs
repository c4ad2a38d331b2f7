//! A hash for addresses: one multiplication, because they are already spread and nobody chooses them to collide.

use core::hash::{BuildHasherDefault, Hasher};

pub(crate) type AddressMap<V> = hashbrown::HashMap<usize, V, BuildHasherDefault<AddressHasher>>;
pub(crate) type AddressSet = hashbrown::HashSet<usize, BuildHasherDefault<AddressHasher>>;

#[derive(Default)]
pub(crate) struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        let product = u128::from(value ^ self.0) * 0x9e37_79b9_7f4a_7c15;
        self.0 = product as u64 ^ (product >> 64) as u64;
    }

    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
