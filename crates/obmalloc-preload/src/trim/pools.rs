//! A pool's header: its layout, what it says, and whether this CPython keeps to that layout.

use super::arenas;
use crate::python::Objects;
use std::ffi::c_void;
use std::ptr::read_volatile;

/// `POOL_SIZE` of CPython 3.10 and later.
pub const POOL_SIZE: usize = 16 << 10;
/// Bytes of a header, in the first page of its pool.
const HEADER: u32 = size_of::<Header>() as u32;
/// `DUMMY_SIZE_IDX`: the pool is carved anew for any class.
const DUMMY_SIZE_INDEX: u32 = 0xffff;
/// Size classes. Each holds blocks of 16 bytes more than the one before.
const CLASSES: u32 = 32;
const ALIGNMENT: u32 = 16;

/// `struct pool_header`
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    count: u32,
    padding: u32,
    free_block: usize,
    next: usize,
    previous: usize,
    arena_index: u32,
    size_index: u32,
    next_offset: u32,
    max_next_offset: u32,
}

/// The state of a pool, from its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The pool was never carved, and neither was any pool behind it.
    Virgin,
    /// It has blocks.
    Used,
    /// It has no block; its class and free list are remembered.
    Empty,
    /// It has no block, and will be carved anew.
    Forgotten,
    /// This is no header.
    Strange,
}

impl Header {
    /// # Safety
    /// The pool's first page can be read.
    pub unsafe fn read(pool: usize) -> Self {
        // SAFETY: the caller's promise. A thread with the GIL may be writing the header. Then the values are mixed, and are only compared.
        unsafe { read_volatile(pool as *const Self) }
    }

    /// Bytes of a block.
    fn size(&self) -> u32 {
        (self.size_index + 1) * ALIGNMENT
    }

    /// What it says of the pool at `pool`.
    pub fn state(&self, pool: usize) -> State {
        if self.max_next_offset == 0 && self.size_index == 0 && self.free_block == 0 && self.count == 0 {
            return State::Virgin;
        }
        let is_dummy = self.size_index == DUMMY_SIZE_INDEX;
        if !is_dummy && self.size_index >= CLASSES {
            return State::Strange;
        }
        // If the class was forgotten, the block size follows from where the last block can begin.
        let size = if is_dummy { (POOL_SIZE as u32).wrapping_sub(self.max_next_offset) } else { self.size() };
        let is_class = size != 0 && size <= CLASSES * ALIGNMENT && size % ALIGNMENT == 0;
        if !is_class || self.max_next_offset != POOL_SIZE as u32 - size {
            return State::Strange;
        }
        let capacity = (POOL_SIZE as u32 - HEADER) / size;
        let is_block = |offset: u32| offset >= HEADER && (offset - HEADER).is_multiple_of(size);
        let in_pool = self.free_block.wrapping_sub(pool);
        let free_is_block = in_pool < POOL_SIZE && is_block(in_pool as u32);
        let is_full = self.free_block == 0;
        let carved_to = self.next_offset;
        if !is_block(carved_to)
            || carved_to < HEADER + 2 * size
            || carved_to > HEADER + capacity * size
            || self.count > capacity
            || !(free_is_block || is_full && self.count == capacity)
        {
            return State::Strange;
        }
        match (self.count, is_dummy) {
            (0, true) => State::Forgotten,
            (0, false) => State::Empty,
            (_, false) => State::Used,
            (_, true) => State::Strange,
        }
    }

