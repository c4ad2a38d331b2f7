/** An allocator that hands out one big block, piece after piece, and gives all of it back at once. */

import { Heap, type Address, type Allocator } from 'obmalloc'

const heap = new Heap()
const own = heap.getAllocator('obj') // PyMem_GetAllocator
const raw = heap.getAllocator('raw')

const BYTES = 1 << 16
const base = raw.calloc(1, BYTES)! // a grant: ours until we give it back
let used = 0
let last: Address | null = null

/** Moves the end of the last piece, or begins a new one; a piece is never handed out again, so it holds zeros. */
function extend(from: number, size: number): Address | null {
  const end = from + ((Math.max(size, 1) + 15) & ~15) // a block of no bytes takes one
  if (end > BYTES) return null
  used = end
  last = (base + from) as Address
  return last
}

const bump: Allocator = {
  malloc: (size) => extend(used, Number(size)),
  calloc: (count, size) => extend(used, Number(count) * Number(size)),
  // Only the last piece can grow: another one is as it was.
  realloc: (address, size) =>
    address === null ? extend(used, Number(size)) : address === last ? extend(last - base, Number(size)) : null,
  free() {}, // all at once, at the end
}

heap.setAllocator('obj', bump) // PyMem_SetAllocator
const first = heap.obj.malloc(100)
const second = heap.obj.calloc(10, 10)
console.log(first === base, second === base + 112) // true true
console.log(heap.obj.realloc(second, 1000) === second, heap.obj.realloc(first, 1000)) // true null
console.log(heap.obj.malloc(BYTES)) // null
heap.obj.free(first)
heap.obj.free(second)
heap.setAllocator('obj', own)
raw.free(base) // no block lies in it any more
console.log(used, heap.allocatedBlocks()) // 1120 0
heap.close()
