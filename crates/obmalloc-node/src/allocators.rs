//! A domain's allocators as a script holds them (`PyMem_GetAllocator`, `PyMem_SetAllocator`): the heap's own ones, which can be called, and
//! a script's, which the engine calls.
//!
//! A script's word is not taken for it. What its allocator gives must lie in a *grant*, memory that one of the heap's own allocators gave to
//! a script that called it directly, or be a live block of another heap, and must be clear of all blocks that scripts' allocators gave
//! before. Such a block is *lent* to the domain. While one lies in a grant, that can be neither given back nor moved.
//!
//! A block that the domain's own allocator gave becomes a grant when a script's allocator is to free or resize it. A script may give the
//! memory back in the middle of a `realloc`; as that may fail yet, it is given back for good only when the `realloc` is over. If it has
//! resized the block by then, that stays so.
//!
//! When one of the heap's own allocators is put back, blocks that came from it through a script are plain blocks again. For those that
//! it cannot take back, a router in front of it finds the script that gave them.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::rc::Rc;

use napi_sys as sys;
use obmalloc::{Allocator, Domain, Fault, FaultKind, ObjectHeap, PY_SSIZE_T_MAX};

use crate::arena::{broken, fail};
use crate::failure::{Failure, code};
use crate::heap::{Core, Mark, State, domain_named, live_heaps};
use crate::js::{Env, Outcome, UNDEFINED, Value};
use crate::shell::{method, reached};
use crate::{arena, args};

/// Calls of scripts' allocators inside one another.
const NESTED_MAX: u32 = 50;

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

/// One of the heap's own allocators.
struct Native {
    allocator: Allocator,
    /// The domains that it is for.
    domains: [bool; 3],
    grants: HashMap<usize, Grant>,
    /// The grant that the last block that is not a whole one lay in.
    last: usize,
}

/// What one of them gave to a script.
#[derive(Default)]
struct Grant {
    size: usize,
    /// The blocks lent in it: address and bytes, in order.
    pieces: Vec<(usize, usize)>,
    /// Arenas in it.
    arenas: usize,
    /// The block in it that a script's `realloc` is about, which may still fail, and whether that has given the grant back.
    moving: Option<usize>,
    given_back: bool,
}

impl Grant {
    /// Whether `size` bytes at `address` lie in this grant at `base`.
    fn holds(&self, base: usize, address: usize, size: usize) -> bool {
        let room = self.size.max(1);
        !self.given_back && address >= base && address - base <= room && size <= room - (address - base)
    }

    /// Where a block of `size` bytes at `address` belongs among the pieces; none when it would overlap one, but for the one that it takes the
    /// place of.
    fn place(&self, address: usize, size: usize, instead: Option<usize>) -> Option<usize> {
        let place = self.pieces.partition_point(|&(piece, _)| piece < address);
        let other = |&&(piece, _): &&(usize, usize)| Some(piece) != instead;
        let before = self.pieces[..place].iter().rev().find(other).is_none_or(|&(piece, length)| piece + length <= address);
        let behind = self.pieces[place..].iter().find(other).is_none_or(|&(piece, _)| address + size <= piece);
        (before && behind).then_some(place)
    }

    /// Whether nothing lies in it but what is being moved.
    fn is_free(&self) -> bool {
        self.arenas == 0 && self.pieces.iter().all(|&(piece, _)| Some(piece) == self.moving)
    }

    fn remove(&mut self, address: usize) {
        self.pieces.retain(|&(piece, _)| piece != address);
    }
}

/// Where the memory of a block comes from that a script's allocator gave.
enum Source {
    /// The grant at an address, of the native with a number.
    Grant(usize, usize),
    /// A block of another heap, at the same address.
    Other(Rc<Core>),
}

struct Lent {
    size: usize,
    source: Source,
    /// The script whose allocator gave it.
    script: u32,
}

/// An allocator that has been put in, as the engine calls it. It stays where it is as long as the heap.
struct Layer {
    core: *const Core,
    domain: Domain,
    target: Target,
}

#[derive(Clone, Copy, PartialEq)]
enum Target {
    /// A script's.
    Script(u32),
    /// One of the heap's own, for blocks that are its own; for others whoever gave them.
    Router(Allocator),
}

