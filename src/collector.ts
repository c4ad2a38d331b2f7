/** The collector's face. */

import process from 'node:process'

import type { Address, Collector as Contract, CollectorCallback, GenerationStats, Size, TraverseMismatch } from '../index.js'
import { badArgument } from './errors.js'
import { checkFunction } from './functions.js'
import type { Kept } from './kept.js'
import { Handle, native, on } from './native.js'
import { Doubles, NewMap, append, bufferOf, lengthOf, mapGet, mapSet } from './primordials.js'
import type { Types } from './type.js'

const {
  track,
  untrack,
  isTracked,
  isFinalized,
  gcDel,
  gcResize,
  collect,
  enable,
  disable,
  isEnabled,
  getThreshold,
  setThreshold,
  getCount,
  getStats,
  getObjects,
  getReferrers,
  getReferents,
  freeze,
  unfreeze,
  getFreezeCount,
  setDebug,
  getDebug,
  newWeakref,
  deref,
} = native

function addresses(bytes: Uint8Array<ArrayBuffer>): Address[] {
  const all: Address[] = []
  const numbers = new Doubles(bufferOf(bytes))
  const count = lengthOf(numbers)
  // The time limit of a script can end this loop, but not a function of the engine.
  for (let index = 0; index < count; index++) append(all, numbers[index] as Address)
  return all
}

export class Collector implements Contract {
  readonly DEBUG_STATS = 1
  readonly DEBUG_COLLECTABLE = 2
  readonly DEBUG_UNCOLLECTABLE = 4
  readonly DEBUG_SAVEALL = 32
  readonly DEBUG_LEAK = 38
  readonly garbage: Address[]
  readonly callbacks: CollectorCallback[]
  /** Keeps a collector from being posted to another thread as if it were a plain object. */
  protected readonly native: object
  readonly #handle: Handle
  readonly #types: Types

  constructor(handle: Handle, kept: Kept, types: Types) {
    if (!Handle.is(handle)) throw badArgument('ERR_INVALID_ARG_TYPE', 'Collector', 'the collector of a heap instead', handle)
    this.garbage = kept[0]
    this.callbacks = kept[1]
    this.native = native.external
    this.#handle = handle
    this.#types = types
  }

  track(object: Address): void {
    track(object, on(this.#handle))
  }

  untrack(object: Address): void {
    untrack(object, on(this.#handle))
  }

  isTracked(object: Address): boolean {
    return isTracked(object, on(this.#handle))
  }

  isFinalized(object: Address): boolean {
    return isFinalized(object, on(this.#handle))
  }

  del(object: Address): void {
    const name = this.#types.of(object).name
    if (!gcDel(object, on(this.#handle))) return
    process.emitWarning(`gc: Object of type ${name} is not untracked before destruction`, 'ResourceWarning')
  }

  resize(object: Address, nitems: Size): Address {
    return gcResize(object, nitems, on(this.#handle))
  }

  collect(generation?: 0 | 1 | 2): number {
    return collect(generation, on(this.#handle))
  }

  enable(): void {
    enable(on(this.#handle))
  }

  disable(): void {
    disable(on(this.#handle))
  }

  isEnabled(): boolean {
    return isEnabled(on(this.#handle))
  }

  getThreshold(): [number, number, number] {
    return getThreshold(on(this.#handle))
  }

  setThreshold(threshold0: number, threshold1?: number, threshold2?: number): void {
    setThreshold(threshold0, threshold1, threshold2, on(this.#handle))
  }

  getCount(): [number, number, number] {
    return getCount(on(this.#handle))
  }

  getStats(): GenerationStats[] {
    const numbers = getStats(on(this.#handle))
    const stats = (first: number): GenerationStats => ({
      collections: numbers[first]!,
      collected: numbers[first + 1]!,
      uncollectable: numbers[first + 2]!,
    })
    return [stats(0), stats(3), stats(6)]
  }

  getObjects(generation?: 0 | 1 | 2): Address[] {
    return addresses(getObjects(generation, on(this.#handle)))
  }

  getReferrers(...objects: Address[]): Address[] {
    return addresses(getReferrers(objects, on(this.#handle)))
  }

  getReferents(...objects: Address[]): Address[] {
    return addresses(getReferents(objects, on(this.#handle)))
  }

  freeze(): void {
    freeze(on(this.#handle))
  }

  unfreeze(): void {
    unfreeze(on(this.#handle))
  }

  getFreezeCount(): number {
    return getFreezeCount(on(this.#handle))
  }

  setDebug(flags: number): void {
    setDebug(flags, on(this.#handle))
  }

  getDebug(): number {
    return getDebug(on(this.#handle))
  }

  newWeakref(object: Address, callback?: (ref: Address) => void): Address {
    checkFunction('callback', callback)
    return newWeakref(object, callback, on(this.#handle))
  }

  deref(ref: Address): Address | null {
    return deref(ref, on(this.#handle))
  }

  check(): TraverseMismatch[] {
    const found: TraverseMismatch[] = []
    const objects = this.getObjects()
    for (let index = 0; index < objects.length; index++) {
      const object = objects[index]!
      const held = this.#types.held(object)
      if (held) compare(object, held, addresses(getReferents([object], on(this.#handle))), found)
    }
    return found
  }
}

/** How many times each address is among these. */
function count(all: readonly Address[]): Map<Address, number> {
  const times = new NewMap<Address, number>()
  for (let index = 0; index < all.length; index++) mapSet(times, all[index]!, (mapGet(times, all[index]!) ?? 0) + 1)
  return times
}

function compare(object: Address, held: Address[], visited: Address[], found: TraverseMismatch[]): void {
  const holds = count(held)
  const visits = count(visited)
  const told = new NewMap<Address, number>()
  for (let index = 0; index < held.length; index++) {
    const referent = held[index]!
    if (mapGet(told, referent) !== undefined) continue
    mapSet(told, referent, 1)
    const mismatch = { object, referent, held: mapGet(holds, referent)!, visited: mapGet(visits, referent) ?? 0 }
    if (mismatch.visited < mismatch.held) append(found, mismatch)
  }
}
