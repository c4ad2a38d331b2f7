//! The table of objects: which addresses are objects, and their state. It lies beside the objects, so that no misuse can reach it.
//!
//! Objects in the heap's region have a byte per unit of alignment in a table that runs parallel to it; all others are in a hash table.
//! During a collection the bytes are the collector's `gc_refs`. A pass over references then touches this table, which is a sixteenth of the
//! objects' memory, instead of the objects.
//!
//! Invariants:
//! 1. A byte above [`KEPT`] is that of an object, whose memory is as the [handle](super::handle) says.
//! 2. A byte from [`UNREACHABLE`] to [`MANY_REFS`] is that of an object of a GC type.
//!
//! Only [`enter`](ObjectTable::enter) makes a byte an object's. Any other function changes a byte only where it has proof that there is an
//! object: a handle, or the byte itself. [`Byte`], [`ObjectByte`] and [`GcByte`] say what is known of a byte.

use core::cell::{Cell, UnsafeCell};
use core::ptr::NonNull;

use super::handle::{GcObject, Object, Quiet, WeakRef};

use crate::address_hash::AddressMap;
use crate::os;

/// There is no object.
pub(crate) const NOTHING: u8 = 0;
/// There was an object.
pub(crate) const DEAD: u8 = 1;
/// There was an object, and its memory is kept for the next object of its type. It still has its type.
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

// References may be added and taken off in any order: the byte never leaves its range.
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

/// The byte of any address.
#[derive(Clone, Copy)]
pub(crate) struct Byte<'quiet>(&'quiet Cell<u8>);

/// The byte of an object.
#[derive(Clone, Copy)]
pub(crate) struct ObjectByte<'quiet>(&'quiet Cell<u8>);

/// The byte of an object of a GC type.
#[derive(Clone, Copy)]
pub(crate) struct GcByte<'quiet>(&'quiet Cell<u8>);

impl<'quiet> Byte<'quiet> {
    #[inline(always)]
    pub fn get(self) -> u8 {
        self.0.get()
    }

    /// It, if there is an object whose destruction has not begun.
    #[inline(always)]
    pub fn alive(self) -> Option<ObjectByte<'quiet>> {
        is_alive(self.get()).then_some(ObjectByte(self.0))
    }

    /// It, if there is an object that a collection has found to be unreachable.
    #[inline(always)]
    pub fn unreachable(self) -> Option<GcByte<'quiet>> {
        (self.get() == UNREACHABLE).then_some(GcByte(self.0))
    }

    /// It, if there is an object that a collection has not decided about.
    #[inline(always)]
    pub fn undecided(self) -> Option<GcByte<'quiet>> {
        is_undecided(self.get()).then_some(GcByte(self.0))
    }

    /// It, if there is an object that a collection has not decided about, and one reference can be taken off the byte.
    #[inline(always)]
    pub fn reducible(self) -> Option<GcByte<'quiet>> {
        (self.get() > LEAST_REFS && self.get() < MANY_REFS).then_some(GcByte(self.0))
    }
}

impl<'quiet> ObjectByte<'quiet> {
    #[inline(always)]
    pub fn get(self) -> u8 {
        self.0.get()
    }

    #[inline(always)]
    pub fn set_live(self) {
        self.0.set(LIVE);
    }

    #[inline(always)]
    pub fn set_dying(self) {
        self.0.set(DYING);
    }

    #[inline(always)]
    pub fn set_kept(self) {
        self.0.set(KEPT);
    }

    /// Where it lies, for [`at`](Self::at).
    #[inline(always)]
    pub fn as_ptr(self) -> *const Cell<u8> {
        self.0
    }

    /// The byte that lies there.
    ///
    /// # Safety
    /// It is that of an object still, and no object outside the region has been entered or buried since.
    #[inline(always)]
    pub unsafe fn at(place: *const Cell<u8>, _: &'quiet Quiet<'_>) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { &*place })
    }
}

impl GcByte<'_> {
    #[inline(always)]
    pub fn get(self) -> u8 {
        self.0.get()
    }

    /// Sets the state, which is that of an object.
    #[inline(always)]
    pub fn set(self, state: u8) {
        debug_assert!(state > KEPT, "an object is not forgotten this way");
        self.0.set(state);
    }
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

