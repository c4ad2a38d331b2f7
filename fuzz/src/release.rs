//! Which release a program is for.

use obmalloc::profile::Profile;

/// The release of `releases` that the first byte of an input names: the minor version of CPython 3, with the top bit set for the
/// `.0` behind it. `None` if no release has that name.
///
/// A byte stands for a name, so that an input means the same program when releases are added to the list.
pub fn named<'a>(byte: u8, releases: &[&'a Profile]) -> Option<&'a Profile> {
    let name = format!("3.{}{}", byte & 0x7f, if byte & 0x80 == 0 { "" } else { ".0" });
    releases.iter().copied().find(|profile| profile.release() == name)
}

#[cfg(test)]
mod tests {
    use obmalloc::profile::{ALL, V3_8, V3_14, V3_14_0, V3_15};

    use super::*;

    #[test]
    fn a_byte_stands_for_a_name_and_not_for_a_position() {
        let mut releases = ALL;
        for _ in &ALL {
            // Whatever comes first, and whatever is added before the others.
            releases.rotate_left(1);
            assert_eq!(named(8, &releases), Some(&V3_8));
            assert_eq!(named(14, &releases), Some(&V3_14));
            assert_eq!(named(0x8e, &releases), Some(&V3_14_0));
            assert_eq!(named(15, &releases), Some(&V3_15));
        }
        assert_eq!(named(8, &[&V3_15, &V3_14]), None, "a release that is not there");
    }

    #[test]
    fn each_release_has_a_byte_of_its_own() {
        let reached: Vec<&str> = (0..=255).filter_map(|byte| named(byte, &ALL)).map(Profile::release).collect();
        assert_eq!(reached, ["3.8", "3.9", "3.10", "3.11", "3.12", "3.13", "3.14", "3.15", "3.14.0"]);
        assert_eq!(reached.len(), ALL.len());
    }

    #[test]
    fn every_input_of_the_corpus_names_a_release() {
        let corpus = std::fs::read_dir("corpus").expect("the corpus");
        let inputs: Vec<_> = corpus.map(|entry| std::fs::read(entry.expect("an input").path()).expect("its bytes")).collect();
        assert!(!inputs.is_empty());
        assert!(inputs.iter().all(|input| input.first().is_some_and(|&byte| named(byte, &ALL).is_some())));
    }
}
