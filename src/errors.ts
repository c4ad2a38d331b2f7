/** The errors, and how the binding's failures become errors. */

import { inspect, types } from 'node:util'

import type { Address, DomainName, FaultCode } from '../index.js'
import type { ErrorMaker } from './native.js'
import {
  NewRangeError,
  NewTypeError,
  asIntN,
  captureStackTrace,
  define,
  defineProperty,
  freeze,
  is,
  keys,
  preventExtensions,
  slice,
  stringify,
  text,
  textOf,
} from './primordials.js'

const none = freeze({ __proto__: null }) as object

/** Sets the known details on an error. */
function add(error: object, name: string, value: unknown): void {
  if (value !== undefined) define(error, name, value)
}

function addAll(error: object, code: string, fields: object): void {
  define(error, 'code', code)
  const names = keys(fields)
  for (let index = 0; index < names.length; index++)
    if (names[index] !== 'code') add(error, names[index]!, fields[names[index] as keyof typeof fields])
}

function nameAfter(prototype: object, value: string): void {
  defineProperty(prototype, 'name', { __proto__: null, value, configurable: true, writable: true } as PropertyDescriptor)
}

/** An error's name, message and what else is known; `util.inspect` shows the same, and the stack. */
function dataOf(name: string, error: Error): object {
  const data = { name, message: error.message }
  const names = keys(error)
  // Copied one by one, because a spread makes V8 format the stack.
  for (let index = 0; index < names.length; index++) define(data, names[index]!, error[names[index] as keyof Error])
  return data
}

let isOwn: (error: object) => boolean

export class MemoryFault extends Error {
  declare readonly code: FaultCode
  declare readonly address?: Address
  declare readonly domain?: DomainName
  declare readonly used?: DomainName
  declare readonly allocated?: DomainName
  declare readonly base?: Address
  declare readonly object?: Address
  declare readonly referent?: Address
  declare readonly offset?: number
  declare readonly report?: string
  declare readonly index?: number
  readonly #isFault = true

  static {
    isOwn = (error) => #isFault in error && error.#isFault
  }

  constructor(code: FaultCode, message: string, fields: object = {}) {
    const { cause, ...others } = fields as Record<string, unknown>
    super(message, cause === undefined ? undefined : ({ __proto__: null, cause } as ErrorOptions))
    addAll(this, code, others)
  }

  toJSON(): object {
    return dataOf('MemoryFault', this)
  }
}
nameAfter(MemoryFault.prototype, 'MemoryFault')
// The base class must not change: the binding would run a script's constructor each time it makes an error.
preventExtensions(MemoryFault)

/** Whether something is an error of that class, even if scripts have changed `instanceof`. */
export function isFault(error: unknown): error is MemoryFault {
  return typeof error === 'object' && error !== null && isOwn(error)
}

export class MemoryError extends Error {
  declare readonly code: 'ERR_NO_MEMORY'

  constructor(message: string, fields: object = {}) {
    super(message)
    addAll(this, 'ERR_NO_MEMORY', fields)
  }

  toJSON(): object {
    return dataOf('MemoryError', this)
  }
}
nameAfter(MemoryError.prototype, 'MemoryError')
preventExtensions(MemoryError)

/** Whether something can be called without `new`. Runs no code of a script. */
export function isFunction(value: unknown): value is (this: unknown, ...args: unknown[]) => unknown {
  if (typeof value !== 'function') return false
  if (types.isProxy(value)) return slice(inspect(value, { showProxy: true, depth: -1, colors: false }), 0, 8) !== '<Revoked'
  return !isClass(textOf(value))
}

/** Whether a function's text is a class's. */
function isClass(source: string): boolean {
  if (slice(source, 0, 5) !== 'class') return false
  const next = slice(source, 5, 6)
  return next === ' ' || next === '{' || next === '/' || next === '\n' || next === '\t' || next === '\r'
}

/** Bigints up to this many bits are written out in full. */
const LONG = 256

/** Describes a value in a few words, without running code of the value. */
function describe(value: unknown): string {
  switch (typeof value) {
    case 'string':
      return value.length > 40 ? `${stringify(slice(value, 0, 40))}...` : stringify(value)
    case 'bigint':
      // Writing out a bigint of a billion bits takes minutes.
      return asIntN(LONG, value) === value ? `${value}n` : `a BigInt of more than ${LONG} bits`
    case 'number':
      return is(value, -0) ? '-0' : text(value)
    case 'function':
      if (isFunction(value)) return 'a function'
      return types.isProxy(value) ? 'a revoked proxy' : 'a class'
    case 'object':
      return value === null ? 'null' : 'an object'
    default:
      return text(value)
  }
}

/** An argument that is not what is expected. */
export function badArgument(
  code: 'ERR_INVALID_ARG_TYPE' | 'ERR_OUT_OF_RANGE',
  name: string,
  expected: string,
  received: unknown,
): Error {
  return makeError(code, expected, name, received)
}

/** What a callback did wrong. */
export function fault(code: FaultCode, message: string, address?: Address, cause?: unknown): Error {
  return makeError(code, message, undefined, undefined, cause, address)
}

/** Makes the error for a code. Its stack begins with the call that went wrong. */
export const makeError: ErrorMaker = (
  code,
  message,
  name,
  received,
  cause,
  address,
  domain,
  used,
  allocated,
  base,
  object,
  referent,
  offset,
  report,
  index,
) => {
  const said = name === undefined ? message : `${name}: expected ${message}, got ${describe(received)}`
  const error = newError(code, said, cause === undefined ? none : { __proto__: null, cause })
  add(error, 'address', address)
  add(error, 'domain', domain)
  add(error, 'used', used)
  add(error, 'allocated', allocated)
  add(error, 'base', base)
  add(error, 'object', object)
  add(error, 'referent', referent)
  add(error, 'offset', offset)
  add(error, 'report', report)
  add(error, 'index', index)
  captureStackTrace(error, makeError)
  return error
}

function newError(code: string, message: string, fields: object): Error {
  switch (code) {
    case 'ERR_INVALID_ARG_TYPE':
    case 'ERR_OUT_OF_RANGE': {
      const error = code === 'ERR_OUT_OF_RANGE' ? new NewRangeError(message) : new NewTypeError(message)
      addAll(error, code, fields)
      return error
    }
    case 'ERR_NO_MEMORY':
      return new MemoryError(message, fields)
    default:
      return new MemoryFault(code as FaultCode, message, fields)
  }
}
