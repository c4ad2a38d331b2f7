/**
 * obmalloc: the public contract. What is declared here is there.
 *
 * No argument is ever converted: no `valueOf` is called. Missing arguments are `undefined`; further ones are ignored. A heap or
 * anything of it cannot be posted to another thread: that throws a `DataCloneError`.
 *
 * Callbacks may use their heap, with these exceptions. From inside an arena allocator, only the heap's own arena allocator and its own
 * allocator for raw memory may be called (`ERR_REENTRANT`). From inside a type's `traverse`, only what looks at one thing may be called; what changes something, makes a
 * view, or goes through the heap (`verify`, `gc.getObjects` and its like) throws `ERR_GC_IN_PROGRESS`, and `gc.collect` gives 0.
 * No callback may close its heap, nor run calls that may call back inside more than 50 callbacks one inside another
 * (`ERR_REENTRANT`). What a callback throws that no call can throw on goes to {@link HeapOptions.onUnraisable}. A callback that gives
 * a promise or a generator has failed with `ERR_CALLBACK_RESULT`, because nobody would wait for it.
 */

/** The CPython release whose behaviour a heap takes on. `'3.14.0'` is the incremental collector of 3.14.0 to 3.14.4; `'3.14'` is 3.14.5 and later. */
export type Release = '3.8' | '3.9' | '3.10' | '3.11' | '3.12' | '3.13' | '3.14.0' | '3.14' | '3.15'

/** `PYMEM_DOMAIN_RAW`, `PYMEM_DOMAIN_MEM`, `PYMEM_DOMAIN_OBJ`. */
export type DomainName = 'raw' | 'mem' | 'obj'

/**
 * What `PYTHONMALLOC` may say: pymalloc or the C library's malloc for the mem and obj domains, without or with debug hooks around all
 * three. As in a release build, `'default'` is `'pymalloc'` and `'debug'` is `'pymalloc_debug'`.
 */
export type AllocatorName = 'default' | 'debug' | 'malloc' | 'malloc_debug' | 'pymalloc' | 'pymalloc_debug'

/** Bytes, or a count of things: an integer from 0 to 2**53 - 1, or a BigInt from 0n to 2n**63n - 1n. */
export type Size = number | bigint

/** The address of a block: a plain, safe integer (user space is below 2^47). NULL is `null`, never `0`. */
export type Address = number & { readonly __address: unique symbol }

export interface Geometry {
  /** Bytes in an arena. */ readonly arenaSize: number
  /** Bytes in a pool. */ readonly poolSize: number
  /** Bytes; 16 on 64-bit. */ readonly alignment: number
  /** Largest request, in bytes, that pymalloc serves itself. */ readonly smallRequestThreshold: number
}

export interface HeapOptions {
  /** @defaultValue `'3.14'` */
  release?: Release
  /** Which allocators the three domains start with. @defaultValue `'default'` */
  allocator?: AllocatorName
  /**
   * Departures from the release's own geometry, for asking "what if": an arena of 64 KiB to 64 MiB and a pool of 4 KiB to 256 KiB, at
   * most half of the arena, both powers of two; alignment 8 or 16; a threshold up to a quarter of the pool.
   */
  geometry?: Partial<Geometry>
  /** Bytes the heap may hold in arenas and raw blocks; past it requests fail as if the system had none. */
  memoryLimit?: Size
  /**
   * Bytes of freed blocks that wait before their memory is used again, the longest waiting first. As long as a block waits, freeing it
   * again is `ERR_DOUBLE_FREE` and using it `ERR_USE_AFTER_FREE`, also where its address would have been handed out again by then; so with
   * the addresses of objects. What waits is free to {@link Heap.allocatedBlocks}, but takes memory, until a domain's request would fail
   * for it. Addresses are not CPython's with it, and a `realloc` moves where it can. Nothing waits while a script's allocator is in. Debug
   * hooks fill a block when it is freed, and watch it from then on: a write to it is found by {@link Heap.verify}, or goes to
   * {@link onUnraisable} when it has waited.
   * @defaultValue `0`
   */
  quarantine?: Size
  /**
   * Is told of every exception that no call can throw (`sys.unraisablehook`): those of a type's `clear`, `finalize`, `del` and `dealloc`,
   * of the callbacks of weak references and of `gc.callbacks`, and those for which an automatic collection was given up. The call in
   * which it came up goes on. Left out, each becomes a warning of the process (`process.emitWarning`, of the type
   * `'UnraisableException'`), and so do exceptions of this function.
   */
  onUnraisable?(error: unknown, context: UnraisableContext): void
}

/** Where an exception came up that no call can throw. */
export interface UnraisableContext {
  /**
   * Which callback: a type's, `'weakref'`, one of `gc.callbacks`, `onUnraisable` itself; `'collect'` for a collection that was given up,
   * and `'callback'` for one of these that could not even be called, most often because the stack was full.
   */
  readonly hook: 'clear' | 'finalize' | 'del' | 'dealloc' | 'weakref' | 'callbacks' | 'onUnraisable' | 'collect' | 'callback'
  /** The object, or the weak reference. */
  readonly object?: Address
  /** The type whose function it was. */
  readonly type?: ObjectType
}

