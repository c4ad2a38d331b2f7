/**
 * Runs everything that the package does, again and again. Each time a script's getter or value lies under another name that the package touches:
 * on Object.prototype or Array.prototype, or in place of something that JavaScript has. Prints which results changed, and which getters were
 * called. The arguments: a binding that records the names of the properties that it touches, and the files of the face, which are searched for
 * names.
 */

'use strict'

const { readFileSync } = require('node:fs')

const [, , addon, ...sources] = process.argv
const module_ = { exports: {} }
process.dlopen(module_, addon)
const binding = module_.exports
const { platform } = require('../../dist/platform.js')
const path = require.resolve(`../../npm/${platform}/obmalloc.${platform}.node`)
require.cache[path] = Object.assign(new (require('node:module').Module)(path), { filename: path, loaded: true, exports: binding })
const { Heap } = require('../../dist/index.js')

/** Taken now, because later they are a script's. */
const { defineProperty, deleteProperty, getOwnPropertyDescriptor, ownKeys, getPrototypeOf, apply } = Reflect
const Bytes = Uint8Array
const Words = Uint32Array
const { write } = process.stdout

/** Of all generators. */
const { next } = getPrototypeOf(getPrototypeOf((function* () {})()))
const custom = Symbol.for('nodejs.util.inspect.custom')
const inspected = (object, self) => apply(object[custom], self, [])

const own = (value) => ({ __proto__: null, value, writable: true, enumerable: true, configurable: true })

/** The present heap, for traps. */
let present
/** What has come out, as one text. */
let log = ''
const say = (value) => {
  log += `${typeof value === 'object' && value !== null ? 'object' : String_(value)};`
}
const String_ = String
const attempt = (call) => {
  try {
    say(call())
  } catch (error) {
    const code = getOwnPropertyDescriptor(error, 'code')
    say(code === undefined ? error.message : code.value)
  }
}

