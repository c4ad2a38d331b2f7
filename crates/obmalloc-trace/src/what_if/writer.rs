//! A watcher that writes a replay's calls of mem and obj to a file.

#![forbid(unsafe_code)]

use std::fs::OpenOptions;
use std::io::{self, BufWriter, Seek, Write};
use std::ops::ControlFlow;
use std::path::Path;

use obmalloc::Domain;
use rustc_hash::FxHashMap;

use super::calls::{Call, Calls, HEAD, MAGIC};
use super::trials::TrialsError;
use crate::format::Event;
use crate::program::Verb;
use crate::watch::{Fate, Seen, Watcher};

/// Bytes that are written at once.
const AT_ONCE: usize = 1 << 18;

/// The line whose blocks are set apart.
#[derive(Clone, Debug)]
pub struct Apart {
    /// A file's path, or the end of it, as in [`passes`](crate::stacks::Stacks::passes).
    pub file: String,
    /// The line, from 1.
    pub line: u32,
    /// Most frames of a stack that are looked at.
    pub frames: usize,
}

/// The watcher.
pub struct CallsWriter {
    calls: Calls,
    file: BufWriter<std::fs::File>,
    apart: Option<Apart>,
    /// By slot: whether its block is set apart; by stack: whether its blocks are.
    is_apart: Vec<bool>,
    answers: FxHashMap<u64, bool>,
    failure: Option<TrialsError>,
}

impl CallsWriter {
    /// Begins a file, where there is none yet. Where blocks are to be set apart, the replay must keep stacks.
    ///
    /// # Errors
    /// When the file is there already, or cannot be written.
    pub fn create(path: &Path, apart: Option<Apart>) -> io::Result<Self> {
        let written = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        let mut file = BufWriter::with_capacity(AT_ONCE, written.try_clone()?);
        file.write_all(&[0; HEAD])?;
        let calls = Calls { file: written, count: 0, apart: 0, sizes: Vec::new(), arenas: Vec::new() };
        Ok(Self { calls, file, apart, is_apart: Vec::new(), answers: FxHashMap::default(), failure: None })
    }

    /// The calls, once the replay is over.
    ///
    /// # Errors
    /// When more blocks were live than a call can tell apart, or the file could not be written.
    pub fn calls(self) -> Result<Calls, TrialsError> {
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        let mut head = [0; HEAD];
        head[..8].copy_from_slice(&MAGIC);
        head[8..16].copy_from_slice(&(self.calls.sizes.len() as u64).to_le_bytes());
        head[16..].copy_from_slice(&self.calls.count.to_le_bytes());
        let mut file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.rewind()?;
        file.write_all(&head)?;
        Ok(self.calls)
    }

    /// Whether the block of a call belongs to the line that gets a heap of its own.
    fn is_apart(&mut self, seen: &Seen<'_>, slot: u32, verb: Verb) -> bool {
        let Some(Apart { file, line, frames }) = &self.apart else { return false };
        if self.is_apart.len() <= slot as usize {
            self.is_apart.resize(slot as usize + 1, false);
        }
        let is_apart = &mut self.is_apart[slot as usize];
        if matches!(verb, Verb::Malloc | Verb::Calloc) {
            let passes = || seen.stacks.passes(seen.stack, *frames, file, *line);
            *is_apart = *self.answers.entry(seen.stack).or_insert_with(passes);
        }
        self.calls.apart += u64::from(*is_apart);
        *is_apart
    }

    fn write(&mut self, call: Call) -> ControlFlow<()> {
        if let Err(error) = self.file.write_all(&call.to_bytes()) {
            self.failure = Some(error.into());
            return ControlFlow::Break(());
        }
        let calls = &mut self.calls;
        if calls.sizes.len() <= call.slot() {
            calls.sizes.resize(call.slot() + 1, 0);
        }
        calls.sizes[call.slot()] = call.size() as u32;
        calls.count += 1;
        ControlFlow::Continue(())
    }
}

impl Watcher for CallsWriter {
    #[inline]
    fn see(&mut self, seen: &Seen<'_>) -> ControlFlow<()> {
        if let Event::ArenaAlloc { nested: true, result, .. } = *seen.event
            && result != 0
            && seen.fate == Fate::Below
        {
            self.calls.arenas.push(result as u32);
        }
        let (Fate::Made | Fate::LeftOut, Some(slot)) = (seen.fate, seen.answer().slot) else { return ControlFlow::Continue(()) };
        let (verb, size) = match Verb::of(seen) {
            Some((Domain::Raw, Verb::Free | Verb::Realloc, _))
                if self.calls.sizes.get(slot as usize).is_some_and(|&size| size != 0) =>
            {
                // A block of mem or obj that C's malloc gave goes by way of raw.
                (Verb::Free, 0)
            }
            Some((Domain::Mem | Domain::Obj, verb, size)) => (verb, size),
            _ => return ControlFlow::Continue(()),
        };
        if slot >= Call::SLOTS {
            self.failure.get_or_insert(TrialsError::Full);
        }
        if self.failure.is_some() {
            return ControlFlow::Break(());
        }
        let is_apart = self.is_apart(seen, slot, verb);
        self.write(Call::new(verb, slot, size, is_apart))
    }
}
