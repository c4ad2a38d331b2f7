/** Runs a Python program with the trimmer, and reads the reports of its processes. */

import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'

import type { Interpreter } from './interpreters.js'
import { relatives, run, settled, type RecordOptions } from './recording.js'
import { sizeOf } from './size.js'
import { makeFolder, remove } from './temporary.js'
import { recorder } from './tools.js'
import { UsageError } from './usage.js'

/** When memory is given back. */
export interface TrimWords {
  /** The shortest time between two trims: `500ms`, `30s`, `2m`. */
  readonly every?: string
  /** The fewest bytes to give back that are worth a trim: `16M`. */
  readonly above?: string
  /** As soon as the program sleeps. */
  readonly idle?: boolean
  /** Only when the program asks for it, with `sys.audit("obmalloc.trim")`. */
  readonly asked?: boolean
  /** A line on stderr for each trim, and one for the end of each process. */
  readonly log?: boolean
}

/** What one process gave back; of a process that went on as another program each program is one. Sizes in bytes. */
export interface TrimmedProcess {
  readonly pid: number
  /** Whether its end was seen; `false` when it was killed, went on as another program, or still runs. */
  readonly end: boolean
  /** Bytes of arenas at the end, by when CPython has given back what it can. */
  readonly held: number
  readonly trims: number
  readonly slices: number
  /** Pools that were given back, and bytes of theirs that were resident. */
  readonly pools: number
  readonly poolBytes: number
  /** Bytes by which C's `malloc_trim` made the process smaller. */
  readonly mallocBytes: number
  /** Pools that were taken again, and bytes that may have come back by that. */
  readonly returnedPools: number
  readonly returnedBytes: number
  /** Microseconds with the GIL: all, and those of the longest slice. */
  readonly micros: number
  readonly longestMicros: number
  /** Microseconds in `malloc_trim`, without the GIL. */
  readonly mallocMicros: number
  /** Bytes that the system did not take back, as of locked pages. */
  readonly refusedBytes: number
  /** Why nothing can be given back; `null` when it can. */
  readonly off: string | null
}

/** The value of `OBMALLOC_TRIM` for these words. Throws a {@link UsageError} for a wrong word. */
export function trimVariable({ every = '30s', above = '16M', idle, asked, log }: TrimWords): string {
  if (!/^\d+(ms|s|m)?$/.test(every)) throw new UsageError(`expected a time like 500ms, 30s or 2m, but got ${every}`)
  const flags = Object.entries({ idle, asked, log }).filter(([, wanted]) => wanted)
  return [`every=${every}`, `above=${sizeOf(above)}`, ...flags.map(([name]) => name)].join(',')
}

/** Runs a program with the trimmer. Returns how it ended, and what each process gave back, the first process first. */
export async function runTrimmed(
  interpreter: Pick<Interpreter, 'path'>,
  { program, stdout, words, signal }: Pick<RecordOptions, 'program' | 'stdout' | 'signal'> & { readonly words: TrimWords },
): Promise<{ ended: number | string; processes: TrimmedProcess[] }> {
  const variable = trimVariable(words)
  const folder = makeFolder('obmalloc-trim-')
  const report = join(folder, 'report')
  try {
    const { ended, pid } = await run(interpreter, { program, stdout, ...(signal ? { signal } : {}) }, [recorder()], {
      OBMALLOC_TRIM: variable,
      OBMALLOC_TRIM_REPORT: report,
    })
    await settled(() => relatives(`OBMALLOC_TRIM_REPORT=${report}`).length > 0)
    const processes = existsSync(report) ? processesOf(readFileSync(report, 'utf8')) : []
    const isFirst = (process: TrimmedProcess) => process.pid === pid
    return { ended, processes: [...processes.filter(isFirst), ...processes.filter((process) => !isFirst(process))] }
  } finally {
    remove(folder)
  }
}

/** The last line of each program in each process. A line includes all that came before it. */
function processesOf(text: string): TrimmedProcess[] {
  const last = new Map<string, TrimmedProcess>()
  // A process that was killed can leave half a line.
  for (const line of text.split('\n').slice(0, -1)) {
    const { began, ...process } = JSON.parse(line) as TrimmedProcess & { began: number }
    last.set(`${process.pid} ${began}`, process)
  }
  return [...last.values()]
}
