//! Making objects: `PyType_GenericAlloc`, `PyObject_New` and their kin.

use core::ptr;

use alloc::vec::Vec;

use super::types::{GC_HEAD, HEADER};
use super::{ItemKind, ObjectError, ObjectHeap, Type, TypeId, header, object_fault, table};
use crate::allocator::PY_SSIZE_T_MAX;
use crate::domain::{Domain, FaultKind};
use crate::interrupt::Interrupt;

/// How the memory of a new object is initialised.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Contents {
    /// All zeroes.
    Zeroed,
    /// References are NULL; the rest stays as it was.
    NullReferences,
}

impl ObjectHeap {
    /// `PyType_GenericAlloc`: an object with `nitems` items, all zeroes, with one reference, tracked if it is a GC object.
    ///
    /// # Errors
    /// When `kind` is no type that this heap has defined, or there is no memory.
    #[doc(alias("tp_alloc", "PyType_GenericAlloc", "PyList_New", "PyUnicode_FromString"))]
    pub fn alloc(&self, kind: TypeId, nitems: usize) -> Result<usize, ObjectError> {
        self.begin()?;
        let kind = self.kind(kind)?;
        if kind.gc {
            self.reserve_track()?;
        }
        if let Some(object) = self.reuse(kind) {
            if kind.gc {
                self.track_object(object)?;
            }
            return Ok(object);
        }
        // CPython asks for one item more than `nitems`.
        let size = nitems.checked_add(1).and_then(|nitems| kind.var_size(nitems)).ok_or(ObjectError::NoMemory)?;
        let object = self.create(kind, size, nitems, Contents::Zeroed)?;
        if kind.gc {
            self.track_object(object)?;
        }
        Ok(object)
    }

    /// `PyObject_New`, or `PyObject_GC_New` for a GC type: an object with NULL for references and one reference to itself, not tracked.
    ///
    /// # Errors
    /// When `kind` is no type that this heap has defined, or there is no memory.
    #[doc(alias("tp_new", "PyObject_New", "PyObject_GC_New"))]
    pub fn new_object(&self, kind: TypeId) -> Result<usize, ObjectError> {
        self.begin()?;
        self.new_of(self.kind(kind)?)
    }

    /// As [`new_object`](Self::new_object), of any type.
    pub(crate) fn new_of(&self, kind: &Type) -> Result<usize, ObjectError> {
        let size = kind.basicsize().next_multiple_of(8);
        self.create(kind, size, 0, Contents::NullReferences)
    }

    /// `PyObject_NewVar`, or `PyObject_GC_NewVar` for a GC type: as [`new_object`](Self::new_object), with `nitems` items.
    ///
    /// # Errors
    /// When `kind` is no type that this heap has defined, or there is no memory.
    #[doc(alias("PyObject_NewVar", "PyObject_GC_NewVar"))]
    pub fn new_var(&self, kind: TypeId, nitems: usize) -> Result<usize, ObjectError> {
        self.begin()?;
        let kind = self.kind(kind)?;
        let size = kind.var_size(nitems).ok_or(ObjectError::NoMemory)?;
        self.create(kind, size, nitems, Contents::NullReferences)
    }

    /// `PyObject_Init`: makes an object of a block of the obj domain; references become NULL, the other fields stay as they are.
    ///
    /// # Errors
    /// When `kind` is no type that this heap has defined, or is a GC type, whose objects begin inside their blocks. When `memory` is no block of
    /// the domain, is already an object, or is too small.
    #[doc(alias = "PyObject_Init")]
    pub fn init(&self, kind: TypeId, memory: usize) -> Result<usize, ObjectError> {
        self.init_block(kind, memory, 0)
    }

    /// `PyObject_InitVar`: as [`init`](Self::init), with `nitems` items.
    ///
    /// # Errors
    /// As for `init`.
    #[doc(alias = "PyObject_InitVar")]
    pub fn init_var(&self, kind: TypeId, memory: usize, nitems: usize) -> Result<usize, ObjectError> {
        self.init_block(kind, memory, nitems)
    }