    /// A short form of the header, never 0. If the pool was used and is empty again, the short form usually differs.
    pub fn print(&self) -> u32 {
        let mixed = (self.free_block ^ self.next.rotate_left(20)) as u64
            ^ u64::from(self.size_index) << 48
            ^ u64::from(self.next_offset) << 17;
        ((mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32).max(1)
    }
}

/// Forgets the class and the free list of an empty pool, so that nothing reads its blocks before they are written.
///
/// # Safety
/// It is an empty pool of the interpreter whose GIL is held, and the allocator is in no call.
pub unsafe fn forget(pool: usize) {
    // SAFETY: the caller's promise: nothing else uses the header.
    unsafe { (*(pool as *mut Header)).size_index = DUMMY_SIZE_INDEX };
}

/// The most blocks that are allocated until one of them is alone in its pool.
const MOST_BLOCKS: usize = 64;

/// Checks that a few blocks change their pools' headers as expected. The error says what is not as expected.
///
/// # Safety
/// The GIL is held.
pub unsafe fn check(python: &Objects) -> Result<(), &'static str> {
    for size in [16, 48, 128, 512] {
        // SAFETY: the caller's promise.
        unsafe { check_two(python, size)? };
    }
    // SAFETY: the caller's promise.
    unsafe { check_emptied(python, 496) }
}

fn pool_of(block: *mut c_void) -> usize {
    block.addr() & !(POOL_SIZE - 1)
}

/// A block of the obj domain. It is freed when this is dropped, with the GIL.
struct Block<'a> {
    address: *mut c_void,
    size: u32,
    python: &'a Objects,
}

impl Drop for Block<'_> {
    fn drop(&mut self) {
        // SAFETY: `new` has allocated it, and got the promise that the GIL is held.
        unsafe { (self.python.obj_free)(self.address) };
    }
}

impl<'a> Block<'a> {
    /// `None` if there is no memory.
    ///
    /// # Safety
    /// The GIL is held until the block is dropped.
    unsafe fn new(python: &'a Objects, size: u32) -> Option<Self> {
        // SAFETY: the caller's promise.
        let address = unsafe { (python.obj_malloc)(size as usize) };
        (!address.is_null()).then(|| Self { address, size, python })
    }

    /// The header of the pool that the block must lie in.
    fn header(&self) -> Result<Header, &'static str> {
        let pool = pool_of(self.address);
        if !arenas::has_pool(pool) {
            return Err("a small block does not lie in an arena");
        }
        // SAFETY: the pool lies in an arena, which stays while it has a block.
        let header = unsafe { Header::read(pool) };
        if header.state(pool) != State::Used || header.size() != self.size {
            return Err("a pool's header is not laid out as expected");
        }
        if (self.address.addr() - pool) as u32 % self.size != HEADER % self.size {
            return Err("a block does not lie where its pool's header has it");
        }
        Ok(header)
    }
}

/// Allocates two blocks and frees the second: its pool's header must show that.
///
/// # Safety
/// The GIL is held.
unsafe fn check_two(python: &Objects, size: u32) -> Result<(), &'static str> {
    // SAFETY: the caller's promise.
    let blocks = [0; 2].map(|_| unsafe { Block::new(python, size) });
    let [Some(first), Some(second)] = blocks else { return Err("there is no memory") };
    let (before, freed) = (second.header()?, second.address);
    drop(second);
    if pool_of(first.address) != pool_of(freed) {
        return Ok(());
    }
    let after = first.header()?;
    // SAFETY: the first block keeps the pool, and the second had room for a word.
    let linked = unsafe { read_volatile(freed.cast::<usize>()) };
    let is_expected = after.count + 1 == before.count && after.free_block == freed.addr() && linked == before.free_block;
    if is_expected { Ok(()) } else { Err("a freed block does not change its pool's header as expected") }
}

/// Allocates blocks until one is alone in its pool, and frees that one: its pool must be empty.
///
/// # Safety
/// The GIL is held.
unsafe fn check_emptied(python: &Objects, size: u32) -> Result<(), &'static str> {
    let mut blocks = [const { None }; MOST_BLOCKS];
    for place in &mut blocks {
        // SAFETY: the caller's promise.
        let Some(block) = (unsafe { Block::new(python, size) }) else { break };
        if block.header()?.count == 1 {
            return check_last(block);
        }
        *place = Some(block);
    }
    Err("no block comes to lie alone in its pool")
}

