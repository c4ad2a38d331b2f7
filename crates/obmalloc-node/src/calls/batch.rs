//! Many operations in one call.

use std::cell::Cell;
use std::marker::PhantomData;

use napi_sys as sys;
use obmalloc::{Domain, ObjectHeap};

use crate::bytes::Bytes;
use crate::core::Core;
use crate::failure::{Failure, code};
use crate::js::{Env, Outcome, UNDEFINED, Value};

/// How many numbers an operation has: verb, domain, slot, size.
const OPERATION: usize = 4;
/// Operations between two looks whether the thread is being ended.
const STRIDE: usize = 1 << 12;
/// Slots that a heap may have.
const SLOTS_MAX: usize = 1 << 24;

/// The numbers of an array. It is looked up again whenever JavaScript may have run or a buffer has been detached.
struct Numbers<T> {
    value: Value,
    kind: sys::napi_typedarray_type,
    bytes: Bytes,
    length: usize,
    of: PhantomData<T>,
}

impl<T: Copy> Numbers<T> {
    fn new(env: Env, value: Value, kind: sys::napi_typedarray_type) -> Option<Self> {
        let mut numbers = Self { value, kind, bytes: Bytes::NONE, length: 0, of: PhantomData };
        numbers.look(env).then_some(numbers)
    }

    fn look(&mut self, env: Env) -> bool {
        match env.typed_array(self.value) {
            Some(array) if array.kind == self.kind => {
                (self.bytes, self.length) = (Bytes::of(self.value, array), array.length);
                true
            }
            _ => false,
        }
    }

    /// `N` numbers from `index` on.
    #[inline(always)]
    fn get<const N: usize>(&self, index: usize) -> Option<[T; N]> {
        // SAFETY: below the length, which is valid since the last look. The numbers are checked after they have been read.
        (index + N <= self.length).then(|| unsafe { self.bytes.get(index * size_of::<T>()) })
    }

    #[inline(always)]
    fn set(&self, index: usize, value: T) {
        if index < self.length {
            // SAFETY: as above.
            unsafe { self.bytes.set(index * size_of::<T>(), value) };
        }
    }
}

/// `(ops: Uint32Array, addresses?: Float64Array)`
pub(crate) fn run(core: &Core, env: Env, ops: Value, addresses: Value) -> Outcome {
    let invalid = |name, expected: &'static str, value| Failure::argument(code::INVALID_ARG_TYPE, name, expected, value);
    // First, because JavaScript may run here.
    let heap = core.heap()?;
    let operations =
        Numbers::<u32>::new(env, ops, sys::TypedarrayType::uint32_array).ok_or_else(|| invalid("ops", "a Uint32Array", ops))?;
    let results = match env.type_of(addresses) {
        sys::ValueType::napi_undefined => None,
        _ => Some(
            Numbers::<f64>::new(env, addresses, sys::TypedarrayType::float64_array)
                .ok_or_else(|| invalid("addresses", "a Float64Array", addresses))?,
        ),
    };
    if !operations.length.is_multiple_of(OPERATION) {
        let expected = "four numbers for every operation";
        return Err(Failure::argument(code::OUT_OF_RANGE, "ops.length", expected, env.integer(operations.length)?));
    }
    let index = Cell::new(0);
    let result = run_all(core, env, heap, operations, results, &index);
    core.report(env, heap);
    result.map_err(|failure| failure.in_operation(index.get()))?;
    Ok(UNDEFINED)
}

