import { createRequire } from 'node:module'

import test from 'ava'

import * as esm from 'obmalloc'
import { Heap, type Release } from 'obmalloc'

import { releases, some } from './tools.ts'

test('ES modules and CommonJS have the same classes', (t) => {
  const cjs = createRequire(import.meta.url)('obmalloc') as typeof esm
  t.is(cjs.Heap, esm.Heap)
  t.is(cjs.MemoryFault, esm.MemoryFault)
  t.is(cjs.MemoryError, esm.MemoryError)
  t.is(cjs.ObjectType, esm.ObjectType)
  t.deepEqual(Object.keys(esm).sort(), Object.keys(cjs).sort())
})

test('a heap is of 3.14 when nothing is said', (t) => {
  using heap = new Heap()
  t.is(heap.release, '3.14')
  t.deepEqual({ ...heap.geometry }, { arenaSize: 1 << 20, poolSize: 16384, alignment: 16, smallRequestThreshold: 512 })
})

test('every release has its geometry, and its first block lies 48 bytes into its first pool', (t) => {
  for (const release of releases) {
    using heap = new Heap({ release })
    const old = release === '3.8' || release === '3.9'
    t.is(heap.geometry.arenaSize, old ? 256 << 10 : 1 << 20)
    const block = some(heap.obj.malloc(1))
    t.is(block % heap.geometry.poolSize, 48)
    const [arena] = heap.arenas()
    t.deepEqual(arena, { address: (block - 48) as typeof block, size: heap.geometry.arenaSize, freePools: 63, totalPools: 64 })
  }
})

test('departures of geometry are taken', (t) => {
  using heap = new Heap({
    release: '3.13',
    geometry: { arenaSize: 64 << 10, poolSize: 4096, alignment: 8, smallRequestThreshold: 1024 },
  })
  t.is(heap.geometry.alignment, 8)
  t.is(heap.obj.usableSize(some(heap.obj.malloc(3))), 8)
  t.is(heap.obj.usableSize(some(heap.obj.malloc(1020))), 1024)
  t.is(heap.arenas()[0]?.totalPools, 16)
  heap.verify()
})

test('a refused option is named with what was expected and what came', (t) => {
  t.throws(() => new Heap({ geometry: { arenaSize: 1000 } }), {
    message: 'geometry.arenaSize: expected a power of two from 65536 to 67108864, got 1000',
  })
  t.throws(() => new Heap({ release: '2.7' as Release }), { message: /^release: expected one of '3\.8', .*'3\.15', got "2\.7"$/ })
  t.throws(() => new Heap({ allocator: 'mimalloc' as 'default' }), {
    name: 'RangeError',
    message: `allocator: expected one of 'default', 'debug', 'malloc', 'malloc_debug', 'pymalloc', 'pymalloc_debug', got "mimalloc"`,
  })
  t.throws(() => new Heap({ allocator: 7 as unknown as 'default' }), {
    name: 'TypeError',
    message: /^allocator: expected one of .*got 7$/,
  })
})

test('with malloc for all domains there is no arena and nothing to tell', (t) => {
  using heap = new Heap({ allocator: 'malloc' })
  const block = some(heap.obj.malloc(40))
  t.is(heap.obj.usableSize(block), 40)
  t.deepEqual(heap.arenas(), [])
  t.is(heap.allocatedBlocks(), 0)
  t.is(heap.debugMallocStats(), '')
  heap.verify()
  heap.obj.free(block)
})

test('allocated blocks are those of mem and obj', (t) => {
  using heap = new Heap()
  heap.raw.malloc(10)
  t.is(heap.allocatedBlocks(), 0)
  const blocks = [some(heap.mem.malloc(10)), some(heap.mem.malloc(1000))]
  some(heap.obj.calloc(10, 10))
  t.is(heap.allocatedBlocks(), 3)
  for (const block of blocks) heap.mem.free(block)
  t.is(heap.allocatedBlocks(), 1)
})

test('the statistics are the text of sys._debugmallocstats()', (t) => {
  using heap = new Heap({ release: '3.13' })
  heap.obj.malloc(64)
  const text = heap.debugMallocStats()
  t.true(text.startsWith('Small block threshold = 512, in 32 size classes.\n'))
  t.true(text.includes('    3     64           1               1           254\n'))
})

test('past the memory limit there is no memory, and after a free there is', (t) => {
  using heap = new Heap({ memoryLimit: 4 << 20 })
  const block = some(heap.raw.malloc(3 << 20))
  t.is(heap.raw.malloc(2 << 20), null)
  t.is(heap.raw.realloc(block, 5 << 20), null)
  heap.raw.free(block)
  heap.raw.free(some(heap.raw.malloc(2 << 20)))
})

test('address order repeats from heap to heap', (t) => {
  const offsets = () => {
    using heap = new Heap({ release: '3.12' })
    let seed = 7
    const random = (below: number) => (seed = (seed * 1103515245 + 12345) % 2 ** 31) % below
    const live: Array<NonNullable<ReturnType<typeof heap.obj.malloc>>> = []
    const trail: number[] = []
    const base = () => heap.arenas()[0]?.address ?? 0
    for (let step = 0; step < 5000; step++) {
      if (live.length > 0 && random(3) === 0) heap.obj.free(live.splice(random(live.length), 1)[0] ?? null)
      else {
        const block = some(heap.obj.malloc(1 + random(512)))
        live.push(block)
        trail.push(block - base())
      }
    }
    heap.verify()
    return trail
  }
  t.deepEqual(offsets(), offsets())
})
