//! A script's allocator as the engine calls it: what it is asked, what becomes of its answers, and the router that finds out who gave a block.

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::rc::Rc;
use std::thread;

use napi_sys as sys;
use obmalloc::{Allocator, Domain, ObjectHeap};

use crate::allocators::{Lent, NESTED_MAX, Resizing, Source, enter, give_back, reserve};
use crate::arena::{broken, fail};
use crate::face::Called;
use crate::failure::{Failure, code};
use crate::heap::{Core, Mark, live_heaps};
use crate::js::{Env, Outcome, Value};
use crate::shell::reached;
use crate::{arena, args};

/// What an allocator does, by the number that the face knows.
#[derive(Clone, Copy)]
enum Verb {
    Malloc,
    Calloc,
    Realloc,
    Free,
}

impl Verb {
    const fn name(self) -> &'static str {
        match self {
            Self::Malloc => "malloc",
            Self::Calloc => "calloc",
            Self::Realloc => "realloc",
            Self::Free => "free",
        }
    }
}

/// An allocator that has been put in, as the engine calls it. It stays where it is as long as the heap.
pub(crate) struct Layer {
    pub core: *const Core,
    pub domain: Domain,
    pub target: Target,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Target {
    /// A script's.
    Script(u32),
    /// One of the heap's own, for blocks that are its own; for others whoever gave them.
    Router(Allocator),
}

impl Layer {
    pub fn allocator(&self) -> Allocator {
        let ctx = ptr::from_ref(self).cast_mut().cast();
        Allocator { ctx, malloc: layer_malloc, calloc: layer_calloc, realloc: layer_realloc, free: layer_free }
    }
}

/// Calls a script's allocator. More bytes than a number can say, which there are not, are said to be as many as it can.
fn ask(core: &Core, script: u32, verb: Verb, arguments: [usize; 2]) -> Outcome {
    let env = core.env();
    let arguments = arguments.map(|argument| argument.min(args::MAX_SAFE_INTEGER as usize));
    let kept = core.kept.object().ok_or_else(|| Failure::new(code::INTERNAL, "a heap without its handle"))?;
    if core.allocators.nested.get() >= NESTED_MAX {
        let message = format!("expected at most {NESTED_MAX} calls of allocators inside one another");
        return Err(Failure::new(code::REENTRANT, message));
    }
    let answer = env.in_scope(|| {
        let mut values = [kept; 5];
        let first =
            if matches!(verb, Verb::Realloc | Verb::Free) && arguments[0] == 0 { env.null() } else { env.integer(arguments[0]) };
        for (value, made) in values[1..].iter_mut().zip([
            env.integer(script as usize),
            env.integer(verb as usize),
            first,
            env.integer(arguments[1]),
        ]) {
            *value = made.map_err(|_| None)?;
        }
        core.allocators.nested.set(core.allocators.nested.get() + 1);
        let answer = core.while_asking(|| core.realm.call(env, Called::Allocate, &values));
        core.allocators.nested.set(core.allocators.nested.get() - 1);
        answer
    });
    answer.map_err(|cause| Failure::new(code::CALLBACK_THREW, format!("the allocator's {} threw", verb.name())).caused_by(cause))
}

/// Makes sure that what a script's allocator gave can be a block of the domain, perhaps instead of another, and enters it.
fn claim(
    (layer, core, script): (&Layer, &Core, u32),
    verb: Verb,
    answer: Value,
    size: usize,
    instead: Option<usize>,
) -> Result<usize, Failure> {
    let env = core.env();
    if env.type_of(answer) == sys::ValueType::napi_null {
        return Ok(0);
    }
    let what = match verb {
        Verb::Malloc => "result of the allocator's malloc",
        Verb::Calloc => "result of the allocator's calloc",
        Verb::Realloc | Verb::Free => "result of the allocator's realloc",
    };
    let refuse = |why: &'static str| Failure::argument(code::CALLBACK_RESULT, what, why, answer);
    let heap = core.heap_in_use().ok_or_else(|| core.unusable())?;
    let address = args::address(env, answer).map_err(|_| refuse("an address or null"))?;
    if address == 0 || !address.is_multiple_of(heap.geometry().alignment) {
        return Err(refuse("an address that is aligned as blocks are"));
    }
    let (wanted, size) = (size, size.max(1));
    if address.checked_add(size).is_none() {
        return Err(refuse("an address in memory"));
    }
    if layer.domain == Domain::Raw && heap.is_in_arena(address) {
        return Err(refuse("memory outside the heap's arenas, which pymalloc would take for its own"));
    }
    let lent = &core.allocators.lent[layer.domain as usize];
    if lent.borrow_mut().try_reserve(1 + NESTED_MAX as usize).is_err() {
        return Err(Failure::no_memory("no memory to remember a block"));
    }
    let source = match core.allocators.grant_for(address, size, instead) {
        Some((number, base)) if !core.arenas.overlap_within(base, address, size) => {
            let entered = core.allocators.with_grant(number, base, |grant| {
                grant.pieces.try_reserve(1).ok()?;
                if let Some(instead) = instead {
                    grant.remove(instead);
                }
                let place = grant.place(address, size, None)?;
                grant.pieces.insert(place, (address, size));
                Some(())
            });
            entered.flatten().ok_or_else(|| Failure::no_memory("no memory to remember a block"))?;
            Source::Grant(number, base)
        }
        Some(_) => return Err(refuse("memory that holds no arena")),
        None => Source::Other(of_another_heap(core, env, address, size).map_err(refuse)?),
    };
    if verb as u8 == Verb::Calloc as u8 {
        // SAFETY: so many bytes are there, as found just above.
        let bytes = unsafe { std::slice::from_raw_parts(ptr::with_exposed_provenance::<u8>(address), wanted) };
        if bytes.iter().any(|&byte| byte != 0) {
            release_source(core, &source, address);
            return Err(refuse("zeroed memory"));
        }
    }
    lent.borrow_mut().insert(address, Lent { size, source, script });
    Ok(address)
}

/// The other heap of which a script has given a whole block, which is pinned.
fn of_another_heap(core: &Core, env: Env, address: usize, size: usize) -> Result<Rc<Core>, &'static str> {
    const EXPECTED: &str =
        "memory that an allocator of the heap's own gave, in which no other block lies, or a live block of another heap";
    for owner in live_heaps() {
        let Some(heap) = owner.heap_between_calls().filter(|_| !ptr::eq(&raw const *owner, core)) else { continue };
        let begins = Domain::ALL.into_iter().any(|domain| heap.usable_size(domain, address).is_ok_and(|usable| usable >= size));
        if begins && !matches!(owner.marks.borrow().get(&address), Some(Mark::Pinned(_))) {
            arena::pin_block(&owner, env, address)?;
            return Ok(owner);
        }
    }
    Err(EXPECTED)
}

