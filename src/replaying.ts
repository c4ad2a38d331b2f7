/** Replaying traces with the native engine, a slice at a time so that progress can be shown. */

import type { Release } from '../index.js'
import { native } from './native.js'
import { type Segment, TraceError } from './trace.js'

/** The first call that came out otherwise than recorded. */
export interface Mismatch {
  readonly operation: number
  /** What differs, in full. */
  readonly text: string
}

/** What a replay has found: `Report` of the engine. */
export interface Report {
  readonly events: number
  readonly calls: number
  readonly rawCalls: number
  readonly nestedRawCalls: number
  readonly addresses: number
  readonly matched: number
  readonly arenasTaken: number
  readonly arenasReleased: number
  readonly arenasHighwater: number
  readonly otherArenaRequests: number
  readonly strangers: number
  /** Calls on mem and obj that are not the main interpreter's but of others that had allocators of their own, and how many those are. */
  readonly otherCalls: number
  readonly otherInterpreters: number
  /** As recorded, and here; null also where there are other interpreters. */
  readonly blocks: readonly [number, number] | null
  /** As recorded, and here. */
  readonly stats: readonly [string, string] | null
  readonly hooksLost: number
  readonly ended: boolean
  readonly truncated: boolean
  readonly mismatch: Mismatch | null
  readonly exact: boolean
  readonly seconds: number
  readonly progress: readonly [number, number]
  readonly statsNow: string
}

/** Events replayed between two looks at the clock and the terminal. */
const SLICE = 200_000

/** Makes the binding's errors; the only ones here are unreadable traces and a lack of memory. */
function makeError(code: string, message: string): Error {
  return code === 'ERR_UNREADABLE_TRACE' ? new TraceError(message) : Object.assign(new Error(message), { code })
}

export interface ReplayOptions {
  readonly release: Release
  readonly segments: readonly Segment[]
  /** Ends before this event. */
  readonly stopAt?: number
  readonly onProgress?: (done: number, total: number) => void
}

/** Replays a trace and compares every answer. Throws {@link TraceError} when it cannot be read. */
export async function replay({ release, segments, stopAt, onProgress }: ReplayOptions): Promise<Report> {
  const number = native.openReplay(makeError, JSON.stringify({ release, segments, stop_at: stopAt }))
  try {
    while (native.stepReplay(makeError, number, SLICE) !== 0) {
      if (onProgress) {
        const { progress } = JSON.parse(native.reportReplay(makeError, number)) as Report
        onProgress(...progress)
      }
      await new Promise((done) => setImmediate(done))
    }
    return JSON.parse(native.reportReplay(makeError, number)) as Report
  } finally {
    native.closeReplay(makeError, number)
  }
}

/** The first line in which two texts differ. */
export function firstDifference(expected: string, got: string): string {
  const [a, b] = [expected.split('\n'), got.split('\n')]
  const at = a.findIndex((line, index) => line !== b[index])
  const line = at < 0 ? a.length : at
  return `line ${line + 1}:\n  expected ${a[line] ?? '(the end)'}\n  got      ${b[line] ?? '(the end)'}`
}
