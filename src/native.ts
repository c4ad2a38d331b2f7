/** The native binding: its functions, and which heap a call is about. */

import type { Address, AllocatorName, ArenaInfo, Geometry, Release, Trimmed } from '../index.js'
import type { Kept } from './kept.js'
import { load } from './loading.js'

declare const brand: unique symbol
/** A heap in the binding. The heap is taken down when nothing refers to this value any more. */
export interface External {
  readonly [brand]: never
}

/** The settings that a heap was made with. */
export interface Made {
  readonly release: Release
  readonly allocator: AllocatorName
}

/** A heap, as all its faces hold it. No script ever sees it. */
export class Handle {
  /** The heap's number. No other reachable heap has it. */
  readonly number: number
  readonly external: External
  /** The values that the heap keeps. The binding does not hold this object, because it refers to the heap. */
  readonly kept: Kept
  readonly made: Made
  readonly #isHandle = true

  /** Whether a value is a core: a script can call the constructors of the objects that it gets, with any argument. */
  static is(value: unknown): value is Handle {
    return typeof value === 'object' && value !== null && #isHandle in value && value.#isHandle
  }

  constructor(number: number, external: External, kept: Kept, made: Made) {
    this.number = number
    this.external = external
    this.kept = kept
    this.made = made
  }
}

