/** A panic injected into every place where Node.js or the engine comes into the binding, one after the other, in one process. */

import assert from 'node:assert/strict'
import { constants } from 'node:buffer'
import { createRequire } from 'node:module'

import test from 'ava'

import type * as obmalloc from 'obmalloc'

import { addon, buildInjected, codeOf, collectUntil } from './tools.ts'

// There are three hundred panics, and their backtraces would fill the log.
process.env['RUST_BACKTRACE'] = '0'

interface Injected {
  /** Names of entry points, each on a line. */
  entryPoints(): string
  panicIn(name?: unknown): void
  [name: string]: (...values: unknown[]) => unknown
}

type Call = (...values: unknown[]) => unknown
type Functions = Record<'serve' | 'open' | 'verify' | 'close', Call> & Record<string, Call>

/** The binding with the feature `panics`. */
async function build(): Promise<Injected> {
  const module = { exports: {} }
  process.dlopen(module, await buildInjected())
  return module.exports as Injected
}

/** Stands in for the functions of the face. The binding does not keep them. */
const face = [
  (code: string, message: string): Error => Object.assign(new Error(message), { code }),
  ...Array.from({ length: 12 }, () => () => {}),
]
/** Sizes that are the release's own, and no limit. */
const sizes = Array.from({ length: 7 })
const open = ({ open }: Functions): unknown =>
  open({ __proto__: null, 0: [], 1: [] }, constants.MAX_LENGTH, '3.13', ...sizes, 'default')

/** Whether the injected panic happens in a call. */
const panics = (call: () => unknown): boolean => {
  try {
    call()
    return false
  } catch (error) {
    return (error as Error).message.includes('a broken invariant of obmalloc itself')
  }
}

/** Functions that have no heap. */
const ofModule =
  /^(serve|open|choose|identity|externalMemory|trimMemory|(open|step|progress|report|close)Replay|(open|read|close)Events|(open|step|progress|close)Outline|findMoment|(open|step|progress|answer|close)Inquiry|(open|step|progress|answer|close)Trials|checkGolden|releaseOf|bind|touchedNames|declarations)$/

/** All functions of the binding, closing last. */
function functions(native: Injected, bound: Functions): Array<[name: string, call: Call]> {
  const spare = new Set(['panicIn', 'entryPoints', 'close'])
  const calls = [bound['raw'], bound['mem'], bound['obj'], bound, native].flatMap((object) =>
    Object.entries(object as object as Functions).filter(([name, call]) => typeof call === 'function' && !spare.has(name)),
  )
  return [...calls, ['close', bound.close]]
}

/** The package, over the binding with panics. */
function packageOver(native: Injected): typeof obmalloc {
  const require = createRequire(import.meta.url)
  const loaded = require.cache[addon]
  for (const file of Object.keys(require.cache)) if (file.includes('/dist/')) delete require.cache[file]
  require.cache[addon] = Object.assign(Object.create(loaded ?? null), {
    id: addon,
    filename: addon,
    loaded: true,
    exports: native,
  })
  return require('../dist/index.js') as typeof obmalloc
}

/** Makes a heap call every kind of callback. Returns the codes of what was thrown. */
function everyCallback({ Heap }: typeof obmalloc): { codes: unknown[]; close: () => void } {
  const told: unknown[] = []
  // A release that gives an empty arena back at once.
  const heap = new Heap({ release: '3.8', onUnraisable: (error) => void told.push((error as { code?: unknown }).code) })
  const codes: unknown[] = []
  const attempt = (call: () => unknown): void => void codes.push(codeOf(call))
  let lies = false
  attempt(() => {
    const raw = heap.getAllocator('raw')
    heap.setArenaAllocator({ alloc: (size) => raw.malloc(size), free: (address) => raw.free(address) })
    const block = heap.mem.malloc(400)!
    heap.mem.free(block)
  })
  attempt(() => {
    const { malloc, calloc, realloc, free } = heap.getAllocator('raw')
    heap.setAllocator('raw', { malloc, calloc, realloc, free })
    heap.raw.free(heap.raw.realloc(heap.raw.malloc(5), 50))
    heap.raw.free(heap.raw.calloc(5, 5))
  })
  attempt(() => {
    const type: obmalloc.ObjectType = heap.defineType({
      name: 'node',
      gc: true,
      weakrefs: true,
      fields: { next: 'object' },
      traverse(self, visit) {
        if (lies) throw new Error('no')
        const next = type.get(self, 'next') as obmalloc.Address | null
        if (next !== null) visit(next)
      },
      finalize() {},
      dealloc() {},
    })
    heap.gc.callbacks.push(() => {})
    heap.gc.setDebug(heap.gc.DEBUG_STATS)
    const object = type.alloc()
    type.set(object, 'next', object)
    // With so many objects the collection asks whether to go on.
    for (let count = 0; count < 300; count++) heap.decref(type.alloc())
    const kept = heap.gc.newWeakref(object, () => {})
    heap.decref(object)
    heap.gc.collect()
    heap.decref(kept)
    lies = true
    heap.gc.setThreshold(1)
    for (let count = 0; count < 4; count++) type.alloc()
  })
  return {
    codes: [...codes, ...told],
    close() {
      heap.close()
    },
  }
}