/// The table's parts, for objects aligned to `1 << SHIFT`. A loop copies them first. Otherwise the compiler would load them again after each
/// byte that is written, because it must assume that the write changed them.
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
    pub fn of(self, address: usize) -> Byte<'quiet> {
        self.near(address).unwrap_or_else(|| self.table.outside_region(address, self.quiet))
    }

    /// An object's byte.
    #[inline(always)]
    pub fn of_object(self, object: GcObject<'_>) -> GcByte<'quiet> {
        self.near_object(object).unwrap_or_else(|| GcByte(self.table.entered_outside_region(object.address(), self.quiet)))
    }

    /// The object at any address, if it is one that a collection has not decided about.
    pub fn undecided(self, address: usize) -> Option<GcObject<'quiet>> {
        // SAFETY: invariant 2.
        self.of(address).undecided().map(|_| unsafe { GcObject::known(address, self.quiet) })
    }

    /// The object at any address, if it is one that a collection has found to be unreachable.
    pub fn unreachable(self, address: usize) -> Option<GcObject<'quiet>> {
        // SAFETY: invariant 2.
        self.of(address).unreachable().map(|_| unsafe { GcObject::known(address, self.quiet) })
    }

    /// The byte of an address, if it is in the table itself.
    #[inline(always)]
    pub fn near(self, address: usize) -> Option<Byte<'quiet>> {
        let unit = self.unit(address);
        // SAFETY: the table has a byte for every unit.
        (unit < self.units).then(|| Byte(unsafe { self.states.add(unit).as_ref() }))
    }

    /// An object's byte, if it is in the table itself.
    #[inline(always)]
    pub fn near_object(self, object: GcObject<'_>) -> Option<GcByte<'quiet>> {
        self.near(object.address()).map(|Byte(byte)| GcByte(byte))
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
    pub fn byte<'quiet>(&'quiet self, address: usize, quiet: &'quiet Quiet<'_>) -> Byte<'quiet> {
        self.near(address).map_or_else(|| self.outside_region(address, quiet), Byte)
    }

    /// An object's byte.
    #[inline(always)]
    pub fn byte_of<'quiet>(&'quiet self, object: Object<'_>, quiet: &'quiet Quiet<'_>) -> ObjectByte<'quiet> {
        ObjectByte(self.near(object.address()).unwrap_or_else(|| self.entered_outside_region(object.address(), quiet)))
    }

    /// The byte of an object of a GC type.
    #[inline(always)]
    pub fn gc_byte_of<'quiet>(&'quiet self, object: GcObject<'_>, quiet: &'quiet Quiet<'_>) -> GcByte<'quiet> {
        GcByte(self.byte_of(*object, quiet).0)
    }

    #[cold]
    #[inline(never)]
    fn outside_region<'quiet>(&'quiet self, address: usize, _: &'quiet Quiet<'_>) -> Byte<'quiet> {
        // SAFETY: the map only changes where there is a `&mut Quiet`.
        Byte(unsafe { &*self.outside_region.get() }.get(&address).unwrap_or(&self.nothing))
    }

    /// The byte of an address that has been entered.
    #[cold]
    #[inline(never)]
    fn entered_outside_region<'quiet>(&'quiet self, address: usize, _: &'quiet Quiet<'_>) -> &'quiet Cell<u8> {
        // SAFETY: as above.
        unsafe { &*self.outside_region.get() }.get(&address).expect("an object has been entered")
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
        // SAFETY: invariant 1.
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
        // SAFETY: invariant 2.
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

    /// Marks that the destruction of the object at this address has begun, if there is one.
    pub fn mark_dying(&self, address: usize, quiet: &Quiet<'_>) {
        if let Some(object) = self.object(address, quiet) {
            self.byte_of(object, quiet).set_dying();
        }
    }

    /// Marks that the object at this address lives on, if there is one.
    pub fn mark_live(&self, address: usize, quiet: &Quiet<'_>) {
        if let Some(object) = self.object(address, quiet) {
            self.byte_of(object, quiet).set_live();
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
