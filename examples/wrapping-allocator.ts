/** An allocator around the one that is in: it counts, logs, limits, fails and delays. */

import { Heap, type Address, type Allocator, type MemoryFault } from 'obmalloc'

const heap = new Heap()
const own = heap.getAllocator('obj') // PyMem_GetAllocator

const LIMIT = 5000
const live = new Map<Address, number>()
let held = 0
let failing = false

/** What was asked for, unless that would be too much. */
function keep(size: number, request: () => Address | null): Address | null {
  if (failing) throw new Error('out of order')
  const address = held + size > LIMIT ? null : request()
  console.error(`${size} bytes: ${address === null ? 'refused' : 'given'}`)
  if (address !== null) {
    live.set(address, size)
    held += size
  }
  return address
}

function drop(address: Address): void {
  held -= live.get(address)!
  live.delete(address)
}

const wrapper: Allocator = {
  malloc: (size) => keep(Number(size), () => own.malloc(size)),
  calloc: (count, size) => keep(Number(count) * Number(size), () => own.calloc(count, size)),
  realloc(address, size) {
    if (address === null) return this.malloc(size)
    const moved = held - live.get(address)! + Number(size) > LIMIT ? null : own.realloc(address, size)
    if (moved === null) return null // the old block is as it was
    drop(address)
    live.set(moved, Number(size))
    held += Number(size)
    return moved
  },
  free(address) {
    if (address === null) return
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1) // a slow free, of a millisecond
    drop(address)
    own.free(address)
  },
}

heap.setAllocator('obj', wrapper) // PyMem_SetAllocator
const small = heap.obj.malloc(100)
const large = heap.obj.malloc(4500)
// 5600 bytes would be too much.
console.log(heap.obj.malloc(1000)) // null
failing = true
try {
  heap.obj.malloc(1)
} catch (error) {
  console.log((error as MemoryFault).code) // ERR_CALLBACK_THREW
}
failing = false
heap.obj.free(large)
console.log(live.size, held) // 1 100
heap.setAllocator('obj', own) // at full speed again
heap.obj.free(small) // which has come from it all the time
console.log(heap.getAllocator('obj') === own, heap.allocatedBlocks()) // true 0
heap.close()
