import test from 'ava'

import { Heap, MemoryFault, type Address, type ArenaAllocator } from 'obmalloc'

import { arenasFrom, KiB, releases, some } from './tools.ts'

const ARENA = KiB * KiB

test('the allocator in place is always the same object', (t) => {
  using heap = new Heap()
  const own = heap.getArenaAllocator()
  t.is(heap.getArenaAllocator(), own)
  const mine: ArenaAllocator = { alloc: () => null, free: () => {} }
  heap.setArenaAllocator(mine)
  t.is(heap.getArenaAllocator(), mine)
  heap.setArenaAllocator(own)
  t.is(heap.getArenaAllocator(), own)
  some(heap.obj.malloc(8))
  t.is(heap.arenas().length, 1)
})

test('arenas come from a script and go back to it, in what the raw allocator gave', (t) => {
  using heap = new Heap()
  const arenas = arenasFrom(heap)
  heap.setArenaAllocator(arenas)
  const blocks = Array.from({ length: 5000 }, () => some(heap.obj.malloc(512)))
  t.is(heap.arenas().length, arenas.held.size)
  t.true(arenas.held.size > 1)
  for (const block of blocks) heap.obj.view(block).fill(1)
  heap.verify()
  for (const block of blocks) heap.obj.free(block)
  heap.verify()
  t.is(heap.arenas().length, arenas.held.size)
  heap.close()
  t.is(arenas.held.size, 0)
})

test("wrapping the heap's own allocator changes no address", (t) => {
  using plain = new Heap()
  using wrapped = new Heap()
  const own = wrapped.getArenaAllocator()
  const sizes: number[] = []
  wrapped.setArenaAllocator({
    alloc(size) {
      sizes.push(size)
      return own.alloc(size)
    },
    free(address, size) {
      own.free(address, size)
    },
  })
  const trail = (heap: Heap) => {
    const blocks = Array.from({ length: 6000 }, (_, index) => some(heap.obj.malloc((index * 37) % 513)))
    const base = heap.arenas()[0]?.address ?? 0
    const offsets = blocks.filter((_, index) => (index * 37) % 513 !== 0).map((block) => block - base)
    for (const block of blocks) heap.obj.free(block)
    // How many nodes the arena map needs depends on where in memory the arenas are.
    const [statistics] = heap.debugMallocStats().split('arena map counts')
    return [offsets, heap.arenas().length, statistics] as const
  }
  t.deepEqual(trail(wrapped), trail(plain))
  t.true(sizes.length > 1 && sizes.every((size) => size === ARENA))
  wrapped.verify()
})

test('arenas of the heap go to a script that came later, and back to the heap after it', (t) => {
  using heap = new Heap({ release: '3.8' })
  const own = heap.getArenaAllocator()
  const raw = heap.getAllocator('raw')
  const first = some(heap.obj.malloc(512))
  const given: Address[] = []
  heap.setArenaAllocator({
    alloc: (size) => raw.malloc(size),
    free: (address, size) => {
      given.push(address)
      own.free(address, size)
    },
  })
  const base = heap.arenas()[0]?.address
  heap.obj.free(first)
  t.deepEqual(given, [base as Address])
  const second = some(heap.obj.malloc(512))
  const [arena] = heap.arenas()
  t.is(arena?.size, 256 * KiB)
  heap.setArenaAllocator(own)
  t.throws(() => raw.free(arena?.address as Address), { code: 'ERR_REENTRANT' })
  heap.obj.free(second)
  raw.free(arena?.address as Address)
  some(heap.obj.malloc(512))
  heap.verify()
})

test('null is an answer: the request goes to the raw domain', (t) => {
  using heap = new Heap()
  heap.setArenaAllocator({ alloc: () => null, free: () => {} })
  const block = some(heap.obj.malloc(64))
  t.is(heap.obj.usableSize(block), 64)
  t.deepEqual(heap.arenas(), [])
  heap.obj.free(block)
})

test('an alloc that throws fails the call, and the heap is as before', (t) => {
  using heap = new Heap()
  const kept = some(heap.raw.malloc(10))
  heap.setArenaAllocator({
    alloc: () => {
      throw new RangeError('no')
    },
    free: () => {},
  })
  const calls: Array<() => unknown> = [
    () => heap.obj.malloc(64),
    () => heap.mem.calloc(1, 64),
    () => heap.obj.realloc(null, 64),
    () => heap.run(Uint32Array.of(0, 2, 0, 64)),
  ]
  for (const call of calls) {
    const before = heap.debugMallocStats()
    const error = t.throws(call, { instanceOf: MemoryFault, code: 'ERR_CALLBACK_THREW' })
    t.true((error?.cause as Error) instanceof RangeError)
    t.is(heap.debugMallocStats(), before)
    t.is(heap.allocatedBlocks(), 0)
    heap.verify()
  }
  t.is(heap.raw.usableSize(kept), 10)
  some(heap.obj.malloc(1000))
})

