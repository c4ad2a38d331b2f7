/** A heap's callbacks: what the binding calls, and what becomes of what they throw. */

import process from 'node:process'
import { inspect } from 'node:util'
import { isNativeError } from 'node:util/types'

import type { Address, HeapOptions, UnraisableContext } from '../index.js'
import { MemoryFault, badArgument, isFunction, makeError } from './errors.js'
import { checkResult } from './functions.js'
import type { Handle } from './native.js'
import type { Types } from './type.js'

/** The hooks that `onHook` is told of, by number. */
const hookNames = ['clear', 'finalize', 'del', 'dealloc'] as const

const hex = (address: Address): string => `0x${address.toString(16)}`

/** What a warning says before the error. */
function describe({ hook, object, type }: UnraisableContext): string {
  const where = object === undefined ? '' : ` of ${type ? `${type.name} at ` : ''}${hex(object)}`
  return `Exception ignored in ${hook}${where}`
}

/** Also of another context. */
function isError(error: unknown): error is Error {
  return isNativeError(error) || error instanceof Error
}

function warn(error: unknown, context: UnraisableContext): void {
  const detail = isError(error) ? error.stack : undefined
  const text = isError(error) ? `${error.name}: ${error.message}` : inspect(error, { customInspect: false, depth: 0 })
  process.emitWarning(`${describe(context)}: ${text}`, { type: 'UnraisableException', detail })
}

/** Lets the binding call the functions of types and all other callbacks of a heap. */
export function serve(handle: Handle, types: Types, onUnraisable: HeapOptions['onUnraisable']): void {
  /** What no call can throw. */
  const tell = (error: unknown, context: UnraisableContext): void => {
    if (!onUnraisable) {
      warn(error, context)
      return
    }
    try {
      checkResult(Reflect.apply(onUnraisable, undefined, [error, context]), 'onUnraisable')
    } catch (second) {
      warn(error, context)
      warn(second, { hook: 'onUnraisable' })
    }
  }

  /** Whether all went well; if not, `failures` says what did not. */
  handle.onTraverse = (number, object, around) => {
    let failure: unknown
    let over = false
    const threw = (cause: unknown): Error =>
      makeError('ERR_CALLBACK_THREW', `traverse of ${types.numbered(number).name} threw`, { cause, address: object })
    const visit = (referent: Address): void => {
      if (over) throw makeError('ERR_REENTRANT', 'expected a visit from inside the traverse that it was given to', {})
      try {
        handle.visit(referent)
      } catch (error) {
        // Also where the script catches it: a collection must not go on with half an answer.
        failure ??= error instanceof MemoryFault ? error : threw(error)
        throw error
      }
    }
    try {
      checkResult(types.call(number, 'traverse', [object, visit]), 'traverse', object)
    } catch (error) {
      failure ??= isResultError(error) ? error : threw(error)
    }
    over = true
    if (failure === undefined) return true
    handle.failures[around] = failure
    return false
  }

  handle.onHook = (index, number, object) => {
    const hook = hookNames[index]!
    try {
      checkResult(types.call(number, hook, [object]), hook, object)
    } catch (error) {
      tell(error, { hook, object, type: types.numbered(number) })
    }
  }

  handle.onWeakref = (index, ref) => {
    try {
      checkResult(Reflect.apply(handle.weakrefCallbacks[index]!, undefined, [ref]), 'the callback of a weak reference', ref)
    } catch (error) {
      tell(error, { hook: 'weakref', object: ref })
    }
  }

  handle.onCollection = (stopped, generation, collected, uncollectable) => {
    const { callbacks } = handle
    const info = { generation, collected, uncollectable }
    // As CPython does: the same info for all, and a callback that one of them adds is called too.
    for (let index = 0; index < callbacks.length; index++) {
      const callback: unknown = callbacks[index]
      try {
        if (!isFunction(callback)) throw badArgument('ERR_INVALID_ARG_TYPE', `gc.callbacks[${index}]`, 'a function', callback)
        checkResult(Reflect.apply(callback, undefined, [stopped ? 'stop' : 'start', info]), 'a callback of the collector')
      } catch (error) {
        tell(error, { hook: 'callbacks' })
      }
    }
  }

  handle.onLook = () => {}
  handle.onText = (text) => void process.stderr.write(text)
  handle.onFailure = (error) => tell(error, { hook: 'collect' })
  handle.onEscaped = () => {
    // Taken out when it has been told, because that may fail too.
    for (; handle.escaped.length > 0; handle.escaped.shift()) tell(handle.escaped[0], { hook: 'callback' })
  }
}

function isResultError(error: unknown): boolean {
  return error instanceof MemoryFault && error.code === 'ERR_CALLBACK_RESULT'
}
