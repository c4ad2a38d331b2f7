//! The table of objects: which addresses are objects, and their state. It lies beside the objects, so that no misuse can reach it.
//!
//! Objects in the heap's region have a byte per unit of alignment in a table that runs parallel to it; all others are in a hash table.
//! During a collection the bytes are the collector's `gc_refs`. A pass over references then touches this table, which is a sixteenth of the
//! objects' memory, instead of the objects.

use core::cell::UnsafeCell;
use core::ptr::NonNull;

use crate::address_hash::AddressMap;
use crate::os;

/// There is no object.
pub(crate) const NOTHING: u8 = 0;
/// There was an object.
pub(crate) const DEAD: u8 = 1;
/// There was an object, and its memory is kept for the next object of its type.
pub(crate) const KEPT: u8 = 2;
/// There is an object that is being destroyed.
pub(crate) const DYING: u8 = 3;
/// There is an object that a collection takes for unreachable.
pub(crate) const UNREACHABLE: u8 = 4;
/// The smallest byte that stands for a number of `gc_refs`.
pub(crate) const LEAST_REFS: u8 = 8;
/// `gc_refs` 0.
pub(crate) const NO_REFS: u8 = 128;
/// The most references that a byte can count.
pub(crate) const MOST_REFS: u8 = 100;
/// There is an object in a collection, and its `gc_refs` are in the word before it.
pub(crate) const MANY_REFS: u8 = 250;
/// There is an object.
pub(crate) const LIVE: u8 = 255;

// In whichever order an object's references are added and taken off, its byte stays in its range.
const _: () = assert!(NO_REFS - MOST_REFS > LEAST_REFS && NO_REFS + MOST_REFS < MANY_REFS);

/// Whether a collection has not decided about an object yet.
#[inline(always)]
pub(crate) const fn is_undecided(state: u8) -> bool {
    state >= LEAST_REFS && state <= MANY_REFS
}

/// Whether there is an object whose destruction has not begun.
#[inline(always)]
pub(crate) const fn is_alive(state: u8) -> bool {
    state > DYING
}

pub(crate) struct ObjectTable {
    base: usize,
    units: usize,
    alignment_shift: u32,
    states: NonNull<u8>,
    /// The bytes of objects outside the region.
    outside_region: UnsafeCell<AddressMap<u8>>,
    /// The byte of every address without an entry: [`NOTHING`]. It is never written to.
    nothing: UnsafeCell<u8>,
}

/// The table's parts, for objects aligned to `1 << SHIFT`. A loop that writes bytes keeps a copy of them in registers: as far as the
/// compiler knows, a write of a byte could change the table itself.
#[derive(Clone, Copy)]
pub(crate) struct Places<const SHIFT: u32> {
    base: usize,
    units: usize,
    states: NonNull<u8>,
    table: *const ObjectTable,
}

impl<const SHIFT: u32> Places<SHIFT> {
    /// The byte of any address. The pointer is valid until an object is entered.
    ///
    /// # Safety
    /// The table has not moved.
    #[inline(always)]
    pub unsafe fn of(&self, address: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        self.near(address).unwrap_or_else(|| unsafe { (*self.table).place_outside_region(address) })
    }

    /// The byte of an address, if it is in the table itself.
    #[inline(always)]
    pub fn near(&self, address: usize) -> Option<*mut u8> {
        let unit = self.unit(address);
        // SAFETY: the table has a byte for every unit.
        (unit < self.units).then(|| unsafe { self.states.as_ptr().add(unit) })
    }

    /// The unit of an address. An address that is not aligned gives a number that is far too large.
    #[inline(always)]
    fn unit(&self, address: usize) -> usize {
        address.wrapping_sub(self.base).rotate_right(SHIFT)
    }
}

impl ObjectTable {
    /// The table for a region, given its address and size; `None` when there is no address space for the table.
    pub fn new((base, len): (usize, usize), alignment: usize) -> Option<Self> {
        let units = len / alignment;
        let states = if units == 0 { NonNull::dangling() } else { os::map(units)? };
        Some(Self {
            base,
            units,
            alignment_shift: alignment.trailing_zeros(),
            states,
            outside_region: UnsafeCell::default(),
            nothing: UnsafeCell::new(NOTHING),
        })
    }

