/** `obmalloc events`: prints a trace's events, a line each, with the stacks that requests were made under. */

import { type CallEvent, eventLines, type EventsOptions, type NoteEvent } from '../events.js'

export interface EventsCommandOptions extends EventsOptions {
  readonly json?: boolean
}

export async function eventsCommand(path: string, { json, ...wanted }: EventsCommandOptions): Promise<number> {
  for await (const lines of eventLines(path, wanted)) {
    // Who reads may be slower.
    if (!process.stdout.write(json ? lines : inWords(lines))) await new Promise((done) => process.stdout.once('drain', done))
  }
  return 0
}

function inWords(lines: string): string {
  return lines
    .trimEnd()
    .split('\n')
    .map((line) => `${lineOf(JSON.parse(line) as CallEvent | NoteEvent)}\n`)
    .join('')
}

function lineOf(event: CallEvent | NoteEvent): string {
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
