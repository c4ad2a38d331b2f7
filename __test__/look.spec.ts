/** What is inside a heap: statistics, arenas, pools and blocks as data, and what is shown of it. */

import { inspect } from 'node:util'

import test from 'ava'
import { Heap, MemoryError, MemoryFault, type Address, type HeapStats } from 'obmalloc'

import { arenasFrom, releases, some, transfer } from './tools.ts'

/** The numbers of the text of CPython's statistics, under the names that they have there. */
function read(text: string): HeapStats {
  const lines = text.split('\n')
  const number = (start: string, from = 0): number => {
    const line = lines.slice(from).find((line) => line.startsWith(start) && line.includes('='))
    if (line === undefined) throw new Error(`expected a line ${start}`)
    return Number(line.split('=').at(-1)!.trim().replaceAll(',', ''))
  }
  const counted = (pattern: RegExp): number => {
    const line = lines.find((line) => pattern.test(line))!
    return Number(line.split('=').at(-1)!.trim().replaceAll(',', ''))
  }
  const [, smallBlockThreshold, sizeClasses] = /^Small block threshold = (\d+), in (\d+) size classes/.exec(text)!
  const rows = lines.filter((line) => /^( *\d+){5}$/.test(line)).map((line) => line.trim().split(/ +/).map(Number))
  const map = lines.indexOf('arena map counts')
  return {
    smallBlockThreshold: Number(smallBlockThreshold),
    sizeClasses: Number(sizeClasses),
    classes: rows.map(([number, size, pools, blocksInUse, availBlocks]) => ({
      class: number!,
      size: size!,
      pools: pools!,
      blocksInUse: blocksInUse!,
      availBlocks: availBlocks!,
    })),
    arenas: {
      allocatedTotal: number('# arenas allocated total'),
      reclaimed: number('# arenas reclaimed'),
      highwaterMark: number('# arenas highwater mark'),
      allocatedCurrent: number('# arenas allocated current'),
      bytes: counted(/^\d+ arenas \* \d+ bytes\/arena/),
    },
    bytes: {
      allocatedBlocks: number('# bytes in allocated blocks'),
      availableBlocks: number('# bytes in available blocks'),
      unusedPools: counted(/^\d+ unused pools \* \d+ bytes/),
      poolHeaders: number('# bytes lost to pool headers'),
      quantization: number('# bytes lost to quantization'),
      arenaAlignment: number('# bytes lost to arena alignment'),
      total: number('Total'),
    },
    arenaMap:
      map < 0
        ? null
        : {
            midNodes: number('# arena map mid nodes', map),
            botNodes: number('# arena map bot nodes', map),
            rootBytes: number('# bytes lost to arena map root', map),
            midBytes: number('# bytes lost to arena map mid', map),
            botBytes: number('# bytes lost to arena map bot', map),
            total: number('Total', map),
          },
  }
}

/** Blocks of many sizes; most of them are freed. */
function used(heap: Heap): Address[] {
  const blocks = Array.from({ length: 20_000 }, (_, index) => some(heap.obj.malloc(1 + ((index * 7919) % 512))))
  for (const block of blocks.slice(0, 15_000)) heap.obj.free(block)
  return blocks.slice(15_000)
}

for (const release of releases)
  test(`the statistics of ${release} are the same numbers as text and as data`, (t) => {
    using heap = new Heap({ release })
    const looks = [() => {}, () => used(heap), () => heap.trim(), () => heap.mem.malloc(8)]
    for (const look of looks) {
      look()
      const stats = heap.stats()!
      t.deepEqual(stats, read(heap.debugMallocStats()))
      t.deepEqual(JSON.parse(JSON.stringify(stats)), stats)
    }
    t.is(heap.stats()!.bytes.total, heap.stats()!.arenas.bytes)
  })

test('arenas that do not begin at a multiple of the pool size count as such in the numbers too', (t) => {
  using heap = new Heap({ release: '3.10' })
  heap.setArenaAllocator(arenasFrom(heap))
  heap.obj.malloc(64)
  const stats = heap.stats()!
  t.deepEqual(stats, read(heap.debugMallocStats()))
  t.is(stats.bytes.arenaAlignment, heap.geometry.poolSize)
  const [arena] = heap.arenas()
  const pools = [...heap.pools(arena!.address)]
  t.is(pools.length, arena!.totalPools)
  t.is(pools[0]!.address % heap.geometry.poolSize, 0)
  t.is(pools.filter(({ used }) => used > 0).length, 1)
})

test('there are no statistics where there is no text', (t) => {
  for (const allocator of ['malloc', 'malloc_debug'] as const) {
    using heap = new Heap({ allocator })
    t.is(heap.debugMallocStats(), '')
    t.is(heap.stats(), null)
  }
})

