/** A script's `free` that throws: what was to be freed is freed, once. */

import test from 'ava'

import { Heap, MemoryFault, type Address, type Allocator, type DomainName, type ObjectType } from 'obmalloc'

import { poke } from '../peer.ts'
import { isWasm, some } from '../tools.ts'

const domains: DomainName[] = ['raw', 'mem', 'obj']
const boom = new Error('no')

const throwing = (own: Allocator, passesOn: boolean): Allocator => ({
  malloc: (size) => own.malloc(size),
  calloc: (count, size) => own.calloc(count, size),
  realloc: (address, size) => own.realloc(address, size),
  free(address) {
    if (passesOn) own.free(address)
    throw boom
  },
})

/** Makes a call that may fail only because a script threw. Returns whether it failed. */
function throwsAtMost(call: () => unknown): boolean {
  try {
    call()
    return false
  } catch (error) {
    if (!(error instanceof MemoryFault) || error.code !== 'ERR_CALLBACK_THREW' || error.cause !== boom) throw error
    return true
  }
}

test('a block of an allocator that is called directly, over one whose free throws, is freed once', (t) => {
  for (const release of ['3.8', '3.11', '3.13', '3.15'] as const) {
    const heap = new Heap({ release })
    const pymalloc = heap.getAllocator('mem')
    heap.setupDebugHooks()
    const block = some(pymalloc.malloc(600))
    const nothing = (): null => null
    heap.setAllocator('raw', {
      malloc: nothing,
      calloc: nothing,
      realloc: nothing,
      free() {
        throw boom
      },
    })
    t.throws(() => pymalloc.free(block), { code: 'ERR_CALLBACK_THREW' })
    t.throws(() => pymalloc.free(block), { code: 'ERR_DOUBLE_FREE' })
    heap.verify()
    heap.close()
  }
})

for (const when of ['never', 'before', 'after'] as const) {
  for (const allocator of ['default', 'malloc'] as const) {
    test(`a free that throws, in every domain, by every way: debug hooks ${when}, ${allocator}`, (t) => {
      let thrown = 0
      for (const domain of domains) {
        for (const through of domains) {
          for (const passesOn of [false, true]) {
            for (const size of [0, 40, 600, 100_000]) {
              const heap = new Heap({ release: '3.13', allocator })
              const [plain, own] = [heap.getAllocator(through), heap.getAllocator(domain)]
              if (when === 'before') heap.setupDebugHooks()
              const top = heap.getAllocator(through)
              const given: Array<[free: (address: Address) => void, address: Address]> = []
              const take = (): void => {
                for (const source of [plain, top, heap[through]]) {
                  given.push([(address) => source.free(address), some(source.malloc(size))])
                  given.push([(address) => source.free(address), some(source.calloc(1, size))])
                }
              }
              take()
              heap.setAllocator(domain, throwing(heap.getAllocator(domain), passesOn))
              if (when === 'after') heap.setupDebugHooks()
              take()
              heap.verify()
              const moved = some(heap[through].malloc(size))
              let at = moved
              try {
                at = some(heap[through].realloc(moved, size + 5000))
              } catch (error) {
                at = (error as { address?: Address }).address ?? moved
              }
              given.push([(address) => heap[through].free(address), at])
              for (const [free, address] of given) {
                if (throwsAtMost(() => free(address))) thrown++
                t.throws(() => free(address), { instanceOf: MemoryFault }, 'it is free')
                heap.verify()
              }
              if (passesOn) t.is(heap.allocatedBlocks(), 0, 'what a script keeps is counted')
              heap.setAllocator(domain, own)
              heap[domain].free(heap[domain].malloc(size))
              heap.verify()
              heap.close()
            }
          }
        }
      }
      t.true(thrown > 100)
    })
  }
}

/** An object that alone holds one of each type. When it goes, the first one's memory goes back before the second one is finalized. */
function paired(heap: Heap, ...types: [ObjectType, ObjectType]): { first: Address; both: Address } {
  const pair = heap.defineType({ name: 'pair', fields: { first: 'object', second: 'object' } })
  const [first, second, both] = [types[0].alloc(), types[1].alloc(), pair.alloc()]
  pair.set(both, 'first', first)
  pair.set(both, 'second', second)
  heap.decref(first)
  heap.decref(second)
  return { first, both }
}

