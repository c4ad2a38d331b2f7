/** Writing the page: the native analysis's data, the lines of source that its frames name, and the page that shows them, in one file. */

import { readFileSync } from 'node:fs'
import { join } from 'node:path'

import { pack } from './packing.js'
import type { Column, ReportData } from './report-data.js'
import { sourceOf } from './sources.js'
import type { TraceHeader } from '../index.js'

/** The most bytes of a page. */
export const MOST_BYTES = 8_000_000

/** Longest line of source that is shown. */
const LONGEST_LINE = 160

export interface SourceLines {
  readonly found: ReportData['sources']
  /** Files that are newer than the recording: their lines may be others by now. */
  readonly changed: readonly string[]
}

/** The lines of source that frames name, of those files that can be read and are not newer than `recorded`, in milliseconds. */
export function sourceLines(
  frames: readonly { readonly file: string; readonly line: number }[],
  recorded: number,
  header: Pick<TraceHeader, 'folder'>,
): SourceLines {
  const wanted = new Map<string, Set<number>>()
  for (const { file, line } of frames) {
    if (file === '' || file.startsWith('<') || line <= 0) continue
    const lines = wanted.get(file) ?? new Set()
    wanted.set(file, lines.add(line))
  }
  const found: Record<string, Record<string, string>> = {}
  const changed: string[] = []
  for (const [file, lines] of wanted) {
    const text = sourceOf(file, header)
    if (text === null) continue
    if (text.changed > recorded) {
      changed.push(file)
      continue
    }
    const some = [...lines].flatMap((line) => {
      const one = text.lines[line - 1]?.trim()
      return one ? [[line, one.slice(0, LONGEST_LINE)]] : []
    })
    if (some.length > 0) found[file] = Object.fromEntries(some)
  }
  return { found, changed }
}

/** One HTML file that shows the data; single blocks are left out of it until it is small enough. */
export function page(data: ReportData): string {
  const empty = readFileSync(join(__dirname, 'viewer.html'), 'utf8')
  for (let fitting = data; ; fitting = withFewerBlocks(fitting)) {
    const script = `<script type="application/octet-stream" id="data">${pack(fitting)}</script>`
    const html = empty.replace('<!-- data -->', () => script)
    if (html.length <= MOST_BYTES) return html
    if (fitting.map.blocks === null)
      throw new Error(`expected a page of at most ${MOST_BYTES} bytes, but without single blocks it still has ${html.length}`)
  }
}

/** The data with the blocks of the first half of the arenas that have some; none when only few are left. */
function withFewerBlocks(data: ReportData): ReportData {
  const { blocks, poolsPerArena } = data.map
  if (blocks === null) return data
  const pools = numbers(blocks.pool)
  const half = Math.ceil(blocks.shown / 2)
  const arena = Math.floor(pools[half]! / poolsPerArena)
  const shown = pools.findIndex((pool) => pool >= arena * poolsPerArena)
  const cut = (column: Column): Column => {
    const [[type, text]] = Object.entries(column) as [[string, string]]
    const bytes = Buffer.from(text, 'base64')
    return { [type]: bytes.subarray(0, (bytes.length / blocks.shown) * shown).toString('base64') } as Column
  }
  const { pool, index, site, born, of } = blocks
  const fewer = shown < 1_000 ? null : { shown, of, pool: cut(pool), index: cut(index), site: cut(site), born: cut(born) }
  return { ...data, map: { ...data.map, blocks: fewer } }
}

function numbers(column: Column): Uint32Array {
  if (!('u32' in column)) throw new Error(`expected a column of u32, but got ${Object.keys(column).join()}`)
  const bytes = Buffer.from(column.u32, 'base64')
  return new Uint32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length))
}