/// A block lies in its memory no more.
fn release_source(core: &Core, source: &Source, address: usize) {
    match source {
        Source::Grant(number, base) => {
            core.allocators.with_grant(*number, *base, |grant| grant.remove(address));
        }
        Source::Other(owner) => arena::unpin_block(owner, address),
    }
}

/// Takes a block back that was lent to a domain.
fn take_lent(core: &Core, domain: Domain, address: usize) -> Option<Lent> {
    let lent = core.allocators.lent[domain as usize].borrow_mut().remove(&address)?;
    release_source(core, &lent.source, address);
    Some(lent)
}

/// Bytes of a block that the heap's own allocators gave to a domain. They may have it from a script's raw allocator: then the C library knows
/// nothing of it.
fn size_given(core: &Core, heap: &ObjectHeap, address: usize) -> usize {
    let lent = core.allocators.lent[Domain::Raw as usize].borrow().get(&address).map(|lent| lent.size);
    lent.unwrap_or_else(|| heap.size_given(address))
}

/// Makes a grant of a block that an allocator of the heap's own gave to the domain: the number of that allocator, or nothing when there is no
/// memory for it.
fn grant_block(core: &Core, heap: &ObjectHeap, domain: Domain, address: usize) -> Option<(usize, Allocator)> {
    let native = heap.hook_of(domain, address).unwrap_or(core.allocators.own[domain as usize]);
    let number = core.allocators.number_of(native, domain)?;
    if !reserve(core, number) {
        return None;
    }
    enter(core, number, address, size_given(core, heap, address));
    Some((number, native))
}

/// The end of what the engine has called a layer for; a failure is told at the end of the call from JavaScript, and nothing is given.
fn end(core: &Core, done: thread::Result<Result<usize, Failure>>) -> *mut c_void {
    match done.unwrap_or_else(|_| Err(broken(core))) {
        Ok(address) => ptr::with_exposed_provenance_mut(address),
        Err(failure) => {
            fail(core, failure);
            ptr::null_mut()
        }
    }
}

/// # Safety
/// `ctx` is a layer.
unsafe fn layer<'a>(ctx: *mut c_void) -> (&'a Layer, &'a Core) {
    // SAFETY: the caller's promise; the core has the layer, and outlives its heap.
    unsafe {
        let layer = &*ctx.cast_const().cast::<Layer>();
        (layer, &*layer.core)
    }
}

