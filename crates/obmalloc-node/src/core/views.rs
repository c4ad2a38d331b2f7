//! Views: a block's own bytes as a `Uint8Array`, one per block.
//!
//! The arrays are among the values that the heap keeps in JavaScript, so a block's view stays the same while the block lives. Nothing in Rust
//! keeps them, so they go with the handle. Freeing or moving a block detaches its buffer before the memory can be used again. If a script has
//! detached the buffer (`ArrayBuffer.prototype.transfer`), another buffer may have the memory. Then the block is *retired*: its memory is used
//! again once the last buffer over it is gone.

use std::cell::Cell;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};

use napi_sys as sys;
use obmalloc::{Domain, ObjectHeap};

use super::{Core, Mark};
use crate::bytes::Bytes;
use crate::face::Called;
use crate::failure::{Failure, code};
use crate::js::{Env, Outcome, TypedArray, Value};
use crate::probe::reached;

/// The view of a block.
#[derive(Default)]
pub(crate) struct View {
    /// The place of its array among the kept values.
    place: u32,
    /// How many buffers over the block have not been finalized.
    buffers: Cell<usize>,
    /// Whether a script detached one of them.
    escaped: Cell<bool>,
    /// Whether the block has been freed.
    retired: Cell<bool>,
}

impl View {
    /// Whether JavaScript may reach the block through a buffer that is not ours to detach.
    pub fn is_reachable(&self) -> bool {
        self.escaped.get() && self.buffers.get() != 0
    }
}

/// Counts over all views of a heap, so that a free need not look at every view.
#[derive(Default)]
pub(crate) struct Views {
    /// Views that JavaScript may reach through a buffer that is not ours to detach.
    reachable: Cell<usize>,
    /// Retired blocks.
    retired: Cell<usize>,
    /// Retired blocks that nothing can reach any more.
    gone: Cell<usize>,
}

fn add(counter: &Cell<usize>, change: isize) {
    counter.set(counter.get().wrapping_add_signed(change));
}

impl Views {
    /// Changes a view, and updates the counts.
    fn change(&self, view: &View, change: impl FnOnce(&View)) {
        let state = |view: &View| (view.is_reachable(), view.retired.get(), view.retired.get() && view.buffers.get() == 0);
        let (was_reachable, was_retired, was_gone) = state(view);
        change(view);
        let (is_reachable, is_retired, is_gone) = state(view);
        add(&self.reachable, isize::from(is_reachable) - isize::from(was_reachable));
        add(&self.retired, isize::from(is_retired) - isize::from(was_retired));
        add(&self.gone, isize::from(is_gone) - isize::from(was_gone));
    }

    /// Whether a freed block's memory waits for a buffer to go.
    pub fn are_retired(&self) -> bool {
        self.retired.get() != 0
    }

    /// Whether JavaScript may reach any block through a buffer that is not ours to detach.
    pub fn are_reachable(&self) -> bool {
        self.reachable.get() != 0
    }
}

/// The data of a buffer over a block, kept until nothing can reach the buffer.
struct Hold {
    view: Rc<View>,
    /// In a worker, the buffer's number for the watch.
    number: Option<usize>,
    /// Owns the memory.
    core: Rc<Core>,
}

/// Cores that stay until the process ends, because another thread may have a buffer over their memory. Nothing uses them any more.
static STAYING: Mutex<Vec<usize>> = Mutex::new(Vec::new());

unsafe extern "C" fn finalize(env: sys::napi_env, _: *mut c_void, hold: *mut c_void) {
    // SAFETY: called by Node.js on its own thread, once, with what `outside` gave it.
    let (env, hold) = unsafe { (Env::new(env), Box::from_raw(hold.cast::<Hold>())) };
    // This may give back a whole heap. If that panics, there is no caller that could be told.
    let _ = catch_unwind(AssertUnwindSafe(move || {
        reached("view::finalize");
        let Hold { view, number, core } = *hold;
        if core.realm.watch().zip(number).is_some_and(|(watch, number)| watch.forget(env, number)) {
            // Another thread may have the memory, so the heap stays.
            let mut staying = STAYING.lock().unwrap_or_else(PoisonError::into_inner);
            staying.push(Rc::into_raw(core).expose_provenance());
            return;
        }
        core.views.change(&view, |view| add(&view.buffers, -1));
        core.release_if_closed();
    }));
}

