//! Arenas that a script gives (`PyObject_SetArenaAllocator`), and the heap's own arena allocator as a script may call it.
//!
//! A script's word is not taken for it: what it gives must lie in memory that this binding knows, a live block of another heap or
//! what a heap's own allocators gave to a script, and no two arenas may overlap. While an arena lies in such memory, that
//! memory can be neither freed nor looked into, and its heap lives.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::rc::Rc;

use napi_sys as sys;
use obmalloc::{ArenaAllocator, Domain, ObjectHeap, Undone};

use crate::face::Called;
use crate::failure::{Failure, code};
use crate::heap::{Core, Mark, State, live_heaps};
use crate::js::{Env, Outcome, UNDEFINED, Value};
use crate::shell::{Table, method, reached};
use crate::{allocators, args, view};

/// Bytes that an arena's address is a multiple of: blocks in it are aligned to it.
const ARENA_ALIGNMENT: usize = 16;

/// Who is asked for arenas.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    /// The heap's own arena allocator, directly.
    Own,
    /// The heap's own arena allocator, while arenas of a script are still held.
    OwnAgain,
    /// A script's.
    Script,
    /// Nobody: the heap is being taken down.
    Nobody,
}

/// An arena that a script gave.
struct Lent {
    size: usize,
    /// The heap whose memory it is; none when it is this one's own.
    owner: Option<Rc<Core>>,
    /// The memory that it lies in.
    base: usize,
    inside: Inside,
}

/// What kind of memory an arena lies in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Inside {
    /// What an arena allocator gave to a script.
    Grant,
    /// What another allocator gave to a script.
    Granted,
    /// A block of a domain.
    Block,
}

/// What the heap's own arena allocator gave to a script.
struct Grant {
    size: usize,
    /// Arenas in it.
    pins: usize,
}

pub(crate) struct Arenas {
    own: ArenaAllocator,
    source: Cell<Source>,
    lent: RefCell<HashMap<usize, Lent>>,
    grants: RefCell<HashMap<usize, Grant>>,
    failure: RefCell<Option<Failure>>,
}

impl Arenas {
    pub fn new(own: ArenaAllocator) -> Self {
        Self {
            own,
            source: Cell::new(Source::Own),
            lent: RefCell::default(),
            grants: RefCell::default(),
            failure: RefCell::default(),
        }
    }

    pub fn need_attention(&self) -> bool {
        self.source.get() != Source::Own
    }

    /// How many arenas of other heaps lie in what this one's arena allocator gave.
    pub fn lends(&self) -> usize {
        let grants: usize = self.grants.borrow().values().map(|grant| grant.pins).sum();
        let own = self.lent.borrow().values().filter(|lent| lent.inside == Inside::Grant && lent.owner.is_none()).count();
        grants - own
    }

    /// What went wrong in a callback since the last time, and lets the heap have memory again.
    pub fn take_failure(&self, heap: &ObjectHeap) -> Option<Failure> {
        let failure = self.failure.borrow_mut().take()?;
        heap.set_refusing(false);
        Some(failure)
    }

    fn overlaps(&self, address: usize, size: usize) -> bool {
        self.lent.borrow().iter().any(|(&base, lent)| base < address + size && address < base + lent.size)
    }

    /// Whether an arena lies in so many bytes at `address`, but for one that they, and the memory around them at `base`, lie in.
    pub fn overlap_within(&self, base: usize, address: usize, size: usize) -> bool {
        self.lent.borrow().iter().any(|(&arena, lent)| {
            let around = arena <= base && base < arena + lent.size;
            !around && arena < address + size && address < arena + lent.size
        })
    }

    /// The grant that holds so many bytes at `address`.
    fn grant_around(&self, address: usize, size: usize) -> Option<usize> {
        let holds = |(&base, grant): (&usize, &Grant)| {
            let within = address >= base && address + size <= base + grant.size;
            within.then_some(base)
        };
        self.grants.borrow().iter().find_map(holds)
    }
}

