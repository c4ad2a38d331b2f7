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
use std::ffi::c_void;
use std::ptr;
use std::rc::Rc;

use obmalloc::{Allocator, CheckedHeap, Domain, Fault, FaultKind, GradualMap, ObjectHeap, PY_SSIZE_T_MAX};

use crate::arena::{self, fail};
use crate::args;
use crate::failure::{Failure, code};
use crate::heap::{Core, State, domain_named};
use crate::js::{Env, Outcome, UNDEFINED, Value};
use crate::layers::{Layer, Target};
use crate::shell::{Table, method};

/// Calls of scripts' allocators inside one another.
pub(crate) const NESTED_MAX: u32 = 50;

/// One of the heap's own allocators.
struct Native {
    allocator: Allocator,
    /// The domains that it is for.
    domains: [bool; 3],
    grants: GradualMap<Grant>,
    /// The grant that the last block that is not a whole one lay in.
    last: usize,
}

/// What one of them gave to a script.
#[derive(Default)]
pub(crate) struct Grant {
    pub size: usize,
    /// The blocks lent in it: address and bytes, in order.
    pub pieces: Vec<(usize, usize)>,
    /// Arenas in it.
    arenas: usize,
    /// The block in it that a script's `realloc` is about, which may still fail, and whether that has given the grant back.
    pub moving: Option<usize>,
    pub given_back: bool,
}

impl Grant {
    /// Whether `size` bytes at `address` lie in this grant at `base`.
    fn holds(&self, base: usize, address: usize, size: usize) -> bool {
        let room = self.size.max(1);
        !self.given_back && address >= base && address - base <= room && size <= room - (address - base)
    }

    /// Where a block of `size` bytes at `address` belongs among the pieces; none when it would overlap one, but for the one that it takes the
    /// place of.
    pub fn place(&self, address: usize, size: usize, instead: Option<usize>) -> Option<usize> {
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

    pub fn remove(&mut self, address: usize) {
        self.pieces.retain(|&(piece, _)| piece != address);
    }
}

/// Where the memory of a block comes from that a script's allocator gave.
pub(crate) enum Source {
    /// The grant at an address, of the native with a number.
    Grant(usize, usize),
    /// A block of another heap, at the same address.
    Other(Rc<Core>),
}

pub(crate) struct Lent {
    pub size: usize,
    pub source: Source,
    /// The script whose allocator gave it.
    pub script: u32,
}

pub(crate) struct Allocators {
    /// What the domains began with.
    pub own: [Allocator; 3],
    natives: RefCell<Vec<Native>>,
    #[allow(clippy::vec_box, reason = "allocators point to them")]
    layers: RefCell<Vec<Box<Layer>>>,
    pub lent: [RefCell<GradualMap<Lent>>; 3],
    /// The blocks that scripts are resizing, each inside the one before.
    pub resizing: RefCell<Vec<Resizing>>,
    pub nested: Cell<u32>,
}

/// A block that a script is resizing.
#[derive(Clone, Copy)]
pub(crate) struct Resizing {
    /// The native and the grant that it lies in.
    pub number: usize,
    pub base: usize,
    pub address: usize,
    /// Bytes that it has.
    pub size: usize,
    /// Bytes that it is to have.
    pub wanted: usize,
    /// Whether the native has resized it.
    pub done: bool,
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
        let present = self.present(heap, domain);
        let mut natives = self.natives.borrow_mut();
        let native = natives.iter_mut().find(|native| native.allocator == present)?;
        native.grants.get(&address).filter(|grant| grant.is_free() && !grant.given_back)?;
        native.grants.remove(&address).map(|grant| grant.size)
    }

    /// Bytes of a grant that nothing lies in.
    pub fn size_of_grant(&self, address: usize) -> Option<usize> {
        let natives = self.natives.borrow();
        // What pymalloc passes on to a script's raw allocator lies in a grant of that one's.
        let mut grants = natives.iter().rev().filter_map(|native| native.grants.get(&address));
        grants.find(|grant| grant.is_free() && !grant.given_back).map(|grant| grant.size)
    }

    /// The number of one of the heap's own allocators, which is known from now on, if there is memory for that.
    pub fn number_of(&self, allocator: Allocator, domain: Domain) -> Option<usize> {
        let mut natives = self.natives.borrow_mut();
        let number = natives.iter().position(|native| native.allocator == allocator);
        let number = match number {
            Some(number) => number,
            None => {
                natives.try_reserve(1).ok()?;
                natives.push(Native { allocator, domains: [false; 3], grants: GradualMap::default(), last: 0 });
                natives.len() - 1
            }
        };
        natives[number].domains[domain as usize] = true;
        Some(number)
    }

    pub fn forget(&self, number: usize, base: usize) {
        if let Some(native) = self.natives.borrow_mut().get_mut(number) {
            native.grants.remove(&base);
        }
    }