    /// Checks what [`init_var`](Self::init_var) would check, and changes nothing.
    ///
    /// # Errors
    /// As for `init`.
    pub fn check_init(&self, kind: TypeId, memory: usize, nitems: usize) -> Result<(), ObjectError> {
        self.size_to_init(self.kind(kind)?, memory, nitems).map(drop)
    }

    /// Bytes of the object that `memory` will become.
    fn size_to_init(&self, kind: &Type, memory: usize, nitems: usize) -> Result<usize, ObjectError> {
        if kind.presize != 0 {
            return Err(ObjectError::Argument("a type whose objects begin where their block does, not a GC type"));
        }
        let usable = self.blocks().usable_size(Domain::Obj, memory)?;
        let size = kind.var_size(nitems).filter(|&size| size <= usable);
        let size = size.ok_or(ObjectError::Argument("a block that is large enough for an object of the type"))?;
        if self.table().reserve() { Ok(size) } else { Err(ObjectError::NoMemory) }
    }

    fn init_block(&self, kind: TypeId, memory: usize, nitems: usize) -> Result<usize, ObjectError> {
        self.begin()?;
        let kind = self.kind(kind)?;
        let size = self.size_to_init(kind, memory, nitems)?;
        // SAFETY: a live block of at least that size, which is no object's.
        if unsafe { self.write(kind, memory, size, nitems, Contents::NullReferences) } {
            Ok(memory)
        } else {
            Err(ObjectError::Aborted)
        }
    }

    /// An object with one reference in a block of its own.
    fn create(&self, kind: &Type, size: usize, nitems: usize, contents: Contents) -> Result<usize, ObjectError> {
        let size = size + kind.inline_values_size();
        let whole = size.checked_add(kind.presize).filter(|&whole| whole <= PY_SSIZE_T_MAX).ok_or(ObjectError::NoMemory)?;
        if !self.table().reserve() {
            return Err(ObjectError::NoMemory);
        }
        if kind.gc {
            self.reserve_track()?;
        }
        let block = self.heap.malloc(Domain::Obj, whole).ok_or_else(|| self.why_none())?.as_ptr().expose_provenance();
        let object = block + kind.presize;
        if kind.gc && self.gc_link() && !self.collect_before(kind, object) {
            self.gc_unlink();
            self.free_block(block);
            return Err(ObjectError::NoMemory);
        }
        // SAFETY: a block of that size with the type's bytes before the object.
        let written = unsafe {
            if kind.presize > GC_HEAD {
                ptr::with_exposed_provenance_mut::<[u64; 2]>(block).write([0; 2]);
            }
            if kind.gc {
                header::clear_gc_head(object);
            }
            self.write(kind, object, size, nitems, contents)
        };
        if !written {
            if kind.gc {
                self.gc_unlink();
            }
            self.free_block(block);
            return Err(ObjectError::Aborted);
        }
        kind.use_inline_values();
        Ok(object)
    }

    /// The error when there is no block for an object.
    #[cold]
    fn why_none(&self) -> ObjectError {
        self.heap.checked().take_fault().map_or(ObjectError::NoMemory, ObjectError::Fault)
    }

    /// Runs the collection that an allocation starts. The collection does not see the new object yet, whose block has no owner until it ends.
    /// False if hooks have used up the room in the object table.
    #[cold]
    fn collect_before(&self, kind: &Type, object: usize) -> bool {
        // SAFETY: the block is large enough for a header, and the caller's.
        unsafe { header::set_kind(object, kind) };
        self.table().enter(object);
        self.table().set(object, table::KEPT);
        self.collect_automatically();
        self.table().bury(object);
        self.table().reserve() && self.reserve_track().is_ok()
    }

    /// Sets every reference of a new object to NULL, and its list of weak references too. False if it was interrupted.
    ///
    /// # Safety
    /// As for [`write`](Self::write).
    unsafe fn clear_new(&self, kind: &Type, object: usize, nitems: usize) -> bool {
        // SAFETY: the caller's promise.
        unsafe {
            header::clear_fields(kind, object);
            if kind.items == Some(ItemKind::Object)
                && !self.heap.checked().clear(object + kind.items_offset, nitems * kind.itemsize())
            {
                return false;
            }
            if let Some(offset) = kind.weaklist {
                *header::weaklist(object, offset) = 0;
            }
        }
        true
    }

