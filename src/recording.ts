/** Runs a Python program under the recorder, which is also the checker. */

import { randomBytes } from 'node:crypto'
import { closeSync, openSync, readFileSync, readdirSync, realpathSync, statSync, unlinkSync } from 'node:fs'
import { basename, dirname, join, resolve } from 'node:path'
import process from 'node:process'
import { setTimeout } from 'node:timers/promises'

import type { AbortSignalLike, Recording } from '../index.js'
import type { Interpreter } from './interpreters.js'
import { ENDING, passingOn, take } from './signals.js'
import { Started } from './started.js'
import { recorder } from './tools.js'
import { isTraceOrEmpty, type Survey, survey } from './trace.js'
import { UnsaidFile } from './unsaid.js'
import { UsageError } from './usage.js'

export type { Recording } from '../index.js'

export interface RecordOptions {
  /** Python's arguments: a script and its arguments, or `-m module`, or `-c code`. */
  readonly program: readonly string[]
  /** Where the trace goes. */
  readonly trace: string
  /** Where the program's own output goes. */
  readonly stdout: 'inherit' | 'ignore' | 'stderr'
  /** Most frames of each request's stack, innermost first; none unless given. */
  readonly stacks?: number
  /** Milliseconds between two samples of the memory that the process has, at least; none unless given. */
  readonly every?: number
  /** Whether the types of live objects are told at marks and at the end; they are not unless given. */
  readonly types?: boolean
  /** Replaces a file there that is no trace; a trace, or an empty file, is replaced anyway. */
  readonly force?: boolean
  /** Trims the program meanwhile: the words of `OBMALLOC_TRIM`, such as `asked` or `every=30s,above=16M,idle,log`. */
  readonly trim?: string
  /** Ends the program, by SIGTERM. */
  readonly signal?: AbortSignalLike
  readonly env?: Record<string, string>
}

/** A trace that cannot be written. The program was not run. */
export class PlaceError extends Error {
  override readonly name = 'PlaceError'
}

/**
 * Records one run. Runs nothing and throws a {@link PlaceError} when the trace cannot be made where it is to be, a {@link UsageError} when
 * something other than a trace is there and may not be replaced.
 */
export async function record(interpreter: Pick<Interpreter, 'path'>, options: RecordOptions): Promise<Recording> {
  const path = resolve(options.trace)
  if (options.trim !== undefined) expectTrimWords(options.trim)
  tryPlace(path, options.force)
  const unsaid = openUnsaid(path)
  try {
    const begin = Date.now()
    const identity = randomBytes(16).toString('hex')
    const { ended, told, pid } = await run(interpreter, options, [recorder()], {
      ...options.env,
      OBMALLOC_TRACE: path,
      OBMALLOC_TRACE_RUN: identity,
      OBMALLOC_STACKS: String(options.stacks ?? 0),
      OBMALLOC_EVERY: String(options.every ?? 0),
      OBMALLOC_TYPES: options.types ? '1' : '0',
      ...(options.trim === undefined ? {} : { OBMALLOC_TRIM: options.trim }),
      ...unsaid.variables,
    })
    let traces: Traced[] = []
    let running: number[] = []
    await settled(() => {
      // Processes first, then traces: a process that ends in between has written its trace's end.
      const alive = relatives(`OBMALLOC_TRACE_RUN=${identity}`)
      traces = tracesOf(path, identity)
      const open = traces.filter(({ ended, failed }) => !ended && failed === null).map(({ header }) => header.pid)
      running = [...new Set([...alive.filter((number) => !isDone(number, traces)), ...open.filter(isRunning)])]
      return running.length > 0
    })
    const own = traces.find(({ header }) => header.pid === pid)
    const recorded = traces.filter((traced) => traced === own || unrecordable(traced) === null)
    const gaps = recorded.flatMap((traced) => gapsOf(traced, own, running, ended))
    // A trace without a whole header is no recording.
    const empty = [...(own ? [] : [path]), ...children(path)].filter((name) => isEmptySince(name, begin))
    for (const file of empty) gaps.push({ text: `nothing could be written to ${file}`, isLoss: true })
    for (const { pid: number, reason } of unsaid.read())
      gaps.push({ text: `process ${number} was not recorded: cannot write ${path}.${number}: ${reason}`, isLoss: true })
    if (!own && !empty.includes(path))
      gaps.unshift({
        text: `no trace is at ${path}: it was not made, or the program has removed or overwritten it`,
        isLoss: true,
      })
    for (const child of running.filter((number) => !traces.some(({ header }) => header.pid === number)))
      gaps.push({ text: `process ${child} still runs: it has made no call so far`, isLoss: true })
    for (const other of traces.filter((traced) => traced !== own)) {
      const reason = unrecordable(other)
      if (reason !== null) gaps.push({ text: `process ${other.header.pid} was not recorded: ${reason}`, isLoss: false })
    }
    return {
      trace: own?.path ?? path,
      children: recorded.filter((traced) => traced !== own).map((traced) => traced.path),
      ended,
      events: recorded.reduce((all, { events }) => all + events, 0),
      complete: !gaps.some(({ isLoss }) => isLoss),
      remarks: gaps.map(({ text }) => text),
      told,
    }
  } finally {
    unsaid.remove()
  }
}

