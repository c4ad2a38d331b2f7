/** Debug hooks: `setupDebugHooks`, the allocators with `debug` in their names, and `MemoryFault.report`. */

import { readFileSync } from 'node:fs'

import test from 'ava'
import { Heap, MemoryFault, type Address, type AllocatorName, type Domain, type FaultCode, type Release } from 'obmalloc'

import { poke } from './peer.ts'
import { releases, some } from './tools.ts'

const golden = readFileSync(new URL('../crates/obmalloc/tests/debug/golden.txt', import.meta.url), 'utf8')

/** What a real CPython of the release printed in a case, without addresses. */
function printed(release: Release, name: string): string {
  const [head, ...cases] = golden.split('== ')
  const part = (text: string): string[] =>
    text.split('-- ').flatMap((part, index) => {
      const end = part.indexOf('\n') + 1
      return index === 0
        ? []
        : part
              .slice(0, end - 1)
              .split(' ')
              .includes(release)
          ? [part.slice(end)]
          : []
    })
  const found = cases.find((text) => text.startsWith(`${name}\n`))
  if (found === undefined) throw new Error(`no case ${name}`)
  const body = found.slice(name.length + 1)
  const text = body.split('-- ')[0] + part(body).join('') + part(head!).join('')
  return text
    .replace(/signal 6\n$/, '')
    .replaceAll("\\'", "'")
    .replaceAll('\\0', '\0')
}

function withoutAddresses(report: string): string {
  const block = Number(/p=(0x[0-9a-f]+)/.exec(report)?.[1])
  return report
    .replace(/p=0x[0-9a-f]+/, 'p')
    .replace(/tail=(0x[0-9a-f]+)/, (_, tail: string) => `tail=p+${Number(tail) - block}`)
    .replace(/thread 0x[0-9a-f]{16}( \[[^\]]+\])?/, (_, name?: string) => (name === undefined ? 'thread' : 'thread [name]'))
}

function thrown(misuse: () => unknown): MemoryFault {
  try {
    misuse()
  } catch (error) {
    if (error instanceof MemoryFault) return error
    throw error
  }
  throw new Error(`${misuse} threw nothing`)
}

const fill = (domain: Domain, block: Address, size: number): void =>
  domain.write(
    block,
    Uint8Array.from({ length: size }, (_, index) => index * 7 + 3),
  )

for (const release of releases) {
  test(`hooks say what CPython says: ${release}`, (t) => {
    using heap = new Heap({ release, allocator: 'debug' })
    const cases: Array<[name: string, code: FaultCode, offset: number | undefined, fault: () => MemoryFault]> = [
      [
        'wrong domain m 17, free o',
        'ERR_WRONG_DOMAIN',
        undefined,
        () => {
          const block = some(heap.mem.malloc(17))
          return thrown(() => heap.obj.free(block))
        },
      ],
      [
        'wrong domain r 17, realloc m',
        'ERR_WRONG_DOMAIN',
        undefined,
        () => {
          const block = some(heap.raw.malloc(17))
          return thrown(() => heap.mem.realloc(block, 5))
        },
      ],
      [
        'overflow by 1, m 100, free',
        'ERR_BUFFER_OVERFLOW',
        100,
        () => {
          const block = some(heap.mem.malloc(100))
          fill(heap.mem, block, 100)
          poke(block + 100, Uint8Array.of(0))
          return thrown(() => heap.mem.free(block))
        },
      ],
      [
        'id zero, r 8, realloc',
        'ERR_BUFFER_UNDERFLOW',
        -8,
        () => {
          const block = some(heap.raw.calloc(1, 8))
          poke(block - 8, Uint8Array.of(0))
          return thrown(() => heap.raw.realloc(block, 9))
        },
      ],
      [
        'underflow by 7, r 16, free',
        'ERR_BUFFER_UNDERFLOW',
        -7,
        () => {
          const block = some(heap.raw.malloc(16))
          fill(heap.raw, block, 16)
          poke(block - 7, new Uint8Array(7).fill(0xee))
          return thrown(() => heap.raw.free(block))
        },
      ],
      [
        'inner overflow, o 900, free',
        'ERR_BUFFER_OVERFLOW',
        924,
        () => {
          const block = some(heap.obj.malloc(900))
          poke(block + 908, new Uint8Array(3))
          return thrown(() => heap.obj.free(block))
        },
      ],
    ]
    for (const [name, code, offset, fault] of cases) {
      const { code: found, offset: at, report } = fault()
      t.is(found, code, name)
      t.is(at, offset, name)
      t.is(withoutAddresses(report!), printed(release, name), name)
      heap.verify()
    }
  })
}

