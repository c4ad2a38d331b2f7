/** Allocators as values: taken out, called, wrapped, put in, put back. */

import test from 'ava'

import { Heap, MemoryFault, type Address, type Allocator, type DomainName, type Size } from 'obmalloc'

import { poke } from './peer.ts'
import { isWasm, releases, some, transfer } from './tools.ts'

const domains: DomainName[] = ['raw', 'mem', 'obj']

/** Passes everything on, and notes the calls. */
function logging(inner: Allocator, calls: string[], name = ''): Allocator {
  return {
    malloc(size) {
      calls.push(`${name}malloc ${size}`)
      return inner.malloc(size)
    },
    calloc(count, size) {
      calls.push(`${name}calloc ${count} ${size}`)
      return inner.calloc(count, size)
    },
    realloc(address, size) {
      calls.push(`${name}realloc ${address === null ? 'null' : 'block'} ${size}`)
      return inner.realloc(address, size)
    },
    free(address) {
      calls.push(`${name}free${address === null ? ' null' : ''}`)
      inner.free(address)
    },
  }
}

/** Puts a header of 32 bytes before every block. */
function withHeader(inner: Allocator): Allocator {
  const HEADER = 32
  const data = (block: Address | null): Address | null => (block === null ? null : ((block + HEADER) as Address))
  const block = (address: Address | null): Address | null => (address === null ? null : ((address - HEADER) as Address))
  return {
    malloc: (size) => data(inner.malloc(Number(size) + HEADER)),
    calloc: (count, size) => data(inner.calloc(1, Number(count) * Number(size) + HEADER)),
    realloc: (address, size) => data(inner.realloc(block(address), Number(size) + HEADER)),
    free: (address) => inner.free(block(address)),
  }
}

/** Hands out one big block of the heap's raw allocator, piece by piece, and takes nothing back. */
function bump(inner: Allocator, bytes: number): Allocator & { readonly base: Address } {
  const base = some(inner.calloc(1, bytes))
  let used = 0
  const sizes = new Map<Address, number>()
  const malloc = (size: number): Address | null => {
    if (used + size > bytes) return null
    const address = (base + used) as Address
    used += (Math.max(size, 1) + 15) & ~15
    sizes.set(address, size)
    return address
  }
  return {
    base,
    malloc: (size) => malloc(Number(size)),
    calloc: (count, size) => malloc(Number(count) * Number(size)),
    // The engine copies the bytes only if it can see both blocks, the old one and the new one. Here the last block grows in place.
    realloc: (address, size) => {
      if (address === null) return malloc(Number(size))
      if (sizes.get(address)! >= Number(size)) return address
      return null
    },
    free: () => {},
  }
}

test('what is in is always the same object, and mem and obj have the same one', (t) => {
  for (const release of releases) {
    using heap = new Heap({ release })
    const [raw, mem, obj] = domains.map((domain) => heap.getAllocator(domain)) as [Allocator, Allocator, Allocator]
    t.is(mem, obj)
    t.not(raw, obj)
    t.is(heap.getAllocator('raw'), raw)
    const mine = logging(obj, [])
    heap.setAllocator('obj', mine)
    t.is(heap.getAllocator('obj'), mine)
    t.is(heap.getAllocator('mem'), mem)
    heap.setAllocator('obj', obj)
    t.is(heap.getAllocator('obj'), obj)
    heap.setupDebugHooks()
    const hooks = domains.map((domain) => heap.getAllocator(domain)) as [Allocator, Allocator, Allocator]
    t.is(new Set([raw, obj, ...hooks]).size, 5)
    heap.setAllocator('mem', mine)
    heap.setAllocator('mem', hooks[1])
    t.is(heap.getAllocator('mem'), hooks[1])
  }
  using malloc = new Heap({ allocator: 'malloc' })
  t.is(new Set(domains.map((domain) => malloc.getAllocator(domain))).size, 1)
})

test('one that is taken out can be called', (t) => {
  using heap = new Heap()
  for (const domain of domains) {
    const own = heap.getAllocator(domain)
    const before = heap.allocatedBlocks()
    const block = some(own.malloc(100))
    heap[domain].write(block, Uint8Array.of(1, 2, 3))
    const zeroed = some(own.calloc(5, 200))
    t.deepEqual(heap[domain].read(zeroed), new Uint8Array(1000))
    heap.verify()
    const moved = some(own.realloc(block, 3000))
    t.deepEqual([...heap[domain].read(moved, 0, 3)], [1, 2, 3])
    t.is(own.malloc(2n ** 63n - 1n), null)
    t.is(own.calloc(2 ** 40, 2 ** 40), null)
    t.is(own.realloc(moved, 2n ** 63n - 1n), null)
    own.free(null)
    own.free(moved)
    own.free(zeroed)
    for (const address of [moved, zeroed]) {
      t.throws(() => own.free(address), { instanceOf: MemoryFault, code: 'ERR_DOUBLE_FREE' })
      t.throws(() => own.realloc(address, 5), { instanceOf: MemoryFault })
    }
    t.throws(() => own.free(16 as Address), { code: 'ERR_FOREIGN_POINTER' })
    t.throws(() => own.malloc(-1), { code: 'ERR_OUT_OF_RANGE' })
    t.throws(() => own.free('1' as never), { code: 'ERR_INVALID_ARG_TYPE' })
    t.is(heap.allocatedBlocks(), before)
    heap.verify()
  }
})

