/** Checks callbacks, and the values that they return. */

import { types } from 'node:util'

import type { Address } from '../index.js'
import { badArgument, fault, isFunction } from './errors.js'
import { promiseThen } from './primordials.js'

/** A callback that must be a function, or left out. */
export function checkFunction(name: string, value: unknown): void {
  if (value !== undefined && !isFunction(value)) throw badArgument('ERR_INVALID_ARG_TYPE', name, 'a function', value)
}

/** Whether a callback returned a promise, which would never be awaited. */
export function isAwaited(result: unknown): boolean {
  // Ignore its result, so that it is no unhandled rejection.
  if (types.isPromise(result)) promiseThen(result, undefined, () => {})
  return types.isPromise(result) || types.isGeneratorObject(result)
}

/** The value that an allocator's function returned, for the binding to judge; `undefined` in place of a promise. */
export function settled(result: unknown): unknown {
  return isAwaited(result) ? undefined : result
}

/** Refuses a promise as the result of a callback. */
export function checkResult(result: unknown, what: string, address?: Address): void {
  if (!isAwaited(result)) return
  throw fault('ERR_CALLBACK_RESULT', `expected ${what} to be done when it returns, but it gave something to wait for`, address)
}
