/** Scripts on the prototypes of what the package gives out and keeps: nothing of them runs where the heap is in the middle of something. */

import test from 'ava'

import { Heap, MemoryError, MemoryFault, type Address, type ObjectType } from 'obmalloc'

import { codeOf, collectUntil, releases, some } from '../tools.ts'

/** Puts something under a name of a prototype for the time of a call. */
function polluted<Result>(prototype: object, name: PropertyKey, descriptor: PropertyDescriptor, call: () => Result): Result {
  const before = Object.getOwnPropertyDescriptor(prototype, name)
  Object.defineProperty(prototype, name, { configurable: true, ...descriptor })
  try {
    return call()
  } finally {
    if (before) Object.defineProperty(prototype, name, before)
    else Reflect.deleteProperty(prototype, name)
  }
}

function cycles(heap: Heap, type: ObjectType, count: number): void {
  for (let index = 0; index < count; index++) {
    const [a, b] = [type.alloc(), type.alloc()]
    type.set(a, 'next', b)
    type.set(b, 'next', a)
    heap.decref(a)
    heap.decref(b)
  }
}

const actions: Record<string, (heap: Heap, type: ObjectType) => void> = {
  closes: (heap) => heap.close(),
  collects(heap, type) {
    cycles(heap, type, 1)
    heap.gc.collect()
  },
  frees(heap) {
    for (const object of heap.gc.getObjects()) heap.decref(object)
  },
  throws() {
    throw new Error('no')
  },
}

for (const [name, action] of Object.entries(actions)) {
  test(`what a collection found is appended to gc.garbage without running a script that ${name}`, (t) => {
    for (const release of releases) {
      const heap = new Heap({ release })
      const type = heap.defineType({ name: 'node', fields: { next: 'object' }, gc: true })
      heap.gc.disable()
      cycles(heap, type, 50)
      let asked = 0
      const trap = (): never => {
        asked++
        action(heap, type)
        throw new Error('no')
      }
      const traps = {
        get: trap,
        set: trap,
        has: trap,
        defineProperty: trap,
        getOwnPropertyDescriptor: trap,
        getPrototypeOf: trap,
      }
      Object.setPrototypeOf(heap.gc.garbage, new Proxy(Array.prototype, traps))
      heap.gc.setDebug(heap.gc.DEBUG_SAVEALL)
      t.is(heap.gc.collect(), 100)
      t.is(asked, 0)
      t.is(heap.gc.garbage.length, 100)
      Object.setPrototypeOf(heap.gc.garbage, Array.prototype)
      t.is(new Set(heap.gc.garbage).size, 100)
      heap.verify()
      heap.close()
    }
  })
}

test('an array that cannot grow gets no garbage, and that is told', (t) => {
  const seals: Record<string, (array: Address[]) => void> = {
    frozen: (array) => Object.freeze(array),
    sealed: (array) => Object.preventExtensions(array),
    'of a fixed length': (array) => Object.defineProperty(array, 'length', { writable: false }),
  }
  for (const [name, seal] of Object.entries(seals)) {
    const told: unknown[] = []
    const heap = new Heap({ onUnraisable: (error) => void told.push((error as { code?: unknown }).code) })
    const type = heap.defineType({ name: 'node', fields: { next: 'object' }, gc: true })
    cycles(heap, type, 1)
    seal(heap.gc.garbage)
    heap.gc.setDebug(heap.gc.DEBUG_SAVEALL)
    t.is(heap.gc.collect(), 2, name)
    t.deepEqual(told, ['ERR_CALLBACK_RESULT', 'ERR_CALLBACK_RESULT'], name)
    heap.verify()
    heap.close()
  }
})

/** Elements that the binding may keep something at. */
const elements = Array.from({ length: 80 }, (_, index) => String(index))

test.serial('a view is of its block only, whatever Array.prototype has', (t) => {
  for (const holder of [Array.prototype, Object.prototype]) {
    for (const element of elements) {
      const heap = new Heap()
      let asked = 0
      const descriptor = { get: () => (asked++, new Uint8Array(8)), set: () => void asked++ }
      const [block, view] = polluted(holder, element, descriptor, () => {
        const block = some(heap.obj.malloc(64))
        const view = heap.obj.view(block)
        view.fill(1)
        heap.obj.free(block)
        return [block, view]
      })
      t.is(view.length, 0)
      t.is(heap.obj.malloc(64), block)
      t.is(asked, 0)
      heap.close()
    }
  }
})

