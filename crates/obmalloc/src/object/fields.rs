//! Reading and writing fields and items.

use alloc::vec::Vec;
use core::ptr;

use super::handle::{Object, Quiet};
use super::{FieldKind, ItemKind, ObjectError, ObjectHeap, object_fault, table};
use crate::address_hash::AddressMap;
use crate::domain::{Fault, FaultKind};
use crate::heap::Mode;
use crate::interrupt::STRIDE;

/// Which field of an object, or which item.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Field<'a> {
    /// The field with this name.
    Name(&'a str),
    /// The field with this index, in the order of the type's spec.
    Member(usize),
    /// The item with this index.
    Item(usize),
}

/// What a field or item holds.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Value {
    /// NULL, in a field for an object.
    Null,
    /// An object.
    Object(usize),
    /// The value of an 8- or 32-bit integer, a floating-point number or a byte.
    Number(f64),
    /// The value of a 64-bit integer.
    Integer(i64),
}

/// The address and kind of a field or item.
#[derive(Clone, Copy)]
enum Place {
    Field(FieldKind, usize),
    Byte(usize),
}

impl ObjectHeap {
    fn place(&self, object: Object<'_>, field: Field<'_>) -> Result<Place, ObjectError> {
        let (kind, begin) = (object.kind(), object.address());
        match field {
            Field::Name(name) => kind
                .fields()
                .iter()
                .find(|field| field.name == name)
                .map(|field| Place::Field(field.kind, begin + field.offset))
                .ok_or(ObjectError::Argument("the name of a field of the object's type")),
            Field::Member(index) => kind
                .fields()
                .get(index)
                .map(|field| Place::Field(field.kind, begin + field.offset))
                .ok_or(ObjectError::Argument("the number of a field of the object's type")),
            Field::Item(index) => {
                if index >= object.nitems() {
                    return Err(ObjectError::Argument("the number of an item of the object"));
                }
                let address = begin + kind.items_offset + index * kind.itemsize();
                Ok(match kind.items() {
                    Some(ItemKind::Object) => Place::Field(FieldKind::Object, address),
                    _ => Place::Byte(address),
                })
            }
        }
    }

    /// The value of a field or item. If it is an object, no new reference is made.
    ///
    /// # Errors
    /// When `object` is no object, or has no such field.
    pub fn get(&self, object: usize, field: Field<'_>) -> Result<Value, ObjectError> {
        let quiet = self.quiet();
        let place = self.place(self.look_open(object, &quiet)?, field)?;
        // SAFETY: by invariant 2 of handles the field or item lies within the object; it is aligned.
        unsafe {
            Ok(match place {
                Place::Field(FieldKind::Object, at) => match *pointer::<usize>(at) {
                    0 => Value::Null,
                    reference => Value::Object(reference),
                },
                Place::Field(FieldKind::U8, at) | Place::Byte(at) => Value::Number((*pointer::<u8>(at)).into()),
                Place::Field(FieldKind::I32, at) => Value::Number((*pointer::<i32>(at)).into()),
                Place::Field(FieldKind::U32, at) => Value::Number((*pointer::<u32>(at)).into()),
                Place::Field(FieldKind::F64, at) => Value::Number(*pointer::<f64>(at)),
                Place::Field(FieldKind::I64, at) => Value::Integer(*pointer::<i64>(at)),
            })
        }
    }

    /// Sets a field or item. If it holds objects, it first gets a new reference to the new object, and then gives back the reference to the old
    /// one (`Py_XSETREF`).
    ///
    /// # Errors
    /// When `object` or the value is no object, or the object has no such field for such a value. When the object is being destroyed and the
    /// value is an object.
    #[doc(alias = "Py_CLEAR")]
    pub fn set(&self, object: usize, field: Field<'_>, value: Value) -> Result<(), ObjectError> {
        // A `tp_dealloc` may give the object's references back.
        let gives_back = !matches!(value, Value::Object(_)) && self.table().state(object) == table::DYING;
        let mut quiet = self.change(if gives_back { 0 } else { object })?;
        let found = if gives_back { self.look(object, &quiet)? } else { self.look_alive(object, &quiet)? };
        let place = self.place(found, field)?;
        let new = match value {
            Value::Object(reference) => Some(self.look_alive(reference, &quiet)?),
            _ => None,
        };
        // SAFETY: by invariant 2 of handles the field or item lies within the object; it is aligned. Invariant 3 holds afterwards, because
        // `new` is NULL or an object that was looked up above.
        unsafe {
            match (place, value) {
                (Place::Field(FieldKind::Object, at), Value::Null | Value::Object(_)) => {
                    if let Some(new) = new {
                        self.incref_object(new);
                    }
                    let old = core::mem::replace(&mut *pointer::<usize>(at), new.map_or(0, Object::address));
                    self.xdecref(old, &mut quiet);
                }
                (Place::Field(FieldKind::U8, at) | Place::Byte(at), Value::Number(number)) => {
                    *pointer::<u8>(at) = integer(FieldKind::U8, number, 0, u8::MAX.into())? as u8;
                }
                (Place::Field(FieldKind::I32, at), Value::Number(number)) => {
                    *pointer::<i32>(at) = integer(FieldKind::I32, number, i32::MIN.into(), i32::MAX.into())? as i32;
                }
                (Place::Field(FieldKind::U32, at), Value::Number(number)) => {
                    *pointer::<u32>(at) = integer(FieldKind::U32, number, 0, u32::MAX.into())? as u32;
                }
                (Place::Field(FieldKind::F64, at), Value::Number(number)) => *pointer::<f64>(at) = number,
                (Place::Field(FieldKind::I64, at), Value::Integer(integer)) => *pointer::<i64>(at) = integer,
                (Place::Field(kind, _), _) => return Err(ObjectError::Argument(expected(kind))),
                (Place::Byte(_), _) => return Err(ObjectError::Argument(expected(FieldKind::U8))),
            }
        }
        Ok(())
    }

