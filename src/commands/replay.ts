/** `obmalloc replay`: makes a recorded process's calls again and compares every answer. */

import { findMoment } from '../moments.js'
import { recordedRelease } from '../release.js'
import { firstDifference, replay, type Report } from '../replaying.js'
import { columns, grouped, paint, Progress, say } from '../terminal.js'
import { readHeader, segments, type TraceHeader } from '../trace.js'
import { UsageError } from '../usage.js'
import type { Release } from '../../index.js'

export interface ReplayCommandOptions {
  readonly release?: Release
  readonly operation?: number
  readonly at?: string
  readonly stats?: boolean
  readonly json?: boolean
}

export async function replayCommand(paths: string[], options: ReplayCommandOptions): Promise<number> {
  if (options.at !== undefined && options.operation !== undefined)
    throw new UsageError('expected --at or --operation, but got both')
  let exact = true
  for (const path of paths) {
    const header = readHeader(path)
    const release = options.release ?? recordedRelease(path, header)
    const progress = new Progress()
    const onProgress = (done: number, total: number): void =>
      progress.update(`${path}: ${Math.round((100 * done) / Math.max(total, 1))} %`)
    const parts = segments(path)
    const [moment, report] = await (async () => {
      const moment = options.at === undefined ? null : await findMoment(parts, options.at, onProgress)
      const operation = moment?.event ?? options.operation
      // To show one operation, the trace is replayed up to and including it.
      const stopAt = operation === undefined ? {} : { stopAt: operation + 1 }
      return [moment, await replay({ release, segments: parts, ...stopAt, onProgress })] as const
    })().finally(() => progress.done())
    exact &&= report.exact
    const failed = header.failed ?? null
    if (options.json)
      process.stdout.write(`${JSON.stringify({ path, python: header.python, release, failed, at: moment, ...report })}\n`)
    else {
      show(path, header, report, options.stats ?? (moment !== null || options.operation !== undefined))
      if (report.mismatch === null && options.operation !== undefined && options.operation >= report.events)
        say(`the trace has no operation ${options.operation}: it holds ${report.events}, counted from 0, and all were compared`)
    }
  }
  return exact ? 0 : 4
}

function show(path: string, { python, failed }: TraceHeader, report: Report, withStats: boolean): void {
  const other = leftOut(report)
  const rows = [
    ['recorded by', `CPython ${python}`],
    ['events', grouped(report.events)],
    ['calls on mem and obj', grouped(report.calls)],
    ['addresses matched', `${grouped(report.matched)} of ${grouped(report.addresses)}`],
    ['arenas taken', grouped(report.arenasTaken)],
    ['arenas released', grouped(report.arenasReleased)],
    ...(report.trimmedPools === 0 ? [] : [['pools trimmed', grouped(report.trimmedPools)]]),
    [
      'allocated blocks',
      report.blocks ? equality(report.blocks[0] === report.blocks[1]) : other ? 'not compared' : 'not recorded',
    ],
    ['statistics', report.stats ? equality(report.stats[0] === report.stats[1]) : 'not recorded'],
    ['million events a second', (report.events / report.seconds / 1e6).toFixed(1)],
  ]
  const verdict = report.exact ? paint('green', 'exact', process.stdout) : paint('red', 'not exact', process.stdout)
  process.stdout.write(
    `${path}: ${verdict}\n${columns(rows)
      .map((line) => `  ${line}\n`)
      .join('')}`,
  )
  if (other) say(other)
  if (report.stopped) say(`stopped after operation ${report.events - 1}, as it was told to: what comes later was not compared`)
  for (const problem of problems(report, failed)) say(problem)
  if (failed) say(`the recorder could not write more than this: ${failed}`)
  if (withStats) process.stdout.write(`\n${report.statsNow}`)
}

function equality(equal: boolean): string {
  return equal ? 'equal' : paint('red', 'not equal', process.stdout)
}

/** The calls that a replay left out because they are not the main interpreter's, in words; empty if there are none. */
export function leftOut({ otherInterpreters, otherCalls }: Report): string | undefined {
  if (otherInterpreters === 0) return undefined
  const others = otherInterpreters === 1 ? 'another interpreter' : `${grouped(otherInterpreters)} other interpreters`
  return `left out: ${grouped(otherCalls)} calls of ${others}, which had allocators of their own; CPython counts the blocks of all of them together`
}

/** What is wrong with a replay, in full. `failed` is why the recorder could not write more. */
export function problems(report: Report, failed?: string | null): string[] {
  const found: string[] = []
  const { mismatch, stats, blocks, hooksLost, stopped } = report
  if (mismatch) found.push(mismatch.text)
  if (stats && stats[0] !== stats[1]) found.push(`the statistics differ in ${firstDifference(...stats)}`)
  if (blocks && blocks[0] !== blocks[1]) found.push(`allocated blocks: expected ${blocks[0]}, got ${blocks[1]}`)
  // Nothing is replayed after a mismatch.
  if (mismatch || stopped) return found
  if (hooksLost !== 0) {
    const lost = ['raw', 'mem', 'obj'].filter((_, domain) => hooksLost & (1 << domain)).join(', ')
    const unknown = `the recorder's allocators were replaced in the recorded process: calls on ${lost} are missing`
    found.push(...(report.remarks.length > 0 ? report.remarks : [unknown]))
  }
  if (report.addresses === 0 && !report.exact) found.push('the trace holds no call that pymalloc served: nothing was compared')
  if (!report.ended && !failed) found.push('the recorded process did not end in an orderly way: the last calls may be missing')
  return found
}
