/** A recording's figures for other tools: pprof, speedscope, flame graphs, trace viewers, tables. */

import { gzipSync } from 'node:zlib'

import { Function as PprofFunction, Line, Location, Profile, Sample, StringTable, ValueType } from 'pprof-format'

import { decode, pageOf } from './page.js'
import type { ReportData } from './report-data.js'
import { type Frame, type InquiryOptions, isVerified, topOf, type TopRow } from './why.js'

/** The formats. */
export const FORMATS = ['pprof', 'speedscope', 'collapsed', 'trace-events', 'csv'] as const

export type Format = (typeof FORMATS)[number]

/**
 * The meaning of a stack's bytes: its share of the arenas held; its live bytes (in pools, at the block size, and at C's `malloc`); its share
 * of the arenas at the peak; or the bytes that it has asked for up to the moment.
 */
export const FIGURES = ['held', 'live', 'peak', 'allocated'] as const

export type Figure = (typeof FIGURES)[number]

export interface ExportOptions extends InquiryOptions {
  readonly what?: Figure
}

export interface Exported {
  readonly data: string | Uint8Array
  /** Whether the replay came to the moment, and went as recorded. */
  readonly verified: boolean
}

/** A stack, innermost frame first, its bytes and its live blocks. */
interface Weighed {
  readonly stack: readonly Frame[]
  readonly bytes: number
  readonly blocks: number
}

/** Writes a recording's stacks in another tool's format; `trace-events` is of what was held when, and takes no moment. */
export async function exportTrace(path: string, format: Format, options: ExportOptions = {}): Promise<Exported> {
  const { what = 'held', ...rest } = options
  if (format === 'trace-events') {
    const page = await pageOf(path, rest)
    return { data: traceEvents(timelineOf(page)), verified: isVerified(page.why) }
  }
  const { table, why } = await topOf(path, 'site', what === 'peak' ? { ...rest, at: 'peak' } : rest)
  return { data: written(table, format, what, path), verified: isVerified(why) }
}

function written(
  table: readonly TopRow[],
  format: Exclude<Format, 'trace-events'>,
  what: Figure,
  path: string,
): string | Uint8Array {
  if (format === 'csv') return csv(table)
  const weighed = table
    .map((row): Weighed => ({ stack: row.stack ?? [], bytes: Math.round(figureOf(row, what)), blocks: row.blocks }))
    .filter(({ bytes }) => bytes > 0)
  if (format === 'collapsed') return collapsed(weighed)
  return format === 'pprof' ? pprof(weighed, what) : speedscope(weighed, what, path)
}

function figureOf(row: TopRow, what: Figure): number {
  if (what === 'live') return row.live + row.outside
  return what === 'allocated' ? row.allocated : row.held
}

const NO_FRAME: Frame = { file: '', line: 0, function: '(no Python frame)' }

function framesOf({ stack }: Weighed): readonly Frame[] {
  return stack.length === 0 ? [NO_FRAME] : stack
}

/** Brendan Gregg's format: a line each, outermost frame first, semicolons between. */
function collapsed(weighed: readonly Weighed[]): string {
  const said = ({ file, line, function: name }: Frame): string =>
    (file === '' ? name : `${name} (${file}:${line})`).replaceAll(/[;\n]/g, ',')
  return weighed.map((one) => `${framesOf(one).toReversed().map(said).join(';')} ${one.bytes}\n`).join('')
}

/** `profile.proto`, gzipped, as pprof has it. */
function pprof(weighed: readonly Weighed[], what: Figure): Uint8Array {
  const strings = new StringTable()
  const functions = new Map<string, PprofFunction>()
  const locations = new Map<string, Location>()
  const functionOf = ({ file, function: name }: Frame): PprofFunction => {
    const key = `${file}\0${name}`
    let found = functions.get(key)
    if (!found) {
      const text = strings.dedup(name)
      found = new PprofFunction({ id: functions.size + 1, name: text, systemName: text, filename: strings.dedup(file) })
      functions.set(key, found)
    }
    return found
  }
  const locationOf = (frame: Frame): Location => {
    const key = `${frame.file}\0${frame.function}\0${frame.line}`
    let found = locations.get(key)
    if (!found) {
      const line = new Line({ functionId: functionOf(frame).id, line: frame.line })
      found = new Location({ id: locations.size + 1, line: [line] })
      locations.set(key, found)
    }
    return found
  }
  const sample = weighed.map(
    (one) => new Sample({ locationId: framesOf(one).map((frame) => locationOf(frame).id), value: [one.blocks, one.bytes] }),
  )
  const type = (name: string, unit: string): ValueType => new ValueType({ type: strings.dedup(name), unit: strings.dedup(unit) })
  const profile = new Profile({
    sampleType: [type('blocks', 'count'), type(what, 'bytes')],
    sample,
    location: [...locations.values()],
    function: [...functions.values()],
    defaultSampleType: strings.dedup(what),
    stringTable: strings,
  })
  return gzipSync(profile.encode())
}

