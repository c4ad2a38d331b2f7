//! The calls of a domain.

use std::ffi::CStr;
use std::ptr::NonNull;

use napi_sys as sys;
use obmalloc::{Domain, Fault, FaultKind, FieldKind, ObjectHeap, Value as FieldValue};

use super::objects::convert;
use super::table::methods;
use crate::bytes::Bytes;
use crate::core::views;
use crate::core::{Core, Mark};
use crate::failure::{Failure, code};
use crate::js::{Env, Outcome, UNDEFINED, Value};
use crate::shell::{Table, internal};

/// Adds an object `name` with the functions of domain number `D`.
pub(crate) fn methods<const D: u8>(to: Table<'_>, name: &CStr) -> Result<(), Failure> {
    let functions = Table { object: to.env.object()?, ..to };
    add_all::<D>(functions)?;
    to.env.freeze(functions.object)?;
    to.env.define(to.object, name, functions.object)
}

fn add_all<const D: u8>(to: Table<'_>) -> Result<(), Failure> {
    methods! { to,
        c"malloc"(size: size) -> "Address | null" = malloc<D>;
        c"calloc"(count: size, size: size) -> "Address | null" = calloc<D>;
        c"realloc"(address: address_or_null, size: size) -> "Address | null" = realloc<D>;
        c"free"(address: address_or_null) -> "void" = free<D>;
        c"usableSize"(address: address) -> "number" = usable_size<D>;
        c"view"(address: address) -> "Uint8Array" = view<D>;
        c"read"(address: address, offset: optional_given_size, length: optional_given_size) -> "Uint8Array" = read<D>;
        c"write"(address: address, bytes: value, offset: optional_given_size) -> "void" = write<D>;
        c"get"(address: address, kind: scalar, offset: optional_given_size) -> "number | bigint" = get<D>;
        c"set"(address: address, kind: scalar, value: value, offset: optional_given_size) -> "void" = set<D>;
    }
}

/// The domain with number `D`.
#[inline(always)]
const fn domain<const D: u8>() -> Domain {
    Domain::ALL[D as usize]
}

#[inline(always)]
fn malloc<const D: u8>(core: &Core, env: Env, size: usize) -> Outcome {
    let heap = core.heap()?;
    let block = heap.blocks().malloc(domain::<D>(), size);
    give(core, env, heap, domain::<D>(), block)
}

#[inline(always)]
fn calloc<const D: u8>(core: &Core, env: Env, count: usize, size: usize) -> Outcome {
    let heap = core.heap()?;
    let block = heap.blocks().calloc(domain::<D>(), count, size);
    give(core, env, heap, domain::<D>(), block)
}

#[inline(always)]
fn realloc<const D: u8>(core: &Core, env: Env, address: Option<usize>, size: usize) -> Outcome {
    let heap = core.heap()?;
    let block = core.realloc(env, heap, domain::<D>(), address, size)?;
    if core.needs_attention() {
        core.end_realloc(heap, domain::<D>(), block)?;
    }
    core.report(env, heap);
    block.map_or_else(|| env.null(), |block| env.integer(block.addr().get()))
}

#[inline(always)]
fn free<const D: u8>(core: &Core, env: Env, address: Option<usize>) -> Outcome {
    let heap = core.heap()?;
    match address {
        Some(address) => core.free(env, heap, domain::<D>(), address)?,
        None if core.needs_attention() => core.free_null(heap, domain::<D>())?,
        None => return Ok(UNDEFINED),
    }
    core.report_free(env, heap);
    Ok(UNDEFINED)
}

#[inline(always)]
fn usable_size<const D: u8>(core: &Core, env: Env, address: usize) -> Outcome {
    env.integer(core.usable_size(core.heap_to_look()?, domain::<D>(), address)?)
}

fn view<const D: u8>(core: &Core, env: Env, address: usize) -> Outcome {
    views::of_block(core, env, core.heap()?, domain::<D>(), address)
}

