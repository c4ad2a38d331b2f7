//! Where the events go: one block in memory for the whole process, guarded by a spin lock, and the trace file behind it.
//!
//! One block and not one a thread, because the order of the events is the trace. The lock is held for the few instructions
//! that an event takes, and for a write when the block is full.
//!
//! Invariants:
//! 1. [`State`] is touched only by who holds the lock.
//! 2. `state.reserve` is out of reach unless the file is open, so that the one comparison on the fast path sends everything
//!    unusual (no file yet, stopped, time for a checkpoint, block full) to [`State::make_room`].
//! 3. `state.written` is where a block ends in the file, whatever happens to the file afterwards.

use crate::header::{Header, Parent, text_of};
use crate::interpreters;
use crate::lock::{Errno, SpinLock};
use crate::say::say;
use obmalloc_trace::format::{BlockWriter, MAX_EVENT, PatchToken, file_head};
use std::cell::UnsafeCell;
use std::ffi::{CString, c_int};
use std::io::Error;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};

/// Bytes of the block: small enough to leave the cache to the program and little to lose, large enough that writing it out is rare.
const BLOCK_SIZE: usize = 64 << 10;
/// Bytes of events between two checkpoints, as long as there is something to wait for: a few events, so that also the shortest
/// program passes one at a moment when it does not import.
const CHECKPOINT_STEP: usize = 16;
/// A reserve that no block has room for (halved, because it is added to).
const OUT_OF_REACH: usize = usize::MAX / 2;
/// The trace's descriptor is moved up here, out of the way of programs that count on getting low ones.
const LOWEST_DESCRIPTOR: c_int = 500;

struct State {
    reserve: usize,
    block: BlockWriter<'static>,
    checkpoints: bool,
    /// Whether calls are told apart by interpreter, because there are several allocators.
    apart: bool,
    /// Whose calls are being written; 0 is the main interpreter.
    interpreter: u64,
    file: File,
    /// Length of the file, bytes.
    written: u64,
    /// Blocks and events in the file.
    blocks: u64,
    events: u64,
    /// What `OBMALLOC_TRACE` says, whether this process may use it as it is, and what it came to.
    base: PathBuf,
    first: bool,
    path: PathBuf,
    header: Header,
}

enum File {
    /// Made at the first event.
    Unopened { parent: Option<Parent> },
    /// The descriptor and what tells whether it is still the trace's: programs close descriptors that are not theirs.
    Open { descriptor: c_int, identity: Identity },
    /// Nothing more is recorded.
    Stopped,
}

type Identity = (libc::dev_t, libc::ino_t);

struct Sink {
    lock: SpinLock,
    state: UnsafeCell<MaybeUninit<State>>,
}

// SAFETY: (1) the state is touched only under the lock.
unsafe impl Sync for Sink {}

static SINK: Sink = Sink { lock: SpinLock::new(), state: UnsafeCell::new(MaybeUninit::uninit()) };

/// The process that the state belongs to, 0 when nothing is recorded. A child made by `vfork` has the parent's memory and another
/// id, and must leave the state alone.
static RECORDED: AtomicI32 = AtomicI32::new(0);

/// The state, locked.
struct Locked(());

impl Deref for Locked {
    type Target = State;
    #[inline(always)]
    fn deref(&self) -> &State {
        // SAFETY: (1) the lock is held. `set_up` has run: hooks, fork handlers and notes come after it.
        unsafe { (*SINK.state.get()).assume_init_ref() }
    }
}

impl DerefMut for Locked {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut State {
        // SAFETY: as in `deref`.
        unsafe { (*SINK.state.get()).assume_init_mut() }
    }
}

impl Drop for Locked {
    #[inline(always)]
    fn drop(&mut self) {
        SINK.lock.release();
    }
}

#[inline(always)]
fn lock() -> Locked {
    SINK.lock.take();
    Locked(())
}

