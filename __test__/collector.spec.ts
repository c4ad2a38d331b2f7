import { once } from 'node:events'
import { Worker } from 'node:worker_threads'

import test from 'ava'

import {
  Heap,
  type Address,
  type CollectorCallback,
  type ObjectType,
  type Release,
  type TypeSpec,
  type UnraisableContext,
} from 'obmalloc'

import { collectUntil, releases } from './tools.ts'

const spec: TypeSpec = { name: 'node', gc: true, weakrefs: true, fields: { next: 'object', other: 'object' } }
const minorOf = (release: Release): number => Number(release.split('.')[1])

/** A ring that only its own objects refer to. */
function ring(heap: Heap, type: ObjectType, length: number): Address[] {
  const objects = Array.from({ length }, () => type.alloc())
  for (const [index, object] of objects.entries()) type.set(object, 'next', objects[(index + 1) % length]!)
  for (const object of objects) heap.decref(object)
  return objects
}

/** Every collection of a heap, as `gen collected uncollectable`. */
function watch(heap: Heap): string[] {
  const seen: string[] = []
  heap.gc.callbacks.push((phase, { generation, collected, uncollectable }) => {
    if (phase === 'stop') seen.push(`${generation} ${collected} ${uncollectable}`)
  })
  return seen
}

test('each release has its thresholds', (t) => {
  const expected: Record<Release, [number, number, number]> = {
    '3.8': [700, 10, 10],
    '3.9': [700, 10, 10],
    '3.10': [700, 10, 10],
    '3.11': [700, 10, 10],
    '3.12': [700, 10, 10],
    '3.13': [2000, 10, 10],
    '3.14.0': [2000, 10, 0],
    '3.14': [2000, 10, 10],
    '3.15': [2000, 10, 10],
  }
  for (const release of releases) {
    using heap = new Heap({ release })
    t.deepEqual(heap.gc.getThreshold(), expected[release])
    t.true(heap.gc.isEnabled())
  }
})

test('thresholds are C ints, and what is left out stays', (t) => {
  using heap = new Heap()
  const { gc } = heap
  gc.setThreshold(5)
  t.deepEqual(gc.getThreshold(), [5, 10, 10])
  gc.setThreshold(1, -2, 2 ** 31 - 1)
  t.deepEqual(gc.getThreshold(), [1, -2, 2 ** 31 - 1])
  gc.setThreshold(0, 3)
  t.deepEqual(gc.getThreshold(), [0, 3, 2 ** 31 - 1])
  for (const value of [2 ** 31, -(2 ** 31) - 1, 0.5, Number.NaN]) {
    t.throws(() => gc.setThreshold(value), { code: 'ERR_OUT_OF_RANGE', message: /^threshold0/ })
    t.throws(() => gc.setThreshold(1, value), { code: 'ERR_OUT_OF_RANGE', message: /^threshold1/ })
    t.throws(() => gc.setThreshold(1, 1, value), { code: 'ERR_OUT_OF_RANGE', message: /^threshold2/ })
  }
  for (const value of [undefined, null, '1', 1n, {}])
    t.throws(() => gc.setThreshold(value as never), { code: 'ERR_INVALID_ARG_TYPE' })
  t.deepEqual(gc.getThreshold(), [0, 3, 2 ** 31 - 1])
})

test('an automatic collection runs inside the allocation up to 3.11, and before the next call from 3.12 on', (t) => {
  for (const release of releases) {
    using heap = new Heap({ release })
    const seen = watch(heap)
    const type = heap.defineType(spec)
    heap.gc.setThreshold(10)
    ring(heap, type, 2)
    for (let count = 0; count < 8; count++) type.alloc()
    t.deepEqual(seen, [], `${release}: ten are not more than ten`)
    type.alloc()
    // The first increment of the incremental collector only marks.
    const one = [release === '3.14.0' ? '1 0 0' : '0 2 0']
    t.deepEqual(seen, minorOf(release) < 12 ? one : [], release)
    t.is(heap.typeOf(type.alloc()), type)
    t.deepEqual(seen, one, release)
    for (let count = 0; count < 30; count++) type.alloc()
    t.true(
      seen.some((line) => line.endsWith(' 2 0')),
      release,
    )
    heap.verify()
  }
})