/// `(address, offset = 0, length = the rest)`: a copy of bytes of a block.
fn read<const D: u8>(
    core: &Core,
    env: Env,
    at: usize,
    (from, offset): (Option<usize>, Value),
    (wanted, length): (Option<usize>, Value),
) -> Outcome {
    let from = from.unwrap_or(0);
    let usable = core.size_to_copy(core.heap_to_look()?, domain::<D>(), at)?;
    let rest = part(usable, from, 0, offset)?;
    let count = wanted.unwrap_or(rest);
    part(usable, from, count, length)?;
    let (bytes, memory) = core.own_bytes(env, count)?;
    if count != 0 {
        // SAFETY: within a live block, checked just above, into fresh memory of that length.
        unsafe { core.copy_out(memory, std::ptr::with_exposed_provenance(at + from), count)? };
    }
    Ok(bytes)
}

/// `(address, bytes, offset = 0)`: copies bytes, which may be of the same block, into a block.
fn write<const D: u8>(core: &Core, env: Env, at: usize, bytes: Value, (to, offset): (Option<usize>, Value)) -> Outcome {
    let to = to.unwrap_or(0);
    // First, because JavaScript may run here.
    let heap = core.heap()?;
    let source = env
        .typed_array(bytes)
        .filter(|source| source.kind == sys::TypedarrayType::uint8_array)
        .ok_or_else(|| Failure::argument(code::INVALID_ARG_TYPE, "bytes", "a Uint8Array", bytes))?;
    let usable = core.size_to_copy(heap, domain::<D>(), at)?;
    part(usable, to, source.length, offset)?;
    if source.length != 0 {
        // SAFETY: within a live block, checked just above, from an array that no JavaScript has touched since its length was read.
        unsafe { core.copy_in(std::ptr::with_exposed_provenance_mut(at + to), Bytes::of(bytes, source), source.length)? };
    }
    Ok(UNDEFINED)
}

/// `(address, kind, offset = 0)`: a number in a block.
fn get<const D: u8>(core: &Core, env: Env, at: usize, kind: FieldKind, (from, offset): (Option<usize>, Value)) -> Outcome {
    let from = from.unwrap_or(0);
    let usable = core.size_to_copy(core.heap_to_look()?, domain::<D>(), at)?;
    part(usable, from, kind.size(), offset)?;
    let place: *const u8 = std::ptr::with_exposed_provenance(at + from);
    // SAFETY: within a live block, checked just above.
    unsafe {
        match kind {
            FieldKind::U8 => env.number(place.read().into()),
            FieldKind::I32 => env.number(place.cast::<i32>().read_unaligned().into()),
            FieldKind::U32 => env.number(place.cast::<u32>().read_unaligned().into()),
            FieldKind::F64 => env.number(place.cast::<f64>().read_unaligned()),
            FieldKind::I64 => env.new_bigint(place.cast::<i64>().read_unaligned()),
            FieldKind::Object => Err(internal()),
        }
    }
}

/// `(address, kind, value, offset = 0)`: puts a number into a block.
fn set<const D: u8>(
    core: &Core,
    env: Env,
    at: usize,
    kind: FieldKind,
    value: Value,
    (to, offset): (Option<usize>, Value),
) -> Outcome {
    let to = to.unwrap_or(0);
    let number = convert(env, kind, value)?;
    let heap = core.heap()?;
    let usable = core.size_to_copy(heap, domain::<D>(), at)?;
    part(usable, to, kind.size(), offset)?;
    let place: *mut u8 = std::ptr::with_exposed_provenance_mut(at + to);
    // SAFETY: within a live block, checked just above.
    unsafe {
        match (kind, number) {
            // In range, as `convert` has seen.
            (FieldKind::U8, FieldValue::Number(number)) => place.write(number as u8),
            (FieldKind::I32, FieldValue::Number(number)) => place.cast::<i32>().write_unaligned(number as i32),
            (FieldKind::U32, FieldValue::Number(number)) => place.cast::<u32>().write_unaligned(number as u32),
            (FieldKind::F64, FieldValue::Number(number)) => place.cast::<f64>().write_unaligned(number),
            (FieldKind::I64, FieldValue::Integer(number)) => place.cast::<i64>().write_unaligned(number),
            _ => return Err(internal()),
        }
    }
    Ok(UNDEFINED)
}

