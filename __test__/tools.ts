/** What several tests need. */

import { execFile } from 'node:child_process'
import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { setFlagsFromString } from 'node:v8'
import { setImmediate as turn } from 'node:timers/promises'
import { runInNewContext } from 'node:vm'

import type { Address, ArenaAllocator, Heap, Release } from 'obmalloc'

import { platform } from '../dist/platform.js'

const built = new URL(`../npm/${platform}/`, import.meta.url)

/** The file of the platform's own binding. */
export const addon = fileURLToPath(new URL(`obmalloc.${platform}.node`, built))

/** Whether the tests run with the binding in WebAssembly. */
export const isWasm = process.env['OBMALLOC_BINDING'] === 'wasm'

/** Whether what is loaded into CPythons has been built for this platform. */
export const canRecord = existsSync(new URL('libobmalloc_preload.so', built))

export const releases: Release[] = ['3.8', '3.9', '3.10', '3.11', '3.12', '3.13', '3.14.0', '3.14', '3.15']

/** A block that must be there. */
export function some(address: Address | null): Address {
  if (address === null) throw new Error('expected a block')
  return address
}

/** Collects garbage and lets finalizers run, again and again, until `done` is true or it has been tried often enough. */
export async function collectUntil(done: () => boolean, rounds = 50): Promise<boolean> {
  setFlagsFromString('--expose-gc')
  const gc = runInNewContext('gc') as () => void
  for (let round = 0; round < rounds; round++) {
    gc()
    await turn()
    if (done()) return true
    // An object that `deref` gave lives until the present turn of the event loop ends.
    await turn()
  }
  return false
}

export const KiB = 1024

type Transfer = (this: ArrayBufferLike) => ArrayBuffer
let known = (ArrayBuffer.prototype as unknown as { transfer?: Transfer }).transfer

/** Moves a buffer's bytes into a new buffer, as `ArrayBuffer.prototype.transfer` does. Node.js 20 has that behind a flag. */
export function transfer(buffer: ArrayBufferLike): ArrayBuffer {
  if (!known) {
    setFlagsFromString('--harmony-rab-gsab-transfer')
    known = runInNewContext('ArrayBuffer.prototype.transfer') as Transfer
  }
  return known.call(buffer)
}

/** An arena allocator over a heap's own allocator for raw, which counts the arenas that were not given back. */
export function arenasFrom(heap: Heap): ArenaAllocator & { held: Set<Address>; calls: string[] } {
  const raw = heap.getAllocator('raw')
  const held = new Set<Address>()
  const calls: string[] = []
  return {
    held,
    calls,
    alloc(size) {
      calls.push('alloc')
      const address = raw.malloc(size)
      if (address !== null) held.add(address)
      return address
    },
    free(address) {
      calls.push('free')
      if (!held.delete(address)) throw new Error(`${address} is not out`)
      raw.free(address)
    },
  }
}

/** Builds the binding with the feature `panics`, and returns its path. `OBMALLOC_INJECTED` names one that was built for another platform. */
export async function buildInjected(): Promise<string> {
  const built = process.env['OBMALLOC_INJECTED']
  if (built) return built
  const build = ['build', '--quiet', '-p', 'obmalloc-node', '--features', 'panics', '--message-format=json']
  const { stdout } = await promisify(execFile)('cargo', build, { cwd: new URL('..', import.meta.url), maxBuffer: 1 << 28 })
  const artifacts = stdout
    .split('\n')
    .filter((line) => line.includes('libobmalloc_node.so'))
    .map((line) => JSON.parse(line) as { filenames: string[] })
  return artifacts.at(-1)!.filenames[0]!
}

/** The code of the error that a call throws; undefined if it throws none. */
export const codeOf = (call: () => unknown): unknown => {
  try {
    call()
    return undefined
  } catch (error) {
    return (error as { code?: unknown }).code
  }
}