test('a report is of this block and this thread', (t) => {
  using heap = new Heap({ release: '3.14', allocator: 'debug' })
  const block = some(heap.mem.malloc(20))
  const { report, address, allocated, used } = thrown(() => heap.obj.free(block))
  t.deepEqual([address, allocated, used], [block, 'mem', 'obj'])
  t.true(
    report!.startsWith(`Debug memory block at address p=0x${block.toString(16)}: API 'm'\n    20 bytes originally requested\n`),
  )
  t.regex(report!, /\nCurrent thread 0x[0-9a-f]{16} \[[^\]]+\] \(most recent call first\):\n {2}<no Python frame>\n$/)
  t.is(thrown(() => heap.mem.free((block + 1) as Address)).report, undefined)
  heap.mem.free(block)
  t.is(thrown(() => heap.mem.free(block)).report, undefined)
})

test('the bytes of a block are those that were asked for, between guard bytes', (t) => {
  using heap = new Heap({ allocator: 'debug' })
  for (const domain of [heap.raw, heap.mem, heap.obj]) {
    for (const size of [0, 1, 16, 488, 489, 5000]) {
      const block = some(domain.malloc(size))
      t.is(domain.usableSize(block), size)
      t.is(domain.view(block).length, size)
      t.true(domain.read(block).every((byte) => byte === 0xcd))
      t.throws(() => domain.read(block, size, 1), { code: 'ERR_OUT_OF_RANGE' })
      t.throws(() => domain.write(block, new Uint8Array(1), size), { code: 'ERR_OUT_OF_RANGE' })
      const view = domain.view(block).fill(1)
      const grown = some(domain.realloc(block, size + 9))
      t.is(view.length, 0)
      t.deepEqual(domain.read(grown), new Uint8Array(size + 9).fill(1, 0, size).fill(0xcd, size))
      domain.free(grown)
      const zeroed = some(domain.calloc(1, size))
      t.true(domain.read(zeroed).every((byte) => byte === 0))
      domain.free(zeroed)
    }
  }
  t.is(heap.allocatedBlocks(), 0)
})

test('the names of PYTHONMALLOC put hooks in, and so does setupDebugHooks', (t) => {
  const hooked = (heap: Heap): string =>
    [heap.raw, heap.mem, heap.obj].map((domain) => domain.usableSize(some(domain.malloc(5)))).join(' ')
  const names: Array<[AllocatorName, string, number]> = [
    ['default', '5 16 16', 1],
    ['pymalloc', '5 16 16', 1],
    ['malloc', '5 5 5', 0],
    ['debug', '5 5 5', 1],
    ['pymalloc_debug', '5 5 5', 1],
    ['malloc_debug', '5 5 5', 0],
  ]
  for (const [allocator, sizes, arenas] of names) {
    using heap = new Heap({ allocator })
    t.is(hooked(heap), sizes, allocator)
    t.is(heap.arenas().length, arenas, allocator)
    t.is(heap.debugMallocStats() === '', arenas === 0, allocator)
    heap.setupDebugHooks()
    heap.setupDebugHooks()
    t.is(hooked(heap), '5 5 5', allocator)
    const block = some(heap.obj.malloc(5))
    poke(block + 5, Uint8Array.of(1))
    t.is(thrown(() => heap.obj.free(block)).code, 'ERR_BUFFER_OVERFLOW', allocator)
  }
})

test('blocks and objects that are older than the hooks go as they came', (t) => {
  using heap = new Heap()
  const type = heap.defineType({ name: 'older', gc: true, fields: { next: 'object' } })
  const object = type.alloc()
  type.set(object, 'next', object)
  const blocks = [heap.raw, heap.mem, heap.obj].flatMap((domain) =>
    [20, 700].map((size) => [domain, some(domain.malloc(size))] as const),
  )
  heap.setupDebugHooks()
  for (const [domain, block] of blocks) domain.free(some(domain.realloc(block, 50)))
  heap.decref(object)
  t.is(heap.gc.collect(), 1)
  t.is(heap.allocatedBlocks(), 0)
  heap.verify()
})

test('a view stays when its block cannot be freed', (t) => {
  using heap = new Heap({ allocator: 'debug' })
  const block = some(heap.obj.malloc(32))
  const view = heap.obj.view(block).fill(7)
  poke(block - 1, Uint8Array.of(0))
  t.is(thrown(() => heap.obj.free(block)).code, 'ERR_BUFFER_UNDERFLOW')
  t.is(thrown(() => heap.obj.realloc(block, 400)).code, 'ERR_BUFFER_UNDERFLOW')
  t.is(view.length, 32)
  t.is(heap.obj.view(block), view)
  poke(block - 1, Uint8Array.of(0xfd))
  heap.obj.free(block)
  t.is(view.length, 0)
})

