//! Types: which parts an object has, and where they lie.

#![forbid(unsafe_code)]

use alloc::string::String;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

use rustc_hash::FxBuildHasher;

use super::ObjectError;
use super::dying::Kept;
use crate::allocator::PY_SSIZE_T_MAX;
use crate::profile::{InlineValues, ObjectRules, Storage};

/// Bytes of `PyObject`: the reference count and the type.
pub(crate) const HEADER: usize = 16;
/// Bytes of `PyVarObject`: a header, and how many items follow (`ob_size`).
const VAR_HEADER: usize = 24;
/// Bytes of the two words that the collector keeps before an object (`PyGC_Head`).
pub(crate) const GC_HEAD: usize = 16;
/// Bytes of the two words for a managed dict and weak references, before the collector's.
const MANAGED_WORDS: usize = 16;
/// Offset of a managed list of weak references from the object, in bytes.
const MANAGED_WEAKLIST: isize = -32;
/// How many attribute names the instances of a class can share at first (`SHARED_KEYS_MAX_SIZE`).
const SHARED_KEYS_MAX_SIZE: usize = 30;
/// Bytes of a reference.
const REFERENCE: usize = 8;

/// The kind of a field's value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FieldKind {
    /// A reference to an object, or NULL.
    Object,
    /// An integer from 0 to 255.
    U8,
    /// A signed integer of 32 bits.
    I32,
    /// An unsigned integer of 32 bits.
    U32,
    /// A signed integer of 64 bits.
    I64,
    /// A floating-point number of 64 bits.
    F64,
}

impl FieldKind {
    /// Size and alignment in bytes.
    pub const fn size(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::I32 | Self::U32 => 4,
            Self::Object | Self::I64 | Self::F64 => 8,
        }
    }
}

/// The kind of an object's items.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ItemKind {
    /// References to objects, 8 bytes each.
    Object,
    /// Bytes.
    Byte,
}

/// Which of a type's functions are [`Hooks`](super::Hooks); the others are native.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct HookSet {
    /// `tp_traverse`
    pub traverse: bool,
    /// `tp_clear`
    pub clear: bool,
    /// `tp_finalize` (PEP 442)
    pub finalize: bool,
    /// `tp_del`, the legacy finalizer.
    pub del: bool,
    /// `tp_dealloc`
    pub dealloc: bool,
}

/// The definition of a type.
#[derive(Clone, Default, Debug)]
#[doc(alias("tp_flags", "Py_TPFLAGS_DEFAULT"))]
pub struct TypeSpec {
    /// `tp_name`
    #[doc(alias = "tp_name")]
    pub name: String,
    /// The fields, in the order in which they are laid out, each aligned to its own size.
    pub fields: Vec<(String, FieldKind)>,
    /// The kind of its items, if its objects have items.
    pub items: Option<ItemKind>,
    /// `Py_TPFLAGS_HAVE_GC`
    #[doc(alias = "Py_TPFLAGS_HAVE_GC")]
    pub gc: bool,
    /// Whether weak references to its objects can be made.
    pub weakrefs: bool,
    /// Whether its objects carry a dict as those of a Python class do.
    pub managed_dict: bool,
    /// How many destroyed objects are kept, so that the next [`alloc`](super::ObjectHeap::alloc) can use their memory.
    pub free_list: usize,
    /// Which of its functions are hooks.
    pub hooks: HookSet,
}

/// The number of a type of a heap.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct TypeId(pub(crate) u32);

impl TypeId {
    /// Types are numbered from 0 in the order in which they were defined; number 0 is the weak reference.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A field of a type.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FieldInfo {
    /// The field's name.
    pub name: String,
    /// The kind of its value.
    pub kind: FieldKind,
    /// Bytes from the object's address.
    pub offset: usize,
}

/// References that lie side by side: where the first is, from the object's address, and how many there are.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Run {
    pub offset: u32,
    pub count: u32,
}

