/** obmalloc for CommonJS; `index.mts` is the same for ES modules. */

export { MemoryError, MemoryFault } from './errors.js'
export { Heap } from './heap.js'
export { ObjectType } from './type.js'
export { check, compare, diff, findInterpreters, record, Trace } from './tracing.js'
export { PlaceError } from './recording.js'
export { TraceError } from './trace.js'
export { UsageError } from './usage.js'
