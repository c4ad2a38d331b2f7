/** Replaying traces with the native engine, a slice at a time so that progress can be shown. */

import type { AbortSignalLike, Geometry, Release } from '../index.js'
import type { ReplayReport as Report } from '../index.js'
import { native } from './native.js'
import { readHeader, type Segment, TraceError } from './trace.js'
import { UsageError } from './usage.js'

export type { Mismatch, ReplayReport as Report } from '../index.js'

/** Events replayed between two looks at the clock and the terminal. */
const SLICE = 200_000

/**
 * Makes a call of the binding. It fails only for an unreadable trace, a moment that the trace does not have, a file of calls that cannot be
 * written or read, or a lack of memory. Where the trace at `path` holds no event, its header may say why.
 */
export function reading<Result>(call: () => Result, path?: string): Result {
  try {
    return call()
  } catch (error) {
    const { code, message } = error as Error & { code?: unknown }
    if (code === 'ERR_UNREADABLE_TRACE') throw new TraceError(message)
    if (code === 'ERR_CALLS_FILE') throw new Error(message)
    if (code === 'ERR_NO_EVENT') {
      const failed = path && readHeader(path).failed
      throw new TraceError(failed ? `${message}, because the recorder could not write: ${failed}` : message)
    }
    throw code === 'ERR_NO_SUCH_MOMENT' ? new UsageError(message) : error
  }
}

export interface ReplayOptions {
  readonly release: Release
  readonly segments: readonly Segment[]
  /** Ends before this event. */
  readonly stopAt?: number
  /** Sizes other than the release's. */
  readonly geometry?: Geometry
  readonly signal?: AbortSignalLike
  readonly onProgress?: (done: number, total: number) => void
}

/** Replays a trace and compares every answer. Throws {@link TraceError} when it cannot be read. */
export async function replay({ release, segments, stopAt, geometry, signal, onProgress }: ReplayOptions): Promise<Report> {
  signal?.throwIfAborted()
  const number = reading(() => native.openReplay(JSON.stringify({ release, segments, stop_at: stopAt, geometry })))
  try {
    for (let more = true; more;) {
      more = reading(() => native.stepReplay(number, SLICE)) !== 0
      onProgress?.(...native.progressReplay(number))
      await new Promise((done) => setImmediate(done))
      signal?.throwIfAborted()
    }
    return JSON.parse(native.reportReplay(number)) as Report
  } finally {
    native.closeReplay(number)
  }
}

/** The first line in which two texts differ. */
export function firstDifference(expected: string, got: string): string {
  const [a, b] = [expected.split('\n'), got.split('\n')]
  const at = a.findIndex((line, index) => line !== b[index])
  const line = at < 0 ? a.length : at
  return `line ${line + 1}:\n  expected ${a[line] ?? '(the end)'}\n  got      ${b[line] ?? '(the end)'}`
}
