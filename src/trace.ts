/** Traces on disk: their headers, what the recorder says in them, and what has to be read before them. */

import { closeSync, constants, existsSync, fstatSync, openSync, readSync, statSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'

import type { TraceHeader } from '../index.js'

export type { TraceHeader } from '../index.js'

/** What a trace tells without a replay. */
export interface Survey {
  readonly header: TraceHeader
  readonly events: number
  /** Whether it goes to the process's end, or to where the process went on as another program. */
  readonly ended: boolean
  /** Whether it is the latter. */
  readonly executed: boolean
  /** Domains that the recorder lost sight of: bit 0 raw, bit 1 mem, bit 2 obj. */
  readonly hooksLost: number
  readonly failed: string | null
  /** Further messages from the recorder. */
  readonly remarks: readonly string[]
}

/** A file, or its first `bytes`. */
export interface Segment {
  readonly path: string
  readonly bytes?: number
}

/** A trace that cannot be read. */
export class TraceError extends Error {
  override readonly name = 'TraceError'
}

/** Bytes before the header's text, and longest header, as in the engine's reader. */
const [HEAD, MAX_HEADER] = [16, 1 << 24]

/** What every trace begins with. */
const MAGIC = 'obmtrace'

/** Whether a trace is at `path`, or its beginning, or nothing that could be lost. */
export function isTraceOrEmpty(path: string): boolean {
  if (!existsSync(path)) return true
  return MAGIC.startsWith(reading(path, (file) => read(file, 0, MAGIC.length)).toString('latin1'))
}

export function readHeader(path: string): TraceHeader {
  return reading(path, (file) => headerIn(path, file))
}

function headerIn(path: string, file: number): TraceHeader {
  const bytes = read(file, 0, HEAD)
  if (bytes.length < HEAD || bytes.toString('latin1', 0, 8) !== MAGIC)
    throw new TraceError(`${path}: expected a trace, which begins with "${MAGIC}"`)
  const text = read(file, HEAD, Math.min(bytes.readUInt32LE(12), MAX_HEADER))
  try {
    const header = JSON.parse(text.toString('utf8')) as TraceHeader
    if (typeof header.python === 'string' && isHeader(header) && fits(bytes.subarray(8, 12), text)) return header
  } catch {
    // Told below.
  }
  throw new TraceError(`${path}: the trace's header is cut off or damaged`)
}

/** Whether a header's sum is that of the version and of the text before it: see `format.rs`. What older recorders wrote has none. */
function fits(version: Buffer, text: Buffer): boolean {
  const end = text.lastIndexOf(', "sum": "')
  if (end < 0) return true
  let sum = 0x811c9dc5
  for (const part of [version, text.subarray(0, end)]) for (const byte of part) sum = Math.imul(sum ^ byte, 0x01000193) >>> 0
  return text.toString('latin1', end + 10, end + 18) === sum.toString(16).padStart(8, '0')
}

const isText = (value: unknown): boolean => typeof value === 'string'
const isFlag = (value: unknown): boolean => typeof value === 'boolean'
const isCount = (value: unknown): boolean => Number.isSafeInteger(value) && (value as number) >= 0

/** As the recorder has it. */
const MOST_FRAMES = 1024

/** What a header can say, each in its kind. */
const KINDS: { readonly [Name in keyof TraceHeader]-?: (value: unknown) => boolean } = {
  python: isText,
  executable: isText,
  argv: (value) => Array.isArray(value) && value.every(isText),
  folder: isText,
  pid: isCount,
  freeThreaded: isFlag,
  debugBuild: isFlag,
  shared: isFlag,
  stacks: (value) => isCount(value) && (value as number) <= MOST_FRAMES,
  every: isCount,
  run: isText,
  id: isText,
  parent: (value) => value === null || isParent(value),
  failed: (value) => value === null || isText(value),
}

function isParent(value: unknown): boolean {
  if (typeof value !== 'object' || value === null) return false
  const { path, id, bytes } = value as Record<string, unknown>
  return isText(path) && (id === undefined || isText(id)) && isCount(bytes)
}

/** Whether all that it says is in its kind. */
function isHeader(header: TraceHeader): boolean {
  return Object.entries(KINDS).every(([name, is]) => !Object.hasOwn(header, name) || is(header[name as keyof TraceHeader]))
}

/** The events of a note that stands in a block of its own, as the recorder's words do: see `format.rs`. */
const NOTE = 0b1110
const [HOOKS_LOST, END, TEXT, EXEC] = [2, 3, 5, 6]

/** Goes over the heads of a trace's blocks, and reads the blocks in which the recorder speaks. */
export function survey(path: string): Survey {
  return reading(path, (file) => {
    const header = headerIn(path, file)
    const { size } = fstatSync(file)
    const [version, length] = [read(file, 8, 4).readUInt32LE(0), read(file, 12, 4).readUInt32LE(0)]
    const blockHead = version < 3 ? 16 : 20
    let [events, hooksLost, last]: [number, number, number | undefined] = [0, 0, undefined]
    const remarks: string[] = []
    for (let at = HEAD + length; at + blockHead <= size;) {
      const block = read(file, at, blockHead)
      const [length, count] = [block.readUInt32LE(0), block.readUInt32LE(version < 3 ? 4 : 8)]
      const payload = at + blockHead
      // A process that was killed can leave half a block. No block is empty.
      if (length === 0 || payload + length > size) break
      events += count
      // A block of one event is not compressed.
      const note = count === 1 ? read(file, payload, Math.min(length, 1 << 16)) : null
      const kind = note?.[0] === NOTE ? note[1] : undefined
      last = kind
      if (kind === HOOKS_LOST) hooksLost |= note![2]!
      // The length, a number in groups of seven bits, stands before the text.
      if (kind === TEXT) remarks.push(note!.toString('utf8', note!.findIndex((byte, index) => index > 1 && byte < 0x80) + 1))
      at = payload + length
    }
    const [ended, executed] = [last === END || last === EXEC, last === EXEC]
    return { header, events, ended, executed, hooksLost, failed: header.failed ?? null, remarks }
  })
}

/** Opens a file for `work`, whose errors become a {@link TraceError}. */
function reading<Result>(path: string, work: (file: number) => Result): Result {
  let file: number | undefined
  try {
    // Or it waits for a writer, where the path is a FIFO's.
    file = openSync(path, constants.O_RDONLY | (constants.O_NONBLOCK ?? 0))
    return work(file)
  } catch (cause) {
    throw cause instanceof TraceError ? cause : new TraceError(`${path}: ${(cause as Error).message}`, { cause })
  } finally {
    if (file !== undefined) closeSync(file)
  }
}

function read(file: number, at: number, length: number): Buffer {
  const bytes = Buffer.alloc(length)
  return bytes.subarray(0, readSync(file, bytes, 0, length, at))
}

/** The traces that must be replayed for a trace: its ancestors, each up to the fork, then the trace itself. */
export function segments(path: string): Segment[] {
  const found: Segment[] = [{ path }]
  for (let first = path; ;) {
    const { parent } = readHeader(first)
    if (!parent) break
    first = parentOf(first, parent)
    if (found.some((segment) => segment.path === first)) throw new TraceError(`${path}: the trace ${first} comes before itself`)
    found.push({ path: first, bytes: parent.bytes })
  }
  // Without the calls before the fork, a replay would find differences that are none.
  const cut = found.find((segment) => segment.bytes !== undefined && statSync(segment.path).size < segment.bytes)
  if (cut) throw new TraceError(`${path}: the parent's trace ${cut.path} is cut off before the fork`)
  return found.reverse()
}

/** Where the trace of the process is that forked the one of `path`. */
function parentOf(path: string, parent: NonNullable<TraceHeader['parent']>): string {
  // A trace that was moved has its parent beside it.
  const places = [join(dirname(path), basename(parent.path)), parent.path].filter((place) => existsSync(place))
  const found = places.find((place) => parent.id === undefined || readHeader(place).id === parent.id)
  if (found === undefined) {
    if (places.length === 0) throw new TraceError(`${path}: the parent's trace ${parent.path} is missing`)
    throw new TraceError(`${path}: the parent's trace is of another recording: ${places[0]}`)
  }
  return found
}
