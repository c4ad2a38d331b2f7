/** `obmalloc map`: the arenas at a moment, a line each and a character a pool; or a picture, a row of cells an arena. */

import { decode, pageOf } from '../page.js'
import type { ReportData } from '../report-data.js'
import { bytes } from '../size.js'
import { emit, type Output, writeNew } from '../output.js'
import { png } from '../png.js'
import { commandOn, grouped, next, Progress, say } from '../terminal.js'
import { UsageError } from '../usage.js'
import { isVerified, where } from '../why.js'

export interface MapCommandOptions extends Output {
  readonly at?: string
  readonly color: string
  readonly png?: string
  readonly json?: boolean
}

const COLORS = ['fill', 'class', 'age', 'site'] as const
type Color = (typeof COLORS)[number]

/** The kinds of pools without a size class. */
const [FREE, ALIGNMENT] = [255, 254]
const FILLS = '▁▂▃▄▅▆▇█'
const LETTERS = 'abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ'

interface Pools {
  readonly class: Uint8Array
  readonly fill: Uint8Array
  readonly site: Uint16Array
  readonly born: Uint8Array
}

export async function mapCommand(path: string, options: MapCommandOptions): Promise<number> {
  const color = COLORS.find((name) => name === options.color)
  if (!color) throw new UsageError(`expected --color ${COLORS.join(', ')}, but got ${options.color}`)
  const progress = new Progress()
  const page = await pageOf(path, {
    at: options.at,
    onProgress: (done, total) => progress.update(`${path}: ${Math.round((100 * done) / Math.max(total, 1))} %`),
  }).finally(() => progress.done())
  const { map, why } = page
  const pools: Pools = {
    class: decode(map.class) as Uint8Array,
    fill: decode(map.fill) as Uint8Array,
    site: decode(map.site) as Uint16Array,
    born: decode(map.born) as Uint8Array,
  }
  if (options.png !== undefined) {
    writeNew(options.png, picture(pools, map.poolsPerArena, color), options.force)
    say(`written to ${options.png}`)
  } else if (options.json) {
    emit(`${JSON.stringify({ trace: why.trace, at: why.at, map: inJson(pools, page) })}\n`, options)
  } else emit(inWords(pools, page, color), options)
  return isVerified(why) ? 0 : 4
}

function inJson({ class: classes, fill, site, born }: Pools, { map, why }: ReportData): object {
  const arenas = why.arenas.map(({ address }, arena) => ({
    address,
    pools: Array.from({ length: map.poolsPerArena }, (_, pool) => {
      const at = arena * map.poolsPerArena + pool
      const kind = classes[at]!
      if (kind >= ALIGNMENT) return { state: kind === FREE ? 'free' : 'alignment' }
      return {
        state: 'used',
        class: kind,
        fill: fill[at]! / 255,
        site: site[at] === 65_535 ? null : site[at]!,
        born: born[at]! / 255,
      }
    }),
  }))
  return { poolSize: map.poolSize, arenas }
}

function inWords(pools: Pools, { map, why }: ReportData, color: Color): string {
  const lines = why.arenas.map(({ address, live, blocks }, arena) => {
    const cells = Array.from({ length: map.poolsPerArena }, (_, pool) =>
      character(pools, arena * map.poolsPerArena + pool, color),
    )
    return `${address}  ${cells.join('')}  ${bytes(live)}, ${grouped(blocks)} blocks`
  })
  const legend: Record<Color, string> = {
    fill: `${FILLS[0]} almost empty to ${FILLS.at(-1)} full`,
    class: 'a letter for each size class: a 16 bytes, b 32, …',
    age: '0 the oldest blocks to 9 the youngest, by events',
    site: `a letter for the site with most blocks: ${why.sites
      .slice(0, 5)
      .map(({ stack }, index) => `${LETTERS[index]} ${where(stack)}`)
      .join(', ')}, …`,
  }
  const head = `${grouped(why.totals.arenas)} arenas, a character a pool of ${bytes(map.poolSize)}: . free, ${legend[color]}`
  return `${[head, ...lines, '', next(commandOn('why', why.trace.path, why.at.moment))].join('\n')}\n`
}

function character({ class: classes, fill, site, born }: Pools, at: number, color: Color): string {
  const kind = classes[at]!
  if (kind >= ALIGNMENT) return kind === FREE ? '.' : ' '
  if (color === 'fill') return FILLS[Math.min(7, fill[at]! >> 5)]!
  if (color === 'age') return `${Math.floor((born[at]! * 10) / 256)}`
  return LETTERS[color === 'class' ? kind : site[at]!] ?? '?'
}

/** Pixels of a pool's side. */
const CELL = 6

function picture(pools: Pools, perArena: number, color: Color): Uint8Array {
  const rows = Math.max(1, pools.class.length / perArena)
  // Past some height, arenas stand side by side.
  const tall = Math.min(rows, 512)
  const [width, height] = [Math.ceil(rows / tall) * (perArena + 1) * CELL, tall * CELL]
  const pixels = new Uint8Array(width * height * 3).fill(255)
  for (let at = 0; at < pools.class.length; at++) {
    const [arena, pool] = [Math.floor(at / perArena), at % perArena]
    const [left, top] = [(Math.floor(arena / tall) * (perArena + 1) + pool) * CELL, (arena % tall) * CELL]
    const rgb = shade(pools, at, color)
    for (let y = top; y < top + CELL - 1; y++) for (let x = left; x < left + CELL - 1; x++) pixels.set(rgb, (y * width + x) * 3)
  }
  return png(width, height, pixels)
}

function shade({ class: classes, fill, site, born }: Pools, at: number, color: Color): readonly [number, number, number] {
  const kind = classes[at]!
  if (kind >= ALIGNMENT) return kind === FREE ? [235, 235, 235] : [255, 255, 255]
  const share = (color === 'age' ? born[at]! : fill[at]!) / 255
  if (color === 'fill' || color === 'age')
    return [Math.round(222 - 214 * share), Math.round(235 - 154 * share), Math.round(247 - 91 * share)]
  const hue = ((color === 'class' ? kind : site[at]!) * 137.508) % 360
  const channel = (turn: number): number =>
    Math.round(255 * (0.55 - 0.3 * Math.max(-1, Math.min(((turn + hue / 30) % 12) - 3, 9 - ((turn + hue / 30) % 12), 1))))
  return [channel(0), channel(8), channel(4)]
}
