/** Works with a heap where the engine refuses buffers over outside memory. The addon is the one that is named. */

const assert = require('node:assert/strict')
const { readFileSync } = require('node:fs')
const { _extensions: extensions } = require('node:module')

const load = extensions['.node']
extensions['.node'] = (module) => load(module, process.argv[2])
const { Heap, MemoryFault } = require('obmalloc')

const domains = ['raw', 'mem', 'obj']
const MiB = 1 << 20
/** What the kernel says of this process, in mebibytes. */
const inStatus = (name) => Number(new RegExp(`${name}:\\s+(\\d+) kB`).exec(readFileSync('/proc/self/status', 'utf8'))[1]) / 1024
const space = inStatus('VmSize')

function isRefused(heap, domain, block) {
  assert.throws(
    () => heap[domain].view(block),
    (error) => error instanceof MemoryFault && error.code === 'ERR_EXTERNAL_BUFFERS_UNSUPPORTED' && error.address === block,
  )
}

function work(heap) {
  const before = heap.allocatedBlocks()
  for (const domain of domains) {
    for (const size of [1, 64, 512, 513, 5000, MiB]) {
      const bytes = Uint8Array.from({ length: size }, (_, index) => index * 7 + 3)
      let block = heap[domain].malloc(size)
      heap[domain].write(block, bytes)
      heap[domain].setUint8(block, bytes[0])
      assert.equal(heap[domain].getUint8(block), bytes[0])
      for (let attempt = 0; attempt < 3; attempt++) isRefused(heap, domain, block)
      assert.deepEqual(heap[domain].read(block, 0, size), bytes)
      block = heap[domain].realloc(block, 2 * size + 100)
      isRefused(heap, domain, block)
      heap.verify()
      assert.deepEqual(heap[domain].read(block, 0, size), bytes)
      heap[domain].free(block)
      assert.throws(() => heap[domain].view(block), { code: 'ERR_USE_AFTER_FREE' })
      assert.throws(() => heap[domain].free(block), { code: 'ERR_DOUBLE_FREE' })
    }
    const empty = heap[domain].malloc(0)
    assert.equal(heap[domain].view(empty).length, 0)
    assert.equal(heap[domain].view(empty), heap[domain].view(empty))
    heap[domain].free(empty)
  }
  const type = heap.defineType({ name: 'node', gc: true, fields: { next: 'object' } })
  const object = type.alloc()
  type.set(object, 'next', object)
  heap.decref(object)
  assert.equal(heap.gc.collect(), 1)
  assert.equal(heap.allocatedBlocks(), before)
  heap.verify()
}

for (const release of ['3.8', '3.13']) {
  for (const hooks of [false, true]) {
    const heap = new Heap({ release })
    if (hooks) heap.setupDebugHooks()
    work(heap)
    work(heap)
    heap.close()
  }
}
const often = new Heap()
const blocks = domains.map((domain) => [domain, often[domain].malloc(100)])
for (let time = 0; time < 20_000; time++) {
  // The engine keeps data of errors until it collects, which is no leak.
  if (time % 100 === 0) globalThis.gc()
  for (const [domain, block] of blocks) isRefused(often, domain, block)
}
often.verify()
often.close()

// What held a block would hold the heap, and its 16 GiB of address space.
;(() => {
  const heap = new Heap()
  isRefused(heap, 'obj', heap.obj.malloc(64))
})()
async function dropped() {
  for (let round = 0; round < 50; round++) {
    globalThis.gc()
    await new Promise(setImmediate)
    if (inStatus('VmSize') - space < 16 * 1024) return true
  }
  return false
}
dropped().then((is) => console.log(is ? 'end' : 'a heap is held'))
