/** `obmalloc events`: prints a trace's events, a line each, with the stacks that requests were made under. */

import { once } from 'node:events'
import { createWriteStream } from 'node:fs'

import { type CallEvent, eventLines, type EventsOptions, type NoteEvent } from '../events.js'
import { type Output, writeNew } from '../output.js'
import { commandOn, next, printable, say } from '../terminal.js'

export interface EventsCommandOptions extends EventsOptions, Output {
  readonly json?: boolean
}

export async function eventsCommand(path: string, options: EventsCommandOptions): Promise<number> {
  const { json = false, output, force, ...wanted } = options
  const lines = eventLines(path, wanted)
  if (output === undefined) await write(lines, json, process.stdout)
  else {
    // A trace that cannot be read leaves no file behind.
    const first = await lines.next()
    writeNew(output, '', force)
    const file = createWriteStream(output, { flags: 'a' })
    if (!first.done) file.write(json ? first.value : inWords(first.value))
    await write(lines, json, file)
    file.end()
    await once(file, 'finish')
    say(`written to ${output}`)
  }
  if (!json) say(next(commandOn('why', path)))
  return 0
}

async function write(lines: AsyncIterable<string>, json: boolean, to: NodeJS.WritableStream): Promise<void> {
  for await (const some of lines) {
    // The reader may be slower.
    if (!to.write(json ? some : inWords(some))) await once(to, 'drain')
  }
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
  const where = printable(stack.map(({ file, line, function: name }) => `${name} (${file}:${line})`).join(' < '))
  const moved = from === undefined || from === '0x0' ? address : `${from} -> ${address}`
  return [event.event, when, thread ?? '-', call, domain, bytes, moved, where].join('  ').trimEnd()
}
