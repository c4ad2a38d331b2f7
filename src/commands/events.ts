/** `obmalloc events`: prints a trace's events, a line each, with the stacks that requests were made under. */

import { native } from '../native.js'
import { reading } from '../replaying.js'
import { readHeader, segments } from '../trace.js'
import { UsageError } from '../usage.js'

export interface EventsCommandOptions {
  readonly from?: number
  readonly to?: number
  readonly size?: number
  readonly address?: string
  readonly site?: string
  readonly json?: boolean
}

interface Call {
  readonly event: number
  readonly seconds: number | null
  readonly thread: number | null
  readonly call: string
  readonly domain: string
  readonly count?: number
  readonly size?: number
  readonly from?: string
  readonly address: string
  readonly interpreter: number
  readonly stack: readonly { readonly file: string; readonly line: number; readonly function: string }[]
}

interface Note {
  readonly event: number
  readonly seconds: number | null
  readonly note: string
  readonly value?: string
  /** Of a sample of memory, bytes. */
  readonly anonymous?: number
  readonly file?: number
  readonly heap?: number
  readonly heapFree?: number
}

/** Events looked at between two writes. */
const SLICE = 20_000

export async function eventsCommand(
  path: string,
  { from, to, size, address, site, json }: EventsCommandOptions,
): Promise<number> {
  const digits = address === undefined ? undefined : /^(?:0x)?([\da-f]{1,16})$/i.exec(address)?.[1]
  if (address !== undefined && digits === undefined)
    throw new UsageError(`expected an address like 0x7f00001030, but got ${address}`)
  const place = site === undefined ? undefined : /^(.+):(\d{1,9})$/.exec(site)
  if (place === null) throw new UsageError(`expected a site as FILE:LINE, but got ${site}`)
  const wanted = { from, to, size, address: digits, site: place && [place[1], Number(place[2])] }
  const frames = readHeader(path).stacks ?? 0
  const listing = reading(() => native.openEvents(JSON.stringify({ segments: segments(path), frames, ...wanted })))
  try {
    for (;;) {
      const lines = reading(() => native.readEvents(listing, SLICE))
      if (lines === null) return 0
      // Who reads may be slower.
      if (lines !== '' && !process.stdout.write(json ? lines : inWords(lines)))
        await new Promise((done) => process.stdout.once('drain', done))
    }
  } finally {
    native.closeEvents(listing)
  }
}

function inWords(lines: string): string {
  return lines
    .trimEnd()
    .split('\n')
    .map((line) => `${lineOf(JSON.parse(line) as Call | Note)}\n`)
    .join('')
}

function lineOf(event: Call | Note): string {
  const when = event.seconds?.toFixed(6) ?? '-'
  if ('note' in event) {
    const { anonymous, file, heap, heapFree, value } = event
    const memory =
      anonymous === undefined ? [] : [`anonymous ${anonymous}, file ${file}, C's heap ${heap}, free of it ${heapFree}`]
    return [event.event, when, '-', event.note, ...(value === undefined ? [] : [JSON.stringify(value)]), ...memory].join('  ')
  }
  const { thread, call, domain, count, size, from, address, stack } = event
  const bytes = size === undefined ? '-' : count === undefined ? `${size}` : `${count}x${size}`
  const where = stack.map(({ file, line, function: name }) => `${name} (${file}:${line})`).join(' < ')
  const moved = from === undefined || from === '0x0' ? address : `${from} -> ${address}`
  return [event.event, when, thread ?? '-', call, domain, bytes, moved, where].join('  ').trimEnd()
}
