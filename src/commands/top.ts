/** `obmalloc top`: a table of what sites, functions, files or size classes have asked for, and have. */

import { bytes } from '../size.js'
import { emit, type Output } from '../output.js'
import { columns, commandOn, grouped, next, printable, Progress } from '../terminal.js'
import { UsageError } from '../usage.js'
import { isVerified, topOf, type TopBy, type TopRow } from '../why.js'

export interface TopCommandOptions extends Output {
  readonly at?: string
  readonly by: string
  readonly sort: string
  readonly top: number
  readonly csv?: boolean
  readonly json?: boolean
}

const BY = ['site', 'function', 'file', 'class']
const FIGURES = ['allocated', 'freed', 'live', 'blocks', 'held', 'outside', 'temporary'] as const

export async function topCommand(path: string, options: TopCommandOptions): Promise<number> {
  const { by, sort, csv, json, top } = options
  if (!BY.includes(by)) throw new UsageError(`expected --by ${BY.join(', ')}, but got ${by}`)
  const figure = FIGURES.find((name) => name === sort)
  if (!figure) throw new UsageError(`expected --sort ${FIGURES.join(', ')}, but got ${sort}`)
  const progress = new Progress()
  const answer = await topOf(path, by as TopBy, {
    at: options.at,
    onProgress: (done, total) => progress.update(`${path}: ${Math.round((100 * done) / Math.max(total, 1))} %`),
  }).finally(() => progress.done())
  const rows = answer.table.toSorted((a, b) => b[figure] - a[figure])
  if (json) emit(`${JSON.stringify({ trace: answer.why.trace, at: answer.why.at, by, rows })}\n`, options)
  else if (csv) emit(inCsv(rows), options)
  else emit(inWords(rows, top, commandOn('why', path, options.at)), options)
  return isVerified(answer.why) ? 0 : 4
}

function inCsv(rows: readonly TopRow[]): string {
  const quoted = (text: string): string => `"${text.replaceAll('"', '""')}"`
  const lines = rows.map((row) => [quoted(row.name), ...FIGURES.map((figure) => row[figure])].join(','))
  return [['name', ...FIGURES].join(','), ...lines, ''].join('\n')
}

function inWords(rows: readonly TopRow[], top: number, command: string): string {
  const line = (row: TopRow): string[] => [
    printable(row.name),
    ...FIGURES.map((figure) => (figure === 'blocks' ? grouped(row.blocks) : bytes(row[figure]))),
  ]
  const heading = ['', ...FIGURES.map((figure) => (figure === 'outside' ? "C's malloc" : figure))]
  const rest = rows.length - top
  const more = rest > 0 ? [`and ${grouped(rest)} more: --top ${rows.length}`] : []
  return `${[...columns([heading, ...rows.slice(0, top).map(line)]), ...more, '', next(command)].join('\n')}\n`
}
