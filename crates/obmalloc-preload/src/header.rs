//! The trace's header: which interpreter, which process.

use crate::python::Api;
use std::fmt::Write;
use std::path::Path;

/// What a trace says about the process that it records.
pub struct Header {
    /// The release, as in "3.11.7".
    pub python: String,
    /// Whether this is a free-threaded build, which has no pymalloc.
    pub free_threaded: bool,
    version: String,
    executable: String,
    argv: Vec<String>,
    debug_build: bool,
    shared: bool,
}

/// The trace that a forked process's trace continues.
pub struct Parent {
    /// The parent's trace.
    pub path: String,
    /// Length of the parent's trace at the fork, bytes: the end of a block, or 0 when the parent had no event yet.
    pub bytes: u64,
}

impl Header {
    /// What there is to say about this process.
    pub fn of_this_process(api: &Api) -> Self {
        let version = api.version();
        let arguments = std::fs::read("/proc/self/cmdline").unwrap_or_default();
        let mut argv: Vec<String> =
            arguments.split(|&byte| byte == 0).map(|text| String::from_utf8_lossy(text).into_owned()).collect();
        argv.pop();
        Self {
            python: version.split_whitespace().next().unwrap_or_default().to_owned(),
            free_threaded: version.contains("free-threading"),
            executable: std::fs::read_link("/proc/self/exe").as_deref().map_or_else(|_| String::new(), text_of),
            argv,
            debug_build: api.is_debug_build(),
            shared: api.is_shared(),
            version,
        }
    }

    /// Whether this release is one that the recorder knows: 3.8 and later.
    pub fn supported(&self) -> bool {
        let mut parts = self.python.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
        (parts.next(), parts.next()) >= (Some(3), Some(8))
    }

    /// The header of process `pid`, as the JSON object that opens its trace.
    pub fn json(&self, pid: i32, parent: Option<&Parent>) -> String {
        let argv: Vec<String> = self.argv.iter().map(|text| quoted(text)).collect();
        let parent = parent.map_or_else(
            || "null".to_owned(),
            |parent| format!("{{\"path\": {}, \"bytes\": {}}}", quoted(&parent.path), parent.bytes),
        );
        format!(
            "{{\"python\": {}, \"version\": {}, \"executable\": {}, \"argv\": [{}], \"pid\": {pid}, \"freeThreaded\": {}, \
             \"debugBuild\": {}, \"shared\": {}, \"parent\": {parent}}}",
            quoted(&self.python),
            quoted(&self.version),
            quoted(&self.executable),
            argv.join(", "),
            self.free_threaded,
            self.debug_build,
            self.shared,
        )
    }
}

/// A path as text; what is no UTF-8 in it is replaced.
pub fn text_of(path: impl AsRef<Path>) -> String {
    path.as_ref().to_string_lossy().into_owned()
}

/// `text` as a JSON string.
pub fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for char in text.chars() {
        match char {
            '"' | '\\' => out.extend(['\\', char]),
            '\0'..='\x1f' | '\x7f' => write!(out, "\\u{:04x}", char as u32).expect("a String takes everything"),
            _ => out.push(char),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_backslashes_and_control_characters_are_escaped() {
        assert_eq!(quoted("a\"b\\c\n\u{1b}é"), r#""a\"b\\c\u000a\u001bé""#);
    }

    #[test]
    fn releases_before_3_8_are_refused() {
        let of = |python: &str| Header {
            python: python.into(),
            version: String::new(),
            free_threaded: false,
            executable: String::new(),
            argv: vec![],
            debug_build: false,
            shared: false,
        };
        for (python, supported) in [("2.7.18", false), ("3.7.16", false), ("3.8.0", true), ("3.15.0a1+", true), ("4.0.0", true)] {
            assert_eq!(of(python).supported(), supported, "{python}");
        }
    }
}
