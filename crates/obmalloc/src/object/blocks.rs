//! The domains of a heap with objects: calls for all blocks except those of objects.

use core::ptr::NonNull;

use alloc::rc::Rc;
use alloc::vec::Vec;

use super::{ObjectHeap, object_fault, table};
use crate::allocator::ArenaAllocator;
use crate::domain::{Domain, Fault, FaultKind};
use crate::guest::{AllocatorId, ArenaGuest, Guest, GuestFault, Keeper, OwnAllocators, SetError};
use crate::heap::{HeapError, delegate};
use crate::interrupt::Undone;
use crate::profile::{Geometry, Profile};
use crate::pymalloc::{ArenaInfo, Corruption, PoolInfo, Stats, Trimmed, Window};

/// The calls of an [`ObjectHeap`] for blocks. They refuse the memory of objects.
#[derive(Clone, Copy)]
pub struct Blocks<'heap>(&'heap ObjectHeap);

impl Blocks<'_> {
    delegate! { |blocks| blocks.0.heap;
        /// As [`GuestHeap::malloc`](crate::GuestHeap::malloc).
        #[inline]
        pub fn malloc(&self, domain: Domain, size: usize) -> Option<NonNull<u8>>;
        /// As [`GuestHeap::calloc`](crate::GuestHeap::calloc).
        #[inline]
        pub fn calloc(&self, domain: Domain, count: usize, size: usize) -> Option<NonNull<u8>>;
        /// As [`GuestHeap::free_null`](crate::GuestHeap::free_null).
        pub fn free_null(&self, domain: Domain);
        /// Whether a guest gave the block of a domain at `address`.
        pub fn is_guests(&self, domain: Domain, address: usize) -> bool;
    }

    delegate! { |blocks| blocks.0.heap.checked();
        /// Whether `address` is one of the heap's live blocks, or lies inside one. An object's block counts.
        pub fn owns(&self, address: usize) -> bool;
    }

    /// As [`GuestHeap::realloc`](crate::GuestHeap::realloc).
    ///
    /// # Errors
    /// When `address` is no live block of this heap and domain, or is an object's.
    #[inline]
    pub fn realloc(&self, domain: Domain, address: Option<usize>, size: usize) -> Result<Option<NonNull<u8>>, Fault> {
        if let Some(address) = address {
            self.refuse_object(domain, address)?;
        }
        self.0.heap.realloc(domain, address, size)
    }

    /// As [`GuestHeap::free`](crate::GuestHeap::free).
    ///
    /// # Errors
    /// When `address` is no live block of this heap and domain, or is an object's.
    #[inline(always)]
    pub fn free(&self, domain: Domain, address: usize) -> Result<(), Fault> {
        self.refuse_object(domain, address)?;
        self.0.heap.free(domain, address)
    }

    /// As [`CheckedHeap::usable_size`](crate::CheckedHeap::usable_size).
    ///
    /// # Errors
    /// When `address` is no live block of this heap and domain, or is an object's.
    pub fn usable_size(&self, domain: Domain, address: usize) -> Result<usize, Fault> {
        self.refuse_object(domain, address)?;
        self.0.heap.checked().usable_size(domain, address).map_err(|fault| self.0.heap.explain(fault))
    }

    /// As [`CheckedHeap::check_free`](crate::CheckedHeap::check_free).
    ///
    /// # Errors
    /// What [`free`](Self::free) would find.
    pub fn check_free(&self, domain: Domain, address: usize) -> Result<(), Fault> {
        self.refuse_object(domain, address)?;
        self.0.heap.checked().check_free(domain, address).map_err(|fault| self.0.heap.explain(fault))
    }

    /// As [`CheckedHeap::check_realloc`](crate::CheckedHeap::check_realloc).
    ///
    /// # Errors
    /// What [`realloc`](Self::realloc) would find.
    pub fn check_realloc(&self, domain: Domain, address: usize) -> Result<(), Fault> {
        self.refuse_object(domain, address)?;
        self.0.heap.checked().check_realloc(domain, address).map_err(|fault| self.0.heap.explain(fault))
    }

    /// Refuses the memory of an object, or memory that a type keeps, by the address of the block or of the object.
    #[inline]
    fn refuse_object(&self, domain: Domain, address: usize) -> Result<(), Fault> {
        if self.0.state().types.is_empty() { Ok(()) } else { self.refuse_known_object(domain, address) }
    }

    #[inline(never)]
    fn refuse_known_object(&self, domain: Domain, address: usize) -> Result<(), Fault> {
        let is_object = !matches!(self.0.table().state(address), table::NOTHING | table::DEAD);
        if is_object || self.0.object_of_block(address).is_some() {
            return Err(Fault { used: domain, ..object_fault(FaultKind::WrongType, address) });
        }
        Ok(())
    }
}

