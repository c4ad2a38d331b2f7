//! Hash tables whose keys are addresses.

use rustc_hash::FxBuildHasher;

pub(crate) type AddressMap<V> = hashbrown::HashMap<usize, V, FxBuildHasher>;
pub(crate) type AddressSet = hashbrown::HashSet<usize, FxBuildHasher>;
/// A set of keys that are made of 64-bit addresses, such as those of the arena map's nodes.
pub(crate) type KeySet = hashbrown::HashSet<u64, FxBuildHasher>;
