//! The bytes of typed arrays. The native binding reads their memory. WebAssembly can only read its own memory, so there the loader copies.

use crate::js::{TypedArray, Value};

/// The bytes of a typed array; good until JavaScript runs or a buffer is detached.
#[derive(Clone, Copy)]
pub(crate) struct Bytes {
    /// What the loader knows the array by.
    #[cfg_attr(not(target_family = "wasm"), expect(dead_code, reason = "only a loader asks"))]
    array: Value,
    #[cfg_attr(target_family = "wasm", expect(dead_code, reason = "there is no such memory"))]
    data: *mut u8,
}

#[cfg(target_family = "wasm")]
#[link(wasm_import_module = "obmalloc")]
unsafe extern "C" {
    /// Copies bytes of an array, from the one at `offset` on, to memory of ours.
    fn read_array(array: Value, offset: usize, to: *mut u8, count: usize);
    /// Copies memory of ours into an array, from its byte at `offset` on.
    fn write_array(array: Value, offset: usize, from: *const u8, count: usize);
}

impl Bytes {
    /// Those of an array without any.
    pub const NONE: Self = Self { array: std::ptr::null_mut(), data: std::ptr::null_mut() };

    /// The bytes of `array`, from what Node-API says of it.
    pub fn of(array: Value, known: TypedArray) -> Self {
        Self { array, data: known.data.cast() }
    }
}

#[cfg(not(target_family = "wasm"))]
impl Bytes {
    /// Where they are; none where they are not in our memory.
    pub fn memory(self) -> Option<*mut u8> {
        Some(self.data)
    }

    /// What the bytes from `offset` on are. Another thread may write to shared memory: each is read once.
    ///
    /// # Safety
    /// They lie within the array, aligned.
    #[inline(always)]
    pub unsafe fn get<T: Copy>(self, offset: usize) -> T {
        // SAFETY: the caller's promise.
        unsafe { self.data.add(offset).cast::<T>().read_volatile() }
    }

    /// Sets the bytes from `offset` on.
    ///
    /// # Safety
    /// As for [`get`](Self::get).
    #[inline(always)]
    pub unsafe fn set<T: Copy>(self, offset: usize, value: T) {
        // SAFETY: the caller's promise.
        unsafe { self.data.add(offset).cast::<T>().write_volatile(value) };
    }

    /// Sets `count` bytes from `offset` on.
    ///
    /// # Safety
    /// They lie within the array, and as many can be read at `from`.
    #[inline(always)]
    pub unsafe fn fill(self, offset: usize, from: *const u8, count: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.data.add(offset).copy_from(from, count) };
    }

    /// Copies the first `count` bytes.
    ///
    /// # Safety
    /// They lie within the array, and as many can be written at `to`.
    pub unsafe fn copy_to(self, to: *mut u8, count: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.data.copy_to(to, count) };
    }
}

#[cfg(target_family = "wasm")]
impl Bytes {
    pub fn memory(self) -> Option<*mut u8> {
        None
    }

    /// # Safety
    /// They lie within the array.
    pub unsafe fn get<T: Copy>(self, offset: usize) -> T {
        let mut value = std::mem::MaybeUninit::<T>::uninit();
        // SAFETY: the caller's promise; the loader writes all of the value, which any bytes make.
        unsafe {
            read_array(self.array, offset, value.as_mut_ptr().cast(), size_of::<T>());
            value.assume_init()
        }
    }

    /// # Safety
    /// They lie within the array.
    pub unsafe fn set<T: Copy>(self, offset: usize, value: T) {
        // SAFETY: the caller's promise.
        unsafe { write_array(self.array, offset, (&raw const value).cast(), size_of::<T>()) };
    }

    /// # Safety
    /// They lie within the array, and as many can be read at `from`.
    pub unsafe fn fill(self, offset: usize, from: *const u8, count: usize) {
        // SAFETY: the caller's promise.
        unsafe { write_array(self.array, offset, from, count) };
    }

    /// # Safety
    /// They lie within the array, and as many can be written at `to`.
    pub unsafe fn copy_to(self, to: *mut u8, count: usize) {
        // SAFETY: the caller's promise.
        unsafe { read_array(self.array, 0, to, count) };
    }
}
