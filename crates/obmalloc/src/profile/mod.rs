//! Room `profile`: what differs between CPython releases, as data. Leans on nothing.
//!
//! A release is a row that writes down only what it changes; a difference is an axis with a name. Code asks an axis, never a version.

mod geometry;

pub use geometry::{Geometry, GeometryError, POOL_OVERHEAD};

/// What becomes of an arena when its last block is freed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum EmptyArena {
    /// It is given back at once.
    Release,
    /// It is given back unless it is the right-most of the usable arenas (bpo-37257).
    KeepRightmost,
}

/// How pymalloc tells its own addresses from others (`address_in_range`), which shows in what it asks of the raw domain and in
/// the statistics.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RangeCheck {
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

/// Where a class's instances keep their dict, or the list of weak references to them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Storage {
    /// In a word at the end of the object, counted in `tp_basicsize`.
    Slot,
    /// In two words before the collector's (`Py_TPFLAGS_MANAGED_DICT`, `Py_TPFLAGS_MANAGED_WEAKREF`).
    PreHeader,
    /// In two words before the collector's, unless the object has a variable part.
    PreHeaderOfFixedSize,
}

/// Which types with a managed dict keep its values behind the object (`Py_TPFLAGS_INLINE_VALUES`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum InlineValues {
    /// None.
    Never,
    /// Those whose objects are nothing but a header.
    BareTypes,
    /// Those without a variable part.
    FixedSizeTypes,
}

/// Whether a reference count can mean that an object is never destroyed, and how.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Immortality {
    /// No reference count means that.
    None,
    /// An object is immortal if the lower 32 bits are negative. Its count has all 32 bits set, where counting up stops.
    AllOnes,
    /// An object is immortal if the lower 32 bits are negative. Its count is three quarters of 2**32, where counting up stops.
    ThreeQuarters,
}

/// What a collection does with an immortal object that it meets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ImmortalMet {
    /// The object joins the permanent generation.
    Frozen,
    /// The object is not tracked any more.
    Untracked,
}

/// When the collection runs that an allocation triggers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Automatic {
    /// Before the allocation returns.
    InsideAllocation,
    /// When the interpreter next looks (`_PY_GC_SCHEDULED_BIT`). Early 3.12 then forgot to ask whether the collector was still enabled
    /// (gh-116604).
    Scheduled {
        /// Whether `disable` calls off what is scheduled.
        disable_calls_off: bool,
    },
}

/// What the count of the youngest generation counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Counted {
    /// GC objects allocated, less those freed.
    Allocations,
    /// Objects tracked, less those untracked.
    Tracking,
}

/// Which collector there is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Algorithm {
    /// Three generations, each collected whole.
    Generational,
    /// A young generation, and old objects collected in increments.
    Incremental,
}

/// What becomes of the unreachable objects when a finalizer makes one of them reachable again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Resurrection {
    /// All of them are kept.
    KeepsAll,
    /// The objects that it reaches are kept (bpo-38379).
    KeepsReachable,
}

/// When weak references to unreachable objects are cleared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WeakrefsCleared {
    /// Before finalizers run.
    BeforeFinalizers,
    /// Before finalizers run, and those that finalizers made, after (gh-91636).
    BeforeAndAfterFinalizers,
    /// Those with callbacks before finalizers run, the others after (gh-136189).
    CallbacksBeforeOthersAfter,
}

/// How the debug hooks word their report.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct DebugText {
    /// Whether the function that found it is named before the message.
    pub names_function: bool,
    /// Whether the message ends at a zero byte that it would quote.
    pub message_ends_at_nul: bool,
    /// Whether the thread is named behind its number.
    pub names_thread: bool,
    /// What stands for the stack where no Python function is running.
    pub no_frame: NoFrame,
}

/// How a stack without a Python function is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NoFrame {
    /// As `<no Python frame>`.
    Unindented,
    /// As `<no Python frame>`, after two blanks.
    Indented,
    /// Not at all.
    Nothing,
}

