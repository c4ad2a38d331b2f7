/** Ends many workers in the middle of something, and posts what memory is left: a process of its own, whose memory is measured. */

import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { Worker } from 'node:worker_threads'

const BATCH = 10

const { native } = createRequire(import.meta.url)('../../dist/native.js') as { native: { trimMemory(): void } }
setFlagsFromString('--expose-gc')
const gc = runInNewContext('gc') as () => void

/** What a worker is doing when it is ended: each says so before it begins. */
const deeds = [
  'for (;;) { for (let n = 0; n < 1000; n++) heap.obj.malloc(n); heap.raw.malloc(1e5) }',
  'for (;;) { const [a, b] = [type.alloc(), type.alloc()]; type.set(a, "next", b); type.set(b, "next", a); heap.decref(a); heap.decref(b) }',
  'for (;;) { for (let n = 0; n < 2000; n++) type.set(type.alloc(), "next", null); heap.gc.collect() }',
  'finalize = () => { for (;;); }; heap.decref(type.alloc())',
  'traverse = () => { for (;;); }; type.alloc(); heap.gc.collect()',
  'heap.setArenaAllocator({ alloc() { for (;;); }, free() {} }); for (;;) heap.obj.malloc(400)',
  'const { malloc, calloc, realloc, free } = heap.getAllocator("obj"); heap.setAllocator("obj", { calloc, realloc, free, malloc(size) { heap.turns = (heap.turns ?? 0) + 1; if (heap.turns > 1000) for (;;); return malloc(size) } }); for (;;) type.alloc()',
  'const { malloc, calloc, realloc, free } = heap.getAllocator("raw"); heap.setAllocator("raw", { malloc, calloc, realloc, free }); for (;;) heap.obj.free(heap.obj.realloc(heap.obj.malloc(600), 6000))',
  'heap.gc.callbacks.push(() => { for (;;); }); heap.gc.collect()',
  'for (;;) heap.obj.view(heap.obj.malloc(100)).fill(1)',
  // Blocks of obj in ten thousand slots, again and again: what was in a slot is lost.
  'const ops = Uint32Array.from({ length: 40_000 }, (_, index) => [0, 2, index >> 2, 40][index & 3]); for (;;) heap.run(ops)',
  'heap.close(); for (;;) new Heap().obj.malloc(10)',
]

const program = (deed: string): string => `
  const { parentPort } = require('node:worker_threads'), { Heap } = require('obmalloc')
  const heap = globalThis.heap = new Heap({ memoryLimit: 20e6 })
  let finalize = () => {}, traverse = () => {}
  const type = heap.defineType({ name: 'node', gc: true, weakrefs: true, fields: { next: 'object' },
    finalize: (self) => finalize(self),
    traverse(self, visit) { traverse(); const next = type.get(self, 'next'); if (next !== null) visit(next) } })
  for (let n = 0; n < 500; n++) heap.mem.malloc(n)
  parentPort.postMessage('ready')
  ${deed}`

async function endOne(source: string, wait: number): Promise<void> {
  // Without this file's loader, which would run in every thread, and leave there what it leaves.
  const worker = new Worker(source, { eval: true, execArgv: [] })
  const failed = once(worker, 'error').then(([error]) => error as Error & { code?: string })
  const first = await Promise.race([once(worker, 'message'), failed])
  if (first instanceof Error) throw first
  // Some run out of what they may hold, which is an error of theirs.
  const late = failed.then((error) => {
    if (error.code !== 'ERR_NO_MEMORY' && !error.message.includes('expected a block')) throw error
  })
  await new Promise((done) => setTimeout(done, wait))
  await Promise.race([worker.terminate(), late])
  await worker.terminate()
}

/** Resident bytes, once everything that is not in use has been given back. V8 takes its time: it shrinks its own heap some collections later. */
async function resident(): Promise<number> {
  let least = Infinity
  for (let round = 0; round < 10; round++) {
    gc()
    native.trimMemory()
    least = Math.min(least, Number(/VmRSS:\s+(\d+) kB/.exec(readFileSync('/proc/self/status', 'utf8'))![1]) * 1024)
    await new Promise((done) => setTimeout(done, 300))
  }
  return least
}

async function endMany(count: number): Promise<number> {
  for (let from = 0; from < count; from += BATCH) {
    await Promise.all(
      Array.from({ length: BATCH }, (_, index) =>
        endOne(program(deeds[(from + index) % deeds.length]!), ((from + index) * 7) % 23),
      ),
    )
  }
  return resident()
}

const count = Number(process.argv[2])
process.stdout.write(JSON.stringify({ warm: await endMany(60), after: await endMany(count) }))
