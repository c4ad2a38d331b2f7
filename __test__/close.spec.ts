import { spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { runInNewContext } from 'node:vm'
import { Worker } from 'node:worker_threads'

import test from 'ava'

import { Heap, type Address } from 'obmalloc'

import { arenasFrom, collectUntil, isWasm, KiB, some } from './tools.ts'

const MiB = KiB * KiB
const { native } = createRequire(import.meta.url)('../dist/native.js') as { native: { externalMemory(): number } }
/** What V8 was told of; `process.memoryUsage()` does not show it. */
const external = () => native.externalMemory()
/** Bytes of address space: a heap reserves 16 GiB of it. */
const mapped = () => Number(/VmSize:\s+(\d+) kB/.exec(readFileSync('/proc/self/status', 'utf8'))?.[1] ?? 0) * KiB

test.serial('memory is reported to V8, and all of it taken back', (t) => {
  // Meanwhile V8 may free memory that other tests left. So there are several attempts, and one must come out right.
  const left = Array.from({ length: 5 }, () => {
    const before = external()
    const heap = new Heap()
    const block = some(heap.raw.malloc(50 * MiB))
    t.true(external() - before >= 49 * MiB)
    heap.raw.free(block)
    t.true(external() - before <= 2 * MiB)
    some(heap.mem.malloc(20 * MiB))
    heap.close()
    return external() - before
  })
  t.true(left.includes(0), `after closing, bytes more than before: ${left.join(', ')}`)
})

test.serial('V8 is told of the memory that has been in use, and not of whole arenas', (t) => {
  // As above. The first block takes an arena of 1 MiB.
  const heaps = Array.from({ length: 5 }, () => {
    const heap = new Heap({ release: '3.14' })
    const before = external()
    const grant = some(heap.raw.malloc(400 * KiB))
    some(heap.obj.malloc(64))
    const early = external() - before
    for (let block = 0; block < (2 * MiB) / 512; block++) some(heap.obj.malloc(512))
    const late = external() - before
    heap.raw.free(grant)
    heap.close()
    return early === 0 && late >= MiB && late <= 3 * MiB
  })
  t.true(heaps.includes(true))
})

test.serial('a heap that is dropped is given back', async (t) => {
  const [before, space] = [external(), mapped()]
  const drop = () => {
    const heap = new Heap()
    some(heap.obj.malloc(64))
    some(heap.raw.malloc(5 * MiB))
    heap.obj.view(some(heap.obj.malloc(100))).fill(1)
  }
  for (let count = 0; count < 10; count++) drop()
  t.true(external() - before >= 49 * MiB)
  t.true(await collectUntil(() => external() - before <= 2 * MiB))
  t.true(await collectUntil(() => mapped() - space < 16 * KiB * MiB))
})

test.serial(
  'a heap that is collected while a script gives its arenas is given back, though its callbacks refer to it',
  async (t) => {
    const space = mapped()
    let freed = 0
    ;(() => {
      const heap = new Heap()
      const arenas = arenasFrom(heap)
      heap.setArenaAllocator({
        alloc: (size) => (heap.release ? arenas.alloc(size) : null),
        free: (address, size) => {
          freed++
          arenas.free(address, size)
        },
      })
      some(heap.obj.malloc(64))
    })()
    t.true(await collectUntil(() => mapped() - space < 16 * KiB * MiB))
    t.is(freed, 0, 'no JavaScript is called by a finalizer')
  },
)

test.serial('a heap that was closed half way does not look into arenas that are gone', (t) => {
  const other = new Heap()
  for (const keeps of [false, true]) {
    const space = mapped()
    const heap = new Heap()
    for (const domain of [heap.raw, heap.mem, heap.obj]) for (const size of [100, 1000]) some(domain.malloc(size))
    const raw = heap.getAllocator('raw')
    const taken: Address[] = []
    let time = Infinity
    heap.setArenaAllocator({
      alloc: () => taken[taken.push(some(raw.malloc(KiB * MiB))) - 1]!,
      free(address) {
        if (!keeps) raw.free(address)
        for (; performance.now() >= time;);
      },
    })
    for (let index = 0; index < 4096; index++) some(heap.obj.malloc(512))
    t.true(taken.length > 1)
    time = performance.now()
    const close = (): void => heap.close()
    t.throws(() => runInNewContext('close()', { close }, { timeout: 50 }), { code: 'ERR_SCRIPT_EXECUTION_TIMEOUT', any: true })
    t.true(mapped() - space > 16 * KiB * MiB, 'the rest was put off')
    for (const block of taken) t.throws(() => other.obj.free((block + 32 * KiB) as Address), { code: 'ERR_FOREIGN_POINTER' })
    time = Infinity
    heap.close()
    t.true(mapped() - space < KiB * MiB, `the script keeps it: ${keeps}: ${(mapped() - space) / MiB} MiB are left`)
  }
})

test.serial('what a dropped heap costs does not grow with how many there are', async (t) => {
  const cost = async (count: number): Promise<number> => {
    const space = mapped()
    let heaps: Heap[] = []
    for (let index = 0; index < count; index++) heaps.push(new Heap())
    const start = process.cpuUsage()
    heaps = []
    t.true(await collectUntil(() => mapped() - space < 16 * KiB * MiB))
    const { user, system } = process.cpuUsage(start)
    return (user + system) / count
  }
  await cost(100)
  const [few, many] = [await cost(4000), await cost(16_000)]
  t.true(many < 2 * few, `${few} µs each of 4,000, ${many} µs each of 16,000`)
})

test.serial('thousands of dropped heaps make V8 collect', async (t) => {
  const before = external()
  let most = 0
  const drop = () => some(new Heap().raw.malloc(4 * MiB))
  for (let count = 0; count < 2000; count++) {
    drop()
    most = Math.max(most, external() - before)
    if (count % 20 === 0) await new Promise(setImmediate)
  }
  t.true(most < 4000 * MiB, `${most / MiB} MiB at most`)
  t.true(await collectUntil(() => external() - before <= 2 * MiB))
})

const inWorker = async (code: string): Promise<[number, unknown[]]> => {
  const worker = new Worker(
    `const { parentPort } = require('node:worker_threads'); const { Heap } = require('obmalloc'); ${code}`,
    {
      eval: true,
    },
  )
  const messages: unknown[] = []
  worker.on('message', (message) => messages.push(message))
  const [exit] = (await once(worker, 'exit')) as [number]
  return [exit, messages]
}

test.serial('a heap goes with its worker, closed or not, with views, arenas and all', async (t) => {
  const space = mapped()
  for (let count = 0; count < 5; count++) {
    const [exit, messages] = await inWorker(`
      const heap = globalThis.heap = new Heap()
      const raw = heap.getAllocator('raw')
      heap.setArenaAllocator({ alloc: (size) => raw.malloc(size), free: (address) => { throw new Error('called') } })
      globalThis.view = heap.obj.view(heap.obj.malloc(64)).fill(1)
      globalThis.other = heap.raw.view(heap.raw.malloc(6 << 20))
      parentPort.postMessage(heap.allocatedBlocks())`)
    t.is(exit, 0)
    t.deepEqual(messages, [1])
  }
  t.true(mapped() - space < 16 * KiB * MiB, 'address space of the workers is still there')
})

test.serial('a worker that is terminated in a callback takes its heap with it', async (t) => {
  const space = mapped()
  for (let count = 0; count < 5; count++) {
    const worker = new Worker(
      `const { parentPort } = require('node:worker_threads'); const { Heap } = require('obmalloc')
       const heap = globalThis.heap = new Heap()
       heap.setArenaAllocator({ alloc() { parentPort.postMessage('in'); for (;;); }, free() {} })
       heap.obj.malloc(8)`,
      { eval: true },
    )
    await once(worker, 'message')
    await worker.terminate()
  }
  t.true(mapped() - space < 16 * KiB * MiB)
})

test.serial('process.exit in a callback keeps its code', async (t) => {
  const [exit] = await inWorker(`
    const heap = new Heap()
    heap.setArenaAllocator({ alloc() { process.exit(7) }, free() {} })
    heap.obj.malloc(8)`)
  t.is(exit, 7)
})

// In WebAssembly each thread has a memory of its own. There, an address of another thread's is just a number.
const ofAnotherThread = isWasm ? 'ERR_FOREIGN_POINTER' : 'ERR_WRONG_HEAP'

test.serial('a heap of another worker is told from a stranger', async (t) => {
  using heap = new Heap()
  const worker = new Worker(
    `const { parentPort } = require('node:worker_threads'); const { Heap } = require('obmalloc')
     const heap = new Heap(); parentPort.postMessage(heap.obj.malloc(64)); parentPort.on('message', () => process.exit(0))`,
    { eval: true },
  )
  const [address] = (await once(worker, 'message')) as [number]
  t.throws(() => heap.obj.free(address as never), { code: ofAnotherThread })
  worker.postMessage('done')
  await once(worker, 'exit')
  t.throws(() => heap.obj.free(address as never), { code: 'ERR_FOREIGN_POINTER' })
})

test.serial('a closed heap that is dropped leaves the region that another heap has now', async (t) => {
  using stranger = new Heap()
  const worker = new Worker(
    `const { parentPort } = require('node:worker_threads'); const { Heap } = require('obmalloc'); new Heap().close()
     parentPort.on('message', () => parentPort.postMessage((globalThis.heap = new Heap()).obj.malloc(64))).postMessage('ready')`,
    { eval: true },
  )
  await once(worker, 'message')
  const closed = (): [Address, WeakRef<Heap>] => {
    const heap = new Heap()
    const address = some(heap.obj.malloc(64))
    heap.close()
    return [address, new WeakRef(heap)]
  }
  const [address, dropped] = closed()
  worker.postMessage('open')
  t.deepEqual(await once(worker, 'message'), [address], 'the system gives the same address space again')
  t.true(await collectUntil(() => dropped.deref() === undefined))
  await collectUntil(() => false, 2)
  t.throws(() => stranger.obj.free(address), { code: ofAnotherThread })
  await worker.terminate()
})

test.serial('a worker that runs out of its own memory takes its heap with it', async (t) => {
  const space = mapped()
  const worker = new Worker(
    `const { Heap } = require('obmalloc')
     const heap = globalThis.heap = new Heap()
     const type = heap.defineType({ name: 'node', gc: true, finalize() {} })
     for (let n = 0; n < 1000; n++) type.alloc()
     const all = globalThis.all = []
     for (;;) all.push(new Array(1000).fill(all.length))`,
    { eval: true, resourceLimits: { maxOldGenerationSizeMb: 16, maxYoungGenerationSizeMb: 4 } },
  )
  const exit = new Promise((done) => worker.once('exit', done))
  const [error] = (await once(worker, 'error')) as [Error & { code: string }]
  t.is(error.code, 'ERR_WORKER_OUT_OF_MEMORY')
  await exit
  t.true(mapped() - space < 16 * KiB * MiB)
})

test.serial('memory that the operating system refuses is null, and what was there stays', (t) => {
  const program = `
    const { Heap } = require('obmalloc')
    const heap = new Heap()
    const type = heap.defineType({ name: 'node', gc: true, fields: { next: 'object' }, items: 'byte' })
    // Less address space than a heap reserves: its arenas and objects lie wherever there is room.
    const objects = Array.from({ length: 1000 }, () => type.alloc(100))
    for (let n = 0; n < 3; n++) {
      console.log(['raw', 'mem', 'obj'].map((name) => heap[name].malloc(2 ** 33)))
      try { type.alloc(2 ** 33) } catch (error) { console.log(error.code) }
      heap.verify()
    }
    objects.forEach((object, index) => type.set(object, 'next', objects[(index + 1) % 1000]))
    for (const object of objects) heap.decref(object)
    console.log(heap.gc.collect(), heap.allocatedBlocks())
    heap.verify()
    heap.close()`
  const limited = ['-c', 'ulimit -v 8000000 && exec "$0" -e "$1"', process.execPath, program]
  const { stdout, status, stderr } = spawnSync('sh', limited, { encoding: 'utf8', cwd: new URL('..', import.meta.url) })
  t.is(stdout, `${'[ null, null, null ]\nERR_NO_MEMORY\n'.repeat(3)}1000 0\n`, stderr)
  t.is(status, 0)
})
