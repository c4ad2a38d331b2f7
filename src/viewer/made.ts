/** The blocks that are live at the moment and were made in the chosen range. */

import type { Report } from './views/section.ts'
import { look } from './state.ts'

export interface Made {
  readonly blocks: number
  readonly live: number
  /** By site; the last is of all sites that are not listed. */
  readonly sites: { readonly blocks: Float64Array; readonly live: Float64Array; readonly held: Float64Array }
  readonly classes: Float64Array
  /** Whether only some of the blocks are in the data. */
  readonly sampled: boolean
}

let known: { readonly range: string; readonly made: Made } | undefined

/** Births are known as parts of the recording: 0 its beginning, 255 its end. */
const LAST_PART = 255

/** The parts of the recording that a range touches, first and last. */
export function partsOf({ data }: Report): readonly [number, number] | null {
  const { from, to } = look()
  if (from < 0) return null
  const part = (event: number) => Math.floor((event * LAST_PART) / Math.max(1, data.why.trace.events))
  return [part(from), part(to)]
}

/** Null where no range is chosen, or blocks are not in the data. */
export function madeInRange(report: Report): Made | null {
  const { map, classes, why } = report.data
  const parts = partsOf(report)
  if (parts === null || map.blocks === null) return null
  const range = parts.join()
  if (known?.range === range) return known.made
  const [first, last] = parts
  const { pool, site, born, shown, of } = map.blocks
  const others = why.sites.length
  const sites = { blocks: new Float64Array(others + 1), live: new Float64Array(others + 1), held: new Float64Array(others + 1) }
  const byClass = new Float64Array(classes.length)
  const arenaBytes = map.poolSize * map.poolsPerArena
  let [blocks, live] = [0, 0]
  for (let index = 0; index < pool.length; index++) {
    const birth = born[index]!
    if (birth < first || birth > last) continue
    const home = pool[index]!
    const size = classes[map.class[home]!]?.size ?? 0
    const at = Math.min(others, site[index]!)
    blocks++
    live += size
    sites.blocks[at]!++
    sites.live[at]! += size
    sites.held[at]! += arenaBytes / (why.arenas[Math.floor(home / map.poolsPerArena)]?.blocks || 1)
    byClass[map.class[home]!]!++
  }
  const made = { blocks, live, sites, classes: byClass, sampled: shown < of }
  known = { range, made }
  return made
}