/// A type (`PyTypeObject`).
#[derive(Debug)]
#[doc(alias = "PyTypeObject")]
pub struct Type {
    // The fields that a traversal needs come first.
    /// The first run of fields that are references.
    pub(crate) refs: Run,
    /// Whether `refs` is all there is to traverse.
    pub(crate) simple: bool,
    pub(crate) gc: bool,
    /// Whether the end of an object does more than drop its references.
    pub(crate) has_end: bool,
    pub(crate) hooks: HookSet,
    pub(crate) items: Option<ItemKind>,
    pub(crate) items_offset: usize,
    /// All runs, the first one too.
    runs: Vec<Run>,
    pub(crate) id: TypeId,
    /// Bytes before the object (`_PyType_PreHeaderSize`).
    pub(crate) presize: usize,
    /// Where the list of weak references is, in bytes from the object's address (`tp_weaklistoffset`).
    pub(crate) weaklist: Option<isize>,
    pub(crate) free_list: usize,
    /// Destroyed objects, the next one to be used last.
    pub(crate) free: RefCell<Vec<Kept>>,
    /// How many names the shared keys still have room for, if objects have inline values (`dk_usable`).
    inline_keys: Option<Cell<usize>>,
    basicsize: usize,
    name: String,
    fields: Vec<FieldInfo>,
}

const fn align(offset: usize, to: usize) -> usize {
    offset.next_multiple_of(to)
}

impl Type {
    /// Lays a type out as the release does.
    pub(crate) fn new(id: TypeId, spec: TypeSpec, rules: &ObjectRules) -> Result<Self, ObjectError> {
        let mut end = if spec.items.is_some() { VAR_HEADER } else { HEADER };
        let mut fields = Vec::new();
        fields.try_reserve_exact(spec.fields.len()).map_err(|_| ObjectError::NoMemory)?;
        let mut runs: Vec<Run> = Vec::new();
        runs.try_reserve_exact(spec.fields.len() + 1).map_err(|_| ObjectError::NoMemory)?;
        let mut names = hashbrown::HashSet::with_hasher(FxBuildHasher);
        names.try_reserve(spec.fields.len()).map_err(|_| ObjectError::NoMemory)?;
        if !spec.fields.iter().all(|(name, _)| names.insert(name.as_str())) {
            return Err(ObjectError::Argument("fields with different names"));
        }
        drop(names);
        for (name, kind) in spec.fields {
            let offset = align(end, kind.size());
            end = offset + kind.size();
            if kind == FieldKind::Object {
                match runs.last_mut() {
                    Some(run) if run.offset as usize + run.count as usize * REFERENCE == offset => run.count += 1,
                    _ => runs.push(Run { offset: offset as u32, count: 1 }),
                }
            }
            fields.push(FieldInfo { name, kind, offset });
        }
        if u32::try_from(end).is_err() {
            // A run cannot hold such an offset. No memory could hold such an object either.
            return Err(ObjectError::NoMemory);
        }
        end = align(end, REFERENCE);
        // Managed words lie before the collector's words, at a fixed offset from the object, so the type must be a GC type.
        let managed = |wanted: bool, storage: Storage| {
            let has_words = match storage {
                Storage::Slot => false,
                Storage::PreHeader => true,
                Storage::PreHeaderOfFixedSize => spec.items.is_none(),
            };
            wanted && has_words && spec.gc
        };
        let (managed_dict, managed_weaklist) = (managed(spec.managed_dict, rules.dict), managed(spec.weakrefs, rules.weaklist));
        let dict_slot = spec.managed_dict && !managed_dict;
        if dict_slot && spec.items.is_none() {
            end += REFERENCE;
        }
        let mut weaklist = managed_weaklist.then_some(MANAGED_WEAKLIST);
        if spec.weakrefs && !managed_weaklist {
            weaklist = Some(end as isize);
            end += REFERENCE;
        }
        let items_offset = end;
        if dict_slot && spec.items.is_some() {
            // The dict's slot lies behind the items.
            end += REFERENCE;
        }
        let has_inline_values = managed_dict
            && match rules.inline_values {
                InlineValues::Never => false,
                InlineValues::BareTypes => spec.items.is_none() && end == HEADER,
                InlineValues::FixedSizeTypes => spec.items.is_none(),
            };
        let presize = usize::from(spec.gc) * GC_HEAD + usize::from(managed_dict || managed_weaklist) * MANAGED_WORDS;
        let refs = runs.first().copied().unwrap_or_default();
        Ok(Self {
            refs,
            simple: runs.len() <= 1 && spec.items != Some(ItemKind::Object) && !spec.hooks.traverse,
            gc: spec.gc,
            has_end: weaklist.is_some() || id == TypeId(0) || spec.hooks.finalize || spec.hooks.del || spec.hooks.dealloc,
            hooks: spec.hooks,
            items: spec.items,
            items_offset,
            runs,
            id,
            presize,
            weaklist,
            free_list: spec.free_list,
            free: RefCell::default(),
            inline_keys: has_inline_values.then(|| Cell::new(SHARED_KEYS_MAX_SIZE)),
            basicsize: end,
            name: spec.name,
            fields,
        })
    }

