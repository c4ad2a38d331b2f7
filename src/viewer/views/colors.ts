/** What the map's colours mean: how full, which size class, how old, whose. */

import { css, dark, hue, ramp, rgb, colour, type Rgb } from '../paint.ts'
import { partsOf } from '../made.ts'
import { look } from '../state.ts'
import { bytes, named } from '../words.ts'
import type { Report } from './section.ts'

export const FREE = 255
export const ALIGNMENT = 254
/** Sites with a colour of their own. */
const LISTED = 10

export interface Colors {
  readonly rgb: (pool: number) => Rgb
  readonly pool: (pool: number) => string
  readonly block: (block: number) => string
  readonly legend: readonly (readonly [string, string])[]
}

const palettes = new Map<string, { fill: Rgb[]; age: Rgb[]; class: Rgb[]; sites: Map<number, Rgb> }>()

function palette(report: Report) {
  const name = dark() ? 'dark' : 'light'
  const known = palettes.get(name)
  if (known !== undefined) return known
  const stops = (names: string[]) => ramp(names.map((one) => rgb(colour(one))))
  const sites = new Map<number, Rgb>()
  const order = report.data.why.sites.map((site, index) => [site.blocks, index] as const).sort((a, b) => b[0] - a[0])
  for (const [place, [, index]] of order.slice(0, LISTED).entries()) sites.set(index, rgb(colour(`site-${place}`)))
  const made = {
    fill: stops(['fill-low', 'fill-middle', 'fill-high']),
    age: stops(['age-old', 'age-middle', 'age-young']),
    class: report.data.classes.map((_, index) => hue(index)),
    sites,
  }
  palettes.set(name, made)
  return made
}

export function colors(report: Report): Colors {
  const { map, classes, why } = report.data
  const { color } = look()
  const known = palette(report)
  const [free, alignment, other, dim] = ['free-pool', 'hair', 'site-other', 'used-pool'].map((name) => rgb(colour(name))) as [
    Rgb,
    Rgb,
    Rgb,
    Rgb,
  ]
  const parts = partsOf(report)
  const outside = (born: number) => parts !== null && (born < parts[0] || born > parts[1])
  const one = (fill: number, kind: number, site: number, born: number): Rgb => {
    if (outside(born)) return dim
    if (color === 'class') return known.class[kind] ?? other
    if (color === 'age') return known.age[born]!
    if (color === 'site') return known.sites.get(site) ?? other
    return known.fill[fill]!
  }
  const ofPool = (pool: number): Rgb => {
    const kind = map.class[pool]!
    return kind === FREE ? free : kind === ALIGNMENT ? alignment : one(map.fill[pool]!, kind, map.site[pool]!, map.born[pool]!)
  }
  const legend: [string, string][] =
    color === 'class'
      ? classes.flatMap(({ size, pools }, index): [string, string][] =>
          pools > 0 ? [[css(known.class[index]!), bytes(size)]] : [],
        )
      : color === 'age'
        ? [0, 64, 128, 191, 255].map((born) => [
            css(known.age[born]!),
            ['the beginning', 'a quarter', 'half', 'three quarters', 'the end of the recording'][Math.round(born / 64)]!,
          ])
        : color === 'site'
          ? [
              ...[...known.sites].map(([site, rgb]): [string, string] => [css(rgb), named(why.sites[site]!.stack[0])]),
              [css(other), 'other lines'],
            ]
          : [10, 64, 128, 191, 255].map((fill) => [
              css(known.fill[fill]!),
              ['almost empty', 'a quarter', 'half', 'three quarters', 'full'][Math.round(fill / 64)]!,
            ])
  return {
    rgb: ofPool,
    pool: (pool) => css(ofPool(pool)),
    block: (block) => {
      const { pool, site, born } = map.blocks!
      const home = pool[block]!
      // How full its pool is says nothing of a block.
      if (color === 'fill' && !outside(born[block]!)) return colour('live')
      return css(one(map.fill[home]!, map.class[home]!, site[block]!, born[block]!))
    },
    legend: [
      ...legend,
      [css(free), 'free pool'],
      ...(parts === null ? [] : [[css(dim), 'made outside the range'] as [string, string]]),
    ],
  }
}
