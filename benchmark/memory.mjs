/**
 * What it costs to write a number to a block and to read it again: in a fresh block, between its malloc and its free, and in blocks that are
 * kept. Beside views, calls, and `@thi.ng/malloc`, which allocates within one array and whose caller writes to that array.
 */

import { createRequire } from 'node:module'

import { MemPool } from '@thi.ng/malloc'

const { Heap } = createRequire(import.meta.url)('../dist/index.js')

/** Blocks used at a time. */
const BLOCKS = 1000
const SIZE = 64

const { obj } = new Heap()
// In this heap every access is a call, because there may be blocks in quarantine.
const called = new Heap({ quarantine: 1 }).obj
const pool = new MemPool({ size: 1 << 20 })
const { u32 } = pool

const blocksOf = (allocator) => Float64Array.from({ length: BLOCKS }, () => allocator.malloc(SIZE))
const [blocks, calledBlocks, poolBlocks] = [obj, called, pool].map(blocksOf)
const views = Array.from(blocksOf(obj), (block) => obj.view(block))
const few = new Uint8Array(8)
let sum = 0

// A loop each, so that V8 compiles each for what is in it.
const timed = {
  'fresh: malloc and free alone'() {
    for (let index = 0; index < BLOCKS; index++) obj.free(obj.malloc(SIZE))
  },
  'fresh: with a view'() {
    for (let index = 0; index < BLOCKS; index++) {
      const block = obj.malloc(SIZE)
      const view = obj.view(block)
      view[8] = index
      sum += view[8]
      obj.free(block)
    }
  },
  'fresh: with setUint32 and getUint32'() {
    for (let index = 0; index < BLOCKS; index++) {
      const block = obj.malloc(SIZE)
      obj.setUint32(block, index, 8)
      sum += obj.getUint32(block, 8)
      obj.free(block)
    }
  },
  'fresh: @thi.ng/malloc'() {
    for (let index = 0; index < BLOCKS; index++) {
      const block = pool.malloc(SIZE)
      u32[(block + 8) >> 2] = index
      sum += u32[(block + 8) >> 2]
      pool.free(block)
    }
  },
  'kept: write and read of 8 bytes, by calls'() {
    for (let index = 0; index < BLOCKS; index++) {
      called.write(calledBlocks[index], few)
      sum += called.read(calledBlocks[index], 0, 8)[0]
    }
  },
  'kept: write and read of 8 bytes'() {
    for (let index = 0; index < BLOCKS; index++) {
      obj.write(blocks[index], few)
      sum += obj.read(blocks[index], 0, 8)[0]
    }
  },
  'kept: setUint32 and getUint32, by calls'() {
    for (let index = 0; index < BLOCKS; index++) {
      called.setUint32(calledBlocks[index], index, 8)
      sum += called.getUint32(calledBlocks[index], 8)
    }
  },
  'kept: setUint32 and getUint32'() {
    for (let index = 0; index < BLOCKS; index++) {
      obj.setUint32(blocks[index], index, 8)
      sum += obj.getUint32(blocks[index], 8)
    }
  },
  'kept: a view'() {
    for (let index = 0; index < BLOCKS; index++) {
      const view = views[index]
      view[8] = index
      sum += view[8]
    }
  },
  'kept: @thi.ng/malloc'() {
    for (let index = 0; index < BLOCKS; index++) {
      const block = poolBlocks[index]
      u32[(block + 8) >> 2] = index
      sum += u32[(block + 8) >> 2]
    }
  },
}

const rounds = Number(process.argv[2] ?? 300)
const times = new Map(Object.keys(timed).map((name) => [name, []]))
// The first rounds let everything be compiled.
for (let round = -Math.ceil(rounds / 4); round < rounds; round++)
  for (const [name, all] of times) {
    const begin = process.hrtime.bigint()
    timed[name]()
    if (round >= 0) all.push(Number(process.hrtime.bigint() - begin) / BLOCKS)
  }
if (Number.isNaN(sum)) throw new Error('expected numbers')
console.log(`${process.version}, nanoseconds a block: medians and lowest tenths of ${rounds} rounds`)
for (const [name, all] of times) {
  all.sort((one, other) => one - other)
  const [median, low] = [all[all.length >> 1], all[Math.floor(all.length / 10)]].map((time) => time.toFixed(1).padStart(8))
  console.log(`${name.padEnd(42)}${median}${low}`)
}