test('as in C, a block can be freed through the domain or through its allocator', (t) => {
  using heap = new Heap()
  for (const domain of domains) {
    const own = heap.getAllocator(domain)
    own.free(heap[domain].malloc(30))
    const moved = some(own.realloc(heap[domain].malloc(30), 700))
    t.true(heap[domain].usableSize(moved) >= 700)
    heap[domain].free(moved)
    heap[domain].free(own.malloc(30))
    heap[domain].free(heap[domain].realloc(some(own.malloc(30)), 2000))
    t.throws(() => own.free(moved), { code: 'ERR_DOUBLE_FREE' })
    heap.verify()
  }
  const mem = heap.mem.malloc(30)
  t.throws(() => heap.getAllocator('raw').free(mem), { code: 'ERR_WRONG_DOMAIN' })
  t.is(heap.allocatedBlocks(), 1)
})

for (const allocator of ['default', 'debug', 'malloc'] as const) {
  test(`wrapping changes no address, ${allocator}`, (t) => {
    const trail = (heap: Heap): unknown[] => {
      const blocks: Address[] = []
      let state = 1
      const random = (below: number): number => {
        state = (Math.imul(state, 1103515245) + 12345) >>> 0
        return Math.floor((state / 2 ** 32) * below)
      }
      for (let step = 0; step < 3000; step++) {
        const verb = random(5)
        if (verb < 2 || blocks.length < 10) blocks.push(some(heap.obj.malloc(random(600))))
        else if (verb === 2) blocks.push(some(heap.obj.calloc(random(10), random(60))))
        else if (verb === 3) heap.obj.free(blocks.splice(random(blocks.length), 1)[0]!)
        else {
          const index = random(blocks.length)
          blocks[index] = some(heap.obj.realloc(blocks[index]!, random(600)))
        }
      }
      heap.verify()
      const base = heap.arenas()[0]?.address ?? 0
      // The C library places the blocks that pymalloc passes on to raw, so they are left out.
      const inside = blocks.map((block) => block - base).filter((offset) => offset >= 0 && offset < 1 << 20)
      return [inside, heap.allocatedBlocks(), heap.debugMallocStats().split('arena map counts')[0]]
    }
    using plain = new Heap({ allocator })
    using wrapped = new Heap({ allocator })
    const calls: string[] = []
    const own = wrapped.getAllocator('obj')
    wrapped.setAllocator('obj', logging(logging(own, calls, 'inner '), calls))
    const [a, b] = [trail(plain), trail(wrapped)]
    if (allocator !== 'malloc') t.true((a[0] as number[]).length > 100)
    if (allocator !== 'malloc') t.deepEqual(b, a)
    t.true(calls.length > 3000)
    wrapped.setAllocator('obj', own)
    wrapped.verify()
  })
}

test('calls reach a wrapper as they were made', (t) => {
  using heap = new Heap()
  const calls: string[] = []
  heap.setAllocator('mem', logging(heap.getAllocator('mem'), calls))
  const block = heap.mem.realloc(null, 5)
  heap.mem.free(heap.mem.realloc(block, 50))
  heap.mem.free(heap.mem.calloc(3, 4))
  heap.mem.free(null)
  t.deepEqual(calls, ['realloc null 5', 'realloc block 50', 'free', 'calloc 3 4', 'free', 'free null'])
  const own = heap.getAllocator('obj')
  heap.setAllocator('obj', { ...own, free: (address) => t.is(address, null) })
  heap.obj.free(null)
  heap.setAllocator('obj', {
    ...own,
    free: () => {
      throw new Error('no')
    },
  })
  t.throws(() => heap.obj.free(null), { code: 'ERR_CALLBACK_THREW' })
  // In CPython too, debug hooks pass no NULL on.
  heap.setupDebugHooks()
  heap.obj.free(null)
})

test('a size that no number has reaches a wrapper as the largest that there is', (t) => {
  using heap = new Heap()
  const calls: string[] = []
  heap.setAllocator('mem', logging(heap.getAllocator('mem'), calls))
  t.is(heap.mem.malloc(2n ** 63n - 1n), null)
  heap.mem.free(some(heap.mem.calloc(2n ** 63n - 1n, 0)))
  // In WebAssembly a size has 32 bits, and what CPython refuses unasked begins at half of that.
  const most = isWasm ? 2 ** 32 - 1 : 2 ** 53 - 1
  const asked = isWasm ? [] : [`malloc ${most}`]
  t.deepEqual(calls, [...asked, `calloc ${most} 0`, 'free'])
})

