/** Memory over time. Its range and its cursor choose what the other views show. */

import { rowAt } from '../data.ts'
import { el, size } from '../dom.ts'
import { colour, picture, point } from '../paint.ts'
import { follow, go, look } from '../state.ts'
import { bytes, count, plural, seconds } from '../words.ts'
import { type Report, section, type View } from './section.ts'

const LEFT = 64
const RIGHT = 14
const TOP = 22
const BOTTOM = 44

export function timeline(report: Report): View {
  const { data, clock } = report
  const { timeline: rows, arenaEvents } = data
  const { at, trace, totals } = data.why
  const series = [
    {
      name: 'resident',
      about: 'what the process had in memory, all of it',
      values: rows.resident,
      now: totals.resident,
      color: 'line-resident',
    },
    { name: 'held', about: 'arenas × their size', values: rows.held, now: totals.held, color: 'line-held' },
    { name: 'live', about: 'blocks in use', values: rows.live, now: totals.live, color: 'line-live' },
    {
      name: 'C’s malloc',
      about: 'raw and large blocks',
      values: sum(rows.raw, rows.large),
      now: totals.raw + totals.large,
      color: 'line-malloc',
    },
  ].filter(({ values }) => values.some((value) => !Number.isNaN(value)))
  const places = clock.known ? rows.seconds : rows.event
  const end = Math.max(places.at(-1) ?? 1, clock.place(trace.events))
  let top = 1
  for (const { values } of series) for (const value of values) if (value > top) top = value
  const readout = el('ul', { class: 'readout' })
  const range = el('p', { class: 'range', role: 'status' })
  const box = el('div', { class: 'canvas' })

  const view = (): [number, number] => {
    const { from, to, zoomed } = look()
    return zoomed && from >= 0 ? [clock.place(from), Math.max(clock.place(to), clock.place(from) + 1e-9)] : [0, end]
  }
  const x = (place: number, width: number) => {
    const [first, last] = view()
    return LEFT + ((place - first) / (last - first)) * (width - LEFT - RIGHT)
  }
  const eventAt = (left: number, width: number) => {
    const [first, last] = view()
    const part = Math.min(1, Math.max(0, (left - LEFT) / (width - LEFT - RIGHT)))
    return Math.min(trace.events, Math.max(0, clock.eventAt(first + part * (last - first))))
  }

  const chart = picture(
    box,
    'Memory over time. Arrow keys step from arena to arena that was taken or given back; with Shift they choose a range.',
    (width) => (width < 520 ? 240 : 300),
    (context, width, height) => {
      const [first, last] = view()
      const y = (value: number) => TOP + (1 - value / (top * 1.04)) * (height - TOP - BOTTOM)
      grid(context, width, height, y)
      const { from, to } = look()
      if (from >= 0) {
        context.fillStyle = colour('brush')
        context.fillRect(
          x(clock.place(from), width),
          TOP,
          x(clock.place(to), width) - x(clock.place(from), width),
          height - TOP - BOTTOM,
        )
      }
      context.save()
      context.beginPath()
      context.rect(LEFT, TOP - 2, width - LEFT - RIGHT, height - TOP - BOTTOM + 4)
      context.clip()
      const [low, high] = [Math.max(0, rowAt(places, first) - 1), Math.min(places.length - 1, rowAt(places, last) + 1)]
      for (const { values, color, name } of series) {
        const filled = name === 'held' || name === 'live'
        context.beginPath()
        let [begun, before] = [false, 0]
        for (let row = low; row <= high; row++) {
          const value = values[row]!
          if (Number.isNaN(value)) continue
          const [left, up] = [x(places[row]!, width), y(value)]
          if (begun) {
            // Held memory changes in steps.
            if (filled) context.lineTo(left, before)
            context.lineTo(left, up)
          } else context.moveTo(left, up)
          begun = true
          before = up
        }
        context.strokeStyle = colour(color)
        context.lineWidth = 1.6
        context.stroke()
        if (filled) {
          context.lineTo(x(places[high]!, width), y(0))
          context.lineTo(x(places[low]!, width), y(0))
          // Live memory is painted over held memory, so that the colours do not mix.
          context.fillStyle = colour('paper')
          if (name === 'live') context.fill()
          context.globalAlpha = name === 'live' ? 0.3 : 0.16
          context.fillStyle = colour(color)
          context.fill()
          context.globalAlpha = 1
        }
      }
      context.restore()
      ticks(context, width, height)
      const write = labels(context, width)
      const moment = x(clock.place(at.event), width)
      if (moment >= LEFT && moment <= width - RIGHT + 1) {
        line(context, moment, TOP, height - BOTTOM, colour('text'), [])
        write('this moment', moment)
      }
      for (const { name, event } of trace.marks) {
        const left = x(clock.place(event), width)
        if (left < LEFT || left > width - RIGHT) continue
        if (Math.abs(left - moment) >= 1) line(context, left, TOP, height - BOTTOM, colour('faint'), [3, 3])
        write(name, left)
      }
      if (look().at >= 0) line(context, x(clock.place(look().at), width), TOP, height - BOTTOM + 12, colour('accent'), [], 2)
    },
  )

  function grid(context: CanvasRenderingContext2D, width: number, height: number, y: (value: number) => number): void {
    context.fillStyle = colour('faint')
    const step = niceBytes(top / 4)
    context.textAlign = 'right'
    for (let value = 0; value <= top * 1.04; value += step) {
      line(context, LEFT, y(value), y(value), colour('hair'), [], 1, width - RIGHT)
      context.fillText(value === 0 ? '0' : bytes(value), LEFT - 8, y(value))
    }
    context.textAlign = 'center'
    const [first, last] = view()
    const every = nice((last - first) / Math.max(2, Math.floor((width - LEFT) / 130)))
    for (let at = Math.ceil(first / every) * every; at <= last; at += every)
      context.fillText(axis(at, every), Math.min(width - RIGHT - 14, x(at, width)), height - 10)
  }

  const axis = (value: number, every: number) =>
    clock.known ? `${value.toFixed(Math.max(0, -Math.floor(Math.log10(every) + 1e-9)))} s` : count(value)

  /** Arenas taken point up, arenas given back point down. */
  function ticks(context: CanvasRenderingContext2D, width: number, height: number): void {
    const middle = height - BOTTOM + 12
    const [up, down] = [new Set<number>(), new Set<number>()]
    for (let index = 0; index < arenaEvents.event.length; index++) {
      const left = Math.round(x(clock.place(arenaEvents.event[index]!), width))
      if (left >= LEFT && left <= width - RIGHT) (arenaEvents.taken[index] ? up : down).add(left)
    }
    context.fillStyle = colour('line-held')
    for (const left of up) context.fillRect(left, middle - 7, 1, 6)
    context.fillStyle = colour('line-live')
    for (const left of down) context.fillRect(left, middle + 1, 1, 6)
  }

  function says(event: number): string {
    return clock.known ? `${seconds(clock.seconds(event))}, event ${count(event)}` : `event ${count(event)}`
  }

  function tell(): void {
    const { from, to, at: cursor } = look()
    const event = cursor < 0 ? at.event : cursor
    const row = rowAt(rows.event, event)
    readout.replaceChildren(
      el('li', { class: 'when' }, cursor < 0 ? 'At the moment of this report: ' : 'At the cursor: ', says(event)),
      ...series.map(({ name, about, values, now, color }) => {
        let from = row
        while (from > 0 && Number.isNaN(values[from]!)) from--
        // At the moment it is known exactly; rows of the timeline are near it.
        const value = cursor < 0 ? now : values[from]!
        const swatch = el('span', { class: 'swatch', 'aria-hidden': 'true' })
        swatch.style.background = `var(--${color})`
        return el(
          'li',
          { title: about, 'data-series': name },
          swatch,
          `${name} `,
          value === null || Number.isNaN(value) ? 'not sampled' : size(value),
        )
      }),
    )
    clear.hidden = from < 0 && cursor < 0
    zoom.hidden = from < 0
    zoom.textContent = look().zoomed ? 'Show all' : 'Zoom to range'
    if (from < 0) {
      const { shown, of } = arenaEvents
      range.textContent = `${plural(of, 'time')} an arena was taken or given back${shown < of ? `; ${count(shown)} are drawn` : ''}. Drag over the picture to choose a range: everything below follows.`
      return
    }
    let [taken, given] = [0, 0]
    for (let index = 0; index < arenaEvents.event.length; index++)
      if (arenaEvents.event[index]! >= from && arenaEvents.event[index]! <= to) {
        if (arenaEvents.taken[index]) taken++
        else given++
      }
    range.replaceChildren(
      `Range: ${says(from)} to ${says(to)}. Arenas taken `,
      el('data', { value: taken, 'data-range': 'taken' }, count(taken)),
      ', given back ',
      el('data', { value: given, 'data-range': 'given' }, count(given)),
      '.',
    )
  }

  const zoom = el('button', { type: 'button', onclick: () => go({ zoomed: !look().zoomed }) })
  const clear = el('button', { type: 'button', onclick: () => go({ from: -1, to: -1, at: -1, zoomed: false }) }, 'Clear')

  let grabbed = -1
  const left = (event: PointerEvent) => event.clientX - chart.canvas.getBoundingClientRect().left
  chart.canvas.addEventListener('pointerdown', (event) => {
    grabbed = left(event)
    chart.canvas.setPointerCapture(event.pointerId)
  })
  chart.canvas.addEventListener('pointermove', (event) => {
    const now = left(event)
    const [one, other] = [eventAt(grabbed, chart.width()), eventAt(now, chart.width())]
    if (grabbed >= 0 && Math.abs(now - grabbed) > 3) go({ from: Math.min(one, other), to: Math.max(one, other), zoomed: false })
    const row = rowAt(rows.event, other)
    point(
      event,
      says(other),
      ...series.flatMap(({ name, values }) => (Number.isNaN(values[row]!) ? [] : [`${name} ${bytes(values[row]!)}`])),
    )
  })
  chart.canvas.addEventListener('pointerup', (event) => {
    if (grabbed >= 0 && Math.abs(left(event) - grabbed) <= 3) go({ at: eventAt(grabbed, chart.width()) })
    grabbed = -1
  })
  chart.canvas.addEventListener('pointercancel', () => (grabbed = -1))
  chart.canvas.addEventListener('pointerleave', () => point(null))

  follow(['from', 'to', 'zoomed', 'at', 'theme'], () => {
    tell()
    chart.draw()
  })
  return section(
    'timeline',
    'Timeline',
    'Memory from the program’s start to its end. What is held and not live could not be given back.',
    readout,
    box,
    range,
    el('div', { class: 'tools' }, zoom, clear),
  )
}

