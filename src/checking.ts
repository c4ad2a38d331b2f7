/** Running a Python program under the checker, and what its reports say. */

import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import type { Interpreter } from './interpreters.js'
import { children, run, type RecordOptions } from './recording.js'

export type DomainName = 'raw' | 'mem' | 'obj'

/** A place in C code. */
export interface Place {
  /** `null` where the module names none. */
  readonly function: string | null
  /** The path of the executable or library; `null` for code that is in none, or when it could not be told. */
  readonly module: string | null
  /** Bytes from the module's beginning to where the call returns; the address itself when there is no module. */
  readonly offset: number | null
}

/**
 * What can be wrong with an address that is freed or reallocated. `wrong-domain`: a live block of another domain. `interior`: it lies inside a
 * live block. `freed-before`: a block began there, was freed, and no domain has given the address out since; C's `malloc` may have, unless it
 * was a block of mem or obj of 512 bytes or less. `foreign`: no domain ever gave it out.
 */
export type Kind = 'wrong-domain' | 'interior' | 'freed-before' | 'foreign'

/** Occurrences of one fault in one place. */
export interface Finding extends Place {
  readonly kind: Kind
  readonly call: 'free' | 'realloc'
  /** The domain of the block in question; `null` when there is none. */
  readonly allocated: DomainName | null
  /** The domain that was called. */
  readonly used: DomainName
  readonly count: number
  /** Sizes asked for, bytes, and how many blocks of each; empty when there is no block. */
  readonly sizes: readonly (readonly [size: number, count: number])[]
  /** Who allocated the blocks; with `freed-before`, who freed them first. */
  readonly origins: readonly (Place & { readonly count: number })[]
}

/** A process that was looked at. */
export interface Process {
  readonly pid: number
  readonly argv: readonly string[]
  readonly version: string
  /** Whether it came to its end. One that was killed did not: what it found last may be missing, and up to half of the counts. */
  readonly complete: boolean
  /** Domains of which not all calls were seen, because the allocators were replaced. All of them in free-threaded builds. */
  readonly lost: readonly DomainName[]
}

export interface Check {
  /** The findings of all processes, most frequent first. */
  readonly findings: Finding[]
  /** The processes, the first one first: none when that was not looked at. */
  readonly processes: Process[]
  /** How the program ended: an exit code, or the name of a signal. */
  readonly ended: number | NodeJS.Signals
}

/** Runs a program and looks. */
export async function check(
  interpreter: Pick<Interpreter, 'path'>,
  program: readonly string[],
  stdout: RecordOptions['stdout'],
): Promise<Check> {
  const folder = mkdtempSync(join(tmpdir(), 'obmalloc-check-'))
  const report = join(folder, 'report')
  try {
    const ended = await run(interpreter, { program, stdout }, { OBMALLOC_CHECK: report })
    const reports = existsSync(report) ? [report, ...children(report)].flatMap(readReport) : []
    return { findings: merged(reports.flatMap(({ findings }) => findings)), processes: processesOf(reports), ended }
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

interface Header {
  pid: number
  argv: string[]
  python: string
  freeThreaded: boolean
}

/** Reads one process's report: lines of JSON, of which the last one with a finding's number counts. */
function readReport(path: string): { process: Process; findings: Finding[] }[] {
  // A process that was killed can leave half a line.
  const [head, ...lines] = readFileSync(path, 'utf8').split('\n').slice(0, -1)
  if (head === undefined) return []
  const header = JSON.parse(head) as Header
  const findings = new Map<number, Finding>()
  let end: { lost: DomainName[] } | null = null
  for (const line of lines) {
    const { finding: number, ...rest } = JSON.parse(line) as { finding?: number }
    if (number === undefined) end = rest as { lost: DomainName[] }
    else findings.set(number, rest as Finding)
  }
  const { pid, argv, python: version, freeThreaded } = header
  const lost: DomainName[] = freeThreaded ? ['raw', 'mem', 'obj'] : (end?.lost ?? [])
  return [{ process: { pid, argv, version, complete: freeThreaded || end !== null, lost }, findings: [...findings.values()] }]
}

/** The processes of the reports. One that went on as another program has several: then it is what it was last. */
function processesOf(reports: readonly { readonly process: Process }[]): Process[] {
  return grouped(reports, ({ process: { pid } }) => [pid]).map((same) => ({
    ...same.at(-1)!.process,
    complete: same.every(({ process: { complete } }) => complete),
    lost: [...new Set(same.flatMap(({ process: { lost } }) => lost))],
  }))
}

/** Adds up what several processes found in the same place. */
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
