//! Making objects: `PyType_GenericAlloc`, `PyObject_New` and their kin.

use core::ptr;

use alloc::vec::Vec;

use super::handle::{self, GcObject, Object, Quiet};
use super::types::{GC_HEAD, HEADER};
use super::{ItemKind, ObjectError, ObjectHeap, Type, TypeId, object_fault, table};
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
        let quiet = &mut self.begin()?;
        let kind = self.kind(kind)?;
        if kind.gc {
            self.reserve_track()?;
        }
        let object = match self.reuse(kind, quiet) {
            Some(object) => object,
            None => {
                // CPython asks for one item more than `nitems`.
                let size = nitems.checked_add(1).and_then(|nitems| kind.var_size(nitems)).ok_or(ObjectError::NoMemory)?;
                self.create(kind, size, nitems, Contents::Zeroed, quiet)?
            }
        };
        if let Some(object) = object.gc() {
            self.track_object(object)?;
        }
        Ok(object.address())
    }

    /// `PyObject_New`, or `PyObject_GC_New` for a GC type: an object with NULL for references and one reference to itself, not tracked.
    ///
    /// # Errors
    /// When `kind` is no type that this heap has defined, or there is no memory.
    #[doc(alias("tp_new", "PyObject_New", "PyObject_GC_New"))]
    pub fn new_object(&self, kind: TypeId) -> Result<usize, ObjectError> {
        let quiet = &mut self.begin()?;
        self.new_of(self.kind(kind)?, quiet).map(Object::address)
    }

    /// As [`new_object`](Self::new_object), of any type.
    pub(crate) fn new_of<'quiet>(&self, kind: &Type, quiet: &'quiet mut Quiet<'_>) -> Result<Object<'quiet>, ObjectError> {
        let size = kind.basicsize().next_multiple_of(8);
        self.create(kind, size, 0, Contents::NullReferences, quiet)
    }

    /// `PyObject_NewVar`, or `PyObject_GC_NewVar` for a GC type: as [`new_object`](Self::new_object), with `nitems` items.
    ///
    /// # Errors
    /// When `kind` is no type that this heap has defined, or there is no memory.
    #[doc(alias("PyObject_NewVar", "PyObject_GC_NewVar"))]
    pub fn new_var(&self, kind: TypeId, nitems: usize) -> Result<usize, ObjectError> {
        let quiet = &mut self.begin()?;
        let kind = self.kind(kind)?;
        let size = kind.var_size(nitems).ok_or(ObjectError::NoMemory)?;
        self.create(kind, size, nitems, Contents::NullReferences, quiet).map(Object::address)
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
        size.ok_or(ObjectError::Argument("a block that is large enough for an object of the type"))
    }

    fn init_block(&self, kind: TypeId, memory: usize, nitems: usize) -> Result<usize, ObjectError> {
        let quiet = &mut self.begin()?;
        let kind = self.kind(kind)?;
        let size = self.size_to_init(kind, memory, nitems)?;
        if !self.table().reserve(quiet) {
            return Err(ObjectError::NoMemory);
        }
        // SAFETY: a live block of at least that size, which is no object's.
        let object = unsafe { self.write(kind, memory, size, nitems, Contents::NullReferences, quiet) };
        object.map(Object::address).ok_or(ObjectError::Aborted)
    }

    /// An object with one reference in a block of its own.
    fn create<'quiet>(
        &self,
        kind: &Type,
        size: usize,
        nitems: usize,
        contents: Contents,
        quiet: &'quiet mut Quiet<'_>,
    ) -> Result<Object<'quiet>, ObjectError> {
        let size = size + kind.inline_values_size();
        let whole = size.checked_add(kind.presize).filter(|&whole| whole <= PY_SSIZE_T_MAX).ok_or(ObjectError::NoMemory)?;
        if !self.table().reserve(quiet) {
            return Err(ObjectError::NoMemory);
        }
        if kind.gc {
            self.reserve_track()?;
        }
        let block = self.heap.malloc(Domain::Obj, whole).ok_or_else(|| self.why_none())?.as_ptr().expose_provenance();
        let object = block + kind.presize;
        // SAFETY: the block was given just now, and is larger than a header.
        if kind.gc && self.gc_link() && !unsafe { self.collect_before(kind, object, quiet) } {
            self.gc_unlink();
            // SAFETY: the block was given just now.
            unsafe { self.free_block(block, quiet) };
            return Err(ObjectError::NoMemory);
        }
        // SAFETY: a block of that size with the type's bytes before the object.
        let written = unsafe {
            if kind.presize > GC_HEAD {
                ptr::with_exposed_provenance_mut::<[u64; 2]>(block).write([0; 2]);
            }
            self.write(kind, object, size, nitems, contents, quiet).is_some()
        };
        if !written {
            if kind.gc {
                self.gc_unlink();
            }
            // SAFETY: the block was given just now.
            unsafe { self.free_block(block, quiet) };
            return Err(ObjectError::Aborted);
        }
        kind.use_inline_values();
        // SAFETY: written just above.
        Ok(unsafe { Object::known(object, quiet) })
    }

    /// The error when there is no block for an object.
    #[cold]
    fn why_none(&self) -> ObjectError {
        self.heap.checked().take_fault().map_or(ObjectError::NoMemory, ObjectError::Fault)
    }

    /// Runs the collection that an allocation starts. The collection does not see the new object yet, whose block has no owner until it ends.
    /// False if hooks have used up the room in the object table.
    ///
    /// # Safety
    /// The block has room for a header at `object`, and is the caller's.
    #[cold]
    unsafe fn collect_before(&self, kind: &Type, object: usize, quiet: &mut Quiet<'_>) -> bool {
        // SAFETY: the caller's promise.
        unsafe {
            handle::set_kind(object, kind);
            self.table().enter_kept(object, quiet);
        }
        self.collect_automatically(quiet);
        self.table().bury(object, quiet);
        self.table().reserve(quiet) && self.reserve_track().is_ok()
    }

    /// Sets every reference of a new object to NULL, and its list of weak references too. False if it was interrupted.
    fn clear_new(&self, object: Object<'_>) -> bool {
        let kind = object.kind();
        object.clear_fields();
        let items = object.address() + kind.items_offset;
        // SAFETY: the items lie there (invariant 2 of handles).
        kind.items != Some(ItemKind::Object) || unsafe { self.heap.checked().clear(items, object.nitems() * kind.itemsize()) }
    }

    /// Writes an object's header (`PyObject_InitVar`) and initialises its contents. False if it was interrupted: then the block is no object's.
    ///
    /// # Safety
    /// `size` bytes at `object`, at least those of the type for `nitems` items, and the type's bytes before it, are a live block that is
    /// no object's; the table has room for it.
    unsafe fn write<'quiet>(
        &self,
        kind: &Type,
        object: usize,
        size: usize,
        nitems: usize,
        contents: Contents,
        quiet: &'quiet mut Quiet<'_>,
    ) -> Option<Object<'quiet>> {
        // SAFETY: the caller's promise.
        if contents == Contents::Zeroed && !unsafe { self.heap.checked().clear(object + HEADER, size - HEADER) } {
            return None;
        }
        // SAFETY: the caller's promise: the memory is as large as an object of the type with so many items.
        let new = unsafe { Object::make(object, kind, nitems, quiet) };
        if contents == Contents::NullReferences && !self.clear_new(new) {
            return None;
        }
        // SAFETY: now all invariants of handles hold.
        unsafe {
            self.table().enter(object, quiet);
            Some(Object::known(object, quiet))
        }
    }

    /// Makes an object of the memory that the type has kept last.
    fn reuse<'quiet>(&self, kind: &Type, quiet: &'quiet mut Quiet<'_>) -> Option<Object<'quiet>> {
        let kept = kind.free.borrow_mut().pop()?;
        // SAFETY: it has the size of an object of the type, and no other owner.
        let object = unsafe { self.write(kind, kept.address(), kind.basicsize(), 0, Contents::Zeroed, quiet) };
        if object.is_none() {
            kind.free.borrow_mut().push(kept);
        }
        object
    }

    /// Frees the memory of destroyed objects that types keep (`clear_freelists`).
    pub(crate) fn clear_free_lists(&self, quiet: &mut Quiet<'_>) {
        for index in 0..self.state().types.len() {
            let kind = self.type_info(TypeId(index as u32));
            loop {
                let kept = kind.free.borrow_mut().pop();
                let Some(object) = kept.map(|kept| kept.address()) else { break };
                if kind.gc {
                    self.gc_unlink();
                }
                self.table().bury(object, quiet);
                // SAFETY: buried just above.
                unsafe { self.free_block(object - kind.presize, quiet) };
                if self.is_interrupted_after(1) {
                    // The next call frees the rest.
                    return;
                }
            }
        }
    }

    /// `PyObject_Free`
    ///
    /// # Safety
    /// The block of a buried object, or of one that was not finished.
    #[inline]
    pub(crate) unsafe fn free_block(&self, block: usize, _: &mut Quiet<'_>) {
        // SAFETY: the caller's promise: a block of the obj domain, which nothing uses any more.
        unsafe { self.heap.free_unchecked(Domain::Obj, block) };
    }

    /// `PyObject_GC_Resize`: changes an object's number of items, and perhaps moves it. New items are NULL or 0. If clearing them is
    /// interrupted, the object keeps its old ones.
    ///
    /// # Errors
    /// When `object` is no GC object with items, is tracked or weakly referenced, has other references than the caller's, or there is no
    /// memory: then the object is as it was. When it is interrupted: then some of the items to be dropped are NULL.
    #[doc(alias = "PyObject_GC_Resize")]
    pub fn gc_resize(&self, object: usize, nitems: usize) -> Result<usize, ObjectError> {
        let quiet = &mut self.change(object)?;
        let found = self.look_alive(object, quiet)?;
        let (kind, old) = (self.kind_of(found), found.nitems());
        let Some(found) = found.gc().filter(|_| kind.items.is_some()) else {
            return Err(object_fault(FaultKind::WrongType, object).into());
        };
        self.refuse_to_move(found, quiet)?;
        let size = kind.var_size(nitems).ok_or(ObjectError::NoMemory)?;
        let whole = size.checked_add(kind.presize).filter(|&whole| whole <= PY_SSIZE_T_MAX).ok_or(ObjectError::NoMemory)?;
        if !self.table().reserve(quiet) {
            return Err(ObjectError::NoMemory);
        }
        if nitems < old {
            // Meanwhile hooks cannot use the object.
            self.table().mark_dying(object, quiet);
            // SAFETY: so nothing else gives its memory back.
            if !unsafe { self.drop_items(kind, object, nitems, quiet) } {
                self.table().mark_live(object, quiet);
                return Err(ObjectError::Aborted);
            }
        }
        let was = kind.presize + kind.var_size(old).unwrap_or(0);
        // SAFETY: the object, or its beginning.
        let copy = unsafe { self.copy_of(object - kind.presize, was.min(whole)) };
        let copy = copy.inspect_err(|_| self.table().mark_live(object, quiet))?;
        self.table().bury(object, quiet);
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
                // SAFETY: as above. Without items, the invariants of handles hold.
                unsafe {
                    self.table().enter(resized, quiet);
                    Object::known(resized, quiet).set_nitems(0);
                }
                return Ok(resized);
            }
        }
        let itemsize = kind.itemsize();
        let first_new = resized + kind.items_offset + old * itemsize;
        // SAFETY: the block holds the object, and room for `nitems` items if it was resized.
        unsafe {
            self.table().enter(resized, quiet);
            if moved?.is_none() {
                return Err(ObjectError::NoMemory);
            }
            if nitems <= old || self.heap.checked().clear(first_new, (nitems - old) * itemsize) {
                Object::known(resized, quiet).set_nitems(nitems);
            }
        }
        Ok(resized)
    }

    /// A copy of an object's bytes, if guests may resize its block. A guest cannot be trusted to keep the bytes, and the object must stay valid.
    ///
    /// # Safety
    /// So many bytes from `begin` on can be read.
    unsafe fn copy_of(&self, begin: usize, size: usize) -> Result<Option<Vec<u8>>, ObjectError> {
        if !self.heap.calls_guests() {
            return Ok(None);
        }
        let mut copy = Vec::new();
        copy.try_reserve_exact(size).map_err(|_| ObjectError::NoMemory)?;
        // SAFETY: the caller's promise, and the room just made.
        unsafe {
            if !self.heap.checked().interrupt().copy(ptr::with_exposed_provenance(begin), copy.as_mut_ptr(), size) {
                return Err(ObjectError::Aborted);
            }
            copy.set_len(size);
        }
        Ok(Some(copy))
    }

    /// Refuses an object whose address others than the caller may know: it cannot move.
    fn refuse_to_move(&self, object: GcObject<'_>, quiet: &Quiet<'_>) -> Result<(), ObjectError> {
        if object.gc_next() != 0 {
            return Err(object_fault(FaultKind::GcAlreadyTracked, object.address()).into());
        }
        let is_referenced = object.weaklist().is_some_and(|list| list.first().is_some());
        if object.refcnt() != 1 || is_referenced || self.is_held(*object, quiet) {
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
