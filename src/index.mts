/** obmalloc for ES modules. It exports the CommonJS module's objects, so that there is one native instance. */

export {
  check,
  compare,
  diff,
  findInterpreters,
  Heap,
  MemoryError,
  MemoryFault,
  ObjectType,
  PlaceError,
  record,
  Trace,
  TraceError,
  UsageError,
} from './index.js'
