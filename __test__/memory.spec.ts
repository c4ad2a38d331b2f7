/** Memory that is read and written without a call: the same answers and errors as with one, whatever is done with the heap meanwhile. */

import { once } from 'node:events'
import { createRequire } from 'node:module'
import { Worker } from 'node:worker_threads'

import test from 'ava'
import { Heap, type Address, type Allocator, type Domain, type ObjectType } from 'obmalloc'

import { addon, codeOf, collectUntil, releases, some, transfer } from './tools.ts'

/** Each kind of number: how wide it is, how the domain reads and writes it, how JavaScript does, and values on the edge and beyond. */
const kinds = [
  ['Uint8', 1, [0, 1, 255], [-1, 256, 0.5, NaN, Infinity, '1', 1n, undefined]],
  ['Int32', 4, [0, -1, 2 ** 31 - 1, -(2 ** 31)], [2 ** 31, -(2 ** 31) - 1, 0.5, NaN, '1', 1n, null]],
  ['Uint32', 4, [0, 1, 2 ** 32 - 1], [-1, 2 ** 32, 0.5, NaN, '1', 1n, {}]],
  ['BigInt64', 8, [0n, -1n, 2n ** 63n - 1n, -(2n ** 63n)], [2n ** 63n, -(2n ** 63n) - 1n, 0.5, 2 ** 53, '1', null]],
  ['Float64', 8, [0, -0, 1.5, NaN, -Infinity, Number.MIN_VALUE], ['1', 1n, undefined]],
] as const

type Get = (address: Address, offset?: unknown) => number | bigint
type Set_ = (address: Address, value: unknown, offset?: unknown) => void
const getter = (domain: Domain, name: string): Get => (domain[`get${name}` as 'getUint8'] as Get).bind(domain)
const setter = (domain: Domain, name: string): Set_ => (domain[`set${name}` as 'setUint8'] as Set_).bind(domain)

/** A random whole number below `limit`; the same ones in every run. */
function randomly(seed: number): (limit: number) => number {
  let state = seed
  return (limit) => {
    state = (Math.imul(state, 1_103_515_245) + 12_345) & 0x7fff_ffff
    return (state >>> 8) % limit
  }
}

for (const geometry of [{}, { arenaSize: 64 << 10, poolSize: 4096, alignment: 8 }])
  test(`numbers are what the bytes say, in every domain, at every offset: ${JSON.stringify(geometry)}`, (t) => {
    using heap = new Heap({ geometry })
    for (const domain of [heap.raw, heap.mem, heap.obj])
      for (const size of [1, 7, 8, 24, 512, 513, 5000]) {
        const block = some(domain.malloc(size))
        const usable = domain.usableSize(block)
        const bytes = Uint8Array.from({ length: usable }, (_, index) => (index * 37 + 11) & 255)
        domain.write(block, bytes)
        const view = new DataView(bytes.buffer)
        for (const [name, width, values, wrong] of kinds) {
          const [get, set] = [getter(domain, name), setter(domain, name)]
          const read = (view[`get${name}` as 'getUint32'] as (at: number, little: boolean) => number).bind(view)
          const write = (view[`set${name}` as 'setUint32'] as (at: number, value: unknown, little: boolean) => void).bind(view)
          for (let offset = 0; offset + width <= Math.min(usable, 40); offset++) t.is(get(block, offset), read(offset, true))
          for (const offset of [0, 1, usable - width].filter((offset) => offset >= 0 && offset + width <= usable))
            for (const value of values) {
              set(block, value, offset)
              write(offset, value, true)
              t.is(get(block, offset), value)
            }
          if (width <= usable) t.is(get(block), read(0, true))
          for (const offset of [usable - width + 1, usable, -1, 2 ** 31, 2 ** 32, 2 ** 53, 0.5, NaN, 2n ** 63n]) {
            t.is(
              codeOf(() => get(block, offset)),
              'ERR_OUT_OF_RANGE',
              `${name} at ${offset}`,
            )
            t.is(
              codeOf(() => set(block, values[0], offset)),
              'ERR_OUT_OF_RANGE',
            )
          }
          for (const offset of ['0', null, {}, true])
            t.is(
              codeOf(() => get(block, offset)),
              'ERR_INVALID_ARG_TYPE',
            )
          for (const value of wrong) {
            const code = codeOf(() => set(block, value))
            t.true(
              code === 'ERR_OUT_OF_RANGE' || code === 'ERR_INVALID_ARG_TYPE',
              `${name}: ${String(value)} gave ${String(code)}`,
            )
          }
          if (width <= usable) t.is(get(block, 0n), get(block, -0))
        }
        t.deepEqual(domain.read(block), bytes)
      }
    heap.verify()
  })

