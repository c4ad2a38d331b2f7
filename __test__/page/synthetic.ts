/**
 * Data of a page without a recording: as large as the bounds allow, or as small as a test wants it. All figures agree with each other, and
 * the same sizes give the same data.
 */

import type { Arena, Column, Frame, ReportData, Site } from '../../dist/report-data.js'

export interface Sizes {
  readonly arenas: number
  readonly blocks: number
  readonly sites: number
  readonly nodes: number
  readonly events: number
}

export const SMALL: Sizes = { arenas: 142, blocks: 9_000, sites: 40, nodes: 300, events: 6_400_000 }
export const LARGE: Sizes = { arenas: 10_000, blocks: 1_000_000, sites: 2_000, nodes: 30_000, events: 100_000_000 }

const POOL_SIZE = 16_384
const POOLS = 64
const ARENA = POOL_SIZE * POOLS
const CLASSES = 32
const capacity = (index: number) => Math.floor((POOL_SIZE - 48) / sizeOf(index))
const sizeOf = (index: number) => 16 * (index + 1)

/** Numbers in [0, 1), the same each time. */
function random(seed: number): () => number {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0
    let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}

const base64 = (values: Uint8Array | Uint16Array | Uint32Array | Float64Array) =>
  Buffer.from(values.buffer, values.byteOffset, values.byteLength).toString('base64')
const u8 = (values: Uint8Array): Column => ({ u8: base64(values) })
const u16 = (values: Uint16Array): Column => ({ u16: base64(values) })
const u32 = (values: Uint32Array): Column => ({ u32: base64(values) })
const f64 = (values: Float64Array | number[]): Column => ({ f64: base64(Float64Array.from(values)) })

const FILES = [
  'app/main.py',
  'app/rows.py',
  'app/cache.py',
  '/usr/lib/python3.13/json/decoder.py',
  '/usr/lib/python3.13/re/_parser.py',
]
const IMPORTS = '<frozen importlib._bootstrap>'
const VERBS = ['load', 'parse', 'make', 'read', 'copy', 'merge', 'index', 'keep']
const NOUNS = ['rows', 'row', 'text', 'key', 'item', 'page', 'cell', 'tree']

/** A tree of stacks: node 0 without a frame, 1 the module, every 15th node an import. */
function stackTree(nodes: number, next: () => number) {
  const frames: Frame[] = [
    { file: '', line: 0, function: '(no Python frame)' },
    { file: FILES[0]!, line: 1, function: '<module>' },
  ]
  for (let index = 2; index < Math.min(nodes, 2_000); index++) {
    const imported = index % 15 === 0
    const file = imported ? IMPORTS : index < 200 ? FILES[index % FILES.length]! : `lib/${NOUNS[index % 8]}_${index % 97}.py`
    const name = imported ? '_find_and_load' : `${VERBS[(index >> 3) % 8]}_${NOUNS[index % 8]}`
    frames.push({ file, line: 3 + ((index * 7) % 400), function: name })
  }
  const parent = new Uint32Array(nodes)
  const frame = new Uint32Array(nodes)
  const depth = new Uint8Array(nodes)
  parent[0] = parent[1] = 0xffffffff
  frame[1] = 1
  for (let node = 2; node < nodes; node++) {
    let above = 1 + Math.floor(next() ** 1.6 * (node - 1))
    while (depth[above]! >= 40) above = parent[above]!
    parent[node] = above
    depth[node] = depth[above]! + 1
    // No two children of a node are of the same frame while there are frames enough.
    frame[node] = node < frames.length ? node : 2 + Math.floor(next() * (frames.length - 2))
  }
  return { frames, parent, frame }
}

