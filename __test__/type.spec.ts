import { once } from 'node:events'
import { Worker } from 'node:worker_threads'

import test from 'ava'

import {
  Heap,
  MemoryError,
  MemoryFault,
  ObjectType,
  type Address,
  type FieldKind,
  type TypeSpec,
  type UnraisableContext,
} from 'obmalloc'

import { releases, some, transfer } from './tools.ts'

const node: TypeSpec = { name: 'node', gc: true, fields: { next: 'object' } }

/** A heap, and a list of the exceptions that no call could throw. */
function listening(options = {}): { heap: Heap; told: Array<[unknown, UnraisableContext]> } {
  const told: Array<[unknown, UnraisableContext]> = []
  return { heap: new Heap({ ...options, onUnraisable: (error, context) => void told.push([error, context]) }), told }
}

test('fields follow the header in order, each aligned to its own size', (t) => {
  using heap = new Heap()
  const size = (fields: Record<string, FieldKind>, more: Partial<TypeSpec> = {}) =>
    heap.defineType({ name: 't', fields, ...more }).basicsize
  t.is(size({}), 16)
  t.is(size({ a: 'u8' }), 24)
  t.is(size({ a: 'u8', b: 'u8', c: 'i32' }), 24)
  t.is(size({ a: 'u8', b: 'object', c: 'i32', d: 'f64', e: 'u8' }), 56)
  t.is(size({ a: 'i64', b: 'u32', c: 'i32' }), 32)
  t.is(size({}, { items: 'object' }), 24)
  t.is(size({ a: 'object' }, { items: 'byte' }), 32)
  t.deepEqual(
    (['object', 'byte', undefined] as const).map((items) => heap.defineType({ name: 't', items }).itemsize),
    [8, 1, 0],
  )
})

test('a dict and weak references take a word each, until the release keeps them before the object', (t) => {
  for (const release of releases) {
    using heap = new Heap({ release })
    const minor = Number(release.split('.')[1])
    const size = (more: Partial<TypeSpec>) => heap.defineType({ name: 't', gc: true, ...more }).basicsize
    t.is(size({ managedDict: true }), minor >= 11 ? 16 : 24, release)
    t.is(size({ weakrefs: true }), minor >= 12 ? 16 : 24, release)
    t.is(size({ gc: false, weakrefs: true }), 24, release)
  }
})

test('alloc gives a zeroed object that is tracked, new one with null fields that is not', (t) => {
  using heap = new Heap()
  const dirty = some(heap.obj.malloc(64))
  heap.obj.view(dirty).fill(255)
  heap.obj.free(dirty)
  const type = heap.defineType({ ...node, fields: { next: 'object', count: 'u32', big: 'i64', real: 'f64', flag: 'u8' } })
  const [made, fresh] = [type.alloc(), type.new()]
  t.deepEqual(
    ['next', 'count', 'big', 'real', 'flag'].map((field) => type.get(made, field)),
    [null, 0, 0n, 0, 0],
  )
  t.is(type.get(fresh, 'next'), null)
  t.deepEqual(
    [made, fresh].map((object) => heap.refcount(object)),
    [1, 1],
  )
  t.deepEqual(
    [made, fresh].map((object) => heap.gc.isTracked(object)),
    [true, false],
  )
  heap.decref(made)
  heap.decref(fresh)
  t.is(heap.allocatedBlocks(), 0)
  heap.verify()
})

