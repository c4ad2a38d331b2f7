/** Memory that debug hooks have freed and filled, and that comes to a script by another way: what it writes there is its own. */

import test from 'ava'

import { Heap, MemoryFault, type Address, type Allocator, type ArenaAllocator, type DomainName, type Size } from 'obmalloc'

import { poke } from '../peer.ts'
import { some } from '../tools.ts'

const KiB = 1024
const domains: DomainName[] = ['raw', 'mem', 'obj']
const SIZES = [1, 16, 40, 200, 460, 512]

/** Writes to memory of a script's through the heap, over all of it. */
const scribble = (heap: Heap, address: Address, size: number): void => {
  heap.raw.write(address, new Uint8Array(size).fill(1))
}

/** Blocks of every size that hooks fill, free in between. */
function fillAndFree(heap: Heap, domain: DomainName): void {
  const blocks = SIZES.flatMap((size) => Array.from({ length: 20 }, () => some(heap[domain].malloc(size))))
  blocks.forEach((block, index) => {
    if (index % 3 !== 0) heap[domain].free(block)
  })
}

/** Every call of an allocator that gives memory, with every size: addresses with what may be written there. */
function everyWay(source: Allocator): Array<[address: Address, size: number]> {
  return [...SIZES, 0, 513, 5000].flatMap((size) => {
    const small = some(source.malloc(8))
    return [
      some(source.malloc(size)),
      some(source.calloc(1, size)),
      some(source.calloc(size, 1)),
      some(source.realloc(null, size)),
      some(source.realloc(small, size)),
    ].map((address): [Address, number] => [address, size])
  })
}

for (const quarantine of [0, 2000]) {
  for (const domain of domains) {
    test(`memory that hooks of ${domain} have freed, by direct calls; quarantine ${quarantine}`, (t) => {
      for (const release of ['3.8', '3.11', '3.13', '3.15'] as const) {
        using heap = new Heap({ release, quarantine })
        const below = domains.map((name) => heap.getAllocator(name))
        heap.setupDebugHooks()
        const hooks = domains.map((name) => heap.getAllocator(name))
        fillAndFree(heap, domain)
        for (const source of [...below, ...hooks]) {
          const given = everyWay(source)
          for (const [address, size] of given) scribble(heap, address, size)
          heap.verify()
          for (const [address] of given) source.free(address)
          heap.verify()
          fillAndFree(heap, domain)
          heap.verify()
        }
        t.pass()
      }
    })

    test(`memory that hooks of ${domain} have freed, by a script's allocator; quarantine ${quarantine}`, (t) => {
      for (const shift of [0, 16, 48]) {
        for (const [index, target] of domains.entries()) {
          for (const isAbove of [false, true]) {
            using heap = new Heap({ quarantine })
            const below = domains.map((name) => heap.getAllocator(name))
            heap.setupDebugHooks()
            const own = isAbove ? heap.getAllocator(target) : below[index]!
            fillAndFree(heap, domain)
            const mine = new Set<Address>()
            const given = (address: Address | null): Address | null => {
              if (address === null) return null
              if (shift > 0) poke(address, new Uint8Array(shift).fill(1))
              mine.add((address + shift) as Address)
              return (address + shift) as Address
            }
            const base = (address: Address | null): Address | null =>
              mine.has(address!) ? ((address! - shift) as Address) : address
            const bytes = (size: Size): number => Math.max(Number(size), 1) + shift
            const script: Allocator = {
              malloc: (size) => given(own.malloc(bytes(size))),
              calloc: (count, size) => given(own.calloc(1, bytes(Number(count) * Number(size)))),
              realloc: (address, size) => given(own.realloc(base(address), bytes(size))),
              free(address) {
                own.free(base(address))
                mine.delete(address!)
              },
            }
            const before = heap.getAllocator(target)
            heap.setAllocator(target, script)
            for (let round = 0; round < 2; round++) {
              const blocks = everyWay(heap[target])
              for (const [address, size] of blocks) heap[target].write(address, new Uint8Array(size).fill(1))
              heap.verify()
              for (const [address] of blocks) heap[target].free(address)
              heap.verify()
              heap.setupDebugHooks()
            }
            heap.setAllocator(target, before)
            fillAndFree(heap, domain)
            heap.verify()
          }
        }
      }
      t.pass()
    })
  }
}

test('memory that hooks have freed, as arenas, and the memory of arenas that are gone', (t) => {
  const SIZE = KiB * KiB
  for (const release of ['3.8', '3.13'] as const) {
    using heap = new Heap({ release })
    const [raw, obj] = [heap.getAllocator('raw'), heap.getAllocator('obj')]
    const own = heap.getArenaAllocator()
    heap.setupDebugHooks()
    const hook = heap.getAllocator('raw')
    const sources: ArenaAllocator[] = [
      { alloc: (size) => raw.malloc(size), free: (address) => raw.free(address) },
      { alloc: (size) => hook.malloc(size), free: (address) => hook.free(address) },
      { alloc: (size) => obj.malloc(size), free: (address) => obj.free(address) },
      own,
    ]
    heap.raw.free(heap.raw.malloc(SIZE))
    for (const arenas of [...sources, ...sources]) {
      heap.setArenaAllocator(arenas === sources[2] ? own : arenas)
      const blocks = Array.from({ length: 5000 }, () => some(heap.obj.malloc(400)))
      for (const block of blocks) heap.obj.write(block, new Uint8Array(400).fill(1))
      heap.verify()
      for (const block of blocks) heap.obj.free(block)
      heap.verify()
      // What was an arena, with the fill of hooks in it, is memory like any other.
      for (const source of [raw, hook, obj]) {
        const block = some(source.malloc(SIZE))
        scribble(heap, block, SIZE)
        heap.verify()
        source.free(block)
      }
      const arena = some(own.alloc(SIZE))
      heap.verify()
      own.free(arena, SIZE)
      heap.verify()
    }
    t.is(heap.allocatedBlocks(), 0)
  }
})

test('a write after free is found all the same', (t) => {
  for (const domain of ['mem', 'obj'] as const) {
    using heap = new Heap()
    const below = heap.getAllocator(domain)
    heap.setupDebugHooks()
    fillAndFree(heap, domain)
    const victim = some(heap[domain].malloc(100))
    everyWay(below)
    heap[domain].free(victim)
    poke(victim + 20, Uint8Array.of(1))
    t.throws(() => heap.verify(), { instanceOf: MemoryFault, code: 'ERR_WRITE_AFTER_FREE' })
    heap.verify()
  }
})
