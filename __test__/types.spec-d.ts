/** The contract as a type: checked by the compiler, never run. */

import {
  Heap,
  MemoryError,
  MemoryFault,
  type Address,
  type Allocator,
  type ArenaAllocator,
  type ArenaInfo,
  type Collector,
  type CollectorCallback,
  type Domain,
  type FieldKind,
  type GenerationStats,
  type Geometry,
  type ObjectType,
  type TraverseMismatch,
  type Trimmed,
  type TypeSpec,
  type UnraisableContext,
} from 'obmalloc'

import type * as implementation from '../src/index.ts'

type Equal<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false
const is = <_T extends true>(): void => {}

// What is built is what is declared.
export const classes: typeof import('obmalloc') = null as unknown as typeof implementation
export const built: Heap = null as unknown as implementation.Heap

const heap = new Heap({
  release: '3.14.0',
  allocator: 'pymalloc',
  geometry: { arenaSize: 65536 },
  memoryLimit: 2n ** 40n,
  quarantine: 4096,
  trimAbove: 2 ** 24,
})
const block = heap.obj.malloc(64)
is<Equal<typeof block, Address | null>>()
is<Equal<typeof heap.obj, Domain>>()
is<Equal<typeof heap.geometry, Geometry>>()
is<Equal<ReturnType<Heap['arenas']>, ArenaInfo[]>>()
is<Equal<ReturnType<Heap['trim']>, Trimmed>>()
export const allocator: Allocator = heap.raw
export const arenas: ArenaAllocator = heap.getArenaAllocator()
heap.setArenaAllocator(arenas)
heap.run(new Uint32Array(4))
heap.run(new Uint32Array(4), new Float64Array(1))
heap.obj.free(null)
heap.obj.malloc(64n)
heap[Symbol.dispose]()
if (block !== null) {
  is<Equal<ReturnType<typeof heap.obj.view>['length'], number>>()
  heap.obj.write(block, heap.obj.read(block, 1, 2))
}

const spec: TypeSpec = {
  name: 'tree.TreeNode',
  fields: { children: 'object', depth: 'u32' },
  gc: true,
  traverse(self, visit) {
    is<Equal<typeof self, Address>>()
    visit(self)
  },
  finalize(self) {
    heap.incref(self)
  },
}
const node: ObjectType = heap.defineType(spec)
const object = node.alloc()
is<Equal<typeof object, Address>>()
is<Equal<ReturnType<ObjectType['get']>, Address | number | bigint | null>>()
is<Equal<typeof heap.gc, Collector>>()
is<Equal<ReturnType<Collector['getThreshold']>, [number, number, number]>>()
is<Equal<ReturnType<Collector['getStats']>, GenerationStats[]>>()
is<Equal<ReturnType<Collector['check']>, TraverseMismatch[]>>()
is<Equal<typeof heap.gc.garbage, Address[]>>()
is<Equal<FieldKind, 'object' | 'u8' | 'i32' | 'u32' | 'i64' | 'f64'>>()
node.set(object, 'children', node.new())
node.set(object, 0, null)
node.set(object, 'depth', 3)
heap.gc.collect()
heap.gc.collect(0)
heap.gc.setDebug(heap.gc.DEBUG_STATS | heap.gc.DEBUG_LEAK)
heap.gc.newWeakref(object, (ref) => is<Equal<typeof ref, Address>>())
const callback: CollectorCallback = (phase, info) =>
  is<Equal<[typeof phase, typeof info.collected], ['start' | 'stop', number]>>()
heap.gc.callbacks.push(callback)
new Heap({ onUnraisable: (_error, context: UnraisableContext) => context.type?.name })
export const same: boolean = heap.typeOf(object) === node

export const fault = (error: MemoryFault): 'ERR_DOUBLE_FREE' | undefined =>
  error.code === 'ERR_DOUBLE_FREE' ? error.code : undefined
is<Equal<MemoryError['code'], 'ERR_NO_MEMORY'>>()

// @ts-expect-error no such release
new Heap({ release: '2.7' })
// @ts-expect-error an address is no plain number
heap.obj.free(12345)
// @ts-expect-error NULL is null
heap.obj.free(undefined)
// @ts-expect-error an address is not NULL here
heap.obj.usableSize(block)
// @ts-expect-error sizes are numbers
heap.obj.malloc('64')
// @ts-expect-error a domain is not to be replaced
heap.obj = heap.mem
// @ts-expect-error operations are unsigned
heap.run(new Int32Array(4))
// @ts-expect-error both functions are needed
heap.setArenaAllocator({ alloc: () => null })
// @ts-expect-error no such code
export const never = (error: MemoryFault): boolean => error.code === 'ERR_WHATEVER'
// @ts-expect-error types are made by defineType
new (null as unknown as typeof ObjectType)()
// @ts-expect-error no such kind of field
heap.defineType({ name: 't', fields: { a: 'u16' } })
// @ts-expect-error a type has a name
heap.defineType({ gc: true })
// @ts-expect-error there are three generations
heap.gc.collect(3)
// @ts-expect-error the list stays, its entries come and go
heap.gc.callbacks = []
// @ts-expect-error the address of an object is no plain number
heap.decref(12345)
// @ts-expect-error NULL is no object
heap.incref(null)