pub(crate) struct Allocators {
    /// What the domains began with.
    own: [Allocator; 3],
    natives: RefCell<Vec<Native>>,
    #[allow(clippy::vec_box, reason = "allocators point to them")]
    layers: RefCell<Vec<Box<Layer>>>,
    lent: [RefCell<HashMap<usize, Lent>>; 3],
    /// The blocks that scripts are resizing, each inside the one before.
    resizing: RefCell<Vec<Resizing>>,
    nested: Cell<u32>,
}

/// A block that a script is resizing.
#[derive(Clone, Copy)]
struct Resizing {
    /// The native and the grant that it lies in.
    number: usize,
    base: usize,
    address: usize,
    /// Bytes that it has.
    size: usize,
    /// Bytes that it is to have.
    wanted: usize,
    /// Whether the native has resized it.
    done: bool,
}

impl Allocators {
    pub fn new(heap: &ObjectHeap) -> Self {
        let own = Domain::ALL.map(|domain| heap.allocator(domain));
        Self {
            own,
            natives: RefCell::default(),
            layers: RefCell::default(),
            lent: Default::default(),
            // Room for as many as there can be.
            resizing: RefCell::new(Vec::with_capacity(NESTED_MAX as usize)),
            nested: Cell::new(0),
        }
    }

    /// Whether calls of the domains may run JavaScript.
    pub fn need_attention(&self, heap: &ObjectHeap) -> bool {
        !self.layers.borrow().is_empty() && Domain::ALL.map(|domain| heap.allocator(domain)) != self.own
    }

    /// Whether any of `size` bytes at an address has been given to a script.
    pub fn have_granted(&self, begin: usize, size: usize) -> bool {
        let granted = |native: &Native| (begin..begin + size).step_by(8).any(|address| native.grants.contains_key(&address));
        self.natives.borrow().iter().any(|native| !native.grants.is_empty() && granted(native))
    }

    /// Takes a grant out that is a block of a domain as well, because its allocator is the one that is in there: its size.
    pub fn take_grant(&self, heap: &ObjectHeap, domain: Domain, address: usize) -> Option<usize> {
        let present = heap.allocator(domain);
        let mut natives = self.natives.borrow_mut();
        let native = natives.iter_mut().find(|native| native.allocator == present)?;
        native.grants.get(&address).filter(|grant| grant.is_free() && !grant.given_back)?;
        native.grants.remove(&address).map(|grant| grant.size)
    }

    /// Bytes of a grant that nothing lies in.
    pub fn size_of_grant(&self, address: usize) -> Option<usize> {
        let natives = self.natives.borrow();
        let grant = natives.iter().find_map(|native| native.grants.get(&address))?;
        (grant.is_free() && !grant.given_back).then_some(grant.size)
    }

    /// The number of one of the heap's own allocators, which is known from now on, if there is memory for that.
    fn number_of(&self, allocator: Allocator, domain: Domain) -> Option<usize> {
        let mut natives = self.natives.borrow_mut();
        let number = natives.iter().position(|native| native.allocator == allocator);
        let number = match number {
            Some(number) => number,
            None => {
                natives.try_reserve(1).ok()?;
                natives.push(Native { allocator, domains: [false; 3], grants: HashMap::new(), last: 0 });
                natives.len() - 1
            }
        };
        natives[number].domains[domain as usize] = true;
        Some(number)
    }

    fn forget(&self, number: usize, base: usize) {
        if let Some(native) = self.natives.borrow_mut().get_mut(number) {
            native.grants.remove(&base);
        }
    }

    fn native(&self, number: usize) -> Option<Allocator> {
        self.natives.borrow().get(number).map(|native| native.allocator)
    }

