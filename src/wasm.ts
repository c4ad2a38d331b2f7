/** The binding in WebAssembly. It has the functions of the native one, except those that read traces. Nothing here needs Node.js. */

import { MemoryFault } from './errors.js'
import type { Address, DomainName } from '../index.js'
import type { Binding, DomainCalls } from './native.js'
import { apply, bufferOf, Bytes, offsetOf } from './primordials.js'

/** Functions by module and name. */
type Imports = Record<string, Record<string, unknown>>

/** The parts of emnapi (Node-API in JavaScript) that are used. */
export interface Emnapi {
  createContext(): {
    readonly handleStore: { get(handle: number): { readonly value: unknown } | undefined }
    suppressDestroy(): void
  }
  instantiateNapiModuleSync(
    bytes: Uint8Array<ArrayBuffer>,
    options: { context: object; overwriteImports(imports: Imports): Imports },
  ): { readonly instance: { readonly exports: Record<string, unknown> }; readonly napiModule: { readonly exports: unknown } }
}

/** The functions that open something to do with traces. */
const OF_TRACES = ['openReplay', 'openEvents', 'openOutline', 'openTrials', 'openInquiry', 'checkGolden'] as const

const never: (...values: number[]) => void = () => {}

/**
 * Throws if there is less stack left than most calls of the module take. At a function's entry, an engine makes sure of the stack that its slowest
 * code for the function would use. Here that is some 4 KB, for the arguments of a call that is never made. V8 does so also in its fastest code.
 */
// oxfmt-ignore
function checkStack(callbacks: number): void {
  if (callbacks < 0) never(
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
    0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,
  )
}

/** The functions of an object, and of the objects in it, with something that is done before each call. */
function preceded<Functions extends object>(functions: Functions, before: () => void): Functions {
  const made = { __proto__: null } as unknown as Record<string, unknown>
  for (const [name, value] of Object.entries(functions)) {
    const call = (...values: unknown[]): unknown => {
      before()
      return apply(value as () => unknown, undefined, values as [])
    }
    made[name] = typeof value === 'function' ? call : typeof value === 'object' ? preceded(value as object, before) : value
  }
  return Object.freeze(made) as Functions
}

/** `plainly` of `wasm.rs`: makes a call without emnapi. Gives `ORDINARY` if the ordinary call is to be made. */
type Plainly = (call: number, domain: number, first: number, second: number) => Address
const ORDINARY = (2 ** 32 - 1) as Address

/** Whether the module's integers have a value. */
const isWord = (value: unknown): value is number => typeof value === 'number' && value >>> 0 === value

/** Those functions of a binding that try first whether the call can be made without emnapi. */
function quickened(binding: Binding, plainly: Plainly): Pick<Binding, DomainName | 'incref' | 'decref' | 'refcount'> {
  const domain = (number: number, ordinary: DomainCalls): DomainCalls =>
    Object.freeze<DomainCalls>({
      ...ordinary,
      malloc(size, heap) {
        const block = isWord(size) ? plainly(0, number, size, 0) : ORDINARY
        return block === ORDINARY ? ordinary.malloc(size, heap) : block || null
      },
      calloc(count, size, heap) {
        const block = isWord(count) && isWord(size) ? plainly(1, number, count, size) : ORDINARY
        return block === ORDINARY ? ordinary.calloc(count, size, heap) : block || null
      },
      realloc(address, size, heap) {
        const block = isWord(address) && isWord(size) ? plainly(2, number, address, size) : ORDINARY
        return block === ORDINARY ? ordinary.realloc(address, size, heap) : block || null
      },
      free(address, heap) {
        if (!isWord(address) || plainly(3, number, address, 0) === ORDINARY) ordinary.free(address, heap)
      },
    })
  const { raw, mem, obj, incref, decref, refcount } = binding
  return {
    raw: domain(0, raw),
    mem: domain(1, mem),
    obj: domain(2, obj),
    incref(object, heap) {
      if (!isWord(object) || plainly(4, 0, object, 0) === ORDINARY) incref(object, heap)
    },
    decref(object, heap) {
      if (!isWord(object) || plainly(5, 0, object, 0) === ORDINARY) decref(object, heap)
    },
    refcount(object, heap) {
      const count = isWord(object) ? plainly(6, 0, object, 0) : ORDINARY
      return count === ORDINARY ? refcount(object, heap) : count
    },
  }
}

