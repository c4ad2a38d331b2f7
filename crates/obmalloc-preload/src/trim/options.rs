//! The options: the words of `OBMALLOC_TRIM`, separated by commas.

#![forbid(unsafe_code)]

use std::time::Duration;

/// When memory is given back, and what is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// `every=30s`: the shortest time between two trims. It grows while the program soon takes back what a trim has given.
    pub every: Duration,
    /// `above=16M`: the fewest bytes to give back that are worth a trim.
    pub above: usize,
    /// `idle`: trims as soon as the program sleeps, also before that time has passed.
    pub idle: bool,
    /// `asked`: trims only when the program asks for it.
    pub only_asked: bool,
    /// `log`: a line on stderr for each trim, and one at the end.
    pub log: bool,
    /// `poison`: pages are not given back but filled, and checked later. For tests.
    pub poison: bool,
    /// `force=2ms`: trims everything, each time that this time has passed. For tests.
    pub force: Option<Duration>,
}

impl Options {
    /// The options that hold unless others are given.
    pub const DEFAULT: Self = Self {
        every: Duration::from_secs(30),
        above: 16 << 20,
        idle: false,
        only_asked: false,
        log: false,
        poison: false,
        force: None,
    };

    /// The options of a text, or its first word that is no option.
    pub fn parse(text: &str) -> Result<Self, &str> {
        let mut options = Self::DEFAULT;
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            let (name, value) = word.split_once('=').map_or((word, None), |(name, value)| (name, Some(value)));
            match (name, value) {
                // Any other value switches trimming on with the defaults, as with other variables.
                ("1" | "on", None) => {}
                ("idle", None) => options.idle = true,
                ("asked", None) => options.only_asked = true,
                ("log", None) => options.log = true,
                ("poison", None) => options.poison = true,
                ("every", Some(value)) => options.every = duration(value).ok_or(word)?,
                ("force", Some(value)) => options.force = Some(duration(value).ok_or(word)?),
                ("above", Some(value)) => options.above = size(value).ok_or(word)?,
                _ => return Err(word),
            }
        }
        Ok(options)
    }
}

/// `30s`, `500ms` or `2m`; seconds if nothing else is said.
fn duration(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|char: char| char.is_ascii_alphabetic());
    let number: u64 = digits.parse().ok()?;
    match &text[digits.len()..] {
        "ms" => Some(Duration::from_millis(number)),
        "" | "s" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_secs(number.checked_mul(60)?)),
        _ => None,
    }
}

/// `16M`, `16MB`, `16MiB`, `512K`, `1G`, or bytes.
fn size(text: &str) -> Option<usize> {
    let digits = text.trim_end_matches(|char: char| char.is_ascii_alphabetic());
    let number: usize = digits.parse().ok()?;
    let unit = text[digits.len()..].to_ascii_uppercase();
    let unit = unit.strip_suffix("IB").or(unit.strip_suffix('B')).unwrap_or(&unit);
    let shift = match unit {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => return None,
    };
    number.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read() {
        assert_eq!(Options::parse("1"), Ok(Options::DEFAULT));
        assert_eq!(Options::parse("on, "), Ok(Options::DEFAULT));
        let all = Options {
            every: Duration::from_millis(500),
            above: 1 << 20,
            idle: true,
            only_asked: true,
            log: true,
            poison: true,
            force: Some(Duration::from_millis(3)),
        };
        assert_eq!(Options::parse("every=500ms,above=1MB,idle,asked,log,poison,force=3ms"), Ok(all));
    }

    #[test]
    fn units_of_time_and_size_are_read() {
        let every = |text: &'static str| Options::parse(text).map(|options| options.every.as_millis());
        assert_eq!(["every=2", "every=2s", "every=2m", "every=2ms"].map(every), [Ok(2000), Ok(2000), Ok(120_000), Ok(2)]);
        let above = |text: &'static str| Options::parse(text).map(|options| options.above);
        let sizes = ["above=0", "above=7B", "above=1k", "above=1KiB", "above=2M", "above=1GB"];
        assert_eq!(sizes.map(above), [Ok(0), Ok(7), Ok(1024), Ok(1024), Ok(2 << 20), Ok(1 << 30)]);
    }

    #[test]
    fn what_is_no_option_is_named() {
        for word in ["idl", "every", "every=", "every=1h", "every=-1s", "above=1T", "above=x", "log=1", "above=99999999999G", "2"]
        {
            assert_eq!(Options::parse(&format!("log,{word},idle")), Err(word));
        }
    }
}