/**
 * `PyMemAllocatorEx`: what a domain does. Put one in with {@link Heap.setAllocator}, take the present one out with
 * {@link Heap.getAllocator}.
 *
 * One of the heap's own, taken out, can be called directly. What it gives then is a *grant*: the caller's, until it is given back to the same
 * allocator. In a domain that the allocator is in, its blocks may be freed and resized through the one as well as through the other, as in
 * C. For every other domain the grant is in use (`ERR_REENTRANT`), but {@link Domain.read} and {@link Domain.write} reach it.
 *
 * One of a script's, put in, is called for every request. It answers with `null`, or with bytes that lie in one grant of this heap, are aligned
 * as blocks are, and hold no other block or arena (a block of zero bytes takes one there); for `calloc` they must be zeroed, and for the raw domain lie in no arena. Anything else
 * fails the call with `ERR_CALLBACK_RESULT`, and an exception with `ERR_CALLBACK_THREW`, its `cause` the exception; the heap is as before
 * then. When `free` throws, the call throws the same, but is done: the block is freed. Memory of another heap is no grant.
 *
 * While a block lies in a grant, the grant can be neither given back nor moved (`ERR_REENTRANT`), with one exception: inside a script's
 * `realloc`, the heap's own `realloc` of the grant in which nothing but that block lies. Its result is then the block, whatever else the
 * script says: should the call fail all the same, the error's `address` says where the block is. A grant that is given back inside a `realloc`
 * goes when the block has left it.
 *
 * While a script's allocator runs, its heap cannot be used, but its own allocators can be called (`ERR_REENTRANT`), at most 50 scripts'
 * allocators deep.
 */
export interface Allocator {
  /** A block of at least `size` bytes with unspecified contents; zero bytes give a block too. */
  malloc(size: Size): Address | null
  /** `count * size` zeroed bytes. */
  calloc(count: Size, size: Size): Address | null
  /** The block, perhaps moved, with its contents up to the smaller size; when there is no memory, `null`, and the block as it was. Without a block this is `malloc`. */
  realloc(address: Address | null, size: Size): Address | null
  /** Gives a block back; NULL is fine. */
  free(address: Address | null): void
}

/**
 * `PyObjectArenaAllocator`: where arenas come from.
 *
 * What `alloc` gives must be `size` bytes in one grant of this heap, given by one of its own allocators or by its own arena allocator (the one
 * that {@link Heap.getArenaAllocator} gives at first), at a multiple of 16, and hold no block or other arena; anything else fails the call
 * that needed it with `ERR_CALLBACK_RESULT`, and an exception with `ERR_CALLBACK_THREW`, its `cause` the exception. The heap is as
 * before then. While an arena lies in a grant, the grant cannot be given back or moved (`ERR_REENTRANT`). When `free` throws, the
 * call that gave the arena back throws `ERR_CALLBACK_THREW`, but is done: the block is freed, or moved to the error's `address`.
 */
export interface ArenaAllocator {
  alloc(size: number): Address | null
  free(address: Address, size: number): void
}

/**
 * One of the three domains.
 *
 * Wrong kinds of argument throw `TypeError` (`ERR_INVALID_ARG_TYPE`), numbers that are no size throw `RangeError`
 * (`ERR_OUT_OF_RANGE`), misused addresses throw {@link MemoryFault}. Memory that cannot be had is `null`, as in C. The memory of an
 * object is its type's: here it throws `ERR_WRONG_TYPE`.
 */
export interface Domain extends Allocator {
  readonly name: DomainName
  /** Bytes that may be used at `address`: the size class's for a small block, what was requested for another, or for any with debug hooks. */
  usableSize(address: Address): number
  /**
   * The block's own bytes, no copy. One view per block, for as long as it lives; freeing or moving the block detaches it (length 0).
   * Throws `ERR_EXTERNAL_BUFFERS_UNSUPPORTED` where the JavaScript engine allows no buffer over outside memory.
   */
  view(address: Address): Uint8Array
  /** A copy of `length` bytes from `offset` on; left out, they are 0 and all that follow. */
  read(address: Address, offset?: Size, length?: Size): Uint8Array
  /** Copies `bytes`, which may be a view of the same block, to `offset`. */
  write(address: Address, bytes: Uint8Array, offset?: Size): void
}

export class Heap {
  constructor(options?: HeapOptions)
  readonly release: Release
  readonly geometry: Geometry
  readonly raw: Domain
  readonly mem: Domain
  readonly obj: Domain
  readonly gc: Collector

  /**
   * `PyMem_GetAllocator`. The one that is in, and always the same object for the same one; in a domain that a script's is in, the script's.
   * mem and obj begin with the same one, pymalloc's.
   */
  getAllocator(domain: DomainName): Allocator
  /**
   * `PyMem_SetAllocator`. Blocks that are there stay: the allocator is asked to free and resize them too, and if it is one of the heap's
   * own that does not know them, whoever gave them is. What pymalloc passes on to raw goes to the raw domain's allocator. Putting one of
   * the heap's own back brings its speed back, once no block is left that it cannot take.
   */
  setAllocator(domain: DomainName, allocator: Allocator): void
  /**
   * `PyMem_SetupDebugHooks`: puts debug hooks around the allocators of all domains; a domain that has them keeps them. From then on a block
   * has 16 bytes before it (its size, `r`, `m` or `o` for its domain, guard bytes `FD`) and 8 guard bytes behind it, fresh memory is filled
   * with `CD` and freed memory with `DD`, and memory that was written to where it must not be is found:
   *
   * - `free` and `realloc` throw `ERR_BUFFER_OVERFLOW` or `ERR_BUFFER_UNDERFLOW` when guard bytes are damaged, with CPython's text as
   *   {@link MemoryFault.report}. The block stays as it is, and as long as it is damaged its memory is not used again. The same of an object
   *   is thrown by the call that destroys it, after everything else has been done.
   * - A small block that was written to after it was freed is not handed out any more: the request that would have got it throws
   *   `ERR_WRITE_AFTER_FREE`, and the next one gets another. This is found for pymalloc's own arenas.
   * - {@link Heap.verify} throws the same, once for each block.
   *
   * Blocks that are older than the hooks are freed and resized unlooked at. Throws {@link MemoryError} when there is no memory for the hooks.
   */
  setupDebugHooks(): void

  /** `PyObject_GetArenaAllocator`. The one in place, and always the same object for the same one. */
  getArenaAllocator(): ArenaAllocator
  /** `PyObject_SetArenaAllocator`. */
  setArenaAllocator(allocator: ArenaAllocator): void