/** The words that the recorder's trimmer takes; the recorder itself would say what is wrong when the program has run. */
const TRIM_WORD = /^(1|on|idle|asked|log|poison|(every|force)=\d+(ms|s|m)?|above=\d+([KMG]?(i?B)?)|)$/i

function expectTrimWords(text: string): void {
  if (!text.split(',').every((word) => TRIM_WORD.test(word.trim())))
    throw new UsageError(`expected every=30s, above=16M, idle, asked or log with commas between, but got ${text}`)
}

/** Checks whether a trace can be made at `path`. */
function tryPlace(path: string, force = false): void {
  try {
    // A symbolic link may lead to a file that is not there yet.
    const before = statSync(path, { throwIfNoEntry: false })
    if (before && !before.isFile()) throw new Error('expected a file, or none')
    closeSync(openSync(path, before ? 'r+' : 'a', 0o666))
    if (!before) unlinkSync(realpathSync(path))
  } catch (cause) {
    throw new PlaceError(`cannot write ${path}: ${(cause as Error).message}`, { cause })
  }
  // A trace can be recorded again. Any other file was not made by this command, and is kept.
  if (!force && !isTraceOrEmpty(path)) throw new UsageError(`${path} is there already, and is no trace; --force replaces it`)
}

/** The file that processes write to that cannot make a trace. */
function openUnsaid(path: string): UnsaidFile {
  try {
    return new UnsaidFile()
  } catch (cause) {
    throw new PlaceError(`cannot record into ${path}: ${(cause as Error).message}`, { cause })
  }
}

/** A trace of this run. */
interface Traced extends Survey {
  readonly path: string
}

/** The traces of the run with this identity, the first process's first. */
function tracesOf(path: string, identity: string): Traced[] {
  return [path, ...children(path)].flatMap((file) => {
    try {
      const found = survey(file)
      return found.header.run === identity ? [{ path: file, ...found }] : []
    } catch {
      // The file does not exist or is no trace, so it is not one of this run's.
      return []
    }
  })
}

/** Whether the process was recorded to its end: one of its traces has an end. */
function isDone(pid: number, traces: readonly Traced[]): boolean {
  const last = traces.findLast(({ header }) => header.pid === pid)
  return last !== undefined && ((last.ended && !last.executed) || last.failed !== null)
}

/** Files have their times from a clock that goes in steps, of 10 milliseconds at most. */
const STEP = 10

function isEmptySince(path: string, begin: number): boolean {
  const status = statSync(path, { throwIfNoEntry: false })
  return status?.size === 0 && status.mtimeMs > begin - STEP
}

/** Why a process could not be recorded at all, `null` when it could. */
function unrecordable({ header: { python, freeThreaded } }: Survey): string | null {
  if (freeThreaded) return 'a free-threaded CPython has no pymalloc'
  const [major, minor] = python.split('.').map(Number)
  return major === 3 && minor! < 8 ? `it is CPython ${python}, and 3.8 is the oldest that can be recorded` : null
}

interface Gap {
  readonly text: string
  /** Whether calls are missing that should have been recorded. */
  readonly isLoss: boolean
}