/// Frees a block that is alone in its pool.
fn check_last(block: Block<'_>) -> Result<(), &'static str> {
    let (address, size, pool) = (block.address, block.size, pool_of(block.address));
    drop(block);
    // SAFETY: the arena is there, and stays while the GIL is held: (2) of `arenas`.
    let after = arenas::has_pool(pool).then(|| unsafe { Header::read(pool) });
    let is_expected =
        after.is_none_or(|after| after.state(pool) == State::Empty && after.size() == size && after.free_block == address.addr());
    if is_expected { Ok(()) } else { Err("an empty pool's header is not laid out as expected") }
}

#[cfg(test)]
impl Header {
    /// The header of a pool of blocks of 64 bytes at `pool`, with two of them carved and the first one freed.
    pub fn of_empty(pool: usize) -> Self {
        Self {
            count: 0,
            padding: 0x5555,
            free_block: pool + 48,
            next: 0,
            previous: 0,
            arena_index: 3,
            size_index: 3,
            next_offset: 48 + 2 * 64,
            max_next_offset: 16384 - 64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POOL: usize = 1 << 30;

    fn empty() -> Header {
        Header::of_empty(POOL)
    }

    #[test]
    fn header_is_as_long_as_cpythons() {
        assert_eq!(HEADER, 48);
    }

    #[test]
    fn states_are_told_apart() {
        let zeros =
            Header { padding: 0, free_block: 0, arena_index: 0, size_index: 0, next_offset: 0, max_next_offset: 0, ..empty() };
        assert_eq!(zeros.state(POOL), State::Virgin);
        assert_eq!(empty().state(POOL), State::Empty);
        assert_eq!(Header { count: 1, ..empty() }.state(POOL), State::Used);
        assert_eq!(Header { size_index: DUMMY_SIZE_INDEX, ..empty() }.state(POOL), State::Forgotten);
        let full = Header { count: 255, free_block: 0, next_offset: 48 + 255 * 64, ..empty() };
        assert_eq!(full.state(POOL), State::Used);
    }

    #[test]
    fn what_cannot_be_a_header_is_none() {
        let strange = [
            Header { size_index: 32, ..empty() },
            Header { size_index: 4, ..empty() },
            Header { max_next_offset: 16384 - 80, ..empty() },
            Header { next_offset: 48 + 64, ..empty() },
            Header { next_offset: 48 + 100, ..empty() },
            Header { next_offset: 48 + 256 * 64, ..empty() },
            Header { free_block: POOL + 50, ..empty() },
            Header { free_block: POOL + 16384 + 48, ..empty() },
            Header { free_block: 0, ..empty() },
            Header { free_block: 0, count: 254, ..empty() },
            Header { count: 256, ..empty() },
            Header { count: 1, size_index: DUMMY_SIZE_INDEX, ..empty() },
            Header { size_index: DUMMY_SIZE_INDEX, max_next_offset: 0, ..empty() },
        ];
        for header in strange {
            assert_eq!(header.state(POOL), State::Strange, "{header:?}");
        }
        // Frames: addresses of objects in a row.
        let word = 0x7f12_3456_7890usize;
        let half = word as u32;
        let frames = Header {
            count: half,
            padding: 0x7f12,
            free_block: word,
            next: word,
            previous: word,
            arena_index: half,
            size_index: 0x7f12,
            next_offset: half,
            max_next_offset: 0x7f12,
        };
        assert_eq!(frames.state(POOL), State::Strange);
    }

    #[test]
    fn header_in_short_tells_pools_apart_that_were_taken_in_between() {
        let prints = [
            empty().print(),
            Header { free_block: POOL + 48 + 64, ..empty() }.print(),
            Header { next: POOL + POOL_SIZE, ..empty() }.print(),
            Header { size_index: 4, ..empty() }.print(),
            Header { next_offset: 48 + 3 * 64, ..empty() }.print(),
        ];
        for (index, print) in prints.iter().enumerate() {
            assert!(*print != 0 && !prints[..index].contains(print), "{prints:x?}");
        }
    }
}
