//! Types and objects. A type is given by its number, a field by its index.

#![forbid(unsafe_code)]

use napi_sys as sys;
use obmalloc::{Domain, Field, FieldKind, HookSet, ItemKind, ObjectError, ObjectHeap, TypeId, TypeSpec, Value as FieldValue};

use super::table::methods;
use crate::args;
use crate::core::views;
use crate::core::{Core, Mark};
use crate::failure::{Failure, code};
use crate::hooks::visit;
use crate::js::{Env, Outcome, UNDEFINED, Value};
use crate::shell::Table;

/// Adds the functions of types and objects. A type is given by its `number`.
pub(crate) fn methods(to: Table<'_>) -> Result<(), Failure> {
    methods! { to,
        c"defineType"(name: value, names: value, kinds: value, items: value, flags: value, freelist: value)
            -> "[number: number, basicsize: number, itemsize: number]" = define_type;
        c"describeType"(object: address) -> "[name: string, basicsize: number, itemsize: number]" = describe_type;
        c"typeOf"(object: address) -> "number" = type_of;
        c"alloc"(number: value, nitems: optional_given_size) -> "Address" = alloc;
        c"new"(number: value) -> "Address" = new;
        c"newVar"(number: value, nitems: given_size) -> "Address" = new_var;
        c"init"(number: value, memory: given_address) -> "Address" = init;
        c"initVar"(number: value, memory: address, nitems: given_size) -> "Address" = init_var;
        c"getField"(number: value, object: address, field: given_size) -> "Address | number | bigint | null" = get_field;
        c"getItem"(number: value, object: address, field: given_size) -> "Address | number | bigint | null" = get_item;
        c"setField"(number: value, object: address, field: size, value: value) -> "void" = set_field;
        c"setItem"(number: value, object: address, field: given_size, value: value) -> "void" = set_item;
        c"nitems"(number: value, object: address) -> "number" = nitems;
        c"incref"(object: address) -> "void" = incref;
        c"decref"(object: address) -> "void" = decref;
        c"refcount"(object: address) -> "number" = refcount;
        c"setImmortal"(object: address) -> "boolean" = set_immortal;
        c"visit"(referent: address_or_null) -> "void" = visit;
    }
}

fn internal() -> Failure {
    Failure::new(code::INTERNAL, "what the face of obmalloc gave its binding is not what it has to be")
}

/// The number, basic size and item size of a new type. Kinds are letters: o(bject), b (u8), i(32),
/// u(32), l (i64), f(64); items are `o`, `b` or nothing; flags are letters too.
#[allow(clippy::too_many_arguments, reason = "they are what JavaScript gives")]
fn define_type(
    core: &Core,
    env: Env,
    name: Value,
    names: Value,
    kinds: Value,
    items: Value,
    flags: Value,
    free_list: Value,
) -> Outcome {
    let text = |value| env.text(value).ok_or_else(|| Failure::no_memory("no memory for a type"));
    let (name, kinds, flags) = (text(name)?, text(kinds)?, text(flags)?);
    let mut fields = Vec::new();
    fields.try_reserve_exact(kinds.len()).map_err(|_| Failure::no_memory("no memory for a type"))?;
    for (index, kind) in kinds.bytes().enumerate() {
        let scope = env.open_scope();
        let name = env.element(names, index as u32).and_then(text);
        env.close_scope(scope);
        let kind = match kind {
            b'o' => FieldKind::Object,
            b'b' => FieldKind::U8,
            b'i' => FieldKind::I32,
            b'u' => FieldKind::U32,
            b'l' => FieldKind::I64,
            b'f' => FieldKind::F64,
            _ => return Err(internal()),
        };
        fields.push((name?, kind));
    }
    let items = match text(items)?.as_str() {
        "" => None,
        "o" => Some(ItemKind::Object),
        "b" => Some(ItemKind::Byte),
        _ => return Err(internal()),
    };
    let has = |flag| flags.contains(flag);
    let hooks = HookSet { traverse: has('t'), clear: has('c'), finalize: has('f'), del: has('d'), dealloc: has('x') };
    let spec = TypeSpec {
        name,
        fields,
        items,
        gc: has('g'),
        weakrefs: has('w'),
        managed_dict: has('m'),
        free_list: args::size(env, "spec.freeList", free_list)?,
        hooks,
    };
    let heap = core.objects()?;
    core.types.borrow_mut().try_reserve(1).map_err(|_| Failure::no_memory("no memory for a type"))?;
    let defined = heap.define_type(spec);
    core.note_types(heap);
    let kind = defined.map_err(|error| core.object_failure(error, "spec", UNDEFINED))?;
    core.types.borrow_mut().push(kind);
    let (info, array) = (heap.type_info(kind), env.array()?);
    for (index, number) in [kind.index(), info.basicsize(), info.itemsize()].into_iter().enumerate() {
        env.define_element(array, index as u32, env.integer(number)?)?;
    }
    Ok(array)
}

