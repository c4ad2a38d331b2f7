/** What index.d.ts says that a member throws for a bad address is what it throws. */

import test from 'ava'
import { Heap, type Address } from 'obmalloc'

import { documented } from './contract.ts'
import { some } from './tools.ts'

/** What an address can be wrong with. */
const CODES = [
  'ERR_WRONG_DOMAIN',
  'ERR_DOUBLE_FREE',
  'ERR_USE_AFTER_FREE',
  'ERR_INTERIOR_POINTER',
  'ERR_FOREIGN_POINTER',
  'ERR_WRONG_HEAP',
  'ERR_WRONG_TYPE',
  'ERR_REFCOUNT_UNDERFLOW',
  'ERR_GC_ALREADY_TRACKED',
]

/** A heap with one of everything. */
function scene() {
  const heap = new Heap()
  const type = heap.defineType({ name: 'node', fields: { next: 'object', count: 'i32' }, gc: true, weakrefs: true })
  const plain = heap.defineType({ name: 'plain', fields: { count: 'i32' } })
  const list = heap.defineType({ name: 'list', items: 'object', gc: true })
  const block = some(heap.obj.malloc(64))
  const weakref = heap.gc.newWeakref(type.alloc())
  return {
    heap,
    gc: heap.gc,
    own: heap.getAllocator('obj'),
    arenas: heap.getArenaAllocator(),
    type,
    plain,
    list,
    block,
    object: type.new(),
    weakref,
    weakrefs: heap.typeOf(weakref),
  }
}

type Scene = ReturnType<typeof scene>

const other = new Heap()
test.after(() => other.close())

/** Addresses of every kind. */
const addresses: Record<string, (scene: Scene) => Address> = {
  foreign: () => 0x1234560 as Address,
  interior: ({ block }) => (block + 16) as Address,
  block: ({ block }) => block,
  'a freed block': ({ heap, block }) => (heap.obj.free(block), block),
  "another domain's": ({ heap }) => some(heap.mem.malloc(64)),
  "another heap's": () => some(other.obj.malloc(64)),
  object: ({ object }) => object,
  'a tracked object': ({ type }) => type.alloc(),
  'an object that the collector does not know': ({ plain }) => plain.new(),
  'an object with items': ({ list }) => list.newVar(2),
  'a tracked object with items': ({ list }) => list.alloc(2),
  'a destroyed object': ({ heap, plain }) => {
    const object = plain.new()
    heap.decref(object)
    return object
  },
  'a weak reference': ({ weakref }) => weakref,
  'inside an arena': ({ arenas }) => (some(arenas.alloc(1 << 20)) + 16) as Address,
  'an arena given back': ({ arenas }) => {
    const arena = some(arenas.alloc(1 << 20))
    arenas.free(arena, 1 << 20)
    return arena
  },
}

