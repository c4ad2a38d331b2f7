//! The table of objects: which addresses are objects, and their state. It lies beside the objects, so that no misuse can reach it.
//!
//! Objects in the heap's region have a byte per unit of alignment in a table that runs parallel to it; all others are in a hash table.
//! During a collection the bytes are the collector's `gc_refs`. A pass over references then touches this table, which is a sixteenth of the
//! objects' memory, instead of the objects.

use core::cell::{Cell, UnsafeCell};
use core::ptr::NonNull;

use super::handle::{GcObject, Object, Quiet, WeakRef};

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
    states: NonNull<Cell<u8>>,
    /// The bytes of objects outside the region.
    outside_region: UnsafeCell<AddressMap<Cell<u8>>>,
    /// The byte of every address without an entry: [`NOTHING`]. It is never written to.
    nothing: Cell<u8>,
}

/// The table's parts, for objects aligned to `1 << SHIFT`. A loop that writes bytes keeps a copy of them in registers: as far as the
/// compiler knows, a write of a byte could change the table itself.
#[derive(Clone, Copy)]
pub(crate) struct Places<'quiet, const SHIFT: u32> {
    base: usize,
    units: usize,
    states: NonNull<Cell<u8>>,
    table: &'quiet ObjectTable,
    pub quiet: &'quiet Quiet<'quiet>,
}

impl<'quiet, const SHIFT: u32> Places<'quiet, SHIFT> {
    /// The byte of any address.
    #[inline(always)]
    pub fn of(self, address: usize) -> &'quiet Cell<u8> {
        self.near(address).unwrap_or_else(|| self.table.place_outside_region(address, self.quiet))
    }

    /// The object at any address, if it is one that a collection has not decided about.
    pub fn undecided(self, address: usize) -> Option<GcObject<'quiet>> {
        // SAFETY: only objects that a collection looks at are in such a state.
        is_undecided(self.of(address).get()).then(|| unsafe { GcObject::known(address, self.quiet) })
    }

    /// The byte of an address, if it is in the table itself.
    #[inline(always)]
    pub fn near(self, address: usize) -> Option<&'quiet Cell<u8>> {
        let unit = self.unit(address);
        // SAFETY: the table has a byte for every unit.
        (unit < self.units).then(|| unsafe { self.states.add(unit).as_ref() })
    }

    /// The unit of an address. An address that is not aligned gives a number that is far too large.
    #[inline(always)]
    fn unit(self, address: usize) -> usize {
        address.wrapping_sub(self.base).rotate_right(SHIFT)
    }
}

impl ObjectTable {
    /// The table for a region, given its address and size; `None` when there is no address space for the table.
    pub fn new((base, len): (usize, usize), alignment: usize) -> Option<Self> {
        let units = len / alignment;
        let states = if units == 0 { NonNull::dangling() } else { os::map(units)?.cast() };
        Some(Self {
            base,
            units,
            alignment_shift: alignment.trailing_zeros(),
            states,
            outside_region: UnsafeCell::default(),
            nothing: Cell::new(NOTHING),
        })
    }

