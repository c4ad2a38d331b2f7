/** A heap is closed, and the time of the script is over while its arenas are given back. */

'use strict'

const { runInNewContext } = require('node:vm')

const { Heap } = require('obmalloc')

const heap = new Heap()
const raw = heap.getAllocator('raw')
let begun = false
const freed = new Set()
heap.setArenaAllocator({
  alloc: (size) => raw.malloc(size),
  free(address) {
    if (freed.has(address)) throw new Error('given back twice')
    freed.add(address)
    while (begun);
  },
})
for (let count = 0; count < 10_000; count++) heap.obj.malloc(512)
const arenas = heap.arenas().length
begun = true
let outcome = 'returned'
try {
  runInNewContext('close()', { close: () => heap.close() }, { timeout: 50 })
} catch (error) {
  outcome = error.code
}
process.stdout.write(`${outcome}, ${freed.size} of ${arenas} arenas\n`)
begun = false
heap.close()
process.stdout.write(`closed, ${freed.size} of ${arenas} arenas\n`)