test('every kind of field holds its whole range and nothing else', (t) => {
  using heap = new Heap()
  const type = heap.defineType({ name: 't', fields: { o: 'object', b: 'u8', i: 'i32', u: 'u32', l: 'i64', f: 'f64' } })
  const object = type.alloc()
  const holds = (field: string, values: unknown[]) => {
    for (const value of values) {
      type.set(object, field, value as number)
      t.is(type.get(object, field) as unknown, value)
    }
  }
  const refuses = (field: string, code: string, values: unknown[]) => {
    for (const value of values) {
      const before = type.get(object, field)
      t.throws(() => type.set(object, field, value as number), { code, message: /^value: expected / })
      t.is(type.get(object, field), before)
    }
  }
  holds('b', [0, 1, 255])
  refuses('b', 'ERR_OUT_OF_RANGE', [-1, 256, 0.5, Number.NaN, Infinity])
  holds('i', [-(2 ** 31), 0, 2 ** 31 - 1])
  refuses('i', 'ERR_OUT_OF_RANGE', [-(2 ** 31) - 1, 2 ** 31, 1.5])
  holds('u', [0, 2 ** 32 - 1])
  refuses('u', 'ERR_OUT_OF_RANGE', [-1, 2 ** 32])
  holds('l', [-(2n ** 63n), -1n, 0n, 2n ** 63n - 1n])
  refuses('l', 'ERR_OUT_OF_RANGE', [2n ** 63n, -(2n ** 63n) - 1n, 0.5, 2 ** 53, Number.NaN])
  type.set(object, 'l', -5)
  t.is(type.get(object, 'l'), -5n)
  holds('f', [0, -0, 1.5, Number.MAX_VALUE, Infinity, Number.NaN])
  for (const field of 'biuf') refuses(field, 'ERR_INVALID_ARG_TYPE', ['1', null, undefined, {}, true, 1n, Symbol.iterator])
  refuses('l', 'ERR_INVALID_ARG_TYPE', ['1', null, undefined, {}, true])
  refuses('o', 'ERR_INVALID_ARG_TYPE', ['1', undefined, {}, true, 1n])
  t.throws(() => type.get(object, 'nope'), { code: 'ERR_OUT_OF_RANGE', message: /a field of t \('o', 'b', 'i', 'u', 'l', 'f'\)/ })
  t.throws(() => type.get(object, Symbol('o') as never), { code: 'ERR_INVALID_ARG_TYPE' })
  t.throws(() => type.get(object, 0), { code: 'ERR_OUT_OF_RANGE' })
})

test('an object field holds a reference, and drops the one to what it held', (t) => {
  using heap = new Heap()
  const destroyed: Address[] = []
  const type = heap.defineType({ ...node, dealloc: (self) => void destroyed.push(self) })
  const [a, b, c] = [type.alloc(), type.alloc(), type.alloc()]
  type.set(a, 'next', b)
  type.set(a, 'next', b)
  t.is(heap.refcount(b), 2)
  heap.decref(b)
  type.set(a, 'next', c)
  t.deepEqual(destroyed, [b])
  t.is(heap.refcount(c), 2)
  type.set(a, 'next', null)
  t.is(heap.refcount(c), 1)
  t.is(type.get(a, 'next'), null)
})

test('items are counted, and as many as asked for', (t) => {
  using heap = new Heap()
  const list = heap.defineType({ name: 'list', items: 'object', gc: true, fields: { size: 'i64' } })
  const bytes = heap.defineType({ name: 'bytes', items: 'byte' })
  for (const make of [(n: number) => list.alloc(n), (n: number) => list.newVar(n)]) {
    for (const n of [0, 1, 2, 7, 100, 5000]) {
      const object = make(n)
      t.is(list.nitems(object), n)
      for (let index = 0; index < n; index++) t.is(list.get(object, index), null)
      t.throws(() => list.get(object, n), { code: 'ERR_OUT_OF_RANGE' })
      if (n > 0) list.set(object, n - 1, object)
      heap.verify()
      if (n > 0) list.set(object, n - 1, null)
      heap.decref(object)
    }
  }
  const text = bytes.alloc(3)
  for (const [index, byte] of [1, 2, 255].entries()) bytes.set(text, index, byte)
  t.deepEqual(
    [0, 1, 2].map((index) => bytes.get(text, index)),
    [1, 2, 255],
  )
  t.throws(() => bytes.set(text, 0, 256), { code: 'ERR_OUT_OF_RANGE' })
  t.throws(() => bytes.set(text, 0, null), { code: 'ERR_INVALID_ARG_TYPE' })
  t.throws(() => bytes.set(text, 3, 1), { code: 'ERR_OUT_OF_RANGE' })
  for (const index of [-1, 0.5, 2 ** 53, Number.NaN]) t.throws(() => bytes.get(text, index), { code: 'ERR_OUT_OF_RANGE' })
  heap.decref(text)
  t.is(heap.allocatedBlocks(), 0)
})

