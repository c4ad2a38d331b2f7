//! Reads CPython's `str` objects without taking memory and without calling CPython.

use crate::python::{Object, Objects, symbol};
use std::ptr::read;

/// The most characters of a text; the rest is cut off.
const MOST: usize = 200;
/// The most bytes of a text.
pub const MOST_BYTES: usize = 4 * MOST;
/// Offset of the type in an object.
const TYPE: usize = 8;

/// The type of an object.
///
/// # Safety
/// `object` is an object.
pub unsafe fn type_of(object: Object) -> Object {
    // SAFETY: every object has its type there.
    unsafe { read(object.byte_add(TYPE).cast::<Object>()) }
}

/// The beginning of a text.
pub struct Text {
    bytes: [u8; MOST_BYTES],
    length: usize,
}

impl Text {
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.length]).unwrap_or_default()
    }

    pub fn is(&self, text: &str) -> bool {
        self.as_str() == text
    }
}

/// What reading texts needs.
#[derive(Clone, Copy)]
pub struct Texts {
    pub python: Objects,
    text: Object,
}

impl Texts {
    /// `None` if this CPython does not export what is needed.
    pub fn find(python: &Objects) -> Option<Self> {
        Some(Self { python: *python, text: symbol(c"PyUnicode_Type")? })
    }

    /// The text of a `str`, as far as it fits; `None` if the object is no `str`. Takes no memory.
    ///
    /// # Safety
    /// The GIL is held, and `object` is an object.
    pub unsafe fn of(&self, object: Object) -> Option<Text> {
        // SAFETY: the caller's promise; every character that is read is there.
        unsafe {
            if (self.python.is_subtype)(type_of(object), self.text) == 0 {
                return None;
            }
            let mut text = Text { bytes: [0; MOST_BYTES], length: 0 };
            for at in 0..(self.python.text_length)(object).min(MOST as isize) {
                let char = char::from_u32((self.python.char_at)(object, at)).unwrap_or(char::REPLACEMENT_CHARACTER);
                text.length += char.encode_utf8(&mut text.bytes[text.length..]).len();
            }
            Some(text)
        }
    }
}
