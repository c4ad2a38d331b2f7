//! Messages on stderr. Every one starts with `obmalloc: `.

/// Writes one line to stderr, with one system call so that lines of several processes do not mix. Failure is nobody's concern.
#[cold]
pub fn say(message: &str) {
    let line = format!("obmalloc: {message}\n");
    // SAFETY: the pointer and the length are those of a live string.
    unsafe { libc::write(2, line.as_ptr().cast(), line.len()) };
}

/// Names as a sentence has them: "raw, mem and obj".
pub fn listed(names: &[&str]) -> String {
    match names.split_last() {
        Some((last, others)) if !others.is_empty() => format!("{} and {last}", others.join(", ")),
        _ => names.concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::listed;

    #[test]
    fn names_are_listed_with_commas_and_one_and() {
        let names = ["raw", "mem", "obj"];
        assert_eq!([0, 1, 2, 3].map(|count| listed(&names[..count])), ["", "raw", "raw and mem", "raw, mem and obj"]);
    }
}
