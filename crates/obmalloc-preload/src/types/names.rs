//! The name of a type: `module.qualname`, as the type object has it.

use super::{DICT, Dicts, FLAGS, HEAP_TYPE, NAME, word};
use crate::python::{Object, symbol};
use crate::text::{MOST_BYTES, Text, Texts};
use std::ffi::{CStr, c_char};

/// The most bytes of a name.
pub const MOST_NAME: usize = 2 * MOST_BYTES + 1;

/// `PyType_GetQualName`
type GetQualName = unsafe extern "C" fn(Object) -> Object;

/// How a release has the qualified name of a type that Python code made.
#[derive(Clone, Copy)]
pub enum Names {
    /// At this offset of the type object (`ht_qualname`).
    At(usize),
    /// From `PyType_GetQualName`, which returns a new reference.
    Asked(GetQualName),
}

/// A name, in memory of its own.
pub struct Name {
    bytes: [u8; MOST_NAME],
    length: usize,
}

impl Name {
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    fn put(&mut self, more: &[u8]) {
        let room = &mut self.bytes[self.length..];
        let count = more.len().min(room.len());
        room[..count].copy_from_slice(&more[..count]);
        self.length += count;
    }
}

impl Names {
    /// `None` if this CPython does not export them.
    pub fn find(minor: u32) -> Option<Self> {
        match minor {
            8 => Some(Self::At(864)),
            9 => Some(Self::At(856)),
            10 => Some(Self::At(864)),
            // SAFETY: the function of that name.
            _ => symbol(c"PyType_GetQualName").map(|at| Self::Asked(unsafe { std::mem::transmute::<Object, GetQualName>(at) })),
        }
    }

    /// The name of a type. Empty if the type has none that can be read.
    ///
    /// # Safety
    /// `kind` is a type object, and the GIL is held.
    pub unsafe fn of(self, kind: usize, texts: &Texts, dicts: Dicts) -> Name {
        let mut name = Name { bytes: [0; MOST_NAME], length: 0 };
        // SAFETY: the caller's promise.
        if unsafe { word(kind + FLAGS) } & HEAP_TYPE == 0 {
            // SAFETY: the name of a type that C code made is in memory that stays; it includes the module.
            name.put(unsafe { CStr::from_ptr(word(kind + NAME) as *const c_char) }.to_bytes());
            return name;
        }
        // SAFETY: the caller's promise, for a type that Python code made.
        let Some(qualified) = (unsafe { self.qualified(kind, texts) }) else { return name };
        // SAFETY: as above.
        let module = unsafe { module(kind, texts, dicts) };
        if let Some(module) = module.filter(|module| !module.is("builtins")) {
            name.put(module.as_str().as_bytes());
            name.put(b".");
        }
        name.put(qualified.as_str().as_bytes());
        name
    }

    /// # Safety
    /// As of [`of`](Self::of), for a type that has one.
    unsafe fn qualified(self, kind: usize, texts: &Texts) -> Option<Text> {
        match self {
            // SAFETY: the caller's promise: the type refers to its name.
            Self::At(offset) => unsafe { texts.of(word(kind + offset) as Object) },
            Self::Asked(ask) => {
                // SAFETY: the caller's promise; the function returns a new reference. The type has another one, so this is not the last.
                let object = unsafe { texts.python.owned(ask(kind as Object)) }?;
                // SAFETY: the caller's promise.
                unsafe { texts.of(object.object()) }
            }
        }
    }
}

/// The `__module__` in a type's dict.
///
/// # Safety
/// As of [`Names::of`].
unsafe fn module(kind: usize, texts: &Texts, dicts: Dicts) -> Option<Text> {
    // SAFETY: the caller's promise.
    let dict = unsafe { word(kind + DICT) } as Object;
    if dict.is_null() {
        return None;
    }
    // SAFETY: a type's dict, which nothing changes meanwhile, and objects in it.
    unsafe {
        let is_module = |key: Object| texts.of(key).is_some_and(|key| key.is("__module__"));
        let (_, value) = dicts.pairs(dict).find(|&(key, _)| is_module(key))?;
        texts.of(value)
    }
}
