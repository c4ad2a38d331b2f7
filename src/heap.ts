/** A heap's face. */

import { constants } from 'node:buffer'

import type {
  Address,
  Allocator,
  ArenaAllocator,
  ArenaInfo,
  BlockInfo,
  DomainName,
  Geometry,
  HeapOptions,
  HeapStats,
  HeapSummary,
  PoolInfo,
  Release,
  Size,
  Trimmed,
  TypeSpec,
} from '../index.js'
import { Allocators } from './allocators.js'
import { Collector } from './collector.js'
import { Domain } from './domain.js'
import { badArgument, isFunction } from './errors.js'
import { checkFunction } from './functions.js'
import { inspected, shown, summaryOf } from './inspect.js'
import { Kept } from './kept.js'
import { blocksOf, poolsOf } from './look.js'
import { Memory } from './memory.js'
import { native, newHandle, on as onHandle, type Handle } from './native.js'
import { freeze, parse, slice } from './primordials.js'
import { face } from './scripts.js'
import { Types, type ObjectType } from './type.js'

/** A constant of this module, because each use of an import is a look into the other module's exports. */
const on = onHandle

const {
  open,
  takeArena,
  giveArena,
  geometry,
  setupDebugHooks,
  askOwn,
  askScript,
  incref,
  decref,
  refcount,
  setImmortal,
  run,
  allocatedBlocks,
  arenas,
  debugMallocStats,
  stats,
  trim,
  verify,
  setNomemory,
  removeNomemory,
  close,
} = native

function isObject(value: unknown): value is object {
  return typeof value === 'object' && value !== null
}

/** The longest array that the engine can make. */
const longestArray = constants.MAX_LENGTH

/** Stands for options that are left out. It has no prototype, so that a script cannot put values under their names. */
const none = freeze({ __proto__: null }) as HeapOptions & Partial<Geometry>

interface Opened {
  readonly handle: Handle
  readonly kept: Kept
  readonly release: Release
  readonly pymalloc: boolean
}

function opened(options: HeapOptions): Opened {
  if (!isObject(options)) throw badArgument('ERR_INVALID_ARG_TYPE', 'options', 'an object', options)
  const { release = '3.14', allocator = 'default', geometry = none, memoryLimit, quarantine, trimAbove, onUnraisable } = options
  checkFunction('onUnraisable', onUnraisable)
  if (!isObject(geometry)) throw badArgument('ERR_INVALID_ARG_TYPE', 'geometry', 'an object', geometry)
  const { arenaSize, poolSize, alignment, smallRequestThreshold } = geometry
  const kept = new Kept(face, onUnraisable)
  const external = open(
    kept,
    longestArray,
    release,
    arenaSize,
    poolSize,
    alignment,
    smallRequestThreshold,
    memoryLimit,
    quarantine,
    trimAbove,
    allocator,
  )
  return {
    handle: newHandle(external, kept, { release, allocator }),
    kept,
    release,
    pymalloc: slice(allocator, 0, 6) !== 'malloc',
  }
}

export class Heap {
  readonly release: Release
  readonly geometry: Geometry
  readonly raw: Domain
  readonly mem: Domain
  readonly obj: Domain
  readonly gc: Collector
  /** Keeps a heap from being posted to another thread as if it were a plain object. */
  protected readonly native: object
  readonly #handle: Handle
  readonly #kept: Kept
  readonly #pymalloc: boolean
  readonly #types: Types
  readonly #memory: Memory
  #allocators?: Allocators
  readonly #ownArenas: ArenaAllocator
  #arenaAllocator: ArenaAllocator