/// How many of `usable` bytes are left after `count` bytes at `offset`.
fn part(usable: usize, offset: usize, count: usize, received: Value) -> Result<usize, Failure> {
    usable.checked_sub(offset).and_then(|rest| rest.checked_sub(count)).ok_or_else(|| {
        let expected = format!("bytes within the {usable} of the block");
        Failure::argument(code::OUT_OF_RANGE, "offset and length", expected, received)
    })
}

#[inline(always)]
fn give(core: &Core, env: Env, heap: &ObjectHeap, domain: Domain, block: Option<NonNull<u8>>) -> Outcome {
    match block {
        Some(block) if !core.needs_attention() => {
            core.report(env, heap);
            env.integer(block.addr().get())
        }
        _ => give_attentively(core, env, heap, domain, block),
    }
}

#[cold]
fn give_attentively(core: &Core, env: Env, heap: &ObjectHeap, domain: Domain, block: Option<NonNull<u8>>) -> Outcome {
    core.end_request(heap, domain, block)?;
    core.report(env, heap);
    block.map_or_else(|| env.null(), |block| env.integer(block.addr().get()))
}

/// The domains' calls, which single calls and batches share.
impl Core {
    /// Called after a request that may have asked a script, or that debug hooks may have refused. Returns its failure.
    #[cold]
    pub fn end_request(&self, heap: &ObjectHeap, domain: Domain, block: Option<NonNull<u8>>) -> Result<(), Failure> {
        if block.is_none()
            && let Some(fault) = heap.take_fault()
        {
            // Pymalloc does not know that a request failed because of a broken link.
            let used = if fault.kind == FaultKind::HeapCorrupted { domain } else { fault.used };
            return Err(self.fault(Fault { used, ..fault }));
        }
        self.take_guest_failure(heap).map_or(Ok(()), |failure| Err(failure.in_domain(domain)))
    }

    #[inline(always)]
    pub fn realloc(
        &self,
        env: Env,
        heap: &ObjectHeap,
        domain: Domain,
        address: Option<usize>,
        size: usize,
    ) -> Result<Option<NonNull<u8>>, Failure> {
        if self.needs_attention() {
            return self.realloc_attentively(env, heap, domain, address, size);
        }
        heap.blocks().realloc(domain, address, size).map_err(|fault| self.fault(fault))
    }

    #[cold]
    fn realloc_attentively(
        &self,
        env: Env,
        heap: &ObjectHeap,
        domain: Domain,
        address: Option<usize>,
        size: usize,
    ) -> Result<Option<NonNull<u8>>, Failure> {
        views::sweep(self, heap);
        let blocks = heap.blocks();
        let resize = || blocks.realloc(domain, address, size).map_err(|fault| self.fault(fault));
        let Some(old) = address else {
            let block = resize()?;
            self.end_request(heap, domain, block)?;
            return Ok(block);
        };
        self.refuse_retired(domain, old)?;
        let mut view = match self.marks.borrow().get(&old) {
            Some(Mark::Viewed(view)) => Some(view.clone()),
            _ => None,
        };
        // The heap finds faults of the block, and adopts one that was given directly.
        let Ok(usable) = blocks.usable_size(domain, old) else { return resize() };
        let mut reachable = false;
        if let Some(known) = &view {
            blocks.check_realloc(domain, old).map_err(|fault| self.fault(fault))?;
            if heap.calls_guests() {
                // While a script gives arenas or blocks, JavaScript may run between the free of the old block and the end of the call. So the
                // view goes even if the call fails and the block stays.
                reachable = views::detach(self, env, old, known);
                if !reachable {
                    view = None;
                }
            } else {
                reachable = views::has_escaped(self, env, known);
            }
        }
        let block = if reachable {
            // A script holds a buffer over the old block that cannot be detached, so the C library must not free or move the block.
            let block = blocks.malloc(domain, size);
            if let (Some(block), Some(view)) = (block, view.as_ref()) {
                // SAFETY: both are live blocks with at least so many bytes.
                let copied = unsafe { self.copy(block.as_ptr(), std::ptr::with_exposed_provenance(old), usable.min(size)) };
                copied.inspect_err(|_| {
                    // A fault of the new block does not matter.
                    let _ = blocks.free(domain, block.addr().get());
                })?;
                views::retire(self, env, old, domain, view);
            }
            block
        } else {
            resize()?
        };
        let moved = block.is_some_and(|block| block.addr().get() != old);
        if let (Some(view), false, Some(block)) = (view, reachable, block) {
            let size = blocks.usable_size(domain, block.addr().get());
            if moved || size.is_ok_and(|size| !views::is_whole(self, env, &view, size)) {
                views::detach(self, env, old, &view);
            }
        }
        Ok(block)
    }

