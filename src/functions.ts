/** Callbacks as values: what can be one, and what one may give. */

import { types } from 'node:util'

import type { Address } from '../index.js'
import { badArgument, fault, isFunction } from './errors.js'
import { settle } from './primordials.js'

/** A callback that has to be a function, or may be left out. */
export function checkFunction(name: string, value: unknown): void {
  if (value !== undefined && !isFunction(value)) throw badArgument('ERR_INVALID_ARG_TYPE', name, 'a function', value)
}

/** Whether a callback returned a promise, which would never be awaited. */
export function isAwaited(result: unknown): boolean {
  // Its result is ignored, so that it is no unhandled rejection either.
  if (types.isPromise(result)) settle(result, undefined, () => {})
  return types.isPromise(result) || types.isGeneratorObject(result)
}

/** What an allocator's function gave, which the binding judges; what it would have to wait for is no address. */
export function settled(result: unknown): unknown {
  return isAwaited(result) ? undefined : result
}

/** Refuses what a callback gave where that is something to wait for. */
export function checkResult(result: unknown, what: string, address?: Address): void {
  if (!isAwaited(result)) return
  throw fault('ERR_CALLBACK_RESULT', `expected ${what} to be done when it returns, but it gave something to wait for`, address)
}
