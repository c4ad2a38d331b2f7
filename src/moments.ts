/** Finding moments in traces: the end, the peak, marks, events, times. */

import type { AbortSignalLike, Moment } from '../index.js'
import { native } from './native.js'
import { reading } from './replaying.js'
import type { Segment } from './trace.js'
import { UsageError } from './usage.js'

export type { Moment } from '../index.js'

/** Events read between two looks at the clock and the terminal. */
const SLICE = 1_000_000

/** The moment that `text` asks for: `end`, `peak`, `mark:NAME`, `mark:NAME#2`, `event:N` or `time:SECONDS`. */
export async function findMoment(
  segments: readonly Segment[],
  text: string,
  onProgress?: (done: number, total: number) => void,
  signal?: AbortSignalLike,
): Promise<Moment> {
  signal?.throwIfAborted()
  const outline = reading(() => native.openOutline(JSON.stringify(segments)))
  try {
    // Refuse a text that is no moment before anything is read.
    native.findMoment(outline, text)
    while (reading(() => native.stepOutline(outline, SLICE)) !== 0) {
      onProgress?.(...native.progressOutline(outline))
      await new Promise((done) => setImmediate(done))
      signal?.throwIfAborted()
    }
    const found = native.findMoment(outline, text)
    if (found === null) throw new UsageError(`the trace has no such moment: ${text}`)
    return JSON.parse(found) as Moment
  } finally {
    native.closeOutline(outline)
  }
}
