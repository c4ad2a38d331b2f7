/** The misuse catalogue, sections A to G: what each row does, or where else it is played. */

import assert from 'node:assert/strict'

import { Heap, MemoryFault, type Address, type Domain, type ObjectType } from 'obmalloc'

import { peek, poke } from '../peer.ts'
import { exhaustion } from './exhaustion.ts'
import { objects } from './objects.ts'
import { endings } from './process.ts'
import { transfer } from '../tools.ts'
import { Scene, at, domains, notSize, some } from './scene.ts'

export interface Row {
  number: number
  what: string
  play?: (scene: Scene) => void
  /** The test that plays it, or the text that says what is not supported: file, and title or text. */
  elsewhere?: readonly [file: string, title: string]
}

const MAX = 2n ** 63n - 1n
const KiB = 1024

/** Every way in that takes a size, by name. */
function sizeTakers({ heap }: Scene): Array<[string, (size: number) => unknown]> {
  return domains.flatMap((name): Array<[string, (size: number) => unknown]> => {
    const domain = heap[name]
    const block = some(domain.malloc(24))
    return [
      [`${name}.malloc`, (size) => domain.malloc(size)],
      [`${name}.calloc count`, (size) => domain.calloc(size, 1)],
      [`${name}.calloc size`, (size) => domain.calloc(1, size)],
      [`${name}.realloc`, (size) => domain.realloc(block, size)],
      [`${name}.realloc null`, (size) => domain.realloc(null, size)],
    ]
  })
}

function refuseSizes(scene: Scene, code: string, values: unknown[]): void {
  for (const [, take] of sizeTakers(scene)) {
    for (const value of values) scene.throws(() => take(notSize(value)), code)
  }
}

/** Every way in that takes an address. */
function addressTakers(domain: Domain): Array<(address: Address) => unknown> {
  return [
    (address) => domain.free(address),
    (address) => domain.realloc(address, 40),
    (address) => domain.usableSize(address),
    (address) => domain.view(address),
    (address) => domain.read(address),
    (address) => domain.write(address, new Uint8Array(1)),
    (address) => domain.getUint32(address),
    (address) => domain.setFloat64(address, 1),
    (address) => domain.read(address, 0, 1),
  ]
}

function emptyBlock(domain: Domain, block: Address): void {
  assert.equal(domain.usableSize(block), 0)
  assert.equal(domain.view(block).length, 0)
  assert.equal(domain.view(block)[0], undefined)
  for (const access of [() => domain.read(block, 0, 1), () => domain.write(block, new Uint8Array(1))]) {
    assert.throws(access, { name: 'RangeError', code: 'ERR_OUT_OF_RANGE' })
  }
}

function pair(first: Address | null, second: Address | null): [Address, Address] {
  assert.notEqual(first, second)
  return [some(first), some(second)]
}

const filled = (size: number): Uint8Array => Uint8Array.from({ length: size }, (_, index) => (index * 7 + 3) & 255)

/** A domain whose blocks of that size are small, and one where they are not. */
const wrongPairs = [
  ['mem', 'obj', 64],
  ['obj', 'mem', 64],
  ['raw', 'obj', 64],
  ['raw', 'mem', 64],
  ['obj', 'raw', 64],
  ['mem', 'raw', 64],
  ['obj', 'raw', 4000],
  ['obj', 'mem', 4000],
  ['mem', 'obj', 4000],
  ['mem', 'raw', 4000],
  ['raw', 'obj', 4000],
] as const

function wrongDomains(
  scene: Scene,
  misuse: (domain: Domain, block: Address) => unknown,
  pairs: ReadonlyArray<(typeof wrongPairs)[number]>,
): void {
  for (const [allocated, used, size] of pairs) {
    const block = some(scene.heap[allocated].malloc(size))
    const bytes = filled(size)
    scene.heap[allocated].write(block, bytes)
    scene.throws(() => misuse(scene.heap[used], block), {
      code: 'ERR_WRONG_DOMAIN',
      allocated,
      used,
      domain: used,
      address: block,
    })
    assert.deepEqual(scene.heap[allocated].read(block, 0, size), bytes)
    scene.heap[allocated].free(block)
  }
}

/** Under debug hooks, lets a native peer damage blocks; says where, and what that is called. */
function peered(scene: Scene, damage: (block: Address, size: number) => [code: string, offset: number], far = false): void {
  const { heap } = scene
  heap.setupDebugHooks()
  for (const name of domains) {
    const domain = heap[name]
    // Even a write far away stays within pymalloc's block. Beside its own blocks, the C library keeps data that a write would destroy.
    for (const size of far ? (name === 'raw' ? [] : [9, 57, 458]) : [0, 1, 16, 100, 470, 5000]) {
      const block = some(domain.malloc(size))
      const bytes = filled(size)
      domain.write(block, bytes)
      const guards = peek(block - 16, size + 16 + (far ? 20 : 8))
      const [code, offset] = damage(block, size)
      scene.throws(() => domain.free(block), { code, offset, address: block })
      scene.throws(() => domain.realloc(block, 7), { code, offset, address: block })
      assert.deepEqual(domain.read(block), bytes)
      const others = Array.from({ length: 100 }, () => some(domain.malloc(size)))
      assert.ok(!others.includes(block))
      for (const other of others) domain.free(other)
      poke(block - 16, guards)
      domain.free(block)
    }
  }
}

