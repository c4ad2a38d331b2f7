/** Canvases: sharp on every screen, in the page's colours, drawn only while they can be seen. */

import { el } from './dom.ts'

export interface Picture {
  readonly canvas: HTMLCanvasElement
  /** Draws now if it can be seen, or else when it comes into view. */
  readonly draw: () => void
  readonly width: () => number
  readonly height: () => number
}

const all: Picture[] = []
const measures: (() => void)[] = []

/** A canvas as wide as its parent, and what draws it. `height` may depend on the width. */
export function picture(
  parent: HTMLElement,
  label: string,
  height: (width: number) => number,
  paint: (context: CanvasRenderingContext2D, width: number, height: number) => void,
): Picture {
  const canvas = el('canvas', { tabindex: 0, role: 'img', 'aria-label': label })
  parent.append(canvas)
  let [seen, due, width, tall] = [false, true, 0, 0]
  const draw = () => {
    due = !seen || width === 0
    if (due) return
    tall = height(width)
    const scale = devicePixelRatio
    if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(tall * scale)) {
      canvas.width = Math.round(width * scale)
      canvas.height = Math.round(tall * scale)
      canvas.style.height = `${tall}px`
    }
    const context = canvas.getContext('2d')!
    context.setTransform(scale, 0, 0, scale, 0, 0)
    context.clearRect(0, 0, width, tall)
    context.font = '12px system-ui, sans-serif'
    context.textBaseline = 'middle'
    paint(context, width, tall)
  }
  const one = { canvas, draw, width: () => width, height: () => tall }
  all.push(one)
  const measure = (now: number) => {
    if (now === width) return
    width = now
    if (!seen && width > 0) canvas.style.height = `${height(width)}px`
    draw()
  }
  measures.push(() => measure(parent.clientWidth))
  new ResizeObserver(([entry]) => measure(Math.floor(entry!.contentRect.width))).observe(parent)
  new IntersectionObserver(
    ([entry]) => {
      seen = entry!.isIntersecting
      if (seen && due) draw()
    },
    { rootMargin: '200px' },
  ).observe(canvas)
  return one
}

/** Gives every picture its place now, so that nothing moves when they are drawn. */
export function measureAll(): void {
  for (const measure of measures) measure()
}

/** A colour of the page's style, by its name there. */
export function colour(name: string): string {
  const known = colours.get(name)
  if (known !== undefined) return known
  const value = getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim()
  colours.set(name, value)
  return value
}
const colours = new Map<string, string>()

/** Draws everything anew in the colours of now. */
export function repaint(): void {
  colours.clear()
  for (const one of all) one.draw()
}

export const dark = (): boolean => document.documentElement.dataset['theme'] === 'dark'

export type Rgb = readonly [number, number, number]

/** `#rrggbb`. */
export function rgb(text: string): Rgb {
  const value = Number.parseInt(text.slice(1), 16)
  return [value >> 16, (value >> 8) & 255, value & 255]
}

export const css = ([red, green, blue]: Rgb): string => `rgb(${red} ${green} ${blue})`

/** So many colours along a line through some. */
export function ramp(stops: readonly Rgb[], steps = 256): Rgb[] {
  return Array.from({ length: steps }, (_, step) => {
    const at = (step / (steps - 1)) * (stops.length - 1)
    const low = Math.min(stops.length - 2, Math.floor(at))
    const mix = (channel: 0 | 1 | 2) =>
      Math.round(stops[low]![channel] + (at - low) * (stops[low + 1]![channel] - stops[low]![channel]))
    return [mix(0), mix(1), mix(2)]
  })
}

/** The colour of one of several things without an order. */
export function hue(index: number, saturation = 0.5, light = dark() ? 0.52 : 0.6): Rgb {
  // A golden angle apart, so that neighbours differ.
  const angle = (index * 137.508 + 210) % 360
  const part = (offset: number) => {
    const k = (offset + angle / 30) % 12
    return Math.round(255 * (light - saturation * Math.min(light, 1 - light) * Math.max(-1, Math.min(k - 3, 9 - k, 1))))
  }
  return [part(0), part(8), part(4)]
}

const note = el('div', { class: 'note', role: 'status', hidden: true })

/** Says beside the pointer what is there; nothing takes the note away. */
export function point(event: MouseEvent | null, ...lines: readonly string[]): void {
  if (!note.isConnected) document.body.append(note)
  note.hidden = event === null || lines.length === 0
  if (event === null || lines.length === 0) return
  note.replaceChildren(...lines.map((line, index) => el(index === 0 ? 'strong' : 'span', {}, line)))
  const left = Math.min(event.clientX + 14, innerWidth - note.offsetWidth - 8)
  const above = event.clientY + 18 + note.offsetHeight > innerHeight
  note.style.translate = `${Math.max(4, left)}px ${above ? event.clientY - note.offsetHeight - 10 : event.clientY + 18}px`
}
