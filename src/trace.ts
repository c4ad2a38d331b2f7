/** Traces on disk: their headers, and what has to be read before them. */

import { closeSync, openSync, readSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'
import { existsSync } from 'node:fs'

/** What the recorder says of the process, at the head of a trace. */
export interface TraceHeader {
  /** E.g. `3.13.0`. */
  readonly python: string
  readonly executable: string
  readonly argv: readonly string[]
  readonly pid: number
  readonly freeThreaded: boolean
  readonly debugBuild: boolean
  readonly shared: boolean
  /** The trace of the process that forked this one, and how much of it was written by then. */
  readonly parent: { readonly path: string; readonly bytes: number } | null
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

export function readHeader(path: string): TraceHeader {
  const bytes = head(path, 16)
  if (bytes.toString('latin1', 0, 8) !== 'obmtrace')
    throw new TraceError(`${path}: expected a trace, which begins with "obmtrace"`)
  const text = head(path, 16 + bytes.readUInt32LE(12)).toString('utf8', 16)
  try {
    return JSON.parse(text) as TraceHeader
  } catch {
    throw new TraceError(`${path}: the trace's header is cut off or damaged`)
  }
}

function head(path: string, length: number): Buffer {
  let file: number
  try {
    file = openSync(path, 'r')
  } catch (cause) {
    throw new TraceError(`${path}: ${(cause as Error).message}`, { cause })
  }
  try {
    const bytes = Buffer.alloc(Math.min(length, 1 << 20))
    return bytes.subarray(0, readSync(file, bytes, 0, bytes.length, 0))
  } catch (cause) {
    throw new TraceError(`${path}: ${(cause as Error).message}`, { cause })
  } finally {
    closeSync(file)
  }
}

/** What has to be replayed for a trace: its ancestors up to each fork, then itself. */
export function segments(path: string): Segment[] {
  const { parent } = readHeader(path)
  if (!parent) return [{ path }]
  // A trace that was moved has its parent beside it.
  const beside = join(dirname(path), basename(parent.path))
  const ancestors = segments(existsSync(beside) ? beside : parent.path)
  return [...ancestors.slice(0, -1), { path: ancestors.at(-1)!.path, bytes: parent.bytes }, { path }]
}
