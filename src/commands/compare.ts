/**
 * `obmalloc compare`: the main job. Records a program in real CPythons, replays it here, and compares everything; and runs random programs
 * for the collector on both sides, if asked to.
 */

import { existsSync, readdirSync } from 'node:fs'
import { basename, join } from 'node:path'

import type { Release } from '../../index.js'
import { drive, type Timing } from '../driving.js'
import { expectScript, findInterpreters, type Interpreter, type Unusable } from '../interpreters.js'
import { goldenAnswers, prove, proveGolden, type Proof } from '../proving.js'
import { record } from '../recording.js'
import { recordedRelease } from '../release.js'
import { replay, type Report } from '../replaying.js'
import { ENDING, exitCode, isTaken } from '../signals.js'
import { commandOn, grouped, paint, Progress, say } from '../terminal.js'
import { makeFolder, remove, removeAll } from '../temporary.js'
import { golden, workload } from '../tools.js'
import { readHeader, segments } from '../trace.js'
import { UsageError } from '../usage.js'
import { leftOut, problems } from './replay.js'

export interface CompareOptions {
  readonly python: string[]
  readonly all?: boolean
  readonly json?: boolean
  readonly keep?: string
  readonly gc?: boolean
}

/** One line of the table. */
interface Row {
  readonly version: string
  readonly release: Release
  /** The executable, or the golden trace. */
  readonly from: string
  readonly trace: string
  /** Number of the process that the recorded one started, where this is about such a one. */
  readonly child?: number
  readonly report: Report
  /** Nanoseconds a call in CPython and here, if they were measured. */
  readonly timing: Timing | null
  readonly ended: number | string
  /** What the recording lacks, in words, unless a signal ended it. */
  readonly missing: readonly string[]
}

/** One line of the collector's table. */
interface CollectorRow extends Proof {
  readonly version: string
  /** The executable, or the golden answers. */
  readonly from: string
}

/** Whether a signal has told us to end. */
interface Stop {
  told: string | null
}

/** Random programs for the collector of each CPython. */
const PROGRAMS = 20_000
/** How often each side runs the recorded calls for the timing. */
const ROUNDS = 5

export async function compareCommand(program: string[], options: CompareOptions): Promise<number> {
  const folder = options.keep ?? makeFolder('obmalloc-')
  let asked: NodeJS.Signals | null = null
  const stopped = (signal: string): number => {
    say(`stopped by ${signal}: not all was compared`)
    return exitCode(signal)
  }
  // A process that we run gets the signal, and ends first. Where there is none, this does.
  const leave = (signal: NodeJS.Signals): void => {
    asked = signal
    if (isTaken()) return
    removeAll()
    process.exit(stopped(signal))
  }
  for (const signal of ENDING) process.on(signal, leave)
  try {
    const { rows, collector, unusable, told } = await compare(program, options, folder)
    if (options.json) process.stdout.write(`${JSON.stringify({ rows, ...(options.gc ? { collector } : {}), unusable })}\n`)
    for (const { path, reason } of unusable) say(`left out: ${path}: ${reason}`)
    for (const row of rows) {
      const other = leftOut(row.report)
      const remarks = new Set([...(other ? [other] : []), ...problems(row.report, readHeader(row.trace).failed), ...row.missing])
      for (const remark of remarks) say(`${name(row)}: ${remark}`)
      if (row.ended !== 0) say(`${name(row)}: the program ended with ${row.ended}`)
    }
    const failed = rows.filter((row) => !row.report.exact || row.missing.length > 0)
    for (const row of failed.filter((row) => row.report.mismatch)) {
      if (options.keep) say(`to see it again: ${commandOn(`replay --operation ${row.report.mismatch!.operation}`, row.trace)}`)
      else say('to see it again, run with --keep FOLDER, then: obmalloc replay --operation NUMBER TRACE')
    }
    const diverged = collector.filter((row) => row.divergence !== null)
    for (const { version, from, divergence } of diverged) say(`CPython ${version} (${from}): ${divergence}`)
    const code = told === null ? 0 : stopped(told)
    return failed.length + diverged.length > 0 ? 4 : code
  } catch (error) {
    if (asked !== null) return stopped(asked)
    throw error
  } finally {
    for (const signal of ENDING) process.off(signal, leave)
    if (!options.keep) remove(folder)
  }
}