test('what is scheduled runs at the start of any call that does not come from a callback', (t) => {
  const calls: Array<[string, (heap: Heap, type: ObjectType) => unknown]> = [
    ['malloc', (heap) => heap.obj.malloc(8)],
    ['free(block)', (heap) => heap.raw.free(heap.raw.malloc(8))],
    ['run', (heap) => heap.run(Uint32Array.of(0, 0, 0, 8))],
    ['allocatedBlocks', (heap) => heap.allocatedBlocks()],
    ['getCount', (heap) => heap.gc.getCount()],
    ['verify', (heap) => heap.verify()],
    ['getObjects', (heap) => heap.gc.getObjects()],
    ['defineType', (heap) => heap.defineType({ name: 'x' })],
    ['alloc', (_, type) => type.alloc()],
  ]
  for (const release of ['3.12', '3.13', '3.14.0', '3.14', '3.15'] as const) {
    for (const [name, call] of calls) {
      using heap = new Heap({ release })
      const seen = watch(heap)
      const type = heap.defineType(spec)
      heap.gc.setThreshold(3)
      for (let count = 0; count < 4; count++) type.alloc()
      t.is(seen.length, 0)
      call(heap, type)
      t.is(seen.length, 1, `${release} ${name}`)
    }
  }
})

test('a callback does not run what is scheduled: the next call after it does', (t) => {
  using heap = new Heap({ release: '3.13' })
  const seen = watch(heap)
  let inside: number | undefined
  const type: ObjectType = heap.defineType({
    ...spec,
    finalize() {
      for (let count = 0; count < 20; count++) heap.decref(plain.alloc())
      const kept = Array.from({ length: 20 }, () => plain.alloc())
      heap.obj.free(heap.obj.malloc(8))
      inside = seen.length
      t.is(kept.length, 20)
    },
  })
  const plain = heap.defineType(spec)
  heap.gc.setThreshold(10)
  heap.decref(type.alloc())
  t.is(inside, 0)
  t.is(seen.length, 0)
  heap.obj.malloc(8)
  t.is(seen.length, 1)
})

test('disable and a threshold of 0 stop automatic collections; asked for, they still run', (t) => {
  for (const release of releases) {
    using heap = new Heap({ release })
    const seen = watch(heap)
    const type = heap.defineType(spec)
    heap.gc.setThreshold(2)
    heap.gc.disable()
    t.false(heap.gc.isEnabled())
    for (let count = 0; count < 20; count++) type.alloc()
    heap.gc.enable()
    heap.gc.setThreshold(0)
    for (let count = 0; count < 20; count++) type.alloc()
    t.is(seen.length, 0)
    ring(heap, type, 3)
    t.is(heap.gc.collect(), 3)
    t.is(seen.length, 1)
  }
})

test('older generations are collected when their counts say so', (t) => {
  for (const release of releases.filter((release) => release !== '3.14.0')) {
    using heap = new Heap({ release })
    const seen = watch(heap)
    const type = heap.defineType(spec)
    heap.gc.setThreshold(1, 1, 1)
    for (let count = 0; count < 40; count++) type.alloc()
    heap.gc.getCount()
    t.deepEqual(
      seen.slice(0, 8).map((line) => line[0]),
      ['0', '0', '1', '0', '0', '1', '2', '0'],
      release,
    )
    t.is(
      heap.gc.getStats().reduce((sum, { collections }) => sum + collections, 0),
      seen.length,
    )
  }
})

test('collect gives what it found, by generation, and survivors grow old', (t) => {
  for (const release of releases) {
    using heap = new Heap({ release })
    const type = heap.defineType(spec)
    heap.gc.disable()
    const keep = type.alloc()
    ring(heap, type, 5)
    t.is(heap.gc.collect(0), 5)
    t.is(heap.gc.collect(0), 0)
    t.false(heap.gc.getObjects(0).includes(keep))
    t.true(heap.gc.getObjects().includes(keep))
    if (release !== '3.14.0') {
      t.deepEqual(heap.gc.getObjects(1), [keep])
      heap.gc.collect(1)
      t.deepEqual(heap.gc.getObjects(2), [keep])
    } else {
      t.deepEqual(heap.gc.getObjects(1), [])
    }
    t.is(heap.gc.collect(), 0)
    const stats = heap.gc.getStats()
    t.is(stats.length, 3)
    t.is(stats[0]!.collected, 5)
    t.is(
      stats.reduce((sum, { uncollectable }) => sum + uncollectable, 0),
      0,
    )
    for (const generation of [-1, 3, 0.5, Number.NaN]) {
      t.throws(() => heap.gc.collect(generation as 0), { code: 'ERR_OUT_OF_RANGE', message: /^generation: expected 0, 1 or 2/ })
      t.throws(() => heap.gc.getObjects(generation as 0), { code: 'ERR_OUT_OF_RANGE' })
    }
    for (const generation of [null, '1', 1n, {}])
      t.throws(() => heap.gc.collect(generation as never), { code: 'ERR_INVALID_ARG_TYPE' })
  }
})

