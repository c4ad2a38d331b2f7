//! The trace's header: which interpreter and which process are recorded.

use crate::python::Api;
use obmalloc_trace::format::header_sum;
use std::fmt::Write;
use std::io::Error;
use std::path::Path;

/// Bytes in which a header can say why its process could not go on writing.
const FAILURE_ROOM: usize = 160;

/// A number that identifies a trace, or a run.
#[derive(Clone, Copy, Default)]
pub struct Identity(u128);

impl Identity {
    /// A new one.
    pub fn new() -> Self {
        let mut bytes = [0; 16];
        // SAFETY: fills as many bytes as it is given room for.
        if unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) } != 16 {
            // The time and the process's id are as good as random: no two processes have both in common.
            let now = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_nanos());
            return Self(now << 32 | u128::from(std::process::id()));
        }
        Self(u128::from_ne_bytes(bytes))
    }
}

impl std::fmt::Display for Identity {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Written in one go and with leading zeros: text made in steps asks for other memory, which would show in the trace.
        let digit = |half: u8| b"0123456789abcdef"[usize::from(half)];
        let digits = self.0.to_be_bytes().map(|byte| [digit(byte >> 4), digit(byte & 15)]);
        out.write_str(str::from_utf8(digits.as_flattened()).map_err(|_| std::fmt::Error)?)
    }
}

/// What a trace says about the process that it records.
pub struct Header {
    /// The release, as in "3.11.7".
    pub python: String,
    /// Whether this is a free-threaded build, which has no pymalloc.
    pub free_threaded: bool,
    version: String,
    executable: String,
    argv: Vec<String>,
    /// The working directory, by which relative paths of stacks go.
    folder: String,
    debug_build: bool,
    shared: bool,
    /// The identity of the run that this process is part of.
    run: String,
    /// The most frames of a stack; 0 when there are no stacks.
    pub stacks: usize,
    /// The fewest milliseconds between two samples of memory; 0 when there are none.
    pub every: u64,
}

/// The trace that a forked process's trace continues.
pub struct Parent {
    /// The parent's trace.
    pub path: String,
    /// The identity of that trace, if it has one: reports of the checker have none.
    pub identity: Option<Identity>,
    /// Length of the parent's trace at the fork, bytes: the end of a block, or 0 when the parent had no event yet.
    pub bytes: u64,
}

impl Header {
    /// The header's facts about this process.
    pub fn of_this_process(api: &Api, run: String, stacks: usize, every: u64) -> Self {
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
            folder: std::env::current_dir().map_or_else(|_| String::new(), text_of),
            debug_build: api.is_debug_build(),
            shared: api.is_shared(),
            version,
            run,
            stacks,
            every,
        }
    }

    /// Whether this release is one that the recorder knows: 3.8 and later.
    pub fn supported(&self) -> bool {
        let mut parts = self.python.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
        (parts.next(), parts.next()) >= (Some(3), Some(8))
    }

    /// The header of process `pid`, as the JSON object that opens what it writes, and where in there a [`failure_text`] can be put.
    pub fn json(&self, pid: i32, identity: Identity, parent: Option<&Parent>) -> (String, usize) {
        let argv: Vec<String> = self.argv.iter().map(|text| quoted(text)).collect();
        let parent = parent.map_or_else(
            || "null".to_owned(),
            |Parent { path, identity, bytes }| {
                let id = identity.map_or_else(String::new, |identity| format!("\"id\": \"{identity}\", "));
                format!("{{\"path\": {}, {id}\"bytes\": {bytes}}}", quoted(path))
            },
        );
        // Always of the same width, so that the recorder takes the same memory with stacks and without.
        let mut json = format!(
            "{{\"python\": {}, \"version\": {}, \"executable\": {}, \"argv\": [{}], \"folder\": {}, \"pid\": {pid}, \"freeThreaded\": {}, \
             \"debugBuild\": {}, \"shared\": {}, \"stacks\": {:4}, \"every\": {:7}, \"run\": {}, \"id\": \"{identity}\", \"parent\": {parent}",
            quoted(&self.python),
            quoted(&self.version),
            quoted(&self.executable),
            argv.join(", "),
            quoted(&self.folder),
            self.free_threaded,
            self.debug_build,
            self.shared,
            self.stacks,
            self.every.min(9_999_999),
            quoted(&self.run),
        );
        json += &format!(", \"sum\": \"{:08x}\", \"failed\": ", header_sum(&json));
        let failure = json.len();
        json += &format!("{:FAILURE_ROOM$}}}", "null");
        (json, failure)
    }
}

/// The header's text about a process that could not go on writing. It always has the same length, so that it fits over the text there.
pub fn failure_text(error: &Error) -> String {
    // The system's words, cut off if they are long.
    let words: String = error.to_string().chars().filter(|char| matches!(char, ' '..='~')).take(FAILURE_ROOM / 2 - 2).collect();
    format!("{:FAILURE_ROOM$}", quoted(&words))
}

/// A path as text. Bytes that are not UTF-8 are replaced.
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
    fn identity_is_of_one_length_and_written_at_once() {
        struct Writes(Vec<String>);
        impl Write for Writes {
            fn write_str(&mut self, text: &str) -> std::fmt::Result {
                self.0.push(text.to_owned());
                Ok(())
            }
        }
        for number in [0, 1, 0xab << 112, u128::MAX] {
            let mut writes = Writes(vec![]);
            write!(writes, "{}", Identity(number)).expect("a Vec takes everything");
            assert_eq!(writes.0, [format!("{number:032x}")]);
        }
    }

    #[test]
    fn quotes_backslashes_and_control_characters_are_escaped() {
        assert_eq!(quoted("a\"b\\c\n\u{1b}é"), r#""a\"b\\c\u000a\u001bé""#);
    }

    #[test]
    fn failure_takes_the_place_that_a_header_keeps_for_it() {
        let header = Header {
            python: "3.13.0".into(),
            version: String::new(),
            free_threaded: false,
            executable: String::new(),
            argv: vec!["a\"b".into()],
            folder: String::new(),
            debug_build: false,
            shared: false,
            run: "r".into(),
            stacks: 64,
            every: 100,
        };
        let (json, at) = header.json(7, Identity::new(), None);
        assert!(json[at..].starts_with("null ") && json.ends_with(" }"), "{json}");
        for error in [Error::from_raw_os_error(libc::ENOSPC), Error::other("\n".repeat(1000))] {
            assert_eq!(failure_text(&error).len(), json.len() - 1 - at);
        }
        assert!(failure_text(&Error::from_raw_os_error(libc::ENOSPC)).starts_with("\"No space left on device"));
    }

    #[test]
    fn releases_before_3_8_are_refused() {
        let of = |python: &str| Header {
            python: python.into(),
            version: String::new(),
            free_threaded: false,
            executable: String::new(),
            argv: vec![],
            folder: String::new(),
            debug_build: false,
            shared: false,
            run: String::new(),
            stacks: 0,
            every: 0,
        };
        for (python, supported) in [("2.7.18", false), ("3.7.16", false), ("3.8.0", true), ("3.15.0a1+", true), ("4.0.0", true)] {
            assert_eq!(of(python).supported(), supported, "{python}");
        }
    }
}