    /// Writes an object's header (`PyObject_InitVar`) and initialises its contents. False if it was interrupted: then the block is no object's.
    ///
    /// # Safety
    /// `size` bytes at `object`, at least those of the type for `nitems` items, and the type's bytes before it, are a live block that is
    /// no object's; the table has room for it.
    unsafe fn write(&self, kind: &Type, object: usize, size: usize, nitems: usize, contents: Contents) -> bool {
        // SAFETY: the caller's promise.
        if contents == Contents::Zeroed && !unsafe { self.heap.checked().clear(object + HEADER, size - HEADER) } {
            return false;
        }
        // SAFETY: the caller's promise: the memory is as large as an object of the type, and this is what makes invariant 1 hold.
        unsafe {
            header::set_refcnt(object, 1);
            header::set_kind(object, kind);
            if kind.items.is_some() {
                header::set_size(object, nitems);
            }
        }
        // SAFETY: as above; invariant 3 holds after it.
        if contents == Contents::NullReferences && !unsafe { self.clear_new(kind, object, nitems) } {
            return false;
        }
        self.table().enter(object);
        true
    }

    /// Makes an object of the memory that the type has kept last.
    fn reuse(&self, kind: &Type) -> Option<usize> {
        let object = kind.free.borrow_mut().pop()?;
        // SAFETY: kept memory has the size of an object of the type, and no other owner.
        let written = unsafe {
            if kind.gc {
                header::clear_gc_head(object);
            }
            self.write(kind, object, kind.basicsize(), 0, Contents::Zeroed)
        };
        if !written {
            kind.free.borrow_mut().push(object);
        }
        written.then_some(object)
    }

    /// Frees the memory of destroyed objects that types keep (`clear_freelists`).
    pub(crate) fn clear_free_lists(&self) {
        for index in 0..self.state().types.len() {
            let kind = self.type_info(TypeId(index as u32));
            loop {
                let kept = kind.free.borrow_mut().pop();
                let Some(object) = kept else { break };
                if kind.gc {
                    self.gc_unlink();
                }
                self.table().bury(object);
                self.free_block(object - kind.presize);
                if self.is_interrupted_after(1) {
                    // The next call frees the rest.
                    return;
                }
            }
        }
    }

    /// `PyObject_Free`
    #[inline]
    pub(crate) fn free_block(&self, block: usize) {
        // SAFETY: the memory of a buried object, or of one that was not finished, in a block of the obj domain.
        unsafe { self.heap.free_unchecked(Domain::Obj, block) };
    }

