/** A heap's face. */

import { constants } from 'node:buffer'

import type {
  Address,
  Allocator,
  ArenaAllocator,
  ArenaInfo,
  DomainName,
  Geometry,
  HeapOptions,
  Release,
  Size,
  TypeSpec,
} from '../index.js'
import { Allocators } from './allocators.js'
import { Collector } from './collector.js'
import { Domain } from './domain.js'
import { badArgument, isFunction, makeError } from './errors.js'
import { checkFunction, isAwaited, settled } from './functions.js'
import { native, type Handle } from './native.js'
import { serve } from './scripts.js'
import { Types, type ObjectType } from './type.js'

function isObject(value: unknown): value is object {
  return typeof value === 'object' && value !== null
}

/** The engine's own, whatever a script makes of the global. */
const Bytes = Uint8Array

function makeBytes(length: number): Uint8Array<ArrayBuffer> {
  return new Bytes(length)
}

interface Opened {
  readonly handle: Handle
  readonly release: Release
  readonly pymalloc: boolean
  readonly types: Types
}

function open(options: HeapOptions): Opened {
  if (!isObject(options)) throw badArgument('ERR_INVALID_ARG_TYPE', 'options', 'an object', options)
  const { release = '3.14', allocator = 'default', geometry = {}, memoryLimit, quarantine, onUnraisable } = options
  checkFunction('onUnraisable', onUnraisable)
  if (!isObject(geometry)) throw badArgument('ERR_INVALID_ARG_TYPE', 'geometry', 'an object', geometry)
  const { arenaSize, poolSize, alignment, smallRequestThreshold } = geometry
  const handle = native.open(
    makeError,
    constants.MAX_LENGTH,
    release,
    arenaSize,
    poolSize,
    alignment,
    smallRequestThreshold,
    memoryLimit,
    quarantine,
    allocator,
  )
  handle.makeBytes = makeBytes
  const pymalloc = !allocator.startsWith('malloc')
  const types = new Types(handle)
  serve(handle, types, onUnraisable)
  return { handle, release, pymalloc, types }
}

export class Heap {
  readonly release: Release
  readonly geometry: Geometry
  readonly raw: Domain
  readonly mem: Domain
  readonly obj: Domain
  readonly gc: Collector
  /** Keeps a heap from being posted to another thread as if it were a plain object. */
  private readonly native: object
  readonly #handle: Handle
  readonly #pymalloc: boolean
  readonly #types: Types
  readonly #allocators: Allocators
  readonly #ownArenas: ArenaAllocator
  #arenaAllocator: ArenaAllocator

  constructor(options: HeapOptions = {}) {
    const { handle, release, pymalloc, types } = open(options)
    this.#handle = handle
    this.#pymalloc = pymalloc
    this.#types = types
    this.#allocators = new Allocators(handle)
    this.#ownArenas = Object.freeze({
      alloc: (size: number): Address | null => handle.takeArena(size),
      free: (address: Address, size: number): void => handle.giveArena(address, size),
    })
    this.#arenaAllocator = this.#ownArenas
    this.release = release
    this.geometry = Object.freeze(handle.geometry())
    this.raw = new Domain('raw', handle)
    this.mem = new Domain('mem', handle)
    this.obj = new Domain('obj', handle)
    this.gc = new Collector(handle, types)
    this.native = handle.external
  }

  getAllocator(domain: DomainName): Allocator {
    return this.#allocators.get(domain)
  }

  setAllocator(domain: DomainName, allocator: Allocator): void {
    this.#allocators.set(domain, allocator)
  }

  setupDebugHooks(): void {
    this.#handle.setupDebugHooks()
  }

  getArenaAllocator(): ArenaAllocator {
    // Any call says so when the heap is closed.
    this.#handle.geometry()
    return this.#arenaAllocator
  }

  setArenaAllocator(allocator: ArenaAllocator): void {
    const handle = this.#handle
    if (allocator === this.#ownArenas) {
      handle.askOwn()
      handle.arenaAlloc = handle.arenaFree = undefined
    } else {
      if (!isObject(allocator) || !isFunction(allocator.alloc) || !isFunction(allocator.free)) {
        throw badArgument('ERR_INVALID_ARG_TYPE', 'allocator', 'an object with the functions alloc and free', allocator)
      }
      handle.askScript()
      handle.arenaAlloc = (size) => settled(allocator.alloc(size))
      handle.arenaFree = (address, size) => isAwaited(allocator.free(address, size))
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
    this.#handle.incref(object)
  }

  decref(object: Address): void {
    this.#handle.decref(object)
  }

  refcount(object: Address): number {
    return this.#handle.refcount(object)
  }

  setImmortal(object: Address): boolean {
    return this.#handle.setImmortal(object)
  }

  run(ops: Uint32Array, addresses?: Float64Array): void {
    this.#handle.run(ops, addresses)
  }

  allocatedBlocks(): number {
    return this.#handle.allocatedBlocks()
  }

  arenas(): ArenaInfo[] {
    return this.#handle.arenas()
  }

  debugMallocStats(): string {
    const text = this.#handle.debugMallocStats()
    // A CPython without pymalloc has nothing to say.
    return this.#pymalloc ? text : ''
  }

  verify(): void {
    this.#handle.verify()
  }

  setNomemory(start: Size, stop?: Size): void {
    this.#handle.setNomemory(start, stop)
  }

  removeNomemory(): void {
    this.#handle.removeNomemory()
  }

  close(): void {
    this.#handle.close()
  }

  [Symbol.dispose](): void {
    this.#handle.close()
  }
}