impl Keeper for ObjectHeap {
    fn refuse(&self, domain: Domain, address: usize) -> Result<(), Fault> {
        self.blocks().refuse_object(domain, address)
    }
}

/// The calls of a heap with objects that a heap of blocks has too.
impl ObjectHeap {
    delegate! { |heap| heap.heap.checked();
        /// The release.
        pub fn profile(&self) -> &Profile;
        /// The sizes in force.
        pub fn geometry(&self) -> Geometry;
        /// As [`Heap::region`](crate::Heap::region).
        pub fn region(&self) -> (usize, usize);
        /// As [`Heap::allocated_blocks`](crate::Heap::allocated_blocks).
        pub fn allocated_blocks(&self) -> usize;
        /// As [`Heap::arenas`](crate::Heap::arenas).
        pub fn arenas(&self) -> Vec<ArenaInfo>;
        /// As [`Heap::arena_base`](crate::Heap::arena_base).
        pub fn arena_base(&self, address: usize) -> Option<usize>;
        /// As [`Heap::pool`](crate::Heap::pool).
        pub fn pool(&self, address: usize) -> Option<PoolInfo>;
        /// As [`Heap::used_blocks`](crate::Heap::used_blocks).
        pub fn used_blocks(&self, address: usize, used: &mut [bool]) -> Result<usize, Corruption>;
        /// As [`Heap::stats`](crate::Heap::stats).
        pub fn stats(&self) -> Stats;
        /// Bytes held in arenas and raw blocks.
        #[inline]
        pub fn held(&self) -> usize;
        /// The part of the bytes [held](Self::held) that has been in use: all but trimmed pools, and the ends of arenas from which no pool
        /// has been carved. Too few if a caller's own [arena allocator](Self::set_arena_allocator) has given arenas, which do not count as
        /// held.
        #[inline]
        pub fn touched(&self) -> usize;
        /// As [`CheckedHeap::setup_debug_hooks`](crate::CheckedHeap::setup_debug_hooks).
        pub fn setup_debug_hooks(&self) -> Result<(), HeapError>;
        /// Whether debug hooks have been set up.
        pub fn has_debug_hooks(&self) -> bool;
        /// As [`CheckedHeap::verify_guards`](crate::CheckedHeap::verify_guards).
        pub fn verify_guards(&self) -> Result<(), Fault>;
        /// As [`CheckedHeap::take_fault`](crate::CheckedHeap::take_fault).
        pub fn take_fault(&self) -> Option<Fault>;
        /// As [`CheckedHeap::take_late_fault`](crate::CheckedHeap::take_late_fault).
        pub fn take_late_fault(&self) -> Option<Fault>;
        /// As [`CheckedHeap::is_corrupted`](crate::CheckedHeap::is_corrupted).
        pub fn is_corrupted(&self) -> bool;
        /// Whether a panic of a hook or a guest has closed the heap for good.
        pub fn is_closed(&self) -> bool;
        /// As [`CheckedHeap::is_quarantining`](crate::CheckedHeap::is_quarantining).
        pub fn is_quarantining(&self) -> bool;
        /// As [`CheckedHeap::set_nomemory`](crate::CheckedHeap::set_nomemory).
        pub fn set_nomemory(&self, start: usize, stop: Option<usize>) -> Result<(), HeapError>;
        /// As [`CheckedHeap::set_refusing`](crate::CheckedHeap::set_refusing).
        pub fn set_refusing(&self, refusing: bool);
    }