test('a few bytes are read and written as many are', (t) => {
  using heap = new Heap()
  for (const domain of [heap.raw, heap.mem, heap.obj]) {
    const block = some(domain.malloc(512))
    const bytes = Uint8Array.from({ length: 512 }, (_, index) => (index * 7) & 255)
    domain.write(block, bytes)
    for (let length = 0; length <= 130; length++)
      for (const offset of [0, 3, 512 - length]) {
        t.deepEqual(domain.read(block, offset, length), bytes.slice(offset, offset + length))
        domain.write(block, bytes.subarray(offset, offset + length), offset)
      }
    t.deepEqual(domain.read(block), bytes)
    // Within the same block, in both directions, by its view.
    const view = domain.view(block)
    domain.write(block, view.subarray(0, 300), 5)
    bytes.copyWithin(5, 0, 300)
    domain.write(block, view.subarray(9, 60), 2)
    bytes.copyWithin(2, 9, 60)
    t.deepEqual(domain.read(block), bytes)
    // What is empty or gone has no bytes.
    const gone = new Uint8Array(8)
    transfer(gone.buffer)
    domain.write(block, gone, 512)
    domain.write(block, new Uint8Array(0))
    t.deepEqual(domain.read(block), bytes)
    t.is(
      codeOf(() => domain.write(block, gone, 513)),
      'ERR_OUT_OF_RANGE',
    )
    for (const other of [new Uint16Array(1), new Uint8ClampedArray(1), [1], 'x', null, { length: 1 }])
      t.is(
        codeOf(() => domain.write(block, other as Uint8Array)),
        'ERR_INVALID_ARG_TYPE',
      )
    domain.write(block, Buffer.from([1, 2]))
    t.deepEqual([...domain.read(block, 0, 2)], [1, 2])
    domain.free(block)
  }
})

for (const release of releases)
  test(`a random program of ${release} finds each block as it is, and each that is gone as gone`, (t) => {
    using heap = new Heap({ release })
    const below = randomly(7)
    const domains = [heap.mem, heap.obj]
    const live = new Map<Address, [domain: Domain, size: number, value: number]>()
    const gone: Address[] = []
    const Plain = heap.defineType({ name: 'plain', fields: { count: 'i32' } })
    for (let step = 0; step < 2400; step++) {
      const domain = domains[below(2)]!
      // Now more blocks, now fewer, so that arenas come and go.
      if (below(10) < (step % 800 < 400 ? 8 : 1)) {
        const block = some(domain.malloc(4 + below(509)))
        t.false(live.has(block))
        const value = below(2 ** 31)
        domain.setUint32(block, value, domain.usableSize(block) - 4)
        live.set(block, [domain, domain.usableSize(block), value])
      } else if (live.size > 0) {
        const block = [...live.keys()][below(live.size)]!
        const [owner, size, value] = live.get(block)!
        t.is(owner.getUint32(block, size - 4), value)
        const other = owner === heap.mem ? heap.obj : heap.mem
        t.is(
          codeOf(() => other.getUint32(block)),
          'ERR_WRONG_DOMAIN',
        )
        t.is(
          codeOf(() => owner.getUint32(block, size - 3)),
          'ERR_OUT_OF_RANGE',
        )
        const inside = (block + 8 * (1 + below(size / 8 - 1 || 1))) as Address
        const expected = codeOf(() => owner.usableSize(inside))
        t.true(expected === 'ERR_INTERIOR_POINTER' || expected === 'ERR_USE_AFTER_FREE' || inside >= block + size)
        t.is(
          codeOf(() => owner.getUint8(inside)),
          expected,
        )
        if (owner === heap.obj && size >= Plain.basicsize && below(8) === 0) {
          // The block becomes an object. Its memory is no longer the caller's, and is freed with the object.
          const object = Plain.init(block)
          for (const code of [codeOf(() => owner.getUint8(block)), codeOf(() => owner.setUint8(block, 1))])
            t.is(code, 'ERR_WRONG_TYPE')
          heap.decref(object)
        } else owner.free(block)
        live.delete(block)
        gone.push(block)
      }
      const old = gone[below(gone.length || 1)]
      if (old !== undefined && !live.has(old)) {
        const expected = codeOf(() => domain.usableSize(old))
        t.truthy(expected)
        const uses = [() => domain.getUint8(old), () => domain.setUint8(old, 1), () => domain.read(old, 0, 1)]
        t.is(codeOf(uses[below(3)]!), expected)
      }
    }
    for (const [block, [owner, size, value]] of live) t.is(owner.getUint32(block, size - 4), value)
    heap.verify()
  })