test('counts are of allocations less destructions, then of collections', (t) => {
  using heap = new Heap({ release: '3.13' })
  const type = heap.defineType(spec)
  const objects = Array.from({ length: 5 }, () => type.alloc())
  heap.decref(objects[0]!)
  t.deepEqual(heap.gc.getCount(), [4, 0, 0])
  heap.gc.collect(0)
  t.deepEqual(heap.gc.getCount(), [0, 1, 0])
  heap.gc.collect(1)
  t.deepEqual(heap.gc.getCount(), [0, 0, 1])
  heap.gc.collect()
  t.deepEqual(heap.gc.getCount(), [0, 0, 0])
})

test('referrers and referents are direct, and in order', (t) => {
  using heap = new Heap()
  const type = heap.defineType(spec)
  const [a, b, c] = [type.alloc(), type.alloc(), type.alloc()]
  type.set(a, 'next', c)
  type.set(a, 'other', b)
  type.set(b, 'next', c)
  t.deepEqual(heap.gc.getReferents(a), [c, b])
  t.deepEqual(heap.gc.getReferents(a, b), [c, b, c])
  t.deepEqual(heap.gc.getReferrers(c), [a, b])
  t.deepEqual(heap.gc.getReferrers(a), [])
  t.deepEqual(heap.gc.getReferrers(), [])
  heap.gc.untrack(a)
  t.deepEqual(heap.gc.getReferrers(c), [b])
  t.throws(() => heap.gc.getReferents(a, 5 as Address), { code: 'ERR_FOREIGN_POINTER' })
})

test('what is frozen is not collected until it is unfrozen', (t) => {
  for (const release of releases) {
    using heap = new Heap({ release })
    const type = heap.defineType(spec)
    ring(heap, type, 4)
    heap.gc.freeze()
    t.is(heap.gc.getFreezeCount(), 4)
    t.deepEqual(heap.gc.getObjects(), [])
    t.is(heap.gc.collect(), 0)
    heap.gc.unfreeze()
    t.is(heap.gc.getFreezeCount(), 0)
    t.is(heap.gc.getObjects(2).length, 4)
    t.is(heap.gc.collect(), 4)
  }
})

test('an object that its finalizer revives is kept; up to 3.8 all that was found with it is', (t) => {
  for (const release of releases) {
    using heap = new Heap({ release })
    const finalized: Address[] = []
    let revive: Address | undefined
    const type = heap.defineType({
      ...spec,
      finalize(self) {
        finalized.push(self)
        if (self === revive) heap.incref(self)
      },
    })
    const [a] = ring(heap, type, 2)
    const [c] = ring(heap, type, 3)
    revive = a
    t.is(heap.gc.collect(), release === '3.8' ? 0 : 3, release)
    t.is(finalized.length, 5)
    t.is(heap.refcount(a!), 2)
    t.true(heap.gc.isFinalized(a!))
    if (release === '3.8') t.is(heap.refcount(c!), 1)
    else t.throws(() => heap.refcount(c!), { code: 'ERR_USE_AFTER_FREE' })
    heap.decref(a!)
    t.is(heap.gc.collect(), release === '3.8' ? 5 : 2)
    t.is(finalized.length, 5, 'a finalizer runs once')
    t.is(heap.gc.getObjects().length, 0)
    heap.verify()
  }
})

test('objects with a legacy finalizer end up in garbage, one array for good, each with a reference', (t) => {
  for (const release of releases) {
    using heap = new Heap({ release })
    const { garbage } = heap.gc
    const type = heap.defineType({ ...spec, del() {} })
    const [a, b] = ring(heap, type, 2)
    t.is(heap.gc.collect(), 2)
    t.deepEqual([...garbage].sort(), [a, b].sort())
    t.is(heap.refcount(a!), 2)
    t.is(heap.gc.getStats()[2]!.uncollectable, 2)
    ring(heap, type, 1)
    heap.gc.collect()
    t.is(garbage.length, 3)
    t.is(heap.gc.garbage, garbage)
    type.set(a!, 'next', null)
    for (const object of garbage.splice(0)) heap.decref(object)
    t.throws(() => heap.refcount(a!), { code: 'ERR_USE_AFTER_FREE' })
    heap.verify()
  }
})