function speedscope(weighed: readonly Weighed[], what: Figure, name: string): string {
  const numbers = new Map<string, number>()
  const frames: { name: string; file?: string; line?: number }[] = []
  const numberOf = (frame: Frame): number => {
    const key = `${frame.file}\0${frame.function}\0${frame.line}`
    let number = numbers.get(key)
    if (number === undefined) {
      numbers.set(key, (number = frames.length))
      frames.push(frame.file === '' ? { name: frame.function } : { name: frame.function, file: frame.file, line: frame.line })
    }
    return number
  }
  const samples = weighed.map((one) => framesOf(one).toReversed().map(numberOf))
  const weights = weighed.map(({ bytes }) => bytes)
  const endValue = weights.reduce((all, bytes) => all + bytes, 0)
  return JSON.stringify({
    $schema: 'https://www.speedscope.app/file-format-schema.json',
    shared: { frames },
    profiles: [{ type: 'sampled', name: `${name}: ${what}`, unit: 'bytes', startValue: 0, endValue, samples, weights }],
    name,
    activeProfileIndex: 0,
    exporter: 'obmalloc',
  })
}

interface Timeline {
  readonly columns: Readonly<Record<'seconds' | 'held' | 'live' | 'raw' | 'large' | 'resident', readonly number[]>>
  readonly marks: readonly { readonly name: string; readonly seconds: number | null }[]
}

function timelineOf({ timeline, why }: ReportData): Timeline {
  const column = (name: keyof Timeline['columns']): number[] => [...decode(timeline[name])]
  const [seconds, held, live, raw, large, resident] = [
    column('seconds'),
    column('held'),
    column('live'),
    column('raw'),
    column('large'),
    column('resident'),
  ]
  return { columns: { seconds, held, live, raw, large, resident }, marks: why.trace.marks }
}

/** The Trace Event Format, which Perfetto and Chrome read: counters, and an instant for each mark. */
function traceEvents({ columns, marks }: Timeline): string {
  // No time is known before the clock was first read.
  const at = (seconds: number): number => (Number.isNaN(seconds) ? 0 : Math.round(seconds * 1e6))
  const process = { pid: 1, tid: 1 }
  const counters = columns.seconds.flatMap((seconds, row) => {
    const { held, live, raw, large, resident } = columns
    const counter = (name: string, args: Record<string, number>) => ({ name, ph: 'C', ts: at(seconds), ...process, args })
    return [
      counter('arenas', { held: held[row]!, live: live[row]! }),
      counter("C's malloc", { raw: raw[row]!, large: large[row]! }),
      ...(Number.isNaN(resident[row]) ? [] : [counter('resident', { bytes: resident[row]! })]),
    ]
  })
  const instants = marks.map(({ name, seconds }) => ({ name, ph: 'i', s: 'g', ts: at(seconds ?? 0), ...process }))
  return JSON.stringify({ traceEvents: [...counters, ...instants], displayTimeUnit: 'ms' })
}

function csv(rows: readonly TopRow[]): string {
  const quoted = (text: string): string => `"${text.replaceAll('"', '""')}"`
  const lines = rows.map(({ stack = [], name, ...figures }) => {
    const [first] = stack
    const place = first ? [first.file, String(first.line), first.function] : ['', '', name]
    const callers = stack.map(({ file, line, function: of }) => `${of} (${file}:${line})`).join(' < ')
    const numbers = [
      figures.allocated,
      figures.freed,
      figures.live,
      figures.blocks,
      figures.held,
      figures.outside,
      figures.temporary,
    ]
    return [...place, callers].map(quoted).concat(numbers.map(String)).join(',')
  })
  return ['file,line,function,stack,allocated,freed,live,blocks,held,outside,temporary', ...lines, ''].join('\n')
}