/// Name, basic size and item size of its type.
fn describe_type(core: &Core, env: Env, object: usize) -> Outcome {
    let heap = core.heap_to_look()?;
    let kind = heap.type_info(heap.type_of(object).map_err(|fault| core.fault(fault))?);
    let array = env.array()?;
    env.define_element(array, 0, env.string(kind.name())?)?;
    env.define_element(array, 1, env.integer(kind.basicsize())?)?;
    env.define_element(array, 2, env.integer(kind.itemsize())?)?;
    Ok(array)
}

/// The number of its type, 0 for a weak reference.
fn type_of(core: &Core, env: Env, object: usize) -> Outcome {
    env.integer(core.heap_to_look()?.type_of(object).map_err(|fault| core.fault(fault))?.index())
}

impl Core {
    /// The type with a number of JavaScript's.
    fn kind(&self, env: Env, number: Value) -> Result<TypeId, Failure> {
        let index = env.double(number).ok_or_else(internal)? as usize;
        // Number 0 is the weak reference, which JavaScript does not define.
        index.checked_sub(1).and_then(|index| self.types.borrow().get(index).copied()).ok_or_else(|| {
            Failure::new(code::WRONG_TYPE, "expected a type from defineType; weak references are made by gc.newWeakref")
        })
    }

    /// The object at `address`, which must be of the type with that number.
    fn object_of(&self, env: Env, heap: &ObjectHeap, number: Value, address: usize) -> Result<(), Failure> {
        let found = heap.type_of(address).map_err(|fault| self.fault(fault))?;
        if env.double(number).is_some_and(|number| number as usize == found.index()) {
            return Ok(());
        }
        let message = format!("{address:#x} is an object of {}, not of the type that was used", heap.type_info(found).name());
        Err(Failure::new(code::WRONG_TYPE, message).at(address))
    }