/// The view's array; `None` if JavaScript cannot run any more.
fn array(core: &Core, env: Env, view: &View) -> Option<(Value, TypedArray)> {
    let array = core.kept.get(view.place).ok()?;
    Some((array, env.typed_array(array)?))
}

/// Arrays of at least this many bytes are made by a function of the face. If there is no memory, that throws an error, while Node-API ends the
/// process.
const MANY: usize = 1 << 16;

impl Core {
    /// Checks that a typed array can have so many bytes.
    fn check_array(&self, length: usize) -> Result<(), Failure> {
        if length <= self.longest_array {
            return Ok(());
        }
        let most = self.longest_array;
        Err(Failure::new(code::OUT_OF_RANGE, format!("expected at most {most} bytes, as a typed array can have, got {length}")))
    }

    /// A `Uint8Array` with memory of its own, and that memory.
    pub fn own_bytes(&self, env: Env, length: usize) -> Result<(Value, Bytes), Failure> {
        if length < MANY {
            let (array, known) = env.own_bytes(length)?;
            return Ok((array, Bytes::of(array, known)));
        }
        self.check_array(length)?;
        let made = self.realm.call(env, Called::MakeBytes, &[env.integer(length)?]);
        let array = made.map_err(|cause| Failure::no_memory("no memory for a copy of the bytes").caused_by(cause))?;
        let bytes = env.typed_array(array).ok_or_else(|| Failure::new(code::INTERNAL, "expected a typed array"))?;
        Ok((array, Bytes::of(array, bytes)))
    }
}

/// The view of a live block.
pub(crate) fn of_block(core: &Core, env: Env, heap: &ObjectHeap, domain: Domain, address: usize) -> Outcome {
    sweep(core, heap);
    let length = core.usable_size(heap, domain, address)?;
    core.check_array(length).map_err(|failure| failure.at(address))?;
    let known = match core.marks.borrow().get(&address) {
        Some(Mark::Viewed(view)) => Some(view.clone()),
        _ => None,
    };
    if let Some(view) = &known {
        match array(core, env, view) {
            Some((array, bytes)) if !env.is_detached(bytes.buffer) => return Ok(array),
            // A script detached the buffer, so the block gets another one.
            _ => core.views.change(view, |view| view.escaped.set(true)),
        }
    }
    let view = known.unwrap_or_else(|| Rc::new(View { place: core.kept.take_place(), ..View::default() }));
    let made = if length == 0 { env.own_bytes(0).map(|(array, _)| array) } else { outside(core, env, &view, address, length) };
    let entered = made.and_then(|array| core.kept.set(view.place, array).map(|()| array));
    match entered {
        Ok(array) => {
            core.marks.borrow_mut().insert(address, Mark::Viewed(view));
            core.update_attention();
            Ok(array)
        }
        Err(failure) => {
            if !core.marks.borrow().contains_key(&address) {
                core.kept.give_place(view.place);
            }
            Err(failure)
        }
    }
}

fn outside(core: &Core, env: Env, view: &Rc<View>, address: usize, length: usize) -> Outcome {
    let owner = core.this.upgrade().ok_or_else(|| Failure::new(code::INTERNAL, "a heap that is being dropped"))?;
    let number = core.realm.watch().map(|watch| watch.number());
    let hold = Box::into_raw(Box::new(Hold { view: view.clone(), number, core: owner }));
    // SAFETY: the memory stays as long as the heap, which the hold keeps, and freeing or moving the block detaches the buffer.
    let made = unsafe {
        env.outside_buffer(std::ptr::with_exposed_provenance_mut(address), length, Some(finalize), hold.cast::<c_void>())
    };
    let buffer = made.map_err(|status| {
        // SAFETY: made above, and refused.
        drop(unsafe { Box::from_raw(hold) });
        if status == sys::Status::napi_no_external_buffers_allowed {
            let message = "expected a JavaScript engine that allows buffers over outside memory; use read() and write() instead";
            return Failure::new(code::EXTERNAL_BUFFERS_UNSUPPORTED, message).at(address);
        }
        Failure::of_status(status)
    })?;
    core.views.change(view, |view| add(&view.buffers, 1));
    if let Some((watch, number)) = core.realm.watch().zip(number) {
        watch.enter(env, number, buffer)?;
    }
    env.bytes_of(buffer, length)
}

