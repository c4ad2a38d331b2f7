//! The sizes of arenas, pools and blocks, and which combinations are allowed.

#![forbid(unsafe_code)]

use core::fmt;

/// The sizes that decide where pymalloc puts a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// Bytes in an arena (`ARENA_SIZE`): a power of two from 64 KiB to 64 MiB.
    pub arena_size: usize,
    /// Bytes in a pool (`POOL_SIZE`): a power of two from 4 KiB to 256 KiB, at least two to an arena.
    pub pool_size: usize,
    /// Bytes (`ALIGNMENT`): 8 or 16. Size classes are this far apart.
    pub alignment: usize,
    /// Largest request, in bytes, that pymalloc serves itself (`SMALL_REQUEST_THRESHOLD`): a multiple of the alignment, at most a
    /// quarter of the pool.
    pub small_request_threshold: usize,
}

/// Bytes at the head of a pool that hold no blocks (`POOL_OVERHEAD`).
pub const POOL_OVERHEAD: usize = 48;

/// `size / part`, or 0 if `part` is 0: a caller may use these functions before it has [checked](Geometry::check) the sizes.
const fn quotient(size: usize, part: usize) -> usize {
    match size.checked_div(part) {
        Some(count) => count,
        None => 0,
    }
}

impl Geometry {
    /// 3.8 and 3.9.
    pub const SMALL: Self = Self { arena_size: 256 << 10, pool_size: 4 << 10, alignment: 16, small_request_threshold: 512 };
    /// 3.10 and later.
    pub const LARGE: Self = Self { arena_size: 1 << 20, pool_size: 16 << 10, ..Self::SMALL };

    /// Number of size classes (`NB_SMALL_SIZE_CLASSES`).
    pub const fn size_classes(&self) -> usize {
        quotient(self.small_request_threshold, self.alignment)
    }

    /// Pools in an arena whose base is a multiple of the pool size (`MAX_POOLS_IN_ARENA`).
    pub const fn pools_per_arena(&self) -> usize {
        quotient(self.arena_size, self.pool_size)
    }

    /// Bytes in a block of size class `class`, counted from 0 (`INDEX2SIZE`).
    pub const fn block_size(&self, class: usize) -> usize {
        class.saturating_add(1).saturating_mul(self.alignment)
    }

    /// Blocks in a pool of size class `class` (`NUMBLOCKS`).
    pub const fn blocks_per_pool(&self, class: usize) -> usize {
        quotient(self.pool_size.saturating_sub(POOL_OVERHEAD), self.block_size(class))
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
        if self.pool_size * 2 > self.arena_size {
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
            Self::PoolsPerArena => "pool size: expected at most half of the arena size",
            Self::Alignment => "alignment: expected 8 or 16",
            Self::SmallRequestThreshold => {
                "small request threshold: expected a multiple of the alignment, above 0 and at most a quarter of the pool size"
            }
        })
    }
}

impl core::error::Error for GeometryError {}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(of(|g| (g.arena_size, g.pool_size) = (64 << 10, 64 << 10)), Err(GeometryError::PoolsPerArena));
        assert_eq!(of(|g| g.alignment = 32), Err(GeometryError::Alignment));
        assert_eq!(of(|g| g.small_request_threshold = 0), Err(GeometryError::SmallRequestThreshold));
        assert_eq!(of(|g| g.small_request_threshold = 520), Err(GeometryError::SmallRequestThreshold));
        assert_eq!(of(|g| g.small_request_threshold = 4112), Err(GeometryError::SmallRequestThreshold));
        assert_eq!(of(|g| g.small_request_threshold = 4096), Ok(()));
    }
}
