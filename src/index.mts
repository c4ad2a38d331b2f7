/** obmalloc for ES modules: the very objects of the CommonJS one, so that there is one native instance. */

export { Heap, MemoryError, MemoryFault, ObjectType } from './index.js'