    /// The objects that an object holds references to, as its type's `tp_traverse` visits them.
    ///
    /// # Errors
    /// When a hook fails, or there is no memory.
    pub(crate) fn references(&self, object: Object<'_>, quiet: &Quiet<'_>) -> Result<Vec<usize>, ObjectError> {
        if object.kind().hooks.traverse {
            return self.visited(object, quiet);
        }
        let mut references = Vec::new();
        let mut failed = false;
        self.try_each_reference(object, |reference| {
            failed |= references.try_reserve(1).is_err();
            if !failed {
                references.push(reference);
            }
        })?;
        if failed { Err(ObjectError::NoMemory) } else { Ok(references) }
    }

    /// As [`each_reference`](Object::each_reference), but can be interrupted.
    ///
    /// # Errors
    /// When it is interrupted.
    #[inline(always)]
    pub(crate) fn try_each_reference(&self, object: Object<'_>, mut visit: impl FnMut(usize)) -> Result<(), ObjectError> {
        let nitems = object.nitems();
        if nitems <= STRIDE {
            object.each_reference(visit);
            return self.go_on_after(nitems);
        }
        let mut index = 0;
        while let Some(reference) = object.reference_at(index).map(|slot| slot.get()) {
            if reference != 0 {
                visit(reference);
            }
            index += 1;
            self.go_on_after(1)?;
        }
        Ok(())
    }

    /// The objects that the type's hook visits, checked to be objects that this object refers to.
    pub(crate) fn visited(&self, object: Object<'_>, quiet: &Quiet<'_>) -> Result<Vec<usize>, ObjectError> {
        let mut visited = Vec::new();
        let mut fault: Option<Fault> = None;
        let mut no_memory = false;
        let mut visit = |reference: usize| {
            if let Err(found) = self.look(reference, quiet) {
                fault.get_or_insert(found);
                return Err(found);
            }
            no_memory |= visited.try_reserve(1).is_err();
            if !no_memory {
                visited.push(reference);
            }
            Ok(())
        };
        let before = self.mode().replace(Mode::Traversing);
        let (id, address) = (object.kind().id(), object.address());
        let done = self.run_hook(|hooks| hooks.traverse(self, id, address, &mut visit));
        if self.mode().get() == Mode::Traversing {
            self.mode().set(before);
        }
        match (fault, done) {
            (Some(fault), _) => Err(fault.into()),
            (None, Err(_)) => Err(ObjectError::Aborted),
            (None, Ok(())) if no_memory => Err(ObjectError::NoMemory),
            (None, Ok(())) => self.refuse_over_visit(object, visited),
        }
    }

    /// Refuses a reference that is visited more often than the object holds it: it would make a live object look unreachable.
    fn refuse_over_visit(&self, object: Object<'_>, visited: Vec<usize>) -> Result<Vec<usize>, ObjectError> {
        // For each object, how often it is visited beyond the references held. Sorting would be simpler, but cannot be interrupted.
        let mut over = AddressMap::<usize>::default();
        over.try_reserve(visited.len()).map_err(|_| ObjectError::NoMemory)?;
        for &reference in &visited {
            *over.entry(reference).or_default() += 1;
            self.go_on_after(1)?;
        }
        self.try_each_reference(object, |reference| {
            if let Some(count) = over.get_mut(&reference) {
                *count = count.saturating_sub(1);
            }
        })?;
        for &reference in &visited {
            if over[&reference] > 0 {
                return Err(Fault { base: Some(object.address()), ..object_fault(FaultKind::GcOverVisit, reference) }.into());
            }
            self.go_on_after(1)?;
        }
        Ok(visited)
    }
}

fn pointer<T>(address: usize) -> *mut T {
    ptr::with_exposed_provenance_mut(address)
}

/// A number as an integer in the range of a field.
///
/// # Errors
/// When it is none.
fn integer(kind: FieldKind, number: f64, least: i64, most: i64) -> Result<i64, ObjectError> {
    let whole = number as i64;
    let fits = whole as f64 == number && (least..=most).contains(&whole);
    if fits { Ok(whole) } else { Err(ObjectError::Argument(expected(kind))) }
}

fn expected(kind: FieldKind) -> &'static str {
    match kind {
        FieldKind::Object => "an object or null",
        FieldKind::U8 => "an integer from 0 to 255",
        FieldKind::I32 => "an integer from -2**31 to 2**31 - 1",
        FieldKind::U32 => "an integer from 0 to 2**32 - 1",
        FieldKind::I64 => "an integer from -2**63 to 2**63 - 1",
        FieldKind::F64 => "a number",
    }
}