test("memory from obj becomes an object, and is the object's from then on", (t) => {
  using heap = new Heap()
  const plain = heap.defineType({ name: 'plain', fields: { ref: 'object', count: 'u32' } })
  const list = heap.defineType({ name: 'list', items: 'object' })
  const memory = some(heap.obj.calloc(1, plain.basicsize))
  const view = heap.obj.view(memory)
  const object = plain.init(memory)
  t.is(object, memory)
  t.is(view.length, 0)
  t.is(heap.typeOf(object), plain)
  t.is(heap.refcount(object), 1)
  t.is(plain.get(object, 'ref'), null)
  for (const misuse of [
    () => heap.obj.free(memory),
    () => heap.obj.realloc(memory, 100),
    () => heap.obj.usableSize(memory),
    () => heap.obj.view(memory),
    () => heap.obj.read(memory),
    () => heap.obj.write(memory, new Uint8Array(1)),
    () => heap.mem.free(memory),
    () => plain.init(memory),
  ]) {
    t.throws(misuse, { code: 'ERR_WRONG_TYPE' })
  }
  heap.decref(object)
  t.throws(() => heap.obj.free(memory), { code: 'ERR_DOUBLE_FREE' })
  const many = list.initVar(some(heap.obj.malloc(24 + 8 * 5)), 5)
  t.is(list.nitems(many), 5)
  t.is(list.get(many, 4), null)
  heap.decref(many)
  t.is(heap.allocatedBlocks(), 0)
  heap.verify()
})

test('init refuses what cannot become an object, and leaves it as it was', (t) => {
  using heap = new Heap()
  using other = new Heap()
  const plain = heap.defineType({ name: 'plain', fields: { a: 'f64', b: 'f64' } })
  const list = heap.defineType({ name: 'list', items: 'byte' })
  const gc = heap.defineType(node)
  const small = some(heap.obj.malloc(16))
  const block = some(heap.obj.malloc(64))
  const view = heap.obj.view(block).fill(7)
  const little = heap.obj.view(small).fill(7)
  t.throws(() => plain.init(small), { code: 'ERR_OUT_OF_RANGE' })
  t.throws(() => list.initVar(block, 41), { code: 'ERR_OUT_OF_RANGE' })
  t.throws(() => list.initVar(block, 2n ** 63n - 1n), {
    code: 'ERR_OUT_OF_RANGE',
    message: /^nitems: .*got 9223372036854775807n$/,
  })
  t.throws(() => gc.init(block), { code: 'ERR_OUT_OF_RANGE' })
  t.throws(() => plain.init(some(heap.mem.malloc(64))), { code: 'ERR_WRONG_DOMAIN' })
  t.throws(() => plain.init(some(other.obj.malloc(64))), { code: 'ERR_WRONG_HEAP' })
  t.throws(() => plain.init((block + 16) as Address), { code: 'ERR_INTERIOR_POINTER' })
  t.throws(() => plain.init(null as never), { code: 'ERR_INVALID_ARG_TYPE' })
  t.deepEqual([view[63], little[15]], [7, 7], 'the views are still there')
  const moved = new Uint8Array(transfer(view.buffer))
  t.throws(() => plain.init(block), { code: 'ERR_REENTRANT' })
  t.is(moved[0], 7)
  heap.verify()
})