    /// Called after a `realloc`. Returns the failure of a script, which says where the block is, because it may have moved before.
    #[cold]
    pub fn end_realloc(&self, heap: &ObjectHeap, domain: Domain, block: Option<NonNull<u8>>) -> Result<(), Failure> {
        let Some(failure) = self.take_guest_failure(heap) else { return Ok(()) };
        let failure = failure.in_domain(domain);
        Err(match block {
            Some(block) => failure.at(block.addr().get()),
            None => failure,
        })
    }

    #[inline(always)]
    pub fn free(&self, env: Env, heap: &ObjectHeap, domain: Domain, address: usize) -> Result<(), Failure> {
        if self.needs_attention() {
            return self.free_attentively(env, heap, domain, address);
        }
        heap.blocks().free(domain, address).map_err(|fault| self.fault(fault))
    }

    /// Calls the allocator that is in with NULL.
    #[cold]
    fn free_null(&self, heap: &ObjectHeap, domain: Domain) -> Result<(), Failure> {
        heap.blocks().free_null(domain);
        self.take_guest_failure(heap).map_or(Ok(()), |failure| Err(failure.in_domain(domain)))
    }

    #[cold]
    fn free_attentively(&self, env: Env, heap: &ObjectHeap, domain: Domain, address: usize) -> Result<(), Failure> {
        views::sweep(self, heap);
        let blocks = heap.blocks();
        let view = match self.marks.borrow().get(&address) {
            Some(Mark::Retired(..)) => return Err(retired(FaultKind::DoubleFree, domain, address).into()),
            Some(Mark::Viewed(view)) => Some(view.clone()),
            None => None,
        };
        if let Some(view) = view {
            blocks
                .usable_size(domain, address)
                .map_err(|fault| self.fault(as_told(fault, blocks.check_free(domain, address))))?;
            blocks.check_free(domain, address).map_err(|fault| self.fault(fault))?;
            if views::detach(self, env, address, &view) {
                views::retire(self, env, address, domain, &view);
                return Ok(());
            }
        }
        blocks.free(domain, address).map_err(|fault| self.fault(fault))?;
        self.take_guest_failure(heap).map_or(Ok(()), |failure| Err(failure.in_domain(domain).at(address)))
    }

    pub fn usable_size(&self, heap: &ObjectHeap, domain: Domain, address: usize) -> Result<usize, Failure> {
        self.refuse_retired(domain, address)?;
        heap.blocks().usable_size(domain, address).map_err(|fault| self.fault(fault))
    }

    /// As [`usable_size`](Self::usable_size), also for memory that an allocator gave when it was called directly.
    fn size_to_copy(&self, heap: &ObjectHeap, domain: Domain, address: usize) -> Result<usize, Failure> {
        self.usable_size(heap, domain, address).or_else(|failure| {
            let own = if self.needs_attention() || heap.has_guests() { heap.own_allocators().ok() } else { None };
            own.and_then(|own| own.grant_size(address)).ok_or(failure)
        })
    }

    fn refuse_retired(&self, domain: Domain, address: usize) -> Result<(), Failure> {
        if self.needs_attention() && matches!(self.marks.borrow().get(&address), Some(Mark::Retired(..))) {
            return Err(retired(FaultKind::UseAfterFree, domain, address).into());
        }
        Ok(())
    }
}

/// The failure for a fault of a call that frees or resizes. It may have CPython's text.
fn as_told(fault: Fault, found: Result<(), Fault>) -> Fault {
    found.err().filter(|found| found.kind == fault.kind).unwrap_or(fault)
}

fn retired(kind: FaultKind, used: Domain, address: usize) -> Fault {
    Fault::new(kind, address, used)
}