export function synthetic(sizes: Sizes): ReportData {
  const next = random(7)
  const { frames, parent, frame } = stackTree(sizes.nodes, next)
  // A site each for so many nodes, spread over the tree; the first is the one that keeps every thousandth row.
  const nodeOf = Array.from({ length: sizes.sites }, (_, site) =>
    Math.min(sizes.nodes - 1, 2 + Math.floor((site * (sizes.nodes - 2)) / sizes.sites)),
  )
  const stackOf = (node: number): Frame[] => {
    const stack: Frame[] = []
    for (let at = node; at !== 0xffffffff; at = parent[at]!) stack.push(frames[frame[at]!]!)
    return stack
  }

  const pools = sizes.arenas * POOLS
  const poolClass = new Uint8Array(pools).fill(255)
  const poolFill = new Uint8Array(pools)
  const poolSite = new Uint16Array(pools).fill(65_535)
  const poolBorn = new Uint8Array(pools)
  const blocks = {
    pool: new Uint32Array(sizes.blocks),
    index: new Uint16Array(sizes.blocks),
    site: new Uint16Array(sizes.blocks),
    born: new Uint8Array(sizes.blocks),
  }
  const classes = Array.from({ length: CLASSES }, (_, index) => ({ size: sizeOf(index), pools: 0, blocks: 0, live: 0, free: 0 }))
  const sites = nodeOf.map((node) => ({
    stack: stackOf(node),
    blocks: 0,
    live: 0,
    held: 0,
    arenasTouched: 0,
    arenasPinnedAlone: 0,
    bornFirst: sizes.events,
    bornLast: 0,
    raw: 0,
    large: 0,
  }))
  const arenas: Arena[] = []
  let [block, freePools, freeInPools, live] = [0, 0, 0, 0]
  for (let arena = 0; arena < sizes.arenas; arena++) {
    const wanted = Math.floor(((arena + 1) * sizes.blocks) / sizes.arenas) - Math.floor((arena * sizes.blocks) / sizes.arenas)
    const perPool = Math.max(1, Math.round(wanted / 52))
    const bySite = new Map<number, number>()
    let [used, inArena] = [0, 0]
    for (let pool = arena * POOLS; pool < (arena + 1) * POOLS; pool++) {
      const rest = wanted - inArena
      if (rest === 0) {
        freePools += POOL_SIZE
        continue
      }
      const index = arena % 11 === 0 ? pool % CLASSES : 3 + (pool % 3)
      const room = capacity(index)
      const last = pool === (arena + 1) * POOLS - 1
      const count = Math.min(room, rest, last ? rest : Math.ceil(perPool * (0.5 + next())))
      if (last && count < rest) throw new Error(`expected room for ${rest} blocks, but the pool has ${room}`)
      const home = Math.floor(next() ** 3 * sizes.sites)
      used++
      poolClass[pool] = index
      poolFill[pool] = Math.max(1, Math.round((255 * count) / room))
      poolSite[pool] = home
      for (let nth = 0; nth < count; nth++, block++, inArena++) {
        const site = next() < 0.8 ? home : Math.floor(next() ** 3 * sizes.sites)
        const born = Math.min(255, Math.floor(((arena + next() * 12) / (sizes.arenas + 12)) * 200) + (next() < 0.02 ? 50 : 0))
        blocks.pool[block] = pool
        blocks.index[block] = Math.floor((nth * room) / count) + Math.floor(next() * Math.floor(room / count))
        blocks.site[block] = site
        blocks.born[block] = born
        poolBorn[pool] = Math.max(poolBorn[pool]!, born)
        bySite.set(site, (bySite.get(site) ?? 0) + 1)
        const of = sites[site]!
        of.blocks++
        of.live += sizeOf(index)
        const event = Math.min(sizes.events, Math.ceil(((born + next()) * sizes.events) / 255))
        of.bornFirst = Math.min(of.bornFirst, event)
        of.bornLast = Math.max(of.bornLast, event)
      }
      const row = classes[index]!
      row.pools++
      row.blocks += count
      row.live += count * sizeOf(index)
      row.free += (room - count) * sizeOf(index)
      live += count * sizeOf(index)
      freeInPools += (room - count) * sizeOf(index)
    }
    for (const [site, count] of bySite) {
      sites[site]!.held += (ARENA * count) / wanted
      sites[site]!.arenasTouched++
      if (bySite.size === 1) sites[site]!.arenasPinnedAlone++
    }
    arenas.push({
      address: `0x${(0x7f0000000000 + arena * ARENA).toString(16)}`,
      pools: used,
      freePools: POOLS - used,
      blocks: wanted,
      live: [...classes.keys()].reduce((sum, index) => {
        for (let at = block - wanted; at < block; at++) if (poolClass[blocks.pool[at]!] === index) sum += sizeOf(index)
        return sum
      }, 0),
      born: Math.floor((arena / sizes.arenas) * 0.6 * sizes.events),
      pinnedBy: [...bySite]
        .map(([site, count]) => ({ site, blocks: count }))
        .sort((a, b) => b.blocks - a.blocks)
        .slice(0, 8),
    })
  }
  const held = sizes.arenas * ARENA
  const needed = classes.reduce((sum, row, index) => sum + Math.ceil(row.blocks / capacity(index)), 0)
  const neededArenas = Math.ceil(needed / POOLS)

  const own = (value: (site: Site) => number) => {
    const values = new Float64Array(sizes.nodes)
    for (const [site, node] of nodeOf.entries()) values[node]! += value(sites[site]!)
    return values
  }
  const allocated = Float64Array.from({ length: sizes.nodes }, () => Math.floor(next() ** 6 * 1e8))
  const { timeline, arenaEvents, seconds } = history(sizes, held, live, next)
  const play = film(sizes, seconds, next)
  const at = Math.floor(sizes.events * 0.96)
  const totals = {
    arenas: sizes.arenas,
    held,
    needed: neededArenas * ARENA,
    live,
    blocks: sizes.blocks,
    freeInPools,
    freePools,
    rounding: held - live - freeInPools - freePools,
    raw: 3_400_000,
    large: 5_200_000,
    trimmable: Math.floor(freePools * 0.75),
    resident: held + 24_000_000,
    unexplained: 15_400_000,
    heapFree: 1_400_000,
  }
  const pinned = `${sizes.blocks} blocks from ${sites[0]!.stack[0]!.function} (${sites[0]!.stack[0]!.file}:${sites[0]!.stack[0]!.line}) pin ${sizes.arenas} of ${sizes.arenas} arenas; packed, ${neededArenas} would do.`
  const edges = Array.from({ length: 13 }, (_, index) => (index === 0 ? 0 : seconds * 2 ** (index - 12)))
  return {
    schema: 'obmalloc.report/1',
    why: {
      schema: 'obmalloc.why/1',
      trace: {
        path: 'rows.trace',
        python: '3.13.0',
        release: '3.13',
        events: sizes.events,
        seconds,
        complete: true,
        marks: [
          { name: 'loaded', event: Math.floor(sizes.events * 0.6), seconds: seconds * 0.6 },
          { name: 'freed', event: Math.floor(sizes.events * 0.8), seconds: seconds * 0.8 },
        ],
      },
      verified: { addresses: sizes.events - 1_000, matched: sizes.events - 1_000 },
      at: { event: at, seconds: seconds * 0.96, moment: 'end' },
      totals,
      pinned: { arenas: sizes.arenas, bytes: held - totals.needed, blocks: sizes.blocks },
      // Every second site is one whose types are known, of half of its blocks.
      sites: sites.map((site, index) => ({
        ...site,
        ...(site.blocks === 0 ? { bornFirst: null, bornLast: null } : {}),
        ...(index % 2 === 0
          ? { types: [{ name: '__main__.Row', blocks: Math.floor(site.blocks / 2), bytes: Math.floor(site.live / 2) }] }
          : {}),
      })),
      arenas,
      bounded: { sites: [sizes.sites, sizes.sites], arenas: [sizes.arenas, sizes.arenas] },
      greedy: Array.from({ length: 50 }, (_, step) => [
        Math.ceil((sizes.blocks * (step + 1)) / 50),
        Math.ceil((sizes.arenas * (step + 1)) / 50),
      ]),
      findings: [
        {
          rule: 'pinned',
          text: pinned,
          site: 0,
          sites: [0, 1],
          burst: [2],
          saves: held - totals.needed,
          command: 'obmalloc what-if rows.trace --apart app/rows.py:10',
        },
        {
          rule: 'large',
          text: 'Blocks above 512 bytes take 5.2 MB of C’s malloc: 12 `bytes`, 3 `list`.',
          site: null,
          saves: 0,
          sites: [],
          burst: [],
          command: 'obmalloc top rows.trace',
        },
      ],
    },
    summary: [
      `${Math.round(held / 2 ** 20)} MiB are held for ${(live / 2 ** 20).toFixed(1)} MiB of live objects (all addresses verified).`,
      pinned,
      'What helps: making the survivors anew after the burst (tried on this recording).',
    ],
    sources: Object.fromEntries(
      FILES.map((file) => [
        file,
        Object.fromEntries(
          frames.filter((one) => one.file === file).map((one) => [one.line, `result.append(${one.function}(n)) # <b>&amp;</b>`]),
        ),
      ]),
    ),
    timeline,
    arenaEvents,
    frames,
    stacks: {
      shown: sizes.nodes,
      of: sizes.nodes * 3,
      parent: u32(parent),
      frame: u32(frame),
      held: f64(own((site) => site.held)),
      live: f64(own((site) => site.live)),
      peak: f64(own((site) => site.held).map((value) => value * 1.1)),
      allocated: f64(allocated),
      temporary: f64(allocated.map((value) => Math.floor(value * 0.7))),
      blocks: f64(own((site) => site.blocks)),
    },
    map: {
      poolSize: POOL_SIZE,
      poolsPerArena: POOLS,
      arenas: f64(arenas.map(({ address }) => Number(address))),
      class: u8(poolClass),
      fill: u8(poolFill),
      site: u16(poolSite),
      born: u8(poolBorn),
      blocks: {
        shown: sizes.blocks,
        of: sizes.blocks,
        pool: u32(blocks.pool),
        index: u16(blocks.index),
        site: u16(blocks.site),
        born: u8(blocks.born),
      },
    },
    play,
    slots: sizes.arenas,
    classes,
    ages: {
      edges,
      blocks: Array.from({ length: 12 }, (_, index) => Math.floor(sizes.blocks / 2 ** (12 - index))),
      bytes: Array.from({ length: 12 }, (_, index) => Math.floor(live / 2 ** (12 - index))),
    },
    whatIf: [
      {
        name: 'as recorded',
        peakHeld: held,
        held,
        difference: 0,
        lost: held - live,
        maps: sizes.arenas,
        unmaps: 0,
        nanoseconds: 14.2,
        kind: 'exact',
        setting: null,
      },
      {
        name: 'arenas of 256 KiB',
        peakHeld: held,
        held: held + 2 ** 20,
        difference: 2 ** 20,
        lost: held + 2 ** 20 - live,
        maps: sizes.arenas * 4,
        unmaps: 2,
        nanoseconds: 14.9,
        kind: 'exact',
        setting: 'ARENA_BITS 18',
      },
      {
        name: 'survivors apart',
        peakHeld: held,
        held: totals.needed,
        difference: totals.needed - held,
        lost: totals.needed - live,
        maps: sizes.arenas,
        unmaps: sizes.arenas - neededArenas,
        nanoseconds: 14.2,
        kind: 'model',
        setting: '--apart app/rows.py:10',
      },
      {
        name: 'jemalloc',
        peakHeld: held,
        held: Math.floor(held * 1.1),
        difference: Math.floor(held * 0.1),
        lost: null,
        maps: null,
        unmaps: null,
        nanoseconds: 31.5,
        kind: 'measured',
        setting: 'LD_PRELOAD=libjemalloc.so.2',
      },
    ],
    diff: {
      schema: 'obmalloc.diff/1',
      a: { path: 'before.trace', totals: { ...totals, held: held / 2, live: live / 2 } },
      b: { path: 'rows.trace', totals },
      sites: sites.slice(0, 20).map((site, index) => ({
        stack: site.stack,
        a: index % 5 === 0 ? null : { blocks: site.blocks >> 1, live: site.live >> 1, held: Math.floor(site.held / 3) },
        b: { blocks: site.blocks, live: site.live, held: Math.floor(site.held) },
      })),
    },
    sure: {
      addresses: sizes.events - 1_000,
      matched: sizes.events - 1_000,
      notRecorded: ['Memory that extensions take with mmap, as numpy does for large arrays.'],
      python: '3.13.0',
      release: '3.13',
      command: ['python3', 'rows.py', '--all'],
      stacks: 64,
      version: '0.1.0',
    },
  }
}

