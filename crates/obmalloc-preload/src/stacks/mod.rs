//! Reads the stack of a request from the interpreter's frames in memory. It calls only two functions of CPython: one that returns a thread's
//! state and, until the layout is trusted, one that tells whether there is a frame. Neither asks for memory, so a program asks for the same
//! memory with stacks and without.
//!
//! | module | what it holds |
//! |---|---|
//! | `layout` | the offsets in memory for each release |
//! | `peek` | whether they hold for this CPython |
//! | `walk` | reads the frames: updates a thread's last stack to the present one |
//! | `code` | code objects, described in the trace once |
//!
//! All of it runs under the sink's lock. A thread without the GIL gets no stack: the thread that has the GIL may free the other's frames and
//! state.

mod code;
mod layout;
mod peek;
mod walk;

use crate::pages::Pages;
use crate::peek::is_possible;
use crate::python::symbol;
use crate::table::{Table, key};
use code::Codes;
use layout::{Frames, Layout};
use obmalloc_trace::format::BlockWriter;
use peek::Types;
use std::ffi::{CStr, c_void};
use walk::{LEVELS, Place, RECENT, Recent, Stack};

pub use code::may_be_known;

/// Says how many frames of a stack are wanted.
pub const VARIABLE: &str = "OBMALLOC_STACKS";

/// The largest allowed stack limit. `LEVELS` must have room for two such stacks and for as many C frames.
const MOST_FRAMES: usize = LEVELS / 4;
/// How many stacks must look right before the layout is trusted.
const TRIALS: u32 = 64;
/// How many threads' last stacks are kept.
const THREADS: usize = 8;
/// The most nodes, which bounds their memory.
const MOST_NODES: u32 = 32 << 20;

/// Where descriptions are written.
pub trait Out {
    /// A block that has room for `room` bytes. `None` if nothing can be written any more.
    fn room(&mut self, bytes: usize) -> Option<&mut BlockWriter<'static>>;
}

/// Why there are no stacks from here on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lost {
    /// Nothing can be written.
    Trace,
    /// The layout is wrong for this CPython.
    Layout,
    /// No memory for the tables.
    Memory,
    /// There are more stacks than can be numbered.
    TooMany,
}

impl Lost {
    /// The trace's message about it.
    pub fn text(self) -> &'static str {
        match self {
            Self::Trace => "",
            Self::Layout => "no stacks: this CPython's frames are not laid out as those of its release are",
            Self::Memory => "no stacks from here on: the system has no memory for them",
            Self::TooMany => "no stacks from here on: there are more than can be told apart",
        }
    }
}

/// A function of CPython's without arguments that returns an address and changes nothing.
type Getter = unsafe extern "C" fn() -> *mut c_void;

pub struct Stacks {
    /// The most frames of one stack; the innermost are kept.
    limit: usize,
    layout: Layout,
    types: Types,
    trials: u32,
    /// Returns the global variables of the innermost Python frame; null if the present thread has no frame.
    globals: Getter,
    thread_state: Getter,
    /// Returns the present thread's state. Needed where the function above returns that of the thread that has the GIL.
    own_state: Option<Getter>,
    threads: [Stack; THREADS],
    /// Which of the last stacks is the present thread's.
    present: usize,
    fresh: Pages<Place>,
    codes: Codes,
    nodes: Table,
    node_count: u32,
    /// Nodes that were found lately, by the instruction's address. So nodes of a code object must leave when the object is freed.
    recent: Pages<Recent>,
}