/// Writes one event. Says whether a checkpoint was passed, to be looked at now that nothing is locked.
#[inline(always)]
pub fn record(write: impl FnOnce(&mut BlockWriter<'static>)) -> bool {
    let mut state = lock();
    let mut checkpoint = false;
    if !state.block.has_room(state.reserve) {
        match state.make_room() {
            Some(passed) => checkpoint = passed,
            None => return false,
        }
    }
    if state.apart && !state.attribute() {
        return false;
    }
    write(&mut state.block);
    checkpoint
}

/// From here on every event is told by whose it is.
pub fn tell_apart() {
    lock().apart = true;
}

/// Makes the block and remembers where it is to go. Says `false`, with a message, when there is no memory.
pub fn set_up(base: PathBuf, first: bool, header: Header) -> bool {
    // SAFETY: asks for fresh memory.
    let memory = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            BLOCK_SIZE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if memory == libc::MAP_FAILED {
        say(&format!("no memory for the recorder: {}, nothing is recorded", Error::last_os_error()));
        return false;
    }
    // SAFETY: the mapping is of this size, zeroed, nobody else's, and stays for as long as the process.
    let bytes = unsafe { std::slice::from_raw_parts_mut(memory.cast::<u8>(), BLOCK_SIZE) };
    let state = State {
        reserve: OUT_OF_REACH,
        block: BlockWriter::new(bytes),
        checkpoints: true,
        apart: false,
        interpreter: 0,
        file: File::Unopened { parent: None },
        written: 0,
        blocks: 0,
        events: 0,
        base,
        first,
        path: PathBuf::new(),
        header,
    };
    // SAFETY: the constructor is the only one to run.
    unsafe { (*SINK.state.get()).write(state) };
    true
}

/// Writes a trace that has a header and nothing else.
pub fn write_header_only() {
    let mut state = lock();
    if state.open() {
        state.stop();
    }
}

/// From here on this process is the one that is recorded.
pub fn adopt_process() {
    RECORDED.store(process_id(), Ordering::Relaxed);
}

/// Whether the running process is the one that is recorded: no child of `vfork`, and not one that the recorder left alone.
pub fn is_recorded() -> bool {
    let recorded = RECORDED.load(Ordering::Relaxed);
    recorded != 0 && recorded == process_id()
}

fn process_id() -> i32 {
    // SAFETY: takes nothing and always succeeds.
    unsafe { libc::getpid() }
}

/// Number of events written so far.
pub fn events() -> u64 {
    let state = lock();
    state.events + u64::from(state.block.count())
}

/// No more checkpoints are needed.
pub fn end_checkpoints() {
    let mut state = lock();
    state.checkpoints = false;
    if matches!(state.file, File::Open { .. }) {
        state.reserve = 0;
    }
}

/// Brings everything that was recorded into the file.
#[cfg(not(test))]
pub fn flush() {
    lock().flush();
}

/// Writes a note of at most `room` bytes more than an event takes. One that is longer than a block is left out.
pub fn note(room: usize, write: impl FnOnce(&mut BlockWriter<'static>)) {
    let mut state = lock();
    if state.is_open() && (state.block.has_room(room) || (state.flush() && state.block.has_room(room))) {
        write(&mut state.block);
    }
}

/// A count of allocated blocks that is still to be filled in.
pub struct Reservation {
    token: PatchToken,
    block: u64,
}

/// Writes a note of the allocated blocks at this point of the stream, the count to be given later. Begins a block, so that it is
/// some thousands of events before it is too late.
pub fn reserve_allocated_blocks() -> Option<Reservation> {
    let mut state = lock();
    (state.is_open() && state.flush()).then(|| Reservation { token: state.block.allocated_blocks(0), block: state.blocks })
}

/// Fills in the count.
pub fn fill_in(reservation: Reservation, count: u64) {
    let mut state = lock();
    if state.blocks == reservation.block {
        state.block.patch(reservation.token, count);
    }
}

/// Writes the `End` note, empties the block and records nothing more.
pub fn end() {
    // `_exit` can come from anywhere, in the worst case from a thread that holds the lock: a trace without its end is the lesser evil.
    if !SINK.lock.take_within(10_000) {
        return;
    }
    let mut state = Locked(());
    if state.is_open() {
        if state.block.has_room(0) || state.flush() {
            state.block.end();
        }
        state.flush();
    }
    state.stop();
    let apart = std::mem::take(&mut state.apart);
    drop(state);
    if apart {
        say("interpreters with allocators of their own were recorded, too: a replay leaves their calls out");
    }
}

/// Before a fork: brings the file up to date and keeps everybody out until [`fork_in_parent`] or [`fork_in_child`].
pub fn before_fork() {
    let mut state = lock();
    state.flush();
    std::mem::forget(state);
}

/// After a fork, in the parent: goes on.
pub fn fork_in_parent() {
    // The lock is the one that `before_fork` left taken.
    drop(Locked(()));
}

/// After a fork, in the child: the next event begins a trace of its own, which continues the parent's.
pub fn fork_in_child() {
    // The lock is the one that `before_fork` left taken, by the thread that is the only one of this process.
    let mut state = Locked(());
    if let File::Open { descriptor, identity } = state.file {
        if identity_of(descriptor) == Some(identity) {
            close(descriptor);
        }
        state.file = File::Unopened { parent: Some(Parent { path: text_of(&state.path), bytes: state.written }) };
        state.reserve = OUT_OF_REACH;
    }
    (state.written, state.blocks, state.events, state.first) = (0, 0, 0, false);
    // The others are gone.
    (state.apart, state.interpreter) = (interpreters::present() != 0, 0);
    adopt_process();
}

impl State {
    fn is_open(&self) -> bool {
        matches!(self.file, File::Open { .. })
    }

    /// Gets room for an event: says whether a checkpoint was passed, or nothing when recording has stopped.
    #[cold]
    #[inline(never)]
    fn make_room(&mut self) -> Option<bool> {
        let errno = Errno::save();
        let open = match self.file {
            File::Open { .. } => true,
            File::Unopened { .. } => self.open(),
            File::Stopped => false,
        };
        let room = open && (self.block.has_room(0) || self.flush());
        if room {
            self.set_reserve();
        }
        errno.restore();
        room.then_some(self.checkpoints)
    }

    /// Says whose the next event is, if another's than the one before. Says `false` when it cannot be written.
    #[cold]
    fn attribute(&mut self) -> bool {
        let interpreter = interpreters::present();
        if interpreter == self.interpreter {
            return true;
        }
        let errno = Errno::save();
        let room = self.block.has_room(MAX_EVENT) || self.flush();
        errno.restore();
        if room {
            self.block.interpreter(interpreter);
            self.interpreter = interpreter;
        }
        room
    }

    /// Sets the reserve so that the fast path is left at the next checkpoint, or else when the block is full.
    fn set_reserve(&mut self) {
        if !self.checkpoints {
            self.reserve = 0;
        } else if self.reserve > BLOCK_SIZE || self.block.count() == 0 {
            self.reserve = BLOCK_SIZE;
        }
        while self.reserve > 0 && !self.block.has_room(self.reserve) {
            self.reserve -= CHECKPOINT_STEP;
        }
    }

    /// Nothing is recorded any more.
    fn stop(&mut self) {
        if let File::Open { descriptor, identity } = self.file
            && identity_of(descriptor) == Some(identity)
        {
            close(descriptor);
        }
        self.file = File::Stopped;
        self.reserve = OUT_OF_REACH;
    }

    #[cold]
    fn fail(&mut self, what: &str, error: &Error) -> bool {
        say(&format!("cannot {what} {}: {error}; nothing more is recorded", self.path.display()));
        self.stop();
        false
    }

    /// Makes the trace file and writes its head. Says `false`, with a message, when that cannot be done.
    fn open(&mut self) -> bool {
        let File::Unopened { parent } = &mut self.file else { return false };
        let parent = parent.take();
        let pid = process_id();
        let found = if self.first { claim(&self.base) } else { Err(Error::from_raw_os_error(libc::EEXIST)) };
        let found = found.map(|descriptor| (descriptor, self.base.clone())).or_else(|error| {
            // Somebody else's: EEXIST above, or EWOULDBLOCK when another process is recording into it.
            if [libc::EEXIST, libc::EWOULDBLOCK].contains(&error.raw_os_error().unwrap_or(0)) {
                fresh(&self.base, pid)
            } else {
                Err(error)
            }
        });
        let (descriptor, path) = match found {
            Ok(found) => found,
            Err(error) => {
                self.path = self.base.clone();
                return self.fail("create", &error);
            }
        };
        self.path = path;
        let descriptor = out_of_the_way(descriptor);
        let Some(identity) = identity_of(descriptor) else {
            return self.fail("create", &Error::last_os_error());
        };
        self.file = File::Open { descriptor, identity };
        let head = file_head(&self.header.json(pid, parent.as_ref()));
        if let Err(error) = write_at(descriptor, &head, 0) {
            return self.fail("write", &error);
        }
        self.written = head.len() as u64;
        self.set_reserve();
        true
    }

    /// Writes the block to the file. Says `false`, with a message if it is news, when nothing can be recorded.
    fn flush(&mut self) -> bool {
        let File::Open { descriptor, identity } = self.file else { return false };
        let count = self.block.count();
        if count == 0 {
            return true;
        }
        let descriptor = if identity_of(descriptor) == Some(identity) {
            descriptor
        } else {
            match self.reopen(identity) {
                Ok(descriptor) => descriptor,
                Err(error) => return self.fail("reopen", &error),
            }
        };
        let block = self.block.finish();
        let length = block.len() as u64;
        if let Err(error) = write_at(descriptor, block, self.written) {
            // SAFETY: takes no memory. What was written of the block is cut off again, so that the trace ends with a whole one.
            unsafe { libc::ftruncate(descriptor, self.written as libc::off_t) };
            return self.fail("write", &error);
        }
        self.written += length;
        self.blocks += 1;
        self.events += u64::from(count);
        self.set_reserve();
        true
    }

    /// Opens the trace again, whose descriptor the program has closed.
    fn reopen(&mut self, identity: Identity) -> Result<c_int, Error> {
        let descriptor = open_file(&self.path, libc::O_WRONLY)?;
        if identity_of(descriptor) != Some(identity) {
            close(descriptor);
            return Err(Error::from_raw_os_error(libc::ESTALE));
        }
        let descriptor = out_of_the_way(descriptor);
        self.file = File::Open { descriptor, identity };
        Ok(descriptor)
    }
}

/// Opens `path`, emptied, for this process alone. `EWOULDBLOCK` when another process records into it.
fn claim(path: &Path) -> Result<c_int, Error> {
    let descriptor = open_file(path, libc::O_WRONLY | libc::O_CREAT)?;
    // SAFETY: takes no memory.
    if unsafe { libc::flock(descriptor, libc::LOCK_EX | libc::LOCK_NB) } != 0 {
        let error = Error::last_os_error();
        // A file system without locks keeps nobody from recording.
        if error.raw_os_error() == Some(libc::EWOULDBLOCK) {
            close(descriptor);
            return Err(error);
        }
    }
    // What cannot be emptied (a device) needs not be. SAFETY: takes no memory.
    unsafe { libc::ftruncate(descriptor, 0) };
    Ok(descriptor)
}

/// Makes `<base>.<pid>`, or `<base>.<pid>.2` and so on if a process of the same id has been there: one that executed this one.
fn fresh(base: &Path, pid: i32) -> Result<(c_int, PathBuf), Error> {
    let mut attempt = 1;
    loop {
        let mut path = base.as_os_str().to_owned();
        path.push(if attempt == 1 { format!(".{pid}") } else { format!(".{pid}.{attempt}") });
        match open_file(Path::new(&path), libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) && attempt < 10_000 => attempt += 1,
            found => return found.map(|descriptor| (descriptor, path.into())),
        }
    }
}

fn open_file(path: &Path, flags: c_int) -> Result<c_int, Error> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path is NUL-terminated.
    let descriptor = unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC, 0o666) };
    if descriptor < 0 { Err(Error::last_os_error()) } else { Ok(descriptor) }
}