test('with DEBUG_SAVEALL all that is found is kept', (t) => {
  using heap = new Heap()
  const type = heap.defineType({ ...spec, finalize() {} })
  heap.gc.setDebug(heap.gc.DEBUG_SAVEALL)
  t.is(heap.gc.getDebug(), 32)
  const objects = ring(heap, type, 3)
  t.is(heap.gc.collect(), 3)
  t.deepEqual(heap.gc.garbage, objects)
  t.is(heap.refcount(objects[0]!), 2)
})

test.serial('what collections say of themselves goes to stderr', (t) => {
  using heap = new Heap({ release: '3.13' })
  const type = heap.defineType(spec)
  const { gc } = heap
  gc.setDebug(gc.DEBUG_STATS | gc.DEBUG_COLLECTABLE)
  const [a, b] = ring(heap, type, 2)
  const lines: string[] = []
  const { write } = process.stderr
  process.stderr.write = ((text: string) => lines.push(text)) as never
  try {
    gc.collect()
  } finally {
    process.stderr.write = write
  }
  const hex = (address?: Address) => `0x${address?.toString(16)}`
  t.is(
    lines.join('').replace(/\d\.\d{4}s/, '0.0000s'),
    [
      'gc: collecting generation 2...',
      'gc: objects in each generation: 2 0 0',
      'gc: objects in permanent generation: 0',
      `gc: collectable <node ${hex(a)}>`,
      `gc: collectable <node ${hex(b)}>`,
      'gc: done, 2 unreachable, 0 uncollectable, 0.0000s elapsed',
      '',
    ].join('\n'),
  )
})

test('callbacks are a live list, called in order with one info, whatever they throw', (t) => {
  const told: Array<[string, UnraisableContext]> = []
  using heap = new Heap({ onUnraisable: (error, context) => void told.push([String((error as Error).message), context]) })
  const { callbacks } = heap.gc
  const infos: object[] = []
  const calls: string[] = []
  const late: CollectorCallback = (phase) => void calls.push(`late ${phase}`)
  callbacks.push((phase, info) => {
    infos.push(info)
    calls.push(`first ${phase}`)
    if (phase === 'start') callbacks.push(late)
    t.is(heap.gc.collect(), 0)
    throw new Error(`from ${phase}`)
  })
  callbacks.push((_, info) => void infos.push(info))
  callbacks.push(5 as never)
  callbacks.push((async () => {}) as never)
  heap.gc.collect()
  t.deepEqual(calls, ['first start', 'late start', 'first stop', 'late stop'])
  t.is(infos[0], infos[1])
  t.deepEqual(infos[2], { generation: 2, collected: 0, uncollectable: 0 })
  t.deepEqual(
    told.map(([message, { hook }]) => [hook, message]),
    ['start', 'stop'].flatMap((phase) => [
      ['callbacks', `from ${phase}`],
      ['callbacks', 'gc.callbacks[2]: expected a function, got 5'],
      ['callbacks', 'expected a callback of the collector to be done when it returns, but it gave something to wait for'],
    ]),
  )
  callbacks.length = 0
  heap.gc.collect()
  t.is(calls.length, 4)
})

test('a clear that fails is told, and the others are cleared all the same', (t) => {
  const told: UnraisableContext[] = []
  using heap = new Heap({ onUnraisable: (_, context) => void told.push(context) })
  const type: ObjectType = heap.defineType({
    ...spec,
    clear(self) {
      if (self === bad) throw new Error('no')
      type.set(self, 'next', null)
    },
  })
  const [bad] = ring(heap, type, 1)
  ring(heap, type, 3)
  t.is(heap.gc.collect(), 4)
  t.deepEqual(told, [{ hook: 'clear', object: bad!, type }])
  t.is(heap.refcount(bad!), 1)
  t.is(heap.gc.collect(), 1, 'it is found again')
  heap.verify()
})