  /**
   * A new type, for as long as the heap lives. What in the spec is not what it has to be is named in the error. The spec's functions are
   * read now, and called with it as `this`.
   */
  defineType(spec: TypeSpec): ObjectType
  /** `Py_TYPE`: always the same object for the same type. Weak references have a type too, which makes no objects. */
  typeOf(object: Address): ObjectType
  /** `Py_INCREF` */
  incref(object: Address): void
  /**
   * `Py_DECREF`: the last one destroys the object, and with it everything whose last reference it held, in CPython's order. An object
   * that is gone, or on its way, has no reference to give back: `ERR_REFCOUNT_UNDERFLOW`.
   */
  decref(object: Address): void
  /** `Py_REFCNT` */
  refcount(object: Address): number
  /** `PyUnstable_SetImmortal`: the object is never destroyed, whatever becomes of its references. False before 3.12, which has no such objects. */
  setImmortal(object: Address): boolean

  /**
   * Many operations in one call. Every operation is four numbers in `ops`: verb (0 malloc, 1 calloc, 2 realloc, 3 free),
   * domain (0 raw, 1 mem, 2 obj), slot, size. A slot holds the address that its last malloc, calloc or realloc gave; `addresses`,
   * where given, is indexed by slot and receives them (0 for NULL). Throws at the first fault, with `index` set to the operation's number.
   *
   * Slots are numbered below 2**24 and stay from one call to the next. One that was never used holds NULL; `free` leaves the address
   * in, so that freeing it again is a fault; a realloc that fails reports 0 and leaves the old block in.
   */
  run(ops: Uint32Array, addresses?: Float64Array): void

  /** `sys.getallocatedblocks()`. A freed block that a buffer in JavaScript still reaches is counted only if a script gave it: the script has the memory. */
  allocatedBlocks(): number
  /** The arenas now held, in the order in which they were obtained. */
  arenas(): ArenaInfo[]
  /** The text of `sys._debugmallocstats()` for this release, up to its type free lists. */
  debugMallocStats(): string
  /**
   * Walks every structure of the heap; throws {@link MemoryFault} (`ERR_HEAP_CORRUPTED`) at the first that does not hold. With debug hooks it
   * looks at all guard bytes and all freed memory too, and throws at the first that is damaged and was not told of yet.
   */
  verify(): void
  /**
   * Makes requests fail on purpose, as `_testcapi.set_nomemory` does: of the requests to the domains' allocators from now on, counted from
   * 0, number `start` and all after it, or up to and excluding number `stop`. As in CPython a `stop` of 0 is none, and what pymalloc passes
   * on to raw counts in both domains. Frees never fail. Throws {@link MemoryError} when there is no memory for that.
   */
  setNomemory(start: Size, stop?: Size): void
  /** `_testcapi.remove_mem_hooks`: puts back the allocators that were in when {@link Heap.setNomemory} was first called. */
  removeNomemory(): void
  /**
   * Gives all memory back; every later call throws `ERR_HEAP_CLOSED`. Closing twice is fine, and goes on where the time of a script
   * (`timeout` of `node:vm`) was over. Where a buffer that could not be detached lies in its memory, that goes with the buffer.
   */
  close(): void
  [Symbol.dispose](): void
}

export interface ArenaInfo {
  readonly address: Address
  readonly size: number
  readonly freePools: number
  readonly totalPools: number
}

/** A member of an object, laid out in the order given, each aligned to its own size, after the header. */
export type FieldKind = 'object' | 'u8' | 'i32' | 'u32' | 'i64' | 'f64'

/**
 * What a type is to be.
 *
 * `traverse` and `clear` matter for GC types only. Leaving a function out costs nothing; one that is there is called for each object.
 */
export interface TypeSpec {
  /** `tp_name`, e.g. `'tree.TreeNode'`. */ name: string
  /** By name, in JavaScript's order of an object's keys. */ fields?: Record<string, FieldKind>
  /** What the variable part holds, if there is one: `'object'` is 8 bytes an item, `'byte'` 1. */ items?: 'object' | 'byte'
  /** `Py_TPFLAGS_HAVE_GC`. @defaultValue `false` */ gc?: boolean
  /** Whether weak references to its objects can be made. @defaultValue `false` */ weakrefs?: boolean
  /** Whether instances carry a dict, as those of a Python class do: the pre-header words, and from 3.13 the inline values, of the release. @defaultValue `false` */ managedDict?: boolean
  /**
   * Type-specific allocation: how many destroyed instances are kept for the next `alloc`, last in first out, until a full collection.
   * Only for types without items. @defaultValue `0`
   */
  freeList?: Size
  /**
   * `tp_traverse`. Left out: visits every `'object'` field and item natively. It must only look (`ERR_GC_IN_PROGRESS`). A collection
   * throws, with nothing destroyed, when it throws (`ERR_CALLBACK_THREW`, `cause` is what was thrown), visits something that is no object
   * of this heap, or visits one more often than the fields and items of `self` refer to it (`ERR_GC_OVER_VISIT`). What it leaves out is
   * taken for referred to from elsewhere; {@link Collector.check} finds that.
   */
  traverse?(self: Address, visit: (object: Address) => void): void
  /** `tp_clear`. Left out: sets every `'object'` field and item to null, in order, natively. */
  clear?(self: Address): void
  /**
   * `tp_finalize` (PEP 442): at most once per object; it may resurrect. What is no GC object has no place for the mark, so as in CPython a
   * resurrected one is finalized again when it next loses its last reference.
   */
  finalize?(self: Address): void
  /** `tp_del`, the legacy finalizer: such objects in cycles end up in `gc.garbage`. */
  del?(self: Address): void
  /** Called while the object is being destroyed: after its finalizer, before its references are dropped. It can still be looked at, but not be referred to again. */
  dealloc?(self: Address): void
}

