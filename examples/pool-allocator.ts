/** An allocator with a pool of blocks of one size. What does not fit there goes to the one that was in. */

import { Heap, type Address, type Allocator } from 'obmalloc'

const heap = new Heap()
const own = heap.getAllocator('obj') // PyMem_GetAllocator
const raw = heap.getAllocator('raw')

const SIZE = 64
const COUNT = 128
const base = raw.malloc(SIZE * COUNT)! // a grant: ours until we give it back
const free = Array.from({ length: COUNT }, (_, index) => (base + SIZE * index) as Address).reverse()
const isOurs = (address: Address): boolean => address >= base && address < base + SIZE * COUNT

const pool: Allocator = {
  malloc: (size) => (size <= SIZE && free.pop()) || own.malloc(size),
  calloc: (count, size) => own.calloc(count, size), // which zeroes them
  realloc(address, size) {
    if (address === null) return this.malloc(size)
    if (!isOurs(address)) return own.realloc(address, size)
    return size <= SIZE ? address : null // a block of the pool cannot grow
  },
  free(address) {
    if (address !== null && isOurs(address)) free.push(address)
    else own.free(address)
  },
}

heap.setAllocator('obj', pool) // PyMem_SetAllocator
const small = heap.obj.malloc(40)
const large = heap.obj.malloc(4000)
console.log(small === base, free.length) // true 127
console.log(heap.obj.realloc(small, 60) === small, heap.obj.realloc(small, 65)) // true null
heap.obj.free(small)
heap.obj.free(large)
console.log(heap.obj.malloc(64) === small) // true
heap.obj.free(small)
heap.setAllocator('obj', own)
raw.free(base) // no block lies in it any more
console.log(free.length, heap.allocatedBlocks()) // 128 0
heap.close()
