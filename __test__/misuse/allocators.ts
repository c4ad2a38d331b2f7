/** The misuse catalogue, section E: allocators of a script that do not do what an allocator does. */

import assert from 'node:assert/strict'

import { Heap, type Address, type Allocator, type DomainName } from 'obmalloc'

import type { Row } from './rows.ts'
import { at, domains, some, type Scene } from './scene.ts'

const KiB = 1024

/** Puts an allocator into a domain for as long as something is tried: `own` is the one below it. */
function during(heap: Heap, domain: DomainName, mine: (own: Allocator) => Partial<Allocator>, tried: () => void): void {
  const own = heap.getAllocator(domain)
  const { malloc, calloc, realloc, free } = own
  heap.setAllocator(domain, { malloc, calloc, realloc, free, ...mine(own) })
  try {
    tried()
  } finally {
    heap.setAllocator(domain, own)
  }
}

/** Every way to ask a domain for memory. */
function requests(heap: Heap, domain: DomainName): Array<[kind: keyof Allocator, () => unknown]> {
  const block = some(heap[domain].malloc(40))
  const type = heap.defineType({ name: 'requested', gc: true, fields: { next: 'object' } })
  return [
    ['malloc', () => heap[domain].malloc(40)],
    ['calloc', () => heap[domain].calloc(4, 10)],
    ['realloc', () => heap[domain].realloc(block, 90)],
    ['realloc', () => heap[domain].realloc(null, 40)],
    ['malloc', () => heap.run(Uint32Array.of(0, domains.indexOf(domain), 0, 40))],
    ...(domain === 'obj' ? [['malloc', () => type.alloc()] as ['malloc', () => unknown]] : []),
  ]
}

/** Answers that are no memory, for a request in `domain`. */
function rubbish(heap: Heap, domain: DomainName, own: Allocator): unknown[] {
  const live = some(heap[domain].malloc(40))
  const granted = some(own.malloc(KiB))
  const small = some(own.malloc(1))
  const freed = some(own.malloc(600))
  own.free(freed)
  const values = [undefined, NaN, 0, -1, 1.5, 16, 2 ** 48, 2 ** 53 - 16, '16', 16n, {}, true, Symbol('16'), live, live + 16]
  return [
    ...values,
    granted + 1,
    granted + KiB,
    granted - 16,
    small,
    freed,
    heap.arenas()[0]!.address,
    heap.arenas()[0]!.address + 48,
  ]
}

