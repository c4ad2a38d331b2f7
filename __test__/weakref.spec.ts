import test from 'ava'

import { Heap, type Address, type ObjectType, type TypeSpec, type UnraisableContext } from 'obmalloc'

import { releases } from './tools.ts'

const spec: TypeSpec = { name: 'node', gc: true, weakrefs: true, fields: { next: 'object' } }

/** An object that only it itself refers to. */
function loop(heap: Heap, type: ObjectType): Address {
  const object = type.alloc()
  type.set(object, 'next', object)
  heap.decref(object)
  return object
}

test('a weak reference has its referent until that is gone', (t) => {
  for (const release of releases) {
    for (const gc of [true, false]) {
      using heap = new Heap({ release })
      const type = heap.defineType({ ...spec, gc })
      const object = type.alloc()
      const ref = heap.gc.newWeakref(object)
      t.is(heap.gc.deref(ref), object)
      t.is(heap.refcount(object), 1)
      t.true(heap.gc.isTracked(ref))
      heap.decref(object)
      t.is(heap.gc.deref(ref), null)
      heap.decref(ref)
      t.throws(() => heap.gc.deref(ref), { code: 'ERR_USE_AFTER_FREE' })
      t.is(heap.allocatedBlocks(), 0)
      heap.verify()
    }
  }
})

test('without a callback there is one for an object, with callbacks there are as many as asked for', (t) => {
  using heap = new Heap()
  const type = heap.defineType(spec)
  const object = type.alloc()
  const ref = heap.gc.newWeakref(object)
  t.is(heap.gc.newWeakref(object), ref)
  t.is(heap.refcount(ref), 2)
  const others = [heap.gc.newWeakref(object, () => {}), heap.gc.newWeakref(object, () => {})]
  t.is(new Set([ref, ...others]).size, 3)
})

test('callbacks are called once each with their reference, the last one made first, when the object is gone', (t) => {
  for (const release of releases) {
    using heap = new Heap({ release })
    const type = heap.defineType(spec)
    const object = type.alloc()
    const calls: unknown[] = []
    const plain = heap.gc.newWeakref(object)
    const refs = [1, 2, 3].map((n) => heap.gc.newWeakref(object, (ref) => void calls.push([n, ref, heap.gc.deref(ref)])))
    heap.decref(refs[1]!)
    heap.decref(object)
    t.deepEqual(calls, [
      [3, refs[2], null],
      [1, refs[0], null],
    ])
    for (const ref of [plain, refs[0]!, refs[2]!]) heap.decref(ref)
    t.is(calls.length, 2)
    t.is(heap.allocatedBlocks(), 0)
  }
})

test('in a finalizer weak references are dead; from 3.15 on those without callbacks are not', (t) => {
  for (const release of releases) {
    using heap = new Heap({ release })
    const seen: Array<Address | null> = []
    const type = heap.defineType({
      ...spec,
      finalize() {
        seen.push(heap.gc.deref(plain), heap.gc.deref(called))
      },
    })
    const object = loop(heap, type)
    const events: string[] = []
    const plain = heap.gc.newWeakref(object)
    const called = heap.gc.newWeakref(object, () => void events.push(`callback before ${seen.length}`))
    t.is(heap.gc.collect(), 1)
    t.deepEqual(seen, [release === '3.15' ? object : null, null], release)
    t.deepEqual(events, ['callback before 0'])
    t.deepEqual([heap.gc.deref(plain), heap.gc.deref(called)], [null, null])
    heap.verify()
  }
})

test('a weak reference that is garbage itself calls nothing', (t) => {
  for (const release of releases) {
    using heap = new Heap({ release })
    const holder: ObjectType = heap.defineType({ ...spec, fields: { next: 'object', ref: 'object' } })
    const object = holder.alloc()
    const ref = heap.gc.newWeakref(object, () => t.fail())
    holder.set(object, 'ref', ref)
    holder.set(object, 'next', object)
    heap.decref(ref)
    heap.decref(object)
    t.is(heap.gc.collect(), 2, release)
    t.is(heap.allocatedBlocks(), 0)
    heap.verify()
  }
})

