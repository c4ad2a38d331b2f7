/**
 * obmalloc: the public contract. What is declared here is there.
 *
 * No argument is ever converted: no `valueOf` is called. Missing arguments are `undefined`; further ones are ignored. Calls that
 * come from inside one of a heap's own callbacks throw `ERR_REENTRANT`, except those of its own arena allocator. A heap or a domain
 * cannot be posted to another thread: that throws a `DataCloneError`.
 */

/** The CPython release whose behaviour a heap takes on. `'3.14.0'` is the incremental collector of 3.14.0 to 3.14.4; `'3.14'` is 3.14.5 and later. */
export type Release = '3.8' | '3.9' | '3.10' | '3.11' | '3.12' | '3.13' | '3.14.0' | '3.14' | '3.15'

/** `PYMEM_DOMAIN_RAW`, `PYMEM_DOMAIN_MEM`, `PYMEM_DOMAIN_OBJ`. */
export type DomainName = 'raw' | 'mem' | 'obj'

/** What `PYTHONMALLOC` may say. `'default'` is `'pymalloc'`. */
export type AllocatorName = 'default' | 'malloc' | 'pymalloc'

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
   * most a quarter of the arena, both powers of two; alignment 8 or 16; a threshold up to a quarter of the pool.
   */
  geometry?: Partial<Geometry>
  /** Bytes the heap may hold in arenas and raw blocks; past it requests fail as if the system had none. */
  memoryLimit?: Size
}

/** `PyMemAllocatorEx`: what a domain does. */
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
 * What `alloc` gives must be `size` bytes in a live block of another heap, or in what a heap's own arena allocator (the one that
 * {@link Heap.getArenaAllocator} gives at first) gave, at a multiple of 16 and clear of all other arenas; anything else fails the call
 * that needed it with `ERR_CALLBACK_RESULT`, and an exception with `ERR_CALLBACK_THREW`, its `cause` the exception. The heap is as
 * before then. While an arena lies in a block, the block cannot be freed, moved or viewed (`ERR_REENTRANT`). When `free` throws, the
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
 * (`ERR_OUT_OF_RANGE`), misused addresses throw {@link MemoryFault}. Memory that cannot be had is `null`, as in C.
 */
export interface Domain extends Allocator {
  readonly name: DomainName
  /** Bytes that may be used at `address`: the size class's for a small block, what was requested for another. */
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

  /** `PyObject_GetArenaAllocator`. The one in place, and always the same object for the same one. */
  getArenaAllocator(): ArenaAllocator
  /** `PyObject_SetArenaAllocator`. */
  setArenaAllocator(allocator: ArenaAllocator): void

  /**
   * Many operations in one call. Every operation is four numbers in `ops`: verb (0 malloc, 1 calloc, 2 realloc, 3 free),
   * domain (0 raw, 1 mem, 2 obj), slot, size. A slot holds the address that its last malloc, calloc or realloc gave; `addresses`,
   * where given, is indexed by slot and receives them (0 for NULL). Throws at the first fault, with `index` set to the operation's number.
   *
   * Slots are numbered below 2**24 and stay from one call to the next. One that was never used holds NULL; `free` leaves the address
   * in, so that freeing it again is a fault; a realloc that fails reports 0 and leaves the old block in.
   */
  run(ops: Uint32Array, addresses?: Float64Array): void

  /** `sys.getallocatedblocks()`. */
  allocatedBlocks(): number
  /** The arenas now held, in the order in which they were obtained. */
  arenas(): ArenaInfo[]
  /** The text of `sys._debugmallocstats()` for this release, up to its type free lists. */
  debugMallocStats(): string
  /** Walks every structure of the heap; throws {@link MemoryFault} (`ERR_HEAP_CORRUPTED`) at the first that does not hold. */
  verify(): void
  /** Gives all memory back; every later call throws `ERR_HEAP_CLOSED`. Closing twice is fine. */
  close(): void
  [Symbol.dispose](): void
}

export interface ArenaInfo {
  readonly address: Address
  readonly size: number
  readonly freePools: number
  readonly totalPools: number
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
  /** From {@link Heap.run}: the number of the operation. */
  readonly index?: number
  /** With `ERR_CALLBACK_THREW`: what was thrown. */
  readonly cause?: unknown
}

/** Every code that a {@link MemoryFault} may have. */
export type FaultCode =
  | 'ERR_WRONG_DOMAIN' | 'ERR_DOUBLE_FREE' | 'ERR_USE_AFTER_FREE' | 'ERR_INTERIOR_POINTER' | 'ERR_FOREIGN_POINTER' | 'ERR_WRONG_HEAP'
  | 'ERR_HEAP_CORRUPTED' | 'ERR_HEAP_CLOSED' | 'ERR_CALLBACK_THREW' | 'ERR_CALLBACK_RESULT' | 'ERR_REENTRANT'
  | 'ERR_EXTERNAL_BUFFERS_UNSUPPORTED' | 'ERR_INTERNAL'

/** `PyErr_NoMemory()`. `code` is `'ERR_NO_MEMORY'`. */
export class MemoryError extends Error {
  constructor(message: string, fields?: object)
  readonly code: 'ERR_NO_MEMORY'
}
