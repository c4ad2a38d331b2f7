/** Lists the events of a trace, each with its time, its thread and its stack. */

import type { EventsOptions } from '../index.js'
import { native } from './native.js'
import { reading } from './replaying.js'
import { readHeader, segments } from './trace.js'
import { UsageError } from './usage.js'

export type { CallEvent, NoteEvent, EventsOptions } from '../index.js'

/** Events listed between two turns of the event loop. */
const SLICE = 20_000

/** Closes the listings of iterations that were left in the middle and forgotten. */
const forgotten = new FinalizationRegistry<number>((listing) => native.closeEvents(listing))

/** The events of a trace that are wanted, some lines of JSON at a time. */
export async function* eventLines(path: string, { from, to, size, address, site }: EventsOptions): AsyncGenerator<string> {
  const digits = address === undefined ? undefined : /^(?:0x)?([\da-f]{1,16})$/i.exec(address)?.[1]
  if (address !== undefined && digits === undefined)
    throw new UsageError(`expected an address like 0x7f00001030, but got ${address}`)
  const place = site === undefined ? undefined : /^(.+):(\d{1,9})$/.exec(site)
  if (place === null) throw new UsageError(`expected a site as FILE:LINE, but got ${site}`)
  const wanted = { from, to, size, address: digits, site: place && [place[1], Number(place[2])] }
  if (from !== undefined && to !== undefined && from > to)
    throw new UsageError(`expected a first event before the last one, but got ${from} and ${to}`)
  const frames = readHeader(path).stacks ?? 0
  if (place && frames === 0) throw new UsageError(`expected a trace with stacks for a site, but ${path} has none`)
  const listing = reading(() => native.openEvents(JSON.stringify({ segments: segments(path), frames, ...wanted })))
  // Lives as long as the iteration.
  const iteration = {}
  forgotten.register(iteration, listing, iteration)
  try {
    for (;;) {
      const lines = reading(() => native.readEvents(listing, SLICE))
      if (lines === null) return
      if (lines === '') await new Promise((done) => setImmediate(done))
      else yield lines
    }
  } finally {
    forgotten.unregister(iteration)
    native.closeEvents(listing)
  }
}
