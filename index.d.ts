/// <reference lib="esnext.disposable" />

/**
 * obmalloc: the public contract. What is declared here exists, and does what its comment says.
 *
 * Each member has one sentence, its units and ranges, what it returns, and the codes that it throws. The longer rules are essays:
 * [allocators](docs/allocators.md), [callbacks](docs/callbacks.md), [memory](docs/memory.md), [debug hooks](docs/debug-hooks.md),
 * [the collector](docs/collector.md), [trimming](docs/trimming.md), [traces](docs/traces.md) and [exactness](docs/exactness.md). The words
 * are in the [glossary](docs/glossary.md).
 *
 * Arguments are never converted: no `valueOf` is called. A missing argument is `undefined`; an extra argument is ignored. A heap, and
 * anything that belongs to it, cannot be posted to another thread: that throws a `DataCloneError`.
 *
 * What every call on a heap can throw is not repeated at each member:
 *
 * | code | when |
 * |---|---|
 * | `ERR_INVALID_ARG_TYPE` (a `TypeError`) | an argument is of the wrong kind |
 * | `ERR_OUT_OF_RANGE` (a `RangeError`) | an argument is of the right kind, but outside its range |
 * | `ERR_HEAP_CLOSED` | the heap was closed |
 * | `ERR_REENTRANT` | a callback that forbids the call is running, or more than 50 callbacks run one inside another |
 * | `ERR_GC_IN_PROGRESS` | a type's `traverse` is running, and the call would change something |
 * | `ERR_CALLBACK_THREW`, `ERR_CALLBACK_RESULT` | the call asked a script's allocator or arena allocator, and that failed |
 * | `ERR_WRITE_AFTER_FREE` | the call requests memory under debug hooks, and the block that it would get was written to while it was free |
 * | `ERR_HEAP_CORRUPTED` | the call requests memory, and the link of a free block was overwritten; then every call but `close` throws it |
 * | `ERR_INTERNAL` | a bug of obmalloc's own; then every call on this heap but `close` throws it |
 *
 * The functions on recordings, and the methods of a {@link Trace}, reject with the first two in the same cases.
 *
 * Which calls a callback may make is the table of [callbacks](docs/callbacks.md).
 *
 * @packageDocumentation
 */

/** The CPython release whose behaviour a heap takes on. `'3.14.0'` is the incremental collector of 3.14.0 to 3.14.4; `'3.14'` is 3.14.5 and later. */
export type Release = '3.8' | '3.9' | '3.10' | '3.11' | '3.12' | '3.13' | '3.14.0' | '3.14' | '3.15'

/** A domain's name: `PYMEM_DOMAIN_RAW`, `PYMEM_DOMAIN_MEM` or `PYMEM_DOMAIN_OBJ`. */
export type DomainName = 'raw' | 'mem' | 'obj'

/**
 * What `PYTHONMALLOC` may say: pymalloc or the C library's malloc for the mem and obj domains, without or with debug hooks around all
 * three. As in a release build, `'default'` is `'pymalloc'` and `'debug'` is `'pymalloc_debug'`.
 */
export type AllocatorName = 'default' | 'debug' | 'malloc' | 'malloc_debug' | 'pymalloc' | 'pymalloc_debug'

/** Bytes, or a count of things: an integer from 0 to 2**53 - 1, or a BigInt from 0n to 2n**63n - 1n. */
export type Size = number | bigint

/** The address of a block or an object: a safe integer (user space is below 2^47). NULL is `null`, never `0`. */
export type Address = number & { readonly __address: unique symbol }

/** The sizes by which pymalloc divides memory. */
export interface Geometry {
  /** Bytes in an arena. */
  readonly arenaSize: number
  /** Bytes in a pool. */
  readonly poolSize: number
  /** The multiple, in bytes, at which blocks begin; 16 on 64-bit. */
  readonly alignment: number
  /** The largest request, in bytes, that pymalloc serves itself. */
  readonly smallRequestThreshold: number
}

/** How a heap is made. */
export interface HeapOptions {
  /**
   * The CPython release to follow.
   * @defaultValue `'3.14'`
   */
  release?: Release
  /**
   * The allocators that the three domains start with.
   * @defaultValue `'default'`
   */
  allocator?: AllocatorName
  /**
   * Departures from the release's own geometry, for asking "what if": an arena of 64 KiB to 64 MiB and a pool of 4 KiB to 256 KiB, at
   * most half of the arena, both powers of two; an alignment of 8 or 16; a threshold that is a multiple of the alignment, above 0 and up to a
   * quarter of the pool.
   */
  geometry?: Partial<Geometry>
  /** The most bytes that the heap may hold in arenas and raw blocks; past it requests fail as if the system had no memory. */
  memoryLimit?: Size
  /**
   * The most bytes of freed blocks that are kept in quarantine before their memory is used again, the oldest leaving first.
   *
   * While a block or an object is in quarantine, freeing it again is `ERR_DOUBLE_FREE` and using it is `ERR_USE_AFTER_FREE`, also where
   * its address would already have been handed out again. {@link Heap.allocatedBlocks} counts it as free, but it takes memory; it is
   * given back when a domain's request would otherwise fail. With a quarantine, addresses are not CPython's, and `realloc` moves a block
   * wherever it can. Nothing is put into quarantine while a script's allocator is in. Under debug hooks, a write to a block in
   * quarantine is found by {@link Heap.verify}, or is reported to {@link HeapOptions.onUnraisable} when the block leaves.
   * @defaultValue `0`
   */
  quarantine?: Size
  /**
   * Bytes of empty pools above which the heap {@link Heap.trim | trims} by itself when a call empties another pool; if left out, it never does.
   * The bound doubles when more than half of the bytes that the last trim gave back have been taken again. So a program that fills and empties
   * the same pools again and again soon keeps them. `trim` resets the bound.
   * @defaultValue `undefined`
   */
  trimAbove?: Size
  /**
   * Gets every exception that no call can throw (`sys.unraisablehook`): those of a type's `clear`, `finalize`, `del` and `dealloc`, of
   * the callbacks of weak references and of `gc.callbacks`, and those for which an automatic collection was given up.
   *
   * The call during which the exception came up goes on. Without this function, each exception becomes a warning of the process
   * (`process.emitWarning`, of the type `'UnraisableException'`), and so do exceptions of this function.
   * @param error what was thrown
   * @param context where it was thrown
   */
  onUnraisable?(error: unknown, context: UnraisableContext): void
}

/** Where an exception came up that no call can throw. */
export interface UnraisableContext {
  /**
   * The callback: a type's, `'weakref'`, one of `gc.callbacks`, `onUnraisable` itself; `'collect'` for a collection that was given up,
   * and `'callback'` for one of these that could not even be called, most often because the stack was full.
   */
  readonly hook: 'clear' | 'finalize' | 'del' | 'dealloc' | 'weakref' | 'callbacks' | 'onUnraisable' | 'collect' | 'callback'
  /** The object, or the weak reference, that the callback was about. */
  readonly object?: Address
  /** The type whose function it was. */
  readonly type?: ObjectType
}

/**
 * `PyMemAllocatorEx`: what a domain does. {@link Heap.setAllocator} puts one in, {@link Heap.getAllocator} takes the present one out.
 *
 * One of the heap's own, taken out, can be called directly; what it gives then is a *grant*, which is the caller's until it is given
 * back to the same allocator. A script's, put in, is called for every request, and must answer with `null` or with memory in a grant.
 * [The essay on allocators](docs/allocators.md) has the rules for both.
 *
 * @example
 * A wrapper that counts requests:
 *
 * ```ts
 * import { Heap, type Allocator } from 'obmalloc'
 *
 * const heap = new Heap()
 * const own = heap.getAllocator('obj')
 * let requests = 0
 * const counting: Allocator = {
 *   malloc: (size) => (requests++, own.malloc(size)),
 *   calloc: (count, size) => (requests++, own.calloc(count, size)),
 *   realloc: (address, size) => (requests++, own.realloc(address, size)),
 *   free: (address) => own.free(address),
 * }
 * heap.setAllocator('obj', counting)
 * heap.obj.free(heap.obj.malloc(64))
 * heap.setAllocator('obj', own)
 * console.log(requests) // 1
 * heap.close()
 * ```
 */
export interface Allocator {
  /**
   * Gives a block with unspecified contents.
   * @param size bytes, at least; zero bytes give a block too
   * @returns the block, or `null` when there is no memory
   */
  malloc(size: Size): Address | null
  /**
   * Gives a block of `count * size` zeroed bytes.
   * @param count how many elements
   * @param size bytes in an element
   * @returns the block, or `null` when there is no memory, also because the product is too large
   */
  calloc(count: Size, size: Size): Address | null
  /**
   * Changes the size of a block, which may move; its contents stay up to the smaller size.
   * @param address the block; `null` makes this a `malloc`
   * @param size bytes, at least; zero bytes give a block too
   * @returns the block, or `null` when there is no memory: then the old block is as it was
   * @throws {MemoryFault} ERR_WRONG_DOMAIN, ERR_USE_AFTER_FREE, ERR_INTERIOR_POINTER, ERR_FOREIGN_POINTER, ERR_WRONG_HEAP or ERR_WRONG_TYPE
   * when a domain's `address` is not a live block of the domain
   * @throws {MemoryFault} ERR_DOUBLE_FREE when one of the heap's own allocators, called directly, is given a freed block
   * @throws {MemoryFault} ERR_REENTRANT when `address` is a grant in which a block or an arena lies
   * @throws {MemoryFault} ERR_BUFFER_OVERFLOW or ERR_BUFFER_UNDERFLOW when debug hooks find the guard bytes damaged
   */
  realloc(address: Address | null, size: Size): Address | null
  /**
   * Gives a block back; NULL is fine.
   * @param address the block, or `null`
   * @throws {MemoryFault} ERR_WRONG_DOMAIN, ERR_DOUBLE_FREE, ERR_INTERIOR_POINTER, ERR_FOREIGN_POINTER, ERR_WRONG_HEAP or ERR_WRONG_TYPE
   * when a domain's `address` is not a live block of the domain
   * @throws {MemoryFault} ERR_REENTRANT when `address` is a grant in which a block or an arena lies
   * @throws {MemoryFault} ERR_BUFFER_OVERFLOW or ERR_BUFFER_UNDERFLOW when debug hooks find the guard bytes damaged
   */
  free(address: Address | null): void
}

/**
 * `PyObjectArenaAllocator`: where arenas come from. A script's must answer with memory in a grant, as
 * [the essay on allocators](docs/allocators.md) says.
 *
 * @example
 * Arenas that are counted:
 *
 * ```ts
 * import { Heap } from 'obmalloc'
 *
 * const heap = new Heap({ release: '3.13' })
 * const own = heap.getArenaAllocator()
 * let held = 0
 * heap.setArenaAllocator({
 *   alloc: (size) => (held++, own.alloc(size)),
 *   free: (address, size) => (held--, own.free(address, size)),
 * })
 * const block = heap.obj.malloc(64)
 * console.log(held, heap.arenas().length) // 1 1
 * heap.obj.free(block)
 * heap.close()
 * console.log(held) // 0
 * ```
 */
export interface ArenaAllocator {
  /**
   * Gives memory for an arena.
   * @param size bytes; {@link Geometry.arenaSize} when the heap asks
   * @returns the arena, or `null` when there is no memory
   */
  alloc(size: number): Address | null
  /**
   * Takes an arena back.
   * @param address the arena
   * @param size its bytes, as they were asked for
   * @throws {MemoryFault} ERR_FOREIGN_POINTER or ERR_WRONG_HEAP when this heap's own arena allocator did not give it
   * @throws {MemoryFault} ERR_REENTRANT when a block or an arena lies in it
   */
  free(address: Address, size: number): void
}

/**
 * One of the three domains: `PyMem_Raw*`, `PyMem_*` or `PyObject_*`.
 *
 * A request for memory that cannot be had is `null`, as in C. The memory of an object belongs to its type: here it is `ERR_WRONG_TYPE`.
 *
 * @example
 * ```ts
 * import { Heap } from 'obmalloc'
 *
 * using heap = new Heap({ release: '3.13' })
 * let block = heap.mem.malloc(5)! // null when there is no memory
 * heap.mem.write(block, new TextEncoder().encode('hello'))
 * block = heap.mem.realloc(block, 500)!
 * console.log(new TextDecoder().decode(heap.mem.read(block, 0, 5))) // hello
 * console.log(heap.mem.usableSize(block)) // 512
 * heap.mem.free(block)
 * ```
 */
