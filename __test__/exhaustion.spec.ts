/** Every public operation, with each of its requests for memory failing in turn: once, and for ever after. */

import { spawnSync } from 'node:child_process'

import test from 'ava'

import { Heap, MemoryError, type Address, type HeapOptions, type ObjectType } from 'obmalloc'

import { some } from './tools.ts'

/** A heap, and the blocks and objects in it that operations use. */
interface Ground {
  heap: Heap
  plain: Record<'raw' | 'mem' | 'obj', Address>
  large: Record<'raw' | 'mem' | 'obj', Address>
  node: ObjectType
  list: ObjectType
  kept: ObjectType
  object: Address
  untracked: Address
  memory: Address
  ref: Address
}

type Operation = (ground: Ground) => unknown

const domains = ['raw', 'mem', 'obj'] as const

/** Each operation frees all that it allocates. It returns null or throws a `MemoryError` if memory was refused. */
const operations: Record<string, Operation> = {}
for (const domain of domains) {
  for (const size of [1, 512, 513, 100_000]) {
    operations[`${domain}.malloc(${size})`] = ({ heap }) => {
      const block = heap[domain].malloc(size)
      heap[domain].free(block)
      return block
    }
    operations[`${domain}.calloc(1, ${size})`] = ({ heap }) => {
      const block = heap[domain].calloc(1, size)
      heap[domain].free(block)
      return block
    }
    operations[`${domain}.realloc(null, ${size})`] = ({ heap }) => {
      const block = heap[domain].realloc(null, size)
      heap[domain].free(block)
      return block
    }
    for (const [kind, usual] of [
      ['plain', 40],
      ['large', 4000],
    ] as const) {
      operations[`${domain}.realloc(${kind}, ${size})`] = ({ heap, [kind]: blocks }) => {
        for (const to of [size, usual]) {
          const block = heap[domain].realloc(blocks[domain], to)
          if (block === null) return null
          blocks[domain] = block
        }
        return 0
      }
    }
  }
}
operations['run'] = ({ heap }) => {
  const addresses = new Float64Array(3)
  heap.run(Uint32Array.of(0, 0, 0, 600, 1, 1, 1, 50, 0, 2, 2, 50), addresses)
  const failed = addresses.includes(0)
  heap.run(Uint32Array.of(3, 0, 0, 0, 3, 1, 1, 0, 3, 2, 2, 0))
  return failed ? null : 0
}
operations['type.alloc'] = ({ heap, node }) => heap.decref(node.alloc())
operations['type.alloc(nitems)'] = ({ heap, list }) => heap.decref(list.alloc(200))
operations['type.new'] = ({ heap, node }) => heap.decref(node.new())
operations['type.newVar'] = ({ heap, list }) => heap.decref(list.newVar(3))
operations['type with a free list'] = ({ heap, kept }) => {
  heap.decref(kept.alloc())
  heap.gc.collect()
}
operations['gc.resize'] = (ground) => {
  ground.untracked = ground.heap.gc.resize(ground.untracked, 300)
  ground.untracked = ground.heap.gc.resize(ground.untracked, 2)
}
operations['gc.newWeakref'] = ({ heap, object }) => heap.decref(heap.gc.newWeakref(object, () => {}))
operations['gc.collect'] = ({ heap, node }) => {
  const a = node.alloc()
  node.set(a, 'next', a)
  heap.decref(a)
  if (heap.gc.collect() !== 1) throw new Error('expected it to be found')
}
operations['defineType'] = ({ heap }) => heap.defineType({ name: 'late', gc: true, fields: { a: 'object' } })
operations['looking'] = ({ heap, plain, object, ref }) => [
  heap.obj.view(plain.obj),
  heap.obj.read(plain.obj),
  heap.gc.getObjects(),
  heap.gc.getReferrers(object),
  heap.gc.getReferents(object),
  heap.gc.deref(ref),
  heap.debugMallocStats(),
  heap.arenas(),
  heap.stats(),
  heap.toJSON(),
  heap.arenas().map(({ address }) => Array.from(heap.pools(address), (pool) => [...heap.blocks(pool.address)].length)),
  heap.obj.getUint8(plain.obj),
  heap.obj.setUint8(plain.obj, 1),
]
operations['setAllocator'] = ({ heap }) => {
  const own = heap.getAllocator('mem')
  const { malloc, calloc, realloc, free } = own
  heap.setAllocator('mem', { malloc, calloc, realloc, free })
  const block = heap.mem.malloc(700)
  heap.setAllocator('mem', own)
  heap.mem.free(block)
  return block
}

function ground(options: HeapOptions): Ground {
  const heap = new Heap(options)
  const each = (size: number): Record<'raw' | 'mem' | 'obj', Address> => ({
    raw: some(heap.raw.malloc(size)),
    mem: some(heap.mem.malloc(size)),
    obj: some(heap.obj.malloc(size)),
  })
  const node = heap.defineType({ name: 'node', gc: true, weakrefs: true, managedDict: true, fields: { next: 'object' } })
  const list = heap.defineType({ name: 'list', gc: true, items: 'object' })
  const kept = heap.defineType({ name: 'kept', fields: { n: 'u32' }, freeList: 2 })
  const object = node.alloc()
  node.set(object, 'next', object)
  const untracked = list.newVar(2)
  const memory = some(heap.obj.malloc(100))
  return {
    heap,
    plain: each(40),
    large: each(4000),
    node,
    list,
    kept,
    object,
    untracked,
    memory,
    ref: heap.gc.newWeakref(object),
  }
}

/** Whether an operation was refused memory. No other error may come of a refusal, so others are thrown. */
function refused(operation: Operation, on: Ground): boolean {
  try {
    return operation(on) === null
  } catch (error) {
    if (error instanceof MemoryError) return true
    throw error
  }
}

for (const allocator of ['default', 'debug', 'malloc'] as const) {
  for (const forever of [true, false]) {
    test(`${allocator}: any request of any operation fails, ${forever ? 'and all after it' : 'once'}`, (t) => {
      let failures = 0
      for (const release of ['3.8', '3.11', '3.14.0', '3.14'] as const) {
        for (const [name, operation] of Object.entries(operations)) {
          const on = ground({ release, allocator })
          const { heap } = on
          // The first run may allocate what stays, such as a table.
          t.false(refused(operation, on), `${name} works`)
          const before = heap.allocatedBlocks()
          const requests = requestsOf(operation, on)
          for (let k = 0; k <= requests; k++) {
            heap.setNomemory(k, forever ? undefined : k + 1)
            const was = refused(operation, on)
            heap.removeNomemory()
            failures += Number(was)
            if (k === requests) t.false(was, `${name} works again`)
            heap.verify()
            t.is(heap.allocatedBlocks(), before, `${name}, request ${k}, left something behind`)
          }
          t.false(refused(operation, on), `${name} works afterwards`)
          heap.close()
        }
      }
      t.true(failures > 150, `${failures} refused`)
    })
  }
}

/** How many requests an operation makes. */
function requestsOf(operation: Operation, on: Ground): number {
  for (let k = 0; ; k++) {
    on.heap.setNomemory(k)
    const was = refused(operation, on)
    on.heap.removeNomemory()
    if (!was) return k
    if (k > 1000) throw new Error('it never succeeds')
  }
}

test('more blocks are live at once than 24 bits count', (t) => {
  const program = new URL('exhaustion/many.cjs', import.meta.url).pathname
  const { status, stdout, stderr } = spawnSync(process.execPath, [program], { encoding: 'utf8' })
  t.is(stdout, 'end\n', stderr)
  t.is(status, 0)
})