    /// The number of the native whose grant holds so many bytes at `address`, clear of all blocks but the one that these take the place of,
    /// and the grant's address.
    fn grant_for(&self, address: usize, size: usize, instead: Option<usize>) -> Option<(usize, usize)> {
        let mut natives = self.natives.borrow_mut();
        let fits = |native: &Native, base: usize| {
            let grant = native.grants.get(&base)?;
            (grant.holds(base, address, size) && grant.place(address, size, instead).is_some()).then_some(base)
        };
        // The last one is the outermost: what pymalloc passes on to a script's raw allocator is a grant of both.
        let whole = natives.iter().enumerate().rev().find_map(|(number, native)| Some((number, fits(native, address)?)));
        whole.or_else(|| {
            natives.iter_mut().enumerate().rev().find_map(|(number, native)| {
                let base = fits(native, native.last).or_else(|| native.grants.keys().find_map(|&base| fits(native, base)))?;
                native.last = base;
                Some((number, base))
            })
        })
    }

    /// Runs something with a grant.
    fn with_grant<T>(&self, number: usize, base: usize, run: impl FnOnce(&mut Grant) -> T) -> Option<T> {
        self.natives.borrow_mut().get_mut(number)?.grants.get_mut(&base).map(run)
    }

    /// Lets an arena lie in a grant, if there is one around it with room for it: the grant's address.
    pub fn pin(&self, address: usize, size: usize) -> Option<usize> {
        let (number, base) = self.grant_for(address, size, None)?;
        self.with_grant(number, base, |grant| grant.arenas += 1)?;
        Some(base)
    }

    /// An arena lies in a grant no more.
    pub fn unpin(&self, base: usize) {
        let mut natives = self.natives.borrow_mut();
        let grant = natives.iter_mut().filter_map(|native| native.grants.get_mut(&base)).find(|grant| grant.arenas != 0);
        if let Some(grant) = grant {
            grant.arenas -= 1;
        }
    }

    fn layer(&self, core: &Core, domain: Domain, target: Target) -> Option<Allocator> {
        let mut layers = self.layers.borrow_mut();
        let known = layers.iter().position(|layer| layer.domain == domain && layer.target == target);
        let number = match known {
            Some(number) => number,
            None => {
                layers.try_reserve(1).ok()?;
                layers.push(Box::new(Layer { core, domain, target }));
                layers.len() - 1
            }
        };
        let ctx = ptr::from_ref::<Layer>(&layers[number]).cast_mut().cast();
        Some(Allocator { ctx, malloc: layer_malloc, calloc: layer_calloc, realloc: layer_realloc, free: layer_free })
    }

    /// What an allocator that is in calls, if it is one of the layers.
    fn target(&self, allocator: &Allocator) -> Option<Target> {
        let layers = self.layers.borrow();
        let at = allocator.ctx.cast_const().cast::<Layer>();
        layers.iter().find(|layer| ptr::eq(&raw const ***layer, at)).map(|layer| layer.target)
    }
}

/// Adds what a script needs of a heap's allocators to the handle.
pub(crate) fn methods(env: Env, of: (Value, *const Core)) -> Result<(), Failure> {
    method(env, of, of.0, c"presentAllocator", present)?;
    method(env, of, of.0, c"setNative", set_native)?;
    method(env, of, of.0, c"setScript", set_script)?;
    method(env, of, of.0, c"nativeMalloc", malloc)?;
    method(env, of, of.0, c"nativeCalloc", calloc)?;
    method(env, of, of.0, c"nativeRealloc", realloc)?;
    method(env, of, of.0, c"nativeFree", free)
}

fn no_room() -> Failure {
    Failure::no_memory("no memory to remember an allocator")
}

/// `(domain)`: the number of the allocator that is in. One of the heap's own has a number from 0 on, a script's one from -1 down.
fn present(core: &Core, env: Env, [domain]: [Value; 1]) -> Outcome {
    let domain = domain_named(env, domain)?;
    let allocator = core.heap()?.allocator(domain);
    let native = match core.allocators.target(&allocator) {
        Some(Target::Script(script)) => return env.number(-1.0 - f64::from(script)),
        Some(Target::Router(native)) => native,
        None => allocator,
    };
    env.integer(core.allocators.number_of(native, domain).ok_or_else(no_room)?)
}