test('a destroyed object is the next one of its type, last in first out, until a full collection', (t) => {
  for (const release of releases) {
    using heap = new Heap({ release })
    const type = heap.defineType({ ...node, freeList: 2 })
    const [a, b, c] = [type.alloc(), type.alloc(), type.alloc()]
    for (const object of [a, b, c]) heap.decref(object)
    t.is(heap.allocatedBlocks(), 2, 'two are kept')
    t.throws(() => heap.refcount(b), { code: 'ERR_USE_AFTER_FREE' })
    t.is(type.alloc(), b)
    t.is(type.alloc(), a)
    t.is(heap.refcount(a), 1)
    t.true(heap.gc.isTracked(a))
    heap.decref(a)
    heap.decref(b)
    heap.gc.collect(1)
    t.is(heap.allocatedBlocks(), 2)
    heap.gc.collect()
    t.is(heap.allocatedBlocks(), 0)
    heap.verify()
  }
})

test('from 3.12 on an object can be immortal', (t) => {
  for (const release of releases) {
    using heap = new Heap({ release })
    const destroyed: Address[] = []
    const type = heap.defineType({ ...node, dealloc: (self) => void destroyed.push(self) })
    const object = type.alloc()
    const can = Number(release.split('.')[1]) >= 12
    t.is(heap.setImmortal(object), can, release)
    heap.decref(object)
    t.deepEqual(destroyed, can ? [] : [object])
    if (!can) continue
    const count = heap.refcount(object)
    for (let times = 0; times < 10; times++) heap.decref(object)
    heap.incref(object)
    t.is(heap.refcount(object), count)
    t.is(heap.gc.collect(), 0)
    heap.verify()
  }
})

test('destruction is depth first: finalizer, weak references, dealloc, then each reference in turn', (t) => {
  using heap = new Heap()
  const events: string[] = []
  const names = new Map<Address, string>()
  const log = (what: string) => (self: Address) => void events.push(`${what} ${names.get(self)}`)
  const type = heap.defineType({
    name: 'pair',
    gc: true,
    weakrefs: true,
    fields: { left: 'object', right: 'object' },
    finalize: log('finalize'),
    dealloc: log('dealloc'),
  })
  const make = (name: string, left: Address | null = null, right: Address | null = null): Address => {
    const self = type.alloc()
    names.set(self, name)
    for (const [field, value] of Object.entries({ left, right })) {
      type.set(self, field, value)
      if (value !== null) heap.decref(value)
    }
    return self
  }
  const leaf = make('leaf')
  const root = make('root', make('left', leaf), make('right'))
  heap.gc.newWeakref(root, () => void events.push('weakref root'))
  heap.decref(root)
  t.deepEqual(events, [
    'finalize root',
    'weakref root',
    'dealloc root',
    'finalize left',
    'dealloc left',
    'finalize leaf',
    'dealloc leaf',
    'finalize right',
    'dealloc right',
  ])
  heap.verify()
})

test('a finalizer and a legacy finalizer can keep the object, the first of them once', (t) => {
  using heap = new Heap()
  const events: string[] = []
  let keep = true
  const type = heap.defineType({
    ...node,
    finalize(self) {
      events.push('finalize')
      heap.incref(self)
    },
    del(self) {
      events.push('del')
      if (keep) heap.incref(self)
    },
  })
  const object = type.alloc()
  heap.decref(object)
  t.is(heap.refcount(object), 1)
  t.true(heap.gc.isFinalized(object))
  t.true(heap.gc.isTracked(object))
  heap.decref(object)
  t.is(heap.refcount(object), 1)
  keep = false
  heap.decref(object)
  t.deepEqual(events, ['finalize', 'del', 'del'])
  t.throws(() => heap.refcount(object), { code: 'ERR_USE_AFTER_FREE' })
})

