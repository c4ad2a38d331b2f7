/** Finding moments in traces: the end, the peak, marks, events, times. */

import type { AbortSignalLike, Moment } from '../index.js'
import { native } from './native.js'
import { reading } from './replaying.js'
import type { Segment } from './trace.js'

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
  const outline = reading(() => native.openOutline(JSON.stringify(segments), text))
  try {
    while (reading(() => native.stepOutline(outline, SLICE)) !== 0) {
      onProgress?.(...native.progressOutline(outline))
      await new Promise((done) => setImmediate(done))
      signal?.throwIfAborted()
    }
    return JSON.parse(reading(() => native.findMoment(outline), segments.at(-1)?.path)) as Moment
  } finally {
    native.closeOutline(outline)
  }
}
