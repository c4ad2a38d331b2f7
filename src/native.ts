/** The native binding: what it has, and where it is found. */

import type { Address, ArenaInfo, Geometry } from '../index.js'
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
  readonly close: Call<void>
  readonly takeArena: Call<Address | null>
  readonly giveArena: Call<void>
  readonly askScript: Call<void>
  readonly askOwn: Call<void>
  /** What the binding asks for arenas after `askScript`. */
  arenaAlloc?: (size: number) => unknown
  arenaFree?: (address: Address, size: number) => void
}

/** How the binding makes its errors. */
export type ErrorMaker = (code: string, message: string, fields: Record<string, unknown>) => Error

interface Binding {
  open(
    makeError: ErrorMaker,
    release: unknown,
    arenaSize: unknown,
    poolSize: unknown,
    alignment: unknown,
    smallRequestThreshold: unknown,
    memoryLimit: unknown,
    malloc: true | undefined,
  ): Handle
  /** The cheapest native call there is; for the benchmark. */
  identity(value: number): number
  /** Bytes that V8 was told of in this thread; for the tests. */
  externalMemory(): number
  /** The number of a replay of the traces that the options, as JSON, name. */
  openReplay(makeError: ErrorMaker, options: string): number
  /** Replays at most `count` events; 0 when there is nothing left. */
  stepReplay(makeError: ErrorMaker, replay: number, count: number): number
  /** What has been found so far, as JSON. */
  reportReplay(makeError: ErrorMaker, replay: number): string
  closeReplay(makeError: ErrorMaker, replay: number): void
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
  const reasons = causes.map((cause) => (cause instanceof Error ? cause.message.split('\n')[0] : String(cause)))
  throw new Error(`obmalloc: expected its native binding for ${platform}, but found none: ${reasons.join('; ')}`, {
    cause: causes[0],
  })
}

export const native = load()
