//! The bytes of typed arrays. The native binding reads their memory. WebAssembly can only read its own memory, so there the loader copies.

use crate::js::{TypedArray, Value};

/// The bytes of a typed array; valid until JavaScript runs or a buffer is detached.
#[derive(Clone, Copy)]
pub(crate) struct Bytes {
    /// The loader's handle of the array.
    #[cfg_attr(not(target_family = "wasm"), expect(dead_code, reason = "only a loader asks"))]
    array: Value,
    #[cfg_attr(target_family = "wasm", expect(dead_code, reason = "there is no such memory"))]
    data: *mut u8,
}

#[cfg(target_family = "wasm")]
#[link(wasm_import_module = "obmalloc")]
unsafe extern "C" {
    /// Copies bytes of an array, from `offset` on, to the module's memory.
    fn read_array(array: Value, offset: usize, to: *mut u8, count: usize);
    /// Copies the module's memory into an array, from `offset` on.
    fn write_array(array: Value, offset: usize, from: *const u8, count: usize);
}

impl Bytes {
    /// The bytes of an empty array.
    pub const NONE: Self = Self { array: std::ptr::null_mut(), data: std::ptr::null_mut() };

    /// The bytes of `array`, from what Node-API says of it.
    pub fn of(array: Value, known: TypedArray) -> Self {
        Self { array, data: known.data.cast() }
    }
}

#[cfg(not(target_family = "wasm"))]
impl Bytes {
    /// Their address; `None` in WebAssembly, whose memory does not hold them.
    pub fn memory(self) -> Option<*mut u8> {
        Some(self.data)
    }

    /// Reads a value at `offset`. It reads each byte once, because another thread may write to shared memory.
    ///
    /// # Safety
    /// They lie within the array, aligned.
    #[inline(always)]
    pub unsafe fn get<T: Copy>(self, offset: usize) -> T {
        // SAFETY: the caller's promise.
        unsafe { self.data.add(offset).cast::<T>().read_volatile() }
    }

    /// Writes a value at `offset`.
    ///
    /// # Safety
    /// As for [`get`](Self::get).
    #[inline(always)]
    pub unsafe fn set<T: Copy>(self, offset: usize, value: T) {
        // SAFETY: the caller's promise.
        unsafe { self.data.add(offset).cast::<T>().write_volatile(value) };
    }

    /// Writes `count` bytes at `offset`.
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