test("a type's own traverse and clear find and clear what the native ones do", (t) => {
  for (const release of releases) {
    using heap = new Heap({ release })
    const type: ObjectType = heap.defineType({
      ...spec,
      traverse(self, visit) {
        for (const field of ['next', 'other']) {
          const referent = type.get(self, field) as Address | null
          if (referent !== null) visit(referent)
        }
      },
      clear(self) {
        type.set(self, 'next', null)
        type.set(self, 'other', null)
      },
    })
    const root = type.alloc()
    const kept = ring(heap, type, 3)
    type.set(root, 'other', kept[0]!)
    ring(heap, type, 4)
    t.is(heap.gc.collect(), 4)
    type.set(root, 'other', null)
    t.is(heap.gc.collect(), 3)
    const live = ring2(heap, type, root)
    t.is(heap.gc.collect(), 0, release)
    t.is(heap.refcount(live), 2)
    type.set(root, 'next', null)
    t.is(heap.gc.collect(), 2)
    heap.verify()
  }
})

/** Two objects in a ring, which `root` refers to. */
function ring2(heap: Heap, type: ObjectType, root: Address): Address {
  const [a, b] = [type.alloc(), type.alloc()]
  type.set(a, 'next', b)
  type.set(b, 'next', a)
  type.set(root, 'next', a)
  heap.decref(a)
  heap.decref(b)
  return a
}

/** A heap with one ring whose objects are traversed by a script. */
function lying(
  release: Release,
  lie: (self: Address, visit: (object: Address) => void, type: ObjectType, heap: Heap) => unknown,
) {
  const heap = new Heap({ release })
  const cleared: Address[] = []
  const type: ObjectType = heap.defineType({
    ...spec,
    traverse: (self, visit) => lie(self, visit, type, heap) as void,
    clear: (self) => void cleared.push(self),
    finalize: (self) => void cleared.push(self),
  })
  return { heap, type, cleared, objects: ring(heap, type, 3) }
}

test('a traverse that fails or lies ends the collection before anything is cleared', (t) => {
  using other = new Heap()
  const stranger = other.obj.malloc(16)!
  const boom = new Error('boom')
  let freed: Address | undefined
  const lies: Array<[string, Parameters<typeof lying>[1], string]> = [
    [
      'throws',
      () => {
        throw boom
      },
      'ERR_CALLBACK_THREW',
    ],
    ['is async', async () => {}, 'ERR_CALLBACK_RESULT'],
    ['is a generator', function* () {}, 'ERR_CALLBACK_RESULT'],
    [
      'visits too often',
      (self, visit, type) => {
        visit(type.get(self, 'next') as Address)
        visit(type.get(self, 'next') as Address)
      },
      'ERR_GC_OVER_VISIT',
    ],
    ['visits itself', (self, visit) => visit(self), 'ERR_GC_OVER_VISIT'],
    ['visits NULL', (_, visit) => visit(null as never), 'ERR_FOREIGN_POINTER'],
    ['visits nowhere', (_, visit) => visit(0xdeadbeef0 as Address), 'ERR_FOREIGN_POINTER'],
    ['visits what is gone', (_, visit) => visit(freed!), 'ERR_USE_AFTER_FREE'],
    ['visits inside', (self, visit) => visit((self + 8) as Address), 'ERR_INTERIOR_POINTER'],
    ["visits another heap's", (_, visit) => visit(stranger), 'ERR_WRONG_HEAP'],
    ['visits what is no address', (_, visit) => visit('x' as never), 'ERR_CALLBACK_THREW'],
    [
      'catches what visit throws',
      (_, visit) => {
        try {
          visit(freed!)
        } catch {}
      },
      'ERR_USE_AFTER_FREE',
    ],
  ]
  for (const release of releases) {
    for (const [what, lie, code] of lies) {
      const { heap, type, cleared, objects } = lying(release, lie)
      freed = type.alloc()
      heap.decref(freed)
      cleared.length = 0
      const order = heap.gc.getObjects()
      const error = t.throws(() => heap.gc.collect(), { code }, `${release} ${what}`)
      if (what === 'throws') t.is(error?.cause, boom)
      if (what === 'visits too often') {
        const fault = error as unknown as { object: Address; referent: Address }
        t.is(type.get(fault.object, 'next'), fault.referent)
      }
      t.deepEqual(cleared, [])
      t.deepEqual([...heap.gc.getObjects()].sort(), [...order].sort())
      for (const object of objects) t.is(heap.refcount(object), 1)
      t.is(heap.gc.garbage.length, 0)
      heap.verify()
      heap.close()
    }
  }
})

