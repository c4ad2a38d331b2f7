/** The contract as a type: checked by the compiler, never run. */

import {
  Heap,
  MemoryError,
  MemoryFault,
  type Address,
  type Allocator,
  type ArenaAllocator,
  type ArenaInfo,
  type Domain,
  type Geometry,
} from 'obmalloc'

import type * as implementation from '../src/index.ts'

type Equal<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false
const is = <_T extends true>(): void => {}

// What is built is what is declared.
export const classes: typeof import('obmalloc') = null as unknown as typeof implementation
export const built: Heap = null as unknown as implementation.Heap

const heap = new Heap({ release: '3.14.0', allocator: 'pymalloc', geometry: { arenaSize: 65536 }, memoryLimit: 2n ** 40n })
const block = heap.obj.malloc(64)
is<Equal<typeof block, Address | null>>()
is<Equal<typeof heap.obj, Domain>>()
is<Equal<typeof heap.geometry, Geometry>>()
is<Equal<ReturnType<Heap['arenas']>, ArenaInfo[]>>()
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
