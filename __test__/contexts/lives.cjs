/** Contexts that go with heaps in them. Says how many of them are left, and how much memory of the heaps. Run with `--expose-gc`. */

const { setImmediate: turn } = require('node:timers/promises')
const { createContext, runInContext } = require('node:vm')

const { native } = require('../../dist/native.js')
const { load } = require('./load.cjs')

const COUNT = 20
const SIZE = 4 << 20

function one() {
  const context = createContext({})
  const { Heap } = load(context)
  const heap = new Heap()
  heap.raw.malloc(SIZE)
  heap.gc.callbacks.push(runInContext('(heap) => () => heap', context)(heap))
  const type = heap.defineType({ name: 'node', finalize: () => heap })
  const keep = runInContext('(...kept) => { globalThis.kept = kept }', context)
  keep(heap, type, heap.obj.view(heap.obj.malloc(100)))
  return new WeakRef(context)
}

async function main() {
  const before = native.externalMemory()
  const contexts = Array.from({ length: COUNT }, one)
  const held = native.externalMemory() - before
  const left = () => [contexts.filter((context) => context.deref() !== undefined).length, native.externalMemory() - before]
  const end = performance.now() + 30_000
  do {
    // What a `deref` gave lives until its turn is over.
    await turn()
    globalThis.gc()
    await turn()
  } while (performance.now() < end && (left()[0] > 0 || left()[1] > SIZE))
  process.stdout.write(`held ${held >= COUNT * SIZE}, left ${left()[0]} contexts, ${left()[1] <= SIZE ? 'nothing' : 'memory'}\n`)
}

void main()