test('what is to be known of a block besides is known without a window too', (t) => {
  const block = (heap: Heap): Address => {
    const block = some(heap.obj.malloc(20))
    heap.obj.setUint8(block, 7)
    t.is(heap.obj.getUint8(block, 31) >= 0, true)
    return block
  }
  {
    // To the caller a freed block is free, even while a buffer still reaches its memory.
    using heap = new Heap()
    const kept = block(heap)
    const other = block(heap)
    const bytes = new Uint8Array(transfer(heap.obj.view(kept).buffer))
    heap.obj.free(kept)
    for (const use of [() => heap.obj.getUint8(kept), () => heap.obj.setUint8(kept, 1), () => heap.obj.read(kept, 0, 1)])
      t.is(codeOf(use), 'ERR_USE_AFTER_FREE')
    t.is(heap.obj.getUint8(other), 7)
    t.is(bytes[0], 7)
  }
  {
    // Under debug hooks a block ends where the request did, and guard bytes follow.
    using heap = new Heap()
    const before = block(heap)
    heap.setupDebugHooks()
    const after = some(heap.obj.malloc(20))
    heap.obj.setUint8(after, 1, 19)
    for (const offset of [20, 27]) {
      t.is(
        codeOf(() => heap.obj.setUint8(after, 1, offset)),
        'ERR_OUT_OF_RANGE',
      )
      t.is(
        codeOf(() => heap.obj.write(after, new Uint8Array(1), offset)),
        'ERR_OUT_OF_RANGE',
      )
    }
    t.is(heap.obj.getUint8(before), 7)
    heap.obj.free(after)
    heap.verify()
  }
  {
    // To the caller a block in quarantine is freed.
    using heap = new Heap({ quarantine: 1000 })
    const freed = block(heap)
    heap.obj.free(freed)
    t.is(
      codeOf(() => heap.obj.getUint8(freed)),
      'ERR_USE_AFTER_FREE',
    )
  }
  {
    // A script's block ends where its request did, although the grant is longer. This stays so when the script's allocator has been taken out.
    using heap = new Heap()
    block(heap)
    const own = heap.getAllocator('obj')
    const grant = some(own.malloc(512))
    const script: Allocator = { ...own, malloc: () => (grant + 16) as Address, free() {} }
    heap.setAllocator('obj', script)
    const piece = some(heap.obj.malloc(20))
    const uses = [() => heap.obj.setUint8(piece, 1, 20), () => heap.obj.getUint8(piece, 100), () => heap.obj.read(piece, 20, 1)]
    heap.obj.setUint8(piece, 5, 19)
    for (const use of uses) t.is(codeOf(use), 'ERR_OUT_OF_RANGE')
    heap.setAllocator('obj', own)
    for (const use of uses) t.is(codeOf(use), 'ERR_OUT_OF_RANGE')
    t.is(heap.obj.getUint8(piece, 19), 5)
  }
})

test('inside callbacks numbers are read and written where bytes are', (t) => {
  using heap = new Heap({ release: '3.13' })
  const block = some(heap.obj.malloc(16))
  heap.obj.setInt32(block, 1)
  const codes: unknown[] = []
  const look = (): void =>
    void codes.push(
      codeOf(() => heap.obj.getInt32(block)),
      codeOf(() => heap.obj.setInt32(block, 2)),
      heap.gc.isEnabled(),
    )
  const Looking: ObjectType = heap.defineType({ name: 'looking', gc: true, fields: { next: 'object' }, traverse: () => look() })
  const object = Looking.alloc()
  heap.gc.collect()
  t.deepEqual(codes.slice(0, 3), [undefined, 'ERR_GC_IN_PROGRESS', true])
  t.is(heap.obj.getInt32(block), 1)
  heap.decref(object)
  codes.length = 0
  heap.decref(heap.defineType({ name: 'finalized', finalize: look }).alloc())
  t.deepEqual(codes, [undefined, undefined, true])
  t.is(heap.obj.getInt32(block), 2)
  const own = heap.getAllocator('obj')
  codes.length = 0
  heap.setAllocator('obj', { ...own, malloc: (size) => (codes.push(codeOf(() => heap.obj.getInt32(block))), own.malloc(size)) })
  heap.obj.malloc(8)
  t.deepEqual(codes, ['ERR_REENTRANT'])
})

