//! Where the events go: one block in memory for the whole process, guarded by a lock, and the trace file behind it.
//!
//! One block and not one a thread, because the order of the events is the trace. The lock is held for the few instructions
//! that an event takes, and for a write when the block is full.
//!
//! Invariants:
//! 1. [`State`] is touched only by who holds the lock.
//! 2. `state.reserve` is out of reach unless the file is open and there are no more checkpoints, so that the one comparison on the fast
//!    path sends everything unusual (no file yet, stopped, a checkpoint, time to look at the clock, block full) to
//!    [`State::make_room`]. As long as there are checkpoints every event is one, so that where they are does not depend on what events take
//!    in the block.
//! 3. `state.written` is where a block ends in the file, whatever happens to the file afterwards.

use crate::bias::{BiasedLock, Held};
use crate::clock::{Clock, thread_number};
use crate::file::OutFile;
use crate::header::{Header, Identity, Parent, failure_text, text_of};
use crate::inside;
use crate::lock::Errno;
use crate::stacks::{Lost, Out, Stacks};
use crate::{interpreters, unsaid};
use obmalloc_trace::format::{BlockWriter, MAX_EVENT, Packer, PatchToken, file_head};
use std::cell::UnsafeCell;
use std::io::Error;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

/// Bytes of the block: small enough to leave the cache to the program and little to lose, large enough that writing it out is rare.
const BLOCK_SIZE: usize = 64 << 10;
/// Words of memory in which a block is compressed.
const PACKING_SIZE: usize = 64 << 10;
/// A reserve that no block has room for (halved, because it is added to).
const OUT_OF_REACH: usize = usize::MAX / 2;
/// Bytes of a text note beside its text, at most.
const TEXT_HEAD: usize = 16;
/// Bytes of the block between two looks at the clock: a thousand events or so.
const TICK: usize = 4 << 10;
/// Bytes that a look at the clock writes, at most.
const TICK_ROOM: usize = 64;

struct State {
    reserve: usize,
    block: BlockWriter<'static>,
    /// Takes no memory: it may run inside the program's allocator.
    packer: Option<Packer<'static>>,
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
    /// What `OBMALLOC_TRACE` says, and whether this process may use it as it is.
    base: PathBuf,
    first: bool,
    header: Header,
    /// This trace's own, and where in the file the header says why recording had to stop.
    identity: Identity,
    failure: u64,
    stacks: Option<Stacks>,
    clock: Clock,
    /// How much is left of the block when the clock is to be looked at.
    tick_at: usize,
    /// The thread that wrote the last event of this block, as [`inside::thread`] has it; 0 when there is none.
    thread: usize,
    /// What is to be said as soon as there is a file.
    unsaid: Option<&'static str>,
}

/// Why the clock is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    /// Some events have passed.
    Passing,
    /// The time is wanted.
    Asked,
    /// A sample of memory is wanted, too.
    Sample,
    /// As far as that goes where this thread may be anywhere, in C's `malloc` too, which is asked nothing then. The block has room.
    Anywhere,
}

enum File {
    /// Made at the first event.
    Unopened {
        parent: Option<Parent>,
    },
    Open(OutFile),
    /// Nothing more is recorded.
    Stopped,
}

struct Sink {
    lock: BiasedLock,
    state: UnsafeCell<MaybeUninit<State>>,
    /// The block's, and what compresses it; the state has both once there is a state.
    memory: UnsafeCell<[u8; BLOCK_SIZE]>,
    packing: UnsafeCell<[u64; PACKING_SIZE]>,
}

// SAFETY: (1) the state is touched only under the lock, and the memory only through it.
unsafe impl Sync for Sink {}

static SINK: Sink = Sink {
    lock: BiasedLock::new(),
    state: UnsafeCell::new(MaybeUninit::uninit()),
    memory: UnsafeCell::new([0; BLOCK_SIZE]),
    packing: UnsafeCell::new([0; PACKING_SIZE]),
};

