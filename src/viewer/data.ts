/** Unpacks the page's data, which `packing.ts` has packed, with its columns as typed arrays. */

import type { Column, ReportData } from '../report-data.ts'

type Numbers = Uint8Array | Uint16Array | Uint32Array | Float64Array

/** `ReportData` with typed arrays for columns. */
type Unpacked<T> = T extends Column
  ? Numbers
  : T extends string | number | boolean | null
    ? T
    : { readonly [Key in keyof T]: Unpacked<T[Key]> }

export type Data = Unpacked<ReportData>

const TYPES = { u8: [Uint8Array, 1], u16: [Uint16Array, 2], u32: [Uint32Array, 4], f64: [Float64Array, 8] } as const

export async function unpack(base64: string): Promise<Data> {
  const bytes = new Uint8Array(
    await new Response(new Blob([decoded(base64)]).stream().pipeThrough(new DecompressionStream('gzip'))).arrayBuffer(),
  )
  const length = new DataView(bytes.buffer).getUint32(0, true)
  const columns = bytes.subarray(4 + length)
  const data = unpacked(JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length)))) as Data
  if (data.schema !== 'obmalloc.report/1') throw new Error(`expected data of obmalloc.report/1, but got ${String(data.schema)}`)
  return data

  /** The same with typed arrays for columns, which no list holds. */
  function unpacked(value: unknown): unknown {
    if (value === null || typeof value !== 'object' || Array.isArray(value)) return value
    const entries = Object.entries(value)
    const [type, place] = entries[0] ?? []
    if (entries.length === 1 && type! in TYPES) return column(type as keyof typeof TYPES, place as [number, number, number])
    return Object.fromEntries(entries.map(([key, one]) => [key, unpacked(one)]))
  }

  function column(type: keyof typeof TYPES, [offset, count, delta]: [number, number, number]): Numbers {
    const [Numbers, width] = TYPES[type]
    const values = new Numbers(count)
    const raw = new Uint8Array(values.buffer)
    for (let plane = 0; plane < width; plane++)
      for (let index = 0, from = offset + plane * count; index < count; index++)
        raw[index * width + plane] = columns[from + index]!
    if (delta) for (let index = 1; index < count; index++) values[index]! += values[index - 1]!
    return values
  }
}

function decoded(base64: string): Uint8Array<ArrayBuffer> {
  const { fromBase64 } = Uint8Array as unknown as { fromBase64?: (text: string) => Uint8Array<ArrayBuffer> }
  return fromBase64 ? fromBase64.call(Uint8Array, base64) : Uint8Array.from(atob(base64), (character) => character.charCodeAt(0))
}

/** The last row whose value is at most `wanted`; the first where there is none. `rows` ascends. */
export function rowAt(rows: ArrayLike<number>, wanted: number): number {
  let [low, high] = [0, rows.length - 1]
  while (low < high) {
    const middle = (low + high + 1) >> 1
    if (rows[middle]! <= wanted) low = middle
    else high = middle - 1
  }
  return low
}

/** From events to seconds, where time was recorded; between two rows of the timeline, in proportion. */
export class Clock {
  readonly known: boolean

  constructor(readonly data: Data) {
    const { seconds } = data.timeline
    this.known = data.why.trace.seconds !== null && seconds.some((second) => !Number.isNaN(second))
    // Before the first time, and in stretches without one, take the last known time.
    let before = 0
    for (const [row, second] of seconds.entries()) seconds[row] = before = Number.isNaN(second) ? before : second
  }

  seconds(event: number): number {
    const { at } = this.data.why
    if (event === at.event && at.seconds !== null) return at.seconds
    return between(this.data.timeline.event, this.data.timeline.seconds, event)
  }

  event(seconds: number): number {
    return Math.round(between(this.data.timeline.seconds, this.data.timeline.event, seconds))
  }

  /** Where an event lies on a time axis: seconds, or the event itself where time is not known. */
  place(event: number): number {
    return this.known ? this.seconds(event) : event
  }

  eventAt(place: number): number {
    return this.known ? this.event(place) : Math.round(place)
  }
}

function between(from: ArrayLike<number>, to: ArrayLike<number>, value: number): number {
  const row = rowAt(from, value)
  const next = Math.min(row + 1, from.length - 1)
  const width = from[next]! - from[row]!
  const part = width > 0 ? Math.min(1, Math.max(0, (value - from[row]!) / width)) : 0
  return to[row]! + part * (to[next]! - to[row]!)
}
