/** obmalloc for ES modules: the very objects of the CommonJS one, so that there is one native instance. */

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
