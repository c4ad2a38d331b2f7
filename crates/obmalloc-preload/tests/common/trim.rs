//! Programs that are trimmed, and the reports of it.

use super::{Python, Run};
use std::path::PathBuf;

/// Python code that defines `resident()`: the process's resident bytes.
pub const RESIDENT: &str = "\
def resident():
    with open('/proc/self/statm') as file: return int(file.read().split()[1]) * 4096
";

/// Whether its pools have several pages.
pub fn can_be_trimmed(python: &Python) -> bool {
    python.minor >= 10
}

/// A run of a program with the trimmer.
pub struct Trimmed(pub Run);

/// A line of the report.
pub struct Report(String);

impl Trimmed {
    pub fn of(python: &Python, script: &str, options: &str) -> Self {
        Self::with(python, &["-c", script], options, &[])
    }

    pub fn with(python: &Python, arguments: &[&str], options: &str, environment: &[(&str, &str)]) -> Self {
        Self(Run::prepared(python, arguments, |command| {
            let trace = command.get_envs().find_map(|(name, value)| (name == "OBMALLOC_TRACE").then_some(value).flatten());
            let report = PathBuf::from(trace.expect("a trace is wanted")).with_file_name("report");
            command.env_remove("OBMALLOC_TRACE").env("OBMALLOC_TRIM", options).env("OBMALLOC_TRIM_REPORT", report);
            command.envs(environment.iter().copied());
        }))
    }

    pub fn succeeded(self) -> Self {
        Self(self.0.succeeded())
    }

    pub fn stdout(&self) -> String {
        self.0.stdout()
    }

    pub fn stderr(&self) -> String {
        self.0.stderr()
    }

    /// The lines of all processes, in order.
    pub fn reports(&self) -> Vec<Report> {
        let text = std::fs::read_to_string(self.0.directory.join("report")).unwrap_or_default();
        text.lines().map(|line| Report(line.to_owned())).collect()
    }

    /// The last line of the process that was started.
    pub fn end(&self) -> Report {
        let last = self.reports().pop().unwrap_or_else(|| panic!("no report: {}", self.stderr()));
        assert!(last.is_end(), "{}", last.0);
        last
    }
}

impl Report {
    pub fn is_end(&self) -> bool {
        self.0.contains("\"end\":true")
    }

    fn field(&self, name: &str) -> &str {
        let (_, rest) = self.0.split_once(&format!("\"{name}\":")).unwrap_or_else(|| panic!("no {name} in {}", self.0));
        rest
    }

    pub fn number(&self, name: &str) -> u64 {
        let digits: String = self.field(name).chars().take_while(char::is_ascii_digit).collect();
        digits.parse().expect("a number")
    }

    /// Why nothing was given back.
    pub fn off(&self) -> Option<String> {
        let text = self.field("off").strip_prefix('"')?;
        Some(text.split('"').next().expect("it ends").to_owned())
    }
}