test('the functions of a spec are called with it as this, as they were when the type was defined', (t) => {
  using heap = new Heap()
  const spec = {
    ...node,
    seen: [] as unknown[],
    finalize(self: Address): void {
      this.seen.push(self)
    },
  }
  const type = heap.defineType(spec)
  spec.finalize = () => t.fail('read again')
  const object = type.alloc()
  heap.decref(object)
  t.deepEqual(spec.seen, [object])
})

test('typeOf gives the type that was defined; weak references have one too', (t) => {
  using heap = new Heap()
  const [a, b] = [heap.defineType(node), heap.defineType({ name: 'b', weakrefs: true })]
  t.is(heap.typeOf(a.alloc()), a)
  const object = b.alloc()
  t.is(heap.typeOf(object), b)
  const ref = heap.gc.newWeakref(object)
  const weakref = heap.typeOf(ref)
  t.is(heap.typeOf(ref), weakref)
  t.true(weakref instanceof ObjectType)
  t.is(weakref.name, 'weakref.ReferenceType')
  t.throws(() => weakref.alloc(), { code: 'ERR_WRONG_TYPE' })
  t.throws(() => weakref.get(ref, 'wr_object'), { code: 'ERR_OUT_OF_RANGE' })
  const fault = t.throws(() => a.get(object, 'next'), { code: 'ERR_WRONG_TYPE' })
  t.is((fault as MemoryFault).address, object)
})

test('types are made by defineType only', (t) => {
  const Forged = ObjectType as unknown as new (...args: unknown[]) => ObjectType
  t.throws(() => new Forged(), { code: 'ERR_INVALID_ARG_TYPE', message: /heap\.defineType/ })
  t.throws(() => new Forged({ key: Symbol('key'), handle: {}, number: 1, shape: ['x', 16, 0], fields: [] }), {
    code: 'ERR_INVALID_ARG_TYPE',
  })
  using heap = new Heap()
  const type = heap.defineType(node)
  for (const value of [type, heap.gc]) {
    t.throws(() => structuredClone(value), { any: true, instanceOf: DOMException, name: 'DataCloneError' } as never)
  }
  for (const forged of [{ ...type }, Object.create(ObjectType.prototype), new Proxy(type, {}), heap]) {
    t.throws(() => type.alloc.call(forged as ObjectType), { instanceOf: TypeError })
  }
})

test('what is wrong in a spec is named', (t) => {
  using heap = new Heap()
  const refused = (spec: unknown, code: string, message: RegExp) =>
    t.throws(() => heap.defineType(spec as TypeSpec), { code, message })
  for (const spec of [undefined, null, 5, 'x']) refused(spec, 'ERR_INVALID_ARG_TYPE', /^spec: expected an object/)
  for (const name of [undefined, null, 5, {}]) refused({ name }, 'ERR_INVALID_ARG_TYPE', /^spec\.name: expected a string/)
  refused({ name: '\ud800' }, 'ERR_OUT_OF_RANGE', /^spec\.name/)
  for (const fields of [null, 5, 'x', []]) refused({ name: 't', fields }, 'ERR_INVALID_ARG_TYPE', /^spec\.fields: expected/)
  refused(
    { name: 't', fields: { a: 'u8', b: 'u16' } },
    'ERR_OUT_OF_RANGE',
    /^spec\.fields\.b: expected one of 'object', 'u8'.*got "u16"$/,
  )
  refused({ name: 't', fields: { a: 'toString' } }, 'ERR_OUT_OF_RANGE', /^spec\.fields\.a/)
  refused({ name: 't', fields: { a: 8 } }, 'ERR_INVALID_ARG_TYPE', /^spec\.fields\.a/)
  refused({ name: 't', items: 'word' }, 'ERR_OUT_OF_RANGE', /^spec\.items: expected one of 'object', 'byte'/)
  refused({ name: 't', items: null }, 'ERR_INVALID_ARG_TYPE', /^spec\.items/)
  for (const flag of ['gc', 'weakrefs', 'managedDict']) {
    for (const value of [null, 1, 'yes'])
      refused({ name: 't', [flag]: value }, 'ERR_INVALID_ARG_TYPE', new RegExp(`^spec\\.${flag}: expected a boolean`))
  }
  for (const value of [-1, 0.5, Number.NaN]) refused({ name: 't', freeList: value }, 'ERR_OUT_OF_RANGE', /^spec\.freeList/)
  refused({ name: 't', freeList: '2' }, 'ERR_INVALID_ARG_TYPE', /^spec\.freeList/)
  refused({ name: 't', freeList: 2, items: 'byte' }, 'ERR_OUT_OF_RANGE', /free list/)
  const { proxy, revoke } = Proxy.revocable(() => {}, {})
  revoke()
  for (const hook of ['traverse', 'clear', 'finalize', 'del', 'dealloc']) {
    for (const value of [null, 5, {}, class {}, proxy]) {
      refused({ name: 't', [hook]: value }, 'ERR_INVALID_ARG_TYPE', new RegExp(`^spec\\.${hook}: expected a function`))
    }
  }
  heap.verify()
})