/** How each member is called with an address: once, or in every way that its comment is about. */
const calls: Record<string, Array<(scene: Scene, address: Address) => unknown>> = {
  'Allocator.realloc': [({ heap }, address) => heap.obj.realloc(address, 8), ({ own }, address) => own.realloc(address, 8)],
  'Allocator.free': [({ heap }, address) => heap.obj.free(address), ({ own }, address) => own.free(address)],
  'Domain.usableSize': [({ heap }, address) => heap.obj.usableSize(address)],
  'Domain.view': [({ heap }, address) => heap.obj.view(address)],
  'Domain.read': [({ heap }, address) => heap.obj.read(address)],
  'Domain.write': [({ heap }, address) => heap.obj.write(address, new Uint8Array(1))],
  'Domain.getUint8': [({ heap }, address) => heap.obj.getUint8(address)],
  'Domain.setUint8': [({ heap }, address) => heap.obj.setUint8(address, 1)],
  'Domain.getInt32': [({ heap }, address) => heap.obj.getInt32(address)],
  'Domain.setInt32': [({ heap }, address) => heap.obj.setInt32(address, 1)],
  'Domain.getUint32': [({ heap }, address) => heap.obj.getUint32(address)],
  'Domain.setUint32': [({ heap }, address) => heap.obj.setUint32(address, 1)],
  'Domain.getBigInt64': [({ heap }, address) => heap.obj.getBigInt64(address)],
  'Domain.setBigInt64': [({ heap }, address) => heap.obj.setBigInt64(address, 1n)],
  'Domain.getFloat64': [({ heap }, address) => heap.obj.getFloat64(address)],
  'Domain.setFloat64': [({ heap }, address) => heap.obj.setFloat64(address, 1)],
  'ArenaAllocator.free': [({ arenas }, address) => arenas.free(address, 1 << 20)],
  'Heap.pools': [({ heap }, address) => heap.pools(address)],
  'Heap.blocks': [({ heap }, address) => heap.blocks(address)],
  'Heap.typeOf': [({ heap }, address) => heap.typeOf(address)],
  'Heap.incref': [({ heap }, address) => heap.incref(address)],
  'Heap.decref': [({ heap }, address) => heap.decref(address)],
  'Heap.refcount': [({ heap }, address) => heap.refcount(address)],
  'Heap.setImmortal': [({ heap }, address) => heap.setImmortal(address)],
  'ObjectType.alloc': [({ weakrefs }) => weakrefs.alloc()],
  'ObjectType.new': [({ weakrefs }) => weakrefs.new()],
  'ObjectType.newVar': [({ weakrefs }) => weakrefs.newVar(1)],
  'ObjectType.init': [({ plain }, address) => plain.init(address)],
  'ObjectType.initVar': [({ plain }, address) => plain.initVar(address, 0)],
  'ObjectType.get': [({ type }, address) => type.get(address, 'next')],
  'ObjectType.set': [
    ({ type }, address) => type.set(address, 'count', 1),
    ({ type, object }, address) => type.set(object, 'next', address),
  ],
  'ObjectType.nitems': [({ list }, address) => list.nitems(address)],
  'Collector.track': [({ gc }, address) => gc.track(address)],
  'Collector.untrack': [({ gc }, address) => gc.untrack(address)],
  'Collector.isTracked': [({ gc }, address) => gc.isTracked(address)],
  'Collector.isFinalized': [({ gc }, address) => gc.isFinalized(address)],
  'Collector.del': [({ gc }, address) => gc.del(address)],
  'Collector.resize': [({ gc }, address) => gc.resize(address, 3)],
  'Collector.getReferrers': [({ gc }, address) => gc.getReferrers(address)],
  'Collector.getReferents': [({ gc }, address) => gc.getReferents(address)],
  'Collector.newWeakref': [({ gc }, address) => gc.newWeakref(address)],
  'Collector.deref': [({ gc }, address) => gc.deref(address)],
}

/** The codes that a member's comment names. */
function named(text: string): string[] {
  const clauses = text.split(/^@/m).filter((tag) => tag.startsWith('throws') && !tag.includes('for example'))
  return CODES.filter((code) => clauses.some((clause) => clause.includes(code)))
}

for (const [name, ways] of Object.entries(calls)) {
  test(`${name} throws what its comment says`, (t) => {
    const thrown = new Set<string>()
    for (const way of ways)
      for (const make of Object.values(addresses)) {
        const present = scene()
        const address = make(present)
        try {
          way(present, address)
        } catch (error) {
          thrown.add((error as { code: string }).code)
        }
      }
    const { text } = documented.find((member) => member.name === name)!
    t.deepEqual(
      CODES.filter((code) => thrown.has(code)),
      named(text),
    )
  })
}

test('every member whose comment names such a code is called', (t) => {
  const members = documented.filter(({ name, text }) => name.includes('.') && named(text).length > 0)
  // A collection's addresses are those that a traverse visits.
  t.deepEqual(
    members.map(({ name }) => name).filter((name) => !(name in calls)),
    ['Collector.collect'],
  )
})
