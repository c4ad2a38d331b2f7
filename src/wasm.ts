/** The binding in WebAssembly. It gives the same functions as the native one, but for those that read traces. Nothing here needs Node.js. */

import type { Binding } from './native.js'
import { bufferOf, Bytes, offsetOf } from './primordials.js'

/** Functions by module and name. */
type Imports = Record<string, Record<string, unknown>>

/** What is used of emnapi, which is Node-API in JavaScript. */
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

/** Makes an instance. `refusal` is what the functions throw that it does not have. */
export function instantiate(bytes: Uint8Array<ArrayBuffer>, emnapi: Emnapi, refusal: () => Error): { bind(): Binding } {
  const context = emnapi.createContext()
  // Heaps are used until the very end of a process, also after its loop has run dry.
  context.suppressDestroy()
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
      const why = new TextDecoder().decode(own(message, length))
      const error = new Error(`a broken invariant of obmalloc itself; load it anew (${why})`)
      throw Object.assign(error, { code: 'ERR_INTERNAL' })
    },
  }
  const { instance, napiModule } = emnapi.instantiateNapiModuleSync(bytes, {
    context,
    overwriteImports: (imports) => ({
      ...imports,
      env: { ...imports['env'], ...imports['napi'], ...imports['emnapi'] },
      obmalloc,
    }),
  })
  memory = instance.exports['memory'] as typeof memory
  const module = napiModule.exports as { bind(): Binding }
  const refuse = () => {
    throw refusal()
  }
  // As the native one's, it can be posted to no thread.
  const external = () => {}
  return {
    bind: () =>
      Object.freeze({ ...Object.fromEntries(OF_TRACES.map((name) => [name, refuse])), ...module.bind(), external }) as Binding,
  }
}