    /// Returns a new object, or the failure.
    fn give_object(
        &self,
        env: Env,
        heap: &ObjectHeap,
        made: Result<usize, ObjectError>,
        (name, value): (&'static str, Value),
    ) -> Outcome {
        self.end_object_call(env, heap, made.ok())?;
        env.integer(made.map_err(|error| self.object_failure(error, name, value))?)
    }
}

fn alloc(core: &Core, env: Env, number: Value, (nitems, count): (Option<usize>, Value)) -> Outcome {
    let heap = core.objects()?;
    let made = heap.alloc(core.kind(env, number)?, nitems.unwrap_or(0));
    core.give_object(env, heap, made, ("nitems", count))
}

fn new(core: &Core, env: Env, number: Value) -> Outcome {
    let heap = core.objects()?;
    let made = heap.new_object(core.kind(env, number)?);
    core.give_object(env, heap, made, ("type", number))
}

fn new_var(core: &Core, env: Env, number: Value, (nitems, count): (usize, Value)) -> Outcome {
    let heap = core.objects()?;
    let made = heap.new_var(core.kind(env, number)?, nitems);
    core.give_object(env, heap, made, ("nitems", count))
}

fn init(core: &Core, env: Env, number: Value, (address, memory): (usize, Value)) -> Outcome {
    let heap = core.objects()?;
    let kind = core.kind(env, number)?;
    make_room(core, env, heap, kind, (address, 0), ("memory", memory))?;
    let made = heap.init(kind, address);
    core.give_object(env, heap, made, ("memory", memory))
}

fn init_var(core: &Core, env: Env, number: Value, address: usize, (nitems, count): (usize, Value)) -> Outcome {
    let heap = core.objects()?;
    let kind = core.kind(env, number)?;
    make_room(core, env, heap, kind, (address, nitems), ("nitems", count))?;
    let made = heap.init_var(kind, address, nitems);
    core.give_object(env, heap, made, ("nitems", count))
}

/// Called before a block becomes an object. It detaches the block's view, so that JavaScript cannot write into the object.
fn make_room(
    core: &Core,
    env: Env,
    heap: &ObjectHeap,
    kind: TypeId,
    (block, nitems): (usize, usize),
    (argument, received): (&'static str, Value),
) -> Result<(), Failure> {
    if !core.needs_attention() {
        return Ok(());
    }
    core.usable_size(heap, Domain::Obj, block)?;
    // If the block would be refused, its view stays.
    heap.check_init(kind, block, nitems).map_err(|error| core.object_failure(error, argument, received))?;
    let view = match core.marks.borrow().get(&block) {
        Some(Mark::Viewed(view)) => view.clone(),
        _ => return Ok(()),
    };
    if views::detach(core, env, block, &view) {
        let message = "expected memory that no buffer in JavaScript can reach";
        return Err(Failure::new(code::REENTRANT, message).at(block).in_domain(Domain::Obj));
    }
    Ok(())
}

fn get_field(core: &Core, env: Env, number: Value, address: usize, (field, received): (usize, Value)) -> Outcome {
    get(core, env, number, address, Field::Member(field), received)
}

fn get_item(core: &Core, env: Env, number: Value, address: usize, (item, received): (usize, Value)) -> Outcome {
    get(core, env, number, address, Field::Item(item), received)
}

fn get(core: &Core, env: Env, number: Value, address: usize, field: Field<'_>, received: Value) -> Outcome {
    let heap = core.heap_to_look()?;
    core.object_of(env, heap, number, address)?;
    match heap.get(address, field).map_err(|error| core.object_failure(error, "field", received))? {
        FieldValue::Null => env.null(),
        FieldValue::Object(address) => env.integer(address),
        FieldValue::Number(number) => env.number(number),
        FieldValue::Integer(number) => env.new_bigint(number),
    }
}

fn set_field(core: &Core, env: Env, number: Value, address: usize, index: usize, value: Value) -> Outcome {
    let heap = core.objects()?;
    core.object_of(env, heap, number, address)?;
    let kind = heap.type_info(core.kind(env, number)?).fields().get(index).ok_or_else(internal)?.kind;
    set(core, env, heap, address, Field::Member(index), convert(env, kind, value)?, ("value", value))
}

fn set_item(core: &Core, env: Env, number: Value, address: usize, (place, index): (usize, Value), value: Value) -> Outcome {
    let heap = core.objects()?;
    core.object_of(env, heap, number, address)?;
    let kind = match heap.type_info(core.kind(env, number)?).items() {
        Some(ItemKind::Object) => FieldKind::Object,
        Some(ItemKind::Byte) => FieldKind::U8,
        None => return Err(Failure::argument(code::OUT_OF_RANGE, "field", "a field: the type has no items", index)),
    };
    set(core, env, heap, address, Field::Item(place), convert(env, kind, value)?, ("field", index))
}

fn set(
    core: &Core,
    env: Env,
    heap: &ObjectHeap,
    address: usize,
    field: Field<'_>,
    value: FieldValue,
    (name, received): (&'static str, Value),
) -> Outcome {
    let done = heap.set(address, field, value);
    core.end_object_call(env, heap, None)?;
    done.map_err(|error| core.object_failure(error, name, received))?;
    Ok(UNDEFINED)
}

/// Converts the value for a field.
pub(super) fn convert(env: Env, kind: FieldKind, value: Value) -> Result<FieldValue, Failure> {
    let (converted, expected) = match kind {
        FieldKind::Object => {
            let address = args::address_or_null(env, value).map_err(|failure| failure.named("value"))?;
            return Ok(address.map_or(FieldValue::Null, FieldValue::Object));
        }
        FieldKind::U8 => (whole(env, value, 0.0, f64::from(u8::MAX)), "an integer from 0 to 255"),
        FieldKind::I32 => (whole(env, value, f64::from(i32::MIN), f64::from(i32::MAX)), "an integer from -2**31 to 2**31 - 1"),
        FieldKind::U32 => (whole(env, value, 0.0, f64::from(u32::MAX)), "an integer from 0 to 2**32 - 1"),
        FieldKind::F64 => (env.double(value).map(FieldValue::Number), "a number"),
        FieldKind::I64 => {
            let number = whole(env, value, -args::MAX_SAFE_INTEGER, args::MAX_SAFE_INTEGER);
            let number = match number {
                Some(FieldValue::Number(number)) => Some(number as i64),
                _ => env.signed_bigint(value),
            };
            (number.map(FieldValue::Integer), "a BigInt from -2n**63n to 2n**63n - 1n, or an integer that is safe")
        }
    };
    converted.ok_or_else(|| {
        let is_number = match env.type_of(value) {
            sys::ValueType::napi_number => true,
            sys::ValueType::napi_bigint => kind == FieldKind::I64,
            _ => false,
        };
        Failure::argument(if is_number { code::OUT_OF_RANGE } else { code::INVALID_ARG_TYPE }, "value", expected, value)
    })
}

/// An integer in a range.
fn whole(env: Env, value: Value, least: f64, most: f64) -> Option<FieldValue> {
    env.double(value).filter(|number| (least..=most).contains(number) && number.trunc() == *number).map(FieldValue::Number)
}

fn nitems(core: &Core, env: Env, number: Value, address: usize) -> Outcome {
    let heap = core.heap_to_look()?;
    core.object_of(env, heap, number, address)?;
    env.integer(heap.nitems(address).map_err(|fault| core.fault(fault))?)
}

fn incref(core: &Core, _: Env, address: usize) -> Outcome {
    core.objects()?.incref(address).map_err(|fault| core.fault(fault))?;
    Ok(UNDEFINED)
}

fn decref(core: &Core, env: Env, address: usize) -> Outcome {
    let heap = core.objects()?;
    heap.decref(address).map_err(|fault| core.fault(fault))?;
    core.end_object_call(env, heap, None)?;
    Ok(UNDEFINED)
}

fn refcount(core: &Core, env: Env, address: usize) -> Outcome {
    env.integer(core.heap_to_look()?.refcount(address).map_err(|fault| core.fault(fault))?)
}

fn set_immortal(core: &Core, env: Env, address: usize) -> Outcome {
    env.boolean(core.objects()?.set_immortal(address).map_err(|fault| core.fault(fault))?)
}
