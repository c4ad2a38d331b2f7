/** Callbacks as values: what can be one, and what one may give. */

import { inspect, types } from 'node:util'

import type { Address } from '../index.js'
import { badArgument, makeError } from './errors.js'

type Callback = (this: unknown, ...args: unknown[]) => unknown

/** Whether something can be called without `new`. Runs no code of its own. */
export function isFunction(value: unknown): value is Callback {
  if (typeof value !== 'function') return false
  if (types.isProxy(value)) return !inspect(value, { showProxy: true, depth: -1 }).startsWith('<Revoked')
  return !/^class\b/.test(Function.prototype.toString.call(value))
}

/** A callback that has to be a function, or may be left out. */
export function checkFunction(name: string, value: unknown): void {
  if (value !== undefined && !isFunction(value)) throw badArgument('ERR_INVALID_ARG_TYPE', name, 'a function', value)
}

/** Whether what a callback gave is something to wait for, because nobody would. */
export function isAwaited(result: unknown): boolean {
  // What becomes of it is nobody's any more; least of all is it an unhandled rejection.
  if (types.isPromise(result)) Promise.prototype.then.call(result, undefined, () => {})
  return types.isPromise(result) || types.isGeneratorObject(result)
}

/** Refuses what a callback gave where that is something to wait for. */
export function checkResult(result: unknown, what: string, address?: Address): void {
  if (!isAwaited(result)) return
  throw makeError('ERR_CALLBACK_RESULT', `expected ${what} to be done when it returns, but it gave something to wait for`, {
    address,
  })
}
