/** A thousand operations of every kind, for whatever runs JavaScript and claims Node-API; says how each went. */

const { Worker } = require('node:worker_threads')
const { Heap } = require('obmalloc')

const say = (...words) => console.log(...words)
const heap = new Heap({ release: '3.13' })
let finalized = 0
const type = heap.defineType({
  name: 'node',
  gc: true,
  weakrefs: true,
  fields: { next: 'object' },
  finalize: () => void finalized++,
})
const live = []
for (let n = 0; n < 1000; n++) {
  const block = heap.obj.malloc(n % 600)
  if (n % 2) heap.obj.free(block)
  else live.push(block)
  const object = type.alloc()
  type.set(object, 'next', object)
  heap.decref(object)
}
say('collected', heap.gc.collect(), 'finalized', finalized, 'left', heap.gc.getObjects().length)
try {
  heap.mem.free(live[1])
} catch (error) {
  say(error.name, error.code)
}
const view = heap.obj.view(live[9]).fill(7)
say('view', heap.obj.read(live[9], 0, 2).join(), heap.obj.view(live[9]) === view)
heap.run(Uint32Array.of(0, 2, 0, 40, 3, 2, 0, 0))
heap.verify()
for (const block of live) heap.obj.free(block)
say('detached', view.length)
heap.close()
globalThis.left = new Heap()
globalThis.left.obj.view(globalThis.left.obj.malloc(9))

const busy = `
  const { parentPort } = require('node:worker_threads'), { Heap } = require('obmalloc')
  const heap = globalThis.heap = new Heap(), type = heap.defineType({ name: 'node', gc: true, fields: { next: 'object' } })
  parentPort.postMessage('busy')
  for (;;) {
    for (let n = 0; n < 1e5; n++) { const object = type.alloc(); type.set(object, 'next', object); heap.decref(object) }
    heap.gc.collect()
  }`
const worker = new Worker(busy, { eval: true })
worker.once('message', async () => {
  await new Promise((done) => setTimeout(done, 50))
  await worker.terminate()
  say('end')
  process.exit(0)
})
