/** Recordings from TypeScript: what the commands do, as functions. */

import { rmSync } from 'node:fs'
import { join } from 'node:path'

import type { ReplayTraceOptions, ProgramOptions, RecordProgramOptions, Comparison, CompareProgramOptions } from '../index.js'
import { check as checked, type Check } from './checking.js'
import { diff as difference, type Difference, type DiffOptions } from './diff.js'
import { badArgument } from './errors.js'
import { type CallEvent, eventLines, type EventsOptions, type NoteEvent } from './events.js'
import { findInterpreters as found, type Found, interpreterOf } from './interpreters.js'
import { findMoment } from './moments.js'
import { record as recorded, type Recording } from './recording.js'
import { recordedRelease } from './release.js'
import { replay, type Report } from './replaying.js'
import { makeFolder, remove } from './temporary.js'
import { readHeader, segments, type TraceHeader } from './trace.js'
import { UsageError } from './usage.js'
import { type Configuration, whatIf, type WhatIf, type WhatIfOptions } from './what-if.js'
import * as wanted from './wanted.js'
import { inquire, type InquiryOptions, type Why } from './why.js'

export type { ReplayTraceOptions, ProgramOptions, RecordProgramOptions, Comparison, CompareProgramOptions } from '../index.js'

const { text, flag, count } = wanted
const ending = { signal: wanted.signal, onProgress: wanted.func }
const sizes = { arenaSize: count, poolSize: count, alignment: count, smallRequestThreshold: count }
const stdoutWord = wanted.word('inherit', 'ignore', 'stderr')

const expectProgram = wanted.list(text)
const expectInquiry = wanted.shape({ at: text, ...ending })
const expectEvents = wanted.shape({ from: count, to: count, size: count, address: text, site: text })
const expectReplay = wanted.shape({
  at: text,
  release: text,
  geometry: wanted.shape(sizes, ...Object.keys(sizes)),
  ...ending,
})
const expectConfigurations = wanted.list(
  wanted.shape({ release: text, arena: count, pool: count, threshold: count, apart: flag }),
)
const expectTrial = wanted.shape({
  at: text,
  allocators: wanted.list(text),
  apart: wanted.shape({ file: text, line: count }, 'file', 'line'),
  ...ending,
})
const running = { python: text, stdout: stdoutWord, signal: wanted.signal }
const expectRun = wanted.shape(running)
const expectRecording = wanted.shape(
  { ...running, trace: text, force: flag, stacks: count, every: count, types: flag, trim: text, env: wanted.every(text) },
  'trace',
)
const expectComparison = wanted.shape({ ...ending, python: wanted.list(text), stdout: stdoutWord })
const expectDiff = wanted.shape({ by: wanted.word('site', 'function', 'file', 'class'), ...ending })

export class Trace {
  readonly path: string
  readonly header: TraceHeader

  private constructor(path: string, header: TraceHeader) {
    this.path = path
    this.header = header
  }

  static async open(path: string): Promise<Trace> {
    text('path', path)
    return new Trace(path, readHeader(path))
  }

  async *events(options: EventsOptions = {}): AsyncGenerator<CallEvent | NoteEvent, void, void> {
    expectEvents('options', options)
    for await (const lines of eventLines(this.path, options))
      for (const line of lines.trimEnd().split('\n')) yield JSON.parse(line) as CallEvent | NoteEvent
  }

  async replay(options: ReplayTraceOptions = {}): Promise<Report> {
    expectReplay('options', options)
    const { release = recordedRelease(this.path, this.header), at, ...rest } = options
    const parts = segments(this.path)
    const stopAt = at === undefined ? {} : { stopAt: (await findMoment(parts, at, rest.onProgress, rest.signal)).event + 1 }
    return replay({ release, segments: parts, ...stopAt, ...rest })
  }

  async why(options: InquiryOptions = {}): Promise<Why> {
    expectInquiry('options', options)
    return (await inquire(this.path, options)).why
  }

  async whatIf(configurations: readonly Configuration[], options: Omit<WhatIfOptions, 'configurations'> = {}): Promise<WhatIf> {
    expectConfigurations('configurations', configurations)
    expectTrial('options', options)
    return whatIf(this.path, { ...options, configurations })
  }
}

function programOf(program: readonly string[]): readonly string[] {
  expectProgram('program', program)
  if (program.length === 0)
    throw new UsageError('expected a program: a script and its arguments, or -m and a module, or -c and code')
  return program
}

export async function record(program: readonly string[], options: RecordProgramOptions): Promise<Recording> {
  const command = programOf(program)
  expectRecording('options', options)
  const { python, stdout = 'inherit', stacks = 64, every = 100, types = true, ...others } = options
  return recorded(interpreterOf(python), { program: command, stdout, stacks, every, types, ...others })
}

export async function check(program: readonly string[], options: ProgramOptions = {}): Promise<Check> {
  const command = programOf(program)
  expectRun('options', options)
  const { python, stdout = 'inherit', signal } = options
  return checked(interpreterOf(python), command, stdout, signal)
}

export async function compare(program: readonly string[], options: CompareProgramOptions = {}): Promise<Comparison[]> {
  const command = programOf(program)
  expectComparison('options', options)
  const { python, stdout = 'ignore', signal, onProgress } = options
  signal?.throwIfAborted()
  const interpreters = python ? python.map((path) => interpreterOf(path)) : (await findInterpreters()).usable
  const folder = makeFolder('obmalloc-compare-')
  try {
    const comparisons: Comparison[] = []
    for (const [index, interpreter] of interpreters.entries()) {
      const trace = join(folder, `${index}.trace`)
      const stop = signal ? { signal } : {}
      const { ended, remarks, complete } = await recorded(interpreter, { program: command, trace, stdout, ...stop })
      const report = await replay({
        release: interpreter.release,
        segments: segments(trace),
        ...stop,
        onProgress: (done, total) => onProgress?.(interpreter.version, done, total),
      })
      comparisons.push({ interpreter, exact: report.exact && complete, report, ended, remarks })
      rmSync(trace)
    }
    return comparisons
  } finally {
    remove(folder)
  }
}

export async function findInterpreters(paths: readonly string[] = []): Promise<Found> {
  wanted.list(text)('paths', paths)
  return found(paths)
}

export async function diff(a: Trace | string, b: Trace | string, options: DiffOptions = {}): Promise<Difference> {
  const place = (name: string, side: Trace | string): string => {
    const path: unknown = typeof side === 'string' ? side : side?.path
    if (typeof path !== 'string') throw badArgument('ERR_INVALID_ARG_TYPE', name, 'a trace, or the path of one', side)
    return path
  }
  const [earlier, later] = [place('a', a), place('b', b)]
  expectDiff('options', options)
  return difference(earlier, later, options)
}
