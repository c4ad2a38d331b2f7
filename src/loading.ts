/** Finds the binding: the platform's own, or the one in WebAssembly. */

import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import process from 'node:process'

import type { Binding } from './native.js'
import { advice, platform } from './platform.js'
import { instantiate } from './wasm.js'

export interface Loaded {
  readonly module: { bind(): Binding }
  /** Why the binding is the one in WebAssembly; null if it is the platform's own. */
  readonly fallback: string | null
}

const WORDS = ['native', 'wasm']

/** The platform's own binding, or why there is none that can be loaded. */
function loadNative(): Loaded['module'] | { error: Error } {
  // In a clone the binding lies in the platform package's folder; installed, that is a package of its own.
  const places = [`../npm/${platform}/obmalloc.${platform}.node`, `obmalloc-${platform}`]
  const causes: unknown[] = []
  for (const place of places) {
    try {
      return require(place) as Loaded['module']
    } catch (cause) {
      causes.push(cause)
    }
  }
  const isMissing = (cause: unknown) => (cause as NodeJS.ErrnoException).code === 'MODULE_NOT_FOUND'
  const refused = causes.find((cause) => !isMissing(cause))
  const [reason] = String(refused instanceof Error ? refused.message : refused).split('\n')
  const what = refused ? `but it cannot be loaded (${reason})` : 'but found none'
  return { error: missing(`expected the native binding for ${platform}, ${what}`, refused ?? causes[0]) }
}

function missing(what: string, cause?: unknown): Error {
  const { version } = require('../package.json') as { version: string }
  return Object.assign(new Error(`${what}: ${advice(version)}`, { cause }), { code: 'ERR_NO_BINDING' })
}

/** The binding in WebAssembly; none where the package was built without it. */
function loadWasm(): Loaded['module'] | null {
  let bytes: Uint8Array<ArrayBuffer>
  try {
    bytes = readFileSync(join(__dirname, 'obmalloc.wasm'))
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null
    throw error
  }
  const emnapi = require('./emnapi.js') as Parameters<typeof instantiate>[1]
  return instantiate(bytes, emnapi, () =>
    missing(`expected the native binding for ${platform}, which reads traces, but this is WebAssembly`),
  )
}

function find(): Loaded {
  const chosen = process.env['OBMALLOC_BINDING']
  if (chosen !== undefined && chosen !== '' && !WORDS.includes(chosen))
    throw new RangeError(`expected OBMALLOC_BINDING to be ${WORDS.join(' or ')}, got ${chosen}`)
  if (chosen === 'wasm') {
    const module = loadWasm()
    if (!module)
      throw new Error('expected dist/obmalloc.wasm, which OBMALLOC_BINDING=wasm asks for, but the package was built without it')
    return { module, fallback: 'OBMALLOC_BINDING' }
  }
  const found = loadNative()
  if (!('error' in found)) return { module: found, fallback: null }
  const module = chosen === 'native' ? null : loadWasm()
  if (!module) throw found.error
  return { module, fallback: found.error.message }
}

let loaded: Loaded | undefined

/**
 * The binding. `OBMALLOC_BINDING`, which is `native` or `wasm`, chooses one; otherwise the platform's own comes first. Throws an error with the
 * code `ERR_NO_BINDING` and one line of advice when there is none that can be loaded.
 */
export function load(): Loaded {
  return (loaded ??= find())
}