test.serial('a panic in any entry point is an error, and only its heap is lost', async (t) => {
  t.timeout(600_000)
  const native = await build()
  const bound = native['bind']!() as Functions & { chosen: Uint32Array; obj: Record<'malloc' | 'write' | 'read', Call> }
  const { serve, chosen, obj, verify, close } = bound
  serve(...face)
  const bystander = open(bound)
  const chosenFirst = chosen[0]!
  const block = obj.malloc(64)
  obj.write(block, Uint8Array.of(1, 2, 3))
  const intact = (): void => {
    chosen[0] = chosenFirst
    verify(bystander)
    assert.deepEqual([...(obj.read(block, 0, 3, bystander) as Uint8Array)], [1, 2, 3])
  }
  const points = native.entryPoints().split('\n')
  t.true(points.length > 80, `${points.length} entry points`)
  const spare = ['injected::entry_points', 'injected::panic_in'].map((name) => `obmalloc_node::${name}`)
  for (const point of points.filter((point) => !spare.includes(point))) {
    const handle = open(bound)
    const number = chosen[0]!
    native.panicIn(point)
    const found = functions(native, bound).find(([, call]) => {
      chosen[0] = number
      return panics(() => call(handle))
    })
    t.truthy(found, `nothing reaches ${point}`)
    if (found && !ofModule.test(found[0])) {
      t.is(codeOf(verify), 'ERR_INTERNAL', point)
      t.is(codeOf(close), undefined, point)
      t.is(codeOf(verify), 'ERR_HEAP_CLOSED', point)
    }
    intact()
  }
  native.panicIn()

  const package_ = packageOver(native)
  const healthy = everyCallback(package_)
  t.false(healthy.codes.includes('ERR_INTERNAL'), healthy.codes.join())
  healthy.close()
  const callbacks = native
    .entryPoints()
    .split('\n')
    .filter((point) => /^(hooks|guests)::/.test(point))
  const hooks = [
    'traverse',
    'run',
    'weakref_callback',
    'weakref_dropped',
    'gc_callback',
    'write',
    'interrupted',
    'collection_failed',
  ]
  const guests = ['malloc', 'calloc', 'realloc', 'free', 'arena_alloc', 'arena_free']
  const expected = [...hooks.map((name) => `hooks::${name}`), ...guests.map((name) => `guests::${name}`)]
  t.deepEqual(callbacks.toSorted(), expected.toSorted())
  for (const point of callbacks) {
    native.panicIn(point)
    const { codes, close: closeBoth } = everyCallback(package_)
    t.true(codes.includes('ERR_INTERNAL'), `${point}: ${codes.join()}`)
    closeBoth()
    intact()
  }

  for (const point of ['heap::finalize_handle', 'view::finalize', 'window::finalize']) {
    const drop = (): void => {
      const heap = new package_.Heap()
      const block = heap.obj.malloc(100)!
      heap.obj.view(block).fill(1)
      heap.obj.setUint8(block, 2)
    }
    drop()
    const known = (): boolean => native.entryPoints().split('\n').includes(point)
    t.true(await collectUntil(known), point)
    native.panicIn(point)
    for (let count = 0; count < 3; count++) drop()
    await collectUntil(() => false)
    intact()
  }
})
