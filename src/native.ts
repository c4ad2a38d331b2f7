/** The native binding: what it has, and where it is found. */

import type { Address, ArenaInfo, CollectorCallback, Geometry, Release } from '../index.js'
import { platform } from './platform.js'

/** A call as the binding takes it: everything is checked there. */
type Call<Result = unknown> = (...values: unknown[]) => Result

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

/** A heap in the binding. It is given back when nothing refers to this object or any function of it. */
export interface Handle {
  readonly raw: DomainCalls
  readonly mem: DomainCalls
  readonly obj: DomainCalls
  /** What cannot be posted to another thread, nor can an object that has it. */
  readonly external: object
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
  /** From inside `onTraverse`. */
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
  /** What collections appended to `gc.garbage`. */
  readonly garbage: Address[]
  /** `gc.callbacks` */
  readonly callbacks: CollectorCallback[]
  /** The callbacks of weak references, each as long as it may be called. */
  readonly weakrefCallbacks: Array<(ref: Address) => void>
  /** What was thrown where it could not be caught, until `onEscaped` is called. */
  readonly escaped: unknown[]
  /** What a call throws whose `onTraverse` failed, at the number of callbacks that the call is inside of. */
  readonly failures: unknown[]
  /** What the binding calls for the types' functions and callbacks; only `onTraverse` has an answer. */
  onTraverse?: (type: number, object: Address, around: number) => boolean
  onHook?: (hook: number, type: number, object: Address) => void
  onWeakref?: (index: number, ref: Address) => void
  onCollection?: (stopped: number, generation: number, collected: number, uncollectable: number) => void
  /** Does nothing: that it can be called says that the thread's JavaScript has not been ended. */
  onLook?: () => void
  onText?: (text: string) => void
  /** A collection that nobody asked for was given up. */
  onFailure?: (error: unknown) => void
  onEscaped?: () => void
  /** What the binding calls for a script's allocator: the number of the function, its arguments, and an address or what `free` gave. */
  onAllocate?: (script: number, verb: number, first: number, second: number) => unknown
  /** What the binding calls for the bytes of a long array. */
  makeBytes?: (length: number) => Uint8Array<ArrayBuffer>
  /** What the binding asks for arenas after `askScript`. */
  arenaAlloc?: (size: number) => unknown
  /** Whether it gave something to wait for. */
  arenaFree?: (address: Address, size: number) => boolean
}

/** How the binding makes its errors. */
export type ErrorMaker = (code: string, message: string, fields: Record<string, unknown>) => Error

interface Binding {
  open(
    makeError: ErrorMaker,
    longestArray: number,
    release: unknown,
    arenaSize: unknown,
    poolSize: unknown,
    alignment: unknown,
    smallRequestThreshold: unknown,
    memoryLimit: unknown,
    quarantine: unknown,
    allocator: unknown,
  ): Handle
  /** The cheapest native call there is; for the benchmark. */
  identity(value: number): number
  /** Bytes that V8 was told of in this thread; for the tests. */
  externalMemory(): number
  /** Has the C library give back what nobody uses; for the tests. */
  trimMemory(): void
  /** The release that a CPython's version belongs to, if there is one. */
  releaseOf(version: string): Release | null
  /** The number of a replay of the traces that the options, as JSON, name. */
  openReplay(makeError: ErrorMaker, options: string): number
  /** Replays at most `count` events; 0 when there is nothing left. */
  stepReplay(makeError: ErrorMaker, replay: number, count: number): number
  /** What has been found so far, as JSON. */
  reportReplay(makeError: ErrorMaker, replay: number): string
  closeReplay(makeError: ErrorMaker, replay: number): void
  /** Judges the collector by the answers, as JSON, of a real CPython; what came of it is JSON too. */
  checkGolden(makeError: ErrorMaker, golden: string): string
}

function load(): Binding {
  // In a clone the binding lies in the platform package's folder; installed, that is a package of its own.
  const places = [`../npm/${platform}/obmalloc.${platform}.node`, `obmalloc-${platform}`]
  const causes: unknown[] = []
  for (const place of places) {
    try {
      return require(place) as Binding
    } catch (cause) {
      causes.push(cause)
    }
  }
  const reasons = causes.map((cause) => String(cause instanceof Error ? cause.message : cause).split('\n')[0])
  throw new Error(`obmalloc: expected its native binding for ${platform}, but found none: ${reasons.join('; ')}`, {
    cause: causes[0],
  })
}

export const native = load()