export interface Domain extends Allocator {
  /** Which of the three it is. */
  readonly name: DomainName
  /**
   * Says how many bytes of a block may be used.
   * @param address the block
   * @returns bytes: the size class's for a small block, what was requested for any other block, or for any block under debug hooks
   * @throws {MemoryFault} ERR_WRONG_DOMAIN, ERR_USE_AFTER_FREE, ERR_INTERIOR_POINTER, ERR_FOREIGN_POINTER, ERR_WRONG_HEAP or ERR_WRONG_TYPE
   * when `address` is not a live block of this domain
   */
  usableSize(address: Address): number
  /**
   * Gives the block's own bytes, without a copy: one view per block, for as long as the block lives. Freeing or moving the block
   * detaches the view, whose length is 0 then. Before that, wait for asynchronous calls of Node.js on the view (such as `fs.read`) to end:
   * they go on with the memory.
   * @param address the block
   * @returns an array over all usable bytes; always the same one for the same block
   * @throws {MemoryFault} ERR_WRONG_DOMAIN, ERR_USE_AFTER_FREE, ERR_INTERIOR_POINTER, ERR_FOREIGN_POINTER, ERR_WRONG_HEAP or ERR_WRONG_TYPE
   * when `address` is not a live block of this domain
   * @throws {MemoryFault} ERR_EXTERNAL_BUFFERS_UNSUPPORTED when the JavaScript engine allows no buffer over outside memory
   */
  view(address: Address): Uint8Array
  /**
   * Copies bytes out of a block, or out of a grant.
   * @param address the block
   * @param offset bytes from its beginning; 0 if left out
   * @param length bytes; all that follow if left out
   * @returns a copy of `length` bytes
   * @throws {RangeError} ERR_OUT_OF_RANGE when the bytes do not lie within the block
   * @throws {MemoryFault} ERR_WRONG_DOMAIN, ERR_USE_AFTER_FREE, ERR_INTERIOR_POINTER, ERR_FOREIGN_POINTER, ERR_WRONG_HEAP or ERR_WRONG_TYPE
   * when `address` is not a live block of this domain, nor a grant
   */
  read(address: Address, offset?: Size, length?: Size): Uint8Array
  /**
   * Reads an integer of 8 bits without a sign out of a block, or out of a grant, at any offset.
   *
   * This and the next nine take a few nanoseconds for a small block of mem or obj, and so do {@link Domain.read} and {@link Domain.write} of a
   * few bytes: they make no native call where there is nothing more to look at than the address.
   * [Memory without a call](docs/memory.md) says when that is. Numbers need not be aligned; their lowest byte comes first.
   * @param address the block
   * @param offset bytes from the block's beginning; 0 if left out
   * @returns the number
   * @throws {RangeError} ERR_OUT_OF_RANGE when its bytes do not lie within the block
   * @throws {MemoryFault} ERR_WRONG_DOMAIN, ERR_USE_AFTER_FREE, ERR_INTERIOR_POINTER, ERR_FOREIGN_POINTER, ERR_WRONG_HEAP or ERR_WRONG_TYPE
   * when `address` is not a live block of this domain, nor a grant
   */
  getUint8(address: Address, offset?: Size): number
  /**
   * Writes an integer of 8 bits without a sign into a block, or into a grant, at any offset.
   * @param address the block
   * @param value an integer from 0 to 255
   * @param offset bytes from the block's beginning; 0 if left out
   * @throws {RangeError} ERR_OUT_OF_RANGE when `value` is outside its range, or its bytes do not lie within the block
   * @throws {MemoryFault} ERR_WRONG_DOMAIN, ERR_USE_AFTER_FREE, ERR_INTERIOR_POINTER, ERR_FOREIGN_POINTER, ERR_WRONG_HEAP or ERR_WRONG_TYPE
   * when `address` is not a live block of this domain, nor a grant
   */
  setUint8(address: Address, value: number, offset?: Size): void
  /**
   * Reads an integer of 32 bits with a sign out of a block, or out of a grant, at any offset.
   * @param address the block
   * @param offset bytes from the block's beginning; 0 if left out
   * @returns the number
   * @throws {RangeError} ERR_OUT_OF_RANGE when its bytes do not lie within the block
   * @throws {MemoryFault} ERR_WRONG_DOMAIN, ERR_USE_AFTER_FREE, ERR_INTERIOR_POINTER, ERR_FOREIGN_POINTER, ERR_WRONG_HEAP or ERR_WRONG_TYPE
   * when `address` is not a live block of this domain, nor a grant
   */
  getInt32(address: Address, offset?: Size): number
  /**
   * Writes an integer of 32 bits with a sign into a block, or into a grant, at any offset.
   * @param address the block
   * @param value an integer from -2**31 to 2**31 - 1
   * @param offset bytes from the block's beginning; 0 if left out
   * @throws {RangeError} ERR_OUT_OF_RANGE when `value` is outside its range, or its bytes do not lie within the block
   * @throws {MemoryFault} ERR_WRONG_DOMAIN, ERR_USE_AFTER_FREE, ERR_INTERIOR_POINTER, ERR_FOREIGN_POINTER, ERR_WRONG_HEAP or ERR_WRONG_TYPE
   * when `address` is not a live block of this domain, nor a grant
   */
  setInt32(address: Address, value: number, offset?: Size): void
  /**
   * Reads an integer of 32 bits without a sign out of a block, or out of a grant, at any offset.
   * @param address the block
   * @param offset bytes from the block's beginning; 0 if left out
   * @returns the number
   * @throws {RangeError} ERR_OUT_OF_RANGE when its bytes do not lie within the block
   * @throws {MemoryFault} ERR_WRONG_DOMAIN, ERR_USE_AFTER_FREE, ERR_INTERIOR_POINTER, ERR_FOREIGN_POINTER, ERR_WRONG_HEAP or ERR_WRONG_TYPE
   * when `address` is not a live block of this domain, nor a grant
   */
  getUint32(address: Address, offset?: Size): number
  /**
   * Writes an integer of 32 bits without a sign into a block, or into a grant, at any offset.
   * @param address the block
   * @param value an integer from 0 to 2**32 - 1
   * @param offset bytes from the block's beginning; 0 if left out
   * @throws {RangeError} ERR_OUT_OF_RANGE when `value` is outside its range, or its bytes do not lie within the block
   * @throws {MemoryFault} ERR_WRONG_DOMAIN, ERR_USE_AFTER_FREE, ERR_INTERIOR_POINTER, ERR_FOREIGN_POINTER, ERR_WRONG_HEAP or ERR_WRONG_TYPE
   * when `address` is not a live block of this domain, nor a grant
   */
  setUint32(address: Address, value: number, offset?: Size): void
  /**
   * Reads an integer of 64 bits with a sign out of a block, or out of a grant, at any offset.
   * @param address the block
   * @param offset bytes from the block's beginning; 0 if left out
   * @returns the number
   * @throws {RangeError} ERR_OUT_OF_RANGE when its bytes do not lie within the block
   * @throws {MemoryFault} ERR_WRONG_DOMAIN, ERR_USE_AFTER_FREE, ERR_INTERIOR_POINTER, ERR_FOREIGN_POINTER, ERR_WRONG_HEAP or ERR_WRONG_TYPE
   * when `address` is not a live block of this domain, nor a grant
   */
  getBigInt64(address: Address, offset?: Size): bigint
  /**
   * Writes an integer of 64 bits with a sign into a block, or into a grant, at any offset.
   * @param address the block
   * @param value a BigInt from -2n**63n to 2n**63n - 1n, or an integer that is safe
   * @param offset bytes from the block's beginning; 0 if left out
   * @throws {RangeError} ERR_OUT_OF_RANGE when `value` is outside its range, or its bytes do not lie within the block
   * @throws {MemoryFault} ERR_WRONG_DOMAIN, ERR_USE_AFTER_FREE, ERR_INTERIOR_POINTER, ERR_FOREIGN_POINTER, ERR_WRONG_HEAP or ERR_WRONG_TYPE
   * when `address` is not a live block of this domain, nor a grant
   */
  setBigInt64(address: Address, value: bigint | number, offset?: Size): void
  /**
   * Reads a double out of a block, or out of a grant, at any offset.
   * @param address the block
   * @param offset bytes from the block's beginning; 0 if left out
   * @returns the number
   * @throws {RangeError} ERR_OUT_OF_RANGE when its bytes do not lie within the block
   * @throws {MemoryFault} ERR_WRONG_DOMAIN, ERR_USE_AFTER_FREE, ERR_INTERIOR_POINTER, ERR_FOREIGN_POINTER, ERR_WRONG_HEAP or ERR_WRONG_TYPE
   * when `address` is not a live block of this domain, nor a grant
   *
   * @example
   * ```ts
   * import { Heap } from 'obmalloc'
   *
   * using heap = new Heap()
   * const point = heap.obj.malloc(16)! // null when there is no memory
   * heap.obj.setFloat64(point, 1.5)
   * heap.obj.setFloat64(point, -2, 8)
   * console.log(heap.obj.getFloat64(point), heap.obj.getFloat64(point, 8)) // 1.5 -2
   * ```
   */
  getFloat64(address: Address, offset?: Size): number
  /**
   * Writes a double into a block, or into a grant, at any offset.
   * @param address the block
   * @param value a number
   * @param offset bytes from the block's beginning; 0 if left out
   * @throws {RangeError} ERR_OUT_OF_RANGE when `value` is outside its range, or its bytes do not lie within the block
   * @throws {MemoryFault} ERR_WRONG_DOMAIN, ERR_USE_AFTER_FREE, ERR_INTERIOR_POINTER, ERR_FOREIGN_POINTER, ERR_WRONG_HEAP or ERR_WRONG_TYPE
   * when `address` is not a live block of this domain, nor a grant
   */
  setFloat64(address: Address, value: number, offset?: Size): void
  /**
   * Copies bytes into a block, or into a grant.
   * @param address the block
   * @param bytes what to write; may be a view of the same block
   * @param offset bytes from the block's beginning; 0 if left out
   * @throws {RangeError} ERR_OUT_OF_RANGE when the bytes do not fit into the block
   * @throws {MemoryFault} ERR_WRONG_DOMAIN, ERR_USE_AFTER_FREE, ERR_INTERIOR_POINTER, ERR_FOREIGN_POINTER, ERR_WRONG_HEAP or ERR_WRONG_TYPE
   * when `address` is not a live block of this domain, nor a grant
   */
  write(address: Address, bytes: Uint8Array, offset?: Size): void
  /**
   * Gives a summary of the domain as data; `util.inspect` shows the same. Never throws.
   * @returns the domain's name, and the summary of its heap
   */
  toJSON(): DomainSummary
}

/**
 * CPython's memory system: three domains over one pymalloc, types, objects and the collector, as one release does it.
 *
 * @example
 * ```ts
 * import { Heap, MemoryFault } from 'obmalloc'
 *
 * const heap = new Heap({ release: '3.13' })
 * const block = heap.obj.malloc(64)! // null when there is no memory
 * console.log(heap.allocatedBlocks(), heap.arenas().length) // 1 1
 * try {
 *   heap.mem.free(block) // allocated by obj
 * } catch (fault) {
 *   console.log((fault as MemoryFault).code) // ERR_WRONG_DOMAIN
 * }
 * heap.obj.free(block)
 * console.log(heap.allocatedBlocks()) // 0
 * heap.close()
 * ```
 */
export class Heap {
  /**
   * Makes a heap.
   * @param options what it is made with; all of it may be left out
   * @throws {MemoryError} ERR_NO_MEMORY when there is no memory for the heap
   */
  constructor(options?: HeapOptions)
  /** The release that the heap follows. */
  readonly release: Release
  /** The sizes that the heap uses. */
  readonly geometry: Geometry
  /** The raw domain, `PyMem_Raw*`: the C library's malloc, unless another allocator is in. */
  readonly raw: Domain
  /** The mem domain, `PyMem_*`: pymalloc, unless another allocator is in. */
  readonly mem: Domain
  /** The obj domain, `PyObject_*`: pymalloc, unless another allocator is in. */
  readonly obj: Domain
  /** The cyclic collector. */
  readonly gc: Collector

  /**
   * Takes out the allocator that is in a domain (`PyMem_GetAllocator`). mem and obj begin with the same one, pymalloc's.
   * @param domain the domain
   * @returns always the same object for the same allocator; where a script's allocator is in, the script's own object
   * @throws {MemoryError} ERR_NO_MEMORY when there is no memory to remember it
   */
  getAllocator(domain: DomainName): Allocator
  /**
   * Puts an allocator into a domain (`PyMem_SetAllocator`).
   *
   * Blocks that exist stay: the new allocator is asked to free and resize them too. If it is one of the heap's own and does not know
   * a block, the allocator that gave the block gets it. What pymalloc passes on to raw goes to the raw domain's allocator. Putting one
   * of the heap's own back brings its speed back, once no block is left that it cannot take.
   * @param domain the domain
   * @param allocator one that was taken out of this heap, or a script's
   * @throws {MemoryError} ERR_NO_MEMORY when there is no memory to remember it
   */
  setAllocator(domain: DomainName, allocator: Allocator): void
  /**
   * Puts debug hooks around the allocators of all domains (`PyMem_SetupDebugHooks`); a domain that has them keeps them.
   *
   * From then on damaged guard bytes and writes to freed memory are found, as [the essay on debug hooks](docs/debug-hooks.md) says.
   * Blocks that are older than the hooks are freed and resized without a look at them.
   * @throws {MemoryError} ERR_NO_MEMORY when there is no memory for the hooks
   */
  setupDebugHooks(): void

