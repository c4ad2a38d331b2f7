import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { inspect } from 'node:util'

import test from 'ava'

import * as esm from 'obmalloc'
import { Heap, type Release } from 'obmalloc'

import { releases, some } from './tools.ts'

/** Bytes of this process that are resident. */
const residentBytes = (): number => Number(/VmRSS:\s+(\d+) kB/.exec(readFileSync('/proc/self/status', 'utf8'))![1]) * 1024

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
    t.deepEqual(arena, {
      address: (block - 48) as typeof block,
      size: heap.geometry.arenaSize,
      trimmedPools: 0,
      freePools: 63,
      totalPools: 64,
    })
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

test('a number of millions of digits is refused in a few words, and at once', (t) => {
  using heap = new Heap()
  t.throws(() => heap.obj.malloc(1n << 20_000_000n), {
    code: 'ERR_OUT_OF_RANGE',
    message: /^size: expected an integer .*, got a BigInt of more than 256 bits$/,
  })
  t.throws(() => heap.obj.malloc(1n << 64n), { message: /got 18446744073709551616n$/ })
})

test.serial('a revoked proxy is no function, however a program has values shown', (t) => {
  const { proxy, revoke } = Proxy.revocable(() => {}, {})
  revoke()
  const { colors } = inspect.defaultOptions
  inspect.defaultOptions.colors = true
  t.teardown(() => (inspect.defaultOptions.colors = colors))
  t.throws(() => new Heap({ onUnraisable: proxy }), { code: 'ERR_INVALID_ARG_TYPE', message: /got a revoked proxy$/ })
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

test('a trim gives back the memory of pools that hold no block, and changes nothing else', (t) => {
  using heap = new Heap()
  const blocks = Array.from({ length: 100_000 }, () => some(heap.obj.malloc(512)))
  // One of a thousand stays, so that no arena can be released.
  blocks.forEach((block, index) => index % 1000 === 0 || heap.obj.free(block))
  const [stats, count, before] = [heap.debugMallocStats(), heap.allocatedBlocks(), residentBytes()]
  const empty = heap.arenas().reduce((sum, arena) => sum + arena.freePools, 0)
  const trimmed = heap.trim()
  const after = residentBytes()
  t.deepEqual({ ...trimmed }, { pools: 3126, bytes: 3126 * 16384 })
  const inArenas = heap.arenas().reduce((sum, arena) => sum + arena.trimmedPools, 0)
  t.is(inArenas, 3126)
  t.true(empty - inArenas < 64, 'all but the end of the last arena')
  t.true(before - after > trimmed.bytes * 0.95, `${before - after} bytes less are resident`)
  t.is(heap.debugMallocStats(), stats)
  t.is(heap.allocatedBlocks(), count)
  t.deepEqual({ ...heap.trim() }, { pools: 0, bytes: 0 })
  heap.verify()
  for (let index = 0; index < 100_000; index += 1000) t.is(heap.obj.usableSize(blocks[index]!), 512)
  t.throws(() => heap.obj.free(blocks[1]!), { code: 'ERR_DOUBLE_FREE' })
})

test('a view of a block that stays is whole after a trim, and one of a freed block is gone', (t) => {
  using heap = new Heap({ trimAbove: 0 })
  const blocks = Array.from({ length: 300 }, () => some(heap.obj.malloc(512)))
  const views = blocks.map((block) => heap.obj.view(block).fill(7))
  for (const [index, block] of blocks.entries()) if (index % 100 !== 0) heap.obj.free(block)
  t.true(heap.arenas()[0]!.trimmedPools >= 5, 'by itself')
  heap.trim()
  for (const [index, view] of views.entries()) {
    if (index % 100 === 0) t.deepEqual(view, new Uint8Array(512).fill(7))
    else t.is(view.length, 0)
  }
})

test('a heap trims by itself above the bound that is set', (t) => {
  const most = (trimAbove?: number): number => {
    using heap = new Heap(trimAbove === undefined ? {} : { trimAbove })
    const blocks = Array.from({ length: 40_000 }, () => some(heap.obj.malloc(512)))
    let most = 0
    for (const [index, block] of blocks.entries()) {
      if (index % 1000 === 0) continue
      heap.obj.free(block)
      if (index % 500 !== 0) continue
      const kept = heap.arenas().reduce((sum, arena) => sum + arena.freePools - arena.trimmedPools, 0)
      most = Math.max(most, kept)
    }
    heap.verify()
    return most * heap.geometry.poolSize
  }
  const kept = most()
  t.true(kept > 16 << 20, `${kept} bytes without a bound`)
  // The end of the last arena was never in use.
  t.true(most(2 << 20) < 4 << 20)
})

test('a trim is refused where the heap cannot be used', (t) => {
  using heap = new Heap()
  const own = heap.getAllocator('obj')
  const codes: unknown[] = []
  heap.setAllocator('obj', {
    ...own,
    malloc: (size) => {
      codes.push((t.throws(() => heap.trim()) as { code?: unknown }).code)
      return own.malloc(size)
    },
  })
  heap.obj.malloc(64)
  t.deepEqual(codes, ['ERR_REENTRANT'])
  heap.setAllocator('obj', own)
  heap.close()
  t.throws(() => heap.trim(), { code: 'ERR_HEAP_CLOSED' })
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