test('run stops at the operation in which hooks found something', (t) => {
  using heap = new Heap({ allocator: 'debug' })
  const addresses = new Float64Array(4)
  const [malloc, free, obj] = [0, 3, 2]
  heap.run(Uint32Array.of(malloc, obj, 0, 40, malloc, obj, 1, 40, malloc, obj, 2, 40), addresses)
  const [, second, third] = addresses as unknown as Address[]
  poke(second! + 40, Uint8Array.of(0))
  const onFree = thrown(() => heap.run(Uint32Array.of(free, obj, 0, 0, free, obj, 1, 0, free, obj, 2, 0)))
  t.deepEqual([onFree.code, onFree.index, onFree.address], ['ERR_BUFFER_OVERFLOW', 1, second])
  heap.run(Uint32Array.of(free, obj, 2, 0))
  poke(third! + 3, Uint8Array.of(0))
  const onMalloc = thrown(() => heap.run(Uint32Array.of(malloc, obj, 2, 40, malloc, obj, 3, 40)))
  t.deepEqual([onMalloc.code, onMalloc.index, onMalloc.address, onMalloc.offset], ['ERR_WRITE_AFTER_FREE', 0, third, 3])
  heap.run(Uint32Array.of(malloc, obj, 2, 40), addresses)
  t.not(addresses[2], third)
  heap.verify()
})

test('damaged objects are told of by the call that destroys them, once everything is done', (t) => {
  using heap = new Heap({ release: '3.13', allocator: 'debug' })
  const log: string[] = []
  const type = heap.defineType({
    name: 'damaged',
    gc: true,
    fields: { next: 'object' },
    dealloc: () => log.push('dealloc'),
  })
  const objects = [type.alloc(), type.alloc(), type.alloc()] as const
  for (const [index, object] of objects.entries()) type.set(object, 'next', objects[(index + 1) % 3]!)
  poke(objects[1] + 24, Uint8Array.of(0))
  for (const object of objects) heap.decref(object)
  const fault = thrown(() => heap.gc.collect())
  // The block begins with the collector's header.
  t.deepEqual([fault.code, fault.address, fault.offset], ['ERR_BUFFER_OVERFLOW', objects[1] - 16, 40])
  t.regex(fault.report!, /bad trailing pad byte/)
  t.is(log.length, 3)
  t.is(heap.gc.getObjects().length, 0)
  heap.verify()
  t.is(heap.gc.collect(), 0)
})

test('what hooks find inside a callback is thrown by the call outside', (t) => {
  const unraisable: unknown[] = []
  using heap = new Heap({ allocator: 'debug', onUnraisable: (error) => unraisable.push(error) })
  const plain = heap.defineType({ name: 'plain' })
  const victim = plain.alloc()
  poke(victim + 16, Uint8Array.of(0))
  const type = heap.defineType({
    name: 'owner',
    gc: true,
    fields: { held: 'object' },
    clear: (self) => type.set(self, 'held', null),
    finalize: () => heap.refcount(victim),
  })
  const owner = type.alloc()
  type.set(owner, 'held', victim)
  heap.decref(victim)
  const fault = thrown(() => heap.decref(owner))
  t.deepEqual([fault.code, fault.address], ['ERR_BUFFER_OVERFLOW', victim])
  t.deepEqual(unraisable, [])
  heap.verify()
})

test('verify tells of each damaged block once', (t) => {
  using heap = new Heap({ allocator: 'debug' })
  const [first, second, freed] = [some(heap.mem.malloc(50)), some(heap.raw.malloc(5000)), some(heap.obj.malloc(50))]
  heap.obj.free(freed)
  poke(first + 50, Uint8Array.of(1))
  poke(second - 3, Uint8Array.of(1))
  poke(freed, Uint8Array.of(1))
  const faults = [0, 1, 2].map(() => thrown(() => heap.verify()))
  t.deepEqual(faults.map(({ address, code }) => `${code} ${address}`).toSorted(), [
    `ERR_BUFFER_OVERFLOW ${first}`,
    `ERR_BUFFER_UNDERFLOW ${second}`,
    `ERR_WRITE_AFTER_FREE ${freed}`,
  ])
  heap.verify()
  const blocks = Array.from({ length: 1000 }, () => some(heap.obj.malloc(50)))
  t.false(blocks.includes(freed))
})
