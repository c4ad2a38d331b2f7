/**
 * Workers that take a buffer out of a view, post it here, and end: a process of its own, which a wrong byte ends with 1, and a crash otherwise.
 * With `measure`, posts the resident bytes between other workers, which moved no buffer.
 */

import { createRequire } from 'node:module'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { Worker } from 'node:worker_threads'

const { native } = createRequire(import.meta.url)('../../dist/native.js') as { native: { trimMemory(): void } }
setFlagsFromString('--expose-gc')
const gc = runInNewContext('gc') as () => void

/** What a worker does beside moving the buffer of `view`, which is over `block`: before it, and after it. */
const deeds: readonly (readonly [string, string])[] = [
  ['', ''],
  // Others are newer, or older.
  ['', 'for (let n = 0; n < 100; n++) heap.obj.view(heap.obj.malloc(100))'],
  ['for (let n = 0; n < 100; n++) { const { obj } = new Heap(); obj.view(obj.malloc(100)) }', ''],
  // It is moved again, and the view and the first buffer are let go of.
  ['', 'moved = moved.transfer(); view = undefined; gc(); await new Promise((done) => setTimeout(done, 10)); gc()'],
  ['', 'heap.raw.free(block); heap.raw.malloc(1 << 16)'],
  ['', 'heap.raw.view(block).fill(6)'],
  ['', 'heap.close()'],
  ['', 'view = undefined; heap = undefined; gc(); await new Promise((done) => setTimeout(done, 10)); gc()'],
]

const ends = ['', 'process.exit()', 'throw new Error("the end")', 'for (;;);']

const program = (before: string, after: string, end: string): string => `
  const { parentPort } = require('node:worker_threads'), { Heap } = require('obmalloc')
  ;(async () => {
    const gc = require('node:vm').runInNewContext('gc')
    let heap = new Heap()
    ${before}
    const block = heap.raw.malloc(1 << 16)
    let view = heap.raw.view(block).fill(5)
    let moved = view.buffer.transfer()
    ${after}
    parentPort.postMessage(moved, [moved])
    ${end}
  })()`

async function run(source: string): Promise<ArrayBuffer | undefined> {
  const worker = new Worker(source, { eval: true, execArgv: [] })
  let moved: ArrayBuffer | undefined
  worker.on('message', (message: ArrayBuffer) => {
    moved = message
    void worker.terminate()
  })
  worker.on('error', () => {})
  await new Promise((done) => worker.once('exit', done))
  return moved
}

for (const [before, after] of deeds) {
  for (const end of ends) {
    const moved = await run(program(before, after, end))
    const bytes = new Uint8Array(moved!)
    const expected = after.includes('fill(6)') ? 6 : 5
    const others = Array.from({ length: 100 }, () => new Uint8Array(1 << 16).fill(1))
    if (bytes.length !== 1 << 16 || bytes.some((byte) => byte !== expected)) process.exit(1)
    bytes.fill(9)
    if (others.some((other) => other.includes(9))) process.exit(1)
  }
}

function resident(): number {
  gc()
  native.trimMemory()
  return process.memoryUsage.rss()
}

/** Views that stay, that V8 has collected, and that it could collect, when the worker ends. */
const unmoved = `
  const { parentPort } = require('node:worker_threads'), { Heap } = require('obmalloc')
  const heap = globalThis.heap = new Heap()
  for (let n = 0; n < 20; n++) heap.raw.view(heap.raw.malloc(1 << 20)).fill(1)
  for (let n = 0; n < 10_000; n++) { const other = n % 500 ? heap : new Heap(), block = other.obj.malloc(100); other.obj.view(block).fill(1); if (n & 1) other.obj.free(block) }
  // A view that V8 has collected counts as moved until its finalizer has run.
  require('node:vm').runInNewContext('gc')()
  setImmediate(() => parentPort.postMessage('ready'))`
/** Resident bytes after the first five workers, and after each ten more. */
const after: number[] = []
for (const count of process.argv[2] === 'measure' ? [5, 10, 10, 10, 10] : []) {
  for (let n = 0; n < count; n++) await run(unmoved)
  after.push(resident())
}
process.stdout.write(JSON.stringify({ after }))