test('a callback may do anything but close the heap', (t) => {
  const told: Array<[unknown, UnraisableContext]> = []
  using heap = new Heap({ onUnraisable: (error, context) => void told.push([error, context]) })
  const type = heap.defineType(spec)
  const boom = new Error('boom')
  const object = loop(heap, type)
  const made: Address[] = []
  const first = heap.gc.newWeakref(object, (ref) => {
    for (let count = 0; count < 5000; count++) made.push(type.alloc())
    t.is(heap.gc.collect(), 0)
    t.is(heap.gc.deref(ref), null)
    t.throws(() => heap.incref(5 as Address), { code: 'ERR_FOREIGN_POINTER' })
    throw boom
  })
  const second = heap.gc.newWeakref(object, (async () => {}) as () => void)
  t.is(heap.gc.collect(), 1)
  t.is(made.length, 5000)
  t.deepEqual(
    told.map(([error, { hook, object }]) => [error === boom || (error as { code: string }).code, hook, object]),
    [
      ['ERR_CALLBACK_RESULT', 'weakref', second],
      [true, 'weakref', first],
    ],
  )
  for (const object of made) heap.decref(object)
  heap.verify()
})

test('what weak references are refused for', (t) => {
  using heap = new Heap()
  const object = heap.defineType({ ...spec, weakrefs: false }).alloc()
  const type = heap.defineType(spec)
  t.throws(() => heap.gc.newWeakref(object), { code: 'ERR_WRONG_TYPE' })
  t.throws(() => heap.gc.deref(object), { code: 'ERR_WRONG_TYPE' })
  t.throws(() => heap.gc.deref(heap.obj.malloc(8)!), { code: 'ERR_WRONG_TYPE' })
  for (const callback of [null, 5, {}, class {}]) {
    t.throws(() => heap.gc.newWeakref(type.alloc(), callback as never), {
      code: 'ERR_INVALID_ARG_TYPE',
      message: /^callback: expected a function/,
    })
  }
})

test('weak references come and go by the thousand', (t) => {
  using heap = new Heap()
  const type = heap.defineType(spec)
  let calls = 0
  for (let round = 0; round < 50; round++) {
    const object = type.alloc()
    const refs = Array.from({ length: 100 }, () => heap.gc.newWeakref(object, () => void calls++))
    for (const ref of refs.slice(50)) heap.decref(ref)
    heap.decref(object)
    for (const ref of refs.slice(0, 50)) heap.decref(ref)
  }
  t.is(calls, 2500)
  t.is(heap.allocatedBlocks(), 0)
  heap.verify()
})

test('a collection inside a finalizer lets go of the weak references that it called back for', (t) => {
  for (const release of releases) {
    using heap = new Heap({ release })
    let calls = 0
    const plain = heap.defineType(spec)
    const type: ObjectType = heap.defineType({
      ...spec,
      finalize() {
        const ref = heap.gc.newWeakref(loop(heap, plain), () => {
          calls++
          heap.decref(ref)
        })
        heap.gc.collect()
        t.throws(() => heap.gc.deref(ref), { code: 'ERR_USE_AFTER_FREE' }, release)
      },
    })
    heap.decref(type.alloc())
    t.is(calls, 1)
    t.is(heap.allocatedBlocks(), 0)
    heap.verify()
  }
})

test('what the callbacks of an object destroy costs the same however many callbacks there are', (t) => {
  using heap = new Heap({ release: '3.13' })
  const type = heap.defineType({ name: 'referent', weakrefs: true })
  const plain = heap.defineType({ name: 'plain' })
  const object = type.alloc()
  const count = 20_000
  let called = 0
  for (let index = 0; index < count; index++) {
    heap.gc.newWeakref(object, () => {
      called++
      heap.decref(plain.alloc())
    })
  }
  const began = performance.now()
  heap.decref(object)
  t.is(called, count)
  // It takes some hundredths of a second. It took seconds when each callback looked at every other weak reference.
  t.true(performance.now() - began < 1000)
})