  /**
   * Takes out the arena allocator that is in (`PyObject_GetArenaAllocator`).
   * @returns always the same object for the same allocator
   */
  getArenaAllocator(): ArenaAllocator
  /**
   * Puts an arena allocator in (`PyObject_SetArenaAllocator`).
   * @param allocator the heap's own, or a script's
   * @throws {MemoryError} ERR_NO_MEMORY when there is no memory to remember it
   */
  setArenaAllocator(allocator: ArenaAllocator): void

  /**
   * Makes a type, which lives as long as the heap. The spec's functions are read now, and are called with the spec as `this`.
   * @param spec the type's name, fields and functions; an error names the part that is wrong
   * @returns the type
   * @throws {MemoryError} ERR_NO_MEMORY when there is no memory for the type
   */
  defineType(spec: TypeSpec): ObjectType
  /**
   * Says which type an object has (`Py_TYPE`). Weak references have a type too, which makes no objects.
   * @param object an object of this heap
   * @returns always the same object for the same type
   * @throws {MemoryFault} ERR_USE_AFTER_FREE, ERR_INTERIOR_POINTER, ERR_FOREIGN_POINTER, ERR_WRONG_HEAP or ERR_WRONG_TYPE when `object` is
   * not a live object of this heap
   */
  typeOf(object: Address): ObjectType
  /**
   * Takes a reference (`Py_INCREF`).
   * @param object an object of this heap
   * @throws {MemoryFault} ERR_USE_AFTER_FREE, ERR_INTERIOR_POINTER, ERR_FOREIGN_POINTER, ERR_WRONG_HEAP or ERR_WRONG_TYPE when `object` is
   * not a live object of this heap
   */
  incref(object: Address): void
  /**
   * Gives a reference back (`Py_DECREF`). The last one destroys the object, and with it everything whose last reference it held, in
   * CPython's order.
   * @param object an object of this heap
   * @throws {MemoryFault} ERR_REFCOUNT_UNDERFLOW when the object is gone or is being destroyed: it has no reference to give back
   * @throws {MemoryFault} ERR_INTERIOR_POINTER, ERR_FOREIGN_POINTER, ERR_WRONG_HEAP or ERR_WRONG_TYPE when `object` is not an object of
   * this heap
   * @throws {MemoryFault} ERR_BUFFER_OVERFLOW or ERR_BUFFER_UNDERFLOW when debug hooks find the guard bytes of a destroyed object damaged
   */
  decref(object: Address): void
  /**
   * Says how many references an object has (`Py_REFCNT`).
   * @param object an object of this heap
   * @returns the count, at least 1 outside callbacks
   * @throws {MemoryFault} ERR_USE_AFTER_FREE, ERR_INTERIOR_POINTER, ERR_FOREIGN_POINTER, ERR_WRONG_HEAP or ERR_WRONG_TYPE when `object` is
   * not a live object of this heap
   */
  refcount(object: Address): number
  /**
   * Makes an object immortal (`PyUnstable_SetImmortal`): it is never destroyed, whatever becomes of its references.
   * @param object an object of this heap
   * @returns whether the object is immortal now; `false` before 3.12, which has no such objects
   * @throws {MemoryFault} ERR_USE_AFTER_FREE, ERR_INTERIOR_POINTER, ERR_FOREIGN_POINTER, ERR_WRONG_HEAP or ERR_WRONG_TYPE when `object` is
   * not a live object of this heap
   */
  setImmortal(object: Address): boolean

  /**
   * Runs many operations in one call, and ends at the first fault.
   *
   * A slot holds the address that its last malloc, calloc or realloc gave. Slots stay from one call to the next. A slot that was never
   * used holds NULL. `free` leaves the address in its slot, so freeing it again is a fault. A realloc that fails reports 0 and leaves
   * the old block in its slot.
   * @param ops four numbers for each operation: verb (0 malloc, 1 calloc, 2 realloc, 3 free), domain (0 raw, 1 mem, 2 obj), slot (below
   * 2**24), size in bytes
   * @param addresses receives, by slot, the address that the slot's last operation gave, 0 for NULL
   * @throws {MemoryFault} what the operation's own call would throw, for example ERR_DOUBLE_FREE, with `index` set to the operation's number
   * @throws {RangeError} ERR_OUT_OF_RANGE when an operation's number is outside its range, or a slot is not below `addresses.length`
   * @throws {MemoryError} ERR_NO_MEMORY when there is no memory for the slots
   */
  run(ops: Uint32Array, addresses?: Float64Array): void

  /**
   * Counts the blocks in use (`sys.getallocatedblocks()`).
   * @returns blocks of pymalloc; a freed block that a buffer in JavaScript still reaches is counted only if a script gave it, because
   * the script has the memory
   */
  allocatedBlocks(): number
  /**
   * Lists the arenas that are held now.
   * @returns one entry for each, in the order in which they were obtained
   */
  arenas(): ArenaInfo[]
  /**
   * Looks at the pools of an arena, one after the other, in the order of their addresses.
   *
   * Each pool is looked at in its turn, so the heap may be used meanwhile. If the arena is given back meanwhile, the next step throws
   * `ERR_USE_AFTER_FREE`; if another arena has taken its place by then, the pools of that arena follow.
   * @param arena the address of an arena
   * @returns one entry for each pool, {@link ArenaInfo.totalPools} in all
   * @throws {MemoryFault} ERR_INTERIOR_POINTER, ERR_FOREIGN_POINTER or ERR_WRONG_HEAP when no arena of this heap begins at `arena`
   *
   * @example
   * ```ts
   * import { Heap } from 'obmalloc'
   *
   * using heap = new Heap({ release: '3.13' })
   * heap.obj.malloc(100)
   * for (const arena of heap.arenas())
   *   for (const pool of heap.pools(arena.address))
   *     if (pool.state !== 'empty') {
   *       console.log(pool.blockSize, pool.used, pool.free) // 112 1 144
   *       const used = [...heap.blocks(pool.address)].filter((block) => block.used)
   *       console.log(used.length, heap.obj.usableSize(used[0]!.address)) // 1 112
   *     }
   * ```
   */
  pools(arena: Address): Generator<PoolInfo, void, void>
  /**
   * Looks at the blocks of a pool, one after the other, in the order of their addresses. They are shown as they were when this was called,
   * even if the heap changes meanwhile.
   *
   * A block counts as used until pymalloc gets it back. So a block in quarantine is used, and so is a freed block that a buffer in JavaScript
   * still reaches.
   * @param pool the address of a pool
   * @returns one entry for each block that fits into the pool; none if the pool has no size class
   * @throws {MemoryFault} ERR_INTERIOR_POINTER, ERR_FOREIGN_POINTER or ERR_WRONG_HEAP when no pool of this heap begins at `pool`
   * @throws {MemoryFault} ERR_HEAP_CORRUPTED when the pool's list of free blocks does not hold
   * @throws {MemoryError} ERR_NO_MEMORY when there is no memory to remember the blocks
   */
  blocks(pool: Address): Generator<BlockInfo, void, void>
  /**
   * Gives the numbers of {@link Heap.debugMallocStats}, under the names that they have there; their sums are those of the text.
   * @returns the numbers; `null` where there is no text
   *
   * @example
   * ```ts
   * import { Heap } from 'obmalloc'
   *
   * using heap = new Heap({ release: '3.13' })
   * for (let count = 0; count < 3; count++) heap.obj.malloc(100)
   * const { classes, bytes } = heap.stats()!
   * console.log(classes.map(({ size, blocksInUse }) => `${blocksInUse} of ${size}`).join()) // 3 of 112
   * console.log(bytes.allocatedBlocks, bytes.total === heap.arenas()[0]!.size) // 336 true
   * ```
   */
  stats(): HeapStats | null
  /**
   * Gives the text of `sys._debugmallocstats()` for this release, up to its type free lists.
   * @returns the text; empty where the heap was made with the C library's malloc for mem and obj
   */
  debugMallocStats(): string
  /**
   * Gives the memory of empty pools, and of arenas that the heap no longer holds, back to the system. Arenas that are held stay held. CPython
   * has no such call.
   *
   * Blocks, objects and statistics stay as they are, and a trim does not change from which pool a request is served. But an emptied pool
   * forgets in which order its blocks were freed: it hands them out from the first one on, like a pool that was never used. So addresses
   * in it can differ from CPython's. A trim leaves alone arenas of a script's arena allocator, blocks in quarantine and C's free memory;
   * under debug hooks also a pool in which a freed block was written to, until that has been reported.
   * @returns how much it was; zeros when there was nothing to give back
   * @throws {MemoryFault} ERR_REENTRANT or ERR_GC_IN_PROGRESS when the heap cannot be used now, ERR_HEAP_CLOSED when it is closed
   *
   * @example
   * ```ts
   * import { Heap } from 'obmalloc'
   *
   * const heap = new Heap()
   * const blocks = Array.from({ length: 100_000 }, () => heap.obj.malloc(512)!)
   * // One of a thousand stays, so that no arena can be given back.
   * blocks.forEach((block, index) => index % 1000 === 0 || heap.obj.free(block))
   * console.log(heap.trim()) // { pools: 3126, bytes: 51216384 }
   * ```
   */
  trim(): Trimmed
  /**
   * Walks every structure of the heap. Under debug hooks it looks at all guard bytes and all freed memory too.
   * @throws {MemoryFault} ERR_HEAP_CORRUPTED at the first structure that does not hold
   * @throws {MemoryFault} ERR_BUFFER_OVERFLOW, ERR_BUFFER_UNDERFLOW or ERR_WRITE_AFTER_FREE at the first damaged block that has not been
   * reported yet
   */
  verify(): void
  /**
   * Makes requests fail on purpose, as `_testcapi.set_nomemory` does. Frees never fail.
   *
   * The requests to the domains' allocators are counted from 0 from now on; number `start` and those after it fail. What pymalloc
   * passes on to raw is counted in both domains, as in CPython.
   * @param start the first request that fails
   * @param stop the first request that succeeds again; none if left out or 0, as in CPython
   * @throws {MemoryError} ERR_NO_MEMORY when there is no memory for that
   */
  setNomemory(start: Size, stop?: Size): void
  /**
   * Puts back the allocators that were in when {@link Heap.setNomemory} was first called (`_testcapi.remove_mem_hooks`).
   * @throws {MemoryError} ERR_NO_MEMORY when there is no memory to remember an allocator
   */
  removeNomemory(): void
  /**
   * Gives all memory back; every later call throws `ERR_HEAP_CLOSED`.
   *
   * Closing twice is fine. If a script's time (`timeout` of `node:vm`) ended during a close, the next one goes on. If a buffer that could not
   * be detached lies in the heap's memory, that memory goes with the buffer.
   * @throws {MemoryFault} ERR_REENTRANT when one of the heap's callbacks is running
   * @throws {MemoryFault} ERR_CALLBACK_THREW or ERR_CALLBACK_RESULT when a script's allocator or arena allocator failed while it was given
   * memory back; the heap is closed all the same
   */
  close(): void
  /** Does what {@link Heap.close} does: `using heap = new Heap()`. */
  [Symbol.dispose](): void
  /**
   * Gives a summary of the heap as data; `util.inspect` shows the same. Never throws, runs no collection that is due, and changes nothing.
   * @returns the options that it was made with, its state, and counts if it can be looked at
   */
  toJSON(): HeapSummary
}

/** A summary of a heap. */
export interface HeapSummary {
  /** The release that it follows. */
  readonly release: Release
  /** The allocators that it was made with. */
  readonly allocator: AllocatorName
  /** `'busy'` while a callback of an allocator is running, `'broken'` when it can only be closed. */
  readonly state: 'open' | 'busy' | 'closed' | 'broken'
  /** As {@link Heap.allocatedBlocks}; only of an open heap. */
  readonly allocatedBlocks?: number
  /** Arenas that are held; only of an open heap. */
  readonly arenas?: number
  /** Bytes in arenas of its own and in raw blocks; only of an open heap. */
  readonly bytes?: number
}

/** A summary of a domain. */
export interface DomainSummary {
  /** Which of the three it is. */
  readonly name: DomainName
  /** Its heap. */
  readonly heap: HeapSummary
}

/** A summary of a type. */
export interface TypeSummary {
  /** `tp_name` */
  readonly name: string
  /** `tp_basicsize`, bytes. */
  readonly basicsize: number
  /** `tp_itemsize`, bytes. */
  readonly itemsize: number
  /** The names of its fields, in order. */
  readonly fields: readonly string[]
}