/// Adds what a script needs of a heap's arenas to the handle.
pub(crate) fn methods(to: Table<'_>) -> Result<(), Failure> {
    method(to, c"takeArena", ["size"], "Address | null", take)?;
    method(to, c"giveArena", ["address", "size"], "void", give)?;
    method(to, c"askScript", [], "void", ask_script)?;
    method(to, c"askOwn", [], "void", ask_own)
}

/// From now on arenas come from a script, and go to it.
fn ask_script(core: &Core, _: Env, []: [Value; 0]) -> Outcome {
    set_source(core, core.heap()?, Source::Script);
    Ok(UNDEFINED)
}

/// From now on arenas come from the heap's own arena allocator.
fn ask_own(core: &Core, _: Env, []: [Value; 0]) -> Outcome {
    let source = if core.arenas.lent.borrow().is_empty() { Source::Own } else { Source::OwnAgain };
    set_source(core, core.heap()?, source);
    Ok(UNDEFINED)
}

fn set_source(core: &Core, heap: &ObjectHeap, source: Source) {
    core.arenas.source.set(source);
    core.update_attention();
    let allocator = if source == Source::Own {
        core.arenas.own
    } else {
        ArenaAllocator { ctx: ptr::from_ref(core).cast_mut().cast(), alloc: arena_alloc, free: arena_free }
    };
    // SAFETY: both take back whatever arenas the heap holds; the core outlives its heap, and its functions catch panics.
    unsafe { heap.set_arena_allocator(allocator) };
}

/// Whether a script may call the heap's own arena allocator: also from inside a callback of the same heap.
fn callable(core: &Core) -> Result<(), Failure> {
    if core.state() == State::Busy { Ok(()) } else { core.heap().map(drop) }
}

/// The heap's own arena allocator, as a script calls it: `(size)`.
fn take(core: &Core, env: Env, [size]: [Value; 1]) -> Outcome {
    let size = args::size(env, "size", size)?;
    callable(core)?;
    if core.arenas.grants.borrow_mut().try_reserve(1).is_err() {
        return env.null();
    }
    // SAFETY: the heap is there (it is open, or in a callback of its own), and takes any size.
    let arena = unsafe { (core.arenas.own.alloc)(core.arenas.own.ctx, size) };
    if arena.is_null() {
        return env.null();
    }
    core.arenas.grants.borrow_mut().insert(arena.expose_provenance(), Grant { size, pins: 0 });
    env.integer(arena.expose_provenance())
}

/// Gives back what [`take`] gave, or an arena of the heap's own that it has given to the script's `free`: `(address, size)`.
fn give(core: &Core, env: Env, [address, size]: [Value; 2]) -> Outcome {
    let (address, size) = (args::address(env, address)?, args::size(env, "size", size)?);
    callable(core)?;
    match core.arenas.grants.borrow().get(&address) {
        Some(grant) if grant.pins != 0 => {
            let message = "expected memory that no heap has an arena in";
            return Err(Failure::new(code::REENTRANT, message).at(address));
        }
        Some(grant) if grant.size == size => {}
        _ => {
            let message = format!("expected {size} bytes that this heap's arena allocator gave, but {address:#x} are none");
            return Err(Failure::new("ERR_FOREIGN_POINTER", message).at(address));
        }
    }
    core.arenas.grants.borrow_mut().remove(&address);
    // SAFETY: it gave this with this size, and no arena lies in it.
    unsafe { (core.arenas.own.free)(core.arenas.own.ctx, ptr::with_exposed_provenance_mut(address), size) };
    Ok(UNDEFINED)
}

unsafe extern "C" fn arena_alloc(ctx: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: `ctx` is the core that put these functions in.
    let core = unsafe { &*ctx.cast_const().cast::<Core>() };
    let own = core.arenas.own;
    match core.arenas.source.get() {
        Source::Nobody => ptr::null_mut(),
        // SAFETY: the heap's own arena allocator, which takes any size.
        Source::Own | Source::OwnAgain => unsafe { (own.alloc)(own.ctx, size) },
        Source::Script => {
            let asked = catch_unwind(AssertUnwindSafe(|| {
                reached("arena::arena_alloc");
                ask_for_arena(core, size)
            }));
            match asked.unwrap_or_else(|_| Err(broken(core))) {
                Ok(address) => ptr::with_exposed_provenance_mut(address),
                Err(failure) => {
                    fail(core, failure);
                    ptr::null_mut()
                }
            }
        }
    }
}

