/** One arena: its pools down to blocks, and the stacks that made what lies in it. */

import { rowAt } from '../data.ts'
import { el, exact, number } from '../dom.ts'
import { colour, picture, point } from '../paint.ts'
import { follow, go, look } from '../state.ts'
import { bytes, named, percent, plural } from '../words.ts'
import { ALIGNMENT, colors, FREE } from './colors.ts'
import type { Report } from './section.ts'
import { stackList } from './stack.ts'

export function arenaPanel(report: Report): HTMLElement {
  const { why, map, classes } = report.data
  const { poolsPerArena: pools } = map
  const across = Math.ceil(Math.sqrt(pools))
  const title = el('h3')
  const facts = el('p', { class: 'faint' })
  const box = el('div', { class: 'canvas' })
  const sites = el('div', { class: 'keepers' })
  const panel = el(
    'div',
    { class: 'panel', hidden: true },
    el('div', { class: 'tools' }, title, el('button', { type: 'button', onclick: () => go({ arena: -1 }) }, 'Close')),
    facts,
    el('div', { class: 'sides' }, box, sites),
  )
  let places: Place[] = []

  const chart = picture(
    box,
    'Pools of the arena, and the blocks in them',
    (width) => Math.min(560, width),
    (context, width, height) => {
      const arena = look().arena
      places = arena < 0 || arena >= why.arenas.length ? [] : pool(context, arena, Math.min(width, height))
    },
  )

  interface Place {
    readonly pool: number
    readonly left: number
    readonly top: number
    readonly side: number
  }

  function pool(context: CanvasRenderingContext2D, arena: number, whole: number): Place[] {
    const side = Math.floor(whole / across)
    const paints = colors(report)
    const drawn: Place[] = []
    for (let index = 0; index < pools; index++) {
      const at = arena * pools + index
      const place = { pool: at, left: (index % across) * side, top: Math.floor(index / across) * side, side: side - 3 }
      drawn.push(place)
      const kind = map.class[at]!
      context.fillStyle = colour(kind === FREE ? 'free-pool' : kind === ALIGNMENT ? 'hair' : 'used-pool')
      context.fillRect(place.left, place.top, place.side, place.side)
      if (kind !== FREE && kind !== ALIGNMENT) blocks(context, place, kind, paints)
    }
    return drawn
  }

  /** Blocks where they lie; where they are not in the data, a level that says how full the pool is. */
  function blocks(
    context: CanvasRenderingContext2D,
    { pool: at, left, top, side }: Place,
    kind: number,
    paints: ReturnType<typeof colors>,
  ): void {
    const size = classes[kind]?.size ?? map.poolSize
    const room = Math.max(1, Math.floor((map.poolSize - 48) / size))
    const [first, end] = blocksOf(at)
    if (first === end) {
      context.fillStyle = paints.pool(at)
      const level = Math.max(1, (side * map.fill[at]!) / 255)
      context.fillRect(left, top + side - level, side, level)
      return
    }
    const columns = Math.ceil(Math.sqrt(room))
    const cell = side / columns
    const shown = Math.max(2, cell - (cell > 4 ? 1 : 0))
    for (let block = first; block < end; block++) {
      const index = map.blocks!.index[block]!
      context.fillStyle = paints.block(block)
      context.fillRect(left + (index % columns) * cell, top + Math.floor(index / columns) * cell, shown, shown)
    }
  }

  /** The blocks of a pool, as places in the columns of `map.blocks`. */
  function blocksOf(at: number): [number, number] {
    const rows = map.blocks?.pool
    if (rows === undefined || rows.length === 0) return [0, 0]
    const end = rowAt(rows, at)
    if (rows[end] !== at) return [0, 0]
    const before = rowAt(rows, at - 0.5)
    return [rows[before] === at ? before : before + 1, end + 1]
  }

  chart.canvas.addEventListener('pointermove', (event) => {
    const { left, top } = chart.canvas.getBoundingClientRect()
    const [x, y] = [event.clientX - left, event.clientY - top]
    const place = places.find((one) => x >= one.left && x < one.left + one.side && y >= one.top && y < one.top + one.side)
    if (place === undefined) return point(null)
    const { pool: at } = place
    const kind = map.class[at]!
    const [first, end] = blocksOf(at)
    const name = `Pool ${(at % pools) + 1} of ${pools}`
    if (kind === FREE) return point(event, name, 'free: no live block')
    if (kind === ALIGNMENT) return point(event, name, 'not usable: the arena does not begin at a pool’s boundary')
    point(
      event,
      name,
      `blocks of ${classes[kind]?.size ?? '?'} bytes, ${percent(map.fill[at]! / 255)} in use`,
      ...(first < end ? [plural(end - first, 'live block')] : []),
      `most by ${named(why.sites[map.site[at]!]?.stack[0])}`,
    )
  })
  chart.canvas.addEventListener('pointerleave', () => point(null))

  follow(['arena'], ({ arena }) => {
    const one = why.arenas[arena]
    panel.hidden = one === undefined
    if (one === undefined) return
    title.textContent = `Arena ${one.address}`
    facts.replaceChildren(
      number(one.blocks),
      ' live blocks, ',
      exact(one.live, bytes(one.live)),
      `, keep ${bytes(map.poolSize * pools)}; ${one.freePools} of ${one.pools + one.freePools} pools are free.`,
    )
    const listed = one.pinnedBy.reduce((sum, { blocks: some }) => sum + some, 0)
    sites.replaceChildren(
      el('h4', {}, 'Who made what lies in it'),
      ...one.pinnedBy.map(({ site, blocks: some }, index) =>
        el(
          'details',
          { open: index === 0, 'data-site': site },
          el('summary', {}, number(some), ` × ${named(why.sites[site]?.stack[0])}`),
          stackList(report, why.sites[site]?.stack ?? []),
        ),
      ),
      (listed < one.blocks && el('p', { class: 'faint' }, `and ${plural(one.blocks - listed, 'block')} of other lines`)) || '',
    )
    chart.draw()
  })
  follow(['color', 'from', 'to', 'theme'], () => chart.draw())
  return panel
}
