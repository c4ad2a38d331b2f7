/** Writes a command's text to stdout, or to a new file. */

import { writeFileSync } from 'node:fs'
import process from 'node:process'

import { say } from './terminal.js'
import { UsageError } from './usage.js'

/** `-o` and `-f`. */
export interface Output {
  readonly output?: string
  readonly force?: boolean
}

/** Writes a file. Throws {@link UsageError} when there is one already, unless it may be replaced. */
export function writeNew(path: string, data: string | Uint8Array, force = false): void {
  try {
    writeFileSync(path, data, { flag: force ? 'w' : 'wx' })
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error
    throw new UsageError(`${path} is there already; --force replaces it`)
  }
}

/** Puts a text where it is wanted. */
export function emit(text: string, { output, force = false }: Output): void {
  if (output === undefined) process.stdout.write(text)
  else {
    writeNew(output, text, force)
    say(`written to ${output}`)
  }
}
