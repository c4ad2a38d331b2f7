/** The misuse catalogue, sections E and F: callbacks, and the collector. */

import assert from 'node:assert/strict'
import { readFileSync, readdirSync } from 'node:fs'

import { Heap, type Address, type ObjectType, type Release, type TypeSpec, type UnraisableContext } from 'obmalloc'

import { allocators } from './allocators.ts'
import type { Row } from './rows.ts'
import { Scene, at, some } from './scene.ts'

const releases: Release[] = ['3.8', '3.9', '3.10', '3.11', '3.12', '3.13', '3.14.0', '3.14', '3.15']
const node: TypeSpec = { name: 'node', gc: true, weakrefs: true, fields: { next: 'object', other: 'object' } }

type Hook = 'traverse' | 'clear' | 'finalize' | 'del' | 'dealloc'
const hooks: Hook[] = ['traverse', 'clear', 'finalize', 'del', 'dealloc']

interface Told {
  error: { code?: string; message?: string; cause?: unknown }
  context: UnraisableContext
}

/** A scene of one's own for each release, with what could not be raised in it. */
function each(play: (scene: Scene, told: Told[], release: Release) => void): void {
  for (const release of releases) {
    const told: Told[] = []
    const heap = new Heap({
      release,
      onUnraisable: (error, context) => void told.push({ error: error as Told['error'], context }),
    })
    const scene = new Scene(heap)
    play(scene, told, release)
    scene.finish()
  }
}

/** Objects in a ring that only they themselves refer to. */
function ring(heap: Heap, type: ObjectType, length: number): Address[] {
  const objects = Array.from({ length }, () => type.alloc())
  for (const [index, object] of objects.entries()) type.set(object, 'next', objects[(index + 1) % length]!)
  for (const object of objects) heap.decref(object)
  return objects
}

/** What a type's own `traverse` visits where nothing else is said: everything, once. */
function honest(type: ObjectType, self: Address, visit: (object: Address) => void): void {
  for (const field of ['next', 'other']) {
    const referent = type.get(self, field) as Address | null
    if (referent !== null) visit(referent)
  }
}

/** A collection with a `traverse` that lies must throw, with the same objects in the same state as before; an honest one goes on. */
function refusesLie(
  code: string,
  lie: (self: Address, visit: (object: Address) => void, type: ObjectType) => unknown,
  fields: Record<string, unknown> = {},
): void {
  each(({ heap }) => {
    let lies = true
    const destroyed: Address[] = []
    const note = (self: Address) => void destroyed.push(self)
    const type: ObjectType = heap.defineType({
      ...node,
      traverse: (self, visit) => (lies ? (lie(self, visit, type) as void) : honest(type, self, visit)),
      finalize: note,
      dealloc: note,
    })
    const live = ring(heap, type, 2)
    for (const object of live) heap.incref(object)
    const garbage = ring(heap, type, 3)
    for (let times = 0; times < 2; times++) {
      assert.throws(() => heap.gc.collect(), { code, ...fields })
      assert.deepEqual(destroyed, [])
      assert.deepEqual(
        live.map((object) => heap.refcount(object)),
        [2, 2],
      )
      assert.deepEqual(
        garbage.map((object) => heap.refcount(object)),
        [1, 1, 1],
      )
      assert.equal(heap.gc.getObjects().length, 5)
      heap.verify()
    }
    lies = false
    assert.equal(heap.gc.collect(), 3)
    assert.equal(destroyed.length, 6)
    for (const object of live) heap.decref(object)
    assert.equal(heap.gc.collect(), 2)
  })
}

/** Random graphs against a model that knows what can be reached. */
function stress(seed: number, release: Release): void {
  let state = seed
  const random = (below: number): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return Math.floor((state / 2 ** 32) * below)
  }
  const heap = new Heap({ release })
  const destroyed = new Set<Address>()
  const type = heap.defineType({ ...node, dealloc: (self) => void destroyed.add(self) })
  const edges = new Map<Address, Array<Address | null>>()
  const roots: Address[] = []
  const reachable = (): Set<Address> => {
    const seen = new Set<Address>()
    const stack = [...roots]
    for (let object = stack.pop(); object !== undefined; object = stack.pop()) {
      if (seen.has(object)) continue
      seen.add(object)
      stack.push(...edges.get(object)!.filter((referent) => referent !== null))
    }
    return seen
  }
  for (let step = 0; step < 300; step++) {
    const object = type.alloc()
    destroyed.delete(object)
    edges.set(object, [null, null])
    roots.push(object)
    for (let times = 0; times < 3; times++) {
      const alive = [...reachable()]
      const [from, to, field] = [alive[random(alive.length)]!, alive[random(alive.length)]!, random(2)]
      edges.get(from)![field] = to
      type.set(from, field === 0 ? 'next' : 'other', to)
    }
    while (roots.length > 5) heap.decref(roots.splice(random(roots.length), 1)[0]!)
    heap.gc.collect()
    const alive = reachable()
    assert.deepEqual(new Set(heap.gc.getObjects()), alive, `seed ${seed}, release ${release}, step ${step}`)
    for (const object of edges.keys()) {
      if (alive.has(object)) continue
      assert.ok(destroyed.has(object), `seed ${seed}, release ${release}, step ${step}: ${object} is still there`)
      edges.delete(object)
    }
  }
  heap.verify()
  heap.close()
}

