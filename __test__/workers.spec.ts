/** Workers that are ended in the middle of something, and the ways in which a process can end. */

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { copyFile, mkdtemp, rm } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { createContext, runInContext } from 'node:vm'
import { Worker } from 'node:worker_threads'

import test, { type ExecutionContext } from 'ava'

import type * as obmalloc from 'obmalloc'
import { Heap, type Address } from 'obmalloc'

import { addon } from './tools.ts'

/** How many workers are ended; `OBMALLOC_WORKERS=1000` takes a few minutes. */
const count = Number(process.env['OBMALLOC_WORKERS'] ?? 60)

/** Whether a sanitizer watches. */
const instrumented = process.env['OBMALLOC_INSTRUMENTED'] !== undefined

/** Runs a program of `workers/` in a process of its own, because its memory is measured. Returns what it prints. */
async function measured(t: ExecutionContext, name: string, ...rest: string[]): Promise<unknown> {
  // The C library keeps freed memory in arenas of its own, which several threads share. It gives back the unused end of the first arena only, so
  // it is told to have one. With more, a process becomes twice as large even if its workers fill buffers and never load this package.
  const env = { ...process.env, MALLOC_ARENA_MAX: '1' }
  const file = fileURLToPath(new URL(`workers/${name}.mts`, import.meta.url))
  const v8 = Number.parseInt(process.versions.v8)
  const flags = [
    // In Node.js 26, V8 keeps up to 64 MB of ended threads for other threads, unless it is told not to.
    ...(v8 >= 14 ? ['--no-memory-pool-share-memory-on-teardown'] : []),
    // In Node.js 20, `ArrayBuffer.prototype.transfer` has to be asked for.
    ...(v8 < 12 ? ['--harmony-rab-gsab-transfer'] : []),
  ]
  const child = spawn(process.execPath, [...flags, '--import', 'tsx', file, ...rest], {
    cwd: new URL('..', import.meta.url),
    stdio: ['ignore', 'pipe', 'inherit'],
    env,
  })
  const [text, [code, signal]] = await Promise.all([child.stdout.setEncoding('utf8').toArray(), once(child, 'close')])
  t.is(signal ?? code, 0)
  return JSON.parse(text.join(''))
}

test.serial('workers that are ended in the middle of something take nothing with them', async (t) => {
  t.timeout(1_800_000)
  const { warm, after } = (await measured(t, 'many', String(count))) as { warm: number; after: number }
  t.log(`${count} workers: ${(warm / 1e6).toFixed(1)} MB resident before, ${(after / 1e6).toFixed(1)} MB after`)
  // A sanitizer keeps freed memory, to find later uses of it.
  if (!instrumented) t.true(after <= warm * 1.05, `${warm} bytes became ${after}`)
})

test.serial('a buffer that a worker took out of a view and posted is whole after its end', async (t) => {
  t.timeout(600_000)
  // A sanitizer keeps freed memory.
  const { after } = (await measured(t, 'moved', ...(instrumented ? [] : ['measure']))) as { after: number[] }
  t.log(`${after.map((bytes) => (bytes / 1e6).toFixed(1)).join(', ')} MB resident between workers that moved none`)
  // Between two figures ten workers ended. Each had 20 MB in large blocks, and 2 MB in small ones and heaps. What each of them leaves would show.
  const grew = after.slice(1).map((bytes, index) => bytes - after[index]!)
  t.true(instrumented || Math.min(...grew) < 5e6, grew.join())
})

test.serial('workers that end by themselves, with live heaps, end well', async (t) => {
  t.timeout(600_000)
  const source = `const { Heap } = require('obmalloc')
    const heaps = globalThis.heaps = ['3.8', '3.13', '3.14.0'].map((release) => new Heap({ release }))
    for (const heap of heaps) {
      const type = heap.defineType({ name: 'node', gc: true, weakrefs: true, fields: { next: 'object' }, finalize() {} })
      for (let n = 0; n < 100; n++) { const a = type.alloc(); type.set(a, 'next', a); heap.gc.newWeakref(a, () => {}) }
      heap.obj.view(heap.obj.malloc(100)).fill(1); heap.raw.malloc(1e5)
    }`
  const one = async (): Promise<number> => {
    const worker = new Worker(source, { eval: true, execArgv: [] })
    const [code] = (await once(worker, 'exit')) as [number]
    return code
  }
  for (let ended = 0; ended < count; ended += 10) {
    t.deepEqual(await Promise.all(Array.from({ length: 10 }, one)), Array(10).fill(0))
  }
})

