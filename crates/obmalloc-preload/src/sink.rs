//! Where the events go: one block in memory for the whole process, guarded by a lock, and the trace file behind it.
//!
//! One block and not one a thread, because the order of the events is the trace. The lock is held for the few instructions
//! that an event takes, and for a write when the block is full.
//!
//! Invariants:
//! 1. [`State`] is touched only by who holds the lock.
//! 2. Whatever is unusual (no file yet, stopped, a checkpoint, several interpreters, time to look at the clock, block full) closes the block for
//!    [`write_usually`], so that it has one comparison to make.

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

/// Writes an event in the usual case: this thread is the lock's favourite and wrote the last event too, and there is nothing else to be done
/// but, with `STACKS`, to say which stack the event is made under, which `write` is given; `has_gil` as of [`request`]. Gives `false` in any
/// other case, and nothing is written then.
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

/// Marks this moment, and writes the types that live objects have, if `look` finds them. It is called after memory was sampled, because it
/// takes some, and without the lock. This thread is not inside C's `malloc`.
pub fn mark<'a>(name: &str, look: impl FnOnce() -> Option<Found<'a>>) {
    // A forked process may have made no event yet.
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

/// The interpreter is about to take everything down. `look` as of [`mark`].
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

/// The block at `address`, which may be a code object, is about to be freed.
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

/// From here on every event is told by whose it is.
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
        state.close();
    }
    (state.written, state.blocks, state.events, state.first) = (0, 0, 0, false);
    state.clock.forked();
    // The others are gone.
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