/** Held memory that rises, stays while what is live falls, and ends where the map is. */
function history(sizes: Sizes, held: number, live: number, next: () => number) {
  const seconds = sizes.events / 2e6
  const rows = Math.min(4_000, 20 * sizes.arenas)
  const times = Float64Array.from({ length: rows }, (_, row) => (seconds * row) / (rows - 1))
  const part = (row: number) => row / (rows - 1)
  const heldAt = (at: number) => ARENA * Math.max(1, Math.round((held / ARENA) * Math.min(1, at / 0.6)))
  const heldRows = times.map((_, row) => heldAt(part(row)))
  const liveRows = times.map((_, row) => {
    const at = part(row)
    return Math.floor(at < 0.6 ? heldAt(at) * 0.9 : Math.max(live, held * 0.9 * (1 - (at - 0.6) / 0.2)))
  })
  const rawRows = times.map(() => 3e6 + Math.floor(next() * 4e5))
  const events = times.map((_, row) => Math.floor(part(row) * sizes.events))
  const shown = Math.min(20_000, sizes.arenas * 2)
  const at = Float64Array.from({ length: shown }, (_, index) => Math.floor(((index * 0.6) / shown) * sizes.events))
  const taken = Uint8Array.from({ length: shown }, (_, index) => (index % 4 === 3 ? 0 : 1))
  return {
    seconds,
    timeline: {
      shown: rows,
      of: rows * 3,
      seconds: f64(times),
      event: f64(events),
      held: f64(heldRows),
      live: f64(liveRows),
      raw: f64(rawRows),
      large: f64(times.map(() => 5.2e6)),
      resident: f64(times.map((_, row) => (row % 10 === 0 ? heldRows[row]! + 24e6 : NaN))),
    },
    arenaEvents: {
      shown,
      of: shown,
      event: f64(at),
      seconds: f64(at.map((event) => (event / sizes.events) * seconds)),
      address: f64(at.map((_, index) => 0x7f0000000000 + (index >> 1) * ARENA)),
      taken: u8(taken),
    },
  }
}

/** 120 frames: arenas come one after another and then grow empty. */
function film(sizes: Sizes, seconds: number, next: () => number) {
  const frames = 120
  const fill = new Uint8Array(frames * sizes.arenas)
  const arenas = new Uint32Array(frames)
  for (let frame = 0; frame < frames; frame++) {
    const at = frame / (frames - 1)
    arenas[frame] = Math.max(1, Math.round(sizes.arenas * Math.min(1, at / 0.6)))
    for (let slot = 0; slot < arenas[frame]!; slot++)
      fill[frame * sizes.arenas + slot] = Math.max(
        1,
        Math.round(230 * (at < 0.6 ? 1 : Math.max(0.02, 1 - (at - 0.6) / 0.2)) - next() * 20),
      )
  }
  const times = Float64Array.from({ length: frames }, (_, frame) => (seconds * frame) / (frames - 1))
  return {
    shown: frames,
    of: frames,
    seconds: f64(times),
    event: f64(times.map((time) => Math.floor((time / seconds) * sizes.events))),
    arenas: u32(arenas),
    fill: u8(fill),
  }
}