/** The numbers of `sys._debugmallocstats()`. */
export interface HeapStats {
  /** The largest request that pymalloc serves itself, bytes. */
  readonly smallBlockThreshold: number
  /** How many size classes there are. */
  readonly sizeClasses: number
  /** The size classes that have a block in use. */
  readonly classes: readonly ClassStats[]
  /** Counts of arenas. */
  readonly arenas: {
    /** Arenas that were ever taken. */
    readonly allocatedTotal: number
    /** Those that were given back. */
    readonly reclaimed: number
    /** The most that were held at one time. */
    readonly highwaterMark: number
    /** Those that are held now. */
    readonly allocatedCurrent: number
    /** Bytes of those. */
    readonly bytes: number
  }
  /** Bytes of the arenas that are held, by what they are used for. */
  readonly bytes: {
    /** In blocks that are in use. */
    readonly allocatedBlocks: number
    /** In free blocks of pools in use. */
    readonly availableBlocks: number
    /** In pools without a block in use. */
    readonly unusedPools: number
    /** Lost to pool headers. */
    readonly poolHeaders: number
    /** Lost to the ends of pools, where no whole block fits. */
    readonly quantization: number
    /** Lost to arenas that do not begin at a multiple of the pool size. */
    readonly arenaAlignment: number
    /** All of these. */
    readonly total: number
  }
  /** The arena map; `null` in releases without one. */
  readonly arenaMap: {
    /** Middle nodes of the tree. */
    readonly midNodes: number
    /** Bottom nodes of the tree. */
    readonly botNodes: number
    /** Bytes lost to the root. */
    readonly rootBytes: number
    /** Bytes lost to the middle nodes. */
    readonly midBytes: number
    /** Bytes lost to the bottom nodes. */
    readonly botBytes: number
    /** All of these bytes. */
    readonly total: number
  } | null
}

/** A line of the statistics: the pools of a size class that hold a block in use. */
export interface ClassStats {
  /** The number of the class, from 0. */
  readonly class: number
  /** Bytes of a block. */
  readonly size: number
  /** Pools with a block in use. */
  readonly pools: number
  /** Blocks in use. */
  readonly blocksInUse: number
  /** Blocks that these pools could still give. */
  readonly availBlocks: number
}

/** A pool, as {@link Heap.pools} shows it. */
export interface PoolInfo {
  /** Where its memory begins. */
  readonly address: Address
  /** `'used'` with free blocks left, `'full'` without, `'empty'` without a block in use. */
  readonly state: 'used' | 'full' | 'empty'
  /** The number of its size class, from 0; `null` if it never held a block, or a trim has emptied it since. */
  readonly sizeClass: number | null
  /** Bytes of a block; `null` without a size class. */
  readonly blockSize: number | null
  /** Blocks in use. */
  readonly used: number
  /** Blocks that it could still give; 0 without a size class. */
  readonly free: number
}

/** A block, as {@link Heap.blocks} shows it. */
export interface BlockInfo {
  /** Where it begins; under debug hooks, 16 bytes before the address that the domain gave. */
  readonly address: Address
  /** Whether it is in use. */
  readonly used: boolean
}

/** What {@link Heap.trim} gave back. */
export interface Trimmed {
  /** Pools that were emptied. */
  readonly pools: number
  /** Bytes that were resident and are not any more. */
  readonly bytes: number
}

/** An arena, as {@link Heap.arenas} lists it. */
export interface ArenaInfo {
  /** Where its memory begins. */
  readonly address: Address
  /** Its bytes. */
  readonly size: number
  /** How many of its pools hold no block. */
  readonly freePools: number
  /** How many of those were in use, and have been emptied by a trim since. */
  readonly trimmedPools: number
  /** How many pools fit into it. */
  readonly totalPools: number
}

/** What a field of an object holds. Fields are laid out in the order given, each aligned to its own size, after the header. */
export type FieldKind = 'object' | 'u8' | 'i32' | 'u32' | 'i64' | 'f64'

/**
 * The name, fields and functions of a new type.
 *
 * `traverse` and `clear` matter for GC types only. A function that is left out costs nothing; one that is there is called for each
 * object. What these functions may do is the table of [callbacks](docs/callbacks.md).
 */
export interface TypeSpec {
  /** `tp_name`, for example `'tree.TreeNode'`. */
  name: string
  /** The fields by name, in JavaScript's order of an object's keys. */
  fields?: Record<string, FieldKind>
  /** What the variable part holds, if there is one: `'object'` is 8 bytes an item, `'byte'` 1. */
  items?: 'object' | 'byte'
  /**
   * Whether the collector knows its objects (`Py_TPFLAGS_HAVE_GC`).
   * @defaultValue `false`
   */
  gc?: boolean
  /**
   * Whether weak references to its objects can be made.
   * @defaultValue `false`
   */
  weakrefs?: boolean
  /**
   * Whether instances carry a dict, as those of a Python class do: the pre-header words, and from 3.13 the inline values, of the release.
   * @defaultValue `false`
   */
  managedDict?: boolean
  /**
   * Type-specific allocation: how many destroyed instances are kept for the next `alloc`, last in first out, until a full collection.
   * Only for types without items.
   * @defaultValue `0`
   */
  freeList?: Size
  /**
   * Visits every object that `self` refers to (`tp_traverse`). Left out: visits every `'object'` field and item natively.
   *
   * It must only look (`ERR_GC_IN_PROGRESS`). A collection throws, with nothing destroyed, when it throws (`ERR_CALLBACK_THREW`, whose
   * `cause` is what was thrown), visits something that is no object of this heap, or visits an object more often than the fields and
   * items of `self` refer to it (`ERR_GC_OVER_VISIT`). An object that it leaves out counts as referred to from elsewhere;
   * {@link Collector.check} finds that.
   * @param self the object
   * @param visit to be called with each referent
   */
  traverse?(self: Address, visit: (object: Address) => void): void
  /**
   * Drops the references that may form cycles (`tp_clear`). Left out: sets every `'object'` field and item to null, in order, natively.
   * @param self the object
   */
  clear?(self: Address): void
  /**
   * Runs before an object is destroyed, at most once per object, and may resurrect it (`tp_finalize`, PEP 442). An object of a type
   * without `gc` has no place for the mark, so as in CPython a resurrected one is finalized again when it next loses its last reference.
   * @param self the object
   */
  finalize?(self: Address): void
  /**
   * The legacy finalizer (`tp_del`): objects that have one and are in cycles end up in `gc.garbage`.
   * @param self the object
   */
  del?(self: Address): void
  /**
   * Runs while the object is being destroyed: after its finalizer, before its references are dropped (`tp_dealloc`). The object can
   * still be looked at, but not be referred to again.
   * @param self the object
   */
  dealloc?(self: Address): void
}

/**
 * A type. Only {@link Heap.defineType} makes one. An object of another type is `ERR_WRONG_TYPE`.
 *
 * @example
 * ```ts
 * import { Heap } from 'obmalloc'
 *
 * using heap = new Heap({ release: '3.13' })
 * const Pair = heap.defineType({ name: 'pair', fields: { first: 'object', second: 'object', weight: 'f64' } })
 * const Bytes = heap.defineType({ name: 'bytes', items: 'byte' })
 * const pair = Pair.alloc()
 * const bytes = Bytes.alloc(3)
 * Pair.set(pair, 'first', bytes) // takes a reference of its own
 * Pair.set(pair, 'weight', 0.5)
 * heap.decref(bytes)
 * console.log(Pair.get(pair, 'weight'), Bytes.nitems(bytes), heap.refcount(bytes)) // 0.5 3 1
 * heap.decref(pair) // and with it the bytes
 * console.log(heap.allocatedBlocks()) // 0
 * ```
 */
export class ObjectType {
  private constructor()
  /** `tp_name`. */
  readonly name: string
  /** `tp_basicsize`: bytes of an object without its items. */
  readonly basicsize: number
  /** `tp_itemsize`: bytes of an item; 0 for a type without items. */
  readonly itemsize: number
  /**
   * Makes an object (`PyType_GenericAlloc`): zeroed, with one reference, tracked if the type is a GC type.
   *
   * Up to 3.11 it may run an automatic collection. From 3.12 on that collection is scheduled, and runs at the start of the heap's next
   * call that does not come from a callback.
   * @param nitems how many items; 0 if left out
   * @returns the object; its one reference is the caller's
   * @throws {MemoryError} ERR_NO_MEMORY when there is no memory for the object
   * @throws {MemoryFault} ERR_WRONG_TYPE when this is the type of weak references
   */
  alloc(nitems?: Size): Address
  /**
   * Makes an object that is not tracked (`PyObject_New`, or `PyObject_GC_New` for a GC type): its object fields are null, its numbers
   * and bytes unspecified.
   * @returns the object; its one reference is the caller's
   * @throws {MemoryError} ERR_NO_MEMORY when there is no memory for the object
   * @throws {MemoryFault} ERR_WRONG_TYPE when this is the type of weak references
   */
  new(): Address
  /**
   * Makes an object with items that is not tracked (`PyObject_NewVar` or `PyObject_GC_NewVar`).
   * @param nitems how many items
   * @returns the object; its one reference is the caller's
   * @throws {MemoryError} ERR_NO_MEMORY when there is no memory for the object
   * @throws {MemoryFault} ERR_WRONG_TYPE when this is the type of weak references
   */
  newVar(nitems: Size): Address
  /**
   * Makes an object of memory from `heap.obj.malloc` (`PyObject_Init`), which belongs to the object from then on; a view of the memory
   * is detached first. Object fields become null, the others stay as they are.
   * @param memory a live block of the obj domain
   * @returns the object, at the same address; its one reference is the caller's
   * @throws {RangeError} ERR_OUT_OF_RANGE when the type is a GC type, whose objects begin inside their blocks, or the block is too small
   * @throws {MemoryFault} ERR_REENTRANT when a buffer in JavaScript can still reach the block under another name
   * @throws {MemoryFault} ERR_WRONG_DOMAIN, ERR_USE_AFTER_FREE, ERR_INTERIOR_POINTER, ERR_FOREIGN_POINTER, ERR_WRONG_HEAP or ERR_WRONG_TYPE
   * when `memory` is not a live block of the obj domain
   */
  init(memory: Address): Address
  /**
   * Makes an object with items of memory from `heap.obj.malloc` (`PyObject_InitVar`), as {@link ObjectType.init} does.
   * @param memory a live block of the obj domain
   * @param nitems how many items
   * @returns the object, at the same address; its one reference is the caller's
   * @throws {RangeError} ERR_OUT_OF_RANGE when the type is a GC type, or the block is too small
   * @throws {MemoryFault} ERR_REENTRANT when a buffer in JavaScript can still reach the block under another name
   * @throws {MemoryFault} ERR_WRONG_DOMAIN, ERR_USE_AFTER_FREE, ERR_INTERIOR_POINTER, ERR_FOREIGN_POINTER, ERR_WRONG_HEAP or ERR_WRONG_TYPE
   * when `memory` is not a live block of the obj domain
   */
  initVar(memory: Address, nitems: Size): Address
  /**
   * Reads a field or an item. It takes no reference.
   * @param object an object of this type
   * @param field a field by name, or an item by index
   * @returns an address or `null` for an `'object'`, a BigInt for an `'i64'`, a number otherwise
   * @throws {RangeError} ERR_OUT_OF_RANGE when there is no such field or item
   * @throws {MemoryFault} ERR_USE_AFTER_FREE, ERR_INTERIOR_POINTER, ERR_FOREIGN_POINTER, ERR_WRONG_HEAP or ERR_WRONG_TYPE when `object` is
   * not a live object of this type
   */
  get(object: Address, field: string | number): Address | number | bigint | null
  /**
   * Writes a field or an item. For an `'object'` it takes a new reference to `value` and drops the one to the old value (`Py_XSETREF`).
   * @param object an object of this type
   * @param field a field by name, or an item by index
   * @param value what the field is to hold, in the range of its kind; an `'i64'` takes safe integers too
   * @throws {RangeError} ERR_OUT_OF_RANGE when there is no such field or item, or the value is outside the range of its kind
   * @throws {MemoryFault} ERR_USE_AFTER_FREE, ERR_INTERIOR_POINTER, ERR_FOREIGN_POINTER, ERR_WRONG_HEAP or ERR_WRONG_TYPE when `object` is
   * not a live object of this type, or `value` not a live object
   */
  set(object: Address, field: string | number, value: Address | number | bigint | null): void
  /**
   * Says how many items an object has (`Py_SIZE`).
   * @param object an object of this type
   * @returns the count; 0 for a type without items
   * @throws {MemoryFault} ERR_USE_AFTER_FREE, ERR_INTERIOR_POINTER, ERR_FOREIGN_POINTER, ERR_WRONG_HEAP or ERR_WRONG_TYPE when `object` is
   * not a live object of this type
   */
  nitems(object: Address): number
  /**
   * Gives a summary of the type as data; `util.inspect` shows the same. Never throws.
   * @returns its name, sizes and fields
   */
  toJSON(): TypeSummary
}

/** What `gc.get_stats()` says of a generation. */
export interface GenerationStats {
  /** Collections so far. */
  collections: number
  /** Objects that these collected. */
  collected: number
  /** Objects that these found and could not destroy. */
  uncollectable: number
}

/**
 * One of `gc.callbacks`. All of them get the same `info`.
 * @param phase whether the collection begins or has ended
 * @param info the oldest generation that is collected, and how many unreachable objects were found, and could not be destroyed: 0 at the start
 */