test('what failed before a callback is no failure of the calls that it makes', (t) => {
  for (const release of ['3.8', '3.11', '3.13', '3.15'] as const) {
    for (const debug of [false, true]) {
      const heap = new Heap({ release, allocator: debug ? 'debug' : 'default' })
      const own = heap.getAllocator('obj')
      let isToFail = false
      heap.setAllocator('obj', {
        ...throwing(own, true),
        free(address) {
          own.free(address)
          if (!isToFail) return
          isToFail = false
          throw boom
        },
      })
      const plain = heap.defineType({ name: 'plain' })
      let [made, finalized] = [0, 0]
      const type = heap.defineType({
        name: 'finalized',
        finalize() {
          finalized++
          const before = heap.allocatedBlocks()
          heap.decref(plain.alloc())
          const block = some(heap.obj.malloc(40))
          made += heap.allocatedBlocks() - before
          heap.obj.free(block)
          heap.setAllocator('mem', heap.getAllocator('mem'))
          t.throws(() => heap.obj.free(block), { code: 'ERR_DOUBLE_FREE' })
        },
      })
      const { both } = paired(heap, plain, type)
      isToFail = true
      t.throws(() => heap.decref(both), { code: 'ERR_CALLBACK_THREW', instanceOf: MemoryFault })
      t.deepEqual([made, finalized, heap.allocatedBlocks()], [1, 1, 0])
      heap.verify()
      heap.close()
    }
  }
})

test('what failed before a callback is thrown, though the callback puts the own allocator back', (t) => {
  for (const release of ['3.8', '3.11', '3.13', '3.14.0', '3.15'] as const) {
    for (const way of ['destruction', 'collection', 'free list'] as const) {
      const heap = new Heap({ release })
      const own = heap.getAllocator('obj')
      let calls = 0
      const putBack = (): void => {
        calls++
        heap.setAllocator('obj', own)
        // What a call made in its own scope must not be what a call around it throws.
        t.throws(() => heap.obj.free(0xdead0 as Address), { code: 'ERR_FOREIGN_POINTER' })
      }
      const plain = heap.defineType({ name: 'plain', gc: true, freeList: way === 'free list' ? 1 : 0 })
      const last = heap.defineType({ name: 'last', finalize: putBack })
      const node = heap.defineType({ name: 'node', gc: true, fields: { first: 'object', second: 'object', self: 'object' } })
      const [first, second, top] = [plain.alloc(), last.alloc(), node.alloc()]
      node.set(top, 'first', first)
      if (way !== 'free list') node.set(top, 'second', second)
      if (way === 'collection') node.set(top, 'self', top)
      for (const object of [first, second]) if (way !== 'free list') heap.decref(object)
      if (way === 'collection') heap.decref(top)
      if (way === 'free list') {
        node.set(top, 'first', null)
        heap.decref(first)
        heap.gc.callbacks.push((phase) => {
          if (phase === 'stop') putBack()
        })
      }
      heap.setAllocator('obj', throwing(own, true))
      const error = t.throws(() => (way === 'destruction' ? heap.decref(top) : heap.gc.collect()), { code: 'ERR_CALLBACK_THREW' })
      t.is(error?.cause, boom)
      t.is(calls, 1)
      t.notThrows(() => heap.obj.free(heap.obj.malloc(10)))
      heap.gc.callbacks.splice(0)
      if (way === 'free list') for (const object of [top, second]) heap.decref(object)
      heap.verify()
      t.is(heap.allocatedBlocks(), 0)
      heap.close()
    }
  }
})

const native = isWasm ? test.skip : test

native('damage that was found before a callback is no fault of the calls that it makes', (t) => {
  for (const release of ['3.8', '3.13'] as const) {
    const heap = new Heap({ release, allocator: 'debug' })
    const plain = heap.defineType({ name: 'plain' })
    let finalized = 0
    const type = heap.defineType({
      name: 'finalized',
      finalize() {
        finalized++
        heap.decref(plain.alloc())
        t.is(heap.obj.malloc(2 ** 50), null)
      },
    })
    const { first, both } = paired(heap, plain, type)
    poke(first + plain.basicsize, Uint8Array.of(1))
    t.throws(() => heap.decref(both), { code: 'ERR_BUFFER_OVERFLOW' })
    t.is(finalized, 1)
    heap.close()
  }
})
