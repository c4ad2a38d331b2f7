/** Which release's rules a CPython follows. */

import type { Release } from '../index.js'
import { native } from './native.js'
import { TraceError, type TraceHeader } from './trace.js'

/** The release that a version such as `3.14.2` or `3.12.1+` belongs to. Throws where it is none that there are heaps of. */
export function releaseOf(version: string): Release {
  const release = native.releaseOf(version)
  if (release === null) throw new RangeError(`expected a CPython of 3.8 to 3.15, but got ${version}`)
  return release
}

/** The release of a trace's process. Throws a {@link TraceError} where it is none that there are heaps of. */
export function recordedRelease(path: string, { python }: Pick<TraceHeader, 'python'>): Release {
  const release = native.releaseOf(python)
  if (release === null) throw new TraceError(`${path}: expected a trace of CPython 3.8 to 3.15, but it is of ${python}`)
  return release
}

/** Every release that there are heaps of, oldest first. */
export const ALL_RELEASES: readonly string[] = [
  '3.8',
  '3.9',
  '3.10',
  '3.11',
  '3.12',
  '3.13',
  '3.14.0',
  '3.14',
  '3.15',
] satisfies Release[]
