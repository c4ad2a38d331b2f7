/** How heaps, and the objects that belong to them, show themselves: as data, and to `util.inspect`. */

import type { HeapSummary } from '../index.js'
import { native, on, type Handle, type Made } from './native.js'
import { append, isArray, join, keys, parse, text } from './primordials.js'

const { summary } = native

/** Where `util.inspect` of Node.js looks. */
export const inspected: unique symbol = Symbol.for('nodejs.util.inspect.custom') as never

/** The facts about a heap, also a closed one. Runs no code of a script. */
export function summaryOf(handle: Handle): HeapSummary {
  const { release, allocator } = handle.made
  return { release, allocator, ...(parse(summary(on(handle))) as Omit<HeapSummary, keyof Made>) }
}

/** Data as `util.inspect` shows it, on one line. */
export function shown(name: string, data: object): string {
  return `${name} ${textOf(data)}`
}

function textOf(value: unknown): string {
  if (typeof value === 'string') return `'${value}'`
  if (typeof value !== 'object' || value === null) return text(value)
  const names = keys(value)
  const parts: string[] = []
  for (let index = 0; index < names.length; index++) {
    const name = names[index]!
    const part = textOf((value as Record<string, unknown>)[name])
    append(parts, isArray(value) ? part : `${name}: ${part}`)
  }
  const all = join(parts, ', ')
  if (isArray(value)) return parts.length === 0 ? '[]' : `[ ${all} ]`
  return `{ ${all} }`
}
