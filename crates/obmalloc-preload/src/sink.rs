//! Writes events: into one block in memory for the whole process, guarded by a lock, and from there into the trace file.
//!
//! Most events go through [`write_usually`], the others through [`record`] or [`request`]. There is one block, and not one for each thread,
//! because a trace has its events in order. The lock is held for the few instructions that an event takes, and for a write when the block is
//! full.
//!
//! Invariants:
//! 1. Only the thread that holds the lock touches [`State`].
//! 2. In any unusual case (no file yet, stopped, a checkpoint, several interpreters, time to read the clock, block full) the block is closed
//!    for [`write_usually`], so that that function needs one comparison.

mod state;

use crate::bias::{BiasedLock, Held};
use crate::header::{Header, Parent, text_of};
use crate::lock::Errno;
use crate::types::Found;
use crate::{inside, interpreters};
use obmalloc_trace::format::{BlockWriter, Opened, PatchToken};
use state::{BLOCK_SIZE, File, Look, PACKING_SIZE, State, TEXT_HEAD, TICK_ROOM};
use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

struct Sink {
    lock: BiasedLock,
    state: UnsafeCell<MaybeUninit<State>>,
    /// The block's memory. The state borrows this and `packing`.
    memory: UnsafeCell<[u8; BLOCK_SIZE]>,
    packing: UnsafeCell<[u64; PACKING_SIZE]>,
}

// SAFETY: invariant 1; the memory is touched only through the state.
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
        // SAFETY: invariant 1: the lock is held. `set_up` has run before any hook, fork handler or note.
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

/// Writes an event in the usual case: this thread is the lock's favourite and wrote the last event too, and nothing else must be done. With
/// `STACKS`, `write` gets the number of the event's stack; for `has_gil` see [`request`]. In any other case writes nothing and returns `false`.
#[inline(always)]
pub fn write_usually<const STACKS: bool>(has_gil: bool, write: impl FnOnce(Opened<'_, 'static>, Option<u64>)) -> bool {
    let thread = inside::thread();
    let Some(held) = SINK.lock.take_as_favourite(thread) else { return false };
    let mut state = Locked(held);
    let state = &mut *state;
    if state.thread != thread {
        return false;
    }
    let Some(place) = state.block.opened() else { return false };
    let mut stack = None;
    if STACKS && let Some(stacks) = &mut state.stacks {
        let Some(node) = stacks.node(has_gil) else { return false };
        stack = Some(node.into());
    }
    write(place, stack);
    true
}

/// Writes one event. Returns whether a checkpoint was passed: the caller looks at it, now that nothing is locked.
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

/// Writes one event that is a request, and its stack. `has_gil` says that this thread certainly has the GIL.
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

/// Writes the time, so that the next event has its exact time. This thread is not inside C's `malloc`.
pub fn tell_time() {
    let mut state = lock();
    if state.is_open() {
        let errno = Errno::save();
        state.tick(Look::Asked);
        errno.restore();
    }
}

/// Marks this moment, and writes the types of live objects, if `look` finds them. `look` is called without the lock, and after memory was
/// sampled, because it takes memory. This thread is not inside C's `malloc`.
pub fn mark<'a>(name: &str, look: impl FnOnce() -> Option<Found<'a>>) {
    // A forked process may have written no event yet.
    if !lock().make_file() {
        return;
    }
    sample();
    let found = look();
    let mut state = lock();
    if state.is_open() {
        let errno = Errno::save();
        state.note(name.len() + TEXT_HEAD, |block| block.mark(name));
        state.types(found.as_ref());
        errno.restore();
    }
}

/// Takes a sample of memory.
fn sample() {
    let mut state = lock();
    if state.is_open() {
        let errno = Errno::save();
        state.tick(Look::Sample);
        errno.restore();
    }
}

/// How many marks by signals are still to be written.
static SIGNALLED: AtomicU32 = AtomicU32::new(0);

/// Marks this moment from a signal handler. The thread may be anywhere, also in this file; then the mark is written when the clock is next
/// read.
pub fn mark_by_signal() {
    if !is_recorded() {
        return;
    }
    SIGNALLED.fetch_add(1, Ordering::Relaxed);
    if let Some(held) = SINK.lock.take_within(0) {
        let mut state = Locked(held);
        let errno = Errno::save();
        // Only if the block has room: writing to the file may fail, and handling that takes memory.
        if state.is_open() && state.block.has_room(TICK_ROOM + SIGNALLED_ROOM) {
            state.tick(Look::Anywhere);
        }
        errno.restore();
    }
}