/** Objects, or operations, of a call that takes long. */
const MANY = 5e6
/** Within so many milliseconds a worker must end that is in the middle of such a call. About fifty of them go into tearing a worker down. On a slow
 * machine a quarter of the call's time is allowed, and under a sanitizer more, because the end is slow there too. */
const SOON = instrumented ? 400 : 200
/** How often a run is tried again, because other work on the machine may have disturbed it. */
const ATTEMPTS = 20

/** Makes a call in a worker, and returns how many milliseconds it took. If `ended`, ends the worker in the middle of the call, and returns how long
 * that took, or undefined if the call was over first. */
async function callInWorker(prepare: string, call: string, ended: boolean): Promise<number | undefined> {
  const source = `
    const { parentPort } = require('node:worker_threads'), { Heap } = require('obmalloc')
    const heap = globalThis.heap = new Heap()
    heap.gc.disable()
    const type = heap.defineType({ name: 'node', gc: true, fields: { next: 'object', other: 'object' } })
    ${prepare}
    parentPort.postMessage('ready')
    const begin = performance.now()
    ${call}
    parentPort.postMessage(performance.now() - begin)`
  const worker = new Worker(source, { eval: true, execArgv: [] })
  await once(worker, 'message')
  let took: number | undefined
  worker.on('message', (time: number) => (took = time))
  if (!ended) {
    await once(worker, 'exit')
    return took
  }
  await new Promise((done) => setTimeout(done, 30))
  const begin = performance.now()
  await worker.terminate()
  return took === undefined ? performance.now() - begin : undefined
}

const scattered = `
  const objects = Float64Array.from({ length: ${MANY} }, () => type.alloc())
  for (let n = 0; n < ${MANY}; n++) {
    type.set(objects[n], 'next', objects[(n + 1) % ${MANY}])
    type.set(objects[n], 'other', objects[(n * 1_000_003 + 1) % ${MANY}])
  }`
const chain = `
  let last = type.alloc()
  for (let n = 0; n < ${2 * MANY}; n++) { const object = type.alloc(); type.set(object, 'next', last); heap.decref(last); last = object }`
const operations = `
  const ops = new Uint32Array(${8 * MANY})
  for (let n = 0; n < ${2 * MANY}; n++) ops.set([0, 2, n & 0xffff, 100], n * 4)`

const blocks = `
  heap.setupDebugHooks()
  for (let n = 0; n < ${MANY / 2}; n++) heap.obj.malloc(64)`

for (const [title, prepare, call] of [
  ['a collection that destroys all', `${scattered}; for (const object of objects) heap.decref(object)`, 'heap.gc.collect()'],
  ['the destruction of a chain', chain, 'heap.decref(last)'],
  ['a search for referrers', scattered, 'heap.gc.getReferrers(...objects.subarray(0, 1000))'],
  ['many operations', operations, 'heap.run(ops)'],
  ['the filling of a block', 'heap.setupDebugHooks()', 'heap.raw.malloc(2 ** 30)'],
  [
    'the copying of a block',
    'const block = heap.raw.malloc(2 ** 30), bytes = new Uint8Array(2 ** 30)',
    'heap.raw.write(block, bytes)',
  ],
  ['the making of an object', "const large = heap.defineType({ name: 'large', items: 'byte' })", 'large.alloc(2 ** 30)'],
  ['a look at all blocks', blocks, 'heap.verify()'],
] as const) {
  test.serial(`a worker is ended in the middle of ${title}`, async (t) => {
    t.timeout(300_000)
    const whole = (await callInWorker(prepare, call, false))!
    const bound = Math.min(whole / 2, Math.max(SOON, whole / 4))
    const ends: number[] = []
    // Other work on the machine can make an end late, but not early. So the best attempt counts. A call that was over first counts as never ended.
    while (ends.length < ATTEMPTS && !ends.some((end) => end < bound))
      ends.push((await callInWorker(prepare, call, true)) ?? Infinity)
    t.log(`the call takes ${whole.toFixed(0)} ms; ended in its middle: ${ends.map((end) => end.toFixed(0)).join(', ')} ms`)
    t.true(Math.min(...ends) < bound)
  })
}

