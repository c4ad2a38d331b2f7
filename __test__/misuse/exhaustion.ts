/** The misuse catalogue, section D: exhaustion. */

import assert from 'node:assert/strict'
import { constants } from 'node:buffer'

import { Heap, MemoryError, type Address } from 'obmalloc'

import type { Row } from './rows.ts'
import { domains, some } from './scene.ts'

const MiB = 1 << 20

export const exhaustion: Row[] = [
  {
    number: 65,
    what: 'the memory limit, reached, freed and tried again',
    play: () => {
      for (const name of domains) {
        const heap = new Heap({ memoryLimit: 3 * MiB })
        for (let round = 0; round < 3; round++) {
          const blocks: Address[] = []
          for (let block = heap[name].malloc(5000); block !== null; block = heap[name].malloc(5000)) blocks.push(block)
          assert.ok(blocks.length > 500)
          heap.verify()
          for (const block of blocks) heap[name].free(block)
        }
        heap.close()
      }
      const heap = new Heap({ memoryLimit: 3 * MiB })
      const type = heap.defineType({ name: 'node', gc: true, fields: { next: 'object' }, items: 'byte' })
      for (let round = 0; round < 3; round++) {
        const objects: Address[] = []
        assert.throws(
          () => {
            for (;;) objects.push(type.alloc(300))
          },
          (error) => error instanceof MemoryError && error.code === 'ERR_NO_MEMORY',
        )
        const { length } = objects
        assert.ok(length > 3000)
        heap.verify()
        // In a ring, so that the collector has to find them without more memory.
        for (const [index, object] of objects.entries()) type.set(object, 'next', objects[(index + 1) % length]!)
        for (const object of objects) heap.decref(object)
        assert.equal(heap.gc.collect(), length)
        assert.equal(heap.allocatedBlocks(), 0)
        heap.verify()
      }
      heap.close()
    },
  },
  {
    number: 66,
    what: 'the k-th allocation fails, for every k',
    elsewhere: ['exhaustion.spec.ts', "any request of any operation fails, ${forever ? 'and all after it' : 'once'}"],
  },
  {
    number: 67,
    what: 'the k-th and all following allocations fail',
    elsewhere: ['exhaustion.spec.ts', "any request of any operation fails, ${forever ? 'and all after it' : 'once'}"],
  },
  {
    number: 68,
    what: 'failures inside the tables of the library itself',
    elsewhere: ['../crates/obmalloc/tests/exhaustion.rs', 'whatever_request_is_refused_nothing_breaks'],
  },
  {
    number: 69,
    what: 'the operating system refuses memory',
    elsewhere: ['close.spec.ts', 'memory that the operating system refuses is null, and what was there stays'],
  },
  {
    number: 70,
    what: 'sizes of tables that a caller names',
    play: (scene) => {
      const { heap } = scene
      const list = heap.defineType({ name: 'list', gc: true, items: 'object' })
      for (const n of [2n ** 60n, 2n ** 63n - 1n]) {
        scene.throws(() => list.alloc(n), 'ERR_NO_MEMORY')
        scene.throws(() => list.newVar(n), 'ERR_NO_MEMORY')
      }
      const keeping = heap.defineType({ name: 'kept', freeList: 2n ** 62n })
      heap.decref(keeping.alloc())
      heap.gc.collect()
      scene.throws(() => heap.run(Uint32Array.of(0, 0, 2 ** 24, 8)), { code: 'ERR_OUT_OF_RANGE', index: 0 })
      // Longer than any typed array of some engines, which end the process rather than say so. Nothing of it is ever touched.
      const most = constants.MAX_LENGTH
      if (most < 2 ** 40) {
        for (const name of domains) {
          const block = some(heap[name].calloc(1, most + 1))
          scene.throws(() => heap[name].view(block), 'ERR_OUT_OF_RANGE')
          scene.throws(() => heap[name].read(block), 'ERR_OUT_OF_RANGE')
          scene.throws(() => heap[name].read(block, 0, most + 1), 'ERR_OUT_OF_RANGE')
          assert.deepEqual(heap[name].read(block, most - 1), new Uint8Array(2))
          heap[name].free(block)
        }
      }
      const names = Array.from({ length: 50_000 }, (_, index) => [`f${index}`, 'u8'] as const)
      assert.equal(heap.defineType({ name: 'wide', fields: Object.fromEntries(names) }).basicsize, 16 + 50_000)
      const long = heap.defineType({ name: 'x'.repeat(MiB), fields: { ['y'.repeat(MiB)]: 'u8' } })
      assert.equal(long.get(long.alloc(), 'y'.repeat(MiB)), 0)
      assert.equal(heap.gc.getReferrers(...Array.from({ length: 10_000 }, () => list.alloc(1))).length, 0)
    },
  },
  {
    number: 71,
    what: 'every pool keeps one block',
    play: ({ heap }) => {
      const before = heap.arenas().length
      const blocks = Array.from({ length: 31 * 1000 }, () => some(heap.obj.malloc(512)))
      const held = heap.arenas().length
      assert.ok(held > before + 10)
      const kept = blocks.filter((_, index) => index % 31 === 0)
      for (const [index, block] of blocks.entries()) if (index % 31 !== 0) heap.obj.free(block)
      heap.verify()
      assert.ok(heap.arenas().length > before + 10, 'a block keeps its arena')
      assert.equal(heap.obj.usableSize(some(heap.obj.malloc(512))), 512)
      for (const block of kept) heap.obj.free(block)
      heap.verify()
      assert.ok(heap.arenas().length <= before + 2)
    },
  },
  {
    number: 72,
    // Nothing has a serial number: neither the ledger nor, from 3.8 on, the debug hooks of a release build.
    what: 'counts that wrap',
    elsewhere: ['exhaustion.spec.ts', 'more blocks are live at once than 24 bits count'],
  },
  {
    number: 73,
    what: 'a worker past its own limits',
    elsewhere: ['close.spec.ts', 'a worker that runs out of its own memory takes its heap with it'],
  },
  { number: 74, what: 'memory that V8 does not see', elsewhere: ['close.spec.ts', 'thousands of dropped heaps make V8 collect'] },
]