export type CollectorCallback = (
  phase: 'start' | 'stop',
  info: { generation: number; collected: number; uncollectable: number },
) => void

/** References that an object holds, but its type's `traverse` does not visit. */
export interface TraverseMismatch {
  /** The object whose type's `traverse` it is. */
  readonly object: Address
  /** What it refers to. */
  readonly referent: Address
  /** How many fields and items of `object` hold `referent`. */
  readonly held: number
  /** How many of them were visited. */
  readonly visited: number
}

/**
 * The cyclic collector: `PyObject_GC_*` and Python's `gc` module under their own names, in camelCase. A heap makes it.
 * [The essay on the collector](docs/collector.md) says what a collection does, step by step.
 *
 * @example
 * ```ts
 * import { Heap } from 'obmalloc'
 *
 * using heap = new Heap({ release: '3.13' })
 * const Node = heap.defineType({ name: 'node', fields: { next: 'object' }, gc: true, weakrefs: true })
 * const [a, b] = [Node.alloc(), Node.alloc()]
 * Node.set(a, 'next', b)
 * Node.set(b, 'next', a) // a cycle
 * let isGone = false
 * const ref = heap.gc.newWeakref(a, () => (isGone = true))
 * heap.decref(a)
 * heap.decref(b)
 * console.log(heap.gc.deref(ref) === a) // true
 * console.log(heap.gc.collect(), isGone) // 2 true
 * console.log(heap.gc.deref(ref)) // null
 * ```
 */
export interface Collector {
  /** `gc.DEBUG_STATS`, a flag for {@link Collector.setDebug}: every collection writes its statistics. */
  readonly DEBUG_STATS: 1
  /** `gc.DEBUG_COLLECTABLE`: every collection writes what it collects. */
  readonly DEBUG_COLLECTABLE: 2
  /** `gc.DEBUG_UNCOLLECTABLE`: every collection writes what it cannot collect. */
  readonly DEBUG_UNCOLLECTABLE: 4
  /** `gc.DEBUG_SAVEALL`: collections keep all they find in {@link Collector.garbage}. */
  readonly DEBUG_SAVEALL: 32
  /** `gc.DEBUG_LEAK`: collectable, uncollectable and saved. */
  readonly DEBUG_LEAK: 38
  /**
   * Tracks an object (`PyObject_GC_Track`).
   * @param object an object of a GC type
   * @throws {MemoryFault} ERR_GC_ALREADY_TRACKED when it is tracked
   * @throws {MemoryFault} ERR_USE_AFTER_FREE, ERR_INTERIOR_POINTER, ERR_FOREIGN_POINTER, ERR_WRONG_HEAP or ERR_WRONG_TYPE when `object` is
   * not a live object of a GC type
   */
  track(object: Address): void
  /**
   * Untracks an object (`PyObject_GC_UnTrack`). An object that is not tracked stays as it is.
   * @param object an object of a GC type
   * @throws {MemoryFault} ERR_USE_AFTER_FREE, ERR_INTERIOR_POINTER, ERR_FOREIGN_POINTER, ERR_WRONG_HEAP or ERR_WRONG_TYPE when `object` is
   * not a live object of a GC type
   */
  untrack(object: Address): void
  /**
   * Says whether an object is tracked (`PyObject_GC_IsTracked`).
   * @param object an object of this heap
   * @returns `false` for an object of a type without `gc`
   * @throws {MemoryFault} ERR_USE_AFTER_FREE, ERR_INTERIOR_POINTER, ERR_FOREIGN_POINTER, ERR_WRONG_HEAP or ERR_WRONG_TYPE when `object` is
   * not a live object of this heap
   */
  isTracked(object: Address): boolean
  /**
   * Says whether an object's finalizer has run (`PyObject_GC_IsFinalized`).
   * @param object an object of this heap
   * @returns `false` for an object of a type without `gc`
   * @throws {MemoryFault} ERR_USE_AFTER_FREE, ERR_INTERIOR_POINTER, ERR_FOREIGN_POINTER, ERR_WRONG_HEAP or ERR_WRONG_TYPE when `object` is
   * not a live object of this heap
   */
  isFinalized(object: Address): boolean
  /**
   * Gives an object's memory back without destroying it (`PyObject_GC_Del`): for code that has made an object and cannot finish it. An
   * object that is still tracked is untracked first, and a `ResourceWarning` of the process says so.
   * @param object an object of a GC type that nothing else refers to
   * @throws {RangeError} ERR_OUT_OF_RANGE when something else refers to it
   * @throws {MemoryFault} ERR_USE_AFTER_FREE, ERR_INTERIOR_POINTER, ERR_FOREIGN_POINTER, ERR_WRONG_HEAP or ERR_WRONG_TYPE when `object` is
   * not a live object of a GC type
   */
  del(object: Address): void
  /**
   * Changes the number of an object's items (`PyObject_GC_Resize`); the object may move.
   * @param object an object of a GC type with items, not tracked, that nothing else refers to
   * @param nitems how many items
   * @returns the object
   * @throws {MemoryError} ERR_NO_MEMORY when there is no memory: then the object is as it was
   * @throws {MemoryFault} ERR_GC_ALREADY_TRACKED when the object is tracked
   * @throws {RangeError} ERR_OUT_OF_RANGE when something else refers to it
   * @throws {MemoryFault} ERR_USE_AFTER_FREE, ERR_INTERIOR_POINTER, ERR_FOREIGN_POINTER, ERR_WRONG_HEAP or ERR_WRONG_TYPE when `object` is
   * not a live object of a GC type with items
   */
  resize(object: Address, nitems: Size): Address
  /**
   * Runs a collection (`gc.collect()`).
   * @param generation the oldest generation that it looks at; 2 if left out
   * @returns how many unreachable objects it found, as `gc.collect()` counts them; from inside a collection 0, and nothing happens
   * @throws {MemoryFault} ERR_CALLBACK_THREW, ERR_GC_OVER_VISIT, ERR_FOREIGN_POINTER or ERR_USE_AFTER_FREE when a type's `traverse` throws
   * or visits what it must not: then nothing is destroyed
   */
  collect(generation?: 0 | 1 | 2): number
  /** Turns automatic collections on (`gc.enable()`). */
  enable(): void
  /** Turns automatic collections off (`gc.disable()`). */
  disable(): void
  /**
   * Says whether automatic collections are on (`gc.isenabled()`).
   * @returns whether they are; for a new heap `true`
   */
  isEnabled(): boolean
  /**
   * Gives the thresholds of the three generations (`gc.get_threshold()`).
   * @returns as they were set, or as the release has them
   */
  getThreshold(): [number, number, number]
  /**
   * Sets the thresholds of the generations (`gc.set_threshold()`), each a C int; one that is left out stays.
   * @param threshold0 what the count of the youngest generation is compared with; with 0 no collection is automatic
   * @param threshold1 the same for the middle generation
   * @param threshold2 the same for the oldest generation
   */
  setThreshold(threshold0: number, threshold1?: number, threshold2?: number): void
  /**
   * Gives the counts that are compared with the thresholds (`gc.get_count()`).
   * @returns one count for each generation
   */
  getCount(): [number, number, number]
  /**
   * Gives what collections have found so far (`gc.get_stats()`).
   * @returns three entries, the youngest generation first
   */
  getStats(): GenerationStats[]
  /**
   * Lists the tracked objects that are not frozen (`gc.get_objects()`). It takes no reference.
   * @param generation the generation whose objects are wanted; all of them if left out
   * @returns the objects, in the collector's order
   * @throws {MemoryError} ERR_NO_MEMORY when there is no memory for the list
   */
  getObjects(generation?: 0 | 1 | 2): Address[]
  /**
   * Lists the tracked objects that refer to any of these (`gc.get_referrers()`). It takes no reference.
   * @param objects objects of this heap
   * @returns the objects, in the collector's order
   * @throws {MemoryFault} what {@link Collector.collect} throws when a type's `traverse` does, for example ERR_CALLBACK_THREW
   * @throws {MemoryFault} ERR_USE_AFTER_FREE, ERR_INTERIOR_POINTER, ERR_FOREIGN_POINTER, ERR_WRONG_HEAP or ERR_WRONG_TYPE when one of them is
   * not a live object of this heap
   * @throws {MemoryError} ERR_NO_MEMORY when there is no memory for the list
   */
  getReferrers(...objects: Address[]): Address[]
  /**
   * Lists what these objects refer to, as their types' `traverse` visits it (`gc.get_referents()`). It takes no reference.
   * @param objects objects of this heap
   * @returns the referents, in the order in which they are visited
   * @throws {MemoryFault} what {@link Collector.collect} throws when a type's `traverse` does, for example ERR_CALLBACK_THREW
   * @throws {MemoryFault} ERR_USE_AFTER_FREE, ERR_INTERIOR_POINTER, ERR_FOREIGN_POINTER, ERR_WRONG_HEAP or ERR_WRONG_TYPE when one of them is
   * not a live object of this heap
   * @throws {MemoryError} ERR_NO_MEMORY when there is no memory for the list
   */
  getReferents(...objects: Address[]): Address[]
  /**
   * Freezes all tracked objects (`gc.freeze()`): no collection looks at them.
   * @throws {MemoryError} ERR_NO_MEMORY when there is no memory for the list of frozen objects
   */
  freeze(): void
  /**
   * Puts the frozen objects back into the oldest generation (`gc.unfreeze()`).
   * @throws {MemoryError} ERR_NO_MEMORY when there is no memory for the generation's list
   */
  unfreeze(): void
  /**
   * Counts the frozen objects (`gc.get_freeze_count()`).
   * @returns the count
   */
  getFreezeCount(): number
  /**
   * Says what collections write to `process.stderr`, and with `DEBUG_SAVEALL`, that they keep all they find in
   * {@link Collector.garbage} (`gc.set_debug()`).
   * @param flags a C int: a sum of the `DEBUG_` flags
   */
  setDebug(flags: number): void
  /**
   * Gives the flags that {@link Collector.setDebug} set (`gc.get_debug()`).
   * @returns a sum of the `DEBUG_` flags; 0 for a new heap
   */
  getDebug(): number
  /**
   * What collections found and could not destroy, appended by each (`gc.garbage`). Every entry holds a reference, which belongs to the
   * code that takes the entry out: `for (const object of heap.gc.garbage.splice(0)) heap.decref(object)`.
   */
  readonly garbage: Address[]
  /**
   * Called at the start and at the end of every collection, in order (`gc.callbacks`). While there are none, a collection calls no
   * JavaScript for them.
   */
  readonly callbacks: CollectorCallback[]
  /**
   * Makes a weak reference, itself an object (`PyWeakref_NewRef`). Without a callback, it may be a weak reference that exists already.
   * @param object an object of a type with `weakrefs`
   * @param callback called once with the weak reference, when the referent is gone and the weak reference is not
   * @returns a new reference to the weak reference
   * @throws {MemoryError} ERR_NO_MEMORY when there is no memory for it
   * @throws {MemoryFault} ERR_USE_AFTER_FREE, ERR_INTERIOR_POINTER, ERR_FOREIGN_POINTER, ERR_WRONG_HEAP or ERR_WRONG_TYPE when `object` is
   * not a live object of such a type
   */
  newWeakref(object: Address, callback?: (ref: Address) => void): Address
  /**
   * Gives the object that a weak reference refers to (`PyWeakref_GetObject`). It takes no reference.
   * @param ref a weak reference
   * @returns the referent, or `null` once it is gone
   * @throws {MemoryFault} ERR_USE_AFTER_FREE, ERR_INTERIOR_POINTER, ERR_FOREIGN_POINTER, ERR_WRONG_HEAP or ERR_WRONG_TYPE when `ref` is not a
   * live weak reference of this heap
   */
  deref(ref: Address): Address | null
  /**
   * Calls every `traverse` of the tracked objects and lists what they leave out: such objects are never found unreachable.
   * @returns the references that were not visited; empty when all were
   * @throws {MemoryFault} what {@link Collector.collect} throws when a type's `traverse` does, for example ERR_GC_OVER_VISIT
   */
  check(): TraverseMismatch[]
}

/**
 * A misuse, as an error that can be caught: what CPython's debug hooks would abort the process for, and what CPython would not notice
 * at all. It is thrown before anything has changed.
 *
 * @example
 * ```ts
 * import { Heap, MemoryFault } from 'obmalloc'
 *
 * using heap = new Heap({ release: '3.13', allocator: 'debug' })
 * const block = heap.mem.malloc(16)!
 * heap.mem.free(block)
 * try {
 *   heap.mem.free(block)
 * } catch (fault) {
 *   if (!(fault instanceof MemoryFault)) throw fault
 *   console.log(fault.code, fault.address === block, fault.domain) // ERR_DOUBLE_FREE true mem
 * }
 * ```
 */