/// Whether a script detached a buffer of the view and may have its memory in another buffer.
pub(crate) fn has_escaped(core: &Core, env: Env, view: &View) -> bool {
    let scope = env.open_scope();
    let detached = array(core, env, view).is_none_or(|(_, array)| env.is_detached(array.buffer));
    env.close_scope(scope);
    if detached {
        core.views.change(view, |view| view.escaped.set(true));
    }
    view.is_reachable()
}

/// Whether the view's array is as long as the block is now.
pub(crate) fn is_whole(core: &Core, env: Env, view: &View, length: usize) -> bool {
    let scope = env.open_scope();
    let is_whole = array(core, env, view).is_some_and(|(_, array)| array.length == length);
    env.close_scope(scope);
    is_whole
}

/// Detaches the view of the block at `address`, before the block is freed, moved or lent. Returns true if a script may still have a buffer
/// over it. Then the mark stays, and the caller must [`retire`] the block instead of freeing it.
pub(crate) fn detach(core: &Core, env: Env, address: usize, view: &Rc<View>) -> bool {
    if has_escaped(core, env, view) {
        return true;
    }
    if !detach_array(core, env, view) {
        core.views.change(view, |view| view.escaped.set(true));
        return true;
    }
    forget(core, address, view);
    false
}

/// Detaches the view's array; false if V8 refuses.
fn detach_array(core: &Core, env: Env, view: &View) -> bool {
    let scope = env.open_scope();
    core.disturbances.set(core.disturbances.get() + 1);
    let done = array(core, env, view).is_some_and(|(_, array)| env.is_detached(array.buffer) || env.detach(array.buffer));
    env.close_scope(scope);
    done
}

/// Drops the array, and removes the block's mark.
fn forget(core: &Core, address: usize, view: &View) {
    core.marks.borrow_mut().remove(&address);
    core.update_attention();
    core.kept.drop(view.place);
}

/// Retires a block: it is freed for its user, but its memory waits for the last buffer over it. Its present view is detached.
pub(crate) fn retire(core: &Core, env: Env, address: usize, domain: Domain, view: &Rc<View>) {
    detach_array(core, env, view);
    forget(core, address, view);
    core.marks.borrow_mut().insert(address, Mark::Retired(domain, view.clone()));
    core.views.change(view, |view| view.retired.set(true));
    core.update_attention();
}

/// Frees the retired blocks that nothing can reach any more. One pass frees all that a collection of V8 let go of, so the passes are as rare as
/// these collections.
pub(crate) fn sweep(core: &Core, heap: &ObjectHeap) {
    if core.views.gone.get() == 0 {
        return;
    }
    let mut gone = Vec::new();
    if gone.try_reserve_exact(core.views.gone.get()).is_err() {
        return;
    }
    gone.extend(core.marks.borrow().iter().filter_map(|(&address, mark)| match mark {
        Mark::Retired(domain, view) if view.buffers.get() == 0 => Some((address, *domain)),
        _ => None,
    }));
    for (address, domain) in gone {
        // This may call a script's allocator, which may sweep as well.
        let view = match core.marks.borrow().get(&address) {
            Some(Mark::Retired(_, view)) if view.buffers.get() == 0 => view.clone(),
            _ => continue,
        };
        core.marks.borrow_mut().remove(&address);
        core.views.change(&view, |view| view.retired.set(false));
        core.update_attention();
        if let Err(fault) = heap.blocks().free(domain, address) {
            // Its guard bytes were damaged after it was retired.
            core.tell(core.fault(fault));
        }
        if let Some(failure) = core.take_guest_failure(heap) {
            // The call that freed it returned long ago.
            core.tell(failure);
        }
    }
}

/// Detaches all views; false if it was interrupted.
pub(crate) fn detach_all(core: &Core, env: Env) -> bool {
    let viewed: Vec<_> = core
        .marks
        .borrow()
        .iter()
        .filter_map(|(&address, mark)| if let Mark::Viewed(view) = mark { Some((address, view.clone())) } else { None })
        .collect();
    for (index, (address, view)) in viewed.into_iter().enumerate() {
        if index % 64 == 63 && core.is_interrupted() {
            return false;
        }
        if detach(core, env, address, &view) {
            detach_array(core, env, &view);
        }
    }
    true
}