test.serial('no element of a prototype closes a heap while it keeps something', (t) => {
  for (const holder of [Array.prototype, Object.prototype]) {
    for (const element of elements) {
      const heap = new Heap()
      const type = heap.defineType({ name: 'node', weakrefs: true })
      const object = type.alloc()
      const block = some(heap.raw.malloc(100_000))
      let called = 0
      const close = () => heap.close()
      const view = polluted(holder, element, { get: close, set: close }, () => {
        heap.gc.newWeakref(object, () => void called++)
        return heap.raw.view(block)
      })
      t.is(view.length, 100_000)
      heap.decref(object)
      t.is(called, 1)
      heap.close()
      t.is(view.length, 0)
    }
  }
})

/** Names that the binding or its face has, or has had. */
const names = [
  'heap',
  'handle',
  'kept',
  'native',
  'external',
  'makeError',
  'makeBytes',
  'views',
  'garbage',
  'callbacks',
  'raw',
  'obj',
  'onHook',
]

test.serial('nothing of a heap comes into the hands of a setter', (t) => {
  for (const name of names) {
    const taken: unknown[] = []
    function take(this: unknown, value: unknown): void {
      taken.push(this, value)
    }
    const descriptor = { get: () => () => new Uint8Array(16), set: take }
    const length = polluted(Object.prototype, name, descriptor, () => {
      const heap = new Heap()
      const block = some(heap.raw.malloc(1 << 20))
      heap.raw.view(block).fill(0x41)
      const { length } = heap.raw.read(block)
      heap.close()
      return length
    })
    t.is(length, 1 << 20, name)
    t.deepEqual(taken, [], name)
  }
})

test.serial('a domain keeps its heap, whatever Object.prototype has', async (t) => {
  const make = () => {
    const heap = new Heap()
    for (let count = 0; count < 100; count++) heap.raw.malloc(100)
    return heap.obj
  }
  const domains = names.flatMap((name) =>
    [
      { get() {}, set() {} },
      { value: 1, writable: false },
    ].map((descriptor) => polluted(Object.prototype, name, descriptor, make)),
  )
  await collectUntil(() => false, 5)
  for (const domain of domains) for (let count = 0; count < 100; count++) domain.free(domain.malloc(64))
  t.pass()
})

test('what a heap gives out has constructors that make nothing for a script', (t) => {
  const heap = new Heap()
  let asked = 0
  const number = { get: () => ++asked }
  for (const value of [heap.raw, heap.mem, heap.obj, heap.gc]) {
    const Class = value.constructor as new (...args: unknown[]) => unknown
    for (const handle of [undefined, 5, {}, { number: 1 }, Object.defineProperty({}, 'number', number), heap, value]) {
      t.throws(() => new Class('obj', handle, { find: () => -1 }), { code: 'ERR_INVALID_ARG_TYPE' })
      t.throws(() => new Class(handle, [[], []], {}), { code: 'ERR_INVALID_ARG_TYPE' })
    }
  }
  t.is(asked, 0)
  heap.close()
})

test('no script is what an error is made of', (t) => {
  const heap = new Heap({ memoryLimit: 1 << 16 })
  const type = heap.defineType({ name: 'bytes', items: 'byte' })
  const block = some(heap.raw.malloc(64))
  let made = 0
  class Below {
    constructor() {
      made++
      // Node-API gives the same for the end of an execution.
      throw null // eslint-disable-line no-throw-literal
    }
  }
  for (const Class of [MemoryFault, MemoryError]) t.false(Reflect.setPrototypeOf(Class, Below))
  t.is(
    codeOf(() => heap.mem.free(block)),
    'ERR_WRONG_DOMAIN',
  )
  t.is(
    codeOf(() => type.alloc(1 << 20)),
    'ERR_NO_MEMORY',
  )
  t.is(made, 0)
  heap.close()
})