    /// The type's number.
    pub fn id(&self) -> TypeId {
        self.id
    }

    /// `tp_name`
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes of an object without items (`tp_basicsize`).
    #[doc(alias = "tp_basicsize")]
    pub fn basicsize(&self) -> usize {
        self.basicsize
    }

    /// Bytes of an item (`tp_itemsize`); 0 if there are no items.
    #[doc(alias = "tp_itemsize")]
    pub fn itemsize(&self) -> usize {
        match self.items {
            None => 0,
            Some(ItemKind::Object) => REFERENCE,
            Some(ItemKind::Byte) => 1,
        }
    }

    /// The kind of its items, if its objects have items.
    pub fn items(&self) -> Option<ItemKind> {
        self.items
    }

    /// The fields, in order.
    pub fn fields(&self) -> &[FieldInfo] {
        &self.fields
    }

    /// Which of its functions are hooks.
    pub fn hooks(&self) -> HookSet {
        self.hooks
    }

    /// `Py_TPFLAGS_HAVE_GC`
    pub fn is_gc(&self) -> bool {
        self.gc
    }

    /// Bytes before an object of this type: the collector's words, and those of a managed dict and weak references.
    pub fn presize(&self) -> usize {
        self.presize
    }

    /// The runs of references after the first.
    #[inline]
    pub(crate) fn more_refs(&self) -> &[Run] {
        self.runs.get(1..).unwrap_or_default()
    }

    /// Bytes of an object with `nitems` items (`_PyObject_VAR_SIZE`); `None` if the number is too large.
    pub(crate) fn var_size(&self, nitems: usize) -> Option<usize> {
        let size = self.basicsize.checked_add(nitems.checked_mul(self.itemsize())?)?.checked_next_multiple_of(REFERENCE)?;
        (size <= PY_SSIZE_T_MAX).then_some(size)
    }

    /// Bytes of the values behind the next object (`_PyInlineValuesSize`).
    pub(crate) fn inline_values_size(&self) -> usize {
        self.inline_keys.as_ref().map_or(0, |keys| align(keys.get(), REFERENCE) + (keys.get() + 1) * REFERENCE)
    }

    /// Counts a new object against the shared keys (`_PyObject_InitInlineValues`).
    pub(crate) fn use_inline_values(&self) {
        if let Some(keys) = &self.inline_keys
            && keys.get() > 1
        {
            keys.set(keys.get() - 1);
        }
    }
}

impl Type {
    /// Makes a type without fields the type of weak references (`_PyWeakref_RefType`).
    pub(crate) fn weakref(mut self, rules: &ObjectRules) -> Self {
        self.basicsize = rules.weakref_basicsize;
        self
    }

    /// Whether this is the type of weak references.
    #[inline]
    pub(crate) fn is_weakref(&self) -> bool {
        self.id == TypeId(0)
    }

    /// Makes room for the type's free list, or a part of it.
    pub(crate) fn reserve_free_list(&self) -> Result<(), ObjectError> {
        self.free.borrow_mut().try_reserve(self.free_list.min(256)).map_err(|_| ObjectError::NoMemory)
    }
}