function unusable(why: string): Error {
  return new MemoryFault('ERR_INTERNAL', `a broken invariant of obmalloc itself; load it anew (${why})`)
}

/** `napi_generic_failure` */
const GENERIC_FAILURE = 9

/** Makes an instance. `refusal` is what the functions throw that it does not have. */
export function instantiate(bytes: Uint8Array<ArrayBuffer>, emnapi: Emnapi, refusal: () => Error): { bind(): Binding } {
  const context = emnapi.createContext()
  // Heaps are used until the very end of a process, also after its loop has run dry.
  context.suppressDestroy()
  /** Calls of JavaScript's that the module waits for. */
  let callbacks = 0
  let memory: { readonly buffer: ArrayBuffer }
  const own = (address: number, count: number) => new Bytes(memory.buffer, address >>> 0, count >>> 0)
  /** Bytes of the array with a handle. */
  function array(handle: number, offset: number, count: number): Uint8Array<ArrayBuffer> {
    const value = context.handleStore.get(handle)!.value as Uint8Array<ArrayBuffer>
    return new Bytes(bufferOf(value), offsetOf(value) + (offset >>> 0), count >>> 0)
  }
  const obmalloc = {
    seconds: () => performance.now() / 1000,
    read_array: (handle: number, offset: number, to: number, count: number) => own(to, count).set(array(handle, offset, count)),
    write_array: (handle: number, offset: number, from: number, count: number) =>
      array(handle, offset, count).set(own(from, count)),
    broken(message: number, length: number): never {
      throw unusable(new TextDecoder().decode(own(message, length)))
    },
  }
  const { instance, napiModule } = emnapi.instantiateNapiModuleSync(bytes, {
    context,
    overwriteImports: (imports) => {
      const env = { ...imports['env'], ...imports['napi'], ...imports['emnapi'] }
      const callFunction = env['napi_call_function'] as (...values: number[]) => number
      // If the stack is too full for emnapi to report an exception, stop it here: nothing can unwind in the module.
      env['napi_call_function'] = (...values: number[]) => {
        callbacks++
        try {
          return apply(callFunction, undefined, values)
        } catch {
          return GENERIC_FAILURE
        } finally {
          callbacks--
        }
      }
      return { ...imports, env, obmalloc }
    },
  })
  memory = instance.exports['memory'] as typeof memory
  const callbacksUnderWay = instance.exports['callbacks_under_way'] as () => number
  /** Refuses all calls after one that a full stack cut off, which may have left the module half changed. */
  const before = () => {
    checkStack(callbacks)
    if (callbacksUnderWay() !== callbacks) throw unusable('an earlier call was ended in its middle')
  }
  const module = napiModule.exports as { bind(): Binding }
  const refuse = () => {
    throw refusal()
  }
  // As the native one's, it can be posted to no thread.
  const external = () => {}
  const plainly = instance.exports['plainly'] as (...values: number[]) => number
  const choosePlainly = instance.exports['choose_plainly'] as (realm: number, number: number) => void
  const newestRealm = instance.exports['newest_realm'] as () => number
  return {
    bind() {
      const ordinary = preceded(module.bind(), before)
      const realm = newestRealm()
      const call: Plainly = (number, domain, first, second) => {
        checkStack(callbacks)
        return (plainly(realm, callbacks, number, domain, first, second) >>> 0) as Address
      }
      return Object.freeze({
        ...Object.fromEntries(OF_TRACES.map((name) => [name, refuse])),
        ...ordinary,
        ...quickened(ordinary, call),
        choose(number?: number): number {
          if (number === undefined) return ordinary.choose()
          choosePlainly(realm, number)
          return number
        },
        external,
      }) as Binding
    },
  }
}