/** The calls of one domain. */
export interface DomainCalls {
  readonly malloc: (size: unknown, heap: Handle) => Address | null
  readonly calloc: (count: unknown, size: unknown, heap: Handle) => Address | null
  readonly realloc: (address: unknown, size: unknown, heap: Handle) => Address | null
  readonly free: (address: unknown, heap: Handle) => void
  readonly usableSize: (address: unknown, heap: Handle) => number
  readonly view: (address: unknown, heap: Handle) => Uint8Array
  readonly read: (address: unknown, offset: unknown, length: unknown, heap: Handle) => Uint8Array
  readonly write: (address: unknown, bytes: unknown, offset: unknown, heap: Handle) => void
  readonly get: (address: unknown, kind: unknown, offset: unknown, heap: Handle) => number | bigint
  readonly set: (address: unknown, kind: unknown, value: unknown, offset: unknown, heap: Handle) => void
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
 * The functions that the binding calls, in this order. To V8, an exception of null means that the execution is being terminated. So if a
 * script has thrown null, these functions throw the heap's kept values instead.
 */
export type Face = [
  makeError: ErrorMaker,
  makeBytes: (length: number) => Uint8Array<ArrayBuffer>,
  /** Does nothing. That it can be called shows that the execution is not being terminated. */
  look: () => void,
  /** What went wrong, if anything. */
  traverse: (kept: Kept, type: number, object: Address) => unknown,
  hook: (kept: Kept, hook: number, type: number, object: Address) => void,
  weakref: (kept: Kept, callback: (ref: Address) => void, ref: Address) => void,
  collection: (kept: Kept, stopped: number, generation: number, collected: number, uncollectable: number) => void,
  text: (kept: Kept, text: string) => void,
  /** Reports an exception that no call can throw. */
  failure: (kept: Kept, error: unknown) => void,
  /** What was thrown where it could not be caught. */
  escaped: (kept: Kept, error: unknown) => void,
  /** Calls a script's allocator: its number, the number of the function, its arguments. Returns an address, or whether `free` returned a promise. */
  allocate: (kept: Kept, script: number, verb: number, first: number | null, second: number) => unknown,
  arenaAlloc: (kept: Kept, size: number) => unknown,
  /** Returns whether the script returned a promise. */
  arenaFree: (kept: Kept, address: Address, size: number) => boolean,
]

export interface Binding {
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
    trimAbove: unknown,
    allocator: unknown,
  ): External
  /** The number of the heap that the next call is about; of the newest one after `open`. None where the engine has no outside buffers. */
  readonly chosen?: Uint32Array
  /** For engines without the shared array: chooses the heap with this number, if one is given. Returns the number of the chosen heap. */
  choose(number?: number): number
  /** What cannot be posted to another thread, nor can an object that has it. */
  readonly external: object
  readonly raw: DomainCalls
  readonly mem: DomainCalls
  readonly obj: DomainCalls
  readonly run: (ops: unknown, addresses: unknown, heap: Handle) => void
  readonly geometry: (heap: Handle) => Geometry
  readonly allocatedBlocks: (heap: Handle) => number
  readonly arenas: (heap: Handle) => ArenaInfo[]
  readonly debugMallocStats: (heap: Handle) => string
  /** `HeapStats` as JSON. */
  readonly stats: (heap: Handle) => string
  /** State and counts, as JSON; never throws. */
  readonly summary: (heap: Handle) => string
  readonly checkArena: (arena: unknown, heap: Handle) => void
  /** Of the pool that an address lies in: the index of its size class or -1, its used and its free blocks. */
  readonly pool: (address: unknown, heap: Handle) => number[] | null
  readonly checkPool: (pool: unknown, heap: Handle) => void
  /** A byte for each block: 1 where it is in use. */
  readonly poolBlocks: (pool: unknown, heap: Handle) => Uint8Array
  /** What `Memory` looks at first: a number of four bytes. */
  readonly gate: (heap: Handle) => Uint8Array
  /** The address and bytes of the region, which has the slots for arenas; zeros if there is none. */
  readonly region: (heap: Handle) => number[]
  /** For a slot that has an arena, four arrays: the arena's memory, the bits of live blocks, the bytes of objects, the pools' headers. */
  readonly window: (place: unknown, heap: Handle) => Uint8Array[] | null
  readonly trim: (heap: Handle) => Trimmed
  readonly verify: (heap: Handle) => void
  readonly setupDebugHooks: (heap: Handle) => void
  readonly setNomemory: (start: unknown, stop: unknown, heap: Handle) => void
  readonly removeNomemory: (heap: Handle) => void
  /** The number of the allocator that is in: of one of the heap's own from 0 up, of a script's from -1 down. */
  readonly presentAllocator: (domain: unknown, heap: Handle) => number
  /** Whether a number is an allocator that this domain may have. */
  readonly setNative: (domain: unknown, number: unknown, heap: Handle) => boolean
  /** The number of another allocator of a script's. */
  readonly addScript: (heap: Handle) => number
  readonly setScript: (domain: unknown, script: unknown, heap: Handle) => void
  readonly nativeMalloc: (number: unknown, size: unknown, heap: Handle) => Address | null
  readonly nativeCalloc: (number: unknown, count: unknown, size: unknown, heap: Handle) => Address | null
  readonly nativeRealloc: (number: unknown, address: unknown, size: unknown, heap: Handle) => Address | null
  readonly nativeFree: (number: unknown, address: unknown, heap: Handle) => void
  readonly close: (heap: Handle) => void
  readonly takeArena: (size: unknown, heap: Handle) => Address | null
  readonly giveArena: (address: unknown, size: unknown, heap: Handle) => void
  readonly askScript: (heap: Handle) => void
  readonly askOwn: (heap: Handle) => void
  /** Number, basic size and item size of a new type. By its number it is given from then on. */
  readonly defineType: (
    name: unknown,
    names: unknown,
    kinds: unknown,
    items: unknown,
    flags: unknown,
    freelist: unknown,
    heap: Handle,
  ) => [number: number, basicsize: number, itemsize: number]
  readonly describeType: (object: unknown, heap: Handle) => [name: string, basicsize: number, itemsize: number]
  readonly typeOf: (object: unknown, heap: Handle) => number
  readonly alloc: (number: unknown, nitems: unknown, heap: Handle) => Address
  readonly new: (number: unknown, heap: Handle) => Address
  readonly newVar: (number: unknown, nitems: unknown, heap: Handle) => Address
  readonly init: (number: unknown, memory: unknown, heap: Handle) => Address
  readonly initVar: (number: unknown, memory: unknown, nitems: unknown, heap: Handle) => Address
  readonly getField: (number: unknown, object: unknown, field: unknown, heap: Handle) => Address | number | bigint | null
  readonly getItem: (number: unknown, object: unknown, field: unknown, heap: Handle) => Address | number | bigint | null
  readonly setField: (number: unknown, object: unknown, field: unknown, value: unknown, heap: Handle) => void
  readonly setItem: (number: unknown, object: unknown, field: unknown, value: unknown, heap: Handle) => void
  readonly nitems: (number: unknown, object: unknown, heap: Handle) => number
  readonly incref: (object: unknown, heap: Handle) => void
  readonly decref: (object: unknown, heap: Handle) => void
  readonly refcount: (object: unknown, heap: Handle) => number
  readonly setImmortal: (object: unknown, heap: Handle) => boolean
  /** From inside a `traverse`. */
  readonly visit: (referent: unknown, heap: Handle) => void
  readonly track: (object: unknown, heap: Handle) => void
  readonly untrack: (object: unknown, heap: Handle) => void
  readonly isTracked: (object: unknown, heap: Handle) => boolean
  readonly isFinalized: (object: unknown, heap: Handle) => boolean
  /** Whether the object was still tracked. */
  readonly gcDel: (object: unknown, heap: Handle) => boolean
  readonly gcResize: (object: unknown, nitems: unknown, heap: Handle) => Address
  readonly collect: (generation: unknown, heap: Handle) => number
  readonly enable: (heap: Handle) => void
  readonly disable: (heap: Handle) => void
  readonly isEnabled: (heap: Handle) => boolean
  readonly getThreshold: (heap: Handle) => [number, number, number]
  readonly setThreshold: (threshold0: unknown, threshold1: unknown, threshold2: unknown, heap: Handle) => void
  readonly getCount: (heap: Handle) => [number, number, number]
  /** Collections, collected and uncollectable of each generation, in a row. */
  readonly getStats: (heap: Handle) => number[]
  /** Addresses as the bytes of doubles; so do the next two. */
  readonly getObjects: (generation: unknown, heap: Handle) => Uint8Array<ArrayBuffer>
  readonly getReferrers: (objects: unknown, heap: Handle) => Uint8Array<ArrayBuffer>
  readonly getReferents: (objects: unknown, heap: Handle) => Uint8Array<ArrayBuffer>
  readonly freeze: (heap: Handle) => void
  readonly unfreeze: (heap: Handle) => void
  readonly getFreezeCount: (heap: Handle) => number
  readonly setDebug: (flags: unknown, heap: Handle) => void
  readonly getDebug: (heap: Handle) => number
  readonly newWeakref: (object: unknown, callback: unknown, heap: Handle) => Address
  readonly deref: (reference: unknown, heap: Handle) => Address | null
  /** The cheapest native call there is; for the benchmark. */
  identity(value: number): number
  /** Bytes that V8 was told of in this thread; for the tests. */
  externalMemory(): number
  /** Makes the C library give unused memory back to the system; for the tests. */
  trimMemory(): void
  /** The release that a CPython's version belongs to, if there is one. */
  releaseOf(version: string): Release | null
  /** Opens a replay of the traces named in `options` (JSON). Returns the replay's number. */
  openReplay(options: string): number
  /** Bytes read of all traces so far, and the bytes of all traces together. */
  progressReplay(replay: number): readonly [number, number]
  /** Replays at most `count` events; 0 when there is nothing left. */
  stepReplay(replay: number, count: number): number
  /** What has been found so far, as JSON. */
  reportReplay(replay: number): string
  closeReplay(replay: number): void
  /** Opens a listing of the events named in `options` (JSON). Returns the listing's number. */
  openEvents(options: string): number
  /** Looks at no more than `count` events, and gives those that are wanted, as a line of JSON each; null when there are no more. */
  readEvents(listing: number, count: number): string | null
  closeEvents(listing: number): void
  /** Opens a search for a moment in the traces named in `segments` (JSON). Returns its number. */
  openOutline(segments: string, moment: string): number
  /** Reads at most `count` events; 0 when there is nothing left. */
  stepOutline(outline: number, count: number): number
  /** Bytes read of all traces so far, and the bytes of all traces together. */
  progressOutline(outline: number): readonly [number, number]
  /** The moment as JSON. */
  findMoment(outline: number): string
  closeOutline(outline: number): void
  /** Opens trials of other settings on the recording named in `options` (JSON). Returns their number. */
  openTrials(options: string): number
  /** Reads at most `count` events, or makes at most `count` calls; 0 when there is nothing left. */
  stepTrials(trials: number, count: number): number
  /** What has been read or made, and all there is of it. */
  progressTrials(trials: number): readonly [number, number]
  /** What came of them, as JSON. The trials are over with it. */
  answerTrials(trials: number): string
  closeTrials(trials: number): void
  /** Opens an inquiry into the traces named in `options` (JSON). Returns its number. */
  openInquiry(options: string): number
  /** Looks at no more than `count` events; 0 when there is nothing left. */
  stepInquiry(inquiry: number, count: number): number
  /** Bytes read of all traces so far, and the bytes of all traces together. */
  progressInquiry(inquiry: number): readonly [number, number]
  /** The answer as JSON. The inquiry is over with it. */
  answerInquiry(inquiry: number): string
  closeInquiry(inquiry: number): void
  /** Judges the collector by the answers, as JSON, of a real CPython; what came of it is JSON too. */
  checkGolden(golden: string): string
}

export const native = load().module.bind()

/** The number of the heap that is chosen now. Reading it here is quicker than in the binding's memory. */
class Chosen {
  number = 0
}
const chosen = new Chosen()
const { chosen: place, choose } = native

/** The handle of the heap that has just been opened. */
export function newHandle(external: External, kept: Kept, made: Made): Handle {
  chosen.number = choose()
  return new Handle(chosen.number, external, kept, made)
}

function change(heap: Handle): void {
  if (place) place[0] = heap.number
  else {
    // If the execution is terminated during the call, no heap is chosen.
    chosen.number = 0
    choose(heap.number)
  }
  chosen.number = heap.number
}

/** Chooses the heap of the binding's next call. Used as the last argument of each call, so that no script runs in between. */
export function on(heap: Handle): Handle {
  return onNumber(heap, heap.number)
}

/** As `on`, for a face that is called often and has the heap's number at hand. One function with a default for it takes 2 ns more. */
export function onNumber(heap: Handle, number: number): Handle {
  if (chosen.number !== number) change(heap)
  return heap
}