const blocks: Row[] = [
  {
    number: 1,
    what: 'malloc(0)',
    play: ({ heap }) => {
      for (const name of domains) {
        const [a, b] = pair(heap[name].malloc(0), heap[name].malloc(0))
        emptyBlock(heap[name], a)
        heap[name].free(a)
        heap[name].free(b)
      }
    },
  },
  {
    number: 2,
    what: 'calloc(0, n), calloc(n, 0)',
    play: ({ heap }) => {
      for (const name of domains) {
        const [a, b] = pair(heap[name].calloc(0, 16), heap[name].calloc(16, 0))
        emptyBlock(heap[name], a)
        emptyBlock(heap[name], b)
        heap[name].free(a)
        heap[name].free(b)
      }
    },
  },
  { number: 3, what: 'negative sizes', play: (scene) => refuseSizes(scene, 'ERR_OUT_OF_RANGE', [-1, -0.5, -(2 ** 40)]) },
  {
    number: 4,
    what: '-0',
    play: ({ heap }) => {
      const block = some(heap.obj.malloc(-0))
      assert.equal(heap.obj.usableSize(block), 0)
      heap.obj.free(block)
    },
  },
  { number: 5, what: 'NaN', play: (scene) => refuseSizes(scene, 'ERR_OUT_OF_RANGE', [Number.NaN]) },
  { number: 6, what: 'infinities', play: (scene) => refuseSizes(scene, 'ERR_OUT_OF_RANGE', [Infinity, -Infinity]) },
  { number: 7, what: 'fractions', play: (scene) => refuseSizes(scene, 'ERR_OUT_OF_RANGE', [1.5, 0.1, 1e-300]) },
  {
    number: 8,
    what: '2**32 and a little more is that size',
    play: (scene) => {
      const heap = new Heap({ memoryLimit: 64 * KiB * KiB })
      for (const size of [2 ** 32, 2 ** 32 + 5, 2 ** 45]) {
        for (const name of domains) {
          assert.equal(heap[name].malloc(size), null)
          assert.equal(heap[name].calloc(size, 1), null)
        }
      }
      heap.close()
      const block = scene.heap.raw.malloc(2 ** 32 + 5)
      if (block !== null) {
        assert.equal(scene.heap.raw.usableSize(block), 2 ** 32 + 5)
        scene.heap.raw.free(block)
      }
    },
  },
  {
    number: 9,
    what: 'numbers above 2**53',
    play: (scene) => refuseSizes(scene, 'ERR_OUT_OF_RANGE', [2 ** 53, 2 ** 60, 2 ** 64, 1e300]),
  },
  {
    number: 10,
    what: 'BigInt sizes',
    play: ({ heap }) => {
      for (const name of domains) {
        const block = some(heap[name].malloc(100n))
        assert.ok(heap[name].usableSize(block) >= 100)
        assert.equal(heap[name].read(block, 10n, 5n).length, 5)
        const grown = some(heap[name].realloc(block, 1000n))
        heap[name].free(grown)
        heap[name].free(some(heap[name].calloc(3n, 0n)))
      }
    },
  },
  {
    number: 11,
    what: 'BigInts that are no size',
    play: (scene) =>
      refuseSizes(scene, 'ERR_OUT_OF_RANGE', [
        -1n,
        2n ** 63n,
        2n ** 64n - 1n,
        2n ** 64n,
        2n ** 64n + 64n,
        -(2n ** 64n),
        2n ** 200n,
      ]),
  },
  {
    number: 12,
    what: 'what is no number',
    play: (scene) => {
      let called = 0
      const convertible = { valueOf: () => ++called, toString: () => String(++called), [Symbol.toPrimitive]: () => ++called }
      const revoked = Proxy.revocable({}, {})
      revoked.revoke()
      const values = ['5', '', null, undefined, {}, true, Symbol('five'), [5], convertible, () => 5, new Number(5), revoked.proxy]
      refuseSizes(scene, 'ERR_INVALID_ARG_TYPE', values)
      assert.equal(called, 0, 'valueOf was called')
    },
  },
  {
    number: 13,
    what: 'PY_SSIZE_T_MAX',
    play: (scene) => {
      for (const [name, take] of sizeTakers(scene)) assert.equal(take(notSize(MAX)), null, name)
    },
  },
  {
    number: 14,
    what: 'PY_SSIZE_T_MAX + 1 and SIZE_MAX, which only a product can be',
    play: ({ heap }) => {
      for (const name of domains) {
        assert.equal(heap[name].calloc(2n ** 62n, 2), null)
        assert.equal(heap[name].calloc(2n ** 63n - 1n, 2), null)
      }
    },
  },
  {
    number: 15,
    what: 'a size that a header would carry over the end',
    play: ({ heap }) => {
      const hooked = new Heap({ allocator: 'debug' })
      for (const each of [heap, hooked]) {
        const type = each.defineType({ name: 'bytes', gc: true, items: 'byte', managedDict: true })
        for (let less = 0n; less <= 64n; less++) {
          for (const name of domains) {
            const block = each[name].malloc(8)
            assert.equal(each[name].malloc(MAX - less), null)
            assert.equal(each[name].calloc(1, MAX - less), null)
            assert.equal(each[name].realloc(block, MAX - less), null)
            each[name].free(block)
          }
          assert.throws(() => type.alloc(MAX - less), { code: 'ERR_NO_MEMORY' })
        }
        each.verify()
      }
      hooked.close()
    },
  },
  {
    number: 16,
    what: 'calloc whose product is too much',
    play: ({ heap }) => {
      for (const name of domains) {
        assert.equal(heap[name].calloc(2 ** 33, 2 ** 33), null)
        assert.equal(heap[name].calloc(MAX, MAX), null)
        const block = some(heap[name].calloc(MAX, 0))
        emptyBlock(heap[name], block)
        heap[name].free(block)
      }
    },
  },
  {
    number: 17,
    what: 'overflow in GC_NewVar and NewVar',
    play: (scene) => {
      for (const gc of [false, true]) {
        for (const items of ['object', 'byte'] as const) {
          const type = scene.heap.defineType({ name: 'var', gc, items, fields: { a: 'u8' } })
          const width = BigInt(type.itemsize)
          for (const nitems of [MAX, MAX / width, MAX / width - 1n, (MAX - BigInt(type.basicsize)) / width + 1n]) {
            scene.throws(() => type.newVar(nitems), { code: 'ERR_NO_MEMORY', name: 'MemoryError' })
            scene.throws(() => type.alloc(nitems), { code: 'ERR_NO_MEMORY', name: 'MemoryError' })
          }
          const object = type.newVar(3)
          if (gc) scene.throws(() => scene.heap.gc.resize(object, MAX / width), 'ERR_NO_MEMORY')
          scene.heap.decref(object)
        }
      }
    },
  },
  {
    number: 18,
    what: 'every size to 600, and around pages, pools, arenas and the threshold',
    play: ({ heap }) => {
      const around = [4 * KiB, 16 * KiB, KiB * KiB, 512].flatMap((size) =>
        Array.from({ length: 33 }, (_, index) => size - 16 + index),
      )
      for (const size of [...Array(601).keys(), ...around]) {
        for (const name of domains) {
          const block = some(heap[name].malloc(size))
          const usable = heap[name].usableSize(block)
          assert.equal(block % 16, 0)
          assert.equal(usable, name !== 'raw' && size > 0 && size <= 512 ? Math.ceil(size / 16) * 16 : size)
          heap[name].view(block).fill(255)
          heap[name].free(block)
        }
      }
    },
  },
  {
    number: 19,
    what: 'missing and further arguments',
    play: (scene) => {
      for (const name of domains) {
        const domain = scene.heap[name]
        const call = (method: keyof Domain, ...values: unknown[]) =>
          (domain[method] as unknown as (...all: unknown[]) => unknown).apply(domain, values)
        for (const [method, ...values] of [
          ['malloc'],
          ['calloc'],
          ['calloc', 1],
          ['realloc'],
          ['realloc', null],
          ['free'],
          ['usableSize'],
          ['view'],
          ['read'],
          ['write'],
        ] as Array<[keyof Domain, ...unknown[]]>) {
          scene.throws(() => call(method, ...values), 'ERR_INVALID_ARG_TYPE')
        }
        call('free', call('malloc', 8, 'and', 'more'), 'and more')
      }
    },
  },
  {
    number: 20,
    what: 'options out of their set',
    play: (scene) => {
      const make = (options: unknown) => () => new Heap(options as never)
      for (const options of [
        { release: '2.7' },
        { release: '' },
        { release: '3.14.0.0.0.0.0.0.0.0' },
        { allocator: 'mimalloc' },
        { allocator: '' },
        { geometry: { arenaSize: 1000 } },
        { geometry: { arenaSize: 128 * KiB * KiB } },
        { geometry: { poolSize: 1024 } },
        { geometry: { arenaSize: 64 * KiB, poolSize: 64 * KiB } },
        { geometry: { alignment: 32 } },
        { geometry: { smallRequestThreshold: 0 } },
        { geometry: { smallRequestThreshold: 16 * KiB } },
        { geometry: { arenaSize: Number.NaN } },
        { memoryLimit: -1 },
        { memoryLimit: 1.5 },
        { quarantine: -1 },
        { trimAbove: -1 },
        { trimAbove: 0.5 },
      ]) {
        scene.throws(make(options), 'ERR_OUT_OF_RANGE')
      }
      for (const options of [
        null,
        5,
        'x',
        { release: 3.14 },
        { release: null },
        { allocator: 5 },
        { geometry: 5 },
        { geometry: { poolSize: '4096' } },
        { memoryLimit: '1' },
        { quarantine: '1' },
        { trimAbove: '1' },
        { trimAbove: null },
      ]) {
        scene.throws(make(options), 'ERR_INVALID_ARG_TYPE')
      }
    },
  },

  {
    number: 21,
    what: 'free of NULL',
    play: ({ heap }) => {
      for (const name of domains) {
        heap[name].free(null)
        heap[name].free(at(0n))
      }
    },
  },
  {
    number: 22,
    what: 'free of a small mem block in obj',
    play: (scene) => wrongDomains(scene, (domain, block) => domain.free(block), wrongPairs.slice(0, 2)),
  },
  {
    number: 23,
    what: 'free in every other wrong domain',
    play: (scene) => wrongDomains(scene, (domain, block) => domain.free(block), wrongPairs.slice(2)),
  },
  {
    number: 24,
    what: 'realloc in the wrong domain, and looking into a block through it',
    play: (scene) => {
      wrongDomains(scene, (domain, block) => domain.realloc(block, 8), wrongPairs)
      wrongDomains(scene, (domain, block) => domain.realloc(block, 9000), wrongPairs)
      wrongDomains(scene, (domain, block) => domain.usableSize(block), wrongPairs)
      wrongDomains(scene, (domain, block) => domain.view(block), wrongPairs)
    },
  },
  {
    number: 25,
    what: 'freeing a small block twice at once',
    play: (scene) => {
      for (const name of ['mem', 'obj'] as const) {
        const block = some(scene.heap[name].malloc(64))
        scene.heap[name].free(block)
        scene.throws(() => scene.heap[name].free(block), { code: 'ERR_DOUBLE_FREE', address: block, domain: name })
      }
    },
  },
  {
    number: 26,
    what: 'freeing twice with other frees in between',
    play: (scene) => {
      const { obj } = scene.heap
      const blocks = Array.from({ length: 20 }, () => some(obj.malloc(64)))
      for (const block of blocks) obj.free(block)
      for (const block of blocks) scene.throws(() => obj.free(block), 'ERR_DOUBLE_FREE')
      const again = new Set(blocks.map(() => some(obj.malloc(64))))
      assert.equal(again.size, blocks.length, 'an address was handed out twice')
      for (const block of again) obj.free(block)
    },
  },
  {
    number: 27,
    what: 'freeing a big block twice',
    play: (scene) => {
      for (const size of [513, 5000, 300 * KiB, 2 * KiB * KiB]) {
        for (const name of domains) {
          const block = some(scene.heap[name].malloc(size))
          scene.heap[name].free(block)
          scene.throws(() => scene.heap[name].free(block), 'ERR_DOUBLE_FREE')
        }
      }
    },
  },
  {
    number: 28,
    what: 'freeing twice after the address was handed out again',
    play: (scene) => {
      const { obj } = scene.heap
      const first = some(obj.malloc(64))
      obj.free(first)
      assert.equal(obj.malloc(64), first)
      // The address is the new owner's block now, and the heap cannot tell.
      obj.free(first)
      scene.check()
      for (const allocator of ['default', 'debug', 'malloc'] as const) {
        const careful = new Scene(new Heap({ allocator, quarantine: 2 ** 20 }))
        for (const name of domains) {
          for (const size of [0, 64, 512, 5000, 300 * KiB]) {
            const domain = careful.heap[name]
            const freed = some(domain.malloc(size))
            const view = domain.view(freed)
            domain.free(freed)
            assert.equal(view.length, 0)
            const others = [some(domain.malloc(size)), some(domain.malloc(size))]
            assert.ok(!others.includes(freed))
            careful.throws(() => domain.free(freed), { code: 'ERR_DOUBLE_FREE', address: freed })
            careful.throws(() => domain.realloc(freed, 9), 'ERR_USE_AFTER_FREE')
            careful.throws(() => domain.read(freed), 'ERR_USE_AFTER_FREE')
            for (const block of others) domain.free(block)
          }
        }
        const type = careful.heap.defineType({ name: 't', gc: true })
        const gone = type.alloc()
        careful.heap.decref(gone)
        assert.notEqual(type.alloc(), gone)
        careful.throws(() => careful.heap.decref(gone), 'ERR_REFCOUNT_UNDERFLOW')
        careful.throws(() => careful.heap.incref(gone), 'ERR_USE_AFTER_FREE')
        careful.heap.close()
      }
    },
  },
  {
    number: 29,
    what: 'interior pointers',
    play: (scene) => {
      for (const size of [64, 5000]) {
        for (const name of domains) {
          const block = some(scene.heap[name].malloc(size))
          for (const take of addressTakers(scene.heap[name])) {
            scene.throws(() => take(at(block + 16)), { code: 'ERR_INTERIOR_POINTER', base: block, address: block + 16 })
          }
          scene.heap[name].free(block)
        }
      }
    },
  },
  {
    number: 30,
    what: 'unaligned pointers',
    play: (scene) => {
      for (const name of domains) {
        const block = some(scene.heap[name].malloc(64))
        for (const offset of [1, 7, 63])
          scene.throws(() => scene.heap[name].free(at(block + offset)), { code: 'ERR_INTERIOR_POINTER', base: block })
        scene.heap[name].free(block)
      }
    },
  },
  {
    number: 31,
    what: 'pool headers, arena bases, blocks never handed out',
    play: (scene) => {
      const { obj } = scene.heap
      const block = some(obj.malloc(208))
      const pool = block - (block % (16 * KiB))
      const arena = scene.heap.arenas()[0]
      assert.ok(arena)
      const never = [pool, pool + 16, pool + 40, arena.address, pool + 16 * KiB - 16, arena.address + arena.size - 16]
      for (const address of never) {
        for (const take of addressTakers(obj)) scene.throws(() => take(at(address)), 'ERR_FOREIGN_POINTER')
      }
      obj.free(block)
    },
  },
  {
    number: 32,
    what: 'addresses of strangers',
    play: (scene) => {
      const values = [0, 1, 16, 0xdeadbeef0, 0x7fff_ffff_f000, 2 ** 47, 2 ** 48, 2 ** 52, Number.MAX_SAFE_INTEGER]
      for (const name of domains) {
        for (const take of addressTakers(scene.heap[name])) {
          for (const address of values) scene.throws(() => take(at(address)), 'ERR_FOREIGN_POINTER')
          scene.throws(() => take(at(2 ** 64 - 1)), 'ERR_OUT_OF_RANGE')
        }
      }
    },
  },
  {
    number: 33,
    what: "another heap's blocks",
    play: (scene) => {
      const other = new Heap({ release: '3.9' })
      for (const name of domains) {
        for (const size of [64, 5000]) {
          const block = some(other[name].malloc(size))
          for (const take of addressTakers(scene.heap[name])) scene.throws(() => take(block), 'ERR_WRONG_HEAP')
          other[name].free(block)
        }
      }
      other.close()
    },
  },
  {
    number: 34,
    what: 'every call after close',
    play: (scene) => {
      const heap = new Heap()
      const own = heap.getArenaAllocator()
      const block = some(heap.obj.malloc(64))
      heap.close()
      const calls: Array<() => unknown> = [
        () => heap.run(new Uint32Array(0)),
        () => heap.allocatedBlocks(),
        () => heap.arenas(),
        () => heap.debugMallocStats(),
        () => heap.trim(),
        () => heap.verify(),
        () => heap.getArenaAllocator(),
        () => heap.setArenaAllocator(own),
        () => heap.setArenaAllocator({ alloc: () => null, free: () => {} }),
        () => own.alloc(KiB * KiB),
        () => own.free(block, KiB * KiB),
      ]
      for (const name of domains) {
        const domain = heap[name]
        calls.push(
          () => domain.malloc(1),
          () => domain.calloc(1, 1),
          () => domain.realloc(null, 1),
          () => domain.free(null),
        )
        for (const take of addressTakers(domain)) calls.push(() => take(block))
      }
      for (const call of calls) scene.throws(call, 'ERR_HEAP_CLOSED')
    },
  },
  {
    number: 35,
    what: 'closing twice, from inside a callback, with live views',
    play: (scene) => {
      const heap = new Heap()
      const raw = heap.getAllocator('raw')
      const block = some(heap.raw.malloc(64))
      const view = heap.raw.view(block)
      let inside: unknown
      let arenas = 0
      heap.setArenaAllocator({
        alloc: (size) => {
          try {
            heap.close()
          } catch (error) {
            inside = error
          }
          arenas++
          return raw.malloc(size)
        },
        free: (address) => {
          arenas--
          raw.free(address)
        },
      })
      heap.obj.malloc(64)
      assert.equal((inside as MemoryFault).code, 'ERR_REENTRANT')
      heap.verify()
      assert.equal(view.length, 64)
      heap.close()
      assert.equal(view.length, 0)
      heap.close()
      assert.equal(arenas, 0)
      scene.check()
    },
  },
  {
    number: 36,
    what: 'realloc of a freed block',
    play: (scene) => {
      for (const name of domains) {
        for (const size of [64, 5000]) {
          const block = some(scene.heap[name].malloc(size))
          scene.heap[name].free(block)
          scene.throws(() => scene.heap[name].realloc(block, 100), 'ERR_USE_AFTER_FREE')
        }
      }
    },
  },
  {
    number: 37,
    what: 'realloc of NULL, to 0, to the same size, up and down',
    play: ({ heap }) => {
      for (const name of domains) {
        const domain = heap[name]
        domain.free(some(domain.realloc(null, 10)))
        const empty = some(domain.realloc(some(domain.malloc(10)), 0))
        domain.free(empty)
        let block = some(domain.malloc(300))
        let size = 300
        domain.write(block, filled(size))
        for (const next of [300, 290, 100, 16, 17, 512, 513, 100, 5000, 20_000, 700, 1, 600]) {
          const kept = Math.min(size, next)
          const before = domain.read(block, 0, kept)
          block = some(domain.realloc(block, next))
          assert.deepEqual(domain.read(block, 0, kept), before)
          domain.write(block, filled(next))
          size = next
        }
        domain.free(block)
      }
    },
  },
  {
    number: 38,
    what: 'realloc that fails',
    play: (scene) => {
      const heap = new Heap({ memoryLimit: 4 * KiB * KiB })
      for (const name of domains) {
        for (const size of [64, 5000]) {
          const block = some(heap[name].malloc(size))
          const view = heap[name].view(block)
          view.set(filled(size))
          assert.equal(heap[name].realloc(block, 8 * KiB * KiB), null)
          assert.equal(heap[name].realloc(block, MAX), null)
          assert.deepEqual(heap[name].read(block, 0, size), filled(size))
          assert.equal(heap[name].view(block), view)
          heap[name].free(block)
        }
      }
      heap.verify()
      heap.close()
      scene.check()
    },
  },
  {
    number: 39,
    what: 'looking into a freed block',
    play: (scene) => {
      for (const name of domains) {
        const block = some(scene.heap[name].malloc(64))
        scene.heap[name].free(block)
        for (const take of addressTakers(scene.heap[name]).slice(1)) scene.throws(() => take(block), 'ERR_USE_AFTER_FREE')
      }
    },
  },
  {
    number: 40,
    what: 'looking past the ends of a block',
    play: (scene) => {
      const { obj } = scene.heap
      const block = some(obj.malloc(64))
      for (const [offset, length] of [
        [65, 0],
        [64, 1],
        [0, 65],
        [60, 5],
        [1, 64],
        [2 ** 40, 1],
        [0, 2 ** 53 - 1],
        [-1, 1],
        [2 ** 53, 1],
        [0.5, 1],
      ] as const) {
        scene.throws(() => obj.read(block, offset, length), 'ERR_OUT_OF_RANGE')
      }
      for (const [size, offset] of [
        [65, 0],
        [1, 64],
        [5, 60],
        [1, -1],
        [0, 65],
      ] as const) {
        scene.throws(() => obj.write(block, new Uint8Array(size), offset), 'ERR_OUT_OF_RANGE')
      }
      const view = obj.view(block)
      assert.equal(view[64], undefined)
      assert.equal(view[-1], undefined)
      assert.throws(() => view.set(new Uint8Array(65)), RangeError)
      assert.equal(obj.read(block, 64, 0).length, 0)
      obj.free(block)
    },
  },
  {
    number: 41,
    what: 'writes past the end by a native peer',
    play: (scene) => {
      for (const [length, byte] of [
        [1, 0],
        [7, 0x41],
        [8, 0xff],
        [20, 1],
      ] as const) {
        const overflow = (block: Address, size: number): [string, number] => {
          poke(block + size, new Uint8Array(length).fill(byte))
          return ['ERR_BUFFER_OVERFLOW', size]
        }
        peered(scene, overflow, length > 8)
      }
    },
  },
  {
    number: 42,
    what: 'writes before the start by a native peer',
    play: (scene) => {
      for (const [length, byte] of [
        [1, 0],
        [7, 0x41],
        [8, 0xff],
        [16, 0],
      ] as const) {
        peered(scene, (block) => {
          poke(block - length, new Uint8Array(length).fill(byte))
          return ['ERR_BUFFER_UNDERFLOW', length < 8 ? -length : -8]
        })
      }
    },
  },
  {
    number: 43,
    what: 'writes after free by a native peer',
    play: ({ heap }) => {
      heap.setupDebugHooks()
      for (const name of ['mem', 'obj'] as const) {
        for (const size of [1, 40, 300, 488]) {
          const domain = heap[name]
          const block = some(domain.malloc(size))
          domain.free(block)
          const before = heap.allocatedBlocks()
          poke(block + size - 1, Uint8Array.of(0))
          assert.throws(() => domain.malloc(size), { code: 'ERR_WRITE_AFTER_FREE', address: block, offset: size - 1 })
          // The heap reports it once, and never again.
          heap.verify()
          assert.equal(heap.allocatedBlocks(), before)
          const others = Array.from({ length: 300 }, () => some(domain.malloc(size)))
          assert.ok(!others.includes(block))
          for (const other of others) domain.free(other)
        }
      }
    },
  },
  {
    number: 44,
    what: 'a corrupted free-list link',
    play: (scene) => {
      const requests: Array<(heap: Heap, type: ObjectType, block: Address) => unknown> = [
        ({ obj }) => obj.malloc(48),
        ({ mem }) => mem.calloc(6, 8),
        ({ mem }) => mem.realloc(null, 48),
        ({ obj }, _, block) => obj.realloc(block, 48),
        (heap) => heap.run(Uint32Array.of(0, 2, 0, 48)),
        (_, type) => type.alloc(),
        (_, type) => type.new(),
        (heap) => heap.getAllocator('mem').malloc(48),
      ]
      const elsewhere = some(scene.heap.obj.malloc(48))
      for (const allocator of ['default', 'debug'] as const) {
        for (const request of requests) {
          for (const lead of [
            () => 0x10,
            () => 2 ** 46,
            () => elsewhere,
            (block: number) => block + 8,
            (block: number) => block + 2 ** 20,
          ]) {
            // A heap of its own, which is lost.
            const heap = new Heap({ allocator })
            const type = heap.defineType({ name: 'six words', fields: { a: 'object', b: 'object', c: 'i64', d: 'i64' } })
            const [freed, kept, other] = [some(heap.obj.malloc(48)), some(heap.obj.malloc(48)), some(heap.obj.malloc(200))]
            heap.obj.free(freed)
            const block = freed - (allocator === 'debug' ? 16 : 0)
            const bytes = new Uint8Array(8)
            new DataView(bytes.buffer).setBigUint64(0, BigInt(lead(block)), true)
            poke(block, bytes)
            assert.throws(() => request(heap, type, other), { code: 'ERR_HEAP_CORRUPTED', address: block }, String(request))
            const rest = [
              () => request(heap, type, other),
              () => heap.obj.malloc(300),
              () => heap.obj.free(kept),
              () => heap.obj.read(other),
              () => heap.gc.collect(),
              () => heap.verify(),
            ]
            for (const call of rest) assert.throws(call, { code: 'ERR_HEAP_CORRUPTED' }, String(call))
            heap.close()
            assert.throws(() => heap.obj.malloc(48), { code: 'ERR_HEAP_CLOSED' })
          }
        }
      }
      // A fault that is found in a callback ends the call around it.
      const heap = new Heap({ onUnraisable: () => {} })
      const type = heap.defineType({ name: 't', finalize: () => void heap.obj.malloc(48) })
      const object = type.alloc()
      const freed = some(heap.obj.malloc(48))
      heap.obj.free(freed)
      poke(freed, Uint8Array.of(16, 0, 0, 0, 0, 0, 0, 0))
      for (let i = 0; i < 2; i++) assert.throws(() => heap.decref(object), { code: 'ERR_HEAP_CORRUPTED' })
      heap.close()
      scene.check()
    },
  },
  {
    number: 45,
    what: 'uninitialised reads',
    play: ({ heap }) => {
      heap.setupDebugHooks()
      for (const name of domains) {
        for (const size of [1, 64, 600]) {
          const used = some(heap[name].malloc(size))
          heap[name].write(used, new Uint8Array(size).fill(0x77))
          heap[name].free(used)
          const fresh = some(heap[name].malloc(size))
          assert.deepEqual(heap[name].read(fresh), new Uint8Array(size).fill(0xcd))
          const grown = some(heap[name].realloc(fresh, size + 100))
          assert.deepEqual(heap[name].read(grown), new Uint8Array(size + 100).fill(0xcd))
          heap[name].free(grown)
        }
      }
    },
  },
  {
    number: 46,
    what: 'the wrong type',
    play: (scene) => {
      const { heap } = scene
      const [a, b] = ['a', 'b'].map((name) => heap.defineType({ name, fields: { next: 'object', n: 'u32' }, freeList: 4 }))
      const [object, dead] = [a!.alloc(), a!.alloc()]
      heap.decref(dead)
      for (const misuse of [() => b!.get(object, 'n'), () => b!.set(object, 'next', null), () => b!.nitems(object)]) {
        scene.throws(misuse, { code: 'ERR_WRONG_TYPE', address: object })
      }
      // What one type keeps for its next object is never another's.
      const other = b!.alloc()
      assert.notEqual(other, dead)
      for (const name of domains) scene.throws(() => heap[name].free(dead), 'ERR_WRONG_TYPE')
      assert.equal(a!.alloc(), dead)
      for (const name of domains) scene.throws(() => heap[name].free(object), 'ERR_WRONG_TYPE')
      for (const address of [object, other, dead]) heap.decref(address)
    },
  },
  {
    number: 47,
    what: 'what is no address',
    play: (scene) => {
      for (const name of domains) {
        const block = some(scene.heap[name].malloc(64))
        for (const take of addressTakers(scene.heap[name])) {
          for (const value of [BigInt(block), 1n, '1', String(block), undefined, {}, [block], true, new Number(block)]) {
            scene.throws(() => take(at(value)), 'ERR_INVALID_ARG_TYPE')
          }
          for (const value of [block + 0.5, -1, -block, 2 ** 53, Number.NaN, Infinity]) {
            scene.throws(() => take(at(value)), 'ERR_OUT_OF_RANGE')
          }
        }
        for (const take of addressTakers(scene.heap[name]).slice(2)) scene.throws(() => take(at(null)), 'ERR_INVALID_ARG_TYPE')
        scene.heap[name].free(block)
      }
    },
  },
  {
    number: 48,
    what: 'posting a heap to another thread',
    play: ({ heap }) => {
      const { port1, port2 } = new MessageChannel()
      for (const value of [heap, heap.obj, { heap }, [heap.raw]]) {
        assert.throws(() => structuredClone(value), { name: 'DataCloneError' })
        assert.throws(() => port1.postMessage(value), { name: 'DataCloneError' })
      }
      port1.close()
      port2.close()
    },
  },
  {
    number: 49,
    what: 'forged receivers',
    play: ({ heap }) => {
      const forged = [{ ...heap }, Object.create(Heap.prototype), new Proxy(heap, {}), null, undefined, 5]
      for (const name of [
        'run',
        'allocatedBlocks',
        'arenas',
        'debugMallocStats',
        'verify',
        'close',
        'getArenaAllocator',
        'setArenaAllocator',
        'defineType',
        'typeOf',
        'incref',
        'decref',
        'refcount',
        'setImmortal',
      ] as const) {
        for (const receiver of forged) assert.throws(() => (heap[name] as () => void).call(receiver), TypeError)
      }
      const domainPrototype = Object.getPrototypeOf(heap.obj) as Domain
      for (const name of ['malloc', 'calloc', 'realloc', 'free', 'usableSize', 'view', 'read', 'write'] as const) {
        for (const receiver of [{ ...heap.obj }, Object.create(domainPrototype), new Proxy(heap.obj, {}), null, 5]) {
          assert.throws(() => (domainPrototype[name] as (size: number) => void).call(receiver, 8), TypeError)
        }
      }
      heap.verify()
    },
  },
  {
    number: 50,
    what: "a method of one class on another's object",
    play: ({ heap }) => {
      assert.throws(() => (heap.obj.malloc as unknown as (this: Heap, size: number) => void).call(heap, 8), TypeError)
      assert.throws(() => (heap.verify as unknown as (this: Domain) => void).call(heap.obj), TypeError)
      assert.throws(() => (heap.close as unknown as (this: Map<0, 0>) => void).call(new Map()), TypeError)
    },
  },
  {
    number: 51,
    what: 'use after Symbol.dispose',
    play: (scene) => {
      const heap = new Heap()
      heap[Symbol.dispose]()
      scene.throws(() => heap.obj.malloc(1), 'ERR_HEAP_CLOSED')
      heap[Symbol.dispose]()
    },
  },

  {
    number: 52,
    what: 'a view after free',
    play: ({ heap }) => {
      for (const name of domains) {
        const block = some(heap[name].malloc(64))
        const view = heap[name].view(block)
        const { buffer } = view
        const data = new DataView(buffer)
        view.fill(7)
        heap[name].free(block)
        const next = some(heap[name].malloc(64))
        heap[name].view(next).fill(9)
        assert.equal(view.length, 0)
        assert.equal(view[0], undefined)
        view[0] = 1
        assert.equal(heap[name].view(next)[0], 9)
        assert.throws(() => data.getUint8(0), TypeError)
        assert.throws(() => view.fill(1), TypeError)
        assert.throws(() => new Uint8Array(buffer), TypeError)
        heap[name].free(next)
      }
    },
  },
  {
    number: 53,
    what: 'a view over a realloc that moves',
    play: ({ heap }) => {
      for (const name of domains) {
        const block = some(heap[name].malloc(64))
        const view = heap[name].view(block)
        view.set(filled(64))
        const moved = some(heap[name].realloc(block, 400 * KiB))
        assert.equal(view.length, 0)
        assert.deepEqual(heap[name].view(moved).slice(0, 64), filled(64))
        heap[name].free(moved)
      }
      const block = some(heap.obj.malloc(64))
      const view = heap.obj.view(block)
      assert.equal(heap.obj.realloc(block, 60), block)
      assert.equal(heap.obj.view(block), view)
      assert.equal(view.length, 64)
      heap.obj.free(block)
    },
  },
  {
    number: 54,
    what: 'two views of one block',
    play: ({ heap }) => {
      for (const name of domains) {
        const block = some(heap[name].malloc(64))
        assert.equal(heap[name].view(block), heap[name].view(block))
        heap[name].free(block)
      }
    },
  },
  {
    number: 55,
    what: 'transferring a view',
    play: (scene) => {
      const { raw } = scene.heap
      const block = some(raw.malloc(64))
      const view = raw.view(block)
      view.fill(5)
      let copy: Uint8Array | undefined
      try {
        copy = structuredClone(view, { transfer: [view.buffer as ArrayBuffer] })
      } catch (error) {
        assert.equal((error as Error).name, 'DataCloneError')
      }
      if (copy) assert.equal(copy[63], 5)
      assert.equal(raw.usableSize(block), 64)
      assert.equal(raw.read(block)[63], 5)
      raw.free(block)
      scene.throws(() => raw.free(block), 'ERR_DOUBLE_FREE')
    },
  },
  {
    number: 56,
    what: 'ArrayBuffer.prototype.transfer',
    play: (scene) => {
      const { obj } = scene.heap
      const block = some(obj.malloc(64))
      const { buffer } = obj.view(block)
      const moved = new Uint8Array(transfer(buffer))
      moved.fill(3)
      assert.equal(obj.usableSize(block), 64)
      obj.free(block)
      scene.throws(() => obj.free(block), 'ERR_DOUBLE_FREE')
      const next = some(obj.malloc(64))
      moved.fill(4)
      assert.notEqual(next, block)
      obj.free(next)
    },
  },
  {
    number: 57,
    what: 'a view that was detached by other code',
    play: (scene) => {
      const { mem } = scene.heap
      const block = some(mem.malloc(64))
      structuredClone(null, { transfer: [new ArrayBuffer(1)] })
      try {
        structuredClone(null, { transfer: [mem.view(block).buffer as ArrayBuffer] })
      } catch (error) {
        assert.equal((error as Error).name, 'DataCloneError')
      }
      assert.equal(mem.view(block).length, 64)
      mem.free(block)
    },
  },
  {
    number: 58,
    what: 'bytes that are none',
    play: (scene) => {
      const { mem } = scene.heap
      const block = some(mem.malloc(64))
      for (const value of [
        {},
        [1],
        new ArrayBuffer(4),
        new SharedArrayBuffer(4),
        new Uint16Array(1),
        new DataView(new ArrayBuffer(1)),
        'x',
        null,
      ]) {
        scene.throws(() => mem.write(block, value as never), 'ERR_INVALID_ARG_TYPE')
      }
      mem.free(block)
    },
  },
  {
    number: 59,
    what: 'free while other code uses the block',
    play: (scene) => {
      for (const name of domains) {
        const { heap } = scene
        const own = heap.getAllocator(name)
        const block = some(own.malloc(5000))
        heap.setAllocator(name, { ...own, malloc: () => (block + 64) as Address, free: () => {} })
        const tenant = some(heap[name].malloc(64))
        heap.setAllocator(name, own)
        for (const take of [() => own.free(block), () => own.realloc(block, 9), () => own.realloc(block, 9000)]) {
          scene.throws(take, 'ERR_REENTRANT')
        }
        heap[name].free(tenant)
        own.free(block)
      }
    },
  },
  {
    number: 60,
    what: 'the view and the block part in either order',
    play: ({ heap }) => {
      for (let count = 0; count < 200; count++) {
        const block = some(heap.obj.malloc(64))
        heap.obj.view(block)[0] = count
        if (count % 2 === 0) heap.obj.free(block)
        else {
          assert.equal(heap.obj.view(block)[0], count)
          heap.obj.free(block)
        }
      }
    },
  },
  {
    number: 61,
    what: 'engines without outside buffers',
    elsewhere: ['runtimes.spec.ts', 'an engine without outside buffers refuses views, and gives all the rest'],
  },
  {
    number: 62,
    what: 'views of empty blocks',
    play: ({ heap }) => {
      const [a, b] = pair(heap.obj.malloc(0), heap.raw.malloc(0))
      assert.equal(heap.obj.view(a).length, 0)
      assert.equal(heap.raw.view(b).length, 0)
      assert.notEqual(heap.obj.view(a).buffer, heap.raw.view(b).buffer)
      assert.equal(heap.obj.view(a), heap.obj.view(a))
      heap.obj.free(a)
      heap.raw.free(b)
    },
  },
  {
    number: 63,
    what: 'shared, offset and resized arrays',
    play: (scene) => {
      const { heap } = scene
      const block = some(heap.mem.malloc(64))
      const shared = new Uint8Array(new SharedArrayBuffer(8)).fill(6)
      heap.mem.write(block, shared)
      const offset = new Uint8Array(Uint8Array.of(1, 2, 3, 4, 5).buffer, 2, 2)
      heap.mem.write(block, offset, 8)
      assert.deepEqual(heap.mem.read(block, 6, 4), Uint8Array.of(6, 6, 3, 4))
      const resizable = new (ArrayBuffer as unknown as new (
        size: number,
        options: object,
      ) => ArrayBuffer & { resize(size: number): void })(8, { maxByteLength: 64 })
      const tracking = new Uint8Array(resizable)
      resizable.resize(2)
      heap.mem.write(block, tracking, 62)
      resizable.resize(64)
      scene.throws(() => heap.mem.write(block, tracking, 1), 'ERR_OUT_OF_RANGE')
      heap.mem.free(block)

      // The operations lie in a block that they free themselves.
      const own = some(heap.raw.malloc(64))
      const ops = new Uint32Array(heap.raw.view(own).buffer)
      const addresses = new Float64Array(1)
      heap.run(Uint32Array.of(0, 0, 0, 64), addresses)
      const target = at(addresses[0])
      const inside = new Uint32Array(heap.raw.view(target).buffer)
      inside.set([3, 0, 0, 0, 0, 1, 0, 64])
      assert.throws(() => heap.run(inside), { code: 'ERR_OUT_OF_RANGE', index: 1 })
      assert.equal(inside.length, 0)
      ops.fill(0)
      heap.raw.free(own)
    },
  },
  {
    number: 64,
    what: 'writing from a view of the same block',
    play: ({ heap }) => {
      const block = some(heap.obj.malloc(32))
      const view = heap.obj.view(block)
      for (const [from, to] of [
        [0, 3],
        [3, 0],
      ] as const) {
        view.set(filled(32))
        const expected = filled(32)
        expected.copyWithin(to, from, from + 20)
        heap.obj.write(block, view.subarray(from, from + 20), to)
        assert.deepEqual(heap.obj.read(block), expected)
      }
      heap.obj.free(block)
    },
  },
]

export const rows: Row[] = [...blocks, ...exhaustion, ...objects, ...endings]