/// `(domain, number)`: puts one of the heap's own allocators back; false when it is not for that domain.
fn set_native(core: &Core, env: Env, [domain, number]: [Value; 2]) -> Outcome {
    let (domain, number) = (domain_named(env, domain)?, args::size(env, "number", number)?);
    let heap = core.heap()?;
    let allocators = &core.allocators;
    let native =
        allocators.natives.borrow().get(number).filter(|native| native.domains[domain as usize]).map(|native| native.allocator);
    let Some(native) = native else { return env.boolean(false) };
    allocators.settle(number, domain);
    let all = allocators.lent[domain as usize].borrow().is_empty() && heap.takes_back(domain, &native);
    let allocator = if all { native } else { allocators.layer(core, domain, Target::Router(native)).ok_or_else(no_room)? };
    // SAFETY: an allocator of the heap's own that takes back all of the domain's blocks, or a router, which finds out who does.
    unsafe { heap.set_allocator(domain, allocator) };
    core.update_attention();
    env.boolean(true)
}

/// `(domain, number)`: puts a script's allocator in, to be called by its number.
fn set_script(core: &Core, env: Env, [domain, script]: [Value; 2]) -> Outcome {
    let (domain, script) = (domain_named(env, domain)?, args::size(env, "number", script)?);
    let heap = core.heap()?;
    let layer = core.allocators.layer(core, domain, Target::Script(script as u32)).ok_or_else(no_room)?;
    // SAFETY: a layer does what an allocator does, whatever the script does, takes back all blocks, and catches panics; the core, which has
    // it, outlives the heap.
    unsafe { heap.set_allocator(domain, layer) };
    core.update_attention();
    Ok(UNDEFINED)
}

impl Allocators {
    /// Blocks that a native gave to a script, which gave them to the domain as they were, are the native's own again.
    fn settle(&self, number: usize, domain: Domain) {
        let mut natives = self.natives.borrow_mut();
        let grants = &mut natives[number].grants;
        self.lent[domain as usize].borrow_mut().retain(|&address, lent| {
            let Source::Grant(from, base) = lent.source else { return true };
            let whole = from == number
                && base == address
                && grants.get(&base).is_some_and(|grant| grant.pieces.len() == 1 && grant.arenas == 0);
            if whole {
                grants.remove(&base);
            }
            !whole
        });
    }
}

/// One of the heap's own allocators, as a script may call it now: also from inside a callback of another allocator. One for raw memory needs
/// no more than the C library, and may be called while a script gives or takes an arena.
fn callable(core: &Core, number: usize) -> Result<Allocator, Failure> {
    let native = core.allocators.native(number);
    let may = match core.state() {
        State::Open | State::Due | State::Asking => native,
        State::Busy => native.filter(|native| *native == core.allocators.own[Domain::Raw as usize]),
        _ => None,
    };
    may.ok_or_else(|| core.unusable())
}

/// As [`callable`], and the heap, which is there but while it is being closed.
fn callable_of_heap(core: &Core, number: usize) -> Result<(&ObjectHeap, Allocator), Failure> {
    let native = callable(core, number)?;
    Ok((core.heap_in_use().ok_or_else(|| core.unusable())?, native))
}

/// Calls one of the heap's own allocators for a script, and finds what went wrong on the way.
fn call_native(core: &Core, heap: &ObjectHeap, call: impl FnOnce() -> *mut c_void) -> Result<*mut c_void, Failure> {
    let before = core.arenas.take_failure(heap);
    let block = call();
    let failure = core.arenas.take_failure(heap).or_else(|| heap.take_fault().map(|fault| core.fault(fault)));
    if let Some(before) = before {
        fail(core, before);
    }
    failure.map_or(Ok(block), Err)
}

/// `(number, size)`
fn malloc(core: &Core, env: Env, [number, size]: [Value; 2]) -> Outcome {
    let (number, size) = (args::size(env, "number", number)?, args::size(env, "size", size)?);
    let (heap, native) = callable_of_heap(core, number)?;
    give(core, env, heap, number, size, |size| {
        // SAFETY: an allocator of the heap's own, in a state in which it may be called.
        unsafe { (native.malloc)(native.ctx, size) }
    })
}

