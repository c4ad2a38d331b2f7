//! Hash tables whose keys are addresses.

use rustc_hash::FxBuildHasher;

pub(crate) type AddressMap<V> = hashbrown::HashMap<usize, V, FxBuildHasher>;
pub(crate) type AddressSet = hashbrown::HashSet<usize, FxBuildHasher>;
/// Of what an address leads to in a tree of 64-bit addresses.
pub(crate) type KeySet = hashbrown::HashSet<u64, FxBuildHasher>;
