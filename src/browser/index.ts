/** obmalloc for browsers: heaps, in WebAssembly. Recordings need Node.js. */

export { MemoryError, MemoryFault } from '../errors.js'
export { Heap } from '../heap.js'
export { ObjectType } from '../type.js'