test('without memory an object is a MemoryError, and nothing is left half-made', (t) => {
  for (const release of releases) {
    using heap = new Heap({ release, memoryLimit: 2 << 20 })
    const list = heap.defineType({ name: 'list', items: 'object', gc: true })
    for (const make of [(n: bigint) => list.alloc(n), (n: bigint) => list.newVar(n)]) {
      for (const n of [2n ** 20n, 2n ** 40n, 2n ** 60n - 3n, 2n ** 60n, 2n ** 61n, 2n ** 63n - 1n]) {
        const error = t.throws(() => make(n), { code: 'ERR_NO_MEMORY' })
        t.true(error instanceof MemoryError)
      }
    }
    t.is(heap.allocatedBlocks(), 0)
    t.deepEqual(heap.gc.getObjects(), [])
    heap.verify()
    const objects: Address[] = []
    t.throws(
      () => {
        for (;;) objects.push(list.alloc(100))
      },
      { code: 'ERR_NO_MEMORY' },
    )
    for (const object of objects) heap.decref(object)
    heap.decref(list.alloc(100))
    t.is(heap.allocatedBlocks(), 0)
    heap.verify()
  }
})

test('an exception that no call can throw is told, and the others are called all the same', (t) => {
  const { heap, told } = listening()
  const boom = new Error('boom')
  const hooks = ['finalize', 'del', 'dealloc'] as const
  const fail = () => {
    throw boom
  }
  const type = heap.defineType({ ...node, finalize: fail, del: fail, dealloc: fail })
  const object = type.alloc()
  heap.decref(object)
  t.deepEqual(
    told,
    hooks.map((hook) => [boom, { hook, object, type }]),
  )
  t.is(heap.allocatedBlocks(), 0)
  heap.verify()
  heap.close()
})

test('a function of a type that gives something to wait for has failed', async (t) => {
  const { heap, told } = listening()
  const type = heap.defineType({
    ...node,
    finalize: (async () => {
      await Promise.resolve()
      throw new Error('this is not awaited')
    }) as () => void,
    dealloc: function* () {} as () => void,
    del: (() => Promise.reject(new Error('nor for this'))) as () => void,
  })
  heap.decref(type.alloc())
  t.deepEqual(
    told.map(([error, { hook }]) => [(error as { code: string }).code, hook]),
    ['finalize', 'del', 'dealloc'].map((hook) => ['ERR_CALLBACK_RESULT', hook]),
  )
  await new Promise(setImmediate)
  heap.close()
})

