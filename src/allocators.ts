/** Allocators as values: the heap's own ones, made when they are first taken out, and a script's, called by number. */

import type { Address, Allocator, DomainName, Size } from '../index.js'
import { badArgument, isFunction } from './errors.js'
import { isAwaited, settled } from './functions.js'
import type { Handle } from './native.js'

const functions = ['malloc', 'calloc', 'realloc', 'free'] as const

function isAllocator(value: unknown): value is Allocator {
  const object = typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : undefined
  return object !== undefined && functions.every((name) => isFunction(object[name]))
}

/** One of the heap's own allocators. */
function nativeAllocator(handle: Handle, number: number): Allocator {
  return Object.freeze({
    malloc: (size: Size): Address | null => handle.nativeMalloc(number, size),
    calloc: (count: Size, size: Size): Address | null => handle.nativeCalloc(number, count, size),
    realloc: (address: Address | null, size: Size): Address | null => handle.nativeRealloc(number, address, size),
    free: (address: Address | null): void => handle.nativeFree(number, address),
  })
}

/** A heap's allocators, each at its number, so that the same one is always the same object. */
export class Allocators {
  readonly #handle: Handle
  readonly #natives: Allocator[] = []
  readonly #scripts: Allocator[] = []

  constructor(handle: Handle) {
    this.#handle = handle
    handle.onAllocate = (script, verb, first, second) => {
      const allocator = this.#scripts[script]!
      switch (functions[verb]) {
        case 'malloc':
          return settled(allocator.malloc(first))
        case 'calloc':
          return settled(allocator.calloc(first, second))
        case 'realloc':
          return settled(allocator.realloc((first as Address) || null, second))
        default:
          return isAwaited(allocator.free((first as Address) || null))
      }
    }
  }

  get(domain: DomainName): Allocator {
    const number = this.#handle.presentAllocator(domain)
    return number < 0 ? this.#scripts[-1 - number]! : (this.#natives[number] ??= nativeAllocator(this.#handle, number))
  }

  set(domain: DomainName, allocator: Allocator): void {
    const native = this.#natives.indexOf(allocator)
    if (native >= 0 && this.#handle.setNative(domain, native)) return
    if (!isAllocator(allocator)) {
      const expected = 'an object with the functions malloc, calloc, realloc and free'
      throw badArgument('ERR_INVALID_ARG_TYPE', 'allocator', expected, allocator)
    }
    const known = this.#scripts.indexOf(allocator)
    const script = known >= 0 ? known : this.#scripts.length
    this.#handle.setScript(domain, script)
    this.#scripts[script] = allocator
  }
}