/** Everything that the package does. What it is given has no prototype, because what is left out of it is the script's to say. */
function everything() {
  log = ''
  let first
  const relative = (address) => (typeof address === 'number' && address > 65536 ? address - first : address)
  const unraisable = (error, context) => {
    say(context.hook)
    say(error.message)
  }
  const heap = new Heap({ __proto__: null, release: '3.13', quarantine: 0, onUnraisable: unraisable })
  present = heap
  const { raw, mem, obj, gc } = heap
  first = obj.malloc(64)
  for (const domain of { __proto__: null, 0: raw, 1: mem, 2: obj, length: 3, [Symbol.iterator]: iterate }) {
    const block = domain.malloc(100)
    const view = domain.view(block)
    view[0] = 7
    say(domain.view(block) === view)
    say(domain.read(block, 0, 1)[0])
    domain.write(block, view, 0)
    say(domain.usableSize(block) >= 100)
    domain.setUint8(block, 9)
    domain.setInt32(block, -5, 4)
    domain.setFloat64(block, 0.5, 8)
    domain.setBigInt64(block, 5n, 16)
    say(domain.getUint8(block) + domain.getInt32(block, 4) + domain.getUint32(block, 4) + domain.getFloat64(block, 8))
    say(domain.getBigInt64(block, 16))
    domain.setUint32(block, 7, 99 - 3)
    attempt(() => domain.getUint8(block, 1000))
    attempt(() => domain.setUint8(block, 256))
    say(domain.toJSON().name)
    say(inspected(domain, domain).length > 60)
    const moved = domain.realloc(block, 5000)
    say(view[0])
    domain.free(moved)
    domain.free(domain.calloc(3, 5))
    const kept = domain.view(domain.malloc(32))
    say(kept[0] >= 0)
    attempt(() => domain.malloc('many'))
    attempt(() => domain.free(first + 16))
    try {
      domain.free(first + 16)
    } catch (fault) {
      say(fault.toJSON().code)
    }
    attempt(() => domain.read(first, 100, 100))
  }
  const ops = new Words(8)
  ops[1] = 2
  ops[3] = 40
  ops[4] = 3
  ops[5] = 2
  heap.run(ops)
  attempt(() => heap.run(new Words(3)))
  say(heap.allocatedBlocks())
  say(heap.arenas()[0].totalPools)
  const pools = heap.pools(heap.arenas()[0].address)
  const pool = apply(next, pools, []).value
  say(pool.state + pool.used + pool.free)
  const blocks = heap.blocks(pool.address)
  say(apply(next, blocks, []).value.used)
  attempt(() => heap.pools(first + 16))
  say(heap.stats().classes.length + heap.stats().bytes.total)
  const { state, allocatedBlocks } = heap.toJSON()
  say(state + allocatedBlocks)
  say(inspected(heap, heap).length > 50)
  say(heap.geometry.poolSize)
  say(heap.debugMallocStats().length > 1000)
  say(heap.trim().pools)
  heap.verify()
  attempt(() => heap.setNomemory(-1))
  heap.setNomemory(0, 1)
  say(raw.malloc(5))
  heap.removeNomemory()

  const native = heap.getAllocator('obj')
  let calls = 0
  const wrapper = {
    __proto__: null,
    malloc: (size) => native.malloc((calls++, size)),
    calloc: (count, size) => native.calloc((calls++, count), size),
    realloc: (address, size) => native.realloc((calls++, address), size),
    free: (address) => native.free((calls++, address)),
  }
  heap.setAllocator('obj', wrapper)
  say(heap.getAllocator('obj') === wrapper)
  obj.free(obj.realloc(obj.malloc(10), 20))
  obj.free(obj.calloc(2, 20))
  heap.setAllocator('obj', native)
  heap.setAllocator('raw', { __proto__: null, ...wrapper, malloc: () => { throw null } }) // prettier-ignore
  attempt(() => raw.malloc(5))
  heap.setAllocator('raw', { __proto__: null, ...wrapper, malloc: () => 5 })
  attempt(() => raw.malloc(5))
  say(calls)

  const Node = heap.defineType({
    __proto__: null,
    name: 'node',
    gc: true,
    weakrefs: true,
    items: 'object',
    fields: { __proto__: null, next: 'object', number: 'i64', small: 'u8' },
    traverse(self, visit) {
      const next = Node.get(self, 'next')
      if (next !== null) visit(next)
    },
    clear(self) {
      say('clear')
      Node.set(self, 'next', null)
    },
    finalize() {
      say('finalize')
      throw new Error('no')
    },
    dealloc() {
      say('dealloc')
    },
  })
  say(Node.name + Node.basicsize + Node.itemsize)
  say(Node.toJSON().fields.length + inspected(Node, Node))
  const node = Node.alloc(1)
  say(heap.typeOf(node) === Node)
  Node.set(node, 'number', 5n)
  say(Node.get(node, 'number'))
  Node.set(node, 'small', 200)
  attempt(() => Node.get(node, 'other'))
  attempt(() => Node.set(node, 'small', 256))
  say(Node.nitems(node))
  Node.set(node, 'next', node)
  say(heap.refcount(node))
  heap.incref(node)
  heap.decref(node)
  const weak = gc.newWeakref(node, (ref) => say(ref === weak))
  say(heap.typeOf(weak).name)
  say(gc.deref(weak) === node)
  say(gc.check().length)
  say(gc.getObjects().length)
  say(gc.getReferents(node)[0] === node)
  say(gc.getReferrers(node)[0] === node)
  defineProperty(
    gc.callbacks,
    0,
    own(() => say('callback')),
  )
  defineProperty(gc.callbacks, 1, own((phase, { generation, collected }) => { say(phase + generation + collected); throw new Error('no') })) // prettier-ignore
  heap.decref(node)
  say(gc.collect())
  say(gc.deref(weak))
  heap.decref(weak)
  say(gc.getThreshold()[0])
  say(gc.getCount()[1])
  say(gc.getStats()[2].collections)
  gc.setThreshold(700, 10)
  gc.freeze()
  say(gc.getFreezeCount())
  gc.unfreeze()
  attempt(() => gc.collect(3))
  const Plain = heap.defineType({ __proto__: null, name: 'plain', gc: true, fields: { __proto__: null, next: 'object' } })
  const plain = Plain.new()
  attempt(() => gc.untrack(plain))
  gc.track(plain)
  attempt(() => gc.track(plain))
  Plain.set(plain, 'next', plain)
  heap.decref(plain)
  gc.setDebug(gc.DEBUG_SAVEALL)
  say(gc.collect())
  say(gc.garbage.length)
  say(gc.garbage[0] === plain)
  gc.setDebug(0)
  const Liar = heap.defineType({ __proto__: null, name: 'liar', gc: true, traverse() { throw new Error('no') } }) // prettier-ignore
  heap.decref(Liar.alloc())
  const liar = Liar.alloc()
  attempt(() => gc.collect())
  attempt(() => heap.defineType({ __proto__: null, name: 5 }))
  attempt(() => heap.decref(liar + 8))

  const taker = new Heap({ __proto__: null, release: '3.8' })
  const lender = taker.getAllocator('raw')
  const arenas = {
    __proto__: null,
    alloc: (size) => lender.malloc(size),
    free: (address) => lender.free(address),
  }
  taker.setArenaAllocator(arenas)
  say(taker.getArenaAllocator() === arenas)
  taker.obj.free(taker.obj.malloc(10))
  taker.close()

  const hooked = new Heap({ __proto__: null })
  hooked.setupDebugHooks()
  const block = hooked.mem.malloc(5)
  hooked.mem.view(block)
  attempt(() => hooked.raw.free(block))
  hooked.close()
  say(relative(obj.malloc(64)) !== 0)
  heap.close()
  attempt(() => obj.malloc(5))
  attempt(() => new Heap({ __proto__: null, release: '2.7' }))
  return log
}

