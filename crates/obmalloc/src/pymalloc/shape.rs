//! The sizes of pools and blocks: constants for those of the releases, so that shifts are constants; fields of the heap for others.

#![forbid(unsafe_code)]

use core::marker::PhantomData;

use super::Pymalloc;
use crate::profile::Geometry;

/// Which pools a geometry has. The size of its arenas does not matter: no function with a [`Shape`] looks at it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Pools {
    /// The pools of [`Geometry::SMALL`].
    Small,
    /// The pools of [`Geometry::LARGE`].
    Large,
    /// Any other pools.
    Other,
}

impl Pools {
    pub fn of(geometry: &Geometry) -> Self {
        let has_pools_of = |release: Geometry| *geometry == Geometry { arena_size: geometry.arena_size, ..release };
        if has_pools_of(Geometry::SMALL) {
            Self::Small
        } else if has_pools_of(Geometry::LARGE) {
            Self::Large
        } else {
            Self::Other
        }
    }
}

/// Where a function gets the sizes of pools and blocks from, and what it checks.
pub(crate) trait Shape {
    const FIXED: Option<Geometry>;
    /// Whether links of free blocks are checked before they are followed.
    const CHECKED: bool = false;
    /// Whether free blocks are checked before they are handed out.
    const WATCHED: bool = false;
}

/// [`Pools::Small`]
pub(crate) struct SmallPools;

/// [`Pools::Large`]
pub(crate) struct LargePools;

/// Pools of any size.
pub(crate) struct AnyPools;

impl Shape for SmallPools {
    const FIXED: Option<Geometry> = Some(Geometry::SMALL);
}

impl Shape for LargePools {
    const FIXED: Option<Geometry> = Some(Geometry::LARGE);
}

impl Shape for AnyPools {
    const FIXED: Option<Geometry> = None;
    const CHECKED: bool = true;
}

/// The pools of a heap that does not trust its caller.
pub(crate) struct CheckedPools<S>(PhantomData<S>);

/// Pools of any size, with debug hooks around pymalloc.
pub(crate) struct WatchedPools;

impl<S: Shape> Shape for CheckedPools<S> {
    const FIXED: Option<Geometry> = S::FIXED;
    const CHECKED: bool = true;
}

impl Shape for WatchedPools {
    const FIXED: Option<Geometry> = None;
    const CHECKED: bool = true;
    const WATCHED: bool = true;
}

impl Pymalloc {
    #[inline(always)]
    pub(super) fn shape<S: Shape>(&self) -> (usize, u32, u32) {
        match S::FIXED {
            Some(geometry) => {
                (geometry.small_request_threshold, geometry.alignment.trailing_zeros(), geometry.pool_size.trailing_zeros())
            }
            None => (self.threshold, self.alignment_shift, self.pool_shift),
        }
    }

    /// Whether a free block may link to another one: both lie in one pool, aligned.
    #[inline(always)]
    pub(super) fn is_link<S: Shape>(&self, from: *mut u8, to: *mut u8) -> bool {
        let mask = match &S::FIXED {
            Some(geometry) => link_mask(geometry),
            None => self.link_mask,
        };
        (from.addr() ^ to.addr()) & mask == 0
    }
}

/// The address bits that all blocks of a pool have in common.
pub(super) const fn link_mask(geometry: &Geometry) -> usize {
    !(geometry.pool_size - 1) | (geometry.alignment - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::ALL;

    #[test]
    fn every_release_has_pools_of_a_known_shape_whatever_its_arenas() {
        for profile in ALL {
            let own = Pools::of(&profile.geometry);
            assert_ne!(own, Pools::Other, "{}", profile.release);
            for arena_size in (16..=26).map(|shift| 1 << shift) {
                let geometry = Geometry { arena_size, ..profile.geometry };
                assert_eq!(Pools::of(&geometry), own, "{} with arenas of {arena_size}", profile.release);
            }
        }
    }

    #[test]
    fn pools_of_other_sizes_have_no_known_shape() {
        for release in [Geometry::SMALL, Geometry::LARGE] {
            for other in [
                Geometry { pool_size: 8 << 10, ..release },
                Geometry { alignment: 8, ..release },
                Geometry { small_request_threshold: 256, ..release },
            ] {
                assert_eq!(Pools::of(&other), Pools::Other, "{other:?}");
            }
        }
    }
}
