//! The findings, added up by kind, domains and site, and the report that they are written to.
//!
//! The report is lines of JSON: the header of the process; each finding, and each of its sizes and origins, when it first occurs; domains
//! whose calls do not all come here, and what replaced their allocators; a line that ends the report. The counts are in a file beside it,
//! `<report>.counts` ([`Counters`]); a line names its counter. So a process that is killed leaves a complete report, too.

use super::blocks::{Block, Owner};
use super::counters::Counters;
use super::malloc;
use super::site::{self, Site};
use crate::file::OutFile;
use crate::header::{Header, Identity, Parent, failure_text, quoted, text_of};
use crate::lock::SpinLock;
use crate::python;
use crate::unsaid;
use std::cell::UnsafeCell;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt::Display;
use std::io::Error;
use std::path::{Path, PathBuf};

/// What is wrong with an address that `free` or `realloc` was given.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Fault {
    /// A live block, but of another owner.
    WrongDomain(Block),
    /// It lies inside a live block.
    Interior(Block),
    /// A block began there and was freed; as far as was seen, no block has been allocated there since.
    FreedBefore(Block),
    /// As far as was seen, no block was ever allocated there.
    Foreign,
}

impl Fault {
    fn block(&self) -> Option<&Block> {
        match self {
            Self::WrongDomain(block) | Self::Interior(block) | Self::FreedBefore(block) => Some(block),
            Self::Foreign => None,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::WrongDomain(_) => "wrong-domain",
            Self::Interior(_) => "interior",
            Self::FreedBefore(_) => "freed-before",
            Self::Foreign => "foreign",
        }
    }
}

/// `free` or `realloc`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    Free,
    Realloc,
}

/// Occurrences with equal keys are one finding.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    fault: &'static str,
    call: Call,
    allocated: Option<Owner>,
    used: Owner,
    /// The return address of the call.
    site: usize,
}

/// Numbers of counters.
struct Finding {
    number: usize,
    counter: usize,
    /// Its size in bytes.
    sizes: BTreeMap<usize, usize>,
    /// The calls that allocated the block, or freed it before: lower halves of return addresses.
    origins: BTreeMap<u32, usize>,
}

/// The process's report: its file, and what is in it.
pub struct Report {
    base: PathBuf,
    /// `None` when the file could not be made, or cannot be written any more.
    file: Option<OutFile>,
    /// Bytes in the file, and where in it the header says why it could not be written any more.
    written: u64,
    failure: u64,
    header: Header,
    findings: BTreeMap<Key, Finding>,
    counters: Counters,
    /// The line about calls that do not come here; `None` before the first look.
    lost: String,
}

struct Shared {
    lock: SpinLock,
    report: UnsafeCell<Option<Report>>,
}

// SAFETY: only the thread that holds the lock touches the report.
unsafe impl Sync for Shared {}

static SHARED: Shared = Shared { lock: SpinLock::new(), report: UnsafeCell::new(None) };

/// Does something with the report, if there is one.
fn with<T>(act: impl FnOnce(&mut Report) -> T) -> Option<T> {
    SHARED.lock.take();
    let result = held(act);
    SHARED.lock.release();
    result
}

/// As [`with`], for a thread that holds the lock.
fn held<T>(act: impl FnOnce(&mut Report) -> T) -> Option<T> {
    // SAFETY: the caller holds the lock.
    unsafe { &mut *SHARED.report.get() }.as_mut().map(act)
}

/// Makes the report: `base` if this process is the `first` of its family. Returns `false` if that cannot be done.
pub fn set_up(base: PathBuf, first: bool, header: Header) -> bool {
    let (findings, counters) = (BTreeMap::new(), Counters::new());
    let mut report = Report { base, file: None, written: 0, failure: 0, header, findings, counters, lost: String::new() };
    let made = report.open(first, None);
    SHARED.lock.take();
    // SAFETY: the lock is held.
    unsafe { *SHARED.report.get() = Some(report) };
    SHARED.lock.release();
    made
}

/// Notes one occurrence: a call of `used` that returns to `site`.
pub fn note(fault: &Fault, call: Call, used: Owner, site: usize) {
    let allocated = fault.block().map(|block| block.owner);
    let key = Key { fault: fault.name(), call, allocated, used, site };
    let origin = fault.block().map(|block| block.site);
    let known = with(|report| report.known(&key, origin)).unwrap_or((false, false));
    // Resolved without the lock: the linker has its own locks, and calls code that can come here while it holds them.
    let site = (!known.0).then(|| Site::of(key.site));
    let tables = [0, 1, 2].map(|number| python::api().allocator(number));
    let origin = origin.filter(|_| !known.1).and_then(|low| Site::of_low(low, &tables));
    with(|report| {
        if report.file.is_some() {
            report.add(key, fault.block(), site, origin).unwrap_or_else(|error| report.fail(&error));
        }
    });
}

/// Writes the domains whose calls do not come here, in case the process is killed. Forked children's reports have the line too.
pub fn note_lost(lost: &[&str]) {
    with(|report| {
        report.lost = format!("{{{}}}\n", told(lost));
        report.write(&report.lost.clone());
    });
}

/// Writes the line that ends the report. More findings and another such line may follow.
pub fn end(lost: &[&str]) {
    // `_exit` can come from anywhere, also from a thread that holds the lock. A report without its end is better than a hang.
    if SHARED.lock.take_within(10_000) {
        held(|report| {
            report.write(&format!("{{\"end\": true, {}}}\n", told(lost)));
        });
        SHARED.lock.release();
    }
}

