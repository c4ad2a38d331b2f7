/** The native binding: what it has, and where it is found. */

import type { Address, ArenaInfo, Geometry, Release } from '../index.js'
import type { Kept } from './kept.js'
import { platform } from './platform.js'

declare const brand: unique symbol
/** A heap in the binding. It is given back when nothing refers to this any more. */
export interface External {
  readonly [brand]: never
}

/** A heap as all of its faces hold it. No script ever sees it. */
export class Handle {
  /** No other heap has or will have it. */
  readonly number: number
  readonly external: External
  /** The binding does not keep it, because it refers to the heap. */
  readonly kept: Kept

  constructor(number: number, external: External, kept: Kept) {
    this.number = number
    this.external = external
    this.kept = kept
  }
}

/** A call as the binding takes it: everything is checked there. The last argument is the heap, which has to have been chosen. */
type Call<Result = unknown> = (...values: [...unknown[], heap: Handle]) => Result

/** The calls of one domain. */
export interface DomainCalls {
  readonly malloc: Call<Address | null>
  readonly calloc: Call<Address | null>
  readonly realloc: Call<Address | null>
  readonly free: Call<void>
  readonly usableSize: Call<number>
  readonly view: Call<Uint8Array>
  readonly read: Call<Uint8Array>
  readonly write: Call<void>
}

/** How the binding makes its errors. */
export type ErrorMaker = (
  code: string,
  message: string,
  name?: string,
  received?: unknown,
  cause?: unknown,
  address?: Address,
  domain?: string,
  used?: string,
  allocated?: string,
  base?: Address,
  object?: Address,
  referent?: Address,
  offset?: number,
  report?: string,
  index?: number,
) => Error

/**
 * What the binding calls, in this order. An exception of null is V8's word for the end of an execution, so a function in which a script has
 * thrown null throws what is kept of the heap.
 */
export type Face = [
  makeError: ErrorMaker,
  makeBytes: (length: number) => Uint8Array<ArrayBuffer>,
  /** Does nothing: that it can be called says that the execution is not being terminated. */
  look: () => void,
  /** What went wrong, if anything. */
  traverse: (kept: Kept, type: number, object: Address) => unknown,
  hook: (kept: Kept, hook: number, type: number, object: Address) => void,
  weakref: (kept: Kept, callback: (ref: Address) => void, ref: Address) => void,
  collection: (kept: Kept, stopped: number, generation: number, collected: number, uncollectable: number) => void,
  text: (kept: Kept, text: string) => void,
  /** What no call can throw. */
  failure: (kept: Kept, error: unknown) => void,
  /** What was thrown where it could not be caught. */
  escaped: (kept: Kept, error: unknown) => void,
  /** A script's allocator: its number, the number of the function, its arguments. Gives an address, or whether `free` gave something to wait for. */
  allocate: (kept: Kept, script: number, verb: number, first: number | null, second: number) => unknown,
  arenaAlloc: (kept: Kept, size: number) => unknown,
  /** Whether it gave something to wait for. */
  arenaFree: (kept: Kept, address: Address, size: number) => boolean,
]

