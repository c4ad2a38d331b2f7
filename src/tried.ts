/** Other settings, tried on a recording for its answer: which of them would help, and which would not. */

import type { WhatIfOptions, WhatIfRow } from '../index.js'
import { pageAndTried } from './page.js'
import { recordedRelease } from './release.js'
import type { ReportData } from './report-data.js'
import { bytes } from './size.js'
import { say } from './terminal.js'
import { readHeader } from './trace.js'
import {
  ALLOCATORS,
  type AllocatorName,
  AS_RECORDED,
  callsFolder,
  findAllocator,
  measureAll,
  rowsOf,
  whatIfAt,
  withCalls,
} from './what-if.js'
import type { Answer, InquiryOptions, Why } from './why.js'

/** Arenas of other sizes. */
const SETTINGS = [256, 1024, 4096].map((kib) => ({ arena: kib * 1024 }))

/** Events up to which a recording's calls are made again for an answer, and in processes with other allocators. */
const MOST_EVENTS = 20_000_000

/** Events up to which they are made again for a page: they take a file of eight bytes each. */
const MOST_EVENTS_OF_PAGE = 250_000_000

/** A setting helps if it needs at most this part of the bytes held. */
const HELPS = 0.75

type OnProgress = NonNullable<WhatIfOptions['onProgress']>

/** Whether `why` tries other settings: only if the answer asks for help, and the recording is short enough. */
export function isWorthTrying({ at, findings }: Why): boolean {
  return at.event <= MOST_EVENTS && findings.some(({ rule }) => rule === 'pinned')
}

/** Tries arenas of other sizes, and the allocators that this system has, at the moment of an answer. */
export async function tryOthers(path: string, why: Why, onProgress: OnProgress): Promise<WhatIfRow[]> {
  try {
    const { rows, remarks } = await whatIfAt(path, why.at, { configurations: SETTINGS, allocators: present(), onProgress })
    remarks.forEach(say)
    return [...rows]
  } catch (error) {
    sayUntried((error as Error).message)
    return []
  }
}

/** The answer is given without what could not be tried. */
function sayUntried(reason: string): void {
  say(`other settings could not be tried: ${reason}`)
}

/** The page's data, and the same trials, of the same replay; allocators only up to {@link MOST_EVENTS}. */
export async function pageAndOthers(
  path: string,
  options: InquiryOptions,
  onProgress: OnProgress,
): Promise<{ page: ReportData; rows: WhatIfRow[] }> {
  const work = async (calls: string | null): Promise<{ page: ReportData; rows: WhatIfRow[] }> => {
    const configurations = [AS_RECORDED, ...SETTINGS]
    const tries = calls === null ? {} : { tries: { configurations, calls, mostEvents: MOST_EVENTS_OF_PAGE } }
    const { page, tried, triedError } = await pageAndTried(path, { ...options, ...tries })
    if (triedError !== null) sayUntried(triedError)
    if (tried === null || calls === null) return { page, rows: [] }
    const release = recordedRelease(path, readHeader(path))
    const allocators = page.why.at.event <= MOST_EVENTS ? present() : []
    const measured = await measureAll(calls, release, allocators, undefined, onProgress)
    measured.remarks.forEach(say)
    return { page, rows: [...rowsOf(release, tried, configurations).rows, ...measured.rows] }
  }
  let folder: string
  try {
    folder = callsFolder()
  } catch (error) {
    sayUntried((error as Error).message)
    return work(null)
  }
  return withCalls(work, folder)
}

/** The allocators that this system has. */
function present(): AllocatorName[] {
  return (Object.keys(ALLOCATORS) as AllocatorName[]).filter((name) => findAllocator(name) !== undefined)
}

/**
 * An answer's summary with the results of the trials, which stand below the advice of the finding that few blocks keep much memory. Without such a
 * finding, and where nothing was tried, as it was.
 */
export function withTried({ why, summary }: Pick<Answer, 'why' | 'summary'>, rows: readonly WhatIfRow[]): string[] {
  const text = why.findings.find(({ rule }) => rule === 'pinned')?.text
  return summary.flatMap((line) => (line === text ? [line, ...triedInWords(rows)] : [line]))
}

function triedInWords(rows: readonly WhatIfRow[]): string[] {
  const [first] = rows
  if (!first) return []
  const recorded = first.held
  // The recorded size is among the sizes.
  const arenas = rows.filter(({ name, held }) => name.startsWith('arenas of ') && held !== recorded)
  const [resident, ...others] = rows.filter(({ kind }) => kind === 'measured')
  const line = (words: string, wanted: (row: WhatIfRow, reference: number) => boolean): string[] => {
    const sizes = arenas.filter((row) => wanted(row, recorded)).map(({ name, held }) => `${name.slice(10)}: ${bytes(held)}`)
    const names = others.filter((row) => wanted(row, resident!.held)).map(({ name, held }) => `${name} ${bytes(held)}`)
    const parts = [
      ...(sizes.length > 0 ? [`another arena size (${sizes.join(', ')})`] : []),
      ...(names.length > 0
        ? [`another allocator (${names.join(', ')} resident, pymalloc ${bytes(resident!.held)}, measured)`]
        : []),
    ]
    return parts.length === 0 ? [] : [`${words}: ${parts.join(', ')}.`]
  }
  const helps = (row: WhatIfRow, reference: number): boolean => row.held <= HELPS * reference
  return [...line('What helps, too', helps), ...line('What does not', (row, reference) => !helps(row, reference))]
}