    pub fn native(&self, number: usize) -> Option<Allocator> {
        self.natives.borrow().get(number).map(|native| native.allocator)
    }

    /// The number of the native whose grant holds so many bytes at `address`, clear of all blocks but the one that these take the place of,
    /// and the grant's address.
    pub fn grant_for(&self, address: usize, size: usize, instead: Option<usize>) -> Option<(usize, usize)> {
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
    pub fn with_grant<T>(&self, number: usize, base: usize, run: impl FnOnce(&mut Grant) -> T) -> Option<T> {
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

    /// Calls something with each other heap that a block lies in, once for every block.
    pub fn each_owner(&self, mut call: impl FnMut(&Rc<Core>)) {
        for lent in &self.lent {
            for lent in lent.borrow().values() {
                if let Source::Other(owner) = &lent.source {
                    call(owner);
                }
            }
        }
    }

    /// The script that gave a block of a domain, if one did.
    pub fn giver(&self, domain: Domain, address: usize) -> Option<u32> {
        self.lent[domain as usize].borrow().get(&address).map(|lent| lent.script)
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
        Some(layers[number].allocator())
    }

    /// The allocator that is in, whichever way its blocks go back to those who gave them.
    fn present(&self, heap: &ObjectHeap, domain: Domain) -> Allocator {
        let allocator = heap.allocator(domain);
        match self.target(&allocator) {
            Some(Target::Router(native)) => native,
            _ => allocator,
        }
    }

    /// What an allocator that is in calls, if it is one of the layers.
    fn target(&self, allocator: &Allocator) -> Option<Target> {
        let layers = self.layers.borrow();
        let at = allocator.ctx.cast_const().cast::<Layer>();
        layers.iter().find(|layer| ptr::eq(&raw const ***layer, at)).map(|layer| layer.target)
    }
}

/// Adds what a script needs of a heap's allocators to the handle.
pub(crate) fn methods(to: Table<'_>) -> Result<(), Failure> {
    method(to, c"presentAllocator", ["domain"], "number", present)?;
    method(to, c"setNative", ["domain", "number"], "boolean", set_native)?;
    method(to, c"setScript", ["domain", "script"], "void", set_script)?;
    method(to, c"nativeMalloc", ["number", "size"], "Address | null", malloc)?;
    method(to, c"nativeCalloc", ["number", "count", "size"], "Address | null", calloc)?;
    method(to, c"nativeRealloc", ["number", "address", "size"], "Address | null", realloc)?;
    method(to, c"nativeFree", ["number", "address"], "void", free)
}

fn no_room() -> Failure {
    Failure::no_memory("no memory to remember an allocator")
}

/// `(domain)`: the number of the allocator that is in. One of the heap's own has a number from 0 on, a script's one from -1 down.
fn present(core: &Core, env: Env, [domain]: [Value; 1]) -> Outcome {
    let domain = domain_named(env, domain)?;
    let native = core.allocators.present(core.heap()?, domain);
    if let Some(Target::Script(script)) = core.allocators.target(&native) {
        return env.number(-1.0 - f64::from(script));
    }
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
    empty_quarantine(core, heap)?;
    put_back(core, heap, domain, native)?;
    core.update_attention();
    env.boolean(true)
}

/// Gives back what waits, which the present allocators gave. A script's arena allocator may be asked to take arenas back for it.
///
/// # Errors
/// When the thread is being ended.
pub(crate) fn empty_quarantine(core: &Core, heap: &ObjectHeap) -> Result<(), Failure> {
    let done = heap.empty_quarantine();
    if let Some(failure) = core.arenas.take_failure(heap) {
        // Whoever freed those blocks was told long ago that it was done.
        core.tell(failure);
    }
    if done { Ok(()) } else { core.go_on() }
}

/// Puts an allocator back that has been in a domain: one of the heap's own, or a layer.
pub(crate) fn put_back(core: &Core, heap: &ObjectHeap, domain: Domain, allocator: Allocator) -> Result<(), Failure> {
    let allocators = &core.allocators;
    let mut allocator = allocator;
    if allocators.target(&allocator).is_none() {
        let number = allocators.number_of(allocator, domain).ok_or_else(no_room)?;
        allocators.settle(number, domain);
        let all = allocators.lent[domain as usize].borrow().is_empty() && heap.takes_back(domain, &allocator);
        if !all {
            allocator = allocators.layer(core, domain, Target::Router(allocator)).ok_or_else(no_room)?;
        }
    }
    // SAFETY: an allocator of the heap's own that takes back all of the domain's blocks, or a layer, which finds out who does.
    unsafe { heap.set_allocator(domain, allocator) };
    Ok(())
}

/// `(domain, number)`: puts a script's allocator in, to be called by its number.
fn set_script(core: &Core, env: Env, [domain, script]: [Value; 2]) -> Outcome {
    let (domain, script) = (domain_named(env, domain)?, args::size(env, "number", script)?);
    let heap = core.heap()?;
    empty_quarantine(core, heap)?;
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

/// Calls one of the heap's own allocators for a script, and finds what went wrong on the way; there may be a block all the same.
fn call_native(core: &Core, heap: &ObjectHeap, call: impl FnOnce() -> *mut c_void) -> (*mut c_void, Option<Failure>) {
    let before = core.arenas.take_failure(heap);
    let block = call();
    let failure = core.arenas.take_failure(heap).or_else(|| heap.take_fault().map(|fault| core.fault(fault)));
    if let Some(before) = before {
        fail(core, before);
    }
    (block, failure)
}

/// `(number, size)`
fn malloc(core: &Core, env: Env, [number, size]: [Value; 2]) -> Outcome {
    let (number, size) = (args::size(env, "number", number)?, args::size(env, "size", size)?);
    let (heap, native) = callable_of_heap(core, number)?;
    give(core, env, heap, (number, native), size, |size| {
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
    give(core, env, heap, (number, native), total, |_| {
        // SAFETY: as above.
        unsafe { (native.calloc)(native.ctx, count, size) }
    })
}

/// Gives memory to a script.
fn give(
    core: &Core,
    env: Env,
    heap: &ObjectHeap,
    (number, native): (usize, Allocator),
    size: usize,
    request: impl FnOnce(usize) -> *mut c_void,
) -> Outcome {
    if size > PY_SSIZE_T_MAX || !reserve(core, number) {
        return env.null();
    }
    let (address, failure) = call_native(core, heap, || request(size));
    if let Some(failure) = failure {
        if !address.is_null() {
            call_native(core, heap, || {
                // SAFETY: it gave this block just now, and nobody else knows it.
                unsafe { (native.free)(native.ctx, address) };
                ptr::null_mut()
            });
        }
        return Err(failure);
    }
    if address.is_null() {
        return env.null();
    }
    enter(core, number, address.expose_provenance(), size);
    core.report(env, heap);
    env.integer(address.expose_provenance())
}

pub(crate) fn reserve(core: &Core, number: usize) -> bool {
    let mut natives = core.allocators.natives.borrow_mut();
    natives.get_mut(number).is_some_and(|native| native.grants.try_reserve(1 + NESTED_MAX as usize).is_ok())
}

pub(crate) fn enter(core: &Core, number: usize, address: usize, size: usize) {
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
            Ok(()) if core.heap_between_calls().is_some() && core.allocators.present(heap, domain) == native => {
                return Ok(Held::Block(domain));
            }
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
        return give(core, env, heap, (number, native), size, |size| unsafe {
            (native.realloc)(native.ctx, ptr::null_mut(), size)
        });
    };
    if let Held::Block(domain) = held(core, heap, number, native, address)? {
        let block = core.realloc(env, heap, domain, Some(address), size)?;
        core.settle_realloc(heap, domain, block)?;
        return block.map_or_else(|| env.null(), |block| env.integer(block.addr().get()));
    }
    if size > PY_SSIZE_T_MAX || !reserve(core, number) {
        return env.null();
    }
    let place = ptr::with_exposed_provenance_mut::<c_void>(address);
    let resizing = core.allocators.resizing.borrow().iter().rposition(|block| (block.number, block.base) == (number, address));
    // Should the domain's realloc that this is part of fail yet, the block has at least what it was to have.
    let size = resizing.map_or(size, |index| {
        let block = core.allocators.resizing.borrow()[index];
        let offset = block.address - block.base;
        // One of no bytes has a place too, behind what the script has put before it.
        size.max(if offset == 0 { block.wanted } else { offset + block.wanted.max(1) })
    });
    // The block is nobody's while it moves.
    let grant = core.allocators.natives.borrow_mut().get_mut(number).and_then(|native| native.grants.remove(&address));
    // SAFETY: a block that this allocator gave, in which nothing lies that stays where it is.
    let (moved, failure) = call_native(core, heap, || unsafe { (native.realloc)(native.ctx, place, size) });
    let mut grant = grant.unwrap_or_default();
    let at = if moved.is_null() { address } else { moved.expose_provenance() };
    if !moved.is_null() {
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
    match failure {
        // It may have moved all the same.
        Some(failure) => Err(failure.at(at)),
        None if moved.is_null() => env.null(),
        None => env.integer(at),
    }
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
pub(crate) fn give_back(core: &Core, heap: &ObjectHeap, number: usize, native: Allocator, address: usize) -> Result<(), Failure> {
    let grant = core.allocators.natives.borrow_mut().get_mut(number).and_then(|native| native.grants.remove(&address));
    let (_, failure) = call_native(core, heap, || {
        // SAFETY: a block that this allocator gave, with nothing in it.
        unsafe { (native.free)(native.ctx, ptr::with_exposed_provenance_mut(address)) };
        ptr::null_mut()
    });
    match (failure, grant) {
        // Its guard bytes are damaged: it is not used again, and still there.
        (Some(failure), Some(grant)) if Domain::ALL.into_iter().any(|domain| heap.hook_of(domain, address).is_some()) => {
            enter(core, number, address, grant.size);
            Err(failure)
        }
        (failure, _) => {
            heap.note_freed(address);
            failure.map_or(Ok(()), Err)
        }
    }
}

/// Whether a block at an address lies in memory that a script's allocator gave.
pub(crate) fn is_lent(core: &Core, address: usize) -> bool {
    core.allocators.lent.iter().any(|lent| lent.borrow().contains_key(&address))
}

/// What the raw domain gave for a table of pymalloc's is needed no more: what a script gave is its grant's.
pub(crate) fn release_table(core: &Core, heap: &CheckedHeap, table: usize) {
    if core.allocators.lent[Domain::Raw as usize].borrow().contains_key(&table) {
        return;
    }
    let native = heap.hook_of(Domain::Raw, table).unwrap_or(core.allocators.own[Domain::Raw as usize]);
    // SAFETY: whoever gave it takes it back.
    unsafe { (native.free)(native.ctx, ptr::with_exposed_provenance_mut(table)) };
}

/// Asks a question only now and then; once the answer was yes, it stays so.
fn now_and_then(is_over: impl Fn() -> bool) -> impl FnMut() -> bool {
    const STRIDE: usize = 1 << 12;
    let (mut steps, mut given_up) = (0_usize, false);
    move || {
        steps += 1;
        given_up = given_up || (steps.is_multiple_of(STRIDE) && is_over());
        given_up
    }
}

/// Strikes out the grants for which `keeps`, which is given the native, its number and the grant's address, says no. False when it was given up.
fn retain_grants(
    core: &Core,
    mut is_over: impl FnMut() -> bool,
    mut keeps: impl FnMut(Allocator, usize, usize, &Grant) -> bool,
) -> bool {
    // Taken out, because JavaScript may run when somebody is asked.
    let mut natives = core.allocators.natives.take();
    for (number, native) in natives.iter_mut().enumerate() {
        native.grants.retain(|&base, grant| is_over() || keeps(native.allocator, number, base, grant));
    }
    core.allocators.natives.replace(natives);
    !is_over()
}

/// Forgets what scripts have not given back of what lies in the heap's arenas, when that is taken down and these are still there. False when
/// `is_over`, which is asked now and then, made it give up.
pub(crate) fn forget_in_arenas(core: &Core, heap: &ObjectHeap, is_over: impl Fn() -> bool) -> bool {
    retain_grants(core, now_and_then(is_over), |_, _, base, grant| {
        let below = heap.layers(base).last().unwrap_or(base);
        // An arena may begin where what it lies in does.
        grant.arenas != 0 || !heap.is_in_arena(below)
    })
}

/// Lets go of the rest, which arenas of other heaps may have lain in, when the heap's arenas are gone. False when `is_over`, which is asked now and
/// then, made it give up.
pub(crate) fn release(core: &Core, heap: &ObjectHeap, is_over: impl Fn() -> bool) -> bool {
    let raw = core.allocators.own[Domain::Raw as usize];
    let mut is_over = now_and_then(is_over);
    let done = retain_grants(core, &mut is_over, |native, number, base, grant| {
        // Where a layer of it is a script's to give, that has it from another grant.
        let from_script = |address| {
            let lent = |lent: &RefCell<GradualMap<Lent>>| {
                let own = |lent: &Lent| matches!(lent.source, Source::Grant(from, at) if (from, at) == (number, base));
                lent.borrow().get(&address).is_some_and(|lent| !own(lent))
            };
            core.allocators.lent.iter().any(lent)
        };
        if !grant.given_back && (native == raw || !heap.layers(base).any(from_script)) {
            let below = heap.layers(base).last().unwrap_or(base);
            // SAFETY: a block that the C library gave, of which this is the only record; nobody can use it any more.
            unsafe { (raw.free)(raw.ctx, ptr::with_exposed_provenance_mut(below)) };
        }
        false
    });
    done && core.allocators.lent.iter().all(|lent| {
        let mut blocks = lent.take();
        blocks.retain(|&address, lent| {
            let kept = is_over();
            if let (false, Source::Other(owner)) = (kept, &lent.source) {
                arena::unpin_block(owner, address);
            }
            kept
        });
        lent.replace(blocks);
        !is_over()
    })
}