/// The domains whose calls do not all come here, and why, as members of a JSON object.
fn told(lost: &[&str]) -> String {
    let by = match lost {
        [] => "null".to_owned(),
        [only] if *only == Owner::C.name() => quoted(&format!("a malloc of its own ({})", malloc::module())),
        _ => quoted(&python::culprit()),
    };
    let lost: Vec<String> = lost.iter().map(|name| quoted(name)).collect();
    format!("\"lost\": [{}], \"by\": {by}", lost.join(", "))
}

/// Before a fork: keeps the lock until [`fork_in_parent`] or [`fork_in_child`].
pub fn before_fork() {
    SHARED.lock.take();
}

/// After a fork, in the parent: goes on.
pub fn fork_in_parent() {
    SHARED.lock.release();
}

/// After a fork, in the child: begins a new report without findings.
pub fn fork_in_child() {
    held(|report| {
        let path = report.file.as_ref().map_or(&*report.base, OutFile::path);
        let parent = Parent { path: text_of(path), identity: None, bytes: 0 };
        report.findings.clear();
        report.counters = Counters::new();
        report.open(false, Some(&parent));
    });
    SHARED.lock.release();
}

impl Report {
    /// Makes the file, with the header in it.
    fn open(&mut self, first: bool, parent: Option<&Parent>) -> bool {
        let pid = std::process::id().cast_signed();
        let made = if first { OutFile::make(self.base.clone()) } else { Err(Error::from_raw_os_error(libc::EEXIST)) };
        let made = made.or_else(|_| OutFile::make_beside(&self.base, pid));
        self.file = made.inspect_err(unsaid::say).ok();
        let (header, failure) = self.header.json(pid, Identity::new(), parent);
        (self.written, self.failure) = (0, failure as u64);
        self.write(&format!("{header}\n{}", self.lost))
    }

    /// Whether there is such a finding, and whether it has this origin. Both are true if the report cannot be written any more.
    fn known(&self, key: &Key, origin: Option<u32>) -> (bool, bool) {
        if self.file.is_none() {
            return (true, true);
        }
        let finding = self.findings.get(key);
        let has_origin = |finding: &Finding| origin.is_none_or(|origin| finding.origins.contains_key(&origin));
        (finding.is_some(), finding.is_some_and(has_origin))
    }

    /// Adds one occurrence. `site` and `origin` are only needed if they are new to the finding.
    fn add(&mut self, key: Key, block: Option<&Block>, site: Option<Site>, origin: Option<Site>) -> Result<(), Error> {
        let Some(file) = &self.file else { return Ok(()) };
        let mut counts = file.path().to_owned().into_os_string();
        counts.push(".counts");
        let counts = Path::new(&counts);
        let mut lines = String::new();
        let number = self.findings.len();
        let finding = match self.findings.entry(key) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let counter = self.counters.make(counts)?;
                let site = site.unwrap_or_else(|| Site::of(key.site));
                let field = site::field_freed_at(key.site).map_or_else(|| "null".to_owned(), quoted);
                let place = Place(Some(&site));
                lines += &format!("{{\"finding\": {number}, \"counter\": {counter}, {key}, \"field\": {field}, {place}}}\n");
                new.insert(Finding { number, counter, sizes: BTreeMap::new(), origins: BTreeMap::new() })
            }
        };
        let mut met = vec![finding.counter];
        if let Some(block) = block {
            let beginning = |counter: usize| format!("{{\"finding\": {}, \"counter\": {counter}, ", finding.number);
            met.push(match finding.sizes.entry(block.size) {
                Entry::Occupied(known) => *known.get(),
                Entry::Vacant(new) => {
                    let counter = *new.insert(self.counters.make(counts)?);
                    lines += &format!("{}\"size\": {}}}\n", beginning(counter), block.size);
                    counter
                }
            });
            met.push(match finding.origins.entry(block.site) {
                Entry::Occupied(known) => *known.get(),
                Entry::Vacant(new) => {
                    let counter = *new.insert(self.counters.make(counts)?);
                    lines += &format!("{}\"origin\": {{{}}}}}\n", beginning(counter), Place(origin.as_ref()));
                    counter
                }
            });
        }
        // A process that is killed in between leaves counters at 0, and readers skip those.
        if lines.is_empty() || self.write(&lines) {
            met.into_iter().for_each(|counter| self.counters.count(counter));
        }
        Ok(())
    }

    /// Adds to the file.
    fn write(&mut self, lines: &str) -> bool {
        let Some(file) = &mut self.file else { return false };
        let written = file.write_at(lines.as_bytes(), self.written);
        self.written += lines.len() as u64;
        written.map_err(|error| self.fail(&error)).is_ok()
    }

    /// Stops reporting, and writes the reason into the header.
    #[cold]
    fn fail(&mut self, error: &Error) {
        if let Some(mut file) = self.file.take() {
            let _ = file.write_at(failure_text(error).as_bytes(), self.failure);
        }
    }
}

/// As members of a JSON object.
impl Display for Key {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            out,
            "\"kind\": \"{}\", \"call\": \"{}\", \"allocated\": {}, \"used\": \"{}\"",
            self.fault,
            if self.call == Call::Free { "free" } else { "realloc" },
            self.allocated.map_or_else(|| "null".to_owned(), |owner| quoted(owner.name())),
            self.used.name(),
        )
    }
}

/// A site as members of a JSON object; nulls if it is not known.
struct Place<'a>(Option<&'a Site>);

impl Display for Place<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let or_null = |text: Option<String>| text.map_or_else(|| "null".to_owned(), |text| quoted(&text));
        let path = |path: &Path| path.to_string_lossy().into_owned();
        write!(
            out,
            "\"function\": {}, \"module\": {}, \"offset\": {}",
            or_null(self.0.and_then(|site| site.function.clone())),
            or_null(self.0.and_then(|site| site.module.as_deref().map(path))),
            self.0.map_or_else(|| "null".to_owned(), |site| site.offset.to_string()),
        )
    }
}