test.serial('a script whose time is over in a long call leaves the heap whole', (t) => {
  const COUNT = 1e6
  const heap = new Heap()
  heap.gc.disable()
  const blocks = heap.allocatedBlocks()
  const type = heap.defineType({ name: 'node', gc: true, fields: { next: 'object' } })
  const context = createContext({ heap, kept: undefined as Address | undefined })
  const chain = (): [first: Address, last: Address] => {
    const first = type.alloc()
    let last = first
    for (let made = 1; made < COUNT; made++) {
      const object = type.alloc()
      type.set(object, 'next', last)
      heap.decref(last)
      last = object
    }
    return [first, last]
  }
  const isInterrupted = (code: string, timeout: number): boolean => {
    try {
      runInContext(code, context, { timeout })
      return false
    } catch (error) {
      t.is((error as { code?: unknown }).code, 'ERR_SCRIPT_EXECUTION_TIMEOUT')
      return true
    } finally {
      heap.verify()
      heap.obj.free(heap.obj.malloc(40)!)
    }
  }
  const [first, last] = chain()
  type.set(first, 'next', last)
  heap.decref(last)
  let interrupted = 0
  for (let timeout = 1; isInterrupted('heap.gc.collect()', timeout); timeout += 4) interrupted++
  t.true(interrupted > 0)
  heap.gc.collect()
  t.is(heap.allocatedBlocks(), blocks)

  /** Runs code again and again, with more or less time, until its time ends in the middle. `left` says how much of `COUNT` is left to do. */
  const inTheMiddle = (begin: () => void, code: string, left: () => number, end: () => void): void => {
    for (let timeout = 1, attempts = 0; attempts < 100; attempts++) {
      begin()
      const interrupted = isInterrupted(code, timeout)
      if (interrupted && left() > 0 && left() < COUNT) return
      // It had not begun, or was done already.
      timeout = interrupted ? timeout * 2 : Math.max(1, timeout / 2)
      end()
    }
    t.fail(`${code} was never interrupted in its middle`)
  }
  const isThere = (object: Address): boolean => {
    try {
      return heap.refcount(object) > 0
    } catch {
      return false
    }
  }
  inTheMiddle(
    () => (context['kept'] = chain()[1]),
    'heap.decref(kept)',
    // The object is gone when its destruction has begun, and the memory when it has ended.
    () => (isThere(context['kept'] as Address) ? COUNT : Math.sign(heap.allocatedBlocks() - blocks)),
    () => {
      if (isThere(context['kept'] as Address)) heap.decref(context['kept'] as Address)
    },
  )
  // The destruction of the next object also completes the one that was interrupted.
  heap.decref(type.alloc())
  t.is(heap.allocatedBlocks(), blocks)

  const ops = Uint32Array.from({ length: 4 * COUNT }, (_, index) => [0, 2, index >> 2, 40][index & 3]!)
  context['ops'] = ops
  const freeAll = Uint32Array.from({ length: 4 * COUNT }, (_, index) => [3, 2, index >> 2, 0][index & 3]!)
  const done = (): number => heap.allocatedBlocks() - blocks
  inTheMiddle(
    () => {},
    'heap.run(ops)',
    () => COUNT - done(),
    () => heap.run(freeAll.subarray(0, 4 * done())),
  )
  // Each block that was given is in its slot.
  heap.run(freeAll.subarray(0, 4 * done()))
  t.is(heap.allocatedBlocks(), blocks)
  heap.close()
})

test.serial('memory that an interrupted call was to give back is given back by the next one', (t) => {
  const [BLOCKS, BYTES] = instrumented ? [2e5, 2 ** 29] : [8e5, 2 ** 29]
  const written = (heap: Heap, size: number): Address => {
    const [block, bytes] = [heap.raw.malloc(size)!, new Uint8Array(2 ** 26).fill(1)]
    for (let offset = 0; offset < size; offset += bytes.length) heap.raw.write(block, bytes, offset)
    return block
  }
  const fill = (heap: Heap, domain: number, size: number, count: number): void =>
    heap.run(Uint32Array.from({ length: 4 * count }, (_, index) => [0, domain, index >> 2, size][index & 3]!))
  const cases: Record<string, (heap: Heap) => { call: () => void; again: () => void }> = {
    'a heap of many blocks': (heap) => {
      fill(heap, 0, 100, BLOCKS)
      return { call: () => heap.close(), again: () => heap.close() }
    },
    'a heap of many blocks under hooks': (heap) => {
      heap.setupDebugHooks()
      fill(heap, 2, 600, BLOCKS)
      return { call: () => heap.close(), again: () => heap.close() }
    },
    'a heap of many arenas': (heap) => {
      fill(heap, 2, 512, BYTES / 512)
      return { call: () => heap.close(), again: () => heap.close() }
    },
    'a heap of a large block': (heap) => {
      written(heap, BYTES)
      return { call: () => heap.close(), again: () => heap.close() }
    },
    'a large block': (heap) => {
      const [block, other] = [written(heap, BYTES), heap.raw.malloc(16)!]
      return { call: () => heap.raw.free(block), again: () => heap.raw.free(other) }
    },
    'the end of a large block': (heap) => {
      let block = written(heap, BYTES)
      const smaller = (): void => void (block = heap.raw.realloc(block, 1000)!)
      const again = (): void => {
        smaller()
        t.deepEqual(heap.raw.read(block), new Uint8Array(1000).fill(1))
      }
      return { call: smaller, again }
    },
  }
  const resident = (): number => process.memoryUsage.rss()
  for (const [title, prepare] of Object.entries(cases)) {
    /** Milliseconds of the call, and of the next call, which gives back what the first one left. */
    const timed = (timeout?: number): { took: number; left: number; interrupted: boolean } => {
      const before = resident()
      const heap = new Heap()
      const { call, again } = prepare(heap)
      const held = resident() - before
      const context = createContext({ call })
      const begin = performance.now()
      let interrupted = false
      try {
        runInContext('call()', context, { timeout })
      } catch (error) {
        t.is((error as { code?: unknown }).code, 'ERR_SCRIPT_EXECUTION_TIMEOUT')
        interrupted = true
      }
      const end = performance.now()
      again()
      const [took, left] = [end - begin, performance.now() - end]
      // The C library may keep the memory of small blocks for later; a sanitizer sees whether they were given back. QEMU says 0 of any process.
      const isSeen = !instrumented && !title.includes('blocks') && before > 0
      if (isSeen) t.true(resident() - before < held / 2, `${title}: ${resident() - before} of ${held} bytes are left`)
      heap.close()
      return { took, left, interrupted }
    }
    const whole = timed().took
    let ended: ReturnType<typeof timed>
    let attempts = 0
    // Other work on the machine can make the end late, but not early. It slows both halves of an attempt alike.
    do ended = timed(Math.max(1, Math.floor(whole / 8)))
    while (++attempts < ATTEMPTS && !(ended.interrupted && ended.took <= ended.left))
    t.log(`${title}: ${whole.toFixed(0)} ms, ended after ${ended.took.toFixed(0)} ms, ${ended.left.toFixed(0)} ms were left`)
    t.true(ended.interrupted && ended.took <= ended.left, title)
  }
})

