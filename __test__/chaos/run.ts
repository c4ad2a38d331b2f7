/**
 * Does to a heap whatever comes to mind, from inside its callbacks too. The program is a list of seeds, one for each operation, so that
 * any part of it is a program: `run.ts release allocator '[seed, ...]'`. Ends with 0 when the heap stood it all, otherwise says what did not hold.
 */

import assert from 'node:assert/strict'

import {
  Heap,
  MemoryError,
  MemoryFault,
  type Address,
  type Allocator,
  type AllocatorName,
  type ObjectType,
  type Release,
} from 'obmalloc'

/** A generator of its own for each operation. */
function randomFrom(seed: number): (below: number) => number {
  let state = seed >>> 0
  return (below) => {
    state = (state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) % below
  }
}

const TYPES = 6
/** Operations that callbacks do for one of the program, at most. */
const INSIDE_MAX = 200

export function chaos(release: Release, allocator: AllocatorName, seeds: readonly number[]): void {
  let random = randomFrom(0)
  let inside = 0
  let traversing = 0
  let callbacks = 0
  const heap = new Heap({ release, allocator, memoryLimit: 64 << 20, onUnraisable: (error) => expected(error) })
  /** What may be an object, or was one, or never was. */
  const known: Address[] = [0 as Address, 16 as Address, 0xdeadbeef0 as Address]
  /** References of the script's own. */
  const owned: Address[] = []
  const refs: Address[] = []
  const blocks: Address[] = []
  const types: ObjectType[] = []
  const domains = ['raw', 'mem', 'obj'] as const
  const provider = new Heap({ memoryLimit: 64 << 20 })
  /** The allocators that have been seen, the heap's own first. */
  const allocators: Allocator[] = [...new Set(domains.map((domain) => heap.getAllocator(domain)))]
  /** What they gave directly. */
  const granted: Address[] = []

  /** An error that says what it should, and nothing broken. */
  function expected(error: unknown): void {
    if (error === chosen) return
    const { code, cause } = error as { code?: string; cause?: unknown }
    if (code === 'ERR_CALLBACK_THREW' && cause !== undefined) expected(cause)
    const fine =
      error instanceof MemoryFault ||
      error instanceof MemoryError ||
      code === 'ERR_OUT_OF_RANGE' ||
      code === 'ERR_INVALID_ARG_TYPE'
    if (!fine || code === 'ERR_INTERNAL' || code === 'ERR_HEAP_CORRUPTED') throw new Broken(error)
  }

  const pick = <T>(all: readonly T[]): T => all[random(all.length)]!
  const some = (): Address => (random(10) === 0 ? pick(known) : owned.length > 0 ? pick(owned) : pick(known))
  const learn = (object: Address): Address => {
    known[known.length < 500 ? known.length : 3 + random(497)] = object
    return object
  }

  const own = (object: Address): void => {
    owned.push(learn(object))
  }

  const giveBack = (): void => {
    if (owned.length > 0) heap.decref(owned.splice(random(owned.length), 1)[0]!)
  }

  /** An allocator around another: with what `shift` bytes before each block, and in what mood. */
  const wrapper = (inner: Allocator, shift: number, moody: boolean): Allocator => {
    const given = (address: Address | null): Address | null => {
      const mood = moody ? random(12) : 12
      if (mood === 0) throw chosen
      if (mood === 1) return null
      if (mood === 2) return some()
      if (mood === 3) return 'x' as never
      if (mood === 4 && granted.length > 0) return pick(granted)
      if (mood === 5) step()
      return address === null ? null : ((address + shift) as Address)
    }
    const base = (address: Address | null): Address | null => (address === null ? null : ((address - shift) as Address))
    return {
      malloc: (size) => given(inner.malloc(Number(size) + shift)),
      calloc: (count, size) => given(inner.calloc(1, Number(count) * Number(size) + shift)),
      realloc: (address, size) => {
        if (moody && random(8) === 0) inner.free(base(address))
        return given(inner.realloc(base(address), Number(size) + shift))
      },
      free: (address) => {
        if (moody && random(8) === 0) throw chosen
        inner.free(base(address))
        if (moody && random(8) === 0) inner.free(base(address))
      },
    }
  }

  const operations: Array<() => void> = [
    () => {
      if (random(3) !== 0) return
      const domain = pick(domains)
      const present = heap.getAllocator(domain)
      if (!allocators.includes(present) && allocators.length < 20) allocators.push(present)
      const next = [
        () => pick(allocators),
        () => wrapper(present, pick([0, 0, 16, 48]), false),
        () => wrapper(pick(allocators), pick([0, 0, 16]), true),
        () => provider.raw,
        () => heap.obj,
      ]
      heap.setAllocator(domain, pick(next)())
    },
    // Mostly back to what was there first: moody ones upset all the rest.
    () => heap.setAllocator('raw', allocators[0]!),
    () => heap.setAllocator('mem', allocators[1]!),
    () => heap.setAllocator('obj', allocators[1]!),
    () => {
      const block = pick(allocators).malloc(random(3) === 0 ? random(9000) : random(600))
      if (block !== null) granted.push(block)
    },
    () => {
      if (granted.length > 0) pick(allocators).free(granted.splice(random(granted.length), 1)[0]!)
    },
    () => {
      if (granted.length > 0) granted.push(pick(allocators).realloc(granted.splice(random(granted.length), 1)[0]!, random(900))!)
    },
    () => {
      if (random(100) === 0) heap.setupDebugHooks()
    },
    () => {
      if (random(20) === 0) heap.setNomemory(random(20), random(3) === 0 ? undefined : random(40))
      else heap.removeNomemory()
    },
    () => {
      const domain = pick(domains)
      const block = heap[domain].realloc(null, random(900))
      if (block === null) return
      const moved = heap[domain].realloc(block, random(2000))
      heap[domain].free(moved ?? block)
    },
    () => own(pick(types).alloc(random(4))),
    () => own(pick(types).alloc()),
    () => own(pick(types).new()),
    () => own(pick(types).newVar(random(100))),
    giveBack,
    giveBack,
    () => {
      const object = some()
      heap.incref(object)
      owned.push(object)
    },
    () => {
      const object = some()
      heap.typeOf(object).set(object, pick(['a', 'b']), random(4) === 0 ? null : some())
    },
    () => {
      const object = some()
      heap.typeOf(object).set(object, random(4), random(4) === 0 ? null : some())
    },
    () => {
      const object = some()
      learn(heap.typeOf(object).get(object, pick(['a', 'b'])) as Address)
    },
    () => heap.gc.track(some()),
    () => heap.gc.untrack(some()),
    () => {
      const index = random(owned.length || 1)
      const object = owned[index] ?? some()
      if (heap.gc.isTracked(object)) heap.gc.untrack(object)
      owned[index] = learn(heap.gc.resize(object, random(50)))
    },
    () => {
      const index = random(owned.length || 1)
      const object = owned[index] ?? some()
      if (heap.gc.isTracked(object)) heap.gc.untrack(object)
      heap.gc.del(object)
      owned.splice(index, 1)
    },
    () => void heap.gc.collect(pick([0, 1, 2] as const)),
    () => heap.gc.setThreshold(random(30), 1 + random(5), 1 + random(5)),
    () => pick([() => heap.gc.freeze(), () => heap.gc.unfreeze(), () => heap.gc.disable(), () => heap.gc.enable()])(),
    () => heap.gc.setDebug(pick([0, 0, heap.gc.DEBUG_SAVEALL])),
    () => {
      for (const object of heap.gc.garbage.splice(0)) own(object)
    },
    () => void refs.push(heap.gc.newWeakref(some(), random(2) === 0 ? undefined : callback)),
    () => {
      if (refs.length > 0) heap.decref(refs.splice(random(refs.length), 1)[0]!)
    },
    () => {
      if (refs.length === 0) return
      const object = heap.gc.deref(pick(refs))
      if (object === null) return
      heap.incref(object)
      owned.push(object)
    },
    () => void heap.gc.getReferrers(some()),
    () => void heap.gc.getReferents(some(), some()),
    () => void heap.gc.check(),
    () => {
      const block = heap.obj.malloc(random(700))
      if (block !== null) blocks.push(block)
      if (block !== null && random(3) === 0) heap.obj.view(block).fill(255)
    },
    () => {
      if (blocks.length > 0) heap.obj.free(blocks.splice(random(blocks.length), 1)[0]!)
    },
    () => {
      if (blocks.length === 0) return
      const block = blocks.splice(random(blocks.length), 1)[0]!
      try {
        own(random(2) === 0 ? pick(types).init(block) : pick(types).initVar(block, random(20)))
      } catch (error) {
        blocks.push(block)
        throw error
      }
    },
    () => heap.obj.free(some()),
    () => void heap.obj.realloc(some(), random(600)),
    () => {
      if (random(50) === 0) heap.setImmortal(some())
    },
    // References that are not the script's to give back.
    () => {
      if (inside > 0 && random(3) === 0) heap.decref(pick(known))
    },
    () => {
      if (inside === 0) return
      heap.close()
      throw new Broken('closed from inside')
    },
  ]

  const step = (): void => {
    try {
      pick(operations)()
    } catch (error) {
      expected(error)
    }
  }

  /** What any callback does. */
  function callback(self: Address): void {
    learn(self)
    if (callbacks++ > INSIDE_MAX) return
    inside++
    try {
      for (let count = random(4); count > 0; count--) step()
      if (random(5) === 0) throw chosen
    } finally {
      inside--
    }
  }

  const traverse = (self: Address, visit: (object: Address) => void): void => {
    traversing++
    try {
      const type = heap.typeOf(self)
      const slots = ['a', 'b', ...Array.from({ length: type.itemsize === 8 ? type.nitems(self) : 0 }, (_, index) => index)]
      for (const slot of slots) {
        const referent = type.get(self, slot) as Address | null
        if (referent !== null && random(100) !== 0) visit(referent)
      }
      if (callbacks++ > INSIDE_MAX) return
      if (random(30) === 0) visit(some())
      if (random(30) === 0) throw chosen
      if (random(3) === 0) step()
    } finally {
      traversing--
    }
  }

  const chosen = new Error('thrown on purpose')
  const fields = { a: 'object', b: 'object', n: 'u32' } as const
  for (let index = 0; index < TYPES; index++) {
    const maybe = <T>(bit: number, value: T): T | undefined => ((index * 7 + 5) & bit ? value : undefined)
    types.push(
      heap.defineType({
        name: `t${index}`,
        fields,
        gc: index !== 3,
        weakrefs: index % 2 === 0,
        managedDict: index === 4,
        items: index === 2 ? 'object' : index === 3 ? 'byte' : undefined,
        freeList: index === 1 || index === 5 ? 8 : 0,
        traverse: index === 4 || index === 2 ? traverse : undefined,
        clear: maybe(8, function clear(this: unknown, self: Address) {
          callback(self)
          const type = heap.typeOf(self)
          for (const field of ['a', 'b']) type.set(self, field, null)
        }),
        finalize: maybe(1, callback),
        del: index === 5 ? callback : undefined,
        dealloc: maybe(4, callback),
      }),
    )
  }
  heap.gc.callbacks.push(() => callback(0 as Address))
  for (const seed of seeds) {
    random = randomFrom(seed)
    inside = callbacks = 0
    step()
    assert.equal(traversing, 0)
    heap.verify()
  }
  heap.close()
  provider.verify()
  provider.close()
}

class Broken extends Error {
  constructor(cause: unknown) {
    super('what must not happen', { cause })
  }
}

const [release, allocator, seeds] = process.argv.slice(2)
if (seeds?.startsWith('[')) chaos(release as Release, allocator as AllocatorName, JSON.parse(seeds) as number[])
