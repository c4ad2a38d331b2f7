/**
 * A heap's memory, used without a call: windows over its arenas, through which the domains read and write a block's bytes.
 *
 * No script ever sees a window, because it shows everything: other blocks, objects, the links of free blocks. A script gives an address. Before
 * the bytes there are touched, the heap's own tables are read: whether a live block of that domain is there, whether it is an object's, and how
 * large it is. If anything is wrong, or the tables do not tell all (debug hooks, a quarantine, a script's allocator, a retired block, a heap
 * that is in use, a collection that is due), the native call is made, which finds out what is wrong.
 *
 * A window is used only while the gate says that the heap is open: then its memory exists, though another arena may lie in it by now.
 */

import type { Geometry } from '../index.js'
import { native, on, type Handle } from './native.js'
import { Bytes, Halves, View, Words, append, bufferOf, freeze } from './primordials.js'

const { gate, region, window } = native

/** What the ledger says of a live block, by domain. Raw blocks lie outside all arenas. */
export const LIVE = freeze({ __proto__: null, raw: -1, mem: 2, obj: 3 } as unknown as Record<'raw' | 'mem' | 'obj', number>)

/** What the gate says of an open heap without types, and of one with types. */
const OPEN = 0
const OPEN_WITH_TYPES = 0x10000
/** Of one that is neither, and what it never says. */
const BUSY = 1
const NEVER = -1

/** The binding's arrays of a slot: its memory, and the tables of live blocks, objects and pool headers. */
type Window = [bytes: Buffered, live: Buffered, objects: Buffered, headers: Buffered]
type Buffered = Uint8Array<ArrayBuffer>

/** A place for an arena. */
class Place {
  /** What the gate says while this can be used. */
  readonly gate: number
  readonly base: number
  readonly bytes: Uint8Array
  readonly view: DataView
  /** Two bits for each multiple of the alignment. */
  readonly live: Uint8Array
  /** A byte for each of them. */
  readonly objects: Uint8Array
  /** Sixteen numbers for each pool; the last is its size class. */
  readonly headers: Uint16Array

  constructor(gate: number, base: number, parts: Window) {
    this.gate = gate
    this.base = base
    this.bytes = parts[0]
    this.view = new View(bufferOf(parts[0]))
    this.live = parts[1]
    this.objects = parts[2]
    this.headers = new Halves(bufferOf(parts[3]))
  }
}

/** Stands for a slot that cannot be used. */
const noPlace = new Place(NEVER, 0, [new Bytes(0), new Bytes(0), new Bytes(0), new Bytes(0)])
const shut = new Words(1)
shut[0] = BUSY

/** The windows of a heap, opened as they are needed. */
export class Memory {
  /** The place in which something was found last. */
  place = noPlace
  private readonly handle: Handle
  private readonly alignment: number
  private readonly pool: number
  private readonly arenaSize: number
  private gate = shut
  private base = 0
  private places: Place[] = []
  /** How many there can be. */
  private most = 0
  private isKnown = native.chosen === undefined

  constructor(handle: Handle, geometry: Geometry) {
    this.handle = handle
    this.arenaSize = geometry.arenaSize
    this.alignment = logarithm(geometry.alignment)
    this.pool = logarithm(geometry.poolSize)
  }

  /**
   * Returns the index of `width` bytes from `offset` on in the window of `place`, if they are within a live block of that kind and no object's;
   * -1 if the native call must be made. It is one short function, because V8 does not inline long ones.
   */
  find(address: unknown, live: number, width: number, offset: unknown): number {
    if (typeof address !== 'number' || typeof offset !== 'number') return -1
    const { place } = this
    const begin = address - place.base
    const block = begin | 0
    const unit = block >> this.alignment
    const within = offset | 0
    const size = (place.headers[((block >> this.pool) << 4) | 15]! + 1) << this.alignment
    if (
      place.gate === this.gate[0] &&
      block === begin &&
      unit << this.alignment === block &&
      // Outside the place there is undefined, which is no block.
      ((place.live[unit >> 2]! >> ((unit & 3) << 1)) & 3) === live &&
      (place.gate === OPEN || this.isPlain(place, unit, size)) &&
      within === offset &&
      within >= 0 &&
      within + width <= size
    ) {
      return block + within
    }
    return this.findElsewhere(address, live, width, offset)
  }

  /** The same in another place, or nowhere. */
  private findElsewhere(address: number, live: number, width: number, offset: number): number {
    const place = live === LIVE.raw ? noPlace : this.placeOf(address)
    if (place === noPlace || place === this.place) return -1
    this.place = place
    return this.find(address, live, width, offset)
  }

  /** An object would begin where its block does, or 16 or 32 bytes behind that. */
  private isPlain({ objects }: Place, unit: number, size: number): boolean {
    if (objects[unit]! > 1) return false
    if (size > 16 && objects[unit + (16 >> this.alignment)]! > 1) return false
    return !(size > 32 && objects[unit + (32 >> this.alignment)]! > 1)
  }

  /** The place that an address lies in, with a window that can be used now. */
  private placeOf(address: number): Place {
    if (!this.isKnown) this.know()
    const gate = this.gate[0]!
    const index = (address - this.base) / this.arenaSize
    if ((gate !== OPEN && gate !== OPEN_WITH_TYPES) || !(index >= 0 && index < this.most)) return noPlace
    const number = index | 0
    if (number < this.places.length && this.places[number]!.gate === gate) return this.places[number]!
    const parts = window(number, on(this.handle)) as Window | null
    if (parts === null) return noPlace
    while (this.places.length <= number) append(this.places, noPlace)
    return (this.places[number] = new Place(gate, this.base + number * this.arenaSize, parts))
  }

  /** The heap's own calls say so where it is closed or in use. */
  private know(): void {
    const word = gate(on(this.handle))
    const places = region(on(this.handle))
    this.base = places[0]!
    this.most = places[1]! / this.arenaSize
    this.gate = new Words(bufferOf(word as Buffered))
    this.isKnown = true
  }

  /** The heap has been closed. */
  close(): void {
    this.gate = shut
    this.places = []
    this.place = noPlace
    this.isKnown = true
  }
}

/** Of a power of two. */
function logarithm(size: number): number {
  let exponent = 0
  while (1 << exponent < size) exponent++
  return exponent
}
