//! Numbers and sites as people read them, and the answer's first and last lines.

#![forbid(unsafe_code)]

use super::rules::WORTH;
use super::sites::{Frame, Sites};
use super::types::TypeCount;
use super::why::Why;

/// Bytes: `142 MiB`, `1.9 MiB`, `131 KiB`, `96 bytes`.
pub fn size(bytes: u64) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let Some((unit, bits)) = units.into_iter().find(|&(_, bits)| bytes >> bits > 0) else { return format!("{bytes} bytes") };
    let value = bytes as f64 / (1u64 << bits) as f64;
    if value < 9.95 { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

/// A count in groups of three digits: `6,027,684`.
pub fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count with what is counted: `1 arena`, `3,000 blocks`.
pub fn counted(number: u64, noun: &str) -> String {
    format!("{} {noun}{}", count(number), if number == 1 { "" } else { "s" })
}

/// A time that something took at most: `250 ms`, `1.2 s`, `40 s`, `1,500 s`.
pub fn seconds(seconds: f64) -> String {
    match seconds {
        ..0.9995 => format!("{:.0} ms", seconds * 1000.0),
        ..9.95 => format!("{seconds:.1} s"),
        _ => format!("{} s", count(seconds.round() as u64)),
    }
}

/// A share of a whole: `99.9 %`; 100 % only if the share is the whole.
pub fn percent(part: u64, whole: u64) -> String {
    let share = 100.0 * part as f64 / whole.max(1) as f64;
    if part == whole {
        "100 %".into()
    } else if share >= 99.0 {
        format!("{:.1} %", (share * 10.0).floor() / 10.0)
    } else {
        format!("{share:.0} %")
    }
}

/// Whether a file is not the program's own, as far as its path tells: Python's library, an installed package, no file at all.
fn is_library(file: &str) -> bool {
    // Some systems have the library in lib64.
    let is_of_python = |(at, name): (usize, &str)| {
        let folder = file[..at].rsplit('/').next().unwrap_or_default();
        folder.trim_end_matches(|c: char| c.is_ascii_digit()) == "lib"
            && file[at + name.len()..].starts_with(|c: char| c.is_ascii_digit())
    };
    file.starts_with("<frozen") || file.contains("/site-packages/") || file.match_indices("/python").any(is_of_python)
}

/// A file without its folders.
pub fn short(file: &str) -> &str {
    file.rsplit('/').next().unwrap_or(file)
}

/// A word of a command for a shell, in quotes if necessary.
pub fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "-_./+@%:,=".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) { word.into() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

/// A frame's file and line as `--site` takes them, for a shell.
pub fn place(frame: &Frame) -> String {
    quoted(&format!("{}:{}", short(&frame.file), frame.line))
}

/// The frame of a site that people look for: the innermost one in a file of the program's own, else the innermost one of its own, else the
/// innermost one outside the import system, else the innermost one. Code that was made at run time has no file; the constructor of a dataclass
/// is such code.
pub fn chief(sites: &Sites, site: u32) -> Option<&Frame> {
    let all = || sites.frames_of(site);
    let own = || all().filter(|frame| !is_library(&frame.file));
    let of_file = || own().find(|frame| !frame.file.starts_with('<'));
    of_file()
        .or_else(|| own().next())
        .or_else(|| all().find(|frame| !frame.file.starts_with("<frozen importlib")))
        .or_else(|| all().next())
}

/// Sites in words, the lines of one function together: `load_rows (frag.py:9) and Row.__init__ (frag.py:5, 6)`. At most `most` functions.
pub fn sites(sites: &Sites, which: &[u32], most: usize) -> String {
    let mut functions: Vec<(&str, &str, Vec<u32>)> = Vec::new();
    let mut is_without = false;
    for &site in which {
        let Some(frame) = chief(sites, site) else {
            is_without = true;
            continue;
        };
        let file = short(&frame.file);
        match functions.iter_mut().find(|(function, of, _)| *function == frame.function && *of == file) {
            Some((_, _, lines)) => lines.push(frame.line),
            None => functions.push((&frame.function, file, vec![frame.line])),
        }
    }
    let rest = functions.len().saturating_sub(most);
    let mut parts: Vec<String> =
        functions.into_iter().take(most).map(|(function, file, lines)| named(function, file, lines)).collect();
    if is_without {
        parts.push("C code without a Python frame".into());
    }
    if rest > 0 {
        parts.push(format!("{} more", counted(rest as u64, "function")));
    }
    list(&parts)
}

/// Some things as a list: `a`, `a and b`, `a, b and c`.
pub fn list(parts: &[String]) -> String {
    match parts.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} and {last}", others.join(", ")),
        None => "nothing".into(),
    }
}