  constructor(options: HeapOptions = none) {
    const { handle, kept, release, pymalloc } = opened(options)
    this.#handle = handle
    this.#kept = kept
    this.#pymalloc = pymalloc
    this.#types = kept.types = new Types(handle)
    this.#ownArenas = freeze({
      alloc: (size: number): Address | null => takeArena(size, on(handle)),
      free: (address: Address, size: number): void => giveArena(address, size, on(handle)),
    })
    this.#arenaAllocator = this.#ownArenas
    this.release = release
    this.geometry = freeze(geometry(on(handle)))
    this.#memory = new Memory(handle, this.geometry)
    this.raw = new Domain('raw', handle, this.#memory)
    this.mem = new Domain('mem', handle, this.#memory)
    this.obj = new Domain('obj', handle, this.#memory)
    this.gc = new Collector(handle, kept, this.#types)
    this.native = native.external
  }

  getAllocator(domain: DomainName): Allocator {
    return this.#everyAllocator().get(domain)
  }

  setAllocator(domain: DomainName, allocator: Allocator): void {
    this.#everyAllocator().set(domain, allocator)
  }

  /** Made when it is first needed, because most heaps never need it. */
  #everyAllocator(): Allocators {
    return (this.#allocators ??= this.#kept.allocators = new Allocators(this.#handle))
  }

  setupDebugHooks(): void {
    setupDebugHooks(on(this.#handle))
  }

  getArenaAllocator(): ArenaAllocator {
    // Any call throws if the heap is closed.
    geometry(on(this.#handle))
    return this.#arenaAllocator
  }

  setArenaAllocator(allocator: ArenaAllocator): void {
    if (allocator === this.#ownArenas) {
      askOwn(on(this.#handle))
      this.#kept.arenas = undefined
    } else {
      if (!isObject(allocator) || !isFunction(allocator.alloc) || !isFunction(allocator.free)) {
        throw badArgument('ERR_INVALID_ARG_TYPE', 'allocator', 'an object with the functions alloc and free', allocator)
      }
      askScript(on(this.#handle))
      this.#kept.arenas = allocator
    }
    this.#arenaAllocator = allocator
  }

  defineType(spec: TypeSpec): ObjectType {
    return this.#types.define(spec)
  }

  typeOf(object: Address): ObjectType {
    return this.#types.of(object)
  }

  incref(object: Address): void {
    incref(object, on(this.#handle))
  }

  decref(object: Address): void {
    decref(object, on(this.#handle))
  }

  refcount(object: Address): number {
    return refcount(object, on(this.#handle))
  }

  setImmortal(object: Address): boolean {
    return setImmortal(object, on(this.#handle))
  }

  run(ops: Uint32Array, addresses?: Float64Array): void {
    run(ops, addresses, on(this.#handle))
  }

  allocatedBlocks(): number {
    return allocatedBlocks(on(this.#handle))
  }

  arenas(): ArenaInfo[] {
    return arenas(on(this.#handle))
  }

  pools(arena: Address): Generator<PoolInfo, void, void> {
    return poolsOf(this.#handle, arena, this.geometry)
  }

  blocks(pool: Address): Generator<BlockInfo, void, void> {
    return blocksOf(this.#handle, pool, this.geometry)
  }

  stats(): HeapStats | null {
    const numbers = parse(stats(on(this.#handle))) as HeapStats
    // As for the text.
    return this.#pymalloc ? numbers : null
  }

  debugMallocStats(): string {
    const text = debugMallocStats(on(this.#handle))
    // CPython prints nothing without pymalloc.
    return this.#pymalloc ? text : ''
  }

  trim(): Trimmed {
    return trim(on(this.#handle))
  }

  verify(): void {
    verify(on(this.#handle))
  }

  setNomemory(start: Size, stop?: Size): void {
    setNomemory(start, stop, on(this.#handle))
  }

  removeNomemory(): void {
    removeNomemory(on(this.#handle))
  }

  close(): void {
    close(on(this.#handle))
    this.#memory.close()
  }

  [Symbol.dispose](): void {
    close(on(this.#handle))
    this.#memory.close()
  }

  toJSON(): HeapSummary {
    return summaryOf(this.#handle)
  }

  [inspected](): string {
    return shown('Heap', summaryOf(this.#handle))
  }
}
