/** What grew from one recording to another, or from one moment of a recording to another. */

import { statSync } from 'node:fs'
import { normalize } from 'node:path'

import type { Figures, DifferentRow, DiffSide as Side, Difference, DiffOptions, TraceHeader } from '../index.js'
import { pathOf, type Source, sourceOf } from './sources.js'
import { readHeader } from './trace.js'
import { type Frame, isVerified, topOf, type TopBy, type TopRow, where } from './why.js'

export type { Figures, DifferentRow, DiffSide as Side, Difference, DiffOptions } from '../index.js'

/** A recording, or `FILE@MOMENT`. */
export function placeOf(text: string): { path: string; at?: string } {
  const found = /^(.+)@(end|peak|mark:.*|event:\d+|time:[\d.]+)$/s.exec(text)
  return found ? { path: found[1]!, at: found[2]! } : { path: text }
}

/**
 * Compares two recordings, or two moments of one (`FILE@mark:1`). Sites are the same when their frames have the same file, function and text of
 * the line, so lines may have moved; where a text cannot be read, by their order in the function.
 */
export async function diff(a: string, b: string, { by = 'site', ...options }: DiffOptions = {}): Promise<Difference> {
  const texts: Texts = new Map()
  const [before, after] = [await sideOf(a, by, options, texts), await sideOf(b, by, options, texts)]
  return { schema: 'obmalloc.diff/1', by, a: before.side, b: after.side, sites: matched(before.rows, after.rows) }
}

/** A row, and its keys. */
interface Row {
  readonly row: TopRow
  /** With the text of each line, or its number if the text cannot be read. */
  readonly key: string
  /** Without its lines. */
  readonly outline: string
}

async function sideOf(text: string, by: TopBy, options: DiffOptions, texts: Texts): Promise<{ side: Side; rows: Row[] }> {
  const { path, at } = placeOf(text)
  const { why, table } = await topOf(path, by, { ...options, at })
  const recorded = statSync(path).mtimeMs
  const parts = (row: TopRow): Named => (row.stack ? {} : partsOf(row.name, by))
  const files = table.flatMap((row) => [...(row.stack ?? []), parts(row)].flatMap(({ file }) => file ?? []))
  const header = readHeader(path)
  const names = new FileNames(new Set(files), header.argv[1])
  const rows = table.map((row) => {
    const stack = row.stack ?? []
    const frames = stack.map((frame) => `${names.of(frame.file)}\0${functionOf(frame)}`)
    const lines = stack.map((frame) => sourceLine(texts, frame, recorded, header) ?? `:${frame.line}`)
    const { file, function: name = '' } = parts(row)
    const own = (name: string): string => (row.stack ? '' : file === undefined ? row.name : `${names.of(file)}\0${name}`)
    return {
      row,
      key: [own(name), ...frames.map((frame, index) => `${frame}\0${lines[index]}`)].join('\n'),
      outline: [own(functionOf({ function: name })), ...frames].join('\n'),
    }
  })
  const { totals, trace } = why
  const { event, seconds, moment } = why.at
  return { side: { path, python: trace.python, moment, event, seconds, totals, verified: isVerified(why) }, rows }
}

/** Functions have their qualified names from 3.11 on, before that their own. */
function functionOf({ function: name }: Pick<Frame, 'function'>): string {
  return name.replace(/^.*\./s, '')
}

/** The parts of a row's name: a size class has none. */
type Named = Partial<Pick<Frame, 'file' | 'function'>>

function partsOf(name: string, by: TopBy): Named {
  if (by === 'file') return { file: name }
  const [, of, file] = (by === 'function' && /^(.*) \((.*)\)$/s.exec(name)) || []
  return of === undefined || file === undefined ? {} : { file, function: of }
}

/** A file's path without the folder of the interpreter's library, or of the program. The program's script is one, whatever its name. */
class FileNames {
  readonly #common: string
  readonly #names = new Map<string, string>()

  constructor(files: ReadonlySet<string>, script = '') {
    this.#common = commonFolder([...files].filter((file) => file.startsWith('/') && !LIBRARY.test(file)))
    const end = `/${normalize(script)}`
    for (const file of files)
      if (file === script || (script.endsWith('.py') && file.endsWith(end))) this.#names.set(file, '<script>')
  }

