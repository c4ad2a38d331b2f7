//! CPythons, the recorder in them, and what it leaves. CPythons are every one in `OBMALLOC_PYTHON` (separated by colons), the `python3` on
//! the path, the system's (Debian's is not position-independent), and pyenv's.
#![allow(dead_code, reason = "not every suite uses all of it")]

pub mod live;
pub mod trim;

use obmalloc_trace::format::{BLOCK_HEADER, Event, Note, Reader};
use std::collections::BTreeSet;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// A CPython that can be recorded.
pub struct Python {
    pub executable: PathBuf,
    /// Minor version: 8 for 3.8.
    pub minor: u32,
}

pub fn pythons() -> &'static [Python] {
    static FOUND: OnceLock<Vec<Python>> = OnceLock::new();
    FOUND.get_or_init(|| {
        let mut candidates: Vec<PathBuf> = std::env::var_os("OBMALLOC_PYTHON").iter().flat_map(std::env::split_paths).collect();
        candidates.extend(["python3", "/usr/bin/python3"].map(PathBuf::from));
        if let Some(home) = std::env::var_os("HOME")
            && let Ok(versions) = std::fs::read_dir(Path::new(&home).join(".pyenv/versions"))
        {
            candidates.extend(versions.flatten().map(|version| version.path().join("bin/python3")));
        }
        let executables: BTreeSet<(u32, PathBuf)> = candidates.iter().filter_map(|candidate| examine(candidate)).collect();
        if executables.is_empty() {
            eprintln!("skipped: no CPython >= 3.8 found (set OBMALLOC_PYTHON)");
        }
        executables.into_iter().map(|(minor, executable)| Python { executable, minor }).collect()
    })
}

/// Minor version and real path, when `candidate` is a CPython that has pymalloc.
fn examine(candidate: &Path) -> Option<(u32, PathBuf)> {
    const SCRIPT: &str = "import sys, sysconfig, os; print(sys.implementation.name, sys.version_info[0], sys.version_info[1], \
                          sysconfig.get_config_var('Py_GIL_DISABLED') or 0, os.path.realpath(sys.executable))";
    let output = Command::new(candidate).args(["-c", SCRIPT]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let fields: Vec<&str> = text.trim_end().splitn(5, ' ').collect();
    match fields[..] {
        ["cpython", "3", minor, "0", path] => {
            let minor: u32 = minor.parse().ok()?;
            (minor >= 8).then(|| (minor, path.into()))
        }
        _ => None,
    }
}

/// The library, built here: cargo builds a library that Rust programs cannot link only when it is asked to.
pub fn recorder() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let test = std::env::current_exe().expect("a test has a path");
        let profile = test.ancestors().nth(2).expect("tests are in target/<profile>/deps");
        let mut command = Command::new(env!("CARGO"));
        command.args(["build", "--quiet", "--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"), "--target-dir"]);
        command.arg(profile.parent().expect("a profile's directory is in the target directory"));
        if !cfg!(debug_assertions) {
            command.arg("--release");
        }
        assert!(command.status().expect("cargo starts").success());
        profile.join("libobmalloc_preload.so")
    })
}

/// A directory for one recording, which is removed when this is dropped.
pub struct Run {
    pub directory: PathBuf,
    pub output: Output,
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl Run {
    pub fn of(python: &Python, script: &str, environment: &[(&str, &str)]) -> Self {
        Self::with(python, &["-c", script], environment)
    }

    pub fn with(python: &Python, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::prepared(python, arguments, |command| {
            command.envs(environment.iter().copied());
        })
    }

    /// As the others. `prepare` may change the command before it is run.
    pub fn prepared(python: &Python, arguments: &[&str], prepare: impl FnOnce(&mut Command)) -> Self {
        static RUNS: AtomicU32 = AtomicU32::new(0);
        let number = RUNS.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("obmalloc-record-{}-{number:04}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a temporary directory");
        let mut command = Command::new(&python.executable);
        command.args(arguments).env("LD_PRELOAD", recorder()).env("OBMALLOC_TRACE", directory.join("trace"));
        let others = ["PYTHONMALLOC", "PYTHONDEVMODE", "OBMALLOC_TRIM", "OBMALLOC_TRIM_REPORT"];
        for variable in ["OBMALLOC_TRACE_PID", "OBMALLOC_TRACE_RUN", "OBMALLOC_STACKS", "OBMALLOC_EVERY", "OBMALLOC_TYPES"]
            .into_iter()
            .chain(others)
        {
            command.env_remove(variable);
        }
        prepare(&mut command);
        let output = command.output().expect("the interpreter starts");
        Self { directory, output }
    }

    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }

    pub fn succeeded(self) -> Self {
        assert!(self.output.status.success(), "{:?}: {}", self.output.status, self.stderr());
        self
    }

    /// Every trace file but the first process's.
    pub fn children(&self) -> Vec<PathBuf> {
        let files = std::fs::read_dir(&self.directory).expect("the directory is there");
        files.map(|file| file.expect("readable").path()).filter(|path| !path.ends_with("trace")).collect()
    }

    pub fn trace(&self) -> Trace {
        Trace::read(&self.directory.join("trace"))
    }
}

/// A run at fixed addresses.
pub fn fixed(python: &Python, script: &str, environment: &[(&str, &str)]) -> Run {
    fixed_with(python, &["-c", script], environment)
}

/// As [`fixed`], with the arguments that are given.
pub fn fixed_with(python: &Python, arguments: &[&str], environment: &[(&str, &str)]) -> Run {
    let run = Run::prepared(python, arguments, |command| {
        command.envs(environment.iter().copied()).env("PYTHONHASHSEED", "0").env("PYTHONDONTWRITEBYTECODE", "1");
        // SAFETY: takes no memory.
        unsafe {
            command.pre_exec(|| {
                libc::personality(libc::ADDR_NO_RANDOMIZE as libc::c_ulong);
                Ok(())
            })
        };
    });
    run.succeeded()
}

pub struct Trace {
    pub header: String,
    pub events: Vec<Event>,
    /// The offsets in bytes at which blocks begin and end.
    pub edges: Vec<u64>,
}

impl Trace {
    pub fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut reader = Reader::new(&bytes).expect("a trace");
        let header = reader.header().to_owned();
        let events = reader.by_ref().map(|event| event.expect("an undamaged trace")).collect();
        assert!(!reader.truncated(), "blocks are written whole");
        let mut edges = vec![16 + header.len() as u64];
        while let Some(length) = bytes.get(edges[edges.len() - 1] as usize..).and_then(|rest| rest.first_chunk::<4>()) {
            edges.push(edges[edges.len() - 1] + BLOCK_HEADER as u64 + u64::from(u32::from_le_bytes(*length)));
        }
        Self { header, events, edges }
    }

    pub fn says(&self, what: &str) -> bool {
        self.header.contains(what)
    }

    /// The text in the header under this name, the first one.
    pub fn field(&self, name: &str) -> &str {
        let (_, rest) = self.header.split_once(&format!("\"{name}\": \"")).expect("a field of the header");
        rest.split('"').next().expect("it ends")
    }

    /// Whether the recorder says this, as a note.
    pub fn tells(&self, what: &str) -> bool {
        self.events.contains(&Event::Note(Note::Text(what.to_owned())))
    }

    pub fn ends_orderly(&self) -> bool {
        self.events.last() == Some(&Event::Note(Note::End))
    }

    /// The number after `"bytes": ` in the header.
    pub fn parent_bytes(&self) -> u64 {
        let (_, rest) = self.header.split_once("\"bytes\": ").expect("a parent in the header");
        rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().expect("a number")
    }

    /// Events that ask for memory of this size.
    pub fn requests(&self, wanted: u64) -> usize {
        let is_wanted = |event: &&Event| match **event {
            Event::Malloc { size, .. } => size == wanted,
            Event::Calloc { count, size, .. } => count * size == wanted,
            _ => false,
        };
        self.events.iter().filter(is_wanted).count()
    }
}
