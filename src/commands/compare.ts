/** `obmalloc compare`: the main job. Records a program in real CPythons, replays it here, and compares everything. */

import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import type { Release } from '../../index.js'
import { drive, type Timing } from '../driving.js'
import { findInterpreters, type Interpreter, type Unusable } from '../interpreters.js'
import { record } from '../recording.js'
import { replay, type Report } from '../replaying.js'
import { grouped, paint, Progress, say } from '../terminal.js'
import { golden, workload } from '../tools.js'
import { readHeader, releaseOf, segments } from '../trace.js'
import { UsageError } from '../usage.js'
import { problems } from './replay.js'

export interface CompareOptions {
  readonly python: string[]
  readonly all?: boolean
  readonly json?: boolean
  readonly keep?: string
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
  /** Nanoseconds a call in CPython and here; none where they were not measured. */
  readonly timing: Timing | null
  readonly ended: number | NodeJS.Signals
}

/** How often each side runs the recorded calls for the timing. */
const ROUNDS = 5

export async function compareCommand(program: string[], options: CompareOptions): Promise<number> {
  const folder = options.keep ?? mkdtempSync(join(tmpdir(), 'obmalloc-'))
  try {
    const { rows, unusable } = await compare(program, options, folder)
    if (options.json) process.stdout.write(`${JSON.stringify({ rows, unusable })}\n`)
    for (const { path, reason } of unusable) say(`left out: ${path}: ${reason}`)
    for (const row of rows) {
      for (const problem of problems(row.report)) say(`${name(row)}: ${problem}`)
      if (row.ended !== 0) say(`${name(row)}: the program ended with ${row.ended}`)
    }
    const failed = rows.filter((row) => !row.report.exact)
    for (const row of failed.filter((row) => row.report.mismatch)) {
      if (options.keep) say(`to see it again: obmalloc replay --operation ${row.report.mismatch!.operation} ${row.trace}`)
      else say('to see it again, run with --keep FOLDER, then: obmalloc replay --operation NUMBER TRACE')
    }
    return failed.length === 0 ? 0 : 4
  } finally {
    if (!options.keep) rmSync(folder, { recursive: true, force: true })
  }
}

async function compare(
  program: string[],
  options: CompareOptions,
  folder: string,
): Promise<{ rows: Row[]; unusable: Unusable[] }> {
  const { usable, unusable } = findInterpreters(options.python)
  if (options.python.length > 0 && unusable.length > 0) {
    throw new UsageError(unusable.map(({ path, reason }) => `${path} cannot be used: ${reason}`).join('\n'))
  }
  const chosen = options.all || options.python.length > 0 ? usable : preferred(usable)
  const table = new Table(options.json ?? false)
  const rows: Row[] = []
  if (chosen.length === 0) {
    if (program.length > 0) throw new UsageError('expected a CPython to run the program, but found none that can be used')
    say('no CPython was found that can be used: comparing with the golden traces, which real CPythons left')
    for await (const row of goldenRows()) rows.push(table.add(row))
  }
  for (const interpreter of chosen) {
    for await (const row of rowsOf(interpreter, program, folder)) rows.push(table.add(row))
  }
  return { rows, unusable: options.all ? unusable : [] }
}

/** Without `--all`: the `python3` of the search path, or else the newest. */
function preferred(usable: Interpreter[]): Interpreter[] {
  const { usable: onPath } = findInterpreters(['python3'])
  return (onPath.length > 0 ? onPath : usable.slice(-1)).slice(0, 1)
}

async function* rowsOf(interpreter: Interpreter, program: string[], folder: string): AsyncGenerator<Row> {
  const progress = new Progress()
  const { version, release, path: from } = interpreter
  progress.update(`CPython ${version}: recording`)
  const trace = join(folder, `${version}-${from.replaceAll(/[^\w.]+/g, '-').slice(-40)}.trace`)
  const bundled = program.length === 0
  const { children, ended } = await record(interpreter, {
    program: bundled ? [workload('mixed')] : program,
    trace,
    stdout: bundled ? 'ignore' : 'stderr',
  }).finally(() => progress.done())
  const replayed = (path: string, release: Release) =>
    replay({
      release,
      segments: segments(path),
      onProgress: (done, total) => progress.update(`CPython ${version}: replaying, ${percent(done, total)}`),
    }).finally(() => progress.done())
  const report = await replayed(trace, release)
  let timing: Timing | null = null
  if (report.exact) {
    progress.update(`CPython ${version}: timing`)
    const timed = drive<Record<string, Timing>>(interpreter, 'bench', [release, ROUNDS, [trace], false])
    timing = Object.values(await timed.finally(() => progress.done()))[0] ?? null
  }
  yield { version, release, from, trace, report, timing, ended }
  for (const [index, path] of children.entries()) {
    const header = readHeader(path)
    const childRelease = releaseOf(header)
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
    }
  }
}

async function* goldenRows(): AsyncGenerator<Row> {
  const traces = readdirSync(golden()).filter((file) => file.endsWith('.trace'))
  for (const file of traces.sort((a, b) => a.localeCompare(b, 'en', { numeric: true }))) {
    const trace = join(golden(), file)
    const header = readHeader(trace)
    const release = releaseOf(header)
    const report = await replay({ release, segments: segments(trace) })
    yield { version: header.python, release, from: file, trace, report, timing: null, ended: 0 }
  }
}

function percent(done: number, total: number): string {
  return `${Math.round((100 * done) / Math.max(total, 1))} %`
}

function name({ version, from, child }: Row): string {
  return child === undefined ? `CPython ${version} (${from})` : `CPython ${version} (${from}), process ${child} that it started`
}

/** The table, printed line by line as the rows come. */
class Table {
  static readonly #WIDTHS = [9, 11, 13, 23, 10, 8, 9, 9, 5]
  readonly #silent: boolean
  #begun = false

  constructor(silent: boolean) {
    this.#silent = silent
  }

  add(row: Row): Row {
    if (this.#silent) return row
    if (!this.#begun) {
      this.#line(
        ['CPython', 'events', 'arenas', 'addresses matched', 'statistics', 'Mevent/s', 'ns there', 'ns here', 'ratio'],
        'bold',
      )
      this.#begun = true
    }
    const { report, timing, child } = row
    this.#line(
      [
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
      ],
      report.exact ? null : 'red',
      `  ${row.from}`,
    )
    return row
  }

  #line(cells: string[], style: 'bold' | 'red' | null, tail = ''): void {
    const padded = cells.map((cell, index) =>
      index === 0 ? cell.padEnd(Table.#WIDTHS[0]!) : cell.padStart(Table.#WIDTHS[index]!),
    )
    const line = padded.join('  ')
    process.stdout.write(`${style ? paint(style, line, process.stdout) : line}${tail}\n`)
  }
}
