/**
 * Does anything to heaps, from inside their callbacks too. A program is a list of seeds, one for each operation, so any part of it is a program
 * as well: `run.ts release allocator quarantine '[seed, ...]'`. Ends with 0 if nothing broke, and otherwise says what did.
 * `run.ts many seed count operations` runs `count` programs one after the other, and prints the seed of each before it.
 */

import assert from 'node:assert/strict'

import { writeSync } from 'node:fs'
import { setImmediate as turn } from 'node:timers/promises'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'

import {
  Heap,
  MemoryError,
  MemoryFault,
  type Address,
  type Allocator,
  type AllocatorName,
  type ArenaAllocator,
  type ObjectType,
  type Release,
} from 'obmalloc'

import { releases } from '../tools.ts'
import { Broken, Memory, type Block, type Source } from './memory.ts'

/** A generator of its own for each operation. */
export function randomFrom(seed: number): (below: number) => number {
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
/** Blocks that are kept. */
const BLOCKS_MAX = 60
/** Codes that no script may be able to cause. */
const NEVER = ['INTERNAL', 'HEAP_CORRUPTED', 'BUFFER_OVERFLOW', 'BUFFER_UNDERFLOW', 'WRITE_AFTER_FREE'].map(
  (name) => `ERR_${name}`,
)
const DOMAINS = ['raw', 'mem', 'obj'] as const

/** Runs a program. `kinds` is 0 for operations of every kind, or the seed that chooses about half of the kinds. */
export async function chaos(
  release: Release,
  allocator: AllocatorName,
  quarantine: number,
  seeds: readonly number[],
  kinds = 0,
): Promise<void> {
  let random = randomFrom(0)
  let inside = 0
  let traversing = 0
  let callbacks = 0
  /** The first breach. It is kept here, because an error that a callback throws may get lost. */
  let broken: unknown
  const options = { release, memoryLimit: 64 << 20, onUnraisable: (error: unknown) => expected(error) }
  const heap = new Heap({ ...options, allocator, quarantine })
  const others = [options, { ...options, allocator: 'debug', quarantine, trimAbove: 20_000 } as const]
  const heaps = [heap, ...others.map((options) => new Heap(options))]
  /** What may be an object, or was one, or never was. */
  const known: Address[] = [0 as Address, 16 as Address, 0xdeadbeef0 as Address]
  /** References of the script's own. */
  const owned: Address[] = []
  const refs: Address[] = []
  const types: ObjectType[] = []
  const memory = new Memory((below) => random(below), expected)
  /** Scripts' allocators, each with how many there are in it. */
  const scripts = new Map<Allocator, number>()
  /** The domains, and the heaps' own allocators that have been seen. */
  const sources: Source[] = []
  const firsts: Allocator[][] = []
  const firstArenas: ArenaAllocator[] = []
  for (const index of heaps.keys()) begin(index)

  /** What is known of a heap when it is new. */
  function begin(index: number): void {
    const heap = heaps[index]!
    for (const name of DOMAINS) sources.push({ heap, calls: heap[name], domain: heap[name] })
    firsts[index] = DOMAINS.map((name) => heap.getAllocator(name))
    for (const own of firsts[index]) see(heap, own)
    firstArenas[index] = heap.getArenaAllocator()
  }

  /** Closes one of the heaps, unless it is in use, and makes another one in its place. */
  function replace(): void {
    const index = 1 + random(others.length)
    const old = heaps[index]!
    try {
      old.close()
    } catch (error) {
      expected(error)
    }
    try {
      old.allocatedBlocks()
      return
    } catch (error) {
      if ((error as MemoryFault).code !== 'ERR_HEAP_CLOSED') return
    }
    memory.end(old)
    heaps[index] = new Heap(others[index - 1])
    for (let left = sources.length - 1; left >= 0; left--) if (sources[left]!.heap === old) sources.splice(left, 1)
    begin(index)
  }

  /** Checks that an error is a valid one, and no breach. */
  function expected(error: unknown): void {
    if (error === chosen) return
    const { code, cause } = error as { code?: string; cause?: unknown }
    if (code === 'ERR_CALLBACK_THREW' && cause !== undefined) expected(cause)
    const fine =
      error instanceof MemoryFault ||
      error instanceof MemoryError ||
      code === 'ERR_OUT_OF_RANGE' ||
      code === 'ERR_INVALID_ARG_TYPE'
    if (fine && !NEVER.includes(code!)) return
    // Fifty scripts inside one another may fill the stack.
    if (error instanceof RangeError && error.message === 'Maximum call stack size exceeded') return
    broken ??= error
    throw error instanceof Broken ? error : new Broken('what must not happen', error)
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

  function see(heap: Heap, calls: Allocator): void {
    if (!scripts.has(calls) && !sources.some((source) => source.calls === calls)) sources.push({ heap, calls })
  }

  /** What a script's allocator may do beside its work. */
  const amid = (): void => {
    if (callbacks++ < INSIDE_MAX) step()
  }

  /** An address of whatever sort. */
  const anything = (): Address => {
    const block = random(2) === 0 && memory.blocks.length > 0 ? pick(memory.blocks) : undefined
    return block ? ((block.address + pick([0, 0, 16, block.size])) as Address) : some()
  }

  /** An allocator around another one. It puts `shift` bytes before each block, and now and then misbehaves. */
  const wrapper = (around: Allocator, shift: number, moody: boolean): Allocator => {
    const source = sources.find(({ calls }) => calls === around)
    const inner = source ? memory.inside(source) : around
    /** What it gave; the rest is older. */
    const mine = new Set<Address>()
    let last: Address | null = null
    const given = (address: Address | null): Address | null => {
      if (address === null) return null
      const piece = (address + shift) as Address
      mine.add(piece)
      // The inner allocator may have answered with part of another source's grant. That is lent from here on.
      memory.lend(piece)
      return piece
    }
    const base = (address: Address | null): Address | null => (mine.has(address!) ? ((address! - shift) as Address) : address)
    const sound: Allocator = {
      malloc: (size) => given(inner.malloc(Number(size) + shift)),
      calloc: (count, size) => given(inner.calloc(1, Number(count) * Number(size) + shift)),
      realloc: (address, size) => {
        if (address !== null && !mine.has(address)) return inner.realloc(address, size)
        const moved = inner.realloc(base(address), Number(size) + shift)
        if (moved !== null) mine.delete(address!)
        return given(moved)
      },
      free: (address) => {
        inner.free(base(address))
        mine.delete(address!)
      },
    }
    const answer = (address: Address | null): Address | null => {
      const moods: Array<() => Address | null> = [
        () => {
          throw chosen
        },
        () => null,
        anything,
        () => last,
        () => 'x' as never,
        () => Promise.resolve(address) as never,
        () => {
          amid()
          return address
        },
      ]
      const answer = (moods[random(20)] ?? (() => address))()
      memory.lend(answer)
      last = address
      return answer
    }
    const asked = <Arguments extends unknown[], Result>(call: (...args: Arguments) => Result) => {
      return (...args: Arguments): Result => {
        memory.moods++
        if (random(15) === 0) amid()
        return call(...args)
      }
    }
    const made: Allocator = moody
      ? {
          malloc: asked((size) => answer(sound.malloc(size))),
          calloc: asked((count, size) => answer(pick([() => sound.calloc(count, size), () => sound.malloc(size)])())),
          realloc: asked((address, size) => {
            if (random(8) === 0) sound.free(address)
            if (random(8) === 0) inner.realloc(base(address), random(2000))
            if (random(8) !== 0) return answer(sound.realloc(address, size))
            const moved = sound.malloc(size)
            sound.free(address)
            return answer(moved)
          }),
          free: asked((address) => {
            if (random(8) === 0) throw chosen
            if (random(8) === 0) inner.realloc(base(address), random(2000))
            sound.free(address)
            if (random(8) === 0) sound.free(address)
            if (random(8) === 0) throw chosen
            return random(20) === 0 ? (Promise.resolve() as never) : undefined
          }),
        }
      : sound
    scripts.set(made, 1 + (scripts.get(around) ?? 0))
    return made
  }

  /** An arena allocator: around a heap's own allocator or its own arenas, and in what mood. */
  const arenas = (own: ArenaAllocator, from: Source | undefined, moody: boolean): ArenaAllocator => {
    const inner = from && memory.inside(from)
    const given: Address[] = []
    return {
      alloc(size) {
        if (moody && random(6) === 0) amid()
        const mood = moody ? random(8) : 8
        if (mood === 0) throw chosen
        if (mood === 1) return random(2) === 0 ? null : (Promise.resolve(null) as never)
        const rubbish =
          mood === 2 ? anything() : mood === 3 && given.length > 0 ? ((pick(given) + pick([0, 4096])) as Address) : null
        if (rubbish !== null) {
          memory.lend(rubbish)
          return rubbish
        }
        const arena = inner ? inner.malloc(size) : own.alloc(size)
        if (arena !== null) given.push(arena)
        return arena
      },
      free(address, size) {
        if (moody && random(6) === 0) throw chosen
        if (inner && given.includes(address)) inner.free(address)
        else own.free(address, size)
        if (moody && random(6) === 0) amid()
      },
    }
  }

  const block = (): Block | undefined => (memory.blocks.length > 0 ? pick(memory.blocks) : undefined)
  const size = (): number => pick([0, 1, random(64), random(64), random(600), random(600), random(9000), 512, 513])
  /** The allocator that must free or resize a block: mostly the one that gave it. */
  const sourceOf = (block: Block): Source => {
    const fit = sources.filter(({ heap, domain }) => heap === block.heap && (random(8) === 0 || domain === block.domain))
    return fit.length > 0 ? pick(fit) : pick(sources)
  }

  /** Puts an allocator in. */
  function swap(): void {
    const [heap, domain] = [pick(heaps), pick(DOMAINS)]
    const present = heap.getAllocator(domain)
    see(heap, present)
    const own = sources.filter((source) => source.heap === heap && !source.domain)
    const around = random(3) === 0 || scripts.get(present)! > 3 ? pick(random(10) === 0 ? sources : own).calls : present
    const next = [
      () => pick([...sources.map(({ calls }) => calls), ...scripts.keys()]),
      () => pick(own).calls,
      () => wrapper(around, pick([0, 0, 16, 48]), false),
      () => wrapper(around, pick([0, 0, 16, 48]), false),
      () => wrapper(around, pick([0, 0, 16]), true),
      () => wrapper(around, pick([0, 0, 16]), true),
    ]
    memory.scripted = true
    heap.setAllocator(domain, pick(next)())
  }

  function putBack(): void {
    const index = random(heaps.length)
    for (const [domain, name] of DOMAINS.entries()) heaps[index]!.setAllocator(name, firsts[index]![domain]!)
    if (random(3) === 0) heaps[index]!.setArenaAllocator(firstArenas[index]!)
  }

  function take(): void {
    if (memory.blocks.length >= BLOCKS_MAX) {
      const found = block()!
      memory.free(found, sourceOf(found))
      return
    }
    const source = pick(sources)
    const bytes = size()
    const verb = random(3)
    if (verb === 0) memory.take(source, source.calls.malloc(bytes), bytes)
    else if (verb === 1) memory.take(source, source.calls.calloc(1, bytes), bytes, true)
    else memory.take(source, source.calls.realloc(null, bytes), bytes)
  }

  function resize(): void {
    const found = block()
    if (found) memory.resize(found, sourceOf(found), random(20) === 0 ? 2 ** 50 : size())
  }

  const operations: Array<() => void> = [
    swap,
    swap,
    swap,
    () => {
      if (random(2) !== 0) return
      const heap = pick(heaps)
      const own = sources.filter((source) => source.heap === heap && !source.domain)
      const from = random(2) === 0 ? undefined : random(10) === 0 ? pick(sources) : pick(own)
      memory.scripted = true
      heap.setArenaAllocator(arenas(firstArenas[heaps.indexOf(heap)]!, from, random(3) === 0))
    },
    // Mostly the first allocator is put back, because one that misbehaves disturbs all other operations.
    putBack,
    putBack,
    take,
    take,
    take,
    take,
    () => {
      const [source, bytes] = [pick(sources), 1 << (18 + 2 * random(2))]
      if (random(5) === 0) memory.take(source, source.calls.malloc(bytes), bytes)
    },
    () => {
      const found = block()
      if (found) memory.free(found, sourceOf(found))
    },
    () => {
      const found = block()
      if (found) memory.free(found, sourceOf(found))
    },
    resize,
    resize,
    resize,
    () => {
      const found = block()
      if (found) memory.lookAtView(found)
    },
    () => {
      const found = block()
      if (found) memory.lookAtView(found)
    },
    () => {
      const found = block()
      if (found && random(4) === 0) memory.detach(found)
    },
    () => {
      const found = block()
      if (found) memory.write(found)
    },
    () => {
      const found = block()
      if (found) memory.write(found)
    },
    () => memory.haunt(),
    () => {
      const { heap, address } = pick(memory.gone) ?? { heap: pick(heaps), address: some() }
      memory.touch(pick(sources.filter((source) => source.heap === heap)), address, random(2) === 0 ? undefined : size())
    },
    () => memory.batch(pick(heaps)),
    () => memory.batch(pick(heaps)),
    () => {
      const found = block()
      if (!found) return
      const made = memory.give(found, (address) =>
        random(2) === 0 ? pick(types).init(address) : pick(types).initVar(address, random(20)),
      )
      if (made !== undefined) own(made)
    },
    () => {
      if (random(20) === 0) pick(heaps).setupDebugHooks()
    },
    () => {
      if (random(8) === 0) replace()
    },
    () => {
      const heap = pick(heaps)
      if (random(8) === 0) heap.setNomemory(random(20), random(3) === 0 ? undefined : random(40))
      else heap.removeNomemory()
    },
    () => pick(heaps).trim(),
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
    () => memory.touch(sources[2]!, some()),
    () => memory.touch(sources[2]!, some(), random(600)),
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

  random = randomFrom(kinds)
  const kept = operations.filter((operation) => kinds === 0 || operation === swap || random(2) === 0)
  const step = (): void => {
    try {
      pick(kept)()
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
  setFlagsFromString('--expose-gc')
  const gc = runInNewContext('gc') as () => void
  for (const [index, seed] of seeds.entries()) {
    random = randomFrom(seed)
    inside = callbacks = 0
    step()
    assert.equal(traversing, 0)
    heap.verify()
    if (index % 10 === 0) for (const other of heaps) other.verify()
    if (index % 10 === 0) memory.lookAtAll()
    if (broken !== undefined) throw broken
    if (index % 200 > 0) continue
    // Buffers without a reference are gone after this.
    gc()
    await turn()
  }
  memory.lookAtAll()
  for (const heap of heaps) {
    try {
      heap.close()
    } catch (error) {
      expected(error)
    }
    memory.end(heap)
  }
  if (broken !== undefined) throw broken
}

/** The seeds of a program's operations. */
export function operationsOf(seed: number, count: number): number[] {
  return Array.from({ length: count }, (_, index) => (Math.imul(seed, 0x9e3779b1) + Math.imul(index, 0x85ebca6b)) >>> 0)
}

async function many(first: number, count: number, operations: number): Promise<void> {
  for (let seed = first; seed < first + count; seed++) {
    const random = randomFrom(seed)
    const pick = <T>(all: readonly T[]): T => all[random(all.length)]!
    const allocator = pick(['default', 'default', 'debug', 'debug', 'malloc', 'malloc_debug'] as const)
    const args = [pick(releases), allocator, random(3) === 0 ? 20_000 : 0] as const
    // Without some kinds, the others come more often.
    const kinds = random(2) === 0 ? 0 : seed
    writeSync(1, `${seed} ${args.join(' ')} ${kinds}\n`)
    await chaos(...args, operationsOf(seed, operations), kinds)
  }
}

const [release, allocator, quarantine, seeds, kinds] = process.argv.slice(2)
if (release === 'many') void many(Number(allocator), Number(quarantine), Number(seeds))
else if (seeds?.startsWith('['))
  void chaos(
    release as Release,
    allocator as AllocatorName,
    Number(quarantine),
    JSON.parse(seeds) as number[],
    Number(kinds ?? 0),
  )