async function compare(
  program: string[],
  options: CompareOptions,
  folder: string,
): Promise<{ rows: Row[]; collector: CollectorRow[]; unusable: Unusable[]; told: string | null }> {
  expectScript(program)
  const { usable, unusable } = findInterpreters(options.python)
  if (options.python.length > 0 && unusable.length > 0) {
    throw new UsageError(unusable.map(({ path, reason }) => `${path} cannot be used: ${reason}`).join('\n'))
  }
  const chosen = options.all || options.python.length > 0 ? usable : preferred(usable)
  const table = new TraceTable(options.json ?? false)
  const rows: Row[] = []
  if (chosen.length === 0) {
    if (program.length > 0) throw new UsageError('expected a CPython to run the program, but found none that can be used')
    if (!existsSync(golden())) throw new UsageError('expected a CPython to compare with, but found none that can be used')
    say('no CPython was found that can be used: comparing with the golden traces, which real CPythons left')
    for await (const row of goldenRows()) rows.push(table.add(row))
  }
  const stop: Stop = { told: null }
  for (const interpreter of chosen) {
    if (stop.told !== null) break
    for await (const row of rowsOf(interpreter, program, folder, stop)) rows.push(table.add(row))
  }
  const collector: CollectorRow[] = []
  if (options.gc && stop.told === null) {
    const collectorTable = new CollectorTable(options.json ?? false)
    for await (const row of collectorRows(chosen)) collector.push(collectorTable.add(row))
  }
  return { rows, collector, unusable: options.all ? unusable : [], ...stop }
}

/** Compares the collectors of these CPythons on random programs, which are new every time; without a CPython, uses recorded answers. */
async function* collectorRows(interpreters: Interpreter[]): AsyncGenerator<CollectorRow> {
  if (interpreters.length === 0) {
    for (const path of goldenAnswers()) {
      const { version, proof } = proveGolden(path)
      yield { version, from: basename(path), ...proof }
    }
  }
  for (const interpreter of interpreters) {
    const progress = new Progress()
    const { version, path: from } = interpreter
    const told = (done: number) => progress.update(`CPython ${version}: collector, ${percent(done, PROGRAMS)}`)
    const proof = await prove(interpreter, Date.now(), PROGRAMS, told).finally(() => progress.done())
    yield { version, from, ...proof }
  }
}

/** Without `--all`: the `python3` of the search path, or the newest if there is none. */
function preferred(usable: Interpreter[]): Interpreter[] {
  const { usable: onPath } = findInterpreters(['python3'])
  return (onPath.length > 0 ? onPath : usable.slice(-1)).slice(0, 1)
}

async function* rowsOf(interpreter: Interpreter, program: string[], folder: string, stop: Stop): AsyncGenerator<Row> {
  const progress = new Progress()
  const { version, release, path: from } = interpreter
  progress.update(`CPython ${version}: recording`)
  const trace = join(folder, `${version}-${from.replaceAll(/[^\w.]+/g, '-').slice(-40)}.trace`)
  const bundled = program.length === 0
  const { children, ended, events, complete, remarks, told } = await record(interpreter, {
    program: bundled ? [workload('mixed')] : program,
    trace,
    stdout: bundled ? 'ignore' : 'stderr',
  }).finally(() => progress.done())
  stop.told = told
  if (events === 0) throw new Error(remarks.join('\n'))
  const replayed = (path: string, release: Release) =>
    replay({
      release,
      segments: segments(path),
      onProgress: (done, total) => progress.update(`CPython ${version}: replaying, ${percent(done, total)}`),
    }).finally(() => progress.done())
  const report = await replayed(trace, release)
  let timing: Timing | null = null
  if (report.exact && told === null) {
    progress.update(`CPython ${version}: timing`)
    const timed = drive<Record<string, Timing>>(interpreter, 'bench', [release, ROUNDS, [trace], false])
    timing = Object.values(await timed.finally(() => progress.done()))[0] ?? null
  }
  const missing = complete || typeof ended === 'string' ? [] : remarks
  yield { version, release, from, trace, report, timing, ended, missing }
  for (const [index, path] of children.entries()) {
    const header = readHeader(path)
    const childRelease = recordedRelease(path, header)
    const childReport = await replayed(path, childRelease)
    yield {
      version: header.python,
      release: childRelease,
      from,
      trace: path,
      child: index + 1,
      report: childReport,
      timing: null,
      ended: 0,
      missing: [],
    }
  }
}

