/** Looks at the arguments of the functions on recordings: one of the wrong kind is a TypeError, one outside its range a RangeError, as at heaps. */

import { badArgument } from './errors.js'

/** Says whether a value is of a kind, or throws. The name is the argument's. */
export type Kind = (name: string, value: unknown) => void

function kind(expected: string, is: (value: unknown) => boolean): Kind {
  return (name, value) => {
    if (!is(value)) throw badArgument('ERR_INVALID_ARG_TYPE', name, expected, value)
  }
}

const isObject = (value: unknown): value is Record<string, unknown> => typeof value === 'object' && value !== null

export const text = kind('a string', (value) => typeof value === 'string')
export const flag = kind('a boolean', (value) => typeof value === 'boolean')
export const func = kind('a function', (value) => typeof value === 'function')
export const signal = kind('an AbortSignal', (value) => isObject(value) && typeof value['throwIfAborted'] === 'function')

const COUNT = 'an integer from 0 to 2**53 - 1'

export const count: Kind = (name, value) => {
  if (typeof value !== 'number') throw badArgument('ERR_INVALID_ARG_TYPE', name, COUNT, value)
  if (!Number.isSafeInteger(value) || value < 0) throw badArgument('ERR_OUT_OF_RANGE', name, COUNT, value)
}

/** One of these words. */
export function word(...words: readonly string[]): Kind {
  const expected = `one of ${words.map((name) => `'${name}'`).join(', ')}`
  return (name, value) => {
    if (typeof value !== 'string') throw badArgument('ERR_INVALID_ARG_TYPE', name, expected, value)
    if (!words.includes(value)) throw badArgument('ERR_OUT_OF_RANGE', name, expected, value)
  }
}

/** An array, each of whose items is of a kind. */
export function list(each: Kind): Kind {
  return (name, value) => {
    if (!Array.isArray(value)) throw badArgument('ERR_INVALID_ARG_TYPE', name, 'an array', value)
    for (const [index, item] of value.entries()) each(`${name}[${index}]`, item)
  }
}

/** An object with members of these kinds; those that are not in `needed` may be left out. Members of other names are not looked at. */
export function shape(members: Readonly<Record<string, Kind>>, ...needed: readonly string[]): Kind {
  return (name, value) => {
    if (!isObject(value)) throw badArgument('ERR_INVALID_ARG_TYPE', name, 'an object', value)
    for (const [member, is] of Object.entries(members)) {
      const found = value[member]
      if (found !== undefined || needed.includes(member)) is(name === 'options' ? member : `${name}.${member}`, found)
    }
  }
}

/** An object whose members are all of a kind. */
export function every(each: Kind): Kind {
  return (name, value) => {
    if (!isObject(value)) throw badArgument('ERR_INVALID_ARG_TYPE', name, 'an object', value)
    for (const [member, found] of Object.entries(value)) each(`${name}.${member}`, found)
  }
}
