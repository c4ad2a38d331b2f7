/** The heap's own allocators in domains that are not their own, under hooks and scripts, and called directly all the while. */

import test from 'ava'

import { Heap, MemoryFault, type Address, type Allocator, type DomainName } from 'obmalloc'

import { some } from '../tools.ts'

const domains: DomainName[] = ['raw', 'mem', 'obj']

const around = (own: Allocator): Allocator => ({
  malloc: (size) => own.malloc(size),
  calloc: (count, size) => own.calloc(count, size),
  realloc: (address, size) => own.realloc(address, size),
  free: (address) => own.free(address),
})

/** What asks raw for what raw asks it for comes to no end, and gives what lies in arenas. */
const REFUSED = ['ERR_REENTRANT', 'ERR_CALLBACK_THREW', 'ERR_CALLBACK_RESULT']

test('what a hook around pymalloc in raw gives goes once, with a script in raw again', (t) => {
  for (const release of ['3.8', '3.11', '3.13', '3.15'] as const) {
    const heap = new Heap({ release })
    const [pymalloc, raw] = [heap.getAllocator('mem'), heap.getAllocator('raw')]
    heap.setAllocator('raw', pymalloc)
    heap.setupDebugHooks()
    const hook = heap.getAllocator('raw')
    heap.setAllocator('raw', around(raw))
    for (const size of [100, 5000]) {
      try {
        some(hook.malloc(size))
      } catch (error) {
        t.true(REFUSED.includes((error as MemoryFault).code))
      }
    }
    heap.verify()
    heap.close()
    t.throws(() => hook.malloc(1), { code: 'ERR_HEAP_CLOSED' })
  }
})

const isInstrumented = process.env['OBMALLOC_INSTRUMENTED'] !== undefined
/** Under AddressSanitizer, where a heap takes ten times as long, each fifth one is tried: one as it is, and two scripts around one. */
const isTaken = (choice: number): boolean => !isInstrumented || choice % 5 === 1

for (const between of ['nothing', 'hooks', 'nomemory'] as const) {
  for (const domain of domains) {
    test(`every allocator in ${domain}, then ${between}, then every allocator in every domain`, (t) => {
      let given = 0
      for (const first of domains) {
        for (const second of domains) {
          // One of the first ones, or one that is in by then, or a script around such a one.
          for (const choice of [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11].filter(isTaken)) {
            const heap = new Heap({ release: '3.13' })
            const before = domains.map((name) => heap.getAllocator(name))
            heap.setAllocator(domain, before[domains.indexOf(first)]!)
            if (between === 'hooks') heap.setupDebugHooks()
            if (between === 'nomemory') heap.setNomemory(1e6)
            const known = [...before, ...domains.map((name) => heap.getAllocator(name))]
            heap.setAllocator(second, choice < 6 ? known[choice]! : around(known[choice - 6]!))
            const blocks: Array<[source: Allocator, address: Address]> = []
            let refused = 0
            const attempt = <T>(call: () => T): T | undefined => {
              // Fifty scripts inside one another, each with an error, take long.
              if (refused > 1) return undefined
              try {
                return call()
              } catch (error) {
                if (!(error instanceof MemoryFault) || !REFUSED.includes(error.code)) throw error
                refused++
                return undefined
              }
            }
            for (const source of [...known, ...domains.map((name) => heap[name])]) {
              for (const size of [8, 600]) {
                const calls = [() => source.malloc(size), () => source.calloc(1, size), () => source.realloc(null, size)]
                for (const call of calls) {
                  const address = attempt(call)
                  if (address) blocks.push([source, address])
                }
              }
            }
            heap.verify()
            const every = blocks.map(([, address]) => address)
            t.is(new Set(every).size, every.length, 'no address is given twice')
            given += every.length
            for (const block of blocks.filter((_, index) => index % 3 === 0)) {
              block[1] = attempt(() => block[0].realloc(block[1], 900)) ?? block[1]
            }
            heap.verify()
            // Half of them is left to the end of the heap.
            if (choice % 2 === 0) for (const [source, address] of blocks) attempt(() => source.free(address))
            heap.verify()
            for (const [index, name] of domains.entries()) heap.setAllocator(name, before[index]!)
            for (const name of domains) heap[name].free(heap[name].malloc(50))
            heap.verify()
            heap.close()
          }
        }
      }
      t.true(given > (isInstrumented ? 100 : 1000), `${given} blocks`)
    })
  }
}