/// How a release's type allocators and collector work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ObjectRules {
    /// Where a dict is kept.
    pub dict: Storage,
    /// Where the list of weak references is kept.
    pub weaklist: Storage,
    /// Which types have inline values.
    pub inline_values: InlineValues,
    /// `tp_name` of weak references.
    pub weakref_name: &'static str,
    /// Bytes of a weak reference (`PyWeakReference`).
    pub weakref_basicsize: usize,
    /// How objects are immortal.
    pub immortality: Immortality,
    /// What a collection does with immortal objects.
    pub immortal_met: ImmortalMet,
    /// The thresholds that the collector starts with.
    pub thresholds: [i32; 3],
    /// When automatic collections run.
    pub automatic: Automatic,
    /// What is counted.
    pub counted: Counted,
    /// The collector.
    pub algorithm: Algorithm,
    /// What resurrection does.
    pub resurrection: Resurrection,
    /// When weak references are cleared.
    pub weakrefs_cleared: WeakrefsCleared,
    /// Whether an object's only weak reference with a callback is kept while the callback runs. If there are several, all are always kept.
    pub lone_weakref_kept: bool,
}

/// One CPython release. A program cannot make others, because it could combine sizes and rules that do not go together.
///
/// ```
/// use obmalloc::profile::{Geometry, V3_13};
/// assert_eq!((V3_13.release(), V3_13.geometry()), ("3.13", Geometry::LARGE));
/// ```
/// ```compile_fail,E0451
/// let mine = obmalloc::profile::Profile { release: "mine", ..obmalloc::profile::V3_13 };
/// ```
/// ```compile_fail,E0616
/// let mut mine = obmalloc::profile::V3_13;
/// mine.objects.weakref_basicsize = 8;
/// ```
/// ```compile_fail,E0603
/// let none = obmalloc::profile::RangeCheck::RadixTree { address_bits: 0, top_masked_by_bottom: false };
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Profile {
    /// The release's name: `"3.8"` to `"3.15"`; `"3.14.0"` is 3.14.0 to 3.14.4, `"3.14"` what came after.
    pub(crate) release: &'static str,
    /// pymalloc's sizes.
    pub(crate) geometry: Geometry,
    /// What becomes of empty arenas.
    pub(crate) empty_arena: EmptyArena,
    /// How addresses are told apart.
    pub(crate) range_check: RangeCheck,
    /// What the debug hooks print.
    pub(crate) debug_text: DebugText,
    /// Type allocators and the collector.
    pub(crate) objects: ObjectRules,
}

const RADIX_48: RangeCheck = RangeCheck::RadixTree { address_bits: 48, top_masked_by_bottom: true };
const RADIX_64: RangeCheck = RangeCheck::RadixTree { address_bits: 64, top_masked_by_bottom: false };

/// CPython 3.8.
pub const V3_8: Profile = Profile {
    release: "3.8",
    geometry: Geometry::SMALL,
    empty_arena: EmptyArena::Release,
    range_check: RangeCheck::ArenaIndex,
    debug_text: DebugText {
        names_function: false,
        message_ends_at_nul: true,
        names_thread: false,
        no_frame: NoFrame::Unindented,
    },
    objects: ObjectRules {
        dict: Storage::Slot,
        weaklist: Storage::Slot,
        inline_values: InlineValues::Never,
        weakref_name: "weakref",
        weakref_basicsize: 56,
        immortality: Immortality::None,
        immortal_met: ImmortalMet::Untracked,
        thresholds: [700, 10, 10],
        automatic: Automatic::InsideAllocation,
        counted: Counted::Allocations,
        algorithm: Algorithm::Generational,
        resurrection: Resurrection::KeepsAll,
        weakrefs_cleared: WeakrefsCleared::BeforeFinalizers,
        lone_weakref_kept: false,
    },
};
/// CPython 3.9.
pub const V3_9: Profile = Profile {
    release: "3.9",
    empty_arena: EmptyArena::KeepRightmost,
    debug_text: DebugText { names_function: true, message_ends_at_nul: false, ..V3_8.debug_text },
    objects: ObjectRules { resurrection: Resurrection::KeepsReachable, ..V3_8.objects },
    ..V3_8
};
/// CPython 3.10.
pub const V3_10: Profile = Profile {
    release: "3.10",
    geometry: Geometry::LARGE,
    range_check: RADIX_48,
    debug_text: DebugText { no_frame: NoFrame::Indented, ..V3_9.debug_text },
    objects: ObjectRules { weakref_name: "weakref.ReferenceType", ..V3_9.objects },
    ..V3_9
};
/// CPython 3.11.
pub const V3_11: Profile = Profile {
    release: "3.11",
    range_check: RADIX_64,
    objects: ObjectRules { dict: Storage::PreHeaderOfFixedSize, weakref_basicsize: 64, ..V3_10.objects },
    ..V3_10
};
/// CPython 3.12.
pub const V3_12: Profile = Profile {
    release: "3.12",
    objects: ObjectRules {
        dict: Storage::PreHeader,
        weaklist: Storage::PreHeader,
        immortality: Immortality::AllOnes,
        immortal_met: ImmortalMet::Frozen,
        automatic: Automatic::Scheduled { disable_calls_off: true },
        ..V3_11.objects
    },
    ..V3_11
};
/// CPython 3.12.0 to 3.12.4, before gh-116604.
pub const V3_12_0: Profile =
    Profile { objects: ObjectRules { automatic: Automatic::Scheduled { disable_calls_off: false }, ..V3_12.objects }, ..V3_12 };
