/** `obmalloc what-if`: tries other settings, other allocators, or a heap for one line's blocks on the recording. */

import { ALL_RELEASES } from '../release.js'
import { columns, commandOn, next, Progress, say, sayUnverified } from '../terminal.js'
import { UsageError } from '../usage.js'
import { allocatorNamed, ALLOCATORS, type AllocatorName, type Configuration, whatIf, type WhatIfRow } from '../what-if.js'
import { emit, type Output } from '../output.js'
import { bytes, sizeOf } from '../size.js'

export interface WhatIfCommandOptions extends Output {
  readonly at?: string
  readonly arena?: string
  readonly pool?: string
  readonly threshold?: string
  readonly release?: string
  readonly allocator?: string
  readonly apart?: string
  readonly json?: boolean
}

export async function whatIfCommand(path: string, options: WhatIfCommandOptions): Promise<number> {
  const { arena, pool, threshold, release, allocator, apart, at } = options
  const configurations: Configuration[] = [
    ...list(release, 'release').map((name) => ({ release: releaseNamed(name) })),
    ...list(arena, 'arena').map((size) => ({ arena: sizeOf(size) })),
    ...list(pool, 'pool').map((size) => ({ pool: sizeOf(size) })),
    ...list(threshold, 'threshold').map((size) => ({ threshold: sizeOf(size) })),
  ]
  const allocators = list(allocator, 'allocator').map(allocatorNamed)
  const asksNothing = [arena, pool, threshold, release, allocator, apart].every((option) => option === undefined)
  const progress = new Progress()
  const answer = await whatIf(path, {
    ...(at === undefined ? {} : { at }),
    configurations: asksNothing ? [256, 1024, 4096].map((kib) => ({ arena: kib * 1024 })) : configurations,
    allocators: asksNothing ? (Object.keys(ALLOCATORS) as AllocatorName[]) : allocators,
    ...(apart === undefined ? {} : { apart: siteOf(apart) }),
    onProgress: (what, done, total) => progress.update(`${what}: ${Math.round((100 * done) / Math.max(total, 1))} %`),
  }).finally(() => progress.done())
  emit(options.json ? `${JSON.stringify(answer)}\n` : inWords(answer.rows, commandOn('why', path, at)), options)
  for (const remark of answer.remarks) say(remark)
  if (answer.verified) return 0
  sayUnverified(path)
  return 4
}

function list(text: string | undefined, option: string): string[] {
  if (text === undefined) return []
  const parts = text.split(',').map((part) => part.trim())
  if (parts.includes('')) throw new UsageError(`expected a list like a,b for --${option}, but got ${JSON.stringify(text)}`)
  return parts
}

function releaseNamed(name: string): string {
  if (!ALL_RELEASES.includes(name)) throw new UsageError(`expected a release (${ALL_RELEASES.join(', ')}), but got ${name}`)
  return name
}

export function siteOf(text: string): { file: string; line: number } {
  const place = /^(.+):(\d{1,9})$/.exec(text)
  if (!place) throw new UsageError(`expected a site as FILE:LINE, but got ${text}`)
  return { file: place[1]!, line: Number(place[2]) }
}

const HEADINGS = ['', 'kind', 'setting', 'peak held', 'held', 'difference', 'lost inside', 'maps', 'unmaps', 'ns a call']

function inWords(rows: readonly WhatIfRow[], command: string): string {
  const cells = rows.map((row) => [
    row.name,
    row.kind,
    row.setting ?? '-',
    bytes(row.peakHeld),
    bytes(row.held),
    row.difference === 0 ? '0' : `${row.difference > 0 ? '+' : '-'}${bytes(Math.abs(row.difference))}`,
    row.lost === null ? '-' : bytes(row.lost),
    row.maps === null ? '-' : String(row.maps),
    row.unmaps === null ? '-' : String(row.unmaps),
    row.nanoseconds.toFixed(1),
  ])
  const notes = rows.some(({ kind }) => kind === 'measured')
    ? [
        '',
        'Measured rows are resident memory of a real process, small and large blocks together; the others are arenas. They cannot be ranked together.',
      ]
    : []
  return `${[...columns([HEADINGS, ...cells], 3), ...notes, '', next(command)].join('\n')}\n`
}