fn run_all(
    core: &Core,
    env: Env,
    heap: &ObjectHeap,
    mut operations: Numbers<u32>,
    mut results: Option<Numbers<f64>>,
    index: &Cell<usize>,
) -> Result<(), Failure> {
    let count = operations.length / OPERATION;
    let (mut number, mut pause) = (0, STRIDE);
    loop {
        if !core.needs_attention() {
            number = run_plainly(heap, &operations, results.as_ref(), &mut core.slots.borrow_mut(), number, pause);
        }
        if number >= count {
            return Ok(());
        }
        index.set(number);
        if number >= pause {
            pause = number + STRIDE;
            let disturbances = core.disturbances.get();
            core.go_on()?;
            if core.disturbances.get() != disturbances {
                look_again(env, &mut operations, &mut results);
            }
        }
        let Some([verb, domain, slot, size]) = operations.get::<OPERATION>(number * OPERATION) else {
            return Err(Failure::new(
                code::OUT_OF_RANGE,
                "expected ops that stay as they are, but they became shorter during the call",
            ));
        };
        let (slot, size) = (slot as usize, size as usize);
        let Some(domain) = domain_of(domain) else {
            return Err(out_of_range(env, "domain", "0 (raw), 1 (mem) or 2 (obj)", domain));
        };
        if slot >= core.slots.borrow().len() {
            make_room(env, &mut core.slots.borrow_mut(), slot)?;
        }
        if let Some(results) = &results
            && slot >= results.length
        {
            return Err(out_of_range(env, "slot", "a number below addresses.length", slot as u32));
        }
        // Only if this is set can an operation run JavaScript or detach a buffer.
        let attentive = core.needs_attention();
        let held = core.slots.borrow()[slot];
        let disturbances = core.disturbances.get();
        let block = match verb {
            0 => heap.blocks().malloc(domain, size),
            1 => heap.blocks().calloc(domain, 1, size),
            2 => core.realloc(env, heap, domain, Some(held).filter(|&address| address != 0), size)?,
            3 => {
                if held != 0 {
                    core.free(env, heap, domain, held)?;
                }
                None
            }
            _ => return Err(out_of_range(env, "verb", "0 (malloc), 1 (calloc), 2 (realloc) or 3 (free)", verb)),
        };
        if attentive && core.disturbances.get() != disturbances {
            look_again(env, &mut operations, &mut results);
        }
        number += 1;
        if verb == 3 {
            continue;
        }
        if (attentive || block.is_none()) && verb != 2 {
            core.end_request(heap, domain, block)?;
        }
        let address = block.map_or(0, |block| block.addr().get());
        // A realloc that failed has left the old block where it was.
        if address != 0 || verb != 2 {
            core.slots.borrow_mut()[slot] = address;
        }
        if let Some(results) = &results {
            results.set(slot, address as i64 as f64);
        }
        if attentive && verb == 2 {
            core.end_realloc(heap, domain, block)?;
        }
    }
}

/// Makes the operations from `number` on while each needs no more than a look at its address. Returns the number of the first that needs more,
/// at most `pause`.
fn run_plainly(
    heap: &ObjectHeap,
    operations: &Numbers<u32>,
    results: Option<&Numbers<f64>>,
    slots: &mut [usize],
    mut number: usize,
    pause: usize,
) -> usize {
    let slots = match results {
        Some(results) if results.length < slots.len() => &mut slots[..results.length],
        _ => slots,
    };
    while number < pause
        && let Some([verb, domain, slot, size]) = operations.get::<OPERATION>(number * OPERATION)
    {
        let (Some(domain), Some(place)) = (domain_of(domain), slots.get_mut(slot as usize)) else { break };
        let size = size as usize;
        let block = match verb {
            // The caller finds out why a request failed.
            0 => match heap.blocks().malloc(domain, size) {
                None if heap.is_corrupted() => break,
                block => block,
            },
            3 if *place == 0 || heap.blocks().free(domain, *place).is_ok() => {
                number += 1;
                continue;
            }
            _ => break,
        };
        *place = block.map_or(0, |block| block.addr().get());
        if let Some(results) = results {
            results.set(slot as usize, *place as i64 as f64);
        }
        number += 1;
    }
    number
}

#[inline(always)]
fn domain_of(number: u32) -> Option<Domain> {
    match number {
        0 => Some(Domain::Raw),
        1 => Some(Domain::Mem),
        2 => Some(Domain::Obj),
        _ => None,
    }
}

#[cold]
fn look_again(env: Env, operations: &mut Numbers<u32>, results: &mut Option<Numbers<f64>>) {
    let scope = env.open_scope();
    if !operations.look(env) {
        operations.length = 0;
    }
    if let Some(numbers) = results
        && !numbers.look(env)
    {
        numbers.length = 0;
    }
    env.close_scope(scope);
}

#[cold]
fn make_room(env: Env, slots: &mut Vec<usize>, slot: usize) -> Result<(), Failure> {
    if slot >= SLOTS_MAX {
        return Err(out_of_range(env, "slot", "a number below 2**24", slot as u32));
    }
    let length = (slot + 1).next_power_of_two();
    slots.try_reserve_exact(length - slots.len()).map_err(|_| Failure::no_memory("no memory for the slots"))?;
    slots.resize(length, 0);
    Ok(())
}

#[cold]
fn out_of_range(env: Env, name: &'static str, expected: &'static str, received: u32) -> Failure {
    match env.number(f64::from(received)) {
        Ok(value) => Failure::argument(code::OUT_OF_RANGE, name, expected, value),
        Err(failure) => failure,
    }
}