test('what pymalloc passes on is seen by whatever is around raw', (t) => {
  for (const allocator of ['default', 'debug'] as const) {
    using heap = new Heap({ allocator })
    const extra = allocator === 'debug' ? 24 : 0
    const calls: string[] = []
    const raw = heap.getAllocator('raw')
    // The first block takes an arena, whose tables come from raw too.
    some(heap.obj.malloc(1))
    heap.setAllocator('raw', logging(raw, calls))
    const block = some(heap.obj.malloc(513))
    const grown = some(heap.mem.realloc(heap.mem.malloc(100), 1000))
    const zero = heap.obj.malloc(0)
    heap.obj.free(block)
    heap.mem.free(heap.mem.realloc(grown, 2000))
    heap.obj.free(zero)
    const zeroByte = extra === 0 ? ['malloc 0'] : []
    const expected = [
      `malloc ${513 + extra}`,
      `malloc ${1000 + extra}`,
      ...zeroByte,
      'free',
      `realloc block ${2000 + extra}`,
      'free',
    ]
    t.deepEqual(calls, extra === 0 ? [...expected, 'free'] : expected, allocator)
    heap.setAllocator('raw', raw)
    heap.verify()
    t.is(heap.allocatedBlocks(), 1)
  }
})

test('blocks with a header of the script are blocks like others', (t) => {
  for (const domain of domains) {
    for (const allocator of ['default', 'debug'] as const) {
      using heap = new Heap({ allocator })
      const own = heap.getAllocator(domain)
      const old = some(heap[domain].malloc(40))
      heap[domain].view(old).fill(9)
      heap.setAllocator(domain, withHeader(own))
      const block = some(heap[domain].malloc(40))
      t.is(heap[domain].usableSize(block), 40)
      heap[domain].view(block).fill(7)
      t.throws(() => heap[domain].free((block + 16) as Address), { code: 'ERR_INTERIOR_POINTER' })
      const moved = some(heap[domain].realloc(block, 900))
      t.deepEqual(heap[domain].read(moved, 0, 40), new Uint8Array(40).fill(7))
      heap.verify()
      heap[domain].free(moved)
      const kept = some(heap[domain].malloc(70))
      heap[domain].view(kept).fill(5)
      // The old allocator is back, but some blocks are still the script's.
      heap.setAllocator(domain, own)
      t.is(heap.getAllocator(domain), own)
      const other = some(heap[domain].malloc(70))
      const grown = some(heap[domain].realloc(kept, 5000))
      t.deepEqual(heap[domain].read(grown, 0, 70), new Uint8Array(70).fill(5))
      heap[domain].free(grown)
      heap[domain].free(other)
      t.deepEqual(heap[domain].read(old, 0, 40), new Uint8Array(40).fill(9))
      heap[domain].free(old)
      heap.verify()
      t.is(heap.allocatedBlocks(), 0)
    }
  }
})

test('a grant is in use for every domain but the one that its allocator is in', (t) => {
  for (const domain of domains) {
    using heap = new Heap()
    const own = heap.getAllocator(domain)
    // The grant may lie where a freed block was.
    heap[domain].free(some(heap[domain].malloc(64)))
    const grant = some(own.malloc(64))
    let given = grant
    heap.setAllocator(domain, { ...logging(own, []), malloc: () => given, free: () => {} })
    const refuses = (used: DomainName): void => {
      for (const call of [
        () => heap[used].free(grant),
        () => heap[used].realloc(grant, 8),
        () => heap[used].usableSize(grant),
        () => heap[used].view(grant),
      ]) {
        t.throws(call, { instanceOf: MemoryFault, code: 'ERR_REENTRANT' }, `${domain} ${used}`)
      }
    }
    domains.filter((used) => heap.getAllocator(used) !== own).forEach(refuses)
    given = (grant + 16) as Address
    const block = some(heap[domain].malloc(16))
    domains.forEach(refuses)
    heap[domain].free(block)
    t.throws(() => heap[domain].free(block), { code: 'ERR_DOUBLE_FREE' })
    own.free(grant)
    t.throws(() => heap[domain].free(grant), { code: 'ERR_DOUBLE_FREE' })
    heap.verify()
  }
})

test('blocks of a script whose buffers live on do not count for those that the heap has given', (t) => {
  for (const domain of ['mem', 'obj'] as const) {
    using heap = new Heap()
    const own = heap.getAllocator(domain)
    const other = some(heap[domain].malloc(64))
    const pieces = bump(own, 256)
    heap.setAllocator(domain, pieces)
    const blocks = Array.from({ length: 10 }, () => some(heap[domain].malloc(16)))
    const buffers = blocks.map((block) => transfer(heap[domain].view(block).buffer))
    t.is(heap.allocatedBlocks(), 2)
    for (const block of blocks) heap[domain].free(block)
    t.is(heap.allocatedBlocks(), 2)
    heap.setAllocator(domain, own)
    buffers.push(transfer(heap[domain].view(other).buffer))
    heap[domain].free(other)
    t.is(heap.allocatedBlocks(), 1)
    t.is(buffers.length, 11)
  }
})