/** The binding's sources. */
function sources(): Array<[file: string, text: string]> {
  const folder = new URL('../../crates/obmalloc-node/src/', import.meta.url)
  const files = readdirSync(folder, { encoding: 'utf8', recursive: true }).filter((file) => file.endsWith('.rs'))
  return files.map((file) => [file, readFileSync(new URL(file, folder), 'utf8')])
}

export const objects: Row[] = [
  ...allocators,
  {
    number: 82,
    what: 'process.exit in a callback',
    elsewhere: ['collector.spec.ts', 'process.exit in a finalizer keeps its code'],
  },
  {
    number: 83,
    what: 'a worker that is terminated in a callback',
    elsewhere: ['collector.spec.ts', 'a worker that is terminated in any callback ends'],
  },
  {
    number: 84,
    what: 'an exception does not stay pending over the next call',
    play: () => {
      each(({ heap }, told) => {
        const type: ObjectType = heap.defineType({
          ...node,
          finalize(self) {
            heap.obj.free(heap.obj.malloc(10))
            heap.refcount(self)
            throw new Error('boom')
          },
          dealloc: (self) => void type.get(self, 'next'),
        })
        ring(heap, type, 5)
        assert.equal(heap.gc.collect(), 5)
        assert.equal(told.length, 5)
        heap.decref(type.alloc())
        assert.equal(told.length, 6)
      })
    },
  },
  {
    number: 85,
    what: 'callbacks that give something to wait for',
    play: () => {
      for (const give of [async () => {}, function* () {}, async function* () {}, () => Promise.reject(new Error('unheard'))]) {
        refusesLie('ERR_CALLBACK_RESULT', give)
        const arenas = new Heap()
        const own = arenas.getArenaAllocator()
        arenas.setArenaAllocator({ alloc: give as never, free: give })
        const asks = () => arenas.obj.malloc(8)
        assert.throws(asks, { code: 'ERR_CALLBACK_RESULT' })
        arenas.setArenaAllocator({
          alloc: (size) => own.alloc(size),
          free: (address, size) => {
            own.free(address, size)
            return give() as never
          },
        })
        const block = some(arenas.obj.malloc(8))
        assert.throws(() => void (arenas.obj.free(block), arenas.close()), { code: 'ERR_CALLBACK_RESULT' })
        each(({ heap }, told) => {
          for (const hook of hooks.slice(1)) {
            told.length = 0
            const type = heap.defineType({ ...node, [hook]: give })
            if (hook === 'clear') {
              const [object] = ring(heap, type, 1)
              assert.equal(heap.gc.collect(), 1)
              type.set(object!, 'next', null)
            } else {
              heap.decref(type.alloc())
            }
            assert.deepEqual(
              told.map(({ error, context }) => [error.code, context.hook, context.type]),
              [['ERR_CALLBACK_RESULT', hook, type]],
            )
          }
          told.length = 0
          heap.gc.callbacks.push(give as () => void)
          const object = heap.defineType(node).alloc()
          const ref = heap.gc.newWeakref(object, give as () => void)
          heap.decref(object)
          heap.decref(ref)
          heap.gc.collect()
          heap.gc.callbacks.length = 0
          assert.deepEqual(
            told.map(({ error, context }) => [error.code, context.hook]),
            [
              ['ERR_CALLBACK_RESULT', 'weakref'],
              ['ERR_CALLBACK_RESULT', 'callbacks'],
              ['ERR_CALLBACK_RESULT', 'callbacks'],
            ],
          )
        })
      }
    },
  },
  {
    number: 86,
    what: 'callbacks that cannot be called',
    play: (scene) => {
      const { heap } = scene
      const { proxy, revoke } = Proxy.revocable(() => {}, {})
      revoke()
      const object = heap.defineType(node).alloc()
      for (const value of [null, 5, 'f', {}, [], class {}, class Named extends Heap {}, proxy, Symbol('f')]) {
        for (const hook of hooks) scene.throws(() => heap.defineType({ ...node, [hook]: value }), 'ERR_INVALID_ARG_TYPE')
        scene.throws(() => heap.gc.newWeakref(object, value as never), 'ERR_INVALID_ARG_TYPE')
        scene.throws(() => new Heap({ onUnraisable: value as never }), 'ERR_INVALID_ARG_TYPE')
        for (const part of [{ alloc: value }, { free: value }]) {
          const arenas = { ...heap.getArenaAllocator(), ...part }
          scene.throws(() => heap.setArenaAllocator(arenas as never), 'ERR_INVALID_ARG_TYPE')
        }
      }
      const { message } = scene.throws(() => heap.defineType({ ...node, clear: class {} as never }), 'ERR_INVALID_ARG_TYPE')
      assert.equal(message, 'spec.clear: expected a function, got a class')
      // What stands in for a function is one.
      heap.decref(heap.defineType({ ...node, finalize: new Proxy(() => {}, {}) }).alloc())
    },
  },
  {
    number: 87,
    what: 'getters, valueOf and traps on arguments',
    play: (scene) => {
      const { heap } = scene
      const type = heap.defineType({ ...node, fields: { next: 'object', n: 'i32', big: 'i64' } })
      const object = type.alloc()
      const never = () => assert.fail('called')
      const trapped = new Proxy(
        {},
        { get: never, has: never, ownKeys: never, getPrototypeOf: never, getOwnPropertyDescriptor: never },
      )
      for (const value of [{ valueOf: never, toString: never, [Symbol.toPrimitive]: never }, trapped]) {
        const bad = at(value)
        for (const misuse of [
          () => heap.incref(bad),
          () => heap.decref(bad),
          () => heap.refcount(bad),
          () => heap.typeOf(bad),
          () => heap.setImmortal(bad),
          () => type.alloc(bad),
          () => type.newVar(bad),
          () => type.init(bad),
          () => type.initVar(bad, 1),
          () => type.get(bad, 'next'),
          () => type.get(object, bad),
          () => type.set(object, 'next', bad),
          () => type.set(object, 'n', bad),
          () => type.set(object, 'big', bad),
          () => type.nitems(bad),
          () => heap.gc.track(bad),
          () => heap.gc.untrack(bad),
          () => heap.gc.isTracked(bad),
          () => heap.gc.isFinalized(bad),
          () => heap.gc.del(bad),
          () => heap.gc.resize(bad, 1),
          () => heap.gc.resize(object, bad),
          () => heap.gc.collect(bad as never),
          () => heap.gc.getObjects(bad as never),
          () => heap.gc.setThreshold(bad),
          () => heap.gc.setDebug(bad),
          () => heap.gc.getReferrers(bad),
          () => heap.gc.getReferents(object, bad),
          () => heap.gc.newWeakref(bad),
          () => heap.gc.deref(bad),
        ]) {
          scene.throws(misuse, 'ERR_INVALID_ARG_TYPE')
        }
      }
      // A spec is read before the heap is touched.
      const closing = new Heap()
      const spec = {
        get name() {
          closing.close()
          return 'late'
        },
      }
      scene.throws(() => closing.defineType(spec), 'ERR_HEAP_CLOSED')
      heap.decref(object)
    },
  },
  {
    number: 88,
    what: 'every way in catches panics',
    play: () => {
      for (const [file, text] of sources()) {
        // In WebAssembly nothing unwinds: the loader throws.
        if (file === 'wasm.rs') continue
        const functions = text.split(/(?=extern "C" fn )/).slice(1)
        for (const body of functions)
          assert.match(body.slice(0, body.indexOf('\n}\n')), /catch_unwind/, `${file}: ${body.slice(0, 60)}`)
        if (file !== 'js.rs' && file !== 'shell.rs') assert.doesNotMatch(text, /napi_create_function|\.function\(/, file)
      }
    },
  },
  {
    number: 89,
    what: 'finalizers catch panics',
    play: () => {
      const bodies = sources().flatMap(([, text]) => text.split(/(?=extern "C" fn )/).slice(1))
      for (const name of ['finalize', 'finalize_handle']) {
        assert.ok(
          bodies.some((body) => body.startsWith(`extern "C" fn ${name}(`)),
          `${name} is looked at by row 88`,
        )
      }
    },
  },
  {
    number: 90,
    what: 'callbacks inside one another without end',
    play: () => {
      each(({ heap }, told) => {
        let [depth, deepest] = [0, 0]
        const deeper = (next: () => unknown) => () => {
          deepest = Math.max(deepest, ++depth)
          try {
            next()
          } finally {
            depth--
          }
        }
        const finalized: ObjectType = heap.defineType({ ...node, finalize: deeper(() => heap.decref(finalized.alloc())) })
        const dealloced: ObjectType = heap.defineType({ ...node, dealloc: deeper(() => heap.decref(dealloced.alloc())) })
        const refs: Address[] = []
        const plain = heap.defineType(node)
        const watched = (): void => {
          const object = plain.alloc()
          refs.push(heap.gc.newWeakref(object, deeper(watched)))
          heap.decref(object)
        }
        for (const begin of [() => heap.decref(finalized.alloc()), () => heap.decref(dealloced.alloc()), watched]) {
          told.length = deepest = 0
          begin()
          assert.equal(deepest, 50)
          assert.deepEqual(
            told.map(({ error }) => error.code),
            ['ERR_REENTRANT'],
          )
        }
        for (const ref of refs) heap.decref(ref)
      })
    },
  },
  {
    number: 91,
    what: 'a chain of a million objects',
    elsewhere: ['type.spec.ts', 'a chain of a million objects is destroyed and collected in a worker with a small stack'],
  },

  {
    number: 92,
    what: 'traverse visits too often what nothing else refers to',
    play: () =>
      refusesLie('ERR_GC_OVER_VISIT', (self, visit, type) => {
        for (let times = 0; times < 3; times++) honest(type, self, visit)
      }),
  },
  {
    number: 93,
    what: 'traverse visits as often as others refer',
    play: () => {
      each(({ heap }) => {
        const destroyed: Address[] = []
        let lies = true
        const type: ObjectType = heap.defineType({
          ...node,
          traverse(self, visit) {
            honest(type, self, visit)
            // One more for the reference that the script holds.
            if (lies && self === liar) visit(victim)
          },
          clear: (self) => void destroyed.push(self),
          dealloc: (self) => void destroyed.push(self),
        })
        const [liar, victim] = [type.alloc(), type.alloc()]
        type.set(liar, 'next', victim)
        type.set(victim, 'next', liar)
        heap.decref(liar)
        assert.throws(() => heap.gc.collect(), { code: 'ERR_GC_OVER_VISIT', object: liar, referent: victim })
        assert.deepEqual(destroyed, [])
        assert.deepEqual(
          [liar, victim].map((object) => heap.refcount(object)),
          [1, 2],
        )
        lies = false
        assert.equal(heap.gc.collect(), 0)
        type.set(victim, 'next', null)
        heap.decref(victim)
      })
    },
  },
  {
    number: 94,
    what: 'traverse visits too little',
    play: () => {
      each(({ heap }) => {
        let lies = true
        const type: ObjectType = heap.defineType({
          ...node,
          traverse: (self, visit) => void (lies || honest(type, self, visit)),
        })
        const [a, b] = ring(heap, type, 2)
        assert.equal(heap.gc.collect(), 0)
        const mismatches = heap.gc.check()
        assert.deepEqual(new Set(mismatches.map(({ object }) => object)), new Set([a, b]))
        for (const { object, referent, held, visited } of mismatches) {
          assert.deepEqual([type.get(object, 'next'), held, visited], [referent, 1, 0])
        }
        lies = false
        assert.deepEqual(heap.gc.check(), [])
        assert.equal(heap.gc.collect(), 2)
      })
    },
  },
  {
    number: 95,
    what: 'traverse visits what is no object of the heap',
    play: () => {
      const other = new Heap()
      const [stranger, plain] = [other.defineType(node).alloc(), some(other.obj.malloc(64))]
      refusesLie('ERR_FOREIGN_POINTER', (_, visit) => visit(at(null)))
      refusesLie('ERR_FOREIGN_POINTER', (_, visit) => visit(at(0)))
      refusesLie('ERR_FOREIGN_POINTER', (_, visit) => visit(at(0xdeadbeef0)))
      refusesLie('ERR_WRONG_HEAP', (_, visit) => visit(stranger))
      refusesLie('ERR_WRONG_HEAP', (_, visit) => visit(plain))
      refusesLie('ERR_INTERIOR_POINTER', (self, visit) => visit(at(self + 8)))
      each(({ heap }) => {
        const type: ObjectType = heap.defineType({ ...node, traverse: (_, visit) => visit(bad) })
        const [object] = ring(heap, type, 1)
        const dead = heap.defineType(node).alloc()
        heap.decref(dead)
        const block = some(heap.mem.malloc(100))
        let bad = dead
        assert.throws(() => heap.gc.collect(), { code: 'ERR_USE_AFTER_FREE', address: dead })
        bad = block
        assert.throws(() => heap.gc.collect(), { code: 'ERR_WRONG_TYPE', address: block })
        bad = object!
        assert.equal(heap.gc.collect(), 1)
      })
      other.close()
    },
  },
  {
    number: 96,
    what: 'traverse says something else the second time',
    play: () => {
      each(({ heap }) => {
        const calls = new Map<Address, number>()
        const type: ObjectType = heap.defineType({
          ...node,
          traverse(self, visit) {
            const call = (calls.get(self) ?? 0) + 1
            calls.set(self, call)
            if (call % 2 === 1) honest(type, self, visit)
          },
        })
        const [live] = ring(heap, type, 2)
        heap.incref(live!)
        ring(heap, type, 3)
        const found = heap.gc.collect()
        assert.ok(found === 3 || found === 0, `${found} found`)
        assert.equal(heap.refcount(live!), 2)
        assert.equal(heap.refcount(type.get(live!, 'next') as Address), 1)
        heap.verify()
        calls.clear()
        heap.decref(live!)
        for (let round = 0; round < 4 && heap.gc.getObjects().length > 0; round++) heap.gc.collect()
        assert.equal(heap.gc.getObjects().length, 0)
      })
    },
  },
  {
    number: 97,
    what: 'traverse changes the heap',
    play: () => {
      each((scene) => {
        const { heap } = scene
        const plain = heap.defineType(node)
        let tries = 0
        const victim = plain.alloc()
        const type: ObjectType = heap.defineType({
          ...node,
          traverse(self, visit) {
            honest(type, self, visit)
            for (const change of [
              () => plain.alloc(),
              () => heap.decref(victim),
              () => heap.incref(victim),
              () => heap.gc.track(victim),
              () => heap.gc.untrack(self),
              () => heap.gc.del(victim),
              () => type.set(self, 'other', null),
              () => heap.obj.malloc(16),
              () => heap.raw.free(null),
            ]) {
              tries++
              assert.throws(change, { code: 'ERR_GC_IN_PROGRESS' })
            }
            assert.equal(heap.gc.collect(), 0)
            assert.equal(heap.refcount(victim), 1)
          },
        })
        ring(heap, type, 2)
        assert.equal(heap.gc.collect(), 2)
        assert.ok(tries >= 18)
        heap.decref(victim)
      })
      // A traverse that lets the error through has failed.
      refusesLie('ERR_CALLBACK_THREW', (self, visit, type) => {
        honest(type, self, visit)
        type.set(self, 'next', null)
      })
    },
  },
  {
    number: 98,
    what: 'traverse throws',
    play: () => {
      const boom = new Error('boom')
      const fail = (error: unknown) => () => {
        throw error
      }
      refusesLie('ERR_CALLBACK_THREW', fail(boom), { cause: boom })
      for (const cause of [undefined, null, 5, 'text', Object.create(null)]) refusesLie('ERR_CALLBACK_THREW', fail(cause))
      refusesLie('ERR_CALLBACK_THREW', () => {
        const deeper = (): number => deeper() + 1
        deeper()
      })
    },
  },
  {
    number: 99,
    what: 'clear refuses or throws',
    play: () => {
      each(({ heap }, told) => {
        const boom = new Error('boom')
        const cleared: Address[] = []
        let fails = true
        const type: ObjectType = heap.defineType({
          ...node,
          clear(self) {
            if (fails && self === stubborn) throw boom
            if (fails && self === lazy) return
            cleared.push(self)
            type.set(self, 'next', null)
          },
        })
        const [[stubborn], [lazy]] = [ring(heap, type, 1), ring(heap, type, 1)]
        ring(heap, type, 2)
        assert.equal(heap.gc.collect(), 4)
        assert.deepEqual(told, [{ error: boom, context: { hook: 'clear', object: stubborn, type } }])
        assert.ok(cleared.length >= 1)
        assert.equal(heap.gc.collect(), 2, 'found again')
        assert.equal(told.length, 2)
        fails = false
        assert.equal(heap.gc.collect(), 2)
        assert.equal(heap.gc.getObjects().length, 0)
      })
    },
  },
  {
    number: 100,
    what: 'clear or a finalizer revives',
    play: () => {
      each(({ heap }, _, release) => {
        let kept: Address | undefined
        const clearing: ObjectType = heap.defineType({
          ...node,
          clear(self) {
            if (kept === undefined) heap.incref((kept = self))
            type.set(self, 'next', null)
          },
        })
        let type = clearing
        ring(heap, clearing, 2)
        assert.equal(heap.gc.collect(), 2, 'counted before anything is cleared')
        assert.equal(heap.refcount(kept!), 1)
        heap.decref(kept!)
        kept = undefined
        let finalized = 0
        type = heap.defineType({
          ...node,
          finalize(self) {
            finalized++
            if (kept === undefined) heap.incref((kept = self))
          },
        })
        ring(heap, type, 3)
        assert.equal(heap.gc.collect(), 0, 'all of the ring is reachable from the one')
        assert.equal(finalized, 3)
        assert.equal(heap.refcount(kept!), 2)
        heap.decref(kept!)
        assert.equal(heap.gc.collect(), 3, release)
        assert.equal(finalized, 3)
      })
    },
  },
  {
    number: 101,
    what: 'a finalizer throws, allocates, changes others, collects, untracks, closes',
    play: () => {
      each((scene, told) => {
        const { heap } = scene
        const boom = new Error('boom')
        const made: Address[] = []
        const type: ObjectType = heap.defineType({
          ...node,
          finalize(self) {
            for (let count = 0; count < 10_000; count++) made.push(some(heap.obj.malloc(40)))
            for (let count = 0; count < 3000; count++) heap.decref(type.new())
            const sibling = type.get(self, 'next') as Address
            if (sibling !== null) type.set(sibling, 'other', sibling)
            assert.equal(heap.gc.collect(), 0)
            heap.gc.untrack(self)
            assert.throws(() => heap.close(), { code: 'ERR_REENTRANT' })
            heap.verify()
            throw boom
          },
        })
        heap.gc.setThreshold(0)
        const quiet = (self: Address) => heap.gc.isFinalized(self)
        const objects = ring(heap, heap.defineType({ ...node, finalize: (self) => void quiet(self) }), 2)
        assert.equal(heap.gc.collect(), 2)
        assert.throws(() => heap.refcount(objects[0]!))
        let depth = 0
        const noisy: ObjectType = heap.defineType({
          ...node,
          finalize(self) {
            if (depth++ > 0) return
            for (let count = 0; count < 10_000; count++) made.push(some(heap.obj.malloc(40)))
            noisy.set(noisy.get(self, 'next') as Address, 'other', self)
            assert.equal(heap.gc.collect(), 0)
            assert.throws(() => heap.close(), { code: 'ERR_REENTRANT' })
            throw boom
          },
        })
        ring(heap, noisy, 3)
        assert.equal(heap.gc.collect(), 3)
        assert.deepEqual(
          told.map(({ error }) => error),
          [boom],
        )
        const [loose] = ring(heap, heap.defineType({ ...node, finalize: (self) => heap.gc.untrack(self) }), 1)
        heap.gc.collect()
        heap.verify()
        if (heap.gc.getObjects().includes(loose!)) assert.fail('it was untracked')
        for (const block of made) heap.obj.free(block)
      })
    },
  },
  {
    number: 102,
    what: 'a finalizer that makes new garbage for ever',
    play: () => {
      each(({ heap }) => {
        let going = true
        const type: ObjectType = heap.defineType({ ...node, finalize: () => void (going && ring(heap, type, 1)) })
        ring(heap, type, 1)
        for (let round = 0; round < 20; round++) assert.equal(heap.gc.collect(), 1)
        going = false
        assert.equal(heap.gc.collect(), 1)
        assert.equal(heap.gc.collect(), 0)
      })
    },
  },
  {
    number: 103,
    what: 'a callback of a weak reference throws, allocates, collects; one that is garbage itself',
    play: () => {
      each(({ heap }, told) => {
        const type = heap.defineType({ ...node, fields: { next: 'object', other: 'object' } })
        const boom = new Error('boom')
        const [object] = ring(heap, type, 1)
        const calls: Address[] = []
        const made: Address[] = []
        const ref = heap.gc.newWeakref(object!, (self) => {
          calls.push(self)
          for (let count = 0; count < 3000; count++) made.push(type.alloc())
          assert.equal(heap.gc.collect(), 0)
          assert.equal(heap.gc.deref(self), null)
          throw boom
        })
        const owner = type.alloc()
        const inner = heap.gc.newWeakref(owner, () => assert.fail('called'))
        type.set(owner, 'next', owner)
        type.set(owner, 'other', inner)
        heap.decref(inner)
        heap.decref(owner)
        assert.equal(heap.gc.collect(), 3)
        assert.deepEqual(calls, [ref])
        assert.deepEqual(told, [{ error: boom, context: { hook: 'weakref', object: ref } }])
        for (const object of [...made, ref]) heap.decref(object)
      })
    },
  },
  {
    number: 104,
    what: 'callbacks of the collector throw or collect',
    play: () => {
      each(({ heap }, told) => {
        const boom = new Error('boom')
        let calls = 0
        heap.gc.callbacks.push(() => {
          calls++
          assert.equal(heap.gc.collect(), 0)
          throw boom
        })
        ring(heap, heap.defineType(node), 2)
        assert.equal(heap.gc.collect(), 2)
        assert.equal(calls, 2)
        assert.deepEqual(
          told,
          [1, 2].map(() => ({ error: boom, context: { hook: 'callbacks' } })),
        )
        heap.gc.callbacks.pop()
      })
    },
  },
  {
    number: 105,
    what: 'tracking twice',
    play: (scene) => {
      const { heap } = scene
      const object = heap.defineType(node).alloc()
      scene.throws(() => heap.gc.track(object), { code: 'ERR_GC_ALREADY_TRACKED', address: object })
      heap.decref(object)
    },
  },
  {
    number: 106,
    what: 'untracking twice, or what never was tracked',
    play: () => {
      each(({ heap }) => {
        const type = heap.defineType(node)
        const [made, fresh] = [type.alloc(), type.new()]
        for (const object of [made, made, fresh, fresh]) heap.gc.untrack(object)
        for (const object of [made, fresh]) {
          assert.equal(heap.gc.isTracked(object), false)
          heap.decref(object)
        }
      })
    },
  },
  {
    number: 107,
    what: 'PyObject_GC_Del of a tracked object',
    elsewhere: ['collector.spec.ts', 'del gives memory back as it is, and warns of what is still tracked'],
  },
  {
    number: 108,
    what: 'objects through the wrong calls',
    play: () => {
      each((scene) => {
        const { heap } = scene
        const gc = heap.defineType({ ...node, managedDict: true })
        const plain = heap.defineType({ name: 'plain', fields: { n: 'u32' } })
        const big = heap.defineType({ name: 'big', items: 'byte' })
        const objects = [gc.alloc(), plain.alloc(), big.alloc(5000), heap.gc.newWeakref(gc.alloc())]
        for (const object of objects) {
          for (const { obj, mem, raw } of [heap]) {
            for (const domain of [obj, mem, raw]) {
              for (const misuse of [
                () => domain.free(object),
                () => domain.realloc(object, 10),
                () => domain.usableSize(object),
                () => domain.view(object),
                () => domain.read(object),
                () => domain.write(object, new Uint8Array(1)),
              ]) {
                scene.throws(misuse, { code: 'ERR_WRONG_TYPE', address: object })
              }
            }
          }
          assert.equal(heap.refcount(object), 1)
        }
        const block = some(heap.obj.malloc(64))
        for (const misuse of [
          () => heap.decref(block),
          () => heap.typeOf(block),
          () => heap.gc.del(block),
          () => gc.get(block, 'next'),
        ]) {
          scene.throws(misuse, 'ERR_WRONG_TYPE')
        }
        scene.throws(() => heap.gc.resize(objects[0]!, 1), 'ERR_WRONG_TYPE')
        scene.throws(() => heap.gc.resize(objects[2]!, 1), 'ERR_WRONG_TYPE')
        scene.throws(() => heap.gc.del(objects[1]!), 'ERR_WRONG_TYPE')
        heap.obj.free(block)
        for (const object of objects) heap.decref(object)
      })
    },
  },
  {
    number: 109,
    what: 'a reference given back too often',
    play: () => {
      each((scene) => {
        const { heap } = scene
        for (const gc of [true, false]) {
          const object = heap.defineType({ ...node, gc }).alloc()
          heap.decref(object)
          scene.throws(() => heap.decref(object), { code: 'ERR_REFCOUNT_UNDERFLOW', address: object })
          scene.throws(() => heap.incref(object), { code: 'ERR_USE_AFTER_FREE', address: object })
          scene.throws(() => heap.refcount(object), { code: 'ERR_USE_AFTER_FREE', address: object })
        }
        let checked = 0
        const dying = heap.defineType({
          ...node,
          dealloc(self) {
            assert.throws(() => heap.decref(self), { code: 'ERR_REFCOUNT_UNDERFLOW' })
            assert.throws(() => heap.incref(self), { code: 'ERR_USE_AFTER_FREE' })
            checked++
          },
        })
        heap.decref(dying.alloc())
        assert.equal(checked, 1)
        // While a callback runs the heap has a reference of its own, which is not to be given back either.
        let given = 0
        const give = (self: Address): void => {
          given++
          assert.throws(() => heap.gc.del(self), { code: 'ERR_OUT_OF_RANGE' })
          for (;;) {
            try {
              heap.decref(self)
            } catch (error) {
              assert.equal((error as { code?: string }).code, 'ERR_REFCOUNT_UNDERFLOW')
              break
            }
          }
          assert.equal(heap.refcount(self), 1)
        }
        for (const hook of ['finalize', 'del', 'clear'] as const) {
          const type = heap.defineType({ ...node, [hook]: give })
          if (hook !== 'clear') heap.decref(type.alloc())
          if (hook !== 'del') ring(heap, type, 1)
          heap.gc.collect()
          heap.verify()
        }
        assert.equal(given, 4)
        const object = heap.defineType(node).alloc()
        for (let count = 0; count < 3; count++) heap.gc.newWeakref(object, give)
        heap.decref(object)
        assert.equal(given, 7)
      })
    },
  },
  {
    number: 110,
    what: 'reference counts that overflow, and immortal objects',
    play: () => {
      each(({ heap }, _, release) => {
        const object = heap.defineType(node).alloc()
        const can = Number(release.split('.')[1]) >= 12
        assert.equal(heap.setImmortal(object), can)
        const before = heap.refcount(object)
        assert.ok(can ? before >= 2 ** 31 : before === 1)
        heap.incref(object)
        assert.equal(heap.refcount(object), can ? before : 2)
        for (let times = 0; times < 2; times++) heap.decref(object)
        if (can) assert.equal(heap.refcount(object), before)
        else assert.throws(() => heap.refcount(object), { code: 'ERR_USE_AFTER_FREE' })
      })
    },
  },
  {
    number: 111,
    what: 'generations that there are not',
    play: (scene) => {
      const { gc } = scene.heap
      for (const generation of [-1, 3, 0.5, Number.NaN, Infinity, 2 ** 32, 2 ** 53]) {
        scene.throws(() => gc.collect(generation as 0), 'ERR_OUT_OF_RANGE')
        scene.throws(() => gc.getObjects(generation as 0), 'ERR_OUT_OF_RANGE')
      }
      for (const generation of [null, '1', 1n, true, {}])
        scene.throws(() => gc.collect(generation as never), 'ERR_INVALID_ARG_TYPE')
    },
  },
  {
    number: 112,
    what: 'freeze, disable and thresholds of any kind',
    play: () => {
      each((scene) => {
        const { heap } = scene
        const { gc } = heap
        const type = heap.defineType(node)
        for (const thresholds of [[0], [1], [-1], [1, 0, 0], [2 ** 31 - 1], [-(2 ** 31), -1, -1]] as Array<[number]>) {
          gc.setThreshold(...thresholds)
          for (let count = 0; count < 20; count++) heap.decref(type.alloc())
          heap.verify()
        }
        gc.setThreshold(0, 10, 10)
        scene.throws(() => gc.setThreshold(2 ** 31), 'ERR_OUT_OF_RANGE')
        for (let times = 0; times < 2; times++) {
          gc.disable()
          gc.freeze()
          gc.enable()
          gc.unfreeze()
        }
        gc.unfreeze()
        assert.equal(gc.getFreezeCount(), 0)
        assert.equal(gc.isEnabled(), true)
      })
    },
  },
  {
    number: 113,
    what: 'a collection at every allocation',
    play: () => {
      const seed = Number(process.env['OBMALLOC_SEED'] ?? Date.now() % 2 ** 32)
      for (const release of releases) stress(seed, release)
    },
  },
  {
    number: 114,
    what: 'a collection while a view is there',
    play: (scene) => {
      const { heap } = scene
      const type = heap.defineType({ name: 'plain', fields: { n: 'f64' } })
      const block = some(heap.obj.malloc(64))
      const view = heap.obj.view(block).fill(7)
      heap.gc.collect()
      assert.equal(view[63], 7)
      // A block that becomes an object has no view any more.
      const object = type.init(block)
      assert.equal(view.length, 0)
      scene.throws(() => heap.obj.view(object), 'ERR_WRONG_TYPE')
      heap.gc.collect()
      assert.equal(heap.refcount(object), 1)
      heap.decref(object)
    },
  },
  {
    number: 115,
    what: 'nothing in JavaScript refers to an object any more',
    play: () => {
      each(({ heap }) => {
        // An address is a number: what becomes of it in JavaScript is nothing to the object, whose references are counted.
        const type = heap.defineType(node)
        type.alloc()
        heap.gc.collect()
        const [object] = heap.gc.getObjects()
        assert.equal(heap.refcount(object!), 1)
        heap.decref(object!)
        assert.deepEqual(heap.gc.getObjects(), [])
      })
    },
  },
]