/// `(number, count, size)`
fn calloc(core: &Core, env: Env, [number, count, size]: [Value; 3]) -> Outcome {
    let number = args::size(env, "number", number)?;
    let (count, size) = (args::size(env, "count", count)?, args::size(env, "size", size)?);
    let (heap, native) = callable_of_heap(core, number)?;
    let Some(total) = count.checked_mul(size) else { return env.null() };
    give(core, env, heap, number, total, |_| {
        // SAFETY: as above.
        unsafe { (native.calloc)(native.ctx, count, size) }
    })
}

/// Gives memory to a script.
fn give(
    core: &Core,
    env: Env,
    heap: &ObjectHeap,
    number: usize,
    size: usize,
    request: impl FnOnce(usize) -> *mut c_void,
) -> Outcome {
    if size > PY_SSIZE_T_MAX || !reserve(core, number) {
        return env.null();
    }
    let block = call_native(core, heap, || request(size));
    // What JavaScript did meanwhile may have used up the room.
    let Ok(address) = block else { return block.map(|_| UNDEFINED) };
    if address.is_null() {
        return env.null();
    }
    enter(core, number, address.expose_provenance(), size);
    core.report(env, heap);
    env.integer(address as usize)
}

fn reserve(core: &Core, number: usize) -> bool {
    let mut natives = core.allocators.natives.borrow_mut();
    natives.get_mut(number).is_some_and(|native| native.grants.try_reserve(1 + NESTED_MAX as usize).is_ok())
}

fn enter(core: &Core, number: usize, address: usize, size: usize) {
    if let Some(native) = core.allocators.natives.borrow_mut().get_mut(number) {
        native.grants.insert(address, Grant { size, ..Grant::default() });
    }
}

/// What a script may do with an address that it says is a grant of a native's.
enum Held {
    /// Anything.
    Grant,
    /// A block of a domain that the native is in, which the domain gives back.
    Block(Domain),
}

fn held(core: &Core, heap: &ObjectHeap, number: usize, native: Allocator, address: usize) -> Result<Held, Failure> {
    let grant = core.allocators.with_grant(number, address, |grant| (grant.is_free(), grant.given_back));
    let domains = core.allocators.natives.borrow().get(number).map_or([false; 3], |native| native.domains);
    let domains = || Domain::ALL.into_iter().filter(|&domain| domains[domain as usize]);
    match grant {
        Some((true, false)) => return Ok(Held::Grant),
        Some((false, false)) => {
            let message = "expected memory that no block or arena lies in";
            return Err(Failure::new(code::REENTRANT, message).at(address));
        }
        Some((_, true)) => {
            let used = domains().next().unwrap_or(Domain::Raw);
            return Err(core.fault(Fault::new(FaultKind::DoubleFree, address, used)));
        }
        None => {}
    }
    // In C, a block is the allocator's, whether that was called directly or through the domain.
    let mut fault = Fault::new(FaultKind::ForeignPointer, address, Domain::Raw);
    for domain in domains() {
        match heap.check_free(domain, address) {
            Ok(()) if core.heap_between_calls().is_some() && heap.allocator(domain) == native => return Ok(Held::Block(domain)),
            Ok(()) => {
                let message = "expected memory that this allocator gave directly, but it is a block of the domain's";
                return Err(Failure::new(code::REENTRANT, message).at(address).in_domain(domain));
            }
            Err(found) => fault = found,
        }
    }
    Err(core.fault(fault))
}

