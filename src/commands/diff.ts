/** `obmalloc diff`: what grew from one recording, or moment, to another. */

import { existsSync, statSync } from 'node:fs'

import { diff, placeOf, type Difference, type DifferentRow, type Figures } from '../diff.js'
import { emit, type Output, writeNew } from '../output.js'
import { pageOf } from '../page.js'
import { page, sourceLines } from '../report.js'
import { bytes } from '../size.js'
import { columns, commandOn, grouped, next, printable, Progress, say } from '../terminal.js'
import { readHeader } from '../trace.js'
import { UsageError } from '../usage.js'
import type { TopBy } from '../why.js'

export interface DiffCommandOptions extends Output {
  readonly by: string
  readonly top: number
  readonly html?: string
  readonly json?: boolean
}

const BY = ['site', 'function', 'file', 'class']

export async function diffCommand(a: string, b: string, options: DiffCommandOptions): Promise<number> {
  const { by, top, json } = options
  if (!BY.includes(by)) throw new UsageError(`expected --by ${BY.join(', ')}, but got ${by}`)
  const { html, force = false } = options
  // Before the work, not after it.
  if (html !== undefined && !force && existsSync(html)) throw new UsageError(`${html} is there already; --force replaces it`)
  const progress = new Progress()
  const onProgress = (done: number, total: number): void => progress.update(`${Math.round((100 * done) / Math.max(total, 1))} %`)
  const difference = await diff(a, b, { by: by as TopBy, onProgress }).finally(() => progress.done())
  if (html !== undefined) {
    const { path, at } = placeOf(b)
    const data = await pageOf(path, { at, onProgress }).finally(() => progress.done())
    const lines = sourceLines(
      [...data.frames, ...data.why.sites.flatMap(({ stack }) => stack)],
      statSync(path).mtimeMs,
      readHeader(path),
    )
    // The page's own table is of sites.
    const shown = by === 'site' ? difference : await diff(a, b, { onProgress }).finally(() => progress.done())
    writeNew(html, page({ ...data, sources: lines.found, diff: shown }), force)
    say(`page: ${html}`)
  }
  emit(json ? `${JSON.stringify(difference)}\n` : inWords(difference, top), options)
  return difference.a.verified && difference.b.verified ? 0 : 4
}

const HEADINGS = ['', 'grown', 'live', 'held', 'blocks', "C's malloc"]

function inWords({ a, b, sites }: Difference, top: number): string {
  const held = b.totals.held - a.totals.held
  const live = b.totals.live - a.totals.live
  const outside = b.totals.raw + b.totals.large - a.totals.raw - a.totals.large
  const lines = [
    `From ${a.path} (${a.moment}, event ${grouped(a.event)}) to ${b.path} (${b.moment}, event ${grouped(b.event)}):`,
    `held ${bytes(a.totals.held)} to ${bytes(b.totals.held)} (${signed(held)}), live in pools ${signed(live)}, C's malloc ${signed(outside)}.`,
    '',
  ]
  const changed = sites.filter(({ grown }) => grown !== 0)
  if (changed.length === 0) lines.push('No site has more or less live.')
  else {
    const shown = changed.toSorted((x, y) => Math.abs(y.grown) - Math.abs(x.grown)).slice(0, top)
    lines.push(...columns([HEADINGS, ...shown.toSorted((x, y) => y.grown - x.grown).map(cells)]))
    if (changed.length > top) lines.push(`and ${grouped(changed.length - top)} more: --top ${changed.length}`)
  }
  return `${[...lines, '', next(commandOn('why', b.path, b.moment))].join('\n')}\n`
}

function cells({ name, a, b, grown }: DifferentRow): string[] {
  const both = (figure: keyof Figures, said: (number: number) => string): string =>
    `${said(a?.[figure] ?? 0)} to ${said(b?.[figure] ?? 0)}`
  return [
    printable(name),
    signed(grown),
    both('live', bytes),
    both('held', bytes),
    both('blocks', grouped),
    both('outside', bytes),
  ]
}

function signed(size: number): string {
  return size === 0 ? '0' : `${size > 0 ? '+' : '-'}${bytes(Math.abs(size))}`
}
