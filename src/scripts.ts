/** Calls a heap's callbacks for the binding, and handles the exceptions that they throw. */

import process from 'node:process'
import { inspect } from 'node:util'
import { isNativeError } from 'node:util/types'

import type { Address, UnraisableContext } from '../index.js'
import { callAllocator, callArenas } from './allocators.js'
import { badArgument, fault, isFault, isFunction, makeError } from './errors.js'
import { checkResult } from './functions.js'
import type { Kept } from './kept.js'
import { native, type Face } from './native.js'
import { Bytes, apply, hex } from './primordials.js'

/** The hooks by number. */
const hookNames = ['clear', 'finalize', 'del', 'dealloc'] as const

/** What a warning says before the error. */
function describe({ hook, object, type }: UnraisableContext): string {
  const where = object === undefined ? '' : ` of ${type ? `${type.name} at ` : ''}0x${hex(object, 16)}`
  return `Exception ignored in ${hook}${where}`
}

/** Also of another context. */
function isError(error: unknown): error is Error {
  return isNativeError(error) || error instanceof Error
}

/** An exception in words, and its stack. It is the script's, so that looking at it may throw, too. */
function inWords(error: unknown): { text: string; detail: string | undefined } {
  try {
    if (!isError(error)) return { text: inspect(error, { customInspect: false, depth: 0 }), detail: undefined }
    return { text: `${error.name}: ${error.message}`, detail: error.stack }
  } catch {
    return { text: 'something that cannot be shown', detail: undefined }
  }
}

function warn(error: unknown, context: UnraisableContext): void {
  const { text, detail } = inWords(error)
  process.emitWarning(`${describe(context)}: ${text}`, { type: 'UnraisableException', detail })
}

/** Reports an exception that no call can throw. */
function tell({ onUnraisable }: Kept, error: unknown, context: UnraisableContext): void {
  if (!onUnraisable) {
    warn(error, context)
    return
  }
  try {
    checkResult(apply(onUnraisable, undefined, [error, context]), 'onUnraisable')
  } catch (second) {
    warn(error, context)
    warn(second, { hook: 'onUnraisable' })
  }
}

/** Makes sure that no exception that escapes is null: to V8, null means that the execution is being terminated. */
function guarded<Callback extends (kept: Kept, ...args: never[]) => unknown>(callback: Callback): Callback {
  const guard = (kept: Kept, first: never, second: never, third: never, fourth: never): unknown => {
    try {
      return callback(kept, first, second, third, fourth)
    } catch (thrown) {
      throw thrown === null ? kept : thrown
    }
  }
  return guard as Callback
}

function traverse(kept: Kept, number: number, object: Address): unknown {
  const types = kept.types!
  let failure: unknown
  let over = false
  const threw = (cause: unknown): Error =>
    fault('ERR_CALLBACK_THREW', `traverse of ${types.numbered(number).name} threw`, object, cause)
  const visit = (referent: Address): void => {
    if (over) throw fault('ERR_REENTRANT', 'expected a visit from inside the traverse that it was given to')
    try {
      types.visit(referent)
    } catch (error) {
      // Also if the script catches it: a collection must not go on with half an answer.
      failure ??= isFault(error) ? error : threw(error)
      throw error
    }
  }
  try {
    checkResult(types.call(number, 'traverse', [object, visit]), 'traverse', object)
  } catch (error) {
    failure ??= isResultError(error) ? error : threw(error)
  }
  over = true
  return failure
}

function runHook(kept: Kept, index: number, number: number, object: Address): void {
  const types = kept.types!
  const hook = hookNames[index]!
  try {
    checkResult(types.call(number, hook, [object]), hook, object)
  } catch (error) {
    tell(kept, error, { hook, object, type: types.numbered(number) })
  }
}

function weakref(kept: Kept, callback: (ref: Address) => void, ref: Address): void {
  try {
    checkResult(apply(callback, undefined, [ref]), 'the callback of a weak reference', ref)
  } catch (error) {
    tell(kept, error, { hook: 'weakref', object: ref })
  }
}

function collection(kept: Kept, stopped: number, generation: number, collected: number, uncollectable: number): void {
  const callbacks = kept[1]
  const info = { generation, collected, uncollectable }
  // As CPython does: the same info for all, and a callback that one of them adds is called too.
  for (let index = 0; index < callbacks.length; index++) {
    try {
      const callback: unknown = callbacks[index]
      if (!isFunction(callback)) throw badArgument('ERR_INVALID_ARG_TYPE', `gc.callbacks[${index}]`, 'a function', callback)
      checkResult(apply(callback, undefined, [stopped ? 'stop' : 'start', info]), 'a callback of the collector')
    } catch (error) {
      tell(kept, error, { hook: 'callbacks' })
    }
  }
}

function isResultError(error: unknown): boolean {
  return isFault(error) && error.code === 'ERR_CALLBACK_RESULT'
}

/** The functions that the binding calls. The binding does not keep them, so each heap does. */
export const face: Face = [
  makeError,
  (length) => new Bytes(length),
  () => {},
  guarded(traverse),
  guarded(runHook),
  guarded(weakref),
  guarded(collection),
  guarded((_, text: string) => void process.stderr.write(text)),
  guarded((kept, error: unknown) => tell(kept, error, { hook: 'collect' })),
  guarded((kept, error: unknown) => tell(kept, error, { hook: 'callback' })),
  guarded(callAllocator),
  guarded((kept, size: number) => callArenas(kept, size)),
  guarded((kept, address: Address, size: number) => callArenas(kept, size, address) === true),
]
native.serve(...face)