/** Goes to the next arena that was taken or given back, or the last one before; `wide` makes the range follow. */
export function step({ data }: Report, forward: boolean, wide: boolean): void {
  const { event } = data.arenaEvents
  if (event.length === 0) return
  const state = look()
  const now = state.at < 0 ? data.why.at.event : state.at
  const row = rowAt(event, now)
  let next = forward ? row + 1 : row
  if (forward && event[row]! > now) next = row
  while (!forward && next >= 0 && event[next]! >= now) next--
  const at = event[next]
  if (at === undefined) return
  if (!wide) return go({ at })
  // The end of the range that lies at the cursor moves.
  const fixed = state.from < 0 ? now : state.from === now ? state.to : state.from
  go({ at, from: Math.min(fixed, at), to: Math.max(fixed, at) })
}

function sum(a: ArrayLike<number>, b: ArrayLike<number>): Float64Array {
  return Float64Array.from(a, (value, index) => value + b[index]!)
}

function line(
  context: CanvasRenderingContext2D,
  left: number,
  from: number,
  to: number,
  color: string,
  dash: number[],
  wide = 1,
  right = left,
): void {
  context.beginPath()
  context.setLineDash(dash)
  context.strokeStyle = color
  context.lineWidth = wide
  context.moveTo(Math.round(left) + 0.5, Math.round(from) + 0.5)
  context.lineTo(Math.round(right) + 0.5, Math.round(to) + 0.5)
  context.stroke()
  context.setLineDash([])
}

/** Writes labels above the picture, as far as there is room beside those that are there. */
function labels(context: CanvasRenderingContext2D, width: number): (text: string, left: number) => void {
  const taken: (readonly [number, number])[] = []
  return (text, left) => {
    const half = context.measureText(text).width / 2
    const middle = Math.min(width - half - 2, Math.max(half + 2, left))
    if (taken.some(([from, to]) => middle + half + 8 > from && middle - half - 8 < to)) return
    taken.push([middle - half, middle + half])
    context.textAlign = 'center'
    context.fillStyle = colour('soft')
    context.fillText(text, middle, TOP - 10)
  }
}

/** 1, 2 or 5 times a power of ten, at least `least`. */
function nice(least: number): number {
  const power = 10 ** Math.floor(Math.log10(Math.max(least, 1e-9)))
  return [1, 2, 5, 10].find((times) => times * power >= least)! * power
}

/** A power of two of bytes, at least `least`. */
const niceBytes = (least: number): number => 2 ** Math.ceil(Math.log2(Math.max(1, least)))