test.serial('without onUnraisable, and when that throws, there is a warning of the process', async (t) => {
  const warnings: Error[] = []
  const listen = (warning: Error) => void (warning.name === 'UnraisableException' && warnings.push(warning))
  process.on('warning', listen)
  const boom = new Error('boom')
  const run = (heap: Heap) => {
    const type = heap.defineType({
      ...node,
      finalize() {
        throw boom
      },
    })
    const object = type.alloc()
    heap.decref(object)
    heap.close()
    return object
  }
  const object = run(new Heap())
  run(
    new Heap({
      onUnraisable() {
        throw new Error('again')
      },
    }),
  )
  await new Promise(setImmediate)
  process.off('warning', listen)
  const where = `Exception ignored in finalize of node at 0x${object.toString(16)}: Error: boom`
  t.deepEqual(
    warnings.map(({ message }) => message.replace(/0x[0-9a-f]+/, `0x${object.toString(16)}`)),
    [where, where, 'Exception ignored in onUnraisable: Error: again'],
  )
  t.is((warnings[0] as Error & { detail?: string }).detail, boom.stack)
})

test.serial('an exception that cannot be shown is told of all the same', async (t) => {
  const warnings: string[] = []
  const listen = ({ name, message }: Error) => void (name === 'UnraisableException' && warnings.push(message))
  process.on('warning', listen)
  const { proxy, revoke } = Proxy.revocable({}, {})
  revoke()
  const fail = (): never => {
    throw proxy
  }
  const thrown = [
    proxy,
    new Proxy({}, { getPrototypeOf: fail }),
    Object.defineProperty(new Error('no'), 'message', { get: fail }),
    Object.defineProperty(new Error('no'), 'stack', { get: fail }),
    Object.defineProperty(new Error('no'), 'name', { value: Symbol('name') }),
    { [Symbol.toStringTag]: 5, get constructor() { return fail() } }, // prettier-ignore
  ]
  for (const error of thrown) {
    const heap = new Heap()
    const finalize = () => {
      throw error
    }
    const type = heap.defineType({ ...node, finalize })
    for (let count = 0; count < 2; count++) heap.decref(type.alloc())
    heap.close()
  }
  await new Promise(setImmediate)
  process.off('warning', listen)
  t.is(warnings.length, 2 * thrown.length)
  for (const message of warnings) t.regex(message, /^Exception ignored in finalize of node at 0x[0-9a-f]+: /)
})

test('callbacks inside one another end at 50, with an error, not with the stack', (t) => {
  const { heap, told } = listening()
  let depth = 0
  let deepest = 0
  const type: ObjectType = heap.defineType({
    ...node,
    finalize() {
      deepest = Math.max(deepest, ++depth)
      try {
        heap.decref(type.alloc())
      } finally {
        depth--
      }
    },
  })
  heap.decref(type.alloc())
  t.is(deepest, 50)
  t.deepEqual(
    told.map(([error]) => (error as { code: string }).code),
    ['ERR_REENTRANT'],
  )
  heap.verify()
  heap.close()
})

const inSmallWorker = async (code: string): Promise<unknown> => {
  const worker = new Worker(
    `const { Heap } = require('obmalloc'); const { parentPort } = require('node:worker_threads'); ${code}`,
    {
      eval: true,
      resourceLimits: { stackSizeMb: 1 },
    },
  )
  const [[message], [exit]] = await Promise.all([once(worker, 'message'), once(worker, 'exit')])
  if (exit !== 0) throw new Error(`the worker ended with ${exit}`)
  return message
}