test('a realloc whose arena cannot be had leaves the old block', (t) => {
  using heap = new Heap()
  const own = heap.getArenaAllocator()
  const block = some(heap.obj.malloc(64))
  const view = heap.obj.view(block).fill(3)
  const fill: Address[] = []
  while (heap.arenas().length === 1 && (heap.arenas()[0]?.freePools ?? 0) > 0) fill.push(some(heap.obj.malloc(512)))
  heap.setArenaAllocator({
    alloc: () => {
      throw new Error('no')
    },
    free: own.free,
  })
  t.throws(() => heap.obj.realloc(block, 300), { code: 'ERR_CALLBACK_THREW' })
  t.true(heap.obj.read(block).every((byte) => byte === 3))
  t.true(view.length === 0 || view.length === 64)
  heap.verify()
})

test('what alloc gives must be memory that is known and free', (t) => {
  using heap = new Heap()
  const raw = heap.getAllocator('raw')
  const small = some(raw.malloc(ARENA - 1))
  const big = some(raw.malloc(3 * ARENA))
  const freed = some(raw.malloc(ARENA))
  raw.free(freed)
  const mine = some(heap.raw.malloc(ARENA))
  const answers: unknown[] = [
    undefined,
    Number.NaN,
    -1,
    1.5,
    0,
    'x',
    {},
    12n,
    true,
    Promise.resolve(big),
    4096,
    2 ** 47,
    Number.MAX_SAFE_INTEGER,
    small,
    freed,
    mine,
    big + 8,
    big + 2 * ARENA + 16,
  ]
  for (const answer of answers) {
    heap.setArenaAllocator({ alloc: () => answer as Address, free: () => {} })
    t.throws(() => heap.obj.malloc(64), { code: 'ERR_CALLBACK_RESULT' }, String(answer))
    heap.verify()
  }
  heap.setArenaAllocator({ alloc: async () => big, free: () => {} } as never)
  t.throws(() => heap.obj.malloc(64), { code: 'ERR_CALLBACK_RESULT' })
  t.is(heap.allocatedBlocks(), 0)

  heap.setArenaAllocator({ alloc: () => big, free: () => {} })
  const blocks = Array.from({ length: 63 * 31 }, () => some(heap.obj.malloc(512)))
  t.is(heap.arenas().length, 1)
  t.throws(
    () => {
      for (;;) heap.obj.malloc(512)
    },
    { code: 'ERR_CALLBACK_RESULT' },
  )
  heap.setArenaAllocator({ alloc: () => (big + 4096) as Address, free: () => {} })
  t.throws(
    () => {
      for (;;) heap.obj.malloc(512)
    },
    { code: 'ERR_CALLBACK_RESULT' },
  )
  t.is(blocks.length, 63 * 31)
  heap.verify()
})

test('calls into the heap from its own callbacks are refused', (t) => {
  using heap = new Heap()
  const own = heap.getArenaAllocator()
  const [raw, obj] = [heap.getAllocator('raw'), heap.getAllocator('obj')]
  const codes: unknown[] = []
  const block = some(heap.raw.malloc(8))
  heap.setArenaAllocator({
    alloc(size) {
      for (const call of [
        () => heap.obj.malloc(8),
        () => heap.raw.malloc(8),
        () => heap.raw.free(block),
        () => heap.raw.view(block),
        () => heap.verify(),
        () => heap.close(),
        () => heap.arenas(),
        () => heap.run(new Uint32Array(0)),
        () => heap.setArenaAllocator(own),
        () => heap.allocatedBlocks(),
        () => heap.debugMallocStats(),
        () => obj.malloc(8),
      ]) {
        try {
          call()
          codes.push('no error')
        } catch (error) {
          codes.push((error as MemoryFault).code)
        }
      }
      return raw.malloc(size)
    },
    free: (address) => raw.free(address),
  })
  some(heap.obj.malloc(8))
  t.deepEqual([...new Set(codes)], ['ERR_REENTRANT'])
  heap.verify()
  heap.close()
})

