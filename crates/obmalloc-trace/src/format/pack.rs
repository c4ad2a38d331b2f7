//! Compression of blocks, by zstd. The packer runs inside an allocator: it works in memory that its owner provides, and takes no other. The
//! unpacker takes memory.

use std::ptr::NonNull;

use zstd_sys::{ZSTD_CCtx, ZSTD_DCtx, ZSTD_cParameter as Parameter, ZSTD_compressionParameters};

use super::block::{BLOCK_HEADER, BlockHead};

/// Level and longest payload that the parameters are made for.
const LEVEL: i32 = 1;
const LONGEST: usize = 64 << 10;

/// Values of zstd's `targetLength`. In its fastest strategy a larger value makes zstd search less: faster, and compressed less. The value with
/// the most searching comes first. The first step saves a third of the time, as literals are not compressed any more, and costs a fifth of the
/// size; the others save a tenth and cost as much.
const EASE: [i32; 4] = [0, 2, 4, 8];
/// Bounds on the size of an event, in tenths of a byte. Below `PLENTY` the next block is compressed with less effort, above `TOO_MUCH` with more.
/// The bounds lie far apart, so that the effort seldom changes back and forth.
const PLENTY: u64 = 22;
const TOO_MUCH: u64 = 30;
/// Events of a block that says something of the others.
const TYPICAL: u32 = 1000;

/// Compresses blocks, in memory of its owner's.
pub struct Packer<'a> {
    context: NonNull<ZSTD_CCtx>,
    out: &'a mut [u8],
    /// Which [`EASE`] the next block is compressed with.
    ease: usize,
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
        Some(Self { context, out, ease: 0 })
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
        let is_smaller = !is_error(length);
        let end = if is_smaller { BLOCK_HEADER + length } else { block.len() };
        self.learn(head.events, end);
        if !is_smaller {
            return block;
        }
        let head = BlockHead::new(payload.len(), head.events, &self.out[BLOCK_HEADER..end]);
        self.out[..BLOCK_HEADER].copy_from_slice(&head.bytes());
        &self.out[..end]
    }

    /// Chooses how carefully the next block is compressed, from the bytes that the events of this block took.
    fn learn(&mut self, events: u32, stored: usize) {
        let tenths = 10 * stored as u64 / u64::from(events.max(1));
        let ease = match tenths {
            _ if events < TYPICAL => self.ease,
            ..PLENTY => (self.ease + 1).min(EASE.len() - 1),
            TOO_MUCH.. => self.ease.saturating_sub(1),
            _ => self.ease,
        };
        if ease != self.ease {
            self.ease = ease;
            // SAFETY: a context that is between two blocks. What it needs of memory does not depend on this parameter.
            unsafe { zstd_sys::ZSTD_CCtx_setParameter(self.context.as_ptr(), Parameter::ZSTD_c_targetLength, EASE[ease]) };
        }
    }
}

/// The level's, for blocks of the recorder's size, but for a smaller table of longer matches: with events that costs 2 in 100 of the size, and
/// saves 7 in 100 of the time and half of the table, which the recorded program has to share its cache with.
fn parameters() -> ZSTD_compressionParameters {
    // SAFETY: it computes.
    let parameters = unsafe { zstd_sys::ZSTD_getCParams(LEVEL, LONGEST as u64, 0) };
    ZSTD_compressionParameters { hashLog: 12, minMatch: 7, targetLength: EASE[0] as u32, ..parameters }
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

    /// Fills `payload` with what `stored` holds. Returns `false` if that is not of this length, or not zstd's.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{BlockWriter, Domain};

    /// A block of `count` mallocs. One in `every` of them has an address that nothing foretells.
    fn block(memory: &mut [u8], count: u64, every: u64) -> Vec<u8> {
        let mut block = BlockWriter::new(memory);
        for number in 0..count {
            let random = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let noise =
                if number % every == 0 { (random ^ random >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 40 } else { number % 8 };
            block.malloc(Domain::Obj, false, 16 + number % 5 * 16, 0x7f00_0000_0000 + 16 * noise);
        }
        block.finish().to_vec()
    }

    #[test]
    fn less_care_is_taken_while_events_take_little() {
        let mut memory = vec![0; 64 << 10];
        let mut packing = vec![0; Packer::memory_for(64 << 10) / 8 + 1];
        let mut packer = Packer::new(&mut packing).expect("memory");
        let (plain, noisy) = (block(&mut memory, 8000, 30), block(&mut memory, 8000, 1));
        let sizes = [&plain; 5].map(|block| packer.pack(block).len());
        assert!(sizes[..4].is_sorted() && sizes[0] < sizes[3] && sizes[3] == sizes[4] && packer.ease == 3, "{sizes:?}");
        let noisy_sizes = [&noisy; 3].map(|block| packer.pack(block).len());
        assert!(noisy_sizes[2] > 8000 * 3 && packer.ease == 0, "{noisy_sizes:?} {}", packer.ease);
        assert_eq!(packer.pack(&plain).len(), sizes[0]);
    }
}