  of(file: string): string {
    let name = this.#names.get(file)
    if (name === undefined) this.#names.set(file, (name = this.#shorten(file)))
    return name
  }

  #shorten(file: string): string {
    const library = LIBRARY.exec(file)
    if (library) return `<lib>/${file.slice(library.index + library[0].length)}`
    return file.startsWith(this.#common) ? file.slice(this.#common.length) : file
  }
}

// Debian has packages of its own in lib/python3/dist-packages; some systems have the library in lib64.
const LIBRARY = /^.*\/lib\d*\/python3(?:\.\d+)?\/(?:(?:site|dist)-packages\/)?/

function commonFolder(files: readonly string[]): string {
  const folders = files.map((file) => file.slice(0, file.lastIndexOf('/') + 1))
  const [first = '', ...rest] = folders
  let common = first
  for (const folder of rest)
    while (!folder.startsWith(common)) common = common.slice(0, common.lastIndexOf('/', common.length - 2) + 1)
  return common
}

/** The files that were read for one comparison. */
type Texts = Map<string, Source | null>

/** The text of a frame's line, if its file can be read and is no newer than the recording. */
function sourceLine(texts: Texts, { file, line }: Frame, recorded: number, header: TraceHeader): string | undefined {
  const path = pathOf(file, header)
  if (path === null) return undefined
  if (!texts.has(path)) texts.set(path, sourceOf(path, header))
  const text = texts.get(path)
  const found = text && text.changed <= recorded ? text.lines[line - 1]?.trim() : undefined
  return found === '' ? undefined : found
}

/** Pairs the rows with equal keys; then, if both sides have equally many rows left of one outline, pairs those in order. */
function matched(before: readonly Row[], after: readonly Row[]): DifferentRow[] {
  const [old, young] = [grouped(before, 'key'), grouped(after, 'key')]
  const pairs: [Row[], Row[]][] = []
  const left: [Row[], Row[]] = [[], []]
  for (const key of new Set([...old.keys(), ...young.keys()])) {
    const [a, b] = [old.get(key) ?? [], young.get(key) ?? []]
    if (a.length > 0 && b.length > 0) pairs.push([a, b])
    else {
      left[0].push(...a)
      left[1].push(...b)
    }
  }
  const [oldLeft, youngLeft] = [grouped(left[0], 'outline'), grouped(left[1], 'outline')]
  for (const outline of new Set([...oldLeft.keys(), ...youngLeft.keys()])) {
    const [a, b] = [byLines(oldLeft.get(outline) ?? []), byLines(youngLeft.get(outline) ?? [])]
    if (a.length === b.length) for (const [index, row] of a.entries()) pairs.push([[row], [b[index]!]])
    else pairs.push(...a.map((row): [Row[], Row[]] => [[row], []]), ...b.map((row): [Row[], Row[]] => [[], [row]]))
  }
  const rows = pairs.map(([a, b]) => {
    const [first] = [...b, ...a]
    const [from, to] = [figures(a), figures(b)]
    const sum = (side: Figures | null): number => (side ? side.live + side.outside : 0)
    const stack = first!.row.stack ?? []
    return { name: first!.row.stack ? where(stack) : first!.row.name, stack, a: from, b: to, grown: sum(to) - sum(from) }
  })
  return rows.toSorted((x, y) => y.grown - x.grown)
}

function grouped(rows: readonly Row[], by: 'key' | 'outline'): Map<string, Row[]> {
  const groups = new Map<string, Row[]>()
  for (const row of rows) {
    const group = groups.get(row[by])
    if (group) group.push(row)
    else groups.set(row[by], [row])
  }
  return groups
}

function byLines(rows: readonly Row[]): Row[] {
  const lines = ({ row }: Row): number[] => (row.stack ?? []).map(({ line }) => line)
  return rows.toSorted((x, y) => {
    const [a, b] = [lines(x), lines(y)]
    const at = a.findIndex((line, index) => line !== b[index])
    return at < 0 ? 0 : a[at]! - b[at]!
  })
}

function figures(rows: readonly Row[]): Figures | null {
  if (rows.length === 0) return null
  const sum = (figure: 'blocks' | 'live' | 'held' | 'outside'): number => rows.reduce((all, { row }) => all + row[figure], 0)
  return { blocks: sum('blocks'), live: sum('live'), held: sum('held'), outside: sum('outside') }
}