test('an automatic collection that is given up is told, and the allocation goes on', (t) => {
  for (const release of releases) {
    const told: Array<[unknown, UnraisableContext]> = []
    using heap = new Heap({ release, onUnraisable: (error, context) => void told.push([error, context]) })
    const boom = new Error('boom')
    const type = heap.defineType({
      ...spec,
      traverse() {
        throw boom
      },
    })
    heap.gc.setThreshold(3)
    // The first increment of the incremental collector only marks.
    const objects = Array.from({ length: release === '3.14.0' ? 8 : 4 }, () => type.alloc())
    for (const object of objects) t.is(heap.refcount(object), 1)
    t.is(told.length, 1, release)
    t.is((told[0]![0] as Error).cause, boom)
    t.deepEqual(told[0]![1], { hook: 'collect' })
    heap.verify()
  }
})

test('collections that are given up now and then leave every list whole', (t) => {
  for (const release of releases) {
    const told: unknown[] = []
    using heap = new Heap({ release, onUnraisable: (error) => void told.push(error) })
    let calls = 0
    const type: ObjectType = heap.defineType({
      ...spec,
      traverse(self, visit) {
        if (++calls % 7 === 0) throw new Error('now and then')
        const next = type.get(self, 'next') as Address | null
        if (next !== null) visit(next)
      },
    })
    heap.gc.setThreshold(3, 2, 2)
    const live: Address[] = []
    for (let count = 0; count < 300; count++) {
      live.push(type.alloc())
      type.set(live[count]!, 'next', live[count >> 1]!)
      heap.verify()
    }
    t.true(told.length > 10, release)
    t.deepEqual([...heap.gc.getObjects()].sort(), [...live].sort())
  }
})

test('in a traverse the heap can be looked at, but not changed', (t) => {
  const seen: unknown[] = []
  let tried = 0
  using heap = new Heap()
  const block = heap.obj.malloc(8)!
  const type: ObjectType = heap.defineType({
    ...spec,
    traverse(self, visit) {
      visit(type.get(self, 'next') as Address)
      seen.push([heap.refcount(self), heap.typeOf(self) === type, heap.gc.isTracked(self), heap.obj.read(block).length])
      heap.gc.getCount()
      t.is(heap.gc.collect(), 0)
      const changes: Array<() => unknown> = [
        () => type.alloc(),
        () => type.new(),
        () => heap.incref(self),
        () => heap.decref(self),
        () => type.set(self, 'next', null),
        () => heap.gc.track(self),
        () => heap.gc.untrack(self),
        () => heap.gc.del(self),
        () => heap.gc.freeze(),
        () => heap.gc.newWeakref(self),
        () => heap.gc.setThreshold(1),
        () => heap.gc.disable(),
        () => heap.gc.getObjects(),
        () => heap.gc.getReferents(self),
        () => heap.defineType({ name: 'x' }),
        () => heap.obj.malloc(8),
        () => heap.obj.free(block),
        () => heap.run(Uint32Array.of(0, 0, 0, 8)),
        () => heap.verify(),
      ]
      for (const change of changes) {
        tried++
        t.throws(change, { code: 'ERR_GC_IN_PROGRESS' }, String(change))
      }
      t.throws(() => heap.close(), { code: 'ERR_REENTRANT' })
    },
  })
  ring(heap, type, 2)
  t.is(heap.gc.collect(), 2)
  t.true(tried >= 38)
  t.deepEqual(seen[0], [1, true, true, 16])
  heap.verify()
})

test('a visit is good only inside the traverse that it was given to', (t) => {
  using heap = new Heap()
  let kept: ((object: Address) => void) | undefined
  const type: ObjectType = heap.defineType({
    ...spec,
    traverse(self, visit) {
      if (kept) t.throws(() => kept?.(self), { code: 'ERR_REENTRANT' })
      kept ??= visit
      visit(type.get(self, 'next') as Address)
    },
  })
  const [object] = ring(heap, type, 2)
  t.is(heap.gc.collect(), 2)
  t.throws(() => kept?.(object!), { code: 'ERR_REENTRANT' })
})