test('a free that throws is told after the block is freed', (t) => {
  using heap = new Heap({ release: '3.8' })
  const raw = heap.getAllocator('raw')
  heap.setArenaAllocator({
    alloc: (size) => raw.malloc(size),
    free: () => {
      throw new Error('kept')
    },
  })
  const block = some(heap.obj.malloc(64))
  t.throws(() => heap.obj.free(block), { code: 'ERR_CALLBACK_THREW' })
  t.is(heap.allocatedBlocks(), 0)
  t.deepEqual(heap.arenas(), [])
  t.throws(() => heap.obj.free(block), { code: 'ERR_DOUBLE_FREE' })
  heap.verify()
  const again = some(heap.obj.malloc(64))
  const moved = t.throws(() => heap.obj.realloc(again, 5000), { code: 'ERR_CALLBACK_THREW' }) as MemoryFault
  t.is(heap.obj.usableSize(moved.address as Address), 5000)
  heap.obj.free(moved.address as Address)
})

test("a heap's own arena allocator serves a script", (t) => {
  using heap = new Heap()
  const own = heap.getArenaAllocator()
  const arenas: ArenaAllocator = { alloc: (size) => own.alloc(size), free: (address, size) => own.free(address, size) }
  heap.setArenaAllocator(arenas)
  const block = some(heap.obj.malloc(64))
  const [arena] = heap.arenas()
  t.throws(() => own.free(arena?.address as Address, ARENA), { code: 'ERR_REENTRANT' })
  t.throws(() => own.free(block, ARENA), { code: 'ERR_FOREIGN_POINTER' })
  heap.obj.free(block)
  const other = some(own.alloc(5000))
  t.throws(() => own.free(other, 5001), { code: 'ERR_FOREIGN_POINTER' })
  own.free(other, 5000)
  t.throws(() => own.free(other, 5000), { code: 'ERR_FOREIGN_POINTER' })
  t.is(own.alloc(2 ** 52), null)
  some(own.alloc(ARENA))
  heap.verify()
  heap.close()
  t.throws(() => own.free(arena?.address as Address, ARENA), { code: 'ERR_HEAP_CLOSED' })
  t.throws(() => own.alloc(ARENA), { code: 'ERR_HEAP_CLOSED' })
})

test('what a script keeps of its arenas goes with the heap', (t) => {
  const heap = new Heap()
  const raw = heap.getAllocator('raw')
  heap.setArenaAllocator({ alloc: (size) => raw.malloc(size), free: () => {} })
  const block = some(heap.obj.malloc(64))
  heap.setArenaAllocator({ alloc: () => null, free: () => {} })
  heap.obj.view(block).fill(9)
  heap.verify()
  heap.obj.free(block)
  heap.verify()
  heap.close()
  t.throws(() => raw.malloc(1), { code: 'ERR_HEAP_CLOSED' })
})

test('what is no allocator is refused', (t) => {
  using heap = new Heap()
  for (const value of [null, undefined, 5, {}, { alloc: () => null }, { alloc: 1, free: 2 }, () => null]) {
    t.throws(() => heap.setArenaAllocator(value as never), { name: 'TypeError', code: 'ERR_INVALID_ARG_TYPE' })
  }
  some(heap.obj.malloc(8))
})

test('objects whose arena cannot be had, or is given back badly, leave the heap whole', (t) => {
  for (const release of releases) {
    using heap = new Heap({ release })
    const boom = new Error('boom')
    let fails = true
    const arenas = arenasFrom(heap)
    heap.setArenaAllocator({
      alloc(size) {
        if (fails) throw boom
        return arenas.alloc(size)
      },
      free(address, size) {
        arenas.free(address, size)
        if (fails) throw boom
      },
    })
    const type = heap.defineType({ name: 'node', gc: true, fields: { next: 'object' } })
    const failed = t.throws(() => type.alloc(), { code: 'ERR_CALLBACK_THREW' })
    t.is(failed?.cause, boom)
    t.deepEqual(heap.gc.getObjects(), [])
    fails = false
    const objects = Array.from({ length: 50_000 }, () => type.alloc())
    for (const [index, object] of objects.entries()) type.set(object, 'next', objects[(index + 1) % objects.length]!)
    for (const object of objects) heap.decref(object)
    fails = true
    const held = arenas.held.size
    t.true(held > 1)
    const told = t.throws(() => heap.gc.collect(), { code: 'ERR_CALLBACK_THREW' })
    t.is(told?.cause, boom)
    t.deepEqual(heap.gc.getObjects(), [], 'it is done all the same')
    t.true(arenas.held.size < held)
    fails = false
    heap.verify()
    heap.decref(type.alloc())
    heap.verify()
  }
})