export class MemoryFault extends Error {
  /**
   * Makes a fault, as tests may want to.
   * @param code the code
   * @param message the text
   * @param fields values for the other fields
   */
  constructor(code: FaultCode, message: string, fields?: object)
  /** What was wrong: a stable name. */
  readonly code: FaultCode
  /** The address that the fault is about. */
  readonly address?: Address
  /** The domain through which the call came. */
  readonly domain?: DomainName
  /** With `ERR_WRONG_DOMAIN`: the domain that the block is of. */
  readonly allocated?: DomainName
  /** With `ERR_WRONG_DOMAIN`: the domain through which the block was used. */
  readonly used?: DomainName
  /** With `ERR_INTERIOR_POINTER`: the block that the address lies in. */
  readonly base?: Address
  /** With damaged guard bytes and writes after free: the byte that was written to, counted from `address`; below 0 it lies before the block. */
  readonly offset?: number
  /**
   * With debug hooks: the text that CPython of this release prints on its standard error before it aborts, as it would in the calling
   * thread if no Python function were running in it. Bytes above 127 are the characters with their numbers. `undefined` for what
   * CPython's hooks do not notice or crash at.
   */
  readonly report?: string
  /** With `ERR_GC_OVER_VISIT`: the object whose `traverse` it was. */
  readonly object?: Address
  /** With `ERR_GC_OVER_VISIT`: the object that was visited too often. */
  readonly referent?: Address
  /** From {@link Heap.run}: the number of the operation, from 0. */
  readonly index?: number
  /** With `ERR_CALLBACK_THREW`: what was thrown. */
  readonly cause?: unknown
  /**
   * Gives what is known as data; `util.inspect` shows the same, and the stack.
   * @returns name, message, code, and the fields that are there
   */
  toJSON(): object
}

/**
 * Every code that a {@link MemoryFault} may have. After `ERR_INTERNAL`, and after an `ERR_HEAP_CORRUPTED` that a request for memory threw
 * because the link of a free block was broken, the heap can only be closed: every other call throws that again.
 */
export type FaultCode =
  | 'ERR_WRONG_DOMAIN' | 'ERR_DOUBLE_FREE' | 'ERR_USE_AFTER_FREE' | 'ERR_INTERIOR_POINTER' | 'ERR_FOREIGN_POINTER' | 'ERR_WRONG_HEAP'
  | 'ERR_BUFFER_OVERFLOW' | 'ERR_BUFFER_UNDERFLOW' | 'ERR_WRITE_AFTER_FREE'
  | 'ERR_HEAP_CORRUPTED' | 'ERR_HEAP_CLOSED' | 'ERR_WRONG_TYPE' | 'ERR_GC_ALREADY_TRACKED' | 'ERR_GC_OVER_VISIT' | 'ERR_GC_IN_PROGRESS'
  | 'ERR_REFCOUNT_UNDERFLOW' | 'ERR_CALLBACK_THREW' | 'ERR_CALLBACK_RESULT' | 'ERR_REENTRANT'
  | 'ERR_EXTERNAL_BUFFERS_UNSUPPORTED' | 'ERR_INTERNAL'

/**
 * No memory for an object, a type, the debug hooks or a list (`PyErr_NoMemory()`). A domain's request that fails is `null` instead.
 *
 * @example
 * ```ts
 * import { Heap, MemoryError } from 'obmalloc'
 *
 * using heap = new Heap({ memoryLimit: 1 << 20 })
 * const Bytes = heap.defineType({ name: 'bytes', items: 'byte' })
 * console.log(heap.obj.malloc(1 << 21)) // null
 * try {
 *   Bytes.alloc(1 << 21)
 * } catch (error) {
 *   console.log(error instanceof MemoryError, (error as MemoryError).code) // true ERR_NO_MEMORY
 * }
 * ```
 */
export class MemoryError extends Error {
  /**
   * Makes one, as tests may want to.
   * @param message the text
   * @param fields values for further fields
   */
  constructor(message: string, fields?: object)
  /** Always `'ERR_NO_MEMORY'`. */
  readonly code: 'ERR_NO_MEMORY'
  /**
   * Gives what is known as data; `util.inspect` shows the same, and the stack.
   * @returns name, message, code, and the fields that are there
   */
  toJSON(): object
}

// Recordings of real CPythons. Sizes are bytes, moments are numbers of events and seconds since the recording began.

/**
 * A recording of a CPython, made by {@link record} or on the command line. [The essay on traces](docs/traces.md) says what is in one.
 *
 * @example
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
  /**
   * Opens a trace.
   * @param path the file
   * @returns the trace; only its header has been read
   * @throws {TraceError} (rejects) when the file is no trace
   */
  static open(path: string): Promise<Trace>
  /** The file. */
  readonly path: string
  /** What the recorder says of the process. */
  readonly header: TraceHeader
  /**
   * Gives the events, in the order in which they happened, each with its time, its thread and the stack that it was made under.
   * @param options which events; all of them if left out
   * @returns calls of allocators, and notes of the recorder
   * @throws {TraceError} (rejects) when the trace cannot be read any further
   * @throws {UsageError} (rejects) when `address` or `site` is not what it has to be, or `from` is above `to`
   *
   * @example
   * ```ts
   * for await (const event of trace.events({ size: 4096 })) if ('call' in event) console.log(event.call, event.address, event.stack[0])
   * ```
   */
  events(options?: EventsOptions): AsyncGenerator<CallEvent | NoteEvent, void, void>
  /**
   * Makes the recorded calls again and compares every answer, up to a moment or to the end, by the rules of the recorded release or
   * another one, with its sizes or others.
   * @param options how far, and by which rules
   * @returns what was compared, and the first difference if there is one
   * @throws {TraceError} (rejects) when the trace cannot be read any further, or holds no event and `at` is given
   * @throws {UsageError} (rejects) when the trace has no such moment
   * @throws {RangeError} (rejects) ERR_OUT_OF_RANGE when `at` is no moment, `release` no release, or a size outside its range
   *
   * @example
   * ```ts
   * const { exact, matched, addresses } = await trace.replay({ at: 'peak' })
   * ```
   */
  replay(options?: ReplayTraceOptions): Promise<ReplayReport>
  /**
   * Says what holds the memory at a moment, and why it was not given back.
   * @param options the moment; the end before finalization if left out
   * @returns the answer, which `schema/why-1.json` describes
   * @throws {TraceError} (rejects) when the trace cannot be read any further, or holds no event
   * @throws {UsageError} (rejects) when the trace has no such moment
   * @throws {RangeError} (rejects) ERR_OUT_OF_RANGE when `at` is no moment
   */
  why(options?: InquiryOptions): Promise<Why>
  /**
   * Tries other settings on the recording.
   * @param configurations the settings, a row each
   * @param options the moment, other allocators to measure, and blocks to set apart
   * @returns a row for the recording as it is, and one for each setting
   * @throws {TraceError} (rejects) when the trace cannot be read any further, or holds no event
   * @throws {UsageError} (rejects) when the trace has no such moment, or no stacks by which blocks could be set apart, or no line is given
   * for that, or an allocator's name is not known
   * @throws {RangeError} (rejects) ERR_OUT_OF_RANGE when `at` is no moment, `release` no release, or a size outside its range
   *
   * @example
   * ```ts
   * const { rows } = await trace.whatIf([{ arena: 256 * 1024 }, { release: '3.9' }], { allocators: ['jemalloc'] })
   * ```
   */
  whatIf(configurations: readonly Configuration[], options?: Omit<WhatIfOptions, 'configurations'>): Promise<WhatIf>
}

/**
 * Runs a program in a CPython and writes down every allocator call, with at most 64 frames of each request's stack and a sample of
 * memory every 100 ms unless told otherwise.
 * @param program a script and its arguments, or `-m` and a module, or `-c` and code
 * @param options where the trace goes, and what is recorded
 * @returns the traces, and how the program ended
 * @throws {PlaceError} (rejects) when the trace cannot be made where it is to be; then nothing is run
 * @throws {UsageError} (rejects) when something other than a trace is there that may not be replaced; then nothing is run
 * @throws {UsageError} (rejects) when there is no program, or the CPython cannot be used
 *
 * @example
 * ```ts
 * import { record } from 'obmalloc'
 *
 * const { ended, complete } = await record(['-c', 'import json'], { trace: 'json.trace', stacks: 8 })
 * console.log(ended, complete) // 0 true
 * ```
 */
export function record(program: readonly string[], options: RecordProgramOptions): Promise<Recording>

/**
 * Runs a program in a CPython and lists the blocks that are freed or reallocated by another domain than the one that gave them out.
 * @param program a script and its arguments, or `-m` and a module, or `-c` and code
 * @param options which CPython, and where the program's output goes
 * @returns the findings, and the processes that were looked at
 * @throws {UsageError} (rejects) when there is no program, or the CPython cannot be used
 *
 * @example
 * ```ts
 * const { findings } = await check(['-m', 'unittest'])
 * ```
 */
export function check(program: readonly string[], options?: ProgramOptions): Promise<Check>

/**
 * Records a program in CPythons, all that are found unless told which, replays each recording here and compares every address, arena
 * and statistic.
 * @param program a script and its arguments, or `-m` and a module, or `-c` and code
 * @param options which CPythons, and where the program's output goes
 * @returns one comparison for each CPython; none where no CPython is found
 * @throws {UsageError} (rejects) when there is no program, or one of the CPythons cannot be used
 *
 * @example
 * ```ts
 * import { compare } from 'obmalloc'
 *
 * for (const { interpreter, exact, report } of await compare(['-c', 'import json; json.dumps(list(range(1000)))']))
 *   console.log(interpreter.version, exact, `${report.matched} of ${report.addresses}`)
 * ```
 */
export function compare(program: readonly string[], options?: CompareProgramOptions): Promise<Comparison[]>

/**
 * Looks for the CPythons of this machine, and starts each once to ask what it is.
 * @param paths executables; if left out or empty, those in `OBMALLOC_PYTHON`, on `PATH`, and in the places of pyenv and uv
 * @returns those that can be recorded and compared with, and those that cannot, each with the reason
 *
 * @example
 * ```ts
 * import { findInterpreters } from 'obmalloc'
 *
 * const { usable, unusable } = await findInterpreters()
 * for (const { path, version } of usable) console.log(version, path)
 * for (const { path, reason } of unusable) console.error(path, reason)
 * ```
 */
export function findInterpreters(paths?: readonly string[]): Promise<Found>

/**
 * Says what grew from one recording to another, or from one moment of a recording to another (`FILE@mark:1`).
 * @param a the earlier one: a trace, or a path with or without a moment
 * @param b the later one
 * @param options by what the memory is grouped
 * @returns a row for each group, the one that grew most first
 * @throws {TraceError} (rejects) when one of them is no trace, cannot be read any further, or holds no event
 * @throws {UsageError} (rejects) when a trace has no such moment
 *
 * @example
 * ```ts
 * const { sites } = await diff('run.trace@mark:job#1', 'run.trace@mark:job')
 * ```
 */
export function diff(a: Trace | string, b: Trace | string, options?: DiffOptions): Promise<Difference>

/**
 * The file is no trace, or it cannot be read any further.
 *
 * @example
 * ```ts
 * import { Trace, TraceError } from 'obmalloc'
 *
 * await Trace.open('/dev/null').catch((error: unknown) => console.log(error instanceof TraceError)) // true
 * ```
 */
export class TraceError extends Error {
  /** Always `'TraceError'`. */
  override readonly name: 'TraceError'
}

/**
 * A trace cannot be written where it is to be. The program was not run.
 *
 * @example
 * ```ts
 * import { PlaceError, record } from 'obmalloc'
 *
 * const options = { trace: '/no/such/folder/run.trace' }
 * await record(['-c', 'pass'], options).catch((error: unknown) => console.log(error instanceof PlaceError)) // true
 * ```
 */
export class PlaceError extends Error {
  /** Always `'PlaceError'`. */
  override readonly name: 'PlaceError'
}

/**
 * A request cannot be carried out: there is no such interpreter, moment or site, or no program.
 *
 * @example
 * ```ts
 * import { compare, UsageError } from 'obmalloc'
 *
 * const options = { python: ['/bin/true'] } // no CPython
 * await compare(['-c', 'pass'], options).catch((error: unknown) => console.log(error instanceof UsageError)) // true
 * ```
 */
export class UsageError extends Error {
  /** Always `'UsageError'`. */
  override readonly name: 'UsageError'
}

/** A CPython that can be recorded and compared with. */
export interface Interpreter {
  /** The executable itself, not a shim that starts it. */
  readonly path: string
  /** Its version, for example `3.13.0`. */
  readonly version: string
  /** The release whose rules it follows. */
  readonly release: Release
  /** Whether its allocator lies in a shared libpython rather than in the executable. */
  readonly shared: boolean
}

/** A candidate that cannot be used. */
export interface Unusable {
  /** The executable. */
  readonly path: string
  /** Why it cannot be used, in words. */
  readonly reason: string
}

/** What {@link findInterpreters} gives. */
export interface Found {
  /** CPythons that can be recorded. */
  readonly usable: Interpreter[]
  /** Candidates that cannot. */
  readonly unusable: Unusable[]
}

