/** Watches four small blocks keep four arenas: why a Python process can stay large after it has freed nearly everything. */

import { Heap, type Address } from 'obmalloc'

const heap = new Heap({ release: '3.13' })
const held = (): string => `${heap.arenas().length} arenas, ${heap.allocatedBlocks()} blocks`

// A burst of objects of 100 bytes; one in 9000 survives it.
const rows = Array.from({ length: 36_000 }, () => heap.obj.malloc(100)!)
console.log(held()) // 4 arenas, 36000 blocks
const kept: Address[] = []
for (const [index, row] of rows.entries()) {
  if (index % 9000 === 4500) kept.push(row)
  else heap.obj.free(row)
}

// Each survivor lies in an arena of its own, with 63 of its 64 pools free. None of the arenas can be given back.
console.log(held()) // 4 arenas, 4 blocks
console.log(heap.arenas().map(({ freePools }) => freePools)) // [ 63, 63, 63, 63 ]

// The survivors made anew lie side by side. When the old ones are freed, one arena is left for them, and one that CPython keeps empty: the
// right-most of those that have free pools.
const moved = kept.map(() => heap.obj.malloc(100))
for (const row of kept) heap.obj.free(row)
console.log(held()) // 2 arenas, 4 blocks
for (const row of moved) heap.obj.free(row)
heap.close()
