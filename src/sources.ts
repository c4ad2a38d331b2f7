/** Lines of source, which the frames of a trace name. */

import { readFileSync, statSync } from 'node:fs'
import { isAbsolute, join } from 'node:path'

import type { TraceHeader } from '../index.js'

/** Most bytes of a file that was written by hand. */
const LARGEST = 4_000_000

export interface Source {
  /** When it was changed last, in milliseconds. */
  readonly changed: number
  readonly lines: readonly string[]
}

/**
 * The path of a file that a trace names: before 3.9 Python names a script as it stands on the command line. Null where a path is relative to a
 * folder that is not known.
 */
export function pathOf(file: string, { folder = '' }: Pick<TraceHeader, 'folder'>): string | null {
  if (isAbsolute(file)) return file
  return folder === '' ? null : join(folder, file)
}

/** A file of source; null where there is none that can be read. A trace may name anything, also what has no end or waits for a writer. */
export function sourceOf(name: string, header: Pick<TraceHeader, 'folder'>): Source | null {
  const file = pathOf(name, header)
  if (file === null) return null
  try {
    const found = statSync(file)
    // What is in /proc has 0 bytes, however much there is to read.
    if (!found.isFile() || found.size === 0 || found.size > LARGEST) return null
    return { changed: found.mtimeMs, lines: readFileSync(file, 'utf8').split('\n') }
  } catch {
    // The recording may be of another machine, or the file gone.
    return null
  }
}
