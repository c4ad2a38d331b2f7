/** More live blocks at once than 24 bits can count, and faults of addresses among them. */

const assert = require('node:assert/strict')
const { Heap } = require('obmalloc')

const COUNT = 2 ** 24 + 1000
const SIZE = 16
const heap = new Heap()
const { obj } = heap
const blocks = new Float64Array(COUNT)
for (let n = 0; n < COUNT; n++) blocks[n] = obj.malloc(SIZE)
assert.equal(heap.allocatedBlocks(), COUNT)
assert.match(heap.debugMallocStats(), /^ *0 +16 +\d+ +16778216 +\d+$/m)

let [least, most] = [blocks[0], blocks[0]]
for (const block of blocks) {
  least = Math.min(least, block)
  most = Math.max(most, block)
}
const seen = new Uint8Array((most - least) / SIZE + 1)
for (const block of blocks) {
  const place = (block - least) / SIZE
  if (seen[place]++) assert.fail(`${block} was given out twice`)
}

/** Numbers on both sides of where a counter could begin again. */
const some = [0, 1, 2 ** 16, 2 ** 23, 2 ** 24 - 1, 2 ** 24, 2 ** 24 + 1, COUNT - 1]
for (const [count, n] of some.entries()) {
  const block = blocks[n]
  obj.write(block, Uint8Array.of(1, 2, 3))
  assert.throws(() => obj.free(block + 1), { code: 'ERR_INTERIOR_POINTER', base: block })
  assert.throws(() => obj.free(most + 2 ** 32), { code: 'ERR_FOREIGN_POINTER' })
  assert.throws(() => heap.mem.free(block), { code: 'ERR_WRONG_DOMAIN', allocated: 'obj', used: 'mem' })
  assert.throws(() => obj.write(block, new Uint8Array(SIZE + 1)), { code: 'ERR_OUT_OF_RANGE' })
  assert.deepEqual([...obj.read(block, 0, 3)], [1, 2, 3])
  assert.equal(obj.usableSize(block), SIZE)
  assert.equal(heap.allocatedBlocks(), COUNT)
  obj.free(block)
  assert.throws(() => obj.free(block), { code: 'ERR_DOUBLE_FREE' })
  assert.throws(() => obj.read(block), { code: 'ERR_USE_AFTER_FREE' })
  assert.equal(heap.allocatedBlocks(), COUNT - 1)
  // The pool's only free block is the next to go out.
  assert.equal(obj.malloc(SIZE), block)
  if (count === 0) heap.verify()
}
heap.verify()
for (const block of blocks) obj.free(block)
assert.equal(heap.allocatedBlocks(), 0)
assert.throws(() => obj.free(blocks[COUNT - 1]), { name: 'MemoryFault' })
heap.verify()
for (let n = 0; n < 1000; n++) blocks[n] = obj.malloc(n)
for (let n = 0; n < 1000; n++) obj.free(blocks[n])
heap.verify()
heap.close()
console.log('end')
