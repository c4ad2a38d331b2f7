//! Bytes that `PyType_GenericAlloc` requests, release by release, and how many of them lie before the object.

use obmalloc::profile::{self, Profile};
use obmalloc_proof::{CLASSES, Size, requested_here};

/// As measured in CPythons, in the order of [`CLASSES`].
const MEASURED: [(&[&Profile], [Size; 11]); 5] = [
    (
        &[&profile::V3_8, &profile::V3_9, &profile::V3_10],
        [[48, 16], [40, 16], [40, 16], [32, 16], [80, 16], [72, 16], [72, 16], [80, 16], [64, 16], [64, 16], [88, 16]],
    ),
    (
        &[&profile::V3_11],
        [[56, 32], [40, 16], [40, 16], [32, 16], [80, 16], [72, 16], [80, 32], [88, 32], [64, 16], [64, 16], [96, 16]],
    ),
    (
        &[&profile::V3_12_0, &profile::V3_12],
        [[48, 32], [40, 16], [48, 32], [32, 16], [88, 32], [72, 16], [72, 32], [80, 32], [72, 32], [72, 32], [104, 32]],
    ),
    (
        &[&profile::V3_13_0, &profile::V3_13],
        [[328, 32], [40, 16], [48, 32], [32, 16], [88, 32], [72, 16], [72, 32], [80, 32], [72, 32], [72, 32], [104, 32]],
    ),
    (
        &[&profile::V3_14_0, &profile::V3_14, &profile::V3_15],
        [[328, 32], [40, 16], [48, 32], [32, 16], [96, 32], [80, 16], [352, 32], [360, 32], [72, 32], [72, 32], [104, 32]],
    ),
];

#[test]
fn requested_sizes_are_those_of_the_release() {
    for (profiles, sizes) in MEASURED {
        for profile in profiles {
            let here = requested_here(profile);
            for (class, size) in CLASSES.iter().zip(sizes) {
                assert_eq!(here[class.name], size, "{} of {}", class.name, profile.release());
            }
        }
    }
}