/// `(number, address, size)`
fn realloc(core: &Core, env: Env, [number, address, size]: [Value; 3]) -> Outcome {
    let number = args::size(env, "number", number)?;
    let (address, size) = (args::address_or_null(env, address)?, args::size(env, "size", size)?);
    let (heap, native) = callable_of_heap(core, number)?;
    let Some(address) = address else {
        // SAFETY: as for `malloc`.
        return give(core, env, heap, number, size, |size| unsafe { (native.realloc)(native.ctx, ptr::null_mut(), size) });
    };
    if let Held::Block(domain) = held(core, heap, number, native, address)? {
        let block = core.realloc(env, heap, domain, Some(address), size)?;
        core.settle_realloc(heap, domain, block)?;
        return block.map_or_else(|| env.null(), |block| env.integer(block.as_ptr() as usize));
    }
    if size > PY_SSIZE_T_MAX || !reserve(core, number) {
        return env.null();
    }
    let place = ptr::with_exposed_provenance_mut::<c_void>(address);
    let resizing = core.allocators.resizing.borrow().iter().rposition(|block| (block.number, block.base) == (number, address));
    // Should the domain's realloc that this is part of fail yet, the block has at least what it was to have.
    let size = resizing.map_or(size, |index| {
        let block = core.allocators.resizing.borrow()[index];
        size.max(block.address - block.base + block.wanted)
    });
    // The block is nobody's while it moves.
    let grant = core.allocators.natives.borrow_mut().get_mut(number).and_then(|native| native.grants.remove(&address));
    // SAFETY: a block that this allocator gave, in which nothing lies that stays where it is.
    let moved = call_native(core, heap, || unsafe { (native.realloc)(native.ctx, place, size) });
    let mut grant = grant.unwrap_or_default();
    let at = match &moved {
        Ok(moved) if !moved.is_null() => moved.expose_provenance(),
        _ => address,
    };
    if moved.as_ref().is_ok_and(|moved| !moved.is_null()) {
        grant.size = size;
        if let Some(index) = resizing {
            let block = &mut core.allocators.resizing.borrow_mut()[index];
            *block = Resizing { base: at, address: block.address - address + at, size: block.wanted, done: true, ..*block };
            grant.moving = Some(block.address);
            grant.pieces.iter_mut().for_each(|piece| *piece = (block.address, block.wanted.max(1)));
        }
    }
    if let Some(native) = core.allocators.natives.borrow_mut().get_mut(number) {
        native.grants.insert(at, grant);
    }
    core.report(env, heap);
    if moved?.is_null() { env.null() } else { env.integer(at) }
}

/// `(number, address)`
fn free(core: &Core, env: Env, [number, address]: [Value; 2]) -> Outcome {
    let (number, address) = (args::size(env, "number", number)?, args::address_or_null(env, address)?);
    let native = callable(core, number)?;
    let Some(address) = address else { return Ok(UNDEFINED) };
    let Some(heap) = core.heap_in_use() else {
        // It is being closed, and a script gives back what its arenas lay in.
        let grant = core.allocators.with_grant(number, address, |grant| grant.is_free() && !grant.given_back);
        if grant != Some(true) {
            return Err(core.unusable());
        }
        core.allocators.forget(number, address);
        // SAFETY: a block that the C library gave, with nothing in it.
        unsafe { (native.free)(native.ctx, ptr::with_exposed_provenance_mut(address)) };
        return Ok(UNDEFINED);
    };
    match held(core, heap, number, native, address)? {
        Held::Block(domain) => core.free(env, heap, domain, address)?,
        Held::Grant => {
            let later = core.allocators.with_grant(number, address, |grant| {
                grant.given_back = grant.moving.is_some();
                grant.given_back
            });
            if later != Some(true) {
                give_back(core, heap, number, native, address)?;
            }
        }
    }
    core.report(env, heap);
    Ok(UNDEFINED)
}

/// A grant goes back to the native that gave it.
fn give_back(core: &Core, heap: &ObjectHeap, number: usize, native: Allocator, address: usize) -> Result<(), Failure> {
    let grant = core.allocators.natives.borrow_mut().get_mut(number).and_then(|native| native.grants.remove(&address));
    let freed = call_native(core, heap, || {
        // SAFETY: a block that this allocator gave, with nothing in it.
        unsafe { (native.free)(native.ctx, ptr::with_exposed_provenance_mut(address)) };
        ptr::null_mut()
    });
    match (freed, grant) {
        // Its guard bytes are damaged: it is not used again, and still there.
        (Err(failure), Some(grant)) if heap.hook_of(address).is_some() => {
            enter(core, number, address, grant.size);
            Err(failure)
        }
        (freed, _) => {
            heap.note_freed(address);
            freed.map(drop)
        }
    }
}

