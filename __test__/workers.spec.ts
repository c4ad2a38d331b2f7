/** Workers that are ended in the middle of something, and the ways in which a process can end. */

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { Worker } from 'node:worker_threads'

import test from 'ava'

/** How many workers are ended; `OBMALLOC_WORKERS=1000` takes a few minutes. */
const count = Number(process.env['OBMALLOC_WORKERS'] ?? 60)
const BATCH = 10

/** Resident bytes. */
const resident = (): number => Number(/VmRSS:\s+(\d+) kB/.exec(readFileSync('/proc/self/status', 'utf8'))![1]) * 1024

/** What a worker is doing when it is ended: each says so before it begins. */
const deeds = [
  'for (;;) { for (let n = 0; n < 1000; n++) heap.obj.malloc(n); heap.raw.malloc(1e5) }',
  'for (;;) { const [a, b] = [type.alloc(), type.alloc()]; type.set(a, "next", b); type.set(b, "next", a); heap.decref(a); heap.decref(b) }',
  'for (;;) { for (let n = 0; n < 2000; n++) type.set(type.alloc(), "next", null); heap.gc.collect() }',
  'finalize = () => { for (;;); }; heap.decref(type.alloc())',
  'traverse = () => { for (;;); }; type.alloc(); heap.gc.collect()',
  'heap.setArenaAllocator({ alloc() { for (;;); }, free() {} }); for (;;) heap.obj.malloc(400)',
  'heap.gc.callbacks.push(() => { for (;;); }); heap.gc.collect()',
  'for (;;) heap.obj.view(heap.obj.malloc(100)).fill(1)',
  'const ops = new Float64Array(40000).fill(0); for (;;) try { heap.run(ops) } catch {}',
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

async function endOne(index: number): Promise<void> {
  const worker = new Worker(program(deeds[index % deeds.length]!), { eval: true })
  const failed = once(worker, 'error').then(([error]) => error as Error & { code?: string })
  const first = await Promise.race([once(worker, 'message'), failed])
  // Some run out of what they may hold, which is an error of theirs.
  if (first instanceof Error) throw first
  const late = failed.then((error) => {
    if (error.code !== 'ERR_NO_MEMORY' && !(error instanceof TypeError)) throw error
  })
  await new Promise((done) => setTimeout(done, (index * 7) % 23))
  await Promise.race([worker.terminate(), late])
  await worker.terminate()
}

test.serial('workers that are ended in the middle of something take nothing with them', async (t) => {
  t.timeout(1_800_000)
  const batch = async (from: number): Promise<void> => {
    await Promise.all(Array.from({ length: BATCH }, (_, index) => endOne(from + index)))
  }
  for (let from = 0; from < Math.max(30, count / 2); from += BATCH) await batch(from)
  const warm = resident()
  for (let from = 0; from < count; from += BATCH) await batch(from)
  const now = resident()
  t.log(`${count} workers: ${(warm / 1e6).toFixed(1)} MB resident before, ${(now / 1e6).toFixed(1)} MB after`)
  // What the C library keeps for threads grows with the first few dozen workers, whatever they do: only many of them tell.
  if (count >= 1000) t.true(now <= warm * 1.05, `${warm} bytes became ${now}`)
  else t.pass()
})

interface End {
  code: number | null
  signal: NodeJS.Signals | null
  /** Milliseconds from the moment that the program said it was about to end. */
  after: number
  stderr: string
}

async function end(body: string, signal?: NodeJS.Signals): Promise<End> {
  const source = `const { Heap } = require('obmalloc')
    const heap = globalThis.heap = new Heap(), other = globalThis.other = new Heap({ release: '3.8' })
    let hook = () => {}
    const type = heap.defineType({ name: 'node', gc: true, weakrefs: true, fields: { next: 'object' }, finalize: () => hook(),
      dealloc: () => hook() })
    for (let n = 0; n < 3000; n++) { const a = type.alloc(); type.set(a, 'next', a) }
    heap.obj.view(heap.obj.malloc(100)).fill(1); other.raw.malloc(1e6)
    const say = () => require('fs').writeSync(1, 'now')
    ${body}`
  const child = spawn(process.execPath, ['-e', source], {
    cwd: new URL('..', import.meta.url),
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let stderr = ''
  let said = 0
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text))
  child.stdout.once('data', () => {
    said = performance.now()
    if (signal) child.kill(signal)
  })
  const [code, by] = (await once(child, 'exit')) as [number | null, NodeJS.Signals | null]
  return { code, signal: by, after: performance.now() - said, stderr }
}

const inHook = (what: string): string => `hook = () => { say(); ${what} }; heap.decref(type.alloc())`
const inWorker = (what: string): string => `
  const { Worker } = require('node:worker_threads')
  const worker = new Worker(\`const { Heap } = require('obmalloc'), heap = globalThis.heap = new Heap()
    const type = heap.defineType({ name: 'node', gc: true, finalize() { ${what} } })
    heap.decref(type.alloc())\`, { eval: true })
  worker.on('error', () => {})
  worker.on('exit', (code) => { heap.verify(); say(); process.exitCode = code })`

for (const [title, body, expected, signal] of [
  ['naturally, with live heaps', 'say()', 0],
  ['naturally, with heaps closed', 'heap.close(); other.close(); say()', 0],
  ['by process.exit', 'say(); process.exit(3)', 3],
  ['by process.exit in a finalizer', inHook('process.exit(4)'), 4],
  [
    'by process.exit in a callback of the collector',
    'heap.gc.callbacks.push(() => { say(); process.exit(5) }); heap.gc.collect()',
    5,
  ],
  [
    'by process.exit in an arena allocator',
    'other.setArenaAllocator({ alloc() { say(); process.exit(6) }, free() {} }); other.obj.malloc(8)',
    6,
  ],
  [
    'by process.exit in an exit handler that allocates',
    'process.on("exit", () => { heap.obj.malloc(9); heap.gc.collect() }); say(); process.exit(7)',
    7,
  ],
  ['by an uncaught exception', 'say(); throw new Error("uncaught")', 1],
  ['by an uncaught fault', 'say(); heap.obj.free(1)', 1],
  ['by an unhandled rejection', 'say(); Promise.reject(new Error("unhandled"))', 1],
  ['by an exception in onUnraisable', 'new Heap({ onUnraisable() { throw new Error("told") } }); say()', 0],
  ['by process.exit of a worker in a hook', inWorker('process.exit(8)'), 8],
  ['by an exception of a worker', inWorker('setImmediate(() => { throw new Error("uncaught") })'), 1],
  ['by abort', inHook('process.abort()'), 'SIGABRT'],
  ['by SIGTERM', 'setInterval(() => {}, 1000); say()', 'SIGTERM', 'SIGTERM'],
  ['by SIGKILL in a hook', inHook('for (;;);'), 'SIGKILL', 'SIGKILL'],
  [
    'by SIGINT with a handler',
    'process.on("SIGINT", () => { heap.close(); process.exit(9) }); setInterval(() => {}, 1000); say()',
    9,
    'SIGINT',
  ],
] as Array<[string, string, number | string, NodeJS.Signals?]>) {
  test.serial(`a process that ends ${title}`, async (t) => {
    const { code, signal: by, after, stderr } = await end(body, signal)
    t.is<unknown, unknown>(code ?? by, expected, stderr)
    t.true(after < 1000, `it took ${after} ms`)
  })
}