impl Stacks {
    /// Prepares to take stacks of at most `limit` frames from a CPython of this version.
    ///
    /// # Errors
    /// The message that says why that cannot be done.
    pub fn set_up(limit: usize, version: &str) -> Result<Self, &'static str> {
        let function = |name: &CStr| {
            // SAFETY: functions of these names are such.
            symbol(name).map(|address| unsafe { std::mem::transmute::<*mut c_void, Getter>(address) })
        };
        let layout = Layout::of(version).ok_or("no stacks: how this CPython lays its frames out is not known")?.or_planted();
        let hidden = "no stacks: this CPython does not show what is needed for them";
        let thread_state = function(layout.thread_state).ok_or(hidden)?;
        let own_state =
            if layout.is_threads_own { None } else { Some(function(c"PyGILState_GetThisThreadState").ok_or(hidden)?) };
        let globals = function(c"PyEval_GetGlobals").ok_or(hidden)?;
        let types = Types::find().ok_or(hidden)?;
        if !is_possible() {
            return Err("no stacks: this system does not let a process look whether its memory is as expected");
        }
        // Nothing here calls the C library's malloc: the program would get other addresses than without stacks.
        let stack = || Stack::new().ok_or("no stacks: the system has no memory for them");
        let threads = [stack()?, stack()?, stack()?, stack()?, stack()?, stack()?, stack()?, stack()?];
        let tables = || Some((Pages::new(LEVELS)?, Codes::new()?, Table::new()?, Pages::new(RECENT)?));
        let (fresh, codes, nodes, recent) = tables().ok_or("no stacks: the system has no memory for them")?;
        let limit = limit.min(MOST_FRAMES);
        let (trials, present, node_count) = (TRIALS, 0, 0);
        Ok(Self {
            limit,
            layout,
            types,
            trials,
            globals,
            thread_state,
            own_state,
            threads,
            present,
            fresh,
            codes,
            nodes,
            node_count,
            recent,
        })
    }

    /// The most frames that a stack has.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// The present thread's state; 0 if the thread does not have the GIL. `has_gil` says that it certainly has the GIL.
    #[inline(always)]
    fn thread(&self, has_gil: bool) -> usize {
        // SAFETY: these functions only read.
        unsafe {
            let thread = (self.thread_state)();
            match self.own_state {
                Some(own_state) if !has_gil && thread != own_state() => 0,
                _ => thread as usize,
            }
        }
    }

    /// The present stack's node. `None` if something must be [described](Self::describe) first, or something is wrong.
    #[inline(always)]
    pub fn node(&mut self, has_gil: bool) -> Option<u32> {
        let thread = self.thread(has_gil);
        if thread == 0 {
            return Some(0);
        }
        if self.threads[self.present].thread != thread {
            self.present = (thread >> 6 ^ thread >> 12) % THREADS;
        }
        let Self { layout, threads, present, limit, recent, .. } = self;
        let stack = &mut threads[*present];
        if stack.thread == thread && self.trials == 0 {
            // SAFETY: the thread's own state. It has the GIL, so nothing else changes its frames, and the layout holds.
            let known = unsafe {
                let top = layout.innermost(thread);
                match (layout.frames, *limit) {
                    (Frames::Objects, 1) => Stack::innermost::<true>(layout, top, recent),
                    (Frames::Structures, 1) => Stack::innermost::<false>(layout, top, recent),
                    (Frames::Objects, _) => stack.again::<true>(layout, top, *limit, recent),
                    (Frames::Structures, _) => stack.again::<false>(layout, top, *limit, recent),
                }
            };
            if known.is_some() {
                return known;
            }
        }
        self.follow(thread)
    }

    /// As [`node`](Self::node), in the cases that are not usual.
    #[inline(never)]
    fn follow(&mut self, thread: usize) -> Option<u32> {
        let Self { layout, threads, present, fresh, limit, codes, nodes, recent, .. } = self;
        let stack = &mut threads[*present];
        if stack.thread != thread {
            stack.thread = thread;
            stack.forget();
        }
        if self.trials > 0 {
            // SAFETY: this thread has the GIL and a state.
            let has_frame = || unsafe { !(self.globals)().is_null() };
            match layout.looks_right(thread, &self.types) {
                Some(1..) => self.trials -= 1,
                // No frame was found: CPython must agree that there is none.
                Some(0) if !has_frame() => {}
                Some(0) | None => {
                    stack.thread = 0;
                    return None;
                }
            }
        }
        // SAFETY: as in `node`.
        unsafe {
            let top = layout.innermost(thread);
            match layout.frames {
                Frames::Objects => stack.follow::<true>(layout, top, *limit, fresh),
                Frames::Structures => stack.follow::<false>(layout, top, *limit, fresh),
            }
        }
        stack.node(layout, &codes.alive, nodes, recent)
    }

    /// The present stack's node, after [`node`](Self::node) has failed. Writes to `out` what the trace does not know of the stack.
    #[cold]
    pub fn describe(&mut self, out: &mut impl Out) -> Result<u32, Lost> {
        let Self { layout, threads, present, codes, nodes, node_count, recent, .. } = self;
        let stack = &mut threads[*present];
        if stack.thread == 0 {
            return Err(Lost::Layout);
        }
        while let Some((place, caller)) = stack.missing() {
            if !place.shown {
                stack.found(caller);
                continue;
            }
            let code = match codes.alive.get(key(place.code as u64)) {
                Some(code) => code,
                // SAFETY: the code object of a running frame.
                None => unsafe { codes.describe(place.code, layout, out)? },
            };
            let at = layout.number(&place);
            let node = match nodes.get([caller, code, at]) {
                Some(node) => node,
                None => {
                    let node = *node_count + 1;
                    if node > MOST_NODES {
                        return Err(Lost::TooMany);
                    }
                    nodes.insert([caller, code, at], node).ok_or(Lost::Memory)?;
                    out.room(0).ok_or(Lost::Trace)?.node((node - caller).into(), code.into(), at.into());
                    *node_count = node;
                    node
                }
            };
            stack.found(node);
        }
        stack.node(layout, &codes.alive, nodes, recent).ok_or(Lost::Memory)
    }

    /// Forgets a code object: a block of the obj domain is being freed that [may be](may_be_known) one.
    #[cold]
    pub fn forget(&mut self, address: usize) {
        if self.codes.forget(address) {
            self.threads.iter_mut().for_each(Stack::forget);
            self.recent.fill(Recent::default());
        }
    }
}