/** A type, made by {@link Heap.defineType} only. Objects of other types throw `ERR_WRONG_TYPE`. */
export class ObjectType {
  private constructor()
  readonly name: string
  /** `tp_basicsize`, bytes. */ readonly basicsize: number
  /** `tp_itemsize`, bytes. */ readonly itemsize: number
  /**
   * `PyType_GenericAlloc`: zeroed, refcount 1, tracked if it is a GC type. Throws {@link MemoryError}. Up to 3.11 it may run an automatic
   * collection; from 3.12 on that is scheduled, and runs at the start of the next call of the heap's that does not come from a callback.
   */
  alloc(nitems?: Size): Address
  /** `PyObject_New`, or `PyObject_GC_New` for a GC type: fields null, refcount 1, not tracked. Numbers and bytes are unspecified. Throws {@link MemoryError}. */
  new(): Address
  /** `PyObject_NewVar` or `PyObject_GC_NewVar`. Throws {@link MemoryError}. */
  newVar(nitems: Size): Address
  /**
   * `PyObject_Init` on memory from `heap.obj.malloc`, which is the object's from then on; a view of it is detached first. Object fields
   * become null, the others stay as they are. Not for GC types, whose objects begin inside their blocks, nor for a block that is too
   * small (`ERR_OUT_OF_RANGE`), nor for one that a buffer in JavaScript can still reach under another name (`ERR_REENTRANT`).
   */
  init(memory: Address): Address
  /** `PyObject_InitVar` */
  initVar(memory: Address, nitems: Size): Address
  /** A field by name, or an item by number: an address or null, a number, or for `'i64'` a BigInt. No reference is made. */
  get(object: Address, field: string | number): Address | number | bigint | null
  /** For an `'object'` field: takes a new reference to `value` and drops the one to the old value (`Py_XSETREF`). An `'i64'` takes safe integers too. */
  set(object: Address, field: string | number, value: Address | number | bigint | null): void
  /** `Py_SIZE`: how many items an object has. */
  nitems(object: Address): number
}

export interface GenerationStats { collections: number; collected: number; uncollectable: number }

/** One of `gc.callbacks`. All of them get the same `info`. */
export type CollectorCallback = (
  phase: 'start' | 'stop',
  info: { generation: number; collected: number; uncollectable: number },
) => void

/** References that an object holds, but its type's `traverse` does not visit. */
export interface TraverseMismatch {
  readonly object: Address
  readonly referent: Address
  /** How many fields and items of `object` hold `referent`. */
  readonly held: number
  /** How many of them were visited. */
  readonly visited: number
}

/** The cyclic collector: `PyObject_GC_*` and Python's `gc` module under their own names, in camelCase. Made by a heap. */
export interface Collector {
  /** `gc.DEBUG_STATS`, and so on: flags for {@link setDebug}. */
  readonly DEBUG_STATS: 1
  readonly DEBUG_COLLECTABLE: 2
  readonly DEBUG_UNCOLLECTABLE: 4
  readonly DEBUG_SAVEALL: 32
  readonly DEBUG_LEAK: 38
  /** `PyObject_GC_Track`. Tracking twice throws `ERR_GC_ALREADY_TRACKED`. */
  track(object: Address): void
  /** `PyObject_GC_UnTrack`. What is not tracked stays as it is. */
  untrack(object: Address): void
  isTracked(object: Address): boolean
  isFinalized(object: Address): boolean
  /**
   * `PyObject_GC_Del`: gives an object's memory back without destroying it, for whoever has made one and cannot finish it. Nothing else
   * may refer to it. One that is still tracked is untracked first, and a `ResourceWarning` of the process says so.
   */
  del(object: Address): void
  /** `PyObject_GC_Resize`, of an object that is not tracked and that nothing else refers to. Throws {@link MemoryError}, with the object as it was. */
  resize(object: Address, nitems: Size): Address
  /** Unreachable objects found, as `gc.collect()` counts them. From inside a collection: 0, and nothing happens. @param generation 2 if left out */
  collect(generation?: 0 | 1 | 2): number
  enable(): void
  disable(): void
  isEnabled(): boolean
  getThreshold(): [number, number, number]
  /** C ints. With 0 first no collection is automatic; what is left out stays. */
  setThreshold(threshold0: number, threshold1?: number, threshold2?: number): void
  getCount(): [number, number, number]
  getStats(): GenerationStats[]
  /** The tracked objects that are not frozen, in the collector's order; no reference is made. So with the next two. */
  getObjects(generation?: 0 | 1 | 2): Address[]
  getReferrers(...objects: Address[]): Address[]
  getReferents(...objects: Address[]): Address[]
  freeze(): void
  unfreeze(): void
  getFreezeCount(): number
  /** What collections write to `process.stderr`, and with `DEBUG_SAVEALL`, that they keep all they find in {@link garbage}. */
  setDebug(flags: number): void
  getDebug(): number
  /**
   * What collections found and could not destroy, appended by each. Every entry holds a reference, which is the taker's:
   * `for (const object of heap.gc.garbage.splice(0)) heap.decref(object)`.
   */
  readonly garbage: Address[]
  /** Called at the start and at the end of every collection, in order. While there are none, a collection calls no JavaScript for them. */
  readonly callbacks: CollectorCallback[]
  /**
   * A new reference to a weak reference, itself an object. `callback` is called with it once, when the referent is gone and the weak
   * reference is not. Without one, it may be a weak reference that exists already.
   */
  newWeakref(object: Address, callback?: (ref: Address) => void): Address
  /** The referent, or null once it is gone. No reference is made. */
  deref(ref: Address): Address | null
  /**
   * Calls every `traverse` of the tracked objects, and gives what they leave out: such objects are never found unreachable. Throws what a
   * collection would throw.
   */
  check(): TraverseMismatch[]
}

