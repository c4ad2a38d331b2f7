/** The tables of docs/ and of ARCHITECTURE: what they say of calls, releases and code is so, and what they link to is there. */

import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

import test from 'ava'
import { Heap, type Address, type Allocator, type ArenaAllocator, type Collector, type Domain, type ObjectType } from 'obmalloc'

import { releases, some } from './tools.ts'

const root = fileURLToPath(new URL('..', import.meta.url))
const read = (name: string): string => readFileSync(join(root, 'docs', name), 'utf8')

/** The rows of the table that has `heading` in its first line, without that line and the next. */
function table(text: string, heading: string): string[][] {
  const lines = text.slice(text.indexOf(heading)).split('\n')
  const end = lines.findIndex((line) => !line.startsWith('|'))
  const cells = (line: string): string[] => line.split('|').slice(1, -1)
  return lines.slice(2, end).map((line) => cells(line).map((cell) => cell.trim()))
}

test('every link leads to a file', (t) => {
  const texts = ['../README.md', '../CONTRIBUTING.md', '../ARCHITECTURE.md']
  const files = [...readdirSync(join(root, 'docs')).filter((name) => name.endsWith('.md')), ...texts]
  for (const name of files) {
    const text = read(name)
    for (const [, path] of text.matchAll(/\]\(((?!https?:)[^)#]+)\)/g))
      t.true(existsSync(join(root, 'docs', dirname(name), path!)), `${name}: ${path}`)
    for (const [, path] of text.matchAll(/`((?:crates|__test__|src|examples|schema|scripts)\/[\w./-]+)`/g))
      t.true(existsSync(join(root, path!)), `${name}: ${path}`)
  }
})

test('what ARCHITECTURE says where to look for is there', (t) => {
  const rows = table(read('../ARCHITECTURE.md'), '| what happens | where |')
  t.true(rows.length >= 10)
  for (const [what, where] of rows) {
    const [names, ...files] = [/`(\w+)`/g, /\]\(([^)]+)\)/g].map((of) => [...where!.matchAll(of)].map(([, found]) => found!))
    const text = files
      .flat()
      .map((file) => readFileSync(join(root, file), 'utf8'))
      .join('\n')
    t.true(names!.length > 0, what)
    for (const name of names!) t.regex(text, new RegExp(`\\b(fn|enum|struct|const) ${name}\\b`), what)
  }
})

test('the sizes and thresholds of the releases are what the tables say', (t) => {
  const sizes = table(read('exactness.md'), '| release | arena |')
  const thresholds = table(read('collector.md'), '| release | thresholds |')
  t.deepEqual(
    sizes.map(([release]) => release),
    releases,
  )
  t.deepEqual(
    thresholds.map(([release]) => release),
    releases,
  )
  for (const [index, release] of releases.entries()) {
    using heap = new Heap({ release })
    const { arenaSize, poolSize, alignment, smallRequestThreshold } = heap.geometry
    t.deepEqual(sizes[index]!.slice(1), [arenaSize, poolSize, alignment, smallRequestThreshold].map(String))
    t.is(thresholds[index]![1], heap.gc.getThreshold().join(', '))
  }
})

/** A heap with one of everything. */
interface Scene {
  readonly heap: Heap
  readonly obj: Domain
  readonly gc: Collector
  readonly own: Allocator
  readonly ownRaw: Allocator
  readonly ownArenas: ArenaAllocator
  readonly type: ObjectType
  readonly list: ObjectType
  readonly plain: ObjectType
  readonly block: Address
  readonly grant: Address
  readonly rawGrant: Address
  readonly arena: Address
  readonly object: Address
  readonly tracked: Address
  readonly items: Address
}

function scene(): Scene {
  const heap = new Heap()
  const type = heap.defineType({ name: 'node', fields: { next: 'object', count: 'i32' }, gc: true, weakrefs: true })
  const list = heap.defineType({ name: 'list', items: 'object', gc: true })
  const own = heap.getAllocator('obj')
  const ownRaw = heap.getAllocator('raw')
  const ownArenas = heap.getArenaAllocator()
  return {
    heap,
    obj: heap.obj,
    gc: heap.gc,
    own,
    ownRaw,
    ownArenas,
    type,
    list,
    plain: heap.defineType({ name: 'plain', fields: { count: 'i32' } }),
    block: some(heap.obj.malloc(64)),
    grant: some(own.malloc(64)),
    rawGrant: some(ownRaw.malloc(64)),
    arena: some(ownArenas.alloc(heap.geometry.arenaSize)),
    object: type.new(),
    tracked: type.alloc(),
    items: list.newVar(2),
  }
}

/** How each call of the table is made. */
const calls: Record<string, (scene: Scene) => unknown> = {
  'obj.usableSize': ({ obj, block }) => obj.usableSize(block),
  'obj.read': ({ obj, block }) => obj.read(block),
  'obj.getUint32': ({ obj, block }) => obj.getUint32(block),
  'obj.setUint32': ({ obj, block }) => obj.setUint32(block, 1),
  'obj.malloc': ({ obj }) => obj.malloc(8),
  'obj.calloc': ({ obj }) => obj.calloc(1, 8),
  'obj.realloc': ({ obj, block }) => obj.realloc(block, 80),
  'obj.free': ({ obj, block }) => obj.free(block),
  'obj.view': ({ obj, block }) => obj.view(block),
  'obj.write': ({ obj, block }) => obj.write(block, new Uint8Array(1)),
  'own.malloc': ({ own }) => own.malloc(8),
  'own.realloc': ({ own, grant }) => own.realloc(grant, 80),
  'own.free': ({ own, grant }) => own.free(grant),
  'ownRaw.malloc': ({ ownRaw }) => ownRaw.malloc(8),
  'ownRaw.realloc': ({ ownRaw, rawGrant }) => ownRaw.realloc(rawGrant, 80),
  'ownRaw.free': ({ ownRaw, rawGrant }) => ownRaw.free(rawGrant),
  'ownArenas.alloc': ({ ownArenas, heap }) => ownArenas.alloc(heap.geometry.arenaSize),
  'ownArenas.free': ({ ownArenas, arena, heap }) => ownArenas.free(arena, heap.geometry.arenaSize),
  'heap.run': ({ heap }) => heap.run(new Uint32Array([0, 2, 0, 8])),
  'heap.typeOf': ({ heap, object }) => heap.typeOf(object),
  'heap.refcount': ({ heap, object }) => heap.refcount(object),
  'heap.incref': ({ heap, object }) => heap.incref(object),
  'heap.decref': ({ heap, object }) => heap.decref(object),
  'heap.setImmortal': ({ heap, object }) => heap.setImmortal(object),
  'heap.defineType': ({ heap }) => heap.defineType({ name: 'another' }),
  'heap.allocatedBlocks': ({ heap }) => heap.allocatedBlocks(),
  'heap.arenas': ({ heap }) => heap.arenas(),
  'heap.pools': ({ heap }) => heap.pools(heap.arenas()[0]!.address),
  'heap.blocks': ({ heap, block }) => heap.blocks((block - (block % heap.geometry.poolSize)) as Address),
  'heap.stats': ({ heap }) => heap.stats(),
  'heap.toJSON': ({ heap }) => heap.toJSON(),
  'heap.debugMallocStats': ({ heap }) => heap.debugMallocStats(),
  'heap.getArenaAllocator': ({ heap }) => heap.getArenaAllocator(),
  'heap.verify': ({ heap }) => heap.verify(),
  'heap.getAllocator': ({ heap }) => heap.getAllocator('obj'),
  'heap.setAllocator': ({ heap, own }) => heap.setAllocator('obj', own),
  'heap.setArenaAllocator': ({ heap, ownArenas }) => heap.setArenaAllocator(ownArenas),
  'heap.setupDebugHooks': ({ heap }) => heap.setupDebugHooks(),
  'heap.setNomemory': ({ heap }) => heap.setNomemory(1_000_000),
  'heap.removeNomemory': ({ heap }) => heap.removeNomemory(),
  'heap.close': ({ heap }) => heap.close(),
  'type.get': ({ type, object }) => type.get(object, 'next'),
  'type.nitems': ({ list, items }) => list.nitems(items),
  'type.alloc': ({ type }) => type.alloc(),
  'type.new': ({ type }) => type.new(),
  'type.newVar': ({ list }) => list.newVar(1),
  'type.init': ({ plain, block }) => plain.init(block),
  'type.set': ({ type, object }) => type.set(object, 'count', 1),
  'gc.isTracked': ({ gc, object }) => gc.isTracked(object),
  'gc.isFinalized': ({ gc, object }) => gc.isFinalized(object),
  'gc.isEnabled': ({ gc }) => gc.isEnabled(),
  'gc.getThreshold': ({ gc }) => gc.getThreshold(),
  'gc.getCount': ({ gc }) => gc.getCount(),
  'gc.getStats': ({ gc }) => gc.getStats(),
  'gc.getFreezeCount': ({ gc }) => gc.getFreezeCount(),
  'gc.getDebug': ({ gc }) => gc.getDebug(),
  'gc.track': ({ gc, object }) => gc.track(object),
  'gc.untrack': ({ gc, tracked }) => gc.untrack(tracked),
  'gc.del': ({ gc, object }) => gc.del(object),
  'gc.resize': ({ gc, items }) => gc.resize(items, 3),
  'gc.enable': ({ gc }) => gc.enable(),
  'gc.disable': ({ gc }) => gc.disable(),
  'gc.setThreshold': ({ gc }) => gc.setThreshold(700),
  'gc.freeze': ({ gc }) => gc.freeze(),
  'gc.unfreeze': ({ gc }) => gc.unfreeze(),
  'gc.setDebug': ({ gc }) => gc.setDebug(0),
  'gc.newWeakref': ({ gc, object }) => gc.newWeakref(object),
  'gc.getObjects': ({ gc }) => gc.getObjects(),
  'gc.getReferrers': ({ gc, tracked }) => gc.getReferrers(tracked),
  'gc.getReferents': ({ gc, tracked }) => gc.getReferents(tracked),
  'gc.check': ({ gc }) => gc.check(),
  'gc.collect': ({ gc }) => gc.collect(),
}

/** How each column of the table has `look` called from inside a callback, once. */
const insides: Array<(scene: Scene, look: () => void) => void> = [
  ({ heap, gc }, look) => {
    const Looking = heap.defineType({ name: 'looking', fields: { next: 'object' }, gc: true, traverse: look })
    Looking.alloc()
    gc.collect()
  },
  ({ heap, ownArenas }, look) => {
    const alloc = (size: number): Address | null => (look(), ownArenas.alloc(size))
    heap.setArenaAllocator({ alloc, free: (address, size) => ownArenas.free(address, size) })
    for (let blocks = 0; blocks < 2100; blocks++) heap.obj.malloc(512)
  },
  ({ heap, own }, look) => {
    heap.setAllocator('obj', {
      malloc: (size) => (look(), own.malloc(size)),
      calloc: (count, size) => own.calloc(count, size),
      realloc: (address, size) => own.realloc(address, size),
      free: (address) => own.free(address),
    })
    heap.obj.malloc(8)
  },
  ({ heap }, look) => {
    const Finalized = heap.defineType({ name: 'finalized', finalize: look })
    heap.decref(Finalized.alloc())
  },
]

test('every call does inside every callback what the table says', (t) => {
  const rows = table(read('callbacks.md'), '| call | in a')
  const named = rows.flatMap(([names]) => [...names!.matchAll(/`([\w.]+)`/g)].map(([, name]) => name!))
  t.deepEqual(named.toSorted(), Object.keys(calls).toSorted())
  for (const [names, ...expected] of rows) {
    for (const [, name] of names!.matchAll(/`([\w.]+)`/g)) {
      const answers = insides.map((inside) => {
        const present = scene()
        let answer = 'never called'
        inside(present, () => {
          if (answer !== 'never called') return
          answer = 'yes'
          try {
            const result = calls[name!]!(present)
            if (name === 'gc.collect' && result === 0 && inside === insides[0]) answer = '0'
          } catch (error) {
            answer = `\`${(error as { code: string }).code}\``
          }
        })
        return answer
      })
      t.deepEqual(answers, expected, name)
    }
  }
})