/// The process that the state belongs to, 0 when nothing is recorded. A child made by `vfork` has the parent's memory and another
/// id, and must leave the state alone.
static RECORDED: AtomicI32 = AtomicI32::new(0);

/// The state, locked.
struct Locked(Held<'static>);

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
        self.0.release();
    }
}

#[inline(always)]
fn lock() -> Locked {
    Locked(SINK.lock.take())
}

/// Writes one event. Says whether a checkpoint was passed, to be looked at now that nothing is locked.
#[inline(always)]
pub fn record(write: impl FnOnce(&mut BlockWriter<'static>)) -> bool {
    let mut state = lock();
    let Some(checkpoint) = state.room() else { return false };
    if state.apart && !state.attribute() {
        return false;
    }
    state.tell_thread();
    write(&mut state.block);
    checkpoint
}

/// Writes one event that is a request, and the stack that it is made under. `has_gil` when it is known that this thread has the GIL.
#[inline(always)]
pub fn request(has_gil: bool, write: impl FnOnce(&mut BlockWriter<'static>)) -> bool {
    let mut state = lock();
    let Some(checkpoint) = state.room() else { return false };
    // First, because it may begin a block.
    if state.apart && !state.attribute() {
        return false;
    }
    if state.stacks.is_some() && !state.place(has_gil) {
        return false;
    }
    state.tell_thread();
    write(&mut state.block);
    checkpoint
}

/// Looks at the clock, so that what comes next has its exact time. This thread is not inside C's `malloc`.
pub fn tell_time() {
    let mut state = lock();
    if state.is_open() {
        let errno = Errno::save();
        state.tick(Look::Asked);
        errno.restore();
    }
}

/// Marks this moment. This thread is not inside C's `malloc`.
pub fn mark(name: &str) {
    let mut state = lock();
    if state.is_open() {
        let errno = Errno::save();
        state.tick(Look::Sample);
        state.note(name.len() + TEXT_HEAD, |block| block.mark(name));
        errno.restore();
    }
}

/// Marks that were made by a signal and are still to be written.
static SIGNALLED: AtomicU32 = AtomicU32::new(0);

/// Marks this moment from a signal's handler, in which this thread may be anywhere: in this file too, and then the mark is written when the
/// clock is next looked at.
pub fn mark_by_signal() {
    if !is_recorded() {
        return;
    }
    SIGNALLED.fetch_add(1, Ordering::Relaxed);
    if let Some(held) = SINK.lock.take_within(0) {
        let mut state = Locked(held);
        let errno = Errno::save();
        // Without writing to the file: what is to be done where that fails takes memory.
        if state.is_open() && state.block.has_room(TICK_ROOM + SIGNALLED_ROOM) {
            state.tick(Look::Anywhere);
        }
        errno.restore();
    }
}

/// What a mark by a signal is called, and bytes that it takes at most.
const SIGNALLED_NAME: &str = "SIGUSR2";
const SIGNALLED_ROOM: usize = 64;

/// The interpreter is about to take everything down.
pub fn finalization() {
    let mut state = lock();
    if state.is_open() {
        state.tick(Look::Sample);
        state.note(0, BlockWriter::finalization);
    }
}

/// The block at `address`, which may be a code object, is about to be freed.
#[cold]
pub fn forget_code(address: usize) {
    if let Some(stacks) = &mut lock().stacks {
        stacks.forget(address);
    }
}

/// From here on every event is told by whose it is.
pub fn tell_apart() {
    lock().apart = true;
}

/// Remembers where the trace is to go. Called once, by the constructor.
pub fn set_up(base: PathBuf, first: bool, mut header: Header) {
    let clock = Clock::new(header.every);
    let stacks = match header.stacks {
        0 => Ok(None),
        limit => Stacks::set_up(limit, &header.python).map(Some),
    };
    header.stacks = stacks.as_ref().ok().and_then(Option::as_ref).map_or(0, Stacks::limit);
    let unsaid = stacks.as_ref().err().copied();
    // SAFETY: this function is called once, so only these references to the memory are made.
    let (bytes, packing): (&'static mut [u8], &'static mut [u64]) =
        unsafe { (&mut *SINK.memory.get(), &mut *SINK.packing.get()) };
    let state = State {
        reserve: OUT_OF_REACH,
        block: BlockWriter::new(bytes),
        packer: Packer::new(packing),
        checkpoints: true,
        apart: false,
        interpreter: 0,
        file: File::Unopened { parent: None },
        written: 0,
        blocks: 0,
        events: 0,
        base,
        first,
        header,
        identity: Identity::default(),
        failure: 0,
        stacks: stacks.unwrap_or_default(),
        clock,
        tick_at: OUT_OF_REACH,
        thread: 0,
        unsaid,
    };
    // SAFETY: the constructor is the only one to run.
    unsafe { (*SINK.state.get()).write(state) };
    SINK.lock.prepare();
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
    state.pace();
}

/// Brings everything that was recorded into the file, and says that the process is about to go on as another program.
#[cfg(not(test))]
pub fn exec() {
    let mut state = lock();
    if state.is_open() {
        state.alone(0, BlockWriter::exec);
    }
}

/// Writes a note of at most `room` bytes more than an event takes. One that is longer than a block is left out.
pub fn note(room: usize, write: impl FnOnce(&mut BlockWriter<'static>)) {
    let mut state = lock();
    if state.is_open() {
        state.note(room, write);
    }
}

/// Writes that a trim forgot these pools of so many bytes, which are the present interpreter's. Nothing when nothing is recorded.
pub fn trim(pool_size: usize, mut pools: &[u64]) {
    if !is_recorded() {
        return;
    }
    let mut state = lock();
    let mut can_go_on = state.is_open() && (!state.apart || state.attribute());
    while can_go_on && !pools.is_empty() {
        let written = state.block.trim(pool_size.trailing_zeros() as u8, pools);
        pools = &pools[written..];
        can_go_on = pools.is_empty() || state.flush();
    }
    state.pace();
}

/// Writes what the recorder has to say, for people.
pub fn say(text: &str) {
    let mut state = lock();
    if state.is_open() {
        state.say_alone(text);
    }
}

/// Writes that these domains' calls are no longer seen, and what is to be said of that.
pub fn hooks_lost(domains: u8, text: &str) {
    let mut state = lock();
    if state.is_open() {
        state.alone(0, |block| block.hooks_lost(domains));
        state.say_alone(text);
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
    let Some(held) = SINK.lock.take_within(10_000) else { return };
    let mut state = Locked(held);
    if state.flush() {
        state.tick(Look::Anywhere);
        if state.apart {
            let text = "interpreters with allocators of their own were recorded, too: a replay leaves their calls out";
            state.say_alone(text);
        }
        state.alone(0, BlockWriter::end);
    }
    state.stop();
}

/// Before a fork: brings the file up to date and keeps everybody out until [`fork_in_parent`] or [`fork_in_child`].
pub fn before_fork() {
    let Some(held) = SINK.lock.take_within(u32::MAX) else { return };
    let mut state = Locked(held);
    if state.flush() {
        state.tick(Look::Anywhere);
        state.note(0, BlockWriter::fork);
        state.flush();
    }
    std::mem::forget(state);
}

/// After a fork, in the parent: goes on.
pub fn fork_in_parent() {
    // The lock is the one that `before_fork` left taken.
    drop(Locked(SINK.lock.as_taken_within()));
}

/// After a fork, in the child: the next event begins a trace of its own, which continues the parent's.
pub fn fork_in_child() {
    // The lock is the one that `before_fork` left taken, by the thread that is the only one of this process.
    let mut state = Locked(SINK.lock.as_taken_within());
    SINK.lock.forked();
    if let File::Open(file) = &state.file {
        let parent = Parent { path: text_of(file.path()), identity: Some(state.identity), bytes: state.written };
        state.file = File::Unopened { parent: Some(parent) };
        state.reserve = OUT_OF_REACH;
    }
    (state.written, state.blocks, state.events, state.first) = (0, 0, 0, false);
    state.clock.forked();
    // The others are gone.
    (state.apart, state.interpreter) = (interpreters::present() != 0, 0);
    adopt_process();
}

impl State {
    fn is_open(&self) -> bool {
        matches!(self.file, File::Open(_))
    }

    /// Sees to room for an event, as [`make_room`](Self::make_room) does.
    #[inline(always)]
    fn room(&mut self) -> Option<bool> {
        if self.block.has_room(self.reserve) { Some(false) } else { self.make_room() }
    }

    /// Gets room for an event: says whether a checkpoint was passed, or nothing when recording has stopped.
    #[cold]
    #[inline(never)]
    fn make_room(&mut self) -> Option<bool> {
        let errno = Errno::save();
        let open = match self.file {
            File::Open(_) => true,
            File::Unopened { .. } => self.open(),
            File::Stopped => false,
        };
        let mut room = open && (self.block.has_room(0) || self.flush());
        if room && self.block.left() <= self.tick_at {
            self.tick(Look::Passing);
            room = self.is_open() && (self.block.has_room(0) || self.flush());
        }
        errno.restore();
        room.then_some(self.checkpoints)
    }

    /// Looks at the clock: writes the time, a sample of memory if one is due, and marks that signals made.
    #[cold]
    fn tick(&mut self, look: Look) {
        let is_anywhere = look == Look::Anywhere;
        if !is_anywhere && !self.block.has_room(TICK_ROOM) && !self.flush() {
            return;
        }
        let micros = self.clock.micros();
        self.block.time(micros);
        let signalled = SIGNALLED.swap(0, Ordering::Relaxed);
        let wants_sample = look == Look::Sample || signalled != 0;
        if ((wants_sample && self.clock.takes_samples()) || self.clock.is_due(micros))
            && let Some(memory) = self.clock.sample(!is_anywhere)
        {
            self.block.memory(&memory);
        }
        // Several that came together are one: there is no event between them.
        if signalled != 0 {
            if is_anywhere {
                self.block.mark(SIGNALLED_NAME);
            } else {
                self.note(SIGNALLED_ROOM, |block| block.mark(SIGNALLED_NAME));
            }
        }
        self.pace();
    }

    /// Has the clock looked at again a little further on.
    fn pace(&mut self) {
        self.tick_at = self.block.left().saturating_sub(TICK);
        if self.is_open() && !self.checkpoints {
            self.reserve = self.tick_at.saturating_sub(MAX_EVENT);
        }
    }

    /// Says which thread makes the next event, if another than the one before.
    #[inline(always)]
    fn tell_thread(&mut self) {
        let thread = inside::thread();
        if thread != self.thread {
            self.change_thread(thread);
        }
    }

    #[cold]
    fn change_thread(&mut self, thread: usize) {
        self.thread = thread;
        self.block.thread(thread_number());
    }

    /// Writes a note of at most `room` bytes more than an event takes. One that is longer than a block is left out.
    fn note(&mut self, room: usize, write: impl FnOnce(&mut BlockWriter<'static>)) {
        if self.block.has_room(room) || (self.flush() && self.block.has_room(room)) {
            write(&mut self.block);
        }
    }

    /// Says which stack the next event is made under, if another than the one before. Says `false` when it cannot be written.
    #[inline(always)]
    fn place(&mut self, has_gil: bool) -> bool {
        let Some(node) = self.stacks.as_mut().and_then(|stacks| stacks.node(has_gil)) else { return self.place_anew() };
        self.block.stack(node.into());
        true
    }

    /// As [`place`](Self::place), where there is something to describe.
    #[cold]
    fn place_anew(&mut self) -> bool {
        let errno = Errno::save();
        let mut stacks = self.stacks.take();
        let node = stacks.as_mut().map_or(Ok(0), |stacks| stacks.describe(self));
        match node {
            Ok(_) => self.stacks = stacks,
            // Said once, and done without.
            Err(lost) if lost != Lost::Trace => self.say_alone(lost.text()),
            Err(_) => {}
        }
        let room = self.is_open() && (self.block.has_room(0) || self.flush());
        if room {
            self.block.stack(node.unwrap_or(0).into());
        }
        errno.restore();
        room
    }

    /// Writes what the recorder has to say into a block of its own.
    fn say_alone(&mut self, text: &str) {
        self.alone(text.len() + TEXT_HEAD, |block| block.text(text));
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

    /// Writes a note into a block of its own.
    fn alone(&mut self, room: usize, write: impl FnOnce(&mut BlockWriter<'static>)) {
        if self.flush() && self.block.has_room(room) {
            write(&mut self.block);
            self.flush();
        }
    }

    /// Nothing is recorded any more.
    fn stop(&mut self) {
        self.file = File::Stopped;
        self.reserve = OUT_OF_REACH;
    }

    /// Says why in the trace's header, if there is one, and records nothing more.
    #[cold]
    fn fail(&mut self, error: &Error) -> bool {
        if let File::Open(file) = &mut self.file
            && self.written != 0
        {
            // What was written of a block is cut off again, so that the trace ends with a whole one.
            file.cut(self.written);
            let _ = file.write_at(failure_text(error).as_bytes(), self.failure);
        } else {
            unsaid::say(error);
        }
        self.stop();
        false
    }

    /// Makes the trace file and writes its head. Says `false` when that cannot be done.
    fn open(&mut self) -> bool {
        let File::Unopened { parent } = &mut self.file else { return false };
        let parent = parent.take();
        let pid = process_id();
        let claimed = if self.first { OutFile::claim(&self.base) } else { Err(Error::from_raw_os_error(libc::EEXIST)) };
        let found = claimed.or_else(|error| {
            // Another process's: EEXIST above, or EWOULDBLOCK when that one is recording into it.
            if [libc::EEXIST, libc::EWOULDBLOCK].contains(&error.raw_os_error().unwrap_or(0)) {
                OutFile::make_beside(&self.base, pid)
            } else {
                Err(error)
            }
        });
        match found {
            Ok(file) => self.file = File::Open(file),
            Err(error) => return self.fail(&error),
        }
        self.identity = Identity::new();
        let (json, failure) = self.header.json(pid, self.identity, parent.as_ref());
        let head = file_head(&json);
        if let File::Open(file) = &mut self.file
            && let Err(error) = file.write_at(&head, 0)
        {
            return self.fail(&error);
        }
        self.failure = (head.len() - json.len() + failure) as u64;
        self.written = head.len() as u64;
        self.pace();
        if let Some(text) = self.unsaid.take() {
            self.say_alone(text);
        }
        true
    }

    /// Writes the block to the file. Says `false` when nothing can be recorded.
    fn flush(&mut self) -> bool {
        let File::Open(file) = &mut self.file else { return false };
        let count = self.block.count();
        if self.block.is_empty() {
            return true;
        }
        let block = self.block.finish();
        let block = self.packer.as_mut().map_or(block, |packer| packer.pack(block));
        let length = block.len() as u64;
        if let Err(error) = file.write_at(block, self.written) {
            return self.fail(&error);
        }
        self.written += length;
        self.blocks += 1;
        self.events += u64::from(count);
        self.thread = 0;
        self.pace();
        true
    }
}

impl Out for State {
    fn room(&mut self, bytes: usize) -> Option<&mut BlockWriter<'static>> {
        (self.block.has_room(bytes) || (self.flush() && self.block.has_room(bytes))).then_some(&mut self.block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_for_compression_is_enough() {
        assert!(Packer::memory_for(BLOCK_SIZE) <= size_of::<[u64; PACKING_SIZE]>(), "{}", Packer::memory_for(BLOCK_SIZE));
    }
}
