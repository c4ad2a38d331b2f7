/** The collector's face. */

import process from 'node:process'

import type { Address, Collector as Contract, CollectorCallback, GenerationStats, Size, TraverseMismatch } from '../index.js'
import { checkFunction } from './functions.js'
import type { Kept } from './kept.js'
import { native, type Handle } from './native.js'
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
  // A loop of the script's own can be ended half-way, as a function of the engine's cannot.
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
  private readonly native: object
  readonly #handle: Handle
  readonly #types: Types

  constructor(handle: Handle, kept: Kept, types: Types) {
    this.garbage = kept[0]
    this.callbacks = kept[1]
    this.native = native.external
    this.#handle = handle
    this.#types = types
  }

  track(object: Address): void {
    track(this.#handle, object)
  }

  untrack(object: Address): void {
    untrack(this.#handle, object)
  }

  isTracked(object: Address): boolean {
    return isTracked(this.#handle, object)
  }

  isFinalized(object: Address): boolean {
    return isFinalized(this.#handle, object)
  }

  del(object: Address): void {
    const name = this.#types.of(object).name
    if (!gcDel(this.#handle, object)) return
    process.emitWarning(`gc: Object of type ${name} is not untracked before destruction`, 'ResourceWarning')
  }

  resize(object: Address, nitems: Size): Address {
    return gcResize(this.#handle, object, nitems)
  }

  collect(generation?: 0 | 1 | 2): number {
    return collect(this.#handle, generation)
  }

  enable(): void {
    enable(this.#handle)
  }

  disable(): void {
    disable(this.#handle)
  }

  isEnabled(): boolean {
    return isEnabled(this.#handle)
  }

  getThreshold(): [number, number, number] {
    return getThreshold(this.#handle)
  }

  setThreshold(threshold0: number, threshold1?: number, threshold2?: number): void {
    setThreshold(this.#handle, threshold0, threshold1, threshold2)
  }

  getCount(): [number, number, number] {
    return getCount(this.#handle)
  }

  getStats(): GenerationStats[] {
    const numbers = getStats(this.#handle)
    const stats = (first: number): GenerationStats => ({
      collections: numbers[first]!,
      collected: numbers[first + 1]!,
      uncollectable: numbers[first + 2]!,
    })
    return [stats(0), stats(3), stats(6)]
  }

  getObjects(generation?: 0 | 1 | 2): Address[] {
    return addresses(getObjects(this.#handle, generation))
  }

  getReferrers(...objects: Address[]): Address[] {
    return addresses(getReferrers(this.#handle, objects))
  }

  getReferents(...objects: Address[]): Address[] {
    return addresses(getReferents(this.#handle, objects))
  }

  freeze(): void {
    freeze(this.#handle)
  }

  unfreeze(): void {
    unfreeze(this.#handle)
  }

  getFreezeCount(): number {
    return getFreezeCount(this.#handle)
  }

  setDebug(flags: number): void {
    setDebug(this.#handle, flags)
  }

  getDebug(): number {
    return getDebug(this.#handle)
  }

  newWeakref(object: Address, callback?: (ref: Address) => void): Address {
    checkFunction('callback', callback)
    return newWeakref(this.#handle, object, callback)
  }

  deref(ref: Address): Address | null {
    return deref(this.#handle, ref)
  }

  check(): TraverseMismatch[] {
    const found: TraverseMismatch[] = []
    const objects = this.getObjects()
    for (let index = 0; index < objects.length; index++) {
      const object = objects[index]!
      const held = this.#types.held(object)
      if (held) compare(object, held, addresses(getReferents(this.#handle, [object])), found)
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
