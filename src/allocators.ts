/** Allocators as values: the heap's own, made when they are first taken out, and a script's, which the binding calls by number. */

import type { Address, Allocator, DomainName, Size } from '../index.js'
import { badArgument, isFunction } from './errors.js'
import { isAwaited, settled } from './functions.js'
import type { Kept } from './kept.js'
import { native, on, type Handle } from './native.js'
import { NewMap, freeze, mapGet, mapSet } from './primordials.js'

const { nativeMalloc, nativeCalloc, nativeRealloc, nativeFree, presentAllocator, setNative, addScript, setScript } = native

function isAllocator(value: unknown): value is Allocator {
  if (typeof value !== 'object' || value === null) return false
  const { malloc, calloc, realloc, free } = value as Record<string, unknown>
  return isFunction(malloc) && isFunction(calloc) && isFunction(realloc) && isFunction(free)
}

/** One of the heap's own allocators. */
function nativeAllocator(handle: Handle, number: number): Allocator {
  return freeze({
    malloc: (size: Size): Address | null => nativeMalloc(number, size, on(handle)),
    calloc: (count: Size, size: Size): Address | null => nativeCalloc(number, count, size, on(handle)),
    realloc: (address: Address | null, size: Size): Address | null => nativeRealloc(number, address, size, on(handle)),
    free: (address: Address | null): void => nativeFree(number, address, on(handle)),
  })
}

/** A heap's allocators, each at its number, so that an allocator is always the same object. */
export class Allocators {
  readonly #handle: Handle
  readonly #natives = new NewMap<number, Allocator>()
  readonly #nativeNumbers = new NewMap<Allocator, number>()
  readonly #scripts = new NewMap<number, Allocator>()
  readonly #scriptNumbers = new NewMap<Allocator, number>()

  constructor(handle: Handle) {
    this.#handle = handle
  }

  get(domain: DomainName): Allocator {
    const number = presentAllocator(domain, on(this.#handle))
    if (number < 0) return this.script(-1 - number)
    const known = mapGet(this.#natives, number)
    if (known) return known
    const made = nativeAllocator(this.#handle, number)
    mapSet(this.#natives, number, made)
    mapSet(this.#nativeNumbers, made, number)
    return made
  }

  set(domain: DomainName, allocator: Allocator): void {
    const own = mapGet(this.#nativeNumbers, allocator)
    if (own !== undefined && setNative(domain, own, on(this.#handle))) return
    if (!isAllocator(allocator)) {
      const expected = 'an object with the functions malloc, calloc, realloc and free'
      throw badArgument('ERR_INVALID_ARG_TYPE', 'allocator', expected, allocator)
    }
    setScript(domain, this.#numberOf(allocator), on(this.#handle))
  }

  /** The number of an allocator. It must be known before the allocator is put in, because that may run scripts that put in others. */
  #numberOf(allocator: Allocator): number {
    const known = mapGet(this.#scriptNumbers, allocator)
    if (known !== undefined) return known
    const number = addScript(on(this.#handle))
    mapSet(this.#scripts, number, allocator)
    mapSet(this.#scriptNumbers, allocator, number)
    return number
  }

  script(number: number): Allocator {
    return mapGet(this.#scripts, number)!
  }
}

/** Calls a function of a script's allocator, by its number in this order: malloc, calloc, realloc, free. */
export function callAllocator(kept: Kept, script: number, verb: number, first: number | null, second: number): unknown {
  const allocator = kept.allocators!.script(script)
  switch (verb) {
    case 0:
      return settled(allocator.malloc(first!))
    case 1:
      return settled(allocator.calloc(first!, second))
    case 2:
      return settled(allocator.realloc(first as Address | null, second))
    default:
      return isAwaited(allocator.free(first as Address | null))
  }
}

/** Asks a script for an arena, or gives it one back. Giving back returns whether the script returned a promise. */
export function callArenas({ arenas }: Kept, size: number, address?: Address): unknown {
  return address === undefined ? settled(arenas!.alloc(size)) : isAwaited(arenas!.free(address, size))
}