unsafe extern "C" fn layer_malloc(ctx: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: `ctx` is the layer that has this function.
    let (layer, core) = unsafe { layer(ctx) };
    let done = catch_unwind(AssertUnwindSafe(|| {
        reached("layers::layer_malloc");
        match layer.target {
            // SAFETY: it takes any size.
            Target::Router(native) => Ok(unsafe { (native.malloc)(native.ctx, size) }.expose_provenance()),
            Target::Script(script) => {
                let answer = ask(core, script, Verb::Malloc, [size, 0])?;
                claim((layer, core, script), Verb::Malloc, answer, size, None)
            }
        }
    }));
    end(core, done)
}

unsafe extern "C" fn layer_calloc(ctx: *mut c_void, count: usize, size: usize) -> *mut c_void {
    // SAFETY: `ctx` is the layer that has this function.
    let (layer, core) = unsafe { layer(ctx) };
    let done = catch_unwind(AssertUnwindSafe(|| {
        reached("layers::layer_calloc");
        match layer.target {
            // SAFETY: it takes any sizes.
            Target::Router(native) => Ok(unsafe { (native.calloc)(native.ctx, count, size) }.expose_provenance()),
            Target::Script(script) => {
                let total = count.checked_mul(size).ok_or_else(|| Failure::no_memory("more bytes than there are"))?;
                let answer = ask(core, script, Verb::Calloc, [count, size])?;
                claim((layer, core, script), Verb::Calloc, answer, total, None)
            }
        }
    }));
    end(core, done)
}

unsafe extern "C" fn layer_realloc(ctx: *mut c_void, address: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: `ctx` is the layer that has this function.
    let (layer, core) = unsafe { layer(ctx) };
    let done = catch_unwind(AssertUnwindSafe(|| {
        reached("layers::layer_realloc");
        let at = address.expose_provenance();
        match (layer.target, core.allocators.giver(layer.domain, at)) {
            (Target::Script(script), _) if at == 0 => {
                let answer = ask(core, script, Verb::Realloc, [0, size])?;
                claim((layer, core, script), Verb::Realloc, answer, size, None)
            }
            (Target::Script(script), _) | (Target::Router(_), Some(script)) => resize(layer, core, script, at, size),
            (Target::Router(native), None) => {
                let native = native_of(core, layer.domain, at, native);
                // SAFETY: NULL, or a block that this gave.
                Ok(unsafe { (native.realloc)(native.ctx, address, size) }.expose_provenance())
            }
        }
    }));
    end(core, done)
}

unsafe extern "C" fn layer_free(ctx: *mut c_void, address: *mut c_void) {
    // SAFETY: `ctx` is the layer that has this function.
    let (layer, core) = unsafe { layer(ctx) };
    let done = catch_unwind(AssertUnwindSafe(|| {
        reached("layers::layer_free");
        let at = address.expose_provenance();
        match (layer.target, core.allocators.giver(layer.domain, at)) {
            (Target::Script(script), _) if at == 0 => ask_to_free(core, script, at)?,
            (Target::Script(script), _) | (Target::Router(_), Some(script)) => release(layer, core, script, at)?,
            (Target::Router(native), None) => {
                let native = native_of(core, layer.domain, at, native);
                // SAFETY: a block that this gave.
                unsafe { (native.free)(native.ctx, address) };
            }
        }
        Ok(0)
    }));
    end(core, done);
}

/// Who of the heap's own allocators gave a block of a domain: a debug hook, or the one that is expected.
fn native_of(core: &Core, domain: Domain, address: usize, expected: Allocator) -> Allocator {
    core.heap_in_use().and_then(|heap| heap.hook_of(domain, address)).unwrap_or(expected)
}

/// A script's `free`.
fn release(layer: &Layer, core: &Core, script: u32, address: usize) -> Result<(), Failure> {
    let heap = core.heap_in_use().ok_or_else(|| core.unusable())?;
    if take_lent(core, layer.domain, address).is_none() && grant_block(core, heap, layer.domain, address).is_none() {
        // Without memory to let the script have it, it goes where it came from.
        let native = native_of(core, layer.domain, address, core.allocators.own[layer.domain as usize]);
        // SAFETY: a block that this gave.
        unsafe { (native.free)(native.ctx, ptr::with_exposed_provenance_mut(address)) };
        return Ok(());
    }
    ask_to_free(core, script, address)
}

fn ask_to_free(core: &Core, script: u32, address: usize) -> Result<(), Failure> {
    let answer = ask(core, script, Verb::Free, [address, 0])?;
    if core.env().is_true(answer) {
        return Err(Failure::awaited("allocator's free"));
    }
    Ok(())
}