test('a script that hands out pieces of a block', (t) => {
  for (const domain of domains) {
    using heap = new Heap()
    const raw = heap.getAllocator('raw')
    const own = heap.getAllocator(domain)
    const pieces = bump(raw, 1 << 16)
    heap.setAllocator(domain, pieces)
    const blocks = Array.from({ length: 100 }, (_, index) => some(heap[domain].malloc(index * 5)))
    blocks.forEach((block, index) => heap[domain].write(block, new Uint8Array(index * 5).fill(index)))
    t.true(blocks.every((block) => block >= pieces.base && block < pieces.base + (1 << 16)))
    t.throws(() => heap[domain].free((blocks[50]! + 16) as Address), { code: 'ERR_INTERIOR_POINTER' })
    t.throws(() => raw.free(pieces.base), { code: 'ERR_REENTRANT' })
    t.throws(() => raw.realloc(pieces.base, 5), { code: 'ERR_REENTRANT' })
    t.is(heap[domain].malloc(1 << 17), null)
    heap.setAllocator(domain, own)
    heap.verify()
    blocks.forEach((block, index) => t.deepEqual(heap[domain].read(block), new Uint8Array(index * 5).fill(index)))
    for (const block of blocks) heap[domain].free(block)
    heap.verify()
    raw.free(pieces.base)
    t.is(heap.allocatedBlocks(), 0)
  }
})

test('memory of another heap is no answer, and nothing has changed', (t) => {
  using other = new Heap()
  const [raw, obj] = [other.getAllocator('raw'), other.getAllocator('obj')]
  const SIZE = 2 << 20
  const live = some(other.obj.malloc(64))
  const foreign = [
    other.raw.malloc(SIZE),
    other.obj.malloc(SIZE),
    raw.malloc(SIZE),
    obj.malloc(SIZE),
    other.getArenaAllocator().alloc(SIZE),
    live,
    obj.malloc(64),
    other.arenas()[0]!.address,
  ].map(some)
  const type = other.defineType({ name: 'node', gc: true })
  foreign.push(type.alloc())
  for (const allocator of ['default', 'debug', 'malloc'] as const) {
    using heap = new Heap({ allocator })
    for (const domain of domains) {
      const own = heap.getAllocator(domain)
      const block = some(heap[domain].malloc(40))
      heap[domain].write(block, new Uint8Array(40).fill(6))
      const before = [heap.allocatedBlocks(), heap.debugMallocStats()]
      const calls = [
        () => heap[domain].malloc(40),
        () => heap[domain].calloc(4, 10),
        () => heap[domain].realloc(null, 40),
        () => heap[domain].realloc(block, 400),
        () => heap.run(Uint32Array.of(0, domains.indexOf(domain), 0, 40)),
      ]
      for (const answer of foreign) {
        const give = (): Address => answer
        heap.setAllocator(domain, { malloc: give, calloc: give, realloc: give, free: (address) => own.free(address) })
        for (const call of calls) t.throws(call, { code: 'ERR_CALLBACK_RESULT' })
        heap.setAllocator(domain, own)
        t.deepEqual([heap.allocatedBlocks(), heap.debugMallocStats()], before)
        t.deepEqual(heap[domain].read(block, 0, 40), new Uint8Array(40).fill(6))
        heap.verify()
      }
      for (const calls of [other[domain], other.getAllocator(domain)]) {
        heap.setAllocator(domain, logging(calls, []))
        const held = other.allocatedBlocks()
        t.throws(() => heap[domain].malloc(40), { code: 'ERR_CALLBACK_RESULT' })
        t.true(other.allocatedBlocks() <= held + 1)
        t.throws(() => heap[domain].realloc(block, 400), { code: 'ERR_CALLBACK_THREW' })
        heap.setAllocator(domain, own)
      }
      heap[domain].free(block)
    }
    if (allocator === 'malloc') continue
    using empty = new Heap({ allocator })
    for (const answer of foreign) {
      empty.setArenaAllocator({ alloc: () => answer, free: () => {} })
      t.throws(() => empty.obj.malloc(64), { code: 'ERR_CALLBACK_RESULT' })
    }
    empty.setArenaAllocator(other.getArenaAllocator())
    t.throws(() => empty.obj.malloc(64), { code: 'ERR_CALLBACK_RESULT' })
    t.deepEqual([empty.arenas(), empty.allocatedBlocks()], [[], 0])
    empty.verify()
  }
  other.verify()
  t.is(other.obj.usableSize(live), 64)
})