export const allocators: Row[] = [
  {
    number: 75,
    what: 'an allocator that throws',
    play: (scene) => {
      const { heap } = scene
      for (const domain of domains) {
        for (const thrown of [new Error('no'), undefined, null, 'text', 5]) {
          for (const [kind, request] of requests(heap, domain)) {
            const raise = (): never => {
              throw thrown
            }
            failsWith(scene, domain, () => ({ [kind]: raise }), request, { code: 'ERR_CALLBACK_THREW', cause: thrown })
          }
        }
      }
      // What pymalloc passes on.
      const raise = { malloc: () => assert.fail('on purpose') }
      failsWith(
        scene,
        'raw',
        () => raise,
        () => heap.obj.malloc(5000),
        { code: 'ERR_CALLBACK_THREW' },
      )
    },
  },
  {
    number: 76,
    what: 'an allocator that gives what is no block',
    play: (scene) => {
      const { heap } = scene
      const other = new Heap()
      const elsewhere = some(other.raw.malloc(8))
      for (const domain of domains) {
        for (const answer of [...rubbish(heap, domain, heap.getAllocator(domain)), elsewhere]) {
          for (const [kind, request] of requests(heap, domain)) {
            failsWith(scene, domain, () => ({ [kind]: () => answer as Address }), request, 'ERR_CALLBACK_RESULT')
          }
        }
      }
      // pymalloc would take it for one of its own.
      const inside = some(heap.getAllocator('obj').malloc(512))
      failsWith(
        scene,
        'raw',
        () => ({ malloc: () => inside }),
        () => heap.obj.malloc(0),
        'ERR_CALLBACK_RESULT',
      )
      const dirty = some(heap.getAllocator('obj').malloc(64))
      heap.obj.write(dirty, new Uint8Array(64).fill(1))
      failsWith(
        scene,
        'obj',
        () => ({ calloc: () => dirty }),
        () => heap.obj.calloc(8, 8),
        'ERR_CALLBACK_RESULT',
      )
      async function late(): Promise<Address> {
        return Promise.reject(new Error('this is not awaited'))
      }
      function* lazy(): Generator<Address> {
        yield inside
      }
      for (const later of [late, lazy]) {
        failsWith(
          scene,
          'mem',
          () => ({ malloc: at(later) as never }),
          () => heap.mem.malloc(5),
          'ERR_CALLBACK_RESULT',
        )
      }
      other.close()
    },
  },
  {
    number: 77,
    what: 'an allocator that gives a block twice',
    play: (scene) => {
      const { heap } = scene
      for (const domain of domains) {
        for (const shift of [0, 16, 48]) {
          let first: Address | undefined
          const twice = (own: Allocator): Partial<Allocator> => {
            const base = some(own.malloc(KiB))
            return { malloc: () => (first = (first === undefined ? base : base + shift) as Address), free: () => {} }
          }
          during(heap, domain, twice, () => {
            const block = some(heap[domain].malloc(64))
            heap[domain].write(block, new Uint8Array(64).fill(1))
            assert.throws(() => heap[domain].malloc(64), { code: 'ERR_CALLBACK_RESULT' })
            assert.deepEqual(heap[domain].read(block), new Uint8Array(64).fill(1))
            heap[domain].free(block)
            // It is free now, so that it may be given again.
            heap[domain].free(heap[domain].malloc(64))
          })
          scene.check()
        }
      }
    },
  },
  {
    number: 78,
    what: 'an allocator whose free throws',
    play: (scene) => {
      const { heap } = scene
      const cause = new Error('no')
      for (const domain of domains) {
        const block = some(heap[domain].malloc(40))
        const raise = (): never => {
          throw cause
        }
        during(
          heap,
          domain,
          () => ({ free: raise }),
          () => {
            assert.throws(() => heap[domain].free(block), { code: 'ERR_CALLBACK_THREW', cause, address: block })
            // It has been freed all the same.
            assert.throws(() => heap[domain].free(block), { code: 'ERR_DOUBLE_FREE' })
            heap.verify()
            async function late(): Promise<void> {
              return Promise.reject(cause)
            }
            const again = some(heap[domain].malloc(40))
            during(
              heap,
              domain,
              () => ({ free: late as never }),
              () => {
                assert.throws(() => heap[domain].free(again), { code: 'ERR_CALLBACK_RESULT' })
              },
            )
          },
        )
        scene.check()
      }
    },
  },
  {
    number: 79,
    what: 'an allocator that calls its own heap',
    play: (scene) => {
      const { heap } = scene
      const other = new Heap()
      for (const domain of domains) {
        const calls: Array<() => unknown> = [
          () => heap[domain].malloc(5),
          () => heap.obj.malloc(5),
          () => heap.raw.free(null),
          () => heap.verify(),
          () => heap.gc.collect(),
          () => heap.arenas(),
          () => heap.getAllocator('obj'),
          () => heap.setupDebugHooks(),
          () => heap.setNomemory(1),
          () => heap.run(new Uint32Array(4)),
        ]
        for (const call of calls) {
          const cause = (error: Error): boolean => (error.cause as { code: string }).code === 'ERR_REENTRANT'
          const mine = (own: Allocator): Partial<Allocator> => ({ malloc: (size) => (call(), own.malloc(size)) })
          during(heap, domain, mine, () => assert.throws(() => heap[domain].malloc(40), cause))
          scene.check()
        }
        // Another heap is another matter, and so are allocators that were taken out.
        const raw = heap.getAllocator('raw')
        const wrapping = (own: Allocator): Partial<Allocator> => ({
          malloc: (size) => (raw.free(raw.malloc(9)), other.obj.free(other.obj.malloc(9)), own.malloc(size)),
        })
        during(heap, domain, wrapping, () => heap[domain].free(heap[domain].malloc(40)))
      }
      // Raw from pymalloc, which asks raw.
      const obj = heap.getAllocator('obj')
      let depth = 0
      during(
        heap,
        'raw',
        () => ({ malloc: (size) => (depth++, obj.malloc(Number(size) + 1000)) }),
        () => {
          assert.throws(
            () => heap.raw.malloc(1000),
            (error: Error) => {
              let cause: { code?: string; cause?: unknown } = error
              while (cause.cause !== undefined) cause = cause.cause as typeof cause
              return cause.code === 'ERR_REENTRANT'
            },
          )
        },
      )
      assert.equal(depth, 50)
      other.close()
      scene.check()
    },
  },
  {
    number: 80,
    what: 'an allocator that is replaced while it runs',
    play: (scene) => {
      const { heap } = scene
      for (const domain of domains) {
        for (const target of domains) {
          const mine = (own: Allocator): Partial<Allocator> => ({
            malloc(size) {
              heap.setAllocator(target, own)
              return own.malloc(size)
            },
          })
          const reentrant = (error: Error): boolean => (error.cause as { code: string }).code === 'ERR_REENTRANT'
          during(heap, domain, mine, () => assert.throws(() => heap[domain].malloc(40), reentrant))
          scene.check()
        }
      }
    },
  },
  {
    number: 81,
    what: 'an allocator that closes the heap, or frees the block at hand',
    play: (scene) => {
      const { heap } = scene
      const reentrant = (error: Error): boolean => (error.cause as { code: string }).code === 'ERR_REENTRANT'
      for (const domain of domains) {
        const block = some(heap[domain].malloc(40))
        heap[domain].write(block, Uint8Array.of(1, 2, 3))
        for (const misuse of [() => heap.close(), () => heap[domain].free(block), () => heap[domain].realloc(block, 9)]) {
          for (const kind of ['malloc', 'realloc', 'free'] as const) {
            const mine = (): Partial<Allocator> => ({ [kind]: () => misuse() })
            during(heap, domain, mine, () => {
              const victim = kind === 'free' ? heap[domain].malloc(30) : null
              const call = {
                malloc: () => heap[domain].malloc(5),
                realloc: () => heap[domain].realloc(block, 600),
                free: () => heap[domain].free(victim),
              }
              assert.throws(call[kind], reentrant)
            })
            assert.deepEqual([...heap[domain].read(block, 0, 3)], [1, 2, 3])
          }
        }
        scene.check()
      }
    },
  },
]

/** A request that fails while an allocator is in, and leaves everything as it was. */
function failsWith(
  scene: Scene,
  domain: DomainName,
  mine: (own: Allocator) => Partial<Allocator>,
  request: () => unknown,
  expected: { code: string; cause?: unknown } | string,
): void {
  const { code, ...fields } = typeof expected === 'string' ? { code: expected } : expected
  const { heap } = scene
  const before = [heap.allocatedBlocks(), heap.debugMallocStats()]
  during(heap, domain, mine, () => {
    try {
      request()
    } catch (error) {
      assert.equal((error as { code: string }).code, code, `${(error as Error).message}`)
      if ('cause' in fields && fields.cause !== undefined) assert.equal((error as Error).cause, fields.cause)
      return
    }
    assert.fail(`expected ${code}`)
  })
  assert.deepEqual([heap.allocatedBlocks(), heap.debugMallocStats()], before)
  scene.check()
}