/// Calls a script's allocator; for more bytes than a number can say, which there are not, nothing is called.
fn ask(core: &Core, script: u32, verb: Verb, arguments: [usize; 2]) -> Outcome {
    let env = core.env();
    if arguments.iter().any(|&argument| argument as f64 > args::MAX_SAFE_INTEGER) {
        return env.null();
    }
    let handle = core.handle().ok_or_else(|| Failure::new(code::INTERNAL, "a heap without its handle"))?;
    if core.allocators.nested.get() >= NESTED_MAX {
        let message = format!("expected at most {NESTED_MAX} calls of allocators inside one another");
        return Err(Failure::new(code::REENTRANT, message));
    }
    let answer = env.in_scope(|| {
        let function = env.get(handle, c"onAllocate").map_err(|_| None)?;
        let mut values = [ptr::null_mut(); 4];
        let first = if matches!(verb, Verb::Realloc) && arguments[0] == 0 { env.null() } else { env.integer(arguments[0]) };
        for (value, made) in
            values.iter_mut().zip([env.integer(script as usize), env.integer(verb as usize), first, env.integer(arguments[1])])
        {
            *value = made.map_err(|_| None)?;
        }
        core.allocators.nested.set(core.allocators.nested.get() + 1);
        let answer = core.while_asking(|| env.call(function, &values));
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
    let size = size.max(1);
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
        let bytes = unsafe { std::slice::from_raw_parts(ptr::with_exposed_provenance::<u8>(address), size) };
        if bytes.iter().any(|&byte| byte != 0) && size != 1 {
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

/// Makes a grant of a block that an allocator of the heap's own gave to the domain: the number of that allocator, or nothing when there is no
/// memory for it.
fn grant_block(core: &Core, heap: &ObjectHeap, domain: Domain, address: usize) -> Option<(usize, Allocator)> {
    let native = heap.hook_of(address).unwrap_or(core.allocators.own[domain as usize]);
    let number = core.allocators.number_of(native, domain)?;
    if !reserve(core, number) {
        return None;
    }
    enter(core, number, address, heap.size_given(address));
    Some((number, native))
}

/// Runs what the engine has called a layer for; a failure is told at the end of the call from JavaScript, and nothing is given.
fn guarded(core: &Core, name: &'static str, run: impl FnOnce() -> Result<usize, Failure>) -> *mut c_void {
    let done = catch_unwind(AssertUnwindSafe(|| {
        reached(name);
        run()
    }));
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
    // SAFETY: `ctx` is the layer that has this function; a router's native takes any size.
    unsafe {
        let (layer, core) = layer(ctx);
        match layer.target {
            Target::Router(native) => (native.malloc)(native.ctx, size),
            Target::Script(script) => guarded(core, "allocators::malloc", || {
                claim((layer, core, script), Verb::Malloc, ask(core, script, Verb::Malloc, [size, 0])?, size, None)
            }),
        }
    }
}

unsafe extern "C" fn layer_calloc(ctx: *mut c_void, count: usize, size: usize) -> *mut c_void {
    // SAFETY: as above.
    unsafe {
        let (layer, core) = layer(ctx);
        match layer.target {
            Target::Router(native) => (native.calloc)(native.ctx, count, size),
            Target::Script(script) => guarded(core, "allocators::calloc", || {
                let total = count.checked_mul(size).ok_or_else(|| Failure::no_memory("more bytes than there are"))?;
                claim((layer, core, script), Verb::Calloc, ask(core, script, Verb::Calloc, [count, size])?, total, None)
            }),
        }
    }
}

unsafe extern "C" fn layer_realloc(ctx: *mut c_void, address: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: as above; the engine gives NULL or a live block of the domain.
    unsafe {
        let (layer, core) = layer(ctx);
        if address.is_null() && matches!(layer.target, Target::Router(_)) {
            return layer_malloc(ctx, size);
        }
        let at = address.expose_provenance();
        let giver = core.allocators.lent[layer.domain as usize].borrow().get(&at).map(|lent| lent.script);
        let script = match (layer.target, giver) {
            (Target::Script(script), _) | (Target::Router(_), Some(script)) => script,
            (Target::Router(native), None) => {
                let native = core.heap_in_use().and_then(|heap| heap.hook_of(at)).unwrap_or(native);
                return (native.realloc)(native.ctx, address, size);
            }
        };
        guarded(core, "allocators::realloc", || {
            if at == 0 {
                let answer = ask(core, script, Verb::Realloc, [0, size])?;
                return claim((layer, core, script), Verb::Realloc, answer, size, None);
            }
            resize(layer, core, script, at, size)
        })
    }
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
    let was = lent.as_ref().map_or_else(|| heap.size_given(address), |lent| lent.size);
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
        if given_back == Some(true) {
            give_back(core, heap, now.number, native, now.base)?;
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
            unsafe {
                let from = ptr::with_exposed_provenance::<u8>(address);
                ptr::with_exposed_provenance_mut::<u8>(moved).copy_from_nonoverlapping(from, count);
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

unsafe extern "C" fn layer_free(ctx: *mut c_void, address: *mut c_void) {
    if address.is_null() {
        return;
    }
    // SAFETY: as in `layer_realloc`.
    unsafe {
        let (layer, core) = layer(ctx);
        let at = address.expose_provenance();
        let lent = take_lent(core, layer.domain, at);
        let script = match (layer.target, &lent) {
            (Target::Script(script), _) => script,
            (Target::Router(_), Some(lent)) => lent.script,
            (Target::Router(native), None) => {
                let native = core.heap_in_use().and_then(|heap| heap.hook_of(at)).unwrap_or(native);
                (native.free)(native.ctx, address);
                return;
            }
        };
        guarded(core, "allocators::free", || {
            let heap = core.heap_in_use().ok_or_else(|| core.unusable())?;
            if lent.is_none() && grant_block(core, heap, layer.domain, at).is_none() {
                // Without memory to let the script have it, it goes where it came from.
                let native = heap.hook_of(at).unwrap_or(core.allocators.own[layer.domain as usize]);
                (native.free)(native.ctx, address);
                return Ok(0);
            }
            let answer = ask(core, script, Verb::Free, [at, 0])?;
            if core.env().is_true(answer) {
                let message = "expected the allocator's free to be done when it returns, but it gave something to wait for";
                return Err(Failure::new(code::CALLBACK_RESULT, message));
            }
            Ok(0)
        });
    }
}

/// Whether a block at an address lies in memory that a script's allocator gave.
pub(crate) fn is_lent(core: &Core, address: usize) -> bool {
    core.allocators.lent.iter().any(|lent| lent.borrow().contains_key(&address))
}

/// Lets go of what scripts have not given back, when the heap is taken down: what no arena lies in, while the heap's arenas are there, and the
/// rest once they are gone.
pub(crate) fn release(core: &Core, heap: &ObjectHeap, arenas_are_gone: bool) {
    let raw = core.allocators.own[Domain::Raw as usize];
    let mut natives = core.allocators.natives.borrow_mut();
    for (number, native) in natives.iter_mut().enumerate() {
        for (&base, grant) in &mut native.grants {
            if grant.given_back || (grant.arenas != 0 && !arenas_are_gone) {
                continue;
            }
            grant.given_back = true;
            // Where a layer of it is a script's to give, that has it from another grant.
            let from_script = |address| {
                let lent = |lent: &RefCell<HashMap<usize, Lent>>| {
                    let own = |lent: &Lent| matches!(lent.source, Source::Grant(from, at) if (from, at) == (number, base));
                    lent.borrow().get(&address).is_some_and(|lent| !own(lent))
                };
                core.allocators.lent.iter().any(lent)
            };
            let below = heap.layers(base).last().unwrap_or(base);
            let is_own = native.allocator == raw || !heap.layers(base).any(from_script);
            if is_own && (arenas_are_gone || !heap.is_in_arena(below)) {
                // SAFETY: a block that the C library gave, of which this is the only record; nobody can use it any more.
                unsafe { (raw.free)(raw.ctx, ptr::with_exposed_provenance_mut(below)) };
            }
        }
    }
    drop(natives);
    if arenas_are_gone {
        core.allocators.natives.take();
        for (address, lent) in core.allocators.lent.iter().flat_map(|lent| lent.take()) {
            if let Source::Other(owner) = lent.source {
                arena::unpin_block(&owner, address);
            }
        }
    }
}
