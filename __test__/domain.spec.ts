import test from 'ava'

import { Heap, MemoryFault } from 'obmalloc'

import { some } from './tools.ts'

test('a domain is made once per heap', (t) => {
  using heap = new Heap()
  t.is(heap.obj, heap.obj)
  t.not(heap.obj as unknown, heap.mem as unknown)
  t.deepEqual([heap.raw.name, heap.mem.name, heap.obj.name], ['raw', 'mem', 'obj'])
})

test('calloc gives zeroes where there was something before', (t) => {
  using heap = new Heap()
  for (const domain of [heap.raw, heap.mem, heap.obj]) {
    for (const size of [1, 64, 512, 513, 70_000]) {
      const block = some(domain.malloc(size))
      domain.view(block).fill(255)
      domain.free(block)
      const zeroed = some(domain.calloc(1, size))
      t.true(domain.read(zeroed, 0, size).every((byte) => byte === 0))
      domain.free(zeroed)
    }
  }
})

test('a size is an integer from 0 to 2**53 - 1, however it is written', (t) => {
  using heap = new Heap()
  for (const domain of [heap.raw, heap.mem, heap.obj]) {
    for (const zero of [0, -0, 0n]) {
      domain.free(some(domain.malloc(zero)))
      domain.free(some(domain.calloc(zero, 9)))
      domain.free(some(domain.realloc(some(domain.calloc(9, zero)), zero)))
    }
    for (const size of [2 ** 53 - 1, 2n ** 63n - 1n]) {
      t.is(domain.malloc(size), null)
      t.is(domain.calloc(1, size), null)
      t.is(domain.calloc(size, size), null)
    }
    for (const size of [
      -1,
      -Number.MIN_VALUE,
      Number.MIN_VALUE,
      0.5,
      2 ** 53,
      -(2 ** 63),
      2 ** 63,
      Infinity,
      -Infinity,
      NaN,
      -1n,
      2n ** 63n,
    ]) {
      t.throws(() => domain.malloc(size), { code: 'ERR_OUT_OF_RANGE' }, `${size}`)
      t.throws(() => domain.calloc(1, size), { code: 'ERR_OUT_OF_RANGE' }, `${size}`)
    }
  }
})

test('realloc keeps a small block that shrinks by a quarter or less', (t) => {
  using heap = new Heap()
  const block = some(heap.obj.malloc(64))
  t.is(heap.obj.realloc(block, 49), block)
  t.not(heap.obj.realloc(block, 48), block)
})

test('a fault says what is wrong, where, and through which domain', (t) => {
  using heap = new Heap()
  const block = some(heap.obj.malloc(64))
  const wrong = t.throws(() => heap.mem.free(block), { instanceOf: MemoryFault })
  t.like(wrong, { name: 'MemoryFault', code: 'ERR_WRONG_DOMAIN', address: block, domain: 'mem', used: 'mem', allocated: 'obj' })
  t.regex(wrong?.message ?? '', /^expected a block of the mem domain, but 0x[0-9a-f]+ was allocated in the obj domain$/)
  const interior = t.throws(() => heap.obj.free((block + 1) as typeof block), { instanceOf: MemoryFault })
  t.like(interior, { code: 'ERR_INTERIOR_POINTER', base: block })
  t.false(wrong?.stack?.includes('makeError'))
})

test('read gives a copy, and write takes one', (t) => {
  using heap = new Heap()
  const block = some(heap.mem.calloc(1, 32))
  heap.mem.write(block, Uint8Array.of(1, 2, 3), 4)
  const copy = heap.mem.read(block, 3, 5)
  t.deepEqual([...copy], [0, 1, 2, 3, 0])
  copy[0] = 9
  t.is(heap.mem.view(block)[3], 0)
  t.is(heap.mem.read(block).length, 32)
  t.is(heap.mem.read(block, 32).length, 0)
})

test('every size to 600 lives beside every other', (t) => {
  using heap = new Heap()
  const blocks = Array.from({ length: 601 }, (_, size) => [size, some(heap.obj.malloc(size))] as const)
  t.is(new Set(blocks.map(([, block]) => block)).size, 601)
  for (const [size, block] of blocks) heap.obj.view(block).fill(size & 255)
  heap.verify()
  for (const [size, block] of blocks) t.true(heap.obj.read(block).every((byte) => byte === (size & 255)))
  for (const [, block] of blocks) heap.obj.free(block)
  t.is(heap.allocatedBlocks(), 0)
  heap.verify()
})