test('a collection that is due comes first', (t) => {
  using heap = new Heap({ release: '3.13' })
  const block = some(heap.obj.malloc(16))
  heap.obj.setInt32(block, 1)
  let collections = 0
  heap.gc.callbacks.push(() => void collections++)
  const Node = heap.defineType({ name: 'node', gc: true, fields: { next: 'object' } })
  heap.gc.setThreshold(2)
  for (let count = 0; count < 4; count++) Node.alloc()
  const before = collections
  heap.obj.getInt32(block)
  t.true(collections >= before)
  Node.alloc()
  Node.alloc()
  Node.alloc()
  heap.obj.setInt32(block, 5)
  t.true(collections > before)
  t.is(heap.obj.getInt32(block), 5)
})

test('a heap that is closed, or gone, has no memory', async (t) => {
  const heap = new Heap()
  const block = some(heap.obj.malloc(64))
  heap.obj.setUint8(block, 7)
  heap.close()
  for (const use of [() => heap.obj.getUint8(block), () => heap.obj.setUint8(block, 1), () => heap.obj.read(block, 0, 1)])
    t.is(codeOf(use), 'ERR_HEAP_CLOSED')
  // The region of another heap may lie where the closed heap's was.
  using other = new Heap()
  const blocks = Array.from({ length: 100 }, () => some(other.obj.malloc(64)))
  t.is(
    codeOf(() => heap.obj.getUint8(blocks[0]!)),
    'ERR_HEAP_CLOSED',
  )

  const gone = new WeakRef(
    (() => {
      const dropped = new Heap()
      dropped.obj.setUint8(some(dropped.obj.malloc(64)), 1)
      return dropped
    })(),
  )
  t.true(await collectUntil(() => gone.deref() === undefined))
})

test("a block of another heap's is not found, though it lies in a window of that heap's", (t) => {
  using one = new Heap()
  using other = new Heap()
  const [mine, yours] = [some(one.obj.malloc(64)), some(other.obj.malloc(64))]
  one.obj.setUint8(mine, 1)
  other.obj.setUint8(yours, 2)
  t.is(
    codeOf(() => one.obj.getUint8(yours)),
    'ERR_WRONG_HEAP',
  )
  t.is(
    codeOf(() => other.obj.setUint8(mine, 3)),
    'ERR_WRONG_HEAP',
  )
  t.deepEqual([one.obj.getUint8(mine), other.obj.getUint8(yours)], [1, 2])
})

test('an address that is nearly one, or looks like one, is none', (t) => {
  using heap = new Heap()
  for (const domain of [heap.mem, heap.obj]) {
    const block = some(domain.malloc(64))
    domain.setUint8(block, 7)
    const near = [0.5, -0.5, 2 ** 32, -(2 ** 32), 2 ** 33, 2 ** 52, NaN, Infinity].map((off) => block + off)
    for (const address of [
      ...near,
      0,
      -block,
      String(block),
      BigInt(block),
      { valueOf: () => block },
      [block],
      null,
      undefined,
    ]) {
      const code = codeOf(() => domain.usableSize(address as Address))
      t.truthy(code)
      t.is(
        codeOf(() => domain.getUint8(address as Address)),
        code,
        String(address),
      )
      t.is(
        codeOf(() => domain.setUint8(address as Address, 1)),
        code,
      )
      t.is(
        codeOf(() => domain.read(address as Address, 0, 1)),
        code,
      )
      t.is(
        codeOf(() => domain.write(address as Address, new Uint8Array(1))),
        code,
      )
    }
    t.is(domain.getUint8(block), 7)
  }
})

