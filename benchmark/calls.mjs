/** What calls from JavaScript cost: single ones against the cheapest native call there is, and operations of `run`. */

import { createRequire } from 'node:module'

const require = createRequire(import.meta.url)
const { Heap } = require('../dist/index.js')
const { native } = require('../dist/native.js')

/** Calls timed at a time. */
const CALLS = 1000
const [MALLOC, FREE, OBJ] = [0, 3, 2]

/** A random whole number below `limit`; the same ones in every run. */
let state = 42
function below(limit) {
  state = (Math.imul(state, 1_103_515_245) + 12_345) & 0x7fff_ffff
  return (state >>> 8) % limit
}

const median = (values) => values.toSorted((a, b) => a - b)[values.length >> 1]

/** Times everything in turn, `rounds` times; medians of nanoseconds a call, and of the ratios to `identity`. */
export function measureCalls(rounds) {
  const heap = new Heap({ release: '3.14' })
  const { obj } = heap
  // Blocks that are live around the calls, as a program's other objects would be.
  const around = Array.from({ length: 40_000 }, () => obj.malloc(1 + below(512)))
  for (const block of around) if (below(2) === 0) obj.free(block)

  const blocks = new Float64Array(CALLS)
  const address = obj.malloc(64)
  const mixed = operations(() => 1 + below(512))
  const pairs = new Uint32Array(4 * CALLS)
  for (let index = 0; index < CALLS; index++) pairs.set([index % 2 === 0 ? MALLOC : FREE, OBJ, 0, 64], 4 * index)

  const timed = {
    // The cheapest call takes a small integer and gives one; an address is a number that V8 has to allocate.
    small: () => {
      for (let index = 0; index < CALLS; index++) blocks[index] = native.identity(64)
    },
    large: () => {
      for (let index = 0; index < CALLS; index++) blocks[index] = native.identity(address)
    },
    pair: () => {
      for (let index = 0; index < CALLS / 2; index++) {
        const block = obj.malloc(64)
        obj.free(block)
      }
    },
    malloc: () => {
      for (let index = 0; index < CALLS; index++) blocks[index] = obj.malloc(64)
    },
    free: () => {
      for (let index = 0; index < CALLS; index++) obj.free(blocks[index])
    },
    pairs: () => heap.run(pairs),
    mixed: () => heap.run(mixed),
  }
  const names = Object.keys(timed)
  const times = Object.fromEntries(names.map((name) => [name, []]))
  // The first rounds let everything be compiled.
  for (let round = -Math.ceil(rounds / 4); round < rounds; round++) {
    for (const name of names) {
      const begin = process.hrtime.bigint()
      timed[name]()
      const nanoseconds = Number(process.hrtime.bigint() - begin) / CALLS
      if (round >= 0) times[name].push(nanoseconds)
    }
  }
  heap.close()

  const nanoseconds = (name) => median(times[name])
  const ratio = (name, to) => median(times[name].map((time, round) => time / times[to][round]))
  const single = (key, name) => ({ name, nanoseconds: nanoseconds(key), ratios: [ratio(key, 'small'), ratio(key, 'large')] })
  return {
    single: [
      single('small', 'identity(64)'),
      single('large', 'identity(address)'),
      single('pair', 'obj.malloc(64), obj.free in turn'),
      single('malloc', 'obj.malloc(64), 1000 in a row'),
      single('free', 'obj.free, 1000 in a row'),
    ],
    batched: [
      { name: 'run, malloc(64) and free in turn', nanoseconds: nanoseconds('pairs') },
      { name: 'run, mixed sizes, random free', nanoseconds: nanoseconds('mixed') },
    ],
  }
}

/** Operations for `run`: half of them allocate, the others free those blocks in random order. */
function operations(size) {
  const half = CALLS / 2
  const operations = new Uint32Array(4 * CALLS)
  const slots = Array.from({ length: half }, (_, slot) => slot)
  for (let index = half - 1; index > 0; index--) {
    const other = below(index + 1)
    ;[slots[index], slots[other]] = [slots[other], slots[index]]
  }
  for (let index = 0; index < half; index++) {
    operations.set([MALLOC, OBJ, index, size()], 4 * index)
    operations.set([FREE, OBJ, slots[index], 0], 4 * (half + index))
  }
  return operations
}