/// The name of a mark by a signal, and the most bytes that it takes.
const SIGNALLED_NAME: &str = "SIGUSR2";
const SIGNALLED_ROOM: usize = 64;

/// Writes that the interpreter is about to finalize. For `look` see [`mark`].
pub fn finalization<'a>(look: impl FnOnce() -> Option<Found<'a>>) {
    sample();
    let found = look();
    let mut state = lock();
    if state.is_open() {
        let errno = Errno::save();
        state.types(found.as_ref());
        state.note(0, BlockWriter::finalization);
        errno.restore();
    }
}

/// Forgets the code object at `address`, if there was one: the block is about to be freed.
#[cold]
pub fn forget_code(address: usize) {
    if let Some(stacks) = &mut lock().stacks {
        stacks.forget(address);
    }
}

/// Whether requests are written with the stacks that they are made under, so far.
pub fn takes_stacks() -> bool {
    lock().stacks.is_some()
}

/// From here on the trace says of each event which interpreter it belongs to.
pub fn tell_apart() {
    let mut state = lock();
    state.apart = true;
    state.pace();
}

/// Remembers where the trace is to go. Called once, by the constructor.
pub fn set_up(base: PathBuf, first: bool, header: Header) {
    // SAFETY: this function is called once, so only these references to the memory are made.
    let (bytes, packing): (&'static mut [u8], &'static mut [u64]) =
        unsafe { (&mut *SINK.memory.get(), &mut *SINK.packing.get()) };
    let state = State::new(bytes, packing, base, first, header);
    // SAFETY: only the constructor runs now.
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

/// From here on the recorder records this process.
pub fn adopt_process() {
    RECORDED.store(process_id(), Ordering::Relaxed);
}

/// Whether the recorder records this process: not if it is a child of `vfork`, or one that the recorder leaves alone.
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

/// Writes everything that was recorded to the file, and that the process is about to go on as another program.
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

/// Writes that a trim forgot these pools, each of `pool_size` bytes, of the present interpreter. Does nothing if nothing is recorded.
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

/// Writes a message from the recorder, for people.
pub fn say(text: &str) {
    let mut state = lock();
    if state.is_open() {
        state.say_alone(text);
    }
}

/// Writes that calls of these domains are no longer recorded, and a message about it.
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

/// Writes a note of the allocated blocks at this point, whose count is filled in later. It begins a block, so that there is time for that:
/// the block takes some thousands of events.
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

/// Writes the `End` note, writes the block to the file, and stops recording.
pub fn end() {
    // `_exit` can come from anywhere, also from a thread that holds the lock. A trace without its end is better than a hang.
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

/// Before a fork: brings the file up to date, and keeps the lock until [`fork_in_parent`] or [`fork_in_child`].
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
    // `before_fork` took the lock.
    drop(Locked(SINK.lock.as_taken_within()));
}

/// After a fork, in the child: the next event begins a trace of its own, which continues the parent's.
pub fn fork_in_child() {
    // `before_fork` took the lock, in the thread that is now this process's only one.
    let mut state = Locked(SINK.lock.as_taken_within());
    SINK.lock.forked();
    if let File::Open(file) = &state.file {
        let parent = Parent { path: text_of(file.path()), identity: Some(state.identity), bytes: state.written };
        state.file = File::Unopened { parent: Some(parent) };
        state.close();
    }
    (state.written, state.blocks, state.events, state.first) = (0, 0, 0, false);
    state.clock.forked();
    // Other interpreters' threads do not exist in the child.
    (state.apart, state.interpreter) = (interpreters::present() != 0, 0);
    adopt_process();
}

#[cfg(test)]
mod tests {
    use super::*;
    use obmalloc_trace::format::Packer;

    #[test]
    fn memory_for_compression_is_enough() {
        assert!(Packer::memory_for(BLOCK_SIZE) <= size_of::<[u64; PACKING_SIZE]>(), "{}", Packer::memory_for(BLOCK_SIZE));
    }
}
