/** Runs a Python program under the checker, and reads the reports. */

import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'

import type {
  AbortSignalLike,
  BlockOwner as Owner,
  CodePlace as Place,
  CheckFinding as Finding,
  CheckedProcess as Process,
  Check,
} from '../index.js'
import type { Interpreter } from './interpreters.js'
import { makeFolder, remove } from './temporary.js'
import { checker } from './tools.js'
import { UnsaidFile } from './unsaid.js'
import { children, isRunning, relatives, run, settled, type RecordOptions } from './recording.js'

export type {
  BlockOwner as Owner,
  CodePlace as Place,
  FaultKind as Kind,
  CheckFinding as Finding,
  CheckedProcess as Process,
  Check,
} from '../index.js'

/** Runs a program under the checker. */
export async function check(
  interpreter: Pick<Interpreter, 'path'>,
  program: readonly string[],
  stdout: RecordOptions['stdout'],
  signal?: AbortSignalLike,
): Promise<Check> {
  const folder = makeFolder('obmalloc-check-')
  const report = join(folder, 'report')
  const unsaid = new UnsaidFile()
  try {
    const { ended, pid } = await run(interpreter, { program, stdout, ...(signal ? { signal } : {}) }, checker(), {
      OBMALLOC_CHECK: report,
      ...unsaid.variables,
    })
    let reports: ReturnType<typeof readReports> = []
    await settled(() => {
      // Processes first, then reports: a process that ends in between has written its report.
      const alive = relatives(`OBMALLOC_CHECK=${report}`)
      reports = readReports(report, pid, alive)
      reports.push(...alive.filter((pid) => !reports.some(({ process }) => process.pid === pid)).map((pid) => silent(pid, null)))
      reports.push(...unsaid.read().map(({ pid, reason }) => silent(pid, `its report cannot be made: ${reason}`)))
      return reports.some(({ process }) => process.running)
    })
    return { findings: merged(reports.flatMap(({ findings }) => findings)), processes: processesOf(reports), ended }
  } finally {
    remove(folder)
    unsaid.remove()
  }
}

/** A process that has written no report: it was started a moment ago, or could not write one. */
function silent(pid: number, failed: string | null): { process: Process; findings: Finding[] } {
  const running = failed === null
  const process = { pid, argv: [], version: '', complete: false, running, failed, lost: [], replacedBy: null }
  return { process, findings: [] }
}

function readReports(
  path: string,
  pid: number | undefined,
  alive: readonly number[],
): { process: Process; findings: Finding[] }[] {
  if (!existsSync(path)) return []
  return [path, ...children(path)].map((report) => {
    const number = report === path ? pid : /\.(\d+)/.exec(report.slice(path.length))?.[1]
    const isAlive = alive.includes(Number(number)) || isRunning(Number(number))
    return readReport(report, alive) ?? silent(Number(number), isAlive ? null : 'its report is empty')
  })
}

interface Header {
  pid: number
  argv: string[]
  python: string
  freeThreaded: boolean
  failed: string | null
}

/** A line of a report. It names the counter of its occurrences. */
type Line = { finding: number; counter: number } & (
  | Omit<Finding, 'count' | 'sizes' | 'origins'>
  | { size: number }
  | { origin: Place }
)

/** A finding while its lines are read. */
interface Parts extends Omit<Finding, 'count'> {
  count: number
  readonly sizes: (readonly [size: number, count: number])[]
  readonly origins: (Place & { readonly count: number })[]
}

/** Reads one process's report: lines of JSON, and the counters beside it. `null` when there is none in the file. */
function readReport(path: string, alive: readonly number[]): { process: Process; findings: Finding[] } | null {
  // A process that was killed can leave half a line.
  const [head, ...lines] = readFileSync(path, 'utf8').split('\n').slice(0, -1)
  if (head === undefined) return null
  const header = JSON.parse(head) as Header
  const counters = existsSync(`${path}.counts`) ? readFileSync(`${path}.counts`) : Buffer.alloc(0)
  const findings: Parts[] = []
  // A process that could not be checked has only a header.
  let complete = header.freeThreaded || Number(header.python.split('.')[1]) < 8
  let lost: Owner[] = ['raw', 'mem', 'obj']
  let replacedBy: string | null = null
  for (const text of lines) {
    const line = JSON.parse(text) as Line | { end?: true; lost: Owner[]; by: string | null }
    if ('lost' in line) {
      complete ||= line.end === true
      lost = line.lost
      replacedBy = line.by
      continue
    }
    const { finding: number, counter, ...rest } = line
    const at = counter * BigUint64Array.BYTES_PER_ELEMENT
    const count = at < counters.length ? Number(counters.readBigUInt64LE(at)) : 0
    // It was killed before it could count.
    if (count === 0) continue
    if ('size' in rest) findings[number]?.sizes.push([rest.size, count])
    else if ('origin' in rest) findings[number]?.origins.push({ ...rest.origin, count })
    else findings[number] = { ...rest, count, sizes: [], origins: [] }
  }
  const { pid, argv, python: version, failed } = header
  const running = !complete && failed === null && (alive.includes(pid) || isRunning(pid))
  const process = { pid, argv, version, complete, running, failed, lost, replacedBy }
  return { process, findings: Object.values(findings) }
}

/** The processes of the reports. A process that went on as another program has several reports; the last one describes it. */
function processesOf(reports: readonly { readonly process: Process }[]): Process[] {
  return grouped(reports, ({ process: { pid } }) => [pid]).map((same) => ({
    ...same.at(-1)!.process,
    complete: same.every(({ process: { complete } }) => complete),
    running: same.some(({ process: { running } }) => running),
    lost: [...new Set(same.flatMap(({ process: { lost } }) => lost))],
    replacedBy: same.map(({ process }) => process.replacedBy).find((by) => by !== null) ?? null,
    failed: same.map(({ process }) => process.failed).find((reason) => reason !== null) ?? null,
  }))
}

/** Adds up the findings of several processes at the same site. */
function merged(findings: readonly Finding[]): Finding[] {
  const sum = (group: readonly { readonly count: number }[]) => group.reduce((all, { count }) => all + count, 0)
  const place = ({ function: name, module, offset }: Place) => [name, module, offset]
  const groups = grouped(findings, (finding) => [finding.kind, finding.call, finding.allocated, finding.used, ...place(finding)])
  const all = groups.map((group): Finding => {
    const origins = grouped(
      group.flatMap((finding) => finding.origins),
      place,
    )
    const sizes = grouped(
      group.flatMap((finding) => finding.sizes),
      ([size]) => [size],
    )
    return {
      ...group[0]!,
      count: sum(group),
      sizes: sizes.map((same) => [same[0]![0], sum(same.map(([, count]) => ({ count })))] as const).sort(([a], [b]) => a - b),
      origins: origins.map((same) => ({ ...same[0]!, count: sum(same) })).sort((a, b) => b.count - a.count),
    }
  })
  return all.sort((a, b) => b.count - a.count)
}

/** The items in groups of those that have the same key, in order of appearance. */
function grouped<T>(items: readonly T[], keyOf: (item: T) => unknown[]): T[][] {
  const groups = new Map<string, T[]>()
  for (const item of items) {
    const key = JSON.stringify(keyOf(item))
    const group = groups.get(key)
    if (group) group.push(item)
    else groups.set(key, [item])
  }
  return [...groups.values()]
}
