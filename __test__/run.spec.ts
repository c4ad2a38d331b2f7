import test from 'ava'

import { Heap, type Address } from 'obmalloc'

import { poke } from './peer.ts'
import { arenasFrom, collectUntil, isWasm, some, transfer } from './tools.ts'

const [malloc, calloc, realloc, free] = [0, 1, 2, 3]
const [raw, mem, obj] = [0, 1, 2]

test('a batch does what single calls do', (t) => {
  using batched = new Heap()
  using single = new Heap()
  const ops: number[] = []
  const expected: Array<number | null> = []
  for (let slot = 0; slot < 300; slot++) {
    ops.push(malloc, slot % 2 === 0 ? mem : obj, slot, slot * 2)
    expected.push((slot % 2 === 0 ? single.mem : single.obj).malloc(slot * 2))
  }
  const addresses = new Float64Array(300)
  batched.run(Uint32Array.from(ops), addresses)
  t.is(batched.allocatedBlocks(), 300)
  const relative = (heap: Heap, address: number | null) => (address ?? 0) - (heap.arenas()[0]?.address ?? 0)
  for (const [slot, address] of expected.entries()) {
    if (slot > 0 && slot * 2 <= 512) t.is(relative(batched, addresses[slot] ?? 0), relative(single, address))
  }
  batched.verify()
})

test('slots stay from one call to the next', (t) => {
  using heap = new Heap()
  heap.run(Uint32Array.of(malloc, obj, 5, 64))
  t.is(heap.allocatedBlocks(), 1)
  const addresses = new Float64Array(6)
  heap.run(Uint32Array.of(realloc, obj, 5, 400), addresses)
  t.is(heap.obj.usableSize(addresses[5] as never), 400)
  heap.run(Uint32Array.of(free, obj, 5, 0))
  t.is(heap.allocatedBlocks(), 0)
})

test('a slot that was never used holds NULL', (t) => {
  using heap = new Heap()
  const addresses = new Float64Array(2)
  heap.run(Uint32Array.of(free, obj, 0, 0, realloc, mem, 1, 30, calloc, raw, 0, 8), addresses)
  t.is(heap.mem.usableSize(addresses[1] as never), 32)
  t.deepEqual([...heap.raw.read(addresses[0] as never)], [0, 0, 0, 0, 0, 0, 0, 0])
})

test('the first fault stops the batch and says which operation it was', (t) => {
  using heap = new Heap()
  const twice = Uint32Array.of(malloc, obj, 0, 64, free, obj, 0, 0, free, obj, 0, 0, malloc, obj, 1, 64)
  t.like(
    t.throws(() => heap.run(twice)),
    { code: 'ERR_DOUBLE_FREE', index: 2, domain: 'obj' },
  )
  t.is(heap.allocatedBlocks(), 0)
  const wrong = Uint32Array.of(malloc, obj, 0, 64, free, mem, 0, 0)
  t.like(
    t.throws(() => heap.run(wrong)),
    { code: 'ERR_WRONG_DOMAIN', index: 1, allocated: 'obj', used: 'mem' },
  )
  heap.verify()
})

test('numbers that mean nothing are refused', (t) => {
  using heap = new Heap()
  for (const [ops, addresses, index] of [
    [[4, obj, 0, 8], undefined, 0],
    [[malloc, obj, 0, 8, malloc, 3, 0, 8], undefined, 1],
    [[malloc, obj, 2, 8], new Float64Array(2), 0],
    [[malloc, obj, 2 ** 24, 8], undefined, 0],
    [[malloc, obj, 2 ** 32 - 1, 8], undefined, 0],
  ] as const) {
    t.like(
      t.throws(() => heap.run(Uint32Array.from(ops), addresses)),
      { name: 'RangeError', code: 'ERR_OUT_OF_RANGE', index },
    )
  }
  t.like(
    t.throws(() => heap.run(new Uint32Array(3))),
    { name: 'RangeError', code: 'ERR_OUT_OF_RANGE' },
  )
  for (const ops of [[], {}, null, undefined, new Int32Array(4), new Float64Array(4), new ArrayBuffer(16)]) {
    t.like(
      t.throws(() => heap.run(ops as never)),
      { name: 'TypeError', code: 'ERR_INVALID_ARG_TYPE' },
    )
  }
  t.like(
    t.throws(() => heap.run(new Uint32Array(0), [] as never)),
    { name: 'TypeError', code: 'ERR_INVALID_ARG_TYPE' },
  )
  heap.verify()
})

