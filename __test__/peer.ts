/** Stands in for faulty native code: writes anywhere in the process, through the file of its memory. */

import { closeSync, openSync, readSync, writeSync } from 'node:fs'

function withMemory<T>(use: (file: number) => T): T {
  const file = openSync('/proc/self/mem', 'r+')
  try {
    return use(file)
  } finally {
    closeSync(file)
  }
}

/** Writes bytes at an address. */
export function poke(address: number, bytes: Uint8Array): void {
  const written = withMemory((file) => writeSync(file, bytes, 0, bytes.length, address))
  if (written !== bytes.length) throw new Error(`wrote ${written} of ${bytes.length} bytes at ${address}`)
}

/** Reads bytes at an address. */
export function peek(address: number, length: number): Uint8Array {
  const bytes = new Uint8Array(length)
  const read = withMemory((file) => readSync(file, bytes, 0, length, address))
  if (read !== length) throw new Error(`read ${read} of ${length} bytes at ${address}`)
  return bytes
}