test('check finds what a traverse leaves out', (t) => {
  using heap = new Heap()
  let honest = false
  const type: ObjectType = heap.defineType({
    name: 'node',
    gc: true,
    fields: { a: 'object', b: 'object' },
    items: 'object',
    traverse(self, visit) {
      visit(type.get(self, 'a') as Address)
      if (!honest) return
      visit(type.get(self, 'b') as Address)
      visit(type.get(self, 1) as Address)
    },
  })
  const plain = heap.defineType(spec)
  ring(heap, plain, 2)
  const object = type.alloc(2)
  for (const field of ['a', 'b', 1]) type.set(object, field, object)
  t.deepEqual(heap.gc.check(), [{ object, referent: object, held: 3, visited: 1 }])
  heap.decref(object)
  t.is(heap.gc.collect(), 2, 'the plain ones')
  honest = true
  t.deepEqual(heap.gc.check(), [])
  t.is(heap.gc.collect(), 1)
})

test('tracking and untracking', (t) => {
  using heap = new Heap()
  const type = heap.defineType(spec)
  const plain = heap.defineType({ name: 'plain' }).alloc()
  const object = type.new()
  heap.gc.untrack(object)
  heap.gc.track(object)
  t.true(heap.gc.isTracked(object))
  t.throws(() => heap.gc.track(object), { code: 'ERR_GC_ALREADY_TRACKED' })
  heap.gc.untrack(object)
  heap.gc.untrack(object)
  t.false(heap.gc.isTracked(object))
  t.false(heap.gc.isTracked(plain))
  t.false(heap.gc.isFinalized(plain))
  for (const call of [() => heap.gc.track(plain), () => heap.gc.untrack(plain), () => heap.gc.del(plain)]) {
    t.throws(call, { code: 'ERR_WRONG_TYPE' })
  }
  type.set(object, 'next', object)
  heap.decref(object)
  t.is(heap.gc.collect(), 0, 'what is not tracked is not found')
})

test.serial('del gives memory back as it is, and warns of what is still tracked', async (t) => {
  using heap = new Heap()
  const type = heap.defineType({ ...spec, finalize: () => t.fail(), dealloc: () => t.fail() })
  const warnings: Error[] = []
  const listen = (warning: Error) => void (warning.name === 'ResourceWarning' && warnings.push(warning))
  process.on('warning', listen)
  heap.gc.del(type.new())
  heap.gc.del(type.alloc())
  t.is(heap.allocatedBlocks(), 0)
  const held = type.alloc()
  heap.incref(held)
  t.throws(() => heap.gc.del(held), { code: 'ERR_OUT_OF_RANGE' })
  t.true(heap.gc.isTracked(held))
  await new Promise(setImmediate)
  process.off('warning', listen)
  t.deepEqual(
    warnings.map(({ message }) => message),
    ['gc: Object of type node is not untracked before destruction'],
  )
})

test('resize changes the number of items, and the address if it has to', (t) => {
  for (const release of releases) {
    using heap = new Heap({ release, memoryLimit: 4 << 20 })
    const list = heap.defineType({ name: 'list', items: 'object', gc: true })
    const destroyed: Address[] = []
    const leaf = heap.defineType({ ...spec, dealloc: (self) => void destroyed.push(self) })
    let object = list.newVar(3)
    const [a, b] = [leaf.alloc(), leaf.alloc()]
    for (const [index, value] of [a, b].entries()) {
      list.set(object, index, value)
      heap.decref(value)
    }
    object = heap.gc.resize(object, 1000)
    t.deepEqual(
      [0, 1, 2, 999].map((index) => list.get(object, index)),
      [a, b, null, null],
    )
    t.throws(() => heap.gc.resize(object, 2n ** 60n), { code: 'ERR_NO_MEMORY' })
    t.throws(() => heap.gc.resize(object, 2 ** 20), { code: 'ERR_NO_MEMORY' })
    t.is(list.nitems(object), 1000)
    object = heap.gc.resize(object, 1)
    t.deepEqual(destroyed, [b])
    t.is(list.nitems(object), 1)
    heap.gc.track(object)
    t.throws(() => heap.gc.resize(object, 2), { code: 'ERR_GC_ALREADY_TRACKED' })
    t.throws(() => heap.gc.resize(a, 2), { code: 'ERR_WRONG_TYPE' })
    heap.decref(object)
    t.deepEqual(destroyed, [b, a])
    heap.verify()
  }
})