#[cold]
pub(crate) fn broken(core: &Core) -> Failure {
    core.poison();
    Failure::new(code::INTERNAL, "a broken invariant of obmalloc itself; the heap cannot be used any more")
}

/// Remembers why the present call is to fail, and lets it have no memory from elsewhere.
pub(crate) fn fail(core: &Core, failure: Failure) {
    if let Some(heap) = core.heap_in_use() {
        heap.set_refusing(true);
    }
    core.arenas.failure.borrow_mut().get_or_insert(failure);
}

/// Calls a function of the face's.
fn call(core: &Core, env: Env, function: Called, arguments: &[usize]) -> Outcome {
    let kept = core.kept.object().ok_or_else(|| Failure::new(code::INTERNAL, "a heap without its handle"))?;
    let mut values = [kept; 3];
    for (value, &argument) in values[1..].iter_mut().zip(arguments) {
        *value = env.integer(argument)?;
    }
    core.while_busy(|| core.realm.call(env, function, &values[..=arguments.len()])).map_err(|cause| {
        let which = if arguments.len() == 1 { "alloc" } else { "free" };
        Failure::new(code::CALLBACK_THREW, format!("the arena allocator's {which} threw")).caused_by(cause)
    })
}

/// An arena from the script: its address, or 0 when the script has none.
fn ask_for_arena(core: &Core, size: usize) -> Result<usize, Failure> {
    let env = core.env();
    let result = call(core, env, Called::ArenaAlloc, &[size])?;
    if env.type_of(result) == sys::ValueType::napi_null {
        return Ok(0);
    }
    let refuse =
        |why: &'static str| Failure::argument(code::CALLBACK_RESULT, "result of the arena allocator's alloc", why, result);
    let address = args::address(env, result).map_err(|_| refuse("an address or null"))?;
    if !address.is_multiple_of(ARENA_ALIGNMENT) || address == 0 {
        return Err(refuse("an address that is a multiple of 16"));
    }
    if address.checked_add(size).is_none() {
        return Err(refuse("an address in memory"));
    }
    if core.arenas.overlaps(address, size) {
        return Err(refuse("memory that holds no other arena"));
    }
    core.arenas.lent.borrow_mut().try_reserve(1).map_err(|_| Failure::no_memory("no memory to remember an arena"))?;
    let lent = claim(core, env, address, size).map_err(refuse)?;
    core.arenas.lent.borrow_mut().insert(address, lent);
    Ok(address)
}

/// Finds out whose memory an arena lies in, and pins it.
fn claim(core: &Core, env: Env, address: usize, size: usize) -> Result<Lent, &'static str> {
    if let Some(base) = core.arenas.grant_around(address, size) {
        pin_grant(core, base);
        return Ok(Lent { size, owner: None, base, inside: Inside::Grant });
    }
    if let Some(base) = core.allocators.pin(address, size) {
        return Ok(Lent { size, owner: None, base, inside: Inside::Granted });
    }
    for owner in live_heaps() {
        if ptr::eq(&raw const *owner, core) {
            continue;
        }
        if owner.arenas.overlaps(address, size) {
            return Err("memory that holds no other arena");
        }
    }
    for owner in live_heaps() {
        // One that is in the middle of a call of a domain's, as this one is, may be about to free what it still has.
        let Some(heap) = owner.heap_between_calls() else { continue };
        if ptr::eq(&raw const *owner, core) {
            continue;
        }
        if let Some(base) = owner.arenas.grant_around(address, size) {
            pin_grant(&owner, base);
            return Ok(Lent { size, owner: Some(owner), base, inside: Inside::Grant });
        }
        if let Some(base) = block_around(heap, address, size) {
            pin_block(&owner, env, base)?;
            return Ok(Lent { size, owner: Some(owner), base, inside: Inside::Block });
        }
    }
    Err("memory of another heap's live block, or of an allocator that was taken out")
}

