/** Writes a command's text to stdout, or to a new file. */

import { lstatSync, statSync, writeFileSync } from 'node:fs'
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
    writeFileSync(path, data, { flag: force || isLinkToNothing(path) ? 'w' : 'wx' })
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === 'EEXIST') throw new UsageError(`${path} is there already; --force replaces it`)
    throw new Error(`cannot write ${path}: ${(cause as Error).message}`, { cause })
  }
}

/** Whether there is a symbolic link, but no file that it leads to: the system makes it where the link says, and nothing is lost. */
function isLinkToNothing(path: string): boolean {
  const there = { throwIfNoEntry: false }
  return lstatSync(path, there) !== undefined && statSync(path, there) === undefined
}

/** Puts a text where it is wanted. */
export function emit(text: string, { output, force = false }: Output): void {
  if (output === undefined) process.stdout.write(text)
  else {
    writeNew(output, text, force)
    say(`written to ${output}`)
  }
}