    delegate! { |heap| heap.heap;
        /// As [`CheckedHeap::empty_quarantine`](crate::CheckedHeap::empty_quarantine).
        pub fn empty_quarantine(&self) -> bool;
        /// As [`GuestHeap::trim`](crate::GuestHeap::trim). An object's memory is in use until the object has been destroyed.
        pub fn trim(&self) -> Trimmed;
        /// As [`GuestHeap::remove_nomemory`](crate::GuestHeap::remove_nomemory).
        pub fn remove_nomemory(&self) -> Result<(), Undone>;
        /// As [`GuestHeap::allocator`](crate::GuestHeap::allocator).
        pub fn allocator(&self, domain: Domain) -> Result<AllocatorId, HeapError>;
        /// As [`GuestHeap::add_guest`](crate::GuestHeap::add_guest).
        pub fn add_guest(&self, guest: Rc<dyn Guest>) -> Result<AllocatorId, HeapError>;
        /// As [`GuestHeap::set_allocator`](crate::GuestHeap::set_allocator).
        pub fn set_allocator(&self, domain: Domain, allocator: AllocatorId) -> Result<(), SetError>;
        /// As [`GuestHeap::set_arena_guest`](crate::GuestHeap::set_arena_guest).
        pub fn set_arena_guest(&self, guest: Option<Rc<dyn ArenaGuest>>) -> Result<(), HeapError>;
        /// Whether there may be grants: an allocator has been taken out, or a guest put in.
        pub fn has_guests(&self) -> bool;
        /// Whether a call of the domains may run a guest.
        pub fn calls_guests(&self) -> bool;
        /// As [`GuestHeap::take_guest_fault`](crate::GuestHeap::take_guest_fault).
        pub fn take_guest_fault(&self) -> Option<GuestFault>;
    }

    /// The calls for blocks. They refuse the memory of objects.
    #[inline(always)]
    pub fn blocks(&self) -> Blocks<'_> {
        Blocks(self)
    }

    /// The memory of slot `place` of the [region](Self::region), each as large as an arena, and the heap's tables of its blocks; `None` if no
    /// arena is there. The window can be read and written while the heap lives, also when another arena has come there.
    ///
    /// A caller may use a block through the window on three conditions: the block is live, the heap [is plain](Self::is_plain), and no object
    /// begins 0, 16 or 32 bytes after the block's address. A window that was made before the heap [has types](Self::has_types) has no table of
    /// objects: make a new one then.
    pub fn window(&self, place: usize) -> Option<Window> {
        let checked = self.heap.checked();
        let (memory, headers) = checked.inner().pymalloc().window(place)?;
        let (offset, size) = (place * memory.len(), memory.len());
        let live = checked.inner().ledger().part_of_table(offset, size)?;
        let no_objects = NonNull::slice_from_raw_parts(NonNull::dangling(), 0);
        // The table is replaced when the first type is defined.
        let objects = if self.has_types() { self.table().part(offset, size)? } else { no_objects };
        Some(Window { memory, live, objects, headers })
    }

    /// Whether a type has been defined. From then on there may be objects.
    pub fn has_types(&self) -> bool {
        !self.state().types.is_empty()
    }

    /// Whether every live block in the [region](Self::region) is a whole block of its pool, of the pool's block size: there are no guests, no
    /// debug hooks and no quarantine.
    pub fn is_plain(&self) -> bool {
        self.heap.checked().inner().ledger().is_plain()
    }

    /// As [`GuestHeap::own_allocators`](crate::GuestHeap::own_allocators). They do not give the blocks of objects back.
    ///
    /// # Errors
    /// When there is no memory for what that takes.
    pub fn own_allocators(&self) -> Result<OwnAllocators<'_>, HeapError> {
        self.heap.own_allocators_beside(self)
    }

    /// As [`CheckedHeap::set_arena_allocator`](crate::CheckedHeap::set_arena_allocator).
    ///
    /// # Errors
    /// When there is no memory for what that takes.
    ///
    /// # Safety
    /// As there.
    pub unsafe fn set_arena_allocator(&self, allocator: ArenaAllocator) -> Result<(), HeapError> {
        // SAFETY: the caller's promise.
        unsafe { self.heap.checked().set_arena_allocator(allocator) }
    }

    /// What long work asks whether to stop.
    pub(crate) fn interrupt(&self) -> crate::interrupt::Interrupt {
        self.heap.checked().interrupt()
    }
}
