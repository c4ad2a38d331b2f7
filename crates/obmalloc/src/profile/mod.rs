//! Room `profile`: what differs between CPython releases, as data. Leans on nothing.
//!
//! A release is a row that writes down only what it changes; a difference is an axis with a name. Code asks an axis, never a version.

use core::fmt;

/// The sizes that decide where pymalloc puts a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// Bytes in an arena (`ARENA_SIZE`): a power of two from 64 KiB to 64 MiB.
    pub arena_size: usize,
    /// Bytes in a pool (`POOL_SIZE`): a power of two from 4 KiB to 256 KiB, at least four to an arena.
    pub pool_size: usize,
    /// Bytes (`ALIGNMENT`): 8 or 16. Size classes are this far apart.
    pub alignment: usize,
    /// Largest request, in bytes, that pymalloc serves itself (`SMALL_REQUEST_THRESHOLD`): a multiple of the alignment, at most a
    /// quarter of the pool.
    pub small_request_threshold: usize,
}

/// Bytes at the head of a pool that hold no blocks (`POOL_OVERHEAD`).
pub const POOL_OVERHEAD: usize = 48;

impl Geometry {
    /// 3.8 and 3.9.
    pub const SMALL: Self = Self { arena_size: 256 << 10, pool_size: 4 << 10, alignment: 16, small_request_threshold: 512 };
    /// 3.10 and later.
    pub const LARGE: Self = Self { arena_size: 1 << 20, pool_size: 16 << 10, ..Self::SMALL };

    /// Number of size classes (`NB_SMALL_SIZE_CLASSES`).
    pub const fn size_classes(&self) -> usize {
        self.small_request_threshold / self.alignment
    }

    /// Pools in an arena whose base is a multiple of the pool size (`MAX_POOLS_IN_ARENA`).
    pub const fn pools_per_arena(&self) -> usize {
        self.arena_size / self.pool_size
    }

    /// Bytes in a block of size class `class`, counted from 0 (`INDEX2SIZE`).
    pub const fn block_size(&self, class: usize) -> usize {
        (class + 1) * self.alignment
    }

    /// Blocks in a pool of size class `class` (`NUMBLOCKS`).
    pub const fn blocks_per_pool(&self, class: usize) -> usize {
        (self.pool_size - POOL_OVERHEAD) / self.block_size(class)
    }

    /// Whether a heap can be made of these sizes.
    ///
    /// # Errors
    /// The first size that is out of its range.
    pub const fn check(&self) -> Result<(), GeometryError> {
        if !self.arena_size.is_power_of_two() || self.arena_size < 64 << 10 || self.arena_size > 64 << 20 {
            return Err(GeometryError::ArenaSize);
        }
        if !self.pool_size.is_power_of_two() || self.pool_size < 4 << 10 || self.pool_size > 256 << 10 {
            return Err(GeometryError::PoolSize);
        }
        if self.pool_size * 4 > self.arena_size {
            return Err(GeometryError::PoolsPerArena);
        }
        if self.alignment != 8 && self.alignment != 16 {
            return Err(GeometryError::Alignment);
        }
        let threshold = self.small_request_threshold;
        if threshold == 0 || !threshold.is_multiple_of(self.alignment) || threshold > self.pool_size / 4 {
            return Err(GeometryError::SmallRequestThreshold);
        }
        Ok(())
    }
}

const _: () = assert!(Geometry::SMALL.check().is_ok() && Geometry::LARGE.check().is_ok());
const _: () = assert!(Geometry::SMALL.pools_per_arena() == 64 && Geometry::LARGE.pools_per_arena() == 64);

/// Which size a [`Geometry`] gets wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "each is the name of the size")]
pub enum GeometryError {
    ArenaSize,
    PoolSize,
    PoolsPerArena,
    Alignment,
    SmallRequestThreshold,
}

impl fmt::Display for GeometryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ArenaSize => "arena size: expected a power of two from 65536 to 67108864",
            Self::PoolSize => "pool size: expected a power of two from 4096 to 262144",
            Self::PoolsPerArena => "pool size: expected at most a quarter of the arena size",
            Self::Alignment => "alignment: expected 8 or 16",
            Self::SmallRequestThreshold => {
                "small request threshold: expected a multiple of the alignment, above 0 and at most a quarter of the pool size"
            }
        })
    }
}

impl core::error::Error for GeometryError {}

/// What becomes of an arena when its last block is freed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EmptyArena {
    /// It is given back at once.
    Release,
    /// It is given back unless it is the right-most of the usable arenas (bpo-37257).
    KeepRightmost,
}

/// How pymalloc tells its own addresses from others (`address_in_range`), which shows in what it asks of the raw domain and in
/// the statistics.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RangeCheck {
    /// By the arena index in the pool header.
    ArenaIndex,
    /// By a radix tree of three levels over the arenas' addresses.
    RadixTree {
        /// Bits of an address that the tree distinguishes before it looks at the arena (`ADDRESS_BITS`).
        address_bits: u32,
        /// In 3.10 the top index was masked with the length of the bottom level (bpo-45521).
        top_masked_by_bottom: bool,
    },
}