/** What CPython's debug hooks would abort the process for, and what it would not notice at all, as an error that can be caught. */
export class MemoryFault extends Error {
  constructor(code: FaultCode, message: string, fields?: object)
  readonly code: FaultCode
  readonly address?: Address
  /** The domain through which the call came. */
  readonly domain?: DomainName
  /** With `ERR_WRONG_DOMAIN`: the domain that the block is of, and the one through which it was used. */
  readonly allocated?: DomainName
  readonly used?: DomainName
  /** With `ERR_INTERIOR_POINTER`: the block that the address lies in. */
  readonly base?: Address
  /** With damaged guard bytes and writes after free: the byte that somebody wrote to, counted from `address`; below 0 it lies before the block. */
  readonly offset?: number
  /**
   * With debug hooks: the text that CPython of this release prints on its standard error before it aborts, as it would in the calling thread
   * if no Python function were running in it. Bytes above 127 are the characters with their numbers. Undefined for what CPython's hooks do
   * not notice or crash at.
   */
  readonly report?: string
  /** With `ERR_GC_OVER_VISIT`: the object whose `traverse` it was, and the one that it visited too often. */
  readonly object?: Address
  readonly referent?: Address
  /** From {@link Heap.run}: the number of the operation. */
  readonly index?: number
  /** With `ERR_CALLBACK_THREW`: what was thrown. */
  readonly cause?: unknown
}

/**
 * Every code that a {@link MemoryFault} may have. After `ERR_INTERNAL`, and after an `ERR_HEAP_CORRUPTED` that a request for memory threw because the
 * link of a free block was broken, the heap can only be closed: every other call throws that again.
 */
export type FaultCode =
  | 'ERR_WRONG_DOMAIN' | 'ERR_DOUBLE_FREE' | 'ERR_USE_AFTER_FREE' | 'ERR_INTERIOR_POINTER' | 'ERR_FOREIGN_POINTER' | 'ERR_WRONG_HEAP'
  | 'ERR_BUFFER_OVERFLOW' | 'ERR_BUFFER_UNDERFLOW' | 'ERR_WRITE_AFTER_FREE'
  | 'ERR_HEAP_CORRUPTED' | 'ERR_HEAP_CLOSED' | 'ERR_WRONG_TYPE' | 'ERR_GC_ALREADY_TRACKED' | 'ERR_GC_OVER_VISIT' | 'ERR_GC_IN_PROGRESS'
  | 'ERR_REFCOUNT_UNDERFLOW' | 'ERR_CALLBACK_THREW' | 'ERR_CALLBACK_RESULT' | 'ERR_REENTRANT'
  | 'ERR_EXTERNAL_BUFFERS_UNSUPPORTED' | 'ERR_INTERNAL'

/** `PyErr_NoMemory()`: no memory for an object. `code` is `'ERR_NO_MEMORY'`. */
export class MemoryError extends Error {
  constructor(message: string, fields?: object)
  readonly code: 'ERR_NO_MEMORY'
}

// Recordings of real CPythons. Sizes are bytes, moments are numbers of events and seconds since the recording began.

/**
 * A recording of a CPython, made by {@link record} or on the command line.
 *
 * ```ts
 * import { record, Trace } from 'obmalloc'
 *
 * const { trace } = await record(['-c', 'kept = [str(n) for n in range(100_000)][::1000]'], { trace: 'rows.trace', stdout: 'ignore' })
 * const { totals, findings } = await (await Trace.open(trace)).why()
 * console.log(`${totals.held} bytes are held for ${totals.live} that are live`)
 * for (const { text } of findings) console.log(text)
 * ```
 */
export class Trace {
  private constructor(path: string, header: TraceHeader)
  /** Opens a trace. Rejects with a {@link TraceError} when it is none. */
  static open(path: string): Promise<Trace>
  readonly path: string
  readonly header: TraceHeader
  /**
   * Its events, in the order in which they happened, each with its time, its thread and the stack that it was made under.
   *
   * ```ts
   * for await (const event of trace.events({ size: 4096 })) if ('call' in event) console.log(event.call, event.address, event.stack[0])
   * ```
   */
  events(options?: EventsOptions): AsyncGenerator<CallEvent | NoteEvent, void, void>
  /**
   * Makes the recorded calls again and compares every answer, up to a moment or to the end, on the recorded release or another, with its sizes or
   * others.
   *
   * ```ts
   * const { exact, matched, addresses } = await trace.replay({ at: 'peak' })
   * ```
   */
  replay(options?: ReplayTraceOptions): Promise<ReplayReport>
  /** What holds the memory at a moment, and why it was not given back. */
  why(options?: InquiryOptions): Promise<Why>
  /**
   * Tries other settings on the recording.
   *
   * ```ts
   * const { rows } = await trace.whatIf([{ arena: 256 * 1024 }, { release: '3.9' }], { allocators: ['jemalloc'] })
   * ```
   */
  whatIf(configurations: readonly Configuration[], options?: Omit<WhatIfOptions, 'configurations'>): Promise<WhatIf>
}

/**
 * Runs a program in a CPython and writes down every allocator call, with at most 64 frames of each request's stack and a sample of memory every
 * 100 ms unless told otherwise. Rejects with a {@link PlaceError}, and runs nothing, when the trace cannot be made where it is to be.
 */
export function record(program: readonly string[], options: RecordProgramOptions): Promise<Recording>

/**
 * Runs a program in a CPython and lists what is freed or reallocated by another than gave it out.
 *
 * ```ts
 * const { findings } = await check(['-m', 'unittest'])
 * ```
 */
export function check(program: readonly string[], options?: ProgramOptions): Promise<Check>