fn named(function: &str, file: &str, mut lines: Vec<u32>) -> String {
    lines.sort_unstable();
    lines.dedup();
    let lines: Vec<String> = lines.iter().map(u32::to_string).collect();
    printable(&format!("{function} ({file}:{})", lines.join(", ")))
}

/// A name that is safe in a line of text: a file can have any name.
pub fn printable(name: &str) -> String {
    name.replace(char::is_control, "?")
}

/// Most types that are named in words.
const NAMED_TYPES: usize = 4;

/// The types of some blocks, as a sentence with a blank before it: ` 3,000 blocks: 1,000 `Row`, 1,000 `int`, 1,000 `str`.` Empty if no type is
/// known.
pub fn types(types: Option<&[TypeCount]>, blocks: u64) -> String {
    let types = types.unwrap_or_default();
    if types.is_empty() {
        return String::new();
    }
    let name = |of: &TypeCount| printable(of.name.strip_prefix("__main__.").unwrap_or(&of.name));
    let (named, others) = types.split_at(types.len().min(NAMED_TYPES));
    let mut parts: Vec<String> = named.iter().map(|of| format!("{} `{}`", count(of.blocks), name(of))).collect();
    let sum = |types: &[TypeCount]| types.iter().map(|of| of.blocks).sum::<u64>();
    if !others.is_empty() {
        parts.push(format!("{} of {}", count(sum(others)), counted(others.len() as u64, "other type")));
    }
    let unknown = blocks.saturating_sub(sum(types));
    if unknown > 0 {
        parts.push(format!("{} of a type that is not known", count(unknown)));
    }
    format!(" {}: {}.", counted(blocks, "block"), parts.join(", "))
}

/// The answer, a line each.
pub fn summary(why: &Why) -> Vec<String> {
    let (totals, verified) = (&why.totals, &why.verified);
    let mut lines = vec![format!(
        "{} are held for {} of live objects ({} of {} addresses verified).",
        size(totals.held),
        size(totals.live),
        count(verified.matched),
        count(verified.addresses)
    )];
    lines.extend(why.findings.iter().map(|finding| finding.text.clone()));
    if let (Some(resident), Some(unexplained)) = (totals.resident, totals.unexplained) {
        if unexplained == 0 {
            let all = size(resident);
            lines.push(format!(
                "{all} were resident: arenas, C's blocks and files may be all of it. Anything else cannot be told."
            ));
            return lines;
        }
        let explained = resident.saturating_sub(unexplained);
        let kept = totals.heap_free.unwrap_or(0).min(unexplained);
        let mut parts = format!("{} in arenas, C's blocks and files", size(explained));
        if kept >= WORTH {
            parts += &format!(", {} free in C's malloc", size(kept));
        }
        let rest = unexplained - if kept >= WORTH { kept } else { 0 };
        if rest > 0 {
            parts += &format!(", {} in none of these", size(rest));
        }
        lines.push(format!("{} were resident: {parts}.", size(resident)));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_counted_and_what_is_not_known_is_said_to_be_so() {
        let of = |name: &str, blocks| TypeCount { name: name.into(), blocks, bytes: 0 };
        let some = [of("__main__.Row", 1000), of("int", 1000), of("a.b\nc", 2), of("list", 1), of("set", 1), of("dict", 1)];
        assert_eq!(types(Some(&some[..2]), 2000), " 2,000 blocks: 1,000 `Row`, 1,000 `int`.");
        assert_eq!(
            types(Some(&some), 2010),
            " 2,010 blocks: 1,000 `Row`, 1,000 `int`, 2 `a.b?c`, 1 `list`, 2 of 2 other types, 5 of a type that is not known."
        );
        assert_eq!((types(Some(&[]), 7), types(None, 7)), (String::new(), String::new()));
    }

    #[test]
    fn sizes_counts_and_shares_are_short() {
        let sizes = [0, 96, 1023, 1024, 131 << 10, 1 << 20, 1_992_294, 142 << 20, 10 << 30].map(size);
        assert_eq!(sizes, ["0 bytes", "96 bytes", "1023 bytes", "1.0 KiB", "131 KiB", "1.0 MiB", "1.9 MiB", "142 MiB", "10 GiB"]);
        assert_eq!([0, 999, 1000, 6_027_684].map(count), ["0", "999", "1,000", "6,027,684"]);
        assert_eq!((counted(1, "arena"), counted(0, "block")), ("1 arena".into(), "0 blocks".into()));
        let times = [0.001, 0.25, 0.9999, 1.2, 8.0, 40.0, 1500.0].map(seconds);
        assert_eq!(times, ["1 ms", "250 ms", "1.0 s", "1.2 s", "8.0 s", "40 s", "1,500 s"]);
        let shares = [(1, 1), (99_999, 100_000), (1, 2), (0, 0)].map(|(part, whole)| percent(part, whole));
        assert_eq!(shares, ["100 %", "99.9 %", "50 %", "100 %"]);
    }
}