test('a heap goes as it is: with blocks lent, granted and passed on', (t) => {
  for (const allocator of ['default', 'debug', 'malloc'] as const) {
    for (const domain of domains) {
      const heap = new Heap({ allocator })
      const [raw, own] = [heap.getAllocator('raw'), heap.getAllocator(domain)]
      own.malloc(10)
      own.malloc(10_000)
      heap[domain].malloc(20)
      heap.setAllocator('raw', logging(raw, []))
      heap.obj.malloc(5000)
      heap.setAllocator(domain, withHeader(own))
      heap[domain].malloc(30)
      heap[domain].malloc(30_000)
      heap.setAllocator(domain, bump(raw, 4096))
      heap[domain].malloc(40)
      heap.setAllocator(domain, own)
      heap.obj.malloc(6000)
      heap.verify()
      heap.close()
      t.throws(() => raw.malloc(1), { code: 'ERR_HEAP_CLOSED' })
    }
  }
})

test('arenas from what the raw allocator gave', (t) => {
  using heap = new Heap()
  const raw = heap.getAllocator('raw')
  heap.setArenaAllocator({ alloc: (size) => raw.malloc(size), free: (address) => raw.free(address) })
  const blocks = Array.from({ length: 3000 }, () => some(heap.obj.malloc(512)))
  t.true(heap.arenas().length > 1)
  t.throws(() => raw.free(heap.arenas()[0]!.address), { code: 'ERR_REENTRANT' })
  for (const block of blocks) heap.obj.free(block)
  heap.verify()
})

test('what pymalloc passes on for a script can be read and written to, whatever wraps raw', (t) => {
  using heap = new Heap()
  heap.setAllocator('raw', { ...heap.getAllocator('raw') })
  const own = heap.getAllocator('obj')
  const block = some(own.malloc(1000))
  heap.obj.write(block, Uint8Array.of(1, 2, 3))
  t.deepEqual([...heap.obj.read(block).subarray(0, 3)], [1, 2, 3])
  t.is(heap.obj.read(block).length, 1000)
  own.free(block)
  t.throws(() => heap.obj.read(block), { instanceOf: MemoryFault })
  heap.verify()
})

test('hooks over a wrapper, a wrapper over hooks, and the way back', (t) => {
  using heap = new Heap()
  const calls: string[] = []
  const own = heap.getAllocator('obj')
  const oldest = some(heap.obj.malloc(10))
  heap.setAllocator('obj', logging(own, calls, 'below '))
  const older = some(heap.obj.malloc(10))
  heap.setupDebugHooks()
  const hook = heap.getAllocator('obj')
  heap.setAllocator('obj', logging(hook, calls, 'above '))
  const block = some(heap.obj.malloc(10))
  t.deepEqual(calls, ['below malloc 10', 'above malloc 10', 'below malloc 34'])
  heap.verify()
  heap.setupDebugHooks()
  const outer = some(heap.obj.malloc(10))
  t.deepEqual(calls.slice(3), ['above malloc 34', 'below malloc 58'])
  heap.verify()
  t.not(heap.getAllocator('obj'), hook)
  heap.setAllocator('obj', own)
  const plain = some(heap.obj.malloc(10))
  for (const address of [oldest, older, block, outer, plain]) {
    heap.obj.write(address, new Uint8Array(10).fill(1))
    const moved = some(heap.obj.realloc(address, 300))
    t.deepEqual(heap.obj.read(moved, 0, 10), new Uint8Array(10).fill(1))
    heap.obj.free(moved)
    heap.verify()
  }
  t.is(heap.allocatedBlocks(), 0)
})

test('damage of guard bytes is told to every caller of the hook', (t) => {
  using heap = new Heap({ allocator: 'debug' })
  const hook = heap.getAllocator('obj')
  const block = some(hook.malloc(16))
  heap.verify()
  hook.free(block)
  t.throws(() => hook.free(block), { code: 'ERR_DOUBLE_FREE' })
  heap.verify()
})

test('a realloc that fails leaves the block, whatever the script did to it', (t) => {
  for (const domain of domains) {
    for (const size of [40, 5000]) {
      using heap = new Heap()
      const own = heap.getAllocator(domain)
      const base = logging(own, [])
      const failing: Array<(address: Address, size: number) => unknown> = [
        () => null,
        () => 12345,
        () => {
          throw new Error('no')
        },
        (address) => void own.free(address),
        (address) => (own.free(address), address),
        (address) => (own.realloc(address, 9999), null),
        (address) => (own.realloc(address, 41), own.free(address), address),
        (address) => (own.realloc(address, 38), null),
        (address) => (own.free(address), own.malloc(3)),
        (address) => address + 16,
      ]
      for (const fail of failing) {
        for (const lent of [false, true]) {
          heap.setAllocator(domain, lent ? base : own)
          const block = some(heap[domain].malloc(size))
          heap[domain].write(block, new Uint8Array(size).fill(6))
          heap.setAllocator(domain, { ...base, realloc: (address, to) => fail(address!, Number(to)) as Address })
          let left = block
          try {
            t.is(heap[domain].realloc(block, size + 5000), null)
          } catch (error) {
            t.regex((error as { code: string }).code, /ERR_CALLBACK_(RESULT|THREW)/, String(fail))
            left = (error as { address?: Address }).address ?? block
          }
          heap.verify()
          t.deepEqual(heap[domain].read(left, 0, size), new Uint8Array(size).fill(6), String(fail))
          heap.setAllocator(domain, base)
          const moved = some(heap[domain].realloc(left, size * 2))
          t.deepEqual(heap[domain].read(moved, 0, size), new Uint8Array(size).fill(6))
          heap[domain].free(moved)
          heap.verify()
        }
      }
    }
  }
})