test('memory that cannot be had is 0, and a realloc that fails leaves the block in its slot', (t) => {
  using heap = new Heap({ memoryLimit: 4 << 20 })
  const addresses = new Float64Array(1)
  heap.run(Uint32Array.of(malloc, raw, 0, 2 ** 31), addresses)
  t.is(addresses[0], 0)
  heap.run(Uint32Array.of(malloc, raw, 0, 64), addresses)
  const block = addresses[0]
  heap.run(Uint32Array.of(realloc, raw, 0, 2 ** 31), addresses)
  t.is(addresses[0], 0)
  t.is(heap.raw.usableSize(block as never), 64)
  heap.run(Uint32Array.of(free, raw, 0, 0))
})

test('a batch detaches the views of what it frees and moves', (t) => {
  using heap = new Heap()
  const addresses = new Float64Array(2)
  heap.run(Uint32Array.of(malloc, obj, 0, 64, malloc, raw, 1, 64), addresses)
  const views = [heap.obj.view(addresses[0] as never), heap.raw.view(addresses[1] as never)]
  heap.run(Uint32Array.of(realloc, obj, 0, 500, free, raw, 1, 0))
  t.deepEqual(
    views.map((view) => view.length),
    [0, 0],
  )
})

test('arrays that a callback takes away are not touched again', (t) => {
  using heap = new Heap()
  const arenas = arenasFrom(heap)
  let take = () => {}
  heap.setArenaAllocator({
    alloc(size) {
      take()
      return arenas.alloc(size)
    },
    free: arenas.free,
  })
  const buffer = new (ArrayBuffer as unknown as new (
    size: number,
    options: object,
  ) => ArrayBuffer & { resize(size: number): void })(64, { maxByteLength: 64 })
  const ops = new Uint32Array(buffer)
  ops.set([malloc, obj, 0, 64, malloc, obj, 1, 64])
  const addresses = new Float64Array(4)
  take = () => {
    buffer.resize(16)
    structuredClone(addresses, { transfer: [addresses.buffer] })
  }
  t.like(
    t.throws(() => heap.run(ops, addresses)),
    { code: 'ERR_OUT_OF_RANGE', index: 1 },
  )
  t.is(heap.allocatedBlocks(), 1)
  heap.verify()
  heap.close()
})

const native = isWasm ? test.skip : test

native('a batch inside a batch has the same slots', async (t) => {
  const told: unknown[] = []
  let inner: number | undefined
  const heap = new Heap({
    release: '3.13',
    allocator: 'debug',
    onUnraisable(error) {
      told.push((error as { code?: unknown }).code)
      const addresses = new Float64Array(6)
      heap.run(Uint32Array.of(malloc, obj, 5, 40), addresses)
      inner = addresses[5]
    },
  })
  const block = some(heap.obj.malloc(32))
  let moved: ArrayBuffer | undefined = transfer(heap.obj.view(block).buffer)
  heap.obj.free(block)
  // The hooks look at the block when its memory is given back. That is in the next call that frees, once nothing can reach the buffer.
  poke(block + 32, Uint8Array.of(1))
  t.is(moved.byteLength, 32)
  moved = undefined
  const ops = Uint32Array.of(malloc, obj, 0, 10, free, obj, 0, 0)
  await collectUntil(() => {
    heap.run(ops)
    return told.length > 0
  })
  t.deepEqual(told, ['ERR_BUFFER_OVERFLOW'])
  const addresses = new Float64Array(6)
  heap.run(Uint32Array.of(realloc, obj, 5, 40), addresses)
  t.is(heap.obj.usableSize(addresses[5] as Address), 40)
  t.is(addresses[5], inner)
  heap.close()
})