test('a chain of a million objects is destroyed and collected in a worker with a small stack', async (t) => {
  for (const hooks of ['{}', '{ dealloc() { count++ } }']) {
    const message = await inSmallWorker(`
      let count = 0
      const heap = new Heap()
      const type = heap.defineType({ name: 'node', gc: true, fields: { next: 'object' }, ...${hooks} })
      const chain = () => {
        const end = type.alloc()
        let head = end
        for (let n = 1; n < 1e6; n++) {
          const object = type.alloc()
          type.set(object, 'next', head)
          heap.decref(head)
          head = object
        }
        return [head, end]
      }
      heap.decref(chain()[0])
      const left = heap.allocatedBlocks()
      const [head, end] = chain()
      type.set(end, 'next', head)
      heap.decref(head)
      const collected = heap.gc.collect()
      parentPort.postMessage([left, collected, heap.allocatedBlocks(), count])
      heap.close()`)
    t.deepEqual(message, [0, 1e6, 0, hooks === '{}' ? 0 : 2e6])
  }
})

test('callbacks inside one another end at 50 in a worker with a small stack too', async (t) => {
  const message = await inSmallWorker(`
    const codes = []
    const heap = new Heap({ onUnraisable: (error) => codes.push(error.code) })
    let deepest = 0, depth = 0
    const type = heap.defineType({ name: 'node', gc: true, fields: { next: 'object' }, finalize() {
      deepest = Math.max(deepest, ++depth)
      try { heap.decref(type.alloc()) } finally { depth-- }
    } })
    heap.decref(type.alloc())
    heap.verify()
    parentPort.postMessage([deepest, codes])`)
  t.deepEqual(message, [50, ['ERR_REENTRANT']])
})

test('what is thrown where the stack is full is told once there is room', (t) => {
  let [finalized, destroyed, tries] = [0, 0, 0]
  const { heap, told } = listening()
  const type = heap.defineType({ ...node, finalize: () => void finalized++ })
  const objects = Array.from({ length: 3000 }, () => type.alloc())
  const dive = (): void => {
    try {
      dive()
    } catch {}
    if (++tries > 3000) return
    try {
      heap.decref(objects[destroyed]!)
      destroyed++
    } catch (error) {
      t.true(error instanceof RangeError)
      // The native call may have succeeded, and the stack may have been full on the way back through the face.
      if (heap.gc.getObjects().length < 3000 - destroyed) destroyed++
    }
  }
  dive()
  t.true(destroyed > 100)
  heap.decref(type.alloc())
  t.is(finalized + told.length, destroyed + 1)
  t.true(told.length > 0)
  for (const [error] of told) t.true(error instanceof RangeError)
  heap.verify()
  heap.close()
})

test('types and objects work with malloc for all domains, and with any geometry', (t) => {
  for (const options of [
    { allocator: 'malloc' },
    { geometry: { alignment: 8 } },
    { geometry: { alignment: 8, arenaSize: 64 << 10, poolSize: 4096, smallRequestThreshold: 1024 } },
  ] as const) {
    using heap = new Heap(options)
    const destroyed: Address[] = []
    const type = heap.defineType({
      ...node,
      weakrefs: true,
      managedDict: true,
      freeList: 3,
      dealloc: (self) => void destroyed.push(self),
    })
    const plain = heap.defineType({ name: 'plain', items: 'object' })
    const kept = type.alloc()
    for (let round = 0; round < 3; round++) {
      const objects = Array.from({ length: 1000 }, () => type.alloc())
      for (const [index, object] of objects.entries()) type.set(object, 'next', objects[(index + 1) % 1000]!)
      const ref = heap.gc.newWeakref(objects[5]!)
      const list = plain.alloc(2000)
      for (const [index, object] of objects.entries()) plain.set(list, index, object)
      for (const object of objects) heap.decref(object)
      t.is(heap.gc.collect(), 0)
      heap.decref(list)
      heap.verify()
      t.is(heap.gc.collect(), 1000)
      t.is(heap.gc.deref(ref), null)
      heap.decref(ref)
      heap.verify()
    }
    t.is(destroyed.length, 3000)
    t.is(heap.refcount(kept), 1)
    t.throws(() => heap.refcount(destroyed[0]!), { instanceOf: MemoryFault })
    heap.decref(kept)
    heap.gc.collect()
    t.is(heap.allocatedBlocks(), 0)
  }
})