test('a heap cannot be closed from any of its callbacks', (t) => {
  const codes: string[] = []
  const heap = new Heap()
  const close = () => {
    try {
      heap.close()
    } catch (error) {
      codes.push((error as { code: string }).code)
    }
  }
  const type = heap.defineType({ ...spec, clear: close, finalize: close, dealloc: close })
  heap.gc.callbacks.push(close)
  heap.decref(heap.defineType({ ...spec, del: close }).alloc())
  heap.decref(type.alloc())
  heap.gc.newWeakref(ring(heap, type, 1)[0]!, close)
  heap.gc.collect()
  t.true(codes.length >= 6)
  t.deepEqual(new Set(codes), new Set(['ERR_REENTRANT']))
  heap.verify()
  heap.close()
  t.throws(() => heap.gc.collect(), { code: 'ERR_HEAP_CLOSED' })
})

test.serial('a heap that is dropped is given back though its callbacks refer to it', async (t) => {
  let gone = 0
  const registry = new FinalizationRegistry(() => gone++)
  ;(() => {
    for (let count = 0; count < 20; count++) {
      const heap: Heap = new Heap({ onUnraisable: () => heap.verify() })
      const type: ObjectType = heap.defineType({
        ...spec,
        traverse: (self, visit) => {
          const next = type.get(self, 'next') as Address | null
          if (next !== null) visit(next)
        },
        finalize: () => heap.verify(),
      })
      heap.gc.callbacks.push(() => heap.verify())
      heap.gc.newWeakref(ring(heap, type, 2)[0]!, () => heap.verify())
      heap.gc.collect(0)
      ring(heap, type, 2)
      registry.register(heap, undefined)
    }
  })()
  // The last one may still lie on the stack.
  t.true(await collectUntil(() => gone >= 19))
})

const inWorker = async (code: string): Promise<[number, unknown[]]> => {
  const worker = new Worker(
    `const { parentPort } = require('node:worker_threads'); const { Heap } = require('obmalloc')
     const heap = globalThis.heap = new Heap()
     const ring = (type) => { const object = type.alloc(); type.set(object, 'next', object); heap.decref(object) }
     ${code}`,
    { eval: true },
  )
  const messages: unknown[] = []
  worker.on('message', (message) => messages.push(message))
  worker.once('message', (message) => message === 'in' && setTimeout(() => void worker.terminate(), 20))
  const [exit] = (await once(worker, 'exit')) as [number]
  return [exit, messages]
}

test('a worker that is terminated in any callback ends', async (t) => {
  for (const hook of ['traverse', 'clear', 'finalize', 'del', 'dealloc']) {
    const collect = hook === 'del' ? '' : 'heap.gc.collect()'
    const [, messages] = await inWorker(`
      const type = heap.defineType({ name: 'node', gc: true, fields: { next: 'object' }, ${hook}() { parentPort.postMessage('in'); for (;;); } })
      for (let n = 0; n < 1000; n++) ${hook === 'del' ? 'heap.decref(type.alloc())' : 'ring(type)'}
      ${collect}
      parentPort.postMessage('out')`)
    t.deepEqual(messages, ['in'], hook)
  }
})

test('process.exit in a finalizer keeps its code', async (t) => {
  const [exit] = await inWorker(`
    const type = heap.defineType({ name: 'node', gc: true, fields: { next: 'object' }, finalize() { process.exit(7) } })
    for (let n = 0; n < 1000; n++) ring(type)
    heap.gc.collect()
    parentPort.postMessage('out')`)
  t.is(exit, 7)
})

test("a million objects are collected through callbacks without holding on to JavaScript's memory", (t) => {
  using heap = new Heap()
  let count = 0
  const type = heap.defineType({ ...spec, finalize: () => void count++ })
  heap.gc.disable()
  for (let round = 0; round < 100_000; round++) ring(heap, type, 2)
  const before = process.memoryUsage().heapUsed
  t.is(heap.gc.collect(), 200_000)
  t.is(count, 200_000)
  t.true(process.memoryUsage().heapUsed - before < 64 << 20)
})

test('garbage that cannot be appended is told', (t) => {
  const told: unknown[] = []
  using heap = new Heap({ onUnraisable: (error) => told.push(error) })
  const node = heap.defineType({ name: 'node', gc: true, fields: { next: 'object' }, del: () => {} })
  const object = node.alloc()
  node.set(object, 'next', object)
  heap.decref(object)
  Object.freeze(heap.gc.garbage)
  t.is(heap.gc.collect(), 1)
  t.like(told, [{ code: 'ERR_CALLBACK_RESULT', address: object }])
  t.is(heap.refcount(object), 2)
  heap.verify()
})
