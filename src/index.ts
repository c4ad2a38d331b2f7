/** obmalloc for CommonJS; `index.mts` is the same for ES modules. */

export { MemoryError, MemoryFault } from './errors.js'
export { Heap } from './heap.js'
export { ObjectType } from './type.js'