/// The live block, without an object in it, that holds so many bytes at `address`.
fn block_around(heap: &ObjectHeap, address: usize, size: usize) -> Option<usize> {
    let begins = Domain::ALL.into_iter().any(|domain| heap.usable_size(domain, address).is_ok_and(|usable| usable >= size));
    let holds = |&(base, length, _): &(usize, usize, Domain)| base <= address && address + size <= base + length;
    if begins {
        return Some(address);
    }
    let (base, _, domain) = *heap.blocks_elsewhere().iter().find(|block| holds(block))?;
    // A block with an object in it is nobody's to lend.
    heap.usable_size(domain, base).is_ok().then_some(base)
}

fn pin_grant(owner: &Core, base: usize) {
    if let Some(grant) = owner.arenas.grants.borrow_mut().get_mut(&base) {
        grant.pins += 1;
    }
}

pub(crate) fn pin_block(owner: &Core, env: Env, base: usize) -> Result<(), &'static str> {
    let view = match owner.marks.borrow().get(&base) {
        Some(Mark::Retired(..)) => return Err("memory of a block that has not been freed"),
        Some(Mark::Viewed(view)) => Some(view.clone()),
        _ => None,
    };
    if view.is_some_and(|view| view::detach(owner, env, base, &view)) {
        return Err("memory that no buffer in JavaScript can reach");
    }
    let mut marks = owner.marks.borrow_mut();
    match marks.get_mut(&base) {
        Some(Mark::Pinned(arenas)) => *arenas += 1,
        Some(Mark::Viewed(_) | Mark::Retired(..)) => return Err("memory that no buffer in JavaScript can reach"),
        None => drop(marks.insert(base, Mark::Pinned(1))),
    }
    drop(marks);
    owner.update_attention();
    Ok(())
}

fn unpin(core: &Core, lent: &Lent) {
    let owner = lent.owner.as_deref().unwrap_or(core);
    match lent.inside {
        Inside::Grant => {
            if let Some(grant) = owner.arenas.grants.borrow_mut().get_mut(&lent.base) {
                grant.pins -= 1;
            }
            owner.release_if_closed();
        }
        Inside::Granted => owner.allocators.unpin(lent.base),
        Inside::Block => unpin_block(owner, lent.base),
    }
}

pub(crate) fn unpin_block(owner: &Core, base: usize) {
    let mut marks = owner.marks.borrow_mut();
    if let Some(Mark::Pinned(arenas)) = marks.get_mut(&base) {
        *arenas -= 1;
        if *arenas == 0 {
            marks.remove(&base);
        }
    }
    drop(marks);
    owner.update_attention();
    owner.release_if_closed();
}

unsafe extern "C" fn arena_free(ctx: *mut c_void, address: *mut c_void, size: usize) {
    // SAFETY: `ctx` is the core that put these functions in.
    let core = unsafe { &*ctx.cast_const().cast::<Core>() };
    let freed = catch_unwind(AssertUnwindSafe(|| {
        reached("arena::arena_free");
        give_back(core, address.expose_provenance(), size)
    }));
    match freed {
        Ok(Ok(())) => {}
        Ok(Err(failure)) => fail(core, failure),
        Err(_) => fail(core, broken(core)),
    }
}