test('a realloc whose old block a script could not give back in peace has moved the block', (t) => {
  for (const shift of [0, 32]) {
    using heap = new Heap()
    const [raw, own] = [heap.getAllocator('raw'), heap.getAllocator('obj')]
    const malloc = (size: Size): Address => (some(own.malloc(Number(size) + shift)) + shift) as Address
    const free = (address: Address | null): void => own.free((address! - shift) as Address)
    heap.setAllocator('obj', {
      malloc,
      calloc: own.calloc,
      realloc: (address, size) => {
        const moved = malloc(size)
        free(address)
        return moved
      },
      free,
    })
    const block = some(heap.obj.malloc(1000))
    const boom = new Error('no')
    let fails = true
    heap.setAllocator('raw', {
      ...raw,
      free: (address) => {
        raw.free(address)
        if (fails) throw boom
      },
    })
    const told = t.throws(() => heap.obj.realloc(block, 2000), { instanceOf: MemoryFault, code: 'ERR_CALLBACK_THREW' })
    fails = false
    t.is(told?.cause, boom)
    const moved = some(told?.address ?? null)
    t.not(moved, block)
    t.is(heap.obj.usableSize(moved), 2000)
    t.throws(() => heap.obj.read(block), { instanceOf: MemoryFault })
    heap.obj.free(moved)
    t.is(heap.allocatedBlocks(), 0)
    heap.verify()
  }
})

test('a realloc to nothing that fails late leaves a block of its own, behind however large a header', (t) => {
  using heap = new Heap()
  const HEADER = 48
  const own = heap.getAllocator('obj')
  let moved: Address | null = null
  heap.setAllocator('obj', {
    ...own,
    malloc: (size) => (some(own.malloc(Number(size) + HEADER)) + HEADER) as Address,
    realloc: (address, size) => {
      moved = own.realloc((address! - HEADER) as Address, Number(size) + HEADER)
      return null
    },
  })
  const block = some(heap.obj.malloc(100))
  // Where the block is to move to, with a neighbour.
  const [place, next] = [some(heap.mem.malloc(HEADER)), some(heap.mem.malloc(HEADER))]
  t.is(next - place, HEADER)
  heap.mem.free(place)
  const told = t.throws(() => heap.obj.realloc(block, 0), { instanceOf: MemoryFault, code: 'ERR_CALLBACK_RESULT' })
  t.is(Number(told?.address), some(moved) + HEADER)
  t.true(told?.address !== next)
  t.is(heap.mem.usableSize(next), HEADER)
  heap.verify()
})

test('a calloc of a single byte is zeroed too', (t) => {
  using heap = new Heap()
  const own = heap.getAllocator('obj')
  const dirty = some(own.malloc(1))
  heap.obj.write(dirty, Uint8Array.of(1))
  heap.setAllocator('obj', { ...own, calloc: () => dirty })
  t.throws(() => heap.obj.calloc(1, 1), { code: 'ERR_CALLBACK_RESULT' })
  heap.obj.free(heap.obj.calloc(1, 0))
  heap.verify()
})

test('requests fail on purpose, as with _testcapi.set_nomemory', (t) => {
  for (const allocator of ['default', 'debug', 'malloc'] as const) {
    using heap = new Heap({ allocator })
    const asked = (count: number, size: number): string =>
      Array.from({ length: count }, () => (heap.obj.malloc(size) === null ? '-' : '+')).join('')
    t.is(asked(1, 1) + asked(1, 1000), '++')
    heap.setNomemory(2)
    t.is(asked(6, 10), '++----')
    heap.setNomemory(2, 4)
    t.is(asked(6, 10), '++--++')
    heap.setNomemory(0, 0)
    t.is(asked(3, 10), '---')
    // A large request counts twice: pymalloc gets it, and passes it on to raw. Without pymalloc it counts once.
    heap.setNomemory(3, 4)
    t.is(asked(4, 1000), allocator === 'malloc' ? '+++-' : '+-++')
    const block = heap.obj.malloc(5)
    heap.setNomemory(0)
    t.is(heap.obj.realloc(block, 300), null)
    heap.obj.free(block)
    const type = heap.defineType({ name: 'node', gc: true })
    t.throws(() => type.alloc(), { code: 'ERR_NO_MEMORY' })
    heap.removeNomemory()
    heap.removeNomemory()
    t.is(asked(3, 10), '+++')
    type.alloc()
    for (const bad of [-1, 1.5, NaN, '1', null]) t.throws(() => heap.setNomemory(bad as number))
    heap.verify()
  }
})

