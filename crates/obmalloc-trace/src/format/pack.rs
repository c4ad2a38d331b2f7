//! Compression of blocks, by zstd. What compresses runs inside an allocator: it works in memory that its owner provides, and takes no
//! other. What decompresses does not.

use std::ptr::NonNull;

use zstd_sys::{ZSTD_CCtx, ZSTD_DCtx, ZSTD_cParameter, ZSTD_compressionParameters};

use super::block::{BLOCK_HEADER, BlockHead};

/// Level and longest payload that the parameters are made for.
const LEVEL: i32 = 1;
const LONGEST: usize = 64 << 10;

/// Compresses blocks, in memory of its owner's.
pub struct Packer<'a> {
    context: NonNull<ZSTD_CCtx>,
    out: &'a mut [u8],
}

// SAFETY: the context lies in memory that is the packer's alone, and belongs to no thread.
unsafe impl Send for Packer<'_> {}

impl<'a> Packer<'a> {
    /// Bytes of memory that a packer needs for blocks of up to `longest` bytes.
    pub fn memory_for(longest: usize) -> usize {
        // SAFETY: it computes.
        let context = unsafe { zstd_sys::ZSTD_estimateCCtxSize_usingCParams(parameters()) };
        context.next_multiple_of(8) + longest
    }

    /// Makes a packer in `memory`, or none where that is smaller than [`memory_for`](Self::memory_for) says.
    pub fn new(memory: &'a mut [u64]) -> Option<Self> {
        let context_size = Self::memory_for(0);
        if context_size > size_of_val(memory) {
            return None;
        }
        let (context, out) = memory.split_at_mut(context_size / 8);
        // SAFETY: the memory is exclusively borrowed for as long as the packer lives, and aligned to eight bytes.
        let context = unsafe { NonNull::new(zstd_sys::ZSTD_initStaticCCtx(context.as_mut_ptr().cast(), context_size))? };
        let p = parameters();
        use ZSTD_cParameter as Parameter;
        for (parameter, value) in [
            (Parameter::ZSTD_c_compressionLevel, LEVEL),
            (Parameter::ZSTD_c_windowLog, p.windowLog as i32),
            (Parameter::ZSTD_c_hashLog, p.hashLog as i32),
            (Parameter::ZSTD_c_chainLog, p.chainLog as i32),
            (Parameter::ZSTD_c_searchLog, p.searchLog as i32),
            (Parameter::ZSTD_c_minMatch, p.minMatch as i32),
            (Parameter::ZSTD_c_targetLength, p.targetLength as i32),
            (Parameter::ZSTD_c_strategy, p.strategy as i32),
        ] {
            // SAFETY: a context that was just made.
            let result = unsafe { zstd_sys::ZSTD_CCtx_setParameter(context.as_ptr(), parameter, value) };
            if is_error(result) {
                return None;
            }
        }
        let size = size_of_val(out);
        // SAFETY: any memory can be seen as bytes.
        let out = unsafe { std::slice::from_raw_parts_mut(out.as_mut_ptr().cast(), size) };
        Some(Self { context, out })
    }

    /// A finished block, compressed if that makes it smaller. A block of one event stays as it is, so that a note in a block of its
    /// own can be read without decompressing.
    pub fn pack<'b>(&'b mut self, block: &'b [u8]) -> &'b [u8] {
        let Some((head, payload)) = block.split_at_checked(BLOCK_HEADER) else { return block };
        let head = BlockHead::read(super::VERSION, head);
        let room = self.out.len().min(block.len() - 1);
        if head.events == 1 || head.stored != head.payload || room <= BLOCK_HEADER {
            return block;
        }
        // SAFETY: the pointers and lengths are those of live slices.
        let length = unsafe {
            zstd_sys::ZSTD_compress2(
                self.context.as_ptr(),
                self.out[BLOCK_HEADER..].as_mut_ptr().cast(),
                room - BLOCK_HEADER,
                payload.as_ptr().cast(),
                payload.len(),
            )
        };
        // An error is that it does not become smaller.
        if is_error(length) {
            return block;
        }
        let end = BLOCK_HEADER + length;
        let head = BlockHead::new(payload.len(), head.events, &self.out[BLOCK_HEADER..end]);
        self.out[..BLOCK_HEADER].copy_from_slice(&head.bytes());
        &self.out[..end]
    }
}

/// The level's, for blocks of the recorder's size, but for a smaller table of longer matches: with events that costs 2 in 100 of the size, and
/// saves 7 in 100 of the time and half of the table, which the recorded program has to share its cache with.
fn parameters() -> ZSTD_compressionParameters {
    // SAFETY: it computes.
    let parameters = unsafe { zstd_sys::ZSTD_getCParams(LEVEL, LONGEST as u64, 0) };
    ZSTD_compressionParameters { hashLog: 12, minMatch: 7, ..parameters }
}

fn is_error(result: usize) -> bool {
    // SAFETY: it computes.
    unsafe { zstd_sys::ZSTD_isError(result) != 0 }
}

/// Decompresses blocks.
pub(super) struct Unpacker(NonNull<ZSTD_DCtx>);

// SAFETY: the context is the unpacker's alone, and belongs to no thread.
unsafe impl Send for Unpacker {}

impl Unpacker {
    /// An unpacker, or none where there is no memory for it.
    pub fn new() -> Option<Self> {
        // SAFETY: takes nothing.
        NonNull::new(unsafe { zstd_sys::ZSTD_createDCtx() }).map(Self)
    }

    /// Fills `payload` with what `stored` holds. Says `false` when that is not of this length, or not zstd's.
    pub fn unpack(&mut self, stored: &[u8], payload: &mut [u8]) -> bool {
        // SAFETY: the pointers and lengths are those of live slices.
        let length = unsafe {
            zstd_sys::ZSTD_decompressDCtx(
                self.0.as_ptr(),
                payload.as_mut_ptr().cast(),
                payload.len(),
                stored.as_ptr().cast(),
                stored.len(),
            )
        };
        length == payload.len()
    }
}

impl Drop for Unpacker {
    fn drop(&mut self) {
        // SAFETY: the context is freed once.
        unsafe { zstd_sys::ZSTD_freeDCtx(self.0.as_ptr()) };
    }
}
