/** Where a row of the misuse catalogue is played: a heap with bystanders, and what must hold after every misuse. */

import assert from 'node:assert/strict'

import { Heap, type Address, type Domain, type DomainName } from 'obmalloc'

export const domains: DomainName[] = ['raw', 'mem', 'obj']

interface Bystander {
  domain: Domain
  address: Address
  bytes: Uint8Array
}

/** What an error must be: its code, and whatever else is given. */
export interface Expected {
  code: string
  name?: string
  [field: string]: unknown
}

export class Scene {
  readonly heap: Heap
  readonly #bystanders: Bystander[] = []

  constructor(heap = new Heap()) {
    this.heap = heap
    for (const [index, size] of [1, 16, 100, 512, 513, 5000].entries()) {
      for (const name of domains) {
        const domain = heap[name]
        const address = some(domain.malloc(size))
        const bytes = new Uint8Array(size).fill(17 * index + name.length)
        domain.write(address, bytes)
        this.#bystanders.push({ domain, address, bytes })
      }
    }
  }

  /** Calls what must throw, and checks that nothing else has happened. */
  throws(misuse: () => unknown, expected: Expected | string): Error {
    const { code, name, ...fields } = typeof expected === 'string' ? { code: expected } : expected
    const before = this.#state()
    let thrown: unknown
    try {
      const result = misuse()
      assert.fail(`expected ${code}, but ${misuse} gave ${typeof result}`)
    } catch (error) {
      thrown = error
    }
    assert.ok(thrown instanceof Error, `expected an Error, got ${String(thrown)}`)
    assert.equal((thrown as { code?: unknown }).code, code, `${misuse}: ${thrown.message}`)
    assert.equal(thrown.name, name ?? nameOf(code))
    for (const [field, value] of Object.entries(fields)) {
      assert.deepEqual((thrown as unknown as Record<string, unknown>)[field], value, `${misuse}: ${field}`)
    }
    assert.equal(this.#state(), before, `${misuse} changed the statistics`)
    this.check()
    return thrown
  }

  #state(): string {
    return [this.heap.allocatedBlocks(), this.heap.debugMallocStats(), JSON.stringify(this.heap.arenas())].join('\n')
  }

  /** The heap is whole, all other blocks are as they were, and it goes on. */
  check(): void {
    const { heap } = this
    heap.verify()
    for (const { domain, address, bytes } of this.#bystanders) {
      assert.deepEqual(domain.read(address, 0, bytes.length), bytes)
    }
    const before = heap.allocatedBlocks()
    for (const name of domains) {
      const domain = heap[name]
      const block = some(domain.malloc(40))
      domain.write(block, Uint8Array.of(1, 2, 3))
      const moved = some(domain.realloc(block, 400))
      assert.deepEqual([...domain.read(moved, 0, 3)], [1, 2, 3])
      domain.free(moved)
    }
    assert.equal(heap.allocatedBlocks(), before)
    heap.verify()
  }

  /** The heap is whole, goes on, and collects. */
  finish(): void {
    const { heap } = this
    this.check()
    const type = heap.defineType({ name: 'scene', gc: true, fields: { next: 'object' } })
    const before = heap.gc.getObjects().length
    const [a, b] = [type.alloc(), type.alloc()]
    type.set(a, 'next', b)
    type.set(b, 'next', a)
    heap.decref(a)
    heap.decref(b)
    assert.equal(heap.gc.getObjects().length, before + 2)
    assert.ok(heap.gc.collect() >= 2)
    this.check()
    heap.close()
  }
}

function nameOf(code: string): string {
  switch (code) {
    case 'ERR_INVALID_ARG_TYPE':
      return 'TypeError'
    case 'ERR_OUT_OF_RANGE':
      return 'RangeError'
    case 'ERR_NO_MEMORY':
      return 'MemoryError'
    default:
      return 'MemoryFault'
  }
}

/** A block that must be there. */
export function some(address: Address | null): Address {
  assert.notEqual(address, null, 'expected a block')
  return address as Address
}

/** What is no address of a block, as if it were one. */
export const at = (value: unknown): Address => value as Address

/** What is no size, as if it were one. */
export const notSize = (value: unknown): number => value as number
