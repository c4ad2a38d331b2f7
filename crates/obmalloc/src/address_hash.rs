//! Hash tables whose keys are addresses.

use rustc_hash::FxBuildHasher;

pub(crate) type AddressMap<V> = hashbrown::HashMap<usize, V, FxBuildHasher>;
pub(crate) type AddressSet = hashbrown::HashSet<usize, FxBuildHasher>;