for (const release of releases)
  test(`pools and blocks of ${release} are those that the heap counts`, (t) => {
    using heap = new Heap({ release })
    const live = new Set(used(heap))
    const found = new Set<Address>()
    const states = new Set<string>()
    for (const arena of heap.arenas()) {
      const pools = [...heap.pools(arena.address)]
      t.is(pools.length, arena.totalPools)
      t.is(pools.filter(({ state }) => state === 'empty').length, arena.freePools)
      for (const pool of pools) {
        states.add(pool.state)
        const blocks = [...heap.blocks(pool.address)]
        t.is(blocks.length, pool.used + pool.free)
        t.is(blocks.filter((block) => block.used).length, pool.used)
        t.is(pool.blockSize, pool.sizeClass === null ? null : (pool.sizeClass + 1) * heap.geometry.alignment)
        for (const block of blocks.filter((block) => block.used)) {
          found.add(block.address)
          t.is(heap.obj.usableSize(block.address), pool.blockSize ?? 0)
        }
      }
    }
    t.is(found.size, live.size)
    t.true([...found].every((block) => live.has(block)))
    t.deepEqual([...states].toSorted(), ['empty', 'full', 'used'])
  })

test('what happens to a heap while it is looked at has a result or is an error', (t) => {
  const heap = new Heap({ release: '3.8' })
  const first = some(heap.obj.malloc(64))
  const arena = heap.arenas()[0]!.address

  // Each pool is as it is when its turn comes.
  const pools = heap.pools(arena)
  t.is(pools.next().value?.used, 1)
  const second = some(heap.obj.malloc(500))
  t.is(pools.next().value?.blockSize, 512)
  // Blocks are as they were.
  const blocks = heap.blocks((first - 48) as Address)
  heap.obj.free(first)
  t.like(blocks.next().value, { address: first, used: true })
  t.false([...heap.blocks((first - 48) as Address)].some(({ used }) => used))

  // The arena goes.
  heap.obj.free(second)
  t.deepEqual(heap.arenas(), [])
  t.throws(() => pools.next(), {
    code: 'ERR_USE_AFTER_FREE',
    message: /^expected an arena that is held, but 0x[0-9a-f]+ has been/,
  })
  t.true(pools.next().done)
  t.throws(() => heap.pools(arena), { code: 'ERR_FOREIGN_POINTER' })

  // Another one comes to its place.
  const third = some(heap.obj.malloc(64))
  const others = heap.pools(heap.arenas()[0]!.address)
  t.is(others.next().value?.used, 1)
  heap.obj.free(third)
  heap.obj.malloc(32)
  t.is([...others].length, 63)

  // The heap goes.
  const last = heap.pools(heap.arenas()[0]!.address)
  const snapshot = heap.blocks(last.next().value!.address)
  heap.close()
  t.throws(() => last.next(), { code: 'ERR_HEAP_CLOSED' })
  t.is([...snapshot].filter(({ used }) => used).length, 1)
  for (const look of [() => heap.stats(), () => heap.pools(arena), () => heap.blocks(arena)])
    t.throws(look, { code: 'ERR_HEAP_CLOSED' })
})

test('a heap can be looked at from inside a traverse, and its iterators go on after a collection', (t) => {
  using heap = new Heap({ release: '3.13' })
  heap.mem.malloc(1)
  const arena = heap.arenas()[0]!.address
  const pools = heap.pools(arena)
  let inside: unknown
  const Looking = heap.defineType({
    name: 'looking',
    gc: true,
    traverse() {
      inside ??= [heap.stats()!.arenas.allocatedCurrent, [...pools].length, [...heap.blocks(arena)].length]
    },
  })
  Looking.alloc()
  heap.gc.collect()
  t.deepEqual(inside, [1, 64, [...heap.blocks(arena)].length])
  t.true(pools.next().done)
})

test('inside a callback of an arena allocator a heap cannot be looked at, and says so', (t) => {
  using heap = new Heap({ release: '3.13' })
  const own = heap.getArenaAllocator()
  const codes: unknown[] = []
  const shown: string[] = []
  heap.setArenaAllocator({
    alloc(size) {
      for (const look of [() => heap.stats(), () => heap.pools(1 as Address), () => heap.blocks(1 as Address)])
        codes.push(t.throws(look).message.length > 0 && (t.throws(look) as MemoryFault).code)
      shown.push(inspect(heap))
      return own.alloc(size)
    },
    free: (address, size) => own.free(address, size),
  })
  heap.obj.malloc(8)
  t.deepEqual(codes, ['ERR_REENTRANT', 'ERR_REENTRANT', 'ERR_REENTRANT'])
  t.deepEqual(shown, ["Heap { release: '3.13', allocator: 'default', state: 'busy' }"])
})

test('a trimmed pool has no size class and no blocks', (t) => {
  using heap = new Heap({ release: '3.13' })
  const kept = some(heap.obj.malloc(16))
  const block = some(heap.obj.malloc(512))
  heap.obj.free(block)
  const pool = (block - 48) as Address
  t.is([...heap.blocks(pool)].length, 31)
  heap.trim()
  t.is([...heap.blocks(pool)].length, 0)
  const [, trimmed] = [...heap.pools(heap.arenas()[0]!.address)]
  t.deepEqual(trimmed, { address: pool, state: 'empty', sizeClass: null, blockSize: null, used: 0, free: 0 })
  heap.obj.free(kept)
})

