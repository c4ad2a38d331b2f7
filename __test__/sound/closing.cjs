/** A heap is closed, and the time of the script is over while its arenas are given back. The argument: whether they are of its own memory. */

'use strict'

const { runInNewContext } = require('node:vm')

const { Heap } = require('obmalloc')

const isOwn = process.argv[2] === 'true'
const owner = new Heap()
const heap = new Heap()
const raw = isOwn ? heap.getAllocator('raw') : owner.raw
let begun = false
let calls = 0
heap.setArenaAllocator({
  alloc: (size) => raw.malloc(size),
  free() {
    calls++
    while (begun);
  },
})
for (let count = 0; count < 10_000; count++) heap.obj.malloc(512)
begun = true
let outcome = 'returned'
try {
  runInNewContext('close()', { close: () => heap.close() }, { timeout: 50 })
} catch (error) {
  outcome = error.code
}
process.stdout.write(`${outcome}, ${calls} calls\n`)
begun = false
calls = 1
heap.close()
process.stdout.write(`closed, ${calls} calls\n`)