/** The package, over a binding that counts calls that read or write. */
function counting(): { package_: { Heap: typeof Heap }; calls: () => number } {
  const require = createRequire(import.meta.url)
  const real = require(addon) as { bind(): Record<string, Record<string, (...args: unknown[]) => unknown>> }
  const loaded = require.cache[addon]!
  const own = Object.keys(require.cache).filter((file) => file.includes('/dist/'))
  for (const file of own) delete require.cache[file]
  let calls = 0
  const counted = (domain: Record<string, (...args: unknown[]) => unknown>) => {
    const count =
      (name: string) =>
      (...args: unknown[]) => (calls++, domain[name]!(...args))
    return { ...domain, get: count('get'), set: count('set'), read: count('read'), write: count('write') }
  }
  const bind = () => {
    const bound = real.bind()
    return { ...bound, raw: counted(bound['raw']!), mem: counted(bound['mem']!), obj: counted(bound['obj']!) }
  }
  require.cache[addon] = { ...loaded, exports: { bind } } as NodeJS.Module
  const package_ = require('../dist/index.js') as { Heap: typeof Heap }
  require.cache[addon] = loaded
  for (const file of Object.keys(require.cache)) if (file.includes('/dist/')) delete require.cache[file]
  return { package_, calls: () => calls }
}

test('no call is made for a small block of mem or obj in a heap that is plain, with objects or without', (t) => {
  const { package_, calls } = counting()
  using heap = new package_.Heap({ release: '3.8' })
  const use = (domain: Domain, block: Address): number => {
    const before = calls()
    domain.setUint8(block, 1)
    domain.setInt32(block, -1, 1)
    domain.setUint32(block, 1, 2)
    domain.setFloat64(block, 0.5, 3)
    domain.setBigInt64(block, -1n, 4)
    domain.getUint8(block)
    domain.getInt32(block, 1)
    domain.getUint32(block, 2)
    domain.getFloat64(block, 3)
    domain.getBigInt64(block, 4)
    domain.write(block, new Uint8Array(12))
    domain.read(block, 1, 11)
    return calls() - before
  }
  const [mem, obj] = [some(heap.mem.malloc(16)), some(heap.obj.malloc(500))]
  t.deepEqual([use(heap.mem, mem), use(heap.obj, obj)], [0, 0])
  // More arenas, one after the other and at random.
  const blocks = Array.from({ length: 3000 }, () => some(heap.obj.malloc(512)))
  t.true(heap.arenas().length > 4)
  t.is(
    blocks.reduce((sum, block, index) => sum + use(heap.obj, blocks[(index * 1009) % 3000]!) + use(heap.obj, block), 0),
    0,
  )
  // Views, and types.
  heap.mem.view(mem)[0] = 1
  t.is(use(heap.mem, mem), 0)
  const Plain = heap.defineType({ name: 'plain' })
  const object = Plain.alloc()
  t.deepEqual([use(heap.mem, mem), use(heap.obj, obj)], [0, 0])
  heap.decref(object)
  // What is large, or raw, lies outside all arenas.
  t.deepEqual([use(heap.raw, some(heap.raw.malloc(16))), use(heap.obj, some(heap.obj.malloc(513)))], [12, 12])
  heap.setupDebugHooks()
  t.is(use(heap.mem, mem), 12)
})

test('an array that another thread makes longer while it is written goes no further than its block', async (t) => {
  const ROUNDS = 2000
  // How many arrays the worker may make longer, and how many it has.
  const counts = new Int32Array(new SharedArrayBuffer(8))
  // TypeScript's types lack the second argument.
  const Growable = SharedArrayBuffer as unknown as new (length: number, options: { maxByteLength: number }) => SharedArrayBuffer
  const memories = Array.from({ length: ROUNDS }, () => new Growable(8, { maxByteLength: 400 }))
  const grow = `
    const { memories, counts } = require('node:worker_threads').workerData
    for (const [index, memory] of memories.entries()) {
      while (Atomics.load(counts, 0) <= index);
      memory.grow(400)
      Atomics.store(counts, 1, index + 1)
    }`
  const worker = new Worker(grow, { eval: true, execArgv: [], workerData: { memories, counts } })
  t.teardown(() => worker.terminate())
  await once(worker, 'online')
  using heap = new Heap()
  const [block, next] = [some(heap.obj.malloc(16)), some(heap.obj.malloc(16))]
  t.is<number, number>(next, block + 16)
  heap.obj.setUint32(next, 7)
  for (const [index, memory] of memories.entries()) {
    const bytes = new Uint8Array(memory).fill(9)
    Atomics.store(counts, 0, index + 1)
    let tries = 0
    try {
      while (tries++ < 200) heap.obj.write(block, bytes)
    } catch (error) {
      // The array is longer than the block by now.
      t.is((error as { code?: unknown }).code, 'ERR_OUT_OF_RANGE')
    }
    while (Atomics.load(counts, 1) <= index);
    t.is(heap.obj.getUint32(next), 7, `round ${index}`)
  }
})
