/** The errors, and how the binding's findings become one. */

import { inspect, types } from 'node:util'

import type { Address, DomainName, FaultCode } from '../index.js'
import type { ErrorMaker } from './native.js'

function define(error: object, fields: Record<string, unknown>): void {
  for (const [name, value] of Object.entries(fields)) {
    if (value !== undefined) Object.defineProperty(error, name, { value, enumerable: true, configurable: true, writable: true })
  }
}

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

  constructor(code: FaultCode, message: string, fields: object = {}) {
    const { cause, ...others } = fields as Record<string, unknown>
    super(message, cause === undefined ? undefined : { cause })
    define(this, { code, ...others })
  }
}
Object.defineProperty(MemoryFault.prototype, 'name', { value: 'MemoryFault', configurable: true, writable: true })

export class MemoryError extends Error {
  declare readonly code: 'ERR_NO_MEMORY'

  constructor(message: string, fields: object = {}) {
    super(message)
    define(this, { code: 'ERR_NO_MEMORY', ...fields })
  }
}
Object.defineProperty(MemoryError.prototype, 'name', { value: 'MemoryError', configurable: true, writable: true })

/** Whether something can be called without `new`. Runs no code of its own. */
export function isFunction(value: unknown): value is (this: unknown, ...args: unknown[]) => unknown {
  if (typeof value !== 'function') return false
  if (types.isProxy(value)) return !inspect(value, { showProxy: true, depth: -1 }).startsWith('<Revoked')
  return !/^class\b/.test(Function.prototype.toString.call(value))
}

/** What came, in a few words; asks nothing of the value itself. */
function describe(value: unknown): string {
  switch (typeof value) {
    case 'string':
      return value.length > 40 ? `${JSON.stringify(value.slice(0, 40))}...` : JSON.stringify(value)
    case 'bigint':
      return `${value}n`
    case 'number':
      return Object.is(value, -0) ? '-0' : String(value)
    case 'function':
      if (isFunction(value)) return 'a function'
      return types.isProxy(value) ? 'a revoked proxy' : 'a class'
    case 'object':
      return value === null ? 'null' : 'an object'
    default:
      return String(value)
  }
}

/** An argument that is not what is expected. */
export function badArgument(
  code: 'ERR_INVALID_ARG_TYPE' | 'ERR_OUT_OF_RANGE',
  name: string,
  expected: string,
  received: unknown,
): Error {
  return makeError(code, expected, { name, received })
}

/** Makes the error for a code. Its stack begins with the call that went wrong. */
export const makeError: ErrorMaker = (code, message, fields) => {
  const error = newError(code, message, fields)
  Error.captureStackTrace(error, makeError)
  return error
}

function newError(code: string, message: string, { name, received, ...fields }: Record<string, unknown>): Error {
  const text = name === undefined ? message : `${String(name)}: expected ${message}, got ${describe(received)}`
  switch (code) {
    case 'ERR_INVALID_ARG_TYPE':
    case 'ERR_OUT_OF_RANGE': {
      const error = code === 'ERR_OUT_OF_RANGE' ? new RangeError(text) : new TypeError(text)
      define(error, { code, ...fields })
      return error
    }
    case 'ERR_NO_MEMORY':
      return new MemoryError(text, fields)
    default:
      return new MemoryFault(code as FaultCode, text, fields)
  }
}