async function* goldenRows(): AsyncGenerator<Row> {
  const traces = readdirSync(golden()).filter((file) => file.endsWith('.trace'))
  for (const file of traces.sort((a, b) => a.localeCompare(b, 'en', { numeric: true }))) {
    const trace = join(golden(), file)
    const header = readHeader(trace)
    const release = recordedRelease(trace, header)
    const report = await replay({ release, segments: segments(trace) })
    yield { version: header.python, release, from: file, trace, report, timing: null, ended: 0, missing: [] }
  }
}

function percent(done: number, total: number): string {
  return `${Math.round((100 * done) / Math.max(total, 1))} %`
}

function name({ version, from, child }: Row): string {
  return child === undefined ? `CPython ${version} (${from})` : `CPython ${version} (${from}), process ${child} that it started`
}

/** A table, printed line by line as the rows come. */
class Table {
  readonly #silent: boolean
  readonly #after: boolean
  readonly #headings: readonly (readonly [heading: string, width: number])[]
  #begun = false

  /** `after` is whether another table stands above. */
  constructor(silent: boolean, after: boolean, headings: readonly (readonly [heading: string, width: number])[]) {
    this.#silent = silent
    this.#after = after
    this.#headings = headings
  }

  protected print(cells: string[], good: boolean, from: string): void {
    if (this.#silent) return
    if (!this.#begun) {
      if (this.#after) process.stdout.write('\n')
      const headings = this.#headings.map(([heading]) => heading)
      this.#line(headings, 'bold')
      this.#begun = true
    }
    this.#line(cells, good ? null : 'red', `  ${from}`)
  }

  #line(cells: string[], style: 'bold' | 'red' | null, tail = ''): void {
    const padded = cells.map((cell, index) => {
      const [, width] = this.#headings[index]!
      return index === 0 ? cell.padEnd(width) : cell.padStart(width)
    })
    const line = padded.join('  ')
    process.stdout.write(`${style ? paint(style, line, process.stdout) : line}${tail}\n`)
  }
}

class TraceTable extends Table {
  constructor(silent: boolean) {
    super(silent, false, [
      ['CPython', 9],
      ['events', 11],
      ['arenas', 13],
      ['addresses matched', 23],
      ['statistics', 10],
      ['Mevent/s', 8],
      ['ns there', 9],
      ['ns here', 9],
      ['ratio', 5],
    ])
  }

  add(row: Row): Row {
    const { report, timing, child } = row
    const cells = [
      child === undefined ? row.version : ` +${child}`,
      grouped(report.events),
      `${report.arenasTaken} / -${report.arenasReleased}`,
      `${grouped(report.matched)} of ${grouped(report.addresses)}`,
      report.stats
        ? report.stats[0] === report.stats[1] && report.blocks?.[0] === report.blocks?.[1]
          ? 'equal'
          : 'NOT EQUAL'
        : '-',
      (report.events / report.seconds / 1e6).toFixed(1),
      timing ? timing[0].toFixed(2) : '-',
      timing ? timing[1].toFixed(2) : '-',
      timing ? timing[2].toFixed(2) : '-',
    ]
    this.print(cells, report.exact, row.from)
    return row
  }
}

class CollectorTable extends Table {
  constructor(silent: boolean) {
    super(silent, true, [
      ['CPython', 9],
      ['object graphs', 13],
      ['collector events', 16],
      ['logs', 9],
    ])
  }

  add(row: CollectorRow): CollectorRow {
    const logs = row.divergence === null ? 'equal' : 'NOT EQUAL'
    this.print([row.version, grouped(row.programs), grouped(row.events), logs], row.divergence === null, row.from)
    return row
  }
}