interface Binding {
  serve(...face: Face): void
  open(
    kept: Kept,
    longestArray: number,
    release: unknown,
    arenaSize: unknown,
    poolSize: unknown,
    alignment: unknown,
    smallRequestThreshold: unknown,
    memoryLimit: unknown,
    quarantine: unknown,
    allocator: unknown,
  ): External
  choose(heap: External): void
  /** What cannot be posted to another thread, nor can an object that has it. */
  readonly external: object
  readonly raw: DomainCalls
  readonly mem: DomainCalls
  readonly obj: DomainCalls
  readonly run: Call<void>
  readonly geometry: Call<Geometry>
  readonly allocatedBlocks: Call<number>
  readonly arenas: Call<ArenaInfo[]>
  readonly debugMallocStats: Call<string>
  readonly verify: Call<void>
  readonly setupDebugHooks: Call<void>
  readonly setNomemory: Call<void>
  readonly removeNomemory: Call<void>
  /** The number of the allocator that is in: of one of the heap's own from 0 up, of a script's from -1 down. */
  readonly presentAllocator: Call<number>
  /** Whether it is one for that domain. */
  readonly setNative: Call<boolean>
  readonly setScript: Call<void>
  readonly nativeMalloc: Call<Address | null>
  readonly nativeCalloc: Call<Address | null>
  readonly nativeRealloc: Call<Address | null>
  readonly nativeFree: Call<void>
  readonly close: Call<void>
  readonly takeArena: Call<Address | null>
  readonly giveArena: Call<void>
  readonly askScript: Call<void>
  readonly askOwn: Call<void>
  /** Number, basic size and item size. */
  readonly defineType: Call<[number: number, basicsize: number, itemsize: number]>
  readonly describeType: Call<[name: string, basicsize: number, itemsize: number]>
  readonly typeOf: Call<number>
  readonly alloc: Call<Address>
  readonly new: Call<Address>
  readonly newVar: Call<Address>
  readonly init: Call<Address>
  readonly initVar: Call<Address>
  readonly getField: Call<Address | number | bigint | null>
  readonly getItem: Call<Address | number | bigint | null>
  readonly setField: Call<void>
  readonly setItem: Call<void>
  readonly nitems: Call<number>
  readonly incref: Call<void>
  readonly decref: Call<void>
  readonly refcount: Call<number>
  readonly setImmortal: Call<boolean>
  /** From inside a `traverse`. */
  readonly visit: Call<void>
  readonly track: Call<void>
  readonly untrack: Call<void>
  readonly isTracked: Call<boolean>
  readonly isFinalized: Call<boolean>
  /** Whether the object was still tracked. */
  readonly gcDel: Call<boolean>
  readonly gcResize: Call<Address>
  readonly collect: Call<number>
  readonly enable: Call<void>
  readonly disable: Call<void>
  readonly isEnabled: Call<boolean>
  readonly getThreshold: Call<[number, number, number]>
  readonly setThreshold: Call<void>
  readonly getCount: Call<[number, number, number]>
  /** Collections, collected and uncollectable of each generation, in a row. */
  readonly getStats: Call<number[]>
  /** Addresses as the bytes of doubles; so do the next two. */
  readonly getObjects: Call<Uint8Array<ArrayBuffer>>
  readonly getReferrers: Call<Uint8Array<ArrayBuffer>>
  readonly getReferents: Call<Uint8Array<ArrayBuffer>>
  readonly freeze: Call<void>
  readonly unfreeze: Call<void>
  readonly getFreezeCount: Call<number>
  readonly setDebug: Call<void>
  readonly getDebug: Call<number>
  readonly newWeakref: Call<Address>
  readonly deref: Call<Address | null>
  /** The cheapest native call there is; for the benchmark. */
  identity(value: number): number
  /** Bytes that V8 was told of in this thread; for the tests. */
  externalMemory(): number
  /** Has the C library give back what nobody uses; for the tests. */
  trimMemory(): void
  /** The release that a CPython's version belongs to, if there is one. */
  releaseOf(version: string): Release | null
  /** The number of a replay of the traces that the options, as JSON, name. */
  openReplay(options: string): number
  /** Replays at most `count` events; 0 when there is nothing left. */
  stepReplay(replay: number, count: number): number
  /** What has been found so far, as JSON. */
  reportReplay(replay: number): string
  closeReplay(replay: number): void
  /** Judges the collector by the answers, as JSON, of a real CPython; what came of it is JSON too. */
  checkGolden(golden: string): string
}

function load(): { bind(): Binding } {
  // In a clone the binding lies in the platform package's folder; installed, that is a package of its own.
  const places = [`../npm/${platform}/obmalloc.${platform}.node`, `obmalloc-${platform}`]
  const causes: unknown[] = []
  for (const place of places) {
    try {
      return require(place) as { bind(): Binding }
    } catch (cause) {
      causes.push(cause)
    }
  }
  const reasons = causes.map((cause) => String(cause instanceof Error ? cause.message : cause).split('\n')[0])
  throw new Error(`obmalloc: expected its native binding for ${platform}, but found none: ${reasons.join('; ')}`, {
    cause: causes[0],
  })
}

export const native = load().bind()

/** Which heap has been chosen, by its number. */
class Chosen {
  number = 0
}
const chosen = new Chosen()
const { choose } = native
let heaps = 0

export function newHandle(external: External, kept: Kept): Handle {
  return new Handle(++heaps, external, kept)
}

function change(heap: Handle): Handle {
  // Should the execution be terminated in between, none is.
  chosen.number = 0
  choose(heap.external)
  chosen.number = heap.number
  return heap
}

/** Lets the binding's calls be about a heap, as the last argument of each, after which no script can run before the call. */
export function on(heap: Handle): Handle {
  return chosen.number === heap.number ? heap : change(heap)
}