test('wrong allocators and domains are refused with what was expected', (t) => {
  using heap = new Heap()
  const own = heap.getAllocator('obj')
  for (const bad of [undefined, null, 1, {}, { ...own, free: undefined }, { ...own, malloc: class {} }, heap]) {
    t.throws(() => heap.setAllocator('obj', bad as Allocator), { code: 'ERR_INVALID_ARG_TYPE' })
  }
  t.throws(() => heap.setAllocator('object' as DomainName, own), { code: 'ERR_OUT_OF_RANGE', message: /'raw', 'mem', 'obj'/ })
  t.throws(() => heap.getAllocator(2 as never), { code: 'ERR_INVALID_ARG_TYPE' })
  t.is(heap.getAllocator('obj'), own)
  heap.close()
  t.throws(() => own.malloc(1), { code: 'ERR_HEAP_CLOSED' })
  t.throws(() => heap.getAllocator('obj'), { code: 'ERR_HEAP_CLOSED' })
  t.throws(() => heap.setAllocator('obj', logging(own, [])), { code: 'ERR_HEAP_CLOSED' })
  t.throws(() => heap.setNomemory(1), { code: 'ERR_HEAP_CLOSED' })
})

test('an allocator that is put in while requests fail on purpose leaves no block behind', (t) => {
  for (const domain of domains) {
    using heap = new Heap()
    const own = heap.getAllocator(domain)
    const blocks = [some(heap[domain].malloc(40))]
    heap.setNomemory(1000)
    blocks.push(some(heap[domain].malloc(40)))
    heap.setAllocator(domain, withHeader(heap.getAllocator(domain)))
    blocks.push(some(heap[domain].malloc(40)))
    heap.setupDebugHooks()
    blocks.push(some(heap[domain].malloc(40)))
    heap.removeNomemory()
    t.is(heap.getAllocator(domain), own)
    for (const block of blocks) {
      heap[domain].write(block, new Uint8Array(40).fill(1))
      const moved = some(heap[domain].realloc(block, 3000))
      t.deepEqual(heap[domain].read(moved, 0, 40), new Uint8Array(40).fill(1))
      heap[domain].free(moved)
      heap.verify()
    }
    t.is(heap.allocatedBlocks(), 0)
  }
})

test("when the script below one of the heap's own allocators fails late, the block is where it is", (t) => {
  using heap = new Heap()
  const [raw, obj] = [heap.getAllocator('raw'), heap.getAllocator('obj')]
  const late = (address: Address, size: number): never => {
    raw.realloc(address, size)
    throw new Error('late')
  }
  const block = some(obj.malloc(5000))
  heap.obj.write(block, Uint8Array.of(1, 2, 3))
  heap.setAllocator('raw', { ...logging(raw, []), realloc: (address, size) => late(address!, Number(size)) })
  const error = t.throws(() => obj.realloc(block, 9_000_000), { instanceOf: MemoryFault, code: 'ERR_CALLBACK_THREW' })
  const left = error!.address!
  t.deepEqual([...heap.obj.read(left, 0, 3)], [1, 2, 3])
  t.is(heap.obj.read(left).length, 9_000_000)
  obj.free(left)
  t.throws(() => obj.free(left), { code: 'ERR_DOUBLE_FREE' })
  heap.verify()
  t.is(heap.allocatedBlocks(), 0)
})

test('a request that gets memory in spite of a failure on the way leaves nothing behind', (t) => {
  using heap = new Heap()
  const [raw, obj] = [heap.getAllocator('raw'), heap.getAllocator('obj')]
  let out = 0
  heap.setAllocator('raw', {
    malloc: (size) => (out++, raw.malloc(size)),
    calloc: (count, size) => (out++, raw.calloc(count, size)),
    realloc: (address, size) => raw.realloc(address, size),
    free: (address) => (out--, raw.free(address)),
  })
  heap.setArenaAllocator({
    alloc: () => {
      throw new Error('no')
    },
    free: () => {},
  })
  for (const request of [() => obj.malloc(50), () => obj.calloc(5, 10), () => obj.realloc(null, 50)]) {
    const before = out
    t.throws(request, { code: 'ERR_CALLBACK_THREW' })
    t.is(heap.allocatedBlocks(), 0)
    t.is(out, before)
  }
  heap.verify()
})

test("an allocator that is put back under debug hooks is the domain's as it was before", (t) => {
  for (const release of releases) {
    using heap = new Heap({ release })
    for (const domain of domains) {
      const own = heap.getAllocator(domain)
      // Some addresses have been blocks before.
      heap[domain].free(heap[domain].malloc(64))
      heap.setupDebugHooks()
      heap.setAllocator(domain, own)
      t.is(heap.getAllocator(domain), own)
      for (const size of [64, 5000]) {
        heap[domain].free(some(own.malloc(size)))
        own.free(some(heap[domain].malloc(size)))
        const moved = some(heap[domain].realloc(some(own.malloc(size)), 2 * size))
        own.free(own.realloc(moved, size))
      }
    }
    heap.verify()
  }
})