function iterate() {
  let index = 0
  return {
    __proto__: null,
    next: () =>
      index < 3 ? { __proto__: null, done: false, value: this[index++] } : { __proto__: null, done: true, value: undefined },
  }
}

const decoys = [undefined, 0, 1, true, 'decoy', new Bytes(8), () => new Bytes(16)]
let asked = 0
/** What a script may put under a name. */
const kinds = {
  accessor: () => ({
    get: () => decoys[asked++ % 7],
    set() {
      asked++
    },
  }),
  throws: () => ({
    get() {
      asked++
      throw new Error('get')
    },
    set() {
      asked++
      throw new Error('set')
    },
  }),
  closes: () => {
    const close = () => {
      asked++
      try {
        present.close()
      } catch {}
    }
    return { get: close, set: close }
  },
  reenters: () => {
    const enter = () => {
      asked++
      try {
        present.obj.free(present.obj.malloc(5))
        present.gc.collect()
      } catch {}
    }
    return { get: enter, set: enter }
  },
  readonly: () => ({ value: decoys[6], writable: false }),
}

/** Everything that JavaScript has, and that a script can reach: from what is global, by properties and prototypes. */
function intrinsics() {
  const found = new Set()
  const ours = new Set([globalThis, process, require, module, console, module_.exports])
  const names = ownKeys(globalThis).filter((name) => {
    const { value } = getOwnPropertyDescriptor(globalThis, name)
    return typeof value === 'function' ? /^[A-Z]/.test(String_(name)) : ['Reflect', 'JSON', 'Math', 'Atomics'].includes(name)
  })
  const todo = names.map((name) => globalThis[name])
  todo.push([][Symbol.iterator](), new Map()[Symbol.iterator](), ''[Symbol.iterator](), 'x'.matchAll(/x/g), (function* () {})())
  todo.push(
    async function () {},
    async function* () {},
  )
  while (todo.length > 0) {
    const object = todo.pop()
    if ((typeof object !== 'object' && typeof object !== 'function') || object === null || found.has(object) || ours.has(object))
      continue
    found.add(object)
    todo.push(getPrototypeOf(object))
    for (const key of ownKeys(object)) {
      const { value } = getOwnPropertyDescriptor(object, key)
      todo.push(value)
    }
  }
  return found
}

const expected = everything()
binding.touchedNames()
if (everything() !== expected) throw new Error('expected the same again')
const names = new Set(binding.touchedNames().split('\n'))
const ofBinding = names.size
const word = /[A-Za-z_$][\w$]*/g
for (const source of sources) for (const name of readFileSync(source, 'utf8').match(word)) names.add(name)
for (let index = 0; index < 70; index++) names.add(`${index}`)
for (const value of ownKeys(Symbol).map((name) => Symbol[name])) if (typeof value === 'symbol') names.add(value)

let runs = 0
const problems = []
const check = (what) => {
  const before = asked
  let got
  return {
    run() {
      runs++
      try {
        got = everything()
      } catch (error) {
        got = `${log}threw ${error}`
      }
    },
    end() {
      if (asked !== before) problems.push(`${what} was asked for`)
      if (got !== expected) problems.push(`${what}: ${got}`)
    },
  }
}

/** Every look for what nothing has ends at Object.prototype, but engines have a faster way for the elements of arrays. */
for (const holder of [Object.prototype, Array.prototype]) {
  for (const name of names) {
    // What is there already is looked at below.
    if (getOwnPropertyDescriptor(holder, name) || (holder === Array.prototype && !(Number(String_(name)) >= 0))) continue
    for (const kind of Object.keys(kinds)) {
      const { run, end } = check(`${kind} ${String_(name)}`)
      defineProperty(holder, name, { __proto__: null, configurable: true, ...kinds[kind]() })
      run()
      deleteProperty(holder, name)
      end()
    }
  }
}

let places = 0
for (const object of intrinsics()) {
  for (const key of ownKeys(object)) {
    const descriptor = getOwnPropertyDescriptor(object, key)
    if (!descriptor.configurable || (typeof object === 'function' && (key === 'name' || key === 'length'))) continue
    places++
    const called = getOwnPropertyDescriptor(object, 'name') ?? getOwnPropertyDescriptor(object, Symbol.toStringTag)
    const { run, end } = check(`${String_(called?.value)}'s ${String_(key)}`)
    const receiver = 'value' in descriptor ? () => descriptor.value : descriptor.get
    const trap = {
      __proto__: null,
      configurable: true,
      enumerable: descriptor.enumerable,
      get() {
        asked++
        return receiver === undefined ? undefined : apply(receiver, this, [])
      },
      set(value) {
        asked++
        defineProperty(this, key, own(value))
      },
    }
    defineProperty(object, key, trap)
    run()
    defineProperty(object, key, { __proto__: null, ...descriptor })
    end()
  }
}

apply(write, process.stdout, [
  `${JSON.stringify({ ofBinding, names: names.size, places, runs, problems: problems.slice(0, 30) })}\n`,
])