/// A script's `realloc`. Whatever that does, the block is there when it has not succeeded.
fn resize(layer: &Layer, core: &Core, script: u32, address: usize, size: usize) -> Result<usize, Failure> {
    let heap = core.heap_in_use().ok_or_else(|| core.unusable())?;
    let lent = core.allocators.lent[layer.domain as usize].borrow_mut().remove(&address);
    let (number, native, base) = match &lent {
        Some(Lent { source: Source::Other(_), .. }) => return resize_elsewhere(layer, core, script, lent, address, size),
        Some(Lent { source: Source::Grant(number, base), .. }) => {
            (*number, core.allocators.native(*number).unwrap_or(core.allocators.own[layer.domain as usize]), *base)
        }
        None => {
            let granted = grant_block(core, heap, layer.domain, address);
            let (number, native) = granted.ok_or_else(|| Failure::no_memory("no memory to remember a block"))?;
            let kept = core.allocators.with_grant(number, address, |grant| {
                let room = grant.pieces.try_reserve(1).is_ok();
                if room {
                    grant.pieces.push((address, grant.size));
                }
                room
            });
            if kept != Some(true) {
                core.allocators.forget(number, address);
                return Err(Failure::no_memory("no memory to remember a block"));
            }
            (number, native, address)
        }
    };
    let was = lent.as_ref().map_or_else(|| size_given(core, heap, address), |lent| lent.size);
    let before = core.allocators.with_grant(number, base, |grant| grant.moving.replace(address)).flatten();
    core.allocators.resizing.borrow_mut().push(Resizing { number, base, address, size: was, wanted: size, done: false });
    let asked = ask(core, script, Verb::Realloc, [address, size]);
    let now = core.allocators.resizing.borrow().last().copied();
    let now = now.ok_or_else(|| Failure::new(code::INTERNAL, "a block that was being resized is lost"))?;
    let claimed = asked.and_then(|answer| claim((layer, core, script), Verb::Realloc, answer, size, Some(now.address)));
    core.allocators.resizing.borrow_mut().pop();
    let moved = claimed.as_ref().ok().copied().filter(|&moved| moved != 0);
    let given_back = core.allocators.with_grant(now.number, now.base, |grant| {
        grant.moving = before;
        if moved.is_some_and(|moved| moved != now.address) {
            grant.remove(now.address);
        }
        std::mem::take(&mut grant.given_back)
    });
    if moved.is_some() {
        // Should that fail, the block has moved all the same.
        if given_back == Some(true)
            && let Err(failure) = give_back(core, heap, now.number, native, now.base)
        {
            fail(core, failure);
        }
        return claimed;
    }
    // The block is there all the same, where it was or where it has got to.
    match lent {
        Some(lent) => {
            let lent = Lent { size: now.size, source: Source::Grant(now.number, now.base), ..lent };
            core.allocators.lent[layer.domain as usize].borrow_mut().insert(now.address, lent);
        }
        None => core.allocators.forget(now.number, now.base),
    }
    if !now.done {
        return claimed;
    }
    let resized =
        || Failure::new(code::CALLBACK_RESULT, "expected the block that has been resized, but the allocator's realloc gave null");
    fail(core, claimed.err().unwrap_or_else(resized));
    Ok(now.address)
}

/// A block in another heap's memory, which cannot be asked to bring it back: the block is copied.
fn resize_elsewhere(
    layer: &Layer,
    core: &Core,
    script: u32,
    lent: Option<Lent>,
    address: usize,
    size: usize,
) -> Result<usize, Failure> {
    let Some(lent @ Lent { source: Source::Other(_), .. }) = lent else { return Ok(0) };
    let asked = ask(core, script, Verb::Malloc, [size, 0]);
    let claimed = asked.and_then(|answer| claim((layer, core, script), Verb::Malloc, answer, size, None));
    match claimed {
        Ok(moved) if moved != 0 => {
            let count = lent.size.min(size);
            // SAFETY: both are live blocks of at least so many bytes.
            let copied =
                unsafe { core.copy(ptr::with_exposed_provenance_mut(moved), ptr::with_exposed_provenance(address), count) };
            if let Err(failure) = copied {
                core.allocators.lent[layer.domain as usize].borrow_mut().insert(address, lent);
                // A script that cannot run any more cannot take it back.
                let _ = ask(core, script, Verb::Free, [moved, 0]);
                return Err(failure);
            }
            release_source(core, &lent.source, address);
            if let Err(failure) = ask(core, script, Verb::Free, [address, 0]) {
                fail(core, failure);
            }
            Ok(moved)
        }
        none => {
            core.allocators.lent[layer.domain as usize].borrow_mut().insert(address, lent);
            none
        }
    }
}
