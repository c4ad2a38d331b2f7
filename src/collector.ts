/** The collector's face. */

import process from 'node:process'

import type { Address, Collector as Contract, CollectorCallback, GenerationStats, Size, TraverseMismatch } from '../index.js'
import { checkFunction } from './functions.js'
import type { Handle } from './native.js'
import type { Types } from './type.js'

function addresses(bytes: Uint8Array<ArrayBuffer>): Address[] {
  const all: Address[] = []
  // A loop of the script's own can be ended half-way; `Array.from` cannot, which takes longer, too.
  for (const address of new Float64Array(bytes.buffer) as Iterable<number>) all.push(address as Address)
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

  constructor(handle: Handle, types: Types) {
    this.garbage = handle.garbage
    this.callbacks = handle.callbacks
    this.native = handle.external
    this.#handle = handle
    this.#types = types
  }

  track(object: Address): void {
    this.#handle.track(object)
  }

  untrack(object: Address): void {
    this.#handle.untrack(object)
  }

  isTracked(object: Address): boolean {
    return this.#handle.isTracked(object)
  }

  isFinalized(object: Address): boolean {
    return this.#handle.isFinalized(object)
  }

  del(object: Address): void {
    const { name } = this.#types.of(object)
    if (!this.#handle.gcDel(object)) return
    process.emitWarning(`gc: Object of type ${name} is not untracked before destruction`, 'ResourceWarning')
  }

  resize(object: Address, nitems: Size): Address {
    return this.#handle.gcResize(object, nitems)
  }

  collect(generation?: 0 | 1 | 2): number {
    return this.#handle.collect(generation)
  }

  enable(): void {
    this.#handle.enable()
  }

  disable(): void {
    this.#handle.disable()
  }

  isEnabled(): boolean {
    return this.#handle.isEnabled()
  }

  getThreshold(): [number, number, number] {
    return this.#handle.getThreshold()
  }

  setThreshold(threshold0: number, threshold1?: number, threshold2?: number): void {
    this.#handle.setThreshold(threshold0, threshold1, threshold2)
  }

  getCount(): [number, number, number] {
    return this.#handle.getCount()
  }

  getStats(): GenerationStats[] {
    const numbers = this.#handle.getStats()
    return [0, 3, 6].map((first) => ({
      collections: numbers[first]!,
      collected: numbers[first + 1]!,
      uncollectable: numbers[first + 2]!,
    }))
  }

  getObjects(generation?: 0 | 1 | 2): Address[] {
    return addresses(this.#handle.getObjects(generation))
  }

  getReferrers(...objects: Address[]): Address[] {
    return addresses(this.#handle.getReferrers(objects))
  }

  getReferents(...objects: Address[]): Address[] {
    return addresses(this.#handle.getReferents(objects))
  }

  freeze(): void {
    this.#handle.freeze()
  }

  unfreeze(): void {
    this.#handle.unfreeze()
  }

  getFreezeCount(): number {
    return this.#handle.getFreezeCount()
  }

  setDebug(flags: number): void {
    this.#handle.setDebug(flags)
  }

  getDebug(): number {
    return this.#handle.getDebug()
  }

  newWeakref(object: Address, callback?: (ref: Address) => void): Address {
    checkFunction('callback', callback)
    return this.#handle.newWeakref(object, callback)
  }

  deref(ref: Address): Address | null {
    return this.#handle.deref(ref)
  }

  check(): TraverseMismatch[] {
    return this.getObjects().flatMap((object) => {
      const held = this.#types.held(object)
      return held ? mismatches(object, held, this.getReferents(object)) : []
    })
  }
}

function mismatches(object: Address, held: Address[], visited: Address[]): TraverseMismatch[] {
  const [holds, visits] = [held, visited].map((all) => {
    const times = new Map<Address, number>()
    for (const one of all) times.set(one, (times.get(one) ?? 0) + 1)
    return times
  }) as [Map<Address, number>, Map<Address, number>]
  return [...holds]
    .map(([referent, times]) => ({ object, referent, held: times, visited: visits.get(referent) ?? 0 }))
    .filter((mismatch) => mismatch.visited < mismatch.held)
}