    /// `PyObject_GC_Resize`: changes an object's number of items, and perhaps moves it. New items are NULL or 0. If clearing them is
    /// interrupted, the object has no items.
    ///
    /// # Errors
    /// When `object` is no GC object with items, is tracked or weakly referenced, has other references than the caller's, or there is no
    /// memory: then the object is as it was. When it is interrupted: then some of the items to be dropped are NULL.
    #[doc(alias = "PyObject_GC_Resize")]
    pub fn gc_resize(&self, object: usize, nitems: usize) -> Result<usize, ObjectError> {
        let kind = self.change(object)?;
        if !kind.gc || kind.items.is_none() {
            return Err(object_fault(FaultKind::WrongType, object).into());
        }
        self.refuse_to_move(kind, object)?;
        // SAFETY: looked up just above.
        let old = unsafe { header::size(object) };
        let size = kind.var_size(nitems).ok_or(ObjectError::NoMemory)?;
        let whole = size.checked_add(kind.presize).filter(|&whole| whole <= PY_SSIZE_T_MAX).ok_or(ObjectError::NoMemory)?;
        if !self.table().reserve() {
            return Err(ObjectError::NoMemory);
        }
        if nitems < old {
            // Meanwhile hooks cannot use the object.
            self.table().set(object, table::DYING);
            if !self.drop_items(kind, object, nitems) {
                self.table().set(object, table::LIVE);
                return Err(ObjectError::Aborted);
            }
        }
        let was = kind.presize + kind.var_size(old).unwrap_or(0);
        let copy = self.copy_of(object - kind.presize, was.min(whole)).inspect_err(|_| self.table().set(object, table::LIVE))?;
        self.table().bury(object);
        let moved = self.heap.realloc(Domain::Obj, Some(object - kind.presize), whole);
        let resized = moved.ok().flatten().map_or(object, |block| block.as_ptr().expose_provenance() + kind.presize);
        if self.heap.checked().check_use(Domain::Obj, resized - kind.presize).is_err() {
            // A guest has left no memory to remember the block, which is lost.
            return Err(ObjectError::NoMemory);
        }
        if let (Some(copy), true) = (copy, moved.is_ok_and(|moved| moved.is_some())) {
            let begin = ptr::with_exposed_provenance_mut::<u8>(resized - kind.presize);
            let (fields, items) = copy.split_at(copy.len().min(kind.presize + kind.basicsize()));
            // SAFETY: the block is large enough, and no other code knows it.
            let all = unsafe {
                begin.copy_from_nonoverlapping(fields.as_ptr(), fields.len());
                // References must be copied to the end, because they are counted.
                let interrupt =
                    if kind.items == Some(ItemKind::Object) { Interrupt::NEVER } else { self.heap.checked().interrupt() };
                interrupt.copy(items.as_ptr(), begin.add(fields.len()), items.len())
            };
            if !all {
                // SAFETY: as above. With `ob_size` 0 there are no items.
                unsafe { header::set_size(resized, 0) };
                self.table().enter(resized);
                return Ok(resized);
            }
        }
        self.table().enter(resized);
        if moved?.is_none() {
            return Err(ObjectError::NoMemory);
        }
        let itemsize = kind.itemsize();
        // SAFETY: the block now holds `nitems` items.
        unsafe {
            let first = resized + kind.items_offset + old * itemsize;
            if nitems <= old || self.heap.checked().clear(first, (nitems - old) * itemsize) {
                header::set_size(resized, nitems);
            }
        }
        Ok(resized)
    }

    /// A copy of an object's bytes, if guests may resize its block. A guest cannot be trusted to keep the bytes, and the object must stay valid.
    fn copy_of(&self, begin: usize, size: usize) -> Result<Option<Vec<u8>>, ObjectError> {
        if !self.heap.calls_guests() {
            return Ok(None);
        }
        let mut copy = Vec::new();
        copy.try_reserve_exact(size).map_err(|_| ObjectError::NoMemory)?;
        // SAFETY: the caller's object, and the room just made.
        unsafe {
            if !self.heap.checked().interrupt().copy(ptr::with_exposed_provenance(begin), copy.as_mut_ptr(), size) {
                return Err(ObjectError::Aborted);
            }
            copy.set_len(size);
        }
        Ok(Some(copy))
    }

    /// Refuses an object whose address others than the caller may know: it cannot move.
    fn refuse_to_move(&self, kind: &Type, object: usize) -> Result<(), ObjectError> {
        // SAFETY: the caller has looked the GC object up.
        let (tracked, refcount) = unsafe { (header::gc_next(object) != 0, header::refcnt(object)) };
        if tracked {
            return Err(object_fault(FaultKind::GcAlreadyTracked, object).into());
        }
        // SAFETY: as above.
        let referenced = kind.weaklist.is_some_and(|offset| unsafe { *header::weaklist(object, offset) } != 0);
        if refcount != 1 || referenced || self.is_held(object) {
            return Err(ObjectError::Argument("an object that nothing else refers to"));
        }
        Ok(())
    }

    /// Whether an address is an object whose destruction has not begun.
    #[inline]
    pub(crate) fn is_alive(&self, object: usize) -> bool {
        table::is_alive(self.table().state(object))
    }
}
