/** `obmalloc check`: runs a program in a CPython and lists what is freed or reallocated in another domain than it was allocated in, C's `free` included. */

import { basename } from 'node:path'

import { check, type Finding, type Owner, type Place, type Process } from '../checking.js'
import { interpreterFor } from '../interpreters.js'
import { columns, counted, grouped, paint, say } from '../terminal.js'

export interface CheckCommandOptions {
  readonly python?: string
  readonly json?: boolean
}

export async function checkCommand(program: string[], options: CheckCommandOptions): Promise<number> {
  const interpreter = interpreterFor(program, 'check', options.python)
  const result = await check(interpreter, program, 'stderr')
  const { findings, processes, ended } = result
  if (options.json) {
    process.stdout.write(`${JSON.stringify({ version: interpreter.version, path: interpreter.path, ...result })}\n`)
  } else if (findings.length > 0) {
    const [head, ...lines] = columns([['what', 'by', 'from', 'count', 'sizes'], ...findings.map(cells)], 3)
    process.stdout.write(`${paint('bold', head!, process.stdout)}\n${lines.map((line) => `${line}\n`).join('')}`)
  }
  const found = findings.reduce((all, { count }) => all + count, 0)
  const kinds = found === 0 ? 'nothing' : `${counted(found, 'fault')} in ${counted(findings.length, 'row')},`
  say(
    `CPython ${interpreter.version}: found ${kinds} in ${counted(processes.length, 'process', 'es')}; the program ended with ${ended}`,
  )
  for (const used of new Set(findings.filter(({ field }) => field !== null).map((finding) => finding.used)))
    say(
      `tp_doc of a heap type is freed as ${used} by this release: allocate it with ${used === 'obj' ? 'PyObject' : 'PyMem'}_Malloc`,
    )
  const gaps = processes.flatMap((process, index) => gapsOf(process, index === 0 ? ended : null))
  if (processes.length === 0) gaps.push('the program was not looked at: the checker found no CPython in it')
  for (const gap of gaps) say(gap)
  if (found > 0) return 1
  // A program may end the processes that it started. Only its own end is reported.
  const isWhole = ({ running, lost, failed }: Process) => !running && lost.length === 0 && failed === null
  const seen = processes[0]?.complete && processes.every(isWhole)
  return seen ? 0 : 4
}

/** A message about a process that was not checked from its beginning to its end. How it `ended` is known only for the first one. */
function gapsOf({ pid, complete, running, lost, replacedBy, failed }: Process, ended: number | string | null): string[] {
  const gaps = []
  if (running) gaps.push(`process ${pid} still runs: what it does from now on is not counted`)
  else if (failed !== null) gaps.push(`process ${pid}: not all that was found could be written: ${failed}`)
  else if (!complete) {
    const unseen = 'left in a way that cannot be seen'
    const how = ended === null ? `was killed, or ${unseen}` : typeof ended === 'number' ? unseen : 'was killed'
    gaps.push(`process ${pid} ${how}: it was looked at until then`)
  }
  const calls = `not all ${lost.map(named).join(', ')} calls were seen`
  if (lost.length > 0)
    gaps.push(`process ${pid}: ${replacedBy === null ? calls : `${replacedBy} replaced the checker's allocators: ${calls}`}`)
  return gaps
}

/** A row of the table. */
function cells(finding: Finding): string[] {
  const [origin, ...others] = finding.origins
  const from = origin ? placed(origin) : '-'
  return [
    whatOf(finding),
    placed(finding),
    others.length > 0 ? `${from}, and ${others.length} more` : from,
    grouped(finding.count),
    sizesOf(finding),
  ]
}

function whatOf({ kind, call, allocated, used, field }: Finding): string {
  const done = `${call === 'free' ? 'freed' : 'reallocated'} as ${used === 'c' ? "C's" : used}${field === null ? '' : ` (${field})`}`
  switch (kind) {
    case 'wrong-domain':
      return `${named(allocated)} block ${done}`
    case 'interior':
      return `address inside ${article(allocated)} ${done}`
    case 'freed-before':
      return `address that was ${article(allocated)} ${done}`
    case 'foreign':
      return `address of no domain ${done}`
  }
}

/** An owner's name in front of a noun. */
function named(owner: Owner | null): string {
  return owner === 'c' ? "C's" : `${owner}`
}

function article(owner: Owner | null): string {
  if (owner === 'c') return "a block of C's"
  return `${owner === 'obj' ? 'an' : 'a'} ${owner} block`
}

function placed({ function: name, module, offset }: Place): string {
  if (offset === null) return 'not known'
  const where = module === null ? 'no module' : basename(module)
  return `${name ?? `0x${offset.toString(16)}`} in ${where}`
}

/** The sizes in bytes: all of them if they are few, else the smallest and the largest. */
function sizesOf({ sizes }: Finding): string {
  if (sizes.length > 4) return `${sizes[0]![0]} to ${sizes.at(-1)![0]}`
  return sizes.map(([size]) => size).join(', ') || '-'
}
