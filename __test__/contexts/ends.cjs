/**
 * Workers that end while scripts serve their heaps, in every order in which an addon that was loaded twice can be taken down. Run with
 * `MALLOC_PERTURB_`, so that memory which was freed reads as rubbish. Says how many ended well.
 */

const { once } = require('node:events')
const { Worker, isMainThread, parentPort, workerData } = require('node:worker_threads')
const { createContext } = require('node:vm')

const { load } = require('./load.cjs')

/** How scripts can serve a heap. */
const NEEDS = {
  'arenas in blocks': (heap) => {
    const raw = heap.getAllocator('raw')
    heap.setArenaAllocator({ alloc: (size) => raw.malloc(size), free: (address) => raw.free(address) })
  },
  'arenas of the heap': (heap) => {
    const own = heap.getArenaAllocator()
    heap.setArenaAllocator({ alloc: (size) => own.alloc(size), free: (address, size) => own.free(address, size) })
  },
  blocks: (heap) => wrap(heap, 'obj'),
  'raw blocks': (heap) => wrap(heap, 'raw'),
}
const wrap = (heap, name) => {
  const own = heap.getAllocator(name)
  heap.setAllocator(name, {
    malloc: (size) => own.malloc(size),
    calloc: (count, size) => own.calloc(count, size),
    realloc: (address, size) => own.realloc(address, size),
    free: (address) => own.free(address),
  })
}
const ENDS = ['naturally', 'closed', 'exit', 'terminated']

async function all() {
  let well = 0
  for (const contexts of [false, true]) {
    for (const need of Object.keys(NEEDS)) {
      for (const first of [0, 1]) {
        for (const end of ENDS) {
          const worker = new Worker(__filename, { workerData: { contexts, need, first, end } })
          const exit = once(worker, 'exit')
          await Promise.race([once(worker, 'message'), exit])
          if (end === 'terminated') await worker.terminate()
          const [code] = await exit
          if (code !== (end === 'terminated' ? 1 : 0)) throw new Error(`${need}, ${end}: ${code}`)
          well += 1
        }
      }
    }
  }
  process.stdout.write(`${well} ended well\n`)
}

function one({ contexts, need, first, end }) {
  const heaps = [0, 1].map(() => {
    const { Heap } = load(contexts ? createContext({}) : undefined)
    return new Heap({ release: '3.8' })
  })
  // Environments go in the opposite order in which they came.
  const [user, owner] = first === 0 ? heaps : heaps.toReversed()
  // Enough for V8 to be told of it.
  for (let count = 0; count < 50; count++) owner.raw.malloc(1e5)
  const kept = (globalThis.kept = [user, owner])
  for (const heap of kept) NEEDS[need](heap)
  for (const heap of kept) {
    heap.obj.view(heap.obj.malloc(100)).fill(7)
    const type = heap.defineType({ name: 'node', gc: true, weakrefs: true, fields: { next: 'object' } })
    const object = type.alloc()
    type.set(object, 'next', object)
    heap.gc.newWeakref(object, () => {})
  }
  if (end === 'closed') owner.close()
  parentPort.postMessage('ready')
  if (end === 'exit') process.exit(0)
  if (end === 'terminated') setInterval(() => {}, 1000)
}

if (isMainThread) void all()
else one(workerData)