/** What the recorder says of the process, at the head of a trace. */
export interface TraceHeader {
  /** The CPython's version, for example `3.13.0`. */
  readonly python: string
  /** The path of its executable. */
  readonly executable: string
  /** The process's arguments, the program's name first. */
  readonly argv: readonly string[]
  /** The working directory when the recording began: relative paths of stacks go by it. Older traces do not say so; empty where it was not known. */
  readonly folder?: string
  /** The process's number. */
  readonly pid: number
  /** Whether it is a build without the GIL. */
  readonly freeThreaded: boolean
  /** Whether it is a debug build. */
  readonly debugBuild: boolean
  /** Whether its allocator lies in a shared libpython. */
  readonly shared: boolean
  /** The most frames of a request's stack, 0 when there are none. Traces before format 3 have none and do not say so. */
  readonly stacks?: number
  /** The least milliseconds between two samples of memory, 0 when there are none. Traces before format 4 do not say so. */
  readonly every?: number
  /** An identity that the traces of one run have in common. Traces of format 1 have no identities. */
  readonly run?: string
  /** An identity that no other trace has. */
  readonly id?: string
  /** The trace of the process that forked this one, its identity, and how many bytes of it were written by then; `null` without one. */
  readonly parent: { readonly path: string; readonly id?: string; readonly bytes: number } | null
  /** Why the recorder had to stop; `null` when it had not to. */
  readonly failed?: string | null
}

/** A frame of a stack. */
export interface Frame {
  /** The source file, as Python names it. */
  readonly file: string
  /** The line, from 1. */
  readonly line: number
  /** The function's name. */
  readonly function: string
}

/** A call that the recorded process made. */
export interface CallEvent {
  /** Its number, from 0. */
  readonly event: number
  /** When it was made, in seconds since the recording began, as the clock was last looked at; `null` where the trace does not say. */
  readonly seconds: number | null
  /** The system's number of the thread that made it; `null` where the trace does not say. */
  readonly thread: number | null
  /** C's name of the function; `alloc` and `free` for an arena allocator. */
  readonly call: 'malloc' | 'calloc' | 'realloc' | 'free' | 'alloc'
  /** The domain; `arena` for the arena allocator. */
  readonly domain: 'raw' | 'mem' | 'obj' | 'arena'
  /** Elements, of a `calloc`. */
  readonly count?: number
  /**
   * Bytes requested (of a `calloc`, in an element); of a `free`, bytes that its block was requested with, or bytes of the arena given back. Absent
   * for a `free` of NULL, and of a block that no recorded call gave.
   */
  readonly size?: number
  /** The block that a `realloc` was given, as `0x…`. */
  readonly from?: string
  /** The address that was given or freed, as `0x…`; `0x0` for NULL. */
  readonly address: string
  /** The interpreter whose call it is; 0 is the main one. */
  readonly interpreter: number
  /** The Python stack that it was made under, innermost frame first; empty without one. */
  readonly stack: readonly Frame[]
}

/** What the recorder says besides, and samples of memory, which have no number of their own. */
export interface NoteEvent {
  /** Its number; for a sample of memory, the number of the next event. */
  readonly event: number
  /** When it was made, in seconds since the recording began; `null` where the trace does not say. */
  readonly seconds: number | null
  /**
   * What it is: `memory` (a sample), `mark`, `stats`, `allocatedBlocks`, `interpreter`, `hooksLost`, `fork`, `exec`, `finalization`, `end`, or
   * `text`.
   */
  readonly note: string
  /** The text or number that belongs to it. */
  readonly value?: string
  /** Of a sample of memory: resident bytes backed by no file (heaps, arenas, stacks). */
  readonly anonymous?: number
  /** Of a sample of memory: resident bytes of files and shared memory. */
  readonly file?: number
  /** Of a sample of memory: bytes that C's `malloc` has from the system; 0 where it does not say. */
  readonly heap?: number
  /** Of a sample of memory: the part of those bytes that no block is in. */
  readonly heapFree?: number
}

/** Which events {@link Trace.events} gives. */
export interface EventsOptions {
  /** The first event; 0 if left out. */
  readonly from?: number | undefined
  /** The last event; the trace's last one if left out. */
  readonly to?: number | undefined
  /** Only requests for so many bytes. */
  readonly size?: number | undefined
  /** Only calls that were given this address or gave it: hexadecimal digits, with or without `0x`. */
  readonly address?: string | undefined
  /** Only requests with a frame in this file and line, as `FILE:LINE`. */
  readonly site?: string | undefined
}

/** The first call that came out otherwise than recorded. */
export interface Mismatch {
  /** The event's number. */
  readonly operation: number
  /** What differs, in full. */
  readonly text: string
}

/** What a replay has found: `ReplayReport` of the engine. */
export interface ReplayReport {
  /** Events of the trace that were replayed. */
  readonly events: number
  /** Calls on the mem and obj domains among them. */
  readonly calls: number
  /** Calls on the raw domain among them, without those that mem and obj calls made. */
  readonly rawCalls: number
  /** Raw calls that mem and obj calls made, each compared with what the heap asked of raw. */
  readonly nestedRawCalls: number
  /** Results that lie in an arena, here or in the recorded process. */
  readonly addresses: number
  /** Those of them that are equal. */
  readonly matched: number
  /** Arenas taken. */
  readonly arenasTaken: number
  /** Arenas given back. */
  readonly arenasReleased: number
  /** The most arenas held at one time. */
  readonly arenasHighwater: number
  /** Requests at the arena allocator that are not pymalloc's: the interpreter's data stack. */
  readonly otherArenaRequests: number
  /** Empty pools whose free lists trims of the recorded process forgot; the replay forgets the same. */
  readonly trimmedPools: number
  /** Frees and reallocs of addresses that no recorded call gave out. */
  readonly strangers: number
  /** Calls on mem and obj of interpreters that have allocators of their own: they are left out. */
  readonly otherCalls: number
  /** How many such interpreters there are. */
  readonly otherInterpreters: number
  /** Allocated blocks as recorded, and here; `null` where nothing was recorded, and where there are other interpreters. */
  readonly blocks: readonly [number, number] | null
  /** The statistics text as recorded, and here; `null` where nothing was recorded. */
  readonly stats: readonly [string, string] | null
  /** Domains whose calls the recorder lost sight of: bit 0 raw, bit 1 mem, bit 2 obj. */
  readonly hooksLost: number
  /** Whether the recorded process ended in an orderly way, or went on as another program, so that nothing is missing. */
  readonly ended: boolean
  /** Whether the file ended inside a block. */
  readonly truncated: boolean
  /** Whether the replay ended before the trace did, because it was told to. */
  readonly stopped: boolean
  /** What the recorder had to say. */
  readonly remarks: readonly string[]
  /** The first difference; `null` when there is none. Nothing is replayed after it. */
  readonly mismatch: Mismatch | null
  /** Whether everything that was compared is equal. */
  readonly exact: boolean
  /** How long the replay took, in seconds. */
  readonly seconds: number
  /** The statistics text of the heap as the replay left it. */
  readonly statsNow: string
}

/** A stack that asked for memory, and what it has live. Sizes in bytes, moments as event numbers. */
export interface Site {
  /** Innermost frame first; empty for C code without a Python frame. */
  readonly stack: readonly Frame[]
  /** How many live blocks it has in pools. */
  readonly blocks: number
  /** Their bytes at the size class's size. */
  readonly live: number
  /** Its share of the arenas: each divided among the sites of its live blocks by their number. The shares sum to what is held. */
  readonly held: number
  /** Arenas in which it has a block. */
  readonly arenasTouched: number
  /** Arenas in which no other site has a block. */
  readonly arenasPinnedAlone: number
  /** The event that made its first live block; `null` for a site without a block in an arena. */
  readonly bornFirst: number | null
  /** The event that made its last live block; `null` for a site without a block in an arena. */
  readonly bornLast: number | null
  /** Bytes live at C's `malloc` through the raw domain, as asked for. */
  readonly raw: number
  /** Bytes live at C's `malloc` because they were above 512 bytes on mem and obj, as asked for. */
  readonly large: number
  /** The types of its live blocks, most blocks first, as far as they are known; absent where the recorder did not look at that moment. */
  readonly types?: readonly TypeCount[]
}

/** Live blocks in pools that hold objects of one type. */
export interface TypeCount {
  /** `module.qualname`, without the module for a type of Python's own; `(other types)` for the last entry, where there are too many. */
  readonly name: string
  /** How many blocks there are. */
  readonly blocks: number
  /** Their bytes at the size class's size. */
  readonly bytes: number
}

/** An arena that is held at the moment. */
export interface Arena {
  /** Where it was in the recorded process, as `0x…`. */
  readonly address: string
  /** Pools that hold blocks. */
  readonly pools: number
  /** Pools that hold none. */
  readonly freePools: number
  /** Live blocks. */
  readonly blocks: number
  /** Their bytes at the size class's size. */
  readonly live: number
  /** The event at which it was taken. */
  readonly born: number
  /** Sites, by index, with the most blocks first. */
  readonly pinnedBy: readonly { readonly site: number; readonly blocks: number }[]
}

/** Something that {@link Trace.why} has found. */
export interface Finding {
  /** The rule's name. */
  readonly rule: string
  /** What was found, in words. */
  readonly text: string
  /** The site that it is about, by index; `null` when it is about none. */
  readonly site: number | null
  /** Bytes that it would save, where they are known; else 0. */
  readonly saves: number
  /** The command with which to look further. */
  readonly command: string
  /** All sites that it is about, by index. */
  readonly sites: readonly number[]
  /** The sites of the blocks that lay around theirs and died, by index. */
  readonly burst: readonly number[]
  /** Of a finding about live blocks, their types as far as they are known; absent where the recorder did not look at that moment. */
  readonly types?: readonly TypeCount[]
}

/** The memory at the moment, in bytes: `held = live + freeInPools + freePools + rounding`. */
export interface Totals {
  /** How many arenas are held. */
  readonly arenas: number
  /** Arenas times the arena size. */
  readonly held: number
  /** What the same blocks would take if they lay packed. */
  readonly needed: number
  /** In live blocks, at their size classes' sizes. */
  readonly live: number
  /** How many live blocks there are. */
  readonly blocks: number
  /** In blocks that pools with live blocks could still give. */
  readonly freeInPools: number
  /** In pools without a live block. */
  readonly freePools: number
  /** In pool headers, behind a pool's last block, and in what alignment takes of an arena. */
  readonly rounding: number
  /** Live at C's `malloc` through the raw domain, as asked for. */
  readonly raw: number
  /** Live at C's `malloc` because they were above 512 bytes, as asked for. */
  readonly large: number
  /** Whole pages of empty pools that were in use once, without each pool's first page. */
  readonly trimmable: number
  /** Resident at the last sample up to the moment; `null` where it was not sampled. */
  readonly resident: number | null
  /** Anonymous memory of that sample that was neither in arenas nor in recorded blocks; `null` where it was not sampled. */
  readonly unexplained: number | null
  /** What C's `malloc` had and no block was in, resident or not; `null` where the C library does not say. */
  readonly heapFree: number | null
}

/** The answer: `obmalloc.why/1`, which `schema/why-1.json` describes. */
export interface Why {
  /** The name of this form. */
  readonly schema: 'obmalloc.why/1'
  /** The recording. */
  readonly trace: {
    /** Its file. */
    readonly path: string
    /** The CPython's version, for example `3.13.0`. */
    readonly python: string
    /** The release by whose rules it was replayed, for example `3.13`. */
    readonly release: string
    /** Events in it. */
    readonly events: number
    /** How long the recording lasted; `null` where the trace does not say. */
    readonly seconds: number | null
    /** Whether it goes to the end of the process, and the recorder missed nothing. */
    readonly complete: boolean
    /** The marks that the program made, in order. */
    readonly marks: readonly { readonly name: string; readonly event: number; readonly seconds: number | null }[]
  }
  /** Addresses that were compared on the way to the moment, and those of them that are equal. */
  readonly verified: { readonly addresses: number; readonly matched: number }
  /** The last event that has happened by the moment, when that was, and the moment as it was asked for. */
  readonly at: { readonly event: number; readonly seconds: number | null; readonly moment: string }
  /** What the memory consists of. */
  readonly totals: Totals
  /** Arenas that would not be needed, their bytes (`held - needed`), and the blocks in so many arenas, those with the fewest blocks first. */
  readonly pinned: { readonly arenas: number; readonly bytes: number; readonly blocks: number }
  /** The sites with the largest share of `held` first. */
  readonly sites: readonly Site[]
  /** The arenas, by address. */
  readonly arenas: readonly Arena[]
  /** How many sites and arenas are here, of how many. */
  readonly bounded: { readonly sites: readonly [number, number]; readonly arenas: readonly [number, number] }
  /** So many blocks must go for so many arenas, fewest first. */
  readonly greedy: readonly (readonly [number, number])[]
  /** What was found. */
  readonly findings: readonly Finding[]
}