/// Moves a descriptor up, if there is room up there.
fn out_of_the_way(descriptor: c_int) -> c_int {
    // SAFETY: takes no memory.
    let moved = unsafe { libc::fcntl(descriptor, libc::F_DUPFD_CLOEXEC, LOWEST_DESCRIPTOR) };
    if moved < 0 {
        return descriptor;
    }
    close(descriptor);
    moved
}

fn close(descriptor: c_int) {
    // SAFETY: takes no memory; the callers close what is theirs.
    unsafe { libc::close(descriptor) };
}

fn identity_of(descriptor: c_int) -> Option<Identity> {
    let mut status = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: fstat fills the structure when it succeeds.
    unsafe {
        if libc::fstat(descriptor, status.as_mut_ptr()) != 0 {
            return None;
        }
        let status = status.assume_init();
        Some((status.st_dev, status.st_ino))
    }
}

fn write_at(descriptor: c_int, mut bytes: &[u8], mut offset: u64) -> Result<(), Error> {
    while !bytes.is_empty() {
        // SAFETY: the pointer and the length are those of a live slice.
        let written = unsafe { libc::pwrite(descriptor, bytes.as_ptr().cast(), bytes.len(), offset as libc::off_t) };
        if written > 0 {
            bytes = &bytes[written as usize..];
            offset += written as u64;
        } else if written == 0 {
            return Err(Error::from_raw_os_error(libc::ENOSPC));
        } else if Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
            return Err(Error::last_os_error());
        }
    }
    Ok(())
}