/// CPython 3.13.0 to 3.13.12, before gh-91636.
pub const V3_13_0: Profile = Profile {
    release: "3.13",
    objects: ObjectRules {
        inline_values: InlineValues::BareTypes,
        thresholds: [2000, 10, 10],
        lone_weakref_kept: true,
        ..V3_12.objects
    },
    ..V3_12
};
/// CPython 3.13.
pub const V3_13: Profile = Profile {
    objects: ObjectRules { weakrefs_cleared: WeakrefsCleared::BeforeAndAfterFinalizers, ..V3_13_0.objects },
    ..V3_13_0
};
/// CPython 3.14.0 to 3.14.3.
pub const V3_14_0: Profile = Profile {
    release: "3.14.0",
    debug_text: DebugText { names_thread: true, ..V3_13_0.debug_text },
    objects: ObjectRules {
        inline_values: InlineValues::FixedSizeTypes,
        immortality: Immortality::ThreeQuarters,
        immortal_met: ImmortalMet::Untracked,
        thresholds: [2000, 10, 0],
        counted: Counted::Tracking,
        algorithm: Algorithm::Incremental,
        ..V3_13_0.objects
    },
    ..V3_13_0
};
/// CPython 3.14.4: the incremental collector after gh-91636.
pub const V3_14_4: Profile = Profile {
    objects: ObjectRules { weakrefs_cleared: WeakrefsCleared::BeforeAndAfterFinalizers, ..V3_14_0.objects },
    ..V3_14_0
};
/// CPython 3.14.5 and later.
pub const V3_14: Profile = Profile {
    release: "3.14",
    objects: ObjectRules {
        thresholds: V3_13.objects.thresholds,
        counted: Counted::Allocations,
        algorithm: Algorithm::Generational,
        ..V3_14_4.objects
    },
    ..V3_14_4
};
/// CPython 3.15.
pub const V3_15: Profile = Profile {
    release: "3.15",
    debug_text: DebugText { no_frame: NoFrame::Nothing, ..V3_14.debug_text },
    objects: ObjectRules { weakrefs_cleared: WeakrefsCleared::CallbacksBeforeOthersAfter, ..V3_14.objects },
    ..V3_14
};

/// Every release, oldest first.
pub const ALL: [&Profile; 9] = [&V3_8, &V3_9, &V3_10, &V3_11, &V3_12, &V3_13, &V3_14_0, &V3_14, &V3_15];

impl Profile {
    /// The release's name: `"3.8"` to `"3.15"`; `"3.14.0"` is 3.14.0 to 3.14.4, `"3.14"` what came after.
    pub const fn release(&self) -> &'static str {
        self.release
    }

    /// pymalloc's sizes.
    pub const fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Which collector there is.
    pub const fn algorithm(&self) -> Algorithm {
        self.objects.algorithm
    }

    /// The release, but without the nodes of an arena map: a replay requests them itself, for the recorded addresses
    /// ([`ArenaMapCounts`](crate::ArenaMapCounts)).
    #[must_use]
    pub const fn without_arena_map(&self) -> Self {
        Self { range_check: RangeCheck::ArenaIndex, ..*self }
    }

    /// The release called `name`, if there is one.
    pub fn named(name: &str) -> Option<&'static Self> {
        ALL.into_iter().find(|profile| profile.release == name)
    }

    /// The release that a version such as `"3.14.2"` or `"3.12.1+"` belongs to, if it is one of these.
    pub fn of_version(version: &str) -> Option<&'static Self> {
        let mut parts = version.split(|c: char| !c.is_ascii_digit());
        let (major, minor) = (parts.next()?, parts.next()?);
        let micro = parts.next().and_then(|micro| micro.parse().ok()).unwrap_or(u32::MAX);
        match (major, minor, micro) {
            ("3", "12", 0..=4) => return Some(&V3_12_0),
            ("3", "13", 0..=12) => return Some(&V3_13_0),
            ("3", "14", 0..=3) => return Some(&V3_14_0),
            ("3", "14", 4) => return Some(&V3_14_4),
            _ => {}
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
}