/**
 * Records a program in CPythons, all that are found unless told which, replays each recording here and compares every address, arena and
 * statistic.
 *
 * ```ts
 * import { compare } from 'obmalloc'
 *
 * for (const { interpreter, exact, report } of await compare(['-c', 'import json; json.dumps(list(range(1000)))']))
 *   console.log(interpreter.version, exact, `${report.matched} of ${report.addresses}`)
 * ```
 */
export function compare(program: readonly string[], options?: CompareProgramOptions): Promise<Comparison[]>

/** The CPythons of this machine: `paths`, or those in `OBMALLOC_PYTHON`, on `PATH`, and in the places of pyenv and uv. */
export function findInterpreters(paths?: readonly string[]): Promise<Found>

/**
 * What grew from one recording to another, or from one moment of a recording to another (`FILE@mark:1`).
 *
 * ```ts
 * const { sites } = await diff('run.trace@mark:job#1', 'run.trace@mark:job')
 * ```
 */
export function diff(a: Trace | string, b: Trace | string, options?: DiffOptions): Promise<Difference>

/** What was given is no trace, or cannot be read any further. */
export class TraceError extends Error {
  override readonly name: 'TraceError'
}

/** A trace cannot be written where it is to be. The program was not run. */
export class PlaceError extends Error {
  override readonly name: 'PlaceError'
}

/** What was asked for cannot be carried out: there is no such interpreter, moment or site. */
export class UsageError extends Error {
  override readonly name: 'UsageError'
}

/** A CPython that can be recorded and compared with. */
export interface Interpreter {
  /** The executable itself, not a shim that starts it. */
  readonly path: string
  /** E.g. `3.13.0`. */
  readonly version: string
  readonly release: Release
  /** Whether its allocator lies in a shared libpython rather than in the executable. */
  readonly shared: boolean
}

/** A candidate that cannot be used. */
export interface Unusable {
  readonly path: string
  readonly reason: string
}

/** What {@link findInterpreters} gives. */
export interface Found {
  readonly usable: Interpreter[]
  readonly unusable: Unusable[]
}

/** What the recorder says of the process, at the head of a trace. */
export interface TraceHeader {
  /** E.g. `3.13.0`. */
  readonly python: string
  readonly executable: string
  readonly argv: readonly string[]
  readonly pid: number
  readonly freeThreaded: boolean
  readonly debugBuild: boolean
  readonly shared: boolean
  /** Most frames of a request's stack, 0 when there are none. Traces before format 3 have none and do not say so. */
  readonly stacks?: number
  /** Milliseconds between two samples of memory at least, 0 when there are none. Traces before format 4 do not say so. */
  readonly every?: number
  /** What the traces of one run have in common. Traces of format 1 have no identities. */
  readonly run?: string
  /** What no other trace has. */
  readonly id?: string
  /** The trace of the process that forked this one, its identity, and how much of it was written by then. */
  readonly parent: { readonly path: string; readonly id?: string; readonly bytes: number } | null
  /** Why the recorder had to stop; `null` when it had not to. */
  readonly failed?: string | null
}

/** A frame of a stack. */
export interface Frame {
  readonly file: string
  readonly line: number
  readonly function: string
}

/** A call that the recorded process made. */
export interface CallEvent {
  readonly event: number
  readonly seconds: number | null
  readonly thread: number | null
  readonly call: 'malloc' | 'calloc' | 'realloc' | 'free' | 'alloc'
  readonly domain: 'raw' | 'mem' | 'obj' | 'arena'
  readonly count?: number
  readonly size?: number
  readonly from?: string
  readonly address: string
  readonly interpreter: number
  readonly stack: readonly Frame[]
}

/** What the recorder says besides, and samples of memory, which have no number of their own. */
export interface NoteEvent {
  readonly event: number
  readonly seconds: number | null
  readonly note: string
  readonly value?: string
  readonly anonymous?: number
  readonly file?: number
  readonly heap?: number
  readonly heapFree?: number
}

export interface EventsOptions {
  readonly from?: number | undefined
  readonly to?: number | undefined
  readonly size?: number | undefined
  readonly address?: string | undefined
  readonly site?: string | undefined
}

/** The first call that came out otherwise than recorded. */
export interface Mismatch {
  readonly operation: number
  /** What differs, in full. */
  readonly text: string
}

/** What a replay has found: `ReplayReport` of the engine. */
export interface ReplayReport {
  readonly events: number
  readonly calls: number
  readonly rawCalls: number
  readonly nestedRawCalls: number
  readonly addresses: number
  readonly matched: number
  readonly arenasTaken: number
  readonly arenasReleased: number
  readonly arenasHighwater: number
  readonly otherArenaRequests: number
  readonly strangers: number
  /** Calls on mem and obj that are not the main interpreter's but of others that had allocators of their own, and how many those are. */
  readonly otherCalls: number
  readonly otherInterpreters: number
  /** As recorded, and here; null also where there are other interpreters. */
  readonly blocks: readonly [number, number] | null
  /** As recorded, and here. */
  readonly stats: readonly [string, string] | null
  readonly hooksLost: number
  readonly ended: boolean
  readonly truncated: boolean
  /** Whether it ended before the trace did, because it was told to. */
  readonly stopped: boolean
  /** What the recorder had to say. */
  readonly remarks: readonly string[]
  readonly mismatch: Mismatch | null
  readonly exact: boolean
  readonly seconds: number
  readonly statsNow: string
}

/** A stack that asked for memory, and what it has live. Sizes in bytes, moments as event numbers. */
export interface Site {
  /** Innermost frame first; empty for C code without a Python frame. */
  readonly stack: readonly Frame[]
  /** Live blocks in pools, and their bytes at the size class's size. */
  readonly blocks: number
  readonly live: number
  /** Its share of the arenas: each divided among the sites of its live blocks by their number. The shares sum to what is held. */
  readonly held: number
  readonly arenasTouched: number
  /** Arenas in which no other site has a block. */
  readonly arenasPinnedAlone: number
  readonly bornFirst: number | null
  readonly bornLast: number | null
  /** Live at C's `malloc`: on the raw domain, and above 512 bytes on mem and obj. */
  readonly raw: number
  readonly large: number
}