/** Loads the package's face once more, and the binding too if a file of it is given. */
function loadAgain(binding?: string): typeof obmalloc {
  const require = createRequire(import.meta.url)
  for (const file of Object.keys(require.cache)) if (file.includes('/dist/')) delete require.cache[file]
  const loaded = require.cache[addon]
  if (binding) {
    const module = { exports: {} }
    process.dlopen(module, binding)
    require.cache[addon] = Object.assign(Object.create(loaded ?? null), { id: addon, filename: addon, loaded: true, ...module })
  }
  try {
    return require('../dist/index.js') as typeof obmalloc
  } finally {
    if (binding && loaded) require.cache[addon] = loaded
  }
}

test.serial('two copies of the addon, and two of the face, know nothing of each other', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'obmalloc-copies-'))
  t.teardown(() => rm(folder, { recursive: true }))
  const copy = join(folder, 'copy.node')
  await copyFile(addon, copy)
  const faces = [loadAgain(), loadAgain(), loadAgain(copy)]
  const heaps = faces.map(({ Heap }) => new Heap())
  t.is(new Set(faces.map(({ Heap }) => Heap)).size, 3)
  const blocks = heaps.map((heap, index) => {
    const block = heap.obj.malloc(64)!
    heap.obj.view(block).fill(index)
    return block
  })
  for (const [user, heap] of heaps.entries()) {
    for (const [owner, block] of blocks.entries()) {
      if (user === owner) continue
      // An addon knows the heaps of all faces over it, and none of another addon's.
      const code = user < 2 && owner < 2 ? 'ERR_WRONG_HEAP' : 'ERR_FOREIGN_POINTER'
      const error = t.throws(() => heap.obj.free(block), { code })
      t.true(error instanceof faces[user]!.MemoryFault)
      t.false(error instanceof faces[owner]!.MemoryFault)
    }
    heap.verify()
  }
  heaps[2]!.close()
  t.deepEqual(
    [0, 1].map((index) => heaps[index]!.obj.read(blocks[index]!, 0, 1)[0]),
    [0, 1],
  )
  heaps[0]!.close()
  heaps[1]!.obj.free(blocks[1]!)
  heaps[1]!.close()
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
    'by process.exit in an allocator',
    'other.setAllocator("obj", { ...other.getAllocator("obj"), malloc() { say(); process.exit(9) } }); other.obj.malloc(8)',
    9,
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
    let soonest = Infinity
    for (let attempt = 0; attempt < ATTEMPTS && soonest > 1000; attempt++) {
      const { code, signal: by, after, stderr } = await end(body, signal)
      t.is<unknown, unknown>(code ?? by, expected, stderr)
      soonest = Math.min(soonest, after)
    }
    t.true(soonest <= 1000, `it took ${soonest} ms`)
  })
}