    /// The table's parts; `SHIFT` is the table's.
    #[inline(always)]
    pub fn places<'quiet, const SHIFT: u32>(&'quiet self, quiet: &'quiet Quiet<'_>) -> Places<'quiet, SHIFT> {
        debug_assert_eq!(SHIFT, self.alignment_shift, "the table has a byte for every unit of this alignment");
        Places { base: self.base, units: self.units, states: self.states, table: self, quiet }
    }

    /// The logarithm of the alignment.
    pub fn alignment_shift(&self) -> u32 {
        self.alignment_shift
    }

    /// The byte of an address, if it is in the table itself.
    #[inline(always)]
    fn near(&self, address: usize) -> Option<&Cell<u8>> {
        let unit = address.wrapping_sub(self.base).rotate_right(self.alignment_shift);
        // SAFETY: the table has a byte for every unit.
        (unit < self.units).then(|| unsafe { self.states.add(unit).as_ref() })
    }

    /// The byte of any address.
    #[inline(always)]
    pub fn place<'quiet>(&'quiet self, address: usize, quiet: &'quiet Quiet<'_>) -> &'quiet Cell<u8> {
        self.near(address).unwrap_or_else(|| self.place_outside_region(address, quiet))
    }

    #[cold]
    #[inline(never)]
    fn place_outside_region<'quiet>(&'quiet self, address: usize, _: &'quiet Quiet<'_>) -> &'quiet Cell<u8> {
        // SAFETY: the map only changes where there is a `&mut Quiet`.
        unsafe { &*self.outside_region.get() }.get(&address).unwrap_or(&self.nothing)
    }

    #[inline(always)]
    pub fn state(&self, address: usize) -> u8 {
        self.near(address).map_or_else(|| self.state_outside_region(address), Cell::get)
    }

    #[cold]
    #[inline(never)]
    fn state_outside_region(&self, address: usize) -> u8 {
        // SAFETY: the map does not change during this call.
        unsafe { &*self.outside_region.get() }.get(&address).map_or(NOTHING, Cell::get)
    }

    /// The object at any address, if there is one. It may be in the middle of its destruction.
    #[inline(always)]
    pub fn object<'quiet>(&self, address: usize, quiet: &'quiet Quiet<'_>) -> Option<Object<'quiet>> {
        // SAFETY: `enter` was promised an object, and it has not been buried since.
        (self.state(address) > KEPT).then(|| unsafe { Object::known(address, quiet) })
    }

    /// As [`object`](Self::object), if its type is a GC type.
    #[inline]
    pub fn gc<'quiet>(&self, address: usize, quiet: &'quiet Quiet<'_>) -> Option<GcObject<'quiet>> {
        self.object(address, quiet).and_then(Object::gc)
    }

    /// As [`object`](Self::object), if it is a weak reference.
    pub fn weakref<'quiet>(&self, address: usize, quiet: &'quiet Quiet<'_>) -> Option<WeakRef<'quiet>> {
        self.object(address, quiet).and_then(Object::weakref)
    }

    /// Bytes before the object at any address, or before an object whose memory is kept there.
    pub fn presize_at(&self, address: usize) -> Option<usize> {
        // SAFETY: as above. Kept memory has a type, too. Nothing is destroyed before this returns.
        (self.state(address) > DEAD).then(|| unsafe { Object::unbound(address) }.kind().presize)
    }

    /// As [`object`](Self::object), if its destruction has not begun.
    #[inline(always)]
    pub fn alive<'quiet>(&self, address: usize, quiet: &'quiet Quiet<'_>) -> Option<Object<'quiet>> {
        // SAFETY: as above.
        is_alive(self.state(address)).then(|| unsafe { Object::known(address, quiet) })
    }

    /// As [`object`](Self::object), if it is in the set of unreachable objects.
    #[inline(always)]
    pub fn unreachable<'quiet>(&self, address: usize, quiet: &'quiet Quiet<'_>) -> Option<GcObject<'quiet>> {
        // SAFETY: as above; a collection finds objects of GC types.
        (self.state(address) == UNREACHABLE).then(|| unsafe { GcObject::known(address, quiet) })
    }

    /// Makes sure that [`enter`](Self::enter) has room.
    pub fn reserve(&self, _: &mut Quiet<'_>) -> bool {
        // SAFETY: nothing refers to the map, because it is not quiet.
        unsafe { (*self.outside_region.get()).try_reserve(1).is_ok() }
    }

    /// Enters an object. [`reserve`](Self::reserve) has made room.
    ///
    /// # Safety
    /// Its memory holds an object as the invariants of [`handle`](super::handle) say, until it is [buried](Self::bury).
    #[inline]
    pub unsafe fn enter(&self, address: usize, quiet: &mut Quiet<'_>) {
        // SAFETY: the caller's promise.
        unsafe { self.enter_as(address, LIVE, quiet) };
    }

    /// Enters memory that is to become an object's, as [`KEPT`].
    ///
    /// # Safety
    /// It has an object's type.
    pub unsafe fn enter_kept(&self, address: usize, quiet: &mut Quiet<'_>) {
        // SAFETY: the caller's promise.
        unsafe { self.enter_as(address, KEPT, quiet) };
    }

    /// # Safety
    /// As for the two above.
    #[inline]
    unsafe fn enter_as(&self, address: usize, state: u8, _: &mut Quiet<'_>) {
        if let Some(byte) = self.near(address) {
            byte.set(state);
        } else {
            // SAFETY: as in `reserve`.
            unsafe { (*self.outside_region.get()).insert(address, Cell::new(state)) };
        }
    }

    /// Sets the state of an object.
    #[inline(always)]
    pub fn set(&self, object: Object<'_>, state: u8) {
        match self.near(object.address()) {
            Some(byte) => byte.set(state),
            None => self.set_outside_region(object.address(), state),
        }
    }

    /// Sets the state of the object at an address, if there is one.
    pub fn set_at(&self, address: usize, state: u8) {
        if self.state(address) > KEPT {
            self.near(address).map_or_else(|| self.set_outside_region(address, state), |byte| byte.set(state));
        }
    }

    #[cold]
    #[inline(never)]
    fn set_outside_region(&self, address: usize, state: u8) {
        // SAFETY: the map does not change during this call.
        let byte = unsafe { &*self.outside_region.get() }.get(&address);
        debug_assert!(byte.is_some(), "an object has been entered");
        if let Some(byte) = byte {
            byte.set(state);
        }
    }

    /// Marks an object as dead, because its memory is freed. Outside the region, forgets the object.
    #[inline]
    pub fn bury(&self, address: usize, _: &mut Quiet<'_>) {
        if let Some(byte) = self.near(address) {
            byte.set(DEAD);
        } else {
            // SAFETY: as in `reserve`.
            unsafe { (*self.outside_region.get()).remove(&address) };
        }
    }

    /// The part of the table for `size` bytes of the region from `offset` on.
    pub fn part(&self, offset: usize, size: usize) -> Option<NonNull<[u8]>> {
        let (begin, units) = (offset >> self.alignment_shift, size >> self.alignment_shift);
        // SAFETY: the table has a byte for every unit.
        (begin + units <= self.units).then(|| NonNull::slice_from_raw_parts(unsafe { self.states.add(begin) }.cast(), units))
    }

    /// The address and size of the part of the table that covers the first `used` bytes of the region.
    pub fn used_table(&self, used: usize) -> (NonNull<u8>, usize) {
        (self.states.cast(), self.units.min(used >> self.alignment_shift))
    }
}

impl Drop for ObjectTable {
    fn drop(&mut self) {
        if self.units != 0 {
            // SAFETY: mapped by `new` with this size; the table is gone.
            unsafe { os::unmap(self.states.cast(), self.units) };
        }
    }
}