test('blocks are counted right where hooks are around an allocator that was put back', (t) => {
  for (const release of releases) {
    for (const domain of ['mem', 'obj'] as const) {
      using heap = new Heap({ release })
      const own = heap.getAllocator(domain)
      heap.setupDebugHooks()
      const old = [20, 1000].map((size) => some(heap[domain].malloc(size)))
      heap.setAllocator(domain, own)
      const between = [20, 1000].map((size) => some(heap[domain].malloc(size)))
      heap.setupDebugHooks()
      const before = heap.allocatedBlocks()
      for (let round = 0; round < 5; round++) {
        heap[domain].free(some(heap[domain].malloc(1000)))
        heap[domain].free(some(heap[domain].realloc(some(heap[domain].malloc(20)), 1000)))
        t.is(heap.allocatedBlocks(), before)
      }
      for (const block of [...old, ...between]) heap[domain].free(block)
      t.is(heap.allocatedBlocks(), 0)
      heap.verify()
    }
  }
})

test('hooks whose first set-up found no memory count right later', (t) => {
  using heap = new Heap()
  heap.setNomemory(100)
  heap.setupDebugHooks()
  heap.removeNomemory()
  heap.setupDebugHooks()
  for (const domain of domains) heap[domain].free(some(heap[domain].malloc(1000)))
  t.is(heap.allocatedBlocks(), 0)
})

test('a block that pymalloc has from a script is as long as the script was asked for, whatever lies before it', (t) => {
  using heap = new Heap()
  const [raw, obj] = [heap.getAllocator('raw'), heap.getAllocator('obj')]
  const HEADER = 32
  heap.setAllocator('raw', {
    malloc: (size) => (some(raw.malloc(Number(size) + HEADER)) + HEADER) as Address,
    calloc: (count, size) => (some(raw.calloc(1, Number(count) * Number(size) + HEADER)) + HEADER) as Address,
    realloc: () => null,
    free: (address) => raw.free(address === null ? null : ((address - HEADER) as Address)),
  })
  const block = some(heap.obj.malloc(5000))
  // To the C library the word before a block says how long it is. This one is the script's.
  poke((block - 8) as Address, Uint8Array.of(2, 0, 1, 0, 0, 0, 0, 0))
  let beyond: Address | null = null
  heap.setAllocator('obj', { ...obj, realloc: () => beyond })
  beyond = (block + 16384) as Address
  t.throws(() => heap.obj.realloc(block, 16), { instanceOf: MemoryFault, code: 'ERR_CALLBACK_RESULT' })
  heap.obj.free(block)
  heap.verify()
})

test('an object that is resized stays one, whatever bytes a script has moved its block to', (t) => {
  for (const domain of domains) {
    using heap = new Heap()
    const type = heap.defineType({ name: 'list', gc: true, fields: { a: 'object', n: 'u32' }, items: 'object' })
    const inner = heap.getAllocator(domain)
    heap.setAllocator(domain, {
      ...inner,
      // This realloc does not copy the bytes.
      realloc(address, size) {
        const block = inner.malloc(size)
        inner.free(address)
        return block
      },
    })
    for (const count of [2, 200]) {
      const [kept, other] = [type.alloc(0), type.alloc(0)]
      let object = type.alloc(count)
      heap.gc.untrack(object)
      type.set(object, 'a', kept)
      type.set(object, 'n', 7)
      type.set(object, count - 1, other)
      for (const next of [count + 1, 1000, count]) {
        object = heap.gc.resize(object, next)
        t.is(heap.typeOf(object), type)
        t.deepEqual([type.nitems(object), type.get(object, 'a'), type.get(object, 'n')], [next, kept, 7])
        t.deepEqual([type.get(object, 0), type.get(object, count - 1)], [null, other])
        heap.verify()
      }
      for (const each of [kept, other, object]) heap.decref(each)
    }
    t.is(heap.gc.getObjects().length, 0)
    heap.verify()
  }
})

test('allocators that are put in while another one is put in are not taken for it', (t) => {
  const heap = new Heap({ release: '3.13' })
  const own = heap.getAllocator('obj')
  const calls: string[] = []
  const [first, second] = [logging(own, calls, 'first '), logging(own, calls, 'second ')]
  // A collection that is due runs at the beginning of the call that puts the first one in.
  const finalize = () => heap.setAllocator('mem', second)
  const type = heap.defineType({ name: 'node', gc: true, fields: { next: 'object' }, finalize })
  const object = type.alloc()
  type.set(object, 'next', object)
  heap.decref(object)
  heap.gc.setThreshold(1)
  type.alloc()
  heap.setAllocator('obj', first)
  t.is(heap.getAllocator('obj'), first)
  t.is(heap.getAllocator('mem'), second)
  calls.length = 0
  heap.obj.free(heap.obj.malloc(11))
  heap.mem.free(heap.mem.malloc(22))
  t.deepEqual(calls, ['first malloc 11', 'first free', 'second malloc 22', 'second free'])
  heap.verify()
  heap.close()
})