test('a block in quarantine, or that a buffer reaches, counts as used until pymalloc has got it back', (t) => {
  const usedIn = (heap: Heap, block: Address): number =>
    [...heap.blocks((block - 48) as Address)].filter(({ used }) => used).length
  {
    using heap = new Heap({ quarantine: 1 << 20 })
    const block = some(heap.obj.malloc(64))
    heap.obj.free(block)
    t.is(usedIn(heap, block), 1)
  }
  using heap = new Heap()
  const block = some(heap.obj.malloc(64))
  const moved = transfer(heap.obj.view(block).buffer)
  heap.obj.free(block)
  t.is(usedIn(heap, block), 1)
  t.is(moved.byteLength, 64)
})

test('a heap, its domains, types and faults show what is known of them, and closed ones too', (t) => {
  const heap = new Heap({ release: '3.13', allocator: 'pymalloc' })
  heap.obj.malloc(64)
  heap.raw.malloc(1000)
  const Point = heap.defineType({ name: 'point', fields: { x: 'f64', y: 'f64' } })
  const bytes = heap.toJSON().bytes!
  t.true(bytes >= heap.geometry.arenaSize + 1000)
  const open = { release: '3.13', allocator: 'pymalloc', state: 'open', allocatedBlocks: 1, arenas: 1, bytes }
  t.deepEqual({ ...heap.toJSON() }, open)
  t.deepEqual(JSON.parse(JSON.stringify(heap.mem)), { name: 'mem', heap: open })
  const text = `{ release: '3.13', allocator: 'pymalloc', state: 'open', allocatedBlocks: 1, arenas: 1, bytes: ${bytes} }`
  t.is(inspect(heap), `Heap ${text}`)
  t.is(inspect(heap.obj), `Domain { name: 'obj', heap: ${text} }`)
  t.is(inspect(Point), "ObjectType { name: 'point', basicsize: 32, itemsize: 0, fields: [ x, y ] }".replace('x, y', "'x', 'y'"))
  t.deepEqual(JSON.parse(JSON.stringify(Point)), { name: 'point', basicsize: 32, itemsize: 0, fields: ['x', 'y'] })

  heap.close()
  t.deepEqual({ ...heap.toJSON() }, { release: '3.13', allocator: 'pymalloc', state: 'closed' })
  t.is(inspect(heap), "Heap { release: '3.13', allocator: 'pymalloc', state: 'closed' }")
  t.is(inspect(heap.raw), "Domain { name: 'raw', heap: { release: '3.13', allocator: 'pymalloc', state: 'closed' } }")
  t.is(inspect(Point), "ObjectType { name: 'point', basicsize: 32, itemsize: 0, fields: [ 'x', 'y' ] }")

  const fault = t.throws(() => heap.obj.free(16 as Address)) as MemoryFault
  const { message } = fault
  t.deepEqual(JSON.parse(JSON.stringify(fault)), { name: 'MemoryFault', message, code: 'ERR_HEAP_CLOSED' })
  t.regex(inspect(fault), /^MemoryFault: expected an open heap[^]*code: 'ERR_HEAP_CLOSED'/)
  t.deepEqual(new MemoryError('no more').toJSON(), { name: 'MemoryError', message: 'no more', code: 'ERR_NO_MEMORY' })
  const fields = { code: 'ERR_OTHER', address: 16 }
  t.like(new MemoryError('no more', fields), { code: 'ERR_NO_MEMORY', address: 16 })
  t.like(new MemoryFault('ERR_DOUBLE_FREE', 'twice', fields), { code: 'ERR_DOUBLE_FREE', address: 16 })
})

test('a fault as data has every field that is known', (t) => {
  using heap = new Heap()
  const block = some(heap.obj.malloc(64))
  const fault = t.throws(() => heap.mem.free(block)) as MemoryFault
  t.deepEqual(JSON.parse(JSON.stringify(fault)), {
    name: 'MemoryFault',
    message: fault.message,
    code: 'ERR_WRONG_DOMAIN',
    address: block,
    domain: 'mem',
    used: 'mem',
    allocated: 'obj',
  })
})

test('showing a heap runs no collection that is due', (t) => {
  using heap = new Heap({ release: '3.13' })
  let collections = 0
  heap.gc.callbacks.push(() => void collections++)
  const Node = heap.defineType({ name: 'node', gc: true, fields: { next: 'object' } })
  heap.gc.setThreshold(1)
  while (heap.gc.getCount()[0] < 1 && collections === 0) Node.alloc()
  Node.alloc()
  Node.alloc()
  const before = collections
  for (let round = 0; round < 3; round++) t.regex(inspect(heap), /state: 'open'/)
  t.is(collections, before)
})