export interface Arena {
  readonly address: string
  /** Pools that hold blocks, and those that hold none. */
  readonly pools: number
  readonly freePools: number
  readonly blocks: number
  readonly live: number
  /** The event at which it was taken. */
  readonly born: number
  /** Sites, by index, with most blocks first. */
  readonly pinnedBy: readonly { readonly site: number; readonly blocks: number }[]
}

export interface Finding {
  readonly rule: string
  readonly text: string
  /** The site that it is about, by index. */
  readonly site: number | null
  /** Bytes, where they are known; else 0. */
  readonly saves: number
  readonly command: string
  /** All sites that it is about, and those of the blocks that lay around theirs. */
  readonly sites: readonly number[]
  readonly burst: readonly number[]
}

/** `held = live + freeInPools + freePools + rounding`. */
export interface Totals {
  readonly arenas: number
  readonly held: number
  /** What the same blocks would take if they lay packed. */
  readonly needed: number
  readonly live: number
  readonly blocks: number
  readonly freeInPools: number
  readonly freePools: number
  readonly rounding: number
  readonly raw: number
  readonly large: number
  /** Whole pages of empty pools. */
  readonly trimmable: number
  /** Null where it was not sampled. */
  readonly resident: number | null
  readonly unexplained: number | null
  /** What C's `malloc` had and no block was in, resident or not; null where the C library does not say. */
  readonly heapFree: number | null
}

/** The answer: `obmalloc.why/1`, which `schema/why-1.json` describes. */
export interface Why {
  readonly schema: 'obmalloc.why/1'
  readonly trace: {
    readonly path: string
    readonly python: string
    readonly release: string
    readonly events: number
    readonly seconds: number | null
    readonly complete: boolean
    readonly marks: readonly { readonly name: string; readonly event: number; readonly seconds: number | null }[]
  }
  /** Addresses that were compared on the way to the moment, and those of them that are equal. */
  readonly verified: { readonly addresses: number; readonly matched: number }
  readonly at: { readonly event: number; readonly seconds: number | null; readonly moment: string }
  readonly totals: Totals
  readonly pinned: { readonly arenas: number; readonly bytes: number; readonly blocks: number }
  readonly sites: readonly Site[]
  readonly arenas: readonly Arena[]
  /** How many sites and arenas are here, of how many. */
  readonly bounded: { readonly sites: readonly [number, number]; readonly arenas: readonly [number, number] }
  /** So many blocks must go for so many arenas, fewest first. */
  readonly greedy: readonly (readonly [number, number])[]
  readonly findings: readonly Finding[]
}

export interface InquiryOptions {
  /** `end` (the default), `peak`, `mark:NAME`, `mark:NAME#2`, `event:N` or `time:SECONDS`. */
  readonly at?: string | undefined
  readonly signal?: AbortSignal
  readonly onProgress?: (done: number, total: number) => void
}

/** Another setting than the recorded one; what is not given is as recorded. Sizes in bytes. */
export interface Configuration {
  /** Follows the rules of this release. */
  readonly release?: string
  readonly arena?: number
  readonly pool?: number
  /** The largest request that pymalloc serves itself. */
  readonly threshold?: number
  /** Gives the blocks of `apart` a heap of their own. */
  readonly apart?: boolean
}

/** What can be measured in place of pymalloc. `glibc` is C's own `malloc`. */
export type MeasuredAllocator = 'glibc' | 'jemalloc' | 'mimalloc' | 'tcmalloc'

/**
 * What came of a setting, in bytes. `exact` rows follow the rules of a release for sizes that it has; `model` rows assume where the system would
 * place arenas of other sizes; `measured` rows are resident memory of a real process. Rows of different kinds cannot be ranked together.
 */
export interface WhatIfRow {
  readonly name: string
  readonly kind: 'exact' | 'model' | 'measured'
  /** Most that was held, and what is held at the moment: arenas, or resident memory where it was measured. */
  readonly peakHeld: number
  readonly held: number
  /** Against the row that is as recorded and of the same kind. */
  readonly difference: number
  /** What of `held` is in no live block; null where it was measured. */
  readonly lost: number | null
  /** Arenas that were mapped and unmapped; null where it was measured. */
  readonly maps: number | null
  readonly unmaps: number | null
  /** A call, on the mean. */
  readonly nanoseconds: number
  /** What brings it about; null where nothing does. */
  readonly setting: string | null
}

export interface WhatIf {
  readonly schema: 'obmalloc.what-if/1'
  readonly at: Moment & { readonly moment: string }
  /** Calls of mem and obj up to the moment. */
  readonly calls: number
  readonly rows: readonly WhatIfRow[]
  /** What was asked for and could not be tried, a sentence each. */
  readonly remarks: readonly string[]
}

export interface WhatIfOptions {
  readonly at?: string
  readonly configurations?: readonly Configuration[]
  readonly allocators?: readonly MeasuredAllocator[]
  /** Blocks whose stack passes this file and line have a heap of their own in one more row. */
  readonly apart?: { readonly file: string; readonly line: number }
  readonly signal?: AbortSignal
  readonly onProgress?: (what: string, done: number, total: number) => void
}

/** A moment of a trace. */
export interface Moment {
  /** The last event that has happened by then. */
  readonly event: number
  /** When that was, where the trace tells. */
  readonly seconds: number | null
}

/** What a row has on one side, in bytes. */
export interface Figures {
  readonly blocks: number
  /** In pools, at the size class's size. */
  readonly live: number
  /** Its share of the arenas. */
  readonly held: number
  /** At C's `malloc`. */
  readonly outside: number
}

