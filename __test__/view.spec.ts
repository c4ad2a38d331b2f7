import test from 'ava'

import { Heap, type Address } from 'obmalloc'

import { collectUntil, some } from './tools.ts'

test('a view is the block itself', (t) => {
  using heap = new Heap()
  const block = some(heap.obj.malloc(64))
  const view = heap.obj.view(block)
  view[3] = 77
  t.is(heap.obj.read(block, 3, 1)[0], 77)
  heap.obj.write(block, Uint8Array.of(78), 3)
  t.is(view[3], 78)
  t.is(view.length, heap.obj.usableSize(block))
})

test('a view stays the same while nobody holds it, and its writes too', async (t) => {
  using heap = new Heap()
  const block = some(heap.obj.malloc(64))
  heap.obj.view(block).fill(5)
  const first = new WeakRef(heap.obj.view(block))
  await collectUntil(() => first.deref() === undefined)
  t.is(heap.obj.view(block)[0], 5)
  heap.obj.free(block)
})

test('closing detaches every view', (t) => {
  const heap = new Heap()
  const views = Array.from({ length: 100 }, (_, index) => heap.raw.view(some(heap.raw.malloc(index))))
  heap.close()
  t.true(views.every((view) => view.length === 0))
})

test('ten thousand views come and go', async (t) => {
  using heap = new Heap()
  for (let round = 0; round < 3; round++) {
    const blocks = Array.from({ length: 10_000 }, () => some(heap.mem.malloc(48)))
    for (const [index, block] of blocks.entries()) heap.mem.view(block)[0] = index
    for (const [index, block] of blocks.entries()) {
      t.is(heap.mem.read(block, 0, 1)[0], index & 255)
      heap.mem.free(block)
    }
  }
  heap.verify()
  t.is(heap.allocatedBlocks(), 0)
  t.true(await collectUntil(() => true))
})

test('a view keeps the memory of a heap that is gone', async (t) => {
  let collected = false
  const registry = new FinalizationRegistry(() => (collected = true))
  const view = (() => {
    const heap = new Heap()
    registry.register(heap, undefined)
    const block: Address = some(heap.obj.malloc(64))
    return heap.obj.view(block).fill(42)
  })()
  t.true(await collectUntil(() => collected))
  await collectUntil(() => false)
  t.true(view.every((byte) => byte === 42))
})