/** What is to be said of a trace. `own` is the trace that the program began with: it may have gone on as another program, with a trace of its own. */
function gapsOf(traced: Traced, own: Traced | undefined, running: readonly number[], ended: number | string): Gap[] {
  const { header, hooksLost, failed, remarks } = traced
  const who = traced === own ? '' : `process ${header.pid}: `
  const gaps: Gap[] = remarks.map((text) => ({ text: `${who}${text}`, isLoss: hooksLost !== 0 }))
  if (failed !== null) gaps.push({ text: `cannot write ${traced.path}: ${failed}; nothing more was recorded`, isLoss: true })
  else if (!traced.ended) {
    if (running.includes(header.pid)) gaps.push({ text: `process ${header.pid} still runs: its trace goes on`, isLoss: true })
    // A program may end the processes that it started.
    else if (header.pid !== own?.header.pid)
      gaps.push({ text: `process ${header.pid} did not end in an orderly way: it is recorded until then`, isLoss: false })
    else if (typeof ended === 'number') gaps.push({ text: 'the trace has no end: the last calls are missing', isLoss: true })
    else gaps.push({ text: 'the last calls before that are missing', isLoss: true })
  }
  return gaps
}

/** Runs a program with `libraries` preloaded, and waits for its end: an exit code, or the name of a signal. */
export async function run(
  interpreter: Pick<Interpreter, 'path'>,
  { program, stdout, signal }: Pick<RecordOptions, 'program' | 'stdout' | 'signal'>,
  libraries: readonly string[],
  variables: Record<string, string>,
): Promise<{ ended: number | string; told: NodeJS.Signals | null; pid: number | undefined }> {
  const env: NodeJS.ProcessEnv = { ...process.env }
  // Variables that an outer recorder or checker may have set.
  for (const task of ['TRACE', 'CHECK']) for (const rest of ['', '_PID', '_RUN']) delete env[`OBMALLOC_${task}${rest}`]
  for (const rest of ['STACKS', 'EVERY', 'UNSAID', 'TRIM', 'TRIM_REPORT']) delete env[`OBMALLOC_${rest}`]
  signal?.throwIfAborted()
  Object.assign(env, variables)
  const child = new Started(interpreter.path, program, {
    env,
    stdio: ['inherit', stdout === 'stderr' ? 2 : stdout, 'inherit'],
    preloaded: [...libraries, process.env['LD_PRELOAD']].filter(Boolean).join(' '),
  })
  const end = (): void => child.send('SIGTERM')
  signal?.addEventListener('abort', end, { once: true })
  const { result: ended, told } = await passingOn(child, child.ended).finally(() => signal?.removeEventListener('abort', end))
  signal?.throwIfAborted()
  return { ended, told, pid: child.pid }
}

/** Milliseconds for which processes that go on when the program has ended are waited for. */
const PATIENCE = 2000

/** Waits until `look` says that nothing goes on any more, or for some time, or until we are told to end. It looks at least once. */
export async function settled(look: () => boolean): Promise<void> {
  const told = new AbortController()
  const stop = (): void => told.abort()
  const leave = take(ENDING, stop)
  try {
    // A program's helper processes end a moment after it.
    const begin = performance.now()
    while (look() && performance.now() - begin <= PATIENCE && !told.signal.aborted) {
      await setTimeout(20, undefined, { signal: told.signal }).catch(stop)
    }
  } finally {
    leave()
  }
}

/** The CPythons that run with `assignment` in their environment, also one that was forked a moment ago and has written nothing yet. */
export function relatives(assignment: string): number[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .filter((pid) => {
      try {
        const environment = readFileSync(`/proc/${pid}/environ`, 'latin1').split('\0')
        // Any program can have the variable; a CPython's code is an executable or library of that name.
        return environment.includes(assignment) && /\/(lib)?python[^/]*$/m.test(readFileSync(`/proc/${pid}/maps`, 'latin1'))
      } catch {
        return false
      }
    })
    .map(Number)
}

/** Whether the process is there, with the recorder in it: its number may be another's by now. */
export function isRunning(pid: number): boolean {
  try {
    return readFileSync(`/proc/${pid}/maps`, 'utf8').includes(realpathSync(recorder()))
  } catch {
    return false
  }
}

/** What processes wrote beside `path`, of this run or of another. */
export function children(path: string): string[] {
  const isChild = (name: string) => name.startsWith(`${basename(path)}.`) && /\.\d+$/.test(name)
  return readdirSync(dirname(path))
    .filter(isChild)
    .sort()
    .map((name) => join(dirname(path), name))
}
