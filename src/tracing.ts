/** Recordings from TypeScript: what the commands do, as functions. */

import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import type { ReplayTraceOptions, ProgramOptions, RecordProgramOptions, Comparison, CompareProgramOptions } from '../index.js'
import { check as checked, type Check } from './checking.js'
import { diff as difference, type Difference, type DiffOptions } from './diff.js'
import { type CallEvent, eventLines, type EventsOptions, type NoteEvent } from './events.js'
import { findInterpreters as found, type Found, interpreterOf } from './interpreters.js'
import { findMoment } from './moments.js'
import { record as recorded, type Recording } from './recording.js'
import { recordedRelease } from './release.js'
import { replay, type Report } from './replaying.js'
import { readHeader, segments, type TraceHeader } from './trace.js'
import { UsageError } from './usage.js'
import { type Configuration, whatIf, type WhatIf, type WhatIfOptions } from './what-if.js'
import { inquire, type InquiryOptions, type Why } from './why.js'

export type { ReplayTraceOptions, ProgramOptions, RecordProgramOptions, Comparison, CompareProgramOptions } from '../index.js'

export class Trace {
  readonly path: string
  readonly header: TraceHeader

  private constructor(path: string, header: TraceHeader) {
    this.path = path
    this.header = header
  }

  static async open(path: string): Promise<Trace> {
    return new Trace(path, readHeader(path))
  }

  async *events(options: EventsOptions = {}): AsyncGenerator<CallEvent | NoteEvent, void, void> {
    for await (const lines of eventLines(this.path, options))
      for (const line of lines.trimEnd().split('\n')) yield JSON.parse(line) as CallEvent | NoteEvent
  }

  async replay(options: ReplayTraceOptions = {}): Promise<Report> {
    const { release = recordedRelease(this.path, this.header), at, ...rest } = options
    const parts = segments(this.path)
    const stopAt = at === undefined ? {} : { stopAt: (await findMoment(parts, at, rest.onProgress, rest.signal)).event + 1 }
    return replay({ release, segments: parts, ...stopAt, ...rest })
  }

  async why(options: InquiryOptions = {}): Promise<Why> {
    return (await inquire(this.path, options)).why
  }

  async whatIf(configurations: readonly Configuration[], options: Omit<WhatIfOptions, 'configurations'> = {}): Promise<WhatIf> {
    return whatIf(this.path, { ...options, configurations })
  }
}

function programOf(program: readonly string[]): readonly string[] {
  if (program.length === 0)
    throw new UsageError('expected a program: a script and its arguments, or -m and a module, or -c and code')
  return program
}

export async function record(
  program: readonly string[],
  { python, stdout = 'inherit', stacks = 64, every = 100, types = true, ...options }: RecordProgramOptions,
): Promise<Recording> {
  return recorded(interpreterOf(python), { program: programOf(program), stdout, stacks, every, types, ...options })
}

export async function check(
  program: readonly string[],
  { python, stdout = 'inherit', signal }: ProgramOptions = {},
): Promise<Check> {
  return checked(interpreterOf(python), programOf(program), stdout, signal)
}

export async function compare(program: readonly string[], options: CompareProgramOptions = {}): Promise<Comparison[]> {
  const { python, stdout = 'ignore', signal, onProgress } = options
  const interpreters = python ? python.map((path) => interpreterOf(path)) : (await findInterpreters()).usable
  const folder = mkdtempSync(join(tmpdir(), 'obmalloc-compare-'))
  try {
    const comparisons: Comparison[] = []
    for (const [index, interpreter] of interpreters.entries()) {
      const trace = join(folder, `${index}.trace`)
      const stop = signal ? { signal } : {}
      const { ended, remarks, complete } = await recorded(interpreter, { program: programOf(program), trace, stdout, ...stop })
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
    rmSync(folder, { recursive: true, force: true })
  }
}

export async function findInterpreters(paths: readonly string[] = []): Promise<Found> {
  return found(paths)
}

export async function diff(a: Trace | string, b: Trace | string, options: DiffOptions = {}): Promise<Difference> {
  const place = (side: Trace | string): string => (typeof side === 'string' ? side : side.path)
  return difference(place(a), place(b), options)
}