    /// The table's parts. They are valid while the table does not move; `SHIFT` is the table's.
    #[inline(always)]
    pub fn places<const SHIFT: u32>(&self) -> Places<SHIFT> {
        debug_assert_eq!(SHIFT, self.alignment_shift, "the table has a byte for every unit of this alignment");
        Places { base: self.base, units: self.units, states: self.states, table: self }
    }

    /// The logarithm of the alignment.
    pub fn alignment_shift(&self) -> u32 {
        self.alignment_shift
    }

    #[inline(always)]
    fn unit(&self, address: usize) -> usize {
        address.wrapping_sub(self.base).rotate_right(self.alignment_shift)
    }

    /// The byte of any address. The pointer is valid until an object is entered.
    #[inline(always)]
    pub fn place(&self, address: usize) -> *mut u8 {
        let unit = self.unit(address);
        if unit < self.units {
            // SAFETY: the table has a byte for every unit.
            unsafe { self.states.as_ptr().add(unit) }
        } else {
            self.place_outside_region(address)
        }
    }

    #[cold]
    #[inline(never)]
    fn place_outside_region(&self, address: usize) -> *mut u8 {
        // SAFETY: the table is used by one thread, and no reference into it outlives a method.
        let outside = unsafe { &mut *self.outside_region.get() };
        outside.get_mut(&address).map_or(self.nothing.get(), core::ptr::from_mut)
    }

    #[inline(always)]
    pub fn state(&self, address: usize) -> u8 {
        // SAFETY: `place` gives a byte of ours.
        unsafe { *self.place(address) }
    }

    /// Makes sure that [`enter`](Self::enter) has room.
    pub fn reserve(&self) -> bool {
        // SAFETY: as in `place_outside_region`.
        unsafe { (*self.outside_region.get()).try_reserve(1).is_ok() }
    }

    /// Enters an object. [`reserve`](Self::reserve) has made room.
    pub fn enter(&self, address: usize) {
        let place = self.place(address);
        if place == self.nothing.get() {
            // SAFETY: as in `place_outside_region`.
            unsafe { (*self.outside_region.get()).insert(address, LIVE) };
        } else {
            // SAFETY: a byte of ours.
            unsafe { *place = LIVE };
        }
    }

    /// Sets the state of an object that was entered.
    #[inline(always)]
    pub fn set(&self, address: usize, state: u8) {
        debug_assert!(!core::ptr::eq(self.place(address), self.nothing.get()), "an object has been entered");
        // SAFETY: a byte of ours.
        unsafe { *self.place(address) = state };
    }

    /// Marks an object as dead, because its memory is freed. Outside the region, forgets the object.
    #[inline]
    pub fn bury(&self, address: usize) {
        if self.unit(address) < self.units {
            self.set(address, DEAD);
        } else {
            // SAFETY: as in `place_outside_region`.
            unsafe { (*self.outside_region.get()).remove(&address) };
        }
    }

    /// The part of the table for `size` bytes of the region from `offset` on.
    pub fn part(&self, offset: usize, size: usize) -> Option<NonNull<[u8]>> {
        let (begin, units) = (offset >> self.alignment_shift, size >> self.alignment_shift);
        // SAFETY: the table has a byte for every unit.
        (begin + units <= self.units).then(|| NonNull::slice_from_raw_parts(unsafe { self.states.add(begin) }, units))
    }

    /// The address and size of the part of the table that covers the first `used` bytes of the region.
    pub fn used_table(&self, used: usize) -> (NonNull<u8>, usize) {
        (self.states, self.units.min(used >> self.alignment_shift))
    }
}

impl Drop for ObjectTable {
    fn drop(&mut self) {
        if self.units != 0 {
            // SAFETY: mapped by `new` with this size; the table is gone.
            unsafe { os::unmap(self.states, self.units) };
        }
    }
}
