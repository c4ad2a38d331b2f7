/** Other settings, tried on a recording for its answer: which of them would help, and which would not. */

import { basename } from 'node:path'

import type { WhatIfOptions, WhatIfRow } from '../index.js'
import { pageAndTried } from './page.js'
import { recordedRelease } from './release.js'
import type { ReportData } from './report-data.js'
import { bytes } from './size.js'
import { printable, say } from './terminal.js'
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
import { type Answer, type Finding, type Frame, type InquiryOptions, ownFrame, type Why } from './why.js'

/** Arenas of other sizes. */
const SETTINGS = [256, 1024, 4096].map((kib) => ({ arena: kib * 1024 }))

/** Events up to which a recording's calls are made again for an answer, and in processes with other allocators. */
const MOST_EVENTS = 20_000_000

/** Events up to which they are made again for a page: they take a file of eight bytes each. */
const MOST_EVENTS_OF_PAGE = 250_000_000

/** A setting helps if it needs at most this part of the bytes held. The analysis says it of its own advice by the same measure. */
const HELPS = 0.75

type OnProgress = NonNullable<WhatIfOptions['onProgress']>

/** The finding below which the results of trials stand: that few blocks keep much memory, or that pools are half empty. */
function asking({ findings }: Pick<Why, 'findings'>): Finding | undefined {
  return findings.find(({ rule }) => rule === 'pinned' || rule === 'half-empty')
}

/** Whether `why` tries other settings: only if the answer asks for help, and the recording is short enough. */
export function isWorthTrying(why: Why): boolean {
  return why.at.event <= MOST_EVENTS && asking(why) !== undefined
}

/** The line of the survivors, if none of the blocks around them came from it: those can be set apart. */
function lineApart(why: Why): { file: string; line: number } | undefined {
  const finding = asking(why)
  if (finding === undefined || finding.burst.length === 0) return undefined
  const frameOf = (site: number): Frame | undefined => ownFrame(why.sites[site]!.stack)
  const [frame] = finding.sites.map(frameOf)
  const isOfBurst = ({ file, line }: Frame): boolean =>
    finding.burst.some((site) => why.sites[site]!.stack.some((other) => other.file === file && other.line === line))
  return frame === undefined || isOfBurst(frame) ? undefined : { file: frame.file, line: frame.line }
}

/** Tries arenas of other sizes, and the allocators that this system has, at the moment of an answer. */
export async function tryOthers(path: string, why: Why, onProgress: OnProgress): Promise<WhatIfRow[]> {
  try {
    const apart = lineApart(why)
    const options = { configurations: SETTINGS, allocators: present(), onProgress }
    const { rows, remarks } = await whatIfAt(path, why.at, { ...options, ...(apart && { apart }) })
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
    const apart = await tryApart(path, page.why, onProgress)
    return { page, rows: [...rowsOf(release, tried, configurations).rows, ...apart, ...measured.rows] }
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

/** The trial of the survivors' line apart: which line that is, is not known before the answer. */
async function tryApart(path: string, why: Why, onProgress: OnProgress): Promise<WhatIfRow[]> {
  const apart = lineApart(why)
  if (apart === undefined) return []
  try {
    const { rows } = await whatIfAt(path, why.at, { apart, onProgress })
    return rows.filter(isApart)
  } catch (error) {
    sayUntried((error as Error).message)
    return []
  }
}

const isApart = ({ name }: WhatIfRow): boolean => name.endsWith(' apart')

/** The allocators that this system has. */
function present(): AllocatorName[] {
  return (Object.keys(ALLOCATORS) as AllocatorName[]).filter((name) => findAllocator(name) !== undefined)
}

/**
 * An answer's summary with the results of the trials, which stand below the advice of the finding that asks for them. Without such a finding,
 * and where nothing was tried, as it was.
 */
export function withTried({ why, summary }: Pick<Answer, 'why' | 'summary'>, rows: readonly WhatIfRow[]): string[] {
  const finding = asking(why)
  return summary.flatMap((line) => (line === finding?.text ? [line, ...triedInWords(rows, /^What helps:/m.test(line))] : [line]))
}

/** `too`: whether an earlier sentence already named something that helps. */
function triedInWords(rows: readonly WhatIfRow[], too: boolean): string[] {
  const [first] = rows
  if (!first) return []
  const recorded = first.held
  // The recorded size is among the sizes.
  const arenas = rows.filter(({ name, held }) => name.startsWith('arenas of ') && held !== recorded)
  const [resident, ...others] = rows.filter(({ kind }) => kind === 'measured')
  const line = (words: string, wanted: (row: WhatIfRow, reference: number) => boolean): string[] => {
    const apart = rows.filter((row) => isApart(row) && wanted(row, recorded))
    const sizes = arenas.filter((row) => wanted(row, recorded)).map(({ name, held }) => `${name.slice(10)}: ${bytes(held)}`)
    const names = others.filter((row) => wanted(row, resident!.held)).map(({ name, held }) => `${name} ${bytes(held)}`)
    const parts = [
      ...apart.map(
        ({ name, held }) =>
          `the blocks of ${printable(basename(name))} from the others, as in a heap of their own (${bytes(held)}, model)`,
      ),
      ...(sizes.length > 0 ? [`another arena size (${sizes.join(', ')})`] : []),
      ...(names.length > 0
        ? [`another allocator (${names.join(', ')} resident, pymalloc ${bytes(resident!.held)}, measured)`]
        : []),
    ]
    return parts.length === 0 ? [] : [`${words}: ${parts.join(', ')}.`]
  }
  const helps = (row: WhatIfRow, reference: number): boolean => row.held <= HELPS * reference
  return [
    ...line(too ? 'What helps, too' : 'What helps', helps),
    ...line('What does not', (row, reference) => !helps(row, reference)),
  ]
}