/// The heap needs an arena no more.
fn give_back(core: &Core, address: usize, size: usize) -> Result<(), Failure> {
    let source = core.arenas.source.get();
    if source == Source::Nobody {
        return Ok(());
    }
    let lent = core.arenas.lent.borrow_mut().remove(&address);
    if let Some(lent) = &lent {
        unpin(core, lent);
    }
    if source == Source::Script {
        if lent.is_none() {
            // The heap's own: the script may give it back where it came from.
            core.arenas.grants.borrow_mut().insert(address, Grant { size, pins: 0 });
        }
        let env = core.env();
        if env.is_true(call(core, env, Called::ArenaFree, &[address, size])?) {
            return Err(Failure::awaited("arena allocator's free"));
        }
        return Ok(());
    }
    if lent.is_none() {
        // SAFETY: the heap's own arena, which it has let go of.
        unsafe { (core.arenas.own.free)(core.arenas.own.ctx, ptr::with_exposed_provenance_mut(address), size) };
    }
    Ok(())
}

/// Where a heap goes that could not be taken down whole, because the thread is being ended: what is left goes with its core.
fn put_off(core: &Core, heap: ObjectHeap) -> Option<Failure> {
    core.keep(heap);
    Some(Failure::of_status(sys::Status::napi_cannot_run_js))
}

/// Takes a heap down: its blocks, its arenas, what a script did not give back, and its tables. The first thing that a script did
/// wrong on the way comes back, unless no script may be called.
pub(crate) fn release(core: &Core, mut heap: ObjectHeap, may_call: bool) -> Option<Failure> {
    match prepare(core, &mut heap, may_call) {
        Ok(()) => {}
        Err(Undone::GivenUp) => return put_off(core, heap),
        Err(Undone::NoMemory) => {
            heap.free_blocks_unsorted(|address| allocators::is_lent(core, address));
            if !let_go(core, &mut heap, may_call) {
                return put_off(core, heap);
            }
        }
    }
    finish(core, heap, may_call)
}

/// What needs the heap's arenas, to find out what does not lie in them, and gives nothing back that another heap's arena may lie in.
pub(crate) fn prepare(core: &Core, heap: &mut ObjectHeap, may_call: bool) -> Result<(), Undone> {
    heap.find_blocks_outside(|address| allocators::is_lent(core, address), || may_call && core.is_interrupted())?;
    if let_go(core, heap, may_call) { Ok(()) } else { Err(Undone::GivenUp) }
}

/// What else the heap's arenas are needed for; false when it was given up.
fn let_go(core: &Core, heap: &mut ObjectHeap, may_call: bool) -> bool {
    heap.take_tables(|heap, table| allocators::release_table(core, heap, table));
    // Where it was given up before, the arenas may be gone.
    core.arenas.source.get() == Source::Nobody || allocators::forget_in_arenas(core, heap, || may_call && core.is_interrupted())
}

/// The rest.
pub(crate) fn finish(core: &Core, mut heap: ObjectHeap, may_call: bool) -> Option<Failure> {
    let is_over = || may_call && core.is_interrupted();
    if !heap.free_blocks_outside(is_over) {
        return put_off(core, heap);
    }
    let mut failure = None;
    if core.arenas.source.get() != Source::Own {
        if !may_call && core.arenas.source.get() == Source::Script {
            core.arenas.source.set(Source::OwnAgain);
        }
        for arena in heap.arenas() {
            if let Err(error) = give_back(core, arena.address, arena.size) {
                failure.get_or_insert(error);
            }
        }
    }
    for (address, grant) in core.arenas.grants.take() {
        // SAFETY: given by the heap's own arena allocator with this size; no arena is left in it.
        unsafe { (core.arenas.own.free)(core.arenas.own.ctx, ptr::with_exposed_provenance_mut(address), grant.size) };
    }
    if core.arenas.source.get() != Source::Own {
        core.arenas.source.set(Source::Nobody);
    }
    if !allocators::release(core, &heap, is_over) || !heap.give_back(is_over) {
        return put_off(core, heap);
    }
    drop(heap);
    failure
}

/// Counts what keeps each of the heaps that one has arenas or blocks in.
pub(crate) fn count_owners(core: &Core, mut count: impl FnMut(&Rc<Core>)) {
    core.arenas.lent.borrow().values().filter_map(|lent| lent.owner.as_ref()).for_each(&mut count);
    core.allocators.each_owner(count);
}
