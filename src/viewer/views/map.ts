/** The heap map: each arena a tile of its pools at the moment; over time, each arena one cell. */

import { rowAt } from '../data.ts'
import { choice, el } from '../dom.ts'
import { colour, picture, point, ramp, rgb } from '../paint.ts'
import { follow, go, look } from '../state.ts'
import { bytes, count, named, percent, plural, seconds } from '../words.ts'
import { arenaPanel } from './arena.ts'
import { ALIGNMENT, colors, FREE } from './colors.ts'
import { type Report, section, type View } from './section.ts'

const MOST_HIGH = 620

/** The layout of tiles: pixels a pool, and tiles a row. */
interface Layout {
  readonly cell: number
  readonly tile: number
  readonly across: number
  readonly columns: number
  readonly rows: number
}

function layout(width: number, tiles: number, across: number): Layout {
  for (let cell = across === 1 ? 22 : 8; ; cell--) {
    const tile = cell * across + (across === 1 ? (cell > 3 ? 1 : 0) : cell > 1 ? 3 : 1)
    const columns = Math.max(1, Math.floor(width / tile))
    const rows = Math.ceil(tiles / columns)
    if (rows * tile <= MOST_HIGH || cell === 1) return { cell, tile, across, columns, rows }
  }
}

export function heapMap(report: Report): View {
  const { data, clock } = report
  const { map, why, play, slots } = data
  const pools = map.poolsPerArena
  const across = Math.ceil(Math.sqrt(pools))
  const arenas = map.arenas.length
  const frames = play.event.length
  const box = el('div', { class: 'canvas' })
  const legend = el('ul', { class: 'legend' })
  const said = el('p', { class: 'range', role: 'status' })
  const paint = choice(
    'Colour',
    [
      ['fill', 'fill', 'How full each pool is'],
      ['class', 'size class', 'The size of its blocks'],
      ['age', 'age', 'When its youngest block was made'],
      ['site', 'line', 'Who made most of its blocks'],
    ],
    (color) => go({ color }),
  )
  const scrub = el('input', {
    type: 'range',
    min: 0,
    max: Math.max(0, frames - 1),
    'aria-label': 'Frame',
    oninput: () => show(Number(scrub.value)),
  })
  const button = el('button', { type: 'button', onclick: () => (playing ? stop() : start()) }, 'Play')
  const now = el('button', { type: 'button', onclick: () => go({ at: -1 }) }, 'Back to the moment')
  let playing = 0
  let active = -1

  /** The frame that the cursor is at; -1 at the moment of the report. */
  const frameNow = () => (look().at < 0 || frames === 0 ? -1 : rowAt(play.event, look().at))

  const chart = picture(
    box,
    'Heap map. Arrow keys go from arena to arena, Enter opens one.',
    (width) => {
      // The same height whatever is shown, so that nothing below moves.
      const all = [layout(width, arenas, across), ...(frames > 0 ? [layout(width, slots, 1)] : [])]
      return Math.max(60, ...all.map(({ rows, tile }) => rows * tile))
    },
    (context, width) => {
      const frame = frameNow()
      if (frame < 0) paintPools(context, width)
      else paintFrame(context, width, frame)
    },
  )

  const image = document.createElement('canvas')
  /** Draws one pixel a cell, then all of them as large as they are to be. */
  function pixels(
    context: CanvasRenderingContext2D,
    place: Layout,
    tiles: number,
    cells: number,
    paintCell: (tile: number, cell: number) => readonly number[] | null,
  ): void {
    const { tile, columns, rows, cell } = place
    const whole = new ImageData(columns * tile, Math.max(1, rows * tile))
    const out = new Uint32Array(whole.data.buffer)
    for (let index = 0; index < tiles; index++) {
      const corner = Math.floor(index / columns) * tile * whole.width + (index % columns) * tile
      for (let at = 0; at < cells; at++) {
        const color = paintCell(index, at)
        if (color === null) continue
        const value = 0xff000000 | (color[2]! << 16) | (color[1]! << 8) | color[0]!
        const first = corner + Math.floor(at / place.across) * cell * whole.width + (at % place.across) * cell
        // Cells large enough have a line between them.
        const side = cell > 3 ? cell - 1 : cell
        // A loop: so few pixels in a row that calling `fill` takes longer than they do.
        for (let y = 0, row = first; y < side; y++, row += whole.width) for (let x = 0; x < side; x++) out[row + x] = value
      }
    }
    image.width = whole.width
    image.height = whole.height
    image.getContext('2d')!.putImageData(whole, 0, 0)
    context.imageSmoothingEnabled = false
    context.drawImage(image, 0, 0)
  }

  function paintPools(context: CanvasRenderingContext2D, width: number): void {
    const place = layout(width, arenas, across)
    const paints = colors(report)
    pixels(context, place, arenas, pools, (arena, pool) => paints.rgb(arena * pools + pool))
    outline(context, place, look().arena, colour('accent'))
    if (document.activeElement === chart.canvas) outline(context, place, active, colour('text'))
  }

  function outline(context: CanvasRenderingContext2D, { tile, columns }: Layout, arena: number, color: string): void {
    if (arena < 0 || arena >= arenas) return
    context.strokeStyle = color
    context.lineWidth = 2
    context.strokeRect((arena % columns) * tile - 1, Math.floor(arena / columns) * tile - 1, tile, tile)
  }

  const fills = () => ramp(['fill-low', 'fill-middle', 'fill-high'].map((name) => rgb(colour(name))))
  let known: { readonly theme: string; readonly colors: ReturnType<typeof fills> } | undefined
  function paintFrame(context: CanvasRenderingContext2D, width: number, frame: number): void {
    const theme = colour('fill-low')
    if (known?.theme !== theme) known = { theme, colors: fills() }
    const { colors: shades } = known
    pixels(context, layout(width, slots, 1), slots, 1, (slot) => {
      const fill = play.fill[frame * slots + slot]!
      return fill === 0 ? null : shades[fill]!
    })
  }

  function show(frame: number): void {
    go({ at: play.event[frame]! })
  }

  function start(): void {
    if (frames === 0) return
    playing = 1
    button.textContent = 'Pause'
    let frame = frameNow()
    if (frame >= frames - 1) frame = -1
    let before = 0
    const tick = (time: number) => {
      if (playing === 0) return
      if (time - before >= 80) {
        before = time
        frame++
        const begun = performance.now()
        show(frame)
        performance.measure('map frame', { start: begun })
      }
      if (frame >= frames - 1) return stop()
      playing = requestAnimationFrame(tick)
    }
    playing = requestAnimationFrame(tick)
  }

  function stop(): void {
    cancelAnimationFrame(playing)
    playing = 0
    button.textContent = 'Play'
  }

  const arenaAt = (event: MouseEvent): [number, number] => {
    const { left, top } = chart.canvas.getBoundingClientRect()
    const { tile, columns, cell } = layout(chart.width(), arenas, across)
    const [x, y] = [event.clientX - left, event.clientY - top]
    const arena = Math.floor(y / tile) * columns + Math.floor(x / tile)
    const pool = Math.floor((y % tile) / cell) * across + Math.floor((x % tile) / cell)
    return Math.floor(x / tile) < columns && arena < arenas ? [arena, Math.min(pools - 1, pool)] : [-1, -1]
  }

  chart.canvas.addEventListener('pointermove', (event) => {
    const [arena, pool] = frameNow() < 0 ? arenaAt(event) : [-1, -1]
    const one = why.arenas[arena]
    if (one === undefined) return point(null)
    const at = arena * pools + pool
    const kind = map.class[at]!
    point(
      event,
      `Arena ${one.address}`,
      `${plural(one.blocks, 'live block')}, ${bytes(one.live)}`,
      kind === FREE
        ? `pool ${pool + 1}: free`
        : kind === ALIGNMENT
          ? `pool ${pool + 1}: lost to alignment`
          : `pool ${pool + 1}: blocks of ${data.classes[kind]?.size ?? '?'} bytes, ${percent(map.fill[at]! / 255)} in use`,
      ...(kind < ALIGNMENT ? [`most by ${named(why.sites[map.site[at]!]?.stack[0])}`] : []),
    )
  })
  chart.canvas.addEventListener('pointerleave', () => point(null))
  chart.canvas.addEventListener('click', (event) => {
    const [arena] = frameNow() < 0 ? arenaAt(event) : [-1]
    if (arena >= 0) go({ arena: arena === look().arena ? -1 : arena })
  })
  chart.canvas.addEventListener('keydown', (event) => {
    if (event.key === ' ' && frames > 0) {
      event.preventDefault()
      return playing ? stop() : start()
    }
    if (frameNow() >= 0) return
    const { columns } = layout(chart.width(), arenas, across)
    const steps: Record<string, number> = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }
    const by = steps[event.key]
    if (by === undefined && event.key !== 'Enter') return
    event.preventDefault()
    event.stopPropagation()
    if (event.key === 'Enter') return go({ arena: active === look().arena ? -1 : Math.max(0, active) })
    active = Math.min(arenas - 1, Math.max(0, active + by!))
    said.textContent = `Arena ${why.arenas[active]!.address}: ${plural(why.arenas[active]!.blocks, 'live block')}, ${bytes(why.arenas[active]!.live)}`
    chart.draw()
  })
  for (const kind of ['focus', 'blur']) chart.canvas.addEventListener(kind, () => chart.draw())

  follow(['at', 'color', 'from', 'to', 'arena', 'theme'], ({ at, color }) => {
    const frame = frameNow()
    paint.show(color)
    paint.element.hidden = frame >= 0
    now.hidden = frame < 0
    scrub.value = String(frame < 0 ? rowAt(play.event, why.at.event) : frame)
    const when = (event: number) => (clock.known ? seconds(clock.seconds(event)) : `event ${count(event)}`)
    said.replaceChildren(
      ...(frame < 0
        ? [
            `At the moment of the report, ${when(why.at.event)}: `,
            el('data', { value: arenas, 'data-shown': 'tiles' }, count(arenas)),
            ` of ${plural(why.totals.arenas, 'arena')}, a tile each; ${pools} pools in a tile.`,
          ]
        : [
            `At ${when(at)} (frame ${frame + 1} of ${frames}): `,
            el('data', { value: play.arenas[frame]!, 'data-shown': 'frame' }, count(play.arenas[frame]!)),
            ` arenas, a cell each; the darker, the more of it is live.`,
          ]),
    )
    const entries = frame < 0 ? colors(report).legend : []
    legend.replaceChildren(
      ...entries.map(([color, name]) => {
        const swatch = el('span', { class: 'swatch', 'aria-hidden': 'true' })
        swatch.style.background = color
        return el('li', {}, swatch, name)
      }),
    )
    chart.draw()
  })
  return section(
    'map',
    'Heap map',
    `Where the live blocks lie. Each tile is an arena (${bytes(pools * map.poolSize)}), each square in it a pool (${bytes(map.poolSize)}).`,
    el('div', { class: 'tools' }, paint.element, frames > 0 && button, frames > 0 && scrub, now),
    said,
    legend,
    box,
    arenaPanel(report),
  )
}