/// One CPython release.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Profile {
    /// The release's name: `"3.8"` to `"3.15"`; `"3.14.0"` is 3.14.0 to 3.14.4, `"3.14"` what came after.
    pub release: &'static str,
    /// pymalloc's sizes.
    pub geometry: Geometry,
    /// What becomes of empty arenas.
    pub empty_arena: EmptyArena,
    /// How addresses are told apart.
    pub range_check: RangeCheck,
}

const RADIX_48: RangeCheck = RangeCheck::RadixTree { address_bits: 48, top_masked_by_bottom: true };
const RADIX_64: RangeCheck = RangeCheck::RadixTree { address_bits: 64, top_masked_by_bottom: false };

/// CPython 3.8.
pub const V3_8: Profile =
    Profile { release: "3.8", geometry: Geometry::SMALL, empty_arena: EmptyArena::Release, range_check: RangeCheck::ArenaIndex };
/// CPython 3.9.
pub const V3_9: Profile = Profile { release: "3.9", empty_arena: EmptyArena::KeepRightmost, ..V3_8 };
/// CPython 3.10.
pub const V3_10: Profile = Profile { release: "3.10", geometry: Geometry::LARGE, range_check: RADIX_48, ..V3_9 };
/// CPython 3.11.
pub const V3_11: Profile = Profile { release: "3.11", range_check: RADIX_64, ..V3_10 };
/// CPython 3.12.
pub const V3_12: Profile = Profile { release: "3.12", ..V3_11 };
/// CPython 3.13.
pub const V3_13: Profile = Profile { release: "3.13", ..V3_12 };
/// CPython 3.14.0 to 3.14.4.
pub const V3_14_0: Profile = Profile { release: "3.14.0", ..V3_13 };
/// CPython 3.14.5 and later.
pub const V3_14: Profile = Profile { release: "3.14", ..V3_13 };
/// CPython 3.15.
pub const V3_15: Profile = Profile { release: "3.15", ..V3_14 };

/// Every release, oldest first.
pub const ALL: [&Profile; 9] = [&V3_8, &V3_9, &V3_10, &V3_11, &V3_12, &V3_13, &V3_14_0, &V3_14, &V3_15];

impl Profile {
    /// The release called `name`, if there is one.
    pub fn named(name: &str) -> Option<&'static Self> {
        ALL.into_iter().find(|profile| profile.release == name)
    }

    /// The release that a version such as `"3.14.2"` or `"3.12.1+"` belongs to, if it is one of these.
    pub fn of_version(version: &str) -> Option<&'static Self> {
        let mut parts = version.split(|c: char| !c.is_ascii_digit());
        let (major, minor) = (parts.next()?, parts.next()?);
        let micro = parts.next().and_then(|micro| micro.parse().ok()).unwrap_or(u32::MAX);
        if major == "3" && minor == "14" && micro <= 4 {
            return Some(&V3_14_0);
        }
        ALL.into_iter().find(|profile| profile.release.split_once('.') == Some((major, minor)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_belong_to_their_release() {
        for (version, release) in [
            ("3.8.18", "3.8"),
            ("3.9.0+", "3.9"),
            ("3.10.13", "3.10"),
            ("3.14.0rc1", "3.14.0"),
            ("3.14.4", "3.14.0"),
            ("3.14.5", "3.14"),
            ("3.14.10", "3.14"),
            ("3.15.2", "3.15"),
        ] {
            assert_eq!(Profile::of_version(version).map(|profile| profile.release), Some(release), "{version}");
        }
        for version in ["", "3", "2.7.18", "3.7.16", "3.16.0", "4.8.1", "three"] {
            assert_eq!(Profile::of_version(version), None, "{version}");
        }
    }

    #[test]
    fn sizes_out_of_range_are_refused_by_name() {
        let of = |change: fn(&mut Geometry)| {
            let mut geometry = Geometry::LARGE;
            change(&mut geometry);
            geometry.check()
        };
        assert_eq!(of(|g| g.arena_size = 96 << 10), Err(GeometryError::ArenaSize));
        assert_eq!(of(|g| g.arena_size = 128 << 20), Err(GeometryError::ArenaSize));
        assert_eq!(of(|g| g.pool_size = 2048), Err(GeometryError::PoolSize));
        assert_eq!(of(|g| (g.arena_size, g.pool_size) = (64 << 10, 32 << 10)), Err(GeometryError::PoolsPerArena));
        assert_eq!(of(|g| g.alignment = 32), Err(GeometryError::Alignment));
        assert_eq!(of(|g| g.small_request_threshold = 0), Err(GeometryError::SmallRequestThreshold));
        assert_eq!(of(|g| g.small_request_threshold = 520), Err(GeometryError::SmallRequestThreshold));
        assert_eq!(of(|g| g.small_request_threshold = 4112), Err(GeometryError::SmallRequestThreshold));
        assert_eq!(of(|g| g.small_request_threshold = 4096), Ok(()));
    }
}