/** A site, function, file or size class. `null` where one side does not have it. */
export interface DifferentRow {
  readonly name: string
  /** Of a site: as the later one has it, or the earlier one where only that has it. */
  readonly stack: readonly Frame[]
  readonly a: Figures | null
  readonly b: Figures | null
  /** How many bytes more are live, in pools and outside. */
  readonly grown: number
}

export interface DiffSide {
  readonly path: string
  readonly python: string
  readonly moment: string
  readonly event: number
  readonly seconds: number | null
  readonly totals: Totals
  /** Whether every address that was replayed is as recorded. */
  readonly verified: boolean
}

export interface Difference {
  readonly schema: 'obmalloc.diff/1'
  readonly by: 'site' | 'function' | 'file' | 'class'
  readonly a: DiffSide
  readonly b: DiffSide
  /** What grew most comes first. */
  readonly sites: readonly DifferentRow[]
}

export interface DiffOptions extends Omit<InquiryOptions, 'at'> {
  readonly by?: 'site' | 'function' | 'file' | 'class'
}

/** What gives blocks out: a domain, or C's `malloc` and its like (`c`) when it is called by anything but a domain. */
export type BlockOwner = 'raw' | 'mem' | 'obj' | 'c'

/** A place in C code. */
export interface CodePlace {
  /** `null` where the module names none. */
  readonly function: string | null
  /** The path of the executable or library; `null` for code that is in none, or when it could not be told. */
  readonly module: string | null
  /** Bytes from the module's beginning to where the call returns; the address itself when there is no module. */
  readonly offset: number | null
}

/**
 * What can be wrong with an address that is freed or reallocated. `wrong-domain`: a live block of another owner. `interior`: it lies inside a
 * live block. `freed-before`: a block began there, was freed, and nobody has given the address out since. `foreign`: nobody ever gave it out.
 * The last two as far as was seen: a library can find C's `malloc` in a way that cannot be seen. Therefore what is given to C's own `free` is
 * never `foreign`, and `freed-before` only where a block of mem or obj of 512 bytes or less was.
 */
export type FaultKind = 'wrong-domain' | 'interior' | 'freed-before' | 'foreign'

/** Occurrences of one fault in one place. */
export interface CheckFinding extends CodePlace {
  readonly kind: FaultKind
  readonly call: 'free' | 'realloc'
  /** The owner of the block in question; `null` when there is none. */
  readonly allocated: BlockOwner | null
  /** What was called. */
  readonly used: BlockOwner
  /**
   * The field of a heap type that CPython itself freed so, as it does in this release: it is whose code filled the field that has the domain
   * wrong. `null` where the program did it.
   */
  readonly field: 'tp_doc' | null
  readonly count: number
  /** Sizes asked for, bytes, and how many blocks of each; empty when there is no block. */
  readonly sizes: readonly (readonly [size: number, count: number])[]
  /** Who allocated the blocks; with `freed-before`, who freed them first. */
  readonly origins: readonly (CodePlace & { readonly count: number })[]
}

/** A process that was looked at. */
export interface CheckedProcess {
  readonly pid: number
  readonly argv: readonly string[]
  readonly version: string
  /** Whether it came to its end. One that was killed did not: it was looked at until then. */
  readonly complete: boolean
  /** Whether it went on when the program had ended: what it has done since was not looked at. */
  readonly running: boolean
  /**
   * Owners of which not all calls were seen, because the allocators were replaced. All domains in free-threaded builds, and in a process
   * that was killed before it was initialised; of one that was killed later, those that were lost by then.
   */
  readonly lost: readonly BlockOwner[]
  /** What replaced them; `null` when nothing did, or that is not known. */
  readonly replacedBy: string | null
  /** Why its report could not be written to the end; `null` when it could. */
  readonly failed: string | null
}

export interface Check {
  /** The findings of all processes, most frequent first. */
  readonly findings: CheckFinding[]
  /** The processes, the first one first: none when that was not looked at. */
  readonly processes: CheckedProcess[]
  /** How the program ended: an exit code, or the name of a signal. */
  readonly ended: number | string
}

export interface Recording {
  /** The trace of the process itself. */
  readonly trace: string
  /** Traces of the processes that it started. */
  readonly children: string[]
  /** How it ended: an exit code, or the name of a signal. */
  readonly ended: number | string
  /** Events in all these traces. */
  readonly events: number
  /** Whether nothing is missing: the program's own trace has its end, and in no trace are calls missing before its end. */
  readonly complete: boolean
  /** What is to be said of the traces, a sentence each. */
  readonly remarks: string[]
  /** The signal that told us to end while the program ran, which got it too; `null` when there was none. */
  readonly told: string | null
}

export interface ReplayTraceOptions {
  readonly release?: Release
  readonly geometry?: Geometry
  readonly at?: string
  readonly signal?: AbortSignal
  readonly onProgress?: (done: number, total: number) => void
}

export interface ProgramOptions {
  /** The CPython: `python3` unless given. */
  readonly python?: string
  readonly stdout?: 'inherit' | 'ignore' | 'stderr'
  readonly signal?: AbortSignal
}

export interface RecordProgramOptions extends ProgramOptions {
  readonly trace: string
  readonly stacks?: number
  readonly every?: number
  /** What is not used is given back meanwhile: the words of `OBMALLOC_TRIM`, such as `asked` or `every=30s,above=16M,idle,log`. */
  readonly trim?: string
  readonly env?: Record<string, string>
}

export interface Comparison {
  readonly interpreter: Interpreter
  readonly exact: boolean
  readonly report: ReplayReport
  readonly ended: number | string
  readonly remarks: readonly string[]
}

export interface CompareProgramOptions {
  readonly python?: readonly string[]
  readonly stdout?: 'inherit' | 'ignore' | 'stderr'
  readonly signal?: AbortSignal
  readonly onProgress?: (version: string, done: number, total: number) => void
}