/**
 * What of an `AbortSignal` is used; every `AbortSignal` fits. It is written here so that these types need neither those of Node.js nor
 * those of a browser.
 */
export interface AbortSignalLike {
  /** Whether it has been aborted. */
  readonly aborted: boolean
  /** Why: what the promise rejects with. */
  readonly reason: any
  /** Throws the reason, if it has been aborted. */
  throwIfAborted(): void
  /**
   * Has a function called when it is aborted.
   * @param type The event.
   * @param listener The function.
   * @param options `once`: it is called once at most.
   */
  addEventListener(type: 'abort', listener: () => void, options?: { once?: boolean }): void
  /**
   * Has a function called no more.
   * @param type The event.
   * @param listener The function.
   */
  removeEventListener(type: 'abort', listener: () => void): void
}

/** The moment that an inquiry is about. */
export interface InquiryOptions {
  /** `end` (the default), `peak`, `mark:NAME`, `mark:NAME#2`, `event:N` or `time:SECONDS`. */
  readonly at?: string | undefined
  /** Ends the inquiry, which rejects with the signal's reason then. */
  readonly signal?: AbortSignalLike
  /** Is told how many bytes of the trace have been read, of how many. */
  readonly onProgress?: (done: number, total: number) => void
}

/** Another setting than the recorded one; what is not given is as recorded. Sizes in bytes. */
export interface Configuration {
  /** Follows the rules of this release. */
  readonly release?: string
  /** Bytes of an arena: a power of two, 64 KiB to 64 MiB. */
  readonly arena?: number
  /** Bytes of a pool: a power of two, 4 KiB to 256 KiB, at most half of the arena. */
  readonly pool?: number
  /** The largest request that pymalloc serves itself: a multiple of the alignment, above 0 and up to a quarter of the pool. */
  readonly threshold?: number
  /** Gives the blocks of {@link WhatIfOptions.apart} a heap of their own. */
  readonly apart?: boolean
}

/** What can be measured in place of pymalloc. `glibc` is C's own `malloc`. */
export type MeasuredAllocator = 'glibc' | 'jemalloc' | 'mimalloc' | 'tcmalloc'

/**
 * What came of a setting, in bytes. `exact` rows follow the rules of a release for sizes that it has; `model` rows assume where the system would
 * place arenas of other sizes, and of a trim that all pages of pools that were in use are resident; `measured` rows are resident memory of a real process. Rows of different kinds cannot be ranked together.
 */
export interface WhatIfRow {
  /** What was tried. */
  readonly name: string
  /** How sure the figures are. */
  readonly kind: 'exact' | 'model' | 'measured'
  /** The most that was held: arenas, or resident memory where it was measured. */
  readonly peakHeld: number
  /** What is held at the moment: arenas, or resident memory where it was measured. */
  readonly held: number
  /** Against the row that is as recorded and of the same kind. */
  readonly difference: number
  /** What of `held` is in no live block; `null` where it was measured. */
  readonly lost: number | null
  /** Arenas that were mapped; `null` where it was measured. */
  readonly maps: number | null
  /** Arenas that were unmapped; `null` where it was measured. */
  readonly unmaps: number | null
  /** A call, on the mean. */
  readonly nanoseconds: number
  /** What brings it about; `null` where nothing does. */
  readonly setting: string | null
}

/** What came of all settings. */
export interface WhatIf {
  /** The name of this form. */
  readonly schema: 'obmalloc.what-if/1'
  /** The moment, and how it was asked for. */
  readonly at: Moment & { readonly moment: string }
  /** Whether the replay came to the moment, and went as recorded. */
  readonly verified: boolean
  /** Calls of mem and obj up to the moment. */
  readonly calls: number
  /** A row for each setting. */
  readonly rows: readonly WhatIfRow[]
  /** What was asked for and could not be tried, a sentence each. */
  readonly remarks: readonly string[]
}

/** What {@link Trace.whatIf} tries, and up to which moment. */
export interface WhatIfOptions {
  /** `end` (the default), `peak`, `mark:NAME`, `mark:NAME#2`, `event:N` or `time:SECONDS`. */
  readonly at?: string
  /** The settings, a row each. */
  readonly configurations?: readonly Configuration[]
  /** Allocators that are really loaded into a process that makes the calls, a row each. */
  readonly allocators?: readonly MeasuredAllocator[]
  /** Blocks whose stack passes this file and line have a heap of their own in one more row. */
  readonly apart?: { readonly file: string; readonly line: number }
  /** Ends the trial, which rejects with the signal's reason then. */
  readonly signal?: AbortSignalLike
  /** Is told what is being tried, and how much of it is done. */
  readonly onProgress?: (what: string, done: number, total: number) => void
}

/** A moment of a trace. */
export interface Moment {
  /** The last event that has happened by then. */
  readonly event: number
  /** When that was, in seconds since the recording began; `null` where the trace does not say. */
  readonly seconds: number | null
}

/** What a row has on one side, in bytes. */
export interface Figures {
  /** How many live blocks. */
  readonly blocks: number
  /** In pools, at the size class's size. */
  readonly live: number
  /** Its share of the arenas. */
  readonly held: number
  /** At C's `malloc`. */
  readonly outside: number
}

/** A site, function, file or size class. */
export interface DifferentRow {
  /** Its name. */
  readonly name: string
  /** Of a site: as the later one has it, or the earlier one where only that has it. */
  readonly stack: readonly Frame[]
  /** On the earlier side; `null` where that does not have it. */
  readonly a: Figures | null
  /** On the later side; `null` where that does not have it. */
  readonly b: Figures | null
  /** How many bytes more are live, in pools and outside. */
  readonly grown: number
}

/** One of the two sides of a {@link Difference}. */
export interface DiffSide {
  /** The trace's file. */
  readonly path: string
  /** The CPython's version. */
  readonly python: string
  /** The moment, as it was asked for. */
  readonly moment: string
  /** The last event that has happened by then. */
  readonly event: number
  /** When that was, in seconds since the recording began; `null` where the trace does not say. */
  readonly seconds: number | null
  /** What the memory consists of. */
  readonly totals: Totals
  /** Whether every address that was replayed is as recorded. */
  readonly verified: boolean
}

/** What grew: `obmalloc.diff/1`. */
export interface Difference {
  /** The name of this form. */
  readonly schema: 'obmalloc.diff/1'
  /** By what the memory is grouped. */
  readonly by: 'site' | 'function' | 'file' | 'class'
  /** The earlier side. */
  readonly a: DiffSide
  /** The later side. */
  readonly b: DiffSide
  /** The rows, the one that grew most first. */
  readonly sites: readonly DifferentRow[]
}

/** By what {@link diff} groups the memory. */
export interface DiffOptions extends Omit<InquiryOptions, 'at'> {
  /** `'site'` if left out. */
  readonly by?: 'site' | 'function' | 'file' | 'class'
}

/** What gives blocks out: a domain, or C's `malloc` and its like (`c`) when it is called by anything but a domain. */
export type BlockOwner = 'raw' | 'mem' | 'obj' | 'c'

/** A place in C code. */
export interface CodePlace {
  /** The function's name; `null` where the module names none. */
  readonly function: string | null
  /** The path of the executable or library; `null` for code that is in none, or when it could not be told. */
  readonly module: string | null
  /** Bytes from the module's beginning to where the call returns; the address itself when there is no module. */
  readonly offset: number | null
}

/**
 * What can be wrong with an address that is freed or reallocated.
 *
 * - `wrong-domain`: a live block of another owner.
 * - `interior`: it lies inside a live block.
 * - `freed-before`: a block began there and was freed, and the address was not given out again since.
 * - `foreign`: the address was never given out.
 *
 * The last two as far as was seen: a library can find C's `malloc` in a way that cannot be seen. Therefore what is given to C's own `free`
 * is never `foreign`, and `freed-before` only where a block of mem or obj of 512 bytes or less was.
 */
export type FaultKind = 'wrong-domain' | 'interior' | 'freed-before' | 'foreign'

/** Occurrences of one fault in one place. */
export interface CheckFinding extends CodePlace {
  /** What is wrong. */
  readonly kind: FaultKind
  /** What was done. */
  readonly call: 'free' | 'realloc'
  /** The owner of the block in question; `null` when there is none. */
  readonly allocated: BlockOwner | null
  /** The owner through which it was freed or reallocated. */
  readonly used: BlockOwner
  /**
   * The field of a heap type that CPython itself freed so, as it does in this release: then the code that filled the field has the domain
   * wrong. `null` where the program did it.
   */
  readonly field: 'tp_doc' | null
  /** How many times. */
  readonly count: number
  /** Sizes asked for, bytes, and how many blocks of each; empty when there is no block. */
  readonly sizes: readonly (readonly [size: number, count: number])[]
  /** The code that allocated the blocks; with `freed-before`, the code that freed them first. */
  readonly origins: readonly (CodePlace & { readonly count: number })[]
}

/** A process that was looked at. */
export interface CheckedProcess {
  /** Its number. */
  readonly pid: number
  /** Its arguments, the program's name first. */
  readonly argv: readonly string[]
  /** The CPython's version. */
  readonly version: string
  /** Whether it came to its end. One that was killed did not: it was looked at until then. */
  readonly complete: boolean
  /** Whether it went on when the program had ended: what it has done since was not looked at. */
  readonly running: boolean
  /**
   * Owners whose calls were not all seen, because the allocators were replaced. All domains in free-threaded builds, and in a process
   * that was killed before it was initialised; of one that was killed later, those that were lost by then.
   */
  readonly lost: readonly BlockOwner[]
  /** What replaced them; `null` when nothing did, or that is not known. */
  readonly replacedBy: string | null
  /** Why its report could not be written to the end; `null` when it could. */
  readonly failed: string | null
}

/** What {@link check} gives. */
export interface Check {
  /** The findings of all processes, the most frequent first. */
  readonly findings: CheckFinding[]
  /** The processes, the first one first: none when that was not looked at. */
  readonly processes: CheckedProcess[]
  /** How the program ended: an exit code, or the name of a signal. */
  readonly ended: number | string
}

/** What {@link record} gives. */
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

/** How {@link Trace.replay} makes the calls again. */
export interface ReplayTraceOptions {
  /** The release whose rules are followed; the recorded one if left out. */
  readonly release?: Release
  /** Other sizes than the release's, all four of them. */
  readonly geometry?: Geometry
  /** `end`, `peak`, `mark:NAME`, `mark:NAME#2`, `event:N` or `time:SECONDS`; the end of the trace if left out. */
  readonly at?: string
  /** Ends the replay, which rejects with the signal's reason then. */
  readonly signal?: AbortSignalLike
  /** Is told how many bytes of the trace have been read, of how many. */
  readonly onProgress?: (done: number, total: number) => void
}

/** How a program is run. */
export interface ProgramOptions {
  /** The CPython: `python3` unless given. */
  readonly python?: string
  /** Where the program's output goes: `'inherit'` unless given; `'stderr'` is this process's stderr. */
  readonly stdout?: 'inherit' | 'ignore' | 'stderr'
  /** Ends the program; the call rejects with the signal's reason then. */
  readonly signal?: AbortSignalLike
}

/** How {@link record} records. */
export interface RecordProgramOptions extends ProgramOptions {
  /** The file that the trace is written to. A trace that is there already is replaced. */
  readonly trace: string
  /** Whether a file there that is no trace is replaced, too: `false` if left out. */
  readonly force?: boolean
  /** The most frames of each request's stack, a count: 64 if left out, 1 for the innermost alone, 0 for none; above 1024 it is 1024. */
  readonly stacks?: number
  /** The least milliseconds between two samples of memory, a count: 100 if left out, 0 for none. */
  readonly every?: number
  /** Whether the types of live objects are told at marks and at the end: `true` if left out. */
  readonly types?: boolean
  /** Trims the program while it runs: the words of `OBMALLOC_TRIM`, such as `asked` or `every=30s,above=16M,idle,log`. */
  readonly trim?: string
  /** Variables that are added to the present environment, or replace those in it. */
  readonly env?: Record<string, string>
}

/** What a comparison with one CPython came to. */
export interface Comparison {
  /** The CPython. */
  readonly interpreter: Interpreter
  /** Whether everything that was compared is equal, and the recording is complete. */
  readonly exact: boolean
  /** What was compared. */
  readonly report: ReplayReport
  /** How the program ended: an exit code, or the name of a signal. */
  readonly ended: number | string
  /** What is to be said of the recording, a sentence each. */
  readonly remarks: readonly string[]
}

/** How {@link compare} compares. */
export interface CompareProgramOptions {
  /** The CPythons; all that are found if left out. */
  readonly python?: readonly string[]
  /** Where the program's output goes: `'ignore'` unless given; `'stderr'` is this process's stderr. */
  readonly stdout?: 'inherit' | 'ignore' | 'stderr'
  /** Ends the comparison, which rejects with the signal's reason then. */
  readonly signal?: AbortSignalLike
  /** Is told the version of the CPython, and how many bytes of its trace have been read, of how many. */
  readonly onProgress?: (version: string, done: number, total: number) => void
}
